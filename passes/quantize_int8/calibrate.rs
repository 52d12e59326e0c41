//! What the activations are like: one pass over the data that keeps a histogram of each value,
//! whatever the method that ranges are found by, and a file that keeps the histograms.

use std::collections::BTreeMap;
use std::path::Path;

use paring_ir::engine::{CompileOptions, EngineError};
use paring_ir::observe::{Mask, observe};
use paring_ir::{Model, PassContext, PassError, ValueId};
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;

/// Histograms by value.
pub(crate) type Histograms = BTreeMap<ValueId, Histogram>;

/// The file that keeps what was seen.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cache {
    /// What the histograms are of: the data and its size.
    data: String,
    /// A digest of the model that was run.
    model: String,
    /// Samples that were run.
    samples: usize,
    /// By name of the value.
    values: BTreeMap<String, Histogram>,
}

/// The histograms of values, from the file when it is about this model and has them all, else
/// from the data, and then they are put into the file. Values that the engine can't give are
/// left out.
pub(crate) fn histograms(
    cx: &PassContext<'_>,
    model: &Model,
    values: &[ValueId],
    samples: Option<usize>,
    file: Option<&Path>,
) -> Result<Histograms, PassError> {
    let digest = digest(model);
    if let Some(path) = file
        && let Some(found) = read(path, &digest, model, values)?
    {
        return Ok(found);
    }
    let (Some(engine), Some(data)) = (cx.engine, cx.data) else {
        return Err(PassError::Precondition {
            found: "there is no calibration data or no engine to run it".to_owned(),
            remedy: "give samples with --data FILE.npz, or use quantize-weights or \
                     quantize-dynamic, which need none"
                .to_owned(),
        });
    };
    let wanted = samples.unwrap_or(usize::MAX).min(data.len());
    cx.progress().start("calibrating", wanted as u64);
    let mut seen = Histograms::new();
    let options = CompileOptions {
        threads: cx.threads,
        ..CompileOptions::default()
    };
    let first = values.first().copied();
    let watched = observe(
        engine,
        model,
        values,
        data,
        samples,
        options,
        &mut |sample, v, t| {
            if Some(v) == first {
                cx.check_cancelled().map_err(|_| EngineError::Cancelled)?;
                cx.progress().advance(sample.count as u64);
            }
            if let Some(elements) = t.to_f32s() {
                let mask = Mask::of(&model.graph, sample);
                let counted = Mask::counted(mask.as_ref(), t.dims(), &elements);
                seen.entry(v).or_default().add(&counted);
            }
            Ok(())
        },
    );
    cx.progress().finish();
    let watched = match watched {
        Err(EngineError::Cancelled) => return Err(PassError::Cancelled),
        other => other?,
    };
    if let Some(path) = file {
        write(path, data.describe(), digest, watched.samples, model, &seen)?;
    }
    Ok(seen)
}

/// A text that models with other operators, wiring or constants don't share.
fn digest(model: &Model) -> String {
    let mut h = xxhash_rust::xxh3::Xxh3::new();
    let g = &model.graph;
    for op in g.topological_order().unwrap_or_default() {
        let o = g.op(op);
        h.update(o.op_type().as_bytes());
        for v in o.inputs().flatten() {
            h.update(&[0]);
            match g.tensor(v) {
                Some(t) => h.update(&t.digest().to_le_bytes()),
                None => h.update(g.value(v).name().as_bytes()),
            }
        }
        for v in o.outputs().iter().flatten() {
            h.update(&[1]);
            h.update(g.value(*v).name().as_bytes());
        }
    }
    format!("{:032x}", h.digest128())
}

fn at_file(path: &Path, reason: impl std::fmt::Display) -> PassError {
    PassError::Precondition {
        found: format!("calibration-file {}: {reason}", path.display()),
        remedy: "give a path that can be written, or remove the file to calibrate again".to_owned(),
    }
}

fn read(
    path: &Path,
    digest: &str,
    model: &Model,
    values: &[ValueId],
) -> Result<Option<Histograms>, PassError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(at_file(path, e)),
    };
    let mut cache: Cache = serde_json::from_str(&text).map_err(|e| at_file(path, e))?;
    if cache.model != digest {
        return Ok(None);
    }
    let mut out = Histograms::new();
    for &v in values {
        let name: &str = model.graph.value(v).name();
        match cache.values.remove(name).filter(Histogram::is_sound) {
            Some(h) => out.insert(v, h),
            None => return Ok(None),
        };
    }
    Ok(Some(out))
}

fn write(
    path: &Path,
    data: String,
    model_digest: String,
    samples: usize,
    model: &Model,
    seen: &Histograms,
) -> Result<(), PassError> {
    let named =
        |(v, h): (&ValueId, &Histogram)| (model.graph.value(*v).name().to_string(), h.clone());
    let cache = Cache {
        data,
        model: model_digest,
        samples,
        values: seen.iter().map(named).collect(),
    };
    let text = serde_json::to_string(&cache).map_err(|e| at_file(path, e))?;
    std::fs::write(path, text).map_err(|e| at_file(path, e))
}

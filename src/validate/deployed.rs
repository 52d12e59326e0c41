//! The form in which the engine runs a quantized model fast.
//!
//! QuantizeLinear and DequantizeLinear describe a quantized model; tract runs integer operators
//! instead, which `lower-qdq` makes of them. So a model with QDQ is timed as a lowered clone: the
//! layers that pay on this machine run in integers, the others in floats.

use paring_ir::analysis::AnalysisCache;
use paring_ir::engine::{DataSource, Engine, EngineError, Sample};
use paring_ir::{Graph, Model, PassContext, Registry, Tensor};
use serde::Serialize;
use serde_json::json;

use super::timing::{Profile, TimeOptions, profile, reorder};

/// The pass that lowers.
const PASS: &str = "lower-qdq";

/// A lowered clone.
pub(crate) struct Deployed {
    pub(crate) model: Model,
    /// What it is, for the report.
    pub(crate) form: String,
}

/// Lowers a clone of a model for the engine on this machine; `None` for a model without QDQ.
pub(crate) fn deployed(
    engine: &dyn Engine,
    registry: &Registry,
    model: &Model,
    inputs: &[Tensor],
    threads: usize,
) -> Result<Option<Deployed>, EngineError> {
    let Some(entry) = registry.get(PASS).filter(|_| quantizes(&model.graph)) else {
        return Ok(None);
    };
    let failed = |e: String| EngineError::Data(format!("{PASS}: {e}"));
    let options = json!({ "max-latency-ratio": 1.0 });
    let options = options.as_object().cloned().unwrap_or_default();
    let pass = entry.make(&options).map_err(|e| failed(e.to_string()))?;
    let one = OneSample(inputs);
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    cx.engine = Some(engine);
    cx.data = Some(&one);
    cx.threads = threads;
    let mut copy = model.clone();
    let changed = pass
        .run(&mut copy, &mut cx)
        .map_err(|e| failed(e.to_string()))?;
    if !changed.is_yes() {
        return Ok(None);
    }
    let integers = cx.remarks.applied.get("integers").copied().unwrap_or(0);
    let kept: usize = cx.remarks.missed.values().sum();
    let form = format!(
        "lowered to integer operators ({integers} of {} quantized layers; the others run faster in floats)",
        integers + kept
    );
    Ok(Some(Deployed { model: copy, form }))
}

fn quantizes(graph: &Graph) -> bool {
    graph.ops().any(|op| graph.op(op).is("QuantizeLinear"))
}

/// One run of a model, as data.
struct OneSample<'a>(&'a [Tensor]);

impl DataSource for OneSample<'_> {
    fn len(&self) -> usize {
        1
    }

    fn for_each(
        &self,
        _: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        f(&Sample {
            inputs: self.0.to_vec(),
            count: 1,
            labels: None,
        })
    }
}

/// One form of a quantized model, beside the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FormReport {
    /// `f32`, `qdq` or `lowered`.
    pub form: String,
    /// Bytes of its file.
    pub file_bytes: Option<u64>,
    /// How many samples it is scored on: at most 512, as integer forms may be slow.
    pub samples: usize,
    /// The smallest SQNR of the outputs against the float model, in dB.
    pub sqnr_db: Option<f64>,
    /// Top-1 accuracy, where there are labels.
    pub accuracy: Option<f64>,
    /// One run, in milliseconds: the float model's median times `ratio`.
    pub latency_ms: f64,
    /// The median over that of the float model, measured in turn.
    pub ratio: f64,
    /// The share of the time that is spent in quantizing and dequantizing, 0 to 1.
    pub quantize_share: f64,
}

/// The share of the time of one run that is spent in turning floats into bytes and back.
pub(crate) fn quantize_share(
    engine: &dyn Engine,
    reference: &Model,
    model: &Model,
    inputs: &[Tensor],
    times: &TimeOptions,
) -> Result<f64, EngineError> {
    let inputs = reorder(reference, model, inputs)?;
    let Profile { types, .. } = profile(engine, model, &inputs, times)?;
    // The engine's names are those of ONNX with a type behind.
    let turns = |op: &str| {
        ["QuantizeLinear", "DequantizeLinear"]
            .iter()
            .any(|t| op.starts_with(t))
    };
    // A sum of no floats is -0, which would be printed so.
    let shares = types.iter().filter(|r| turns(&r.op)).map(|r| r.share);
    Ok(shares.fold(0.0, |all, share| all + share))
}

//! What an error in one layer is to the outputs of the model.
//!
//! The same share of lost energy ruins a network in one layer and goes unnoticed in another, so
//! each layer is tried alone: factorized to about half, with all others as they were.

use paring_ir::engine::{CompileOptions, EngineError, Sample};
use paring_ir::observe::{Mask, Watch};
use paring_ir::{Model, PassContext, PassError, Tensor};
use rayon::prelude::*;

use super::candidates::Candidate;
use super::factors::Analysis;
use super::rewrite::offset_bias;
use crate::moments::pool;

/// Samples that each layer is tried on, at most and at least.
const SAMPLES: (usize, usize) = (32, 4);

/// Multiply-accumulates that all trials may take together: about a minute.
const TRIAL_MACS: f64 = 4e11;

/// Outputs of the original that are kept for comparison, in bytes.
const KEPT_BYTES: usize = 256 << 20;

/// By layer: the energy of the error in the model's outputs for each unit of energy that the
/// layer loses, both as shares. 1 for all where it can't be measured.
pub(super) fn impacts(
    model: &Model,
    known: &[(&Candidate<'_>, Analysis)],
    macs: u64,
    cx: &PassContext<'_>,
) -> Result<Vec<f64>, PassError> {
    let alike = vec![1.0; known.len()];
    let per_run = known.len() as f64 * macs.max(1) as f64;
    let samples = ((TRIAL_MACS / per_run) as usize).clamp(SAMPLES.1, SAMPLES.0);
    let runs = match original(model, samples, cx) {
        Ok(runs) if !runs.is_empty() => runs,
        Ok(_) => return Ok(alike),
        Err(EngineError::Cancelled) => return Err(PassError::Cancelled),
        Err(e) => return Err(e.into()),
    };
    cx.progress()
        .start("factorize-low-rank: trying layers", known.len() as u64);
    let pool = pool(cx.threads)?;
    let trials: Vec<Option<f64>> = pool.install(|| {
        let trial = |(candidate, analysis): &(&Candidate<'_>, Analysis)| {
            cx.check_cancelled().ok()?;
            let found = trial(model, candidate, analysis, &runs, cx);
            cx.progress().advance(1);
            found
        };
        known.par_iter().map(trial).collect()
    });
    cx.progress().finish();
    cx.check_cancelled()?;
    // A layer that could not be tried counts like the one that matters most.
    let most = trials.iter().flatten().fold(0.0, |a: f64, &b| a.max(b));
    if most <= 0.0 {
        return Ok(alike);
    }
    Ok(trials.into_iter().map(|t| t.unwrap_or(most)).collect())
}

/// A run of the original.
struct Run {
    sample: Sample,
    outputs: Vec<Tensor>,
}

const ENGINE: CompileOptions = CompileOptions {
    optimize: true,
    threads: 1,
};

/// The first runs of the original.
fn original(model: &Model, samples: usize, cx: &PassContext<'_>) -> Result<Vec<Run>, EngineError> {
    let (Some(engine), Some(data)) = (cx.engine, cx.data) else {
        return Ok(Vec::new());
    };
    let mut watch = Watch::new(engine, model, model.graph.outputs(), ENGINE);
    let mut runs = Vec::new();
    let mut bytes = 0usize;
    data.for_each(Some(samples), &mut |sample| {
        if cx.check_cancelled().is_err() {
            return Err(EngineError::Cancelled);
        }
        if bytes > KEPT_BYTES {
            return Ok(());
        }
        let outputs = run(&mut watch, sample)?;
        bytes += outputs
            .iter()
            .chain(&sample.inputs)
            .map(Tensor::byte_len)
            .sum::<usize>();
        let sample = sample.clone();
        runs.push(Run { sample, outputs });
        Ok(())
    })?;
    Ok(runs)
}

fn run(watch: &mut Watch<'_>, sample: &Sample) -> Result<Vec<Tensor>, EngineError> {
    let mut outputs = Vec::new();
    watch.run(sample, &mut |_, tensor| {
        outputs.push(tensor.clone());
        Ok(())
    })?;
    Ok(outputs)
}

/// The impact of one layer; `None` when the trial fails.
fn trial(
    model: &Model,
    candidate: &Candidate<'_>,
    analysis: &Analysis,
    runs: &[Run],
    cx: &PassContext<'_>,
) -> Option<f64> {
    let layer = &candidate.layer;
    let half = 0.5 * candidate.dense.params;
    let choices = analysis.choices.iter().filter(|c| c.error > 0.0);
    let choice = choices.min_by(|a, b| {
        let far = |c: &super::rank::Choice| (c.cost.params - half).abs();
        far(a).total_cmp(&far(b))
    });
    let Some(choice) = choice else {
        // Nothing is lost at any rank.
        return Some(0.0);
    };
    let mut tried = model.clone();
    let graph = &mut tried.graph;
    let dtype = graph.tensor(layer.weight)?.dtype();
    let (weight, bias) = analysis.composed(layer, choice, dtype)?;
    offset_bias(graph, layer, &bias).ok()?;
    graph.set_tensor(layer.weight, weight, Vec::new()).ok()?;
    let mut watch = Watch::new(cx.engine?, &tried, tried.graph.outputs(), ENGINE);
    let mut error = 0.0;
    let mut outputs = vec![(0.0f64, 0.0f64); model.graph.outputs().len()];
    for r in runs {
        let found = run(&mut watch, &r.sample).ok()?;
        let mask = Mask::of(&tried.graph, &r.sample);
        for (sums, (a, b)) in outputs.iter_mut().zip(r.outputs.iter().zip(&found)) {
            let dims = a.dims();
            let (Some(a), Some(b)) = (a.to_f32s(), b.to_f32s()) else {
                continue;
            };
            let counted = |all| Mask::counted(mask.as_ref(), dims, all).into_owned();
            for (a, b) in counted(&a).into_iter().zip(counted(&b)) {
                let (a, b) = (f64::from(a), f64::from(b));
                if a.is_finite() {
                    sums.0 += (a - b) * (a - b);
                    sums.1 += a * a;
                }
            }
        }
    }
    for (lost, energy) in outputs {
        if energy > 0.0 {
            error += lost / energy;
        }
    }
    (error.is_finite()).then_some(error / choice.error)
}

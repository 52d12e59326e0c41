//! A budget of latency, which is measured.

use std::time::{Duration, Instant};

use paring_ir::analysis::channels::Removed;
use paring_ir::engine::{CompileOptions, Cut, EngineError, Sample};
use paring_ir::{DType, Dims, Model, PassContext, PassError, Tensor};

use super::{Plan, edit, plan};

/// Runs of one measurement; the fastest counts.
const RUNS: usize = 7;

/// Measurements after the one that shows what can be reached at all.
const STEPS: usize = 6;

/// The lowest level, from `from` on, at which the model takes at most a share of the time that
/// it takes now.
pub(super) fn lowest(
    plan: &Plan<'_>,
    at: &dyn Fn(f64) -> Removed,
    from: f64,
    share: f64,
    cx: &mut PassContext<'_>,
) -> Result<f64, PassError> {
    let inputs = inputs(plan.model, cx)?;
    let whole = time(plan.model, &inputs, cx)?;
    let mut best = 1.0f64;
    let level = plan::lowest(STEPS, |step| {
        let level = from + (1.0 - from) * step;
        cx.check_cancelled()?;
        let removed = at(level);
        let edited = edit::remove(plan.model, plan.channels, &removed, plan.shapes)?;
        let Ok(edited) = edited else {
            return Ok(false);
        };
        let ratio = time(&edited, &inputs, cx)?.as_secs_f64() / whole.as_secs_f64().max(1e-9);
        best = best.min(ratio);
        Ok::<bool, PassError>(ratio <= share)
    })?;
    let Some(step) = level else {
        return Err(PassError::Precondition {
            found: format!(
                "the latency budget can't be met: with as much removed as may be, {best:.2} of the time remains"
            ),
            remedy: "raise budget.latency or max-ratio, or lower min-channels and round-to"
                .to_owned(),
        });
    };
    let level = from + (1.0 - from) * step;
    let macs = plan.cost.without(&at(level)).macs / plan.cost.whole().macs.max(1.0);
    if let Some(op) = plan.model.graph.ops().next() {
        let message = format!(
            "the measured latency asks for budget.macs = {macs:.6}, which gives the same result on any machine"
        );
        cx.applied(&plan.model.graph, op, "latency", message);
    }
    Ok(level)
}

/// The inputs to measure with: the first sample of the data, or zeros of fixed shapes.
fn inputs(model: &Model, cx: &PassContext<'_>) -> Result<Vec<Tensor>, PassError> {
    if let Some(data) = cx.data {
        let mut first: Option<Vec<Tensor>> = None;
        data.for_each(Some(1), &mut |sample: &Sample| {
            first.get_or_insert_with(|| sample.inputs.clone());
            Ok::<(), EngineError>(())
        })?;
        if let Some(inputs) = first {
            return Ok(inputs);
        }
    }
    let zeros = |&v: &_| -> Option<Tensor> {
        let ty = model.graph.value(v).known_type()?;
        let dims: Option<Dims> = ty.shape()?.iter().map(|d| d.known()).collect();
        let (dims, dtype) = (dims?, ty.dtype()?);
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let bytes = DType::packed_len(dtype, count)?;
        Tensor::new(dtype, dims, vec![0u8; bytes]).ok()
    };
    let all: Option<Vec<Tensor>> = model.graph.inputs().iter().map(zeros).collect();
    all.ok_or_else(|| PassError::Precondition {
        found:
            "a budget of latency needs inputs to run with, and the model leaves their sizes open"
                .to_owned(),
        remedy: "give data with --data FILE.npz, or sizes with --fix-dims and --input".to_owned(),
    })
}

fn time(model: &Model, inputs: &[Tensor], cx: &PassContext<'_>) -> Result<Duration, PassError> {
    let Some(engine) = cx.engine else {
        return Err(PassError::Precondition {
            found: "a budget of latency needs an engine".to_owned(),
            remedy: "give budget.macs instead".to_owned(),
        });
    };
    let shapes = inputs.iter().map(|t| t.dims().iter().copied().collect());
    let cut = Cut::whole(model, shapes.collect());
    let mut plan = engine.compile(&cut, CompileOptions::default())?;
    plan.run(inputs)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        plan.run(inputs)?;
        best = best.min(start.elapsed());
    }
    Ok(best)
}

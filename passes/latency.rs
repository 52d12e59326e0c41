//! Measuring how long models take, for decisions that a user asked to be made by measurement.

use std::time::{Duration, Instant};

use paring_ir::engine::{CompileOptions, Cut, EngineError, Plan, Sample};
use paring_ir::{DType, Dims, Model, PassContext, PassError, Tensor};

/// Runs of one measurement; the fastest counts.
const RUNS: usize = 7;

/// The inputs to measure with: the first sample of the data, or zeros of fixed shapes. `what` is
/// what the measurement is for.
pub(crate) fn inputs(
    model: &Model,
    cx: &PassContext<'_>,
    what: &str,
) -> Result<Vec<Tensor>, PassError> {
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
        found: format!("{what} needs inputs to run with, and the model leaves their sizes open"),
        remedy: "give data with --data FILE.npz, or sizes with --fix-dims and --input".to_owned(),
    })
}

/// The model as the engine would deploy it, for inputs of these shapes.
pub(crate) fn compiled(
    model: &Model,
    inputs: &[Tensor],
    cx: &PassContext<'_>,
    what: &str,
) -> Result<Box<dyn Plan>, PassError> {
    let Some(engine) = cx.engine else {
        return Err(PassError::Precondition {
            found: format!("{what} needs an engine"),
            remedy: "leave it out, or run with an engine".to_owned(),
        });
    };
    let shapes = inputs.iter().map(|t| t.dims().iter().copied().collect());
    let cut = Cut::whole(model, shapes.collect());
    Ok(engine.compile(&cut, CompileOptions::default())?)
}

/// The fastest of several runs of each model, in turn.
pub(crate) fn fastest(
    models: &[&Model],
    inputs: &[Tensor],
    cx: &PassContext<'_>,
    what: &str,
) -> Result<Vec<Duration>, PassError> {
    let mut plans = Vec::new();
    for model in models {
        let mut plan = compiled(model, inputs, cx, what)?;
        plan.run(inputs)?;
        plans.push(plan);
    }
    let mut best = vec![Duration::MAX; plans.len()];
    for _ in 0..RUNS {
        cx.check_cancelled()?;
        for (plan, best) in plans.iter_mut().zip(&mut best) {
            let start = Instant::now();
            plan.run(inputs)?;
            *best = (*best).min(start.elapsed());
        }
    }
    Ok(best)
}

/// The lowest level from 0 to 1 at which `fits` holds, which is halved in on in so many steps;
/// `None` when it does not even hold at 1.
pub(crate) fn lowest<E>(
    steps: usize,
    mut fits: impl FnMut(f64) -> Result<bool, E>,
) -> Result<Option<f64>, E> {
    if !fits(1.0)? {
        return Ok(None);
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..steps {
        let middle = (low + high) / 2.0;
        if fits(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Some(high))
}

/// Measurements for a budget of latency, after the one that shows what can be reached at all.
const STEPS: usize = 6;

/// The lowest level from 0 to 1 at which a model as `edited` to that level takes at most a share
/// of the time that it takes now, as measured in turn with it. `remedy` is what helps when no
/// level does.
pub(crate) fn lowest_level(
    model: &Model,
    share: f64,
    remedy: &str,
    cx: &PassContext<'_>,
    mut edited: impl FnMut(f64) -> Result<Option<Model>, PassError>,
) -> Result<f64, PassError> {
    const WHAT: &str = "a budget of latency";
    let inputs = inputs(model, cx, WHAT)?;
    let mut best = 1.0f64;
    let level = lowest(STEPS, |level| {
        cx.check_cancelled()?;
        let Some(edited) = edited(level)? else {
            return Ok(false);
        };
        let times = fastest(&[model, &edited], &inputs, cx, WHAT)?;
        let ratio = times[1].as_secs_f64() / times[0].as_secs_f64().max(1e-9);
        best = best.min(ratio);
        Ok::<bool, PassError>(ratio <= share)
    })?;
    level.ok_or_else(|| PassError::Precondition {
        found: format!(
            "the latency budget can't be met: with as much taken away as may be, {best:.2} of the time remains"
        ),
        remedy: remedy.to_owned(),
    })
}

/// A share of the multiply-accumulates as a recipe states it: rounded up, to a millionth.
pub(crate) fn stated(share: f64) -> f64 {
    (share * 1e6).ceil() / 1e6
}

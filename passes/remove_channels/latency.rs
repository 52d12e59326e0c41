//! A budget of latency, which is measured.

use std::time::Duration;

use paring_ir::analysis::channels::Removed;
use paring_ir::{Model, PassContext, PassError, Tensor};

use crate::latency;

use super::{Plan, edit, plan};

/// What the measurements are for.
const WHAT: &str = "a budget of latency";

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
    let inputs = latency::inputs(plan.model, cx, WHAT)?;
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

fn time(model: &Model, inputs: &[Tensor], cx: &PassContext<'_>) -> Result<Duration, PassError> {
    let times = latency::fastest(&[model], inputs, cx, WHAT)?;
    Ok(times.first().copied().unwrap_or(Duration::MAX))
}

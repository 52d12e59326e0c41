//! A budget of latency, which is measured.

use paring_ir::analysis::channels::Removed;
use paring_ir::{PassContext, PassError};

use crate::latency::{lowest_level, stated};

use super::{Budget, Plan, edit};

/// The lowest level, from `from` on, at which the model takes at most a share of the time that
/// it takes now. The recipe that comes of it has a budget of multiply-accumulates instead.
pub(super) fn lowest(
    plan: &Plan<'_>,
    at: &dyn Fn(f64) -> Removed,
    from: f64,
    budget: &Budget,
    share: f64,
    cx: &mut PassContext<'_>,
) -> Result<f64, PassError> {
    let between = |step: f64| from + (1.0 - from) * step;
    let remedy = "raise budget.latency or max-ratio, or lower min-channels and round-to";
    let step = lowest_level(plan.model, share, remedy, cx, |step| {
        let removed = at(between(step));
        Ok(edit::remove(plan.model, plan.channels, &removed, plan.shapes)?.ok())
    })?;
    let level = between(step);
    let macs = plan.cost.without(&at(level)).macs / plan.cost.whole().macs.max(1.0);
    let macs = stated(macs);
    if let Some(op) = plan.model.graph.ops().next() {
        let message = format!(
            "the measured latency asks for budget.macs = {macs:.6}, which gives the same result on any machine"
        );
        cx.applied(&plan.model.graph, op, "latency", message);
    }
    let budget = Budget {
        macs: Some(macs),
        latency: None,
        ..*budget
    };
    cx.resolved = serde_json::json!({ "budget": budget }).as_object().cloned();
    Ok(level)
}

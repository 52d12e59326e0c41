//! A budget of latency, which is measured.

use paring_ir::analysis::ModelCost;
use paring_ir::{Model, PassContext, PassError};

use super::candidates::Candidate;
use super::factors::Analysis;
use super::plan::{Planned, choose};
use super::{Budget, Options, build};
use crate::latency::{lowest_level, stated};

/// The options with a budget of multiply-accumulates in place of that of latency: the largest
/// at which the model takes at most a share of the time that it takes now.
pub(super) fn as_macs(
    model: &Model,
    (known, importance): (&[(&Candidate<'_>, Analysis)], &[f64]),
    (whole, share): (&Options, f64),
    total: &ModelCost,
    cx: &mut PassContext<'_>,
) -> Result<Options, PassError> {
    let Some((first, _)) = known.first() else {
        return Ok(whole.clone());
    };
    let budget = whole.budget.clone().unwrap_or_default();
    let cheapest = |(candidate, analysis): &(&Candidate<'_>, Analysis)| {
        let least = analysis.choices.iter().map(|c| c.cost.macs);
        (candidate.dense.macs - least.fold(candidate.dense.macs, f64::min)).max(0.0)
    };
    let all = (total.macs as f64).max(1.0);
    let least = 1.0 - known.iter().map(cheapest).sum::<f64>() / all;
    let most = budget.macs.unwrap_or(1.0).max(least);
    let with = |level: f64| Options {
        budget: Some(Budget {
            macs: Some(stated(most + (least - most) * level)),
            latency: None,
            ..budget.clone()
        }),
        ..whole.clone()
    };
    let remedy = "raise budget.latency, or lower round-to or min-elements";
    let level = lowest_level(model, share, remedy, cx, |level| {
        let chosen = choose(known, importance, &with(level), total)?;
        let planned = known
            .iter()
            .zip(chosen)
            .filter_map(|((candidate, analysis), at)| {
                Some(Planned {
                    candidate: (*candidate).clone(),
                    choice: analysis.choices[at.ok()?],
                    analysis: analysis.clone(),
                    whitened: false,
                })
            });
        build::unfitted(model, planned.collect(), cx).map(Some)
    })?;
    let options = with(level);
    if let Some(budget) = &options.budget {
        let message = format!(
            "the measured latency asks for budget.macs = {:.6}, which gives the same result on any machine",
            budget.macs.unwrap_or(1.0)
        );
        model.for_each_graph(&mut |graph| {
            if graph.id() == first.layer.op.graph() {
                cx.applied(graph, first.layer.op, "latency", message.clone());
            }
        });
        cx.resolved = serde_json::json!({ "budget": budget }).as_object().cloned();
    }
    Ok(options)
}

//! Putting factors into the model, and fitting them again.

use std::collections::{BTreeMap, HashMap};

use paring_ir::analysis::ModelCost;
use paring_ir::{Changed, DType, Graph, GraphId, Model, OpId, PassContext, PassError, ValueId};
use rayon::prelude::*;

use super::Options;
use super::candidates::{Candidate, Form};
use super::factors::Factors;
use super::plan::{Planned, chunks, watched};
use super::rewrite::{Kind, Pair, install, tensors, update};
use crate::layers::Layer;
use crate::moments::{Moments, pool};

/// Multiply-accumulates that all runs of the model for the refit may take together: minutes.
const REFIT_MACS: f64 = 1.5e12;

/// Fewer rounds than this leave too many layers to be fitted on inputs that change afterwards.
const LEAST_ROUNDS: usize = 4;

/// A layer that has factors.
struct Made<'o> {
    planned: Planned<'o>,
    kind: Kind,
    dtype: DType,
    pair: Pair,
}

/// Factorizes the planned layers.
pub(super) fn build(
    model: &mut Model,
    planned: Vec<Planned<'_>>,
    whole: &Options,
    total: &ModelCost,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let original = model.clone();
    let (mut made, left) = install_all(model, planned, cx)?;
    model.for_each_graph(&mut |graph| {
        for (op, why) in left.iter().filter(|(op, _)| op.graph() == graph.id()) {
            cx.missed(graph, *op, "range", why.clone());
        }
    });
    if made.is_empty() {
        return Ok(Changed::No);
    }
    if whole.recover && cx.data.is_some() && cx.engine.is_some() {
        recover(model, &original, &mut made, whole, total, cx)?;
    }
    model.for_each_graph(&mut |graph| {
        for m in made
            .iter()
            .filter(|m| m.planned.candidate.layer.op.graph() == graph.id())
        {
            let message = message(m);
            cx.applied(graph, m.planned.candidate.layer.op, "factorized", message);
        }
    });
    Ok(Changed::Yes)
}

fn message(m: &Made<'_>) -> String {
    let (candidate, choice) = (&m.planned.candidate, &m.planned.choice);
    let layer = &candidate.layer;
    let form = match (choice.form, m.kind) {
        (Form::Spatial, _) => "spatial",
        (_, Kind::Product) => "svd",
        _ => "channel",
    };
    let full = layer.rows.min(layer.cols);
    let macs = 100.0 * choice.cost.macs / candidate.dense.macs.max(1.0);
    let params = 100.0 * choice.cost.params / candidate.dense.params.max(1.0);
    let of = match m.planned.whitened {
        true => "outputs",
        false => "weights (no calibration data)",
    };
    format!(
        "rank {} of {full} ({form}): {macs:.0} % of its MACs, {params:.0} % of its parameters, {:.2} % of the energy of its {of} lost",
        choice.rank,
        100.0 * choice.error
    )
}

/// The model with the first factors of all layers, to measure what it takes.
pub(super) fn unfitted(
    model: &Model,
    planned: Vec<Planned<'_>>,
    cx: &PassContext<'_>,
) -> Result<Model, PassError> {
    let mut copy = model.clone();
    install_all(&mut copy, planned, cx)?;
    Ok(copy)
}

/// Layers with factors, and those whose factors don't fit, with the reason.
type Installed<'o> = (Vec<Made<'o>>, Vec<(OpId, String)>);

/// Puts in the first factors of all layers.
fn install_all<'o>(
    model: &mut Model,
    planned: Vec<Planned<'o>>,
    cx: &PassContext<'_>,
) -> Result<Installed<'o>, PassError> {
    let mut by_graph: HashMap<GraphId, Vec<Planned<'o>>> = HashMap::new();
    for p in planned {
        by_graph
            .entry(p.candidate.layer.op.graph())
            .or_default()
            .push(p);
    }
    let (mut made, mut left) = (Vec::new(), Vec::new());
    model.edit_graphs(&mut |graph| {
        for planned in by_graph.remove(&graph.id()).unwrap_or_default() {
            cx.check_cancelled()?;
            let layer = &planned.candidate.layer;
            match first_factors(graph, &planned) {
                Ok((kind, dtype, both, bias)) => {
                    let pair = install(graph, layer, planned.choice.form, both, &bias)?;
                    made.push(Made {
                        planned,
                        kind,
                        dtype,
                        pair,
                    });
                }
                Err(why) => left.push((layer.op, why)),
            }
        }
        Ok::<(), PassError>(())
    })?;
    Ok((made, left))
}

type FirstFactors = (
    Kind,
    DType,
    (paring_ir::Tensor, paring_ir::Tensor),
    Vec<f64>,
);

fn first_factors(graph: &Graph, planned: &Planned<'_>) -> Result<FirstFactors, String> {
    let layer = &planned.candidate.layer;
    let kind = Kind::of(graph, layer);
    let dtype = graph.tensor(layer.weight).map(paring_ir::Tensor::dtype);
    let dtype = dtype.ok_or("the weight is gone")?;
    let factors = planned.analysis.factors(layer, &planned.choice);
    let factors = factors.ok_or("the factors can't be had")?;
    let both = tensors(layer, (kind, planned.choice.form), dtype, &factors);
    let both = both.map_err(|e| e.message)?;
    Ok((kind, dtype, both, factors.bias))
}

/// Fits the factors to the outputs of the original, in rounds along the data, each round on the
/// activations that the rounds before it have left.
fn recover(
    model: &mut Model,
    original: &Model,
    made: &mut [Made<'_>],
    whole: &Options,
    total: &ModelCost,
    cx: &PassContext<'_>,
) -> Result<(), PassError> {
    let rounds = rounds(original, made, whole, total, cx)?;
    let pool = pool(cx.threads)?;
    cx.progress()
        .start("factorize-low-rank: fitting", made.len() as u64);
    for round in rounds {
        let candidates: Vec<Candidate<'_>> = round
            .iter()
            .map(|&i| made[i].planned.candidate.clone())
            .collect();
        let mut at = 0usize;
        let mut found: Vec<Option<Factors>> = Vec::new();
        for chunk in chunks(&candidates, true) {
            let moments = watched(model, Some(original), chunk.iter().collect(), whole, cx)?;
            cx.check_cancelled()?;
            let layers: Vec<&Made<'_>> = round[at..at + chunk.len()]
                .iter()
                .map(|&i| &made[i])
                .collect();
            at += chunk.len();
            let fit = |(m, moments): (&&Made<'_>, &Option<Moments>)| {
                let Planned {
                    candidate,
                    choice,
                    analysis,
                    ..
                } = &m.planned;
                let fitted =
                    analysis.refit(candidate, choice, moments.as_ref()?, whole.damping, cx.seed);
                cx.progress().advance(1);
                fitted
            };
            let work = layers.par_iter().zip(&moments).map(fit);
            found.extend(pool.install(|| work.collect::<Vec<_>>()));
        }
        for (&i, factors) in round.iter().zip(found) {
            let m = &mut made[i];
            let layer = &m.planned.candidate.layer;
            // Where a fit has no solution, the first factors stay.
            let Some(factors) = factors else { continue };
            let form = m.planned.choice.form;
            if let Ok(both) = tensors(layer, (m.kind, form), m.dtype, &factors) {
                update(&mut model.graph, layer, &mut m.pair, both, &factors.bias)?;
            }
        }
    }
    cx.progress().finish();
    Ok(())
}

/// The layers of each round: those with as many factorized layers before them come together,
/// and where that makes more rounds than there is time for, neighbours do.
fn rounds(
    original: &Model,
    made: &[Made<'_>],
    whole: &Options,
    total: &ModelCost,
    cx: &PassContext<'_>,
) -> Result<Vec<Vec<usize>>, PassError> {
    let layers: Vec<(usize, &Layer)> = made
        .iter()
        .map(|m| &m.planned.candidate.layer)
        .enumerate()
        .filter(|(_, l)| l.op.graph() == original.graph.id())
        .collect();
    let depths = depths(&original.graph, &layers)?;
    let mut by_depth: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for ((i, _), depth) in layers.iter().zip(depths) {
        by_depth.entry(depth).or_default().push(*i);
    }
    let samples = cx.data.map_or(1, paring_ir::engine::DataSource::len);
    let samples = whole.samples.unwrap_or(samples).min(samples).max(1);
    // Both networks run in every round.
    let round = 2.0 * samples as f64 * total.macs.max(1) as f64;
    let affordable = ((REFIT_MACS / round) as usize).max(LEAST_ROUNDS);
    let each = by_depth.len().div_ceil(affordable).max(1);
    let groups: Vec<Vec<usize>> = by_depth.into_values().collect();
    Ok(groups.chunks(each).map(<[Vec<usize>]>::concat).collect())
}

/// How many of the layers come one after the other before each.
fn depths(graph: &Graph, layers: &[(usize, &Layer)]) -> Result<Vec<usize>, PassError> {
    let chosen: HashMap<_, _> = layers.iter().map(|(_, l)| (l.op, ())).collect();
    let mut depth: HashMap<ValueId, usize> = HashMap::new();
    let mut at = HashMap::new();
    for op in graph.topological_order()? {
        let o = graph.op(op);
        let taken = o.inputs().flatten().chain(o.captures());
        let before = taken
            .filter_map(|v| depth.get(&v))
            .copied()
            .max()
            .unwrap_or(0);
        at.insert(op, before);
        let after = before + usize::from(chosen.contains_key(&op));
        for &v in o.outputs().iter().flatten() {
            depth.insert(v, after);
        }
    }
    Ok(layers
        .iter()
        .map(|(_, l)| at.get(&l.op).copied().unwrap_or(0))
        .collect())
}

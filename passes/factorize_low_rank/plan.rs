//! From calibration data to a rank for every layer.

use paring_ir::analysis::ModelCost;
use paring_ir::{Model, PassContext, PassError};
use rayon::prelude::*;

use super::candidates::{Candidate, Cost};
use super::factors::{Analysis, analyse};
use super::impact::impacts;
use super::rank::{Choice, Item, Limit, by_energy, by_ratio, spend};
use super::{Options, latency};
use crate::moments::{Budget, Job, Moments, collect, moments_bytes, pool};

/// What is kept when nothing else is asked for.
const DEFAULT_RATIO: f64 = 0.5;

/// So many bytes of moments are held at once; layers that need more come one by one.
const MOMENTS_BYTES: usize = 768 << 20;

/// The moments of a layer of more inputs than this are too large.
pub(super) const MOST_INPUTS: usize = 12_288;

/// A layer with its rank.
#[derive(Debug)]
pub(super) struct Planned<'o> {
    pub(super) candidate: Candidate<'o>,
    pub(super) analysis: Analysis,
    pub(super) choice: Choice,
    /// Whether the factors come from calibration data.
    pub(super) whitened: bool,
}

/// Looks at every layer and chooses ranks. A remark says which layers stay as they are.
pub(super) fn plan<'o>(
    model: &Model,
    candidates: &[Candidate<'o>],
    whole: &Options,
    total: &ModelCost,
    cx: &mut PassContext<'_>,
) -> Result<Vec<Planned<'o>>, PassError> {
    let analyses = analyses(model, candidates, whole, cx)?;
    let mut known: Vec<(&Candidate<'o>, Analysis)> = Vec::new();
    for (candidate, analysis) in candidates.iter().zip(analyses) {
        match analysis {
            Ok(analysis) => known.push((candidate, analysis)),
            Err((code, why)) => missed(model, candidate, code, &why, cx),
        }
    }
    let importance = match whole.whiten && shared(&known, whole) {
        true => impacts(model, &known, total.macs, cx)?,
        false => vec![1.0; known.len()],
    };
    let measured = match whole.budget.as_ref().and_then(|b| b.latency) {
        Some(share) => {
            let layers = (known.as_slice(), importance.as_slice());
            Some(latency::as_macs(model, layers, (whole, share), total, cx)?)
        }
        None => None,
    };
    let whole = measured.as_ref().unwrap_or(whole);
    let chosen = choose(&known, &importance, whole, total)?;
    let mut out = Vec::new();
    for ((candidate, analysis), chosen) in known.into_iter().zip(chosen) {
        let Ok(at) = chosen else {
            let Err((code, why)) = chosen else { continue };
            missed(model, candidate, code, &why, cx);
            continue;
        };
        out.push(Planned {
            candidate: candidate.clone(),
            choice: analysis.choices[at],
            analysis,
            whitened: whole.whiten && cx.data.is_some(),
        });
    }
    Ok(out)
}

fn missed(
    model: &Model,
    candidate: &Candidate<'_>,
    code: &str,
    why: &str,
    cx: &mut PassContext<'_>,
) {
    let op = candidate.layer.op;
    model.for_each_graph(&mut |graph| {
        if graph.id() == op.graph() {
            cx.missed(graph, op, code, why);
        }
    });
}

type Why = (&'static str, String);

/// What is known about every candidate, or why nothing is.
fn analyses(
    model: &Model,
    candidates: &[Candidate<'_>],
    whole: &Options,
    cx: &PassContext<'_>,
) -> Result<Vec<Result<Analysis, Why>>, PassError> {
    let with_data = whole.whiten && cx.data.is_some();
    let pool = pool(cx.threads)?;
    let mut out = Vec::new();
    cx.progress().start(
        "factorize-low-rank: looking at layers",
        candidates.len() as u64,
    );
    for chunk in chunks(candidates, false) {
        let moments = match with_data {
            true => watched(model, None, chunk.iter().collect(), whole, cx)?,
            false => vec![None; chunk.len()],
        };
        cx.check_cancelled()?;
        let work = chunk.par_iter().zip(&moments);
        let found: Vec<Result<Analysis, Why>> = pool.install(|| {
            work.map(|(c, moments)| {
                let found = analyse_one(model, c, moments.as_ref(), with_data, cx.seed);
                cx.progress().advance(1);
                found
            })
            .collect()
        });
        out.extend(found);
    }
    cx.progress().finish();
    Ok(out)
}

fn analyse_one(
    model: &Model,
    candidate: &Candidate<'_>,
    moments: Option<&Moments>,
    with_data: bool,
    seed: u64,
) -> Result<Analysis, Why> {
    if with_data && moments.is_none() {
        let why = match candidate.layer.cols > MOST_INPUTS {
            true => format!(
                "moments of {} inputs take too much memory",
                candidate.layer.cols
            ),
            false => "its inputs can't be watched".to_owned(),
        };
        return Err(("no-data", why));
    }
    let mut weight = None;
    model.for_each_graph(&mut |graph| {
        if graph.id() == candidate.layer.weight.graph() {
            weight = graph.tensor(candidate.layer.weight).cloned();
        }
    });
    weight
        .and_then(|w| analyse(candidate, &w, moments, seed))
        .ok_or_else(|| {
            (
                "not-finite",
                "its weights or inputs are not all finite".to_owned(),
            )
        })
}

/// Runs of layers whose moments fit into memory together.
pub(super) fn chunks<'a, 'o>(
    candidates: &'a [Candidate<'o>],
    crossed: bool,
) -> Vec<&'a [Candidate<'o>]> {
    let mut out = Vec::new();
    let (mut start, mut bytes) = (0usize, 0usize);
    for (i, c) in candidates.iter().enumerate() {
        let more = moments_bytes(&c.layer, crossed);
        if i > start && bytes.saturating_add(more) > MOMENTS_BYTES {
            out.push(&candidates[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(more);
    }
    out.push(&candidates[start..]);
    out
}

/// The moments of layers; with a reference those of the same layers there as well. `None` for
/// layers that can't be watched.
pub(super) fn watched(
    model: &Model,
    reference: Option<&Model>,
    candidates: Vec<&Candidate<'_>>,
    whole: &Options,
    cx: &PassContext<'_>,
) -> Result<Vec<Option<Moments>>, PassError> {
    let visible =
        |c: &Candidate<'_>| c.layer.op.graph() == model.graph.id() && c.layer.cols <= MOST_INPUTS;
    let jobs: Vec<Job<'_>> = candidates
        .iter()
        .filter(|c| visible(c))
        .map(|c| Job {
            layer: &c.layer,
            reference: reference.map(|_| &c.layer),
        })
        .collect();
    let budget = Budget {
        samples: whole.samples,
        ..Budget::DEFAULT
    };
    let mut found = match jobs.is_empty() {
        true => Vec::new(),
        false => collect(cx, model, reference, &jobs, budget)?,
    }
    .into_iter();
    let per_candidate = candidates.iter().map(|c| match visible(c) {
        true => found.next().flatten(),
        false => None,
    });
    Ok(per_candidate.collect())
}

/// Whether layers compete for rank.
fn shared(known: &[(&Candidate<'_>, Analysis)], whole: &Options) -> bool {
    let alone = known.iter().filter(|(c, a)| alone(c, a, whole).is_some());
    known.len() > alone.count() + 1
}

/// A choice for each layer, or why there is none.
pub(super) fn choose(
    known: &[(&Candidate<'_>, Analysis)],
    importance: &[f64],
    whole: &Options,
    total: &ModelCost,
) -> Result<Vec<Result<usize, Why>>, PassError> {
    let mut out: Vec<Result<usize, Why>> = Vec::new();
    let mut pool = Vec::new();
    let mut spent = Cost::default();
    for (i, (candidate, analysis)) in known.iter().enumerate() {
        match alone(candidate, analysis, whole) {
            Some(chosen) => {
                let cost = chosen
                    .as_ref()
                    .map_or(candidate.dense, |&at| analysis.choices[at].cost);
                spent.add(&cost);
                out.push(chosen);
            }
            None => {
                pool.push(i);
                out.push(Err(full_rank()));
            }
        }
    }
    let items: Vec<Item<'_>> = pool
        .iter()
        .map(|&i| Item {
            dense: known[i].0.dense,
            choices: &known[i].1.choices,
            importance: importance[i],
        })
        .collect();
    let all: Vec<&Candidate<'_>> = known.iter().map(|k| k.0).collect();
    let limits = limits(&items, &all, &spent, whole, total);
    let (chosen, fits) = spend(&items, &limits);
    if let (false, Some(budget)) = (fits, &whole.budget) {
        return Err(PassError::Precondition {
            found: format!(
                "the budget ({}) can't be met even at the lowest ranks",
                said(budget)
            ),
            remedy: "raise it, or lower round-to or min-elements".to_owned(),
        });
    }
    for (i, chosen) in pool.into_iter().zip(chosen) {
        out[i] = chosen.ok_or_else(full_rank);
    }
    Ok(out)
}

fn said(budget: &super::Budget) -> String {
    let part = |name: &str, share: Option<f64>| share.map(|s| format!("{name} {s}"));
    let parts = [
        part("macs", budget.macs),
        part("size", budget.size),
        part("latency", budget.latency),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn full_rank() -> Why {
    (
        "full-rank",
        "its rank is better left full: other layers lose less for what it costs".to_owned(),
    )
}

/// The choice of a layer that does not share with others, if it is one.
fn alone(
    candidate: &Candidate<'_>,
    analysis: &Analysis,
    whole: &Options,
) -> Option<Result<usize, Why>> {
    let (own, choices) = (candidate.options, &analysis.choices);
    if own.rank.is_some() {
        let best =
            (0..choices.len()).min_by(|&a, &b| choices[a].error.total_cmp(&choices[b].error));
        return Some(best.ok_or_else(full_rank));
    }
    if let Some(ratio) = own.ratio.filter(|_| own.ratio != whole.ratio) {
        return Some(by_ratio(choices, &candidate.dense, ratio).ok_or_else(full_rank));
    }
    if let Some(energy) = own.energy {
        let none = || {
            let why = format!("no rank that saves anything keeps {energy} of the energy");
            ("energy", why)
        };
        return Some(by_energy(choices, energy).ok_or_else(none));
    }
    None
}

/// What the layers that share may cost together.
fn limits(
    items: &[Item<'_>],
    all: &[&Candidate<'_>],
    spent: &Cost,
    whole: &Options,
    total: &ModelCost,
) -> Vec<Limit> {
    let sum = |costs: &mut dyn Iterator<Item = Cost>| {
        let mut sum = Cost::default();
        costs.for_each(|c| sum.add(&c));
        sum
    };
    let Some(budget) = &whole.budget else {
        let dense = sum(&mut items.iter().map(|i| i.dense));
        return vec![Limit {
            metric: |c| c.params,
            most: whole.ratio.unwrap_or(DEFAULT_RATIO) * dense.params,
        }];
    };
    let dense = sum(&mut all.iter().map(|c| c.dense));
    let mut out = Vec::new();
    let mut limit = |metric: fn(&Cost) -> f64, share: Option<f64>, total: f64| {
        if let Some(share) = share {
            let others = (total - metric(&dense)).max(0.0);
            let most = share * total.max(metric(&dense)) - others - metric(spent);
            out.push(Limit { metric, most });
        }
    };
    limit(|c| c.macs, budget.macs, total.macs as f64);
    limit(|c| c.bytes, budget.size, total.weight_bytes as f64);
    out
}

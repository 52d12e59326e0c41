//! How long models take.
//!
//! Two models are timed in turn, A B B A A B ..., so that a machine that gets slower or faster
//! meanwhile does the same to both, and what is reported is the median of the ratios of the
//! pairs with an interval that holds the true median in 95 of 100 cases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use paring_ir::engine::{CompileOptions, Cut, Engine, EngineError, Plan};
use paring_ir::{Model, Tensor};
use serde::Serialize;

/// How to time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeOptions {
    /// Threads of the engine.
    pub threads: usize,
    /// Measure for at least so long.
    pub min_time: Duration,
    /// Measure at least so many pairs, or runs.
    pub min_runs: usize,
}

impl Default for TimeOptions {
    fn default() -> Self {
        TimeOptions {
            threads: 1,
            // Two seconds give some hundred pairs of a small network, ten of a large one.
            min_time: Duration::from_secs(2),
            min_runs: 10,
        }
    }
}

/// The most measurements.
const MAX_RUNS: usize = 2000;
/// A measurement shorter than this repeats the run, so that the clock doesn't matter.
const SHORTEST: Duration = Duration::from_micros(500);
/// The most repeats in one measurement.
const MAX_REPEATS: u32 = 1000;

/// The latency of two models, measured in turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The median of the original, in milliseconds.
    pub before_ms: f64,
    /// The ends of its 95 % interval.
    pub before_interval_ms: (f64, f64),
    /// The median of the rewritten model, in milliseconds.
    pub after_ms: f64,
    /// The ends of its 95 % interval.
    pub after_interval_ms: (f64, f64),
    /// The median of the ratios of the pairs, after over before.
    pub ratio: f64,
    /// The lower end of its 95 % interval.
    pub ratio_low: f64,
    /// The upper end of its 95 % interval.
    pub ratio_high: f64,
    /// Threads.
    pub threads: usize,
    /// Pairs.
    pub runs: usize,
    /// What was timed instead of the rewritten model: the form in which the engine runs it fast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<String>,
}

/// The latency of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bench {
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The lower end of its 95 % interval.
    pub median_low_ms: f64,
    /// The upper end of its 95 % interval.
    pub median_high_ms: f64,
    /// The fastest run.
    pub min_ms: f64,
    /// Threads.
    pub threads: usize,
    /// Measurements.
    pub runs: usize,
}

/// The time of one operator, or of all of one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    /// The operator's name; for a type, its name in the engine.
    pub name: String,
    /// The engine's operator type.
    pub op: String,
    /// How many operators.
    pub count: usize,
    /// Milliseconds of one run.
    pub ms: f64,
    /// The share of the whole run, 0 to 1.
    pub share: f64,
}

/// Where the time of a run goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Milliseconds of one run, measured operator by operator.
    pub total_ms: f64,
    /// By operator type, slowest first.
    pub types: Vec<ProfileRow>,
    /// By operator, slowest first.
    pub nodes: Vec<ProfileRow>,
    /// Threads.
    pub threads: usize,
    /// Runs that were averaged.
    pub runs: usize,
}

fn compile(
    engine: &dyn Engine,
    model: &Model,
    inputs: &[Tensor],
    threads: usize,
) -> Result<Box<dyn Plan>, EngineError> {
    let shapes = inputs.iter().map(|t| t.dims().iter().copied().collect());
    let options = CompileOptions {
        optimize: true,
        threads,
    };
    engine.compile(&Cut::whole(model, shapes.collect()), options)
}

fn timed(plan: &mut dyn Plan, inputs: &[Tensor], repeats: u32) -> Result<Duration, EngineError> {
    let start = Instant::now();
    for _ in 0..repeats {
        plan.run(inputs)?;
    }
    Ok(start.elapsed() / repeats.max(1))
}

/// Runs until caches and clocks have settled; gives the repeats for one measurement.
fn warm_up(plan: &mut dyn Plan, inputs: &[Tensor], budget: Duration) -> Result<u32, EngineError> {
    let start = Instant::now();
    let mut fastest = timed(plan, inputs, 1)?;
    let mut runs = 1;
    while runs < 3 || (start.elapsed() < budget && runs < 1000) {
        fastest = fastest.min(timed(plan, inputs, 1)?);
        runs += 1;
        if runs >= 2 && start.elapsed() > budget * 4 {
            break;
        }
    }
    let wanted = SHORTEST.as_nanos().div_ceil(fastest.as_nanos().max(1));
    Ok(u32::try_from(wanted)
        .unwrap_or(MAX_REPEATS)
        .clamp(1, MAX_REPEATS))
}

fn enough(options: &TimeOptions, runs: usize, elapsed: Duration) -> bool {
    runs >= MAX_RUNS || (runs >= options.min_runs.max(1) && elapsed >= options.min_time)
}

/// The inputs of `after` in its order, taken from those of `before` by name.
pub(crate) fn reorder(
    before: &Model,
    after: &Model,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, EngineError> {
    let name = |m: &Model, v| m.graph.value(v).name().clone();
    let names: Vec<_> = before
        .graph
        .inputs()
        .iter()
        .map(|&v| name(before, v))
        .collect();
    let pick = |&v: &paring_ir::ValueId| {
        let wanted = name(after, v);
        let at = names.iter().position(|n| *n == wanted);
        at.and_then(|i| inputs.get(i).cloned())
            .ok_or_else(|| EngineError::Input {
                input: paring_ir::escape(&wanted),
                reason: "the other model has no input of this name, so the two can't be compared"
                    .to_string(),
            })
    };
    after.graph.inputs().iter().map(pick).collect()
}

/// Times two models on the same inputs, those of `before`, in its order.
pub fn time_pair(
    engine: &dyn Engine,
    before: &Model,
    after: &Model,
    inputs: &[Tensor],
    options: &TimeOptions,
) -> Result<Latency, EngineError> {
    let after_inputs = reorder(before, after, inputs)?;
    let mut a = compile(engine, before, inputs, options.threads)?;
    let mut b = compile(engine, after, &after_inputs, options.threads)?;
    let budget = options.min_time / 10;
    let repeats = warm_up(&mut *a, inputs, budget)?;
    let repeats = repeats.max(warm_up(&mut *b, &after_inputs, budget)?);
    let mut times = [Vec::new(), Vec::new()];
    let start = Instant::now();
    let mut runs = 0;
    while !enough(options, runs, start.elapsed()) {
        let mut pair = [Duration::ZERO; 2];
        let order = if runs % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let time = match which {
                0 => timed(&mut *a, inputs, repeats)?,
                _ => timed(&mut *b, &after_inputs, repeats)?,
            };
            if let Some(place) = pair.get_mut(which) {
                *place = time;
            }
        }
        for (list, time) in times.iter_mut().zip(pair) {
            list.push(time.as_secs_f64() * 1e3);
        }
        runs += 1;
    }
    let [before_ms, after_ms] = times;
    let mut ratios: Vec<f64> = before_ms
        .iter()
        .zip(&after_ms)
        .map(|(a, b)| b / a.max(1e-9))
        .collect();
    let (ratio_low, ratio, ratio_high) = median_interval(&mut ratios);
    let [before, after] = [before_ms, after_ms].map(|mut times| median_interval(&mut times));
    Ok(Latency {
        before_ms: before.1,
        before_interval_ms: (before.0, before.2),
        after_ms: after.1,
        after_interval_ms: (after.0, after.2),
        ratio,
        ratio_low,
        ratio_high,
        threads: options.threads,
        runs,
        form: None,
    })
}

/// Times one model.
pub fn bench(
    engine: &dyn Engine,
    model: &Model,
    inputs: &[Tensor],
    options: &TimeOptions,
) -> Result<Bench, EngineError> {
    let mut plan = compile(engine, model, inputs, options.threads)?;
    let repeats = warm_up(&mut *plan, inputs, options.min_time / 10)?;
    let mut times = Vec::new();
    let start = Instant::now();
    while !enough(options, times.len(), start.elapsed()) {
        times.push(timed(&mut *plan, inputs, repeats)?.as_secs_f64() * 1e3);
    }
    let (median_low_ms, median_ms, median_high_ms) = median_interval(&mut times);
    Ok(Bench {
        median_ms,
        median_low_ms,
        median_high_ms,
        // Sorted by now.
        min_ms: times.first().copied().unwrap_or(0.0),
        threads: options.threads,
        runs: times.len(),
    })
}

/// Measures each operator of a model.
pub fn profile(
    engine: &dyn Engine,
    model: &Model,
    inputs: &[Tensor],
    options: &TimeOptions,
) -> Result<Profile, EngineError> {
    let mut plan = compile(engine, model, inputs, options.threads)?;
    warm_up(&mut *plan, inputs, options.min_time / 10)?;
    let mut nodes: BTreeMap<usize, ProfileRow> = BTreeMap::new();
    let start = Instant::now();
    let mut runs = 0;
    while !enough(options, runs, start.elapsed()) {
        for (i, time) in plan.profile(inputs)?.into_iter().enumerate() {
            let row = nodes.entry(i).or_insert_with(|| ProfileRow {
                name: time.name,
                op: time.op,
                count: 1,
                ms: 0.0,
                share: 0.0,
            });
            row.ms += time.time.as_secs_f64() * 1e3;
        }
        runs += 1;
    }
    let mut nodes: Vec<ProfileRow> = nodes.into_values().collect();
    let mut types: BTreeMap<String, ProfileRow> = BTreeMap::new();
    for row in &mut nodes {
        row.ms /= runs.max(1) as f64;
        let all = types.entry(row.op.clone()).or_insert_with(|| ProfileRow {
            name: row.op.clone(),
            op: row.op.clone(),
            count: 0,
            ms: 0.0,
            share: 0.0,
        });
        all.count += 1;
        all.ms += row.ms;
    }
    let total_ms: f64 = nodes.iter().map(|r| r.ms).sum();
    let mut types: Vec<ProfileRow> = types.into_values().collect();
    for rows in [&mut nodes, &mut types] {
        rows.iter_mut()
            .for_each(|r| r.share = r.ms / total_ms.max(f64::MIN_POSITIVE));
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms).then_with(|| a.name.cmp(&b.name)));
    }
    Ok(Profile {
        total_ms,
        types,
        nodes,
        threads: options.threads,
        runs,
    })
}

/// The median with the ends of its 95 % interval, from the order of the values alone. Sorts them.
fn median_interval(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let Some(last) = n.checked_sub(1) else {
        return (f64::NAN, f64::NAN, f64::NAN);
    };
    let median = (at(last / 2) + at(n / 2)) / 2.0;
    // The number of values below the median is binomial; its normal approximation is good from
    // ten values on, and with fewer the interval is all of them.
    let half = 0.98 * (n as f64).sqrt();
    let low = ((n as f64 / 2.0 - half).floor().max(0.0) as usize).min(last);
    (at(low), median, at(last - low))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    #[test]
    fn the_interval_surrounds_the_median_and_narrows() {
        let mut few: Vec<f64> = (0..10).map(f64::from).collect();
        assert_eq!(median_interval(&mut few), (1.0, 4.5, 8.0));
        let mut many: Vec<f64> = (0..1001).rev().map(f64::from).collect();
        let (low, median, high) = median_interval(&mut many);
        assert_eq!(median, 500.0);
        assert!((460.0..480.0).contains(&low) && (520.0..540.0).contains(&high));
        assert!(median_interval(&mut []).1.is_nan());
        assert_eq!(median_interval(&mut [2.0]), (2.0, 2.0, 2.0));
    }
}

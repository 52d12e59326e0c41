//! Mixed precision by measurement: how much each layer hurts, and which to keep float.

use std::collections::BTreeSet;

use paring_ir::engine::{CompileOptions, Cut, DataSource, Engine, EngineError, Plan, Sample};
use paring_ir::observe::Mask;
use paring_ir::{Model, OpId, PassContext, PassError, Tensor};

/// Samples that layers are measured on one by one.
const SAMPLES: usize = 32;
/// Outputs of the float model are kept up to so many bytes.
const KEPT_BYTES: usize = 64 << 20;

/// How far a model is from the float model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Score {
    /// Signal to noise of the worst output, in dB.
    pub(crate) sqnr_db: f64,
    /// The same with a standard error more noise, as samples differ.
    pub(crate) least_db: f64,
    /// Points of top-1 accuracy lost, where there are labels.
    pub(crate) drop: Option<f64>,
}

/// SQNR without any error.
const NO_ERROR_DB: f64 = 300.0;

/// Compares models with the float model on samples of the calibration data.
pub(crate) struct Meter<'a> {
    engine: &'a dyn Engine,
    runs: Vec<(Sample, Vec<Tensor>)>,
    threads: usize,
}

impl<'a> Meter<'a> {
    /// Runs the float model and keeps its outputs.
    pub(crate) fn new(
        cx: &PassContext<'a>,
        model: &Model,
        data: Option<&dyn DataSource>,
        samples: Option<usize>,
    ) -> Result<Meter<'a>, PassError> {
        let (Some(engine), Some(data)) = (cx.engine, data) else {
            return Err(PassError::Precondition {
                found: "there is no data to measure layers on".to_owned(),
                remedy: "give samples with --data FILE.npz".to_owned(),
            });
        };
        let mut meter = Meter {
            engine,
            runs: Vec::new(),
            threads: cx.threads,
        };
        let (mut plan, mut bytes) = (None, 0usize);
        let limit = Some(samples.unwrap_or(SAMPLES));
        let run = data.for_each(limit, &mut |sample| {
            cx.check_cancelled().map_err(|_| EngineError::Cancelled)?;
            if bytes > KEPT_BYTES {
                return Ok(());
            }
            let outputs = run(engine, model, &mut plan, sample, meter.threads)?;
            let all = outputs.iter().chain(&sample.inputs);
            bytes += all.map(Tensor::byte_len).sum::<usize>();
            meter.runs.push((sample.clone(), outputs));
            Ok(())
        });
        match run {
            Err(EngineError::Cancelled) => Err(PassError::Cancelled),
            Err(e) => Err(e.into()),
            Ok(()) => Ok(meter),
        }
    }

    /// How far a model is from the float model.
    pub(crate) fn score(&self, cx: &PassContext<'_>, model: &Model) -> Result<Score, PassError> {
        let mut plan = None;
        let outputs = self.runs.first().map_or(0, |r| r.1.len());
        let mut powers: Vec<Vec<Power>> = vec![Vec::new(); outputs];
        let (mut right, mut were, mut labelled) = (0u64, 0u64, 0u64);
        for (sample, reference) in &self.runs {
            cx.check_cancelled()?;
            let found = run(self.engine, model, &mut plan, sample, self.threads)?;
            let mask = Mask::of(&model.graph, sample);
            for (i, (a, b)) in reference.iter().zip(&found).enumerate() {
                let dims = a.dims();
                if let (true, Some(a), Some(b)) = (a.dtype().is_float(), a.to_f64s(), b.to_f64s()) {
                    let counted = |all| Mask::counted(mask.as_ref(), dims, all);
                    let (a, b) = (counted(&a), counted(&b));
                    let pairs = || a.iter().zip(b.iter());
                    let signal = a.iter().map(|x| x * x).sum::<f64>();
                    let noise = pairs().map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
                    powers[i].push(Power { signal, noise });
                }
            }
            if let (Some(labels), Some(a), Some(b)) =
                (&sample.labels, reference.first(), found.first())
            {
                were += hits(a, labels);
                right += hits(b, labels);
                labelled += labels.len() as u64;
            }
        }
        let worst = |of: fn(&[Power]) -> f64| {
            let all = powers.iter().map(|p| of(p));
            all.fold(NO_ERROR_DB, f64::min)
        };
        Ok(Score {
            sqnr_db: worst(|p| decibels(noise_share(p))),
            least_db: worst(|p| decibels(noise_share(p) + standard_error(p))),
            drop: (labelled > 0).then(|| 100.0 * (were as f64 - right as f64) / labelled as f64),
        })
    }
}

/// The sums of squares of an output in one run, and of its error.
#[derive(Clone, Copy, Debug)]
struct Power {
    signal: f64,
    noise: f64,
}

/// The noise over the signal, over all runs.
fn noise_share(runs: &[Power]) -> f64 {
    let sum = |of: fn(&Power) -> f64| runs.iter().map(of).sum::<f64>();
    let (signal, noise) = (sum(|p| p.signal), sum(|p| p.noise));
    if noise == 0.0 { 0.0 } else { noise / signal }
}

/// The standard error of that share, a ratio of two sums over runs that are drawn by chance.
fn standard_error(runs: &[Power]) -> f64 {
    let n = runs.len() as f64;
    let signal: f64 = runs.iter().map(|p| p.signal).sum();
    if n < 2.0 || signal == 0.0 {
        return 0.0;
    }
    let share = noise_share(runs);
    let off = |p: &Power| (p.noise - share * p.signal).powi(2);
    (n / (n - 1.0) * runs.iter().map(off).sum::<f64>()).sqrt() / signal
}

/// A share of noise as SQNR in dB.
fn decibels(share: f64) -> f64 {
    match share {
        _ if share.is_nan() => -NO_ERROR_DB,
        0.0 => NO_ERROR_DB,
        _ => -10.0 * share.log10(),
    }
}

/// Samples whose largest output is the labelled one.
fn hits(output: &Tensor, labels: &[i64]) -> u64 {
    let Some(all) = output.to_f64s() else {
        return 0;
    };
    let classes = output.dims().last().copied().unwrap_or(1).max(1);
    let rows = all.chunks(classes).zip(labels);
    let right = |(row, label): &(&[f64], &i64)| {
        let best = row
            .iter()
            .enumerate()
            .fold((0, f64::NEG_INFINITY), |best, (i, &x)| {
                if x > best.1 { (i, x) } else { best }
            });
        best.0 as i64 == **label
    };
    rows.filter(right).count() as u64
}

type Compiled = Option<(Vec<paring_ir::Dims>, Box<dyn Plan>)>;

fn run(
    engine: &dyn Engine,
    model: &Model,
    plan: &mut Compiled,
    sample: &Sample,
    threads: usize,
) -> Result<Vec<Tensor>, EngineError> {
    let dims = |t: &Tensor| t.dims().iter().copied().collect();
    let shapes: Vec<paring_ir::Dims> = sample.inputs.iter().map(dims).collect();
    if plan.as_ref().is_none_or(|(s, _)| *s != shapes) {
        let options = CompileOptions {
            threads,
            ..CompileOptions::default()
        };
        let made = engine.compile(&Cut::whole(model, shapes.clone()), options)?;
        *plan = Some((shapes, made));
    }
    match plan {
        Some((_, plan)) => plan.run(&sample.inputs),
        None => Ok(Vec::new()),
    }
}

/// What one layer does to the outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sensitivity {
    pub(crate) op: OpId,
    /// The SQNR with this layer quantized and no other.
    pub(crate) only_db: f64,
    /// The SQNR with all layers quantized but this one.
    pub(crate) without_db: f64,
}

/// Limits on the outputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) min_sqnr_db: Option<f64>,
    pub(crate) max_drop: Option<f64>,
}

impl Limits {
    fn hold(&self, s: &Score) -> bool {
        let sqnr = self.min_sqnr_db.is_none_or(|l| s.least_db >= l);
        let drop = self.max_drop.is_none_or(|l| s.drop.is_some_and(|d| d <= l));
        sqnr && drop
    }
}

/// How layers are quantized, for the search.
pub(crate) trait Builder {
    /// A model in which all layers are quantized but these.
    fn without(&self, float: &BTreeSet<OpId>) -> Result<Model, PassError>;
}

/// Measures every layer, those that hurt most first.
pub(crate) fn rank(
    cx: &PassContext<'_>,
    meter: &Meter<'_>,
    builder: &dyn Builder,
    layers: &[OpId],
) -> Result<Vec<Sensitivity>, PassError> {
    let all: BTreeSet<OpId> = layers.iter().copied().collect();
    let mut out = Vec::new();
    cx.progress().start("measuring layers", layers.len() as u64);
    for &op in layers {
        let without = builder.without(&BTreeSet::from([op]))?;
        let without_db = meter.score(cx, &without)?.sqnr_db;
        let mut others = all.clone();
        others.remove(&op);
        let only_db = meter.score(cx, &builder.without(&others)?)?.sqnr_db;
        out.push(Sensitivity {
            op,
            only_db,
            without_db,
        });
        cx.progress().advance(1);
    }
    cx.progress().finish();
    // Both say how much error goes with the layer; the sum of the two is less at the mercy of
    // few samples.
    let hurt = |s: &Sensitivity| s.without_db - s.only_db;
    out.sort_by(|a, b| hurt(b).total_cmp(&hurt(a)).then(a.op.cmp(&b.op)));
    Ok(out)
}

/// The fewest layers, from the front of the ranking, that must stay float for the limits to
/// hold, and the score then; `None` when they don't hold with all of them float.
pub(crate) fn keep_float(
    cx: &PassContext<'_>,
    meter: &Meter<'_>,
    builder: &dyn Builder,
    ranking: &[Sensitivity],
    limits: &Limits,
) -> Result<Option<(BTreeSet<OpId>, Score)>, PassError> {
    let first = |n: usize| {
        ranking
            .iter()
            .take(n)
            .map(|s| s.op)
            .collect::<BTreeSet<OpId>>()
    };
    let score = |n: usize| meter.score(cx, &builder.without(&first(n))?);
    let (mut low, mut high) = (0, ranking.len());
    let mut best = None;
    while low < high {
        let middle = (low + high) / 2;
        let found = score(middle)?;
        if limits.hold(&found) {
            best = Some((middle, found));
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    match best {
        Some((n, found)) if n == low => Ok(Some((first(n), found))),
        // With every layer float nothing is quantized, which keeps any limit.
        _ => Ok(None),
    }
}

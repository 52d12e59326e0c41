//! Pruning with calibration data: layers in the order of the data, each seeing what the layers
//! before it have become, and aiming at the outputs that it had in the original network.
//!
//! The layers are cut into stages. Before a stage the data streams through the network as it is
//! by then and through the original side by side, and only the second moments that the layers
//! of the stage need are kept, so memory is bounded by the layers and not by the samples.

use faer::Mat;
use paring_ir::{Changed, DType, Model, PassContext, PassError, Tensor};

use super::magnitude;
use super::options::{Criterion, Options, Recover};
use super::pattern::{Mask, Pattern, mask, mask_by_row};
use super::problem::{self, Data, Problem};
use super::second_order::{self, System};
use super::spread::Curve;
use super::targets::Target;
use crate::layers::{Layer, add_to_bias};
use crate::moments::{Budget, Job, Moments, Split, collect_split, moments_bytes, pool};

/// The most stages: each runs the data through both networks.
const STAGES: usize = 16;
/// Moments of so many bytes are held at a time, or those of one layer.
const HELD: usize = 384 << 20;
/// Layers whose own moments take more are pruned without data.
const LARGEST: usize = 2 << 30;
/// Whether a layer can be pruned by what the data says of its inputs.
pub(super) fn has_moments(model: &Model, target: &Target) -> bool {
    target.layer.weight.graph() == model.graph.id()
        && 2 * moments_bytes(&target.layer, true) <= LARGEST
        && uses(target).all(|l| l.source.is_some() && l.blocks == target.layer.blocks)
}

fn uses(target: &Target) -> impl Iterator<Item = &Layer> {
    std::iter::once(&target.layer).chain(&target.others)
}

/// Cuts layers into runs of at most `longest` whose moments fit.
fn stages(targets: &[Target], chosen: &[usize], longest: usize) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut held = 0usize;
    for &i in chosen {
        // Twice, as some of the data is held out.
        let bytes: usize = uses(&targets[i]).map(|l| 2 * moments_bytes(l, true)).sum();
        let full = out
            .last()
            .is_none_or(|s| s.len() >= longest || held + bytes > HELD);
        if full {
            out.push(Vec::new());
            held = 0;
        }
        held += bytes;
        if let Some(stage) = out.last_mut() {
            stage.push(i);
        }
    }
    out
}

/// By target of `chosen`: the moments of every operator that takes the weight, or nothing where
/// one of them could not be had.
fn moments_of(
    cx: &PassContext<'_>,
    model: &Model,
    reference: Option<&Model>,
    targets: &[&Target],
    samples: usize,
) -> Result<Vec<Option<Vec<Split>>>, PassError> {
    let job = |layer| Job {
        layer,
        reference: reference.map(|_| layer),
    };
    let jobs: Vec<Job<'_>> = targets.iter().flat_map(|t| uses(t).map(job)).collect();
    let budget = Budget {
        samples: Some(samples),
        ..Budget::DEFAULT
    };
    let mut found = collect_split(cx, model, reference, &jobs, budget)?.into_iter();
    let own = |t: &&Target| -> Option<Vec<Split>> {
        let all: Vec<Option<Split>> = found.by_ref().take(1 + t.others.len()).collect();
        all.into_iter().collect()
    };
    Ok(targets.iter().map(own).collect())
}

/// By target: the error of its outputs at several shares of zeros, predicted layer by layer in
/// the original network.
pub(super) fn curves(
    model: &Model,
    targets: &[Target],
    chosen: &[usize],
    options: &Options,
    cx: &PassContext<'_>,
) -> Result<Vec<Option<Curve>>, PassError> {
    let mut out: Vec<Option<Curve>> = vec![None; targets.len()];
    let pool = pool(cx.threads)?;
    let progress = cx.progress();
    progress.start("errors of layers", chosen.len() as u64);
    for stage in stages(targets, chosen, usize::MAX) {
        let members: Vec<&Target> = stage.iter().map(|&i| &targets[i]).collect();
        let moments = moments_of(cx, model, None, &members, options.samples)?;
        for (&i, moments) in stage.iter().zip(&moments) {
            cx.check_cancelled()?;
            progress.advance(1);
            let t = &targets[i];
            let Some(moments) = moments else { continue };
            let original = t.layer.matrices(&t.tensor)?;
            out[i] = pool.install(|| problem::curve(model, t, &original, moments, cx))?;
        }
    }
    progress.finish();
    Ok(out)
}

/// How layers are pruned, all defaults settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) criterion: Criterion,
    pub(super) recover: Recover,
    pub(super) samples: usize,
}

/// The state of pruning over several steps.
pub(super) struct Calibrated<'a> {
    pub(super) reference: &'a Model,
    pub(super) targets: &'a [Target],
    pub(super) way: Way,
    /// By target: what was added to its bias so far.
    shifts: Vec<Vec<f64>>,
}

impl<'a> Calibrated<'a> {
    pub(super) fn new(reference: &'a Model, targets: &'a [Target], way: Way) -> Calibrated<'a> {
        Calibrated {
            reference,
            targets,
            way,
            shifts: vec![Vec::new(); targets.len()],
        }
    }

    /// Prunes the chosen layers to their counts. Layers whose inputs can't be had are in the
    /// second result.
    pub(super) fn step(
        &mut self,
        model: &mut Model,
        chosen: &[usize],
        counts: &[usize],
        cx: &mut PassContext<'_>,
    ) -> Result<(Changed, Vec<usize>), PassError> {
        let mut changed = Changed::No;
        let mut left = Vec::new();
        let progress = cx.progress();
        progress.start("pruning layers", chosen.len() as u64);
        let longest = chosen.len().div_ceil(STAGES).max(1);
        for stage in stages(self.targets, chosen, longest) {
            let members: Vec<&Target> = stage.iter().map(|&i| &self.targets[i]).collect();
            let moments = match self.way.recover {
                Recover::None => moments_of(cx, self.reference, None, &members, self.way.samples)?,
                _ => moments_of(cx, model, Some(self.reference), &members, self.way.samples)?,
            };
            for (&i, moments) in stage.iter().zip(moments) {
                cx.check_cancelled()?;
                progress.advance(1);
                match moments {
                    Some(moments) => changed |= self.layer(model, i, counts[i], &moments, cx)?,
                    None => left.push(i),
                }
            }
        }
        progress.finish();
        Ok((changed, left))
    }

    fn layer(
        &mut self,
        model: &mut Model,
        i: usize,
        count: usize,
        split: &[Split],
        cx: &mut PassContext<'_>,
    ) -> Result<Changed, PassError> {
        let target = &self.targets[i];
        let layer = &target.layer;
        let Some(present) = model.graph.tensor(layer.weight).cloned() else {
            return Ok(Changed::No);
        };
        let original = layer.matrices(&target.tensor)?;
        let with_bias = self.way.recover != Recover::None;
        let data = Data::new(split);
        let pool = pool(cx.threads)?;
        let wanted = (count, with_bias);
        let problem = pool.install(|| Problem::new(model, target, &original, &data, wanted));
        let Some(problem) = problem else {
            let why = "the second moments of its inputs are no numbers to work with";
            cx.missed(&model.graph, layer.op, "bad-moments", why);
            return magnitude::prune(&mut model.graph, target, count, cx);
        };
        let made = pool.install(|| self.solve(target, &problem, &present, count, cx))?;
        let Some(Made {
            mask,
            weights,
            error,
        }) = made
        else {
            let why = "no weights could be found that make up for the zeros";
            cx.missed(&model.graph, layer.op, "no-solution", why);
            return magnitude::prune(&mut model.graph, target, count, cx);
        };
        let after = match weights {
            Some(weights) => self.write(model, target, (present, &mask), &weights, error, cx)?,
            None => {
                magnitude::apply_mask(&mut model.graph, target, &mask, cx)?;
                let tensor = model.graph.tensor(layer.weight);
                tensor
                    .map(|t| layer.matrices(t))
                    .transpose()?
                    .unwrap_or_default()
            }
        };
        if problem.bias {
            self.move_bias(model, i, &original, &after, &data.all, cx)?;
        }
        Ok(Changed::Yes)
    }

    /// The zeros of a layer and the weights that stay.
    fn solve(
        &self,
        target: &Target,
        problem: &Problem,
        present: &Tensor,
        count: usize,
        cx: &PassContext<'_>,
    ) -> Result<Option<Made>, PassError> {
        let (grid, pattern) = (&target.grid, target.pattern);
        let systems = &problem.systems;
        let zeros = count;
        let chosen = match self.way.criterion {
            Criterion::SecondOrder => {
                let best = best_zeros(systems, target, zeros, cx)?;
                return Ok(best.map(|(mask, weights, error)| Made {
                    mask,
                    weights: Some(weights),
                    error,
                }));
            }
            Criterion::Wanda => {
                let scores = scores(target, present, Some(&problem.squares))?;
                mask_by_row(pattern, grid, &scores, zeros)
            }
            _ => mask(pattern, grid, &scores(target, present, None)?, zeros),
        };
        if self.way.recover != Recover::LeastSquares {
            return Ok(Some(Made {
                mask: chosen,
                weights: None,
                error: 0.0,
            }));
        }
        let fitted = second_order::fit(systems, grid, &chosen);
        Ok(fitted.map(|(weights, error)| Made {
            mask: chosen,
            weights: Some(weights),
            error,
        }))
    }

    /// Writes new weights; gives them back as they were rounded, `rows` x `cols` by block.
    fn write(
        &self,
        model: &mut Model,
        target: &Target,
        (present, mask): (Tensor, &Mask),
        weights: &[Mat<f64>],
        error: f64,
        cx: &mut PassContext<'_>,
    ) -> Result<Vec<Mat<f64>>, PassError> {
        let layer = &target.layer;
        let rows: Vec<Mat<f64>> = weights.iter().map(|w| w.transpose().to_owned()).collect();
        let tensor = match layer.tensor(present.dtype(), &rows) {
            Ok(tensor) => tensor,
            Err(refusal) => {
                cx.missed(&model.graph, layer.op, refusal.code, refusal.message);
                magnitude::apply_mask(&mut model.graph, target, mask, cx)?;
                let left = model.graph.tensor(layer.weight);
                return Ok(left
                    .map(|t| layer.matrices(t))
                    .transpose()?
                    .unwrap_or_default());
            }
        };
        let zeros = tensor.count_zeros();
        let said = format!(
            "sparsity {:.4} ({zeros} of {} elements), the others refitted, {:.3} % of the \
             outputs' variance lost",
            zeros as f64 / tensor.len().max(1) as f64,
            tensor.len(),
            100.0 * error,
        );
        cx.applied(&model.graph, layer.op, "pruned", said);
        let after = layer.matrices(&tensor)?;
        model.graph.set_tensor(layer.weight, tensor, Vec::new())?;
        Ok(after)
    }

    /// Moves the bias so that the mean of each output is that of the original network.
    fn move_bias(
        &mut self,
        model: &mut Model,
        i: usize,
        original: &[Mat<f64>],
        after: &[Mat<f64>],
        moments: &[Moments],
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let layer = &self.targets[i].layer;
        let Some(moments) = moments.first() else {
            return Ok(());
        };
        let op = model.graph.op(layer.op);
        let alpha = match op.is("Gemm") {
            true => f64::from(op.float("alpha").unwrap_or(1.0)),
            false => 1.0,
        };
        let mut wanted = Vec::with_capacity(layer.blocks * layer.rows);
        for (block, (old, new)) in original.iter().zip(after).enumerate() {
            let own = moments.mean.get(block).map_or(&[][..], |m| m);
            let reference = moments.reference.as_ref();
            let theirs = reference.and_then(|r| r.mean.get(block)).map_or(own, |m| m);
            for row in 0..layer.rows {
                let dot = |m: &Mat<f64>, x: &[f64]| -> f64 {
                    x.iter().enumerate().map(|(c, x)| m[(row, c)] * x).sum()
                };
                wanted.push(alpha * (dot(old, theirs) - dot(new, own)));
            }
        }
        let before = &mut self.shifts[i];
        before.resize(wanted.len(), 0.0);
        let delta: Vec<f64> = wanted.iter().zip(&*before).map(|(w, b)| w - b).collect();
        if add_to_bias(&mut model.graph, layer, &delta, false)? {
            *before = wanted;
        } else {
            let why = "its bias could not take up the means of its outputs";
            cx.missed(&model.graph, layer.op, "bias", why);
        }
        Ok(())
    }
}

struct Made {
    mask: Mask,
    /// New weights, `cols` x `rows` by block; absent where those that stay are kept.
    weights: Option<Vec<Mat<f64>>>,
    error: f64,
}

/// What is zero, the weights by block, and the error that they make.
type Best = (Mask, Vec<Mat<f64>>, f64);

/// The zeros and weights of the least error, by the methods that can be afforded.
fn best_zeros(
    systems: &[System],
    target: &Target,
    zeros: usize,
    cx: &PassContext<'_>,
) -> Result<Option<Best>, PassError> {
    let (grid, pattern) = (&target.grid, target.pattern);
    let fitted = |mask: Mask| {
        let (weights, error) = second_order::fit(systems, grid, &mask)?;
        error.is_finite().then_some((mask, weights, error))
    };
    let first = second_order::choose(systems, grid, pattern, zeros, cx)?.and_then(fitted);
    cx.check_cancelled()?;
    let second = match pattern {
        Pattern::Unstructured if second_order::surgeon_is_cheap(grid) => {
            second_order::surgeon(systems, grid, zeros).and_then(fitted)
        }
        _ => None,
    };
    Ok(match (first, second) {
        (Some(a), Some(b)) => Some(if b.2 < a.2 { b } else { a }),
        (a, b) => a.or(b),
    })
}

/// Squares of weights in the order of the grid, times the second moments of their inputs.
fn scores(
    target: &Target,
    tensor: &Tensor,
    squares: Option<&[Vec<f64>]>,
) -> Result<Vec<f32>, PassError> {
    let mut out = Vec::with_capacity(target.grid.len());
    for (block, weights) in target.layer.matrices(tensor)?.iter().enumerate() {
        let squares = squares.and_then(|s| s.get(block));
        for row in 0..weights.nrows() {
            for col in 0..weights.ncols() {
                let input = squares.and_then(|s| s.get(col)).copied().unwrap_or(1.0);
                out.push((weights[(row, col)].powi(2) * input) as f32);
            }
        }
    }
    Ok(out)
}

/// Element types that a refit can be rounded to.
pub(super) fn can_refit(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

//! The factors of a weight, from its moments.
//!
//! Both forms are one problem. The weight of a block, `rows` x `inputs * others`, is laid out
//! as `rows * others` x `inputs`, where `others` counts the places of the kernel that the second
//! factor covers (1 for [`Form::Channel`]), and approximated there by a product of rank `r`: the
//! first factor is `r` x `inputs`, the second `rows` x `r * others`.
//!
//! With second moments `G` of the inputs, the error that counts is that of the outputs, the
//! trace of `(W - UV) G (W - UV)^T`. Its minimum for [`Form::Channel`] keeps the directions of
//! the outputs that carry most energy: with `E` the leading eigenvectors of `W G W^T`, `U = E`
//! and `V = E^T W` (the SVD whitened by a root of `G`, without the root; Wang et al.,
//! "SVD-LLM", 2024). For [`Form::Spatial`] (Jaderberg et al., "Speeding up convolutional neural
//! networks with low rank expansions", 2014) the same gives the first factor, and least squares
//! the second. Of what stands between the factors, the strength is shared by both (see `balance`). Against a reference network whose inputs were other ones, `W` is replaced by the
//! weights that predict the reference's outputs best (Zhang et al., "Accelerating very deep
//! convolutional networks for classification and detection", 2015).

use faer::{Mat, MatRef, Side};
use paring_ir::{DType, Tensor};

use super::candidates::{Candidate, Form, Shape};
use super::rank::{Choice, choices};
use super::svd::{Leading, leading, leading_left};
use crate::layers::Layer;
use crate::moments::Moments;
use crate::solve::{DAMPING, Refit, damped, ridge_solve};

/// The sizes of a block in one form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) others: usize,
}

impl Split {
    pub(super) fn of(layer: &Layer, form: Form) -> Split {
        let kernel = layer
            .dims
            .get(layer.layout.kernel_axes.clone())
            .unwrap_or_default();
        let others = match form {
            Form::Channel => 1,
            Form::Spatial => kernel.iter().skip(1).product::<usize>().max(1),
        };
        Split {
            rows: layer.rows,
            inputs: layer.cols / others,
            others,
        }
    }

    /// The weight as `rows * others` x `inputs`.
    fn laid_out(&self, w: MatRef<'_, f64>) -> Mat<f64> {
        let n = self.others;
        Mat::from_fn(self.rows * n, self.inputs, |at, input| {
            w[(at / n, input * n + at % n)]
        })
    }

    /// The moments of the inputs at one place of the kernel, summed over the places.
    fn folded(&self, gram: MatRef<'_, f64>) -> Mat<f64> {
        let n = self.others;
        Mat::from_fn(self.inputs, self.inputs, |a, b| {
            (0..n).map(|j| gram[(a * n + j, b * n + j)]).sum()
        })
    }

    /// What the first factor makes of a window: `rank * others` x `inputs * others`.
    fn features(&self, first: MatRef<'_, f64>) -> Mat<f64> {
        let n = self.others;
        let cols = self.inputs * n;
        let mut out = Mat::zeros(first.nrows() * n, cols);
        for r in 0..first.nrows() {
            for input in 0..self.inputs {
                for j in 0..n {
                    out[(r * n + j, input * n + j)] = first[(r, input)];
                }
            }
        }
        out
    }

    /// The weight that two factors stand for.
    fn composed(&self, first: MatRef<'_, f64>, second: MatRef<'_, f64>) -> Mat<f64> {
        if self.others == 1 {
            return second * first;
        }
        second * self.features(first)
    }
}

/// The factors of a layer, by block.
#[derive(Clone, Debug, Default)]
pub(super) struct Factors {
    /// `rank` x `inputs`.
    pub(super) first: Vec<Mat<f64>>,
    /// `rows` x `rank * others`.
    pub(super) second: Vec<Mat<f64>>,
    /// What to add to the layer's bias, by block and row.
    pub(super) bias: Vec<f64>,
}

/// The directions of a layer's outputs in one form.
#[derive(Clone, Debug)]
struct Basis {
    form: Form,
    blocks: Vec<Leading>,
}

/// What is known about a layer before its rank is chosen.
#[derive(Clone, Debug)]
pub(super) struct Analysis {
    bases: Vec<Basis>,
    pub(super) choices: Vec<Choice>,
    weights: Vec<Mat<f64>>,
    /// By block, where a bias takes them up.
    means: Option<Vec<Vec<f64>>>,
}

/// Finds what every rank would lose. `None` where the numbers don't allow it. Without moments
/// all inputs count alike.
pub(super) fn analyse(
    candidate: &Candidate<'_>,
    weight: &Tensor,
    moments: Option<&Moments>,
    seed: u64,
) -> Option<Analysis> {
    let layer = &candidate.layer;
    let weights = layer.matrices(weight).ok()?;
    let mut bases = Vec::new();
    let mut errors: Vec<(Form, Vec<f64>)> = Vec::new();
    for shape in &candidate.shapes {
        let ranks = candidate.ranks(shape);
        let most = ranks.last().copied().unwrap_or(0);
        let (basis, lost) = basis(candidate, shape, most, &weights, moments, seed)?;
        bases.push(basis);
        errors.push((shape.form, lost));
    }
    let error = |form: Form, rank: usize| -> Option<f64> {
        let (_, lost) = errors.iter().find(|(f, _)| *f == form)?;
        lost.get(rank).copied()
    };
    let choices = choices(candidate, &error);
    let centered = moments.filter(|_| candidate.centered);
    Some(Analysis {
        bases,
        choices,
        means: centered.map(|m| m.mean.clone()),
        weights,
    })
}

/// The directions of one form, and by rank the part of the energy that is lost.
fn basis(
    candidate: &Candidate<'_>,
    shape: &Shape,
    most: usize,
    weights: &[Mat<f64>],
    moments: Option<&Moments>,
    seed: u64,
) -> Option<(Basis, Vec<f64>)> {
    let split = Split::of(&candidate.layer, shape.form);
    let mut lost = vec![0.0; most + 1];
    let mut total = 0.0;
    let mut blocks = Vec::new();
    for (b, w) in weights.iter().enumerate() {
        let gram = match moments {
            Some(m) => Some(central(m, b, candidate.centered, DAMPING)?),
            None => None,
        };
        let found = directions(&split, w.as_ref(), gram.as_ref(), most, seed)?;
        let (energy, by_rank) = match gram.filter(|_| split.others > 1) {
            Some(gram) => least_squares_curve(&split, w, &gram, &found, most)?,
            None => (found.total, (0..=most).map(|r| found.tail(r)).collect()),
        };
        total += energy;
        for (sum, one) in lost.iter_mut().zip(by_rank) {
            *sum += one;
        }
        blocks.push(found);
    }
    if !total.is_finite() {
        return None;
    }
    let scale = if total > 0.0 { 1.0 / total } else { 0.0 };
    let lost = lost
        .into_iter()
        .map(|l| (l * scale).clamp(0.0, 1.0))
        .collect();
    let form = shape.form;
    Some((Basis { form, blocks }, lost))
}

/// Second moments, about the mean where a bias takes that up, with a little added to the diagonal.
fn central(moments: &Moments, block: usize, centered: bool, damping: f64) -> Option<Mat<f64>> {
    let (gram, mean) = (moments.gram.get(block)?, moments.mean.get(block)?);
    let off = |i: usize, j: usize| if centered { mean[i] * mean[j] } else { 0.0 };
    let central = Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| gram[(i, j)] - off(i, j));
    Some(damped(central.as_ref(), damping))
}

/// The leading directions of a weight as it is laid out, by the energy of the outputs.
fn directions(
    split: &Split,
    w: MatRef<'_, f64>,
    gram: Option<&Mat<f64>>,
    most: usize,
    seed: u64,
) -> Option<Leading> {
    let laid_out = split.laid_out(w);
    let Some(gram) = gram else {
        return leading_left(laid_out.as_ref(), most, seed);
    };
    let folded = match split.others {
        1 => gram.clone(),
        _ => split.folded(gram.as_ref()),
    };
    if laid_out.nrows() <= laid_out.ncols() {
        let outputs = &laid_out * &folded * laid_out.transpose();
        return leading(outputs.as_ref(), most, seed);
    }
    let root = folded.llt(Side::Lower).ok()?;
    let whitened = &laid_out * root.L();
    leading_left(whitened.as_ref(), most, seed)
}

/// The first factor and, as a start, the second.
fn factors_of(
    split: &Split,
    w: MatRef<'_, f64>,
    basis: MatRef<'_, f64>,
    rank: usize,
) -> (Mat<f64>, Mat<f64>) {
    let basis = basis.subcols(0, rank.min(basis.ncols()));
    let first = basis.transpose() * split.laid_out(w);
    let n = split.others;
    let second = Mat::from_fn(split.rows, basis.ncols() * n, |row, at| {
        basis[(row * n + at % n, at / n)]
    });
    (first, second)
}

/// Shares the strength of each feature between the factors: features of energy `e` are divided
/// by the fourth root of `e`, and the second factor takes up what is lost.
///
/// Directions of unit length leave features whose strengths lie orders of magnitude apart, and one
/// scale for all of them rounds the weak ones to nothing when they become bytes later. Were all
/// equally strong, the second factor's columns would be as uneven instead. With strengths `s`, the
/// errors of both are least together, `max(s) sum(s)`, when each takes a square root.
fn balance(
    mut first: Mat<f64>,
    mut second: Mat<f64>,
    others: usize,
    energies: &[f64],
) -> (Mat<f64>, Mat<f64>) {
    let strongest = energies.iter().copied().fold(0.0, f64::max);
    for r in 0..first.nrows() {
        let energy = energies.get(r).copied().unwrap_or(strongest);
        // What is far weaker than the strongest is noise, and stays small.
        let share = energy.max(1e-8 * strongest).sqrt().sqrt();
        if !(share.is_normal() && share > 0.0) {
            continue;
        }
        for x in first.row_mut(r).iter_mut() {
            *x /= share;
        }
        for at in r * others..(r + 1) * others {
            for x in second.col_mut(at).iter_mut() {
                *x *= share;
            }
        }
    }
    (first, second)
}

/// The energy of the outputs, and by rank what is left out when the second factor is the best
/// for the first. One decomposition serves all ranks: the features of a rank are the first ones
/// of every larger rank.
fn least_squares_curve(
    split: &Split,
    w: &Mat<f64>,
    gram: &Mat<f64>,
    basis: &Leading,
    most: usize,
) -> Option<(f64, Vec<f64>)> {
    let (first, _) = factors_of(split, w.as_ref(), basis.vectors.as_ref(), most);
    let features = split.features(first.as_ref());
    let moved = &features * gram;
    let square = &moved * features.transpose();
    let root = damped(square.as_ref(), 1e-10).llt(Side::Lower).ok()?;
    let mut solved = &moved * w.transpose();
    faer::linalg::triangular_solve::solve_lower_triangular_in_place(
        root.L(),
        solved.as_mut(),
        faer::Par::Seq,
    );
    let product = w * gram;
    let energy: f64 = (0..w.nrows())
        .map(|i| {
            (0..w.ncols())
                .map(|j| product[(i, j)] * w[(i, j)])
                .sum::<f64>()
        })
        .sum();
    let mut left = energy;
    let mut out = vec![energy];
    for r in 0..most {
        for at in r * split.others..((r + 1) * split.others).min(solved.nrows()) {
            left -= solved.row(at).iter().map(|x| x * x).sum::<f64>();
        }
        out.push(left.max(0.0));
    }
    Some((energy, out))
}

impl Analysis {
    /// The factors of a choice, before anything is refitted.
    pub(super) fn factors(&self, layer: &Layer, choice: &Choice) -> Option<Factors> {
        let basis = self.bases.iter().find(|b| b.form == choice.form)?;
        let split = Split::of(layer, choice.form);
        let mut out = Factors::default();
        for (b, (w, basis)) in self.weights.iter().zip(&basis.blocks).enumerate() {
            let (first, second) =
                factors_of(&split, w.as_ref(), basis.vectors.as_ref(), choice.rank);
            let (first, second) = balance(first, second, split.others, &basis.energies);
            let mean = self.means.as_ref().and_then(|m| m.get(b));
            match mean {
                Some(mean) => {
                    let change = w - split.composed(first.as_ref(), second.as_ref());
                    let dot = |row: usize| -> f64 {
                        mean.iter()
                            .enumerate()
                            .map(|(c, x)| change[(row, c)] * x)
                            .sum()
                    };
                    out.bias.extend((0..split.rows).map(dot));
                }
                None => out.bias.extend(std::iter::repeat_n(0.0, split.rows)),
            }
            out.first.push(first);
            out.second.push(second);
        }
        Some(out)
    }

    /// The weight and the addition to the bias that a choice stands for.
    pub(super) fn composed(
        &self,
        layer: &Layer,
        choice: &Choice,
        dtype: DType,
    ) -> Option<(Tensor, Vec<f64>)> {
        let split = Split::of(layer, choice.form);
        let factors = self.factors(layer, choice)?;
        let both = factors.first.iter().zip(&factors.second);
        let composed: Vec<Mat<f64>> = both
            .map(|(a, b)| split.composed(a.as_ref(), b.as_ref()))
            .collect();
        Some((layer.tensor(dtype, &composed).ok()?, factors.bias))
    }

    /// The factors of a choice that come nearest to the outputs of the reference network, whose
    /// moments stand in `moments`. `damping` holds them near the weights as they were, at
    /// least as strongly as the number of columns asks for.
    pub(super) fn refit(
        &self,
        candidate: &Candidate<'_>,
        choice: &Choice,
        moments: &Moments,
        damping: f64,
        seed: u64,
    ) -> Option<Factors> {
        let split = Split::of(&candidate.layer, choice.form);
        let mut out = Factors::default();
        // What was seen seldom says little: with as many columns as inputs the fit would follow
        // every accident of them.
        let scarce = candidate.layer.cols as f64 / moments.count.max(1) as f64;
        let damping = damping.max(scarce);
        for (b, w) in self.weights.iter().enumerate() {
            let refit = Refit {
                target: w.as_ref(),
                present: w.as_ref(),
                bias: candidate.centered,
                damping,
            };
            let best = refit.dense(moments, b)?.weights;
            let gram = central(moments, b, candidate.centered, DAMPING)?;
            let found = directions(&split, best.as_ref(), Some(&gram), choice.rank, seed)?;
            let (first, second) =
                factors_of(&split, best.as_ref(), found.vectors.as_ref(), choice.rank);
            let (first, second) = match split.others {
                1 => (first, second),
                _ => alternate(&split, &best, &gram, first)?,
            };
            let (first, second) = balance(first, second, split.others, &found.energies);
            let composed = split.composed(first.as_ref(), second.as_ref());
            out.bias.extend(refit.bias(&composed, moments, b));
            out.first.push(first);
            out.second.push(second);
        }
        let finite = |m: &Mat<f64>| m.col_iter().all(|c| c.iter().all(|x| x.is_finite()));
        out.first
            .iter()
            .chain(&out.second)
            .all(finite)
            .then_some(out)
    }
}

/// Rounds in which one factor of a spatial form is fitted to the other.
const ALTERNATIONS: usize = 3;

/// Steps towards the best first factor in each round.
const STEPS: usize = 8;

/// Multiply-accumulates that the rounds of one block may take: seconds. Larger blocks get fewer.
const ALTERNATION_MACS: f64 = 4e10;

/// The second factor by least squares, and the first by conjugate gradients, in turn.
fn alternate(
    split: &Split,
    w: &Mat<f64>,
    gram: &Mat<f64>,
    first: Mat<f64>,
) -> Option<(Mat<f64>, Mat<f64>)> {
    let step = w.nrows() as f64 * w.ncols() as f64 * w.ncols() as f64;
    let affordable = (ALTERNATION_MACS / (step * STEPS as f64)) as usize;
    let mut first = first;
    let mut second = second_factor(split, w, gram, &first)?;
    for _ in 0..ALTERNATIONS.min(affordable) {
        first = first_factor(split, w, gram, first, &second);
        second = second_factor(split, w, gram, &first)?;
    }
    Some((first, second))
}

/// A better first factor for a second one: conjugate gradients on the error of the outputs.
fn first_factor(
    split: &Split,
    w: &Mat<f64>,
    gram: &Mat<f64>,
    first: Mat<f64>,
    second: &Mat<f64>,
) -> Mat<f64> {
    let n = split.others;
    // The gradient with respect to the first factor, from that with respect to the whole weight.
    let back = |whole: &Mat<f64>| {
        Mat::from_fn(first.nrows(), split.inputs, |r, input| {
            let at = |j: usize| {
                let rows = 0..split.rows;
                rows.map(|o| second[(o, r * n + j)] * whole[(o, input * n + j)])
                    .sum::<f64>()
            };
            (0..n).map(at).sum::<f64>()
        })
    };
    let apply = |x: &Mat<f64>| back(&(split.composed(x.as_ref(), second.as_ref()) * gram));
    let mut x = first.clone();
    let missing = w - split.composed(x.as_ref(), second.as_ref());
    let mut residual = back(&(missing * gram));
    let mut direction = residual.clone();
    let mut energy = residual.squared_norm_l2();
    for _ in 0..STEPS {
        let image = apply(&direction);
        let curvature: f64 = (direction.col_iter().zip(image.col_iter()))
            .map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>())
            .sum();
        if curvature <= 0.0 || energy <= 0.0 {
            break;
        }
        let length = energy / curvature;
        x += faer::Scale(length) * &direction;
        residual -= faer::Scale(length) * &image;
        let next = residual.squared_norm_l2();
        direction = &residual + faer::Scale(next / energy) * &direction;
        energy = next;
    }
    x
}

/// The best second factor for a first one, by least squares.
fn second_factor(
    split: &Split,
    w: &Mat<f64>,
    gram: &Mat<f64>,
    first: &Mat<f64>,
) -> Option<Mat<f64>> {
    let features = split.features(first.as_ref());
    let moved = &features * gram;
    let square = &moved * features.transpose();
    let wanted = &moved * w.transpose();
    let solved = ridge_solve(square.as_ref(), wanted.as_ref(), 1e-10)?;
    Some(solved.transpose().to_owned())
}

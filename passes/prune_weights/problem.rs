//! What a layer's data comes to: the problem that its weights are to solve, and how far the data
//! is to be trusted.
//!
//! A layer of many inputs and few samples can be fitted to its samples almost exactly and be
//! wrong everywhere else. So some of the data is held out: on it every layer's error is
//! predicted, and it decides how far second moments are drawn towards their diagonal.

use faer::Mat;
use paring_ir::{Model, PassContext, PassError};

use super::pattern::mask;
use super::second_order::{self, Sampled, System};
use super::spread::Curve;
use super::targets::Target;
use crate::layers::{bias_len, bias_place};
use crate::moments::{Moments, Split};

/// Windows of one image overlap and resemble each other, so so many count as one.
const ALIKE: f64 = 4.0;

/// The shares of zeros at which a layer's error is predicted.
const SHARES: [f64; 9] = [0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95];

/// How far second moments may be doubted, see [`System::new`].
const DOUBTS: [f64; 6] = [0.001, 0.01, 0.05, 0.2, 0.5, 0.8];

/// Rows of a layer on which doubts are tried, and on which errors are predicted.
const TRIED: usize = 12;
const PREDICTED: usize = 32;

/// A layer's problem, and what a bias needs.
pub(super) struct Problem {
    pub(super) systems: Vec<System>,
    /// Whether a bias takes up the means.
    pub(super) bias: bool,
    /// By block: the second moment of each input about zero.
    pub(super) squares: Vec<Vec<f64>>,
}

impl Problem {
    /// The problem of a layer with weights as they were in the original network, of which so
    /// many are to become zero. With several operators that share the weight their moments add
    /// up, and no bias is moved. `None` where numbers fail.
    pub(super) fn new(
        model: &Model,
        target: &Target,
        original: &[Mat<f64>],
        seen: &Data<'_>,
        (zeros, with_bias): (usize, bool),
    ) -> Option<Problem> {
        let bias = with_bias && can_move_bias(model, target);
        let share = zeros as f64 / target.grid.len().max(1) as f64;
        let doubt = seen.doubt(target, original, bias, share);
        let all: Vec<&Moments> = seen.all.iter().collect();
        let forms = Forms::new(target, &all, bias.then_some(&all))?;
        let squares = (0..original.len()).map(|block| {
            let own = &seen.all.first()?.gram.get(block)?;
            Some((0..own.nrows()).map(|i| own[(i, i)]).collect())
        });
        Some(Problem {
            systems: forms.systems(original, doubt)?,
            bias,
            squares: squares.collect::<Option<_>>()?,
        })
    }
}

/// What was seen of a layer: by operator that takes the weight.
pub(super) struct Data<'a> {
    pub(super) all: Vec<Moments>,
    pub(super) split: &'a [Split],
}

impl<'a> Data<'a> {
    pub(super) fn new(split: &'a [Split]) -> Data<'a> {
        Data {
            all: split.iter().map(Split::joined).collect(),
            split,
        }
    }

    /// How far the moments are to be doubted, 0 to 1: weights are fitted to most of the data and
    /// tried on what is held out. As that is much like the rest, and what the model will see is
    /// less so, the largest doubt counts that does about as well there as the best.
    fn doubt(&self, target: &Target, original: &[Mat<f64>], bias: bool, share: f64) -> f64 {
        let Some((fit, held)) = halves(target, self.split, bias) else {
            return self.usual_doubt(target);
        };
        let sampled = Sampled::new(&target.grid, TRIED);
        let weights = sampled.weights(original);
        let zeros = (share * sampled.grid.len() as f64) as usize;
        let (fit, held) = (fit.sampled(&sampled), held.sampled(&sampled));
        let error = |doubt: f64| -> f64 {
            let fitted = || {
                let systems = fit.own(&weights, doubt);
                let scores = contributions(&systems);
                let mask = mask(target.pattern, &sampled.grid, &scores, zeros);
                Some(second_order::fit(&systems, &sampled.grid, &mask)?.0)
            };
            fitted().map_or(f64::INFINITY, |w| held.change(&w, &weights, 0.0))
        };
        let errors: Vec<(f64, f64)> = DOUBTS.iter().map(|&d| (d, error(d))).collect();
        let least = errors.iter().map(|e| e.1).fold(f64::INFINITY, f64::min);
        // How well an error is known grows with the root of the number of samples.
        let samples = self.split.iter().map(|s| s.held_samples).sum::<usize>();
        let enough = least * (1.0 + 1.2 / (samples.max(1) as f64).sqrt());
        let fits = |(_, error): &&(f64, f64)| error.is_finite() && *error <= enough;
        let found = errors.iter().rev().find(fits);
        found.map_or_else(|| self.usual_doubt(target), |(doubt, _)| *doubt)
    }

    /// What the number of columns alone suggests.
    fn usual_doubt(&self, target: &Target) -> f64 {
        let windows = !target.layer.layout.kernel_axes.is_empty();
        let columns = self.all.iter().map(|m| m.count as f64).sum::<f64>();
        let columns = columns / if windows { ALIKE } else { 1.0 };
        let grams = self.all.iter().flat_map(|m| &m.gram);
        let parts = grams.map(|g| second_order::shrinkage(g, columns));
        parts.fold(DOUBTS[0], f64::max)
    }
}

/// What each weight contributes to the outputs by itself.
fn contributions(systems: &[System]) -> Vec<f32> {
    let of = |s: &System| -> Vec<f32> {
        let columns = s.dense.col_iter();
        columns
            .flat_map(|w| {
                let own = w.iter().enumerate();
                own.map(|(i, w)| (w.powi(2) * s.gram[(i, i)]) as f32)
                    .collect::<Vec<f32>>()
            })
            .collect()
    };
    systems.iter().flat_map(of).collect()
}

/// The moments to fit to and those to judge by, both about the means of the former, which is
/// what a bias takes up.
fn halves(target: &Target, split: &[Split], bias: bool) -> Option<(Forms, Forms)> {
    let fit: Vec<&Moments> = split.iter().map(|s| &s.fit).collect();
    let held: Option<Vec<&Moments>> = split.iter().map(|s| s.held.as_ref()).collect();
    let about = bias.then_some(&fit);
    let held = Forms::new(target, &held?, about)?;
    Some((Forms::new(target, &fit, about)?, held))
}

/// The second moments of a layer by block, over all operators that share the weight.
struct Forms {
    /// Of its inputs.
    gram: Vec<Mat<f64>>,
    /// Between its inputs and those that it has in the original network.
    cross: Vec<Mat<f64>>,
}

impl Forms {
    /// About zero, or about the means of other moments.
    fn new(target: &Target, moments: &[&Moments], about: Option<&Vec<&Moments>>) -> Option<Forms> {
        let mut out = Forms {
            gram: Vec::new(),
            cross: Vec::new(),
        };
        for block in 0..target.grid.blocks {
            let (mut gram, mut cross): (Option<Mat<f64>>, Option<Mat<f64>>) = (None, None);
            for (at, m) in moments.iter().enumerate() {
                let zero = about.and_then(|a| means(a.get(at)?, block));
                let (own, others) = means(m, block)?;
                let matrix = m.gram.get(block)?;
                let crossed = match &m.reference {
                    Some(r) => r.cross.get(block)?,
                    None => matrix,
                };
                let zeros = zero.map(|(own, _)| (own, own));
                add(&mut gram, moved(matrix, (own, own), zeros));
                add(&mut cross, moved(crossed, (own, others), zero));
            }
            out.gram.push(gram?);
            out.cross.push(cross?);
        }
        Some(out)
    }

    fn sampled(&self, sampled: &Sampled) -> Forms {
        Forms {
            gram: sampled.blocks(&self.gram),
            cross: sampled.blocks(&self.cross),
        }
    }

    /// By block the problem of coming near to the outputs of these weights, `rows` x `cols`, in
    /// the original network.
    fn systems(&self, original: &[Mat<f64>], doubt: f64) -> Option<Vec<System>> {
        let matrices = self.gram.iter().zip(&self.cross).zip(original);
        let system = |((gram, cross), weights): ((&Mat<f64>, &Mat<f64>), &Mat<f64>)| {
            System::new(gram, cross, weights.as_ref(), doubt)
        };
        matrices.map(system).collect()
    }

    /// The same from the layer's own inputs, whatever they are in the original network.
    fn own(&self, original: &[Mat<f64>], doubt: f64) -> Vec<System> {
        let matrices = self.gram.iter().zip(original);
        matrices
            .map(|(gram, weights)| System::own(gram, weights.as_ref(), doubt))
            .collect()
    }

    /// The error that a change of weights makes in the outputs: from the original ones, `rows` x
    /// `cols`, to others, `cols` x `rows`.
    fn change(&self, weights: &[Mat<f64>], original: &[Mat<f64>], doubt: f64) -> f64 {
        let all = self.gram.iter().zip(weights.iter().zip(original));
        let one = |(gram, (weights, original)): (&Mat<f64>, (&Mat<f64>, &Mat<f64>))| {
            let change = weights - original.transpose();
            dot(&(&second_order::doubted(gram, doubt) * &change), &change)
        };
        all.map(one).sum()
    }
}

fn dot(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let columns = a.col_iter().zip(b.col_iter());
    columns
        .map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>())
        .sum()
}

/// The means of a layer's inputs, and of those that it has in the original network.
fn means(moments: &Moments, block: usize) -> Option<(&[f64], &[f64])> {
    let own = moments.mean.get(block)?;
    let others = match &moments.reference {
        Some(r) => r.mean.get(block)?,
        None => own,
    };
    Some((own, others))
}

/// Second moments of these means, about other means instead of zero.
fn moved(
    moments: &Mat<f64>,
    (a, b): (&[f64], &[f64]),
    about: Option<(&[f64], &[f64])>,
) -> Mat<f64> {
    let Some((x, y)) = about else {
        return moments.clone();
    };
    Mat::from_fn(moments.nrows(), moments.ncols(), |i, j| {
        moments[(i, j)] - a[i] * y[j] - x[i] * b[j] + x[i] * y[j]
    })
}

fn add(sum: &mut Option<Mat<f64>>, part: Mat<f64>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + part,
        None => part,
    });
}

fn can_move_bias(model: &Model, target: &Target) -> bool {
    let layer = &target.layer;
    target.others.is_empty()
        && bias_len(layer) == layer.blocks * layer.rows
        && bias_place(&model.graph, layer).is_some()
}

/// The error of a layer's outputs over their variance at several shares of zeros, from a few of
/// its rows: on the data held out, where there is some, and doubted as far as the fit. `None`
/// where numbers fail.
pub(super) fn curve(
    model: &Model,
    target: &Target,
    original: &[Mat<f64>],
    split: &[Split],
    cx: &PassContext<'_>,
) -> Result<Option<Curve>, PassError> {
    let bias = can_move_bias(model, target);
    let data = Data::new(split);
    let doubt = data.doubt(target, original, bias, 0.5);
    let all: Vec<&Moments> = data.all.iter().collect();
    let halves = halves(target, split, bias).or_else(|| {
        let forms = || Forms::new(target, &all, bias.then_some(&all));
        Some((forms()?, forms()?))
    });
    let Some((fit, held)) = halves else {
        return Ok(None);
    };
    let sampled = Sampled::new(&target.grid, PREDICTED);
    let weights = sampled.weights(original);
    let held = held.sampled(&sampled);
    let systems = fit.sampled(&sampled).own(&weights, doubt);
    let nothing: Vec<Mat<f64>> = weights
        .iter()
        .map(|w| Mat::zeros(w.ncols(), w.nrows()))
        .collect();
    let energy = held.change(&nothing, &weights, doubt);
    let masks = second_order::masks(&systems, &sampled.grid, target.pattern, &SHARES, cx)?;
    let points = masks.iter().flatten().zip(SHARES).map(|(mask, share)| {
        let fitted = second_order::fit(&systems, &sampled.grid, mask)?.0;
        let error = held.change(&fitted, &weights, doubt).max(0.0);
        Some((share, if energy > 0.0 { error / energy } else { 0.0 }))
    });
    let points: Option<Vec<(f64, f64)>> = points.collect();
    Ok(points.filter(|p| p.len() == SHARES.len()).map(Curve))
}

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

/// By how much the shrinkage that the number of columns suggests may have to be multiplied:
/// columns of one sample are alike, more so than any count of them tells.
const DOUBTS: [f64; 5] = [1.0, 3.0, 10.0, 30.0, 100.0];

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

    /// The factor on the shrinkage with which weights that are fitted to most of the data do
    /// best on the data held out.
    fn doubt(&self, target: &Target, original: &[Mat<f64>], bias: bool, share: f64) -> f64 {
        let Some((fit, held)) = halves(target, self.split, bias) else {
            return DOUBTS[0];
        };
        let sampled = Sampled::new(&target.grid);
        let weights = sampled.weights(original);
        let zeros = (share * sampled.grid.len() as f64) as usize;
        let (fit, held) = (fit.sampled(&sampled), held.sampled(&sampled));
        let error = |doubt: f64| -> Option<f64> {
            let systems = fit.systems(&weights, doubt)?;
            let scores = contributions(&systems);
            let mask = mask(target.pattern, &sampled.grid, &scores, zeros);
            let fitted = second_order::fit(&systems, &sampled.grid, &mask)?.0;
            Some(held.error(&fitted, &weights))
        };
        let mut best = (f64::INFINITY, DOUBTS[0]);
        for doubt in DOUBTS {
            match error(doubt) {
                Some(error) if error < best.0 => best = (error, doubt),
                // The error falls and then rises.
                _ => break,
            }
        }
        best.1
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
    /// How many independent inputs they come from.
    columns: f64,
}

impl Forms {
    /// About zero, or about the means of other moments.
    fn new(
        target: &Target,
        moments: &[&Moments],
        about: Option<&Vec<&Moments>>,
    ) -> Option<Forms> {
        let windows = !target.layer.layout.kernel_axes.is_empty();
        let columns = moments.iter().map(|m| m.count as f64).sum::<f64>();
        let mut out = Forms {
            gram: Vec::new(),
            cross: Vec::new(),
            columns: columns / if windows { ALIKE } else { 1.0 },
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
            columns: self.columns,
        }
    }

    /// By block the problem of these weights, `rows` x `cols`.
    fn systems(&self, original: &[Mat<f64>], doubt: f64) -> Option<Vec<System>> {
        let matrices = self.gram.iter().zip(&self.cross).zip(original);
        let system = |((gram, cross), weights): ((&Mat<f64>, &Mat<f64>), &Mat<f64>)| {
            let part = second_order::shrinkage(gram, self.columns);
            System::new(gram, cross, weights.as_ref(), (part * doubt).min(1.0))
        };
        matrices.map(system).collect()
    }

    /// The error of outputs of weights, `cols` x `rows` by block, against those of the original
    /// ones, `rows` x `cols`, but for what no weights change.
    fn error(&self, weights: &[Mat<f64>], original: &[Mat<f64>]) -> f64 {
        let blocks = self.gram.iter().zip(&self.cross);
        let all = blocks.zip(weights.iter().zip(original));
        let one = |((gram, cross), (weights, original)): ((&Mat<f64>, &Mat<f64>), (&Mat<f64>, &Mat<f64>))| {
            let half = gram * weights - faer::Scale(2.0) * (cross * original.transpose());
            dot(&half, weights)
        };
        all.map(one).sum()
    }

    /// The outputs' second moment over all rows of the original weights.
    fn energy(&self, original: &[Mat<f64>]) -> f64 {
        let one = |(gram, w): (&Mat<f64>, &Mat<f64>)| {
            let w = w.transpose().to_owned();
            dot(&(gram * &w), &w)
        };
        self.gram.iter().zip(original).map(one).sum()
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
/// its rows: on the data held out, where there is some. `None` where numbers fail.
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
    let sampled = Sampled::new(&target.grid);
    let weights = sampled.weights(original);
    let held = held.sampled(&sampled);
    let Some(systems) = fit.sampled(&sampled).systems(&weights, doubt) else {
        return Ok(None);
    };
    let energy = held.energy(&weights);
    let masks = second_order::masks(&systems, &sampled.grid, target.pattern, &SHARES, cx)?;
    let error = |mask| {
        let fitted = second_order::fit(&systems, &sampled.grid, mask)?.0;
        // Without a reference the original outputs are of the same inputs.
        Some((held.error(&fitted, &weights) + energy).max(0.0))
    };
    let points = masks.iter().flatten().zip(SHARES).map(|(mask, share)| {
        let error = error(mask)?;
        Some((share, if energy > 0.0 { error / energy } else { 0.0 }))
    });
    let points: Option<Vec<(f64, f64)>> = points.collect();
    Ok(points.filter(|p| p.len() == SHARES.len()).map(Curve))
}

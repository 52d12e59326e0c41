//! Weights from second moments: damped solves, least-squares refits, errors of outputs.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};

use crate::moments::Moments;

/// The share of the mean of the diagonal that is added to it by default.
pub(crate) const DAMPING: f64 = 1e-4;

/// A matrix plus a multiple of the identity: `damping` times the mean of its diagonal.
pub(crate) fn damped(gram: MatRef<'_, f64>, damping: f64) -> Mat<f64> {
    let n = gram.nrows();
    let add = damping * mean_diagonal(gram);
    Mat::from_fn(n, n, |i, j| gram[(i, j)] + if i == j { add } else { 0.0 })
}

/// The mean of the diagonal; 1 where that is not positive, so that what is added to it counts.
pub(crate) fn mean_diagonal(gram: MatRef<'_, f64>) -> f64 {
    let n = gram.nrows();
    let mean = (0..n).map(|i| gram[(i, i)]).sum::<f64>() / n.max(1) as f64;
    if mean > 0.0 { mean } else { 1.0 }
}

/// Solves `(G + d I) X = B` for a symmetric, positive semidefinite `G`, where `d` is `damping`
/// times the mean of the diagonal, and more where that is not enough. `None` for matrices that
/// are not finite.
pub(crate) fn ridge_solve(
    gram: MatRef<'_, f64>,
    rhs: MatRef<'_, f64>,
    damping: f64,
) -> Option<Mat<f64>> {
    let mut damping = damping.max(1e-12);
    while damping < 1e3 {
        if let Ok(llt) = damped(gram, damping).llt(Side::Lower) {
            let x = llt.solve(rhs);
            if x.col_iter().all(|c| c.iter().all(|v| v.is_finite())) {
                return Some(x);
            }
        }
        damping *= 10.0;
    }
    None
}

/// The mean squared error that a change of weights makes in the outputs, summed over the rows:
/// the trace of `D G D^T`.
pub(crate) fn output_error(change: MatRef<'_, f64>, gram: MatRef<'_, f64>) -> f64 {
    row_errors(change, gram).iter().sum()
}

/// The mean squared error that a change of weights makes in each output: the diagonal of
/// `D G D^T`.
pub(crate) fn row_errors(change: MatRef<'_, f64>, gram: MatRef<'_, f64>) -> Vec<f64> {
    let product = change * gram;
    let dot = |row: usize| -> f64 {
        (0..change.ncols())
            .map(|c| product[(row, c)] * change[(row, c)])
            .sum()
    };
    (0..change.nrows()).map(|row| dot(row).max(0.0)).collect()
}

/// What a refit is made of, for one block of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refit<'a> {
    /// The weights of the reference, `rows` x `cols` of the reference.
    pub(crate) target: MatRef<'a, f64>,
    /// The weights as they are, `rows` x `cols`; the solution stays near them where the data
    /// says little.
    pub(crate) present: MatRef<'a, f64>,
    /// Whether a bias takes up the difference of the means.
    pub(crate) bias: bool,
    /// How strongly the solution is held at `present`, by the mean of the diagonal of `G`.
    pub(crate) damping: f64,
}

/// The weights of a layer that come nearest to the reference's outputs, in the mean of squares.
#[derive(Clone, Debug)]
pub(crate) struct Refitted {
    /// `rows` x `cols`.
    pub(crate) weights: Mat<f64>,
    /// What to add to the reference's bias, by row; zeros without a bias.
    pub(crate) bias: Vec<f64>,
}

impl Refit<'_> {
    /// All weights are free.
    pub(crate) fn dense(&self, moments: &Moments, block: usize) -> Option<Refitted> {
        let (gram, wanted) = self.system(moments, block)?;
        let weights = ridge_solve(gram.as_ref(), wanted.as_ref(), 1e-9)?;
        let weights = weights.transpose().to_owned();
        let bias = self.bias(&weights, moments, block);
        Some(Refitted { weights, bias })
    }

    /// What to add to the reference's bias so that the means of the outputs agree, for any
    /// weights.
    pub(crate) fn bias(&self, weights: &Mat<f64>, moments: &Moments, block: usize) -> Vec<f64> {
        let rows = weights.nrows();
        if !self.bias {
            return vec![0.0; rows];
        }
        let own = &moments.mean[block];
        let theirs = moments.reference.as_ref().map_or(own, |r| &r.mean[block]);
        let dot = |m: MatRef<'_, f64>, row: usize, x: &[f64]| -> f64 {
            x.iter().enumerate().map(|(c, x)| m[(row, c)] * x).sum()
        };
        (0..rows)
            .map(|row| dot(self.target, row, theirs) - dot(weights.as_ref(), row, own))
            .collect()
    }

    /// The matrix and the right-hand sides, `cols` x `rows`, of the normal equations: moments
    /// about the mean where a bias takes up the means.
    fn system(&self, moments: &Moments, block: usize) -> Option<(Mat<f64>, Mat<f64>)> {
        let gram = moments.gram.get(block)?;
        let own = moments.mean.get(block)?;
        let (cross, theirs) = match &moments.reference {
            Some(r) => (r.cross.get(block)?, r.mean.get(block)?),
            None => (gram, own),
        };
        let central = |m: &Mat<f64>, a: &[f64], b: &[f64]| {
            let off = |i: usize, j: usize| if self.bias { a[i] * b[j] } else { 0.0 };
            Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] - off(i, j))
        };
        let mut inner = central(gram, own, own);
        let cross = central(cross, own, theirs);
        let hold = self.damping * mean_diagonal(inner.as_ref());
        for i in 0..inner.nrows() {
            inner[(i, i)] += hold;
        }
        let mut wanted = &cross * self.target.transpose();
        for row in 0..self.present.nrows() {
            for c in 0..self.present.ncols() {
                wanted[(c, row)] += hold * self.present[(row, c)];
            }
        }
        Some((inner, wanted))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::moments::Cross;

    /// Moments of these columns, and of a reference where the last input was still there.
    fn moments(columns: &[[f64; 3]]) -> (Moments, Moments) {
        let n = columns.len() as f64;
        let mean = |c: usize| columns.iter().map(|x| x[c]).sum::<f64>() / n;
        let second = |a: usize, b: usize| columns.iter().map(|x| x[a] * x[b]).sum::<f64>() / n;
        let reference = Cross {
            cross: vec![Mat::from_fn(2, 3, second)],
            mean: vec![(0..3).map(mean).collect()],
        };
        let whole = Moments {
            count: columns.len() as u64,
            gram: vec![Mat::from_fn(3, 3, second)],
            mean: vec![(0..3).map(mean).collect()],
            reference: None,
        };
        let removed = Moments {
            gram: vec![Mat::from_fn(2, 2, second)],
            mean: vec![(0..2).map(mean).collect()],
            reference: Some(reference),
            ..whole.clone()
        };
        (whole, removed)
    }

    #[test]
    fn what_other_inputs_tell_is_made_up_for() {
        // The third input is the sum of the others plus one.
        let columns: Vec<[f64; 3]> = (0..20)
            .map(|i| {
                let (a, b) = (f64::from(i % 5), f64::from(i % 3) - 1.0);
                [a, b, a + b + 1.0]
            })
            .collect();
        let (_, removed) = moments(&columns);
        let target = Mat::from_fn(1, 3, |_, c| [1.0, 2.0, 3.0][c]);
        let present = Mat::from_fn(1, 2, |_, c| [1.0, 2.0][c]);
        let refit = Refit {
            target: target.as_ref(),
            present: present.as_ref(),
            bias: true,
            damping: 0.0,
        };
        let made = refit.dense(&removed, 0).unwrap();
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-6, "{found}");
        near(made.weights[(0, 0)], 4.0);
        near(made.weights[(0, 1)], 5.0);
        near(made.bias[0], 3.0);
    }

    #[test]
    fn what_has_no_solution_is_damped_until_it_has_one() {
        let gram = Mat::from_fn(2, 2, |_, _| 1.0);
        let rhs = Mat::from_fn(2, 1, |_, _| 2.0);
        let x = ridge_solve(gram.as_ref(), rhs.as_ref(), 0.0).unwrap();
        assert!((x[(0, 0)] + x[(1, 0)] - 2.0).abs() < 1e-3);
        let nan = Mat::from_fn(2, 2, |_, _| f64::NAN);
        assert!(ridge_solve(nan.as_ref(), rhs.as_ref(), 0.0).is_none());
    }
}

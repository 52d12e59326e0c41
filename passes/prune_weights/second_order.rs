//! Which weights of a layer can go, and what the others must become, so that its outputs change
//! least: the error is a quadratic form in the second moments of the inputs.
//!
//! For weights `W` (outputs x inputs), inputs with second moments `G` and the weights `T` that
//! were best if none had to go, the mean squared error of the outputs is `tr (W - T) G (W - T)^T`
//! plus a constant. Choosing the zeros is a hard problem; optimal brain surgeon (Hassibi and
//! Stork, "Second order derivatives for network pruning", 1992; Frantar and Alistarh, "Optimal
//! Brain Compression", 2022) takes one weight after the other out of each row, which costs the
//! cube of the inputs for every row. Here this is done where it is cheap ([`surgeon`]). For
//! every layer the alternating direction method of multipliers (Boyd et al., 2011; for pruning
//! Boža, "Fast and Effective Weight Update for Pruned Large Language Models", 2024, and Meng et
//! al., "ALPS", 2024) chooses the zeros of all rows together by products of matrices alone, for
//! any pattern, and reaches about the same error ([`choose`]). Of both the better counts.
//!
//! Matrices of weights are held as inputs x outputs, so that each output is one column.

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use paring_ir::{PassContext, PassError};
use rayon::prelude::*;

use super::pattern::{Grid, Mask, Pattern, mask};
use crate::solve::{mean_diagonal, ridge_solve};

/// Rows of the weight that are worked on together. A fixed number, so that results don't depend
/// on threads.
const ROWS: usize = 32;

/// The problem of one block of a layer.
#[derive(Clone, Debug)]
pub(super) struct System {
    /// The second moments of the inputs, `cols` x `cols`, regular.
    pub(super) gram: Mat<f64>,
    /// `cols` x `rows`: what the normal equations have on their right-hand side.
    pub(super) wanted: Mat<f64>,
    /// `cols` x `rows`: the best weights if none had to be zero.
    pub(super) dense: Mat<f64>,
}

impl System {
    /// From moments about the mean where a bias takes up the means, else about zero: of the
    /// inputs, and between inputs and those of the original network (`cross`, `cols` x
    /// `cols`), and the original weights, `rows` x `cols`.
    ///
    /// Few samples show correlations that are not there, and inputs that seldom fire as if they
    /// never did. So moments are drawn by `part`, 0 to 1, towards those of inputs that are all
    /// alike and independent, and the weights with that towards the original ones.
    pub(super) fn new(
        gram: &Mat<f64>,
        cross: &Mat<f64>,
        weights: MatRef<'_, f64>,
        part: f64,
    ) -> Option<System> {
        let held = prior(gram, part);
        let shrunk = shrunk(gram, part, &held);
        let mut wanted = cross * weights.transpose();
        for row in 0..weights.nrows() {
            for (col, held) in held.iter().enumerate() {
                let w = &mut wanted[(col, row)];
                *w = (1.0 - part) * *w + held * weights[(row, col)];
            }
        }
        let dense = ridge_solve(shrunk.as_ref(), wanted.as_ref(), 1e-9)?;
        Some(System {
            gram: shrunk,
            wanted,
            dense,
        })
    }

    /// The same for a layer whose inputs are those of the original network, where the original
    /// weights are best.
    pub(super) fn own(gram: &Mat<f64>, weights: MatRef<'_, f64>, part: f64) -> System {
        let gram = doubted(gram, part);
        let dense = weights.transpose().to_owned();
        System {
            wanted: &gram * &dense,
            gram,
            dense,
        }
    }

    /// The error of the outputs of weights (`cols` x `rows`), and the outputs' own second
    /// moment, each the sum over the rows.
    pub(super) fn error(&self, weights: MatRef<'_, f64>) -> (f64, f64) {
        let form = |m: MatRef<'_, f64>| -> f64 {
            let product = &self.gram * m;
            let columns = product.col_iter().zip(m.col_iter());
            columns
                .map(|(p, w)| p.iter().zip(w.iter()).map(|(p, w)| p * w).sum::<f64>())
                .sum()
        };
        let change = weights - &self.dense;
        (
            form(change.as_ref()).max(0.0),
            form(self.dense.as_ref()).max(0.0),
        )
    }

    /// Weights with these zeros, `cols` x `rows`, that come nearest. `mask` is that of this block.
    pub(super) fn refit(&self, mask: &[bool]) -> Option<Mat<f64>> {
        let (cols, rows) = (self.wanted.nrows(), self.wanted.ncols());
        let solved: Vec<Option<Vec<f64>>> = (0..rows)
            .into_par_iter()
            .map(|row| self.refit_row(row, mask.get(row * cols..(row + 1) * cols)?))
            .collect();
        let mut out = Mat::zeros(cols, rows);
        for (row, solved) in solved.into_iter().enumerate() {
            for (col, x) in solved?.into_iter().enumerate() {
                out[(col, row)] = x;
            }
        }
        Some(out)
    }

    fn refit_row(&self, row: usize, mask: &[bool]) -> Option<Vec<f64>> {
        let kept: Vec<usize> = (0..mask.len()).filter(|&c| mask[c]).collect();
        let mut out = vec![0.0; mask.len()];
        if kept.is_empty() {
            return Some(out);
        }
        let n = kept.len();
        let part = Mat::from_fn(n, n, |i, j| self.gram[(kept[i], kept[j])]);
        let rhs = Mat::from_fn(n, 1, |i, _| self.wanted[(kept[i], row)]);
        // A part of a regular matrix is regular, up to rounding.
        let solved = match part.llt(Side::Lower) {
            Ok(llt) => llt.solve(&rhs),
            Err(_) => ridge_solve(part.as_ref(), rhs.as_ref(), 1e-9)?,
        };
        for (i, &c) in kept.iter().enumerate() {
            out[c] = solved[(i, 0)];
        }
        out.iter().all(|x| x.is_finite()).then_some(out)
    }
}

/// What is added to the diagonal of second moments that are drawn by `part` towards those of
/// inputs that are all alike and independent.
fn prior(gram: &Mat<f64>, part: f64) -> Vec<f64> {
    // A millionth keeps moments regular.
    vec![(part + 1e-6) * mean_diagonal(gram.as_ref()); gram.nrows()]
}

/// About its mean an input that is nearly constant can have a moment below zero, by rounding.
fn shrunk(gram: &Mat<f64>, part: f64, held: &[f64]) -> Mat<f64> {
    let n = gram.nrows();
    Mat::from_fn(n, n, |i, j| match i == j {
        true => (1.0 - part) * gram[(i, i)].max(0.0) + held[i],
        false => (1.0 - part) * gram[(i, j)],
    })
}

/// Second moments drawn by `part` towards their prior.
pub(super) fn doubted(gram: &Mat<f64>, part: f64) -> Mat<f64> {
    shrunk(gram, part, &prior(gram, part))
}

/// How far second moments are to be doubted where there is nothing to try them on, 0 to 1: the
/// oracle approximating shrinkage of the correlations for this many independent inputs, and no
/// less than one part in a thousand (Chen et al., "Shrinkage Algorithms for MMSE Covariance
/// Estimation", 2010).
pub(super) fn shrinkage(gram: &Mat<f64>, columns: f64) -> f64 {
    let n = gram.nrows();
    let p = n as f64;
    let scale: Vec<f64> = (0..n).map(|i| gram[(i, i)].max(0.0).sqrt()).collect();
    let mut squares = 0.0;
    for j in 0..n {
        for i in 0..n {
            let s = scale[i] * scale[j];
            if s > 0.0 {
                squares += (gram[(i, j)] / s).powi(2);
            }
        }
    }
    let beyond = squares - p;
    if beyond <= 0.0 {
        return 1.0;
    }
    let above = (1.0 - 2.0 / p) * squares + p * p;
    (above / ((columns + 1.0 - 2.0 / p) * beyond)).clamp(1e-3, 1.0)
}

/// A layer's problems, one for each block, in the scale in which every input has a second moment
/// of one: there the square of a weight is what it contributes to the output by itself.
struct Scaled {
    grams: Vec<Mat<f64>>,
    /// All right-hand sides in the order of the grid.
    wanted: Vec<f32>,
    dense: Vec<f32>,
}

impl Scaled {
    fn new(systems: &[System]) -> Scaled {
        let mut out = Scaled {
            grams: Vec::new(),
            wanted: Vec::new(),
            dense: Vec::new(),
        };
        for s in systems {
            let n = s.gram.nrows();
            let scale: Vec<f64> = (0..n).map(|i| s.gram[(i, i)].sqrt()).collect();
            out.grams.push(Mat::from_fn(n, n, |i, j| {
                s.gram[(i, j)] / (scale[i] * scale[j])
            }));
            let columns = s.wanted.col_iter().zip(s.dense.col_iter());
            for (wanted, dense) in columns {
                let scaled = wanted.iter().zip(&scale);
                out.wanted.extend(scaled.map(|(x, s)| (x / s) as f32));
                let scaled = dense.iter().zip(&scale);
                out.dense.extend(scaled.map(|(x, s)| (x * s) as f32));
            }
        }
        out
    }

    /// By block: the inverse of the second moments plus `rho`.
    fn inverses(&self, rho: f64) -> Option<Vec<Mat<f32>>> {
        let inverse = |g: &Mat<f64>| {
            let n = g.nrows();
            let sum = Mat::from_fn(n, n, |i, j| g[(i, j)] + if i == j { rho } else { 0.0 });
            let inverse = sum.llt(Side::Lower).ok()?.inverse();
            Some(Mat::from_fn(n, n, |i, j| inverse[(i, j)] as f32))
        };
        self.grams.par_iter().map(inverse).collect()
    }
}

/// The alternating direction method: weights `free` that are best but for a pull of strength
/// `rho` towards weights `sparse` that have the zeros, and prices for where the two differ.
struct Alternation {
    free: Vec<f32>,
    sparse: Vec<f32>,
    price: Vec<f32>,
    mask: Mask,
}

impl Alternation {
    fn new(scaled: &Scaled) -> Alternation {
        Alternation {
            free: scaled.dense.clone(),
            sparse: scaled.dense.clone(),
            price: vec![0.0; scaled.dense.len()],
            mask: Vec::new(),
        }
    }

    /// One round at one strength. Says how many elements of the mask changed.
    fn step(
        &mut self,
        scaled: &Scaled,
        inverses: &[Mat<f32>],
        rho: f32,
        (pattern, grid): (Pattern, &Grid),
        zeros: usize,
    ) -> usize {
        let cols = grid.cols.max(1);
        let block = (cols * grid.rows).max(1);
        let free = self.free.par_chunks_mut(block);
        let given = (scaled.wanted.par_chunks(block))
            .zip(self.sparse.par_chunks(block))
            .zip(self.price.par_chunks(block));
        free.zip(given)
            .zip(inverses)
            .for_each(|((free, given), inverse)| {
                let ((wanted, sparse), price) = given;
                let chunk = ROWS * cols;
                let parts = (wanted.par_chunks(chunk))
                    .zip(sparse.par_chunks(chunk))
                    .zip(price.par_chunks(chunk));
                free.par_chunks_mut(chunk)
                    .zip(parts)
                    .for_each(|(free, parts)| {
                        let ((wanted, sparse), price) = parts;
                        let pulled = wanted.iter().zip(sparse.iter().zip(price));
                        let rhs: Vec<f32> = pulled.map(|(b, (d, v))| b + rho * (d - v)).collect();
                        let rows = rhs.len() / cols;
                        matmul(
                            MatMut::from_column_major_slice_mut(free, cols, rows),
                            Accum::Replace,
                            inverse.as_ref(),
                            MatRef::from_column_major_slice(&rhs, cols, rows),
                            1.0f32,
                            Par::Seq,
                        );
                    });
            });
        let sum = |(p, v): (&f32, &f32)| p + v;
        let squares: Vec<f32> = (self.free.iter().zip(&self.price))
            .map(|pair| sum(pair).powi(2))
            .collect();
        let new = mask(pattern, grid, &squares, zeros);
        for (i, &stays) in new.iter().enumerate() {
            let both = self.free[i] + self.price[i];
            self.sparse[i] = if stays { both } else { 0.0 };
            self.price[i] = both - self.sparse[i];
        }
        let changed = new.iter().zip(&self.mask).filter(|(a, b)| a != b).count();
        let changed = if self.mask.is_empty() {
            new.len()
        } else {
            changed
        };
        self.mask = new;
        changed
    }
}

/// The zeros with which a layer's outputs can be rebuilt best. `None` where numbers fail.
pub(super) fn choose(
    systems: &[System],
    grid: &Grid,
    pattern: Pattern,
    zeros: usize,
    cx: &PassContext<'_>,
) -> Result<Option<Mask>, PassError> {
    // A weak pull at first lets weights stand in for others; a strong one makes up its mind.
    const STRENGTHS: usize = 8;
    const ROUNDS: usize = 5;
    let scaled = Scaled::new(systems);
    let mut state = Alternation::new(&scaled);
    let mut rho = 0.1f64;
    for _ in 0..STRENGTHS {
        let Some(inverses) = scaled.inverses(rho) else {
            return Ok(None);
        };
        let mut changed = 0;
        for _ in 0..ROUNDS {
            cx.check_cancelled()?;
            changed = state.step(&scaled, &inverses, rho as f32, (pattern, grid), zeros);
        }
        if changed == 0 {
            break;
        }
        rho *= 1.6;
    }
    let finite = state.free.iter().all(|x| x.is_finite());
    Ok(finite.then_some(state.mask))
}

/// The zeros at several shares, chosen in fewer rounds than by [`choose`]. `None` where numbers
/// fail.
pub(super) fn masks(
    systems: &[System],
    grid: &Grid,
    pattern: Pattern,
    shares: &[f64],
    cx: &PassContext<'_>,
) -> Result<Option<Vec<Mask>>, PassError> {
    const RHOS: [f64; 3] = [0.15, 0.5, 1.5];
    const ROUNDS: usize = 6;
    let scaled = Scaled::new(systems);
    let inverses = RHOS.iter().map(|&rho| scaled.inverses(rho));
    let Some(inverses) = inverses.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let mut out = Vec::new();
    for &share in shares {
        cx.check_cancelled()?;
        let zeros = (share * grid.len() as f64) as usize;
        let mut state = Alternation::new(&scaled);
        for (rho, inverses) in RHOS.iter().zip(&inverses) {
            for _ in 0..ROUNDS {
                state.step(&scaled, inverses, *rho as f32, (pattern, grid), zeros);
            }
        }
        out.push(state.mask);
    }
    Ok(Some(out))
}

/// Some blocks of a layer and some rows of each, evenly spread, which stand for all.
pub(super) struct Sampled {
    blocks: Vec<usize>,
    rows: Vec<usize>,
    pub(super) grid: Grid,
}

impl Sampled {
    /// About so many rows, over at most eight blocks.
    pub(super) fn new(grid: &Grid, rows: usize) -> Sampled {
        const BLOCKS: usize = 8;
        let blocks = grid.blocks.min(BLOCKS);
        let rows = (rows / blocks.max(1)).clamp(1, grid.rows.max(1));
        Sampled {
            blocks: (0..blocks).map(|b| b * grid.blocks / blocks).collect(),
            rows: (0..rows).map(|i| i * grid.rows / rows).collect(),
            grid: grid.with_rows(blocks, rows),
        }
    }

    /// What belongs to the blocks.
    pub(super) fn blocks<T: Clone>(&self, all: &[T]) -> Vec<T> {
        let picked = self.blocks.iter();
        picked.filter_map(|&b| all.get(b).cloned()).collect()
    }

    /// The rows of weights, `rows` x `cols` by block.
    pub(super) fn weights(&self, all: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let picked = self.blocks.iter().filter_map(|&b| all.get(b));
        picked
            .map(|w| Mat::from_fn(self.rows.len(), w.ncols(), |i, j| w[(self.rows[i], j)]))
            .collect()
    }
}

/// Refitted weights of all blocks, and the error over the outputs' second moment.
pub(super) fn fit(systems: &[System], grid: &Grid, mask: &[bool]) -> Option<(Vec<Mat<f64>>, f64)> {
    let block = (grid.rows * grid.cols).max(1);
    let mut sums = (0.0, 0.0);
    let mut out = Vec::new();
    for (system, mask) in systems.iter().zip(mask.chunks(block)) {
        let weights = system.refit(mask)?;
        let (error, all) = system.error(weights.as_ref());
        sums = (sums.0 + error, sums.1 + all);
        out.push(weights);
    }
    let relative = if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 };
    Some((out, relative))
}

/// Whether optimal brain surgeon is cheap enough for a layer: multiplications, about.
pub(super) fn surgeon_is_cheap(grid: &Grid) -> bool {
    const MOST: f64 = 2e9;
    let cols = grid.cols as f64;
    grid.blocks as f64 * grid.rows as f64 * cols.powi(3) / 3.0 <= MOST
}

/// What taking weights out of one row costs: the inputs in the order in which they go, and the
/// error that each adds.
struct Trace {
    order: Vec<usize>,
    cost: Vec<f64>,
}

/// The zeros that optimal brain surgeon chooses: of every row one weight after the other goes,
/// the others making up for it; then all rows give up what costs them least, so many in all.
/// For single weights only. `None` where numbers fail.
pub(super) fn surgeon(systems: &[System], grid: &Grid, zeros: usize) -> Option<Mask> {
    let traces: Vec<Vec<Trace>> = systems
        .iter()
        .map(|s| {
            let inverse = s.gram.llt(Side::Lower).ok()?.inverse();
            let rows = (0..grid.rows).into_par_iter();
            Some(rows.map(|row| trace(s, &inverse, row)).collect())
        })
        .collect::<Option<_>>()?;
    // Costs rise along a row, so the cheapest of all are the first of each row.
    let mut all: Vec<(f64, usize)> = Vec::with_capacity(grid.len());
    for (row, trace) in traces.iter().flatten().enumerate() {
        let mut most = 0.0f64;
        for &cost in &trace.cost {
            most = most.max(cost);
            all.push((most, row));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut taken = vec![0usize; traces.iter().map(Vec::len).sum()];
    for (_, row) in all.into_iter().take(zeros) {
        taken[row] += 1;
    }
    let mut mask = vec![true; grid.len()];
    for (row, (trace, taken)) in traces.iter().flatten().zip(taken).enumerate() {
        for &col in trace.order.iter().take(taken) {
            mask[row * grid.cols + col] = false;
        }
    }
    Some(mask)
}

fn trace(system: &System, inverse: &Mat<f64>, row: usize) -> Trace {
    let n = inverse.nrows();
    let mut weights: Vec<f64> = system.dense.col(row).iter().copied().collect();
    let mut inverse = inverse.clone();
    // What has not gone yet, in the order of the inputs.
    let mut left: Vec<usize> = (0..n).collect();
    let mut out = Trace {
        order: Vec::with_capacity(n),
        cost: Vec::with_capacity(n),
    };
    while !left.is_empty() {
        let cost = |&c: &usize| weights[c].powi(2) / inverse[(c, c)].max(f64::MIN_POSITIVE);
        let cheapest = left
            .iter()
            .enumerate()
            .map(|(at, c)| (cost(c), at))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((cost, at)) = cheapest else { break };
        let gone = left.remove(at);
        out.order.push(gone);
        out.cost.push(cost);
        let pivot = inverse[(gone, gone)].max(f64::MIN_POSITIVE);
        let column: Vec<f64> = left.iter().map(|&c| inverse[(c, gone)]).collect();
        let share = weights[gone] / pivot;
        for (&c, x) in left.iter().zip(&column) {
            weights[c] -= share * x;
        }
        for (&j, y) in left.iter().zip(&column) {
            let y = y / pivot;
            let target = inverse.col_mut(j);
            let target = target.try_as_col_major_mut().map(|c| c.as_slice_mut());
            if let Some(target) = target {
                for (&i, x) in left.iter().zip(&column) {
                    target[i] -= x * y;
                }
            }
        }
    }
    out
}

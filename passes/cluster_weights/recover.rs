//! Codes and centroids that come nearest to what the layer gave before, on calibration data.
//!
//! The error of a layer's output is a quadratic form in the second moments of its inputs.
//! Weights are coded input by input, and what rounding one of them does to the outputs is made up
//! for by those still to come (Frantar et al., "GPTQ", 2023; the idea is from Hassibi and Stork,
//! "Second order derivatives for network pruning", 1992). Then, the codes fixed, scales and
//! centroids are fitted by least squares, and codes are changed one at a time (Behdin et al.,
//! "QuantEase", 2023), in turns. The target is not
//! the old weight: it is the weight that gives the old outputs from the inputs that the
//! layer gets now, from layers clustered before it.

use faer::linalg::solvers::Solve;
use faer::{Mat, MatRef, Side};
use paring_ir::{DType, PassError, Tensor};
use rayon::prelude::*;

use super::fit::{self, Chooser, Coded, Importance, Order, Settings};
use crate::layers::Layer;
use crate::moments::Moments;
use crate::solve::{Refit, damped, mean_diagonal, ridge_solve};

/// The share of the mean of the diagonal that is added to the second moments: it keeps inputs
/// that hardly vary in the data from deciding, and is what the GPTQ paper found to work.
const DAMPING: f64 = 0.01;

/// So many inputs are coded before what they left is passed on to all that follow.
const BLOCK: usize = 64;

/// Rows whose errors are worked on together.
const ROWS: usize = 64;

/// Multiply-adds of one fit of centroids; beyond, it looks at rows spread evenly over the layer.
const FIT_WORK: usize = 1 << 31;

/// Rounds of fitting scales and centroids to the codes, and of finding better codes for them.
const ROUNDS: usize = 3;

/// What a bit counts in mean squared errors once centroids are where they compress well: with fine
/// codes a bit more leaves a quarter of the error, so the slope is `2 ln 2` errors for each bit.
const SLOPE: f64 = 1.4;

/// Passes over all inputs that look for better codes, one at a time.
const SWEEPS: usize = 2;

/// A layer to recover.
pub(super) struct Task<'a> {
    pub(super) layer: &'a Layer,
    pub(super) order: &'a Order,
    /// The layer's weight in the reference.
    pub(super) target: &'a Tensor,
    pub(super) moments: &'a Moments,
    pub(super) settings: Settings,
    /// Whether a bias takes up what is off in the mean.
    pub(super) bias: bool,
}

/// What came out.
pub(super) struct Recovered {
    pub(super) coded: Coded,
    /// What to add to the bias, one number for each row of each block; zeros without a bias.
    pub(super) bias: Vec<f64>,
    /// Signal over error of the layer's outputs in dB, on the calibration data.
    pub(super) sqnr: f64,
}

/// One block of the layer.
struct Block {
    /// The target of the weights, rows x columns.
    target: Mat<f64>,
    /// Second moments about the mean where a bias takes up the mean, damped.
    gram: Mat<f64>,
    /// The inputs by falling second moment.
    sequence: Vec<usize>,
    /// Of the inverse of the moments in this sequence, the upper triangular factor.
    factor: Mat<f64>,
}

/// `None` where the data says too little: moments that are not finite or can't be factorized.
pub(super) fn recover(task: &Task<'_>) -> Result<Option<Recovered>, PassError> {
    let layer = task.layer;
    let reference = layer.matrices(task.target)?;
    let blocks: Vec<usize> = (0..layer.blocks).collect();
    let blocks: Option<Vec<Block>> = blocks
        .into_par_iter()
        .map(|b| block(task, &reference, b))
        .collect();
    let Some(blocks) = blocks else {
        return Ok(None);
    };
    let work = Work::new(task, &blocks);
    let mut coded = work.start()?;
    let bits = (task.settings.entropy > 0.0).then(|| coded.bits_of_codes());
    coded.codes = work.code(&coded, None, 0.0);
    let free = work.layer_len() - work.zeros.iter().filter(|z| **z).count();
    let first = work.error(&coded);
    let price = match bits {
        Some(_) => SLOPE * first / free.max(1) as f64,
        None => 0.0,
    };
    let mut best: Option<(f64, f64, Coded)> = None;
    let mut keep = |coded: Coded| {
        let error = work.error(&coded);
        if error > fit::MOST_LOST * first.max(f64::MIN_POSITIVE) {
            return;
        }
        let cost = match price > 0.0 {
            true => error + price * coded.total_bits(),
            false => error,
        };
        if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
            best = Some((cost, error, coded));
        }
    };
    keep(coded.clone().rounded());
    if bits.is_some() {
        coded.codes = work.code(&coded, bits.as_deref(), price);
        keep(coded.clone().rounded());
    }
    for _ in 0..ROUNDS {
        work.fit_scales(&mut coded);
        work.fit_books(&mut coded);
        work.fit_scales(&mut coded);
        work.improve(&mut coded, price);
        keep(coded.clone().rounded());
    }
    let Some((_, error, coded)) = best else {
        return Ok(None);
    };
    Ok(Some(finish(task, &work, &reference, coded, error)))
}

fn finish(
    task: &Task<'_>,
    work: &Work<'_>,
    reference: &[Mat<f64>],
    coded: Coded,
    error: f64,
) -> Recovered {
    let made = work.matrices(&coded.decoded());
    let mut bias = Vec::new();
    let mut signal = 0.0;
    for (b, (made, target)) in made.iter().zip(reference).enumerate() {
        let refit = refit(task, target.as_ref());
        bias.extend(refit.bias(made, task.moments, b));
        let gram = &work.blocks[b].gram;
        signal += quadratic(work.blocks[b].target.as_ref(), gram.as_ref());
    }
    Recovered {
        coded,
        bias,
        sqnr: 10.0 * (signal / error.max(f64::MIN_POSITIVE)).log10(),
    }
}

fn refit<'a>(task: &Task<'_>, target: MatRef<'a, f64>) -> Refit<'a> {
    Refit {
        target,
        present: target,
        bias: task.bias,
        damping: DAMPING,
    }
}

/// The trace of `W G W^T`.
fn quadratic(w: MatRef<'_, f64>, gram: MatRef<'_, f64>) -> f64 {
    crate::solve::output_error(w, gram)
}

fn block(task: &Task<'_>, reference: &[Mat<f64>], b: usize) -> Option<Block> {
    let n = task.layer.cols;
    let raw = task.moments.gram.get(b)?;
    let mean = task.moments.mean.get(b)?;
    let off = |i: usize, j: usize| if task.bias { mean[i] * mean[j] } else { 0.0 };
    let central = Mat::from_fn(n, n, |i, j| raw[(i, j)] - off(i, j));
    let gram = damped(central.as_ref(), DAMPING);
    let target = match task.moments.reference {
        Some(_) => {
            refit(task, reference.get(b)?.as_ref())
                .dense(task.moments, b)?
                .weights
        }
        None => reference.get(b)?.clone(),
    };
    let mut sequence: Vec<usize> = (0..n).collect();
    sequence.sort_by(|&i, &j| gram[(j, j)].total_cmp(&gram[(i, i)]));
    let sorted = Mat::from_fn(n, n, |i, j| gram[(sequence[i], sequence[j])]);
    let identity = Mat::<f64>::identity(n, n);
    let inverse = ridge_solve(sorted.as_ref(), identity.as_ref(), 1e-9)?;
    let even = Mat::from_fn(n, n, |i, j| (inverse[(i, j)] + inverse[(j, i)]) / 2.0);
    let factor = even.llt(Side::Lower).ok()?.L().transpose().to_owned();
    Some(Block {
        target,
        gram,
        sequence,
        factor,
    })
}

/// What chooses codes out of each codebook.
fn choosers<'a>(coded: &'a Coded, bits: Option<&'a [Vec<f64>]>) -> Vec<Chooser<'a>> {
    let bits = |g: usize| bits.and_then(|all| all.get(g)).map(Vec::as_slice);
    let books = coded.books.iter().enumerate();
    books.map(|(g, b)| Chooser::new(b, bits(g))).collect()
}

/// A layer's blocks, and how its rows and columns belong to channels.
struct Work<'a> {
    task: &'a Task<'a>,
    blocks: &'a [Block],
    /// By block, row and column: the place of the element in the order by channel.
    width: usize,
    /// Zeros of the reference, by channel.
    zeros: Vec<bool>,
}

impl<'a> Work<'a> {
    fn new(task: &'a Task<'a>, blocks: &'a [Block]) -> Work<'a> {
        let mut work = Work {
            task,
            blocks,
            width: task.order.width(),
            zeros: Vec::new(),
        };
        if task.settings.keep_zeros {
            let memory = task.target.to_f64s().unwrap_or_default();
            let by_channel = task.order.by_channel(&memory);
            work.zeros = by_channel.iter().map(|&x| x == 0.0).collect();
        }
        work
    }

    /// The channel of a row, and the element of the channel in a column.
    fn place(&self, block: usize, row: usize, col: usize) -> (usize, usize) {
        let layer = self.task.layer;
        let per_block = self.task.order.channels() / layer.blocks.max(1);
        // The rows of a transposed convolution are channels x kernel.
        let taps = layer.rows / per_block.max(1);
        let channel = block * per_block + row / taps.max(1);
        (channel, col * taps + row % taps.max(1))
    }

    fn is_zero(&self, at: usize) -> bool {
        self.zeros.get(at).copied().unwrap_or(false)
    }

    /// Elements by channel as matrices.
    fn matrices(&self, by_channel: &[f64]) -> Vec<Mat<f64>> {
        let layer = self.task.layer;
        let matrix = |b: usize| {
            Mat::from_fn(layer.rows, layer.cols, |row, col| {
                let (c, e) = self.place(b, row, col);
                by_channel[c * self.width + e]
            })
        };
        (0..layer.blocks).map(matrix).collect()
    }

    /// Codebooks and scales of the target, each weight rounded by itself.
    fn start(&self) -> Result<Coded, PassError> {
        let layer = self.task.layer;
        let mut values = vec![0.0; layer.len()];
        let mut importance = Importance::default();
        for (b, block) in self.blocks.iter().enumerate() {
            let mut weights = vec![0.0; self.width];
            for col in 0..layer.cols {
                for row in 0..layer.rows {
                    let (c, e) = self.place(b, row, col);
                    let at = c * self.width + e;
                    weights[e] = block.gram[(col, col)];
                    let zero = self.is_zero(at);
                    values[at] = if zero { 0.0 } else { block.target[(row, col)] };
                }
            }
            importance.blocks.push(weights);
        }
        fit::fit(
            &values,
            self.width,
            self.dtype(),
            &importance,
            &self.task.settings,
        )
    }

    fn layer_len(&self) -> usize {
        self.task.layer.len()
    }

    fn dtype(&self) -> DType {
        self.task.target.dtype()
    }

    /// The squared error of the outputs, summed over them.
    fn error(&self, coded: &Coded) -> f64 {
        let made = self.matrices(&coded.decoded());
        let one = |(made, block): (&Mat<f64>, &Block)| {
            quadratic((made - &block.target).as_ref(), block.gram.as_ref())
        };
        made.iter().zip(self.blocks).map(one).sum()
    }

    /// Codes the weights input by input; with `bits`, what codes take counts at a price.
    fn code(&self, coded: &Coded, bits: Option<&[Vec<f64>]>, price: f64) -> Vec<u8> {
        let choosers = choosers(coded, bits);
        let rows = self.task.layer.rows;
        let chunks: Vec<(usize, usize)> = (0..self.blocks.len())
            .flat_map(|b| (0..rows).step_by(ROWS).map(move |row| (b, row)))
            .collect();
        let coded_rows: Vec<Vec<(usize, u8)>> = chunks
            .into_par_iter()
            .map(|(b, row)| {
                let rows = row..(row + ROWS).min(rows);
                self.code_rows(coded, &choosers, b, rows, price)
            })
            .collect();
        let mut codes = vec![0u8; self.task.layer.len()];
        for (at, code) in coded_rows.into_iter().flatten() {
            codes[at] = code;
        }
        codes
    }

    /// Codes some rows of a block: each code with its place by channel.
    fn code_rows(
        &self,
        coded: &Coded,
        choosers: &[Chooser<'_>],
        b: usize,
        rows: std::ops::Range<usize>,
        price: f64,
    ) -> Vec<(usize, u8)> {
        let block = &self.blocks[b];
        let (n, count) = (self.task.layer.cols, rows.len());
        let mut left = Mat::from_fn(count, n, |r, i| {
            block.target[(rows.start + r, block.sequence[i])]
        });
        let mut out = Vec::with_capacity(count * n);
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let mut errors = Mat::<f64>::zeros(count, end - start);
            for i in start..end {
                let pivot = block.factor[(i, i)];
                for r in 0..count {
                    let (c, e) = self.place(b, rows.start + r, block.sequence[i]);
                    let (at, group) = (c * self.width + e, c / coded.group);
                    let (book, scale) = (&coded.books[group], coded.scale(c));
                    let x = left[(r, i)];
                    let code = match self.is_zero(at) {
                        true => choosers[group].nearest(0.0),
                        false => {
                            let unit = scale / pivot;
                            choosers[group].cheapest(x / scale, price / (unit * unit))
                        }
                    };
                    errors[(r, i - start)] = (x - book[usize::from(code)] * scale) / pivot;
                    out.push((at, code));
                }
                let error = errors.col(i - start).to_owned();
                for j in i + 1..end {
                    let share = block.factor[(i, j)];
                    for (x, e) in left.col_mut(j).iter_mut().zip(error.iter()) {
                        *x -= e * share;
                    }
                }
            }
            let rest = n - end;
            let factor = block.factor.submatrix(start, end, end - start, rest);
            let passed = &errors * factor;
            let mut rest = left.subcols_mut(end, rest);
            rest -= passed;
        }
        out
    }

    /// Changes codes one at a time where that makes the error of the outputs less, counting what
    /// the codes take after compression at a price for each bit.
    fn improve(&self, coded: &mut Coded, price: f64) {
        let bits = (price > 0.0).then(|| coded.bits_of_codes());
        let choosers = choosers(coded, bits.as_deref());
        let rows = self.task.layer.rows;
        let chunks: Vec<(usize, usize)> = (0..self.blocks.len())
            .flat_map(|b| (0..rows).step_by(ROWS).map(move |row| (b, row)))
            .collect();
        let changed: Vec<Vec<(usize, u8)>> = chunks
            .into_par_iter()
            .map(|(b, row)| {
                let rows = row..(row + ROWS).min(rows);
                self.improve_rows(coded, &choosers, b, rows, price)
            })
            .collect();
        for (at, code) in changed.into_iter().flatten() {
            coded.codes[at] = code;
        }
    }

    /// Better codes for some rows of a block: each with its place by channel.
    fn improve_rows(
        &self,
        coded: &Coded,
        choosers: &[Chooser<'_>],
        b: usize,
        rows: std::ops::Range<usize>,
        price: f64,
    ) -> Vec<(usize, u8)> {
        let (block, n) = (&self.blocks[b], self.task.layer.cols);
        // What stands where: places by channel, and codes.
        let mut all: Vec<(usize, u8)> = (rows.clone())
            .flat_map(|row| (0..n).map(move |i| (row, i)))
            .map(|(row, i)| {
                let (c, e) = self.place(b, row, i);
                let at = c * self.width + e;
                (at, coded.codes[at])
            })
            .collect();
        let value = |(at, code): (usize, u8)| {
            let c = at / self.width;
            coded.books[c / coded.group][usize::from(code)] * coded.scale(c)
        };
        let off = Mat::from_fn(n, rows.len(), |i, r| {
            value(all[r * n + i]) - block.target[(rows.start + r, i)]
        });
        // The slope of the error by each weight, a column for each row.
        let mut slopes = &block.gram * off;
        for _ in 0..SWEEPS {
            for (r, row) in all.chunks_mut(n.max(1)).enumerate() {
                for &i in &block.sequence {
                    let (at, old) = row[i];
                    if self.is_zero(at) {
                        continue;
                    }
                    let (c, steep) = (at / self.width, block.gram[(i, i)]);
                    let scale = coded.scale(c);
                    let wanted = (value(row[i]) - slopes[(i, r)] / steep) / scale;
                    let chooser = &choosers[c / coded.group];
                    let code = chooser.cheapest(wanted, price / (steep * scale * scale));
                    if code == old {
                        continue;
                    }
                    let step = value((at, code)) - value((at, old));
                    for (slope, g) in slopes.col_mut(r).iter_mut().zip(block.gram.col(i).iter()) {
                        *slope += step * g;
                    }
                    row[i].1 = code;
                }
            }
        }
        all
    }

    /// Scales that fit best with these codes and centroids.
    fn fit_scales(&self, coded: &mut Coded) {
        let Some(old) = coded.scales.clone() else {
            return;
        };
        let unscaled = Coded {
            scales: None,
            ..coded.clone()
        };
        let made = self.matrices(&unscaled.decoded());
        let channels = old.len();
        let (mut dots, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
        for (b, (made, block)) in made.iter().zip(self.blocks).enumerate() {
            let product = made * &block.gram;
            for row in 0..made.nrows() {
                let (c, _) = self.place(b, row, 0);
                for col in 0..made.ncols() {
                    dots[c] += product[(row, col)] * block.target[(row, col)];
                    squares[c] += product[(row, col)] * made[(row, col)];
                }
            }
        }
        let fitted = dots.iter().zip(&squares).zip(&old);
        let fitted = fitted.map(|((dot, square), &old)| {
            let scale = dot / square;
            // A scale that turns around or vanishes comes from too little data.
            let near = scale.is_finite() && scale > 0.1 * old && scale < 10.0 * old;
            if near { scale } else { old }
        });
        coded.scales = Some(fitted.collect());
    }

    /// Centroids that fit best with these codes and scales; those of zero stay.
    fn fit_books(&self, coded: &mut Coded) {
        if coded.shared {
            return;
        }
        let groups: Vec<usize> = (0..coded.books.len()).collect();
        let fitted = groups.into_par_iter().map(|g| {
            let fitted = self.fit_book(coded, g);
            fitted.unwrap_or_else(|| coded.books[g].clone())
        });
        coded.books = fitted.collect();
        coded.sort();
    }

    fn fit_book(&self, coded: &Coded, group: usize) -> Option<Vec<f64>> {
        let layer = self.task.layer;
        let old = &coded.books[group];
        let k = old.len();
        let fixed = |i: usize| self.task.settings.keep_zeros && old[i] == 0.0;
        let free: Vec<usize> = (0..k).filter(|&i| !fixed(i)).collect();
        let (mut a, mut rhs) = (Mat::<f64>::zeros(k, k), vec![0.0; k]);
        let rows = self.rows_of(coded, group);
        let work = rows.len().saturating_mul(layer.cols * layer.cols);
        let stride = work.div_ceil(FIT_WORK).max(1);
        for &(b, row) in rows.iter().step_by(stride) {
            self.add_row(coded, (b, row), &mut a, &mut rhs);
        }
        let f = free.len();
        let part = Mat::from_fn(f, f, |i, j| a[(free[i], free[j])]);
        // Where the data says nothing about a centroid it stays.
        let hold = 1e-6 * mean_diagonal(part.as_ref());
        let held = Mat::from_fn(f, f, |i, j| part[(i, j)] + if i == j { hold } else { 0.0 });
        let wanted = Mat::from_fn(f, 1, |i, _| rhs[free[i]] + hold * old[free[i]]);
        let solved = held.llt(Side::Lower).ok()?.solve(&wanted);
        let mut book = old.clone();
        for (i, &at) in free.iter().enumerate() {
            book[at] = solved[(i, 0)];
        }
        book.iter().all(|x| x.is_finite()).then_some(book)
    }

    /// The blocks and rows whose channels share a codebook.
    fn rows_of(&self, coded: &Coded, group: usize) -> Vec<(usize, usize)> {
        let layer = self.task.layer;
        (0..layer.blocks)
            .flat_map(|b| (0..layer.rows).map(move |row| (b, row)))
            .filter(|&(b, row)| self.place(b, row, 0).0 / coded.group == group)
            .collect()
    }

    /// Adds one row to the normal equations of its codebook.
    fn add_row(&self, coded: &Coded, (b, row): (usize, usize), a: &mut Mat<f64>, rhs: &mut [f64]) {
        let block = &self.blocks[b];
        let (n, k) = (self.task.layer.cols, rhs.len());
        let places: Vec<(usize, usize)> = (0..n).map(|col| self.place(b, row, col)).collect();
        let code = |col: usize| {
            let (c, e) = places[col];
            usize::from(coded.codes[c * self.width + e])
        };
        let codes: Vec<usize> = (0..n).map(code).collect();
        let scale = places.first().map_or(1.0, |&(c, _)| coded.scale(c));
        let mut sums = vec![0.0; k];
        for (j, &own) in codes.iter().enumerate() {
            sums.fill(0.0);
            let column = block.gram.col(j);
            let mut target = 0.0;
            for (i, &g) in column.iter().enumerate() {
                sums[codes[i]] += g;
                target += g * block.target[(row, i)];
            }
            for (i, s) in sums.iter().enumerate() {
                a[(i, own)] += scale * scale * s;
            }
            rhs[own] += scale * target;
        }
    }
}

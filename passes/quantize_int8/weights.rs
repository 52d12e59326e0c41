//! Weights as bytes: the scales of least error, and rounding that learns from the inputs.
//!
//! The error that rounding makes in the outputs of a layer is `tr(D G D^T)`, where `D` is the
//! change of the weights and `G` the second moments of the inputs. Learned rounding lowers it in
//! two ways: column by column, what one column's rounding did is fed back into those that are
//! still to come (Frantar et al., "GPTQ", 2023, after Hassibi and Stork's optimal brain surgeon),
//! then coordinate by coordinate: every byte moves to where the error is least, the others held.
//!
//! Where an engine adds the products of two neighbours in 16 bits, `255 a + 255 b` must stay within
//! -32768 and 32767, so `a + b` within -128 and 128 (see `Bounds`). Seven bits for every weight
//! would do; bounds by pair leave eight bits to all whose neighbour is small or of the other sign.

use faer::linalg::solvers::DenseSolveCore;
use faer::{Mat, MatRef, Side};
use paring_ir::{PassError, Tensor};

use super::profile::{Granularity, ReduceRange};
use crate::layers::Layer;
use crate::solve::damped;

/// How weights become bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// The largest byte; the smallest is its negative.
    pub(crate) limit: f64,
    /// Whether each output has a scale of its own.
    pub(crate) per_channel: bool,
    /// Whether the bytes of two neighbours add up to no more than [`PAIR`].
    pub(crate) pairs: bool,
}

impl Grid {
    /// The grid of an engine that is, or is not, known to saturate.
    pub(crate) fn new(range: ReduceRange, granularity: Granularity) -> Grid {
        Grid {
            limit: match range {
                ReduceRange::SevenBits => 63.0,
                ReduceRange::Full | ReduceRange::Pairs => 127.0,
            },
            per_channel: granularity == Granularity::PerChannel,
            pairs: range == ReduceRange::Pairs,
        }
    }

    /// The grid of these weights, which decide where the granularity leaves it open.
    pub(crate) fn of(range: ReduceRange, granularity: Granularity, weights: &[Mat<f64>]) -> Grid {
        let mut grid = Grid::new(range, granularity);
        if granularity == Granularity::Mixed {
            let none = vec![None; weights.first().map_or(0, Mat::ncols)];
            let one = nearest(weights, None, grid, &none, &[]);
            let (all, worst) = one.sqnr_db(weights);
            grid.per_channel = !bears_one_scale(all, worst, MIN_WEIGHT_SQNR_DB);
        }
        grid
    }

    /// For every column of a layer, the column whose product is added to its own in 16 bits.
    pub(crate) fn partners(&self, layer: &Layer) -> Vec<Option<usize>> {
        if self.pairs {
            layer.neighbours()
        } else {
            vec![None; layer.cols]
        }
    }
}

/// What two neighbours may add up to: twice 8 bits of activation times this fit 16 bits.
const PAIR: f64 = 128.0;

/// The numbers that each weight of a row may become.
///
/// Two neighbours share what they may add up to, each way, so that the least is cut off of the
/// weights wanted: the nearest point with `a + b <= PAIR` to `(a, b)` outside of it takes as much
/// off both.
struct Bounds<'a> {
    limit: f64,
    partners: &'a [Option<usize>],
}

impl Bounds<'_> {
    /// The least and the largest number for one column, where `wanted` are the weights over
    /// their scale.
    fn of(&self, wanted: impl Fn(usize) -> f64, col: usize) -> (f64, f64) {
        let Some(partner) = self.partners.get(col).copied().flatten() else {
            return (-self.limit, self.limit);
        };
        // Half of the difference, rounded so that the two shares add up to the whole.
        let half = (wanted(col.min(partner)) - wanted(col.max(partner))) / 2.0;
        let most = (PAIR / 2.0 - 1.0).min(self.limit - PAIR / 2.0);
        let half = half.round_ties_even().clamp(-most, most);
        let own = if col < partner { half } else { -half };
        (own - PAIR / 2.0, own + PAIR / 2.0)
    }

    fn round(&self, wanted: impl Fn(usize) -> f64, col: usize) -> f64 {
        let (low, high) = self.of(&wanted, col);
        wanted(col).round_ties_even().clamp(low, high)
    }
}

/// A layer's weights as whole numbers and scales.
#[derive(Clone, Debug)]
pub(crate) struct Rounded {
    /// By block, `rows` x `cols`: whole numbers within the grid.
    pub(crate) numbers: Vec<Mat<f64>>,
    /// By block and row.
    pub(crate) scales: Vec<Vec<f64>>,
}

/// The share of the mean diagonal that is added to moments of so many columns: what the data says
/// little about is not trusted to make up for errors elsewhere. Few columns say little about many
/// inputs.
pub(crate) fn damping(count: u64, inputs: usize) -> f64 {
    0.01 + 0.1 * inputs as f64 / (count as f64).max(1.0)
}

/// Rounds of moving byte by byte.
const SWEEPS: usize = 4;
/// Scales that are tried for each row.
const SCALES: u32 = 40;
/// The least scale: weights that are all zero have one too.
const LEAST_SCALE: f64 = 1e-12;

/// The least SQNR of a weight with one scale, in dB: bytes for the activations add about as much
/// noise.
pub(crate) const MIN_WEIGHT_SQNR_DB: f64 = 30.0;
/// How much worse than the whole weight its worst output may be.
const WORST_OUTPUT_DB: f64 = 10.0;
/// No noise at all.
pub(crate) const EXACT_DB: f64 = 300.0;

/// Whether a weight is accurate enough with one scale, whose SQNR is so much, and that of its worst
/// output, in dB.
pub(crate) fn bears_one_scale(sqnr_db: f64, worst_db: f64, least: f64) -> bool {
    sqnr_db >= least && worst_db >= least - WORST_OUTPUT_DB
}

/// Signal over noise, in dB. What has no signal has nothing to lose.
pub(crate) fn decibels(signal: f64, noise: f64) -> f64 {
    match noise {
        0.0 => EXACT_DB,
        _ if signal == 0.0 => EXACT_DB,
        _ => 10.0 * (signal / noise).log10(),
    }
}

impl Rounded {
    /// Signal over the noise of rounding, in dB: of all weights, and of the worst row.
    fn sqnr_db(&self, weights: &[Mat<f64>]) -> (f64, f64) {
        let (mut signal, mut noise, mut worst) = (0.0, 0.0, EXACT_DB);
        for (b, w) in weights.iter().enumerate() {
            let rounded = self.weights(b);
            for (exact, found) in w.row_iter().zip(rounded.row_iter()) {
                let s: f64 = exact.iter().map(|x| x * x).sum();
                let pairs = exact.iter().zip(found.iter());
                let n: f64 = pairs.map(|(x, y)| (x - y) * (x - y)).sum();
                (signal, noise, worst) = (signal + s, noise + n, decibels(s, n).min(worst));
            }
        }
        (decibels(signal, noise), worst)
    }

    /// The weights that the bytes stand for, of one block.
    pub(crate) fn weights(&self, block: usize) -> Mat<f64> {
        let (numbers, scales) = (&self.numbers[block], &self.scales[block]);
        Mat::from_fn(numbers.nrows(), numbers.ncols(), |r, c| {
            numbers[(r, c)] * scales[r]
        })
    }
}

/// Scales of least squared error, each input weighted by its second moment where that is known;
/// every weight becomes the nearest number.
pub(crate) fn nearest(
    weights: &[Mat<f64>],
    grams: Option<&[Mat<f64>]>,
    grid: Grid,
    partners: &[Option<usize>],
    least: &[Vec<f64>],
) -> Rounded {
    let limit = grid.limit;
    let bounds = Bounds { limit, partners };
    let one: Vec<f64> = match grid.per_channel {
        true => Vec::new(),
        false => vec![shared_scale(weights, grams, &bounds)],
    };
    let mut out = Rounded {
        numbers: Vec::new(),
        scales: Vec::new(),
    };
    for (b, w) in weights.iter().enumerate() {
        let importance = importance(grams.map(|g| g[b].as_ref()), w.ncols());
        let scales: Vec<f64> = (0..w.nrows())
            .map(|r| {
                let scale = match one.first() {
                    Some(&s) => s,
                    None => best_scale(&[row_of(w, r, &importance)], &bounds),
                };
                scale.max(least.get(b).and_then(|l| l.get(r)).copied().unwrap_or(0.0))
            })
            .collect();
        let number = |r: usize, c: usize| bounds.round(|c| w[(r, c)] / scales[r], c);
        out.numbers.push(Mat::from_fn(w.nrows(), w.ncols(), number));
        out.scales.push(scales);
    }
    out
}

fn importance(gram: Option<MatRef<'_, f64>>, cols: usize) -> Vec<f64> {
    match gram {
        Some(g) => {
            let mean = crate::solve::mean_diagonal(g);
            (0..cols).map(|i| g[(i, i)] / mean + 1e-3).collect()
        }
        None => vec![1.0; cols],
    }
}

fn row_of(w: &Mat<f64>, r: usize, importance: &[f64]) -> Vec<(f64, f64)> {
    let row = importance.iter().enumerate();
    row.map(|(c, &i)| (w[(r, c)], i)).collect()
}

fn shared_scale(weights: &[Mat<f64>], grams: Option<&[Mat<f64>]>, bounds: &Bounds<'_>) -> f64 {
    let mut rows = Vec::new();
    for (b, w) in weights.iter().enumerate() {
        let importance = importance(grams.map(|g| g[b].as_ref()), w.ncols());
        rows.extend((0..w.nrows()).map(|r| row_of(w, r, &importance)));
    }
    best_scale(&rows, bounds)
}

/// The scale with the least weighted squared error, from that at which nothing is cut off down to
/// 0.6 of that which covers the largest weight.
fn best_scale(rows: &[Vec<(f64, f64)>], bounds: &Bounds<'_>) -> f64 {
    let all = || rows.iter().flatten();
    let largest = all().fold(0.0f64, |m, (w, _)| m.max(w.abs()));
    if largest <= 0.0 {
        return LEAST_SCALE;
    }
    let error = |scale: f64| -> f64 {
        let of_row = |row: &Vec<(f64, f64)>| -> f64 {
            let wanted = |c: usize| row[c].0 / scale;
            let of = |(c, &(w, i)): (usize, &(f64, f64))| {
                i * (w - bounds.round(wanted, c) * scale).powi(2)
            };
            row.iter().enumerate().map(of).sum()
        };
        rows.iter().map(of_row).sum()
    };
    let sum = |row: &Vec<(f64, f64)>| {
        let both =
            |(c, p): (usize, &Option<usize>)| Some((row.get(c)?.0 + row.get((*p)?)?.0).abs());
        let sums = bounds.partners.iter().enumerate().filter_map(both);
        sums.fold(0.0f64, f64::max)
    };
    let whole = largest / bounds.limit;
    let widest = rows.iter().map(sum).fold(whole * PAIR, f64::max) / PAIR;
    let mut best = (error(widest), widest);
    for step in 1..=SCALES {
        let share = f64::from(step) / f64::from(SCALES);
        let scale = widest + (0.6 * whole - widest) * share;
        let e = error(scale);
        if e < best.0 {
            best = (e, scale);
        }
    }
    best.1.max(LEAST_SCALE)
}

/// Rounds one block so that the outputs change least. `target` are the weights wanted.
pub(crate) fn learned(
    target: &Mat<f64>,
    gram: &Mat<f64>,
    numbers: &mut Mat<f64>,
    scales: &[f64],
    (grid, partners): (Grid, &[Option<usize>]),
    damping: f64,
) {
    let limit = grid.limit;
    let bounds = Bounds { limit, partners };
    let regular = damped(gram.as_ref(), damping);
    let before = errors(target, numbers, scales, &regular);
    if let Some(fed_back) = feed_back(target, &regular, scales, &bounds) {
        let after = errors(target, &fed_back, scales, &regular);
        for r in 0..numbers.nrows() {
            if after[r] < before[r] {
                for c in 0..numbers.ncols() {
                    numbers[(r, c)] = fed_back[(r, c)];
                }
            }
        }
    }
    for (r, &scale) in scales.iter().enumerate().take(numbers.nrows()) {
        descend(target, &regular, numbers, r, scale, &bounds);
    }
}

fn errors(target: &Mat<f64>, numbers: &Mat<f64>, scales: &[f64], gram: &Mat<f64>) -> Vec<f64> {
    let change = Mat::from_fn(target.nrows(), target.ncols(), |r, c| {
        target[(r, c)] - numbers[(r, c)] * scales[r]
    });
    crate::solve::row_errors(change.as_ref(), gram.as_ref())
}

/// Error feedback along the columns, those of the largest moments first.
fn feed_back(
    target: &Mat<f64>,
    gram: &Mat<f64>,
    scales: &[f64],
    bounds: &Bounds<'_>,
) -> Option<Mat<f64>> {
    let (rows, cols) = (target.nrows(), target.ncols());
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by(|&a, &b| gram[(b, b)].total_cmp(&gram[(a, a)]).then(a.cmp(&b)));
    let permuted = Mat::from_fn(cols, cols, |i, j| gram[(order[i], order[j])]);
    let inverse = permuted.llt(Side::Lower).ok()?.inverse();
    // Row j of the upper factor of the inverse says how column j's error spreads on.
    let factor = inverse.llt(Side::Lower).ok()?;
    let lower = factor.L();
    let mut w = Mat::from_fn(rows, cols, |r, c| target[(r, order[c])]);
    let mut out = Mat::zeros(rows, cols);
    let mut error = vec![0.0; rows];
    for j in 0..cols {
        let pivot = lower[(j, j)];
        for r in 0..rows {
            let (low, high) = bounds.of(|c| target[(r, c)] / scales[r], order[j]);
            let q = (w[(r, j)] / scales[r]).round_ties_even().clamp(low, high);
            out[(r, order[j])] = q;
            error[r] = (w[(r, j)] - q * scales[r]) / pivot;
        }
        for k in j + 1..cols {
            let share = lower[(k, j)];
            if share == 0.0 {
                continue;
            }
            for (x, e) in w.col_mut(k).iter_mut().zip(&error) {
                *x -= e * share;
            }
        }
    }
    Some(out)
}

/// Moves each byte of a row to where the error is least while the others stay.
fn descend(
    target: &Mat<f64>,
    gram: &Mat<f64>,
    numbers: &mut Mat<f64>,
    row: usize,
    scale: f64,
    bounds: &Bounds<'_>,
) {
    let cols = target.ncols();
    let ranges: Vec<(f64, f64)> = (0..cols)
        .map(|c| bounds.of(|c| target[(row, c)] / scale, c))
        .collect();
    let change: Vec<f64> = (0..cols)
        .map(|c| numbers[(row, c)] * scale - target[(row, c)])
        .collect();
    let mut slope = vec![0.0; cols];
    for (c, &d) in change.iter().enumerate() {
        for (s, g) in slope.iter_mut().zip(gram.col(c).iter()) {
            *s += d * g;
        }
    }
    for _ in 0..SWEEPS {
        let mut moved = false;
        for c in 0..cols {
            let curve = gram[(c, c)];
            if curve <= 0.0 {
                continue;
            }
            let old = numbers[(row, c)];
            let new = (old - slope[c] / (curve * scale)).round_ties_even();
            let new = new.clamp(ranges[c].0, ranges[c].1);
            let step = (new - old) * scale;
            // The gain must be real, or rounding would move bytes back and forth.
            if new != old && step * slope[c] + 0.5 * step * step * curve < -1e-15 * curve {
                numbers[(row, c)] = new;
                for (s, g) in slope.iter_mut().zip(gram.col(c).iter()) {
                    *s += step * g;
                }
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
}

/// The bytes in the order of the weight, and the scales in the order of its output channels.
pub(crate) fn pack(layer: &Layer, rounded: &Rounded, grid: Grid) -> super::emit::Weight {
    let mut bytes = vec![0i8; layer.len()];
    for (b, m) in rounded.numbers.iter().enumerate().take(layer.blocks) {
        for r in 0..layer.rows {
            for c in 0..layer.cols {
                bytes[layer.at(b, r, c)] = m[(r, c)] as i8;
            }
        }
    }
    let scales: Vec<f32> = match grid.per_channel {
        true => rounded.scales.iter().flatten().map(|&s| s as f32).collect(),
        false => rounded
            .scales
            .iter()
            .flatten()
            .take(1)
            .map(|&s| s as f32)
            .collect(),
    };
    super::emit::Weight {
        bytes,
        scales,
        axis: layer.layout.output_axis as i64,
    }
}

/// A weight with a scale for each index of an axis, whatever the operator does with it.
pub(crate) fn per_axis(tensor: &Tensor, axis: usize) -> Result<super::emit::Weight, PassError> {
    let dims = tensor.dims();
    let all = tensor.to_f64s().unwrap_or_default();
    let count = dims.get(axis).copied().unwrap_or(1).max(1);
    let inner: usize = dims.iter().skip(axis + 1).product::<usize>().max(1);
    let place = |i: usize| i / inner % count;
    let mut parts: Vec<Vec<(f64, f64)>> = vec![Vec::new(); count];
    let free = Bounds {
        limit: 127.0,
        partners: &[],
    };
    for (i, &w) in all.iter().enumerate() {
        parts[place(i)].push((w, 1.0));
    }
    let scales: Vec<f64> = parts
        .into_iter()
        .map(|part| f64::from(best_scale(&[part], &free) as f32))
        .collect();
    let number = |(i, w): (usize, &f64)| {
        let x = w / scales[place(i)];
        free.round(|_| x, 0) as i8
    };
    Ok(super::emit::Weight {
        bytes: all.iter().enumerate().map(number).collect(),
        scales: scales.iter().map(|&s| s as f32).collect(),
        axis: i64::try_from(axis).map_err(|e| PassError::Bug(e.to_string()))?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    const GRID: Grid = Grid {
        limit: 127.0,
        per_channel: true,
        pairs: false,
    };

    fn noise(rows: usize, cols: usize, seed: usize) -> Mat<f64> {
        Mat::from_fn(rows, cols, |r, c| {
            (((r * 31 + c * 17 + seed * 101) as f64 * 12.9898).sin() * 43_758.545_3).fract()
        })
    }

    #[test]
    fn learned_rounding_beats_nearest_on_correlated_inputs() {
        let w = noise(6, 20, 1);
        let x = noise(200, 20, 2);
        // All inputs share a part, as behind a Relu.
        let x = Mat::from_fn(200, 20, |r, c| {
            x[(r, c)] * 0.3 + 1.0 + (r as f64 * 0.7).sin() * 0.5
        });
        let gram = x.transpose() * &x;
        let limit = 7.0;
        let grid = Grid { limit, ..GRID };
        let rounded = nearest(std::slice::from_ref(&w), None, grid, &[], &[]);
        let mut numbers = rounded.numbers[0].clone();
        let error = |n: &Mat<f64>| errors(&w, n, &rounded.scales[0], &gram).iter().sum::<f64>();
        let before = error(&numbers);
        learned(
            &w,
            &gram,
            &mut numbers,
            &rounded.scales[0],
            (grid, &[]),
            0.01,
        );
        let after = error(&numbers);
        assert!(after < 0.2 * before, "{after} of {before}");
        assert!(
            numbers
                .col_iter()
                .all(|c| c.iter().all(|n| n.fract() == 0.0 && n.abs() <= limit))
        );
    }

    #[test]
    fn scales_cover_all_or_cut_off_what_is_rare() {
        let mut w = noise(1, 400, 3);
        let whole = nearest(std::slice::from_ref(&w), None, GRID, &[], &[]);
        let largest = (0..400).map(|c| w[(0, c)].abs()).fold(0.0, f64::max);
        assert!(whole.scales[0][0] <= largest / 127.0 * 1.0001);
        w[(0, 0)] = 2.0 * largest;
        let cut = nearest(
            std::slice::from_ref(&w),
            None,
            Grid { limit: 7.0, ..GRID },
            &[],
            &[],
        );
        assert!(cut.scales[0][0] < 2.0 * largest / 7.0);
    }

    #[test]
    fn zeros_stay_zeros() {
        let w = Mat::zeros(2, 3);
        let r = nearest(std::slice::from_ref(&w), None, GRID, &[], &[]);
        assert_eq!(r.weights(0), w);
        assert!(r.scales[0].iter().all(|s| *s > 0.0));
    }

    #[test]
    fn one_scale_for_all_rows_when_asked() {
        let w = noise(3, 8, 4);
        let grid = Grid {
            per_channel: false,
            ..GRID
        };
        let r = nearest(&[w.clone(), noise(3, 8, 5)], None, grid, &[], &[]);
        let first = r.scales[0][0];
        assert!(r.scales.iter().flatten().all(|s| *s == first));
    }

    #[test]
    fn two_neighbours_fit_sixteen_bits() {
        let grid = Grid {
            pairs: true,
            ..GRID
        };
        let partners: Vec<Option<usize>> = (0..21)
            .map(|c: usize| Some(c ^ 1).filter(|&p| p < 21))
            .collect();
        let x = noise(200, 21, 2);
        let gram = x.transpose() * &x;
        let (mut errors, mut largest) = ((0.0, 0.0), 0.0f64);
        for seed in 0..20 {
            let w = noise(6, 21, seed);
            let mut r = nearest(std::slice::from_ref(&w), None, grid, &partners, &[]);
            let seven = Grid {
                limit: 63.0,
                ..GRID
            };
            let seven = nearest(std::slice::from_ref(&w), None, seven, &[], &[]);
            let error = |r: &Rounded| (&w - r.weights(0)).squared_norm_l2();
            errors.0 += error(&r);
            errors.1 += error(&seven);
            learned(
                &w,
                &gram,
                &mut r.numbers[0],
                &r.scales[0].clone(),
                (grid, &partners),
                0.01,
            );
            for row in 0..6 {
                for c in (0..20).step_by(2) {
                    let (a, b) = (r.numbers[0][(row, c)], r.numbers[0][(row, c + 1)]);
                    assert!((a + b).abs() <= PAIR, "{a} + {b}");
                    largest = largest.max(a.abs()).max(b.abs());
                }
            }
        }
        assert!(errors.0 < errors.1, "{errors:?}");
        assert!(largest > 64.0, "{largest}");
    }
}

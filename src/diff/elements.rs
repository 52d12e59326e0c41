//! Elements of tensors as numbers, and what can be counted and compared of them.

use std::collections::HashSet;

use paring_ir::{Constant, SparseTensor, Tensor};

use super::{Histogram, MOST_DISTINCT};

/// No tensor of more elements is made: a few bytes of a file can describe very large ones.
pub(super) const MOST_ELEMENTS: usize = 1 << 27;

/// Bins of a histogram.
const BINS: usize = 48;

/// A tensor of numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) dims: Vec<usize>,
    pub(super) values: Vec<f64>,
}

impl Numbers {
    /// The elements of a constant; `None` for strings, complex numbers and floats of a byte or
    /// less, and where there are too many.
    pub(super) fn of(constant: &Constant) -> Option<Numbers> {
        match constant {
            Constant::Dense(t) => Some(Numbers {
                dims: t.dims().to_vec(),
                values: t.to_f64s()?,
            }),
            Constant::Sparse(s) => dense(s),
        }
    }

    /// The product of the dimensions before an axis, the axis, and the product of those after it.
    pub(super) fn split(&self, axis: usize) -> Option<(usize, usize, usize)> {
        let size = *self.dims.get(axis)?;
        let outer = self.dims[..axis].iter().product();
        let inner = self.dims[axis + 1..].iter().product();
        Some((outer, size, inner))
    }

    /// The tensor with some indices of an axis; `None` where an index is out of range.
    pub(super) fn gather(&self, axis: usize, indices: &[usize]) -> Option<Numbers> {
        let (outer, size, inner) = self.split(axis)?;
        let mut dims = self.dims.clone();
        dims[axis] = indices.len();
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if count > MOST_ELEMENTS {
            return None;
        }
        let mut values = Vec::with_capacity(count);
        for o in 0..outer {
            for &i in indices {
                if i >= size {
                    return None;
                }
                let start = (o * size + i) * inner;
                values.extend_from_slice(self.values.get(start..start + inner)?);
            }
        }
        Some(Numbers { dims, values })
    }

    /// The tensor with its axes in another order.
    pub(super) fn transpose(&self, perm: &[usize]) -> Option<Numbers> {
        let rank = self.dims.len();
        let mut seen = vec![false; rank];
        for &p in perm {
            let mark = seen.get_mut(p)?;
            if std::mem::replace(mark, true) {
                return None;
            }
        }
        if perm.len() != rank {
            return None;
        }
        let mut strides = vec![1usize; rank];
        for i in (1..rank).rev() {
            strides[i - 1] = strides[i].checked_mul(self.dims[i])?;
        }
        let dims: Vec<usize> = perm.iter().map(|&p| self.dims[p]).collect();
        let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
        let mut at = vec![0usize; rank];
        let mut offset = 0usize;
        let mut values = Vec::with_capacity(self.values.len());
        for _ in 0..self.values.len() {
            values.push(*self.values.get(offset)?);
            for axis in (0..rank).rev() {
                at[axis] += 1;
                offset += steps[axis];
                if at[axis] < dims[axis] {
                    break;
                }
                offset -= steps[axis] * dims[axis];
                at[axis] = 0;
            }
        }
        Some(Numbers { dims, values })
    }

    /// The same elements under another shape.
    pub(super) fn reshape(mut self, dims: Vec<usize>) -> Option<Numbers> {
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if count != self.values.len() {
            return None;
        }
        self.dims = dims;
        Some(self)
    }

    /// Both tensors element by element, broadcast to one shape.
    pub(super) fn combine(&self, other: &Numbers, f: impl Fn(f64, f64) -> f64) -> Option<Numbers> {
        let rank = self.dims.len().max(other.dims.len());
        let size = |n: &Numbers, axis: usize| {
            let missing = rank - n.dims.len();
            axis.checked_sub(missing).map_or(1, |axis| n.dims[axis])
        };
        let mut dims = Vec::with_capacity(rank);
        for axis in 0..rank {
            dims.push(match (size(self, axis), size(other, axis)) {
                (x, y) if x == y => x,
                (1, y) => y,
                (x, 1) => x,
                _ => return None,
            });
        }
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        if count > MOST_ELEMENTS {
            return None;
        }
        let steps = |n: &Numbers| {
            let mut step = 1;
            let mut steps = vec![0; rank];
            for axis in (0..rank).rev() {
                if size(n, axis) > 1 {
                    steps[axis] = step;
                }
                step *= size(n, axis);
            }
            steps
        };
        let (p, q) = (steps(self), steps(other));
        let (mut x, mut y, mut at) = (0usize, 0usize, vec![0usize; rank]);
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(f(*self.values.get(x)?, *other.values.get(y)?));
            for axis in (0..rank).rev() {
                at[axis] += 1;
                (x, y) = (x + p[axis], y + q[axis]);
                if at[axis] < dims[axis] {
                    break;
                }
                (x, y) = (x - p[axis] * dims[axis], y - q[axis] * dims[axis]);
                at[axis] = 0;
            }
        }
        Some(Numbers { dims, values })
    }

    /// A matrix of rows (axis 0) by everything else.
    pub(super) fn matrix(self) -> Option<Numbers> {
        let rows = *self.dims.first()?;
        let columns = self.values.len().checked_div(rows)?;
        self.reshape(vec![rows, columns])
    }

    /// The product of two matrices.
    pub(super) fn product(&self, other: &Numbers) -> Option<Numbers> {
        let ([m, k], [l, n]) = (self.dims.as_slice(), other.dims.as_slice()) else {
            return None;
        };
        let (m, k, n) = (*m, *k, *n);
        let work = m.checked_mul(k)?.checked_mul(n)?;
        if k != *l || m.checked_mul(n)? > MOST_ELEMENTS || work > 1 << 32 {
            return None;
        }
        let mut values = vec![0f64; m * n];
        for (row, out) in self
            .values
            .chunks_exact(k.max(1))
            .zip(values.chunks_exact_mut(n.max(1)))
        {
            for (x, line) in row.iter().zip(other.values.chunks_exact(n.max(1))) {
                for (o, y) in out.iter_mut().zip(line) {
                    *o += x * y;
                }
            }
        }
        Some(Numbers {
            dims: vec![m, n],
            values,
        })
    }
}

fn dense(s: &SparseTensor) -> Option<Numbers> {
    let count = s.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if count > MOST_ELEMENTS {
        return None;
    }
    let (values, indices) = (s.values.to_f64s()?, s.indices.to_i64s()?);
    let mut out = vec![0f64; count];
    let rank = if s.indices.rank() == 2 {
        s.dims.len()
    } else {
        1
    };
    for (value, place) in values.iter().zip(indices.chunks_exact(rank.max(1))) {
        let at = if s.indices.rank() == 2 {
            let mut axes = place.iter().zip(&s.dims);
            axes.try_fold(0usize, |at, (&i, &d)| {
                at.checked_mul(d)?.checked_add(usize::try_from(i).ok()?)
            })
        } else {
            place.first().and_then(|&i| usize::try_from(i).ok())
        };
        *out.get_mut(at?)? = *value;
    }
    Some(Numbers {
        dims: s.dims.to_vec(),
        values: out,
    })
}

/// What was counted of the elements of one tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counted {
    pub(super) zeros: usize,
    pub(super) distinct: Option<usize>,
    pub(super) range: Option<(f64, f64)>,
}

/// Counts zeros and distinct elements, and finds the range of the finite ones.
pub(super) fn count(values: &[f64]) -> Counted {
    let mut out = Counted::default();
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for &v in values {
        out.zeros += usize::from(v == 0.0);
        if v.is_finite() {
            low = low.min(v);
            high = high.max(v);
        }
    }
    out.range = (low <= high).then_some((low, high));
    let mut seen: HashSet<u64> = HashSet::new();
    let mut many = false;
    for &v in values {
        // Both zeros are one element.
        seen.insert(if v == 0.0 { 0 } else { v.to_bits() });
        if seen.len() > MOST_DISTINCT {
            many = true;
            break;
        }
    }
    out.distinct = (!many).then_some(seen.len());
    out
}

/// How many elements fall into each of equal bins, on one scale for both.
pub(super) fn histogram(
    a: &[f64],
    b: &[f64],
    ranges: [Option<(f64, f64)>; 2],
) -> Option<Histogram> {
    const FEWEST: usize = 16;
    if a.len().min(b.len()) < FEWEST {
        return None;
    }
    let ends = [ranges[0]?, ranges[1]?];
    let low = ends.iter().map(|e| e.0).fold(f64::INFINITY, f64::min);
    let high = ends.iter().map(|e| e.1).fold(f64::NEG_INFINITY, f64::max);
    let width = (high - low) / BINS as f64;
    if !width.is_finite() || width <= 0.0 {
        return None;
    }
    let bins = |values: &[f64]| {
        let mut out = vec![0u64; BINS];
        for &v in values.iter().filter(|v| v.is_finite()) {
            // A float is cut to the range of the integer.
            let bin = (((v - low) / width) as usize).min(BINS - 1);
            if let Some(n) = out.get_mut(bin) {
                *n += 1;
            }
        }
        out
    };
    Some(Histogram {
        low,
        high,
        before: bins(a),
        after: bins(b),
    })
}

/// The largest absolute difference, and the norm of the difference over the norm of `a`; `None`
/// where the shapes differ or the elements are no numbers.
pub fn compare_tensors(a: &Tensor, b: &Tensor) -> Option<(f64, f64)> {
    if a.dims() != b.dims() {
        return None;
    }
    Some(compare(&a.to_f64s()?, &b.to_f64s()?))
}

/// The largest absolute difference, and the norm of the difference over the norm of `a`.
pub(super) fn compare(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (mut max, mut noise, mut signal) = (0f64, 0f64, 0f64);
    for (x, y) in a.iter().zip(b) {
        let d = (x - y).abs();
        if d.is_nan() {
            // NaN on one side only must show; equal infinities and two NaN are no difference.
            if x.is_nan() != y.is_nan() {
                (max, noise) = (f64::INFINITY, f64::INFINITY);
            }
            continue;
        }
        max = max.max(d);
        noise += d * d;
        signal += x * x;
    }
    let relative = if noise == 0.0 {
        0.0
    } else if signal > 0.0 {
        (noise / signal).sqrt()
    } else {
        noise.sqrt()
    };
    (max, relative)
}

/// The norm of what is left of a difference when each index of one axis has the factor that fits
/// best, over the norm of the second tensor; `None` unless that explains most of the difference,
/// which has the given norm over that of the first.
pub(super) fn rescaled(p: &Numbers, q: &Numbers, norm: f64) -> Option<f64> {
    /// Differences below this are not worth an explanation.
    const LEAST: f64 = 0.02;
    /// Factors for fewer elements each would explain anything.
    const EACH: usize = 4;
    if p.dims != q.dims || norm < LEAST {
        return None;
    }
    let all: f64 = q.values.iter().map(|y| y * y).sum();
    let left = (0..p.dims.len()).filter_map(|axis| {
        let size = *p.dims.get(axis)?;
        let inner: usize = p.dims.get(axis + 1..)?.iter().product();
        if size == 0 || inner == 0 || p.values.len() / size < EACH {
            return None;
        }
        // Sums of x x, x y and y y for each index.
        let mut sums = vec![[0f64; 3]; size];
        let runs = p.values.chunks(inner).zip(q.values.chunks(inner));
        for (k, (xs, ys)) in runs.enumerate() {
            let s = sums.get_mut(k % size)?;
            for (x, y) in xs.iter().zip(ys) {
                s[0] += x * x;
                s[1] += x * y;
                s[2] += y * y;
            }
        }
        let rest = |[xx, xy, yy]: &[f64; 3]| match *xx > 0.0 {
            true => (yy - xy * xy / xx).max(0.0),
            false => *yy,
        };
        Some(sums.iter().map(rest).sum::<f64>())
    });
    let left = left.fold(f64::INFINITY, f64::min);
    let rest = (left / all).sqrt();
    (rest.is_finite() && rest < 0.25 * norm).then_some(rest)
}

/// The numerical rank of a matrix of `rows` rows, and the multiply-accumulates that it took; no
/// rank where that would be more than `budget`.
///
/// Pivoted Cholesky factorization of the Gram matrix of the shorter side, after Higham, "Analysis
/// of the Cholesky decomposition of a semi-definite matrix" (1990). Singular values count down to
/// `max(rows, columns)` times the precision of a 32-bit float times the largest.
pub(super) fn rank(values: &[f64], rows: usize, budget: u64) -> (Option<usize>, u64) {
    let columns = values.len().checked_div(rows).unwrap_or(0);
    let (n, long) = (rows.min(columns), rows.max(columns));
    if n == 0 || values.iter().any(|v| !v.is_finite()) {
        return (None, 0);
    }
    let (n64, long64) = (n as u64, long as u64);
    let square = n64.saturating_mul(n64);
    let work = square.saturating_mul(long64) / 2 + square.saturating_mul(n64) / 3;
    if work > budget {
        return (None, 0);
    }
    let mut gram = vec![0f64; n * n];
    if rows <= columns {
        for i in 0..n {
            for j in 0..=i {
                let (x, y) = (
                    &values[i * columns..][..columns],
                    &values[j * columns..][..columns],
                );
                gram[i * n + j] = dot(x, y);
            }
        }
    } else {
        for row in values.chunks_exact(columns) {
            for (i, x) in row.iter().enumerate() {
                if *x != 0.0 {
                    let line = &mut gram[i * n..][..=i];
                    line.iter_mut().zip(row).for_each(|(g, y)| *g += x * y);
                }
            }
        }
    }
    let tolerance = (long as f64 * f64::from(f32::EPSILON)).powi(2);
    (Some(pivoted_cholesky(&mut gram, n, tolerance)), work)
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    // Eight sums side by side: one would wait for itself at every step.
    let mut sums = [0f64; 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let tail: f64 = xs
        .remainder()
        .iter()
        .zip(ys.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in xs.zip(ys) {
        for k in 0..8 {
            sums[k] += x[k] * y[k];
        }
    }
    sums.iter().sum::<f64>() + tail
}

/// The number of pivots above `tolerance` times the first. Only the lower triangle is read.
fn pivoted_cholesky(g: &mut [f64], n: usize, tolerance: f64) -> usize {
    let mut alive: Vec<usize> = (0..n).collect();
    let mut columns: Vec<Vec<f64>> = Vec::new();
    let mut diagonal: Vec<f64> = (0..n).map(|i| g[i * n + i]).collect();
    let mut first = 0f64;
    while !alive.is_empty() {
        let mut best = 0;
        for (k, &i) in alive.iter().enumerate() {
            if diagonal[i] > diagonal[alive[best]] {
                best = k;
            }
        }
        let p = alive.swap_remove(best);
        let pivot = diagonal[p];
        first = first.max(pivot);
        if pivot <= tolerance * first || pivot <= 0.0 {
            break;
        }
        let root = pivot.sqrt();
        let mut column = vec![0f64; n];
        for &i in &alive {
            column[i] = if i >= p { g[i * n + p] } else { g[p * n + i] };
        }
        for earlier in &columns {
            let factor = earlier[p];
            if factor != 0.0 {
                for &i in &alive {
                    column[i] -= factor * earlier[i];
                }
            }
        }
        for &i in &alive {
            column[i] /= root;
            diagonal[i] -= column[i] * column[i];
        }
        column[p] = root;
        columns.push(column);
    }
    columns.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    fn numbers(dims: &[usize], values: &[f64]) -> Numbers {
        Numbers {
            dims: dims.to_vec(),
            values: values.to_vec(),
        }
    }

    #[test]
    fn axes_are_gathered_and_moved() {
        let t = numbers(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        assert_eq!(
            t.gather(1, &[0, 2]).unwrap(),
            numbers(&[2, 2], &[0., 2., 3., 5.])
        );
        assert_eq!(t.gather(1, &[3]), None);
        assert_eq!(
            t.transpose(&[1, 0]).unwrap(),
            numbers(&[3, 2], &[0., 3., 1., 4., 2., 5.])
        );
        assert_eq!(t.transpose(&[0, 0]), None);
        let product = t.product(&t.transpose(&[1, 0]).unwrap()).unwrap();
        assert_eq!(product, numbers(&[2, 2], &[5., 14., 14., 50.]));
    }

    #[test]
    fn tensors_are_broadcast() {
        let t = numbers(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let rows = numbers(&[2, 1], &[10., 20.]);
        assert_eq!(
            t.combine(&rows, |x, y| x + y).unwrap(),
            numbers(&[2, 3], &[10., 11., 12., 23., 24., 25.])
        );
        let columns = numbers(&[3], &[1., 0., -1.]);
        let product = columns.combine(&t, |x, y| x * y).unwrap();
        assert_eq!(product, numbers(&[2, 3], &[0., 0., -2., 3., 0., -5.]));
        assert_eq!(t.combine(&numbers(&[2], &[1., 2.]), |x, _| x), None);
    }

    #[test]
    fn elements_are_counted() {
        let c = count(&[0.0, -0.0, 1.0, f64::INFINITY, -2.0]);
        assert_eq!(
            (c.zeros, c.distinct, c.range),
            (2, Some(4), Some((-2.0, 1.0)))
        );
        let many: Vec<f64> = (0..5000).map(f64::from).collect();
        assert_eq!(count(&many).distinct, None);
        assert_eq!(count(&[f64::NAN]).range, None);
    }

    #[test]
    fn differences_are_told_even_from_nothing() {
        assert_eq!(compare(&[0.0, 0.0], &[3.0, 4.0]), (4.0, 5.0));
        assert_eq!(compare(&[1.0, f64::NAN], &[1.0, f64::NAN]), (0.0, 0.0));
        assert_eq!(compare(&[1.0], &[f64::NAN]).0, f64::INFINITY);
        assert_eq!(compare(&[f64::INFINITY], &[f64::INFINITY]), (0.0, 0.0));
    }

    #[test]
    fn ranks_are_found_on_either_side() {
        // Rows are multiples and sums of two.
        let (u, v) = ([1.0, 2.0, 3.0, 4.0, 5.0], [2.0, -1.0, 0.5, 0.0, 7.0]);
        let mut tall = Vec::new();
        for k in 0..40 {
            let k = f64::from(k);
            tall.extend(u.iter().zip(&v).map(|(u, v)| u * k + v * (k * 0.37).sin()));
        }
        assert_eq!(rank(&tall, 40, u64::MAX).0, Some(2));
        let wide = numbers(&[40, 5], &tall).transpose(&[1, 0]).unwrap();
        assert_eq!(rank(&wide.values, 5, u64::MAX).0, Some(2));
        assert_eq!(rank(&[1.0, 0.0, 0.0, 1.0], 2, u64::MAX).0, Some(2));
        assert_eq!(rank(&[0.0; 4], 2, u64::MAX).0, Some(0));
        assert_eq!(rank(&[1.0; 4], 2, 3), (None, 0));
    }

    #[test]
    fn factors_of_channels_are_no_errors() {
        let p = numbers(&[2, 4], &[1., 2., 3., 4., 5., 6., 7., 8.]);
        let rows = numbers(&[2, 4], &[3., 6., 9., 12., 2.5, 3., 3.5, 4.]);
        assert!(rescaled(&p, &rows, 1.0).unwrap() < 1e-6);
        // Another order is no factor, and vectors have no channels.
        let turned = numbers(&[2, 4], &[8., 7., 6., 5., 4., 3., 2., 1.]);
        assert_eq!(rescaled(&p, &turned, 0.5), None);
        let (x, y) = (numbers(&[2], &[1., 2.]), numbers(&[2], &[2., 1.]));
        assert_eq!(rescaled(&x, &y, 0.5), None);
    }

    #[test]
    fn a_histogram_has_one_scale() {
        let a: Vec<f64> = (0..16).map(f64::from).collect();
        let b = vec![0.0; 16];
        let h = histogram(&a, &b, [count(&a).range, count(&b).range]).unwrap();
        assert_eq!((h.low, h.high), (0.0, 15.0));
        assert_eq!(h.before.iter().sum::<u64>(), 16);
        assert_eq!((h.after[0], h.before[BINS - 1]), (16, 1));
        assert_eq!(histogram(&b, &b, [Some((0.0, 0.0)); 2]), None);
    }
}

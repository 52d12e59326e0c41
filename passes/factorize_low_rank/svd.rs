//! Leading singular vectors, exactly for small matrices and by random projection for large ones.
//!
//! Random projection: Halko, Martinsson and Tropp, "Finding structure with randomness:
//! probabilistic algorithms for constructing approximate matrix decompositions", 2011.

use faer::linalg::solvers::Qr;
use faer::{Mat, MatRef, Side};

/// Random directions on top of those that are wanted; they make the last ones exact enough.
const OVERSAMPLING: usize = 16;

/// How often the spectrum is squared to set large singular values apart from small ones.
const POWER_ITERATIONS: usize = 2;

/// From this size on, and where at most a quarter of the vectors is wanted, projection is faster.
const LARGE: usize = 1024;

/// The leading left singular vectors of a matrix.
#[derive(Clone, Debug)]
pub(super) struct Leading {
    /// Orthonormal columns, in the order of falling energy.
    pub(super) vectors: Mat<f64>,
    /// The squares of the singular values of the vectors.
    pub(super) energies: Vec<f64>,
    /// The squares of all singular values together.
    pub(super) total: f64,
}

impl Leading {
    /// The energy that the first `rank` vectors leave out.
    pub(super) fn tail(&self, rank: usize) -> f64 {
        let kept: f64 = self.energies.iter().take(rank).sum();
        (self.total - kept).max(0.0)
    }
}

/// The `count` leading eigenvectors of a symmetric, positive semidefinite matrix, which are the
/// left singular vectors of every root of it. `None` for matrices that are not finite.
pub(super) fn leading(matrix: MatRef<'_, f64>, count: usize, seed: u64) -> Option<Leading> {
    let n = matrix.nrows();
    let count = count.min(n);
    let total: f64 = (0..n).map(|i| matrix[(i, i)].max(0.0)).sum();
    if !total.is_finite() {
        return None;
    }
    if n >= LARGE && count.saturating_mul(4) <= n {
        let start = matrix * random(n, count + OVERSAMPLING, seed);
        let mut basis = orthonormal(start.as_ref())?;
        for _ in 0..POWER_ITERATIONS {
            let next = matrix * &basis;
            basis = orthonormal(next.as_ref())?;
        }
        let image = matrix * &basis;
        let small = basis.transpose() * &image;
        let (vectors, energies) = eigen(small.as_ref(), count)?;
        let vectors = &basis * &vectors;
        return Some(Leading {
            vectors,
            energies,
            total,
        });
    }
    let (vectors, energies) = eigen(matrix, count)?;
    Some(Leading {
        vectors,
        energies,
        total,
    })
}

/// The `count` leading left singular vectors of any matrix. `None` for matrices that are not
/// finite.
pub(super) fn leading_left(matrix: MatRef<'_, f64>, count: usize, seed: u64) -> Option<Leading> {
    let (rows, cols) = (matrix.nrows(), matrix.ncols());
    let count = count.min(rows).min(cols);
    let total: f64 = matrix
        .col_iter()
        .map(|c| c.iter().map(|x| x * x).sum::<f64>())
        .sum();
    if !total.is_finite() {
        return None;
    }
    if rows.min(cols) >= LARGE && count.saturating_mul(4) <= rows.min(cols) {
        let basis = range(matrix, count + OVERSAMPLING, seed)?;
        let small = basis.transpose() * matrix;
        let square = &small * small.transpose();
        let (vectors, energies) = eigen(square.as_ref(), count)?;
        let vectors = &basis * &vectors;
        return Some(Leading {
            vectors,
            energies,
            total,
        });
    }
    let svd = matrix.thin_svd().ok()?;
    let values = svd.S().column_vector();
    let energies = (0..count).map(|i| values[i] * values[i]).collect();
    let vectors = svd.U().subcols(0, count).to_owned();
    Some(Leading {
        vectors,
        energies,
        total,
    })
}

/// An orthonormal basis that holds the leading left singular vectors, nearly.
fn range(matrix: MatRef<'_, f64>, count: usize, seed: u64) -> Option<Mat<f64>> {
    let count = count.min(matrix.nrows()).min(matrix.ncols());
    let start = matrix * random(matrix.ncols(), count, seed);
    let mut basis = orthonormal(start.as_ref())?;
    for _ in 0..POWER_ITERATIONS {
        let back = matrix.transpose() * &basis;
        let back = orthonormal(back.as_ref())?;
        let next = matrix * &back;
        basis = orthonormal(next.as_ref())?;
    }
    Some(basis)
}

/// The leading eigenvectors and eigenvalues, the largest first.
fn eigen(matrix: MatRef<'_, f64>, count: usize) -> Option<(Mat<f64>, Vec<f64>)> {
    let n = matrix.nrows();
    let finite = matrix.col_iter().all(|c| c.iter().all(|x| x.is_finite()));
    if !finite {
        return None;
    }
    let found = matrix.self_adjoint_eigen(Side::Lower).ok()?;
    // They come in ascending order.
    let (values, vectors) = (found.S().column_vector(), found.U());
    let count = count.min(n);
    let sorted = Mat::from_fn(n, count, |i, j| vectors[(i, n - 1 - j)]);
    let energies = (0..count).map(|j| values[n - 1 - j].max(0.0)).collect();
    Some((sorted, energies))
}

fn orthonormal(matrix: MatRef<'_, f64>) -> Option<Mat<f64>> {
    let q = Qr::new(matrix).compute_thin_Q();
    let finite = q.col_iter().all(|c| c.iter().all(|x| x.is_finite()));
    finite.then_some(q)
}

/// Numbers of mean 0 that depend on the seed and the size alone: SplitMix64, sums of uniform
/// numbers in place of Gaussian ones.
fn random(rows: usize, cols: usize, seed: u64) -> Mat<f64> {
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    Mat::from_fn(rows, cols, |_, _| uniform() + uniform() + uniform() - 1.5)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    /// A matrix whose singular values fall off as 1/2, 1/4, 1/6, ...
    fn decaying(rows: usize, cols: usize, seed: u64) -> Mat<f64> {
        let rank = rows.min(cols).min(40);
        let u = orthonormal(random(rows, rank, seed).as_ref()).unwrap();
        let v = orthonormal(random(cols, rank, seed + 1).as_ref()).unwrap();
        let scaled = Mat::from_fn(rows, rank, |i, j| u[(i, j)] * 0.5 / (j as f64 + 1.0));
        &scaled * v.transpose()
    }

    fn projected_error(m: &Mat<f64>, found: &Leading) -> f64 {
        let inside = &found.vectors * (found.vectors.transpose() * m);
        let rest = m - &inside;
        rest.norm_l2()
    }

    #[test]
    fn projection_finds_what_the_exact_decomposition_finds() {
        let m = decaying(1100, 1030, 3);
        let found = leading_left(m.as_ref(), 16, 7).unwrap();
        let exact: f64 = (16..40).map(|j| (0.5 / (f64::from(j) + 1.0)).powi(2)).sum();
        assert!((projected_error(&m, &found).powi(2) / exact - 1.0).abs() < 1e-3);
        assert!((found.tail(16) / exact - 1.0).abs() < 1e-3);
        assert!((found.energies[0].sqrt() - 0.5).abs() < 1e-6);
        let again = leading_left(m.as_ref(), 16, 7).unwrap();
        assert!(found.vectors == again.vectors);
    }

    #[test]
    fn a_square_and_its_root_have_the_same_vectors() {
        let m = decaying(60, 50, 5);
        let square = &m * m.transpose();
        let (a, b) = (
            leading_left(m.as_ref(), 10, 0).unwrap(),
            leading(square.as_ref(), 10, 0).unwrap(),
        );
        let (a, b) = (projected_error(&m, &a), projected_error(&m, &b));
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn a_large_square_is_projected_too() {
        let m = decaying(1100, 60, 5);
        let square = &m * m.transpose();
        let found = leading(square.as_ref(), 10, 0).unwrap();
        let exact: f64 = (10..40).map(|j| (0.5 / (f64::from(j) + 1.0)).powi(2)).sum();
        assert!((found.tail(10) / exact - 1.0).abs() < 1e-3);
    }

    #[test]
    fn what_is_not_finite_has_no_vectors() {
        let m = Mat::from_fn(3, 3, |i, _| if i == 0 { f64::NAN } else { 1.0 });
        assert!(leading(m.as_ref(), 2, 0).is_none());
        assert!(leading_left(m.as_ref(), 2, 0).is_none());
    }

    /// Run with `--release -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures time"]
    fn a_matrix_of_4096_rows_at_rank_256_takes_seconds() {
        let m = random(4096, 4096, 1);
        let start = std::time::Instant::now();
        let found = leading_left(m.as_ref(), 256, 0).unwrap();
        println!(
            "{:?}, tail {:.3}",
            start.elapsed(),
            found.tail(256) / found.total
        );
        assert!(start.elapsed().as_secs() < 10);
    }
}

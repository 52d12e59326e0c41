//! Which range of a value its bytes cover: min-max, percentile, entropy or least error, all from
//! one histogram.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::profile::ActivationType;

/// How the range of an activation is found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Calibration {
    /// The least mean squared error of the value.
    #[default]
    Mse,
    /// Everything that was seen.
    MinMax,
    /// All but a ten-thousandth of the elements, at each end half of it.
    Percentile,
    /// The least information lost: Kullback-Leibler divergence over 2048 bins (Migacz, 8-bit
    /// Inference with TensorRT, 2017).
    Entropy,
}

/// The share of elements that `percentile` covers.
pub const PERCENTILE: f64 = 0.9999;

/// How a value becomes bytes: `q = round(x / scale) + zero_point`, saturated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// The step between two bytes.
    pub scale: f32,
    /// The byte of zero.
    pub zero_point: i32,
    /// The element type.
    pub ty: ActivationType,
}

/// The range of an element type.
pub(crate) fn limits(ty: ActivationType) -> (i32, i32) {
    match ty {
        ActivationType::U8 => (0, 255),
        ActivationType::S8 => (-128, 127),
    }
}

impl Parameters {
    /// The parameters that cover a range, which is widened to hold zero. `symmetric` puts zero
    /// into the middle. A range of nothing gets a scale of 1.
    pub fn covering(low: f64, high: f64, ty: ActivationType, symmetric: bool) -> Parameters {
        let (least, most) = limits(ty);
        let (low, high) = (low.min(0.0), high.max(0.0));
        let usable = |scale: f64| {
            let scale = scale as f32;
            if scale.is_normal() && scale > f32::MIN_POSITIVE * 1024.0 {
                scale
            } else {
                1.0
            }
        };
        if symmetric && low < 0.0 {
            let scale = usable(high.max(-low) / 127.0);
            let zero_point = if ty == ActivationType::U8 { 128 } else { 0 };
            return Parameters {
                scale,
                zero_point,
                ty,
            };
        }
        let mut scale = usable((high - low) / 255.0);
        // A range that a Clip bounds must not be left by rounding, or engines keep the Clip.
        if low == 0.0 && f64::from(scale * 255.0) > high && high > 0.0 {
            scale = f32::from_bits(scale.to_bits() - 1);
        }
        let zero_point = f64::from(least) - low / f64::from(scale);
        let zero_point = (zero_point.round() as i32).clamp(least, most);
        Parameters {
            scale,
            zero_point,
            ty,
        }
    }

    /// What a number becomes by quantizing and dequantizing.
    pub fn rounded(&self, x: f64) -> f64 {
        let (least, most) = limits(self.ty);
        let scale = f64::from(self.scale);
        let q = (x / scale).round_ties_even() + f64::from(self.zero_point);
        (q.clamp(f64::from(least), f64::from(most)) - f64::from(self.zero_point)) * scale
    }

    /// The range that the bytes cover.
    pub fn range(&self) -> (f64, f64) {
        let (least, most) = limits(self.ty);
        let scale = f64::from(self.scale);
        let at = |q: i32| f64::from(q - self.zero_point) * scale;
        (at(least), at(most))
    }

    /// The sum of squared errors over the elements of a histogram.
    pub(crate) fn error(&self, points: &[(f64, f64)]) -> f64 {
        points
            .iter()
            .map(|&(x, n)| n * (x - self.rounded(x)).powi(2))
            .sum()
    }
}

/// What a value is quantized for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) method: Calibration,
    pub(crate) ty: ActivationType,
    pub(crate) symmetric: bool,
    /// The range that the operator before can't leave.
    pub(crate) natural: (f64, f64),
}

/// The parameters of a value, from what was seen of it.
pub(crate) fn parameters(histogram: &Histogram, wanted: &Wanted) -> Parameters {
    let points = histogram.points();
    let (mut low, mut high) = if histogram.min <= histogram.max {
        (f64::from(histogram.min), f64::from(histogram.max))
    } else {
        (0.0, 0.0)
    };
    low = low.max(wanted.natural.0).min(0.0);
    high = high.min(wanted.natural.1).max(0.0);
    let make =
        |(low, high): (f64, f64)| Parameters::covering(low, high, wanted.ty, wanted.symmetric);
    match wanted.method {
        Calibration::MinMax => make((low, high)),
        Calibration::Percentile => make(percentile(histogram, &points, (low, high))),
        Calibration::Entropy => make(entropy(&points, (low, high))),
        Calibration::Mse => least_error(&points, (low, high), &make),
    }
}

fn percentile(h: &Histogram, points: &[(f64, f64)], (low, high): (f64, f64)) -> (f64, f64) {
    let cut = h.count() as f64 * (1.0 - PERCENTILE) / 2.0;
    let end = |points: &mut dyn Iterator<Item = &(f64, f64)>| {
        let mut left = cut;
        for &(x, n) in points {
            left -= n;
            if left < 0.0 {
                return x;
            }
        }
        0.0
    };
    let first = end(&mut points.iter());
    let last = end(&mut points.iter().rev());
    (first.clamp(low, 0.0), last.clamp(0.0, high))
}

/// Shrinks both ends in turn as long as the error falls.
fn least_error(
    points: &[(f64, f64)],
    (low, high): (f64, f64),
    make: &dyn Fn((f64, f64)) -> Parameters,
) -> Parameters {
    const STEPS: usize = 40;
    let mut best = make((low, high));
    let mut error = best.error(points);
    let (mut a, mut b) = (1.0f64, 1.0f64);
    for _ in 0..3 {
        let before = error;
        for end in [1, 0] {
            if (end == 0 && low == 0.0) || (end == 1 && high == 0.0) {
                continue;
            }
            for step in 1..STEPS {
                // Down to a fifth of the range, in finer steps near the whole.
                let t = step as f64 / STEPS as f64;
                let factor = 1.0 - 0.8 * t * (0.3 + 0.7 * t);
                let tried = if end == 1 { (a, factor) } else { (factor, b) };
                let p = make((low * tried.0, high * tried.1));
                let e = p.error(points);
                if e < error {
                    (best, error, a, b) = (p, e, tried.0, tried.1);
                }
            }
        }
        if error >= before {
            break;
        }
    }
    best
}

/// The bins of the distribution that `entropy` looks at, and the levels that stand for it.
const ENTROPY_BINS: usize = 2048;
const ENTROPY_LEVELS: usize = 128;

/// The range, symmetric about zero within what was seen, whose quantized distribution diverges
/// least from the true one.
fn entropy(points: &[(f64, f64)], (low, high): (f64, f64)) -> (f64, f64) {
    let largest = high.max(-low);
    if largest <= 0.0 {
        return (low, high);
    }
    let levels = if low < 0.0 {
        ENTROPY_LEVELS
    } else {
        2 * ENTROPY_LEVELS
    };
    let mut bins = vec![0.0; ENTROPY_BINS];
    for &(x, n) in points {
        let at = (x.abs() / largest * ENTROPY_BINS as f64) as usize;
        bins[at.min(ENTROPY_BINS - 1)] += n;
    }
    let mut best = (f64::INFINITY, ENTROPY_BINS);
    let total: f64 = bins.iter().sum();
    let mut inside: f64 = bins[..levels].iter().sum();
    for end in levels..=ENTROPY_BINS {
        let d = divergence(&bins[..end], total - inside, levels);
        if d < best.0 {
            best = (d, end);
        }
        if let Some(n) = bins.get(end) {
            inside += n;
        }
    }
    let bound = largest * best.1 as f64 / ENTROPY_BINS as f64;
    (low.max(-bound), high.min(bound))
}

/// The divergence between a distribution cut off at the end of `bins`, what lies beyond added to
/// the last bin, and the same spread over few levels.
fn divergence(bins: &[f64], beyond: f64, levels: usize) -> f64 {
    let count = bins.len();
    let total: f64 = bins.iter().sum::<f64>() + beyond;
    let within: f64 = bins.iter().sum();
    if total <= 0.0 || within <= 0.0 {
        return f64::INFINITY;
    }
    let mut out = 0.0;
    for level in 0..levels {
        let (from, to) = (level * count / levels, (level + 1) * count / levels);
        let part = &bins[from..to];
        let filled = part.iter().filter(|n| **n > 0.0).count();
        if filled == 0 {
            continue;
        }
        let q = part.iter().sum::<f64>() / filled as f64 / within;
        for (i, &n) in part.iter().enumerate() {
            let last = from + i + 1 == count;
            let p = (n + if last { beyond } else { 0.0 }) / total;
            // A level without elements of its own can't stand for what is beyond the end.
            let q = if n > 0.0 { q } else { 1e-12 };
            if p > 0.0 {
                out += p * (p / q).ln();
            }
        }
    }
    if bins[count - 1] <= 0.0 && beyond > 0.0 {
        let p = beyond / total;
        out += p * (p / 1e-12).ln();
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    const ALL: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

    fn histogram(elements: &[f32]) -> Histogram {
        let mut h = Histogram::default();
        h.add(elements);
        h
    }

    fn wanted(method: Calibration) -> Wanted {
        Wanted {
            method,
            ty: ActivationType::U8,
            symmetric: false,
            natural: ALL,
        }
    }

    /// A bell with two far outliers.
    fn bell() -> Vec<f32> {
        let one = |i: usize| {
            let parts = (0..12).map(|k| ((i * 7919 + k * 104_729) % 10_007) as f32 / 10_007.0);
            parts.sum::<f32>() - 6.0
        };
        let mut all: Vec<f32> = (0..20_000).map(one).collect();
        all.extend([40.0, -30.0]);
        all
    }

    #[test]
    fn min_max_covers_everything_and_zero() {
        let p = parameters(&histogram(&[1.0, 2.0, 5.1]), &wanted(Calibration::MinMax));
        assert_eq!((p.zero_point, p.rounded(0.0)), (0, 0.0));
        assert!((p.range().1 - 5.1).abs() < 1e-5);
        let p = parameters(&histogram(&[-1.0, 2.0]), &wanted(Calibration::MinMax));
        assert_eq!(p.zero_point, 85);
        assert_eq!(p.rounded(0.0), 0.0);
    }

    #[test]
    fn natural_ranges_are_respected() {
        let natural = (0.0, 6.0);
        let w = Wanted {
            natural,
            ..wanted(Calibration::MinMax)
        };
        let p = parameters(&histogram(&[0.1, 7.0]), &w);
        assert_eq!(p.zero_point, 0);
        assert!(p.scale * 255.0 <= 6.0);
    }

    #[test]
    fn rare_outliers_are_cut_off() {
        let h = histogram(&bell());
        let ends = |m| parameters(&h, &wanted(m)).range();
        assert!(ends(Calibration::MinMax).1 > 39.0);
        for m in [Calibration::Percentile, Calibration::Entropy] {
            let (low, high) = ends(m);
            assert!((-8.0..-0.5).contains(&low), "{m:?} {low}");
            assert!((0.5..8.0).contains(&high), "{m:?} {high}");
        }
    }

    #[test]
    fn the_least_error_is_no_more_than_that_of_the_others() {
        let h = histogram(&bell());
        let error = |m| parameters(&h, &wanted(m)).error(&h.points());
        let least = error(Calibration::Mse);
        for m in [
            Calibration::MinMax,
            Calibration::Percentile,
            Calibration::Entropy,
        ] {
            assert!(least <= error(m) * 1.02, "{m:?}");
        }
    }

    #[test]
    fn nothing_seen_and_zeros_alone_have_parameters() {
        for h in [Histogram::default(), histogram(&[0.0; 9])] {
            for m in [
                Calibration::MinMax,
                Calibration::Percentile,
                Calibration::Entropy,
                Calibration::Mse,
            ] {
                let p = parameters(&h, &wanted(m));
                assert_eq!((p.scale, p.zero_point), (1.0, 0));
            }
        }
    }
}

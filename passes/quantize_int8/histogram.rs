//! Histograms of values over data that streams through: small, mergeable, without a range that
//! must be known first.
//!
//! The bins are as wide as a power of two and begin at multiples of their width, so two bins
//! make one of the next wider kind exactly. When the values outgrow [`MAX_BINS`] bins, the width
//! doubles. Whatever the order of the samples, and however parts are merged, the result is the
//! same.

use serde::{Deserialize, Serialize};

/// A histogram has at most so many bins, and more than half as many once the values are not
/// alike: at least eight for each of the 256 levels of a byte.
pub const MAX_BINS: usize = 4096;

/// How often the elements of a value lie where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Histogram {
    /// The bins are `2^exponent` wide.
    pub exponent: i32,
    /// The first bin begins at `first` times the width.
    pub first: i64,
    /// Elements by bin, zeros left out.
    pub bins: Vec<u64>,
    /// Elements that are zero, which quantization keeps exactly.
    pub zeros: u64,
    /// The smallest finite element.
    pub min: f32,
    /// The largest finite element.
    pub max: f32,
    /// Elements that are infinite or not a number.
    pub nonfinite: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            exponent: i32::MIN,
            first: 0,
            bins: Vec::new(),
            zeros: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            nonfinite: 0,
        }
    }
}

/// No bin is narrower: far below what a float of usual size resolves.
const MIN_EXPONENT: i32 = -120;

impl Histogram {
    /// Takes in elements.
    pub fn add(&mut self, elements: &[f32]) {
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &x in elements {
            // Comparisons leave out what is not a number.
            if x < low {
                low = x;
            }
            if x > high {
                high = x;
            }
        }
        if low.is_finite() && high.is_finite() && low <= high {
            self.cover(low, high);
        } else {
            let finite = elements.iter().copied().filter(|x| x.is_finite());
            let (low, high) = finite.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| {
                (a.min(x), b.max(x))
            });
            if low <= high {
                self.cover(low, high);
            }
        }
        let inverse = 2f64.powi(-self.exponent.max(MIN_EXPONENT)) as f32;
        let first = self.first as f32;
        for &x in elements {
            if x == 0.0 {
                self.zeros += 1;
                continue;
            }
            let at = (x * inverse).floor() - first;
            match self.bins.get_mut(at as usize) {
                Some(bin) if at >= 0.0 => *bin += 1,
                _ => self.nonfinite += 1,
            }
        }
    }

    /// Takes in another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        self.zeros += other.zeros;
        self.nonfinite += other.nonfinite;
        if other.min > other.max {
            return;
        }
        self.cover(other.min, other.max);
        let mut other = other.clone();
        other.coarsen_to(self.exponent);
        self.coarsen_to(other.exponent);
        for (i, n) in other.bins.iter().enumerate() {
            let at = usize::try_from(other.first + i as i64 - self.first).unwrap_or(usize::MAX);
            if let Some(bin) = self.bins.get_mut(at) {
                *bin += n;
            }
        }
    }

    /// Whether the numbers, which may come from a file, make a histogram.
    pub fn is_sound(&self) -> bool {
        let few = self.bins.len() <= MAX_BINS && self.bins.iter().all(|n| *n < 1 << 52);
        let placed = self.first.unsigned_abs() < 1 << 52 && self.exponent.unsigned_abs() <= 1024;
        let empty = self.exponent == i32::MIN && self.bins.is_empty();
        few && self.zeros < 1 << 52 && (placed || empty)
    }

    /// The finite elements.
    pub fn count(&self) -> u64 {
        self.zeros + self.bins.iter().sum::<u64>()
    }

    /// The middles of the bins that hold elements, and how many; zeros are not among them.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let width = 2f64.powi(self.exponent.max(MIN_EXPONENT));
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let point = |(i, &n): (usize, &u64)| {
            let middle = ((self.first + i as i64) as f64 + 0.5) * width;
            (middle.clamp(min, max), n as f64)
        };
        let bins = self.bins.iter().enumerate();
        bins.filter(|(_, n)| **n > 0).map(point).collect()
    }

    /// Makes room for values of a range.
    fn cover(&mut self, low: f32, high: f32) {
        self.min = self.min.min(low);
        self.max = self.max.max(high);
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let span = (max - min).max(max.abs().max(min.abs()) * 1e-6);
        // The least width that may do, then the one that does.
        let guess = (span / MAX_BINS as f64).log2().floor();
        let mut exponent = self.exponent.max(guess.max(f64::from(MIN_EXPONENT)) as i32);
        let place = |x: f64, e: i32| (x * 2f64.powi(-e)).floor();
        while place(max, exponent) - place(min, exponent) + 1.0 > MAX_BINS as f64 {
            exponent += 1;
        }
        if self.exponent == i32::MIN {
            self.exponent = exponent;
            self.first = place(min, exponent) as i64;
        }
        self.coarsen_to(exponent);
        let (first, last) = (place(min, exponent) as i64, place(max, exponent) as i64);
        if first < self.first {
            let more = usize::try_from(self.first - first).unwrap_or(0);
            self.bins.splice(0..0, std::iter::repeat_n(0, more));
            self.first = first;
        }
        let length = usize::try_from(last - self.first + 1).unwrap_or(0);
        if length > self.bins.len() {
            self.bins.resize(length, 0);
        }
    }

    fn coarsen_to(&mut self, exponent: i32) {
        let steps = exponent.saturating_sub(self.exponent);
        if steps <= 0 || self.exponent == i32::MIN {
            return;
        }
        let down = |at: i64| {
            if steps > 62 {
                at.signum().min(0)
            } else {
                at >> steps
            }
        };
        let first = down(self.first);
        let last = down(self.first + self.bins.len().max(1) as i64 - 1);
        let mut bins = vec![0; usize::try_from(last - first + 1).unwrap_or(1)];
        for (i, n) in self.bins.iter().enumerate() {
            let at = usize::try_from(down(self.first + i as i64) - first).unwrap_or(0);
            if let Some(bin) = bins.get_mut(at) {
                *bin += n;
            }
        }
        (self.exponent, self.first, self.bins) = (exponent, first, bins);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    fn wave(count: usize, scale: f32) -> Vec<f32> {
        let at = |i: usize| ((i * i) as f32 * 0.37).sin() * scale * (1.0 + i as f32 / 50.0);
        (0..count).map(at).collect()
    }

    #[test]
    fn order_and_parts_do_not_matter() {
        let parts = [
            wave(300, 0.01),
            wave(500, 3.0),
            wave(20, 100.0),
            vec![0.0; 7],
        ];
        let mut forward = Histogram::default();
        parts.iter().for_each(|p| forward.add(p));
        let mut backward = Histogram::default();
        parts.iter().rev().for_each(|p| backward.add(p));
        let mut merged = Histogram::default();
        for p in &parts {
            let mut one = Histogram::default();
            one.add(p);
            merged.merge(&one);
        }
        assert_eq!(forward.points(), backward.points());
        assert_eq!(forward.points(), merged.points());
        assert_eq!(
            (forward.count(), forward.zeros),
            (
                827,
                7 + parts[..3].iter().flatten().filter(|x| **x == 0.0).count() as u64
            )
        );
        assert!(forward.bins.len() <= MAX_BINS && forward.bins.len() > MAX_BINS / 2);
    }

    #[test]
    fn elements_are_near_their_bins() {
        let all = wave(1000, 2.0);
        let mut h = Histogram::default();
        h.add(&all);
        let width = 2f64.powi(h.exponent);
        for x in all.iter().filter(|x| **x != 0.0) {
            let near = h
                .points()
                .iter()
                .any(|(c, _)| (c - f64::from(*x)).abs() <= width);
            assert!(near, "{x}");
        }
    }

    #[test]
    fn what_is_not_finite_is_left_out_and_counted() {
        let mut h = Histogram::default();
        h.add(&[f32::NAN, 1.0, f32::INFINITY, -2.0]);
        assert_eq!((h.nonfinite, h.count(), h.min, h.max), (2, 2, -2.0, 1.0));
        h.add(&[]);
        h.merge(&Histogram::default());
        assert_eq!(h.count(), 2);
    }

    #[test]
    fn constants_and_extremes_have_bins() {
        for x in [1.0f32, -3.0e38, 3.0e38, 1e-30] {
            let mut h = Histogram::default();
            h.add(&[x; 5]);
            assert_eq!(h.points().len(), 1, "{x}");
            let found = h.points()[0];
            assert_eq!(found, (f64::from(x), 5.0));
        }
    }
}

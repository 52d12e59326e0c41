//! Weights and biases in the numbers that integer operators take.

use super::find::{Layer, Params, Weight};
use crate::quantize_int8::{EXACT_DB, decibels};

/// A weight with one scale, and what that cost.
#[derive(Clone, Debug)]
pub(super) struct OneScale {
    pub(super) numbers: Vec<i8>,
    pub(super) scale: f32,
    /// Signal over the noise that was added, in dB: of all weights, and of the worst output.
    pub(super) sqnr_db: f64,
    pub(super) worst_db: f64,
}

/// The same weight with one scale for all outputs.
pub(super) fn one_scale(w: &Weight) -> OneScale {
    let first = w.scale(0);
    if w.scales.iter().all(|s| *s == first) {
        return OneScale {
            numbers: w.numbers.clone(),
            scale: first,
            sqnr_db: EXACT_DB,
            worst_db: EXACT_DB,
        };
    }
    let value = |(i, n): (usize, &i8)| f64::from(*n) * f64::from(w.scale(w.output_of(i)));
    let most = w.numbers.iter().enumerate().map(value);
    let most = most.fold(0.0f64, |m, x| m.max(x.abs()));
    let scale = ((most / 127.0) as f32).max(f32::MIN_POSITIVE);
    let mut sums = vec![(0.0f64, 0.0f64); w.outputs()];
    let mut numbers = Vec::with_capacity(w.numbers.len());
    for (i, n) in w.numbers.iter().enumerate() {
        let x = value((i, n));
        let q = (x / f64::from(scale))
            .round_ties_even()
            .clamp(-127.0, 127.0);
        numbers.push(q as i8);
        let e = x - q * f64::from(scale);
        if let Some(sum) = sums.get_mut(w.output_of(i)) {
            *sum = (sum.0 + x * x, sum.1 + e * e);
        }
    }
    let db = |(signal, noise): (f64, f64)| decibels(signal, noise);
    let all = sums.iter().fold((0.0, 0.0), |a, s| (a.0 + s.0, a.1 + s.1));
    OneScale {
        numbers,
        scale,
        sqnr_db: db(all),
        worst_db: sums.iter().map(|s| db(*s)).fold(EXACT_DB, f64::min),
    }
}

/// Sums of 32 bits hold so much of a bias, with as much room for the products.
const BIAS_LIMIT: f64 = (1u32 << 30) as f64;

/// A bias in the scale of the products; `None` where it doesn't fit 32 bits.
pub(super) fn bias(layer: &Layer, input: Params, scales: &[f32]) -> Option<Option<Vec<i32>>> {
    let Some(bias) = &layer.bias else {
        return Some(None);
    };
    let number = |(i, b): (usize, &f64)| {
        let scale = scales.get(i).or(scales.first())?;
        let n = (b / (f64::from(*scale) * f64::from(input.scale))).round_ties_even();
        (n.abs() < BIAS_LIMIT).then_some(n as i32)
    };
    let all: Option<Vec<i32>> = bias.iter().enumerate().map(number).collect();
    Some(Some(all?))
}

/// The bias with what the zero point of the input adds up to in each output, with which the
/// products can take the bytes as numbers from a zero of 0. Engines work the same sums out from
/// the weight, tract anew in every run where the weight is large. `None` where that doesn't fit 32
/// bits.
pub(super) fn with_zero_point(
    weight: &Weight,
    numbers: &[i8],
    bias: Option<&[i32]>,
    zero: i8,
) -> Option<Vec<i32>> {
    let mut sums = vec![0i64; weight.outputs()];
    for (i, n) in numbers.iter().enumerate() {
        *sums.get_mut(weight.output_of(i))? += i64::from(*n);
    }
    let moved = |(i, sum): (usize, &i64)| {
        let bias = bias.and_then(|b| b.get(i)).copied().unwrap_or(0);
        let moved = i64::from(bias) - i64::from(zero) * sum;
        let fits = (moved as f64).abs() < BIAS_LIMIT;
        i32::try_from(moved).ok().filter(|_| fits)
    };
    sums.iter().enumerate().map(moved).collect()
}

//! What changed in an initializer.

use paring_ir::{Constant, Tensor, Value};
use serde::Serialize;

use super::type_text;

/// An initializer that is in both models and differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorChange {
    /// The name.
    pub name: String,
    /// The type in the first model.
    pub before: String,
    /// The type in the second model.
    pub after: String,
    /// The share of zeros in the first model.
    pub sparsity_before: f64,
    /// The share of zeros in the second model.
    pub sparsity_after: f64,
    /// The largest absolute difference of elements, where the shapes are equal.
    pub max_abs: Option<f64>,
    /// The norm of the difference over the norm of the first tensor, where the shapes are equal.
    pub relative_norm: Option<f64>,
    /// The passes that changed it, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
}

/// How two constants of one name differ; `None` when they don't.
pub(super) fn change_of(
    name: &str,
    a: &Constant,
    b: &Constant,
    value: &Value,
) -> Option<TensorChange> {
    if a == b {
        return None;
    }
    let mut change = TensorChange {
        name: name.to_owned(),
        before: type_text(Some(&a.value_type())),
        after: type_text(Some(&b.value_type())),
        sparsity_before: sparsity(a),
        sparsity_after: sparsity(b),
        max_abs: None,
        relative_norm: None,
        by: value.provenance().map_or_else(Vec::new, |p| {
            p.passes.iter().map(|n| n.to_string()).collect()
        }),
    };
    if let (Some(a), Some(b)) = (a.dense(), b.dense())
        && let Some((max_abs, relative_norm)) = compare_tensors(a, b)
    {
        change.max_abs = Some(max_abs);
        change.relative_norm = Some(relative_norm);
    }
    Some(change)
}

fn sparsity(c: &Constant) -> f64 {
    let (zeros, all) = match c {
        Constant::Dense(t) => (t.count_zeros(), t.len()),
        Constant::Sparse(s) => {
            let all: usize = s.dims.iter().product();
            (all - s.values.len().min(all), all)
        }
    };
    if all == 0 {
        0.0
    } else {
        zeros as f64 / all as f64
    }
}

/// The largest absolute difference, and the norm of the difference over the norm of `a`; `None`
/// where the shapes differ or the elements are no numbers.
pub fn compare_tensors(a: &Tensor, b: &Tensor) -> Option<(f64, f64)> {
    if a.dims() != b.dims() {
        return None;
    }
    let (x, y) = (a.to_f64s()?, b.to_f64s()?);
    let (mut max, mut noise, mut signal) = (0f64, 0f64, 0f64);
    for (x, y) in x.iter().zip(&y) {
        let d = (x - y).abs();
        // NaN on one side only must show.
        max = if d.is_nan() && x.is_nan() != y.is_nan() {
            f64::INFINITY
        } else {
            max.max(d)
        };
        noise += d * d;
        signal += x * x;
    }
    let relative = if signal > 0.0 {
        (noise / signal).sqrt()
    } else {
        noise.sqrt()
    };
    Some((max, relative))
}

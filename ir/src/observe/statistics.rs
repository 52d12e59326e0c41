//! Numbers of a value over all samples, streamed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Observed, observe};
use crate::engine::{CompileOptions, DataSource, Engine, EngineError};
use crate::graph::ValueId;
use crate::model::Model;
use crate::tensor::Tensor;
use crate::value::Name;

/// Numbers of the elements of a value over all samples that were added. Two of them over
/// different samples merge into that over all, in any grouping up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Finite elements.
    pub count: u64,
    /// NaN and infinite elements, which the other numbers leave out.
    pub nonfinite: u64,
    /// Elements that are zero.
    pub zeros: u64,
    /// The smallest element; infinite when there is none.
    pub min: f64,
    /// The largest element; minus infinite when there is none.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The sum of squared deviations from the mean.
    pub deviations: f64,
}

impl Default for Statistics {
    fn default() -> Statistics {
        Statistics {
            count: 0,
            nonfinite: 0,
            zeros: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            mean: 0.0,
            deviations: 0.0,
        }
    }
}

impl Statistics {
    /// The numbers of one tensor; `None` where its elements are no real numbers.
    pub fn of(tensor: &Tensor) -> Option<Statistics> {
        let elements = tensor.to_f64s()?;
        let mut out = Statistics::default();
        let mut sum = 0.0;
        for &x in &elements {
            if !x.is_finite() {
                out.nonfinite += 1;
                continue;
            }
            out.count += 1;
            out.zeros += u64::from(x == 0.0);
            out.min = out.min.min(x);
            out.max = out.max.max(x);
            sum += x;
        }
        if out.count > 0 {
            out.mean = sum / out.count as f64;
            let finite = elements.iter().filter(|x| x.is_finite());
            out.deviations = finite.map(|x| (x - out.mean).powi(2)).sum();
        }
        Some(out)
    }

    /// Takes in the numbers over other samples (Chan, Golub and LeVeque, 1979).
    pub fn merge(&mut self, other: &Statistics) {
        self.nonfinite += other.nonfinite;
        if other.count == 0 {
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let delta = other.mean - self.mean;
        self.mean += delta * b / (a + b);
        self.deviations += other.deviations + delta * delta * a * b / (a + b);
        self.count += other.count;
        self.zeros += other.zeros;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The variance over the elements.
    pub fn variance(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.deviations / self.count as f64
        }
    }

    /// The root mean square of the elements.
    pub fn rms(&self) -> f64 {
        (self.variance() + self.mean * self.mean).sqrt()
    }
}

/// The statistics of one value.
#[derive(Clone, Debug, Serialize)]
pub struct ValueStatistics {
    /// The value's ONNX name.
    pub name: Name,
    /// Its numbers.
    #[serde(flatten)]
    pub numbers: Statistics,
}

/// Statistics of values over data that streams through the model, in the order of `values`.
/// Values without real elements, and those that the engine can't give, are left out; the
/// latter are named in the second result.
pub fn statistics(
    engine: &dyn Engine,
    model: &Model,
    values: &[ValueId],
    data: &dyn DataSource,
    limit: Option<usize>,
    options: CompileOptions,
) -> Result<(Vec<ValueStatistics>, Observed), EngineError> {
    let mut seen: BTreeMap<ValueId, Statistics> = BTreeMap::new();
    let observed = observe(
        engine,
        model,
        values,
        data,
        limit,
        options,
        &mut |_, v, tensor| {
            if let Some(numbers) = Statistics::of(tensor) {
                seen.entry(v).or_default().merge(&numbers);
            }
            Ok(())
        },
    )?;
    let named = |v: &ValueId| {
        let numbers = seen.remove(v)?;
        let name = model.graph.get_value(*v)?.name().clone();
        Some(ValueStatistics { name, numbers })
    };
    Ok((values.iter().filter_map(named).collect(), observed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_merge_into_the_whole() {
        let all: Vec<f32> = (0..100)
            .map(|i| (i as f32 * 0.7).sin() * 3.0 + 5.0)
            .collect();
        let whole = Statistics::of(&Tensor::vector(all.clone())).expect("floats");
        let mut merged = Statistics::default();
        for part in all.chunks(7) {
            merged.merge(&Statistics::of(&Tensor::vector(part.to_vec())).expect("floats"));
        }
        assert_eq!(
            (merged.count, merged.min, merged.max),
            (whole.count, whole.min, whole.max)
        );
        assert!((merged.mean - whole.mean).abs() < 1e-12);
        assert!((merged.variance() - whole.variance()).abs() < 1e-12);
        let rms = (all.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 100.0).sqrt();
        assert!((whole.rms() - rms).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_finite_is_counted_apart() {
        let t = Tensor::vector(vec![f32::NAN, f32::INFINITY, -0.0, 2.0]);
        let s = Statistics::of(&t).expect("floats");
        assert_eq!(
            (s.count, s.nonfinite, s.zeros, s.min, s.max),
            (2, 2, 1, 0.0, 2.0)
        );
        let empty = Statistics::of(&Tensor::vector(Vec::<f32>::new())).expect("floats");
        let mut merged = s;
        merged.merge(&empty);
        assert_eq!(merged, s);
        let strings = Tensor::from_strings([1], [bytes::Bytes::from_static(b"a")]).expect("one");
        assert_eq!(Statistics::of(&strings), None);
    }
}

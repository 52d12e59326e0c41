//! How far outputs are from each other, summed up sample by sample.

use paring_ir::{DType, Tensor};
use serde::Serialize;

/// What SQNR is taken for where outputs became infinite or not a number.
pub const BROKEN_SQNR_DB: f64 = -300.0;

/// How far one output of a model is from the same output of another.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OutputDifference {
    /// The output.
    pub name: String,
    /// Elements compared.
    pub elements: u64,
    /// The largest absolute difference; the largest number there is where an element became
    /// infinite or not a number, or stopped being so.
    pub max_abs: f64,
    /// `max_abs` over the root mean square of the reference. For whole numbers, booleans and
    /// strings, the share of elements that differ.
    pub max_rel: f64,
    /// Signal to noise in dB; absent (null) when there is no difference, -300 when there is no signal left.
    pub sqnr_db: Option<f64>,
    /// The mean over samples of the cosine between the two outputs; absent for strings.
    pub cosine: Option<f64>,
    /// The smallest of them.
    pub cosine_min: Option<f64>,
    /// Elements that differ at all.
    pub mismatches: u64,
    /// Elements that are infinite or not a number in one of the two, and not the same in the other.
    pub nonfinite: u64,
}

/// Sums for one output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    elements: u64,
    mismatches: u64,
    nonfinite: u64,
    max_abs: f64,
    error: f64,
    signal: f64,
    cosines: f64,
    cosine_min: f64,
    samples: u64,
    discrete: bool,
    numeric: bool,
}

/// The scored elements of an output, one slice for each sample where the first axis is the
/// batch, else all in one.
pub(crate) fn samples_of<'a, T>(
    values: &'a [T],
    dims: &[usize],
    batch: usize,
    count: usize,
) -> Vec<&'a [T]> {
    let first = dims.first().copied().unwrap_or(0);
    if batch >= 1 && first >= batch && first % batch == 0 && !values.is_empty() {
        let each = values.len() / batch;
        values.chunks(each.max(1)).take(count).collect()
    } else {
        vec![values]
    }
}

impl Sums {
    /// Adds the outputs of one run, of which `count` samples of `batch` are scored. Fails when
    /// shapes or types differ.
    pub(crate) fn add(
        &mut self,
        before: &Tensor,
        after: &Tensor,
        batch: usize,
        count: usize,
    ) -> Result<(), String> {
        if before.dims() != after.dims() || before.dtype() != after.dtype() {
            return Err(format!(
                "it was {} {:?} and is {} {:?}",
                before.dtype(),
                before.dims(),
                after.dtype(),
                after.dims()
            ));
        }
        self.discrete = !before.dtype().is_float();
        if before.dtype() == DType::String {
            return self.add_strings(before, after, batch, count);
        }
        self.numeric = true;
        let (Some(a), Some(b)) = (before.to_f64s(), after.to_f64s()) else {
            return Err(format!(
                "outputs of type {} can't be compared",
                before.dtype()
            ));
        };
        let a = samples_of(&a, before.dims(), batch, count);
        let b = samples_of(&b, before.dims(), batch, count);
        for (a, b) in a.into_iter().zip(b) {
            self.add_sample(a, b);
        }
        Ok(())
    }

    fn add_strings(
        &mut self,
        before: &Tensor,
        after: &Tensor,
        batch: usize,
        count: usize,
    ) -> Result<(), String> {
        let a = before.strings().unwrap_or_default();
        let b = after.strings().unwrap_or_default();
        let a = samples_of(a, before.dims(), batch, count);
        let b = samples_of(b, before.dims(), batch, count);
        for (a, b) in a.into_iter().zip(b) {
            self.elements += a.len() as u64;
            self.mismatches += a.iter().zip(b).filter(|(a, b)| a != b).count() as u64;
        }
        Ok(())
    }

    fn add_sample(&mut self, before: &[f64], after: &[f64]) {
        let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
        let broken = self.nonfinite;
        for (&a, &b) in before.iter().zip(after) {
            self.elements += 1;
            if a == b || (a.is_nan() && b.is_nan()) {
                if a.is_finite() {
                    self.signal += a * a;
                    dot += a * b;
                    aa += a * a;
                    bb += b * b;
                }
                continue;
            }
            self.mismatches += 1;
            if !a.is_finite() || !b.is_finite() {
                self.nonfinite += 1;
                continue;
            }
            let error = a - b;
            self.max_abs = self.max_abs.max(error.abs());
            self.error += error * error;
            self.signal += a * a;
            dot += a * b;
            aa += a * a;
            bb += b * b;
        }
        let cosine = if self.nonfinite > broken {
            0.0
        } else if aa == bb && dot == aa {
            // Equal, or both zero.
            1.0
        } else if aa == 0.0 || bb == 0.0 {
            0.0
        } else {
            (dot / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0)
        };
        self.cosine_min = if self.samples == 0 {
            cosine
        } else {
            self.cosine_min.min(cosine)
        };
        self.cosines += cosine;
        self.samples += 1;
    }

    pub(crate) fn finish(&self, name: &str) -> OutputDifference {
        let broken = self.nonfinite > 0;
        let share = self.mismatches as f64 / (self.elements.max(1)) as f64;
        let size = (self.signal / (self.elements.max(1)) as f64).sqrt();
        let max_rel = if self.discrete {
            share
        } else if broken {
            f64::MAX
        } else if size > 0.0 {
            self.max_abs / size
        } else {
            self.max_abs
        };
        let sqnr_db = if broken {
            Some(BROKEN_SQNR_DB)
        } else if self.error > 0.0 {
            let db = 10.0 * (self.signal / self.error).log10();
            Some(db.max(BROKEN_SQNR_DB))
        } else {
            None
        };
        let cosine = (self.numeric && self.samples > 0).then(|| self.cosines / self.samples as f64);
        OutputDifference {
            name: name.to_string(),
            elements: self.elements,
            max_abs: if broken { f64::MAX } else { self.max_abs },
            max_rel,
            sqnr_db,
            cosine,
            cosine_min: cosine.map(|_| self.cosine_min),
            mismatches: self.mismatches,
            nonfinite: self.nonfinite,
        }
    }
}

/// How often the largest scores agree with each other and with the labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores {
    rows: u64,
    agreeing: u64,
    labelled: u64,
    top1: [u64; 2],
    top5: [u64; 2],
    /// There are more than five classes.
    many: bool,
    /// Why there is no agreement or accuracy.
    pub(crate) obstacle: Option<String>,
}

/// The class of the largest score, the first of equals; not-a-numbers are the smallest.
fn largest(row: &[f64]) -> usize {
    let mut best = 0;
    let mut score = f64::NEG_INFINITY;
    for (i, &v) in row.iter().enumerate() {
        if v > score {
            (best, score) = (i, v);
        }
    }
    best
}

/// Whether fewer than five classes score higher than this one.
fn among_five(row: &[f64], class: usize) -> bool {
    let Some(&own) = row.get(class) else {
        return false;
    };
    let higher = |&(i, &v): &(usize, &f64)| v > own || (v == own && i < class);
    !own.is_nan() && row.iter().enumerate().filter(higher).count() < 5
}

impl Scores {
    pub(crate) fn add(
        &mut self,
        before: &Tensor,
        after: &Tensor,
        labels: Option<&[i64]>,
        batch: usize,
        count: usize,
    ) {
        let (Some(a), Some(b)) = (before.to_f64s(), after.to_f64s()) else {
            self.obstacle = Some(format!("its elements are {}", before.dtype()));
            return;
        };
        let a = samples_of(&a, before.dims(), batch, count);
        let b = samples_of(&b, before.dims(), batch, count);
        let classes = before.dims().last().copied().unwrap_or(1);
        let numbers = !before.dtype().is_float();
        if !numbers && classes < 2 {
            self.obstacle =
                Some("its last axis holds one number, not a score for each class".to_string());
            return;
        }
        let width = if numbers { 1 } else { classes };
        self.many = !numbers && classes > 5;
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
            for (a, b) in rows.clone() {
                self.rows += 1;
                self.agreeing += u64::from(class(a, numbers) == class(b, numbers));
            }
            let Some(&label) = labels.and_then(|l| l.get(i)) else {
                continue;
            };
            let mut rows = rows;
            match (rows.next(), rows.next()) {
                (Some((a, b)), None) => self.judge(a, b, label, numbers),
                _ => {
                    self.obstacle = Some(format!(
                        "it is {:?}, more than one decision for each label",
                        before.dims()
                    ));
                }
            }
        }
    }

    fn judge(&mut self, before: &[f64], after: &[f64], label: i64, numbers: bool) {
        self.labelled += 1;
        let rows = [before, after];
        for (row, (top1, top5)) in rows.iter().zip(self.top1.iter_mut().zip(&mut self.top5)) {
            *top1 += u64::from(class(row, numbers) == label);
            let hit = usize::try_from(label).is_ok_and(|l| among_five(row, l));
            *top5 += u64::from(hit);
        }
    }

    pub(crate) fn agreement(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.agreeing as f64 / self.rows as f64)
    }

    /// Top-1 and top-5 before and after.
    pub(crate) fn accuracy(&self) -> Option<([f64; 2], Option<[f64; 2]>)> {
        if self.labelled == 0 || self.obstacle.is_some() {
            return None;
        }
        let share = |hits: [u64; 2]| hits.map(|h| h as f64 / self.labelled as f64);
        Some((share(self.top1), self.many.then(|| share(self.top5))))
    }
}

fn class(row: &[f64], numbers: bool) -> i64 {
    match (numbers, row.first()) {
        (true, Some(&v)) => v as i64,
        _ => i64::try_from(largest(row)).unwrap_or(-1),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    fn difference(a: &[f32], b: &[f32]) -> OutputDifference {
        let mut sums = Sums::default();
        let t = |v: &[f32]| Tensor::from_vec([1, v.len()], v.to_vec()).unwrap();
        sums.add(&t(a), &t(b), 1, 1).unwrap();
        sums.finish("y")
    }

    #[test]
    fn equal_outputs_have_no_sqnr() {
        let d = difference(
            &[1.0, f32::NAN, f32::INFINITY],
            &[1.0, f32::NAN, f32::INFINITY],
        );
        assert_eq!((d.max_abs, d.sqnr_db, d.mismatches), (0.0, None, 0));
        assert_eq!(d.cosine, Some(1.0));
    }

    #[test]
    fn errors_are_measured_against_the_reference() {
        let d = difference(&[3.0, 4.0], &[3.0, 4.5]);
        assert_eq!(d.max_abs, 0.5);
        assert!((d.max_rel - 0.5 / 12.5f64.sqrt()).abs() < 1e-12);
        assert!((d.sqnr_db.unwrap() - 20.0).abs() < 1e-9);
        let d = difference(&[1.0, 0.0], &[0.0, 1.0]);
        assert_eq!(d.cosine, Some(0.0));
    }

    #[test]
    fn a_new_not_a_number_is_no_small_difference() {
        let d = difference(&[1.0, 2.0], &[1.0, f32::NAN]);
        assert_eq!(
            (d.max_abs, d.sqnr_db, d.nonfinite),
            (f64::MAX, Some(BROKEN_SQNR_DB), 1)
        );
        assert_eq!(d.cosine_min, Some(0.0));
        // And it stays in the JSON as a number.
        assert!(!serde_json::to_string(&d).unwrap().contains("null"));
    }

    #[test]
    fn padding_is_not_counted() {
        let a = Tensor::from_vec([2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let b = Tensor::from_vec([2, 2], vec![1f32, 2.0, 9.0, 9.0]).unwrap();
        let mut sums = Sums::default();
        sums.add(&a, &b, 2, 1).unwrap();
        assert_eq!(sums.finish("y").max_abs, 0.0);
        assert!(sums.add(&a, &a.reshaped([4]).unwrap(), 2, 1).is_err());
    }

    #[test]
    fn whole_numbers_are_compared_exactly() {
        let mut sums = Sums::default();
        let (a, b) = (
            Tensor::vector(vec![1i64, 2, 3, 4]),
            Tensor::vector(vec![1i64, 2, 3, 9]),
        );
        sums.add(&a, &b, 4, 4).unwrap();
        let d = sums.finish("y");
        assert_eq!((d.max_rel, d.mismatches, d.max_abs), (0.25, 1, 5.0));
    }

    #[test]
    fn accuracy_counts_the_first_of_equals() {
        let a = Tensor::from_vec([2, 3], vec![0.5f32, 0.5, 0.0, 0.0, 1.0, f32::NAN]).unwrap();
        let b = Tensor::from_vec([2, 3], vec![0.0f32, 1.0, 0.0, 0.0, 1.0, 0.0]).unwrap();
        let mut scores = Scores::default();
        scores.add(&a, &b, Some(&[0, 1]), 2, 2);
        assert_eq!(scores.agreement(), Some(0.5));
        assert_eq!(scores.accuracy(), Some(([1.0, 0.5], None)));
        let row = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
        assert!(among_five(&row, 4) && !among_five(&row, 5) && !among_five(&row, 9));
    }

    #[test]
    fn one_label_needs_one_decision() {
        let t = Tensor::from_vec([1, 2, 2], vec![0f32; 4]).unwrap();
        let mut scores = Scores::default();
        scores.add(&t, &t, Some(&[0]), 1, 1);
        assert_eq!((scores.accuracy(), scores.agreement()), (None, Some(1.0)));
        assert!(scores.obstacle.is_some());
    }
}

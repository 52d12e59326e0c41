//! Which positions of padded sequences count.
//!
//! Models of sequences take a mask beside the tokens: 1 where a token is, 0 where a short
//! sequence was filled up. What the model computes at the others is not used by anybody, and in
//! batches of short texts they are the most; statistics that count them are about padding.

use std::borrow::Cow;

use crate::engine::Sample;
use crate::graph::Graph;
use crate::tensor::DType;

/// What the names of masks end in that hold 1 where a token is.
const NAMES: [&str; 2] = ["attention_mask", "input_mask"];

/// The positions of a run that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    batch: usize,
    steps: usize,
    counts: Vec<bool>,
}

impl Mask {
    /// The mask among the inputs of a run: the first of two axes, `[batch, steps]`, in whole numbers,
    /// whose name ends in `attention_mask` or `input_mask` and that holds 0 and 1 only. `None` where
    /// there is none, or where every position counts or no position does.
    ///
    /// These names and numbers stand for tokens wherever they are used. Other masks are not taken:
    /// in a `key_padding_mask`, and in most masks of truth values, 1 stands for what was filled up.
    pub fn of(graph: &Graph, sample: &Sample) -> Option<Mask> {
        let mut inputs = graph.inputs().iter().zip(&sample.inputs);
        inputs.find_map(|(&v, tensor)| {
            let &[batch, steps] = tensor.dims() else {
                return None;
            };
            let name = graph.value(v).name().to_ascii_lowercase();
            let named = NAMES.iter().any(|n| name.ends_with(n)) && tensor.dtype() != DType::Bool;
            let all = tensor.to_i64s().filter(|_| named)?;
            let counts: Vec<bool> = all.iter().map(|&x| x == 1).collect();
            let binary = all.iter().all(|&x| x == 0 || x == 1);
            let some = counts.contains(&true) && counts.contains(&false);
            (binary && some).then_some(Mask {
                batch,
                steps,
                counts,
            })
        })
    }

    /// How many positions are left out, of how many.
    pub fn left_out(&self) -> (usize, usize) {
        let out = self.counts.iter().filter(|c| !**c).count();
        (out, self.counts.len())
    }

    /// By row of a value, all its axes but the last taken together, whether it counts. `None` for
    /// values that don't run along the positions: those whose first axes are neither
    /// `[batch, steps]` nor, of two axes, their product.
    pub fn rows(&self, dims: &[usize]) -> Option<Vec<bool>> {
        let (_, outer) = dims.split_last()?;
        match *outer {
            [rows] if rows == self.counts.len() => Some(self.counts.clone()),
            [batch, steps, ref inner @ ..] if (batch, steps) == (self.batch, self.steps) => {
                let inner = inner.iter().product();
                let repeated = |&c: &bool| std::iter::repeat_n(c, inner);
                Some(self.counts.iter().flat_map(repeated).collect())
            }
            _ => None,
        }
    }

    /// The elements of a value in rows that count; all of them where there is no mask or the value
    /// doesn't run along the positions.
    pub fn counted<'a, T: Copy>(
        mask: Option<&Mask>,
        dims: &[usize],
        elements: &'a [T],
    ) -> Cow<'a, [T]> {
        let width = dims.last().copied().unwrap_or(1).max(1);
        let rows = mask.and_then(|m| m.rows(dims));
        let Some(rows) = rows.filter(|r| r.len().checked_mul(width) == Some(elements.len())) else {
            return Cow::Borrowed(elements);
        };
        let kept = elements
            .chunks(width)
            .zip(rows)
            .filter(|(_, counts)| *counts);
        Cow::Owned(kept.flat_map(|(row, _)| row.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::tensor::Tensor;
    use crate::text::parse_model;

    fn mask(numbers: [i64; 6]) -> Option<Mask> {
        named("attention_mask", numbers)
    }

    fn named(name: &str, numbers: [i64; 6]) -> Option<Mask> {
        let text = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (int64[b,s] input_ids, int64[b,s] NAME) => (int64[b,s] y) {
                y = Add (input_ids, NAME)
            }"#;
        let model = parse_model(&text.replace("NAME", name)).unwrap();
        let tensor = |n: [i64; 6]| Tensor::from_vec([2, 3], n.to_vec()).unwrap();
        let sample = Sample {
            inputs: vec![tensor([0, 1, 0, 1, 1, 0]), tensor(numbers)],
            ..Sample::default()
        };
        Mask::of(&model.graph, &sample)
    }

    #[test]
    fn rows_count_where_the_mask_says_so() {
        let mask = mask([1, 1, 0, 1, 0, 0]).unwrap();
        assert_eq!(mask.left_out(), (3, 6));
        let rows = vec![true, true, false, true, false, false];
        assert_eq!(mask.rows(&[2, 3, 7]), Some(rows.clone()));
        assert_eq!(mask.rows(&[6, 7]), Some(rows));
        let heads = mask.rows(&[2, 3, 2, 7]).unwrap();
        assert_eq!(heads[..6], [true, true, true, true, false, false]);
        let all: Vec<i32> = (0..12).collect();
        assert_eq!(
            *Mask::counted(Some(&mask), &[2, 3, 2], &all),
            [0, 1, 2, 3, 6, 7]
        );
    }

    #[test]
    fn what_does_not_run_along_positions_counts_whole() {
        let mask = mask([1, 1, 0, 1, 0, 0]).unwrap();
        assert_eq!(mask.rows(&[2, 7]), None);
        assert_eq!(mask.rows(&[2, 4, 3, 3]), None);
        assert_eq!(
            *Mask::counted(Some(&mask), &[2, 2], &[1, 2, 3, 4]),
            [1, 2, 3, 4]
        );
    }

    #[test]
    fn numbers_that_are_no_mask_are_not_taken_for_one() {
        assert_eq!(mask([1, 2, 0, 1, 0, 0]), None);
        assert_eq!(mask([1; 6]), None);
        assert_eq!(mask([0; 6]), None);
        // Here 1 stands for padding.
        assert_eq!(named("key_padding_mask", [1, 1, 0, 1, 0, 0]), None);
        assert!(named("bert_input_mask", [1, 1, 0, 1, 0, 0]).is_some());
    }
}

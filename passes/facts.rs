//! What passes know about values while they edit, axes as attributes or inputs, and shapes as
//! targets of `Reshape`.

use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::analysis::shapes::SymDim;
use paring_ir::{DType, Graph, Model, OpId, PassContext, ValueId};

use crate::common::any_op;

/// The oldest opset that rewrites read: before 7, binary operators broadcast by attributes.
pub(crate) const OLDEST_OPSET: i64 = 7;

/// Longer lists of integers are not looked at.
const MAX_INTS: usize = 4096;

/// Facts about the values of a model before a pass edits it. Rewrites keep every value that
/// survives equal to what it was, so a fact holds for as long as its value is there; of values
/// that the pass adds nothing is known but constants and declared types.
pub(crate) struct Facts {
    shapes: Arc<Shapes>,
    /// The version of the standard operators.
    pub(crate) opset: i64,
}

impl Facts {
    /// The facts, when some operator of any graph is a candidate; the analysis is not run otherwise.
    pub(crate) fn when(
        model: &Model,
        cx: &mut PassContext<'_>,
        candidate: impl Fn(&Graph, OpId) -> bool,
    ) -> Option<Facts> {
        let opset = model.opset();
        (opset >= OLDEST_OPSET && any_op(model, candidate)).then(|| Facts {
            shapes: cx.analysis::<Shapes>(model),
            opset,
        })
    }

    /// One dimension of a value, when it is a fixed number.
    pub(crate) fn dim(&self, graph: &Graph, v: ValueId, axis: usize) -> Option<usize> {
        match graph.tensor(v) {
            Some(t) => t.dims().get(axis).copied(),
            None => usize::try_from(self.shapes.dims(v)?.get(axis)?.known()?).ok(),
        }
    }

    /// The dimensions of a value, when their number is known.
    pub(crate) fn dims(&self, graph: &Graph, v: ValueId) -> Option<Vec<SymDim>> {
        match graph.tensor(v) {
            Some(t) => Some(t.dims().iter().map(|&d| SymDim::from(d)).collect()),
            None => self.shapes.dims(v).map(<[SymDim]>::to_vec),
        }
    }

    /// The number of dimensions.
    pub(crate) fn rank(&self, graph: &Graph, v: ValueId) -> Option<usize> {
        match graph.tensor(v) {
            Some(t) => Some(t.rank()),
            None => self.shapes.rank(v),
        }
    }

    /// The element type.
    pub(crate) fn dtype(&self, graph: &Graph, v: ValueId) -> Option<DType> {
        match graph.tensor(v) {
            Some(t) => Some(t.dtype()),
            None => self
                .shapes
                .dtype(v)
                .or_else(|| graph.value(v).declared_type()?.dtype()),
        }
    }

    /// Whether an elementwise operator with a constant of `constant_rank` dimensions, all of
    /// them 1, gives `v` its own shape back: the constant must not add dimensions.
    pub(crate) fn keeps_rank(&self, graph: &Graph, v: ValueId, constant_rank: usize) -> bool {
        constant_rank == 0 || self.rank(graph, v).is_some_and(|r| r >= constant_rank)
    }

    /// The elements of a value that are known integers, whether it is a constant or computed.
    pub(crate) fn ints(&self, graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
        match graph.tensor(v) {
            Some(t) if t.dtype().is_integer() && t.len() <= MAX_INTS => t.to_i64s(),
            Some(_) => None,
            None => self.shapes.fact(v)?.known_i64s(),
        }
    }

    /// The elements of a value as expressions over sizes.
    pub(crate) fn exprs(&self, graph: &Graph, v: ValueId) -> Option<Vec<SymDim>> {
        if let Some(known) = self.ints(graph, v) {
            return Some(known.into_iter().map(SymDim::from).collect());
        }
        self.shapes.fact(v)?.contents.as_ref()?.exprs()
    }

    /// The integers in an input slot.
    pub(crate) fn input_ints(&self, graph: &Graph, op: OpId, slot: usize) -> Option<Vec<i64>> {
        self.ints(graph, graph.get_op(op)?.input(slot)?)
    }

    /// The axes of an operator that has them as an attribute in old opsets and as an input in new
    /// ones; `Ok(None)` when it names none, `Err` when they are not known.
    pub(crate) fn axes(
        &self,
        graph: &Graph,
        op: OpId,
        slot: usize,
    ) -> Result<Option<Vec<i64>>, Unknown> {
        let o = graph.op(op);
        if let Some(axes) = o.ints("axes") {
            return Ok(Some(axes.to_vec()));
        }
        if o.attr("axes").is_some() {
            return Err(Unknown);
        }
        match o.input(slot) {
            None => Ok(None),
            Some(v) => self.ints(graph, v).map(Some).ok_or(Unknown),
        }
    }

    /// The permutation of a `Transpose`; by default the axes are reversed.
    pub(crate) fn perm(&self, graph: &Graph, op: OpId) -> Option<Vec<usize>> {
        let o = graph.op(op);
        match o.attr("perm") {
            Some(_) => permutation(o.ints("perm")?),
            None => {
                let rank = self
                    .rank(graph, o.input(0)?)
                    .or_else(|| self.rank(graph, o.output(0)?))?;
                Some((0..rank).rev().collect())
            }
        }
    }
}

/// Something is not known before the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

/// A permutation written as integers; `None` when it is none.
pub(crate) fn permutation(perm: &[i64]) -> Option<Vec<usize>> {
    let mut seen = vec![false; perm.len()];
    perm.iter()
        .map(|&p| {
            let p = usize::try_from(p).ok()?;
            let slot = seen.get_mut(p)?;
            (!std::mem::replace(slot, true)).then_some(p)
        })
        .collect()
}

/// The permutation that undoes another.
pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        if let Some(o) = out.get_mut(p) {
            *o = i;
        }
    }
    out
}

/// The axis counted from the front; `None` when it is out of range.
pub(crate) fn axis_from_front(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank_i)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The axes counted from the front, ascending; `None` when one is out of range or there twice.
/// Without negative axes no rank is needed.
pub(crate) fn axes_from_front(axes: &[i64], rank: Option<usize>) -> Option<Vec<usize>> {
    let mut out: Vec<usize> = axes
        .iter()
        .map(|&a| match rank {
            Some(rank) => axis_from_front(a, rank),
            None => usize::try_from(a).ok(),
        })
        .collect::<Option<_>>()?;
    out.sort_unstable();
    out.windows(2).all(|w| w[0] != w[1]).then_some(out)
}

/// Whether a size is surely at least 1.
pub(crate) fn is_positive(d: &SymDim) -> bool {
    d.lower_bound().is_some_and(|low| low >= 1)
}

/// Whether two shapes are equal for all sizes.
pub(crate) fn same_dims(a: &[SymDim], b: &[SymDim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

/// A target of `Reshape` (with `allowzero` 0) that turns a value of the dimensions `from` into
/// the dimensions `to`, which hold as many elements, whatever the sizes are:
/// - a known size other than 0 stands for itself;
/// - 0 copies the size of the input at the same place;
/// - one -1 is what remains. It is worked out by division, so all other sizes must be surely not 0.
pub(crate) fn reshape_target(from: Option<&[SymDim]>, to: &[SymDim]) -> Option<Vec<i64>> {
    let symbolic = to.iter().filter(|d| d.known().is_none()).count();
    let others_positive = |i: usize| to.iter().enumerate().all(|(j, d)| j == i || is_positive(d));
    let mut inferred = false;
    to.iter()
        .enumerate()
        .map(|(i, d)| {
            if let Some(v) = d.known().filter(|&v| v > 0) {
                return Some(v);
            }
            // A lone unknown size is written as -1, as exporters do.
            if symbolic == 1 && others_positive(i) {
                return Some(-1);
            }
            if from.and_then(|f| f.get(i)) == Some(d) {
                return Some(0);
            }
            (!std::mem::replace(&mut inferred, true) && others_positive(i)).then_some(-1)
        })
        .collect()
}

/// The axes of `to` that are 1-sized insertions into `from`, when `to` is just that.
pub(crate) fn inserted_axes(from: &[SymDim], to: &[SymDim]) -> Option<Vec<i64>> {
    let mut rest = from.iter().peekable();
    let mut missing = to.len().checked_sub(from.len())?;
    let mut axes = Vec::new();
    for (i, d) in to.iter().enumerate() {
        // A size of 1 is matched with one of the input's as early as possible; any matching
        // describes the same elements.
        if rest.peek() == Some(&d) {
            rest.next();
        } else if d.known() == Some(1) && missing > 0 {
            missing -= 1;
            axes.push(i64::try_from(i).ok()?);
        } else {
            return None;
        }
    }
    (rest.next().is_none() && !axes.is_empty()).then_some(axes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &[&str]) -> Vec<SymDim> {
        text.iter()
            .map(|t| match t.parse::<i64>() {
                Ok(v) => SymDim::from(v),
                Err(_) => SymDim::named(*t),
            })
            .collect()
    }

    #[test]
    fn a_target_is_made_for_every_size() {
        let t = |from: &[&str], to: &[&str]| reshape_target(Some(&dims(from)), &dims(to));
        assert_eq!(t(&["n", "6"], &["n", "2", "3"]), Some(vec![-1, 2, 3]));
        assert_eq!(
            t(&["n", "t", "6"], &["n", "t", "2", "3"]),
            Some(vec![0, 0, 2, 3])
        );
        // The second size stands at another place, and "n" might be 0.
        assert_eq!(t(&["n", "4", "t"], &["n", "t", "4"]), None);
        // A size of 0 is copied, or it is what remains of no elements.
        assert_eq!(t(&["0", "2"], &["0", "1", "2"]), Some(vec![0, 1, 2]));
        assert_eq!(t(&["2", "0"], &["0", "2"]), Some(vec![-1, 2]));
        assert_eq!(t(&["2", "n", "0"], &["0", "n", "2"]), None);
    }

    #[test]
    fn insertions_of_ones_are_seen() {
        let t = |from: &[&str], to: &[&str]| inserted_axes(&dims(from), &dims(to));
        assert_eq!(t(&["n", "t"], &["n", "1", "t"]), Some(vec![1]));
        assert_eq!(t(&["1", "t"], &["1", "1", "t"]), Some(vec![1]));
        assert_eq!(t(&["n", "t"], &["t", "1", "n"]), None);
        assert_eq!(t(&["n"], &["n"]), None);
    }

    #[test]
    fn axes_are_counted_from_the_front() {
        assert_eq!(axes_from_front(&[-1, 0], Some(3)), Some(vec![0, 2]));
        assert_eq!(axes_from_front(&[0, 2], None), Some(vec![0, 2]));
        assert_eq!(axes_from_front(&[-1], None), None);
        assert_eq!(axes_from_front(&[0, -3], Some(3)), None);
        assert_eq!(axes_from_front(&[3], Some(3)), None);
        assert_eq!(permutation(&[1, 1]), None);
        assert_eq!(inverse(&[2, 0, 1]), [1, 2, 0]);
    }
}

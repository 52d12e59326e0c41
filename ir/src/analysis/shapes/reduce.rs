//! Reductions along axes, ArgMax, and the losses.

use super::cx::{Cx, Outs, filled, many, no_dims, one, typed};
use super::dim::SymDim;
use super::fact::{Contents, SymDims};
use super::layout::{Axes, axes_since};
use crate::tensor::DType;

/// Dimensions with some axes reduced to 1 or taken away.
fn reduced(dims: &SymDims, axes: &[usize], keep: bool) -> SymDims {
    let mut out = SymDims::new();
    for (i, d) in dims.iter().enumerate() {
        if !axes.contains(&i) {
            out.push(d.clone());
        } else if keep {
            out.push(1i64.into());
        }
    }
    out
}

/// A reduction whose axes are an input since some version.
pub(super) fn reduce(cx: &Cx<'_, '_>, input_since: i64) -> Outs {
    one(typed(cx.dtype(0), reduce_dims(cx, input_since)))
}

fn reduce_dims(cx: &Cx<'_, '_>, input_since: i64) -> Option<SymDims> {
    let dims = cx.dims(0)?;
    let keep = cx.int_or("keepdims", 1) != 0;
    let axes = match axes_since(cx, 1, input_since) {
        Axes::Known(axes) => cx.axes(&axes, dims.len())?,
        Axes::Absent => Vec::new(),
        Axes::Unknown(_) if keep => return Some(cx.fresh_dims(dims.len())),
        Axes::Unknown(Some(n)) if n > 0 => {
            return Some(cx.fresh_dims(dims.len().checked_sub(n)?));
        }
        Axes::Unknown(_) => return None,
    };
    if !axes.is_empty() {
        return Some(reduced(dims, &axes, keep));
    }
    if cx.flag("noop_with_empty_axes") && cx.opset >= input_since {
        return Some(dims.clone());
    }
    let all: Vec<usize> = (0..dims.len()).collect();
    Some(reduced(dims, &all, keep))
}

/// A reduction of which small contents of one dimension are worked out.
pub(super) fn reduce_known(
    cx: &Cx<'_, '_>,
    input_since: i64,
    f: fn(&SymDim, &SymDim) -> Option<SymDim>,
) -> Outs {
    let dims = reduce_dims(cx, input_since);
    let known = dims.as_ref().and_then(|dims| {
        let all = cx.exprs(0)?;
        // One element is left, so all elements of the vector are reduced.
        let one_left = cx.rank(0)? == 1 && SymDim::product(dims)?.known() == Some(1);
        if !one_left || dims.len() > 1 {
            return None;
        }
        let (first, rest) = all.split_first()?;
        let result = rest.iter().try_fold(first.clone(), |a, b| f(&a, b))?;
        let in_range = cx.dtype(0) != Some(DType::I32)
            || result.known().is_none_or(|v| i32::try_from(v).is_ok());
        in_range.then(|| Contents::from_exprs(vec![result]))
    });
    one(filled(cx.dtype(0), dims, known))
}

pub(super) fn arg_max(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let axis = cx.axis(cx.int_or("axis", 0), d.len())?;
        Some(reduced(d, &[axis], cx.int_or("keepdims", 1) != 0))
    });
    one(typed(Some(DType::I64), dims))
}

/// A loss: one per label, or reduced to a scalar.
fn loss_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    match cx.string("reduction").unwrap_or("mean") {
        "none" => cx.dims(1).cloned(),
        _ => Some(no_dims()),
    }
}

pub(super) fn nll_loss(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(0), loss_dims(cx)))
}

pub(super) fn softmax_cross_entropy_loss(cx: &Cx<'_, '_>) -> Outs {
    many([typed(cx.dtype(0), loss_dims(cx)), cx.like(0)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::DType;

    #[test]
    fn axes_by_attribute_and_by_input() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,c,h");
        let axes = t.ints(&[-1]);
        let a = t.op1(NewOp::new("ReduceSum").input(x).input(axes));
        let op = || NewOp::new("ReduceMean").input(x);
        let b = t.op1(op().attr("axes", vec![1i64, 2]).attr("keepdims", 0i64));
        let c = t.op1(op().attr("keepdims", 0i64));
        let d = t.op1(
            NewOp::new("ReduceSum")
                .input(x)
                .attr("noop_with_empty_axes", 1i64),
        );
        let open = t.input("axes", DType::I64, "2");
        let e = t.op1(
            NewOp::new("ReduceSum")
                .input(x)
                .input(open)
                .attr("keepdims", 0i64),
        );
        let f = t.op1(op().attr("axes", vec![3i64]));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,c,1]");
        assert_eq!(shapes.show(b), "float[n]");
        assert_eq!(shapes.show(c), "float[]");
        assert_eq!(shapes.show(d), "float[n,c,h]");
        assert_eq!(shapes.show(e), "float[?]");
        assert_eq!(shapes.show(f), "float?");
    }

    #[test]
    fn products_of_shapes_are_worked_out() {
        let mut t = Test::new(18);
        let x = t.input("x", DType::F32, "n,c,4");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let keep = |op: &str| NewOp::new(op).input(shape).attr("keepdims", 0i64);
        let a = t.op1(keep("ReduceProd"));
        let b = t.op1(keep("ReduceSum"));
        let c = t.op1(keep("ReduceMin"));
        let shapes = t.infer();
        assert_eq!(shapes.elements(a), "4*c*n");
        assert_eq!(shapes.elements(b), "n + c + 4");
        assert_eq!(shapes.elements(c), "min(4, min(c, n))");
    }

    #[test]
    fn positions_and_losses() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,c");
        let labels = t.input("l", DType::I64, "n");
        let a = t.op1(NewOp::new("ArgMax").input(x).attr("axis", -1i64));
        let op = || NewOp::new("SoftmaxCrossEntropyLoss").input(x).input(labels);
        let b = t.op(op(), 2);
        let c = t.op1(op().attr("reduction", "none"));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "int64[n,1]");
        assert_eq!(shapes.show(b[0]), "float[]");
        assert_eq!(shapes.show(b[1]), "float[n,c]");
        assert_eq!(shapes.show(c), "float[n]");
    }
}

//! Operators that pick or place elements: Gather, Scatter, OneHot, TopK, NonZero and their like.

use super::cx::{Cx, Outs, filled, many, no_dims, one, typed, vector};
use super::dim::SymDim;
use super::elementwise::small_dims;
use super::fact::{Contents, MAX_FLOATS, MAX_INTS, SymDims};
use crate::tensor::DType;

pub(super) fn gather(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype(0);
    let dims = gather_dims(cx);
    let known = dims.as_ref().and_then(|d| gather_contents(cx, d));
    one(filled(dtype, dims, known))
}

fn gather_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let (data, indices) = (cx.dims(0)?, cx.dims(1)?);
    let axis = cx.axis(cx.int_or("axis", 0), data.len())?;
    let mut dims: SymDims = data.iter().take(axis).cloned().collect();
    dims.extend(indices.iter().cloned());
    dims.extend(data.iter().skip(axis.checked_add(1)?).cloned());
    Some(dims)
}

/// Elements of a vector.
fn gather_contents(cx: &Cx<'_, '_>, dims: &SymDims) -> Option<Contents> {
    let contents = cx.contents(0)?;
    if cx.rank(0)? != 1 || small_dims(dims).is_none() {
        return None;
    }
    let len = i64::try_from(contents.len()).ok()?;
    let mut places = Vec::new();
    for i in cx.known_ints(1)? {
        let at = if i < 0 { i.checked_add(len)? } else { i };
        if at < 0 || at >= len {
            return cx.refuse(format!("index {i} into {len} elements"));
        }
        places.push(usize::try_from(at).ok()?);
    }
    if let Contents::Floats(v) = contents {
        let all: Option<Vec<f64>> = places.iter().map(|&i| v.get(i).copied()).collect();
        return all
            .filter(|a| a.len() <= MAX_FLOATS)
            .map(|a| Contents::Floats(a.into()));
    }
    let all = contents.exprs()?;
    let all: Option<Vec<SymDim>> = places.iter().map(|&i| all.get(i).cloned()).collect();
    Some(Contents::from_exprs(all?))
}

/// The shape of the indices under the element type of the data.
pub(super) fn gather_elements(cx: &Cx<'_, '_>) -> Outs {
    one(cx.shared(cx.dtype(0), cx.dims(1).cloned()))
}

pub(super) fn gather_nd(cx: &Cx<'_, '_>) -> Outs {
    let dims = (|| {
        let (data, indices) = (cx.dims(0)?, cx.dims(1)?);
        let batch = usize::try_from(cx.int_or("batch_dims", 0)).ok()?;
        let (last, before) = indices.split_last()?;
        let depth = usize::try_from(last.known()?).ok()?;
        let from = batch.checked_add(depth)?;
        if from > data.len() {
            return cx.refuse(format!(
                "indices of {from} axes into {} dimensions",
                data.len()
            ));
        }
        let mut dims: SymDims = before.iter().cloned().collect();
        dims.extend(data.iter().skip(from).cloned());
        Some(dims)
    })();
    one(typed(cx.dtype(0), dims))
}

/// One of few elements along a new axis.
pub(super) fn one_hot(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|indices| {
        let axis = cx.axis(cx.int_or("axis", -1), indices.len().checked_add(1)?)?;
        let depth = cx.scalar(1).or_else(|| match cx.floats(1)?.as_slice() {
            [v] if v.abs() < 9e15 => Some((*v as i64).into()),
            _ => None,
        });
        let mut dims = indices.clone();
        dims.insert(axis, cx.size(depth));
        Some(dims)
    });
    one(typed(cx.dtype(2), dims))
}

pub(super) fn top_k(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let axis = cx.axis(cx.int_or("axis", -1), d.len())?;
        let k = if cx.opset < 10 {
            cx.int("k").map(SymDim::from)
        } else {
            cx.scalar(1)
        };
        let mut dims = d.clone();
        let size = dims.get_mut(axis)?;
        if let (Some(n), Some(k)) = (size.known(), k.as_ref().and_then(SymDim::known))
            && (k > n || k < 0)
        {
            return cx.refuse(format!("the largest {k} of {n} elements"));
        }
        *size = cx.size(k);
        Some(dims)
    });
    many([
        typed(cx.dtype(0), dims.clone()),
        typed(Some(DType::I64), dims),
    ])
}

/// The places of what is not zero; their number depends on the data.
pub(super) fn non_zero(cx: &Cx<'_, '_>) -> Outs {
    let rank = cx.rank(0).map_or_else(|| cx.fresh(), SymDim::from);
    let dims = SymDims::from_iter([rank, cx.fresh()]);
    one(typed(Some(DType::I64), Some(dims)))
}

pub(super) fn compress(cx: &Cx<'_, '_>) -> Outs {
    let dims = match cx.int("axis") {
        None => Some(vector(cx.fresh())),
        Some(axis) => cx.dims(0).and_then(|d| {
            let mut dims = d.clone();
            *dims.get_mut(cx.axis(axis, d.len())?)? = cx.fresh();
            Some(dims)
        }),
    };
    one(typed(cx.dtype(0), dims))
}

pub(super) fn unique(cx: &Cx<'_, '_>) -> Outs {
    let count = cx.fresh();
    let (dims, all) = match (cx.int("axis"), cx.dims(0)) {
        (None, d) => (Some(vector(count.clone())), d.map(|d| cx.product(d))),
        (Some(axis), Some(d)) => match cx.axis(axis, d.len()) {
            Some(axis) => {
                let mut dims = d.clone();
                if let Some(d) = dims.get_mut(axis) {
                    *d = count.clone();
                }
                (Some(dims), d.get(axis).cloned())
            }
            None => (None, None),
        },
        (Some(_), None) => (None, None),
    };
    let ints = |n: SymDim| typed(Some(DType::I64), Some(vector(n)));
    many([
        typed(cx.dtype(0), dims),
        ints(count.clone()),
        ints(all.unwrap_or_else(|| cx.fresh())),
        ints(count),
    ])
}

pub(super) fn non_max_suppression(cx: &Cx<'_, '_>) -> Outs {
    let dims = SymDims::from_iter([cx.fresh(), 3i64.into()]);
    one(typed(Some(DType::I64), Some(dims)))
}

/// Elements replaced by slices of the update: the contents of a small vector whose places are known.
pub(super) fn scatter_nd(cx: &Cx<'_, '_>) -> Outs {
    let known = (|| {
        let mut all = cx.contents(0)?.exprs()?;
        let reduces = cx.string("reduction").is_some_and(|r| r != "none");
        if cx.rank(0)? != 1 || reduces || all.len() > MAX_INTS {
            return None;
        }
        let (places, updates) = (cx.known_ints(1)?, cx.exprs(2)?);
        if places.len() != updates.len() {
            return None;
        }
        let len = i64::try_from(all.len()).ok()?;
        for (i, v) in places.into_iter().zip(updates) {
            let at = if i < 0 { i.checked_add(len)? } else { i };
            *all.get_mut(usize::try_from(at).ok()?)? = v;
        }
        Some(Contents::from_exprs(all))
    })();
    match cx.fact(0) {
        Some(f) if known.is_some() => one(filled(f.dtype, f.dims.clone(), known)),
        _ => one(cx.like(0)),
    }
}

/// The number of elements of a sequence.
pub(super) fn int_scalar(_: &Cx<'_, '_>) -> Outs {
    one(typed(Some(DType::I64), Some(no_dims())))
}

/// Whether there is something.
pub(super) fn bool_scalar(_: &Cx<'_, '_>) -> Outs {
    one(typed(Some(DType::Bool), Some(no_dims())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn gathers_put_the_indices_in_place_of_the_axis() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,5,h");
        let i = t.input("i", DType::I64, "b,t");
        let scalar = t.int(0);
        let op = |axis: i64| NewOp::new("Gather").attr("axis", axis).input(x);
        let a = t.op1(op(1).input(i));
        let b = t.op1(op(-1).input(scalar));
        let c = t.op1(NewOp::new("GatherElements").input(x).input(i));
        let nd = t.input("nd", DType::I64, "k,2");
        let d = t.op1(NewOp::new("GatherND").input(x).input(nd));
        let batched = t.input("bt", DType::I64, "n,k,1");
        let e = t.op1(
            NewOp::new("GatherND")
                .input(x)
                .input(batched)
                .attr("batch_dims", 1i64),
        );
        let f = t.op1(op(3).input(scalar));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,b,t,h]");
        assert_eq!(shapes.show(b), "float[n,5]");
        assert_eq!(shapes.show(c), "float[b,t]");
        assert_eq!(shapes.show(d), "float[k,h]");
        assert_eq!(shapes.show(e), "float[n,k,h]");
        assert_eq!(shapes.show(f), "float?");
    }

    #[test]
    fn gathered_contents() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,5,h");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let mut at = |i: &[i64]| {
            let i = t.ints(i);
            t.op1(NewOp::new("Gather").input(shape).input(i))
        };
        let (a, b) = (at(&[-1, 0]), at(&[3]));
        let shapes = t.infer();
        assert_eq!(shapes.elements(a), "h n");
        assert_eq!(shapes.elements(b), "-");
        assert!(shapes.conflicts()[0].ends_with("index 3 into 3 elements"));
    }

    #[test]
    fn counts_that_depend_on_data_have_symbols() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,5");
        let nz = t.op1(NewOp::new("NonZero").input(x));
        let cond = t.input("c", DType::Bool, "n");
        let picked = t.op1(
            NewOp::new("Compress")
                .input(x)
                .input(cond)
                .attr("axis", 0i64),
        );
        let relu = t.op1(NewOp::new("Relu").input(picked));
        let unique = t.op(NewOp::new("Unique").input(x), 4);
        let boxes = t.op1(NewOp::new("NonMaxSuppression").input(x).input(x));
        let shapes = t.infer();
        assert_eq!(shapes.show(nz), "int64[2,?]");
        assert_eq!(shapes.show(picked), "float[?,5]");
        // The unknown size is one and the same through elementwise operators.
        assert_eq!(shapes.shapes.dims(picked), shapes.shapes.dims(relu));
        assert_ne!(
            shapes.shapes.dims(picked).unwrap()[0],
            shapes.shapes.dims(nz).unwrap()[1]
        );
        assert_eq!(shapes.show(unique[0]), "float[?]");
        assert_eq!(shapes.show(unique[2]), "int64[5*n]");
        assert_eq!(shapes.shapes.dims(unique[0]), shapes.shapes.dims(unique[3]));
        assert_eq!(shapes.show(boxes), "int64[?,3]");
    }

    #[test]
    fn top_k_and_one_hot_take_their_size_from_an_input() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,9");
        let k = t.ints(&[4]);
        let top = t.op(NewOp::new("TopK").input(x).input(k), 2);
        let depth = t.int(7);
        let values = t.constant(Tensor::vector(vec![0f32, 1.0]));
        let i = t.input("i", DType::I64, "n");
        let hot = t.op1(NewOp::new("OneHot").inputs([i, depth, values].map(Some)));
        let many = t.ints(&[10]);
        let bad = t.op(NewOp::new("TopK").input(x).input(many), 2);
        let shapes = t.infer();
        assert_eq!(shapes.show(top[0]), "float[n,4]");
        assert_eq!(shapes.show(top[1]), "int64[n,4]");
        assert_eq!(shapes.show(hot), "float[n,7]");
        assert_eq!(shapes.show(bad[1]), "int64?");
    }

    #[test]
    fn elements_of_a_shape_are_replaced() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,5,h");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let at = t.constant(Tensor::from_vec([1, 1], vec![1i64]).unwrap());
        let v = t.ints(&[8]);
        let y = t.op1(NewOp::new("ScatterND").inputs([shape, at, v].map(Some)));
        assert_eq!(t.infer().elements(y), "n 8 h");
    }
}

//! Operators that make tensors from attributes and sizes.

use super::cx::{Cx, Out, Outs, filled, no_dims, one, typed, vector};
use super::dim::SymDim;
use super::elementwise::small_dims;
use super::fact::{Contents, MAX_FLOATS, SymDims, TensorFact};
use crate::attr::AttrValue;
use crate::tensor::{DType, Tensor};

/// The fact of a small constant with its float contents, which no initializer holds here.
fn of_tensor(t: &Tensor) -> Out {
    let mut fact = TensorFact::of_tensor(t);
    if t.dtype().is_float() && t.len() <= MAX_FLOATS {
        fact.contents = t.to_f64s().map(|v| Contents::Floats(v.into()));
    }
    Some(fact.into())
}

pub(super) fn constant(cx: &Cx<'_, '_>) -> Outs {
    for attr in cx.op.attrs() {
        let made = match (&*attr.name, cx.attr(&attr.name)) {
            ("value", Some(AttrValue::Tensor(t))) => of_tensor(t),
            ("sparse_value", Some(AttrValue::SparseTensor(t))) => typed(
                Some(t.values.dtype()),
                Some(t.dims.iter().map(|&d| SymDim::from(d)).collect()),
            ),
            ("value_int", Some(AttrValue::Int(v))) => of_tensor(&Tensor::scalar(*v)),
            ("value_float", Some(AttrValue::Float(v))) => of_tensor(&Tensor::scalar(*v)),
            ("value_ints", Some(AttrValue::Ints(v))) => of_tensor(&Tensor::vector(v.as_slice())),
            ("value_floats", Some(AttrValue::Floats(v))) => {
                of_tensor(&Tensor::vector(v.as_slice()))
            }
            ("value_string", Some(AttrValue::String(_))) => {
                typed(Some(DType::String), Some(no_dims()))
            }
            ("value_strings", Some(AttrValue::Strings(v))) => {
                typed(Some(DType::String), Some(vector(v.len())))
            }
            _ => continue,
        };
        return one(made);
    }
    Outs::new()
}

pub(super) fn constant_of_shape(cx: &Cx<'_, '_>) -> Outs {
    let value = cx.tensor_attr("value");
    let dtype = value.map_or(DType::F32, Tensor::dtype);
    let dims: Option<SymDims> = match cx.exprs(0) {
        Some(sizes) => {
            if let Some(v) = sizes.iter().find_map(|d| d.known().filter(|v| *v < 0)) {
                let _: Option<()> = cx.refuse(format!("a dimension of {v}"));
            }
            Some(sizes.into_iter().map(|d| cx.size(Some(d))).collect())
        }
        None => cx
            .dim(0, 0)
            .and_then(SymDim::known)
            .and_then(|n| usize::try_from(n).ok())
            .filter(|&n| n <= super::cx::MAX_RANK)
            .map(|n| cx.fresh_dims(n)),
    };
    let known = dims.as_ref().and_then(small_dims).and_then(|d| {
        let count = crate::tensor::element_count(&d)?;
        match dtype {
            DType::I64 | DType::I32 | DType::Bool => {
                let v = match value {
                    Some(v) => *v.to_i64s()?.first()?,
                    None => 0,
                };
                Some(Contents::Ints(vec![v; count].into()))
            }
            d if d.is_float() && count <= MAX_FLOATS => {
                let v = match value {
                    Some(v) => v.single_f64()?,
                    None => 0.0,
                };
                Some(Contents::Floats(vec![v; count].into()))
            }
            _ => None,
        }
    });
    one(filled(Some(dtype), dims, known))
}

pub(super) fn range(cx: &Cx<'_, '_>) -> Outs {
    let dtype = (0..3).find_map(|i| cx.dtype(i));
    if dtype.is_some_and(DType::is_float) {
        return one(typed(dtype, Some(vector(float_range_len(cx)))));
    }
    let len = (|| {
        let (start, limit, step) = (cx.scalar(0)?, cx.scalar(1)?, cx.scalar(2)?);
        if step.known() == Some(0) {
            return cx.refuse("a step of 0".to_owned());
        }
        limit.sub(&start)?.div_ceil(&step)?.maximum(&0i64.into())
    })();
    let len = cx.size(len);
    let known = len
        .known()
        .filter(|&n| n <= 1024 && matches!(dtype, Some(DType::I64 | DType::I32)))
        .and_then(|n| {
            let (start, step) = (cx.scalar(0)?, cx.scalar(2)?);
            let all: Option<Vec<SymDim>> =
                (0..n).map(|i| start.add(&step.mul(&i.into())?)).collect();
            Some(Contents::from_exprs(all?))
        });
    one(filled(dtype, Some(vector(len)), known))
}

fn float_range_len(cx: &Cx<'_, '_>) -> SymDim {
    let single = |slot| match cx.floats(slot)?.as_slice() {
        [v] => Some(*v),
        _ => None,
    };
    let len = (|| {
        let (start, limit, step) = (single(0)?, single(1)?, single(2)?);
        let n = ((limit - start) / step).ceil().max(0.0);
        (n.is_finite() && n < 9e15).then_some(n as i64)
    })();
    cx.size(len.map(SymDim::from))
}

/// A tensor of a shape in an attribute.
pub(super) fn random(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype_attr("dtype").or(Some(DType::F32));
    let dims = cx
        .ints("shape")
        .map(|s| s.iter().map(|&d| cx.size(Some(d.into()))).collect());
    one(typed(dtype, dims))
}

/// The shape of the input; the element type of an attribute or else of the input.
pub(super) fn like_with_dtype(cx: &Cx<'_, '_>) -> Outs {
    one(cx.like_as(0, cx.dtype_attr("dtype").or(cx.dtype(0))))
}

/// Drawn classes: `[batch, sample_size]`.
pub(super) fn multinomial(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype_attr("dtype").or(Some(DType::I32));
    let dims = match cx.dims(0) {
        Some(_) => cx.dims_of_rank(0, 2).and_then(|d| d.first().cloned()),
        None => Some(cx.fresh()),
    };
    let samples = cx.size(Some(cx.int_or("sample_size", 1).into()));
    let dims = dims.map(|batch| SymDims::from_iter([batch, samples]));
    one(typed(dtype, dims))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn constants_in_every_form() {
        let mut t = Test::new(13);
        let op = || NewOp::new("Constant");
        let a = t.op1(op().attr("value", Tensor::vector(vec![1i64, 2])));
        let b = t.op1(op().attr("value_float", 1.5f32));
        let c = t.op1(op().attr("value_ints", vec![3i64]));
        let d = t.op1(op().attr("value_string", "x"));
        let shapes = t.infer();
        assert_eq!(
            (shapes.show(a), shapes.elements(a)),
            ("int64[2]".into(), "1 2".into())
        );
        assert_eq!(
            (shapes.show(b), shapes.elements(b)),
            ("float[]".into(), "1.5".into())
        );
        assert_eq!(shapes.elements(c), "3");
        assert_eq!(shapes.show(d), "string[]");
    }

    #[test]
    fn a_constant_of_a_computed_shape() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,2");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let a = t.op1(NewOp::new("ConstantOfShape").input(shape));
        let len = t.ints(&[3]);
        let op = NewOp::new("ConstantOfShape").input(len);
        let b = t.op1(op.attr("value", Tensor::vector(vec![7i64])));
        let open = t.input("open", DType::I64, "3");
        let c = t.op1(NewOp::new("ConstantOfShape").input(open));
        let minus = t.ints(&[-3]);
        let d = t.op1(NewOp::new("ConstantOfShape").input(minus));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,2]");
        assert_eq!(shapes.elements(b), "7 7 7");
        assert_eq!(shapes.show(c), "float[?,?,?]");
        assert_eq!(shapes.show(d), "float[?]");
        assert!(shapes.conflicts()[0].ends_with("a dimension of -3"));
    }

    #[test]
    fn ranges_count_their_steps() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n");
        let n = t.op1(NewOp::new("Size").input(x));
        let (zero, one, five, minus) = (t.int(0), t.int(1), t.int(5), t.int(-2));
        let op = |a, b, c| NewOp::new("Range").inputs([a, b, c].map(Some));
        let a = t.op1(op(zero, n, one));
        let b = t.op1(op(five, zero, minus));
        let c = t.op1(op(zero, five, zero));
        let (low, high) = (t.int(i64::MIN), t.int(i64::MAX));
        let d = t.op1(op(low, high, one));
        let f = |v: f32| Tensor::scalar(v);
        let (x, y, z) = (t.constant(f(0.0)), t.constant(f(1.0)), t.constant(f(0.3)));
        let e = t.op1(op(x, y, z));
        let g = t.op1(op(x, y, x));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "int64[n]");
        assert_eq!(shapes.elements(b), "5 3 1");
        assert_eq!(shapes.show(c), "int64[?]");
        assert_eq!(shapes.show(d), "int64[?]");
        assert_eq!(shapes.show(e), "float[4]");
        assert_eq!(shapes.show(g), "float[?]");
    }

    #[test]
    fn random_tensors() {
        let mut t = Test::new(15);
        let x = t.input("x", DType::F16, "n,6");
        let a = t.op1(NewOp::new("RandomNormal").attr("shape", vec![2i64, 3]));
        let b = t.op1(NewOp::new("RandomUniformLike").input(x).attr("dtype", 1i64));
        let c = t.op1(NewOp::new("Bernoulli").input(x));
        let d = t.op1(NewOp::new("Multinomial").input(x).attr("sample_size", 4i64));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[2,3]");
        assert_eq!(shapes.show(b), "float[n,6]");
        assert_eq!(shapes.show(c), "float16[n,6]");
        assert_eq!(shapes.show(d), "int32[n,4]");
    }
}

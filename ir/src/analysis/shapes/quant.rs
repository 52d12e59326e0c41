//! Quantization.

use super::cx::{Cx, Outs, many, no_dims, one, typed};
use crate::tensor::DType;

/// The element type is that of the zero point, or of an attribute, or else uint8.
pub(super) fn quantize_linear(cx: &Cx<'_, '_>) -> Outs {
    let dtype = if cx.has(2) {
        cx.dtype(2)
    } else {
        cx.dtype_attr("output_dtype").or(Some(DType::U8))
    };
    one(cx.like_as(0, dtype))
}

/// The element type is that of an attribute or else of the scale.
pub(super) fn dequantize_linear(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype_attr("output_dtype").or_else(|| {
        if cx.opset < 19 {
            Some(DType::F32)
        } else {
            cx.dtype(1)
        }
    });
    one(cx.like_as(0, dtype))
}

/// The quantized input, its scale and its zero point.
pub(super) fn dynamic_quantize_linear(cx: &Cx<'_, '_>) -> Outs {
    many([
        cx.like_as(0, Some(DType::U8)),
        typed(Some(DType::F32), Some(no_dims())),
        typed(Some(DType::U8), Some(no_dims())),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn element_types_of_quantization() {
        let mut t = Test::new(21);
        let x = t.input("x", DType::F32, "n,8");
        let half = t.constant(Tensor::scalar(half::f16::ONE));
        let scale = t.constant(Tensor::scalar(1f32));
        let zero = t.constant(Tensor::scalar(0i8));
        let op = || NewOp::new("QuantizeLinear").input(x).input(scale);
        let a = t.op1(op());
        let b = t.op1(op().input(zero));
        let c = t.op1(op().attr("output_dtype", i64::from(DType::I4.to_onnx())));
        let d = t.op1(NewOp::new("DequantizeLinear").input(a).input(half));
        let e = t.op(NewOp::new("DynamicQuantizeLinear").input(x), 3);
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "uint8[n,8]");
        assert_eq!(shapes.show(b), "int8[n,8]");
        assert_eq!(shapes.show(c), "int4[n,8]");
        assert_eq!(shapes.show(d), "float16[n,8]");
        assert_eq!(shapes.show(e[0]), "uint8[n,8]");
        assert_eq!(shapes.show(e[1]), "float[]");
        assert_eq!(shapes.show(e[2]), "uint8[]");
    }
}

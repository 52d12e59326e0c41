//! Normalizations, whose first output has the type of the input, and what else they put out.

use super::cx::{Cx, Outs, many, typed, vector};
use super::fact::SymDims;
use crate::tensor::DType;

/// The normalized input, and statistics by channel: in training mode the running ones; before
/// opset 14 also those of the batch.
pub(super) fn batch_normalization(cx: &Cx<'_, '_>) -> Outs {
    let channels = cx
        .dims(3)
        .cloned()
        .or_else(|| cx.dim(0, 1).map(|c| vector(c.clone())));
    let statistics = |slot| typed(cx.dtype(slot).or(cx.dtype(0)), channels.clone());
    many([
        cx.like(0),
        statistics(3),
        statistics(4),
        statistics(3),
        statistics(4),
    ])
}

/// The normalized input, and the mean and inverse deviation of each part.
pub(super) fn layer_normalization(cx: &Cx<'_, '_>) -> Outs {
    let dtype = match cx.int_or("stash_type", 1) {
        1 => Some(DType::F32),
        _ => cx.dtype_attr("stash_type"),
    };
    let dims = cx.dims(0).and_then(|d| {
        let axis = cx.axis(cx.int_or("axis", -1), d.len())?;
        let mut dims: SymDims = d.iter().take(axis).cloned().collect();
        dims.resize(d.len(), 1i64.into());
        Some(dims)
    });
    many([cx.like(0), typed(dtype, dims.clone()), typed(dtype, dims)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::DType;

    #[test]
    fn statistics_of_normalizations() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F16, "n,c,8");
        let s = t.input("s", DType::F16, "c");
        let m = t.input("m", DType::F32, "c");
        let bn = t.op(
            NewOp::new("BatchNormalization").inputs([x, s, s, m, m].map(Some)),
            3,
        );
        let ln = t.op(
            NewOp::new("LayerNormalization")
                .input(x)
                .input(s)
                .attr("axis", 1i64),
            3,
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(bn[0]), "float16[n,c,8]");
        assert_eq!(shapes.show(bn[1]), "float[c]");
        assert_eq!(shapes.show(ln[0]), "float16[n,c,8]");
        assert_eq!(shapes.show(ln[2]), "float[n,1,1]");
    }
}

//! Signals, text and images.

use super::cx::{Cx, Outs, many, one, typed, vector};
use super::dim::SymDim;
use super::elementwise::broadcast_inputs;
use super::fact::SymDims;
use crate::tensor::DType;

/// Half a spectrum: `n / 2 + 1`.
fn half_spectrum(cx: &Cx<'_, '_>, n: &SymDim) -> SymDim {
    let half = n.div_floor(&2i64.into()).and_then(|d| d.add(&1i64.into()));
    cx.size(half)
}

/// A window or a matrix of an element type given by its number.
fn output_datatype(cx: &Cx<'_, '_>) -> Option<DType> {
    match cx.int("output_datatype") {
        Some(_) => cx.dtype_attr("output_datatype"),
        None => Some(DType::F32),
    }
}

/// Hann, Hamming and Blackman windows.
pub(super) fn window(cx: &Cx<'_, '_>) -> Outs {
    one(typed(
        output_datatype(cx),
        Some(vector(cx.size(cx.scalar(0)))),
    ))
}

pub(super) fn mel_weight_matrix(cx: &Cx<'_, '_>) -> Outs {
    let bins = match cx.scalar(1) {
        Some(n) => half_spectrum(cx, &n),
        None => cx.fresh(),
    };
    let dims = SymDims::from_iter([bins, cx.size(cx.scalar(0))]);
    one(typed(output_datatype(cx), Some(dims)))
}

/// The last dimension holds real and imaginary part; the transformed axis may get another size.
pub(super) fn dft(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let axis = if cx.opset >= 20 {
            match cx.has(2) {
                true => cx.scalar(2).and_then(|a| a.known()),
                false => Some(-2),
            }
        } else {
            Some(cx.int_or("axis", 1))
        };
        let (onesided, inverse) = (cx.flag("onesided"), cx.flag("inverse"));
        // The inverse of half a spectrum is real.
        let parts = if onesided && inverse { 1i64 } else { 2 };
        let Some(axis) = axis else {
            let mut dims = match cx.has(1) || onesided {
                true => cx.fresh_dims(d.len()),
                false => d.clone(),
            };
            *dims.last_mut()? = parts.into();
            return Some(dims);
        };
        let axis = cx.axis(axis, d.len())?;
        let mut dims = d.clone();
        let size = dims.get_mut(axis)?;
        if cx.has(1) {
            *size = cx.size(cx.scalar(1));
        } else if onesided && inverse {
            let whole = size.sub(&1i64.into()).and_then(|d| d.mul(&2i64.into()));
            *size = cx.size(whole);
        }
        if onesided && !inverse {
            *size = half_spectrum(cx, size);
        }
        *dims.last_mut()? = parts.into();
        Some(dims)
    });
    one(typed(cx.dtype(0), dims))
}

/// `[batch, frames, bins, 2]`.
pub(super) fn stft(cx: &Cx<'_, '_>) -> Outs {
    let len = match cx.has(3) {
        true => cx.scalar(3),
        false => cx.dim(2, 0).cloned(),
    };
    let frames = (|| {
        let room = cx.dim(0, 1)?.sub(len.as_ref()?)?;
        room.div_floor(&cx.scalar(1)?)?.add(&1i64.into())
    })();
    let bins = match &len {
        Some(n) if cx.int_or("onesided", 1) != 0 => half_spectrum(cx, n),
        Some(n) => n.clone(),
        None => cx.fresh(),
    };
    let batch = cx.dim(0, 0).cloned().unwrap_or_else(|| cx.fresh());
    let dims = SymDims::from_iter([batch, cx.size(frames), bins, 2i64.into()]);
    one(typed(cx.dtype(0), Some(dims)))
}

/// The determinant takes the last two dimensions away.
pub(super) fn det(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| match d.len().checked_sub(2) {
        Some(n) => Some(d.iter().take(n).cloned().collect()),
        None => cx.refuse(format!("a matrix of {} dimensions", d.len())),
    });
    one(typed(cx.dtype(0), dims))
}

// ---- text and images ----

pub(super) fn string_concat(cx: &Cx<'_, '_>) -> Outs {
    one(cx.shared(Some(DType::String), broadcast_inputs(cx, 0..2)))
}

/// The parts along a new last axis, and how many they are.
pub(super) fn string_split(cx: &Cx<'_, '_>) -> Outs {
    let parts = cx.dims(0).map(|d| {
        let mut dims = d.clone();
        dims.push(cx.fresh());
        dims
    });
    many([
        typed(Some(DType::String), parts),
        typed(Some(DType::I64), cx.dims(0).cloned()),
    ])
}

/// Words that remain after stop words went: `[words]` or `[1, words]`.
pub(super) fn string_normalizer(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let mut dims = d.clone();
        if cx.attr("stopwords").is_some() {
            *dims.last_mut()? = cx.fresh();
        }
        Some(dims)
    });
    one(typed(Some(DType::String), dims))
}

/// One number for each n-gram of the pool.
pub(super) fn tf_idf(cx: &Cx<'_, '_>) -> Outs {
    let columns = cx
        .ints("ngram_indexes")
        .and_then(|all| all.iter().max()?.checked_add(1))
        .map(SymDim::from);
    let dims = cx.dims(0).map(|d| {
        let mut dims: SymDims = d.iter().take(d.len().saturating_sub(1)).cloned().collect();
        dims.push(cx.size(columns));
        dims
    });
    one(typed(Some(DType::F32), dims))
}

/// Height, width and channels of an image.
pub(super) fn image_decoder(cx: &Cx<'_, '_>) -> Outs {
    let channels = match cx.string("pixel_format") {
        Some("Grayscale") => 1i64,
        _ => 3,
    };
    let dims = SymDims::from_iter([cx.fresh(), cx.fresh(), channels.into()]);
    one(typed(Some(DType::U8), Some(dims)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::DType;

    #[test]
    fn spectra() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,100,1");
        let a = t.op1(NewOp::new("DFT").input(x).attr("onesided", 1i64));
        let step = t.int(10);
        let len = t.int(20);
        let b = t.op1(NewOp::new("STFT").inputs([Some(x), Some(step), None, Some(len)]));
        let c = t.op1(NewOp::new("HannWindow").input(len));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,51,2]");
        assert_eq!(shapes.show(b), "float[n,9,11,2]");
        assert_eq!(shapes.show(c), "float[20]");
        let mut t = Test::new(20);
        let x = t.input("x", DType::F32, "n,100,7,2");
        let axis = t.int(1);
        let a = t.op1(NewOp::new("DFT").inputs([Some(x), None, Some(axis)]));
        let b = t.op1(NewOp::new("DFT").input(x).attr("onesided", 1i64));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,100,7,2]");
        assert_eq!(shapes.show(b), "float[n,100,4,2]");
        let mut t = Test::new(20);
        let half = t.input("half", DType::F32, "n,51,2");
        let back = NewOp::new("DFT").input(half).attr("onesided", 1i64);
        let back = t.op1(back.attr("inverse", 1i64));
        assert_eq!(t.infer().show(back), "float[n,100,1]");
    }

    #[test]
    fn texts() {
        let mut t = Test::new(20);
        let x = t.input("x", DType::String, "n");
        let split = t.op(NewOp::new("StringSplit").input(x), 2);
        let both = t.op1(NewOp::new("StringConcat").input(x).input(x));
        let matched = t.op1(NewOp::new("RegexFullMatch").input(x));
        let ngrams = t.op1(
            NewOp::new("TfIdfVectorizer")
                .input(x)
                .attr("ngram_indexes", vec![0i64, 3, 1]),
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(split[0]), "string[n,?]");
        assert_eq!(shapes.show(split[1]), "int64[n]");
        assert_eq!(shapes.show(both), "string[n]");
        assert_eq!(shapes.show(matched), "bool[n]");
        assert_eq!(shapes.show(ngrams), "float[4]");
    }
}

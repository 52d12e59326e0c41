//! Tensors to and from tract.

use bytes::Bytes;
use half::f16;
use paring_ir::{DType, Tensor};
use tract_onnx::prelude::{
    Datum, DatumType, IntoTensor, TractError, TractResult, natural_strides, tract_ndarray,
};
use tract_onnx::tract_core::internal::{TDim, anyhow};

type TractTensor = tract_onnx::prelude::Tensor;

/// The type in tract of a type in ONNX; `None` where tract has none.
pub(crate) fn datum_type(dtype: DType) -> Option<DatumType> {
    Some(match dtype {
        DType::F32 => DatumType::F32,
        DType::F64 => DatumType::F64,
        DType::F16 => DatumType::F16,
        DType::U8 => DatumType::U8,
        DType::U16 => DatumType::U16,
        DType::U32 => DatumType::U32,
        DType::U64 => DatumType::U64,
        DType::I8 => DatumType::I8,
        DType::I16 => DatumType::I16,
        DType::I32 => DatumType::I32,
        DType::I64 => DatumType::I64,
        DType::Bool => DatumType::Bool,
        DType::String => DatumType::String,
        _ => return None,
    })
}

fn bad(reason: impl std::fmt::Display) -> TractError {
    anyhow!("{reason}")
}

/// The same tensor in tract's memory.
pub(crate) fn to_tract(t: &Tensor) -> TractResult<TractTensor> {
    fn typed<T: paring_ir::Element + Datum + Copy>(t: &Tensor) -> TractResult<TractTensor> {
        TractTensor::from_shape::<T>(t.dims(), &t.view::<T>().map_err(bad)?)
    }
    match t.dtype() {
        DType::F32 => typed::<f32>(t),
        DType::F64 => typed::<f64>(t),
        DType::F16 => typed::<f16>(t),
        DType::U8 => typed::<u8>(t),
        DType::U16 => typed::<u16>(t),
        DType::U32 => typed::<u32>(t),
        DType::U64 => typed::<u64>(t),
        DType::I8 => typed::<i8>(t),
        DType::I16 => typed::<i16>(t),
        DType::I32 => typed::<i32>(t),
        DType::I64 => typed::<i64>(t),
        DType::Bool => {
            let values: Vec<bool> = t.bytes().iter().map(|&b| b != 0).collect();
            TractTensor::from_shape::<bool>(t.dims(), &values)
        }
        DType::String => {
            let strings = t.strings().unwrap_or_default();
            let strings = strings
                .iter()
                .map(|s| String::from_utf8(s.to_vec()))
                .collect::<Result<Vec<String>, _>>()
                .map_err(|_| bad("a string is not UTF-8"))?;
            Ok(tract_ndarray::ArrayD::from_shape_vec(t.dims(), strings)?.into_tensor())
        }
        other => Err(bad(format!("tract has no element type {other}"))),
    }
}

/// The same tensor out of tract's memory.
pub(crate) fn from_tract(t: &TractTensor) -> TractResult<Tensor> {
    let dims = t.shape().iter().copied();
    let dtype = match t.datum_type().unquantized() {
        DatumType::F32 => DType::F32,
        DatumType::F64 => DType::F64,
        DatumType::F16 => DType::F16,
        DatumType::U8 => DType::U8,
        DatumType::U16 => DType::U16,
        DatumType::U32 => DType::U32,
        DatumType::U64 => DType::U64,
        DatumType::I8 => DType::I8,
        DatumType::I16 => DType::I16,
        DatumType::I32 => DType::I32,
        DatumType::I64 => DType::I64,
        DatumType::Bool => DType::Bool,
        // A size that tract computed symbolically; with all shapes fixed it is a number.
        DatumType::TDim => {
            let values = t.try_as_plain_ram()?.as_slice::<TDim>()?;
            let values = values
                .iter()
                .map(TDim::to_i64)
                .collect::<Result<Vec<i64>, _>>()?;
            return Tensor::from_vec(dims, values).map_err(bad);
        }
        DatumType::String => {
            let view = t.try_as_plain_ram()?;
            let strings = view
                .as_slice::<String>()?
                .iter()
                .map(|s| Bytes::copy_from_slice(s.as_bytes()));
            return Tensor::from_strings(dims, strings).map_err(bad);
        }
        other => return Err(bad(format!("tract gave a tensor of {other:?}"))),
    };
    let view = t.try_as_plain_ram()?;
    if !row_by_row(t) {
        return Err(bad("tract gave a tensor that is not laid out row by row"));
    }
    let bytes = Bytes::copy_from_slice(view.as_bytes());
    Tensor::new(dtype, dims, to_little_endian(bytes, dtype)).map_err(bad)
}

/// Whether the elements lie in order. The stride of an axis of size 1 means nothing.
fn row_by_row(t: &TractTensor) -> bool {
    let natural = natural_strides(t.shape());
    let strides = t.strides().iter().zip(&natural).zip(t.shape());
    t.len() == 0
        || strides
            .into_iter()
            .all(|((a, b), &size)| size == 1 || a == b)
}

fn to_little_endian(bytes: Bytes, dtype: DType) -> Bytes {
    if cfg!(target_endian = "little") {
        return bytes;
    }
    let width = dtype.bits().unwrap_or(8).div_ceil(8) as usize;
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    bytes.into()
}

//! Constant forms that tract can't load, rewritten on the engine's copy: packed 4-bit and 2-bit
//! integers, 8-bit and 4-bit floats, bfloat16, blocked quantization, sparse tensors.

use half::{bf16, f16};
use paring_ir::tensor::element_count;
use paring_ir::{Constant, DType, SparseTensor, Tensor};

use super::tensors::datum_type;

/// The largest dense tensor that a sparse one is expanded to.
const DENSE_LIMIT: usize = 1 << 31;

/// Whether tract has this element type.
pub(crate) fn loadable(dtype: DType) -> bool {
    datum_type(dtype).is_some()
}

/// The constant as a dense tensor.
pub(crate) fn dense(c: &Constant) -> Result<Tensor, String> {
    match c {
        Constant::Dense(t) => Ok(t.clone()),
        Constant::Sparse(s) => densify(s),
    }
}

/// The sparse tensor written out.
pub(crate) fn densify(s: &SparseTensor) -> Result<Tensor, String> {
    let dtype = s.values.dtype();
    let width = match dtype.bits() {
        Some(bits) if bits % 8 == 0 => (bits / 8) as usize,
        _ => return Err(format!("a sparse tensor of {dtype} can't be expanded")),
    };
    let count = element_count(&s.dims)
        .filter(|n| n.checked_mul(width).is_some_and(|b| b <= DENSE_LIMIT))
        .ok_or_else(|| {
            format!(
                "the sparse tensor of shape {:?} is too large to be expanded",
                &*s.dims
            )
        })?;
    let indices = s
        .indices
        .to_i64s()
        .ok_or_else(|| "the indices of a sparse tensor are not integers".to_string())?;
    let nnz = s.values.len();
    let linear = s.indices.rank() == 1;
    let per_value = if linear { 1 } else { s.dims.len() };
    if indices.len() != nnz.saturating_mul(per_value) {
        return Err(format!(
            "{nnz} sparse values have {} indices",
            indices.len()
        ));
    }
    let mut out = vec![0u8; count.saturating_mul(width)];
    for (i, value) in s.values.bytes().chunks_exact(width).enumerate() {
        let start = i.saturating_mul(per_value);
        let index = indices.get(start..start.saturating_add(per_value));
        let at = index.and_then(|index| {
            if linear {
                usize::try_from(*index.first()?).ok()
            } else {
                index.iter().zip(&s.dims).try_fold(0usize, |at, (&i, &d)| {
                    let i = usize::try_from(i).ok().filter(|&i| i < d)?;
                    at.checked_mul(d)?.checked_add(i)
                })
            }
        });
        let place = at
            .and_then(|at| at.checked_mul(width))
            .and_then(|at| out.get_mut(at..at.checked_add(width)?))
            .ok_or_else(|| format!("sparse value {i} lies outside of shape {:?}", &*s.dims))?;
        place.copy_from_slice(value);
    }
    Tensor::new(dtype, s.dims.iter().copied(), out).map_err(|e| e.to_string())
}

/// Packed integers one to a byte; other tensors as they are.
pub(crate) fn widen_packed(t: &Tensor) -> Result<Tensor, String> {
    let signed = match t.dtype() {
        DType::I4 | DType::I2 => true,
        DType::U4 | DType::U2 => false,
        _ => return Ok(t.clone()),
    };
    let values = t.to_i64s().unwrap_or_default();
    let dims = t.dims().iter().copied();
    if signed {
        Tensor::from_vec(dims, values.into_iter().map(|v| v as i8).collect())
    } else {
        Tensor::from_vec(dims, values.into_iter().map(|v| v as u8).collect())
    }
    .map_err(|e| e.to_string())
}

/// A float of `exponent` and `mantissa` bits after a sign bit, without infinities unless `ieee`.
fn small_float(code: u8, exponent: u32, mantissa: u32, bias: i32) -> f32 {
    let sign = if code >> (exponent + mantissa) & 1 == 1 {
        -1.0
    } else {
        1.0
    };
    let e = i32::from(code >> mantissa & ((1 << exponent) - 1));
    let m = f32::from(code & ((1 << mantissa) - 1)) / f32::from(1u8 << mantissa);
    let magnitude = if e == 0 {
        m * 2f32.powi(1 - bias)
    } else {
        (1.0 + m) * 2f32.powi(e - bias)
    };
    sign * magnitude
}

fn decode_float8(dtype: DType, code: u8) -> f32 {
    match dtype {
        DType::F8E4M3FN if code & 0x7f == 0x7f => f32::NAN,
        DType::F8E4M3FN => small_float(code, 4, 3, 7),
        DType::F8E4M3FNUZ | DType::F8E5M2FNUZ if code == 0x80 => f32::NAN,
        DType::F8E4M3FNUZ => small_float(code, 4, 3, 8),
        DType::F8E5M2FNUZ => small_float(code, 5, 2, 16),
        // Five exponent bits and two of mantissa are the upper half of a half float.
        DType::F8E5M2 => f16::from_bits(u16::from(code) << 8).to_f32(),
        // A power of two, all exponent.
        _ if code == 0xff => f32::NAN,
        _ => 2f32.powi(i32::from(code) - 127),
    }
}

/// The numeric elements as f32; `None` for strings and complex numbers.
pub(crate) fn decode(t: &Tensor) -> Option<Vec<f32>> {
    match t.dtype() {
        d @ (DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0) => Some(t.bytes().iter().map(|&c| decode_float8(d, c)).collect()),
        DType::F4E2M1 => {
            let nibbles = t.bytes().iter().flat_map(|&b| [b & 15, b >> 4]);
            Some(
                nibbles
                    .take(t.len())
                    .map(|c| small_float(c, 2, 1, 1))
                    .collect(),
            )
        }
        DType::BF16 => Some(t.view::<bf16>().ok()?.iter().map(|v| v.to_f32()).collect()),
        _ => Some(t.to_f64s()?.into_iter().map(|v| v as f32).collect()),
    }
}

fn of_floats(dtype: DType, dims: &[usize], values: Vec<f32>) -> Result<Tensor, String> {
    let dims = dims.iter().copied();
    match dtype {
        DType::F32 => Tensor::from_vec(dims, values),
        DType::F64 => Tensor::from_vec(dims, values.into_iter().map(f64::from).collect()),
        DType::F16 => Tensor::from_vec(dims, values.into_iter().map(f16::from_f32).collect()),
        other => return Err(format!("can't be expanded to {other}")),
    }
    .map_err(|e| e.to_string())
}

/// A constant cast to a float type that tract has.
pub(crate) fn cast(t: &Tensor, to: DType) -> Result<Tensor, String> {
    let values = decode(t).ok_or_else(|| format!("a tensor of {} can't be cast", t.dtype()))?;
    of_floats(to, t.dims(), values)
}

/// `DequantizeLinear` of constants: per tensor, per axis or in blocks along the axis.
pub(crate) fn dequantize(
    x: &Tensor,
    scale: &Tensor,
    zero_point: Option<&Tensor>,
    axis: i64,
    block: i64,
) -> Result<Tensor, String> {
    let rank = x.rank();
    let wrong = || {
        format!(
            "a scale of shape {:?} doesn't fit a tensor of shape {:?} on axis {axis} with blocks of {block}",
            scale.dims(),
            x.dims()
        )
    };
    let values =
        decode(x).ok_or_else(|| format!("a tensor of {} can't be dequantized", x.dtype()))?;
    let scales = decode(scale).ok_or_else(wrong)?;
    let zeros = match zero_point {
        Some(z) if z.len() == scales.len() => decode(z).ok_or_else(wrong)?,
        Some(_) => return Err(wrong()),
        None => vec![0.0; scales.len()],
    };
    if let ([s], [z]) = (scales.as_slice(), zeros.as_slice())
        && block == 0
    {
        let out = values.into_iter().map(|v| (v - z) * s).collect();
        return of_floats(scale.dtype(), x.dims(), out);
    }
    let axis_at = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    let axis_at = usize::try_from(axis_at)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(wrong)?;
    let size = x.dims().get(axis_at).copied().unwrap_or(0);
    let block = usize::try_from(block).map_err(|_| wrong())?;
    let inner: usize = x.dims().iter().skip(axis_at + 1).product();
    // Per axis there is one scale for each index; in blocks the scale has the rank of x.
    let (step, groups, scale_inner) = if block == 0 {
        (1, size, 1)
    } else {
        (block, size.div_ceil(block), inner)
    };
    let fits = if block == 0 {
        scales.len() == size
    } else {
        let mut blocks: Vec<usize> = x.dims().to_vec();
        if let Some(d) = blocks.get_mut(axis_at) {
            *d = groups;
        }
        scale.dims() == blocks.as_slice()
    };
    if !fits {
        return Err(wrong());
    }
    let mut out = Vec::with_capacity(values.len());
    for (i, v) in values.into_iter().enumerate() {
        let along = i / inner.max(1) % size.max(1);
        let at = if block == 0 {
            along
        } else {
            let outer_at = i / (inner * size).max(1);
            (outer_at * groups + along / step) * scale_inner + i % inner.max(1)
        };
        let (s, z) = scales.get(at).zip(zeros.get(at)).ok_or_else(wrong)?;
        out.push((v - z) * s);
    }
    of_floats(scale.dtype(), x.dims(), out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    #[test]
    fn sparse_tensors_are_written_out_and_stray_indices_refused() {
        let s = |indices: Tensor| SparseTensor {
            values: Tensor::vector(vec![5f32, 7.0]),
            indices,
            dims: [2usize, 3].into_iter().collect(),
        };
        let linear = densify(&s(Tensor::vector(vec![1i64, 5]))).unwrap();
        assert_eq!(linear.to_f64s().unwrap(), [0.0, 5.0, 0.0, 0.0, 0.0, 7.0]);
        let pairs = Tensor::from_vec([2, 2], vec![0i64, 1, 1, 2]).unwrap();
        assert_eq!(densify(&s(pairs)).unwrap(), linear);
        assert!(densify(&s(Tensor::vector(vec![1i64, 6]))).is_err());
        assert!(densify(&s(Tensor::vector(vec![1i64, -1]))).is_err());
        let mut huge = s(Tensor::vector(vec![0i64, 1]));
        huge.dims = [1usize << 40, 1 << 30].into_iter().collect();
        assert!(densify(&huge).unwrap_err().contains("too large"));
    }

    #[test]
    fn small_floats_follow_the_tables_of_the_standard() {
        let of = |d, code: u8| decode(&Tensor::new(d, [1], vec![code]).unwrap()).unwrap()[0];
        assert_eq!(of(DType::F8E4M3FN, 0x7e), 448.0);
        assert_eq!(of(DType::F8E4M3FN, 0x01), 2f32.powi(-9));
        assert!(of(DType::F8E4M3FN, 0xff).is_nan());
        assert_eq!(of(DType::F8E4M3FNUZ, 0x7f), 240.0);
        assert!(of(DType::F8E4M3FNUZ, 0x80).is_nan());
        assert_eq!(of(DType::F8E5M2, 0x7b), 57344.0);
        assert_eq!(of(DType::F8E5M2, 0x7c), f32::INFINITY);
        assert_eq!(of(DType::F8E5M2FNUZ, 0x7f), 57344.0);
        assert_eq!(of(DType::F8E8M0, 0x7f), 1.0);
        let t = Tensor::new(DType::F4E2M1, [3], vec![0x71, 0x0f]).unwrap();
        assert_eq!(decode(&t).unwrap(), [0.5, 6.0, -6.0]);
    }

    #[test]
    fn blocked_dequantization_takes_one_scale_for_each_block() {
        // Two rows of four 4-bit codes, blocks of two along axis 1.
        let x = Tensor::new(DType::I4, [2, 4], vec![0x21, 0x43, 0xfe, 0xdc]).unwrap();
        let scale = Tensor::from_vec([2, 2], vec![1f32, 10.0, 0.5, 2.0]).unwrap();
        let y = dequantize(&x, &scale, None, 1, 2).unwrap();
        assert_eq!(
            y.to_f64s().unwrap(),
            [1.0, 2.0, 30.0, 40.0, -1.0, -0.5, -8.0, -6.0]
        );
        // The same along axis 0 with blocks of two: one block, a scale for each column.
        let scale = Tensor::from_vec([1, 4], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let y = dequantize(&x, &scale, None, 0, 2).unwrap();
        assert_eq!(
            y.to_f64s().unwrap(),
            [1.0, 4.0, 9.0, 16.0, -2.0, -2.0, -12.0, -12.0]
        );
        assert!(dequantize(&x, &scale, None, 1, 2).is_err());
    }

    #[test]
    fn dequantization_per_axis_and_per_tensor() {
        let x = Tensor::from_vec([2, 2], vec![1i16, 2, 3, 4]).unwrap();
        let scale = Tensor::vector(vec![1f32, 10.0]);
        let zero = Tensor::vector(vec![0i16, 1]);
        let y = dequantize(&x, &scale, Some(&zero), -1, 0).unwrap();
        assert_eq!(y.to_f64s().unwrap(), [1.0, 10.0, 3.0, 30.0]);
        let y = dequantize(&x, &Tensor::scalar(2f32), None, 1, 0).unwrap();
        assert_eq!(y.to_f64s().unwrap(), [2.0, 4.0, 6.0, 8.0]);
        assert!(dequantize(&x, &scale, None, 2, 0).is_err());
    }
}

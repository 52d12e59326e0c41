//! Tensors: an element type, a shape and bytes.
//!
//! The bytes are a [`Bytes`], so they may be a slice of a mapped file, shared
//! with another tensor, or owned. They are little-endian and packed as the
//! `raw_data` field of ONNX prescribes: 4-bit elements two to a byte and 2-bit
//! elements four to a byte, the first element in the low bits. Mapped bytes have
//! no alignment, so [`Tensor::view`] borrows where it can and copies where it must.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use smallvec::SmallVec;

/// An element type of ONNX, by the numbers of `TensorProto.DataType`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are named after the ONNX types")]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    String = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    C64 = 14,
    C128 = 15,
    BF16 = 16,
    F8E4M3FN = 17,
    F8E4M3FNUZ = 18,
    F8E5M2 = 19,
    F8E5M2FNUZ = 20,
    U4 = 21,
    I4 = 22,
    F4E2M1 = 23,
    F8E8M0 = 24,
    U2 = 25,
    I2 = 26,
}

impl DType {
    /// Every element type, in the order of the ONNX numbers.
    pub const ALL: [DType; 26] = [
        DType::F32,
        DType::U8,
        DType::I8,
        DType::U16,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::String,
        DType::Bool,
        DType::F16,
        DType::F64,
        DType::U32,
        DType::U64,
        DType::C64,
        DType::C128,
        DType::BF16,
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::U4,
        DType::I4,
        DType::F4E2M1,
        DType::F8E8M0,
        DType::U2,
        DType::I2,
    ];

    /// The type with this `TensorProto.DataType` number; `None` for 0 (undefined) and unknown numbers.
    pub fn from_onnx(code: i32) -> Option<DType> {
        let index = usize::try_from(code).ok()?.checked_sub(1)?;
        DType::ALL.get(index).copied()
    }

    /// The `TensorProto.DataType` number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// The name in the ONNX textual syntax, such as `float` or `int4`.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "float",
            DType::U8 => "uint8",
            DType::I8 => "int8",
            DType::U16 => "uint16",
            DType::I16 => "int16",
            DType::I32 => "int32",
            DType::I64 => "int64",
            DType::String => "string",
            DType::Bool => "bool",
            DType::F16 => "float16",
            DType::F64 => "double",
            DType::U32 => "uint32",
            DType::U64 => "uint64",
            DType::C64 => "complex64",
            DType::C128 => "complex128",
            DType::BF16 => "bfloat16",
            DType::F8E4M3FN => "float8e4m3fn",
            DType::F8E4M3FNUZ => "float8e4m3fnuz",
            DType::F8E5M2 => "float8e5m2",
            DType::F8E5M2FNUZ => "float8e5m2fnuz",
            DType::U4 => "uint4",
            DType::I4 => "int4",
            DType::F4E2M1 => "float4e2m1",
            DType::F8E8M0 => "float8e8m0",
            DType::U2 => "uint2",
            DType::I2 => "int2",
        }
    }

    /// The type with this textual name.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Bits of one element; `None` for strings.
    pub fn bits(self) -> Option<u64> {
        Some(match self {
            DType::String => return None,
            DType::U2 | DType::I2 => 2,
            DType::U4 | DType::I4 | DType::F4E2M1 => 4,
            DType::U8
            | DType::I8
            | DType::Bool
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0 => 8,
            DType::U16 | DType::I16 | DType::F16 | DType::BF16 => 16,
            DType::F32 | DType::I32 | DType::U32 => 32,
            DType::F64 | DType::I64 | DType::U64 | DType::C64 => 64,
            DType::C128 => 128,
        })
    }

    /// Whether this is a real floating-point type of at least 16 bits.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Whether this is an integer type (not a boolean).
    pub fn is_integer(self) -> bool {
        matches!(
            self,
            DType::U8
                | DType::I8
                | DType::U16
                | DType::I16
                | DType::U32
                | DType::I32
                | DType::U64
                | DType::I64
                | DType::U4
                | DType::I4
                | DType::U2
                | DType::I2
        )
    }

    /// Bytes that `elements` elements take when packed; `None` for strings or on overflow.
    pub fn packed_len(self, elements: usize) -> Option<usize> {
        let bits = (elements as u128) * u128::from(self.bits()?);
        usize::try_from(bits.div_ceil(8)).ok()
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type whose slices are the bytes of a tensor.
pub trait Element: bytemuck::Pod + PartialEq + Send + Sync + fmt::Debug {
    /// The ONNX type of these elements.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($t:ty => $d:ident),* $(,)?) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
elements! {
    f32 => F32, f64 => F64, f16 => F16, bf16 => BF16,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
}

/// The elements of a tensor.
#[derive(Clone, PartialEq)]
pub enum TensorData {
    /// Packed little-endian elements.
    Bytes(Bytes),
    /// The elements of a string tensor; ONNX strings are bytes, UTF-8 by convention.
    Strings(Arc<[Bytes]>),
}

/// Where the elements stood in the file that the tensor was read from, so that an
/// untouched tensor is written as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Storage {
    /// In `raw_data`, or made in memory.
    #[default]
    Raw,
    /// In the typed field of the element type (`float_data`, `int32_data`, ...).
    Typed,
    /// In a side file, under this `location` relative to the model's folder.
    External {
        /// The `location` entry, as written in the model.
        location: Arc<str>,
        /// All `external_data` entries, in order.
        entries: Arc<[(Arc<str>, Arc<str>)]>,
    },
}

/// What a `TensorProto` says besides element type, shape and elements.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TensorExtra {
    /// Where the elements stood in the file.
    pub storage: Storage,
    /// The tensor's own name, for tensors in attributes (an initializer's name is its value's).
    pub name: Option<Arc<str>>,
    /// Documentation.
    pub doc: Option<Arc<str>>,
    /// `metadata_props`.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
    /// `segment` (begin, end), which nothing writes today.
    pub segment: Option<(Option<i64>, Option<i64>)>,
    /// `data_location` when it is written out although the elements are inside.
    pub explicit_location: bool,
}

/// The dimensions of a tensor.
pub type Dims = SmallVec<[usize; 4]>;

/// A dense tensor. Cloning shares the elements.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    dims: Dims,
    data: TensorData,
    extra: Option<Arc<TensorExtra>>,
}

/// Why a tensor can't be made or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// The bytes don't fit the shape.
    #[error("{dtype} tensor of shape {dims:?} needs {expected} bytes, found {found}")]
    Length {
        /// The element type.
        dtype: DType,
        /// The shape.
        dims: Vec<usize>,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The number of elements or bytes overflows.
    #[error("the size of shape {dims:?} overflows")]
    Overflow {
        /// The shape.
        dims: Vec<usize>,
    },
    /// The elements are read as another type than they have.
    #[error("expected a tensor of {expected}, found {found}")]
    Type {
        /// What was asked for.
        expected: DType,
        /// What the tensor holds.
        found: DType,
    },
}

/// The number of elements of a shape; `None` on overflow.
pub fn element_count(dims: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, even where the other factors overflow.
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor over packed bytes. Fails when the length disagrees with the shape.
    pub fn new(
        dtype: DType,
        dims: impl IntoIterator<Item = usize>,
        bytes: impl Into<Bytes>,
    ) -> Result<Tensor, TensorError> {
        let dims: Dims = dims.into_iter().collect();
        let bytes = bytes.into();
        let overflow = || TensorError::Overflow {
            dims: dims.to_vec(),
        };
        let count = element_count(&dims).ok_or_else(overflow)?;
        if dtype == DType::String {
            return Err(TensorError::Type {
                expected: DType::U8,
                found: dtype,
            });
        }
        let expected = dtype.packed_len(count).ok_or_else(overflow)?;
        if expected != bytes.len() {
            return Err(TensorError::Length {
                dtype,
                dims: dims.to_vec(),
                expected,
                found: bytes.len(),
            });
        }
        Ok(Tensor {
            dtype,
            dims,
            data: TensorData::Bytes(bytes),
            extra: None,
        })
    }

    /// A string tensor. Fails when the number of strings disagrees with the shape.
    pub fn from_strings(
        dims: impl IntoIterator<Item = usize>,
        strings: impl IntoIterator<Item = Bytes>,
    ) -> Result<Tensor, TensorError> {
        let dims: Dims = dims.into_iter().collect();
        let strings: Arc<[Bytes]> = strings.into_iter().collect();
        let expected = element_count(&dims).ok_or_else(|| TensorError::Overflow {
            dims: dims.to_vec(),
        })?;
        if expected != strings.len() {
            return Err(TensorError::Length {
                dtype: DType::String,
                dims: dims.to_vec(),
                expected,
                found: strings.len(),
            });
        }
        Ok(Tensor {
            dtype: DType::String,
            dims,
            data: TensorData::Strings(strings),
            extra: None,
        })
    }

    /// A tensor that owns these elements. Fails when their number disagrees with the shape.
    pub fn from_vec<T: Element>(
        dims: impl IntoIterator<Item = usize>,
        elements: Vec<T>,
    ) -> Result<Tensor, TensorError> {
        Tensor::new(T::DTYPE, dims, to_le_bytes(elements))
    }

    /// A tensor without dimensions.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor {
            dtype: T::DTYPE,
            dims: Dims::new(),
            data: TensorData::Bytes(to_le_bytes(vec![value])),
            extra: None,
        }
    }

    /// A tensor of one dimension that owns these elements.
    pub fn vector<T: Element>(elements: impl Into<Vec<T>>) -> Tensor {
        let elements = elements.into();
        let mut dims = Dims::new();
        dims.push(elements.len());
        Tensor {
            dtype: T::DTYPE,
            dims,
            data: TensorData::Bytes(to_le_bytes(elements)),
            extra: None,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        // Every way to make a tensor has checked that this doesn't overflow.
        element_count(&self.dims).unwrap_or(0)
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.dims.contains(&0)
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// The packed bytes; empty for a string tensor.
    pub fn bytes(&self) -> &Bytes {
        static EMPTY: Bytes = Bytes::new();
        match &self.data {
            TensorData::Bytes(b) => b,
            TensorData::Strings(_) => &EMPTY,
        }
    }

    /// The strings of a string tensor.
    pub fn strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            TensorData::Strings(s) => Some(s),
            TensorData::Bytes(_) => None,
        }
    }

    /// Bytes that the elements take; for strings the sum of their lengths.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            TensorData::Bytes(b) => b.len(),
            TensorData::Strings(s) => s.iter().map(Bytes::len).sum(),
        }
    }

    /// What the file said besides type, shape and elements.
    pub fn extra(&self) -> Option<&TensorExtra> {
        self.extra.as_deref()
    }

    /// The same tensor with what a file says besides type, shape and elements.
    pub fn with_extra(mut self, extra: TensorExtra) -> Tensor {
        self.extra = (extra != TensorExtra::default()).then(|| Arc::new(extra));
        self
    }

    /// How the elements stood in the file.
    pub fn storage(&self) -> &Storage {
        static RAW: Storage = Storage::Raw;
        self.extra.as_ref().map_or(&RAW, |e| &e.storage)
    }

    /// The same elements under another shape. Fails when their number differs.
    pub fn reshaped(&self, dims: impl IntoIterator<Item = usize>) -> Result<Tensor, TensorError> {
        let dims: Dims = dims.into_iter().collect();
        if element_count(&dims) != Some(self.len()) {
            return Err(TensorError::Length {
                dtype: self.dtype,
                dims: dims.to_vec(),
                expected: element_count(&dims).unwrap_or(usize::MAX),
                found: self.len(),
            });
        }
        Ok(Tensor {
            dtype: self.dtype,
            dims,
            data: self.data.clone(),
            extra: None,
        })
    }

    /// The elements, borrowed when the bytes are aligned. Fails for another element type.
    pub fn view<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::Type {
                expected: T::DTYPE,
                found: self.dtype,
            });
        }
        Ok(cast(self.bytes()))
    }

    /// All numeric elements as f64 (exact for all but 64-bit integers); `None` for strings,
    /// complex numbers and float types of less than 16 bits.
    pub fn to_f64s(&self) -> Option<Vec<f64>> {
        let b = self.bytes();
        fn wide<T: Element>(b: &Bytes, f: impl Fn(T) -> f64) -> Vec<f64> {
            cast::<T>(b).iter().map(|&v| f(v)).collect()
        }
        Some(match self.dtype {
            DType::F32 => wide::<f32>(b, f64::from),
            DType::F64 => wide::<f64>(b, |v| v),
            DType::F16 => wide::<f16>(b, f64::from),
            DType::BF16 => wide::<bf16>(b, f64::from),
            DType::Bool => wide::<u8>(b, |v| f64::from(v != 0)),
            DType::U64 => wide::<u64>(b, |v| v as f64),
            _ => {
                return self
                    .to_i64s()
                    .map(|v| v.into_iter().map(|v| v as f64).collect());
            }
        })
    }

    /// All f16, bf16, f32 or f64 elements as f32 (rounded from f64); `None` for other types.
    pub fn to_f32s(&self) -> Option<Cow<'_, [f32]>> {
        match self.dtype {
            DType::F32 => Some(cast(self.bytes())),
            d if d.is_float() => self
                .to_f64s()
                .map(|v| Cow::Owned(v.into_iter().map(|v| v as f32).collect())),
            _ => None,
        }
    }

    /// All integer or boolean elements as i64; `None` for other types, and for a u64 beyond i64.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        let b = self.bytes();
        fn wide<T: Element + Into<i64>>(b: &Bytes) -> Vec<i64> {
            cast::<T>(b).iter().map(|&v| v.into()).collect()
        }
        Some(match self.dtype {
            DType::I64 => cast::<i64>(b).into_owned(),
            DType::I32 => wide::<i32>(b),
            DType::I16 => wide::<i16>(b),
            DType::I8 => wide::<i8>(b),
            DType::U8 => wide::<u8>(b),
            DType::Bool => b.iter().map(|&v| i64::from(v != 0)).collect(),
            DType::U16 => wide::<u16>(b),
            DType::U32 => wide::<u32>(b),
            DType::U64 => {
                return cast::<u64>(b)
                    .iter()
                    .map(|&v| i64::try_from(v).ok())
                    .collect();
            }
            DType::U4 => self.unpack(4, false),
            DType::I4 => self.unpack(4, true),
            DType::U2 => self.unpack(2, false),
            DType::I2 => self.unpack(2, true),
            _ => return None,
        })
    }

    fn unpack(&self, bits: u32, signed: bool) -> Vec<i64> {
        let per_byte = (8 / bits) as usize;
        let mask = (1u8 << bits) - 1;
        (0..self.len())
            .map(|i| {
                let byte = self.bytes().get(i / per_byte).copied().unwrap_or(0);
                let code = i64::from((byte >> (bits * (i % per_byte) as u32)) & mask);
                if signed && code >= 1 << (bits - 1) {
                    code - (1 << bits)
                } else {
                    code
                }
            })
            .collect()
    }

    /// The one element of a tensor of one element, as f64.
    pub fn single_f64(&self) -> Option<f64> {
        if self.len() != 1 {
            return None;
        }
        self.to_f64s()?.first().copied()
    }

    /// Elements that are zero (either sign); 0 for strings. The elements are read in place.
    pub fn count_zeros(&self) -> usize {
        fn zeros<const N: usize>(bytes: &[u8], sign: [u8; N]) -> usize {
            let (elements, _) = bytes.as_chunks::<N>();
            let is_zero = |e: &&[u8; N]| e.iter().zip(&sign).all(|(byte, sign)| byte & !sign == 0);
            elements.iter().filter(is_zero).count()
        }
        let b = self.bytes();
        match self.dtype {
            DType::String => 0,
            DType::F32 => {
                let (elements, _) = b.as_chunks::<4>();
                let is_zero = |e: &&[u8; 4]| u32::from_le_bytes(**e) << 1 == 0;
                elements.iter().filter(is_zero).count()
            }
            DType::F64 => zeros(b, [0, 0, 0, 0, 0, 0, 0, 0x80]),
            DType::F16 | DType::BF16 => zeros(b, [0, 0x80]),
            DType::F8E4M3FN | DType::F8E5M2 => zeros(b, [0x80]),
            // An exponent alone is never zero.
            DType::F8E8M0 => 0,
            DType::Bool | DType::U8 | DType::I8 | DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => {
                zeros(b, [0])
            }
            DType::U16 | DType::I16 => zeros(b, [0; 2]),
            DType::U32 | DType::I32 => zeros(b, [0; 4]),
            DType::U64 | DType::I64 => zeros(b, [0; 8]),
            DType::C64 => zeros(b, [0, 0, 0, 0x80, 0, 0, 0, 0x80]),
            DType::C128 => zeros(b, [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x80]),
            DType::U4 | DType::I4 => self.packed_zeros(4, 0xF),
            DType::F4E2M1 => self.packed_zeros(4, 0x7),
            DType::U2 | DType::I2 => self.packed_zeros(2, 0x3),
        }
    }

    /// Elements of less than a byte that have none of the bits of `mask`.
    fn packed_zeros(&self, bits: u32, mask: u8) -> usize {
        let codes = self
            .bytes()
            .iter()
            .flat_map(|byte| (0..8 / bits).map(move |i| byte >> (bits * i)));
        codes
            .take(self.len())
            .filter(|code| code & mask == 0)
            .count()
    }

    /// A hash of element type, shape and elements (xxh3, 128 bits); equal tensors have equal digests.
    pub fn digest(&self) -> u128 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        h.update(&[self.dtype as u8]);
        for &d in &self.dims {
            h.update(&(d as u64).to_le_bytes());
        }
        match &self.data {
            TensorData::Bytes(b) => h.update(b),
            TensorData::Strings(s) => {
                for s in s.iter() {
                    h.update(&(s.len() as u64).to_le_bytes());
                    h.update(s);
                }
            }
        }
        h.digest128()
    }
}

/// Equality of element type, shape and elements bit by bit; what else a file says doesn't count.
impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.dims == other.dims && self.data == other.data
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.dims.as_slice())?;
        match &self.data {
            TensorData::Strings(s) => write!(f, " {s:?}"),
            TensorData::Bytes(b) if self.len() <= 16 => match self.to_f64s() {
                Some(v) => write!(f, " {v:?}"),
                None => write!(f, " {b:?}"),
            },
            TensorData::Bytes(_) => write!(f, " digest {:032x}", self.digest()),
        }
    }
}

/// Little-endian bytes of the elements, without a copy where the host is little-endian.
fn to_le_bytes<T: Element>(elements: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: Element> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    if cfg!(target_endian = "little") {
        Bytes::from_owner(Owner(elements))
    } else {
        let mut bytes = bytemuck::cast_slice(&elements).to_vec();
        bytes
            .chunks_exact_mut(size_of::<T>())
            .for_each(<[u8]>::reverse);
        bytes.into()
    }
}

/// Elements over little-endian bytes; a trailing part of an element is left out.
fn cast<T: Element>(bytes: &[u8]) -> Cow<'_, [T]> {
    let whole = bytes.len() / size_of::<T>() * size_of::<T>();
    let bytes = &bytes[..whole];
    if cfg!(target_endian = "little") {
        match bytemuck::try_cast_slice(bytes) {
            Ok(s) => return Cow::Borrowed(s),
            Err(_) => return Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
        }
    }
    let mut owned = bytes.to_vec();
    owned
        .chunks_exact_mut(size_of::<T>())
        .for_each(<[u8]>::reverse);
    Cow::Owned(bytemuck::pod_collect_to_vec(&owned))
}

/// A tensor whose elements are zero except where listed (`SparseTensorProto`).
#[derive(Clone, Debug, PartialEq)]
pub struct SparseTensor {
    /// The non-zero elements, of shape `[nnz]`.
    pub values: Tensor,
    /// Their positions: i64, `[nnz]` linear or `[nnz, rank]`, ascending.
    pub indices: Tensor,
    /// The shape of the dense tensor.
    pub dims: Dims,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_must_fit_the_shape() {
        let e = Tensor::new(DType::F32, [2, 3], vec![0u8; 23]).expect_err("one byte short");
        assert_eq!(
            e.to_string(),
            "float tensor of shape [2, 3] needs 24 bytes, found 23"
        );
        assert!(matches!(
            Tensor::new(DType::F32, [usize::MAX, 2], Bytes::new()),
            Err(TensorError::Overflow { .. })
        ));
        assert!(Tensor::new(DType::F32, [usize::MAX, 0, 2], Bytes::new()).is_ok());
    }

    #[test]
    fn packed_types_round_up_and_sign_extend() {
        let t = Tensor::new(DType::I4, [3], vec![0xF1, 0x08]).expect("three nibbles in two bytes");
        assert_eq!(t.to_i64s(), Some(vec![1, -1, -8]));
        let t = Tensor::new(DType::U2, [5], vec![0b1110_0100, 0b10]).expect("five crumbs");
        assert_eq!(t.to_i64s(), Some(vec![0, 1, 2, 3, 2]));
    }

    #[test]
    fn zeros_are_counted_by_the_bits_of_the_type() {
        let zeros = |dtype, n: usize, bytes: &[u8]| {
            let t = Tensor::new(dtype, [n], bytes.to_vec()).expect("bytes that fit");
            t.count_zeros()
        };
        let floats = Tensor::vector(vec![0f32, -0.0, 1e-45, f32::NAN, -1.0]);
        assert_eq!(floats.count_zeros(), 2);
        assert_eq!(Tensor::vector(vec![0i64, 1 << 40, -1]).count_zeros(), 1);
        assert_eq!(zeros(DType::F16, 3, &[0, 0, 0, 0x80, 1, 0]), 2);
        assert_eq!(zeros(DType::F8E4M3FN, 2, &[0, 0x80]), 2);
        assert_eq!(zeros(DType::F8E4M3FNUZ, 2, &[0, 0x80]), 1);
        assert_eq!(zeros(DType::F8E8M0, 1, &[0]), 0);
        // The padding of the last byte is no element.
        assert_eq!(zeros(DType::I4, 3, &[0x08, 0x01]), 1);
        assert_eq!(zeros(DType::F4E2M1, 3, &[0x08, 0x01]), 2);
        assert_eq!(zeros(DType::U2, 5, &[0b0001_0011, 0]), 3);
    }

    #[test]
    fn an_empty_shape_may_have_huge_factors() {
        let t = Tensor::new(DType::F32, [usize::MAX, 2, 0], Bytes::new()).expect("no bytes");
        assert_eq!((t.len(), t.is_empty()), (0, true));
    }

    #[test]
    fn unaligned_bytes_are_readable() {
        let all = Bytes::from(vec![9, 0, 0, 128, 63, 0, 0, 0, 64]);
        let t = Tensor::new(DType::F32, [2], all.slice(1..)).expect("eight bytes");
        assert_eq!(&*t.view::<f32>().expect("f32"), &[1.0, 2.0]);
        assert!(t.view::<i64>().is_err());
    }

    #[test]
    fn digests_tell_shapes_apart() {
        let a = Tensor::vector(vec![1f32, 2.0]);
        let b = a.reshaped([2, 1]).expect("two elements");
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.digest(), a.clone().digest());
    }
}

//! Tensors, between the file and the graph.
//!
//! The elements of a `TensorProto` stand in `raw_data`, in a side file, or in the typed field
//! of their element type. A [`Tensor`] always holds them packed and little-endian and
//! remembers where they stood.

use bytes::Bytes;
use half::{bf16, f16};
use paring_ir::tensor::element_count;
use paring_ir::{DType, Element, Name, SparseTensor, Storage, Tensor, TensorExtra, escape};

use super::external::SideFiles;
use super::proto;
use super::types::{Names, read_pairs};

/// The typed fields of `TensorProto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TypedField {
    Float,
    Int32,
    Strings,
    Int64,
    Double,
    Uint64,
}

impl TypedField {
    /// The field in which elements of a type stand.
    pub(super) fn of(dtype: DType) -> TypedField {
        match dtype {
            DType::F32 | DType::C64 => TypedField::Float,
            DType::F64 | DType::C128 => TypedField::Double,
            DType::I64 => TypedField::Int64,
            DType::U32 | DType::U64 => TypedField::Uint64,
            DType::String => TypedField::Strings,
            _ => TypedField::Int32,
        }
    }

    fn name(self) -> &'static str {
        match self {
            TypedField::Float => "float_data",
            TypedField::Int32 => "int32_data",
            TypedField::Strings => "string_data",
            TypedField::Int64 => "int64_data",
            TypedField::Double => "double_data",
            TypedField::Uint64 => "uint64_data",
        }
    }
}

/// What reading tensors needs besides the tensors.
pub(super) struct TensorReader {
    pub(super) side: SideFiles,
    pub(super) names: Names,
    /// Tensors with entries of `external_data` that nothing points to.
    pub(super) stray_entries: u64,
}

impl TensorReader {
    /// A tensor, and its name. The name is not in the tensor's extra.
    pub(super) fn tensor(
        &mut self,
        t: proto::TensorProto,
    ) -> Result<(Option<String>, Tensor), String> {
        let dtype = dtype(t.data_type)?;
        let dims = dimensions(&t.dims)?;
        let external = t.data_location == Some(1);
        let extra = TensorExtra {
            storage: Storage::Raw,
            name: None,
            doc: t.doc_string.as_deref().map(Name::from),
            metadata: read_pairs(&t.metadata_props, &mut self.names),
            segment: t.segment.as_ref().map(|s| (s.begin, s.end)),
            explicit_location: t.data_location.is_some() && !external,
        };
        let field = single_field(&t, dtype)?;
        let (storage, tensor) = if external {
            if let Some(field) = field {
                return Err(format!("the elements are external and in {field} too"));
            }
            self.external(&t, dtype, &dims)?
        } else {
            self.stray_entries += u64::from(!t.external_data.is_empty());
            match t.raw_data {
                Some(_) if dtype == DType::String => {
                    return Err("the elements are strings, which can't stand in raw_data".into());
                }
                // An empty raw_data beside a typed field is the typed field's.
                Some(raw) if field.is_none() || field == Some("raw_data") => {
                    (Storage::Raw, Tensor::new(dtype, dims, raw))
                }
                _ => (Storage::Typed, typed(&t, dtype, dims)?),
            }
        };
        let tensor = tensor.map_err(|e| e.to_string())?;
        Ok((t.name, tensor.with_extra(TensorExtra { storage, ..extra })))
    }

    /// A tensor in an attribute, which keeps its own name.
    pub(super) fn named_tensor(&mut self, t: proto::TensorProto) -> Result<Tensor, String> {
        let (name, tensor) = self.tensor(t)?;
        let Some(name) = name else { return Ok(tensor) };
        let mut extra = tensor.extra().cloned().unwrap_or_default();
        extra.name = Some(self.names.get(&name));
        Ok(tensor.with_extra(extra))
    }

    fn external(
        &mut self,
        t: &proto::TensorProto,
        dtype: DType,
        dims: &[usize],
    ) -> Result<(Storage, Result<Tensor, paring_ir::TensorError>), String> {
        let bytes = element_count(dims).and_then(|n| dtype.packed_len(n));
        let Some(length) = bytes else {
            return Err(match dtype {
                DType::String => "strings can't stand in a side file".to_owned(),
                _ => format!("the size of shape {dims:?} overflows"),
            });
        };
        let entries = read_pairs(&t.external_data, &mut self.names);
        let bytes = self.side.elements(&entries, length)?;
        let location = entries.iter().find(|(k, _)| &**k == "location");
        let storage = Storage::External {
            location: location.map_or_else(|| "".into(), |(_, v)| self.names.get(v)),
            entries: entries.iter().cloned().collect(),
        };
        Ok((storage, Tensor::new(dtype, dims.iter().copied(), bytes)))
    }

    /// A sparse tensor, and its name, which is that of its values. In an attribute the values
    /// keep it themselves.
    pub(super) fn sparse(
        &mut self,
        t: proto::SparseTensorProto,
        in_attribute: bool,
    ) -> Result<(Option<String>, SparseTensor), String> {
        let part = |name: &str, e: String| format!("{name}: {e}");
        let values = t.values.ok_or("a sparse tensor has no values")?;
        let indices = t.indices.ok_or("a sparse tensor has no indices")?;
        let name = values.name.clone();
        let values = if in_attribute {
            self.named_tensor(values)
        } else {
            self.tensor(values).map(|(_, t)| t)
        };
        let values = values.map_err(|e| part("values", e))?;
        let indices = self.named_tensor(indices).map_err(|e| part("indices", e))?;
        let dims = dimensions(&t.dims)?;
        check_sparse(&values, &indices, &dims)?;
        let dims = dims.into_iter().collect();
        Ok((
            name,
            SparseTensor {
                values,
                indices,
                dims,
            },
        ))
    }
}

/// Checks that the positions of a sparse tensor fit its values and its shape, and ascend.
fn check_sparse(values: &Tensor, indices: &Tensor, dims: &[usize]) -> Result<(), String> {
    let total =
        element_count(dims).ok_or_else(|| format!("the size of shape {dims:?} overflows"))?;
    let &[count] = values.dims() else {
        return Err(format!(
            "the values have shape {:?}, expected one dimension",
            values.dims()
        ));
    };
    let Ok(positions) = indices.view::<i64>() else {
        return Err(format!(
            "the indices are {}, expected int64",
            indices.dtype()
        ));
    };
    let width = match *indices.dims() {
        [n] if n == count => None,
        [n, width] if n == count && width == dims.len() => Some(width),
        _ => {
            return Err(format!(
                "the indices have shape {:?}, expected [{count}] or [{count}, {}]",
                indices.dims(),
                dims.len()
            ));
        }
    };
    let mut last = None;
    for i in 0..count {
        let at = match width {
            None => positions.get(i).and_then(|&p| usize::try_from(p).ok()),
            Some(width) => linear(positions.get(i * width..(i + 1) * width), dims),
        };
        match at {
            Some(at) if at < total && last.is_none_or(|l| l < at) => last = Some(at),
            _ => {
                return Err(format!(
                    "index {i} is outside shape {dims:?} or not after the one before it"
                ));
            }
        }
    }
    Ok(())
}

fn linear(position: Option<&[i64]>, dims: &[usize]) -> Option<usize> {
    position?.iter().zip(dims).try_fold(0usize, |at, (&p, &d)| {
        let p = usize::try_from(p).ok().filter(|&p| p < d)?;
        at.checked_mul(d)?.checked_add(p)
    })
}

fn dtype(code: Option<i32>) -> Result<DType, String> {
    match code {
        None | Some(0) => Err("the element type is not given (undefined)".to_owned()),
        Some(code) => DType::from_onnx(code).ok_or_else(|| {
            let name = match code {
                27 => " (float6e2m3)",
                28 => " (float6e3m2)",
                _ => "",
            };
            format!("element type {code}{name} is not supported, expected 1 to 26")
        }),
    }
}

fn dimensions(dims: &[i64]) -> Result<Vec<usize>, String> {
    let dim = |(i, &d): (usize, &i64)| {
        usize::try_from(d).map_err(|_| format!("dimension {i} is {d}, expected 0 or more"))
    };
    dims.iter().enumerate().map(dim).collect()
}

/// The one field that holds the elements, which must be one for the element type.
fn single_field(t: &proto::TensorProto, dtype: DType) -> Result<Option<&'static str>, String> {
    use TypedField as F;
    let all = [
        (F::Float, t.float_data.is_empty()),
        (F::Int32, t.int32_data.is_empty()),
        (F::Strings, t.string_data.is_empty()),
        (F::Int64, t.int64_data.is_empty()),
        (F::Double, t.double_data.is_empty()),
        (F::Uint64, t.uint64_data.is_empty()),
    ];
    let mut found = t
        .raw_data
        .as_ref()
        .filter(|r| !r.is_empty())
        .map(|_| "raw_data");
    for (field, empty) in all {
        if empty {
            continue;
        }
        if let Some(other) = found {
            return Err(format!("elements stand in {other} and in {}", field.name()));
        }
        let right = F::of(dtype);
        if field != right {
            return Err(format!(
                "elements stand in {}, those of {dtype} tensors belong in {}",
                field.name(),
                right.name()
            ));
        }
        found = Some(field.name());
    }
    Ok(found)
}

/// The elements in the typed field.
fn typed(
    t: &proto::TensorProto,
    dtype: DType,
    dims: Vec<usize>,
) -> Result<Result<Tensor, paring_ir::TensorError>, String> {
    let small = || narrow::<u8>(&t.int32_data, dtype);
    let bytes: Bytes = match dtype {
        DType::F32 | DType::C64 => packed(&t.float_data),
        DType::F64 | DType::C128 => packed(&t.double_data),
        DType::I64 => packed(&t.int64_data),
        DType::U64 => packed(&t.uint64_data),
        DType::U32 => packed(&narrow::<u32>(&t.uint64_data, dtype)?),
        DType::I32 => packed(&t.int32_data),
        DType::I16 => packed(&narrow::<i16>(&t.int32_data, dtype)?),
        DType::U16 | DType::F16 | DType::BF16 => packed(&narrow::<u16>(&t.int32_data, dtype)?),
        DType::I8 => packed(&narrow::<i8>(&t.int32_data, dtype)?),
        DType::Bool => {
            let bools = small()?;
            if let Some(i) = bools.iter().position(|&b| b > 1) {
                return Err(format!("int32_data[{i}] is no bool, expected 0 or 1"));
            }
            bools.into()
        }
        DType::String => return Ok(Tensor::from_strings(dims, t.string_data.iter().cloned())),
        _ => small()?.into(),
    };
    Ok(Tensor::new(dtype, dims, bytes))
}

fn packed<T: Element>(elements: &[T]) -> Bytes {
    Tensor::vector(elements.to_vec()).bytes().clone()
}

fn narrow<T>(
    elements: &[impl Copy + TryInto<T> + std::fmt::Display],
    dtype: DType,
) -> Result<Vec<T>, String> {
    let one = |(i, &e)| {
        let e: Result<T, _> = TryInto::<T>::try_into(e);
        e.map_err(|_| i)
    };
    let all: Result<Vec<T>, usize> = elements.iter().enumerate().map(one).collect();
    all.map_err(|i| {
        let found = elements.get(i).map(ToString::to_string).unwrap_or_default();
        format!("element {i} is {found}, which is no {dtype}")
    })
}

/// The elements of a tensor as the message of the typed field that they belong in.
pub(super) fn write_typed(tensor: &Tensor) -> proto::TensorProto {
    let mut t = proto::TensorProto::default();
    let bytes = tensor.bytes();
    let ints = |v: Option<Vec<i64>>| v.unwrap_or_default();
    match tensor.dtype() {
        DType::F32 | DType::C64 => t.float_data = elements(bytes),
        DType::F64 | DType::C128 => t.double_data = elements(bytes),
        DType::I64 => t.int64_data = elements(bytes),
        DType::U64 => t.uint64_data = elements(bytes),
        DType::U32 => t.uint64_data = elements::<u32>(bytes).into_iter().map(u64::from).collect(),
        DType::I32 => t.int32_data = elements(bytes),
        DType::I16 | DType::I8 | DType::U16 => {
            t.int32_data = ints(tensor.to_i64s())
                .into_iter()
                .map(|v| v as i32)
                .collect();
        }
        DType::F16 => t.int32_data = bits(&elements::<f16>(bytes), f16::to_bits),
        DType::BF16 => t.int32_data = bits(&elements::<bf16>(bytes), bf16::to_bits),
        DType::String => t.string_data = tensor.strings().unwrap_or_default().to_vec(),
        _ => t.int32_data = bytes.iter().map(|&b| i32::from(b)).collect(),
    }
    t
}

fn bits<T: Copy>(elements: &[T], bits: impl Fn(T) -> u16) -> Vec<i32> {
    elements.iter().map(|&e| i32::from(bits(e))).collect()
}

/// Elements over little-endian bytes, whatever type the tensor has.
fn elements<T: Element>(bytes: &Bytes) -> Vec<T> {
    let count = bytes.len() / size_of::<T>();
    Tensor::new(T::DTYPE, [count], bytes.slice(..count * size_of::<T>()))
        .ok()
        .and_then(|t| t.view::<T>().ok().map(|v| v.into_owned()))
        .unwrap_or_default()
}

/// A label for messages.
pub(super) fn quoted(what: &str, name: &str) -> String {
    format!("{what} \"{}\"", escape(name))
}

//! Types and descriptions of values, between the file and the graph.

use std::collections::HashSet;

use paring_ir::value::{Spelling, ValueExtra};
use paring_ir::{DType, Dim, InfoList, Name, Shape, Value, ValueType};
use prost::Message as _;

use super::proto;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::type_proto::{self, Value as Kind};

/// Strings that are equal are kept once.
#[derive(Default)]
pub(super) struct Names(HashSet<Name>);

impl Names {
    /// The shared string of this text.
    pub(super) fn get(&mut self, text: &str) -> Name {
        if let Some(name) = self.0.get(text) {
            return name.clone();
        }
        let name: Name = text.into();
        self.0.insert(name.clone());
        name
    }
}

/// Denotations of a type and of its dimensions.
type Denotations = Option<(Option<Name>, Vec<Option<Name>>)>;

/// The type that a message describes; `None` when it says nothing that the graph can hold.
pub(super) fn read_type(
    ty: &proto::TypeProto,
    names: &mut Names,
) -> (Option<ValueType>, Denotations) {
    let shape_of = match &ty.value {
        Some(Kind::TensorType(t)) => t.shape.as_ref(),
        Some(Kind::SparseTensorType(t)) => t.shape.as_ref(),
        _ => None,
    };
    let dims: Vec<Option<Name>> = shape_of
        .map(|s| s.dim.iter())
        .into_iter()
        .flatten()
        .map(|d| d.denotation.as_deref().map(|d| names.get(d)))
        .collect();
    let own = ty.denotation.as_deref().map(|d| names.get(d));
    let any = own.is_some() || dims.iter().any(Option::is_some);
    (value_type(ty, names), any.then_some((own, dims)))
}

fn value_type(ty: &proto::TypeProto, names: &mut Names) -> Option<ValueType> {
    let dtype = |code: Option<i32>| code.and_then(DType::from_onnx);
    Some(match ty.value.as_ref()? {
        Kind::TensorType(t) => ValueType::Tensor {
            dtype: dtype(t.elem_type),
            shape: t.shape.as_ref().map(|s| shape(s, names)),
        },
        Kind::SparseTensorType(t) => ValueType::SparseTensor {
            dtype: dtype(t.elem_type),
            shape: t.shape.as_ref().map(|s| shape(s, names)),
        },
        Kind::SequenceType(t) => ValueType::Sequence(inner(t.elem_type.as_deref(), names)),
        Kind::OptionalType(t) => ValueType::Optional(inner(t.elem_type.as_deref(), names)),
        Kind::MapType(t) => ValueType::Map {
            key: dtype(t.key_type),
            value: inner(t.value_type.as_deref(), names),
        },
        Kind::OpaqueType(t) => ValueType::Opaque {
            domain: names.get(t.domain.as_deref().unwrap_or_default()),
            name: names.get(t.name.as_deref().unwrap_or_default()),
        },
    })
}

fn inner(ty: Option<&proto::TypeProto>, names: &mut Names) -> Option<Box<ValueType>> {
    value_type(ty?, names).map(Box::new)
}

fn shape(shape: &proto::TensorShapeProto, names: &mut Names) -> Shape {
    let dim = |d: &Dimension| match &d.value {
        Some(dimension::Value::DimValue(v)) => Dim::Value(*v),
        Some(dimension::Value::DimParam(p)) if !p.is_empty() => Dim::Param(names.get(p)),
        _ => Dim::Unknown,
    };
    shape.dim.iter().map(dim).collect()
}

/// The message that describes a type.
pub(super) fn write_type(ty: &ValueType, denotations: &Denotations) -> proto::TypeProto {
    let code = |d: &Option<DType>| d.map(DType::to_onnx);
    let (own, dims) = match denotations {
        Some((own, dims)) => (own.as_ref(), dims.as_slice()),
        None => (None, &[][..]),
    };
    let inner = |ty: &Option<Box<ValueType>>| ty.as_ref().map(|ty| Box::new(write_type(ty, &None)));
    let value = match ty {
        ValueType::Tensor { dtype, shape } => Kind::TensorType(type_proto::Tensor {
            elem_type: code(dtype),
            shape: shape.as_ref().map(|s| write_shape(s, dims)),
        }),
        ValueType::SparseTensor { dtype, shape } => {
            Kind::SparseTensorType(type_proto::SparseTensor {
                elem_type: code(dtype),
                shape: shape.as_ref().map(|s| write_shape(s, dims)),
            })
        }
        ValueType::Sequence(ty) => Kind::SequenceType(Box::new(type_proto::Sequence {
            elem_type: inner(ty),
        })),
        ValueType::Optional(ty) => Kind::OptionalType(Box::new(type_proto::Optional {
            elem_type: inner(ty),
        })),
        ValueType::Map { key, value } => Kind::MapType(Box::new(type_proto::Map {
            key_type: code(key),
            value_type: inner(value),
        })),
        ValueType::Opaque { domain, name } => Kind::OpaqueType(type_proto::Opaque {
            domain: Some(domain.to_string()),
            name: Some(name.to_string()),
        }),
    };
    proto::TypeProto {
        denotation: own.map(|d| d.to_string()),
        value: Some(value),
    }
}

fn write_shape(shape: &[Dim], denotations: &[Option<Name>]) -> proto::TensorShapeProto {
    // Denotations of another shape than this one are outdated.
    let denotations = if denotations.len() == shape.len() {
        denotations
    } else {
        &[]
    };
    let dim = shape.iter().enumerate().map(|(i, d)| Dimension {
        denotation: denotations
            .get(i)
            .and_then(Option::as_ref)
            .map(|d| d.to_string()),
        value: match d {
            Dim::Value(v) => Some(dimension::Value::DimValue(*v)),
            Dim::Param(p) => Some(dimension::Value::DimParam(p.to_string())),
            Dim::Unknown => None,
        },
    });
    proto::TensorShapeProto { dim: dim.collect() }
}

/// What an entry of a list says about a value besides its name.
pub(super) fn read_info(
    info: &proto::ValueInfoProto,
    names: &mut Names,
) -> (Option<ValueType>, ValueExtra) {
    let (ty, denotations) = match &info.r#type {
        Some(ty) => read_type(ty, names),
        None => (None, None),
    };
    let extra = ValueExtra {
        doc: info.doc_string.as_deref().map(Name::from),
        metadata: read_pairs(&info.metadata_props, names),
        denotations,
        spellings: Vec::new(),
    };
    (ty, extra)
}

/// The entry for a value whose type, documentation and metadata are these.
pub(super) fn write_info(
    name: &str,
    ty: Option<&ValueType>,
    extra: Option<&ValueExtra>,
) -> proto::ValueInfoProto {
    let none = None;
    let denotations = extra.map_or(&none, |e| &e.denotations);
    proto::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: ty.map(|ty| Box::new(write_type(ty, denotations))),
        doc_string: extra.and_then(|e| e.doc.as_ref()).map(|d| d.to_string()),
        metadata_props: extra.map_or_else(Vec::new, |e| write_pairs(&e.metadata)),
    }
}

/// The spelling of an entry, when the value alone doesn't give it back: `value` must have its
/// type and extra already.
pub(super) fn spelling(
    info: &proto::ValueInfoProto,
    value: &Value,
    list: InfoList,
    nth: u32,
) -> Option<Spelling> {
    // Without a declared type, the entry is written with the type of the constant, or not at all.
    let bare = value.declared_type().is_none()
        && (list == InfoList::Declared || value.initializer().is_some());
    let name = info.name.as_deref().unwrap_or_default();
    let written = write_info(name, value.declared_type(), value.extra());
    (bare || written != *info).then(|| Spelling {
        list,
        nth,
        ty: value.declared_type().cloned(),
        entry: info.encode_to_vec().into(),
    })
}

/// Pairs of strings. An absent key or value is an empty one.
pub(super) fn read_pairs(
    pairs: &[proto::StringStringEntryProto],
    names: &mut Names,
) -> Vec<(Name, Name)> {
    let text = |t: &Option<String>| Name::from(t.as_deref().unwrap_or_default());
    pairs
        .iter()
        .map(|p| {
            (
                names.get(p.key.as_deref().unwrap_or_default()),
                text(&p.value),
            )
        })
        .collect()
}

/// The messages of pairs of strings.
pub(super) fn write_pairs(pairs: &[(Name, Name)]) -> Vec<proto::StringStringEntryProto> {
    pairs
        .iter()
        .map(|(key, value)| proto::StringStringEntryProto {
            key: Some(key.to_string()),
            value: Some(value.to_string()),
        })
        .collect()
}

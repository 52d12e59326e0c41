//! Attributes of operators.

use bytes::Bytes;

use crate::graph::Graph;
use crate::tensor::{SparseTensor, Tensor};
use crate::value::{Name, ValueType};

/// The kinds of attributes, by the numbers of `AttributeProto.AttributeType`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the variants are named after the ONNX kinds")]
pub enum AttrKind {
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Graph = 5,
    Floats = 6,
    Ints = 7,
    Strings = 8,
    Tensors = 9,
    Graphs = 10,
    SparseTensor = 11,
    SparseTensors = 12,
    Type = 13,
    Types = 14,
}

impl AttrKind {
    /// Every kind, in the order of the ONNX numbers.
    pub const ALL: [AttrKind; 14] = [
        AttrKind::Float,
        AttrKind::Int,
        AttrKind::String,
        AttrKind::Tensor,
        AttrKind::Graph,
        AttrKind::Floats,
        AttrKind::Ints,
        AttrKind::Strings,
        AttrKind::Tensors,
        AttrKind::Graphs,
        AttrKind::SparseTensor,
        AttrKind::SparseTensors,
        AttrKind::Type,
        AttrKind::Types,
    ];

    /// The kind with this `AttributeType` number.
    pub fn from_onnx(code: i32) -> Option<AttrKind> {
        let index = usize::try_from(code).ok()?.checked_sub(1)?;
        AttrKind::ALL.get(index).copied()
    }

    /// The `AttributeType` number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }
}

/// The value of an attribute.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the variants are named after the ONNX kinds")]
pub enum AttrValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    SparseTensor(Box<SparseTensor>),
    Type(Box<ValueType>),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    SparseTensors(Vec<SparseTensor>),
    Types(Vec<ValueType>),
    /// In a function's body: the attribute of the function of this name.
    Ref {
        name: Name,
        kind: AttrKind,
    },
}

impl AttrValue {
    /// The kind.
    pub fn kind(&self) -> AttrKind {
        match self {
            AttrValue::Float(_) => AttrKind::Float,
            AttrValue::Int(_) => AttrKind::Int,
            AttrValue::String(_) => AttrKind::String,
            AttrValue::Tensor(_) => AttrKind::Tensor,
            AttrValue::Graph(_) => AttrKind::Graph,
            AttrValue::SparseTensor(_) => AttrKind::SparseTensor,
            AttrValue::Type(_) => AttrKind::Type,
            AttrValue::Floats(_) => AttrKind::Floats,
            AttrValue::Ints(_) => AttrKind::Ints,
            AttrValue::Strings(_) => AttrKind::Strings,
            AttrValue::Tensors(_) => AttrKind::Tensors,
            AttrValue::Graphs(_) => AttrKind::Graphs,
            AttrValue::SparseTensors(_) => AttrKind::SparseTensors,
            AttrValue::Types(_) => AttrKind::Types,
            AttrValue::Ref { kind, .. } => *kind,
        }
    }

    /// The graphs that this attribute holds.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            AttrValue::Graph(g) => std::slice::from_ref(&**g),
            AttrValue::Graphs(gs) => gs,
            _ => &[],
        }
    }

    pub(crate) fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            AttrValue::Graph(g) => std::slice::from_mut(&mut **g),
            AttrValue::Graphs(gs) => gs,
            _ => &mut [],
        }
    }

    /// Equality bit by bit (NaN equals itself, -0.0 differs from 0.0); graphs are never equal.
    pub fn same(&self, other: &AttrValue) -> bool {
        use AttrValue as A;
        let bits = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        };
        match (self, other) {
            (A::Float(a), A::Float(b)) => a.to_bits() == b.to_bits(),
            (A::Int(a), A::Int(b)) => a == b,
            (A::String(a), A::String(b)) => a == b,
            (A::Tensor(a), A::Tensor(b)) => a == b,
            (A::SparseTensor(a), A::SparseTensor(b)) => a == b,
            (A::Type(a), A::Type(b)) => a == b,
            (A::Floats(a), A::Floats(b)) => bits(a, b),
            (A::Ints(a), A::Ints(b)) => a == b,
            (A::Strings(a), A::Strings(b)) => a == b,
            (A::Tensors(a), A::Tensors(b)) => a == b,
            (A::SparseTensors(a), A::SparseTensors(b)) => a == b,
            (A::Types(a), A::Types(b)) => a == b,
            (A::Ref { name: a, kind: k }, A::Ref { name: b, kind: l }) => a == b && k == l,
            _ => false,
        }
    }
}

macro_rules! from {
    ($($t:ty => |$v:ident| $e:expr),* $(,)?) => {
        $(impl From<$t> for AttrValue { fn from($v: $t) -> AttrValue { $e } })*
    };
}
from! {
    f32 => |v| AttrValue::Float(v),
    i64 => |v| AttrValue::Int(v),
    &str => |v| AttrValue::String(Bytes::copy_from_slice(v.as_bytes())),
    Tensor => |v| AttrValue::Tensor(v),
    Graph => |v| AttrValue::Graph(Box::new(v)),
    Vec<f32> => |v| AttrValue::Floats(v),
    Vec<i64> => |v| AttrValue::Ints(v),
    &[i64] => |v| AttrValue::Ints(v.to_vec()),
}

/// An attribute: a name and a value.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// The name, unique in its operator.
    pub name: Name,
    /// The value.
    pub value: AttrValue,
    /// Documentation.
    pub doc: Option<Name>,
    /// The file left out the kind, as IR version 1 allowed; it was told from the field that is set.
    pub untyped: bool,
    /// The file left out the value, which means zero or the empty string.
    pub defaulted: bool,
}

impl Attribute {
    /// An attribute without documentation.
    pub fn new(name: impl Into<Name>, value: impl Into<AttrValue>) -> Attribute {
        Attribute {
            name: name.into(),
            value: value.into(),
            doc: None,
            untyped: false,
            defaulted: false,
        }
    }
}

//! Values (the named edges of ONNX) and their types.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::graph::{OpId, Port, ValueId};
use crate::provenance::Provenance;
use crate::tensor::{DType, SparseTensor, Tensor};

/// A shared string: names of values and operators, operator types, domains.
pub type Name = Arc<str>;

/// One declared dimension.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Dim {
    /// A fixed size. A negative one says nothing: -1 gets a warning of the verifier, others fail.
    Value(i64),
    /// A symbol, such as `batch`: equal symbols are equal sizes.
    Param(Name),
    /// Nothing is said.
    #[default]
    Unknown,
}

impl Dim {
    /// The fixed size, when there is one and it is not negative.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Value(v) => usize::try_from(*v).ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Value(v) => write!(f, "{v}"),
            Dim::Param(p) => f.write_str(&crate::escape(p)),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// A declared shape: known rank, each dimension fixed, symbolic or unknown.
pub type Shape = SmallVec<[Dim; 4]>;

/// The type of a value.
#[derive(Clone, PartialEq, Debug)]
pub enum ValueType {
    /// A dense tensor; `None` where the file leaves element type or shape open.
    Tensor {
        /// The element type.
        dtype: Option<DType>,
        /// The shape; `None` is unknown rank, an empty shape is a scalar.
        shape: Option<Shape>,
    },
    /// A sparse tensor.
    SparseTensor {
        /// The element type.
        dtype: Option<DType>,
        /// The shape.
        shape: Option<Shape>,
    },
    /// A sequence of one type.
    Sequence(Option<Box<ValueType>>),
    /// An optional value.
    Optional(Option<Box<ValueType>>),
    /// A map.
    Map {
        /// The type of the keys.
        key: Option<DType>,
        /// The type of the values.
        value: Option<Box<ValueType>>,
    },
    /// A type of another domain.
    Opaque {
        /// The domain.
        domain: Name,
        /// The name of the type.
        name: Name,
    },
}

impl ValueType {
    /// A tensor type.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> ValueType {
        ValueType::Tensor {
            dtype: Some(dtype),
            shape: Some(shape.into_iter().collect()),
        }
    }

    /// A tensor type whose dimensions are all fixed.
    pub fn fixed(dtype: DType, dims: &[usize]) -> ValueType {
        ValueType::tensor(
            dtype,
            dims.iter()
                .map(|&d| Dim::Value(i64::try_from(d).unwrap_or(i64::MAX))),
        )
    }

    /// The element type of a dense tensor.
    pub fn dtype(&self) -> Option<DType> {
        match self {
            ValueType::Tensor { dtype, .. } => *dtype,
            _ => None,
        }
    }

    /// The shape of a dense tensor.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            ValueType::Tensor { shape, .. } => shape.as_deref(),
            _ => None,
        }
    }

    /// Whether a value may have both types: element types equal, ranks equal and fixed
    /// dimensions equal, each where both sides say something.
    pub fn compatible(&self, other: &ValueType) -> bool {
        match (self, other) {
            (
                ValueType::Tensor { dtype: a, shape: s },
                ValueType::Tensor { dtype: b, shape: t },
            ) => {
                let dtypes = a.is_none() || b.is_none() || a == b;
                let shapes = match (s, t) {
                    (Some(s), Some(t)) => {
                        s.len() == t.len()
                            && s.iter().zip(t).all(|(a, b)| match (a, b) {
                                (Dim::Value(a), Dim::Value(b)) => a == b,
                                _ => true,
                            })
                    }
                    _ => true,
                };
                dtypes && shapes
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// What a file says about a value besides its name and type.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ValueExtra {
    /// Documentation.
    pub doc: Option<Name>,
    /// `metadata_props`.
    pub metadata: Vec<(Name, Name)>,
    /// Denotations of the type and of each dimension, where there are any.
    pub denotations: Option<(Option<Name>, Vec<Option<Name>>)>,
    /// Entries of the file that the fields of the value don't give back as they were.
    pub spellings: Vec<Spelling>,
}

/// The lists of a graph in which a file describes values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InfoList {
    /// The inputs.
    Inputs,
    /// The outputs.
    Outputs,
    /// The value infos.
    Declared,
}

/// A description of a value that can't be told from the value's type, documentation and
/// metadata alone, kept to be written as it was read: a type with an element type that is
/// not known, say, or the second description of a value that is described twice.
#[derive(Clone, Debug, PartialEq)]
pub struct Spelling {
    /// The list.
    pub list: InfoList,
    /// Which of the list's entries for the value, counted from 0.
    pub nth: u32,
    /// The value's type when the entry was read; under another type the entry is outdated.
    pub ty: Option<ValueType>,
    /// The entry, encoded as in the file; this crate doesn't read it.
    pub entry: bytes::Bytes,
}

/// A constant value.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// A dense initializer.
    Dense(Tensor),
    /// A sparse initializer.
    Sparse(Arc<SparseTensor>),
}

impl Constant {
    /// The dense tensor, when it is one.
    pub fn dense(&self) -> Option<&Tensor> {
        match self {
            Constant::Dense(t) => Some(t),
            Constant::Sparse(_) => None,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Constant::Dense(t) => t.dtype(),
            Constant::Sparse(s) => s.values.dtype(),
        }
    }

    /// The dense shape.
    pub fn dims(&self) -> &[usize] {
        match self {
            Constant::Dense(t) => t.dims(),
            Constant::Sparse(s) => &s.dims,
        }
    }

    /// The type of the dense tensor.
    pub fn value_type(&self) -> ValueType {
        ValueType::fixed(self.dtype(), self.dims())
    }

    /// Bytes that the elements (and positions) take.
    pub fn byte_len(&self) -> usize {
        match self {
            Constant::Dense(t) => t.byte_len(),
            Constant::Sparse(s) => s.values.byte_len() + s.indices.byte_len(),
        }
    }
}

/// One use of a value: an operator and the port at which it takes the value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Use {
    /// The consumer.
    pub op: OpId,
    /// Its port.
    pub port: Port,
}

/// A value: an ONNX name with at most one producer and any number of uses.
///
/// It is exactly one of: produced by an operator, a graph input (which may have a
/// default), a constant, captured from the enclosing graph, or merely declared.
#[derive(Clone, Debug)]
pub struct Value {
    pub(crate) name: Name,
    pub(crate) ty: Option<Box<ValueType>>,
    // Boxed, like the type: most values of a large graph have neither.
    pub(crate) constant: Option<Box<Constant>>,
    pub(crate) producer: Option<(OpId, u32)>,
    pub(crate) producer_edge: u32,
    pub(crate) uses: SmallVec<[Use; 1]>,
    pub(crate) input: bool,
    pub(crate) outputs: u32,
    pub(crate) outer: Option<ValueId>,
    pub(crate) extra: Option<Box<ValueExtra>>,
    pub(crate) provenance: Option<Arc<Provenance>>,
}

impl Value {
    /// The name, unique in its graph.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The declared type. For a constant see [`Value::known_type`].
    pub fn declared_type(&self) -> Option<&ValueType> {
        self.ty.as_deref()
    }

    /// The type of the constant, or else the declared type.
    pub fn known_type(&self) -> Option<ValueType> {
        match self.as_constant() {
            Some(c) => Some(c.value_type()),
            None => self.ty.as_deref().cloned(),
        }
    }

    /// The initializer of this name, even when a graph input of the same name may override it.
    pub fn initializer(&self) -> Option<&Constant> {
        self.constant.as_deref()
    }

    /// The initializer, when it is really constant: one that shadows a graph input is not.
    pub fn as_constant(&self) -> Option<&Constant> {
        if self.input {
            None
        } else {
            self.constant.as_deref()
        }
    }

    /// The dense tensor of a real constant.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        self.as_constant().and_then(Constant::dense)
    }

    /// The operator that makes this value, and the output slot.
    pub fn producer(&self) -> Option<(OpId, u32)> {
        self.producer
    }

    /// The operators that take this value, in no particular order; graph outputs are not among them.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }

    /// Whether this is an input of its graph.
    pub fn is_input(&self) -> bool {
        self.input
    }

    /// Whether this is an output of its graph.
    pub fn is_output(&self) -> bool {
        self.outputs > 0
    }

    /// Whether nothing takes this value.
    pub fn is_unused(&self) -> bool {
        self.uses.is_empty() && self.outputs == 0
    }

    /// Whether exactly one operator slot takes this value, and it is no graph output.
    pub fn has_single_use(&self) -> bool {
        self.uses.len() == 1 && self.outputs == 0
    }

    /// The value of the enclosing graph that this one stands for, when it is captured.
    pub fn captured_from(&self) -> Option<ValueId> {
        self.outer
    }

    /// What the file says besides name and type.
    pub fn extra(&self) -> Option<&ValueExtra> {
        self.extra.as_deref()
    }

    /// Which pass made this tensor, and from what.
    pub fn provenance(&self) -> Option<&Arc<Provenance>> {
        self.provenance.as_ref()
    }
}

//! Operator knowledge: the one place that knows what an operator type is.
//!
//! - [`lookup`]: the signature of a standard operator in one opset (inputs, outputs,
//!   attributes with defaults, element types), from the table `operators.txt`.
//! - [`knowledge`]: what holds for an operator in every version: its class, its algebra,
//!   what each input is for. One row per operator in `knowledge.rs`.
//! - [`weight_layout`]: which axes of a weight are output channels, input channels, kernel.
//! - [`macs`]: multiply-accumulates of one execution.
//!
//! A `match op_type` in a pass is a sign that a column is missing here.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use crate::attr::{AttrKind, AttrValue};
use crate::op::Op;
use crate::tensor::DType;
use crate::value::ValueType;

mod knowledge;
mod layout;
mod macs;
mod parse;

pub use knowledge::{
    Class, Knowledge, Monotonicity, Role, clip_bounds, is_deterministic, is_deterministic_in,
    is_pure_standard, knowledge, known_operators, monotonicity, of, output_range, role,
};
pub use layout::{WeightLayout, weight_layout, weight_layout_at, weight_slots};
pub use macs::{KnownDims, macs};

/// The newest opset that the table knows. Later opsets get the newest versions.
pub const NEWEST_OPSET: i64 = 28;

/// A set of types that a parameter may have.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TypeSet {
    tensor: u32,
    sequence: u32,
    optional: u32,
    optional_sequence: u32,
}

impl TypeSet {
    /// Whether a tensor of this element type is in the set.
    pub fn allows(&self, dtype: DType) -> bool {
        self.tensor & parse::bit(dtype) != 0
    }

    /// The element types of the tensors in the set, in the order of the ONNX numbers.
    pub fn dtypes(&self) -> impl Iterator<Item = DType> + use<> {
        let set = *self;
        DType::ALL.into_iter().filter(move |&d| set.allows(d))
    }

    /// Whether a value of this type is in the set; what the type leaves open is allowed. The
    /// standard operators take neither sparse tensors nor maps.
    pub fn accepts(&self, ty: &ValueType) -> bool {
        match ty {
            ValueType::Tensor { dtype, .. } => holds(self.tensor, *dtype),
            ValueType::Sequence(Some(of)) => match &**of {
                ValueType::Tensor { dtype, .. } => holds(self.sequence, *dtype),
                _ => false,
            },
            ValueType::Sequence(None) => self.sequence != 0,
            ValueType::Optional(Some(of)) => match &**of {
                ValueType::Tensor { dtype, .. } => holds(self.optional, *dtype),
                ValueType::Sequence(Some(of)) => match &**of {
                    ValueType::Tensor { dtype, .. } => holds(self.optional_sequence, *dtype),
                    _ => false,
                },
                ValueType::Sequence(None) => self.optional_sequence != 0,
                _ => false,
            },
            ValueType::Optional(None) => self.optional | self.optional_sequence != 0,
            ValueType::SparseTensor { .. } | ValueType::Map { .. } | ValueType::Opaque { .. } => {
                false
            }
        }
    }
}

fn holds(set: u32, dtype: Option<DType>) -> bool {
    dtype.map_or(set != 0, |d| set & parse::bit(d) != 0)
}

/// How often a parameter is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Once.
    Required,
    /// At most once.
    Optional,
    /// Any number of times; always the last parameter.
    Variadic {
        /// At least so many times.
        min: usize,
        /// All of them have the same type.
        homogeneous: bool,
    },
}

/// An input or output of an operator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param {
    /// The name in the specification.
    pub name: &'static str,
    /// How often it is there.
    pub presence: Presence,
    /// The type parameter, such as `T`, or else the element type. Parameters that name the
    /// same type parameter have the same type.
    pub type_name: &'static str,
    /// The types that it may have.
    pub types: TypeSet,
}

impl Param {
    /// Whether `type_name` is a type parameter and not an element type.
    pub fn is_generic(&self) -> bool {
        DType::from_name(self.type_name).is_none()
    }
}

/// The default of an attribute.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "the variants are named after the ONNX kinds")]
pub enum AttrDefault {
    Int(i64),
    Float(f32),
    String(&'static str),
    Ints(Vec<i64>),
    Strings(Vec<&'static str>),
}

impl AttrDefault {
    /// The default as an attribute would hold it.
    pub fn to_value(&self) -> AttrValue {
        let bytes = |s: &&'static str| bytes::Bytes::from_static(s.as_bytes());
        match self {
            AttrDefault::Int(v) => AttrValue::Int(*v),
            AttrDefault::Float(v) => AttrValue::Float(*v),
            AttrDefault::String(v) => AttrValue::String(bytes(v)),
            AttrDefault::Ints(v) => AttrValue::Ints(v.clone()),
            AttrDefault::Strings(v) => AttrValue::Strings(v.iter().map(bytes).collect()),
        }
    }

    /// Whether an attribute that is written out says just this.
    pub fn is(&self, value: &AttrValue) -> bool {
        self.to_value().same(value)
    }
}

/// An attribute of an operator.
#[derive(Clone, PartialEq, Debug)]
pub struct AttrSchema {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: AttrKind,
    /// Whether it must be there.
    pub required: bool,
    /// What holds when it is absent.
    pub default: Option<AttrDefault>,
}

/// One version of an operator.
#[derive(Clone, PartialEq, Debug)]
pub struct OpSchema {
    /// The operator type.
    pub name: &'static str,
    /// The first opset with this version.
    pub since: i64,
    /// Whether this version only says that the operator must not be used any more.
    pub deprecated: bool,
    /// The inputs.
    pub inputs: Vec<Param>,
    /// The outputs.
    pub outputs: Vec<Param>,
    /// The attributes, by name.
    pub attrs: Vec<AttrSchema>,
    /// The type parameters, by name.
    pub types: Vec<(&'static str, TypeSet)>,
}

impl OpSchema {
    /// The attribute of this name.
    pub fn attr(&self, name: &str) -> Option<&AttrSchema> {
        self.attrs.iter().find(|a| a.name == name)
    }

    /// The parameter of an input slot; a variadic one stands for all slots from its own on.
    pub fn input(&self, slot: usize) -> Option<&Param> {
        param(&self.inputs, slot)
    }

    /// The parameter of an output slot.
    pub fn output(&self, slot: usize) -> Option<&Param> {
        param(&self.outputs, slot)
    }

    /// The least number of input slots.
    pub fn min_inputs(&self) -> usize {
        least(&self.inputs)
    }

    /// The largest number of input slots; `usize::MAX` when the last parameter is variadic.
    pub fn max_inputs(&self) -> usize {
        most(&self.inputs)
    }

    /// The least number of output slots.
    pub fn min_outputs(&self) -> usize {
        least(&self.outputs)
    }

    /// The largest number of output slots; `usize::MAX` when the last parameter is variadic.
    pub fn max_outputs(&self) -> usize {
        most(&self.outputs)
    }

    /// What an attribute of an operator of this version amounts to: the value that is written
    /// out, or else the default.
    pub fn value_of(&self, op: &Op, name: &str) -> Option<AttrValue> {
        match op.attr(name) {
            Some(value) => Some(value.clone()),
            None => Some(self.attr(name)?.default.as_ref()?.to_value()),
        }
    }
}

fn param(params: &[Param], slot: usize) -> Option<&Param> {
    params.get(slot).or_else(|| {
        params
            .last()
            .filter(|p| matches!(p.presence, Presence::Variadic { .. }))
    })
}

/// Slots are positional, so an optional parameter before a required one takes a slot.
fn least(params: &[Param]) -> usize {
    let needed = params
        .iter()
        .enumerate()
        .map(|(i, p)| match p.presence {
            Presence::Required => i + 1,
            Presence::Optional => 0,
            Presence::Variadic { min, .. } => i + min,
        })
        .max();
    needed.unwrap_or(0)
}

fn most(params: &[Param]) -> usize {
    match params.last() {
        Some(p) if matches!(p.presence, Presence::Variadic { .. }) => usize::MAX,
        _ => params.len(),
    }
}

/// The lines of one operator, and its versions once someone asked.
struct Entry {
    text: &'static str,
    versions: OnceLock<Vec<OpSchema>>,
}

/// Only the names are read at first: few models use more than a tenth of the operators.
static INDEX: LazyLock<HashMap<&'static str, Entry>> = LazyLock::new(|| {
    parse::operators()
        .map(|(name, text)| {
            let versions = OnceLock::new();
            (name, Entry { text, versions })
        })
        .collect()
});

/// All versions of a standard operator, oldest first; empty when there is no such operator.
pub fn versions(op_type: &str) -> &'static [OpSchema] {
    // That every entry parses is checked by a test, so the default is never taken.
    match INDEX.get_key_value(op_type) {
        Some((name, entry)) => entry
            .versions
            .get_or_init(|| parse::versions(name, entry.text).unwrap_or_default()),
        None => &[],
    }
}

/// The version of an operator that an opset has: the newest that is not newer than the opset.
/// `None` for other domains than the standard one, unknown operators, and operators that came
/// later.
pub fn lookup(domain: &str, op_type: &str, opset: i64) -> Option<&'static OpSchema> {
    if !domain.is_empty() && domain != "ai.onnx" {
        return None;
    }
    versions(op_type).iter().rev().find(|v| v.since <= opset)
}

/// The names of all standard operators, sorted.
pub fn operator_names() -> Vec<&'static str> {
    parse::operators().map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;

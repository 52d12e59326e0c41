//! Operators (the nodes of ONNX).

use std::sync::Arc;

use smallvec::SmallVec;

use crate::attr::{AttrValue, Attribute};
use crate::graph::{OpId, Slot, ValueId};
use crate::provenance::Provenance;
use crate::tensor::Tensor;
use crate::value::Name;

/// What a file says about an operator that is rarely there.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct OpExtra {
    /// Documentation.
    pub doc: Option<Name>,
    /// Which overload of a function is called.
    pub overload: Option<Name>,
    /// `metadata_props`.
    pub metadata: Vec<(Name, Name)>,
    /// Device configurations, encoded as in the file; this crate doesn't read them.
    pub device_configurations: Vec<bytes::Bytes>,
    /// The domain is written out as `ai.onnx` or as an empty string, which mean the same.
    pub written_domain: Option<Name>,
    /// The name is written out in the file although it is empty.
    pub empty_name: bool,
}

/// An operator: a type, attributes, and the values in its slots.
#[derive(Clone, Debug)]
pub struct Op {
    pub(crate) name: Name,
    pub(crate) op_type: Name,
    pub(crate) domain: Name,
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) inputs: SmallVec<[Option<Slot>; 2]>,
    pub(crate) outputs: SmallVec<[Option<ValueId>; 1]>,
    pub(crate) captures: Vec<Slot>,
    pub(crate) rank: u64,
    pub(crate) extra: Option<Box<OpExtra>>,
    pub(crate) provenance: Option<Arc<Provenance>>,
}

impl Op {
    /// The name; may be empty, and need not be unique.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The operator type, such as `Conv`.
    pub fn op_type(&self) -> &Name {
        &self.op_type
    }

    /// The domain; empty for the standard operators, however the file spelled that.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// Whether this is the standard operator of that type.
    pub fn is(&self, op_type: &str) -> bool {
        self.domain.is_empty() && &*self.op_type == op_type
    }

    /// The overload of the function that is called; empty for the common case.
    pub fn overload(&self) -> &str {
        self.extra
            .as_ref()
            .and_then(|e| e.overload.as_deref())
            .unwrap_or("")
    }

    /// The values in the input slots; `None` is an absent optional input.
    pub fn inputs(
        &self,
    ) -> impl ExactSizeIterator<Item = Option<ValueId>> + DoubleEndedIterator + '_ {
        self.inputs.iter().map(|s| s.map(|s| s.value))
    }

    /// The value in an input slot; `None` when it is absent or there is no such slot.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten().map(|s| s.value)
    }

    /// The number of input slots, absent ones included.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// The values in the output slots; `None` is an output that is not asked for.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    /// The value in an output slot.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// The values that the operator's subgraphs capture, in the order of first use.
    pub fn captures(&self) -> impl ExactSizeIterator<Item = ValueId> + '_ {
        self.captures.iter().map(|s| s.value)
    }

    /// The attributes, in the order of the file.
    pub fn attrs(&self) -> &[Attribute] {
        &self.attrs
    }

    /// The value of an attribute, when it is written out. Defaults stand in the schema.
    pub fn attr(&self, name: &str) -> Option<&AttrValue> {
        self.attrs
            .iter()
            .find(|a| &*a.name == name)
            .map(|a| &a.value)
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name)? {
            AttrValue::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// An integer attribute, or its default.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attr(name)? {
            AttrValue::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attr(name)? {
            AttrValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// A string attribute that is UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attr(name)? {
            AttrValue::String(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    /// A tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attr(name)? {
            AttrValue::Tensor(v) => Some(v),
            _ => None,
        }
    }

    /// Whether an attribute holds a graph.
    pub fn has_subgraphs(&self) -> bool {
        self.attrs.iter().any(|a| !a.value.graphs().is_empty())
    }

    /// The graphs in the attributes, in order.
    pub fn subgraphs(&self) -> impl Iterator<Item = &crate::graph::Graph> {
        self.attrs.iter().flat_map(|a| a.value.graphs())
    }

    /// What the file says that is rarely there.
    pub fn extra(&self) -> Option<&OpExtra> {
        self.extra.as_deref()
    }

    /// Which pass made this operator, and from what.
    pub fn provenance(&self) -> Option<&Arc<Provenance>> {
        self.provenance.as_ref()
    }
}

/// Where an output of a new operator goes.
#[derive(Clone, Debug)]
pub enum NewOutput {
    /// A new value with a fresh name made from this hint.
    Fresh(Name),
    /// A new value that must have exactly this name.
    Named(Name),
    /// A value that nothing produces yet.
    Existing(ValueId),
    /// Not asked for.
    Absent,
}

/// The description of an operator to be added.
///
/// ```
/// use paring_ir::{Graph, NewOp};
/// let mut g = Graph::new("main");
/// let x = g.add_input("x", None)?;
/// let relu = g.add_op(NewOp::new("Relu").input(x).output("y"))?;
/// g.add_output(g.op(relu).output(0).expect("one output"));
/// # Ok::<(), paring_ir::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct NewOp {
    pub(crate) name: Name,
    pub(crate) op_type: Name,
    pub(crate) domain: Name,
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<NewOutput>,
    pub(crate) from: Vec<OpId>,
    pub(crate) extra: Option<Box<OpExtra>>,
    pub(crate) after: Option<OpId>,
}

impl NewOp {
    /// A standard operator without inputs, outputs or attributes.
    pub fn new(op_type: impl Into<Name>) -> NewOp {
        NewOp {
            name: "".into(),
            op_type: op_type.into(),
            domain: "".into(),
            attrs: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            from: Vec::new(),
            extra: None,
            after: None,
        }
    }

    /// The operator type.
    pub fn op_type(&self) -> &Name {
        &self.op_type
    }

    /// The domain.
    pub fn domain(mut self, domain: impl Into<Name>) -> NewOp {
        self.domain = domain.into();
        self
    }

    /// The name.
    pub fn name(mut self, name: impl Into<Name>) -> NewOp {
        self.name = name.into();
        self
    }

    /// One more input.
    pub fn input(mut self, value: ValueId) -> NewOp {
        self.inputs.push(Some(value));
        self
    }

    /// One more input, which may be absent.
    pub fn optional_input(mut self, value: Option<ValueId>) -> NewOp {
        self.inputs.push(value);
        self
    }

    /// More inputs.
    pub fn inputs(mut self, values: impl IntoIterator<Item = Option<ValueId>>) -> NewOp {
        self.inputs.extend(values);
        self
    }

    /// An attribute.
    pub fn attr(mut self, name: impl Into<Name>, value: impl Into<AttrValue>) -> NewOp {
        self.attrs.push(Attribute::new(name, value));
        self
    }

    /// Attributes taken over from elsewhere.
    pub fn attrs(mut self, attrs: impl IntoIterator<Item = Attribute>) -> NewOp {
        self.attrs.extend(attrs);
        self
    }

    /// One more output with a fresh name made from this hint.
    pub fn output(mut self, hint: impl Into<Name>) -> NewOp {
        self.outputs.push(NewOutput::Fresh(hint.into()));
        self
    }

    /// One more output.
    pub fn push_output(mut self, output: NewOutput) -> NewOp {
        self.outputs.push(output);
        self
    }

    /// The operators that this one is made from, for provenance.
    pub fn from(mut self, ops: impl IntoIterator<Item = OpId>) -> NewOp {
        self.from.extend(ops);
        self
    }

    /// What a file says that is rarely there.
    pub fn extra(mut self, extra: OpExtra) -> NewOp {
        self.extra = (extra != OpExtra::default()).then(|| Box::new(extra));
        self
    }

    /// The operator beside which this one stands in the file, when the data flow leaves it open.
    pub fn beside(mut self, op: OpId) -> NewOp {
        self.after = Some(op);
        self
    }
}

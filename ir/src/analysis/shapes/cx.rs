//! What a rule sees of the operator that it infers for.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Conflict;
use super::dim::{SymDim, Symbol};
use super::fact::{Contents, MAX_FLOATS, SymDims, TensorFact};
use crate::attr::AttrValue;
use crate::graph::{Graph, ValueId};
use crate::op::Op;
use crate::tensor::{DType, Tensor};

/// Shapes of a higher rank count as unknown: chains of Gather could double the rank each time.
pub(super) const MAX_RANK: usize = 128;

/// A fact that values of one type share.
pub(super) type Fact = Arc<TensorFact>;

/// What a rule says about one output.
pub(super) type Out = Option<Fact>;

/// What a rule says about all outputs; those left out are unknown.
pub(super) type Outs = SmallVec<[Out; 2]>;

/// The attributes of a call, for the body of the function that is called.
pub(super) type Frame<'m> = Vec<(&'m str, &'m AttrValue)>;

/// A graph that is being walked.
pub(super) struct Scope<'m> {
    pub(super) graph: &'m Graph,
    pub(super) opset: i64,
    pub(super) facts: Vec<Option<Fact>>,
    pub(super) conflicts: Vec<Conflict>,
    pub(super) frame: Option<Rc<Frame<'m>>>,
    /// Whether this is the body of a function, or inside one.
    pub(super) in_function: bool,
    /// Whether the graph surely runs: what can't be right in a branch that is not taken does no harm.
    pub(super) runs: bool,
}

/// The operator, what is known about its inputs, and the means to say something about its outputs.
pub(super) struct Cx<'a, 'm> {
    pub(super) op: &'m Op,
    pub(super) opset: i64,
    pub(super) inputs: SmallVec<[Option<Fact>; 4]>,
    scopes: &'a [Scope<'m>],
    next: &'a Cell<u32>,
    complaint: RefCell<Option<String>>,
}

/// A symbol that stands for nothing else yet.
pub(super) fn next_symbol(next: &Cell<u32>) -> u32 {
    let n = next.get();
    // An analysis that makes 2^32 sizes has run out of memory before.
    next.set(n.wrapping_add(1));
    n
}

impl<'a, 'm> Cx<'a, 'm> {
    pub(super) fn new(op: &'m Op, scopes: &'a [Scope<'m>], next: &'a Cell<u32>) -> Self {
        let scope = scopes.last();
        let inputs = op
            .inputs()
            .map(|v| scope?.facts.get(v?.index())?.clone())
            .collect();
        Cx {
            op,
            opset: scope.map_or(1, |s| s.opset),
            inputs,
            scopes,
            next,
            complaint: RefCell::new(None),
        }
    }

    /// Why the operator can't be right, when a rule found that.
    pub(super) fn complaint(self) -> Option<String> {
        self.complaint.into_inner()
    }

    /// Records that the operator can't be right.
    pub(super) fn refuse<T>(&self, reason: String) -> Option<T> {
        self.complaint.borrow_mut().get_or_insert(reason);
        None
    }

    // ---- attributes ----

    /// An attribute; in the body of a function perhaps one of the call.
    pub(super) fn attr(&self, name: &str) -> Option<&'m AttrValue> {
        attr_in(self.op, self.scopes.last()?.frame.as_deref(), name)
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name)? {
            AttrValue::Int(v) => Some(*v),
            _ => None,
        }
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.int_or(name, 0) != 0
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'m [i64]> {
        match self.attr(name)? {
            AttrValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    pub(super) fn floats_attr(&self, name: &str) -> Option<&'m [f32]> {
        match self.attr(name)? {
            AttrValue::Floats(v) => Some(v),
            _ => None,
        }
    }

    pub(super) fn string(&self, name: &str) -> Option<&'m str> {
        match self.attr(name)? {
            AttrValue::String(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    pub(super) fn tensor_attr(&self, name: &str) -> Option<&'m Tensor> {
        match self.attr(name)? {
            AttrValue::Tensor(v) => Some(v),
            _ => None,
        }
    }

    /// An element type given by its ONNX number; 0 and unknown numbers are none.
    pub(super) fn dtype_attr(&self, name: &str) -> Option<DType> {
        DType::from_onnx(i32::try_from(self.int(name)?).ok()?)
    }

    // ---- inputs ----

    /// Whether the operator takes something in this slot.
    pub(super) fn has(&self, slot: usize) -> bool {
        self.op.input(slot).is_some()
    }

    pub(super) fn fact(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot)?.as_ref()
    }

    pub(super) fn dims(&self, slot: usize) -> Option<&SymDims> {
        self.fact(slot)?.dims.as_ref()
    }

    pub(super) fn dim(&self, slot: usize, axis: usize) -> Option<&SymDim> {
        self.dims(slot)?.get(axis)
    }

    pub(super) fn rank(&self, slot: usize) -> Option<usize> {
        self.dims(slot).map(|d| d.len())
    }

    /// The dimensions of an operand that must have a certain number of them.
    pub(super) fn dims_of_rank(&self, slot: usize, rank: usize) -> Option<&SymDims> {
        let dims = self.dims(slot)?;
        if dims.len() != rank {
            return self.refuse(format!(
                "input {slot} has {} dimensions, expected {rank}",
                dims.len()
            ));
        }
        Some(dims)
    }

    pub(super) fn dtype(&self, slot: usize) -> Option<DType> {
        self.fact(slot)?.dtype
    }

    pub(super) fn contents(&self, slot: usize) -> Option<&Contents> {
        self.fact(slot)?.contents.as_ref()
    }

    /// The elements of an integer or boolean input, as expressions.
    pub(super) fn exprs(&self, slot: usize) -> Option<Vec<SymDim>> {
        if self.dtype(slot).is_some_and(DType::is_float) {
            return None;
        }
        self.contents(slot)?.exprs()
    }

    /// The elements of an integer or boolean input, when all are numbers.
    pub(super) fn known_ints(&self, slot: usize) -> Option<Vec<i64>> {
        match self.contents(slot)? {
            Contents::Ints(v) => Some(v.to_vec()),
            _ => None,
        }
    }

    /// The one element of an integer input.
    pub(super) fn scalar(&self, slot: usize) -> Option<SymDim> {
        match self.exprs(slot)?.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    }

    /// The elements of a small float input.
    pub(super) fn floats(&self, slot: usize) -> Option<Vec<f64>> {
        if let Some(Contents::Floats(v)) = self.contents(slot) {
            return Some(v.to_vec());
        }
        let tensor = self.tensor(slot)?;
        if !tensor.dtype().is_float() || tensor.len() > MAX_FLOATS {
            return None;
        }
        tensor.to_f64s()
    }

    /// The constant in an input slot, also when it is captured from an enclosing graph.
    pub(super) fn tensor(&self, slot: usize) -> Option<&'m Tensor> {
        let mut v: ValueId = self.op.input(slot)?;
        for scope in self.scopes.iter().rev() {
            let value = scope.graph.get_value(v)?;
            match value.captured_from() {
                Some(outer) => v = outer,
                None => return value.as_tensor(),
            }
        }
        None
    }

    // ---- sizes ----

    /// A size that nothing is known about.
    pub(super) fn fresh(&self) -> SymDim {
        Symbol::Size(next_symbol(self.next)).into()
    }

    /// A number that nothing is known about.
    pub(super) fn number(&self) -> SymDim {
        Symbol::Number(next_symbol(self.next)).into()
    }

    /// As many sizes that nothing is known about.
    pub(super) fn fresh_dims(&self, rank: usize) -> SymDims {
        (0..rank.min(MAX_RANK)).map(|_| self.fresh()).collect()
    }

    /// The expression as a size, or a fresh one when there is none or it may be negative.
    pub(super) fn size(&self, d: Option<SymDim>) -> SymDim {
        match d {
            Some(d) if !may_be_any_number(&d) => d,
            _ => self.fresh(),
        }
    }

    pub(super) fn add(&self, a: &SymDim, b: &SymDim) -> SymDim {
        a.add(b).unwrap_or_else(|| self.fresh())
    }

    pub(super) fn mul(&self, a: &SymDim, b: &SymDim) -> SymDim {
        a.mul(b).unwrap_or_else(|| self.fresh())
    }

    pub(super) fn product(&self, dims: &[SymDim]) -> SymDim {
        SymDim::product(dims).unwrap_or_else(|| self.fresh())
    }

    /// The axis counted from the front. An axis that is not there is the model's mistake.
    pub(super) fn axis(&self, axis: i64, rank: usize) -> Option<usize> {
        match normalize(axis, rank) {
            Some(a) => Some(a),
            None => self.refuse(format!("axis {axis} of a tensor with {rank} dimensions")),
        }
    }

    /// The axes counted from the front, in order of the list.
    pub(super) fn axes(&self, axes: &[i64], rank: usize) -> Option<Vec<usize>> {
        axes.iter().map(|&a| self.axis(a, rank)).collect()
    }

    /// The size that two sizes must share; the one that says more.
    pub(super) fn same(&self, a: &SymDim, b: &SymDim, what: &str) -> Option<SymDim> {
        match (a.known(), b.known()) {
            (Some(x), Some(y)) if x != y => self.refuse(format!("{what}: {x} and {y} differ")),
            (Some(_), _) => Some(a.clone()),
            (_, Some(_)) => Some(b.clone()),
            _ if a.is_anonymous() => Some(b.clone()),
            _ => Some(a.clone()),
        }
    }

    // ---- outputs ----

    /// The type of an input, without its contents.
    pub(super) fn like(&self, slot: usize) -> Out {
        let fact = self.fact(slot)?;
        if fact.contents.is_none() {
            return Some(fact.clone());
        }
        typed(fact.dtype, fact.dims.clone())
    }

    /// The shape of an input under another element type.
    pub(super) fn like_as(&self, slot: usize, dtype: Option<DType>) -> Out {
        match self.fact(slot) {
            Some(f) if f.dtype == dtype => self.like(slot),
            Some(f) => typed(dtype, f.dims.clone()),
            None => typed(dtype, None),
        }
    }

    /// A shape over the fact of the first input that says the same, so that facts are shared.
    pub(super) fn shared(&self, dtype: Option<DType>, dims: Option<SymDims>) -> Out {
        let same = self.inputs.iter().flatten().find(|f| {
            f.contents.is_none() && f.dtype == dtype && f.dims.is_some() && f.dims == dims
        });
        match same {
            Some(f) => Some(f.clone()),
            None => typed(dtype, dims),
        }
    }
}

/// An attribute of an operator under the attributes of the call that it stands in.
pub(super) fn attr_in<'m>(
    op: &'m Op,
    frame: Option<&Frame<'m>>,
    name: &str,
) -> Option<&'m AttrValue> {
    match op.attr(name)? {
        AttrValue::Ref { name, .. } => frame?
            .iter()
            .find(|(n, _)| **n == **name)
            .map(|(_, value)| *value),
        value => Some(value),
    }
}

/// Whether an expression is a known negative number or depends on a number of unknown sign.
fn may_be_any_number(d: &SymDim) -> bool {
    d.known().is_some_and(|v| v < 0) || d.mentions_number()
}

/// The axis counted from the front, when it is there.
pub(super) fn normalize(axis: i64, rank: usize) -> Option<usize> {
    let n = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(n)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// A fact without contents.
pub(super) fn typed(dtype: Option<DType>, dims: Option<SymDims>) -> Out {
    let dims = dims.filter(|d| d.len() <= MAX_RANK);
    if dtype.is_none() && dims.is_none() {
        return None;
    }
    Some(Arc::new(TensorFact::new(dtype, dims)))
}

/// A fact with contents, where there are any.
pub(super) fn filled(
    dtype: Option<DType>,
    dims: Option<SymDims>,
    contents: Option<Contents>,
) -> Out {
    if contents.is_none() {
        return typed(dtype, dims);
    }
    Some(Arc::new(TensorFact {
        dtype,
        dims,
        contents,
    }))
}

/// A single output.
pub(super) fn one(out: Out) -> Outs {
    let mut outs = Outs::new();
    outs.push(out);
    outs
}

/// Several outputs.
pub(super) fn many(outs: impl IntoIterator<Item = Out>) -> Outs {
    outs.into_iter().collect()
}

/// The dimensions of a scalar.
pub(super) fn no_dims() -> SymDims {
    SymDims::new()
}

/// One dimension.
pub(super) fn vector(d: impl Into<SymDim>) -> SymDims {
    let mut dims = SymDims::new();
    dims.push(d.into());
    dims
}

//! Composes, cancels and removes `Transpose` operators.
//!
//! Converters between layouts (TensorFlow's NHWC and ONNX's NCHW) put a `Transpose` around every
//! layer. Three rewrites take them out:
//!
//! 1. Two in a row are one, or none when the second undoes the first.
//! 2. One after operators that work element by element is undone by those before them:
//!
//! ```text
//! a = Transpose <perm = [0, 3, 1, 2]> (x)
//! b = Add (a, w)                               =>   y = Add (x, w_transposed)
//! y = Transpose <perm = [0, 2, 3, 1]> (b)
//! ```
//!
//!    Besides element-wise operators, `Concat`, the softmaxes (opset 13), constant `Pad`s and
//!    reductions that keep their axes are looked through, their axes renamed; constant operands
//!    are transposed. It is done where fewer `Transpose` operators remain than there were.
//! 3. One before a reduction that drops axes goes when the remaining axes keep their order; the
//!    reduction's axes are renamed.
//!
//! What is looked through has one user and is no graph output; operands that are not constant
//! must be known to have all dimensions, since broadcasting aligns axes from the right.
//! Elements are only moved, so the result is exact. A constant's `Transpose` is left for
//! constant folding.

use paring_ir::schema::{self, Class};
use paring_ir::{
    AttrValue, Attribute, Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError,
    OptionSet, Pass, PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{add_ints, bypass, output_name, remove_unused, replace};
use crate::facts::{Facts, axes_from_front, axis_from_front, inverse};

/// The pass `merge-transposes`.
#[derive(Debug)]
pub struct MergeTransposes {
    options: OptionSet<NoOptions>,
}

/// A rewrite looks through at most so many operators, and through this many in a row.
const MAX_REGION: usize = 256;
const MAX_DEPTH: usize = 64;

/// A constant with other users is transposed into a second one only up to this size.
const MAX_COPY_BYTES: usize = 64 << 10;

impl Pass for MergeTransposes {
    const INFO: PassInfo = PassInfo::new(
        "merge-transposes",
        "Compose and cancel Transpose operators, also around element-wise operators",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeTransposes { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let o = graph.op(op);
            if o.is("Transpose") {
                if compose(graph, &facts, op, cx)? || pull_through(graph, &facts, op, cx)? {
                    return Ok(Changed::Yes);
                }
            } else if reduces(o) {
                return reduce_without(graph, &facts, op, cx);
            }
            Ok(Changed::No)
        })
    }
}

fn is_candidate(graph: &Graph, op: OpId) -> bool {
    let o = graph.op(op);
    let Some(before) = o.input(0).and_then(|v| graph.producer(v)) else {
        return false;
    };
    let transposed = graph.op(before).is("Transpose");
    if reduces(o) {
        return transposed;
    }
    o.is("Transpose") && (transposed || looked_through(graph, op))
}

/// Whether what stands before a `Transpose` may be looked through at all.
fn looked_through(graph: &Graph, transpose: OpId) -> bool {
    graph
        .op(transpose)
        .input(0)
        .and_then(|v| graph.producer(v))
        .is_some_and(|p| kind(graph.op(p)).is_some())
}

fn reduces(op: &Op) -> bool {
    op.domain().is_empty() && schema::of(op).is_some_and(|k| k.class == Class::Reduction)
}

// ---- two in a row ----

fn compose(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let Some(inner) = o.input(0).and_then(|v| graph.producer(v)) else {
        return Ok(false);
    };
    if !graph.op(inner).is("Transpose") || o.output(0).is_none() {
        return Ok(false);
    }
    let (Some(first), Some(second), Some(source)) = (
        facts.perm(graph, inner),
        facts.perm(graph, op),
        graph.op(inner).input(0),
    ) else {
        return Ok(false);
    };
    let Some(joint) = joint(&first, &second) else {
        return Ok(false);
    };
    if is_identity(&joint) {
        cx.applied(
            graph,
            op,
            "cancelled",
            format!("undoes {}", graph.op_label(inner)),
        );
        bypass(graph, op, source, &[inner])?;
    } else {
        cx.applied(
            graph,
            op,
            "merged",
            format!("composed with {}", graph.op_label(inner)),
        );
        replace(graph, op, transpose_of(source, &joint).from([inner]))?;
    }
    Ok(true)
}

/// The permutation of two transposes, `first` and then `second`.
fn joint(first: &[usize], second: &[usize]) -> Option<Vec<usize>> {
    if first.len() != second.len() {
        return None;
    }
    second.iter().map(|&p| first.get(p).copied()).collect()
}

fn is_identity(perm: &[usize]) -> bool {
    perm.iter().enumerate().all(|(i, &p)| i == p)
}

fn transpose_of(source: ValueId, perm: &[usize]) -> NewOp {
    let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
    NewOp::new("Transpose").input(source).attr("perm", perm)
}

// ---- around other operators ----

/// How an operator is looked through.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// Only input 0 has the shape of the output; the others stay.
    First,
    /// All inputs are broadcast.
    Broadcast,
    /// All inputs have all dimensions, joined along an attribute's axis.
    Concat,
    /// Input 0 along an attribute's axis.
    Axis,
    /// Constant paddings in input 1.
    Pad,
    /// A reduction over axes, which stay as 1.
    Reduction,
}

fn kind(op: &Op) -> Option<Kind> {
    if op.has_subgraphs() || op.outputs().len() != 1 {
        return None;
    }
    let known = schema::of(op)?;
    match known.class {
        Class::Unary if op.is("Dropout") => None,
        Class::Unary => Some(Kind::First),
        Class::Binary | Class::Variadic | Class::Select => Some(Kind::Broadcast),
        Class::AlongAxis if !known.op_type.starts_with("Cum") => Some(Kind::Axis),
        Class::Reduction if op.int_or("keepdims", 1) == 1 => Some(Kind::Reduction),
        Class::Layout if op.is("Concat") => Some(Kind::Concat),
        Class::Layout if op.is("Pad") => Some(Kind::Pad),
        _ => None,
    }
}

/// A value that a step takes: one that is there, or what an earlier step makes.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Value(ValueId),
    Step(usize),
}

enum Step {
    /// The operator on other operands and with other attributes.
    Again {
        op: OpId,
        operands: Vec<Option<Operand>>,
        attrs: Vec<Attribute>,
    },
    Transpose {
        value: ValueId,
        perm: Vec<usize>,
        from: Option<OpId>,
    },
    Constant {
        of: ValueId,
        tensor: Tensor,
    },
}

/// A value transposed, worked out backwards through the operators that make it.
struct Plan<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    steps: Vec<Step>,
    operators: usize,
    removed: usize,
    added: usize,
}

fn pull_through(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let (Some(value), Some(out)) = (o.input(0), o.output(0)) else {
        return Ok(false);
    };
    if !looked_through(graph, op) {
        return Ok(false);
    }
    let Some(perm) = facts.perm(graph, op) else {
        return Ok(false);
    };
    let mut plan = Plan {
        graph,
        facts,
        steps: Vec::new(),
        operators: 0,
        removed: 1,
        added: 0,
    };
    let Some(Operand::Step(_)) = plan.through_operator(value, &perm, 0) else {
        return Ok(false);
    };
    let (steps, removed, added) = (plan.steps, plan.removed, plan.added);
    if added >= removed {
        return Ok(false);
    }
    let message = format!("{removed} transposes became {added}");
    cx.applied(graph, op, "moved", message);
    let Some(root) = build(graph, op, steps)? else {
        return Err(PassError::Bug("a plan without operators".to_owned()));
    };
    graph.move_output(out, root, 0)?;
    remove_unused(graph, op)?;
    Ok(true)
}

impl Plan<'_> {
    /// `value` transposed by `perm`, where its producer can be looked through.
    fn through_operator(
        &mut self,
        value: ValueId,
        perm: &[usize],
        depth: usize,
    ) -> Option<Operand> {
        let producer = self.graph.producer(value)?;
        let op = self.graph.op(producer);
        let kind = kind(op)?;
        let rank = self.facts.rank(self.graph, value)?;
        if rank != perm.len()
            || !self.graph.value(value).has_single_use()
            || depth >= MAX_DEPTH
            || self.operators >= MAX_REGION
        {
            return None;
        }
        self.operators += 1;
        let place = inverse(perm);
        let mut attrs = op.attrs().to_vec();
        let mut operands: Vec<Option<Operand>> =
            op.inputs().map(|v| v.map(Operand::Value)).collect();
        let moved = match kind {
            Kind::Broadcast | Kind::Concat => operands.len(),
            _ => 1,
        };
        match kind {
            Kind::First | Kind::Broadcast => {}
            Kind::Concat | Kind::Axis => self.rename_axis(op, &mut attrs, &place)?,
            Kind::Pad => {
                let pads = self.padded(producer, &place)?;
                let last = operands.get_mut(1)?;
                *last = Some(pads);
            }
            Kind::Reduction => self.rename_axes(producer, &mut attrs, &mut operands, &place)?,
        }
        for (slot, operand) in operands.iter_mut().take(moved).enumerate() {
            if let Some(v) = op.input(slot) {
                *operand = Some(self.operand(v, perm, kind == Kind::Broadcast, depth)?);
            }
        }
        Some(self.step(Step::Again {
            op: producer,
            operands,
            attrs,
        }))
    }

    fn step(&mut self, step: Step) -> Operand {
        self.steps.push(step);
        Operand::Step(self.steps.len() - 1)
    }

    /// `value` transposed by `perm`, by whatever costs least.
    fn operand(
        &mut self,
        value: ValueId,
        perm: &[usize],
        broadcast: bool,
        depth: usize,
    ) -> Option<Operand> {
        if let Some(tensor) = self.graph.tensor(value) {
            return self.constant(value, tensor, perm, broadcast);
        }
        if self.facts.rank(self.graph, value)? != perm.len() {
            return None;
        }
        let producer = self.graph.producer(value);
        if let Some(producer) = producer
            && self.graph.op(producer).is("Transpose")
        {
            let first = self.facts.perm(self.graph, producer)?;
            let source = self.graph.op(producer).input(0)?;
            let joint = joint(&first, perm)?;
            self.removed += usize::from(self.graph.value(value).has_single_use());
            if is_identity(&joint) {
                return Some(Operand::Value(source));
            }
            self.added += 1;
            return Some(self.step(Step::Transpose {
                value: source,
                perm: joint,
                from: Some(producer),
            }));
        }
        let (steps, removed, added) = (self.steps.len(), self.removed, self.added);
        if let Some(found) = self.through_operator(value, perm, depth + 1) {
            return Some(found);
        }
        self.steps.truncate(steps);
        (self.removed, self.added) = (removed, added + 1);
        Some(self.step(Step::Transpose {
            value,
            perm: perm.to_vec(),
            from: None,
        }))
    }

    fn constant(
        &mut self,
        value: ValueId,
        tensor: &Tensor,
        perm: &[usize],
        broadcast: bool,
    ) -> Option<Operand> {
        if broadcast && tensor.len() == 1 && tensor.rank() <= perm.len() {
            return Some(Operand::Value(value));
        }
        if !broadcast && tensor.rank() != perm.len() {
            return None;
        }
        if !self.graph.value(value).has_single_use() && tensor.byte_len() > MAX_COPY_BYTES {
            return None;
        }
        let missing = perm.len().checked_sub(tensor.rank())?;
        let dims = std::iter::repeat_n(1, missing).chain(tensor.dims().iter().copied());
        let tensor = transpose_tensor(&tensor.reshaped(dims).ok()?, perm)?;
        Some(self.step(Step::Constant { of: value, tensor }))
    }

    /// Renames the `axis` attribute. Before opset 13 a softmax worked on flattened axes.
    fn rename_axis(&self, op: &Op, attrs: &mut Vec<Attribute>, place: &[usize]) -> Option<()> {
        if !op.is("Concat") && self.facts.opset < 13 {
            return None;
        }
        let default = if op.is("Concat") { None } else { Some(-1) };
        let axis = axis_from_front(op.int("axis").or(default)?, place.len())?;
        let renamed = i64::try_from(*place.get(axis)?).ok()?;
        attrs.retain(|a| &*a.name != "axis");
        attrs.push(Attribute::new("axis", renamed));
        Some(())
    }

    /// The paddings of a `Pad`, which must be constant and speak of all axes.
    fn padded(&mut self, op: OpId, place: &[usize]) -> Option<Operand> {
        let o = self.graph.op(op);
        if self.facts.opset < 11 || o.input(3).is_some() {
            return None;
        }
        let pads = self.facts.input_ints(self.graph, op, 1)?;
        let rank = place.len();
        if pads.len() != rank.checked_mul(2)? {
            return None;
        }
        let mut renamed = vec![0i64; pads.len()];
        for (axis, &to) in place.iter().enumerate() {
            *renamed.get_mut(to)? = *pads.get(axis)?;
            *renamed.get_mut(to + rank)? = *pads.get(axis + rank)?;
        }
        let of = o.input(1)?;
        let tensor = Tensor::vector(renamed);
        Some(self.step(Step::Constant { of, tensor }))
    }

    fn rename_axes(
        &mut self,
        op: OpId,
        attrs: &mut Vec<Attribute>,
        operands: &mut [Option<Operand>],
        place: &[usize],
    ) -> Option<()> {
        let o = self.graph.op(op);
        if o.is("ArgMax") || o.is("ArgMin") {
            let axis = axis_from_front(o.int_or("axis", 0), place.len())?;
            attrs.retain(|a| &*a.name != "axis");
            attrs.push(Attribute::new(
                "axis",
                i64::try_from(*place.get(axis)?).ok()?,
            ));
            return Some(());
        }
        let axes = match self.facts.axes(self.graph, op, 1).ok()? {
            None => return Some(()),
            Some(axes) if axes.is_empty() => return Some(()),
            Some(axes) => axes_from_front(&axes, Some(place.len()))?,
        };
        let mut renamed: Vec<i64> = axes
            .iter()
            .map(|&a| i64::try_from(*place.get(a)?).ok())
            .collect::<Option<_>>()?;
        renamed.sort_unstable();
        match o.input(1) {
            Some(of) => {
                let tensor = Tensor::vector(renamed);
                *operands.get_mut(1)? = Some(self.step(Step::Constant { of, tensor }));
            }
            None => {
                attrs.retain(|a| &*a.name != "axes");
                attrs.push(Attribute::new("axes", renamed));
            }
        }
        Some(())
    }
}

/// Adds the operators of a plan; the last one makes the result.
fn build(graph: &mut Graph, last: OpId, steps: Vec<Step>) -> Result<Option<OpId>, PassError> {
    let mut made: Vec<ValueId> = Vec::with_capacity(steps.len());
    let mut root = None;
    for step in steps {
        let new = match step {
            Step::Constant { of, tensor } => {
                let hint = format!("{}_transposed", graph.value(of).name());
                let v = graph.add_constant(&hint, tensor)?;
                graph.set_tensor_sources(v, &[of])?;
                made.push(v);
                continue;
            }
            Step::Transpose { value, perm, from } => {
                let hint = format!("{}_transposed", graph.value(value).name());
                let new = transpose_of(value, &perm).output(hint);
                new.from([from.unwrap_or(last)])
            }
            Step::Again {
                op,
                operands,
                attrs,
            } => again(graph, op, &operands, attrs, &made)?,
        };
        let op = graph.add_op(new)?;
        let Some(v) = graph.op(op).output(0) else {
            return Err(PassError::Bug("an operator without output".to_owned()));
        };
        made.push(v);
        root = Some(op);
    }
    Ok(root)
}

fn again(
    graph: &Graph,
    op: OpId,
    operands: &[Option<Operand>],
    attrs: Vec<Attribute>,
    made: &[ValueId],
) -> Result<NewOp, PassError> {
    let inputs = operands
        .iter()
        .map(|operand| match operand {
            None => Ok(None),
            Some(Operand::Value(v)) => Ok(Some(*v)),
            Some(Operand::Step(i)) => match made.get(*i) {
                Some(v) => Ok(Some(*v)),
                None => Err(PassError::Bug("a step before its operand".to_owned())),
            },
        })
        .collect::<Result<Vec<_>, _>>()?;
    let o = graph.op(op);
    Ok(NewOp::new(o.op_type().clone())
        .name(o.name().clone())
        .attrs(attrs)
        .inputs(inputs)
        .output(format!("{}_transposed", output_name(graph, op)))
        .from([op]))
}

/// The elements of a tensor under permuted axes; `None` for strings and packed elements.
fn transpose_tensor(tensor: &Tensor, perm: &[usize]) -> Option<Tensor> {
    let bits = tensor.dtype().bits()?;
    if bits % 8 != 0 {
        return None;
    }
    let size = usize::try_from(bits / 8).ok()?;
    let dims = tensor.dims();
    let new_dims: Vec<usize> = perm
        .iter()
        .map(|&p| dims.get(p).copied())
        .collect::<Option<_>>()?;
    let mut strides = vec![1usize; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].checked_mul(dims[axis])?;
    }
    let steps: Vec<usize> = perm.iter().map(|&p| strides[p]).collect();
    let source = tensor.bytes();
    let mut bytes = Vec::with_capacity(source.len());
    let mut index = vec![0usize; new_dims.len()];
    let mut at = 0usize;
    for _ in 0..tensor.len() {
        bytes.extend_from_slice(source.get(at * size..at * size + size)?);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < new_dims[axis] {
                break;
            }
            at -= steps[axis] * new_dims[axis];
            index[axis] = 0;
        }
    }
    Tensor::new(tensor.dtype(), new_dims, bytes).ok()
}

// ---- before a reduction ----

fn reduce_without(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let Some((before, source, axes)) = reduced_axes(graph, facts, op) else {
        return Ok(Changed::No);
    };
    let o = graph.op(op);
    let mut new = NewOp::new(o.op_type().clone()).input(source);
    let mut attrs = o.attrs().to_vec();
    let old_axes = o.input(1);
    let hint = output_name(graph, op);
    if o.is("ArgMax") || o.is("ArgMin") {
        attrs.retain(|a| &*a.name != "axis");
        attrs.extend(axes.first().map(|&a| Attribute::new("axis", a)));
    } else if old_axes.is_some() {
        let sources: Vec<ValueId> = old_axes.into_iter().collect();
        new = new.input(add_ints(graph, &format!("{hint}_axes"), &axes, &sources)?);
    } else {
        attrs.retain(|a| &*a.name != "axes");
        attrs.push(Attribute::new("axes", AttrValue::Ints(axes)));
    }
    let message = format!("reduces what {} reads", graph.op_label(before));
    cx.applied(graph, op, "reduced-without", message);
    replace(graph, op, new.attrs(attrs).from([before]))?;
    Ok(Changed::Yes)
}

/// The transpose before a reduction, its input, and the axes to reduce there, when the axes that
/// remain are in order.
fn reduced_axes(graph: &Graph, facts: &Facts, op: OpId) -> Option<(OpId, ValueId, Vec<i64>)> {
    let o = graph.op(op);
    let v = o.input(0)?;
    let before = graph.producer(v).filter(|&p| graph.op(p).is("Transpose"))?;
    if !graph.value(v).has_single_use() || o.int_or("keepdims", 1) != 0 || o.output(0).is_none() {
        return None;
    }
    let perm = facts.perm(graph, before)?;
    let axes = if o.is("ArgMax") || o.is("ArgMin") {
        vec![axis_from_front(o.int_or("axis", 0), perm.len())?]
    } else {
        let axes = facts.axes(graph, op, 1).ok()??;
        axes_from_front(&axes, Some(perm.len())).filter(|a| !a.is_empty())?
    };
    let kept: Vec<usize> = (0..perm.len())
        .filter(|a| !axes.contains(a))
        .filter_map(|a| perm.get(a).copied())
        .collect();
    if kept.windows(2).any(|w| w[0] > w[1]) {
        return None;
    }
    let mut renamed: Vec<i64> = axes
        .iter()
        .map(|&a| i64::try_from(*perm.get(a)?).ok())
        .collect::<Option<_>>()?;
    renamed.sort_unstable();
    Some((before, graph.op(before).input(0)?, renamed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, unchanged};

    #[test]
    fn tensors_are_transposed() {
        let t = Tensor::from_vec([2, 3], vec![1i16, 2, 3, 4, 5, 6]).unwrap();
        let u = transpose_tensor(&t, &[1, 0]).unwrap();
        assert_eq!(u.dims(), [3, 2]);
        assert_eq!(&*u.view::<i16>().unwrap(), [1, 4, 2, 5, 3, 6]);
        let empty = Tensor::from_vec::<f32>([0, 3], vec![]).unwrap();
        assert_eq!(transpose_tensor(&empty, &[1, 0]).unwrap().dims(), [3, 0]);
    }

    #[test]
    fn two_in_a_row_are_one_or_none() {
        check::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3,4] x) => (float[3,4,2] y, float[2,3,4] z)
            {
              a = Transpose <perm = [2, 0, 1]> (x)
              y = Transpose <perm = [2, 0, 1]> (a)
              b = Transpose <perm = [1, 2, 0]> (a)
              z = Relu (b)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3,4] x) => (float[3,4,2] y, float[2,3,4] z)
            {
              y = Transpose <perm = [1, 2, 0]> (x)
              z = Relu (x)
            }"#,
        );
    }

    #[test]
    fn a_pair_around_elementwise_operators_cancels() {
        check::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,2,2,3] x) => (float[n,2,2,3] y)
            <float[3,1,1] w = {1, 2, 3}, float s = {6}, float lo = {0}>
            {
              a = Transpose <perm = [0, 3, 1, 2]> (x)
              b = Add (a, w)
              c = Clip (b, lo, s)
              d = Mul (c, s)
              y = Transpose <perm = [0, 2, 3, 1]> (d)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,2,2,3] x) => (float[n,2,2,3] y)
            <float s = {6}, float lo = {0}, float[1,1,1,3] w_transposed = {1, 2, 3}>
            {
              b_transposed = Add (x, w_transposed)
              c_transposed = Clip (b_transposed, lo, s)
              y = Mul (c_transposed, s)
            }"#,
        );
    }

    #[test]
    fn three_around_a_concat_become_none() {
        check::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[1,4,2] x, float[1,4,3] z) => (float[1,4,5] y)
            {
              a = Transpose <perm = [0, 2, 1]> (x)
              b = Transpose <perm = [0, 2, 1]> (z)
              c = Concat <axis = 1> (a, b)
              d = Softmax <axis = -1> (c)
              y = Transpose <perm = [0, 2, 1]> (d)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[1,4,2] x, float[1,4,3] z) => (float[1,4,5] y)
            {
              c_transposed = Concat <axis = 2> (x, z)
              y = Softmax <axis = 1> (c_transposed)
            }"#,
        );
    }

    #[test]
    fn what_would_not_be_fewer_is_left() {
        // One operand is transposed already, the other would have to be.
        unchanged::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3] x) => (float[3,2] y)
            {
              a = Relu (x)
              y = Transpose <perm = [1, 0]> (a)
            }"#,
        );
        // The sum is used elsewhere too.
        unchanged::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3] x) => (float[3,2] b, float[2,3] y)
            {
              a = Transpose <perm = [1, 0]> (x)
              b = Relu (a)
              y = Transpose <perm = [1, 0]> (b)
            }"#,
        );
        // An operand of fewer dimensions is aligned from the right.
        unchanged::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3] x, float[2] z) => (float[2,3] y)
            {
              a = Transpose <perm = [1, 0]> (x)
              b = Add (a, z)
              y = Transpose <perm = [1, 0]> (b)
            }"#,
        );
        // Before opset 13 a softmax flattens its input.
        unchanged::<MergeTransposes>(
            "{}",
            r#"<ir_version: 6, opset_import: ["": 11]>
            g (float[2,3] x) => (float[2,3] y)
            {
              a = Transpose <perm = [1, 0]> (x)
              b = Softmax <axis = 1> (a)
              y = Transpose <perm = [1, 0]> (b)
            }"#,
        );
    }

    #[test]
    fn a_reduction_reads_what_was_transposed() {
        check::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t,8] x) => (float[n,8] y)
            {
              a = Transpose <perm = [0, 2, 1]> (x)
              y = ReduceMax <axes = [2], keepdims = 0> (a)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t,8] x) => (float[n,8] y)
            {
              y = ReduceMax <keepdims = 0, axes = [1]> (x)
            }"#,
        );
        // The axes that remain change places.
        unchanged::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t,8] x) => (float[8,n] y)
            {
              a = Transpose <perm = [2, 1, 0]> (x)
              y = ReduceMax <axes = [1], keepdims = 0> (a)
            }"#,
        );
    }

    #[test]
    fn a_pad_and_a_reduction_are_looked_through() {
        check::<MergeTransposes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 18]>
            g (float[1,4,2] x) => (float[1,1,3] y)
            <int64[6] p = {0, 1, 0, 0, 0, 0}, int64[1] a = {-1}>
            {
              t = Transpose <perm = [0, 2, 1]> (x)
              q = Pad (t, p)
              r = ReduceMean (q, a)
              y = Transpose <perm = [0, 2, 1]> (r)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 18]>
            g (float[1,4,2] x) => (float[1,1,3] y)
            <int64[1] a_transposed = {1}, int64[6] p_transposed = {0, 0, 1, 0, 0, 0}>
            {
              q_transposed = Pad (x, p_transposed)
              y = ReduceMean (q_transposed, a_transposed)
            }"#,
        );
    }
}

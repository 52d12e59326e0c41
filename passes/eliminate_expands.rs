//! Removes an `Expand` or `ConstantOfShape` whose users broadcast anyway.
//!
//! ```text
//! e = Expand (m, shape)     # float[n,1] to float[n,64]
//! s = Add (e, epsilon)      # a scalar                      s_unexpanded = Add (m, epsilon)
//! y = Mul (x, s)            # x: float[n,64]           =>   y = Mul (x, s_unexpanded)
//! ```
//!
//! The element-wise operator's result must have the same shape, as expressions over sizes, with
//! the operand as it is before it is expanded: the other operands bring the sizes. Between the
//! two may stand element-wise operators of one operand (or with scalar constants), each used
//! once; they then work on the smaller tensor. A `ConstantOfShape` is replaced by a scalar
//! constant. Where the shapes differ or aren't known, nothing is done.

use paring_ir::analysis::shapes::SymDim;
use paring_ir::schema::{self, Class};
use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{output_name, remove_unused};
use crate::facts::{Facts, same_dims};

/// The pass `eliminate-expands`.
#[derive(Debug)]
pub struct EliminateExpands {
    options: OptionSet<NoOptions>,
}

/// So many operators may stand between the `Expand` and the one that broadcasts.
const MAX_BETWEEN: usize = 16;

/// An operator of more operands is left, since for each one all others are looked at.
const MAX_OPERANDS: usize = 32;

impl Pass for EliminateExpands {
    const INFO: PassInfo = PassInfo::new(
        "eliminate-expands",
        "Remove Expand and ConstantOfShape before operators that broadcast anyway",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(EliminateExpands { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| expands(g.op(op))) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let mut changed = Changed::No;
            let o = graph.op(op);
            if !broadcasts(o) || o.input_count() > MAX_OPERANDS {
                return Ok(changed);
            }
            for slot in 0..graph.op(op).input_count() {
                if let Some(found) = find(graph, &facts, op, slot) {
                    let message = format!("input {slot} is broadcast without being expanded");
                    cx.applied(graph, op, "unexpanded", message);
                    apply(graph, op, slot, found)?;
                    changed = Changed::Yes;
                }
            }
            Ok(changed)
        })
    }
}

fn expands(op: &Op) -> bool {
    op.is("Expand") || op.is("ConstantOfShape")
}

fn broadcasts(op: &Op) -> bool {
    let class = schema::of(op).map(|k| k.class);
    // PRelu broadcasts its slope only.
    matches!(class, Some(Class::Binary | Class::Variadic | Class::Select)) && !op.is("PRelu")
}

/// What an operand is before it is expanded.
struct Found {
    /// The input of the `Expand`, or the scalar of a `ConstantOfShape`.
    source: Source,
    expand: OpId,
    /// The operators in between, from the `Expand` on.
    between: Vec<OpId>,
}

enum Source {
    Value(ValueId),
    Scalar(Tensor),
}

fn find(graph: &Graph, facts: &Facts, op: OpId, slot: usize) -> Option<Found> {
    let o = graph.op(op);
    let operand = o.input(slot)?;
    let (expand, between) = walk_up(graph, operand)?;
    let (source, dims) = if graph.op(expand).is("Expand") {
        let v = graph.op(expand).input(0)?;
        (Source::Value(v), facts.dims(graph, v)?)
    } else {
        (Source::Scalar(fill(graph.op(expand))?), Vec::new())
    };
    // Scalars in between must not bring axes of their own.
    let rank = dims.len();
    let narrow = between.iter().all(|&b| {
        let first = carried(graph, b);
        graph
            .op(b)
            .inputs()
            .enumerate()
            .filter(|(i, _)| Some(*i) != first && is_broadcast_slot(graph.op(b), *i))
            .all(|(_, v)| {
                v.and_then(|v| graph.tensor(v))
                    .is_some_and(|t| t.rank() <= rank)
            })
    });
    let others: Vec<Vec<SymDim>> = o
        .inputs()
        .enumerate()
        .filter(|(i, _)| *i != slot)
        .map(|(_, v)| facts.dims(graph, v?))
        .collect::<Option<_>>()?;
    if !narrow || others.is_empty() {
        return None;
    }
    let joint = |own: &[SymDim]| {
        let all = std::iter::once(own).chain(others.iter().map(Vec::as_slice));
        broadcast(all)
    };
    let before = joint(&facts.dims(graph, operand)?)?;
    let after = joint(&dims)?;
    same_dims(&before, &after).then_some(Found {
        source,
        expand,
        between,
    })
}

/// The `Expand` above a value, and the operators in between, the highest first.
fn walk_up(graph: &Graph, operand: ValueId) -> Option<(OpId, Vec<OpId>)> {
    let mut between = Vec::new();
    let mut v = operand;
    loop {
        let producer = graph.producer(v)?;
        if expands(graph.op(producer)) {
            between.reverse();
            return Some((producer, between));
        }
        if between.len() == MAX_BETWEEN || !graph.value(v).has_single_use() {
            return None;
        }
        let slot = carried(graph, producer)?;
        between.push(producer);
        v = graph.op(producer).input(slot)?;
    }
}

/// The one input whose shape an element-wise operator keeps: its other inputs are scalars or
/// constants of one element.
fn carried(graph: &Graph, op: OpId) -> Option<usize> {
    let o = graph.op(op);
    if o.outputs().len() != 1 || o.has_subgraphs() || o.is("Dropout") {
        return None;
    }
    match schema::of(o)?.class {
        Class::Unary => Some(0),
        Class::Binary | Class::Variadic | Class::Select => {
            let single = |v: Option<ValueId>| {
                v.and_then(|v| graph.tensor(v))
                    .is_some_and(|t| t.len() == 1)
            };
            let mut wide = (0..o.input_count()).filter(|&i| !single(o.input(i)));
            let first = wide.next()?;
            wide.next().is_none().then_some(first)
        }
        _ => None,
    }
}

/// Whether an input takes part in broadcasting, unlike the bounds of a `Clip`.
fn is_broadcast_slot(op: &Op, slot: usize) -> bool {
    slot == 0 || !schema::of(op).is_some_and(|k| k.class == Class::Unary)
}

/// The element of a `ConstantOfShape`, by default 0 as float.
fn fill(op: &Op) -> Option<Tensor> {
    match op.attr("value") {
        None => Some(Tensor::scalar(0f32)),
        Some(_) => op.tensor("value")?.reshaped([]).ok(),
    }
}

/// The shape of the result of an element-wise operator; axes are aligned from the right.
fn broadcast<'a>(shapes: impl Iterator<Item = &'a [SymDim]>) -> Option<Vec<SymDim>> {
    let mut out: Vec<SymDim> = Vec::new();
    for shape in shapes {
        for (i, d) in shape.iter().rev().enumerate() {
            match out.get_mut(i) {
                Some(o) => *o = o.broadcast(d)?,
                None => out.push(d.clone()),
            }
        }
    }
    out.reverse();
    Some(out)
}

fn apply(graph: &mut Graph, op: OpId, slot: usize, found: Found) -> Result<(), PassError> {
    let operand = graph.op(op).input(slot);
    let mut v = match found.source {
        Source::Value(v) => v,
        Source::Scalar(tensor) => {
            let hint = format!("{}_value", output_name(graph, found.expand));
            graph.add_constant(&hint, tensor)?
        }
    };
    for old in found.between {
        let Some(first) = carried(graph, old) else {
            return Err(PassError::Bug(
                "an operator changed between two looks".to_owned(),
            ));
        };
        let o = graph.op(old);
        let inputs: Vec<Option<ValueId>> = o
            .inputs()
            .enumerate()
            .map(|(i, old)| if i == first { Some(v) } else { old })
            .collect();
        let new = NewOp::new(o.op_type().clone())
            .name(o.name().clone())
            .attrs(o.attrs().to_vec())
            .inputs(inputs)
            .output(format!("{}_unexpanded", output_name(graph, old)))
            .from([old, found.expand]);
        let new = graph.add_op(new)?;
        v = match graph.op(new).output(0) {
            Some(v) => v,
            None => return Err(PassError::Bug("an operator without output".to_owned())),
        };
    }
    graph.set_input(op, slot, Some(v))?;
    if let Some(producer) = operand.and_then(|v| graph.producer(v)) {
        remove_unused(graph, producer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, unchanged};

    #[test]
    fn the_other_operand_brings_the_sizes() {
        check::<EliminateExpands>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,1] m, float[n,64] x) => (float[n,64] y)
            <int64[2] s = {1, 64}, float e = {0.5}>
            {
              a = Expand (m, s)
              b = Add (e, a)
              c = Sqrt (b)
              y = Mul (x, c)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,1] m, float[n,64] x) => (float[n,64] y)
            <float e = {0.5}>
            {
              b_unexpanded = Add (e, m)
              c_unexpanded = Sqrt (b_unexpanded)
              y = Mul (x, c_unexpanded)
            }"#,
        );
    }

    #[test]
    fn a_filled_tensor_is_a_scalar() {
        check::<EliminateExpands>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t] x) => (float[n,t] y)
            {
              s = Shape (x)
              f = ConstantOfShape <value = float[1] {2}> (s)
              y = Mul (f, x)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t] x) => (float[n,t] y)
            <float f_value = {2}>
            {
              y = Mul (f_value, x)
            }"#,
        );
    }

    #[test]
    fn what_shapes_the_result_stays() {
        // Only the Expand brings the size 64; and t is not surely the size of x.
        for (x, s) in [("float[n,1]", "1, 64"), ("float[n,t]", "1, 64")] {
            unchanged::<EliminateExpands>(
                "{}",
                &format!(
                    r#"<ir_version: 8, opset_import: ["": 17]>
                    g (float[n,1] m, {x} x) => (float[n,u] y)
                    <int64[2] s = {{{s}}}>
                    {{
                      a = Expand (m, s)
                      y = Mul (x, a)
                    }}"#
                ),
            );
        }
        // The expanded tensor is an output; what is in between has another user.
        unchanged::<EliminateExpands>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,1] m, float[n,64] x) => (float[n,64] b, float[n,64] y)
            <int64[2] s = {1, 64}>
            {
              a = Expand (m, s)
              b = Neg (a)
              y = Mul (x, b)
            }"#,
        );
    }
}

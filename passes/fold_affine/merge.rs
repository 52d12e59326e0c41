//! Two constant factors, or two constant terms, that become one.

use paring_ir::{Changed, Graph, NewOp, OpId, PassContext, PassError, Tensor, ValueId};

use super::Run;
use crate::affine::{data_operand, ends_fused_pattern};
use crate::linear::{Refusal, narrowed, only_consumer, or_missed, smallest_normal};

/// An operator as a function of its data operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// `x * c`
    Times,
    /// `x / c`
    Over,
    /// `x + c`
    Plus,
    /// `x - c`
    Minus,
    /// `c - x`
    From,
}

fn form(graph: &Graph, op: OpId) -> Option<(Form, ValueId, ValueId)> {
    let x = data_operand(graph, op)?;
    let o = graph.op(op);
    let (a, b) = (o.input(0)?, o.input(1)?);
    let (form, c) = match &**o.op_type() {
        "Mul" => (Form::Times, if a == x { b } else { a }),
        "Div" => (Form::Over, b),
        "Add" => (Form::Plus, if a == x { b } else { a }),
        "Sub" if a == x => (Form::Minus, b),
        "Sub" => (Form::From, a),
        _ => return None,
    };
    graph.tensor(c)?.dtype().is_float().then_some((form, x, c))
}

/// How two constants become one.
type Combine = fn(f64, f64) -> f64;

/// The operator that does the work of two, and how it combines their constants.
fn combined(first: Form, second: Form) -> Option<(Form, Combine)> {
    use Form::{From, Minus, Over, Plus, Times};
    Some(match (first, second) {
        (Times, Times) => (Times, |a, b| a * b),
        (Over, Times) => (Times, |a, b| b / a),
        (Times, Over) => (Times, |a, b| a / b),
        (Over, Over) => (Over, |a, b| a * b),
        (Plus, Plus) => (Plus, |a, b| a + b),
        (Plus, Minus) => (Plus, |a, b| a - b),
        (Minus, Plus) => (Plus, |a, b| b - a),
        (Minus, Minus) => (Minus, |a, b| a + b),
        (Plus, From) => (From, |a, b| b - a),
        (Minus, From) => (From, |a, b| b + a),
        (From, Plus) => (From, |a, b| a + b),
        (From, Minus) => (From, |a, b| a - b),
        (From, From) => (Plus, |a, b| b - a),
        _ => return None,
    })
}

/// Combines two constants element by element with broadcasting. Refuses a result larger than
/// both, and numbers that leave the range in which their type has full precision.
fn combine(a: &Tensor, b: &Tensor, form: Form, f: Combine) -> Result<Tensor, Refusal> {
    let unsuited = || {
        Refusal::new(
            "broadcast",
            "the combined constant would be larger than both",
        )
    };
    let range = || {
        Refusal::new(
            "out-of-range",
            "the combined constant would leave the range of its type",
        )
    };
    let dims = broadcast(a.dims(), b.dims()).ok_or_else(unsuited)?;
    let count = paring_ir::tensor::element_count(&dims).ok_or_else(unsuited)?;
    if a.dtype() != b.dtype() || count > a.len().max(b.len()) || count == 0 {
        return Err(unsuited());
    }
    let (x, y) = (
        a.to_f64s().ok_or_else(range)?,
        b.to_f64s().ok_or_else(range)?,
    );
    let mut out = Vec::with_capacity(count);
    let multiplies = matches!(form, Form::Times | Form::Over);
    for i in 0..count {
        let pick = |v: &[f64], d: &[usize]| v.get(source_index(i, &dims, d)).copied();
        let (p, q) = (
            pick(&x, a.dims()).ok_or_else(range)?,
            pick(&y, b.dims()).ok_or_else(range)?,
        );
        let r = f(p, q);
        // A product that vanishes, or nearly, is not what two multiplications make of a large value.
        if !r.is_finite() || (multiplies && r.abs() < smallest_normal(a.dtype())) {
            return Err(range());
        }
        out.push(r);
    }
    narrowed(a.dtype(), &dims, &out)
}

/// The shape of two shapes that are broadcast.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |d: &[usize], i: usize| {
        let i = (i + d.len()).checked_sub(rank);
        i.and_then(|i| d.get(i).copied()).unwrap_or(1)
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Where an element of a broadcast tensor comes from.
fn source_index(mut i: usize, dims: &[usize], from: &[usize]) -> usize {
    let (mut index, mut stride) = (0, 1);
    for (k, &d) in dims.iter().rev().enumerate() {
        let place = i % d;
        i /= d;
        let own = from.len().checked_sub(k + 1).and_then(|k| from.get(k));
        if let Some(&own) = own {
            if own != 1 {
                index += place * stride;
            }
            stride *= own;
        }
    }
    index
}

impl Run<'_> {
    /// Merges an operator with the one before it.
    pub(super) fn merge_constants(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        op: OpId,
    ) -> Result<Changed, PassError> {
        let Some((second, y, b)) = form(graph, op) else {
            return Ok(Changed::No);
        };
        let Some(before) = graph
            .producer(y)
            .filter(|_| only_consumer(graph, y).is_some())
        else {
            return Ok(Changed::No);
        };
        let Some((first, x, a)) = form(graph, before) else {
            return Ok(Changed::No);
        };
        let Some((merged, f)) = combined(first, second) else {
            return Ok(Changed::No);
        };
        let skipped = self.options(graph, op).is_none() || self.options(graph, before).is_none();
        if skipped || (merged == Form::Times && ends_fused_pattern(graph, before)) {
            return Ok(Changed::No);
        }
        let (Some(s), Some(t)) = (graph.tensor(a), graph.tensor(b)) else {
            return Ok(Changed::No);
        };
        let Some(tensor) = or_missed(combine(s, t, merged, f), graph, cx, op) else {
            return Ok(Changed::No);
        };
        let label = graph.op_label(before);
        cx.applied(
            graph,
            op,
            "merged",
            format!("merged with \"{label}\" before it"),
        );
        let hint = format!("{}_merged", graph.value(b).name());
        let c = graph.add_constant(&hint, tensor)?;
        graph.set_tensor_sources(c, &[a, b])?;
        let (op_type, operands) = match merged {
            Form::Times => ("Mul", [x, c]),
            Form::Over => ("Div", [x, c]),
            Form::Plus => ("Add", [x, c]),
            Form::Minus => ("Sub", [x, c]),
            Form::From => ("Sub", [c, x]),
        };
        let new = NewOp::new(op_type)
            .inputs(operands.map(Some))
            .from([before]);
        graph.replace_op(op, new)?;
        graph.remove_op(before)?;
        Ok(Changed::Yes)
    }
}

//! Factors of one element that move to a constant operand.

use paring_ir::{Changed, DType, Graph, OpId, PassContext, PassError, Tensor, ValueId};

use super::Run;
use crate::affine::{data_operand, ends_fused_pattern};
use crate::linear::{Refusal, check_copy, only_consumer, or_missed, replace_constant, rounded};

/// How many operators a factor may pass on its way.
const FARTHEST: usize = 16;

/// Factors outside of this range could push values between out of theirs.
const LARGEST: f64 = 65536.0;

/// Operators whose output scales with their first input alone.
fn moves_data(op: &paring_ir::Op) -> bool {
    const TYPES: [&str; 10] = [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Identity",
        "Expand",
        "Slice",
        "Tile",
        "DepthToSpace",
    ];
    TYPES.iter().any(|t| op.is(t)) && op.outputs().iter().flatten().count() == 1
}

/// The factor of a `Mul`, `Div` or `Neg` with a constant of one element, and the constant.
fn factor(graph: &Graph, op: OpId) -> Option<(ValueId, f64, Option<ValueId>)> {
    let x = data_operand(graph, op)?;
    let o = graph.op(op);
    if o.is("Neg") {
        return Some((x, -1.0, None));
    }
    if !o.is("Mul") && !o.is("Div") {
        return None;
    }
    let other = o.inputs().flatten().find(|&v| v != x)?;
    let t = graph.tensor(other)?;
    // Half precision has too little range for values between that change by a factor.
    if !matches!(t.dtype(), DType::F32 | DType::F64) {
        return None;
    }
    let c = t.single_f64()?;
    Some((x, if o.is("Mul") { c } else { 1.0 / c }, Some(other)))
}

/// Constant operands that must all be scaled.
type Targets = Vec<(OpId, usize)>;

/// The constants that scale a value when they are scaled; the value serves one operator only.
fn behind(graph: &Graph, v: ValueId, depth: usize) -> Option<Targets> {
    only_consumer(graph, v)?;
    let p = graph.producer(v)?;
    let o = graph.op(p);
    let is_constant = |slot: usize| {
        o.input(slot)
            .and_then(|v| graph.tensor(v))
            .is_some_and(|t| matches!(t.dtype(), DType::F32 | DType::F64))
    };
    let deeper = |slot: usize| {
        let depth = depth.checked_sub(1)?;
        behind(graph, o.input(slot)?, depth)
    };
    if moves_data(o) {
        return deeper(0);
    }
    if o.is("Add") || o.is("Sub") {
        return match (is_constant(0), is_constant(1)) {
            (true, false) => deeper(1).map(|t| with(t, (p, 0))),
            (false, true) => deeper(0).map(|t| with(t, (p, 1))),
            _ => None,
        };
    }
    if o.is("Conv") || o.is("ConvTranspose") || o.is("Gemm") {
        return match (is_constant(1), o.input(2)) {
            (true, None) => Some(vec![(p, 1)]),
            (true, Some(_)) if is_constant(2) => Some(vec![(p, 1), (p, 2)]),
            _ => None,
        };
    }
    if o.is("MatMul") {
        return match (is_constant(0), is_constant(1)) {
            (_, true) => Some(vec![(p, 1)]),
            (true, false) => Some(vec![(p, 0)]),
            _ => deeper(0).or_else(|| deeper(1)),
        };
    }
    None
}

fn with(mut targets: Targets, one: (OpId, usize)) -> Targets {
    targets.push(one);
    targets
}

/// The constants that scale what is made of a value when they are scaled.
fn ahead(graph: &Graph, mut v: ValueId) -> Option<Targets> {
    for _ in 0..FARTHEST {
        let (op, slot) = only_consumer(graph, v)?;
        let o = graph.op(op);
        if moves_data(o) && slot == 0 {
            v = o.output(0)?;
            continue;
        }
        let other = match slot {
            0 => 1,
            1 if !o.is("Conv") && !o.is("ConvTranspose") => 0,
            _ => return None,
        };
        if !["Conv", "ConvTranspose", "Gemm", "MatMul"]
            .iter()
            .any(|t| o.is(t))
        {
            return None;
        }
        let operand = o.input(other)?;
        return match graph.tensor(operand) {
            Some(t) if matches!(t.dtype(), DType::F32 | DType::F64) => Some(vec![(op, other)]),
            Some(_) => None,
            None if o.is("MatMul") => behind(graph, operand, FARTHEST),
            None => None,
        };
    }
    None
}

impl Run<'_> {
    /// Moves the factor of an operator to constant operands, where they can be reached.
    pub(super) fn move_scalar(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        op: OpId,
    ) -> Result<Changed, PassError> {
        let Some((x, factor, source)) = factor(graph, op) else {
            return Ok(Changed::No);
        };
        let rank = source.and_then(|s| graph.tensor(s)).map_or(0, Tensor::rank);
        let out = graph.op(op).output(0);
        let (Some(out), Some(options)) = (out, self.options(graph, op)) else {
            return Ok(Changed::No);
        };
        let sensible = (1.0 / LARGEST..=LARGEST).contains(&factor.abs());
        if !sensible || !self.facts.keeps_rank(graph, x, rank) || ends_fused_pattern(graph, op) {
            return Ok(Changed::No);
        }
        let back = behind(graph, x, FARTHEST);
        let is_back = back.is_some();
        let Some(targets) = back.or_else(|| ahead(graph, out)) else {
            return Ok(Changed::No);
        };
        let Some(new) = or_missed(
            scaled_all(graph, &targets, factor, options.max_copy),
            graph,
            cx,
            op,
        ) else {
            return Ok(Changed::No);
        };
        if !is_back && !graph.can_replace(out, x) {
            return Ok(Changed::No);
        }
        let message = "the factor went into a constant operand";
        cx.applied(graph, op, "moved-factor", message);
        let sources: Vec<ValueId> = source.into_iter().collect();
        for (target, tensor) in targets.into_iter().zip(new) {
            replace_constant(graph, target, tensor, &sources, None)?;
        }
        // What made the unscaled value makes the scaled one now, under its name.
        match graph.value(x).producer().filter(|_| is_back) {
            Some((p, slot)) => graph.move_output(out, p, slot as usize)?,
            None => graph.replace_value(out, x)?,
        }
        graph.remove_op(op)?;
        Ok(Changed::Yes)
    }
}

fn scaled_all(
    graph: &Graph,
    targets: &Targets,
    factor: f64,
    max_copy: u64,
) -> Result<Vec<Tensor>, Refusal> {
    let range = || Refusal::new("out-of-range", "a constant operand can't be scaled");
    targets
        .iter()
        .map(|&(op, slot)| {
            let v = graph.op(op).input(slot).ok_or_else(range)?;
            let t = graph.tensor(v).ok_or_else(range)?;
            check_copy(graph, v, t, max_copy)?;
            let values = t.to_f64s().ok_or_else(range)?;
            let values: Vec<f64> = values.into_iter().map(|v| v * factor).collect();
            rounded(t.dtype(), t.dims(), &values)
        })
        .collect()
}

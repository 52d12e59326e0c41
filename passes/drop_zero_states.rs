//! Drops initial states of recurrent layers that are all zero, which is what an absent one means.
//!
//! ```text
//! s = Shape (x)
//! ...
//! z = ConstantOfShape (c)                           # zeros
//! y, h, c = LSTM (x, w, r, b, "", z, z)        =>   y, h, c = LSTM (x, w, r, b)
//! ```
//!
//! It takes the computation of the states' shape along. A state is zero when it comes from a
//! `ConstantOfShape` or a constant whose bits are all zero, by way of operators that only move or
//! drop elements. The shape isn't checked: the layer prescribes it.

use paring_ir::schema::{self, Class, Role};
use paring_ir::{
    Changed, Effect, Graph, Model, NoOptions, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor, ValueId,
};

use crate::common::{any_op, visit_ops};
use crate::edits::remove_unused_value;
use crate::facts::OLDEST_OPSET;

/// The pass `drop-zero-states`.
#[derive(Debug)]
pub struct DropZeroStates {
    options: OptionSet<NoOptions>,
}

/// So many operators may stand between the zeros and the layer.
const MAX_BETWEEN: usize = 16;

impl Pass for DropZeroStates {
    const INFO: PassInfo = PassInfo::new(
        "drop-zero-states",
        "Drop initial states of LSTM, GRU and RNN that are all zero",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(DropZeroStates { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        if model.opset() < OLDEST_OPSET || !any_op(model, |g, op| !states(g, op).is_empty()) {
            return Ok(Changed::No);
        }
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let mut changed = Changed::No;
            for (slot, v) in states(graph, op) {
                if !is_zero(graph, v) {
                    continue;
                }
                let message = format!("the state in input {slot} is zero");
                cx.applied(graph, op, "zero-state", message);
                graph.set_input(op, slot, None)?;
                remove_unused_value(graph, v)?;
                changed = Changed::Yes;
            }
            Ok(changed)
        })
    }
}

/// The states that a recurrent layer starts from.
fn states(graph: &Graph, op: OpId) -> Vec<(usize, ValueId)> {
    let o = graph.op(op);
    let Some(known) = schema::of(o).filter(|k| k.class == Class::Recurrent) else {
        return Vec::new();
    };
    o.inputs()
        .enumerate()
        .filter(|(slot, _)| known.role(*slot) == Role::State)
        .filter_map(|(slot, v)| Some((slot, v?)))
        .collect()
}

fn is_zero(graph: &Graph, mut v: ValueId) -> bool {
    let zero_bits = |t: &Tensor| t.strings().is_none() && t.bytes().iter().all(|&b| b == 0);
    for _ in 0..MAX_BETWEEN {
        if let Some(t) = graph.tensor(v) {
            return zero_bits(t);
        }
        let Some(producer) = graph.producer(v) else {
            return false;
        };
        let op = graph.op(producer);
        if op.is("ConstantOfShape") {
            return op.attr("value").is_none() || op.tensor("value").is_some_and(zero_bits);
        }
        if op.is("Constant") {
            return op.tensor("value").is_some_and(zero_bits);
        }
        let moves = [
            "Slice",
            "Squeeze",
            "Unsqueeze",
            "Reshape",
            "Transpose",
            "Expand",
            "Identity",
        ];
        match op.input(0) {
            Some(input) if moves.iter().any(|t| op.is(t)) => v = input,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, unchanged};

    #[test]
    fn zeros_of_a_computed_shape_are_dropped() {
        check::<DropZeroStates>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[t,n,3] x) => (float[t,2,n,4] y)
            <float[2,16,3] w = random(1), float[2,16,4] r = random(2), int64[1] one = {1},
             int64[1] four = {4}, int64[1] zero = {0}, int64[1] two = {2}>
            {
              s = Shape (x)
              b = Gather <axis = 0> (s, one)
              c = Concat <axis = 0> (four, b, four)
              z = ConstantOfShape <value = float[1] {0}> (c)
              h = Slice (z, zero, two, zero)
              k = Slice (z, two, four, zero)
              y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, "", "", h, k)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[t,n,3] x) => (float[t,2,n,4] y)
            <float[2,16,3] w = random(1), float[2,16,4] r = random(2)>
            {
              y = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r)
            }"#,
        );
    }

    #[test]
    fn one_state_may_stay() {
        check::<DropZeroStates>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[t,1,3] x, float[1,1,4] k) => (float[t,1,1,4] y)
            <float[1,16,3] w = random(1), float[1,16,4] r = random(2), float[1,1,4] h = zeros>
            {
              y = LSTM <hidden_size = 4> (x, w, r, "", "", h, k)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[t,1,3] x, float[1,1,4] k) => (float[t,1,1,4] y)
            <float[1,16,3] w = random(1), float[1,16,4] r = random(2)>
            {
              y = LSTM <hidden_size = 4> (x, w, r, "", "", "", k)
            }"#,
        );
    }

    #[test]
    fn other_states_and_overridable_zeros_stay() {
        for h in [
            "float[1,1,4] h = {0, 0, 0, 1}",
            "float[1,1,4] h = {0, 0, 0, -0.0}",
        ] {
            unchanged::<DropZeroStates>(
                "{}",
                &format!(
                    r#"<ir_version: 8, opset_import: ["": 17]>
                    g (float[t,1,3] x) => (float[t,1,1,4] y)
                    <float[1,12,3] w = random(1), float[1,12,4] r = random(2), {h}>
                    {{
                      y = GRU <hidden_size = 4> (x, w, r, "", "", h)
                    }}"#
                ),
            );
        }
        unchanged::<DropZeroStates>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[t,1,3] x, float[1,1,4] h) => (float[t,1,1,4] y)
            <float[1,12,3] w = random(1), float[1,12,4] r = random(2), float[1,1,4] h = zeros>
            {
              y = GRU <hidden_size = 4> (x, w, r, "", "", h)
            }"#,
        );
    }
}

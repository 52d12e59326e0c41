//! Merges a `Gather` of constant indices with the `Gather` or `Unsqueeze` before it.
//!
//! ```text
//! a = Gather <axis = 0> (x, i)    # i = {4, 2, 7}
//! y = Gather <axis = 0> (a, j)    # j = 1            =>   y = Gather <axis = 0> (x, k)    # k = 2
//!
//! a = Unsqueeze (x, axes)         # axes = {1}
//! y = Gather <axis = 1> (a, j)    # j = 0            =>   users of y take x
//! ```
//!
//! Both gathers must be on one axis with known indices, those of the first in one dimension; an
//! index of the second that is out of range is left for the engine to refuse.

use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{bypass, output_name, pair, replace};
use crate::facts::{Facts, axis_from_front};

/// The pass `merge-gathers`.
#[derive(Debug)]
pub struct MergeGathers {
    options: OptionSet<NoOptions>,
}

impl Pass for MergeGathers {
    const INFO: PassInfo = PassInfo::new(
        "merge-gathers",
        "Merge a Gather of constant indices with a Gather or Unsqueeze before it",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeGathers { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| {
            pair(g, op, "Gather", &["Gather", "Unsqueeze"]).is_some()
        }) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let Some((inner, source)) = pair(graph, op, "Gather", &["Gather", "Unsqueeze"]) else {
                return Ok(Changed::No);
            };
            let message = format!("merged with {}", graph.op_label(inner));
            if graph.op(inner).is("Unsqueeze") {
                if !undoes(graph, &facts, inner, op) {
                    return Ok(Changed::No);
                }
                cx.applied(graph, op, "cancelled", message);
                bypass(graph, op, source, &[inner])?;
                return Ok(Changed::Yes);
            }
            let Some((axis, indices)) = joint_indices(graph, &facts, inner, op) else {
                return Ok(Changed::No);
            };
            cx.applied(graph, op, "merged", message);
            let sources: Vec<ValueId> = [inner, op]
                .into_iter()
                .filter_map(|p| graph.op(p).input(1))
                .collect();
            let hint = format!("{}_indices", output_name(graph, op));
            let indices = graph.add_constant(&hint, indices)?;
            graph.set_tensor_sources(indices, &sources)?;
            let new = NewOp::new("Gather")
                .input(source)
                .input(indices)
                .attr("axis", axis as i64)
                .from([inner]);
            replace(graph, op, new)?;
            Ok(Changed::Yes)
        })
    }
}

/// The axis of a `Gather`, counted from the front; a negative one needs the rank.
fn axis(graph: &Graph, facts: &Facts, op: &Op) -> Option<usize> {
    let axis = op.int_or("axis", 0);
    match facts.rank(graph, op.input(0)?) {
        Some(rank) => axis_from_front(axis, rank),
        None => usize::try_from(axis).ok(),
    }
}

/// Whether a `Gather` takes the one element of the axis that an `Unsqueeze` put in.
fn undoes(graph: &Graph, facts: &Facts, inner: OpId, op: OpId) -> bool {
    let (i, o) = (graph.op(inner), graph.op(op));
    let Ok(Some(axes)) = facts.axes(graph, inner, 1) else {
        return false;
    };
    let Some(index) = o.input(1) else {
        return false;
    };
    let [put_in] = axes[..] else {
        return false;
    };
    let put_in = match i.output(0).and_then(|v| facts.rank(graph, v)) {
        Some(rank) => axis_from_front(put_in, rank),
        None => usize::try_from(put_in).ok(),
    };
    facts.rank(graph, index) == Some(0)
        && matches!(facts.ints(graph, index).as_deref(), Some([0 | -1]))
        && put_in.is_some()
        && put_in == axis(graph, facts, o)
}

/// The indices of two gathers as one.
fn joint_indices(graph: &Graph, facts: &Facts, inner: OpId, op: OpId) -> Option<(usize, Tensor)> {
    let (i, o) = (graph.op(inner), graph.op(op));
    let own = axis(graph, facts, o)?;
    if axis(graph, facts, i)? != own {
        return None;
    }
    let first = graph.tensor(i.input(1)?).filter(|t| t.rank() == 1)?;
    let second = graph.tensor(o.input(1)?)?;
    let from = facts.input_ints(graph, inner, 1)?;
    let picked: Vec<i64> = facts
        .input_ints(graph, op, 1)?
        .into_iter()
        .map(|j| from.get(axis_from_front(j, from.len())?).copied())
        .collect::<Option<_>>()?;
    debug_assert_eq!(first.len(), from.len());
    let joint = Tensor::from_vec(second.dims().iter().copied(), picked).ok()?;
    Some((own, joint))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, unchanged};

    #[test]
    fn indices_are_composed() {
        check::<MergeGathers>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[n,2] y)
            <int32[3] i = {4, 2, -7}, int64[2] j = {-1, 0}>
            {
              a = Gather <axis = 1> (x, i)
              y = Gather <axis = -1> (a, j)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[n,2] y)
            <int64[2] y_indices = {-7, 4}>
            {
              y = Gather <axis = 1> (x, y_indices)
            }"#,
        );
    }

    #[test]
    fn the_only_element_of_an_axis_is_what_was_there() {
        check::<MergeGathers>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[n,9] y)
            <int64[1] a = {1}, int64 zero = {0}>
            {
              u = Unsqueeze (x, a)
              g = Gather <axis = 1> (u, zero)
              y = Relu (g)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[n,9] y)
            {
              y = Relu (x)
            }"#,
        );
        unchanged::<MergeGathers>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[1,9] y)
            <int64[1] a = {1}, int64 zero = {0}>
            {
              u = Unsqueeze (x, a)
              y = Gather <axis = 0> (u, zero)
            }"#,
        );
    }

    #[test]
    fn an_index_out_of_range_is_left() {
        unchanged::<MergeGathers>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,9] x) => (float[n] y)
            <int64[3] i = {4, 2, 7}, int64 j = {3}>
            {
              a = Gather <axis = 1> (x, i)
              y = Gather <axis = 1> (a, j)
            }"#,
        );
    }
}

//! Merges chains of operators that only give a tensor another shape.
//!
//! Exporters write a layer's view of its input as `Reshape`, `Unsqueeze`, `Squeeze` and `Flatten`
//! in a row. Such a chain keeps the order of the elements, so one operator can do it, or none:
//!
//! ```text
//! a = Reshape (x, s)      # float[n,44100,1]          y = Reshape (x, t)   # t = {-1, 1, 1, 44100}
//! b = Unsqueeze (a, axes) # float[n,1,44100,1]   =>
//! y = Reshape (b, t)      # float[n,1,1,44100]
//! ```
//!
//! A `Transpose` that only moves axes of size 1 counts as a member of such a chain.
//!
//! The last operator of a pair takes the first one's input. What it becomes, in this order:
//!
//! | case | result |
//! |---|---|
//! | the shapes at both ends are equal, or the axes cancel | nothing: users take the input |
//! | `Unsqueeze` of `Unsqueeze`, `Squeeze` of `Squeeze` | one with the joint axes |
//! | `Reshape` whose target does not depend on its input's shape | the same `Reshape` |
//! | the shapes differ by axes of size 1 | one `Unsqueeze` or `Squeeze` |
//! | the last shape can be written as a target | one `Reshape` |
//!
//! Shapes are compared as expressions over symbolic sizes, so the result holds for every size. A
//! size is written into a target as itself when it is known, as 0 when it stands at the same place
//! in the input, or as -1 when all other sizes are surely not 0; otherwise the chain is left, with
//! the code `symbolic-shape`. Sizes that the original refuses may pass afterwards, never the
//! other way round.

use paring_ir::analysis::shapes::SymDim;
use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{add_ints, axes_op, bypass, output_name, replace};
use crate::facts::{Facts, axes_from_front, inserted_axes, reshape_target, same_dims};

/// The pass `merge-reshapes`.
#[derive(Debug)]
pub struct MergeReshapes {
    options: OptionSet<NoOptions>,
}

impl Pass for MergeReshapes {
    const INFO: PassInfo = PassInfo::new(
        "merge-reshapes",
        "Merge chains of Reshape, Flatten, Squeeze and Unsqueeze into one operator or none",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeReshapes { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| pair(g, op).is_some()) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let Some((inner, source)) = pair(graph, op) else {
                return Ok(Changed::No);
            };
            if !only_reshapes(graph, &facts, op) || !only_reshapes(graph, &facts, inner) {
                return Ok(Changed::No);
            }
            match plan(graph, &facts, inner, source, op) {
                Ok(plan) => {
                    let message = format!("merged with {}", graph.op_label(inner));
                    cx.applied(graph, op, plan.code(), message);
                    apply(graph, &facts, inner, source, op, plan)?;
                    Ok(Changed::Yes)
                }
                Err(why) => {
                    cx.missed(graph, op, "symbolic-shape", why);
                    Ok(Changed::No)
                }
            }
        })
    }
}

/// What the last operator of a pair becomes.
enum Plan {
    Nothing,
    Unsqueeze(Vec<i64>),
    Squeeze(Vec<i64>),
    /// The same `Reshape` of another input.
    SameReshape,
    Reshape(Vec<i64>),
}

impl Plan {
    fn code(&self) -> &'static str {
        match self {
            Plan::Nothing => "cancelled",
            _ => "merged",
        }
    }
}

fn is_member(op: &Op) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze"]
        .iter()
        .any(|t| op.is(t))
}

/// The operator before `op`, and its input, when both may be members of a chain. Two transposes
/// in a row are the business of `merge-transposes`.
fn pair(graph: &Graph, op: OpId) -> Option<(OpId, ValueId)> {
    let op = graph.op(op);
    let transpose = op.is("Transpose");
    if !transpose && !is_member(op) {
        return None;
    }
    let inner = graph.producer(op.input(0)?)?;
    let i = graph.get_op(inner)?;
    let fits = is_member(i) || (i.is("Transpose") && !transpose);
    if !fits || op.output(0).is_none() {
        return None;
    }
    Some((inner, i.input(0)?))
}

/// Whether an operator keeps the order of the elements: all do but a `Transpose` that moves an
/// axis past another one that may be longer than 1.
fn only_reshapes(graph: &Graph, facts: &Facts, op: OpId) -> bool {
    let o = graph.op(op);
    if !o.is("Transpose") {
        return true;
    }
    let (Some(perm), Some(input)) = (facts.perm(graph, op), o.input(0)) else {
        return false;
    };
    let Some(dims) = facts.dims(graph, input) else {
        return false;
    };
    if dims.len() != perm.len() {
        return false;
    }
    let long: Vec<usize> = perm
        .into_iter()
        .filter(|&a| dims.get(a).is_some_and(|d| d.known() != Some(1)))
        .collect();
    long.windows(2).all(|w| w[0] < w[1])
}

fn plan(
    graph: &Graph,
    facts: &Facts,
    inner: OpId,
    source: ValueId,
    op: OpId,
) -> Result<Plan, &'static str> {
    let (i, o) = (graph.op(inner), graph.op(op));
    let from = facts.dims(graph, source);
    let to = o.output(0).and_then(|v| facts.dims(graph, v));
    if let (Some(from), Some(to)) = (&from, &to)
        && same_dims(from, to)
    {
        return Ok(Plan::Nothing);
    }
    if let Some(plan) = joint_axes(graph, facts, inner, op) {
        return Ok(plan);
    }
    if o.is("Reshape")
        && let Some(plan) = reshape_of_source(graph, facts, from.as_deref(), i, op)
    {
        return Ok(plan);
    }
    let to = to.ok_or("the number of dimensions of the result is not known")?;
    if let Some(from) = &from {
        if let Some(axes) = inserted_axes(from, &to) {
            return Ok(Plan::Unsqueeze(axes));
        }
        if let Some(axes) = inserted_axes(&to, from) {
            return Ok(Plan::Squeeze(axes));
        }
    }
    reshape_target(from.as_deref(), &to)
        .map(Plan::Reshape)
        .ok_or("the shape of the result can't be written as a target for every size")
}

/// What pairs of `Squeeze` and `Unsqueeze` come to by their axes alone.
fn joint_axes(graph: &Graph, facts: &Facts, inner: OpId, op: OpId) -> Option<Plan> {
    let (i, o) = (graph.op(inner), graph.op(op));
    let (first, second) = (i.is("Unsqueeze"), o.is("Unsqueeze"));
    if !(first || i.is("Squeeze")) || !(second || o.is("Squeeze")) {
        return None;
    }
    // Axes of Unsqueeze count in its output, those of Squeeze in its input.
    let wide = |unsqueeze: bool, op: &Op| {
        let v = if unsqueeze { op.output(0) } else { op.input(0) };
        facts.rank(graph, v?)
    };
    let a = axes_from_front(&facts.axes(graph, inner, 1).ok()??, wide(first, i))?;
    let b = axes_from_front(&facts.axes(graph, op, 1).ok()??, wide(second, o))?;
    match (first, second) {
        (true, false) | (false, true) => (a == b).then_some(Plan::Nothing),
        // The inner axes in the outer output, after the outer ones are in; and likewise for
        // axes that are taken out, seen from the source.
        (true, true) => union_through(&b, &a).map(Plan::Unsqueeze),
        (false, false) => union_through(&a, &b).map(Plan::Squeeze),
    }
}

/// `fixed`, and `others` counted among the axes that are not in `fixed`; all ascending.
fn union_through(fixed: &[usize], others: &[usize]) -> Option<Vec<i64>> {
    let mut out: Vec<usize> = fixed.to_vec();
    let mut axis = 0usize;
    let mut counted = 0usize;
    let mut taken = fixed.iter().peekable();
    for &other in others {
        loop {
            if taken.peek() == Some(&&axis) {
                taken.next();
            } else if counted == other {
                break;
            } else {
                counted = counted.checked_add(1)?;
            }
            axis = axis.checked_add(1)?;
            // Axes of a hostile model may be large numbers; no tensor has so many.
            if axis > 1 << 16 {
                return None;
            }
        }
        out.push(axis);
    }
    out.sort_unstable();
    out.into_iter().map(|a| i64::try_from(a).ok()).collect()
}

/// A `Reshape` of the source instead of the inner operator's output.
fn reshape_of_source(
    graph: &Graph,
    facts: &Facts,
    from: Option<&[SymDim]>,
    inner: &Op,
    op: OpId,
) -> Option<Plan> {
    let o = graph.op(op);
    let target = facts.exprs(graph, o.input(1)?)?;
    let may_copy = o.int_or("allowzero", 0) == 0;
    let middle = inner.output(0).and_then(|v| facts.dims(graph, v));
    // Where the target is or may be 0, the size is copied from the input: the same size must
    // stand there in the source.
    let same_copy = |i: usize| {
        let (Some(a), Some(b)) = (
            from.and_then(|f| f.get(i)),
            middle.as_ref().and_then(|m| m.get(i)),
        ) else {
            return false;
        };
        a == b
    };
    let never_zero = |d: &SymDim| match d.known() {
        Some(v) => v != 0,
        None => d.lower_bound().is_some_and(|low| low >= 1),
    };
    if target
        .iter()
        .enumerate()
        .all(|(i, d)| !may_copy || never_zero(d) || same_copy(i))
    {
        return Some(Plan::SameReshape);
    }
    // Copied sizes that are known are written out.
    let known: Vec<i64> = target.iter().map(SymDim::known).collect::<Option<_>>()?;
    let written: Vec<i64> = known
        .into_iter()
        .enumerate()
        .map(|(i, v)| {
            if v != 0 || same_copy(i) {
                return Some(v);
            }
            middle.as_ref()?.get(i)?.known().filter(|&v| v > 0)
        })
        .collect::<Option<_>>()?;
    Some(Plan::Reshape(written))
}

fn apply(
    graph: &mut Graph,
    facts: &Facts,
    inner: OpId,
    source: ValueId,
    op: OpId,
    plan: Plan,
) -> Result<(), PassError> {
    let hint = output_name(graph, op);
    let o = graph.op(op);
    let (target, attrs) = (o.input(1), o.attrs().to_vec());
    let new = match plan {
        Plan::Nothing => return Ok(bypass(graph, op, source, &[inner])?),
        Plan::Unsqueeze(axes) => axes_op(graph, facts.opset, "Unsqueeze", source, &axes, &hint)?,
        Plan::Squeeze(axes) => axes_op(graph, facts.opset, "Squeeze", source, &axes, &hint)?,
        Plan::SameReshape => NewOp::new("Reshape")
            .input(source)
            .optional_input(target)
            .attrs(attrs),
        Plan::Reshape(ints) => {
            let sources: Vec<ValueId> = target.into_iter().collect();
            let target = add_ints(graph, &format!("{hint}_shape"), &ints, &sources)?;
            NewOp::new("Reshape").input(source).input(target)
        }
    };
    replace(graph, op, new.from([inner]))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, refused, unchanged};

    #[test]
    fn axes_are_joined() {
        // Unsqueeze [1] and then [0]: the inner axis moves back by one.
        assert_eq!(union_through(&[0], &[1]), Some(vec![0, 2]));
        // Squeeze [0] and then [0]: the second axis is 1 in the source.
        assert_eq!(union_through(&[0], &[0]), Some(vec![0, 1]));
        assert_eq!(union_through(&[1, 2], &[0, 1]), Some(vec![0, 1, 2, 3]));
        assert_eq!(union_through(&[0], &[usize::MAX]), None);
    }

    #[test]
    fn a_chain_becomes_one_reshape() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[n,6] x) => (float[n,1,3,2] y)
            <int64[3] s = {-1, 6, 1}, int64[1] a = {-3}, int64[4] t = {-1, 1, 3, 2}>
            {
              r = Reshape (x, s)
              u = Unsqueeze (r, a)
              y = Reshape (u, t)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[n,6] x) => (float[n,1,3,2] y)
            <int64[4] t = {-1, 1, 3, 2}>
            {
              y = Reshape (x, t)
            }"#,
        );
    }

    #[test]
    fn copied_sizes_are_kept_or_written_out() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[n,t,6] x) => (float[n,t,6] y)
            <int64[4] s = {0, 0, 2, 3}, int64[4] t2 = {0, 0, 3, 2}, int64[3] u = {0, 0, -1}>
            {
              a = Reshape (x, s)
              b = Reshape (a, t2)
              c = Relu (b)
              y = Reshape (c, u)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[n,t,6] x) => (float[n,t,6] y)
            <int64[4] t2 = {0, 0, 3, 2}, int64[3] u = {0, 0, -1}>
            {
              b = Reshape (x, t2)
              c = Relu (b)
              y = Reshape (c, u)
            }"#,
        );
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[4,6] x) => (float[8,3] y)
            <int64[2] s = {8, 3}, int64[3] t = {0, 3, 1}, int64[1] a = {2}>
            {
              r = Reshape (x, s)
              q = Reshape (r, t)
              w = Squeeze (q, a)
              y = Relu (w)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 15]>
            g (float[4,6] x) => (float[8,3] y)
            <int64[2] w_shape = {8, 3}>
            {
              w = Reshape (x, w_shape)
              y = Relu (w)
            }"#,
        );
    }

    #[test]
    fn squeezes_cancel_in_both_forms() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 6, opset_import: ["": 11]>
            g (float[n,t] x) => (float[n,t] y)
            {
              h = Relu (x)
              u = Unsqueeze <axes = [1]> (h)
              s = Squeeze <axes = [1]> (u)
              y = Relu (s)
            }"#,
            r#"<ir_version: 6, opset_import: ["": 11]>
            g (float[n,t] x) => (float[n,t] y)
            {
              h = Relu (x)
              y = Relu (h)
            }"#,
        );
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t] x) => (float[n,t,1,1] y)
            <int64[1] a = {-1}>
            {
              u = Unsqueeze (x, a)
              y = Unsqueeze (u, a)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,t] x) => (float[n,t,1,1] y)
            <int64[2] y_axes = {2, 3}>
            {
              y = Unsqueeze (x, y_axes)
            }"#,
        );
    }

    #[test]
    fn a_result_that_is_a_graph_output_of_an_input_stays_named() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3] x) => (float[2,3] y)
            <int64[1] s = {-1}, int64[2] t = {2, 3}>
            {
              r = Reshape (x, s)
              y = Reshape (r, t)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,3] x) => (float[2,3] y)
            {
              y = Identity (x)
            }"#,
        );
    }

    #[test]
    fn a_transpose_of_ones_is_a_reshape() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,1,5] x) => (float[n,5] y)
            <int64[1] a = {2}>
            {
              t = Transpose <perm = [0, 2, 1]> (x)
              y = Squeeze (t, a)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,1,5] x) => (float[n,5] y)
            <int64[1] y_axes = {1}>
            {
              y = Squeeze (x, y_axes)
            }"#,
        );
        unchanged::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,4,5,1] x) => (float[n,5,4] y)
            <int64[1] a = {3}>
            {
              t = Transpose <perm = [0, 2, 1, 3]> (x)
              y = Squeeze (t, a)
            }"#,
        );
    }

    #[test]
    fn a_shape_that_no_target_can_say_is_left() {
        // n and t change places, and either may be 0.
        refused::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n,6,t] x, int64[3] s) => (float y)
            <int64[2] a = {1, 3}>
            {
              r = Reshape (x, s)
              y = Unsqueeze (r, a)
            }"#,
            "symbolic-shape",
        );
    }

    #[test]
    fn a_shared_first_operator_stays_for_its_other_users() {
        check::<MergeReshapes>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,6] x) => (float[12] r, float[3,4] y)
            <int64[1] s = {12}, int64[2] t = {3, 4}>
            {
              r = Reshape (x, s)
              y = Reshape (r, t)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[2,6] x) => (float[12] r, float[3,4] y)
            <int64[1] s = {12}, int64[2] t = {3, 4}>
            {
              r = Reshape (x, s)
              y = Reshape (x, t)
            }"#,
        );
    }
}

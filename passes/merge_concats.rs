//! Flattens nested `Concat` and undoes one that puts together what was just taken apart.
//!
//! ```text
//! a = Concat <axis = 1> (x, y)
//! b = Concat <axis = 1> (a, z)      =>   b = Concat <axis = 1> (x, y, z)
//!
//! a, b = Split <axis = 1> (x)
//! y = Concat <axis = 1> (a, b)      =>   users of y take x
//! ```
//!
//! - An inner `Concat` on the same axis is taken in when nothing else uses it.
//! - All outputs of a `Split` in order, on its axis, are its input.
//! - Slices of one value on the axis that follow each other (`[0:a]`, `[a:b]`) are one slice, or
//!   the value when they start at 0 and reach the end. Where they step by 1 and count from the
//!   front this holds for every size.

use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{bypass, output_name, replace};
use crate::facts::{Facts, axis_from_front};
use crate::merge_slices::{Range, ranges, slice_of};

/// The pass `merge-concats`.
#[derive(Debug)]
pub struct MergeConcats {
    options: OptionSet<NoOptions>,
}

impl Pass for MergeConcats {
    const INFO: PassInfo = PassInfo::new(
        "merge-concats",
        "Flatten nested Concat, and undo a Concat of all outputs of a Split or of slices",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeConcats { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            if !graph.op(op).is("Concat") {
                return Ok(Changed::No);
            }
            // Flattening makes another operator of the same output.
            let done = flatten(graph, &facts, op, cx)? || rejoin(graph, &facts, op, cx)?;
            Ok(Changed::when(done))
        })
    }
}

fn is_candidate(graph: &Graph, op: OpId) -> bool {
    let op = graph.op(op);
    op.is("Concat")
        && op.inputs().flatten().any(|v| {
            graph.producer(v).is_some_and(|p| {
                let p = graph.op(p);
                p.is("Concat") || p.is("Split") || p.is("Slice")
            })
        })
}

/// The axis of a `Concat` or `Split`, counted from the front; a negative one needs the rank.
fn axis(facts: &Facts, graph: &Graph, op: &Op, v: ValueId) -> Option<usize> {
    let default = if op.is("Split") { Some(0) } else { None };
    let axis = op.int("axis").or(default)?;
    match facts.rank(graph, v) {
        Some(rank) => axis_from_front(axis, rank),
        None => usize::try_from(axis).ok(),
    }
}

/// The `Concat` that makes a value, when the one that takes it can take it in.
fn nested(graph: &Graph, facts: &Facts, v: ValueId, own: usize) -> Option<OpId> {
    let inner = graph.producer(v)?;
    let i = graph.op(inner);
    let fits =
        i.is("Concat") && graph.value(v).has_single_use() && axis(facts, graph, i, v) == Some(own);
    fits.then_some(inner)
}

fn flatten(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let Some(out) = o.output(0) else {
        return Ok(false);
    };
    let Some(own) = axis(facts, graph, o, out) else {
        return Ok(false);
    };
    // One that another takes in waits for that one, so that each input is moved once.
    if let Some((outer, _)) = graph.single_consumer(out)
        && graph.op(outer).is("Concat")
        && nested(graph, facts, out, own).is_some()
        && axis(facts, graph, graph.op(outer), out) == Some(own)
    {
        return Ok(false);
    }
    let mut inputs = Vec::with_capacity(o.input_count());
    let mut taken_in = Vec::new();
    let mut waiting: Vec<ValueId> = o.inputs().flatten().rev().collect();
    while let Some(v) = waiting.pop() {
        match nested(graph, facts, v, own) {
            Some(inner) => {
                waiting.extend(graph.op(inner).inputs().flatten().rev());
                taken_in.push(inner);
            }
            None => inputs.push(Some(v)),
        }
    }
    if taken_in.is_empty() {
        return Ok(false);
    }
    let message = format!("took in {} operators", taken_in.len());
    cx.applied(graph, op, "flattened", message);
    let attrs = o.attrs().to_vec();
    let new = NewOp::new("Concat").inputs(inputs).attrs(attrs);
    replace(graph, op, new.from(taken_in))?;
    Ok(true)
}

/// A `Concat` of the parts of one value.
fn rejoin(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let Some(own) = o.output(0).and_then(|v| axis(facts, graph, o, v)) else {
        return Ok(false);
    };
    if let Some((split, source)) = whole_split(graph, facts, op, own) {
        let message = format!("the outputs of {} in order", graph.op_label(split));
        cx.applied(graph, op, "rejoined", message);
        bypass(graph, op, source, &[split])?;
        return Ok(true);
    }
    let Some((slices, source, range)) = following_slices(graph, facts, op, own) else {
        return Ok(false);
    };
    cx.applied(graph, op, "rejoined", "slices that follow each other");
    let size = facts.dims(graph, source).and_then(|d| d.get(own)?.known());
    let to_end = range.end == i64::MAX || size.is_some_and(|s| range.end >= s);
    if range.start == 0 && to_end {
        bypass(graph, op, source, &slices)?;
    } else {
        let hint = output_name(graph, op);
        let new = slice_of(graph, facts.opset, source, &[range], &hint, &[])?;
        replace(graph, op, new.from(slices))?;
    }
    Ok(true)
}

/// The `Split` whose outputs a `Concat` takes, all and in order, on the same axis.
fn whole_split(graph: &Graph, facts: &Facts, op: OpId, own: usize) -> Option<(OpId, ValueId)> {
    let o = graph.op(op);
    let split = graph.producer(o.input(0)?)?;
    let s = graph.op(split);
    let source = s.input(0)?;
    let all = s.is("Split")
        && o.input_count() == s.outputs().len()
        && o.inputs()
            .zip(s.outputs())
            .all(|(a, &b)| a.is_some() && a == b);
    (all && axis(facts, graph, s, source) == Some(own)).then_some((split, source))
}

/// The slices of one value that a `Concat` takes, when each starts where the last ended.
fn following_slices(
    graph: &Graph,
    facts: &Facts,
    op: OpId,
    own: usize,
) -> Option<(Vec<OpId>, ValueId, Range)> {
    let o = graph.op(op);
    let mut joint: Option<(ValueId, Range)> = None;
    let mut slices = Vec::new();
    for v in o.inputs() {
        let slice = graph.producer(v?).filter(|&p| graph.op(p).is("Slice"))?;
        let source = graph.op(slice).input(0)?;
        let [range] = ranges(graph, facts, slice)?[..] else {
            return None;
        };
        // Where a slice is empty because it ends before it starts, the next one doesn't follow it.
        if range.axis != own || !range.is_plain() || range.start > range.end {
            return None;
        }
        joint = Some(match joint {
            None => (source, range),
            Some((s, before)) if s == source && before.end == range.start => (
                s,
                Range {
                    end: range.end,
                    ..before
                },
            ),
            Some(_) => return None,
        });
        slices.push(slice);
    }
    let (source, range) = joint?;
    (slices.len() > 1).then_some((slices, source, range))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, unchanged};

    #[test]
    fn nested_ones_are_flattened() {
        check::<MergeConcats>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,2] x, float[n,3] z) => (float[n,12] y)
            {
              a = Concat <axis = 1> (x, z)
              b = Concat <axis = -1> (a, x)
              c = Concat <axis = 1> (z, x)
              y = Concat <axis = 1> (b, c)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,2] x, float[n,3] z) => (float[n,12] y)
            {
              y = Concat <axis = 1> (x, z, x, z, x)
            }"#,
        );
    }

    #[test]
    fn other_axes_and_shared_ones_are_left() {
        unchanged::<MergeConcats>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[2,2] x) => (float[4,4] y, float[2,4] b, float[4,4] z)
            {
              a = Concat <axis = 0> (x, x)
              y = Concat <axis = 1> (a, a)
              b = Concat <axis = 1> (x, x)
              c = Neg (b)
              z = Concat <axis = 0> (b, c)
            }"#,
        );
    }

    #[test]
    fn what_was_split_is_whole_again() {
        check::<MergeConcats>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,6] x) => (float[n,6] y)
            <int64[2] s = {2, 4}>
            {
              h = Relu (x)
              a, b = Split <axis = 1> (h, s)
              c = Concat <axis = 1> (a, b)
              y = Neg (c)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,6] x) => (float[n,6] y)
            {
              h = Relu (x)
              y = Neg (h)
            }"#,
        );
        unchanged::<MergeConcats>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,6] x) => (float[n,6] y)
            {
              a, b = Split <axis = 1> (x)
              y = Concat <axis = 1> (b, a)
            }"#,
        );
    }

    #[test]
    fn slices_that_follow_each_other_are_one() {
        check::<MergeConcats>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y, float[n,t] z)
            {
              a = Slice <axes = [1], starts = [1], ends = [3]> (x)
              b = Slice <axes = [1], starts = [3], ends = [7]> (x)
              y = Concat <axis = 1> (a, b)
              c = Slice <axes = [1], starts = [0], ends = [3]> (x)
              d = Slice <axes = [1], starts = [3], ends = [9223372036854775807]> (x)
              e = Concat <axis = 1> (c, d)
              z = Neg (e)
            }"#,
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y, float[n,t] z)
            {
              y = Slice <axes = [1], ends = [7], starts = [1]> (x)
              z = Neg (x)
            }"#,
        );
        unchanged::<MergeConcats>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y)
            {
              a = Slice <axes = [1], starts = [0], ends = [-3]> (x)
              b = Slice <axes = [1], starts = [-3], ends = [9223372036854775807]> (x)
              y = Concat <axis = 1> (a, b)
            }"#,
        );
    }
}

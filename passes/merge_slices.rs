//! Merges chains of `Slice`, and slices that go together.
//!
//! 1. A `Slice` of a `Slice` is one:
//!
//! ```text
//! a = Slice (x, starts, ends, axes)     # [0:129] of axis 1
//! y = Slice (a, starts2, ends2, axes2)  # [1:] of axis 2     =>   y = Slice (x, s, e, ax, st)
//! ```
//!
//!    On one axis the ranges are composed: by arithmetic when both step by 1 and count from the
//!    front, which holds for every size, and otherwise when the size of the axis is known.
//! 2. A `Slice` of one element of an axis and the `Squeeze` of that axis are a `Gather` with a
//!    scalar index.
//! 3. Slices of one value that tile an axis of known size are a `Split`, which reads once what
//!    they read several times.
//!
//! Parameters that are not known before the run are left. The first slice of a chain stays when
//! something else uses it; the second then reads more but no operator is added.

use std::collections::BTreeMap;

use paring_ir::analysis::shapes::SymDim;
use paring_ir::{
    Changed, Effect, Graph, GraphError, Model, NewOp, NewOutput, NoOptions, OpId, OptionError,
    OptionSet, Pass, PassContext, PassError, PassInfo, Port, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{add_ints, output_name, remove_unused_value, replace};
use crate::facts::{Facts, axis_from_front};

/// The pass `merge-slices`.
#[derive(Debug)]
pub struct MergeSlices {
    options: OptionSet<NoOptions>,
}

/// Tiles are not looked for among more users of one value, since each slice looks at all of them.
const MAX_USES: usize = 256;

impl Pass for MergeSlices {
    const INFO: PassInfo = PassInfo::new(
        "merge-slices",
        "Merge chains of Slice, Slice and Squeeze into Gather, and slices that tile an axis into Split",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeSlices { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let o = graph.op(op);
            let done = if o.is("Slice") {
                let chained = chain(graph, &facts, op, cx)?;
                // The chain's operator is another one now, so the tiling looks at its input anew.
                chained || tile(graph, &facts, op, cx)?
            } else {
                o.is("Squeeze") && pick_one(graph, &facts, op, cx)?
            };
            Ok(Changed::when(done))
        })
    }
}

fn is_candidate(graph: &Graph, op: OpId) -> bool {
    let op = graph.op(op);
    let Some(input) = op.input(0) else {
        return false;
    };
    let after_slice = graph
        .producer(input)
        .is_some_and(|p| graph.op(p).is("Slice"));
    if op.is("Squeeze") {
        return after_slice;
    }
    op.is("Slice") && (after_slice || graph.value(input).uses().len() > 1)
}

/// What a `Slice` takes of one axis.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Range {
    pub(crate) axis: usize,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) step: i64,
}

impl Range {
    /// Counts from the front by ones, whatever the size of the axis.
    pub(crate) fn is_plain(&self) -> bool {
        self.step == 1 && self.start >= 0 && self.end >= 0
    }

    /// The first index, how many there are, and the step, of an axis of this size.
    pub(crate) fn effective(&self, size: i64) -> Option<(i64, i64)> {
        let from_front = |v: i64| if v < 0 { v.saturating_add(size) } else { v };
        let (low, high) = if self.step > 0 {
            (0, size)
        } else {
            (-1, size.checked_sub(1)?)
        };
        if size == 0 {
            return Some((0, 0));
        }
        let start = if self.step > 0 {
            from_front(self.start).clamp(0, size)
        } else {
            from_front(self.start).clamp(0, size - 1)
        };
        let end = from_front(self.end).clamp(low, high.max(low));
        let length = if self.step > 0 {
            end.checked_sub(start)?
        } else {
            start.checked_sub(end)?
        };
        let step = self.step.checked_abs()?;
        if step == 0 {
            return None;
        }
        let count = if length <= 0 {
            0
        } else {
            length.checked_sub(1)? / step + 1
        };
        Some((start, count))
    }
}

/// The ranges of a `Slice`, when all are known; ascending by axis.
pub(crate) fn ranges(graph: &Graph, facts: &Facts, op: OpId) -> Option<Vec<Range>> {
    let o = graph.op(op);
    let list = |name: &str, slot: usize| -> Option<Option<Vec<i64>>> {
        if facts.opset < 10 {
            return Some(o.ints(name).map(<[i64]>::to_vec));
        }
        match o.input(slot) {
            None => Some(None),
            Some(v) => facts.ints(graph, v).map(Some),
        }
    };
    let (starts, ends) = (list("starts", 1)??, list("ends", 2)??);
    let count = starts.len();
    let axes = match list("axes", 3)? {
        Some(axes) => axes,
        None => (0..i64::try_from(count).ok()?).collect(),
    };
    let steps = list("steps", 4)?.unwrap_or_else(|| vec![1; count]);
    if ends.len() != count || axes.len() != count || steps.len() != count || steps.contains(&0) {
        return None;
    }
    let rank = facts.rank(graph, o.input(0)?);
    let mut out = BTreeMap::new();
    for (((axis, start), end), step) in axes.into_iter().zip(starts).zip(ends).zip(steps) {
        let axis = match rank {
            Some(rank) => axis_from_front(axis, rank)?,
            None => usize::try_from(axis).ok()?,
        };
        let range = Range {
            axis,
            start,
            end,
            step,
        };
        // An axis that is there twice has no meaning.
        if out.insert(axis, range).is_some() {
            return None;
        }
    }
    Some(out.into_values().collect())
}

/// A `Slice` of a value by ranges, in the form of the opset.
pub(crate) fn slice_of(
    graph: &mut Graph,
    opset: i64,
    source: ValueId,
    ranges: &[Range],
    hint: &str,
    sources: &[ValueId],
) -> Result<NewOp, GraphError> {
    let list = |f: fn(&Range) -> i64| ranges.iter().map(f).collect::<Vec<i64>>();
    let axes: Vec<i64> = ranges.iter().map(|r| r.axis as i64).collect();
    let (starts, ends, steps) = (list(|r| r.start), list(|r| r.end), list(|r| r.step));
    let mut new = NewOp::new("Slice").input(source);
    if opset < 10 {
        return Ok(new
            .attr("axes", axes)
            .attr("ends", ends)
            .attr("starts", starts));
    }
    let plain = steps.iter().all(|&s| s == 1);
    for (name, ints) in [("starts", starts), ("ends", ends), ("axes", axes)] {
        new = new.input(add_ints(graph, &format!("{hint}_{name}"), &ints, sources)?);
    }
    if !plain {
        new = new.input(add_ints(graph, &format!("{hint}_steps"), &steps, sources)?);
    }
    Ok(new)
}

// ---- chains ----

fn chain(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let Some(inner) = o.input(0).and_then(|v| graph.producer(v)) else {
        return Ok(false);
    };
    let i = graph.op(inner);
    let (true, Some(source), Some(_)) = (i.is("Slice"), i.input(0), o.output(0)) else {
        return Ok(false);
    };
    let (Some(first), Some(second)) = (ranges(graph, facts, inner), ranges(graph, facts, op))
    else {
        cx.missed(
            graph,
            op,
            "unknown-range",
            "a range is not known before the run",
        );
        return Ok(false);
    };
    let dims = facts.dims(graph, source);
    let size = |axis: usize| dims.as_ref()?.get(axis)?.known();
    let mut joint: BTreeMap<usize, Range> = first.into_iter().map(|r| (r.axis, r)).collect();
    for r in second {
        let merged = match joint.get(&r.axis) {
            None => Some(r),
            Some(before) => compose(*before, r, size(r.axis)),
        };
        let Some(merged) = merged.filter(|m| facts.opset >= 10 || m.step == 1) else {
            let why = format!("the ranges of axis {} depend on its size", r.axis);
            cx.missed(graph, op, "symbolic-shape", why);
            return Ok(false);
        };
        joint.insert(r.axis, merged);
    }
    let joint: Vec<Range> = joint.into_values().collect();
    let hint = output_name(graph, op);
    let sources: Vec<ValueId> = [inner, op]
        .into_iter()
        .flat_map(|p| graph.op(p).inputs().skip(1).flatten())
        .collect();
    cx.applied(
        graph,
        op,
        "merged",
        format!("merged with {}", graph.op_label(inner)),
    );
    let new = slice_of(graph, facts.opset, source, &joint, &hint, &sources)?;
    replace(graph, op, new.from([inner]))?;
    Ok(true)
}

/// The range of a range.
fn compose(first: Range, second: Range, size: Option<i64>) -> Option<Range> {
    let axis = first.axis;
    // min(e1, s1 + e2) clamps to the size as the two slices did, one after the other.
    if first.is_plain() && second.is_plain() {
        return Some(Range {
            axis,
            start: first.start.saturating_add(second.start),
            end: first.end.min(first.start.saturating_add(second.end)),
            step: 1,
        });
    }
    let size = size?;
    let (a, n) = first.effective(size)?;
    let (b, m) = second.effective(n)?;
    if m == 0 {
        return Some(Range {
            axis,
            start: 0,
            end: 0,
            step: 1,
        });
    }
    let start = a.checked_add(b.checked_mul(first.step)?)?;
    let step = first.step.checked_mul(second.step)?;
    let last = start.checked_add((m - 1).checked_mul(step)?)?;
    let end = if step > 0 {
        last.checked_add(1)?
    } else if last == 0 {
        // Before the first element: no number counts there but one far below zero.
        i64::MIN
    } else {
        last.checked_sub(1)?
    };
    Some(Range {
        axis,
        start,
        end,
        step,
    })
}

// ---- one element of an axis ----

fn pick_one(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let Some((slice, source, axis, index)) = picked(graph, facts, op) else {
        return Ok(false);
    };
    cx.applied(
        graph,
        op,
        "gathered",
        format!("{} takes one element of axis {axis}", graph.op_label(slice)),
    );
    let hint = format!("{}_index", output_name(graph, op));
    let index = graph.add_constant(&hint, Tensor::scalar(index))?;
    let new = NewOp::new("Gather")
        .input(source)
        .input(index)
        .attr("axis", axis as i64)
        .from([slice]);
    replace(graph, op, new)?;
    Ok(true)
}

/// The slice before a `Squeeze` of just the axis of which it takes one element. Where the
/// element does not exist, the `Squeeze` fails as the `Gather` will.
fn picked(graph: &Graph, facts: &Facts, op: OpId) -> Option<(OpId, ValueId, usize, i64)> {
    let o = graph.op(op);
    let v = o.input(0)?;
    let slice = graph.producer(v).filter(|&p| graph.op(p).is("Slice"))?;
    if !graph.value(v).has_single_use() || o.output(0).is_none() {
        return None;
    }
    let [range] = ranges(graph, facts, slice)?[..] else {
        return None;
    };
    let rank = facts.rank(graph, v);
    let [axis] = facts.axes(graph, op, 1).ok()??[..] else {
        return None;
    };
    let axis = match rank {
        Some(rank) => axis_from_front(axis, rank)?,
        None => usize::try_from(axis).ok()?,
    };
    let to_next = range.start.checked_add(1) == Some(range.end);
    // Index -1 is the last element; negative indices came with opset 11. Start -2 and end -1
    // may also be the first element of two or more, but start and end are clamped apart.
    let last = range.start == -1 && range.end == i64::MAX && facts.opset >= 11;
    let one = range.step == 1 && ((range.start >= 0 && to_next) || last);
    (range.axis == axis && one).then_some((slice, graph.op(slice).input(0)?, axis, range.start))
}

// ---- slices that tile an axis ----

/// The slices that tile an axis, in order, each with how much it takes.
type Tiles = Vec<(OpId, i64)>;

fn tile(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let Some(source) = graph.op(op).input(0) else {
        return Ok(false);
    };
    let groups = tiles(graph, facts, source, op);
    let found = !groups.is_empty();
    for (axis, tiles) in groups {
        split(graph, facts, source, axis, &tiles, cx)?;
    }
    Ok(found)
}

/// For each axis of known size that slices of `source` cover without gap or overlap: the slices.
/// The answer is empty for all but one slice of a value, so that each value is looked at once.
fn tiles(graph: &Graph, facts: &Facts, source: ValueId, op: OpId) -> BTreeMap<usize, Tiles> {
    let uses = graph.value(source).uses();
    let slices = || {
        uses.iter()
            .filter(|u| u.port == Port::Input(0) && graph.op(u.op).is("Slice"))
            .map(|u| u.op)
    };
    if uses.len() > MAX_USES || slices().min() != Some(op) {
        return BTreeMap::new();
    }
    let Some(dims) = facts.dims(graph, source) else {
        return BTreeMap::new();
    };
    let mut groups: BTreeMap<usize, Vec<(i64, i64, OpId)>> = BTreeMap::new();
    for slice in slices() {
        if let Some((axis, start, count)) = one_tile(graph, facts, &dims, slice) {
            groups.entry(axis).or_default().push((start, count, slice));
        }
    }
    groups
        .into_iter()
        .filter_map(|(axis, mut parts)| {
            parts.sort_unstable();
            let whole = parts.iter().try_fold(0i64, |at, &(start, count, _)| {
                (start == at).then(|| at.checked_add(count)).flatten()
            })?;
            let all = Some(whole) == dims.get(axis)?.known() && parts.len() > 1;
            all.then(|| (axis, parts.into_iter().map(|p| (p.2, p.1)).collect()))
        })
        .collect()
}

/// What a slice takes of its one axis. A slice that is sliced again is one with that, which takes
/// as many operators and no `Split`.
fn one_tile(
    graph: &Graph,
    facts: &Facts,
    dims: &[SymDim],
    slice: OpId,
) -> Option<(usize, i64, i64)> {
    let out = graph.op(slice).output(0)?;
    let mut uses = graph.value(out).uses().iter();
    let [range] = ranges(graph, facts, slice)?[..] else {
        return None;
    };
    let (start, count) = range.effective(dims.get(range.axis)?.known()?)?;
    let fits = range.step == 1 && count > 0 && !uses.any(|u| graph.op(u.op).is("Slice"));
    fits.then_some((range.axis, start, count))
}

/// Makes one `Split` of slices that tile an axis.
fn split(
    graph: &mut Graph,
    facts: &Facts,
    source: ValueId,
    axis: usize,
    tiles: &[(OpId, i64)],
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    let Some(first) = tiles.iter().map(|t| t.0).min() else {
        return Ok(());
    };
    let sizes: Vec<i64> = tiles.iter().map(|t| t.1).collect();
    let message = format!("{} slices tile axis {axis}", tiles.len());
    cx.applied(graph, first, "split", message);
    let mut new = NewOp::new("Split")
        .input(source)
        .attr("axis", axis as i64)
        .from(tiles.iter().map(|t| t.0))
        .beside(first)
        .name(graph.op(first).name().clone());
    if facts.opset < 13 {
        new = new.attr("split", sizes);
    } else {
        let hint = format!("{}_split", graph.value(source).name());
        new = new.input(add_ints(graph, &hint, &sizes, &[])?);
    }
    for _ in tiles {
        new = new.push_output(NewOutput::Fresh("part".into()));
    }
    let split = graph.add_op(new)?;
    for (slot, &(slice, _)) in tiles.iter().enumerate() {
        let inputs: Vec<ValueId> = graph.op(slice).inputs().skip(1).flatten().collect();
        if let Some(out) = graph.op(slice).output(0) {
            graph.move_output(out, split, slot)?;
        }
        graph.remove_op(slice)?;
        for v in inputs {
            remove_unused_value(graph, v)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, refused, unchanged};

    fn taken(r: Range, size: i64) -> Vec<i64> {
        let (start, count) = r.effective(size).unwrap();
        (0..count).map(|i| start + i * r.step).collect()
    }

    #[test]
    fn ranges_compose_as_their_elements_do() {
        let numbers = [i64::MIN, -4, -1, 0, 1, 2, 5, i64::MAX];
        let range = |start, end, step| Range {
            axis: 0,
            start,
            end,
            step,
        };
        let mut all = Vec::new();
        for &start in &numbers {
            for &end in &numbers {
                all.extend([1, 2, -1, -3].map(|step| range(start, end, step)));
            }
        }
        for size in [0, 1, 4, 5] {
            for &a in &all {
                let outer = taken(a, size);
                for &b in &all {
                    let expected: Vec<i64> = taken(b, outer.len() as i64)
                        .into_iter()
                        .map(|i| outer[i as usize])
                        .collect();
                    let joint = compose(a, b, Some(size)).unwrap();
                    assert_eq!(taken(joint, size), expected, "{a:?} {b:?} of {size}");
                }
            }
        }
    }

    #[test]
    fn slices_of_different_axes_are_one() {
        check::<MergeSlices>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,258,t] x) => (float y)
            <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] m = {129},
             int64[1] end = {9223372036854775807}>
            {
              a = Slice (x, zero, m, one, one)
              b = Slice (a, one, end, two, one)
              y = ReduceSum <keepdims = 0> (b)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,258,t] x) => (float y)
            <int64[2] b_starts = {0, 1}, int64[2] b_ends = {129, 9223372036854775807}, int64[2] b_axes = {1, 2}>
            {
              b = Slice (x, b_starts, b_ends, b_axes)
              y = ReduceSum <keepdims = 0> (b)
            }"#,
        );
        check::<MergeSlices>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y)
            {
              a = Slice <axes = [1], starts = [2], ends = [9]> (x)
              y = Slice <axes = [1], starts = [1], ends = [100]> (a)
            }"#,
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y)
            {
              y = Slice <axes = [1], ends = [9], starts = [3]> (x)
            }"#,
        );
    }

    #[test]
    fn ranges_from_the_end_of_an_unknown_axis_are_left() {
        refused::<MergeSlices>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[n,u] y)
            {
              a = Slice <axes = [1], starts = [2], ends = [-1]> (x)
              y = Slice <axes = [1], starts = [0], ends = [4]> (a)
            }"#,
            "symbolic-shape",
        );
        refused::<MergeSlices>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,t] x, int64[1] s) => (float[n,u] y)
            <int64[1] one = {1}, int64[1] four = {4}>
            {
              a = Slice (x, s, four, one)
              y = Slice (a, one, four, one)
            }"#,
            "unknown-range",
        );
    }

    #[test]
    fn one_element_is_gathered() {
        check::<MergeSlices>(
            "{}",
            r#"<ir_version: 7, opset_import: ["": 12]>
            g (float[3,n,8] x) => (float[n,8] y)
            <int64[1] s = {1}, int64[1] e = {2}, int64[1] a = {0}>
            {
              b = Slice (x, s, e, a)
              y = Squeeze <axes = [0]> (b)
            }"#,
            r#"<ir_version: 7, opset_import: ["": 12]>
            g (float[3,n,8] x) => (float[n,8] y)
            <int64 y_index = {1}>
            {
              y = Gather <axis = 0> (x, y_index)
            }"#,
        );
        // Two elements, of which one may be left at the end.
        unchanged::<MergeSlices>(
            "{}",
            r#"<ir_version: 7, opset_import: ["": 12]>
            g (float[n,8] x) => (float[8] y)
            <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {0}>
            {
              b = Slice (x, s, e, a)
              y = Squeeze <axes = [0]> (b)
            }"#,
        );
    }

    #[test]
    fn tiles_are_a_split() {
        check::<MergeSlices>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,6] x) => (float[n,2] y, float[n,4] z)
            <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] end = {9223372036854775807}>
            {
              b = Slice (x, two, end, one)
              y = Slice (x, zero, two, one)
              z = Relu (b)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,6] x) => (float[n,2] y, float[n,4] z)
            <int64[2] x_split = {2, 4}>
            {
              y, b = Split <axis = 1> (x, x_split)
              z = Relu (b)
            }"#,
        );
        // What is sliced further is merged with that.
        check::<MergeSlices>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,6,t] x) => (float[n,2,u] y, float[n,4,u] z)
            {
              a = Slice <axes = [1], starts = [0], ends = [2]> (x)
              b = Slice <axes = [1], starts = [2], ends = [6]> (x)
              y = Slice <axes = [2], starts = [1], ends = [100]> (a)
              z = Slice <axes = [2], starts = [1], ends = [100]> (b)
            }"#,
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,6,t] x) => (float[n,2,u] y, float[n,4,u] z)
            {
              y = Slice <axes = [1, 2], ends = [2, 100], starts = [0, 1]> (x)
              z = Slice <axes = [1, 2], ends = [6, 100], starts = [2, 1]> (x)
            }"#,
        );
        // A gap, an overlap, and an axis of unknown size.
        for (dims, start) in [("n,6", 3), ("n,6", 1), ("6,n", 2)] {
            unchanged::<MergeSlices>(
                "{}",
                &format!(
                    r#"<ir_version: 4, opset_import: ["": 9]>
                    g (float[{dims}] x) => (float y, float z)
                    {{
                      a = Slice <axes = [1], starts = [0], ends = [2]> (x)
                      b = Slice <axes = [1], starts = [{start}], ends = [100]> (x)
                      y = ReduceSum <keepdims = 0> (a)
                      z = ReduceSum <keepdims = 0> (b)
                    }}"#
                ),
            );
        }
    }
}

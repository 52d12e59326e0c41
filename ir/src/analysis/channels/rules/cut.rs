//! Axes that are put together from others, or cut out of them.

use std::sync::Arc;

use super::super::units::{Axis, Reason, Unit};
use super::super::walk::{Axes, Cx, Number, Place, axis_at, size_of};
use super::freeze_all;
use super::linear::part;

pub(super) fn concat(cx: &mut Cx<'_, '_>) {
    let mut all: Vec<Axes> = Vec::new();
    for slot in 0..cx.op.input_count() {
        match cx.input(slot) {
            Some(axes) => all.push(axes),
            None => return all.iter().for_each(|axes| freeze_all(cx, axes)),
        }
    }
    let Some(first) = all.first().cloned() else {
        return;
    };
    let at = axis_at(cx.op.int_or("axis", 1), first.len());
    let Some(at) = at.filter(|_| all.iter().all(|a| a.len() == first.len())) else {
        return all.iter().for_each(|axes| freeze_all(cx, axes));
    };
    let mut out = first.to_vec();
    for axes in all.iter().skip(1) {
        for (i, axis) in axes.iter().enumerate() {
            if i != at && !(axis.is_single() && out[i].is_single()) {
                cx.unify(&out[i], axis);
                if out[i].units().is_none() {
                    out[i] = axis.clone();
                }
            }
        }
    }
    let fixed = all.iter().all(|axes| axes[at].units().is_none());
    if !fixed {
        out[at] = joined(cx, &all, at);
    } else {
        let why = all.iter().find_map(|axes| match &axes[at] {
            axis if axis.is_single() => None,
            axis => Some(axis.clone()),
        });
        out[at] = why.unwrap_or_else(|| cx.fixed(Reason::Single));
    }
    cx.output(0, out);
}

/// The units of all inputs, one after the other.
fn joined(cx: &mut Cx<'_, '_>, all: &[Axes], at: usize) -> Axis {
    let mut units: Vec<Unit> = Vec::new();
    for (slot, axes) in all.iter().enumerate() {
        let size = cx.size(slot, at);
        match cx.walk.as_units(&axes[at], size) {
            Some(own) => units.extend_from_slice(&own),
            None => {
                all.iter()
                    .for_each(|axes| cx.freeze(&axes[at], Reason::UnprovableShape));
                return cx.fixed(Reason::UnprovableShape);
            }
        }
    }
    Axis::Units(units.into())
}

pub(super) fn split(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let Some(at) = axis_at(cx.op.int_or("axis", 0), axes.len()) else {
        return freeze_all(cx, &axes);
    };
    let count = cx.op.outputs().len();
    let sizes: Option<Vec<usize>> = (0..count).map(|slot| cx.out_size(slot, at)).collect();
    let Axis::Units(units) = &axes[at] else {
        for slot in 0..count {
            cx.output(slot, axes.to_vec());
        }
        return;
    };
    let total = sizes.as_ref().map(|s| s.iter().sum::<usize>());
    let Some(sizes) = sizes.filter(|_| total == Some(units.len())) else {
        let axis = cx.fix(&axes[at], Reason::UnprovableShape);
        for slot in 0..count {
            let mut out = axes.to_vec();
            out[at] = axis.clone();
            cx.output(slot, out);
        }
        return;
    };
    let mut start = 0usize;
    let mut all = Vec::new();
    for (slot, size) in sizes.iter().enumerate() {
        let own = part(units, start..start + size);
        start += size;
        all.push(Number::Count(own.clone()));
        let mut out = axes.to_vec();
        out[at] = Axis::Units(own);
        cx.output(slot, out);
    }
    let place = match cx.walk.opset {
        ..13 => Place::Attr("split"),
        _ => Place::Input(1),
    };
    cx.numbers(place, all, &[&axes[at]]);
}

/// Where a slice starts and ends on one axis, and its step.
struct Cut {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
}

/// The cuts of a `Slice`; `None` when they are not known.
fn cuts(cx: &Cx<'_, '_>, rank: usize) -> Option<Vec<Cut>> {
    let old = cx.walk.opset < 10;
    let list = |slot: usize, name: &str| match old {
        true => cx.op.ints(name).map(<[i64]>::to_vec),
        false => cx.ints(slot),
    };
    let (starts, ends) = (list(1, "starts")?, list(2, "ends")?);
    let axes = listed_axes(cx, rank, starts.len())?;
    let steps = match !old && cx.has(4) {
        true => cx.ints(4)?,
        false => vec![1; starts.len()],
    };
    if ends.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    let all = axes.into_iter().zip(starts).zip(ends).zip(steps);
    Some(
        all.map(|(((axis, start), end), step)| Cut {
            axis,
            start,
            end,
            step,
        })
        .collect(),
    )
}

/// The axes that a `Slice` names, which may be known when the bounds aren't.
fn listed_axes(cx: &Cx<'_, '_>, rank: usize, count: usize) -> Option<Vec<usize>> {
    let given = match cx.walk.opset < 10 {
        true => cx.op.ints("axes").map(<[i64]>::to_vec),
        false if cx.has(3) => Some(cx.ints(3)?),
        false => None,
    };
    match given {
        Some(list) if list.len() == count => list.iter().map(|&a| axis_at(a, rank)).collect(),
        Some(_) => None,
        None => Some((0..count).collect()),
    }
}

pub(super) fn slice(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    (1..cx.op.input_count()).for_each(|slot| cx.skip(slot));
    let Some(cuts) = cuts(cx, axes.len()) else {
        return slice_unknown(cx, &axes);
    };
    let mut out = axes.to_vec();
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for cut in &cuts {
        let Axis::Units(units) = &axes[cut.axis] else {
            starts.push(Number::Literal(cut.start));
            ends.push(Number::Literal(cut.end));
            continue;
        };
        let n = units.len();
        let whole = cut.start == 0 && clamp(cut.end, n) == n;
        if cut.step == -1 && clamp(cut.start, n) >= n - 1 && cut.end < -(n as i64) {
            out[cut.axis] = Axis::Units(units.iter().rev().copied().collect());
            starts.push(Number::Keep);
            ends.push(Number::Keep);
        } else if cut.step == 1 && whole {
            starts.push(Number::Keep);
            ends.push(match usize::try_from(cut.end) {
                Ok(end) if end == n => Number::Count(units.clone()),
                _ => Number::Keep,
            });
        } else if cut.step == 1 {
            let (from, to) = (clamp(cut.start, n), clamp(cut.end, n));
            out[cut.axis] = Axis::Units(part(units, from..to.max(from)));
            starts.push(Number::Count(part(units, 0..from)));
            ends.push(Number::Count(part(units, 0..to)));
        } else {
            out[cut.axis] = cx.fix(&axes[cut.axis], Reason::UnprovableShape);
            starts.push(Number::Literal(cut.start));
            ends.push(Number::Literal(cut.end));
        }
    }
    let watched: Vec<&Axis> = cuts.iter().map(|c| &axes[c.axis]).collect();
    let old = cx.walk.opset < 10;
    let place = |slot, name| match old {
        true => Place::Attr(name),
        false => Place::Input(slot),
    };
    cx.numbers(place(1, "starts"), starts, &watched);
    cx.numbers(place(2, "ends"), ends, &watched);
    cx.output(0, out);
}

/// Bounds that are not known hold the axes that they cut.
fn slice_unknown(cx: &mut Cx<'_, '_>, axes: &Axes) {
    let count = cx
        .dims(1)
        .and_then(|d| d.first())
        .and_then(super::super::walk::number);
    let old = cx.op.ints("starts").map(<[i64]>::len);
    let listed = count
        .or(old)
        .and_then(|count| listed_axes(cx, axes.len(), count));
    let mut out = axes.to_vec();
    for (i, axis) in axes.iter().enumerate() {
        if listed.as_ref().is_none_or(|l| l.contains(&i)) {
            out[i] = cx.fix(axis, Reason::UnprovableShape);
        }
    }
    cx.output(0, out);
}

/// A bound as a position.
fn clamp(bound: i64, n: usize) -> usize {
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    let at = if bound < 0 {
        bound.saturating_add(n)
    } else {
        bound
    };
    usize::try_from(at.clamp(0, n)).unwrap_or(0)
}

/// What is added before and after is an index of its own where it is a constant.
pub(super) fn pad(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    (1..cx.op.input_count()).for_each(|slot| cx.skip(slot));
    let rank = axes.len();
    let pads = cx.ints_or_attr(1, "pads");
    let listed = match cx.has(3) {
        true => cx.ints(3),
        false => i64::try_from(rank).ok().map(|n| (0..n).collect()),
    };
    let (Some(pads), Some(listed)) = (pads, listed) else {
        return freeze_all(cx, &axes);
    };
    let count = listed.len();
    let listed: Option<Vec<usize>> = listed.iter().map(|&a| axis_at(a, rank)).collect();
    let Some(listed) = listed.filter(|_| pads.len() == count.saturating_mul(2)) else {
        return freeze_all(cx, &axes);
    };
    let constant = cx.op.string("mode").unwrap_or("constant") == "constant";
    let mut out = axes.to_vec();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (i, &at) in listed.iter().enumerate() {
        let ends = (pads[i], pads[i + count]);
        let (axis, begin, end) = padded(cx, &axes[at], ends, constant);
        out[at] = axis;
        before.push(begin);
        after.push(end);
    }
    before.extend(after);
    let watched: Vec<&Axis> = out.iter().collect();
    let place = match cx.op.ints("pads") {
        Some(_) => Place::Attr("pads"),
        None => Place::Input(1),
    };
    cx.numbers(place, before, &watched);
    cx.output(0, out);
}

/// One padded axis, and the numbers for its two ends.
fn padded(
    cx: &mut Cx<'_, '_>,
    axis: &Axis,
    ends: (i64, i64),
    constant: bool,
) -> (Axis, Number, Number) {
    let keep = (Number::Literal(ends.0), Number::Literal(ends.1));
    let Axis::Units(units) = axis else {
        return (axis.clone(), keep.0, keep.1);
    };
    if ends == (0, 0) {
        return (axis.clone(), keep.0, keep.1);
    }
    let new = |cx: &mut Cx<'_, '_>, n: i64| {
        let n = usize::try_from(n).ok().filter(|_| constant)?;
        cx.walk.units.fresh(n)
    };
    match (new(cx, ends.0), new(cx, ends.1)) {
        (Some(before), Some(after)) => {
            let all: Arc<[Unit]> = before
                .iter()
                .chain(units.iter())
                .chain(after.iter())
                .copied()
                .collect();
            (
                Axis::Units(all),
                Number::Count(before),
                Number::Count(after),
            )
        }
        _ => (cx.fix(axis, Reason::UnprovableShape), keep.0, keep.1),
    }
}

pub(super) fn gather(cx: &mut Cx<'_, '_>) {
    let (Some(axes), Some(places)) = (cx.input(0), cx.input(1)) else {
        return;
    };
    let Some(at) = axis_at(cx.op.int_or("axis", 0), axes.len()) else {
        return freeze_all(cx, &axes);
    };
    let known = match &axes[at] {
        Axis::Units(units) => cx.ints(1).and_then(|list| {
            list.iter()
                .map(|&i| axis_at(i, units.len()))
                .collect::<Option<Vec<usize>>>()
        }),
        Axis::Fixed(_) => None,
    };
    let middle: Vec<Axis> = match (&axes[at], known, places.len()) {
        (Axis::Units(units), Some(list), rank @ (0 | 1)) => {
            let picked: Arc<[Unit]> = list.iter().map(|&i| units[i]).collect();
            // An index that makes an axis of its own, or drops it, must stay.
            if rank == 0 || picked.len() == 1 {
                cx.freeze(&Axis::Units(picked.clone()), Reason::Single);
            }
            let all = list
                .iter()
                .map(|&i| Number::Position(part(units, 0..i), units[i]))
                .collect();
            cx.numbers(Place::Input(1), all, &[&axes[at]]);
            match rank {
                0 => Vec::new(),
                _ => vec![Axis::Units(picked)],
            }
        }
        (axis, ..) => {
            cx.freeze(axis, Reason::DataIndex);
            places.to_vec()
        }
    };
    let out = axes[..at]
        .iter()
        .cloned()
        .chain(middle)
        .chain(axes[at + 1..].iter().cloned());
    let out = out.collect();
    cx.output(0, out);
}

pub(super) fn tile(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    (1..cx.op.input_count()).for_each(|slot| cx.skip(slot));
    let Some(repeats) = cx.ints(1).filter(|r| r.len() == axes.len()) else {
        return freeze_all(cx, &axes);
    };
    let mut out = Vec::with_capacity(axes.len());
    for (i, (axis, &times)) in axes.iter().zip(&repeats).enumerate() {
        let fits = cx.out_size(0, i);
        out.push(match (axis, usize::try_from(times)) {
            (axis, Ok(1)) => axis.clone(),
            (Axis::Units(units), Ok(times)) if Some(units.len().saturating_mul(times)) == fits => {
                Axis::Units(units.repeat(times).into())
            }
            _ => cx.fix(axis, Reason::UnprovableShape),
        });
    }
    cx.output(0, out);
}

/// The number for an output axis of a shape input.
pub(super) fn sizes_of(cx: &Cx<'_, '_>, axes: &[Axis]) -> Vec<Number> {
    axes.iter()
        .enumerate()
        .map(|(i, axis)| size_of(axis, cx.out_size(0, i)))
        .collect()
}

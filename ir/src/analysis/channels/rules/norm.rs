//! Normalizations, reductions, and functions of a whole axis.

use super::super::units::{Axis, Reason};
use super::super::walk::{Cx, axis_at};
use super::broadcast;
use super::linear::split;

pub(super) fn normalize(cx: &mut Cx<'_, '_>) {
    match &**cx.op.op_type() {
        "BatchNormalization" => per_channel(cx, 1..5),
        "InstanceNormalization" => per_channel(cx, 1..3),
        "GroupNormalization" => group(cx),
        "LayerNormalization" | "RMSNormalization" => layer(cx),
        "LRN" => over(cx, &[1]),
        "LpNormalization" => over(cx, &[cx.op.int_or("axis", -1)]),
        "MeanVarianceNormalization" => {
            let axes = cx.op.ints("axes").unwrap_or(&[0, 2, 3]).to_vec();
            over(cx, &axes);
        }
        _ => {}
    }
}

/// Axis 1 is the channel, and one parameter of each of these slots goes with it.
fn per_channel(cx: &mut Cx<'_, '_>, slots: std::ops::Range<usize>) {
    // Versions 1 to 8 of BatchNormalization may keep statistics for each place.
    if cx.op.int_or("spatial", 1) == 0 {
        return;
    }
    let Some(axes) = cx.input(0) else { return };
    let Some(channel) = axes.get(1) else { return };
    for slot in slots {
        if let Some([parameter]) = cx.input(slot).as_deref()
            && !(parameter.is_single() && channel.is_single())
        {
            cx.unify(parameter, channel);
        }
    }
    let channel = channel.clone();
    cx.output(0, axes.to_vec());
    let count = cx.op.outputs().len();
    (1..count).for_each(|slot| cx.output(slot, vec![channel.clone()]));
}

/// Statistics are taken over the channels of a group: whole groups go, or some of each.
fn group(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let Some(channel) = axes.get(1).cloned() else {
        return;
    };
    let groups = usize::try_from(cx.op.int_or("num_groups", 0)).unwrap_or(0);
    let Some(share) = cx.size(0, 1).and_then(|c| c.checked_div(groups)) else {
        return cx.freeze(&channel, Reason::UnprovableShape);
    };
    let (group, inner) = (cx.walk.fresh(groups), cx.walk.fresh(share));
    statistic(cx, &inner);
    split(cx, &channel, vec![(group.clone(), groups), (inner, share)]);
    // Until version 21 there was one scale for each group.
    for slot in 1..3 {
        let size = cx.size(slot, 0);
        if let Some([parameter]) = cx.input(slot).as_deref()
            && !parameter.is_single()
        {
            let per_group = size == Some(groups) && share > 1;
            cx.unify(parameter, if per_group { &group } else { &channel });
        }
    }
    cx.count_attr("num_groups", &group);
    cx.output(0, axes.to_vec());
}

fn statistic(cx: &mut Cx<'_, '_>, axis: &Axis) {
    for &unit in axis.units().unwrap_or_default() {
        cx.walk.units.set_statistic(unit);
    }
}

/// Statistics are taken over the last axes; scale and bias have those axes too.
fn layer(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let Some(first) = axis_at(cx.op.int_or("axis", -1), axes.len()) else {
        return;
    };
    axes.iter().skip(first).for_each(|a| statistic(cx, a));
    let mut all = vec![axes.clone()];
    for slot in 1..cx.op.input_count() {
        all.extend(cx.input(slot));
    }
    let joint = broadcast(cx, &all);
    let reduced = |(i, axis): (usize, &Axis)| match i < first {
        true => axis.clone(),
        false => Axis::SINGLE,
    };
    let narrow: Vec<Axis> = joint.iter().enumerate().map(reduced).collect();
    cx.output(0, joint);
    let count = cx.op.outputs().len();
    (1..count).for_each(|slot| cx.output(slot, narrow.clone()));
}

/// Axes that an operator looks at as a whole can't shrink, the others go through.
fn over(cx: &mut Cx<'_, '_>, whole: &[i64]) {
    let Some(axes) = cx.input(0) else { return };
    let mut out = axes.to_vec();
    for at in whole.iter().filter_map(|&a| axis_at(a, axes.len())) {
        out[at] = cx.fix(&axes[at], Reason::NormalizedOver);
    }
    cx.output(0, out);
}

pub(super) fn along_axis(cx: &mut Cx<'_, '_>) {
    match &**cx.op.op_type() {
        "Softmax" | "LogSoftmax" | "Hardmax" => {
            // Before opset 13 everything from the axis on is one axis.
            if cx.walk.opset >= 13 {
                return over(cx, &[cx.op.int_or("axis", -1)]);
            }
            let rank = cx.dims(0).map_or(0, <[_]>::len);
            let first = axis_at(cx.op.int_or("axis", 1), rank).unwrap_or(0);
            let from: Vec<i64> = (first..rank)
                .filter_map(|a| i64::try_from(a).ok())
                .collect();
            over(cx, &from);
        }
        "CumSum" | "CumProd" => {
            cx.skip(1);
            match cx.ints(1).as_deref() {
                Some([axis]) => over(cx, &[*axis]),
                _ => {
                    let rank = cx.dims(0).map_or(0, <[_]>::len);
                    let all: Vec<i64> = (0..rank).filter_map(|a| i64::try_from(a).ok()).collect();
                    over(cx, &all);
                }
            }
        }
        _ => {}
    }
}

/// Sums and means may run over fewer indices; other reductions may not.
pub(super) fn reduce(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let one_axis = cx.op.is("ArgMax") || cx.op.is("ArgMin");
    let given = match one_axis {
        true => Some(vec![cx.op.int_or("axis", 0)]),
        false if cx.has(1) && cx.op.ints("axes").is_none() => match cx.ints(1) {
            Some(axes) => Some(axes),
            None => {
                return axes
                    .iter()
                    .for_each(|a| cx.freeze(a, Reason::UnprovableShape));
            }
        },
        false => cx.op.ints("axes").map(<[i64]>::to_vec),
    };
    let given = given.filter(|axes| !axes.is_empty());
    let reduced: Vec<usize> = match &given {
        Some(list) => list
            .iter()
            .filter_map(|&a| axis_at(a, axes.len()))
            .collect(),
        None if cx.op.int_or("noop_with_empty_axes", 0) != 0 => Vec::new(),
        None => (0..axes.len()).collect(),
    };
    let sums = [
        "ReduceSum",
        "ReduceMean",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
    ];
    let additive = sums.iter().any(|s| cx.op.is(s));
    let keep = cx.op.int_or("keepdims", 1) != 0;
    let mut out = Vec::new();
    for (i, axis) in axes.iter().enumerate() {
        if !reduced.contains(&i) {
            out.push(axis.clone());
            continue;
        }
        if additive {
            statistic(cx, axis);
        } else {
            cx.freeze(axis, Reason::Reduced);
        }
        if keep {
            out.push(Axis::SINGLE);
        }
    }
    cx.output(0, out);
}

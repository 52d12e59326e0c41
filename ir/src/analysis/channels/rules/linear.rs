//! Sums of products: what a weight makes begins there, what it takes ends there.

use super::super::products::Product;
use super::super::units::{Axis, Reason, Unit};
use super::super::walk::{Axes, Cx};
use super::{broadcast, spatial};
use std::sync::Arc;

pub(super) fn apply(cx: &mut Cx<'_, '_>) {
    match &**cx.op.op_type() {
        "Conv" => convolution(cx, false),
        "ConvTranspose" => convolution(cx, true),
        "Gemm" => gemm(cx),
        "MatMul" => matmul(cx),
        "Einsum" => einsum(cx),
        _ => {}
    }
}

/// `Conv` has a weight of [outputs, inputs of a group, kernel], `ConvTranspose` one of
/// [inputs, outputs of a group, kernel].
fn convolution(cx: &mut Cx<'_, '_>, transposed: bool) {
    let (Some(data), Some(weight)) = (cx.input(0), cx.input(1)) else {
        return;
    };
    let bias = cx.input(2);
    let ([_, channels, ..], [first, second, kernel @ ..]) = (&*data, &*weight) else {
        return freeze(cx, &[&data, &weight]);
    };
    for axis in kernel {
        cx.freeze(axis, Reason::Window);
    }
    let groups = usize::try_from(cx.op.int_or("group", 1)).unwrap_or(0);
    let made = match (groups, transposed) {
        (1, false) => {
            meet(cx, channels, second);
            first.clone()
        }
        (1, true) => {
            meet(cx, channels, first);
            second.clone()
        }
        (_, false) => grouped(cx, groups, (channels, second), first),
        (_, true) => grouped_transposed(cx, groups, (channels, first), second),
    };
    if let Some([bias]) = bias.as_deref() {
        meet(cx, bias, &made);
    }
    let mut out = spatial(cx, &data);
    if let Some(axis) = out.get_mut(1) {
        *axis = made;
    }
    cx.output(0, out);
}

fn freeze(cx: &mut Cx<'_, '_>, all: &[&[Axis]]) {
    for axis in all.iter().flat_map(|axes| axes.iter()) {
        cx.freeze(axis, Reason::UnprovableShape);
    }
}

/// Unifies axes, which both may have one index.
fn meet(cx: &mut Cx<'_, '_>, a: &Axis, b: &Axis) {
    if !(a.is_single() && b.is_single()) {
        cx.unify(a, b);
    }
}

/// The channels of a grouped convolution; returns those that it makes.
fn grouped(
    cx: &mut Cx<'_, '_>,
    groups: usize,
    (channels, inputs): (&Axis, &Axis),
    outputs: &Axis,
) -> Axis {
    let made = cx.size(1, 0).and_then(|n| n.checked_div(groups));
    let (Some(taken), Some(made)) = (cx.size(1, 1), made) else {
        freeze(cx, &[&[channels.clone(), inputs.clone(), outputs.clone()]]);
        return outputs.clone();
    };
    let group = cx.walk.fresh(groups);
    let share = cx.walk.fresh(made);
    split(
        cx,
        channels,
        vec![(group.clone(), groups), (inputs.clone(), taken)],
    );
    split(cx, outputs, vec![(group.clone(), groups), (share, made)]);
    cx.count_attr("group", &group);
    outputs.clone()
}

fn grouped_transposed(
    cx: &mut Cx<'_, '_>,
    groups: usize,
    (channels, inputs): (&Axis, &Axis),
    outputs: &Axis,
) -> Axis {
    let taken = cx.size(1, 0).and_then(|n| n.checked_div(groups));
    let (Some(taken), Some(made)) = (taken, cx.size(1, 1)) else {
        freeze(cx, &[&[channels.clone(), inputs.clone(), outputs.clone()]]);
        return cx.fixed(Reason::UnprovableShape);
    };
    meet(cx, channels, inputs);
    let group = cx.walk.fresh(groups);
    let share = cx.walk.fresh(taken);
    split(cx, inputs, vec![(group.clone(), groups), (share, taken)]);
    let all = cx.walk.fresh(groups.saturating_mul(made));
    split(
        cx,
        &all,
        vec![(group.clone(), groups), (outputs.clone(), made)],
    );
    cx.count_attr("group", &group);
    all
}

/// Says that an axis is a product of factors.
pub(super) fn split(cx: &mut Cx<'_, '_>, whole: &Axis, factors: Vec<(Axis, usize)>) {
    let elements = factors
        .iter()
        .try_fold(1usize, |n, (_, f)| n.checked_mul(*f));
    match whole {
        Axis::Units(units) if Some(units.len()) == elements => cx.walk.products.push(Product {
            op: cx.id,
            whole: units.clone(),
            factors,
        }),
        Axis::Units(_) => {
            cx.freeze(whole, Reason::UnprovableShape);
            let axes = factors.into_iter().map(|(axis, _)| axis);
            axes.for_each(|axis| cx.freeze(&axis, Reason::UnprovableShape));
        }
        Axis::Fixed(why) => {
            for (axis, _) in &factors {
                cx.walk.freeze(axis, *why);
            }
        }
    }
}

fn gemm(cx: &mut Cx<'_, '_>) {
    let (Some(a), Some(b)) = (cx.input(0), cx.input(1)) else {
        return;
    };
    let side = |cx: &Cx<'_, '_>, axes: &Axes, name: &str| match &**axes {
        [x, y] if cx.op.int_or(name, 0) != 0 => Some((y.clone(), x.clone())),
        [x, y] => Some((x.clone(), y.clone())),
        _ => None,
    };
    let (Some((rows, left)), Some((right, columns))) =
        (side(cx, &a, "transA"), side(cx, &b, "transB"))
    else {
        return freeze(cx, &[&a, &b]);
    };
    meet(cx, &left, &right);
    let mut all: Vec<Axes> = vec![vec![rows, columns].into()];
    all.extend(cx.input(2));
    let out = broadcast(cx, &all);
    cx.output(0, out);
}

fn matmul(cx: &mut Cx<'_, '_>) {
    let (Some(a), Some(b)) = (cx.input(0), cx.input(1)) else {
        return;
    };
    let (Some((left, a_rest)), Some((last, b_rest))) = (a.split_last(), b.split_last()) else {
        return;
    };
    let (right, columns, b_batch) = match b_rest.split_last() {
        Some((inner, batch)) => (inner, Some(last), batch),
        None => (last, None, b_rest),
    };
    meet(cx, left, right);
    let (rows, a_batch) = match a_rest.split_last() {
        Some((rows, batch)) => (Some(rows), batch),
        None => (None, a_rest),
    };
    let batches: Vec<Axes> = vec![a_batch.into(), b_batch.into()];
    let mut out = broadcast(cx, &batches);
    let both = [a_batch, b_batch]
        .iter()
        .all(|axes| axes.iter().any(|a| !a.is_single()));
    for &unit in out
        .iter()
        .filter(|_| both)
        .filter_map(Axis::units)
        .flatten()
    {
        cx.walk.units.set_batch(unit);
    }
    out.extend(rows.into_iter().chain(columns).cloned());
    cx.output(0, out);
}

/// Equations without an ellipsis. Letters that meet have the same indices.
fn einsum(cx: &mut Cx<'_, '_>) {
    let Some(equation) = cx.op.string("equation") else {
        return;
    };
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let Some((left, right)) = equation.split_once("->") else {
        return;
    };
    let terms: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
    let right: Vec<char> = right.chars().collect();
    let plain = |t: &[char]| {
        t.iter()
            .enumerate()
            .all(|(i, c)| c.is_ascii_alphabetic() && !t[..i].contains(c))
    };
    if terms.len() != cx.op.input_count() || !terms.iter().all(|t| plain(t)) || !plain(&right) {
        return;
    }
    let mut letters: Vec<(char, Axis, usize)> = Vec::new();
    let mut taken = Vec::new();
    for (slot, term) in terms.iter().enumerate() {
        let Some(axes) = cx.input(slot).filter(|a| a.len() == term.len()) else {
            let all: Vec<Axis> = letters.into_iter().map(|(_, a, _)| a).collect();
            return freeze(cx, &[&all]);
        };
        for (&letter, axis) in term.iter().zip(axes.iter()) {
            match letters.iter().position(|(l, ..)| *l == letter) {
                Some(at) => {
                    let known = letters[at].1.clone();
                    meet(cx, &known, axis);
                    letters[at].2 += 1;
                }
                None => letters.push((letter, axis.clone(), 1)),
            }
        }
        taken.push(axes);
    }
    // A letter in every term and in the result counts batches.
    for (letter, axis, count) in &letters {
        if *count > 1 && right.contains(letter) {
            let units: Vec<Unit> = axis.units().unwrap_or_default().to_vec();
            units.iter().for_each(|&u| cx.walk.units.set_batch(u));
        }
    }
    let axis = |c: &char| letters.iter().find(|(l, ..)| l == c);
    let out: Option<Vec<Axis>> = right
        .iter()
        .map(|c| axis(c).map(|(_, a, _)| a.clone()))
        .collect();
    match out {
        Some(out) => cx.output(0, out),
        None => taken.iter().for_each(|axes| freeze(cx, &[axes])),
    }
}

/// What goes into a recurrent network may shrink, its state may not.
pub(super) fn recurrent(cx: &mut Cx<'_, '_>) {
    let (Some(data), Some(weight)) = (cx.input(0), cx.input(1)) else {
        return cx.finish(Reason::RecurrentState);
    };
    let ([steps, batch, features], [directions, gates, inputs]) = (&*data, &*weight) else {
        freeze(cx, &[&data, &weight]);
        return cx.finish(Reason::RecurrentState);
    };
    for axis in [steps, batch, directions, gates] {
        cx.freeze(axis, Reason::RecurrentState);
    }
    meet(cx, features, inputs);
    cx.settle();
    cx.finish(Reason::RecurrentState);
}

/// The units of an axis in a list, for numbers that count them.
pub(super) fn part(units: &[Unit], range: std::ops::Range<usize>) -> Arc<[Unit]> {
    units.get(range).unwrap_or_default().into()
}

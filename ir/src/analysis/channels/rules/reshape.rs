//! Axes that are reordered, split, merged, or made of blocks of others.

use std::sync::Arc;

use super::super::units::{Axis, Reason, Unit};
use super::super::walk::{Axes, Cx, Number, Place, axis_at, number};
use super::cut::sizes_of;
use super::freeze_all;
use super::linear::split;
use crate::analysis::SymDim;

/// A factor that a Reshape keeps whole: which axis of the input and of the output it is a part of.
struct Atom {
    from: usize,
    to: usize,
    size: Option<usize>,
}

pub(super) fn reshape(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let dims = cx.dims(0).zip(cx.out_dims(0));
    let Some((from, to)) = dims.map(|(a, b)| (a.to_vec(), b.to_vec())) else {
        return freeze_all(cx, &axes);
    };
    let mut out = vec![cx.fixed(Reason::UnprovableShape); to.len()];
    for (a, b) in segments(&from, &to) {
        regroup(cx, &axes, (&from, a), (&to, b), &mut out);
    }
    if cx.op.is("Reshape") {
        targets(cx, &axes, &out);
    }
    cx.output(0, out);
}

/// The sizes that a Reshape names. A 0 stands for the size of the input's axis there.
fn targets(cx: &mut Cx<'_, '_>, axes: &Axes, out: &[Axis]) {
    let all = sizes_of(cx, out);
    let watched: Vec<&Axis> = axes.iter().chain(out).collect();
    let place = match cx.op.ints("shape") {
        Some(_) => Place::Attr("shape"),
        None => Place::Input(1),
    };
    let written = cx.ints_or_attr(1, "shape");
    let zero_copies = cx.op.int_or("allowzero", 0) == 0;
    for (i, number) in all.iter().enumerate() {
        let copies = zero_copies
            && written
                .as_ref()
                .is_some_and(|w| w.get(i).copied() == Some(0));
        if copies
            && matches!(number, Number::Keep)
            && axes.get(i).is_some_and(|a| a.units().is_some())
        {
            cx.freeze(&axes[i], Reason::UnprovableShape);
        }
    }
    cx.numbers(place, all, &watched);
}

type Span = std::ops::Range<usize>;

/// Splits two shapes of equal products into the shortest runs of equal products.
fn segments(from: &[SymDim], to: &[SymDim]) -> Vec<(Span, Span)> {
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    let starts = prefixes(from);
    let ends = prefixes(to);
    let back_from: Vec<SymDim> = from.iter().rev().cloned().collect();
    let back_to: Vec<SymDim> = to.iter().rev().cloned().collect();
    let (back_starts, back_ends) = (prefixes(&back_from), prefixes(&back_to));
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            let same = |a: &[Option<SymDim>], b: &[Option<SymDim>], i: usize, j: usize| match (
                a.get(i),
                b.get(j),
            ) {
                (Some(Some(x)), Some(Some(y))) => x == y,
                _ => false,
            };
            if same(&starts, &ends, i, j)
                || same(&back_starts, &back_ends, from.len() - i, to.len() - j)
            {
                cuts.push((i, j));
            }
        }
    }
    cuts.push((from.len(), to.len()));
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    for (a, b) in cuts {
        if a >= i && b >= j && (a, b) != (i, j) {
            out.push((i..a, j..b));
            (i, j) = (a, b);
        }
    }
    out
}

/// The products of the first 0, 1, ... sizes; `None` where they can't be told or are 0.
fn prefixes(dims: &[SymDim]) -> Vec<Option<SymDim>> {
    let mut out = vec![Some(SymDim::from(1i64))];
    for d in dims {
        let before = out.last().cloned().flatten();
        let next = before.and_then(|p| p.mul(d));
        out.push(next.filter(|p| p.known() != Some(0)));
    }
    out
}

/// One run of axes becomes another run with the same elements.
fn regroup(
    cx: &mut Cx<'_, '_>,
    axes: &Axes,
    (from, a): (&[SymDim], Span),
    (to, b): (&[SymDim], Span),
    out: &mut [Axis],
) {
    let (Some(ins), Some(outs)) = (axes.get(a.clone()), out.get(b.clone())) else {
        return;
    };
    let ins = ins.to_vec();
    let fixed = ins
        .iter()
        .find(|axis| !axis.is_single() && axis.units().is_none());
    if ins.iter().all(|axis| axis.units().is_none()) {
        let fixed = fixed.cloned().unwrap_or(Axis::SINGLE);
        out[b].fill(fixed);
        return;
    }
    let count = outs.len();
    let Some(atoms) = atoms(&from[a], &to[b.clone()]) else {
        let fixed: Vec<Axis> = ins
            .iter()
            .map(|axis| cx.fix(axis, Reason::UnprovableShape))
            .collect();
        let why = fixed.iter().find(|a| !a.is_single()).cloned();
        out[b].fill(why.unwrap_or(Axis::SINGLE));
        return;
    };
    let parts = split_inputs(cx, &ins, &atoms);
    for j in 0..count {
        let own: Vec<(Axis, Option<usize>)> = atoms
            .iter()
            .zip(&parts)
            .filter(|(atom, _)| atom.to == j)
            .map(|(atom, axis)| (axis.clone(), atom.size))
            .collect();
        out[b.start + j] = merge(cx, own);
    }
}

/// The common factors of two shapes; `None` when there are none.
fn atoms(from: &[SymDim], to: &[SymDim]) -> Option<Vec<Atom>> {
    let one = SymDim::from(1i64);
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    let (mut a, mut b) = (from.first().cloned(), to.first().cloned());
    loop {
        while a.as_ref() == Some(&one) {
            i += 1;
            a = from.get(i).cloned();
        }
        while b.as_ref() == Some(&one) {
            j += 1;
            b = to.get(j).cloned();
        }
        let (x, y) = match (&a, &b) {
            (None, None) => return Some(out),
            (Some(x), Some(y)) => (x.clone(), y.clone()),
            _ => return None,
        };
        let (factor, rest_a, rest_b) = if x == y {
            (x, one.clone(), one.clone())
        } else if let Some(rest) = divided(&x, &y) {
            (y, rest, one.clone())
        } else {
            let rest = divided(&y, &x)?;
            (x, one.clone(), rest)
        };
        out.push(Atom {
            from: i,
            to: j,
            size: number(&factor),
        });
        a = Some(rest_a);
        b = Some(rest_b);
    }
}

/// `x / y` where that is a whole number larger than 1.
fn divided(x: &SymDim, y: &SymDim) -> Option<SymDim> {
    match (x.known(), y.known()) {
        (Some(x), Some(y)) => (y > 1 && x > y && x % y == 0).then(|| SymDim::from(x / y)),
        _ => x.div_exact(y),
    }
}

/// The axis of each atom: that of the input, or a factor of it.
fn split_inputs(cx: &mut Cx<'_, '_>, ins: &[Axis], atoms: &[Atom]) -> Vec<Axis> {
    let mut parts = vec![Axis::SINGLE; atoms.len()];
    for (i, axis) in ins.iter().enumerate() {
        let own: Vec<usize> = (0..atoms.len()).filter(|&k| atoms[k].from == i).collect();
        match (own.as_slice(), axis) {
            ([only], axis) => parts[*only] = axis.clone(),
            (several, Axis::Fixed(_)) => several.iter().for_each(|&k| parts[k] = axis.clone()),
            (several, Axis::Units(_)) => {
                let factors: Option<Vec<(Axis, usize)>> = several
                    .iter()
                    .map(|&k| atoms[k].size.map(|n| (cx.walk.fresh(n), n)))
                    .collect();
                match factors {
                    Some(factors) => {
                        for (&k, (axis, _)) in several.iter().zip(&factors) {
                            parts[k] = axis.clone();
                        }
                        split(cx, axis, factors);
                    }
                    None => {
                        let fixed = cx.fix(axis, Reason::UnprovableShape);
                        several.iter().for_each(|&k| parts[k] = fixed.clone());
                    }
                }
            }
        }
    }
    parts
}

/// The axis that its factors make.
fn merge(cx: &mut Cx<'_, '_>, mut own: Vec<(Axis, Option<usize>)>) -> Axis {
    if own.len() <= 1 {
        return own.pop().map_or(Axis::SINGLE, |(axis, _)| axis);
    }
    let fixed = own
        .iter()
        .map(|(axis, _)| axis)
        .find(|axis| axis.units().is_none() && !axis.is_single())
        .cloned();
    if own.iter().all(|(axis, _)| axis.units().is_none()) {
        return fixed.unwrap_or(Axis::SINGLE);
    }
    let factors: Option<Vec<(Axis, usize)>> = own
        .iter()
        .map(|(axis, n)| n.map(|n| (axis.clone(), n)))
        .collect();
    let total = factors
        .as_ref()
        .and_then(|f| f.iter().try_fold(1usize, |n, (_, f)| n.checked_mul(*f)));
    match factors.zip(total) {
        Some((factors, total)) => {
            let whole = cx.walk.fresh(total);
            split(cx, &whole, factors);
            whole
        }
        None => {
            for (axis, _) in &own {
                cx.freeze(axis, Reason::UnprovableShape);
            }
            fixed.unwrap_or_else(|| cx.fixed(Reason::UnprovableShape))
        }
    }
}

/// Axes of one index are dropped, wherever they stand.
pub(super) fn squeeze(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let given = cx.has(1) || cx.op.ints("axes").is_some();
    let listed = match given {
        true => cx.ints_or_attr(1, "axes"),
        false => None,
    };
    let dropped: Option<Vec<usize>> = match (&listed, given) {
        (Some(list), _) => list.iter().map(|&a| axis_at(a, axes.len())).collect(),
        (None, false) => Some((0..axes.len()).filter(|&i| axes[i].is_single()).collect()),
        (None, true) => None,
    };
    let Some(dropped) = dropped else {
        return freeze_all(cx, &axes);
    };
    let mut out = Vec::new();
    for (i, axis) in axes.iter().enumerate() {
        match dropped.contains(&i) {
            true => cx.freeze(axis, Reason::Single),
            false => out.push(axis.clone()),
        }
    }
    cx.output(0, out);
}

pub(super) fn unsqueeze(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let rank = cx.out_dims(0).map_or(0, <[_]>::len);
    let list = cx.ints_or_attr(1, "axes").unwrap_or_default();
    let added: Vec<usize> = list.iter().filter_map(|&a| axis_at(a, rank)).collect();
    if added.len() + axes.len() != rank {
        return freeze_all(cx, &axes);
    }
    let mut rest = axes.iter().cloned();
    let out = (0..rank)
        .map(|i| match added.contains(&i) {
            true => Axis::SINGLE,
            false => rest.next().unwrap_or(Axis::SINGLE),
        })
        .collect();
    cx.output(0, out);
}

pub(super) fn transpose(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let rank = axes.len();
    let order: Option<Vec<usize>> = match cx.op.ints("perm") {
        Some(perm) => perm.iter().map(|&p| axis_at(p, rank)).collect(),
        None => Some((0..rank).rev().collect()),
    };
    match order.filter(|o| o.len() == rank) {
        Some(order) => {
            let out = order.into_iter().map(|i| axes[i].clone()).collect();
            cx.output(0, out);
        }
        None => freeze_all(cx, &axes),
    }
}

/// Every index of the result takes a block of channels.
pub(super) fn depth_to_space(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let block = usize::try_from(cx.op.int_or("blocksize", 0)).unwrap_or(0);
    let squared = block.saturating_mul(block);
    let columns_first = cx.op.string("mode").unwrap_or("DCR") == "DCR";
    let mut out = axes.to_vec();
    for axis in out.iter_mut().skip(2) {
        *axis = cx.fix(axis, Reason::Window);
    }
    let channels = match axes.get(1) {
        Some(Axis::Units(units)) if squared > 0 && units.len() % squared == 0 => units.clone(),
        Some(axis) => {
            out[1] = cx.fix(axis, Reason::UnprovableShape);
            return cx.output(0, out);
        }
        None => return,
    };
    let left = channels.len() / squared;
    let groups: Vec<Unit> = (0..left)
        .map(|c| {
            let at = |k: usize| match columns_first {
                true => channels[k * left + c],
                false => channels[c * squared + k],
            };
            (1..squared).for_each(|k| cx.walk.units.union(at(0), at(k)));
            at(0)
        })
        .collect();
    out[1] = Axis::Units(groups.into());
    cx.output(0, out);
}

/// Every channel is in the result once for each place of a block.
pub(super) fn space_to_depth(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let block = usize::try_from(cx.op.int_or("blocksize", 0)).unwrap_or(0);
    let mut out = axes.to_vec();
    for axis in out.iter_mut().skip(2) {
        *axis = cx.fix(axis, Reason::Window);
    }
    if let Some(Axis::Units(units)) = axes.get(1) {
        let times = block.saturating_mul(block);
        let made = units.len().saturating_mul(times);
        let all: Arc<[Unit]> = match cx.out_size(0, 1) == Some(made) {
            true => units.repeat(times).into(),
            false => {
                out[1] = cx.fix(&axes[1], Reason::UnprovableShape);
                return cx.output(0, out);
            }
        };
        out[1] = Axis::Units(all);
    }
    cx.output(0, out);
}

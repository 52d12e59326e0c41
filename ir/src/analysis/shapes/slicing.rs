//! Slice, Pad and CenterCropPad.

use super::cx::{Cx, Outs, filled, one, typed};
use super::dim::SymDim;
use super::elementwise::small_dims;
use super::fact::{Contents, SymDims};
use super::layout::{Axes, axes_since};

/// One axis of a Slice; what is not known is `None`.
struct Cut {
    start: Option<SymDim>,
    end: Option<SymDim>,
    step: Option<i64>,
}

pub(super) fn slice(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype(0);
    let Some(from) = cx.dims(0) else {
        return one(typed(dtype, None));
    };
    let Some(cuts) = cuts(cx, from.len()) else {
        return one(typed(dtype, Some(cx.fresh_dims(from.len()))));
    };
    let mut dims = from.clone();
    for (axis, cut) in &cuts {
        let Some(d) = dims.get_mut(*axis) else {
            continue;
        };
        let len = cut_len(cx, d, cut);
        *d = cx.size(len);
    }
    let known = cut_contents(cx, from, &cuts);
    one(filled(dtype, Some(dims), known))
}

/// The axes that are cut; `None` when it is not known which.
fn cuts(cx: &Cx<'_, '_>, rank: usize) -> Option<Vec<(usize, Cut)>> {
    let list = |v: &[i64]| -> Vec<SymDim> { v.iter().map(|&v| v.into()).collect() };
    let (starts, ends, axes, steps) = if cx.opset < 10 {
        let (starts, ends) = (cx.ints("starts")?, cx.ints("ends")?);
        let axes = cx.ints("axes").map(<[i64]>::to_vec);
        (Some(list(starts)), Some(list(ends)), axes, Some(None))
    } else {
        let axes = match cx.has(3) {
            true => Some(cx.known_ints(3)?),
            false => None,
        };
        let steps = match cx.has(4) {
            true => cx.known_ints(4).map(Some),
            false => Some(None),
        };
        (cx.exprs(1), cx.exprs(2), axes, steps)
    };
    let count = starts.as_ref().or(ends.as_ref()).map(Vec::len);
    let axes = match (axes, count) {
        (Some(axes), _) => cx.axes(&axes, rank)?,
        (None, Some(n)) => (0..n).collect(),
        (None, None) => return None,
    };
    let at = |all: &Option<Vec<SymDim>>, i| all.as_ref().and_then(|v| v.get(i).cloned());
    let cuts = axes.into_iter().enumerate().map(|(i, axis)| {
        let step = match &steps {
            Some(Some(steps)) => steps.get(i).copied(),
            Some(None) => Some(1),
            None => None,
        };
        let (start, end) = (at(&starts, i), at(&ends, i));
        (axis, Cut { start, end, step })
    });
    Some(cuts.collect())
}

/// How many elements a cut leaves.
fn cut_len(cx: &Cx<'_, '_>, d: &SymDim, cut: &Cut) -> Option<SymDim> {
    let step = cut.step?;
    if step == 0 {
        return cx.refuse("a step of 0".to_owned());
    }
    let (start, end) = (cut.start.as_ref()?, cut.end.as_ref()?);
    if let (Some(d), Some(start), Some(end)) = (d.known(), start.known(), end.known()) {
        let (from, to) = clamp(d, start, end, step);
        return Some(count(from, to, step).into());
    }
    if step > 0 {
        forward(d, start, end, step)
    } else {
        backward(d, start, end, step)
    }
}

/// First and last position of known numbers, clamped as Slice does.
fn clamp(d: i64, start: i64, end: i64, step: i64) -> (i64, i64) {
    let wrap = |v: i64| if v < 0 { v.saturating_add(d) } else { v };
    if step > 0 {
        (wrap(start).clamp(0, d), wrap(end).clamp(0, d))
    } else {
        let last = d.saturating_sub(1);
        (
            wrap(start).clamp(0, last.max(0)).min(last),
            wrap(end).clamp(-1, last.max(-1)),
        )
    }
}

/// The number of steps from one position to another.
fn count(from: i64, to: i64, step: i64) -> i64 {
    let (way, step) = (i128::from(to) - i128::from(from), i128::from(step));
    let n = if (way > 0) != (step > 0) || way == 0 {
        0
    } else {
        (way.abs() + step.abs() - 1) / step.abs()
    };
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A position that may count from the end.
fn wrap(d: &SymDim, v: &SymDim) -> Option<SymDim> {
    if v.is_not_negative() {
        Some(v.clone())
    } else if v.is_negative() {
        d.add(v)
    } else {
        None
    }
}

/// Whether a number surely lies beyond every size: exporters write the largest i32 or i64.
fn is_far(v: &SymDim) -> bool {
    v.known().is_some_and(|v| v >= i64::from(i32::MAX))
}

fn forward(d: &SymDim, start: &SymDim, end: &SymDim, step: i64) -> Option<SymDim> {
    let zero = SymDim::from(0i64);
    let to_end = is_far(end) || end == d;
    if to_end && step == 1 && start.is_negative() {
        return d.minimum(&start.neg()?);
    }
    let end = if to_end {
        d.clone()
    } else {
        wrap(d, end)?.minimum(d)?
    };
    // A start beyond the end leaves nothing, so it needs no clamping from above.
    let start = wrap(d, start)?.maximum(&zero)?;
    end.sub(&start)?.div_ceil(&step.into())?.maximum(&zero)
}

/// Only whole reversals: from the last element to before the first.
fn backward(d: &SymDim, start: &SymDim, end: &SymDim, step: i64) -> Option<SymDim> {
    let from_last = is_far(start) || start.known() == Some(-1);
    let to_first = end.known().is_some_and(|v| v <= i64::from(i32::MIN));
    if from_last && to_first {
        return d.div_ceil(&step.checked_neg()?.into());
    }
    None
}

/// The elements that are left of small known contents.
fn cut_contents(cx: &Cx<'_, '_>, dims: &SymDims, cuts: &[(usize, Cut)]) -> Option<Contents> {
    let all = cx.contents(0)?.exprs()?;
    let dims = small_dims(dims)?;
    // The positions that are kept, axis by axis.
    let mut kept: Vec<Vec<usize>> = dims.iter().map(|&d| (0..d).collect()).collect();
    for (axis, cut) in cuts {
        let step = cut.step.filter(|&s| s != 0)?;
        let (start, end) = (cut.start.as_ref()?.known()?, cut.end.as_ref()?.known()?);
        let (from, to) = clamp(i64::try_from(*dims.get(*axis)?).ok()?, start, end, step);
        *kept.get_mut(*axis)? = (0..count(from, to, step))
            .map(|i| usize::try_from(from.checked_add(i.checked_mul(step)?)?).ok())
            .collect::<Option<_>>()?;
    }
    let mut offsets = vec![0usize];
    for (positions, size) in kept.iter().zip(&dims) {
        offsets = offsets
            .iter()
            .flat_map(|o| positions.iter().map(move |p| o * size + p))
            .collect();
    }
    let picked: Option<Vec<SymDim>> = offsets.iter().map(|&o| all.get(o).cloned()).collect();
    Some(Contents::from_exprs(picked?))
}

pub(super) fn pad(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx
        .dims(0)
        .map(|d| pad_dims(cx, d).unwrap_or_else(|| cx.fresh_dims(d.len())));
    one(cx.shared(cx.dtype(0), dims))
}

fn pad_dims(cx: &Cx<'_, '_>, from: &SymDims) -> Option<SymDims> {
    let pads: Vec<SymDim> = if cx.opset < 11 {
        let name = if cx.opset < 2 { "paddings" } else { "pads" };
        cx.ints(name)?.iter().map(|&p| p.into()).collect()
    } else {
        cx.exprs(1)?
    };
    let axes: Vec<usize> = match axes_since(cx, 3, 18) {
        Axes::Known(axes) if cx.opset >= 18 => cx.axes(&axes, from.len())?,
        Axes::Unknown(_) => return None,
        _ => (0..from.len()).collect(),
    };
    if pads.len() != axes.len().checked_mul(2)? {
        return cx.refuse(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let (before, after) = pads.split_at(axes.len());
    let mut dims = from.clone();
    for (axis, (before, after)) in axes.iter().zip(before.iter().zip(after)) {
        let d = dims.get_mut(*axis)?;
        let padded = d.add(before).and_then(|d| d.add(after));
        if let Some(v) = padded.as_ref().and_then(SymDim::known)
            && v < 0
        {
            return cx.refuse(format!("axis {axis} would have size {v}"));
        }
        *d = cx.size(padded);
    }
    Some(dims)
}

pub(super) fn center_crop_pad(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|from| {
        let axes: Vec<usize> = match cx.ints("axes") {
            Some(axes) => cx.axes(axes, from.len())?,
            None => (0..from.len()).collect(),
        };
        let sizes = cx.exprs(1);
        let mut dims = from.clone();
        for (i, axis) in axes.into_iter().enumerate() {
            let size = sizes.as_ref().and_then(|s| s.get(i).cloned());
            *dims.get_mut(axis)? = cx.size(size);
        }
        Some(dims)
    });
    one(typed(cx.dtype(0), dims))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use super::*;
    use crate::op::NewOp;
    use crate::tensor::DType;

    fn sliced(dims: &str, start: i64, end: i64, step: i64) -> String {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, dims);
        let (s, e, a, k) = (
            t.ints(&[start]),
            t.ints(&[end]),
            t.ints(&[-1]),
            t.ints(&[step]),
        );
        let y = t.op1(NewOp::new("Slice").inputs([x, s, e, a, k].map(Some)));
        t.infer().show(y)
    }

    #[test]
    fn known_cuts_are_walked() {
        // Walking element by element between the clamped positions counts the same.
        for start in -9..10i64 {
            for end in -9..10i64 {
                for step in [-3, -2, -1, 1, 2, 3i64] {
                    let (mut at, to) = walk(7, start, end, step);
                    let mut n = 0;
                    while (step > 0 && at < to) || (step < 0 && at > to) {
                        n += 1;
                        at += step;
                    }
                    let (from, to) = clamp(7, start, end, step);
                    assert_eq!(count(from, to, step), n, "[{start}:{end}:{step}]");
                }
            }
        }
    }

    /// First and last position as the specification of Slice words it.
    fn walk(d: i64, start: i64, end: i64, step: i64) -> (i64, i64) {
        let wrap = |v: i64| if v < 0 { v + d } else { v };
        let (start, end) = (wrap(start), wrap(end));
        if step > 0 {
            (start.max(0).min(d), end.max(0).min(d))
        } else {
            (start.max(0).min(d - 1), end.max(-1).min(d - 1))
        }
    }

    #[test]
    fn cuts_of_symbolic_sizes() {
        assert_eq!(sliced("n", 0, i64::MAX, 1), "float[n]");
        assert_eq!(
            sliced("n", 0, i64::from(i32::MAX), 2),
            "float[floor((n + 1)/(2))]"
        );
        assert_eq!(sliced("n", 0, 5, 1), "float[min(5, n)]");
        assert_eq!(sliced("n", -3, i64::MAX, 1), "float[min(3, n)]");
        assert_eq!(sliced("n", -1, i64::MIN, -1), "float[n]");
        assert_eq!(sliced("n", 1, i64::MAX, 1), "float[max(0, n - 1)]");
        assert_eq!(sliced("n", 0, -1, 1), "float[max(0, n - 1)]");
        assert_eq!(sliced("n", 4, 1, -1), "float[?]");
        assert_eq!(sliced("7", 2, i64::MIN, -2), "float[2]");
        assert_eq!(sliced("0", -1, i64::MIN, -1), "float[0]");
    }

    #[test]
    fn cuts_by_sizes_of_the_model() {
        // Position embeddings cut to the length of the sequence, then added to it.
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "b,t,8");
        let table = t.input("table", DType::F32, "1,512,8");
        let len = t.op1(
            NewOp::new("Shape")
                .input(x)
                .attr("start", 1i64)
                .attr("end", 2i64),
        );
        let (zero, one) = (t.ints(&[0]), t.ints(&[1]));
        let cut = t.op1(NewOp::new("Slice").inputs([table, zero, len, one].map(Some)));
        let sum = t.op1(NewOp::new("Add").input(x).input(cut));
        let shapes = t.infer();
        assert_eq!(shapes.show(cut), "float[1,min(512, t),8]");
        assert_eq!(shapes.show(sum), "float[b,t,8]");
    }

    #[test]
    fn steps_of_zero_are_a_conflict() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "4");
        let (s, e, a, k) = (t.ints(&[0]), t.ints(&[2]), t.ints(&[0]), t.ints(&[0]));
        let y = t.op1(NewOp::new("Slice").inputs([x, s, e, a, k].map(Some)));
        let shapes = t.infer();
        assert_eq!(shapes.show(y), "float[?]");
        assert!(shapes.conflicts()[0].ends_with("a step of 0"));
    }

    #[test]
    fn unknown_cuts_leave_the_other_axes() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "4,n");
        let s = t.input("s", DType::I64, "1");
        let (e, a) = (t.ints(&[2]), t.ints(&[0]));
        let y = t.op1(NewOp::new("Slice").inputs([x, s, e, a].map(Some)));
        let z = t.op1(NewOp::new("Slice").inputs([x, s, s].map(Some)));
        let shapes = t.infer();
        assert_eq!(shapes.show(y), "float[?,n]");
        assert_eq!(shapes.show(z), "float[?,?]");
    }

    #[test]
    fn contents_are_cut() {
        let mut t = Test::new(9);
        let x = t.input("x", DType::F32, "n,c,h,w");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let y = t.op1(
            NewOp::new("Slice")
                .input(shape)
                .attr("starts", vec![2i64])
                .attr("ends", vec![4i64]),
        );
        assert_eq!(t.infer().elements(y), "h w");
    }

    #[test]
    fn pads_as_exporters_reorder_them() {
        // begins and ends by pairs from the last axis: reversed, transposed, flattened.
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,h,w");
        let pairs = t.ints(&[1, 2, 3, 4, 0, 0]);
        let two = t.ints(&[-1, 2]);
        let pairs = t.op1(NewOp::new("Reshape").input(pairs).input(two));
        let (s, e, a) = (t.ints(&[-1]), t.ints(&[i64::MIN]), t.ints(&[0]));
        let reversed = t.op1(NewOp::new("Slice").inputs([pairs, s, e, a, s].map(Some)));
        let turned = t.op1(NewOp::new("Transpose").input(reversed));
        let flat = t.op1(NewOp::new("Reshape").input(turned).input(s));
        let y = t.op1(NewOp::new("Pad").input(x).input(flat));
        let shapes = t.infer();
        assert_eq!(shapes.elements(flat), "0 3 1 0 4 2");
        assert_eq!(shapes.show(y), "float[n,h + 7,w + 3]");
    }

    #[test]
    fn pads_grow_and_crop() {
        let mut t = Test::new(18);
        let x = t.input("x", DType::F32, "n,3,h");
        let pads = t.ints(&[0, 0, 1, 0, -1, 2]);
        let a = t.op1(NewOp::new("Pad").input(x).input(pads));
        let two = t.ints(&[1, 4]);
        let axes = t.ints(&[-1]);
        let b = t.op1(NewOp::new("Pad").inputs([Some(x), Some(two), None, Some(axes)]));
        let c = t.op1(NewOp::new("Pad").input(x).input(two));
        let open = t.input("p", DType::I64, "6");
        let d = t.op1(NewOp::new("Pad").input(x).input(open));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,2,h + 3]");
        assert_eq!(shapes.show(b), "float[n,3,h + 5]");
        assert_eq!(shapes.show(c), "float[?,?,?]");
        assert_eq!(shapes.show(d), "float[?,?,?]");
        assert!(shapes.conflicts()[0].ends_with("2 pads for 3 axes"));
    }

    #[test]
    fn pads_are_an_attribute_before_opset_11() {
        let mut t = Test::new(10);
        let x = t.input("x", DType::F32, "n,3");
        let y = t.op1(NewOp::new("Pad").input(x).attr("pads", vec![0i64, 1, 0, 1]));
        assert_eq!(t.infer().show(y), "float[n,5]");
    }

    #[test]
    fn crops_to_a_shape() {
        let mut t = Test::new(18);
        let x = t.input("x", DType::F32, "n,3,h");
        let to = t.ints(&[5, 6]);
        let y = t.op1(
            NewOp::new("CenterCropPad")
                .input(x)
                .input(to)
                .attr("axes", vec![-1i64, 1]),
        );
        assert_eq!(t.infer().show(y), "float[n,6,5]");
    }
}

//! Operators that only move elements: Reshape, Transpose, Concat, Split and their like, and
//! those that read shapes.

use super::cx::{Cx, MAX_RANK, Outs, filled, many, no_dims, one, typed, vector};
use super::dim::SymDim;
use super::elementwise::{broadcast, small_dims, spread};
use super::fact::{Contents, MAX_INTS, SymDims};
use crate::tensor::DType;

// ---- reading shapes ----

/// The dimensions as a tensor, perhaps only those of a range.
pub(super) fn shape(cx: &Cx<'_, '_>) -> Outs {
    let Some(dims) = cx.dims(0) else {
        return one(typed(Some(DType::I64), Some(vector(cx.fresh()))));
    };
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX);
    let clamp = |v: i64| {
        let v = if v < 0 { v.saturating_add(rank) } else { v };
        usize::try_from(v.clamp(0, rank)).unwrap_or(0)
    };
    let (start, end) = if cx.opset >= 15 {
        (clamp(cx.int_or("start", 0)), clamp(cx.int_or("end", rank)))
    } else {
        (0, dims.len())
    };
    let range = dims.get(start..end).unwrap_or(&[]);
    let known = Contents::from_exprs(range.to_vec());
    one(filled(
        Some(DType::I64),
        Some(vector(range.len())),
        Some(known),
    ))
}

/// The number of elements.
pub(super) fn size(cx: &Cx<'_, '_>) -> Outs {
    let known = cx
        .dims(0)
        .and_then(SymDim::product)
        .map(|n| Contents::from_exprs(vec![n]));
    one(filled(Some(DType::I64), Some(no_dims()), known))
}

// ---- same elements, other dimensions ----

/// Keeps the contents of the first input under new dimensions, where their number agrees.
fn moved(cx: &Cx<'_, '_>, dims: Option<SymDims>) -> Outs {
    let known = cx.contents(0).filter(|c| {
        dims.as_ref()
            .and_then(SymDim::product)
            .and_then(|n| n.known())
            .is_some_and(|n| usize::try_from(n) == Ok(c.len()))
    });
    one(filled(cx.dtype(0), dims, known.cloned()))
}

/// The product of one list of sizes over the product of another, where sizes that stand in
/// both cancel first, so that long products stay small.
pub(super) fn quotient(cx: &Cx<'_, '_>, over: &[SymDim], under: &[SymDim]) -> Option<SymDim> {
    let mut over: Vec<SymDim> = over.to_vec();
    let mut rest = Vec::new();
    for d in under {
        match over.iter().position(|o| o == d && d.known() != Some(0)) {
            Some(i) => {
                over.swap_remove(i);
            }
            None => rest.push(d.clone()),
        }
    }
    let (over, under) = (SymDim::product(&over)?, SymDim::product(&rest)?);
    if let (Some(a), Some(b)) = (over.known(), under.known())
        && b != 0
        && a.checked_rem(b) != Some(0)
    {
        return cx.refuse(format!("{a} elements can't be divided by {b}"));
    }
    over.div_floor(&under)
}

pub(super) fn reshape(cx: &Cx<'_, '_>) -> Outs {
    moved(cx, reshape_dims(cx))
}

fn reshape_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let wanted = if cx.opset < 5 {
        let shape = cx.ints("shape")?;
        Some(shape.iter().map(|&d| SymDim::from(d)).collect())
    } else {
        cx.exprs(1)
    };
    let Some(wanted) = wanted else {
        let rank = cx.dim(1, 0)?.known()?;
        if let (1, Some(from)) = (rank, cx.dims(0)) {
            return Some(vector(cx.product(from)));
        }
        return Some(cx.fresh_dims(usize::try_from(rank).ok().filter(|&r| r <= MAX_RANK)?));
    };
    let zero_is_zero = cx.flag("allowzero");
    let mut dims = SymDims::new();
    // The places of sizes that may be -1, so that they follow from the others.
    let mut open = Vec::new();
    for (i, d) in wanted.iter().enumerate() {
        match d.known() {
            Some(0) if !zero_is_zero => {
                dims.push(kept_dim(cx, i)?);
                continue;
            }
            Some(-1) => open.push(i),
            Some(v) if v < -1 => return cx.refuse(format!("a dimension of {v}")),
            None if !d.is_not_negative() => open.push(i),
            _ => {}
        }
        dims.push(d.clone());
    }
    if let ([at], Some(from)) = (open.as_slice(), cx.dims(0)) {
        let others = dims.iter().enumerate().filter(|(i, _)| i != at);
        let others: Vec<SymDim> = others.map(|(_, d)| d.clone()).collect();
        *dims.get_mut(*at)? = cx.size(quotient(cx, from, &others));
    } else {
        for at in open {
            *dims.get_mut(at)? = cx.fresh();
        }
    }
    check_count(cx, &dims);
    Some(dims)
}

/// The size of the input that a 0 in the shape keeps.
fn kept_dim(cx: &Cx<'_, '_>, axis: usize) -> Option<SymDim> {
    let Some(from) = cx.dims(0) else {
        return Some(cx.fresh());
    };
    match from.get(axis) {
        Some(d) => Some(d.clone()),
        None => cx.refuse(format!(
            "dimension {axis} is to be kept, but there are only {}",
            from.len()
        )),
    }
}

/// Records a mismatch when both numbers of elements are known.
fn check_count(cx: &Cx<'_, '_>, dims: &SymDims) {
    let count = |d: &SymDims| SymDim::product(d)?.known();
    if let (Some(a), Some(b)) = (cx.dims(0).and_then(count), count(dims))
        && a != b
    {
        let _: Option<()> = cx.refuse(format!("{a} elements can't become {b}"));
    }
}

pub(super) fn flatten(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let axis = cx.int_or("axis", 1);
        let axis = match usize::try_from(axis) {
            Ok(a) if a == d.len() => a,
            _ => cx.axis(axis, d.len())?,
        };
        let (a, b) = d.split_at(axis);
        Some(SymDims::from_iter([cx.product(a), cx.product(b)]))
    });
    if cx.dims(0).is_none() {
        return one(typed(cx.dtype(0), Some(cx.fresh_dims(2))));
    }
    moved(cx, dims)
}

pub(super) fn transpose(cx: &Cx<'_, '_>) -> Outs {
    let Some(from) = cx.dims(0) else {
        let dims = cx.ints("perm").map(|p| cx.fresh_dims(p.len()));
        return one(typed(cx.dtype(0), dims));
    };
    let rank = from.len();
    let perm: Option<Vec<usize>> = match cx.ints("perm") {
        Some(p) if p.len() == rank => cx.axes(p, rank),
        Some(p) => cx.refuse(format!("perm has {} axes of {rank}", p.len())),
        None => Some((0..rank).rev().collect()),
    };
    let Some(perm) = perm else {
        return one(typed(cx.dtype(0), None));
    };
    let dims: Option<SymDims> = perm.iter().map(|&a| from.get(a).cloned()).collect();
    let known = cx.contents(0).and_then(Contents::exprs).and_then(|all| {
        let from = small_dims(from)?;
        let to: Vec<usize> = perm
            .iter()
            .map(|&a| from.get(a).copied())
            .collect::<Option<_>>()?;
        let mut out = Vec::with_capacity(all.len());
        for i in 0..all.len() {
            let (mut rest, mut index) = (i, vec![0usize; from.len()]);
            for (axis, &n) in to.iter().enumerate().rev() {
                *index.get_mut(*perm.get(axis)?)? = rest.checked_rem(n)?;
                rest = rest.checked_div(n)?;
            }
            let offset = index.iter().zip(&from).fold(0, |o, (i, n)| o * n + i);
            out.push(all.get(offset)?.clone());
        }
        Some(Contents::from_exprs(out))
    });
    one(filled(cx.dtype(0), dims, known))
}

/// Axes that an operator takes as an attribute or, since some version, as an input.
pub(super) enum Axes {
    /// None are given.
    Absent,
    /// As written, perhaps negative.
    Known(Vec<i64>),
    /// They depend on data; perhaps their number is known.
    Unknown(Option<usize>),
}

pub(super) fn axes_since(cx: &Cx<'_, '_>, slot: usize, input_since: i64) -> Axes {
    if cx.opset < input_since {
        return match cx.ints("axes") {
            Some(a) => Axes::Known(a.to_vec()),
            None => Axes::Absent,
        };
    }
    if !cx.has(slot) {
        return Axes::Absent;
    }
    match cx.known_ints(slot) {
        Some(a) => Axes::Known(a),
        None => Axes::Unknown(
            cx.dims(slot)
                .and_then(|d| d.first()?.known())
                .and_then(|n| usize::try_from(n).ok()),
        ),
    }
}

pub(super) fn squeeze(cx: &Cx<'_, '_>) -> Outs {
    moved(cx, squeeze_dims(cx))
}

fn squeeze_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let dims = cx.dims(0)?;
    match axes_since(cx, 1, 13) {
        Axes::Known(axes) => {
            let axes = cx.axes(&axes, dims.len())?;
            for &a in &axes {
                if let Some(v) = dims.get(a).and_then(SymDim::known)
                    && v != 1
                {
                    return cx.refuse(format!("axis {a} of size {v} can't be squeezed"));
                }
            }
            let kept = dims.iter().enumerate().filter(|(i, _)| !axes.contains(i));
            Some(kept.map(|(_, d)| d.clone()).collect())
        }
        Axes::Absent => {
            // A size that may be 1 may go or stay.
            let surely = |d: &SymDim| d.known().is_some() || d.lower_bound().is_some_and(|v| v > 1);
            dims.iter().all(surely).then(|| {
                dims.iter()
                    .filter(|d| d.known() != Some(1))
                    .cloned()
                    .collect()
            })
        }
        Axes::Unknown(n) => Some(cx.fresh_dims(dims.len().checked_sub(n?)?)),
    }
}

pub(super) fn unsqueeze(cx: &Cx<'_, '_>) -> Outs {
    moved(cx, unsqueeze_dims(cx))
}

fn unsqueeze_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let dims = cx.dims(0)?;
    match axes_since(cx, 1, 13) {
        Axes::Known(axes) => {
            let rank = dims.len().checked_add(axes.len())?;
            let axes = cx.axes(&axes, rank)?;
            let mut rest = dims.iter();
            let mut out = SymDims::new();
            for i in 0..rank {
                if axes.contains(&i) {
                    out.push(1i64.into());
                } else {
                    match rest.next() {
                        Some(d) => out.push(d.clone()),
                        None => return cx.refuse("an axis is given twice".to_owned()),
                    }
                }
            }
            if rest.next().is_some() {
                return cx.refuse("an axis is given twice".to_owned());
            }
            Some(out)
        }
        Axes::Absent => cx.refuse("the axes are missing".to_owned()),
        Axes::Unknown(n) => Some(cx.fresh_dims(dims.len().checked_add(n?)?)),
    }
}

pub(super) fn expand(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype(0);
    let dims = expand_dims(cx);
    let known = dims.as_ref().and_then(|dims| {
        let all = cx.contents(0)?.exprs()?;
        let all = spread(&all, &small_dims(cx.dims(0)?)?, &small_dims(dims)?)?;
        Some(Contents::from_exprs(all))
    });
    one(filled(dtype, dims, known))
}

fn expand_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let from = cx.dims(0)?;
    let Some(to) = cx.exprs(1) else {
        let rank = usize::try_from(cx.dim(1, 0)?.known()?).ok()?;
        let mut dims = cx.fresh_dims(rank.max(from.len()));
        // A size above 1 stays.
        for (d, f) in dims.iter_mut().rev().zip(from.iter().rev()) {
            if f.known().is_some_and(|v| v != 1) {
                *d = f.clone();
            }
        }
        return Some(dims);
    };
    if let Some(v) = to.iter().find_map(|d| d.known().filter(|v| *v < 0)) {
        return cx.refuse(format!("a dimension of {v}"));
    }
    let to: SymDims = to.into_iter().map(|d| cx.size(Some(d))).collect();
    broadcast(cx, from, &to)
}

pub(super) fn tile(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype(0);
    let Some(dims) = cx.dims(0) else {
        let rank = cx.dim(1, 0).and_then(SymDim::known);
        let rank = rank
            .and_then(|r| usize::try_from(r).ok())
            .filter(|&r| r <= MAX_RANK);
        return one(typed(dtype, rank.map(|r| cx.fresh_dims(r))));
    };
    let dims = match cx.exprs(1) {
        Some(times) if times.len() == dims.len() => Some(
            dims.iter()
                .zip(&times)
                .map(|(d, n)| cx.size(d.mul(n)))
                .collect(),
        ),
        Some(times) => cx.refuse(format!(
            "{} repeats for {} dimensions",
            times.len(),
            dims.len()
        )),
        None => Some(cx.fresh_dims(dims.len())),
    };
    let known = match (cx.contents(0).and_then(Contents::exprs), &dims) {
        (Some(all), Some(d)) if d.len() == 1 => small_dims(d)
            .and_then(|d| d.first().copied())
            .map(|n| Contents::from_exprs(all.iter().cycle().take(n).cloned().collect())),
        _ => None,
    };
    one(filled(dtype, dims, known))
}

// ---- joining and splitting ----

pub(super) fn concat(cx: &Cx<'_, '_>) -> Outs {
    let dtype = (0..cx.inputs.len()).find_map(|i| cx.dtype(i));
    let dims = concat_dims(cx);
    let known = dims.as_ref().and_then(|d| concat_contents(cx, d));
    one(filled(dtype, dims, known))
}

fn concat_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let mut first = (0..cx.inputs.len()).filter_map(|i| cx.dims(i));
    let mut out = first.next()?.clone();
    let axis = match cx.int("axis") {
        Some(a) => cx.axis(a, out.len())?,
        None => return cx.refuse("the axis is missing".to_owned()),
    };
    let mut sum = Some(SymDim::from(0i64));
    for slot in 0..cx.inputs.len() {
        let Some(dims) = cx.dims(slot) else {
            sum = None;
            continue;
        };
        if dims.len() != out.len() {
            return cx.refuse(format!(
                "input {slot} has {} dimensions, input 0 has {}",
                dims.len(),
                out.len()
            ));
        }
        for (i, (o, d)) in out.iter_mut().zip(dims).enumerate() {
            if i == axis {
                sum = sum.and_then(|s| s.add(d));
            } else if o != d {
                *o = cx.same(o, d, "sizes beside the axis")?;
            }
        }
    }
    *out.get_mut(axis)? = cx.size(sum);
    Some(out)
}

/// The joined elements along the first axis. Vectors whose elements are not known take part
/// with numbers that nothing is known about, as long as some elements are known.
fn concat_contents(cx: &Cx<'_, '_>, dims: &SymDims) -> Option<Contents> {
    let first = cx.int("axis") == Some(0) || dims.len() == 1;
    if !first || !(0..cx.inputs.len()).any(|i| cx.contents(i).is_some()) {
        return None;
    }
    let count = SymDim::product(dims)?.known()?;
    if usize::try_from(count).ok()? > MAX_INTS {
        return None;
    }
    let mut all = Vec::new();
    for slot in 0..cx.inputs.len() {
        match cx.contents(slot) {
            Some(Contents::Floats(_)) => return concat_floats(cx),
            Some(c) => all.extend(c.exprs()?),
            None if cx.dtype(slot).is_some_and(DType::is_float) => return concat_floats(cx),
            None => {
                let n = SymDim::product(cx.dims(slot)?)?.known()?;
                all.extend((0..n).map(|_| cx.number()));
            }
        }
    }
    Some(Contents::from_exprs(all))
}

fn concat_floats(cx: &Cx<'_, '_>) -> Option<Contents> {
    let mut all = Vec::new();
    for slot in 0..cx.inputs.len() {
        all.extend(cx.floats(slot)?);
    }
    (all.len() <= super::fact::MAX_FLOATS).then(|| Contents::Floats(all.into()))
}

pub(super) fn split(cx: &Cx<'_, '_>) -> Outs {
    let dtype = cx.dtype(0);
    let count = cx.op.outputs().len();
    let Some(dims) = cx.dims(0) else {
        return many((0..count).map(|_| typed(dtype, None)));
    };
    let sizes = cx
        .axis(cx.int_or("axis", 0), dims.len())
        .and_then(|axis| Some((axis, split_sizes(cx, dims.get(axis)?, count)?)));
    let Some((axis, sizes)) = sizes else {
        return many((0..count).map(|_| typed(dtype, None)));
    };
    let all = cx.exprs(0).filter(|_| dims.len() == 1);
    let mut at = Some(0usize);
    many((0..count).map(|i| {
        let size = sizes.get(i)?;
        let mut out = dims.clone();
        *out.get_mut(axis)? = size.clone();
        let len = size.known().and_then(|n| usize::try_from(n).ok());
        let end = at.zip(len).and_then(|(a, n)| a.checked_add(n));
        let range = at.zip(end).map(|(a, b)| a..b);
        at = end;
        let part = range.and_then(|r| all.as_ref()?.get(r).map(<[SymDim]>::to_vec));
        filled(dtype, Some(out), part.map(Contents::from_exprs))
    }))
}

/// The sizes of the parts.
fn split_sizes(cx: &Cx<'_, '_>, whole: &SymDim, outputs: usize) -> Option<Vec<SymDim>> {
    let given = if cx.opset < 13 {
        cx.ints("split")
            .map(|v| v.iter().map(|&v| SymDim::from(v)).collect())
    } else if cx.has(1) {
        match cx.exprs(1) {
            Some(v) => Some(v.into_iter().map(|d| cx.size(Some(d))).collect()),
            None => return Some(cx.fresh_dims(outputs).into_vec()),
        }
    } else {
        None
    };
    if let Some(given) = given {
        return check_split(cx, whole, given, outputs);
    }
    let parts = cx.int("num_outputs").filter(|_| cx.opset >= 18);
    let parts = parts.unwrap_or(i64::try_from(outputs).ok()?);
    if parts <= 0 || parts > i64::try_from(outputs).ok()?.max(1) {
        return cx.refuse(format!("{parts} parts for {outputs} outputs"));
    }
    if cx.opset < 18 {
        if let Some(n) = whole.known()
            && n.checked_rem(parts) != Some(0)
        {
            return cx.refuse(format!("{n} can't be split into {parts} equal parts"));
        }
        let part = cx.size(whole.div_floor(&parts.into()));
        return Some(vec![part; outputs]);
    }
    // The last part is the smaller one.
    let part = cx.size(whole.div_ceil(&parts.into()));
    let before = part.mul(&parts.checked_sub(1)?.into());
    let last = before
        .and_then(|b| whole.sub(&b))
        .and_then(|l| l.maximum(&0i64.into()));
    let mut all = vec![part; usize::try_from(parts).ok()?];
    if whole.div_exact(&parts.into()).is_none()
        && let Some(l) = all.last_mut()
    {
        *l = cx.size(last);
    }
    Some(all)
}

fn check_split(
    cx: &Cx<'_, '_>,
    whole: &SymDim,
    given: Vec<SymDim>,
    outputs: usize,
) -> Option<Vec<SymDim>> {
    if given.len() != outputs {
        return cx.refuse(format!("{} sizes for {outputs} outputs", given.len()));
    }
    let sum = given
        .iter()
        .try_fold(SymDim::from(0i64), |sum, d| sum.add(d));
    if let (Some(n), Some(sum)) = (whole.known(), sum.and_then(|s| s.known()))
        && n != sum
    {
        return cx.refuse(format!("sizes that add up to {sum}, but there are {n}"));
    }
    Some(given)
}

// ---- blocks ----

/// The sides of a block, when the attribute says one.
fn block_size(cx: &Cx<'_, '_>) -> Option<SymDim> {
    match cx.int("blocksize") {
        Some(b) if b > 0 => Some(b.into()),
        Some(b) => cx.refuse(format!("a block size of {b}")),
        None => cx.refuse("the block size is missing".to_owned()),
    }
}

pub(super) fn depth_to_space(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims_of_rank(0, 4).and_then(|d| {
        let b = block_size(cx)?;
        let [n, c, h, w] = d.as_slice() else {
            return None;
        };
        let c = quotient(cx, std::slice::from_ref(c), &[b.clone(), b.clone()])?;
        Some(SymDims::from_iter([
            n.clone(),
            c,
            cx.mul(h, &b),
            cx.mul(w, &b),
        ]))
    });
    one(typed(cx.dtype(0), dims))
}

pub(super) fn space_to_depth(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims_of_rank(0, 4).and_then(|d| {
        let b = block_size(cx)?;
        let [n, c, h, w] = d.as_slice() else {
            return None;
        };
        let square = cx.mul(&b, &b);
        let part = |d: &SymDim| quotient(cx, std::slice::from_ref(d), std::slice::from_ref(&b));
        Some(SymDims::from_iter([
            n.clone(),
            cx.mul(c, &square),
            part(h)?,
            part(w)?,
        ]))
    });
    one(typed(cx.dtype(0), dims))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::DType;

    fn reshape(dims: &str, to: &[i64], allowzero: i64) -> (String, Vec<String>) {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, dims);
        let shape = t.ints(to);
        let op = NewOp::new("Reshape").input(x).input(shape);
        let y = t.op1(op.attr("allowzero", allowzero));
        let shapes = t.infer();
        (shapes.show(y), shapes.conflicts())
    }

    #[test]
    fn reshape_by_numbers() {
        assert_eq!(reshape("2,3,4", &[0, -1], 0).0, "float[2,12]");
        assert_eq!(reshape("n,3,4", &[0, -1], 0).0, "float[n,12]");
        assert_eq!(reshape("n,3,h,w", &[0, 3, -1], 0).0, "float[n,3,h*w]");
        assert_eq!(reshape("n,t,64", &[-1, 64], 0).0, "float[n*t,64]");
        assert_eq!(reshape("n,6", &[-1, 4], 0).0, "float[floor((n)/(2)) + n,4]");
        assert_eq!(reshape("?,?,64", &[0, 0, 8, 8], 0).0, "float[?,?,8,8]");
        assert_eq!(reshape("*", &[0, -1, 8], 0).0, "float[?,?,8]");
        assert_eq!(reshape("0,3", &[0, 5], 1).0, "float[0,5]");
    }

    #[test]
    fn reshape_refuses_what_does_not_fit() {
        let (shape, conflicts) = reshape("2,3", &[4, -1], 0);
        assert_eq!(shape, "float[4,?]");
        assert!(conflicts[0].ends_with("6 elements can't be divided by 4"));
        assert!(reshape("2,3", &[2, 2], 0).1[0].ends_with("6 elements can't become 4"));
        assert!(reshape("2", &[1, 0], 0).1[0].contains("only 1"));
        assert!(reshape("2", &[-2], 0).1[0].contains("a dimension of -2"));
        // Sizes whose product overflows are unknown, not wrong.
        let huge = format!("{0},{0},3", i64::MAX);
        assert_eq!(reshape(&huge, &[-1], 0).0, "float[?]");
    }

    #[test]
    fn shape_arithmetic_reaches_reshape() {
        // What exporters write for x.view(x.size(0), x.size(1) * 4, -1).
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,c,4,h,w");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let mut size = |i: i64| {
            let i = t.int(i);
            t.op1(NewOp::new("Gather").input(shape).input(i))
        };
        let (n, c) = (size(0), size(1));
        let four = t.int(4);
        let c = t.op1(NewOp::new("Mul").input(c).input(four));
        let zero = t.ints(&[0]);
        let n = t.op1(NewOp::new("Unsqueeze").input(n).input(zero));
        let c = t.op1(NewOp::new("Unsqueeze").input(c).input(zero));
        let rest = t.ints(&[-1]);
        let op = NewOp::new("Concat").attr("axis", 0i64);
        let shape = t.op1(op.inputs([n, c, rest].map(Some)));
        let y = t.op1(NewOp::new("Reshape").input(x).input(shape));
        let shapes = t.infer();
        assert_eq!(shapes.elements(shape), "n 4*c -1");
        assert_eq!(shapes.show(y), "float[n,4*c,h*w]");
    }

    #[test]
    fn an_unknown_size_follows_from_the_others() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,8,4");
        let unknown = t.input("k", DType::I64, "1");
        let minus = t.ints(&[-1]);
        let eight = t.ints(&[8]);
        let op = || NewOp::new("Concat").attr("axis", 0i64);
        let one_open = t.op1(op().inputs([unknown, eight].map(Some)));
        let two_open = t.op1(op().inputs([unknown, minus, eight].map(Some)));
        let a = t.op1(NewOp::new("Reshape").input(x).input(one_open));
        let b = t.op1(NewOp::new("Reshape").input(x).input(two_open));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[4*n,8]");
        assert_eq!(shapes.show(b), "float[?,?,8]");
    }

    #[test]
    fn shapes_and_sizes_are_contents() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,3,h");
        let op = || NewOp::new("Shape").input(x);
        let all = t.op1(op());
        let mid = t.op1(op().attr("start", -2i64).attr("end", -1i64));
        let none = t.op1(op().attr("start", 2i64).attr("end", 1i64));
        let size = t.op1(NewOp::new("Size").input(x));
        let shapes = t.infer();
        assert_eq!(shapes.elements(all), "n 3 h");
        assert_eq!(shapes.elements(mid), "3");
        assert_eq!(shapes.show(none), "int64[0]");
        assert_eq!(shapes.elements(size), "3*h*n");
        assert_eq!(shapes.show(size), "int64[]");
    }

    #[test]
    fn axes_are_attributes_before_opset_13() {
        let mut t = Test::new(11);
        let x = t.input("x", DType::F32, "n,1,h,1");
        let a = t.op1(NewOp::new("Squeeze").input(x).attr("axes", vec![1i64]));
        let b = t.op1(
            NewOp::new("Unsqueeze")
                .input(x)
                .attr("axes", vec![0i64, -1]),
        );
        let c = t.op1(NewOp::new("Squeeze").input(x));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,h,1]");
        assert_eq!(shapes.show(b), "float[1,n,1,h,1,1]");
        assert_eq!(shapes.show(c), "float?");
    }

    #[test]
    fn squeezing_more_than_one_is_a_conflict() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,2");
        let axes = t.ints(&[1]);
        t.op1(NewOp::new("Squeeze").input(x).input(axes));
        let twice = t.ints(&[0, 0]);
        t.op1(NewOp::new("Unsqueeze").input(x).input(twice));
        let far = t.ints(&[5]);
        t.op1(NewOp::new("Unsqueeze").input(x).input(far));
        let conflicts = t.infer().conflicts();
        assert!(conflicts[0].ends_with("axis 1 of size 2 can't be squeezed"));
        assert!(conflicts[1].ends_with("an axis is given twice"));
        assert!(conflicts[2].ends_with("axis 5 of a tensor with 3 dimensions"));
    }

    #[test]
    fn transpose_flatten_expand_tile() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,c,1");
        let a = t.op1(
            NewOp::new("Transpose")
                .input(x)
                .attr("perm", vec![2i64, 0, 1]),
        );
        let b = t.op1(NewOp::new("Transpose").input(x));
        let c = t.op1(NewOp::new("Flatten").input(x));
        let d = t.op1(NewOp::new("Flatten").input(x).attr("axis", 3i64));
        let to = t.ints(&[5, 1, 1, 7]);
        let e = t.op1(NewOp::new("Expand").input(x).input(to));
        let times = t.ints(&[1, 2, 3]);
        let f = t.op1(NewOp::new("Tile").input(x).input(times));
        let open = t.input("open", DType::I64, "4");
        let g = t.op1(NewOp::new("Expand").input(x).input(open));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[1,n,c]");
        assert_eq!(shapes.show(b), "float[1,c,n]");
        assert_eq!(shapes.show(c), "float[n,c]");
        assert_eq!(shapes.show(d), "float[c*n,1]");
        assert_eq!(shapes.show(e), "float[5,n,c,7]");
        assert_eq!(shapes.show(f), "float[n,2*c,3]");
        assert_eq!(shapes.show(g), "float[?,?,?,?]");
    }

    #[test]
    fn contents_are_transposed() {
        let mut t = Test::new(17);
        let x = t.constant(crate::Tensor::from_vec([2, 3], vec![1i64, 2, 3, 4, 5, 6]).unwrap());
        let y = t.op1(NewOp::new("Transpose").input(x));
        assert_eq!(t.infer().elements(y), "1 4 2 5 3 6");
    }

    #[test]
    fn concat_adds_sizes() {
        let mut t = Test::new(17);
        let a = t.input("a", DType::F32, "n,?,h");
        let b = t.input("b", DType::F32, "n,3,h");
        let c = t.input("c", DType::F32, "n,3,k");
        let bad = t.input("d", DType::F32, "n,4,2");
        let op = |axis: i64| NewOp::new("Concat").attr("axis", axis);
        let x = t.op1(op(2).inputs([a, b, c].map(Some)));
        let y = t.op1(op(1).inputs([b, b].map(Some)));
        let z = t.op1(op(2).inputs([b, bad].map(Some)));
        let shapes = t.infer();
        assert_eq!(shapes.show(x), "float[n,3,k + 2*h]");
        assert_eq!(shapes.show(y), "float[n,6,h]");
        assert_eq!(shapes.show(z), "float?");
        assert!(shapes.conflicts()[0].ends_with("sizes beside the axis: 3 and 4 differ"));
    }

    #[test]
    fn split_into_given_and_equal_parts() {
        let mut t = Test::new(18);
        let x = t.input("x", DType::F32, "n,7");
        let sizes = t.ints(&[3, 4]);
        let op = || NewOp::new("Split").attr("axis", 1i64).input(x);
        let given = t.op(op().input(sizes), 2);
        let uneven = t.op(op().attr("num_outputs", 3i64), 3);
        let open = t.op(NewOp::new("Split").input(x).attr("num_outputs", 2i64), 2);
        let wrong = t.ints(&[3, 3]);
        t.op(op().input(wrong), 2);
        let shapes = t.infer();
        let show = |all: &[crate::ValueId]| -> Vec<String> {
            all.iter().map(|&v| shapes.show(v)).collect()
        };
        assert_eq!(show(&given), ["float[n,3]", "float[n,4]"]);
        assert_eq!(show(&uneven), ["float[n,3]", "float[n,3]", "float[n,1]"]);
        assert_eq!(shapes.show(open[0]), "float[floor((n + 1)/(2)),7]");
        assert!(shapes.conflicts()[0].ends_with("sizes that add up to 6, but there are 7"));
    }

    #[test]
    fn split_contents_before_opset_13() {
        let mut t = Test::new(11);
        let x = t.ints(&[1, 2, 3, 4]);
        let parts = t.op(NewOp::new("Split").input(x).attr("split", vec![1i64, 3]), 2);
        let equal = t.op(NewOp::new("Split").input(x), 2);
        let shapes = t.infer();
        assert_eq!(shapes.elements(parts[1]), "2 3 4");
        assert_eq!(shapes.elements(equal[1]), "3 4");
    }

    #[test]
    fn blocks_move_between_depth_and_space() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,12,h,6");
        let a = t.op1(NewOp::new("DepthToSpace").input(x).attr("blocksize", 2i64));
        let b = t.op1(NewOp::new("SpaceToDepth").input(a).attr("blocksize", 2i64));
        let c = t.op1(NewOp::new("DepthToSpace").input(x).attr("blocksize", 0i64));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,3,2*h,12]");
        assert_eq!(shapes.show(b), "float[n,12,h,6]");
        assert_eq!(shapes.show(c), "float?");
    }

    #[test]
    fn ranks_do_not_explode() {
        // Each Gather by itself doubles the rank.
        let mut t = Test::new(17);
        let mut x = t.input("x", DType::I64, "2,2");
        for _ in 0..64 {
            x = t.op1(NewOp::new("Gather").input(x).input(x));
        }
        assert_eq!(t.infer().show(x), "int64?");
    }
}

//! What an operator computes with: a constant, or what constant operators make of one.

use paring_ir::analysis::Constants;
use paring_ir::{Constant, DType, Op, ValueId};
use xxhash_rust::xxh3::xxh3_64;

use super::Quantization;
use super::elements::{MOST_ELEMENTS, Numbers};
use super::net::{From, Net};

/// What stands for one tensor: a constant, and what is done to it before it is used.
#[derive(Clone, Debug, Default)]
pub(super) struct Carrier {
    /// The constant that holds most of the elements.
    pub(super) main: Option<ValueId>,
    /// Others: scales, zero points, codebooks, shapes.
    pub(super) parts: Vec<ValueId>,
    /// The operators in between, by place, from the constant on.
    pub(super) through: Vec<usize>,
    /// How it is quantized.
    pub(super) quantization: Option<Quantization>,
}

impl Carrier {
    pub(super) fn plain(root: ValueId) -> Carrier {
        Carrier {
            main: Some(root),
            ..Carrier::default()
        }
    }
}

/// So many operators are followed between a constant and its use.
const STEPS: usize = 8;

/// What carries the value that comes from there; `None` when it isn't made of constants by
/// operators that are known here.
pub(super) fn carrier(net: &Net<'_>, from: From) -> Option<Carrier> {
    follow(net, from, STEPS)
}

fn follow(net: &Net<'_>, from: From, steps: usize) -> Option<Carrier> {
    let place = match from {
        From::Constant(root) => return Some(Carrier::plain(root)),
        From::Op(place, 0) if steps > 0 => place,
        _ => return None,
    };
    let op = net.op(place);
    if !op.domain().is_empty() {
        return None;
    }
    let constant = |slot| match net.input(place, slot) {
        From::Constant(root) => Some(root),
        _ => None,
    };
    let mut out = match &**op.op_type() {
        "DequantizeLinear" => {
            let mut c = follow(net, net.input(place, 0), steps - 1)?;
            let scale = constant(1)?;
            c.quantization = quantization(net, op, scale, constant(2));
            c.parts.push(scale);
            c.parts.extend(constant(2));
            c
        }
        "QuantizeLinear" => {
            let mut c = follow(net, net.input(place, 0), steps - 1)?;
            c.parts.push(constant(1)?);
            c.parts.extend(constant(2));
            c
        }
        "Identity" | "Cast" | "Transpose" | "Flatten" => {
            follow(net, net.input(place, 0), steps - 1)?
        }
        "Reshape" | "Squeeze" | "Unsqueeze" => {
            let mut c = follow(net, net.input(place, 0), steps - 1)?;
            if net.input(place, 1) != From::Absent {
                c.parts.push(constant(1)?);
            }
            c
        }
        "Slice" => {
            let mut c = follow(net, net.input(place, 0), steps - 1)?;
            for slot in 1..net.inputs[place].len() {
                if net.input(place, slot) != From::Absent {
                    c.parts.push(constant(slot)?);
                }
            }
            c
        }
        "Concat" => {
            let parts = 0..net.inputs[place].len();
            let mut parts = parts.map(|slot| follow(net, net.input(place, slot), steps - 1));
            let mut c = parts.next()??;
            for part in parts {
                c = both(net, c, part?);
            }
            c
        }
        // A codebook and codes, or codes and scales.
        "Gather" | "Mul" | "Div" | "Add" | "Sub" => {
            let x = follow(net, net.input(place, 0), steps - 1)?;
            let y = follow(net, net.input(place, 1), steps - 1)?;
            both(net, x, y)
        }
        _ => return None,
    };
    out.through.push(place);
    Some(out)
}

/// What two carriers together carry: the larger constant is the main one.
fn both(net: &Net<'_>, x: Carrier, y: Carrier) -> Carrier {
    let size = |c: &Carrier| {
        let constant = c.main.and_then(|v| net.constant(v));
        constant.map_or(0, |c| c.dims().iter().product::<usize>())
    };
    let (mut large, small) = if size(&x) >= size(&y) { (x, y) } else { (y, x) };
    for part in small.main.into_iter().chain(small.parts) {
        if large.main != Some(part) && !large.parts.contains(&part) {
            large.parts.push(part);
        }
    }
    for place in small.through {
        if !large.through.contains(&place) {
            large.through.push(place);
        }
    }
    large
}

fn quantization(
    net: &Net<'_>,
    op: &Op,
    scale: ValueId,
    zero_point: Option<ValueId>,
) -> Option<Quantization> {
    let mut out = scales_text(net.constants, scale, zero_point)?;
    out.axis = (out.scales > 1).then(|| op.int_or("axis", 1));
    out.block_size = op.int("block_size").filter(|&b| b > 0);
    Some(out)
}

fn scales_text(
    constants: &Constants,
    scale: ValueId,
    zero_point: Option<ValueId>,
) -> Option<Quantization> {
    let values = constants.get(scale)?.dense()?.to_f64s()?;
    let zeros = zero_point
        .and_then(|z| constants.get(z)?.dense()?.to_i64s())
        .unwrap_or_default();
    let fold = |f: fn(f64, f64) -> f64, start| values.iter().copied().fold(start, f);
    Some(Quantization {
        scale: (
            fold(f64::min, f64::INFINITY),
            fold(f64::max, f64::NEG_INFINITY),
        ),
        scales: values.len(),
        zero_point: (
            zeros.iter().copied().min().unwrap_or(0),
            zeros.iter().copied().max().unwrap_or(0),
        ),
        axis: None,
        block_size: None,
    })
}

/// How the codes that an integer operator takes are meant: constants, and the axis of the scales.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codes {
    pub(super) scale: ValueId,
    pub(super) zero_point: Option<ValueId>,
    pub(super) axis: usize,
}

/// What the codes in a slot of an integer operator stand for. `QLinear` operators take the scale
/// themselves; the result of the others is converted and multiplied by the scales.
pub(super) fn codes(net: &Net<'_>, place: usize, slot: usize) -> Option<Codes> {
    let op = net.op(place);
    if !op.domain().is_empty() {
        return None;
    }
    let constant = |slot| match net.input(place, slot) {
        From::Constant(root) => Some(root),
        _ => None,
    };
    let rank = match net.input(place, slot) {
        From::Constant(root) => net.constant(root)?.dims().len(),
        _ => return None,
    };
    let last = rank.checked_sub(1)?;
    let (scale, zero_point, axis) = match (&**op.op_type(), slot) {
        ("QLinearConv", 3) => (constant(4)?, constant(5), 0),
        ("QLinearMatMul", 3) => (constant(4)?, constant(5), last),
        ("MatMulInteger", 1) => (scale_after(net, place)?, constant(3), last),
        ("ConvInteger", 1) => (scale_after(net, place)?, constant(3), 0),
        // Rows are picked from a table of codes first.
        ("Gather", 0) => {
            let [only] = net.users[place].as_slice() else {
                return None;
            };
            let after = |slot| match net.input(only.user, slot) {
                From::Constant(root) => Some(root),
                _ => None,
            };
            let scale = after(1)?;
            let single = net.constant(scale)?.dims().iter().product::<usize>() == 1;
            if !net.op(only.user).is("DequantizeLinear") || only.at != 0 || !single {
                return None;
            }
            (scale, after(2), last)
        }
        _ => return None,
    };
    Some(Codes {
        scale,
        zero_point,
        axis,
    })
}

/// The constant that the result of an operator is multiplied by, directly or through a product
/// with the scale of the data.
fn scale_after(net: &Net<'_>, place: usize) -> Option<ValueId> {
    let mut at = place;
    for _ in 0..STEPS {
        let [only] = net.users[at].as_slice() else {
            return None;
        };
        at = only.user;
        let op = net.op(at);
        if op.is("Mul") {
            return match net.input(at, 1 - only.at.min(1)) {
                From::Constant(root) => Some(root),
                From::Op(p, _) if net.op(p).is("Mul") => {
                    net.inputs[p].iter().find_map(|from| match from {
                        From::Constant(root) => Some(*root),
                        _ => None,
                    })
                }
                _ => None,
            };
        }
        if !op.is("Cast") {
            return None;
        }
    }
    None
}

/// The scales and zero points of codes.
pub(super) fn quantization_of(constants: &Constants, codes: &Codes) -> Option<Quantization> {
    let mut out = scales_text(constants, codes.scale, codes.zero_point)?;
    out.axis = (out.scales > 1).then_some(codes.axis as i64);
    Some(out)
}

/// What codes stand for.
pub(super) fn decode(constants: &Constants, x: Numbers, codes: &Codes) -> Option<Numbers> {
    let scale = Numbers::of(constants.get(codes.scale)?)?;
    let zero = match codes.zero_point {
        Some(z) => Some(Numbers::of(constants.get(z)?)?),
        None => None,
    };
    dequantize(x, &scale, zero.as_ref(), codes.axis, 0)
}

/// The elements that the operators in between make of the constant.
pub(super) fn evaluate(net: &Net<'_>, from: From) -> Option<Numbers> {
    value(net, from, STEPS)
}

fn value(net: &Net<'_>, from: From, steps: usize) -> Option<Numbers> {
    let place = match from {
        From::Constant(root) => return Numbers::of(net.constant(root)?),
        From::Op(place, 0) if steps > 0 => place,
        _ => return None,
    };
    let op = net.op(place);
    let input = |slot| value(net, net.input(place, slot), steps - 1);
    match &**op.op_type() {
        "Identity" => input(0),
        "Cast" => cast(input(0)?, op),
        "DequantizeLinear" => {
            let zero = match net.input(place, 2) {
                From::Absent => None,
                _ => Some(input(2)?),
            };
            let x = input(0)?;
            let axis = axis_of(op, &x)?;
            let block = usize::try_from(op.int("block_size").unwrap_or(0)).ok()?;
            dequantize(x, &input(1)?, zero.as_ref(), axis, block)
        }
        "QuantizeLinear" => {
            let zero = match net.input(place, 2) {
                From::Constant(root) => net.constant(root)?.dense()?.clone(),
                _ => paring_ir::Tensor::scalar(0u8),
            };
            quantize(input(0)?, &input(1)?, &zero)
        }
        "Transpose" => {
            let x = input(0)?;
            let perm: Option<Vec<usize>> = match op.ints("perm") {
                Some(p) => p.iter().map(|&p| usize::try_from(p).ok()).collect(),
                None => Some((0..x.dims.len()).rev().collect()),
            };
            x.transpose(&perm?)
        }
        "Reshape" => {
            let (x, shape) = (input(0)?, input(1)?);
            let dims = target(&x.dims, &shape.values, op.int_or("allowzero", 0) != 0)?;
            x.reshape(dims)
        }
        "Flatten" | "Squeeze" | "Unsqueeze" => {
            let axes = match (op.ints("axes"), net.input(place, 1)) {
                (Some(axes), _) => Some(axes.to_vec()),
                (None, From::Absent) => None,
                (None, _) => Some(input(1)?.values.iter().map(|&a| a as i64).collect()),
            };
            let x = input(0)?;
            let dims = match &**op.op_type() {
                "Flatten" => flattened(&x.dims, op.int_or("axis", 1)),
                "Squeeze" => squeezed(&x.dims, axes),
                _ => unsqueezed(&x.dims, &axes?),
            };
            x.reshape(dims?)
        }
        "Slice" => {
            let list = |slot| match net.input(place, slot) {
                From::Absent => Some(None),
                _ => input(slot).map(|n| Some(n.values)),
            };
            slice(input(0)?, &list(1)??, &list(2)??, list(3)?, list(4)?)
        }
        "Concat" => {
            let parts = (0..net.inputs[place].len()).map(input);
            concat(&parts.collect::<Option<Vec<_>>>()?, op.int("axis")?)
        }
        "Mul" => input(0)?.combine(&input(1)?, |x, y| x * y),
        "Div" => input(0)?.combine(&input(1)?, |x, y| x / y),
        "Add" => input(0)?.combine(&input(1)?, |x, y| x + y),
        "Sub" => input(0)?.combine(&input(1)?, |x, y| x - y),
        "Gather" => gather(&input(0)?, &input(1)?, op.int_or("axis", 0)),
        _ => None,
    }
}

fn cast(mut x: Numbers, op: &Op) -> Option<Numbers> {
    let to = DType::from_onnx(i32::try_from(op.int("to")?).ok()?)?;
    match to {
        DType::F32 => x.values.iter_mut().for_each(|v| *v = f64::from(*v as f32)),
        DType::F64 | DType::F16 | DType::BF16 => {}
        _ if to.is_integer() => x.values.iter_mut().for_each(|v| *v = v.trunc()),
        _ => return None,
    }
    Some(x)
}

/// `(x - zero point) * scale`, by tensor, by axis or by block (ONNX, `DequantizeLinear`).
fn dequantize(
    mut x: Numbers,
    scale: &Numbers,
    zero: Option<&Numbers>,
    axis: usize,
    block: usize,
) -> Option<Numbers> {
    let zero_at = |i: usize| match zero {
        Some(z) if z.values.len() == 1 => z.values.first().copied(),
        Some(z) => z.values.get(i).copied(),
        None => Some(0.0),
    };
    if scale.values.len() == 1 {
        let (s, z) = (*scale.values.first()?, zero_at(0)?);
        x.values.iter_mut().for_each(|v| *v = (*v - z) * s);
        return Some(x);
    }
    let (_, size, inner) = x.split(axis)?;
    // How many scales stand along the axis, and whether the other axes have scales of their own.
    let (steps, blocked) = match block {
        0 => (size, false),
        b => (size.div_ceil(b), true),
    };
    for (i, v) in x.values.iter_mut().enumerate() {
        let along = i.checked_div(inner)? % size;
        let at = if blocked {
            let outer = i / inner / size;
            (outer * steps + along / block) * inner + i % inner
        } else {
            along
        };
        *v = (*v - zero_at(at)?) * scale.values.get(at)?;
    }
    Some(x)
}

/// The axis of the scales of an operator.
fn axis_of(op: &Op, x: &Numbers) -> Option<usize> {
    let rank = i64::try_from(x.dims.len()).ok()?;
    let axis = op.int_or("axis", 1);
    // Of a tensor without that axis there is one scale.
    usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
}

/// The codes of a tensor with one scale (ONNX, `QuantizeLinear`).
fn quantize(mut x: Numbers, scale: &Numbers, zero: &paring_ir::Tensor) -> Option<Numbers> {
    let bits = i32::try_from(zero.dtype().bits()?).ok()?;
    let signed = matches!(zero.dtype(), DType::I8 | DType::I16 | DType::I4 | DType::I2);
    let all = 2f64.powi(bits);
    let (low, high) = if signed {
        (-all / 2.0, all / 2.0 - 1.0)
    } else {
        (0.0, all - 1.0)
    };
    let ([s], Some(z)) = (scale.values.as_slice(), zero.single_f64()) else {
        return None;
    };
    for v in &mut x.values {
        *v = ((*v / s).round_ties_even() + z).clamp(low, high);
    }
    Some(x)
}

fn target(dims: &[usize], shape: &[f64], allow_zero: bool) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    let mut open = None;
    for (i, &d) in shape.iter().enumerate() {
        if d == -1.0 {
            open = Some(i);
            out.push(1);
        } else if d == 0.0 && !allow_zero {
            out.push(*dims.get(i)?);
        } else if d >= 0.0 && d <= MOST_ELEMENTS as f64 {
            out.push(d as usize);
        } else {
            return None;
        }
    }
    if let Some(i) = open {
        let count: usize = dims.iter().product();
        let rest = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        out[i] = count.checked_div(rest)?;
    }
    Some(out)
}

/// The position of an axis that may be counted from the end.
fn axis_at(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    (axis < rank).then(|| usize::try_from(axis).ok()).flatten()
}

fn flattened(dims: &[usize], axis: i64) -> Option<Vec<usize>> {
    // The axis behind the last one is allowed here.
    let at = match usize::try_from(axis) {
        Ok(at) if at == dims.len() => at,
        _ => axis_at(axis, dims.len())?,
    };
    let (rows, columns) = dims.split_at(at);
    Some(vec![rows.iter().product(), columns.iter().product()])
}

fn squeezed(dims: &[usize], axes: Option<Vec<i64>>) -> Option<Vec<usize>> {
    let gone: Vec<usize> = match axes {
        Some(axes) => {
            let places = axes.iter().map(|&a| axis_at(a, dims.len()));
            places.collect::<Option<_>>()?
        }
        None => (0..dims.len()).filter(|&i| dims[i] == 1).collect(),
    };
    let kept = dims.iter().enumerate().filter(|(i, _)| !gone.contains(i));
    Some(kept.map(|(_, &d)| d).collect())
}

fn unsqueezed(dims: &[usize], axes: &[i64]) -> Option<Vec<usize>> {
    let rank = dims.len().checked_add(axes.len())?;
    let new: Option<Vec<usize>> = axes.iter().map(|&a| axis_at(a, rank)).collect();
    let new = new?;
    let mut rest = dims.iter();
    (0..rank)
        .map(|i| match new.contains(&i) {
            true => Some(1),
            false => rest.next().copied(),
        })
        .collect()
}

/// Parts of axes (ONNX, `Slice`).
fn slice(
    mut x: Numbers,
    starts: &[f64],
    ends: &[f64],
    axes: Option<Vec<f64>>,
    steps: Option<Vec<f64>>,
) -> Option<Numbers> {
    for (i, (&start, &end)) in starts.iter().zip(ends).enumerate() {
        let axis = match &axes {
            Some(axes) => *axes.get(i)? as i64,
            None => i64::try_from(i).ok()?,
        };
        let axis = axis_at(axis, x.dims.len())?;
        let size = *x.dims.get(axis)? as f64;
        let step = match &steps {
            Some(steps) => *steps.get(i)?,
            None => 1.0,
        };
        let at = |p: f64| if p < 0.0 { p + size } else { p };
        let kept: Vec<usize> = if step > 0.0 {
            let (from, to) = (at(start).clamp(0.0, size), at(end).clamp(0.0, size));
            let all = from as usize..to as usize;
            all.step_by((step as usize).max(1)).collect()
        } else if step == -1.0 {
            let from = at(start).clamp(-1.0, size - 1.0) + 1.0;
            let to = at(end).clamp(-1.0, size - 1.0) + 1.0;
            (to as usize..from as usize).rev().collect()
        } else {
            return None;
        };
        x = x.gather(axis, &kept)?;
    }
    Some(x)
}

fn concat(parts: &[Numbers], axis: i64) -> Option<Numbers> {
    let first = parts.first()?;
    let axis = axis_at(axis, first.dims.len())?;
    let mut dims = first.dims.clone();
    *dims.get_mut(axis)? = parts
        .iter()
        .map(|p| p.dims.get(axis).copied())
        .sum::<Option<usize>>()?;
    let fits = |p: &Numbers| {
        let others = p.dims.iter().zip(&dims).enumerate();
        p.dims.len() == dims.len() && others.into_iter().all(|(i, (a, b))| i == axis || a == b)
    };
    let outer: usize = dims.get(..axis)?.iter().product();
    if !parts.iter().all(fits) || dims.iter().product::<usize>() > MOST_ELEMENTS {
        return None;
    }
    let mut values = Vec::new();
    for o in 0..outer {
        for p in parts {
            let width = p.values.len().checked_div(outer)?;
            values.extend_from_slice(p.values.get(o * width..(o + 1) * width)?);
        }
    }
    Some(Numbers { dims, values })
}

fn gather(data: &Numbers, indices: &Numbers, axis: i64) -> Option<Numbers> {
    let rank = i64::try_from(data.dims.len()).ok()?;
    let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
    let size = *data.dims.get(axis)?;
    let places: Option<Vec<usize>> = indices
        .values
        .iter()
        .map(|&i| {
            let i = if i < 0.0 { i + size as f64 } else { i };
            (i >= 0.0 && i < size as f64).then_some(i as usize)
        })
        .collect();
    let flat = data.gather(axis, &places?)?;
    let mut dims = data.dims[..axis].to_vec();
    dims.extend(&indices.dims);
    dims.extend(&data.dims[axis + 1..]);
    flat.reshape(dims)
}

/// The indices of each axis of `a` that `b` keeps, found by comparing elements: `None` where `b`
/// is no such part of `a`. Only axes that differ in size are listed.
pub(super) fn find_kept(a: &Constant, b: &Constant) -> Option<Vec<(usize, Vec<usize>)>> {
    let (a, b) = (a.dense()?, b.dense()?);
    let (x, y) = (a.dims(), b.dims());
    if x.len() != y.len() || a.dtype() != b.dtype() || y.iter().zip(x).any(|(y, x)| y > x) {
        return None;
    }
    let axes: Vec<usize> = (0..x.len()).filter(|&i| x[i] != y[i]).collect();
    let width = usize::try_from(a.dtype().bits()? / 8)
        .ok()
        .filter(|&w| w > 0)?;
    match *axes.as_slice() {
        [axis] => {
            let keys = |t: &paring_ir::Tensor| line_keys(t.bytes(), t.dims(), axis, width);
            let kept = subsequence(&keys(a)?, &keys(b)?)?;
            Some(vec![(axis, kept)])
        }
        [first, second] => {
            let (p, q) = find_two(a, b, first, second, width)?;
            Some(vec![(first, p), (second, q)])
        }
        _ => None,
    }
}

/// A hash of each slice across an axis.
fn line_keys(bytes: &[u8], dims: &[usize], axis: usize, width: usize) -> Option<Vec<u64>> {
    let size = *dims.get(axis)?;
    let outer: usize = dims[..axis].iter().product();
    let inner = dims[axis + 1..].iter().product::<usize>() * width;
    let mut buffer = Vec::new();
    (0..size)
        .map(|i| {
            buffer.clear();
            for o in 0..outer {
                let start = (o * size + i) * inner;
                buffer.extend_from_slice(bytes.get(start..start + inner)?);
            }
            Some(xxh3_64(&buffer))
        })
        .collect()
}

/// Where the elements of `b` stand in `a`, in order.
fn subsequence(a: &[u64], b: &[u64]) -> Option<Vec<usize>> {
    let mut rest = a.iter().enumerate();
    b.iter()
        .map(|y| rest.find(|(_, x)| *x == y).map(|(i, _)| i))
        .collect()
}

/// The kept indices of two axes of which `second` comes later.
fn find_two(
    a: &paring_ir::Tensor,
    b: &paring_ir::Tensor,
    first: usize,
    second: usize,
    width: usize,
) -> Option<(Vec<usize>, Vec<usize>)> {
    let cells = |t: &paring_ir::Tensor| -> Option<Vec<Vec<u64>>> {
        let d = t.dims();
        (0..*d.get(first)?)
            .map(|i| {
                let keys =
                    (0..*d.get(second)?).map(|j| cell_key(t, (first, i), (second, j), width));
                keys.collect()
            })
            .collect()
    };
    let (x, y) = (cells(a)?, cells(b)?);
    let head = y.first()?;
    // Rows of a pruned tensor may be alike, so several rows that could be the first are tried.
    const TRIES: usize = 8;
    let starts = x.iter().enumerate();
    let starts = starts.filter_map(|(start, row)| Some((start, subsequence(row, head)?)));
    for (start, columns) in starts.take(TRIES) {
        let mut rows = vec![start];
        let mut from = start + 1;
        for line in &y[1..] {
            let fits = |r: &Vec<u64>| columns.iter().zip(line).all(|(&c, k)| r.get(c) == Some(k));
            let Some(at) = x.get(from..)?.iter().position(fits) else {
                break;
            };
            rows.push(from + at);
            from += at + 1;
        }
        if rows.len() == y.len() {
            return Some((rows, columns));
        }
    }
    None
}

/// A hash of the elements at one index of two axes.
fn cell_key(
    t: &paring_ir::Tensor,
    (first, i): (usize, usize),
    (second, j): (usize, usize),
    width: usize,
) -> Option<u64> {
    let d = t.dims();
    let outer: usize = d[..first].iter().product();
    let middle: usize = d[first + 1..second].iter().product();
    let inner = d[second + 1..].iter().product::<usize>() * width;
    let mut buffer = Vec::new();
    for o in 0..outer {
        for m in 0..middle {
            let start = (((o * d[first] + i) * middle + m) * d[second] + j) * inner;
            buffer.extend_from_slice(t.bytes().get(start..start + inner)?);
        }
    }
    Some(xxh3_64(&buffer))
}

/// The elements of a few constants as text.
pub(super) fn short_text(constants: &Constants, root: ValueId) -> Option<String> {
    const MOST: usize = 16;
    let t = constants.get(root)?.dense()?;
    if t.len() > MOST {
        return None;
    }
    if let Some(strings) = t.strings() {
        let texts: Vec<String> = strings
            .iter()
            .map(|s| format!("{:?}", String::from_utf8_lossy(s)))
            .collect();
        return Some(format!("[{}]", texts.join(", ")));
    }
    let texts: Vec<String> = if t.dtype().is_float() {
        let values = t.to_f32s()?;
        values.iter().map(|v| format!("{v}")).collect()
    } else {
        t.to_i64s()?.iter().map(ToString::to_string).collect()
    };
    Some(match (t.rank(), texts.as_slice()) {
        (0, [one]) => one.clone(),
        _ => format!("[{}]", texts.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use paring_ir::Tensor;

    fn iota(dims: &[usize]) -> Constant {
        let n: usize = dims.iter().product();
        let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.5 + 1.0).collect();
        Constant::Dense(Tensor::from_vec(dims.to_vec(), values).unwrap())
    }

    fn cut(c: &Constant, axis: usize, kept: &[usize]) -> Constant {
        let n = Numbers::of(c).unwrap().gather(axis, kept).unwrap();
        let values: Vec<f32> = n.values.iter().map(|&v| v as f32).collect();
        Constant::Dense(Tensor::from_vec(n.dims, values).unwrap())
    }

    #[test]
    fn kept_channels_are_found() {
        let w = iota(&[6, 4, 3, 3]);
        let rows = cut(&w, 0, &[0, 2, 5]);
        assert_eq!(find_kept(&w, &rows), Some(vec![(0, vec![0, 2, 5])]));
        let both = cut(&rows, 1, &[1, 3]);
        let found = find_kept(&w, &both).unwrap();
        assert_eq!(found, [(0, vec![0, 2, 5]), (1, vec![1, 3])]);
        // Refitted elements are nowhere in the first tensor.
        let other = cut(&iota(&[7, 4, 3, 3]), 0, &[6, 5, 4]);
        assert_eq!(find_kept(&w, &other), None);
        assert_eq!(find_kept(&rows, &w), None);
    }

    #[test]
    fn parts_are_cut_and_joined() {
        let n = |dims: &[usize], values: &[f64]| Numbers {
            dims: dims.to_vec(),
            values: values.to_vec(),
        };
        let x = n(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let cut = |starts: &[f64], ends: &[f64], axes: Option<&[f64]>, steps: Option<&[f64]>| {
            let list = |l: &[f64]| l.to_vec();
            slice(x.clone(), starts, ends, axes.map(list), steps.map(list))
        };
        let right = cut(&[1.0], &[i64::MAX as f64], Some(&[-1.0]), None).unwrap();
        assert_eq!(right, n(&[2, 2], &[1., 2., 4., 5.]));
        let turned = cut(&[-1.0], &[-9.0], Some(&[0.0]), Some(&[-1.0])).unwrap();
        assert_eq!(turned, n(&[2, 3], &[3., 4., 5., 0., 1., 2.]));
        assert_eq!(cut(&[0.0], &[2.0], Some(&[7.0]), None), None);
        let left = cut(&[0.0], &[1.0], Some(&[1.0]), None).unwrap();
        assert_eq!(concat(&[left, right], 1).unwrap(), x);
        assert_eq!(concat(&[x.clone(), n(&[1, 3], &[0.; 3])], 1), None);
        assert_eq!(flattened(&[2, 3, 4], 2), Some(vec![6, 4]));
        assert_eq!(squeezed(&[1, 3, 1], Some(vec![-1])), Some(vec![1, 3]));
        assert_eq!(squeezed(&[1, 3, 1], None), Some(vec![3]));
        assert_eq!(unsqueezed(&[3], &[0, -1]), Some(vec![1, 3, 1]));
        assert_eq!(unsqueezed(&[3], &[5]), None);
    }

    #[test]
    fn open_sizes_of_a_target_are_worked_out() {
        assert_eq!(
            target(&[2, 6], &[0.0, -1.0, 3.0], false),
            Some(vec![2, 2, 3])
        );
        assert_eq!(target(&[2, 6], &[-3.0], false), None);
    }
}

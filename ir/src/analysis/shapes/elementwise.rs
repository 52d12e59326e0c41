//! Element by element: unary, binary and variadic operators, casts, and their contents.

use half::{bf16, f16};

use super::cx::{Cx, Out, Outs, filled, many, one, typed};
use super::dim::SymDim;
use super::fact::{Contents, MAX_FLOATS, MAX_INTS, SymDims};
use crate::tensor::DType;

// ---- shapes ----

/// The shape of the first input under its element type.
pub(super) fn unary(cx: &Cx<'_, '_>) -> Outs {
    one(cx.like(0))
}

/// The shape of the first input, of booleans.
pub(super) fn test(cx: &Cx<'_, '_>) -> Outs {
    one(cx.like_as(0, Some(DType::Bool)))
}

/// The value itself, contents included.
pub(super) fn identity(cx: &Cx<'_, '_>) -> Outs {
    one(cx.fact(0).cloned())
}

/// The shape that two shapes broadcast to.
pub(super) fn broadcast(cx: &Cx<'_, '_>, a: &SymDims, b: &SymDims) -> Option<SymDims> {
    if a == b {
        return Some(a.clone());
    }
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let mut dims = long.clone();
    let skip = long.len() - short.len();
    for (d, s) in dims.iter_mut().skip(skip).zip(short) {
        *d = match d.broadcast(s) {
            Some(d) => d,
            None if d.known().is_some() && s.known().is_some() => {
                return cx.refuse(format!("{} and {} don't broadcast", show(a), show(b)));
            }
            None => cx.fresh(),
        };
    }
    Some(dims)
}

/// A shape for messages.
pub(super) fn show(dims: &[SymDim]) -> String {
    let all: Vec<String> = dims.iter().map(SymDim::to_string).collect();
    format!("[{}]", all.join(","))
}

/// The shape that all inputs broadcast to.
pub(super) fn broadcast_inputs(cx: &Cx<'_, '_>, slots: std::ops::Range<usize>) -> Option<SymDims> {
    let mut all: Option<SymDims> = None;
    for slot in slots {
        let dims = cx.dims(slot)?;
        all = Some(match all {
            Some(all) => broadcast(cx, &all, dims)?,
            None => dims.clone(),
        });
    }
    all
}

fn first_dtype(cx: &Cx<'_, '_>, slots: std::ops::Range<usize>) -> Option<DType> {
    slots.into_iter().find_map(|slot| cx.dtype(slot))
}

/// Two operands of one type, whose contents are not followed.
pub(super) fn binary(cx: &Cx<'_, '_>) -> Outs {
    one(cx.shared(first_dtype(cx, 0..2), broadcast_inputs(cx, 0..2)))
}

/// Any number of operands of one type.
pub(super) fn variadic(cx: &Cx<'_, '_>) -> Outs {
    let slots = 0..cx.inputs.len();
    one(cx.shared(first_dtype(cx, slots.clone()), broadcast_inputs(cx, slots)))
}

// ---- contents ----

/// An element of small contents.
#[derive(Clone)]
pub(super) enum Element {
    Int(SymDim),
    Float(f64),
}

impl Element {
    /// A whole number or expression.
    fn whole(&self) -> Option<SymDim> {
        match self {
            Element::Int(d) => Some(d.clone()),
            // Above 2^53 a float no longer tells whole numbers apart.
            Element::Float(v) if v.fract() == 0.0 && v.abs() <= 9e15 => Some((*v as i64).into()),
            Element::Float(_) => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Element::Float(v) => Some(*v),
            Element::Int(_) => None,
        }
    }
}

/// The elements of an input whose contents are known.
pub(super) fn elements(cx: &Cx<'_, '_>, slot: usize) -> Option<Vec<Element>> {
    let dtype = cx.dtype(slot)?;
    if dtype.is_float() {
        if let Some(Contents::Exprs(v)) = cx.contents(slot) {
            return Some(v.iter().cloned().map(Element::Int).collect());
        }
        let all = cx.floats(slot)?;
        return Some(all.into_iter().map(Element::Float).collect());
    }
    let all = cx.exprs(slot)?;
    Some(all.into_iter().map(Element::Int).collect())
}

fn round_to(dtype: DType, v: f64) -> Option<f64> {
    Some(match dtype {
        DType::F64 => v,
        DType::F32 => f64::from(v as f32),
        DType::F16 => f64::from(f16::from_f64(v)),
        DType::BF16 => f64::from(bf16::from_f64(v)),
        _ => return None,
    })
}

/// Contents of an element type. Elements that are not known become numbers that nothing is
/// known about, unless none is known. What an integer type can't hold is not known.
pub(super) fn contents(
    cx: &Cx<'_, '_>,
    dtype: DType,
    all: Vec<Option<Element>>,
) -> Option<Contents> {
    if dtype.is_float() {
        let all: Vec<Element> = all.into_iter().collect::<Option<_>>()?;
        if all.len() > MAX_FLOATS {
            return None;
        }
        let floats: Option<Vec<f64>> = all
            .iter()
            .map(|e| match e {
                Element::Float(v) => round_to(dtype, *v),
                Element::Int(d) => round_to(dtype, d.known()? as f64),
            })
            .collect();
        if let Some(floats) = floats {
            return Some(Contents::Floats(floats.into()));
        }
        let whole: Option<Vec<SymDim>> = all.iter().map(Element::whole).collect();
        return Some(Contents::Exprs(whole?.into()));
    }
    if !matches!(dtype, DType::I64 | DType::I32 | DType::Bool) || all.len() > MAX_INTS {
        return None;
    }
    let fits = |d: &SymDim| match (dtype, d.known()) {
        (DType::I32, Some(v)) => i32::try_from(v).is_ok(),
        _ => true,
    };
    let mut any = all.is_empty();
    let all = all
        .into_iter()
        .map(|e| match e.as_ref().and_then(Element::whole).filter(fits) {
            Some(d) => {
                any = true;
                d
            }
            None => cx.number(),
        })
        .collect();
    any.then(|| Contents::from_exprs(all))
}

/// Known dimensions with not too many elements.
pub(super) fn small_dims(dims: &SymDims) -> Option<Vec<usize>> {
    let dims: Option<Vec<usize>> = dims
        .iter()
        .map(|d| usize::try_from(d.known()?).ok())
        .collect();
    let dims = dims?;
    let count = crate::tensor::element_count(&dims)?;
    (count <= MAX_INTS).then_some(dims)
}

/// The elements of a small tensor broadcast to larger dimensions.
pub(super) fn spread<T: Clone>(all: &[T], from: &[usize], to: &[usize]) -> Option<Vec<T>> {
    if from == to {
        return Some(all.to_vec());
    }
    let skip = to.len().checked_sub(from.len())?;
    let count: usize = crate::tensor::element_count(to)?;
    let mut out = Vec::with_capacity(count);
    for i in 0..count {
        let (mut rest, mut offset, mut stride) = (i, 0usize, 1usize);
        for (axis, &n) in to.iter().enumerate().rev() {
            let at = rest.checked_rem(n)?;
            rest = rest.checked_div(n)?;
            let Some(axis) = axis.checked_sub(skip) else {
                continue;
            };
            let size = *from.get(axis)?;
            if size != 1 {
                offset = offset.checked_add(at.checked_mul(stride)?)?;
            }
            stride = stride.checked_mul(size)?;
        }
        out.push(all.get(offset)?.clone());
    }
    Some(out)
}

/// The operands of a broadcasting operator, element by element.
fn pairs(cx: &Cx<'_, '_>, dims: &SymDims) -> Option<Vec<(Element, Element)>> {
    let (a, b) = (elements(cx, 0)?, elements(cx, 1)?);
    let to = small_dims(dims)?;
    let a = spread(&a, &small_dims(cx.dims(0)?)?, &to)?;
    let b = spread(&b, &small_dims(cx.dims(1)?)?, &to)?;
    Some(a.into_iter().zip(b).collect())
}

/// Whether it is worth looking at contents: only where they are small and known.
fn has_contents(cx: &Cx<'_, '_>, slots: std::ops::Range<usize>) -> bool {
    let mut any = false;
    for slot in slots {
        match cx.fact(slot) {
            Some(f) if f.contents.is_some() => any = true,
            Some(f) if f.dtype.is_some_and(DType::is_float) => {}
            _ => return false,
        }
    }
    any
}

/// Two operands of one type; numbers are worked out by `ints` or `floats`.
pub(super) fn arithmetic(
    cx: &Cx<'_, '_>,
    ints: fn(&SymDim, &SymDim) -> Option<SymDim>,
    floats: fn(f64, f64) -> f64,
) -> Outs {
    let dims = broadcast_inputs(cx, 0..2);
    let dtype = first_dtype(cx, 0..2);
    if !has_contents(cx, 0..2) {
        return one(cx.shared(dtype, dims));
    }
    let known = dtype.zip(dims.as_ref()).and_then(|(dtype, dims)| {
        let all = pairs(cx, dims)?
            .into_iter()
            .map(|(a, b)| match (a.float(), b.float()) {
                (Some(a), Some(b)) => Some(Element::Float(floats(a, b))),
                _ => ints(&a.whole()?, &b.whole()?).map(Element::Int),
            })
            .collect();
        contents(cx, dtype, all)
    });
    one(filled(dtype, dims, known))
}

/// The quotient as ONNX has it: towards zero for integers. Floats that stem from sizes divide
/// only without remainder.
pub(super) fn div(cx: &Cx<'_, '_>) -> Outs {
    if cx.dtype(0).is_some_and(DType::is_float) {
        return arithmetic(
            cx,
            |a, b| match b.known() {
                Some(0) => None,
                _ => a.div_exact(b),
            },
            |a, b| a / b,
        );
    }
    arithmetic(cx, SymDim::div_trunc, |a, b| a / b)
}

/// The remainder: with the divisor's sign, or with `fmod` the dividend's.
pub(super) fn modulo(cx: &Cx<'_, '_>) -> Outs {
    if cx.flag("fmod") {
        return arithmetic(
            cx,
            |a, b| match (a.known(), b.known()) {
                (Some(a), Some(b)) => a.checked_rem(b).map(SymDim::from),
                _ => None,
            },
            |a, b| a % b,
        );
    }
    arithmetic(
        cx,
        |a, b| match b.known() {
            Some(0) => None,
            _ => a.rem_floor(b),
        },
        |_, _| f64::NAN,
    )
}

/// The power, of the first operand's type.
pub(super) fn pow(cx: &Cx<'_, '_>) -> Outs {
    let dims = broadcast_inputs(cx, 0..2);
    let dtype = cx.dtype(0);
    if !has_contents(cx, 0..2) || dtype != cx.dtype(1) {
        return one(cx.shared(dtype, dims));
    }
    arithmetic(
        cx,
        |a, b| {
            let b = u32::try_from(b.known()?).ok()?;
            Some(a.known()?.checked_pow(b)?.into())
        },
        f64::powf,
    )
}

/// A comparison.
pub(super) fn compare(
    cx: &Cx<'_, '_>,
    ints: fn(&SymDim, &SymDim) -> Option<bool>,
    floats: fn(f64, f64) -> bool,
) -> Outs {
    let dims = broadcast_inputs(cx, 0..2);
    if !has_contents(cx, 0..2) {
        return one(cx.shared(Some(DType::Bool), dims));
    }
    let known = dims.as_ref().and_then(|dims| {
        let all = pairs(cx, dims)?
            .into_iter()
            .map(|(a, b)| {
                let yes = match (a.float(), b.float()) {
                    (Some(a), Some(b)) => Some(floats(a, b)),
                    _ => ints(&a.whole()?, &b.whole()?),
                };
                yes.map(|y| Element::Int(i64::from(y).into()))
            })
            .collect();
        contents(cx, DType::Bool, all)
    });
    one(filled(Some(DType::Bool), dims, known))
}

/// Logic of two operands. `absorbing` is the value that decides the result alone.
pub(super) fn logic(cx: &Cx<'_, '_>, absorbing: Option<bool>, f: fn(bool, bool) -> bool) -> Outs {
    let dims = broadcast_inputs(cx, 0..2);
    if !has_contents(cx, 0..2) {
        return one(cx.shared(Some(DType::Bool), dims));
    }
    let known = dims.as_ref().and_then(|dims| {
        let all = pairs(cx, dims)?
            .into_iter()
            .map(|(a, b)| {
                let known = |e: Element| e.whole()?.known().map(|v| v != 0);
                let yes = match (known(a), known(b)) {
                    (Some(a), Some(b)) => Some(f(a, b)),
                    (Some(a), None) if Some(a) == absorbing => absorbing,
                    (None, Some(b)) if Some(b) == absorbing => absorbing,
                    _ => None,
                };
                yes.map(|y| Element::Int(i64::from(y).into()))
            })
            .collect();
        contents(cx, DType::Bool, all)
    });
    one(filled(Some(DType::Bool), dims, known))
}

/// One operand; numbers are worked out by `ints` or `floats`.
pub(super) fn arithmetic_unary(
    cx: &Cx<'_, '_>,
    ints: fn(&SymDim) -> Option<SymDim>,
    floats: fn(f64) -> f64,
) -> Outs {
    let (Some(fact), Some(dtype)) = (cx.fact(0), cx.dtype(0)) else {
        return unary(cx);
    };
    if fact.contents.is_none() {
        return unary(cx);
    }
    let known = elements(cx, 0).and_then(|all| {
        let all = all
            .into_iter()
            .map(|e| match e {
                Element::Float(v) => Some(Element::Float(floats(v))),
                Element::Int(d) => ints(&d).map(Element::Int),
            })
            .collect();
        contents(cx, dtype, all)
    });
    one(filled(Some(dtype), fact.dims.clone(), known))
}

/// Logical negation.
pub(super) fn not(cx: &Cx<'_, '_>) -> Outs {
    arithmetic_unary(cx, |d| d.known().map(|v| i64::from(v == 0).into()), |v| v)
}

/// The absolute value of an expression.
pub(super) fn abs(d: &SymDim) -> Option<SymDim> {
    if d.is_not_negative() {
        return Some(d.clone());
    }
    Some(d.known()?.checked_abs()?.into())
}

/// Rounding to the nearest whole number, halves to the even one.
pub(super) fn round_half_even(v: f64) -> f64 {
    v.round_ties_even()
}

/// Maximum, minimum or sum of any number of operands.
pub(super) fn fold(
    cx: &Cx<'_, '_>,
    ints: fn(&SymDim, &SymDim) -> Option<SymDim>,
    floats: fn(f64, f64) -> f64,
) -> Outs {
    match cx.inputs.len() {
        1 => identity(cx),
        2 => arithmetic(cx, ints, floats),
        _ => variadic(cx),
    }
}

/// Limits are scalars; the contents pass when no limit can change them.
pub(super) fn clip(cx: &Cx<'_, '_>) -> Outs {
    let Some(fact) = cx
        .fact(0)
        .filter(|f| f.contents.is_some() && f.dtype.is_some_and(DType::is_integer))
    else {
        return unary(cx);
    };
    let limits: Option<Vec<Option<SymDim>>> = [1, 2]
        .into_iter()
        .map(|slot| match cx.has(slot) {
            false => Some(None),
            true => cx.scalar(slot).map(Some),
        })
        .collect();
    let known = limits.zip(cx.exprs(0)).and_then(|(limits, all)| {
        let all = all
            .into_iter()
            .map(|d| {
                let d = match limits.first().cloned().flatten() {
                    Some(low) => d.maximum(&low)?,
                    None => d,
                };
                match limits.get(1).cloned().flatten() {
                    Some(high) => d.minimum(&high).map(Element::Int),
                    None => Some(Element::Int(d)),
                }
            })
            .collect();
        contents(cx, fact.dtype?, all)
    });
    one(filled(fact.dtype, fact.dims.clone(), known))
}

/// A choice between two operands; contents where the condition is known or both agree.
pub(super) fn where_(cx: &Cx<'_, '_>) -> Outs {
    let dims = broadcast_inputs(cx, 0..3);
    let dtype = first_dtype(cx, 1..3);
    let known = has_contents(cx, 0..3)
        .then_some(dims.as_ref())
        .flatten()
        .and_then(|dims| {
            let to = small_dims(dims)?;
            let of = |slot| spread(&elements(cx, slot)?, &small_dims(cx.dims(slot)?)?, &to);
            let (x, y) = (of(1)?, of(2)?);
            let all = of(0)?
                .into_iter()
                .zip(x.into_iter().zip(y))
                .map(|(c, (x, y))| match c.whole()?.known() {
                    Some(0) => Some(y),
                    Some(_) => Some(x),
                    None => match (x.whole(), y.whole()) {
                        (Some(a), Some(b)) if a == b => Some(x),
                        _ => None,
                    },
                })
                .collect();
            contents(cx, dtype?, all)
        });
    if known.is_none() {
        return one(cx.shared(dtype, dims));
    }
    one(filled(dtype, dims, known))
}

// ---- casts ----

/// One element under another type.
fn cast_element(to: DType, e: &Element) -> Option<Element> {
    match (to, e) {
        (DType::Bool, Element::Int(d)) => {
            Some(Element::Int(i64::from(!d.equals(&0i64.into())?).into()))
        }
        (DType::Bool, Element::Float(v)) => Some(Element::Int(i64::from(*v != 0.0).into())),
        (d, Element::Float(v)) if d.is_integer() => {
            Element::Float(v.trunc()).whole().map(Element::Int)
        }
        _ => Some(e.clone()),
    }
}

fn cast_to(cx: &Cx<'_, '_>, to: Option<DType>) -> Out {
    let Some(fact) = cx.fact(0) else {
        return typed(to, None);
    };
    let (Some(to), Some(_)) = (to, &fact.contents) else {
        return cx.like_as(0, to);
    };
    let known = elements(cx, 0).and_then(|all| {
        let all = all.iter().map(|e| cast_element(to, e)).collect();
        contents(cx, to, all)
    });
    filled(Some(to), fact.dims.clone(), known)
}

/// The element type in an attribute.
pub(super) fn cast(cx: &Cx<'_, '_>) -> Outs {
    one(cast_to(cx, cx.dtype_attr("to")))
}

/// The element type of the second operand.
pub(super) fn cast_like(cx: &Cx<'_, '_>) -> Outs {
    one(cast_to(cx, cx.dtype(1)))
}

/// The same bits under another element type of the same width.
pub(super) fn bit_cast(cx: &Cx<'_, '_>) -> Outs {
    one(cx.like_as(0, cx.dtype_attr("to")))
}

/// Dropout: the data, and which elements were kept.
pub(super) fn dropout(cx: &Cx<'_, '_>) -> Outs {
    let mask = if cx.opset >= 10 {
        Some(DType::Bool)
    } else {
        cx.dtype(0)
    };
    many([cx.like(0), cx.like_as(0, mask)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    #[test]
    fn operands_broadcast() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,c,7");
        let one = t.input("one", DType::F32, "1");
        let col = t.input("col", DType::F32, "c,1");
        let five = t.input("five", DType::F32, "5,1,1,1");
        let open = t.input("open", DType::F32, "m,7");
        let a = t.op1(NewOp::new("Add").input(x).input(one));
        let b = t.op1(NewOp::new("Mul").input(col).input(x));
        let c = t.op1(NewOp::new("Less").input(x).input(five));
        let d = t.op1(NewOp::new("Max").inputs([x, one, five].map(Some)));
        let e = t.op1(NewOp::new("Sub").input(x).input(open));
        let f = t.op1(NewOp::new("Where").inputs([c, x, one].map(Some)));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,c,7]");
        assert_eq!(shapes.show(b), "float[n,c,7]");
        assert_eq!(shapes.show(c), "bool[5,n,c,7]");
        assert_eq!(shapes.show(d), "float[5,n,c,7]");
        assert_eq!(shapes.show(e), "float[n,broadcast(c, m),7]");
        assert_eq!(shapes.show(f), "float[5,n,c,7]");
    }

    #[test]
    fn operands_that_do_not_broadcast_are_a_conflict() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "2,3");
        let y = t.input("y", DType::F32, "2,4");
        let z = t.op1(NewOp::new("Add").input(x).input(y));
        let shapes = t.infer();
        assert_eq!(shapes.show(z), "float?");
        assert_eq!(
            shapes.conflicts(),
            ["main / Add \"v0\": [2,3] and [2,4] don't broadcast"]
        );
    }

    #[test]
    fn shared_facts_for_chains() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,c,7");
        let s = t.constant(Tensor::scalar(2f32));
        let a = t.op1(NewOp::new("Relu").input(x));
        let b = t.op1(NewOp::new("Mul").input(a).input(s));
        let shapes = t.infer();
        assert!(std::ptr::eq(
            shapes.shapes.fact(x).unwrap(),
            shapes.shapes.fact(b).unwrap()
        ));
    }

    #[test]
    fn integer_contents_follow_the_arithmetic_of_onnx() {
        let mut t = Test::new(17);
        let a = t.ints(&[7, -7, i64::MIN, 5]);
        let b = t.ints(&[2, 2, -1, 0]);
        let div = t.op1(NewOp::new("Div").input(a).input(b));
        let rem = t.op1(NewOp::new("Mod").input(a).input(b));
        let fmod = t.op1(NewOp::new("Mod").input(a).input(b).attr("fmod", 1i64));
        let add = t.op1(NewOp::new("Add").input(a).input(b));
        let shapes = t.infer();
        assert_eq!(shapes.elements(div), "3 -3 ? ?");
        assert_eq!(shapes.elements(rem), "1 1 ? ?");
        assert_eq!(shapes.elements(fmod), "1 -1 ? ?");
        assert_eq!(shapes.elements(add), "9 -5 ? 5");
    }

    #[test]
    fn int32_does_not_exceed_its_range() {
        let mut t = Test::new(17);
        let a = t.constant(Tensor::vector(vec![i32::MAX, 1]));
        let y = t.op1(NewOp::new("Add").input(a).input(a));
        assert_eq!(t.infer().elements(y), "? 2");
    }

    #[test]
    fn sizes_are_no_minus_one() {
        // How exporters write Expand to a shape that may hold -1.
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let shape = t.op1(NewOp::new("Shape").input(x));
        let minus = t.ints(&[-1]);
        let ones = t.ints(&[1, 1]);
        let eq = t.op1(NewOp::new("Equal").input(shape).input(minus));
        let y = t.op1(NewOp::new("Where").inputs([eq, ones, shape].map(Some)));
        assert_eq!(t.infer().elements(y), "n 4");
    }

    #[test]
    fn floats_between_integers_are_followed() {
        // How older exporters compute an upsampled size: floor(float(h) * 1.5).
        let mut t = Test::new(11);
        let h = t.ints(&[7]);
        let n = t.input("x", DType::F32, "n");
        let n = t.op1(NewOp::new("Shape").input(n));
        let by = t.constant(Tensor::scalar(1.5f32));
        let two = t.constant(Tensor::scalar(2f32));
        let mut scaled = |v, by| {
            let f = t.op1(NewOp::new("Cast").input(v).attr("to", 1i64));
            let m = t.op1(NewOp::new("Mul").input(f).input(by));
            let m = t.op1(NewOp::new("Floor").input(m));
            t.op1(NewOp::new("Cast").input(m).attr("to", 7i64))
        };
        let a = scaled(h, by);
        let b = scaled(n, two);
        let c = scaled(n, by);
        let shapes = t.infer();
        assert_eq!(shapes.elements(a), "10");
        assert_eq!(shapes.elements(b), "2*n");
        assert_eq!(shapes.elements(c), "-");
    }

    #[test]
    fn casts_change_the_type_and_keep_small_contents() {
        let mut t = Test::new(17);
        let a = t.ints(&[0, 3]);
        let b = t.op1(NewOp::new("Cast").input(a).attr("to", 9i64));
        let c = t.op1(NewOp::new("Not").input(b));
        let d = t.op1(NewOp::new("Cast").input(a).attr("to", 1i64));
        let e = t.op1(NewOp::new("CastLike").input(d).input(a));
        let shapes = t.infer();
        assert_eq!(shapes.elements(b), "0 1");
        assert_eq!(shapes.elements(c), "1 0");
        assert_eq!(shapes.show(d), "float[2]");
        assert_eq!(shapes.elements(e), "0 3");
    }

    #[test]
    fn powers_keep_the_type_of_the_base() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n");
        let two = t.ints(&[2]);
        let y = t.op1(NewOp::new("Pow").input(x).input(two));
        assert_eq!(t.infer().show(y), "float[n]");
    }
}

//! What is not given to an engine, since engines differ in it: overflowing integers, division
//! by zero, floats that don't fit an integer, and element types beyond the common ones.

use paring_ir::schema::Class;
use paring_ir::{DType, Op, Tensor};

/// Whether engines may differ in an operator's results.
#[derive(Debug, PartialEq)]
pub(super) enum Hazard {
    /// They don't.
    None,
    /// That depends on operands that are not computed yet.
    NeedsValues,
    /// They may.
    Refused(&'static str),
}

use Hazard::{NeedsValues, Refused};

/// Judges an operator by its element types and operands, by slot. An operand is `None` when it
/// is absent or not computed yet.
pub(super) fn of(
    op: &Op,
    class: Class,
    inputs: &[Option<DType>],
    outputs: &[DType],
    operands: &[Option<&Tensor>],
) -> Hazard {
    let common = |d: DType| {
        matches!(d, DType::F16 | DType::F32 | DType::F64 | DType::Bool) || is_plain_integer(d)
    };
    if !inputs.iter().flatten().chain(outputs).all(|&d| common(d)) {
        return Refused("its element types are not among those that every engine computes alike");
    }
    let data = inputs.first().copied().flatten();
    if op.is("Cast") || op.is("CastLike") {
        return cast(data, outputs, operands);
    }
    if !data.is_some_and(is_plain_integer) {
        return Hazard::None;
    }
    match class {
        Class::Layout | Class::Index | Class::Shape | Class::Select | Class::Generator => {
            Hazard::None
        }
        Class::Unary => unary(op, operands),
        Class::Binary => binary(op, operands),
        Class::Variadic if op.is("Max") || op.is("Min") => Hazard::None,
        Class::Reduction
            if ["ArgMax", "ArgMin", "ReduceMax", "ReduceMin"]
                .iter()
                .any(|t| op.is(t)) =>
        {
            Hazard::None
        }
        _ => Refused("sums of integers may overflow"),
    }
}

fn is_plain_integer(d: DType) -> bool {
    d.is_integer() && d.bits().is_some_and(|b| b >= 8)
}

/// The smallest and largest number of an integer type.
fn bounds(d: DType) -> (i128, i128) {
    let bits = d.bits().unwrap_or(8).min(64) as u32;
    if matches!(d, DType::U8 | DType::U16 | DType::U32 | DType::U64) {
        (0, (1i128 << bits) - 1)
    } else {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    }
}

/// The smallest and largest element; zero for no elements.
fn extremes(t: &Tensor) -> Option<(i128, i128)> {
    let all = t.to_i64s()?;
    let low = all.iter().min().copied().unwrap_or(0);
    let high = all.iter().max().copied().unwrap_or(0);
    Some((low.into(), high.into()))
}

fn cast(from: Option<DType>, outputs: &[DType], operands: &[Option<&Tensor>]) -> Hazard {
    let to = outputs.first().copied();
    let (Some(from), Some(to)) = (from, to) else {
        return Hazard::None;
    };
    if to == DType::Bool && from.is_float() {
        // NaN is true by the letter, and engines compare with zero in either way.
        return all_floats(operands, |v| !v.is_nan());
    }
    if !is_plain_integer(to) {
        return Hazard::None;
    }
    let (low, high) = bounds(to);
    if from.is_float() {
        return all_floats(operands, |v| {
            v.is_finite() && v.trunc() >= low as f64 && v.trunc() < high as f64
        });
    }
    match operands.first().copied().flatten() {
        None => NeedsValues,
        Some(t) if extremes(t).is_some_and(|(l, h)| l >= low && h <= high) => Hazard::None,
        Some(_) => Refused("an element doesn't fit the element type"),
    }
}

fn all_floats(operands: &[Option<&Tensor>], fits: impl Fn(f64) -> bool) -> Hazard {
    match operands.first().copied().flatten() {
        None => NeedsValues,
        Some(t) if t.to_f64s().is_some_and(|all| all.into_iter().all(fits)) => Hazard::None,
        Some(_) => Refused("an element doesn't fit the element type"),
    }
}

fn unary(op: &Op, operands: &[Option<&Tensor>]) -> Hazard {
    if !op.is("Neg") && !op.is("Abs") {
        return Hazard::None;
    }
    let Some(t) = operands.first().copied().flatten() else {
        return NeedsValues;
    };
    let fits = extremes(t).is_some_and(|(low, _)| -low <= bounds(t.dtype()).1);
    if fits {
        Hazard::None
    } else {
        Refused("the smallest number has no negative")
    }
}

fn binary(op: &Op, operands: &[Option<&Tensor>]) -> Hazard {
    let arithmetic = ["Add", "Sub", "Mul", "Div", "Mod"].iter().any(|t| op.is(t));
    if op.is("Pow") || op.is("BitShift") || op.is("PRelu") {
        return Refused("powers and shifts of integers may overflow");
    }
    if !arithmetic {
        return Hazard::None;
    }
    let at = |slot: usize| operands.get(slot).copied().flatten();
    let (Some(a), Some(b)) = (at(0), at(1)) else {
        return NeedsValues;
    };
    let (Some((al, ah)), Some((bl, bh))) = (extremes(a), extremes(b)) else {
        return Refused("its operands exceed 64 bits with a sign");
    };
    if op.is("Div") || op.is("Mod") {
        let divides = b
            .to_i64s()
            .is_some_and(|all| all.iter().all(|&v| v != 0 && v != -1));
        return if divides {
            Hazard::None
        } else {
            Refused("a divisor is 0 or -1")
        };
    }
    let (low, high) = bounds(a.dtype());
    let corners = match &**op.op_type() {
        "Add" => [al + bl, ah + bh, al + bl, ah + bh],
        "Sub" => [al - bh, ah - bl, al - bh, ah - bl],
        _ => [al * bl, al * bh, ah * bl, ah * bh],
    };
    if corners.iter().all(|c| (low..=high).contains(c)) {
        Hazard::None
    } else {
        Refused("the result may overflow")
    }
}

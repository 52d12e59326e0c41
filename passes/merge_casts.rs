//! Merges a `Cast` with the one before it when the first loses nothing.
//!
//! ```text
//! a = Cast <to = 1> (x)     # float16 to float
//! y = Cast <to = 11> (a)    # float to double      =>   y = Cast <to = 11> (x)
//! ```
//!
//! The first cast loses nothing when every value of its input's type is a value of its output's:
//!
//! | from | to |
//! |---|---|
//! | bool | any number |
//! | an integer | an integer type that holds its range, or a float type that holds it exactly |
//! | float16, bfloat16 | float, double |
//! | float | double |
//! | an 8-bit float | float16 where it is in range, bfloat16, float, double |
//!
//! Then casting the original gives what casting the copy gives, also for NaN, infinities and -0.0,
//! and when the second cast returns to the original type both go. A cast that rounds or wraps
//! around (double to float and back, int64 to int32 and back) is never removed; neither is one to
//! bool, which maps many numbers to one.

use paring_ir::{
    Changed, DType, Effect, Model, NewOp, NoOptions, Op, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo,
};

use crate::common::visit_ops;
use crate::edits::{bypass, pair, replace};
use crate::facts::Facts;

/// The pass `merge-casts`.
#[derive(Debug)]
pub struct MergeCasts {
    options: OptionSet<NoOptions>,
}

impl Pass for MergeCasts {
    const INFO: PassInfo = PassInfo::new(
        "merge-casts",
        "Merge a Cast with a lossless one before it",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeCasts { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| pair(g, op, "Cast", &["Cast"]).is_some())
        else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let Some((inner, source)) = pair(graph, op, "Cast", &["Cast"]) else {
                return Ok(Changed::No);
            };
            let (Some(from), Some(through), Some(to)) = (
                facts.dtype(graph, source),
                target(graph.op(inner)),
                target(graph.op(op)),
            ) else {
                return Ok(Changed::No);
            };
            if !is_lossless(from, through) {
                cx.missed(
                    graph,
                    op,
                    "first-cast-loses",
                    format!("a {from} as {through} may be another value"),
                );
                return Ok(Changed::No);
            }
            if from == to {
                cx.applied(
                    graph,
                    op,
                    "cancelled",
                    format!("{from} to {through} and back"),
                );
                bypass(graph, op, source, &[inner])?;
            } else {
                cx.applied(graph, op, "merged", format!("{from} to {through} to {to}"));
                let attrs = graph.op(op).attrs().to_vec();
                let new = NewOp::new("Cast").input(source).attrs(attrs).from([inner]);
                replace(graph, op, new)?;
            }
            Ok(Changed::Yes)
        })
    }
}

fn target(op: &Op) -> Option<DType> {
    DType::from_onnx(i32::try_from(op.int("to")?).ok()?)
}

/// The range of an integer type as bits of magnitude, and whether there are negative values.
fn integer_bits(d: DType) -> Option<(u32, bool)> {
    Some(match d {
        DType::U2 => (2, false),
        DType::U4 => (4, false),
        DType::U8 => (8, false),
        DType::U16 => (16, false),
        DType::U32 => (32, false),
        DType::U64 => (64, false),
        DType::I2 => (1, true),
        DType::I4 => (3, true),
        DType::I8 => (7, true),
        DType::I16 => (15, true),
        DType::I32 => (31, true),
        DType::I64 => (63, true),
        _ => return None,
    })
}

/// Bits of the significand, the exponent of the smallest subnormal number, and the exponent above
/// the largest number.
fn float_format(d: DType) -> Option<(u32, i32, i32)> {
    Some(match d {
        DType::F16 => (11, -24, 16),
        DType::BF16 => (8, -133, 128),
        DType::F32 => (24, -149, 128),
        DType::F64 => (53, -1074, 1024),
        DType::F8E4M3FN => (4, -9, 9),
        DType::F8E5M2 => (3, -16, 16),
        _ => return None,
    })
}

/// Whether every value of the first type is a value of the second.
fn is_lossless(from: DType, to: DType) -> bool {
    if from == to {
        return true;
    }
    // An 8-bit float as the target saturates, which is the business of an attribute.
    if matches!(to, DType::F8E4M3FN | DType::F8E5M2) {
        return false;
    }
    let number = integer_bits(to).is_some() || float_format(to).is_some();
    if from == DType::Bool {
        return number;
    }
    if let Some((bits, signed)) = integer_bits(from) {
        if let Some((to_bits, to_signed)) = integer_bits(to) {
            return bits <= to_bits && (!signed || to_signed);
        }
        // An integer of so many bits fits the significand; 2^bits may be reached by the negative
        // end alone, which is a power of two.
        return float_format(to).is_some_and(|(significand, _, top)| {
            bits <= significand && i32::try_from(bits).is_ok_and(|b| b < top)
        });
    }
    match (float_format(from), float_format(to)) {
        (Some((s, low, top)), Some((to_s, to_low, to_top))) => {
            s <= to_s && to_low <= low && top <= to_top
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, refused};

    #[test]
    fn what_is_lossless() {
        use DType as D;
        for (a, b, yes) in [
            (D::F16, D::F32, true),
            (D::BF16, D::F32, true),
            (D::F16, D::BF16, false),
            (D::BF16, D::F16, false),
            (D::F64, D::F32, false),
            (D::I32, D::I64, true),
            (D::I64, D::I32, false),
            (D::U8, D::I8, false),
            (D::U8, D::I16, true),
            (D::I8, D::U16, false),
            (D::I32, D::F32, false),
            (D::I16, D::F32, true),
            (D::I32, D::F64, true),
            (D::I64, D::F64, false),
            (D::U16, D::F16, false),
            (D::Bool, D::F16, true),
            (D::F32, D::Bool, false),
            (D::F8E5M2, D::F16, true),
            (D::F8E4M3FN, D::F16, true),
            (D::F8E4M3FNUZ, D::F32, false),
            (D::F32, D::String, false),
        ] {
            assert_eq!(is_lossless(a, b), yes, "{a} to {b}");
        }
    }

    #[test]
    fn a_widening_is_skipped_and_a_return_cancels() {
        check::<MergeCasts>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float16[n] x, int32[n] i) => (double[n] y, int32[n] z)
            {
              a = Cast <to = 1> (x)
              y = Cast <to = 11> (a)
              b = Cast <to = 7> (i)
              c = Cast <to = 6> (b)
              z = Neg (c)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float16[n] x, int32[n] i) => (double[n] y, int32[n] z)
            {
              y = Cast <to = 11> (x)
              z = Neg (i)
            }"#,
        );
    }

    #[test]
    fn what_rounds_or_wraps_is_left() {
        refused::<MergeCasts>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (float[n] x) => (float[n] y)
            {
              a = Cast <to = 10> (x)
              y = Cast <to = 1> (a)
            }"#,
            "first-cast-loses",
        );
        refused::<MergeCasts>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 17]>
            g (int64[n] x) => (int64[n] y)
            {
              a = Cast <to = 6> (x)
              y = Cast <to = 7> (a)
            }"#,
            "first-cast-loses",
        );
    }
}

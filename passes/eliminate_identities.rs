//! `eliminate-identities`: removes operators that give back what they take.
//!
//! ```text
//! before   a = Identity (x)                      after   y = Relu (x)
//!          b = Reshape (a, shape_of_a)
//!          c = Mul (b, one)
//!          y = Relu (c)
//! ```
//!
//! Each operator and its condition. "Same shape" means that shape inference proves the result's
//! dimensions equal to the operand's, symbolic ones included, so that broadcasting adds nothing.
//!
//! | operator | is its operand when |
//! |---|---|
//! | Identity | always |
//! | Dropout | it doesn't train, and nothing takes the mask (before opset 7: `is_test`) |
//! | Cast, CastLike | the operand has that element type already |
//! | Transpose | the permutation moves nothing |
//! | Reshape, Flatten, Squeeze, Unsqueeze, Expand, Tile | same shape |
//! | Slice | same shape and every step is 1 |
//! | Pad | every pad is 0 |
//! | Resize, Upsample | same shape, every scale (if given) is 1, and positions are not cropped or aligned to corners |
//! | Gather | the indices are 0, 1, …, n-1 of an axis of size n |
//! | Concat, Sum, Max, Min, Mean | there is one operand |
//! | Split | there is one result |
//! | DepthToSpace, SpaceToDepth | `blocksize` is 1 |
//! | MaxPool, AveragePool | kernel and strides are 1, pads 0, and nothing takes the indices |
//! | GlobalMaxPool, GlobalAveragePool, ReduceMax, ReduceMin, ReduceMean, ReduceSum, ReduceProd | same shape: each reduced axis has one element |
//! | Clip | both bounds are absent (from opset 11; before, the defaults clip infinities) |
//! | Mul, Div | the other operand (the divisor) is 1, same shape |
//! | Pow | the exponent is 1, same shape |
//! | Add | the other operand is integer 0, or -0.0, same shape; or +0.0, when the operand is made by an operator that never gives -0.0 |
//! | Sub | the subtrahend is integer 0 or +0.0, same shape; -0.0 as +0.0 for Add |
//! | And, Or, Xor | the other operand is true, false, false, same shape |
//! | And, Or, Max, Min | both operands are one value |
//! | Where | the condition is constant throughout, or both branches are one value, and same shape |
//! | Neg, Not, BitwiseNot | it undoes the operator before it |
//! | Relu, Abs, Ceil, Clip, Floor, Round, Sign, Trilu, Hardmax, … | it repeats the operator before it, attributes and other operands alike |
//! | Relu | the operator before it never gives a negative number |
//! | Abs | the operator before it never gives a negative number nor -0.0 |
//!
//! `x + 0.0` is not `x` for `x = -0.0`, which is why Add of a positive zero mostly stays, and
//! why a BatchNormalization with identity parameters does: it ends with such an addition.
//! Multiplying by 1, dividing by 1 and raising to 1 keep every float, NaN included. What Relu
//! makes of NaN is left open by the specification, so removing one after a Sigmoid is exact.
//!
//! Refused with a remark: `graph-output` when the result is a graph output that can't take the
//! operand's place (the operand is a graph input, a constant, captured or an output itself),
//! `declared-type` when the file declares contradicting types for the two.

use std::cell::Cell;
use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::schema;
use paring_ir::{
    Changed, DType, Effect, Graph, Model, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::{Captured, captured_constants, constant, visit_ops};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct EliminateIdentities {
    options: OptionSet<NoOptions>,
}

impl Pass for EliminateIdentities {
    const INFO: PassInfo = PassInfo::new(
        "eliminate-identities",
        "Remove operators that give back what they take",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(EliminateIdentities { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let facts = Facts {
            shapes: None,
            captured: captured_constants(model),
            opset: model.opset(),
            asked: Cell::new(false),
        };
        let Some(facts) = facts.gather(model, cx) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let Some(source) = same_as(graph, op, &facts) else {
                return Ok(Changed::No);
            };
            let Some(result) = graph.op(op).output(0) else {
                return Ok(Changed::No);
            };
            if graph.can_replace(result, source) {
                let name = paring_ir::escape(graph.value(source).name());
                cx.applied(graph, op, "removed", format!("gives back \"{name}\""));
                graph.replace_value(result, source)?;
                graph.remove_op(op)?;
                return Ok(Changed::Yes);
            }
            if graph.value(result).is_output() {
                let why = "its result is a graph output, and its operand can't be one instead";
                cx.missed(graph, op, "graph-output", why);
            } else {
                let why = "the declared types of operand and result contradict each other";
                cx.missed(graph, op, "declared-type", why);
            }
            Ok(Changed::No)
        })
    }
}

/// What the conditions look at besides the graph.
struct Facts {
    /// `None` while it is still open whether shapes are needed: then they say yes to everything.
    shapes: Option<Arc<Shapes>>,
    captured: Captured,
    opset: i64,
    /// Whether a condition asked for shapes.
    asked: Cell<bool>,
}

impl Facts {
    /// Infers shapes if any operator could be an identity depending on them; `None` when none
    /// could be one at all.
    fn gather(mut self, model: &Model, cx: &mut PassContext<'_>) -> Option<Facts> {
        let (mut any, mut shapes) = (false, false);
        model.for_each_graph(&mut |graph| {
            for op in graph.ops() {
                self.asked.set(false);
                if !shapes && same_as(graph, op, &self).is_some() {
                    any = true;
                    shapes = self.asked.get();
                }
            }
        });
        if shapes {
            self.shapes = Some(cx.analysis::<Shapes>(model));
        } else {
            self.shapes = None;
        }
        any.then_some(self)
    }
}

/// One operator under examination.
struct Site<'a> {
    graph: &'a Graph,
    op: &'a Op,
    facts: &'a Facts,
}

/// The operand that output 0 of an operator equals.
fn same_as(graph: &Graph, op: OpId, facts: &Facts) -> Option<ValueId> {
    let op = graph.op(op);
    // Only the first result is replaced; the others must not matter.
    let others_used = op
        .outputs()
        .iter()
        .skip(1)
        .flatten()
        .any(|&v| !graph.value(v).is_unused());
    if !op.domain().is_empty() || others_used || op.output(0).is_none() {
        return None;
    }
    let site = Site { graph, op, facts };
    site.by_type().or_else(|| site.by_algebra())
}

impl Site<'_> {
    fn by_type(&self) -> Option<ValueId> {
        match &**self.op.op_type() {
            "Identity" => self.op.input(0),
            "Dropout" => self.dropout(),
            "Cast" | "CastLike" => self.cast(),
            "Transpose" => self.transpose(),
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Tile" => {
                self.if_same_shape(0)
            }
            "Slice" => self.slice(),
            "Pad" => self.pad(),
            "Resize" | "Upsample" => self.resize(),
            "Gather" => self.gather(),
            "Concat" | "Sum" | "Max" | "Min" | "Mean" => self.one_operand(),
            "Split" if self.op.outputs().len() == 1 => self.if_same_shape(0),
            "DepthToSpace" | "SpaceToDepth" if self.op.int("blocksize") == Some(1) => {
                self.op.input(0)
            }
            "MaxPool" | "AveragePool" => self.pool(),
            "GlobalMaxPool" | "GlobalAveragePool" | "ReduceMax" | "ReduceMin" | "ReduceMean"
            | "ReduceSum" | "ReduceProd" => self.if_same_shape(0),
            "Clip" => self.clip(),
            "Mul" => self.either(1.0, false),
            "And" => self.either(1.0, false).or_else(|| self.one_operand()),
            "Or" => self.either(0.0, false).or_else(|| self.one_operand()),
            "Xor" => self.either(0.0, false),
            "Div" | "Pow" => self.right(1.0, false),
            "Add" => self.add(),
            "Sub" => self.sub(),
            "Where" => self.select(),
            "Relu" => self.after_range(false),
            "Abs" => self.after_range(true),
            _ => None,
        }
    }

    /// Operators that undo or repeat the one before them.
    fn by_algebra(&self) -> Option<ValueId> {
        let known = schema::of(self.op)?;
        if !known.involutive && !known.idempotent {
            return None;
        }
        let operand = self.op.input(0)?;
        let before = self.graph.op(self.graph.producer(operand)?);
        if !before.is(self.op.op_type()) || before.output(0) != Some(operand) {
            return None;
        }
        let unary = matches!(
            known.class,
            schema::Class::Unary | schema::Class::Layout | schema::Class::AlongAxis
        );
        if known.involutive {
            before.input(0)
        } else if unary && known.idempotent && same_settings(before, self.op) {
            Some(operand)
        } else {
            None
        }
    }

    fn tensor(&self, slot: usize) -> Option<&Tensor> {
        constant(self.graph, &self.facts.captured, self.op.input(slot)?)
    }

    fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        self.tensor(slot)?.to_i64s()
    }

    fn dtype(&self, v: ValueId) -> Option<DType> {
        let declared = || self.graph.value(v).known_type()?.dtype();
        self.facts
            .shapes
            .as_ref()
            .map_or_else(declared, |s| s.dtype(v))
    }

    /// The operand, when the result has its shape.
    fn if_same_shape(&self, slot: usize) -> Option<ValueId> {
        let (operand, result) = (self.op.input(slot)?, self.op.output(0)?);
        self.facts.asked.set(true);
        let Some(shapes) = &self.facts.shapes else {
            return Some(operand);
        };
        let equal = shapes.dims(operand)? == shapes.dims(result)?;
        equal.then_some(operand)
    }

    /// The operand, when a constant that it is combined with adds no shape of its own.
    fn unless_broadcast(&self, slot: usize, other: &Tensor) -> Option<ValueId> {
        if other.rank() == 0 {
            return self.op.input(slot);
        }
        self.if_same_shape(slot)
    }

    fn dropout(&self) -> Option<ValueId> {
        let inference = match self.facts.opset {
            12.. => match self.op.input(2) {
                None => true,
                Some(_) => self.tensor(2)?.single_f64()? == 0.0,
            },
            7..=11 => true,
            _ => self.op.int_or("is_test", 0) != 0,
        };
        self.op.input(0).filter(|_| inference)
    }

    fn cast(&self) -> Option<ValueId> {
        let operand = self.op.input(0)?;
        self.facts.asked.set(true);
        if self.facts.shapes.is_none() {
            return Some(operand);
        }
        let from = self.dtype(operand)?;
        let to = match self.op.op_type().as_ref() {
            "Cast" => DType::from_onnx(i32::try_from(self.op.int("to")?).ok()?)?,
            _ => self.dtype(self.op.input(1)?)?,
        };
        (from == to).then_some(operand)
    }

    fn transpose(&self) -> Option<ValueId> {
        let operand = self.op.input(0)?;
        match self.op.ints("perm") {
            Some(perm) => (0i64..).zip(perm).all(|(i, &p)| i == p).then_some(operand),
            // Without a permutation the axes are reversed.
            None => {
                self.facts.asked.set(true);
                let shapes = self.facts.shapes.as_ref();
                shapes
                    .is_none_or(|s| s.rank(operand).is_some_and(|r| r <= 1))
                    .then_some(operand)
            }
        }
    }

    fn slice(&self) -> Option<ValueId> {
        // Equal sizes with steps of 1 leave no room for any start but 0. Before opset 10
        // there are no steps.
        if self.op.input(4).is_some() && self.ints(4)?.iter().any(|&s| s != 1) {
            return None;
        }
        self.if_same_shape(0)
    }

    fn pad(&self) -> Option<ValueId> {
        let none = match self.op.input(1) {
            Some(_) => self.ints(1)?.iter().all(|&p| p == 0),
            None => self
                .op
                .ints("pads")
                .or_else(|| self.op.ints("paddings"))?
                .iter()
                .all(|&p| p == 0),
        };
        self.op.input(0).filter(|_| none)
    }

    fn resize(&self) -> Option<ValueId> {
        let mode = self.op.string("coordinate_transformation_mode");
        let kept = !matches!(mode, Some("tf_crop_and_resize" | "align_corners"))
            && self.op.int_or("antialias", 0) == 0;
        // Resize 10 and Upsample take the scales second, later versions third.
        let slot = if self.op.is("Resize") && self.facts.opset >= 11 {
            2
        } else {
            1
        };
        let scales = match self.op.input(slot) {
            Some(_) => self.tensor(slot)?.to_f64s()?,
            None => match self.op.attr("scales") {
                Some(paring_ir::AttrValue::Floats(v)) => v.iter().map(|&v| v.into()).collect(),
                _ => Vec::new(),
            },
        };
        if !kept || scales.iter().any(|&s| s != 1.0) {
            return None;
        }
        self.if_same_shape(0)
    }

    fn gather(&self) -> Option<ValueId> {
        let indices = self.tensor(1)?;
        if indices.rank() != 1 {
            return None;
        }
        let all = indices.to_i64s()?;
        if !(0i64..).zip(&all).all(|(i, &index)| i == index) {
            return None;
        }
        // Equal shapes say that the axis has as many elements as there are indices.
        self.if_same_shape(0)
    }

    /// The one value that all operands are.
    fn one_operand(&self) -> Option<ValueId> {
        let first = self.op.input(0)?;
        let repeatable = schema::of(self.op).is_some_and(|k| k.idempotent);
        let same = self.op.inputs().all(|v| v == Some(first));
        (self.op.input_count() == 1 || (same && repeatable)).then_some(first)
    }

    fn pool(&self) -> Option<ValueId> {
        let all = |name, wanted| {
            self.op
                .ints(name)
                .is_none_or(|v| v.iter().all(|&v| v == wanted))
        };
        let trivial = self.op.ints("kernel_shape").is_some()
            && all("kernel_shape", 1)
            && all("strides", 1)
            && all("pads", 0);
        self.op.input(0).filter(|_| trivial)
    }

    fn clip(&self) -> Option<ValueId> {
        let unbounded = self.facts.opset >= 11
            && (1..self.op.input_count()).all(|i| self.op.input(i).is_none());
        self.op.input(0).filter(|_| unbounded)
    }

    /// Whether every element of a constant operand is this number, the sign of a zero included
    /// when asked for.
    fn is_filled(&self, slot: usize, number: f64, sign: bool) -> Option<&Tensor> {
        let tensor = self.tensor(slot)?;
        // A glance at the first element spares most weights the conversion.
        let size = tensor.dtype().bits()? as usize / 8;
        if size > 0 && !tensor.is_empty() {
            let first = tensor.bytes().get(..size)?;
            let first = Tensor::new(tensor.dtype(), [1], first.to_vec()).ok()?;
            first.single_f64().filter(|v| *v == number)?;
        }
        let all = tensor.to_f64s()?;
        let fits =
            |v: &f64| *v == number && (!sign || v.is_sign_negative() == number.is_sign_negative());
        (!all.is_empty() && all.iter().all(fits)).then_some(tensor)
    }

    fn right(&self, number: f64, sign: bool) -> Option<ValueId> {
        let other = self.is_filled(1, number, sign)?;
        self.unless_broadcast(0, other)
    }

    fn left(&self, number: f64, sign: bool) -> Option<ValueId> {
        let other = self.is_filled(0, number, sign)?;
        self.unless_broadcast(1, other)
    }

    fn either(&self, number: f64, sign: bool) -> Option<ValueId> {
        self.right(number, sign).or_else(|| self.left(number, sign))
    }

    fn add(&self) -> Option<ValueId> {
        if self.is_integer() {
            return self.either(0.0, false);
        }
        self.either(-0.0, true).or_else(|| {
            self.either(0.0, true)
                .filter(|&operand| self.never_negative_zero(operand))
        })
    }

    fn sub(&self) -> Option<ValueId> {
        if self.is_integer() {
            return self.right(0.0, false);
        }
        self.right(0.0, true).or_else(|| {
            self.right(-0.0, true)
                .filter(|&operand| self.never_negative_zero(operand))
        })
    }

    /// Whether a constant operand shows that the operands are integers.
    fn is_integer(&self) -> bool {
        [0, 1]
            .iter()
            .filter_map(|&slot| self.tensor(slot))
            .any(|t| t.dtype().is_integer())
    }

    fn select(&self) -> Option<ValueId> {
        if self.op.input(1) == self.op.input(2) {
            return self.if_same_shape(1);
        }
        let condition = self.tensor(0)?;
        let all = condition.to_i64s()?;
        let first = *all.first()?;
        if all.iter().any(|&c| (c != 0) != (first != 0)) {
            return None;
        }
        self.if_same_shape(if first != 0 { 1 } else { 2 })
    }

    /// The operand, when the operator that makes it never gives a negative number.
    fn after_range(&self, mind_zero: bool) -> Option<ValueId> {
        let operand = self.op.input(0)?;
        let before = self.graph.producer(operand)?;
        if self.graph.op(before).output(0) != Some(operand) {
            return None;
        }
        let (low, _) = schema::output_range(self.graph, before)?;
        let fits = low >= 0.0 && (!mind_zero || self.never_negative_zero(operand));
        fits.then_some(operand)
    }

    /// Whether an operator makes the value that clears the sign, or whose results are sums of
    /// such or stay above zero until they underflow to +0.0.
    fn never_negative_zero(&self, v: ValueId) -> bool {
        let Some(before) = self.graph.producer(v).map(|p| self.graph.op(p)) else {
            return false;
        };
        let positive = [
            "Abs",
            "Exp",
            "Sigmoid",
            "Softmax",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
        ];
        before.output(0) == Some(v) && positive.iter().any(|t| before.is(t))
    }
}

/// Whether two operators of one type have the same attributes, and operands but for the first.
fn same_settings(a: &Op, b: &Op) -> bool {
    let attrs = a.attrs().len() == b.attrs().len()
        && a.attrs()
            .iter()
            .all(|x| b.attr(&x.name).is_some_and(|y| x.value.same(y)));
    attrs && a.inputs().skip(1).eq(b.inputs().skip(1))
}

#[cfg(test)]
mod tests {
    use super::EliminateIdentities;
    use crate::testing::{check, refused, unchanged};

    /// Puts operators between `x` and `y = Exp (h)`; they must vanish, or stay.
    fn body(header: &str, ops: &str, opset: i64) -> String {
        format!(
            r#"<opset_import: ["": {opset}]> g (float[N,4] x) => (float[N,4] y) {header} {{ {ops} y = Exp (h) }}"#
        )
    }

    fn vanishes(header: &str, ops: &str) {
        let after = body(header, "", 18).replace("Exp (h)", "Exp (x)");
        check::<EliminateIdentities>("", &body(header, ops, 18), &after);
    }

    fn stays(header: &str, ops: &str) {
        unchanged::<EliminateIdentities>("", &body(header, ops, 18));
    }

    #[test]
    fn what_gives_back_its_operand_vanishes() {
        vanishes("", "h = Identity (x)");
        vanishes("", "h = Dropout (x)");
        vanishes("", "h = Cast <to: int = 1> (x)");
        vanishes("", "h = Transpose <perm: ints = [0, 1]> (x)");
        vanishes("<int64[2] s = {-1, 4}>", "h = Reshape (x, s)");
        vanishes("<int64[2] s = {0, 4}>", "h = Reshape (x, s)");
        vanishes("<int64[2] s = {1, 4}>", "h = Expand (x, s)");
        vanishes(
            "<int64[1] a = {0}, int64[1] e = {9223372036854775807}>",
            "h = Slice (x, a, e)",
        );
        vanishes("<int64[4] p = {0, 0, 0, 0}>", "h = Pad (x, p)");
        vanishes(
            "<int64[4] i = {0, 1, 2, 3}>",
            "h = Gather <axis: int = 1> (x, i)",
        );
        vanishes("", "h = Concat <axis: int = 0> (x)");
        vanishes("", "h = Max (x)");
        vanishes("", "h = Max (x, x)");
        vanishes("", "h = Clip (x)");
    }

    #[test]
    fn operators_that_undo_each_other_leave_the_second_one_out() {
        // What the first one made is left for eliminate-dead-code.
        check::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) { a = Neg (x) b = Neg (a) c = Neg (b) y = Exp (c) }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) { a = Neg (x) c = Neg (x) y = Exp (c) }"#,
        );
    }

    #[test]
    fn arithmetic_without_effect_vanishes() {
        vanishes("<float one = {1}>", "h = Mul (x, one)");
        vanishes("<float[1,1] one = {1}>", "h = Mul (one, x)");
        vanishes("<float[4] one = {1, 1, 1, 1}>", "h = Div (x, one)");
        vanishes("<float one = {1}>", "h = Pow (x, one)");
        vanishes("<float zero = {-0.0}>", "h = Add (x, zero)");
        vanishes("<float zero = {0}>", "h = Sub (x, zero)");
        vanishes("<bool[1,1] c = {1}, float b = {3}>", "h = Where (c, x, b)");
    }

    #[test]
    fn arithmetic_with_effect_stays() {
        // -0.0 + 0.0 is 0.0.
        stays("<float zero = {0}>", "h = Add (x, zero)");
        stays("<float zero = {-0.0}>", "h = Sub (x, zero)");
        stays("<float[4] some = {1, 1, 1, 2}>", "h = Mul (x, some)");
        stays("<float one = {1}>", "h = Div (one, x)");
    }

    #[test]
    fn zero_is_added_to_what_is_no_negative_zero() {
        check::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float zero = {0}> {
                a = Abs (x)
                b = Add (a, zero)
                y = Exp (b)
            }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float zero = {0}> {
                a = Abs (x)
                y = Exp (a)
            }"#,
        );
    }

    #[test]
    fn broadcasting_is_an_effect() {
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[1,4] x) => (float[2,4] y) <float[2,4] one = ones, int64[2] s = {2, 4}> {
                a = Mul (x, one)
                b = Expand (x, s)
                c = Add (a, b)
                y = Exp (c)
            }"#,
        );
        // The rank of x is unknown, so even [1] may add an axis.
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[] x) => (float[] y) <float[1] one = {1}> {
                a = Mul (x, one)
                y = Exp (a)
            }"#,
        );
    }

    #[test]
    fn repetition_vanishes_once() {
        check::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float l = {0}, float u = {1}, float v = {2}> {
                a = Relu (x)
                b = Relu (a)
                c = Clip (b, l, u)
                d = Clip (c, l, u)
                e = Clip (d, l, v)
                s = Sigmoid (e)
                y = Relu (s)
            }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float l = {0}, float u = {1}, float v = {2}> {
                a = Relu (x)
                c = Clip (a, l, u)
                e = Clip (c, l, v)
                y = Sigmoid (e)
            }"#,
        );
    }

    #[test]
    fn the_output_name_stays() {
        check::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) { a = Exp (x) y = Identity (a) }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Exp (x) }"#,
        );
    }

    #[test]
    fn graph_outputs_that_need_a_value_of_their_own_are_left() {
        refused::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Identity (x) }"#,
            "graph-output",
        );
        refused::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) { z = Exp (x) y = Identity (z) }"#,
            "graph-output",
        );
        refused::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Identity (w) }"#,
            "graph-output",
        );
    }

    #[test]
    fn captured_values_are_followed() {
        check::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) <float one = {1}> {
                a = Identity (x)
                y = If (c) <
                    then_branch = t () => (float[2] p) { b = Mul (a, one) p = Relu (b) },
                    else_branch = e () => (float[2] r) { r = Identity (a) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) <float one = {1}> {
                y = If (c) <
                    then_branch = t () => (float[2] p) { p = Relu (x) },
                    else_branch = e () => (float[2] r) { r = Identity (x) }
                >
            }"#,
        );
    }

    #[test]
    fn what_may_be_overridden_or_trained_stays() {
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x, float one = {1}) => (float[2] y) { a = Mul (x, one) y = Exp (a) }"#,
        );
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x, bool t) => (float[2] y) <float r = {0.5}> { a = Dropout (x, r, t) y = Exp (a) }"#,
        );
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout (x) y = Exp (a) }"#,
        );
    }

    #[test]
    fn old_versions_mean_other_things() {
        // Clip clips infinities by default before opset 11.
        unchanged::<EliminateIdentities>("", &body("", "h = Clip (x)", 10));
        unchanged::<EliminateIdentities>(
            "",
            r#"<opset_import: ["": 18]> g (float[1,1,3,3] x) => (float[1,1,3,3] y) <float[4] s = {1, 1, 1, 1}> {
                a = Resize <coordinate_transformation_mode: string = "align_corners"> (x, , s)
                y = Exp (a)
            }"#,
        );
    }
}

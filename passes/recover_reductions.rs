//! Recovers `Softmax` and reductions that an exporter wrote out as several operators.
//!
//! ```text
//! m = ReduceMax<axes = [1]>(x)                    y = Softmax<axis = 1>(x)
//! d = Sub(x, m)
//! e = Exp(d)
//! s = ReduceSum<axes = [1]>(e)
//! y = Div(e, s)
//! ```
//!
//! | recovered | written out as |
//! |---|---|
//! | `Softmax` | `e / sum(e)` with `e = exp(x - max(x))` |
//! | `LogSoftmax` | `d - log(sum(exp(d)))` with `d = x - max(x)` |
//! | `ReduceMean` | `sum(x) * (1/n)` or `sum(x) / n` over `n` elements |
//! | `ReduceL2` | `sqrt(sum(x * x))` |
//! | `ReduceSumSquare` | `sum(x * x)` |
//! | `ReduceL1` | `sum(abs(x))` |
//!
//! Left alone: axes that are computed, a `Softmax` over several axes or (before opset 13, where
//! it flattens the axes after its own) over another axis than the last, element types that are
//! not floating point, and steps that something else takes too. `exp(x) / sum(exp(x))` without
//! the maximum is infinite where `Softmax` is not, so it stays.

use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor, ValueId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::pattern::{Match, Pat, any, div, either, marked, mul, sub, unary};
use crate::recover::{self, Options, Outcome, Recovered, Site, recover, replace_match};
use crate::recover_normalizations::reduced_axes;

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct RecoverReductions {
    options: OptionSet<Options<Reduction>>,
}

/// An operator that reduces.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[allow(missing_docs, reason = "the variants are named after the operators")]
pub enum Reduction {
    LogSoftmax,
    ReduceL1,
    ReduceL2,
    ReduceMean,
    ReduceSumSquare,
    Softmax,
}

impl Recovered for Reduction {
    const ALL: &'static [Self] = &[
        Reduction::LogSoftmax,
        Reduction::ReduceL1,
        Reduction::ReduceL2,
        Reduction::ReduceMean,
        Reduction::ReduceSumSquare,
        Reduction::Softmax,
    ];
}

impl Pass for RecoverReductions {
    const INFO: PassInfo = PassInfo::new(
        "recover-reductions",
        "Recover Softmax, ReduceMean, ReduceL2 and others from the operators they were written as",
        Effect::Exact,
    );
    type Options = Options<Reduction>;

    fn new(options: OptionSet<Options<Reduction>>) -> Result<Self, OptionError> {
        Ok(RecoverReductions { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        recover(model, cx, &self.options, &rules(), rewrite)
    }
}

type Rule = recover::Rule<Reduction>;

const SUM: usize = 0;
const MAX: usize = 1;
/// The slot of the number of elements, or of one over it.
const FACTOR: usize = 1;

fn rules() -> Vec<Rule> {
    use Reduction as R;
    let centered = || sub(any(0), marked(MAX, "ReduceMax", any(0)));
    let exp = || unary("Exp", centered());
    let sum = |x| marked(SUM, "ReduceSum", x);
    let square = || Pat::Square(Box::new(any(0)));
    let sum_of_squares = either([sum(square()), marked(SUM, "ReduceSumSquare", any(0))]);
    let rule = |operator, roots, pat| Rule {
        operator,
        roots,
        pat,
        build: (),
    };
    vec![
        rule(R::Softmax, &["Div"], div(exp(), sum(exp()))),
        rule(
            R::LogSoftmax,
            &["Sub"],
            sub(centered(), unary("Log", sum(exp()))),
        ),
        rule(
            R::ReduceMean,
            &["Mul"],
            mul(sum(any(0)), Pat::BoundScalar(FACTOR)),
        ),
        rule(
            R::ReduceMean,
            &["Div"],
            div(sum(any(0)), Pat::BoundScalar(FACTOR)),
        ),
        rule(R::ReduceL2, &["Sqrt"], unary("Sqrt", sum_of_squares)),
        rule(R::ReduceSumSquare, &["ReduceSum"], sum(square())),
        rule(R::ReduceL1, &["ReduceSum"], sum(unary("Abs", any(0)))),
    ]
}

type Refused = (&'static str, &'static str);

fn rewrite(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    site: &Site<'_, Reduction>,
) -> Result<Outcome, PassError> {
    let (op, operator, facts, found) = (site.op, site.rule.operator, site.facts, site.found);
    let (Some(x), Some(sum)) = (found.value(0), found.marked(SUM)) else {
        return Ok(Outcome::Other);
    };
    let types = [DType::F32, DType::F16, DType::F64];
    let float = facts.dtype(graph, x).is_some_and(|d| types.contains(&d));
    let planned = match operator {
        _ if !float => Err((
            "element-type",
            "the element type is not known to be floating point",
        )),
        Reduction::Softmax | Reduction::LogSoftmax => {
            softmax_axis(graph, facts, found, x).map(|axis| {
                let new = NewOp::new(format!("{operator:?}")).input(x);
                new.attr("axis", axis)
            })
        }
        // A product of a sum with another number is no pattern at all.
        Reduction::ReduceMean if !is_mean(graph, facts, op, found, x) => return Ok(Outcome::Other),
        _ => reduction(graph, operator, x, sum, facts),
    };
    let new = match planned {
        Ok(new) => new,
        Err((code, message)) => {
            cx.missed(graph, op, code, message);
            return Ok(Outcome::Refused);
        }
    };
    cx.applied(graph, op, "recovered", format!("recovered {operator:?}"));
    let new = with_axes(graph, new, sum, facts.opset)?;
    replace_match(graph, op, found, new)?;
    Ok(Outcome::Recovered)
}

/// The one axis over which both reductions of a softmax go.
fn softmax_axis(graph: &Graph, facts: &Facts, found: &Match, x: ValueId) -> Result<i64, Refused> {
    let odd = (
        "axes",
        "the maximum and the sum are not over the same one axis",
    );
    let axis = |mark: usize| {
        let op = found.marked(mark)?;
        let keeps = graph.op(op).int_or("keepdims", 1) != 0;
        match reduced_axes(graph, op, facts.opset)??.as_slice() {
            [axis] if keeps => Some(*axis),
            _ => None,
        }
    };
    let (sum, max) = (axis(SUM).ok_or(odd)?, axis(MAX).ok_or(odd)?);
    let rank = facts.rank(graph, x).and_then(|r| i64::try_from(r).ok());
    let from_front = |a: i64| match rank {
        Some(r) if a < 0 => a + r,
        _ => a,
    };
    if from_front(sum) != from_front(max) {
        return Err(odd);
    }
    if facts.opset >= 13 {
        return Ok(sum);
    }
    match rank {
        Some(r) if from_front(sum) == r - 1 => Ok(r - 1),
        _ => Err((
            "flattening",
            "before opset 13 Softmax works on the last axis alone",
        )),
    }
}

/// Whether the constant makes a sum a mean.
fn is_mean(graph: &Graph, facts: &Facts, root: OpId, found: &Match, x: ValueId) -> bool {
    let factor = found.value(FACTOR).and_then(|v| graph.tensor(v));
    let Some(factor) = factor.and_then(Tensor::single_f64) else {
        return false;
    };
    let (Some(rank), Some(sum)) = (facts.rank(graph, x), found.marked(SUM)) else {
        return false;
    };
    let Some(axes) = reduced_axes(graph, sum, facts.opset) else {
        return false;
    };
    let mut axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    axes.iter_mut()
        .filter(|a| **a < 0)
        .for_each(|a| *a += rank as i64);
    axes.sort_unstable();
    axes.dedup();
    let mut count = 1.0f64;
    for &axis in &axes {
        let size = usize::try_from(axis)
            .ok()
            .and_then(|a| facts.dim(graph, x, a));
        match size {
            Some(d) if d > 0 => count *= d as f64,
            _ => return false,
        }
    }
    // The result must keep its rank beside the constant.
    let kept = graph.op(sum).int_or("keepdims", 1) != 0;
    let rank_after = if kept {
        rank
    } else {
        rank.saturating_sub(axes.len())
    };
    let wanted = if graph.op(root).is("Div") {
        count
    } else {
        1.0 / count
    };
    found.scalar_rank <= rank_after && (factor - wanted).abs() <= 1e-7 * wanted
}

/// A reduction with the axes and the rank of a `ReduceSum`.
fn reduction(
    graph: &Graph,
    operator: Reduction,
    x: ValueId,
    sum: OpId,
    facts: &Facts,
) -> Result<NewOp, Refused> {
    let axes =
        reduced_axes(graph, sum, facts.opset).ok_or(("axes", "the axes are not constant"))?;
    let keeps = graph.op(sum).int_or("keepdims", 1);
    let mut new = NewOp::new(format!("{operator:?}"))
        .input(x)
        .attr("keepdims", keeps);
    if let (Some(axes), ..18) = (axes, facts.opset) {
        new = new.attr("axes", axes);
    }
    Ok(new)
}

/// From opset 18 the axes of all reductions are an input: that of the sum.
fn with_axes(graph: &mut Graph, new: NewOp, sum: OpId, opset: i64) -> Result<NewOp, PassError> {
    let reduces = new.op_type().starts_with("Reduce");
    let axes = graph.op(sum).input(1);
    Ok(match axes {
        Some(axes) if reduces && opset >= 18 => new.input(axes),
        _ => new,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::RecoverReductions;
    use crate::testing::{check, refused, unchanged};

    fn text(opset: i64, body: &str) -> String {
        format!(
            r#"<opset_import: ["": {opset}]> f (float[N,3,4] x) => (float[] y)
            <int64[1] one = {{1}}, int64[1] last = {{-1}}, float third = {{0.33333334}}, float four = {{4}}>
            {{ {body} }}"#
        )
    }

    fn recovers(opset: i64, before: &str, after: &str) {
        check::<RecoverReductions>("", &text(opset, before), &text(opset, after));
    }

    #[test]
    fn softmax() {
        let body = "m = ReduceMax<axes = [2]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)";
        recovers(13, body, "y = Softmax<axis = -1>(x)");
        let log = "m = ReduceMax<axes = [2]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) l = Log(s) y = Sub(d, l)";
        recovers(13, log, "y = LogSoftmax<axis = -1>(x)");
        let old = "m = ReduceMax<axes = [2]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum<axes = [2]>(e) y = Div(e, s)";
        recovers(11, old, "y = Softmax<axis = 2>(x)");
        refused::<RecoverReductions>("", &text(11, &old.replace("[2]", "[1]")), "flattening");
        refused::<RecoverReductions>("", &text(13, &body.replace("last", "one")), "axes");
        // Without the maximum it overflows where Softmax does not.
        unchanged::<RecoverReductions>(
            "",
            &text(13, "e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)"),
        );
    }

    #[test]
    fn reductions() {
        let square = "q = Mul(x, x) s = ReduceSum<keepdims = 0>(q, last)";
        recovers(
            15,
            &format!("{square} y = Sqrt(s)"),
            "y = ReduceL2<keepdims = 0, axes = [-1]>(x)",
        );
        recovers(
            18,
            &format!("{square} y = Sqrt(s)"),
            "y = ReduceL2<keepdims = 0>(x, last)",
        );
        recovers(
            15,
            "q = Mul(x, x) y = ReduceSum(q, last)",
            "y = ReduceSumSquare<keepdims = 1, axes = [-1]>(x)",
        );
        recovers(
            15,
            "q = Abs(x) y = ReduceSum(q)",
            "y = ReduceL1<keepdims = 1>(x)",
        );
    }

    #[test]
    fn a_mean_needs_the_right_number() {
        recovers(
            13,
            "s = ReduceSum<keepdims = 0>(x, one) y = Mul(s, third)",
            "y = ReduceMean<keepdims = 0, axes = [1]>(x)",
        );
        recovers(
            13,
            "s = ReduceSum<keepdims = 0>(x, last) y = Div(s, four)",
            "y = ReduceMean<keepdims = 0, axes = [-1]>(x)",
        );
        unchanged::<RecoverReductions>("", &text(13, "s = ReduceSum(x, one) y = Div(s, four)"));
    }

    #[test]
    fn integers_and_computed_axes_stay() {
        let body = "q = Mul(x, x) y = ReduceSum(q, last)";
        refused::<RecoverReductions>(
            "",
            &text(15, body).replace("float[N,3,4]", "int32[N,3,4]"),
            "element-type",
        );
        let computed = "a = Abs(last) q = Mul(x, x) y = ReduceSum(q, a)";
        refused::<RecoverReductions>("", &text(15, computed), "axes");
    }
}

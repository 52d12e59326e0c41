//! Recovers activations that an exporter wrote out as several operators.
//!
//! ```text
//! a = Add(x, 3.0)                                 h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)
//! c = Clip(a, 0.0, 6.0)                           y = Mul(x, h)
//! m = Mul(x, c)
//! y = Div(m, 6.0)
//! ```
//!
//! | recovered | from opset | written out as (operands in any order) |
//! |---|---|---|
//! | `Gelu` | 20 | `x * (erf(x / sqrt(2)) + 1) * 0.5`, and with `tanh` the approximation |
//! | `HardSigmoid` | 7 | `clip(a * x + b, 0, 1)`, `clip(x + 3, 0, 6) / 6` |
//! | `HardSwish` | 14 | `x * clip(x + 3, 0, 6) / 6`, `x * HardSigmoid(x)`; before opset 14 it becomes `x * HardSigmoid(x)` |
//! | `LeakyRelu` | 7 | `max(x, a * x)` with `0 < a < 1` |
//! | `Mish` | 18 | `x * tanh(softplus(x))`, also with `log(1 + exp(x))` |
//! | `Sigmoid` | 7 | `1 / (1 + exp(-x))` |
//! | `Softsign` | 7 | `x / (1 + abs(x))` |
//!
//! Constants may differ from the formula by a rounding of their type. `Clip` stands for `Min`
//! and `Max` with constants as well, and for `Relu` with `Min`. Steps that something else takes
//! too, constants that broadcast to a higher rank, and `double` where an attribute would round
//! a constant to `float` are left alone. `log(1 + exp(x))` alone is no `Softplus`: it is
//! infinite where that is not. How `Clip` and `HardSigmoid` treat NaN is left open by ONNX.
//! ONNX Runtime and tract run every operator of the table.

use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, ValueId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::edits::output_name;
use crate::pattern::{
    Match, Pat, add, any, clamp, constant_scalar, div, either, marked, mul, scalar, times, unary,
};
use crate::recover::{self, Options, Outcome, Recovered, Site, recover, replace_match};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct RecoverActivations {
    options: OptionSet<Options<Activation>>,
}

/// An activation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[allow(missing_docs, reason = "the variants are named after the operators")]
pub enum Activation {
    Gelu,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Mish,
    Sigmoid,
    Softsign,
}

impl Recovered for Activation {
    const ALL: &'static [Self] = &[
        Activation::Gelu,
        Activation::HardSigmoid,
        Activation::HardSwish,
        Activation::LeakyRelu,
        Activation::Mish,
        Activation::Sigmoid,
        Activation::Softsign,
    ];
}

impl Pass for RecoverActivations {
    const INFO: PassInfo = PassInfo::new(
        "recover-activations",
        "Recover Gelu, HardSwish and other activations from the operators they were written as",
        Effect::Exact,
    );
    type Options = Options<Activation>;

    fn new(options: OptionSet<Options<Activation>>) -> Result<Self, OptionError> {
        Ok(RecoverActivations { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        recover(model, cx, &self.options, &rules(), rewrite)
    }
}

impl Activation {
    /// The opset that brought the operator.
    fn since(self) -> i64 {
        match self {
            Activation::Gelu => 20,
            Activation::Mish => 18,
            Activation::HardSwish => 14,
            _ => 7,
        }
    }

    /// Whether the operator holds the numbers of its formula as attributes, which are `float`.
    fn has_float_attribute(self) -> bool {
        matches!(self, Activation::HardSigmoid | Activation::LeakyRelu)
    }
}

/// Makes the activation of a value; `None` when the constants that were found are not its own.
type Build = fn(&Graph, &Match, ValueId) -> Option<NewOp>;

type Rule = recover::Rule<Activation, Build>;

const SIXTH: f32 = 1.0 / 6.0;

fn rule(operator: Activation, roots: &'static [&'static str], pat: Pat, build: Build) -> Rule {
    Rule {
        operator,
        roots,
        pat,
        build,
    }
}

const ENDS: &[&str] = &["Mul", "Div"];

/// The ways to write activations out; of those with a common root the longest first.
fn rules() -> Vec<Rule> {
    smooth_rules().into_iter().chain(hard_rules()).collect()
}

fn smooth_rules() -> [Rule; 5] {
    use Activation::{Gelu, Mish, Sigmoid, Softsign};
    let softsign = div(any(0), add(scalar(1.0), unary("Abs", any(0))));
    [
        rule(Gelu, ENDS, gelu(gate_erf()), |_, _, x| {
            Some(NewOp::new("Gelu").input(x))
        }),
        rule(Gelu, ENDS, gelu(gate_tanh()), |_, _, x| {
            Some(NewOp::new("Gelu").input(x).attr("approximate", "tanh"))
        }),
        rule(Mish, &["Mul"], mish(), |_, _, x| {
            Some(NewOp::new("Mish").input(x))
        }),
        rule(Sigmoid, &["Div", "Reciprocal"], sigmoid(), |_, _, x| {
            Some(NewOp::new("Sigmoid").input(x))
        }),
        rule(Softsign, &["Div"], softsign, |_, _, x| {
            Some(NewOp::new("Softsign").input(x))
        }),
    ]
}

fn hard_rules() -> [Rule; 5] {
    use Activation::{HardSigmoid, HardSwish, LeakyRelu};
    let gate = mul(any(0), marked(0, "HardSigmoid", any(0)));
    let clips = &["Clip", "Min", "Max"];
    [
        rule(HardSwish, ENDS, hard_swish(), |_, _, x| {
            Some(NewOp::new("HardSwish").input(x))
        }),
        rule(HardSwish, &["Mul"], gate, gated),
        rule(HardSigmoid, ENDS, sixth_of_clip(), |_, _, x| {
            Some(hard_sigmoid(x, SIXTH, 0.5))
        }),
        rule(HardSigmoid, clips, clip_of_line(), |g, m, x| {
            let bound = |slot| constant_scalar(g, m.value(slot)?);
            let slope = match bound(1) {
                Some(factor) => factor,
                None => 1.0 / bound(3)?,
            };
            line(x, slope, bound(2)?)
        }),
        rule(LeakyRelu, &["Max"], leaky(), |g, m, x| {
            let slope = constant_scalar(g, m.value(1)?)?;
            let fits = slope > 0.0 && slope < 1.0;
            fits.then(|| NewOp::new("LeakyRelu").input(x).attr("alpha", slope as f32))
        }),
    ]
}

fn hard_sigmoid(x: ValueId, alpha: f32, beta: f32) -> NewOp {
    NewOp::new("HardSigmoid")
        .input(x)
        .attr("alpha", alpha)
        .attr("beta", beta)
}

fn line(x: ValueId, alpha: f64, beta: f64) -> Option<NewOp> {
    let (alpha, beta) = (alpha as f32, beta as f32);
    // A slope of zero would hide an infinite input.
    let fits = alpha.is_normal() && beta.is_finite();
    fits.then(|| hard_sigmoid(x, alpha, beta))
}

/// `x * HardSigmoid(x)`, when the inner one is that of `HardSwish`.
fn gated(graph: &Graph, found: &Match, x: ValueId) -> Option<NewOp> {
    let o = graph.get_op(found.marked(0)?)?;
    let near =
        |name, default, wanted: f32| (o.float(name).unwrap_or(default) - wanted).abs() <= 1e-7;
    let fits = near("alpha", 0.2, SIXTH) && near("beta", 0.5, 0.5);
    fits.then(|| NewOp::new("HardSwish").input(x))
}

/// `x * gate * 0.5` in any order.
fn gelu(gate: Pat) -> Pat {
    either([
        times(mul(any(0), gate.clone()), 0.5),
        mul(any(0), times(gate.clone(), 0.5)),
        mul(times(any(0), 0.5), gate),
    ])
}

fn gate_erf() -> Pat {
    let inner = times(any(0), std::f64::consts::FRAC_1_SQRT_2);
    add(unary("Erf", inner), scalar(1.0))
}

fn gate_tanh() -> Pat {
    let k = (2.0 / std::f64::consts::PI).sqrt();
    let c = 0.044715;
    let square = || Pat::Square(Box::new(any(0)));
    let cube = either([
        mul(scalar(c), Pat::Op("Pow", vec![any(0), scalar(3.0)])),
        mul(scalar(c), mul(any(0), square())),
        mul(any(0), mul(any(0), mul(scalar(c), any(0)))),
        mul(any(0), mul(scalar(c), square())),
        mul(mul(scalar(c), any(0)), square()),
    ]);
    let factored = add(scalar(1.0), mul(scalar(c), square()));
    let inner = either([
        mul(scalar(k), add(any(0), cube)),
        mul(scalar(k), mul(any(0), factored.clone())),
        mul(mul(scalar(k), any(0)), factored),
    ]);
    add(unary("Tanh", inner), scalar(1.0))
}

fn six_clip() -> Pat {
    clamp(add(any(0), scalar(3.0)), 0.0, 6.0)
}

fn sixth_of_clip() -> Pat {
    times(six_clip(), 1.0 / 6.0)
}

fn hard_swish() -> Pat {
    either([
        times(mul(any(0), six_clip()), 1.0 / 6.0),
        mul(any(0), sixth_of_clip()),
        mul(times(any(0), 1.0 / 6.0), six_clip()),
    ])
}

fn clip_of_line() -> Pat {
    let scaled = either([
        mul(any(0), Pat::BoundScalar(1)),
        div(any(0), Pat::BoundScalar(3)),
    ]);
    clamp(add(scaled, Pat::BoundScalar(2)), 0.0, 1.0)
}

fn leaky() -> Pat {
    Pat::Both(
        "Max",
        Box::new(any(0)),
        Box::new(mul(any(0), Pat::BoundScalar(1))),
    )
}

fn mish() -> Pat {
    let exp = add(unary("Exp", any(0)), scalar(1.0));
    let softplus = either([unary("Softplus", any(0)), unary("Log", exp)]);
    mul(any(0), unary("Tanh", softplus))
}

fn sigmoid() -> Pat {
    let denominator = add(unary("Exp", unary("Neg", any(0))), scalar(1.0));
    either([
        div(scalar(1.0), denominator.clone()),
        unary("Reciprocal", denominator),
    ])
}

fn rewrite(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    site: &Site<'_, Activation, Build>,
) -> Result<Outcome, PassError> {
    let (op, operator) = (site.op, site.rule.operator);
    let built = site
        .found
        .value(0)
        .and_then(|x| Some((x, (site.rule.build)(graph, site.found, x)?)));
    let Some((x, new)) = built else {
        return Ok(Outcome::Other);
    };
    match obstacle(graph, site, x) {
        None => {}
        // `x * HardSigmoid(x)` is what this pass itself makes of a HardSwish there.
        Some(("opset", _)) if site.found.marked(0).is_some() => return Ok(Outcome::Other),
        // The gate at least is one operator in every opset.
        Some(("opset", _)) if operator == Activation::HardSwish => {
            return rewrite_gate(graph, cx, site, x);
        }
        Some((code, message)) => {
            cx.missed(graph, op, code, message);
            return Ok(Outcome::Refused);
        }
    }
    cx.applied(graph, op, "recovered", format!("recovered {operator:?}"));
    replace_match(graph, op, site.found, new)?;
    Ok(Outcome::Recovered)
}

/// `x * clip(x + 3, 0, 6) / 6` as `x * HardSigmoid(x)`.
fn rewrite_gate(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    site: &Site<'_, Activation, Build>,
    x: ValueId,
) -> Result<Outcome, PassError> {
    let (op, found) = (site.op, site.found);
    if !site.options.operators.contains(&Activation::HardSigmoid) {
        return Ok(Outcome::Other);
    }
    if found.dtype == Some(DType::F64) {
        let message = "the attributes of HardSigmoid are less precise than double";
        cx.missed(graph, op, "element-type", message);
        return Ok(Outcome::Refused);
    }
    cx.applied(graph, op, "recovered", "recovered HardSigmoid");
    let hint = format!("{}_gate", output_name(graph, op));
    let inner = hard_sigmoid(x, SIXTH, 0.5).output(hint);
    let inner = graph.add_op(inner.from(found.ops.iter().copied()))?;
    let mut product = NewOp::new("Mul").input(x);
    if let Some(gate) = graph.op(inner).output(0) {
        product = product.input(gate);
    }
    replace_match(graph, op, found, product)?;
    Ok(Outcome::Recovered)
}

/// Why a pattern that is there is not replaced: a code and a message.
fn obstacle(
    graph: &Graph,
    site: &Site<'_, Activation, Build>,
    x: ValueId,
) -> Option<(&'static str, String)> {
    let (operator, facts, found) = (site.rule.operator, site.facts, site.found);
    let dtype = facts.dtype(graph, x).or(found.dtype);
    let types: &[DType] = match operator.has_float_attribute() {
        true => &[DType::F32, DType::F16],
        false => &[DType::F32, DType::F16, DType::F64],
    };
    if !dtype.is_some_and(|d| types.contains(&d)) {
        let message = "the element type is not float or float16";
        return Some(("element-type", message.to_owned()));
    }
    if !facts.keeps_rank(graph, x, found.scalar_rank) {
        let message = "a constant could broadcast the value to a higher rank";
        return Some(("rank", message.to_owned()));
    }
    let (since, opset) = (operator.since(), facts.opset);
    (opset < since).then(|| {
        let message = format!("{operator:?} needs opset {since}, the model has {opset}");
        ("opset", message)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::RecoverActivations;
    use crate::testing::{check, refused, unchanged};

    const CONSTANTS: &str = "float zero = {0}, float half = {0.5}, float one = {1}, float two = {2}, float three = {3}, float six = {6}, float sixth = {0.16666667}, float root = {1.4142135}, float k = {0.7978846}, float c = {0.044715}, float slope = {0.1}";

    fn text(opset: i64, body: &str) -> String {
        format!(
            r#"<opset_import: ["": {opset}]> f (float[N,4] x) => (float[] y) <{CONSTANTS}> {{ {body} }}"#
        )
    }

    fn recovers(opset: i64, before: &str, after: &str) {
        check::<RecoverActivations>("", &text(opset, before), &text(opset, after));
    }

    #[test]
    fn gelu_in_every_order() {
        let gate = "a = Div(x, root) b = Erf(a) g = Add(one, b)";
        for end in [
            "d = Mul(x, g) y = Mul(d, half)",
            "d = Mul(g, x) y = Div(d, two)",
            "d = Mul(half, g) y = Mul(d, x)",
            "d = Mul(x, half) y = Mul(d, g)",
        ] {
            recovers(20, &format!("{gate} {end}"), "y = Gelu(x)");
        }
        let body = format!("{gate} d = Mul(x, g) y = Mul(d, half)");
        refused::<RecoverActivations>("", &text(17, &body), "opset");
    }

    #[test]
    fn gelu_by_tanh_as_two_exporters_write_it() {
        let after = r#"y = Gelu<approximate = "tanh">(x)"#;
        let end = "t = Tanh(u) g = Add(t, one) d = Mul(x, g) y = Mul(half, d)";
        let pow = "p = Pow(x, three) q = Mul(p, c) s = Add(x, q) u = Mul(s, k)";
        recovers(20, &format!("{pow} {end}"), after);
        let products = "p = Mul(c, x) q = Mul(x, p) r = Mul(x, q) s = Add(x, r) u = Mul(k, s)";
        recovers(20, &format!("{products} {end}"), after);
    }

    #[test]
    fn hard_swish_as_paddle_writes_it() {
        let before = "a = Add(x, three) c2 = Clip(a, zero, six) m = Mul(x, c2) y = Div(m, six)";
        recovers(14, before, "y = HardSwish(x)");
        let gate = "y_gate = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, y_gate)";
        recovers(12, before, gate);
        let old =
            "a = Add(x, three) c2 = Clip<min = 0.0, max = 6.0>(a) m = Mul(x, c2) y = Mul(m, sixth)";
        recovers(9, old, gate);
        recovers(
            14,
            "h = HardSigmoid<alpha = 0.16666667>(x) y = Mul(x, h)",
            "y = HardSwish(x)",
        );
        unchanged::<RecoverActivations>("", &text(14, "h = HardSigmoid(x) y = Mul(x, h)"));
    }

    #[test]
    fn hard_sigmoid_with_any_line() {
        recovers(
            17,
            "a = Mul(x, slope) b = Add(a, half) y = Clip(b, zero, one)",
            "y = HardSigmoid<alpha = 0.1, beta = 0.5>(x)",
        );
        recovers(
            17,
            "a = Div(x, two) b = Add(a, half) m = Max(b, zero) y = Min(m, one)",
            "y = HardSigmoid<alpha = 0.5, beta = 0.5>(x)",
        );
        recovers(
            17,
            "a = Add(x, three) r = Relu(a) m = Min(r, six) y = Div(m, six)",
            "y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)",
        );
        unchanged::<RecoverActivations>(
            "",
            &text(
                17,
                "a = Mul(x, slope) b = Add(a, half) y = Clip(b, zero, two)",
            ),
        );
    }

    #[test]
    fn the_others() {
        recovers(
            18,
            "s = Softplus(x) t = Tanh(s) y = Mul(x, t)",
            "y = Mish(x)",
        );
        recovers(
            18,
            "e = Exp(x) a = Add(e, one) s = Log(a) t = Tanh(s) y = Mul(t, x)",
            "y = Mish(x)",
        );
        recovers(
            7,
            "n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(one, a)",
            "y = Sigmoid(x)",
        );
        recovers(
            7,
            "n = Neg(x) e = Exp(n) a = Add(one, e) y = Reciprocal(a)",
            "y = Sigmoid(x)",
        );
        recovers(
            7,
            "b = Abs(x) a = Add(one, b) y = Div(x, a)",
            "y = Softsign(x)",
        );
        recovers(
            8,
            "a = Mul(x, slope) y = Max(x, a)",
            "y = LeakyRelu<alpha = 0.1>(x)",
        );
        unchanged::<RecoverActivations>("", &text(8, "a = Mul(x, two) y = Max(x, a)"));
        // Infinite for large inputs, where Softplus is not.
        unchanged::<RecoverActivations>("", &text(17, "e = Exp(x) a = Add(e, one) y = Log(a)"));
    }

    #[test]
    fn steps_that_serve_something_else_stay() {
        let body = "n = Neg(x) e = Exp(n) a = Add(one, e) y = Reciprocal(a)";
        unchanged::<RecoverActivations>(
            "",
            &text(17, body).replace("(float[] y)", "(float[] y, float[] e)"),
        );
        unchanged::<RecoverActivations>(
            "",
            &text(17, &format!("{body} z = Relu(e)"))
                .replace("(float[] y)", "(float[] y, float[] z)"),
        );
    }

    #[test]
    fn constants_that_add_dimensions_stay() {
        let body = "n = Neg(x) e = Exp(n) a = Add(wide, e) y = Reciprocal(a)";
        let wide = text(17, body).replace("float zero", "float[1,1,1] wide = {1}, float zero");
        refused::<RecoverActivations>("", &wide, "rank");
    }

    #[test]
    fn double_has_no_attribute_of_its_precision() {
        let body = "a = Mul(x, slope) b = Add(a, half) y = Clip(b, zero, one)";
        refused::<RecoverActivations>(
            "",
            &text(17, body).replace("float", "double"),
            "element-type",
        );
    }

    #[test]
    fn double_has_no_gate_either() {
        let body = "a = Add(x, three) c2 = Clip(a, zero, six) m = Mul(x, c2) y = Div(m, six)";
        let double = |opset| text(opset, body).replace("float", "double");
        refused::<RecoverActivations>("", &double(12), "element-type");
        let after = text(14, "y = HardSwish(x)").replace("float", "double");
        check::<RecoverActivations>("", &double(14), &after);
    }

    #[test]
    fn only_what_is_asked_for() {
        let body = text(
            17,
            "n = Neg(x) e = Exp(n) a = Add(one, e) y = Reciprocal(a)",
        );
        unchanged::<RecoverActivations>(r#"{"operators": ["Gelu"]}"#, &body);
    }
}

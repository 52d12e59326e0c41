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

use std::collections::BTreeSet;

use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, ValueId,
};

use crate::known::{Known, sweep_back};
use crate::pattern::{
    Match, Matcher, Pat, add, any, clamp, constant_scalar, div, either, marked, mul, scalar, times,
    unary,
};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct RecoverActivations {
    options: OptionSet<Options>,
}

/// An activation.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
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

/// Options of `recover-activations`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The operators to recover. The default is all of them, since the common engines run them;
    /// shorten the list for an engine that lacks one.
    pub operators: BTreeSet<Activation>,
}

impl Default for Options {
    fn default() -> Self {
        use Activation::{Gelu, HardSigmoid, HardSwish, LeakyRelu, Mish, Sigmoid, Softsign};
        Options {
            operators: [
                Gelu,
                HardSigmoid,
                HardSwish,
                LeakyRelu,
                Mish,
                Sigmoid,
                Softsign,
            ]
            .into(),
        }
    }
}

impl Pass for RecoverActivations {
    const INFO: PassInfo = PassInfo::new(
        "recover-activations",
        "Recover Gelu, HardSwish and other activations from the operators they were written as",
        Effect::Exact,
    );
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(RecoverActivations { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let rules = rules();
        let opset = model.opset();
        // Shapes are inferred only when a pattern is there.
        let found = |g: &Graph, op: OpId| {
            let matcher = Matcher::new(g, opset);
            rules
                .iter()
                .any(|r| r.is_root(g, op) && matcher.at(op, &r.pat).is_some())
        };
        let Some(known) = Known::when(model, cx, found) else {
            return Ok(Changed::No);
        };
        let mut changed = Changed::No;
        model.edit_graphs(&mut |graph| {
            sweep_back(graph, cx, |graph, cx, op| {
                for rule in &rules {
                    if rule.is_root(graph, op)
                        && self.recover(graph, cx, op, rule, &known)?.is_yes()
                    {
                        changed = Changed::Yes;
                        break;
                    }
                }
                Ok(())
            })
        })?;
        Ok(changed)
    }
}

type Build = fn(&Graph, &Match, ValueId) -> Option<NewOp>;

/// One way to write an activation out.
struct Rule {
    operator: Activation,
    since: i64,
    /// The types of the last operator.
    roots: &'static [&'static str],
    pat: Pat,
    /// Whether an attribute holds a constant as a `float`.
    has_float_attribute: bool,
    build: Build,
}

impl Rule {
    fn is_root(&self, graph: &Graph, op: OpId) -> bool {
        let o = graph.op(op);
        self.roots.iter().any(|t| o.is(t))
    }
}

const SIXTH: f32 = 1.0 / 6.0;

fn rule(
    operator: Activation,
    since: i64,
    roots: &'static [&'static str],
    pat: Pat,
    build: Build,
) -> Rule {
    // These two have the numbers of their formula as attributes.
    let has_float_attribute = matches!(operator, Activation::HardSigmoid | Activation::LeakyRelu);
    Rule {
        operator,
        since,
        roots,
        pat,
        has_float_attribute,
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
        rule(Gelu, 20, ENDS, gelu(gate_erf()), |_, _, x| {
            Some(NewOp::new("Gelu").input(x))
        }),
        rule(Gelu, 20, ENDS, gelu(gate_tanh()), |_, _, x| {
            Some(NewOp::new("Gelu").input(x).attr("approximate", "tanh"))
        }),
        rule(Mish, 18, &["Mul"], mish(), |_, _, x| {
            Some(NewOp::new("Mish").input(x))
        }),
        rule(Sigmoid, 7, &["Div", "Reciprocal"], sigmoid(), |_, _, x| {
            Some(NewOp::new("Sigmoid").input(x))
        }),
        rule(Softsign, 7, &["Div"], softsign, |_, _, x| {
            Some(NewOp::new("Softsign").input(x))
        }),
    ]
}

fn hard_rules() -> [Rule; 5] {
    use Activation::{HardSigmoid, HardSwish, LeakyRelu};
    let gate = mul(any(0), marked(0, "HardSigmoid", any(0)));
    let clips = &["Clip", "Min", "Max"];
    [
        rule(HardSwish, 14, ENDS, hard_swish(), |_, _, x| {
            Some(NewOp::new("HardSwish").input(x))
        }),
        rule(HardSwish, 14, &["Mul"], gate, gated),
        rule(HardSigmoid, 7, ENDS, sixth_of_clip(), |_, _, x| {
            Some(hard_sigmoid(x, SIXTH, 0.5))
        }),
        rule(HardSigmoid, 7, clips, clip_of_line(), |g, m, x| {
            let bound = |slot| constant_scalar(g, m.value(slot)?);
            let slope = match bound(1) {
                Some(factor) => factor,
                None => 1.0 / bound(3)?,
            };
            line(x, slope, bound(2)?)
        }),
        rule(LeakyRelu, 7, &["Max"], leaky(), |g, m, x| {
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

impl RecoverActivations {
    fn recover(
        &self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        op: OpId,
        rule: &Rule,
        known: &Known,
    ) -> Result<Changed, PassError> {
        let wanted = self.options.for_op(graph, op).options();
        if !wanted.is_some_and(|o| o.operators.contains(&rule.operator)) {
            return Ok(Changed::No);
        }
        let Some(found) = Matcher::new(graph, known.opset).at(op, &rule.pat) else {
            return Ok(Changed::No);
        };
        let Some((x, new)) = found
            .value(0)
            .and_then(|x| Some((x, (rule.build)(graph, &found, x)?)))
        else {
            return Ok(Changed::No);
        };
        if let Some((code, message)) = obstacle(graph, known, rule, &found, x) {
            let is_gate = found.marked(0).is_some();
            if code == "opset" && is_gate {
                // What this pass itself makes of a HardSwish there.
                return Ok(Changed::No);
            }
            if code != "opset" || rule.operator != Activation::HardSwish {
                cx.missed(graph, op, code, message);
                return Ok(Changed::No);
            }
            // The gate at least is one operator in every opset.
            return self.gate(graph, cx, op, &found, x);
        }
        let name = format!("{:?}", rule.operator);
        cx.applied(graph, op, "recovered", format!("recovered {name}"));
        replace(graph, op, &found, new)?;
        Ok(Changed::Yes)
    }

    /// `x * clip(x + 3, 0, 6) / 6` as `x * HardSigmoid(x)`.
    fn gate(
        &self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        op: OpId,
        found: &Match,
        x: ValueId,
    ) -> Result<Changed, PassError> {
        let wanted = self.options.for_op(graph, op).options();
        if !wanted.is_some_and(|o| o.operators.contains(&Activation::HardSigmoid)) {
            return Ok(Changed::No);
        }
        if found.dtype == Some(DType::F64) {
            let message = "the attributes of HardSigmoid are less precise than double";
            cx.missed(graph, op, "element-type", message);
            return Ok(Changed::No);
        }
        cx.applied(graph, op, "recovered", "recovered HardSigmoid");
        let hint = graph
            .op(op)
            .output(0)
            .map_or_else(|| "gate".into(), |v| graph.value(v).name().clone());
        let inner = hard_sigmoid(x, SIXTH, 0.5).output(format!("{hint}_gate"));
        let inner = graph.add_op(inner.from(found.ops.iter().copied()))?;
        let Some(gate) = graph.op(inner).output(0) else {
            return Ok(Changed::Yes);
        };
        replace(graph, op, found, NewOp::new("Mul").input(x).input(gate))?;
        Ok(Changed::Yes)
    }
}

/// Why a pattern that is there is not replaced.
fn obstacle(
    graph: &Graph,
    known: &Known,
    rule: &Rule,
    found: &Match,
    x: ValueId,
) -> Option<(&'static str, String)> {
    let dtype = known.dtype(graph, x).or(found.dtype);
    let types: &[DType] = match rule.has_float_attribute {
        true => &[DType::F32, DType::F16],
        false => &[DType::F32, DType::F16, DType::F64],
    };
    if !dtype.is_some_and(|d| types.contains(&d)) {
        return Some((
            "element-type",
            "the element type is not float or float16".to_owned(),
        ));
    }
    if !known.keeps_rank(graph, x, found.scalar_rank) {
        return Some((
            "rank",
            "a constant could broadcast the value to a higher rank".to_owned(),
        ));
    }
    if known.opset < rule.since {
        let (since, opset) = (rule.since, known.opset);
        return Some((
            "opset",
            format!(
                "{:?} needs opset {since}, the model has {opset}",
                rule.operator
            ),
        ));
    }
    None
}

/// Replaces the last operator of a match and removes the others.
pub(crate) fn replace(
    graph: &mut Graph,
    root: OpId,
    found: &Match,
    new: NewOp,
) -> Result<(), PassError> {
    let inner: Vec<OpId> = found.ops.iter().copied().filter(|&op| op != root).collect();
    graph.replace_op(root, new.from(inner.iter().copied()))?;
    remove_all(graph, inner)
}

/// Removes operators that nothing needs any more, consumers before producers.
pub(crate) fn remove_all(graph: &mut Graph, mut ops: Vec<OpId>) -> Result<(), PassError> {
    while !ops.is_empty() {
        let before = ops.len();
        let mut left = Vec::new();
        for op in ops {
            let unused = graph
                .op(op)
                .outputs()
                .iter()
                .flatten()
                .all(|&v| graph.value(v).is_unused());
            if unused {
                graph.remove_op(op)?;
            } else {
                left.push(op);
            }
        }
        // What is still used stays; the matcher has seen to it that this does not happen.
        if left.len() == before {
            break;
        }
        ops = left;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

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

//! Recovers `LayerNormalization` and `RMSNormalization` that an exporter wrote out.
//!
//! ```text
//! m = ReduceMean<axes = [-1]>(x)                  y = LayerNormalization<axis = -1, epsilon = 0.00001>(x, gamma, beta)
//! d = Sub(x, m)
//! s = Mul(d, d)
//! v = ReduceMean<axes = [-1]>(s)
//! e = Add(v, 0.00001)
//! r = Sqrt(e)
//! n = Div(d, r)
//! g = Mul(n, gamma)
//! y = Add(g, beta)
//! ```
//!
//! The square may be a `Pow`, the division a `Mul` with the `Reciprocal` of the root. The
//! factor and the term are taken along when they are constants (or values of known shape) over
//! exactly the normalized axes; without a factor, a constant of ones becomes the scale, which
//! the operator demands. `RMSNormalization` is the same without the mean.
//!
//! Left alone: means over axes that are not the last ones, or whose size is not known; element
//! types other than `float`, since both operators compute in `float` and would change the
//! rounding of the others; opsets before 17 (23 for `RMSNormalization`); steps that something
//! else takes too. ONNX Runtime and tract run both operators.
//!
//! Sources: J. L. Ba et al., Layer Normalization, 2016; B. Zhang and R. Sennrich, Root Mean
//! Square Layer Normalization, 2019.

use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor, ValueId,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::edits::remove_all;
use crate::facts::Facts;
use crate::linear::only_consumer;
use crate::pattern::{Match, Pat, add, any, constant_scalar, div, either, marked, mul, sub, unary};
use crate::recover::{Options, Outcome, Recovered, Rule, Site, recover};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct RecoverNormalizations {
    options: OptionSet<Options<Normalization>>,
}

/// A normalization.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[allow(missing_docs, reason = "the variants are named after the operators")]
pub enum Normalization {
    LayerNormalization,
    RMSNormalization,
}

impl Recovered for Normalization {
    const ALL: &'static [Self] = &[
        Normalization::LayerNormalization,
        Normalization::RMSNormalization,
    ];
}

impl Normalization {
    fn since(self) -> i64 {
        match self {
            Normalization::LayerNormalization => 17,
            Normalization::RMSNormalization => 23,
        }
    }
}

impl Pass for RecoverNormalizations {
    const INFO: PassInfo = PassInfo::new(
        "recover-normalizations",
        "Recover LayerNormalization and RMSNormalization from the operators they were written as",
        Effect::Exact,
    );
    type Options = Options<Normalization>;

    fn new(options: OptionSet<Options<Normalization>>) -> Result<Self, OptionError> {
        Ok(RecoverNormalizations { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        recover(model, cx, &self.options, &rules(), rewrite)
    }
}

fn rules() -> [Rule<Normalization>; 2] {
    let rule = |operator, pat| Rule {
        operator,
        roots: &["Div", "Mul"],
        pat,
        build: (),
    };
    // What LayerNormalization is written out as ends with an RMSNormalization.
    [
        rule(Normalization::LayerNormalization, layer_norm()),
        rule(Normalization::RMSNormalization, rms_norm()),
    ]
}

const MEAN: usize = 0;
const MEAN_OF_SQUARES: usize = 1;
const EPSILON: usize = 3;

fn over_root(x: Pat, of: Pat) -> Pat {
    let squares = marked(MEAN_OF_SQUARES, "ReduceMean", Pat::Square(Box::new(of)));
    let root = unary("Sqrt", add(squares, Pat::BoundScalar(EPSILON)));
    either([
        div(x.clone(), root.clone()),
        mul(x, unary("Reciprocal", root)),
    ])
}

fn layer_norm() -> Pat {
    let centered = || sub(any(0), marked(MEAN, "ReduceMean", any(0)));
    over_root(centered(), centered())
}

fn rms_norm() -> Pat {
    over_root(any(0), any(0))
}

/// The number of normalized axes, when a `ReduceMean` is over exactly the last ones and keeps them.
fn last_axes(graph: &Graph, facts: &Facts, op: OpId, rank: usize) -> Option<usize> {
    let o = graph.op(op);
    if o.int_or("keepdims", 1) == 0 {
        return None;
    }
    let mut axes = reduced_axes(graph, op, facts.opset)??;
    let rank = i64::try_from(rank).ok()?;
    axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += rank);
    axes.sort_unstable();
    let count = i64::try_from(axes.len()).ok()?;
    let last = axes.iter().copied().eq(rank - count..rank);
    (last && count > 0).then_some(axes.len())
}

/// The axes of a reduction: `None` when they are computed, `Some(None)` when all are reduced.
#[allow(
    clippy::option_option,
    reason = "three cases that the documentation names"
)]
pub(crate) fn reduced_axes(graph: &Graph, op: OpId, opset: i64) -> Option<Option<Vec<i64>>> {
    let o = graph.op(op);
    // Axes are an input of ReduceSum from opset 13 and of the others from 18.
    let since = if o.is("ReduceSum") { 13 } else { 18 };
    if opset < since {
        return Some(o.ints("axes").map(<[i64]>::to_vec));
    }
    match o.input(1) {
        None if o.int_or("noop_with_empty_axes", 0) != 0 => None,
        None => Some(None),
        Some(v) => match graph.tensor(v)?.to_i64s()? {
            // What an empty list means depends on an attribute; nobody writes it.
            axes if axes.is_empty() => None,
            axes => Some(Some(axes)),
        },
    }
}

fn rewrite(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    site: &Site<'_, Normalization>,
) -> Result<Outcome, PassError> {
    let (op, kind) = (site.op, site.rule.operator);
    let Some(x) = site.found.value(0) else {
        return Ok(Outcome::Other);
    };
    let plan = match plan(graph, op, kind, site.found, site.facts, x) {
        Ok(plan) => plan,
        Err((code, message)) => {
            cx.missed(graph, op, code, message);
            return Ok(Outcome::Refused);
        }
    };
    cx.applied(graph, op, "recovered", format!("recovered {kind:?}"));
    let scale = match plan.scale {
        Some(scale) => place(graph, scale)?,
        None => {
            let count = plan.dims.iter().product();
            let ones = Tensor::from_vec(plan.dims.iter().copied(), vec![1.0f32; count]);
            let ones = ones.map_err(|e| PassError::Precondition {
                found: e.to_string(),
                remedy: "leave the operator out".to_owned(),
            })?;
            let hint = format!("{}_scale", graph.op_label(plan.root));
            graph.add_constant(&hint, ones)?
        }
    };
    let axis = -i64::try_from(plan.dims.len()).unwrap_or(1);
    let mut new = NewOp::new(format!("{kind:?}"))
        .input(x)
        .input(scale)
        .attr("axis", axis)
        .attr("epsilon", plan.epsilon);
    if let Some(bias) = plan.bias {
        new = new.input(place(graph, bias)?);
    }
    // The core stands in both lists.
    let mut inner = site.found.ops.clone();
    inner.extend(plan.tail.iter().filter(|op| !site.found.ops.contains(op)));
    inner.retain(|&o| o != plan.root);
    graph.replace_op(plan.root, new.from(inner.iter().copied()))?;
    remove_all(graph, inner)?;
    Ok(Outcome::Recovered)
}

/// A scale or bias: a value as it is, or a constant under another shape.
enum Parameter {
    Value(ValueId),
    Reshaped(ValueId, Tensor),
}

fn place(graph: &mut Graph, p: Parameter) -> Result<ValueId, PassError> {
    Ok(match p {
        Parameter::Value(v) => v,
        Parameter::Reshaped(from, tensor) => {
            let hint = format!("{}_reshaped", graph.value(from).name());
            let v = graph.add_constant(&hint, tensor)?;
            graph.set_tensor_sources(v, &[from])?;
            v
        }
    })
}

struct Plan {
    /// The operator whose output the normalization makes.
    root: OpId,
    /// The operators after the core that are taken along.
    tail: Vec<OpId>,
    /// The sizes of the normalized axes.
    dims: Vec<usize>,
    epsilon: f32,
    scale: Option<Parameter>,
    bias: Option<Parameter>,
}

fn plan(
    graph: &Graph,
    core: OpId,
    kind: Normalization,
    found: &Match,
    facts: &Facts,
    x: ValueId,
) -> Result<Plan, (&'static str, String)> {
    let refuse = |code, message: &str| Err((code, message.to_owned()));
    let (since, opset) = (kind.since(), facts.opset);
    if opset < since {
        return refuse(
            "opset",
            &format!("{kind:?} needs opset {since}, the model has {opset}"),
        );
    }
    if found.dtype != Some(DType::F32) {
        return refuse("element-type", "the element type is not float");
    }
    let epsilon = found.value(EPSILON).and_then(|v| constant_scalar(graph, v));
    let Some(epsilon) = epsilon.filter(|e| e.is_finite() && *e >= 0.0) else {
        return refuse(
            "epsilon",
            "the constant under the root is not a small positive number",
        );
    };
    let Some(rank) = facts.rank(graph, x).filter(|&r| found.scalar_rank <= r) else {
        return refuse("rank", "the rank of the value is not known");
    };
    let squares = found
        .marked(MEAN_OF_SQUARES)
        .and_then(|op| last_axes(graph, facts, op, rank));
    let means = match found.marked(MEAN) {
        Some(op) => last_axes(graph, facts, op, rank),
        None => squares,
    };
    let Some(count) = squares.filter(|_| squares == means) else {
        return refuse("axes", "the means are not over the same last axes");
    };
    let dims: Option<Vec<usize>> = (rank - count..rank)
        .map(|a| facts.dim(graph, x, a))
        .collect();
    let Some(dims) = dims.filter(|d| !d.contains(&0)) else {
        return refuse("unknown-size", "the size of a normalized axis is not known");
    };
    let mut plan = Plan {
        root: core,
        tail: Vec::new(),
        dims,
        epsilon: epsilon as f32,
        scale: None,
        bias: None,
    };
    take_along(graph, facts, kind, rank, &mut plan);
    Ok(plan)
}

/// Takes the factor and the term after the core along.
fn take_along(graph: &Graph, facts: &Facts, kind: Normalization, rank: usize, plan: &mut Plan) {
    let next = |op: OpId, op_type: &str, dims: &[usize]| {
        let out = graph.op(op).output(0)?;
        let (next, slot) = only_consumer(graph, out)?;
        let o = graph.op(next);
        let other = o.input(1 - slot.min(1))?;
        (o.is(op_type) && other != out).then_some(())?;
        Some((next, parameter(graph, facts, other, dims, rank)?))
    };
    let Some((product, scale)) = next(plan.root, "Mul", &plan.dims) else {
        return;
    };
    plan.tail.push(plan.root);
    plan.root = product;
    plan.scale = Some(scale);
    if kind == Normalization::RMSNormalization {
        return;
    }
    if let Some((sum, bias)) = next(product, "Add", &plan.dims) {
        plan.tail.push(product);
        plan.root = sum;
        plan.bias = Some(bias);
    }
}

/// A value as scale or bias over the normalized axes.
fn parameter(
    graph: &Graph,
    facts: &Facts,
    v: ValueId,
    dims: &[usize],
    rank: usize,
) -> Option<Parameter> {
    let Some(t) = graph.tensor(v) else {
        let same = facts.rank(graph, v)? == dims.len()
            && dims
                .iter()
                .enumerate()
                .all(|(i, &d)| facts.dim(graph, v, i) == Some(d));
        return same.then_some(Parameter::Value(v));
    };
    if t.dims() == dims {
        return Some(Parameter::Value(v));
    }
    let leading = t.rank().checked_sub(dims.len())?;
    let (ones, own) = t.dims().split_at(leading);
    let fits = t.rank() <= rank && ones.iter().all(|&d| d == 1) && own == dims;
    if !fits {
        return None;
    }
    Some(Parameter::Reshaped(
        v,
        t.reshaped(dims.iter().copied()).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::RecoverNormalizations;
    use crate::testing::{check, refused};

    fn text(opset: i64, constants: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": {opset}]> f (float[N,T,4] x) => (float[] y)
            <float eps = {{1e-5}}, float two = {{2}}, int64[1] last = {{-1}}, float[4] g = random(1), float[1,1,4] b = random(2){constants}>
            {{ {body} }}"#
        )
    }

    const CORE: &str = "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes = [2]>(p) e = Add(v, eps) s = Sqrt(e) n = Div(d, s)";

    #[test]
    fn layer_normalization_with_scale_and_bias() {
        check::<RecoverNormalizations>(
            "",
            &text(17, "", &format!("{CORE} q = Mul(n, g) y = Add(q, b)")),
            &text(
                17,
                ", float[4] b_reshaped = random(2)",
                "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, g, b_reshaped)",
            ),
        );
    }

    #[test]
    fn axes_as_inputs_and_the_reciprocal_of_the_root() {
        let body = "m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) e = Add(v, eps) s = Sqrt(e) r = Reciprocal(s) n = Mul(r, d) y = Mul(g, n)";
        check::<RecoverNormalizations>(
            "",
            &text(18, "", body),
            &text(
                18,
                "",
                "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, g)",
            ),
        );
    }

    #[test]
    fn without_a_scale_it_gets_ones() {
        check::<RecoverNormalizations>(
            "",
            &text(17, "", &CORE.replace("n = ", "y = ")),
            &text(
                17,
                ", float[4] y_scale = ones",
                "y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, y_scale)",
            ),
        );
    }

    #[test]
    fn root_mean_square() {
        let body = "p = Mul(x, x) v = ReduceMean(p, last) e = Add(v, eps) s = Sqrt(e) n = Div(x, s) y = Mul(n, g)";
        check::<RecoverNormalizations>(
            "",
            &text(23, "", body),
            &text(
                23,
                "",
                "y = RMSNormalization<axis = -1, epsilon = 1e-5>(x, g)",
            ),
        );
        refused::<RecoverNormalizations>("", &text(18, "", body), "opset");
    }

    #[test]
    fn refuses_with_a_reason() {
        let body = format!("{CORE} q = Mul(n, g) y = Add(q, b)");
        refused::<RecoverNormalizations>("", &text(16, "", &body), "opset");
        refused::<RecoverNormalizations>("", &text(17, "", &body.replace("[2]", "[1]")), "axes");
        refused::<RecoverNormalizations>(
            "",
            &text(17, "", &body).replace("[N,T,4]", "[N,T,C]"),
            "unknown-size",
        );
        refused::<RecoverNormalizations>(
            "",
            &text(17, "", &body).replace("float", "double"),
            "element-type",
        );
        refused::<RecoverNormalizations>(
            "",
            &text(17, "", &body).replace("{1e-5}", "{-1}"),
            "epsilon",
        );
    }
}

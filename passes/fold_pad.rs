//! Folds a constant `Pad` into the padding of the convolutions and pools that take it.
//!
//! - A `Conv` pads with zeros, so zeros in front of it go into its `pads`.
//! - An `AveragePool` counts zeros that stand in its input as elements: it gets
//!   `count_include_pad = 1`.
//! - A `MaxPool` ignores its padding. That is the same as padding with a number that no element
//!   is below: minus infinity, or zero after a `Relu` and its like.
//!
//! ```text
//! p = Pad(x, <0, 0, 1, 1, 0, 0, 1, 1>)            y = Conv<pads = [1, 1, 1, 1]>(x, w)
//! y = Conv(p, w)
//! ```
//!
//! Left alone: other modes and values, negative pads (which cut off), pads of batch or channels,
//! pads that are not constant, operators with automatic padding, pools that would see nothing
//! but padding or round their output up, and a `Pad` that something else takes as well.

use paring_ir::{
    Changed, Effect, Graph, Model, NoOptions, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Port, ValueId,
};

use crate::common::visit_ops;
use crate::facts::Facts;
use crate::linear::Refusal;
use crate::pattern::{clip_bounds, constant_scalar};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct FoldPad {
    options: OptionSet<NoOptions>,
}

impl Pass for FoldPad {
    const INFO: PassInfo = PassInfo::new(
        "fold-pad",
        "Fold a constant Pad into the convolution or pool after it",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(FoldPad { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let is_candidate = |g: &Graph, op: OpId| {
            let out = g.op(op).output(0).filter(|_| g.op(op).is("Pad"));
            let mut uses = out.into_iter().flat_map(|v| g.value(v).uses());
            uses.any(|u| pads_itself(g, u.op))
        };
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            if !is_candidate(graph, op) {
                return Ok(Changed::No);
            }
            match plan(graph, op, &facts) {
                Err(why) => {
                    cx.missed(graph, op, why.code, why.message);
                    Ok(Changed::No)
                }
                Ok(plan) => {
                    cx.applied(graph, op, "folded", "what takes it pads by itself");
                    apply(graph, op, plan)?;
                    Ok(Changed::Yes)
                }
            }
        })
    }
}

fn pads_itself(graph: &Graph, op: OpId) -> bool {
    let o = graph.op(op);
    o.is("Conv") || o.is("AveragePool") || o.is("MaxPool")
}

/// What a `Pad` adds: before and after each spatial axis, and of which value.
struct Padding {
    begin: Vec<i64>,
    end: Vec<i64>,
    value: f64,
}

/// The new padding of one consumer.
struct Edit {
    op: OpId,
    pads: Vec<i64>,
    counts_padding: bool,
}

struct Plan {
    source: ValueId,
    edits: Vec<Edit>,
}

fn padding(graph: &Graph, op: OpId, facts: &Facts) -> Result<Padding, Refusal> {
    let o = graph.op(op);
    let mode = o.string("mode").unwrap_or("constant");
    if mode != "constant" {
        return Err(Refusal::new(
            "mode",
            format!("it pads in the mode \"{}\"", paring_ir::escape(mode)),
        ));
    }
    let dynamic = || Refusal::new("dynamic-pads", "its pads, value or axes are not constant");
    let ints = |slot: usize| {
        o.input(slot)
            .and_then(|v| graph.tensor(v))
            .and_then(|t| t.to_i64s())
    };
    let (pads, value) = if facts.opset < 11 {
        let value = o.float("value").map_or(0.0, f64::from);
        (
            o.ints("pads").map(<[i64]>::to_vec).ok_or_else(dynamic)?,
            value,
        )
    } else {
        let value = match o.input(2) {
            None => 0.0,
            Some(v) => constant_scalar(graph, v).ok_or_else(dynamic)?,
        };
        (ints(1).ok_or_else(dynamic)?, value)
    };
    let source = o.input(0).ok_or_else(dynamic)?;
    let axes = match o.input(3) {
        Some(_) => Some(ints(3).ok_or_else(dynamic)?),
        None => None,
    };
    let rank = match axes {
        Some(_) => facts.rank(graph, source).ok_or_else(dynamic)?,
        None => pads.len() / 2,
    };
    let axes: Vec<i64> = axes.unwrap_or_else(|| (0..rank as i64).collect());
    let (mut begin, mut end) = (vec![0i64; rank], vec![0i64; rank]);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = if axis < 0 { axis + rank as i64 } else { axis };
        let axis = usize::try_from(axis).map_err(|_| dynamic())?;
        let (b, e) = (pads.get(i), pads.get(i + axes.len()));
        let place = begin.get_mut(axis).zip(end.get_mut(axis));
        let ((Some(b), Some(e)), Some(place)) = ((b, e), place) else {
            return Err(dynamic());
        };
        (*place.0, *place.1) = (*b, *e);
    }
    if begin
        .iter()
        .chain(&end)
        .any(|&p| !(0..=1 << 20).contains(&p))
    {
        return Err(Refusal::new(
            "negative-pads",
            "it cuts off, or pads by too much",
        ));
    }
    if begin
        .iter()
        .take(2)
        .chain(end.iter().take(2))
        .any(|&p| p != 0)
    {
        return Err(Refusal::new(
            "other-axes",
            "it pads the batch or the channels",
        ));
    }
    Ok(Padding {
        begin: begin.split_off(2.min(rank)),
        end: end.split_off(2.min(rank)),
        value,
    })
}

fn plan(graph: &Graph, op: OpId, facts: &Facts) -> Result<Plan, Refusal> {
    let padding = padding(graph, op, facts)?;
    let shared = || Refusal::new("shared-output", "something else takes the padded value");
    let o = graph.op(op);
    let (Some(source), Some(out)) = (o.input(0), o.output(0)) else {
        return Err(shared());
    };
    if graph.value(out).is_output() {
        return Err(shared());
    }
    let mut edits = Vec::new();
    for u in graph.sorted_uses(out) {
        if u.port != Port::Input(0) || !pads_itself(graph, u.op) {
            return Err(shared());
        }
        edits.push(edit(graph, u.op, source, &padding, facts)?);
    }
    Ok(Plan { source, edits })
}

fn edit(
    graph: &Graph,
    op: OpId,
    source: ValueId,
    padding: &Padding,
    facts: &Facts,
) -> Result<Edit, Refusal> {
    let o = graph.op(op);
    let spatial = padding.begin.len();
    let odd = || Refusal::new("odd-operator", "the operator after it has unexpected pads");
    if !matches!(o.string("auto_pad"), None | Some("NOTSET" | "VALID")) {
        return Err(Refusal::new(
            "auto-pad",
            "the operator after it computes its padding",
        ));
    }
    let zeros = vec![0; 2 * spatial];
    let own = match o.string("auto_pad") {
        Some("VALID") => &zeros[..],
        _ => o.ints("pads").unwrap_or(&zeros),
    };
    if spatial == 0 || own.len() != 2 * spatial || own.iter().any(|p| !(0..=1 << 20).contains(p)) {
        return Err(odd());
    }
    let added = padding.begin.iter().chain(&padding.end);
    let pads: Vec<i64> = own.iter().zip(added).map(|(a, b)| a + b).collect();
    let mut counts_padding = false;
    if o.is("Conv") {
        if padding.value != 0.0 {
            return Err(Refusal::new(
                "value",
                "it pads with another number than zero",
            ));
        }
    } else {
        pool(graph, op, &pads)?;
        if o.is("MaxPool") {
            max_pool(graph, op, source, padding.value, facts)?;
        } else {
            counts_padding = true;
            let included = o.int_or("count_include_pad", 0) != 0;
            if padding.value != 0.0 || !(included || own.iter().all(|&p| p == 0)) {
                let message = "the pool would no longer tell these zeros from its own padding";
                return Err(Refusal::new("value", message));
            }
        }
    }
    Ok(Edit {
        op,
        pads,
        counts_padding,
    })
}

/// Pools must see an element in every window, and engines demand pads smaller than the kernel.
fn pool(graph: &Graph, op: OpId, pads: &[i64]) -> Result<(), Refusal> {
    let o = graph.op(op);
    let kernel = o.ints("kernel_shape").unwrap_or_default();
    let spatial = pads.len() / 2;
    let small = kernel.len() == spatial
        && pads
            .iter()
            .enumerate()
            .all(|(i, p)| kernel.get(i % spatial).is_some_and(|k| p < k));
    let dilated = o
        .ints("dilations")
        .is_some_and(|d| d.iter().any(|&d| d != 1));
    if !small || dilated || o.int_or("ceil_mode", 0) != 0 {
        let message = "the pool after it is dilated, rounds up, or is smaller than the padding";
        return Err(Refusal::new("window", message));
    }
    Ok(())
}

fn max_pool(
    graph: &Graph,
    op: OpId,
    source: ValueId,
    value: f64,
    facts: &Facts,
) -> Result<(), Refusal> {
    if graph.op(op).outputs().iter().flatten().count() > 1 {
        return Err(Refusal::new(
            "indices",
            "the indices of the pool count the padding",
        ));
    }
    let at_least = graph
        .producer(source)
        .and_then(|p| lower_bound(graph, p, facts.opset));
    if value == f64::NEG_INFINITY || at_least.is_some_and(|low| value <= low) {
        return Ok(());
    }
    let message = "an element could be below the number that it pads with";
    Err(Refusal::new("value", message))
}

/// A number that what an operator makes is never below.
fn lower_bound(graph: &Graph, op: OpId, opset: i64) -> Option<f64> {
    let o = graph.op(op);
    if let Some((low, _)) = clip_bounds(graph, o, opset) {
        return Some(low);
    }
    let types = [
        "Relu",
        "Sigmoid",
        "HardSigmoid",
        "Softmax",
        "Softplus",
        "Abs",
        "Exp",
        "Sqrt",
    ];
    types.iter().any(|t| o.is(t)).then_some(0.0)
}

fn apply(graph: &mut Graph, pad: OpId, plan: Plan) -> Result<(), PassError> {
    for edit in plan.edits {
        graph.set_input(edit.op, 0, Some(plan.source))?;
        graph.remove_attr(edit.op, "auto_pad")?;
        graph.set_attr(edit.op, "pads", edit.pads)?;
        if edit.counts_padding {
            graph.set_attr(edit.op, "count_include_pad", 1i64)?;
        }
    }
    graph.remove_op(pad)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::FoldPad;
    use crate::testing::{check, refused};

    fn text(constants: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": 17]> f (float[N,2,A,B] x) => (float[] y)
            <float[1,2,3,3] w = random(1), int64[8] p = {{0, 0, 1, 2, 0, 0, 3, 4}}{constants}> {{ {body} }}"#
        )
    }

    #[test]
    fn folds_into_all_that_take_it() {
        check::<FoldPad>(
            "",
            &text(
                "",
                "a = Pad(x, p) c = Conv<auto_pad = \"VALID\">(a, w) d = Conv<pads = [1, 1, 1, 1]>(a, w) y = Concat<axis = 1>(c, d)",
            ),
            &text(
                "",
                "c = Conv<pads = [1, 2, 3, 4]>(x, w) d = Conv<pads = [2, 3, 4, 5]>(x, w) y = Concat<axis = 1>(c, d)",
            ),
        );
    }

    #[test]
    fn pads_of_old_opsets_are_attributes() {
        let old = |body: &str| {
            format!(
                r#"<opset_import: ["": 9]> f (float[N,2,A,B] x) => (float[] y) <float[1,2,3,3] w = random(1)> {{ {body} }}"#
            )
        };
        check::<FoldPad>(
            "",
            &old("a = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(x) y = Conv(a, w)"),
            &old("y = Conv<pads = [1, 1, 1, 1]>(x, w)"),
        );
    }

    #[test]
    fn an_average_counts_the_zeros() {
        let small = ", int64[8] q = {0, 0, 1, 1, 0, 0, 1, 1}";
        check::<FoldPad>(
            "",
            &text(
                small,
                "a = Pad(x, q) y = AveragePool<kernel_shape = [3, 3]>(a)",
            ),
            &text(
                small,
                "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)",
            ),
        );
        let own = text(
            small,
            "a = Pad(x, q) y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(a)",
        );
        refused::<FoldPad>("", &own, "value");
        let up = text(
            small,
            "a = Pad(x, q) y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1>(a)",
        );
        refused::<FoldPad>("", &up, "window");
        let large = text(
            "",
            "a = Pad(x, p) y = AveragePool<kernel_shape = [3, 3]>(a)",
        );
        refused::<FoldPad>("", &large, "window");
    }

    #[test]
    fn a_maximum_ignores_what_no_element_is_below() {
        let small = ", int64[8] q = {0, 0, 1, 1, 0, 0, 1, 1}, float low = {-inf}";
        let pool = "y = MaxPool<kernel_shape = [3, 3]>(a)";
        check::<FoldPad>(
            "",
            &text(small, &format!("a = Pad(x, q, low) {pool}")),
            &text(
                small,
                "y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)",
            ),
        );
        check::<FoldPad>(
            "",
            &text(small, &format!("r = Relu(x) a = Pad(r, q) {pool}")),
            &text(
                small,
                "r = Relu(x) y = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(r)",
            ),
        );
        refused::<FoldPad>("", &text(small, &format!("a = Pad(x, q) {pool}")), "value");
    }

    #[test]
    fn refuses_with_a_reason() {
        let conv = "y = Conv(a, w)";
        let with = |p: &str| {
            text("", &format!("a = Pad(x, p) {conv}")).replace("{0, 0, 1, 2, 0, 0, 3, 4}", p)
        };
        refused::<FoldPad>("", &with("{0, 0, -1, 2, 0, 0, 3, 4}"), "negative-pads");
        refused::<FoldPad>("", &with("{0, 1, 1, 2, 0, 0, 3, 4}"), "other-axes");
        refused::<FoldPad>(
            "",
            &text(", float one = {1}", &format!("a = Pad(x, p, one) {conv}")),
            "value",
        );
        refused::<FoldPad>(
            "",
            &text("", &format!("a = Pad<mode = \"reflect\">(x, p) {conv}")),
            "mode",
        );
        refused::<FoldPad>(
            "",
            &text(
                "",
                "a = Pad(x, p) y = Conv<auto_pad = \"SAME_UPPER\">(a, w)",
            ),
            "auto-pad",
        );
        let shared = "a = Pad(x, p) c = Conv(a, w) r = Relu(a) s = Shape(r) y = Expand(c, s)";
        refused::<FoldPad>("", &text("", shared), "shared-output");
        let output = text("", "a = Pad(x, p) y = Conv(a, w)")
            .replace("(float[] y)", "(float[] y, float[] a)");
        refused::<FoldPad>("", &output, "shared-output");
        refused::<FoldPad>(
            "",
            &text("", "q = Abs(p) a = Pad(x, q) y = Conv(a, w)"),
            "dynamic-pads",
        );
    }
}

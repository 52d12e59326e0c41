//! Merges operators in a row that hold a value to a range into one.
//!
//! `Clip`, `Relu`, and `Min` and `Max` with a constant of one element are all `min(max(x, l), h)`;
//! so is any sequence of them.
//!
//! ```text
//! a = Relu(x)                                     y = Clip(x, 0.0, 6.0)
//! y = Min(a, 6.0)
//! ```
//!
//! Left alone: bounds that are computed, NaN bounds, a lower bound above the upper one, values
//! between that something else takes too, constants that broadcast to a higher rank, and integers
//! before opset 12. What `Clip` makes of NaN is left open by ONNX.

use paring_ir::{
    AttrValue, Changed, DType, Effect, Graph, Model, NewOp, NoOptions, OpId, OptionError,
    OptionSet, Pass, PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops_back;
use crate::edits::remove_all;
use crate::facts::Facts;
use crate::linear::{narrowed, only_consumer};
use crate::pattern::clip_bounds;

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct MergeClips {
    options: OptionSet<NoOptions>,
}

impl Pass for MergeClips {
    const INFO: PassInfo = PassInfo::new(
        "merge-clips",
        "Merge Clip, Relu, Min and Max in a row into one Clip",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergeClips { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let opset = model.opset();
        let found = |g: &Graph, op: OpId| chain(g, op, opset).is_some();
        let Some(facts) = Facts::when(model, cx, found) else {
            return Ok(Changed::No);
        };
        visit_ops_back(model, cx, &self.options, |graph, cx, op| {
            match chain(graph, op, opset) {
                Some(found) => merge(graph, cx, op, found, &facts),
                None => Ok(Changed::No),
            }
        })
    }
}

/// One operator that holds a value to a range.
struct Link {
    x: ValueId,
    low: f64,
    high: f64,
    constant_rank: usize,
}

fn link(graph: &Graph, op: OpId, opset: i64) -> Option<Link> {
    let o = graph.get_op(op)?;
    let whole = (f64::NEG_INFINITY, f64::INFINITY);
    if o.is("Relu") {
        let (low, high) = (0.0, whole.1);
        return Some(Link {
            x: o.input(0)?,
            low,
            high,
            constant_rank: 0,
        });
    }
    if let Some((low, high)) = clip_bounds(graph, o, opset) {
        return Some(Link {
            x: o.input(0)?,
            low,
            high,
            constant_rank: 0,
        });
    }
    if !(o.is("Min") || o.is("Max")) || o.input_count() != 2 {
        return None;
    }
    let (a, b) = (o.input(0)?, o.input(1)?);
    let (x, t) = match (graph.tensor(a), graph.tensor(b)) {
        (None, Some(t)) => (a, t),
        (Some(t), None) => (b, t),
        _ => return None,
    };
    // Integers beyond 2^53 have no exact f64.
    let bound = t
        .single_f64()
        .filter(|c| !c.is_nan() && (t.dtype().is_float() || c.abs() < 9e15))?;
    let (low, high) = if o.is("Min") {
        (whole.0, bound)
    } else {
        (bound, whole.1)
    };
    Some(Link {
        x,
        low,
        high,
        constant_rank: t.rank(),
    })
}

/// A sequence that ends with an operator.
struct Found {
    x: ValueId,
    low: f64,
    high: f64,
    constant_rank: usize,
    /// The operators before the last one.
    inner: Vec<OpId>,
}

fn chain(graph: &Graph, last: OpId, opset: i64) -> Option<Found> {
    let end = link(graph, last, opset)?;
    let mut found = Found {
        x: end.x,
        low: end.low,
        high: end.high,
        constant_rank: end.constant_rank,
        inner: Vec::new(),
    };
    while found.inner.len() < 16 && only_consumer(graph, found.x).is_some() {
        let Some(before) = graph.producer(found.x) else {
            break;
        };
        let Some(l) = link(graph, before, opset) else {
            break;
        };
        // First the inner range, then the outer one.
        let (low, high) = (found.low, found.high);
        found.low = l.low.max(low).min(high);
        found.high = l.high.max(low).min(high);
        found.x = l.x;
        found.constant_rank = found.constant_rank.max(l.constant_rank);
        found.inner.push(before);
    }
    (!found.inner.is_empty()).then_some(found)
}

fn merge(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    last: OpId,
    found: Found,
    facts: &Facts,
) -> Result<Changed, PassError> {
    let dtype = facts.dtype(graph, found.x);
    let floats = [DType::F32, DType::F16, DType::F64];
    let Some(dtype) = dtype.filter(|d| floats.contains(d)) else {
        cx.missed(
            graph,
            last,
            "element-type",
            "the element type is not known to be floating point",
        );
        return Ok(Changed::No);
    };
    if !facts.keeps_rank(graph, found.x, found.constant_rank) {
        cx.missed(
            graph,
            last,
            "rank",
            "a constant could broadcast the value to a higher rank",
        );
        return Ok(Changed::No);
    }
    let Some(bounds) = bounds(found.low, found.high, dtype) else {
        cx.missed(
            graph,
            last,
            "range",
            "the range has no representable bounds",
        );
        return Ok(Changed::No);
    };
    cx.applied(graph, last, "merged", "one range instead of several");
    let from = found.inner.clone();
    let mut new = if matches!(bounds, (Some(ref low), None) if low.single_f64() == Some(0.0)) {
        NewOp::new("Relu").input(found.x)
    } else if facts.opset < 11 {
        let attr = |t: Option<Tensor>| {
            t.and_then(|t| t.single_f64())
                .map(|v| AttrValue::Float(v as f32))
        };
        let mut new = NewOp::new("Clip").input(found.x);
        for (name, bound) in [("min", attr(bounds.0)), ("max", attr(bounds.1))] {
            if let Some(bound) = bound {
                new = new.attr(name, bound);
            }
        }
        new
    } else {
        let label = graph.op_label(last);
        let mut inputs = vec![Some(found.x)];
        for (name, bound) in [("min", bounds.0), ("max", bounds.1)] {
            inputs.push(match bound {
                Some(t) => Some(graph.add_constant(&format!("{label}_{name}"), t)?),
                None => None,
            });
        }
        while matches!(inputs.last(), Some(None)) {
            inputs.pop();
        }
        NewOp::new("Clip").inputs(inputs)
    };
    new = new.from(from.iter().copied());
    graph.replace_op(last, new)?;
    remove_all(graph, from)?;
    Ok(Changed::Yes)
}

type Bounds = (Option<Tensor>, Option<Tensor>);

/// The bounds as scalars; none where the range is open.
fn bounds(low: f64, high: f64, dtype: DType) -> Option<Bounds> {
    let bound = |v: f64, open: f64| {
        if v == open {
            return Some(None);
        }
        narrowed(dtype, &[], &[v]).ok().map(Some)
    };
    Some((bound(low, f64::NEG_INFINITY)?, bound(high, f64::INFINITY)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::MergeClips;
    use crate::testing::{check, refused, unchanged};

    fn text(opset: i64, constants: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": {opset}]> f (float[N,4] x) => (float[] y)
            <float six = {{6}}, float one = {{1}}, float[1] zero = {{0}}{constants}> {{ {body} }}"#
        )
    }

    #[test]
    fn relu_and_min_are_a_clip() {
        check::<MergeClips>(
            "",
            &text(17, "", "a = Relu(x) y = Min(a, six)"),
            &text(
                17,
                ", float y_min = {0}, float y_max = {6}",
                "y = Clip(x, y_min, y_max)",
            ),
        );
        check::<MergeClips>(
            "",
            &text(10, "", "a = Max(zero, x) y = Min(six, a)"),
            &text(10, "", "y = Clip<min = 0.0, max = 6.0>(x)"),
        );
    }

    #[test]
    fn ranges_apply_in_turn() {
        check::<MergeClips>(
            "",
            &text(
                17,
                "",
                "a = Clip(x, \"\", one) b = Max(a, zero) y = Clip(b, one, six)",
            ),
            &text(
                17,
                ", float y_min = {1}, float y_max = {1}",
                "y = Clip(x, y_min, y_max)",
            ),
        );
        check::<MergeClips>(
            "",
            &text(17, "", "a = Relu(x) y = Relu(a)"),
            &text(17, "", "y = Relu(x)"),
        );
    }

    #[test]
    fn what_is_shared_or_open_stays() {
        let shared = text(17, "", "a = Relu(x) y = Min(a, six)")
            .replace("(float[] y)", "(float[] y, float[] a)");
        unchanged::<MergeClips>("", &shared);
        unchanged::<MergeClips>("", &text(17, "", "a = Relu(x) b = Neg(six) y = Min(a, b)"));
        let nan = text(17, ", float n = {nan}", "a = Relu(x) y = Min(a, n)");
        unchanged::<MergeClips>("", &nan);
        let wide = text(17, ", float[1,1,1] w = {6}", "a = Relu(x) y = Min(a, w)");
        refused::<MergeClips>("", &wide, "rank");
    }
}

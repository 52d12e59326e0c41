//! Merges a `Pad` with the one before it.
//!
//! ```text
//! a = Pad (x, p)    # p = {0, 1, 0, 1}
//! y = Pad (a, q)    # q = {2, 0, 2, 0}      =>   y = Pad (x, r)    # r = {2, 1, 2, 1}
//! ```
//!
//! Both must pad with the same constant (bit by bit), by known amounts of which none is negative:
//! a negative one cuts elements off, and what the other pad then adds depends on the size.
//! Something else that uses the first pad keeps it. Opsets 7 to 10 have the amounts as an attribute, later
//! ones as an input; from 18 on an input may name the axes.

use std::collections::BTreeMap;

use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, NoOptions, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{add_ints, output_name, pair, replace};
use crate::facts::{Facts, axis_from_front};

/// The pass `merge-pads`.
#[derive(Debug)]
pub struct MergePads {
    options: OptionSet<NoOptions>,
}

impl Pass for MergePads {
    const INFO: PassInfo = PassInfo::new(
        "merge-pads",
        "Merge two Pad operators with the same constant",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(MergePads { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| pair(g, op, "Pad", &["Pad"]).is_some())
        else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let Some((inner, source)) = pair(graph, op, "Pad", &["Pad"]) else {
                return Ok(Changed::No);
            };
            let (first, second) = match (padding(graph, &facts, inner), padding(graph, &facts, op))
            {
                (Ok(a), Ok(b)) => (a, b),
                (Err(why), _) | (_, Err(why)) => {
                    cx.missed(graph, op, "not-constant-padding", why);
                    return Ok(Changed::No);
                }
            };
            if first.fill != second.fill {
                cx.missed(
                    graph,
                    op,
                    "different-constants",
                    "they pad with other values",
                );
                return Ok(Changed::No);
            }
            let Some(pads) = sum(&first.amounts, &second.amounts) else {
                return Ok(Changed::No);
            };
            cx.applied(
                graph,
                op,
                "merged",
                format!("merged with {}", graph.op_label(inner)),
            );
            apply(graph, &facts, inner, source, op, &pads)?;
            Ok(Changed::Yes)
        })
    }
}

/// What a `Pad` adds.
struct Padding {
    /// Elements before and after, by axis.
    amounts: BTreeMap<usize, (i64, i64)>,
    rank: usize,
    /// The constant's bytes; `None` when all are zero.
    fill: Option<Vec<u8>>,
}

fn padding(graph: &Graph, facts: &Facts, op: OpId) -> Result<Padding, &'static str> {
    let o = graph.op(op);
    if !matches!(o.string("mode"), None | Some("constant")) {
        return Err("only constant padding is merged");
    }
    let unknown = "the amounts are not known before the run";
    let pads = if facts.opset < 11 {
        o.ints("pads").map(<[i64]>::to_vec)
    } else {
        facts.input_ints(graph, op, 1)
    }
    .ok_or(unknown)?;
    if pads.iter().any(|&p| p < 0) {
        return Err("a negative amount cuts elements off");
    }
    let half = pads.len() / 2;
    let axes: Vec<i64> = match o.input(3) {
        None => (0..half as i64).collect(),
        Some(v) => facts.ints(graph, v).ok_or(unknown)?,
    };
    let rank = match o.input(3) {
        None => half,
        Some(_) => o
            .input(0)
            .and_then(|v| facts.rank(graph, v))
            .ok_or("the number of dimensions is not known")?,
    };
    let mut amounts = BTreeMap::new();
    for ((&axis, &before), &after) in axes.iter().zip(&pads).zip(pads.iter().skip(half)) {
        let axis = axis_from_front(axis, rank).ok_or(unknown)?;
        if amounts.insert(axis, (before, after)).is_some() {
            return Err("an axis is there twice");
        }
    }
    if axes.len() != half || pads.len() % 2 != 0 {
        return Err(unknown);
    }
    Ok(Padding {
        amounts,
        rank,
        fill: fill(graph, facts, o)?,
    })
}

fn fill(graph: &Graph, facts: &Facts, op: &Op) -> Result<Option<Vec<u8>>, &'static str> {
    let bytes = if facts.opset < 11 {
        op.float("value").unwrap_or(0.0).to_le_bytes().to_vec()
    } else {
        match op.input(2) {
            None => return Ok(None),
            Some(v) => graph
                .tensor(v)
                .filter(|t| t.len() == 1)
                .map(Tensor::bytes)
                .ok_or("the padded value is not known before the run")?
                .to_vec(),
        }
    };
    Ok(Some(bytes).filter(|b| b.iter().any(|&b| b != 0)))
}

fn sum(
    a: &BTreeMap<usize, (i64, i64)>,
    b: &BTreeMap<usize, (i64, i64)>,
) -> Option<BTreeMap<usize, (i64, i64)>> {
    let mut out = a.clone();
    for (&axis, &(before, after)) in b {
        let entry = out.entry(axis).or_insert((0, 0));
        entry.0 = entry.0.checked_add(before)?;
        entry.1 = entry.1.checked_add(after)?;
    }
    Some(out)
}

fn apply(
    graph: &mut Graph,
    facts: &Facts,
    inner: OpId,
    source: ValueId,
    op: OpId,
    pads: &BTreeMap<usize, (i64, i64)>,
) -> Result<(), PassError> {
    let rank = padding(graph, facts, op).map_or(0, |p| p.rank);
    let amount = |axis: usize| pads.get(&axis).copied().unwrap_or((0, 0));
    let list: Vec<i64> = (0..rank)
        .map(|a| amount(a).0)
        .chain((0..rank).map(|a| amount(a).1))
        .collect();
    let o = graph.op(op);
    let (amounts, fill) = (o.input(1), o.input(2));
    let mut attrs = o.attrs().to_vec();
    let mut new = NewOp::new("Pad").input(source);
    if facts.opset < 11 {
        attrs.retain(|a| &*a.name != "pads");
        new = new.attr("pads", list);
    } else {
        let hint = format!("{}_pads", output_name(graph, op));
        let sources: Vec<ValueId> = [graph.op(inner).input(1), amounts]
            .into_iter()
            .flatten()
            .collect();
        new = new.input(add_ints(graph, &hint, &list, &sources)?);
        if fill.is_some() {
            new = new.optional_input(fill);
        }
    }
    replace(graph, op, new.attrs(attrs).from([inner]))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::{check, refused};

    #[test]
    fn amounts_add_up() {
        check::<MergePads>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,t] x) => (float[a,b] y)
            <int64[4] p = {0, 1, 0, 2}, int64[4] q = {3, 0, 0, 1}, float v = {0}>
            {
              h = Pad (x, p, v)
              y = Pad <mode = "constant"> (h, q)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 16]>
            g (float[n,t] x) => (float[a,b] y)
            <int64[4] y_pads = {3, 1, 0, 3}>
            {
              y = Pad <mode = "constant"> (x, y_pads)
            }"#,
        );
        check::<MergePads>(
            "{}",
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[a,b] y)
            {
              h = Pad <pads = [0, 1, 0, 2], value = 1.0> (x)
              y = Pad <pads = [1, 1, 0, 0], value = 1.0> (h)
            }"#,
            r#"<ir_version: 4, opset_import: ["": 9]>
            g (float[n,t] x) => (float[a,b] y)
            {
              y = Pad <pads = [1, 2, 0, 2], value = 1.0> (x)
            }"#,
        );
    }

    #[test]
    fn named_axes_are_counted() {
        check::<MergePads>(
            "{}",
            r#"<ir_version: 8, opset_import: ["": 18]>
            g (float[n,t] x) => (float[a,b] y)
            <int64[2] p = {1, 2}, int64[1] last = {-1}, int64[2] q = {3, 4}, int64[1] first = {0}>
            {
              h = Pad (x, p, "", last)
              y = Pad (h, q, "", first)
            }"#,
            r#"<ir_version: 8, opset_import: ["": 18]>
            g (float[n,t] x) => (float[a,b] y)
            <int64[4] y_pads = {3, 1, 4, 2}>
            {
              y = Pad (x, y_pads)
            }"#,
        );
    }

    #[test]
    fn other_values_modes_and_cuts_are_left() {
        let model = |first: &str, second: &str| {
            format!(
                r#"<ir_version: 4, opset_import: ["": 9]>
                g (float[n,t] x) => (float[a,b] y)
                {{
                  h = Pad <{first}> (x)
                  y = Pad <{second}> (h)
                }}"#
            )
        };
        let p = "pads = [0, 1, 0, 1]";
        refused::<MergePads>(
            "{}",
            &model(p, &format!("{p}, value = 1.0")),
            "different-constants",
        );
        // -0.0 is another value than 0.0.
        refused::<MergePads>(
            "{}",
            &model(p, &format!("{p}, value = -0.0")),
            "different-constants",
        );
        refused::<MergePads>(
            "{}",
            &model(p, &format!("{p}, mode = \"edge\"")),
            "not-constant-padding",
        );
        refused::<MergePads>(
            "{}",
            &model("pads = [0, -1, 0, 0]", p),
            "not-constant-padding",
        );
    }
}

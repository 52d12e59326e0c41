//! Keeps float what int8 makes slower in tract, by measurement and on request only.

use std::collections::BTreeSet;

use paring_ir::{Graph, OpId, PassContext, PassError};

use crate::lower_qdq::slower_in_integers;

use super::Options;
use super::search::Builder;

/// The layers that stay float: those of `float`, those that an earlier measurement named, and
/// those that a measurement finds slower. `layers` are all that could be quantized, and `graph`
/// holds them.
pub(super) fn keep_float(
    options: &Options,
    builder: &dyn Builder,
    graph: &Graph,
    layers: &[OpId],
    mut float: BTreeSet<OpId>,
    cx: &mut PassContext<'_>,
) -> Result<BTreeSet<OpId>, PassError> {
    let named = |op: OpId| {
        let label = graph.op_label(op);
        options.keep_float.iter().any(|n| **n == *label)
    };
    for &op in layers.iter().filter(|&&op| named(op)) {
        if float.insert(op) {
            cx.missed(graph, op, "kept-float", "the options keep it float");
        }
    }
    let Some(ratio) = options.max_latency_ratio else {
        return Ok(float);
    };
    let model = builder.without(&float)?;
    let slower = slower_in_integers(&model, ratio, cx)?;
    let mut named: Vec<String> = options.keep_float.clone();
    for &op in layers.iter().filter(|op| !float.contains(op)) {
        if slower.contains(&op) {
            cx.missed(graph, op, "kept-float", "int8 makes it slower in tract");
            named.push(graph.op_label(op).to_string());
        }
    }
    float.extend(layers.iter().filter(|op| slower.contains(op)));
    cx.resolved = serde_json::json!({ "max-latency-ratio": null, "keep-float": named })
        .as_object()
        .cloned();
    Ok(float)
}

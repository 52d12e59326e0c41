//! Tests of `upgrade-opset`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use paring_ir::analysis::AnalysisCache;
use paring_ir::schema::{AttrDefault, OpSchema, Presence};
use paring_ir::text::{PrintOptions, parse_model, print_model};
use paring_ir::{Registry, verify};

use super::*;
use crate::testing::check;

/// Whether every operator of the old version is one of the new version with the same meaning, as
/// far as a signature tells.
fn is_superset(old: &OpSchema, new: &OpSchema) -> bool {
    let params = |old: &[schema::Param], new: &[schema::Param]| {
        old.iter().enumerate().all(|(i, o)| {
            new.get(i).is_some_and(|n| {
                let presence = match (o.presence, n.presence) {
                    (Presence::Optional, Presence::Required) => false,
                    (Presence::Variadic { .. }, p) => matches!(p, Presence::Variadic { .. }),
                    _ => true,
                };
                presence && o.types.dtypes().all(|d| n.types.allows(d))
            })
        }) && new[old.len().min(new.len())..]
            .iter()
            .all(|n| n.presence != Presence::Required)
    };
    let attrs = old.attrs.iter().all(|a| {
        new.attr(a.name)
            .is_some_and(|b| a.kind == b.kind && a.default == b.default)
    }) && new
        .attrs
        .iter()
        .all(|b| old.attr(b.name).is_some() || !b.required);
    !new.deprecated
        && attrs
        && params(&old.inputs, &new.inputs)
        && params(&old.outputs, &new.outputs)
}

#[test]
fn every_version_that_is_no_superset_has_an_adapter() {
    let mut missing = Vec::new();
    for name in schema::operator_names() {
        let versions = schema::versions(name);
        for pair in versions.windows(2) {
            let since = pair[1].since;
            if !(OLDEST_OPSET + 1..=NEWEST).contains(&since) || is_superset(&pair[0], &pair[1]) {
                continue;
            }
            if adapter(name, since).is_none() {
                missing.push(format!("{name} {since}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    for (name, version, _) in ADAPTERS {
        let there = schema::versions(name).iter().any(|s| s.since == *version);
        assert!(there, "{name} has no version {version}");
    }
}

#[test]
fn new_attributes_with_a_default_are_looked_at() {
    // A new attribute may bring another behaviour as its default. These are all that
    // default to something, each looked up in the specification.
    let known = [
        "ArgMax 12 select_last_index",
        "ArgMin 12 select_last_index",
        "AveragePool 10 ceil_mode",
        "BatchNormalization 14 training_mode",
        "Cast 19 saturate",
        "CastLike 19 saturate",
        "DepthToSpace 11 mode",
        "DequantizeLinear 13 axis",
        "DequantizeLinear 21 block_size",
        "DequantizeLinear 23 output_dtype",
        "GRU 14 layout",
        "GatherND 12 batch_dims",
        "GroupNormalization 21 stash_type",
        "LSTM 14 layout",
        "LpPool 18 ceil_mode",
        "MaxPool 10 ceil_mode",
        "MaxPool 8 storage_order",
        "QuantizeLinear 13 axis",
        "QuantizeLinear 19 saturate",
        "QuantizeLinear 21 block_size",
        "QuantizeLinear 21 output_dtype",
        "QuantizeLinear 23 precision",
        "RNN 14 layout",
        "ReduceL1 18 noop_with_empty_axes",
        "ReduceL2 18 noop_with_empty_axes",
        "ReduceLogSum 18 noop_with_empty_axes",
        "ReduceLogSumExp 18 noop_with_empty_axes",
        "ReduceMax 18 noop_with_empty_axes",
        "ReduceMean 18 noop_with_empty_axes",
        "ReduceMin 18 noop_with_empty_axes",
        "ReduceProd 18 noop_with_empty_axes",
        "ReduceSum 13 noop_with_empty_axes",
        "ReduceSumSquare 18 noop_with_empty_axes",
        "Reshape 14 allowzero",
        "Resize 11 coordinate_transformation_mode",
        "Resize 11 cubic_coeff_a",
        "Resize 11 exclude_outside",
        "Resize 11 extrapolation_value",
        "Resize 11 nearest_mode",
        "Resize 18 antialias",
        "Resize 18 keep_aspect_ratio_policy",
        "RoiAlign 16 coordinate_transformation_mode",
        "ScatterElements 16 reduction",
        "ScatterND 16 reduction",
        "Shape 15 start",
        "TopK 11 largest",
        "TopK 11 sorted",
    ];
    let mut found = Vec::new();
    for name in schema::operator_names() {
        for pair in schema::versions(name).windows(2) {
            let since = pair[1].since;
            if !(OLDEST_OPSET + 1..=NEWEST).contains(&since) {
                continue;
            }
            for attr in &pair[1].attrs {
                let default: &Option<AttrDefault> = &attr.default;
                if default.is_some() && pair[0].attr(attr.name).is_none() {
                    found.push(format!("{name} {since} {}", attr.name));
                }
            }
        }
    }
    found.sort();
    assert_eq!(found, known);
}

fn upgrade(to: i64, before: &str) -> Result<String, PassError> {
    let mut model = parse_model(before).unwrap();
    let registry = Registry::new().with::<UpgradeOpset>();
    let options = serde_json::from_str(&format!("{{\"to\": {to}}}")).unwrap();
    let pass = registry
        .get("upgrade-opset")
        .unwrap()
        .make(&options)
        .unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    let untouched = model.revision();
    let result = pass.run(&mut model, &mut cx);
    if result.is_err() {
        assert_eq!(model.revision(), untouched, "a refusal changes nothing");
    }
    result?;
    model.graph.check_invariants().unwrap();
    verify::verify(&model).unwrap();
    Ok(print_model(&model, &PrintOptions::default()))
}

fn refused(to: i64, before: &str, why: &str) {
    let message = upgrade(to, before).unwrap_err().to_string();
    assert!(message.contains(why), "{message}");
}

#[test]
fn attributes_become_inputs() {
    check::<UpgradeOpset>(
        "{\"to\": 18}",
        r#"<ir_version: 4, opset_import: ["": 9]>
        g (float[n,4,6] x) => (float[n,2,6] y, float[1] z, float[n,1,6] p, float[n,1,6] q)
        {
          c = Clip <min = 0.0, max = 6.0> (x)
          y = Slice <axes = [1], ends = [3], starts = [1]> (c)
          s = ReduceSum <keepdims = 0> (y)
          z = Unsqueeze <axes = [0]> (s)
          m = ReduceMean <axes = [1], keepdims = 1> (y)
          d = Pad <pads = [0, 0, 1, 0, 0, 0], value = 1.0> (m)
          t, i = TopK <axis = 2, k = 6> (d)
          p = Squeeze <axes = [0]> (z2)
          z2 = Unsqueeze <axes = [0]> (t)
          q = Relu (t)
        }"#,
        r#"<ir_version: 8, opset_import: ["": 18]>
        g (float[n,4,6] x) => (float[n,2,6] y, float[1] z, float[n,1,6] p, float[n,1,6] q)
        <int64[1] y_starts = {1}, int64[1] y_ends = {3}, int64[1] y_axes = {1}, int64[1] t_k = {6},
         float c_min = {0}, float c_max = {6}, int64[6] d_pads = {0, 0, 1, 0, 0, 0}, float d_value = {1},
         int64[1] z_axes = {0}, int64[1] z2_axes = {0}, int64[1] p_axes = {0}, int64[1] m_axes = {1}>
        {
          c = Clip (x, c_min, c_max)
          y = Slice (c, y_starts, y_ends, y_axes)
          s = ReduceSum <keepdims = 0> (y)
          z = Unsqueeze (s, z_axes)
          m = ReduceMean <keepdims = 1> (y, m_axes)
          d = Pad (m, d_pads, d_value)
          t, i = TopK <axis = 2> (d, t_k)
          z2 = Unsqueeze (t, z2_axes)
          p = Squeeze (z2, p_axes)
          q = Relu (t)
        }"#,
    );
}

#[test]
fn a_softmax_over_several_axes_is_flattened() {
    check::<UpgradeOpset>(
        "{\"to\": 13}",
        r#"<ir_version: 6, opset_import: ["": 11]>
        g (float[n,4,6] x, float[n,5,1,1] w) => (float[n,4,6] a, float[n,4,6] b, float[n,5,1,1] c)
        {
          a = Softmax (x)
          b = LogSoftmax <axis = 2> (x)
          c = Hardmax <axis = 1> (w)
        }"#,
        r#"<ir_version: 7, opset_import: ["": 13]>
        g (float[n,4,6] x, float[n,5,1,1] w) => (float[n,4,6] a, float[n,4,6] b, float[n,5,1,1] c)
        <int64[3] a_shape = {-1, 4, 6}>
        {
          a_part = Flatten <axis = 1> (x)
          a_part_1 = Softmax <axis = -1> (a_part)
          a = Reshape (a_part_1, a_shape)
          b = LogSoftmax <axis = 2> (x)
          c = Hardmax <axis = 1> (w)
        }"#,
    );
    let text = upgrade(
        17,
        r#"<ir_version: 6, opset_import: ["": 11]>
        g (float[n,t,6] x) => (float[n,t,6] a)
        {
          a = Softmax (x)
        }"#,
    )
    .unwrap();
    assert!(
        text.contains("Shape (x)") && text.contains("allowzero"),
        "{text}"
    );
}

#[test]
fn an_upsample_becomes_a_resize() {
    check::<UpgradeOpset>(
        "{\"to\": 11}",
        r#"<ir_version: 3, opset_import: ["": 7]>
        g (float[1,3,4,4] x) => (float[1,3,8,8] y)
        {
          y = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (x)
        }"#,
        r#"<ir_version: 6, opset_import: ["": 11]>
        g (float[1,3,4,4] x) => (float[1,3,8,8] y)
        <float[4] y_scales = {1, 1, 2, 2}, float[0] y_roi = {}>
        {
          y = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (x, y_roi, y_scales)
        }"#,
    );
    let resize = |scales: &str| {
        format!(
            r#"<ir_version: 5, opset_import: ["": 10]>
            g (float[1,3,4,4] x) => (float[1,3,a,b] y)
            <float[4] s = {{1, 1, {scales}}}>
            {{
              y = Resize <mode = "nearest"> (x, s)
            }}"#
        )
    };
    assert!(upgrade(18, &resize("0.5, 1")).unwrap().contains("ceil"));
    refused(18, &resize("0.5, 2"), "enlarges one axis, shrinks another");
}

#[test]
fn normalizations_follow() {
    let text = upgrade(
        21,
        r#"<ir_version: 8, opset_import: ["": 18]>
        g (float[n,4,6] x, float[2] w) => (float[n,4,6] y)
        <float[2] b = {1, 2}>
        {
          y = GroupNormalization <num_groups = 2> (x, w, b)
        }"#,
    )
    .unwrap();
    assert!(text.contains("float[4] y_bias = {1, 1, 2, 2}"), "{text}");
    assert!(text.contains("Expand"), "{text}");
    refused(
        21,
        r#"<ir_version: 8, opset_import: ["": 18]>
        g (float[n,c,6] x) => (float[n,c,6] y)
        <float[2] b = {1, 2}>
        {
          y = GroupNormalization <num_groups = 2> (x, b, b)
        }"#,
        "the number of channels is not known",
    );
    let batch_norm = |attrs: &str, outputs: &str| {
        format!(
            r#"<ir_version: 3, opset_import: ["": 7]>
            g (float[2,4] x) => (float[2,4] y{outputs})
            <float[4] s = ones, float[4] b = zeros>
            {{
              y{outputs} = BatchNormalization {attrs} (x, s, b, b, s)
            }}"#
        )
    };
    let spatial = upgrade(15, &batch_norm("<spatial = 1>", "")).unwrap();
    assert!(!spatial.contains("spatial"), "{spatial}");
    refused(
        15,
        &batch_norm("<spatial = 0>", ""),
        "statistics for each element",
    );
}

#[test]
fn modes_and_defaults_are_kept() {
    check::<UpgradeOpset>(
        "{\"to\": 20}",
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[1,8,1] x, float[1,1,4,4] f, float[1,3,3,2] grid, float[4,n] s) => (float[1,5,2] y, float[1,1,3,3] z, float[2,n] u)
        {
          y = DFT <onesided = 1> (x)
          z = GridSample <mode = "bicubic"> (f, grid)
          u, v = Split <axis = 0> (s)
        }"#,
        r#"<ir_version: 9, opset_import: ["": 20]>
        g (float[1,8,1] x, float[1,1,4,4] f, float[1,3,3,2] grid, float[4,n] s) => (float[1,5,2] y, float[1,1,3,3] z, float[2,n] u)
        <int64 y_axis = {1}>
        {
          y = DFT <onesided = 1> (x, "", y_axis)
          z = GridSample <mode = "cubic"> (f, grid)
          u, v = Split <axis = 0, num_outputs = 2> (s)
        }"#,
    );
}

#[test]
fn graphs_inside_and_functions_come_along() {
    let text = upgrade(
        18,
        r#"<ir_version: 8, opset_import: ["": 11, "f": 1]>
        g (bool c, float[2,3] x) => (float[2,3,1] y)
        {
          y = If (c) <
            then_branch = a () => (float[2,3,1] p) { p = Unsqueeze <axes = [2]> (x) },
            else_branch = b () => (float[2,3,1] q) { q = f.G (x) }
          >
        }
        <domain: "f", opset_import: ["": 11]>
        G (v) => (w)
        {
          w = Unsqueeze <axes = [2]> (v)
        }"#,
    )
    .unwrap();
    assert!(text.contains("p = Unsqueeze (x, p_axes)"), "{text}");
    assert!(text.contains("w = Unsqueeze (v, w_axes)"), "{text}");
    assert!(text.contains("w_axes = Constant"), "{text}");
    assert!(!text.contains("11]"), "{text}");
}

#[test]
fn what_cannot_be_brought_along_is_said() {
    refused(
        18,
        r#"<ir_version: 5, opset_import: ["": 10]>
        g (float[1,3,4,4] x, float[4] s) => (float[1,3,a,b] y)
        {
          y = Resize <mode = "nearest"> (x, s)
        }"#,
        "Resize \"y\" can't be brought to opset 11",
    );
    refused(
        18,
        r#"<ir_version: 10, opset_import: ["": 21]>
        g (float[2] x) => (float[2] y)
        {
          y = Relu (x)
        }"#,
        "newer than 18",
    );
    for to in [7, 24] {
        let options = serde_json::from_str(&format!("{{\"to\": {to}}}")).unwrap();
        let registry = Registry::new().with::<UpgradeOpset>();
        assert!(
            registry
                .get("upgrade-opset")
                .unwrap()
                .make(&options)
                .is_err()
        );
    }
}

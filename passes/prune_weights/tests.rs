//! Tests of `prune-weights`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use serde_json::json;

use super::{Options, PruneWeights};
use crate::testing::{check, refused, run, unchanged};
use paring_ir::{OptionSet, Pass};

const ALL: &str = r#"{"min-elements": 1, "include-first": true}"#;

#[test]
fn the_smallest_half_goes_the_first_of_equals_first() {
    let remarks = check::<PruneWeights>(
        ALL,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,4] y)
        <float[2,4] w = {0.5, -2, 0.5, 4, -0.5, 0.5, 0, nan}, float[4] b = {0.1, 0.1, 0.1, 0.1}> { y = Gemm (x, w, b) }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,4] y)
        <float[2,4] w = {0, -2, 0, 4, 0, 0.5, 0, nan}, float[4] b = {0.1, 0.1, 0.1, 0.1}> { y = Gemm (x, w, b) }"#,
    );
    let said = &remarks.kept[0].message;
    assert_eq!(
        said,
        "sparsity 0.5000 (4 of 8 elements), magnitudes up to 5.000e-1"
    );
}

#[test]
fn global_sparsity_takes_from_the_layer_of_small_weights_up_to_its_cap() {
    check::<PruneWeights>(
        r#"{"min-elements": 1, "distribution": "global", "sparsity": 0.5, "max-layer-sparsity": 0.75}"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {0.1, 0.2, 0.3, 0.4}, float[2,2] v = {10, 20, 30, 40}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {0, 0, 0, 0.4}, float[2,2] v = {0, 20, 30, 40}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
    );
}

#[test]
fn layer_adaptive_sparsity_looks_at_shares_and_not_at_scales() {
    // Of w one weight holds nearly everything; the weights of v matter equally.
    check::<PruneWeights>(
        r#"{"min-elements": 1, "sparsity": 0.5, "max-layer-sparsity": 0.75}"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {100, 200, 300, 9000}, float[2,2] v = {1, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {0, 0, 0, 9000}, float[2,2] v = {0, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
    );
    let uniform = r#"{"min-elements": 1, "distribution": "uniform"}"#;
    check::<PruneWeights>(
        uniform,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {100, 200, 300, 9000}, float[2,2] v = {1, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {0, 0, 300, 9000}, float[2,2] v = {0, 0, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
    );
}

#[test]
fn half_precision_stays_half_precision() {
    check::<PruneWeights>(
        ALL,
        r#"<opset_import: ["": 18]> g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {1.0, -2.0, 3.0, 4.0}> { y = MatMul (x, w) }"#,
        r#"<opset_import: ["": 18]> g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {0.0, 0.0, 3.0, 4.0}> { y = MatMul (x, w) }"#,
    );
}

#[test]
fn a_shared_weight_is_pruned_once() {
    check::<PruneWeights>(
        ALL,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w) y = MatMul (h, w) }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {0, 0, 3, 4}> { h = MatMul (x, w) y = MatMul (h, w) }"#,
    );
}

#[test]
fn a_weight_that_something_else_takes_stays() {
    refused::<PruneWeights>(
        ALL,
        r#"<opset_import: ["": 18]> g (int64[1] i) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = Gather (w, i) y = MatMul (h, w) }"#,
        "shared",
    );
    refused::<PruneWeights>(
        ALL,
        r#"<opset_import: ["": 18]> g (float[1,2] x, float[2,2] w = {1, 2, 3, 4}) => (float[1,2] y) { y = MatMul (x, w) }"#,
        "overridable",
    );
}

#[test]
fn the_first_and_the_depthwise_convolution_stay_unless_asked_for() {
    let model = r#"<opset_import: ["": 18]> g (float[1,2,8,8] x) => (float[1,2,8,8] z)
        <float[2,2,1,1] w = random(1), float[2,1,1,1] d = random(2)> { y = Conv (x, w) z = Conv <group: int = 2> (y, d) }"#;
    let remarks = unchanged::<PruneWeights>(r#"{"min-elements": 1}"#, model);
    assert_eq!(
        remarks.missed.keys().collect::<Vec<_>>(),
        ["depthwise", "first"]
    );
    let all = r#"{"min-elements": 1, "include-first": true, "include-depthwise": true}"#;
    let (pruned, _) = run::<PruneWeights>(None, all, model);
    let zeros = |name| {
        let v = pruned.graph.find_value(name).unwrap();
        pruned.graph.tensor(v).unwrap().count_zeros()
    };
    assert_eq!((zeros("w"), zeros("d")), (2, 1));
}

#[test]
fn layers_differ_by_type_and_name() {
    check::<PruneWeights>(
        r#"{"min-elements": 1, "sparsity": 0.75, "by-type": {"Gemm": {"sparsity": 0.25}}, "by-name": {"keep*": "skip"}}"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 5}, float[2,2] u = {1, 2, 3, 6}> {
            a = MatMul (x, w)
            b = Gemm (a, v)
            [keep_this] y = MatMul (b, u)
        }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {0, 0, 0, 4}, float[2,2] v = {0, 2, 3, 5}, float[2,2] u = {1, 2, 3, 6}> {
            a = MatMul (x, w)
            b = Gemm (a, v)
            [keep_this] y = MatMul (b, u)
        }"#,
    );
}

#[test]
fn sparsity_zero_changes_nothing() {
    unchanged::<PruneWeights>(
        r#"{"sparsity": 0, "min-elements": 1}"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
    );
}

#[test]
fn shares_beyond_the_cap_are_an_error() {
    let given = json!({"sparsity": 0.99});
    let options = OptionSet::<Options>::parse("prune-weights", given.as_object().unwrap()).unwrap();
    let error = PruneWeights::new(options).unwrap_err().to_string();
    assert_eq!(
        error,
        "prune-weights.sparsity: 0.99 is more than max-layer-sparsity (0.95) allows; raise that as well"
    );
}

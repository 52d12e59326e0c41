#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::collections::BTreeMap;

use paring_ir::analysis::AnalysisCache;
use paring_ir::text::{PrintOptions, print_model};
use paring_ir::{Changed, Model, OptionSet, Pass, PassContext, Tensor, verify};

use super::placement::{candidates, place};
use super::{ActivationType, Parameters, Profile, QuantizeInt8, Target, emit};
use crate::testing::{Echo, Samples, parse, refused};

fn profile(name: &str) -> Profile {
    Target::Name(name.to_owned())
        .profile("quantize-int8")
        .unwrap()
}

/// What is quantized where, with a scale of 1 and a zero point of 0 everywhere; weights stay.
fn placed(profile: &Profile, before: &str) -> (Model, Vec<String>, Vec<usize>) {
    let mut model = parse(before);
    let (layers, _) = candidates(&model.graph, profile, 1, &|_, _| None).unwrap();
    let placement = place(&model.graph, profile, layers).unwrap();
    let unit = Parameters {
        scale: 1.0,
        zero_point: 0,
        ty: ActivationType::U8,
    };
    let all: BTreeMap<_, _> = placement.values.iter().map(|q| (q.value, unit)).collect();
    let name = |v| model.graph.value(v).name().to_string();
    let names = placement.values.iter().map(|q| name(q.value)).collect();
    let groups = placement.values.iter().map(|q| q.group).collect();
    emit::activations(&mut model.graph, &placement, &all).unwrap();
    verify::verify(&model).unwrap();
    (model, names, groups)
}

/// The inputs of an operator by the name of its output.
fn takes(model: &Model, output: &str) -> Vec<String> {
    let g = &model.graph;
    let op = g.producer(g.find_value(output).unwrap()).unwrap();
    let inputs: Vec<_> = g.op(op).inputs().flatten().collect();
    inputs
        .iter()
        .map(|&v| g.value(v).name().to_string())
        .collect()
}

#[test]
fn a_convolution_and_its_clip_are_never_split() {
    let (model, names, _) = placed(
        &profile("onnxruntime"),
        r#"<opset_import: ["": 18]> g (float[1,2,4,4] x) => (float[1,3,4,4] z)
        <float[4,2,1,1] w = random(1), float[3,4,1,1] v = random(2), float low = {0}, float high = {6}> {
            a = Conv (x, w)
            b = Clip (a, low, high)
            c = Conv (b, v)
            z = Softmax (c)
        }"#,
    );
    assert_eq!(names, ["x", "b", "c"]);
    assert_eq!(takes(&model, "b"), ["a", "low", "high"]);
    assert_eq!(takes(&model, "c"), ["b_dequantized", "v"]);
    assert_eq!(takes(&model, "z"), ["c_dequantized"]);
}

#[test]
fn no_convolution_between_bytes_is_left_to_the_engine() {
    let text = r#"<opset_import: ["": 18]> g (float[1,2,4,4] x) => (float[1,4,4,4] z)
        <float[2,2,1,1] w = random(1), float[2,1,1,1] d = random(2), float[4,2,1,1] v = random(3)> {
            a = Conv (x, w)
            b = Conv <group: int = 2> (a, d)
            z = Conv (b, v)
        }"#;
    let model = parse(text);
    let count = |name: &str| {
        let found = candidates(&model.graph, &profile(name), 4, &|_, _| None).unwrap();
        (found.0.len(), found.1.len())
    };
    assert_eq!(count("onnxruntime"), (3, 0));
    assert_eq!(count("generic"), (2, 1));
}

#[test]
fn sums_between_layers_take_and_make_bytes() {
    let (model, names, _) = placed(
        &profile("onnxruntime"),
        r#"<opset_import: ["": 18]> g (float[1,2,4,4] x) => (float[1,2,4,4] z)
        <float[2,2,1,1] w = random(1), float[2,2,1,1] v = random(2)> {
            a = Conv (x, w)
            s = Add (a, x)
            r = Relu (s)
            z = Conv (r, v)
        }"#,
    );
    assert_eq!(names, ["x", "a", "r", "z"]);
    assert_eq!(takes(&model, "s"), ["a_dequantized", "x_dequantized"]);
    assert_eq!(takes(&model, "r"), ["s"]);
}

#[test]
fn what_hands_bytes_on_shares_their_scale() {
    let (_, names, groups) = placed(
        &profile("onnxruntime"),
        r#"<opset_import: ["": 18]> g (float[1,2,4,4] x) => (float[1,2,2,2] z)
        <float[2,2,1,1] w = random(1), float[2,2,1,1] v = random(2)> {
            a = Conv (x, w)
            p = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (a)
            z = Conv (p, v)
        }"#,
    );
    assert_eq!(names, ["x", "a", "p", "z"]);
    assert_eq!(groups, [0, 1, 1, 2]);
}

#[test]
fn float_operators_get_the_floats_of_a_float_operator() {
    let (model, names, _) = placed(
        &profile("onnxruntime"),
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] z)
        <float[2,2] w = random(1)> {
            h = Tanh (x)
            m = MatMul (h, w)
            z = Add (m, h)
        }"#,
    );
    assert_eq!(names, ["h"]);
    assert_eq!(takes(&model, "m"), ["h_dequantized", "w"]);
    assert_eq!(takes(&model, "z"), ["m", "h"]);
}

#[test]
fn products_without_weights_and_their_softmax_stay_float() {
    let (model, names, _) = placed(
        &profile("generic"),
        r#"<opset_import: ["": 18]> g (float[4,4] x, float[4,4] k) => (float[4,4] z)
        { a = MatMul (x, k) s = Softmax (a) z = MatMul (s, x) }"#,
    );
    assert!(names.is_empty());
    assert_eq!(takes(&model, "z"), ["s", "x"]);
}

#[test]
fn a_graph_output_keeps_its_name_behind_its_bytes() {
    let (model, _, _) = placed(
        &profile("onnxruntime"),
        r#"<opset_import: ["": 18]> g (float[1,2,4,4] x) => (float[1,2,4,4] y) <float[2,2,1,1] w = random(1)> { y = Conv (x, w) }"#,
    );
    let g = &model.graph;
    let y = g.outputs()[0];
    assert_eq!(&**g.value(y).name(), "y");
    assert!(g.op(g.producer(y).unwrap()).is("DequantizeLinear"));
}

/// Quantizes with data for models whose layers take graph inputs.
fn quantized(options: &str, before: &str, samples: Vec<Vec<Tensor>>) -> Model {
    let mut model = parse(before);
    let given = serde_json::from_str(options).unwrap();
    let pass = QuantizeInt8::new(OptionSet::parse("quantize-int8", &given).unwrap()).unwrap();
    let data = Samples::of(samples);
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    cx.engine = Some(&Echo);
    cx.data = Some(&data);
    let changed = pass.run(&mut model, &mut cx).unwrap();
    assert_eq!(changed, Changed::Yes);
    verify::verify(&model).unwrap();
    let settled = model.revision();
    assert_eq!(pass.run(&mut model, &mut cx).unwrap(), Changed::No);
    assert_eq!(model.revision(), settled);
    assert_eq!(cx.remarks.missed["quantized"], 1);
    model
}

const PLAIN: &str = r#"{"min-elements": 1, "rounding": "nearest", "correct-bias": false, "equalize": false, "smooth": false, "reduce-range": false, "calibration": "min-max"}"#;

#[test]
fn a_gemm_with_its_bias() {
    let x = Tensor::from_vec([1, 2], vec![-1.0f32, 4.1]).unwrap();
    let model = quantized(
        PLAIN,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {127, -254, 64, 2}, float[2] b = {1, -2}> {
            y = Gemm <alpha: float = 0.5, transB: int = 1> (x, w, b)
        }"#,
        vec![vec![x]],
    );
    let expected = parse(
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float x_scale = {0.02}, uint8 x_zero_point = {50},
         int8[2,2] w_quantized = {64, -127, 127, 4}, float[2] w_scale = {1, 0.2519685}, int8[2] w_zero_point = {0, 0},
         int32[2] b_quantized = {50, -397}, float[2] b_scale = {0.02, 0.0050393702}, int32[2] b_zero_point = {0, 0}> {
            x_quantized = QuantizeLinear (x, x_scale, x_zero_point)
            x_dequantized = DequantizeLinear (x_quantized, x_scale, x_zero_point)
            w_dequantized = DequantizeLinear <axis: int = 0> (w_quantized, w_scale, w_zero_point)
            b_dequantized = DequantizeLinear <axis: int = 0> (b_quantized, b_scale, b_zero_point)
            y = Gemm <transB: int = 1> (x_dequantized, w_dequantized, b_dequantized)
        }"#,
    );
    let print = |m: &Model| print_model(m, &PrintOptions::default());
    assert_eq!(print(&model), print(&expected));
}

#[test]
fn old_opsets_are_upgraded_before_weights_get_scales_by_channel() {
    let x = Tensor::from_vec([1, 2], vec![0.5f32, 1.0]).unwrap();
    let before = r#"<opset_import: ["": 11]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#;
    let model = quantized(PLAIN, before, vec![vec![x]]);
    assert_eq!(model.opset(), 13);
}

#[test]
fn a_shared_weight_is_stored_once() {
    let x = Tensor::from_vec([1, 2], vec![0.5f32, 1.0]).unwrap();
    let before = r#"<opset_import: ["": 18]> g (float[1,2] x, float[1,2] z) => (float[1,2] y, float[1,2] u) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) u = MatMul (z, w) }"#;
    let model = quantized(PLAIN, before, vec![vec![x.clone(), x]]);
    let g = &model.graph;
    let weights = g
        .initializers()
        .filter(|&v| g.tensor(v).is_some_and(|t| t.len() == 4));
    assert_eq!(weights.count(), 1);
}

#[test]
fn calibration_is_kept_in_a_file_and_used_again() {
    let folder = std::env::temp_dir().join(format!("paring-calibration-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("seen.json");
    let options = format!(
        r#"{{"min-elements": 1, "rounding": "nearest", "correct-bias": false, "equalize": false, "smooth": false, "calibration-file": {:?}}}"#,
        file.display().to_string()
    );
    let before = r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#;
    let sample = |a: f32| vec![vec![Tensor::from_vec([1, 2], vec![a, 1.0f32]).unwrap()]];
    let first = quantized(&options, before, sample(0.5));
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"x\""));
    // Other data is not looked at.
    let again = quantized(&options, before, sample(100.0));
    let print = |m: &Model| print_model(m, &PrintOptions::default());
    assert_eq!(print(&first), print(&again));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_can_not_or_must_not_be_quantized_is_told() {
    refused::<QuantizeInt8>(
        "",
        r#"<opset_import: ["": 18]> g (float[4,2] x, float[2,4] z) => (float[4,4] y) { y = MatMul (x, z) }"#,
        "no-constant-weight",
    );
    refused::<QuantizeInt8>(
        "",
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
        "small",
    );
    refused::<QuantizeInt8>(
        r#"{"min-elements": 1}"#,
        r#"<opset_import: ["": 18]> g (int64[1] i, float[1,2] x) => (float[1,2] y, float[1,2] e)
        <float[2,2] w = {1, 2, 3, 4}> { e = Gather (w, i) y = MatMul (x, w) }"#,
        "shared",
    );
    refused::<QuantizeInt8>(
        r#"{"min-elements": 1}"#,
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (uint8[4,2] y) <float s = {1}, uint8 z = {0}> { y = QuantizeLinear (x, s, z) }"#,
        "quantized",
    );
    refused::<QuantizeInt8>(
        r#"{"min-elements": 1, "target": "tract"}"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
        "few-rows",
    );
}

#[test]
fn without_data_it_says_what_to_do() {
    let mut model = parse(
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
    );
    let given = serde_json::from_str(r#"{"min-elements": 1}"#).unwrap();
    let pass = QuantizeInt8::new(OptionSet::parse("quantize-int8", &given).unwrap()).unwrap();
    let mut cache = AnalysisCache::new();
    let error = pass
        .run(&mut model, &mut PassContext::new(&mut cache))
        .unwrap_err();
    assert!(error.to_string().contains("--data"), "{error}");
}

#[test]
fn a_profile_of_the_users_own() {
    let given = serde_json::from_str(
        r#"{"target": {"opset": 13, "layers": {"MatMul": {"output": "float"}}}}"#,
    );
    assert!(OptionSet::<super::Options>::parse("quantize-int8", &given.unwrap()).is_ok());
    let wrong = serde_json::from_str(r#"{"target": {"opset": 13, "layrs": {}}}"#).unwrap();
    let error = OptionSet::<super::Options>::parse("quantize-int8", &wrong).unwrap_err();
    assert!(error.to_string().contains("layers"), "{error}");
}

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use paring_ir::analysis::AnalysisCache;
use paring_ir::pass::Remarks;
use paring_ir::text::{PrintOptions, print_model};
use paring_ir::{Model, OptionSet, Pass, PassContext, Tensor, verify};
use serde_json::json;

use super::{FactorizeLowRank, Options};
use crate::testing::{Echo, Samples, parse, refused, run, unchanged};

/// Rank 1 wherever that saves anything.
const ONE: &str = r#"{"rank": 1, "min-elements": 1}"#;

/// The model as text, without the elements of its tensors.
fn structure(model: &Model) -> String {
    let text = print_model(model, &PrintOptions::full());
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(" = {") {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        rest = &tail[tail.find('}').unwrap() + 1..];
    }
    out + rest
}

fn same_structure(model: &Model, expected: &str) {
    let plain = |s: &str| {
        let mut s = s.split_whitespace().collect::<Vec<_>>().join(" ");
        for (kind, short) in [(": ints =", " ="), (": int =", " ="), (": float =", " =")] {
            s = s.replace(kind, short);
        }
        s.replace("< ", "<").replace(" >", ">")
    };
    let (found, expected) = (plain(&structure(model)), plain(expected));
    assert!(found == expected, "found\n{found}\nexpected\n{expected}");
}

fn constant<'m>(model: &'m Model, name: &str) -> &'m Tensor {
    let v = model.graph.find_value(name).unwrap();
    model.graph.tensor(v).unwrap()
}

/// `a` of `n` x `k` times `b` of `k` x `m`.
fn times(a: &Tensor, b: &Tensor, k: usize) -> Vec<f64> {
    let (a, b) = (a.to_f64s().unwrap(), b.to_f64s().unwrap());
    let (n, m) = (a.len() / k, b.len() / k);
    let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * m + j]).sum();
    (0..n).flat_map(|i| (0..m).map(move |j| at(i, j))).collect()
}

fn near(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (f, w) in found.iter().zip(wanted) {
        assert!(
            (f - w).abs() < 1e-5 * (1.0 + w.abs()),
            "found {found:?}, expected {wanted:?}"
        );
    }
}

/// Runs the pass on data that reaches the layers unchanged.
fn run_with(options: &str, text: &str, data: &Samples) -> (Model, Remarks) {
    let mut model = parse(text);
    let given = serde_json::from_str(options).unwrap();
    let options = OptionSet::<Options>::parse("factorize-low-rank", &given).unwrap();
    let pass = FactorizeLowRank::new(options).unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    cx.engine = Some(&Echo);
    cx.data = Some(data);
    pass.run(&mut model, &mut cx).unwrap();
    let remarks = std::mem::take(&mut cx.remarks);
    verify::verify(&model).unwrap();
    model.graph.check_invariants().unwrap();
    (model, remarks)
}

#[test]
fn a_matrix_of_rank_1_becomes_two_vectors() {
    let (model, remarks) = run::<FactorizeLowRank>(
        None,
        ONE,
        r#"<opset_import: ["": 18]> g (float[5,3] x) => (float[5,4] y)
        <float[3,4] w = {1, 2, 3, 4, 2, 4, 6, 8, -1, -2, -3, -4}> { [fc] y = MatMul (x, w) }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[5,3] x) => (float[5,4] y)
        <float[3,1] w_v, float[1,4] w_u>
        { [fc_lowrank] y_lowrank = MatMul (x, w_v) [fc] y = MatMul (y_lowrank, w_u) }"#,
    );
    near(
        &times(constant(&model, "w_v"), constant(&model, "w_u"), 1),
        &[1., 2., 3., 4., 2., 4., 6., 8., -1., -2., -3., -4.],
    );
    assert_eq!(
        remarks.kept[0].message,
        "rank 1 of 3 (svd): 58 % of its MACs, 58 % of its parameters, 0.00 % of the energy of its weights (no calibration data) lost"
    );
}

#[test]
fn transposed_products_and_weights_on_the_left_keep_their_side() {
    let (model, _) = run::<FactorizeLowRank>(
        None,
        ONE,
        r#"<opset_import: ["": 18]> g (float[3,5] x, float[5,3] z) => (float[5,4] y, float[4,5] t)
        <float[4,3] w = {1, 2, 3, 2, 4, 6, 3, 6, 9, 4, 8, 12}, float[4] b = {1, 1, 1, 1},
         float[3,4] u = {1, 2, 3, 4, 2, 4, 6, 8, 3, 6, 9, 12}>
        {
            y = Gemm <transA = 1, transB = 1, alpha = 2.0> (x, w, b)
            t = Gemm <transA = 1, transB = 1> (u, z)
        }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[3,5] x, float[5,3] z) => (float[5,4] y, float[4,5] t)
        <float[4] b, float[3,1] w_v, float[4,1] w_u, float[1,3] u_v, float[1,4] u_u>
        {
            y_lowrank = Gemm <transA = 1> (x, w_v)
            y = Gemm <transB = 1, alpha = 2.0> (y_lowrank, w_u, b)
            t_lowrank = Gemm <transB = 1> (u_v, z)
            t = Gemm <transA = 1> (u_u, t_lowrank)
        }"#,
    );
    let outer = |a: [f64; 4], b: [f64; 3]| a.map(|a| b.map(|b| a * b)).concat();
    near(
        &times(constant(&model, "w_u"), constant(&model, "w_v"), 1),
        &outer([1., 2., 3., 4.], [1., 2., 3.]),
    );
    near(
        &times(
            &constant(&model, "u_u").reshaped([4, 1]).unwrap(),
            constant(&model, "u_v"),
            1,
        ),
        &outer([1., 2., 3., 4.], [1., 2., 3.]),
    );
}

#[test]
fn batches_have_factors_of_their_own() {
    let (model, _) = run::<FactorizeLowRank>(
        None,
        ONE,
        r#"<opset_import: ["": 18]> g (float[2,5,3] x) => (float[2,5,3] y)
        <float[2,3,3] w = {1, 2, 3, 2, 4, 6, 3, 6, 9, 1, 0, 1, 1, 0, 1, 2, 0, 2}> { y = MatMul (x, w) }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[2,5,3] x) => (float[2,5,3] y)
        <float[2,3,1] w_v, float[2,1,3] w_u>
        { y_lowrank = MatMul (x, w_v) y = MatMul (y_lowrank, w_u) }"#,
    );
    let (v, u) = (
        constant(&model, "w_v").to_f64s().unwrap(),
        constant(&model, "w_u").to_f64s().unwrap(),
    );
    let second = (0..3)
        .flat_map(|i| (0..3).map(move |j| (i, j)))
        .map(|(i, j)| v[3 + i] * u[3 + j]);
    near(
        &second.collect::<Vec<_>>(),
        &[1., 0., 1., 1., 0., 1., 2., 0., 2.],
    );
}

#[test]
fn a_convolution_by_channels_keeps_its_geometry_in_the_first_part() {
    let (model, _) = run::<FactorizeLowRank>(
        None,
        r#"{"rank": 1, "min-elements": 1, "form": "channel"}"#,
        r#"<opset_import: ["": 18]> g (float[1,4,9] x) => (float[1,6,5] y)
        <float[6,2,3] w = {1, 2, 3, 4, 5, 6, 2, 4, 6, 8, 10, 12, 3, 6, 9, 12, 15, 18,
          1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 3, 0, 0, 0, 0, 3}, float[6] b = {1, 2, 3, 4, 5, 6}>
        { [c] y = Conv <group = 2, strides = [2], pads = [1, 1]> (x, w, b) }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[1,4,9] x) => (float[1,6,5] y)
        <float[6] b, float[2,2,3] w_v, float[6,1,1] w_u>
        {
            [c_lowrank] y_lowrank = Conv <group = 2, strides = [2], pads = [1, 1], kernel_shape = [3]> (x, w_v)
            [c] y = Conv <group = 2, kernel_shape = [1]> (y_lowrank, w_u, b)
        }"#,
    );
    let (v, u) = (
        constant(&model, "w_v").to_f64s().unwrap(),
        constant(&model, "w_u").to_f64s().unwrap(),
    );
    let last: Vec<f64> = (0..6).map(|i| v[6 + i] * u[5]).collect();
    near(&last, &[3., 0., 0., 0., 0., 3.]);
}

#[test]
fn a_separable_kernel_goes_along_one_axis_and_then_the_other() {
    let (model, _) = run::<FactorizeLowRank>(
        None,
        r#"{"rank": 1, "min-elements": 1, "form": "spatial"}"#,
        r#"<opset_import: ["": 18]> g (float[1,2,9,9] x) => (float[1,2,5,9] y)
        <float[2,2,3,3] w = {1, 2, 3, 2, 4, 6, 3, 6, 9, 0, 0, 0, 1, 2, 3, 0, 0, 0,
                             -1, 0, 1, -2, 0, 2, -3, 0, 3, 0, 0, 0, -1, 0, 1, 0, 0, 0}>
        { [c] y = Conv <strides = [2, 1], pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w) }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[1,2,9,9] x) => (float[1,2,5,9] y)
        <float[1,2,3,1] w_v, float[2,1,1,3] w_u>
        {
            [c_lowrank] y_lowrank = Conv <strides = [2, 1], pads = [1, 0, 1, 0], kernel_shape = [3, 1]> (x, w_v)
            [c] y = Conv <pads = [0, 1, 0, 1], kernel_shape = [1, 3]> (y_lowrank, w_u)
        }"#,
    );
    let (v, u) = (
        constant(&model, "w_v").to_f64s().unwrap(),
        constant(&model, "w_u").to_f64s().unwrap(),
    );
    let found = (0..3)
        .flat_map(|i| (0..3).map(move |j| (i, j)))
        .map(|(i, j)| u[3 + j] * v[3 + i]);
    near(
        &found.collect::<Vec<_>>(),
        &[0., 0., 0., -1., 0., 1., 0., 0., 0.],
    );
}

#[test]
fn a_transposed_convolution_gets_fewer_channels_to_spread() {
    let (model, _) = run::<FactorizeLowRank>(
        None,
        ONE,
        r#"<opset_import: ["": 18]> g (float[1,3,4] x) => (float[1,2,9] y)
        <float[3,2,3] w = {1, 2, 3, 4, 5, 6, 2, 4, 6, 8, 10, 12, 3, 6, 9, 12, 15, 18}, float[2] b = {1, 2}>
        { y = ConvTranspose <strides = [2]> (x, w, b) }"#,
    );
    same_structure(
        &model,
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[1,3,4] x) => (float[1,2,9] y)
        <float[2] b, float[1,3,1] w_v, float[1,2,3] w_u>
        {
            y_lowrank = Conv <group = 1, kernel_shape = [1]> (x, w_v)
            y = ConvTranspose <strides = [2]> (y_lowrank, w_u, b)
        }"#,
    );
    near(
        &times(
            &constant(&model, "w_v").reshaped([3, 1]).unwrap(),
            constant(&model, "w_u"),
            1,
        ),
        &[
            1., 2., 3., 4., 5., 6., 2., 4., 6., 8., 10., 12., 3., 6., 9., 12., 15., 18.,
        ],
    );
}

/// A matrix of full rank as text: 1 beside the diagonal, and a growing diagonal.
fn full_rank(n: usize) -> String {
    let at = |i: usize, j: usize| match i.abs_diff(j) {
        0 => i + 2,
        1 => 1,
        _ => 0,
    };
    let all = (0..n * n).map(|k| at(k / n, k % n).to_string());
    all.collect::<Vec<_>>().join(", ")
}

#[test]
fn what_the_inputs_never_do_need_not_be_kept() {
    // The inputs lie in a plane: the first varies, the third is the second plus 3, the rest is 1.
    let sample = |i: usize| -> Tensor {
        let (a, b) = ((i % 7) as f32, (i % 5) as f32 - 2.0);
        Tensor::from_vec([1, 8], vec![a, b, b + 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]).unwrap()
    };
    let data = Samples::of((0..40).map(|i| vec![sample(i)]));
    let w = full_rank(8);
    let text = format!(
        r#"<opset_import: ["": 18]> g (float[1,8] x) => (float[1,8] y)
        <float[8,8] w = {{{w}}}> {{ y = Gemm (x, w) }}"#
    );
    let (model, remarks) = run_with(
        r#"{"rank": 2, "min-elements": 1, "damping": 1e-9}"#,
        &text,
        &data,
    );
    let message = &remarks.kept[0].message;
    assert!(
        message.ends_with(" 0.02 % of the energy of its outputs lost"),
        "{message}"
    );
    let before = parse(&text);
    let w = constant(&before, "w");
    let bias = constant(&model, "w_u_bias").to_f64s().unwrap();
    for i in 0..7 {
        let x = sample(i);
        let wanted = times(&x, w, 8);
        let middle = Tensor::vector(times(&x, constant(&model, "w_v"), 8));
        let found = times(&middle, constant(&model, "w_u"), 2);
        let found: Vec<f64> = found.iter().zip(&bias).map(|(y, b)| y + b).collect();
        for (f, w) in found.iter().zip(&wanted) {
            assert!((f - w).abs() < 1e-2, "found {found:?}, expected {wanted:?}");
        }
    }
}

#[test]
fn a_spatial_second_part_is_fitted_to_the_inputs() {
    // Both rows of the kernel are different, but the image is constant along the second axis, so
    // one column of weights does for all.
    let sample = |i: usize| -> Tensor {
        let row = |r: usize| [((i + 1) * (r + 2) % 7) as f32; 8];
        Tensor::from_vec([1, 1, 4, 8], (0..4).flat_map(row).collect::<Vec<f32>>()).unwrap()
    };
    let data = Samples::of((0..20).map(|i| vec![sample(i)]));
    let text = r#"<opset_import: ["": 18]> g (float[1,1,4,8] x) => (float[1,1,2,6] y)
        <float[1,1,3,3] w = {1, 2, 3, 1, 1, 1, 5, 0, 2}> { y = Conv (x, w) }"#;
    let options = r#"{"rank": 1, "min-elements": 1, "form": "spatial", "damping": 1e-9}"#;
    let (model, _) = run_with(options, text, &data);
    let (v, u) = (
        constant(&model, "w_v").to_f64s().unwrap(),
        constant(&model, "w_u").to_f64s().unwrap(),
    );
    let along: f64 = u.iter().sum();
    let found: Vec<f64> = v.iter().map(|v| v * along).collect();
    for (f, w) in found.iter().zip([6.0, 3.0, 7.0]) {
        assert!((f - w).abs() < 0.05, "found {found:?}");
    }
}

#[test]
fn energy_and_full_ratio_leave_what_is_full() {
    let w = full_rank(8);
    let text = format!(
        r#"<opset_import: ["": 18]> g (float[1,8] x) => (float[1,8] y)
        <float[8,8] w = {{{w}}}> {{ y = MatMul (x, w) }}"#
    );
    refused::<FactorizeLowRank>(
        r#"{"energy": 1.0, "min-elements": 1, "round-to": 1}"#,
        &text,
        "energy",
    );
    refused::<FactorizeLowRank>(
        r#"{"ratio": 1.0, "min-elements": 1, "round-to": 1}"#,
        &text,
        "full-rank",
    );
}

#[test]
fn a_budget_counts_what_can_not_be_factorized() {
    let w = full_rank(8);
    let text = format!(
        r#"<opset_import: ["": 18]> g (float[1,8] x, float[8,8] other) => (float[1,8] z)
        <float[8,8] w = {{{w}}}> {{ y = MatMul (x, w) z = MatMul (y, other) }}"#
    );
    // Half of the multiply-accumulates are in the other product: 0.75 leaves half of this one.
    let (model, _) = run::<FactorizeLowRank>(
        None,
        r#"{"budget": {"macs": 0.75}, "min-elements": 1, "round-to": 1}"#,
        &text,
    );
    assert_eq!(constant(&model, "w_v").dims(), [8, 2]);
    let given = json!({"budget": {"macs": 0.5}, "min-elements": 1, "round-to": 3});
    let options = OptionSet::parse("factorize-low-rank", given.as_object().unwrap()).unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    let error = FactorizeLowRank::new(options)
        .unwrap()
        .run(&mut parse(&text), &mut cx);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the budget (macs 0.5) can't be met even at the lowest ranks; raise it, or lower round-to or min-elements"
    );
}

#[test]
fn refusals_have_reasons() {
    let with = |code: &str, text: &str| {
        refused::<FactorizeLowRank>(r#"{"rank": 1, "min-elements": 2}"#, text, code);
    };
    with(
        "depthwise",
        r#"<opset_import: ["": 18]> g (float[1,4,9] x) => (float[1,4,7] y)
        <float[4,1,3] w = {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3}> { y = Conv <group = 4> (x, w) }"#,
    );
    with(
        "no-gain",
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
        <float[2,2] w = {1, 2, 2, 4}> { y = MatMul (x, w) }"#,
    );
    with(
        "small",
        r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] y)
        <float[1,1] w = {1}> { y = MatMul (x, w) }"#,
    );
    with(
        "overridable",
        r#"<opset_import: ["": 18]> g (float[1,3] x, float[3,3] w = {1, 2, 3, 1, 2, 3, 1, 2, 3}) => (float[1,3] y)
        { y = MatMul (x, w) }"#,
    );
    with(
        "graph-output",
        r#"<opset_import: ["": 18]> g (float[1,3] x) => (float[1,3] y, float[3,3] w)
        <float[3,3] w = {1, 2, 3, 1, 2, 3, 1, 2, 3}> { y = MatMul (x, w) }"#,
    );
    let remarks = unchanged::<FactorizeLowRank>(
        ONE,
        r#"<opset_import: ["": 18]> g (float[1,1,1] x) => (float[1,1,1,2] y)
        <float[1,2,1] w = {1, 2}, float[1,2,2] r = {1, 2, 2, 4}> { y = RNN <hidden_size = 2> (x, w, r) }"#,
    );
    assert_eq!(remarks.missed["recurrent"], 2, "both of its weights");
}

#[test]
fn a_shared_weight_is_left_for_all() {
    let remarks = unchanged::<FactorizeLowRank>(
        ONE,
        r#"<opset_import: ["": 18]> g (float[1,3] x) => (float[1,3] z)
        <float[3,3] w = {1, 2, 3, 1, 2, 3, 1, 2, 3}> { y = MatMul (x, w) z = MatMul (y, w) }"#,
    );
    assert_eq!(remarks.missed["shared"], 2);
}

#[test]
fn layers_by_name_have_ranks_of_their_own() {
    let w = full_rank(8);
    let (model, remarks) = run::<FactorizeLowRank>(
        None,
        r#"{"min-elements": 1, "ratio": 1.0, "by-name": {"b": {"rank": 3}}}"#,
        &format!(
            r#"<opset_import: ["": 18]> g (float[1,8] x) => (float[1,8] z)
            <float[8,8] w = {{{w}}}, float[8,8] v = {{{w}}}>
            {{ [a] y = MatMul (x, w) r = Relu (y) [b] z = MatMul (r, v) }}"#
        ),
    );
    assert_eq!(constant(&model, "v_v").dims(), [8, 3]);
    assert_eq!(remarks.applied["factorized"], 1);
    assert_eq!(remarks.missed["no-gain"], 1, "8 x 8 at rank 8");
}

#[test]
fn only_one_thing_decides_about_the_rank() {
    let given = json!({"ratio": 0.5, "energy": 0.9});
    let options = OptionSet::<Options>::parse("factorize-low-rank", given.as_object().unwrap());
    let error = FactorizeLowRank::new(options.unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "factorize-low-rank.energy: ratio decides about the rank already; give one of them"
    );
}

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use paring_ir::{Model, Tensor};

use super::LowerQdq;
use crate::testing::{check, run, unchanged};

/// The types of the operators in the order of the data.
fn kinds(model: &Model) -> Vec<String> {
    let g = &model.graph;
    let order = g.topological_order().unwrap();
    order
        .iter()
        .map(|&op| g.op(op).op_type().to_string())
        .collect()
}

fn tensor<'m>(model: &'m Model, name: &str) -> &'m Tensor {
    let g = &model.graph;
    g.tensor(g.find_value(name).unwrap()).unwrap()
}

/// A model around `body`, with scales and zero points: `s` and `z` of unsigned bytes from -12.8,
/// `z0` of those from zero.
fn around(inputs: &str, outputs: &str, weights: &str, body: &str) -> String {
    format!(
        r#"<opset_import: ["": 18]> g ({inputs}) => ({outputs})
        <float s = {{0.1}}, uint8 z = {{128}}, uint8 z0 = {{0}}, float sw = {{0.5}}, int8 zw = {{0}}, {weights}> {{ {body} }}"#
    )
}

const CHAIN: &str = r#"
    xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
    wd = DequantizeLinear (w, sw, zw)
    [first] a = Conv (xd, wd, b)
    r = Relu (a)
    rq = QuantizeLinear (r, s, z0) rd = DequantizeLinear (rq, s, z0)
    vd = DequantizeLinear (v, sw, zw)
    [second] c = Conv (rd, vd)
    cq = QuantizeLinear (c, s, z) y = DequantizeLinear (cq, s, z)"#;
const CHAIN_WEIGHTS: &str =
    "int8[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {0.1, -0.2}, int8[2,2,1,1] v = {4, 3, 2, 1}";

#[test]
fn a_chain_of_convolutions_runs_on_bytes() {
    let text = around("float[1,2,4,4] x", "float[1,2,4,4] y", CHAIN_WEIGHTS, CHAIN);
    let (model, remarks) = run::<LowerQdq>(None, r#"{"only": ["first", "second"]}"#, &text);
    assert_eq!(
        kinds(&model),
        [
            "QuantizeLinear",
            "QLinearConv",
            "QLinearConv",
            "DequantizeLinear"
        ]
    );
    assert_eq!(remarks.applied["integers"], 2);
    // 0.1 and -0.2 over 0.1 * 0.5.
    assert_eq!(tensor(&model, "first_bias").to_i64s().unwrap(), [2, -4]);
    // Unsigned bytes became signed ones: a Relu saturates at the least.
    assert_eq!(tensor(&model, "xq_zero_point").to_i64s().unwrap(), [0]);
    assert_eq!(tensor(&model, "rq_zero_point").to_i64s().unwrap(), [-128]);
}

#[test]
fn what_costs_more_than_it_saves_goes_back_to_floats() {
    let text = around("float[1,2,4,4] x", "float[1,2,4,4] y", CHAIN_WEIGHTS, CHAIN);
    let (model, remarks) = run::<LowerQdq>(None, "", &text);
    assert_eq!(remarks.missed["float-is-faster"], 2);
    assert_eq!(
        kinds(&model),
        [
            "DequantizeLinear",
            "Conv",
            "Relu",
            "DequantizeLinear",
            "Conv"
        ]
    );
}

#[test]
fn a_relu_that_bytes_cannot_stand_for_keeps_the_layer_float() {
    // Bytes from -12.8 on: -1 is told apart, and the Relu cuts it off.
    let body = CHAIN
        .replace("(r, s, z0)", "(r, s, z)")
        .replace("(rq, s, z0)", "(rq, s, z)");
    let text = around("float[1,2,4,4] x", "float[1,2,4,4] y", CHAIN_WEIGHTS, &body);
    let (model, remarks) = run::<LowerQdq>(None, r#"{"only": ["first", "second"]}"#, &text);
    assert_eq!(remarks.missed["float-output"], 1);
    assert!(kinds(&model).contains(&"Relu".to_owned()));
}

#[test]
fn a_product_with_a_bias_between_bytes_becomes_a_convolution_over_rows() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear (w, sw, zw)
        [m] p = MatMul (xd, wd)
        a = Add (b, p)
        aq = QuantizeLinear (a, s, z) ad = DequantizeLinear (aq, s, z)
        vd = DequantizeLinear (v, sw, zw)
        [n] y = MatMul (ad, vd)"#;
    let weights =
        "int8[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}, int8[3,1] v = {1, 2, 3}";
    let text = around("float[4,2] x", "float[4,1] y", weights, body);
    let (model, _) = run::<LowerQdq>(None, r#"{"only": ["m", "n"]}"#, &text);
    assert_eq!(
        kinds(&model),
        [
            "QuantizeLinear",
            "Transpose",
            "Unsqueeze",
            "QLinearConv",
            "Squeeze",
            "Transpose",
            "MatMulInteger",
            "DequantizeLinear"
        ]
    );
    let w = tensor(&model, "w_integer");
    assert_eq!(w.dims(), [3, 2, 1]);
    assert_eq!(w.to_i64s().unwrap(), [1, 4, 2, 5, 3, 6]);
}

#[test]
fn a_product_of_floats_to_come_adds_its_bias_to_the_sums() {
    // 8 and -8, less the zero point times what the columns add up to.
    check::<LowerQdq>(
        r#"{"only": ["m"]}"#,
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y)
        <float s = {0.5}, int8 z = {3}, float sw = {0.25}, int8 zw = {0}, int8[2,2] w = {1, 2, 3, 4}, float[2] b = {1, -1}> {
            xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
            wd = DequantizeLinear (w, sw, zw)
            [m] y = Gemm (xd, wd, b)
        }"#,
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y)
        <int8[2,2] w = {1, 2, 3, 4}, float xq_scale = {0.5}, int8 xq_zero_point = {3}, int32[2] m_bias = {-4, -26}, float m_product_scale = {0.125}> {
            xq_1 = QuantizeLinear (x, xq_scale, xq_zero_point)
            [m] m_integers = MatMulInteger (xq_1, w)
            m_sums = Add (m_integers, m_bias)
            y = DequantizeLinear (m_sums, m_product_scale)
        }"#,
    );
}

#[test]
fn a_convolution_with_padding_keeps_the_zero_point() {
    let body = CHAIN.replace(
        "[second] c = Conv (rd",
        "[second] c = Conv <pads: ints = [1, 1, 1, 1]> (rd",
    );
    let zero_of_second = |body: &str| {
        let text = around("float[1,2,4,4] x", "float y", CHAIN_WEIGHTS, body);
        let (model, _) = run::<LowerQdq>(None, r#"{"only": ["first", "second"]}"#, &text);
        let g = &model.graph;
        let second = g.ops().find(|&op| *g.op_label(op) == *"second").unwrap();
        let bias = g.input_tensor(second, 8).map(|b| b.to_i64s().unwrap());
        (g.input_tensor(second, 2).unwrap().to_i64s().unwrap(), bias)
    };
    assert_eq!(zero_of_second(&body), (vec![-128], None));
    // 128 times 4 + 3 and 2 + 1.
    assert_eq!(zero_of_second(CHAIN), (vec![0], Some(vec![896, 384])));
}

#[test]
fn a_batch_that_is_left_open_is_one() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear (w, sw, zw)
        [m] y = MatMul (xd, wd)"#;
    let weights = "int8[2,2] w = {1, 2, 3, 4}";
    let text = around("float[n,2] x", "float[n,2] y", weights, body);
    let (_, remarks) = run::<LowerQdq>(None, r#"{"only": ["m"]}"#, &text);
    assert_eq!(remarks.missed["few-rows"], 1);
}

#[test]
fn a_large_weight_that_stays_float_is_stored_in_pieces() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear <axis: int = 0> (w, sc, zc)
        [m] y = Gemm <transB: int = 1> (xd, wd)"#;
    let weights = "int8[3,524288] w = zeros, float[3] sc = {1, 2, 3}, int8[3] zc = {0, 0, 0}";
    let text = around("float[1,524288] x", "float[1,3] y", weights, body);
    let (model, _) = run::<LowerQdq>(None, "", &text);
    let kinds = kinds(&model);
    assert_eq!(
        kinds,
        ["DequantizeLinear", "DequantizeLinear", "Concat", "Gemm"]
    );
    let dims = |name: &str| tensor(&model, name).dims().to_vec();
    assert_eq!(dims("w_piece"), [2, 524288]);
    assert_eq!(dims("w_piece_1"), [1, 524288]);
    assert_eq!(
        tensor(&model, "w_piece_scale").to_f64s().unwrap(),
        [1.0, 2.0]
    );
    assert_eq!(tensor(&model, "w_piece_scale_1").to_f64s().unwrap(), [3.0]);
}

/// A weight whose outputs differ so much that one scale ruins the second.
const UNEVEN: &str = "float[2] sc = {1, 0.001}, int8[2] zc = {0, 0}";

#[test]
fn scales_by_output_stay_in_products_and_keep_convolutions_float() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear <axis: int = 1> (w, sc, zc)
        [m] y = MatMul (xd, wd)"#;
    let weights = format!("int8[2,2] w = {{100, 100, 50, 50}}, {UNEVEN}");
    let text = around("float[4,2] x", "float[4,2] y", &weights, body);
    let (model, _) = run::<LowerQdq>(None, r#"{"only": ["m"]}"#, &text);
    assert_eq!(
        kinds(&model),
        ["QuantizeLinear", "MatMulInteger", "Cast", "Mul"]
    );
    let (model, _) = run::<LowerQdq>(None, r#"{"only": ["m"], "min-weight-sqnr-db": -50}"#, &text);
    assert_eq!(
        kinds(&model),
        ["QuantizeLinear", "MatMulInteger", "DequantizeLinear"]
    );

    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear <axis: int = 0> (w, sc, zc)
        [m] a = Conv (xd, wd)
        aq = QuantizeLinear (a, s, z) y = DequantizeLinear (aq, s, z)"#;
    let weights = format!("int8[2,2,1,1] w = {{100, 100, 50, 50}}, {UNEVEN}");
    let text = around("float[1,2,4,4] x", "float[1,2,4,4] y", &weights, body);
    let (model, remarks) = run::<LowerQdq>(None, r#"{"only": ["m"]}"#, &text);
    assert_eq!(remarks.missed["per-channel-weight"], 1);
    assert_eq!(kinds(&model), ["DequantizeLinear", "Conv"]);
}

#[test]
fn depthwise_convolutions_and_single_rows_go_back_to_floats() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear (w, sw, zw)
        [m] a = Conv <group: int = 2> (xd, wd)
        aq = QuantizeLinear (a, s, z) y = DequantizeLinear (aq, s, z)"#;
    let text = around(
        "float[1,2,4,4] x",
        "float[1,2,4,4] y",
        "int8[2,1,1,1] w = {1, 2}",
        body,
    );
    let (model, remarks) = run::<LowerQdq>(None, r#"{"only": ["m"]}"#, &text);
    assert_eq!(remarks.missed["depthwise"], 1);
    assert_eq!(kinds(&model), ["DequantizeLinear", "Conv"]);

    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        wd = DequantizeLinear (w, sw, zw)
        [m] y = MatMul (xd, wd)"#;
    let text = around(
        "float[1,2] x",
        "float[1,2] y",
        "int8[2,2] w = {1, 2, 3, 4}",
        body,
    );
    let (model, remarks) = run::<LowerQdq>(None, r#"{"only": ["m"]}"#, &text);
    assert_eq!(remarks.missed["few-rows"], 1);
    assert_eq!(kinds(&model), ["DequantizeLinear", "MatMul"]);
}

#[test]
fn a_relu_that_a_quantizer_left_to_the_bytes_comes_back() {
    let body = r#"
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        a = Add (xd, x)
        aq = QuantizeLinear (a, s, z0) ad = DequantizeLinear (aq, s, z0)
        y = Neg (ad)"#;
    let text = around("float[1,2] x", "float[1,2] y", "float unused = {0}", body);
    let (model, _) = run::<LowerQdq>(None, "", &text);
    assert_eq!(kinds(&model), ["Add", "Clip", "Neg"]);
    assert_eq!(tensor(&model, "aq_least").to_f64s().unwrap(), [0.0]);
}

#[test]
fn no_table_is_made_of_a_softmax() {
    let body = CHAIN.replace("y = DequantizeLinear", "cd = DequantizeLinear") + " y = Softmax (cd)";
    let text = around("float[1,2,4,4] x", "float[1,2,4,4] y", CHAIN_WEIGHTS, &body);
    let (model, _) = run::<LowerQdq>(None, r#"{"only": ["first", "second"]}"#, &text);
    assert_eq!(
        kinds(&model)[2..],
        ["QLinearConv", "Cast", "Sub", "Mul", "Softmax"]
    );
}

#[test]
fn pooling_and_reshapes_between_bytes_of_one_scale_work_on_bytes() {
    let body = CHAIN.replace(
        "vd =",
        r#"p = MaxPool <kernel_shape: ints = [2, 2]> (rd)
           pq = QuantizeLinear (p, s, z0) pd = DequantizeLinear (pq, s, z0)
           vd ="#,
    );
    let body = body.replace("Conv (rd, vd)", "Conv (pd, vd)");
    let text = around("float[1,2,4,4] x", "float[1,2,3,3] y", CHAIN_WEIGHTS, &body);
    let (model, _) = run::<LowerQdq>(None, r#"{"only": ["first", "second"]}"#, &text);
    assert_eq!(
        kinds(&model),
        [
            "QuantizeLinear",
            "QLinearConv",
            "MaxPool",
            "QLinearConv",
            "DequantizeLinear"
        ]
    );
}

#[test]
fn what_is_not_quantized_stays() {
    unchanged::<LowerQdq>(
        "",
        r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y) <float[2,2] w = random(1)> { y = MatMul (x, w) }"#,
    );
}

#[test]
fn a_ratio_must_be_a_positive_number() {
    let options = serde_json::json!({ "max-latency-ratio": 0.0 });
    let options = paring_ir::OptionSet::parse("lower-qdq", options.as_object().unwrap()).unwrap();
    let e = <LowerQdq as paring_ir::Pass>::new(options).unwrap_err();
    assert!(e.to_string().contains("max-latency-ratio"), "{e}");
}

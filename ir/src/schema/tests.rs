#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::collections::BTreeSet;

use super::*;
use crate::graph::{Graph, OpId};
use crate::op::NewOp;
use crate::tensor::Tensor;

fn schema(op_type: &str, opset: i64) -> &'static OpSchema {
    lookup("", op_type, opset).unwrap()
}

fn names(params: &[Param]) -> Vec<&str> {
    params.iter().map(|p| p.name).collect()
}

#[test]
fn the_whole_table_parses() {
    let (mut operators, mut count) = (0, 0);
    for (name, text) in parse::operators() {
        let parsed = parse::versions(name, text).unwrap();
        assert!(!parsed.is_empty(), "{name}");
        assert!(parsed.is_sorted_by(|a, b| a.since < b.since), "{name}");
        for v in &parsed {
            for p in v.inputs.iter().chain(&v.outputs) {
                assert_ne!(p.types, TypeSet::default(), "{name} {} {}", v.since, p.name);
            }
            for params in [&v.inputs, &v.outputs] {
                let variadic = |p: &&Param| matches!(p.presence, Presence::Variadic { .. });
                let before_last = params.len().saturating_sub(1);
                assert_eq!(
                    params.iter().take(before_last).find(variadic),
                    None,
                    "{name}"
                );
            }
            assert!(v.attrs.is_sorted_by(|a, b| a.name < b.name), "{name}");
            assert!(v.since <= NEWEST_OPSET);
        }
        operators += 1;
        count += parsed.len();
    }
    assert_eq!((operators, count), (203, 629));
    assert!(operator_names().is_sorted());
}

#[test]
fn a_malformed_line_is_quoted() {
    let e = parse::versions("Nope", "  1 x:T -> y:T | a:color=red | T=float").unwrap_err();
    assert_eq!(
        e,
        "Nope: `a:color=red` in `  1 x:T -> y:T | a:color=red | T=float`"
    );
    let e = parse::versions("Nope", "  1 x:T -> y:U | | T=float").unwrap_err();
    assert!(e.starts_with("Nope: `U`"), "{e}");
}

#[test]
fn the_newest_version_not_newer_than_the_opset_is_found() {
    let since = |op, opset| lookup("", op, opset).map(|s| s.since);
    assert_eq!(since("Relu", 1), Some(1));
    assert_eq!(since("Relu", 12), Some(6));
    assert_eq!(since("Relu", 13), Some(13));
    assert_eq!(since("Relu", 1000), Some(14));
    assert_eq!(since("Gelu", 19), None);
    assert_eq!(since("Gelu", 20), Some(20));
    assert_eq!(since("Conv", 17), Some(11));
    assert_eq!(since("Attention", 23), Some(23));
    assert_eq!(since("NoSuchOperator", 20), None);
    assert_eq!(lookup("ai.onnx", "Add", 13), lookup("", "Add", 13));
    assert_eq!(lookup("com.microsoft", "Add", 13), None);
    assert_eq!(versions("Add").len(), 5);
}

#[test]
fn arities_are_positional() {
    let clip = schema("Clip", 13);
    assert_eq!((clip.min_inputs(), clip.max_inputs()), (1, 3));
    let concat = schema("Concat", 13);
    assert_eq!((concat.min_inputs(), concat.max_inputs()), (1, usize::MAX));
    assert_eq!(concat.input(17).map(|p| p.name), Some("inputs"));
    assert_eq!(clip.input(3), None);
    // The trip count and the condition may be absent, but their slots are there.
    let looping = schema("Loop", 13);
    assert_eq!(
        (looping.min_inputs(), looping.max_inputs()),
        (2, usize::MAX)
    );
    assert_eq!(schema("Constant", 13).max_inputs(), 0);
    let norm = schema("BatchNormalization", 15);
    assert_eq!(
        names(&norm.inputs),
        ["X", "scale", "B", "input_mean", "input_var"]
    );
    assert_eq!(names(&norm.outputs), ["Y", "running_mean", "running_var"]);
    assert_eq!((norm.min_outputs(), norm.max_outputs()), (1, 3));
    let q = schema("QLinearConv", 10);
    assert_eq!((q.min_inputs(), q.max_inputs()), (8, 9));
}

#[test]
fn attributes_and_defaults_are_exact() {
    let default = |op, opset, attr| schema(op, opset).attr(attr).unwrap().default.clone();
    use AttrDefault::{Float, Int, Ints, String, Strings};
    assert_eq!(default("Conv", 11, "group"), Some(Int(1)));
    assert_eq!(default("Conv", 11, "auto_pad"), Some(String("NOTSET")));
    assert_eq!(default("Conv", 11, "kernel_shape"), None);
    assert_eq!(
        default("BatchNormalization", 15, "epsilon"),
        Some(Float(1e-5))
    );
    assert_eq!(default("LRN", 13, "alpha"), Some(Float(1e-4)));
    assert_eq!(default("Selu", 6, "gamma"), Some(Float(1.050_701)));
    assert_eq!(default("Clip", 6, "max"), Some(Float(f32::MAX)));
    assert_eq!(default("Softmax", 11, "axis"), Some(Int(1)));
    assert_eq!(default("Softmax", 13, "axis"), Some(Int(-1)));
    assert_eq!(default("Resize", 13, "cubic_coeff_a"), Some(Float(-0.75)));
    let axes = default("MeanVarianceNormalization", 13, "axes");
    assert_eq!(axes, Some(Ints(vec![0, 2, 3])));
    let activations = default("RNN", 14, "activations");
    assert_eq!(activations, Some(Strings(vec!["Tanh", "Tanh"])));
    assert!(schema("Concat", 13).attr("axis").unwrap().required);
    assert!(!schema("Concat", 1).attr("axis").unwrap().required);
    assert_eq!(
        schema("If", 16).attr("then_branch").unwrap().kind,
        AttrKind::Graph
    );
    assert_eq!(schema("ReduceMean", 18).attr("axes"), None);
    assert!(Int(1).is(&AttrValue::Int(1)) && !Int(1).is(&AttrValue::Float(1.0)));
}

#[test]
fn element_types_follow_the_version() {
    let types = |op, opset| schema(op, opset).input(0).unwrap().types;
    assert!(!types("Relu", 12).allows(DType::BF16) && types("Relu", 13).allows(DType::BF16));
    assert!(!types("Relu", 13).allows(DType::I8) && types("Relu", 14).allows(DType::I8));
    assert!(types("DequantizeLinear", 21).allows(DType::I4));
    assert!(!types("DequantizeLinear", 19).allows(DType::I4));
    assert_eq!(types("Not", 20).dtypes().collect::<Vec<_>>(), [DType::Bool]);
    let shape = schema("Reshape", 14).input(1).unwrap();
    assert!(!shape.is_generic());
    assert_eq!(shape.types.dtypes().collect::<Vec<_>>(), [DType::I64]);
    let float = ValueType::fixed(DType::F32, &[2]);
    let floats = ValueType::Sequence(Some(Box::new(float.clone())));
    let at = schema("SequenceAt", 11).input(0).unwrap().types;
    assert!(at.accepts(&floats) && !at.accepts(&float));
    let identity = types("Identity", 16);
    assert!(identity.accepts(&floats) && identity.accepts(&float));
    assert!(identity.accepts(&ValueType::Optional(Some(Box::new(floats)))));
    assert!(!types("Identity", 13).accepts(&ValueType::Sequence(None)));
}

#[test]
fn withdrawn_operators_are_marked() {
    assert!(!schema("Upsample", 9).deprecated && schema("Upsample", 10).deprecated);
    assert!(!schema("Scatter", 10).deprecated && schema("Scatter", 11).deprecated);
    assert!(schema("GroupNormalization", 18).deprecated);
    assert!(!schema("GroupNormalization", 21).deprecated);
}

#[test]
fn every_operator_has_one_row_whose_roles_fit_its_inputs() {
    let table: Vec<&str> = known_operators().iter().map(|k| k.op_type).collect();
    let unique: BTreeSet<&str> = table.iter().copied().collect();
    assert_eq!(table.len(), unique.len());
    assert_eq!(unique.into_iter().collect::<Vec<_>>(), operator_names());
    for k in known_operators() {
        let most = versions(k.op_type).iter().map(OpSchema::max_inputs).max();
        let last = (0..9).rfind(|&slot| k.role(slot) != k.role(slot + 1));
        assert!(
            last.is_none_or(|slot| slot + 1 < most.unwrap()),
            "{}",
            k.op_type
        );
        assert!(!k.idempotent || k.class != Class::Binary || k.commutative);
        if let Some((low, high)) = k.range {
            assert!(low < high && (low > f64::NEG_INFINITY || high < f64::INFINITY));
        }
    }
}

#[test]
fn roles_agree_with_the_names_of_inputs() {
    for k in known_operators() {
        let newest = versions(k.op_type).last().unwrap();
        for (slot, p) in newest.inputs.iter().enumerate() {
            let expected = match p.name {
                "axes" | "shape" | "pads" | "starts" | "ends" | "steps" => Role::Shape,
                "w_scale" | "x_scale" | "y_scale" | "a_scale" | "b_scale" => Role::Scale,
                name if name.ends_with("zero_point") => Role::ZeroPoint,
                "indices" if k.op_type != "OneHot" => Role::Index,
                "W" | "w" | "weight" if k.class != Class::Loss => Role::Weight,
                "B" if k.class == Class::Norm => Role::Bias,
                "R" => Role::RecurrentWeight,
                _ => continue,
            };
            assert_eq!(k.role(slot), expected, "{} {}", k.op_type, p.name);
        }
    }
}

fn graph_of(new: NewOp, constants: &[Option<Tensor>]) -> (Graph, OpId) {
    let mut g = Graph::new("main");
    let x = g.add_input("x", None).unwrap();
    let mut new = new.input(x);
    for c in constants {
        let value = c.clone().map(|t| g.add_constant("c", t).unwrap());
        new = new.optional_input(value);
    }
    let op = g.add_op(new.output("y")).unwrap();
    (g, op)
}

#[test]
fn ranges_follow_attributes_and_constant_bounds() {
    let range = |new: NewOp, constants: &[Option<Tensor>]| {
        let (g, op) = graph_of(new, constants);
        output_range(&g, op)
    };
    let inf = f64::INFINITY;
    assert_eq!(range(NewOp::new("Relu"), &[]), Some((0.0, inf)));
    assert_eq!(
        range(NewOp::new("Elu").attr("alpha", 0.5f32), &[]),
        Some((-0.5, inf))
    );
    assert_eq!(range(NewOp::new("Elu").attr("alpha", -0.5f32), &[]), None);
    let (zero, six) = (Tensor::scalar(0f32), Tensor::scalar(6f32));
    let clip = || NewOp::new("Clip");
    assert_eq!(
        range(clip(), &[Some(zero.clone()), Some(six.clone())]),
        Some((0.0, 6.0))
    );
    assert_eq!(range(clip(), &[None, Some(six.clone())]), Some((-inf, 6.0)));
    assert_eq!(range(clip(), &[Some(six), Some(zero)]), Some((0.0, 0.0)));
    assert_eq!(range(clip().attr("min", -1f32), &[]), Some((-1.0, inf)));
    // A bound that is computed could be anything.
    let mut g = Graph::new("main");
    let x = g.add_input("x", None).unwrap();
    let op = g.add_op(clip().input(x).input(x).output("y")).unwrap();
    assert_eq!(output_range(&g, op), None);
    assert_eq!(range(NewOp::new("Relu").domain("custom"), &[]), None);
}

#[test]
fn a_negative_slope_turns_monotonicity_off() {
    let (g, op) = graph_of(NewOp::new("LeakyRelu"), &[]);
    assert_eq!(monotonicity(g.op(op)), Some(Monotonicity::Increasing));
    let (g, op) = graph_of(NewOp::new("LeakyRelu").attr("alpha", -0.1f32), &[]);
    assert_eq!(monotonicity(g.op(op)), None);
    let (g, op) = graph_of(NewOp::new("Neg"), &[]);
    assert_eq!(monotonicity(g.op(op)), Some(Monotonicity::Decreasing));
}

#[test]
fn random_and_foreign_operators_are_not_deterministic() {
    let pure = |new: NewOp| {
        let (g, op) = graph_of(new, &[]);
        (is_deterministic(g.op(op)), is_pure_standard(g.op(op)))
    };
    assert_eq!(pure(NewOp::new("Relu")), (true, true));
    assert_eq!(pure(NewOp::new("Dropout")), (true, true));
    assert_eq!(pure(NewOp::new("RandomNormalLike")), (false, false));
    assert_eq!(
        pure(NewOp::new("Relu").domain("com.example")),
        (false, false)
    );
    assert_eq!(pure(NewOp::new("FutureOperator")), (false, false));
    assert_eq!(pure(NewOp::new("SequenceConstruct")), (true, false));
    let branch = |op_type: &str| {
        let mut g = Graph::new("branch");
        let op = g.add_op(NewOp::new(op_type).output("r")).unwrap();
        g.add_output(g.op(op).output(0).unwrap()).unwrap();
        g
    };
    let choose = |op_type| {
        NewOp::new("If")
            .attr("then_branch", AttrValue::Graph(Box::new(branch(op_type))))
            .attr(
                "else_branch",
                AttrValue::Graph(Box::new(branch("Constant"))),
            )
    };
    assert_eq!(pure(choose("Constant")), (true, false));
    assert_eq!(pure(choose("RandomUniform")), (false, false));
}

#[test]
fn dropout_is_deterministic_when_it_says_that_it_does_not_train() {
    let dropout = |training: bool| {
        let flag = Tensor::new(DType::Bool, [], vec![u8::from(training)]).unwrap();
        graph_of(NewOp::new("Dropout"), &[None, Some(flag)])
    };
    let (g, op) = dropout(false);
    assert!(is_deterministic_in(&g, op) && !is_deterministic(g.op(op)));
    let (g, op) = dropout(true);
    assert!(!is_deterministic_in(&g, op));
}

#[test]
fn weights_have_their_axes_by_operator() {
    let axes = |new: NewOp, rank| {
        let (g, op) = graph_of(new, &[]);
        weight_layout(g.op(op), rank).map(|l| (l.output_axis, l.input_axis, l.groups))
    };
    assert_eq!(
        axes(NewOp::new("Conv").attr("group", 8i64), 4),
        Some((0, 1, 8))
    );
    assert_eq!(axes(NewOp::new("ConvTranspose"), 5), Some((1, 0, 1)));
    assert_eq!(axes(NewOp::new("Gemm"), 2), Some((1, 0, 1)));
    assert_eq!(
        axes(NewOp::new("Gemm").attr("transB", 1i64), 2),
        Some((0, 1, 1))
    );
    assert_eq!(axes(NewOp::new("MatMul"), 3), Some((2, 1, 1)));
    assert_eq!(axes(NewOp::new("QLinearConv"), 4), Some((0, 1, 1)));
    assert_eq!(axes(NewOp::new("LSTM"), 3), Some((1, 2, 1)));
    // Refused: no axis of output channels, nonsense groups, wrong rank, no weight.
    assert_eq!(axes(NewOp::new("MatMul"), 1), None);
    assert_eq!(axes(NewOp::new("Conv").attr("group", 0i64), 4), None);
    assert_eq!(axes(NewOp::new("Gemm"), 3), None);
    assert_eq!(axes(NewOp::new("BatchNormalization"), 1), None);
    assert_eq!(axes(NewOp::new("Add"), 2), None);
    assert_eq!(axes(NewOp::new("Conv").domain("custom"), 4), None);

    let (g, op) = graph_of(NewOp::new("Conv").attr("group", 8i64), &[]);
    let layout = weight_layout(g.op(op), 4).unwrap();
    assert_eq!(layout.kernel_axes, 2..4);
    assert!(layout.is_depthwise(&[16, 1, 3, 3]) && !layout.is_depthwise(&[16, 2, 3, 3]));
    let (g, op) = graph_of(NewOp::new("MatMul"), &[]);
    assert_eq!(weight_slots(g.op(op)), [1, 0]);
    let left = weight_layout_at(g.op(op), 0, 4).unwrap();
    assert_eq!(
        (left.output_axis, left.input_axis, left.batch_axes),
        (2, 3, 0..2)
    );
    let (g, op) = graph_of(NewOp::new("GRU"), &[]);
    assert_eq!(weight_slots(g.op(op)), [1, 2]);
    assert_eq!(weight_layout(g.op(op), 3).unwrap().gates, 3);
}

/// Counts for inputs and an output of known sizes; 0 stands for an unknown size.
fn count(new: NewOp, inputs: &[&[u64]], output: &[u64]) -> Option<u64> {
    let (g, op) = graph_of(new, &[]);
    let known =
        |d: &&[u64]| -> Vec<Option<u64>> { d.iter().map(|&n| (n > 0).then_some(n)).collect() };
    let inputs: Vec<_> = inputs.iter().map(known).collect();
    let inputs: Vec<_> = inputs.iter().map(|d| Some(d.as_slice())).collect();
    let output = known(&output);
    macs(g.op(op), &inputs, &[Some(&output)])
}

#[test]
fn macs_of_convolutions() {
    let conv = || NewOp::new("Conv");
    // The first layer of MobileNetV2, a depthwise one, and the last.
    let stem: [&[u64]; 2] = [&[1, 3, 224, 224], &[32, 3, 3, 3]];
    assert_eq!(count(conv(), &stem, &[1, 32, 112, 112]), Some(10_838_016));
    let depthwise: [&[u64]; 2] = [&[1, 32, 112, 112], &[32, 1, 3, 3]];
    let grouped = conv().attr("group", 32i64);
    assert_eq!(
        count(grouped, &depthwise, &[1, 32, 112, 112]),
        Some(3_612_672)
    );
    let last: [&[u64]; 2] = [&[1, 320, 7, 7], &[1280, 320, 1, 1]];
    assert_eq!(count(conv(), &last, &[1, 1280, 7, 7]), Some(20_070_400));
    // One dimension, and three.
    assert_eq!(
        count(conv(), &[&[1, 4, 10], &[8, 4, 3]], &[1, 8, 8]),
        Some(768)
    );
    let volume: [&[u64]; 2] = [&[1, 2, 4, 4, 4], &[3, 2, 3, 3, 3]];
    assert_eq!(count(conv(), &volume, &[1, 3, 2, 2, 2]), Some(3 * 8 * 54));
    // Every one of 4x4 inputs of 8 channels meets 2x2 kernels of 16 outputs.
    let up: [&[u64]; 2] = [&[1, 8, 4, 4], &[8, 16, 2, 2]];
    let transposed = NewOp::new("ConvTranspose");
    assert_eq!(count(transposed, &up, &[1, 16, 8, 8]), Some(16 * 8 * 64));
    let quantized: [&[u64]; 4] = [&[1, 3, 8, 8], &[], &[], &[4, 3, 1, 1]];
    assert_eq!(
        count(NewOp::new("QLinearConv"), &quantized, &[1, 4, 8, 8]),
        Some(768)
    );
    // Unknown, and beyond 64 bits.
    assert_eq!(count(conv(), &stem, &[0, 32, 112, 112]), None);
    assert_eq!(count(conv(), &stem, &[1 << 62, 32, 112, 112]), None);
}

#[test]
fn macs_of_matrix_products() {
    let gemm = || NewOp::new("Gemm");
    assert_eq!(count(gemm(), &[&[2, 3], &[3, 5]], &[2, 5]), Some(30));
    let flipped = gemm().attr("transA", 1i64).attr("transB", 1i64);
    assert_eq!(count(flipped, &[&[3, 2], &[5, 3]], &[2, 5]), Some(30));
    let matmul = || NewOp::new("MatMul");
    assert_eq!(
        count(matmul(), &[&[7, 2, 3], &[3, 5]], &[7, 2, 5]),
        Some(210)
    );
    assert_eq!(count(matmul(), &[&[3], &[3]], &[]), Some(3));
    assert_eq!(count(matmul(), &[&[2, 0], &[3, 5]], &[2, 5]), Some(30));
    let quantized: [&[u64]; 4] = [&[2, 3], &[], &[], &[3, 5]];
    assert_eq!(
        count(NewOp::new("QLinearMatMul"), &quantized, &[2, 5]),
        Some(30)
    );
    let einsum = |e: &str| NewOp::new("Einsum").attr("equation", e);
    let batch: [&[u64]; 2] = [&[4, 2, 3], &[4, 3, 5]];
    assert_eq!(
        count(einsum("bij, bjk -> bik"), &batch, &[4, 2, 5]),
        Some(120)
    );
    assert_eq!(count(einsum("...ij,...jk"), &batch, &[4, 2, 5]), Some(120));
    assert_eq!(
        count(einsum("...ij,jk"), &[&[7, 2, 3], &[3, 5]], &[7, 2, 5]),
        Some(210)
    );
    assert_eq!(count(einsum("ij->ji"), &[&[2, 3]], &[3, 2]), Some(0));
    assert_eq!(count(einsum("abcd,ab"), &batch, &[]), None);
}

#[test]
fn macs_of_recurrence_and_attention() {
    // 10 steps of a batch of 2, both directions, 4 gates of 8, input 16.
    let lstm: [&[u64]; 3] = [&[10, 2, 16], &[2, 32, 16], &[2, 32, 8]];
    assert_eq!(
        count(NewOp::new("LSTM"), &lstm, &[]),
        Some(20 * 2 * 32 * 24)
    );
    let heads: [&[u64]; 3] = [&[1, 4, 5, 8], &[1, 2, 7, 8], &[1, 2, 7, 6]];
    let attention = || NewOp::new("Attention");
    assert_eq!(count(attention(), &heads, &[]), Some(4 * 5 * 7 * (8 + 6)));
    let packed: [&[u64]; 3] = [&[1, 5, 32], &[1, 7, 16], &[1, 7, 12]];
    assert_eq!(count(attention(), &packed, &[]), None);
    let named = attention()
        .attr("q_num_heads", 4i64)
        .attr("kv_num_heads", 2i64);
    assert_eq!(count(named, &packed, &[]), Some(4 * 5 * 7 * (8 + 6)));
    let zero = attention()
        .attr("q_num_heads", 4i64)
        .attr("kv_num_heads", 0i64);
    assert_eq!(count(zero, &packed, &[]), None);
    let linear = NewOp::new("LinearAttention")
        .attr("q_num_heads", 4i64)
        .attr("kv_num_heads", 2i64)
        .attr("update_rule", "linear");
    let tokens: [&[u64]; 3] = [&[1, 5, 32], &[1, 5, 16], &[1, 5, 12]];
    assert_eq!(count(linear, &tokens, &[]), Some(5 * 8 * 6 * (4 + 2)));
}

#[test]
fn macs_of_the_rest() {
    assert_eq!(count(NewOp::new("Relu"), &[&[0]], &[0]), Some(0));
    assert_eq!(count(NewOp::new("RotaryEmbedding"), &[], &[]), Some(0));
    assert_eq!(count(NewOp::new("FutureOperator"), &[], &[]), None);
    assert_eq!(
        count(
            NewOp::new("MatMul").domain("custom"),
            &[&[2, 3], &[3, 5]],
            &[2, 5]
        ),
        None
    );
}

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use half::f16;
use paring_ir::analysis::AnalysisCache;
use paring_ir::{Changed, DType, Graph, Model, OptionSet, Pass, PassContext, Tensor, ValueId};
use serde_json::{Value as Json, json};

use super::{ClusterWeights, Options};
use crate::fold_constants::FoldConstants;
use crate::prune_weights::PruneWeights;
use crate::testing::{Echo, Samples, parse, refused, run, unchanged};

/// The elements of a constant, or of what is computed from constants by the operators that
/// expansions are made of; `given` stands for a graph input.
fn value(graph: &Graph, v: ValueId, given: Option<&Tensor>) -> Tensor {
    if let Some(t) = graph.tensor(v) {
        return t.clone();
    }
    let Some(op) = graph.producer(v) else {
        return given.unwrap().clone();
    };
    let o = graph.op(op);
    let operand = |i: usize| value(graph, o.input(i).unwrap(), given);
    match &**o.op_type() {
        "Cast" => {
            let all = operand(0);
            let to = DType::from_onnx(o.int("to").unwrap() as i32).unwrap();
            of(to, all.dims(), &all.to_f64s().unwrap())
        }
        "Gather" => gather(&operand(0), &operand(1), o.int_or("axis", 0) as usize),
        "Reshape" => reshaped(&operand(0), &operand(1)),
        "Slice" => slice(&operand(0), &operand(2), &operand(3)),
        "Add" => broadcast(&operand(0), &operand(1), |a, b| a + b),
        "Mul" => broadcast(&operand(0), &operand(1), |a, b| a * b),
        "Exp" => {
            let all = operand(0);
            let made: Vec<f64> = all.to_f64s().unwrap().iter().map(|x| x.exp()).collect();
            of(all.dtype(), all.dims(), &made)
        }
        "Transpose" => swapped(&operand(0), o.ints("perm").unwrap()),
        "Concat" => {
            let all: Vec<f64> = (0..o.input_count())
                .flat_map(|i| operand(i).to_f64s().unwrap())
                .collect();
            of(operand(0).dtype(), &[all.len()], &all)
        }
        other => panic!("{other} is no part of an expansion"),
    }
}

fn of(dtype: DType, dims: &[usize], values: &[f64]) -> Tensor {
    let dims = dims.iter().copied();
    match dtype {
        DType::I32 => Tensor::from_vec(dims, values.iter().map(|&v| v as i32).collect()),
        DType::F16 => Tensor::from_vec(dims, values.iter().map(|&v| f16::from_f64(v)).collect()),
        DType::F64 => Tensor::from_vec(dims, values.to_vec()),
        DType::U8 => Tensor::from_vec(dims, values.iter().map(|&v| v as u8).collect()),
        _ => Tensor::from_vec(dims, values.iter().map(|&v| v as f32).collect()),
    }
    .unwrap()
}

fn gather(data: &Tensor, index: &Tensor, axis: usize) -> Tensor {
    let (all, dims) = (data.to_f64s().unwrap(), data.dims());
    let (outer, inner): (usize, usize) = (
        dims[..axis].iter().product(),
        dims[axis + 1..].iter().product(),
    );
    let mut out = Vec::new();
    for a in 0..outer {
        for &i in &index.to_i64s().unwrap() {
            let at = (a * dims[axis] + usize::try_from(i).unwrap()) * inner;
            assert!((i as usize) < dims[axis]);
            out.extend(&all[at..at + inner]);
        }
    }
    let made = [&dims[..axis], index.dims(), &dims[axis + 1..]].concat();
    of(data.dtype(), &made, &out)
}

fn reshaped(t: &Tensor, shape: &Tensor) -> Tensor {
    let wanted = shape.to_i64s().unwrap();
    let known = |(i, &d): (usize, &i64)| match d {
        0 => t.dims()[i],
        -1 => 1,
        d => d as usize,
    };
    let mut dims: Vec<usize> = wanted.iter().enumerate().map(known).collect();
    if let Some(at) = wanted.iter().position(|&d| d == -1) {
        dims[at] = t.len() / dims.iter().product::<usize>();
    }
    t.reshaped(dims).unwrap()
}

fn slice(t: &Tensor, end: &Tensor, axis: &Tensor) -> Tensor {
    let (end, axis) = (end.single_f64().unwrap(), axis.single_f64().unwrap());
    let index: Vec<i32> = (0..end as i32).collect();
    gather(t, &Tensor::vector(index), axis as usize)
}

fn broadcast(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    let (x, y) = (a.to_f64s().unwrap(), b.to_f64s().unwrap());
    let offset = a.rank() - b.rank();
    let out: Vec<f64> = (0..a.len())
        .map(|i| {
            let (mut rest, mut at, mut step) = (i, 0, 1);
            for axis in (0..a.rank()).rev() {
                let place = rest % a.dims()[axis];
                rest /= a.dims()[axis];
                if axis >= offset && b.dims()[axis - offset] > 1 {
                    at += place * step;
                    step *= b.dims()[axis - offset];
                }
            }
            f(x[i], y[at])
        })
        .collect();
    of(a.dtype(), a.dims(), &out)
}

fn swapped(t: &Tensor, perm: &[i64]) -> Tensor {
    assert_eq!(perm, [0, 2, 1, 3]);
    let (all, d) = (t.to_f64s().unwrap(), t.dims());
    let mut out = Vec::new();
    for a in 0..d[0] {
        for c in 0..d[2] {
            for b in 0..d[1] {
                let at = ((a * d[1] + b) * d[2] + c) * d[3];
                out.extend(&all[at..at + d[3]]);
            }
        }
    }
    of(t.dtype(), &[d[0], d[2], d[1], d[3]], &out)
}

/// The weight of the first operator that has one.
fn weight(model: &Model, op_type: &str, slot: usize) -> Tensor {
    let graph = &model.graph;
    let op = graph.ops().find(|&op| graph.op(op).is(op_type)).unwrap();
    value(graph, graph.op(op).input(slot).unwrap(), None)
}

fn options(more: Json) -> String {
    let mut all = json!({"min-elements": 1, "sensitive-bits": 1});
    for (k, v) in more.as_object().unwrap() {
        all[k] = v.clone();
    }
    all.to_string()
}

fn op_types(model: &Model) -> Vec<String> {
    let graph = &model.graph;
    let order = graph.topological_order().unwrap();
    order
        .iter()
        .map(|&op| graph.op(op).op_type().to_string())
        .collect()
}

const MATMUL: &str = r#"<opset_import: ["": 21]> g (float[1,60] x) => (float[1,35] y)
    <float[60,35] w = random(1)> { y = MatMul (x, w) }"#;
const CONV: &str = r#"<opset_import: ["": 18]> g (float[1,8,9,9] x) => (float y)
    <float[24,4,5,5] w = random(2)> { y = Conv <group: int = 2, pads: ints = [2,2,2,2]> (x, w) }"#;
const TRANSPOSED: &str = r#"<opset_import: ["": 18]> g (float[1,8,9,9] x) => (float y)
    <float[8,12,5,5] w = random(3)> { y = ConvTranspose <group: int = 2> (x, w) }"#;

#[test]
fn every_width_and_grouping_expands_to_what_is_snapped() {
    for (model, op, slot) in [
        (MATMUL, "MatMul", 1),
        (CONV, "Conv", 1),
        (TRANSPOSED, "ConvTranspose", 1),
    ] {
        for bits in 1..=8 {
            for group in [json!("tensor"), json!(6), json!(5)] {
                let given = |form: &str| {
                    options(
                        json!({"bits": bits, "group": group, "form": form, "scales": "channels"}),
                    )
                };
                let (table, remarks) = run::<ClusterWeights>(None, &given("table"), model);
                if remarks.missed.contains_key("no-gain") {
                    // So many small codebooks take more than the weights.
                    assert!(bits >= 5 && group != json!("tensor"), "{bits} {group}");
                    continue;
                }
                assert_eq!(remarks.applied["clustered"], 1);
                let (snap, _) = run::<ClusterWeights>(None, &given("snap"), model);
                let (found, expected) = (weight(&table, op, slot), weight(&snap, op, slot));
                assert_eq!(found, expected, "{op} at {bits} bits in groups of {group}");
                let original = weight(&parse(model), op, slot);
                let error = |t: &Tensor| -> f64 {
                    let (a, b) = (t.to_f64s().unwrap(), original.to_f64s().unwrap());
                    let square = |b: f64| b * b;
                    let off: f64 = a.iter().zip(&b).map(|(a, b)| square(a - b)).sum();
                    off / b.iter().map(|&b| square(b)).sum::<f64>()
                };
                assert!(
                    error(&found) < 0.7 * 0.3f64.powi(bits - 1) + 1e-6,
                    "{bits}: {}",
                    error(&found)
                );
            }
        }
    }
}

#[test]
fn packed_types_hold_the_same_codes() {
    for bits in [2, 4, 7] {
        for group in [json!("tensor"), json!(7)] {
            let given = |form: &str| options(json!({"bits": bits, "group": group, "form": form}));
            let (packed, _) = run::<ClusterWeights>(None, &given("packed-types"), MATMUL);
            let (table, _) = run::<ClusterWeights>(None, &given("table"), MATMUL);
            assert_eq!(weight(&packed, "MatMul", 1), weight(&table, "MatMul", 1));
            // What a wide group leaves over is a piece of its own.
            let stored = if bits == 7 { DType::U8 } else { DType::U4 };
            let tensors = packed
                .graph
                .initializers()
                .filter_map(|v| packed.graph.tensor(v));
            let codes = tensors.filter(|t| t.dtype() == stored).map(Tensor::len);
            assert_eq!(codes.sum::<usize>(), 2100);
        }
    }
    let old = MATMUL.replace("21", "18");
    let packed = json!({"form": "packed-types"});
    let options = OptionSet::<Options>::parse("cluster-weights", packed.as_object().unwrap());
    let pass = ClusterWeights::new(options.unwrap()).unwrap();
    let error = pass.requires(&parse(&old)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the model speaks opset 18, and the form \"packed-types\" needs 21; run upgrade-opset first, or choose another form"
    );
}

#[test]
fn half_precision_and_double_precision_stay() {
    for (ty, dtype) in [("float16", DType::F16), ("double", DType::F64)] {
        let model = MATMUL.replace("float", ty);
        let (made, _) = run::<ClusterWeights>(None, &options(json!({})), &model);
        let (snap, _) = run::<ClusterWeights>(None, &options(json!({"form": "snap"})), &model);
        let found = weight(&made, "MatMul", 1);
        assert_eq!(found.dtype(), dtype);
        if dtype == DType::F16 {
            assert_eq!(found, weight(&snap, "MatMul", 1));
        }
    }
}

#[test]
fn only_the_used_rows_of_an_embedding_are_expanded() {
    let model = r#"<opset_import: ["": 18]> g (int64[2,3] i) => (float[2,3,37] y)
        <float[50,37] w = random(4)> { y = Gather (w, i) }"#;
    for bits in [2, 3, 4, 8] {
        let given = |form: &str| options(json!({"bits": bits, "form": form}));
        let (made, remarks) = run::<ClusterWeights>(None, &given("table"), model);
        assert_eq!(remarks.applied["clustered"], 1);
        let snapped = json!({"bits": bits, "form": "snap", "scales": "none"});
        let (snap, _) = run::<ClusterWeights>(None, &options(snapped), model);
        let indices = Tensor::from_vec([2, 3], vec![7i64, 0, 49, 7, 1, 2]).unwrap();
        let y = |m: &Model| value(&m.graph, m.graph.outputs()[0], Some(&indices));
        assert_eq!(y(&made), y(&snap), "at {bits} bits");
        assert_eq!(y(&made).dims(), [2, 3, 37]);
        // The first operator on the way looks up packed rows.
        assert!(op_types(&made).iter().filter(|t| *t == "Gather").count() >= 2);
    }
}

#[test]
fn the_table_of_an_embedding_that_is_also_a_layer_is_expanded_whole() {
    let model = r#"<opset_import: ["": 18]> g (int64[2] i) => (float[2,50] y)
        <float[50,40] w = random(5)> {
            h = Gather (w, i)
            y = Gemm <transB: int = 1> (h, w)
        }"#;
    let (made, remarks) = run::<ClusterWeights>(None, &options(json!({})), model);
    assert_eq!(remarks.applied["clustered"], 1);
    let graph = &made.graph;
    let w = graph.find_value("w").unwrap();
    assert_eq!(graph.value(w).uses().len(), 2);
    assert_eq!(weight(&made, "Gemm", 1).dims(), [50, 40]);
}

#[test]
fn long_weights_are_expanded_in_pieces() {
    let model = r#"<opset_import: ["": 18]> g (float[1,1030] x) => (float[1,1030] y)
        <float[1030,1030] w = random(6)> { y = MatMul (x, w) }"#;
    let (made, _) = run::<ClusterWeights>(None, &options(json!({"scales": "none"})), model);
    assert_eq!(op_types(&made).iter().filter(|t| *t == "Concat").count(), 1);
    let (snap, _) = run::<ClusterWeights>(None, &options(json!({"form": "snap"})), model);
    assert_eq!(weight(&made, "MatMul", 1), weight(&snap, "MatMul", 1));
}

#[test]
fn zeros_survive() {
    let (pruned, _) = run::<PruneWeights>(None, r#"{"sparsity": 0.7}"#, MATMUL);
    let before = weight(&pruned, "MatMul", 1);
    let text = paring_ir::text::print_model(&pruned, &paring_ir::text::PrintOptions::full());
    for group in [json!("tensor"), json!(5)] {
        let (made, _) = run::<ClusterWeights>(
            None,
            &options(json!({"group": group, "entropy": 0.0})),
            &text,
        );
        let after = weight(&made, "MatMul", 1);
        let pairs = before
            .to_f64s()
            .unwrap()
            .into_iter()
            .zip(after.to_f64s().unwrap());
        assert!(pairs.clone().all(|(b, a)| b != 0.0 || a == 0.0));
        assert!(pairs.filter(|(b, a)| *b != 0.0 && *a == 0.0).count() < 40);
    }
}

#[test]
fn a_weight_of_few_values_is_stored_without_loss() {
    let values: Vec<String> = (0..1200)
        .map(|i| format!("{}", (i * 7 % 11) as f32 * 0.3 - 1.0))
        .collect();
    let model = format!(
        r#"<opset_import: ["": 18]> g (float[1,30] x) => (float[1,40] y) <float[30,40] w = {{{}}}> {{ y = MatMul (x, w) }}"#,
        values.join(", ")
    );
    let (made, remarks) = run::<ClusterWeights>(None, &options(json!({})), &model);
    assert_eq!(
        weight(&made, "MatMul", 1),
        weight(&parse(&model), "MatMul", 1)
    );
    assert!(
        remarks.kept[0].message.starts_with("11 clusters, "),
        "{}",
        remarks.kept[0].message
    );
    refused::<ClusterWeights>(&options(json!({"form": "snap"})), &model, "settled");
}

#[test]
fn data_decides_where_errors_are_made() {
    // One input in ten is a hundred times as large as the others.
    let model = parse(MATMUL);
    let sample = |i: usize| {
        let x = (0..60).map(|c| {
            let wave = (0.37 * (i * 61 + c * 13) as f32).sin() + 0.5 * (1.1 * (i + c) as f32).cos();
            if c % 10 == 0 { 100.0 * wave } else { wave }
        });
        vec![Tensor::from_vec([1, 60], x.collect::<Vec<f32>>()).unwrap()]
    };
    let data = Samples::of((0..200).map(sample));
    let original = weight(&model, "MatMul", 1).to_f64s().unwrap();
    let error = |given: Json, with_data: bool| {
        let mut model = model.clone();
        let options = OptionSet::<Options>::parse("cluster-weights", given.as_object().unwrap());
        let pass = ClusterWeights::new(options.unwrap()).unwrap();
        let mut cache = AnalysisCache::new();
        let mut cx = PassContext::new(&mut cache);
        if with_data {
            cx.engine = Some(&Echo);
            cx.data = Some(&data);
        }
        assert_eq!(pass.run(&mut model, &mut cx).unwrap(), Changed::Yes);
        let found = weight(&model, "MatMul", 1).to_f64s().unwrap();
        let mut total = 0.0;
        for s in &data.0 {
            let x = s.inputs[0].to_f64s().unwrap();
            for o in 0..35 {
                let y = |w: &[f64]| -> f64 { (0..60).map(|c| x[c] * w[c * 35 + o]).sum() };
                total += (y(&found) - y(&original)).powi(2);
            }
        }
        total
    };
    let bits = json!({"bits": 3, "min-elements": 1});
    let (plain, weighted, recovered) = (
        error(bits.clone(), false),
        error(
            json!({"bits": 3, "min-elements": 1, "recover": false}),
            true,
        ),
        error(bits, true),
    );
    assert!(weighted < plain, "{weighted} and {plain}");
    assert!(recovered < 0.5 * weighted, "{recovered} and {weighted}");
}

#[test]
fn what_can_not_be_clustered_says_why() {
    let with = |graph: &str| format!(r#"<opset_import: ["": 18]> g {graph}"#);
    refused::<ClusterWeights>(
        "{}",
        &with("(float[1,4] x) => (float[1,4] y) <float[4,4] w = random(1)> { y = MatMul (x, w) }"),
        "small",
    );
    refused::<ClusterWeights>(
        r#"{"min-elements": 1}"#,
        &with("(float[1,4] x) => (float[1,4] y) <float[4,4] w = random(1)> { y = MatMul (x, w) }"),
        "no-gain",
    );
    refused::<ClusterWeights>(
        "{}",
        &with(
            "(float[1,40] x, float[40,40] w = random(1)) => (float[1,40] y) { y = MatMul (x, w) }",
        ),
        "overridable",
    );
    refused::<ClusterWeights>(
        "{}",
        &with(
            "(float[1,40] x) => (float[1,40] y, float[40,40] w) <float[40,40] w = random(1)> { y = MatMul (x, w) }",
        ),
        "graph-output",
    );
    refused::<ClusterWeights>(
        "{}",
        &with(
            "(float[1,40] x) => (float[1,40] y) <int8[40,40] q = random(1), float s = {0.1}> { w = DequantizeLinear (q, s) y = MatMul (x, w) }",
        ),
        "quantized",
    );
    unchanged::<ClusterWeights>(r#"{"by-type": {"MatMul": "skip"}}"#, MATMUL);
}

#[test]
fn the_first_and_the_depthwise_convolution_get_more_bits() {
    let model = r#"<opset_import: ["": 18]> g (float[1,16,40,40] x) => (float z)
        <float[64,16,3,3] w = random(2), float[64,1,5,5] d = random(3), float[64,64,9,9] v = random(4)> {
            a = Conv (x, w)
            b = Conv <group: int = 64> (a, d)
            z = Conv (b, v)
        }"#;
    let (_, remarks) = run::<ClusterWeights>(None, r#"{"bits": 3}"#, model);
    let said: Vec<&str> = remarks
        .kept
        .iter()
        .map(|r| r.message.split(',').next().unwrap())
        .collect();
    assert_eq!(said, ["256 clusters", "256 clusters", "8 clusters"]);
}

#[test]
fn what_is_clustered_is_known_and_stays_so() {
    for given in [
        json!({}),
        json!({"bits": 5, "group": 12}),
        json!({"form": "packed-types"}),
    ] {
        let (made, _) = run::<ClusterWeights>(None, &options(given), MATMUL);
        // The passes that look at it see the file without provenance.
        let full = paring_ir::text::PrintOptions::full();
        let text = paring_ir::text::print_model(&made, &full);
        let remarks = unchanged::<FoldConstants>("{}", &text);
        assert!(remarks.missed["clustered"] >= 1, "{remarks:#?}");
        let refused = |given: Json| {
            let options = OptionSet::parse("prune-weights", given.as_object().unwrap()).unwrap();
            PruneWeights::new(options).unwrap().requires(&parse(&text))
        };
        let error = refused(json!({})).unwrap_err().to_string();
        assert!(error.contains("can't run after cluster-weights"), "{error}");
        refused(json!({"by-type": {"MatMul": "skip"}})).unwrap();
        unchanged::<ClusterWeights>("{}", &text);
    }
    let (snapped, _) = run::<ClusterWeights>(None, &options(json!({"form": "snap"})), MATMUL);
    let prune = PruneWeights::new(OptionSet::defaults()).unwrap();
    prune.requires(&snapped).unwrap_err();
}

#[test]
fn centroids_of_8_bits_are_dequantized_before_they_are_looked_up() {
    // 35 outputs in groups of 4 and more leave a rest with a codebook of its own.
    for (group, pieces) in [(json!("tensor"), 1), (json!(4), 2)] {
        let given = json!({"centroids": "int8", "group": group, "scales": "none"});
        let (made, _) = run::<ClusterWeights>(None, &options(given), MATMUL);
        let dequantized = made
            .graph
            .ops()
            .filter(|&op| made.graph.op(op).is("DequantizeLinear"));
        assert_eq!(dequantized.count(), pieces);
        let found = crate::clustered::Expansions::of(&made.graph).unwrap();
        assert!(made.graph.ops().any(|op| found.is_lookup(op)));
        let bytes = |dtype: DType| -> usize {
            let all = made.graph.values().filter_map(|v| made.graph.tensor(v));
            all.filter(|t| t.dtype() == dtype).map(Tensor::len).sum()
        };
        assert!(bytes(DType::I8) >= 16);
    }
    let snap = json!({"centroids": "int8", "form": "snap"});
    let snap = OptionSet::<Options>::parse("cluster-weights", snap.as_object().unwrap()).unwrap();
    let error = ClusterWeights::new(snap).unwrap_err().to_string();
    assert!(error.contains("snap"), "{error}");
}

#[test]
fn what_only_looks_alike_is_folded_and_free() {
    // A bias table looked up by constant positions, and integers that are cast.
    let model = r#"<opset_import: ["": 18]> g (float[1,4] x) => (float[1,4] y)
        <float[3,4] t = random(1), int64[1] i = {2}, uint8[4] u = {1,2,3,4}> {
            b = Gather (t, i)
            c = Cast <to: int = 1> (u)
            d = Mul (b, c)
            y = Mul (x, d)
        }"#;
    let found = crate::clustered::Expansions::of(&parse(model).graph).unwrap();
    assert!(parse(model).graph.ops().all(|op| !found.contains(op)));
}

/// The sum of squared differences over the sum of squares.
fn off(found: &Tensor, original: &Tensor) -> f64 {
    let (a, b) = (found.to_f64s().unwrap(), original.to_f64s().unwrap());
    assert_eq!(found.dims(), original.dims());
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    error / b.iter().map(|b| b * b).sum::<f64>()
}

#[test]
fn biases_and_scales_are_stored_together() {
    let weights: String = (0..12)
        .map(|i| {
            format!(
                ", float[64,64] w{i} = random({i}), float[64] b{i} = random({})",
                i + 50
            )
        })
        .collect();
    let ops: String = (0..12)
        .map(|i| format!("m{i} = MatMul (h{i}, w{i}) h{} = Add (m{i}, b{i})\n", i + 1))
        .collect();
    let model = format!(
        r#"<opset_import: ["": 18]> g (float[1,64] h0) => (float[1,64] y)
            <float[64] other = random(99){weights}> {{ {ops} y = Mul (h12, other) }}"#
    );
    let (made, _) = run::<ClusterWeights>(None, &options(json!({})), &model);
    let original = parse(&model);
    let (graph, before) = (&made.graph, &original.graph);
    for i in 0..12 {
        let of = |g: &Graph| value(g, g.find_value(&format!("b{i}")).unwrap(), None);
        assert!(
            graph
                .tensor(graph.find_value(&format!("b{i}")).unwrap())
                .is_none()
        );
        assert!(off(&of(graph), &of(before)) < 1e-4);
    }
    // What computes something stays, and so does all when nobody asked.
    assert!(graph.tensor(graph.find_value("other").unwrap()).is_some());
    let (plain, _) = run::<ClusterWeights>(None, &options(json!({"vectors": false})), &model);
    let kept = plain.graph.find_value("b0").unwrap();
    assert!(plain.graph.tensor(kept).is_some());
    // None of it is computed ahead again.
    let full = paring_ir::text::PrintOptions::full();
    unchanged::<FoldConstants>("{}", &paring_ir::text::print_model(&made, &full));
}

#[test]
fn old_models_are_upgraded_for_centroids_of_8_bits() {
    let model = MATMUL.replace("\"\": 21", "\"\": 9");
    for (given, opset) in [(json!({}), 10), (json!({"centroids": "int8"}), 13)] {
        let (made, _) = run::<ClusterWeights>(None, &options(given), &model);
        assert_eq!(made.opset(), opset);
    }
    let (made, _) = run::<ClusterWeights>(None, &options(json!({"form": "snap"})), &model);
    assert_eq!(made.opset(), 9);
}

#[test]
fn small_weights_share_a_codebook_of_eight_bits() {
    let model = r#"<opset_import: ["": 18]> g (float[1,32] x) => (float[1,24] y)
        <float[32,40] v = random(1), float[40,24] w = random(2)> { h = MatMul (x, v) y = MatMul (h, w) }"#;
    let given = json!({"bits": 8, "vectors": false});
    let (made, _) = run::<ClusterWeights>(None, &options(given), model);
    let graph = &made.graph;
    let books: Vec<usize> = (graph.initializers())
        .filter(|v| graph.value(*v).name().starts_with("book"))
        .map(|v| graph.tensor(v).unwrap().len())
        .collect();
    assert_eq!(books, [256]);
    // The codes have the shape of the weight, so nothing is reshaped.
    let expected = [
        "Cast", "Gather", "Mul", "MatMul", "Cast", "Gather", "Mul", "MatMul",
    ];
    let mut found = op_types(&made);
    found.sort();
    let mut sorted = expected.to_vec();
    sorted.sort();
    assert_eq!(found, sorted);
    let original = parse(model);
    for name in ["v", "w"] {
        let of = |g: &Graph| value(g, g.find_value(name).unwrap(), None);
        assert!(off(&of(graph), &of(&original.graph)) < 1e-4);
    }
}

#[test]
fn tables_that_are_added_get_eight_bits() {
    let model = r#"<opset_import: ["": 18]> g (float[1,40,64] x) => (float[1,40,64] y)
        <float[1,40,64] p = random(1)> { y = Add (x, p) }"#;
    let (made, remarks) = run::<ClusterWeights>(None, "{}", model);
    assert!(remarks.kept[0].message.starts_with("256 clusters"));
    let (found, original) = (weight(&made, "Add", 1), weight(&parse(model), "Add", 1));
    assert!(off(&found, &original) < 1e-4);
    unchanged::<ClusterWeights>("{}", &model.replace("Add", "Mul"));
}

#[test]
fn codes_of_pruned_weights_compress() {
    let model = MATMUL
        .replace("60,35", "200,90")
        .replace("1,60", "1,200")
        .replace("1,35", "1,90");
    let (pruned, _) = run::<PruneWeights>(None, r#"{"sparsity": 0.5}"#, &model);
    let full = paring_ir::text::PrintOptions::full();
    let text = paring_ir::text::print_model(&pruned, &full);
    let made = |entropy: Json| {
        let given = options(json!({"entropy": entropy, "form": "snap", "scales": "none"}));
        run::<ClusterWeights>(None, &given, &text).0
    };
    // The entropy of the values, in bits, and what is lost.
    let found = |m: &Model| {
        let w = weight(m, "MatMul", 1);
        let mut uses = std::collections::BTreeMap::new();
        for x in w.to_f64s().unwrap() {
            *uses.entry(x.to_bits()).or_insert(0.0f64) += 1.0;
        }
        let all = w.len() as f64;
        let bits: f64 = uses.values().map(|n| n / all * (all / n).log2()).sum();
        (bits, off(&w, &weight(&pruned, "MatMul", 1)))
    };
    let (plain, thrifty) = (found(&made(json!(0.0))), found(&made(json!(8.0))));
    assert!(thrifty.0 < 0.9 * plain.0, "{thrifty:?} and {plain:?}");
    assert!(thrifty.1 < 6.5 * plain.1, "{thrifty:?} and {plain:?}");
    // It is what pruned weights get by themselves.
    assert_eq!(found(&made(json!("auto"))), thrifty);
}

#[test]
fn groups_are_widened_until_codebooks_are_small() {
    let (_, remarks) = run::<ClusterWeights>(None, &options(json!({"group": 1})), MATMUL);
    // A codebook of 64 bytes for each 8 channels of 30 bytes, not for each one.
    let said = &remarks.kept[0].message;
    assert!(said.contains("in each of 5 codebooks"), "{said}");
}

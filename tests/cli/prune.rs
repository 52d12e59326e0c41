//! Properties of the passes that prune, as tract runs what they make.

use paring::engine::TractEngine;
use paring::{Model, Optimizer, Tensor};
use paring_ir::engine::{CompileOptions, Cut, Engine};
use serde_json::json;

use super::*;

const PASSES: [&str; 2] = ["prune-weights", "remove-channels"];

fn optimized(input: &str, output: &str, pass: &str, more: &[&str]) -> Vec<u8> {
    let fixed = [
        "optimize",
        input,
        "-o",
        output,
        "--pass",
        pass,
        "--no-time",
        "--no-validate",
        "--allow-unvalidated",
    ];
    paring(&[&fixed[..], more].concat()).exits(0);
    std::fs::read(output).unwrap()
}

#[test]
fn neutral_settings_change_no_byte() {
    let folder = Folder::new();
    for model in ["fmnist_mobilenet_bn.onnx", "langid_transformer.onnx"] {
        let before = std::fs::read(data(model)).unwrap();
        for pass in [
            "prune-weights:sparsity=0",
            "prune-weights:sparsity=0,pattern=2:4",
            "remove-channels:ratio=0",
        ] {
            let after = optimized(&data(model), &folder.path("out.onnx"), pass, &[]);
            assert!(before == after, "{pass} changes {model}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = Folder::new();
    let model = folder.model("small.onnx", SMALL);
    let calib = data("fmnist_calib.npz");
    for pass in PASSES {
        let made = |name: &str, threads: &str| {
            let more = ["--data", &calib, "--seed", "3", "--threads", threads];
            let options = format!("{pass}:samples=24");
            optimized(&model, &folder.path(name), &options, &more)
        };
        let first = made("first.onnx", "1");
        assert!(first == made("second.onnx", "1"), "{pass}: a second run");
        assert!(first == made("threads.onnx", "2"), "{pass}: two threads");
        assert!(
            first != std::fs::read(&model).unwrap(),
            "{pass} does something"
        );
    }
}

#[test]
fn zeros_that_the_engine_does_not_skip_are_said_to_gain_no_latency() {
    let folder = Folder::new();
    let model = folder.model("small.onnx", SMALL);
    let report = folder.path("report.json");
    let out = folder.path("out.onnx");
    let args = [
        "optimize",
        &model,
        "-o",
        &out,
        "--pass",
        "prune-weights:sparsity=0.9,distribution=uniform",
    ];
    paring(&[&args[..], &["--report", &report]].concat()).exits(0);
    let report = read_json(&report);
    let said = report["notes"].as_array().unwrap().iter().any(|n| {
        let note = n.as_str().unwrap();
        note.contains("gains no latency from zeros") && note.contains("remove-channels")
    });
    // The machine may be busy, so what was measured decides what must be said.
    let high = report["latency"]["ratio_high"].as_f64().unwrap();
    assert_eq!(said, high > 0.95, "{report:#}");
}

/// A weight that takes channels, the axis on which it does, and where it takes the channel of a number.
type Taken = (&'static str, usize, fn(usize) -> usize);

/// A network, and where channels must go: the weights that make them (with the axis), and those
/// that take them, with the index there of channel `i`.
struct Case {
    text: &'static str,
    channels: usize,
    made_by: &'static [(&'static str, usize)],
    taken_by: &'static [Taken],
}

const CASES: [Case; 5] = [
    Case {
        text: r#"<opset_import: ["": 18]> plain (float[1,3,9,9] x) => (float[1,5,5,5] y)
        <float[12,3,3,3] a = random(1), float[12] e = random(2), float[5,12,3,3] b = random(3)>
        { p = Conv (x, a, e) q = Relu (p) y = Conv (q, b) }"#,
        channels: 12,
        made_by: &[("a", 0)],
        taken_by: &[("b", 1, |i| i)],
    },
    Case {
        text: r#"<opset_import: ["": 18]> residual (float[1,3,9,9] x) => (float[1,5,9,9] y)
        <float[8,3,1,1] a = random(1), float[8,8,1,1] b = random(2), float[5,8,1,1] c = random(3)>
        { p = Conv (x, a) q = Conv (p, b) r = Add (p, q) s = Relu (r) y = Conv (s, c) }"#,
        channels: 8,
        made_by: &[("a", 0), ("b", 0)],
        taken_by: &[("c", 1, |i| i), ("b", 1, |i| i)],
    },
    Case {
        text: r#"<opset_import: ["": 18]> depthwise (float[1,3,9,9] x) => (float[1,5,7,7] y)
        <float[10,3,1,1] a = random(1), float[10,1,3,3] d = random(2), float[5,10,1,1] c = random(3),
         float[10] scale = random(4), float[10] shift = random(5), float[10] mean = random(6), float[10] var = {1, 2, 1, 2, 1, 2, 1, 2, 1, 2}>
        { p = Conv (x, a) n = BatchNormalization (p, scale, shift, mean, var) q = Relu (n)
          r = Conv <group: int = 10> (q, d) y = Conv (r, c) }"#,
        channels: 10,
        made_by: &[("a", 0), ("d", 0)],
        taken_by: &[("c", 1, |i| i)],
    },
    Case {
        text: r#"<opset_import: ["": 18]> shuffle (float[1,3,4,4] x) => (float[1,5,4,4] y)
        <float[6,3,1,1] a = random(1), float[6,3,1,1] b = random(2), float[5,12,1,1] c = random(3),
         int64[5] apart = {1, 2, 6, 4, 4}, int64[4] joint = {1, 12, 4, 4}>
        { p = Conv (x, a) q = Conv (x, b) r = Concat <axis: int = 1> (p, q)
          s = Reshape (r, apart) t = Transpose <perm: ints = [0,2,1,3,4]> (s) u = Reshape (t, joint)
          y = Conv (u, c) }"#,
        channels: 6,
        made_by: &[("a", 0), ("b", 0)],
        taken_by: &[("c", 1, |i| 2 * i), ("c", 1, |i| 2 * i + 1)],
    },
    Case {
        text: r#"<opset_import: ["": 18]> hidden (float[4,6] x) => (float[4,6] y)
        <float[6,16] a = random(1), float[16] e = random(2), float[16,6] b = random(3)>
        { p = MatMul (x, a) q = Add (p, e) r = Sigmoid (q) s = MatMul (r, b) y = Add (s, x) }"#,
        channels: 16,
        made_by: &[("a", 1)],
        taken_by: &[("b", 0, |i| i)],
    },
];

/// Multiplies what stands at an index of an axis.
fn scale(model: &mut Model, name: &str, axis: usize, index: usize, factor: f32) {
    let v = model.graph.find_value(name).unwrap();
    let tensor = model.graph.tensor(v).unwrap().clone();
    let dims = tensor.dims().to_vec();
    let inner: usize = dims[axis + 1..].iter().product();
    let mut all = tensor.to_f32s().unwrap().into_owned();
    for (i, x) in all.iter_mut().enumerate() {
        if i / inner % dims[axis] == index {
            *x *= factor;
        }
    }
    let tensor = Tensor::from_vec(dims, all).unwrap();
    model.graph.set_tensor(v, tensor, Vec::new()).unwrap();
}

fn outputs(model: &Model) -> Vec<f32> {
    let input = model.graph.inputs()[0];
    let shape = model.graph.value(input).known_type().unwrap();
    let dims: Vec<usize> = shape
        .shape()
        .unwrap()
        .iter()
        .map(|d| d.known().unwrap())
        .collect();
    let count: usize = dims.iter().product();
    let all: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
    let input = Tensor::from_vec(dims, all).unwrap();
    let cut = Cut::whole(model, vec![input.dims().iter().copied().collect()]);
    let mut plan = TractEngine::new()
        .compile(&cut, CompileOptions::default())
        .unwrap();
    plan.run(&[input]).unwrap()[0]
        .to_f32s()
        .unwrap()
        .into_owned()
}

#[test]
fn channels_that_nothing_takes_go_without_a_trace() {
    let registry = paring::registry();
    for case in &CASES {
        for seed in 0..6usize {
            // Half the channels, other ones for each seed.
            let mut order: Vec<usize> = (0..case.channels).collect();
            order.sort_by_key(|i| (i * 7 + seed * 5 + i * i * (seed + 1)) % 13 * 100 + i);
            let mut model = parse_model(case.text).unwrap();
            for &channel in &order[..case.channels / 2] {
                for (name, axis, place) in case.taken_by {
                    scale(&mut model, name, *axis, place(channel), 0.0);
                }
                for (name, axis) in case.made_by {
                    scale(&mut model, name, *axis, channel, 1e-3);
                }
            }
            let before = outputs(&model);
            let settings = paring::Settings {
                allow_unvalidated: true,
                time: false,
                validate: false,
                ..paring::Settings::default()
            };
            let options = json!({"round-to": 1});
            let optimizer = Optimizer::new(&registry).pass("remove-channels", options);
            let report = optimizer.settings(settings).run(&mut model).unwrap();
            assert!(report.changed, "{}", case.text);
            let (name, axis) = case.made_by[0];
            let v = model.graph.find_value(name).unwrap();
            let left = model.graph.tensor(v).unwrap().dims()[axis];
            assert_eq!(left, case.channels - case.channels / 2, "{}", case.text);
            let after = outputs(&model);
            let largest = before.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(largest > 0.0 && before.len() == after.len());
            for (a, b) in before.iter().zip(&after) {
                assert!(
                    (a - b).abs() <= 1e-5 * largest,
                    "{a} became {b} in {}",
                    case.text
                );
            }
        }
    }
}

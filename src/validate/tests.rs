#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::time::Duration;

use paring_ir::text::parse_model;

use super::*;
use crate::data::{RandomInputs, RunShapes, ShapeOptions};
use crate::engine::TractEngine;

fn model(body: &str) -> Model {
    parse_model(&format!(
        "<ir_version: 10, opset_import: [\"\": 17]>\n{body}"
    ))
    .unwrap()
}

fn classifier(bias: f32) -> Model {
    model(&format!(
        "g (float[N,8] x) => (float[N,6] y) <float[8,6] w = random(3), float[6] b = {{{bias},0,0,0,0,0}}> {{
           h = MatMul (x, w)
           y = Add (h, b)
         }}"
    ))
}

fn random(m: &Model, runs: usize) -> RandomInputs {
    let shapes = RunShapes::resolve(m, &ShapeOptions::default()).unwrap();
    RandomInputs::new(m, &shapes, runs, 5).unwrap()
}

/// Random inputs with the labels that a model gives them, every fourth one wrong.
struct Labelled {
    inputs: RandomInputs,
    labels: Vec<i64>,
}

impl DataSource for Labelled {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut at = 0;
        self.inputs.for_each(limit, &mut |sample| {
            let labels = self.labels.get(at..at + sample.count).map(<[i64]>::to_vec);
            at += sample.count;
            f(&Sample {
                labels,
                ..sample.clone()
            })
        })
    }
}

#[test]
fn a_model_agrees_with_itself() {
    let m = classifier(0.0);
    let data = random(&m, 6);
    let v = compare(
        &TractEngine::new(),
        &m,
        &m,
        &data,
        &CompareOptions::default(),
    )
    .unwrap();
    assert_eq!((v.samples, v.max_abs, v.sqnr_db), (6, 0.0, None));
    assert_eq!((v.cosine, v.top1_agreement), (Some(1.0), Some(1.0)));
    assert!(v.noise.unwrap() < 1e-5 && !v.beyond_noise());
    assert_eq!(v.engine, "tract 0.23.9");
    let json = serde_json::to_value(&v).unwrap();
    for key in [
        "engine",
        "samples",
        "max_abs",
        "sqnr_db",
        "cosine",
        "top1_agreement",
        "accuracy_before",
        "accuracy_after",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
}

#[test]
fn accuracy_falls_and_the_difference_is_beyond_noise() {
    let (m, worse) = (classifier(0.0), classifier(100.0));
    let inputs = random(&m, 40);
    let mut labels = Vec::new();
    let engine = TractEngine::new();
    let mut runner = Runner::new(&engine, &m, CompileOptions::default());
    inputs
        .for_each(None, &mut |s| {
            let scores = runner.run(&s.inputs)?.remove(0).to_f64s().unwrap();
            let best = (0..6)
                .max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
                .unwrap();
            let label = if labels.len() % 4 == 3 {
                (best + 1) % 6
            } else {
                best
            };
            labels.push(label as i64);
            Ok(())
        })
        .unwrap();
    let data = Labelled { inputs, labels };
    let v = compare(
        &TractEngine::new(),
        &m,
        &worse,
        &data,
        &CompareOptions::default(),
    )
    .unwrap();
    assert_eq!(v.accuracy_before, Some(0.75));
    assert!(v.accuracy_after.unwrap() < 0.5 && v.top5_after.is_some());
    assert!((v.max_abs - 100.0).abs() < 1e-3);
    assert!(v.beyond_noise() && v.sqnr_db.unwrap() < 0.0);
    assert_eq!(v.difference().accuracy_before, Some(0.75));
}

#[test]
fn outputs_and_inputs_are_matched_by_name() {
    let m = model(
        "g (float[2] a, float[2] b) => (float[2] p, float[2] q) { p = Sub (a, b) q = Add (a, b) }",
    );
    let turned = model(
        "g (float[2] b, float[2] a) => (float[2] q, float[2] p) { q = Add (a, b) p = Sub (a, b) }",
    );
    let v = compare(
        &TractEngine::new(),
        &m,
        &turned,
        &random(&m, 2),
        &CompareOptions::default(),
    )
    .unwrap();
    assert_eq!(v.max_abs, 0.0);
    let other = model("g (float[2] a, float[2] b) => (float[2] p) { p = Sub (a, b) }");
    let e = compare(
        &TractEngine::new(),
        &m,
        &other,
        &random(&m, 2),
        &CompareOptions::default(),
    )
    .unwrap_err();
    assert!(e.to_string().contains("output \"q\" is missing"), "{e}");
    let shorter = model("g (float[2] a, float[2] b) => (float[1] p, float[2] q) <int64[1] s = {0}, int64[1] e = {1}> {
        q = Add (a, b) d = Sub (a, b) p = Slice (d, s, e) }");
    let e = compare(
        &TractEngine::new(),
        &m,
        &shorter,
        &random(&m, 1),
        &CompareOptions::default(),
    )
    .unwrap_err();
    assert!(
        e.to_string().contains("it was float [2] and is float [1]"),
        "{e}"
    );
}

#[test]
fn the_label_output_can_be_named_and_must_exist() {
    let m = model(
        "g (float[N,3] x) => (float[N] s, float[N,3] y) <int64[1] a = {1}> { s = ReduceSum <keepdims = 0> (x, a) y = Neg (x) }",
    );
    let data = Labelled {
        inputs: random(&m, 3),
        labels: vec![0, 1, 2],
    };
    let with = |label_output| CompareOptions {
        label_output,
        ..Default::default()
    };
    let v = compare(&TractEngine::new(), &m, &m, &data, &with(Some("y"))).unwrap();
    assert!(v.accuracy_before.is_some() && v.top5_before.is_none());
    let v = compare(&TractEngine::new(), &m, &m, &data, &with(None)).unwrap();
    assert_eq!(v.accuracy_before, None);
    assert!(
        v.notes.iter().any(|n| n.contains("--label-output")),
        "{:?}",
        v.notes
    );
    let e = compare(&TractEngine::new(), &m, &m, &data, &with(Some("z"))).unwrap_err();
    assert!(
        e.to_string().contains("no output \"z\"") && e.to_string().contains("\"s\", \"y\""),
        "{e}"
    );
}

#[test]
fn the_judge_sees_all_sizes_and_leaves_out_what_the_original_cannot() {
    let m = model("g (float[N,T] x) => (float[N,T] y) { y = Relu (x) }");
    // Right for a batch of one, wrong for two.
    let wrong = model(
        "g (float[N,T] x) => (float[N,T] y) <int64[1] s = {0}, int64[1] e = {1}> { f = Slice (x, s, e) n = Relu (x) z = Sub (f, f) r = Relu (f) d = Sub (r, z) k = Max (d, n) y = Identity (k) }",
    );
    let sizes = RunShapes::resolve(&m, &ShapeOptions::default())
        .unwrap()
        .two_sizes();
    let sources: Vec<RandomInputs> = sizes
        .iter()
        .map(|s| RandomInputs::new(&m, s, 2, 1).unwrap())
        .collect();
    let sources: Vec<&dyn DataSource> = sources.iter().map(|s| s as &dyn DataSource).collect();
    let engine = TractEngine::new();
    let judge = |m: &Model, sources: &[&dyn DataSource], other: &Model| {
        let bytes: FileBytes<'_> = Box::new(|_| Ok(1));
        let options = CompareOptions::default();
        let mut judge = EngineJudge::new(
            &engine,
            m,
            sources[0],
            sources,
            options,
            TimeOptions::default(),
            bytes,
        )
        .unwrap();
        let verdict = judge.compare_exact(m, other).unwrap();
        assert_eq!(judge.score(m, m).unwrap().samples, 2);
        assert_eq!(judge.file_bytes(m).unwrap(), 1);
        (verdict.beyond_noise(), judge.notes().len())
    };
    assert_eq!(judge(&m, &sources[..1], &wrong), (false, 0));
    assert_eq!(judge(&m, &sources, &wrong), (true, 0));
    assert_eq!(judge(&m, &sources, &m), (false, 0));
    // Free sizes that aren't free: a second size that the original itself refuses is no test.
    let rigid =
        model("g (float[N,T] x) => (float[N,T] y) <float[128] b = random(1)> { y = Add (x, b) }");
    assert_eq!(judge(&rigid, &sources, &rigid), (false, 1));
    let never = model("g (float[N,T] x) => (float[N] y) { y = Det (x) }");
    let bytes: FileBytes<'_> = Box::new(|_| Ok(1));
    let made = EngineJudge::new(
        &engine,
        &never,
        sources[0],
        &sources,
        CompareOptions::default(),
        TimeOptions::default(),
        bytes,
    );
    assert!(made.is_err());
}

#[test]
fn what_rounding_the_weights_does_is_noise_and_more_is_not() {
    // The two sums are nearly the same, so that what is left of them is mostly rounding.
    let cancelling = |scale: f32| {
        model(&format!(
            "g (float[4,256] x) => (float[4,4] y) <float[256,4] w = random(3), float[1] s = {{{scale}}}, float[1] t = {{0.300001}}> {{
               a = MatMul (x, w)
               v = Mul (w, s)
               u = Mul (x, t)
               b = MatMul (u, w)
               c = MatMul (x, v)
               y = Sub (c, b)
             }}"
        ))
    };
    let (m, rounded, wrong) = (
        cancelling(0.3),
        cancelling(0.300_000_03),
        cancelling(0.3003),
    );
    let data = random(&m, 2);
    let engine = TractEngine::new();
    let options = CompareOptions::default();
    let times = TimeOptions::default();
    let mut judge =
        EngineJudge::new(&engine, &m, &data, &[], options, times, Box::new(|_| Ok(1))).unwrap();
    let verdict = judge.compare_exact(&m, &rounded).unwrap();
    assert!(verdict.difference.max_rel > LEAST_FLOOR, "{verdict:?}");
    assert!(!verdict.beyond_noise(), "{verdict:?}");
    assert!(judge.compare_exact(&m, &wrong).unwrap().beyond_noise());
}

#[test]
fn cancelling_stops_the_comparison() {
    let m = classifier(0.0);
    let flag = AtomicBool::new(true);
    let options = CompareOptions {
        cancel: Some(&flag),
        ..Default::default()
    };
    let e = compare(&TractEngine::new(), &m, &m, &random(&m, 3), &options).unwrap_err();
    assert!(matches!(e, EngineError::Cancelled));
}

#[test]
fn a_larger_model_takes_longer_and_the_interval_says_so() {
    let stack = |n: usize| {
        let ops: String = (0..n)
            .map(|i| format!("v{} = MatMul (v{i}, w)\n", i + 1))
            .collect();
        model(&format!(
            "g (float[64,128] v0) => (float[64,128] v{n}) <float[128,128] w = random(1)> {{ {ops} }}"
        ))
    };
    let (small, large) = (stack(1), stack(8));
    let inputs = random(&small, 1).run(0).unwrap();
    let options = TimeOptions {
        min_time: Duration::from_millis(50),
        ..TimeOptions::default()
    };
    let engine = TractEngine::new();
    let l = time_pair(&engine, &small, &large, &inputs, &options).unwrap();
    assert!(
        l.ratio_low > 1.5 && l.ratio_low <= l.ratio && l.ratio <= l.ratio_high,
        "{l:?}"
    );
    assert!(l.runs >= 10 && l.threads == 1);
    let b = bench(&engine, &large, &inputs, &options).unwrap();
    assert!(b.min_ms <= b.median_ms && b.median_low_ms <= b.median_high_ms);
    let p = profile(&engine, &large, &inputs, &options).unwrap();
    assert!(p.nodes.len() >= 8 && p.types[0].count >= 8, "{p:?}");
    assert!((p.types.iter().map(|t| t.share).sum::<f64>() - 1.0).abs() < 1e-6);
}

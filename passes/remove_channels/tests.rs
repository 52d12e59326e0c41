#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::collections::BTreeMap;

use paring_ir::analysis::AnalysisCache;
use paring_ir::pass::Remarks;
use paring_ir::text::{PrintOptions, print_model};
use paring_ir::{Model, OptionSet, Registry, verify};
use serde_json::json;

use super::*;
use crate::testing::{Echo, Samples, parse};

/// Runs the pass once: a second run at the same ratio would remove more.
fn run_with(options: &str, text: &str, data: Option<&Samples>) -> (Model, Remarks) {
    let mut model = parse(text);
    let registry = Registry::new().with::<RemoveChannels>();
    let options = serde_json::from_str(options).unwrap();
    let pass = registry
        .get("remove-channels")
        .unwrap()
        .make(&options)
        .unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    if let Some(data) = data {
        cx.engine = Some(&Echo);
        cx.data = Some(data);
    }
    model.set_author(Some("remove-channels".into()));
    let start = model.revision();
    let changed = pass.run(&mut model, &mut cx).unwrap();
    assert_eq!(changed.is_yes(), model.revision() != start);
    model.graph.check_invariants().unwrap();
    if let Err(found) = verify::verify(&model) {
        panic!("{found}\nin\n{}", print(&model));
    }
    (model, cx.remarks)
}

fn run(options: &str, text: &str) -> (Model, Remarks) {
    run_with(options, text, None)
}

fn print(model: &Model) -> String {
    print_model(model, &PrintOptions::default())
}

fn check(options: &str, before: &str, after: &str) -> Remarks {
    let (model, remarks) = run(options, before);
    let (found, expected) = (print(&model), print(&parse(after)));
    assert!(
        found == expected,
        "made\n{found}\nexpected\n{expected}\nremarks {remarks:#?}"
    );
    remarks
}

/// Whether every value has the shape that the expected text declares, whatever the numbers.
fn dims(model: &Model, name: &str) -> Vec<usize> {
    let v = model.graph.find_value(name).unwrap();
    model.graph.tensor(v).unwrap().dims().to_vec()
}

const HALF: &str = r#"{"round-to": 1}"#;

#[test]
fn the_smaller_channels_go() {
    check(
        HALF,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,1] z)
        <float[2,4] w = {1, 5, 2, 4, 1, 5, 2, 4}, float[4] b = {1, 2, 3, 4}, float[4,1] v = {1, 5, 2, 4}> {
            y = MatMul (x, w) s = Add (y, b) z = MatMul (s, v)
        }"#,
        r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,1] z)
        <float[2,2] w = {5, 4, 5, 4}, float[2] b = {2, 4}, float[2,1] v = {5, 4}> {
            y = MatMul (x, w) s = Add (y, b) z = MatMul (s, v)
        }"#,
    );
}

#[test]
fn provenance_names_what_is_kept_of_the_tensor_that_was_read() {
    let text = r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] z)
        <float[1,8] w = {1, 8, 2, 7, 3, 6, 4, 5}, float[8,1] v = {1, 8, 2, 7, 3, 6, 4, 5}> {
            y = MatMul (x, w) z = MatMul (y, v)
        }"#;
    let (mut model, _) = run(HALF, text);
    let kept = |model: &Model| {
        let w = model.graph.find_value("w").unwrap();
        let origin = model.graph.value(w).provenance().unwrap().clone();
        assert_eq!(origin.kept.len(), 1);
        (origin.kept[0].axis, origin.kept[0].indices.to_vec())
    };
    assert_eq!(kept(&model), (1, vec![1, 3, 5, 7]));
    let options = json!({"round-to": 1});
    let set = OptionSet::parse("remove-channels", options.as_object().unwrap()).unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    RemoveChannels::new(set)
        .unwrap()
        .run(&mut model, &mut cx)
        .unwrap();
    assert_eq!(kept(&model), (1, vec![1, 3]));
}

#[test]
fn counts_are_rounded_and_bounded() {
    let text = |n: usize| {
        format!(
            r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] z) <float[1,{n}] w = random(1), float[{n},1] v = random(2)> {{ y = MatMul (x, w) z = MatMul (y, v) }}"#
        )
    };
    let left = |options: &str, n: usize| dims(&run(options, &text(n)).0, "w")[1];
    assert_eq!(left("{}", 96), 48);
    assert_eq!(left("{}", 100), 48);
    // Of fewer than 32 channels a multiple of 8 is kept.
    assert_eq!(left("{}", 24), 8);
    assert_eq!(left(r#"{"min-channels": 40}"#, 64), 48);
    assert_eq!(left(r#"{"ratio": 1, "max-ratio": 0.75}"#, 64), 16);
    assert_eq!(
        left(r#"{"ratio": 1, "max-ratio": 1, "round-to": 1}"#, 64),
        1
    );
    assert_eq!(left(r#"{"budget": {"macs": 0.3}}"#, 64), 16);
    assert_eq!(
        left(
            r#"{"budget": {"parameters": 0.5}, "scope": "isomorphic"}"#,
            64
        ),
        32
    );
}

#[test]
fn numbers_that_say_how_large_axes_are_follow() {
    let (model, _) = run(
        HALF,
        r#"<opset_import: ["": 18]> g (float[1,3,4,4] x) => (float[1,5,8,8] z)
        <float[8,3,1,1] a = random(1), float[4,1,1,1] d = random(3), float[5,8,1,1] w = random(2),
         int64[2] halves = {4, 4}, int64[4] same = {0, 4, 4, 4}, int64[4] size = {1, 8, 8, 8},
         int64[1] start = {0}, int64[1] end = {4}, int64[1] axis = {1}> {
            p = Conv (x, a)
            q, r = Split <axis: int = 1> (p, halves)
            s = Reshape (q, same)
            t = Conv <group: int = 4> (s, d)
            c = Concat <axis: int = 1> (t, r)
            u = Resize <mode: string = "nearest"> (c, , , size)
            k = Slice (u, start, end, axis)
            l = Slice (u, end, halves_end, axis)
            m = Concat <axis: int = 1> (k, l)
            z = Conv (m, w)
        }"#
        .replace("int64[1] axis", "int64[1] halves_end = {8}, int64[1] axis")
        .as_str(),
    );
    let ints = |name: &str| {
        let v = model.graph.find_value(name).unwrap();
        model.graph.tensor(v).unwrap().to_i64s().unwrap()
    };
    assert_eq!(ints("halves"), [2, 2]);
    assert_eq!(ints("same"), [1, 2, 4, 4]);
    assert_eq!(ints("size"), [1, 4, 8, 8]);
    assert_eq!(ints("halves_end"), [4]);
    assert_eq!(dims(&model, "a"), [4, 3, 1, 1]);
    assert_eq!(dims(&model, "d"), [2, 1, 1, 1]);
    let conv = model
        .graph
        .ops()
        .find(|&op| model.graph.op(op).int("group").is_some());
    assert_eq!(model.graph.op(conv.unwrap()).int("group"), Some(2));
}

#[test]
fn a_target_that_is_computed_is_patched() {
    let (model, _) = run(
        HALF,
        r#"<opset_import: ["": 18]> g (float[n,3] x) => (float[n,5] z)
        <float[3,12] a = random(1), float[12,5] w = random(2), int64[1] zero = {0}, int64[2] heads = {3, 4}, int64[1] all = {12}> {
            p = MatMul (x, a)
            s = Shape (x) b = Gather (s, zero)
            t = Concat <axis: int = 0> (b, heads)
            q = Reshape (p, t)
            u = Concat <axis: int = 0> (b, all)
            r = Reshape (q, u)
            z = MatMul (r, w)
        }"#,
    );
    assert_eq!(dims(&model, "a"), [3, 6]);
    assert_eq!(dims(&model, "w"), [6, 5]);
}

#[test]
fn groups_that_stay_are_named() {
    let remarks = check(
        "{}",
        r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,2] z) <float[1,2] w = random(1)> { z = MatMul (x, w) }"#,
        r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,2] z) <float[1,2] w = random(1)> { z = MatMul (x, w) }"#,
    );
    assert_eq!(
        remarks.missed,
        BTreeMap::from([("graph-output".to_owned(), 1)])
    );
    let stream = r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] z)
        <float[1,4] w = random(1), float[4] s = random(2), float[4,1] v = random(3)> {
            y = MatMul (x, w) n = LayerNormalization (y, s) z = MatMul (n, v)
        }"#;
    let (_, remarks) = run(HALF, stream);
    assert_eq!(
        remarks.missed,
        BTreeMap::from([("normalized".to_owned(), 1)])
    );
    let (model, _) = run(r#"{"round-to": 1, "include-normalized": true}"#, stream);
    assert_eq!(dims(&model, "s"), [2]);
}

#[test]
fn a_ratio_of_zero_changes_nothing() {
    let text = r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] z) <float[1,4] w = random(1), float[4,1] v = random(2)> { y = MatMul (x, w) z = MatMul (y, v) }"#;
    check(r#"{"ratio": 0}"#, text, text);
}

#[test]
fn budgets_that_can_not_be_met_are_an_error() {
    let mut model = parse(
        r#"<opset_import: ["": 18]> g (float[1,1] x) => (float[1,1] z) <float[1,64] w = random(1), float[64,1] v = random(2)> { y = MatMul (x, w) z = MatMul (y, v) }"#,
    );
    let given = json!({"budget": {"macs": 0.01}});
    let options = OptionSet::parse("remove-channels", given.as_object().unwrap()).unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    let error = RemoveChannels::new(options)
        .unwrap()
        .run(&mut model, &mut cx);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("the budget can't be met") && error.contains("0.250"),
        "{error}"
    );
    let given = json!({"budget": {"macs": 1.5}});
    let options = OptionSet::<Options>::parse("remove-channels", given.as_object().unwrap());
    assert_eq!(
        options.unwrap_err().to_string(),
        "remove-channels.budget.macs: expected a number from 0 to 1, found 1.5"
    );
}

/// The order by output error, on a layer whose third input is the sum of the first two, so that
/// it can go for nothing although its weights are largest.
#[test]
fn what_others_make_up_for_goes_first() {
    use faer::Mat;
    let columns: Vec<[f64; 4]> = (0..40)
        .map(|i| {
            let (a, b, c) = (f64::from(i % 5), f64::from(i % 3), f64::from(i % 7));
            [a, b, a + b, c]
        })
        .collect();
    let mean: Vec<f64> = (0..4)
        .map(|c| columns.iter().map(|x| x[c]).sum::<f64>() / 40.0)
        .collect();
    let second = |i: usize, j: usize| columns.iter().map(|x| x[i] * x[j]).sum::<f64>() / 40.0;
    let gram = Mat::from_fn(4, 4, |i, j| second(i, j) - mean[i] * mean[j]);
    let order =
        importance::elimination_order(gram, Mat::from_fn(1, 4, |_, c| [1.0, 1.0, 5.0, 1.0][c]));
    let first = (0..4)
        .min_by(|&a, &b| order[a].total_cmp(&order[b]))
        .unwrap();
    assert!(first < 3, "{order:?}");
    assert!(
        order[first] < 1e-2 && order[3] > 10.0 * order[first],
        "{order:?}"
    );
}

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use bytes::Bytes;

use super::*;
use crate::attr::AttrValue;
use crate::op::NewOp;
use crate::tensor::{DType, SparseTensor, Storage, Tensor, TensorExtra};
use crate::text::parse_model;
use crate::value::{Constant, ValueType};

/// A model of opset 21 whose graph has this signature, these values and this body.
fn model(rest: &str) -> Model {
    let text = format!("<ir_version: 10, opset_import: [\"\": 21, \"custom\": 1]>\ng {rest}");
    parse_model(&text).unwrap_or_else(|e| panic!("{e}"))
}

fn lines(model: &Model) -> Vec<String> {
    check(model)
        .violations
        .iter()
        .map(Violation::to_string)
        .collect()
}

#[track_caller]
fn holds(model: &Model) {
    assert_eq!(lines(model), [] as [String; 0]);
    verify(model).unwrap();
}

/// One violation, whose text contains the parts.
#[track_caller]
fn breaks(model: &Model, parts: &[&str]) {
    let found = lines(model);
    assert_eq!(found.len(), 1, "{parts:?} in {found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "no `{part}` in\n{}", found[0]);
    }
}

const SIGNATURE: &str = "(float[2] x) => (float[2] y)";

#[test]
fn a_valid_model_holds() {
    holds(&model(
        "(float[N,3,8,8] x, bool c) => (float[N,4,8,8] y)
        <float[4,3,3,3] w = random(1), float[4] b = zeros, sparse_tensor(float[5]) s = float[2] {1, 2} at int64[2] {0, 3}>
        {
          a = Conv <pads: ints = [1, 1, 1, 1], __note: string = \"ours\"> (x, w, b)
          t = Constant <value_float: float = 1.0> ()
          k = custom.Anything <x: int = 1> (s, t)
          y = If (c) <then_branch: graph = t1 () => (r) { r = Relu (a) }, else_branch: graph = e1 () => (q) { q = Mul (a, t) }>
        }
        <domain: \"custom\", opset_import: [\"\": 21]> Fn <p> (i) => (o) { o = Softmax <axis: int = @p> (i) }"
    ));
}

#[test]
fn contradictions_of_shapes_are_errors_of_the_full_check_alone() {
    let all = |m: &Model| -> Vec<String> {
        let shapes = Shapes::infer(m, &Default::default());
        let found = check_with(m, &shapes).violations;
        found.iter().map(Violation::to_string).collect()
    };
    for (rest, expected) in [
        (
            "(float[2] x) => (float[3] y) { y = Relu (x) }",
            "error[V60] g / value \"y\": declared as float[3], but its operator makes float[2]; correct the declaration or leave it out",
        ),
        (
            "(float[2,3] x) => (float[2,3] y) { [odd] y = MatMul (x, x) }",
            "error[V61] g / MatMul \"odd\": ",
        ),
    ] {
        let m = model(rest);
        holds(&m);
        let found = all(&m);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(expected), "{}", found[0]);
    }
    // A symbol is no contradiction to a number, and neither is another symbol.
    let open = model("(float[n] x) => (float[2] y, float[m] z) { y = Relu (x) z = Abs (x) }");
    assert_eq!(all(&open), [] as [String; 0]);
}

#[test]
fn what_is_not_listed_is_counted() {
    let mut found = Findings::default();
    for severity in [Severity::Warning, Severity::Error] {
        for _ in 0..MAX_VIOLATIONS {
            found.push(Violation {
                code: "V00",
                severity,
                place: "model".to_owned(),
                message: "odd".to_owned(),
                help: String::new(),
            });
        }
    }
    assert_eq!(found.unlisted(Severity::Warning), MAX_VIOLATIONS);
    assert_eq!(found.unlisted(Severity::Error), 0);
    assert_eq!(found.into_result().unwrap_err().errors, MAX_VIOLATIONS);
}

#[test]
fn places_and_help_are_said() {
    let m = model(&format!("{SIGNATURE} {{ [act] y = Relu (x, \"\", x) }}"));
    let found = verify(&m).unwrap_err();
    assert_eq!(
        found.to_string(),
        "the model is not valid: 1 error\n  error[V33] g / Relu \"act\": expected 1 inputs of Relu (opset 14 on), found 3"
    );
    let m = model("(float x, bool c) => (float y) {
        [branch] y = If (c) <then_branch: graph = t () => (r) { [bad] r = Rleu (x) }, else_branch: graph = e () => (q) { q = Neg (x) }> }");
    assert_eq!(
        lines(&m),
        [
            "error[V31] g / If \"branch\" / then_branch / Rleu \"bad\": opset 21 has no operator of the type \"Rleu\"; did you mean Relu?"
        ]
    );
}

#[test]
fn headers() {
    let graph = "g (float x) => (float x) {}";
    for (header, parts) in [
        (
            "ir_version: 0, opset_import: [\"\": 21]",
            &["V01", "found 0"][..],
        ),
        (
            "ir_version: 10, opset_import: []",
            &["V03", "no opset import"],
        ),
        (
            "ir_version: 10, opset_import: [\"\": 0]",
            &["V03", "found 0"],
        ),
        (
            "ir_version: 10, opset_import: [\"\": 21, \"ai.onnx\": 21]",
            &["V03", "\"\" stands twice"],
        ),
        (
            "ir_version: 8, opset_import: [\"\": 21]",
            &["warning[V02]", "IR version 10"],
        ),
        (
            "ir_version: 10, opset_import: [\"\": 99]",
            &["warning[V03]", "newer"],
        ),
        (
            "ir_version: 10, opset_import: [\"\": 21], metadata_props: [\"k\": \"a\", \"k\": \"b\"]",
            &["V04", "\"k\" stands twice"],
        ),
    ] {
        let m = parse_model(&format!("<{header}> {graph}")).unwrap();
        let found = lines(&m);
        let hit = found.iter().any(|l| parts.iter().all(|p| l.contains(p)));
        assert!(hit, "{header}: {found:#?}");
    }
    let mut m = parse_model(&format!("<opset_import: [\"\": 21]> {graph}")).unwrap();
    m.extra.no_ir_version = true;
    breaks(&m, &["V01", "found none"]);
    m.extra.no_ir_version = false;
    m.extra.no_graph = true;
    breaks(&m, &["V01", "no graph"]);
}

#[test]
fn warnings_are_no_errors() {
    let m = parse_model("<ir_version: 8, opset_import: [\"\": 21]> g (float x) => (float x) {}")
        .unwrap();
    let found = check(&m);
    assert_eq!((found.errors, found.warnings), (0, 1));
    verify(&m).unwrap();
}

#[test]
fn graphs_and_values() {
    for (rest, parts) in [
        (
            "(x) => (float y) { y = Relu (x) }",
            &["V12", "input \"x\"", "expected a type"][..],
        ),
        (
            "(undefined[2] x) => (float y) { y = custom.Op (x) }",
            &["V12", "input \"x\"", "element type"],
        ),
        (
            "(seq() x) => (float y) { y = custom.Op (x) }",
            &["V12", "type of the elements"],
        ),
        (
            "(map(undefined, float) x) => (float y) { y = custom.Op (x) }",
            &["V12", "keys and values"],
        ),
        (
            "(float[] x) => (float y) { y = custom.Op (x) }",
            &["warning[V12]", "unknown rank"],
        ),
        (
            "(float x) => (float y) {}",
            &["V13", "output \"y\"", "nothing makes"],
        ),
        (
            "(float x) => (float y) { y = Add (x, z) }",
            &["V14", "Add \"y\" / input 1", "\"z\""],
        ),
        (
            "(float x) => (float y) { a = Add (x, y) y = Relu (a) }",
            &["V15", "cycle through \"a\""],
        ),
        (
            "(float[-2] x) => (float y) { y = custom.Op (x) }",
            &["error[V19]", "found -2"],
        ),
        (
            "(float[-1] x) => (float y) { y = custom.Op (x) }",
            &["warning[V19]", "found -1"],
        ),
        (
            "(float[2] x) => (float y) <float[3] x = {1, 2, 3}> { y = custom.Op (x) }",
            &["V18", "float[2]", "float[3]"],
        ),
        (
            "(float x) => (float y) { #: quantization: [\"x\": [\"SCALE_TENSOR\": \"s\"]]\n y = Relu (x) }",
            &["V20", "\"s\""],
        ),
        (
            "(float x) => (float y) { y = other.Op (x) }",
            &["V05", "\"other\" is not imported"],
        ),
        ("(float x) => (float x) { = custom.Op () }", &["V44"]),
    ] {
        breaks(&model(rest), parts);
    }
    let mut m = model("(float x) => (float y) { y = Relu (x) }");
    m.graph = crate::text::parse_graph("\"\" (float x) => (float y) { y = Relu (x) }").unwrap();
    breaks(&m, &["V10", "graph:"]);
    let mut m = model("(float x) => (float y) { y = Relu (x) }");
    m.graph.add_value("").unwrap();
    breaks(&m, &["V11"]);
}

#[test]
fn names_inside_and_outside() {
    // The inner `a` is another value than the outer one.
    breaks(
        &model("(float x, bool c) => (float y) {
            a = Relu (x)
            y = If (c) <then_branch: graph = t () => (a) { a = Neg (x) }, else_branch: graph = e () => (b) { b = Neg (a) }> }"),
        &["warning[V16]", "then_branch / value \"a\"", "graph \"g\""],
    );
    // A capture that is renamed inside gets back the name that it has outside.
    let mut m = model("(float x, bool c) => (float y) {
        y = If (c) <then_branch: graph = t () => (r) { r = Neg (x) }, else_branch: graph = e () => (q) { q = Neg (x) }> }");
    let op = m.graph.ops().next().unwrap();
    m.graph
        .edit_subgraphs(op, |i, sub| match (i, sub.find_value("x")) {
            (0, Some(x)) => sub.rename_value(x, "elsewhere"),
            _ => Ok(()),
        })
        .unwrap();
    holds(&m);
    assert!(m.to_string().contains("r = Neg (x)"));
}

#[test]
fn operators() {
    for (body, parts) in [
        ("y = Relu ()", &["V33", "expected 1 inputs", "found 0"][..]),
        (
            "y = Clip (\"\", x)",
            &["V33", "input 0", "\"input\" is required"],
        ),
        (
            "\"\", m = Dropout (x) y = Neg (x)",
            &["V34", "output 0", "is required"],
        ),
        ("y, z = Relu (x)", &["V34", "expected 1 outputs", "found 2"]),
        (
            "y = Relu <alpha: float = 1.0> (x)",
            &["V35", "/ alpha", "it has none at all"],
        ),
        ("y = Cast (x)", &["V36", "\"to\" is required"]),
        (
            "y = Softmax <axis: float = 1.0> (x)",
            &["V37", "expected int, found float"],
        ),
        (
            "y = custom.Op <a: int = 1, a: int = 2> (x)",
            &["V38", "stands twice"],
        ),
        (
            "y = custom.Op <a: int = @b> (x)",
            &["V39", "can only stand in a function"],
        ),
        ("y = Upsample (x, x)", &["V32", "deprecated since opset 10"]),
        (
            "y = Attention (x, x, x)",
            &["V31", "came with opset 23", "raise"],
        ),
        ("y = Frobnicate (x)", &["V31", "needs that domain"]),
        ("y = \"\" (x)", &["V30", "expected an operator type"]),
        ("y = Constant ()", &["V41", "found 0"]),
        (
            "y = Constant <value_int: int = 1, value_float: float = 1.0> ()",
            &["V41", "found 2"],
        ),
    ] {
        breaks(&model(&format!("{SIGNATURE} {{ {body} }}")), parts);
    }
    let mut m = model(&format!(
        "{SIGNATURE} {{ y = Softmax <axis: int = 0> (x) }}"
    ));
    let op = m.graph.ops().next().unwrap();
    let mut attr = m.graph.op(op).attrs()[0].clone();
    attr.untyped = true;
    m.graph.remove_attr(op, "axis").unwrap();
    let x = m.graph.find_value("x").unwrap();
    m.graph
        .replace_op(op, NewOp::new("Softmax").input(x).attrs([attr]))
        .unwrap();
    breaks(&m, &["V40", "expected the kind"]);
    m.ir_version = 1;
    assert!(!lines(&m).iter().any(|l| l.contains("V40")));
}

#[test]
fn later_opsets_may_have_unknown_operators() {
    let m = parse_model("<ir_version: 20, opset_import: [\"\": 99]> g (float x) => (float y) { y = Frobnicate (x) }").unwrap();
    verify(&m).unwrap();
    assert!(lines(&m).iter().any(|l| l.contains("warning[V31]")));
}

#[test]
fn element_types() {
    for (rest, parts) in [
        (
            "(float[2] x, int64[2] i) => (float[2] y) { y = Add (x, i) }",
            &["V43", "input 1", "of type int64", "input 0, which is float"][..],
        ),
        (
            "(float[2] x) => (int64[2] y) { y = Relu (x) }",
            &["V43", "output 0", "int64"],
        ),
        (
            "(string[2] x) => (string[2] y) { y = Relu (x) z = custom.Op (y) }",
            &["V43", "takes as \"X\""],
        ),
        (
            "(float[2] x) => (float[2] y) <int32[1] s = {2}> { y = Reshape (x, s) }",
            &["V43", "input 1", "is int32", "takes as \"shape\" int64"],
        ),
        (
            "(seq(float) x) => (float y) { y = Relu (x) }",
            &["V43", "seq(float)"],
        ),
    ] {
        let found = lines(&model(rest));
        assert!(!found.is_empty());
        for part in parts {
            assert!(found[0].contains(part), "no `{part}` in {found:#?}");
        }
    }
    // Concat takes any number of one type, and nothing is known of a custom operator's output.
    breaks(
        &model(
            "(float[2] x, double[2] d) => (float[6] y) { u = custom.Op (x) y = Concat <axis: int = 0> (x, u, d) }",
        ),
        &["V43", "input 2", "double"],
    );
    // Loop carries values of several types.
    holds(&model("(int64 n, bool c, float x, int64 k) => (float y, int64 z) {
        y, z = Loop (n, c, x, k) <body: graph = b (int64 i, bool d, float p, int64 q) => (bool e, float r, int64 s) {
            e = Identity (d) r = Relu (p) s = Identity (q) }> }"));
}

#[test]
fn signatures_of_subgraphs() {
    for (rest, parts) in [
        (
            "(bool c, float x) => (float y) { y = If (c) <then_branch: graph = t (float p) => (r) { r = Neg (x) }, else_branch: graph = e () => (q) { q = Neg (x) }> }",
            &[
                "V42",
                "then_branch",
                "0 inputs for If with 1, found one of 1",
            ][..],
        ),
        (
            "(bool c, float x) => (float y) { y = If (c) <then_branch: graph = t () => (r) { r = Neg (x) }, else_branch: graph = e () => () { q = Neg (x) }> }",
            &[
                "V42",
                "else_branch",
                "1 outputs for If with 1, found one of 0",
            ],
        ),
        (
            "(int64 n, bool c, float x) => (float y) { y = Loop (n, c, x) <body: graph = b (int64 i, bool d) => (bool e, float r) { e = Identity (d) r = Neg (x) }> }",
            &["V42", "body", "3 inputs for Loop with 3, found one of 2"],
        ),
        (
            "(float[2] s, float[4] x) => (float[2] y) { y = Scan <num_scan_inputs: int = 1> (s, x) <body: graph = b (float[2] a, float p) => (float[2] r, float t) { r = Neg (a) t = Neg (p) }> }",
            &["V42", "body", "1 outputs for Scan with 1, found one of 2"],
        ),
    ] {
        breaks(&model(rest), parts);
    }
    holds(&model("(float[2] s, float[4] x) => (float[2] y, float[4] z) {
        y, z = Scan <num_scan_inputs: int = 1> (s, x) <body: graph = b (float[2] a, float p) => (float[2] r, float t) { r = Neg (a) t = Neg (p) }> }"));
}

fn sparse(values: Tensor, indices: Tensor, dims: &[usize]) -> Model {
    let mut m = model("(float x) => (float x) {}");
    let v = m.graph.add_value("s").unwrap();
    let sparse = SparseTensor {
        values,
        indices,
        dims: dims.iter().copied().collect(),
    };
    m.graph
        .add_initializer(v, Constant::Sparse(sparse.into()))
        .unwrap();
    m
}

#[test]
fn sparse_tensors() {
    let ones = |n: usize| Tensor::vector(vec![1f32; n]);
    let linear = |p: &[i64]| Tensor::vector(p);
    let rows = |p: &[i64]| Tensor::from_vec([p.len() / 2, 2], p.to_vec()).unwrap();
    holds(&sparse(ones(2), linear(&[0, 4]), &[5]));
    holds(&sparse(ones(3), rows(&[0, 2, 1, 0, 1, 1]), &[2, 3]));
    holds(&sparse(ones(0), linear(&[]), &[5]));
    for (values, indices, dims, part) in [
        (
            ones(2),
            linear(&[0, 5]),
            &[5][..],
            "position 1 is 5, out of bounds",
        ),
        (
            ones(2),
            linear(&[-1, 3]),
            &[5],
            "position 0 is -1, out of bounds",
        ),
        (
            ones(2),
            linear(&[3, 3]),
            &[5],
            "position 1 does not come after",
        ),
        (
            ones(2),
            rows(&[1, 0, 0, 1]),
            &[2, 3],
            "position 1 does not come after",
        ),
        (
            ones(1),
            rows(&[0, 3]),
            &[2, 3],
            "position 0 is 3, out of bounds",
        ),
        (
            ones(2),
            linear(&[3]),
            &[5],
            "expected positions of shape [2] or [2, 1], found [1]",
        ),
        (ones(1), rows(&[0, 0]), &[5], "found [1, 2]"),
        (
            ones(1),
            Tensor::vector(vec![0i32]),
            &[5],
            "positions of type int64, found int32",
        ),
        (
            Tensor::scalar(1f32),
            linear(&[0]),
            &[5],
            "elements of shape [n]",
        ),
        (ones(1), linear(&[0]), &[], "at least one dimension"),
        (ones(1), linear(&[0]), &[usize::MAX, 3], "a countable size"),
    ] {
        breaks(&sparse(values, indices, dims), &["V23", part]);
    }
}

#[test]
fn side_files_stay_inside() {
    for (location, inside) in [
        ("w.bin", true),
        ("folder/w.bin", true),
        ("./w.bin", true),
        ("", false),
        ("/etc/passwd", false),
        ("../w.bin", false),
        ("a/../../w.bin", false),
        ("a\\..\\..\\w.bin", false),
        ("C:\\w.bin", false),
        ("\\\\host\\w.bin", false),
    ] {
        let mut m = model("(float x) => (float x) {}");
        let tensor = Tensor::scalar(1f32).with_extra(TensorExtra {
            storage: Storage::External {
                location: location.into(),
                entries: [].into(),
            },
            ..TensorExtra::default()
        });
        m.graph.add_constant("w", tensor).unwrap();
        assert_eq!(verify(&m).is_ok(), inside, "{location}");
        if !inside {
            breaks(&m, &["V24", "inside the model's folder"]);
        }
    }
}

/// A model with these functions.
fn with_functions(functions: &str) -> Model {
    model(&format!(
        "(float x) => (float y) {{ y = custom.A (x) }} {functions}"
    ))
}

#[test]
fn functions() {
    let f = |name: &str, body: &str| {
        format!(
            "<domain: \"custom\", opset_import: [\"\": 21, \"custom\": 1]> {name} (x) => (y) {{ {body} }}\n"
        )
    };
    holds(&with_functions(&f("A", "y = Relu (x)")));
    holds(&with_functions(
        &(f("A", "y = custom.B (x)") + &f("B", "y = Relu (x)")),
    ));
    for (functions, parts) in [
        (f("A", "y = Relu (x)") + &f("A", "y = Neg (x)"), &["V50", "another function"][..]),
        (f("A", "y = custom.A (x)"), &["V51", "\"A\""]),
        (f("A", "y = custom.B (x)") + &f("B", "y = custom.C (x)") + &f("C", "y = custom.B (x)"), &["V51", "\"B\", \"C\""]),
        (f("A", "y = custom.B (x)") + &f("B", "y = If (x) <then_branch: graph = t () => (r) { r = custom.A (x) }, else_branch: graph = e () => (q) { q = Neg (x) }>"), &["V51"]),
        (f("A", "y = Nope (x)"), &["V31", "function custom.A / Nope"]),
        (f("A", "y = Relu (z)"), &["V14", "function custom.A / Relu"]),
        (f("A", "z = Relu (x)"), &["V13", "function custom.A / output \"y\""]),
        (f("A", "y = strange.Op (x)"), &["V05", "\"strange\""]),
        (f("A", "y = Softmax <axis: int = @k> (x)"), &["V39", "has no attribute \"k\""]),
        (f("\"\"", "y = Relu (x)"), &["V50", "needs a name"]),
        (f("A <k, k: int = 1>", "y = Relu (x)"), &["V53", "attribute \"k\" stands twice"]),
        ("<domain: \"custom\", opset_import: []> A (x) => (x) {}".into(), &["V03", "opsets of the body"]),
        ("<domain: \"custom\", opset_import: [\"\": 12]> A (x) => (y) { y = Relu (x) }".into(), &["V52", "Relu differs", "opset 12"]),
        ("<domain: \"custom\", opset_import: [\"\": 21]> A (x) => (x, x) {}".into(), &["V53", "output \"x\" stands twice"]),
        ("<domain: \"custom\", opset_import: [\"\": 21]> A (x) => (y) <float w = {1}> { y = Mul (x, w) }".into(), &["V53", "\"w\""]),
    ] {
        breaks(&with_functions(&functions), parts);
    }
    let mut m = with_functions(&f("A", "y = Relu (x)"));
    m.ir_version = 7;
    assert!(lines(&m).iter().any(|l| l.contains("warning[V54]")));
}

#[test]
fn functions_take_the_place_of_standard_operators() {
    let text =
        "<ir_version: 10, opset_import: [\"\": 21]> g (float x) => (float y) { y = Frobnicate (x) }
        <domain: \"\", opset_import: [\"\": 21]> Frobnicate (x) => (y) { y = Relu (x) }";
    holds(&parse_model(text).unwrap());
}

#[test]
fn deep_graphs_are_refused_and_not_entered() {
    let mut g = Graph::new("innermost");
    let v = g.add_value("v").unwrap();
    g.add_output(v).unwrap();
    for i in 0..200 {
        let mut around = Graph::new(format!("level{i}"));
        around
            .add_op(
                NewOp::new("Op")
                    .domain("custom")
                    .attr("g", AttrValue::Graph(Box::new(g)))
                    .output(format!("o{i}")),
            )
            .unwrap();
        g = around;
    }
    let mut m = model("(float x) => (float x) {}");
    m.graph = g;
    breaks(&m, &["V21", "deeper than 32"]);
}

#[test]
fn many_errors_are_counted() {
    let mut m = model("(float x) => (float x) {}");
    for i in 0..1000 {
        m.graph
            .add_op(NewOp::new("Nope").output(format!("o{i}")))
            .unwrap();
    }
    let found = verify(&m).unwrap_err();
    assert_eq!((found.violations.len(), found.errors), (100, 1000));
    assert!(found.to_string().ends_with("\n  and 900 more"));
}

#[test]
fn names_are_escaped() {
    let mut m = model("(float x) => (float x) {}");
    let hostile = "\u{1b}[31m\n".repeat(200);
    m.graph
        .add_op(
            NewOp::new(hostile.as_str())
                .name(hostile.as_str())
                .output("o"),
        )
        .unwrap();
    let v = m.graph.add_value(hostile.as_str()).unwrap();
    m.graph
        .set_type(
            v,
            Some(ValueType::tensor(
                DType::F32,
                [crate::value::Dim::Value(-5)],
            )),
        )
        .unwrap();
    for line in lines(&m) {
        assert!(!line.contains('\u{1b}') && !line.contains('\n'), "{line}");
        assert!(line.len() < 5000);
    }
}

#[test]
fn string_tensors_have_as_many_strings_as_elements() {
    let mut m = model("(float x) => (float x) {}");
    let t =
        Tensor::from_strings([2], [Bytes::from_static(b"a"), Bytes::from_static(b"\xff")]).unwrap();
    m.graph.add_constant("s", t).unwrap();
    holds(&m);
}

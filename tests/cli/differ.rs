//! `paring diff` and `paring compare`.

use super::*;

/// The first network, with every name another.
fn renamed() -> String {
    let mut text = NET.to_owned();
    for name in ["first", "same", "act", "last", "w1", "w2"] {
        text = text.replace(name, &format!("{name}_new"));
    }
    for (old, new) in [
        (" a ", " aa "),
        ("(a)", "(aa)"),
        (" b ", " bb "),
        ("(b)", "(bb)"),
    ] {
        text = text.replace(old, new);
    }
    text
}

#[test]
fn a_copy_with_other_names_is_the_same_model_unless_names_count() {
    let dir = Folder::new();
    let (a, b) = (dir.model("a.onnx", NET), dir.model("b.onnx", &renamed()));
    paring(&["diff", &a, &a, "--strict"]).exits(0);
    let run = paring(&["diff", &a, &b]).exits(0);
    assert!(
        run.out.contains("4 same (4 of them renamed)"),
        "{}",
        run.out
    );
    paring(&["diff", &a, &b, "--strict"]).exits(1);
}

#[test]
fn differences_are_told_and_make_the_code() {
    let dir = Folder::new();
    let a = dir.model("a.onnx", NET);
    let other = NET
        .replace(
            "[same] b = Identity (a)",
            "[other] b = Elu <alpha = 2.0> (a)",
        )
        .replace("w2 = random(2)", "w2 = random(3)")
        .replace("net (", "extra_net (")
        .replace("float[batch,32] y)", "float[n,32] y)");
    let b = dir.model("b.onnx", &other);
    let run = paring(&["diff", &a, &b]).exits(1);
    for part in [
        "Identity",
        "Elu",
        "~ tensor w2",
        "float[batch,32]",
        "float[n,32]",
    ] {
        assert!(run.out.contains(part), "{part}: {}", run.out);
    }
    let run = paring(&["diff", &a, &b, "-q"]).exits(1);
    assert_eq!((&*run.out, &*run.err), ("", ""));
    let json = paring(&["diff", &a, &b, "--json"]).exits(1).json();
    for (part, keys) in [
        (
            "operators",
            ["added", "removed", "changed", "same", "renamed"],
        ),
        (
            "initializers",
            ["added", "removed", "changed", "same", "renamed"],
        ),
    ] {
        for key in keys {
            assert!(json[part].get(key).is_some(), "{part}.{key}");
        }
    }
    let change = &json["initializers"]["changed"][0];
    assert_eq!(change["name"], "w2");
    for key in [
        "before",
        "after",
        "sparsity_before",
        "sparsity_after",
        "max_abs",
        "relative_norm",
    ] {
        assert!(change.get(key).is_some(), "{key}");
    }
    assert!(!json["interface"].as_array().unwrap().is_empty());
}

#[test]
fn only_operators_that_differ_are_told_not_all_around_them() {
    let dir = Folder::new();
    let text = |body: &str| {
        format!(
            "<ir_version: 8, opset_import: [\"\": 17]>
            net (float[2] x) => (float[2] y) {{ {body} [end] y = Add (a, b) }}"
        )
    };
    let before = dir.model("a.onnx", &text("[r] a = Relu (x) [n] b = Neg (x)"));
    // Something else takes the place of an operator: the sum is the same sum.
    let replaced = dir.model("b.onnx", &text("[e] a = Elu (x) [n] b = Neg (x)"));
    let json = paring(&["diff", &before, &replaced, "--json"])
        .exits(1)
        .json();
    let pattern = &json["patterns"][0];
    assert_eq!(pattern["kind"], "replaced");
    assert_eq!(pattern["before"], serde_json::json!(["Relu"]));
    assert_eq!(pattern["after"], serde_json::json!(["Elu"]));
    assert_eq!(json["operators"]["changed"], serde_json::json!([]));
    // The names change places: now the sum takes its operands the other way round.
    let swapped = dir.model("c.onnx", &text("[r] b = Relu (x) [n] a = Neg (x)"));
    let run = paring(&["diff", &before, &swapped]).exits(1);
    let told = "input 0: a (output 0 of r) -> a (output 0 of n)";
    assert!(run.out.contains(told), "{}", run.out);
}

#[test]
fn functions_are_compared_by_what_they_do() {
    let dir = Folder::new();
    let text = |op: &str| {
        format!(
            "<ir_version: 9, opset_import: [\"\": 17, \"local\": 1]>
            net (float[2] x) => (float[2] y) {{ y = local.act (x) }}
            <domain: \"local\", opset_import: [\"\": 17]>
            act (a) => (b) {{ b = {op} (a) }}"
        )
    };
    let (a, b) = (
        dir.model("a.onnx", &text("Relu")),
        dir.model("b.onnx", &text("Neg")),
    );
    paring(&["diff", &a, &a, "--strict"]).exits(0);
    let run = paring(&["diff", &a, &b]).exits(1);
    assert!(
        run.out.contains("Neg") && run.out.contains("Relu"),
        "{}",
        run.out
    );
}

#[test]
fn changes_can_be_counted_by_operator_type_and_listed_with_the_alignment() {
    let dir = Folder::new();
    let a = dir.model("a.onnx", NET);
    let b = dir.model("b.onnx", &NET.replace("Relu (b)", "Elu (b)"));
    let run = paring(&["diff", &a, &b, "--stat"]).exits(1);
    assert!(run.out.contains(" Relu"), "{}", run.out);
    assert!(
        run.out
            .contains("2 operator types: 1 removed (-), 1 added (+)"),
        "{}",
        run.out
    );
    let json = paring(&["diff", &a, &b, "--json"]).exits(1).json();
    assert!(json.get("graphs").is_none());
    let json = paring(&["diff", &a, &b, "--json", "--alignment"])
        .exits(1)
        .json();
    assert_eq!(json["graphs"][0]["before"][0]["partner"], 0);
    paring(&["diff", &a, &b, "--alignment"]).exits(2);
}

#[test]
fn git_shows_models_as_text() {
    let dir = Folder::new();
    let git = |args: &[&str]| {
        let out = std::process::Command::new("git")
            .args([
                "-C",
                &dir.path("."),
                "-c",
                "user.name=n",
                "-c",
                "user.email=e",
            ])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    git(&["init", "-q"]);
    dir.file(".gitattributes", "*.onnx diff=paring\n");
    let command = format!("\"{}\" text", env!("CARGO_BIN_EXE_paring"));
    git(&["config", "diff.paring.textconv", &command]);
    dir.model("a.onnx", NET);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    dir.model("a.onnx", &NET.replace("Relu (b)", "Elu (b)"));
    let shown = git(&["diff"]);
    assert!(shown.contains("-  [act] c = Relu (b)"), "{shown}");
    assert!(shown.contains("+  [act] c = Elu (b)"), "{shown}");
}

#[test]
fn trouble_is_two() {
    let dir = Folder::new();
    let a = dir.model("a.onnx", NET);
    let garbage = dir.file("garbage.onnx", "no model");
    paring(&["diff", &a, &garbage])
        .exits(2)
        .complains("garbage.onnx");
    paring(&["diff", &dir.path("none.onnx"), &a])
        .exits(2)
        .complains("none.onnx");
    paring(&["diff", "-", "-"])
        .exits(2)
        .complains("only one of the models");
    paring(&["diff", &a]).exits(2);
}

#[test]
fn one_of_two_models_may_come_through_a_pipe() {
    let dir = Folder::new();
    let a = dir.model("a.onnx", NET);
    let bytes = std::fs::read(&a).unwrap();
    paring_on(&bytes, &["diff", "-", &a, "--strict"]).exits(0);
}

#[test]
fn models_are_compared_by_their_outputs() {
    let dir = Folder::new();
    let (a, b) = (dir.model("a.onnx", NET), dir.path("b.onnx"));
    let args = [
        "optimize",
        &a,
        "-o",
        &b,
        "--no-time",
        "--no-validate",
        "-q",
        "--pass",
    ];
    paring(&[&args[..], &["prune-weights:sparsity=0.3"]].concat()).exits(0);
    let same = paring(&["compare", &a, &a, "--json"]).exits(0).json();
    assert_eq!(same["validation"]["max_abs"], 0.0);
    let json = paring(&["compare", &a, &b, "--json", "--dim", "batch=2"])
        .exits(0)
        .json();
    assert!(json["validation"]["sqnr_db"].as_f64().unwrap() < 60.0);
    assert!(json["before"]["nodes"].as_u64().unwrap() > 0);
    let text = paring(&["compare", &a, &b]).exits(0).out;
    assert!(
        text.contains("SQNR") && text.contains("1 sample") || text.contains("samples"),
        "{text}"
    );
    let other = dir.model("c.onnx", TIDY);
    let narrow = dir.model(
        "d.onnx",
        &TIDY
            .replace("float[batch,16] x", "float[batch,16] z")
            .replace("(x, w)", "(z, w)"),
    );
    assert_ne!(
        paring(&["compare", &other, &narrow]).code,
        0,
        "inputs of other names"
    );
}

#[test]
fn models_are_timed() {
    let dir = Folder::new();
    let a = dir.model("a.onnx", NET);
    let json = paring(&["bench", &a, "--json", "--profile", "--min-time", "0.05"])
        .exits(0)
        .json();
    assert!(json["bench"]["median_ms"].as_f64().unwrap() > 0.0);
    assert!(!json["profiles"][0]["types"].as_array().unwrap().is_empty());
    let json = paring(&["bench", &a, &a, "--json", "--min-time", "0.05"])
        .exits(0)
        .json();
    assert!(json["latency"]["ratio"].as_f64().unwrap() > 0.0);
    paring(&["bench", &a, "--min-time", "0"])
        .exits(2)
        .complains("--min-time");
    paring(&["bench", &dir.model("s.onnx", STRANGE)])
        .exits(5)
        .complains("Det");
}

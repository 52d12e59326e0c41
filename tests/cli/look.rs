//! `paring inspect`, `check`, `text`, `passes`, `recipes` and `schema`.

use super::*;

#[test]
fn inspect_has_every_key_that_is_documented() {
    let json = paring(&["inspect", &data("fmnist_mobilenet_bn.onnx"), "--json"])
        .exits(0)
        .json();
    let more = [
        "opsets",
        "ir_version",
        "producer",
        "inputs",
        "outputs",
        "functions",
        "tensors",
        "layers",
        "shapes",
    ];
    for key in CONTENT.iter().chain(&more) {
        assert!(json.get(key).is_some(), "{key}");
    }
    let size = std::fs::metadata(data("fmnist_mobilenet_bn.onnx"))
        .unwrap()
        .len();
    assert_eq!(json["file_bytes"], size);
    assert_eq!(json["operators"]["Conv"], 23);
    assert!(json["macs"].as_u64().unwrap() > 1_000_000);
    for key in ["name", "type", "bytes", "sparsity", "used_by"] {
        assert!(json["tensors"][0].get(key).is_some(), "{key}");
    }
    for key in ["name", "op_type", "macs", "effective_macs", "output"] {
        assert!(json["layers"][0].get(key).is_some(), "{key}");
    }
}

#[test]
fn what_people_read_is_at_most_100_columns_wide_and_ends_no_line_with_blanks() {
    let dir = Folder::new();
    let long = "encoder/layers/0/a/very/long/name/that/exporters/like/to/write/down/in/full/weight";
    let text = NET
        .replace("w1", &format!("\"{long}\""))
        .replace("[first]", &format!("[\"{long}\"]"));
    let (a, b) = (dir.model("a.onnx", &text), dir.path("b.onnx"));
    let langid = data("langid_transformer.onnx");
    for args in [
        vec!["inspect", &a],
        vec!["inspect", &langid],
        vec!["passes"],
        vec!["passes", "prune-weights"],
        vec!["recipes"],
        vec![
            "optimize",
            &langid,
            "-o",
            &b,
            "--recipe",
            "prune",
            "--no-time",
        ],
        vec!["bench", &a, "--profile", "--min-time", "0.05"],
        vec!["compare", &langid, &b],
    ] {
        let run = paring(&args).exits(0);
        assert!(!run.out.is_empty());
        for line in run
            .out
            .lines()
            .filter(|l| !l.contains(dir.0.path().to_str().unwrap()))
        {
            assert!(line.chars().count() <= 100, "{args:?}: {line}");
            assert_eq!(line, line.trim_end(), "{args:?}");
        }
    }
}

#[test]
fn check_says_what_is_wrong_and_where() {
    let dir = Folder::new();
    let good = dir.model("good.onnx", NET);
    assert!(
        paring(&["check", &good])
            .exits(0)
            .out
            .ends_with("good.onnx: valid\n")
    );
    assert_eq!(paring(&["check", &good, "-q"]).exits(0).out, "");
    let bad = "<ir_version: 8, opset_import: [\"\": 17]>
        net (float[2] x) => (float[2] y) { [odd] y = Softmax <axs = 1> (x) }";
    let run = paring(&["check", &dir.model("bad.onnx", bad)]).exits(3);
    run.complains("bad.onnx: ");
    run.complains("net / Softmax \"odd\" / axs");
    paring(&["check", &dir.file("empty.onnx", "")]).exits(3);
    // What shape inference tells, as the full check of `onnx.checker` does.
    let odd = "<ir_version: 8, opset_import: [\"\": 17]>
        net (float[2] x) => (float[3] y) { y = Relu (x) }";
    let run = paring(&["check", &dir.model("odd.onnx", odd)]).exits(3);
    run.complains("[V60] net / value \"y\": declared as float[3], but its operator makes float[2]");
    let new = "<ir_version: 3, opset_import: [\"\": 17]>
        net (float[2] x) => (float[2] y) { y = Relu (x) }";
    let new = dir.model("new.onnx", new);
    let run = paring(&["check", &new]).exits(0);
    run.complains("warning: ");
    run.complains("[V02] model: opset 17 came with IR version 8, found version 3");
    assert_eq!(paring(&["check", &new, "-q"]).exits(0).err, "");
}

#[test]
fn text_can_be_read_again() {
    let dir = Folder::new();
    let file = dir.model("net.onnx", NET);
    let full = paring(&["text", &file, "--full"]).exits(0).out;
    assert_eq!(dir.model("again.onnx", &full), dir.path("again.onnx"));
    assert_eq!(
        std::fs::read(dir.path("again.onnx")).unwrap(),
        std::fs::read(&file).unwrap()
    );
    let elided = paring(&["text", &file]).exits(0).out;
    assert!(elided.contains("[first] a = MatMul (x, w1)"), "{elided}");
    assert!(elided.len() < full.len() / 4);
}

#[test]
fn passes_are_listed_and_described() {
    let list = paring(&["passes"]).exits(0).out;
    let line = |name: &str| {
        let mut lines = list.lines();
        lines
            .find(|l| l.trim_start().starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(line("prune-weights").contains("lossy"));
    assert!(line("lift-constants").contains("exact"));
    let json = paring(&["passes", "--json"]).exits(0).json();
    assert_eq!(
        json.as_array().unwrap().len(),
        paring::registry().passes().len()
    );
    let one = paring(&["passes", "prune-weights"]).exits(0).out;
    for part in [
        "sparsity",
        "default: 0.5",
        "layer-adaptive, uniform, global",
        "Runs first",
    ] {
        assert!(one.contains(part), "{part}: {one}");
    }
    let json = paring(&["passes", "prune-weights", "--json"])
        .exits(0)
        .json();
    assert_eq!(json["defaults"]["sparsity"], 0.5);
    assert!(json["options"]["properties"]["sparsity"]["description"].is_string());
    paring(&["passes", "prune-weight"])
        .exits(4)
        .complains("did you mean \"prune-weights\"?");
}

#[test]
fn recipes_are_listed_and_printed() {
    let list = paring(&["recipes"]).exits(0).out;
    assert!(list.contains("clean") && list.contains("prune"), "{list}");
    let clean = paring(&["recipes", "clean"]).exits(0).out;
    assert_eq!(clean, paring::registry().recipe("clean").unwrap());
    let json = paring(&["recipes", "clean", "--json"]).exits(0).json();
    assert!(json["passes"].is_array());
    paring(&["recipes", "claen"])
        .exits(4)
        .complains("did you mean \"clean\"?");
    // What is printed is a recipe as a file.
    let dir = Folder::new();
    let (file, recipe) = (dir.model("net.onnx", NET), dir.file("my.yaml", &clean));
    let out = dir.path("out.onnx");
    let args = [
        "optimize",
        &file,
        "-o",
        &out,
        "--no-time",
        "--no-validate",
        "--recipe",
        &recipe,
    ];
    paring(&args).exits(0);
}

#[test]
fn output_may_go_to_a_reader_that_leaves() {
    use std::process::Stdio;
    let mut child = command(&["text", &data("langid_transformer.onnx"), "--full"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_misspelt_command_gets_a_suggestion() {
    paring(&["optimise"]).exits(2).complains("optimize");
    assert!(paring(&["--version"]).exits(0).out.starts_with("paring "));
}

#[test]
fn inspect_looks_at_weights_on_request() {
    let net = data("fmnist_mobilenet_bn.onnx");
    let json = paring(&["inspect", &net, "--json", "--weights"])
        .exits(0)
        .json();
    let weights = json["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 24);
    let last = weights.last().unwrap();
    assert_eq!(last["type"], "float[10,256]");
    assert_eq!(last["spectrum"]["count"], 10);
    let macs: u64 = json["types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["macs"].as_u64().unwrap())
        .sum();
    assert_eq!(json["macs"], macs);
    let plain = paring(&["inspect", &net, "--json"]).exits(0).json();
    assert!(plain.get("weights").is_none());
}

#[test]
fn pages_escape_what_models_are_called() {
    let dir = Folder::new();
    let hostile = "</script><b onclick=x>";
    let text = NET
        .replace("w1", &format!("\"{hostile}\""))
        .replace("[first]", &format!("[\"{hostile}\"]"));
    let (a, b) = (dir.model("a.onnx", &text), dir.path("b.onnx"));
    let pages = ["i.html", "o.html", "d.html"].map(|name| dir.path(name));
    paring(&["inspect", &a, "--html", &pages[0], "-q"]).exits(0);
    let prune = ["--pass", "prune-weights:include-first=true"];
    let report = ["--no-time", "--report", &pages[1]];
    paring(&[&["optimize", &a, "-o", &b][..], &prune, &report].concat()).exits(0);
    paring(&["diff", &a, &b, "--html", &pages[2]]).exits(1);
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        assert!(text.starts_with("<!DOCTYPE html>"), "{page}");
        assert!(text.contains("onclick=x"), "{page}");
        assert!(!text.contains("<b onclick"), "{page}");
        assert_eq!(
            text.matches("<script").count(),
            text.matches("</script>").count()
        );
    }
    paring(&["inspect", &a, "--html", &dir.path("no/i.html")]).exits(8);
}

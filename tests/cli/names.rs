//! Names from a model never steer the terminal.

use super::*;

/// ESC and BEL, the one-byte CSI, and a mark that reorders text, wherever a name can stand.
const HOSTILE: &str = r#"<ir_version: 8, opset_import: ["": 17, "\x1b[31mdomain": 1],
    producer_name: "\x1b[2Jproducer", metadata_props: ["key\x07": "\x1b]0;title\x07"]>
"\x1b[31mgraph" (float["\x1b[31mbatch",4] "in\x1b[31m") => (float["\x1b[31mbatch",4] "out\u{9b}31m")
<float[4,4] "weight\u{202e}" = ones, float[4] "unused\x07" = ones>
{
    ["first\x1b[31m"] "a\x1b[0m" = MatMul ("in\x1b[31m", "weight\u{202e}")
    ["second\u{9b}2J"] "b\x07" = Identity ("a\x1b[0m")
    ["third\x1b[31m"] "out\u{9b}31m" = Relu ("b\x07")
}"#;

#[track_caller]
fn is_tame(what: &str, text: &str) {
    let wild = |c: &char| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c);
    if let Some(c) = text.chars().find(wild) {
        panic!("{what} printed {c:?} in {text:?}");
    }
}

fn check(args: &[&str]) {
    let run = paring(args);
    is_tame(&format!("{args:?}"), &run.out);
    is_tame(&format!("{args:?}"), &run.err);
}

#[test]
fn every_command_escapes_what_a_model_says() {
    let dir = Folder::new();
    let (file, out) = (dir.model("hostile.onnx", HOSTILE), dir.path("out.onnx"));
    let report = dir.path("report.json");
    let (npz, tidy) = (data("fmnist_test.npz"), dir.model("tidy.onnx", TIDY));
    let broken = HOSTILE.replace("Relu (", "Relu <\"odd\\x1b[31m\" = 1> (");
    let broken = dir.model("broken.onnx", &broken);
    let unknown = HOSTILE.replace("Relu (", "\"\\x1b[31mdomain\".\"Op\\x1b[31m\" (");
    let unknown = dir.model("unknown.onnx", &unknown);
    for args in [
        &["inspect", &file][..],
        &["inspect", &file, "--json"],
        &["inspect", &unknown],
        &["text", &file],
        &["text", &file, "--full"],
        &["check", &file],
        &["check", &broken],
        &[
            "optimize",
            &file,
            "-o",
            &out,
            "--no-time",
            "--report",
            &report,
        ],
        &[
            "optimize",
            &file,
            "-o",
            &out,
            "--no-time",
            "-v",
            "--print-ir-after",
            "all",
        ],
        &[
            "optimize",
            &file,
            "-o",
            &out,
            "--no-time",
            "--pass",
            "prune-weights:min-elements=1",
        ],
        &["optimize", &file, "-o", &out, "--no-time", "--data", &npz],
        &["optimize", &unknown, "-o", &out, "--no-time"],
        &["optimize", &broken, "-o", &out],
        &["diff", &file, &tidy],
        &["diff", &file, &tidy, "--json"],
        &["diff", &file, &unknown],
        &["compare", &file, &out],
        &["compare", &file, &tidy],
        &["bench", &file, "--profile", "--min-time", "0.01"],
        &["bench", &unknown],
        &["check", "no\u{1b}[31msuch.onnx"],
        &["optimize", &tidy, "-o", &out, "--pass", "no\u{1b}[31mpass"],
        &[
            "optimize",
            &tidy,
            "-o",
            &out,
            "--pass",
            "prune-weights:no\u{1b}[31mkey=1",
        ],
        &[
            "optimize",
            &tidy,
            "-o",
            &out,
            "--recipe",
            "no\u{1b}[31mrecipe",
        ],
    ] {
        check(args);
    }
    is_tame("the report", &std::fs::read_to_string(&report).unwrap());
}

#[test]
fn escaped_json_says_the_same() {
    let dir = Folder::new();
    let file = dir.model("hostile.onnx", HOSTILE);
    let json = paring(&["inspect", &file, "--json"]).exits(0).json();
    assert_eq!(json["outputs"][0]["name"], "out\u{9b}31m");
    assert_eq!(json["inputs"][0]["name"], "in\u{1b}[31m");
}

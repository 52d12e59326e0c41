//! Passes that change weights, as tract runs what they make.

use paring::engine::TractEngine;
use paring::{Model, Optimizer, Tensor};
use paring_ir::engine::{CompileOptions, Cut, Engine, Plan};
use serde_json::json;

use super::*;

/// A convolution, a transposed one and a product large enough to be expanded in pieces.
const MIXED: &str = r#"<ir_version: 10, opset_import: ["": 21]>
mixed (float[1,8,7,7] x) => (float[1,1100] y)
<float[24,4,3,3] c = random(1), float[24,30,2,2] t = random(2), float[1080,1100] w = random(3),
 int64[2] shape = {1, 1080}>
{
    a = Conv <group: int = 2> (x, c)
    b = ConvTranspose <strides: ints = [1,1]> (a, t)
    r = Reshape (b, shape)
    y = MatMul (r, w)
}"#;

fn clustered(model: &Model, options: Json) -> Model {
    let mut model = model.clone();
    let registry = paring::registry();
    let settings = paring::Settings {
        allow_unvalidated: true,
        time: false,
        validate: false,
        ..paring::Settings::default()
    };
    let optimizer = Optimizer::new(&registry).pass("cluster-weights", options);
    optimizer.settings(settings).run(&mut model).unwrap();
    model
}

fn plan(model: &Model, input: &Tensor, optimize: bool) -> Box<dyn Plan> {
    let cut = Cut::whole(model, vec![input.dims().iter().copied().collect()]);
    let options = CompileOptions {
        optimize,
        threads: 1,
    };
    TractEngine::new().compile(&cut, options).unwrap()
}

fn input() -> Tensor {
    let all: Vec<f32> = (0..8 * 49).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec([1, 8, 7, 7], all).unwrap()
}

/// Checks that tract computes from the form what it computes from snapped weights, and that nothing
/// is looked up any more when the model runs.
fn check_form(model: &Model, form: &str, bits: u32, group: &Json) {
    let x = input();
    let options = |form: &str| {
        json!({"bits": bits, "group": group, "form": form, "scales": "none",
               "sensitive-bits": bits, "min-elements": 512})
    };
    let run = |plan: &mut dyn Plan| plan.run(std::slice::from_ref(&x)).unwrap();
    let snapped = clustered(model, options("snap"));
    let made = clustered(model, options(form));
    let mut fast = plan(&made, &x, true);
    let what = format!("{form} at {bits} bits in groups of {group}");
    let expected = run(&mut *plan(&snapped, &x, true));
    assert_eq!(run(&mut *fast), expected, "{what}");
    let ops = fast.profile(std::slice::from_ref(&x)).unwrap();
    let lookups = ops.iter().filter(|t| t.op == "Gather").count();
    assert_eq!(lookups, 0, "{what}");
}

#[test]
fn tract_expands_every_width_and_form_when_it_loads_the_model() {
    let small = parse_model(&MIXED.replace("1100", "100")).unwrap();
    for bits in 1..=8 {
        for group in [json!("tensor"), json!(24)] {
            for form in ["table", "packed-types"] {
                check_form(&small, form, bits, &group);
            }
        }
    }
}

#[test]
fn tract_expands_long_weights_when_it_loads_the_model() {
    let model = parse_model(MIXED).unwrap();
    for (form, bits) in [
        ("table", 3),
        ("table", 4),
        ("table", 8),
        ("packed-types", 4),
    ] {
        check_form(&model, form, bits, &json!("tensor"));
    }
}

#[test]
fn clean_up_leaves_clustered_weights_small() {
    let dir = Folder::new();
    let input = dir.model("in.onnx", MIXED);
    let (first, second) = (dir.path("first.onnx"), dir.path("second.onnx"));
    let cluster = "cluster-weights:bits=4";
    paring(&[
        "optimize",
        &input,
        "-o",
        &first,
        "--no-time",
        "--pass",
        cluster,
    ])
    .exits(0);
    let run = paring(&[
        "optimize",
        &first,
        "-o",
        &second,
        "--no-time",
        "--recipe",
        "clean",
    ])
    .exits(0);
    assert!(run.out.contains("outputs are equal"), "{}", run.out);
    let size = |path: &str| std::fs::metadata(path).unwrap().len() as f64;
    assert!(size(&first) < 0.16 * size(&input));
    assert!(size(&second) < 1.01 * size(&first));
}

#[test]
fn passes_that_would_undo_clustering_are_refused_by_name() {
    let dir = Folder::new();
    let (input, out) = (dir.model("in.onnx", MIXED), dir.path("out.onnx"));
    for pass in ["prune-weights", "factorize-low-rank"] {
        for form in ["table", "snap"] {
            let first = format!("cluster-weights:form={form}");
            let run = paring(&[
                "optimize",
                &input,
                "-o",
                &out,
                "--no-time",
                "--pass",
                &first,
                "--pass",
                pass,
            ]);
            assert_ne!(run.code, 0);
            run.complains(&format!("{pass} can't run after cluster-weights"));
            run.complains(&format!("run {pass} first"));
            assert!(!exists(&out));
        }
    }
}

#[test]
fn a_budget_of_latency_is_recorded_as_one_of_macs() {
    const WIDE: &str = r#"<ir_version: 8, opset_import: ["": 17]>
    wide (float[1,512] x) => (float[1,64] y) <float[512,2048] v = random(1), float[2048,64] w = random(2)>
    {
        a = MatMul (x, v)
        b = Relu (a)
        y = MatMul (b, w)
    }"#;
    let dir = Folder::new();
    let input = dir.model("in.onnx", WIDE);
    for pass in ["factorize-low-rank", "remove-channels"] {
        let (out, again) = (dir.path("out.onnx"), dir.path("again.onnx"));
        let (report, recipe) = (dir.path("r.json"), dir.path("recipe.yaml"));
        // What is asked for is met whatever the machine does: no slower than before.
        let step = format!("{pass}:budget.latency=1");
        let quiet = ["--no-time", "--no-validate", "--report", &report];
        let args = ["optimize", &input, "-o", &out, "--pass", &step];
        paring(&[&args[..], &quiet].concat()).exits(0);
        let json = &read_json(&report)["recipe"];
        let options = &json["passes"][0][pass];
        let macs = options["budget"]["macs"].as_f64().unwrap();
        assert!(macs > 0.0 && macs <= 1.0, "{json}");
        assert!(options["budget"].get("latency").is_none(), "{json}");
        std::fs::write(&recipe, json.to_string()).unwrap();
        let args = ["optimize", &input, "-o", &again, "--recipe", &recipe];
        paring(&[&args[..], &quiet].concat()).exits(0);
        let same = std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap();
        assert!(same, "{pass}: {json}");
    }
}

#[test]
fn a_report_says_what_clustering_saves() {
    let dir = Folder::new();
    let (input, out, report) = (
        dir.model("in.onnx", MIXED),
        dir.path("out.onnx"),
        dir.path("r.json"),
    );
    let args = [
        "optimize",
        &input,
        "-o",
        &out,
        "--no-time",
        "--recipe",
        "prune-cluster",
        "--report",
        &report,
    ];
    let run = paring(&args).exits(0);
    assert!(run.out.contains("file, zstd"), "{}", run.out);
    let report = read_json(&report);
    let passes = report["passes"].as_array().unwrap().iter();
    let notes = passes.flat_map(|p| p["notes"].as_array().into_iter().flatten());
    let mut notes = notes.map(|n| n.as_str().unwrap());
    assert!(notes.any(|n| n.contains("this pays in bytes, not in latency")));
    let bytes = |side: &str, key: &str| report[side][key].as_f64().unwrap();
    // Seven in ten codes are those of zero.
    assert!(bytes("after", "zstd_bytes") < 0.8 * bytes("after", "file_bytes"));
    assert!(bytes("after", "zstd_bytes") < bytes("before", "zstd_bytes") / 9.0);
}

#[test]
fn one_compression_does_not_undo_another() {
    let folder = Folder::new();
    let input = folder.model(
        "product.onnx",
        r#"<ir_version: 8, opset_import: ["": 18]> g (float[1,64] x) => (float[1,64] y)
        <float[64,64] w = random(1)> { ["fc"] y = MatMul (x, w) }"#,
    );
    let out = folder.path("out.onnx");
    let run = |input: &str, passes: &[&str]| {
        let mut args = vec!["optimize", input, "-o", &out, "--no-time", "-q"];
        passes.iter().for_each(|p| args.extend(["--pass", p]));
        paring(&args)
    };
    for (first, second) in [
        ("cluster-weights", "quantize-int8"),
        ("quantize-weights", "cluster-weights"),
        ("cluster-weights", "factorize-low-rank"),
        ("prune-weights", "factorize-low-rank"),
        ("quantize-int8", "remove-channels"),
    ] {
        let why = format!("{second} can't run after {first}");
        run(&input, &[first, second]).exits(4).complains(&why);
    }
    // In two runs, the model tells.
    run(&input, &["cluster-weights"]).exits(0);
    let clustered = folder.path("clustered.onnx");
    std::fs::rename(&out, &clustered).unwrap();
    run(&clustered, &["quantize-weights"]).exits(5).complains(
        "quantize-weights can't run after cluster-weights, which made the weight of MatMul \"fc\"",
    );
}

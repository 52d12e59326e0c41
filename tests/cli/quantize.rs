//! `--pass quantize-int8` and its relatives, on the models of testdata.

use super::*;

/// Quantizes the small convolution network of testdata. Returns the run and its report.
fn quantize(dir: &Folder, name: &str, step: &str, more: &[&str]) -> (Run, Json) {
    quantize_model(dir, &data("fmnist_mobilenet_bn.onnx"), name, step, more)
}

/// The same of any model that takes such images.
fn quantize_model(dir: &Folder, model: &str, name: &str, step: &str, more: &[&str]) -> (Run, Json) {
    let (out, report) = (dir.path(name), dir.path(&format!("{name}.json")));
    let (calib, eval) = (
        dir.first(32, "fmnist_calib.npz"),
        dir.first(50, "fmnist_test.npz"),
    );
    let args = [
        "optimize",
        model,
        "-o",
        &out,
        "--pass",
        step,
        "--data",
        &calib,
        "--eval",
        &eval,
        "--no-time",
        "--report",
        &report,
    ];
    let run = paring(&[&args, more].concat());
    let report = if exists(&report) {
        read_json(&report)
    } else {
        Json::Null
    };
    (run, report)
}

fn sqnr(report: &Json) -> f64 {
    report["validation"]["sqnr_db"].as_f64().unwrap()
}

#[test]
fn the_default_is_closer_than_plain_rounding_and_shrinks_the_file() {
    let dir = Folder::new();
    let (run, report) = quantize(&dir, "out.onnx", "quantize-int8", &[]);
    run.exits(0);
    assert!(sqnr(&report) > 35.0, "{}", sqnr(&report));
    // Learned rounding is closer than the nearest.
    let plain = "quantize-int8:rounding=nearest,correct-bias=false,equalize=false";
    let (run, nearest) = quantize(&dir, "nearest.onnx", plain, &[]);
    run.exits(0);
    let (learned, nearest) = (sqnr(&report), sqnr(&nearest));
    assert!(learned > nearest + 0.5, "{learned} {nearest}");
    let bytes = |when: &str| report[when]["file_bytes"].as_u64().unwrap();
    assert!(bytes("after") * 100 < bytes("before") * 40);
    paring(&["check", &dir.path("out.onnx")]).exits(0);
    // Once is enough.
    let again = dir.path("again.onnx");
    let (model, calib) = (dir.path("out.onnx"), dir.path("fmnist_calib.npz"));
    let args = [
        "optimize",
        &model,
        "-o",
        &again,
        "--pass",
        "quantize-int8",
        "--data",
        &calib,
    ];
    paring(&[&args[..], &["--no-time"]].concat()).exits(0);
    let kinds = |path: &str| text_of(path).matches("QuantizeLinear").count();
    assert_eq!(kinds(&again), kinds(&model));
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let dir = Folder::new();
    for threads in ["1", "2"] {
        let more = ["--threads", threads, "--no-validate"];
        quantize(&dir, threads, "quantize-int8", &more).0.exits(0);
    }
    let bytes = |name| std::fs::read(dir.path(name)).unwrap();
    assert!(bytes("1") == bytes("2"));
}

#[test]
fn a_limit_keeps_layers_float_until_it_holds() {
    let dir = Folder::new();
    let small = dir.model("small.onnx", SMALL);
    let step = "quantize-int8:min-sqnr-db=45,min-elements=1";
    let (run, report) = quantize_model(&dir, &small, "out.onnx", step, &[]);
    run.exits(0);
    // The limit is kept on the calibration data; other samples differ a little.
    assert!(sqnr(&report) > 43.0, "{}", sqnr(&report));
    let passes = report["passes"].as_array().unwrap();
    let own = passes
        .iter()
        .find(|p| p["name"] == "quantize-int8")
        .unwrap();
    assert!(own["remarks"]["missed"]["kept-float"].as_u64().unwrap() > 0);
    assert!(own["remarks"]["applied"]["quantized"].as_u64().unwrap() > 0);
}

#[test]
fn the_target_of_the_command_line_is_that_of_the_passes() {
    let dir = Folder::new();
    let more = ["--target", "tract", "--no-validate"];
    let (run, report) = quantize(&dir, "out.onnx", "quantize-int8:samples=16", &more);
    run.exits(0);
    assert_eq!(
        report["recipe"]["passes"][0]["quantize-int8"]["target"],
        "tract"
    );
    let profile = "opset: 13\nlayers:\n  Gemm: {output: float}\n";
    let profile = dir.file("mine.yaml", profile);
    let more = ["--target", &profile, "--no-validate"];
    let (run, report) = quantize(&dir, "mine.onnx", "quantize-int8:samples=16", &more);
    run.exits(0);
    assert_eq!(
        report["recipe"]["passes"][0]["quantize-int8"]["target"]["opset"],
        13
    );
    let (run, _) = quantize(&dir, "x.onnx", "quantize-int8:target=trakt", &[]);
    run.exits(4).complains("did you mean \"tract\"?");
    let (run, _) = quantize(&dir, "x.onnx", "prune-weights", &["--target", "tract"]);
    run.exits(2).complains("no pass of the recipe has a target");
}

#[test]
fn weights_alone_and_dynamic_ranges_need_no_data() {
    let dir = Folder::new();
    for (step, least) in [("quantize-weights", 30.0), ("quantize-dynamic", 25.0)] {
        let (out, path) = (dir.path("out.onnx"), dir.path("report.json"));
        let (model, eval) = (
            data("langid_transformer.onnx"),
            dir.first(50, "langid_test.npz"),
        );
        let args = [
            "optimize",
            &model,
            "-o",
            &out,
            "--pass",
            step,
            "--eval",
            &eval,
            "--no-time",
            "--report",
            &path,
        ];
        paring(&args).exits(0);
        let report = read_json(&path);
        assert!(sqnr(&report) > least, "{step} {}", sqnr(&report));
        paring(&["check", &out]).exits(0);
    }
}

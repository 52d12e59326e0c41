//! `paring optimize`.

use super::*;

/// Optimizes without timing, which takes its time.
fn optimize(input: &str, output: &str, more: &[&str]) -> Run {
    let args = ["optimize", input, "-o", output, "--no-time"];
    paring(&[&args, more].concat())
}

/// The names of the passes of a report that changed something.
fn changed(report: &Json) -> Vec<String> {
    let passes = report["passes"].as_array().unwrap().iter();
    let changed = passes.filter(|p| p["changed"] == true);
    changed
        .map(|p| p["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_clean_up_is_what_runs_by_default() {
    let dir = Folder::new();
    let (out, report) = (dir.path("out.onnx"), dir.path("report.json"));
    let run = optimize(
        &data("langid_transformer.onnx"),
        &out,
        &["--report", &report],
    )
    .exits(0);
    assert!(run.out.contains("validated"), "{}", run.out);
    assert!(run.out.contains("lift-constants"), "{}", run.out);
    assert_eq!(run.err, "");
    paring(&["check", &out]).exits(0);
    let report = read_json(&report);
    assert!(report["after"]["nodes"].as_u64() < report["before"]["nodes"].as_u64());
    assert!(changed(&report).contains(&"lift-constants".to_owned()));
    assert_eq!(report["changed"], true);
}

#[test]
fn a_report_has_every_key_that_is_documented() {
    let dir = Folder::new();
    let (out, path) = (dir.path("out.onnx"), dir.path("report.json"));
    let input = dir.model("net.onnx", NET);
    let args = [
        "optimize",
        &input,
        "-o",
        &out,
        "--report",
        &path,
        "--pass",
        "prune-weights",
        "-q",
    ];
    paring(&args).exits(0);
    let report = read_json(&path);
    let has = |value: &Json, keys: &[&str]| {
        for key in keys {
            assert!(value.get(key).is_some(), "no {key} in {value}");
        }
    };
    has(
        &report,
        &[
            "paring",
            "input",
            "output",
            "changed",
            "before",
            "after",
            "passes",
            "validation",
            "latency",
            "recipe",
            "seed",
            "threads",
            "engine",
            "written",
            "notes",
        ],
    );
    for side in ["before", "after"] {
        has(&report[side], CONTENT);
        assert!(report[side]["file_bytes"].as_u64().unwrap() > 0);
    }
    let pass = report["passes"].as_array().unwrap().last().unwrap();
    has(
        pass,
        &[
            "name", "effect", "options", "changed", "seconds", "remarks", "before", "after",
        ],
    );
    has(&pass["remarks"], &["applied", "missed", "kept"]);
    assert_eq!(
        (&pass["name"], &pass["effect"]),
        (&"prune-weights".into(), &"lossy".into())
    );
    has(&pass["difference"], &["samples", "max_abs", "sqnr_db"]);
    has(
        &report["validation"],
        &[
            "engine",
            "samples",
            "data",
            "max_abs",
            "max_rel",
            "sqnr_db",
            "cosine",
            "top1_agreement",
            "accuracy_before",
            "accuracy_after",
            "top5_before",
            "top5_after",
            "outputs",
            "notes",
        ],
    );
    has(
        &report["latency"],
        &[
            "before_ms",
            "after_ms",
            "ratio",
            "ratio_low",
            "ratio_high",
            "threads",
            "runs",
        ],
    );
    has(&report["written"], &["bytes", "side_file", "left_behind"]);
    let first = report["passes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| !p["required_by"].is_null());
    assert_eq!(first.unwrap()["required_by"], "prune-weights");
}

#[test]
fn passes_run_after_the_recipe_in_order() {
    let dir = Folder::new();
    let input = dir.model("net.onnx", NET);
    let recipe = dir.file("recipe.yaml", "passes:\n  - eliminate-identities\n");
    let (out, path) = (dir.path("out.onnx"), dir.path("report.json"));
    let more = [
        "--recipe",
        &recipe,
        "--pass",
        "eliminate-dead-code",
        "--pass",
        "prune-weights:sparsity=0.25,by-name.\"fir*\"=skip",
        "--report",
        &path,
    ];
    optimize(&input, &out, &more).exits(0);
    let report = read_json(&path);
    let names: Vec<&str> = report["passes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(&names[..2], ["eliminate-identities", "eliminate-dead-code"]);
    assert_eq!(*names.last().unwrap(), "prune-weights");
    let expected = serde_json::json!({"passes": ["eliminate-identities", "eliminate-dead-code",
        {"prune-weights": {"sparsity": 0.25, "by-name": {"fir*": "skip"}}}]});
    assert_eq!(report["recipe"], expected);
    // Of the 32 x 32 weights of the second layer a quarter is zero; the first is left alone.
    assert_eq!(report["after"]["zeros"], 256);
}

#[test]
fn pruning_shows_what_it_costs() {
    let dir = Folder::new();
    let (out, path) = (dir.path("out.onnx"), dir.path("report.json"));
    let calib = dir.first(32, "fmnist_calib.npz");
    let test = dir.first(50, "fmnist_test.npz");
    let input = data("fmnist_mobilenet_bn.onnx");
    let pass = "prune-weights:sparsity=0.2,criterion=magnitude,recover=none";
    let more = [
        "--pass", pass, "--data", &calib, "--eval", &test, "--report", &path,
    ];
    let run = optimize(&input, &out, &more).exits(0);
    assert!(run.out.contains("accuracy"), "{}", run.out);
    assert!(
        !run.out.contains("measured on calibration data"),
        "{}",
        run.out
    );
    let report = read_json(&path);
    let accuracy = |key: &str| report["validation"][key].as_f64().unwrap();
    assert!(accuracy("accuracy_before") > 0.8);
    assert!((0.0..=1.0).contains(&accuracy("accuracy_after")));
    assert!(report["after"]["sparsity"].as_f64() > report["before"]["sparsity"].as_f64());

    let more = ["--pass", pass, "--data", &calib];
    let run = optimize(&input, &out, &more).exits(0);
    assert!(
        run.out.contains("measured on calibration data"),
        "{}",
        run.out
    );
}

#[test]
fn the_output_may_be_the_input() {
    let dir = Folder::new();
    let file = dir.model("net.onnx", NET);
    optimize(&file, &file, &[]).exits(0);
    assert!(!text_of(&file).contains("Identity"));
    assert_eq!(dir.names(), ["net.onnx"]);
}

#[test]
fn a_pipe_carries_the_model_and_nothing_else() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    optimize(&file, &out, &[]).exits(0);
    let bytes = std::fs::read(&file).unwrap();
    let run = paring_on(&bytes, &["optimize", "-", "-o", "-", "--no-time"]).exits(0);
    assert!(
        run.bytes == std::fs::read(&out).unwrap(),
        "the same model as in a file"
    );
    run.complains("validated");
    let quiet = paring_on(&bytes, &["optimize", "-", "-o", "-", "--no-time", "-q"]).exits(0);
    assert_eq!(quiet.err, "");
    let checked = paring_on(&quiet.bytes, &["check", "-"]).exits(0);
    assert!(checked.out.contains("valid"));
}

#[test]
fn quiet_means_quiet() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let run = optimize(&file, &out, &["-q"]).exits(0);
    assert_eq!((&*run.out, &*run.err), ("", ""));
    // Errors are told all the same.
    optimize(&dir.path("nothing.onnx"), &out, &["-q"])
        .exits(3)
        .complains("nothing.onnx");
}

#[test]
fn each_kind_of_failure_has_its_code_and_writes_nothing() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let garbage = dir.file("garbage.onnx", "this is no model");
    let limits = dir.file("limits.yaml", "passes: [clean-up]\n");
    let no_folder = dir.path("no/folder/out.onnx");
    let npz = data("fmnist_test.npz");
    let cases: [(i32, &str, &[&str], &str); 18] = [
        (2, &file, &["--no-such-option"], "--no-such-option"),
        (2, &file, &["--threads", "0"], "1..=256"),
        (
            2,
            &file,
            &["--report", "report.txt"],
            "must end in .json or .html",
        ),
        (2, &file, &["--dim", "batch"], "--dim"),
        (2, &file, &["--input", "x=1,y"], "--input"),
        (2, &file, &["--dim", "batch=0"], "sizes start at 1"),
        (2, &file, &["--input", "x=0,16"], "sizes start at 1"),
        (5, &file, &["--label-output", "z"], "no output \"z\""),
        (3, &garbage, &[], "garbage.onnx"),
        (3, "/no/such/model.onnx", &[], "/no/such/model.onnx"),
        (
            4,
            &file,
            &["--recipe", &limits],
            "passes[0].clean-up: there is no such pass",
        ),
        (4, &file, &["--recipe", "claen"], "did you mean \"clean\"?"),
        (
            4,
            &file,
            &["--pass", "prune-wieghts"],
            "did you mean \"prune-weights\"?",
        ),
        (
            4,
            &file,
            &["--pass", "prune-weights:sparsty=1"],
            "did you mean \"sparsity\"?",
        ),
        (
            4,
            &file,
            &["--pass", "prune-weights:sparsity=2"],
            "from 0 to 1, found 2",
        ),
        (
            4,
            &file,
            &["--stop-after", "lift-constant"],
            "did you mean \"lift-constants\"?",
        ),
        (4, &file, &["--print-ir-after", "fold"], "--print-ir-after"),
        (5, &file, &["--data", &npz], "x"),
    ];
    for (code, input, more, message) in cases {
        optimize(input, &out, more).exits(code).complains(message);
        assert!(!exists(&out), "{more:?}");
    }
    optimize(&file, &no_folder, &[])
        .exits(8)
        .complains("there is no folder");
    optimize(&file, &dir.0.path().display().to_string(), &[])
        .exits(8)
        .complains("is a folder");
}

#[test]
fn names_of_inputs_and_dimensions_must_be_the_models() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    for more in [["--dim", "bach=2"], ["--input", "xx=2,16"]] {
        let run = optimize(&file, &out, &more);
        assert_ne!(run.code, 0, "{more:?}: {}", run.out);
        assert!(!exists(&out));
    }
    // Also where the sizes come from the user's samples.
    let (file, npz) = (data("fmnist_mobilenet_bn.onnx"), data("fmnist_test.npz"));
    let run = optimize(&file, &out, &["--dim", "bach=2", "--eval", &npz]).exits(5);
    run.complains("did you mean \"batch\"?");
    assert!(!exists(&out));
}

#[test]
fn broken_limits_write_nothing_and_leave_what_is_there() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let recipe = dir.file(
        "recipe.yaml",
        "passes: [{prune-weights: {sparsity: 0.9}}]\naccept: {min-sqnr-db: 60, max-size-ratio: 0.1}\n",
    );
    let (report, more) = (dir.path("report.json"), ["--recipe", &recipe]);
    let run = optimize(&file, &out, &[&more[..], &["--report", &report]].concat()).exits(6);
    run.complains("min-sqnr-db 60: found");
    run.complains("max-size-ratio 0.1: found");
    run.complains("nothing is written");
    assert!(!exists(&out) && !exists(&report));

    std::fs::write(&out, "what was there").unwrap();
    optimize(&file, &out, &more).exits(6);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "what was there");
    let before = std::fs::read(&file).unwrap();
    optimize(&file, &file, &more).exits(6);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_lossy_pass_that_breaks_its_limit_is_undone_and_told() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let path = dir.path("report.json");
    let pass = "prune-weights:sparsity=0.9,accept.min-sqnr-db=60";
    let more = [
        "--pass",
        "eliminate-identities",
        "--pass",
        pass,
        "--report",
        &path,
    ];
    let run = optimize(&file, &out, &more).exits(0);
    assert!(run.out.contains("undone"), "{}", run.out);
    let report = read_json(&path);
    let last = report["passes"].as_array().unwrap().last().unwrap();
    assert_eq!(last["undone"][0]["limit"], "min-sqnr-db");
    assert_eq!(changed(&report), ["eliminate-identities"]);
    assert_eq!(report["after"]["zeros"], report["before"]["zeros"]);
}

#[test]
fn limits_want_measurements() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let recipe = dir.file("recipe.yaml", "passes: []\naccept: {min-cosine: 0.9}\n");
    let run = optimize(&file, &out, &["--recipe", &recipe, "--no-validate"]).exits(5);
    run.complains("not asked for (--no-validate)");
    // Without labels there is no accuracy to limit.
    let recipe = dir.file(
        "recipe.yaml",
        "passes: []\naccept: {max-accuracy-drop: 1}\n",
    );
    for more in [
        ["--recipe", &recipe],
        ["--pass", "prune-weights:accept.max-accuracy-drop=1"],
    ] {
        let run = optimize(&file, &out, &more).exits(5);
        run.complains("max-accuracy-drop wants samples with labels; give --eval");
        assert!(!exists(&out));
    }
}

#[test]
fn exact_passes_run_where_the_engine_can_not_and_lossy_ones_on_request() {
    let dir = Folder::new();
    let (file, out) = (dir.model("strange.onnx", STRANGE), dir.path("out.onnx"));
    let path = dir.path("report.json");
    let run = optimize(&file, &out, &["--report", &path]).exits(0);
    assert!(run.out.contains("not validated"), "{}", run.out);
    assert!(!text_of(&out).contains("Identity"));
    let report = read_json(&path);
    assert_eq!(report["validation"], Json::Null);
    assert!(report["unvalidated"].as_str().unwrap().contains("Det"));

    std::fs::remove_file(&out).unwrap();
    let pass = ["--pass", "prune-weights"];
    let run = optimize(&file, &out, &pass).exits(5);
    run.complains("--allow-unvalidated");
    assert!(!exists(&out));
    let run = optimize(&file, &out, &[&pass[..], &["--allow-unvalidated"]].concat()).exits(0);
    assert!(run.out.contains("not validated"), "{}", run.out);
    let limit = [
        "--pass",
        "prune-weights:accept.min-cosine=0.9",
        "--allow-unvalidated",
    ];
    optimize(&file, &out, &limit)
        .exits(5)
        .complains("can't be checked");
}

#[test]
fn what_is_not_asked_for_is_not_measured() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let path = dir.path("report.json");
    let run = optimize(&file, &out, &["--no-validate", "--report", &path]).exits(0);
    assert!(run.out.contains("not asked for"), "{}", run.out);
    let report = read_json(&path);
    assert_eq!(
        (&report["validation"], &report["latency"]),
        (&Json::Null, &Json::Null)
    );
    let args = [
        "optimize",
        &file,
        "-o",
        &out,
        "--no-validate",
        "--report",
        &path,
    ];
    paring(&args).exits(0);
    let report = read_json(&path);
    assert_eq!(report["validation"], Json::Null);
    assert!(report["latency"]["ratio"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_same_bytes_come_from_every_run_and_number_of_threads() {
    let dir = Folder::new();
    let input = data("langid_transformer.onnx");
    let mut all = Vec::new();
    for (i, threads) in ["1", "1", "2", "8"].into_iter().enumerate() {
        let out = dir.path(&format!("{i}.onnx"));
        let more = [
            "--recipe",
            "prune",
            "--no-validate",
            "--threads",
            threads,
            "-q",
        ];
        optimize(&input, &out, &more).exits(0);
        all.push(std::fs::read(&out).unwrap());
    }
    assert!(all.iter().all(|b| *b == all[0]));
}

#[test]
fn symbolic_dimensions_stay_unless_they_are_to_be_fixed() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let input = || paring(&["inspect", &out, "--json"]).exits(0).json()["inputs"][0].clone();
    optimize(&file, &out, &["--dim", "batch=3"]).exits(0);
    assert_eq!(input()["type"], "float[batch,16]");
    optimize(&file, &out, &["--dim", "batch=3", "--fix-dims"]).exits(0);
    assert_eq!(input()["type"], "float[3,16]");
    optimize(&file, &out, &["--input", "x=5,16", "--fix-dims"]).exits(0);
    assert_eq!(input()["type"], "float[5,16]");
    // A size that was only guessed for running is nobody's wish.
    optimize(&file, &out, &["--fix-dims"]).exits(0);
    assert_eq!(input()["type"], "float[batch,16]");
}

#[test]
fn a_fixed_symbol_is_fixed_in_the_outputs_too() {
    // Nothing is known of the operator, so only the symbol says what size the output has.
    let dir = Folder::new();
    let net = r#"<ir_version: 8, opset_import: ["": 17, "x": 1]>
net (float[batch,16] x) => (float[batch,other] y) { y = x.Strange (x) }"#;
    let (file, out) = (dir.model("m.onnx", net), dir.path("out.onnx"));
    for given in [["--dim", "batch=3"], ["--input", "x=3,16"]] {
        let [option, value] = given;
        let args = [option, value, "--fix-dims", "--no-validate"];
        optimize(&file, &out, &args).exits(0);
        let text = text_of(&out);
        assert!(
            text.contains("(float[3,16] x) => (float[3,other] y)"),
            "{text}"
        );
    }
}

#[test]
fn a_run_can_stop_after_a_pass() {
    let dir = Folder::new();
    let (out, path) = (dir.path("out.onnx"), dir.path("report.json"));
    let more = ["--stop-after", "lift-constants", "--report", &path];
    optimize(&data("langid_transformer.onnx"), &out, &more).exits(0);
    let report = read_json(&path);
    let passes = report["passes"].as_array().unwrap();
    assert_eq!(passes.last().unwrap()["name"], "lift-constants");
    paring(&["check", &out]).exits(0);
    let more = ["--pass", "fold-pad", "--stop-after", "lift-constants"];
    let run = optimize(&data("langid_transformer.onnx"), &out, &more).exits(4);
    run.complains("not among the passes of the recipe");
}

#[test]
fn the_graph_can_be_printed_after_passes() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let run = optimize(&file, &out, &["--print-ir-after", "eliminate-identities"]).exits(0);
    run.complains("// after eliminate-identities");
    let printed = run
        .err
        .split("// after eliminate-identities\n")
        .nth(1)
        .unwrap();
    let printed = printed.split("// after").next().unwrap();
    assert!(
        printed.contains("MatMul") && !printed.contains("Identity"),
        "{printed}"
    );
    let run = optimize(&file, &out, &["--print-ir-after", "all"]).exits(0);
    run.complains("// after eliminate-identities");
    assert!(
        !run.err.contains("// after fold-pad"),
        "only what changed something"
    );
}

#[test]
fn the_file_says_which_pass_made_what() {
    let dir = Folder::new();
    let (out, again) = (dir.path("out.onnx"), dir.path("again.onnx"));
    let input = data("fmnist_mobilenet_bn.onnx");
    optimize(&input, &out, &["--no-validate"]).exits(0);
    assert!(text_of(&out).contains("paring.provenance"));
    let diff = paring(&["diff", &input, &out]).exits(1);
    assert!(diff.out.contains("by fold-batch-norm"), "{}", diff.out);
    // A second clean-up finds nothing to do, and so writes the same file.
    optimize(&out, &again, &["--no-validate"]).exits(0);
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&out).unwrap());
    for from in [&input, &out] {
        optimize(from, &again, &["--no-validate", "--no-provenance"]).exits(0);
        assert!(!text_of(&again).contains("paring.provenance"));
    }
}

#[test]
fn what_nothing_changed_is_written_as_it_was_read() {
    let dir = Folder::new();
    let (file, out) = (dir.model("tidy.onnx", TIDY), dir.path("out.onnx"));
    let run = optimize(&file, &out, &[]).exits(0);
    assert!(run.out.contains("nothing to do"), "{}", run.out);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&file).unwrap());
    let input = data("fmnist_mobilenet_bn.onnx");
    let recipe = dir.file("none.yaml", "passes: []\n");
    optimize(&input, &out, &["--recipe", &recipe, "--no-validate"]).exits(0);
    assert_eq!(text_of(&out), text_of(&input));
}

#[test]
fn a_model_that_is_invalid_is_not_optimized() {
    let dir = Folder::new();
    let invalid = "<ir_version: 8, opset_import: [\"\": 17]>
        net (float[2] x) => (float[2] y) { [odd] y = Softmax <axs = 1> (x) }";
    let (file, out) = (dir.model("invalid.onnx", invalid), dir.path("out.onnx"));
    optimize(&file, &out, &[]).exits(3).complains("odd");
    assert!(!exists(&out));
}

#[test]
fn weights_can_go_into_a_file_beside_the_model() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let path = dir.path("report.json");
    optimize(
        &file,
        &out,
        &["--external-data", "always", "--report", &path],
    )
    .exits(0);
    let report = read_json(&path);
    let side = report["written"]["side_file"].as_str().unwrap();
    assert!(exists(side), "{side}");
    paring(&["check", &out]).exits(0);
    let inside = dir.path("inside.onnx");
    optimize(&out, &inside, &["--external-data", "never"]).exits(0);
    paring(&["diff", &out, &inside]).exits(0);
    // A side file that is not needed any more stays, and is named.
    let run = optimize(&out, &out, &["--external-data", "never"]).exits(0);
    assert!(
        run.out
            .contains("belongs to the old model and is still there"),
        "{}",
        run.out
    );
    assert!(exists(side));
}

/// An exact pass with a bug: it doubles the outputs.
mod buggy {
    use paring::{
        Changed, Effect, Model, NewOp, OptionError, OptionSet, Pass, PassContext, PassError,
        PassInfo,
    };

    pub(super) struct DoubleOutputs;

    #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Options {}

    impl Pass for DoubleOutputs {
        const INFO: PassInfo = PassInfo::new("double-outputs", "Double outputs", Effect::Exact);
        type Options = Options;

        fn new(_: OptionSet<Options>) -> Result<Self, OptionError> {
            Ok(DoubleOutputs)
        }

        fn run(&self, model: &mut Model, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
            let graph = &mut model.graph;
            let relu = graph.ops().find(|&op| graph.op(op).is("Relu"));
            let Some(relu) = relu else {
                return Ok(Changed::No);
            };
            let input = graph.op(relu).input(0);
            let double = NewOp::new("Add")
                .optional_input(input)
                .optional_input(input)
                .output("d");
            let double = graph.add_op(double)?;
            let output = graph.op(double).output(0);
            graph.set_input(relu, 0, output)?;
            Ok(Changed::Yes)
        }
    }
}

#[test]
fn a_bug_of_a_pass_leaves_what_reproduces_it() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let registry = paring::registry().with::<buggy::DoubleOutputs>();
    let args = [
        "paring",
        "optimize",
        &file,
        "-o",
        &out,
        "-q",
        "--no-time",
        "--pass",
        "lift-constants",
        "--pass",
        "eliminate-identities",
        "--pass",
        "double-outputs",
        "--pass",
        "fuse-gemm",
    ];
    let code = paring::cli::run(&registry, args.map(Into::into));
    assert_eq!(
        format!("{code:?}"),
        format!("{:?}", std::process::ExitCode::from(7))
    );
    assert!(!exists(&out));
    let recipe = std::fs::read_to_string(dir.path("out.reproducer/recipe.yaml")).unwrap();
    assert!(
        recipe.ends_with("- eliminate-identities\n- double-outputs\n"),
        "{recipe}"
    );
    assert_eq!(
        text_of(&dir.path("out.reproducer/model.onnx")),
        text_of(&file)
    );
}

#[test]
fn what_no_engine_can_run_is_named() {
    let dir = Folder::new();
    let input = dir.model(
        "odd.onnx",
        r#"<ir_version: 9, opset_import: ["": 18]>
        odd (float[1,4] x) => (float[4,1] y) {
          y = Transpose <perm = [0, 7]> (x)
        }"#,
    );
    let run = optimize(&input, &dir.path("out.onnx"), &[]).exits(0);
    assert!(run.out.contains("not validated"), "{}", run.out);
    let note = "the model contradicts itself: odd / Transpose \"y\": axis 7";
    assert!(run.out.contains(note), "{}", run.out);
}

//! A program with its own pass has the whole tool, recipes included.

use std::path::PathBuf;
use std::process::Command;

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../testdata/fmnist_mobilenet_bn.onnx")
}

fn tool(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_paring-example-cli"))
        .args(args)
        .output()
        .expect("starts")
}

#[test]
fn the_pass_stands_beside_the_built_in_ones() {
    let out = tool(&["passes"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("name-operators") && text.contains("fold-constants"),
        "{text}"
    );
    let out = tool(&["passes", "name-operators"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("What stands before the type"));
    let out = tool(&["schema"]);
    assert!(String::from_utf8_lossy(&out.stdout).contains("name-operators"));
}

#[test]
fn a_recipe_mixes_both() {
    let folder = std::env::temp_dir().join(format!("paring-example-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let recipe = folder.join("recipe.yaml");
    std::fs::write(
        &recipe,
        "passes:\n  - fold-batch-norm\n  - name-operators: { overwrite: true, prefix: p- }\n",
    )
    .expect("writes");
    let out = folder.join("out.onnx");
    let run = tool(&[
        "optimize",
        model().to_str().expect("UTF-8"),
        "-o",
        out.to_str().expect("UTF-8"),
        "--recipe",
        recipe.to_str().expect("UTF-8"),
        "--no-time",
    ]);
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let text = tool(&["text", out.to_str().expect("UTF-8")]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(
        text.contains("p-Conv_0\"] ") && !text.contains("= BatchNormalization"),
        "{text}"
    );
    std::fs::remove_dir_all(&folder).expect("cleans up");
}

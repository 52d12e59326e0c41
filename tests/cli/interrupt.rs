//! Ctrl-C.

#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

#[test]
fn ctrl_c_stops_cleanly_and_writes_nothing() {
    let dir = Folder::new();
    let out = dir.path("out.onnx");
    let input = data("langid_transformer.onnx");
    let args = [
        "optimize",
        &input,
        "-o",
        &out,
        "--print-ir-after",
        "lift-constants",
    ];
    let mut child = command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The pass has run, and passes, validation and timing are still to come.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines
        .find(|l| l.as_ref().unwrap().contains("after lift-constants"))
        .unwrap()
        .unwrap();
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(
        rest.last().unwrap().contains("stopped; nothing is written"),
        "{rest:?}"
    );
    assert_eq!(dir.names(), Vec::<String>::new());
}

//! The command line, from the outside: the program runs over small models and the ones in
//! testdata.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

mod compress;
mod differ;
mod interrupt;
mod look;
mod names;
mod optimize;
mod prune;
mod quantize;
mod recipes;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use paring::onnx::{ReadOptions, read_file};
use paring::text::{PrintOptions, parse_model, print_model};
use serde_json::Value as Json;
use tempfile::TempDir;

/// What a run of the program gave.
struct Run {
    code: i32,
    bytes: Vec<u8>,
    out: String,
    err: String,
}

impl Run {
    /// Standard output as JSON.
    fn json(&self) -> Json {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {}", self.out))
    }

    /// The same run, which must have ended with this code.
    #[track_caller]
    fn exits(self, code: i32) -> Run {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        self
    }

    /// Checks a part of what went to standard error.
    #[track_caller]
    fn complains(&self, part: &str) {
        assert!(self.err.contains(part), "{part:?} is not in {}", self.err);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paring"));
    command
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("COLUMNS");
    command
}

/// Runs the program.
fn paring(args: &[&str]) -> Run {
    paring_on(&[], args)
}

/// Runs the program with something on standard input.
fn paring_on(input: &[u8], args: &[&str]) -> Run {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not read its input closes the pipe, which is no failure here.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        bytes: output.stdout,
    }
}

/// Two convolutions that take images as those of `fmnist_calib.npz`.
const SMALL: &str = r#"<ir_version: 10, opset_import: ["": 18]>
small (float[batch,1,28,28] input) => (float[batch,10] y)
<float[16,1,3,3] a = random(1), float[32,16,3,3] b = random(2), float[10,32] c = random(3), float[10] d = random(4)>
{
    p = Conv <strides: ints = [2,2]> (input, a) q = Relu (p)
    r = Conv <strides: ints = [2,2]> (q, b) s = Relu (r)
    t = GlobalAveragePool (s) u = Flatten (t)
    y = Gemm <transB: int = 1> (u, c, d)
}"#;

/// A file of testdata.
fn data(name: &str) -> String {
    format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder that is gone after the test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    /// The path of a file in it.
    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes a model given as text.
    fn model(&self, name: &str, text: &str) -> String {
        let model = parse_model(text).unwrap_or_else(|e| panic!("{e} in {text}"));
        paring::write(&model, self.path(name)).unwrap();
        self.path(name)
    }

    /// The first samples of a file of testdata, in a file of the same name.
    fn first(&self, samples: usize, name: &str) -> String {
        let (path, source) = (self.path(name), std::fs::File::open(data(name)).unwrap());
        let mut whole = zip::ZipArchive::new(source).unwrap();
        let mut part = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for i in 0..whole.len() {
            let (mut array, mut bytes) = (whole.by_index(i).unwrap(), Vec::new());
            array.read_to_end(&mut bytes).unwrap();
            // Behind the magic number and the version stands the length of the header.
            let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            let header = std::str::from_utf8(&bytes[10..start]).unwrap();
            let (before, rest) = header.split_once("'shape': (").unwrap();
            let (all, after) = rest.split_once(',').unwrap();
            let sample = (bytes.len() - start) / all.parse::<usize>().unwrap();
            let shorter = format!("{before}'shape': ({samples},{}", after.trim_end());
            part.start_file(array.name(), zip::write::SimpleFileOptions::default())
                .unwrap();
            part.write_all(&bytes[..10]).unwrap();
            let width = start - 11;
            writeln!(part, "{shorter:width$}").unwrap();
            part.write_all(&bytes[start..start + samples * sample])
                .unwrap();
        }
        part.finish().unwrap();
        path
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn read_json(path: &str) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// All that a model file says, as text.
fn text_of(path: &str) -> String {
    let loaded = read_file(Path::new(path), &ReadOptions::default()).unwrap();
    print_model(&loaded.model, &PrintOptions::full())
}

fn exists(path: &str) -> bool {
    PathBuf::from(path).exists()
}

/// The keys that say what is in a model, of `inspect` and of both sides of a report.
const CONTENT: &[&str] = &[
    "nodes",
    "constants",
    "operators",
    "parameters",
    "weight_bytes",
    "zeros",
    "sparsity",
    "macs",
    "macs_assumed",
    "macs_unknown",
    "effective_macs",
    "file_bytes",
    "opset",
];

/// A network of two layers, whose Identity the clean-up removes.
const NET: &str = r#"<ir_version: 8, opset_import: ["": 17]>
net (float[batch,16] x) => (float[batch,32] y)
<float[16,32] w1 = random(1), float[32,32] w2 = random(2)>
{
    [first] a = MatMul (x, w1)
    [same] b = Identity (a)
    [act] c = Relu (b)
    [last] y = MatMul (c, w2)
}"#;

/// A network that no pass of the clean-up changes.
const TIDY: &str = r#"<ir_version: 8, opset_import: ["": 17]>
net (float[batch,16] x) => (float[batch,32] y)
<float[16,32] w = random(1)>
{
    [first] a = MatMul (x, w)
    [act] y = Relu (a)
}"#;

/// A valid network that the engine can't run.
const STRANGE: &str = r#"<ir_version: 8, opset_import: ["": 17]>
net (float[16,16] x) => (float y)
<float[16,16] w = random(1)>
{
    [first] a = MatMul (x, w)
    [same] b = Identity (a)
    [det] y = Det (b)
}"#;

//! Files that lie: each is refused with an error that says where and why, or read, in little
//! time and memory and without a panic. And outputs that must survive what happens to them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use paring::onnx::{
    ExternalData, Loaded, ReadError, ReadOptions, WriteOptions, read_bytes, read_file, to_bytes,
    write_file,
};
use paring_ir::{Graph, Model, NewOp, Tensor};

// ---- the wire, written by hand ----

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A length-delimited field.
fn field(number: u64, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [
        varint(number << 3 | 2),
        varint(body.len() as u64),
        body.to_vec(),
    ]
    .concat()
}

/// A number field.
fn int(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

/// A file with this graph.
fn file(graph: &[u8]) -> Vec<u8> {
    let opset = field(8, int(2, 17));
    [int(1, 8), opset, field(7, graph)].concat()
}

fn node(op_type: &str, rest: &[u8]) -> Vec<u8> {
    field(1, [field(4, op_type), rest.to_vec()].concat())
}

fn attribute(name: &str, kind: u64, value: &[u8]) -> Vec<u8> {
    field(5, [field(1, name), int(20, kind), value.to_vec()].concat())
}

/// A small model with a bit of everything.
fn sample() -> Vec<u8> {
    let ty = field(1, [int(1, 1), field(2, field(1, field(2, "n")))].concat());
    let info = |number, name: &str| field(number, [field(1, name), field(2, &ty)].concat());
    let tensor = [int(1, 2), int(2, 1), field(8, "w"), field(9, [0u8; 8])].concat();
    let typed = [int(1, 2), int(2, 7), field(7, [1, 2]), field(8, "k")].concat();
    let branch = [
        node("Neg", &[field(1, "w"), field(2, "t")].concat()),
        field(2, "branch"),
        info(12, "t"),
    ]
    .concat();
    let choice = [
        field(1, "x"),
        field(2, "y"),
        attribute("then_branch", 5, &field(6, &branch)),
        attribute("else_branch", 5, &field(6, &branch)),
        attribute("ints", 7, &[int(8, 1), int(8, 2)].concat()),
    ];
    let graph = [
        node("If", &choice.concat()),
        field(2, "g"),
        field(5, tensor),
        field(5, typed),
        info(11, "x"),
        info(12, "y"),
        info(13, "w"),
    ];
    let function = [
        field(1, "F"),
        field(4, "a"),
        field(5, "b"),
        field(7, [field(1, "a"), field(2, "b"), field(4, "Relu")].concat()),
        field(10, "d"),
    ];
    let pair = [field(1, "key"), field(2, "value")].concat();
    [
        file(&graph.concat()),
        field(14, pair),
        field(25, function.concat()),
    ]
    .concat()
}

fn read(bytes: impl Into<Bytes>) -> Result<Loaded, ReadError> {
    read_bytes(bytes.into(), None, &ReadOptions::default())
}

/// Reads what should be refused, and quickly.
#[track_caller]
fn refused(bytes: Vec<u8>) -> String {
    let start = Instant::now();
    let error = read(bytes).expect_err("it must be refused");
    assert!(start.elapsed() < Duration::from_secs(5), "too slow");
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    text
}

/// A model that is read must also be sound, and be written so that it can be read again.
fn follow_up(loaded: &Loaded) {
    let graph = &loaded.model.graph;
    graph.check_invariants().expect("a sound graph");
    if let Ok(bytes) = to_bytes(&loaded.model) {
        read(bytes).expect("what is written can be read");
    }
}

// ---- damaged files ----

#[test]
fn the_sample_is_valid() {
    let loaded = read(sample()).expect("valid");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(loaded.model.functions.len(), 1);
    follow_up(&loaded);
}

#[test]
fn a_file_may_end_anywhere() {
    let whole = sample();
    let mut cut = 0;
    for length in 0..whole.len() {
        match read(whole[..length].to_vec()) {
            Ok(loaded) => follow_up(&loaded),
            Err(ReadError::Wire(e)) => {
                assert!(e.offset <= length);
                cut += 1;
            }
            Err(_) => {}
        }
    }
    assert!(cut > whole.len() * 3 / 4, "{cut} of {}", whole.len());
}

#[test]
fn any_bytes_may_change() {
    let whole = sample();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut read_back = 0;
    for _ in 0..6000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + next() % 4 {
            let at = next() as usize % bytes.len();
            match next() % 4 {
                0 => bytes[at] = next() as u8,
                1 => bytes[at] ^= 1 << (next() % 8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, next() as u8),
            }
        }
        if let Ok(loaded) = read(bytes) {
            read_back += 1;
            follow_up(&loaded);
        }
    }
    assert!(read_back > 100, "only {read_back} were still models");
}

#[test]
fn lengths_are_not_believed() {
    let far = [varint(7 << 3 | 2), varint(1 << 62)].concat();
    let error = refused([int(1, 8), far].concat());
    assert!(error.contains("byte 2"), "{error}");
    assert!(error.contains("is it cut off?"), "{error}");
    let inner = [varint(1 << 3 | 2), varint(100)].concat();
    let error = refused([field(7, inner), vec![0; 200]].concat());
    assert!(
        error.contains("the end of the message around it"),
        "{error}"
    );
}

#[test]
fn other_files_are_called_what_they_are() {
    let error = |bytes: &[u8]| refused(bytes.to_vec());
    assert_eq!(error(b""), "the file is empty; expected an ONNX model");
    assert!(error(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS"));
    assert!(error(b"PK\x03\x04rest").contains("zip archive"));
    assert!(error(b"<!DOCTYPE html>").contains("HTML"));
    assert!(error(b"hello, world").contains("not a valid ONNX model"));
    assert!(error(&field(2, "someone")).contains("is this an ONNX model?"));
}

// ---- what would take too much ----

#[test]
fn nesting_has_an_end() {
    let mut ty = Vec::new();
    for _ in 0..20_000 {
        ty = field(4, field(1, ty));
        if ty.len() > 1 << 17 {
            break;
        }
    }
    let error = refused(file(&field(11, [field(1, "x"), field(2, ty)].concat())));
    assert!(
        error.contains("messages are nested more than 100 deep"),
        "{error}"
    );
    let graphs = |levels: usize| {
        let mut graph = Vec::new();
        for _ in 0..levels {
            graph = node("Loop", &attribute("body", 5, &field(6, &graph)));
        }
        file(&graph)
    };
    follow_up(&read(graphs(32)).expect("as deep as it may be"));
    let error = refused(graphs(33));
    assert!(
        error.contains("graphs are nested more than 32 deep"),
        "{error}"
    );
    let groups = vec![0x0b; 100_000];
    assert!(refused(groups).contains("nested too deeply"));
}

/// The most memory that this process has used, in MiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[test]
fn empty_messages_take_no_gigabytes() {
    let empties = |number: u64| field(number, []).repeat(2 << 20);
    let named = |rest: Vec<u8>| file(&node("Op", &rest));
    for (what, bytes) in [
        ("nodes", file(&empties(1))),
        ("initializers", file(&empties(5))),
        ("sparse initializers", file(&empties(15))),
        ("inputs", file(&empties(11))),
        ("value infos", file(&empties(13))),
        ("attributes", named(empties(5))),
        ("tensors", named(attribute("a", 9, &empties(10)))),
        ("sparse tensors", named(attribute("a", 12, &empties(23)))),
        ("types", named(attribute("a", 14, &empties(15)))),
        ("graphs", named(attribute("a", 10, &empties(11)))),
        ("functions", [file(&[]), empties(25)].concat()),
        ("opsets", [file(&[]), empties(8)].concat()),
    ] {
        let error = refused(bytes);
        assert!(!error.is_empty(), "{what}");
    }
    // These are odd, not wrong.
    for bytes in [
        named(empties(9)),
        named(empties(1)),
        named(empties(10)),
        [file(&[]), empties(14)].concat(),
        [file(&[]), empties(20)].concat(),
        file(&empties(14)),
        file(&field(1, field(4, "A")).repeat(500_000)),
    ] {
        read(bytes).expect("it can be read");
    }
    assert!(peak_memory() < 900, "{} MiB", peak_memory());
}

#[test]
fn shapes_that_overflow_are_refused() {
    let tensor = |dims: &[u64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&d| int(1, d)).collect();
        file(&field(
            5,
            [dims, int(2, 1), field(8, "w"), field(9, [0; 8])].concat(),
        ))
    };
    let start = "main_graph / initializer \"w\": ";
    let huge = (1 << 63) - 1;
    for (dims, problem) in [
        (vec![huge], "overflows"),
        (vec![1 << 62], "overflows"),
        (vec![1 << 61], "needs 9223372036854775808 bytes, found 8"),
        (vec![1 << 32, 1 << 32], "overflows"),
        (vec![1 << 63], "dimension 0 is -9223372036854775808"),
        (vec![0, huge, huge], "needs 0 bytes, found 8"),
    ] {
        let error = refused(tensor(&dims));
        assert!(error.starts_with(start), "{error}");
        assert!(error.contains(problem), "{dims:?}: {error}");
    }
}

#[test]
fn many_captures_and_uses_stay_linear() {
    // 50,000 nodes inside, each taking another value from outside, and one value with as
    // many consumers.
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    for i in 0..50_000 {
        let name = format!("v{i}");
        outer.extend(node("Relu", &[field(1, "x"), field(2, &name)].concat()));
        inner.extend(node(
            "Neg",
            &[field(1, &name), field(2, format!("t{i}"))].concat(),
        ));
    }
    let body = attribute("body", 5, &field(6, inner));
    outer.extend(node("Loop", &body));
    let start = Instant::now();
    let loaded = read(file(&outer)).expect("valid");
    assert!(start.elapsed() < Duration::from_secs(10));
    let graph = &loaded.model.graph;
    let holder = graph.ops_with_subgraphs().next().expect("the Loop");
    assert_eq!(graph.op(holder).captures().len(), 50_000);
    follow_up(&loaded);
}

#[test]
fn captures_through_all_levels_have_a_budget() {
    // Each of the names takes 20 bytes here and would take 10,000 in memory.
    let names = 200_000u32;
    let mut uses = field(4, "Sum");
    for i in 0..names {
        uses.extend(field(1, format!("{i:x}")));
    }
    let mut graph = field(1, uses);
    for _ in 0..32 {
        graph = node("Loop", &attribute("body", 5, &field(6, &graph)));
    }
    let mut makes = field(4, "Split");
    for i in 0..names {
        makes.extend(field(2, format!("{i:x}")));
    }
    let error = refused(file(&[field(1, makes), graph].concat()));
    assert!(error.contains("through too many levels"), "{error}");
}

#[test]
fn a_value_is_not_described_without_end() {
    let info = |doc: u32| field(13, [field(1, "x"), field(3, doc.to_string())].concat());
    let few: Vec<u8> = (0..50).flat_map(info).collect();
    follow_up(&read(file(&few)).expect("odd, but not wrong"));
    let many: Vec<u8> = (0..300_000).flat_map(info).collect();
    let error = refused(file(&many));
    assert!(
        error.contains("value \"x\": it is described in more than 100"),
        "{error}"
    );
}

// ---- names ----

#[test]
fn names_are_escaped_in_messages() {
    let tensor = [
        int(1, 3),
        int(2, 1),
        field(8, "w\u{1b}]0;\u{7}\u{202e}"),
        field(9, [0; 8]),
    ];
    let error = refused(file(&field(5, tensor.concat())));
    assert!(error.contains("\"w\\u{1b}]0;\\u{7}\\u{202e}\""), "{error}");
}

#[test]
fn text_must_be_utf8() {
    let error = refused(file(&field(1, field(3, [0xff]))));
    assert!(
        error.contains("graph.node[0].name: the text is not UTF-8"),
        "{error}"
    );
}

#[test]
fn unknown_fields_are_named_in_a_warning() {
    let odd = node(
        "Relu",
        &[field(1, "x"), field(2, "y"), field(77, "new")].concat(),
    );
    let many: Vec<u8> = (0..30).flat_map(|i| field(1000 + i, "?")).collect();
    let loaded = read([file(&odd), many].concat()).expect("valid");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let warning = &loaded.warnings[0];
    assert!(warning.starts_with("31 field(s) unknown"), "{warning}");
    assert!(
        warning.contains("graph.node[0].field 77, field 1000"),
        "{warning}"
    );
    assert!(warning.ends_with("and 11 more"), "{warning}");
}

// ---- side files ----

/// A model whose one initializer of two floats stands in a side file.
fn external(location: &str) -> Vec<u8> {
    let entry = |k: &str, v: &str| field(13, [field(1, k), field(2, v)].concat());
    let tensor = [
        int(1, 2),
        int(2, 1),
        field(8, "w"),
        entry("location", location),
        entry("length", "8"),
        int(14, 1),
    ];
    file(&field(5, tensor.concat()))
}

fn open_external(dir: &Path, location: &str, options: &ReadOptions) -> Result<Loaded, ReadError> {
    let path = dir.join("model.onnx");
    fs::write(&path, external(location)).expect("the model");
    let start = Instant::now();
    let result = read_file(&path, options);
    assert!(start.elapsed() < Duration::from_secs(5), "too slow");
    result
}

#[test]
fn side_files_stay_in_the_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let models = dir.path().join("models");
    fs::create_dir_all(models.join("sub")).expect("folders");
    fs::write(dir.path().join("secret"), [1; 8]).expect("a file");
    fs::write(models.join("sub/w.bin"), [0; 8]).expect("a file");
    let open = |location: &str| open_external(&models, location, &ReadOptions::default());
    assert!(open("sub/w.bin").is_ok());
    assert!(open("./sub/./w.bin").is_ok());
    let absolute = dir.path().join("secret");
    for location in [
        "../secret",
        "sub/../../secret",
        &absolute.to_string_lossy(),
        "",
        "sub",
        "absent",
    ] {
        let error = open(location).expect_err("refused").to_string();
        assert!(
            error.starts_with("main_graph / initializer \"w\": side file"),
            "{error}"
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret", models.join("link")).expect("a link");
        std::os::unix::fs::symlink("..", models.join("up")).expect("a link");
        fs::hard_link(dir.path().join("secret"), models.join("hard")).expect("a link");
        for location in ["link", "up/secret", "hard"] {
            let error = open(location).expect_err("refused").to_string();
            assert!(error.contains("which may lead anywhere"), "{error}");
        }
        let follow = |folder: &Path| ReadOptions {
            follow_links_in: Some(folder.to_owned()),
            ..ReadOptions::default()
        };
        assert!(open_external(&models, "link", &follow(dir.path())).is_ok());
        assert!(open_external(&models, "up/secret", &follow(dir.path())).is_ok());
        let error = open_external(&models, "link", &follow(&models)).expect_err("refused");
        assert!(error.to_string().contains("leads out of"), "{error}");
    }
    let error = read(external("sub/w.bin"))
        .expect_err("no folder")
        .to_string();
    assert!(error.contains("not read from a folder"), "{error}");
}

#[cfg(unix)]
#[test]
fn pipes_are_never_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|s| s.success()) {
        return;
    }
    let error = read_file(&pipe, &ReadOptions::default()).expect_err("refused");
    assert!(
        error.to_string().ends_with("expected a file, found a pipe"),
        "{error}"
    );
    let error = open_external(dir.path(), "pipe", &ReadOptions::default()).expect_err("refused");
    assert!(
        error.to_string().ends_with("expected a file, found a pipe"),
        "{error}"
    );
    let error = write_file(&small(1.0), &pipe, &WriteOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("it is a pipe"), "{error}");
}

#[test]
fn a_folder_is_no_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = read_file(dir.path(), &ReadOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("found a directory"), "{error}");
    let error = write_file(&small(1.0), dir.path(), &WriteOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("it is a directory"), "{error}");
    let absent = dir.path().join("no/where.onnx");
    let error = write_file(&small(1.0), &absent, &WriteOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("make it first"), "{error}");
}

// ---- outputs ----

/// A model with one constant of 200,000 equal floats.
fn small(value: f32) -> Model {
    let mut graph = Graph::new("g");
    let tensor = Tensor::from_vec([200_000], vec![value; 200_000]).expect("a tensor");
    let w = graph.add_constant("w", tensor).expect("a constant");
    let op = graph.add_op(NewOp::new("Relu").input(w).output("y"));
    let y = graph.op(op.expect("an operator")).output(0).expect("y");
    graph.add_output(y).expect("an output");
    Model::new(graph, 17)
}

/// The value of the constant; all elements must agree.
fn value_of(path: &Path) -> f32 {
    let loaded = read_file(path, &ReadOptions::default()).expect("a whole model");
    let graph = &loaded.model.graph;
    let tensor = graph
        .tensor(graph.find_value("w").expect("w"))
        .expect("a tensor");
    let all = tensor.view::<f32>().expect("floats");
    assert!(all.iter().all(|&v| v == all[0]));
    all[0]
}

fn options(external_data: ExternalData) -> WriteOptions {
    WriteOptions { external_data }
}

const CHILD: &str = "PARING_TEST_WRITER";

/// Writes two models in turn until it is killed, when it is started to do so.
#[test]
fn writer_child() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let path = PathBuf::from(path);
    for round in 0.. {
        let external = [ExternalData::Always, ExternalData::Never][round % 3 / 2];
        write_file(&small((round % 2) as f32), &path, &options(external)).expect("written");
    }
}

#[test]
fn a_killed_writer_leaves_a_whole_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    write_file(&small(1.0), &path, &options(ExternalData::Always)).expect("written");
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "writer_child"])
            .env(CHILD, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("a child");
        std::thread::sleep(Duration::from_millis(30 + 13 * round));
        child.kill().expect("killed");
        child.wait().expect("gone");
        let value = value_of(&path);
        assert!(value == 0.0 || value == 1.0);
    }
}

#[test]
fn a_failed_write_leaves_the_old_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    write_file(&small(1.0), &path, &WriteOptions::default()).expect("written");
    // A cycle can't be put in order.
    let mut broken = small(2.0);
    let graph = &mut broken.graph;
    let y = graph.outputs()[0];
    let op = graph.producer(y).expect("the Relu");
    graph.set_input(op, 0, Some(y)).expect("a cycle");
    let error = write_file(&broken, &path, &WriteOptions::default()).expect_err("a cycle");
    assert!(error.to_string().contains("cycle"), "{error}");
    assert_eq!(value_of(&path), 1.0);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).expect("read-only");
        // A privileged user may write there all the same.
        if fs::write(dir.path().join("probe"), b"").is_err() {
            let error = write_file(&small(2.0), &path, &WriteOptions::default());
            assert!(error.is_err());
            assert_eq!(value_of(&path), 1.0);
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("writable");
    }
    let left: Vec<_> = fs::read_dir(dir.path())
        .expect("the folder")
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|e| !e.file_name().to_string_lossy().ends_with(".tmp"))
    );
}

#[test]
fn the_input_may_be_the_output() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.onnx");
    write_file(&small(1.0), &path, &options(ExternalData::Always)).expect("written");
    let loaded = read_file(&path, &ReadOptions::default()).expect("read");
    // Inside now; then the old side file goes, and the mapped elements must still be there.
    write_file(&loaded.model, &path, &options(ExternalData::Never)).expect("written");
    fs::remove_file(&loaded.side_files[0]).expect("removed");
    assert_eq!(value_of(&path), 1.0);
    write_file(&loaded.model, &path, &options(ExternalData::Never)).expect("written again");
    assert_eq!(value_of(&path), 1.0);
}

#[cfg(unix)]
#[test]
fn links_and_permissions_of_the_output_are_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().expect("a folder");
    let real = dir.path().join("real.onnx");
    let link = dir.path().join("link.onnx");
    symlink("real.onnx", &link).expect("a link");
    // The link leads nowhere yet.
    write_file(&small(1.0), &link, &WriteOptions::default()).expect("written");
    assert_eq!(value_of(&real), 1.0);
    let mode = |p: &Path| fs::metadata(p).expect("metadata").permissions().mode() & 0o777;
    fs::write(dir.path().join("plain"), b"").expect("a file");
    assert_eq!(mode(&real), mode(&dir.path().join("plain")));
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("a mode");
    let report = write_file(&small(2.0), &link, &options(ExternalData::Always)).expect("written");
    assert_eq!(value_of(&real), 2.0);
    assert_eq!(mode(&real), 0o640);
    assert_eq!(mode(&report.side_file.expect("a side file")), 0o640);
    assert!(fs::symlink_metadata(&link).expect("metadata").is_symlink());
    // A side file would be found from one of the two folders only.
    fs::create_dir(dir.path().join("sub")).expect("a folder");
    let far = dir.path().join("sub/far.onnx");
    symlink("../real.onnx", &far).expect("a link");
    let error = write_file(&small(3.0), &far, &options(ExternalData::Always));
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("link into another folder"), "{error}");
    write_file(&small(3.0), &far, &options(ExternalData::Never)).expect("written");
    assert_eq!(value_of(&real), 3.0);
    let circle = dir.path().join("circle");
    symlink("circle", &circle).expect("a link");
    let error = write_file(&small(3.0), &circle, &WriteOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("leads to itself"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn devices_are_no_output() {
    let error = write_file(
        &small(1.0),
        Path::new("/dev/null"),
        &WriteOptions::default(),
    );
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("it is a device"), "{error}");
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let mut all = String::new();
    for _ in 0..3 {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("m.onnx");
        let report = write_file(&small(1.5), &path, &options(ExternalData::Always));
        let side = report.expect("written").side_file.expect("a side file");
        let name = side
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let bytes = fs::read(&path).expect("the model");
        writeln!(all, "{name} {bytes:?}").expect("a string");
    }
    let lines: Vec<_> = all.lines().collect();
    assert!(lines.windows(2).all(|w| w[0] == w[1]));
}

//! Writes the large models that the figures on speed and memory are about:
//!
//! ```text
//! cargo run --release --example generate -- mixed 20000 mixed.onnx
//! cargo run --release --example generate -- chain 1000000 chain.onnx
//! cargo run --release --example generate -- heavy 2500000000 heavy.onnx     (weights in a side file)
//! ```
//!
//! and networks of the usual shapes, by name and side of the image; `all` writes each into a folder:
//!
//! ```text
//! cargo run --release --example generate -- topology:resnet50 224 resnet50.onnx
//! cargo run --release --example generate -- topology:all 64 some/folder
//! ```

mod graphs;
mod topologies;

use std::path::Path;
use std::process::ExitCode;

use paring::onnx::{ExternalData, WriteOptions, write_file};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, size, path] = args.as_slice() else {
        eprintln!("usage: generate chain|mixed|heavy|topology:NAME SIZE FILE");
        return ExitCode::from(2);
    };
    let Ok(size) = size.parse::<u64>() else {
        eprintln!("{size} is no size");
        return ExitCode::from(2);
    };
    if let Some(name) = kind.strip_prefix("topology:") {
        return topology(name, size as usize, Path::new(path));
    }
    let (model, external_data) = match kind.as_str() {
        "chain" => (graphs::chain(size as usize), ExternalData::Never),
        "mixed" => (graphs::mixed(size as usize), ExternalData::Never),
        "heavy" => (graphs::heavy(size), ExternalData::Always),
        other => {
            eprintln!("there is no kind {other}");
            return ExitCode::from(2);
        }
    };
    let model = match model {
        Ok(model) => model,
        Err(e) => {
            eprintln!("{e:?}");
            return ExitCode::FAILURE;
        }
    };
    let options = WriteOptions { external_data };
    match write_file(&model, Path::new(path), &options) {
        Ok(report) => {
            println!("{path}: {} bytes", report.bytes);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Writes one network, or each of them. Small images get networks of a quarter of the channels.
fn topology(name: &str, side: usize, path: &Path) -> ExitCode {
    let scale = topologies::Scale {
        side,
        divide: if side < topologies::Scale::FULL.side {
            4
        } else {
            1
        },
    };
    let all = if name == "all" {
        &topologies::NAMES[..]
    } else {
        &[]
    };
    let one = |name: &str, path: &Path| {
        let model = topologies::build(name, scale).map_err(|e| format!("{name}: {e:?}"))?;
        let options = WriteOptions {
            external_data: ExternalData::Never,
        };
        let report = write_file(&model, path, &options).map_err(|e| e.to_string())?;
        println!("{}: {} bytes", path.display(), report.bytes);
        Ok::<(), String>(())
    };
    let done = match all {
        [] => one(name, path),
        all => all
            .iter()
            .try_for_each(|name| one(name, &path.join(format!("{name}.onnx")))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

//! Writes the large models that the figures on speed and memory are about:
//!
//! ```text
//! cargo run --release --example generate -- mixed 20000 mixed.onnx
//! cargo run --release --example generate -- chain 1000000 chain.onnx
//! cargo run --release --example generate -- heavy 2500000000 heavy.onnx     (weights in a side file)
//! ```

mod graphs;

use std::path::Path;
use std::process::ExitCode;

use paring::onnx::{ExternalData, WriteOptions, write_file};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, size, path] = args.as_slice() else {
        eprintln!("usage: generate chain|mixed|heavy SIZE FILE");
        return ExitCode::from(2);
    };
    let Ok(size) = size.parse::<u64>() else {
        eprintln!("{size} is no size");
        return ExitCode::from(2);
    };
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

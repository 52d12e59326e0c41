//! Reading models and writing JSON, the same for every subcommand.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::args::{Common, Running};
use super::exit::{Exit, failure};
use super::terminal;
use crate::data::ShapeOptions;
use crate::onnx::{self, Loaded, ReadOptions};

/// Whether a path means standard input or output.
pub(super) fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a model from a file or from standard input, and prints its warnings.
pub(super) fn read(common: &Common, path: &Path) -> anyhow::Result<Loaded> {
    let options = ReadOptions {
        mmap: !common.no_mmap,
        follow_links_in: common.follow_links.clone(),
    };
    let loaded = if is_dash(path) {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .context("standard input")?;
        onnx::read_bytes(bytes.into(), None, &options).context("standard input")?
    } else {
        onnx::read_file(path, &options)?
    };
    for w in &loaded.warnings {
        terminal::warning(common, &format!("{}: {w}", path.display()));
    }
    Ok(loaded)
}

/// Reads the `--input` and `--dim` options.
pub(super) fn shape_options(running: &Running) -> anyhow::Result<ShapeOptions> {
    let mut options = ShapeOptions::default();
    for text in &running.inputs {
        let (name, dims) = ShapeOptions::parse_input(text)
            .map_err(|e| failure(Exit::Usage, format!("--input {e}")))?;
        options.inputs.insert(name, dims);
    }
    for text in &running.dims {
        let (name, size) = ShapeOptions::parse_dim(text)
            .map_err(|e| failure(Exit::Usage, format!("--dim {e}")))?;
        options.dims.insert(name, size);
    }
    Ok(options)
}

/// Prints JSON to standard output.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints text to standard output, with colour where that is a terminal.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    Ok(write!(anstream::stdout().lock(), "{text}")?)
}

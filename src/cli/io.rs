//! Reading models and writing JSON, the same for every subcommand.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::args::{Common, Running};
use super::exit::{Exit, failure};
use super::terminal;
use crate::data::ShapeOptions;
use crate::onnx::{self, Loaded, ReadError, ReadOptions};

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
        let stream = &mut std::io::stdin().lock();
        onnx::read_stream(stream, None, &options).map_err(|e| match e {
            ReadError::Open { .. } => anyhow::Error::from(e),
            e => anyhow::Error::from(e).context("standard input"),
        })?
    } else {
        let name = path.display().to_string();
        onnx::read_file(path, &options).map_err(|e| match e.to_string().contains(&name) {
            true => anyhow::Error::from(e),
            false => anyhow::Error::from(e).context(name),
        })?
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
    writeln!(std::io::stdout().lock(), "{}", to_json(value)?)?;
    Ok(())
}

/// JSON for people and programs. What a terminal would obey is escaped, also where JSON doesn't
/// ask for it.
pub(super) fn to_json(value: &impl Serialize) -> anyhow::Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    // Outside of strings JSON is plain ASCII, so whatever is found stands in a string.
    let harmless = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() || !is_obeyed(c);
    if text.chars().all(harmless) {
        return Ok(text);
    }
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        if harmless(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(out)
}

fn is_obeyed(c: char) -> bool {
    let mut buffer = [0; 4];
    let text: &str = c.encode_utf8(&mut buffer);
    paring_ir::escape(text) != text
}

/// Prints text to standard output, with colour where that is a terminal.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    Ok(write!(anstream::stdout().lock(), "{text}")?)
}

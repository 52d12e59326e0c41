//! `paring text`: a model in the ONNX textual syntax.

use paring_ir::text::{PrintOptions, print_model};

use super::args::{Common, Text};
use super::exit::Exit;
use super::io;

pub(super) fn run(common: &Common, args: &Text) -> anyhow::Result<Exit> {
    let loaded = io::read(common, &args.model)?;
    let options = if args.full {
        PrintOptions::full()
    } else {
        PrintOptions::default()
    };
    io::print(&print_model(&loaded.model, &options))?;
    Ok(Exit::Success)
}

//! `paring schema`: the JSON schema of recipes.

use paring_ir::{Registry, recipe};

use super::exit::Exit;
use super::io;

pub(super) fn run(registry: &Registry) -> anyhow::Result<Exit> {
    io::print_json(&recipe::json_schema(registry))?;
    Ok(Exit::Success)
}

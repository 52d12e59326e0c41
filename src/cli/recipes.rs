//! `paring recipes`: the ready-made recipes.

use paring_ir::Registry;
use serde_json::json;

use super::args::Named;
use super::exit::Exit;
use super::io;
use super::terminal::BOLD;
use crate::pipeline::{Recipe, RecipeError};

pub(super) fn run(registry: &Registry, args: &Named) -> anyhow::Result<Exit> {
    if let Some(name) = &args.name {
        // A file is none of the ready-made ones, so only names count here.
        let Some(text) = registry.recipe(name) else {
            let known: Vec<&str> = registry.recipes().iter().map(|(n, _)| *n).collect();
            let hint = match paring_ir::select::nearest(name, known.iter().copied()) {
                Some(n) => format!("did you mean \"{n}\"?"),
                None => format!("the recipes are {}", known.join(", ")),
            };
            return Err(RecipeError::NoSuch {
                name: name.clone(),
                hint,
            }
            .into());
        };
        if args.json {
            io::print_json(&Recipe::parse(name, text)?.json)?;
        } else {
            io::print(text)?;
        }
        return Ok(Exit::Success);
    }
    let mut list = Vec::new();
    for (name, text) in registry.recipes() {
        list.push((
            *name,
            Recipe::parse(name, text)?.description().trim().to_owned(),
        ));
    }
    if args.json {
        let list: Vec<_> = list
            .iter()
            .map(|(n, d)| json!({ "name": n, "description": d }))
            .collect();
        io::print_json(&list)?;
        return Ok(Exit::Success);
    }
    let width = list.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    for (name, description) in list {
        io::print(&format!("{BOLD}{name:width$}{BOLD:#}  {description}\n"))?;
    }
    Ok(Exit::Success)
}

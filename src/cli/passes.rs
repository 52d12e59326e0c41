//! `paring passes`: what there is, and each pass with its options.

use paring_ir::registry::Entry;
use paring_ir::{Effect, Registry};
use serde_json::{Value as Json, json};

use super::args::Named;
use super::exit::Exit;
use super::io;
use super::terminal::{BOLD, DIM, table};

pub(super) fn run(registry: &Registry, args: &Named) -> anyhow::Result<Exit> {
    match &args.name {
        Some(name) => show(registry.find(name)?, args.json)?,
        None => list(registry, args.json)?,
    }
    Ok(Exit::Success)
}

fn effect(entry: &Entry) -> &'static str {
    match entry.info.effect {
        Effect::Exact => "exact",
        Effect::Lossy => "lossy",
    }
}

fn list(registry: &Registry, json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<Json> = registry
            .passes()
            .iter()
            .map(|e| json!({ "name": e.info.name, "effect": effect(e), "summary": e.info.summary }))
            .collect();
        return io::print_json(&all);
    }
    let mut table = table(&["pass", "effect", "summary"], 3);
    for e in registry.passes() {
        table.add_row([e.info.name, effect(e), e.info.summary]);
    }
    io::print(&format!("{}\n", table.trim_fmt()))
}

fn show(entry: &Entry, json: bool) -> anyhow::Result<()> {
    let info = entry.info;
    let (schema, defaults) = (entry.schema(), entry.defaults());
    if json {
        return io::print_json(&json!({
            "name": info.name,
            "effect": effect(entry),
            "summary": info.summary,
            "runs_first": info.runs_first,
            "never_after": info.never_after,
            "never_before": info.never_before,
            "options": schema,
            "defaults": defaults,
        }));
    }
    io::print(&describe(entry, &schema, &defaults))
}

fn describe(entry: &Entry, schema: &Json, defaults: &Json) -> String {
    let info = entry.info;
    let mut text = format!(
        "{BOLD}{}{BOLD:#} ({})\n{}\n",
        info.name,
        effect(entry),
        info.summary
    );
    if !info.runs_first.is_empty() {
        text += &format!("Runs first: {}\n", info.runs_first.join(", "));
    }
    for (order, all) in [("after", info.never_after), ("before", info.never_before)] {
        for c in all {
            text += &format!("Never {order} {}: {}\n", c.pass, c.why);
        }
    }
    let none = serde_json::Map::new();
    let properties = schema
        .get("properties")
        .and_then(Json::as_object)
        .unwrap_or(&none);
    if properties.is_empty() {
        text += "\nNo options.\n";
        return text;
    }
    text += "\nOptions:\n";
    for (name, property) in properties {
        let default = match defaults.get(name) {
            None | Some(Json::Null) => "none".to_owned(),
            Some(Json::String(s)) => s.clone(),
            Some(v) => v.to_string(),
        };
        text += &format!("  {BOLD}{name}{BOLD:#}  {DIM}default: {default}{DIM:#}\n");
        let choices = choices(property, schema);
        if !choices.is_empty() {
            text += &format!("      one of {}\n", choices.join(", "));
        }
        if property.get("x-scope").and_then(Json::as_str) == Some("pass") {
            text += "      for the whole pass; can't differ between operators\n";
        }
        let description = property
            .get("description")
            .and_then(Json::as_str)
            .unwrap_or("");
        for line in description.lines() {
            text += &format!("      {line}\n");
        }
    }
    text
}

/// The values of an option that takes one of a few words.
fn choices(property: &Json, root: &Json) -> Vec<String> {
    let reference = property
        .get("$ref")
        .and_then(Json::as_str)
        .and_then(|r| r.strip_prefix('#'));
    let property = reference.and_then(|r| root.pointer(r)).unwrap_or(property);
    let words = |list: &Json| -> Vec<String> {
        list.as_array()
            .map(|l| {
                l.iter()
                    .filter_map(Json::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    };
    if let Some(list) = property.get("enum") {
        return words(list);
    }
    let alternatives = property.get("oneOf").and_then(Json::as_array);
    alternatives
        .map(|l| {
            l.iter()
                .filter_map(|a| a.get("const").and_then(Json::as_str))
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

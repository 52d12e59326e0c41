//! Documents that are made from the code. They are compared here;
//! `BLESS=1 cargo test --test generated` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::fmt::Write;
use std::process::Command;

use paring::Effect;
use paring::registry::Entry;
use serde_json::Value as Json;

/// Compares a document with what the code says, or writes it.
fn check(name: &str, expected: &str) {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((i, (a, b))) = found
        .lines()
        .zip(expected.lines())
        .enumerate()
        .find(|(_, (a, b))| a != b)
    {
        panic!(
            "docs/{name} has aged at line {}:\n- {a}\n+ {b}\n{HOW}",
            i + 1
        );
    }
    assert!(found == expected, "docs/{name} has aged. {HOW}");
}

const HOW: &str = "Write it anew with: BLESS=1 cargo test --test generated";

fn paring(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_paring"))
        .args(args)
        .env_remove("COLUMNS")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_schema_of_recipes() {
    check("recipe.schema.json", &paring(&["schema"]));
}

#[test]
fn the_help_of_every_command() {
    let main = paring(&["--help"]);
    let commands = main
        .split("Commands:\n")
        .nth(1)
        .unwrap()
        .split("\n\n")
        .next()
        .unwrap();
    let mut out = String::from(
        "# Command line\n\nMade from `paring --help` by `BLESS=1 cargo test --test generated`. \
         For the JSON forms and the exit codes see [json.md](json.md).\n",
    );
    let mut section = |title: &str, help: &str| {
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let help = help.join("\n");
        write!(out, "\n## {title}\n\n```text\n{}\n```\n", help.trim_end()).unwrap();
    };
    section("paring", &main);
    // A description may go on in lines that are indented further.
    let names = commands
        .lines()
        .filter_map(|l| l.strip_prefix("  "))
        .filter(|l| !l.starts_with(' '));
    let names: Vec<&str> = names.filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        section(&format!("paring {name}"), &paring(&[name, "--help"]));
    }
    check("cli.md", &out);
}

#[test]
fn the_passes_with_their_options() {
    let registry = paring::registry();
    let mut out = String::from(
        "# Passes\n\nMade from the code by `BLESS=1 cargo test --test generated`; `paring passes NAME` \
         says the same.\n\nEvery pass takes its options for the whole pass, by operator type \
         (`by-type`) and by operator name (`by-name`, globs), where `skip` leaves operators out; and \
         `accept`, limits that it must keep. Options with a * are for the whole pass only.\n",
    );
    for (title, effect) in [
        (
            "Exact: outputs stay as they were, up to rounding",
            Effect::Exact,
        ),
        ("Lossy: outputs may change", Effect::Lossy),
    ] {
        write!(out, "\n## {title}\n").unwrap();
        let mut entries: Vec<&Entry> = registry
            .passes()
            .iter()
            .filter(|e| e.info.effect == effect)
            .collect();
        entries.sort_by_key(|e| e.info.name);
        entries.into_iter().for_each(|e| describe(&mut out, e));
    }
    check("passes.md", &out);
}

fn describe(out: &mut String, entry: &Entry) {
    write!(
        out,
        "\n### {}\n\n{}.\n",
        entry.info.name, entry.info.summary
    )
    .unwrap();
    if !entry.info.runs_first.is_empty() {
        let first: Vec<String> = entry
            .info
            .runs_first
            .iter()
            .map(|n| format!("`{n}`"))
            .collect();
        write!(out, "\nRuns first: {}.\n", first.join(", ")).unwrap();
    }
    let orders = [
        ("after", entry.info.never_after),
        ("before", entry.info.never_before),
    ];
    for (order, all) in orders.iter().filter(|o| !o.1.is_empty()) {
        let named = all.iter().map(|c| format!("`{}` ({})", c.pass, c.why));
        let named: Vec<String> = named.collect();
        write!(out, "\nNever {order} {}.\n", named.join(", ")).unwrap();
    }
    let (schema, defaults) = (entry.schema(), entry.defaults());
    let Some(properties) = schema["properties"].as_object().filter(|p| !p.is_empty()) else {
        return;
    };
    out.push_str("\n| option | default | meaning |\n|---|---|---|\n");
    for (name, property) in properties {
        let star = if property["x-scope"] == "pass" {
            " *"
        } else {
            ""
        };
        let default = match &defaults[name] {
            Json::Null => "none".to_owned(),
            Json::String(s) => format!("`{s}`"),
            other => format!("`{other}`"),
        };
        let mut meaning = cell(property["description"].as_str().unwrap_or_default());
        assert!(
            !meaning.is_empty(),
            "{}.{name} is not described",
            entry.info.name
        );
        for (word, what) in words(property, &schema) {
            write!(meaning, "<br>`{word}`: {}", cell(&what)).unwrap();
        }
        writeln!(out, "| `{name}`{star} | {default} | {meaning} |").unwrap();
    }
}

/// Text on one line, fit for a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// The words that an option takes, with what they mean.
fn words(property: &Json, root: &Json) -> Vec<(String, String)> {
    let target = property["$ref"]
        .as_str()
        .and_then(|r| root.pointer(r.strip_prefix('#')?));
    let property = target.unwrap_or(property);
    let plain = property["enum"].as_array().into_iter().flatten();
    let plain = plain.filter_map(|w| Some((w.as_str()?.to_owned(), String::new())));
    let described = property["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|w| {
            let what = w["description"].as_str().unwrap_or_default();
            Some((w["const"].as_str()?.to_owned(), what.to_owned()))
        });
    plain.chain(described).collect()
}

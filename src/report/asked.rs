//! What a run was asked to do, the words of its page, and which pass made which change.

use std::collections::HashMap;

use maud::{Markup, html};
use paring_ir::pass::RemarkKind;
use paring_ir::report::PassReport;
use serde_json::Value as Json;

use super::format::plural;
use super::kit::{Name, name};
use crate::diff::Diff;
use crate::optimize::Report;

/// What was asked, as facts.
pub(super) fn asked(r: &Report) -> Markup {
    let text = |key: &str| r.recipe.get(key).and_then(Json::as_str);
    let steps = r.recipe.get("passes").and_then(Json::as_array);
    let limits = r.recipe.get("accept").and_then(Json::as_object);
    html! {
        dl.facts {
            @if let Some(description) = text("description") {
                dt { "Recipe" } dd { (Name(description)) }
            }
            @if let Some(steps) = steps {
                dt { "Passes" }
                dd { @for (i, step) in steps.iter().enumerate() {
                    @if i > 0 { ", " } (one_step(step))
                } }
            }
            @if let Some(target) = text("target") { dt { "For" } dd { (Name(target)) } }
            dt { "Limits" }
            dd { @match limits.filter(|l| !l.is_empty()) {
                Some(limits) => @for (i, (key, value)) in limits.iter().enumerate() {
                    @if i > 0 { ", " } (Name(key)) " " (Name(&value.to_string()))
                },
                None => "none: the result was to be written whatever it costs in accuracy",
            } }
            dt { "Run with" }
            dd { (Name(&r.engine)) ", " (plural(r.threads, "thread")) ", seed " (r.seed) }
        }
    }
}

/// A pass with its options, or a group that repeats.
fn one_step(step: &Json) -> Markup {
    let entry = step.as_object().and_then(|o| o.iter().next());
    html! { @match (step.as_str(), entry) {
        (Some(pass), _) => (name(pass)),
        (None, Some((key, group))) if key == "repeat" => {
            @let count = group.get("passes").and_then(Json::as_array).map_or(0, Vec::len);
            "a group of " (plural(count, "clean-up pass").replace("passs", "passes"))
            @if let Some(max) = group.get("max").and_then(Json::as_u64) {
                " repeated until nothing changes, at most " (max) " times"
            }
        },
        (None, Some((pass, options))) => {
            (name(pass))
            @if let Some(options) = options.as_object().filter(|o| !o.is_empty()) {
                " (" @for (i, (key, value)) in options.iter().enumerate() {
                    @if i > 0 { ", " } (Name(key)) " " (Name(&value.to_string()))
                } ")"
            }
        },
        _ => (Name(&step.to_string())),
    } }
}

/// The words of the page for those who meet them here first.
pub(super) fn words() -> Markup {
    const WORDS: &[(&str, &str)] = &[
        (
            "Operator",
            "one step of the computation, such as a convolution; also called a node",
        ),
        (
            "Parameters",
            "the numbers that training found, stored in the file as weights",
        ),
        (
            "MACs",
            "multiply-accumulates: multiplications followed by an addition, the bulk of the work of one run",
        ),
        (
            "Pass",
            "one kind of rewrite; exact passes keep the outputs up to rounding, lossy ones trade accuracy",
        ),
        (
            "Error",
            "the norm of what differs over the norm of the original's values: 1 % is small, 100 % is as much as there is",
        ),
        (
            "SQNR",
            "the same as a signal-to-noise ratio: 20 dB is an error of 10 %, 40 dB of 1 %, 60 dB of 0.1 %",
        ),
        (
            "Cosine",
            "1 where the outputs point the same way, whatever their length",
        ),
        (
            "Top-1, top-5",
            "the right class has the largest output, or one of the five largest",
        ),
        (
            "Sensitivity",
            "how much of a layer's error arrives at the output: layers that are high here are worth leaving alone",
        ),
        (
            "Interval, in brackets",
            "holds the true value in 95 of 100 cases",
        ),
    ];
    html! {
        details.words {
            summary { "What the words on this page mean" }
            dl.facts { @for (word, meaning) in WORDS { dt { (word) } dd { (meaning) } } }
        }
    }
}

/// The diff, in which patterns that the file records no pass for have those that remarked upon
/// the operators that are gone.
pub(super) fn attributed(d: &Diff, passes: &[PassReport]) -> Diff {
    let mut authors: HashMap<&str, Vec<&str>> = HashMap::new();
    for p in passes.iter().filter(|p| p.changed && p.undone.is_empty()) {
        let applied = p.remarks.kept.iter();
        for r in applied.filter(|r| r.kind == RemarkKind::Applied) {
            let list = authors.entry(&r.op).or_default();
            if !list.contains(&p.name.as_str()) {
                list.push(&p.name);
            }
        }
    }
    let mut out = d.clone();
    for pattern in out.patterns.iter_mut().filter(|p| p.by.is_empty()) {
        let gone = pattern.places.iter().flat_map(|p| &p.before);
        for pass in gone
            .filter_map(|op| authors.get(op.name.as_str()))
            .flatten()
        {
            if pattern.by.iter().all(|p| p != pass) {
                pattern.by.push((*pass).to_owned());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_recipe_read_well() {
        let text = |json: Json| one_step(&json).into_string();
        let group = serde_json::json!({"repeat": {"max": 8, "passes": ["a", "b"]}});
        assert_eq!(
            text(group),
            "a group of 2 clean-up passes repeated until nothing changes, at most 8 times"
        );
        let hostile = serde_json::json!({"prune-weights": {"<b>": "</script>"}});
        let html = text(hostile);
        assert!(
            html.contains("&lt;b&gt;") && !html.contains("</script"),
            "{html}"
        );
    }
}

//! The page of `paring diff --html`, whose parts are in the page of an optimization too.

use maud::{Markup, Render, html};

use super::format::{MOST_RUNS, bytes, count, number, plural, runs};
use super::graphs::{Viewer, viewer};
use super::inspect::{file_name, titled};
use super::kit::{Cell, Column, Name, Page, Row, Section, Table, island, name, percent, tile};
use super::plot::{Axis, Plot, Series, Style};
use crate::diff::{Diff, Difference, Histogram, Pattern, PatternKind, TensorChange, TensorStats};

/// The script of the viewer.
pub(super) const SCRIPT: &str = include_str!("assets/graph.js");
/// So many rows of a table are shown at first.
const SHOWN: usize = 25;
/// So many weights get a plot, those that differ most by size first, so that the page stays small.
const PLOTTED: usize = 200;
/// Rows of tables beyond this many are left out.
const MOST: usize = 2000;
/// Weights beyond this many are left out of their table, in which each has details.
const MOST_WEIGHTS: usize = 1000;

/// The page about two models, each with what it is called.
pub fn diff_page(before: &str, after: &str, d: &Diff) -> String {
    Page {
        kind: "diff",
        title: &format!("{before} → {after}"),
        head: html! {
            h1 { (Name(file_name(before))) span.arrow { "→" } (Name(file_name(after))) }
            p.lead { (verdict(d)) }
            dl.tiles { (tiles(d)) }
            p.under { "Before: " (name(before)) ", after: " (name(after)) }
        },
        sections: sections(d),
        scripts: &[SCRIPT],
    }
    .render()
}

/// The parts of a page that tell what differs.
pub(super) fn sections(d: &Diff) -> Vec<Section> {
    let mut out = Vec::new();
    let data = viewer(d);
    if !data.changes.is_empty() {
        out.push(titled(
            "changes",
            "Graphs",
            "The graphs side by side",
            graphs(d, &data),
        ));
    }
    if !d.initializers.changed.is_empty() {
        out.push(titled(
            "weights",
            "Weights",
            "Weights that differ",
            weights(d),
        ));
    }
    let (added, removed) = (&d.initializers.added, &d.initializers.removed);
    if !added.is_empty() || !removed.is_empty() {
        out.push(titled(
            "constants",
            "Constants",
            "Constants added and removed",
            constants(d),
        ));
    }
    out.push(titled(
        "totals",
        "Costs",
        "What each type of operators costs",
        totals(d),
    ));
    if !d.types.is_empty() {
        out.push(titled(
            "shapes",
            "Types",
            "Values with another type",
            types(d),
        ));
    }
    if !d.interface.is_empty() {
        out.push(titled(
            "interface",
            "Interface",
            "Around the graph",
            differences(&d.interface),
        ));
    }
    out
}

/// A pattern as a sentence.
pub(super) fn sentence(p: &Pattern) -> String {
    let (before, after) = (listed(&p.before), listed(&p.after));
    match p.kind {
        PatternKind::Replaced | PatternKind::Stored => format!("{before} became {after}"),
        PatternKind::Bypassed => format!("{before} removed, its input is used instead"),
        PatternKind::Folded => format!("{before} became a constant"),
        PatternKind::Merged => format!("{before} merged with another of the same value"),
        PatternKind::Dropped => format!("{before} removed, nothing used it"),
        PatternKind::Inserted => format!("{after} inserted"),
        PatternKind::Appended => format!("{after} added"),
    }
}

/// Operator types in order, equal neighbours counted: `Conv + 2 × Relu`.
fn listed(types: &[String]) -> String {
    let (runs, counted) = runs(types);
    let text = runs.iter().take(MOST_RUNS).map(|(t, n)| match n {
        1 => (*t).clone(),
        n => format!("{n} × {t}"),
    });
    let mut text = text.collect::<Vec<_>>().join(" + ");
    if runs.len() > MOST_RUNS {
        text += &format!(" + {} more types", runs.len() - MOST_RUNS);
    }
    match counted {
        true => format!("{} operators ({text})", types.len()),
        false => text,
    }
}

fn verdict(d: &Diff) -> String {
    let (o, t) = (&d.operators, &d.initializers);
    let mut parts = Vec::new();
    let mut push = |n: usize, what: &str| {
        if n > 0 {
            parts.push(format!("{} {what}", plural(n, "operator")));
        }
    };
    push(o.removed.len(), "removed");
    push(o.added.len(), "added");
    push(o.changed.len(), "changed");
    if !t.changed.is_empty() {
        parts.push(format!(
            "{} with other values",
            plural(t.changed.len(), "constant")
        ));
    }
    if !d.interface.is_empty() {
        parts.push(plural(d.interface.len(), "difference around the graph"));
    }
    match parts.as_slice() {
        [] => "Nothing differs. Names and the order of the file are not compared.".to_owned(),
        parts => format!(
            "{}; {} stay as they are. Other names and another order are no changes.",
            parts.join(", "),
            plural(o.same - o.reweighted.min(o.same), "operator")
        ),
    }
}

fn tiles(d: &Diff) -> Markup {
    let (a, b) = (&d.before, &d.after);
    let one = |label: &str, a: u64, b: u64, show: fn(u64) -> String| {
        let under = match (a.cmp(&b), show(a) == show(b)) {
            (std::cmp::Ordering::Equal, _) => "as before".to_owned(),
            (_, false) => format!("was {}", show(a)),
            // Rounding hides the difference.
            (std::cmp::Ordering::Less, true) => format!("{} more", show(b - a)),
            (std::cmp::Ordering::Greater, true) => format!("{} fewer", show(a - b)),
        };
        tile(label, &show(b), &under)
    };
    html! {
        (one("Operators", a.nodes, b.nodes, count))
        (one("Parameters", a.parameters, b.parameters, count))
        (one("Weights", a.bytes, b.bytes, bytes))
        (one("MACs", a.macs, b.macs, count))
        (one("MACs, zeros left out", a.effective_macs, b.effective_macs, count))
    }
}

fn graphs(d: &Diff, data: &Viewer) -> Markup {
    let pane = |title: &str| {
        html! {
            div.pane {
                div.pane-title { (title) }
                svg role="img" aria-label={ "The graph " (title) } { g {} }
            }
        }
    };
    html! {
        p {
            "Choose a change to see it in both models. An operator that is in both has the same place on both "
            "sides. Drag to move, press Ctrl and turn the wheel to zoom, click an operator for its details. "
            "Boxes with broken lines hold what is unchanged or not looked at; a click unfolds them."
        }
        (left_out(data))
        div #viewer data-pane="1" {
            div.list {
                input type="search" placeholder="Find an operator or a change" aria-label="Find a change";
                div.found.muted role="status" {}
                ul.changes {
                    @for (i, c) in data.changes.iter().enumerate() {
                        li { button type="button" data-change=(i) aria-pressed="false" {
                            span.times { @if c.count() > 1 { (c.count()) "×" } }
                            span.what { span class={ "dot " (c.class) } {} (Name(&c.title)) }
                        } }
                    }
                    @for (g, (title, changed)) in data.titles.iter().enumerate() {
                        @if *changed > 0 {
                            li { button type="button" data-graph=(g) aria-pressed="false" {
                                span.times {}
                                span.what { "All changes of: " (Name(title)) }
                            } }
                        }
                    }
                }
            }
            div.stage {
                div.bar-tools {
                    span.tabs {
                        button type="button" aria-pressed="false" { "Before" }
                        button type="button" aria-pressed="true" { "After" }
                    }
                    span.step hidden {
                        button type="button" aria-label="The place before" { "‹" }
                        span {} button type="button" aria-label="The next place" { "›" }
                    }
                    span.zoom {
                        button.zoom-out type="button" aria-label="Smaller" { "−" }
                        button.zoom-in type="button" aria-label="Larger" { "+" }
                        button.zoom-fit type="button" { "Fit" }
                    }
                    span.keys.wide {
                        span.dot.removed {} "removed" span.dot.added {} "added"
                        span.dot.changed {} "changed" span.dot.weights {} "other weights"
                    }
                }
                div.panes { (pane("before")) (pane("after")) }
                div.details {}
            }
        }
        (island("viewer-data", data))
        @let plotted = largest(d, PLOTTED);
        @for (i, t) in d.initializers.changed.iter().enumerate() {
            @if let Some(h) = t.histogram.as_ref().filter(|_| plotted.get(i) == Some(&true)) {
                template id={ "histogram-" (i) } { (histogram(h)) }
            }
        }
    }
}

/// Which of the changed weights are among the largest, of equal ones the first.
pub(super) fn largest(d: &Diff, most: usize) -> Vec<bool> {
    let all = &d.initializers.changed;
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(all.get(i).map_or(0, |t| t.stats_before.bytes)));
    let mut out = vec![false; all.len()];
    for i in order.into_iter().take(most) {
        if let Some(large) = out.get_mut(i) {
            *large = true;
        }
    }
    out
}

/// What a page leaves out of a very large diff.
fn left_out(data: &Viewer) -> Markup {
    let l = &data.left_out;
    html! { @if *l != Default::default() { div.callout {
        "To keep this page small"
        @if l.nodes > 0 {
            ", " (plural(l.nodes, "operator")) " (" (l.changed) " of them changed) are drawn as boxes that don't unfold"
        }
        @if l.weights > 0 { ", the viewer has no details of " (plural(l.weights, "weight")) }
        @if l.places > 0 { ", " (plural(l.places, "place")) " of changes can't be looked at" }
        ". " code { "paring diff --json --alignment" } " tells of all."
    } } }
}

fn histogram(h: &Histogram) -> Markup {
    let bins = h.before.len().max(h.after.len()).max(1);
    let width = (h.high - h.low) / bins as f64;
    let points = |counts: &[u64]| -> Vec<(f64, f64)> {
        let all = counts.iter().enumerate();
        all.map(|(i, &n)| (h.low + i as f64 * width, n as f64))
            .collect()
    };
    // The bin with the zeros of a pruned weight would flatten all others.
    let mut all: Vec<u64> = h.before.iter().chain(&h.after).copied().collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    let highest = all.first().copied().unwrap_or(0);
    let usual = h.before.iter().copied().max().unwrap_or(0);
    let top = if highest > 4 * usual.max(1) {
        2 * usual.max(1)
    } else {
        highest
    };
    let about = match highest > top {
        true => format!("the highest bar, {}, is cut off", count(highest)),
        false => String::new(),
    };
    let series = |name, counts: &[u64]| Series {
        name,
        style: Style::Bars,
        points: points(counts),
        texts: Vec::new(),
    };
    Plot {
        title: "Distribution",
        about: &about,
        x: Axis::linear(h.low, h.high, 4, "value"),
        y: Axis::rounded(0.0, top as f64, 3, "elements"),
        series: vec![series("before", &h.before), series("after", &h.after)],
        mark: None,
        height: 150,
    }
    .render()
}

/// What two stages of a weight have each, where it can differ.
pub(super) fn compared(t: &TensorChange) -> Vec<(&'static str, Option<String>, Option<String>)> {
    let (a, b) = (&t.stats_before, &t.stats_after);
    let quantized = |s: &TensorStats| {
        let q = s.quantization.as_ref()?;
        let range = |low: String, high: String| match low == high {
            true => low,
            false => format!("{low} to {high}"),
        };
        Some(format!(
            "{}: scale {}, zero point {}",
            plural(q.scales, "scale"),
            range(number(q.scale.0), number(q.scale.1)),
            range(q.zero_point.0.to_string(), q.zero_point.1.to_string())
        ))
    };
    let text = |x: Option<usize>| x.map(|x| x.to_string());
    let span = |s: &TensorStats| {
        s.range
            .map(|(l, h)| format!("{} to {}", number(l), number(h)))
    };
    vec![
        (
            "Name",
            Some(t.name_before.clone().unwrap_or_else(|| t.name.clone())),
            Some(t.name.clone()),
        ),
        ("Stored as", Some(a.ty.clone()), Some(b.ty.clone())),
        ("Bytes", Some(bytes(a.bytes)), Some(bytes(b.bytes))),
        (
            "Bits per element",
            a.bits.map(|b| b.to_string()),
            b.bits.map(|b| b.to_string()),
        ),
        (
            "Zeros",
            Some(percent(a.sparsity)),
            Some(percent(b.sparsity)),
        ),
        ("Distinct values", text(a.distinct), text(b.distinct)),
        ("Rank", text(a.rank), text(b.rank)),
        ("Range", span(a), span(b)),
        ("Elements", a.elements.clone(), b.elements.clone()),
        ("Quantized", quantized(a), quantized(b)),
    ]
}

/// How far a weight is from what it was.
pub(super) fn distance(t: &TensorChange) -> Option<String> {
    let (max, norm) = (t.max_abs?, t.relative_norm?);
    let rescaled = t.rescaled_norm.map_or_else(String::new, |rest| {
        format!(
            "; mostly a factor for each channel, as folding gives, and {} beyond that",
            percent(rest)
        )
    });
    Some(format!(
        "norm {} of the original's, largest {}{rescaled}",
        percent(norm),
        number(max)
    ))
}

fn weights(d: &Diff) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Weight"),
        Column::text("Type").wide(),
        Column::number("Bytes").wide(),
        Column::number("Zeros"),
        Column::number("Distinct").wide(),
        Column::number("Rank").wide(),
        Column::number("Norm of the difference").help("Over the norm of what it was. Where a pass multiplied channels by factors, also what differs beyond that"),
        Column::text("By").wide(),
    ];
    let all = &d.initializers.changed;
    let (plotted, listed) = (largest(d, PLOTTED), largest(d, MOST_WEIGHTS));
    // Shapes, axes and the like stand behind what a model computes with.
    let small = |t: &TensorChange| t.stats_before.elements.is_some();
    let weights = all.iter().zip(plotted).zip(listed);
    let mut weights: Vec<_> = weights
        .filter(|(_, listed)| *listed)
        .map(|(w, _)| w)
        .collect();
    weights.sort_by_key(|(t, _)| small(t));
    let rows = weights.into_iter().map(|(t, plotted)| Row {
        cells: weight_cells(t),
        detail: Some(weight_detail(t, plotted)),
        quiet: false,
    });
    let table = Table {
        id: "weights-table",
        columns: COLUMNS,
        rows: rows.collect(),
        shown: SHOWN,
        search: Some("Find a weight"),
    };
    html! {
        (table)
        @if all.len() > MOST_WEIGHTS {
            p { "Of " (all.len()) " the " (MOST_WEIGHTS) " largest are listed; the JSON form has all." }
        }
    }
}

fn weight_cells(t: &TensorChange) -> Vec<Cell> {
    let (a, b) = (&t.stats_before, &t.stats_after);
    let step = |a: String, b: String| {
        html! {
            @if a == b { (a) } @else { span.muted { (Name(&a)) " → " } (Name(&b)) }
        }
    };
    let few = |n: Option<usize>, or: &str| n.map_or_else(|| or.to_owned(), |n| count(n as u64));
    vec![
        Cell::text(name(&t.name)),
        Cell::text(html! { span.name { (step(t.before.clone(), t.after.clone())) } }),
        Cell::by(Some(b.bytes as f64), step(bytes(a.bytes), bytes(b.bytes))),
        Cell::by(
            Some(t.sparsity_after),
            step(percent(t.sparsity_before), percent(t.sparsity_after)),
        ),
        Cell::by(
            b.distinct.map(|n| n as f64),
            step(few(a.distinct, "many"), few(b.distinct, "many")),
        ),
        Cell::by(
            b.rank.map(|n| n as f64),
            step(few(a.rank, "–"), few(b.rank, "–")),
        ),
        Cell::by(
            t.relative_norm,
            html! { @match t.relative_norm {
                Some(norm) => (percent(norm)),
                None => span.muted { "–" },
            }
            @if let Some(rest) = t.rescaled_norm { br; span.muted { "rescaled; else " (percent(rest)) } } },
        ),
        Cell::text(html! { (Name(&t.by.join(", "))) }),
    ]
}

fn weight_detail(t: &TensorChange, plotted: bool) -> Markup {
    let users = t.used_by.iter().take(8);
    html! {
        dl.facts {
            @for (label, a, b) in compared(t) { @if a != b {
                dt { (label) }
                dd {
                    span.muted { (Name(a.as_deref().unwrap_or("none"))) } " → "
                    (Name(b.as_deref().unwrap_or("none")))
                }
            } }
            @if let Some(text) = distance(t) { dt { "Difference" } dd { (text) } }
            @for k in &t.kept {
                dt { "Kept on axis " (k.axis) }
                dd {
                    (k.count) " of " (k.of) ": " (Name(&k.indices))
                    @if !k.recorded { span.muted { " (found by comparing)" } }
                }
            }
            @if !t.used_by.is_empty() {
                dt { "Used by" }
                dd {
                    @for (i, user) in users.enumerate() { @if i > 0 { ", " } (name(user)) }
                    @if t.used_by.len() > 8 { " and " (t.used_by.len() - 8) " more" }
                }
            }
        }
        @if let Some(h) = t.histogram.as_ref().filter(|_| plotted) { (histogram(h)) }
    }
}

fn constants(d: &Diff) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Constant"),
        Column::text("Type"),
        Column::text("Only in"),
    ];
    let t = &d.initializers;
    let row = |(n, ty): &(String, String), tag: &str, text: &str| {
        Row::new(vec![
            Cell::text(name(n)),
            Cell::text(name(ty)),
            Cell::text(html! { span class={ "tag " (tag) } { (text) } }),
        ])
    };
    let removed = t.removed.iter().map(|c| row(c, "removed", "before"));
    let added = t.added.iter().map(|c| row(c, "added", "after"));
    let rows: Vec<Row> = removed.chain(added).take(MOST).collect();
    html! {
        p { (t.removed.len()) " removed, " (t.added.len()) " added. Those that operators were added or removed with are among them." }
        (Table { id: "constants-table", columns: COLUMNS, rows, shown: 10, search: Some("Find a constant") })
        (beyond(t.removed.len() + t.added.len()))
    }
}

fn totals(d: &Diff) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Type"),
        Column::number("Operators"),
        Column::number("Parameters"),
        Column::number("Bytes").wide(),
        Column::number("MACs"),
    ];
    let step = |a: u64, b: u64, show: fn(u64) -> String| {
        let sign = if b > a { "+" } else { "−" };
        Cell::by(
            Some(b as f64),
            html! { @if a == 0 && b == 0 { span.muted { "–" } } @else {
                (show(b))
                @if a != b { span class=(if b > a { "warn" } else { "good" }) { " " (sign) (show(a.abs_diff(b))) } }
            } },
        )
    };
    let rows = d.by_type.iter().map(|t| {
        let (a, b) = (&t.before, &t.after);
        Row::new(vec![
            Cell::text(name(&t.op_type)),
            step(a.nodes, b.nodes, count),
            step(a.parameters, b.parameters, count),
            step(a.bytes, b.bytes, bytes),
            step(a.macs, b.macs, count),
        ])
    });
    html! {
        p { "After the change, with what it added or took away. Weights count where they are computed with." }
        (Table { id: "totals-table", columns: COLUMNS, rows: rows.collect(), shown: SHOWN, search: None })
    }
}

/// Says that a table has not all rows.
fn beyond(all: usize) -> Markup {
    html! { @if all > MOST { p { "Of " (all) " the first " (MOST) " are listed; the JSON form has all." } } }
}

fn types(d: &Diff) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Value"),
        Column::text("Before"),
        Column::text("After"),
    ];
    let rows = d.types.iter().take(MOST).map(|t| {
        Row::new(vec![
            Cell::text(name(&t.name)),
            Cell::text(name(&t.before)),
            Cell::text(name(&t.after)),
        ])
    });
    html! {
        p { "These follow from other changes: " (plural(d.types.len(), "value")) " between operators." }
        (Table { id: "types-table", columns: COLUMNS, rows: rows.collect(), shown: 10, search: Some("Find a value") })
        (beyond(d.types.len()))
    }
}

fn differences(all: &[Difference]) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("What"),
        Column::text("Before"),
        Column::text("After"),
    ];
    let side = |text: &Option<String>| {
        html! { @match text {
            Some(text) => (name(text)),
            None => span.muted { "none" },
        } }
    };
    let rows = all.iter().take(MOST).map(|c| {
        Row::new(vec![
            Cell::text(html! { (Name(&c.what)) }),
            Cell::text(side(&c.before)),
            Cell::text(side(&c.after)),
        ])
    });
    Table {
        id: "interface-table",
        columns: COLUMNS,
        rows: rows.collect(),
        shown: SHOWN,
        search: None,
    }
    .render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_read_as_sentences() {
        let types = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let pattern = Pattern {
            kind: PatternKind::Replaced,
            before: types(&["Shape", "Shape", "Conv"]),
            after: types(&["Conv"]),
            ..Pattern::default()
        };
        assert_eq!(sentence(&pattern), "2 × Shape + Conv became Conv");
    }
}

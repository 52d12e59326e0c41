//! The page of `paring optimize --report out.html`: the whole story of one run.

use std::collections::BTreeMap;

use maud::{Markup, Render, html};
use paring_ir::pass::{Effect, RemarkKind};
use paring_ir::report::PassReport;
use serde_json::Value as Json;

use super::asked::{asked, attributed, words};
use super::diff;
use super::format::{bytes, count, duration, number, plural};
use super::inspect::{file_name, section, titled};
use super::kit::{
    Cell, Column, Name, Page, Row, Section, Table, copyable, name, notes, percent, tile,
};
use super::plot::{Axis, Plot, Series, Style};
use crate::diff::Diff;
use crate::optimize::Report;
use crate::validate::{FormReport, Latency, LayerError, LayerErrors, Validation};

/// So many remarks of one kind are listed.
const REMARKS: usize = 200;
/// So many layers are shown at first.
const SHOWN: usize = 25;
/// A relative error below this is what rounding does.
const ROUNDING: f64 = 1e-5;

/// What is told besides the report itself.
pub struct Story<'a> {
    /// What was done.
    pub report: &'a Report,
    /// The command that does it again, with a recipe in a file.
    pub command: &'a str,
    /// The recipe as YAML.
    pub recipe: &'a str,
    /// What differs between the two models.
    pub diff: &'a Diff,
}

/// The page about a run.
pub fn optimize_page(story: &Story<'_>) -> String {
    let r = story.report;
    let mut sections = vec![titled("asked", "Asked", "What was asked", asked(r))];
    sections.push(titled("summary", "Summary", "Before and after", summary(r)));
    sections.push(titled(
        "outputs",
        "Outputs",
        "What it did to the outputs",
        outputs(r),
    ));
    if let Some(l) = r.layers.as_ref().filter(|l| !l.layers.is_empty()) {
        sections.push(titled(
            "layers",
            "Layers",
            "Error layer by layer",
            layers(l),
        ));
    }
    sections.push(titled(
        "passes",
        "Passes",
        "What each pass did",
        passes(&r.passes),
    ));
    sections.extend(missed(&r.passes));
    if r.changed {
        sections.extend(diff::sections(&attributed(story.diff, &r.passes)));
    }
    sections.push(titled("again", "Reproduce", "Do it again", again(story)));
    sections.extend(all_notes(r));
    let (input, output) = (
        file(&r.input, "standard input"),
        file(&r.output, "standard output"),
    );
    Page {
        kind: "optimize",
        title: &format!("{input} → {output}"),
        head: html! {
            h1 { (Name(&input)) span.arrow { "→" } (Name(&output)) }
            p.lead { (verdict(r)) }
            dl.tiles { (tiles(r)) }
            (words())
        },
        sections,
        scripts: &[diff::SCRIPT],
    }
    .render()
}

/// What people call the file that was read or written.
fn file(path: &Option<String>, stream: &'static str) -> String {
    match path.as_deref() {
        None | Some("-") => stream.to_owned(),
        Some(path) => file_name(path).to_owned(),
    }
}

/// The result in one or two sentences.
fn verdict(r: &Report) -> String {
    if !r.changed {
        return "No pass found anything to do: the model is as it was.".to_owned();
    }
    let mut parts = Vec::new();
    if let (Some(a), Some(b)) = (r.before.file_bytes, r.after.file_bytes) {
        parts.push(match change(a as f64, b as f64) {
            Some(text) => format!("The file is {text}"),
            None => "The file is about as large as it was".to_owned(),
        });
    }
    if let Some(l) = &r.latency {
        parts.push(speed(l));
    }
    let mut out = match parts.as_slice() {
        [] => String::new(),
        parts => parts.join(", and ") + ". ",
    };
    out += &fidelity(r);
    out
}

/// `42 % smaller`; `None` for less than half a percent.
fn change(before: f64, after: f64) -> Option<String> {
    let ratio = after / before.max(1.0);
    let percent = 100.0 * (ratio - 1.0).abs();
    let word = if ratio < 1.0 { "smaller" } else { "larger" };
    (percent >= 0.5).then(|| format!("{percent:.0} % {word}"))
}

fn speed(l: &Latency) -> String {
    if l.ratio_high < 1.0 {
        format!("one run is {:.2} times as fast", 1.0 / l.ratio)
    } else if l.ratio_low > 1.0 {
        format!("one run takes {:.0} % longer", 100.0 * (l.ratio - 1.0))
    } else {
        "one run takes as long as before, as far as can be measured".to_owned()
    }
}

fn fidelity(r: &Report) -> String {
    let Some(v) = &r.validation else {
        return "The outputs were not compared.".to_owned();
    };
    let on = plural(v.samples, "sample");
    if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
        return match a == b {
            true => format!("Accuracy on {on} stays at {}.", percent(a)),
            false => format!(
                "Accuracy on {on} goes from {} to {}.",
                percent(a),
                percent(b)
            ),
        };
    }
    if v.sqnr_db.is_none() {
        return format!("The outputs are equal on {on}.");
    }
    if !v.beyond_noise() {
        return format!("The outputs differ by no more than rounding does, on {on}.");
    }
    match v.top1_agreement {
        Some(t) => format!("The largest output is the same in {} of {on}.", percent(t)),
        None => format!("The outputs differ by {} on {on}.", error_text(v)),
    }
}

fn error_text(v: &Validation) -> String {
    v.sqnr_db.map_or_else(
        || "nothing".to_owned(),
        |db| show_error(10f64.powf(-db / 20.0)),
    )
}

fn tiles(r: &Report) -> Markup {
    let under = |a: u64, b: u64, show: fn(u64) -> String| format!("{} → {}", show(a), show(b));
    let ratio = |a: u64, b: u64| match a {
        0 => "–".to_owned(),
        a => format!("× {:.2}", b as f64 / a as f64),
    };
    let (a, b) = (&r.before, &r.after);
    html! {
        @if let (Some(a), Some(b)) = (a.file_bytes, b.file_bytes) {
            (tile("File", &ratio(a, b), &under(a, b, bytes)))
        }
        @if let Some(l) = &r.latency {
            (tile("Latency", &format!("× {:.2}", l.ratio), &format!("{:.3} → {:.3} ms", l.before_ms, l.after_ms)))
        }
        (tile("MACs", &ratio(a.cost.macs, b.cost.macs), &under(a.cost.macs, b.cost.macs, count)))
        (tile("Operators", &ratio(a.cost.nodes, b.cost.nodes), &under(a.cost.nodes, b.cost.nodes, count)))
        @if let Some(v) = &r.validation {
            @if let (Some(x), Some(y)) = (v.accuracy_before, v.accuracy_after) {
                (tile("Accuracy", &percent(y), &format!("was {}, {}", percent(x), plural(v.samples, "sample"))))
            } @else if let Some(db) = v.sqnr_db {
                (tile("Output error", &show_error(10f64.powf(-db / 20.0)), &format!("SQNR {db:.1} dB")))
            } @else {
                (tile("Output error", "0", "the outputs are equal"))
            }
        }
    }
}

/// A row of the comparison: texts, the ratio and its interval.
struct Compared {
    what: String,
    before: Markup,
    after: Markup,
    ratio: Option<f64>,
    interval: Option<(f64, f64)>,
}

fn summary(r: &Report) -> Markup {
    let mut rows: Vec<Compared> = Vec::new();
    let mut push = |what: &str, a: u64, b: u64, show: fn(u64) -> String| {
        rows.push(Compared {
            what: what.to_owned(),
            before: html! { (show(a)) },
            after: html! { (show(b)) },
            ratio: (a > 0).then(|| b as f64 / a as f64),
            interval: None,
        });
    };
    let (x, y) = (&r.before.cost, &r.after.cost);
    if let (Some(a), Some(b)) = (r.before.file_bytes, r.after.file_bytes) {
        push("File", a, b, bytes);
    }
    push("Weights", x.weight_bytes, y.weight_bytes, bytes);
    push("Parameters", x.parameters, y.parameters, count);
    push("Operators", x.nodes, y.nodes, count);
    push(
        "MACs (multiply-accumulates of one run)",
        x.macs,
        y.macs,
        count,
    );
    if let (Some(a), Some(b)) = (x.effective_macs, y.effective_macs) {
        push("MACs with a weight that is not zero", a, b, count);
    }
    if let Some(l) = &r.latency {
        let time = |ms: f64, (low, high): (f64, f64)| {
            html! {
                (format!("{ms:.3} ms")) span.muted { (format!(" [{low:.3}, {high:.3}]")) }
            }
        };
        rows.push(Compared {
            what: format!("Latency in {}", r.engine),
            before: time(l.before_ms, l.before_interval_ms),
            after: time(l.after_ms, l.after_interval_ms),
            ratio: Some(l.ratio),
            interval: Some((l.ratio_low, l.ratio_high)),
        });
    }
    html! {
        (comparison(&rows))
        @if let Some(l) = &r.latency {
            p {
                "Latency is the median of " (plural(l.runs, "pair")) " of runs with "
                (plural(l.threads, "thread")) ", the two models in turn. Brackets and the thin line hold the "
                "true median, and the true ratio, in 95 of 100 cases."
                @if (l.after_ms / l.before_ms / l.ratio).ln().abs() > 0.1 {
                    " The machine was busy: the ratio is the median over pairs of runs, which such noise "
                    "moves less than the two times themselves."
                }
                @if let Some(form) = &l.form { " The rewritten model was timed " (Name(form)) "." }
            }
        }
        @if !r.forms.is_empty() { (forms(&r.forms)) }
    }
}

/// A quantized model in its forms.
fn forms(all: &[FormReport]) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Form"),
        Column::number("File"),
        Column::number("SQNR"),
        Column::number("Accuracy"),
        Column::number("Latency"),
        Column::number("Ratio").help("Over the latency of the float model, in turn"),
        Column::number("Quantizing")
            .help("The share of the time spent in QuantizeLinear and DequantizeLinear"),
    ];
    let rows = all.iter().map(|f| {
        Row::new(vec![
            Cell::text(html! { (f.form) }),
            Cell::number(f.file_bytes.map(|b| b as f64), |b| bytes(b as u64)),
            Cell::number(f.sqnr_db, |db| format!("{db:.1} dB")),
            Cell::number(f.accuracy, percent),
            Cell::number(Some(f.latency_ms), |ms| format!("{ms:.3} ms")),
            Cell::number(Some(f.ratio), |x| format!("{x:.3}")),
            Cell::number(Some(f.quantize_share), percent),
        ])
    });
    html! {
        p {
            "The model as it was, with QuantizeLinear and DequantizeLinear, and lowered to integer operators, on "
            (plural(all.first().map_or(0, |f| f.samples), "sample")) ":"
        }
        (Table { id: "forms-table", columns: COLUMNS, rows: rows.collect(), shown: SHOWN, search: None })
    }
}

fn comparison(rows: &[Compared]) -> Markup {
    let most = rows
        .iter()
        .filter_map(|r| r.interval.map(|i| i.1).or(r.ratio))
        .filter(|x| x.is_finite())
        .fold(1.0, f64::max);
    let place = |x: f64| format!("{:.4}", (x / most).clamp(0.0, 1.0));
    html! {
        div.scroll { table.data #comparison {
            thead { tr {
                th scope="col" {} th.n scope="col" { "Before" } th.n scope="col" { "After" }
                th.n scope="col" { "Ratio" } th.wide scope="col" { "After, over before (dashed: as before)" }
            } }
            tbody { @for r in rows { tr {
                td { (r.what) } td.n { (r.before) } td.n { (r.after) }
                td.n { @match r.ratio { Some(x) => (format!("{x:.3}")), None => "–" } }
                td.wide { @if let Some(x) = r.ratio {
                    div.ratio style={ "--r:" (place(x)) ";--one:" (place(1.0)) } {
                        @if let Some((low, high)) = r.interval {
                            i style={ "--lo:" (place(low)) ";--hi:" (place(high)) } {}
                        }
                    }
                } }
            } } }
        } }
    }
}

fn outputs(r: &Report) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Output"),
        Column::number("Error")
            .help("Norm of the difference over the norm of the original's output"),
        Column::number("SQNR")
            .help("Signal to quantization-noise ratio: 20 dB more is a tenth of the error"),
        Column::number("Largest difference").wide(),
        Column::number("Cosine, mean").wide(),
        Column::number("Cosine, worst").wide(),
    ];
    let Some(v) = &r.validation else {
        let why = r.unvalidated.as_deref().unwrap_or("not asked for");
        return html! { div.callout { "Not compared: " (Name(why)) } };
    };
    let rows = v.outputs.iter().map(|o| {
        let error = o.sqnr_db.map_or(0.0, |db| 10f64.powf(-db / 20.0));
        Row::new(vec![
            Cell::text(name(&o.name)),
            Cell::number(Some(error), show_error),
            Cell::number(o.sqnr_db, |db| format!("{db:.1} dB")),
            Cell::number(Some(o.max_abs), number),
            Cell::number(o.cosine, |c| format!("{c:.6}")),
            Cell::number(o.cosine_min, |c| format!("{c:.6}")),
        ])
    });
    html! {
        p {
            "Both models ran on the same " (plural(v.samples, "sample")) " (" (Name(&v.data)) ") in "
            (Name(&v.engine)) "."
            @if !v.beyond_noise() {
                " The difference is within what rounding does to the original itself."
            }
        }
        dl.facts {
            @if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
                (accuracy("Accuracy, top-1", a, b, v.samples))
            }
            @if let (Some(a), Some(b)) = (v.top5_before, v.top5_after) {
                (accuracy("Accuracy, top-5", a, b, v.samples))
            }
            @if let Some(t) = v.top1_agreement {
                dt { "Same decision" } dd { (percent(t)) " of the samples have the same largest output" }
            }
        }
        (Table { id: "outputs-table", columns: COLUMNS, rows: rows.collect(), shown: SHOWN, search: None })
    }
}

fn accuracy(what: &str, before: f64, after: f64, samples: usize) -> Markup {
    let side = |p: f64| {
        let (low, high) = wilson(p, samples);
        html! { (percent(p)) span.muted { (format!(" [{:.1}, {:.1}]", 100.0 * low, 100.0 * high)) } }
    };
    html! { dt { (what) } dd { (side(before)) " → " (side(after)) } }
}

/// The 95 % interval of a share that was counted on some samples (Wilson, 1927).
fn wilson(share: f64, samples: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    let n = samples.max(1) as f64;
    let middle = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// A relative error for people.
fn show_error(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x < 1e-4 => format!("{x:.0e}"),
        x if x < 10.0 => format!("{:.*} %", if x < 0.1 { 2 } else { 1 }, 100.0 * x),
        x => format!("× {x:.0}"),
    }
}

fn layers(l: &LayerErrors) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::number("#").wide(),
        Column::text("Layer"),
        Column::number("By itself").help("The layer fed with the original's values"),
        Column::number("Accumulated").help("With the errors of all layers before"),
        Column::number("At the output")
            .help("The error of the outputs when this layer alone is replaced in the original"),
        Column::text("Share of sensitivity").wide(),
    ];
    let most = l.layers.iter().filter_map(|l| l.output).fold(0.0, f64::max);
    let rows: Vec<Row> = l
        .layers
        .iter()
        .enumerate()
        .map(|(i, e)| layer_row(i, e, most))
        .collect();
    let worst = l.layers.iter().filter_map(|e| e.isolated.or(e.accumulated));
    let quiet = worst.fold(0.0, f64::max) < ROUNDING;
    html! {
        p {
            "How far the values behind each layer are from the original's: the norm of the difference over "
            "the norm of the value, on " (plural(l.samples, "sample")) " of " (Name(&l.data)) ". "
            b { "By itself" } " the layer gets the original's values, so only its own error shows; "
            b { "accumulated" } " it gets what the rewritten layers before it give. "
            b { "At the output" } " says how much of it arrives there, which is the sensitivity of the "
            "model to that layer; the bars compare it with that of the worst layer."
        }
        @if quiet { p { "No layer differs by more than rounding." } }
        @else { (layer_plot(l)) }
        (Table {
            id: "layers-table", columns: COLUMNS, rows, shown: SHOWN, search: Some("Find a layer"),
        })
        @if l.merged > 0 {
            p {
                (plural(l.merged, "operator")) " with multiply-accumulates have no value of their own in the "
                "original (its shape or its scale changed, or it is new) and count for the next layer that has."
            }
        }
        @if !l.notes.is_empty() { (notes(&l.notes)) }
    }
}

fn layer_row(index: usize, e: &LayerError, most: f64) -> Row {
    let share = e.output.map(|x| if most > 0.0 { x / most } else { 0.0 });
    Row::new(vec![
        Cell::number(Some((index + 1) as f64), |i| i.to_string()),
        Cell::text(html! {
            (Name(&e.op_type)) " " (name(&e.name))
            @if e.operators > 1 { span.muted { " and " (e.operators - 1) " more" } }
        }),
        Cell::number(e.isolated, show_error),
        Cell::number(e.accumulated, show_error),
        Cell::number(e.output, show_error),
        Cell::by(
            share,
            html! { @if let Some(s) = share {
                span.bar style={ "--v:" (format!("{s:.4}")) } {}
            } },
        ),
    ])
}

fn layer_plot(l: &LayerErrors) -> Markup {
    let series = |label: &'static str, of: fn(&LayerError) -> Option<f64>| {
        let drawn = l.layers.iter().enumerate();
        let drawn = drawn.filter_map(|(i, e)| Some((i, e, of(e).filter(|x| *x >= ROUNDING)?)));
        let (points, texts) = drawn
            .map(|(i, e, x)| {
                let text = format!(
                    "{} {}: {}",
                    paring_ir::escape(&e.op_type),
                    paring_ir::escape(&e.name),
                    show_error(x)
                );
                (((i + 1) as f64, x), text)
            })
            .unzip();
        Series {
            name: label,
            style: Style::Dots,
            points,
            texts,
        }
    };
    let all = [
        series("accumulated", |e| e.accumulated),
        series("by itself", |e| e.isolated),
    ];
    let values = || all.iter().flat_map(|s| s.points.iter().map(|p| p.1));
    let low = values().fold(f64::INFINITY, f64::min).max(ROUNDING);
    let high = values().fold(low, f64::max);
    Plot {
        title: "Relative error of each layer",
        about: "in the order of the data flow; what is below 0.00001 is rounding and not drawn",
        x: Axis::linear(1.0, l.layers.len() as f64, 6, "layer"),
        y: Axis::log(low, high, "relative error"),
        series: all.into(),
        mark: None,
        height: 220,
    }
    .render()
}

fn passes(all: &[PassReport]) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Pass"),
        Column::text("Did"),
        Column::number("Operators").wide(),
        Column::number("Parameters").wide(),
        Column::number("MACs").wide(),
        Column::number("Output error")
            .wide()
            .help("Of a lossy pass, against the original"),
        Column::number("Time"),
    ];
    let rows = all.iter().map(|p| {
        let said = !p.remarks.kept.is_empty();
        let error = p
            .difference
            .as_ref()
            .map(|d| d.sqnr_db.map_or(0.0, |db| 10f64.powf(-db / 20.0)));
        Row {
            cells: vec![
                Cell::text(pass_name(p)),
                Cell::text(html! { (did(p)) }),
                step(p.before.nodes, p.after.nodes),
                step(p.before.parameters, p.after.parameters),
                step(p.before.macs, p.after.macs),
                Cell::number(error, show_error),
                Cell::number(Some(p.seconds), duration),
            ],
            detail: (said || !p.options.is_empty()).then(|| pass_detail(p)),
            quiet: !p.changed && p.undone.is_empty() && p.remarks.missed.is_empty(),
        }
    });
    let rows: Vec<Row> = rows.collect();
    let idle = rows.iter().filter(|r| r.quiet).count();
    html! {
        p {
            "In the order in which they ran. Open a row for what a pass said about each operator."
            @if idle > 0 { " " (plural(idle, "run")) " found nothing to do and are hidden at first." }
        }
        (Table { id: "passes-table", columns: COLUMNS, rows, shown: usize::MAX, search: None })
    }
}

fn pass_name(p: &PassReport) -> Markup {
    html! {
        (name(&p.name))
        @if p.effect == Effect::Lossy { " " span.tag.lossy title="It may change the outputs" { "lossy" } }
        @if !p.undone.is_empty() { " " span.tag.undone { "undone" } }
    }
}

/// What a pass did in a few words.
fn did(p: &PassReport) -> String {
    let words = |map: &BTreeMap<String, usize>| {
        let each = map
            .iter()
            .map(|(code, n)| format!("{n} × {}", code.replace('-', " ")));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut out = Vec::new();
    for b in &p.undone {
        out.push(format!("undone, as it broke a limit: {b}"));
    }
    if !p.remarks.applied.is_empty() {
        out.push(words(&p.remarks.applied));
    }
    if !p.remarks.missed.is_empty() {
        out.push(format!("left alone: {}", words(&p.remarks.missed)));
    }
    if let (Some(by), true) = (&p.required_by, p.changed) {
        out.push(format!("wanted by {by}"));
    }
    if out.is_empty() {
        out.push(
            if p.changed {
                "changed the model"
            } else {
                "nothing to do"
            }
            .to_owned(),
        );
    }
    paring_ir::escape(&out.join("; "))
}

fn step(before: u64, after: u64) -> Cell {
    let change = after as f64 - before as f64;
    let text = match before.cmp(&after) {
        std::cmp::Ordering::Equal => String::new(),
        std::cmp::Ordering::Less => format!("+{}", count(after - before)),
        std::cmp::Ordering::Greater => format!("−{}", count(before - after)),
    };
    Cell::by(Some(change), html! { (text) })
}

fn pass_detail(p: &PassReport) -> Markup {
    let options = serde_json::to_string(&p.options).unwrap_or_default();
    html! {
        @if !p.options.is_empty() {
            dl.facts { dt { "Options" } dd { (name(&options)) } }
        }
        @for (kind, label) in [(RemarkKind::Applied, "Done"), (RemarkKind::Missed, "Left alone")] {
            (remarks(p, kind, label))
        }
        @if !p.notes.is_empty() { (notes(&p.notes)) }
    }
}

fn remarks(p: &PassReport, kind: RemarkKind, label: &str) -> Markup {
    let kept: Vec<_> = p.remarks.kept.iter().filter(|r| r.kind == kind).collect();
    let total: usize = match kind {
        RemarkKind::Applied => p.remarks.applied.values().sum(),
        RemarkKind::Missed => p.remarks.missed.values().sum(),
    };
    html! { @if !kept.is_empty() {
        dl.facts {
            @for (i, r) in kept.iter().take(REMARKS).enumerate() {
                dt { @if i == 0 { (label) } }
                dd {
                    (Name(&r.op_type)) " " (name(&r.op)) " "
                    span.muted { (Name(&r.code)) @if !r.message.is_empty() { ": " (Name(&r.message)) } }
                }
            }
            @if total > REMARKS.min(kept.len()) {
                dt {} dd.muted { "and " (total - REMARKS.min(kept.len())) " more" }
            }
        }
    } }
}

/// What was left alone, by reason, over all passes that could have done it.
fn missed(all: &[PassReport]) -> Option<Section> {
    const COLUMNS: &[Column] = &[
        Column::text("Pass"),
        Column::text("Reason"),
        Column::number("Operators"),
        Column::text("For example").wide(),
    ];
    // A pass that runs again says again what it said before: the last run counts.
    let mut last: BTreeMap<&str, &PassReport> = BTreeMap::new();
    for p in all {
        last.insert(&p.name, p);
    }
    let mut rows = Vec::new();
    for p in last.values() {
        for (code, n) in &p.remarks.missed {
            let example = p.remarks.kept.iter();
            let mut example = example.filter(|r| r.kind == RemarkKind::Missed && r.code == *code);
            let example = example.next();
            rows.push(Row::new(vec![
                Cell::text(name(&p.name)),
                Cell::text(html! { (Name(&code.replace('-', " "))) }),
                Cell::number(Some(*n as f64), |_| n.to_string()),
                Cell::text(html! { @if let Some(r) = example {
                    (name(&r.op)) @if !r.message.is_empty() { ": " (Name(&r.message)) }
                } }),
            ]));
        }
    }
    (!rows.is_empty()).then(|| {
        let table = Table {
            id: "missed-table",
            columns: COLUMNS,
            rows,
            shown: SHOWN,
            search: None,
        };
        let body = html! {
            p { "What passes recognized and left alone, and why. A refusal is no error: the operator stays as it was." }
            (table)
        };
        titled("missed", "Missed", "Missed chances", body)
    })
}

fn again(story: &Story<'_>) -> Markup {
    let r = story.report;
    let limits = r
        .recipe
        .get("accept")
        .filter(|a| a.as_object().is_some_and(|a| !a.is_empty()));
    html! {
        p {
            "With this recipe in a file the same model, data, seed and build give the same bytes."
            @if let Some(Json::Object(limits)) = limits {
                " Limits: "
                @for (i, (key, value)) in limits.iter().enumerate() {
                    @if i > 0 { ", " } (Name(key)) " " (value.to_string())
                }
                "."
            }
        }
        (copyable(story.command))
        (copyable(story.recipe))
    }
}

fn all_notes(r: &Report) -> Option<Section> {
    let mut all: Vec<String> = Vec::new();
    for p in &r.passes {
        all.extend(p.notes.iter().map(|n| format!("{}: {n}", p.name)));
    }
    all.extend(r.notes.iter().cloned());
    all.extend(r.validation.iter().flat_map(|v| v.notes.iter().cloned()));
    let mut seen = std::collections::HashSet::new();
    all.retain(|n| seen.insert(n.clone()));
    (!all.is_empty()).then(|| section("notes", "Notes", notes(&all)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_shares_are_those_of_wilson() {
        let (low, high) = wilson(0.85, 20);
        assert!(
            (low - 0.6396).abs() < 1e-3 && (high - 0.9476).abs() < 1e-3,
            "{low} {high}"
        );
        assert!((wilson(1.0, 10).1 - 1.0).abs() < 1e-12);
        assert!(wilson(0.0, 10).0 < 1e-12);
    }

    #[test]
    fn errors_and_changes_read_well() {
        assert_eq!(show_error(0.0), "0");
        assert_eq!(show_error(2.3e-6), "2e-6");
        assert_eq!(show_error(0.0123), "1.23 %");
        assert_eq!(show_error(0.5), "50.0 %");
        assert_eq!(show_error(31.6), "× 32");
        assert_eq!(change(100.0, 58.0).as_deref(), Some("42 % smaller"));
        assert_eq!(change(1000.0, 1001.0), None);
    }
}

//! The page of `paring inspect`.

use maud::{Markup, Render, html};

use super::format::{bytes, count, number, plural};
use super::kit::{
    Cell, Column, Name, Page, Row, Section, Table, name, notes, percent, share_bar, tile,
};
use super::plot::{Axis, Plot, Series, Style, spark};
use crate::inspect::{Details, Histogram, Layer, Port, Spectrum, WeightStats};
use crate::validate::{Profile, ProfileRow};

/// So many rows of a table are shown at first.
const SHOWN: usize = 25;
/// So many weights get plots, the largest ones, so that the page stays small.
const PLOTTED: usize = 400;
/// Tensors beyond this many, the smallest ones, are left out.
const TENSORS: usize = 2000;

/// The page about a model. `file` is what the model is called.
pub fn inspect_page(file: &str, d: &Details) -> String {
    let mut sections = vec![
        section("operators", "Operators", operators(d)),
        section("layers", "Layers and weights", layers(d)),
    ];
    if let Some(p) = &d.profile {
        sections.push(titled("time", "Time", "Where the time goes", profile(p)));
    }
    sections.push(section("tensors", "Largest tensors", tensors(d)));
    sections.push(section("interface", "Inputs and outputs", interface(d)));
    if !d.notes.is_empty() {
        sections.push(section("notes", "Notes", notes(&d.notes)));
    }
    Page {
        kind: "inspect",
        title: file,
        head: html! { h1 { (Name(file_name(file))) } (head(file, d)) },
        sections,
        scripts: &[],
    }
    .render()
}

/// A part of a page that goes by its whole title.
pub(super) fn section(id: &'static str, title: &'static str, body: Markup) -> Section {
    titled(id, title, title, body)
}

/// A part of a page with a shorter title for the list at the top.
pub(super) fn titled(
    id: &'static str,
    short: &'static str,
    title: &'static str,
    body: Markup,
) -> Section {
    Section {
        id,
        short,
        title,
        body,
    }
}

/// The last part of a path, which is what people call a file.
pub(super) fn file_name(path: &str) -> &str {
    match path {
        "-" => "standard input",
        path => path.rsplit(['/', '\\']).next().unwrap_or(path),
    }
}

fn head(file: &str, d: &Details) -> Markup {
    let n = &d.numbers;
    let opsets: Vec<String> = d.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
    let producer = match d.producer.as_str() {
        "" => "an unnamed program",
        p => p,
    };
    let constants = match n.cost.constants {
        0 => String::new(),
        c => format!("and {c} Constant"),
    };
    html! {
        p.under {
            (name(file)) ": " (Name(&opsets.join(", "))) ", IR version " (d.ir_version)
            ", made by " (Name(producer))
        }
        dl.tiles {
            (tile("Operators", &count(n.cost.nodes), &constants))
            (tile("Parameters", &count(n.cost.parameters), &format!("{} of weights", bytes(n.cost.weight_bytes))))
            (tile("Multiply-accumulates", &count(n.cost.macs), &macs_note(d)))
            (tile("Zeros among parameters", &percent(n.sparsity.unwrap_or(0.0)), ""))
            @if let Some(b) = n.file_bytes { (tile("File", &bytes(b), "")) }
            @if let Some(p) = &d.profile {
                (tile("One run", &format!("{:.3} ms", p.total_ms), &plural(p.threads, "thread")))
            }
        }
    }
}

fn macs_note(d: &Details) -> String {
    let n = &d.numbers;
    let mut out = if n.cost.macs_assumed {
        "open sizes taken as 1".to_owned()
    } else if n.macs_shapes.is_empty() {
        "of one run".to_owned()
    } else {
        let shapes = n.macs_shapes.iter().map(|(name, dims)| {
            let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
            format!("{name} = {}", dims.join("×"))
        });
        format!("at {}", shapes.collect::<Vec<_>>().join("; "))
    };
    if n.cost.macs_unknown > 0 {
        out += &format!(
            ", without those of {}",
            plural(n.cost.macs_unknown, "operator")
        );
    }
    out
}

fn operators(d: &Details) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Type"),
        Column::number("Count"),
        Column::number("Parameters")
            .help("Elements of the weights that operators of this type take"),
        Column::number("Bytes").wide(),
        Column::number("MACs").help("Multiply-accumulates, each operator run once"),
        Column::text("Share of MACs").wide(),
    ];
    let macs: u64 = d
        .types
        .iter()
        .map(|t| t.cost.macs)
        .fold(0, u64::saturating_add);
    let number = |n: u64, show: fn(u64) -> String| {
        Cell::number((n > 0).then_some(n as f64), move |_| show(n))
    };
    let rows = d.types.iter().map(|t| {
        let c = &t.cost;
        let share = (c.macs > 0).then(|| c.macs as f64 / macs.max(1) as f64);
        Row::new(vec![
            Cell::text(name(&t.op_type)),
            number(c.nodes, count),
            number(c.parameters, count),
            number(c.bytes, bytes),
            number(c.macs, count),
            Cell::share(share),
        ])
    });
    Table {
        id: "types",
        columns: COLUMNS,
        rows: rows.collect(),
        shown: SHOWN,
        search: None,
    }
    .render()
}

/// A layer, one of its weights, or both.
type Pair<'a> = (Option<&'a Layer>, Option<&'a WeightStats>);

/// Layers in order with their weights, of which the first stands beside the layer; then the
/// weights of what has no MACs.
fn joined(d: &Details) -> Vec<Pair<'_>> {
    let weights = d.weights.as_deref().unwrap_or_default();
    let mut of_layer: std::collections::HashMap<&str, Vec<&WeightStats>> =
        std::collections::HashMap::new();
    for w in weights {
        of_layer.entry(&w.layer).or_default().push(w);
    }
    let mut out: Vec<Pair<'_>> = Vec::new();
    let mut placed = std::collections::HashSet::new();
    for l in &d.layers {
        let mine = of_layer.remove(l.name.as_str()).unwrap_or_default();
        placed.insert(l.name.as_str());
        out.push((Some(l), mine.first().copied()));
        out.extend(mine.iter().skip(1).map(|&w| (None, Some(w))));
    }
    let rest = weights
        .iter()
        .filter(|w| !placed.contains(w.layer.as_str()));
    out.extend(rest.map(|w| (None, Some(w))));
    out
}

fn layers(d: &Details) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Operator"),
        Column::text("Weight").wide(),
        Column::number("MACs").help("Multiply-accumulates of one run"),
        Column::number("Share")
            .wide()
            .help("Of the multiply-accumulates of the model"),
        Column::number("Zeros").help("Share of the weight's elements that are zero"),
        Column::number("2:4").wide().help(
            "Share of groups of four neighbouring inputs with at least two zeros; 100 % is what \
             sparse tensor cores want",
        ),
        Column::number("Distinct")
            .wide()
            .help("How many different values the weight takes"),
        Column::number("Rank 99 %").wide().help(
            "How many singular values hold 99 % of the sum of squares, of how many there are",
        ),
        Column::text("Distribution"),
    ];
    let pairs = joined(d);
    let mut sizes: Vec<u64> = pairs
        .iter()
        .filter_map(|p| p.1.map(|w| w.elements))
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let least = sizes.get(PLOTTED).copied().unwrap_or(0);
    let total = d.numbers.cost.macs.max(1) as f64;
    let rows: Vec<Row> = pairs
        .iter()
        .map(|&(layer, weight)| layer_row(layer, weight, total, least))
        .collect();
    if rows.is_empty() {
        return html! { p { "No operator of this model has a weight or multiplies." } };
    }
    let table = Table {
        id: "layers-table",
        columns: COLUMNS,
        rows,
        shown: SHOWN,
        search: Some("Find a layer"),
    };
    html! {
        p {
            "In the order in which data flows. Open a row for the distribution of its weight, its zeros "
            "by pattern, and how fast its singular values fall."
        }
        (table)
        @if least > 0 { p { "Only the " (PLOTTED) " largest weights have plots; the JSON form has all." } }
    }
}

fn layer_row(layer: Option<&Layer>, weight: Option<&WeightStats>, total: f64, least: u64) -> Row {
    let (label, op_type) = match (layer, weight) {
        (Some(l), _) => (l.name.as_str(), l.op_type.as_str()),
        (None, Some(w)) => (w.layer.as_str(), w.op_type.as_str()),
        (None, None) => ("", ""),
    };
    let macs = layer.map(|l| l.macs as f64);
    let pattern = weight.and_then(|w| w.patterns.iter().find(|p| p.name == "2:4"));
    let spectrum = weight.and_then(|w| w.spectrum.as_ref());
    let distinct = weight.map(|w| w.distinct);
    let histogram = weight.and_then(|w| w.histogram.as_ref());
    Row {
        cells: vec![
            Cell::text(html! { (op_type) " " (name(label)) }),
            Cell::text(html! { @match weight {
                Some(w) => (name(&w.ty)),
                None => span.muted { "none" },
            } }),
            Cell::number(macs, |m| count(m as u64)),
            Cell::number(macs.map(|m| m / total), percent),
            Cell::number(weight.map(|w| w.sparsity), percent),
            Cell::number(pattern.map(|p| p.share), percent),
            Cell::number(distinct.map(|n| n.map_or(f64::MAX, |n| n as f64)), |n| {
                if n == f64::MAX {
                    "> 65536".to_owned()
                } else {
                    count(n as u64)
                }
            }),
            Cell::by(
                spectrum.map(|s| s.rank_99 as f64 / s.count.max(1) as f64),
                html! { @match spectrum {
                    Some(s) => { (s.rank_99) " of " (s.count) },
                    None => span.muted { "–" },
                } },
            ),
            Cell::text(html! { @if let Some(h) = histogram { (spark(&h.counts)) } }),
        ],
        detail: weight
            .filter(|w| w.elements > least || least == 0)
            .map(weight_detail),
        quiet: false,
    }
}

fn weight_detail(w: &WeightStats) -> Markup {
    html! {
        dl.facts {
            dt { "Weight" } dd { (name(&w.name)) " " (name(&w.ty)) }
            @if !w.through.is_empty() {
                dt { "Stored" } dd { "as codes, through " (Name(&w.through.join(", "))) }
            }
            dt { "Elements" }
            dd {
                (count(w.elements)) " from " (number(w.min)) " to " (number(w.max))
                ", mean " (number(w.mean)) ", standard deviation " (number(w.deviation))
            }
            @if !w.patterns.is_empty() {
                dt { "Zeros" } dd { (percent(w.sparsity)) " of the elements; " (patterns(w)) }
            }
        }
        div.pair {
            @if let Some(h) = &w.histogram { (histogram(h, w.sparsity)) }
            @if let Some(s) = &w.spectrum { (decay(s)) }
        }
    }
}

fn patterns(w: &WeightStats) -> Markup {
    let text = |p: &crate::inspect::Pattern| {
        let what = match p.name.as_str() {
            "2:4" => "groups with two zeros of four".to_owned(),
            "kernel" => "kernels".to_owned(),
            "row" => "output channels".to_owned(),
            "column" => "input channels".to_owned(),
            size => format!("blocks of {}", size.replace('x', "×")),
        };
        format!("{} {}", percent(p.share), what)
    };
    let all: Vec<String> = w.patterns.iter().map(text).collect();
    html! { (all.join(", ")) }
}

/// The distribution of a weight.
pub(super) fn histogram(h: &Histogram, sparsity: f64) -> Markup {
    let most = h.counts.iter().copied().max().unwrap_or(0);
    let width = (h.high - h.low) / h.counts.len().max(1) as f64;
    let points = h.counts.iter().enumerate();
    let points = points.map(|(i, &n)| (h.low + i as f64 * width, n as f64));
    let about = match sparsity {
        s if s > 0.0 => format!("of the elements that are not zero ({} are)", percent(s)),
        _ => "of the elements".to_owned(),
    };
    Plot {
        title: "Distribution",
        about: &about,
        x: Axis::linear(h.low, h.high, 4, "value"),
        y: Axis::rounded(0.0, most as f64, 3, "elements"),
        series: vec![Series {
            name: "elements",
            style: Style::Bars,
            points: points.collect(),
            texts: Vec::new(),
        }],
        mark: None,
        height: 150,
    }
    .render()
}

fn decay(s: &Spectrum) -> Markup {
    let last = s.count.saturating_sub(1);
    let kept = s.values.len().saturating_sub(1).max(1);
    // What is below a millionth of the largest is rounding.
    let shown = |x: f64| x.max(1e-6);
    let points = s.values.iter().enumerate();
    let points: Vec<(f64, f64)> = points
        .map(|(i, &x)| ((i * last / kept + 1) as f64, shown(x)))
        .collect();
    let least = points.iter().map(|p| p.1).fold(1.0, f64::min);
    let about = format!(
        "relative to the largest; 90 % of the sum of squares in {}, 99 % in {} of {} (dashed)",
        s.rank_90, s.rank_99, s.count
    );
    Plot {
        title: "Singular values",
        about: &about,
        x: Axis::linear(1.0, s.count as f64, 4, "index"),
        y: Axis::log(least, 1.0, "value"),
        series: vec![Series {
            name: "singular values",
            style: Style::Line,
            points,
            texts: Vec::new(),
        }],
        mark: Some((s.rank_99 as f64, format!("99 % in {}", s.rank_99))),
        height: 150,
    }
    .render()
}

fn profile(p: &Profile) -> Markup {
    const TYPES: &[Column] = &[
        Column::text("Engine operator"),
        Column::number("Count"),
        Column::number("ms"),
        Column::text("Share"),
    ];
    const NODES: &[Column] = &[
        Column::text("Operator"),
        Column::text("Engine operator").wide(),
        Column::number("ms"),
        Column::text("Share"),
    ];
    let row = |r: &ProfileRow, cells: Vec<Cell>| {
        let mut cells = cells;
        cells.push(Cell::number(Some(r.ms), |ms| format!("{ms:.3}")));
        cells.push(Cell::by(Some(r.share), share_bar(r.share)));
        Row::new(cells)
    };
    let types = p.types.iter().map(|r| {
        let n = Cell::number(Some(r.count as f64), |_| r.count.to_string());
        row(r, vec![Cell::text(name(&r.name)), n])
    });
    let nodes = p
        .nodes
        .iter()
        .map(|r| row(r, vec![Cell::text(name(&r.name)), Cell::text(name(&r.op))]));
    html! {
        p {
            "Measured in tract operator by operator on random inputs, the mean of "
            (plural(p.runs, "run")) " with " (plural(p.threads, "thread"))
            ": " (format!("{:.3}", p.total_ms)) " ms in all. The engine merges and splits operators, "
            "so its names are not those of the file."
        }
        (Table { id: "time-types", columns: TYPES, rows: types.collect(), shown: SHOWN, search: None })
        div.block { h3 { "By operator" } }
        (Table { id: "time-nodes", columns: NODES, rows: nodes.collect(), shown: SHOWN, search: Some("Find an operator") })
    }
}

fn tensors(d: &Details) -> Markup {
    const COLUMNS: &[Column] = &[
        Column::text("Tensor"),
        Column::text("Type").wide(),
        Column::text("Used by").wide(),
        Column::number("Bytes"),
        Column::number("Zeros"),
    ];
    if d.tensors.is_empty() {
        return html! { p { "This model has no initializers." } };
    }
    let rows = d.tensors.iter().take(TENSORS).map(|t| {
        let users = html! { @match t.used_by.as_slice() {
            [] => span.muted { "nothing" },
            [first, rest @ ..] => {
                (name(first))
                @if !rest.is_empty() { " and " (rest.len()) " more" }
            },
        } };
        Row::new(vec![
            Cell::text(name(&t.name)),
            Cell::text(name(&t.ty)),
            Cell::text(users),
            Cell::number(Some(t.bytes as f64), |_| bytes(t.bytes)),
            Cell::number(Some(t.sparsity), percent),
        ])
    });
    let table = Table {
        id: "tensors-table",
        columns: COLUMNS,
        rows: rows.collect(),
        shown: 10,
        search: Some("Find a tensor"),
    };
    html! {
        (table)
        @if d.tensors.len() > TENSORS {
            p { "Of " (d.tensors.len()) " tensors the " (TENSORS) " largest are listed." }
        }
    }
}

fn interface(d: &Details) -> Markup {
    let ports = |title: &str, ports: &[Port]| {
        html! {
            @for (i, p) in ports.iter().enumerate() {
                dt { @if i == 0 { (title) } }
                dd { (name(&p.name)) " " span.muted { (name(&p.ty)) } }
            }
        }
    };
    let s = &d.shapes;
    html! {
        dl.facts {
            (ports("Inputs", &d.inputs))
            (ports("Outputs", &d.outputs))
            @if !d.functions.is_empty() {
                dt { "Functions" } dd { (Name(&d.functions.join(", "))) }
            }
            dt { "Shapes" }
            dd {
                "of " (s.values) " values between operators the rank is known for " (s.ranked)
                ", every size for " (s.fixed)
            }
        }
    }
}

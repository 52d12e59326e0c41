//! `paring inspect`: what is inside a model.

use std::fmt::Write;

use paring_ir::escape;

use super::args::{Common, Inspect};
use super::exit::Exit;
use super::terminal::{BOLD, Bar, DIM, bytes, clean, count, plural, short, table};
use super::{bench, io, terminal};
use crate::data::{RandomInputs, RunShapes};
use crate::engine::TractEngine;
use crate::inspect::{Details, WeightStats, details, weights};
use crate::report::inspect_page;
use crate::validate::{TimeOptions, profile};

/// Rows of the lists of tensors and of operators that are shown.
const SHOWN: usize = 10;
/// Names in these lists are cut to this width, and types and the names of users.
const NAME: usize = 32;
const TYPE: usize = 20;
const USER: usize = 22;

pub(super) fn run(common: &Common, args: &Inspect) -> anyhow::Result<Exit> {
    args.html.as_deref().map_or(Ok(()), io::check_writable)?;
    let loaded = io::read(common, &args.model)?;
    let mut details = details(&loaded.model, Some(loaded.file_bytes));
    let engine = TractEngine::new();
    if args.weights || args.html.is_some() {
        details.weights = Some(weights(&loaded.model, &engine, &Bar::new(common)));
    }
    if args.profile {
        let shapes = RunShapes::settle(&engine, &loaded.model, &io::shape_options(&args.running)?)?;
        let random = RandomInputs::new(&loaded.model, &shapes, 1, args.running.seed)?;
        let options = TimeOptions {
            threads: usize::from(args.running.threads),
            ..TimeOptions::default()
        };
        details.profile = Some(profile(&engine, &loaded.model, &random.run(0)?, &options)?);
        details
            .notes
            .extend(shapes.notes.iter().chain(random.notes()).cloned());
    }
    let name = args.model.display().to_string();
    if let Some(path) = &args.html {
        io::write_whole(path, &inspect_page(&name, &details))?;
    }
    if args.json {
        io::print_json(&details)?;
    } else if args.html.is_none() || !common.quiet {
        io::print(&text(&name, &details)?)?;
    }
    Ok(Exit::Success)
}

fn text(name: &str, d: &Details) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let n = &d.numbers;
    let opsets: Vec<String> = d
        .opsets
        .iter()
        .map(|(d, v)| format!("{} {v}", escape(d)))
        .collect();
    writeln!(out, "{BOLD}{}{BOLD:#}", escape(name))?;
    writeln!(
        out,
        "  {}, IR {}, made by {}",
        opsets.join(", "),
        d.ir_version,
        or_unknown(&d.producer)
    )?;
    let size = n
        .file_bytes
        .map_or_else(String::new, |b| format!(", file {}", bytes(b)));
    let constants = match n.cost.constants {
        0 => String::new(),
        c => format!(" (and {c} Constant)"),
    };
    writeln!(
        out,
        "  {}{constants}, {} parameters in {}{size}",
        plural(
            usize::try_from(n.cost.nodes).unwrap_or(usize::MAX),
            "operator"
        ),
        count(n.cost.parameters),
        bytes(n.cost.weight_bytes)
    )?;
    let mut macs = format!("{} MACs", count(n.cost.macs));
    if n.cost.macs_assumed {
        macs += " (open sizes taken as 1)";
    } else if !n.macs_shapes.is_empty() {
        let shapes: Vec<String> = n
            .macs_shapes
            .iter()
            .map(|(name, dims)| {
                let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
                format!("{} = {}", short(name, NAME), dims.join(","))
            })
            .collect();
        macs += &format!(" (at {})", shapes.join("; "));
    }
    if n.cost.macs_unknown > 0 {
        macs += &format!(
            " and those of {} more",
            plural(n.cost.macs_unknown, "operator")
        );
    }
    let zeros = 100.0 * n.sparsity.unwrap_or(0.0);
    writeln!(out, "  {macs}, {zeros:.1} % of the parameters are zero")?;
    let s = &d.shapes;
    writeln!(
        out,
        "  shapes: the rank of {} of {} values is known, every size of {}",
        s.ranked, s.values, s.fixed
    )?;
    for (label, ports) in [("input", &d.inputs), ("output", &d.outputs)] {
        for p in ports {
            let (name, ty) = (escape(&p.name), clean(&p.ty));
            writeln!(out, "  {label:6} {name}  {DIM}{ty}{DIM:#}")?;
        }
    }
    if !d.functions.is_empty() {
        writeln!(out, "  functions {}", escape(&d.functions.join(", ")))?;
    }
    operators(&mut out, d)?;
    tensors(&mut out, d)?;
    layers(&mut out, d)?;
    weight_table(&mut out, d)?;
    if let Some(p) = &d.profile {
        bench::profile_text(&mut out, "", p)?;
    }
    if !d.notes.is_empty() {
        writeln!(out, "\n{}", terminal::notes(&d.notes).trim_end())?;
    }
    Ok(out)
}

fn or_unknown(text: &str) -> String {
    if text.is_empty() {
        "an unnamed program".to_owned()
    } else {
        escape(text)
    }
}

fn operators(out: &mut String, d: &Details) -> std::fmt::Result {
    writeln!(out, "\n{BOLD}Operators{BOLD:#}")?;
    let mut table = table(&["type", "count", "parameters", "bytes", "MACs"], 1);
    let unless_none = |n: u64, show: fn(u64) -> String| match n {
        0 => String::new(),
        n => show(n),
    };
    for t in &d.types {
        table.add_row([
            short(&t.op_type, NAME),
            unless_none(t.cost.nodes, count),
            unless_none(t.cost.parameters, count),
            unless_none(t.cost.bytes, bytes),
            unless_none(t.cost.macs, count),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

fn tensors(out: &mut String, d: &Details) -> std::fmt::Result {
    if d.tensors.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{BOLD}Largest tensors{BOLD:#} ({} in all)",
        d.tensors.len()
    )?;
    let mut table = table(&["tensor", "type", "used by", "bytes", "zeros"], 3);
    for t in d.tensors.iter().take(SHOWN) {
        let used = match t.used_by.as_slice() {
            [] => "nothing".to_owned(),
            [one] => short(one, USER),
            [first, rest @ ..] => format!("{} and {} more", short(first, USER - 11), rest.len()),
        };
        table.add_row([
            short(&t.name, NAME),
            short(&t.ty, TYPE),
            used,
            bytes(t.bytes),
            format!("{:.1} %", 100.0 * t.sparsity),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

fn layers(out: &mut String, d: &Details) -> std::fmt::Result {
    if d.layers.is_empty() {
        return Ok(());
    }
    let total = d.numbers.cost.macs.max(1);
    let mut layers: Vec<_> = d.layers.iter().collect();
    layers.sort_by(|a, b| b.macs.cmp(&a.macs).then_with(|| a.name.cmp(&b.name)));
    writeln!(
        out,
        "\n{BOLD}Most MACs{BOLD:#} ({} operators have some)",
        d.layers.len()
    )?;
    let mut table = table(&["operator", "type", "output", "MACs", "share"], 3);
    for l in layers.into_iter().take(SHOWN) {
        let share = 100.0 * l.macs as f64 / total as f64;
        table.add_row([
            short(&l.name, NAME),
            short(&l.op_type, 16),
            short(&l.output, 26),
            count(l.macs),
            format!("{share:.1} %"),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

/// Every weight, in the order of the data flow.
fn weight_table(out: &mut String, d: &Details) -> std::fmt::Result {
    let Some(weights) = d.weights.as_deref().filter(|w| !w.is_empty()) else {
        return Ok(());
    };
    writeln!(
        out,
        "\n{BOLD}Weights{BOLD:#} (2:4: groups with two zeros of four; rank: singular values with 99 % of the squares)"
    )?;
    let header = [
        "layer",
        "weight",
        "zeros",
        "2:4",
        "distinct",
        "rank",
        "distribution",
    ];
    let mut table = table(&header, 2);
    for w in weights {
        table.add_row(weight_row(w));
    }
    writeln!(out, "{}", table.trim_fmt())
}

fn weight_row(w: &WeightStats) -> [String; 7] {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let structured = w.patterns.iter().find(|p| p.name == "2:4");
    let rank = |s: &crate::inspect::Spectrum| format!("{} of {}", s.rank_99, s.count);
    [
        short(&w.layer, 26),
        short(&w.ty, TYPE),
        percent(w.sparsity),
        structured.map_or_else(String::new, |p| percent(p.share)),
        w.distinct.map_or_else(|| "> 65536".to_owned(), count),
        w.spectrum.as_ref().map_or_else(String::new, rank),
        w.histogram
            .as_ref()
            .map_or_else(String::new, |h| sketch(&h.counts)),
    ]
}

/// The shape of a histogram in twelve characters.
fn sketch(counts: &[u64]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDTH: usize = 12;
    let joined = counts.chunks(counts.len().div_ceil(WIDTH).max(1));
    let joined: Vec<u64> = joined.map(|c| c.iter().sum()).collect();
    let most = joined.iter().copied().max().unwrap_or(0).max(1);
    let level = |&n: &u64| match n {
        0 => ' ',
        n => {
            let at = (n as f64 / most as f64 * LEVELS.len() as f64) as usize;
            LEVELS[at.min(LEVELS.len() - 1)]
        }
    };
    joined.iter().map(level).collect()
}

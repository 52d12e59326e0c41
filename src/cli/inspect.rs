//! `paring inspect`: what is inside a model.

use std::fmt::Write;

use paring_ir::escape;

use super::args::{Common, Inspect};
use super::exit::Exit;
use super::io;
use super::terminal::{BOLD, DIM, bytes, clean, count, plural, short, table};
use crate::inspect::{Details, details};

/// Rows of the lists of tensors and of operators that are shown.
const SHOWN: usize = 10;
/// Names in these lists are cut to this width, and types and the names of users.
const NAME: usize = 32;
const TYPE: usize = 20;
const USER: usize = 22;

pub(super) fn run(common: &Common, args: &Inspect) -> anyhow::Result<Exit> {
    let loaded = io::read(common, &args.model)?;
    let details = details(&loaded.model, Some(loaded.file_bytes));
    if args.json {
        io::print_json(&details)?;
    } else {
        io::print(&text(&args.model.display().to_string(), &details)?)?;
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
    let mut ops: Vec<(&String, &usize)> = d.numbers.cost.operators.iter().collect();
    ops.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
    writeln!(out, "\n{BOLD}Operators{BOLD:#}")?;
    let ops: Vec<(String, usize)> = ops.iter().map(|(n, c)| (short(n, NAME), **c)).collect();
    let longest = ops.iter().map(|(n, _)| n.chars().count()).max();
    let width = longest.unwrap_or(0) + 2;
    let per_line = 98 / (width + 6);
    for line in ops.chunks(per_line.max(1)) {
        let cells: Vec<String> = line
            .iter()
            .map(|(n, c)| format!("{c:>6} {n:<width$}"))
            .collect();
        writeln!(out, "{}", cells.concat().trim_end())?;
    }
    Ok(())
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

//! `paring inspect`: what is inside a model.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use paring_ir::escape;

use super::args::{Common, Inspect};
use super::exit::Exit;
use super::io;
use super::terminal::{BOLD, DIM, bytes, count};
use crate::inspect::{Details, details};

/// Rows of the lists of tensors and of operators that are shown.
const SHOWN: usize = 10;

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

/// A table without lines, whose columns from `numbers` on are aligned to the right.
pub(super) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 2 } else { 0 }, 2));
        if i >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
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
        "  {} operators{constants}, {} parameters in {}{size}",
        n.cost.nodes,
        count(n.cost.parameters),
        bytes(n.cost.weight_bytes)
    )?;
    let assumed = if n.cost.macs_assumed {
        ", open sizes taken as 1"
    } else {
        ""
    };
    writeln!(
        out,
        "  {} MACs{assumed}, {:.1} % of the parameters are zero",
        count(n.cost.macs),
        100.0 * n.sparsity.unwrap_or(0.0)
    )?;
    writeln!(
        out,
        "  shapes: {} of {} known, {} to the last dimension",
        d.shapes.ranked, d.shapes.values, d.shapes.fixed
    )?;
    for (label, ports) in [("input", &d.inputs), ("output", &d.outputs)] {
        for p in ports {
            writeln!(out, "  {label:6} {}  {DIM}{}{DIM:#}", escape(&p.name), p.ty)?;
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
    let width = ops
        .iter()
        .map(|(n, _)| n.chars().count())
        .max()
        .unwrap_or(0)
        + 8;
    let per_line = (92 / width.max(1)).max(1);
    for line in ops.chunks(per_line) {
        let cells: Vec<String> = line
            .iter()
            .map(|(n, c)| format!("{c:>5} {:<w$}", escape(n), w = width - 6))
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
            [one] => escape(one),
            [first, rest @ ..] => format!("{} and {} more", escape(first), rest.len()),
        };
        table.add_row([
            escape(&t.name),
            t.ty.clone(),
            used,
            bytes(t.bytes),
            format!("{:.1} %", 100.0 * t.sparsity),
        ]);
    }
    writeln!(out, "{table}")
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
            escape(&l.name),
            escape(&l.op_type),
            l.output.clone(),
            count(l.macs),
            format!("{share:.1} %"),
        ]);
    }
    writeln!(out, "{table}")
}

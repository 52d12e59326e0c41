//! `paring diff`: what differs between two models.

use std::fmt::Write;

use paring_ir::escape;

use super::args::{Common, Diff as DiffArgs};
use super::exit::{Exit, failure};
use super::terminal::{BAD, BOLD, DIM, GOOD, WARN, clean};
use super::{io, terminal};
use crate::diff::{Diff, Difference, OpRef, TensorChange, diff};

pub(super) fn run(common: &Common, args: &DiffArgs) -> anyhow::Result<Exit> {
    if io::is_dash(&args.before) && io::is_dash(&args.after) {
        return Err(failure(
            Exit::Usage,
            "only one of the models can come from standard input",
        ));
    }
    let mut before = io::read(common, &args.before)?;
    let mut after = io::read(common, &args.after)?;
    for loaded in [&mut before, &mut after] {
        if let Some(warning) = crate::provenance::restore(&mut loaded.model)? {
            terminal::warning(common, &warning);
        }
    }
    let found = diff(&before.model, &after.model)?;
    if args.json {
        io::print_json(&found)?;
    } else if !common.quiet {
        io::print(&text(&found)?)?;
    }
    Ok(if found.is_empty(args.strict) {
        Exit::Success
    } else {
        Exit::Different
    })
}

fn text(d: &Diff) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for change in &d.interface {
        difference(&mut out, change, "")?;
    }
    let ops = &d.operators;
    for op in &ops.removed {
        writeln!(out, "{BAD}- {}{BAD:#}{}", op_text(op), origin(op))?;
    }
    for op in &ops.added {
        writeln!(out, "{GOOD}+ {}{GOOD:#}{}", op_text(op), origin(op))?;
    }
    for c in &ops.changed {
        writeln!(out, "{WARN}~ {}{WARN:#}{}", op_text(&c.op), origin(&c.op))?;
        for change in &c.changes {
            difference(&mut out, change, "    ")?;
        }
    }
    let tensors = &d.initializers;
    for (name, ty) in &tensors.removed {
        writeln!(out, "{BAD}- tensor {} {}{BAD:#}", escape(name), clean(ty))?;
    }
    for (name, ty) in &tensors.added {
        writeln!(out, "{GOOD}+ tensor {} {}{GOOD:#}", escape(name), clean(ty))?;
    }
    for c in &tensors.changed {
        writeln!(
            out,
            "{WARN}~ tensor {}{WARN:#} {}",
            escape(&c.name),
            tensor_text(c)
        )?;
    }
    writeln!(
        out,
        "{BOLD}operators{BOLD:#}     {} added, {} removed, {} changed, {} same{}",
        ops.added.len(),
        ops.removed.len(),
        ops.changed.len(),
        ops.same,
        renamed(ops.renamed)
    )?;
    writeln!(
        out,
        "{BOLD}initializers{BOLD:#}  {} added, {} removed, {} changed, {} same{}",
        tensors.added.len(),
        tensors.removed.len(),
        tensors.changed.len(),
        tensors.same,
        renamed(tensors.renamed)
    )?;
    Ok(out)
}

fn renamed(n: usize) -> String {
    if n == 0 {
        String::new()
    } else {
        format!(" ({n} of them renamed)")
    }
}

fn op_text(op: &OpRef) -> String {
    format!("{} {}", escape(&op.op_type), escape(&op.name))
}

fn origin(op: &OpRef) -> String {
    if op.by.is_empty() {
        return String::new();
    }
    format!(
        "  {DIM}by {} from {}{DIM:#}",
        escape(&op.by.join(", ")),
        escape(&op.from.join(", "))
    )
}

fn difference(out: &mut String, d: &Difference, indent: &str) -> std::fmt::Result {
    let side = |s: &Option<String>| {
        s.as_ref()
            .map_or_else(|| "(none)".to_owned(), |s| escape(s))
    };
    writeln!(
        out,
        "{indent}{}: {} -> {}",
        escape(&d.what),
        side(&d.before),
        side(&d.after)
    )
}

fn tensor_text(c: &TensorChange) -> String {
    let mut parts = Vec::new();
    if c.before != c.after {
        parts.push(format!("{} -> {}", clean(&c.before), clean(&c.after)));
    } else {
        parts.push(clean(&c.before));
    }
    if let (Some(max), Some(norm)) = (c.max_abs, c.relative_norm) {
        parts.push(format!("max-abs {max:.3e}, relative norm {norm:.3e}"));
    }
    if c.sparsity_before != c.sparsity_after {
        parts.push(format!(
            "zeros {:.1} % -> {:.1} %",
            100.0 * c.sparsity_before,
            100.0 * c.sparsity_after
        ));
    }
    if !c.by.is_empty() {
        parts.push(format!("{DIM}by {}{DIM:#}", escape(&c.by.join(", "))));
    }
    parts.join("; ")
}

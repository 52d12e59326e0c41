//! `paring compare`: the numbers of two models side by side.

use std::fmt::Write;

use paring_ir::analysis::CostOptions;
use paring_ir::engine::DataSource;
use serde::Serialize;

use super::args::{Common, Compare};
use super::exit::{Exit, failure};
use super::terminal::{BOLD, Bar, PLAIN, bytes, clean, count, line, number, plural, short, table};
use super::{io, terminal};
use crate::data::{DataSet, RandomInputs, RunShapes};
use crate::engine::TractEngine;
use crate::inspect::{Inspection, cost_options, inspect};
use crate::validate::{CompareOptions, Validation, compare};

/// Runs of random inputs when there is no data.
const RANDOM_RUNS: usize = 8;
/// Names are cut to this width.
const NAME: usize = 34;

#[derive(Serialize)]
struct Comparison {
    before: Inspection,
    after: Inspection,
    validation: Validation,
}

pub(super) fn run(common: &Common, args: &Compare) -> anyhow::Result<Exit> {
    if io::is_dash(&args.before) && io::is_dash(&args.after) {
        return Err(failure(
            Exit::Usage,
            "only one of the models can come from standard input",
        ));
    }
    let before = io::read(common, &args.before)?;
    let after = io::read(common, &args.after)?;
    let engine = TractEngine::new();
    let costs = CostOptions {
        zeros: true,
        ..cost_options(&before.model, &io::shape_options(&args.running)?)
    };
    let mut notes = Vec::new();
    let source: Box<dyn DataSource> = match &args.data {
        Some(path) => {
            let data = DataSet::open(path, &before.model)?;
            notes.extend(data.notes().iter().cloned());
            Box::new(data)
        }
        None => {
            let shapes =
                RunShapes::settle(&engine, &before.model, &io::shape_options(&args.running)?)?;
            let random = RandomInputs::new(&before.model, &shapes, RANDOM_RUNS, args.running.seed)?;
            notes.extend(shapes.notes.iter().chain(random.notes()).cloned());
            Box::new(random)
        }
    };
    let progress = Bar::new(common);
    let options = CompareOptions {
        threads: usize::from(args.running.threads),
        label_output: args.label_output.as_deref(),
        progress: &progress,
        ..CompareOptions::default()
    };
    let mut validation = compare(&engine, &before.model, &after.model, &*source, &options)?;
    validation.notes.splice(0..0, notes);
    let comparison = Comparison {
        before: inspect(&before.model, Some(before.file_bytes), &costs),
        after: inspect(&after.model, Some(after.file_bytes), &costs),
        validation,
    };
    if args.json {
        io::print_json(&comparison)?;
    } else {
        io::print(&text(&comparison)?)?;
    }
    Ok(Exit::Success)
}

fn text(c: &Comparison) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let v = &c.validation;
    let (a, b) = (&c.before, &c.after);
    let mut sizes = table(&["", "first", "second"], 1);
    let mut row = |name: &str, a: String, b: String| {
        sizes.add_row([name.to_owned(), a, b]);
    };
    row("nodes", count(a.cost.nodes), count(b.cost.nodes));
    let parameters = |i: &Inspection| count(i.cost.parameters);
    row("parameters", parameters(a), parameters(b));
    row("MACs", count(a.cost.macs), count(b.cost.macs));
    let file = |i: &Inspection| i.file_bytes.map_or_else(String::new, bytes);
    row("file", file(a), file(b));
    writeln!(out, "{}\n", sizes.trim_fmt())?;
    outputs(&mut out, v)?;
    let on = plural(v.samples, "sample");
    let how = format!("{}, {on} of {}", v.engine, clean(&v.data));
    out += &line(BOLD, "compared", &how);
    if let Some(noise) = v.noise {
        let floor = noise.max(v.floor());
        let text = format!("up to {floor:.1e} relative is noise of the engine");
        out += &line(PLAIN, "", &text);
    }
    if let Some(t) = v.top1_agreement {
        out += &line(BOLD, "top-1", &format!("agrees on {:.1} %", 100.0 * t));
    }
    if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
        let text = format!("{:.2} % and {:.2} %", 100.0 * a, 100.0 * b);
        out += &line(BOLD, "accuracy", &text);
    }
    out += &terminal::notes(&v.notes);
    Ok(out)
}

fn outputs(out: &mut String, v: &Validation) -> std::fmt::Result {
    let header = [
        "output",
        "max-abs",
        "relative",
        "SQNR",
        "cosine",
        "mismatches",
    ];
    let mut table = table(&header, 1);
    for o in &v.outputs {
        table.add_row([
            short(&o.name, NAME),
            number(o.max_abs),
            number(o.max_rel),
            o.sqnr_db
                .map_or("equal".to_owned(), |db| format!("{db:.1} dB")),
            o.cosine.map_or(String::new(), |c| format!("{c:.6}")),
            o.mismatches.to_string(),
        ]);
    }
    writeln!(out, "{}\n", table.trim_fmt())
}

//! `paring compare`: the numbers of two models side by side.

use std::fmt::Write;

use paring_ir::engine::DataSource;
use paring_ir::escape;
use serde::Serialize;

use super::args::{Common, Compare};
use super::exit::{Exit, failure};
use super::inspect::table;
use super::io;
use super::terminal::{BOLD, bytes, count};
use crate::data::{DataSet, RandomInputs, RunShapes};
use crate::engine::TractEngine;
use crate::inspect::{Inspection, inspect};
use crate::validate::{CompareOptions, Validation, compare};

/// Runs of random inputs when there is no data.
const RANDOM_RUNS: usize = 8;

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
    let options = CompareOptions {
        threads: usize::from(args.running.threads),
        label_output: args.label_output.as_deref(),
        ..CompareOptions::default()
    };
    let mut validation = compare(&engine, &before.model, &after.model, &*source, &options)?;
    validation.notes.splice(0..0, notes);
    let comparison = Comparison {
        before: inspect(&before.model, Some(before.file_bytes), true),
        after: inspect(&after.model, Some(after.file_bytes), true),
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
    sizes.add_row(["nodes".to_owned(), count(a.cost.nodes), count(b.cost.nodes)]);
    sizes.add_row([
        "parameters".to_owned(),
        count(a.cost.parameters),
        count(b.cost.parameters),
    ]);
    sizes.add_row(["MACs".to_owned(), count(a.cost.macs), count(b.cost.macs)]);
    sizes.add_row([
        "file".to_owned(),
        bytes(a.file_bytes.unwrap_or(0)),
        bytes(b.file_bytes.unwrap_or(0)),
    ]);
    writeln!(out, "{sizes}\n")?;
    writeln!(
        out,
        "{BOLD}outputs{BOLD:#} with {} on {} samples of {}",
        v.engine, v.samples, v.data
    )?;
    let mut outputs = table(
        &[
            "output",
            "max-abs",
            "relative",
            "SQNR",
            "cosine",
            "mismatches",
        ],
        1,
    );
    for o in &v.outputs {
        outputs.add_row([
            o.name.clone(),
            format!("{:.3e}", o.max_abs),
            format!("{:.3e}", o.max_rel),
            o.sqnr_db
                .map_or("equal".to_owned(), |db| format!("{db:.1} dB")),
            o.cosine.map_or(String::new(), |c| format!("{c:.6}")),
            o.mismatches.to_string(),
        ]);
    }
    writeln!(out, "{outputs}")?;
    if let Some(noise) = v.noise {
        writeln!(
            out,
            "  up to {:.1e} relative is noise of the engine",
            noise.max(v.floor())
        )?;
    }
    if let Some(t) = v.top1_agreement {
        writeln!(out, "  top-1 agrees on {:.1} %", 100.0 * t)?;
    }
    if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
        writeln!(out, "  accuracy {:.2} % and {:.2} %", 100.0 * a, 100.0 * b)?;
    }
    for note in &v.notes {
        writeln!(out, "  note: {}", escape(note))?;
    }
    Ok(out)
}

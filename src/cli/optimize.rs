//! `paring optimize`: the main job.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use paring_ir::manager::{Observer, RunError};
use paring_ir::report::PassReport;
use paring_ir::text::{PrintOptions, print_model};
use paring_ir::{Model, Registry, escape};

use super::args::{Common, External, Optimize};
use super::exit::{Exit, failure};
use super::inspect::table;
use super::io;
use super::terminal::{BOLD, Bar, DIM, GOOD, WARN, bytes, count};
use crate::inspect::Inspection;
use crate::onnx::{self, ExternalData, Loaded, WriteOptions};
use crate::optimize::{OptimizeError, Optimizer, Report, Written};
use crate::pipeline::{self, Recipe};

/// The recipe that runs when nothing is asked for.
const DEFAULT_RECIPE: &str = "clean";

pub(super) fn run(registry: &Registry, common: &Common, args: &Optimize) -> anyhow::Result<Exit> {
    check_paths(args)?;
    let recipe = recipe(registry, args)?;
    let loaded = io::read(common, &args.input)?;
    let mut model = loaded.model.clone();
    let progress = Bar::new(common);
    let mut printer = Printer {
        after: args.print_ir_after.clone(),
    };
    let optimizer = optimizer(registry, recipe, args)?;
    let outcome = optimizer.run_with(&mut model, &progress, Some(&mut printer));
    let mut report = match outcome {
        Ok(report) => report,
        Err(e) => return Err(explain(args, &loaded, e)),
    };
    report.input = Some(args.input.display().to_string());
    report.output = Some(args.output.display().to_string());
    let written = write(args, &loaded, &mut model, report.changed)?;
    report.before.file_bytes = Some(loaded.file_bytes);
    report.after.file_bytes = Some(written.bytes);
    report.written = Some(written);
    for path in &args.reports {
        write_report(path, &report)?;
    }
    if !common.quiet {
        let text = text(common, &report)?;
        if io::is_dash(&args.output) {
            write!(anstream::stderr().lock(), "{text}")?;
        } else {
            io::print(&text)?;
        }
    }
    Ok(Exit::Success)
}

/// Finds out about paths that can't be written before the work begins.
fn check_paths(args: &Optimize) -> anyhow::Result<()> {
    let mut outputs: Vec<&Path> = args.reports.iter().map(PathBuf::as_path).collect();
    for report in &args.reports {
        match report.extension().and_then(|e| e.to_str()) {
            Some("json") => {}
            _ => {
                return Err(failure(
                    Exit::Usage,
                    format!("--report {}: the name must end in .json", report.display()),
                ));
            }
        }
    }
    if !io::is_dash(&args.output) {
        outputs.push(&args.output);
    }
    for path in outputs {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(failure(
                Exit::Write,
                format!(
                    "{}: there is no folder {}",
                    path.display(),
                    folder.display()
                ),
            ));
        }
        if path.is_dir() {
            return Err(failure(
                Exit::Write,
                format!("{} is a folder", path.display()),
            ));
        }
    }
    Ok(())
}

/// The recipe, then the passes in order; the clean-up when neither is given.
fn recipe(registry: &Registry, args: &Optimize) -> anyhow::Result<Recipe> {
    let mut recipe = match &args.recipe {
        Some(name) => Recipe::find(name, registry)?,
        None if args.passes.is_empty() => Recipe::find(DEFAULT_RECIPE, registry)?,
        None => Recipe::empty(),
    };
    for text in &args.passes {
        pipeline::push_short(&mut recipe, text)?;
    }
    Ok(recipe)
}

fn optimizer<'a>(
    registry: &'a Registry,
    recipe: Recipe,
    args: &Optimize,
) -> anyhow::Result<Optimizer<'a>> {
    let mut optimizer = Optimizer::new(registry).recipe(recipe);
    let s = &mut optimizer.settings;
    s.shapes = io::shape_options(&args.running)?;
    s.data.clone_from(&args.data);
    s.eval.clone_from(&args.eval);
    s.seed = args.running.seed;
    s.threads = usize::from(args.running.threads);
    s.label_output.clone_from(&args.label_output);
    s.fix_dims = args.fix_dims;
    s.validate = !args.no_validate;
    s.time = !args.no_time;
    s.allow_unvalidated = args.allow_unvalidated;
    s.stop_after.clone_from(&args.stop_after);
    Ok(optimizer)
}

fn write(
    args: &Optimize,
    loaded: &Loaded,
    model: &mut Model,
    changed: bool,
) -> anyhow::Result<Written> {
    if changed {
        // Training information names operators and initializers, which may be gone.
        model.extra.training_info.clear();
        if !args.no_provenance {
            crate::provenance::attach(model);
        }
    }
    if args.no_provenance {
        crate::provenance::detach(model);
    }
    if io::is_dash(&args.output) {
        let mut out = std::io::stdout().lock();
        let bytes = onnx::write_stream(model, &mut out)?;
        out.flush().context("standard output")?;
        return Ok(Written {
            bytes,
            ..Written::default()
        });
    }
    let external_data = match args.external_data {
        External::Always => ExternalData::Always,
        External::Never => ExternalData::Never,
        External::Auto => ExternalData::Auto,
    };
    let options = WriteOptions { external_data };
    let report = onnx::write_file(model, &args.output, &options)?;
    let mut left: Vec<PathBuf> = report.left_behind;
    let same_input =
        std::fs::canonicalize(&args.input).ok() == std::fs::canonicalize(&args.output).ok();
    if same_input {
        left.extend(
            loaded
                .side_files
                .iter()
                .filter(|f| Some(*f) != report.side_file.as_ref())
                .cloned(),
        );
        left.sort();
        left.dedup();
    }
    Ok(Written {
        bytes: report.bytes,
        side_file: report.side_file,
        left_behind: left,
    })
}

/// A report lands whole or not at all, as a model does.
fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let failed = |e: std::io::Error| failure(Exit::Write, format!("{}: {e}", path.display()));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder).map_err(failed)?;
    serde_json::to_writer_pretty(&mut file, report)?;
    file.write_all(b"\n").map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Prints the graph after the passes that the user named.
struct Printer {
    after: Vec<String>,
}

impl Observer for Printer {
    fn after(&mut self, report: &PassReport, model: &Model) {
        log::info!(
            "{}: {} in {:.3} s, {} -> {} nodes",
            report.name,
            if report.changed {
                "changed"
            } else {
                "nothing to do"
            },
            report.seconds,
            report.before.nodes,
            report.after.nodes
        );
        let named = self.after.contains(&report.name);
        if named || (report.changed && self.after.iter().any(|a| a == "all")) {
            anstream::eprintln!("{DIM}// after {}{DIM:#}", report.name);
            anstream::eprintln!("{}", print_model(model, &PrintOptions::default()));
        }
    }
}

/// For a bug of a pass: writes what reproduces it beside the output.
fn explain(args: &Optimize, loaded: &Loaded, error: OptimizeError) -> anyhow::Error {
    let OptimizeError::Run(RunError::Bug { steps, .. }) = &error else {
        return error.into();
    };
    let stem = args
        .output
        .file_stem()
        .map_or("model".into(), |s| s.to_string_lossy());
    let stem = if stem == "-" { "model".into() } else { stem };
    let folder = args
        .output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
        .join(format!("{stem}.reproducer"));
    let recipe = pipeline::recipe_of(steps);
    let text = format!(
        "# The last of these passes has a bug. To reproduce it:\n# paring optimize model.onnx -o out.onnx --recipe recipe.yaml --seed {}\n{}",
        args.running.seed,
        recipe.to_yaml()
    );
    let write = || -> anyhow::Result<()> {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("recipe.yaml"), text)?;
        onnx::write_file(
            &loaded.model,
            &folder.join("model.onnx"),
            &WriteOptions::default(),
        )?;
        Ok(())
    };
    match write() {
        Ok(()) => anyhow::Error::from(error).context(format!(
            "please report this with the folder {}",
            folder.display()
        )),
        Err(e) => {
            anyhow::Error::from(error).context(format!("no reproducer could be written ({e})"))
        }
    }
}

fn text(common: &Common, r: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    passes(&mut out, common, r)?;
    sizes(&mut out, &r.before, &r.after)?;
    validation(&mut out, r)?;
    latency(&mut out, r)?;
    for note in &r.notes {
        writeln!(out, "{WARN}note:{WARN:#} {note}")?;
    }
    written(&mut out, r)?;
    Ok(out)
}

fn passes(out: &mut String, common: &Common, r: &Report) -> std::fmt::Result {
    let shown: Vec<&PassReport> = r
        .passes
        .iter()
        .filter(|p| p.changed || !p.undone.is_empty() || !p.notes.is_empty() || common.verbose > 0)
        .collect();
    let idle = r.passes.len() - shown.len();
    if shown.is_empty() {
        writeln!(out, "{} passes ran and found nothing to do", r.passes.len())?;
        return Ok(());
    }
    let mut table = table(&["pass", "did", "nodes", "parameters", "seconds"], 2);
    for p in &shown {
        let step = |a: u64, b: u64| {
            if a == b {
                String::new()
            } else {
                format!("{} -> {}", count(a), count(b))
            }
        };
        table.add_row([
            p.name.clone(),
            did(p).join("; "),
            step(p.before.nodes, p.after.nodes),
            step(p.before.parameters, p.after.parameters),
            format!("{:.3}", p.seconds),
        ]);
    }
    writeln!(out, "{table}")?;
    if idle > 0 {
        writeln!(
            out,
            "  {DIM}{idle} more runs of passes found nothing to do{DIM:#}"
        )?;
    }
    writeln!(out)
}

/// What a pass did, in a few words.
fn did(p: &PassReport) -> Vec<String> {
    let mut out = Vec::new();
    if !p.undone.is_empty() {
        let broken: Vec<String> = p.undone.iter().map(ToString::to_string).collect();
        out.push(format!(
            "undone, as it broke a limit ({})",
            broken.join(", ")
        ));
    }
    let words = |map: &std::collections::BTreeMap<String, usize>| {
        map.iter()
            .map(|(c, n)| format!("{n} {}", escape(&c.replace('-', " "))))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if !p.remarks.applied.is_empty() {
        out.push(words(&p.remarks.applied));
    }
    if !p.remarks.missed.is_empty() {
        out.push(format!("left: {}", words(&p.remarks.missed)));
    }
    if let Some(by) = &p.required_by {
        out.push(format!("wanted by {by}"));
    }
    if let Some(d) = &p.difference {
        out.push(match d.sqnr_db {
            Some(db) => format!("SQNR {db:.1} dB"),
            None => "outputs equal".to_owned(),
        });
    }
    out.extend(p.notes.iter().cloned());
    out
}

fn sizes(out: &mut String, before: &Inspection, after: &Inspection) -> std::fmt::Result {
    let mut table = table(&["", "before", "after", "ratio"], 1);
    let mut row = |name: &str, a: u64, b: u64, show: fn(u64) -> String| {
        let ratio = if a == 0 {
            String::new()
        } else {
            format!("{:.3}", b as f64 / a as f64)
        };
        table.add_row([name.to_owned(), show(a), show(b), ratio]);
    };
    row(
        "nodes",
        before.cost.nodes + before.cost.constants,
        after.cost.nodes + after.cost.constants,
        count,
    );
    row(
        "parameters",
        before.cost.parameters,
        after.cost.parameters,
        count,
    );
    if let (Some(x), Some(y)) = (before.cost.zeros, after.cost.zeros) {
        row("zeros", x, y, count);
    }
    row(
        "weights",
        before.cost.weight_bytes,
        after.cost.weight_bytes,
        bytes,
    );
    row("MACs", before.cost.macs, after.cost.macs, count);
    if let (Some(x), Some(y)) = (before.cost.effective_macs, after.cost.effective_macs) {
        row("effective MACs", x, y, count);
    }
    row(
        "file",
        before.file_bytes.unwrap_or(0),
        after.file_bytes.unwrap_or(0),
        bytes,
    );
    writeln!(out, "{table}\n")
}

fn validation(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(v) = &r.validation else {
        return writeln!(
            out,
            "{WARN}not validated:{WARN:#} {}",
            r.unvalidated.as_deref().unwrap_or("not asked for")
        );
    };
    write!(
        out,
        "{BOLD}validated{BOLD:#} with {} on {} samples of {}: ",
        v.engine, v.samples, v.data
    )?;
    match v.sqnr_db {
        None => write!(out, "outputs are equal")?,
        Some(db) => {
            write!(out, "SQNR {db:.1} dB, largest difference {:.1e}", v.max_abs)?;
            if let Some(c) = v.cosine {
                write!(out, ", cosine {c:.6}")?;
            }
        }
    }
    if let Some(t) = v.top1_agreement {
        write!(out, ", top-1 agrees on {:.1} %", 100.0 * t)?;
    }
    writeln!(out)?;
    if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
        write!(
            out,
            "{BOLD}accuracy{BOLD:#} {:.2} % -> {:.2} %",
            100.0 * a,
            100.0 * b
        )?;
        if let (Some(a), Some(b)) = (v.top5_before, v.top5_after) {
            write!(out, ", top-5 {:.2} % -> {:.2} %", 100.0 * a, 100.0 * b)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn latency(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(l) = &r.latency else { return Ok(()) };
    let style = if l.ratio_high < 1.0 {
        GOOD
    } else if l.ratio_low > 1.0 {
        WARN
    } else {
        DIM
    };
    writeln!(
        out,
        "{BOLD}latency{BOLD:#} {:.3} ms -> {:.3} ms, {style}ratio {:.3} [{:.3}, {:.3}]{style:#} ({}, {} thread{}, {} pairs)",
        l.before_ms,
        l.after_ms,
        l.ratio,
        l.ratio_low,
        l.ratio_high,
        r.engine,
        l.threads,
        if l.threads == 1 { "" } else { "s" },
        l.runs
    )
}

fn written(out: &mut String, r: &Report) -> std::fmt::Result {
    let Some(w) = &r.written else { return Ok(()) };
    let target = r.output.as_deref().unwrap_or("-");
    let target = if target == "-" {
        "standard output"
    } else {
        target
    };
    write!(out, "wrote {} ({})", escape(target), bytes(w.bytes))?;
    if let Some(side) = &w.side_file {
        write!(out, ", weights in {}", escape(&side.display().to_string()))?;
    }
    writeln!(out)?;
    for old in &w.left_behind {
        writeln!(
            out,
            "{DIM}{} belongs to the old model and is still there{DIM:#}",
            escape(&old.display().to_string())
        )?;
    }
    Ok(())
}

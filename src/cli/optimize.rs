//! `paring optimize`: the main job.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use paring_ir::manager::{Observer, RunError};
use paring_ir::report::PassReport;
use paring_ir::text::{PrintOptions, print_model};
use paring_ir::{Effect, Model, Registry, escape};

use super::args::{Common, External, Optimize};
use super::exit::{Exit, failure};
use super::terminal::{
    BOLD, Bar, DIM, GOOD, PLAIN, WARN, bytes, clean, count, duration, line, number, paragraph,
    plural, table,
};
use super::{interrupt, io, terminal};
use crate::diff::diff;
use crate::inspect::Inspection;
use crate::onnx::{self, ExternalData, WriteOptions};
use crate::optimize::{OptimizeError, Optimizer, Report, Written};
use crate::pipeline::{self, Recipe};
use crate::report::{Story, optimize_page};
use crate::validate::FormReport;

/// The recipe that runs when nothing is asked for.
const DEFAULT_RECIPE: &str = "clean";

pub(super) fn run(registry: &Registry, common: &Common, args: &Optimize) -> anyhow::Result<Exit> {
    check_paths(args)?;
    check_names(registry, args)?;
    let recipe = recipe(registry, args)?;
    let cancel = interrupt::on_ctrl_c()?;
    let loaded = io::read(common, &args.input)?;
    // What came through standard input can't be read again for a reproducer.
    let spare = io::is_dash(&args.input).then(|| loaded.model.clone());
    let (mut model, file_bytes, side_files) = (loaded.model, loaded.file_bytes, loaded.side_files);
    // For the diff of a page and what the file compresses to; its tensors are shared with the
    // model, but the graph of a million operators takes memory of its own.
    let lossy = recipe.pipeline(registry)?.is_lossy();
    let pages = args.reports.iter().any(|p| is_page(p));
    let original = (lossy || pages).then(|| model.clone());
    let progress = Bar::new(common);
    let mut printer = Printer {
        after: args.print_ir_after.clone(),
    };
    let yaml = recipe.to_yaml();
    let optimizer = optimizer(registry, recipe, args)?.cancel(&cancel);
    let outcome = optimizer.run_with(&mut model, &progress, Some(&mut printer));
    let mut report = match outcome {
        // From here on the work is short and ends with whole files, or with none.
        Ok(_) if cancel.load(Ordering::Relaxed) => return Err(stopped()),
        Ok(report) => report,
        Err(OptimizeError::Run(RunError::Cancelled)) => return Err(stopped()),
        Err(e) => return Err(explain(common, args, spare, e)),
    };
    report.input = Some(args.input.display().to_string());
    report.output = Some(args.output.display().to_string());
    let written = write(args, &side_files, &mut model, report.changed)?;
    report.before.file_bytes = Some(file_bytes);
    report.after.file_bytes = Some(written.bytes);
    report.written = Some(written);
    if let Some(original) = original.as_ref().filter(|_| is_lossy(&report)) {
        report.before.zstd_bytes = onnx::compressed_len(original).ok();
        report.after.zstd_bytes = onnx::compressed_len(&model).ok();
    }
    for path in &args.reports {
        let text = match &original {
            Some(original) if is_page(path) => optimize_page(&Story {
                report: &report,
                command: &command(args),
                recipe: &yaml,
                diff: &diff(original, &model)?,
            }),
            _ => io::to_json(&report)? + "\n",
        };
        io::write_whole(path, &text)?;
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

/// Whether a pass that may change outputs edited the model. What its weights take depends on the
/// values then, and how the file compresses is worth telling.
fn is_lossy(report: &Report) -> bool {
    let mut passes = report.passes.iter();
    passes.any(|p| p.effect == Effect::Lossy && p.changed)
}

/// Whether a report is to be a page.
fn is_page(report: &Path) -> bool {
    report.extension().is_some_and(|e| e == "html")
}

/// The command that does the same with the recipe in a file.
fn command(args: &Optimize) -> String {
    let mut out = String::from("paring optimize");
    let mut word = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+".contains(c);
        out.push(' ');
        match !text.is_empty() && text.chars().all(plain) {
            true => out.push_str(text),
            false => out.push_str(&format!("'{}'", text.replace('\'', "'\\''"))),
        }
    };
    word(&args.input.display().to_string());
    word("-o");
    word(&args.output.display().to_string());
    word("--recipe");
    word("recipe.yaml");
    for (name, path) in [("--data", &args.data), ("--eval", &args.eval)] {
        if let Some(path) = path {
            word(name);
            word(&path.display().to_string());
        }
    }
    let running = &args.running;
    let inputs = running.inputs.iter().map(|t| ("--input", t));
    for (name, text) in inputs.chain(running.dims.iter().map(|t| ("--dim", t))) {
        word(name);
        word(text);
    }
    if let Some(name) = &args.label_output {
        word("--label-output");
        word(name);
    }
    if args.fix_dims {
        word("--fix-dims");
    }
    if running.seed != 0 {
        word("--seed");
        word(&running.seed.to_string());
    }
    if running.threads != 1 {
        word("--threads");
        word(&running.threads.to_string());
    }
    out
}

fn stopped() -> anyhow::Error {
    failure(Exit::Cancelled, "stopped; nothing is written")
}

/// Finds out about passes that don't exist before the work begins.
fn check_names(registry: &Registry, args: &Optimize) -> anyhow::Result<()> {
    for name in args.print_ir_after.iter().filter(|n| *n != "all") {
        registry
            .find(name)
            .map_err(|e| e.within("--print-ir-after"))?;
    }
    Ok(())
}

/// Finds out about paths that can't be written before the work begins.
fn check_paths(args: &Optimize) -> anyhow::Result<()> {
    let mut outputs: Vec<&Path> = args.reports.iter().map(PathBuf::as_path).collect();
    for report in &args.reports {
        match report.extension().and_then(|e| e.to_str()) {
            Some("json" | "html") => {}
            _ => {
                return Err(failure(
                    Exit::Usage,
                    format!(
                        "--report {}: the name must end in .json or .html",
                        report.display()
                    ),
                ));
            }
        }
    }
    if !io::is_dash(&args.output) {
        outputs.push(&args.output);
    }
    outputs.into_iter().try_for_each(io::check_writable)
}

/// The recipe, then the passes in order; the clean-up when neither is given.
fn recipe(registry: &Registry, args: &Optimize) -> anyhow::Result<Recipe> {
    let mut recipe = match &args.recipe {
        Some(name) => Recipe::find(name, registry)?,
        None if args.passes.is_empty() => Recipe::find(DEFAULT_RECIPE, registry)?,
        None => Recipe::empty(),
    };
    for text in &args.passes {
        pipeline::push_short(&mut recipe, text, registry)?;
    }
    if let Some(target) = &args.target
        && recipe.set_target(target, registry)? == 0
    {
        let why = format!("--target {target}: no pass of the recipe has a target to set");
        return Err(failure(Exit::Usage, why));
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
    s.layers = args.reports.iter().any(|p| is_page(p));
    s.allow_unvalidated = args.allow_unvalidated;
    s.stop_after.clone_from(&args.stop_after);
    Ok(optimizer)
}

fn write(
    args: &Optimize,
    side_files: &[PathBuf],
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
        // Somebody who goes away in the middle has no model, so this is no success.
        let failed =
            |e: &dyn std::fmt::Display| failure(Exit::Write, format!("standard output: {e}"));
        let bytes = onnx::write_stream(model, &mut out).map_err(|e| failed(&e))?;
        out.flush().map_err(|e| failed(&e))?;
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
            side_files
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

/// For broken limits: shows what the passes did. For a bug of a pass: writes what reproduces it
/// beside the output.
fn explain(
    common: &Common,
    args: &Optimize,
    spare: Option<Model>,
    error: OptimizeError,
) -> anyhow::Error {
    if let (OptimizeError::Run(RunError::Limits { reports, .. }), false) = (&error, common.quiet) {
        let mut text = String::new();
        if passes(&mut text, common, reports).is_ok() {
            anstream::eprint!("{text}");
        }
    }
    if let OptimizeError::Run(RunError::Limits { .. }) = &error {
        return failure(Exit::Limit, format!("{error}; nothing is written"));
    }
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
        let model = match &spare {
            Some(model) => model.clone(),
            None => io::read(common, &args.input)?.model,
        };
        onnx::write_file(&model, &folder.join("model.onnx"), &WriteOptions::default())?;
        Ok(())
    };
    let hint = match write() {
        Ok(()) => format!("please report this with the folder {}", folder.display()),
        Err(e) => format!("please report this; no reproducer could be written ({e})"),
    };
    failure(Exit::Bug, format!("{error}; {hint}"))
}

fn text(common: &Common, r: &Report) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    passes(&mut out, common, &r.passes)?;
    sizes(&mut out, &r.before, &r.after)?;
    validation(&mut out, r);
    latency(&mut out, r);
    let of_pass = |p: &PassReport| -> Vec<String> {
        let notes = p.notes.iter();
        notes.map(|n| format!("{}: {n}", p.name)).collect()
    };
    let mut notes: Vec<String> = r.passes.iter().flat_map(of_pass).collect();
    notes.extend(r.notes.iter().cloned());
    out += &terminal::notes(&notes);
    written(&mut out, r);
    Ok(out)
}

fn passes(out: &mut String, common: &Common, all: &[PassReport]) -> std::fmt::Result {
    let shown: Vec<&PassReport> = all
        .iter()
        .filter(|p| p.changed || !p.undone.is_empty() || common.verbose > 0)
        .collect();
    if shown.is_empty() {
        let ran = plural(all.len(), "run");
        return writeln!(out, "{ran} of passes found nothing to do\n");
    }
    let mut table = table(&["pass", "did", "nodes", "parameters", "time"], 2);
    for p in &shown {
        table.add_row([
            p.name.clone(),
            did(p).join("; "),
            step(p.before.nodes, p.after.nodes),
            step(p.before.parameters, p.after.parameters),
            duration(p.seconds),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    if all.len() > shown.len() {
        let idle = plural(all.len() - shown.len(), "more run");
        writeln!(out, "  {DIM}{idle} of passes found nothing to do{DIM:#}")?;
    }
    writeln!(out)
}

/// How a count changed; a change that rounding hides is told by itself.
fn step(before: u64, after: u64) -> String {
    if before == after {
        return String::new();
    }
    let (a, b) = (count(before), count(after));
    if a != b {
        return format!("{a} -> {b}");
    }
    let sign = if after > before { '+' } else { '-' };
    format!("{a} {sign} {}", count(before.abs_diff(after)))
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
            .map(|(c, n)| format!("{n}\u{d7} {}", escape(&c.replace('-', " "))))
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
    out
}

fn sizes(out: &mut String, before: &Inspection, after: &Inspection) -> std::fmt::Result {
    let mut table = table(&["", "before", "after", "ratio"], 1);
    let (x, y) = (&before.cost, &after.cost);
    let mut row = |name: &str, a: u64, b: u64, show: fn(u64) -> String| {
        let ratio = match a {
            0 => String::new(),
            a => format!("{:.3}", b as f64 / a as f64),
        };
        table.add_row([name.to_owned(), show(a), show(b), ratio]);
    };
    row("nodes", x.nodes, y.nodes, count);
    if x.constants + y.constants > 0 {
        let (a, b) = (x.constants, y.constants);
        row("Constant nodes", a, b, count);
    }
    row("parameters", x.parameters, y.parameters, count);
    row("weights", x.weight_bytes, y.weight_bytes, bytes);
    let assumed = x.macs_assumed || y.macs_assumed;
    let macs = if assumed {
        "MACs (open sizes as 1)"
    } else {
        "MACs"
    };
    row(macs, x.macs, y.macs, count);
    if let (Some(a), Some(b)) = (x.effective_macs, y.effective_macs) {
        row("effective MACs", a, b, count);
    }
    if let (Some(a), Some(b)) = (before.file_bytes, after.file_bytes) {
        row("file", a, b, bytes);
    }
    if let (Some(a), Some(b)) = (before.zstd_bytes, after.zstd_bytes) {
        row("file, zstd", a, b, bytes);
    }
    if let (Some(a), Some(b)) = (before.sparsity, after.sparsity) {
        let share = |s: f64| format!("{:.1} %", 100.0 * s);
        table.add_row(["zeros".to_owned(), share(a), share(b), String::new()]);
    }
    writeln!(out, "{}\n", table.trim_fmt())
}

fn validation(out: &mut String, r: &Report) {
    let Some(v) = &r.validation else {
        let reason = r.unvalidated.as_deref().unwrap_or("not asked for");
        *out += &paragraph(WARN, "not validated", reason);
        return;
    };
    let mut text = match v.sqnr_db {
        None => "outputs are equal".to_owned(),
        Some(db) => format!("SQNR {db:.1} dB, largest difference {}", number(v.max_abs)),
    };
    if let (Some(_), Some(c)) = (v.sqnr_db, v.cosine) {
        text += &format!(", cosine {c:.6}");
    }
    if let Some(t) = v.top1_agreement.filter(|&t| t < 1.0) {
        text += &format!(", top-1 agrees on {:.1} %", 100.0 * t);
    }
    *out += &line(BOLD, "validated", &text);
    let on = plural(v.samples, "sample");
    *out += &line(
        PLAIN,
        "",
        &format!("{}, {on} of {}", v.engine, clean(&v.data)),
    );
    if let (Some(a), Some(b)) = (v.accuracy_before, v.accuracy_after) {
        let mut text = format!("{:.2} % -> {:.2} %", 100.0 * a, 100.0 * b);
        if let (Some(a), Some(b)) = (v.top5_before, v.top5_after) {
            text += &format!(", top-5 {:.2} % -> {:.2} %", 100.0 * a, 100.0 * b);
        }
        *out += &line(BOLD, "accuracy", &text);
    }
}

fn latency(out: &mut String, r: &Report) {
    let Some(l) = &r.latency else { return };
    let style = if l.ratio_high < 1.0 {
        GOOD
    } else if l.ratio_low > 1.0 {
        WARN
    } else {
        PLAIN
    };
    let text = format!(
        "{:.3} ms -> {:.3} ms, {style}ratio {:.3} [{:.3}, {:.3}]{style:#}",
        l.before_ms, l.after_ms, l.ratio, l.ratio_low, l.ratio_high
    );
    *out += &line(BOLD, "latency", &text);
    let how = format!(
        "{}, {}, {}",
        r.engine,
        plural(l.threads, "thread"),
        plural(l.runs, "pair")
    );
    *out += &line(PLAIN, "", &how);
    if let Some(form) = &l.form {
        *out += &line(PLAIN, "", &format!("timed: {form}"));
    }
    for f in &r.forms {
        *out += &line(PLAIN, &f.form, &form_text(f));
    }
}

fn form_text(f: &FormReport) -> String {
    let mut text = format!("{:.3} ms, ratio {:.3}", f.latency_ms, f.ratio);
    if let Some(b) = f.file_bytes {
        text = format!("{}, {text}", bytes(b));
    }
    if let Some(db) = f.sqnr_db {
        text += &format!(", SQNR {db:.1} dB");
    }
    if let Some(a) = f.accuracy {
        text += &format!(
            ", accuracy {:.2} % of {}",
            100.0 * a,
            plural(f.samples, "sample")
        );
    }
    if f.quantize_share > 0.0 {
        text += &format!(", {:.0} % of it quantizing", 100.0 * f.quantize_share);
    }
    text
}

fn written(out: &mut String, r: &Report) {
    let Some(w) = &r.written else { return };
    let target = match r.output.as_deref() {
        None | Some("-") => "standard output".to_owned(),
        Some(path) => clean(path),
    };
    *out += &line(BOLD, "written", &format!("{target} ({})", bytes(w.bytes)));
    if let Some(side) = &w.side_file {
        let text = format!("weights in {}", clean(&side.display().to_string()));
        *out += &line(PLAIN, "", &text);
    }
    for old in &w.left_behind {
        let old = clean(&old.display().to_string());
        let text = format!("{DIM}{old} belongs to the old model and is still there{DIM:#}");
        *out += &line(PLAIN, "", &text);
    }
}

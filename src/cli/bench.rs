//! `paring bench`: how long a model takes, or two in turn.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::args::{Bench as BenchArgs, Common};
use super::exit::{Exit, failure};
use super::terminal::{BOLD, PLAIN, line, plural, short, table};
use super::{io, terminal};
use crate::data::{RandomInputs, RunShapes};
use crate::engine::TractEngine;
use crate::validate::{
    Bench, Latency, Profile, ProfileRow, TimeOptions, bench, profile, time_pair,
};

/// Rows of the profile that are shown.
const SHOWN: usize = 20;
/// Names are cut to this width.
const NAME: usize = 44;

#[derive(Default, Serialize)]
struct Measured {
    #[serde(skip_serializing_if = "Option::is_none")]
    bench: Option<Bench>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Latency>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profiles: Vec<Profile>,
    notes: Vec<String>,
}

pub(super) fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<Exit> {
    if !(args.min_time > 0.0 && args.min_time <= 3600.0) {
        return Err(failure(
            Exit::Usage,
            "--min-time: expected seconds, more than 0 and at most 3600",
        ));
    }
    let first = io::read(common, &args.model)?.model;
    let second = args
        .other
        .as_ref()
        .map(|p| io::read(common, p))
        .transpose()?
        .map(|l| l.model);
    let engine = TractEngine::new();
    let shapes = RunShapes::settle(&engine, &first, &io::shape_options(&args.running)?)?;
    let random = RandomInputs::new(&first, &shapes, 1, args.running.seed)?;
    let inputs = random.run(0)?;
    let options = TimeOptions {
        threads: usize::from(args.running.threads),
        min_time: Duration::from_secs_f64(args.min_time),
        ..TimeOptions::default()
    };
    let mut measured = Measured {
        notes: shapes.notes.iter().chain(random.notes()).cloned().collect(),
        ..Measured::default()
    };
    match &second {
        Some(second) => {
            measured.latency = Some(time_pair(&engine, &first, second, &inputs, &options)?)
        }
        None => measured.bench = Some(bench(&engine, &first, &inputs, &options)?),
    }
    if args.profile {
        for model in [Some(&first), second.as_ref()].into_iter().flatten() {
            measured
                .profiles
                .push(profile(&engine, model, &inputs, &options)?);
        }
    }
    if args.json {
        io::print_json(&measured)?;
    } else {
        io::print(&text(&measured)?)?;
    }
    Ok(Exit::Success)
}

fn text(m: &Measured) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let how = |threads, runs: String| format!("{}, {runs}", plural(threads, "thread"));
    if let Some(b) = &m.bench {
        let text = format!(
            "{:.3} ms [{:.3}, {:.3}], best {:.3} ms",
            b.median_ms, b.median_low_ms, b.median_high_ms, b.min_ms
        );
        out += &line(BOLD, "latency", &text);
        out += &line(PLAIN, "", &how(b.threads, plural(b.runs, "run")));
    }
    if let Some(l) = &m.latency {
        let text = format!(
            "{:.3} ms -> {:.3} ms, ratio {:.3} [{:.3}, {:.3}]",
            l.before_ms, l.after_ms, l.ratio, l.ratio_low, l.ratio_high
        );
        out += &line(BOLD, "latency", &text);
        out += &line(PLAIN, "", &how(l.threads, plural(l.runs, "pair")));
    }
    out += &terminal::notes(&m.notes);
    for (i, p) in m.profiles.iter().enumerate() {
        let which = match m.profiles.len() {
            1 => "",
            _ if i == 0 => " of the first model",
            _ => " of the second model",
        };
        profile_text(&mut out, which, p)?;
    }
    Ok(out)
}

/// Where the time of a run goes; `which` says of which model.
pub(super) fn profile_text(out: &mut String, which: &str, p: &Profile) -> std::fmt::Result {
    writeln!(
        out,
        "\n{BOLD}Time by operator{which}{BOLD:#}, {:.3} ms",
        p.total_ms
    )?;
    by_type(out, &p.types)?;
    by_operator(out, &p.nodes)
}

fn by_type(out: &mut String, rows: &[ProfileRow]) -> std::fmt::Result {
    let mut table = table(&["type", "count", "ms", "share"], 1);
    for r in rows.iter().take(SHOWN) {
        table.add_row([
            short(&r.name, NAME),
            r.count.to_string(),
            format!("{:.3}", r.ms),
            format!("{:.1} %", 100.0 * r.share),
        ]);
    }
    writeln!(out, "{}\n", table.trim_fmt())
}

fn by_operator(out: &mut String, rows: &[ProfileRow]) -> std::fmt::Result {
    let mut table = table(&["operator", "type", "ms", "share"], 2);
    for r in rows.iter().take(SHOWN) {
        table.add_row([
            short(&r.name, NAME),
            short(&r.op, NAME / 2),
            format!("{:.3}", r.ms),
            format!("{:.1} %", 100.0 * r.share),
        ]);
    }
    writeln!(out, "{}", table.trim_fmt())
}

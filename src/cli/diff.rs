//! `paring diff`: what differs between two models.

use std::collections::BTreeMap;
use std::fmt::Write;

use anstyle::Style;
use paring_ir::escape;

use super::args::{Common, Diff as DiffArgs};
use super::exit::{Exit, failure};
use super::terminal::{
    BAD, BOLD, DIM, GOOD, PLAIN, WARN, bytes, clean, count, number, plural, short, table,
};
use super::{io, terminal};
use crate::diff::{
    Diff, Difference, GraphPair, KeptAxis, Node, OpRef, Pattern, PatternKind, State, TensorChange,
    Totals, TypeChange, diff,
};
use crate::report::diff_page;
use crate::report::format::{MOST_RUNS, runs};

/// Rows of each list that are shown unless more is asked for.
const ROWS: usize = 24;
/// Lines of the listing of operators that are shown unless more is asked for.
const LINES: usize = 80;
/// Operators of one type in a row that are told one by one.
const RUN: usize = 4;
/// Unchanged operators that are shown around a change.
const CONTEXT: usize = 1;
/// The width of one side of the listing.
const SIDE: usize = 46;
/// The width of the bars of `--stat`.
const BAR: u64 = 40;

pub(super) fn run(common: &Common, args: &DiffArgs) -> anyhow::Result<Exit> {
    if io::is_dash(&args.before) && io::is_dash(&args.after) {
        return Err(failure(
            Exit::Usage,
            "only one of the models can come from standard input",
        ));
    }
    args.html.as_deref().map_or(Ok(()), io::check_writable)?;
    let mut before = io::read(common, &args.before)?;
    let mut after = io::read(common, &args.after)?;
    for loaded in [&mut before, &mut after] {
        if let Some(warning) = crate::provenance::restore(&mut loaded.model)? {
            terminal::warning(common, &warning);
        }
    }
    let mut found = diff(&before.model, &after.model)?;
    let exit = if found.is_empty(args.strict) {
        Exit::Success
    } else {
        Exit::Different
    };
    if let Some(path) = &args.html {
        let [a, b] = [&args.before, &args.after].map(|p| p.display().to_string());
        io::write_whole(path, &diff_page(&a, &b, &found))?;
    }
    if args.json {
        if !args.alignment {
            found.graphs.clear();
        }
        io::print_json(&found)?;
    } else if !common.quiet && args.html.is_none() {
        let view = View {
            d: &found,
            all: common.verbose > 0,
            strict: args.strict,
        };
        let text = if args.stat { view.stat() } else { view.text() };
        io::print(&text?)?;
    }
    Ok(exit)
}

type Text = Result<String, std::fmt::Error>;

/// What is shown of a diff.
struct View<'a> {
    d: &'a Diff,
    /// Every line of every list.
    all: bool,
    strict: bool,
}

impl View<'_> {
    fn text(&self) -> Text {
        let mut out = String::new();
        for change in &self.d.interface {
            write!(out, "{WARN}~{WARN:#} ")?;
            difference(&mut out, change, "")?;
        }
        if self.strict {
            for change in &self.d.spelling {
                write!(out, "{WARN}~{WARN:#} ")?;
                difference(&mut out, change, "")?;
            }
        }
        self.patterns(&mut out)?;
        for (graph, pair) in self.d.graphs.iter().enumerate() {
            self.listing(&mut out, graph, pair)?;
        }
        self.types(&mut out)?;
        self.tensors(&mut out)?;
        self.totals(&mut out)?;
        self.summary(&mut out)?;
        Ok(out)
    }

    /// How many of so many rows are shown.
    fn shown(&self, all: usize, most: usize) -> usize {
        // A last line that says that there is one more line would be no shorter.
        if self.all || all <= most + 1 {
            all
        } else {
            most
        }
    }

    fn more(&self, out: &mut String, all: usize, most: usize, what: &str) -> std::fmt::Result {
        match all - self.shown(all, most) {
            0 => Ok(()),
            rest => writeln!(out, "  {DIM}… {} (-v shows all){DIM:#}", plural(rest, what)),
        }
    }

    fn patterns(&self, out: &mut String) -> std::fmt::Result {
        let patterns = &self.d.patterns;
        if patterns.is_empty() {
            return Ok(());
        }
        writeln!(out, "{BOLD}What became of what{BOLD:#}")?;
        for p in patterns.iter().take(self.shown(patterns.len(), ROWS)) {
            let by = match p.by.as_slice() {
                [] => String::new(),
                by => format!("  {DIM}by {}{DIM:#}", escape(&by.join(", "))),
            };
            writeln!(out, "  {:>4} x  {}{by}", p.count, sentence(p))?;
        }
        self.more(out, patterns.len(), ROWS, "more pattern")?;
        writeln!(out)
    }

    /// The operators of two graphs side by side; runs without a change are folded.
    fn listing(&self, out: &mut String, graph: usize, pair: &GraphPair) -> std::fmt::Result {
        let rows = rows(graph, pair);
        let near = near_changes(&rows);
        if !near.contains(&true) {
            return Ok(());
        }
        let title = match pair.path.as_str() {
            "" => "Operators".to_owned(),
            path => format!("Operators of {}", escape(path)),
        };
        writeln!(out, "{BOLD}{title}{BOLD:#}")?;
        let mut lines: Vec<String> = Vec::new();
        let mut folded = (0, 0);
        let mut at = 0;
        while let Some(row) = rows.get(at) {
            if !near[at] {
                folded.0 += 1;
                folded.1 += usize::from(row.state() == State::Reweighted);
                at += 1;
                continue;
            }
            fold(&mut lines, &mut folded);
            lines.push(row.text());
            self.details(&mut lines, row)?;
            at += 1;
            let run = rows[at..].iter().take_while(|r| r.is_like(row)).count();
            if run > RUN && !self.all {
                let what = format!("{run} more {}", short(row.op_type(), 30));
                let (sign, style) = row.sign();
                lines.push(format!("{style}{sign} … {what}{style:#}"));
                at += run;
            }
        }
        fold(&mut lines, &mut folded);
        for line in lines.iter().take(self.shown(lines.len(), LINES)) {
            writeln!(out, "{line}")?;
        }
        self.more(out, lines.len(), LINES, "more line")?;
        writeln!(out)
    }

    /// What there is to say of one operator.
    fn details(&self, lines: &mut Vec<String>, row: &Row<'_>) -> std::fmt::Result {
        let change = row.after.or(row.before).and_then(|n| n.change);
        let change = change.and_then(|c| self.d.operators.changed.get(c));
        for d in change.into_iter().flat_map(|c| &c.changes) {
            let mut line = String::new();
            difference(&mut line, d, "      ")?;
            lines.push(line.trim_end().to_owned());
        }
        // Whose pattern stands above is explained there.
        let told = row.after.is_some_and(|n| n.pattern.is_some()) && !self.all;
        let op = change.map(|c| &c.op).or_else(|| row.added(self.d));
        if let Some(op) = op.filter(|op| !op.by.is_empty() && !told) {
            lines.push(format!("      {}", origin(op)));
        }
        Ok(())
    }

    fn types(&self, out: &mut String) -> std::fmt::Result {
        let types = &self.d.types;
        if types.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "{BOLD}Types of values{BOLD:#} ({})",
            plural(types.len(), "value")
        )?;
        let mut table = table(&["value", "before", "after"], 3);
        for TypeChange {
            name,
            before,
            after,
            ..
        } in types.iter().take(self.shown(types.len(), ROWS / 2))
        {
            table.add_row([short(name, 40), short(before, 26), short(after, 26)]);
        }
        writeln!(out, "{}", table.trim_fmt())?;
        self.more(out, types.len(), ROWS / 2, "more value")?;
        writeln!(out)
    }

    fn tensors(&self, out: &mut String) -> std::fmt::Result {
        let t = &self.d.initializers;
        if t.changed.is_empty() && t.added.is_empty() && t.removed.is_empty() {
            return Ok(());
        }
        writeln!(out, "{BOLD}Weights and other constants{BOLD:#}")?;
        let plain = |(name, ty): &(String, String)| format!("{} {}", short(name, 60), clean(ty));
        for (sign, style, list, in_use) in [
            ("-", BAD, &t.removed, t.removed_in_use),
            ("+", GOOD, &t.added, t.added_in_use),
        ] {
            // What operators take is a part of what is told of them.
            let lone = if self.all {
                list.len()
            } else {
                list.len() - in_use
            };
            for entry in list.iter().take(self.shown(lone, ROWS / 2).min(lone)) {
                writeln!(out, "{style}{sign} tensor {}{style:#}", plain(entry))?;
            }
            self.more(out, lone, ROWS / 2, "more tensor")?;
            if in_use > 0 && !self.all {
                let what = plural(in_use, "tensor");
                writeln!(out, "{style}{sign} {what} of the operators above{style:#}")?;
            }
        }
        for c in t.changed.iter().take(self.shown(t.changed.len(), ROWS)) {
            writeln!(
                out,
                "{WARN}~ tensor {}{WARN:#} {}",
                short(&c.name, 60),
                tensor_text(c)
            )?;
        }
        self.more(out, t.changed.len(), ROWS, "more tensor")?;
        writeln!(out)
    }

    fn totals(&self, out: &mut String) -> std::fmt::Result {
        let (a, b) = (&self.d.before, &self.d.after);
        if a == b && self.d.is_empty(false) {
            return Ok(());
        }
        let mut table = table(&["", "before", "after", "ratio"], 1);
        let row = |name: &str, x: u64, y: u64, text: &dyn Fn(u64) -> String| {
            [name.to_owned(), text(x), text(y), ratio(x, y)]
        };
        table.add_row(row("operators", a.nodes, b.nodes, &|n| n.to_string()));
        table.add_row(row("parameters", a.parameters, b.parameters, &count));
        if a.zeros + b.zeros > 0 {
            let zeros = |t: &Totals| {
                let share = 100.0 * t.zeros as f64 / t.parameters.max(1) as f64;
                format!("{share:.1} %")
            };
            let name = "  of them zero".to_owned();
            table.add_row([name, zeros(a), zeros(b), String::new()]);
        }
        table.add_row(row("bytes of weights", a.bytes, b.bytes, &bytes));
        table.add_row(row("MACs", a.macs, b.macs, &count));
        if (a.macs, b.macs) != (a.effective_macs, b.effective_macs) {
            let (x, y) = (a.effective_macs, b.effective_macs);
            table.add_row(row("  of weights not zero", x, y, &count));
        }
        writeln!(out, "{}\n", table.trim_fmt())
    }

    fn summary(&self, out: &mut String) -> std::fmt::Result {
        let (ops, t) = (&self.d.operators, &self.d.initializers);
        let moved = match ops.moved {
            0 => String::new(),
            n => format!(", {n} moved"),
        };
        writeln!(
            out,
            "{BOLD}operators{BOLD:#}     {} added, {} removed, {} changed, {} same{}{moved}",
            ops.added.len(),
            ops.removed.len(),
            ops.changed.len(),
            ops.same,
            renamed(ops.renamed)
        )?;
        writeln!(
            out,
            "{BOLD}initializers{BOLD:#}  {} added, {} removed, {} changed, {} same{}",
            t.added.len(),
            t.removed.len(),
            t.changed.len(),
            t.same,
            renamed(t.renamed)
        )
    }

    /// One line for each operator type, as `git diff --stat` has for each file.
    fn stat(&self) -> Text {
        let mut out = String::new();
        let mut counts: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
        for pair in &self.d.graphs {
            let before = pair.before.iter().filter(|n| n.partner.is_none());
            for node in before.chain(&pair.after) {
                let at = match node.state {
                    State::Removed => 0,
                    State::Added => 1,
                    State::Changed => 2,
                    State::Reweighted => 3,
                    State::Same => continue,
                };
                counts.entry(&node.op_type).or_default()[at] += 1;
            }
        }
        let name = |op_type: &str| short(op_type, 28);
        let width = counts.keys().map(|k| name(k).chars().count()).max();
        let width = width.unwrap_or(0);
        let most = counts.values().map(|c| c.iter().sum::<u64>()).max();
        let most = most.unwrap_or(0).max(1);
        for (op_type, c) in &counts {
            let total: u64 = c.iter().sum();
            write!(out, " {:<width$} | {total:>5} ", name(op_type))?;
            for (n, sign, style) in [
                (c[0], "-", BAD),
                (c[1], "+", GOOD),
                (c[2], "~", WARN),
                (c[3], "w", PLAIN),
            ] {
                let cells = if most <= BAR {
                    n
                } else {
                    // At least one sign for what there is at all.
                    (n * BAR / most).max(u64::from(n > 0))
                };
                let cells = usize::try_from(cells).unwrap_or(0);
                write!(out, "{style}{}{style:#}", sign.repeat(cells))?;
            }
            writeln!(out)?;
        }
        let (o, t) = (&self.d.operators, &self.d.initializers);
        writeln!(
            out,
            " {}: {} removed (-), {} added (+), {} changed (~), {} with other weights (w)",
            plural(counts.len(), "operator type"),
            o.removed.len(),
            o.added.len(),
            o.changed.len(),
            o.reweighted
        )?;
        writeln!(
            out,
            " {} changed, {} added, {} removed; {}, {}, {}",
            plural(t.changed.len(), "tensor"),
            t.added.len(),
            t.removed.len(),
            step("parameters", self.d, |t| t.parameters, &count),
            step("weights", self.d, |t| t.bytes, &bytes),
            step("MACs", self.d, |t| t.macs, &count)
        )?;
        Ok(out)
    }
}

/// A total before and after, once where it is the same.
fn step(what: &str, d: &Diff, get: fn(&Totals) -> u64, text: &dyn Fn(u64) -> String) -> String {
    let (x, y) = (get(&d.before), get(&d.after));
    if x == y {
        format!("{what} {}", text(x))
    } else {
        format!("{what} {} -> {}", text(x), text(y))
    }
}

fn ratio(x: u64, y: u64) -> String {
    if x == y {
        "=".to_owned()
    } else if x == 0 {
        String::new()
    } else {
        format!("{:.3}", y as f64 / x as f64)
    }
}

fn renamed(n: usize) -> String {
    if n == 0 {
        String::new()
    } else {
        format!(" ({n} of them renamed)")
    }
}

/// Types joined by `+`; repeated ones once, with their number.
fn joined(types: &[String]) -> String {
    let (runs, counted) = runs(types);
    if counted {
        let kinds = runs.len();
        let mut text = join_runs(&runs[..kinds.min(MOST_RUNS)]);
        if kinds > MOST_RUNS {
            text += &format!(" + {} more types", kinds - MOST_RUNS);
        }
        return format!("{} operators ({text})", types.len());
    }
    join_runs(&runs)
}

fn join_runs(runs: &[(&String, usize)]) -> String {
    let texts: Vec<String> = runs
        .iter()
        .map(|(t, n)| match n {
            1 => short(t, 32),
            n => format!("{n} {}", short(t, 32)),
        })
        .collect();
    texts.join(" + ")
}

/// A pattern as a sentence.
fn sentence(p: &Pattern) -> String {
    let (before, after) = (joined(&p.before), joined(&p.after));
    match p.kind {
        PatternKind::Replaced | PatternKind::Stored => {
            format!("{BAD}{before}{BAD:#} became {GOOD}{after}{GOOD:#}")
        }
        PatternKind::Bypassed => format!("{BAD}{before}{BAD:#} removed, its input is used instead"),
        PatternKind::Folded => format!("{BAD}{before}{BAD:#} became a constant"),
        PatternKind::Merged => {
            format!("{BAD}{before}{BAD:#} merged with another of the same value")
        }
        PatternKind::Dropped => format!("{BAD}{before}{BAD:#} removed, nothing used it"),
        PatternKind::Inserted => format!("{GOOD}{after}{GOOD:#} inserted"),
        PatternKind::Appended => format!("{GOOD}{after}{GOOD:#} added"),
    }
}

/// One line of the listing.
#[derive(Clone, Copy)]
struct Row<'a> {
    before: Option<&'a Node>,
    after: Option<&'a Node>,
    place: (usize, usize),
}

impl Row<'_> {
    fn state(&self) -> State {
        self.after.or(self.before).map_or(State::Same, |n| n.state)
    }

    fn sign(&self) -> (&'static str, Style) {
        match self.state() {
            State::Same => (" ", DIM),
            State::Reweighted => (" ", PLAIN),
            State::Changed => ("~", WARN),
            State::Added => ("+", GOOD),
            State::Removed => ("-", BAD),
        }
    }

    fn op_type(&self) -> &str {
        self.after.or(self.before).map_or("", |n| &n.op_type)
    }

    /// Whether both are operators of one type that were added, or removed.
    fn is_like(&self, other: &Row<'_>) -> bool {
        matches!(self.state(), State::Added | State::Removed)
            && self.state() == other.state()
            && self.op_type() == other.op_type()
    }

    fn text(&self) -> String {
        let (sign, style) = self.sign();
        let cell = |n: Option<&Node>| {
            n.map_or_else(String::new, |n| {
                let width = SIDE.saturating_sub(n.op_type.chars().count() + 2);
                format!("{} {}", short(&n.op_type, 30), short(&n.name, width.max(8)))
            })
        };
        let (left, right) = (cell(self.before), cell(self.after));
        let note = match self.state() {
            State::Reweighted => "  (other weights)",
            _ => "",
        };
        let line = format!("{sign} {left:<SIDE$}  {right}{note}");
        format!("{style}{}{style:#}", line.trim_end())
    }

    /// What is told of an added operator.
    fn added<'d>(&self, d: &'d Diff) -> Option<&'d OpRef> {
        if self.state() != State::Added {
            return None;
        }
        let (graph, after) = self.place;
        // The list is in the order of graphs and places.
        let at = d
            .operators
            .added
            .binary_search_by_key(&(graph, Some(after)), |o| (o.place.graph, o.place.after))
            .ok()?;
        d.operators.added.get(at)
    }
}

/// The operators of both graphs in the order of the second, each removed one after what stood
/// before it in the first.
fn rows(graph: usize, pair: &GraphPair) -> Vec<Row<'_>> {
    let mut lone: BTreeMap<Option<usize>, Vec<&Node>> = BTreeMap::new();
    let mut last = None;
    for node in &pair.before {
        match node.partner {
            Some(j) => last = Some(j),
            None => lone.entry(last).or_default().push(node),
        }
    }
    let removed = |key: Option<usize>| {
        lone.get(&key).into_iter().flatten().map(|&n| Row {
            before: Some(n),
            after: None,
            place: (graph, 0),
        })
    };
    let mut out: Vec<Row<'_>> = removed(None).collect();
    for (j, node) in pair.after.iter().enumerate() {
        out.push(Row {
            before: node.partner.and_then(|i| pair.before.get(i)),
            after: Some(node),
            place: (graph, j),
        });
        out.extend(removed(Some(j)));
    }
    out
}

/// Which rows are changes or stand near one.
fn near_changes(rows: &[Row<'_>]) -> Vec<bool> {
    let mut out = vec![false; rows.len()];
    for (i, row) in rows.iter().enumerate() {
        if matches!(row.state(), State::Same | State::Reweighted) {
            continue;
        }
        let (low, high) = (i.saturating_sub(CONTEXT), (i + CONTEXT + 1).min(rows.len()));
        out[low..high].fill(true);
    }
    out
}

fn fold(lines: &mut Vec<String>, folded: &mut (usize, usize)) {
    let (all, reweighted) = std::mem::take(folded);
    if all == 0 {
        return;
    }
    let note = match reweighted {
        0 => String::new(),
        n if n == all => " but for weights".to_owned(),
        n => format!(", {n} of them but for weights"),
    };
    lines.push(format!(
        "{DIM}  … {} unchanged{note}{DIM:#}",
        plural(all, "operator")
    ));
}

fn origin(op: &OpRef) -> String {
    let from = match op.from.as_slice() {
        [] => String::new(),
        from => format!(" from {}", short(&from.join(", "), 70)),
    };
    format!("{DIM}by {}{from}{DIM:#}", escape(&op.by.join(", ")))
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
    let (x, y) = (&c.stats_before, &c.stats_after);
    if let (Some(p), Some(q)) = (&x.elements, &y.elements) {
        parts.push(format!("{} -> {}", short(p, 40), short(q, 40)));
    } else if c.before != c.after {
        parts.push(format!("{} -> {}", clean(&c.before), clean(&c.after)));
    } else {
        parts.push(clean(&c.before));
    }
    parts.extend(c.kept.iter().map(kept));
    if let Some(q) = &y.quantization {
        let (low, high) = q.scale;
        let scale = if low == high {
            format!("scale {}", number(low))
        } else {
            format!("{} scales {} to {}", q.scales, number(low), number(high))
        };
        let zero = match q.zero_point {
            (0, 0) => String::new(),
            (a, b) if a == b => format!(", zero point {a}"),
            (a, b) => format!(", zero points {a} to {b}"),
        };
        parts.push(format!("{scale}{zero}"));
    }
    if let (Some(max), Some(norm)) = (c.max_abs, c.relative_norm) {
        let beyond = c.rescaled_norm.map_or_else(String::new, |rest| {
            format!(
                ", {} % beyond a factor for each channel",
                percent(100.0 * rest)
            )
        });
        parts.push(format!(
            "differs by {} % (at most {}){beyond}",
            percent(100.0 * norm),
            number(max)
        ));
    }
    if c.sparsity_before != c.sparsity_after {
        parts.push(format!(
            "zeros {:.1} % -> {:.1} %",
            100.0 * c.sparsity_before,
            100.0 * c.sparsity_after
        ));
    }
    // Codebooks and codes are worth a word, a few elements more or less are not.
    let few = |n: Option<usize>| n.is_some_and(|n| n <= 256);
    if x.elements.is_none() && x.distinct != y.distinct && few(x.distinct) != few(y.distinct) {
        let text = |n: Option<usize>| n.map_or_else(|| "many".to_owned(), |n| n.to_string());
        parts.push(format!(
            "distinct {} -> {}",
            text(x.distinct),
            text(y.distinct)
        ));
    }
    if let (Some(p), Some(q)) = (x.rank, y.rank)
        && p != q
        && x.elements.is_none()
    {
        parts.push(format!("rank {p} -> {q}"));
    }
    if !c.by.is_empty() {
        parts.push(format!("{DIM}by {}{DIM:#}", escape(&c.by.join(", "))));
    }
    parts.join("; ")
}

fn percent(x: f64) -> String {
    if x == 0.0 || x >= 0.1 {
        format!("{x:.1}")
    } else {
        format!("{x:.1e}")
    }
}

fn kept(k: &KeptAxis) -> String {
    format!(
        "axis {}: {} of {} kept ({})",
        k.axis,
        k.count,
        k.of,
        short(&k.indices, 40)
    )
}

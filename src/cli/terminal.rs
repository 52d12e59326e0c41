//! What a person sees: logging, colour, progress, errors.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paring_ir::escape;
use paring_ir::pass::Progress;

use super::args::{Colour, Common};
pub(super) use crate::report::format::{bytes, count, duration, number, plural};

/// No table is wider than this.
const WIDTH: u16 = 100;
/// The width of the column of labels.
const LABEL: usize = 15;

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const WARN: Style = AnsiColor::Yellow.on_default();

/// Sets up colour and logging.
pub(super) fn set_up(common: &Common) {
    match common.color {
        Colour::Auto => {}
        Colour::Always => anstream::ColorChoice::Always.write_global(),
        Colour::Never => anstream::ColorChoice::Never.write_global(),
    }
    let level = match (common.quiet, common.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info,tract_core=warn,tract_hir=warn,tract_onnx=warn,tract_linalg=warn",
        _ => "debug,tract_core=info,tract_hir=info,tract_onnx=info,tract_linalg=info",
    };
    // RUST_LOG goes before -q and -v. A second call, in tests, changes nothing.
    let _ = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_timestamp(None)
        .try_init();
}

/// Prints an error with its causes to standard error.
pub(super) fn error(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        // Many errors say their cause already.
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    anstream::eprintln!("{BAD}error:{BAD:#} {}", clean(&text));
}

/// Prints a warning to standard error, unless `-q` was given.
pub(super) fn warning(common: &Common, text: &str) {
    if !common.quiet {
        anstream::eprintln!("{WARN}warning:{WARN:#} {}", clean(text));
    }
}

/// A progress bar on standard error, when that is a terminal.
pub(super) struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    shown: bool,
}

impl Bar {
    pub(super) fn new(common: &Common) -> Bar {
        Bar {
            bar: Mutex::new(None),
            shown: !common.quiet && std::io::stderr().is_terminal(),
        }
    }

    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        if self.shown
            && let Ok(mut bar) = self.bar.lock()
        {
            f(&mut bar);
        }
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, total: u64) {
        self.with(|bar| {
            let new = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{msg:24} {wide_bar} {pos}/{len} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                new.set_style(style);
            }
            new.set_message(what.to_owned());
            new.enable_steady_tick(Duration::from_millis(200));
            if let Some(old) = bar.replace(new) {
                old.finish_and_clear();
            }
        });
    }

    fn advance(&self, steps: u64) {
        self.with(|bar| {
            if let Some(bar) = bar {
                bar.inc(steps);
            }
        });
    }

    fn finish(&self) {
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}

/// The same text with everything escaped that a terminal would obey, line ends excepted.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            out.push_str(&escape(c.encode_utf8(&mut [0; 4])));
        }
    }
    out
}

/// The same text on one line, with everything escaped that a terminal would obey, and with its
/// middle left out where it is longer than `width`.
pub(super) fn short(text: &str, width: usize) -> String {
    let text = escape(text);
    let count = text.chars().count();
    if count <= width {
        return text;
    }
    let head = width.saturating_sub(1) / 2;
    let tail = width.saturating_sub(1) - head;
    let (first, last) = (text.chars().take(head), text.chars().skip(count - tail));
    first.chain(['…']).chain(last).collect()
}

/// A line of a report: what it is about, in a column of its own, and what there is to say.
pub(super) fn line(style: Style, label: &str, text: &str) -> String {
    format!("{style}{label:<LABEL$}{style:#}{text}\n")
}

/// As [`line`], for text of any length and without colour, which goes on in further lines.
pub(super) fn paragraph(style: Style, label: &str, text: &str) -> String {
    let width = usize::from(WIDTH) - LABEL;
    let mut out = String::new();
    let mut row = String::new();
    for word in clean(text).split_whitespace() {
        let used = row.chars().count();
        if used > 0 && used + 1 + word.chars().count() > width {
            let label = if out.is_empty() { label } else { "" };
            out += &line(style, label, &std::mem::take(&mut row));
        }
        if !row.is_empty() {
            row.push(' ');
        }
        row += word;
    }
    let label = if out.is_empty() { label } else { "" };
    out + &line(style, label, &row)
}

/// What the user should know, one paragraph each.
pub(super) fn notes<'a>(notes: impl IntoIterator<Item = &'a String>) -> String {
    let labels = std::iter::once("notes").chain(std::iter::repeat(""));
    let notes = notes.into_iter().zip(labels);
    notes.map(|(n, l)| paragraph(BOLD, l, n)).collect()
}

/// A table without lines, whose columns from `numbers` on hold numbers.
pub(super) fn table(header: &[&str], numbers: usize) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH)
        .set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 2 } else { 0 }, 2));
        if i >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if i >= numbers || i == 0 {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(clean("a\u{1b}[31m\nb\u{9b}"), "a\\u{1b}[31m\nb\\u{9b}");
        assert_eq!(clean("größe\u{202e}"), "größe\\u{202e}");
        assert_eq!(short("\u{7}", 9), "\\u{7}");
    }

    #[test]
    fn paragraphs_go_on_under_their_text() {
        let text = paragraph(PLAIN, "notes", &"word ".repeat(20));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("notes          word word"), "{text}");
        assert_eq!(lines[1], "               word word word");
        assert_eq!(
            paragraph(PLAIN, "a", "b\u{1b}"),
            "a              b\\u{1b}\n"
        );
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(short("encoder.layer.11.weight", 11), "encod…eight");
        assert_eq!(short("encoder", 7), "encoder");
    }
}

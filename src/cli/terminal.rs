//! What a person sees: logging, colour, progress, errors.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paring_ir::pass::Progress;

use super::args::{Colour, Common};

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
    anstream::eprintln!("{BAD}error:{BAD:#} {text}");
}

/// Prints a warning to standard error, unless `-q` was given.
pub(super) fn warning(common: &Common, text: &str) {
    if !common.quiet {
        anstream::eprintln!("{WARN}warning:{WARN:#} {text}");
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

/// A number of bytes for people: `1.46 MB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n as f64, "B")
}

/// A count for people: `4.65 M`.
pub(super) fn count(n: u64) -> String {
    if n < 10_000 {
        n.to_string()
    } else {
        scaled(n as f64, "").trim_end().to_owned()
    }
}

fn scaled(mut x: f64, unit: &str) -> String {
    for prefix in ["", "k", "M", "G", "T"] {
        if x < 999.5 {
            let digits = if prefix.is_empty() || x >= 100.0 {
                0
            } else if x >= 10.0 {
                1
            } else {
                2
            };
            return format!("{x:.digits$} {prefix}{unit}");
        }
        x /= 1000.0;
    }
    format!("{x:.0} P{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(585_532), "586 kB");
        assert_eq!(bytes(1_460_000), "1.46 MB");
        assert_eq!(count(9_999), "9999");
        assert_eq!(count(4_650_000), "4.65 M");
    }
}

//! The command line. [`run`] gives a program with its own passes the whole tool.

mod args;
mod bench;
mod check;
mod compare;
mod diff;
mod exit;
mod inspect;
mod interrupt;
mod io;
mod optimize;
mod passes;
mod recipes;
mod schema;
mod terminal;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use paring_ir::Registry;

use args::{Args, Command};
use exit::Exit;

/// Runs the tool with the passes and recipes of a registry; `args` start with the program's name.
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     paring::cli::run(&paring::registry(), std::env::args_os())
/// }
/// ```
pub fn run(registry: &Registry, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            // clap prints help and versions to standard output, mistakes to standard error.
            let _ = e.print();
            return if e.use_stderr() {
                Exit::Usage.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    terminal::set_up(&args.common);
    let diffing = matches!(args.command, Command::Diff(_));
    let result = match args.command {
        Command::Optimize(a) => optimize::run(registry, &args.common, &a),
        Command::Inspect(a) => inspect::run(&args.common, &a),
        Command::Diff(a) => diff::run(&args.common, &a),
        Command::Compare(a) => compare::run(&args.common, &a),
        Command::Bench(a) => bench::run(&args.common, &a),
        Command::Check(a) => check::run(&args.common, &a),
        Command::Text(a) => text::run(&args.common, &a),
        Command::Passes(a) => passes::run(registry, &a),
        Command::Recipes(a) => recipes::run(registry, &a),
        Command::Schema => schema::run(registry),
    };
    match result {
        Ok(code) => code.into(),
        Err(e) if exit::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::error(&e);
            // `diff` promises 2 for any trouble, as the diff of files does.
            if diffing {
                Exit::Usage.into()
            } else {
                exit::of(&e).into()
            }
        }
    }
}

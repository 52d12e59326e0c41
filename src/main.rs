//! The command line of paring.

use std::process::ExitCode;

fn main() -> ExitCode {
    paring::cli::run(&paring::registry(), std::env::args_os())
}

//! The whole command line of paring with one more pass.

use std::process::ExitCode;

use paring_example_pass::NameOperators;

fn main() -> ExitCode {
    paring::cli::run(
        &paring::registry().with::<NameOperators>(),
        std::env::args_os(),
    )
}

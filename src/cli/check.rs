//! `paring check`: the verifier.

use super::args::{Check, Common};
use super::exit::{Exit, failure};
use super::io;
use super::terminal::clean;

pub(super) fn run(common: &Common, args: &Check) -> anyhow::Result<Exit> {
    let loaded = io::read(common, &args.model)?;
    match paring_ir::verify::verify(&loaded.model) {
        Ok(()) => {
            if !common.quiet {
                io::print(&format!(
                    "{}: valid\n",
                    clean(&args.model.display().to_string())
                ))?;
            }
            Ok(Exit::Success)
        }
        Err(found) => Err(failure(
            Exit::BadModel,
            format!("{}: {found}", args.model.display()),
        )),
    }
}

//! `paring check`: the verifier.

use super::args::{Check, Common};
use super::exit::{Exit, failure};
use super::io;

pub(super) fn run(common: &Common, args: &Check) -> anyhow::Result<Exit> {
    let loaded = io::read(common, &args.model)?;
    match paring_ir::verify::verify(&loaded.model) {
        Ok(()) => {
            if !common.quiet {
                io::print(&format!("{}: valid\n", args.model.display()))?;
            }
            Ok(Exit::Success)
        }
        Err(found) => Err(failure(
            Exit::BadModel,
            format!("{}: {found}", args.model.display()),
        )),
    }
}

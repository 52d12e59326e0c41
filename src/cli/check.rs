//! `paring check`: the verifier.

use paring_ir::analysis::Shapes;
use paring_ir::analysis::shapes::ShapeOptions;
use paring_ir::verify::{self, Severity};

use super::args::{Check, Common};
use super::exit::{Exit, failure};
use super::io;
use super::terminal::{self, clean};

pub(super) fn run(common: &Common, args: &Check) -> anyhow::Result<Exit> {
    let model = io::read(common, &args.model)?.model;
    let name = args.model.display().to_string();
    let shapes = Shapes::infer(&model, &ShapeOptions::default());
    let found = verify::check_with(&model, &shapes);
    for v in &found.violations {
        if v.severity == Severity::Warning {
            terminal::warning(common, &format!("{name}: [{}] {}", v.code, v.text()));
        }
    }
    let unlisted = found.unlisted(Severity::Warning);
    if unlisted > 0 {
        terminal::warning(common, &format!("{name}: and {unlisted} more"));
    }
    match found.into_result() {
        Ok(()) if common.quiet => Ok(Exit::Success),
        Ok(()) => {
            io::print(&format!("{}: valid\n", clean(&name)))?;
            Ok(Exit::Success)
        }
        Err(found) => Err(failure(Exit::BadModel, format!("{name}: {found}"))),
    }
}

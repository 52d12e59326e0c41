//! Exit codes. They are stable; `docs/json.md` lists them.

use std::process::ExitCode;

use paring_ir::engine::EngineError;
use paring_ir::manager::RunError;
use paring_ir::{OptionError, PassError};

use crate::onnx::{ReadError, WriteError};
use crate::optimize::OptimizeError;
use crate::pipeline::RecipeError;

/// How the tool ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Done; for `diff`: no difference.
    Success = 0,
    /// `diff`: there are differences.
    Different = 1,
    /// The command line is wrong; for `diff` any trouble.
    Usage = 2,
    /// The model can't be read or is invalid.
    BadModel = 3,
    /// The recipe or the options of a pass are wrong.
    BadRecipe = 4,
    /// The model or the data is not what a pass or the engine needs.
    Precondition = 5,
    /// A limit is not met; nothing was written.
    Limit = 6,
    /// A bug of a pass or of the tool; nothing was written.
    Bug = 7,
    /// A file can't be written.
    Write = 8,
    /// Stopped by the user.
    Cancelled = 130,
}

impl From<Exit> for ExitCode {
    fn from(e: Exit) -> ExitCode {
        ExitCode::from(e as u8)
    }
}

/// An error of the command line's own, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

/// An error with this exit code.
pub(super) fn failure(exit: Exit, message: impl Into<String>) -> anyhow::Error {
    Failure {
        exit,
        message: message.into(),
    }
    .into()
}

/// The exit code of an error: that of the first error in its chain that has one.
pub(super) fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_one).unwrap_or(Exit::Precondition)
}

fn of_one(e: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(f) = e.downcast_ref::<Failure>() {
        return Some(f.exit);
    }
    if e.is::<ReadError>() {
        return Some(Exit::BadModel);
    }
    if e.is::<WriteError>() {
        return Some(Exit::Write);
    }
    if e.is::<RecipeError>() || e.is::<OptionError>() {
        return Some(Exit::BadRecipe);
    }
    if let Some(e) = e.downcast_ref::<OptimizeError>() {
        return of_optimize(e);
    }
    if let Some(e) = e.downcast_ref::<RunError>() {
        return Some(of_run(e));
    }
    if let Some(EngineError::Cancelled) = e.downcast_ref() {
        return Some(Exit::Cancelled);
    }
    // What is read has errors of its own, so this is about what is written.
    e.is::<std::io::Error>().then_some(Exit::Write)
}

/// The variants are transparent, so what they hold is no link of the chain.
fn of_optimize(e: &OptimizeError) -> Option<Exit> {
    match e {
        OptimizeError::Recipe(_) | OptimizeError::Options(_) => Some(Exit::BadRecipe),
        OptimizeError::Run(e) => Some(of_run(e)),
        OptimizeError::Invalid(_) => Some(Exit::BadModel),
        OptimizeError::Engine(EngineError::Cancelled) => Some(Exit::Cancelled),
        OptimizeError::Graph(_) => Some(Exit::Bug),
        _ => Some(Exit::Precondition),
    }
}

fn of_run(e: &RunError) -> Exit {
    match e {
        RunError::Limits { .. } => Exit::Limit,
        RunError::Bug { .. } => Exit::Bug,
        RunError::Cancelled => Exit::Cancelled,
        RunError::Pass { source, .. } if matches!(**source, PassError::Options(_)) => {
            Exit::BadRecipe
        }
        _ => Exit::Precondition,
    }
}

/// Whether the reader of our output went away, as `| head` does: no failure.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

//! paring rewrites exported ONNX models to be smaller and faster, without retraining, and proves
//! what the rewrite did to the outputs and to the latency.
//!
//! The graph, the passes' interface and operator knowledge stand in [`paring_ir`], re-exported
//! here; the built-in passes in [`paring_passes`]. This crate adds ONNX files, the tract engine,
//! recipes, the diff, reports and the command line.
//!
//! ```
//! let registry = paring::registry();
//! let mut model = paring::read("testdata/langid_transformer.onnx")?;
//! let mut optimizer = paring::Optimizer::new(&registry).named("clean")?;
//! optimizer.settings.time = false;
//! let report = optimizer.run(&mut model)?;
//! assert!(report.after.cost.nodes < report.before.cost.nodes);
//! let bytes = paring::onnx::to_bytes(&model)?;
//! assert!(!bytes.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![deny(unsafe_code)]

pub mod cli;
pub mod data;
pub mod diff;
pub mod engine;
pub mod inspect;
pub mod onnx;
pub mod optimize;
pub mod pipeline;
pub mod provenance;
pub mod report;
pub mod validate;

use std::path::Path;

pub use optimize::{Optimizer, Report, Settings};
pub use paring_ir::*;
pub use paring_passes;

/// The built-in passes and recipes.
pub fn registry() -> Registry {
    paring_passes::builtin()
}

/// Reads a model from a file, with its weights mapped.
pub fn read(path: impl AsRef<Path>) -> Result<Model, onnx::ReadError> {
    onnx::read_file(path.as_ref(), &onnx::ReadOptions::default()).map(|loaded| loaded.model)
}

/// Writes a model to a file: whole or not at all.
pub fn write(model: &Model, path: impl AsRef<Path>) -> Result<onnx::WriteReport, onnx::WriteError> {
    onnx::write_file(model, path.as_ref(), &onnx::WriteOptions::default())
}

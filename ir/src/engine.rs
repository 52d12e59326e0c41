//! The interface to an inference engine. The adapters stand elsewhere; `paring` has one for tract.
//!
//! An engine compiles a cut of a graph, from chosen values to chosen values, and runs it.
//! Whole-model runs, activation statistics, layer-by-layer refits and constant folding are
//! the same thing with different cuts. No engine edits a model: an adapter that must rewrite
//! a graph to load it does so on a copy and says so in [`Plan::notes`].

use std::time::Duration;

use crate::graph::{OpId, ValueId};
use crate::model::Model;
use crate::tensor::{Dims, Tensor};

/// Why an engine could not compile or run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine has no implementation, or refuses this form.
    #[error("{engine} can't run {place}: {reason}")]
    Unsupported {
        /// The engine.
        engine: String,
        /// The operator, or the model.
        place: String,
        /// What the engine said.
        reason: String,
    },
    /// The engine failed or panicked while running.
    #[error("{engine} failed at {place}: {reason}")]
    Failed {
        /// The engine.
        engine: String,
        /// The operator, or the model.
        place: String,
        /// What the engine said.
        reason: String,
    },
    /// The inputs don't fit the model.
    #[error("input \"{input}\": {reason}")]
    Input {
        /// The input's name.
        input: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The cut is not one: a value that must be computed does not depend on the inputs alone.
    #[error("the cut is not closed: {0}")]
    Cut(String),
    /// The work would exceed the budget.
    #[error("{0}")]
    Budget(String),
    /// Data for the inputs could not be read.
    #[error("{0}")]
    Data(String),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// What to compile: the part of the main graph that computes `outputs` from `inputs`.
#[derive(Clone, Debug)]
pub struct Cut<'a> {
    /// The model.
    pub model: &'a Model,
    /// Where the values come in, in order. Constants are not listed.
    pub inputs: Vec<ValueId>,
    /// What to compute, in order.
    pub outputs: Vec<ValueId>,
    /// The shapes of the inputs for this plan, in order of `inputs`; every dimension is fixed.
    pub shapes: Vec<Dims>,
}

impl<'a> Cut<'a> {
    /// The whole main graph: from all its inputs, of these shapes, to all its outputs.
    pub fn whole(model: &'a Model, shapes: Vec<Dims>) -> Cut<'a> {
        Cut {
            model,
            inputs: model.graph.inputs().to_vec(),
            outputs: model.graph.outputs().to_vec(),
            shapes,
        }
    }
}

/// How to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CompileOptions {
    /// Let the engine optimize the graph, as for deployment. `false` runs it operator by operator.
    pub optimize: bool,
    /// Threads to run with.
    pub threads: usize,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            optimize: true,
            threads: 1,
        }
    }
}

/// The time spent in one operator.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// The operator's name as the engine knows it: that of the ONNX operator or of its first
    /// output, where the engine kept it.
    pub name: String,
    /// The operator of the main graph that this was made from, where the engine kept it.
    pub source: Option<OpId>,
    /// The engine's operator type.
    pub op: String,
    /// The time of one run.
    pub time: Duration,
}

/// An inference engine.
pub trait Engine: Send + Sync {
    /// The engine's name and version, such as `tract 0.23.9`.
    fn name(&self) -> String;

    /// Compiles a cut. The plan owns what it needs.
    fn compile(&self, cut: &Cut<'_>, options: CompileOptions)
    -> Result<Box<dyn Plan>, EngineError>;
}

/// A compiled cut.
pub trait Plan: Send {
    /// Runs the plan once: inputs in the order of the cut, outputs in the order of the cut.
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError>;

    /// Runs the plan once and measures each operator.
    fn profile(&mut self, inputs: &[Tensor]) -> Result<Vec<OpTime>, EngineError>;

    /// What the adapter rewrote on its copy of the model before the engine took it, for the report.
    fn notes(&self) -> &[String] {
        &[]
    }
}

/// One run of a model: the inputs, and how many of their samples count.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// The inputs in the order of the graph's inputs.
    pub inputs: Vec<Tensor>,
    /// Samples in this run that are scored; the rest is padding to a fixed batch.
    pub count: usize,
    /// The labels of the scored samples.
    pub labels: Option<Vec<i64>>,
}

/// Samples for a model, streamed: never all of them are in memory.
pub trait DataSource: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to call this source in a report.
    fn describe(&self) -> String {
        "data".to_string()
    }

    /// Whether samples have labels.
    fn has_labels(&self) -> bool {
        false
    }

    /// Calls `f` for runs of the model over the first `limit` samples, or over all.
    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError>;
}

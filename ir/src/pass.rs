//! The interface of a pass, and what a pass can ask for while it runs.
//!
//! A pass is a type with options, a constant [`PassInfo`] and a method that edits a model:
//!
//! ```
//! use paring_ir::{Changed, Effect, Model, NewOp, NoOptions, OptionError, OptionSet, Pass, PassContext, PassError, PassInfo};
//!
//! /// Replaces `Neg(Neg(x))` by `x`.
//! struct CancelNegations {
//!     options: OptionSet<NoOptions>,
//! }
//!
//! impl Pass for CancelNegations {
//!     const INFO: PassInfo = PassInfo::new("cancel-negations", "Remove pairs of Neg", Effect::Exact);
//!     type Options = NoOptions;
//!
//!     fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
//!         Ok(CancelNegations { options })
//!     }
//!
//!     fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
//!         let mut changed = Changed::No;
//!         model.edit_graphs(&mut |graph| {
//!             for outer in graph.topological_order()? {
//!                 if !graph.op(outer).is("Neg") || self.options.for_op(graph, outer).is_skip() {
//!                     continue;
//!                 }
//!                 let Some(x) = graph.op(outer).input(0) else { continue };
//!                 let Some(inner) = graph.producer(x).filter(|&p| graph.op(p).is("Neg")) else { continue };
//!                 let (Some(source), Some(out)) = (graph.op(inner).input(0), graph.op(outer).output(0)) else { continue };
//!                 if graph.can_replace(out, source) {
//!                     cx.applied(graph, outer, "cancelled", "the second Neg undoes the first");
//!                     graph.replace_value(out, source)?;
//!                     changed = Changed::Yes;
//!                 } else {
//!                     cx.missed(graph, outer, "graph-output", "the result is a graph output");
//!                 }
//!             }
//!             Ok::<(), PassError>(())
//!         })?;
//!         Ok(changed)
//!     }
//! }
//! # let registry = paring_ir::Registry::new().with::<CancelNegations>();
//! # assert!(registry.get("cancel-negations").is_some());
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::analysis::{Analysis, AnalysisCache};
use crate::engine::{DataSource, Engine, EngineError};
use crate::graph::{Graph, GraphError, OpId};
use crate::model::Model;
use crate::select::{OptionError, OptionSet};

/// Whether a pass may change what a model computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Outputs stay the same up to floating-point rounding.
    Exact,
    /// Outputs may change.
    Lossy,
}

/// What a pass is.
#[derive(Clone, Copy, Debug)]
pub struct PassInfo {
    /// The name: verb and object in kebab case, such as `prune-weights`.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Whether outputs may change.
    pub effect: Effect,
    /// Exact passes that the manager runs first.
    pub runs_first: &'static [&'static str],
    /// Passes that must not have run before this one.
    pub never_after: &'static [Conflict],
    /// Passes that must not run after this one: for those that can't say so themselves.
    pub never_before: &'static [Conflict],
}

/// A pass that does not go together with another in one of the two orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The other pass.
    pub pass: &'static str,
    /// What would be lost, as the end of a sentence: "the zeros would be filled".
    pub why: &'static str,
}

impl Conflict {
    /// A conflict with a pass, and what would be lost.
    pub const fn new(pass: &'static str, why: &'static str) -> Conflict {
        Conflict { pass, why }
    }
}

impl PassInfo {
    /// A pass that needs no other pass first.
    pub const fn new(name: &'static str, summary: &'static str, effect: Effect) -> PassInfo {
        PassInfo {
            name,
            summary,
            effect,
            runs_first: &[],
            never_after: &[],
            never_before: &[],
        }
    }

    /// The same pass with those that must not have run before it. A recipe in this order is
    /// refused, unless one of the two skips some operators; then it is up to
    /// [`Pass::requires`] to look at the operators of the model.
    pub const fn never_after(mut self, passes: &'static [Conflict]) -> PassInfo {
        self.never_after = passes;
        self
    }

    /// The same pass with those that must not run after it.
    pub const fn never_before(mut self, passes: &'static [Conflict]) -> PassInfo {
        self.never_before = passes;
        self
    }

    /// Why this pass can't run after another, if it can't.
    pub fn conflict_after(&self, earlier: &PassInfo) -> Option<&'static str> {
        let named = |all: &'static [Conflict], name: &str| all.iter().find(|c| c.pass == name);
        let own = named(self.never_after, earlier.name);
        own.or_else(|| named(earlier.never_before, self.name))
            .map(|c| c.why)
    }

    /// The same pass with exact passes that run before it.
    pub const fn runs_first(mut self, passes: &'static [&'static str]) -> PassInfo {
        self.runs_first = passes;
        self
    }
}

/// Whether a pass edited the model. A pass that says `No` must have left it alone; the
/// manager checks that by the model's revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Something was edited.
    Yes,
    /// Nothing was edited.
    No,
}

impl Changed {
    /// `Yes` when the condition holds.
    pub fn when(condition: bool) -> Changed {
        if condition { Changed::Yes } else { Changed::No }
    }

    /// Whether something was edited.
    pub fn is_yes(self) -> bool {
        self == Changed::Yes
    }
}

impl std::ops::BitOrAssign for Changed {
    fn bitor_assign(&mut self, other: Changed) {
        if other == Changed::Yes {
            *self = Changed::Yes;
        }
    }
}

/// A rewrite of models.
pub trait Pass: Send + Sync + Sized + 'static {
    /// What the pass is.
    const INFO: PassInfo;

    /// The options, in kebab case. `Default` gives the defaults; unknown keys are refused for
    /// every pass alike. A field with `#[schemars(extend("x-scope" = "pass"))]` makes sense for
    /// the whole pass only and is refused for single operators.
    type Options: DeserializeOwned + Serialize + JsonSchema + Default + Clone + Send + Sync;

    /// Makes the pass; fails when options contradict each other.
    fn new(options: OptionSet<Self::Options>) -> Result<Self, OptionError>;

    /// What must hold of a model before the pass runs.
    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let _ = model;
        Ok(())
    }

    /// Whether the options leave every model as it is (a sparsity of 0, say). What else would
    /// have to run first is not run then.
    fn is_neutral(&self) -> bool {
        false
    }

    /// Edits the model.
    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError>;
}

/// Why a pass stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The model or the data is not what the pass needs.
    #[error("{found}; {remedy}")]
    Precondition {
        /// What was found.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// An edit was refused: the pass asked for something that can't be.
    #[error("an edit was refused: {0}")]
    Graph(#[from] GraphError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The options contradict each other.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// Something that can't be, is.
    #[error("internal error: {0}")]
    Bug(String),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl From<crate::tensor::TensorError> for PassError {
    fn from(e: crate::tensor::TensorError) -> PassError {
        PassError::Bug(e.to_string())
    }
}

/// Whether a remark is about something done or something left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemarkKind {
    /// A rewrite was made.
    Applied,
    /// A rewrite was looked at and not made.
    Missed,
}

/// What a pass says about one operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remark {
    /// Done or left.
    pub kind: RemarkKind,
    /// The operator's name, or that of its first output.
    pub op: String,
    /// The operator's type.
    pub op_type: String,
    /// A stable code in kebab case, for programs.
    pub code: String,
    /// A sentence, for people.
    pub message: String,
}

/// The remarks of one pass. All are counted by code; of each code the first ones are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Remarks {
    /// The kept remarks, in the order in which they were made.
    pub kept: Vec<Remark>,
    /// How often something was done, by code.
    pub applied: BTreeMap<String, usize>,
    /// How often something was left, by code.
    pub missed: BTreeMap<String, usize>,
}

impl Remarks {
    /// Of one code and kind as many are kept.
    pub const KEPT_PER_CODE: usize = 1000;

    /// Adds a remark.
    pub fn push(&mut self, remark: Remark) {
        let counts = match remark.kind {
            RemarkKind::Applied => &mut self.applied,
            RemarkKind::Missed => &mut self.missed,
        };
        let count = counts.entry(remark.code.clone()).or_insert(0);
        *count += 1;
        if *count <= Remarks::KEPT_PER_CODE {
            self.kept.push(remark);
        }
    }

    /// How often anything was done.
    pub fn applied_count(&self) -> usize {
        self.applied.values().sum()
    }
}

/// Shows long work to the user.
pub trait Progress: Sync {
    /// Work of `total` steps begins.
    fn start(&self, what: &str, total: u64);
    /// Some steps are done.
    fn advance(&self, steps: u64);
    /// The work is done.
    fn finish(&self);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}

/// What a pass can ask for while it runs.
pub struct PassContext<'a> {
    /// Runs models and parts of them; `None` when the caller brought no engine.
    pub engine: Option<&'a dyn Engine>,
    /// Calibration data; `None` when the user gave none.
    pub data: Option<&'a dyn DataSource>,
    /// Results of analyses.
    pub analyses: &'a mut AnalysisCache,
    /// The seed of everything random.
    pub seed: u64,
    /// Threads that the pass may use. Results must not depend on it.
    pub threads: usize,
    /// What the pass says about operators.
    pub remarks: Remarks,
    /// What the pass says about the model as a whole.
    pub notes: Vec<String>,
    /// What to change about the options so that the pass decides again as it did, on any machine
    /// (null takes an option away): set by a pass whose decisions hang on measured latency.
    pub resolved: Option<serde_json::Map<String, serde_json::Value>>,
    cancel: &'a AtomicBool,
    progress: &'a dyn Progress,
}

impl fmt::Debug for PassContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassContext")
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl<'a> PassContext<'a> {
    /// A context without engine, data or progress: what clean-up passes need at the least.
    pub fn new(analyses: &'a mut AnalysisCache) -> PassContext<'a> {
        PassContext {
            engine: None,
            data: None,
            analyses,
            seed: 0,
            threads: 1,
            remarks: Remarks::default(),
            notes: Vec::new(),
            resolved: None,
            cancel: &NEVER,
            progress: &NoProgress,
        }
    }

    /// The same context with a flag that asks passes to stop.
    pub fn with_cancel(mut self, cancel: &'a AtomicBool) -> PassContext<'a> {
        self.cancel = cancel;
        self
    }

    /// The same context with a display of long work.
    pub fn with_progress(mut self, progress: &'a dyn Progress) -> PassContext<'a> {
        self.progress = progress;
        self
    }

    /// Runs a part of a pass on other calibration data, such as a share of it. What is said there is
    /// said here.
    pub fn with_data<T>(
        &mut self,
        data: &dyn DataSource,
        run: impl FnOnce(&mut PassContext<'_>) -> T,
    ) -> T {
        let mut inner = PassContext {
            engine: self.engine,
            data: Some(data),
            analyses: &mut *self.analyses,
            seed: self.seed,
            threads: self.threads,
            remarks: std::mem::take(&mut self.remarks),
            notes: std::mem::take(&mut self.notes),
            resolved: self.resolved.take(),
            cancel: self.cancel,
            progress: self.progress,
        };
        let out = run(&mut inner);
        let PassContext {
            remarks,
            notes,
            resolved,
            ..
        } = inner;
        (self.remarks, self.notes, self.resolved) = (remarks, notes, resolved);
        out
    }

    /// The analysis of the model in its present state.
    pub fn analysis<A: Analysis>(&mut self, model: &Model) -> Arc<A> {
        self.analyses.get(model)
    }

    /// Fails when the user asked to stop. Call it in every long loop.
    pub fn check_cancelled(&self) -> Result<(), PassError> {
        if self.cancel.load(Ordering::Relaxed) {
            Err(PassError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// The display of long work.
    pub fn progress(&self) -> &'a dyn Progress {
        self.progress
    }

    /// Says that a rewrite of an operator was made. Call it while the operator is still there.
    pub fn applied(&mut self, graph: &Graph, op: OpId, code: &str, message: impl Into<String>) {
        self.remark(RemarkKind::Applied, graph, op, code, message.into());
    }

    /// Says that a rewrite of an operator was looked at and not made, and why.
    pub fn missed(&mut self, graph: &Graph, op: OpId, code: &str, message: impl Into<String>) {
        self.remark(RemarkKind::Missed, graph, op, code, message.into());
    }

    /// Says something about the model as a whole that the user should know.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn remark(&mut self, kind: RemarkKind, graph: &Graph, op: OpId, code: &str, message: String) {
        self.remarks.push(Remark {
            kind,
            op: graph.op_label(op).to_string(),
            op_type: graph
                .get_op(op)
                .map_or_else(String::new, |o| o.op_type().to_string()),
            code: code.to_owned(),
            message,
        });
    }
}

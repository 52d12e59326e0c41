//! Runs pipelines of passes: around each pass `requires`, run, verify, measure, report.
//!
//! A run of consecutive exact passes is validated once, at its end, and bisected when it
//! changed outputs beyond the noise floor: such a pass has a bug, and nothing is written.
//! Before a lossy pass the model is cloned (which shares the tensors); a pass that breaks its
//! limits is undone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Map, Value as Json};

use crate::analysis::{AnalysisCache, CostOptions, Costs, Shapes, shapes};
use crate::engine::{DataSource, Engine, EngineError};
use crate::model::Model;
use crate::pass::{
    Changed, Effect, NoProgress, PassContext, PassError, PassInfo, Progress, Remarks,
};
use crate::registry::{ReadyPass, Registry};
use crate::report::{Accept, Breach, Counts, Difference, PassReport};
use crate::select::OptionError;
use crate::verify;

/// One pass of a pipeline, with the limits that it must keep.
pub struct Step {
    /// The pass.
    pub pass: Box<dyn ReadyPass>,
    /// Its limits.
    pub accept: Accept,
}

/// A part of a pipeline.
pub enum Item {
    /// A pass.
    Pass(Step),
    /// Passes that run again and again until none changes anything, at most `max` times.
    Repeat {
        /// The most rounds.
        max: usize,
        /// The passes.
        steps: Vec<Step>,
    },
}

/// Passes in order, with limits on the whole.
#[derive(Default)]
pub struct Pipeline {
    /// The parts.
    pub items: Vec<Item>,
    /// The limits on the whole.
    pub accept: Accept,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.steps().map(|s| s.pass.info().name))
            .finish()
    }
}

impl Pipeline {
    /// No passes and no limits.
    pub fn new() -> Pipeline {
        Pipeline::default()
    }

    /// One more pass of the registry, with options.
    pub fn push(
        &mut self,
        registry: &Registry,
        name: &str,
        options: &Map<String, Json>,
    ) -> Result<(), OptionError> {
        let pass = registry.find(name)?.make(options)?;
        self.items.push(Item::Pass(Step {
            pass,
            accept: Accept::default(),
        }));
        Ok(())
    }

    /// All passes, those that repeat once.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.items.iter().flat_map(|i| match i {
            Item::Pass(s) => std::slice::from_ref(s),
            Item::Repeat { steps, .. } => steps,
        })
    }

    /// Whether a pass may change outputs.
    pub fn is_lossy(&self) -> bool {
        self.steps().any(|s| s.pass.info().effect == Effect::Lossy)
    }

    /// Whether a limit is on accuracy, on the whole or on a pass.
    pub fn wants_labels(&self) -> bool {
        let limits = self.steps().map(|s| &s.accept);
        let mut limits = limits.chain([&self.accept]);
        limits.any(|a| a.max_accuracy_drop.is_some())
    }

    /// Whether an exact pass runs, be it that another wants it to run first.
    pub fn has_exact(&self) -> bool {
        let is_exact = |info: PassInfo| info.effect == Effect::Exact || !info.runs_first.is_empty();
        self.steps().any(|s| is_exact(s.pass.info()))
    }

    /// Whether there are limits, on the whole or on a pass.
    pub fn has_limits(&self) -> bool {
        !self.accept.is_empty() || self.steps().any(|s| !s.accept.is_empty())
    }
}

/// How far a model is from a reference, and how far an exact rewrite may be.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The difference.
    pub difference: Difference,
    /// The largest `max_rel` that is still noise.
    pub noise: f64,
}

impl Verdict {
    /// Whether the difference is more than noise.
    pub fn beyond_noise(&self) -> bool {
        // A NaN is beyond, too.
        self.difference.max_rel.is_nan() || self.difference.max_rel > self.noise
    }
}

/// Compares models by running them.
pub trait Judge {
    /// Compares the outputs of a model with those of the reference that it was made from by
    /// exact passes: on few samples, and at two sizes where the inputs have open dimensions.
    fn compare_exact(&mut self, reference: &Model, model: &Model) -> Result<Verdict, EngineError>;

    /// Scores a model against the original on all samples for evaluation.
    fn score(&mut self, original: &Model, model: &Model) -> Result<Difference, EngineError>;

    /// The latency of a model over that of a reference.
    fn latency_ratio(&mut self, reference: &Model, model: &Model) -> Result<f64, EngineError>;

    /// The size of the files that a model is written to, in bytes.
    fn file_bytes(&mut self, model: &Model) -> Result<u64, EngineError>;
}

/// Sees the model after each pass.
pub trait Observer {
    /// A pass has run.
    fn after(&mut self, report: &PassReport, model: &Model);
}

/// Why a run stopped. The caller must not write the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A pass can't do its work on this model or data.
    #[error("{pass}: {source}")]
    Pass {
        /// The pass.
        pass: String,
        /// Why.
        source: Box<PassError>,
    },
    /// The pass has a bug.
    #[error("{}", bug_text(pass, reason))]
    Bug {
        /// The pass.
        pass: String,
        /// What it did.
        reason: String,
        /// The passes that ran, the last one being the culprit, with their options: what reproduces it.
        steps: Vec<(String, Map<String, Json>)>,
    },
    /// Limits are broken.
    #[error("limits are not met: {}", join(breaches))]
    Limits {
        /// The broken limits.
        breaches: Vec<Breach>,
        /// What the passes did.
        reports: Vec<PassReport>,
    },
    /// A limit or a lossy pass wants numbers that can't be had.
    #[error("{0}")]
    Unmeasured(String),
    /// The user asked to stop.
    #[error("cancelled")]
    Cancelled,
}

fn bug_text(pass: &str, reason: &str) -> String {
    format!("the pass {pass} has a bug: {reason}; nothing is written")
}

fn failed(pass: &str, error: impl Into<PassError>) -> RunError {
    RunError::Pass {
        pass: pass.to_owned(),
        source: Box::new(error.into()),
    }
}

fn join(breaches: &[Breach]) -> String {
    breaches
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// What a pipeline did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One report per run of a pass.
    pub passes: Vec<PassReport>,
    /// Whether the model was edited.
    pub changed: bool,
    /// The run ended early because of [`Manager::stop_after`].
    pub stopped: bool,
}

/// Runs pipelines.
pub struct Manager<'a> {
    /// Where prerequisites are found.
    pub registry: &'a Registry,
    /// The engine that passes may use.
    pub engine: Option<&'a dyn Engine>,
    /// The calibration data.
    pub data: Option<&'a dyn DataSource>,
    /// Compares models; without it nothing is validated.
    pub judge: Option<&'a mut dyn Judge>,
    /// Sees the model after each pass.
    pub observer: Option<&'a mut dyn Observer>,
    /// Check every invariant after each pass that changed something.
    pub verify: bool,
    /// The seed of everything random.
    pub seed: u64,
    /// Threads that passes may use.
    pub threads: usize,
    /// What the sizes in reports count: with which shapes of the inputs, where these are open.
    pub costs: CostOptions,
    /// Stop after the first run of this pass.
    pub stop_after: Option<String>,
    cancel: &'a AtomicBool,
    progress: &'a dyn Progress,
    cache: AnalysisCache,
}

static NEVER: AtomicBool = AtomicBool::new(false);

impl<'a> Manager<'a> {
    /// A manager that verifies, and neither validates nor has an engine.
    pub fn new(registry: &'a Registry) -> Manager<'a> {
        Manager {
            registry,
            engine: None,
            data: None,
            judge: None,
            observer: None,
            verify: true,
            seed: 0,
            threads: 1,
            costs: CostOptions::default(),
            stop_after: None,
            cancel: &NEVER,
            progress: &NoProgress,
            cache: AnalysisCache::new(),
        }
    }

    /// The same manager with a flag that stops it between and inside passes.
    pub fn with_cancel(mut self, cancel: &'a AtomicBool) -> Manager<'a> {
        self.cancel = cancel;
        self
    }

    /// The same manager with a display of long work.
    pub fn with_progress(mut self, progress: &'a dyn Progress) -> Manager<'a> {
        self.progress = progress;
        self
    }

    /// Runs a pipeline. On an error the model is in the state in which the error found it.
    pub fn run(&mut self, model: &mut Model, pipeline: &Pipeline) -> Result<Outcome, RunError> {
        if self.judge.is_none() && pipeline.has_limits() {
            return Err(RunError::Unmeasured(
                "there are limits (accept), and nothing measures what they limit".to_owned(),
            ));
        }
        let original = self.judge.is_some().then(|| model.clone());
        let start = model.revision();
        let mut run = Run {
            anchor: original.clone(),
            original,
            pending: Vec::new(),
            done: Vec::new(),
            ran: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        for item in &pipeline.items {
            match item {
                Item::Pass(step) => self.step(model, step, None, &mut run)?,
                Item::Repeat { max, steps } => self.repeat(model, *max, steps, &mut run)?,
            }
            if run.outcome.stopped {
                break;
            }
        }
        self.flush(model, &mut run)?;
        self.check_whole(model, pipeline, &mut run)?;
        run.outcome.changed = model.revision() != start;
        Ok(run.outcome)
    }

    fn repeat<'p>(
        &mut self,
        model: &mut Model,
        max: usize,
        steps: &'p [Step],
        run: &mut Run<'p>,
    ) -> Result<(), RunError> {
        for round in 1..=max {
            let before = model.revision();
            for step in steps {
                self.step(model, step, Some(round), run)?;
                if run.outcome.stopped {
                    return Ok(());
                }
            }
            if model.revision() == before {
                break;
            }
        }
        Ok(())
    }

    fn step<'p>(
        &mut self,
        model: &mut Model,
        step: &'p Step,
        round: Option<usize>,
        run: &mut Run<'p>,
    ) -> Result<(), RunError> {
        let info = step.pass.info();
        let first: &[&str] = match step.pass.is_neutral() {
            true => &[],
            false => info.runs_first,
        };
        for &name in first {
            if run.left(name, &Map::new()) == Some(model.revision()) {
                continue;
            }
            let entry = self.registry.get(name).ok_or_else(|| RunError::Bug {
                pass: info.name.to_owned(),
                reason: format!("it wants \"{name}\" to run first, and there is no such pass"),
                steps: run.steps(),
            })?;
            let needed = entry.make(&Map::new()).map_err(|e| failed(name, e))?;
            let step = Step {
                pass: needed,
                accept: Accept::default(),
            };
            self.one(
                model,
                Planned::Owned(std::rc::Rc::new(step)),
                round,
                Some(info.name),
                run,
            )?;
        }
        self.one(model, Planned::Borrowed(step), round, None, run)
    }

    fn one<'p>(
        &mut self,
        model: &mut Model,
        planned: Planned<'p>,
        round: Option<usize>,
        required_by: Option<&str>,
        run: &mut Run<'p>,
    ) -> Result<(), RunError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(RunError::Cancelled);
        }
        let step = planned.step();
        let info = step.pass.info();
        let lossy = info.effect == Effect::Lossy;
        let stops = self.stop_after.as_deref() == Some(info.name) && required_by.is_none();
        // A pass that found nothing to do in this very model would find nothing again.
        if !lossy && run.is_settled(step, model.revision()) {
            run.outcome.stopped = stops;
            return Ok(());
        }
        if lossy {
            self.flush(model, run)?;
        }
        let snapshot = (lossy && self.judge.is_some()).then(|| model.clone());
        step.pass
            .requires(model)
            .map_err(|e| failed(info.name, e))?;
        let mut report = self.report(model, step, round, required_by);
        let started = Instant::now();
        let changed = self.execute(model, step, &mut report, run)?;
        report.seconds = started.elapsed().as_secs_f64();
        report.changed = changed.is_yes();
        run.done
            .push((info.name.to_owned(), step.pass.given().clone()));
        if changed.is_yes() {
            self.settle(model, info.name, run)?;
        }
        report.after = if changed.is_yes() {
            self.counts(model)
        } else {
            report.before
        };
        run.ran.insert(
            (info.name, options_key(step.pass.given())),
            (model.revision(), changed.is_yes()),
        );
        if lossy && changed.is_yes() {
            self.judge_lossy(model, step, snapshot, &mut report, run)?;
        } else if changed.is_yes() {
            run.pending.push((planned.clone(), run.done.len()));
        }
        if let Some(observer) = &mut self.observer {
            observer.after(&report, model);
        }
        run.outcome.stopped = stops;
        run.outcome.passes.push(report);
        Ok(())
    }

    fn report(
        &mut self,
        model: &Model,
        step: &Step,
        round: Option<usize>,
        required_by: Option<&str>,
    ) -> PassReport {
        let before = self.counts(model);
        let unmatched = step.pass.unmatched(model);
        PassReport {
            name: step.pass.info().name.to_owned(),
            effect: step.pass.info().effect,
            options: step.pass.given().clone(),
            changed: false,
            seconds: 0.0,
            remarks: Remarks::default(),
            before,
            after: before,
            required_by: required_by.map(str::to_owned),
            round,
            difference: None,
            undone: Vec::new(),
            notes: unmatched
                .iter()
                .map(|g| format!("by-name \"{g}\" matches no operator"))
                .collect(),
            resolved: None,
        }
    }

    /// Runs a pass, catching panics, and checks that what it says about changes is true.
    fn execute(
        &mut self,
        model: &mut Model,
        step: &Step,
        report: &mut PassReport,
        run: &Run<'_>,
    ) -> Result<Changed, RunError> {
        let name = step.pass.info().name;
        let before = model.revision();
        model.set_author(Some(name.into()));
        let mut cx = PassContext::new(&mut self.cache)
            .with_cancel(self.cancel)
            .with_progress(self.progress);
        cx.engine = self.engine;
        cx.data = self.data;
        cx.seed = self.seed;
        cx.threads = self.threads;
        let result = catch_unwind(AssertUnwindSafe(|| step.pass.run(model, &mut cx)));
        report.remarks = std::mem::take(&mut cx.remarks);
        report.notes.append(&mut cx.notes);
        report.resolved = cx.resolved.take();
        model.set_author(None);
        let bug = |reason: String| {
            let mut steps = run.steps();
            steps.push((name.to_owned(), step.pass.given().clone()));
            RunError::Bug {
                pass: name.to_owned(),
                reason,
                steps,
            }
        };
        match result {
            Ok(Ok(changed)) => {
                if changed == Changed::No && model.revision() != before {
                    return Err(bug("it edited the model and says that it didn't".to_owned()));
                }
                Ok(Changed::when(
                    changed.is_yes() && model.revision() != before,
                ))
            }
            Ok(Err(PassError::Cancelled | PassError::Engine(EngineError::Cancelled))) => {
                Err(RunError::Cancelled)
            }
            Ok(Err(PassError::Bug(reason))) => Err(bug(reason)),
            Ok(Err(PassError::Graph(e))) => Err(bug(format!("an edit was refused: {e}"))),
            Ok(Err(e)) => Err(failed(name, e)),
            Err(payload) => Err(bug(format!("it panicked: {}", panic_text(&*payload)))),
        }
    }

    /// After a change: weights that nothing takes any more, names over nested graphs, declared types, and the verifier.
    fn settle(&mut self, model: &mut Model, name: &str, run: &Run<'_>) -> Result<(), RunError> {
        let bug = |reason: String| RunError::Bug {
            pass: name.to_owned(),
            reason,
            steps: run.steps(),
        };
        model
            .drop_unused_constants()
            .and_then(|()| model.separate_nested_names())
            .map_err(|e| bug(e.to_string()))?;
        let inferred = self.cache.get::<Shapes>(model);
        shapes::refresh_declared(model, &inferred).map_err(|e| bug(e.to_string()))?;
        if self.verify
            && let Err(found) = verify::verify(model)
        {
            return Err(bug(format!("it made an invalid model: {found}")));
        }
        Ok(())
    }

    fn counts(&mut self, model: &Model) -> Counts {
        let costs = self.cache.get_with::<Costs>(model, &self.costs);
        let total = costs.total();
        Counts {
            nodes: total.nodes,
            parameters: total.parameters,
            weight_bytes: total.weight_bytes,
            macs: total.macs,
        }
    }

    /// Compares a lossy pass with the original, and undoes it when it breaks its limits.
    fn judge_lossy(
        &mut self,
        model: &mut Model,
        step: &Step,
        snapshot: Option<Model>,
        report: &mut PassReport,
        run: &mut Run<'_>,
    ) -> Result<(), RunError> {
        let name = step.pass.info().name;
        let mut breaches = Vec::new();
        if let (Some(judge), Some(original)) = (&mut self.judge, &run.original) {
            let measured =
                measure(&mut **judge, original, model, &step.accept).map_err(|e| match e {
                    EngineError::Cancelled => RunError::Cancelled,
                    e => failed(name, e),
                })?;
            report.difference = measured.difference;
            breaches = measured.breaches;
        }
        if let (false, Some(snapshot)) = (breaches.is_empty(), snapshot) {
            *model = snapshot;
            report.after = report.before;
            report.changed = false;
            report.undone = breaches;
            run.done.pop();
        }
        run.anchor = self.judge.is_some().then(|| model.clone());
        Ok(())
    }

    /// Validates the exact passes since the last validation.
    fn flush(&mut self, model: &Model, run: &mut Run<'_>) -> Result<(), RunError> {
        let pending = std::mem::take(&mut run.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let (Some(judge), Some(anchor)) = (self.judge.as_deref_mut(), run.anchor.take()) else {
            return Ok(());
        };
        let verdict = judge.compare_exact(&anchor, model);
        if matches!(&verdict, Ok(v) if !v.beyond_noise()) {
            run.anchor = Some(model.clone());
            return Ok(());
        }
        if let Err(EngineError::Cancelled) = verdict {
            return Err(RunError::Cancelled);
        }
        let (culprit, done) = self.bisect(&anchor, &pending);
        if self.cancel.load(Ordering::Relaxed) {
            return Err(RunError::Cancelled);
        }
        let reason = match verdict {
            Ok(v) => format!(
                "it is exact and changed the outputs: {:.3e} relative to their size, where {:.1e} is noise",
                v.difference.max_rel, v.noise
            ),
            Err(e) => format!("the engine ran the model before and not after it: {e}"),
        };
        Err(RunError::Bug {
            pass: culprit.to_owned(),
            reason,
            steps: run.done.iter().take(done).cloned().collect(),
        })
    }

    /// The first of the passes after which the outputs differ from the anchor's, and how many
    /// passes of the whole run end with it.
    fn bisect(&mut self, anchor: &Model, passes: &[Pending<'_>]) -> (&'static str, usize) {
        let (mut good, mut bad) = (0, passes.len());
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if self.differs_after(anchor, passes.iter().take(middle)) {
                bad = middle;
            } else {
                good = middle;
            }
        }
        passes
            .get(good)
            .map_or(("", 0), |(p, done)| (p.step().pass.info().name, *done))
    }

    fn differs_after<'s, 'p: 's>(
        &mut self,
        anchor: &Model,
        passes: impl Iterator<Item = &'s Pending<'p>>,
    ) -> bool {
        let mut model = anchor.clone();
        for (p, _) in passes {
            let run = Run::default();
            let mut report = self.report(&model, p.step(), None, None);
            if self
                .execute(&mut model, p.step(), &mut report, &run)
                .is_err()
            {
                return true;
            }
        }
        match &mut self.judge {
            Some(judge) => {
                !matches!(judge.compare_exact(anchor, &model), Ok(v) if !v.beyond_noise())
            }
            None => false,
        }
    }

    /// Checks the limits on the whole pipeline.
    fn check_whole(
        &mut self,
        model: &Model,
        pipeline: &Pipeline,
        run: &mut Run<'_>,
    ) -> Result<(), RunError> {
        if pipeline.accept.is_empty() {
            return Ok(());
        }
        let (Some(judge), Some(original)) = (&mut self.judge, &run.original) else {
            return Ok(());
        };
        let measured =
            measure(&mut **judge, original, model, &pipeline.accept).map_err(|e| match e {
                EngineError::Cancelled => RunError::Cancelled,
                e => RunError::Unmeasured(format!("a limit can't be checked: {e}")),
            })?;
        if measured.breaches.is_empty() {
            return Ok(());
        }
        let reports = std::mem::take(&mut run.outcome.passes);
        Err(RunError::Limits {
            breaches: measured.breaches,
            reports,
        })
    }
}

struct Measured {
    difference: Option<Difference>,
    breaches: Vec<Breach>,
}

/// Measures what the limits are about, and always the difference of outputs.
fn measure(
    judge: &mut dyn Judge,
    original: &Model,
    model: &Model,
    accept: &Accept,
) -> Result<Measured, EngineError> {
    let difference = judge.score(original, model)?;
    let mut breaches = accept.breaches(&difference);
    if let Some(limit) = accept.max_latency_ratio {
        let ratio = judge.latency_ratio(original, model)?;
        breaches.extend(Breach::above("max-latency-ratio", ratio, limit));
    }
    if let Some(limit) = accept.max_size_ratio {
        let before = judge.file_bytes(original)?.max(1);
        let ratio = judge.file_bytes(model)? as f64 / before as f64;
        breaches.extend(Breach::above("max-size-ratio", ratio, limit));
    }
    Ok(Measured {
        difference: Some(difference),
        breaches,
    })
}

/// A step of the pipeline, or a prerequisite that the manager made.
#[derive(Clone)]
enum Planned<'p> {
    Borrowed(&'p Step),
    Owned(std::rc::Rc<Step>),
}

impl Planned<'_> {
    fn step(&self) -> &Step {
        match self {
            Planned::Borrowed(s) => s,
            Planned::Owned(s) => s,
        }
    }
}

/// An exact pass that was not validated yet, and how many passes had run with it.
type Pending<'p> = (Planned<'p>, usize);

/// A text that two sets of options share only when they are equal.
fn options_key(options: &Map<String, Json>) -> String {
    serde_json::to_string(options).unwrap_or_default()
}

/// The state of one run.
#[derive(Default)]
struct Run<'p> {
    original: Option<Model>,
    /// The model at the start of the present run of exact passes.
    anchor: Option<Model>,
    /// The exact passes since then that changed something.
    pending: Vec<Pending<'p>>,
    /// All passes that ran and were not undone, with their options.
    done: Vec<(String, Map<String, Json>)>,
    /// The revision that each pass left with its options, and whether it had edited the model.
    ran: BTreeMap<(&'static str, String), (u64, bool)>,
    outcome: Outcome,
}

impl Run<'_> {
    fn steps(&self) -> Vec<(String, Map<String, Json>)> {
        self.done.clone()
    }

    /// The revision that a pass with these options left.
    fn left(&self, name: &'static str, options: &Map<String, Json>) -> Option<u64> {
        let (revision, _) = self.ran.get(&(name, options_key(options)))?;
        Some(*revision)
    }

    /// Whether a pass with these options found nothing to do in this revision.
    fn is_settled(&self, step: &Step, revision: u64) -> bool {
        let key = (step.pass.info().name, options_key(step.pass.given()));
        self.ran.get(&key) == Some(&(revision, false))
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;

//! The main job as a library: a recipe over a model, verified, validated and timed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use paring_ir::analysis::shapes::ShapeOptions as ShapeInference;
use paring_ir::analysis::{CostOptions, ModelCost, Shapes};
use paring_ir::engine::{DataSource, Engine, EngineError};
use paring_ir::manager::{Manager, Observer, Pipeline, RunError};
use paring_ir::pass::{NoProgress, Progress};
use paring_ir::recipe::Bound;
use paring_ir::report::PassReport;
use paring_ir::verify::Violation;
use paring_ir::{Dim, Graph, GraphError, Model, OptionError, Registry, ValueType};
use serde::Serialize;
use serde_json::Value as Json;

use crate::data::{DataError, DataSet, RandomInputs, RunShapes, ShapeOptions};
use crate::engine::TractEngine;
use crate::inspect::{Inspection, cost_options, inspect};
use crate::onnx;
use crate::pipeline::{Recipe, RecipeError};
use crate::validate::{
    CompareOptions, EngineJudge, FormReport, Latency, LayerErrors, TimeOptions, Validation,
};

/// How a note begins that says why exact passes are not validated at a second size, though the
/// model leaves sizes open.
const ONE_SIZE: &str = "exact passes are validated at one size alone";

/// So many operators that contradict themselves are named in the notes.
const NAMED_CONTRADICTIONS: usize = 3;

/// Runs of random inputs that models are compared on when there is no data.
const RANDOM_RUNS: usize = 4;

/// How to optimize.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Calibration data for passes that want some, and for scoring when there is no `eval`.
    pub data: Option<PathBuf>,
    /// Evaluation data: scores the result and feeds the limits.
    pub eval: Option<PathBuf>,
    /// The sizes to run with where the model leaves them open.
    pub shapes: ShapeOptions,
    /// Write those sizes into the model, too.
    pub fix_dims: bool,
    /// The output whose largest element is the predicted class; the first when absent.
    pub label_output: Option<String>,
    /// Run the models and compare their outputs.
    pub validate: bool,
    /// Time the models.
    pub time: bool,
    /// Measure the error of every layer, for a report; takes as long as a few validations.
    pub layers: bool,
    /// Let lossy passes run although nothing can be validated.
    pub allow_unvalidated: bool,
    /// The seed of random inputs and of passes.
    pub seed: u64,
    /// Threads for passes and for the engine.
    pub threads: usize,
    /// Stop after the first run of this pass.
    pub stop_after: Option<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            data: None,
            eval: None,
            shapes: ShapeOptions::default(),
            fix_dims: false,
            label_output: None,
            validate: true,
            time: true,
            layers: false,
            allow_unvalidated: false,
            seed: 0,
            threads: 1,
            stop_after: None,
        }
    }
}

/// Why nothing came of it. The model must not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizeError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A pass's name or options are wrong.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// A pass failed, or a limit is not met.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The data can't be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The engine failed where it must not.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Lossy passes, and nothing to judge them by.
    #[error("{reason}; lossy passes then need --allow-unvalidated")]
    Unvalidated {
        /// Why nothing can be validated.
        reason: String,
    },
    /// The model is invalid before any pass has run.
    #[error("the model is invalid: {0}")]
    Invalid(String),
    /// An edit was refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The files that were written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Written {
    /// Bytes of the model and its side file.
    pub bytes: u64,
    /// The file with the weights, where they are outside the model.
    pub side_file: Option<PathBuf>,
    /// Files with weights of the old model, which are still there.
    pub left_behind: Vec<PathBuf>,
}

/// What was done, in numbers. The JSON form is stable; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this program.
    pub paring: &'static str,
    /// The file that was read.
    pub input: Option<String>,
    /// The file that was written.
    pub output: Option<String>,
    /// Whether the model was edited.
    pub changed: bool,
    /// The model before.
    pub before: Inspection,
    /// The model after.
    pub after: Inspection,
    /// One entry per run of a pass.
    pub passes: Vec<PassReport>,
    /// The engine.
    pub engine: String,
    /// How the outputs compare; absent when they were not compared.
    pub validation: Option<Validation>,
    /// Why the outputs were not compared.
    pub unvalidated: Option<String>,
    /// How the latencies compare; absent when the models were not timed.
    pub latency: Option<Latency>,
    /// A quantized model in its forms, side by side: as it was (`f32`), as it is written (`qdq`)
    /// and as the engine runs it fast (`lowered`). Empty for other models.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormReport>,
    /// The error of every layer; absent when nobody asked for it or nothing changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<LayerErrors>,
    /// The recipe, as it would stand in a file.
    pub recipe: Json,
    /// The seed.
    pub seed: u64,
    /// The threads.
    pub threads: usize,
    /// The files that were written.
    pub written: Option<Written>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Rewrites models by a recipe.
///
/// ```no_run
/// let registry = paring::registry();
/// let mut model = paring::read("in.onnx")?;
/// let report = paring::Optimizer::new(&registry)
///     .named("clean")?
///     .pass("prune-weights", serde_json::json!({ "sparsity": 0.5 }))
///     .run(&mut model)?;
/// println!("{} -> {} nodes", report.before.cost.nodes, report.after.cost.nodes);
/// paring::write(&model, "out.onnx")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Optimizer<'a> {
    registry: &'a Registry,
    recipe: Recipe,
    cancel: Option<&'a AtomicBool>,
    /// How to optimize.
    pub settings: Settings,
}

/// What no engine can run: operators whose inputs and attributes can't go together. Told only
/// where no engine has said so.
fn contradictions(model: &Model) -> Vec<String> {
    let shapes = Shapes::infer(model, &ShapeInference::default());
    let conflicts = shapes.conflicts();
    let mut notes: Vec<String> = conflicts
        .iter()
        .take(NAMED_CONTRADICTIONS)
        .map(|c| {
            format!(
                "the model contradicts itself: {}",
                Violation::from(c).text()
            )
        })
        .collect();
    if conflicts.len() > NAMED_CONTRADICTIONS {
        let more = conflicts.len() - NAMED_CONTRADICTIONS;
        notes.push(format!(
            "and {more} more contradictions: see `paring check`"
        ));
    }
    notes
}

impl<'a> Optimizer<'a> {
    /// An optimizer without passes.
    pub fn new(registry: &'a Registry) -> Optimizer<'a> {
        Optimizer {
            registry,
            recipe: Recipe::empty(),
            cancel: None,
            settings: Settings::default(),
        }
    }

    /// With this recipe instead of what there was.
    #[must_use]
    pub fn recipe(mut self, recipe: Recipe) -> Optimizer<'a> {
        self.recipe = recipe;
        self
    }

    /// With the ready-made recipe of this name, or the one in this file.
    pub fn named(self, name: &str) -> Result<Optimizer<'a>, RecipeError> {
        let recipe = Recipe::find(name, self.registry)?;
        Ok(self.recipe(recipe))
    }

    /// One more pass, with a map of options, or with null for none.
    #[must_use]
    pub fn pass(mut self, name: &str, options: Json) -> Optimizer<'a> {
        self.recipe.push(name, options);
        self
    }

    /// With other settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Optimizer<'a> {
        self.settings = settings;
        self
    }

    /// With a flag that stops the work.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a AtomicBool) -> Optimizer<'a> {
        self.cancel = Some(cancel);
        self
    }

    /// Rewrites the model. After an error its state is not defined.
    pub fn run(&self, model: &mut Model) -> Result<Report, OptimizeError> {
        self.run_with(model, &NoProgress, None)
    }

    /// Rewrites the model, showing long work, and the model after each pass.
    pub fn run_with(
        &self,
        model: &mut Model,
        progress: &dyn Progress,
        observer: Option<&mut dyn Observer>,
    ) -> Result<Report, OptimizeError> {
        let s = &self.settings;
        let Bound { pipeline, json } = self.recipe.bind(self.registry)?;
        self.check_stop(&pipeline)?;
        paring_ir::verify::verify(model).map_err(|e| OptimizeError::Invalid(e.to_string()))?;
        let engine = TractEngine::new();
        let mut notes = Vec::new();
        if let Some(warning) = crate::provenance::restore(model)? {
            notes.push(warning);
        }
        let mut shapes = None;
        if s.fix_dims {
            let resolved = RunShapes::settle(&engine, model, &s.shapes)?;
            fix_dims(model, &s.shapes, &resolved)?;
            shapes = Some(resolved);
        }
        let original = (s.validate || s.time).then(|| model.clone());
        let data = s
            .data
            .as_ref()
            .map(|p| DataSet::open(p, model))
            .transpose()?;
        let eval = s
            .eval
            .as_ref()
            .map(|p| DataSet::open(p, model))
            .transpose()?;
        let sources = self.sources(model, shapes, &data, &eval, &pipeline, &mut notes)?;
        let (mut judge, unvalidated) = self.judge(&engine, model, &sources, &pipeline, progress)?;
        if judge.is_none() {
            notes.extend(contradictions(model));
        }
        if pipeline.has_limits() && (judge.is_none() || !s.validate) {
            let reason = unvalidated.as_deref().unwrap_or("nothing is measured");
            return Err(RunError::Unmeasured(format!(
                "the limits (accept) can't be checked, as the models are not compared: {reason}"
            ))
            .into());
        }
        if pipeline.wants_labels() && !sources.user.is_some_and(DataSet::has_labels) {
            return Err(DataError::NoLabels {
                limit: "max-accuracy-drop",
            }
            .into());
        }
        let costs = CostOptions {
            zeros: pipeline.is_lossy(),
            ..cost_options(model, &s.shapes)
        };
        let before = inspect(model, None, &costs);
        let mut manager = self.manager(&engine, progress);
        manager.costs.shapes = costs.shapes.clone();
        manager.data = data.as_ref().map(|d| d as &dyn DataSource);
        manager.judge = match &mut judge {
            Some(j) if s.validate => Some(j),
            _ => None,
        };
        // Taken apart so that the reference can be borrowed for as long as the manager lives.
        if let Some(observer) = observer {
            manager.observer = Some(observer);
        }
        let outcome = manager.run(model, &pipeline)?;
        let mut report = Report {
            paring: env!("CARGO_PKG_VERSION"),
            input: None,
            output: None,
            changed: outcome.changed,
            after: inspect(model, None, &costs),
            before,
            engine: engine.name(),
            validation: None,
            unvalidated,
            latency: None,
            forms: Vec::new(),
            layers: None,
            recipe: resolved(json, &outcome.passes),
            passes: outcome.passes,
            seed: s.seed,
            threads: s.threads,
            written: None,
            notes,
        };
        if let (Some(judge), Some(original)) = (&mut judge, &original) {
            self.conclude(judge, original, model, &mut report)?;
            let on_calibration = data.is_some() && eval.is_none();
            if on_calibration && report.validation.is_some() {
                report.notes.push(
                    "measured on calibration data; --eval scores on other samples".to_owned(),
                );
            }
        }
        Ok(report)
    }

    fn check_stop(&self, pipeline: &Pipeline) -> Result<(), OptimizeError> {
        let Some(stop) = &self.settings.stop_after else {
            return Ok(());
        };
        self.registry
            .find(stop)
            .map_err(|e| e.within("--stop-after"))?;
        if pipeline.steps().any(|s| s.pass.info().name == stop) {
            return Ok(());
        }
        Err(OptionError::Invalid {
            path: "--stop-after".to_owned(),
            reason: format!("\"{stop}\" is not among the passes of the recipe"),
        }
        .into())
    }

    fn manager<'m>(&'m self, engine: &'m TractEngine, progress: &'m dyn Progress) -> Manager<'m> {
        let mut manager = Manager::new(self.registry).with_progress(progress);
        if let Some(cancel) = self.cancel {
            manager = manager.with_cancel(cancel);
        }
        manager.engine = Some(engine);
        manager.seed = self.settings.seed;
        manager.threads = self.settings.threads;
        manager.stop_after.clone_from(&self.settings.stop_after);
        manager
    }

    /// What the models run on: the user's samples, or random ones; and, to validate exact
    /// passes, random ones of a second size where sizes are open.
    fn sources<'d>(
        &self,
        model: &Model,
        shapes: Option<RunShapes>,
        data: &'d Option<DataSet>,
        eval: &'d Option<DataSet>,
        pipeline: &Pipeline,
        notes: &mut Vec<String>,
    ) -> Result<Sources<'d>, OptimizeError> {
        let s = &self.settings;
        let mut out = Sources {
            user: eval.as_ref().or(data.as_ref()),
            random: Vec::new(),
        };
        if !s.validate && !s.time {
            return Ok(out);
        }
        if let Some(user) = out.user {
            notes.extend(user.notes().iter().cloned());
        }
        let resolved = match shapes {
            Some(shapes) => shapes,
            None => match RunShapes::settle(&TractEngine::new(), model, &s.shapes) {
                Ok(shapes) => shapes,
                // With the user's samples random ones are not needed.
                Err(e @ DataError::Shape { .. }) if out.user.is_some() && s.shapes.is_empty() => {
                    notes.push(format!("{ONE_SIZE}, that of the samples: {e}"));
                    return Ok(out);
                }
                Err(e) => return Err(e.into()),
            },
        };
        let mut sizes = resolved.two_sizes();
        if !s.validate || !pipeline.has_exact() {
            sizes.truncate(1);
        } else if sizes.len() < 2 && has_open_inputs(model) {
            notes.push(format!("{ONE_SIZE}, as no other is left open"));
        }
        if out.user.is_none() {
            notes.extend(resolved.notes.iter().cloned());
        }
        for (i, shapes) in sizes.iter().enumerate() {
            if i == 0 && out.user.is_some() {
                continue;
            }
            let random = RandomInputs::new(model, shapes, RANDOM_RUNS, s.seed)?;
            if i == 0 {
                notes.extend(random.notes().iter().cloned());
            }
            out.random.push(random);
        }
        Ok(out)
    }

    /// The judge, or why there is none.
    fn judge<'e>(
        &'e self,
        engine: &'e TractEngine,
        model: &Model,
        sources: &'e Sources<'e>,
        pipeline: &Pipeline,
        progress: &'e dyn Progress,
    ) -> Result<(Option<EngineJudge<'e>>, Option<String>), OptimizeError> {
        let s = &self.settings;
        if !s.validate && !s.time {
            return Ok((None, Some("not asked for (--no-validate)".to_owned())));
        }
        let options = CompareOptions {
            threads: s.threads,
            label_output: s.label_output.as_deref(),
            cancel: self.cancel,
            progress,
            ..CompareOptions::default()
        };
        let times = TimeOptions {
            threads: s.threads,
            ..TimeOptions::default()
        };
        let file_bytes =
            |m: &Model| onnx::encoded_len(m).map_err(|e| EngineError::Data(e.to_string()));
        let all = sources.all();
        let Some(&first) = all.first() else {
            return Ok((None, Some("there are no samples".to_owned())));
        };
        let made = EngineJudge::new(
            engine,
            model,
            first,
            &all,
            options,
            times,
            Box::new(file_bytes),
        );
        match made {
            Ok(judge) if s.validate => Ok((Some(judge.with_lowering(self.registry)), None)),
            Ok(judge) => Ok((
                Some(judge.with_lowering(self.registry)),
                Some("not asked for (--no-validate)".to_owned()),
            )),
            Err(EngineError::Cancelled) => Err(RunError::Cancelled.into()),
            // Data that doesn't fit is the user's mistake; an engine that can't is a fact.
            Err(e @ (EngineError::Data(_) | EngineError::Input { .. })) => Err(e.into()),
            Err(e) => {
                let reason = format!("the engine can't run the original: {e}");
                if s.validate && !s.allow_unvalidated && pipeline.is_lossy() {
                    return Err(OptimizeError::Unvalidated { reason });
                }
                Ok((None, Some(reason)))
            }
        }
    }

    /// The final comparison and timing.
    fn conclude(
        &self,
        judge: &mut EngineJudge<'_>,
        original: &Model,
        model: &Model,
        report: &mut Report,
    ) -> Result<(), OptimizeError> {
        if self.settings.validate {
            report.validation = Some(judge.validation(original, model)?);
            // The first source is the one that is scored on, so what is left out is another size.
            let left_out = judge.notes().iter();
            let notes = left_out.map(|note| format!("{ONE_SIZE}: {note}"));
            report.notes.extend(notes);
        }
        if self.settings.layers && report.changed {
            match judge.layers(original, model) {
                Ok(layers) => report.layers = Some(layers),
                Err(EngineError::Cancelled) => return Err(RunError::Cancelled.into()),
                Err(e) => report
                    .notes
                    .push(format!("the errors of layers could not be measured: {e}")),
            }
        }
        if self.settings.time {
            let (latency, forms) = judge.forms(original, model)?;
            report.notes.extend(zeros_cost(report, &latency));
            report.latency = Some(latency);
            report.forms = forms;
        }
        Ok(())
    }
}

/// The recipe with what passes decided by measurement, so that it gives the same result again.
fn resolved(mut recipe: Json, reports: &[PassReport]) -> Json {
    let Some(steps) = recipe.get_mut("passes").and_then(Json::as_array_mut) else {
        return recipe;
    };
    let mut at = 0;
    // What another pass wanted first, and what repeats, is no step of this list.
    let own = |r: &&PassReport| r.required_by.is_none() && r.round.is_none();
    for report in reports.iter().filter(own) {
        let named = |s: &Json| match s {
            Json::String(name) => *name == report.name,
            Json::Object(map) => map.contains_key(&report.name),
            _ => false,
        };
        let Some(found) = steps.iter().skip(at).position(named) else {
            continue;
        };
        at += found + 1;
        let (Some(changes), Some(step)) = (&report.resolved, steps.get_mut(at - 1)) else {
            continue;
        };
        let options = step.get(&report.name).and_then(Json::as_object).cloned();
        let mut options = options.unwrap_or_default();
        for (key, value) in changes {
            match value {
                Json::Null => options.remove(key),
                value => options.insert(key.clone(), value.clone()),
            };
        }
        *step = serde_json::json!({ (report.name.clone()): options });
    }
    recipe
}

/// What there is to say of a model that has more zeros but not fewer multiply-accumulates, and
/// takes as long as before.
fn zeros_cost(report: &Report, latency: &Latency) -> Option<String> {
    // Less than one part in twenty could not be told from noise.
    const LEAST: f64 = 0.05;
    let (before, after) = (&report.before.cost, &report.after.cost);
    let macs = after.macs as f64;
    let skipped = |cost: &ModelCost| {
        let effective = cost.effective_macs.unwrap_or(cost.macs);
        cost.macs.saturating_sub(effective) as f64 / (cost.macs as f64).max(1.0)
    };
    let (more, skipped) = (skipped(after) - skipped(before), skipped(after));
    let same = macs >= (1.0 - LEAST) * before.macs as f64;
    (same && more >= LEAST && latency.ratio_high > 1.0 - LEAST).then(|| {
        format!(
            "{} gains no latency from zeros: {:.0} % of the multiply-accumulates are by a weight \
             of zero, and it computes them like the others; remove-channels makes tensors smaller",
            report.engine,
            100.0 * skipped
        )
    })
}

struct Sources<'d> {
    user: Option<&'d DataSet>,
    random: Vec<RandomInputs>,
}

impl Sources<'_> {
    fn all(&self) -> Vec<&dyn DataSource> {
        let user = self.user.map(|d| d as &dyn DataSource);
        user.into_iter()
            .chain(self.random.iter().map(|r| r as &dyn DataSource))
            .collect()
    }
}

/// Whether the model leaves a size of an input open.
fn has_open_inputs(model: &Model) -> bool {
    let graph = &model.graph;
    let mut inputs = graph.inputs().iter().map(|&v| graph.value(v));
    inputs.any(|v| {
        let shape = v.declared_type().and_then(|t| t.shape());
        shape.is_some_and(|s| s.iter().any(|d| !matches!(d, Dim::Value(n) if *n >= 0)))
    })
}

/// Writes the sizes that the user gave into the declared types: whole shapes into those of the
/// inputs, and symbols wherever they stand, so that no output names a symbol that no input has.
/// Sizes that were only guessed for running stay open.
fn fix_dims(
    model: &mut Model,
    options: &ShapeOptions,
    resolved: &RunShapes,
) -> Result<(), OptimizeError> {
    let mut given: BTreeSet<String> = options.dims.keys().cloned().collect();
    let inputs = model.graph.inputs().to_vec();
    for (v, dims) in inputs.into_iter().zip(&resolved.dims) {
        let value = model.graph.value(v);
        if !options.inputs.contains_key(&**value.name()) {
            continue;
        }
        let Some(ValueType::Tensor { dtype, shape }) = value.declared_type().cloned() else {
            continue;
        };
        for d in shape.iter().flatten() {
            if let Dim::Param(name) = d {
                given.insert(name.to_string());
            }
        }
        let shape = Some(dims.iter().map(|&d| fixed(d)).collect());
        let ty = ValueType::Tensor { dtype, shape };
        model.graph.set_type(v, Some(ty))?;
    }
    let sizes = |name: &str| {
        let size = resolved.symbols.get(name)?;
        given.contains(name).then_some(fixed(*size))
    };
    model.edit_graphs(&mut |g: &mut Graph| fix_symbols(g, &sizes))?;
    let mut cache = paring_ir::analysis::AnalysisCache::new();
    let shapes = cache.get::<Shapes>(model);
    paring_ir::analysis::shapes::refresh_declared(model, &shapes)?;
    Ok(())
}

fn fixed(size: usize) -> Dim {
    Dim::Value(i64::try_from(size).unwrap_or(i64::MAX))
}

/// Puts sizes in the place of symbols in the declared types of tensors.
fn fix_symbols(g: &mut Graph, sizes: &dyn Fn(&str) -> Option<Dim>) -> Result<(), GraphError> {
    let size = |d: &Dim| match d {
        Dim::Param(name) => sizes(name),
        _ => None,
    };
    for v in g.values().collect::<Vec<_>>() {
        let Some(ValueType::Tensor {
            dtype,
            shape: Some(shape),
        }) = g.value(v).declared_type()
        else {
            continue;
        };
        // What is captured takes its type from outside.
        if g.value(v).captured_from().is_some() || !shape.iter().any(|d| size(d).is_some()) {
            continue;
        }
        let ty = ValueType::Tensor {
            dtype: *dtype,
            shape: Some(
                shape
                    .iter()
                    .map(|d| size(d).unwrap_or_else(|| d.clone()))
                    .collect(),
            ),
        };
        g.set_type(v, Some(ty))?;
    }
    Ok(())
}

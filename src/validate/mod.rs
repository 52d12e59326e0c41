//! What a rewrite did to the outputs and to the latency.
//!
//! Two models run side by side on the same samples, which stream through. How much of a
//! difference is noise is told by the original: its outputs when the engine runs the graph as it
//! is, against those when the engine optimizes it; and where an exact rewrite goes beyond that, by
//! what becomes of its outputs when its weights are rounded differently.

mod deployed;
mod difference;
mod layers;
mod rounding;
mod timing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use paring_ir::engine::{CompileOptions, DataSource, Engine, EngineError, Sample};
use paring_ir::manager::{Judge, Verdict};
use paring_ir::pass::{NoProgress, Progress};
use paring_ir::report::Difference;
use paring_ir::{Model, Registry, Tensor, escape};
use serde::Serialize;

use crate::data::suggest;
use crate::engine::Runner;
pub use deployed::FormReport;
use deployed::{Deployed, quantize_share};
pub use difference::{BROKEN_SQNR_DB, OutputDifference};
use difference::{Scores, Sums};
pub use layers::{LayerError, LayerErrors, layer_errors};
pub use timing::{Bench, Latency, Profile, ProfileRow, TimeOptions, bench, profile, time_pair};

/// The least relative difference that is ever taken for more than noise.
const LEAST_FLOOR: f64 = 1e-5;
/// How much larger than the engine's own noise a difference may be.
const NOISE_FACTOR: f64 = 10.0;
/// How much larger than what rounding the weights differently does. Less than that of the engine's
/// noise, since a fold rounds every weight about once.
const ROUNDING_FACTOR: f64 = 4.0;
/// How many runs the noise is measured on: plans that aren't optimized are slow.
const NOISE_RUNS: usize = 8;

/// How to compare.
#[derive(Clone, Copy)]
pub struct CompareOptions<'a> {
    /// Threads of the engine.
    pub threads: usize,
    /// Compare the first samples only.
    pub limit: Option<usize>,
    /// The output whose last axis holds the scores of the classes; the first output when absent.
    pub label_output: Option<&'a str>,
    /// Measure the noise of the original.
    pub noise: bool,
    /// Set by someone who wants to stop.
    pub cancel: Option<&'a AtomicBool>,
    /// Shown how far the comparison is.
    pub progress: &'a dyn Progress,
}

impl Default for CompareOptions<'_> {
    fn default() -> Self {
        CompareOptions {
            threads: 1,
            limit: None,
            label_output: None,
            noise: true,
            cancel: None,
            progress: &NoProgress,
        }
    }
}

impl CompareOptions<'_> {
    fn check(&self) -> Result<(), EngineError> {
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Cancelled),
            _ => Ok(()),
        }
    }

    fn compile(&self, optimize: bool) -> CompileOptions {
        CompileOptions {
            optimize,
            threads: self.threads,
        }
    }
}

/// How far a model's outputs are from the original's.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Validation {
    /// The engine.
    pub engine: String,
    /// Where the samples came from.
    pub data: String,
    /// Samples.
    pub samples: usize,
    /// The largest absolute difference over all outputs.
    pub max_abs: f64,
    /// The largest of the outputs' relative differences; see [`OutputDifference::max_rel`].
    pub max_rel: f64,
    /// The smallest SQNR of the outputs, in dB; absent (null) when they are all equal.
    pub sqnr_db: Option<f64>,
    /// The smallest of the outputs' mean cosines.
    pub cosine: Option<f64>,
    /// The smallest cosine of any output of any sample.
    pub cosine_min: Option<f64>,
    /// The share of decisions (argmax over the last axis of the scored output) that are the same.
    pub top1_agreement: Option<f64>,
    /// Top-1 accuracy of the original, 0 to 1; absent without labels.
    pub accuracy_before: Option<f64>,
    /// Top-1 accuracy of the rewritten model.
    pub accuracy_after: Option<f64>,
    /// Top-5 accuracy of the original; absent with five classes or fewer.
    pub top5_before: Option<f64>,
    /// Top-5 accuracy of the rewritten model.
    pub top5_after: Option<f64>,
    /// Every output by itself.
    pub outputs: Vec<OutputDifference>,
    /// The relative difference between the original as it is and as the engine optimizes it;
    /// absent when it could not be measured.
    pub noise: Option<f64>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

impl Validation {
    /// The largest relative difference that is still noise.
    pub fn floor(&self) -> f64 {
        floor(self.noise)
    }

    /// Whether the difference is more than noise.
    pub fn beyond_noise(&self) -> bool {
        self.max_rel.is_nan() || self.max_rel > self.floor()
    }

    /// The part that passes and limits look at.
    pub fn difference(&self) -> Difference {
        Difference {
            samples: self.samples,
            max_abs: self.max_abs,
            max_rel: self.max_rel,
            sqnr_db: self.sqnr_db,
            cosine: self.cosine,
            top1_agreement: self.top1_agreement,
            accuracy_before: self.accuracy_before,
            accuracy_after: self.accuracy_after,
        }
    }

    /// The difference and what is noise.
    pub fn verdict(&self) -> Verdict {
        Verdict {
            difference: self.difference(),
            noise: self.floor(),
        }
    }

    /// A validation that holds nothing yet but the noise of the original.
    fn begin(
        engine: &dyn Engine,
        before: &Model,
        data: &dyn DataSource,
        options: &CompareOptions<'_>,
    ) -> Result<Validation, EngineError> {
        let mut out = Validation {
            engine: engine.name(),
            data: data.describe(),
            ..Validation::default()
        };
        if options.noise {
            match noise(engine, before, data, options) {
                Ok(noise) => out.noise = Some(noise),
                Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
                Err(e) => out.notes.push(format!(
                    "the noise of the original could not be measured: {e}"
                )),
            }
        }
        Ok(out)
    }

    fn set_outputs(&mut self, outputs: Vec<OutputDifference>) {
        let least = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        for o in &outputs {
            self.max_abs = self.max_abs.max(o.max_abs);
            self.max_rel = self.max_rel.max(o.max_rel);
            self.sqnr_db = least(self.sqnr_db, o.sqnr_db);
            self.cosine = least(self.cosine, o.cosine);
            self.cosine_min = least(self.cosine_min, o.cosine_min);
            if o.nonfinite > 0 {
                self.notes.push(format!(
                    "output \"{}\": {} of {} elements became infinite or not a number, or stopped being so",
                    escape(&o.name),
                    o.nonfinite,
                    o.elements
                ));
            }
        }
        self.outputs = outputs;
    }
}

fn floor(noise: Option<f64>) -> f64 {
    // A model that is broken already has no measure of noise.
    let noise = noise.filter(|n| *n < 1.0).unwrap_or(0.0);
    LEAST_FLOOR.max(NOISE_FACTOR * noise)
}

/// The samples in a run, scored or not: the size of axis 0 when the inputs agree on one.
fn batch_of(sample: &Sample) -> usize {
    let mut sizes = sample
        .inputs
        .iter()
        .filter_map(|t| t.dims().first().copied());
    match sizes.next() {
        Some(first) if first >= sample.count && sizes.all(|s| s == first) => first,
        _ => sample.count,
    }
}

/// The sums over all outputs of two models, matched by name.
struct Comparison {
    names: Vec<String>,
    /// The position in the second model of each output.
    places: Vec<usize>,
    sums: Vec<Sums>,
}

impl Comparison {
    fn new(before: &Model, after: &Model) -> Result<Comparison, EngineError> {
        let names = |m: &Model| -> Vec<String> {
            let outputs = m.graph.outputs().iter();
            outputs
                .map(|&v| m.graph.value(v).name().to_string())
                .collect()
        };
        let (mine, theirs) = (names(before), names(after));
        let mut places = Vec::with_capacity(mine.len());
        for name in &mine {
            let at = theirs.iter().position(|n| n == name).ok_or_else(|| {
                EngineError::Cut(format!(
                    "output \"{}\" is missing from the other model, so the two can't be compared",
                    escape(name)
                ))
            })?;
            places.push(at);
        }
        Ok(Comparison {
            sums: vec![Sums::default(); mine.len()],
            names: mine,
            places,
        })
    }

    fn add(
        &mut self,
        before: &[Tensor],
        after: &[Tensor],
        sample: &Sample,
    ) -> Result<(), EngineError> {
        let batch = batch_of(sample);
        let all = self
            .names
            .iter()
            .zip(&self.places)
            .zip(self.sums.iter_mut());
        for (((name, &at), sums), a) in all.zip(before) {
            let Some(b) = after.get(at) else { continue };
            sums.add(a, b, batch, sample.count)
                .map_err(|reason| EngineError::Failed {
                    engine: "the comparison".to_string(),
                    place: format!("output \"{}\"", escape(name)),
                    reason,
                })?;
        }
        Ok(())
    }

    fn finish(&self) -> Vec<OutputDifference> {
        let all = self.sums.iter().zip(&self.names);
        all.map(|(sums, name)| sums.finish(&escape(name))).collect()
    }
}

/// Runs a model once, to see whether the engine can.
pub fn can_run(
    engine: &dyn Engine,
    model: &Model,
    data: &dyn DataSource,
) -> Result<Vec<String>, EngineError> {
    let mut runner = Runner::new(engine, model, CompileOptions::default());
    data.for_each(Some(1), &mut |sample| {
        runner.run(&sample.inputs).map(|_| ())
    })?;
    Ok(runner.notes().to_vec())
}

/// The noise of a model: the relative difference between its outputs as it is and as the engine
/// optimizes it.
pub fn noise(
    engine: &dyn Engine,
    model: &Model,
    data: &dyn DataSource,
    options: &CompareOptions<'_>,
) -> Result<f64, EngineError> {
    let mut plain = Runner::new(engine, model, options.compile(false));
    let mut optimized = Runner::new(engine, model, options.compile(true));
    let mut comparison = Comparison::new(model, model)?;
    let mut runs = 0;
    let walked = data.for_each(options.limit, &mut |sample| {
        options.check()?;
        let a = plain.run(&sample.inputs)?;
        let b = optimized.run(&sample.inputs)?;
        comparison.add(&a, &b, sample)?;
        runs += 1;
        // Ends the walk; told apart below.
        if runs < NOISE_RUNS {
            Ok(())
        } else {
            Err(EngineError::Cancelled)
        }
    });
    match walked {
        Err(EngineError::Cancelled) if runs >= NOISE_RUNS => {}
        other => other?,
    }
    Ok(comparison
        .finish()
        .iter()
        .fold(0.0, |m, o| f64::max(m, o.max_rel)))
}

/// Compares the outputs of two models on the same samples, which are inputs of `before`.
pub fn compare(
    engine: &dyn Engine,
    before: &Model,
    after: &Model,
    data: &dyn DataSource,
    options: &CompareOptions<'_>,
) -> Result<Validation, EngineError> {
    let mut out = Validation::begin(engine, before, data, options)?;
    compare_outputs(
        engine,
        before,
        after,
        data,
        options,
        &mut Remembered::nothing(),
        &mut out,
    )?;
    Ok(out)
}

/// The outputs of one model on one source, for as long as they fit into memory.
#[derive(Default)]
struct Remembered {
    revision: u64,
    runs: Vec<Vec<Tensor>>,
    bytes: usize,
    complete: bool,
    full: bool,
    notes: Vec<String>,
}

impl Remembered {
    /// The most bytes of outputs that are kept.
    const LIMIT: usize = 256 << 20;

    /// Keeps nothing.
    fn nothing() -> Remembered {
        Remembered {
            full: true,
            ..Remembered::default()
        }
    }

    /// Forgets what is known of another model.
    fn turn_to(&mut self, model: &Model) {
        let revision = model.revision();
        if !self.full && (self.revision != revision || !self.complete) {
            *self = Remembered {
                revision,
                ..Remembered::default()
            };
        }
    }

    fn get(&self, run: usize) -> Option<&Vec<Tensor>> {
        self.runs.get(run).filter(|_| self.complete)
    }

    fn keep(&mut self, outputs: &[Tensor]) {
        if self.full {
            return;
        }
        self.bytes = outputs
            .iter()
            .fold(self.bytes, |n, t| n.saturating_add(t.byte_len()));
        self.runs.push(outputs.to_vec());
        if self.bytes > Remembered::LIMIT {
            *self = Remembered::nothing();
        }
    }
}

fn scored_output(model: &Model, options: &CompareOptions<'_>) -> Result<usize, EngineError> {
    let Some(name) = options.label_output else {
        return Ok(0);
    };
    let outputs = model.graph.outputs();
    let at = outputs
        .iter()
        .position(|&v| &**model.graph.value(v).name() == name);
    at.ok_or_else(|| {
        let names = outputs.iter().map(|&v| &**model.graph.value(v).name());
        EngineError::Data(format!(
            "the model has no output \"{}\" to compare with the labels; {}",
            escape(name),
            suggest(name, names, "outputs")
        ))
    })
}

fn compare_outputs(
    engine: &dyn Engine,
    before: &Model,
    after: &Model,
    data: &dyn DataSource,
    options: &CompareOptions<'_>,
    known: &mut Remembered,
    out: &mut Validation,
) -> Result<(), EngineError> {
    known.turn_to(before);
    let same = before.revision() == after.revision();
    let scored = scored_output(before, options)?;
    let mut comparison = Comparison::new(before, after)?;
    let mut a = Runner::new(engine, before, options.compile(true));
    let mut b = Runner::new(engine, after, options.compile(true));
    let mut scores = Scores::default();
    let mut samples = 0;
    let mut run = 0;
    let total = options.limit.unwrap_or(usize::MAX).min(data.len());
    options.progress.start("comparing outputs", total as u64);
    let walked = data.for_each(options.limit, &mut |sample| {
        options.check()?;
        let first = match known.get(run) {
            Some(outputs) => outputs.clone(),
            None => {
                let outputs = a.run(&sample.inputs)?;
                known.keep(&outputs);
                outputs
            }
        };
        run += 1;
        let second = match same {
            true => first.clone(),
            false => b.run(&timing::reorder(before, after, &sample.inputs)?)?,
        };
        comparison.add(&first, &second, sample)?;
        let other = comparison.places.get(scored).and_then(|&at| second.get(at));
        if let (Some(x), Some(y)) = (first.get(scored), other) {
            scores.add(
                x,
                y,
                sample.labels.as_deref(),
                batch_of(sample),
                sample.count,
            );
        }
        samples += sample.count;
        options.progress.advance(sample.count as u64);
        Ok(())
    });
    options.progress.finish();
    walked?;
    out.samples = samples;
    out.set_outputs(comparison.finish());
    out.top1_agreement = scores.agreement();
    if let Some((top1, top5)) = scores.accuracy() {
        [out.accuracy_before, out.accuracy_after] = top1.map(Some);
        if let Some(top5) = top5 {
            [out.top5_before, out.top5_after] = top5.map(Some);
        }
    }
    if let (Some(why), true) = (&scores.obstacle, data.has_labels()) {
        let name = comparison
            .names
            .get(scored)
            .map(|n| escape(n))
            .unwrap_or_default();
        out.notes.push(format!(
            "no accuracy: output \"{name}\": {why}; name another with --label-output"
        ));
    }
    if !known.complete {
        known.notes = a.notes().to_vec();
        known.complete = true;
    }
    for (which, notes) in [
        ("original", known.notes.as_slice()),
        ("rewritten", b.notes()),
    ] {
        out.notes
            .extend(notes.iter().map(|note| format!("{which}: {note}")));
    }
    Ok(())
}

/// Judges rewrites by running models: what the pass manager asks.
pub struct EngineJudge<'a> {
    engine: &'a dyn Engine,
    eval: &'a dyn DataSource,
    exact: Vec<&'a dyn DataSource>,
    options: CompareOptions<'a>,
    times: TimeOptions,
    file_bytes: FileBytes<'a>,
    noise: BTreeMap<(u64, usize), Option<f64>>,
    /// How far rounding the weights differently moves the outputs; see `rounding_on`.
    rounding: BTreeMap<(u64, usize), f64>,
    /// The outputs of the original, which every lossy pass is scored against.
    known: Remembered,
    notes: Vec<String>,
    registry: Option<&'a Registry>,
}

/// Gives the size of the files that a model is written to.
pub type FileBytes<'a> = Box<dyn FnMut(&Model) -> Result<u64, EngineError> + 'a>;

/// The forms of a quantized model are compared on so many samples.
const FORM_SAMPLES: usize = 512;

/// How many samples of each source exact rewrites are compared on.
const EXACT_SAMPLES: usize = 8;

impl<'a> EngineJudge<'a> {
    /// A judge that scores on `eval`, on which the original must run, and compares exact rewrites
    /// on the first samples of the sources in `exact`, or of `eval` when that is empty. Sources
    /// on which the original doesn't run, such as random inputs of another size, are left out.
    pub fn new(
        engine: &'a dyn Engine,
        original: &Model,
        eval: &'a dyn DataSource,
        exact: &[&'a dyn DataSource],
        options: CompareOptions<'a>,
        times: TimeOptions,
        file_bytes: FileBytes<'a>,
    ) -> Result<EngineJudge<'a>, EngineError> {
        scored_output(original, &options)?;
        can_run(engine, original, eval)?;
        let mut kept = Vec::new();
        let mut notes = Vec::new();
        for &source in exact {
            match can_run(engine, original, source) {
                Ok(_) => kept.push(source),
                Err(e) => notes.push(format!(
                    "the original doesn't run on {}: {e}",
                    source.describe()
                )),
            }
        }
        if kept.is_empty() {
            kept.push(eval);
        }
        Ok(EngineJudge {
            engine,
            eval,
            exact: kept,
            options,
            times,
            file_bytes,
            noise: BTreeMap::new(),
            rounding: BTreeMap::new(),
            known: Remembered::default(),
            notes,
            registry: None,
        })
    }

    /// The same judge, which times quantized models in the form that a pass of this registry
    /// lowers them to.
    #[must_use]
    pub fn with_lowering(mut self, registry: &'a Registry) -> EngineJudge<'a> {
        self.registry = Some(registry);
        self
    }

    /// What was left out, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The full comparison on all samples for evaluation, for the report.
    pub fn validation(
        &mut self,
        reference: &Model,
        model: &Model,
    ) -> Result<Validation, EngineError> {
        let options = self.options;
        self.score_with(reference, model, &options)
    }

    fn score_with(
        &mut self,
        reference: &Model,
        model: &Model,
        options: &CompareOptions<'_>,
    ) -> Result<Validation, EngineError> {
        let mut out = Validation::begin(self.engine, reference, self.eval, options)?;
        let known = &mut self.known;
        compare_outputs(
            self.engine,
            reference,
            model,
            self.eval,
            options,
            known,
            &mut out,
        )?;
        Ok(out)
    }

    /// The errors of every layer on the first samples for evaluation, for the report.
    pub fn layers(&self, reference: &Model, model: &Model) -> Result<LayerErrors, EngineError> {
        layer_errors(self.engine, reference, model, self.eval, &self.options)
    }

    /// The first sample.
    fn first(&self) -> Result<Vec<Tensor>, EngineError> {
        let mut inputs = Vec::new();
        self.eval.for_each(Some(1), &mut |sample| {
            inputs.clone_from(&sample.inputs);
            Ok(())
        })?;
        Ok(inputs)
    }

    fn deployed(
        &self,
        reference: &Model,
        model: &Model,
        inputs: &[Tensor],
    ) -> Result<Option<Deployed>, EngineError> {
        let Some(registry) = self.registry else {
            return Ok(None);
        };
        let inputs = timing::reorder(reference, model, inputs)?;
        let threads = self.times.threads;
        deployed::deployed(self.engine, registry, model, &inputs, threads)
    }

    /// The latency of both models on the first sample; of a quantized model that of the form in
    /// which the engine runs it fast.
    pub fn latency(&self, reference: &Model, model: &Model) -> Result<Latency, EngineError> {
        let inputs = self.first()?;
        let lowered = self.deployed(reference, model, &inputs)?;
        let timed = lowered.as_ref().map_or(model, |d| &d.model);
        let found = time_pair(self.engine, reference, timed, &inputs, &self.times)?;
        Ok(Latency {
            form: lowered.map(|d| d.form),
            ..found
        })
    }

    /// A quantized model in each of its forms, and its latency; no forms for other models.
    pub fn forms(
        &mut self,
        reference: &Model,
        model: &Model,
    ) -> Result<(Latency, Vec<FormReport>), EngineError> {
        let inputs = self.first()?;
        let Some(lowered) = self.deployed(reference, model, &inputs)? else {
            let found = time_pair(self.engine, reference, model, &inputs, &self.times)?;
            return Ok((found, Vec::new()));
        };
        let mut forms = Vec::new();
        let mut latency = None;
        let quick = TimeOptions {
            min_time: self.times.min_time / 4,
            ..self.times
        };
        for (form, timed) in [("qdq", model), ("lowered", &lowered.model)] {
            let options = CompareOptions {
                noise: false,
                limit: Some(self.options.limit.unwrap_or(FORM_SAMPLES).min(FORM_SAMPLES)),
                ..self.options
            };
            let found = self.score_with(reference, timed, &options)?;
            let times = if form == "qdq" { &quick } else { &self.times };
            let time = time_pair(self.engine, reference, timed, &inputs, times)?;
            if forms.is_empty() {
                forms.push(FormReport {
                    form: "f32".to_owned(),
                    file_bytes: (self.file_bytes)(reference).ok(),
                    samples: found.samples,
                    sqnr_db: None,
                    accuracy: found.accuracy_before,
                    latency_ms: time.before_ms,
                    ratio: 1.0,
                    quantize_share: 0.0,
                });
            }
            forms.push(FormReport {
                form: form.to_owned(),
                file_bytes: (self.file_bytes)(timed).ok(),
                samples: found.samples,
                sqnr_db: found.sqnr_db,
                accuracy: found.accuracy_after,
                latency_ms: time.after_ms,
                ratio: time.ratio,
                quantize_share: quantize_share(self.engine, reference, timed, &inputs, &quick)?,
            });
            latency = Some(time);
        }
        // The last pair is the one that was measured longest. What a machine does meanwhile is in
        // both halves of a pair, so ratios bear it and times of two pairs don't.
        let float = latency.as_ref().map_or(0.0, |l| l.before_ms);
        for f in &mut forms {
            f.latency_ms = float * f.ratio;
        }
        let latency = latency.map(|l| Latency {
            form: Some(lowered.form),
            ..l
        });
        let latency = latency.ok_or_else(|| EngineError::Data("nothing was timed".to_owned()))?;
        Ok((latency, forms))
    }

    /// Compares an exact rewrite on one source.
    fn verdict_on(
        &mut self,
        index: usize,
        reference: &Model,
        model: &Model,
    ) -> Result<Verdict, EngineError> {
        let source = self.exact.get(index).copied().unwrap_or(self.eval);
        // The noise belongs to the reference, which is compared with many times.
        let key = (reference.revision(), index);
        let known = self.noise.get(&key).copied();
        let few = self
            .options
            .limit
            .unwrap_or(EXACT_SAMPLES)
            .min(EXACT_SAMPLES);
        let options = CompareOptions {
            noise: self.options.noise && known.is_none(),
            limit: Some(few),
            ..self.options
        };
        let mut out = compare(self.engine, reference, model, source, &options)?;
        match known {
            Some(noise) => out.noise = noise,
            None => {
                self.noise.insert(key, out.noise);
            }
        }
        let mut verdict = out.verdict();
        if verdict.beyond_noise() {
            let rounding = self.rounding_on(key, reference, source, &options)?;
            verdict.noise = verdict.noise.max(ROUNDING_FACTOR * rounding);
        }
        Ok(verdict)
    }

    /// How far the outputs of the reference move when its weights are rounded differently, or 0
    /// where that can't be told. Plans of one engine may agree to the last bit on a model whose
    /// outputs hang on every rounding, and a fold can't but round weights.
    fn rounding_on(
        &mut self,
        key: (u64, usize),
        reference: &Model,
        source: &dyn DataSource,
        options: &CompareOptions<'_>,
    ) -> Result<f64, EngineError> {
        if let Some(&known) = self.rounding.get(&key) {
            return Ok(known);
        }
        let options = CompareOptions {
            noise: false,
            ..*options
        };
        let moved = rounding::nudged(reference)
            .map_err(|e| EngineError::Data(e.to_string()))
            .and_then(|nudged| compare(self.engine, reference, &nudged, source, &options));
        let found = match moved {
            Ok(v) if v.max_rel < 1.0 => v.max_rel,
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            _ => 0.0,
        };
        self.rounding.insert(key, found);
        Ok(found)
    }
}

impl Judge for EngineJudge<'_> {
    fn compare_exact(&mut self, reference: &Model, model: &Model) -> Result<Verdict, EngineError> {
        let mut worst = self.verdict_on(0, reference, model)?;
        for index in 1..self.exact.len() {
            worst = join(worst, self.verdict_on(index, reference, model)?);
        }
        Ok(worst)
    }

    fn score(&mut self, original: &Model, model: &Model) -> Result<Difference, EngineError> {
        let options = CompareOptions {
            noise: false,
            ..self.options
        };
        Ok(self.score_with(original, model, &options)?.difference())
    }

    fn latency_ratio(&mut self, reference: &Model, model: &Model) -> Result<f64, EngineError> {
        Ok(self.latency(reference, model)?.ratio)
    }

    fn file_bytes(&mut self, model: &Model) -> Result<u64, EngineError> {
        (self.file_bytes)(model)
    }
}

/// The worse of two verdicts in each number; accuracy is that of the first. Which one is more
/// beyond its noise decides about both noise and relative difference.
fn join(first: Verdict, second: Verdict) -> Verdict {
    let excess = |v: &Verdict| v.difference.max_rel / v.noise.max(f64::MIN_POSITIVE);
    let (a, b) = (&first.difference, &second.difference);
    let least = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let worse = if excess(&second) > excess(&first) {
        &second
    } else {
        &first
    };
    Verdict {
        noise: worse.noise,
        difference: Difference {
            samples: a.samples + b.samples,
            max_abs: a.max_abs.max(b.max_abs),
            max_rel: worse.difference.max_rel,
            sqnr_db: least(a.sqnr_db, b.sqnr_db),
            cosine: least(a.cosine, b.cosine),
            ..a.clone()
        },
    }
}

#[cfg(test)]
mod tests;

//! Watching the values inside a model while data runs through it, on any engine.
//!
//! [`observe`] shows every tensor; [`statistics`] keeps numbers of each value only, so that
//! memory does not grow with the samples. A [`Watch`] shows one run at a time, for callers that
//! run several models side by side.

mod mask;
mod statistics;

use std::collections::HashSet;

use crate::engine::{CompileOptions, Cut, DataSource, Engine, EngineError, Plan, Sample};
use crate::graph::ValueId;
use crate::model::Model;
use crate::tensor::{Dims, Tensor};

pub use mask::Mask;
pub use statistics::{Statistics, ValueStatistics, statistics};

/// What [`observe`] could not watch, and what the adapter did.
#[derive(Debug, Default)]
pub struct Observed {
    /// Samples that were run.
    pub samples: usize,
    /// Values that the engine could not give, and why.
    pub skipped: Vec<(ValueId, EngineError)>,
    /// What the adapter rewrote on its copy.
    pub notes: Vec<String>,
}

/// A part of the values, compiled.
struct Group {
    values: Vec<ValueId>,
    plan: Box<dyn Plan>,
}

/// Runs a model on one sample after the other and shows chosen values.
///
/// All values are outputs of one plan where the engine allows that. Values that make it fail
/// are found by halving and left out from then on.
pub struct Watch<'a> {
    engine: &'a dyn Engine,
    model: &'a Model,
    options: CompileOptions,
    wanted: Vec<ValueId>,
    /// The plans for the shapes of the inputs that came last.
    compiled: Option<(Vec<Dims>, Vec<Group>)>,
    seen: Observed,
}

impl<'a> Watch<'a> {
    /// Nothing is compiled before the first sample, whose shapes it takes.
    pub fn new(
        engine: &'a dyn Engine,
        model: &'a Model,
        values: &[ValueId],
        options: CompileOptions,
    ) -> Watch<'a> {
        let mut wanted: Vec<ValueId> = values.to_vec();
        let mut known = HashSet::new();
        wanted.retain(|&v| known.insert(v));
        Watch {
            engine,
            model,
            options,
            wanted,
            compiled: None,
            seen: Observed::default(),
        }
    }

    /// Runs a sample: `see` gets each value and its tensor, in the order in which they were
    /// asked for up to those that had to be compiled apart.
    pub fn run(
        &mut self,
        sample: &Sample,
        see: &mut dyn FnMut(ValueId, &Tensor) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let shapes: Vec<Dims> = sample
            .inputs
            .iter()
            .map(|t| t.dims().iter().copied().collect())
            .collect();
        let (_, mut groups) = match self.compiled.take() {
            Some((s, groups)) if s == shapes => (s, groups),
            _ => (shapes.clone(), self.compile_all(sample, &shapes)?),
        };
        self.seen.samples += sample.count;
        self.run_groups(&mut groups, sample, &shapes, see)?;
        self.compiled = Some((shapes, groups));
        Ok(())
    }

    /// What was run, and what could not be watched.
    pub fn finish(self) -> Observed {
        self.seen
    }

    fn compile_all(&mut self, sample: &Sample, shapes: &[Dims]) -> Result<Vec<Group>, EngineError> {
        let wanted = self.wanted.clone();
        if let Ok(plan) = self.compile(&wanted, shapes) {
            return Ok(vec![Group {
                values: wanted,
                plan,
            }]);
        }
        self.can_run(sample, shapes)?;
        let groups = self.groups(&wanted, sample, shapes);
        let skipped: HashSet<ValueId> = self.seen.skipped.iter().map(|(v, _)| *v).collect();
        self.wanted.retain(|&v| !skipped.contains(&v));
        Ok(groups)
    }

    /// Fails when the model itself doesn't run.
    fn can_run(&mut self, sample: &Sample, shapes: &[Dims]) -> Result<(), EngineError> {
        let outputs = self.model.graph.outputs();
        self.compile(outputs, shapes)?.run(&sample.inputs)?;
        Ok(())
    }

    fn compile(
        &mut self,
        values: &[ValueId],
        shapes: &[Dims],
    ) -> Result<Box<dyn Plan>, EngineError> {
        let cut = Cut {
            outputs: values.to_vec(),
            ..Cut::whole(self.model, shapes.to_vec())
        };
        let plan = self.engine.compile(&cut, self.options)?;
        for note in plan.notes() {
            if !self.seen.notes.contains(note) {
                self.seen.notes.push(note.clone());
            }
        }
        Ok(plan)
    }

    /// Plans that give the values and ran once on these inputs; values that no plan gives are
    /// narrowed down by halving.
    fn groups(&mut self, values: &[ValueId], sample: &Sample, shapes: &[Dims]) -> Vec<Group> {
        if values.is_empty() {
            return Vec::new();
        }
        let tried = self.compile(values, shapes).and_then(|mut plan| {
            plan.run(&sample.inputs)?;
            Ok(plan)
        });
        match (tried, values) {
            (Ok(plan), _) => vec![Group {
                values: values.to_vec(),
                plan,
            }],
            (Err(e), [only]) => {
                self.seen.skipped.push((*only, e));
                Vec::new()
            }
            (Err(_), _) => {
                let (first, second) = values.split_at(values.len() / 2);
                let mut groups = self.groups(first, sample, shapes);
                groups.extend(self.groups(second, sample, shapes));
                groups
            }
        }
    }

    fn run_groups(
        &mut self,
        groups: &mut Vec<Group>,
        sample: &Sample,
        shapes: &[Dims],
        see: &mut dyn FnMut(ValueId, &Tensor) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut pending: Vec<Group> = std::mem::take(groups);
        pending.reverse();
        while let Some(mut group) = pending.pop() {
            match group.plan.run(&sample.inputs) {
                Ok(outputs) => {
                    for (&v, t) in group.values.iter().zip(&outputs) {
                        see(v, t)?;
                    }
                    groups.push(group);
                }
                // It compiled and does not run: the parts that run are kept.
                Err(e) => {
                    self.can_run(sample, shapes)?;
                    let before = self.seen.skipped.len();
                    let parts = self.groups(&group.values, sample, shapes);
                    if parts.len() == 1 && self.seen.skipped.len() == before {
                        return Err(e);
                    }
                    pending.extend(parts.into_iter().rev());
                }
            }
        }
        Ok(())
    }
}

/// Runs data through a model and shows every value of `values` for every run, in this order:
/// `see` gets the run, the value and its tensor.
///
/// Values that the engine can't give are in [`Observed::skipped`]; when the model itself doesn't
/// run, that is the error.
pub fn observe(
    engine: &dyn Engine,
    model: &Model,
    values: &[ValueId],
    data: &dyn DataSource,
    limit: Option<usize>,
    options: CompileOptions,
    see: &mut dyn FnMut(&Sample, ValueId, &Tensor) -> Result<(), EngineError>,
) -> Result<Observed, EngineError> {
    let mut watch = Watch::new(engine, model, values, options);
    data.for_each(limit, &mut |sample| {
        watch.run(sample, &mut |v, t| see(sample, v, t))
    })?;
    Ok(watch.finish())
}

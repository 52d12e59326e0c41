//! Watching the values inside a model while data runs through it, on any engine.
//!
//! [`observe`] shows every tensor; [`statistics`] keeps numbers of each value only, so that
//! memory does not grow with the samples.

mod statistics;

use std::collections::HashSet;

use crate::engine::{CompileOptions, Cut, DataSource, Engine, EngineError, Plan, Sample};
use crate::graph::ValueId;
use crate::model::Model;
use crate::tensor::{Dims, Tensor};

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

struct Watch<'a> {
    engine: &'a dyn Engine,
    model: &'a Model,
    options: CompileOptions,
    skipped: Vec<(ValueId, EngineError)>,
    notes: Vec<String>,
}

impl Watch<'_> {
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
            if !self.notes.contains(note) {
                self.notes.push(note.clone());
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
                self.skipped.push((*only, e));
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
}

/// Runs data through a model and shows every value of `values` for every run, in this order:
/// `see` gets the run, the value and its tensor.
///
/// All values are outputs of one plan where the engine allows that. Values that make it fail
/// are found by halving and reported in [`Observed::skipped`]; when the model itself doesn't
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
    let mut watch = Watch {
        engine,
        model,
        options,
        skipped: Vec::new(),
        notes: Vec::new(),
    };
    let mut wanted: Vec<ValueId> = values.to_vec();
    let mut known = HashSet::new();
    wanted.retain(|&v| known.insert(v));
    let mut compiled: Option<(Vec<Dims>, Vec<Group>)> = None;
    let mut samples = 0;
    data.for_each(limit, &mut |sample| {
        let shapes: Vec<Dims> = sample
            .inputs
            .iter()
            .map(|t| t.dims().iter().copied().collect())
            .collect();
        if compiled.as_ref().is_none_or(|(s, _)| *s != shapes) {
            let whole = watch.compile(&wanted, &shapes);
            let groups = match whole {
                Ok(plan) => vec![Group {
                    values: wanted.clone(),
                    plan,
                }],
                Err(_) => {
                    let outputs = model.graph.outputs();
                    watch.compile(outputs, &shapes)?.run(&sample.inputs)?;
                    watch.groups(&wanted, sample, &shapes)
                }
            };
            let skipped: HashSet<ValueId> = watch.skipped.iter().map(|(v, _)| *v).collect();
            wanted.retain(|v| !skipped.contains(v));
            compiled = Some((shapes.clone(), groups));
        }
        samples += sample.count;
        let Some((_, groups)) = &mut compiled else {
            return Ok(());
        };
        run_groups(&mut watch, groups, sample, &shapes, see)
    })?;
    Ok(Observed {
        samples,
        skipped: watch.skipped,
        notes: watch.notes,
    })
}

fn run_groups(
    watch: &mut Watch<'_>,
    groups: &mut Vec<Group>,
    sample: &Sample,
    shapes: &[Dims],
    see: &mut dyn FnMut(&Sample, ValueId, &Tensor) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut pending: Vec<Group> = std::mem::take(groups);
    pending.reverse();
    while let Some(mut group) = pending.pop() {
        match group.plan.run(&sample.inputs) {
            Ok(outputs) => {
                for (&v, t) in group.values.iter().zip(&outputs) {
                    see(sample, v, t)?;
                }
                groups.push(group);
            }
            // It compiled and does not run: the parts that run are kept.
            Err(e) => {
                let outputs = watch.model.graph.outputs();
                watch.compile(outputs, shapes)?.run(&sample.inputs)?;
                let before = watch.skipped.len();
                let parts = watch.groups(&group.values, sample, shapes);
                if parts.len() == 1 && watch.skipped.len() == before {
                    return Err(e);
                }
                pending.extend(parts.into_iter().rev());
            }
        }
    }
    Ok(())
}

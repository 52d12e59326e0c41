//! How tests of passes are written: a model in text, options, the expected text.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::collections::BTreeMap;

use paring_ir::analysis::AnalysisCache;
use paring_ir::engine::{
    CompileOptions, Cut, DataSource, Engine, EngineError, OpTime, Plan, Sample,
};
use paring_ir::pass::Remarks;
use paring_ir::text::{PrintOptions, parse_model, print_model};
use paring_ir::{Model, Pass, PassContext, Registry, Tensor, verify};

/// Runs a pass and compares the result with the expected model, both as text. An unchanged
/// model is expected by giving the same text twice, or with [`unchanged`].
pub(crate) fn check<P: Pass>(options: &str, before: &str, after: &str) -> Remarks {
    check_with::<P>(None, options, before, after)
}

/// As [`check`], with an engine.
pub(crate) fn check_with<P: Pass>(
    engine: Option<&dyn Engine>,
    options: &str,
    before: &str,
    after: &str,
) -> Remarks {
    let (model, remarks) = run::<P>(engine, options, before);
    let found = print(&model);
    let expected = print(&parse(after));
    assert!(
        found == expected,
        "{} made\n{found}\nexpected\n{expected}\nremarks {remarks:#?}",
        P::INFO.name
    );
    remarks
}

/// Checks that a pass leaves a model alone, and returns what it said about it.
pub(crate) fn unchanged<P: Pass>(options: &str, model: &str) -> Remarks {
    check::<P>(options, model, model)
}

/// Checks that a pass leaves a model alone and says why, by the reason code.
pub(crate) fn refused<P: Pass>(options: &str, model: &str, code: &str) {
    let remarks = unchanged::<P>(options, model);
    assert_eq!(remarks.missed, BTreeMap::from([(code.to_owned(), 1)]));
}

/// Runs a pass on a model in text. Checks that what the pass says about changes is true, that
/// the result of a valid model is valid (some refusals are about invalid ones), and that a second run finds nothing more to do.
pub(crate) fn run<P: Pass>(
    engine: Option<&dyn Engine>,
    options: &str,
    before: &str,
) -> (Model, Remarks) {
    let mut model = parse(before);
    let ready = Registry::new().with::<P>();
    let options = serde_json::from_str(if options.is_empty() { "{}" } else { options }).unwrap();
    let pass = ready.get(P::INFO.name).unwrap().make(&options).unwrap();
    let mut cache = AnalysisCache::new();
    let mut cx = PassContext::new(&mut cache);
    cx.engine = engine;
    model.set_author(Some(P::INFO.name.into()));
    pass.requires(&model).unwrap();
    let was_valid = verify::verify(&model).is_ok();
    let start = model.revision();
    let changed = pass.run(&mut model, &mut cx).unwrap();
    assert_eq!(
        changed.is_yes(),
        model.revision() != start,
        "what it says about changes"
    );
    let remarks = std::mem::take(&mut cx.remarks);
    check_valid(&model, was_valid);
    let settled = model.revision();
    pass.run(&mut model, &mut cx).unwrap();
    assert_eq!(
        model.revision(),
        settled,
        "a second run changed\n{}",
        print(&model)
    );
    (model, remarks)
}

pub(crate) fn parse(text: &str) -> Model {
    parse_model(text).unwrap_or_else(|e| panic!("{e}\nin\n{text}"))
}

fn print(model: &Model) -> String {
    print_model(model, &PrintOptions::default())
}

fn check_valid(model: &Model, was_valid: bool) {
    if let Err(broken) = model.graph.check_invariants() {
        panic!("{broken} in\n{}", print(model));
    }
    if was_valid && let Err(found) = verify::verify(model) {
        panic!("{found}\nin\n{}", print(model));
    }
}

/// An engine that gives what comes in: enough for layers that take graph inputs.
#[derive(Debug)]
pub(crate) struct Echo;

struct EchoPlan(Vec<usize>);

impl Engine for Echo {
    fn name(&self) -> String {
        "echo".to_owned()
    }

    fn compile(&self, cut: &Cut<'_>, _: CompileOptions) -> Result<Box<dyn Plan>, EngineError> {
        let place = |v| cut.inputs.iter().position(|&i| i == v);
        let outputs: Option<Vec<usize>> = cut.outputs.iter().map(|&v| place(v)).collect();
        let outputs = outputs.ok_or_else(|| EngineError::Cut("not an input".to_owned()))?;
        Ok(Box::new(EchoPlan(outputs)))
    }
}

impl Plan for EchoPlan {
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        Ok(self.0.iter().map(|&i| inputs[i].clone()).collect())
    }

    fn profile(&mut self, _: &[Tensor]) -> Result<Vec<OpTime>, EngineError> {
        Ok(Vec::new())
    }
}

/// Samples that are all in memory.
#[derive(Debug)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    /// Each list of inputs is one sample.
    pub(crate) fn of(inputs: impl IntoIterator<Item = Vec<Tensor>>) -> Samples {
        let sample = |inputs| Sample {
            inputs,
            count: 1,
            labels: None,
        };
        Samples(inputs.into_iter().map(sample).collect())
    }
}

impl DataSource for Samples {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let limit = limit.unwrap_or(usize::MAX);
        self.0.iter().take(limit).try_for_each(f)
    }
}

//! tract behind the [`Engine`] interface.
//!
//! The adapter takes a cut of a graph, lowers it to what tract loads on a copy of its own
//! (see `lower`), lets tract optimize it or not, and runs it. tract's panics are caught and
//! become errors that name the operator.

mod constants;
mod lower;
mod panics;
mod tensors;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use paring_ir::engine::{CompileOptions, Cut, Engine, EngineError, OpTime, Plan};
use paring_ir::{DType, OpId, Tensor, escape};
use tract_linalg::multithread::Executor;
use tract_onnx::Onnx;
use tract_onnx::prelude::*;
use tract_onnx::tract_core;
use tract_onnx::tract_core::internal::{
    RunOptions, TypedSimplePlan, TypedSimpleState, anyhow, bail,
};
use tract_onnx::tract_core::ops::konst::Const;

use lower::{Input, Labels, Lowered, Output};
pub(crate) use panics::catch;
pub use paring_ir::observe::{Observed, observe, statistics};

/// The version of tract that `Cargo.toml` pins.
const NAME: &str = "tract 0.23.9";
/// Compiles that fail without naming an operator are searched for it when they fail this fast.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);

/// The tract inference engine.
pub struct TractEngine {
    onnx: Onnx,
}

impl Default for TractEngine {
    fn default() -> Self {
        TractEngine::new()
    }
}

impl TractEngine {
    /// The engine.
    pub fn new() -> TractEngine {
        TractEngine {
            onnx: onnx().with_ignore_value_info(true),
        }
    }

    fn lower(&self, cut: &Cut<'_>) -> Result<Lowered, EngineError> {
        let known = |op_type: &str| self.onnx.op_register.0.contains_key(op_type);
        lower::lower(NAME, &known, cut)
    }

    /// Loads and prepares a lowered cut; an error or panic comes back as text.
    fn build(
        &self,
        lowered: &mut Lowered,
        options: CompileOptions,
    ) -> Result<Arc<TypedSimplePlan>, String> {
        let built = catch(|| self.try_build(lowered, options));
        match built {
            Ok(Ok(plan)) => Ok(plan),
            Ok(Err(e)) => Err(format!("{e:#}")),
            Err(panic) => Err(format!("panicked: {panic}")),
        }
    }

    fn try_build(
        &self,
        lowered: &mut Lowered,
        options: CompileOptions,
    ) -> TractResult<Arc<TypedSimplePlan>> {
        let parsed = self.onnx.parse(&lowered.proto, None)?;
        if let Some(name) = parsed.unresolved_inputs.first() {
            bail!("nothing produces {name}");
        }
        // The message is not needed any more, and may hold the tensors of inner graphs.
        lowered.proto = Default::default();
        let mut model = parsed.model;
        let outlet = |name: &str| {
            let found = parsed.outlets_by_name.get(name).copied();
            found.ok_or_else(|| anyhow!("{name} was lost"))
        };
        for (name, tensor) in std::mem::take(&mut lowered.constants) {
            let at = outlet(&name)?;
            let tensor = tensors::to_tract(&tensor)?.into_arc_tensor();
            let fact = InferenceFact::dt_shape_from_tensor(&tensor);
            model.node_mut(at.node).op = Box::new(Const::new(tensor)?);
            model.set_outlet_fact(at, fact)?;
        }
        let inputs = lowered.inputs.iter().map(|i| outlet(&i.name));
        let inputs = inputs.collect::<TractResult<Vec<_>>>()?;
        model.set_input_outlets(&inputs)?;
        for (i, input) in lowered.inputs.iter().enumerate() {
            let mut fact = InferenceFact::shape(input.dims.as_slice());
            if let Some(dt) = input.dtype.and_then(tensors::datum_type) {
                fact = fact.with_datum_type(dt);
            }
            model.set_input_fact(i, fact)?;
        }
        let typed = model.into_typed()?;
        let typed = match options.optimize {
            true => typed.into_decluttered()?.into_optimized()?,
            false => typed,
        };
        let run = RunOptions {
            executor: Some(executor(options.threads)),
            ..RunOptions::default()
        };
        typed.into_runnable_with_options(&run)
    }

    /// Finds the operator at which compiling starts to fail, for messages that don't name one:
    /// the first operators of the cut that fail together.
    fn search(&self, cut: &Cut<'_>, options: CompileOptions) -> Option<String> {
        let graph = &cut.model.graph;
        let order = graph.topological_order().ok()?;
        let whole = self.lower(cut).ok()?;
        let taking_part: std::collections::HashSet<OpId> =
            whole.labels.ops.iter().filter_map(|l| l.op).collect();
        let order: Vec<OpId> = order
            .into_iter()
            .filter(|op| taking_part.contains(op))
            .collect();
        let fails = |count: usize| {
            let outputs = order
                .iter()
                .take(count)
                .flat_map(|&op| graph.op(op).outputs());
            let cut = Cut {
                outputs: outputs.flatten().copied().collect(),
                ..cut.clone()
            };
            match self.lower(&cut) {
                Ok(mut lowered) => self.build(&mut lowered, options).is_err(),
                Err(_) => true,
            }
        };
        // Invariant: the first `good` operators compile, the first `bad` don't.
        let (mut good, mut bad) = (0, order.len());
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fails(middle) {
                bad = middle
            } else {
                good = middle
            }
        }
        let op = *order.get(bad.checked_sub(1)?)?;
        Some(format!(
            "{} \"{}\"",
            escape(graph.op(op).op_type()),
            escape(&graph.op_label(op))
        ))
    }
}

impl Engine for TractEngine {
    fn name(&self) -> String {
        NAME.to_string()
    }

    fn compile(
        &self,
        cut: &Cut<'_>,
        options: CompileOptions,
    ) -> Result<Box<dyn Plan>, EngineError> {
        let start = Instant::now();
        let mut lowered = self.lower(cut)?;
        let plan = if lowered.computed == 0 {
            None
        } else {
            match self.build(&mut lowered, options) {
                Ok(plan) => Some(plan),
                Err(text) => {
                    let named = lowered.labels.last_op(&text).map(|l| l.text.clone());
                    let place = named.or_else(|| {
                        (start.elapsed() < SEARCH_LIMIT)
                            .then(|| self.search(cut, options))
                            .flatten()
                    });
                    return Err(EngineError::Unsupported {
                        engine: NAME.to_string(),
                        place: place.unwrap_or_else(|| "the model".to_string()),
                        reason: readable(&lowered.labels, &text),
                    });
                }
            }
        };
        Ok(Box::new(TractPlan {
            plan,
            state: None,
            inputs: lowered.inputs,
            outputs: lowered.outputs,
            labels: lowered.labels,
            notes: lowered.notes,
        }))
    }
}

/// Thread pools by their size; each is made once.
fn executor(threads: usize) -> Executor {
    static POOLS: Mutex<BTreeMap<usize, Executor>> = Mutex::new(BTreeMap::new());
    if threads <= 1 {
        return Executor::SingleThread;
    }
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let name = format!("{}{threads}", panics::WORKER_PREFIX);
        Executor::multithread_with_name(threads, &name)
    };
    pools.entry(threads).or_insert_with(make).clone()
}

/// A message of tract with the model's names, in one line that isn't too long.
fn readable(labels: &Labels, text: &str) -> String {
    const LIMIT: usize = 600;
    let text = labels.translate(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::with_capacity(line.len().min(LIMIT));
    for c in line.chars().take(LIMIT) {
        if c.is_control() {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    if line.chars().count() > LIMIT {
        out.push('…');
    }
    out
}

/// A compiled cut.
struct TractPlan {
    /// `None` when nothing is to be computed.
    plan: Option<Arc<TypedSimplePlan>>,
    state: Option<TypedSimpleState>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    labels: Labels,
    notes: Vec<String>,
}

impl TractPlan {
    fn check(&self, inputs: &[Tensor]) -> Result<(), EngineError> {
        if inputs.len() != self.inputs.len() {
            return Err(EngineError::Input {
                input: self
                    .inputs
                    .first()
                    .map_or_else(String::new, |i| i.label.clone()),
                reason: format!("{} tensors for {} inputs", inputs.len(), self.inputs.len()),
            });
        }
        for (tensor, input) in inputs.iter().zip(&self.inputs) {
            let wrong_type = input.dtype.is_some_and(|d| d != tensor.dtype());
            if wrong_type || tensor.dims() != input.dims.as_slice() {
                let expected = input.dtype.map_or("any type", DType::name);
                return Err(EngineError::Input {
                    input: input.label.clone(),
                    reason: format!(
                        "the plan was compiled for {expected} {:?}, found {} {:?}",
                        input.dims.as_slice(),
                        tensor.dtype(),
                        tensor.dims()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Runs the computed part; `visit` hears of every operator that ran and how long it took.
    fn execute(
        &mut self,
        inputs: &[Tensor],
        timed: bool,
        visit: &mut dyn FnMut(&str, &str, Duration),
    ) -> Result<Vec<Tensor>, EngineError> {
        self.check(inputs)?;
        let Some(plan) = &self.plan else {
            return Ok(Vec::new());
        };
        // After an error or panic the state is dropped: it may be half-way. tract also keeps in
        // it what a recurrent operator ended with, and would start the next run from there.
        let state = self.state.take();
        let current = Cell::new(None);
        let result = catch(|| -> TractResult<_> {
            let mut state = match state {
                Some(state) => state,
                None => plan.spawn()?,
            };
            let values = inputs
                .iter()
                .map(|t| Ok(tensors::to_tract(t)?.into_tvalue()))
                .collect::<TractResult<TVec<TValue>>>()?;
            let outputs = state.run_plan_with_eval(values, |ctx, op_state, node, input| {
                current.set(Some(node.id));
                if !timed {
                    return tract_core::plan::eval(ctx, op_state, node, input);
                }
                let start = Instant::now();
                let result = tract_core::plan::eval(ctx, op_state, node, input);
                visit(&node.name, &node.op().name(), start.elapsed());
                result
            })?;
            let outputs = outputs
                .iter()
                .map(|t| tensors::from_tract(t))
                .collect::<TractResult<Vec<Tensor>>>()?;
            Ok((state, outputs))
        });
        let text = match result {
            Ok(Ok((state, outputs))) => {
                let stateless = state.op_states.iter().all(Option::is_none);
                self.state = Some(state).filter(|_| stateless);
                return Ok(outputs);
            }
            Ok(Err(e)) => format!("{e:#}"),
            Err(panic) => format!("panicked: {panic}"),
        };
        let at = current.get().and_then(|id| plan.model().nodes().get(id));
        let label = at.and_then(|n| self.labels.last_op(&n.name));
        let label = label.or_else(|| self.labels.last_op(&text));
        Err(EngineError::Failed {
            engine: NAME.to_string(),
            place: label.map_or_else(|| "the model".to_string(), |l| l.text.clone()),
            reason: readable(&self.labels, &text),
        })
    }
}

impl Plan for TractPlan {
    fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let computed = self.execute(inputs, false, &mut |_, _, _| {})?;
        let pick = |output: &Output| match output {
            Output::Computed(i) => computed.get(*i).cloned(),
            Output::Input(i) => inputs.get(*i).cloned(),
            Output::Constant(t) => Some(t.clone()),
        };
        let outputs = self.outputs.iter().map(pick).collect::<Option<Vec<_>>>();
        outputs.ok_or_else(|| EngineError::Failed {
            engine: NAME.to_string(),
            place: "the model".to_string(),
            reason: "it gave fewer outputs than were asked for".to_string(),
        })
    }

    fn profile(&mut self, inputs: &[Tensor]) -> Result<Vec<OpTime>, EngineError> {
        let mut times: Vec<(String, String, Duration)> = Vec::new();
        self.execute(inputs, true, &mut |name, op, time| {
            times.push((name.to_string(), op.to_string(), time));
        })?;
        let times = times.into_iter().map(|(name, op, time)| {
            let label = self.labels.last_op(&name);
            OpTime {
                name: label.map_or_else(|| self.labels.translate(&name), |l| l.name.clone()),
                source: label.and_then(|l| l.op),
                op,
                time,
            }
        });
        Ok(times.collect())
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Plans of one model by the shapes of its inputs, so that each shape is compiled once.
pub struct Runner<'a> {
    engine: &'a dyn Engine,
    model: &'a paring_ir::Model,
    options: CompileOptions,
    plans: HashMap<Vec<Vec<usize>>, Box<dyn Plan>>,
    order: Vec<Vec<Vec<usize>>>,
    notes: Vec<String>,
}

impl<'a> Runner<'a> {
    /// How many shapes are kept compiled.
    const KEPT: usize = 4;

    /// A runner of the whole model.
    pub fn new(
        engine: &'a dyn Engine,
        model: &'a paring_ir::Model,
        options: CompileOptions,
    ) -> Self {
        Runner {
            engine,
            model,
            options,
            plans: HashMap::new(),
            order: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The plan for inputs of these shapes.
    pub fn plan(&mut self, inputs: &[Tensor]) -> Result<&mut dyn Plan, EngineError> {
        let key: Vec<Vec<usize>> = inputs.iter().map(|t| t.dims().to_vec()).collect();
        if !self.plans.contains_key(&key) {
            let shapes = inputs.iter().map(|t| t.dims().iter().copied().collect());
            let cut = Cut::whole(self.model, shapes.collect());
            let plan = self.engine.compile(&cut, self.options)?;
            for note in plan.notes() {
                if !self.notes.contains(note) {
                    self.notes.push(note.clone());
                }
            }
            if self.order.len() >= Self::KEPT {
                let oldest = self.order.remove(0);
                self.plans.remove(&oldest);
            }
            self.order.push(key.clone());
            self.plans.insert(key.clone(), plan);
        }
        match self.plans.get_mut(&key) {
            Some(plan) => Ok(&mut **plan),
            None => Err(EngineError::Cut("the plan was lost".to_string())),
        }
    }

    /// Runs the model, all outputs in order.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        self.plan(inputs)?.run(inputs)
    }

    /// What the adapter rewrote on its copy.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

#[cfg(test)]
mod tests;

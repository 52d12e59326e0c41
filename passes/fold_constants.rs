//! `fold-constants`: what can be computed before the model runs becomes an initializer.
//!
//! ```text
//! before   float[2,3] w = …                      after   float[3,2] t = …
//!          t = Transpose (w)                             y = MatMul (x, t)
//!          y = MatMul (x, t)
//! ```
//!
//! Two kinds of values are known: small integers that shape inference works out, such as
//! Shape -> Gather -> Concat of fixed dimensions (no engine is needed for those), and results of
//! operators whose operands are all constant. The latter are computed by the engine, all of a
//! graph at once; where it refuses, the part that it refuses is found by halving. Values in
//! between that nothing else takes are not kept, and the operators are removed.
//!
//! Never folded: random operators, control flow, operators of other domains and those that a
//! function of the model stands in for, sequences and strings, quantizing and dequantizing (a
//! quantized weight must stay one), and integer arithmetic that could overflow or divide by
//! zero, in which engines differ. A result of the engine whose element type or shape is not the
//! inferred one is thrown away.
//!
//! Weights that `cluster-weights` stored as codes and tables stay so, whatever the budget: what
//! expands them is recognized by its form and is not computed ahead (`clustered`).
//!
//! Work and memory are bounded from shapes before the engine is asked, since an engine that runs
//! out of memory or time can't be stopped.
//!
//! Reasons for what is left: `graph-output`, `clustered`, `unknown-shape`, `budget`, `overflow`,
//! `engine-refused`, `no-engine`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::engine::{CompileOptions, Cut};
use paring_ir::pass::{Remark, RemarkKind};
use paring_ir::schema::{self, Class};
use paring_ir::tensor::element_count;
use paring_ir::{
    Changed, Constant, DType, Effect, Graph, Model, Name, NewOp, NewOutput, OpId, OpsetImport,
    OptionError, OptionSet, Pass, PassContext, PassError, PassInfo, Port, Tensor, ValueId,
};

use crate::clustered::Expansions;
use crate::common::{Captured, any_op, captured_constants, constant};

mod hazard;

use hazard::Hazard;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct FoldConstants {
    options: OptionSet<Options>,
}

/// How much may be folded.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// A result of more bytes is not folded. 64 MiB is beyond every tensor that is better kept
    /// than computed, but for the largest weights.
    pub max_bytes: u64,
    /// A result of more than 64 KiB may have so many times the bytes of the constants that it
    /// is made from: what is expanded or repeated stays an operator. 4 lets a weight through
    /// that is cast from half precision to double.
    pub max_growth: f64,
    /// So many element operations and multiply-adds are spent on one graph. Two billion take
    /// a few seconds.
    #[schemars(extend("x-scope" = "pass"))]
    pub max_work: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_bytes: 64 << 20,
            max_growth: 4.0,
            max_work: 2_000_000_000,
        }
    }
}

/// Results up to this size may grow freely.
const FREE_BYTES: u64 = 64 << 10;

/// So often the engine may refuse parts of a graph before the rest is left.
const MAX_REFUSALS: usize = 64;

/// Folding brings new constants to light, so it is repeated, at most so often.
const MAX_ROUNDS: usize = 8;

impl Pass for FoldConstants {
    const INFO: PassInfo = PassInfo::new(
        "fold-constants",
        "Compute constant operators and shape arithmetic ahead of time",
        Effect::Exact,
    )
    .runs_first(&["lift-constants"]);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let growth = options.whole().max_growth;
        if !growth.is_finite() || growth < 0.0 {
            return Err(OptionError::Invalid {
                path: "fold-constants.max-growth".to_owned(),
                reason: format!("expected a number from 0 on, found {growth}"),
            });
        }
        Ok(FoldConstants { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        if !any_op(model, may_fold) {
            return Ok(Changed::No);
        }
        let mut changed = Changed::No;
        let mut refused = HashMap::new();
        for round_number in 1..=MAX_ROUNDS {
            let refusals = refused.len();
            let mut round = Round::new(model, cx, &mut refused);
            model.edit_graphs(&mut |graph| self.fold_graph(graph, &mut round, cx))?;
            let (folded, unfinished, missed) = (round.folded, round.unfinished, round.missed);
            changed |= Changed::when(folded);
            let more = unfinished && (folded || refused.len() > refusals);
            if !more || round_number == MAX_ROUNDS {
                // Only what is left at the end is worth a remark.
                missed.into_iter().for_each(|r| cx.remarks.push(r));
                break;
            }
        }
        Ok(changed)
    }
}

/// Whether an operator starts something that can be folded, by a look at it alone.
fn may_fold(graph: &Graph, op: OpId) -> bool {
    let o = graph.op(op);
    let known = |v: ValueId| {
        let value = graph.value(v);
        value.as_tensor().is_some() || value.captured_from().is_some()
    };
    o.is("Shape")
        || o.is("Size")
        || (o.inputs().flatten().next().is_some()
            && o.inputs().flatten().all(known)
            && foldable_class(o).is_some())
}

/// The class of an operator that may be folded at all.
fn foldable_class(op: &paring_ir::Op) -> Option<Class> {
    let class = schema::of(op)?.class;
    let computes = match class {
        Class::Unary
        | Class::Binary
        | Class::Variadic
        | Class::Select
        | Class::Reduction
        | Class::AlongAxis
        | Class::Layout
        | Class::Index
        | Class::Linear
        | Class::Norm
        | Class::Shape
        | Class::Generator => !op.is("Constant"),
        Class::Resample => op.is("Resize") || op.is("Upsample"),
        _ => false,
    };
    (computes && schema::is_pure_standard(op)).then_some(class)
}

/// What one sweep over the graphs knows and finds.
struct Round<'r> {
    shapes: Arc<Shapes>,
    captured: Captured,
    opsets: Vec<OpsetImport>,
    ir_version: i64,
    functions: HashSet<(Name, Name)>,
    /// Operators that the engine refused, and what it said.
    refused: &'r mut HashMap<OpId, String>,
    folded: bool,
    /// Another round may fold more.
    unfinished: bool,
    missed: Vec<Remark>,
    without_engine: bool,
}

impl<'r> Round<'r> {
    fn new(
        model: &Model,
        cx: &mut PassContext<'_>,
        refused: &'r mut HashMap<OpId, String>,
    ) -> Round<'r> {
        Round {
            shapes: cx.analysis::<Shapes>(model),
            captured: captured_constants(model),
            opsets: model.opsets.clone(),
            ir_version: model.ir_version,
            functions: model
                .functions
                .iter()
                .map(|f| (f.domain.clone(), f.name.clone()))
                .collect(),
            refused,
            folded: false,
            unfinished: false,
            missed: Vec::new(),
            without_engine: false,
        }
    }

    fn miss(&mut self, graph: &Graph, op: OpId, code: &str, message: impl Into<String>) {
        self.missed.push(Remark {
            kind: RemarkKind::Missed,
            op: graph.op_label(op).to_string(),
            op_type: graph.op(op).op_type().to_string(),
            code: code.to_owned(),
            message: message.into(),
        });
    }

    /// Element type and dimensions, when both are known.
    fn fixed(&self, graph: &Graph, v: ValueId) -> Option<(DType, Vec<usize>)> {
        if let Some(t) = constant(graph, &self.captured, v) {
            return Some((t.dtype(), t.dims().to_vec()));
        }
        Some((self.shapes.dtype(v)?, self.shapes.known_dims(v)?))
    }

    /// The contents, when shape inference knows them as integers.
    fn contents(&self, v: ValueId) -> Option<Tensor> {
        let fact = self.shapes.fact(v)?;
        let (dims, ints) = (fact.known_dims()?, fact.known_i64s()?);
        let tensor = match fact.dtype? {
            DType::I64 => Tensor::from_vec(dims, ints),
            DType::I32 => {
                let small = ints.iter().map(|&v| i32::try_from(v).ok());
                Tensor::from_vec(dims, small.collect::<Option<Vec<i32>>>()?)
            }
            DType::Bool => {
                let bits: Vec<u8> = ints.iter().map(|&v| u8::from(v != 0)).collect();
                Tensor::new(DType::Bool, dims, bits)
            }
            _ => return None,
        };
        tensor.ok()
    }
}

/// The part of a graph that can be computed.
#[derive(Default)]
struct Region {
    /// Its operators, in the order of the data flow.
    ops: Vec<OpId>,
    places: HashMap<OpId, usize>,
    /// Values known without the engine.
    known: HashMap<ValueId, Tensor>,
    /// Values for the engine, with the bytes of the constants that they are made from.
    computed: HashMap<ValueId, u64>,
    work: u64,
}

impl Region {
    fn push(&mut self, op: OpId) {
        self.places.insert(op, self.ops.len());
        self.ops.push(op);
    }

    fn tensor<'a>(
        &'a self,
        graph: &'a Graph,
        round: &'a Round<'_>,
        v: ValueId,
    ) -> Option<&'a Tensor> {
        constant(graph, &round.captured, v).or_else(|| self.known.get(&v))
    }
}

impl FoldConstants {
    fn fold_graph(
        &self,
        graph: &mut Graph,
        round: &mut Round<'_>,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let mut region = Region::default();
        let expansions = Expansions::of(graph)?;
        for op in graph.topological_order()? {
            cx.check_cancelled()?;
            if expansions.contains(op) {
                if expansions.is_lookup(op) {
                    let why = "it expands a clustered weight, whose codes take less room";
                    round.miss(graph, op, "clustered", why);
                }
                continue;
            }
            self.consider(graph, op, &mut region, round, cx);
        }
        let wanted = frontier(graph, &region);
        let (known, computed): (Vec<ValueId>, Vec<ValueId>) = wanted
            .into_iter()
            .partition(|v| region.known.contains_key(v));
        let mut results: Vec<(ValueId, Tensor)> = known
            .into_iter()
            .filter_map(|v| Some((v, region.known.get(&v)?.clone())))
            .collect();
        let mut refusals = 0;
        self.evaluate(
            graph,
            &region,
            &computed,
            round,
            cx,
            &mut refusals,
            &mut results,
        );
        for (v, tensor) in results {
            if let Some(op) = graph.producer(v) {
                let what = format!("{}{:?} computed ahead", tensor.dtype(), tensor.dims());
                cx.applied(graph, op, "folded", what);
            }
            graph.fold_to_constant(v, tensor)?;
            round.folded = true;
        }
        for &op in region.ops.iter().rev() {
            let mut results = graph.op(op).outputs().iter().flatten();
            if results.all(|&v| graph.value(v).is_unused()) {
                graph.remove_op(op)?;
                round.folded = true;
            }
        }
        Ok(())
    }

    /// Takes an operator into the region when its results can be known.
    fn consider(
        &self,
        graph: &Graph,
        op: OpId,
        region: &mut Region,
        round: &mut Round<'_>,
        cx: &PassContext<'_>,
    ) {
        let o = graph.op(op);
        let Some(class) = foldable_class(o) else {
            return;
        };
        let stands_in = round
            .functions
            .contains(&(o.domain().clone(), o.op_type().clone()));
        let results: Vec<ValueId> = used_outputs(graph, op);
        if results.is_empty() || stands_in {
            return;
        }
        let Some(limits) = self.options.for_op(graph, op).options() else {
            return;
        };
        let contents: Option<Vec<Tensor>> = results.iter().map(|&v| round.contents(v)).collect();
        let constant_inputs = o.inputs().flatten().next().is_some()
            && o.inputs().flatten().all(|v| {
                region.computed.contains_key(&v) || region.tensor(graph, round, v).is_some()
            });
        if contents.is_none() && !constant_inputs {
            return;
        }
        if results.iter().any(|&v| graph.value(v).is_output()) {
            round.miss(
                graph,
                op,
                "graph-output",
                "the result is constant, and a graph output",
            );
            return;
        }
        if let Some(contents) = contents {
            region.known.extend(results.into_iter().zip(contents));
            region.push(op);
            return;
        }
        match self.admit(graph, op, class, limits, region, round) {
            Ok(admitted) if cx.engine.is_some() => {
                region.work = region.work.saturating_add(admitted.work);
                region
                    .computed
                    .extend(results.into_iter().map(|v| (v, admitted.leaf_bytes)));
                region.push(op);
            }
            Ok(_) if round.without_engine => {}
            Ok(_) => {
                round.without_engine = true;
                let why = "it is constant, and there is no engine to compute it";
                round.miss(graph, op, "no-engine", why);
            }
            Err(Refusal { code, why, later }) => {
                round.unfinished |= later && !region.computed.is_empty();
                round.miss(graph, op, code, why);
            }
        }
    }

    /// Whether the results of an operator of constant operands may be computed.
    fn admit(
        &self,
        graph: &Graph,
        op: OpId,
        class: Class,
        limits: &Options,
        region: &Region,
        round: &Round<'_>,
    ) -> Result<Admitted, Refusal> {
        if let Some(why) = round.refused.get(&op) {
            return Err(Refusal::new("engine-refused", why.clone()));
        }
        let o = graph.op(op);
        let unknown = || {
            let why = "the shapes of its operands and results are not all known";
            Refusal {
                code: "unknown-shape",
                why: why.to_owned(),
                later: true,
            }
        };
        let fixed = |v: ValueId| round.fixed(graph, v);
        let inputs: Vec<Option<(DType, Vec<usize>)>> = o
            .inputs()
            .map(|v| v.map(|v| fixed(v).ok_or_else(unknown)).transpose())
            .collect::<Result<_, _>>()?;
        let outputs: Vec<Option<(DType, Vec<usize>)>> = o
            .outputs()
            .iter()
            .map(|v| {
                v.filter(|&v| !graph.value(v).is_unused())
                    .map(|v| fixed(v).ok_or_else(unknown))
                    .transpose()
            })
            .collect::<Result<_, _>>()?;
        let operands: Vec<Option<&Tensor>> = o
            .inputs()
            .map(|v| region.tensor(graph, round, v?))
            .collect();
        let dtypes: Vec<Option<DType>> = inputs.iter().map(|i| i.as_ref().map(|i| i.0)).collect();
        let results: Vec<DType> = outputs.iter().flatten().map(|o| o.0).collect();
        match hazard::of(o, class, &dtypes, &results, &operands) {
            Hazard::None => {}
            Hazard::NeedsValues => {
                let why = "whether it overflows shows when its operands are computed";
                return Err(Refusal {
                    code: "overflow",
                    why: why.to_owned(),
                    later: true,
                });
            }
            Hazard::Refused(why) => return Err(Refusal::new("overflow", why)),
        }
        let total = |all: &[Option<(DType, Vec<usize>)>]| {
            all.iter()
                .flatten()
                .try_fold((0u64, 0u64), |(n, b), (d, dims)| {
                    let count = element_count(dims)?;
                    let bytes = d.packed_len(count)? as u64;
                    Some((n.checked_add(count as u64)?, b.checked_add(bytes)?))
                })
        };
        let too_large = || Refusal::new("budget", "the size of its results overflows");
        let (taken, _) = total(&inputs).ok_or_else(too_large)?;
        let (made, bytes) = total(&outputs).ok_or_else(too_large)?;
        let leaf_bytes = o.inputs().flatten().fold(0u64, |sum, v| {
            let own = || {
                region
                    .tensor(graph, round, v)
                    .map_or(0, |t| t.byte_len() as u64)
            };
            sum.saturating_add(region.computed.get(&v).copied().unwrap_or_else(own))
        });
        let macs = multiply_adds(o, &inputs, &outputs).ok_or_else(too_large)?;
        let work = taken.saturating_add(made).saturating_add(macs);
        let grown = leaf_bytes as f64 * limits.max_growth;
        if bytes > limits.max_bytes || (bytes > FREE_BYTES && bytes as f64 > grown) {
            let why = format!(
                "its results take {bytes} bytes, and the constants {leaf_bytes}: max-bytes or max-growth"
            );
            return Err(Refusal::new("budget", why));
        }
        if region.work.saturating_add(work) > self.options.whole().max_work {
            let why = format!("{work} more operations exceed max-work");
            return Err(Refusal::new("budget", why));
        }
        Ok(Admitted { work, leaf_bytes })
    }

    /// Computes values with the engine, halving what it refuses.
    #[expect(clippy::too_many_arguments, reason = "the recursion carries its state")]
    fn evaluate(
        &self,
        graph: &Graph,
        region: &Region,
        wanted: &[ValueId],
        round: &mut Round<'_>,
        cx: &PassContext<'_>,
        refusals: &mut usize,
        results: &mut Vec<(ValueId, Tensor)>,
    ) {
        let (Some(engine), false) = (cx.engine, wanted.is_empty()) else {
            return;
        };
        if *refusals > MAX_REFUSALS {
            return;
        }
        let computed = cut_out(graph, region, round, wanted).and_then(|(model, outputs)| {
            let cut = Cut {
                model: &model,
                inputs: Vec::new(),
                outputs,
                shapes: Vec::new(),
            };
            let options = CompileOptions {
                optimize: false,
                threads: 1,
            };
            let run = engine
                .compile(&cut, options)
                .and_then(|mut plan| plan.run(&[]));
            run.map_err(|e| e.to_string())
        });
        let checked = computed.and_then(|tensors| check_results(graph, round, wanted, tensors));
        match (checked, wanted) {
            (Ok(tensors), _) => results.extend(wanted.iter().copied().zip(tensors)),
            (Err(why), [only]) => {
                *refusals += 1;
                if let Some(op) = graph.producer(*only) {
                    round.refused.insert(op, why);
                    // What it is made from can be folded without it.
                    round.unfinished = true;
                }
            }
            (Err(_), _) => {
                *refusals += 1;
                let (left, right) = wanted.split_at(wanted.len() / 2);
                self.evaluate(graph, region, left, round, cx, refusals, results);
                self.evaluate(graph, region, right, round, cx, refusals, results);
            }
        }
    }
}

struct Admitted {
    work: u64,
    leaf_bytes: u64,
}

struct Refusal {
    code: &'static str,
    why: String,
    /// It may be admitted once its operands are computed.
    later: bool,
}

impl Refusal {
    fn new(code: &'static str, why: impl Into<String>) -> Refusal {
        Refusal {
            code,
            why: why.into(),
            later: false,
        }
    }
}

fn used_outputs(graph: &Graph, op: OpId) -> Vec<ValueId> {
    let all = graph.op(op).outputs().iter().flatten().copied();
    all.filter(|&v| !graph.value(v).is_unused()).collect()
}

/// The values of the region that something outside of it takes, in order.
fn frontier(graph: &Graph, region: &Region) -> Vec<ValueId> {
    let outside = |v: ValueId| {
        let mut uses = graph.value(v).uses().iter();
        uses.any(|u| u.port == Port::Capture || !region.places.contains_key(&u.op))
    };
    region
        .ops
        .iter()
        .flat_map(|&op| used_outputs(graph, op))
        .filter(|&v| outside(v))
        .collect()
}

/// The multiply-adds of an operator, if it does any; `None` when they can't be counted.
fn multiply_adds(
    op: &paring_ir::Op,
    inputs: &[Option<(DType, Vec<usize>)>],
    outputs: &[Option<(DType, Vec<usize>)>],
) -> Option<u64> {
    let wide = |all: &[Option<(DType, Vec<usize>)>]| -> Vec<Option<Vec<Option<u64>>>> {
        let dims = |d: &Vec<usize>| d.iter().map(|&d| Some(d as u64)).collect();
        all.iter()
            .map(|t| t.as_ref().map(|(_, d)| dims(d)))
            .collect()
    };
    let (inputs, outputs) = (wide(inputs), wide(outputs));
    let inputs: Vec<_> = inputs.iter().map(Option::as_deref).collect();
    let outputs: Vec<_> = outputs.iter().map(Option::as_deref).collect();
    schema::macs(op, &inputs, &outputs)
}

/// A model of the operators that make the wanted values, and these values in it.
fn cut_out(
    graph: &Graph,
    region: &Region,
    round: &Round<'_>,
    wanted: &[ValueId],
) -> Result<(Model, Vec<ValueId>), String> {
    let mut needed = HashSet::new();
    let mut waiting: Vec<ValueId> = wanted.to_vec();
    while let Some(v) = waiting.pop() {
        if region.tensor(graph, round, v).is_some() {
            continue;
        }
        let place = graph
            .producer(v)
            .and_then(|p| region.places.get(&p).copied());
        let place = place.ok_or("a value has no source")?;
        if needed.insert(place) {
            waiting.extend(graph.op(region.ops[place]).inputs().flatten());
        }
    }
    let mut needed: Vec<usize> = needed.into_iter().collect();
    needed.sort_unstable();
    let mut part = Graph::new("constants");
    let mut places: HashMap<ValueId, ValueId> = HashMap::new();
    for place in needed {
        copy_op(
            graph,
            region,
            round,
            region.ops[place],
            &mut part,
            &mut places,
        )
        .map_err(|e| e.to_string())?;
    }
    let outputs: Vec<ValueId> = wanted
        .iter()
        .map(|v| places.get(v).copied().ok_or("a value has no source"))
        .collect::<Result<_, _>>()?;
    for &v in &outputs {
        part.add_output(v).map_err(|e| e.to_string())?;
    }
    let mut model = Model::new(part, 1);
    model.opsets = round.opsets.clone();
    model.ir_version = round.ir_version;
    Ok((model, outputs))
}

fn copy_op(
    graph: &Graph,
    region: &Region,
    round: &Round<'_>,
    op: OpId,
    part: &mut Graph,
    places: &mut HashMap<ValueId, ValueId>,
) -> Result<(), paring_ir::GraphError> {
    let o = graph.op(op);
    let mut new = NewOp::new(o.op_type().clone())
        .name(graph.op_label(op))
        .attrs(o.attrs().iter().cloned());
    for v in o.inputs() {
        let place = match v {
            Some(v) => match (places.get(&v), region.tensor(graph, round, v)) {
                (Some(&there), _) => Some(there),
                (None, Some(tensor)) => {
                    let there = part.add_fresh_value(graph.value(v).name())?;
                    part.add_initializer(there, Constant::Dense(tensor.clone()))?;
                    places.insert(v, there);
                    Some(there)
                }
                (None, None) => None,
            },
            None => None,
        };
        new = new.optional_input(place);
    }
    for v in o.outputs() {
        new = new.push_output(match v {
            Some(v) => NewOutput::Fresh(graph.value(*v).name().clone()),
            None => NewOutput::Absent,
        });
    }
    let copy = part.add_op(new)?;
    for (from, to) in o.outputs().iter().zip(part.op(copy).outputs()) {
        if let (Some(from), Some(to)) = (from, to) {
            places.insert(*from, *to);
        }
    }
    Ok(())
}

/// The engine's results, when they are of the inferred types.
fn check_results(
    graph: &Graph,
    round: &Round<'_>,
    wanted: &[ValueId],
    tensors: Vec<Tensor>,
) -> Result<Vec<Tensor>, String> {
    if tensors.len() != wanted.len() {
        return Err(format!(
            "{} results instead of {}",
            tensors.len(),
            wanted.len()
        ));
    }
    for (&v, t) in wanted.iter().zip(&tensors) {
        let expected = round.fixed(graph, v);
        if expected
            .as_ref()
            .is_none_or(|(d, dims)| *d != t.dtype() || **dims != *t.dims())
        {
            return Err(format!(
                "the engine made {}{:?} where {expected:?} was inferred",
                t.dtype(),
                t.dims()
            ));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;

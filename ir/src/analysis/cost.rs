//! What a model costs: operators, parameters, bytes, multiply-accumulates.
//!
//! - Operators are counted over the main graph and all graphs inside it. `Constant` is counted
//!   apart, since it does no work. Calls of functions are operators; the bodies of functions
//!   are not counted.
//! - Parameters are the elements of constants (initializers and `Constant` nodes, those in
//!   bodies of functions too), except strings, booleans, and what only decides about shapes or
//!   positions: the shape of a `Reshape`, the axes of a `Slice`, a number that is added to a
//!   size, the indices of a `Gather`. A constant that several operators share counts once.
//! - For multiply-accumulates see [`schema::macs`]. A size that the model leaves open counts as
//!   1, and the result is marked as assumed. Of the branches of an `If` the costlier counts; the
//!   body of a `Loop` or `Scan` counts as often as it runs, or once, as assumed, when that is
//!   not known. Sums beyond 64 bits stay at the largest number.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Analysis, AnalysisCache, ShapeOptions, Shapes, SymDim};
use crate::attr::AttrValue;
use crate::graph::{Graph, OpId, Port, ValueId};
use crate::model::Model;
use crate::op::Op;
use crate::schema::{self, Class, KnownDims, Role};
use crate::tensor::{DType, Tensor};
use crate::value::{Constant, Name, Use};

/// What to count.
#[derive(Clone, Debug, Default)]
pub struct CostOptions {
    /// Count zeros, and with them the effective MACs. This reads every parameter.
    pub zeros: bool,
    /// Sizes to count for, where the model leaves them open.
    pub shapes: ShapeOptions,
}

/// The cost of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelCost {
    /// The operators of all graphs, `Constant` not among them.
    pub nodes: u64,
    /// The `Constant` operators of all graphs.
    pub constants: u64,
    /// How many operators of each type there are, `Constant` not among them. Types of other
    /// domains than the standard one are written `domain::Type`.
    pub operators: BTreeMap<String, usize>,
    /// The number of parameters.
    pub parameters: u64,
    /// The bytes that the parameters take.
    pub weight_bytes: u64,
    /// How many parameters are zero; absent when they were not counted.
    pub zeros: Option<u64>,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Those whose weight is not zero; absent when zeros were not counted.
    pub effective_macs: Option<u64>,
    /// A size that the model leaves open was taken as 1, or a loop as run once.
    pub macs_assumed: bool,
    /// Operators that should have MACs, or may have, and could not be counted: of other
    /// domains, or with inputs of unknown rank.
    pub macs_unknown: usize,
    /// The version of the standard operators.
    pub opset: i64,
}

/// The multiply-accumulates of one execution of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpCost {
    /// The count; `None` when it can't be known.
    pub macs: Option<u64>,
    /// Those whose weight is not zero; equal to `macs` when zeros were not counted.
    pub effective_macs: Option<u64>,
    /// A size that the model leaves open was taken as 1.
    pub assumed: bool,
}

/// The cost of a model and of its operators.
#[derive(Debug)]
pub struct Costs {
    total: ModelCost,
    ops: HashMap<OpId, OpCost>,
    weights: HashMap<ValueId, WeightCost>,
}

/// What one constant that counts as parameters amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WeightCost {
    /// The number of elements.
    pub elements: u64,
    /// The bytes that they take.
    pub bytes: u64,
    /// How many are zero; 0 when they were not counted.
    pub zeros: u64,
}

impl Analysis for Costs {
    type Options = CostOptions;

    fn compute(model: &Model, options: &CostOptions, cache: &mut AnalysisCache) -> Costs {
        let shapes = cache.get_with::<Shapes>(model, &options.shapes);
        count(model, options, &shapes)
    }
}

impl Costs {
    /// The cost of the whole model.
    pub fn total(&self) -> &ModelCost {
        &self.total
    }

    /// The constant that a value of any graph or function is, when it counts as parameters.
    pub fn weight(&self, value: ValueId) -> Option<WeightCost> {
        self.weights.get(&value).copied()
    }

    /// The multiply-accumulates of one execution of an operator; for control flow those of
    /// all that it runs.
    pub fn op(&self, op: OpId) -> OpCost {
        self.ops.get(&op).copied().unwrap_or(OpCost {
            macs: Some(0),
            effective_macs: Some(0),
            assumed: false,
        })
    }
}

/// Sizes of a value: each with whether it was assumed.
type Sizes = SmallVec<[(u64, bool); 6]>;

/// The sizes of a value that is a tensor of known rank, every open one taken as 1.
fn sizes_of(shapes: &Shapes, value: ValueId) -> Option<Sizes> {
    let size = |d: &SymDim| match d.known() {
        Some(n) => Some((u64::try_from(n).ok()?, false)),
        // An expression such as `h / 2` is 0 at 1, but no axis of a run is empty.
        None => Some((u64::try_from(d.value_at(&|_| 1)?.max(1)).ok()?, true)),
    };
    shapes.dims(value)?.iter().map(size).collect()
}

/// A run of graphs: the sum over its operators.
#[derive(Clone, Copy, Default)]
struct Work {
    macs: u64,
    effective: u64,
    assumed: bool,
    unknown: usize,
}

impl Work {
    fn add(&mut self, other: Work) {
        self.macs = self.macs.saturating_add(other.macs);
        self.effective = self.effective.saturating_add(other.effective);
        self.assumed |= other.assumed;
        self.unknown = self.unknown.saturating_add(other.unknown);
    }

    fn repeated(self, times: Option<u64>) -> Work {
        let n = times.unwrap_or(1);
        Work {
            macs: self.macs.saturating_mul(n),
            effective: self.effective.saturating_mul(n),
            assumed: self.assumed || (times.is_none() && self.macs > 0),
            unknown: self.unknown,
        }
    }
}

struct Counter<'a> {
    model: &'a Model,
    shapes: &'a Shapes,
    zeros: bool,
    cost: ModelCost,
    ops: HashMap<OpId, OpCost>,
    weights: HashMap<ValueId, WeightCost>,
    /// Zeros of constants, with the number of elements.
    sparsity: HashMap<ValueId, (u64, u64)>,
    /// By domain and type.
    by_type: HashMap<Name, HashMap<Name, usize>>,
    functions: HashMap<(&'a str, &'a str, &'a str), usize>,
    heavy_functions: Vec<Option<bool>>,
}

fn count(model: &Model, options: &CostOptions, shapes: &Shapes) -> Costs {
    let functions = model.functions.iter().enumerate();
    let mut counter = Counter {
        model,
        shapes,
        zeros: options.zeros,
        cost: ModelCost {
            opset: model.opset(),
            zeros: options.zeros.then_some(0),
            ..ModelCost::default()
        },
        ops: HashMap::new(),
        weights: HashMap::new(),
        sparsity: HashMap::new(),
        by_type: HashMap::new(),
        functions: functions
            .rev()
            .map(|(i, f)| ((&*f.domain, &*f.name, &*f.overload), i))
            .collect(),
        heavy_functions: vec![None; model.functions.len()],
    };
    for function in &model.functions {
        counter.parameters(&function.body);
    }
    counter.parameters(&model.graph);
    model.for_each_graph(&mut |g| counter.operators(g));
    let work = counter.work(&mut vec![&model.graph]);
    let mut cost = counter.cost;
    for (domain, types) in counter.by_type {
        for (op_type, n) in types {
            let key = match &*domain {
                "" => op_type.to_string(),
                domain => format!("{domain}::{op_type}"),
            };
            cost.operators.insert(key, n);
        }
    }
    cost.macs = work.macs;
    cost.effective_macs = options.zeros.then_some(work.effective);
    cost.macs_assumed = work.assumed;
    cost.macs_unknown = work.unknown;
    Costs {
        total: cost,
        ops: counter.ops,
        weights: counter.weights,
    }
}

impl<'a> Counter<'a> {
    fn operators(&mut self, graph: &Graph) {
        for id in graph.ops() {
            let op = graph.op(id);
            if op.is("Constant") {
                self.cost.constants += 1;
                continue;
            }
            self.cost.nodes += 1;
            let domain = match self.by_type.get_mut(op.domain()) {
                Some(domain) => domain,
                None => self.by_type.entry(op.domain().clone()).or_default(),
            };
            match domain.get_mut(op.op_type()) {
                Some(n) => *n += 1,
                None => {
                    domain.insert(op.op_type().clone(), 1);
                }
            }
        }
    }

    /// Counts the parameters of a graph and of those inside it. Returns, for each value of the
    /// enclosing graph that this graph captures, whether it decides about shapes only.
    fn parameters(&mut self, graph: &Graph) -> HashMap<ValueId, bool> {
        let mut captured: HashMap<ValueId, bool> = HashMap::new();
        for owner in graph.ops_with_subgraphs() {
            for inner in graph.op(owner).subgraphs() {
                for (value, only_shapes) in self.parameters(inner) {
                    *captured.entry(value).or_insert(true) &= only_shapes;
                }
            }
        }
        let mut shape_data = ShapeData {
            graph,
            captured,
            flags: None,
        };
        for value in graph.initializers() {
            if let Some(constant) = graph.value(value).initializer() {
                let weight = Weight::of_constant(constant, self.zeros);
                self.weight(value, weight, &mut shape_data);
            }
        }
        for id in graph.ops() {
            let op = graph.op(id);
            if op.is("Constant")
                && let Some(value) = op.output(0)
                && let Some(weight) = Weight::of_constant_op(op, self.zeros)
            {
                self.weight(value, weight, &mut shape_data);
            }
        }
        let outer = |v: ValueId| Some((graph.value(v).captured_from()?, v));
        graph
            .outer_values()
            .filter_map(outer)
            .map(|(outside, v)| (outside, shape_data.holds(v, true)))
            .collect()
    }

    fn weight(&mut self, value: ValueId, weight: Weight, shape_data: &mut ShapeData<'_>) {
        if matches!(weight.dtype, DType::String | DType::Bool) {
            return;
        }
        let integer = matches!(weight.dtype, DType::I64 | DType::I32);
        if shape_data.holds(value, integer) {
            return;
        }
        let of_value = WeightCost {
            elements: weight.elements,
            bytes: weight.bytes,
            zeros: weight.zeros,
        };
        self.weights.insert(value, of_value);
        let cost = &mut self.cost;
        cost.parameters = cost.parameters.saturating_add(weight.elements);
        cost.weight_bytes = cost.weight_bytes.saturating_add(weight.bytes);
        if let Some(zeros) = &mut cost.zeros {
            *zeros = zeros.saturating_add(weight.zeros);
            if weight.zeros > 0 {
                self.sparsity.insert(value, (weight.zeros, weight.elements));
            }
        }
    }

    /// The work of the innermost of nested graphs.
    fn work(&mut self, scopes: &mut Vec<&'a Graph>) -> Work {
        let mut work = Work::default();
        let Some(&graph) = scopes.last() else {
            return work;
        };
        for id in graph.ops() {
            let op = graph.op(id);
            let of_op = match schema::of(op) {
                Some(known) if known.class == Class::Control => self.control(scopes, op),
                Some(known) if !known.counts_macs() => continue,
                Some(_) => self.products(scopes, op),
                None => self.foreign(op),
            };
            let known = of_op.unknown == 0;
            let cost = OpCost {
                macs: known.then_some(of_op.macs),
                effective_macs: known.then_some(of_op.effective),
                assumed: of_op.assumed,
            };
            if cost.macs != Some(0) {
                self.ops.insert(id, cost);
            }
            work.add(of_op);
        }
        work
    }

    fn products(&mut self, scopes: &[&'a Graph], op: &Op) -> Work {
        let sizes = |v: Option<ValueId>| sizes_of(self.shapes, v?);
        let inputs: Vec<Option<Sizes>> = op.inputs().map(sizes).collect();
        let outputs: Vec<Option<Sizes>> = op.outputs().iter().copied().map(sizes).collect();
        let (macs, assumed) = match count_macs(op, &inputs, &outputs, false) {
            Some(macs) => (macs, false),
            None => match count_macs(op, &inputs, &outputs, true) {
                Some(macs) => (macs, true),
                None => {
                    return Work {
                        unknown: 1,
                        ..Work::default()
                    };
                }
            },
        };
        let (zeros, elements) = self.sparsity_of(scopes, op);
        let filled = u128::from(elements.saturating_sub(zeros));
        let effective = u128::from(macs) * filled / u128::from(elements.max(1));
        Work {
            macs,
            effective: u64::try_from(effective).unwrap_or(macs),
            assumed,
            unknown: 0,
        }
    }

    /// The zeros and elements of the constant weights of an operator; (0, 1) without any.
    fn sparsity_of(&self, scopes: &[&'a Graph], op: &Op) -> (u64, u64) {
        if !self.zeros {
            return (0, 1);
        }
        let slots = schema::weight_slots(op);
        let recurrent = schema::of(op).is_some_and(|k| k.class == Class::Recurrent);
        let mut found = slots
            .iter()
            .filter_map(|&slot| self.constant_behind(scopes, op.input(slot)?));
        let first = found.next().unwrap_or((0, 1));
        if recurrent {
            // Both weights of a recurrent network are used at every step.
            found.fold(first, |sum, next| {
                (sum.0.saturating_add(next.0), sum.1.saturating_add(next.1))
            })
        } else {
            first
        }
    }

    /// The sparsity of the constant that a value is, moved about or dequantized at most.
    fn constant_behind(&self, scopes: &[&'a Graph], value: ValueId) -> Option<(u64, u64)> {
        const STEPS: usize = 16;
        let (mut scopes, mut value) = (scopes, value);
        for _ in 0..STEPS {
            let (&graph, outside) = scopes.split_last()?;
            let v = graph.get_value(value)?;
            if let Some(outer) = v.captured_from() {
                (scopes, value) = (outside, outer);
                continue;
            }
            if let Some(constant) = v.as_constant() {
                let elements = Weight::of_constant(constant, false).elements;
                return Some(self.sparsity_or(value, elements));
            }
            let op = graph.op(v.producer()?.0);
            if op.is("Constant") {
                let elements = Weight::of_constant_op(op, false)?.elements;
                return Some(self.sparsity_or(value, elements));
            }
            if !keeps_zeros(graph, op) {
                return None;
            }
            value = op.input(0)?;
        }
        None
    }

    fn sparsity_or(&self, value: ValueId, elements: u64) -> (u64, u64) {
        self.sparsity.get(&value).copied().unwrap_or((0, elements))
    }

    fn control(&mut self, scopes: &mut Vec<&'a Graph>, op: &'a Op) -> Work {
        let Some(&graph) = scopes.last() else {
            return Work::default();
        };
        let mut bodies = Vec::new();
        for inner in op.subgraphs() {
            scopes.push(inner);
            bodies.push(self.work(scopes));
            scopes.pop();
        }
        if op.is("If") {
            let unknown = bodies.iter().map(|b| b.unknown).max().unwrap_or(0);
            let mut costliest = bodies
                .into_iter()
                .max_by_key(|b| b.macs)
                .unwrap_or_default();
            costliest.unknown = unknown;
            return costliest;
        }
        let times = match &**op.op_type() {
            "Loop" => trip_count(graph, op),
            "Scan" => self.scan_length(op),
            _ => None,
        };
        let mut work = Work::default();
        bodies.into_iter().for_each(|b| work.add(b));
        work.repeated(times)
    }

    /// The size of the first scanned input along its axis.
    fn scan_length(&self, op: &Op) -> Option<u64> {
        let scanned = usize::try_from(op.int("num_scan_inputs")?).ok()?;
        let slot = op.input_count().checked_sub(scanned)?;
        let sizes = sizes_of(self.shapes, op.input(slot)?)?;
        let axis = op
            .ints("scan_input_axes")
            .and_then(|a| a.first().copied())
            .unwrap_or(0);
        let rank = i64::try_from(sizes.len()).ok()?;
        let axis = if axis < 0 {
            axis.checked_add(rank)?
        } else {
            axis
        };
        match sizes.get(usize::try_from(axis).ok()?)? {
            (n, false) => Some(*n),
            (_, true) => None,
        }
    }

    /// An operator that nothing is known about, or a call of a function.
    fn foreign(&mut self, op: &Op) -> Work {
        let key = (&**op.domain(), &**op.op_type(), op.overload());
        let unknown = match self.functions.get(&key).copied() {
            Some(function) => self.is_heavy(function),
            None => true,
        };
        Work {
            unknown: usize::from(unknown),
            ..Work::default()
        }
    }

    /// Whether a function has operators whose MACs count, or may count. They depend on the
    /// sizes at each call, so they are known only after inlining.
    fn is_heavy(&mut self, index: usize) -> bool {
        if let Some(known) = self.heavy_functions.get(index).copied().flatten() {
            return known;
        }
        let Some(function) = self.model.functions.get(index) else {
            return true;
        };
        // A function that calls itself is heavy: nothing bounds it.
        self.remember(index, true);
        let heavy = self.has_products(&function.body);
        self.remember(index, heavy);
        heavy
    }

    fn remember(&mut self, index: usize, heavy: bool) {
        if let Some(slot) = self.heavy_functions.get_mut(index) {
            *slot = Some(heavy);
        }
    }

    fn has_products(&mut self, graph: &Graph) -> bool {
        graph.ops().any(|id| {
            let op = graph.op(id);
            let inside = op.subgraphs().any(|g| self.has_products(g));
            inside
                || match schema::of(op) {
                    Some(known) => known.counts_macs(),
                    None => self.foreign(op).unknown > 0,
                }
        })
    }
}

/// The MACs of an operator from its sizes, with or without those that are assumed.
fn count_macs(
    op: &Op,
    inputs: &[Option<Sizes>],
    outputs: &[Option<Sizes>],
    assume: bool,
) -> Option<u64> {
    type Slots = SmallVec<[Option<SmallVec<[Option<u64>; 6]>>; 4]>;
    let dim = |&(n, assumed): &(u64, bool)| (assume || !assumed).then_some(n);
    let dims = |slots: &[Option<Sizes>]| -> Slots {
        let slots = slots.iter().map(Option::as_ref);
        slots
            .map(|sizes| sizes.map(|s| s.iter().map(dim).collect()))
            .collect()
    };
    let (inputs, outputs) = (dims(inputs), dims(outputs));
    let inputs: Vec<Option<&KnownDims>> = inputs.iter().map(|d| d.as_deref()).collect();
    let outputs: Vec<Option<&KnownDims>> = outputs.iter().map(|d| d.as_deref()).collect();
    schema::macs(op, &inputs, &outputs)
}

/// Whether an operator passes zeros of input 0 through as zeros and changes nothing else about
/// how many there are.
fn keeps_zeros(graph: &Graph, op: &Op) -> bool {
    if !op.domain().is_empty() {
        return false;
    }
    match &**op.op_type() {
        "Identity" | "Transpose" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Cast" => true,
        "DequantizeLinear" => match op.input(2) {
            None => true,
            Some(zero_point) => graph
                .tensor(zero_point)
                .is_some_and(|z| z.count_zeros() == z.len()),
        },
        _ => false,
    }
}

/// The constant trip count of a loop. The body may stop it earlier, so this is the most that
/// it runs; counts that no run reaches stand for loops that only the body stops.
fn trip_count(graph: &Graph, op: &Op) -> Option<u64> {
    let trips = constant_of(graph, op.input(0)?)?.to_i64s()?;
    match trips.as_slice() {
        [n] if *n < 1 << 31 => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn constant_of(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    graph.tensor(value).or_else(|| {
        let op = graph.op(graph.producer(value)?);
        op.is("Constant").then(|| op.tensor("value")).flatten()
    })
}

/// A constant as a parameter.
struct Weight {
    dtype: DType,
    elements: u64,
    bytes: u64,
    zeros: u64,
}

impl Weight {
    fn of_tensor(tensor: &Tensor, zeros: bool) -> Weight {
        Weight {
            dtype: tensor.dtype(),
            elements: tensor.len() as u64,
            bytes: tensor.byte_len() as u64,
            zeros: if zeros {
                tensor.count_zeros() as u64
            } else {
                0
            },
        }
    }

    fn of_constant(constant: &Constant, zeros: bool) -> Weight {
        match constant {
            Constant::Dense(tensor) => Weight::of_tensor(tensor, zeros),
            Constant::Sparse(sparse) => {
                let elements = crate::tensor::element_count(&sparse.dims).unwrap_or(usize::MAX);
                let stored = Weight::of_tensor(&sparse.values, zeros);
                let absent = (elements as u64).saturating_sub(stored.elements);
                Weight {
                    dtype: sparse.values.dtype(),
                    elements: elements as u64,
                    bytes: constant.byte_len() as u64,
                    zeros: if zeros {
                        absent.saturating_add(stored.zeros)
                    } else {
                        0
                    },
                }
            }
        }
    }

    fn of_constant_op(op: &Op, zeros: bool) -> Option<Weight> {
        let attr = op.attrs().iter().find(|a| {
            let name = a.name.strip_prefix("sparse_").unwrap_or(&a.name);
            name == "value" || name.starts_with("value_")
        })?;
        let plain = |dtype, elements: usize, size: usize, zero: usize| Weight {
            dtype,
            elements: elements as u64,
            bytes: elements.saturating_mul(size) as u64,
            zeros: if zeros { zero as u64 } else { 0 },
        };
        let float_zeros = |v: &[f32]| v.iter().filter(|v| **v == 0.0).count();
        let int_zeros = |v: &[i64]| v.iter().filter(|v| **v == 0).count();
        Some(match &attr.value {
            AttrValue::Tensor(t) => Weight::of_tensor(t, zeros),
            AttrValue::SparseTensor(s) => {
                let constant = Constant::Sparse(std::sync::Arc::new((**s).clone()));
                Weight::of_constant(&constant, zeros)
            }
            AttrValue::Float(v) => plain(DType::F32, 1, 4, float_zeros(&[*v])),
            AttrValue::Floats(v) => plain(DType::F32, v.len(), 4, float_zeros(v)),
            AttrValue::Int(v) => plain(DType::I64, 1, 8, int_zeros(&[*v])),
            AttrValue::Ints(v) => plain(DType::I64, v.len(), 8, int_zeros(v)),
            _ => return None,
        })
    }
}

/// Which values of a graph decide about shapes and positions only.
struct ShapeData<'a> {
    graph: &'a Graph,
    /// What is so of the values that graphs inside capture.
    captured: HashMap<ValueId, bool>,
    /// By [`ValueId::index`]; worked out only when a constant goes into a computation of shapes.
    flags: Option<Vec<bool>>,
}

/// What one use says about a value.
enum Verdict {
    Shape,
    Data,
    /// It goes into the operator's outputs, which decide.
    Outputs(OpId),
}

impl ShapeData<'_> {
    /// Whether the value decides about shapes or positions only: it is used, and every use is a
    /// shape or index input or, when `deep`, leads to nothing but such.
    fn holds(&mut self, value: ValueId, deep: bool) -> bool {
        let v = self.graph.value(value);
        if v.is_output() || v.uses().is_empty() {
            return false;
        }
        let mut open = false;
        for &u in v.uses() {
            match self.verdict(value, u) {
                Verdict::Shape => {}
                Verdict::Data => return false,
                Verdict::Outputs(_) if deep => open = true,
                Verdict::Outputs(_) => return false,
            }
        }
        if !open {
            return true;
        }
        if self.flags.is_none() {
            self.flags = Some(self.all());
        }
        let flags = self.flags.as_ref();
        flags.and_then(|f| f.get(value.index())) == Some(&true)
    }

    fn verdict(&self, value: ValueId, u: Use) -> Verdict {
        let op = self.graph.op(u.op);
        let slot = match u.port {
            Port::Input(slot) => slot as usize,
            Port::Output(_) => return Verdict::Data,
            Port::Capture => {
                return match self.captured.get(&value) {
                    Some(true) => Verdict::Shape,
                    _ => Verdict::Data,
                };
            }
        };
        let Some(known) = schema::of(op) else {
            return Verdict::Data;
        };
        match known.role(slot) {
            Role::Shape | Role::Index => Verdict::Shape,
            Role::Data | Role::Mask | Role::Parameter if carries_sizes(known.class) => {
                Verdict::Outputs(u.op)
            }
            _ => Verdict::Data,
        }
    }

    /// Goes through the graph from its end, so that outputs are decided before inputs.
    fn all(&self) -> Vec<bool> {
        let mut flags = vec![false; self.graph.id_bound()];
        let order = self
            .graph
            .topological_order()
            .unwrap_or_else(|_| self.graph.ops().collect());
        let mut decide = |value: ValueId| {
            let v = self.graph.value(value);
            let holds = !v.is_output()
                && !v.uses().is_empty()
                && v.uses().iter().all(|&u| match self.verdict(value, u) {
                    Verdict::Shape => true,
                    Verdict::Data => false,
                    Verdict::Outputs(op) => {
                        let outputs = self.graph.op(op).outputs().iter().flatten();
                        outputs
                            .copied()
                            .all(|o| flags.get(o.index()) == Some(&true))
                    }
                });
            if let Some(flag) = flags.get_mut(value.index()) {
                *flag = holds;
            }
        };
        for &id in order.iter().rev() {
            for output in self.graph.op(id).outputs().iter().flatten() {
                decide(*output);
            }
        }
        for value in self.graph.values() {
            if self.graph.producer(value).is_none() {
                decide(value);
            }
        }
        flags
    }
}

/// The classes that computations of shapes are made of.
fn carries_sizes(class: Class) -> bool {
    matches!(
        class,
        Class::Unary
            | Class::Binary
            | Class::Variadic
            | Class::Select
            | Class::Reduction
            | Class::Layout
            | Class::Index
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::text::parse_model;

    fn costs(text: &str) -> Costs {
        let model = parse_model(text).unwrap();
        let options = CostOptions {
            zeros: true,
            ..CostOptions::default()
        };
        Costs::compute(&model, &options, &mut AnalysisCache::new())
    }

    fn cost(text: &str) -> ModelCost {
        costs(text).total().clone()
    }

    #[test]
    fn a_small_network() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (float[1,3,8,8] x) => (float[1,5] y)
            <float[4,3,3,3] w = ones, float[4] b = zeros, int64[2] shape = {1, 256},
             float[256,5] v = ones, float[1,4,8,8] c, float[1,4,8,8] r, float[1,256] f>
            {
                c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
                r = Relu (c)
                f = Reshape (r, shape)
                y = Gemm (f, v)
            }"#,
        );
        assert_eq!((c.nodes, c.constants, c.opset), (4, 0, 17));
        let names: Vec<&str> = c.operators.keys().map(String::as_str).collect();
        assert_eq!(names, ["Conv", "Gemm", "Relu", "Reshape"]);
        // The shape is no parameter.
        assert_eq!(c.parameters, 4 * 27 + 4 + 256 * 5);
        assert_eq!(c.weight_bytes, 4 * c.parameters);
        assert_eq!(c.zeros, Some(4));
        assert_eq!(c.macs, 4 * 64 * 27 + 256 * 5);
        assert_eq!(c.effective_macs, Some(c.macs));
        assert_eq!((c.macs_assumed, c.macs_unknown), (false, 0));
    }

    #[test]
    fn the_keys_of_the_json_are_stable() {
        let c = serde_json::to_value(cost(
            "<opset_import: [\"\": 13]> g (float[2] x) => (float[2] y) { y = Abs (x) }",
        ));
        let c = c.unwrap();
        for key in [
            "nodes",
            "operators",
            "parameters",
            "weight_bytes",
            "macs",
            "opset",
        ] {
            assert!(!c[key].is_null(), "{key}");
        }
        assert_eq!(c["operators"]["Abs"], 1);
    }

    #[test]
    fn zeros_of_the_weight_lower_the_effective_macs() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (float[1,4] x) => (float[1,2] z)
            <float[2,4] w = {1, 0, 2, 0, 0, 0, 0, 3}, float[4,2] t, int8[2,2] q = {1, 0, 0, 0},
             float s = {0.5}, int8 p = {0}, float[2,2] d, float[1,2] y>
            {
                t = Transpose <perm = [1, 0]> (w)
                y = MatMul (x, t)
                d = DequantizeLinear (q, s, p)
                z = MatMul (y, d)
            }"#,
        );
        assert_eq!(c.macs, 8 + 4);
        assert_eq!(c.effective_macs, Some(3 + 1));
        assert_eq!(c.zeros, Some(5 + 3 + 1));
    }

    #[test]
    fn zeros_are_counted_on_request() {
        let model = parse_model(
            "<opset_import: [\"\": 13]> g (float[2] x) => (float[2] y)
             <float[2] w = zeros> { y = Add (x, w) }",
        )
        .unwrap();
        let c = AnalysisCache::new().get::<Costs>(&model);
        assert_eq!((c.total().zeros, c.total().effective_macs), (None, None));
        assert_eq!(c.total().parameters, 2);
    }

    #[test]
    fn what_decides_about_shapes_is_no_parameter() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (float[N,4] x, int64[M] ids) => (float[N,2,2] y, float[M,3] e)
            <int64[1] start = {0}, int64[1] end = {1}, int64[2] rest = {2, 2}, int64 two = {2},
             float[7,3] table = ones, int64[1] position = {1}>
            {
                shape = Shape (x)
                n = Slice (shape, start, end)
                doubled = Mul (n, two)
                one = Constant <value_ints = [2]> ()
                same = Div (doubled, one)
                target = Concat <axis = 0> (same, rest)
                y = Reshape (x, target)
                moved = Add (ids, position)
                e = Gather (table, moved)
            }"#,
        );
        assert_eq!(c.parameters, 21);
        assert_eq!((c.nodes, c.constants), (8, 1));
    }

    #[test]
    fn integers_that_are_data_are_parameters() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (int64[3] x) => (int64[3] y, int64[3] shape)
            <int64[3] offset = {1, 2, 3}, bool[3] mask = ones, int64[3] other = {4, 5, 6}>
            {
                s = Add (x, offset)
                y = Where (mask, s, x)
                shape = Identity (other)
            }"#,
        );
        // Booleans are not counted; what leaves the model is data.
        assert_eq!(c.parameters, 6);
    }

    #[test]
    fn shared_and_sparse_weights_count_once_and_whole() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (float[1,3] x) => (float[1,3] z)
            <float[3,3] w = ones, sparse_tensor(float[5]) s = float[2] {1, 2} at int64[2] {0, 3},
             float[1,3] y>
            {
                y = MatMul (x, w)
                z = MatMul (y, w)
            }"#,
        );
        assert_eq!(c.parameters, 9 + 5);
        assert_eq!(c.zeros, Some(3));
        assert_eq!(c.macs, 18);
    }

    #[test]
    fn open_sizes_count_as_one_and_are_said() {
        let c = cost(
            r#"<opset_import: ["": 17]>
            net (float[N,4] x) => (float[N,2] y) <float[4,2] w = ones> { y = MatMul (x, w) }"#,
        );
        assert_eq!((c.macs, c.macs_assumed, c.macs_unknown), (8, true, 0));
    }

    #[test]
    fn open_sizes_can_be_given() {
        let model = parse_model(
            r#"<opset_import: ["": 17]>
            net (float[N,4] x) => (float[M,2] y)
            <float[4,2] w = ones>
            { d = Concat <axis = 0> (x, x) y = MatMul (d, w) }"#,
        )
        .unwrap();
        let mut options = CostOptions::default();
        let mut macs = |pins: &[(&str, i64)]| {
            options.shapes.pins = pins.iter().map(|&(n, v)| (n.to_owned(), v)).collect();
            let costs = AnalysisCache::new().get_with::<Costs>(&model, &options);
            (costs.total().macs, costs.total().macs_assumed)
        };
        // Two rows for each of N.
        assert_eq!(macs(&[]), (16, true));
        assert_eq!(macs(&[("N", 10)]), (160, false));
    }

    #[test]
    fn what_can_not_be_counted_is_said() {
        let c = cost(
            r#"<opset_import: ["": 17, "com.example": 1]>
            net (float[1,4] x) => (float[] y) <float[4,2] w = ones>
            {
                z = com.example.Mystery (x)
                y = MatMul (z, w)
            }"#,
        );
        assert_eq!((c.macs, c.macs_unknown), (0, 2));
        assert_eq!(c.operators["com.example::Mystery"], 1);
    }

    #[test]
    fn the_costlier_branch_counts_and_loops_repeat() {
        let costs = costs(
            r#"<opset_import: ["": 17]>
            net (float[1,4] x, bool c) => (float[1,4] y, float[1,4] z)
            <float[4,4] w = ones, int64 five = {5}>
            {
                y = If (c) <
                    then_branch = big () => (float[1,4] a) <float[1,4] u> {
                        u = MatMul (x, w)
                        a = MatMul (u, w)
                    },
                    else_branch = small () => (float[1,4] b) { b = MatMul (x, w) }
                >
                z = Loop (five, c, x) <
                    body = step (int64 i, bool go, float[1,4] s) => (bool go_on, float[1,4] t) {
                        go_on = Identity (go)
                        t = MatMul (s, w)
                    }
                >
            }"#,
        );
        let c = costs.total();
        assert_eq!(c.macs, 2 * 16 + 5 * 16);
        assert!(!c.macs_assumed);
        assert_eq!((c.nodes, c.operators["MatMul"]), (7, 4));
        assert_eq!(c.parameters, 16);
    }

    #[test]
    fn calls_are_known_only_when_the_function_does_no_products() {
        let c = cost(
            r#"<ir_version: 10, opset_import: ["": 17, "local": 1]>
            net (float[1,4] x) => (float[1,4] z) { y = local.light (x) z = local.heavy (y) }
            <domain: "local", opset_import: ["": 17]>
            light (a) => (b) { b = Relu (a) }
            <domain: "local", opset_import: ["": 17]>
            heavy (a) => (b) { w = Constant <value = float[4,4] {
                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}> () b = MatMul (a, w) }"#,
        );
        assert_eq!((c.nodes, c.macs_unknown, c.parameters), (2, 1, 16));
    }
}

//! A cut of a graph as the ONNX message that tract loads.
//!
//! Only what the outputs need is taken. Values and operators get names of their own, `%7%` and
//! `@7@`, which no model can clash with and which are found again in tract's messages. Large
//! constants don't pass through the message: they are declared as inputs, and the caller puts
//! the tensors in their places.
//!
//! What tract can't load, or would compute wrongly, is rewritten here:
//! - calls of local functions are inlined, and an `If` with a constant condition becomes its branch;
//! - `Constant` operators become constants; sparse, packed and blocked constants become dense;
//! - `QuantizeLinear` with `output_dtype` and no zero point gets the zero point;
//! - `ConstantOfShape` without a value gets its float zero, which tract takes for a double;
//! - `DequantizeLinear` that reaches a `QuantizeLinear` through operators that tract mistakes for
//!   element-wise ones is taken apart, so that no lookup table is made of the chain;
//! - operators of domains that tract doesn't know are refused, since tract would take a standard
//!   operator of the same type instead.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use paring_ir::analysis::AnalysisCache;
use paring_ir::analysis::shapes::{ShapeOptions, Shapes};
use paring_ir::engine::{Cut, EngineError};
use paring_ir::tensor::{Dims, element_count};
use paring_ir::{
    AttrValue, Attribute, DType, Dim, Function, Graph, Model, Op, OpId, Tensor, ValueId, ValueType,
    escape,
};
use tract_onnx::pb;

use super::constants;

/// How deep functions and graphs may be nested.
const DEPTH_LIMIT: usize = 32;
/// How many operators functions may expand to.
const NODE_LIMIT: usize = 4_000_000;
/// The most bytes of one tensor. tract allocates what an operator asks for, and where that fails
/// the process ends.
const TENSOR_LIMIT: usize = 1 << 33;

/// What an operator of the message stands for.
pub(crate) struct Label {
    pub(crate) text: String,
    /// The name alone.
    pub(crate) name: String,
    pub(crate) op: Option<OpId>,
}

/// Where an output of the cut comes from.
pub(crate) enum Output {
    /// The position among the computed outputs.
    Computed(usize),
    /// It is an input of the cut.
    Input(usize),
    /// It is a constant.
    Constant(Tensor),
}

/// An input of the message.
pub(crate) struct Input {
    /// The value's name in the model.
    pub(crate) label: String,
    /// The name in the message.
    pub(crate) name: String,
    pub(crate) dtype: Option<DType>,
    pub(crate) dims: Dims,
}

/// A cut, ready for tract.
pub(crate) struct Lowered {
    pub(crate) proto: pb::ModelProto,
    pub(crate) inputs: Vec<Input>,
    /// Constants by their names in the message, which declares them as inputs.
    pub(crate) constants: Vec<(String, Tensor)>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) computed: usize,
    pub(crate) labels: Labels,
    pub(crate) notes: Vec<String>,
}

/// The meanings of the names in the message.
#[derive(Default)]
pub(crate) struct Labels {
    pub(crate) ops: Vec<Label>,
    pub(crate) values: Vec<String>,
}

impl Labels {
    /// The operator that a name or message of tract mentions last, which is the innermost.
    pub(crate) fn last_op(&self, text: &str) -> Option<&Label> {
        let mut found = None;
        scan(text, '@', &mut |i| {
            found = self.ops.get(i).or(found);
            None
        });
        found
    }

    /// A message of tract with the names of the model.
    pub(crate) fn translate(&self, text: &str) -> String {
        let text = scan(text, '@', &mut |i| Some(self.ops.get(i)?.name.clone()));
        scan(&text, '%', &mut |i| self.values.get(i).cloned())
    }
}

/// Replaces every number between two marks by what `f` says, where it says something.
fn scan(text: &str, mark: char, f: &mut dyn FnMut(usize) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(mark) {
        let (before, after) = rest.split_at(start);
        let after = after.strip_prefix(mark).unwrap_or_default();
        out.push_str(before);
        let replaced = after.find(mark).and_then(|end| {
            let (digits, tail) = after.split_at(end);
            let name = f(digits.parse().ok()?)?;
            Some((name, tail.strip_prefix(mark).unwrap_or_default()))
        });
        match replaced {
            Some((name, tail)) => {
                out.push_str(&name);
                rest = tail;
            }
            None => {
                out.push(mark);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// What a value is in the message.
#[derive(Clone)]
enum Binding {
    Name(String),
    Const(Tensor),
    /// An optional input that a function's caller left out.
    Absent,
}

type Scope = HashMap<ValueId, Binding>;
type Bindings<'a> = HashMap<&'a str, &'a AttrValue>;

/// A graph of the message that is being filled.
#[derive(Default)]
struct Target {
    nodes: Vec<pb::NodeProto>,
    constants: Vec<(String, Tensor)>,
    /// The names of constants, by the call of a function that they belong to.
    names: HashMap<(usize, ValueId), String>,
}

/// The graph that an operator stands in.
#[derive(Clone, Copy)]
struct Place<'a> {
    graph: &'a Graph,
    attributes: &'a Bindings<'a>,
    /// The operator of the main graph that everything here belongs to.
    owner: Option<OpId>,
    depth: usize,
    /// Which call of a function this is in; 0 is the main graph.
    call: usize,
}

#[derive(Default)]
struct Counts {
    functions: BTreeSet<String>,
    branches: usize,
    packed: usize,
    sparse: usize,
    dequantized: usize,
    cast: usize,
    taken_apart: usize,
}

pub(crate) struct Lowering<'a> {
    engine: &'a str,
    known: &'a dyn Fn(&str) -> bool,
    functions: HashMap<(&'a str, &'a str, &'a str), &'a Function>,
    model: &'a Model,
    labels: Labels,
    nodes: usize,
    calls: usize,
    counts: Counts,
}

/// Operators of other domains than the standard one that tract has.
fn foreign_operator(domain: &str, op_type: &str) -> bool {
    match domain {
        "ai.onnx.ml" => matches!(
            op_type,
            "ArrayFeatureExtractor"
                | "CategoryMapper"
                | "LinearClassifier"
                | "LinearRegressor"
                | "Normalizer"
                | "TreeEnsembleClassifier"
        ),
        "com.microsoft" => matches!(
            op_type,
            "BiasGelu"
                | "FastGelu"
                | "GatherBlockQuantized"
                | "Gelu"
                | "GroupQueryAttention"
                | "MatMulNBits"
                | "MultiHeadAttention"
                | "QuickGelu"
                | "RotaryEmbedding"
                | "SimplifiedLayerNormalization"
                | "SkipLayerNormalization"
                | "SkipSimplifiedLayerNormalization"
        ),
        _ => false,
    }
}

/// Lowers a cut. `known` says whether tract has an operator of a type.
pub(crate) fn lower<'a>(
    engine: &'a str,
    known: &'a dyn Fn(&str) -> bool,
    cut: &Cut<'a>,
) -> Result<Lowered, EngineError> {
    let functions = cut.model.functions.iter();
    let lowering = Lowering {
        engine,
        known,
        functions: functions
            .map(|f| ((&*f.domain, &*f.name, &*f.overload), f))
            .collect(),
        model: cut.model,
        labels: Labels::default(),
        nodes: 0,
        calls: 0,
        counts: Counts::default(),
    };
    lowering.run(cut)
}

/// The operators of a graph that `outputs` need when `given` are there already.
fn needed(graph: &Graph, outputs: &[ValueId], given: &HashSet<ValueId>) -> HashSet<OpId> {
    let mut ops = HashSet::new();
    let mut stack: Vec<ValueId> = outputs.to_vec();
    let mut seen: HashSet<ValueId> = HashSet::new();
    while let Some(v) = stack.pop() {
        if given.contains(&v) || !seen.insert(v) {
            continue;
        }
        let Some(op) = graph.producer(v) else {
            continue;
        };
        if ops.insert(op)
            && let Some(o) = graph.get_op(op)
        {
            stack.extend(o.inputs().flatten());
            stack.extend(o.captures());
        }
    }
    ops
}

/// Refuses a cut that makes a tensor too large to be tried, as far as shapes tell for a cut that
/// starts at the inputs of the model.
fn check_sizes(cut: &Cut<'_>) -> Result<(), EngineError> {
    let graph = &cut.model.graph;
    let is_input = |v: &ValueId| graph.get_value(*v).is_some_and(|v| v.is_input());
    if cut.inputs.is_empty() || !cut.inputs.iter().all(is_input) {
        return Ok(());
    }
    let named = cut.inputs.iter().zip(&cut.shapes).map(|(&v, dims)| {
        let dims = dims.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX));
        (graph.value(v).name().to_string(), dims.collect())
    });
    let options = ShapeOptions {
        input_shapes: named.collect(),
        ..ShapeOptions::default()
    };
    let shapes = Shapes::infer(cut.model, &options);
    let given: HashSet<ValueId> = cut.inputs.iter().copied().collect();
    let mut ops: Vec<OpId> = needed(graph, &cut.outputs, &given).into_iter().collect();
    ops.sort_unstable();
    for op in ops {
        for &v in graph.op(op).outputs().iter().flatten() {
            let Some(dims) = shapes.known_dims(v) else {
                continue;
            };
            let bits = shapes.dtype(v).and_then(DType::bits).unwrap_or(64);
            let bytes = element_count(&dims).and_then(|n| n.checked_mul(bits.div_ceil(8) as usize));
            if bytes.is_none_or(|b| b > TENSOR_LIMIT) {
                return Err(EngineError::Budget(format!(
                    "{} \"{}\" would make a tensor of shape {dims:?}, which is too large to be run",
                    escape(graph.op(op).op_type()),
                    escape(&graph.op_label(op))
                )));
            }
        }
    }
    Ok(())
}

impl<'a> Lowering<'a> {
    fn run(mut self, cut: &Cut<'a>) -> Result<Lowered, EngineError> {
        let graph = &cut.model.graph;
        let mut scope = Scope::new();
        let inputs = self.inputs(cut, &mut scope)?;
        check_sizes(cut)?;
        let given: HashSet<ValueId> = cut.inputs.iter().copied().collect();
        let mut target = Target::default();
        let attributes = Bindings::new();
        let place = Place {
            graph,
            attributes: &attributes,
            owner: None,
            depth: 0,
            call: 0,
        };
        self.body(place, &cut.outputs, &given, &mut scope, &mut target)?;
        let mut outputs = Vec::with_capacity(cut.outputs.len());
        let mut computed: Vec<String> = Vec::new();
        for &v in &cut.outputs {
            outputs.push(match self.lookup(graph, &scope, v) {
                Some(Binding::Const(t)) => Output::Constant(t),
                Some(Binding::Name(name)) => match inputs.iter().position(|i| i.name == name) {
                    Some(i) => Output::Input(i),
                    None => {
                        let at = computed.iter().position(|n| *n == name);
                        Output::Computed(at.unwrap_or_else(|| {
                            computed.push(name);
                            computed.len() - 1
                        }))
                    }
                },
                Some(Binding::Absent) | None => return Err(self.not_closed(graph, v)),
            });
        }
        let count = computed.len();
        let proto = self.message(&inputs, &mut target, computed);
        Ok(Lowered {
            proto,
            inputs,
            constants: target.constants,
            outputs,
            computed: count,
            notes: self.notes(),
            labels: self.labels,
        })
    }

    fn inputs(&mut self, cut: &Cut<'a>, scope: &mut Scope) -> Result<Vec<Input>, EngineError> {
        if cut.inputs.len() != cut.shapes.len() {
            return Err(EngineError::Cut(format!(
                "{} inputs with {} shapes",
                cut.inputs.len(),
                cut.shapes.len()
            )));
        }
        let mut inputs = Vec::with_capacity(cut.inputs.len());
        // Inferred only for values that the file gives no type.
        let mut shapes: Option<Arc<Shapes>> = None;
        for (&v, dims) in cut.inputs.iter().zip(&cut.shapes) {
            let value = cut.model.graph.get_value(v).ok_or_else(|| {
                EngineError::Cut(format!("{v:?} is not a value of the main graph"))
            })?;
            let label = escape(value.name());
            let bytes = element_count(dims).and_then(|n| n.checked_mul(8));
            if bytes.is_none_or(|b| isize::try_from(b).is_err()) {
                return Err(EngineError::Budget(format!(
                    "input \"{label}\" of shape {dims:?} has too many elements"
                )));
            }
            let name = self.value_name(value.name());
            if scope.insert(v, Binding::Name(name.clone())).is_some() {
                return Err(EngineError::Cut(format!("\"{label}\" is an input twice")));
            }
            let dtype = value.known_type().and_then(|t| t.dtype());
            let dtype = dtype.or_else(|| {
                let shapes =
                    shapes.get_or_insert_with(|| AnalysisCache::new().get::<Shapes>(cut.model));
                shapes.dtype(v)
            });
            if let Some(d) = dtype.filter(|&d| !constants::loadable(d)) {
                return Err(EngineError::Unsupported {
                    engine: self.engine.to_string(),
                    place: format!("input \"{label}\""),
                    reason: format!("it has no element type {d}"),
                });
            }
            inputs.push(Input {
                label,
                name,
                dtype,
                dims: dims.clone(),
            });
        }
        Ok(inputs)
    }

    fn message(
        &self,
        inputs: &[Input],
        target: &mut Target,
        computed: Vec<String>,
    ) -> pb::ModelProto {
        let declared = inputs
            .iter()
            .map(|i| value_info(&i.name, i.dtype, Some(&i.dims)));
        // Their types are replaced together with the operators.
        let constants = target
            .constants
            .iter()
            .map(|(n, _)| value_info(n, None, None));
        let opsets = self.model.opsets.iter().map(|o| pb::OperatorSetIdProto {
            domain: o.domain.to_string(),
            version: o.version,
        });
        pb::ModelProto {
            ir_version: self.model.ir_version,
            opset_import: opsets.collect(),
            graph: Some(pb::GraphProto {
                name: "cut".to_string(),
                input: declared.chain(constants).collect(),
                output: computed.into_iter().map(bare_info).collect(),
                node: std::mem::take(&mut target.nodes),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn notes(&self) -> Vec<String> {
        let c = &self.counts;
        let mut notes = Vec::new();
        if !c.functions.is_empty() {
            let names: Vec<&str> = c.functions.iter().map(String::as_str).collect();
            notes.push(format!("inlined functions: {}", names.join(", ")));
        }
        let mut counted = |n: usize, before: &str, what: &str, after: &str| {
            if n > 0 {
                let plural = if n == 1 { "" } else { "s" };
                notes.push(format!("{before} {n} {what}{plural}{after}"));
            }
        };
        counted(
            c.branches,
            "replaced",
            "If operator",
            " with a constant condition by the branch",
        );
        counted(c.packed, "widened", "packed constant", "");
        counted(c.sparse, "wrote out", "sparse constant", "");
        counted(
            c.dequantized,
            "dequantized",
            "constant",
            " ahead of the run",
        );
        counted(c.cast, "cast", "constant", " ahead of the run");
        counted(
            c.taken_apart,
            "kept",
            "DequantizeLinear operator",
            " from becoming a lookup table",
        );
        notes
    }

    fn value_name(&mut self, name: &str) -> String {
        self.labels.values.push(escape(name));
        format!("%{}%", self.labels.values.len() - 1)
    }

    fn node_name(&mut self, place: Place<'_>, op: OpId) -> String {
        let o = place.graph.op(op);
        let name = escape(&place.graph.op_label(op));
        let outer = place.owner.map(|owner| {
            let main = &self.model.graph;
            let kind = main.get_op(owner).map_or("?", |o| o.op_type());
            format!("{} \"{}\" / ", escape(kind), escape(&main.op_label(owner)))
        });
        self.labels.ops.push(Label {
            text: format!(
                "{}{} \"{name}\"",
                outer.unwrap_or_default(),
                escape(o.op_type())
            ),
            name,
            op: Some(place.owner.unwrap_or(op)),
        });
        format!("@{}@", self.labels.ops.len() - 1)
    }

    fn unsupported(&self, place: Place<'_>, op: OpId, reason: impl Into<String>) -> EngineError {
        let o = place.graph.op(op);
        EngineError::Unsupported {
            engine: self.engine.to_string(),
            place: format!(
                "{} / {} \"{}\"",
                escape(place.graph.name()),
                escape(o.op_type()),
                escape(&place.graph.op_label(op))
            ),
            reason: reason.into(),
        }
    }

    fn not_closed(&self, graph: &Graph, v: ValueId) -> EngineError {
        let name = graph.get_value(v).map_or("?", |v| v.name());
        EngineError::Cut(format!(
            "\"{}\" is neither computed nor constant nor given",
            escape(name)
        ))
    }

    /// What a value of `graph` is, when that is known by now.
    fn lookup(&mut self, graph: &Graph, scope: &Scope, v: ValueId) -> Option<Binding> {
        if let Some(b) = scope.get(&v) {
            return Some(b.clone());
        }
        let constant = graph.get_value(v)?.as_constant()?;
        match constant {
            paring_ir::Constant::Dense(t) => Some(Binding::Const(t.clone())),
            paring_ir::Constant::Sparse(_) => {
                let t = constants::dense(constant).ok()?;
                self.counts.sparse += 1;
                Some(Binding::Const(t))
            }
        }
    }

    fn constant(&mut self, graph: &Graph, scope: &Scope, v: Option<ValueId>) -> Option<Tensor> {
        match self.lookup(graph, scope, v?)? {
            Binding::Const(t) => Some(t),
            _ => None,
        }
    }

    /// The name under which an operator of `target` takes a value.
    fn name_of(
        &mut self,
        place: Place<'_>,
        op: OpId,
        v: ValueId,
        scope: &Scope,
        target: &mut Target,
    ) -> Result<String, EngineError> {
        if let Some(Binding::Name(name)) = scope.get(&v) {
            return Ok(name.clone());
        }
        if let Some(name) = target.names.get(&(place.call, v)) {
            return Ok(name.clone());
        }
        let tensor = match self.lookup(place.graph, scope, v) {
            Some(Binding::Const(t)) => t,
            Some(Binding::Name(name)) => return Ok(name),
            Some(Binding::Absent) => return Ok(String::new()),
            None => return Err(self.missing(place, op, v)),
        };
        let wide = constants::widen_packed(&tensor).map_err(|e| self.unsupported(place, op, e))?;
        if wide.dtype() != tensor.dtype() {
            self.counts.packed += 1;
            if place.graph.op(op).is("QuantizeLinear") {
                let d = tensor.dtype();
                return Err(self.unsupported(place, op, format!("it can't quantize to {d}")));
            }
        }
        if !constants::loadable(wide.dtype()) {
            let d = wide.dtype();
            return Err(self.unsupported(place, op, format!("it has no element type {d}")));
        }
        let hint = place
            .graph
            .get_value(v)
            .map_or("?", |v| v.name())
            .to_string();
        let name = self.value_name(&hint);
        target.constants.push((name.clone(), wide));
        target.names.insert((place.call, v), name.clone());
        Ok(name)
    }

    fn missing(&self, place: Place<'_>, op: OpId, v: ValueId) -> EngineError {
        let value = place.graph.get_value(v);
        if let Some(paring_ir::Constant::Sparse(s)) = value.and_then(|v| v.as_constant())
            && let Err(e) = constants::densify(s)
        {
            return self.unsupported(place, op, e);
        }
        self.not_closed(place.graph, v)
    }

    /// Emits what the outputs of a graph need.
    fn body(
        &mut self,
        place: Place<'_>,
        outputs: &[ValueId],
        given: &HashSet<ValueId>,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<(), EngineError> {
        if place.depth > DEPTH_LIMIT {
            return Err(EngineError::Budget(format!(
                "functions and graphs are nested more than {DEPTH_LIMIT} deep at \"{}\"",
                escape(place.graph.name())
            )));
        }
        let needed = needed(place.graph, outputs, given);
        let order = place
            .graph
            .topological_order()
            .map_err(|e| EngineError::Unsupported {
                engine: self.engine.to_string(),
                place: format!("graph \"{}\"", escape(place.graph.name())),
                reason: e.to_string(),
            })?;
        for op in order.into_iter().filter(|op| needed.contains(op)) {
            self.nodes += 1;
            if self.nodes > NODE_LIMIT {
                return Err(EngineError::Budget(format!(
                    "functions expand to more than {NODE_LIMIT} operators"
                )));
            }
            self.operator(place, op, scope, target)?;
        }
        Ok(())
    }

    fn operator(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<(), EngineError> {
        let o = place.graph.op(op);
        let key = (&**o.domain(), &**o.op_type(), o.overload());
        if let Some(function) = self.functions.get(&key).copied() {
            return self.call(place, op, function, scope, target);
        }
        if !o.domain().is_empty() && !foreign_operator(o.domain(), o.op_type()) {
            let reason = format!(
                "it has no operators of domain \"{}\" by that name",
                escape(o.domain())
            );
            return Err(self.unsupported(place, op, reason));
        }
        if !(self.known)(o.op_type()) {
            let reason = "it has no operator of this type";
            return Err(self.unsupported(place, op, reason));
        }
        if o.domain().is_empty() {
            match &**o.op_type() {
                "Constant" => return self.constant_operator(place, op, scope),
                "If" if self.branch(place, op, scope, target)? => return Ok(()),
                "DequantizeLinear" if self.dequantize(place, op, scope, target)? => return Ok(()),
                "Cast" if self.cast(place, op, scope)? => return Ok(()),
                "ConstantOfShape" => self.check_fill(place, op, scope)?,
                _ => {}
            }
        }
        self.node(place, op, scope, target)
    }

    /// Emits an operator as it is, with its graphs.
    fn node(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<(), EngineError> {
        let o = place.graph.op(op);
        let mut input = Vec::with_capacity(o.input_count());
        for v in o.inputs() {
            input.push(match v {
                Some(v) => self.name_of(place, op, v, scope, target)?,
                None => String::new(),
            });
        }
        if o.is("QuantizeLinear") && input.len() == 2 {
            input.extend(self.missing_zero_point(place, op, scope, target)?);
        }
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        let mut attribute = Vec::with_capacity(o.attrs().len());
        for a in o.attrs() {
            attribute.extend(self.attribute(place, op, a, scope)?);
        }
        if o.is("ConstantOfShape") && self.attr(place, op, "value").is_none() {
            attribute.push(pb::AttributeProto {
                name: "value".to_string(),
                r#type: paring_ir::AttrKind::Tensor.to_onnx(),
                t: Some(self.attribute_tensor(place, op, &Tensor::vector(vec![0f32]))?),
                ..Default::default()
            });
        }
        let mut output: Vec<String> = Vec::with_capacity(o.outputs().len());
        for v in o.outputs() {
            output.push(match v {
                Some(v) => self.bind(place.graph, *v, scope),
                None => String::new(),
            });
        }
        while output.last().is_some_and(String::is_empty) {
            output.pop();
        }
        target.nodes.push(pb::NodeProto {
            name: self.node_name(place, op),
            op_type: o.op_type().to_string(),
            domain: o.domain().to_string(),
            input,
            output,
            attribute,
            ..Default::default()
        });
        Ok(())
    }

    fn bind(&mut self, graph: &Graph, v: ValueId, scope: &mut Scope) -> String {
        let hint = graph.get_value(v).map_or("?", |v| v.name()).to_string();
        let name = self.value_name(&hint);
        scope.insert(v, Binding::Name(name.clone()));
        name
    }

    /// The zero point that gives `output_dtype` effect.
    fn missing_zero_point(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &Scope,
        target: &mut Target,
    ) -> Result<Option<String>, EngineError> {
        let code = match self.attr(place, op, "output_dtype") {
            Some(AttrValue::Int(code)) => i32::try_from(*code).unwrap_or(-1),
            _ => return Ok(None),
        };
        let scale = self.constant(place.graph, scope, place.graph.op(op).input(1));
        let len = scale.map_or(1, |s| s.len());
        let zero = match DType::from_onnx(code) {
            _ if code == 0 => return Ok(None),
            Some(DType::U8) => Tensor::vector(vec![0u8; len]),
            Some(DType::I8) => Tensor::vector(vec![0i8; len]),
            Some(d) => {
                return Err(self.unsupported(place, op, format!("it can't quantize to {d}")));
            }
            None => {
                return Err(self.unsupported(place, op, format!("output_dtype {code} is unknown")));
            }
        };
        let name = self.value_name("zero point");
        target.constants.push((name.clone(), zero));
        Ok(Some(name))
    }

    /// The attribute of an operator, with the references of a function's body resolved.
    fn attr<'b>(&self, place: Place<'b>, op: OpId, name: &str) -> Option<&'b AttrValue> {
        match place.graph.get_op(op)?.attr(name)? {
            AttrValue::Ref { name, .. } => place.attributes.get(&**name).copied(),
            value => Some(value),
        }
    }

    fn constant_operator(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &mut Scope,
    ) -> Result<(), EngineError> {
        let o = place.graph.op(op);
        let mut found = None;
        for a in o.attrs() {
            let Some(value) = self.attr(place, op, &a.name) else {
                continue;
            };
            let tensor = match (&*a.name, value) {
                ("value", AttrValue::Tensor(t)) => Ok(t.clone()),
                ("sparse_value", AttrValue::SparseTensor(s)) => {
                    self.counts.sparse += 1;
                    constants::densify(s)
                }
                ("value_int", AttrValue::Int(v)) => Ok(Tensor::scalar(*v)),
                ("value_ints", AttrValue::Ints(v)) => Ok(Tensor::vector(v.clone())),
                ("value_float", AttrValue::Float(v)) => Ok(Tensor::scalar(*v)),
                ("value_floats", AttrValue::Floats(v)) => Ok(Tensor::vector(v.clone())),
                ("value_string", AttrValue::String(s)) => {
                    Tensor::from_strings([], [s.clone()]).map_err(|e| e.to_string())
                }
                ("value_strings", AttrValue::Strings(s)) => {
                    Tensor::from_strings([s.len()], s.iter().cloned()).map_err(|e| e.to_string())
                }
                _ => continue,
            };
            found = Some(tensor.map_err(|e| self.unsupported(place, op, e))?);
        }
        let tensor = found.ok_or_else(|| self.unsupported(place, op, "it holds no value"))?;
        if let Some(v) = o.output(0) {
            scope.insert(v, Binding::Const(tensor));
        }
        Ok(())
    }

    fn check_fill(&mut self, place: Place<'_>, op: OpId, scope: &Scope) -> Result<(), EngineError> {
        let shape = self.constant(place.graph, scope, place.graph.op(op).input(0));
        let Some(dims) = shape.and_then(|t| t.to_i64s()) else {
            return Ok(());
        };
        let fits = dims
            .iter()
            .map(|&d| usize::try_from(d).ok())
            .collect::<Option<Vec<usize>>>()
            .and_then(|dims| element_count(&dims)?.checked_mul(8))
            .is_some_and(|bytes| bytes <= TENSOR_LIMIT);
        if fits {
            return Ok(());
        }
        Err(EngineError::Budget(format!(
            "ConstantOfShape \"{}\" would make a tensor of shape {dims:?}, which is too large to be run",
            escape(&place.graph.op_label(op))
        )))
    }

    /// Casts a constant whose type tract doesn't have.
    fn cast(&mut self, place: Place<'_>, op: OpId, scope: &mut Scope) -> Result<bool, EngineError> {
        let o = place.graph.op(op);
        let Some(x) = self.constant(place.graph, scope, o.input(0)) else {
            return Ok(false);
        };
        if constants::loadable(x.dtype()) || x.dtype().is_integer() {
            return Ok(false);
        }
        let to = match self.attr(place, op, "to") {
            Some(AttrValue::Int(v)) => i32::try_from(*v).ok().and_then(DType::from_onnx),
            _ => None,
        };
        let to =
            to.ok_or_else(|| self.unsupported(place, op, "the attribute \"to\" is no type"))?;
        let y = constants::cast(&x, to).map_err(|e| self.unsupported(place, op, e))?;
        self.counts.cast += 1;
        if let Some(v) = o.output(0) {
            scope.insert(v, Binding::Const(y));
        }
        Ok(true)
    }

    /// Dequantizes constants that tract can't, and takes apart what must not become a lookup table.
    fn dequantize(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<bool, EngineError> {
        let o = place.graph.op(op);
        let int = |l: &Self, name: &str, default: i64| match l.attr(place, op, name) {
            Some(AttrValue::Int(v)) => *v,
            _ => default,
        };
        let (axis, block) = (int(self, "axis", 1), int(self, "block_size", 0));
        let [x, scale, zero] =
            [0, 1, 2].map(|slot| self.constant(place.graph, scope, o.input(slot)));
        let Some(scale) = scale.filter(|_| o.input(2).is_none() || zero.is_some()) else {
            return Ok(false);
        };
        if let Some(x) = &x {
            let simple = matches!(x.dtype(), DType::I8 | DType::U8 | DType::I32);
            if block == 0 && simple && scale.dtype() == DType::F32 {
                return Ok(false);
            }
            let y = constants::dequantize(x, &scale, zero.as_ref(), axis, block)
                .map_err(|e| self.unsupported(place, op, e))?;
            self.counts.dequantized += 1;
            if let Some(v) = o.output(0) {
                scope.insert(v, Binding::Const(y));
            }
            return Ok(true);
        }
        if scale.len() != 1 || scale.dtype() != DType::F32 || !becomes_wrong_table(place.graph, op)
        {
            return Ok(false);
        }
        self.take_apart(place, op, &scale, zero.as_ref(), scope, target)?;
        Ok(true)
    }

    /// `DequantizeLinear` as `Cast`, `Sub` and `Mul`, which give the same numbers.
    fn take_apart(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scale: &Tensor,
        zero: Option<&Tensor>,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<(), EngineError> {
        let o = place.graph.op(op);
        let (Some(x), Some(y)) = (o.input(0), o.output(0)) else {
            return Err(self.unsupported(place, op, "an input or the output is absent"));
        };
        let number = |t: &Tensor| t.single_f64().unwrap_or(0.0) as f32;
        let mut wire = self.name_of(place, op, x, scope, target)?;
        let steps = [
            ("Cast", None),
            ("Sub", zero.map(number)),
            ("Mul", Some(number(scale))),
        ];
        for (kind, constant) in steps {
            let mut input = vec![wire.clone()];
            let mut attribute = Vec::new();
            match (kind, constant) {
                ("Cast", _) => attribute.push(int_attribute("to", i64::from(DType::F32.to_onnx()))),
                (_, Some(number)) => {
                    let name = self.value_name(kind);
                    target
                        .constants
                        .push((name.clone(), Tensor::scalar(number)));
                    input.push(name);
                }
                (_, None) => continue,
            }
            wire = match kind {
                "Mul" => self.bind(place.graph, y, scope),
                _ => self.value_name(kind),
            };
            target.nodes.push(pb::NodeProto {
                name: self.node_name(place, op),
                op_type: kind.to_string(),
                input,
                output: vec![wire.clone()],
                attribute,
                ..Default::default()
            });
        }
        self.counts.taken_apart += 1;
        Ok(())
    }

    /// Puts the branch in the place of an `If` whose condition is constant.
    fn branch(
        &mut self,
        place: Place<'_>,
        op: OpId,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<bool, EngineError> {
        let o = place.graph.op(op);
        let Some(condition) = self.constant(place.graph, scope, o.input(0)) else {
            return Ok(false);
        };
        let Some(taken) = condition.single_f64() else {
            return Ok(false);
        };
        let name = if taken != 0.0 {
            "then_branch"
        } else {
            "else_branch"
        };
        let Some(AttrValue::Graph(branch)) = self.attr(place, op, name) else {
            return Err(self.unsupported(place, op, format!("it has no {name}")));
        };
        self.enter(place, branch, scope);
        let inner = self.inside(place, op, branch);
        self.body(inner, branch.outputs(), &HashSet::new(), scope, target)?;
        for (v, &from) in o.outputs().iter().zip(branch.outputs()) {
            let bound = self.lookup(branch, scope, from);
            let bound = bound.ok_or_else(|| self.not_closed(branch, from))?;
            if let Some(v) = v {
                scope.insert(*v, bound);
            }
        }
        self.counts.branches += 1;
        Ok(true)
    }

    fn inside<'b>(&self, place: Place<'b>, op: OpId, graph: &'b Graph) -> Place<'b> {
        Place {
            graph,
            owner: Some(place.owner.unwrap_or(op)),
            depth: place.depth + 1,
            ..place
        }
    }

    /// Makes the values that a graph captures known under their ids inside.
    fn enter(&mut self, place: Place<'_>, inner: &Graph, scope: &mut Scope) {
        let captured: Vec<ValueId> = inner.outer_values().collect();
        for v in captured {
            let outer = inner.get_value(v).and_then(|v| v.captured_from());
            if let Some(bound) = outer.and_then(|o| self.lookup(place.graph, scope, o)) {
                scope.insert(v, bound);
            }
        }
    }

    /// Inlines a call of a function.
    fn call(
        &mut self,
        place: Place<'_>,
        op: OpId,
        function: &'a Function,
        scope: &mut Scope,
        target: &mut Target,
    ) -> Result<(), EngineError> {
        let o = place.graph.op(op);
        let opset = |opsets: &[paring_ir::OpsetImport]| {
            opsets
                .iter()
                .find(|o| o.domain.is_empty())
                .map(|o| o.version)
        };
        if let (Some(a), Some(b)) = (opset(&function.opsets), opset(&self.model.opsets))
            && a != b
        {
            let reason = format!(
                "the function speaks opset {a} and the model opset {b}, so it can't be inlined"
            );
            return Err(self.unsupported(place, op, reason));
        }
        let mut attributes = Bindings::new();
        for a in &function.attribute_defaults {
            attributes.insert(&a.name, &a.value);
        }
        for a in o.attrs() {
            if let Some(value) = self.attr(place, op, &a.name) {
                attributes.insert(&a.name, value);
            }
        }
        let body = &function.body;
        let mut inner = Scope::new();
        for (i, &v) in body.inputs().iter().enumerate() {
            let bound = match o.input(i) {
                Some(outer) => self
                    .lookup(place.graph, scope, outer)
                    .ok_or_else(|| self.missing(place, op, outer))?,
                None => Binding::Absent,
            };
            inner.insert(v, bound);
        }
        let given: HashSet<ValueId> = body.inputs().iter().copied().collect();
        self.calls += 1;
        let place_inside = Place {
            attributes: &attributes,
            call: self.calls,
            ..self.inside(place, op, body)
        };
        self.body(place_inside, body.outputs(), &given, &mut inner, target)?;
        for (v, &from) in o.outputs().iter().zip(body.outputs()) {
            let bound = self.lookup(body, &inner, from);
            let bound = bound.ok_or_else(|| self.not_closed(body, from))?;
            if let Some(v) = v {
                scope.insert(*v, bound);
            }
        }
        self.counts.functions.insert(escape(&function.name));
        Ok(())
    }

    /// A graph in an attribute.
    fn subgraph(
        &mut self,
        place: Place<'_>,
        op: OpId,
        graph: &Graph,
        scope: &mut Scope,
    ) -> Result<pb::GraphProto, EngineError> {
        self.enter(place, graph, scope);
        let mut target = Target::default();
        let mut input = Vec::new();
        for &v in graph.inputs() {
            let name = self.bind(graph, v, scope);
            let ty = graph.get_value(v).and_then(|v| v.declared_type());
            input.push(declared_info(name, ty));
        }
        let given: HashSet<ValueId> = graph.inputs().iter().copied().collect();
        let inner = self.inside(place, op, graph);
        self.body(inner, graph.outputs(), &given, scope, &mut target)?;
        let made: HashSet<String> = target.nodes.iter().flat_map(|n| n.output.clone()).collect();
        let mut output: Vec<pb::ValueInfoProto> = Vec::new();
        for &v in graph.outputs() {
            let name = self.name_of(
                inner,
                graph.producer(v).unwrap_or(op),
                v,
                scope,
                &mut target,
            );
            let mut name = name.map_err(|_| self.not_closed(graph, v))?;
            // tract looks an output up among what this graph makes, each once.
            if !made.contains(&name) || output.iter().any(|o| o.name == name) {
                let copy = self.value_name("output");
                target.nodes.push(pb::NodeProto {
                    name: self.node_name(place, op),
                    op_type: "Identity".to_string(),
                    input: vec![name],
                    output: vec![copy.clone()],
                    ..Default::default()
                });
                name = copy;
            }
            output.push(bare_info(name));
        }
        let initializer = target.constants.iter().map(|(n, t)| tensor(n, t)).collect();
        Ok(pb::GraphProto {
            name: "graph".to_string(),
            node: target.nodes,
            input,
            output,
            initializer,
            ..Default::default()
        })
    }

    /// An attribute of the message; nothing for a reference to an attribute that the caller of
    /// the function left out.
    fn attribute(
        &mut self,
        place: Place<'_>,
        op: OpId,
        a: &Attribute,
        scope: &mut Scope,
    ) -> Result<Option<pb::AttributeProto>, EngineError> {
        let Some(value) = self.attr(place, op, &a.name) else {
            return Ok(None);
        };
        let mut out = pb::AttributeProto {
            name: a.name.to_string(),
            r#type: value.kind().to_onnx(),
            ..Default::default()
        };
        match value {
            AttrValue::Float(v) => out.f = *v,
            AttrValue::Int(v) => out.i = *v,
            AttrValue::String(v) => out.s = v.to_vec(),
            AttrValue::Floats(v) => out.floats = v.clone(),
            AttrValue::Ints(v) => out.ints = v.clone(),
            AttrValue::Strings(v) => out.strings = v.iter().map(|s| s.to_vec()).collect(),
            AttrValue::Tensor(t) => out.t = Some(self.attribute_tensor(place, op, t)?),
            AttrValue::Tensors(ts) => {
                for t in ts {
                    let t = self.attribute_tensor(place, op, t)?;
                    out.tensors.push(t);
                }
            }
            AttrValue::Graph(g) => out.g = Some(self.subgraph(place, op, g, scope)?),
            AttrValue::Graphs(gs) => {
                for g in gs {
                    let g = self.subgraph(place, op, g, scope)?;
                    out.graphs.push(g);
                }
            }
            AttrValue::SparseTensor(_)
            | AttrValue::SparseTensors(_)
            | AttrValue::Type(_)
            | AttrValue::Types(_)
            | AttrValue::Ref { .. } => {
                let reason = format!(
                    "it takes no attribute of the kind of \"{}\"",
                    escape(&a.name)
                );
                return Err(self.unsupported(place, op, reason));
            }
        }
        Ok(Some(out))
    }

    fn attribute_tensor(
        &mut self,
        place: Place<'_>,
        op: OpId,
        t: &Tensor,
    ) -> Result<pb::TensorProto, EngineError> {
        let wide = constants::widen_packed(t).map_err(|e| self.unsupported(place, op, e))?;
        if !constants::loadable(wide.dtype()) {
            let d = wide.dtype();
            return Err(self.unsupported(place, op, format!("it has no element type {d}")));
        }
        Ok(tensor("", &wide))
    }
}

fn int_attribute(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_string(),
        r#type: paring_ir::AttrKind::Int.to_onnx(),
        i: value,
        ..Default::default()
    }
}

fn bare_info(name: String) -> pb::ValueInfoProto {
    pb::ValueInfoProto {
        name,
        ..Default::default()
    }
}

/// A declaration; where the type is left out, float stands in for it.
fn value_info(name: &str, dtype: Option<DType>, dims: Option<&[usize]>) -> pb::ValueInfoProto {
    let dims = dims.map(|dims| {
        let dims = dims
            .iter()
            .map(|&d| Dim::Value(i64::try_from(d).unwrap_or(i64::MAX)));
        dims.collect::<Vec<Dim>>()
    });
    typed_info(
        name.to_string(),
        dtype.unwrap_or(DType::F32),
        dims.as_deref(),
    )
}

fn declared_info(name: String, ty: Option<&ValueType>) -> pb::ValueInfoProto {
    match ty.and_then(|t| t.dtype().map(|d| (d, t.shape()))) {
        Some((dtype, shape)) => typed_info(name, dtype, shape),
        None => bare_info(name),
    }
}

fn typed_info(name: String, dtype: DType, shape: Option<&[Dim]>) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension};
    let dim = |d: &Dim| Dimension {
        // A symbol is an expression to tract, which it would parse; nothing is lost without it.
        value: d
            .known()
            .and_then(|v| i64::try_from(v).ok())
            .map(dimension::Value::DimValue),
        ..Default::default()
    };
    pb::ValueInfoProto {
        name,
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: dtype.to_onnx(),
                shape: shape.map(|s| pb::TensorShapeProto {
                    dim: s.iter().map(dim).collect(),
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn tensor(name: &str, t: &Tensor) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_string(),
        dims: t
            .dims()
            .iter()
            .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
            .collect(),
        data_type: t.dtype().to_onnx(),
        raw_data: t.bytes().to_vec(),
        string_data: t
            .strings()
            .map(|s| s.iter().map(|s| s.to_vec()).collect())
            .unwrap_or_default(),
        ..Default::default()
    }
}

/// Operators of one tensor that work on more than one element at a time, although shapes and
/// axes are as with element-wise ones.
const NOT_ELEMENT_WISE: &[&str] = &[
    "CumSum",
    "GroupNormalization",
    "Hardmax",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "ReverseSequence",
    "Softmax",
    "Trilu",
];

/// Operators of one tensor that leave a chain a chain.
const CHAIN: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Flatten",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Reshape",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Squeeze",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Transpose",
    "Unsqueeze",
];

/// Whether tract would make a wrong lookup table of the chain from this `DequantizeLinear` to a
/// `QuantizeLinear`: the chain holds an operator that isn't element-wise, or the two don't
/// have one quantized type.
fn becomes_wrong_table(graph: &Graph, dequantize: OpId) -> bool {
    let quantized_type = |op: &Op| {
        let ty = graph.get_value(op.input(2)?)?.known_type()?;
        ty.dtype()
    };
    let start = graph.op(dequantize);
    let from = quantized_type(start);
    let mut stack = vec![(start.output(0), false)];
    for _ in 0..256 {
        let Some((v, spoiled)) = stack.pop() else {
            return false;
        };
        let Some(v) = v else { continue };
        for u in graph.sorted_uses(v) {
            let op = graph.op(u.op);
            if op.is("QuantizeLinear") {
                if spoiled || from.is_none() || quantized_type(op) != from {
                    return true;
                }
            } else if op.domain().is_empty() {
                let spoils = NOT_ELEMENT_WISE.contains(&&**op.op_type());
                if spoils || CHAIN.contains(&&**op.op_type()) {
                    stack.push((op.output(0), spoiled || spoils));
                }
            }
        }
    }
    // Too long to be followed: taking it apart is always right.
    true
}

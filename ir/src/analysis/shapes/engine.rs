//! The walk over the graphs: order, captured values, declared types, calls of functions.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::cx::{Cx, Fact, Frame, Out, Outs, Scope, attr_in, next_symbol, typed};
use super::dim::{SymDim, Symbol};
use super::fact::{Contents, SymDims, TensorFact};
use super::rules::{self, Rule};
use super::{Conflict, ConflictKind, GraphShapes, ShapeOptions, fits};
use crate::graph::{Graph, GraphId, OpId};
use crate::model::Model;
use crate::op::Op;
use crate::tensor::{DType, Dims};
use crate::value::{Constant, Dim, ValueType};

/// Graphs nested deeper than this are not looked into.
const MAX_DEPTH: usize = 48;

/// Operators that may be visited more often than once: in functions, and again in loop bodies.
const EXTRA_VISITS: usize = 250_000;

/// No more conflicts than this are recorded of one graph.
const MAX_CONFLICTS: usize = 1000;

/// The state of the walk.
pub(super) struct Engine<'m> {
    model: &'m Model,
    options: &'m ShapeOptions,
    functions: HashMap<(&'m str, &'m str, &'m str), usize>,
    pub(super) scopes: Vec<Scope<'m>>,
    /// The functions that are being looked through.
    calls: Vec<usize>,
    pub(super) next: Cell<u32>,
    visits_left: usize,
    /// Constants of one type share a fact.
    constants: HashMap<(DType, Dims), Fact>,
    done: HashMap<GraphId, GraphShapes>,
    use_declared: bool,
    /// Whether the next graph to be walked may not run.
    pub(super) in_branch: bool,
}

impl<'m> Engine<'m> {
    /// The facts of the main graph and all graphs inside it.
    pub(super) fn run(
        model: &'m Model,
        options: &'m ShapeOptions,
    ) -> HashMap<GraphId, GraphShapes> {
        let mut ops = 0usize;
        model.for_each_graph(&mut |g| ops = ops.saturating_add(g.op_count()));
        let functions = model.functions.iter().enumerate().rev();
        let functions = functions
            .map(|(i, f)| ((&*f.domain, &*f.name, &*f.overload), i))
            .collect();
        let mut engine = Engine {
            model,
            options,
            functions,
            scopes: Vec::new(),
            calls: Vec::new(),
            next: Cell::new(0),
            visits_left: ops.saturating_add(EXTRA_VISITS),
            constants: HashMap::new(),
            done: HashMap::new(),
            use_declared: options.use_declared,
            in_branch: false,
        };
        let inputs = engine.model_inputs();
        engine.graph(&model.graph, &inputs, model.opset(), None, false);
        engine.done
    }

    /// The declared types of the model's inputs under the options.
    fn model_inputs(&mut self) -> Vec<Out> {
        let graph = &self.model.graph;
        let mut inputs = Vec::new();
        for &v in graph.inputs() {
            let value = graph.value(v);
            let declared = match (value.declared_type(), value.initializer()) {
                (Some(ty), _) => self.declared_fact(ty),
                (None, Some(c)) => Some(self.constant(c)),
                (None, None) => None,
            };
            let Some(wanted) = self.options.input_shapes.get(&**value.name()) else {
                inputs.push(declared);
                continue;
            };
            let old = declared.as_ref().and_then(|f| f.dims.clone());
            let rank_fits = old.as_ref().is_none_or(|d| d.len() == wanted.len());
            self.use_declared &= rank_fits;
            let mut dims = SymDims::new();
            for (i, &size) in wanted.iter().enumerate() {
                let old = old.as_ref().filter(|_| rank_fits).and_then(|d| d.get(i));
                if size >= 0 {
                    self.use_declared &= old
                        .and_then(SymDim::known)
                        .is_none_or(|known| known == size);
                    dims.push(size.into());
                } else {
                    dims.push(old.cloned().unwrap_or_else(|| self.fresh()));
                }
            }
            inputs.push(typed(declared.and_then(|f| f.dtype), Some(dims)));
        }
        inputs
    }

    pub(super) fn fresh(&self) -> SymDim {
        Symbol::Size(next_symbol(&self.next)).into()
    }

    /// Whether loop bodies may be visited again and functions be looked through.
    pub(super) fn has_visits_left(&self) -> bool {
        self.visits_left > 0
    }

    /// The fact that a declared type states; `None` when it is no dense tensor.
    fn declared_fact(&self, ty: &ValueType) -> Out {
        let ValueType::Tensor { dtype, shape } = ty else {
            return None;
        };
        let dims = shape
            .as_ref()
            .map(|s| s.iter().map(|d| self.declared_size(d)).collect());
        typed(*dtype, dims)
    }

    /// A declared dimension as a size.
    fn declared_size(&self, d: &Dim) -> SymDim {
        match d {
            Dim::Value(v) if *v >= 0 => (*v).into(),
            Dim::Param(name) if says_something(name) => match self.options.pins.get(&**name) {
                Some(&size) if size >= 0 => size.into(),
                _ => SymDim::named(name.clone()),
            },
            _ => self.fresh(),
        }
    }

    fn constant(&mut self, c: &Constant) -> Fact {
        if let Constant::Dense(t) = c
            && matches!(t.dtype(), DType::I64 | DType::I32 | DType::Bool)
        {
            let fact = TensorFact::of_tensor(t);
            if fact.contents.is_some() {
                return fact.into();
            }
        }
        let key = (c.dtype(), c.dims().iter().copied().collect());
        self.constants
            .entry(key)
            .or_insert_with(|| {
                let dims = c.dims().iter().map(|&d| SymDim::from(d)).collect();
                TensorFact::new(Some(c.dtype()), Some(dims)).into()
            })
            .clone()
    }

    /// Walks a graph; answers what its outputs are. The input facts are those of the caller.
    pub(super) fn graph(
        &mut self,
        graph: &'m Graph,
        inputs: &[Out],
        opset: i64,
        frame: Option<Rc<Frame<'m>>>,
        in_function: bool,
    ) -> Vec<Out> {
        if self.scopes.len() >= MAX_DEPTH {
            return vec![None; graph.outputs().len()];
        }
        let runs = self.scopes.last().is_none_or(|s| s.runs) && !self.in_branch;
        self.in_branch = false;
        self.scopes.push(Scope {
            runs,
            graph,
            opset,
            facts: vec![None; graph.id_bound()],
            conflicts: Vec::new(),
            frame,
            in_function,
        });
        self.seed(graph, inputs);
        // A graph with a cycle is no model: its values stay unknown.
        for op in graph.topological_order().unwrap_or_default() {
            self.visit(op);
        }
        let Some(scope) = self.scopes.pop() else {
            return Vec::new();
        };
        let outputs = graph
            .outputs()
            .iter()
            .map(|v| scope.facts.get(v.index()).cloned().flatten())
            .collect();
        if !scope.in_function {
            let shapes = GraphShapes {
                facts: scope.facts,
                conflicts: scope.conflicts,
            };
            self.done.insert(graph.id(), shapes);
        }
        outputs
    }

    /// The facts of what no operator of the graph makes.
    fn seed(&mut self, graph: &'m Graph, inputs: &[Out]) {
        for v in graph.values() {
            let value = graph.value(v);
            if value.producer().is_some() || value.is_input() {
                continue;
            }
            let fact = if let Some(outer) = value.captured_from() {
                let parent = self.scopes.iter().rev().nth(1);
                parent.and_then(|p| p.facts.get(outer.index())?.clone())
            } else if let Some(c) = value.as_constant() {
                Some(self.constant(c))
            } else {
                value.declared_type().and_then(|ty| self.declared_fact(ty))
            };
            self.store(v.index(), fact);
        }
        let declared = self.use_declared && !self.scopes.last().is_some_and(|s| s.in_function);
        let is_main = self.scopes.len() == 1;
        for (i, &v) in graph.inputs().iter().enumerate() {
            let given = inputs.get(i).cloned().flatten();
            let ty = graph.value(v).declared_type();
            let fact = match ty {
                Some(ty) if declared && !is_main => self.with_declared(given, ty, u32::MAX).0,
                _ => given,
            };
            self.store(v.index(), fact);
        }
    }

    fn store(&mut self, index: usize, fact: Out) {
        if let Some(slot) = self.scopes.last_mut().and_then(|s| s.facts.get_mut(index)) {
            *slot = fact;
        }
    }

    /// Infers one operator and stores what is known about its outputs.
    fn visit(&mut self, id: OpId) {
        let Some(scope) = self.scopes.last() else {
            return;
        };
        let graph = scope.graph;
        let Some(op) = graph.get_op(id) else {
            return;
        };
        let declared = self.use_declared && !scope.in_function;
        let first_symbol = self.next.get();
        self.visits_left = self.visits_left.saturating_sub(1);
        let mut outs = self.infer(id, op);
        for (slot, v) in op.outputs().iter().enumerate() {
            let Some(v) = *v else { continue };
            let mut fact = outs.get_mut(slot).and_then(Option::take);
            if declared && let Some(ty) = graph.value(v).declared_type() {
                let (merged, fits) = self.with_declared(fact, ty, first_symbol);
                if !fits && let Some(inferred) = merged.as_ref().and_then(|f| f.to_value_type()) {
                    let place = format!(
                        "{} / value \"{}\"",
                        crate::escape(graph.name()),
                        crate::escape(graph.value(v).name())
                    );
                    let kind = ConflictKind::Declared {
                        value: v,
                        declared: Box::new(ty.clone()),
                        inferred: Box::new(inferred),
                    };
                    self.record(Conflict { place, kind });
                }
                fact = merged;
            }
            self.store(v.index(), fact);
        }
    }

    fn record(&mut self, conflict: Conflict) {
        if let Some(scope) = self.scopes.last_mut()
            && scope.conflicts.len() < MAX_CONFLICTS
        {
            scope.conflicts.push(conflict);
        }
    }

    fn infer(&mut self, id: OpId, op: &'m Op) -> Outs {
        if let Some(&f) = self
            .functions
            .get(&(&**op.domain(), &**op.op_type(), op.overload()))
        {
            return self.call(op, f);
        }
        let rule = if op.domain().is_empty() {
            rules::of(op.op_type())
        } else {
            None
        };
        match rule {
            Some(Rule::Local(rule)) => {
                let cx = Cx::new(op, &self.scopes, &self.next);
                let outs = rule(&cx);
                if let Some(reason) = cx.complaint() {
                    self.refuse(id, op, reason);
                }
                outs
            }
            Some(Rule::Control(rule)) => rule(self, op),
            None => {
                // What an unknown operator does with its graphs is unknown, but they are walked.
                for sub in op.subgraphs() {
                    self.subgraph(sub, &[]);
                }
                Outs::new()
            }
        }
    }

    fn refuse(&mut self, id: OpId, op: &Op, reason: String) {
        let Some(scope) = self.scopes.last().filter(|s| s.runs) else {
            return;
        };
        let place = format!(
            "{} / {} \"{}\"",
            crate::escape(scope.graph.name()),
            crate::escape(op.op_type()),
            crate::escape(&scope.graph.op_label(id))
        );
        let kind = ConflictKind::Operator { op: id, reason };
        self.record(Conflict { place, kind });
    }

    /// What an operator sees.
    pub(super) fn cx(&self, op: &'m Op) -> Cx<'_, 'm> {
        Cx::new(op, &self.scopes, &self.next)
    }

    /// A graph in an attribute of an operator of the current graph.
    pub(super) fn body(&self, op: &'m Op, name: &str) -> Option<&'m Graph> {
        let frame = self.scopes.last()?.frame.as_deref();
        attr_in(op, frame, name)?.graphs().first()
    }

    /// Walks a graph in an attribute.
    pub(super) fn subgraph(&mut self, graph: &'m Graph, inputs: &[Out]) -> Vec<Out> {
        let (opset, frame, in_function) = match self.scopes.last() {
            Some(s) => (s.opset, s.frame.clone(), s.in_function),
            None => (1, None, false),
        };
        self.graph(graph, inputs, opset, frame, in_function)
    }

    /// Looks through the body of a function.
    fn call(&mut self, op: &'m Op, index: usize) -> Outs {
        let model = self.model;
        let Some(function) = model.functions.get(index) else {
            return Outs::new();
        };
        if self.calls.contains(&index) || !self.has_visits_left() {
            return Outs::new();
        }
        let frame = self.scopes.last().and_then(|s| s.frame.as_deref());
        let mut attrs: Frame<'m> = Vec::new();
        for name in &function.attributes {
            if let Some(v) = attr_in(op, frame, name) {
                attrs.push((name, v));
            }
        }
        for default in &function.attribute_defaults {
            let given = attr_in(op, frame, &default.name);
            attrs.push((&default.name, given.unwrap_or(&default.value)));
        }
        let inputs = self.inputs_with_floats(op);
        let opset = function.opsets.iter().find(|o| o.domain.is_empty());
        let opset = opset.map_or_else(|| model.opset(), |o| o.version);
        self.calls.push(index);
        let outs = self.graph(&function.body, &inputs, opset, Some(Rc::new(attrs)), true);
        self.calls.pop();
        outs.into()
    }

    /// The facts of an operator's inputs. Small float constants, whose contents stand in the
    /// graph, bring them along, since a function's body can't look them up.
    fn inputs_with_floats(&self, op: &'m Op) -> Vec<Out> {
        let cx = self.cx(op);
        (0..op.input_count())
            .map(|slot| {
                let fact = cx.fact(slot)?;
                if fact.contents.is_none()
                    && let Some(v) = cx.floats(slot)
                {
                    let mut fact = TensorFact::clone(fact);
                    fact.contents = Some(Contents::Floats(v.into()));
                    return Some(fact.into());
                }
                Some(fact.clone())
            })
            .collect()
    }

    /// What inference and the declared type say together, and whether they agree. The inferred
    /// side wins. A declared name replaces a size without a name only where the operator itself
    /// made that size (its number is at least `first_symbol`): elsewhere other values have it too.
    fn with_declared(&self, fact: Out, ty: &ValueType, first_symbol: u32) -> (Out, bool) {
        let ValueType::Tensor { dtype, shape } = ty else {
            return (fact, true);
        };
        let Some(inferred) = fact else {
            return (self.declared_fact(ty), true);
        };
        if !fits(&inferred, ty) {
            return (Some(inferred), false);
        }
        let dims = match (&inferred.dims, shape) {
            (None, Some(s)) => Some(s.iter().map(|d| self.declared_size(d)).collect()),
            (Some(dims), Some(s)) => {
                let improves = |d: &SymDim, declared: &Dim| match (d.symbol(), declared) {
                    (Some(Symbol::Size(_)), Dim::Value(v)) => *v >= 0,
                    (Some(Symbol::Size(n)), Dim::Param(p)) => {
                        *n >= first_symbol && says_something(p)
                    }
                    _ => false,
                };
                if dims.iter().zip(s).any(|(d, s)| improves(d, s)) {
                    let merge = |(d, s): (&SymDim, &Dim)| {
                        if improves(d, s) {
                            self.declared_size(s)
                        } else {
                            d.clone()
                        }
                    };
                    Some(dims.iter().zip(s).map(merge).collect())
                } else {
                    None
                }
            }
            _ => None,
        };
        if dims.is_none() && (inferred.dtype.is_some() || dtype.is_none()) {
            return (Some(inferred), true);
        }
        let mut merged = TensorFact::clone(&inferred);
        merged.dtype = merged.dtype.or(*dtype);
        merged.dims = dims.or(merged.dims);
        (Some(merged.into()), true)
    }
}

/// Whether the name of a dimension says that equal names are equal sizes. Some exporters write
/// `?` or `None` for every dimension that they know nothing about.
fn says_something(name: &str) -> bool {
    name != "None" && name.chars().any(char::is_alphanumeric) && name != "-1"
}

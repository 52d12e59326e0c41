//! The walk over the graphs: the axes of every value, operator by operator.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::products::Product;
use super::rules;
use super::units::{Axis, Reason, Unit, Units, Why};
use crate::analysis::{Shapes, SymDim};
use crate::graph::{Graph, GraphId, OpId, ValueId};
use crate::model::Model;
use crate::op::Op;
use crate::schema::{self, Role};
use crate::tensor::DType;
use crate::value::Constant;

/// The axes of a value.
pub(super) type Axes = Arc<[Axis]>;

/// Where an operator holds the sizes or positions that shrink with an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The integer tensor in an input slot.
    Input(usize),
    /// An integer attribute or a list of integers.
    Attr(&'static str),
}

/// One integer that may change.
#[derive(Clone, Debug)]
pub(super) enum Number {
    /// It stays.
    Keep,
    /// It is this number, whatever computes it today.
    Literal(i64),
    /// How many of these units are kept.
    Count(Arc<[Unit]>),
    /// The position of a unit: how many of those before it are kept. It goes with the unit.
    Position(Arc<[Unit]>, Unit),
}

/// The integers at one place of an operator.
#[derive(Clone, Debug)]
pub(super) struct Numbers {
    pub(super) graph: GraphId,
    pub(super) op: OpId,
    pub(super) place: Place,
    pub(super) all: Vec<Number>,
    /// They are looked at when any unit of these axes goes.
    pub(super) watched: Vec<Arc<[Unit]>>,
}

pub(super) struct Walk<'m> {
    pub(super) opset: i64,
    pub(super) shapes: Arc<Shapes>,
    graphs: HashMap<GraphId, &'m Graph>,
    pub(super) units: Units,
    /// By the value where it stands outermost; see [`Walk::root`].
    pub(super) axes: HashMap<ValueId, Axes>,
    pub(super) products: Vec<Product>,
    pub(super) numbers: Vec<Numbers>,
    /// Operators with a number that is computed from the size of an axis.
    pub(super) computed: HashSet<OpId>,
}

impl<'m> Walk<'m> {
    pub(super) fn new(model: &'m Model, shapes: Arc<Shapes>) -> Walk<'m> {
        let mut graphs = HashMap::new();
        model.for_each_graph(&mut |g| {
            graphs.insert(g.id(), g);
        });
        Walk {
            opset: model.opset(),
            shapes,
            graphs,
            units: Units::default(),
            axes: HashMap::new(),
            products: Vec::new(),
            numbers: Vec::new(),
            computed: HashSet::new(),
        }
    }

    /// Walks the main graph and freezes what reaches its outputs.
    pub(super) fn main(&mut self, graph: &'m Graph) {
        self.graph(graph, Reason::GraphInput);
        let why = Why {
            reason: Reason::GraphOutput,
            op: None,
        };
        for &v in graph.outputs() {
            self.freeze_value(v, why);
        }
    }

    /// Walks a graph whose inputs can't shrink.
    pub(super) fn graph(&mut self, graph: &'m Graph, inputs: Reason) {
        let why = Why {
            reason: inputs,
            op: None,
        };
        for &v in graph.inputs() {
            self.fix_value(v, why);
        }
        let Ok(order) = graph.topological_order() else {
            return;
        };
        for op in order {
            rules::apply(&mut Cx::new(self, graph, op));
        }
    }

    /// The value of the outermost graph that a captured value stands for.
    pub(super) fn root(&self, v: ValueId) -> ValueId {
        let mut at = v;
        while let Some(outer) = self
            .graphs
            .get(&at.graph())
            .and_then(|g| g.get_value(at))
            .and_then(|value| value.captured_from())
        {
            at = outer;
        }
        at
    }

    pub(super) fn graph_of(&self, v: ValueId) -> Option<&'m Graph> {
        self.graphs.get(&v.graph()).copied()
    }

    /// The axes of a value; `None` when its rank is not known.
    pub(super) fn axes_of(&mut self, v: ValueId) -> Option<Axes> {
        let v = self.root(v);
        if let Some(axes) = self.axes.get(&v) {
            return Some(axes.clone());
        }
        let graph = self.graph_of(v)?;
        let value = graph.get_value(v)?;
        let axes: Axes = match value.initializer() {
            Some(constant) => match self.constant_problem(graph, v, constant) {
                Some(reason) => {
                    let fixed = Axis::Fixed(Why { reason, op: None });
                    vec![fixed; constant.dims().len()].into()
                }
                None => constant.dims().iter().map(|&n| self.fresh(n)).collect(),
            },
            // A value that nothing makes, or that an operator makes which was not walked.
            None => {
                let why = Why {
                    reason: Reason::UnsupportedOperator,
                    op: graph.producer(v),
                };
                vec![Axis::Fixed(why); self.shapes.rank(v)?].into()
            }
        };
        self.axes.insert(v, axes.clone());
        Some(axes)
    }

    /// Why no axis of a constant can shrink.
    fn constant_problem(&self, graph: &Graph, v: ValueId, constant: &Constant) -> Option<Reason> {
        let value = graph.get_value(v)?;
        if value.is_input() {
            return Some(Reason::Overridable);
        }
        if value.is_output() {
            return Some(Reason::GraphOutput);
        }
        let Constant::Dense(tensor) = constant else {
            return Some(Reason::Storage);
        };
        let whole_bytes = tensor.dtype().bits().is_some_and(|b| b % 8 == 0);
        if !whole_bytes || tensor.dtype() == DType::String {
            return Some(Reason::Storage);
        }
        // Numbers that decide about shapes are rewritten one by one, see `Numbers`.
        let decides = value.uses().iter().any(|u| match u.port {
            crate::graph::Port::Input(slot) => graph.get_op(u.op).is_some_and(|op| {
                matches!(
                    schema::role(op, slot as usize),
                    Role::Shape | Role::Index | Role::Mask
                ) && !op.is("Where")
            }),
            _ => false,
        });
        decides.then_some(Reason::SizeAsData)
    }

    /// An axis of new units.
    pub(super) fn fresh(&mut self, size: usize) -> Axis {
        if size < 2 {
            return Axis::SINGLE;
        }
        match self.units.fresh(size) {
            Some(units) => Axis::Units(units),
            None => Axis::Fixed(Why {
                reason: Reason::UnprovableShape,
                op: None,
            }),
        }
    }

    /// Says that no axis of a value can shrink.
    fn fix_value(&mut self, v: ValueId, why: Why) {
        if let Some(rank) = self.shapes.rank(v) {
            self.axes.insert(v, vec![Axis::Fixed(why); rank].into());
        }
    }

    pub(super) fn freeze_value(&mut self, v: ValueId, why: Why) {
        for axis in self.axes_of(v).iter().flat_map(|axes| axes.iter()) {
            self.freeze(axis, why);
        }
    }

    pub(super) fn freeze(&mut self, axis: &Axis, why: Why) {
        for &unit in axis.units().unwrap_or_default() {
            self.units.freeze(unit, why);
        }
    }

    /// Says that two axes have the same indices. An axis of one index takes part only when the
    /// other has one as well.
    pub(super) fn unify(&mut self, a: &Axis, b: &Axis, op: OpId) {
        match (a, b) {
            (Axis::Units(x), Axis::Units(y)) if x.len() == y.len() => {
                for (&x, &y) in x.iter().zip(y.iter()) {
                    self.units.union(x, y);
                }
            }
            (Axis::Fixed(why), units) | (units, Axis::Fixed(why))
                if why.reason != Reason::Single =>
            {
                self.freeze(units, *why);
            }
            _ => {
                let why = Why {
                    reason: Reason::UnprovableShape,
                    op: Some(op),
                };
                self.freeze(a, why);
                self.freeze(b, why);
            }
        }
    }

    /// The units of an axis of known size, new frozen ones where it is fixed; `None` where they
    /// can't be told.
    pub(super) fn as_units(&mut self, axis: &Axis, size: Option<usize>) -> Option<Arc<[Unit]>> {
        match axis {
            Axis::Units(units) => Some(units.clone()),
            Axis::Fixed(why) => {
                let units = self.units.fresh(size?)?;
                units.iter().for_each(|&u| self.units.freeze(u, *why));
                Some(units)
            }
        }
    }
}

/// One operator under the walk.
pub(super) struct Cx<'a, 'm> {
    pub(super) walk: &'a mut Walk<'m>,
    pub(super) graph: &'m Graph,
    pub(super) id: OpId,
    pub(super) op: &'m Op,
    /// The input slots that the rule has dealt with.
    seen: Vec<bool>,
    /// The outputs that the rule has given axes.
    given: Vec<bool>,
    /// The rule has dealt with the inputs although it gives no output axes.
    settled: bool,
    finished: bool,
}

impl<'a, 'm> Cx<'a, 'm> {
    fn new(walk: &'a mut Walk<'m>, graph: &'m Graph, id: OpId) -> Cx<'a, 'm> {
        let op = graph.op(id);
        Cx {
            seen: vec![false; op.input_count()],
            given: vec![false; op.outputs().len()],
            settled: false,
            finished: false,
            walk,
            graph,
            id,
            op,
        }
    }

    pub(super) fn why(&self, reason: Reason) -> Why {
        Why {
            reason,
            op: Some(self.id),
        }
    }

    /// The axes of an input, of which the rule takes care from now on; `None` when the slot is
    /// empty or the rank is not known.
    pub(super) fn input(&mut self, slot: usize) -> Option<Axes> {
        self.skip(slot);
        self.walk.axes_of(self.op.input(slot)?)
    }

    /// Says that an input has nothing to do with units: a scalar, or numbers about shapes.
    pub(super) fn skip(&mut self, slot: usize) {
        if let Some(seen) = self.seen.get_mut(slot) {
            *seen = true;
        }
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.op.input(slot).is_some()
    }

    /// The sizes of an input.
    pub(super) fn dims(&self, slot: usize) -> Option<&[SymDim]> {
        let v = self.walk.root(self.op.input(slot)?);
        self.walk.shapes.dims(v)
    }

    pub(super) fn out_dims(&self, slot: usize) -> Option<&[SymDim]> {
        self.walk.shapes.dims(self.op.output(slot)?)
    }

    /// The size of an axis of an input, when it is a number.
    pub(super) fn size(&self, slot: usize, axis: usize) -> Option<usize> {
        number(self.dims(slot)?.get(axis)?)
    }

    pub(super) fn out_size(&self, slot: usize, axis: usize) -> Option<usize> {
        number(self.out_dims(slot)?.get(axis)?)
    }

    /// The integers of an input, when they are known.
    pub(super) fn ints(&self, slot: usize) -> Option<Vec<i64>> {
        let v = self.walk.root(self.op.input(slot)?);
        if let Some(tensor) = self.walk.graph_of(v).and_then(|g| g.tensor(v)) {
            return tensor.to_i64s();
        }
        self.walk.shapes.fact(v)?.known_i64s()
    }

    /// Integers that stand in an input of newer versions and an attribute of older ones.
    pub(super) fn ints_or_attr(&self, slot: usize, attr: &str) -> Option<Vec<i64>> {
        match self.op.ints(attr) {
            Some(list) => Some(list.to_vec()),
            None => self.ints(slot),
        }
    }

    pub(super) fn freeze(&mut self, axis: &Axis, reason: Reason) {
        let why = self.why(reason);
        self.walk.freeze(axis, why);
    }

    pub(super) fn unify(&mut self, a: &Axis, b: &Axis) {
        self.walk.unify(a, b, self.id);
    }

    /// A fixed axis.
    pub(super) fn fixed(&self, reason: Reason) -> Axis {
        Axis::Fixed(self.why(reason))
    }

    /// Freezes an axis and gives the fixed one that stands for it.
    pub(super) fn fix(&mut self, axis: &Axis, reason: Reason) -> Axis {
        self.freeze(axis, reason);
        match axis {
            Axis::Fixed(why) => Axis::Fixed(*why),
            Axis::Units(_) => self.fixed(reason),
        }
    }

    /// Gives an output its axes. Where they disagree with the inferred shape they can't shrink.
    pub(super) fn output(&mut self, slot: usize, axes: Vec<Axis>) {
        let Some(v) = self.op.output(slot) else {
            return;
        };
        if let Some(given) = self.given.get_mut(slot) {
            *given = true;
        }
        let why = self.why(Reason::UnprovableShape);
        let dims = self.walk.shapes.dims(v).filter(|d| d.len() == axes.len());
        let Some(dims) = dims.map(|d| d.iter().map(number).collect::<Vec<_>>()) else {
            axes.iter().for_each(|axis| self.walk.freeze(axis, why));
            if let Some(rank) = self.walk.shapes.rank(v) {
                self.walk
                    .axes
                    .insert(v, vec![Axis::Fixed(why); rank].into());
            }
            return;
        };
        let fitting = axes.into_iter().zip(dims).map(|(axis, size)| match axis {
            _ if size == Some(1) => {
                let single = Why {
                    reason: Reason::Single,
                    ..why
                };
                self.walk.freeze(&axis, single);
                Axis::SINGLE
            }
            Axis::Units(ref units) if size != Some(units.len()) => {
                self.walk.freeze(&axis, why);
                Axis::Fixed(why)
            }
            axis => axis,
        });
        let fitting = fitting.collect();
        self.walk.axes.insert(v, fitting);
    }

    /// Says that no axis of an output can shrink.
    fn fix_output(&mut self, slot: usize, reason: Reason) {
        let why = self.why(reason);
        if let Some(v) = self.op.output(slot) {
            self.walk.fix_value(v, why);
        }
    }

    /// Says that the rule has dealt with the inputs that it asked for although the outputs have
    /// axes that can't shrink.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// What the rule has not dealt with can't shrink. A rule that gave no output gave up, so
    /// what it has asked for before can't shrink either. Only the first call counts.
    pub(super) fn finish(&mut self, reason: Reason) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        if !self.settled && !self.given.contains(&true) {
            self.seen.fill(false);
        }
        let why = self.why(reason);
        for slot in 0..self.seen.len() {
            if !self.seen[slot]
                && let Some(v) = self.op.input(slot)
            {
                self.walk.freeze_value(v, why);
            }
        }
        for slot in 0..self.given.len() {
            if !self.given[slot] {
                self.fix_output(slot, reason);
            }
        }
    }

    /// Records integers that shrink with axes.
    pub(super) fn numbers(&mut self, place: Place, all: Vec<Number>, watched: &[&Axis]) {
        let counts = |n: &Number| !matches!(n, Number::Keep | Number::Literal(_));
        if watched.iter().all(|a| a.units().is_none()) && !all.iter().any(counts) {
            return;
        }
        let units = |axis: &&Axis| match axis {
            Axis::Units(units) => Some(units.clone()),
            Axis::Fixed(_) => None,
        };
        self.walk.numbers.push(Numbers {
            graph: self.graph.id(),
            op: self.id,
            place,
            all,
            watched: watched.iter().filter_map(units).collect(),
        });
    }

    /// An attribute that says how many units there are.
    pub(super) fn count_attr(&mut self, name: &'static str, axis: &Axis) {
        if let Axis::Units(units) = axis {
            let count = vec![Number::Count(units.clone())];
            self.numbers(Place::Attr(name), count, &[]);
        }
    }
}

/// A size that is a number.
pub(super) fn number(d: &SymDim) -> Option<usize> {
    usize::try_from(d.known()?).ok()
}

/// The size of an axis as an integer to be written: the count of its units, the number that it
/// is, or whatever stands there.
pub(super) fn size_of(axis: &Axis, size: Option<usize>) -> Number {
    match (axis, size) {
        (Axis::Units(units), _) => Number::Count(units.clone()),
        (_, Some(n)) => i64::try_from(n).map_or(Number::Keep, Number::Literal),
        _ => Number::Keep,
    }
}

/// An axis that may count from the end.
pub(super) fn axis_at(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let at = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    usize::try_from(at).ok().filter(|_| at < rank)
}

//! One side of a comparison: a graph as lists, for quick walks in both directions.

use std::collections::HashMap;

use paring_ir::analysis::Constants;
use paring_ir::{Constant, Graph, GraphError, Model, Name, Op, OpId, OpsetImport, ValueId};

/// Where an operator takes an input from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum From {
    /// Nowhere.
    Absent,
    /// An operator, by its place in [`Net::ops`], and the output slot.
    Op(usize, usize),
    /// A constant, by the value that holds it, maybe in an enclosing graph.
    Constant(ValueId),
    /// A graph input, by its position.
    Input(usize),
    /// A value of the enclosing graph that is no constant, or one without a source.
    Outer(ValueId),
}

/// One use of an output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Use {
    /// The output slot.
    pub(super) slot: usize,
    /// The consumer, by its place.
    pub(super) user: usize,
    /// Its input slot; [`CAPTURE`] for a graph inside it.
    pub(super) at: usize,
}

/// The slot of what graphs inside an operator take.
pub(super) const CAPTURE: usize = usize::MAX;

/// A graph as lists. `Constant` operators are not among the operators: they are constants.
pub(super) struct Net<'a> {
    pub(super) model: &'a Model,
    pub(super) graph: &'a Graph,
    pub(super) opsets: &'a [OpsetImport],
    pub(super) constants: &'a Constants,
    /// All operators in topological order.
    pub(super) order: Vec<OpId>,
    /// The operators in topological order, those of type `Constant` left out.
    pub(super) ops: Vec<OpId>,
    /// What each operator takes, slot by slot.
    pub(super) inputs: Vec<Vec<From>>,
    /// What the graphs inside each operator take.
    pub(super) captures: Vec<Vec<From>>,
    /// Who takes the outputs of each operator.
    pub(super) users: Vec<Vec<Use>>,
    /// What makes each graph output.
    pub(super) outputs: Vec<From>,
    /// The output slot and the position of each graph output that an operator makes.
    pub(super) leaves: HashMap<usize, Vec<(usize, usize)>>,
    /// The length of the longest path to each operator.
    pub(super) levels: Vec<usize>,
    places: HashMap<OpId, usize>,
    input_places: HashMap<ValueId, usize>,
}

impl<'a> Net<'a> {
    pub(super) fn new(
        model: &'a Model,
        graph: &'a Graph,
        opsets: &'a [OpsetImport],
        constants: &'a Constants,
    ) -> Result<Net<'a>, GraphError> {
        let order = graph.topological_order()?;
        let ops: Vec<OpId> = order
            .iter()
            .copied()
            .filter(|&op| !graph.op(op).is("Constant"))
            .collect();
        let places = ops.iter().enumerate().map(|(i, &op)| (op, i)).collect();
        let inputs = graph.inputs().iter().enumerate();
        let mut net = Net {
            model,
            graph,
            opsets,
            constants,
            inputs: Vec::with_capacity(ops.len()),
            captures: Vec::with_capacity(ops.len()),
            users: vec![Vec::new(); ops.len()],
            outputs: Vec::new(),
            leaves: HashMap::new(),
            levels: Vec::with_capacity(ops.len()),
            order,
            ops,
            places,
            input_places: inputs.map(|(i, &v)| (v, i)).collect(),
        };
        for place in 0..net.ops.len() {
            net.connect(place);
        }
        net.outputs = graph.outputs().iter().map(|&v| net.source(v)).collect();
        for (position, from) in net.outputs.iter().enumerate() {
            if let From::Op(place, slot) = from {
                net.leaves
                    .entry(*place)
                    .or_default()
                    .push((*slot, position));
            }
        }
        Ok(net)
    }

    fn connect(&mut self, place: usize) {
        let op = self.op(place);
        let source = |v: Option<ValueId>| v.map_or(From::Absent, |v| self.source(v));
        let inputs: Vec<From> = op.inputs().map(source).collect();
        let captures: Vec<From> = op.captures().map(|v| self.source(v)).collect();
        let slots = inputs.iter().copied().enumerate();
        let captured = captures.iter().map(|&from| (CAPTURE, from));
        for (at, from) in slots.chain(captured) {
            if let From::Op(maker, slot) = from
                && let Some(users) = self.users.get_mut(maker)
            {
                let user = place;
                users.push(Use { slot, user, at });
            }
        }
        let before = inputs
            .iter()
            .chain(&captures)
            .filter_map(|from| match from {
                From::Op(maker, _) => self.levels.get(*maker).map(|l| l + 1),
                _ => None,
            });
        let level = before.max().unwrap_or(0);
        self.levels.push(level);
        self.inputs.push(inputs);
        self.captures.push(captures);
    }

    /// Where a value of the graph comes from.
    pub(super) fn source(&self, v: ValueId) -> From {
        if let Some(root) = self.constants.root(v) {
            return From::Constant(root);
        }
        if let Some(&place) = self.input_places.get(&v) {
            return From::Input(place);
        }
        let producer = self.graph.value(v).producer();
        match producer.and_then(|(op, slot)| Some((*self.places.get(&op)?, slot))) {
            Some((place, slot)) => From::Op(place, slot as usize),
            None => From::Outer(v),
        }
    }

    /// The operator at a place.
    pub(super) fn op(&self, place: usize) -> &'a Op {
        self.graph.op(self.ops[place])
    }

    /// The name of the operator at a place, or that of its first output.
    pub(super) fn label(&self, place: usize) -> Name {
        self.graph.op_label(self.ops[place])
    }

    /// The constant that a value holds.
    pub(super) fn constant(&self, root: ValueId) -> Option<&'a Constant> {
        self.constants.get(root)
    }

    /// The name of the value that holds a constant; empty when that is in an enclosing graph.
    pub(super) fn constant_name(&self, root: ValueId) -> String {
        let value = self.graph.get_value(root);
        value.map_or_else(String::new, |v| v.name().to_string())
    }

    /// What an input slot of an operator takes; `Absent` beyond the last.
    pub(super) fn input(&self, place: usize, slot: usize) -> From {
        let inputs = self.inputs.get(place);
        inputs
            .and_then(|i| i.get(slot))
            .copied()
            .unwrap_or(From::Absent)
    }

    /// The name of what an input slot takes, for people.
    pub(super) fn from_name(&self, place: usize, slot: usize) -> Option<String> {
        let v = self.op(place).input(slot)?;
        Some(self.graph.value(v).name().to_string())
    }
}

/// The type of an operator; of other domains than the standard one as `domain::Type`.
pub(super) fn type_name(op: &Op) -> String {
    if op.domain().is_empty() {
        op.op_type().to_string()
    } else {
        format!("{}::{}", op.domain(), op.op_type())
    }
}

//! The graph and its edits: the only file that names petgraph.
//!
//! Bipartite: operators and values are both nodes of a `StableDiGraph`, and each edge
//! carries the port at which an operator takes or makes a value. Beside the edges each
//! operator keeps its slots in order and each value an unordered list of its uses, with
//! positions in both directions, so that every edit costs the same however many
//! consumers a value has and however many inputs an operator takes. Removed edges are
//! marked and swept out together, since petgraph finds an edge only by walking the
//! list of its node. Node indices are never reused: an id names one operator or value
//! for as long as its graph lives, also across clones of the graph.
//!
//! Invariants, kept by every method:
//! - a value's producer, the operator's output slot and the edge agree;
//! - a value's uses, the operators' input slots and captures, and the edges agree;
//! - names of values are unique in their graph;
//! - a captured value has the name that it has outside;
//! - the captures of an operator are what the graphs in its attributes take from this graph;
//! - every edit gives the graph a revision that no other state of any graph has.

use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use petgraph::Direction;
use petgraph::stable_graph::{EdgeIndex, NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeFiltered, EdgeRef, FilterEdge, FilterNode, IntoEdgeReferences};
use smallvec::SmallVec;

use crate::attr::{AttrValue, Attribute};
use crate::op::{NewOp, NewOutput, Op, OpExtra};
use crate::provenance::{Kept, Provenance};
use crate::tensor::Tensor;
use crate::value::{Constant, Name, Spelling, Use, Value, ValueExtra, ValueType};

mod splice;

pub use splice::Spliced;

/// Which graph an id belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GraphId(NonZeroU32);

/// An operator of a graph. Ids order operators by when they were added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId {
    graph: GraphId,
    node: u32,
}

/// A value of a graph. Ids order values by when they were added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId {
    graph: GraphId,
    node: u32,
}

macro_rules! id {
    ($t:ident, $letter:literal) => {
        impl $t {
            /// The graph of this id.
            pub fn graph(self) -> GraphId {
                self.graph
            }

            /// A small number, unique in the graph, for tables indexed by id; see [`Graph::id_bound`].
            pub fn index(self) -> usize {
                self.node as usize
            }
        }

        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, "{}.{}"), self.graph.0, self.node)
            }
        }
    };
}
id!(OpId, "op");
id!(ValueId, "value");

/// Where an operator takes or makes a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Port {
    /// An input slot.
    Input(u32),
    /// An output slot.
    Output(u32),
    /// A graph in an attribute takes the value.
    Capture,
}

/// A taken value, its position among the value's uses, and the edge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) value: ValueId,
    position: u32,
    edge: u32,
}

/// A node of the petgraph graph.
#[derive(Clone, Debug)]
pub enum Node {
    /// An operator.
    Op(Box<Op>),
    /// A value.
    Value(Box<Value>),
    /// What was removed: its index is not used again.
    Removed,
}

/// An edge of the petgraph graph: a port, or a removed edge that awaits the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// A live edge.
    Port(Port),
    /// A removed edge.
    Removed,
}

/// Why an edit was refused. The graph is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The id belongs to another graph, or what it named was removed.
    #[error("no such {what} in graph \"{graph}\": {id}")]
    NoSuch {
        /// `operator` or `value`.
        what: &'static str,
        /// The id.
        id: String,
        /// The graph's name.
        graph: String,
    },
    /// A name is taken.
    #[error("the name \"{0}\" is already taken by another value")]
    NameTaken(String),
    /// A value would get two sources.
    #[error("\"{0}\" already has a source: an operator, a graph input or an initializer")]
    AlreadyProduced(String),
    /// Something is still needed.
    #[error("\"{0}\" is still used")]
    StillUsed(String),
    /// The types disagree.
    #[error("\"{old}\" ({old_type}) can't be replaced by \"{new}\" ({new_type})")]
    TypeMismatch {
        /// The replaced value.
        old: String,
        /// Its type.
        old_type: String,
        /// The replacement.
        new: String,
        /// Its type.
        new_type: String,
    },
    /// A graph output that is no graph input can be replaced, and only by a value that an
    /// operator makes and that is no output itself: the new value takes the old one's name.
    #[error(
        "graph output \"{old}\" can't become \"{new}\": the one must not be a graph input, and the \
         other must be made by an operator and be no output itself"
    )]
    OutputBound {
        /// The graph output.
        old: String,
        /// The refused replacement.
        new: String,
    },
    /// The operators form a cycle.
    #[error("the graph \"{graph}\" has a cycle through {through}")]
    Cycle {
        /// The graph's name.
        graph: String,
        /// An operator on the cycle.
        through: String,
    },
    /// A graph with more than 2^32 nodes.
    #[error("the graph has too many operators and values")]
    TooLarge,
}

/// Which initializers hold the quantization parameters of a tensor (`TensorAnnotation`).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct QuantizationAnnotation {
    /// The tensor's name.
    pub tensor: Option<Name>,
    /// The parameters' names by key, such as `SCALE_TENSOR`.
    pub parameters: Vec<(Name, Name)>,
}

/// What a file says about a graph besides its operators and values.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct GraphExtra {
    /// Documentation.
    pub doc: Option<Name>,
    /// `metadata_props`.
    pub metadata: Vec<(Name, Name)>,
    /// Quantization annotations: the tensor's name and its parameters' names by key.
    pub quantization_annotations: Vec<QuantizationAnnotation>,
    /// The name is absent in the file, which means the same as an empty one.
    pub unnamed: bool,
}

/// A graph: operators, values, inputs and outputs.
#[derive(Clone, Debug)]
pub struct Graph {
    id: GraphId,
    name: Name,
    net: StableDiGraph<Node, Edge, u32>,
    names: HashMap<Name, u32>,
    fresh: HashMap<Name, u32>,
    inputs: Vec<ValueId>,
    listed_inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    initializers: Vec<ValueId>,
    declared: Vec<ValueId>,
    with_subgraphs: BTreeSet<u32>,
    op_count: usize,
    value_count: usize,
    live_edges: usize,
    removed_edges: usize,
    next_rank: u64,
    revision: u64,
    author: Option<Name>,
    extra: GraphExtra,
}

/// Operators read from a file are this far apart in rank, so that new ones fit between.
const RANK_STEP: u64 = 1 << 20;

fn next_graph_id() -> GraphId {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    // 2^32 graphs in one process would wrap to 0; skip it.
    loop {
        if let Some(id) = NonZeroU32::new(NEXT.fetch_add(1, Ordering::Relaxed)) {
            return GraphId(id);
        }
    }
}

fn next_revision() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<Name>) -> Graph {
        Graph {
            id: next_graph_id(),
            name: name.into(),
            net: StableDiGraph::default(),
            names: HashMap::new(),
            fresh: HashMap::new(),
            inputs: Vec::new(),
            listed_inputs: Vec::new(),
            outputs: Vec::new(),
            initializers: Vec::new(),
            declared: Vec::new(),
            with_subgraphs: BTreeSet::new(),
            op_count: 0,
            value_count: 0,
            live_edges: 0,
            removed_edges: 0,
            next_rank: RANK_STEP,
            revision: next_revision(),
            author: None,
            extra: GraphExtra::default(),
        }
    }

    /// The id that this graph's operators and values carry. Clones keep it.
    pub fn id(&self) -> GraphId {
        self.id
    }

    /// The name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Renames the graph.
    pub fn set_name(&mut self, name: impl Into<Name>) {
        self.name = name.into();
        self.touch();
    }

    /// A number that no other state of any graph has, except clones of this one.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What a file says besides operators and values.
    pub fn extra(&self) -> &GraphExtra {
        &self.extra
    }

    /// Sets what a file says besides operators and values.
    pub fn set_extra(&mut self, extra: GraphExtra) {
        if self.extra != extra {
            self.extra = extra;
            self.touch();
        }
    }

    /// The pass that the coming edits are recorded under, in this graph and those inside it.
    pub fn set_author(&mut self, author: Option<Name>) {
        let owners: Vec<u32> = self.with_subgraphs.iter().copied().collect();
        for node in owners {
            if let Some(Node::Op(op)) = self.net.node_weight_mut(NodeIndex::new(node as usize)) {
                for graph in op.attrs.iter_mut().flat_map(|a| a.value.graphs_mut()) {
                    graph.set_author(author.clone());
                }
            }
        }
        self.author = author;
    }

    /// One more than the largest [`OpId::index`] and [`ValueId::index`].
    pub fn id_bound(&self) -> usize {
        self.net.node_count()
    }

    /// The number of operators, those of graphs in attributes not counted.
    pub fn op_count(&self) -> usize {
        self.op_count
    }

    /// The number of values.
    pub fn value_count(&self) -> usize {
        self.value_count
    }

    pub(crate) fn touch(&mut self) {
        self.revision = next_revision();
    }

    // ---- looking ----

    /// The operator, when there is one of this id.
    pub fn get_op(&self, id: OpId) -> Option<&Op> {
        match self.net.node_weight(NodeIndex::new(id.index())) {
            Some(Node::Op(op)) if id.graph == self.id => Some(op),
            _ => None,
        }
    }

    /// The value, when there is one of this id.
    pub fn get_value(&self, id: ValueId) -> Option<&Value> {
        match self.net.node_weight(NodeIndex::new(id.index())) {
            Some(Node::Value(value)) if id.graph == self.id => Some(value),
            _ => None,
        }
    }

    /// The operator.
    ///
    /// # Panics
    /// When the id belongs to another graph or the operator was removed, as an index out of
    /// range would. [`Graph::get_op`] doesn't.
    #[expect(
        clippy::panic,
        reason = "a stale id is a bug of the caller, never of a file"
    )]
    pub fn op(&self, id: OpId) -> &Op {
        match self.get_op(id) {
            Some(op) => op,
            None => panic!("{id:?} is not in graph {:?}", self.name),
        }
    }

    /// The value.
    ///
    /// # Panics
    /// When the id belongs to another graph or the value was removed, as an index out of
    /// range would. [`Graph::get_value`] doesn't.
    #[expect(
        clippy::panic,
        reason = "a stale id is a bug of the caller, never of a file"
    )]
    pub fn value(&self, id: ValueId) -> &Value {
        match self.get_value(id) {
            Some(value) => value,
            None => panic!("{id:?} is not in graph {:?}", self.name),
        }
    }

    /// The value of this name.
    pub fn find_value(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).map(|&node| ValueId {
            graph: self.id,
            node,
        })
    }

    /// All operators, in the order in which they were added.
    pub fn ops(&self) -> impl Iterator<Item = OpId> + '_ {
        self.net
            .node_indices()
            .filter_map(move |i| match self.net.node_weight(i) {
                Some(Node::Op(_)) => Some(OpId {
                    graph: self.id,
                    node: i.index() as u32,
                }),
                _ => None,
            })
    }

    /// All values, in the order in which they were added.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.net
            .node_indices()
            .filter_map(move |i| match self.net.node_weight(i) {
                Some(Node::Value(_)) => Some(ValueId {
                    graph: self.id,
                    node: i.index() as u32,
                }),
                _ => None,
            })
    }

    /// The graph inputs, in order. Initializers that an old file lists as inputs are not among them.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// What a file of IR version 3 lists as inputs: the inputs and the initializers, in order.
    pub fn listed_inputs(&self) -> &[ValueId] {
        &self.listed_inputs
    }

    /// The graph outputs, in order; a value may be there twice.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The initializers, in the order of the file, new ones last.
    pub fn initializers(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.initializers
            .iter()
            .copied()
            .filter(|&v| self.get_value(v).is_some_and(|v| v.constant.is_some()))
    }

    /// The values whose type stands in the file's list of value infos, in order.
    pub fn declared(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.declared
            .iter()
            .copied()
            .filter(|&v| self.get_value(v).is_some())
    }

    /// The values that stand for values of the enclosing graph, in the order of first use.
    pub fn outer_values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.values().filter(|&v| self.value(v).outer.is_some())
    }

    /// The operators that hold graphs in attributes, in the order in which they were added.
    pub fn ops_with_subgraphs(&self) -> impl Iterator<Item = OpId> + '_ {
        self.with_subgraphs.iter().map(|&node| OpId {
            graph: self.id,
            node,
        })
    }

    /// The operator that makes a value.
    pub fn producer(&self, value: ValueId) -> Option<OpId> {
        self.get_value(value)?.producer.map(|(op, _)| op)
    }

    /// The dense tensor of a constant value.
    pub fn tensor(&self, value: ValueId) -> Option<&Tensor> {
        self.get_value(value)?.as_tensor()
    }

    /// The dense tensor in an input slot, when it is constant.
    pub fn input_tensor(&self, op: OpId, slot: usize) -> Option<&Tensor> {
        self.tensor(self.get_op(op)?.input(slot)?)
    }

    /// A name for messages: the operator's own, or that of its first output.
    pub fn op_label(&self, op: OpId) -> Name {
        let Some(op) = self.get_op(op) else {
            return "?".into();
        };
        if !op.name.is_empty() {
            return op.name.clone();
        }
        match op.outputs.iter().flatten().next() {
            Some(&v) => self
                .get_value(v)
                .map_or_else(|| "?".into(), |v| v.name.clone()),
            None => op.op_type.clone(),
        }
    }

    /// The one operator that takes a value, when exactly one slot takes it and it is no graph output.
    pub fn single_consumer(&self, value: ValueId) -> Option<(OpId, Port)> {
        let v = self.get_value(value)?;
        match v.uses.as_slice() {
            [only] if v.outputs == 0 => Some((only.op, only.port)),
            _ => None,
        }
    }

    /// The uses of a value ordered by operator and port.
    pub fn sorted_uses(&self, value: ValueId) -> Vec<Use> {
        let mut uses = self
            .get_value(value)
            .map_or_else(Vec::new, |v| v.uses.to_vec());
        uses.sort_unstable();
        uses
    }

    /// The operators so that each comes after what it takes values from; where that leaves
    /// a choice, in the order of the file. Fails when there is a cycle.
    pub fn topological_order(&self) -> Result<Vec<OpId>, GraphError> {
        let mut order: Vec<(u64, u32)> = self.ops().map(|op| (self.op(op).rank, op.node)).collect();
        order.sort_unstable();
        let mut place = vec![u32::MAX; self.id_bound()];
        for (i, &(_, node)) in order.iter().enumerate() {
            place[node as usize] = i as u32;
        }
        let id = |node| OpId {
            graph: self.id,
            node,
        };
        let dependencies = |op: &Op, f: &mut dyn FnMut(u32)| {
            for v in op.inputs().flatten().chain(op.captures()) {
                if let Some((producer, _)) = self.value(v).producer {
                    f(place[producer.index()]);
                }
            }
        };
        let sorted = order.iter().enumerate().all(|(i, &(_, node))| {
            let mut before = true;
            dependencies(self.op(id(node)), &mut |p| before &= (p as usize) < i);
            before
        });
        if sorted {
            return Ok(order.into_iter().map(|(_, node)| id(node)).collect());
        }
        // Kahn's algorithm; among the ready operators the one that stands first in the file.
        let mut waiting = vec![0u32; order.len()];
        let mut ready = BinaryHeap::new();
        for (i, &(_, node)) in order.iter().enumerate() {
            dependencies(self.op(id(node)), &mut |_| waiting[i] += 1);
            if waiting[i] == 0 {
                ready.push(std::cmp::Reverse(i as u32));
            }
        }
        let mut out = Vec::with_capacity(order.len());
        while let Some(std::cmp::Reverse(i)) = ready.pop() {
            let op = id(order[i as usize].1);
            out.push(op);
            for v in self.op(op).outputs.iter().flatten() {
                for u in &self.value(*v).uses {
                    let c = place[u.op.index()];
                    waiting[c as usize] -= 1;
                    if waiting[c as usize] == 0 {
                        ready.push(std::cmp::Reverse(c));
                    }
                }
            }
        }
        if out.len() < order.len() {
            let stuck = waiting.iter().position(|&w| w > 0).unwrap_or(0);
            return Err(GraphError::Cycle {
                graph: self.name.to_string(),
                through: self.op_label(id(order[stuck].1)).to_string(),
            });
        }
        Ok(out)
    }

    /// The graph as petgraph's algorithms take it, by reference and read-only. Only live edges
    /// are seen; what was removed is still there as nodes without edges, of the weight
    /// [`Node::Removed`]. Where they are in the way, wrap a reference to the view in petgraph's
    /// `NodeFiltered` with [`Graph::live_nodes`].
    pub fn petgraph(&self) -> EdgeFiltered<&StableDiGraph<Node, Edge, u32>, LiveEdges> {
        EdgeFiltered(&self.net, LiveEdges)
    }

    /// A filter for petgraph that lets operators and values pass, but not what was removed.
    pub fn live_nodes(&self) -> LiveNodes<'_> {
        LiveNodes(&self.net)
    }

    // ---- adding ----

    fn new_node(&mut self, node: Node) -> Result<u32, GraphError> {
        self.touch();
        let index = self
            .net
            .try_add_node(node)
            .map_err(|_| GraphError::TooLarge)?;
        Ok(index.index() as u32)
    }

    /// A value of exactly this name without a source, or the one that is there.
    pub fn value_or_add(&mut self, name: &str) -> Result<ValueId, GraphError> {
        match self.find_value(name) {
            Some(v) => Ok(v),
            None => self.add_value(name),
        }
    }

    /// A new value of exactly this name without a source.
    pub fn add_value(&mut self, name: impl Into<Name>) -> Result<ValueId, GraphError> {
        let name = name.into();
        if self.names.contains_key(&name) {
            return Err(GraphError::NameTaken(name.to_string()));
        }
        let value = Value {
            name: name.clone(),
            ty: None,
            constant: None,
            producer: None,
            producer_edge: u32::MAX,
            uses: SmallVec::new(),
            input: false,
            outputs: 0,
            outer: None,
            extra: None,
            provenance: None,
        };
        let node = self.new_node(Node::Value(Box::new(value)))?;
        self.names.insert(name, node);
        self.value_count += 1;
        Ok(ValueId {
            graph: self.id,
            node,
        })
    }

    /// A name that no value of this graph has, made from a hint.
    pub fn fresh_name(&mut self, hint: &str) -> Name {
        let hint = if hint.is_empty() { "value" } else { hint };
        if !self.names.contains_key(hint) {
            return hint.into();
        }
        let counter = self.fresh.entry(hint.into()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{hint}_{counter}");
            if !self.names.contains_key(name.as_str()) {
                return name.into();
            }
        }
    }

    /// A new value whose name is made from a hint.
    pub fn add_fresh_value(&mut self, hint: &str) -> Result<ValueId, GraphError> {
        let name = self.fresh_name(hint);
        self.add_value(name)
    }

    /// A new graph input, the last one.
    pub fn add_input(
        &mut self,
        name: impl Into<Name>,
        ty: Option<ValueType>,
    ) -> Result<ValueId, GraphError> {
        let name = name.into();
        let v = self.value_or_add(&name)?;
        let value = self.value_mut(v)?;
        if value.input || value.producer.is_some() || value.outer.is_some() {
            return Err(GraphError::AlreadyProduced(name.to_string()));
        }
        value.input = true;
        if ty.is_some() {
            value.ty = ty.map(Box::new);
        }
        let unlisted = value.constant.is_none();
        self.inputs.push(v);
        if !self.listed_inputs.is_empty() && unlisted {
            self.listed_inputs.push(v);
        }
        self.touch();
        Ok(v)
    }

    /// Turns the inputs that have an initializer into plain constants which the file lists as
    /// inputs: what a model of IR version 3 means by listing its initializers there.
    pub fn fix_listed_initializers(&mut self) {
        self.listed_inputs = self.inputs.clone();
        let (fixed, inputs) = std::mem::take(&mut self.inputs)
            .into_iter()
            .partition::<Vec<_>, _>(|&v| self.get_value(v).is_some_and(|v| v.constant.is_some()));
        self.inputs = inputs;
        for v in fixed {
            if let Ok(value) = self.value_mut(v) {
                value.input = false;
            }
        }
        self.touch();
    }

    /// Makes a value a graph output, the last one.
    pub fn add_output(&mut self, v: ValueId) -> Result<(), GraphError> {
        self.value_mut(v)?.outputs += 1;
        self.outputs.push(v);
        self.touch();
        Ok(())
    }

    /// A new constant whose name is made from a hint.
    pub fn add_constant(&mut self, hint: &str, tensor: Tensor) -> Result<ValueId, GraphError> {
        let v = self.add_fresh_value(hint)?;
        self.add_initializer(v, Constant::Dense(tensor))?;
        if let Some(pass) = self.author.clone() {
            let p = Arc::new(Provenance {
                passes: vec![pass],
                ..Provenance::default()
            });
            self.value_mut(v)?.provenance = Some(p);
        }
        Ok(v)
    }

    /// Gives a value without producer an initializer. For a graph input it becomes the default.
    pub fn add_initializer(&mut self, v: ValueId, c: Constant) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        if value.producer.is_some() || value.constant.is_some() || value.outer.is_some() {
            return Err(GraphError::AlreadyProduced(value.name.to_string()));
        }
        value.constant = Some(Box::new(c));
        let unlisted = !value.input;
        self.initializers.push(v);
        if !self.listed_inputs.is_empty() && unlisted {
            self.listed_inputs.push(v);
        }
        self.touch();
        Ok(())
    }

    /// A value of this graph that stands for a value of the enclosing one. The operator that
    /// holds this graph takes up the capture when the graph is put into its attribute.
    pub fn capture(&mut self, outer: ValueId, name: &str) -> Result<ValueId, GraphError> {
        if let Some(v) = self.values().find(|&v| self.value(v).outer == Some(outer)) {
            return Ok(v);
        }
        // What only is declared here may turn out to be the captured value; any other value of
        // the name yields it, since a capture has the name that it has outside.
        let v = match self.find_value(name) {
            Some(v) if self.is_merely_declared(v) => v,
            Some(v) => {
                let fresh = self.fresh_name(name);
                self.rename_value(v, fresh)?;
                self.add_value(name)?
            }
            None => self.add_value(name)?,
        };
        self.value_mut(v)?.outer = Some(outer);
        self.touch();
        Ok(v)
    }

    fn is_merely_declared(&self, v: ValueId) -> bool {
        let v = self.value(v);
        v.producer.is_none() && !v.input && v.constant.is_none() && v.outer.is_none()
    }

    /// Makes a value without a source stand for a value of the enclosing graph, for readers,
    /// which know that nothing else of this graph does. See [`Graph::capture`].
    pub fn bind_capture(&mut self, inner: ValueId, outer: ValueId) -> Result<(), GraphError> {
        self.check_value(inner)?;
        if !self.is_merely_declared(inner) {
            return Err(GraphError::AlreadyProduced(
                self.value(inner).name.to_string(),
            ));
        }
        self.value_mut(inner)?.outer = Some(outer);
        self.touch();
        Ok(())
    }

    /// Adds an operator.
    pub fn add_op(&mut self, new: NewOp) -> Result<OpId, GraphError> {
        for v in new.inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        for attr in &new.attrs {
            self.check_captures(&attr.value)?;
        }
        for output in &new.outputs {
            match output {
                NewOutput::Existing(v) => {
                    let value = self.check_value(*v)?;
                    if value.producer.is_some()
                        || value.input
                        || value.constant.is_some()
                        || value.outer.is_some()
                    {
                        return Err(GraphError::AlreadyProduced(value.name.to_string()));
                    }
                }
                NewOutput::Named(name) if self.names.contains_key(name) => {
                    return Err(GraphError::NameTaken(name.to_string()));
                }
                _ => {}
            }
        }
        let rank = match new.after.or_else(|| new.from.last().copied()) {
            Some(op) => self.get_op(op).map(|op| op.rank),
            None => None,
        };
        let rank = rank.unwrap_or_else(|| {
            self.next_rank += RANK_STEP;
            self.next_rank
        });
        let provenance = self.derive_op_provenance(&new.from);
        let domain = if &*new.domain == "ai.onnx" {
            "".into()
        } else {
            new.domain
        };
        let op = Op {
            name: new.name,
            op_type: new.op_type,
            domain,
            attrs: new.attrs,
            inputs: SmallVec::new(),
            outputs: SmallVec::new(),
            captures: Vec::new(),
            rank,
            extra: new.extra,
            provenance,
        };
        let has_subgraphs = op.has_subgraphs();
        let node = self.new_node(Node::Op(Box::new(op)))?;
        let id = OpId {
            graph: self.id,
            node,
        };
        self.op_count += 1;
        self.attach_inputs(id, &new.inputs)?;
        for (i, output) in new.outputs.into_iter().enumerate() {
            let v = match output {
                NewOutput::Existing(v) => Some(v),
                NewOutput::Named(name) => Some(self.add_value(name)?),
                NewOutput::Fresh(hint) => Some(self.add_fresh_value(&hint)?),
                NewOutput::Absent => None,
            };
            self.op_mut(id)?.outputs.push(None);
            if let Some(v) = v {
                self.attach_output(id, i, v)?;
            }
        }
        if has_subgraphs {
            self.with_subgraphs.insert(node);
            self.sync_captures(id)?;
        }
        Ok(id)
    }

    fn derive_op_provenance(&self, from: &[OpId]) -> Option<Arc<Provenance>> {
        let author = self.author.as_ref()?;
        let sources: Vec<(Name, Option<Arc<Provenance>>)> = from
            .iter()
            .filter_map(|&op| Some((self.op_label(op), self.get_op(op)?.provenance.clone())))
            .collect();
        Some(Arc::new(Provenance::derive(
            author,
            sources.iter().map(|(n, p)| (n, p.as_ref())),
        )))
    }

    // ---- editing ----

    /// Puts new inputs into all slots of an operator.
    pub fn set_inputs(&mut self, op: OpId, inputs: &[Option<ValueId>]) -> Result<(), GraphError> {
        for v in inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        self.check_op(op)?;
        self.detach_inputs(op)?;
        self.attach_inputs(op, inputs)?;
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Puts a value into one input slot; slots up to it are added as absent.
    pub fn set_input(
        &mut self,
        op: OpId,
        slot: usize,
        value: Option<ValueId>,
    ) -> Result<(), GraphError> {
        if let Some(v) = value {
            self.check_value(v)?;
        }
        let o = self.op_mut(op)?;
        if o.inputs.len() <= slot {
            if value.is_none() {
                return Ok(());
            }
            o.inputs.resize(slot + 1, None);
        }
        if let Some(old) = o.inputs[slot].take() {
            self.detach_use(old);
        }
        if let Some(v) = value {
            let taken = self.attach_use(v, op, Port::Input(slot as u32));
            self.op_mut(op)?.inputs[slot] = Some(taken);
        }
        let o = self.op_mut(op)?;
        while matches!(o.inputs.last(), Some(None)) {
            o.inputs.pop();
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Sets an attribute.
    pub fn set_attr(
        &mut self,
        op: OpId,
        name: &str,
        value: impl Into<AttrValue>,
    ) -> Result<(), GraphError> {
        let value = value.into();
        self.check_op(op)?;
        self.check_captures(&value)?;
        let o = self.op_mut(op)?;
        match o.attrs.iter_mut().find(|a| &*a.name == name) {
            Some(a) => a.value = value,
            None => o.attrs.push(Attribute::new(name, value)),
        }
        self.attrs_changed(op)
    }

    /// Removes an attribute; does nothing when it is not written out.
    pub fn remove_attr(&mut self, op: OpId, name: &str) -> Result<(), GraphError> {
        let o = self.op_mut(op)?;
        let before = o.attrs.len();
        o.attrs.retain(|a| &*a.name != name);
        if o.attrs.len() == before {
            Ok(())
        } else {
            self.attrs_changed(op)
        }
    }

    fn attrs_changed(&mut self, op: OpId) -> Result<(), GraphError> {
        if self.op_mut(op)?.has_subgraphs() {
            self.with_subgraphs.insert(op.node);
            self.sync_captures(op)?;
        } else if self.with_subgraphs.remove(&op.node) {
            self.sync_captures(op)?;
        }
        self.note_change(op)?;
        self.touch();
        Ok(())
    }

    /// Records that the current pass changed an operator.
    fn note_change(&mut self, op: OpId) -> Result<(), GraphError> {
        if let Some(p) = self.derive_op_provenance(&[op]) {
            self.op_mut(op)?.provenance = Some(p);
        }
        Ok(())
    }

    /// Renames an operator.
    pub fn set_op_name(&mut self, op: OpId, name: impl Into<Name>) -> Result<(), GraphError> {
        self.op_mut(op)?.name = name.into();
        self.touch();
        Ok(())
    }

    /// Sets what a file says about an operator that is rarely there.
    pub fn set_op_extra(&mut self, op: OpId, extra: OpExtra) -> Result<(), GraphError> {
        self.op_mut(op)?.extra = (extra != OpExtra::default()).then(|| Box::new(extra));
        self.touch();
        Ok(())
    }

    /// Sets or drops the declared type of a value.
    pub fn set_type(&mut self, v: ValueId, ty: Option<ValueType>) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        if value.ty.as_deref() != ty.as_ref() {
            value.ty = ty.map(Box::new);
            self.touch();
        }
        Ok(())
    }

    /// Puts a value on the file's list of value infos.
    pub fn declare(&mut self, v: ValueId) -> Result<(), GraphError> {
        self.check_value(v)?;
        self.declared.push(v);
        Ok(())
    }

    /// Takes values off the file's list of value infos, except those that `keep` says yes to.
    pub fn retain_declared(&mut self, mut keep: impl FnMut(ValueId, &Value) -> bool) {
        let mut declared = std::mem::take(&mut self.declared);
        declared.retain(|&v| self.get_value(v).is_some_and(|value| keep(v, value)));
        self.declared = declared;
        self.touch();
    }

    /// Sets what a file says about a value besides name and type.
    pub fn set_value_extra(&mut self, v: ValueId, extra: ValueExtra) -> Result<(), GraphError> {
        self.value_mut(v)?.extra = (extra != ValueExtra::default()).then(|| Box::new(extra));
        self.touch();
        Ok(())
    }

    /// Adds an entry of a file that what is said about a value doesn't give back, for readers.
    pub fn add_spelling(&mut self, v: ValueId, spelling: Spelling) -> Result<(), GraphError> {
        let extra = self.value_mut(v)?.extra.get_or_insert_default();
        extra.spellings.push(spelling);
        self.touch();
        Ok(())
    }

    /// Replaces the elements of an initializer, its shape and element type too if they differ.
    /// `kept` says which indices of the old tensor the new one keeps, for provenance.
    pub fn set_tensor(
        &mut self,
        v: ValueId,
        tensor: Tensor,
        kept: Vec<Kept>,
    ) -> Result<(), GraphError> {
        let author = self.author.clone();
        let value = self.value_mut(v)?;
        let Some(old) = &value.constant else {
            return Err(GraphError::NoSuch {
                what: "initializer",
                id: value.name.to_string(),
                graph: self.name.to_string(),
            });
        };
        if old.dims() != tensor.dims() || old.dtype() != tensor.dtype() {
            value.ty = None;
        }
        value.constant = Some(Box::new(Constant::Dense(tensor)));
        if let Some(author) = author {
            let mut p = Provenance::derive(&author, [(&value.name, value.provenance.as_ref())]);
            p.kept = value
                .provenance
                .as_ref()
                .map_or_else(Vec::new, |p| p.kept.clone());
            p.kept.extend(kept);
            value.provenance = Some(Arc::new(p));
        }
        self.touch();
        Ok(())
    }

    /// Records which values a tensor was made from.
    pub fn set_tensor_sources(
        &mut self,
        v: ValueId,
        sources: &[ValueId],
    ) -> Result<(), GraphError> {
        let Some(author) = self.author.clone() else {
            return Ok(());
        };
        let named: Vec<(Name, Option<Arc<Provenance>>)> = sources
            .iter()
            .filter_map(|&s| {
                let s = self.get_value(s)?;
                Some((s.name.clone(), s.provenance.clone()))
            })
            .collect();
        let p = Provenance::derive(&author, named.iter().map(|(n, p)| (n, p.as_ref())));
        self.value_mut(v)?.provenance = Some(Arc::new(p));
        Ok(())
    }

    /// Puts back the origin of an operator that a file records; no edit of the graph.
    pub fn restore_op_provenance(
        &mut self,
        op: OpId,
        origin: Arc<Provenance>,
    ) -> Result<(), GraphError> {
        self.op_mut(op)?.provenance = Some(origin);
        Ok(())
    }

    /// Puts back the origin of a tensor that a file records; no edit of the graph.
    pub fn restore_value_provenance(
        &mut self,
        v: ValueId,
        origin: Arc<Provenance>,
    ) -> Result<(), GraphError> {
        self.value_mut(v)?.provenance = Some(origin);
        Ok(())
    }

    /// Turns the output of an operator into a constant of the same name; the operator's slot
    /// becomes absent.
    pub fn fold_to_constant(&mut self, v: ValueId, tensor: Tensor) -> Result<(), GraphError> {
        self.fold_to_initializer(v, Constant::Dense(tensor))
    }

    /// As [`Graph::fold_to_constant`], for a constant that may be sparse.
    pub fn fold_to_initializer(&mut self, v: ValueId, c: Constant) -> Result<(), GraphError> {
        let sources: Vec<(Name, Option<Arc<Provenance>>)> = match self.check_value(v)?.producer {
            Some((op, _)) => vec![(self.op_label(op), self.op(op).provenance.clone())],
            None => return Err(GraphError::AlreadyProduced(self.value(v).name.to_string())),
        };
        self.detach_output(v)?;
        self.add_initializer(v, c)?;
        if let Some(author) = self.author.clone() {
            let p = Provenance::derive(&author, sources.iter().map(|(n, p)| (n, p.as_ref())));
            self.value_mut(v)?.provenance = Some(Arc::new(p));
        }
        Ok(())
    }

    /// Renames a value, also where graphs in attributes capture it.
    pub fn rename_value(&mut self, v: ValueId, name: impl Into<Name>) -> Result<(), GraphError> {
        let name = name.into();
        if self.check_value(v)?.name == name {
            return Ok(());
        }
        if self.names.contains_key(&name) {
            return Err(GraphError::NameTaken(name.to_string()));
        }
        let value = self.value_mut(v)?;
        let old = std::mem::replace(&mut value.name, name.clone());
        let capturing: Vec<OpId> = value
            .uses
            .iter()
            .filter(|u| u.port == Port::Capture)
            .map(|u| u.op)
            .collect();
        self.names.remove(&old);
        self.names.insert(name.clone(), v.node);
        for op in capturing {
            for graph in self
                .op_mut(op)?
                .attrs
                .iter_mut()
                .flat_map(|a| a.value.graphs_mut())
            {
                let inner = graph.values().find(|&i| graph.value(i).outer == Some(v));
                if let Some(inner) = inner {
                    graph.rename_for_capture(inner, &name)?;
                }
            }
        }
        self.touch();
        Ok(())
    }

    /// Gives a captured value the name it has outside; a value inside that has the name yields it.
    fn rename_for_capture(&mut self, inner: ValueId, name: &Name) -> Result<(), GraphError> {
        if let Some(other) = self.find_value(name).filter(|&o| o != inner) {
            let fresh = self.fresh_name(name);
            self.rename_value(other, fresh)?;
        }
        self.rename_value(inner, name.clone())
    }

    /// Whether [`Graph::replace_value`] would succeed.
    pub fn can_replace(&self, old: ValueId, new: ValueId) -> bool {
        self.check_replace(old, new).is_ok()
    }

    fn check_replace(&self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        let (o, n) = (self.check_value(old)?, self.check_value(new)?);
        if let (Some(a), Some(b)) = (o.known_type(), n.known_type())
            && !a.compatible(&b)
        {
            return Err(GraphError::TypeMismatch {
                old: o.name.to_string(),
                old_type: a.to_string(),
                new: n.name.to_string(),
                new_type: b.to_string(),
            });
        }
        if old != new && o.outputs > 0 && (o.input || n.producer.is_none() || n.outputs > 0) {
            return Err(GraphError::OutputBound {
                old: o.name.to_string(),
                new: n.name.to_string(),
            });
        }
        Ok(())
    }

    /// Makes everything that takes `old` take `new`: operators, captures and graph outputs.
    /// Where `old` is a graph output, `new` gets its name and its declared type.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        self.check_replace(old, new)?;
        if old == new {
            return Ok(());
        }
        let uses = std::mem::take(&mut self.value_mut(old)?.uses);
        let mut capturing = Vec::new();
        for u in uses {
            match u.port {
                Port::Input(slot) => {
                    let taken = self.attach_use(new, u.op, u.port);
                    let place = &mut self.op_mut(u.op)?.inputs[slot as usize];
                    if let Some(before) = place.replace(taken) {
                        self.remove_edge(before.edge);
                    }
                }
                Port::Capture => capturing.push(u),
                Port::Output(_) => {}
            }
        }
        // The captures are put back first, so that each is removed by the common way.
        for u in &capturing {
            let position = self.value(old).uses.len() as u32;
            self.value_mut(old)?.uses.push(*u);
            let o = self.op_mut(u.op)?;
            if let Some(s) = o.captures.iter_mut().find(|s| s.value == old) {
                s.position = position;
            }
        }
        let new_name = self.value(new).name.clone();
        for u in capturing {
            for graph in self
                .op_mut(u.op)?
                .attrs
                .iter_mut()
                .flat_map(|a| a.value.graphs_mut())
            {
                graph.repoint_capture(old, new, &new_name)?;
            }
            self.sync_captures(u.op)?;
        }
        if self.value(old).outputs > 0 {
            for v in &mut self.outputs {
                if *v == old {
                    *v = new;
                }
            }
            let o = self.value_mut(old)?;
            let (count, ty, extra) = (std::mem::take(&mut o.outputs), o.ty.clone(), o.extra.take());
            let name = o.name.clone();
            let spare = self.fresh_name(&name);
            self.rename_value(old, spare)?;
            self.rename_value(new, name)?;
            let n = self.value_mut(new)?;
            n.outputs = count;
            n.extra = extra;
            if ty.is_some() {
                n.ty = ty;
            }
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    fn repoint_capture(
        &mut self,
        old: ValueId,
        new: ValueId,
        name: &Name,
    ) -> Result<(), GraphError> {
        let find = |g: &Graph, outer| g.values().find(|&v| g.value(v).outer == Some(outer));
        let Some(inner) = find(self, old) else {
            return Ok(());
        };
        match find(self, new) {
            Some(there) => {
                // The graph's outputs may be captured values; the merged one takes all its places.
                for v in &mut self.outputs {
                    if *v == inner {
                        *v = there;
                    }
                }
                let value = self.value_mut(inner)?;
                let count = std::mem::take(&mut value.outputs);
                // The types were compared outside; what stands in here says no more.
                value.ty = None;
                self.value_mut(there)?.outputs += count;
                self.replace_value(inner, there)?;
                self.value_mut(inner)?.outer = None;
                self.remove_value(inner)
            }
            None => {
                let value = self.value_mut(inner)?;
                value.outer = Some(new);
                value.ty = None;
                self.rename_for_capture(inner, name)?;
                self.touch();
                Ok(())
            }
        }
    }

    /// Replaces an operator by a new one, which takes over the old one's outputs slot by slot,
    /// with their names, unless it names outputs itself; then the old outputs must be unused.
    /// An empty name is replaced by the old one's, and provenance records the old operator.
    pub fn replace_op(&mut self, old: OpId, mut new: NewOp) -> Result<OpId, GraphError> {
        let o = self.check_op(old)?;
        for v in new.inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        let taken: Vec<Option<ValueId>> = o.outputs.to_vec();
        // The new operator can't take what only the old one makes.
        if let Some(v) = new
            .inputs
            .iter()
            .flatten()
            .find(|&&v| taken.contains(&Some(v)))
        {
            return Err(GraphError::StillUsed(self.value(*v).name.to_string()));
        }
        for attr in &new.attrs {
            self.check_captures(&attr.value)?;
        }
        if new.name.is_empty() {
            new.name = o.name.clone();
        }
        new.from.insert(0, old);
        new.after.get_or_insert(old);
        // An operator without a name is called by its output, which it has for now.
        let provenance = self.derive_op_provenance(&new.from);
        if new.outputs.is_empty() {
            for v in taken.iter().flatten() {
                self.detach_output(*v)?;
            }
            new.outputs = taken
                .iter()
                .map(|v| v.map_or(NewOutput::Absent, NewOutput::Existing))
                .collect();
        } else if let Some(used) = self.used_output(old) {
            return Err(GraphError::StillUsed(used));
        }
        let author = self.author.take();
        let added = self.add_op(new);
        self.author = author;
        let id = added?;
        self.op_mut(id)?.provenance = provenance;
        self.remove_op(old)?;
        Ok(id)
    }

    /// Makes `op` the producer of `value` at an output slot instead of what makes it now. The
    /// value that stood in the slot must be unused; it is removed.
    pub fn move_output(&mut self, value: ValueId, op: OpId, slot: usize) -> Result<(), GraphError> {
        self.check_op(op)?;
        let v = self.check_value(value)?;
        if v.input || v.constant.is_some() || v.outer.is_some() {
            return Err(GraphError::AlreadyProduced(v.name.to_string()));
        }
        let old_producer = v.producer.map(|(p, _)| p);
        if let Some(before) = self.op(op).output(slot).filter(|&b| b != value) {
            // The old producer of `value` may be the one use that is about to go.
            let others = self
                .value(before)
                .uses
                .iter()
                .any(|u| Some(u.op) != old_producer || u.port == Port::Capture);
            if others || self.value(before).outputs > 0 {
                return Err(GraphError::StillUsed(self.value(before).name.to_string()));
            }
            self.detach_output(before)?;
            let uses = self.value(before).uses.clone();
            for u in uses {
                if let Port::Input(slot) = u.port {
                    let taken = self.op_mut(u.op)?.inputs[slot as usize].take();
                    if let Some(taken) = taken {
                        self.detach_use(taken);
                    }
                }
            }
            self.remove_value(before)?;
        }
        if v_has_producer(self, value) {
            self.detach_output(value)?;
        }
        let o = self.op_mut(op)?;
        if o.outputs.len() <= slot {
            o.outputs.resize(slot + 1, None);
        }
        self.attach_output(op, slot, value)?;
        if let Some(p) =
            self.derive_op_provenance(&[op].into_iter().chain(old_producer).collect::<Vec<_>>())
        {
            self.op_mut(op)?.provenance = Some(p);
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Drops the trailing output slots of an operator that nobody asks for, down to `min`.
    pub fn trim_outputs(&mut self, op: OpId, min: usize) -> Result<(), GraphError> {
        loop {
            let o = self.check_op(op)?;
            if o.outputs.len() <= min {
                return Ok(());
            }
            match o.outputs.last() {
                Some(Some(v)) if self.value(*v).is_unused() => {
                    let v = *v;
                    self.detach_output(v)?;
                    self.remove_value(v)?;
                }
                Some(Some(_)) | None => return Ok(()),
                Some(None) => {}
            }
            self.op_mut(op)?.outputs.pop();
            self.touch();
        }
    }

    fn used_output(&self, op: OpId) -> Option<String> {
        self.op(op)
            .outputs
            .iter()
            .flatten()
            .map(|&v| self.value(v))
            .find(|v| !v.is_unused())
            .map(|v| v.name.to_string())
    }

    /// Removes an operator and its outputs, which must be unused.
    pub fn remove_op(&mut self, op: OpId) -> Result<(), GraphError> {
        self.check_op(op)?;
        if let Some(used) = self.used_output(op) {
            return Err(GraphError::StillUsed(used));
        }
        self.detach_inputs(op)?;
        for capture in std::mem::take(&mut self.op_mut(op)?.captures) {
            self.detach_use(capture);
        }
        let outputs = self.op(op).outputs.clone();
        for v in outputs.into_iter().flatten() {
            self.detach_output(v)?;
            self.remove_value(v)?;
        }
        self.with_subgraphs.remove(&op.node);
        if let Some(node) = self.net.node_weight_mut(NodeIndex::new(op.index())) {
            *node = Node::Removed;
        }
        self.op_count -= 1;
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Removes a value that nothing takes and no operator makes. A graph input can't be removed.
    pub fn remove_value(&mut self, v: ValueId) -> Result<(), GraphError> {
        let value = self.check_value(v)?;
        if !value.is_unused() || value.producer.is_some() || value.input {
            return Err(GraphError::StillUsed(value.name.to_string()));
        }
        let name = value.name.clone();
        let listed = value.constant.is_some() && !self.listed_inputs.is_empty();
        self.names.remove(&name);
        if listed {
            self.listed_inputs.retain(|&l| l != v);
        }
        if let Some(node) = self.net.node_weight_mut(NodeIndex::new(v.index())) {
            *node = Node::Removed;
        }
        self.value_count -= 1;
        self.touch();
        Ok(())
    }

    /// Edits the graphs in an operator's attributes, in order; the operator's captures are
    /// brought up to date afterwards. The closure also sees the position among the graphs.
    pub fn edit_subgraphs<E: From<GraphError>>(
        &mut self,
        op: OpId,
        mut edit: impl FnMut(usize, &mut Graph) -> Result<(), E>,
    ) -> Result<(), E> {
        let author = self.author.clone();
        let mut attrs = std::mem::take(&mut self.op_mut(op)?.attrs);
        let mut result = Ok(());
        let mut changed = false;
        let graphs = attrs.iter_mut().flat_map(|a| a.value.graphs_mut());
        for (i, graph) in graphs.enumerate() {
            if graph.author != author {
                graph.set_author(author.clone());
            }
            let before = graph.revision;
            result = edit(i, graph);
            changed |= graph.revision != before;
            if result.is_err() {
                break;
            }
        }
        self.op_mut(op)?.attrs = attrs;
        if changed {
            self.sync_captures(op)?;
            self.touch();
        }
        result
    }

    /// A copy with ids of its own, so that both can stand in one model.
    pub fn duplicate(&self) -> Graph {
        let mut copy = self.clone();
        copy.renumber();
        copy
    }

    fn renumber(&mut self) {
        let (old, new) = (self.id, next_graph_id());
        let op = |o: &mut OpId| o.graph = new;
        let value = |v: &mut ValueId| v.graph = new;
        self.id = new;
        self.touch();
        [
            &mut self.inputs,
            &mut self.listed_inputs,
            &mut self.outputs,
            &mut self.initializers,
            &mut self.declared,
        ]
        .into_iter()
        .flatten()
        .for_each(value);
        for node in self.net.node_weights_mut() {
            match node {
                Node::Op(o) => {
                    o.inputs
                        .iter_mut()
                        .flatten()
                        .for_each(|s| value(&mut s.value));
                    o.captures.iter_mut().for_each(|s| value(&mut s.value));
                    o.outputs.iter_mut().flatten().for_each(value);
                    for graph in o.attrs.iter_mut().flat_map(|a| a.value.graphs_mut()) {
                        graph.renumber();
                        graph.renumber_outer(old, new);
                    }
                }
                Node::Value(v) => {
                    v.uses.iter_mut().for_each(|u| op(&mut u.op));
                    if let Some((p, _)) = &mut v.producer {
                        op(p);
                    }
                }
                Node::Removed => {}
            }
        }
    }

    fn renumber_outer(&mut self, old: GraphId, new: GraphId) {
        for node in self.net.node_weights_mut() {
            if let Node::Value(v) = node
                && let Some(outer) = &mut v.outer
                && outer.graph == old
            {
                outer.graph = new;
            }
        }
    }

    // ---- plumbing ----

    fn no_such(&self, what: &'static str, id: impl fmt::Debug) -> GraphError {
        GraphError::NoSuch {
            what,
            id: format!("{id:?}"),
            graph: self.name.to_string(),
        }
    }

    fn check_op(&self, op: OpId) -> Result<&Op, GraphError> {
        self.get_op(op).ok_or_else(|| self.no_such("operator", op))
    }

    fn check_value(&self, v: ValueId) -> Result<&Value, GraphError> {
        self.get_value(v).ok_or_else(|| self.no_such("value", v))
    }

    fn op_mut(&mut self, op: OpId) -> Result<&mut Op, GraphError> {
        if self.get_op(op).is_none() {
            return Err(self.no_such("operator", op));
        }
        match self.net.node_weight_mut(NodeIndex::new(op.index())) {
            Some(Node::Op(o)) => Ok(o),
            _ => Err(GraphError::TooLarge),
        }
    }

    fn value_mut(&mut self, v: ValueId) -> Result<&mut Value, GraphError> {
        if self.get_value(v).is_none() {
            return Err(self.no_such("value", v));
        }
        match self.net.node_weight_mut(NodeIndex::new(v.index())) {
            Some(Node::Value(value)) => Ok(value),
            _ => Err(GraphError::TooLarge),
        }
    }

    fn add_edge(&mut self, from: u32, to: u32, port: Port) -> u32 {
        self.live_edges += 1;
        let (from, to) = (NodeIndex::new(from as usize), NodeIndex::new(to as usize));
        self.net.add_edge(from, to, Edge::Port(port)).index() as u32
    }

    fn remove_edge(&mut self, edge: u32) {
        if let Some(e) = self.net.edge_weight_mut(EdgeIndex::new(edge as usize)) {
            *e = Edge::Removed;
            self.removed_edges += 1;
            self.live_edges -= 1;
        }
    }

    /// Rebuilds the edges once the removed ones outnumber the live ones: linear work for a
    /// linear number of edits.
    fn sweep(&mut self) {
        if self.removed_edges <= self.live_edges + 1024 {
            return;
        }
        self.net.clear_edges();
        self.live_edges = 0;
        self.removed_edges = 0;
        let ops: Vec<OpId> = self.ops().collect();
        for id in ops {
            let op = self.op(id);
            let inputs: SmallVec<[Option<u32>; 4]> =
                op.inputs.iter().map(|s| s.map(|s| s.value.node)).collect();
            let captures: Vec<u32> = op.captures.iter().map(|s| s.value.node).collect();
            let outputs: SmallVec<[Option<ValueId>; 2]> = op.outputs.iter().copied().collect();
            for (i, v) in inputs.into_iter().enumerate() {
                let Some(v) = v else { continue };
                let edge = self.add_edge(v, id.node, Port::Input(i as u32));
                if let Ok(o) = self.op_mut(id)
                    && let Some(Some(s)) = o.inputs.get_mut(i)
                {
                    s.edge = edge;
                }
            }
            for (i, v) in captures.into_iter().enumerate() {
                let edge = self.add_edge(v, id.node, Port::Capture);
                if let Ok(o) = self.op_mut(id) {
                    o.captures[i].edge = edge;
                }
            }
            for (i, v) in outputs.into_iter().enumerate() {
                let Some(v) = v else { continue };
                let edge = self.add_edge(id.node, v.node, Port::Output(i as u32));
                if let Ok(value) = self.value_mut(v) {
                    value.producer_edge = edge;
                }
            }
        }
    }

    /// Records a use on the value's side. The caller checked the value.
    fn attach_use(&mut self, v: ValueId, op: OpId, port: Port) -> Slot {
        let edge = self.add_edge(v.node, op.node, port);
        let mut position = 0;
        if let Ok(value) = self.value_mut(v) {
            position = value.uses.len() as u32;
            value.uses.push(Use { op, port });
        }
        Slot {
            value: v,
            position,
            edge,
        }
    }

    /// Removes a use on the value's side; the operator's slot was emptied by the caller.
    fn detach_use(&mut self, slot: Slot) {
        self.remove_edge(slot.edge);
        let at = slot.position as usize;
        let Ok(value) = self.value_mut(slot.value) else {
            return;
        };
        value.uses.swap_remove(at);
        // What was last stands at `at` now; its operator must know.
        let Some(moved) = value.uses.get(at).copied() else {
            return;
        };
        let Ok(op) = self.op_mut(moved.op) else {
            return;
        };
        let place = match moved.port {
            Port::Input(i) => op.inputs.get_mut(i as usize).and_then(Option::as_mut),
            Port::Capture => op.captures.iter_mut().find(|s| s.value == slot.value),
            Port::Output(_) => None,
        };
        if let Some(place) = place {
            place.position = slot.position;
        }
    }

    fn attach_inputs(&mut self, op: OpId, inputs: &[Option<ValueId>]) -> Result<(), GraphError> {
        for (i, v) in inputs.iter().enumerate() {
            let slot = v.map(|v| self.attach_use(v, op, Port::Input(i as u32)));
            self.op_mut(op)?.inputs.push(slot);
        }
        Ok(())
    }

    fn detach_inputs(&mut self, op: OpId) -> Result<(), GraphError> {
        while let Some(slot) = self.op_mut(op)?.inputs.pop() {
            if let Some(slot) = slot {
                self.detach_use(slot);
            }
        }
        Ok(())
    }

    fn attach_output(&mut self, op: OpId, slot: usize, v: ValueId) -> Result<(), GraphError> {
        let edge = self.add_edge(op.node, v.node, Port::Output(slot as u32));
        let value = self.value_mut(v)?;
        value.producer = Some((op, slot as u32));
        value.producer_edge = edge;
        self.op_mut(op)?.outputs[slot] = Some(v);
        Ok(())
    }

    fn detach_output(&mut self, v: ValueId) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        let edge = value.producer_edge;
        if let Some((op, slot)) = value.producer.take() {
            self.remove_edge(edge);
            self.op_mut(op)?.outputs[slot as usize] = None;
        }
        Ok(())
    }

    /// Checks that what the graphs of an attribute capture is here.
    fn check_captures(&self, attr: &AttrValue) -> Result<(), GraphError> {
        for graph in attr.graphs() {
            for v in graph.values() {
                if let Some(outer) = graph.value(v).outer {
                    self.check_value(outer)?;
                }
            }
        }
        Ok(())
    }

    /// Gives captured values the names that they have here: in a file, the name is the capture.
    fn align_capture_names(&mut self, op: OpId) -> Result<(), GraphError> {
        let mut renames = Vec::new();
        for (i, graph) in self.op(op).subgraphs().enumerate() {
            for v in graph.values() {
                let value = graph.value(v);
                let Some(outer) = value.outer else { continue };
                let name = &self.check_value(outer)?.name;
                if *name != value.name {
                    renames.push((i, v, name.clone()));
                }
            }
        }
        for (i, v, name) in renames {
            let mut graphs = self.op_mut(op)?.attrs.iter_mut();
            let graph = graphs.by_ref().flat_map(|a| a.value.graphs_mut()).nth(i);
            if let Some(graph) = graph {
                graph.rename_for_capture(v, &name)?;
            }
        }
        Ok(())
    }

    /// Brings an operator's captures in line with the graphs in its attributes.
    fn sync_captures(&mut self, op: OpId) -> Result<(), GraphError> {
        self.align_capture_names(op)?;
        let mut wanted: Vec<ValueId> = Vec::new();
        let mut seen = BTreeSet::new();
        for graph in self.op(op).subgraphs() {
            for v in graph.values() {
                if let Some(outer) = graph.value(v).outer
                    && seen.insert(outer)
                {
                    self.check_value(outer)?;
                    wanted.push(outer);
                }
            }
        }
        while let Some(slot) = self.op_mut(op)?.captures.pop() {
            self.detach_use(slot);
        }
        for v in wanted {
            let slot = self.attach_use(v, op, Port::Capture);
            self.op_mut(op)?.captures.push(slot);
        }
        Ok(())
    }

    /// Checks the invariants at the top of this file: `Err` names the first that is broken.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut live = 0usize;
        for id in self.ops() {
            let op = self.op(id);
            let ports = op
                .inputs
                .iter()
                .enumerate()
                .filter_map(|(i, s)| Some((Port::Input(i as u32), (*s)?)));
            let captures = op.captures.iter().map(|s| (Port::Capture, *s));
            for (port, slot) in ports.chain(captures) {
                let value = self
                    .get_value(slot.value)
                    .ok_or(format!("{id:?} takes a removed value"))?;
                if value.uses.get(slot.position as usize) != Some(&Use { op: id, port }) {
                    return Err(format!(
                        "{id:?} {port:?} and the uses of \"{}\" disagree",
                        value.name
                    ));
                }
                self.check_edge(slot.edge, slot.value.node, id.node, port)?;
                live += 1;
            }
            for (i, v) in op.outputs.iter().enumerate() {
                let Some(v) = v else { continue };
                let value = self
                    .get_value(*v)
                    .ok_or(format!("{id:?} makes a removed value"))?;
                if value.producer != Some((id, i as u32)) {
                    return Err(format!(
                        "{id:?} and the producer of \"{}\" disagree",
                        value.name
                    ));
                }
                self.check_edge(value.producer_edge, id.node, v.node, Port::Output(i as u32))?;
                live += 1;
            }
            let listed: BTreeSet<ValueId> = op.captures().collect();
            let taken: BTreeSet<ValueId> = op
                .subgraphs()
                .flat_map(|g| g.outer_values().filter_map(|v| g.value(v).outer))
                .collect();
            if !listed.is_subset(&taken) {
                return Err(format!("{id:?} lists a capture that no graph takes"));
            }
            if op.has_subgraphs() != self.with_subgraphs.contains(&id.node) {
                return Err(format!(
                    "{id:?} is missing among the operators with subgraphs"
                ));
            }
            for graph in op.subgraphs() {
                graph.check_invariants()?;
                for v in graph.outer_values() {
                    let outer = graph.value(v).outer;
                    let outside = outer.and_then(|v| self.get_value(v));
                    if outside.is_none_or(|o| o.name != graph.value(v).name) {
                        return Err(format!(
                            "the capture \"{}\" has another name outside",
                            graph.value(v).name
                        ));
                    }
                    if outer.is_none_or(|v| !listed.contains(&v)) {
                        return Err(format!(
                            "{id:?} doesn't list the capture \"{}\"",
                            graph.value(v).name
                        ));
                    }
                }
            }
        }
        let mut uses = 0usize;
        for id in self.values() {
            let value = self.value(id);
            if self.names.get(&value.name) != Some(&id.node) {
                return Err(format!(
                    "the name \"{}\" doesn't lead to its value",
                    value.name
                ));
            }
            uses += value.uses.len() + usize::from(value.producer.is_some());
            let listed = self.outputs.iter().filter(|&&o| o == id).count();
            if listed != value.outputs as usize || self.inputs.contains(&id) != value.input {
                return Err(format!("inputs or outputs and \"{}\" disagree", value.name));
            }
        }
        let edges = self
            .net
            .edge_references()
            .filter(|e| *e.weight() != Edge::Removed)
            .count();
        if live != uses || live != edges || live != self.live_edges {
            return Err(format!("{live} ports, {uses} uses, {edges} edges"));
        }
        Ok(())
    }

    fn check_edge(&self, edge: u32, from: u32, to: u32, port: Port) -> Result<(), String> {
        let index = EdgeIndex::new(edge as usize);
        let ends = self
            .net
            .edge_endpoints(index)
            .map(|(a, b)| (a.index() as u32, b.index() as u32));
        if ends != Some((from, to)) || self.net.edge_weight(index) != Some(&Edge::Port(port)) {
            return Err(format!("no edge from {from} to {to} at {port:?}"));
        }
        Ok(())
    }

    /// The operators that directly take a value made by `op`, each once, in order.
    pub fn successors(&self, op: OpId) -> Vec<OpId> {
        let mut out: Vec<OpId> = self
            .get_op(op)
            .into_iter()
            .flat_map(|o| o.outputs.iter().flatten())
            .flat_map(|&v| self.value(v).uses.iter().map(|u| u.op))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The operators that make what `op` takes, each once, in order.
    pub fn predecessors(&self, op: OpId) -> Vec<OpId> {
        let mut out: Vec<OpId> = self
            .petgraph_neighbors(op, Direction::Incoming)
            .filter_map(|v| self.producer(v))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    fn petgraph_neighbors(
        &self,
        op: OpId,
        direction: Direction,
    ) -> impl Iterator<Item = ValueId> + '_ {
        self.net
            .edges_directed(NodeIndex::new(op.index()), direction)
            .filter(|e| *e.weight() != Edge::Removed)
            .map(move |e| {
                let other = if direction == Direction::Incoming {
                    e.source()
                } else {
                    e.target()
                };
                ValueId {
                    graph: self.id,
                    node: other.index() as u32,
                }
            })
    }
}

fn v_has_producer(graph: &Graph, v: ValueId) -> bool {
    graph.get_value(v).is_some_and(|v| v.producer.is_some())
}

/// Lets petgraph see live edges only.
#[derive(Clone, Copy, Debug)]
pub struct LiveEdges;

impl<'a> FilterEdge<petgraph::stable_graph::EdgeReference<'a, Edge, u32>> for LiveEdges {
    fn include_edge(&self, edge: petgraph::stable_graph::EdgeReference<'a, Edge, u32>) -> bool {
        *edge.weight() != Edge::Removed
    }
}

/// Lets petgraph see live nodes only.
#[derive(Clone, Copy, Debug)]
pub struct LiveNodes<'a>(&'a StableDiGraph<Node, Edge, u32>);

impl FilterNode<NodeIndex<u32>> for LiveNodes<'_> {
    fn include_node(&self, node: NodeIndex<u32>) -> bool {
        !matches!(self.0.node_weight(node), None | Some(Node::Removed))
    }
}

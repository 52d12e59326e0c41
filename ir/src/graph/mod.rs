//! The graph and its edits: the only module that names petgraph.
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

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use petgraph::stable_graph::{NodeIndex, StableDiGraph};

use crate::op::Op;
use crate::tensor::Tensor;
use crate::value::{Name, Use, Value};

mod add;
mod edit;
mod invariants;
mod nested;
mod order;
mod replace;
mod splice;
mod wiring;

pub use order::{LiveEdges, LiveNodes};
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
}

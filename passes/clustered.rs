//! Weights that `cluster-weights` stored as codes and tables, and how other passes treat them.
//!
//! Such a weight is a small graph of constants: codes of at most eight bits, unpacked by lookups
//! in integer tables, then looked up in a table of centroids.
//!
//! ```text
//! i = Cast <to = int32> (codes)      pairs = Gather (book, table)      w = Gather (pairs, i)
//! ```
//!
//! The table is stored in bytes too, so what it makes of the centroids looks like weights that are
//! looked up again. Biases and scales beside them are numbers of 16 bits that are cast and scaled.
//!
//! It is known by this pattern, which any file keeps, or for weights that were snapped in place
//! by their provenance. Computing it ahead would undo it, so `fold-constants` leaves it alone;
//! pruning or quantizing what is clustered would tear the clusters apart, so that is an error
//! (`order.rs`).

use std::collections::{HashMap, HashSet};

use paring_ir::{DType, Graph, GraphError, OpId, ValueId, schema};

/// The pass that makes clustered weights.
pub(crate) const CLUSTER_WEIGHTS: &str = "cluster-weights";

/// What a value is on the way from codes to weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Made of constants alone.
    Constant,
    /// Numbers of centroids, made of constants of at most eight bits.
    Codes,
    /// Centroids that were looked up by codes.
    Weights,
}

/// The operators that expand clustered weights, and the weights.
#[derive(Debug, Default)]
pub(crate) struct Expansions {
    kinds: HashMap<ValueId, Kind>,
    ops: HashSet<OpId>,
    lookups: HashSet<OpId>,
}

impl Expansions {
    /// Looks at a whole graph.
    pub(crate) fn of(graph: &Graph) -> Result<Expansions, GraphError> {
        let mut out = Expansions::default();
        // Nearly no model has any, and then the order of its operators isn't needed.
        if !graph.ops().any(|op| starts(graph, op).is_some()) {
            return Ok(out);
        }
        let order = graph.topological_order()?;
        for &op in &order {
            out.visit(graph, op);
        }
        // What leads to a lookup of weights belongs to it: the unpacking, and what is done to
        // the table.
        for &op in order.iter().rev() {
            let leads = |v: ValueId| {
                let mut uses = graph.value(v).uses().iter();
                out.kinds.contains_key(&v) && uses.any(|u| out.ops.contains(&u.op))
            };
            let made = graph.op(op).outputs().iter().flatten();
            if made.copied().any(leads) {
                out.ops.insert(op);
            }
        }
        Ok(out)
    }

    /// Whether an operator expands codes to weights, or leads to one that does.
    pub(crate) fn contains(&self, op: OpId) -> bool {
        self.ops.contains(&op)
    }

    /// Whether an operator looks up centroids.
    pub(crate) fn is_lookup(&self, op: OpId) -> bool {
        self.lookups.contains(&op)
    }

    /// Whether a value holds expanded weights.
    pub(crate) fn is_weight(&self, v: ValueId) -> bool {
        self.kinds.get(&v) == Some(&Kind::Weights)
    }

    fn kind(&self, graph: &Graph, v: ValueId) -> Option<Kind> {
        let known = self.kinds.get(&v).copied();
        known.or_else(|| graph.tensor(v).map(|_| Kind::Constant))
    }

    fn visit(&mut self, graph: &Graph, op: OpId) {
        let Some(kind) = self.result(graph, op) else {
            return;
        };
        if kind == Kind::Weights {
            self.ops.insert(op);
        }
        let made = graph.op(op).outputs().iter().flatten();
        self.kinds.extend(made.map(|&v| (v, kind)));
    }

    /// What an operator makes.
    fn result(&mut self, graph: &Graph, op: OpId) -> Option<Kind> {
        let o = graph.op(op);
        match starts(graph, op) {
            Some(DType::I16) => return Some(Kind::Weights),
            Some(_) => return Some(Kind::Codes),
            None => {}
        }
        if !schema::is_pure_standard(o) {
            return None;
        }
        if o.is("Gather") {
            let (table, index) = (o.input(0)?, o.input(1)?);
            return match (self.kind(graph, table), self.kind(graph, index)) {
                (Some(Kind::Constant), Some(Kind::Codes)) if is_float(graph, table) => {
                    self.lookups.insert(op);
                    Some(Kind::Weights)
                }
                // What whole bytes of codes stand for was worked out first.
                (Some(Kind::Weights), Some(Kind::Codes)) => {
                    self.lookups.extend(graph.producer(table));
                    Some(Kind::Weights)
                }
                (Some(Kind::Constant), Some(Kind::Codes)) => Some(Kind::Codes),
                (Some(Kind::Constant), Some(Kind::Constant)) => Some(Kind::Constant),
                // One of several vectors that were stored together.
                (Some(Kind::Weights), Some(Kind::Constant)) => Some(Kind::Weights),
                // Used rows of packed codes, whatever says which ones.
                (Some(Kind::Codes), _) => Some(Kind::Codes),
                _ => None,
            };
        }
        let kinds: Option<Vec<Kind>> =
            (o.inputs().flatten().map(|v| self.kind(graph, v))).collect();
        let kinds = kinds.filter(|k| !k.is_empty())?;
        let of = |kind| kinds.contains(&kind);
        let shapes = ["Reshape", "Slice", "Concat", "Transpose", "Cast"];
        let passes_on = |more: &str| shapes.iter().any(|t| o.is(t)) || o.is(more);
        match (of(Kind::Weights), of(Kind::Codes)) {
            (false, false) => Some(Kind::Constant),
            (false, true) if passes_on("Add") => Some(Kind::Codes),
            (true, false) if ["Mul", "Add", "Exp"].iter().any(|t| passes_on(t)) => {
                Some(Kind::Weights)
            }
            _ => None,
        }
    }
}

/// The type of the constant where codes or numbers begin: a Cast of constant integers of at most
/// eight bits, or of rows of them, or of 16 bits to floats.
fn starts(graph: &Graph, op: OpId) -> Option<DType> {
    let o = graph.op(op);
    let x = o.input(0).filter(|_| o.is("Cast"))?;
    let source = match graph.producer(x).map(|p| graph.op(p)) {
        Some(rows) if rows.is("Gather") => rows.input(0),
        Some(_) => None,
        None => Some(x),
    };
    let dtype = graph.tensor(source?)?.dtype();
    let float = i64::from(DType::F32.to_onnx());
    let whole = source == Some(x) && o.int("to") == Some(float);
    match dtype {
        DType::U8 | DType::U4 | DType::U2 => Some(dtype),
        DType::I16 => Some(dtype).filter(|_| whole),
        _ => None,
    }
}

/// Whether a constant, or what is made of constants, is of floats: the first constant tells.
fn is_float(graph: &Graph, v: ValueId) -> bool {
    let mut at = v;
    // A table is made in a few steps; the bound keeps odd graphs from costing time.
    for _ in 0..8 {
        if let Some(t) = graph.tensor(at) {
            return t.dtype().is_float();
        }
        let producer = graph.producer(at).map(|p| graph.op(p));
        if producer.is_some_and(|o| o.is("DequantizeLinear")) {
            return true;
        }
        let first = producer.and_then(|o| o.input(0));
        let Some(first) = first else { return false };
        at = first;
    }
    false
}

/// Whether a constant was snapped to centroids in place.
pub(crate) fn is_snapped(graph: &Graph, v: ValueId) -> bool {
    let float = graph.tensor(v).is_some_and(|t| t.dtype().is_float());
    let origin = graph.value(v).provenance();
    float && origin.is_some_and(|p| p.passes.iter().any(|name| &**name == CLUSTER_WEIGHTS))
}

//! What changed between two models.
//!
//! Operators are aligned in three steps. First by structure: walking both graphs from their
//! inputs, two operators are the same when type, attributes and the values that they take are;
//! initializers are the same when their elements are. This survives renaming and reordering.
//! Then by name, and then by the names of their outputs, which finds operators that were
//! changed. What is left was added or removed. Renames and moves alone are no changes.

mod tensors;

use std::collections::{BTreeMap, HashMap, HashSet};

use paring_ir::{AttrValue, Constant, Graph, GraphError, Model, OpId, ValueId, ValueType};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

pub use tensors::{TensorChange, compare_tensors};

/// One thing that differs, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What differs: `attribute alpha`, `input 1`, `type`, `opset`, ...
    pub what: String,
    /// As it is in the first model; absent where it is not there.
    pub before: Option<String>,
    /// As it is in the second model; absent where it is not there.
    pub after: Option<String>,
}

/// An operator that was added or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpRef {
    /// The name, or that of the first output.
    pub name: String,
    /// The operator type.
    pub op_type: String,
    /// The passes that made it, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// What it was made from, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
}

/// An operator that is in both models and differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpChange {
    /// The operator in the second model.
    #[serde(flatten)]
    pub op: OpRef,
    /// What differs.
    pub changes: Vec<Difference>,
}

/// Added, removed and changed operators.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpDiff {
    /// In the second model only.
    pub added: Vec<OpRef>,
    /// In the first model only.
    pub removed: Vec<OpRef>,
    /// In both.
    pub changed: Vec<OpChange>,
    /// In both without a change.
    pub same: usize,
    /// Without a change but for names of operators or values.
    pub renamed: usize,
}

/// Added, removed and changed initializers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorDiff {
    /// In the second model only: name and type.
    pub added: Vec<(String, String)>,
    /// In the first model only: name and type.
    pub removed: Vec<(String, String)>,
    /// In both.
    pub changed: Vec<TensorChange>,
    /// In both without a change.
    pub same: usize,
    /// Without a change but for the name.
    pub renamed: usize,
}

/// What changed between two models.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diff {
    /// Inputs, outputs, opsets, metadata.
    pub interface: Vec<Difference>,
    /// Operators, those inside subgraphs included.
    pub operators: OpDiff,
    /// Initializers.
    pub initializers: TensorDiff,
}

impl Diff {
    /// Whether nothing changed; names count only when `strict`.
    pub fn is_empty(&self, strict: bool) -> bool {
        let (o, t) = (&self.operators, &self.initializers);
        self.interface.is_empty()
            && o.added.is_empty()
            && o.removed.is_empty()
            && o.changed.is_empty()
            && t.added.is_empty()
            && t.removed.is_empty()
            && t.changed.is_empty()
            && (!strict || o.renamed + t.renamed == 0)
    }
}

/// Compares two models.
pub fn diff(a: &Model, b: &Model) -> Result<Diff, GraphError> {
    let mut out = Diff {
        interface: interface(a, b),
        ..Diff::default()
    };
    let mut aligner = Aligner::new(&a.graph, &b.graph);
    aligner.run(&mut out)?;
    for f in &a.functions {
        let same = |g: &&paring_ir::Function| {
            (&g.domain, &g.name, &g.overload) == (&f.domain, &f.name, &f.overload)
        };
        if let Some(g) = b.functions.iter().find(same) {
            Aligner::new(&f.body, &g.body).run(&mut out)?;
        }
    }
    Ok(out)
}

fn interface(a: &Model, b: &Model) -> Vec<Difference> {
    let mut out = Vec::new();
    let opsets = |m: &Model| -> BTreeMap<String, String> {
        m.opsets
            .iter()
            .map(|o| (domain_name(&o.domain), o.version.to_string()))
            .collect()
    };
    differing("opset", &opsets(a), &opsets(b), &mut out);
    if a.ir_version != b.ir_version {
        out.push(change(
            "ir_version",
            Some(a.ir_version.to_string()),
            Some(b.ir_version.to_string()),
        ));
    }
    let metadata = |m: &Model| -> BTreeMap<String, String> {
        m.metadata
            .iter()
            .filter(|(k, _)| &**k != crate::provenance::KEY)
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    };
    differing("metadata", &metadata(a), &metadata(b), &mut out);
    let functions = |m: &Model| -> BTreeMap<String, String> {
        m.functions
            .iter()
            .map(|f| {
                (
                    format!("{}::{}", f.domain, f.name),
                    format!("{} operators", f.body.op_count()),
                )
            })
            .collect()
    };
    differing("function", &functions(a), &functions(b), &mut out);
    let values = |g: &Graph, list: &[ValueId]| -> BTreeMap<String, String> {
        list.iter()
            .map(|&v| {
                (
                    g.value(v).name().to_string(),
                    type_text(g.value(v).declared_type()),
                )
            })
            .collect()
    };
    let (ga, gb) = (&a.graph, &b.graph);
    differing(
        "input",
        &values(ga, ga.inputs()),
        &values(gb, gb.inputs()),
        &mut out,
    );
    differing(
        "output",
        &values(ga, ga.outputs()),
        &values(gb, gb.outputs()),
        &mut out,
    );
    out
}

fn domain_name(domain: &str) -> String {
    if domain.is_empty() {
        "ai.onnx".to_owned()
    } else {
        domain.to_owned()
    }
}

fn change(what: impl Into<String>, before: Option<String>, after: Option<String>) -> Difference {
    Difference {
        what: what.into(),
        before,
        after,
    }
}

/// What differs between two maps.
fn differing(
    what: &str,
    a: &BTreeMap<String, String>,
    b: &BTreeMap<String, String>,
    out: &mut Vec<Difference>,
) {
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for key in keys {
        let (x, y) = (a.get(key), b.get(key));
        if x != y {
            out.push(change(format!("{what} {key}"), x.cloned(), y.cloned()));
        }
    }
}

/// A type as text, such as `float[batch,3,224,224]`.
pub fn type_text(ty: Option<&ValueType>) -> String {
    match ty {
        None => "untyped".to_owned(),
        Some(ValueType::Tensor { dtype, shape }) => {
            let dtype = dtype.map_or("?", |d| d.name());
            match shape {
                None => format!("{dtype}[…]"),
                Some(s) => {
                    let dims: Vec<String> = s.iter().map(ToString::to_string).collect();
                    format!("{dtype}[{}]", dims.join(","))
                }
            }
        }
        Some(other) => format!("{other:?}"),
    }
}

/// What an input of an operator is, as far as the alignment knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Anchor {
    Absent,
    /// A graph input, by its position, or an operator's output, by the class that the walk gave it.
    Class(u64),
    /// A constant, by its elements.
    Constant(u128),
}

struct Aligner<'a> {
    a: &'a Graph,
    b: &'a Graph,
    /// The operator of `a` that each operator of `b` is aligned with, and the other way round.
    to_a: HashMap<OpId, OpId>,
    to_b: HashMap<OpId, OpId>,
}

impl<'a> Aligner<'a> {
    fn new(a: &'a Graph, b: &'a Graph) -> Aligner<'a> {
        Aligner {
            a,
            b,
            to_a: HashMap::new(),
            to_b: HashMap::new(),
        }
    }

    fn run(&mut self, out: &mut Diff) -> Result<(), GraphError> {
        let order_a = self.a.topological_order()?;
        let order_b = self.b.topological_order()?;
        let same = self.align_structure(&order_a, &order_b);
        self.align_by(&order_a, &order_b, |g, op| {
            let name = g.op(op).name();
            (!name.is_empty()).then(|| name.to_string())
        });
        self.align_by(&order_a, &order_b, |g, op| {
            let v = g.op(op).outputs().iter().flatten().next()?;
            Some(g.value(*v).name().to_string())
        });
        self.report_ops(&order_a, &order_b, &same, &mut out.operators);
        self.report_tensors(&mut out.initializers);
        self.report_subgraphs(&order_b, out)
    }

    fn pair(&mut self, a: OpId, b: OpId) {
        self.to_b.insert(a, b);
        self.to_a.insert(b, a);
    }

    /// Aligns operators whose type, attributes and sources are the same; gives those of `b`.
    fn align_structure(&mut self, order_a: &[OpId], order_b: &[OpId]) -> HashSet<OpId> {
        let keys_a = structure_keys(self.a, order_a);
        let keys_b = structure_keys(self.b, order_b);
        let mut waiting: HashMap<u64, Vec<OpId>> = HashMap::new();
        for (&op, &key) in order_a.iter().zip(&keys_a).rev() {
            waiting.entry(key).or_default().push(op);
        }
        // Among equal candidates the one of the same name is meant.
        let mut same = HashSet::new();
        for by_name in [true, false] {
            for (&op, key) in order_b.iter().zip(&keys_b) {
                if self.to_a.contains_key(&op) {
                    continue;
                }
                let Some(candidates) = waiting.get_mut(key) else {
                    continue;
                };
                let name = self.b.op_label(op);
                let at = if by_name {
                    // Long lists of equal operators would make this quadratic.
                    let near = candidates.len().saturating_sub(64);
                    candidates[near..]
                        .iter()
                        .rposition(|&c| self.a.op_label(c) == name)
                        .map(|i| i + near)
                } else {
                    candidates.len().checked_sub(1)
                };
                if let Some(at) = at {
                    let other = candidates.remove(at);
                    self.pair(other, op);
                    same.insert(op);
                }
            }
        }
        same
    }

    fn align_by(
        &mut self,
        order_a: &[OpId],
        order_b: &[OpId],
        key: impl Fn(&Graph, OpId) -> Option<String>,
    ) {
        let mut open: HashMap<String, OpId> = HashMap::new();
        for &op in order_a.iter().filter(|op| !self.to_b.contains_key(op)) {
            if let Some(k) = key(self.a, op) {
                open.entry(k).or_insert(op);
            }
        }
        for &op in order_b {
            if self.to_a.contains_key(&op) {
                continue;
            }
            if let Some(other) = key(self.b, op).and_then(|k| open.remove(&k)) {
                self.pair(other, op);
            }
        }
    }

    fn report_ops(
        &self,
        order_a: &[OpId],
        order_b: &[OpId],
        same: &HashSet<OpId>,
        out: &mut OpDiff,
    ) {
        for &op in order_a.iter().filter(|op| !self.to_b.contains_key(op)) {
            out.removed.push(op_ref(self.a, op));
        }
        for &op in order_b {
            let Some(&other) = self.to_a.get(&op) else {
                out.added.push(op_ref(self.b, op));
                continue;
            };
            let changes = self.op_changes(other, op, same.contains(&op));
            if changes.is_empty() {
                out.same += 1;
                out.renamed += usize::from(!self.same_names(other, op));
            } else {
                out.changed.push(OpChange {
                    op: op_ref(self.b, op),
                    changes,
                });
            }
        }
    }

    fn same_names(&self, a: OpId, b: OpId) -> bool {
        let names = |g: &Graph, op: OpId| -> Vec<String> {
            let op = g.op(op);
            op.inputs()
                .chain(op.outputs().iter().copied())
                .map(|v| v.map_or(String::new(), |v| g.value(v).name().to_string()))
                .chain([op.name().to_string()])
                .collect()
        };
        names(self.a, a) == names(self.b, b)
    }

    fn op_changes(&self, a: OpId, b: OpId, same_structure: bool) -> Vec<Difference> {
        let mut out = Vec::new();
        if same_structure {
            return out;
        }
        let (x, y) = (self.a.op(a), self.b.op(b));
        let full = |d: &str, t: &str| {
            if d.is_empty() {
                t.to_owned()
            } else {
                format!("{d}::{t}")
            }
        };
        let (tx, ty) = (full(x.domain(), x.op_type()), full(y.domain(), y.op_type()));
        if tx != ty {
            out.push(change("type", Some(tx), Some(ty)));
        }
        let attrs = |op: &paring_ir::Op| -> BTreeMap<String, String> {
            op.attrs()
                .iter()
                .filter(|a| a.value.graphs().is_empty())
                .map(|a| (a.name.to_string(), attr_text(&a.value)))
                .collect()
        };
        differing("attribute", &attrs(x), &attrs(y), &mut out);
        for slot in 0..x.input_count().max(y.input_count()) {
            let (u, v) = (x.input(slot), y.input(slot));
            if !self.same_value(u, v) {
                let name = |g: &Graph, v: Option<ValueId>| v.map(|v| g.value(v).name().to_string());
                let (mut before, mut after) = (name(self.a, u), name(self.b, v));
                if before == after {
                    before = u.map(|u| source_text(self.a, u));
                    after = v.map(|v| source_text(self.b, v));
                }
                out.push(change(format!("input {slot}"), before, after));
            }
        }
        if x.outputs().len() != y.outputs().len() {
            out.push(change(
                "outputs",
                Some(x.outputs().len().to_string()),
                Some(y.outputs().len().to_string()),
            ));
        }
        out
    }

    /// Whether two values are the same one as far as the alignment goes.
    fn same_value(&self, a: Option<ValueId>, b: Option<ValueId>) -> bool {
        let (a, b) = match (a, b) {
            (None, None) => return true,
            (Some(a), Some(b)) => (a, b),
            _ => return false,
        };
        let (x, y) = (self.a.value(a), self.b.value(b));
        // What makes a value may be gone or new, and is told where it stood; the same name says
        // that the value took its place.
        let alone = |p: Option<(OpId, u32)>, aligned: &HashMap<OpId, OpId>| {
            p.is_some_and(|(op, _)| !aligned.contains_key(&op))
        };
        if alone(x.producer(), &self.to_b) || alone(y.producer(), &self.to_a) {
            return x.name() == y.name();
        }
        match (x.producer(), y.producer()) {
            (Some((p, i)), Some((q, j))) => i == j && self.to_b.get(&p) == Some(&q),
            (None, None) => match (x.initializer(), y.initializer()) {
                // A changed initializer of the same name is reported where it stands.
                (Some(s), Some(t)) => x.name() == y.name() || s == t,
                (None, None) => x.name() == y.name(),
                _ => false,
            },
            _ => false,
        }
    }

    fn report_tensors(&self, out: &mut TensorDiff) {
        let text = |c: &Constant| type_text(Some(&c.value_type()));
        let mut gone: Vec<ValueId> = Vec::new();
        let mut seen: HashSet<ValueId> = HashSet::new();
        for v in self.a.initializers() {
            let name = self.a.value(v).name();
            let other = self
                .b
                .find_value(name)
                .filter(|&w| self.b.value(w).initializer().is_some());
            let (Some(w), Some(x)) = (other, self.a.value(v).initializer()) else {
                gone.push(v);
                continue;
            };
            seen.insert(w);
            match self
                .b
                .value(w)
                .initializer()
                .and_then(|y| tensors::change_of(name, x, y, self.b.value(w)))
            {
                Some(c) => out.changed.push(c),
                None => out.same += 1,
            }
        }
        let mut open: HashMap<u128, Vec<ValueId>> = HashMap::new();
        for v in gone.iter().rev() {
            if let Some(c) = self.a.value(*v).initializer() {
                open.entry(constant_key(c)).or_default().push(*v);
            }
        }
        let mut found: HashSet<ValueId> = HashSet::new();
        for w in self.b.initializers().filter(|w| !seen.contains(w)) {
            let Some(c) = self.b.value(w).initializer() else {
                continue;
            };
            match open.get_mut(&constant_key(c)).and_then(Vec::pop) {
                Some(v) => {
                    found.insert(v);
                    out.same += 1;
                    out.renamed += 1;
                }
                None => out
                    .added
                    .push((self.b.value(w).name().to_string(), text(c))),
            }
        }
        for v in gone.into_iter().filter(|v| !found.contains(v)) {
            if let Some(c) = self.a.value(v).initializer() {
                out.removed
                    .push((self.a.value(v).name().to_string(), text(c)));
            }
        }
    }

    /// Compares the graphs inside aligned operators.
    fn report_subgraphs(&self, order_b: &[OpId], out: &mut Diff) -> Result<(), GraphError> {
        for &op in order_b.iter().filter(|&&op| self.b.op(op).has_subgraphs()) {
            let Some(&other) = self.to_a.get(&op) else {
                continue;
            };
            for (x, y) in self.a.op(other).subgraphs().zip(self.b.op(op).subgraphs()) {
                Aligner::new(x, y).run(out)?;
            }
        }
        Ok(())
    }
}

/// A value with what makes it, for values that the name alone does not tell apart.
fn source_text(g: &Graph, v: ValueId) -> String {
    let value = g.value(v);
    match (value.producer(), value.initializer()) {
        (Some((op, slot)), _) => {
            let label = g.op_label(op);
            format!("{} (output {slot} of {label})", value.name())
        }
        (None, Some(_)) => format!("{} (an initializer)", value.name()),
        (None, None) => format!("{} (an input)", value.name()),
    }
}

fn op_ref(g: &Graph, op: OpId) -> OpRef {
    let o = g.op(op);
    let origin = o.provenance();
    let names = |list: &[paring_ir::Name]| list.iter().map(|n| n.to_string()).collect();
    OpRef {
        name: g.op_label(op).to_string(),
        op_type: o.op_type().to_string(),
        by: origin.map_or_else(Vec::new, |p| names(&p.passes)),
        from: origin.map_or_else(Vec::new, |p| names(&p.from)),
    }
}

fn constant_key(c: &Constant) -> u128 {
    match c {
        Constant::Dense(t) => t.digest(),
        Constant::Sparse(s) => s.values.digest() ^ s.indices.digest().rotate_left(1),
    }
}

/// For each operator a hash of its type, its attributes and what it takes, through all of the
/// graph before it.
fn structure_keys(g: &Graph, order: &[OpId]) -> Vec<u64> {
    let mut class: HashMap<ValueId, Anchor> = HashMap::new();
    for (i, &v) in g.inputs().iter().enumerate() {
        class.insert(v, Anchor::Class(i as u64));
    }
    let mut keys = Vec::with_capacity(order.len());
    for &op in order {
        let o = g.op(op);
        let mut h = Xxh3::new();
        h.update(o.domain().as_bytes());
        h.update(b"\0");
        h.update(o.op_type().as_bytes());
        let mut attrs: Vec<_> = o.attrs().iter().collect();
        attrs.sort_by(|a, b| a.name.cmp(&b.name));
        for a in attrs {
            h.update(b"\0");
            h.update(a.name.as_bytes());
            hash_attr(&a.value, &mut h);
        }
        for v in o.inputs().chain(o.captures().map(Some)) {
            hash_anchor(
                v.map_or(Anchor::Absent, |v| anchor_of(g, v, &mut class)),
                &mut h,
            );
        }
        let key = h.digest();
        for (i, v) in o.outputs().iter().enumerate() {
            if let Some(v) = v {
                class.insert(*v, Anchor::Class(key.wrapping_add(1 + i as u64)));
            }
        }
        keys.push(key);
    }
    keys
}

fn anchor_of(g: &Graph, v: ValueId, class: &mut HashMap<ValueId, Anchor>) -> Anchor {
    if let Some(a) = class.get(&v) {
        return *a;
    }
    let value = g.value(v);
    let anchor = match value.initializer() {
        Some(c) => Anchor::Constant(constant_key(c)),
        None => {
            // Captured from outside, or without a source: known by name only.
            Anchor::Class(xxhash_rust::xxh3::xxh3_64(value.name().as_bytes()))
        }
    };
    class.insert(v, anchor);
    anchor
}

fn hash_anchor(anchor: Anchor, h: &mut Xxh3) {
    match anchor {
        Anchor::Absent => h.update(b"\x00"),
        Anchor::Class(c) => {
            h.update(b"\x01");
            h.update(&c.to_le_bytes());
        }
        Anchor::Constant(c) => {
            h.update(b"\x02");
            h.update(&c.to_le_bytes());
        }
    }
}

fn hash_attr(value: &AttrValue, h: &mut Xxh3) {
    h.update(&[value.kind() as u8]);
    match value {
        AttrValue::Tensor(t) => h.update(&t.digest().to_le_bytes()),
        AttrValue::Tensors(ts) => ts.iter().for_each(|t| h.update(&t.digest().to_le_bytes())),
        AttrValue::SparseTensor(s) => h.update(&s.values.digest().to_le_bytes()),
        AttrValue::Graph(_) | AttrValue::Graphs(_) => {
            // Operators with subgraphs are aligned by where they stand; the graphs are compared apart.
        }
        other => h.update(attr_text(other).as_bytes()),
    }
}

/// An attribute's value as text; long lists are cut.
fn attr_text(value: &AttrValue) -> String {
    match value {
        AttrValue::Float(v) => format!("{v:?}"),
        AttrValue::Int(v) => v.to_string(),
        AttrValue::String(s) => format!("{:?}", String::from_utf8_lossy(s)),
        AttrValue::Floats(v) => format!("{v:?}"),
        AttrValue::Ints(v) => format!("{v:?}"),
        AttrValue::Graph(g) => format!("graph of {} operators", g.op_count()),
        other => format!("{other:?}"),
    }
}

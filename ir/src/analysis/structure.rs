//! Structural hashes: what an operator is by its surroundings, whatever anything is called.
//!
//! Every operator gets three hashes. `own` covers its type, its attributes and its constants;
//! `up` also all that its inputs are made from; `down` also all that its outputs go into. Two
//! operators of two models that agree in `up` and `down` stand at the same place of the same
//! graph; where one thing was edited, what comes before it keeps `up`, and what comes after it
//! keeps `down`. Colour refinement (Weisfeiler and Leman, 1968) of a few rounds finds what stands
//! between two edits: see [`Structure::neighbourhood`].
//!
//! Attributes that say what holds anyway are as if absent, and a `Constant` operator is as good as
//! an initializer. Names count nowhere, except as far as the caller anchors inputs and outputs.

use std::collections::HashMap;

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::attr::AttrValue;
use crate::graph::{Graph, OpId, ValueId};
use crate::model::{Model, OpsetImport};
use crate::op::Op;
use crate::schema;
use crate::tensor::{SparseTensor, Tensor};
use crate::value::{Constant, ValueType};

/// How much of an operator counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Detail {
    /// Type, attributes, and the elements of constants.
    Elements,
    /// Type, attributes, and the types of constants.
    Types,
    /// Type, and which inputs are constant.
    Kinds,
    /// Type, without constants; quantizing, converting and identity operators are looked through.
    Plain,
}

/// The constants of a model: initializers that no input overrides, and `Constant` operators, in
/// all graphs and functions, with hashes of their elements.
#[derive(Debug, Default)]
pub struct Constants {
    entries: HashMap<ValueId, Entry>,
    roots: Vec<ValueId>,
}

#[derive(Debug)]
struct Entry {
    root: ValueId,
    held: Option<(Constant, u128)>,
}

impl Constants {
    /// Collects the constants. Reads every element once.
    pub fn of(model: &Model) -> Constants {
        let mut out = Constants::default();
        model.for_each_graph(&mut |g| out.collect(g));
        for f in &model.functions {
            out.collect_nested(&f.body);
        }
        out
    }

    fn collect_nested(&mut self, graph: &Graph) {
        self.collect(graph);
        for op in graph.ops_with_subgraphs() {
            for inner in graph.op(op).subgraphs() {
                self.collect_nested(inner);
            }
        }
    }

    fn collect(&mut self, graph: &Graph) {
        let initializers = graph
            .initializers()
            .filter_map(|v| Some((v, graph.value(v).as_constant()?.clone())));
        let operators = graph.ops().filter_map(|op| {
            let op = graph.op(op);
            Some((op.output(0)?, constant_of(op)?))
        });
        for (v, constant) in initializers.chain(operators) {
            let digest = digest(&constant);
            self.roots.push(v);
            let held = Some((constant, digest));
            self.entries.insert(v, Entry { root: v, held });
        }
        // Graphs are visited from the outside in, so what is captured is known already.
        for v in graph.outer_values() {
            let outer = graph.value(v).captured_from();
            let root = outer.and_then(|o| self.entries.get(&o)).map(|e| e.root);
            if let Some(root) = root {
                self.entries.insert(v, Entry { root, held: None });
            }
        }
    }

    /// The value that holds the constant that `value` is: itself, or in a graph inside what it
    /// captures. `None` when it is no constant.
    pub fn root(&self, value: ValueId) -> Option<ValueId> {
        self.entries.get(&value).map(|e| e.root)
    }

    /// The constant that a value is.
    pub fn get(&self, value: ValueId) -> Option<&Constant> {
        self.entry(value).map(|(c, _)| c)
    }

    /// A hash of element type, shape and elements of the constant that a value is.
    pub fn digest(&self, value: ValueId) -> Option<u128> {
        self.entry(value).map(|(_, d)| *d)
    }

    /// The values that hold constants, graph by graph from the outside in, initializers first.
    pub fn roots(&self) -> &[ValueId] {
        &self.roots
    }

    fn entry(&self, value: ValueId) -> Option<&(Constant, u128)> {
        let root = self.root(value)?;
        self.entries.get(&root)?.held.as_ref()
    }
}

fn digest(constant: &Constant) -> u128 {
    match constant {
        Constant::Dense(t) => t.digest(),
        Constant::Sparse(s) => sparse_digest(s),
    }
}

fn sparse_digest(s: &SparseTensor) -> u128 {
    let mut h = Mix::default();
    h.wide(s.values.digest());
    h.wide(s.indices.digest());
    s.dims.iter().for_each(|&d| h.number(d as u64));
    u128::from(h.finish())
}

/// What a `Constant` operator holds; `None` for other operators, and where its attributes hold
/// nothing that is known.
pub fn constant_of(op: &Op) -> Option<Constant> {
    if !op.is("Constant") {
        return None;
    }
    let [attr] = op.attrs() else { return None };
    let tensor = match (&*attr.name, &attr.value) {
        ("value", AttrValue::Tensor(t)) => t.clone(),
        ("value_float", AttrValue::Float(v)) => Tensor::scalar(*v),
        ("value_floats", AttrValue::Floats(v)) => Tensor::vector(v.clone()),
        ("value_int", AttrValue::Int(v)) => Tensor::scalar(*v),
        ("value_ints", AttrValue::Ints(v)) => Tensor::vector(v.clone()),
        ("value_string", AttrValue::String(v)) => Tensor::from_strings([], [v.clone()]).ok()?,
        ("value_strings", AttrValue::Strings(v)) => {
            Tensor::from_strings([v.len()], v.clone()).ok()?
        }
        ("sparse_value", AttrValue::SparseTensor(v)) => {
            return Some(Constant::Sparse(std::sync::Arc::new((**v).clone())));
        }
        _ => return None,
    };
    Some(Constant::Dense(tensor))
}

/// Whether an operator gives its first input back, but for rounding or the element type.
pub fn is_transparent(op: &Op) -> bool {
    op.domain().is_empty()
        && matches!(
            &**op.op_type(),
            "QuantizeLinear" | "DequantizeLinear" | "Identity" | "Cast" | "CastLike"
        )
}

/// Numbers that stand for the inputs and outputs of a graph, so that those of two graphs that
/// belong together are the same.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    /// For graph inputs and values of the enclosing graph. Others are told by their types.
    pub inputs: HashMap<ValueId, u64>,
    /// For graph outputs, by position. Others are told by their types.
    pub outputs: HashMap<usize, u64>,
}

/// Where an operator takes an input from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum From {
    Absent,
    /// An operator by its place in the order, and the output slot.
    Op(u32, u32),
    Constant(ValueId),
    Anchor(u64),
}

/// The three hashes of an operator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Hashes {
    /// Of the operator alone.
    pub own: u64,
    /// Of the operator and all before it.
    pub up: u64,
    /// Of the operator and all after it.
    pub down: u64,
}

/// One use of an output: the slot, the consumer by its place, and the consumer's slot.
type OutputUse = (u32, u32, u64);

/// The structural hashes of the operators of one graph.
#[derive(Debug)]
pub struct Structure {
    detail: Detail,
    places: HashMap<OpId, u32>,
    hashes: Vec<Hashes>,
    inputs: Vec<SmallVec<[From; 3]>>,
    users: Vec<Vec<OutputUse>>,
    leaves: Vec<Vec<(u32, u64)>>,
    anchored: HashMap<ValueId, u64>,
}

/// A bit of the slots that stand for what the graphs inside an operator take.
const CAPTURE: u64 = 1 << 63;

/// A slot that stands for an output of the graph.
const OUTPUT: u64 = CAPTURE - 1;

fn graph_holder(op: &Op) -> bool {
    op.attrs().iter().any(|a| !a.value.graphs().is_empty())
}

impl Structure {
    /// Hashes the operators of a graph. `order` is a topological order of it
    /// ([`Graph::topological_order`]); `opsets` are those that it speaks.
    pub fn of(
        graph: &Graph,
        order: &[OpId],
        opsets: &[OpsetImport],
        constants: &Constants,
        anchors: &Anchors,
        detail: Detail,
    ) -> Structure {
        let mut builder = Builder {
            graph,
            insides: HashMap::new(),
            opsets,
            constants,
            anchors,
            detail,
            buffer: Mix::default(),
        };
        builder.run(order)
    }

    /// The hashes of an operator; zeros for one that was not in the order.
    pub fn op(&self, op: OpId) -> Hashes {
        let place = self.places.get(&op);
        place
            .and_then(|&p| self.hashes.get(p as usize))
            .copied()
            .unwrap_or_default()
    }

    /// The detail that counts.
    pub fn detail(&self) -> Detail {
        self.detail
    }

    /// How the consumers take a graph input or a value of the enclosing graph, without regard to
    /// what it is anchored by: a `down` hash of it.
    pub fn input(&self, value: ValueId) -> u64 {
        self.anchored.get(&value).copied().unwrap_or_default()
    }

    /// Hashes of what surrounds each operator within so many steps, in the order that was given.
    pub fn neighbourhood(&self, steps: usize) -> Vec<u64> {
        let mut labels: Vec<u64> = self.hashes.iter().map(|h| h.own).collect();
        let mut mix = Mix::default();
        let mut uses = Vec::new();
        for _ in 0..steps {
            let next = (0..labels.len()).map(|i| {
                mix.number(labels[i]);
                for from in &self.inputs[i] {
                    mix.from(*from, |p| labels[p as usize]);
                }
                uses.clear();
                uses.extend(self.leaves[i].iter().map(|&(slot, leaf)| (slot, leaf, 0)));
                let users = self.users[i].iter();
                uses.extend(users.map(|&(slot, user, at)| (slot, labels[user as usize], at)));
                uses.sort_unstable();
                for &(slot, label, at) in &uses {
                    mix.number(u64::from(slot));
                    mix.number(label);
                    mix.number(at);
                }
                mix.finish()
            });
            labels = next.collect();
        }
        labels
    }
}

/// What the graphs inside an operator are: a hash blind to what they capture, and for each
/// captured value how it is taken.
type Inside = (u64, HashMap<ValueId, u64>);

struct Builder<'a> {
    graph: &'a Graph,
    insides: HashMap<OpId, Inside>,
    opsets: &'a [OpsetImport],
    constants: &'a Constants,
    anchors: &'a Anchors,
    detail: Detail,
    buffer: Mix,
}

impl Builder<'_> {
    fn run(&mut self, order: &[OpId]) -> Structure {
        let kept: Vec<OpId> = order
            .iter()
            .copied()
            .filter(|&op| !self.is_skipped(op))
            .collect();
        let places = kept.iter().zip(0u32..).map(|(&op, i)| (op, i)).collect();
        let mut out = Structure {
            detail: self.detail,
            places,
            hashes: vec![Hashes::default(); kept.len()],
            inputs: Vec::with_capacity(kept.len()),
            users: vec![Vec::new(); kept.len()],
            leaves: vec![Vec::new(); kept.len()],
            anchored: HashMap::new(),
        };
        let holders = kept.iter().filter(|&&op| graph_holder(self.graph.op(op)));
        self.insides = holders.map(|&op| (op, self.inside(op))).collect();
        let aliases = self.aliases(order);
        let mut anchored: HashMap<ValueId, Vec<(u64, u64)>> = HashMap::new();
        for (i, &op) in kept.iter().enumerate() {
            self.connect(i, op, &aliases, &mut out, &mut anchored);
        }
        for (i, &v) in self.graph.outputs().iter().enumerate() {
            let v = aliases.get(&v).copied().unwrap_or(v);
            let leaf = self.output_anchor(i);
            let Some((place, slot)) = self.place(v, &out) else {
                anchored.entry(v).or_default().push((leaf, OUTPUT));
                continue;
            };
            if let Some(leaves) = out.leaves.get_mut(place as usize) {
                leaves.push((slot, leaf));
            }
        }
        self.hash_up(&kept, &mut out);
        self.hash_down(&kept, &mut out);
        for (v, mut uses) in anchored {
            for (user, slot) in &mut uses {
                // From here on the first number is the hash of the consumer.
                if *slot != OUTPUT {
                    let place = usize::try_from(*user).unwrap_or(usize::MAX);
                    *user = out.hashes.get(place).map_or(0, |h| h.down);
                }
            }
            uses.sort_unstable();
            for (user, slot) in uses {
                self.buffer.number(user);
                self.buffer.number(slot);
            }
            out.anchored.insert(v, self.buffer.finish());
        }
        out
    }

    fn is_skipped(&self, op: OpId) -> bool {
        let op = self.graph.op(op);
        op.is("Constant") || (self.detail == Detail::Plain && is_transparent(op))
    }

    /// What stands for the outputs of the operators that are looked through.
    fn aliases(&self, order: &[OpId]) -> HashMap<ValueId, ValueId> {
        let mut out: HashMap<ValueId, ValueId> = HashMap::new();
        if self.detail != Detail::Plain {
            return out;
        }
        for &op in order {
            let op = self.graph.op(op);
            if let (true, Some(from), Some(to)) = (is_transparent(op), op.input(0), op.output(0)) {
                let from = out.get(&from).copied().unwrap_or(from);
                out.insert(to, from);
            }
        }
        out
    }

    fn place(&self, v: ValueId, out: &Structure) -> Option<(u32, u32)> {
        let (op, slot) = self.graph.value(v).producer()?;
        Some((*out.places.get(&op)?, slot))
    }

    fn connect(
        &self,
        place: usize,
        id: OpId,
        aliases: &HashMap<ValueId, ValueId>,
        out: &mut Structure,
        anchored: &mut HashMap<ValueId, Vec<(u64, u64)>>,
    ) {
        let op = self.graph.op(id);
        let mut inputs = SmallVec::new();
        let plain = self.detail == Detail::Plain;
        for v in op.inputs() {
            let v = v.map(|v| aliases.get(&v).copied().unwrap_or(v));
            let from = self.from(v, out);
            let slot = inputs.len() as u32;
            match from {
                From::Absent | From::Constant(_) if plain => continue,
                From::Op(producer, output) => {
                    if let Some(users) = out.users.get_mut(producer as usize) {
                        users.push((output, place as u32, u64::from(slot)));
                    }
                }
                From::Anchor(_) => {
                    if let Some(v) = v {
                        let uses = anchored.entry(v).or_default();
                        uses.push((place as u64, u64::from(slot)));
                    }
                }
                _ => {}
            }
            inputs.push(from);
        }
        for v in op.captures() {
            let inside = self.insides.get(&id).and_then(|(_, taken)| taken.get(&v));
            let at = inside.copied().unwrap_or(0) | CAPTURE;
            let v = aliases.get(&v).copied().unwrap_or(v);
            match self.from(Some(v), out) {
                From::Op(producer, output) => {
                    if let Some(users) = out.users.get_mut(producer as usize) {
                        users.push((output, place as u32, at));
                    }
                }
                From::Anchor(_) => anchored.entry(v).or_default().push((place as u64, at)),
                From::Absent | From::Constant(_) => {}
            }
        }
        out.inputs.push(inputs);
    }

    fn from(&self, v: Option<ValueId>, out: &Structure) -> From {
        let Some(v) = v else { return From::Absent };
        if self.constants.root(v).is_some() {
            return From::Constant(v);
        }
        match self.place(v, out) {
            Some((place, slot)) => From::Op(place, slot),
            None => From::Anchor(self.input_anchor(v)),
        }
    }

    fn input_anchor(&self, v: ValueId) -> u64 {
        match self.anchors.inputs.get(&v) {
            Some(&anchor) => anchor,
            None => type_hash(self.graph.value(v).declared_type()),
        }
    }

    fn output_anchor(&self, position: usize) -> u64 {
        match self.anchors.outputs.get(&position) {
            Some(&anchor) => anchor,
            None => 1,
        }
    }

    fn hash_up(&mut self, kept: &[OpId], out: &mut Structure) {
        for (i, &op) in kept.iter().enumerate() {
            let own = self.own(op);
            self.buffer.number(own);
            for from in &out.inputs[i] {
                self.buffer.from(*from, |p| out.hashes[p as usize].up);
            }
            let mut captured: Vec<u64> = Vec::new();
            for v in self.graph.op(op).captures() {
                match self.from(Some(v), out) {
                    From::Op(p, slot) => {
                        captured.push(combine(out.hashes[p as usize].up, u64::from(slot)))
                    }
                    From::Anchor(anchor) => captured.push(anchor),
                    // Those are a part of what the graphs inside are.
                    From::Absent | From::Constant(_) => {}
                }
            }
            captured.sort_unstable();
            captured.into_iter().for_each(|c| self.buffer.number(c));
            let up = self.buffer.finish();
            out.hashes[i] = Hashes { own, up, down: 0 };
        }
    }

    fn hash_down(&mut self, kept: &[OpId], out: &mut Structure) {
        let mut uses = Vec::new();
        for i in (0..kept.len()).rev() {
            uses.clear();
            uses.extend(out.leaves[i].iter().map(|&(slot, leaf)| (slot, leaf, 0)));
            let users = out.users[i].iter();
            uses.extend(users.map(|&(slot, u, at)| (slot, out.hashes[u as usize].down, at)));
            uses.sort_unstable();
            self.buffer.number(out.hashes[i].own);
            for &(slot, down, at) in &uses {
                self.buffer.number(u64::from(slot));
                self.buffer.number(down);
                self.buffer.number(at);
            }
            out.hashes[i].down = self.buffer.finish();
        }
    }

    /// The hash of an operator alone.
    fn own(&mut self, id: OpId) -> u64 {
        let op = self.graph.op(id);
        let mut h = std::mem::take(&mut self.buffer);
        for text in [&**op.domain(), &**op.op_type(), op.overload()] {
            h.text(text);
        }
        if matches!(self.detail, Detail::Elements | Detail::Types) {
            self.attributes(id, &mut h);
        }
        if self.detail != Detail::Plain {
            for (slot, v) in op.inputs().enumerate() {
                let Some(v) = v else { continue };
                let Some(constant) = self.constants.get(v) else {
                    continue;
                };
                h.number(slot as u64);
                match self.detail {
                    Detail::Elements => h.wide(self.constants.digest(v).unwrap_or_default()),
                    Detail::Types => h.number(type_hash(Some(&constant.value_type()))),
                    Detail::Kinds | Detail::Plain => h.number(1),
                }
            }
        }
        let own = h.finish();
        self.buffer = h;
        own
    }

    fn attributes(&self, id: OpId, h: &mut Mix) {
        let op = self.graph.op(id);
        let domain = &**op.domain();
        let opset = self.opsets.iter().find(|o| &*o.domain == domain);
        let known = opset.and_then(|o| schema::lookup(domain, op.op_type(), o.version));
        let mut attrs: Vec<_> = op.attrs().iter().collect();
        attrs.sort_by(|a, b| a.name.cmp(&b.name));
        for a in attrs {
            let default = known.and_then(|k| k.attr(&a.name)?.default.as_ref());
            if default.is_some_and(|d| d.is(&a.value)) {
                continue;
            }
            h.text(&a.name);
            attribute(&a.value, h);
        }
        if let Some((inside, _)) = self.insides.get(&id) {
            h.number(*inside);
        }
    }

    fn inside(&self, id: OpId) -> Inside {
        let mut all = Mix::default();
        let mut taken: HashMap<ValueId, Mix> = HashMap::new();
        let mut attrs: Vec<_> = self.graph.op(id).attrs().iter().collect();
        attrs.sort_by(|a, b| a.name.cmp(&b.name));
        for inner in attrs.iter().flat_map(|a| a.value.graphs()) {
            let (hash, structure) = self.inner(inner);
            all.number(hash);
            for v in inner.outer_values() {
                if let Some(outer) = inner.value(v).captured_from() {
                    taken.entry(outer).or_default().number(hash);
                    taken.entry(outer).or_default().number(structure.input(v));
                }
            }
        }
        let taken = taken.into_iter();
        let taken = taken.map(|(v, mut mix)| (v, mix.finish())).collect();
        (all.finish(), taken)
    }

    /// A hash of a graph inside an operator, blind to what it captures.
    fn inner(&self, graph: &Graph) -> (u64, Structure) {
        // A cycle is an error of the caller's to find; here any order will do.
        let order = graph
            .topological_order()
            .unwrap_or_else(|_| graph.ops().collect());
        let positions = graph.inputs().iter().zip(2u64..);
        let anchors = Anchors {
            inputs: positions.map(|(&v, i)| (v, i)).collect(),
            outputs: HashMap::new(),
        };
        let (detail, opsets) = (self.detail, self.opsets);
        let inner = Structure::of(graph, &order, opsets, self.constants, &anchors, detail);
        let mut h = Mix::default();
        for &v in graph.outputs() {
            match (self.constants.digest(v), graph.value(v).producer()) {
                (Some(d), _) if detail == Detail::Elements => h.wide(d),
                (_, Some((op, slot))) => h.number(combine(inner.op(op).up, u64::from(slot))),
                _ => h.number(anchors.inputs.get(&v).copied().unwrap_or(1)),
            }
        }
        let mut own: Vec<u64> = inner.hashes.iter().map(|h| h.own).collect();
        own.sort_unstable();
        own.into_iter().for_each(|o| h.number(o));
        (h.finish(), inner)
    }
}

fn combine(a: u64, b: u64) -> u64 {
    let mut h = Mix::default();
    h.number(a);
    h.number(b);
    h.finish()
}

fn type_hash(ty: Option<&ValueType>) -> u64 {
    let mut h = Mix::default();
    match ty {
        Some(ValueType::Tensor { dtype, shape }) => {
            h.number(dtype.map_or(0, |d| d as u64));
            for d in shape.iter().flatten() {
                // The names of symbols are names.
                h.number(d.known().map_or(u64::MAX, |d| d as u64));
            }
        }
        Some(other) => h.text(&format!("{:?}", std::mem::discriminant(other))),
        None => {}
    }
    h.finish()
}

fn attribute(value: &AttrValue, h: &mut Mix) {
    h.number(value.kind() as u64);
    match value {
        AttrValue::Float(v) => h.number(u64::from(v.to_bits())),
        AttrValue::Int(v) => h.number(*v as u64),
        AttrValue::String(v) => h.bytes(v),
        AttrValue::Floats(v) => v.iter().for_each(|v| h.number(u64::from(v.to_bits()))),
        AttrValue::Ints(v) => v.iter().for_each(|v| h.number(*v as u64)),
        AttrValue::Strings(v) => v.iter().for_each(|v| h.bytes(v)),
        AttrValue::Tensor(t) => h.wide(t.digest()),
        AttrValue::Tensors(ts) => ts.iter().for_each(|t| h.wide(t.digest())),
        AttrValue::SparseTensor(s) => h.wide(sparse_digest(s)),
        AttrValue::SparseTensors(s) => s.iter().for_each(|s| h.wide(sparse_digest(s))),
        AttrValue::Type(t) => h.number(type_hash(Some(t))),
        AttrValue::Types(ts) => ts.iter().for_each(|t| h.number(type_hash(Some(t)))),
        AttrValue::Ref { name, .. } => h.text(name),
        AttrValue::Graph(_) | AttrValue::Graphs(_) => {}
    }
}

/// Collects numbers and texts, and hashes them together.
#[derive(Default)]
struct Mix(Vec<u8>);

impl Mix {
    fn number(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn wide(&mut self, n: u128) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn from(&mut self, from: From, label: impl Fn(u32) -> u64) {
        match from {
            From::Absent => self.number(0),
            From::Constant(_) => self.number(1),
            From::Op(place, slot) => {
                self.number(2);
                self.number(label(place));
                self.number(u64::from(slot));
            }
            From::Anchor(anchor) => {
                self.number(3);
                self.number(anchor);
            }
        }
    }

    /// The hash of what was collected; starts anew.
    fn finish(&mut self) -> u64 {
        let hash = xxh3_64(&self.0);
        self.0.clear();
        hash
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::text::parse_model;

    fn hashes(text: &str, detail: Detail) -> Vec<(String, Hashes)> {
        let header = "<ir_version: 8, opset_import: [\"\": 17]> net ";
        let model = parse_model(&format!("{header}{text}")).unwrap();
        let graph = &model.graph;
        let order = graph.topological_order().unwrap();
        let (constants, anchors) = (Constants::of(&model), Anchors::default());
        let opsets = &model.opsets;
        let structure = Structure::of(graph, &order, opsets, &constants, &anchors, detail);
        let ops = order.iter();
        ops.map(|&op| (graph.op_label(op).to_string(), structure.op(op)))
            .collect()
    }

    fn of(list: &[(String, Hashes)], name: &str) -> Hashes {
        list.iter().find(|(n, _)| n == name).unwrap().1
    }

    const CHAIN: &str = "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
        [a] p = Relu (x) [b] q = Add (p, w) [c] y = Neg (q) }";

    #[test]
    fn names_and_defaults_do_not_count() {
        let a = hashes(
            "(float[1,4] x) => (float[1,4] y) { [s] y = Softmax (x) }",
            Detail::Elements,
        );
        let b = hashes(
            "(float[1,4] in) => (float[1,4] out) { [t] out = Softmax <axis = -1> (in) }",
            Detail::Elements,
        );
        let c = hashes(
            "(float[1,4] in) => (float[1,4] out) { [t] out = Softmax <axis = 0> (in) }",
            Detail::Elements,
        );
        assert_eq!(of(&a, "s"), of(&b, "t"));
        assert_ne!(of(&a, "s").own, of(&c, "t").own);
    }

    #[test]
    fn an_edit_leaves_up_before_it_and_down_after_it() {
        let edited = CHAIN.replace("{1, 2}", "{1, 3}");
        let (a, b) = (
            hashes(CHAIN, Detail::Elements),
            hashes(&edited, Detail::Elements),
        );
        assert_eq!(of(&a, "a").up, of(&b, "a").up);
        assert_ne!(of(&a, "a").down, of(&b, "a").down);
        assert_ne!(of(&a, "b").own, of(&b, "b").own);
        assert_eq!(of(&a, "c").down, of(&b, "c").down);
        assert_ne!(of(&a, "c").up, of(&b, "c").up);
        // By types nothing changed.
        assert_eq!(hashes(CHAIN, Detail::Types), hashes(&edited, Detail::Types));
    }

    #[test]
    fn a_constant_operator_is_as_good_as_an_initializer() {
        let other = CHAIN
            .replace("<float[2] w = {1, 2}>", "")
            .replace("[b]", "w = Constant <value = float[2] {1, 2}> () [b]");
        let mut b = hashes(&other, Detail::Elements);
        b.retain(|(n, _)| n != "w");
        assert_eq!(hashes(CHAIN, Detail::Elements), b);
    }

    #[test]
    fn plain_hashes_look_through_quantizers() {
        let other = CHAIN.replace("w = {1, 2}", "w = {1, 2}, float s = {0.5}").replace(
            "[b] q = Add (p, w)",
            "[q1] i = QuantizeLinear (p, s) [q2] f = DequantizeLinear (i, s) [b] q = Add (f, w)",
        );
        let (a, b) = (hashes(CHAIN, Detail::Plain), hashes(&other, Detail::Plain));
        for name in ["a", "b", "c"] {
            assert_eq!(of(&a, name), of(&b, name), "{name}");
        }
    }

    #[test]
    fn graphs_inside_count_by_what_they_do() {
        let text = |op: &str, name: &str| {
            format!(
                "(float[2] x, bool c) => (float[2] y) {{
                [i] y = If (c) <then_branch = t () => (float[2] {name}) {{ {name} = {op} (x) }},
                else_branch = e () => (float[2] v) {{ v = Abs (x) }}> }}"
            )
        };
        let own = |text: String| of(&hashes(&text, Detail::Elements), "i").own;
        assert_eq!(own(text("Relu", "u")), own(text("Relu", "w")));
        assert_ne!(own(text("Relu", "u")), own(text("Neg", "u")));
    }

    #[test]
    fn neighbourhoods_tell_equal_operators_apart() {
        let text = "(float[2] x) => (float[2] y) {
            [a] p = Relu (x) [b] q = Relu (p) [c] r = Relu (q) [d] y = Neg (r) }";
        let model = parse_model(&format!("<opset_import: [\"\": 17]> net {text}")).unwrap();
        let order = model.graph.topological_order().unwrap();
        let (constants, anchors) = (Constants::of(&model), Anchors::default());
        let detail = Detail::Types;
        let opsets = &model.opsets;
        let s = Structure::of(&model.graph, &order, opsets, &constants, &anchors, detail);
        let zero = s.neighbourhood(0);
        assert_eq!(zero[0], zero[1]);
        let one = s.neighbourhood(1);
        assert!(one[0] != one[1] && one[1] != one[2], "{one:?}");
    }
}

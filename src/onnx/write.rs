//! From a [`Model`] to the bytes of a file.
//!
//! Messages are built from the inside out, since each stands behind its length; fields are
//! written in the order of their numbers, as the protobuf libraries do. Large payloads stay
//! the slices that they are until they are written out.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use paring_ir::{
    AttrValue, Attribute, Constant, Function, Graph, GraphError, InfoList, Model, Name, Op, OpId,
    OpsetImport, SparseTensor, Storage, Tensor, ValueId, ValueType,
};
use prost::Message as _;

use super::WriteError;
use super::proto;
use super::rope::Rope;
use super::tensors::{TypedField, write_typed};
use super::types::{write_info, write_pairs, write_type};

/// What a protobuf message may hold.
pub(super) const LIMIT: u64 = i32::MAX as u64;
/// Tensors from this size on go to the side file.
const EXTERNAL_FROM: usize = 1024;
/// Tensors from this size on start at a page, ...
const PAGED_FROM: usize = 1 << 20;
const PAGE: u64 = 4096;
/// ... and smaller ones at a cache line.
const LINE: u64 = 64;

/// A model with all weights inside.
pub(super) fn inline(model: &Model) -> Result<Rope, WriteError> {
    let rope = encode(model, None)?;
    if rope.len() > LIMIT {
        return Err(WriteError::TooLarge {
            bytes: rope.len(),
            advice: "write it to a file with its weights in a side file (external data)",
        });
    }
    Ok(rope)
}

/// Whether a dense initializer stood in a side file when the model was read.
pub(super) fn was_external(model: &Model) -> bool {
    let mut found = false;
    each_initializer(model, &mut |t| {
        found |= matches!(t.storage(), Storage::External { .. });
    });
    found
}

/// Calls `f` for the dense initializers of all graphs, functions included, in a fixed order.
fn each_initializer<'a>(model: &'a Model, f: &mut dyn FnMut(&'a Tensor)) {
    each_of_graph(&model.graph, f);
    // The bodies of functions hold no initializers in the file, the graphs inside them do.
    for function in &model.functions {
        for op in function.body.ops_with_subgraphs() {
            for graph in function.body.op(op).subgraphs() {
                each_of_graph(graph, f);
            }
        }
    }
}

fn each_of_graph<'a>(graph: &'a Graph, f: &mut dyn FnMut(&'a Tensor)) {
    for v in graph.initializers() {
        if let Some(Constant::Dense(t)) = graph.value(v).initializer() {
            f(t);
        }
    }
    for op in graph.ops_with_subgraphs() {
        for inner in graph.op(op).subgraphs() {
            each_of_graph(inner, f);
        }
    }
}

/// Where tensors stand in a side file.
pub(super) struct Plan {
    /// The name of the side file.
    pub(super) location: String,
    /// What stands in it, by ascending offset.
    pub(super) pieces: Vec<(u64, Bytes)>,
    /// The offsets by address and length of the elements.
    offsets: HashMap<(usize, usize), u64>,
}

fn address(bytes: &Bytes) -> (usize, usize) {
    (bytes.as_ptr() as usize, bytes.len())
}

/// Places the tensors that go to a side file. Its name is made from `stem` and what stands in
/// it, so that a file of that name never holds anything else.
pub(super) fn plan(model: &Model, stem: &str) -> Plan {
    let mut pieces: Vec<(u64, Bytes)> = Vec::new();
    let mut offsets = HashMap::new();
    let mut by_digest: HashMap<u128, u64> = HashMap::new();
    let mut end = 0u64;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    each_initializer(model, &mut |t| {
        let bytes = t.bytes();
        if bytes.len() < EXTERNAL_FROM || offsets.contains_key(&address(bytes)) {
            return;
        }
        let digest = t.digest();
        let offset = *by_digest.entry(digest).or_insert_with(|| {
            let align = if bytes.len() >= PAGED_FROM {
                PAGE
            } else {
                LINE
            };
            let offset = end.next_multiple_of(align);
            end = offset + bytes.len() as u64;
            pieces.push((offset, bytes.clone()));
            hash.update(&digest.to_le_bytes());
            hash.update(&offset.to_le_bytes());
            offset
        });
        offsets.insert(address(bytes), offset);
    });
    Plan {
        location: format!("{stem}-{:016x}.data", hash.digest128() as u64),
        pieces,
        offsets,
    }
}

/// Encodes a model; the tensors of the plan stand in its side file.
pub(super) fn encode(model: &Model, plan: Option<&Plan>) -> Result<Rope, WriteError> {
    let model = unhidden(model)?;
    let mut encoder = Encoder {
        plan,
        ir_version: model.ir_version,
        scopes: Vec::new(),
    };
    let text = |t: &Option<Name>| t.as_ref().map(|t| t.to_string());
    let mut out = Rope::default();
    let extra = &model.extra;
    out.fields(&proto::ModelProto {
        ir_version: Some(model.ir_version).filter(|_| !extra.no_ir_version),
        producer_name: text(&extra.producer_name),
        producer_version: text(&extra.producer_version),
        domain: text(&extra.domain),
        model_version: extra.model_version,
        doc_string: text(&extra.doc),
        ..Default::default()
    });
    let empty = model.graph.value_count() == 0 && model.graph.op_count() == 0;
    if !(extra.no_graph && empty) {
        out.nested(7, encoder.graph(&model.graph)?);
    }
    out.fields(&proto::ModelProto {
        opset_import: write_opsets(&model.opsets),
        metadata_props: write_pairs(&model.metadata),
        ..Default::default()
    });
    if keeps_training_info(&model) {
        for info in &extra.training_info {
            out.raw(20, info);
        }
    }
    for function in &model.functions {
        out.nested(25, encoder.function(function)?);
    }
    for configuration in &extra.configuration {
        out.raw(26, configuration);
    }
    Ok(out)
}

/// Whether the model is as it was when its training information was read, which names
/// operators and initializers.
pub(super) fn keeps_training_info(model: &Model) -> bool {
    model.extra.training_revision == model.revision()
}

/// The model, with inner values renamed where they would hide a captured one of the same name.
fn unhidden(model: &Model) -> Result<Cow<'_, Model>, WriteError> {
    for function in &model.functions {
        if let Some(name) = hidden(&mut vec![&function.body]) {
            return Err(WriteError::Hidden {
                function: paring_ir::escape(&function.name),
                name: paring_ir::escape(&name),
            });
        }
    }
    if hidden(&mut vec![&model.graph]).is_none() {
        return Ok(Cow::Borrowed(model));
    }
    let mut copy = model.clone();
    copy.separate_nested_names()?;
    // Renaming is no change that training information could notice.
    copy.extra.training_revision = match keeps_training_info(model) {
        true => copy.revision(),
        false => 0,
    };
    Ok(Cow::Owned(copy))
}

/// A captured value that another value hides from a graph inside the last of `scopes`.
fn hidden<'a>(scopes: &mut Vec<&'a Graph>) -> Option<Name> {
    let graph: &'a Graph = scopes.last()?;
    for op in graph.ops_with_subgraphs() {
        for inner in graph.op(op).subgraphs() {
            scopes.push(inner);
            for v in inner.outer_values() {
                let (level, name) = written_name(scopes, v);
                let hides = |g: &&Graph| {
                    let other = g.find_value(name).and_then(|v| g.get_value(v));
                    other.is_some_and(|v| v.captured_from().is_none())
                };
                if scopes.get(level + 1..).is_some_and(|s| s.iter().any(hides)) {
                    return Some(name.clone());
                }
            }
            let found = hidden(scopes);
            scopes.pop();
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

/// The name of a value of the innermost graph as the file has it: a captured value bears the
/// name that it has where it is made. Also the level of that graph.
fn written_name<'a>(scopes: &[&'a Graph], v: ValueId) -> (usize, &'a Name) {
    static NONE: std::sync::LazyLock<Name> = std::sync::LazyLock::new(Name::default);
    let mut v = v;
    for (level, graph) in scopes.iter().enumerate().rev() {
        let graph: &'a Graph = graph;
        let Some(value) = graph.get_value(v) else {
            break;
        };
        match value.captured_from() {
            Some(outer) if level > 0 => v = outer,
            _ => return (level, value.name()),
        }
    }
    (0, &NONE)
}

fn write_opsets(opsets: &[OpsetImport]) -> Vec<proto::OperatorSetIdProto> {
    let domain = |o: &OpsetImport| match &o.written_domain {
        _ if !o.domain.is_empty() => Some(o.domain.to_string()),
        None => None,
        Some(w) if &**w == "ai.onnx" => Some(w.to_string()),
        Some(_) => Some(String::new()),
    };
    let opset = |o| proto::OperatorSetIdProto {
        domain: domain(o),
        version: Some(o.version),
    };
    opsets.iter().map(opset).collect()
}

struct Encoder<'a> {
    plan: Option<&'a Plan>,
    ir_version: i64,
    /// The graphs around what is being encoded, outermost first.
    scopes: Vec<&'a Graph>,
}

impl<'a> Encoder<'a> {
    fn name(&self, v: ValueId) -> &'a str {
        written_name(&self.scopes, v).1
    }

    // ---- graphs ----

    fn graph<'b>(&mut self, graph: &'b Graph) -> Result<Rope, WriteError>
    where
        'b: 'a,
    {
        self.scopes.push(graph);
        let mut out = Rope::default();
        for op in graph.topological_order()? {
            let node = self.node(graph, op)?;
            out.nested(1, node);
        }
        let extra = graph.extra();
        if !(extra.unnamed && graph.name().is_empty()) {
            out.text(2, graph.name());
        }
        for v in graph.initializers() {
            if let Some(Constant::Dense(t)) = graph.value(v).initializer() {
                out.nested(5, self.initializer(graph.value(v).name(), t));
            }
        }
        out.optional_text(10, extra.doc.as_deref());
        let mut met = HashMap::new();
        let lists = [
            (11, InfoList::Inputs, self.listed_inputs(graph)),
            (12, InfoList::Outputs, graph.outputs().to_vec()),
            (13, InfoList::Declared, graph.declared().collect()),
        ];
        for (number, list, values) in lists {
            for v in values {
                if let Some(info) = self.info(graph, v, list, &mut met) {
                    out.message(number, &info);
                }
            }
        }
        for a in &extra.quantization_annotations {
            let annotation = proto::TensorAnnotation {
                tensor_name: a.tensor.as_ref().map(|t| t.to_string()),
                quant_parameter_tensor_names: write_pairs(&a.parameters),
            };
            out.message(14, &annotation);
        }
        for v in graph.initializers() {
            if let Some(Constant::Sparse(t)) = graph.value(v).initializer() {
                out.nested(15, sparse(Some(graph.value(v).name()), t));
            }
        }
        for pair in write_pairs(&extra.metadata) {
            out.message(16, &pair);
        }
        self.scopes.pop();
        Ok(out)
    }

    /// The inputs as the file lists them: before IR version 4, initializers are among them.
    fn listed_inputs(&self, graph: &Graph) -> Vec<ValueId> {
        let there = |v: &ValueId| {
            let value = graph.get_value(*v);
            value.is_some_and(|v| v.is_input() || v.initializer().is_some())
        };
        let main = self.scopes.len() == 1;
        if self.ir_version >= 4 {
            graph.inputs().to_vec()
        } else if !graph.listed_inputs().is_empty() {
            let listed = graph.listed_inputs().iter();
            listed.copied().filter(there).collect()
        } else if main {
            let plain = |v: &ValueId| !graph.value(*v).is_input();
            let constants = graph.initializers().filter(plain);
            graph.inputs().iter().copied().chain(constants).collect()
        } else {
            graph.inputs().to_vec()
        }
    }

    fn info(
        &self,
        graph: &Graph,
        v: ValueId,
        list: InfoList,
        met: &mut HashMap<(ValueId, InfoList), u32>,
    ) -> Option<proto::ValueInfoProto> {
        let value = graph.get_value(v)?;
        let name = self.name(v);
        let spellings = value.extra().map_or(&[][..], |e| &e.spellings);
        if !spellings.is_empty() {
            let count = met.entry((v, list)).or_insert(0);
            let nth = *count;
            *count = count.saturating_add(1);
            let fits = |s: &&paring_ir::Spelling| {
                (s.list, s.nth) == (list, nth) && s.ty.as_ref() == value.declared_type()
            };
            if let Some(s) = spellings.iter().find(fits)
                && let Ok(mut info) = proto::ValueInfoProto::decode(s.entry.clone())
            {
                info.name = Some(name.to_owned());
                return Some(info);
            }
        }
        let constant = || value.initializer().map(Constant::value_type);
        let ty: Option<Cow<'_, ValueType>> = match value.declared_type() {
            Some(ty) => Some(Cow::Borrowed(ty)),
            None if list == InfoList::Declared => return None,
            None => constant().map(Cow::Owned),
        };
        Some(write_info(name, ty.as_deref(), value.extra()))
    }

    // ---- nodes ----

    fn node<'b>(&mut self, graph: &'b Graph, id: OpId) -> Result<Rope, WriteError>
    where
        'b: 'a,
    {
        let op: &'b Op = graph.get_op(id).ok_or_else(|| missing(graph, id))?;
        let mut out = Rope::default();
        for v in op.inputs() {
            out.text(1, v.map_or("", |v| self.name(v)));
        }
        for v in op.outputs() {
            out.text(2, v.map_or("", |v| self.name(v)));
        }
        let extra = op.extra();
        if !op.name().is_empty() || extra.is_some_and(|e| e.empty_name) {
            out.text(3, op.name());
        }
        out.text(4, op.op_type());
        for attribute in op.attrs() {
            let attribute = self.attribute(attribute)?;
            out.nested(5, attribute);
        }
        out.optional_text(6, extra.and_then(|e| e.doc.as_deref()));
        let written = extra.and_then(|e| e.written_domain.as_deref());
        match (op.domain().is_empty(), written) {
            (false, _) => out.text(7, op.domain()),
            (true, written) => out.optional_text(7, written),
        }
        let Some(extra) = extra else {
            return Ok(out);
        };
        out.optional_text(8, extra.overload.as_deref());
        for pair in write_pairs(&extra.metadata) {
            out.message(9, &pair);
        }
        for configuration in &extra.device_configurations {
            out.raw(10, configuration);
        }
        Ok(out)
    }

    fn attribute<'b>(&mut self, a: &'b Attribute) -> Result<Rope, WriteError>
    where
        'b: 'a,
    {
        let mut out = Rope::default();
        // Only a value that is the default can be left out, and only a kind that shows.
        let plain = |v: bool| !(a.defaulted && v);
        out.fields(&proto::AttributeProto {
            name: Some(a.name.to_string()),
            f: match &a.value {
                AttrValue::Float(f) => Some(*f).filter(|f| plain(f.to_bits() == 0)),
                _ => None,
            },
            i: match &a.value {
                AttrValue::Int(i) => Some(*i).filter(|i| plain(*i == 0)),
                _ => None,
            },
            s: match &a.value {
                AttrValue::String(s) => Some(s.clone()).filter(|s| plain(s.is_empty())),
                _ => None,
            },
            ..Default::default()
        });
        match &a.value {
            AttrValue::Tensor(t) => out.nested(5, tensor(None, t, None)),
            AttrValue::Graph(g) => out.nested(6, self.graph(g)?),
            AttrValue::Tensors(ts) => ts
                .iter()
                .for_each(|t| out.nested(10, tensor(None, t, None))),
            AttrValue::Graphs(gs) => {
                for g in gs {
                    out.nested(11, self.graph(g)?);
                }
            }
            _ => {}
        }
        let mut tail = lists(&a.value);
        tail.doc_string = a.doc.as_ref().map(|d| d.to_string());
        if !(a.untyped && shows_kind(a)) {
            tail.r#type = Some(a.value.kind().to_onnx());
        }
        out.fields(&tail);
        match &a.value {
            AttrValue::SparseTensor(t) => out.nested(22, sparse(None, t)),
            AttrValue::SparseTensors(ts) => ts.iter().for_each(|t| out.nested(23, sparse(None, t))),
            _ => {}
        }
        Ok(out)
    }

    // ---- tensors and functions ----

    fn initializer(&self, name: &str, t: &Tensor) -> Rope {
        let place = self.plan.and_then(|plan| {
            let offset = plan.offsets.get(&address(t.bytes()))?;
            Some((plan.location.as_str(), *offset))
        });
        tensor(Some(name), t, place)
    }

    fn function<'b>(&mut self, f: &'b Function) -> Result<Rope, WriteError>
    where
        'b: 'a,
    {
        let body = &f.body;
        self.scopes.push(body);
        let names = |vs: &[ValueId]| vs.iter().map(|&v| self.name(v).to_owned()).collect();
        let mut out = Rope::default();
        out.fields(&proto::FunctionProto {
            name: Some(f.name.to_string()),
            input: names(body.inputs()),
            output: names(body.outputs()),
            attribute: f.attributes.iter().map(|a| a.to_string()).collect(),
            ..Default::default()
        });
        for v in body.initializers() {
            out.nested(
                7,
                constant_node(body.value(v).name(), body.value(v).initializer()),
            );
        }
        for op in body.topological_order()? {
            let node = self.node(body, op)?;
            out.nested(7, node);
        }
        let written =
            |text: &Name, empty: bool| Some(text.to_string()).filter(|t| empty || !t.is_empty());
        out.fields(&proto::FunctionProto {
            doc_string: f.doc.as_ref().map(|d| d.to_string()),
            opset_import: write_opsets(&f.opsets),
            domain: written(&f.domain, f.written.0),
            ..Default::default()
        });
        for attribute in &f.attribute_defaults {
            let attribute = self.attribute(attribute)?;
            out.nested(11, attribute);
        }
        let mut met = HashMap::new();
        for v in body.declared() {
            if let Some(info) = self.info(body, v, InfoList::Declared, &mut met) {
                out.message(12, &info);
            }
        }
        out.fields(&proto::FunctionProto {
            overload: written(&f.overload, f.written.1),
            metadata_props: write_pairs(&f.metadata),
            ..Default::default()
        });
        self.scopes.pop();
        Ok(out)
    }
}

fn missing(graph: &Graph, id: OpId) -> GraphError {
    GraphError::NoSuch {
        what: "operator",
        id: format!("{id:?}"),
        graph: graph.name().to_string(),
    }
}

/// Whether the kind of an attribute can be told from the field that holds its value.
fn shows_kind(a: &Attribute) -> bool {
    match &a.value {
        AttrValue::Float(_) | AttrValue::Int(_) | AttrValue::String(_) => !a.defaulted,
        AttrValue::Floats(v) => !v.is_empty(),
        AttrValue::Ints(v) => !v.is_empty(),
        AttrValue::Strings(v) => !v.is_empty(),
        AttrValue::Tensors(v) => !v.is_empty(),
        AttrValue::Graphs(v) => !v.is_empty(),
        AttrValue::SparseTensors(v) => !v.is_empty(),
        AttrValue::Types(v) => !v.is_empty(),
        AttrValue::Ref { .. } => false,
        AttrValue::Tensor(_)
        | AttrValue::Graph(_)
        | AttrValue::SparseTensor(_)
        | AttrValue::Type(_) => true,
    }
}

/// The part of an attribute that holds lists of plain values, types, and references.
fn lists(value: &AttrValue) -> proto::AttributeProto {
    let mut out = proto::AttributeProto::default();
    match value {
        AttrValue::Floats(v) => out.floats = v.clone(),
        AttrValue::Ints(v) => out.ints = v.clone(),
        AttrValue::Strings(v) => out.strings = v.clone(),
        AttrValue::Type(t) => out.tp = Some(Box::new(write_type(t, &None))),
        AttrValue::Types(ts) => out.type_protos = ts.iter().map(|t| write_type(t, &None)).collect(),
        AttrValue::Ref { name, .. } => out.ref_attr_name = Some(name.to_string()),
        _ => {}
    }
    out
}

/// The body of a function has no initializers: a constant in it is a node.
fn constant_node(name: &str, constant: Option<&Constant>) -> Rope {
    let mut attribute = Rope::default();
    let (name_of, kind) = match constant {
        Some(Constant::Sparse(_)) => ("sparse_value", 11),
        _ => ("value", 4),
    };
    attribute.text(1, name_of);
    if let Some(Constant::Dense(t)) = constant {
        attribute.nested(5, tensor(None, t, None));
    }
    attribute.fields(&proto::AttributeProto {
        r#type: Some(kind),
        ..Default::default()
    });
    if let Some(Constant::Sparse(t)) = constant {
        attribute.nested(22, sparse(None, t));
    }
    let mut node = Rope::default();
    node.text(2, name);
    node.text(4, "Constant");
    node.nested(5, attribute);
    node
}

/// A dense tensor; its elements stand at an offset of a side file when `place` says so.
fn tensor(name: Option<&str>, t: &Tensor, place: Option<(&str, u64)>) -> Rope {
    let extra = t.extra().cloned().unwrap_or_default();
    let mut out = Rope::default();
    out.fields(&proto::TensorProto {
        dims: t.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(t.dtype().to_onnx()),
        segment: extra
            .segment
            .map(|(begin, end)| Box::new(proto::tensor_proto::Segment { begin, end })),
        ..Default::default()
    });
    let is_text = t.strings().is_some();
    let typed = place.is_none() && (is_text || extra.storage == Storage::Typed);
    let late = matches!(
        TypedField::of(t.dtype()),
        TypedField::Double | TypedField::Uint64
    );
    if typed && !late {
        typed_elements(&mut out, t);
    }
    out.optional_text(8, name.or(extra.name.as_deref()));
    if typed && late {
        typed_elements(&mut out, t);
    }
    if place.is_none() && !typed {
        out.shared(9, t.bytes());
    }
    let entry = |(key, value): (&str, String)| proto::StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    let entries = place.map(|(location, offset)| {
        [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", t.bytes().len().to_string()),
        ]
    });
    let inside = Some(0).filter(|_| extra.explicit_location);
    out.fields(&proto::TensorProto {
        doc_string: extra.doc.as_ref().map(|d| d.to_string()),
        external_data: entries.into_iter().flatten().map(entry).collect(),
        data_location: place.map(|_| 1).or(inside),
        metadata_props: write_pairs(&extra.metadata),
        ..Default::default()
    });
    out
}

/// The typed field. Floats are packed there as they are here, and need no copy.
fn typed_elements(out: &mut Rope, t: &Tensor) {
    match TypedField::of(t.dtype()) {
        TypedField::Float if !t.bytes().is_empty() => out.shared(4, t.bytes()),
        TypedField::Double if !t.bytes().is_empty() => out.shared(10, t.bytes()),
        _ => out.fields(&write_typed(t)),
    }
}

fn sparse(name: Option<&str>, t: &SparseTensor) -> Rope {
    let mut out = Rope::default();
    out.nested(1, tensor(name, &t.values, None));
    out.nested(2, tensor(None, &t.indices, None));
    out.fields(&proto::SparseTensorProto {
        dims: t.dims.iter().map(|&d| d as i64).collect(),
        ..Default::default()
    });
    out
}

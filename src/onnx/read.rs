//! From the bytes of a file to a [`Model`].
//!
//! The fields of models, graphs and functions are walked, and what is inside them is decoded
//! one message at a time: a graph of a million nodes never stands in memory decoded. A graph
//! is walked several times, since its fields come in any order while the nodes need the names
//! of all values: first what makes values, then the nodes, then outputs and value infos.

mod attributes;

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use paring_ir::graph::{GraphExtra, QuantizationAnnotation};
use paring_ir::model::{ModelExtra, ir_version_for};
use paring_ir::op::OpExtra;
use paring_ir::{
    Constant, Function, Graph, GraphError, InfoList, Model, Name, NewOp, NewOutput, OpsetImport,
    ValueId, escape,
};
use prost::Message;
use std::sync::Arc;

use super::external::SideFiles;
use super::proto;
use super::scan::scan;
use super::tensors::{TensorReader, quoted};
use super::types::{self, Names, read_pairs};
use super::wire::Fields;
use super::{Loaded, ReadError, ReadOptions};

/// The newest version of the ONNX IR that this code was written for.
const NEWEST_IR: i64 = 14;

/// Descriptions of one value that differ from each other; more than a handful are a mistake,
/// and they are searched one by one.
const MAX_SPELLINGS: usize = 100;
/// What a captured value takes in memory at each level, ...
const CAPTURE_BYTES: u64 = 320;
/// ... of which a file may ask for this many times its size, ...
const CAPTURE_BLOW_UP: u64 = 64;
/// ... and this much more.
const CAPTURE_ALLOWANCE: u64 = 128 << 20;

/// Reads a model.
pub(super) fn read(
    data: &Bytes,
    base: Option<&Path>,
    options: &ReadOptions,
) -> Result<Loaded, ReadError> {
    if data.is_empty() {
        return Err(ReadError::Empty);
    }
    if let Some(format) = other_format(data) {
        return Err(ReadError::OtherFormat(format));
    }
    let scan = scan(data)?;
    let mut reader = Reader {
        tensors: TensorReader {
            side: SideFiles::new(base, options.mmap, options.follow_links_in.as_deref()),
            names: Names::default(),
            stray_entries: 0,
        },
        warnings: scan.warning().into_iter().collect(),
        scopes: Vec::new(),
        ir_version: 0,
        lossy_types: 0,
        captures_left: (data.len() as u64)
            .saturating_mul(CAPTURE_BLOW_UP)
            .saturating_add(CAPTURE_ALLOWANCE)
            / CAPTURE_BYTES,
    };
    let model = reader.model(data)?;
    let tensors = reader.tensors;
    let mut warnings = reader.warnings;
    if reader.lossy_types > 0 {
        warnings.push(format!(
            "denotations or unknown parts of {} type(s) in attributes are not kept",
            reader.lossy_types
        ));
    }
    if tensors.stray_entries > 0 {
        warnings.push(format!(
            "{} tensor(s) hold their elements and have external_data entries, which are not kept",
            tensors.stray_entries
        ));
    }
    if tensors.side.checksums {
        warnings.push("checksums of side files were not verified".to_owned());
    }
    Ok(Loaded {
        model,
        warnings,
        file_bytes: (data.len() as u64).saturating_add(tensors.side.bytes()),
        side_files: tensors.side.paths(),
    })
}

/// What a file that is often taken for a model is.
fn other_format(data: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 7] = [
        (
            b"version https://git-lfs",
            "a Git LFS pointer (run `git lfs pull`)",
        ),
        (b"PK\x03\x04", "a zip archive (a PyTorch file?)"),
        (b"\x80\x02", "a pickle"),
        (b"\x89HDF", "an HDF5 file (a Keras model?)"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"<", "an XML or HTML page"),
        (b"GGUF", "a GGUF file"),
    ];
    if data.get(4..8) == Some(b"TFL3") {
        return Some("a TensorFlow Lite model");
    }
    FORMATS
        .iter()
        .find(|(start, _)| data.starts_with(start))
        .map(|&(_, name)| name)
}

impl ReadError {
    /// The same error, inside something.
    fn within(mut self, label: impl FnOnce() -> String) -> ReadError {
        if let ReadError::Invalid { within, .. } = &mut self {
            within.insert(0, label());
        }
        self
    }
}

fn invalid(problem: impl Into<String>) -> ReadError {
    ReadError::Invalid {
        within: Vec::new(),
        problem: problem.into(),
    }
}

fn edit(e: GraphError) -> ReadError {
    invalid(e.to_string())
}

/// Hands each field of one of the `numbers` to `each`, and merges all others into `rest`.
fn split<M: Message>(
    data: &Bytes,
    numbers: &[u32],
    rest: &mut M,
    each: &mut dyn FnMut(u32, Bytes) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut merge = |range: std::ops::Range<usize>| match range.is_empty() {
        true => Ok(()),
        // What decoding could stumble over was found by the scan.
        false => rest
            .merge(data.slice(range))
            .map_err(|e| invalid(e.to_string())),
    };
    let mut from = 0;
    let mut fields = Fields::new(data);
    while let Some(field) = fields.next().map_err(|e| invalid(e.problem))? {
        if numbers.contains(&field.number) {
            merge(from..field.start)?;
            from = field.body.end;
            each(field.number, data.slice(field.body))?;
        }
    }
    merge(from..data.len())
}

/// Hands the position and payload of each field of this number to `each`.
fn each_field(
    data: &Bytes,
    number: u32,
    each: &mut dyn FnMut(usize, Bytes) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut nth = 0;
    let mut fields = Fields::new(data);
    while let Some(field) = fields.next().map_err(|e| invalid(e.problem))? {
        if field.number == number {
            each(nth, data.slice(field.body))?;
            nth += 1;
        }
    }
    Ok(())
}

fn decode<M: Message + Default>(data: Bytes) -> Result<M, ReadError> {
    M::decode(data).map_err(|e| invalid(e.to_string()))
}

fn text(data: &Bytes) -> Result<&str, ReadError> {
    std::str::from_utf8(data).map_err(|e| invalid(e.to_string()))
}

fn optional_name(text: Option<String>) -> Option<Name> {
    text.map(Name::from)
}

/// Descriptions of values that were met in one graph, by value and list.
type Met = HashMap<(ValueId, InfoList), u32>;

struct Reader {
    tensors: TensorReader,
    warnings: Vec<String>,
    /// The graphs around the place that is being read, outermost first.
    scopes: Vec<Graph>,
    ir_version: i64,
    /// Types in attributes of which a part can't be kept.
    lossy_types: u64,
    /// Values that may still be captured: a name that is used deep inside becomes a value of
    /// every graph on the way.
    captures_left: u64,
}

impl Reader {
    fn model(&mut self, data: &Bytes) -> Result<Model, ReadError> {
        let mut rest = proto::ModelProto::default();
        let (mut graph, mut functions) = (Vec::new(), Vec::new());
        let mut extra = ModelExtra::default();
        split(data, &[7, 20, 25, 26], &mut rest, &mut |number, body| {
            match number {
                7 => graph.push(body),
                20 => extra.training_info.push(body),
                25 => functions.push(body),
                _ => extra.configuration.push(body),
            }
            Ok(())
        })?;
        if graph.is_empty() && rest.ir_version.is_none() {
            return Err(invalid(
                "found neither a graph nor an IR version; is this an ONNX model?",
            ));
        }
        let opsets = self.opsets(rest.opset_import)?;
        let standard = opsets.iter().find(|o| o.domain.is_empty());
        let assumed = ir_version_for(standard.map_or(1, |o| o.version));
        self.ir_version = rest.ir_version.unwrap_or(assumed);
        if self.ir_version > NEWEST_IR {
            self.warnings.push(format!(
                "IR version {} is newer than the newest that is known here, {NEWEST_IR}",
                self.ir_version
            ));
        }
        extra.no_ir_version = rest.ir_version.is_none();
        extra.no_graph = graph.is_empty();
        extra.producer_name = optional_name(rest.producer_name);
        extra.producer_version = optional_name(rest.producer_version);
        extra.domain = optional_name(rest.domain);
        extra.model_version = rest.model_version;
        extra.doc = optional_name(rest.doc_string);
        let main = self
            .graph(&graph)
            .map_err(|e| e.within(|| "main_graph".to_owned()))?;
        let functions = functions
            .iter()
            .map(|f| self.function(f))
            .collect::<Result<_, _>>()?;
        let mut model = Model {
            ir_version: self.ir_version,
            opsets,
            graph: main,
            functions,
            metadata: read_pairs(&rest.metadata_props, &mut self.tensors.names),
            extra,
        };
        model.extra.training_revision = model.revision();
        Ok(model)
    }

    fn opsets(
        &mut self,
        imports: Vec<proto::OperatorSetIdProto>,
    ) -> Result<Vec<OpsetImport>, ReadError> {
        let mut out: Vec<OpsetImport> = Vec::with_capacity(imports.len());
        for import in imports {
            let written = import.domain.as_deref().map(|d| self.tensors.names.get(d));
            let domain = match written.as_deref() {
                None | Some("ai.onnx") => "".into(),
                Some(d) => self.tensors.names.get(d),
            };
            let version = import.version.ok_or_else(|| {
                invalid(format!(
                    "the import of the operators of domain \"{}\" has no version",
                    escape(&domain)
                ))
            })?;
            out.push(OpsetImport {
                domain,
                version,
                written_domain: written,
            });
        }
        Ok(out)
    }

    // ---- graphs ----

    /// A graph, from the fields that hold it: where there are several, protobuf merges them.
    fn graph(&mut self, parts: &[Bytes]) -> Result<Graph, ReadError> {
        self.scopes.push(Graph::new(""));
        let mut rest = proto::GraphProto::default();
        for part in parts {
            self.sources(part, &mut rest)?;
        }
        let mut nth = 0;
        for part in parts {
            each_field(part, 1, &mut |_, node| {
                nth += 1;
                self.node(&node, nth - 1)
            })?;
        }
        let mut met = self.met_inputs();
        for (number, list) in [(12, InfoList::Outputs), (13, InfoList::Declared)] {
            for part in parts {
                each_field(part, number, &mut |_, info| self.info(info, list, &mut met))?;
            }
        }
        let mut graph = self.pop()?;
        let names = &mut self.tensors.names;
        let annotation = |a: &proto::TensorAnnotation| QuantizationAnnotation {
            tensor: a.tensor_name.as_deref().map(Name::from),
            parameters: read_pairs(&a.quant_parameter_tensor_names, names),
        };
        let annotations = rest.quantization_annotation.iter().map(annotation);
        let extra = GraphExtra {
            quantization_annotations: annotations.collect(),
            doc: optional_name(rest.doc_string),
            metadata: read_pairs(&rest.metadata_props, &mut self.tensors.names),
            unnamed: rest.name.is_none(),
        };
        graph.set_name(rest.name.unwrap_or_default());
        graph.set_extra(extra);
        if self.ir_version < 4 {
            graph.fix_listed_initializers();
        }
        Ok(graph)
    }

    /// The innermost graph.
    fn here(&mut self) -> Result<&mut Graph, ReadError> {
        self.scopes.last_mut().ok_or_else(|| invalid("no graph"))
    }

    fn pop(&mut self) -> Result<Graph, ReadError> {
        self.scopes.pop().ok_or_else(|| invalid("no graph"))
    }

    /// Adds the inputs and initializers, and the values that the nodes make.
    fn sources(&mut self, part: &Bytes, rest: &mut proto::GraphProto) -> Result<(), ReadError> {
        split(
            part,
            &[1, 5, 11, 12, 13, 15],
            rest,
            &mut |number, body| match number {
                1 => self.node_outputs(&body),
                5 => self.initializer(body),
                11 => self.graph_input(body),
                15 => self.sparse_initializer(body),
                _ => Ok(()),
            },
        )
    }

    fn node_outputs(&mut self, node: &Bytes) -> Result<(), ReadError> {
        let graph = self.here()?;
        each_field(node, 2, &mut |_, name| {
            let name = text(&name)?;
            if !name.is_empty() {
                graph.value_or_add(name).map_err(edit)?;
            }
            Ok(())
        })
    }

    fn initializer(&mut self, body: Bytes) -> Result<(), ReadError> {
        let message: proto::TensorProto = decode(body)?;
        let label = message.name.clone().unwrap_or_default();
        let within = |e: ReadError| e.within(|| quoted("initializer", &label));
        let (name, tensor) = self
            .tensors
            .tensor(message)
            .map_err(|e| within(invalid(e)))?;
        self.add_initializer(name, Constant::Dense(tensor))
            .map_err(within)
    }

    fn sparse_initializer(&mut self, body: Bytes) -> Result<(), ReadError> {
        let message: proto::SparseTensorProto = decode(body)?;
        let name = message.values.as_ref().and_then(|v| v.name.clone());
        let within = |e: ReadError| {
            e.within(|| quoted("sparse initializer", &name.clone().unwrap_or_default()))
        };
        let sparse = self.tensors.sparse(message, false);
        let (_, sparse) = sparse.map_err(|e| within(invalid(e)))?;
        self.add_initializer(name.clone(), Constant::Sparse(Arc::new(sparse)))
            .map_err(within)
    }

    fn add_initializer(&mut self, name: Option<String>, c: Constant) -> Result<(), ReadError> {
        let name = name.filter(|n| !n.is_empty()).ok_or_else(|| {
            invalid("an initializer has no name; expected one, since nothing else can refer to it")
        })?;
        let graph = self.here()?;
        let v = graph.value_or_add(&name).map_err(edit)?;
        if graph.value(v).initializer().is_some() {
            return Err(invalid("two initializers have this name; expected one"));
        }
        graph.add_initializer(v, c).map_err(edit)
    }

    fn graph_input(&mut self, body: Bytes) -> Result<(), ReadError> {
        let info: proto::ValueInfoProto = decode(body)?;
        let name = info.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Err(invalid("a graph input has no name"));
        }
        let (ty, extra) = types::read_info(&info, &mut self.tensors.names);
        let graph = self.here()?;
        if graph
            .find_value(name)
            .is_some_and(|v| graph.value(v).is_input())
        {
            return Err(invalid("two graph inputs have this name; expected one")
                .within(|| quoted("input", name)));
        }
        let v = graph.add_input(name, ty).map_err(edit)?;
        graph.set_value_extra(v, extra).map_err(edit)?;
        add_spelling(graph, v, &info, InfoList::Inputs, 0)
    }

    /// The inputs, as met once.
    fn met_inputs(&self) -> Met {
        let inputs = self.scopes.last().map_or(&[][..], |g| g.inputs());
        inputs.iter().map(|&v| ((v, InfoList::Inputs), 1)).collect()
    }

    /// An entry of the list of outputs or of value infos.
    fn info(&mut self, body: Bytes, list: InfoList, met: &mut Met) -> Result<(), ReadError> {
        let info: proto::ValueInfoProto = decode(body)?;
        let name = info.name.as_deref().unwrap_or_default();
        let what = match list {
            InfoList::Outputs => "a graph output",
            _ => "a value info",
        };
        if name.is_empty() {
            return Err(invalid(format!("{what} has no name")));
        }
        let v = self.value(name)?;
        let (ty, extra) = types::read_info(&info, &mut self.tensors.names);
        let lists = [InfoList::Inputs, InfoList::Outputs, InfoList::Declared];
        let first = lists.iter().all(|&l| !met.contains_key(&(v, l)));
        let count = met.entry((v, list)).or_insert(0);
        let nth = *count;
        *count = count.saturating_add(1);
        let graph = self.here()?;
        match list {
            InfoList::Outputs => graph.add_output(v).map_err(edit)?,
            _ => graph.declare(v).map_err(edit)?,
        }
        if first {
            graph.set_type(v, ty).map_err(edit)?;
            graph.set_value_extra(v, extra).map_err(edit)?;
        }
        add_spelling(graph, v, &info, list, nth)
    }

    /// The value of a name: one of the innermost graph, or one around it, or else a new one
    /// that nothing makes.
    fn value(&mut self, name: &str) -> Result<ValueId, ReadError> {
        let innermost = self.scopes.len().saturating_sub(1);
        match self.resolve(innermost, name)? {
            Some(v) => Ok(v),
            None => self.here()?.add_value(name).map_err(edit),
        }
    }

    /// The value of a name in a graph; captured through every graph on the way to where it is.
    fn resolve(&mut self, level: usize, name: &str) -> Result<Option<ValueId>, ReadError> {
        let found = self.scopes.get(level).and_then(|g| g.find_value(name));
        if found.is_some() || level == 0 {
            return Ok(found);
        }
        let Some(outer) = self.resolve(level - 1, name)? else {
            return Ok(None);
        };
        let outside = self.scopes.get(level - 1).and_then(|g| g.get_value(outer));
        let shared = outside.map(|v| v.name().clone());
        let (Some(name), Some(graph)) = (shared, self.scopes.get_mut(level)) else {
            return Ok(None);
        };
        self.captures_left = self.captures_left.checked_sub(1).ok_or_else(|| {
            invalid("too many values are captured through too many levels of graphs")
        })?;
        let v = graph.add_value(name).map_err(edit)?;
        graph.bind_capture(v, outer).map_err(edit)?;
        Ok(Some(v))
    }

    // ---- nodes ----

    fn node(&mut self, data: &Bytes, nth: usize) -> Result<(), ReadError> {
        let mut rest = proto::NodeProto::default();
        let (mut attributes, mut devices) = (Vec::new(), Vec::new());
        split(data, &[5, 10], &mut rest, &mut |number, body| {
            match number {
                5 => attributes.push(body),
                _ => devices.push(body),
            }
            Ok(())
        })?;
        let label = || node_label(data, nth);
        if rest.op_type.as_deref().unwrap_or_default().is_empty() {
            return Err(invalid("the operator type is not given").within(label));
        }
        self.operator(rest, &attributes, devices)
            .map_err(|e| e.within(label))
    }

    fn operator(
        &mut self,
        node: proto::NodeProto,
        attributes: &[Bytes],
        devices: Vec<Bytes>,
    ) -> Result<(), ReadError> {
        let attrs = self.attributes(attributes)?;
        let mut inputs = Vec::with_capacity(node.input.len());
        for name in &node.input {
            inputs.push(if name.is_empty() {
                None
            } else {
                Some(self.value(name)?)
            });
        }
        let names = &mut self.tensors.names;
        let domain = node.domain.as_deref().map(|d| names.get(d));
        let extra = OpExtra {
            doc: optional_name(node.doc_string),
            overload: optional_name(node.overload),
            metadata: read_pairs(&node.metadata_props, names),
            device_configurations: devices,
            written_domain: domain.clone().filter(|d| matches!(&**d, "" | "ai.onnx")),
            empty_name: node.name.as_deref() == Some(""),
        };
        let mut new = NewOp::new(names.get(node.op_type.as_deref().unwrap_or_default()))
            .attrs(attrs)
            .inputs(inputs)
            .extra(extra);
        if let Some(domain) = domain {
            new = new.domain(domain);
        }
        let graph = self.here()?;
        let mut name = node.name.map(Name::from).unwrap_or_default();
        for output in &node.output {
            let found = graph.find_value(output).filter(|_| !output.is_empty());
            new = new.push_output(match found {
                None => NewOutput::Absent,
                Some(v) => {
                    // Exporters often give an operator the name of its output.
                    if *graph.value(v).name() == name {
                        name = graph.value(v).name().clone();
                    }
                    NewOutput::Existing(v)
                }
            });
        }
        let mut made: Vec<&String> = node.output.iter().filter(|o| !o.is_empty()).collect();
        made.sort_unstable();
        if made.windows(2).any(|w| matches!(w, [a, b] if a == b)) {
            return Err(invalid("two outputs have the same name"));
        }
        graph.add_op(new.name(name)).map_err(edit)?;
        Ok(())
    }

    // ---- functions ----

    fn function(&mut self, data: &Bytes) -> Result<Function, ReadError> {
        let mut rest = proto::FunctionProto::default();
        let (mut nodes, mut infos, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
        split(data, &[7, 11, 12], &mut rest, &mut |number, body| {
            match number {
                7 => nodes.push(body),
                11 => attributes.push(body),
                _ => infos.push(body),
            }
            Ok(())
        })?;
        let name = rest.name.take().unwrap_or_default();
        if name.is_empty() {
            return Err(invalid("a function has no name"));
        }
        let within = |e: ReadError| e.within(|| quoted("function", &name));
        let body = self
            .function_body(&name, &rest, &nodes, &infos)
            .map_err(within)?;
        let attribute_defaults = self.attributes(&attributes).map_err(within)?;
        let opsets = self.opsets(rest.opset_import).map_err(within)?;
        let names = &mut self.tensors.names;
        let mut text = |t: &Option<String>| names.get(t.as_deref().unwrap_or_default());
        Ok(Function {
            domain: text(&rest.domain),
            overload: text(&rest.overload),
            written: (
                rest.domain.as_deref() == Some(""),
                rest.overload.as_deref() == Some(""),
            ),
            name: name.as_str().into(),
            attributes: rest.attribute.into_iter().map(Name::from).collect(),
            attribute_defaults,
            opsets,
            body,
            doc: optional_name(rest.doc_string),
            metadata: read_pairs(&rest.metadata_props, &mut self.tensors.names),
        })
    }

    fn function_body(
        &mut self,
        name: &str,
        function: &proto::FunctionProto,
        nodes: &[Bytes],
        infos: &[Bytes],
    ) -> Result<Graph, ReadError> {
        let mut graph = Graph::new(name);
        for input in &function.input {
            if input.is_empty() {
                return Err(invalid("an input has no name"));
            }
            graph
                .add_input(input.as_str(), None)
                .map_err(|e| invalid(e.to_string()).within(|| quoted("input", input)))?;
        }
        self.scopes.push(graph);
        for node in nodes {
            self.node_outputs(node)?;
        }
        for (i, node) in nodes.iter().enumerate() {
            self.node(node, i)?;
        }
        for output in &function.output {
            if output.is_empty() {
                return Err(invalid("an output has no name"));
            }
            let v = self.value(output)?;
            self.here()?.add_output(v).map_err(edit)?;
        }
        let mut met = Met::new();
        for info in infos {
            self.info(info.clone(), InfoList::Declared, &mut met)?;
        }
        self.pop()
    }
}

/// Keeps an entry that the value doesn't give back as it is.
fn add_spelling(
    graph: &mut Graph,
    v: ValueId,
    info: &proto::ValueInfoProto,
    list: InfoList,
    nth: u32,
) -> Result<(), ReadError> {
    let Some(spelling) = types::spelling(info, graph.value(v), list, nth) else {
        return Ok(());
    };
    let spellings = graph.value(v).extra().map_or(0, |e| e.spellings.len());
    if spellings >= MAX_SPELLINGS {
        let problem = format!("it is described in more than {MAX_SPELLINGS} different ways");
        return Err(invalid(problem).within(|| quoted("value", graph.value(v).name())));
    }
    graph.add_spelling(v, spelling).map_err(edit)
}

/// A node for messages: its type and name, else its first output, else its place.
fn node_label(node: &Bytes, nth: usize) -> String {
    let field = |number: u32| {
        let mut first = None;
        let mut keep = |_, body: Bytes| {
            first.get_or_insert(body);
            Ok(())
        };
        each_field(node, number, &mut keep).ok()?;
        let first: Bytes = first?;
        Some(String::from_utf8_lossy(&first).into_owned()).filter(|t| !t.is_empty())
    };
    let kind = field(4).map_or_else(|| "node".to_owned(), |t| escape(&t));
    match field(3).or_else(|| field(2)) {
        Some(name) => quoted(&kind, &name),
        None => format!("{kind} number {nth}"),
    }
}

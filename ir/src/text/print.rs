//! Printing.

use std::fmt::{self, Write};

use half::{bf16, f16};

use super::{KINDS, is_identifier, is_type_word};
use crate::attr::{AttrValue, Attribute};
use crate::graph::{Graph, GraphExtra, OpId, ValueId};
use crate::model::{Function, Model, OpsetImport};
use crate::op::Op;
use crate::tensor::{DType, Element, SparseTensor, Tensor};
use crate::value::{Constant, Dim, Name, Shape, ValueType};

/// How to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrintOptions {
    /// Elements of tensors with more than this many are left out, and a digest printed in their
    /// place: such a text is for people, and the parser refuses it. `None` prints everything.
    pub elide_above: Option<usize>,
    /// Print after each operator that a pass made which one it was, and from what, as a comment.
    pub provenance: bool,
}

impl Default for PrintOptions {
    /// For people: up to 16 elements of a tensor, which is one line of a terminal.
    fn default() -> Self {
        PrintOptions {
            elide_above: Some(16),
            provenance: false,
        }
    }
}

impl PrintOptions {
    /// Everything that the parser reads back.
    pub fn full() -> PrintOptions {
        PrintOptions {
            elide_above: None,
            provenance: false,
        }
    }
}

/// The model as text.
pub fn print_model(model: &Model, options: &PrintOptions) -> String {
    let mut p = Printer::new(options);
    p.model_header(model);
    // Before version 4 the initializers had to be among the inputs.
    p.graph(&model.graph, model.ir_version < 4);
    p.out.push('\n');
    for f in &model.functions {
        p.function(f);
    }
    p.out
}

/// A graph as text, without the header of a model.
pub fn print_graph(graph: &Graph, options: &PrintOptions) -> String {
    let mut p = Printer::new(options);
    p.graph(graph, false);
    p.out.push('\n');
    p.out
}

/// One operator as text, without a line break unless it holds graphs. Empty when there is no
/// such operator.
pub fn print_op(graph: &Graph, op: OpId, options: &PrintOptions) -> String {
    let mut p = Printer::new(options);
    if let Some(op) = graph.get_op(op) {
        p.op(graph, op);
    }
    p.out
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print_model(self, &PrintOptions::default()))
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print_graph(self, &PrintOptions::default()))
    }
}

/// The type in the textual syntax, such as `float[N,3,224,224]`.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = PrintOptions::default();
        let mut p = Printer::new(&options);
        p.value_type(self);
        f.write_str(&p.out)
    }
}

struct Printer<'o> {
    out: String,
    options: &'o PrintOptions,
    indent: usize,
}

/// Writing to a `String` cannot fail.
macro_rules! put {
    ($p:expr, $($arg:tt)*) => {{ let _ = write!($p.out, $($arg)*); }};
}

impl<'o> Printer<'o> {
    fn new(options: &'o PrintOptions) -> Printer<'o> {
        Printer {
            out: String::new(),
            options,
            indent: 0,
        }
    }

    fn line(&mut self) {
        self.out.push('\n');
        for _ in 0..self.indent {
            self.out.push_str("  ");
        }
    }

    fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut f: impl FnMut(&mut Self, T)) {
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(", ");
            }
            f(self, item);
        }
    }

    // ---- names and strings ----

    fn name(&mut self, name: &str) {
        if is_identifier(name) {
            self.out.push_str(name);
        } else {
            self.string(name.as_bytes());
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        self.out.push('"');
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' => self.out.push_str("\\\""),
                    '\\' => self.out.push_str("\\\\"),
                    '\n' => self.out.push_str("\\n"),
                    '\r' => self.out.push_str("\\r"),
                    '\t' => self.out.push_str("\\t"),
                    c if crate::is_unprintable(c) => self.out.extend(c.escape_unicode()),
                    c => self.out.push(c),
                }
            }
            for b in chunk.invalid() {
                put!(self, "\\x{b:02X}");
            }
        }
        self.out.push('"');
    }

    fn pairs(&mut self, pairs: &[(Name, Name)]) {
        self.out.push('[');
        self.list(pairs, |p, (key, value)| {
            p.string(key.as_bytes());
            p.out.push_str(": ");
            p.string(value.as_bytes());
        });
        self.out.push(']');
    }

    fn opsets(&mut self, opsets: &[OpsetImport]) {
        self.out.push_str("opset_import: [");
        self.list(opsets, |p, o| {
            p.string(o.written_domain.as_ref().unwrap_or(&o.domain).as_bytes());
            put!(p, ": {}", o.version);
        });
        self.out.push(']');
    }

    // ---- models, functions, graphs ----

    fn model_header(&mut self, model: &Model) {
        put!(self, "<ir_version: {}, ", model.ir_version);
        self.opsets(&model.opsets);
        let e = &model.extra;
        for (key, value) in [
            ("producer_name", &e.producer_name),
            ("producer_version", &e.producer_version),
            ("domain", &e.domain),
        ] {
            self.optional_string(key, value.as_ref());
        }
        if let Some(version) = e.model_version {
            put!(self, ", model_version: {version}");
        }
        self.optional_string("doc_string", e.doc.as_ref());
        if !model.metadata.is_empty() {
            self.out.push_str(", metadata_props: ");
            self.pairs(&model.metadata);
        }
        self.out.push_str(">\n");
    }

    fn optional_string(&mut self, key: &str, value: Option<&Name>) {
        if let Some(value) = value {
            put!(self, ", {key}: ");
            self.string(value.as_bytes());
        }
    }

    fn function(&mut self, f: &Function) {
        self.out.push_str("<domain: ");
        self.string(f.domain.as_bytes());
        if !f.overload.is_empty() {
            self.optional_string("overload", Some(&f.overload));
        }
        self.out.push_str(", ");
        self.opsets(&f.opsets);
        self.optional_string("doc_string", f.doc.as_ref());
        if !f.metadata.is_empty() {
            self.out.push_str(", metadata_props: ");
            self.pairs(&f.metadata);
        }
        self.out.push_str(">\n");
        self.name(&f.name);
        self.out.push(' ');
        if !f.attributes.is_empty() || !f.attribute_defaults.is_empty() {
            self.out.push('<');
            self.list(&f.attributes, |p, name| p.name(name));
            if !f.attributes.is_empty() && !f.attribute_defaults.is_empty() {
                self.out.push_str(", ");
            }
            self.list(&f.attribute_defaults, Printer::attribute);
            self.out.push_str("> ");
        }
        self.signature_and_body(&f.body, false);
        self.out.push('\n');
    }

    fn graph(&mut self, graph: &Graph, list_initializers: bool) {
        self.name(graph.name());
        self.out.push(' ');
        self.signature_and_body(graph, list_initializers);
    }

    fn signature_and_body(&mut self, graph: &Graph, list_initializers: bool) {
        let listed = graph.listed_inputs();
        let inputs = match list_initializers && !listed.is_empty() {
            true => listed,
            false => graph.inputs(),
        };
        self.out.push('(');
        self.list(inputs, |p, &v| p.typed_value(graph, v));
        self.out.push_str(") => (");
        self.list(graph.outputs(), |p, &v| p.typed_value(graph, v));
        self.out.push(')');
        self.values(graph);
        self.body(graph);
    }

    /// Initializers and declared types.
    fn values(&mut self, graph: &Graph) {
        let mut first = true;
        let mut start = |p: &mut Self| {
            if std::mem::take(&mut first) {
                p.line();
                p.out.push('<');
                p.indent += 1;
            } else {
                p.out.push(',');
            }
            p.line();
        };
        for v in graph.initializers() {
            let value = graph.value(v);
            match value.initializer() {
                Some(Constant::Dense(tensor)) => {
                    start(self);
                    self.tensor_type(tensor);
                    self.out.push(' ');
                    self.name(value.name());
                    self.out.push_str(" = ");
                    self.elements(tensor);
                }
                Some(Constant::Sparse(sparse)) => {
                    start(self);
                    self.sparse_type(sparse);
                    self.out.push(' ');
                    self.name(value.name());
                    self.out.push_str(" = ");
                    self.sparse_elements(sparse);
                }
                None => {}
            }
        }
        for v in graph.declared() {
            start(self);
            self.typed_value(graph, v);
        }
        if !first {
            self.indent -= 1;
            self.line();
            self.out.push('>');
            self.line();
        } else {
            self.out.push(' ');
        }
    }

    fn body(&mut self, graph: &Graph) {
        self.out.push('{');
        self.graph_pragma(graph.extra());
        self.indent += 1;
        // A cycle is for the verifier to report; people want to see it all the same.
        let order = graph
            .topological_order()
            .unwrap_or_else(|_| graph.ops().collect());
        for id in order {
            let Some(op) = graph.get_op(id) else { continue };
            self.line();
            self.op(graph, op);
        }
        self.indent -= 1;
        self.line();
        self.out.push('}');
    }

    fn graph_pragma(&mut self, extra: &GraphExtra) {
        let mut separator = " #: ";
        self.pragma_items(&mut separator, extra.doc.as_ref(), &extra.metadata);
        if !extra.quantization_annotations.is_empty() {
            put!(self, "{separator}quantization: [");
            self.list(&extra.quantization_annotations, |p, a| {
                p.string(a.tensor.as_ref().map_or(&[], |t| t.as_bytes()));
                p.out.push_str(": ");
                p.pairs(&a.parameters);
            });
            self.out.push(']');
        }
    }

    fn pragma_items(
        &mut self,
        separator: &mut &'static str,
        doc: Option<&Name>,
        metadata: &[(Name, Name)],
    ) {
        if let Some(doc) = doc {
            put!(self, "{separator}doc_string: ");
            self.string(doc.as_bytes());
            *separator = ", ";
        }
        if !metadata.is_empty() {
            put!(self, "{separator}metadata_props: ");
            self.pairs(metadata);
            *separator = ", ";
        }
    }

    // ---- operators ----

    fn op(&mut self, graph: &Graph, op: &Op) {
        if !op.name().is_empty() {
            self.out.push('[');
            self.name(op.name());
            self.out.push_str("] ");
        }
        let value_name = |v: Option<ValueId>| {
            v.and_then(|v| graph.get_value(v))
                .map_or("", |v| &**v.name())
        };
        self.list(op.outputs(), |p, &v| p.name(value_name(v)));
        self.out
            .push_str(if op.outputs().is_empty() { "= " } else { " = " });
        self.op_type(op);
        // As `onnx.printer` does: attributes that hold graphs stand after the inputs.
        let after = op.has_subgraphs();
        if !after {
            self.attributes(op);
        }
        self.out.push_str(" (");
        self.list(op.inputs(), |p, v| p.name(value_name(v)));
        self.out.push(')');
        if after {
            self.attributes(op);
        }
        if let Some(extra) = op.extra() {
            self.pragma_items(&mut " #: ", extra.doc.as_ref(), &extra.metadata);
        }
        if self.options.provenance
            && let Some(origin) = op.provenance()
        {
            let escaped = |names: &[Name]| {
                let names: Vec<String> = names.iter().map(|n| crate::escape(n)).collect();
                names.join(", ")
            };
            self.out.push_str(" #");
            if !origin.from.is_empty() {
                put!(self, " from {}", escaped(&origin.from));
            }
            put!(self, " by {}", escaped(&origin.passes));
        }
    }

    fn op_type(&mut self, op: &Op) {
        if op.domain().split('.').all(is_identifier) {
            put!(self, "{}.", op.domain());
        } else if !op.domain().is_empty() {
            self.string(op.domain().as_bytes());
            self.out.push('.');
        }
        self.name(op.op_type());
        if !op.overload().is_empty() {
            self.out.push(':');
            self.name(op.overload());
        }
    }

    fn attributes(&mut self, op: &Op) {
        if op.attrs().is_empty() {
            return;
        }
        self.out.push_str(" <");
        self.list(op.attrs(), Printer::attribute);
        self.out.push('>');
    }

    fn attribute(&mut self, attr: &Attribute) {
        self.name(&attr.name);
        let kind = attr.value.kind();
        let kind = KINDS.iter().find(|(_, k)| *k == kind).map_or("?", |k| k.0);
        put!(self, ": {kind} = ");
        self.attribute_value(&attr.value);
    }

    fn attribute_value(&mut self, value: &AttrValue) {
        match value {
            AttrValue::Float(v) => self.attribute_float(*v),
            AttrValue::Int(v) => put!(self, "{v}"),
            AttrValue::String(v) => self.string(v),
            AttrValue::Tensor(v) => self.attribute_tensor(v),
            AttrValue::Graph(v) => self.graph(v, false),
            AttrValue::SparseTensor(v) => self.sparse(v),
            AttrValue::Type(v) => self.value_type(v),
            AttrValue::Ref { name, .. } => {
                self.out.push('@');
                self.name(name);
            }
            AttrValue::Floats(v) => self.bracketed(v, |p, v| p.attribute_float(*v)),
            AttrValue::Ints(v) => self.bracketed(v, |p, v| put!(p, "{v}")),
            AttrValue::Strings(v) => self.bracketed(v, |p, v| p.string(v)),
            AttrValue::Tensors(v) => self.bracketed(v, Printer::attribute_tensor),
            AttrValue::Graphs(v) => self.bracketed(v, |p, v| p.graph(v, false)),
            AttrValue::SparseTensors(v) => self.bracketed(v, Printer::sparse),
            AttrValue::Types(v) => self.bracketed(v, Printer::value_type),
        }
    }

    fn bracketed<'v, T>(&mut self, items: &'v [T], f: impl FnMut(&mut Self, &'v T)) {
        self.out.push('[');
        self.list(items, f);
        self.out.push(']');
    }

    fn attribute_float(&mut self, v: f32) {
        let text = float_text(v.into(), &format!("{v:?}"), v.to_bits().into());
        self.out.push_str(&text);
    }

    fn attribute_tensor(&mut self, tensor: &Tensor) {
        self.tensor_type(tensor);
        self.out.push(' ');
        if let Some(name) = tensor.extra().and_then(|e| e.name.as_ref()) {
            self.name(name);
            self.out.push(' ');
        }
        self.elements(tensor);
    }

    // ---- types ----

    fn typed_value(&mut self, graph: &Graph, v: ValueId) {
        let Some(value) = graph.get_value(v) else {
            return;
        };
        match value.declared_type() {
            Some(ty) => {
                self.value_type(ty);
                self.out.push(' ');
                self.name(value.name());
            }
            None if is_type_word(value.name()) => self.string(value.name().as_bytes()),
            None => self.name(value.name()),
        }
        if let Some(extra) = value.extra()
            && (extra.doc.is_some() || !extra.metadata.is_empty())
        {
            self.pragma_items(&mut " #: ", extra.doc.as_ref(), &extra.metadata);
            self.line();
        }
    }

    fn value_type(&mut self, ty: &ValueType) {
        match ty {
            ValueType::Tensor { dtype, shape } => self.dense_type(*dtype, shape.as_ref()),
            ValueType::SparseTensor { dtype, shape } => {
                self.out.push_str("sparse_tensor(");
                self.dense_type(*dtype, shape.as_ref());
                self.out.push(')');
            }
            ValueType::Sequence(of) => self.wrapped("seq(", of.as_deref()),
            ValueType::Optional(of) => self.wrapped("optional(", of.as_deref()),
            ValueType::Map { key, value } => {
                put!(self, "map({}, ", key.map_or("undefined", DType::name));
                self.wrapped("", value.as_deref());
            }
            ValueType::Opaque { domain, name } => {
                self.out.push_str("opaque(");
                self.name(domain);
                self.out.push(',');
                self.name(name);
                self.out.push(')');
            }
        }
    }

    fn wrapped(&mut self, open: &str, of: Option<&ValueType>) {
        self.out.push_str(open);
        if let Some(of) = of {
            self.value_type(of);
        }
        self.out.push(')');
    }

    fn dense_type(&mut self, dtype: Option<DType>, shape: Option<&Shape>) {
        self.out.push_str(dtype.map_or("undefined", DType::name));
        let Some(shape) = shape else {
            self.out.push_str("[]");
            return;
        };
        if shape.is_empty() {
            return;
        }
        self.out.push('[');
        for (i, dim) in shape.iter().enumerate() {
            if i > 0 {
                self.out.push(',');
            }
            match dim {
                Dim::Value(v) => put!(self, "{v}"),
                Dim::Param(p) => self.name(p),
                Dim::Unknown => self.out.push('?'),
            }
        }
        self.out.push(']');
    }

    fn fixed_type(&mut self, dtype: DType, dims: &[usize]) {
        self.out.push_str(dtype.name());
        if !dims.is_empty() {
            let dims: Vec<String> = dims.iter().map(usize::to_string).collect();
            put!(self, "[{}]", dims.join(","));
        }
    }

    // ---- tensors ----

    fn tensor_type(&mut self, tensor: &Tensor) {
        self.fixed_type(tensor.dtype(), tensor.dims());
    }

    fn sparse_type(&mut self, sparse: &SparseTensor) {
        self.out.push_str("sparse_tensor(");
        self.fixed_type(sparse.values.dtype(), &sparse.dims);
        self.out.push(')');
    }

    fn sparse(&mut self, sparse: &SparseTensor) {
        self.sparse_type(sparse);
        self.out.push(' ');
        self.sparse_elements(sparse);
    }

    fn sparse_elements(&mut self, sparse: &SparseTensor) {
        self.tensor_type(&sparse.values);
        self.out.push(' ');
        self.elements(&sparse.values);
        self.out.push_str(" at ");
        self.tensor_type(&sparse.indices);
        self.out.push(' ');
        self.elements(&sparse.indices);
    }

    fn elements(&mut self, tensor: &Tensor) {
        if self.options.elide_above.is_some_and(|n| tensor.len() > n) {
            put!(
                self,
                "{{… {} elements, digest {:032x}}}",
                tensor.len(),
                tensor.digest()
            );
            return;
        }
        self.out.push('{');
        if let Some(strings) = tensor.strings() {
            self.list(strings, |p, s| p.string(s));
        } else {
            self.numbers(tensor);
        }
        self.out.push('}');
    }

    fn numbers(&mut self, tensor: &Tensor) {
        match tensor.dtype() {
            DType::F32 => self.floats(tensor.bytes()),
            DType::C64 => self.floats(tensor.bytes()),
            DType::F64 => self.doubles(tensor.bytes()),
            DType::C128 => self.doubles(tensor.bytes()),
            DType::F16 => self.each::<f16>(tensor, |p, v| put!(p, "{}", v.to_bits())),
            DType::BF16 => self.each::<bf16>(tensor, |p, v| put!(p, "{}", v.to_bits())),
            DType::U64 => self.each::<u64>(tensor, |p, v| put!(p, "{v}")),
            DType::F4E2M1 => {
                let nibbles = tensor.bytes().iter().flat_map(|b| [b & 15, b >> 4]);
                self.list(nibbles.take(tensor.len()), |p, v| put!(p, "{v}"));
            }
            // The remaining small floats are bytes; everything else is an integer or a boolean,
            // of which any byte that is not 0 or 1 shows as it is.
            DType::Bool
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0 => self.list(tensor.bytes().iter(), |p, v| put!(p, "{v}")),
            _ => {
                let values = tensor.to_i64s().unwrap_or_default();
                self.list(values, |p, v| put!(p, "{v}"));
            }
        }
    }

    fn each<T: Element>(&mut self, tensor: &Tensor, mut f: impl FnMut(&mut Self, T)) {
        if let Ok(values) = tensor.view::<T>() {
            self.list(values.iter(), |p, v| f(p, *v));
        }
    }

    fn floats(&mut self, bytes: &[u8]) {
        self.list(bytes.as_chunks::<4>().0, |p, b| {
            let v = f32::from_le_bytes(*b);
            let text = float_text(v.into(), &format!("{v:?}"), v.to_bits().into());
            p.out.push_str(without_fraction(&text));
        });
    }

    fn doubles(&mut self, bytes: &[u8]) {
        self.list(bytes.as_chunks::<8>().0, |p, b| {
            let v = f64::from_le_bytes(*b);
            let canonical = v.is_nan() && v.to_bits() == 0x7ff8_0000_0000_0000;
            let bits = if canonical { 0x7fc0_0000 } else { v.to_bits() };
            let text = float_text(v, &format!("{v:?}"), bits);
            p.out.push_str(without_fraction(&text));
        });
    }
}

/// The shortest text that reads back to the same bits. `shortest` is Rust's, which differs only
/// in how it spells NaN; `bits` tells NaNs apart, `0x7fc00000` being the common one.
fn float_text(v: f64, shortest: &str, bits: u64) -> String {
    if v.is_nan() && bits == 0x7fc0_0000 {
        "nan".to_owned()
    } else if v.is_nan() {
        format!("nan({bits:#x})")
    } else {
        shortest.to_owned()
    }
}

/// Whole numbers without `.0`, but for the negative zero, which would be read as an integer.
fn without_fraction(text: &str) -> &str {
    if text == "-0.0" {
        text
    } else {
        text.strip_suffix(".0").unwrap_or(text)
    }
}

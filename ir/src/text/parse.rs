//! Parsing: text to a tree, here and in `lexer.rs` and `tensors.rs`; the tree to graphs in
//! `build.rs`. The tree is needed because a graph in an attribute may take a value that the
//! graph around it defines further down.

mod build;
mod lexer;
mod tensors;

use bytes::Bytes;

use super::{KINDS, MAX_NESTING, is_type_word};
use crate::attr::{AttrKind, AttrValue, Attribute};
use crate::graph::{Graph, QuantizationAnnotation};
use crate::model::{Function, Model, OpsetImport, ir_version_for};
use crate::tensor::{DType, SparseTensor, Tensor, TensorExtra};
use crate::value::{Constant, Dim, Name, Shape, ValueType};
use lexer::{Fault, Lexer, Text};

/// Why a text is no model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}\n  {shown}\n  {}^", " ".repeat(*caret))]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
    /// The line, or the part of it around the column, made safe to print.
    pub shown: String,
    /// Where in `shown` the column is.
    pub caret: usize,
}

/// The model that a text says. A header with `opset_import` is needed.
pub fn parse_model(text: &str) -> Result<Model, ParseError> {
    let mut p = Parser::new(text);
    p.model().map_err(|fault| p.lex.error(fault))
}

/// The graph that a text says: what [`parse_model`] takes, without header and functions.
pub fn parse_graph(text: &str) -> Result<Graph, ParseError> {
    let mut p = Parser::new(text);
    let mut run = || {
        let tree = p.graph()?;
        p.lex.end()?;
        build::graph(&tree)
    };
    run().map_err(|fault| p.lex.error(fault))
}

/// The type that a text says, such as `float[N,3,224,224]`.
pub fn parse_type(text: &str) -> Result<ValueType, ParseError> {
    let mut p = Parser::new(text);
    let mut run = || {
        let ty = p.value_type()?;
        p.lex.end()?;
        Ok(ty)
    };
    run().map_err(|fault| p.lex.error(fault))
}

// ---- the tree ----

struct GraphTree {
    at: usize,
    name: String,
    inputs: Vec<ValueTree>,
    outputs: Vec<ValueTree>,
    values: Vec<ValueTree>,
    ops: Vec<OpTree>,
    notes: Notes,
}

/// An input, an output, an initializer or a declaration.
struct ValueTree {
    at: usize,
    name: String,
    ty: Option<ValueType>,
    constant: Option<Constant>,
    notes: Notes,
}

struct OpTree {
    at: usize,
    name: String,
    outputs: Vec<Text>,
    domain: String,
    op_type: String,
    overload: Option<String>,
    attrs: Vec<AttrTree>,
    inputs: Vec<Text>,
    notes: Notes,
}

struct AttrTree {
    name: String,
    value: Tree,
}

/// The value of an attribute, whose graphs are not built yet.
enum Tree {
    Value(AttrValue),
    Graph(Box<GraphTree>),
    Graphs(Vec<GraphTree>),
}

/// What stands behind `#:`.
#[derive(Default)]
struct Notes {
    doc: Option<Name>,
    metadata: Vec<(Name, Name)>,
    quantization: Vec<QuantizationAnnotation>,
}

type Parsed<T> = Result<T, Fault>;

struct Parser<'t> {
    lex: Lexer<'t>,
    depth: usize,
    /// Bytes made by fill patterns so far.
    filled: usize,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Parser<'t> {
        Parser {
            lex: Lexer::new(text),
            depth: 0,
            filled: 0,
        }
    }

    fn nested<T>(&mut self, f: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_NESTING {
            return Err(self
                .lex
                .fault(format!("nested deeper than {MAX_NESTING} levels")));
        }
        self.depth += 1;
        let result = f(self);
        self.depth -= 1;
        result
    }

    /// Items between commas up to `close`, which is taken too.
    fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut out = Vec::new();
        if self.lex.take(close) {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.lex.take(close) {
                return Ok(out);
            }
            if !self.lex.take(',') {
                return Err(self.lex.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    fn string_pairs(&mut self) -> Parsed<Vec<(Name, Name)>> {
        self.lex.expect('[')?;
        self.list(']', |p| {
            let key = p.lex.utf8_string()?;
            p.lex.expect(':')?;
            Ok((key.into(), p.lex.utf8_string()?.into()))
        })
    }

    fn opsets(&mut self) -> Parsed<Vec<OpsetImport>> {
        self.lex.expect('[')?;
        self.list(']', |p| {
            let written: Name = p.lex.utf8_string()?.into();
            p.lex.expect(':')?;
            let version = p.lex.int()?;
            let domain = if &*written == "ai.onnx" {
                ""
            } else {
                &*written
            };
            Ok(OpsetImport {
                domain: domain.into(),
                version,
                written_domain: Some(written.clone()),
            })
        })
    }

    // ---- models and functions ----

    fn model(&mut self) -> Parsed<Model> {
        if !self.lex.peek_is('<') {
            return Err(self.lex.expected(
                "the header of a model, such as `<ir_version: 10, opset_import: [\"\": 21]>`",
            ));
        }
        let mut model = self.model_header()?;
        let tree = self.graph()?;
        model.graph = build::graph(&tree)?;
        if model.ir_version < 4 {
            model.graph.fix_listed_initializers();
        }
        while !self.lex.at_end() {
            model.functions.push(self.function()?);
        }
        Ok(model)
    }

    fn model_header(&mut self) -> Parsed<Model> {
        let mut model = Model::new(Graph::new(""), 1);
        let (mut ir_version, mut opsets) = (None, None);
        let start = self.lex.here();
        self.lex.expect('<')?;
        self.list('>', |p| {
            let (at, key) = p.lex.key()?;
            let extra = &mut model.extra;
            match &*key {
                "ir_version" => ir_version = Some(p.lex.int()?),
                "opset_import" => opsets = Some(p.opsets()?),
                "producer_name" => extra.producer_name = Some(p.lex.utf8_string()?.into()),
                "producer_version" => extra.producer_version = Some(p.lex.utf8_string()?.into()),
                "domain" => extra.domain = Some(p.lex.utf8_string()?.into()),
                "model_version" => extra.model_version = Some(p.lex.int()?),
                "doc_string" => extra.doc = Some(p.lex.utf8_string()?.into()),
                "metadata_props" => model.metadata = p.string_pairs()?,
                _ => {
                    return Err(Fault::at(
                        at,
                        format!(
                            "a model's header has no `{}`; it has ir_version, opset_import, \
                             producer_name, producer_version, domain, model_version, doc_string \
                             and metadata_props",
                            crate::escape(&key)
                        ),
                    ));
                }
            }
            Ok(())
        })?;
        model.opsets = opsets.ok_or_else(|| {
            let what = "the header lacks `opset_import`, such as `opset_import: [\"\": 21]`";
            Fault::at(start, what.to_owned())
        })?;
        model.ir_version = ir_version.unwrap_or_else(|| ir_version_for(model.opset()));
        Ok(model)
    }

    fn function(&mut self) -> Parsed<Function> {
        let mut f = Function {
            domain: "".into(),
            name: "".into(),
            overload: "".into(),
            attributes: Vec::new(),
            attribute_defaults: Vec::new(),
            opsets: Vec::new(),
            body: Graph::new(""),
            doc: None,
            metadata: Vec::new(),
            written: (false, false),
        };
        if !self.lex.peek_is('<') {
            return Err(self.lex.expected(
                "the end, or the header of a function, such as `<domain: \"d\", opset_import: [\"\": 21]>`",
            ));
        }
        self.lex.expect('<')?;
        self.list('>', |p| {
            let (at, key) = p.lex.key()?;
            match &*key {
                "domain" => f.domain = p.lex.utf8_string()?.into(),
                "overload" => f.overload = p.lex.utf8_string()?.into(),
                "opset_import" => f.opsets = p.opsets()?,
                "doc_string" => f.doc = Some(p.lex.utf8_string()?.into()),
                "metadata_props" => f.metadata = p.string_pairs()?,
                _ => {
                    return Err(Fault::at(
                        at,
                        format!(
                            "a function's header has no `{}`; it has domain, overload, \
                             opset_import, doc_string and metadata_props",
                            crate::escape(&key)
                        ),
                    ));
                }
            }
            Ok(())
        })?;
        let at = self.lex.here();
        let name = self.lex.name()?;
        f.name = name.as_str().into();
        if self.lex.take('<') {
            self.list('>', |p| {
                let name: Name = p.lex.name()?.into();
                if !p.lex.peek_is(':') && !p.lex.peek_is('=') {
                    f.attributes.push(name);
                    return Ok(());
                }
                let at = p.lex.here();
                match p.attribute_after_name()? {
                    Tree::Value(value) => f.attribute_defaults.push(Attribute::new(name, value)),
                    _ => return Err(Fault::at(at, "the default can't be a graph".to_owned())),
                }
                Ok(())
            })?;
        }
        let tree = self.graph_after_name(at, name)?;
        f.body = build::graph(&tree)?;
        Ok(f)
    }

    // ---- graphs ----

    fn graph(&mut self) -> Parsed<GraphTree> {
        let at = self.lex.here();
        let name = self.lex.name()?;
        self.graph_after_name(at, name)
    }

    fn graph_after_name(&mut self, at: usize, name: String) -> Parsed<GraphTree> {
        self.nested(|p| {
            p.lex.expect('(')?;
            let inputs = p.list(')', Parser::value)?;
            p.lex.expect_word("=>")?;
            p.lex.expect('(')?;
            let outputs = p.list(')', Parser::value)?;
            let values = if p.lex.take('<') {
                p.list('>', Parser::value)?
            } else {
                Vec::new()
            };
            p.lex.expect('{')?;
            let notes = p.notes()?;
            let mut ops = Vec::new();
            while !p.lex.take('}') {
                if p.lex.at_end() {
                    return Err(p
                        .lex
                        .expected("an operator, or `}` at the end of the graph"));
                }
                ops.push(p.op()?);
            }
            Ok(GraphTree {
                at,
                name,
                inputs,
                outputs,
                values,
                ops,
                notes,
            })
        })
    }

    fn value(&mut self) -> Parsed<ValueTree> {
        let start = self.lex.here();
        let ty = match self.lex.peek_identifier() {
            Some(word) if is_type_word(word) => Some(self.value_type()?),
            _ => None,
        };
        let at = self.lex.here();
        let name = self.lex.name()?;
        if name.is_empty() {
            return Err(Fault::at(at, "a value's name can't be empty".to_owned()));
        }
        let mut constant = None;
        if self.lex.take('=') {
            let Some(ty) = ty.clone() else {
                let what = "an initializer needs a type, such as `float[2] w = {1, 2}`";
                return Err(Fault::at(start, what.to_owned()));
            };
            constant = Some(self.constant(start, ty)?);
        }
        let notes = self.notes()?;
        Ok(ValueTree {
            at,
            name,
            ty,
            constant,
            notes,
        })
    }

    fn constant(&mut self, at: usize, ty: ValueType) -> Parsed<Constant> {
        match ty {
            ValueType::SparseTensor { dtype, shape } => {
                let (dtype, dims) = fixed_shape(at, dtype, shape)?;
                let sparse = self.sparse(dtype, &dims)?;
                Ok(Constant::Sparse(sparse.into()))
            }
            ValueType::Tensor { dtype, shape } => {
                let (dtype, dims) = fixed_shape(at, dtype, shape)?;
                Ok(Constant::Dense(self.elements(dtype, &dims)?))
            }
            _ => Err(Fault::at(
                at,
                "only a tensor can have elements, such as `float[2] w = {1, 2}`".to_owned(),
            )),
        }
    }

    /// `float[2] {1, 2} at int64[2] {0, 3}`: the elements of a sparse tensor.
    fn sparse(&mut self, dtype: DType, dims: &[usize]) -> Parsed<SparseTensor> {
        let at = self.lex.here();
        let values = self.plain_tensor()?;
        if values.dtype() != dtype {
            return Err(Fault::at(
                at,
                format!(
                    "expected elements of type {dtype}, found {}",
                    values.dtype()
                ),
            ));
        }
        self.lex.expect_word("at")?;
        let at = self.lex.here();
        let indices = self.plain_tensor()?;
        if indices.dtype() != DType::I64 {
            return Err(Fault::at(
                at,
                format!(
                    "expected positions of type int64, found {}",
                    indices.dtype()
                ),
            ));
        }
        Ok(SparseTensor {
            values,
            indices,
            dims: dims.iter().copied().collect(),
        })
    }

    fn plain_tensor(&mut self) -> Parsed<Tensor> {
        let at = self.lex.here();
        let ty = self.value_type()?;
        self.lex.take('=');
        match self.constant(at, ty)? {
            Constant::Dense(tensor) => Ok(tensor),
            Constant::Sparse(_) => Err(Fault::at(at, "expected a dense tensor".to_owned())),
        }
    }

    /// `#: doc_string: "…", metadata_props: […], quantization: […]`, when it is there.
    fn notes(&mut self) -> Parsed<Notes> {
        let mut notes = Notes::default();
        if !self.lex.take_notes_mark() {
            return Ok(notes);
        }
        loop {
            let (at, key) = self.lex.key()?;
            match &*key {
                "doc_string" => notes.doc = Some(self.lex.utf8_string()?.into()),
                "metadata_props" => notes.metadata = self.string_pairs()?,
                "quantization" => {
                    self.lex.expect('[')?;
                    notes.quantization = self.list(']', |p| {
                        let tensor = p.lex.utf8_string()?;
                        p.lex.expect(':')?;
                        Ok(QuantizationAnnotation {
                            tensor: (!tensor.is_empty()).then(|| tensor.into()),
                            parameters: p.string_pairs()?,
                        })
                    })?;
                }
                _ => {
                    let what = "after `#:` stand doc_string, metadata_props or quantization; \
                                an ordinary comment starts with `# `";
                    return Err(Fault::at(at, what.to_owned()));
                }
            }
            // The comma of an enclosing list stands on the next line.
            if !self.lex.take_on_line(',') {
                return Ok(notes);
            }
        }
    }

    // ---- operators ----

    fn op(&mut self) -> Parsed<OpTree> {
        let at = self.lex.here();
        let mut name = String::new();
        if self.lex.take('[') {
            name = self.lex.name()?;
            self.lex.expect(']')?;
        }
        let outputs = self.operands('=')?;
        let (domain, op_type) = self.op_type()?;
        let overload = match self.lex.take(':') {
            true => Some(self.lex.name()?),
            false => None,
        };
        let mut attrs = self.attributes()?;
        self.lex.expect('(')?;
        let inputs = self.operands(')')?;
        attrs.extend(self.attributes()?);
        Ok(OpTree {
            at,
            name,
            outputs,
            domain,
            op_type,
            overload,
            attrs,
            inputs,
            notes: self.notes()?,
        })
    }

    /// Names between commas up to `close`. Between two commas may stand nothing, which is an
    /// absent operand; after the last one too, which is none, as in `onnx.parser`.
    fn operands(&mut self, close: char) -> Parsed<Vec<Text>> {
        let mut out = Vec::new();
        loop {
            if self.lex.take(close) {
                return Ok(out);
            }
            let at = self.lex.here();
            if self.lex.take(',') {
                out.push(Text {
                    at,
                    text: String::new(),
                });
                continue;
            }
            let text = self.lex.name()?;
            out.push(Text { at, text });
            if self.lex.take(close) {
                return Ok(out);
            }
            if !self.lex.take(',') {
                return Err(self.lex.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    /// `Op`, `a.b.Op` or `"any domain".Op`.
    fn op_type(&mut self) -> Parsed<(String, String)> {
        let mut parts = vec![self.lex.name()?];
        while self.lex.take('.') {
            parts.push(self.lex.name()?);
        }
        let op_type = parts.pop().unwrap_or_default();
        Ok((parts.join("."), op_type))
    }

    fn attributes(&mut self) -> Parsed<Vec<AttrTree>> {
        if !self.lex.take('<') {
            return Ok(Vec::new());
        }
        self.list('>', |p| {
            let name = p.lex.name()?;
            let value = p.attribute_after_name()?;
            Ok(AttrTree { name, value })
        })
    }

    /// `: kind = value`, or `= value` where the value tells the kind.
    fn attribute_after_name(&mut self) -> Parsed<Tree> {
        let mut kind = None;
        if self.lex.take(':') {
            let at = self.lex.here();
            let word = self.lex.name()?;
            let found = KINDS.iter().find(|(name, _)| *name == word);
            kind = Some(found.ok_or_else(|| {
                let names: Vec<&str> = KINDS.iter().map(|k| k.0).collect();
                Fault::at(
                    at,
                    format!(
                        "no kind of attribute is called `{}`; the kinds are {}",
                        crate::escape(&word),
                        names.join(", ")
                    ),
                )
            })?);
        }
        self.lex.expect('=')?;
        let at = self.lex.here();
        let kind = kind.map(|&(_, kind)| kind);
        if self.lex.take('@') {
            let name = self.lex.name()?.into();
            let Some(kind) = kind else {
                let what = "a reference needs its kind, such as `axis: int = @axis`";
                return Err(Fault::at(at, what.to_owned()));
            };
            return Ok(Tree::Value(AttrValue::Ref { name, kind }));
        }
        let tree = if self.lex.take('[') {
            self.attribute_list(at, kind)?
        } else if kind == Some(AttrKind::Strings) && self.lex.take(']') {
            // So `onnx.printer` writes an empty list of strings.
            Tree::Value(AttrValue::Strings(Vec::new()))
        } else {
            self.attribute_scalar(kind)?
        };
        convert(at, tree, kind)
    }

    fn attribute_scalar(&mut self, kind: Option<AttrKind>) -> Parsed<Tree> {
        let at = self.lex.here();
        if self.lex.peek_is('"') {
            let string = self.lex.string()?;
            if self.lex.peek_is('(') {
                let name = lexer::utf8(at, string)?;
                return Ok(Tree::Graph(Box::new(self.graph_after_name(at, name)?)));
            }
            return Ok(Tree::Value(AttrValue::String(string.into())));
        }
        if let Some(number) = self.lex.number()? {
            let integer = number.is_integer() && kind != Some(AttrKind::Float);
            return Ok(Tree::Value(match integer {
                true => AttrValue::Int(number.parse_int()?),
                false => AttrValue::Float(number.parse_f32()?),
            }));
        }
        let Some(word) = self.lex.peek_identifier() else {
            return Err(self.lex.expected("the value of an attribute"));
        };
        if !is_type_word(word) {
            return Ok(Tree::Graph(Box::new(self.graph()?)));
        }
        self.typed_attribute(at).map(Tree::Value)
    }

    /// A tensor, a sparse tensor, or a type.
    fn typed_attribute(&mut self, at: usize) -> Parsed<AttrValue> {
        let ty = self.value_type()?;
        if let ValueType::SparseTensor { dtype, shape } = &ty {
            if self.lex.peek_identifier().is_none() {
                return Ok(AttrValue::Type(Box::new(ty)));
            }
            let (dtype, dims) = fixed_shape(at, *dtype, shape.clone())?;
            return Ok(AttrValue::SparseTensor(Box::new(
                self.sparse(dtype, &dims)?,
            )));
        }
        let mut name = None;
        if self.lex.peek_identifier().is_some() || self.lex.peek_is('"') {
            name = Some(self.lex.name()?);
        }
        if !self.lex.take('=') && !self.lex.peek_is('{') && name.is_none() {
            return Ok(AttrValue::Type(Box::new(ty)));
        }
        match self.constant(at, ty)? {
            Constant::Dense(tensor) => Ok(AttrValue::Tensor(match name {
                None => tensor,
                Some(name) => tensor.with_extra(TensorExtra {
                    name: Some(name.into()),
                    ..TensorExtra::default()
                }),
            })),
            Constant::Sparse(sparse) => Ok(AttrValue::SparseTensor(Box::new((*sparse).clone()))),
        }
    }

    /// The rest of a list after its `[`.
    fn attribute_list(&mut self, at: usize, kind: Option<AttrKind>) -> Parsed<Tree> {
        let of = match kind {
            Some(AttrKind::Floats) => Some(AttrKind::Float),
            _ => None,
        };
        let items = self.list(']', |p| p.attribute_scalar(of))?;
        let what = "the elements of a list must all be of one kind";
        gather(items).ok_or_else(|| Fault::at(at, what.to_owned()))
    }

    // ---- types ----

    fn value_type(&mut self) -> Parsed<ValueType> {
        self.nested(Parser::value_type_inside)
    }

    fn value_type_inside(&mut self) -> Parsed<ValueType> {
        let at = self.lex.here();
        let Some(word) = self.lex.identifier() else {
            return Err(self.lex.expected("a type, such as `float[2,3]`"));
        };
        if !matches!(
            word,
            "seq" | "optional" | "map" | "sparse_tensor" | "opaque"
        ) {
            let dtype = self.dtype_of(at, word)?;
            let shape = self.shape()?;
            return Ok(ValueType::Tensor { dtype, shape });
        }
        self.lex.expect('(')?;
        let ty = match word {
            "seq" => ValueType::Sequence(self.optional_type()?),
            "optional" => ValueType::Optional(self.optional_type()?),
            "map" => {
                let at = self.lex.here();
                let key = self.lex.identifier().unwrap_or("");
                let key = self.dtype_of(at, key)?;
                self.lex.expect(',')?;
                let value = self.optional_type()?;
                ValueType::Map { key, value }
            }
            "opaque" => {
                let domain = self.lex.name()?.into();
                self.lex.expect(',')?;
                let name = self.lex.name()?.into();
                ValueType::Opaque { domain, name }
            }
            _ => {
                let at = self.lex.here();
                let word = self.lex.identifier().unwrap_or("");
                let dtype = self.dtype_of(at, word)?;
                let shape = self.shape()?;
                ValueType::SparseTensor { dtype, shape }
            }
        };
        self.lex.expect(')')?;
        Ok(ty)
    }

    fn optional_type(&mut self) -> Parsed<Option<Box<ValueType>>> {
        if self.lex.peek_is(')') {
            return Ok(None);
        }
        Ok(Some(Box::new(self.value_type()?)))
    }

    fn dtype_of(&self, at: usize, word: &str) -> Parsed<Option<DType>> {
        if word == "undefined" {
            return Ok(None);
        }
        match DType::from_name(word) {
            Some(dtype) => Ok(Some(dtype)),
            None => Err(Fault::at(
                at,
                format!(
                    "expected an element type, such as `float` or `int64`, found {}",
                    self.lex.found(at)
                ),
            )),
        }
    }

    /// Nothing is a scalar, `[]` is an unknown rank.
    fn shape(&mut self) -> Parsed<Option<Shape>> {
        if !self.lex.take('[') {
            return Ok(Some(Shape::new()));
        }
        let dims = self.list(']', |p| {
            if p.lex.take('?') {
                return Ok(Dim::Unknown);
            }
            if p.lex.peek_identifier().is_some() || p.lex.peek_is('"') {
                return Ok(Dim::Param(p.lex.name()?.into()));
            }
            Ok(Dim::Value(p.lex.int()?))
        })?;
        Ok((!dims.is_empty()).then(|| dims.into_iter().collect()))
    }
}

/// The element type and dimensions of something that has elements.
fn fixed_shape(
    at: usize,
    dtype: Option<DType>,
    shape: Option<Shape>,
) -> Parsed<(DType, Vec<usize>)> {
    let dims = shape.and_then(|s| s.iter().map(Dim::known).collect::<Option<Vec<usize>>>());
    match (dtype, dims) {
        (Some(dtype), Some(dims)) => Ok((dtype, dims)),
        _ => Err(Fault::at(
            at,
            "what has elements needs an element type and fixed dimensions".to_owned(),
        )),
    }
}

/// One list from elements of one kind; integers among floats are floats.
fn gather(items: Vec<Tree>) -> Option<Tree> {
    use AttrValue as A;
    let mut graphs = Vec::new();
    let mut values = Vec::new();
    for item in items {
        match item {
            Tree::Graph(g) => graphs.push(*g),
            Tree::Value(v) => values.push(v),
            Tree::Graphs(_) => return None,
        }
    }
    if !graphs.is_empty() {
        return values.is_empty().then_some(Tree::Graphs(graphs));
    }
    macro_rules! all {
        ($from:ident, $to:ident, $v:ident => $e:expr) => {
            values
                .into_iter()
                .map(|v| match v {
                    A::$from($v) => Some($e),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(A::$to)
        };
    }
    let floats = values.iter().any(|v| matches!(v, A::Float(_)));
    let list = match values.first() {
        None => Some(A::Ints(Vec::new())),
        Some(A::Int(_) | A::Float(_)) if floats => values
            .into_iter()
            .map(|v| match v {
                A::Float(v) => Some(v),
                A::Int(v) => Some(v as f32),
                _ => None,
            })
            .collect::<Option<Vec<f32>>>()
            .map(A::Floats),
        Some(A::Int(_)) => all!(Int, Ints, v => v),
        Some(A::String(_)) => all!(String, Strings, v => v),
        Some(A::Tensor(_)) => all!(Tensor, Tensors, v => v),
        Some(A::SparseTensor(_)) => all!(SparseTensor, SparseTensors, v => *v),
        Some(A::Type(_)) => all!(Type, Types, v => *v),
        _ => None,
    };
    list.map(Tree::Value)
}

/// Checks a value against its declared kind. An empty list takes any list kind, and needs one.
fn convert(at: usize, tree: Tree, kind: Option<AttrKind>) -> Parsed<Tree> {
    let found = match &tree {
        Tree::Value(v) => v.kind(),
        Tree::Graph(_) => AttrKind::Graph,
        Tree::Graphs(_) => AttrKind::Graphs,
    };
    let empty = matches!(&tree, Tree::Value(AttrValue::Ints(v)) if v.is_empty());
    match (kind, empty) {
        (None, true) => Err(Fault::at(
            at,
            "an empty list needs its kind, such as `axes: ints = []`".to_owned(),
        )),
        (Some(kind), _) if kind == found => Ok(tree),
        (None, false) => Ok(tree),
        (Some(AttrKind::Floats), true) => Ok(Tree::Value(AttrValue::Floats(Vec::new()))),
        (Some(AttrKind::Strings), true) => Ok(Tree::Value(AttrValue::Strings(Vec::<Bytes>::new()))),
        (Some(AttrKind::Tensors), true) => Ok(Tree::Value(AttrValue::Tensors(Vec::new()))),
        (Some(AttrKind::SparseTensors), true) => {
            Ok(Tree::Value(AttrValue::SparseTensors(Vec::new())))
        }
        (Some(AttrKind::Types), true) => Ok(Tree::Value(AttrValue::Types(Vec::new()))),
        (Some(AttrKind::Graphs), true) => Ok(Tree::Graphs(Vec::new())),
        (Some(kind), _) => {
            let name = |kind| KINDS.iter().find(|k| k.1 == kind).map_or("?", |k| k.0);
            Err(Fault::at(
                at,
                format!(
                    "expected a value of kind {}, found {}",
                    name(kind),
                    name(found)
                ),
            ))
        }
    }
}

//! Graphs, values and tensors.

use std::path::{Component, Path};

use super::{Severity, Verifier};
use crate::escape;
use crate::graph::{Graph, GraphError, OpId, ValueId};
use crate::tensor::{DType, SparseTensor, Storage, Tensor, TensorData, element_count};
use crate::value::{Constant, Dim, Value, ValueType};

/// How deep graphs may nest in attributes, as the reader and the textual syntax have it too.
pub(super) const MAX_DEPTH: usize = 32;

impl<'m> Verifier<'m> {
    /// Checks a graph, and those inside it. `outer` are the graphs around it, outermost first.
    pub(super) fn graph(&mut self, graph: &'m Graph, outer: &mut Vec<&'m Graph>) {
        if outer.len() > MAX_DEPTH {
            let message = format!("graphs nest deeper than {MAX_DEPTH} levels");
            self.error("V21", "", message);
            return;
        }
        // The body of a function is named by the function.
        if graph.name().is_empty() && (self.function.is_none() || !outer.is_empty()) {
            let message = "expected a name of the graph, found none".to_owned();
            self.report_with_help("V10", Severity::Error, "", message, "give it any name");
        }
        self.border(graph, outer.is_empty());
        for v in graph.values() {
            self.value(graph, v, outer);
        }
        self.annotations(graph);
        let ops: Vec<OpId> = graph.ops().collect();
        for id in ops {
            self.op(graph, id, outer);
        }
        if let Err(GraphError::Cycle { through, .. }) = graph.topological_order() {
            let message = format!(
                "the operators form a cycle through \"{}\"",
                escape(&through)
            );
            self.error("V15", "", message);
        }
    }

    /// Inputs and outputs.
    fn border(&mut self, graph: &Graph, outermost: bool) {
        let inputs = graph.inputs().iter().map(|&v| ("input", v));
        let outputs = graph.outputs().iter().map(|&v| ("output", v));
        for (what, v) in inputs.chain(outputs) {
            let Some(value) = graph.get_value(v) else {
                continue;
            };
            let place = || format!("{what} \"{}\"", escape(value.name()));
            if what == "output" && !has_source(value) {
                self.error("V13", &place(), "nothing makes this output".to_owned());
            }
            // Inside, types may be left out: they follow from the operator around the graph.
            if !outermost || self.function.is_some() {
                continue;
            }
            // A file may leave out the type of an output that is an initializer.
            match value.declared_type() {
                None if value.as_constant().is_some() => {}
                None => self.error("V12", &place(), "expected a type, found none".to_owned()),
                Some(ty) => self.complete(ty, &place()),
            }
        }
    }

    /// A type that leaves nothing open that engines need.
    fn complete(&mut self, ty: &ValueType, place: &str) {
        match ty {
            ValueType::Tensor { dtype, shape } | ValueType::SparseTensor { dtype, shape } => {
                if dtype.is_none() {
                    let message = "expected an element type, found none".to_owned();
                    self.error("V12", place, message);
                } else if shape.is_none() {
                    let message = "expected a shape, found a tensor of unknown rank".to_owned();
                    self.report("V12", Severity::Warning, place, message);
                }
            }
            ValueType::Sequence(of) | ValueType::Optional(of) => match of {
                Some(of) => self.element(of, place),
                None => {
                    let message = "expected the type of the elements, found none".to_owned();
                    self.error("V12", place, message);
                }
            },
            ValueType::Map { key, value } => {
                if key.is_none() || value.is_none() {
                    let message = "expected the types of keys and values of the map".to_owned();
                    self.error("V12", place, message);
                }
                if let Some(value) = value {
                    self.element(value, place);
                }
            }
            ValueType::Opaque { .. } => {}
        }
    }

    /// The type of elements, whose shapes may be left open.
    fn element(&mut self, ty: &ValueType, place: &str) {
        match ty {
            ValueType::Tensor { dtype: Some(_), .. }
            | ValueType::SparseTensor { dtype: Some(_), .. } => {}
            ty => self.complete(ty, place),
        }
    }

    fn value(&mut self, graph: &Graph, v: ValueId, outer: &[&Graph]) {
        let Some(value) = graph.get_value(v) else {
            return;
        };
        if value.name().is_empty() {
            let message = "a value needs a name; an empty one means that it is absent".to_owned();
            self.error("V11", "value \"\"", message);
        }
        if let Some(ty) = value.declared_type()
            && let Some(size) = negative_size(ty)
        {
            let place = format!("value \"{}\"", escape(value.name()));
            let message = format!("expected a size of at least 0, found {size}");
            let help = "use a symbol for a size that is not fixed";
            self.report_with_help("V19", Severity::Error, &place, message, help);
        }
        if let Some(constant) = value.initializer() {
            self.initializer(value, constant);
        }
        if let Some(from) = value.captured_from() {
            self.captured(value, from, outer.last().copied());
        } else if has_source(value) {
            self.shadowing(value, outer);
        }
    }

    fn captured(&mut self, value: &Value, from: ValueId, around: Option<&Graph>) {
        let place = || format!("value \"{}\"", escape(value.name()));
        match around.and_then(|g| g.get_value(from)) {
            None => {
                let message = "it stands for a value outside that is not there".to_owned();
                self.error("V17", &place(), message);
            }
            Some(outside) if outside.name() != value.name() => {
                let message = format!(
                    "it stands for \"{}\" outside, but has another name",
                    escape(outside.name())
                );
                self.error("V17", &place(), message);
            }
            Some(_) => {}
        }
    }

    fn shadowing(&mut self, value: &Value, outer: &[&Graph]) {
        let shadowed = outer.iter().find(|g| {
            let outside = g.find_value(value.name()).and_then(|v| g.get_value(v));
            outside.is_some_and(|v| has_source(v) && v.captured_from().is_none())
        });
        if let Some(graph) = shadowed {
            let place = format!("value \"{}\"", escape(value.name()));
            let message = format!(
                "the graph \"{}\" around this one has another value of the name",
                escape(graph.name())
            );
            let help = "rename the inner one";
            self.report_with_help("V16", Severity::Warning, &place, message, help);
        }
    }

    fn annotations(&mut self, graph: &Graph) {
        for annotation in &graph.extra().quantization_annotations {
            let tensor = annotation.tensor.iter();
            for name in tensor.chain(annotation.parameters.iter().map(|(_, name)| name)) {
                if graph.find_value(name).is_none() {
                    let message = format!("no value is called \"{}\"", escape(name));
                    self.error("V20", "quantization annotation", message);
                }
            }
        }
    }

    // ---- tensors ----

    fn initializer(&mut self, value: &Value, constant: &Constant) {
        let place = || format!("initializer \"{}\"", escape(value.name()));
        if let Some(problem) = constant_problem(constant) {
            self.error(problem.0, &place(), problem.1);
        }
        if let Some(ty) = value.declared_type() {
            // The value of a sparse initializer is a dense tensor, though files declare both.
            let dense = match ty {
                ValueType::SparseTensor { dtype, shape } => ValueType::Tensor {
                    dtype: *dtype,
                    shape: shape.clone(),
                },
                ty => ty.clone(),
            };
            if !dense.compatible(&constant.value_type()) {
                let message = format!(
                    "declared as {ty}, but the elements are {}",
                    constant.value_type()
                );
                self.error("V18", &place(), message);
            }
        }
    }
}

/// Whether something gives the value.
pub(super) fn has_source(value: &Value) -> bool {
    value.producer().is_some()
        || value.is_input()
        || value.initializer().is_some()
        || value.captured_from().is_some()
}

fn negative_size(ty: &ValueType) -> Option<i64> {
    match ty {
        ValueType::Tensor { shape, .. } | ValueType::SparseTensor { shape, .. } => {
            shape.iter().flatten().find_map(|d| match d {
                Dim::Value(v) if *v < 0 => Some(*v),
                _ => None,
            })
        }
        ValueType::Sequence(of) | ValueType::Optional(of) => negative_size(of.as_deref()?),
        ValueType::Map { value, .. } => negative_size(value.as_deref()?),
        ValueType::Opaque { .. } => None,
    }
}

/// A code and a message.
pub(super) type Problem = (&'static str, String);

fn constant_problem(constant: &Constant) -> Option<Problem> {
    match constant {
        Constant::Dense(tensor) => tensor_problem(tensor),
        Constant::Sparse(sparse) => sparse_problem(sparse),
    }
}

/// What doesn't hold of a tensor.
pub(super) fn tensor_problem(tensor: &Tensor) -> Option<Problem> {
    let count = element_count(tensor.dims());
    let (needed, found) = match tensor.data() {
        TensorData::Strings(strings) => (count, strings.len()),
        TensorData::Bytes(bytes) => {
            let needed = count.and_then(|n| tensor.dtype().packed_len(n));
            (needed, bytes.len())
        }
    };
    if needed != Some(found) {
        let unit = match tensor.data() {
            TensorData::Strings(_) => "strings",
            TensorData::Bytes(_) => "bytes",
        };
        let needed = needed.map_or("more than memory holds".to_owned(), |n| n.to_string());
        return Some((
            "V22",
            format!(
                "{} of shape {:?} needs {needed} {unit}, found {found}",
                tensor.dtype(),
                tensor.dims()
            ),
        ));
    }
    let Storage::External { location, .. } = tensor.storage() else {
        return None;
    };
    // Files of both systems travel, so a backslash separates folders on every one.
    let path = location.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':');
    let inside = !drive
        && !path.is_empty()
        && Path::new(&path)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    (!inside).then(|| {
        let message = format!(
            "expected a side file inside the model's folder, found \"{}\"",
            escape(location)
        );
        ("V24", message)
    })
}

/// What doesn't hold of a sparse tensor.
pub(super) fn sparse_problem(sparse: &SparseTensor) -> Option<Problem> {
    let problem = tensor_problem(&sparse.values).or_else(|| tensor_problem(&sparse.indices));
    if problem.is_some() {
        return problem;
    }
    let wrong = |message: String| Some(("V23", message));
    let rank = sparse.dims.len();
    let size = element_count(&sparse.dims).and_then(|n| i64::try_from(n).ok());
    let Some(size) = size.filter(|_| rank > 0) else {
        return wrong(format!(
            "expected at least one dimension and a countable size, found {:?}",
            sparse.dims
        ));
    };
    let nnz = match sparse.values.dims() {
        [nnz] => *nnz,
        other => return wrong(format!("expected elements of shape [n], found {other:?}")),
    };
    if sparse.indices.dtype() != DType::I64 {
        return wrong(format!(
            "expected positions of type int64, found {}",
            sparse.indices.dtype()
        ));
    }
    let positions = sparse.indices.view::<i64>().ok()?;
    match sparse.indices.dims() {
        [n] if *n == nnz => not_ascending(positions.iter().map(|&p| (p, p)), size),
        [n, r] if *n == nnz && *r == rank => {
            let rows = positions.chunks_exact(rank).map(|row| {
                // A row out of bounds has no linear position: -1 says so.
                let mut linear = 0i64;
                for (&p, &d) in row.iter().zip(&sparse.dims) {
                    let d = i64::try_from(d).unwrap_or(i64::MAX);
                    if p < 0 || p >= d {
                        return (-1, p);
                    }
                    linear = linear.saturating_mul(d).saturating_add(p);
                }
                (linear, linear)
            });
            not_ascending(rows, size)
        }
        other => wrong(format!(
            "expected positions of shape [{nnz}] or [{nnz}, {rank}], found {other:?}"
        )),
    }
}

fn not_ascending(positions: impl Iterator<Item = (i64, i64)>, size: i64) -> Option<Problem> {
    let mut last = -1;
    for (i, (position, shown)) in positions.enumerate() {
        if position < 0 || position >= size {
            let message = format!("position {i} is {shown}, out of bounds");
            return Some(("V23", message));
        }
        if position <= last {
            let message = format!("position {i} does not come after the one before it");
            return Some(("V23", message));
        }
        last = position;
    }
    None
}

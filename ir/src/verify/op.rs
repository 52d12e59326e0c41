//! Operators.

use std::collections::BTreeSet;

use super::graph::{has_source, sparse_problem, tensor_problem};
use super::{Severity, Verifier};
use crate::attr::{AttrKind, AttrValue};
use crate::escape;
use crate::graph::{Graph, OpId, ValueId};
use crate::op::Op;
use crate::schema::{self, OpSchema, Param, Presence};
use crate::tensor::DType;
use crate::value::{Value, ValueType};

/// The attributes of Constant that hold its value.
const CONSTANT_VALUES: [&str; 8] = [
    "value",
    "sparse_value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
    "value_string",
    "value_strings",
];

/// `Conv "conv1"`: the operator in a place.
fn label(graph: &Graph, id: OpId, op: &Op) -> String {
    format!(
        "{} \"{}\"",
        escape(op.op_type()),
        escape(&graph.op_label(id))
    )
}

impl<'m> Verifier<'m> {
    pub(super) fn op(&mut self, graph: &'m Graph, id: OpId, outer: &mut Vec<&'m Graph>) {
        let Some(op) = graph.get_op(id) else { return };
        let at = |rest: &str| match rest.is_empty() {
            true => label(graph, id, op),
            false => format!("{} / {rest}", label(graph, id, op)),
        };
        if op.op_type().is_empty() {
            self.error(
                "V30",
                &at(""),
                "expected an operator type, found none".to_owned(),
            );
        }
        if op.input_count() == 0 && op.outputs().is_empty() {
            let message = "it has neither an input nor an output".to_owned();
            self.error("V44", &at(""), message);
        }
        for (i, v) in op.inputs().enumerate() {
            let value = v.and_then(|v| graph.get_value(v));
            if let Some(value) = value.filter(|v| !has_source(v)) {
                self.error(
                    "V14",
                    &at(&format!("input {i}")),
                    format!(
                        "nothing makes \"{}\": no operator, graph input or initializer, here \
                         or in a graph around this one",
                        escape(value.name())
                    ),
                );
            }
        }
        self.attributes(graph, id, op);
        match self.opsets.get(op.domain()).copied() {
            None => self.report_with_help(
                "V05",
                Severity::Error,
                &at(""),
                format!("the domain \"{}\" is not imported", escape(op.domain())),
                "add it to the opset imports",
            ),
            Some(version) if op.domain().is_empty() => self.standard(graph, id, op, version),
            Some(_) => {}
        }
        if op.has_subgraphs() {
            self.subgraphs(graph, id, op, outer);
        }
    }

    fn subgraphs(&mut self, graph: &'m Graph, id: OpId, op: &'m Op, outer: &mut Vec<&'m Graph>) {
        let depth = self.path.len();
        outer.push(graph);
        for attr in op.attrs() {
            for sub in attr.value.graphs() {
                self.path.push(label(graph, id, op));
                self.path.push(escape(&attr.name));
                self.graph(sub, outer);
                self.path.truncate(depth);
            }
        }
        outer.pop();
    }

    /// What holds of the attributes of any operator.
    fn attributes(&mut self, graph: &Graph, id: OpId, op: &Op) {
        let mut seen = BTreeSet::new();
        for attr in op.attrs() {
            let place = || format!("{} / {}", label(graph, id, op), escape(&attr.name));
            if op.attrs().len() > 1 && !seen.insert(&*attr.name) {
                self.error("V38", &place(), "the attribute stands twice".to_owned());
            }
            if attr.untyped && self.ir_version >= 2 {
                let message = "expected the kind of the attribute, found none".to_owned();
                self.error("V40", &place(), message);
            }
            let problem = match &attr.value {
                AttrValue::Tensor(t) => tensor_problem(t),
                AttrValue::Tensors(list) => list.iter().find_map(tensor_problem),
                AttrValue::SparseTensor(t) => sparse_problem(t),
                AttrValue::SparseTensors(list) => list.iter().find_map(sparse_problem),
                AttrValue::Ref { name, .. } => self.reference_problem(name),
                _ => None,
            };
            if let Some((code, message)) = problem {
                self.error(code, &place(), message);
            }
        }
    }

    fn reference_problem(&self, name: &str) -> Option<super::graph::Problem> {
        let Some(f) = self.function else {
            let message = format!(
                "a reference, here to \"{}\", can only stand in a function",
                escape(name)
            );
            return Some(("V39", message));
        };
        let known = f.attributes.iter().any(|a| &**a == name)
            || f.attribute_defaults.iter().any(|a| &*a.name == name);
        (!known).then(|| {
            let message = format!("the function has no attribute \"{}\"", escape(name));
            ("V39", message)
        })
    }

    // ---- standard operators ----

    fn standard(&mut self, graph: &'m Graph, id: OpId, op: &'m Op, version: i64) {
        let Some(schema) = schema::lookup("", op.op_type(), version) else {
            self.unknown(graph, id, op, version);
            return;
        };
        let place = || label(graph, id, op);
        if schema.deprecated {
            self.error(
                "V32",
                &place(),
                format!(
                    "{} is deprecated since opset {}, and the model speaks opset {version}",
                    schema.name, schema.since
                ),
            );
            return;
        }
        self.arity(graph, id, op, schema);
        self.standard_attributes(graph, id, op, schema);
        self.element_types(graph, id, op, schema);
        if op.is("Constant") {
            self.constant(graph, id, op);
        }
        if op.has_subgraphs() {
            self.signatures(graph, id, op, schema);
        }
        if self.function.is_some() && version != self.model_opset && self.opsets_differ(op, schema)
        {
            self.error(
                "V52",
                &place(),
                format!(
                    "{} differs between the function's opset {version} and the model's opset {}",
                    schema.name, self.model_opset
                ),
            );
        }
    }

    fn opsets_differ(&self, op: &Op, schema: &OpSchema) -> bool {
        let model = schema::lookup("", op.op_type(), self.model_opset);
        model.is_none_or(|m| m.since != schema.since)
    }

    fn unknown(&mut self, graph: &Graph, id: OpId, op: &Op, version: i64) {
        let key = (
            op.domain().clone(),
            op.op_type().clone(),
            op.overload().into(),
        );
        if op.op_type().is_empty() || self.functions.contains(&key) {
            return;
        }
        // Later opsets may well have operators that the table lacks.
        let severity = match version > schema::NEWEST_OPSET {
            true => Severity::Warning,
            false => Severity::Error,
        };
        let (message, help) = match schema::versions(op.op_type()).first() {
            Some(first) => (
                format!(
                    "{} came with opset {}, and the model speaks opset {version}",
                    first.name, first.since
                ),
                "raise the model's opset".to_owned(),
            ),
            None => (
                format!(
                    "opset {version} has no operator of the type \"{}\"",
                    escape(op.op_type())
                ),
                nearest(op.op_type()).map_or_else(
                    || "an operator of another domain needs that domain".to_owned(),
                    |name| format!("did you mean {name}?"),
                ),
            ),
        };
        self.report_with_help("V31", severity, &label(graph, id, op), message, &help);
    }

    fn arity(&mut self, graph: &Graph, id: OpId, op: &Op, schema: &OpSchema) {
        let inputs = (schema.min_inputs(), schema.max_inputs(), op.input_count());
        let outputs = (
            schema.min_outputs(),
            schema.max_outputs(),
            op.outputs().len(),
        );
        for (code, what, (min, max, count)) in
            [("V33", "input", inputs), ("V34", "output", outputs)]
        {
            if min <= count && count <= max {
                continue;
            }
            let bounds = match max {
                usize::MAX => format!("at least {min}"),
                max if max == min => format!("{min}"),
                max => format!("{min} to {max}"),
            };
            self.error(
                code,
                &label(graph, id, op),
                format!(
                    "expected {bounds} {what}s of {} (opset {} on), found {count}",
                    schema.name, schema.since
                ),
            );
        }
        let inputs = op.inputs().enumerate();
        let inputs = inputs.map(|(i, v)| ("V33", "input", i, v, schema.input(i)));
        let outputs = op.outputs().iter().enumerate();
        let outputs = outputs.map(|(i, v)| ("V34", "output", i, *v, schema.output(i)));
        for (code, what, slot, v, param) in inputs.chain(outputs) {
            let required = param.filter(|p| p.presence == Presence::Required);
            if let (None, Some(param)) = (v, required) {
                let place = format!("{} / {what} {slot}", label(graph, id, op));
                let message = format!("\"{}\" is required, and absent", param.name);
                self.error(code, &place, message);
            }
        }
    }

    fn standard_attributes(&mut self, graph: &Graph, id: OpId, op: &Op, schema: &OpSchema) {
        for attr in op.attrs() {
            let place = || format!("{} / {}", label(graph, id, op), escape(&attr.name));
            let Some(known) = schema.attr(&attr.name) else {
                // Names with this prefix are for the private use of tools.
                if !attr.name.starts_with("__") {
                    let names: Vec<&str> = schema.attrs.iter().map(|a| a.name).collect();
                    let message = format!(
                        "{} (opset {} on) has no such attribute",
                        schema.name, schema.since
                    );
                    let help = match names.is_empty() {
                        true => "it has none at all".to_owned(),
                        false => format!("it has {}", names.join(", ")),
                    };
                    self.report_with_help("V35", Severity::Error, &place(), message, &help);
                }
                continue;
            };
            let kind = attr.value.kind();
            if kind != known.kind {
                let message = format!(
                    "expected {}, found {}",
                    kind_name(known.kind),
                    kind_name(kind)
                );
                self.error("V37", &place(), message);
            }
        }
        for required in schema.attrs.iter().filter(|a| a.required) {
            if op.attr(required.name).is_none() {
                let message = format!(
                    "the attribute \"{}\" is required, and absent",
                    required.name
                );
                self.error("V36", &label(graph, id, op), message);
            }
        }
    }

    fn constant(&mut self, graph: &Graph, id: OpId, op: &Op) {
        let values = op
            .attrs()
            .iter()
            .filter(|a| CONSTANT_VALUES.contains(&&*a.name));
        let count = values.count();
        if count != 1 {
            let message =
                format!("expected exactly one attribute that holds the value, found {count}");
            self.error("V41", &label(graph, id, op), message);
        }
    }

    // ---- graphs in attributes ----

    /// How many inputs and outputs the graphs of a control flow operator have.
    fn signatures(&mut self, graph: &Graph, id: OpId, op: &Op, schema: &OpSchema) {
        let (inputs, outputs) = (op.input_count(), op.outputs().len());
        // What the graph takes, what it gives at the least, and what it gives exactly.
        let (takes, least, exactly) = match schema.name {
            "If" => (Some(0), 0, Some(outputs)),
            // In: the trip count and the condition; out: the condition.
            "Loop" => (
                Some(inputs.max(2)),
                (inputs + 1).saturating_sub(2),
                Some(outputs + 1),
            ),
            "Scan" => {
                // Opset 8 has the lengths of the sequences as an input of its own.
                let inputs = if schema.since < 9 {
                    inputs.saturating_sub(1)
                } else {
                    inputs
                };
                let scanned = op.int_or("num_scan_inputs", 0);
                let scanned = usize::try_from(scanned).unwrap_or(0).min(inputs);
                (Some(inputs), inputs - scanned, Some(outputs))
            }
            "SequenceMap" => (Some(inputs), 0, Some(outputs)),
            _ => return,
        };
        for attr in op.attrs() {
            for sub in attr.value.graphs() {
                let found = (sub.inputs().len(), sub.outputs().len());
                let place = || format!("{} / {}", label(graph, id, op), escape(&attr.name));
                if takes.is_some_and(|n| n != found.0) {
                    let message = format!(
                        "expected a graph of {} inputs for {} with {inputs}, found one of {}",
                        takes.unwrap_or(0),
                        schema.name,
                        found.0
                    );
                    self.error("V42", &place(), message);
                }
                if exactly.is_some_and(|n| n != found.1) {
                    let message = format!(
                        "expected a graph of {} outputs for {} with {outputs}, found one of {}",
                        exactly.unwrap_or(0),
                        schema.name,
                        found.1
                    );
                    self.error("V42", &place(), message);
                } else if found.1 < least {
                    let message = format!(
                        "expected a graph of at least {least} outputs, one for each carried value, found one of {}",
                        found.1
                    );
                    self.error("V42", &place(), message);
                }
            }
        }
    }

    // ---- types ----

    fn element_types(&mut self, graph: &Graph, id: OpId, op: &Op, schema: &OpSchema) {
        let inputs = op.inputs().enumerate();
        let inputs = inputs.map(|(i, v)| ("input", i, v, schema.input(i)));
        let outputs = op.outputs().iter().enumerate();
        let outputs = outputs.map(|(i, v)| ("output", i, *v, schema.output(i)));
        // The first slot of each type parameter, with its element type.
        let mut bound: Vec<(&str, &str, usize, DType)> = Vec::new();
        for (what, slot, v, param) in inputs.chain(outputs) {
            let (Some(value), Some(param)) = (v.and_then(|v: ValueId| graph.get_value(v)), param)
            else {
                continue;
            };
            let place = || format!("{} / {what} {slot}", label(graph, id, op));
            if let Some(found) = refused_type(value, param) {
                let allowed: Vec<&str> = param.types.dtypes().map(DType::name).collect();
                let message = format!(
                    "\"{}\" is {found}, but {} (opset {} on) takes as \"{}\" {}",
                    escape(value.name()),
                    schema.name,
                    schema.since,
                    param.name,
                    allowed.join(", ")
                );
                self.error("V43", &place(), message);
                continue;
            }
            let uniform = !matches!(
                param.presence,
                Presence::Variadic {
                    homogeneous: false,
                    ..
                }
            );
            let Some(dtype) = dense_dtype(value).filter(|_| uniform && param.is_generic()) else {
                continue;
            };
            match bound.iter().find(|b| b.0 == param.type_name) {
                None => bound.push((param.type_name, what, slot, dtype)),
                Some(&(_, other, at, first)) if first != dtype => {
                    let message = format!(
                        "\"{}\" is of type {dtype}, but must have the type of {other} {at}, which is {first}",
                        escape(value.name())
                    );
                    self.error("V43", &place(), message);
                }
                Some(_) => {}
            }
        }
    }
}

/// The element type of a dense tensor, from the elements where there are any.
fn dense_dtype(value: &Value) -> Option<DType> {
    match value.initializer() {
        Some(constant) => Some(constant.dtype()),
        None => value.declared_type()?.dtype(),
    }
}

/// The type of a value, when it is known not to be allowed.
fn refused_type(value: &Value, param: &Param) -> Option<String> {
    if let Some(constant) = value.initializer() {
        let dtype = constant.dtype();
        return (!param.types.allows(dtype)).then(|| dtype.to_string());
    }
    match value.declared_type()? {
        ValueType::Tensor { dtype: Some(d), .. } if param.types.allows(*d) => None,
        ty if param.types.accepts(ty) => None,
        ty => Some(ty.to_string()),
    }
}

fn kind_name(kind: AttrKind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// The standard operator with the most similar name, if one is close.
fn nearest(op_type: &str) -> Option<&'static str> {
    // Names from a file may be long, and distances cost the product of the lengths.
    if op_type.len() > 64 {
        return None;
    }
    let lower = op_type.to_lowercase();
    let scored = schema::operator_names().into_iter().map(|name| {
        let distance = strsim::damerau_levenshtein(&lower, &name.to_lowercase());
        (distance, name)
    });
    let (distance, name) = scored.min()?;
    (distance <= 1 + name.len() / 4).then_some(name)
}

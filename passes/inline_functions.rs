//! `inline-functions`: calls of functions that the model brings along are replaced by what the
//! functions do.
//!
//! ```text
//! before   y = my.Scale <by = 3.0> (x)                     after   w = Constant <value_float = 3.0> ()
//!          Scale <by> (a) => (b) {                                 y = Mul (x, w)
//!            w = Constant <value_float: float = @by> ()
//!            b = Mul (a, w)
//!          }
//! ```
//!
//! Engines refuse local functions, and passes see through nothing that hides behind one. Calls in
//! graphs inside attributes and calls that functions make are inlined too; attributes of the
//! function are filled in from the call or from their defaults, and an attribute that neither
//! gives is left out, as the specification says. Results keep their names; values inside get
//! names that start with that of the call. Functions that nothing calls afterwards are removed.
//!
//! Left alone, with a remark:
//! - `recursive`: the function calls itself, directly or through others;
//! - `opset-conflict`: the function speaks another version of a domain than the model, and an
//!   operator in it differs between the two;
//! - `too-large`: all calls together would make more than `max-operators` operators;
//! - `odd-call`: the call gives more operands or asks for more results than the function has, or
//!   for a result that an absent operand would be, or gives a graph as an attribute.
//!
//! From the ONNX specification of FunctionProto.

use std::collections::{BTreeMap, HashMap};

use paring_ir::{
    AttrValue, Attribute, Changed, Effect, Function, Graph, GraphError, Model, Name, Op, OpId,
    OptionError, OptionSet, Pass, PassContext, PassError, PassInfo, ValueId, schema,
};

use crate::edits::inline_at;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct InlineFunctions {
    options: OptionSet<Options>,
}

/// How much may be inlined.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Functions that would make more operators than this, all calls together, are left: a few
    /// functions that call each other twice can describe more operators than fit in memory.
    #[schemars(extend("x-scope" = "pass"))]
    pub max_operators: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_operators: 1_000_000,
        }
    }
}

impl Pass for InlineFunctions {
    const INFO: PassInfo = PassInfo::new(
        "inline-functions",
        "Replace calls of the model's own functions by what they do",
        Effect::Exact,
    );
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(InlineFunctions { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        if model.functions.is_empty() {
            return Ok(Changed::No);
        }
        let start = model.revision();
        let mut library = Library::new(model, self.options.whole().max_operators);
        let mut inlined = false;
        model.edit_graphs(&mut |graph| {
            inlined |= self.inline_graph(graph, &mut library, cx)?;
            Ok::<(), PassError>(())
        })?;
        if inlined {
            for (domain, version) in std::mem::take(&mut library.imports) {
                model.set_opset(&domain, version);
            }
            let called = library.called(model);
            model.retain_functions(|f| called.contains_key(&key(f)));
        }
        Ok(Changed::when(model.revision() != start))
    }
}

impl InlineFunctions {
    fn inline_graph(
        &self,
        graph: &mut Graph,
        library: &mut Library,
        cx: &mut PassContext<'_>,
    ) -> Result<bool, PassError> {
        let mut changed = false;
        let mut waiting = graph.topological_order()?;
        waiting.reverse();
        while let Some(op) = waiting.pop() {
            cx.check_cancelled()?;
            let Some(callee) = library.index.get(&called_by(graph.op(op))).copied() else {
                continue;
            };
            if self.options.for_op(graph, op).is_skip() {
                continue;
            }
            if let Err((code, why)) = library.admit(callee, graph.op(op)) {
                cx.missed(graph, op, code, why);
                continue;
            }
            cx.applied(graph, op, "inlined", "replaced by the body of the function");
            waiting.extend(self.inline_call(graph, op, callee, library)?);
            changed = true;
        }
        Ok(changed)
    }

    /// Inlines one call and returns the calls that it brought, the last one first.
    fn inline_call(
        &self,
        graph: &mut Graph,
        op: OpId,
        callee: usize,
        library: &mut Library,
    ) -> Result<Vec<OpId>, PassError> {
        let function = &library.functions[callee];
        let call = graph.op(op);
        let given = attributes(function, call);
        let mut body = function.body.duplicate();
        fill_in(&mut body, &given)?;
        // Types in a function's body are not those of this call.
        let values: Vec<ValueId> = body.values().collect();
        for v in values {
            body.set_type(v, None)?;
        }
        body.retain_declared(|_, _| false);
        let bound: Vec<(ValueId, Option<ValueId>)> = body
            .inputs()
            .iter()
            .enumerate()
            .map(|(slot, &v)| (v, call.input(slot)))
            .collect();
        let prefix = format!("{}/", graph.op_label(op));
        for import in &function.opsets {
            library
                .imports
                .insert(import.domain.clone(), import.version);
        }
        library
            .imports
            .retain(|domain, _| !library.spoken.contains_key(domain));
        let added = inline_at(graph, op, &body, &bound, &prefix)?;
        let calls = added
            .iter()
            .rev()
            .copied()
            .filter(|&op| library.index.contains_key(&called_by(graph.op(op))))
            .collect();
        // Graphs that came along in attributes may hold calls as well.
        let owners = added.into_iter().filter(|&op| graph.op(op).has_subgraphs());
        let owners: Vec<OpId> = owners.collect();
        for op in owners {
            graph.edit_subgraphs(op, |_, inner| self.inline_nested(inner, library))?;
        }
        Ok(calls)
    }

    /// As [`InlineFunctions::inline_graph`] for a graph that a function brought, and those
    /// inside it.
    fn inline_nested(&self, graph: &mut Graph, library: &mut Library) -> Result<(), PassError> {
        let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
        for op in owners {
            graph.edit_subgraphs(op, |_, inner| self.inline_nested(inner, library))?;
        }
        let mut waiting = graph.topological_order()?;
        while let Some(op) = waiting.pop() {
            let callee = library.index.get(&called_by(graph.op(op))).copied();
            let Some(callee) = callee else { continue };
            if library.admit(callee, graph.op(op)).is_ok() {
                waiting.extend(self.inline_call(graph, op, callee, library)?);
            }
        }
        Ok(())
    }
}

/// Domain, operator type and overload.
type Key = (Name, Name, String);

fn key(f: &Function) -> Key {
    (f.domain.clone(), f.name.clone(), f.overload.to_string())
}

fn called_by(op: &Op) -> Key {
    (
        op.domain().clone(),
        op.op_type().clone(),
        op.overload().to_owned(),
    )
}

/// The functions of a model, and which of them can be inlined.
struct Library {
    functions: Vec<Function>,
    index: HashMap<Key, usize>,
    /// Why a function can't be inlined wherever it is called.
    refused: Vec<Option<(&'static str, String)>>,
    /// The opsets of the model.
    spoken: HashMap<Name, i64>,
    /// Opsets that the model needs in addition.
    imports: BTreeMap<Name, i64>,
}

impl Library {
    fn new(model: &Model, max_operators: u64) -> Library {
        let functions = model.functions.clone();
        let mut index = HashMap::new();
        for (i, f) in functions.iter().enumerate() {
            index.entry(key(f)).or_insert(i);
        }
        let spoken: HashMap<Name, i64> = model
            .opsets
            .iter()
            .map(|o| (o.domain.clone(), o.version))
            .collect();
        let mut library = Library {
            refused: vec![None; functions.len()],
            functions,
            index,
            spoken,
            imports: BTreeMap::new(),
        };
        library.refuse_conflicts();
        library.refuse_sizes(model, max_operators);
        library
    }

    /// Refuses functions that speak another version than the model, where that makes a difference.
    fn refuse_conflicts(&mut self) {
        // Domains that only functions speak: the first function in the file says how.
        let mut chosen = self.spoken.clone();
        for (i, f) in self.functions.iter().enumerate() {
            for import in &f.opsets {
                let version = *chosen
                    .entry(import.domain.clone())
                    .or_insert(import.version);
                let differs = |op: &Op| {
                    *op.domain() == import.domain
                        && !self.index.contains_key(&called_by(op))
                        && !same_version(op, version, import.version)
                };
                let mut culprit = None;
                if version != import.version {
                    nested(&f.body, &mut |graph| {
                        let found = graph.ops().map(|op| graph.op(op)).find(|op| differs(op));
                        if let (None, Some(op)) = (&culprit, found) {
                            culprit = Some(op.op_type().clone());
                        }
                    });
                }
                if let Some(op_type) = culprit {
                    let domain = if import.domain.is_empty() {
                        "ai.onnx"
                    } else {
                        &import.domain
                    };
                    let why = format!(
                        "the function speaks {domain} {} and the model {version}, and {op_type} differs; upgrade-opset brings the model to another version",
                        import.version
                    );
                    self.refused[i] = Some(("opset-conflict", why));
                }
            }
        }
    }

    /// Counts the operators that each function comes to, and refuses recursion and excess.
    fn refuse_sizes(&mut self, model: &Model, max_operators: u64) {
        let calls: Vec<(u64, Vec<usize>)> = self
            .functions
            .iter()
            .map(|f| self.calls_of(&f.body))
            .collect();
        let mut sizes: Vec<Option<u64>> = vec![None; calls.len()];
        let mut state = vec![Visit::New; calls.len()];
        for start in 0..calls.len() {
            self.count(start, &calls, &mut sizes, &mut state);
        }
        let (_, called) = self.calls_of(&model.graph);
        let total = called
            .iter()
            .filter_map(|&f| sizes[f])
            .fold(0u64, u64::saturating_add);
        if total > max_operators {
            let why = format!(
                "all calls together come to {total} operators, more than max-operators ({max_operators})"
            );
            for refused in &mut self.refused {
                refused.get_or_insert(("too-large", why.clone()));
            }
        }
    }

    /// The number of operators of a graph and those inside it, and the functions that they
    /// call, each as often as it is called.
    fn calls_of(&self, graph: &Graph) -> (u64, Vec<usize>) {
        let (mut count, mut called) = (0u64, Vec::new());
        nested(graph, &mut |graph| {
            count += graph.op_count() as u64;
            let ops = graph.ops().map(|op| called_by(graph.op(op)));
            called.extend(ops.filter_map(|k| self.index.get(&k).copied()));
        });
        (count, called)
    }

    /// Depth first, without recursion of our own: functions may call each other in long chains.
    fn count(
        &mut self,
        start: usize,
        calls: &[(u64, Vec<usize>)],
        sizes: &mut [Option<u64>],
        state: &mut [Visit],
    ) {
        let mut stack = vec![(start, 0usize)];
        while let Some((f, next)) = stack.pop() {
            if next == 0 && state[f] != Visit::New {
                continue;
            }
            state[f] = Visit::Open;
            if let Some(&callee) = calls[f].1.get(next) {
                stack.push((f, next + 1));
                match state[callee] {
                    Visit::New => stack.push((callee, 0)),
                    Visit::Open => {
                        let why = "the function calls itself, directly or through others";
                        self.refused[callee] = Some(("recursive", why.to_owned()));
                    }
                    Visit::Done => {}
                }
                continue;
            }
            state[f] = Visit::Done;
            let inner = calls[f].1.iter().filter_map(|&c| sizes[c]);
            sizes[f] = Some(inner.fold(calls[f].0, u64::saturating_add));
        }
    }

    /// Whether a call can be inlined.
    fn admit(&self, callee: usize, call: &Op) -> Result<(), (&'static str, String)> {
        if let Some((code, why)) = &self.refused[callee] {
            return Err((code, why.clone()));
        }
        let body = &self.functions[callee].body;
        let odd = |why: &str| Err(("odd-call", why.to_owned()));
        if call.input_count() > body.inputs().len() {
            return odd("the call gives more operands than the function takes");
        }
        if call.outputs().len() > body.outputs().len() {
            return odd("the call asks for more results than the function gives");
        }
        if call.has_subgraphs() {
            return odd("the call gives a graph, whose captured values would have to follow");
        }
        let absent = |v: ValueId| {
            let slot = body.inputs().iter().position(|&i| i == v);
            match slot {
                Some(slot) => call.input(slot).is_none(),
                None => body.producer(v).is_none(),
            }
        };
        let wanted = call.outputs().iter().zip(body.outputs());
        if wanted.filter(|(o, _)| o.is_some()).any(|(_, &v)| absent(v)) {
            return odd("a result that the call asks for is an operand that it leaves out");
        }
        let mut owners = body.ops_with_subgraphs();
        if owners.any(|op| body.op(op).captures().any(absent)) {
            return odd("a graph in the function takes an operand that the call leaves out");
        }
        Ok(())
    }

    /// The functions that the model calls, directly or through others.
    fn called(&self, model: &Model) -> HashMap<Key, ()> {
        let mut found = HashMap::new();
        let (_, mut waiting) = self.calls_of(&model.graph);
        while let Some(f) = waiting.pop() {
            if found.insert(key(&self.functions[f]), ()).is_none() {
                waiting.extend(self.calls_of(&self.functions[f].body).1);
            }
        }
        found
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Visit {
    New,
    Open,
    Done,
}

fn nested<'a>(graph: &'a Graph, f: &mut dyn FnMut(&'a Graph)) {
    f(graph);
    for op in graph.ops_with_subgraphs() {
        graph.op(op).subgraphs().for_each(|inner| nested(inner, f));
    }
}

/// Whether an operator is the same in both versions of its domain.
fn same_version(op: &Op, a: i64, b: i64) -> bool {
    let since = |version| schema::lookup(op.domain(), op.op_type(), version).map(|s| s.since);
    since(a).is_some() && since(a) == since(b)
}

/// The attributes of the function as this call gives them.
fn attributes(function: &Function, call: &Op) -> HashMap<Name, Attribute> {
    let defaults = function.attribute_defaults.iter();
    defaults
        .chain(call.attrs())
        .map(|a| (a.name.clone(), a.clone()))
        .collect()
}

/// Puts the attributes of a call in the places that refer to them, in inner graphs too.
fn fill_in(body: &mut Graph, given: &HashMap<Name, Attribute>) -> Result<(), GraphError> {
    let ops: Vec<OpId> = body.ops().collect();
    for op in ops {
        let references: Vec<(Name, Name)> = body
            .op(op)
            .attrs()
            .iter()
            .filter_map(|a| match &a.value {
                AttrValue::Ref { name, .. } => Some((a.name.clone(), name.clone())),
                _ => None,
            })
            .collect();
        for (attr, reference) in references {
            match given.get(&reference) {
                Some(value) => body.set_attr(op, &attr, renumbered(&value.value))?,
                None => body.remove_attr(op, &attr)?,
            }
        }
        if body.op(op).has_subgraphs() {
            body.edit_subgraphs(op, |_, inner| fill_in(inner, given))?;
        }
    }
    Ok(())
}

/// A copy of an attribute's value; graphs in it get ids of their own.
fn renumbered(value: &AttrValue) -> AttrValue {
    match value {
        AttrValue::Graph(g) => AttrValue::Graph(Box::new(g.duplicate())),
        AttrValue::Graphs(gs) => AttrValue::Graphs(gs.iter().map(Graph::duplicate).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::InlineFunctions;
    use crate::testing::{check, refused, unchanged};

    #[test]
    fn attributes_come_from_the_call_or_the_default_or_are_left_out() {
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) {
                a = my.Act <slope: float = 0.5> (x)
                b = my.Act (a)
                y = my.Plain (b)
            }
            <domain: "my", opset_import: ["": 18]> Act <slope: float = 0.25> (p) => (q) { h = LeakyRelu <alpha: float = @slope> (p) q = Neg (h) }
            <domain: "my", opset_import: ["": 18]> Plain <slope> (p) => (q) { q = LeakyRelu <alpha: float = @slope> (p) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) {
                "a/h" = LeakyRelu <alpha: float = 0.5> (x)
                a = Neg ("a/h")
                "b/h" = LeakyRelu <alpha: float = 0.25> (a)
                b = Neg ("b/h")
                y = LeakyRelu (b)
            }"#,
        );
    }

    #[test]
    fn an_attribute_left_out_by_the_outer_call_takes_the_inner_default() {
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.Outer (x) }
            <domain: "my", opset_import: ["": 18, "my": 1]> Outer <slope> (p) => (q) { q = my.Inner <by: float = @slope> (p) }
            <domain: "my", opset_import: ["": 18]> Inner <by: float = 0.125> (p) => (q) { q = LeakyRelu <alpha: float = @by> (p) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha: float = 0.125> (x) }"#,
        );
    }

    #[test]
    fn optional_operands_and_results_may_be_absent() {
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y, float[2] z) { y = my.Two (x) "", z = my.Two (x, x) }
            <domain: "my", opset_import: ["": 18]> Two (p, q) => (r, s) { r = Clip (p, q) s = Neg (p) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y, float[2] z) { y = Clip (x) "y/s" = Neg (x) "z/r" = Clip (x, x) z = Neg (x) }"#,
        );
    }

    #[test]
    fn operands_that_pass_through_get_an_identity_where_they_must() {
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y, float[2] z) { y, z = my.Pass (x) }
            <domain: "my", opset_import: ["": 18]> Pass (p) => (p, q) { q = Neg (p) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y, float[2] z) { z = Neg (x) y = Identity (x) }"#,
        );
    }

    #[test]
    fn graphs_in_functions_capture_what_the_call_gives() {
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (bool c, float[2] x) => (float[2] y) { y = my.Pick (c, x) }
            <domain: "my", opset_import: ["": 18]> Pick (k, p) => (q) {
                q = If (k) <
                    then_branch = t () => (a) { a = Neg (p) },
                    else_branch = e () => (b) { b = Abs (p) }
                >
            }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (bool c, float[2] x) => (float[2] y) {
                y = If (c) <
                    then_branch = t () => (a) { a = Neg (x) },
                    else_branch = e () => (b) { b = Abs (x) }
                >
            }"#,
        );
    }

    #[test]
    fn recursion_is_refused() {
        refused::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.F (x) }
            <domain: "my", opset_import: ["": 18, "my": 1]> F (p) => (q) { q = my.F (p) }"#,
            "recursive",
        );
    }

    #[test]
    fn versions_that_differ_are_refused_and_others_not() {
        refused::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.F (x) }
            <domain: "my", opset_import: ["": 12]> F (p) => (q) { q = Softmax (p) }"#,
            "opset-conflict",
        );
        check::<InlineFunctions>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.F (x) }
            <domain: "my", opset_import: ["": 17]> F (p) => (q) { q = Neg (p) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = Neg (x) }"#,
        );
    }

    #[test]
    fn functions_that_grow_without_measure_are_refused() {
        refused::<InlineFunctions>(
            r#"{"max-operators": 5}"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.A (x) }
            <domain: "my", opset_import: ["": 18, "my": 1]> A (p) => (q) { r = my.B (p) q = my.B (r) }
            <domain: "my", opset_import: ["": 18]> B (p) => (q) { r = Neg (p) q = Abs (r) }"#,
            "too-large",
        );
    }

    #[test]
    fn skipped_calls_keep_their_function() {
        unchanged::<InlineFunctions>(
            r#"{"by-type": {"my::F": "skip"}}"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { y = my.F (x) }
            <domain: "my", opset_import: ["": 18]> F (p) => (q) { q = Neg (p) }"#,
        );
    }
}

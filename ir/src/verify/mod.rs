//! What must hold of a valid model. The verifier runs on what was read, after each pass that
//! changed something, and before anything is written.
//!
//! Everything that `onnx.checker` checks is here, and what engines rely on besides. *W* marks
//! a warning: engines run such a model, but it can surprise.
//!
//! | code | what must hold |
//! |---|---|
//! | **V01** | the model has an IR version, at least 1, and a graph |
//! | **V02** *W* | the IR version allows the standard opset |
//! | **V03** | opset imports: at least one, versions of at least 1, no domain twice; *W* an opset newer than the operator table |
//! | **V04** | no key of the model's metadata stands twice |
//! | **V05** | every used domain is imported |
//! | **V10** | graphs have names |
//! | **V11** | values have names |
//! | **V12** | inputs and outputs of the main graph have complete types; *W* of known rank |
//! | **V13** | graph outputs have a source: an operator, an input, a constant, a captured value |
//! | **V14** | what operators take has a source |
//! | **V15** | operators form no cycle |
//! | **V16** *W* | no name means one thing inside and another outside |
//! | **V17** | captured values exist outside, under the same name |
//! | **V18** | initializers and declared types agree |
//! | **V19** | declared sizes are not negative; *W* -1, by which some exporters mean any size |
//! | **V20** | quantization annotations name values of the graph |
//! | **V21** | graphs nest at most 32 deep |
//! | **V22** | a tensor has exactly the bytes that its shape needs |
//! | **V23** | sparse tensors: positions ascend, are in bounds, as many as elements |
//! | **V24** | side files have relative locations inside the model's folder |
//! | **V30** | operators have a type |
//! | **V31** | standard operators exist in the opset |
//! | **V32** | they are not deprecated there |
//! | **V33** | inputs: not fewer and not more than there are slots, required ones present |
//! | **V34** | outputs: likewise |
//! | **V35** | attributes of standard operators are known (names with `__` in front are free) |
//! | **V36** | required attributes are there |
//! | **V37** | attributes have the kind that the operator asks for |
//! | **V38** | no attribute stands twice |
//! | **V39** | a reference to an attribute of the function stands in a function that has it |
//! | **V40** | the kinds of attributes are written out from IR version 2 on |
//! | **V41** | Constant has exactly one value |
//! | **V42** | the graphs of If, Loop, Scan and SequenceMap fit the operator's inputs and outputs |
//! | **V43** | element types are such as the operator takes and makes, where they are known |
//! | **V44** | an operator has an input or an output |
//! | **V50** | a function's name is not empty, and no other function has its domain, name and overload |
//! | **V51** | functions don't call themselves, not by way of others either |
//! | **V52** | operators mean the same in a function's opset and in the model's |
//! | **V53** | a function has no initializers, and no attribute or output twice |
//! | **V54** *W* | the IR version allows functions and overloads |
//! | **V60** | values have the types that are declared for them |
//! | **V61** | the inputs and attributes of an operator fit together |
//!
//! The last two are told by shape inference, and by [`check_with`] alone: engines run many a model
//! that says the wrong shape of a value, and passes bring such declarations up to date.
//! `onnx.checker` knows both as its full check.
//!
//! That a name has one source, and that operators stand in an order that can be run, holds of
//! every [`Graph`] by construction: see there.

mod graph;
mod op;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::analysis::shapes::{Conflict, ConflictKind, Shapes};
use crate::escape;
use crate::graph::Graph;
use crate::model::{Function, Model, OpsetImport, ir_version_for};
use crate::schema;
use crate::value::Name;

/// At most this many violations are told apart; the rest are counted.
pub const MAX_VIOLATIONS: usize = 100;

/// How bad a violation is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Engines run the model, but it can surprise.
    Warning,
    /// The model is not valid.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One thing that doesn't hold. Names from the model are escaped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The code, such as `V33`: see the list at the top of this module.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where, such as `main_graph / Conv "conv1" / input 1`.
    pub place: String,
    /// What was found and what was expected.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] {}", self.severity, self.code, self.text())
    }
}

impl Violation {
    /// Where, what, and what to do, without code and severity.
    pub fn text(&self) -> String {
        match self.help.is_empty() {
            true => format!("{}: {}", self.place, self.message),
            false => format!("{}: {}; {}", self.place, self.message, self.help),
        }
    }
}

/// What the verifier found, errors and warnings, in the order of the model.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// The first violations, at most [`MAX_VIOLATIONS`].
    pub violations: Vec<Violation>,
    /// All errors, those that are not listed too.
    pub errors: usize,
    /// All warnings, those that are not listed too.
    pub warnings: usize,
}

impl Findings {
    /// The errors, if there are any; warnings pass.
    pub fn into_result(mut self) -> Result<(), VerifyErrors> {
        if self.errors == 0 {
            return Ok(());
        }
        self.violations.retain(|v| v.severity == Severity::Error);
        Err(VerifyErrors {
            violations: self.violations,
            errors: self.errors,
        })
    }

    /// How many violations of a severity are counted and not listed.
    pub fn unlisted(&self, severity: Severity) -> usize {
        let all = match severity {
            Severity::Warning => self.warnings,
            Severity::Error => self.errors,
        };
        let listed = self.violations.iter().filter(|v| v.severity == severity);
        all.saturating_sub(listed.count())
    }

    fn push(&mut self, violation: Violation) {
        match violation.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(violation);
            return;
        }
        // An error is worth more than the last warning.
        if violation.severity == Severity::Error
            && let Some(i) = (self.violations.iter()).rposition(|v| v.severity == Severity::Warning)
        {
            self.violations.remove(i);
            self.violations.push(violation);
        }
    }
}

/// A model that is not valid: at least one error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct VerifyErrors {
    /// The first errors, at most [`MAX_VIOLATIONS`].
    pub violations: Vec<Violation>,
    /// All errors, those that are not listed too.
    pub errors: usize,
}

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.errors == 1 { "" } else { "s" };
        write!(f, "the model is not valid: {} error{plural}", self.errors)?;
        for v in &self.violations {
            write!(f, "\n  {v}")?;
        }
        let more = self.errors.saturating_sub(self.violations.len());
        if more > 0 {
            write!(f, "\n  and {more} more")?;
        }
        Ok(())
    }
}

/// Checks a model; warnings pass. [`check`] tells them.
pub fn verify(model: &Model) -> Result<(), VerifyErrors> {
    check(model).into_result()
}

/// Everything that doesn't hold of a model, warnings too. Takes linear time.
pub fn check(model: &Model) -> Findings {
    let mut verifier = Verifier {
        found: Findings::default(),
        ir_version: model.ir_version,
        functions: model.functions.iter().map(key_of).collect(),
        checked: BTreeSet::new(),
        opsets: BTreeMap::new(),
        model_opset: model.opset(),
        function: None,
        path: vec!["model".to_owned()],
    };
    verifier.header(model);
    verifier.opsets = opset_map(&model.opsets);
    // Before version 3 there were no imports, and the standard operators are those of opset 1.
    if model.opsets.is_empty() {
        verifier.opsets.insert("".into(), 1);
    }
    verifier.path = vec![graph_label(&model.graph)];
    verifier.graph(&model.graph, &mut Vec::new());
    for function in &model.functions {
        verifier.function(function);
    }
    verifier.function_calls(model);
    verifier.found
}

/// Everything that doesn't hold of a model, by the inferred shapes too. Shapes must be those of
/// this state of the model.
pub fn check_with(model: &Model, shapes: &Shapes) -> Findings {
    let mut found = check(model);
    for conflict in shapes.conflicts() {
        found.push(Violation::from(conflict));
    }
    found
}

impl From<&Conflict> for Violation {
    fn from(conflict: &Conflict) -> Violation {
        let (code, help) = match conflict.kind {
            ConflictKind::Declared { .. } => ("V60", "correct the declaration or leave it out"),
            ConflictKind::Operator { .. } => ("V61", ""),
        };
        Violation {
            code,
            severity: Severity::Error,
            place: conflict.place.clone(),
            message: conflict.reason(),
            help: help.to_owned(),
        }
    }
}

/// What calls a function: domain, name, overload.
type FunctionKey = (Name, Name, Name);

fn key_of(f: &Function) -> FunctionKey {
    (f.domain.clone(), f.name.clone(), f.overload.clone())
}

fn opset_map(opsets: &[OpsetImport]) -> BTreeMap<Name, i64> {
    opsets
        .iter()
        .map(|o| (o.domain.clone(), o.version))
        .collect()
}

fn graph_label(graph: &Graph) -> String {
    match graph.name().is_empty() {
        true => "graph".to_owned(),
        false => escape(graph.name()),
    }
}

struct Verifier<'m> {
    found: Findings,
    ir_version: i64,
    /// What the model's functions are called by.
    functions: BTreeSet<FunctionKey>,
    /// Those that have been checked.
    checked: BTreeSet<FunctionKey>,
    /// The opsets of the model or of the function that is being checked.
    opsets: BTreeMap<Name, i64>,
    model_opset: i64,
    /// The function that is being checked.
    function: Option<&'m Function>,
    /// Where we are: graphs, the operators that hold them, and the attributes between.
    path: Vec<String>,
}

impl<'m> Verifier<'m> {
    fn report(&mut self, code: &'static str, severity: Severity, place: &str, message: String) {
        self.report_with_help(code, severity, place, message, "");
    }

    fn error(&mut self, code: &'static str, place: &str, message: String) {
        self.report(code, Severity::Error, place, message);
    }

    /// `place` is the end of the place, after the graph; it may be empty.
    fn report_with_help(
        &mut self,
        code: &'static str,
        severity: Severity,
        place: &str,
        message: String,
        help: &str,
    ) {
        let mut path = self.path.join(" / ");
        if !place.is_empty() {
            path.push_str(" / ");
            path.push_str(place);
        }
        self.found.push(Violation {
            code,
            severity,
            place: path,
            message,
            help: help.to_owned(),
        });
    }

    // ---- the model ----

    fn header(&mut self, model: &Model) {
        if model.ir_version < 1 || model.extra.no_ir_version {
            self.error(
                "V01",
                "",
                format!("expected an IR version of at least 1, found {}", {
                    match model.extra.no_ir_version {
                        true => "none".to_owned(),
                        false => model.ir_version.to_string(),
                    }
                }),
            );
        }
        if model.extra.no_graph {
            self.error("V01", "", "the file holds no graph".to_owned());
        }
        let opset = model.opset();
        let needed = ir_version_for(opset);
        if model.ir_version < needed && opset <= schema::NEWEST_OPSET {
            self.report_with_help(
                "V02",
                Severity::Warning,
                "",
                format!(
                    "opset {opset} came with IR version {needed}, found version {}",
                    model.ir_version
                ),
                "raise the IR version",
            );
        }
        if model.opsets.is_empty() && model.ir_version >= 3 {
            let message = "expected the opset of the standard operators, found no opset import";
            self.error("V03", "", message.to_owned());
        }
        self.imports(&model.opsets);
        if opset > schema::NEWEST_OPSET {
            self.report(
                "V03",
                Severity::Warning,
                "",
                format!(
                    "opset {opset} is newer than the newest known one, {}: its operators are \
                     checked as those of that one",
                    schema::NEWEST_OPSET
                ),
            );
        }
        self.unique(
            "V04",
            model.metadata.iter().map(|(k, _)| &**k),
            "the metadata key",
        );
        let overloads = model.functions.iter().any(|f| !f.overload.is_empty());
        for (used, what, version) in [
            (!model.functions.is_empty(), "functions", 8),
            (overloads, "overloads of functions", 10),
        ] {
            if used && model.ir_version < version {
                self.report_with_help(
                    "V54",
                    Severity::Warning,
                    "",
                    format!(
                        "{what} came with IR version {version}, found version {}",
                        model.ir_version
                    ),
                    "raise the IR version, or inline the functions",
                );
            }
        }
    }

    fn imports(&mut self, opsets: &[OpsetImport]) {
        for o in opsets.iter().filter(|o| o.version < 1) {
            self.error(
                "V03",
                "",
                format!(
                    "expected version 1 or later of the domain \"{}\", found {}",
                    escape(&o.domain),
                    o.version
                ),
            );
        }
        self.unique("V03", opsets.iter().map(|o| &*o.domain), "the opset domain");
    }

    /// Reports what stands in a list twice.
    fn unique<'n>(&mut self, code: &'static str, names: impl Iterator<Item = &'n str>, what: &str) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.error(
                    code,
                    "",
                    format!("{what} \"{}\" stands twice", escape(name)),
                );
            }
        }
    }

    // ---- functions ----

    fn function(&mut self, f: &'m Function) {
        let dot = if f.domain.is_empty() { "" } else { "." };
        let colon = if f.overload.is_empty() { "" } else { ":" };
        self.path = vec![format!(
            "function {}{dot}{}{colon}{}",
            escape(&f.domain),
            escape(&f.name),
            escape(&f.overload)
        )];
        if f.name.is_empty() {
            self.error("V50", "", "a function needs a name".to_owned());
        }
        if !self.checked.insert(key_of(f)) {
            let message = "another function has the same domain, name and overload";
            self.error("V50", "", message.to_owned());
        }
        if f.opsets.is_empty() {
            let message = "expected the opsets of the body, found no opset import";
            self.error("V03", "", message.to_owned());
        }
        self.imports(&f.opsets);
        let defaults = f.attribute_defaults.iter().map(|a| &*a.name);
        let attributes = f.attributes.iter().map(|a| &**a);
        self.unique("V53", attributes.chain(defaults), "the attribute");
        let outputs = f.body.outputs().iter();
        let outputs: Vec<Name> = outputs
            .filter_map(|&v| Some(f.body.get_value(v)?.name().clone()))
            .collect();
        self.unique("V53", outputs.iter().map(|o| &**o), "the output");
        if let Some(v) = f.body.initializers().next() {
            let name = f.body.get_value(v).map(|v| escape(v.name()));
            self.report_with_help(
                "V53",
                Severity::Error,
                "",
                format!(
                    "a function can't hold initializers, found \"{}\"",
                    name.unwrap_or_default()
                ),
                "make it a Constant operator",
            );
        }
        self.opsets = opset_map(&f.opsets);
        self.function = Some(f);
        self.graph(&f.body, &mut Vec::new());
        self.function = None;
    }

    /// Looks for functions that call themselves.
    fn function_calls(&mut self, model: &Model) {
        let index: BTreeMap<FunctionKey, usize> = model
            .functions
            .iter()
            .enumerate()
            .map(|(i, f)| (key_of(f), i))
            .collect();
        let calls: Vec<Vec<usize>> = model
            .functions
            .iter()
            .map(|f| {
                let mut called = BTreeSet::new();
                calls_of(&f.body, &index, &mut called, 0);
                called.into_iter().collect()
            })
            .collect();
        // Functions leave one by one, once all that they call have left; cycles stay.
        let mut callers: Vec<Vec<usize>> = vec![Vec::new(); calls.len()];
        for (i, called) in calls.iter().enumerate() {
            for &c in called {
                if let Some(list) = callers.get_mut(c) {
                    list.push(i);
                }
            }
        }
        let mut waiting: Vec<usize> = calls.iter().map(Vec::len).collect();
        let mut ready: Vec<usize> = (0..calls.len()).filter(|&i| calls[i].is_empty()).collect();
        while let Some(i) = ready.pop() {
            for &caller in &callers[i] {
                waiting[caller] -= 1;
                if waiting[caller] == 0 {
                    ready.push(caller);
                }
            }
        }
        let stuck: Vec<String> = model
            .functions
            .iter()
            .zip(&waiting)
            .filter(|(_, w)| **w > 0)
            .map(|(f, _)| format!("\"{}\"", escape(&f.name)))
            .collect();
        if let Some(first) = stuck.first() {
            let count = stuck.len();
            self.path = vec![format!("function {first}")];
            let message = format!(
                "functions must not call themselves; in a circle, or calling into one, \
                 are {count}: {}",
                stuck
                    .iter()
                    .take(10)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            self.error("V51", "", message);
        }
    }
}

/// The functions that a graph calls, also from within attributes.
fn calls_of(
    graph: &Graph,
    index: &BTreeMap<FunctionKey, usize>,
    called: &mut BTreeSet<usize>,
    depth: usize,
) {
    if depth > graph::MAX_DEPTH {
        return;
    }
    for id in graph.ops() {
        let op = graph.op(id);
        let key = (
            op.domain().clone(),
            op.op_type().clone(),
            op.overload().into(),
        );
        if let Some(&i) = index.get(&key) {
            called.insert(i);
        }
        for sub in op.subgraphs() {
            calls_of(sub, index, called, depth + 1);
        }
    }
}

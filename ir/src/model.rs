//! A model: the main graph, the opsets that it speaks, functions, and what else a file holds.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::attr::Attribute;
use crate::graph::{Graph, GraphError, OpId};
use crate::value::Name;

/// An opset that a model or function speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpsetImport {
    /// The domain; empty for the standard operators.
    pub domain: Name,
    /// The version.
    pub version: i64,
    /// The domain as the file spelled it: `None` when it is absent, else `ai.onnx` or empty.
    pub written_domain: Option<Name>,
}

impl OpsetImport {
    /// An import.
    pub fn new(domain: impl Into<Name>, version: i64) -> OpsetImport {
        let domain = domain.into();
        OpsetImport {
            written_domain: Some(domain.clone()),
            domain,
            version,
        }
    }
}

/// A function that the model brings along: an operator defined by a graph.
#[derive(Clone, Debug)]
pub struct Function {
    /// The domain of the operator.
    pub domain: Name,
    /// The operator type.
    pub name: Name,
    /// Tells functions of one name apart.
    pub overload: Name,
    /// The names of attributes without a default.
    pub attributes: Vec<Name>,
    /// The attributes with a default.
    pub attribute_defaults: Vec<Attribute>,
    /// The opsets that the body speaks.
    pub opsets: Vec<OpsetImport>,
    /// The body; its inputs and outputs are those of the function.
    pub body: Graph,
    /// Documentation.
    pub doc: Option<Name>,
    /// `metadata_props`.
    pub metadata: Vec<(Name, Name)>,
    /// `domain` and `overload` are written out although they are empty.
    pub written: (bool, bool),
}

/// What a file says about a model that no pass looks at.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ModelExtra {
    /// The program that made the file.
    pub producer_name: Option<Name>,
    /// Its version.
    pub producer_version: Option<Name>,
    /// The model's domain.
    pub domain: Option<Name>,
    /// The model's version.
    pub model_version: Option<i64>,
    /// Documentation.
    pub doc: Option<Name>,
    /// `training_info` messages, encoded as in the file. They name operators and
    /// initializers, so a model that a pass changed is written without them.
    pub training_info: Vec<Bytes>,
    /// The model's revision when `training_info` was read.
    pub training_revision: u64,
    /// Device configurations, encoded as in the file.
    pub configuration: Vec<Bytes>,
    /// The file has no `ir_version`.
    pub no_ir_version: bool,
    /// The file has no `graph`.
    pub no_graph: bool,
}

/// A model. Cloning copies the graph and shares the tensors.
#[derive(Clone, Debug)]
pub struct Model {
    /// The version of the ONNX IR.
    pub ir_version: i64,
    /// The opsets that the main graph speaks.
    pub opsets: Vec<OpsetImport>,
    /// The main graph.
    pub graph: Graph,
    /// The functions, in the order of the file.
    pub functions: Vec<Function>,
    /// `metadata_props`, in the order of the file.
    pub metadata: Vec<(Name, Name)>,
    /// What no pass looks at.
    pub extra: ModelExtra,
}

impl Model {
    /// A model around a graph that speaks one version of the standard operators.
    pub fn new(graph: Graph, opset: i64) -> Model {
        Model {
            ir_version: ir_version_for(opset),
            opsets: vec![OpsetImport::new("", opset)],
            graph,
            functions: Vec::new(),
            metadata: Vec::new(),
            extra: ModelExtra::default(),
        }
    }

    /// The version of a domain's operators; `""` is the standard domain.
    pub fn opset_of(&self, domain: &str) -> Option<i64> {
        self.opsets
            .iter()
            .find(|o| &*o.domain == domain)
            .map(|o| o.version)
    }

    /// The version of the standard operators. A file without the import speaks version 1.
    pub fn opset(&self) -> i64 {
        self.opset_of("").unwrap_or(1)
    }

    /// Sets the version of a domain's operators, and raises the IR version where it must be
    /// for the standard ones.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        match self.opsets.iter_mut().find(|o| &*o.domain == domain) {
            Some(o) => o.version = version,
            None => self.opsets.push(OpsetImport::new(domain, version)),
        }
        self.graph.touch();
        if domain.is_empty() {
            self.ir_version = self.ir_version.max(ir_version_for(version));
        }
    }

    /// A number that no other state of any model's graphs has, except clones of this one:
    /// together the revisions of the main graph and of the functions.
    pub fn revision(&self) -> u64 {
        self.functions
            .iter()
            .map(|f| f.body.revision())
            .fold(self.graph.revision(), u64::max)
    }

    /// Whether any operator of the main graph holds a graph in an attribute.
    pub fn has_subgraphs(&self) -> bool {
        self.graph.ops_with_subgraphs().next().is_some()
    }

    /// The function that an operator calls.
    pub fn function_of(&self, op: &crate::op::Op) -> Option<&Function> {
        self.functions.iter().find(|f| {
            f.name == *op.op_type() && f.domain == *op.domain() && &*f.overload == op.overload()
        })
    }

    /// Drops the functions that `keep` says no to.
    pub fn retain_functions(&mut self, keep: impl FnMut(&Function) -> bool) {
        let before = self.functions.len();
        self.functions.retain(keep);
        if self.functions.len() != before {
            self.graph.touch();
        }
    }

    /// The pass that the coming edits are recorded under.
    pub fn set_author(&mut self, author: Option<Name>) {
        self.graph.set_author(author.clone());
        for f in &mut self.functions {
            f.body.set_author(author.clone());
        }
    }

    /// Calls `f` for the main graph and every graph inside it, outermost first. Functions are
    /// not visited.
    pub fn for_each_graph<'a>(&'a self, f: &mut dyn FnMut(&'a Graph)) {
        visit(&self.graph, f);
    }

    /// Calls `edit` for every graph of the main graph, innermost first, and for the main graph
    /// last. Functions are not visited.
    pub fn edit_graphs<E: From<GraphError>>(
        &mut self,
        edit: &mut dyn FnMut(&mut Graph) -> Result<(), E>,
    ) -> Result<(), E> {
        edit_nested(&mut self.graph, edit)
    }

    /// Removes the constants that nothing takes: what a rewrite leaves of the weights that it
    /// replaced. Defaults of graph inputs stay, and what a quantization annotation names.
    pub fn drop_unused_constants(&mut self) -> Result<(), GraphError> {
        self.edit_graphs(&mut |graph| {
            let annotated: BTreeSet<Name> = graph
                .extra()
                .quantization_annotations
                .iter()
                .flat_map(|a| a.parameters.iter().map(|(_, name)| name.clone()))
                .collect();
            let unused: Vec<_> = graph
                .initializers()
                .filter(|&v| {
                    let value = graph.value(v);
                    value.is_unused() && !value.is_input() && !annotated.contains(value.name())
                })
                .collect();
            unused.into_iter().try_for_each(|v| graph.remove_value(v))
        })
    }

    /// Gives every value a name of its own over all nested graphs: where a graph inside defines
    /// a name that stands outside too, the inner one is renamed. Names of the main graph stay.
    pub fn separate_nested_names(&mut self) -> Result<(), GraphError> {
        if !self.has_subgraphs() {
            return Ok(());
        }
        let mut taken = BTreeMap::new();
        separate(&mut self.graph, &mut taken)
    }
}

fn visit<'a>(graph: &'a Graph, f: &mut dyn FnMut(&'a Graph)) {
    f(graph);
    for op in graph.ops_with_subgraphs() {
        for sub in graph.op(op).subgraphs() {
            visit(sub, f);
        }
    }
}

fn edit_nested<E: From<GraphError>>(
    graph: &mut Graph,
    edit: &mut dyn FnMut(&mut Graph) -> Result<(), E>,
) -> Result<(), E> {
    let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
    for op in owners {
        graph.edit_subgraphs(op, |_, sub| edit_nested(sub, edit))?;
    }
    edit(graph)
}

fn separate(graph: &mut Graph, taken: &mut BTreeMap<Name, ()>) -> Result<(), GraphError> {
    let own: Vec<_> = graph
        .values()
        .filter(|&v| graph.value(v).captured_from().is_none())
        .collect();
    for &v in &own {
        let name = graph.value(v).name().clone();
        if taken.contains_key(&name) {
            let mut fresh = graph.fresh_name(&name);
            while taken.contains_key(&fresh) || graph.find_value(&fresh).is_some() {
                fresh = graph.fresh_name(&format!("{fresh}_inner"));
            }
            graph.rename_value(v, fresh)?;
        }
        taken.insert(graph.value(v).name().clone(), ());
    }
    let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
    for op in owners {
        graph.edit_subgraphs(op, |_, sub| separate(sub, taken))?;
    }
    Ok(())
}

/// The first IR version that may use a version of the standard operators (ONNX, `Versioning.md`).
pub fn ir_version_for(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

//! Trees to graphs: names become values, in the innermost graph that defines them.

use std::collections::{HashMap, HashSet};

use super::lexer::Fault;
use super::{GraphTree, Notes, OpTree, Parsed, Tree, ValueTree};
use crate::attr::{AttrValue, Attribute};
use crate::graph::{Graph, GraphError, GraphExtra, ValueId};
use crate::op::{NewOp, NewOutput, OpExtra};
use crate::value::ValueExtra;

pub(super) fn graph(tree: &GraphTree) -> Parsed<Graph> {
    Builder { scopes: Vec::new() }.graph(tree)
}

/// A graph under construction.
struct Scope<'t> {
    graph: Graph,
    /// What this graph defines anywhere: inputs, initializers, outputs of operators.
    defined: HashSet<&'t str>,
    /// What it has captured so far.
    captured: HashMap<&'t str, ValueId>,
}

/// The graphs under construction, outermost first. How deep they nest was checked in parsing.
struct Builder<'t> {
    scopes: Vec<Scope<'t>>,
}

fn at(at: usize) -> impl Fn(GraphError) -> Fault {
    move |e| Fault::at(at, e.to_string())
}

impl<'t> Builder<'t> {
    fn graph(&mut self, tree: &'t GraphTree) -> Parsed<Graph> {
        let constants = tree.inputs.iter().chain(&tree.values);
        let constants = constants.filter(|v| v.constant.is_some());
        let defined = tree.inputs.iter().chain(constants).map(|v| &*v.name);
        let outputs = tree.ops.iter().flat_map(|op| &op.outputs);
        let outputs = outputs.map(|o| &*o.text).filter(|o| !o.is_empty());
        self.scopes.push(Scope {
            graph: Graph::new(tree.name.as_str()),
            defined: defined.chain(outputs).collect(),
            captured: HashMap::new(),
        });
        let done = self.contents(tree);
        let scope = self.scopes.pop();
        done?;
        match scope {
            Some(scope) => Ok(scope.graph),
            None => Err(Fault::at(tree.at, "a graph is lost".to_owned())),
        }
    }

    fn contents(&mut self, tree: &'t GraphTree) -> Parsed<()> {
        for v in &tree.inputs {
            let g = self.top(v.at)?;
            let id = g
                .add_input(v.name.as_str(), v.ty.clone())
                .map_err(at(v.at))?;
            self.annotate(v, id)?;
        }
        for v in tree.inputs.iter().chain(&tree.values) {
            let Some(constant) = &v.constant else {
                continue;
            };
            let g = self.top(v.at)?;
            let id = g.value_or_add(&v.name).map_err(at(v.at))?;
            g.add_initializer(id, constant.clone()).map_err(at(v.at))?;
            self.annotate(v, id)?;
        }
        for op in &tree.ops {
            self.op(op)?;
        }
        for v in tree.values.iter().filter(|v| v.constant.is_none()) {
            // What neither this graph nor one around it defines is declared and nothing else.
            let g = self.top(v.at)?;
            let id = g.value_or_add(&v.name).map_err(at(v.at))?;
            if v.ty.is_some() {
                g.set_type(id, v.ty.clone()).map_err(at(v.at))?;
            }
            g.declare(id).map_err(at(v.at))?;
            self.annotate(v, id)?;
        }
        for v in &tree.outputs {
            let id = self.resolve(&v.name, v.at)?;
            let g = self.top(v.at)?;
            if v.ty.is_some() {
                g.set_type(id, v.ty.clone()).map_err(at(v.at))?;
            }
            g.add_output(id).map_err(at(v.at))?;
            self.annotate(v, id)?;
        }
        let Notes {
            doc,
            metadata,
            quantization,
        } = &tree.notes;
        self.top(tree.at)?.set_extra(GraphExtra {
            doc: doc.clone(),
            metadata: metadata.clone(),
            quantization_annotations: quantization.clone(),
            unnamed: false,
        });
        Ok(())
    }

    fn annotate(&mut self, v: &ValueTree, id: ValueId) -> Parsed<()> {
        if v.notes.doc.is_none() && v.notes.metadata.is_empty() {
            return Ok(());
        }
        let extra = ValueExtra {
            doc: v.notes.doc.clone(),
            metadata: v.notes.metadata.clone(),
            ..ValueExtra::default()
        };
        let g = self.top(v.at)?;
        g.set_value_extra(id, extra).map_err(at(v.at))
    }

    fn op(&mut self, op: &'t OpTree) -> Parsed<()> {
        let mut new = NewOp::new(op.op_type.as_str())
            .domain(op.domain.as_str())
            .name(op.name.as_str());
        for attr in &op.attrs {
            let value = match &attr.value {
                Tree::Value(v) => v.clone(),
                Tree::Graph(tree) => AttrValue::Graph(Box::new(self.graph(tree)?)),
                Tree::Graphs(trees) => {
                    let graphs: Parsed<Vec<Graph>> = trees.iter().map(|t| self.graph(t)).collect();
                    AttrValue::Graphs(graphs?)
                }
            };
            new = new.attrs([Attribute::new(attr.name.as_str(), value)]);
        }
        for input in &op.inputs {
            new = new.optional_input(match input.text.is_empty() {
                true => None,
                false => Some(self.resolve(&input.text, input.at)?),
            });
        }
        for output in &op.outputs {
            new = new.push_output(match output.text.is_empty() {
                true => NewOutput::Absent,
                false => {
                    let g = self.top(output.at)?;
                    let v = g.value_or_add(&output.text).map_err(at(output.at))?;
                    NewOutput::Existing(v)
                }
            });
        }
        new = new.extra(OpExtra {
            doc: op.notes.doc.clone(),
            overload: op.overload.as_deref().map(Into::into),
            metadata: op.notes.metadata.clone(),
            ..OpExtra::default()
        });
        let first = op.outputs.first().map_or(op.at, |o| o.at);
        self.top(op.at)?.add_op(new).map_err(at(first))?;
        Ok(())
    }

    fn top(&mut self, at: usize) -> Parsed<&mut Graph> {
        match self.scopes.last_mut() {
            Some(scope) => Ok(&mut scope.graph),
            None => Err(Fault::at(at, "there is no graph here".to_owned())),
        }
    }

    /// The value of a name in the innermost graph; where a graph further out defines it, it is
    /// captured through every level between.
    fn resolve(&mut self, name: &'t str, position: usize) -> Parsed<ValueId> {
        let definer = self.scopes.iter().rposition(|s| s.defined.contains(name));
        // What nothing defines is for the verifier to report.
        let definer = definer.unwrap_or(self.scopes.len().saturating_sub(1));
        let mut id = None;
        for scope in self.scopes.iter_mut().skip(definer) {
            id = Some(match (id, scope.captured.get(name)) {
                (None, _) => scope.graph.value_or_add(name).map_err(at(position))?,
                (Some(_), Some(&inner)) => inner,
                (Some(outer), None) => {
                    let inner = scope.graph.capture(outer, name).map_err(at(position))?;
                    scope.captured.insert(name, inner);
                    inner
                }
            });
        }
        id.ok_or_else(|| Fault::at(position, "there is no graph here".to_owned()))
    }
}

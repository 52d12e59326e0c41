//! Graphs inside operators: what they capture, editing and copying them.

use std::collections::BTreeSet;

use crate::attr::AttrValue;
use crate::value::Name;

use super::{Graph, GraphError, GraphId, Node, OpId, Port, ValueId, next_graph_id};

impl Graph {
    /// A value of this graph that stands for a value of the enclosing one. The operator that
    /// holds this graph takes up the capture when the graph is put into its attribute.
    pub fn capture(&mut self, outer: ValueId, name: &str) -> Result<ValueId, GraphError> {
        if let Some(v) = self.values().find(|&v| self.value(v).outer == Some(outer)) {
            return Ok(v);
        }
        // What only is declared here may turn out to be the captured value; any other value of
        // the name yields it, since a capture has the name that it has outside.
        let v = match self.find_value(name) {
            Some(v) if self.is_merely_declared(v) => v,
            Some(v) => {
                let fresh = self.fresh_name(name);
                self.rename_value(v, fresh)?;
                self.add_value(name)?
            }
            None => self.add_value(name)?,
        };
        self.value_mut(v)?.outer = Some(outer);
        self.touch();
        Ok(v)
    }

    pub(super) fn is_merely_declared(&self, v: ValueId) -> bool {
        let v = self.value(v);
        v.producer.is_none() && !v.input && v.constant.is_none() && v.outer.is_none()
    }

    /// Makes a value without a source stand for a value of the enclosing graph, for readers,
    /// which know that nothing else of this graph does. See [`Graph::capture`].
    pub fn bind_capture(&mut self, inner: ValueId, outer: ValueId) -> Result<(), GraphError> {
        self.check_value(inner)?;
        if !self.is_merely_declared(inner) {
            return Err(GraphError::AlreadyProduced(
                self.value(inner).name.to_string(),
            ));
        }
        self.value_mut(inner)?.outer = Some(outer);
        self.touch();
        Ok(())
    }

    /// Edits the graphs in an operator's attributes, in order; the operator's captures are
    /// brought up to date afterwards. The closure also sees the position among the graphs.
    pub fn edit_subgraphs<E: From<GraphError>>(
        &mut self,
        op: OpId,
        mut edit: impl FnMut(usize, &mut Graph) -> Result<(), E>,
    ) -> Result<(), E> {
        let author = self.author.clone();
        let mut attrs = std::mem::take(&mut self.op_mut(op)?.attrs);
        let mut result = Ok(());
        let mut changed = false;
        let graphs = attrs.iter_mut().flat_map(|a| a.value.graphs_mut());
        for (i, graph) in graphs.enumerate() {
            if graph.author != author {
                graph.set_author(author.clone());
            }
            let before = graph.revision;
            result = edit(i, graph);
            changed |= graph.revision != before;
            if result.is_err() {
                break;
            }
        }
        self.op_mut(op)?.attrs = attrs;
        if changed {
            self.sync_captures(op)?;
            self.touch();
        }
        result
    }

    /// A copy with ids of its own, so that both can stand in one model.
    pub fn duplicate(&self) -> Graph {
        let mut copy = self.clone();
        copy.renumber();
        copy
    }

    pub(super) fn renumber(&mut self) {
        let (old, new) = (self.id, next_graph_id());
        let op = |o: &mut OpId| o.graph = new;
        let value = |v: &mut ValueId| v.graph = new;
        self.id = new;
        self.touch();
        [
            &mut self.inputs,
            &mut self.listed_inputs,
            &mut self.outputs,
            &mut self.initializers,
            &mut self.declared,
        ]
        .into_iter()
        .flatten()
        .for_each(value);
        for node in self.net.node_weights_mut() {
            match node {
                Node::Op(o) => {
                    o.inputs
                        .iter_mut()
                        .flatten()
                        .for_each(|s| value(&mut s.value));
                    o.captures.iter_mut().for_each(|s| value(&mut s.value));
                    o.outputs.iter_mut().flatten().for_each(value);
                    for graph in o.attrs.iter_mut().flat_map(|a| a.value.graphs_mut()) {
                        graph.renumber();
                        graph.renumber_outer(old, new);
                    }
                }
                Node::Value(v) => {
                    v.uses.iter_mut().for_each(|u| op(&mut u.op));
                    if let Some((p, _)) = &mut v.producer {
                        op(p);
                    }
                }
                Node::Removed => {}
            }
        }
    }

    pub(super) fn renumber_outer(&mut self, old: GraphId, new: GraphId) {
        for node in self.net.node_weights_mut() {
            if let Node::Value(v) = node
                && let Some(outer) = &mut v.outer
                && outer.graph == old
            {
                outer.graph = new;
            }
        }
    }

    /// Gives a captured value the name it has outside; a value inside that has the name yields it.
    pub(super) fn rename_for_capture(
        &mut self,
        inner: ValueId,
        name: &Name,
    ) -> Result<(), GraphError> {
        if let Some(other) = self.find_value(name).filter(|&o| o != inner) {
            let fresh = self.fresh_name(name);
            self.rename_value(other, fresh)?;
        }
        self.rename_value(inner, name.clone())
    }

    pub(super) fn repoint_capture(
        &mut self,
        old: ValueId,
        new: ValueId,
        name: &Name,
    ) -> Result<(), GraphError> {
        let find = |g: &Graph, outer| g.values().find(|&v| g.value(v).outer == Some(outer));
        let Some(inner) = find(self, old) else {
            return Ok(());
        };
        match find(self, new) {
            Some(there) => {
                // The graph's outputs may be captured values; the merged one takes all its places.
                for v in &mut self.outputs {
                    if *v == inner {
                        *v = there;
                    }
                }
                let value = self.value_mut(inner)?;
                let count = std::mem::take(&mut value.outputs);
                // The types were compared outside; what stands in here says no more.
                value.ty = None;
                self.value_mut(there)?.outputs += count;
                self.replace_value(inner, there)?;
                self.value_mut(inner)?.outer = None;
                self.remove_value(inner)
            }
            None => {
                let value = self.value_mut(inner)?;
                value.outer = Some(new);
                value.ty = None;
                self.rename_for_capture(inner, name)?;
                self.touch();
                Ok(())
            }
        }
    }

    /// Checks that what the graphs of an attribute capture is here.
    pub(super) fn check_captures(&self, attr: &AttrValue) -> Result<(), GraphError> {
        for graph in attr.graphs() {
            for v in graph.values() {
                if let Some(outer) = graph.value(v).outer {
                    self.check_value(outer)?;
                }
            }
        }
        Ok(())
    }

    /// Gives captured values the names that they have here: in a file, the name is the capture.
    pub(super) fn align_capture_names(&mut self, op: OpId) -> Result<(), GraphError> {
        let mut renames = Vec::new();
        for (i, graph) in self.op(op).subgraphs().enumerate() {
            for v in graph.values() {
                let value = graph.value(v);
                let Some(outer) = value.outer else { continue };
                let name = &self.check_value(outer)?.name;
                if *name != value.name {
                    renames.push((i, v, name.clone()));
                }
            }
        }
        for (i, v, name) in renames {
            let mut graphs = self.op_mut(op)?.attrs.iter_mut();
            let graph = graphs.by_ref().flat_map(|a| a.value.graphs_mut()).nth(i);
            if let Some(graph) = graph {
                graph.rename_for_capture(v, &name)?;
            }
        }
        Ok(())
    }

    /// Brings an operator's captures in line with the graphs in its attributes.
    pub(super) fn sync_captures(&mut self, op: OpId) -> Result<(), GraphError> {
        self.align_capture_names(op)?;
        let mut wanted: Vec<ValueId> = Vec::new();
        let mut seen = BTreeSet::new();
        for graph in self.op(op).subgraphs() {
            for v in graph.values() {
                if let Some(outer) = graph.value(v).outer
                    && seen.insert(outer)
                {
                    self.check_value(outer)?;
                    wanted.push(outer);
                }
            }
        }
        while let Some(slot) = self.op_mut(op)?.captures.pop() {
            self.detach_use(slot);
        }
        for v in wanted {
            let slot = self.attach_use(v, op, Port::Capture);
            self.op_mut(op)?.captures.push(slot);
        }
        Ok(())
    }
}

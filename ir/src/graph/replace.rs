//! Replacing and removing operators and values.

use petgraph::stable_graph::NodeIndex;

use crate::op::{NewOp, NewOutput};

use super::{Graph, GraphError, Node, OpId, Port, ValueId};

impl Graph {
    /// Whether [`Graph::replace_value`] would succeed.
    pub fn can_replace(&self, old: ValueId, new: ValueId) -> bool {
        self.check_replace(old, new).is_ok()
    }

    pub(super) fn check_replace(&self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        let (o, n) = (self.check_value(old)?, self.check_value(new)?);
        if let (Some(a), Some(b)) = (o.known_type(), n.known_type())
            && !a.compatible(&b)
        {
            return Err(GraphError::TypeMismatch {
                old: o.name.to_string(),
                old_type: a.to_string(),
                new: n.name.to_string(),
                new_type: b.to_string(),
            });
        }
        if old != new && o.outputs > 0 && (o.input || n.producer.is_none() || n.outputs > 0) {
            return Err(GraphError::OutputBound {
                old: o.name.to_string(),
                new: n.name.to_string(),
            });
        }
        Ok(())
    }

    /// Makes everything that takes `old` take `new`: operators, captures and graph outputs.
    /// Where `old` is a graph output, `new` gets its name and its declared type.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) -> Result<(), GraphError> {
        self.check_replace(old, new)?;
        if old == new {
            return Ok(());
        }
        let uses = std::mem::take(&mut self.value_mut(old)?.uses);
        let mut capturing = Vec::new();
        for u in uses {
            match u.port {
                Port::Input(slot) => {
                    let taken = self.attach_use(new, u.op, u.port);
                    let place = &mut self.op_mut(u.op)?.inputs[slot as usize];
                    if let Some(before) = place.replace(taken) {
                        self.remove_edge(before.edge);
                    }
                }
                Port::Capture => capturing.push(u),
                Port::Output(_) => {}
            }
        }
        // The captures are put back first, so that each is removed by the common way.
        for u in &capturing {
            let position = self.value(old).uses.len() as u32;
            self.value_mut(old)?.uses.push(*u);
            let o = self.op_mut(u.op)?;
            if let Some(s) = o.captures.iter_mut().find(|s| s.value == old) {
                s.position = position;
            }
        }
        let new_name = self.value(new).name.clone();
        for u in capturing {
            for graph in self
                .op_mut(u.op)?
                .attrs
                .iter_mut()
                .flat_map(|a| a.value.graphs_mut())
            {
                graph.repoint_capture(old, new, &new_name)?;
            }
            self.sync_captures(u.op)?;
        }
        if self.value(old).outputs > 0 {
            for v in &mut self.outputs {
                if *v == old {
                    *v = new;
                }
            }
            let o = self.value_mut(old)?;
            let (count, ty, extra) = (std::mem::take(&mut o.outputs), o.ty.clone(), o.extra.take());
            let name = o.name.clone();
            let spare = self.fresh_name(&name);
            self.rename_value(old, spare)?;
            self.rename_value(new, name)?;
            let n = self.value_mut(new)?;
            n.outputs = count;
            n.extra = extra;
            if ty.is_some() {
                n.ty = ty;
            }
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Replaces an operator by a new one, which takes over the old one's outputs slot by slot,
    /// with their names, unless it names outputs itself; then the old outputs must be unused.
    /// An empty name is replaced by the old one's, and provenance records the old operator.
    pub fn replace_op(&mut self, old: OpId, mut new: NewOp) -> Result<OpId, GraphError> {
        let o = self.check_op(old)?;
        for v in new.inputs.iter().flatten() {
            self.check_value(*v)?;
        }
        let taken: Vec<Option<ValueId>> = o.outputs.to_vec();
        // The new operator can't take what only the old one makes.
        if let Some(v) = new
            .inputs
            .iter()
            .flatten()
            .find(|&&v| taken.contains(&Some(v)))
        {
            return Err(GraphError::StillUsed(self.value(*v).name.to_string()));
        }
        for attr in &new.attrs {
            self.check_captures(&attr.value)?;
        }
        if new.name.is_empty() {
            new.name = o.name.clone();
        }
        new.from.insert(0, old);
        new.after.get_or_insert(old);
        // An operator without a name is called by its output, which it has for now.
        let provenance = self.derive_op_provenance(&new.from);
        if new.outputs.is_empty() {
            for v in taken.iter().flatten() {
                self.detach_output(*v)?;
            }
            new.outputs = taken
                .iter()
                .map(|v| v.map_or(NewOutput::Absent, NewOutput::Existing))
                .collect();
        } else if let Some(used) = self.used_output(old) {
            return Err(GraphError::StillUsed(used));
        }
        let author = self.author.take();
        let added = self.add_op(new);
        self.author = author;
        let id = added?;
        self.op_mut(id)?.provenance = provenance;
        self.remove_op(old)?;
        Ok(id)
    }

    /// Makes `op` the producer of `value` at an output slot instead of what makes it now. The
    /// value that stood in the slot must be unused; it is removed.
    pub fn move_output(&mut self, value: ValueId, op: OpId, slot: usize) -> Result<(), GraphError> {
        self.check_op(op)?;
        let v = self.check_value(value)?;
        if v.input || v.constant.is_some() || v.outer.is_some() {
            return Err(GraphError::AlreadyProduced(v.name.to_string()));
        }
        let old_producer = v.producer.map(|(p, _)| p);
        if let Some(before) = self.op(op).output(slot).filter(|&b| b != value) {
            // The old producer of `value` may be the one use that is about to go.
            let others = self
                .value(before)
                .uses
                .iter()
                .any(|u| Some(u.op) != old_producer || u.port == Port::Capture);
            if others || self.value(before).outputs > 0 {
                return Err(GraphError::StillUsed(self.value(before).name.to_string()));
            }
            self.detach_output(before)?;
            let uses = self.value(before).uses.clone();
            for u in uses {
                if let Port::Input(slot) = u.port {
                    let taken = self.op_mut(u.op)?.inputs[slot as usize].take();
                    if let Some(taken) = taken {
                        self.detach_use(taken);
                    }
                }
            }
            self.remove_value(before)?;
        }
        if v_has_producer(self, value) {
            self.detach_output(value)?;
        }
        let o = self.op_mut(op)?;
        if o.outputs.len() <= slot {
            o.outputs.resize(slot + 1, None);
        }
        self.attach_output(op, slot, value)?;
        if let Some(p) =
            self.derive_op_provenance(&[op].into_iter().chain(old_producer).collect::<Vec<_>>())
        {
            self.op_mut(op)?.provenance = Some(p);
        }
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Drops the trailing output slots of an operator that nobody asks for, down to `min`.
    pub fn trim_outputs(&mut self, op: OpId, min: usize) -> Result<(), GraphError> {
        loop {
            let o = self.check_op(op)?;
            if o.outputs.len() <= min {
                return Ok(());
            }
            match o.outputs.last() {
                Some(Some(v)) if self.value(*v).is_unused() => {
                    let v = *v;
                    self.detach_output(v)?;
                    self.remove_value(v)?;
                }
                Some(Some(_)) | None => return Ok(()),
                Some(None) => {}
            }
            self.op_mut(op)?.outputs.pop();
            self.touch();
        }
    }

    pub(super) fn used_output(&self, op: OpId) -> Option<String> {
        self.op(op)
            .outputs
            .iter()
            .flatten()
            .map(|&v| self.value(v))
            .find(|v| !v.is_unused())
            .map(|v| v.name.to_string())
    }

    /// Removes an operator and its outputs, which must be unused.
    pub fn remove_op(&mut self, op: OpId) -> Result<(), GraphError> {
        self.check_op(op)?;
        if let Some(used) = self.used_output(op) {
            return Err(GraphError::StillUsed(used));
        }
        self.detach_inputs(op)?;
        for capture in std::mem::take(&mut self.op_mut(op)?.captures) {
            self.detach_use(capture);
        }
        let outputs = self.op(op).outputs.clone();
        for v in outputs.into_iter().flatten() {
            self.detach_output(v)?;
            self.remove_value(v)?;
        }
        self.with_subgraphs.remove(&op.node);
        if let Some(node) = self.net.node_weight_mut(NodeIndex::new(op.index())) {
            *node = Node::Removed;
        }
        self.op_count -= 1;
        self.touch();
        self.sweep();
        Ok(())
    }

    /// Removes a value that nothing takes and no operator makes. A graph input can't be removed.
    pub fn remove_value(&mut self, v: ValueId) -> Result<(), GraphError> {
        let value = self.check_value(v)?;
        if !value.is_unused() || value.producer.is_some() || value.input {
            return Err(GraphError::StillUsed(value.name.to_string()));
        }
        let name = value.name.clone();
        let listed = value.constant.is_some() && !self.listed_inputs.is_empty();
        self.names.remove(&name);
        if listed {
            self.listed_inputs.retain(|&l| l != v);
        }
        if let Some(node) = self.net.node_weight_mut(NodeIndex::new(v.index())) {
            *node = Node::Removed;
        }
        self.value_count -= 1;
        self.touch();
        Ok(())
    }
}

fn v_has_producer(graph: &Graph, v: ValueId) -> bool {
    graph.get_value(v).is_some_and(|v| v.producer.is_some())
}

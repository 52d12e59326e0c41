//! Slots, uses and edges: what keeps the three in step.

use std::fmt;

use petgraph::stable_graph::{EdgeIndex, NodeIndex};
use smallvec::SmallVec;

use crate::op::Op;
use crate::value::{Use, Value};

use super::{Edge, Graph, GraphError, Node, OpId, Port, Slot, ValueId};

impl Graph {
    pub(super) fn no_such(&self, what: &'static str, id: impl fmt::Debug) -> GraphError {
        GraphError::NoSuch {
            what,
            id: format!("{id:?}"),
            graph: self.name.to_string(),
        }
    }

    pub(super) fn check_op(&self, op: OpId) -> Result<&Op, GraphError> {
        self.get_op(op).ok_or_else(|| self.no_such("operator", op))
    }

    pub(super) fn check_value(&self, v: ValueId) -> Result<&Value, GraphError> {
        self.get_value(v).ok_or_else(|| self.no_such("value", v))
    }

    pub(super) fn op_mut(&mut self, op: OpId) -> Result<&mut Op, GraphError> {
        if self.get_op(op).is_none() {
            return Err(self.no_such("operator", op));
        }
        match self.net.node_weight_mut(NodeIndex::new(op.index())) {
            Some(Node::Op(o)) => Ok(o),
            _ => Err(GraphError::TooLarge),
        }
    }

    pub(super) fn value_mut(&mut self, v: ValueId) -> Result<&mut Value, GraphError> {
        if self.get_value(v).is_none() {
            return Err(self.no_such("value", v));
        }
        match self.net.node_weight_mut(NodeIndex::new(v.index())) {
            Some(Node::Value(value)) => Ok(value),
            _ => Err(GraphError::TooLarge),
        }
    }

    pub(super) fn add_edge(&mut self, from: u32, to: u32, port: Port) -> u32 {
        self.live_edges += 1;
        let (from, to) = (NodeIndex::new(from as usize), NodeIndex::new(to as usize));
        self.net.add_edge(from, to, Edge::Port(port)).index() as u32
    }

    pub(super) fn remove_edge(&mut self, edge: u32) {
        if let Some(e) = self.net.edge_weight_mut(EdgeIndex::new(edge as usize)) {
            *e = Edge::Removed;
            self.removed_edges += 1;
            self.live_edges -= 1;
        }
    }

    /// Rebuilds the edges once the removed ones outnumber the live ones: linear work for a
    /// linear number of edits.
    pub(super) fn sweep(&mut self) {
        if self.removed_edges <= self.live_edges + 1024 {
            return;
        }
        self.net.clear_edges();
        self.live_edges = 0;
        self.removed_edges = 0;
        let ops: Vec<OpId> = self.ops().collect();
        for id in ops {
            let op = self.op(id);
            let inputs: SmallVec<[Option<u32>; 4]> =
                op.inputs.iter().map(|s| s.map(|s| s.value.node)).collect();
            let captures: Vec<u32> = op.captures.iter().map(|s| s.value.node).collect();
            let outputs: SmallVec<[Option<ValueId>; 2]> = op.outputs.iter().copied().collect();
            for (i, v) in inputs.into_iter().enumerate() {
                let Some(v) = v else { continue };
                let edge = self.add_edge(v, id.node, Port::Input(i as u32));
                if let Ok(o) = self.op_mut(id)
                    && let Some(Some(s)) = o.inputs.get_mut(i)
                {
                    s.edge = edge;
                }
            }
            for (i, v) in captures.into_iter().enumerate() {
                let edge = self.add_edge(v, id.node, Port::Capture);
                if let Ok(o) = self.op_mut(id) {
                    o.captures[i].edge = edge;
                }
            }
            for (i, v) in outputs.into_iter().enumerate() {
                let Some(v) = v else { continue };
                let edge = self.add_edge(id.node, v.node, Port::Output(i as u32));
                if let Ok(value) = self.value_mut(v) {
                    value.producer_edge = edge;
                }
            }
        }
    }

    /// Records a use on the value's side. The caller checked the value.
    pub(super) fn attach_use(&mut self, v: ValueId, op: OpId, port: Port) -> Slot {
        let edge = self.add_edge(v.node, op.node, port);
        let mut position = 0;
        if let Ok(value) = self.value_mut(v) {
            position = value.uses.len() as u32;
            value.uses.push(Use { op, port });
        }
        Slot {
            value: v,
            position,
            edge,
        }
    }

    /// Removes a use on the value's side; the operator's slot was emptied by the caller.
    pub(super) fn detach_use(&mut self, slot: Slot) {
        self.remove_edge(slot.edge);
        let at = slot.position as usize;
        let Ok(value) = self.value_mut(slot.value) else {
            return;
        };
        value.uses.swap_remove(at);
        // What was last stands at `at` now; its operator must know.
        let Some(moved) = value.uses.get(at).copied() else {
            return;
        };
        let Ok(op) = self.op_mut(moved.op) else {
            return;
        };
        let place = match moved.port {
            Port::Input(i) => op.inputs.get_mut(i as usize).and_then(Option::as_mut),
            Port::Capture => op.captures.iter_mut().find(|s| s.value == slot.value),
            Port::Output(_) => None,
        };
        if let Some(place) = place {
            place.position = slot.position;
        }
    }

    pub(super) fn attach_inputs(
        &mut self,
        op: OpId,
        inputs: &[Option<ValueId>],
    ) -> Result<(), GraphError> {
        for (i, v) in inputs.iter().enumerate() {
            let slot = v.map(|v| self.attach_use(v, op, Port::Input(i as u32)));
            self.op_mut(op)?.inputs.push(slot);
        }
        Ok(())
    }

    pub(super) fn detach_inputs(&mut self, op: OpId) -> Result<(), GraphError> {
        while let Some(slot) = self.op_mut(op)?.inputs.pop() {
            if let Some(slot) = slot {
                self.detach_use(slot);
            }
        }
        Ok(())
    }

    pub(super) fn attach_output(
        &mut self,
        op: OpId,
        slot: usize,
        v: ValueId,
    ) -> Result<(), GraphError> {
        let edge = self.add_edge(op.node, v.node, Port::Output(slot as u32));
        let value = self.value_mut(v)?;
        value.producer = Some((op, slot as u32));
        value.producer_edge = edge;
        self.op_mut(op)?.outputs[slot] = Some(v);
        Ok(())
    }

    pub(super) fn detach_output(&mut self, v: ValueId) -> Result<(), GraphError> {
        let value = self.value_mut(v)?;
        let edge = value.producer_edge;
        if let Some((op, slot)) = value.producer.take() {
            self.remove_edge(edge);
            self.op_mut(op)?.outputs[slot as usize] = None;
        }
        Ok(())
    }
}

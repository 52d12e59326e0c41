//! The invariants of a graph, checked.

use std::collections::BTreeSet;

use petgraph::stable_graph::EdgeIndex;
use petgraph::visit::IntoEdgeReferences;

use crate::value::Use;

use super::{Edge, Graph, Port, ValueId};

impl Graph {
    /// Checks the invariants at the top of this file: `Err` names the first that is broken.
    pub fn check_invariants(&self) -> Result<(), String> {
        let mut live = 0usize;
        for id in self.ops() {
            let op = self.op(id);
            let ports = op
                .inputs
                .iter()
                .enumerate()
                .filter_map(|(i, s)| Some((Port::Input(i as u32), (*s)?)));
            let captures = op.captures.iter().map(|s| (Port::Capture, *s));
            for (port, slot) in ports.chain(captures) {
                let value = self
                    .get_value(slot.value)
                    .ok_or(format!("{id:?} takes a removed value"))?;
                if value.uses.get(slot.position as usize) != Some(&Use { op: id, port }) {
                    return Err(format!(
                        "{id:?} {port:?} and the uses of \"{}\" disagree",
                        value.name
                    ));
                }
                self.check_edge(slot.edge, slot.value.node, id.node, port)?;
                live += 1;
            }
            for (i, v) in op.outputs.iter().enumerate() {
                let Some(v) = v else { continue };
                let value = self
                    .get_value(*v)
                    .ok_or(format!("{id:?} makes a removed value"))?;
                if value.producer != Some((id, i as u32)) {
                    return Err(format!(
                        "{id:?} and the producer of \"{}\" disagree",
                        value.name
                    ));
                }
                self.check_edge(value.producer_edge, id.node, v.node, Port::Output(i as u32))?;
                live += 1;
            }
            let listed: BTreeSet<ValueId> = op.captures().collect();
            let taken: BTreeSet<ValueId> = op
                .subgraphs()
                .flat_map(|g| g.outer_values().filter_map(|v| g.value(v).outer))
                .collect();
            if !listed.is_subset(&taken) {
                return Err(format!("{id:?} lists a capture that no graph takes"));
            }
            if op.has_subgraphs() != self.with_subgraphs.contains(&id.node) {
                return Err(format!(
                    "{id:?} is missing among the operators with subgraphs"
                ));
            }
            for graph in op.subgraphs() {
                graph.check_invariants()?;
                for v in graph.outer_values() {
                    let outer = graph.value(v).outer;
                    let outside = outer.and_then(|v| self.get_value(v));
                    if outside.is_none_or(|o| o.name != graph.value(v).name) {
                        return Err(format!(
                            "the capture \"{}\" has another name outside",
                            graph.value(v).name
                        ));
                    }
                    if outer.is_none_or(|v| !listed.contains(&v)) {
                        return Err(format!(
                            "{id:?} doesn't list the capture \"{}\"",
                            graph.value(v).name
                        ));
                    }
                }
            }
        }
        let mut uses = 0usize;
        for id in self.values() {
            let value = self.value(id);
            if self.names.get(&value.name) != Some(&id.node) {
                return Err(format!(
                    "the name \"{}\" doesn't lead to its value",
                    value.name
                ));
            }
            uses += value.uses.len() + usize::from(value.producer.is_some());
            let listed = self.outputs.iter().filter(|&&o| o == id).count();
            if listed != value.outputs as usize || self.inputs.contains(&id) != value.input {
                return Err(format!("inputs or outputs and \"{}\" disagree", value.name));
            }
        }
        let edges = self
            .net
            .edge_references()
            .filter(|e| *e.weight() != Edge::Removed)
            .count();
        if live != uses || live != edges || live != self.live_edges {
            return Err(format!("{live} ports, {uses} uses, {edges} edges"));
        }
        Ok(())
    }

    pub(super) fn check_edge(
        &self,
        edge: u32,
        from: u32,
        to: u32,
        port: Port,
    ) -> Result<(), String> {
        let index = EdgeIndex::new(edge as usize);
        let ends = self
            .net
            .edge_endpoints(index)
            .map(|(a, b)| (a.index() as u32, b.index() as u32));
        if ends != Some((from, to)) || self.net.edge_weight(index) != Some(&Edge::Port(port)) {
            return Err(format!("no edge from {from} to {to} at {port:?}"));
        }
        Ok(())
    }
}

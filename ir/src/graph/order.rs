//! Orders and neighbourhoods, and the graph as petgraph sees it.

use std::collections::BinaryHeap;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{EdgeFiltered, EdgeRef, FilterEdge, FilterNode};

use crate::op::Op;

use super::{Edge, Graph, GraphError, Node, OpId, ValueId};

impl Graph {
    /// The operators so that each comes after what it takes values from; where that leaves
    /// a choice, in the order of the file. Fails when there is a cycle.
    pub fn topological_order(&self) -> Result<Vec<OpId>, GraphError> {
        let mut order: Vec<(u64, u32)> = self.ops().map(|op| (self.op(op).rank, op.node)).collect();
        order.sort_unstable();
        let mut place = vec![u32::MAX; self.id_bound()];
        for (i, &(_, node)) in order.iter().enumerate() {
            place[node as usize] = i as u32;
        }
        let id = |node| OpId {
            graph: self.id,
            node,
        };
        let dependencies = |op: &Op, f: &mut dyn FnMut(u32)| {
            for v in op.inputs().flatten().chain(op.captures()) {
                if let Some((producer, _)) = self.value(v).producer {
                    f(place[producer.index()]);
                }
            }
        };
        let sorted = order.iter().enumerate().all(|(i, &(_, node))| {
            let mut before = true;
            dependencies(self.op(id(node)), &mut |p| before &= (p as usize) < i);
            before
        });
        if sorted {
            return Ok(order.into_iter().map(|(_, node)| id(node)).collect());
        }
        // Kahn's algorithm; among the ready operators the one that stands first in the file.
        let mut waiting = vec![0u32; order.len()];
        let mut ready = BinaryHeap::new();
        for (i, &(_, node)) in order.iter().enumerate() {
            dependencies(self.op(id(node)), &mut |_| waiting[i] += 1);
            if waiting[i] == 0 {
                ready.push(std::cmp::Reverse(i as u32));
            }
        }
        let mut out = Vec::with_capacity(order.len());
        while let Some(std::cmp::Reverse(i)) = ready.pop() {
            let op = id(order[i as usize].1);
            out.push(op);
            for v in self.op(op).outputs.iter().flatten() {
                for u in &self.value(*v).uses {
                    let c = place[u.op.index()];
                    waiting[c as usize] -= 1;
                    if waiting[c as usize] == 0 {
                        ready.push(std::cmp::Reverse(c));
                    }
                }
            }
        }
        if out.len() < order.len() {
            let stuck = waiting.iter().position(|&w| w > 0).unwrap_or(0);
            return Err(GraphError::Cycle {
                graph: self.name.to_string(),
                through: self.op_label(id(order[stuck].1)).to_string(),
            });
        }
        Ok(out)
    }

    /// The graph as petgraph's algorithms take it, by reference and read-only. Only live edges
    /// are seen; what was removed is still there as nodes without edges, of the weight
    /// [`Node::Removed`]. Where they are in the way, wrap a reference to the view in petgraph's
    /// `NodeFiltered` with [`Graph::live_nodes`].
    pub fn petgraph(&self) -> EdgeFiltered<&StableDiGraph<Node, Edge, u32>, LiveEdges> {
        EdgeFiltered(&self.net, LiveEdges)
    }

    /// A filter for petgraph that lets operators and values pass, but not what was removed.
    pub fn live_nodes(&self) -> LiveNodes<'_> {
        LiveNodes(&self.net)
    }

    /// The operators that directly take a value made by `op`, each once, in order.
    pub fn successors(&self, op: OpId) -> Vec<OpId> {
        let mut out: Vec<OpId> = self
            .get_op(op)
            .into_iter()
            .flat_map(|o| o.outputs.iter().flatten())
            .flat_map(|&v| self.value(v).uses.iter().map(|u| u.op))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The operators that make what `op` takes, each once, in order.
    pub fn predecessors(&self, op: OpId) -> Vec<OpId> {
        let mut out: Vec<OpId> = self
            .petgraph_neighbors(op, Direction::Incoming)
            .filter_map(|v| self.producer(v))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    pub(super) fn petgraph_neighbors(
        &self,
        op: OpId,
        direction: Direction,
    ) -> impl Iterator<Item = ValueId> + '_ {
        self.net
            .edges_directed(NodeIndex::new(op.index()), direction)
            .filter(|e| *e.weight() != Edge::Removed)
            .map(move |e| {
                let other = if direction == Direction::Incoming {
                    e.source()
                } else {
                    e.target()
                };
                ValueId {
                    graph: self.id,
                    node: other.index() as u32,
                }
            })
    }
}

/// Lets petgraph see live edges only.
#[derive(Clone, Copy, Debug)]
pub struct LiveEdges;

impl<'a> FilterEdge<petgraph::stable_graph::EdgeReference<'a, Edge, u32>> for LiveEdges {
    fn include_edge(&self, edge: petgraph::stable_graph::EdgeReference<'a, Edge, u32>) -> bool {
        *edge.weight() != Edge::Removed
    }
}

/// Lets petgraph see live nodes only.
#[derive(Clone, Copy, Debug)]
pub struct LiveNodes<'a>(&'a StableDiGraph<Node, Edge, u32>);

impl FilterNode<NodeIndex<u32>> for LiveNodes<'_> {
    fn include_node(&self, node: NodeIndex<u32>) -> bool {
        !matches!(self.0.node_weight(node), None | Some(Node::Removed))
    }
}

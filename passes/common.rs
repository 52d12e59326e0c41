//! What several passes need.

use std::collections::HashMap;

use paring_ir::{Graph, GraphError, Model, NewOp, OpId, Tensor, ValueId};

/// The captured values, over all nested graphs, that stand for a constant of an enclosing graph.
pub(crate) type Captured = HashMap<ValueId, Tensor>;

/// Finds what captured values are constant. Tensors are shared, not copied.
pub(crate) fn captured_constants(model: &Model) -> Captured {
    let mut found = Captured::new();
    if model.has_subgraphs() {
        collect_captured(&model.graph, &mut found);
    }
    found
}

fn collect_captured(graph: &Graph, found: &mut Captured) {
    for op in graph.ops_with_subgraphs() {
        for inner in graph.op(op).subgraphs() {
            for v in inner.outer_values() {
                let outer = inner.value(v).captured_from();
                if let Some(tensor) = outer.and_then(|o| constant(graph, found, o)).cloned() {
                    found.insert(v, tensor);
                }
            }
            collect_captured(inner, found);
        }
    }
}

/// The dense tensor of a value that is constant, here or in an enclosing graph.
pub(crate) fn constant<'a>(
    graph: &'a Graph,
    captured: &'a Captured,
    v: ValueId,
) -> Option<&'a Tensor> {
    graph.tensor(v).or_else(|| captured.get(&v))
}

/// Whether the condition holds for any operator of the main graph or the graphs inside it.
pub(crate) fn any_op(model: &Model, mut holds: impl FnMut(&Graph, OpId) -> bool) -> bool {
    let mut found = false;
    model.for_each_graph(&mut |graph| {
        found = found || graph.ops().any(|op| holds(graph, op));
    });
    found
}

/// Makes an operator's results come from a copy of a graph instead, and removes the operator.
/// The results keep their names. What stands in for outputs that can't be renamed is an Identity.
/// For `bound` and `prefix` see [`Graph::splice`]. Returns the new operators.
pub(crate) fn inline_at(
    graph: &mut Graph,
    op: OpId,
    body: &Graph,
    bound: &[(ValueId, Option<ValueId>)],
    prefix: &str,
) -> Result<Vec<OpId>, GraphError> {
    let spliced = graph.splice(body, op, bound, prefix)?;
    let wanted: Vec<Option<ValueId>> = graph.op(op).outputs().to_vec();
    let mut taken: HashMap<ValueId, ValueId> = HashMap::new();
    for (old, made) in wanted.into_iter().zip(spliced.outputs) {
        let (Some(old), Some(made)) = (old, made) else {
            continue;
        };
        let earlier = taken.get(&made).copied();
        let made = earlier.unwrap_or(made);
        let producer = graph.value(made).producer();
        let own = producer.filter(|(p, _)| spliced.ops.binary_search(p).is_ok());
        match own {
            Some((p, slot)) if earlier.is_none() => {
                graph.set_type(made, None)?;
                graph.replace_value(made, old)?;
                graph.move_output(old, p, slot as usize)?;
                taken.insert(made, old);
            }
            _ if graph.can_replace(old, made) => graph.replace_value(old, made)?,
            _ => {
                let copy = NewOp::new("Identity").input(made).output("copy");
                let copy = graph.add_op(copy.from([op]).beside(op))?;
                graph.move_output(old, copy, 0)?;
            }
        }
    }
    graph.remove_op(op)?;
    Ok(spliced.ops)
}

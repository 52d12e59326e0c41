//! Edits that several passes make: constants and operators added, operators replaced or bypassed,
//! and the removal of what a rewrite leaves unused.

use std::collections::HashMap;

use paring_ir::{Graph, GraphError, NewOp, OpId, PassError, Tensor, ValueId};

/// A constant of one dimension with these integers.
pub(crate) fn add_ints(
    graph: &mut Graph,
    hint: &str,
    ints: &[i64],
    sources: &[ValueId],
) -> Result<ValueId, GraphError> {
    let v = graph.add_constant(hint, Tensor::vector(ints))?;
    graph.set_tensor_sources(v, sources)?;
    Ok(v)
}

/// A `Squeeze` or `Unsqueeze` of a value over these axes, in the form of the opset.
pub(crate) fn axes_op(
    graph: &mut Graph,
    opset: i64,
    op_type: &str,
    input: ValueId,
    axes: &[i64],
    hint: &str,
) -> Result<NewOp, GraphError> {
    let new = NewOp::new(op_type).input(input);
    if opset < 13 {
        return Ok(new.attr("axes", axes));
    }
    let axes = add_ints(graph, &format!("{hint}_axes"), axes, &[])?;
    Ok(new.input(axes))
}

/// The name of an operator's first output, for hints of names.
pub(crate) fn output_name(graph: &Graph, op: OpId) -> String {
    graph
        .get_op(op)
        .and_then(|o| o.output(0))
        .and_then(|v| graph.get_value(v))
        .map_or_else(String::new, |v| v.name().to_string())
}

/// The standard operator of one of the types `inner` whose output an operator of type `outer`
/// takes first, and its own first input: what rewrites of two operators in a row look at.
pub(crate) fn pair(
    graph: &Graph,
    op: OpId,
    outer: &str,
    inner: &[&str],
) -> Option<(OpId, ValueId)> {
    let o = graph.op(op);
    if !o.is(outer) || o.output(0).is_none() {
        return None;
    }
    let before = graph.producer(o.input(0)?)?;
    let b = graph.get_op(before)?;
    inner.iter().any(|t| b.is(t)).then_some(())?;
    Some((before, b.input(0)?))
}

/// Removes an operator when nothing uses its outputs, and in turn the operators and constants
/// that only it used.
pub(crate) fn remove_unused(graph: &mut Graph, op: OpId) -> Result<(), GraphError> {
    let mut waiting = vec![op];
    while let Some(op) = waiting.pop() {
        let Some(o) = graph.get_op(op) else { continue };
        if o.has_subgraphs()
            || o.outputs()
                .iter()
                .flatten()
                .any(|&v| !graph.value(v).is_unused())
        {
            continue;
        }
        let inputs: Vec<ValueId> = o.inputs().flatten().collect();
        graph.remove_op(op)?;
        for v in inputs {
            waiting.extend(unused_producer(graph, v)?);
        }
    }
    Ok(())
}

/// Removes a constant that nothing uses, or the operator that makes a value that nothing uses, and
/// in turn what only it used.
pub(crate) fn remove_unused_value(graph: &mut Graph, v: ValueId) -> Result<(), GraphError> {
    match unused_producer(graph, v)? {
        Some(producer) => remove_unused(graph, producer),
        None => Ok(()),
    }
}

/// Removes a constant that nothing uses; the producer of another unused value is the answer.
fn unused_producer(graph: &mut Graph, v: ValueId) -> Result<Option<OpId>, GraphError> {
    let Some(value) = graph.get_value(v) else {
        return Ok(None);
    };
    if !value.is_unused() {
        return Ok(None);
    }
    // An initializer that a file of IR version 3 lists as an input stays listed.
    if value.as_constant().is_some() && graph.listed_inputs().is_empty() {
        graph.remove_value(v)?;
        return Ok(None);
    }
    Ok(graph.producer(v))
}

/// Makes everything that takes the output of `op` take `source`, which is the same tensor. Where
/// a graph output can't be renamed (its source is a graph input or another output), the operator
/// becomes an `Identity`; that is worth it only when `op` stands for more than one operator.
pub(crate) fn bypass(
    graph: &mut Graph,
    op: OpId,
    source: ValueId,
    from: &[OpId],
) -> Result<(), GraphError> {
    let o = graph.op(op);
    let inputs: Vec<ValueId> = o.inputs().flatten().collect();
    let Some(out) = o.output(0) else {
        return Ok(());
    };
    if graph.can_replace(out, source) {
        graph.replace_value(out, source)?;
        return remove_unused(graph, op);
    }
    let identity = NewOp::new("Identity")
        .input(source)
        .from(from.iter().copied());
    graph.replace_op(op, identity)?;
    for v in inputs {
        remove_unused_value(graph, v)?;
    }
    Ok(())
}

/// Replaces an operator and removes what only it used.
pub(crate) fn replace(graph: &mut Graph, op: OpId, new: NewOp) -> Result<OpId, GraphError> {
    let inputs: Vec<ValueId> = graph.op(op).inputs().flatten().collect();
    let id = graph.replace_op(op, new)?;
    for v in inputs {
        remove_unused_value(graph, v)?;
    }
    Ok(id)
}

/// Removes operators that nothing needs any more, consumers before producers.
pub(crate) fn remove_all(graph: &mut Graph, mut ops: Vec<OpId>) -> Result<(), PassError> {
    while !ops.is_empty() {
        let before = ops.len();
        let mut left = Vec::new();
        for op in ops {
            let unused = graph
                .op(op)
                .outputs()
                .iter()
                .flatten()
                .all(|&v| graph.value(v).is_unused());
            if unused {
                graph.remove_op(op)?;
            } else {
                left.push(op);
            }
        }
        // What is still used stays; the matcher has seen to it that this does not happen.
        if left.len() == before {
            break;
        }
        ops = left;
    }
    Ok(())
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

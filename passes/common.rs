//! What passes of all kinds need: how they go through a model, and which values are constants.

use std::collections::HashMap;

use paring_ir::{Changed, Graph, Model, OpId, OptionSet, PassContext, PassError, Tensor, ValueId};

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

/// What passes do at an operator.
type Visit<'v> =
    &'v mut dyn FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<Changed, PassError>;

/// Calls `visit` for each operator of every graph, unless the options leave it out or an earlier
/// call removed it: innermost graphs first, each graph in topological order. A user can cancel
/// in between. The answer is whether any call changed something.
pub(crate) fn visit_ops<T>(
    model: &mut Model,
    cx: &mut PassContext<'_>,
    options: &OptionSet<T>,
    mut visit: impl FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<Changed, PassError>,
) -> Result<Changed, PassError> {
    visit_all(model, cx, options, false, &mut visit)
}

/// Like [`visit_ops`], each graph in the opposite order: of patterns that contain each other the
/// longest is seen first.
pub(crate) fn visit_ops_back<T>(
    model: &mut Model,
    cx: &mut PassContext<'_>,
    options: &OptionSet<T>,
    mut visit: impl FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<Changed, PassError>,
) -> Result<Changed, PassError> {
    visit_all(model, cx, options, true, &mut visit)
}

fn visit_all<T>(
    model: &mut Model,
    cx: &mut PassContext<'_>,
    options: &OptionSet<T>,
    backwards: bool,
    visit: Visit<'_>,
) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    model.edit_graphs(&mut |graph| {
        let mut order = graph.topological_order()?;
        if backwards {
            order.reverse();
        }
        changed |= visit_each(graph, cx, order, Some(options), visit)?;
        Ok::<(), PassError>(())
    })?;
    Ok(changed)
}

/// Calls `visit` for each operator of one graph in topological order, unless an earlier call
/// removed it. It is for passes whose options are about other operators than the visited one.
pub(crate) fn visit_graph(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    mut visit: impl FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<Changed, PassError>,
) -> Result<Changed, PassError> {
    let order = graph.topological_order()?;
    visit_each(graph, cx, order, None::<&OptionSet<()>>, &mut visit)
}

/// How often a walk over operators looks whether the user asked to stop.
const CANCEL_INTERVAL: usize = 1024;

fn visit_each<T>(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    order: Vec<OpId>,
    options: Option<&OptionSet<T>>,
    visit: Visit<'_>,
) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for (i, op) in order.into_iter().enumerate() {
        if i % CANCEL_INTERVAL == 0 {
            cx.check_cancelled()?;
        }
        let left_out = |graph: &Graph| options.is_some_and(|o| o.for_op(graph, op).is_skip());
        if graph.get_op(op).is_some() && !left_out(graph) {
            changed |= visit(graph, cx, op)?;
        }
    }
    Ok(changed)
}

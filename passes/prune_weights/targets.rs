//! Which weights are pruned, and why the others are not.

use std::collections::HashSet;

use paring_ir::schema::{self, Class, Role};
use paring_ir::{Graph, Model, OpId, OptionSet, PassContext, PassError, Port, Tensor, ValueId};

use super::options::{Distribution, Options};
use super::pattern::{Grid, Pattern};
use crate::layers::Layer;

/// A weight to prune, and the first operator that takes it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) layer: Layer,
    /// The other layers that take the same weight.
    pub(super) others: Vec<Layer>,
    pub(super) tensor: Tensor,
    pub(super) grid: Grid,
    pub(super) pattern: Pattern,
    pub(super) sparsity: f64,
    /// The most zeros.
    pub(super) cap: usize,
    /// It is pruned by itself, whatever happens to the others.
    pub(super) apart: bool,
}

/// A share of a number of elements, rounded down.
pub(super) fn share(share: f64, elements: usize) -> usize {
    ((elements as f64 * share.clamp(0.0, 1.0)).floor() as usize).min(elements)
}

/// The weights to prune, in the order of the data flow, inner graphs after outer ones.
pub(super) fn targets(
    model: &Model,
    options: &OptionSet<Options>,
    cx: &mut PassContext<'_>,
) -> Result<Vec<Target>, PassError> {
    let mut targets = Vec::new();
    let mut first = !options.whole().include_first;
    let mut failed = None;
    model.for_each_graph(&mut |graph| {
        let mut seen = HashSet::new();
        let order = match graph.topological_order() {
            Ok(order) => order,
            Err(e) => {
                failed = Some(e);
                return;
            }
        };
        for op in order {
            let is_first = first && graph.op(op).is("Conv");
            first &= !is_first;
            for slot in weight_slots(graph, op) {
                let Some(weight) = graph.op(op).input(slot) else {
                    continue;
                };
                if seen.insert(weight) {
                    targets.extend(target(graph, (op, slot, weight), is_first, options, cx));
                }
            }
        }
    });
    match failed {
        Some(e) => Err(e.into()),
        None => Ok(targets),
    }
}

/// The target of a weight, unless there is a reason to leave it.
fn target(
    graph: &Graph,
    (op, slot, weight): (OpId, usize, ValueId),
    is_first: bool,
    options: &OptionSet<Options>,
    cx: &mut PassContext<'_>,
) -> Option<Target> {
    let own = options.for_op(graph, op).options()?;
    let value = graph.value(weight);
    if value.is_input() && value.initializer().is_some() {
        cx.missed(
            graph,
            op,
            "overridable",
            "a graph input may override the weight",
        );
        return None;
    }
    let tensor = value.as_tensor()?.clone();
    let reason = reason_to_stay(graph, (op, slot, weight), &tensor, is_first, own);
    if let Some((code, why)) = reason {
        cx.missed(graph, op, code, why);
        return None;
    }
    let Some(layer) = Layer::of(graph, op, slot) else {
        let why = format!("the weight of shape {:?} does not fit", tensor.dims());
        cx.missed(graph, op, "odd-weight", why);
        return None;
    };
    let whole = options.whole();
    let others = graph.sorted_uses(weight).into_iter().filter_map(|u| {
        let Port::Input(slot) = u.port else {
            return None;
        };
        Layer::of(graph, u.op, slot as usize).filter(|l| (l.op, l.slot) != (layer.op, layer.slot))
    });
    Some(Target {
        others: others.collect(),
        grid: Grid::of(&layer),
        layer,
        cap: share(own.max_layer_sparsity, tensor.len()),
        sparsity: own.sparsity.clamp(0.0, 1.0),
        pattern: own.pattern,
        apart: (whole.distribution == Distribution::Uniform && whole.budget.is_empty())
            || own.sparsity != whole.sparsity
            || own.pattern != whole.pattern
            || matches!(own.pattern, Pattern::NOfM { .. }),
        tensor,
    })
}

fn reason_to_stay(
    graph: &Graph,
    (op, slot, weight): (OpId, usize, ValueId),
    tensor: &Tensor,
    is_first: bool,
    options: &Options,
) -> Option<(&'static str, String)> {
    let depthwise = || {
        schema::weight_layout_at(graph.op(op), slot, tensor.rank())
            .is_some_and(|layout| layout.is_depthwise(tensor.dims()))
    };
    let taken_otherwise = || {
        graph.sorted_uses(weight).iter().any(|u| match u.port {
            Port::Input(slot) => !weight_slots(graph, u.op).contains(&(slot as usize)),
            _ => true,
        })
    };
    if !tensor.dtype().is_float() {
        let why = format!("the weight is of type {}", tensor.dtype());
        Some(("element-type", why))
    } else if graph.value(weight).is_output() {
        Some(("graph-output", "the weight is a graph output".to_owned()))
    } else if taken_otherwise() {
        let why = "something that is no such layer takes the weight too";
        Some(("shared", why.to_owned()))
    } else if is_first {
        let why = "it is the first convolution; include-first prunes it";
        Some(("first", why.to_owned()))
    } else if !options.include_depthwise && depthwise() {
        let why = "it is depthwise; include-depthwise prunes it";
        Some(("depthwise", why.to_owned()))
    } else if tensor.len() < options.min_elements.max(1) {
        let why = format!("{} elements are fewer than min-elements", tensor.len());
        Some(("small", why))
    } else {
        None
    }
}

/// The slots of an operator that take weights which can be pruned.
fn weight_slots(graph: &Graph, op: OpId) -> Vec<usize> {
    let o = graph.op(op);
    let Some(known) = schema::of(o) else {
        return Vec::new();
    };
    match known.class {
        // A constant on either side of a product is a weight.
        Class::Linear => schema::weight_slots(o)
            .into_iter()
            .filter(|&slot| {
                o.input(slot)
                    .is_some_and(|v| graph.value(v).initializer().is_some())
            })
            .collect(),
        Class::Recurrent => (0..o.input_count())
            .filter(|&slot| matches!(known.role(slot), Role::Weight | Role::RecurrentWeight))
            .collect(),
        _ => Vec::new(),
    }
}

//! What both models cost, all in all and by operator type.

use std::collections::{BTreeMap, HashMap};

use paring_ir::analysis::{AnalysisCache, Constants, CostOptions, Costs, structure};
use paring_ir::schema::{self, Class};
use paring_ir::{Graph, GraphId, Model, Port, ValueId};

use super::net::type_name;
use super::tensors::graphs_of;
use super::{Totals, TypeTotals};
use crate::data::ShapeOptions;
use crate::inspect::cost_options;

/// The totals of one model.
pub(super) struct Side {
    pub(super) total: Totals,
    pub(super) assumed: bool,
    by_type: BTreeMap<String, Totals>,
}

/// What a model costs. Counting zeros reads every parameter.
pub(super) fn side(model: &Model, constants: &Constants, cache: &mut AnalysisCache) -> Side {
    let options = CostOptions {
        zeros: true,
        ..cost_options(model, &ShapeOptions::default())
    };
    let costs = cache.get_with::<Costs>(model, &options);
    let cost = costs.total();
    let mut by_type: BTreeMap<String, Totals> = BTreeMap::new();
    for (op_type, n) in &cost.operators {
        by_type.entry(op_type.clone()).or_default().nodes = *n as u64;
    }
    model.for_each_graph(&mut |graph| {
        for id in graph.ops() {
            let op = graph.op(id);
            // Control flow does the work of what it runs, which is counted where it stands.
            if op.has_subgraphs() {
                continue;
            }
            let of_op = costs.op(id);
            if let Some(macs) = of_op.macs.filter(|&m| m > 0) {
                let total = by_type.entry(type_name(op)).or_default();
                total.macs = total.macs.saturating_add(macs);
                let effective = of_op.effective_macs.unwrap_or(macs);
                total.effective_macs = total.effective_macs.saturating_add(effective);
            }
        }
    });
    let consumers = Consumers::new(model);
    for &v in constants.roots() {
        if let Some(w) = costs.weight(v) {
            let total = by_type.entry(consumers.op_type(v)).or_default();
            total.parameters = total.parameters.saturating_add(w.elements);
            total.zeros = total.zeros.saturating_add(w.zeros);
            total.bytes = total.bytes.saturating_add(w.bytes);
        }
    }
    Side {
        total: Totals {
            nodes: cost.nodes,
            parameters: cost.parameters,
            zeros: cost.zeros.unwrap_or(0),
            bytes: cost.weight_bytes,
            macs: cost.macs,
            effective_macs: cost.effective_macs.unwrap_or(cost.macs),
        },
        assumed: cost.macs_assumed || cost.macs_unknown > 0,
        by_type,
    }
}

/// The totals of both, type by type.
pub(super) fn by_type(a: &Side, b: &Side) -> Vec<TypeTotals> {
    let mut names: Vec<&String> = a.by_type.keys().chain(b.by_type.keys()).collect();
    names.sort();
    names.dedup();
    let of = |side: &Side, name: &String| side.by_type.get(name).copied().unwrap_or_default();
    names
        .into_iter()
        .map(|name| TypeTotals {
            op_type: name.clone(),
            before: of(a, name),
            after: of(b, name),
        })
        .collect()
}

/// Finds the operator that computes with a constant.
struct Consumers<'a> {
    graphs: HashMap<GraphId, &'a Graph>,
    /// Inside graphs of operators: what stands for a value of the enclosing graph.
    inner: HashMap<ValueId, ValueId>,
}

impl<'a> Consumers<'a> {
    fn new(model: &'a Model) -> Consumers<'a> {
        let graphs = graphs_of(model);
        let mut inner = HashMap::new();
        model.for_each_graph(&mut |graph| {
            for v in graph.outer_values() {
                if let Some(outer) = graph.value(v).captured_from() {
                    inner.entry(outer).or_insert(v);
                }
            }
        });
        Consumers { graphs, inner }
    }

    fn op_type(&self, value: ValueId) -> String {
        const STEPS: usize = 16;
        let unused = || "(no operator)".to_owned();
        let mut v = value;
        let mut last = None;
        for _ in 0..STEPS {
            let Some(graph) = self.graphs.get(&v.graph()) else {
                break;
            };
            let Some(u) = graph.sorted_uses(v).first().copied() else {
                break;
            };
            if u.port == Port::Capture {
                match self.inner.get(&v) {
                    Some(&w) => v = w,
                    None => break,
                }
                continue;
            }
            let op = graph.op(u.op);
            last = Some(type_name(op));
            let class = schema::of(op).map(|k| k.class);
            let passes_on = structure::is_transparent(op)
                || matches!(class, Some(Class::Layout | Class::Quantize));
            match op.output(0) {
                Some(next) if passes_on && !graph.value(next).uses().is_empty() => v = next,
                _ => break,
            }
        }
        last.unwrap_or_else(unused)
    }
}

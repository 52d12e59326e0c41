//! Where quantization goes: which layers run in integers, and which values are quantized.
//!
//! A value is quantized when a layer that runs in integers takes it, or when such a layer makes
//! it and its engine gives nothing but bytes. The value meant is the one after the activation
//! that is one with the layer (Conv and its Clip), never the one between them. Operators of the
//! profile's `joins` (sums, pooling) and `passes-through` (reshapes, max pooling) carry bytes
//! from one layer to the next; they are taken in only where bytes come in and bytes are wanted.
//! Everything else keeps floats, also beside a quantized value: what a float operator makes is
//! given to other float operators as it is.

use std::collections::{BTreeMap, BTreeSet};

use paring_ir::schema::{self, Role};
use paring_ir::{DType, Graph, OpId, PassError, Port, ValueId};

use crate::layers::{Layer, layers_of};

use super::profile::{LayerRule, OutputForm, Profile};

/// A layer that runs in integers.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) layer: Layer,
    /// The activation that it takes, before quantization.
    pub(crate) input: ValueId,
    /// The value after the operators that are one with the layer.
    pub(crate) end: ValueId,
    /// Whether `end` is quantized for the layer's sake.
    pub(crate) gives_bytes: bool,
}

/// A value that is quantized.
#[derive(Clone, Debug)]
pub(crate) struct Quantized {
    pub(crate) value: ValueId,
    /// Values of one group have the same scale.
    pub(crate) group: usize,
    /// Whether an integer operator makes it, so that everything that takes it gets bytes. Else
    /// only the operators of `takers` do.
    pub(crate) bytes: bool,
    /// The operators that take bytes, and the slots.
    pub(crate) takers: Vec<(OpId, usize)>,
    /// Whether its distribution counts for its group: it is not handed on from another member.
    pub(crate) source: bool,
}

/// Where quantization goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Placement {
    /// In the order of the data.
    pub(crate) layers: Vec<Placed>,
    /// In the order of the data.
    pub(crate) values: Vec<Quantized>,
}

/// Why an operator is left as it is.
pub(crate) struct Left {
    pub(crate) op: OpId,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// The layers that could run in integers, whether or not the user wants them to.
pub(crate) fn candidates(
    graph: &Graph,
    profile: &Profile,
    least_elements: usize,
    rows: &dyn Fn(&Graph, &Layer) -> Option<usize>,
) -> Result<(Vec<Placed>, Vec<Left>), PassError> {
    let (mut placed, mut left) = (Vec::new(), Vec::new());
    let mut bytes: BTreeSet<ValueId> = BTreeSet::new();
    for op in graph.topological_order()? {
        let Some(rule) = rule(graph, op, profile) else {
            continue;
        };
        let between =
            rule.always_between_bytes && graph.op(op).input(0).is_some_and(|v| bytes.contains(&v));
        let least = if between { 0 } else { least_elements };
        match candidate(graph, op, rule, least, rows) {
            Ok(p) => {
                if p.gives_bytes {
                    bytes.insert(p.end);
                }
                // What it takes is quantized for it.
                bytes.insert(p.input);
                placed.push(p);
            }
            Err((code, message)) => left.push(Left { op, code, message }),
        }
    }
    Ok((placed, left))
}

fn rule<'p>(graph: &Graph, op: OpId, profile: &'p Profile) -> Option<&'p LayerRule> {
    let o = graph.op(op);
    profile
        .layers
        .get(&**o.op_type())
        .filter(|_| o.domain().is_empty())
}

type Reason = (&'static str, String);

fn candidate(
    graph: &Graph,
    op: OpId,
    rule: &LayerRule,
    least_elements: usize,
    rows: &dyn Fn(&Graph, &Layer) -> Option<usize>,
) -> Result<Placed, Reason> {
    let o = graph.op(op);
    let refuse = |code, text: &str| Err((code, text.to_owned()));
    let layer = match layers_of(graph, op).into_iter().next() {
        Some(layer) if layer.slot == 1 => layer,
        Some(_) => return refuse("weight-on-the-left", "the weight stands on the left"),
        None if graph.input_tensor(op, 1).is_some() => {
            return refuse("odd-weight", "the weight has no form that is known");
        }
        None => return refuse("no-constant-weight", "the weight is not constant"),
    };
    let (Some(input), Some(result)) = (o.input(0), o.output(0)) else {
        return refuse("no-input", "an input is absent");
    };
    let weight = graph.value(layer.weight);
    let tensor = weight.as_tensor().map(|t| t.dtype());
    if tensor != Some(DType::F32) {
        return refuse("element-type", "the weight is not of type float");
    }
    if graph.tensor(input).is_some() {
        return refuse("constant-input", "both operands are constant");
    }
    if layer.len() < least_elements {
        let why = format!("{} weights are fewer than min-elements", layer.len());
        return Err(("small", why));
    }
    if layer.is_depthwise() && !rule.depthwise {
        return refuse(
            "depthwise",
            "the target runs depthwise convolutions faster as floats",
        );
    }
    if o.is("Gemm") && o.int_or("transA", 0) != 0 {
        return refuse("transposed-input", "the activation is transposed (transA)");
    }
    if rows(graph, &layer).is_some_and(|n| n < rule.min_rows) {
        return refuse(
            "few-rows",
            "the target runs products of so few rows faster as floats",
        );
    }
    if weight.is_output() {
        return refuse("graph-output", "the weight is a graph output");
    }
    let end = end_of(graph, result, &rule.fuses);
    Ok(Placed {
        layer,
        input,
        end,
        gives_bytes: rule.output == OutputForm::Quantized,
    })
}

/// The value after the operators that are one with the one that makes `value`.
fn end_of(graph: &Graph, value: ValueId, fuses: &[String]) -> ValueId {
    let mut end = value;
    while let Some((next, Port::Input(0))) = graph.single_consumer(end) {
        let o = graph.op(next);
        let known = fuses.iter().any(|t| o.is(t))
            && (!o.is("Clip") || schema::clip_bounds(graph, o).is_some());
        let Some(output) = o.output(0).filter(|_| known) else {
            break;
        };
        end = output;
    }
    end
}

/// Where quantization goes when these layers run in integers.
pub(crate) fn place(
    graph: &Graph,
    profile: &Profile,
    layers: Vec<Placed>,
) -> Result<Placement, PassError> {
    let order = graph.topological_order()?;
    let mut search = Search {
        graph,
        profile,
        ends: layers
            .iter()
            .filter(|p| p.gives_bytes)
            .map(|p| p.end)
            .collect(),
        inputs: layers.iter().map(|p| p.input).collect(),
        carriers: BTreeMap::new(),
        bytes: BTreeSet::new(),
    };
    search.bytes.extend(search.ends.iter().copied());
    for &op in &order {
        search.forward(op);
    }
    let mut wanted = search.inputs.clone();
    let mut taken: Vec<OpId> = Vec::new();
    for &op in order.iter().rev() {
        let Some(carrier) = search.carriers.get(&op) else {
            continue;
        };
        if wanted.contains(&carrier.end) {
            wanted.extend(carrier.inputs.iter().map(|(_, v)| *v));
            taken.push(op);
        }
    }
    taken.reverse();
    Ok(search.finish(layers, &wanted, &taken, &order))
}

/// An operator that takes bytes and makes bytes without a weight.
struct Carrier {
    inputs: Vec<(usize, ValueId)>,
    end: ValueId,
    same_scale: bool,
    hands_on: bool,
}

struct Search<'a> {
    graph: &'a Graph,
    profile: &'a Profile,
    ends: BTreeSet<ValueId>,
    inputs: BTreeSet<ValueId>,
    carriers: BTreeMap<OpId, Carrier>,
    /// Values that may be had as bytes.
    bytes: BTreeSet<ValueId>,
}

impl Search<'_> {
    /// Finds out whether an operator may carry bytes on.
    fn forward(&mut self, op: OpId) {
        let (graph, o) = (self.graph, self.graph.op(op));
        let hands_on = self.profile.hands_on(o);
        let join = self
            .profile
            .joins
            .get(&**o.op_type())
            .filter(|_| o.domain().is_empty());
        if (!hands_on && join.is_none()) || o.outputs().iter().flatten().count() != 1 {
            return;
        }
        let Some(output) = o.output(0) else { return };
        let data = o
            .inputs()
            .enumerate()
            .filter_map(|(slot, v)| Some((slot, v?)));
        let data = data.filter(|&(slot, _)| schema::role(o, slot) == Role::Data);
        let inputs: Vec<(usize, ValueId)> = data.collect();
        // What a layer takes is quantized for it anyway.
        let has_bytes =
            |v: &ValueId| self.bytes.contains(v) || (!hands_on && self.inputs.contains(v));
        if inputs.is_empty() || !inputs.iter().all(|(_, v)| has_bytes(v)) {
            return;
        }
        let end = match join {
            Some(rule) => end_of(graph, output, &rule.fuses),
            None => output,
        };
        self.bytes.insert(end);
        self.carriers.insert(
            op,
            Carrier {
                inputs,
                end,
                same_scale: hands_on || join.is_some_and(|r| r.same_scale),
                hands_on,
            },
        );
    }

    fn finish(
        self,
        layers: Vec<Placed>,
        wanted: &BTreeSet<ValueId>,
        taken: &[OpId],
        order: &[OpId],
    ) -> Placement {
        let mut takers: BTreeMap<ValueId, Vec<(OpId, usize)>> = BTreeMap::new();
        for p in &layers {
            takers.entry(p.input).or_default().push((p.layer.op, 0));
        }
        let mut made: BTreeSet<ValueId> = self.ends.clone();
        let mut handed: BTreeSet<ValueId> = BTreeSet::new();
        let mut groups = Groups::default();
        for op in taken {
            let Some(c) = self.carriers.get(op) else {
                continue;
            };
            made.insert(c.end);
            if c.hands_on {
                handed.insert(c.end);
            }
            for &(slot, v) in &c.inputs {
                takers.entry(v).or_default().push((*op, slot));
                if c.same_scale {
                    groups.join(v, c.end);
                }
            }
        }
        let mut values = Vec::new();
        let mut numbers: BTreeMap<ValueId, usize> = BTreeMap::new();
        for value in in_order(self.graph, order) {
            if !made.contains(&value) && !wanted.contains(&value) {
                continue;
            }
            let next = numbers.len();
            let group = *numbers.entry(groups.root(value)).or_insert(next);
            values.push(Quantized {
                value,
                group,
                bytes: made.contains(&value),
                takers: takers.remove(&value).unwrap_or_default(),
                source: !handed.contains(&value),
            });
        }
        Placement { layers, values }
    }
}

/// Graph inputs, then what operators make, in their order.
fn in_order<'a>(graph: &'a Graph, order: &'a [OpId]) -> impl Iterator<Item = ValueId> + 'a {
    let made = order.iter().flat_map(|&op| graph.op(op).outputs().iter());
    let inputs = graph.inputs().iter().copied();
    inputs.chain(made.flatten().copied())
}

/// Values that belong together.
#[derive(Default)]
struct Groups(BTreeMap<ValueId, ValueId>);

impl Groups {
    fn root(&self, v: ValueId) -> ValueId {
        let mut at = v;
        while let Some(&next) = self.0.get(&at) {
            at = next;
        }
        at
    }

    fn join(&mut self, a: ValueId, b: ValueId) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            self.0.insert(a.max(b), a.min(b));
        }
    }
}

//! What running layers in integers costs and saves, and which layers it pays for.
//!
//! Times are those of the multiplication itself, of packing what it takes, and of turning floats
//! into bytes and back wherever a layer in integers meets one in floats. The last are why a
//! single layer may be slower in integers although its product is faster, and why neighbours are
//! decided on together.

use std::collections::{BTreeMap, BTreeSet};

use paring_ir::analysis::Shapes;
use paring_ir::{Graph, ValueId};

use super::find::{Found, Layer};

/// Nanoseconds of one multiply-accumulate or one element, with one thread, measured with tract
/// 0.23.9 on x86 with VNNI. On CPUs with AMX or Arm dot products the order is the same; where
/// there is nothing of the kind, integers never pay, which only a measurement can tell.
const FLOAT_PRODUCT: f64 = 1.0 / 45.0;
const FLOAT_POINTWISE: f64 = 1.0 / 34.0;
const FLOAT_WINDOWS: f64 = 1.0 / 28.0;
const INTEGER: f64 = 1.0 / 130.0;
const PACK: f64 = 0.8;
/// Windows are laid out one by one, as the engine has no lazy form for bytes.
const UNFOLD: f64 = 1.7;
/// Sums of 32 bits into bytes, with a clamp.
const REQUANTIZE: f64 = 1.6;
const QUANTIZE: f64 = 2.4;
const DEQUANTIZE: f64 = 0.5;
/// A cast, and a product by output, which are not one with the multiplication.
const BY_OUTPUT: f64 = 1.2;
/// What an operator costs however small it is.
const OVERHEAD: f64 = 1000.0;
/// Taken for sizes that the model leaves open: rows of matrices, and sizes of images.
const OPEN: f64 = 64.0;

/// How a layer is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it was, on floats.
    Float,
    /// From bytes to bytes.
    Bytes,
    /// From bytes to floats.
    Floats,
}

/// The forms that a layer can take.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Able {
    pub(super) bytes: bool,
    pub(super) floats: bool,
}

/// Nanoseconds of a layer in each form.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerCost {
    pub(super) float: f64,
    pub(super) bytes: f64,
    pub(super) floats: f64,
}

/// What everything costs.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    pub(super) layers: Vec<LayerCost>,
    /// Nanoseconds to make bytes, and to make floats of them.
    pub(super) bytes: BTreeMap<ValueId, (f64, f64)>,
}

fn sizes(shapes: &Shapes, v: ValueId) -> Vec<f64> {
    let dims = shapes.dims(v).unwrap_or_default();
    let first = dims.len() >= 3;
    let size = |(axis, d): (usize, &paring_ir::analysis::shapes::SymDim)| match d.known() {
        Some(d) => d.max(1) as f64,
        // A batch that is left open is mostly one.
        None if axis == 0 && first => 1.0,
        None => OPEN,
    };
    dims.iter().enumerate().map(size).collect()
}

/// How many elements a value has, as far as is known.
pub(super) fn elements(shapes: &Shapes, v: ValueId) -> f64 {
    sizes(shapes, v).iter().product::<f64>().max(1.0)
}

/// How many rows a product has, or places a convolution.
pub(super) fn rows(shapes: &Shapes, layer: &Layer) -> f64 {
    let outputs = layer.weight.outputs().max(1) as f64;
    (elements(shapes, layer.sum) / outputs).max(1.0)
}

/// Costs by form and size alone.
pub(super) fn by_form(graph: &Graph, found: &Found, shapes: &Shapes, by_output: &[bool]) -> Costs {
    let mut costs = Costs::default();
    for (&v, b) in &found.bytes {
        let n = elements(shapes, b.source);
        let (q, d) = (QUANTIZE * n + OVERHEAD, DEQUANTIZE * n + OVERHEAD);
        costs.bytes.insert(v, (q, d));
    }
    for (i, layer) in found.layers.iter().enumerate() {
        let rows = rows(shapes, layer);
        let outputs = layer.weight.outputs() as f64;
        let inputs = layer.weight.numbers.len() as f64 / outputs.max(1.0);
        let macs = rows * outputs * inputs;
        let kernel: usize = match graph.op(layer.op).is("Conv") {
            true => layer.weight.dims.iter().skip(2).product(),
            false => 1,
        };
        let pointwise = kernel == 1;
        let float = match (graph.op(layer.op).is("Conv"), pointwise) {
            (false, _) => FLOAT_PRODUCT,
            (true, true) => FLOAT_POINTWISE,
            (true, false) => FLOAT_WINDOWS,
        };
        let packed = rows * inputs * if pointwise { PACK } else { UNFOLD };
        let integer = macs * INTEGER + packed + OVERHEAD;
        let by_output = by_output.get(i).copied().unwrap_or(false);
        let out = if by_output { BY_OUTPUT } else { DEQUANTIZE };
        costs.layers.push(LayerCost {
            float: macs * float + OVERHEAD,
            bytes: integer + REQUANTIZE * rows * outputs,
            floats: integer + out * rows * outputs + OVERHEAD,
        });
    }
    costs
}

/// Which values are bytes, given the layers that run in integers.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    pub(super) forms: Vec<Form>,
    /// Bytes that an operator takes.
    pub(super) wanted: BTreeSet<ValueId>,
    /// Bytes that a layer in integers makes, or that are handed on from others.
    pub(super) made: BTreeSet<ValueId>,
    /// Of what is made or wanted, what floats are needed of too.
    pub(super) read: BTreeSet<ValueId>,
}

impl Flow {
    /// What follows when these layers run in integers.
    pub(super) fn of(graph: &Graph, found: &Found, able: &[Able], chosen: &[bool]) -> Flow {
        let mut flow = Flow::default();
        let is = |i: usize| chosen.get(i).copied().unwrap_or(false);
        let layers = || found.layers.iter().enumerate();
        flow.wanted = layers()
            .filter(|(i, _)| is(*i))
            .map(|(_, l)| l.input)
            .collect();
        for v in found.order.iter().rev() {
            let from = found.bytes.get(v).and_then(|b| b.handed_on);
            if let (true, Some((_, from))) = (flow.wanted.contains(v), from) {
                flow.wanted.insert(from);
            }
        }
        for (i, layer) in layers() {
            let able = able.get(i).copied().unwrap_or_default();
            let wanted = layer.output.is_some_and(|v| flow.wanted.contains(&v));
            let form = match is(i) {
                true if able.bytes && (wanted || !able.floats) => Form::Bytes,
                true if able.floats => Form::Floats,
                _ => Form::Float,
            };
            flow.forms.push(form);
            flow.made
                .extend(layer.output.filter(|_| form == Form::Bytes));
        }
        for v in &found.order {
            let from = found.bytes.get(v).and_then(|b| b.handed_on);
            if from.is_some() && flow.wanted.contains(v) {
                flow.made.insert(*v);
            }
        }
        let takes_bytes: BTreeSet<_> = layers()
            .filter(|(i, _)| flow.forms.get(*i).is_some_and(|f| *f != Form::Float))
            .map(|(_, l)| l.op)
            .collect();
        for (v, b) in &found.bytes {
            let outputs = b.readers.iter().filter_map(|&r| graph.op(r).output(0));
            let floats = outputs.into_iter().any(|d| {
                let value = graph.value(d);
                value.is_output()
                    || value.uses().iter().any(|u| {
                        let handed = found.handing.get(&u.op);
                        let handed = handed.is_some_and(|w| flow.wanted.contains(w));
                        !takes_bytes.contains(&u.op) && !handed
                    })
            });
            if floats {
                flow.read.insert(*v);
            }
        }
        flow
    }

    /// Nanoseconds of everything that is decided about.
    fn cost(&self, found: &Found, costs: &Costs) -> f64 {
        let layers = self.forms.iter().zip(&costs.layers);
        let mut sum: f64 = layers
            .map(|(form, c)| match form {
                Form::Float => c.float,
                Form::Bytes => c.bytes,
                Form::Floats => c.floats,
            })
            .sum();
        for v in found.bytes.keys() {
            let (to, from) = costs.bytes.get(v).copied().unwrap_or_default();
            let made = self.made.contains(v);
            if self.wanted.contains(v) && !made {
                sum += to;
            }
            if made && self.read.contains(v) {
                sum += from;
            }
        }
        sum
    }
}

/// Rounds of looking at every layer.
const ROUNDS: usize = 8;
/// Graphs of more layers are decided on layer by layer with what stands beside each.
const MANY: usize = 400;

/// The layers for which integers pay, as far as the costs tell.
pub(super) fn choose(graph: &Graph, found: &Found, able: &[Able], costs: &Costs) -> Vec<bool> {
    let can: Vec<bool> = able.iter().map(|a| a.bytes || a.floats).collect();
    let total = |chosen: &[bool]| Flow::of(graph, found, able, chosen).cost(found, costs);
    let mut best: Option<(f64, Vec<bool>)> = None;
    // From both ends, since a chain may pay only as a whole.
    for start in [can.clone(), vec![false; can.len()]] {
        let mut chosen = start;
        let mut now = total(&chosen);
        let rounds = if can.len() > MANY { 1 } else { ROUNDS };
        for _ in 0..rounds {
            let before = now;
            for i in (0..chosen.len()).filter(|&i| can[i]) {
                chosen[i] = !chosen[i];
                let then = total(&chosen);
                if then < now {
                    now = then;
                } else {
                    chosen[i] = !chosen[i];
                }
            }
            if now >= before {
                break;
            }
        }
        if best.as_ref().is_none_or(|(b, _)| now < *b) {
            best = Some((now, chosen));
        }
    }
    best.map(|b| b.1).unwrap_or_default()
}

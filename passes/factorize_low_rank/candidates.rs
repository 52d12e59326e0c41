//! Which layers can be factorized, in which forms, and what each rank would cost.

use paring_ir::analysis::{Costs, Shapes};
use paring_ir::schema::{self, Class};
use paring_ir::{Graph, Model, OpId, OptionSet, PassContext, PassError, Port, ValueId};

use super::{FormChoice, Options};
use crate::layers::{Bias, Layer, bias_place, layers};

/// How the weight of a layer becomes two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// A matrix of `rows` x `cols` as `rows` x `rank` times `rank` x `cols`: two products, or
    /// a convolution with the kernel and one without.
    Channel,
    /// A convolution along the first axis of the kernel, and one along the others.
    Spatial,
}

/// What something costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// Elements of weights.
    pub(super) params: f64,
    /// Bytes of weights.
    pub(super) bytes: f64,
    /// Multiply-accumulates of one run.
    pub(super) macs: f64,
}

impl Cost {
    pub(super) fn add(&mut self, other: &Cost) {
        self.params += other.params;
        self.bytes += other.bytes;
        self.macs += other.macs;
    }
}

/// A form that a layer can take, and what a rank costs in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) form: Form,
    /// The largest rank that makes sense: that of the full matrix.
    pub(super) full: usize,
    /// Elements of both factors for each rank, all blocks together.
    params: f64,
    /// Multiply-accumulates for each rank, by those of the dense layer for each element.
    macs: f64,
}

/// A layer that can be factorized.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'o> {
    pub(super) layer: Layer,
    pub(super) options: &'o Options,
    /// Whether a bias can take up the means, so that moments about the mean count.
    pub(super) centered: bool,
    /// The forms, at least one.
    pub(super) shapes: Vec<Shape>,
    /// What it costs as it is.
    pub(super) dense: Cost,
    element_bytes: f64,
}

impl Candidate<'_> {
    /// What both factors cost.
    pub(super) fn cost(&self, shape: &Shape, rank: usize) -> Cost {
        let params = shape.params * rank as f64;
        let positions = self.dense.macs / self.dense.params.max(1.0);
        Cost {
            params,
            bytes: params * self.element_bytes,
            macs: positions * shape.macs * rank as f64,
        }
    }

    /// Whether fewer multiply-accumulates and fewer elements are left.
    fn gains(&self, shape: &Shape, rank: usize) -> bool {
        let (rank, dense) = (rank as f64, self.dense.params);
        shape.macs * rank < dense && shape.params * rank < dense
    }

    /// The ranks to choose from, ascending: those of `round-to` that bring a gain.
    pub(super) fn ranks(&self, shape: &Shape) -> Vec<usize> {
        let gains = |&rank: &usize| rank <= shape.full && self.gains(shape, rank);
        if let Some(rank) = self.options.rank {
            return Some(rank).filter(gains).into_iter().collect();
        }
        let step = self.options.round_to.max(1);
        (1..)
            .map(|i| step.saturating_mul(i))
            .take_while(gains)
            .collect()
    }
}

/// The layers of all graphs that can be factorized, in the order of the data, inner graphs after
/// outer ones. A remark says why others can't.
pub(super) fn candidates<'o>(
    model: &Model,
    options: &'o OptionSet<Options>,
    known: (&Costs, &Shapes),
    cx: &mut PassContext<'_>,
) -> Result<Vec<Candidate<'o>>, PassError> {
    let mut out = Vec::new();
    let mut result = Ok(());
    model.for_each_graph(&mut |graph| {
        if result.is_ok() {
            result = candidates_of(graph, options, model.opset(), known, cx, &mut out);
        }
    });
    result.map(|()| out)
}

fn candidates_of<'o>(
    graph: &Graph,
    options: &'o OptionSet<Options>,
    opset: i64,
    known: (&Costs, &Shapes),
    cx: &mut PassContext<'_>,
    out: &mut Vec<Candidate<'o>>,
) -> Result<(), PassError> {
    for op in graph.topological_order()? {
        if !options.for_op(graph, op).is_skip()
            && let Some((code, why)) = not_a_layer(graph, op)
        {
            cx.missed(graph, op, code, why);
        }
    }
    for layer in layers(graph)? {
        let Some(options) = options.for_op(graph, layer.op).options() else {
            continue;
        };
        match candidate(graph, layer, options, opset, known) {
            Ok(candidate) => out.push(candidate),
            Err((op, code, why)) => cx.missed(graph, op, code, why),
        }
    }
    Ok(())
}

/// Why an operator that multiplies with a constant is no layer at all.
fn not_a_layer(graph: &Graph, op: OpId) -> Option<(&'static str, String)> {
    let o = graph.op(op);
    if schema::of(o)?.class != Class::Linear {
        return None;
    }
    let constants = schema::weight_slots(o).into_iter().filter_map(|slot| {
        let v = graph.value(o.input(slot)?);
        v.initializer().map(|c| (v, c))
    });
    for (value, constant) in constants {
        if value.is_input() {
            let why = "a graph input may override the weight".to_owned();
            return Some(("overridable", why));
        }
        if !constant.dtype().is_float() {
            let why = format!("the weight is of type {}", constant.dtype());
            return Some(("element-type", why));
        }
    }
    None
}

type Why = (OpId, &'static str, String);

fn candidate<'o>(
    graph: &Graph,
    layer: Layer,
    options: &'o Options,
    opset: i64,
    (costs, shapes): (&Costs, &Shapes),
) -> Result<Candidate<'o>, Why> {
    let op = layer.op;
    let refuse = |code, why: &str| Err((op, code, why.to_owned()));
    let o = graph.op(op);
    let weight = graph.value(layer.weight);
    if schema::of(o).is_some_and(|k| k.class == Class::Recurrent) {
        return refuse("recurrent", "a recurrent network takes its weights whole");
    }
    if !matches!(&**o.op_type(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul") {
        return refuse("operator", "its weight can't be split into two operators");
    }
    if layer.source.is_none() {
        return refuse("constant", "all that it multiplies is constant");
    }
    if layer.is_depthwise() {
        return refuse(
            "depthwise",
            "each channel has a kernel of its own and no other to share with",
        );
    }
    if weight.is_output() {
        return refuse("graph-output", "the weight is a graph output");
    }
    if !weight.has_single_use() {
        return refuse("shared", "something else takes the weight too");
    }
    if layer.len() < options.min_elements {
        let why = format!("{} elements are fewer than min-elements", layer.len());
        return Err((op, "small", why));
    }
    let flag = if layer.slot == 0 { "transB" } else { "transA" };
    if opset < 11 && o.is("Gemm") && o.int_or(flag, 0) != 0 {
        return refuse(
            "opset",
            "before opset 11 a product with a transposed input needs a bias",
        );
    }
    if is_factor(graph, &layer) {
        return refuse("factored", "it is one half of a factorization already");
    }
    let forms = forms(graph, &layer, options.form, shapes);
    if forms.is_empty() {
        return refuse("form", "its weight can't take the wanted form");
    }
    let element = graph.tensor(layer.weight).and_then(|t| t.dtype().bits());
    let element_bytes = element.unwrap_or(32) as f64 / 8.0;
    let params = layer.len() as f64;
    let mut candidate = Candidate {
        centered: takes_bias(graph, &layer),
        options,
        shapes: forms,
        dense: Cost {
            params,
            bytes: params * element_bytes,
            // Without sizes only the model's total does not know about this layer.
            macs: costs
                .op(op)
                .macs
                .filter(|&m| m > 0)
                .map_or(params, |m| m as f64),
        },
        element_bytes,
        layer,
    };
    let usable: Vec<Shape> = candidate
        .shapes
        .iter()
        .filter(|s| !candidate.ranks(s).is_empty())
        .copied()
        .collect();
    candidate.shapes = usable;
    if candidate.shapes.is_empty() {
        let why = match options.rank {
            Some(rank) => format!("rank {rank} would take as many multiply-accumulates"),
            None => format!(
                "even rank {} would take as many multiply-accumulates",
                options.round_to
            ),
        };
        return Err((op, "no-gain", why));
    }
    Ok(candidate)
}

/// Whether the layer's bias, or one that it can be given, is added to every output alike.
fn takes_bias(graph: &Graph, layer: &Layer) -> bool {
    let Some(place) = bias_place(graph, layer) else {
        return false;
    };
    let (op, slot) = match place {
        // Transposed convolutions add up other windows at the edges.
        Bias::Slot(_) if graph.op(layer.op).is("ConvTranspose") => return false,
        Bias::Slot(slot) => (layer.op, slot),
        Bias::Add(op, slot) => (op, slot),
    };
    graph.input_tensor(op, slot).is_none_or(|t| {
        let outer = t.dims().split_last().map_or(&[][..], |(_, outer)| outer);
        outer.iter().all(|&d| d == 1)
    })
}

/// The forms that a layer can take and that the user allows.
fn forms(graph: &Graph, layer: &Layer, wanted: FormChoice, shapes: &Shapes) -> Vec<Shape> {
    let kernel = layer
        .dims
        .get(layer.layout.kernel_axes.clone())
        .unwrap_or_default();
    let blocks = layer.blocks as f64;
    let conv = graph.op(layer.op).is("Conv");
    let pointwise = kernel.iter().all(|&k| k == 1);
    let mut out = Vec::new();
    let channel = match wanted {
        FormChoice::Auto | FormChoice::Channel => true,
        FormChoice::Svd => pointwise,
        FormChoice::Spatial => kernel.is_empty(),
    };
    if channel {
        let each = blocks * (layer.rows + layer.cols) as f64;
        out.push(Shape {
            form: Form::Channel,
            full: layer.rows.min(layer.cols),
            params: each,
            macs: each,
        });
    }
    let spatial = matches!(wanted, FormChoice::Auto | FormChoice::Spatial);
    if let [first, rest @ ..] = kernel
        && let others = rest.iter().product::<usize>()
        && spatial
        && conv
        && *first > 1
        && others > 1
    {
        let inputs = layer.cols / others;
        let outputs = layer.rows * others;
        let wide = widening(graph, layer, shapes);
        out.push(Shape {
            form: Form::Spatial,
            full: inputs.min(outputs),
            params: blocks * (inputs + outputs) as f64,
            macs: blocks * (inputs as f64 * wide + outputs as f64),
        });
    }
    out
}

/// How many positions along all axes but the first a convolution along the first axis is
/// computed at, for each of the whole convolution.
fn widening(graph: &Graph, layer: &Layer, shapes: &Shapes) -> f64 {
    let o = graph.op(layer.op);
    let sizes = |v: Option<ValueId>| -> Option<f64> {
        let dims = shapes.dims(v?)?.get(3..)?;
        dims.iter().map(|d| Some(d.known()? as f64)).product()
    };
    let known = sizes(o.input(0)).zip(sizes(o.output(0)));
    if let Some((before, after)) = known.filter(|k| k.1 > 0.0) {
        return before / after;
    }
    let strides = o
        .ints("strides")
        .and_then(|s| s.get(1..))
        .unwrap_or_default();
    strides.iter().map(|&s| s as f64).product()
}

/// Whether a layer and a neighbour with nothing in between are narrower in the middle than
/// either end is worth: one layer in place of both would have more weights than the two.
fn is_factor(graph: &Graph, layer: &Layer) -> bool {
    let before = layer.source.as_ref().and_then(|s| graph.producer(s.value));
    let before = before.and_then(|p| only_layer(graph, p));
    if before.is_some_and(|b| is_pair(graph, &b, layer)) {
        return true;
    }
    let out = graph.op(layer.op).output(0);
    let after = out.and_then(|v| graph.single_consumer(v));
    let after = after.filter(|(_, port)| matches!(port, Port::Input(_)));
    let after = after.and_then(|(op, _)| only_layer(graph, op));
    after.is_some_and(|a| is_pair(graph, layer, &a))
}

fn only_layer(graph: &Graph, op: OpId) -> Option<Layer> {
    let mut all = crate::layers::layers_of(graph, op);
    let only = all.pop()?;
    all.is_empty().then_some(only)
}

fn is_pair(graph: &Graph, first: &Layer, second: &Layer) -> bool {
    let o = graph.op(first.op);
    let Some(middle) = o.output(0) else {
        return false;
    };
    let takes_all = second.source.as_ref().is_some_and(|s| s.value == middle)
        && graph.value(middle).has_single_use();
    let alike = first.blocks == second.blocks
        && first.slot == second.slot
        && !first.is_depthwise()
        && !second.is_depthwise();
    // A first layer with a bias was one in its own right.
    if !takes_all || !alike || o.input(2).is_some() || o.is("ConvTranspose") {
        return false;
    }
    let kernel = |l: &Layer| {
        l.dims
            .get(l.layout.kernel_axes.clone())
            .unwrap_or_default()
            .to_vec()
    };
    let (a, b) = (kernel(first), kernel(second));
    let apart = a.iter().zip(&b).all(|(&a, &b)| a == 1 || b == 1);
    let (width, inputs) = (first.rows, first.cols);
    if !apart || width == 0 || !second.cols.is_multiple_of(width) {
        return false;
    }
    let outputs = second.cols / width * second.rows;
    let both = width.saturating_mul(inputs.saturating_add(outputs));
    both < inputs.saturating_mul(outputs)
}

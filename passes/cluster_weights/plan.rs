//! Which weights are clustered, and how.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::{
    DType, Graph, GraphId, Model, OpId, OptionSet, PassContext, PassError, Port, Tensor, ValueId,
    schema,
};

use super::fit::{self, Coded, Importance, Order, Settings};
use super::{Centroids, Entropy, Form, Group, Options, Scales};
use crate::clustered::is_snapped;
use crate::layers::{self, Layer};
use crate::moments;

/// About what the operators of an expansion take in a file.
const OPERATOR_BYTES: usize = 500;

/// The first convolution is sensitive when it has at most one in so many elements of all weights.
const FEW: usize = 32;

/// Weights of so many elements at most share codebooks of 256 centroids: on larger ones a codebook
/// of their own takes less than a fiftieth of what the codes take.
const MOST_SHARING: usize = 1 << 16;
/// With a shared codebook every channel has a scale. More of them, in 16 bits, take more than half of
/// what a codebook takes.
const MOST_SCALES: usize = 256;

/// A weight to cluster.
pub(super) struct Target {
    /// The first operator that takes it.
    pub(super) op: OpId,
    pub(super) weight: ValueId,
    /// The weight as it was.
    pub(super) tensor: Tensor,
    /// Whether its channels may have scales.
    pub(super) scalable: bool,
    /// How it is a layer's weight, unless it is the table of an embedding.
    pub(super) layer: Option<Layer>,
    /// The operators that look up its rows, with the rank of the indices.
    pub(super) lookups: Vec<(OpId, usize)>,
    pub(super) order: Order,
    pub(super) settings: Settings,
    pub(super) form: Form,
    pub(super) centroids: Centroids,
    /// What was found.
    pub(super) coded: Option<Coded>,
    /// How close the layer's outputs are on calibration data, in dB.
    pub(super) sqnr: Option<f64>,
    /// Its moments could not be used.
    pub(super) unsolvable: bool,
}

impl Target {
    /// The elements by channel.
    pub(super) fn values(&self) -> Vec<f64> {
        let memory = self.tensor.to_f64s().unwrap_or_default();
        self.order.by_channel(&memory)
    }

    /// Whether data can show what the weight multiplies.
    pub(super) fn is_observable(&self) -> bool {
        self.source().is_some()
    }

    /// The value that the layer multiplies.
    pub(super) fn source(&self) -> Option<ValueId> {
        let source = self.layer.as_ref()?.source.as_ref();
        source.map(|s| s.value)
    }

    /// The memory of its moments.
    pub(super) fn moments_bytes(&self, crossed: bool) -> usize {
        let bytes = |l: &Layer| moments::moments_bytes(l, crossed);
        self.layer.as_ref().map_or(0, bytes)
    }

    /// Importance by column, as importance by element of a channel.
    pub(super) fn spread(&self, by_column: &Importance) -> Importance {
        let Some(layer) = &self.layer else {
            return Importance::default();
        };
        let taps = self.order.width() / layer.cols.max(1);
        let spread = |block: &Vec<f64>| -> Vec<f64> {
            let each = |&w: &f64| std::iter::repeat_n(w, taps);
            block.iter().flat_map(each).collect()
        };
        Importance {
            blocks: by_column.blocks.iter().map(spread).collect(),
        }
    }

    /// The bytes of codes, codebooks and scales.
    pub(super) fn stored_bytes(&self, coded: &Coded) -> usize {
        self.bytes_of(coded.books.len(), coded.scales.is_some())
    }

    fn bytes_of(&self, books: usize, scales: bool) -> usize {
        let bits = match self.form {
            Form::PackedTypes if self.settings.bits <= 4 => 4,
            Form::PackedTypes => 8,
            _ => self.settings.bits as usize,
        };
        let size = self.tensor.dtype().bits().unwrap_or(32) as usize / 8;
        let codes = self.tensor.len().saturating_mul(bits).div_ceil(8);
        let scales = if scales { self.order.channels() } else { 0 };
        let clusters = self.settings.clusters();
        let book = match self.steps() {
            true => clusters + size,
            false => clusters * size,
        };
        codes + books * book + size * scales
    }

    /// Whether centroids are stored as integers.
    pub(super) fn steps(&self) -> bool {
        self.centroids == Centroids::Int8
            && self.form != Form::Snap
            && self.tensor.dtype() == DType::F32
    }

    /// Whether a codebook of its own would take a share of the file that counts, and one in common
    /// with other weights does.
    fn can_share(&self) -> bool {
        let whole = self.settings.group >= self.order.channels();
        let plain = self.tensor.dtype() == DType::F32 && self.form == Form::Table && !self.steps();
        let few = self.tensor.len() <= MOST_SHARING;
        let cheap = self.settings.scales || self.order.channels() <= MOST_SCALES;
        self.layer.is_some()
            && self.scalable
            && self.settings.bits == 8
            && whole
            && plain
            && few
            && cheap
            && self.settings.entropy == 0.0
    }

    fn gains(&self) -> bool {
        let books = self.order.channels().div_ceil(self.settings.group);
        let after = self.bytes_of(books, self.settings.scales) + OPERATOR_BYTES;
        self.form == Form::Snap || after < self.tensor.byte_len()
    }
}

/// The targets of a model.
pub(super) struct Plan {
    /// In the order of the data flow, outer graphs first.
    targets: Vec<Target>,
}

impl Plan {
    pub(super) fn of(
        options: &OptionSet<Options>,
        model: &Model,
        cx: &mut PassContext<'_>,
    ) -> Result<Plan, PassError> {
        let shapes = cx.analysis::<Shapes>(model);
        let mut planner = Planner {
            options,
            shapes,
            seen: HashSet::new(),
            first: true,
            few: elements(model) / FEW,
            pruned: is_pruned(model),
        };
        let mut targets = Vec::new();
        let mut failed = None;
        model.for_each_graph(&mut |graph| match graph.topological_order() {
            Ok(order) => {
                for op in order {
                    targets.extend(planner.targets(graph, op, cx));
                }
            }
            Err(e) => failed = failed.take().or(Some(e)),
        });
        if let Some(e) = failed {
            return Err(e.into());
        }
        let mut plan = Plan { targets };
        plan.share();
        Ok(plan)
    }

    /// Gives the weights of each graph that are too small for a large codebook of their own one
    /// together.
    fn share(&mut self) {
        let mut by_graph: BTreeMap<GraphId, Vec<&mut Target>> = BTreeMap::new();
        for t in self.targets.iter_mut().filter(|t| t.can_share()) {
            by_graph.entry(t.weight.graph()).or_default().push(t);
        }
        for mut targets in by_graph.into_values().filter(|t| t.len() > 1) {
            let weights: Vec<(Vec<f64>, usize)> = (targets.iter())
                .map(|t| (t.values(), t.order.width()))
                .collect();
            let keep_zeros = targets.iter().any(|t| t.settings.keep_zeros);
            let clusters = targets[0].settings.clusters();
            let book: Arc<[f64]> = fit::common_book(&weights, keep_zeros, clusters).into();
            for t in &mut targets {
                t.settings.scales = true;
                t.settings.shared = Some(book.clone());
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }

    pub(super) fn targets_mut(&mut self) -> impl Iterator<Item = &mut Target> {
        self.targets.iter_mut()
    }

    /// Takes out the targets of one graph.
    pub(super) fn take(&mut self, graph: GraphId) -> Vec<Target> {
        let all = std::mem::take(&mut self.targets);
        let (own, rest) = all.into_iter().partition(|t| t.weight.graph() == graph);
        self.targets = rest;
        own
    }
}

/// The floating-point elements of all constants.
fn elements(model: &Model) -> usize {
    let mut sum = 0usize;
    model.for_each_graph(&mut |graph| {
        let tensors = graph.initializers().filter_map(|v| graph.tensor(v));
        let floats = tensors.filter(|t| t.dtype().is_float());
        sum = floats.fold(sum, |sum, t| sum.saturating_add(t.len()));
    });
    sum
}

/// Whether at least a quarter of the floating-point elements of matrices and kernels are zero.
fn is_pruned(model: &Model) -> bool {
    let (mut zeros, mut all) = (0usize, 0usize);
    model.for_each_graph(&mut |graph| {
        let tensors = graph.initializers().filter_map(|v| graph.tensor(v));
        for t in tensors.filter(|t| t.dtype().is_float() && t.rank() > 1) {
            let elements = t.to_f64s().unwrap_or_default();
            zeros += elements.iter().filter(|x| **x == 0.0).count();
            all += elements.len();
        }
    });
    zeros > 0 && zeros >= all / 4
}

struct Planner<'a> {
    options: &'a OptionSet<Options>,
    shapes: Arc<Shapes>,
    seen: HashSet<ValueId>,
    /// The first convolution is still to come.
    first: bool,
    /// So many elements are few among all weights.
    few: usize,
    /// Many weights are zero.
    pruned: bool,
}

impl Planner<'_> {
    /// What compressed bits count.
    fn entropy(&self, options: &Options) -> f64 {
        match options.entropy {
            Entropy::Weight(weight) => weight,
            Entropy::Auto(_) if self.pruned => super::THRIFTY,
            Entropy::Auto(_) => 0.0,
        }
    }

    /// The weights of one operator.
    fn targets(&mut self, graph: &Graph, op: OpId, cx: &mut PassContext<'_>) -> Vec<Target> {
        let o = graph.op(op);
        let first = self.first && o.is("Conv");
        self.first &= !first;
        let Some(options) = self.options.for_op(graph, op).options() else {
            return Vec::new();
        };
        let mut out = Vec::new();
        if o.is("Gather") {
            out.extend(self.embedding(graph, op, options, cx));
        }
        if o.is("Add") {
            out.extend(self.added(graph, op, options, cx));
        }
        let layers = layers::layers_of(graph, op);
        self.remark_on_others(graph, op, &layers, cx);
        for layer in layers {
            if self.seen.insert(layer.weight) {
                out.extend(self.layer(graph, layer, first, options, cx));
            }
        }
        out
    }

    /// Says what is in the way of weights that are no constants.
    fn remark_on_others(
        &self,
        graph: &Graph,
        op: OpId,
        layers: &[Layer],
        cx: &mut PassContext<'_>,
    ) {
        let o = graph.op(op);
        let usual = schema::of(o).and_then(|k| k.weight());
        let Some(slot) = usual.filter(|&s| schema::weight_layout_at(o, s, 3).is_some()) else {
            return;
        };
        let Some(v) = o
            .input(slot)
            .filter(|v| layers.iter().all(|l| l.weight != *v))
        else {
            return;
        };
        let value = graph.value(v);
        if value.is_input() && value.initializer().is_some() {
            let text = "a graph input may override the weight";
            cx.missed(graph, op, "overridable", text);
        }
        let maker = graph.producer(v).map(|p| graph.op(p));
        if maker.is_some_and(|m| m.is("DequantizeLinear")) {
            let text = "the weight is quantized; cluster it instead, or quantize none of it";
            cx.missed(graph, op, "quantized", text);
        }
    }

    fn layer(
        &self,
        graph: &Graph,
        layer: Layer,
        first: bool,
        options: &Options,
        cx: &mut PassContext<'_>,
    ) -> Option<Target> {
        let order = Order::of(&layer);
        let depthwise = layer.is_depthwise();
        let sensitive = depthwise || (first && layer.len() <= self.few);
        let bits = match sensitive {
            true => options.bits.max(options.sensitive_bits),
            false => options.bits,
        };
        let group = match options.group {
            Group::All(_) => order.channels(),
            Group::Channels(n) => widened(n.get(), bits, &order),
        };
        let tensor = graph.tensor(layer.weight)?.clone();
        let target = Target {
            op: layer.op,
            weight: layer.weight,
            settings: Settings {
                bits,
                group: group.max(1),
                keep_zeros: options.keep_zeros,
                scales: with_scales(options, tensor.dtype(), bits, order.width(), depthwise)
                    && (options.scales == Scales::Channels || bits < 8 || differ(&tensor, &order)),
                entropy: self.entropy(options),
                shared: None,
            },
            tensor,
            scalable: options.scales != Scales::None,
            layer: Some(layer),
            lookups: Vec::new(),
            order,
            form: options.form,
            centroids: options.centroids,
            coded: None,
            sqnr: None,
            unsolvable: false,
        };
        self.checked(graph, target, options, cx)
    }

    /// The table that a Gather looks up rows of, when nothing else takes it.
    fn embedding(
        &mut self,
        graph: &Graph,
        op: OpId,
        options: &Options,
        cx: &mut PassContext<'_>,
    ) -> Option<Target> {
        let weight = graph.op(op).input(0)?;
        let table = table_of(graph, op)?;
        let uses = graph.sorted_uses(weight);
        let is_lookup = |op: OpId| table_of(graph, op).is_some();
        let only_rows = uses
            .iter()
            .all(|u| u.port == Port::Input(0) && is_lookup(u.op));
        if !only_rows || !self.seen.insert(weight) {
            return None;
        }
        let order = Order::rows(table.dims()[0], table.dims()[1]);
        let (bits, group) = (options.bits, order.channels());
        let mut lookups = Vec::new();
        for u in uses {
            if lookups.iter().any(|(op, _)| *op == u.op) {
                continue;
            }
            let rank = graph.op(u.op).input(1).and_then(|v| self.shapes.rank(v));
            let Some(rank) = rank else {
                let text = "the rank of what it looks up is not known";
                cx.missed(graph, u.op, "unknown-rank", text);
                return None;
            };
            lookups.push((u.op, rank));
        }
        // Bytes hold any width, and rows that are looked up need no type of their own.
        let form = match options.form {
            Form::PackedTypes => Form::Table,
            form => form,
        };
        let target = Target {
            op,
            weight,
            tensor: table.clone(),
            scalable: false,
            layer: None,
            lookups,
            settings: Settings {
                bits,
                group,
                keep_zeros: options.keep_zeros,
                scales: with_scales(options, table.dtype(), bits, order.width() / 4, false),
                entropy: self.entropy(options),
                shared: None,
            },
            order,
            form,
            centroids: options.centroids,
            coded: None,
            sqnr: None,
            unsolvable: false,
        };
        self.checked(graph, target, options, cx)
    }

    /// The table that an Add adds to an activation: embeddings of positions. Their errors reach
    /// everything that follows, so they are as sensitive as the first convolution.
    fn added(
        &mut self,
        graph: &Graph,
        op: OpId,
        options: &Options,
        cx: &mut PassContext<'_>,
    ) -> Option<Target> {
        let o = graph.op(op);
        let (a, b) = (o.input(0)?, o.input(1)?);
        let weight = match (graph.tensor(a), graph.tensor(b)) {
            (Some(_), None) => a,
            (None, Some(_)) => b,
            _ => return None,
        };
        let table = graph.tensor(weight).filter(|t| t.dtype().is_float())?;
        let wide = table.dims().iter().filter(|&&d| d > 1).count() > 1;
        let added = |op: OpId| graph.op(op).is("Add");
        let alone = graph.value(weight).uses().iter().all(|u| added(u.op));
        let fits = wide && alone && table.len() >= options.min_elements;
        if !fits || graph.value(weight).is_input() || !self.seen.insert(weight) {
            return None;
        }
        let width = *table.dims().last()?;
        let order = Order::rows(table.len() / width.max(1), width);
        let entropy = self.entropy(options);
        // Large codebooks hardly compress.
        let most = if entropy > 0.0 { 6 } else { 8 };
        let target = Target {
            op,
            weight,
            tensor: table.clone(),
            scalable: false,
            layer: None,
            lookups: Vec::new(),
            settings: Settings {
                bits: options.bits.max(options.sensitive_bits.min(most)),
                group: order.channels(),
                keep_zeros: options.keep_zeros,
                scales: false,
                entropy,
                shared: None,
            },
            order,
            form: options.form,
            centroids: options.centroids,
            coded: None,
            sqnr: None,
            unsolvable: false,
        };
        self.checked(graph, target, options, cx)
    }

    /// The target, unless there is a reason to leave it.
    fn checked(
        &self,
        graph: &Graph,
        target: Target,
        options: &Options,
        cx: &mut PassContext<'_>,
    ) -> Option<Target> {
        let elements = target.tensor.len();
        let finite = || {
            target
                .tensor
                .to_f64s()
                .is_some_and(|v| v.iter().all(|x| x.is_finite()))
        };
        let reason = if elements < options.min_elements {
            let least = options.min_elements;
            (
                "small",
                format!("{elements} elements, fewer than min-elements ({least})"),
            )
        } else if graph.value(target.weight).is_output() {
            ("graph-output", "the weight is a graph output".to_owned())
        } else if target.form == Form::Snap && is_snapped(graph, target.weight) {
            ("settled", "the weight was snapped before".to_owned())
        } else if !target.gains() {
            let bytes = target.tensor.byte_len();
            (
                "no-gain",
                format!("codes, codebooks and operators take no less than {bytes} bytes"),
            )
        } else if !finite() {
            (
                "not-finite",
                "an element is infinite or not a number".to_owned(),
            )
        } else {
            return Some(target);
        };
        cx.missed(graph, target.op, reason.0, reason.1);
        None
    }
}

/// The constant table whose rows an operator looks up by indices that are no constants.
fn table_of(graph: &Graph, op: OpId) -> Option<&Tensor> {
    let o = graph.op(op);
    let (table, indices) = (o.input(0)?, o.input(1)?);
    let fits = o.is("Gather") && o.int_or("axis", 0) == 0 && graph.tensor(indices).is_none();
    let tensor = graph.tensor(table).filter(|_| fits)?;
    let rows = tensor.rank() == 2 && tensor.dims()[0] > 1 && !tensor.is_empty();
    (rows && tensor.dtype().is_float()).then_some(tensor)
}

/// How many channels share a codebook when `wanted` shall: twice, four times, ... as many where
/// codebooks would take more than half of what codes take.
fn widened(wanted: usize, bits: u32, order: &Order) -> usize {
    let book = 32 << bits;
    let codes = |group: usize| (group.saturating_mul(order.width())).saturating_mul(bits as usize);
    let mut group = wanted;
    while group < order.channels() && codes(group) < 2 * book {
        group = group.saturating_mul(2);
    }
    group.min(order.channels())
}

/// Whether some channels are more than twice as large as others: the tenth part of each left out.
/// Where they are alike, 256 centroids fit all of them.
fn differ(tensor: &Tensor, order: &Order) -> bool {
    let values = order.by_channel(&tensor.to_f64s().unwrap_or_default());
    let channels = values.chunks(order.width().max(1));
    let mut squares: Vec<f64> = channels.map(|c| c.iter().map(|x| x * x).sum()).collect();
    squares.sort_by(f64::total_cmp);
    let tenth = squares.len() / 10;
    let ends = (squares.get(tenth), squares.iter().rev().nth(tenth));
    matches!(ends, (Some(small), Some(large)) if *large > 4.0 * small)
}

/// Whether channels get scales; rows of embeddings, whose scales are never stored as codes, only
/// where they are four times as long. A scale may take a sixteenth of what the codes take, or a quarter for
/// short channels at few bits; depthwise convolutions, whose channels have little in common, always
/// need them.
fn with_scales(options: &Options, dtype: DType, bits: u32, width: usize, depthwise: bool) -> bool {
    // Engines differ in how they round products of half precision.
    let precise = matches!(dtype, DType::F32 | DType::F64);
    let least = if bits < 8 { 32 } else { 64 };
    precise
        && match options.scales {
            Scales::Auto => options.form != Form::Snap && (depthwise || width >= least),
            Scales::Channels => true,
            Scales::None => false,
        }
}

//! The steps of static quantization, in order.

use std::collections::{BTreeMap, BTreeSet};

use faer::Mat;
use paring_ir::analysis::Shapes;
use paring_ir::engine::DataSource;
use paring_ir::schema;
use paring_ir::{
    Changed, Graph, Model, OpId, OptionSet, Pass, PassContext, PassError, Port, Tensor, ValueId,
};
use rayon::prelude::*;

use crate::held_out::Part;
use crate::layers::{Form, Layer, add_to_bias, bias_len, bias_place};
use crate::moments::{Budget, Job, Moments, collect, moments_bytes, pool};
use crate::solve::Refit;
use crate::tables::{store, table_of};
use crate::upgrade_opset::{UpgradeOpset, UpgradeOpsetOptions};

use super::calibrate::{Histograms, histograms};
use super::equalize::{Scope, equalize};
use super::placement::{self, Placed, Placement};
use super::profile::{BiasForm, Granularity, Profile};
use super::ranges::{Parameters, Wanted, parameters};
use super::search::{Builder, Limits, Meter, keep_float, rank};
use super::weights::{Grid, Rounded, damping, learned, nearest, pack};
use super::{Options, Rounding, emit};

/// Samples that second moments are gathered over: more change the weights little.
const MOMENT_SAMPLES: usize = 128;
/// Second moments of so many bytes are gathered at a time.
const MOMENT_BYTES: usize = 48 << 20;
/// Smaller tables are not worth their error.
const TABLE_ELEMENTS: usize = 1 << 16;
/// Samples that a limit on accuracy is checked on while layers are chosen.
const ACCURACY_SAMPLES: usize = 512;

/// Quantizes a model; see the module above.
pub(crate) fn quantize(
    options: &OptionSet<Options>,
    profile: &Profile,
    model: &mut Model,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    if let Some(op) = quantized_already(&model.graph) {
        cx.missed(
            &model.graph,
            op,
            "quantized",
            "the model is quantized already and is left as it is",
        );
        return Ok(Changed::No);
    }
    // What was fitted to some samples is judged by others, or a limit would not hold elsewhere.
    let limited = limits(options).is_some();
    match cx.data.filter(|_| limited).and_then(Part::both) {
        Some((fit, held_out)) => cx.with_data(&fit, |cx| {
            quantize_judged(options, profile, model, Some(&held_out), cx)
        }),
        None => quantize_judged(options, profile, model, cx.data, cx),
    }
}

/// Quantizes a model by the data of the context; limits are checked on other data.
fn quantize_judged(
    options: &OptionSet<Options>,
    profile: &Profile,
    model: &mut Model,
    judge: Option<&dyn DataSource>,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let mut copy = model.clone();
    prepare(&mut copy, profile, cx)?;
    let mut candidates = choose(options, profile, &copy, cx)?;
    if candidates.is_empty() {
        return Ok(Changed::No);
    }
    if profile.tables {
        store_tables(options, &mut copy, cx)?;
    }
    let whole = options.whole();
    let by_default = profile.weights != Granularity::PerChannel;
    let scope = Scope {
        between: whole.equalize.unwrap_or(by_default),
        smooth: profile.smooth,
    };
    let learned = whole.rounding == Rounding::Learned;
    equalize(cx, &mut copy, &mut candidates, profile, scope, learned)?;
    let mut session = Session::calibrate(options, profile, copy, candidates, cx)?;
    session.finish_weights(cx)?;
    let float = session.mixed(judge, cx)?;
    let layers: Vec<OpId> = session.candidates.iter().map(|p| p.layer.op).collect();
    let graph = &session.model.graph;
    let float = super::latency::keep_float(whole, &session, graph, &layers, float, cx)?;
    let all = session.enabled(&float);
    if all.is_empty() {
        return Ok(Changed::No);
    }
    let made = session.build(&all, true)?;
    session.remark(&all, cx);
    *model = made;
    Ok(Changed::Yes)
}

/// The limits that the options set on the outputs.
fn limits(options: &OptionSet<Options>) -> Option<Limits> {
    let whole = options.whole();
    let limits = Limits {
        min_sqnr_db: whole.min_sqnr_db,
        max_drop: whole.max_accuracy_drop,
    };
    (limits != Limits::default()).then_some(limits)
}

/// An operator that says that the model is quantized already.
fn quantized_already(graph: &Graph) -> Option<OpId> {
    graph.ops().find(|&op| {
        let o = graph.op(op);
        [
            "QuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
            "MatMulInteger",
        ]
        .iter()
        .any(|t| o.is(t))
    })
}

/// Brings a model to an opset at least.
pub(crate) fn raised(
    model: &mut Model,
    wanted: i64,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    if model.opset() >= wanted {
        return Ok(());
    }
    let given = serde_json::json!({ "to": wanted });
    let given = given.as_object().cloned().unwrap_or_default();
    let options = OptionSet::<UpgradeOpsetOptions>::parse("upgrade-opset", &given)?;
    let upgrade = UpgradeOpset::new(options)?;
    upgrade.requires(model)?;
    upgrade.run(model, cx)?;
    Ok(())
}

/// Brings a model to the opset that the target needs, and plain forms of Gemm.
fn prepare(
    model: &mut Model,
    profile: &Profile,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    raised(model, profile.opset.max(13), cx)?;
    for op in model.graph.topological_order()? {
        if model.graph.op(op).is("Gemm") {
            plain_gemm(&mut model.graph, op)?;
        }
    }
    Ok(())
}

/// Stores large tables as bytes, so that all that follows sees what they give.
fn store_tables(
    options: &OptionSet<Options>,
    model: &mut Model,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    let mut done: BTreeSet<OpId> = BTreeSet::new();
    for op in model.graph.topological_order()? {
        let graph = &mut model.graph;
        if done.contains(&op) {
            continue;
        }
        let Some(table) = table_of(graph, op) else {
            continue;
        };
        let elements = graph.tensor(table.value).map_or(0, Tensor::len);
        let skipped = |&op: &OpId| options.for_op(graph, op).is_skip();
        if elements < TABLE_ELEMENTS || table.takers.iter().any(skipped) {
            continue;
        }
        done.extend(table.takers.iter().copied());
        cx.applied(
            graph,
            op,
            "stored",
            format!("{elements} elements of a table"),
        );
        store(graph, &table)?;
    }
    model.drop_unused_constants()?;
    Ok(())
}

/// Puts `alpha` and `beta` of a Gemm into its constants, where nothing else takes them.
fn plain_gemm(graph: &mut Graph, op: OpId) -> Result<(), PassError> {
    for (name, slot) in [("alpha", 1), ("beta", 2)] {
        let factor = graph.op(op).float(name).unwrap_or(1.0);
        let Some(v) = graph.op(op).input(slot).filter(|_| factor != 1.0) else {
            continue;
        };
        let alone = graph.value(v).has_single_use() && !graph.value(v).is_input();
        let Some(t) = graph.tensor(v).filter(|_| alone).cloned() else {
            continue;
        };
        if let Ok(all) = t.view::<f32>() {
            let scaled: Vec<f32> = all.iter().map(|x| x * factor).collect();
            let new = Tensor::from_vec(t.dims().iter().copied(), scaled)?;
            graph.set_tensor(v, new, Vec::new())?;
            graph.remove_attr(op, name)?;
        }
    }
    Ok(())
}

/// The layers to quantize; says of the others why not.
fn choose(
    options: &OptionSet<Options>,
    profile: &Profile,
    model: &Model,
    cx: &mut PassContext<'_>,
) -> Result<Vec<Placed>, PassError> {
    let shapes = cx.analysis::<Shapes>(model);
    let rows = |_: &Graph, layer: &Layer| {
        let source = layer.source.as_ref()?;
        let dims = shapes.known_dims(source.value)?;
        let (_, outer) = dims.split_last()?;
        matches!(source.form, Form::Rows).then(|| outer.iter().product())
    };
    let graph = &model.graph;
    let least = options.whole().min_elements;
    let (placed, left) = placement::candidates(graph, profile, least, &rows)?;
    for l in left {
        cx.missed(graph, l.op, l.code, l.message);
    }
    let mut chosen = Vec::new();
    let layers: BTreeSet<OpId> = placed.iter().map(|p| p.layer.op).collect();
    for p in placed {
        let op = p.layer.op;
        if options.for_op(graph, op).is_skip() {
            cx.missed(graph, op, "skipped", "the options skip it");
        } else if !taken_by_layers(graph, p.layer.weight, &layers) {
            cx.missed(
                graph,
                op,
                "shared",
                "something that stays float takes the weight too",
            );
        } else {
            chosen.push(p);
        }
    }
    model.for_each_graph(&mut |inner| {
        if inner.id() != graph.id() {
            for op in inner
                .ops()
                .filter(|&op| profile.layers.keys().any(|t| inner.op(op).is(t)))
            {
                cx.missed(
                    inner,
                    op,
                    "in-subgraph",
                    "it stands in a graph inside an operator",
                );
            }
        }
    });
    Ok(chosen)
}

fn taken_by_layers(graph: &Graph, weight: ValueId, layers: &BTreeSet<OpId>) -> bool {
    let uses = graph.sorted_uses(weight);
    uses.iter()
        .all(|u| u.port == Port::Input(1) && layers.contains(&u.op))
}

/// What float weights became: the weight, its scales, and the dequantized value.
type Stored = BTreeMap<(ValueId, Vec<u32>), ValueId>;

/// A layer's weights, done.
#[derive(Clone, Debug)]
struct Finished {
    rounded: Rounded,
    grid: Grid,
    /// What is added to the float bias, by output.
    bias: Option<Vec<f64>>,
}

/// Everything that is known once the data has been seen.
pub(crate) struct Session<'a> {
    options: &'a OptionSet<Options>,
    profile: &'a Profile,
    /// The float model, ready to be quantized.
    model: Model,
    candidates: Vec<Placed>,
    histograms: Histograms,
    finished: BTreeMap<OpId, Finished>,
}

impl<'a> Session<'a> {
    fn calibrate(
        options: &'a OptionSet<Options>,
        profile: &'a Profile,
        model: Model,
        candidates: Vec<Placed>,
        cx: &mut PassContext<'_>,
    ) -> Result<Session<'a>, PassError> {
        let placement = placement::place(&model.graph, profile, candidates.clone())?;
        let sources = placement.values.iter().filter(|q| q.source);
        let values: Vec<ValueId> = sources.map(|q| q.value).collect();
        let whole = options.whole();
        let file = whole.calibration_file.as_deref();
        let histograms = histograms(cx, &model, &values, whole.samples, file)?;
        let mut session = Session {
            options,
            profile,
            model,
            candidates,
            histograms,
            finished: BTreeMap::new(),
        };
        session.drop_unseen(cx);
        Ok(session)
    }

    /// Leaves out layers that take or make something that the engine could not give.
    fn drop_unseen(&mut self, cx: &mut PassContext<'_>) {
        let seen = &self.histograms;
        let graph = &self.model.graph;
        self.candidates.retain(|p| {
            // What hands bytes on is not seen itself, so only what is a source must have been.
            let ok = |v: ValueId| {
                seen.contains_key(&v)
                    || graph
                        .producer(v)
                        .is_some_and(|op| self.profile.hands_on(graph.op(op)))
            };
            let known = ok(p.input) && (!p.gives_bytes || ok(p.end));
            if !known {
                let why = "the engine can't give the values around it";
                cx.missed(graph, p.layer.op, "not-observed", why);
            }
            known
        });
    }

    /// The candidates without some.
    fn enabled(&self, without: &BTreeSet<OpId>) -> Vec<Placed> {
        let all = self.candidates.iter();
        all.filter(|p| !without.contains(&p.layer.op))
            .cloned()
            .collect()
    }

    /// The parameters of every quantized value.
    fn parameters(&self, placement: &Placement) -> BTreeMap<ValueId, Parameters> {
        let mut groups: BTreeMap<usize, (super::Histogram, (f64, f64))> = BTreeMap::new();
        for q in placement.values.iter().filter(|q| q.source) {
            let natural = self.natural_range(q.value);
            let group = groups
                .entry(q.group)
                .or_insert_with(|| (super::Histogram::default(), natural));
            if let Some(h) = self.histograms.get(&q.value) {
                group.0.merge(h);
            }
            group.1 = (group.1.0.min(natural.0), group.1.1.max(natural.1));
        }
        let made: BTreeMap<usize, Parameters> = groups
            .into_iter()
            .map(|(group, (histogram, natural))| {
                let wanted = Wanted {
                    method: self.options.whole().calibration,
                    ty: self.profile.activations,
                    symmetric: self.profile.symmetric,
                    natural,
                };
                (group, parameters(&histogram, &wanted))
            })
            .collect();
        let of = |q: &placement::Quantized| Some((q.value, *made.get(&q.group)?));
        placement.values.iter().filter_map(of).collect()
    }

    fn natural_range(&self, value: ValueId) -> (f64, f64) {
        let graph = &self.model.graph;
        let range = graph
            .producer(value)
            .and_then(|op| schema::output_range(graph, op));
        range.unwrap_or((f64::NEG_INFINITY, f64::INFINITY))
    }

    /// The layers that stay float for the limits' sake.
    fn mixed(
        &self,
        judge: Option<&dyn DataSource>,
        cx: &mut PassContext<'_>,
    ) -> Result<BTreeSet<OpId>, PassError> {
        let limits = limits(self.options);
        if limits.is_none() && !self.options.whole().sensitivity {
            return Ok(BTreeSet::new());
        }
        let by_accuracy = limits.is_some_and(|l| l.max_drop.is_some());
        let samples = by_accuracy.then_some(ACCURACY_SAMPLES);
        let meter = Meter::new(cx, &self.model, judge, samples)?;
        let ops: Vec<OpId> = self.candidates.iter().map(|p| p.layer.op).collect();
        let ranking = rank(cx, &meter, self, &ops)?;
        let graph = &self.model.graph;
        for s in &ranking {
            let said = format!(
                "alone quantized {:.1} dB, all but it {:.1} dB",
                s.only_db, s.without_db
            );
            cx.applied(graph, s.op, "measured", said);
        }
        let Some(limits) = limits else {
            return Ok(BTreeSet::new());
        };
        let Some((float, score)) = keep_float(cx, &meter, self, &ranking, &limits)? else {
            for &op in &ops {
                cx.missed(
                    graph,
                    op,
                    "kept-float",
                    "the limits hold with no layer quantized only",
                );
            }
            return Ok(ops.into_iter().collect());
        };
        for s in ranking.iter().filter(|s| float.contains(&s.op)) {
            let why = format!(
                "it hurts most; the outputs have {:.1} dB now, less a standard error {:.1} dB",
                score.sqnr_db, score.least_db
            );
            cx.missed(graph, s.op, "kept-float", why);
        }
        Ok(float)
    }

    /// A model in which these layers are quantized; without `weights` only their activations are.
    fn build(&self, layers: &[Placed], weights: bool) -> Result<Model, PassError> {
        let mut model = self.model.clone();
        let graph = &mut model.graph;
        if weights {
            for p in layers {
                let bias = self.finished.get(&p.layer.op).and_then(|f| f.bias.as_ref());
                if let Some(delta) = bias {
                    add_to_bias(graph, &p.layer, delta, false)?;
                }
            }
        }
        let placement = placement::place(graph, self.profile, layers.to_vec())?;
        let parameters = self.parameters(&placement);
        emit::activations(graph, &placement, &parameters)?;
        if weights {
            let mut stored = Stored::new();
            for p in &placement.layers {
                let Some(scale) = parameters.get(&p.input).map(|q| f64::from(q.scale)) else {
                    return Err(PassError::Bug("a layer's input has no scale".to_owned()));
                };
                self.emit_layer(graph, p, scale, &mut stored)?;
            }
            model.drop_unused_constants()?;
        }
        Ok(model)
    }

    fn emit_layer(
        &self,
        graph: &mut Graph,
        p: &Placed,
        scale: f64,
        stored: &mut Stored,
    ) -> Result<(), PassError> {
        let Some(finished) = self.finished.get(&p.layer.op) else {
            return Ok(());
        };
        let (op, layer) = (p.layer.op, &p.layer);
        let mut rounded = finished.rounded.clone();
        let slot_two = graph.op(op).input(2).filter(|_| !graph.op(op).is("MatMul"));
        let bias = slot_two.and_then(|v| graph.tensor(v)?.to_f64s());
        let bias =
            bias.filter(|b| b.len() == bias_len(layer) && self.profile.bias == BiasForm::Int32);
        if let Some(bias) = &bias {
            widen_for(bias, &mut rounded, layer, (scale, finished.grid));
        }
        let weight = pack(layer, &rounded, finished.grid);
        // Layers that share a weight share what it becomes.
        let key = (
            layer.weight,
            weight.scales.iter().map(|s| s.to_bits()).collect(),
        );
        match stored.get(&key) {
            Some(&made) => graph.set_input(op, 1, Some(made))?,
            None => {
                if let Some(made) = emit::weight(graph, op, 1, &weight)? {
                    stored.insert(key, made);
                }
            }
        }
        let Some(bias) = bias else { return Ok(()) };
        let scales: Vec<f32> = weight
            .scales
            .iter()
            .map(|s| (scale * f64::from(*s)) as f32)
            .collect();
        let number = |(i, b): (usize, &f64)| {
            let s = scales.get(i).or(scales.first()).copied().unwrap_or(1.0);
            (b / f64::from(s)).round_ties_even() as i32
        };
        let numbers = bias.iter().enumerate().map(number).collect();
        emit::bias(graph, op, 2, numbers, &scales)
    }

    /// Rounds the weights of all layers.
    fn finish_weights(&mut self, cx: &mut PassContext<'_>) -> Result<(), PassError> {
        let layers = self.candidates.clone();
        let whole = self.options.whole();
        if whole.rounding == Rounding::Nearest && !whole.correct_bias {
            for p in &layers {
                self.finished
                    .insert(p.layer.op, self.finish(&p.layer, None)?);
            }
            return Ok(());
        }
        let rounded = self.build(&layers, false)?;
        cx.progress().start("rounding", layers.len() as u64);
        for part in by_memory(&layers) {
            let own: Vec<Option<Layer>> = part
                .iter()
                .map(|p| Layer::of(&rounded.graph, p.layer.op, 1))
                .collect();
            let before: Vec<Option<Layer>> = own
                .iter()
                .map(|l| unquantized(&rounded.graph, l.as_ref()?))
                .collect();
            let mut jobs = Vec::new();
            for (own, before) in own.iter().zip(&before) {
                if let (Some(layer), Some(_)) = (own, before) {
                    jobs.push(Job {
                        layer,
                        reference: before.as_ref(),
                    });
                }
            }
            let budget = Budget {
                samples: Some(MOMENT_SAMPLES),
                ..Budget::DEFAULT
            };
            let moments = collect(cx, &rounded, Some(&rounded), &jobs, budget)?;
            let mut by_op: BTreeMap<OpId, Moments> = BTreeMap::new();
            for (job, m) in jobs.iter().zip(moments) {
                if let Some(m) = m {
                    by_op.insert(job.layer.op, m);
                }
            }
            cx.check_cancelled()?;
            let finish =
                |p: &Placed| Ok((p.layer.op, self.finish(&p.layer, by_op.get(&p.layer.op))?));
            let done: Result<Vec<(OpId, Finished)>, PassError> =
                pool(cx.threads)?.install(|| part.par_iter().map(finish).collect());
            self.finished.extend(done?);
            cx.progress().advance(part.len() as u64);
        }
        cx.progress().finish();
        self.share_weights();
        Ok(())
    }

    /// Layers that share a weight take the bytes of the first.
    fn share_weights(&mut self) {
        let mut first: BTreeMap<ValueId, OpId> = BTreeMap::new();
        for p in &self.candidates {
            let of = *first.entry(p.layer.weight).or_insert(p.layer.op);
            if of == p.layer.op {
                continue;
            }
            if let Some(first) = self.finished.get(&of).cloned() {
                let own = Finished {
                    bias: None,
                    ..first
                };
                self.finished.insert(p.layer.op, own);
            }
        }
    }

    fn finish(&self, layer: &Layer, moments: Option<&Moments>) -> Result<Finished, PassError> {
        let whole = self.options.whole();
        let graph = &self.model.graph;
        let tensor = graph.tensor(layer.weight);
        let tensor = tensor.ok_or_else(|| PassError::Bug("a weight is gone".to_owned()))?;
        let weights = layer.matrices(tensor)?;
        let grid = Grid::of(self.profile.reduce_range, self.profile.weights, &weights);
        let partners = grid.partners(layer);
        let Some(m) = moments else {
            let rounded = nearest(&weights, None, grid, &partners, &[]);
            return Ok(Finished {
                rounded,
                grid,
                bias: None,
            });
        };
        let has_bias = whole.correct_bias && bias_place(graph, layer).is_some();
        let refit = |b: usize| Refit {
            target: weights[b].as_ref(),
            present: weights[b].as_ref(),
            bias: has_bias,
            damping: damping(m.count, layer.cols),
        };
        let learn = whole.rounding == Rounding::Learned;
        let target: Vec<Mat<f64>> = (0..layer.blocks)
            .map(|b| {
                let found = if learn { refit(b).dense(m, b) } else { None };
                found.map_or_else(|| weights[b].clone(), |f| f.weights)
            })
            .collect();
        let grams: Vec<Mat<f64>> = (0..layer.blocks).map(|b| central(m, b, has_bias)).collect();
        let mut rounded = nearest(&target, Some(&grams), grid, &partners, &[]);
        if learn {
            for b in 0..layer.blocks {
                learned(
                    &target[b],
                    &grams[b],
                    &mut rounded.numbers[b],
                    &rounded.scales[b],
                    (grid, &partners),
                    damping(m.count, layer.cols),
                );
            }
        }
        let bias = has_bias.then(|| {
            let by_block = (0..layer.blocks).flat_map(|b| refit(b).bias(&rounded.weights(b), m, b));
            by_block.collect()
        });
        Ok(Finished {
            rounded,
            grid,
            bias,
        })
    }

    /// Says what was quantized.
    fn remark(&self, layers: &[Placed], cx: &mut PassContext<'_>) {
        for p in layers {
            let message = format!("{} weights", p.layer.len());
            cx.applied(&self.model.graph, p.layer.op, "quantized", message);
        }
    }
}

/// Rounds the weights of outputs anew whose bias would not fit 32 bits: their scale is tiny.
fn widen_for(bias: &[f64], rounded: &mut Rounded, layer: &Layer, (scale, grid): (f64, Grid)) {
    let floor = |b: f64| (b.abs() / (scale * f64::from(1 << 30))).max(1e-36);
    let floors: Vec<Vec<f64>> = match grid.per_channel {
        true => bias
            .chunks(layer.rows.max(1))
            .map(|c| c.iter().map(|&b| floor(b)).collect())
            .collect(),
        false => {
            let all = bias.iter().map(|&b| floor(b)).fold(0.0, f64::max);
            vec![vec![all; layer.rows]; layer.blocks]
        }
    };
    for (block, floors) in floors.iter().enumerate().take(rounded.scales.len()) {
        for (row, &least) in floors.iter().enumerate().take(layer.rows) {
            let old = rounded.scales[block][row];
            if old < least {
                for c in 0..layer.cols {
                    let n = &mut rounded.numbers[block][(row, c)];
                    *n = (*n * old / least).round_ties_even();
                }
                rounded.scales[block][row] = least;
            }
        }
    }
}

impl Builder for Session<'_> {
    fn without(&self, float: &BTreeSet<OpId>) -> Result<Model, PassError> {
        self.build(&self.enabled(float), true)
    }
}

/// Second moments, about the mean where a bias takes up the means.
fn central(m: &Moments, block: usize, about_mean: bool) -> Mat<f64> {
    let (gram, mean) = (&m.gram[block], &m.mean[block]);
    Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| {
        gram[(i, j)] - if about_mean { mean[i] * mean[j] } else { 0.0 }
    })
}

/// The same layer, taking what stands before quantization.
fn unquantized(graph: &Graph, layer: &Layer) -> Option<Layer> {
    let mut out = layer.clone();
    let source = out.source.as_mut()?;
    for op_type in ["DequantizeLinear", "QuantizeLinear"] {
        let op = graph
            .producer(source.value)
            .filter(|&op| graph.op(op).is(op_type))?;
        source.value = graph.op(op).input(0)?;
    }
    Some(out)
}

/// Layers in parts whose moments fit the memory.
fn by_memory(layers: &[Placed]) -> Vec<&[Placed]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0usize);
    for (i, p) in layers.iter().enumerate() {
        let more = moments_bytes(&p.layer, true);
        if i > start && bytes + more > MOMENT_BYTES {
            parts.push(&layers[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(more);
    }
    if start < layers.len() {
        parts.push(&layers[start..]);
    }
    parts
}

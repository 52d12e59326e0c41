//! Equalization: channels between two layers are scaled so that bytes lose least.
//!
//! A layer, an activation that scales along (Relu, max pooling, ...), and layers that take the
//! result: scaling channel `c` of the value by `s[c]` - in the outputs of the first layer, and by
//! the inverse in the inputs of the others - changes nothing for floats. It changes how much of
//! the value's one range a channel uses, and how large the weights are on both sides (Nagel et
//! al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019). Here the
//! scales follow from data: of two families of scales, the member is taken whose expected error
//! at the outputs of the layers behind is least. A Clip is held: a channel that reaches its bound
//! is not scaled, and no other is scaled beyond it.
//!
//! Smoothing is the same for a value of which products take rows, where nothing before it can
//! take the scales in: a Mul by constants does it, beside what others take of the value (Xiao et
//! al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
//! Models", 2023). It costs that Mul, and so it must gain more.

use std::collections::{BTreeMap, BTreeSet};

use paring_ir::engine::{CompileOptions, EngineError};
use paring_ir::observe::{Mask, observe};
use paring_ir::schema;
use paring_ir::{Graph, NewOp, OpId, PassContext, PassError, Port, Tensor, ValueId};

use crate::layers::{Form, Layer};

use super::emit;
use super::placement::{Placed, place};
use super::profile::Profile;
use super::weights::Grid;

/// Samples that the channels are measured on.
const SAMPLES: usize = 64;
/// No channel is scaled by more, or by less than the inverse.
const MOST: f64 = 16.0;
/// Learned rounding leaves about this share of the error that nearest rounding makes.
const LEARNED_SHARE: f64 = 0.25;

/// What must be gained, in dB, for scales that cost nothing.
const LEAST_GAIN: f64 = 0.1;
/// What must be gained, in dB, for a Mul.
const LEAST_GAIN_OF_A_MUL: f64 = 3.0;

/// What is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Channels between layers.
    pub(crate) between: bool,
    /// Channels of what products take rows of, by a Mul where it must be.
    pub(crate) smooth: bool,
}

/// Where channels may be scaled.
struct Site {
    /// What makes the channels.
    maker: Maker,
    /// The value that the takers take, which is quantized.
    value: ValueId,
    /// What takes them.
    takers: Vec<Layer>,
    /// The bounds of a Clip between.
    bounds: (f64, f64),
    channels: usize,
}

enum Maker {
    Layer(Box<Layer>),
    /// A LayerNormalization with its scale and its bias.
    Norm(OpId),
    /// Nothing that could: a Mul is put in.
    Factor,
}

/// What is known of the channels of a value.
#[derive(Clone, Debug, Default)]
struct Channels {
    largest: Vec<f64>,
    smallest: Vec<f64>,
    squares: Vec<f64>,
    count: u64,
}

/// Scales channels wherever that helps. Says of which operators.
pub(crate) fn equalize(
    cx: &mut PassContext<'_>,
    model: &mut paring_ir::Model,
    layers: &mut [Placed],
    profile: &Profile,
    scope: Scope,
    learned: bool,
) -> Result<bool, PassError> {
    let grid = Grid::new(profile.reduce_range, profile.weights);
    let sites = sites(&model.graph, layers, profile, scope)?;
    if sites.is_empty() {
        return Ok(false);
    }
    let seen = measure(cx, model, &sites)?;
    let mut changed = false;
    for site in &sites {
        cx.check_cancelled()?;
        let own = match &site.maker {
            Maker::Layer(l) => l.source.as_ref().and_then(|s| seen.get(&s.value)),
            Maker::Norm(_) | Maker::Factor => None,
        };
        let Some(channels) = seen.get(&site.value) else {
            continue;
        };
        let found = scales(&model.graph, site, channels, own, grid, learned)?;
        let Some((scales, gain)) = found else {
            continue;
        };
        apply(&mut model.graph, site, &scales)?;
        let (op, code) = match (&site.maker, site.takers.first()) {
            (Maker::Layer(l), _) => (l.op, "equalized"),
            (Maker::Norm(op), _) => (*op, "equalized"),
            (Maker::Factor, Some(l)) => {
                put_factor(&mut model.graph, site, &scales, layers)?;
                (l.op, "smoothed")
            }
            (Maker::Factor, None) => continue,
        };
        let message = format!("channels scaled, {gain:.1} dB less error expected behind");
        cx.applied(&model.graph, op, code, message);
        changed = true;
    }
    Ok(changed)
}

fn sites(
    graph: &Graph,
    layers: &[Placed],
    profile: &Profile,
    scope: Scope,
) -> Result<Vec<Site>, PassError> {
    let by_op: BTreeMap<OpId, &Placed> = layers.iter().map(|p| (p.layer.op, p)).collect();
    let placement = place(graph, profile, layers.to_vec())?;
    let made_as_bytes = placement.values.iter().filter(|q| q.bytes);
    let bytes: BTreeSet<ValueId> = made_as_bytes.map(|q| q.value).collect();
    let mut out = Vec::new();
    let mut done: BTreeSet<ValueId> = BTreeSet::new();
    for p in layers {
        if !done.insert(p.input) {
            continue;
        }
        let rows = takes_rows(&p.layer);
        let found = site(graph, p.input, &by_op);
        let smooth = scope.smooth && rows;
        out.extend(match found {
            Some(s) if scope.between || (smooth && matches!(s.maker, Maker::Norm(_))) => Some(s),
            // Channels behind a Relu may be rarely active: what was seen of them says too little.
            Some(_) => None,
            None if smooth && !bytes.contains(&p.input) => mul_site(graph, p.input, &by_op),
            None => None,
        });
    }
    Ok(out)
}

/// Whether a layer takes the last axis of a value, as one matrix.
fn takes_rows(layer: &Layer) -> bool {
    matches!(layer.source.as_ref().map(|s| &s.form), Some(Form::Rows)) && layer.blocks == 1
}

/// The site of a Mul between a value and the products among the operators that take it.
fn mul_site(graph: &Graph, value: ValueId, by_op: &BTreeMap<OpId, &Placed>) -> Option<Site> {
    let mut takers = Vec::new();
    for u in graph.sorted_uses(value) {
        let Some(p) = by_op.get(&u.op).filter(|_| u.port == Port::Input(0)) else {
            continue;
        };
        let alone = graph.value(p.layer.weight).has_single_use() && takes_rows(&p.layer);
        takers.push(alone.then(|| p.layer.clone())?);
    }
    let channels = input_channels(takers.first()?);
    let same = takers.iter().all(|l| input_channels(l) == channels);
    same.then_some(Site {
        maker: Maker::Factor,
        value,
        takers,
        bounds: (f64::NEG_INFINITY, f64::INFINITY),
        channels,
    })
}

/// The site around a value, when all that takes it are layers, along its channels.
fn site(graph: &Graph, value: ValueId, by_op: &BTreeMap<OpId, &Placed>) -> Option<Site> {
    let v = graph.value(value);
    if v.is_output() || v.is_input() {
        return None;
    }
    let mut takers = Vec::new();
    for u in graph.sorted_uses(value) {
        let p = by_op.get(&u.op).filter(|_| u.port == Port::Input(0))?;
        let alone = graph.value(p.layer.weight).has_single_use();
        takers.push(alone.then(|| p.layer.clone())?);
    }
    let image = takers.iter().all(|l| graph.op(l.op).is("Conv"));
    let rows = takers.iter().all(takes_rows);
    let channels = input_channels(takers.first()?);
    if !(image || rows) || takers.iter().any(|l| input_channels(l) != channels) {
        return None;
    }
    let (maker, bounds) = maker(graph, value, by_op, image)?;
    let made = match &maker {
        Maker::Layer(l) if graph.op(l.op).is("Conv") == image => l.blocks * l.rows,
        Maker::Layer(_) => return None,
        Maker::Norm(op) => graph.input_tensor(*op, 1)?.len(),
        Maker::Factor => return None,
    };
    (made == channels).then_some(Site {
        maker,
        value,
        takers,
        bounds,
        channels,
    })
}

fn input_channels(layer: &Layer) -> usize {
    layer.blocks * layer.cols / kernel(layer)
}

fn kernel(layer: &Layer) -> usize {
    let axes = layer.dims.get(layer.layout.kernel_axes.clone());
    axes.unwrap_or_default().iter().product::<usize>().max(1)
}

/// What makes the channels of a value, through operators that scale along.
fn maker(
    graph: &Graph,
    value: ValueId,
    by_op: &BTreeMap<OpId, &Placed>,
    image: bool,
) -> Option<(Maker, (f64, f64))> {
    let mut bounds = (f64::NEG_INFINITY, f64::INFINITY);
    let mut at = value;
    loop {
        let op = graph.producer(at)?;
        let o = graph.op(op);
        if let Some(p) = by_op.get(&op) {
            let alone = graph.value(p.layer.weight).has_single_use();
            let l = &p.layer;
            let bias = match o.input(2).filter(|_| !o.is("MatMul")) {
                Some(b) => {
                    let t = graph.tensor(b)?;
                    graph.value(b).has_single_use() && t.len() == l.blocks * l.rows
                }
                None => true,
            };
            let plain = o.float("beta").unwrap_or(1.0) == 1.0;
            return (alone && bias && plain).then(|| (Maker::Layer(Box::new(l.clone())), bounds));
        }
        if o.is("LayerNormalization") && !image {
            let bias = o
                .input(2)
                .and_then(|b| graph.tensor(b).map(|t| (b, t.len())));
            let scale = o
                .input(1)
                .and_then(|s| graph.tensor(s).map(|t| (s, t.len())));
            let ((b, n), (s, m)) = (bias?, scale?);
            let own = |v: ValueId| graph.value(v).has_single_use() && !graph.value(v).is_output();
            let last = o.int_or("axis", -1) == -1;
            return (own(b) && own(s) && n == m && last).then_some((Maker::Norm(op), bounds));
        }
        match &**o.op_type() {
            _ if !o.domain().is_empty() => return None,
            "Relu" | "LeakyRelu" => {}
            "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" if image => {}
            "Clip" => {
                let found = schema::clip_bounds(graph, o)?;
                bounds = (bounds.0.max(found.0), bounds.1.min(found.1));
                // Zero must lie within, or a scaled channel would be cut off elsewhere.
                if bounds.0 > 0.0 || bounds.1 < 0.0 {
                    return None;
                }
            }
            // Any other operator is not homogeneous, or not by channel.
            _ => return None,
        }
        if o.outputs().iter().flatten().count() != 1 {
            return None;
        }
        at = o.input(0)?;
        graph.single_consumer(at)?;
    }
}

/// Maxima, minima and mean squares of channels.
fn measure(
    cx: &PassContext<'_>,
    model: &paring_ir::Model,
    sites: &[Site],
) -> Result<BTreeMap<ValueId, Channels>, PassError> {
    let (Some(engine), Some(data)) = (cx.engine, cx.data) else {
        return Ok(BTreeMap::new());
    };
    let mut axes: BTreeMap<ValueId, bool> = BTreeMap::new();
    for s in sites {
        let image = s.takers.iter().any(|l| model.graph.op(l.op).is("Conv"));
        axes.insert(s.value, image);
        if let Maker::Layer(l) = &s.maker
            && let Some(source) = &l.source
        {
            axes.insert(source.value, image);
        }
    }
    let values: Vec<ValueId> = axes.keys().copied().collect();
    let mut seen: BTreeMap<ValueId, Channels> = BTreeMap::new();
    let options = CompileOptions {
        threads: cx.threads,
        ..CompileOptions::default()
    };
    let watched = observe(
        engine,
        model,
        &values,
        data,
        Some(SAMPLES),
        options,
        &mut |sample, v, t| {
            cx.check_cancelled().map_err(|_| EngineError::Cancelled)?;
            let image = axes.get(&v).copied().unwrap_or(false);
            let mask = Mask::of(&model.graph, sample).filter(|_| !image);
            seen.entry(v).or_default().add(t, mask.as_ref(), image);
            Ok(())
        },
    );
    match watched {
        Err(EngineError::Cancelled) => return Err(PassError::Cancelled),
        other => other?,
    };
    Ok(seen)
}

impl Channels {
    fn add(&mut self, t: &Tensor, mask: Option<&Mask>, image: bool) {
        let Some(all) = t.to_f32s() else { return };
        let dims = t.dims();
        let all = Mask::counted(mask, dims, &all);
        let (channels, inner) = match (image, dims) {
            (true, [_, c, rest @ ..]) => (*c, rest.iter().product::<usize>()),
            (false, [.., c]) => (*c, 1),
            _ => return,
        };
        if self.largest.is_empty() {
            self.largest = vec![0.0; channels];
            self.smallest = vec![0.0; channels];
            self.squares = vec![0.0; channels];
        }
        if self.largest.len() != channels || channels == 0 || inner == 0 {
            return;
        }
        for (i, run) in all.chunks(inner).enumerate() {
            let c = i % channels;
            for &x in run {
                let x = f64::from(x);
                self.largest[c] = self.largest[c].max(x);
                self.smallest[c] = self.smallest[c].min(x);
                self.squares[c] += x * x;
            }
        }
        self.count += (all.len() / channels) as u64;
    }

    fn mean_square(&self, c: usize) -> f64 {
        self.squares.get(c).copied().unwrap_or(0.0) / self.count.max(1) as f64
    }
}

/// What scales do to the error behind, by channel.
struct Cost<'a> {
    channels: &'a Channels,
    /// By channel: the sum of squares of the weights that take it.
    taken: Vec<f64>,
    /// By taker and output: the largest weight of each channel.
    rows: Vec<Vec<Vec<f64>>>,
    /// By channel: the largest weight that makes it, and the power of what it multiplies.
    made: Option<(Vec<f64>, f64)>,
    kernels: Vec<f64>,
    grid: Grid,
    share: f64,
}

impl Cost<'_> {
    fn of(&self, s: &[f64]) -> f64 {
        let ch = self.channels;
        let ends = |c: usize| (ch.smallest[c] * s[c], ch.largest[c] * s[c]);
        let (low, high) = (0..s.len())
            .map(ends)
            .fold((0.0f64, 0.0f64), |(a, b), (l, h)| (a.min(l), b.max(h)));
        let step = (high - low) / 255.0;
        let noise = step * step / 12.0;
        let activation: f64 = (0..s.len())
            .map(|c| noise * self.taken[c] / (s[c] * s[c]))
            .sum();
        let mut weights = 0.0;
        let power: Vec<f64> = (0..s.len())
            .map(|c| ch.mean_square(c) * s[c] * s[c])
            .collect();
        let all: f64 = power.iter().sum();
        for (rows, kernel) in self.rows.iter().zip(&self.kernels) {
            // A row of a depthwise convolution takes one channel.
            let depthwise = rows.first().is_some_and(|r| r.len() == 1) && rows.len() >= s.len();
            let row_scale = |(r, row): (usize, &Vec<f64>)| {
                if depthwise {
                    let c = r * s.len() / rows.len();
                    (row[0] / s[c] / self.grid.limit, power[c])
                } else {
                    let largest = row.iter().zip(s).map(|(w, s)| w / s).fold(0.0, f64::max);
                    (largest / self.grid.limit, all)
                }
            };
            let scales: Vec<(f64, f64)> = rows.iter().enumerate().map(row_scale).collect();
            let widest = scales.iter().map(|x| x.0).fold(0.0, f64::max);
            for (scale, power) in scales {
                let scale = if self.grid.per_channel { scale } else { widest };
                weights += self.share * scale * scale / 12.0 * power * kernel;
            }
        }
        if let (Some((made, power)), false) = (&self.made, self.grid.per_channel) {
            let widest =
                made.iter().zip(s).map(|(w, s)| w * s).fold(0.0, f64::max) / self.grid.limit;
            let noise = self.share * widest * widest / 12.0 * power;
            weights += (0..s.len())
                .map(|c| noise * self.taken[c] / (s[c] * s[c]))
                .sum::<f64>();
        }
        activation + weights
    }
}

/// The scales of least expected error, and the gain in dB; `None` when nothing is gained.
fn scales(
    graph: &Graph,
    site: &Site,
    channels: &Channels,
    own: Option<&Channels>,
    grid: Grid,
    learned: bool,
) -> Result<Option<(Vec<f64>, f64)>, PassError> {
    let n = site.channels;
    if channels.largest.len() != n {
        return Ok(None);
    }
    let cost = cost(graph, site, channels, own, grid, learned)?;
    let unit = vec![1.0; n];
    let before = cost.of(&unit);
    let mut best = (before, unit);
    let reach: Vec<f64> = (0..n)
        .map(|c| channels.largest[c].max(-channels.smallest[c]))
        .collect();
    let widest = reach.iter().copied().fold(0.0, f64::max);
    let incoming = |c: usize| {
        let rows = cost.rows.iter().flatten();
        rows.filter_map(|r| r.get(c)).copied().fold(0.0, f64::max)
    };
    let outgoing = cost.made.as_ref().map(|m| &m.0);
    for power in 1..=8 {
        let power = f64::from(power) / 8.0;
        let by_range = |c: usize| (widest / reach[c].max(widest * 1e-6)).powf(power);
        let by_weight = |c: usize| match outgoing {
            Some(made) => (incoming(c) / made[c].max(1e-12))
                .max(1e-6)
                .powf(power / 2.0),
            None => 1.0,
        };
        let families: [&dyn Fn(usize) -> f64; 2] = [&by_range, &by_weight];
        for family in families {
            let tried: Vec<f64> = (0..n).map(|c| held(family(c), c, site, channels)).collect();
            let found = cost.of(&tried);
            if found < best.0 {
                best = (found, tried);
            }
        }
    }
    let gain = 10.0 * (before / best.0.max(f64::MIN_POSITIVE)).log10();
    let least = match site.maker {
        Maker::Factor => LEAST_GAIN_OF_A_MUL,
        Maker::Layer(_) | Maker::Norm(_) => LEAST_GAIN,
    };
    Ok((gain > least && before > 0.0).then_some((best.1, gain)))
}

/// A scale within what a Clip and caution allow. Powers of two keep floats exactly as they are.
fn held(scale: f64, c: usize, site: &Site, channels: &Channels) -> f64 {
    let (low, high) = site.bounds;
    let (smallest, largest) = (channels.smallest[c], channels.largest[c]);
    // A channel that came near the bound may be cut there.
    let near = |x: f64, bound: f64| bound.is_finite() && bound != 0.0 && x / bound > 0.98;
    if near(largest, high) || near(smallest, low) {
        return 1.0;
    }
    let mut most = MOST;
    if high.is_finite() && largest > 0.0 {
        most = most.min(0.98 * high / largest);
    }
    if low.is_finite() && low < 0.0 && smallest < 0.0 {
        most = most.min(0.98 * low / smallest);
    }
    scale.clamp(1.0 / MOST, most.max(1.0 / MOST))
}

fn cost<'a>(
    graph: &Graph,
    site: &Site,
    channels: &'a Channels,
    own: Option<&Channels>,
    grid: Grid,
    learned: bool,
) -> Result<Cost<'a>, PassError> {
    let gone = || PassError::Bug("a weight is gone".to_owned());
    let mut taken = vec![0.0; site.channels];
    let (mut rows, mut kernels) = (Vec::new(), Vec::new());
    for l in &site.takers {
        let all = l.matrices(graph.tensor(l.weight).ok_or_else(gone)?)?;
        let kernel = kernel(l);
        let per_block = l.cols / kernel;
        let mut by_row = Vec::new();
        for (b, m) in all.iter().enumerate() {
            for r in 0..l.rows {
                let mut largest = vec![0.0f64; per_block];
                for c in 0..l.cols {
                    let w = m[(r, c)].abs();
                    largest[c / kernel] = largest[c / kernel].max(w);
                    taken[b * per_block + c / kernel] += w * w;
                }
                by_row.push(largest);
            }
        }
        rows.push(by_row);
        kernels.push(kernel as f64);
    }
    let made = match &site.maker {
        Maker::Norm(_) | Maker::Factor => None,
        Maker::Layer(l) => {
            let all = l.matrices(graph.tensor(l.weight).ok_or_else(gone)?)?;
            let largest = |m: &faer::Mat<f64>, r: usize| {
                (0..l.cols).map(|c| m[(r, c)].abs()).fold(0.0, f64::max)
            };
            let of = all
                .iter()
                .flat_map(|m| (0..l.rows).map(move |r| largest(m, r)));
            let power = own.map_or(0.0, |o| {
                let sum: f64 = (0..o.largest.len()).map(|c| o.mean_square(c)).sum();
                sum * kernel(l) as f64 / l.blocks as f64
            });
            Some((of.collect(), power))
        }
    };
    Ok(Cost {
        channels,
        taken,
        rows,
        made,
        kernels,
        grid,
        share: if learned { LEARNED_SHARE } else { 1.0 },
    })
}

fn apply(graph: &mut Graph, site: &Site, scales: &[f64]) -> Result<(), PassError> {
    match &site.maker {
        Maker::Layer(l) => {
            let of = |b: usize, r: usize, _: usize| scales[b * l.rows + r];
            scale_weight(graph, l, &of)?;
            if let Some(bias) = graph
                .op(l.op)
                .input(2)
                .filter(|_| !graph.op(l.op).is("MatMul"))
            {
                scale_vector(graph, bias, scales)?;
            }
        }
        Maker::Norm(op) => {
            for slot in [1, 2] {
                if let Some(v) = graph.op(*op).input(slot) {
                    scale_vector(graph, v, scales)?;
                }
            }
        }
        Maker::Factor => {}
    }
    for l in &site.takers {
        let (kernel, per_block) = (kernel(l), l.cols / kernel(l));
        let of = |b: usize, _: usize, c: usize| 1.0 / scales[b * per_block + c / kernel];
        scale_weight(graph, l, &of)?;
    }
    Ok(())
}

/// Puts a Mul between a value and the layers of a site, which then take what it gives.
fn put_factor(
    graph: &mut Graph,
    site: &Site,
    scales: &[f64],
    layers: &mut [Placed],
) -> Result<(), PassError> {
    let Some(first) = site.takers.first() else {
        return Ok(());
    };
    let name = graph.value(site.value).name().clone();
    let factors: Vec<f32> = scales.iter().map(|s| *s as f32).collect();
    let factors = Tensor::from_vec([factors.len()], factors)?;
    let factors = graph.add_constant(&format!("{name}_smoothing"), factors)?;
    let new = NewOp::new("Mul")
        .input(site.value)
        .input(factors)
        .output(format!("{name}_smoothed"))
        .from([first.op])
        .beside(first.op);
    let mul = graph.add_op(new)?;
    let smoothed = emit::output(graph, mul)?;
    let takers: BTreeSet<OpId> = site.takers.iter().map(|l| l.op).collect();
    for p in layers.iter_mut().filter(|p| takers.contains(&p.layer.op)) {
        graph.set_input(p.layer.op, 0, Some(smoothed))?;
        p.input = smoothed;
        if let Some(source) = &mut p.layer.source {
            source.value = smoothed;
        }
    }
    Ok(())
}

fn scale_vector(graph: &mut Graph, v: ValueId, scales: &[f64]) -> Result<(), PassError> {
    let Some(t) = graph.tensor(v).cloned() else {
        return Ok(());
    };
    let Some(all) = t.to_f64s().filter(|a| a.len() == scales.len()) else {
        return Ok(());
    };
    let scaled: Vec<f32> = all
        .iter()
        .zip(scales)
        .map(|(x, s)| (x * s) as f32)
        .collect();
    let new = Tensor::from_vec(t.dims().iter().copied(), scaled)?;
    Ok(graph.set_tensor(v, new, Vec::new())?)
}

fn scale_weight(
    graph: &mut Graph,
    layer: &Layer,
    of: &dyn Fn(usize, usize, usize) -> f64,
) -> Result<(), PassError> {
    let Some(t) = graph.tensor(layer.weight).cloned() else {
        return Ok(());
    };
    let mut all = match t.to_f32s() {
        Some(all) if all.len() == layer.len() => all.into_owned(),
        _ => return Ok(()),
    };
    for b in 0..layer.blocks {
        for r in 0..layer.rows {
            for c in 0..layer.cols {
                let x = &mut all[layer.at(b, r, c)];
                *x = (f64::from(*x) * of(b, r, c)) as f32;
            }
        }
    }
    let new = Tensor::from_vec(t.dims().iter().copied(), all)?;
    Ok(graph.set_tensor(layer.weight, new, Vec::new())?)
}

/// Whether an operator scales along when its input is scaled by a positive number.
#[cfg(test)]
fn is_homogeneous(op_type: &str) -> bool {
    schema::knowledge(op_type).is_some_and(|k| k.zero_preserving)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    #[test]
    fn what_channels_pass_through_keeps_zero() {
        for t in [
            "Relu",
            "LeakyRelu",
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
        ] {
            assert!(is_homogeneous(t), "{t}");
        }
    }
}

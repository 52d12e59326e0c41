//! What losing a channel costs.

use std::collections::HashMap;

use faer::{Mat, MatRef};
use paring_ir::analysis::channels::{ChannelId, Channels, Group};
use paring_ir::schema::{self, Class};
use paring_ir::{Graph, Model, PassContext, PassError, Port, Tensor, ValueId};
use rayon::prelude::*;

use super::{Importance, Options};
use crate::layers::{Layer, layers};
use crate::moments::{Budget, Job, Moments, collect, moments_bytes, pool};
use crate::solve::{output_error, ridge_solve};

/// The channels of a group with what losing each costs.
pub(super) type Order = Vec<(ChannelId, f64)>;

/// Moments of one layer take at most this many bytes.
const MOST_BYTES: usize = 1 << 28;

/// Moments that are held together take at most about this many bytes.
const BYTES_AT_ONCE: usize = 3 << 28;

/// The order of every group's channels.
pub(super) fn orders(
    model: &Model,
    channels: &Channels,
    wanted: &[usize],
    options: &Options,
    importance: Importance,
    cx: &PassContext<'_>,
) -> Result<Vec<Order>, PassError> {
    let weights = Weights::new(model, channels);
    let plain = |power: i32| -> Vec<Order> {
        let group = |&g: &usize| weights.magnitudes(&channels.groups()[g], power);
        wanted.iter().map(group).collect()
    };
    match importance {
        Importance::L1 => Ok(plain(1)),
        Importance::L2 => Ok(plain(2)),
        Importance::BatchNorm => {
            let fallback = plain(2);
            let scaled = wanted
                .iter()
                .zip(fallback)
                .map(|(&g, plain)| weights.scales(&channels.groups()[g]).unwrap_or(plain));
            Ok(scaled.collect())
        }
        Importance::Activation | Importance::Reconstruction => {
            let fallback = plain(2);
            let seen = by_data(model, channels, wanted, options, importance, cx)?;
            // What no layer with moments takes is ranked by magnitude, below everything else of
            // the same rank: nothing is known of what it costs.
            let joint = seen.into_iter().zip(fallback);
            Ok(joint.map(|(seen, plain)| seen.unwrap_or(plain)).collect())
        }
    }
}

/// The constants of a model by id, and the place of every channel in its group.
struct Weights<'m> {
    channels: &'m Channels,
    tensors: HashMap<ValueId, (&'m Graph, &'m Tensor)>,
    place: Vec<usize>,
}

impl<'m> Weights<'m> {
    fn new(model: &'m Model, channels: &'m Channels) -> Weights<'m> {
        let mut tensors = HashMap::new();
        model.for_each_graph(&mut |graph| {
            for v in graph.initializers() {
                if let Some(tensor) = graph.tensor(v) {
                    tensors.insert(v, (graph, tensor));
                }
            }
        });
        Weights {
            channels,
            tensors,
            place: places(channels),
        }
    }

    /// By channel, the sum over its slices of every weight of their magnitudes to a power, each
    /// weight counting by the share of the mean: so that the sizes and scales of layers don't
    /// matter (Fang et al., "DepGraph", 2023, section 3.3).
    fn magnitudes(&self, group: &Group, power: i32) -> Order {
        let sums = self.sums(group, is_weight, power);
        order(group, sums)
    }

    /// By channel, the scales of BatchNormalizations (Liu et al., "Learning Efficient
    /// Convolutional Networks through Network Slimming", 2017); `None` where there are none.
    fn scales(&self, group: &Group) -> Option<Order> {
        let scale = |graph: &Graph, v: ValueId| {
            let uses = graph.value(v).uses();
            uses.iter()
                .any(|u| u.port == Port::Input(1) && graph.op(u.op).is("BatchNormalization"))
        };
        let any = |m: &paring_ir::analysis::channels::Member| {
            self.tensors
                .get(&m.value)
                .is_some_and(|(g, _)| scale(g, m.value))
        };
        group
            .members
            .iter()
            .any(any)
            .then(|| order(group, self.sums(group, scale, 1)))
    }

    fn sums(
        &self,
        group: &Group,
        counts: impl Fn(&Graph, ValueId) -> bool,
        power: i32,
    ) -> Vec<f64> {
        let n = group.channels.len();
        let mut all = vec![0.0; n];
        let mut weights = 0usize;
        for member in &group.members {
            let Some((graph, tensor)) = self.tensors.get(&member.value) else {
                continue;
            };
            if !counts(graph, member.value) {
                continue;
            }
            let slices = slices(tensor, member.axis, power);
            let mut own = vec![0.0; n];
            let along = self.channels.axis(member.value, member.axis);
            for (index, channel) in along.iter().flat_map(|a| a.iter()).enumerate() {
                if let Some(channel) = channel.filter(|c| group.channels.binary_search(c).is_ok()) {
                    own[self.place[channel.index()]] += slices.get(index).copied().unwrap_or(0.0);
                }
            }
            let mean = own.iter().sum::<f64>() / n.max(1) as f64;
            if mean > 0.0 && mean.is_finite() {
                weights += 1;
                all.iter_mut().zip(&own).for_each(|(a, o)| *a += o / mean);
            }
        }
        all.iter_mut().for_each(|a| *a /= weights.max(1) as f64);
        all
    }
}

fn order(group: &Group, costs: Vec<f64>) -> Order {
    group.channels.iter().copied().zip(costs).collect()
}

/// The place of every channel in its group.
fn places(channels: &Channels) -> Vec<usize> {
    let mut place = vec![0; channels.channel_count()];
    for group in channels.groups() {
        for (i, c) in group.channels.iter().enumerate() {
            place[c.index()] = i;
        }
    }
    place
}

fn is_weight(graph: &Graph, v: ValueId) -> bool {
    graph.value(v).uses().iter().any(|u| match u.port {
        Port::Input(slot) => {
            let op = graph.op(u.op);
            let linear =
                schema::of(op).is_some_and(|k| matches!(k.class, Class::Linear | Class::Recurrent));
            linear && schema::weight_slots(op).contains(&(slot as usize))
        }
        _ => false,
    })
}

/// By index of an axis, the sum of magnitudes to a power.
fn slices(tensor: &Tensor, axis: usize, power: i32) -> Vec<f64> {
    let dims = tensor.dims();
    let (Some(&size), Some(all)) = (dims.get(axis), tensor.to_f32s()) else {
        return Vec::new();
    };
    let inner: usize = dims[axis + 1..].iter().product();
    let mut sums = vec![0.0; size];
    for (i, run) in all.chunks_exact(inner.max(1)).enumerate() {
        let own = run.iter().map(|v| f64::from(*v).abs());
        sums[i % size.max(1)] += match power {
            1 => own.sum::<f64>(),
            _ => own.map(|v| v * v).sum::<f64>(),
        };
    }
    sums
}

/// A layer that takes channels of a group.
struct Consumer {
    /// The place among the layers that are watched.
    layer: usize,
    /// By channel of the group: the columns, with their blocks.
    columns: Vec<Vec<(usize, usize)>>,
}

/// The orders of groups whose consumers' inputs can be watched.
fn by_data(
    model: &Model,
    channels: &Channels,
    wanted: &[usize],
    options: &Options,
    importance: Importance,
    cx: &PassContext<'_>,
) -> Result<Vec<Option<Order>>, PassError> {
    let all = layers(&model.graph)?;
    let place = places(channels);
    let consumers: Vec<Vec<Consumer>> = wanted
        .iter()
        .map(|&g| consumers(channels, &channels.groups()[g], &all, &place))
        .collect();
    let mut out: Vec<Option<Order>> = wanted.iter().map(|_| None).collect();
    let budget = Budget {
        samples: Some(options.samples),
        ..Budget::DEFAULT
    };
    cx.progress()
        .start("channel importance", wanted.len() as u64);
    let mut start = 0;
    while start < wanted.len() {
        cx.check_cancelled()?;
        let end = batch_end(&consumers, &all, start);
        let mut needed: Vec<usize> = consumers[start..end]
            .iter()
            .flatten()
            .map(|c| c.layer)
            .collect();
        needed.sort_unstable();
        needed.dedup();
        let jobs: Vec<Job<'_>> = needed
            .iter()
            .map(|&l| Job {
                layer: &all[l],
                reference: None,
            })
            .collect();
        let moments = collect(cx, model, None, &jobs, budget)?;
        let seen: HashMap<usize, &Moments> = needed
            .iter()
            .zip(&moments)
            .filter_map(|(&l, m)| Some((l, m.as_ref()?)))
            .collect();
        let scored: Result<Vec<Option<Order>>, PassError> = pool(cx.threads)?.install(|| {
            (start..end)
                .into_par_iter()
                .map(|i| {
                    cx_check(cx)?;
                    let group = &channels.groups()[wanted[i]];
                    score(model, group, &consumers[i], (&all, &seen), importance)
                })
                .collect()
        });
        for (i, order) in (start..end).zip(scored?) {
            out[i] = order;
        }
        cx.progress().advance((end - start) as u64);
        start = end;
    }
    cx.progress().finish();
    Ok(out)
}

fn cx_check(cx: &PassContext<'_>) -> Result<(), PassError> {
    cx.check_cancelled()
}

/// As many groups as fit into memory, at least one.
fn batch_end(consumers: &[Vec<Consumer>], all: &[Layer], start: usize) -> usize {
    let mut held: Vec<usize> = Vec::new();
    let mut bytes = 0usize;
    for (i, own) in consumers.iter().enumerate().skip(start) {
        for c in own {
            if !held.contains(&c.layer) {
                held.push(c.layer);
                // The inverse takes as much again.
                let one = moments_bytes(&all[c.layer], true);
                bytes = bytes.saturating_add(one);
            }
        }
        if bytes > BYTES_AT_ONCE && i > start {
            return i;
        }
    }
    consumers.len()
}

fn consumers(channels: &Channels, group: &Group, all: &[Layer], place: &[usize]) -> Vec<Consumer> {
    let mut out = Vec::new();
    for (at, layer) in all.iter().enumerate() {
        let axis = layer.layout.input_axis;
        let member = group
            .members
            .iter()
            .any(|m| m.value == layer.weight && m.axis == axis);
        if !member || layer.source.is_none() || moments_bytes(layer, false) > MOST_BYTES {
            continue;
        }
        let Some(along) = channels.axis(layer.weight, axis) else {
            continue;
        };
        let mut columns = vec![Vec::new(); group.channels.len()];
        for (index, channel) in along.iter().enumerate() {
            if let Some(channel) = channel.filter(|c| group.channels.binary_search(c).is_ok()) {
                columns[place[channel.index()]].extend(columns_of(layer, index));
            }
        }
        out.push(Consumer { layer: at, columns });
    }
    out
}

/// The columns, with their blocks, that an index of a weight's axis of inputs stands for.
pub(super) fn columns_of(layer: &Layer, index: usize) -> Vec<(usize, usize)> {
    let inputs = layer.dims[layer.layout.input_axis].max(1);
    let per_block = inputs.div_ceil(layer.blocks.max(1));
    let kernel: usize = layer.dims[layer.layout.kernel_axes.clone()]
        .iter()
        .product();
    if layer.cols == inputs * kernel || layer.cols == inputs {
        // The axis counts the inputs of one block, the same ones for each.
        let width = (layer.cols / inputs).max(1);
        let own = index * width..(index + 1) * width;
        return (0..layer.blocks)
            .flat_map(|b| own.clone().map(move |c| (b, c)))
            .collect();
    }
    vec![(index / per_block.max(1), index % per_block.max(1))]
}

type Seen<'a> = (&'a [Layer], &'a HashMap<usize, &'a Moments>);

/// One block of a layer under elimination.
struct Block {
    weights: Mat<f64>,
    /// The inverse of the damped second moments about the mean; for activations the moments.
    gram: Mat<f64>,
    /// By channel of the group: its columns here.
    columns: Vec<Vec<usize>>,
}

/// The order of one group; `None` when none of its consumers could be watched.
fn score(
    model: &Model,
    group: &Group,
    consumers: &[Consumer],
    (all, seen): Seen<'_>,
    importance: Importance,
) -> Result<Option<Order>, PassError> {
    let mut blocks = Vec::new();
    let mut count = 0usize;
    for consumer in consumers {
        let layer = &all[consumer.layer];
        let (Some(moments), Some(tensor)) =
            (seen.get(&consumer.layer), model.graph.tensor(layer.weight))
        else {
            continue;
        };
        let weights = layer.matrices(tensor)?;
        let centered: Vec<Mat<f64>> = (0..layer.blocks).map(|b| centered(moments, b)).collect();
        let energy: f64 = weights
            .iter()
            .zip(&centered)
            .map(|(w, g)| output_error(w.as_ref(), g.as_ref()))
            .sum();
        if energy <= 0.0 || !energy.is_finite() {
            continue;
        }
        count += 1;
        // With outputs of energy 1 the errors of all consumers are of one scale.
        let scale = faer::Scale(1.0 / energy.sqrt());
        for (b, (w, g)) in weights.into_iter().zip(centered).enumerate() {
            let columns: Vec<Vec<usize>> = consumer
                .columns
                .iter()
                .map(|all| {
                    all.iter()
                        .filter(|(at, _)| *at == b)
                        .map(|(_, c)| *c)
                        .collect()
                })
                .collect();
            if columns.iter().all(Vec::is_empty) {
                continue;
            }
            let gram = match importance {
                Importance::Reconstruction => {
                    let n = g.nrows();
                    let identity = Mat::<f64>::identity(n, n);
                    match ridge_solve(g.as_ref(), identity.as_ref(), DAMPING) {
                        Some(inverse) => inverse,
                        None => return Ok(None),
                    }
                }
                _ => g,
            };
            blocks.push(Block {
                weights: scale * w,
                gram,
                columns,
            });
        }
    }
    if count == 0 {
        return Ok(None);
    }
    let mut costs = match importance {
        Importance::Reconstruction => eliminate(&mut blocks, group.channels.len()),
        _ => losses(&blocks, group.channels.len()),
    };
    costs.iter_mut().for_each(|c| *c /= count as f64);
    Ok(Some(order(group, costs)))
}

/// The share of the mean of the diagonal that is added to it: columns that say nothing new must
/// not look as if they were known exactly.
const DAMPING: f64 = 1e-3;

/// Second moments about the mean, which goes into the bias.
pub(super) fn centered(moments: &Moments, block: usize) -> Mat<f64> {
    let (gram, mean) = (&moments.gram[block], &moments.mean[block]);
    Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| {
        gram[(i, j)] - mean[i] * mean[j]
    })
}

fn part(m: MatRef<'_, f64>, rows: &[usize], cols: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), cols.len(), |i, j| m[(rows[i], cols[j])])
}

/// By channel, the error of the outputs when it alone goes and nothing makes up for it.
fn losses(blocks: &[Block], n: usize) -> Vec<f64> {
    let one = |channel: usize| {
        let of = |block: &Block| {
            let own = &block.columns[channel];
            let rows: Vec<usize> = (0..block.weights.nrows()).collect();
            let weights = part(block.weights.as_ref(), &rows, own);
            let gram = part(block.gram.as_ref(), own, own);
            output_error(weights.as_ref(), gram.as_ref())
        };
        blocks.iter().map(of).sum()
    };
    (0..n).map(one).collect()
}

/// By channel, the error that its going adds when the channels go one after the other, each time
/// the one that adds least, and those that stay make up for it by least squares. This is the
/// optimal brain surgeon with whole channels as weights (Hassibi and Stork, 1992; Frantar and
/// Alistarh, "Optimal Brain Compression", 2022).
fn eliminate(blocks: &mut [Block], n: usize) -> Vec<f64> {
    let mut alive: Vec<usize> = (0..n).collect();
    let mut costs = vec![0.0; n];
    let mut highest = 0.0f64;
    while !alive.is_empty() {
        let mut best: Option<(usize, f64)> = None;
        for (i, &channel) in alive.iter().enumerate() {
            let cost: f64 = blocks.iter().map(|b| removal_cost(b, channel)).sum();
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((i, cost));
            }
        }
        let Some((at, cost)) = best else { break };
        let channel = alive.remove(at);
        highest = highest.max(if cost.is_finite() { cost } else { f64::MAX });
        costs[channel] = highest;
        blocks.iter_mut().for_each(|b| eliminate_one(b, channel));
    }
    costs
}

/// The inverse of the channel's part of the inverse moments.
fn inner(block: &Block, own: &[usize]) -> Option<Mat<f64>> {
    let k = part(block.gram.as_ref(), own, own);
    if let [_] = own {
        let v = k[(0, 0)];
        return (v > 0.0).then(|| Mat::from_fn(1, 1, |_, _| 1.0 / v));
    }
    let identity = Mat::<f64>::identity(own.len(), own.len());
    ridge_solve(k.as_ref(), identity.as_ref(), 1e-12)
}

fn removal_cost(block: &Block, channel: usize) -> f64 {
    let own = &block.columns[channel];
    if own.is_empty() {
        return 0.0;
    }
    let Some(inner) = inner(block, own) else {
        return f64::MAX;
    };
    let mut cost = 0.0;
    for (i, &a) in own.iter().enumerate() {
        for (j, &b) in own.iter().enumerate().skip(i) {
            let dot: f64 = block
                .weights
                .col(a)
                .iter()
                .zip(block.weights.col(b).iter())
                .map(|(x, y)| x * y)
                .sum();
            cost += dot * inner[(i, j)] * if i == j { 1.0 } else { 2.0 };
        }
    }
    cost.max(0.0)
}

fn eliminate_one(block: &mut Block, channel: usize) {
    let own = block.columns[channel].clone();
    if own.is_empty() {
        return;
    }
    let Some(inner) = inner(block, &own) else {
        return;
    };
    let every: Vec<usize> = (0..block.gram.nrows()).collect();
    let rows: Vec<usize> = (0..block.weights.nrows()).collect();
    let across = part(block.gram.as_ref(), &own, &every);
    let step = &inner * &across;
    let weights = part(block.weights.as_ref(), &rows, &own);
    block.weights -= &weights * &step;
    block.gram -= across.transpose() * &step;
}

/// The costs of [`eliminate`] for channels of one column each.
#[cfg(test)]
pub(super) fn elimination_order(gram: Mat<f64>, weights: Mat<f64>) -> Vec<f64> {
    let n = gram.nrows();
    let identity = Mat::<f64>::identity(n, n);
    let inverse = ridge_solve(gram.as_ref(), identity.as_ref(), DAMPING).unwrap_or(identity);
    let mut blocks = [Block {
        weights,
        gram: inverse,
        columns: (0..n).map(|c| vec![c]).collect(),
    }];
    eliminate(&mut blocks, n)
}

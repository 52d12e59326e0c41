//! Makes up for removed channels without training.
//!
//! Layer after layer in the order of the data, the weights become those that come nearest to the
//! original layer's outputs, in the mean of squares over the calibration data, from the inputs
//! that the model makes now. Layers that don't depend on each other are refitted together.

use std::collections::{HashMap, HashSet};

use faer::Mat;
use paring_ir::analysis::channels::{Channels, Removed};
use paring_ir::{Graph, Model, OpId, PassContext, PassError, Tensor, ValueId};

use super::{Options, Recover};
use crate::layers::{Layer, add_to_bias, bias_len, bias_place, layers};
use crate::moments::{Budget, Job, Moments, collect, moments_bytes};
use crate::solve::{Refit, Refitted, row_errors};

/// Moments of one layer take at most this many bytes.
const MOST_BYTES: usize = 1 << 29;

/// How strongly weights are held where they are, by the mean of the diagonal.
const HOLD: f64 = 1e-3;

/// A layer of the new model and the one that it was made from.
struct Pair {
    new: Layer,
    old: Layer,
    /// By block, the rows of the old layer that are left.
    rows: Vec<Vec<usize>>,
}

pub(super) fn recover(
    cx: &PassContext<'_>,
    original: &Model,
    model: &mut Model,
    gone: (&Channels, &Removed),
    options: &Options,
    how: Recover,
) -> Result<(), PassError> {
    if how == Recover::None {
        return Ok(());
    }
    let waves = waves(original, model, gone)?;
    let count: usize = waves.iter().map(Vec::len).sum();
    cx.progress().start("refit", count as u64);
    let budget = Budget {
        samples: Some(options.samples),
        ..Budget::DEFAULT
    };
    for wave in waves {
        cx.check_cancelled()?;
        let jobs: Vec<Job<'_>> = wave
            .iter()
            .map(|p| Job {
                layer: &p.new,
                reference: Some(&p.old),
            })
            .collect();
        let moments = collect(cx, model, Some(original), &jobs, budget)?;
        for (pair, moments) in wave.iter().zip(moments) {
            if let Some(moments) = moments {
                refit(original, model, pair, &moments, options, how)?;
            }
        }
        cx.progress().advance(wave.len() as u64);
    }
    cx.progress().finish();
    Ok(())
}

/// The layers whose inputs are other ones now, in runs that don't depend on each other.
fn waves(
    original: &Model,
    model: &Model,
    (channels, removed): (&Channels, &Removed),
) -> Result<Vec<Vec<Pair>>, PassError> {
    let old: HashMap<(OpId, usize), Layer> = layers(&original.graph)?
        .into_iter()
        .map(|l| ((l.op, l.slot), l))
        .collect();
    let graph = &model.graph;
    let changed = changed_ops(graph, channels, removed)?;
    let depths = depths(graph)?;
    let mut waves: Vec<(usize, Vec<Pair>)> = Vec::new();
    for new in layers(graph)? {
        let own = channels.axes(new.weight).iter().flatten();
        let cut = own.zip(0..).any(|(a, _)| a.count(removed) != a.len());
        let Some(source) = &new.source else { continue };
        let moved = graph
            .producer(source.value)
            .is_some_and(|p| changed.contains(&p));
        let shared = graph.value(new.weight).uses().len() > 1;
        if !(cut || moved) || shared || moments_bytes(&new, true) > MOST_BYTES {
            continue;
        }
        let Some(old) = old.get(&(new.op, new.slot)).cloned() else {
            continue;
        };
        let Some(pair) = pair(new, old, channels, removed) else {
            continue;
        };
        let depth = depths.get(&pair.new.op).copied().unwrap_or(0);
        match waves.iter_mut().find(|(d, _)| *d == depth) {
            Some((_, wave)) => wave.push(pair),
            None => waves.push((depth, vec![pair])),
        }
    }
    waves.sort_by_key(|(depth, _)| *depth);
    Ok(waves.into_iter().map(|(_, wave)| wave).collect())
}

/// The operators whose results are other ones now.
fn changed_ops(
    graph: &Graph,
    channels: &Channels,
    removed: &Removed,
) -> Result<HashSet<OpId>, PassError> {
    let cut = |v: ValueId| {
        let axes = channels.axes(v).iter().flatten();
        axes.into_iter().any(|a| a.count(removed) != a.len())
    };
    let mut changed = HashSet::new();
    for op in graph.topological_order()? {
        let o = graph.op(op);
        let moved = o
            .inputs()
            .flatten()
            .chain(o.captures())
            .any(|v| cut(v) || graph.producer(v).is_some_and(|p| changed.contains(&p)));
        if moved {
            changed.insert(op);
        }
    }
    Ok(changed)
}

/// How many layers come before each operator, on the longest way.
fn depths(graph: &Graph) -> Result<HashMap<OpId, usize>, PassError> {
    let makers: HashSet<OpId> = layers(graph)?.iter().map(|l| l.op).collect();
    let mut depths: HashMap<OpId, usize> = HashMap::new();
    for op in graph.topological_order()? {
        let before = graph.op(op).inputs().flatten().filter_map(|v| {
            let producer = graph.producer(v)?;
            let own = depths.get(&producer).copied().unwrap_or(0);
            Some(own + usize::from(makers.contains(&producer)))
        });
        let depth = before.max().unwrap_or(0);
        depths.insert(op, depth);
    }
    Ok(depths)
}

/// What is left of a layer; `None` where groups went as a whole, which leaves nothing to refit
/// across them.
fn pair(new: Layer, old: Layer, channels: &Channels, removed: &Removed) -> Option<Pair> {
    if new.blocks != old.blocks {
        return None;
    }
    let kept = |axis: usize| -> Vec<usize> {
        match channels.axis(old.weight, axis) {
            Some(along) => along.kept(removed).iter().map(|&i| i as usize).collect(),
            None => (0..old.dims.get(axis).copied().unwrap_or(0)).collect(),
        }
    };
    let outputs = kept(old.layout.output_axis);
    let kernel: usize = old
        .dims
        .get(old.layout.kernel_axes.clone())?
        .iter()
        .product();
    // Of a transposed convolution each channel has a row for every position of the kernel.
    let total = old.dims.get(old.layout.output_axis).copied()?;
    let per_channel = if old.rows == total * kernel && kernel > 1 {
        kernel
    } else {
        1
    };
    let channels_per_block = old.rows / per_channel.max(1);
    let spans_blocks = total == channels_per_block * old.blocks && old.blocks > 1;
    let rows = (0..old.blocks)
        .map(|b| {
            let own = outputs.iter().filter_map(|&i| match spans_blocks {
                true if i / channels_per_block.max(1) == b => Some(i % channels_per_block.max(1)),
                true => None,
                false => Some(i),
            });
            own.flat_map(|i| i * per_channel..(i + 1) * per_channel)
                .collect()
        })
        .collect::<Vec<Vec<usize>>>();
    let mut cols = vec![Vec::new(); old.blocks];
    for index in kept(old.layout.input_axis) {
        for (b, c) in super::importance::columns_of(&old, index) {
            if let Some(own) = cols.get_mut(b) {
                own.push(c);
            }
        }
    }
    let fits = rows.iter().all(|r| r.len() == new.rows) && cols.iter().all(|c| c.len() == new.cols);
    fits.then_some(Pair {
        new,
        old,
        rows,
    })
}

/// Puts the best weights and biases into one layer.
fn refit(
    original: &Model,
    model: &mut Model,
    pair: &Pair,
    moments: &Moments,
    options: &Options,
    how: Recover,
) -> Result<(), PassError> {
    let (new, old) = (&pair.new, &pair.old);
    let (Some(before), Some(now)) = (
        original.graph.tensor(old.weight),
        model.graph.tensor(new.weight).cloned(),
    ) else {
        return Ok(());
    };
    let targets = old.matrices(before)?;
    let present = new.matrices(&now)?;
    let matmul = model.graph.op(new.op).is("MatMul") && new.slot == 1 && new.blocks == 1;
    let place = bias_place(&model.graph, new).is_some() || matmul;
    let bias = place && bias_len(new) == new.blocks * new.rows;
    let mut made: Vec<Refitted> = Vec::new();
    for (b, (target, present)) in targets.iter().zip(&present).enumerate() {
        let rows = &pair.rows[b];
        let target = Mat::from_fn(rows.len(), target.ncols(), |i, j| target[(rows[i], j)]);
        let refit = Refit {
            target: target.as_ref(),
            present: present.as_ref(),
            bias,
            damping: HOLD,
        };
        let one = match how {
            Recover::LeastSquares => refit.dense(moments, b),
            _ => Some(Refitted {
                bias: refit.bias(present, moments, b),
                weights: present.clone(),
            }),
        };
        match one {
            Some(one) => made.push(one),
            None => return Ok(()),
        }
    }
    let weights: Vec<Mat<f64>> = made.iter().map(|r| r.weights.clone()).collect();
    let Ok(tensor) = new.tensor(now.dtype(), &weights) else {
        return Ok(());
    };
    if how == Recover::LeastSquares {
        model.graph.set_tensor(new.weight, tensor, Vec::new())?;
    }
    let delta: Vec<f64> = made.iter().flat_map(|r| r.bias.iter().copied()).collect();
    if bias && delta.iter().any(|d| *d != 0.0) {
        add_to_bias(&mut model.graph, new, &delta, true)?;
    }
    if options.batch_norm {
        estimate_batch_norm(model, pair, &weights, moments)?;
    }
    Ok(())
}

/// The BatchNormalization right behind a layer gets the mean and the variance of what the layer
/// makes now.
fn estimate_batch_norm(
    model: &mut Model,
    pair: &Pair,
    weights: &[Mat<f64>],
    moments: &Moments,
) -> Result<(), PassError> {
    let graph = &mut model.graph;
    let Some(out) = graph.op(pair.new.op).output(0) else {
        return Ok(());
    };
    let Some((norm, _)) = graph.single_consumer(out) else {
        return Ok(());
    };
    let per_channel = bias_len(&pair.new) == pair.new.blocks * pair.new.rows;
    if !graph.op(norm).is("BatchNormalization") || !per_channel {
        return Ok(());
    }
    let bias = graph
        .input_tensor(pair.new.op, 2)
        .and_then(Tensor::to_f64s)
        .unwrap_or_default();
    let (mut means, mut variances) = (Vec::new(), Vec::new());
    for (b, w) in weights.iter().enumerate() {
        let gram = super::importance::centered(moments, b);
        variances.extend(row_errors(w.as_ref(), gram.as_ref()));
        for row in 0..w.nrows() {
            let x = moments.mean[b].iter().enumerate();
            means.push(x.map(|(c, x)| w[(row, c)] * x).sum::<f64>());
        }
    }
    for (mean, bias) in means.iter_mut().zip(&bias) {
        *mean += bias;
    }
    for (slot, values) in [(3, means), (4, variances)] {
        let Some(v) = graph.op(norm).input(slot) else {
            continue;
        };
        let Some(old) = graph.tensor(v) else { continue };
        let alone = graph.value(v).has_single_use();
        if old.len() == values.len() && alone && values.iter().all(|v| v.is_finite()) {
            let (dtype, dims) = (old.dtype(), old.dims().to_vec());
            if let Ok(tensor) = crate::linear::narrowed(dtype, &dims, &values) {
                graph.set_tensor(v, tensor, Vec::new())?;
            }
        }
    }
    Ok(())
}

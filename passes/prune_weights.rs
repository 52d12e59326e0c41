//! `prune-weights`: the weights that are smallest by magnitude become zero.
//!
//! ```text
//! before   float[4] w = {0.1, -2, 0.3, 4}      after, at sparsity 0.5   float[4] w = {0, -2, 0, 4}
//! ```
//!
//! Zeros make a model smaller once it is compressed, and are where sparse formats start. Dense
//! engines don't run them faster: remove whole channels for that.
//!
//! Pruned are the weights of convolutions, matrix products and recurrent networks. A weight that
//! several of them share is pruned once. Shapes, element types and biases stay. Elements of
//! equal magnitude go in the order of their position, so the result does not depend on threads;
//! elements that are zero already count.
//!
//! Left alone, with a remark each:
//! - the first convolution, `first` (see `include-first`);
//! - depthwise convolutions, `depthwise` (see `include-depthwise`);
//! - small weights, `small` (see `min-elements`);
//! - weights that something else takes as well, such as an embedding that is also the last
//!   layer, `shared`; that are graph outputs, `graph-output`; or that a graph input may
//!   override, `overridable`;
//! - quantized weights, `element-type`.
//!
//! Magnitude pruning: Han et al., "Learning both Weights and Connections for Efficient Neural
//! Networks", 2015; uniform and global sparsity: Gale et al., "The State of Sparsity in Deep
//! Neural Networks", 2019; layer-adaptive sparsity: Lee et al., "Layer-adaptive Sparsity for the
//! Magnitude-based Pruning", 2021.

use std::collections::HashMap;

use half::{bf16, f16};
use paring_ir::schema::{self, Class, Role};
use paring_ir::{
    Changed, DType, Effect, Graph, GraphId, Model, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Port, Tensor, ValueId,
};

use crate::clustered::refuse_clustered;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct PruneWeights {
    options: OptionSet<Options>,
}

/// How much is pruned, and where.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The share of zeros to reach, from 0 (nothing changes) to 1. Half is what most trained
    /// networks bear without retraining; measure it, small networks bear less.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sparsity: f64,
    /// How the zeros are spread over the layers.
    #[schemars(extend("x-scope" = "pass"))]
    pub distribution: Distribution,
    /// No layer gets a larger share of zeros than this, so that none is emptied: 0.95 leaves
    /// one weight in twenty.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_layer_sparsity: f64,
    /// Prune the first convolution too. It has few weights and every later layer lives on what
    /// it lets through, so by default it stays.
    #[schemars(extend("x-scope" = "pass"))]
    pub include_first: bool,
    /// Prune depthwise convolutions too. Each channel has a handful of weights, so by default
    /// they stay.
    pub include_depthwise: bool,
    /// Weights of fewer elements stay: zeros in them save nothing.
    pub min_elements: usize,
}

/// How zeros are spread over layers. A layer with a sparsity of its own (by type or name) is
/// always pruned by itself.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// Each weight counts by the share of its square in the sum of squares of its layer, those
    /// that go before it left out. Layers that live on few large weights lose most, and scales
    /// don't matter. At one half it keeps outputs 4 to 6 dB closer than the others do.
    #[default]
    LayerAdaptive,
    /// Every layer gets the same share.
    Uniform,
    /// The smallest weights of all layers together go; layers of small weights lose more.
    Global,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sparsity: 0.5,
            distribution: Distribution::default(),
            max_layer_sparsity: 0.95,
            include_first: false,
            include_depthwise: false,
            min_elements: 256,
        }
    }
}

impl Pass for PruneWeights {
    const INFO: PassInfo = PassInfo::new(
        "prune-weights",
        "Set the weights that are smallest by magnitude to zero",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants", "fold-batch-norm"]);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let whole = options.whole();
        let invalid = |key: &str, reason: String| {
            Err(OptionError::Invalid {
                path: format!("prune-weights.{key}"),
                reason,
            })
        };
        for (key, share) in [
            ("sparsity", whole.sparsity),
            ("max-layer-sparsity", whole.max_layer_sparsity),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return invalid(key, format!("expected a share from 0 to 1, found {share}"));
            }
        }
        if whole.sparsity > whole.max_layer_sparsity {
            return invalid(
                "sparsity",
                format!(
                    "{} is more than max-layer-sparsity ({}) allows; raise that as well",
                    whole.sparsity, whole.max_layer_sparsity
                ),
            );
        }
        Ok(PruneWeights { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| !self.options.for_op(graph, op).is_skip();
        refuse_clustered(model, Self::INFO.name, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let layers = self.layers(model, cx)?;
        let counts = self.counts(&layers, cx)?;
        let mut plans: HashMap<GraphId, Vec<(Layer, usize)>> = HashMap::new();
        for (layer, count) in layers.into_iter().zip(counts) {
            plans
                .entry(layer.weight.graph())
                .or_default()
                .push((layer, count));
        }
        let mut changed = Changed::No;
        model.edit_graphs(&mut |graph| {
            for (layer, count) in plans.remove(&graph.id()).unwrap_or_default() {
                cx.check_cancelled()?;
                changed |= prune(graph, &layer, count, cx)?;
            }
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

/// A weight to prune, and the first operator that takes it.
struct Layer {
    op: OpId,
    weight: ValueId,
    tensor: Tensor,
    sparsity: f64,
    cap: usize,
    /// It has a sparsity of its own.
    apart: bool,
}

impl PruneWeights {
    /// The weights to prune, in the order of the data flow, inner graphs after outer ones.
    fn layers(&self, model: &Model, cx: &mut PassContext<'_>) -> Result<Vec<Layer>, PassError> {
        let mut layers = Vec::new();
        let mut first = !self.options.whole().include_first;
        let mut failed = None;
        model.for_each_graph(&mut |graph| {
            let mut seen = std::collections::HashSet::new();
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
                        layers.extend(self.layer(graph, op, slot, weight, is_first, cx));
                    }
                }
            }
        });
        match failed {
            Some(e) => Err(e.into()),
            None => Ok(layers),
        }
    }

    /// The layer of a weight, unless there is a reason to leave it.
    fn layer(
        &self,
        graph: &Graph,
        op: OpId,
        slot: usize,
        weight: ValueId,
        is_first: bool,
        cx: &mut PassContext<'_>,
    ) -> Option<Layer> {
        let options = self.options.for_op(graph, op).options()?;
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
        let o = graph.op(op);
        let depthwise = schema::weight_layout_at(o, slot, tensor.rank())
            .is_some_and(|layout| layout.is_depthwise(tensor.dims()));
        let taken_otherwise = graph.sorted_uses(weight).iter().any(|u| match u.port {
            Port::Input(slot) => !weight_slots(graph, u.op).contains(&(slot as usize)),
            _ => true,
        });
        let reason = if !tensor.dtype().is_float() {
            Some((
                "element-type",
                format!("the weight is of type {}", tensor.dtype()),
            ))
        } else if value.is_output() {
            Some(("graph-output", "the weight is a graph output".to_owned()))
        } else if taken_otherwise {
            Some((
                "shared",
                "something that is no such layer takes the weight too".to_owned(),
            ))
        } else if is_first {
            Some((
                "first",
                "it is the first convolution; include-first prunes it".to_owned(),
            ))
        } else if depthwise && !options.include_depthwise {
            Some((
                "depthwise",
                "it is depthwise; include-depthwise prunes it".to_owned(),
            ))
        } else if tensor.len() < options.min_elements.max(1) {
            let why = format!("{} elements are fewer than min-elements", tensor.len());
            Some(("small", why))
        } else {
            None
        };
        if let Some((code, why)) = reason {
            cx.missed(graph, op, code, why);
            return None;
        }
        let whole = self.options.whole();
        Some(Layer {
            op,
            weight,
            cap: share(options.max_layer_sparsity, tensor.len()),
            sparsity: options.sparsity.clamp(0.0, 1.0),
            apart: whole.distribution == Distribution::Uniform
                || options.sparsity != whole.sparsity,
            tensor,
        })
    }

    /// How many elements of each layer become zero.
    fn counts(&self, layers: &[Layer], cx: &PassContext<'_>) -> Result<Vec<usize>, PassError> {
        let mut counts: Vec<usize> = layers
            .iter()
            .map(|l| share(l.sparsity, l.tensor.len()).min(l.cap))
            .collect();
        let pool: Vec<usize> = (0..layers.len()).filter(|&i| !layers[i].apart).collect();
        let total: usize = pool.iter().map(|&i| layers[i].tensor.len()).sum();
        let wanted = share(self.options.whole().sparsity, total);
        let members: Vec<&Layer> = pool.iter().map(|&i| &layers[i]).collect();
        for (&i, count) in pool.iter().zip(spread(
            &members,
            wanted,
            self.options.whole().distribution,
            cx,
        )?) {
            counts[i] = count;
        }
        Ok(counts)
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

/// A share of a number of elements, rounded down.
fn share(share: f64, elements: usize) -> usize {
    ((elements as f64 * share.clamp(0.0, 1.0)).floor() as usize).min(elements)
}

/// Calls `f` with the magnitude of every element, as a number that orders magnitudes and is 0
/// for zero alone. NaN is the largest.
fn for_each_magnitude(tensor: &Tensor, mut f: impl FnMut(u64)) {
    let key = |v: f64| v.abs().to_bits();
    // Of these types; the caller checked.
    match tensor.dtype() {
        DType::F32 => {
            let all = tensor.view::<f32>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        DType::F64 => {
            let all = tensor.view::<f64>();
            all.iter().flat_map(|v| v.iter()).for_each(|&v| f(key(v)));
        }
        DType::F16 => {
            let all = tensor.view::<f16>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        DType::BF16 => {
            let all = tensor.view::<bf16>();
            all.iter()
                .flat_map(|v| v.iter())
                .for_each(|&v| f(key(v.into())));
        }
        _ => {}
    }
}

/// Elements of one layer whose magnitudes differ by less than one part in 512.
struct Bin {
    layer: usize,
    count: usize,
    /// The sum of their squares, or infinity.
    squares: f64,
    /// Bins of the lowest score go first. Within a layer scores rise with the magnitude.
    score: f64,
}

/// Spreads `wanted` zeros over layers: those of the lowest score go, no layer above its cap.
fn spread(
    layers: &[&Layer],
    wanted: usize,
    distribution: Distribution,
    cx: &PassContext<'_>,
) -> Result<Vec<usize>, PassError> {
    let mut bins = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        cx.check_cancelled()?;
        let mut own = histogram(i, &layer.tensor);
        score(&mut own, distribution);
        bins.append(&mut own);
    }
    // A stable sort: equal scores stay in the order of layers and magnitudes.
    bins.sort_by(|a, b| a.score.total_cmp(&b.score));
    let mut counts = vec![0usize; layers.len()];
    let mut left = wanted;
    for bin in bins {
        let room = layers[bin.layer].cap - counts[bin.layer];
        let taken = bin.count.min(room).min(left);
        counts[bin.layer] += taken;
        left -= taken;
    }
    Ok(counts)
}

/// The elements of a layer by magnitude, ascending.
fn histogram(layer: usize, tensor: &Tensor) -> Vec<Bin> {
    // A table of the upper nine bits of the fraction for every exponent that is there.
    const EXPONENTS: usize = 1 << 11;
    let mut tables: Vec<Vec<(usize, f64)>> = vec![Vec::new(); EXPONENTS];
    for_each_magnitude(tensor, |m| {
        let value = f64::from_bits(m);
        let table = &mut tables[(m >> 52) as usize];
        if table.is_empty() {
            table.resize(512, (0, 0.0));
        }
        let bin = &mut table[(m >> 43 & 511) as usize];
        bin.0 += 1;
        bin.1 += if value.is_finite() {
            value * value
        } else {
            f64::INFINITY
        };
    });
    let filled = tables.into_iter().flatten().filter(|b| b.0 > 0);
    filled
        .map(|(count, squares)| Bin {
            layer,
            count,
            squares,
            score: 0.0,
        })
        .collect()
}

/// Scores the bins of one layer.
fn score(bins: &mut [Bin], distribution: Distribution) {
    // The sum of squares of this bin and all larger ones.
    let mut rest = 0.0;
    for bin in bins.iter_mut().rev() {
        if bin.squares == f64::INFINITY {
            bin.score = f64::INFINITY;
            continue;
        }
        rest += bin.squares;
        let mean = bin.squares / bin.count as f64;
        bin.score = match distribution {
            Distribution::LayerAdaptive if rest > 0.0 => mean / rest,
            _ => mean,
        };
    }
}

/// Sets the smallest elements of a layer's weight to zero.
fn prune(
    graph: &mut Graph,
    layer: &Layer,
    count: usize,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let tensor = &layer.tensor;
    let (threshold, mut ties) = smallest(tensor, count, cx)?;
    let size = tensor.dtype().bits().unwrap_or(8) as usize / 8;
    let mut bytes = tensor.bytes().to_vec();
    let (mut at, mut zeros, mut pruned, mut largest) = (0usize, 0usize, 0usize, 0u64);
    for_each_magnitude(tensor, |m| {
        let tied = m == threshold && ties > 0;
        ties -= usize::from(tied);
        if m != 0 && (m < threshold || tied) {
            bytes[at..at + size].fill(0);
            pruned += 1;
            largest = largest.max(m);
        }
        zeros += usize::from(m == 0);
        at += size;
    });
    let total = tensor.len().max(1) as f64;
    if pruned == 0 {
        return Ok(Changed::No);
    }
    let reached = (zeros + pruned) as f64 / total;
    let largest = f64::from_bits(largest);
    cx.applied(
        graph,
        layer.op,
        "pruned",
        format!(
            "sparsity {reached:.4} ({} of {} elements), magnitudes up to {largest:.3e}",
            zeros + pruned,
            tensor.len()
        ),
    );
    let pruned = Tensor::new(tensor.dtype(), tensor.dims().iter().copied(), bytes)?;
    graph.set_tensor(layer.weight, pruned, Vec::new())?;
    Ok(Changed::Yes)
}

/// The magnitude up to which the `count` smallest elements go, and how many of just that
/// magnitude do.
fn smallest(
    tensor: &Tensor,
    count: usize,
    cx: &PassContext<'_>,
) -> Result<(u64, usize), PassError> {
    let mut below = 0usize;
    let mut prefix = 0u64;
    for shift in (0..u64::BITS).step_by(8).rev() {
        cx.check_cancelled()?;
        let mut bins = [0usize; 256];
        for_each_magnitude(tensor, |m| {
            if shift == 56 || m >> (shift + 8) == prefix {
                bins[(m >> shift & 255) as usize] += 1;
            }
        });
        let mut digit = 0usize;
        while digit < 255 && below + bins[digit] <= count {
            below += bins[digit];
            digit += 1;
        }
        prefix = prefix << 8 | digit as u64;
    }
    Ok((prefix, count - below.min(count)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use serde_json::json;

    use super::{Options, PruneWeights};
    use crate::testing::{check, refused, run, unchanged};
    use paring_ir::{OptionSet, Pass};

    const ALL: &str = r#"{"min-elements": 1, "include-first": true}"#;

    #[test]
    fn the_smallest_half_goes_the_first_of_equals_first() {
        let remarks = check::<PruneWeights>(
            ALL,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,4] y)
            <float[2,4] w = {0.5, -2, 0.5, 4, -0.5, 0.5, 0, nan}, float[4] b = {0.1, 0.1, 0.1, 0.1}> { y = Gemm (x, w, b) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,4] y)
            <float[2,4] w = {0, -2, 0, 4, 0, 0.5, 0, nan}, float[4] b = {0.1, 0.1, 0.1, 0.1}> { y = Gemm (x, w, b) }"#,
        );
        let said = &remarks.kept[0].message;
        assert_eq!(
            said,
            "sparsity 0.5000 (4 of 8 elements), magnitudes up to 5.000e-1"
        );
    }

    #[test]
    fn global_sparsity_takes_from_the_layer_of_small_weights_up_to_its_cap() {
        check::<PruneWeights>(
            r#"{"min-elements": 1, "distribution": "global", "sparsity": 0.5, "max-layer-sparsity": 0.75}"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {0.1, 0.2, 0.3, 0.4}, float[2,2] v = {10, 20, 30, 40}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {0, 0, 0, 0.4}, float[2,2] v = {0, 20, 30, 40}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        );
    }

    #[test]
    fn layer_adaptive_sparsity_looks_at_shares_and_not_at_scales() {
        // Of w one weight holds nearly everything; the weights of v matter equally.
        check::<PruneWeights>(
            r#"{"min-elements": 1, "sparsity": 0.5, "max-layer-sparsity": 0.75}"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {100, 200, 300, 9000}, float[2,2] v = {1, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {0, 0, 0, 9000}, float[2,2] v = {0, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        );
        let uniform = r#"{"min-elements": 1, "distribution": "uniform"}"#;
        check::<PruneWeights>(
            uniform,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {100, 200, 300, 9000}, float[2,2] v = {1, 1, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {0, 0, 300, 9000}, float[2,2] v = {0, 0, 1, 1}> { h = MatMul (x, w) y = MatMul (h, v) }"#,
        );
    }

    #[test]
    fn half_precision_stays_half_precision() {
        check::<PruneWeights>(
            ALL,
            r#"<opset_import: ["": 18]> g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {1.0, -2.0, 3.0, 4.0}> { y = MatMul (x, w) }"#,
            r#"<opset_import: ["": 18]> g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {0.0, 0.0, 3.0, 4.0}> { y = MatMul (x, w) }"#,
        );
    }

    #[test]
    fn a_shared_weight_is_pruned_once() {
        check::<PruneWeights>(
            ALL,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = MatMul (x, w) y = MatMul (h, w) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {0, 0, 3, 4}> { h = MatMul (x, w) y = MatMul (h, w) }"#,
        );
    }

    #[test]
    fn a_weight_that_something_else_takes_stays() {
        refused::<PruneWeights>(
            ALL,
            r#"<opset_import: ["": 18]> g (int64[1] i) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { h = Gather (w, i) y = MatMul (h, w) }"#,
            "shared",
        );
        refused::<PruneWeights>(
            ALL,
            r#"<opset_import: ["": 18]> g (float[1,2] x, float[2,2] w = {1, 2, 3, 4}) => (float[1,2] y) { y = MatMul (x, w) }"#,
            "overridable",
        );
    }

    #[test]
    fn the_first_and_the_depthwise_convolution_stay_unless_asked_for() {
        let model = r#"<opset_import: ["": 18]> g (float[1,2,8,8] x) => (float[1,2,8,8] z)
            <float[2,2,1,1] w = random(1), float[2,1,1,1] d = random(2)> { y = Conv (x, w) z = Conv <group: int = 2> (y, d) }"#;
        let remarks = unchanged::<PruneWeights>(r#"{"min-elements": 1}"#, model);
        assert_eq!(
            remarks.missed.keys().collect::<Vec<_>>(),
            ["depthwise", "first"]
        );
        let all = r#"{"min-elements": 1, "include-first": true, "include-depthwise": true}"#;
        let (pruned, _) = run::<PruneWeights>(None, all, model);
        let zeros = |name| {
            let v = pruned.graph.find_value(name).unwrap();
            pruned.graph.tensor(v).unwrap().count_zeros()
        };
        assert_eq!((zeros("w"), zeros("d")), (2, 1));
    }

    #[test]
    fn layers_differ_by_type_and_name() {
        check::<PruneWeights>(
            r#"{"min-elements": 1, "sparsity": 0.75, "by-type": {"Gemm": {"sparsity": 0.25}}, "by-name": {"keep*": "skip"}}"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 5}, float[2,2] u = {1, 2, 3, 6}> {
                a = MatMul (x, w)
                b = Gemm (a, v)
                [keep_this] y = MatMul (b, u)
            }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <float[2,2] w = {0, 0, 0, 4}, float[2,2] v = {0, 2, 3, 5}, float[2,2] u = {1, 2, 3, 6}> {
                a = MatMul (x, w)
                b = Gemm (a, v)
                [keep_this] y = MatMul (b, u)
            }"#,
        );
    }

    #[test]
    fn sparsity_zero_changes_nothing() {
        unchanged::<PruneWeights>(
            r#"{"sparsity": 0, "min-elements": 1}"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
        );
    }

    #[test]
    fn shares_beyond_the_cap_are_an_error() {
        let given = json!({"sparsity": 0.99});
        let options =
            OptionSet::<Options>::parse("prune-weights", given.as_object().unwrap()).unwrap();
        let error = PruneWeights::new(options).unwrap_err().to_string();
        assert_eq!(
            error,
            "prune-weights.sparsity: 0.99 is more than max-layer-sparsity (0.95) allows; raise that as well"
        );
    }
}

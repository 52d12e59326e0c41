//! `quantize-weights`: weights are stored as bytes and dequantized before use; activations stay
//! float (weight-only quantization).
//!
//! ```text
//! before   y = MatMul (x, w)           after   wd = DequantizeLinear <axis = 1> (w_int8, s, z)
//!                                              y = MatMul (x, wd)
//! ```
//!
//! The file shrinks to about a quarter and the outputs hardly change; an engine computes as
//! before, so it does not get faster. For that there are `quantize-int8` and `quantize-dynamic`.
//!
//! Each output channel has a scale of its own, of least squared error. With calibration data the
//! weights of convolutions and matrix products are rounded so that the layer's outputs change
//! least (see `quantize-int8`). Of tables that Gathers take rows of, with a scale for each row or
//! each column, only the rows that are taken become floats.
//!
//! Left alone, with a remark each: weights of fewer than `min-elements` (`small`), of another type
//! than float (`element-type`), that a graph input may override or that are graph outputs
//! (`not-constant`), and weights that are dequantized already (`quantized`).

use std::collections::{BTreeMap, BTreeSet};

use paring_ir::schema::{self, Class};
use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor, ValueId,
};

use crate::layers::{Layer, layers};
use crate::moments::{Budget, Job, Moments, collect, moments_bytes};
use crate::order;
use crate::quantize_int8::{
    Granularity, Grid, ReduceRange, StoredWeight, damping, learned, nearest, pack, per_axis, raised,
};
use crate::tables::{store, table_of};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct QuantizeWeights {
    options: OptionSet<Options>,
}

/// Which weights are stored as bytes.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Weights of fewer elements stay float: scales and operators would outweigh what is saved.
    pub min_elements: usize,
    /// Round on second moments of the inputs where there is calibration data.
    #[schemars(extend("x-scope" = "pass"))]
    pub learned: bool,
    /// Also the tables that a Gather takes rows of.
    pub embeddings: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            min_elements: 1024,
            learned: true,
            embeddings: true,
        }
    }
}

/// Samples that second moments are gathered over, and bytes of them at a time.
const MOMENT_SAMPLES: usize = 128;
const MOMENT_BYTES: usize = 64 << 20;

impl Pass for QuantizeWeights {
    const INFO: PassInfo = PassInfo::new(
        "quantize-weights",
        "Store weights as 8-bit integers that are dequantized before use",
        Effect::Lossy,
    )
    .runs_first(&[
        "lift-constants",
        "fold-constants",
        "fold-batch-norm",
        "fold-affine",
    ])
    .never_after(&order::QUANTIZES);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(QuantizeWeights { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| {
            let o = graph.op(op);
            let linear = schema::of(o).is_some_and(|k| k.class == Class::Linear);
            let table = self.options.whole().embeddings && o.is("Gather");
            (linear || table) && !self.options.for_op(graph, op).is_skip()
        };
        order::refuse_undoing(model, &Self::INFO, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut copy = model.clone();
        raised(&mut copy, 13, cx)?;
        let moments = self.moments(&copy, cx)?;
        let mut changed = Changed::No;
        copy.edit_graphs(&mut |graph| {
            changed |= self.graph(graph, &moments, cx)?;
            Ok::<(), PassError>(())
        })?;
        if changed.is_yes() {
            copy.drop_unused_constants()?;
            *model = copy;
        }
        Ok(changed)
    }
}

impl QuantizeWeights {
    /// The moments of the layers' inputs, as far as they are wanted and to be had.
    fn moments(
        &self,
        model: &Model,
        cx: &PassContext<'_>,
    ) -> Result<BTreeMap<OpId, Moments>, PassError> {
        let mut out = BTreeMap::new();
        if !self.options.whole().learned || cx.data.is_none() || cx.engine.is_none() {
            return Ok(out);
        }
        let all = layers(&model.graph)?;
        let fit = all
            .iter()
            .filter(|l| rounds_by_rows(l) && l.source.is_some());
        let mut part: Vec<&Layer> = Vec::new();
        let mut bytes = 0usize;
        let mut parts = Vec::new();
        for l in fit {
            let more = moments_bytes(l, false);
            if !part.is_empty() && bytes + more > MOMENT_BYTES {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
            part.push(l);
            bytes = bytes.saturating_add(more);
        }
        parts.push(part);
        for part in parts.iter().filter(|p| !p.is_empty()) {
            let job = |layer: &&Layer| layer.op;
            let ops: Vec<OpId> = part.iter().map(job).collect();
            let jobs: Vec<Job<'_>> = part
                .iter()
                .map(|layer| Job {
                    layer,
                    reference: None,
                })
                .collect();
            let budget = Budget {
                samples: Some(MOMENT_SAMPLES),
                ..Budget::DEFAULT
            };
            let found = collect(cx, model, None, &jobs, budget)?;
            out.extend(
                ops.into_iter()
                    .zip(found)
                    .filter_map(|(op, m)| Some((op, m?))),
            );
        }
        Ok(out)
    }

    fn graph(
        &self,
        graph: &mut Graph,
        moments: &BTreeMap<OpId, Moments>,
        cx: &mut PassContext<'_>,
    ) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut done: BTreeSet<ValueId> = BTreeSet::new();
        for layer in layers(graph)? {
            if !done.insert(layer.weight) || !self.wants(graph, layer.op, layer.weight, cx) {
                continue;
            }
            cx.check_cancelled()?;
            let weight = stored(graph, &layer, moments.get(&layer.op))?;
            let message = format!("{} elements", layer.len());
            cx.applied(graph, layer.op, "quantized", message);
            replace(graph, layer.op, layer.weight, &weight)?;
            changed = Changed::Yes;
        }
        let mut replaced: BTreeSet<OpId> = BTreeSet::new();
        for op in graph.topological_order()? {
            if replaced.contains(&op) {
                continue;
            }
            let table = graph.op(op).input(0).filter(|_| graph.op(op).is("Gather"));
            // Rows of one element are scales.
            let wide = |t: &Tensor| t.rank() == 2 && t.dims()[1] > 1;
            let wanted = |v: &ValueId| graph.tensor(*v).is_some_and(wide);
            let Some(v) = table.filter(wanted) else {
                continue;
            };
            let on = self
                .options
                .for_op(graph, op)
                .options()
                .is_some_and(|o| o.embeddings);
            if !on || !done.insert(v) || !self.wants(graph, op, v, cx) {
                continue;
            }
            let Some(t) = graph.tensor(v).cloned() else {
                continue;
            };
            cx.applied(graph, op, "quantized", format!("{} elements", t.len()));
            match table_of(graph, op) {
                Some(table) => {
                    replaced.extend(table.takers.iter().copied());
                    store(graph, &table)?;
                }
                None => replace(graph, op, v, &per_axis(&t, 0)?)?,
            }
            changed = Changed::Yes;
        }
        Ok(changed)
    }

    fn wants(&self, graph: &Graph, op: OpId, weight: ValueId, cx: &mut PassContext<'_>) -> bool {
        let Some(options) = self.options.for_op(graph, op).options() else {
            return false;
        };
        let value = graph.value(weight);
        let Some(t) = value.as_tensor() else {
            return false;
        };
        let reason = if t.dtype() != DType::F32 {
            (
                "element-type",
                format!("the weight is of type {}", t.dtype()),
            )
        } else if value.is_output() || value.is_input() {
            let why = "the weight is a graph output or may be overridden";
            ("not-constant", why.to_owned())
        } else if t.len() < options.min_elements {
            let why = format!("{} elements are fewer than min-elements", t.len());
            ("small", why)
        } else {
            return true;
        };
        cx.missed(graph, op, reason.0, reason.1);
        false
    }
}

/// Whether the outputs of all blocks lie one after the other on one axis.
fn rounds_by_rows(layer: &Layer) -> bool {
    layer.layout.batch_axes.is_empty()
        && layer.rows * layer.blocks == layer.dims[layer.layout.output_axis]
}

fn stored(
    graph: &Graph,
    layer: &Layer,
    moments: Option<&Moments>,
) -> Result<StoredWeight, PassError> {
    let gone = || PassError::Bug("a weight is gone".to_owned());
    let tensor = graph.tensor(layer.weight).ok_or_else(gone)?;
    if !rounds_by_rows(layer) {
        return per_axis(tensor, layer.layout.output_axis);
    }
    let grid = Grid::new(ReduceRange::Full, Granularity::PerChannel);
    let partners = grid.partners(layer);
    let weights = layer.matrices(tensor)?;
    let grams = moments.map(|m| m.gram.as_slice());
    let mut rounded = nearest(&weights, grams, grid, &partners, &[]);
    if let Some(m) = moments {
        for (b, w) in weights.iter().enumerate() {
            learned(
                w,
                &m.gram[b],
                &mut rounded.numbers[b],
                &rounded.scales[b],
                (grid, &partners),
                damping(m.count, layer.cols),
            );
        }
    }
    Ok(pack(layer, &rounded, grid))
}

/// Everything that takes a weight takes what is dequantized.
fn replace(
    graph: &mut Graph,
    op: OpId,
    weight: ValueId,
    stored: &StoredWeight,
) -> Result<(), PassError> {
    let name = graph.value(weight).name().clone();
    let dims = graph
        .tensor(weight)
        .map(|t| t.dims().to_vec())
        .unwrap_or_default();
    let bytes = Tensor::from_vec(dims, stored.bytes.clone())?;
    let bytes = graph.add_constant(&format!("{name}_quantized"), bytes)?;
    graph.set_tensor_sources(bytes, &[weight])?;
    let scale = Tensor::vector(stored.scales.clone());
    let scale = graph.add_constant(&format!("{name}_scale"), scale)?;
    let zero = Tensor::vector(vec![0i8; stored.scales.len()]);
    let zero = graph.add_constant(&format!("{name}_zero_point"), zero)?;
    let new = NewOp::new("DequantizeLinear")
        .input(bytes)
        .input(scale)
        .input(zero)
        .attr("axis", stored.axis)
        .output(format!("{name}_dequantized"));
    let new = graph.add_op(new.from([op]).beside(op))?;
    if let Some(back) = graph.op(new).output(0) {
        graph.replace_value(weight, back)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::QuantizeWeights;
    use crate::testing::{check, refused, run, unchanged};

    const SMALL: &str = r#"{"min-elements": 1}"#;

    #[test]
    fn each_output_has_a_scale() {
        check::<QuantizeWeights>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {127, -1, 64, 0.5}> { y = MatMul (x, w) }"#,
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y)
            <int8[2,2] w_quantized = {127, -127, 64, 64}, float[2] w_scale = {1, 0.0078740157}, int8[2] w_zero_point = {0, 0}> {
                w_dequantized = DequantizeLinear <axis: int = 1> (w_quantized, w_scale, w_zero_point)
                y = MatMul (x, w_dequantized)
            }"#,
        );
    }

    #[test]
    fn a_shared_weight_is_stored_once_and_a_table_by_row() {
        let (model, remarks) = run::<QuantizeWeights>(
            None,
            SMALL,
            r#"<opset_import: ["": 18]> g (int64[1] i) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}, float[3,2] t = {1, 0.5, 100, 30, 0.01, 0.003}> {
                h = Gather (t, i)
                a = MatMul (h, w)
                y = MatMul (a, w)
            }"#,
        );
        assert_eq!(remarks.applied["quantized"], 2);
        let count = |op_type: &str| {
            let ops = model.graph.ops();
            ops.filter(|&op| model.graph.op(op).is(op_type)).count()
        };
        assert_eq!((count("DequantizeLinear"), count("Gather")), (1, 2));
        assert!(model.graph.find_value("t").is_none() && model.graph.find_value("w").is_none());
    }

    #[test]
    fn old_opsets_are_upgraded_first() {
        let (model, _) = run::<QuantizeWeights>(
            None,
            SMALL,
            r#"<opset_import: ["": 11]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
        );
        assert_eq!(model.opset(), 13);
    }

    #[test]
    fn what_is_small_or_not_constant_or_not_float_stays() {
        refused::<QuantizeWeights>(
            "",
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
            "small",
        );
        refused::<QuantizeWeights>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float16[1,2] x) => (float16[1,2] y) <float16[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
            "element-type",
        );
        unchanged::<QuantizeWeights>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float[1,2] x, float[2,2] w) => (float[1,2] y) { y = MatMul (x, w) }"#,
        );
    }
}

//! `quantize-dynamic`: matrix products run in integers; ranges of activations are found anew in
//! every run, so no calibration is needed (dynamic quantization).
//!
//! ```text
//! before   y = MatMul (x, w)           after   xq, xs, xz = DynamicQuantizeLinear (x)
//!                                              i = MatMulInteger (xq, w_int8, xz)
//!                                              f = Cast <to = float> (i)
//!                                              s = Mul (xs, w_scale)
//!                                              y = Mul (f, s)
//! ```
//!
//! For models that are mostly matrix products of many rows, such as transformers: weights shrink
//! to a quarter, and engines with integer kernels run them faster. Products of one row gain
//! nothing in most engines. Weights are signed with a scale for each output (`weights`), rounded
//! on second moments where there is calibration data. Products that take the same value share
//! its quantization.
//!
//! Left alone, with a remark each: weights that are not constant (`no-constant-weight`), batched
//! (`batched-weight`), of another type than float (`element-type`), or of fewer than
//! `min-elements` (`small`), and a Gemm whose activation is transposed (`transposed-input`).
//!
//! ONNX, `docs/Operators.md`: DynamicQuantizeLinear, MatMulInteger.

use std::collections::BTreeMap;

use paring_ir::schema::{self, Class};
use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor, ValueId,
};

use crate::layers::{Layer, layers_of};
use crate::moments::{Budget, Job, Moments, collect};
use crate::order;
use crate::quantize_int8::{
    Granularity, Grid, ReduceRange, damping, learned, nearest, pack, raised,
};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct QuantizeDynamic {
    options: OptionSet<Options>,
}

/// Which products run in integers.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Scales of weights: one for each output, or one. Outputs of their own cost nothing in ONNX
    /// Runtime and little in tract, and are more accurate.
    pub weights: Granularity,
    /// Weights of fewer elements stay float: quantizing the activation would outweigh the gain.
    pub min_elements: usize,
    /// Hold weights so small that nothing saturates on x86 before VNNI: `pairs` where two that are
    /// added up first would, `true` all to 7 bits, or `false` for machines known to have VNNI.
    pub reduce_range: ReduceRange,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            weights: Granularity::PerChannel,
            min_elements: 4096,
            reduce_range: ReduceRange::Pairs,
        }
    }
}

/// Samples that second moments are gathered over.
const MOMENT_SAMPLES: usize = 64;

impl Pass for QuantizeDynamic {
    const INFO: PassInfo = PassInfo::new(
        "quantize-dynamic",
        "Run matrix products in 8-bit integers, with ranges found in every run",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants", "fold-constants", "fold-affine"])
    .never_after(&order::QUANTIZES);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(QuantizeDynamic { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| {
            let linear = schema::of(graph.op(op)).is_some_and(|k| k.class == Class::Linear);
            linear && !self.options.for_op(graph, op).is_skip()
        };
        order::refuse_undoing(model, &Self::INFO, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut copy = model.clone();
        raised(&mut copy, 11, cx)?;
        let chosen = self.choose(&copy.graph, cx)?;
        if chosen.is_empty() {
            return Ok(Changed::No);
        }
        let mut taken: BTreeMap<ValueId, Dynamic> = BTreeMap::new();
        for layer in &chosen {
            cx.check_cancelled()?;
            let moments = moments(&copy, layer, cx)?;
            self.rewrite(&mut copy.graph, layer, moments.as_ref(), &mut taken, cx)?;
        }
        copy.drop_unused_constants()?;
        *model = copy;
        Ok(Changed::Yes)
    }
}

/// A value that is quantized in every run.
#[derive(Clone, Copy)]
struct Dynamic {
    bytes: ValueId,
    scale: ValueId,
    zero: ValueId,
}

fn moments(
    model: &Model,
    layer: &Layer,
    cx: &PassContext<'_>,
) -> Result<Option<Moments>, PassError> {
    if cx.data.is_none() || cx.engine.is_none() {
        return Ok(None);
    }
    let job = Job {
        layer,
        reference: None,
    };
    let budget = Budget {
        samples: Some(MOMENT_SAMPLES),
        ..Budget::DEFAULT
    };
    Ok(collect(cx, model, None, &[job], budget)?
        .into_iter()
        .next()
        .flatten())
}

impl QuantizeDynamic {
    fn choose(&self, graph: &Graph, cx: &mut PassContext<'_>) -> Result<Vec<Layer>, PassError> {
        let mut out = Vec::new();
        for op in graph.topological_order()? {
            let o = graph.op(op);
            let Some(options) = self.options.for_op(graph, op).options() else {
                continue;
            };
            if !o.is("MatMul") && !o.is("Gemm") {
                continue;
            }
            let layer = layers_of(graph, op).into_iter().find(|l| l.slot == 1);
            let Some(layer) = layer.filter(|l| l.source.is_some()) else {
                let why = "the right operand is no constant weight";
                cx.missed(graph, op, "no-constant-weight", why);
                continue;
            };
            let dtype = graph.tensor(layer.weight).map(Tensor::dtype);
            let beta = o.float("beta").unwrap_or(1.0) == 1.0 || o.input(2).is_none();
            let reason = if dtype != Some(DType::F32) {
                Some(("element-type", "the weight is not of type float"))
            } else if layer.dims.len() != 2 {
                Some(("batched-weight", "the weight is a stack of matrices"))
            } else if o.is("Gemm") && o.int_or("transA", 0) != 0 {
                Some(("transposed-input", "the activation is transposed (transA)"))
            } else if !beta {
                Some(("scaled-bias", "the bias is scaled (beta)"))
            } else if layer.len() < options.min_elements {
                Some(("small", "the weight has fewer than min-elements elements"))
            } else {
                None
            };
            match reason {
                Some((code, why)) => cx.missed(graph, op, code, why),
                None => out.push(layer),
            }
        }
        Ok(out)
    }

    fn rewrite(
        &self,
        graph: &mut Graph,
        layer: &Layer,
        moments: Option<&Moments>,
        taken: &mut BTreeMap<ValueId, Dynamic>,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let op = layer.op;
        let Some(options) = self.options.for_op(graph, op).options() else {
            return Ok(());
        };
        let (bytes, scales) = weight(graph, layer, moments, options)?;
        cx.applied(graph, op, "quantized", format!("{} weights", layer.len()));
        let Some(x) = graph.op(op).input(0) else {
            return Ok(());
        };
        let x = dynamic(graph, op, x, taken)?;
        let name = graph.value(layer.weight).name().clone();
        let label = graph.op_label(op);
        let w = graph.add_constant(&format!("{name}_quantized"), bytes)?;
        graph.set_tensor_sources(w, &[layer.weight])?;
        let ws = graph.add_constant(&format!("{name}_scale"), scales)?;
        let add = |graph: &mut Graph, new: NewOp, hint: &str| -> Result<ValueId, PassError> {
            let new = new.from([op]).beside(op).output(format!("{label}_{hint}"));
            let made = graph.add_op(new)?;
            let out = graph.op(made).output(0);
            out.ok_or_else(|| PassError::Bug("a new operator has no output".to_owned()))
        };
        let product = NewOp::new("MatMulInteger")
            .input(x.bytes)
            .input(w)
            .input(x.zero);
        let product = add(graph, product, "integers")?;
        let cast = NewOp::new("Cast")
            .input(product)
            .attr("to", i64::from(DType::F32.to_onnx()));
        let cast = add(graph, cast, "sums")?;
        let scale = add(graph, NewOp::new("Mul").input(x.scale).input(ws), "scale")?;
        let last = NewOp::new("Mul").input(cast).input(scale);
        let bias = graph.op(op).input(2).filter(|_| graph.op(op).is("Gemm"));
        let last = match bias {
            Some(bias) => {
                let scaled = add(graph, last, "product")?;
                NewOp::new("Add").input(scaled).input(bias)
            }
            None => last,
        };
        graph.replace_op(op, last)?;
        Ok(())
    }
}

/// The bytes as a matrix of inputs x outputs, and the scales with `alpha` in them.
fn weight(
    graph: &Graph,
    layer: &Layer,
    moments: Option<&Moments>,
    options: &Options,
) -> Result<(Tensor, Tensor), PassError> {
    let gone = || PassError::Bug("a weight is gone".to_owned());
    let weights = layer.matrices(graph.tensor(layer.weight).ok_or_else(gone)?)?;
    let grid = Grid::of(options.reduce_range, options.weights, &weights);
    let partners = grid.partners(layer);
    let grams = moments.map(|m| m.gram.as_slice());
    let mut rounded = nearest(&weights, grams, grid, &partners, &[]);
    if let Some(m) = moments {
        learned(
            &weights[0],
            &m.gram[0],
            &mut rounded.numbers[0],
            &rounded.scales[0],
            (grid, &partners),
            damping(m.count, layer.cols),
        );
    }
    let packed = pack(layer, &rounded, grid);
    let numbers = &rounded.numbers[0];
    let at = |i: usize| numbers[(i % layer.rows, i / layer.rows)] as i8;
    let bytes = Tensor::from_vec([layer.cols, layer.rows], (0..layer.len()).map(at).collect())?;
    let alpha = graph.op(layer.op).float("alpha").unwrap_or(1.0);
    let alpha = if graph.op(layer.op).is("Gemm") {
        alpha
    } else {
        1.0
    };
    let scales: Vec<f32> = packed.scales.iter().map(|s| s * alpha).collect();
    let scales = match scales.as_slice() {
        [one] if !grid.per_channel => Tensor::scalar(*one),
        _ => Tensor::vector(scales),
    };
    Ok((bytes, scales))
}

fn dynamic(
    graph: &mut Graph,
    op: OpId,
    x: ValueId,
    taken: &mut BTreeMap<ValueId, Dynamic>,
) -> Result<Dynamic, PassError> {
    if let Some(found) = taken.get(&x) {
        return Ok(*found);
    }
    let name = graph.value(x).name().clone();
    let new = NewOp::new("DynamicQuantizeLinear")
        .input(x)
        .output(format!("{name}_quantized"))
        .output(format!("{name}_scale"))
        .output(format!("{name}_zero_point"));
    let made = graph.add_op(new.from([op]).beside(op))?;
    let o = graph.op(made);
    let (Some(bytes), Some(scale), Some(zero)) = (o.output(0), o.output(1), o.output(2)) else {
        return Err(PassError::Bug("a new operator has no outputs".to_owned()));
    };
    let found = Dynamic { bytes, scale, zero };
    taken.insert(x, found);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::QuantizeDynamic;
    use crate::testing::{check, refused, run};

    const SMALL: &str = r#"{"min-elements": 1, "reduce-range": false}"#;

    #[test]
    fn a_product_becomes_integers_and_scales() {
        check::<QuantizeDynamic>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {127, -1, 64, 0.5}> { [m] y = MatMul (x, w) }"#,
            r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y)
            <int8[2,2] w_quantized = {127, -127, 64, 64}, float[2] w_scale = {1, 0.0078740157}> {
                x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear (x)
                m_integers = MatMulInteger (x_quantized, w_quantized, x_zero_point)
                m_sums = Cast <to: int = 1> (m_integers)
                m_scale = Mul (x_scale, w_scale)
                [m] y = Mul (m_sums, m_scale)
            }"#,
        );
    }

    #[test]
    fn a_gemm_keeps_its_bias_and_its_factor() {
        let (model, _) = run::<QuantizeDynamic>(
            None,
            SMALL,
            r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,3] y) <float[3,2] w = {127, 1, 2, 127, 3, 127}, float[3] b = {1, 2, 3}> {
                [m] y = Gemm <alpha: float = 2.0, transB: int = 1> (x, w, b)
            }"#,
        );
        let g = &model.graph;
        let tensor = |name: &str| g.tensor(g.find_value(name).unwrap()).unwrap();
        assert_eq!(tensor("w_quantized").dims(), [2, 3]);
        assert_eq!(
            tensor("w_quantized").to_i64s().unwrap(),
            [127, 2, 3, 1, 127, 127]
        );
        assert_eq!(
            tensor("w_scale").to_f32s().unwrap().as_ref(),
            [2.0, 2.0, 2.0]
        );
        assert!(g.op(g.producer(g.outputs()[0]).unwrap()).is("Add"));
    }

    #[test]
    fn what_takes_the_same_value_shares_its_quantization() {
        let (model, _) = run::<QuantizeDynamic>(
            None,
            SMALL,
            r#"<opset_import: ["": 18]> g (float[4,2] x) => (y, z) <float[2,2] w = random(1), float[2,2] v = random(2)> { y = MatMul (x, w) z = MatMul (x, v) }"#,
        );
        let g = &model.graph;
        let count = g
            .ops()
            .filter(|&op| g.op(op).is("DynamicQuantizeLinear"))
            .count();
        assert_eq!(count, 1);
    }

    #[test]
    fn what_has_no_weight_or_little_stays() {
        refused::<QuantizeDynamic>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float[4,2] x, float[2,4] z) => (float[4,4] y) { y = MatMul (x, z) }"#,
            "no-constant-weight",
        );
        refused::<QuantizeDynamic>(
            "",
            r#"<opset_import: ["": 18]> g (float[4,2] x) => (float[4,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#,
            "small",
        );
        refused::<QuantizeDynamic>(
            SMALL,
            r#"<opset_import: ["": 18]> g (float[3,4,2] x) => (float[3,4,2] y) <float[3,2,2] w = random(1)> { y = MatMul (x, w) }"#,
            "batched-weight",
        );
    }
}

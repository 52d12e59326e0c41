//! `lower-qdq`: integer operators in the place of quantized layers, for an engine that runs those
//! fast and QuantizeLinear and DequantizeLinear not at all.
//!
//! ```text
//! before   xq = QuantizeLinear (x, sx, zx)         after   xq = QuantizeLinear (x, sx, zx)
//!          xd = DequantizeLinear (xq, sx, zx)              yq = QLinearConv (xq, sx, zx, w_int8,
//!          wd = DequantizeLinear (w_int8, sw, zw)                            sw, zw, sy, zy, b_int32)
//!          y = Conv (xd, wd, bd)                           ...
//!          r = Relu (y)
//!          rq = QuantizeLinear (r, sy, zy) ...
//! ```
//!
//! QDQ describes a quantized model for engines that fuse it. tract doesn't: weights fold to
//! floats, and every QuantizeLinear and DequantizeLinear is extra work, so such a model is slower
//! than the float model. This pass writes what tract runs fast:
//! - convolutions become QLinearConv. A Relu or Clip is left to the saturation of the bytes,
//!   where their range ends where it does (a Relu: zero point -128), so that a chain of
//!   convolutions runs without floats between;
//! - a Gemm, or a MatMul with the Add of its bias, from bytes to bytes becomes a QLinearConv over
//!   the rows, which unlike QLinearMatMul has a bias; tract moves no element for the transposes
//!   around it. Without a bias it becomes a QLinearMatMul;
//! - from bytes to floats they become MatMulInteger, the bias added to the 32-bit sums, and one
//!   DequantizeLinear; or Cast and Mul where outputs have scales of their own;
//! - reshapes, transposes and max pooling between bytes of one scale work on the bytes;
//! - everything else goes back to floats: depthwise and grouped convolutions, products of one row,
//!   attention, sums, pooling. QuantizeLinear and DequantizeLinear around them go away; their
//!   weights stay stored as bytes, which the engine folds when it loads the model. Where a
//!   quantizer left a Relu or Clip to the range of the bytes, a Clip does its work;
//! - unsigned bytes become signed ones, which is what the kernels multiply;
//! - weights that the engine would dequantize in every run, since they take more than it computes
//!   ahead, are stored in pieces (see `large`);
//! - zero points of inputs move into biases, or the engine adds up large weights in every run;
//! - no DequantizeLinear is left before a Softmax or a normalization, of which tract would make
//!   a wrong table.
//!
//! Weights with a scale for each output have no fast form in convolutions. They get one scale
//! where that adds little noise (`min-weight-sqnr-db`), which cross-layer equalization sees to:
//! `quantize-int8` with `target: tract` does it. Products keep their scales when it doesn't.
//!
//! Which layers run in integers is decided by cost: a layer must save more than turning floats
//! into bytes and back costs around it. The costs are those of CPUs with VNNI, AMX or Arm dot
//! products. Where there is none of these, tract's integer kernels are slower than its float
//! kernels for every layer: `max-latency-ratio` measures instead.
//!
//! Left in floats, with a remark each: `depthwise`, `odd-gemm`, `odd-weight`, `odd-bias`,
//! `element-type`, `weight-zero-point`, `per-channel-weight` (one scale is too inaccurate),
//! `float-output` (a convolution whose result is not quantized), `few-rows`, `float-is-faster`,
//! `skipped`.

mod cost;
mod emit;
mod find;
mod large;
mod measure;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::BTreeSet;

use paring_ir::analysis::shapes::{ShapeOptions, Shapes};
use paring_ir::{
    Changed, Effect, Graph, Model, OpId, OptionError, OptionSet, Pass, PassContext, PassError,
    PassInfo, Tensor,
};

use cost::{Able, Flow, Form};
use emit::Ready;
use find::{Found, Layer};
use measure::Measure;

use crate::quantize_int8::{MIN_WEIGHT_SQNR_DB, bears_one_scale};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct LowerQdq {
    options: OptionSet<Options>,
}

/// An engine that integer operators are for.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Lowering {
    /// tract.
    #[default]
    Tract,
}

/// Which layers become integer operators.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The engine that the integer operators are for.
    #[schemars(extend("x-scope" = "pass"))]
    pub engine: Lowering,
    /// Weights with a scale for each output get one scale where the noise that this adds is so
    /// many dB below them; the worst output may be 10 dB worse. By default 30: bytes for the
    /// activations add about as much noise.
    pub min_weight_sqnr_db: f64,
    /// Measure each layer in both forms on this machine and keep floats where integers are
    /// slower; the whole may take at most this share of the time in floats. By default nothing
    /// is measured.
    #[schemars(extend("x-scope" = "pass"))]
    pub max_latency_ratio: Option<f64>,
    /// Exactly these operators run in integers, whatever it costs: what an earlier measurement
    /// chose.
    #[schemars(extend("x-scope" = "pass"))]
    pub only: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            engine: Lowering::Tract,
            min_weight_sqnr_db: MIN_WEIGHT_SQNR_DB,
            max_latency_ratio: None,
            only: None,
        }
    }
}

impl Pass for LowerQdq {
    const INFO: PassInfo = PassInfo::new(
        "lower-qdq",
        "Turn quantized layers (QDQ) into integer operators that tract runs fast",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants"]);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let ratio = options.whole().max_latency_ratio;
        if ratio.is_some_and(|r| !(r.is_finite() && r > 0.0)) {
            return Err(OptionError::Invalid {
                path: "lower-qdq.max-latency-ratio".to_owned(),
                reason: "expected a number above 0".to_owned(),
            });
        }
        Ok(LowerQdq { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(plan) = self.plan(model, cx)? else {
            return Ok(Changed::No);
        };
        plan.say(&model.graph, cx);
        if self.options.whole().max_latency_ratio.is_some() {
            cx.resolved = plan.resolved(&model.graph);
        }
        let flow = Flow::of(&model.graph, &plan.found, &plan.able, &plan.chosen);
        emit::emit(model, &plan.found, &plan.ready, &flow)?;
        Ok(Changed::Yes)
    }
}

/// What is to become of every layer.
struct Lowered {
    found: Found,
    able: Vec<Able>,
    ready: Vec<Option<Ready>>,
    chosen: Vec<bool>,
}

/// The quantized layers that pay in integers when a model is lowered, and those that don't, by
/// measurement: what `max-latency-ratio` of `quantize-int8` asks.
pub(crate) fn slower_in_integers(
    model: &Model,
    ratio: f64,
    cx: &mut PassContext<'_>,
) -> Result<BTreeSet<OpId>, PassError> {
    let given = serde_json::json!({ "max-latency-ratio": ratio });
    let given = given.as_object().cloned().unwrap_or_default();
    let pass = LowerQdq::new(OptionSet::parse("lower-qdq", &given)?)?;
    let remarks = cx.remarks.clone();
    let plan = pass.plan(model, cx)?;
    cx.remarks = remarks;
    let mut slower: BTreeSet<OpId> = model.graph.ops().collect();
    if let Some(plan) = plan {
        for (layer, chosen) in plan.found.layers.iter().zip(&plan.chosen) {
            if *chosen {
                slower.remove(&layer.op);
            }
        }
    }
    Ok(slower)
}

impl LowerQdq {
    fn plan(&self, model: &Model, cx: &mut PassContext<'_>) -> Result<Option<Lowered>, PassError> {
        let graph = &model.graph;
        let found = find::find(graph)?;
        for (op, code, why) in &found.left {
            cx.missed(graph, *op, code, why.clone());
        }
        if found.bytes.is_empty() {
            return Ok(None);
        }
        let whole = self.options.whole();
        let inputs = match whole.max_latency_ratio {
            Some(_) => Some(Measure::inputs(model, cx)?),
            None if cx.data.is_some() => Measure::inputs(model, cx).ok(),
            None => None,
        };
        let shapes = shapes(model, inputs.as_deref());
        let (mut able, mut ready) = (Vec::new(), Vec::new());
        for layer in &found.layers {
            let (a, r) = self.prepare(graph, &found, layer, &shapes, cx);
            able.push(a);
            ready.push(r);
        }
        let by_output: Vec<bool> = ready
            .iter()
            .map(|r| r.as_ref().is_some_and(|r| r.scales.len() > 1))
            .collect();
        let costs = cost::by_form(graph, &found, &shapes, &by_output);
        let chosen = match (&whole.only, whole.max_latency_ratio, inputs) {
            (Some(only), _, _) => {
                let named = |l: &Layer| only.iter().any(|n| **n == *graph.op_label(l.op));
                found.layers.iter().map(named).collect()
            }
            (None, Some(ratio), Some(inputs)) => {
                let measure = Measure {
                    model,
                    found: &found,
                    ready: &ready,
                    able: &able,
                    inputs,
                };
                measure.choose(&costs, ratio, cx)?
            }
            _ => cost::choose(graph, &found, &able, &costs),
        };
        Ok(Some(Lowered {
            found,
            able,
            ready,
            chosen,
        }))
    }

    /// The forms that a layer can take, and its weight for them.
    fn prepare(
        &self,
        graph: &Graph,
        found: &Found,
        layer: &Layer,
        shapes: &Shapes,
        cx: &mut PassContext<'_>,
    ) -> (Able, Option<Ready>) {
        let mut refuse = |code, why: String| {
            cx.missed(graph, layer.op, code, why);
            (Able::default(), None)
        };
        let Some(options) = self.options.for_op(graph, layer.op).options() else {
            return refuse("skipped", "the options skip it".to_owned());
        };
        let bytes = found.bytes.get(&layer.input);
        let Some((source, input)) = bytes.and_then(|b| Some((b.source, b.params?))) else {
            return refuse("element-type", "its input has no bytes".to_owned());
        };
        let is_conv = graph.op(layer.op).is("Conv");
        let rank = shapes.rank(source).unwrap_or(0);
        if is_conv && layer.output.is_none() {
            return refuse("float-output", "its result is not quantized".to_owned());
        }
        if !is_conv && rank < 2 {
            return refuse(
                "few-rows",
                "its input is no matrix, as far as is known".to_owned(),
            );
        }
        if cost::rows(shapes, layer) < 2.0 {
            let why = "the engine's kernels for one row are no faster in integers";
            return refuse("few-rows", why.to_owned());
        }
        let one = weights::one_scale(&layer.weight);
        let least = options.min_weight_sqnr_db;
        let accurate = bears_one_scale(one.sqnr_db, one.worst_db, least);
        let (numbers, scales) = match (accurate, is_conv) {
            (true, _) => (one.numbers, vec![one.scale]),
            (false, false) => (layer.weight.numbers.clone(), layer.weight.scales.clone()),
            (false, true) => {
                let why = format!(
                    "with one scale its weight would have {:.1} dB only, its worst output {:.1} dB",
                    one.sqnr_db, one.worst_db
                );
                return refuse("per-channel-weight", why);
            }
        };
        let Some(bias) = weights::bias(layer, input, &scales) else {
            return refuse("odd-bias", "the bias doesn't fit 32 bits".to_owned());
        };
        let turnable = rank == 2 || rank == 3;
        // A product of rows with a bias is turned into a convolution, or else gives floats.
        let free = match is_conv {
            true => unpadded(graph, layer),
            false => turnable || bias.is_some(),
        };
        let with_zero = match input.zero {
            0 => None,
            zero if free => {
                weights::with_zero_point(&layer.weight, &numbers, bias.as_deref(), zero)
            }
            _ => None,
        };
        let zero = if with_zero.is_some() { 0 } else { input.zero };
        let bias = with_zero.or(bias);
        let turns = bias.is_none() || turnable;
        let able = Able {
            bytes: layer.output.is_some() && scales.len() == 1 && (is_conv || turns),
            floats: !is_conv,
        };
        let ready = Ready {
            numbers,
            scales,
            bias,
            zero,
            rank,
        };
        (able, Some(ready))
    }
}

/// Whether no window of a convolution reaches into padding, which has the zero point in it.
fn unpadded(graph: &Graph, layer: &Layer) -> bool {
    let o = graph.op(layer.op);
    let pointwise = layer.weight.dims.iter().skip(2).all(|&k| k == 1);
    let padded = o.ints("pads").is_some_and(|p| p.iter().any(|&p| p != 0));
    match o.string("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => !padded,
        "VALID" => true,
        _ => pointwise,
    }
}

/// Shapes for these inputs, or as far as the model says, for a batch of one where it is left open.
fn shapes(model: &Model, inputs: Option<&[Tensor]>) -> Shapes {
    let mut options = ShapeOptions::default();
    let graph = &model.graph;
    for (i, &v) in graph.inputs().iter().enumerate() {
        let given = inputs.and_then(|all| all.get(i)).map(|t| {
            let dims = t.dims().iter();
            dims.map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
                .collect()
        });
        let batch_of_one = || {
            let ty = graph.value(v).known_type()?;
            let dims = ty.shape()?;
            let open = dims.first()?.known().is_none();
            let size = |(axis, _)| if axis == 0 { 1 } else { -1 };
            open.then(|| dims.iter().enumerate().map(size).collect::<Vec<i64>>())
        };
        if let Some(dims) = given.or_else(batch_of_one) {
            let name = graph.value(v).name().to_string();
            options.input_shapes.insert(name, dims);
        }
    }
    Shapes::infer(model, &options)
}

impl Lowered {
    /// Options that choose the same layers without a measurement.
    fn resolved(&self, graph: &Graph) -> Option<serde_json::Map<String, serde_json::Value>> {
        let layers = self.found.layers.iter().zip(&self.chosen);
        let names: Vec<String> = layers
            .filter(|(_, chosen)| **chosen)
            .map(|(l, _)| graph.op_label(l.op).to_string())
            .collect();
        let resolved = serde_json::json!({ "max-latency-ratio": null, "only": names });
        resolved.as_object().cloned()
    }

    /// Says what becomes of every layer.
    fn say(&self, graph: &Graph, cx: &mut PassContext<'_>) {
        let flow = Flow::of(graph, &self.found, &self.able, &self.chosen);
        for (i, layer) in self.found.layers.iter().enumerate() {
            let Some(ready) = &self.ready[i] else {
                continue;
            };
            let scales = match (ready.scales.len(), layer.weight.scales.len()) {
                (1, 1) => "one scale",
                (1, _) => "one scale made of one for each output",
                _ => "a scale for each output",
            };
            let said = match flow.forms[i] {
                Form::Bytes => format!("from bytes to bytes, {scales}"),
                Form::Floats => format!("from bytes to floats, {scales}"),
                Form::Float => {
                    let why =
                        "it and what turns floats into bytes around it take longer than floats";
                    cx.missed(graph, layer.op, "float-is-faster", why);
                    continue;
                }
            };
            cx.applied(graph, layer.op, "integers", said);
        }
    }
}

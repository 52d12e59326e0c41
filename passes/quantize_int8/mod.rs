//! `quantize-int8`: activations and weights of linear operators become bytes, after calibration
//! on data (static quantization, QDQ form).
//!
//! ```text
//! before   y = Conv (x, w, b)          after   xq = QuantizeLinear (x, sx, zx)
//!          z = Clip (y, zero, six)             xd = DequantizeLinear (xq, sx, zx)
//!                                              wd = DequantizeLinear <axis = 0> (w_int8, sw, zw)
//!                                              bd = DequantizeLinear <axis = 0> (b_int32, sb, zb)
//!                                              y = Conv (xd, wd, bd)
//!                                              z = Clip (y, zero, six)
//!                                              zq = QuantizeLinear (z, sz, zz) ...
//! ```
//!
//! What is quantized, and how, is said by a target profile (see `profile`): the operators that
//! its engine runs in integers, what is one with them, what hands bytes on, and what stays float.
//! A value without a constant weight beside it, a Softmax or a shape computation is never
//! quantized. Weights are signed and symmetric, with a scale for each output channel; activations
//! are unsigned with a zero point.
//!
//! How accuracy is kept, without training:
//! - ranges of activations have the least squared error over what was seen (`calibration`);
//! - `equalize` scales channels between two layers so that weights and activations lose least
//!   together (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
//!   Correction", 2019);
//! - `smooth` does so for what products take, if need be by a Mul of its own (Xiao et al.,
//!   "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
//!   2023);
//! - `rounding: learned` refits and rounds weights on the second moments of their quantized
//!   inputs (see `weights`);
//! - `correct-bias` takes out the shift of the means that quantization makes;
//! - `min-sqnr-db` and `max-accuracy-drop` keep the layers float that hurt most, by measurement.
//!
//! Large embeddings are stored as bytes too (`tables`): only the rows that are taken become floats.
//!
//! `max-latency-ratio` keeps the layers float that int8 makes slower in tract.
//!
//! Left alone, with a remark each: layers whose weight is not constant (`no-constant-weight`), that
//! are `small`, `depthwise` or of `few-rows` where the profile says so, weights that something else
//! takes (`shared`), and models that hold QuantizeLinear already (`quantized`).

mod calibrate;
mod emit;
mod equalize;
mod histogram;
mod latency;
mod placement;
mod profile;
mod ranges;
mod search;
mod session;
#[cfg(test)]
mod tests;
mod weights;

use std::path::PathBuf;

use crate::order;
use paring_ir::schema::{self, Class};
use paring_ir::{
    Changed, Effect, Graph, Model, OpId, OptionError, OptionSet, Pass, PassContext, PassError,
    PassInfo,
};

pub(crate) use emit::Weight as StoredWeight;
pub use histogram::Histogram;
pub use profile::{
    ActivationType, BiasForm, Granularity, JoinRule, LayerRule, OutputForm, PROFILES, Profile,
    ReduceRange, Target,
};
pub use ranges::{Calibration, Parameters};
pub(crate) use session::raised;
pub(crate) use weights::{
    EXACT_DB, Grid, MIN_WEIGHT_SQNR_DB, bears_one_scale, damping, decibels, learned, nearest, pack,
    per_axis,
};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct QuantizeInt8 {
    options: OptionSet<Options>,
    profile: Profile,
}

/// How weights become whole numbers.
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
pub enum Rounding {
    /// The numbers that change the layer's outputs least, found with second moments of its inputs.
    #[default]
    Learned,
    /// The nearest number.
    Nearest,
}

/// What is quantized, and how.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The engine that the model is for: `onnxruntime`, `tract`, `generic`, a profile file that
    /// ends in .yaml, or a profile written out.
    #[schemars(extend("x-scope" = "pass", "x-target" = true))]
    pub target: Target,
    /// Scales of weights: `per-channel`, `per-tensor` or `mixed` (one where that adds little
    /// noise); by default as the target wants.
    #[schemars(extend("x-scope" = "pass"))]
    pub weights: Option<Granularity>,
    /// The element type of activations: `u8` or `s8`; by default as the target wants.
    #[schemars(extend("x-scope" = "pass"))]
    pub activations: Option<ActivationType>,
    /// How the ranges of activations are found: `mse` (the most accurate on real models, and so
    /// the default), `min-max`, `percentile` or `entropy`. All come from the same histograms.
    #[schemars(extend("x-scope" = "pass"))]
    pub calibration: Calibration,
    /// Scale channels between layers before quantization, which costs nothing later. By default
    /// where weights have one scale each; with a scale for each channel there is little to gain,
    /// and channels that were rarely active in calibration may saturate.
    #[schemars(extend("x-scope" = "pass"))]
    pub equalize: Option<bool>,
    /// Scale the channels of what MatMul and Gemm take before it becomes bytes, where they differ
    /// much: in the LayerNormalization that makes them, or else by a Mul where the error expected
    /// falls by 3 dB; by default as the target wants.
    #[schemars(extend("x-scope" = "pass"))]
    pub smooth: Option<bool>,
    /// Take out the shift of the means that quantization makes.
    #[schemars(extend("x-scope" = "pass"))]
    pub correct_bias: bool,
    /// How weights are rounded: `learned` or `nearest`.
    #[schemars(extend("x-scope" = "pass"))]
    pub rounding: Rounding,
    /// Hold weights so small that nothing saturates on x86 before VNNI: `pairs` where two that are
    /// added up first would, `true` all to 7 bits, or `false`; by default as the target wants.
    #[schemars(extend("x-scope" = "pass"))]
    pub reduce_range: Option<ReduceRange>,
    /// Layers of fewer weights stay float: the bytes saved are few, and the error is not.
    #[schemars(extend("x-scope" = "pass"))]
    pub min_elements: usize,
    /// Store tables of 65,536 elements or more that Gathers take rows of (embeddings) as bytes, of
    /// which only the rows taken become floats; by default as the target wants.
    #[schemars(extend("x-scope" = "pass"))]
    pub tables: Option<bool>,
    /// Samples that the ranges are found on; by default all.
    #[schemars(extend("x-scope" = "pass"))]
    pub samples: Option<usize>,
    /// A JSON file that keeps what was seen of the activations. When it is there and about the
    /// same model, calibration does not run again.
    #[schemars(extend("x-scope" = "pass"))]
    pub calibration_file: Option<PathBuf>,
    /// Measure how much each layer hurts, and say so in the order of that.
    #[schemars(extend("x-scope" = "pass"))]
    pub sensitivity: bool,
    /// Keep the layers float that hurt most until the outputs have this SQNR, in dB, also with a
    /// standard error more noise. Of 16 samples or more every fourth is judged by and not
    /// calibrated on, since a limit that holds on the samples that everything was fitted to does
    /// not hold on others.
    #[schemars(extend("x-scope" = "pass"))]
    pub min_sqnr_db: Option<f64>,
    /// Keep the layers float that hurt most until no more than this many points of top-1 accuracy
    /// are lost on the calibration data, which then wants labels. Samples are held out as above.
    #[schemars(extend("x-scope" = "pass"))]
    pub max_accuracy_drop: Option<f64>,
    /// Keep the layers float that int8 makes slower in tract, measured on this machine with the
    /// model lowered to integer operators (`lower-qdq`), so that it takes at most this share of
    /// the float model's time. What was decided stands in the recipe of the report, as
    /// `keep-float`. By default nothing is measured.
    #[schemars(extend("x-scope" = "pass"))]
    pub max_latency_ratio: Option<f64>,
    /// These operators stay float, by name: what an earlier measurement decided. Other than a
    /// layer that is skipped, they take part in equalization.
    #[schemars(extend("x-scope" = "pass"))]
    pub keep_float: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            target: Target::default(),
            weights: None,
            activations: None,
            calibration: Calibration::default(),
            equalize: None,
            smooth: None,
            correct_bias: true,
            rounding: Rounding::default(),
            reduce_range: None,
            min_elements: 512,
            tables: None,
            samples: None,
            calibration_file: None,
            sensitivity: false,
            min_sqnr_db: None,
            max_accuracy_drop: None,
            max_latency_ratio: None,
            keep_float: Vec::new(),
        }
    }
}

impl Pass for QuantizeInt8 {
    const INFO: PassInfo = PassInfo::new(
        "quantize-int8",
        "Quantize activations and weights of linear operators to 8 bits, calibrated on data",
        Effect::Lossy,
    )
    .runs_first(&[
        "inline-functions",
        "lift-constants",
        "fold-constants",
        "simplify-shapes",
        "eliminate-identities",
        "merge-casts",
        "merge-reshapes",
        "merge-pads",
        "recover-normalizations",
        "recover-activations",
        "recover-reductions",
        "merge-clips",
        "fold-batch-norm",
        "fold-affine",
        "fold-pad",
        "fuse-gemm",
        "eliminate-dead-code",
    ])
    .never_after(&order::QUANTIZES);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let whole = options.whole();
        let mut profile = whole.target.profile(Self::INFO.name)?;
        profile.weights = whole.weights.unwrap_or(profile.weights);
        profile.activations = whole.activations.unwrap_or(profile.activations);
        profile.smooth = whole.smooth.unwrap_or(profile.smooth);
        profile.tables = whole.tables.unwrap_or(profile.tables);
        profile.reduce_range = whole.reduce_range.unwrap_or(profile.reduce_range);
        for (key, limit) in [
            ("min-sqnr-db", whole.min_sqnr_db),
            ("max-accuracy-drop", whole.max_accuracy_drop),
            ("max-latency-ratio", whole.max_latency_ratio),
        ] {
            if limit.is_some_and(|l| !l.is_finite()) {
                return Err(OptionError::Invalid {
                    path: format!("quantize-int8.{key}"),
                    reason: "expected a finite number".to_owned(),
                });
            }
        }
        Ok(QuantizeInt8 { options, profile })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| {
            let linear = schema::of(graph.op(op)).is_some_and(|k| k.class == Class::Linear);
            linear && !self.options.for_op(graph, op).is_skip()
        };
        order::refuse_undoing(model, &Self::INFO, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        session::quantize(&self.options, &self.profile, model, cx)
    }
}

//! `factorize-low-rank`: a large weight becomes the product of two small ones.
//!
//! ```text
//! before   [fc] y = MatMul (x, w)                             w: 384 x 1536
//! after    [fc_lowrank] h = MatMul (x, w_v)                   w_v: 384 x 128
//!          [fc] y = MatMul (h, w_u)                           w_u: 128 x 1536
//! ```
//!
//! The weights of `Conv`, `ConvTranspose`, `Gemm` and `MatMul`, batched, grouped and transposed
//! ones too. A convolution takes one of two forms: `channel` (the kernel into few channels, then
//! 1 x 1) or `spatial` (along the first axis of the kernel, then along the others); `auto` takes
//! for each layer what costs least for the same error.
//!
//! With calibration data the factors keep the outputs of a layer and not its weights: the SVD
//! is whitened by the covariance of the layer's inputs, the bias takes up what changes in the
//! mean, and then each layer is fitted again to the outputs of the original network, on the
//! activations of the network that is compressed already. Without data the weights alone count,
//! which costs most networks far more accuracy.
//!
//! Rank is given by `ratio`, `energy`, `budget` or `rank`. `ratio` and `budget` spread it over
//! the layers: it goes where the error falls most for its cost. A budget of latency is measured. A layer is factorized only where
//! multiply-accumulates fall.
//!
//! Left alone, with a remark each:
//! - depthwise convolutions, `depthwise`; recurrent networks, `recurrent`; small weights, `small`;
//! - weights that something else takes too, `shared`; that are graph outputs, `graph-output`;
//!   that a graph input may override, `overridable`; that are quantized, `element-type`;
//! - one half of a factorization, `factored`; what no rank makes cheaper, `no-gain`; what can't
//!   take the form that is asked for, `form`;
//! - layers whose inputs can't be watched, `no-data`; whose rank is better left full, `full-rank`;
//!   of which no rank keeps the energy, `energy`; whose factors don't fit the type, `range`.
//!
//! Sources: see `factors.rs`; Denton et al., "Exploiting linear structure within convolutional
//! networks for efficient evaluation", 2014; Izenman, "Reduced-rank regression for the
//! multivariate linear model", 1975.

use crate::order;
use paring_ir::analysis::{CostOptions, Costs, ShapeOptions, Shapes};
use paring_ir::{
    Changed, Effect, Graph, Model, OpId, OptionError, OptionSet, Pass, PassContext, PassError,
    PassInfo,
};

mod build;
mod candidates;
mod factors;
mod impact;
mod latency;
mod plan;
mod rank;
mod rewrite;
mod svd;
#[cfg(test)]
mod tests;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct FactorizeLowRank {
    options: OptionSet<Options>,
}

/// How much rank is left, and how it is found.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The share of the parameters to keep over all layers that can be factorized; 1 changes
    /// nothing. Without `energy`, `budget` and `rank` it is 0.5, which most layers bear when
    /// there is calibration data. A layer with a ratio of its own keeps that much by itself.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ratio: Option<f64>,
    /// The share of the energy (the mean square) of each layer's outputs to keep, such as 0.99;
    /// 1 changes nothing. The rank follows, layer by layer.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub energy: Option<f64>,
    /// The rank itself, for layers by name.
    #[schemars(range(min = 1))]
    pub rank: Option<usize>,
    /// What the whole model may cost afterwards.
    #[schemars(extend("x-scope" = "pass"))]
    pub budget: Option<Budget>,
    /// How convolutions are split. Products of matrices have one form only.
    pub form: FormChoice,
    /// Ranks are multiples of this: engines compute in blocks, and what is left over of a block
    /// costs as much as a whole one. 8 suits vectors of 256 bits.
    #[schemars(range(min = 1))]
    pub round_to: usize,
    /// Find the factors by the covariance of each layer's inputs, when there is calibration data.
    #[schemars(extend("x-scope" = "pass"))]
    pub whiten: bool,
    /// Fit each layer again on the activations of the compressed network, when there is
    /// calibration data.
    #[schemars(extend("x-scope" = "pass"))]
    pub recover: bool,
    /// How strongly a fit is held at the weights as they were, by the mean energy of the inputs.
    /// More helps when there are few samples for many inputs.
    #[schemars(range(min = 0.0), extend("x-scope" = "pass"))]
    pub damping: f64,
    /// How many samples of the calibration data are looked at; all of them without a number.
    #[schemars(range(min = 1), extend("x-scope" = "pass"))]
    pub samples: Option<usize>,
    /// Weights of fewer elements stay: what a second operator costs is more than they save.
    pub min_elements: usize,
}

/// What the whole model may cost, as a share of what it costs before. All that is given holds.
#[derive(
    Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Budget {
    /// Multiply-accumulates.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub macs: Option<f64>,
    /// Bytes of all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub size: Option<f64>,
    /// The latency in the engine, measured: the result then depends on the machine. The remark
    /// `latency` and the recipe of the report say which budget of MACs gives the same result
    /// anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub latency: Option<f64>,
}

/// The form of convolutions.
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
pub enum FormChoice {
    /// For each layer the one that costs least for the same error.
    #[default]
    Auto,
    /// Only products of matrices and convolutions without a kernel.
    Svd,
    /// The kernel into few channels, then 1 x 1.
    Channel,
    /// Along the first axis of the kernel, then along the others; only kernels of two axes and more.
    Spatial,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ratio: None,
            energy: None,
            rank: None,
            budget: None,
            form: FormChoice::Auto,
            round_to: 8,
            whiten: true,
            recover: true,
            damping: 0.01,
            samples: None,
            min_elements: 4096,
        }
    }
}

impl Pass for FactorizeLowRank {
    const INFO: PassInfo = PassInfo::new(
        "factorize-low-rank",
        "Replace large weights by products of two small ones",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants", "fold-batch-norm"])
    .never_after(&order::FACTORIZES);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let whole = options.whole();
        let given = [
            ("ratio", whole.ratio.is_some()),
            ("energy", whole.energy.is_some()),
            ("rank", whole.rank.is_some()),
            ("budget", whole.budget.is_some()),
        ];
        let given: Vec<&str> = given.iter().filter(|g| g.1).map(|g| g.0).collect();
        if let [first, second, ..] = given[..] {
            return Err(OptionError::Invalid {
                path: format!("factorize-low-rank.{second}"),
                reason: format!("{first} decides about the rank already; give one of them"),
            });
        }
        if whole
            .budget
            .as_ref()
            .is_some_and(|b| *b == Budget::default())
        {
            return Err(OptionError::Invalid {
                path: "factorize-low-rank.budget".to_owned(),
                reason: "expected macs, size or latency, or several, as shares from 0 to 1"
                    .to_owned(),
            });
        }
        Ok(FactorizeLowRank { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| !self.options.for_op(graph, op).is_skip();
        order::refuse_undoing(model, &Self::INFO, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let sizes = run_sizes(model, cx)?;
        let shapes = cx.analyses.get_with::<Shapes>(model, &sizes);
        let costs = cx.analyses.get_with::<Costs>(
            model,
            &CostOptions {
                zeros: false,
                shapes: sizes,
            },
        );
        let candidates = candidates::candidates(model, &self.options, (&costs, &shapes), cx)?;
        if candidates.is_empty() {
            return Ok(Changed::No);
        }
        let planned = plan::plan(model, &candidates, self.options.whole(), costs.total(), cx)?;
        build::build(model, planned, self.options.whole(), costs.total(), cx)
    }
}

/// The shapes of the inputs in the first run of the calibration data, so that costs are those of
/// a run and not of a model whose open sizes are 1.
fn run_sizes(model: &Model, cx: &PassContext<'_>) -> Result<ShapeOptions, PassError> {
    let mut sizes = ShapeOptions::default();
    let Some(data) = cx.data else {
        return Ok(sizes);
    };
    data.for_each(Some(1), &mut |sample| {
        for (&input, tensor) in model.graph.inputs().iter().zip(&sample.inputs) {
            let name = model.graph.value(input).name().to_string();
            let dims = tensor.dims().iter().map(|&d| d as i64).collect();
            sizes.input_shapes.entry(name).or_insert(dims);
        }
        Ok(())
    })?;
    Ok(sizes)
}

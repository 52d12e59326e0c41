//! The options of `prune-weights`.

use paring_ir::{OptionError, OptionSet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;

/// How much is pruned, where, and by what measure.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The share of zeros to reach, from 0 (nothing changes) to 1, over the weights that are
    /// pruned. Half is what most trained networks bear without retraining when there is
    /// calibration data. With a pattern N:M the pattern says how much, and only 0 counts here.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sparsity: f64,
    /// Which weights become zero together: `unstructured` (each for itself), `N:M` (of M inputs
    /// in a row at most N stay, such as 2:4) or `RxC` (blocks of R outputs and C inputs, such as
    /// 16x1). Inputs in a row are neighbouring channels at one place of a kernel.
    pub pattern: Pattern,
    /// How the zeros are spread over the layers.
    #[schemars(extend("x-scope" = "pass"))]
    pub distribution: Distribution,
    /// What the whole model may keep, instead of `sparsity`.
    #[schemars(extend("x-scope" = "pass"))]
    #[serde(skip_serializing_if = "Budget::is_empty")]
    pub budget: Budget,
    /// Which weights of a layer go.
    #[schemars(extend("x-scope" = "pass"))]
    pub criterion: Criterion,
    /// What the weights that stay do for those that went.
    #[schemars(extend("x-scope" = "pass"))]
    pub recover: Recover,
    /// Prune in so many rounds, the share of zeros rising as a cubic curve; each round sees the
    /// activations of the network that the last one left. One round is enough for most networks;
    /// more take as much longer.
    #[schemars(range(min = 1, max = 100), extend("x-scope" = "pass"))]
    pub steps: usize,
    /// How pruned weights are written.
    #[schemars(extend("x-scope" = "pass"))]
    pub storage: Storage,
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
    /// Look at so many samples of the calibration data at the most. More than some hundred
    /// rarely change anything.
    #[schemars(range(min = 1), extend("x-scope" = "pass"))]
    pub samples: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sparsity: 0.5,
            pattern: Pattern::Unstructured,
            distribution: Distribution::default(),
            budget: Budget::default(),
            criterion: Criterion::default(),
            recover: Recover::default(),
            steps: 1,
            storage: Storage::default(),
            max_layer_sparsity: 0.95,
            include_first: false,
            include_depthwise: false,
            min_elements: 256,
            samples: 1024,
        }
    }
}

/// How zeros are spread over layers. A layer with a sparsity or pattern of its own (by type or
/// name), or with a pattern N:M, is always pruned by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// `output-error` when weights go by a second-order criterion, else `layer-adaptive`.
    #[default]
    Auto,
    /// Where they cost the least: each layer's error on calibration data, over the variance of
    /// its outputs, is predicted for several shares, and the sum over the layers is kept small.
    /// At one half this keeps outputs about 10 dB closer than equal shares do.
    OutputError,
    /// Each weight counts by the share of its square in the sum of squares of its layer, those
    /// that go before it left out. Layers that live on few large weights lose most, and scales
    /// don't matter. Without data it keeps outputs 4 to 6 dB closer than the others do.
    LayerAdaptive,
    /// Every layer gets the same share.
    Uniform,
    /// The smallest weights of all layers together go; layers of small weights lose more, and
    /// one may lose nearly all.
    Global,
    /// What stays in a layer is in proportion to the sum of its sizes (outputs, inputs and
    /// kernel) over their product, so that large layers lose most.
    ErdosRenyiKernel,
}

/// Which weights of a layer go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// `second-order` when there is calibration data, else `magnitude`.
    #[default]
    Auto,
    /// The smallest.
    Magnitude,
    /// Of each output those whose size times the root mean square of their input is the
    /// smallest. Wants data.
    Wanda,
    /// Those without which the layer's outputs can be rebuilt best from the weights that stay,
    /// judged by the second moments of its inputs. Wants data.
    SecondOrder,
}

/// What is done for the weights that stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Recover {
    /// `least-squares` when there is calibration data, else `none`.
    #[default]
    Auto,
    /// Nothing. A second-order criterion still makes its own update, from the inputs that the
    /// layer had in the original network.
    None,
    /// Biases are moved so that the mean of each output stays. Wants data.
    Bias,
    /// The weights that stay are fitted anew, so that the layer comes as near as it can to the
    /// outputs it had in the original network, from the inputs it gets in the pruned one;
    /// biases as well. Wants data.
    LeastSquares,
}

/// How pruned weights are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// As before, zeros written out; smaller once it is compressed.
    #[default]
    Dense,
    /// As ONNX `sparse_initializer`, where that takes fewer bytes: each weight that stays brings
    /// a position of eight bytes, so with 32-bit weights from two thirds of zeros on. Weights
    /// that a graph inside another takes stay dense. Few engines but ONNX Runtime load it.
    Sparse,
}

/// What the whole model may keep. The tightest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Budget {
    /// The share of all parameters of the model that must be zero, those that are never pruned
    /// counted in.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// The share of the multiply-accumulates that may remain with a weight that is not zero.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macs: Option<f64>,
    /// The share of the bytes of all parameters that may remain when a weight that is not zero
    /// takes its bytes and every pruned layer one bit for each of its weights, about what
    /// compression of the file reaches; with sparse storage, the bytes as they are written.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<f64>,
}

impl Budget {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Budget::default()
    }
}

fn invalid(key: &str, reason: impl Into<String>) -> OptionError {
    OptionError::Invalid {
        path: format!("prune-weights.{key}"),
        reason: reason.into(),
    }
}

/// Refuses what contradicts itself.
pub(super) fn check(options: &OptionSet<Options>) -> Result<(), OptionError> {
    let whole = options.whole();
    for (key, share) in [
        ("sparsity", Some(whole.sparsity)),
        ("max-layer-sparsity", Some(whole.max_layer_sparsity)),
        ("budget.sparsity", whole.budget.sparsity),
        ("budget.macs", whole.budget.macs),
        ("budget.size", whole.budget.size),
    ] {
        if let Some(share) = share.filter(|s| !(0.0..=1.0).contains(s)) {
            let reason = format!("expected a share from 0 to 1, found {share}");
            return Err(invalid(key, reason));
        }
    }
    if whole.steps == 0 || whole.samples == 0 {
        let key = if whole.steps == 0 { "steps" } else { "samples" };
        return Err(invalid(key, "expected a number of at least 1, found 0"));
    }
    let said = options.given().contains_key("sparsity");
    if said && !whole.budget.is_empty() {
        let reason = "a budget says how much is pruned, and so does sparsity; give one of them";
        return Err(invalid("budget", reason));
    }
    if let Pattern::NOfM { keep, of } = whole.pattern {
        return check_pattern(whole, said, keep, of);
    }
    if whole.sparsity > whole.max_layer_sparsity {
        let reason = format!(
            "{} is more than max-layer-sparsity ({}) allows; raise that as well",
            whole.sparsity, whole.max_layer_sparsity
        );
        return Err(invalid("sparsity", reason));
    }
    Ok(())
}

fn check_pattern(whole: &Options, said: bool, keep: usize, of: usize) -> Result<(), OptionError> {
    let pattern = whole.pattern;
    if !whole.budget.is_empty() {
        let reason = format!("the pattern {pattern} says how much is pruned; leave budget out");
        return Err(invalid("budget", reason));
    }
    let share = 1.0 - keep as f64 / of as f64;
    if said && whole.sparsity != 0.0 && (whole.sparsity - share).abs() > 1e-3 {
        let reason = format!(
            "the pattern {pattern} makes {share} of the weights zero, found {}; leave sparsity out",
            whole.sparsity
        );
        return Err(invalid("sparsity", reason));
    }
    Ok(())
}

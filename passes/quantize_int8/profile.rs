//! Target profiles: what an engine runs in integers, as data.
//!
//! The built-in profiles stand in `targets/*.yaml`, in the JSON subset of YAML with comment
//! lines, so that this crate reads them without knowing YAML. A profile of the user's own is
//! given in place of the name: as a map in a recipe, or as a file that the caller parses.

use std::collections::BTreeMap;

use paring_ir::OptionError;
use paring_ir::select::nearest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The built-in profiles: name and text.
pub const PROFILES: [(&str, &str); 3] = [
    ("onnxruntime", include_str!("../targets/onnxruntime.yaml")),
    ("tract", include_str!("../targets/tract.yaml")),
    ("generic", include_str!("../targets/generic.yaml")),
];

/// The name of a built-in profile, or a profile written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Target {
    /// A built-in profile: `onnxruntime`, `tract` or `generic`.
    Name(String),
    /// A profile of the user's own.
    Profile(Box<Profile>),
}

impl Default for Target {
    fn default() -> Target {
        Target::Name("onnxruntime".to_owned())
    }
}

impl Target {
    /// The profile; an error with the nearest name when there is none of this name.
    pub fn profile(&self, pass: &str) -> Result<Profile, OptionError> {
        let name = match self {
            Target::Profile(profile) => return Ok((**profile).clone()),
            Target::Name(name) => name,
        };
        let invalid = |reason: String| OptionError::Invalid {
            path: format!("{pass}.target"),
            reason,
        };
        let names = || PROFILES.iter().map(|(n, _)| *n);
        let text = PROFILES.iter().find(|(n, _)| n == name).map(|(_, t)| *t);
        let text = text.ok_or_else(|| {
            let known = names().collect::<Vec<_>>().join(", ");
            invalid(match nearest(name, names()) {
                Some(n) => format!("there is no target \"{name}\"; did you mean \"{n}\"?"),
                None => format!(
                    "there is no target \"{name}\"; known are {known}, or a profile file ending in .yaml"
                ),
            })
        })?;
        Profile::parse(text).map_err(|e| invalid(e.to_string()))
    }
}

/// What an engine runs in integers, and with which types.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Profile {
    /// One line for people.
    pub description: String,
    /// The least version of the standard operators; older models are upgraded to it first.
    pub opset: i64,
    /// The element type of activations.
    pub activations: ActivationType,
    /// Whether the zero point of activations is always the middle of their type.
    pub symmetric: bool,
    /// Whether each output channel of a weight has a scale of its own.
    pub weights: Granularity,
    /// How biases are stored.
    pub bias: BiasForm,
    /// How weights are held so small that sums of two products fit 16 bits.
    pub reduce_range: ReduceRange,
    /// Whether the engine saturates sums of two u8 x s8 products on x86 before VNNI, which
    /// `reduce-range` is against. For people; nothing depends on it.
    pub saturates_before_vnni: bool,
    /// The operators with constant weights that run in integers, by type.
    pub layers: BTreeMap<String, LayerRule>,
    /// Operators without weights that run in integers when all that comes in is quantized.
    pub joins: BTreeMap<String, JoinRule>,
    /// Operators that hand quantized elements on as they are: what goes in and what comes out
    /// have the same scale.
    pub passes_through: Vec<String>,
    /// Whether channels of what products take are scaled first, by a Mul where nothing before it
    /// can take the scales in.
    pub smooth: bool,
    /// Whether large tables that Gathers take rows of are stored as bytes.
    pub tables: bool,
}

/// How an operator with a constant weight is quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LayerRule {
    /// Whether the engine gives quantized or float results.
    pub output: OutputForm,
    /// Operators that are one with this one when they alone take its output: nothing is
    /// quantized between them.
    pub fuses: Vec<String>,
    /// Whether depthwise convolutions are quantized.
    pub depthwise: bool,
    /// Whether an operator between quantized values is quantized however small it is: the engine
    /// would do it itself, with one scale and the nearest numbers.
    pub always_between_bytes: bool,
    /// Products of fewer rows stay float. Rows that are not known count as many.
    pub min_rows: usize,
}

impl Default for LayerRule {
    fn default() -> LayerRule {
        LayerRule {
            output: OutputForm::Quantized,
            fuses: Vec::new(),
            depthwise: true,
            always_between_bytes: false,
            min_rows: 0,
        }
    }
}

/// How an operator without weights is quantized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct JoinRule {
    /// Operators that are one with this one when they alone take its output.
    pub fuses: Vec<String>,
    /// Whether what goes in and what comes out must have one scale.
    pub same_scale: bool,
}

/// What an engine gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutputForm {
    /// Only quantized results: the output is quantized, or the operator stays float.
    #[default]
    Quantized,
    /// Float results at no cost.
    Float,
}

/// The element type of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationType {
    /// 0 to 255.
    #[default]
    U8,
    /// -128 to 127.
    S8,
}

/// How many scales a weight has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// One for each output channel.
    #[default]
    PerChannel,
    /// One.
    PerTensor,
    /// One where that adds little noise: 30 dB below the weight, 20 dB below its worst output.
    /// Otherwise one for each output channel.
    Mixed,
}

/// How sums of two u8 x s8 products are kept within 16 bits, for engines that saturate there on
/// x86 before VNNI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "ReduceRangeForm", into = "ReduceRangeForm")]
#[schemars(with = "ReduceRangeForm")]
pub enum ReduceRange {
    /// Not at all: weights have 8 bits (`false`).
    #[default]
    Full,
    /// Every weight has 7 bits (`true`).
    SevenBits,
    /// Two weights that the engine's kernels add up first are held within 128 together
    /// (`pairs`); most keep 8 bits. In the order of ONNX Runtime: the inputs of a product, the
    /// channels at each position of a kernel.
    Pairs,
}

/// `false`, `true` or `pairs`.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum ReduceRangeForm {
    Flag(bool),
    Named(ReduceRangeName),
}

#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum ReduceRangeName {
    Pairs,
}

impl From<ReduceRangeForm> for ReduceRange {
    fn from(form: ReduceRangeForm) -> ReduceRange {
        match form {
            ReduceRangeForm::Flag(false) => ReduceRange::Full,
            ReduceRangeForm::Flag(true) => ReduceRange::SevenBits,
            ReduceRangeForm::Named(ReduceRangeName::Pairs) => ReduceRange::Pairs,
        }
    }
}

impl From<ReduceRange> for ReduceRangeForm {
    fn from(range: ReduceRange) -> ReduceRangeForm {
        match range {
            ReduceRange::Full => ReduceRangeForm::Flag(false),
            ReduceRange::SevenBits => ReduceRangeForm::Flag(true),
            ReduceRange::Pairs => ReduceRangeForm::Named(ReduceRangeName::Pairs),
        }
    }
}

/// How biases are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BiasForm {
    /// As 32-bit integers whose scale is that of the activation times that of the weight.
    #[default]
    Int32,
    /// As floats.
    Float,
}

impl Profile {
    /// Reads the JSON subset of YAML with comment lines.
    pub fn parse(text: &str) -> Result<Profile, serde_json::Error> {
        let data = text.lines().filter(|l| !l.trim_start().starts_with('#'));
        serde_json::from_str(&data.collect::<Vec<_>>().join("\n"))
    }

    /// Whether quantized elements go through an operator as they are.
    pub(crate) fn hands_on(&self, op: &paring_ir::Op) -> bool {
        op.domain().is_empty() && self.passes_through.iter().any(|t| op.is(t))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    #[test]
    fn the_built_in_profiles_name_operators_that_exist() {
        for (name, _) in PROFILES {
            let profile = Target::Name(name.to_owned()).profile("p").unwrap();
            let all = profile.layers.keys().chain(profile.joins.keys());
            let fused = profile.layers.values().flat_map(|r| &r.fuses);
            for op in all.chain(&profile.passes_through).chain(fused) {
                assert!(paring_ir::schema::knowledge(op).is_some(), "{name}: {op}");
            }
            assert!(profile.opset >= 13, "{name}");
        }
    }

    #[test]
    fn a_misspelt_target_is_told_the_nearest() {
        let e = Target::Name("onnxruntme".to_owned()).profile("quantize-int8");
        assert_eq!(
            e.unwrap_err().to_string(),
            "quantize-int8.target: there is no target \"onnxruntme\"; did you mean \"onnxruntime\"?"
        );
    }
}

//! What a run of passes did, in numbers and remarks. The JSON form is stable.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::pass::{Effect, Remarks};

/// The size of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Operators, those inside subgraphs included, `Constant` not.
    pub nodes: u64,
    /// Elements of weights.
    pub parameters: u64,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Multiply-accumulates of one run.
    pub macs: u64,
}

/// How far the outputs of a model are from those of another, over the same samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Samples compared.
    pub samples: usize,
    /// The largest absolute difference.
    pub max_abs: f64,
    /// The largest absolute difference over the root mean square of the reference's output.
    pub max_rel: f64,
    /// Signal to quantization-noise ratio in dB; absent when there is no difference.
    pub sqnr_db: Option<f64>,
    /// The mean cosine between outputs of a sample.
    pub cosine: Option<f64>,
    /// The share of samples with the same largest output.
    pub top1_agreement: Option<f64>,
    /// Top-1 accuracy of the reference, 0 to 1, where there are labels.
    pub accuracy_before: Option<f64>,
    /// Top-1 accuracy of the model, 0 to 1, where there are labels.
    pub accuracy_after: Option<f64>,
}

/// Limits that a rewrite must keep. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Accept {
    /// The least SQNR of the outputs against the original, in dB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sqnr_db: Option<f64>,
    /// The least mean cosine of the outputs against the original.
    #[schemars(range(min = -1.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine: Option<f64>,
    /// The most top-1 accuracy that may be lost, in percentage points; wants labelled data.
    #[schemars(range(min = -100.0, max = 100.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_accuracy_drop: Option<f64>,
    /// The most that the latency may be, over the original's.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_latency_ratio: Option<f64>,
    /// The most that the file may be, over the original's.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size_ratio: Option<f64>,
}

impl Accept {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Accept::default()
    }

    /// Takes the limits of another that are not set here.
    pub fn fill(&mut self, other: &Accept) {
        self.min_sqnr_db = self.min_sqnr_db.or(other.min_sqnr_db);
        self.min_cosine = self.min_cosine.or(other.min_cosine);
        self.max_accuracy_drop = self.max_accuracy_drop.or(other.max_accuracy_drop);
        self.max_latency_ratio = self.max_latency_ratio.or(other.max_latency_ratio);
        self.max_size_ratio = self.max_size_ratio.or(other.max_size_ratio);
    }

    /// Whether a limit is about outputs.
    pub fn needs_outputs(&self) -> bool {
        self.min_sqnr_db.is_some() || self.min_cosine.is_some() || self.max_accuracy_drop.is_some()
    }

    /// The limits on outputs that a difference breaks.
    pub fn breaches(&self, d: &Difference) -> Vec<Breach> {
        let mut out = Vec::new();
        // No SQNR means no difference at all.
        if let (Some(limit), Some(found)) = (self.min_sqnr_db, d.sqnr_db) {
            out.extend(Breach::below("min-sqnr-db", found, limit));
        }
        if let Some(limit) = self.min_cosine {
            out.extend(Breach::below(
                "min-cosine",
                d.cosine.unwrap_or(f64::NAN),
                limit,
            ));
        }
        if let Some(limit) = self.max_accuracy_drop {
            let drop = match (d.accuracy_before, d.accuracy_after) {
                (Some(b), Some(a)) => 100.0 * (b - a),
                _ => f64::NAN,
            };
            out.extend(Breach::above("max-accuracy-drop", drop, limit));
        }
        out
    }
}

/// A limit that is broken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Breach {
    /// The limit's name.
    pub limit: String,
    /// What was measured; NaN (null in JSON) when it could not be.
    pub found: f64,
    /// What was allowed.
    pub allowed: f64,
}

impl Breach {
    /// A breach unless `found` is at least `allowed`. What could not be measured is a breach.
    pub fn below(limit: &str, found: f64, allowed: f64) -> Option<Breach> {
        let kept = found >= allowed;
        (!kept).then(|| Breach {
            limit: limit.to_owned(),
            found,
            allowed,
        })
    }

    /// A breach unless `found` is at most `allowed`. What could not be measured is a breach.
    pub fn above(limit: &str, found: f64, allowed: f64) -> Option<Breach> {
        let kept = found <= allowed;
        (!kept).then(|| Breach {
            limit: limit.to_owned(),
            found,
            allowed,
        })
    }
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.found.is_nan() {
            return write!(f, "{} {} could not be measured", self.limit, self.allowed);
        }
        write!(
            f,
            "{} {}: found {:.4}",
            self.limit, self.allowed, self.found
        )
    }
}

/// What one run of one pass did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassReport {
    /// The pass.
    pub name: String,
    /// Whether it may change outputs.
    pub effect: Effect,
    /// Its options, as given.
    pub options: Map<String, Json>,
    /// Whether it edited the model.
    pub changed: bool,
    /// Wall-clock time.
    pub seconds: f64,
    /// What it said about operators.
    pub remarks: Remarks,
    /// The model's size before.
    pub before: Counts,
    /// The model's size after.
    pub after: Counts,
    /// Which pass wanted this one to run first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required_by: Option<String>,
    /// The round, counted from 1, where the pass stands in a group that repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// How far the outputs are from the original's after a lossy pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// The limits that the pass broke; it was undone then.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub undone: Vec<Breach>,
    /// What the user should know.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
    /// What to change about the options to get the same result on any machine, where decisions
    /// hung on measured latency; null takes an option away.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resolved: Option<Map<String, Json>>,
}

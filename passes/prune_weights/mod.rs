//! `prune-weights`: weights become zero, and those that stay make up for them.
//!
//! ```text
//! before   float[4] w = {0.1, -2, 0.3, 4}      after, at sparsity 0.5   float[4] w = {0, -2, 0, 4}
//! ```
//!
//! Zeros make a model smaller once it is compressed, and are where sparse formats start. Dense
//! engines don't run them faster: remove whole channels for that.
//!
//! Without calibration data the weights that are smallest by magnitude go, and the others keep
//! their bits. With data (`--data`) the defaults are the accurate ones: zeros are spread over
//! the layers by what they cost there, within a layer the weights go without which its outputs
//! can be rebuilt best, and the weights that stay and the biases are refitted by least squares,
//! layer after layer, each seeing the activations of the network pruned so far and aiming at the
//! outputs of the original one. `criterion`, `distribution` and `recover` choose other ways.
//!
//! Pruned are the weights of convolutions, matrix products and recurrent networks. A weight that
//! several of them share is pruned once. Shapes, element types and operators stay; biases are
//! never pruned. Elements of equal score go in the order of their position, so the result does
//! not depend on threads; elements that are zero already count, and a model that has its zeros
//! is left alone.
//!
//! Left alone, with a remark each:
//! - the first convolution, `first` (see `include-first`);
//! - depthwise convolutions, `depthwise` (see `include-depthwise`);
//! - small weights, `small` (see `min-elements`);
//! - weights that something else takes as well, such as an embedding that is also the last
//!   layer, `shared`; that are graph outputs, `graph-output`; or that a graph input may
//!   override, `overridable`;
//! - quantized weights, `element-type`, and those whose shape does not fit, `odd-weight`.
//!
//! With data, layers whose inputs the engine can't give or that are too wide are pruned by
//! magnitude, `no-activations`; so are those whose statistics are no numbers, `bad-moments`,
//! `no-solution`.
//!
//! Magnitude pruning: Han et al., "Learning both Weights and Connections for Efficient Neural
//! Networks", 2015; uniform and global sparsity: Gale et al., "The State of Sparsity in Deep
//! Neural Networks", 2019; layer-adaptive sparsity: Lee et al., "Layer-adaptive Sparsity for the
//! Magnitude-based Pruning", 2021; Erdos-Renyi-kernel: Evci et al., "Rigging the Lottery", 2020;
//! cubic schedule: Zhu and Gupta, "To prune, or not to prune", 2017; Wanda: Sun et al., "A Simple
//! and Effective Pruning Approach for Large Language Models", 2023; second order and refit by
//! layers: Frantar and Alistarh, "Optimal Brain Compression", 2022, and "SparseGPT", 2023; bias
//! correction: Nagel et al., "Data-Free Quantization", 2019.

mod calibrate;
mod magnitude;
mod options;
mod pattern;
mod problem;
mod second_order;
mod spread;
mod storage;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use paring_ir::{
    Changed, Effect, Graph, GraphId, Model, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo,
};

use crate::clustered::refuse_clustered;

pub use options::{Budget, Criterion, Distribution, Options, Recover, Storage};
pub use pattern::Pattern;

use calibrate::{Calibrated, Way};
use targets::Target;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct PruneWeights {
    options: OptionSet<Options>,
}

impl Pass for PruneWeights {
    const INFO: PassInfo = PassInfo::new(
        "prune-weights",
        "Set the weights that matter least to zero, and refit the others where there is data",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants", "fold-batch-norm"]);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        options::check(&options)?;
        Ok(PruneWeights { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| !self.options.for_op(graph, op).is_skip();
        refuse_clustered(model, Self::INFO.name, &wants)
    }

    fn is_neutral(&self) -> bool {
        let no_zeros = self.options.levels().all(|o| o.sparsity == 0.0);
        no_zeros
            && self.options.whole().budget.is_empty()
            && self.options.whole().storage == Storage::Dense
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let whole = self.options.whole();
        let plan = Plan::settle(whole, cx)?;
        let targets = targets::targets(model, &self.options, cx)?;
        if targets.is_empty() {
            return Ok(Changed::No);
        }
        let by_data: Vec<usize> = (0..targets.len())
            .filter(|&i| plan.runs_data && can_calibrate(model, &targets[i]))
            .collect();
        // What has its zeros is left alone before any data is looked at.
        let uniform = plan.distribution == Distribution::OutputError;
        let at_least = match uniform {
            true => self.least_zeros(model, &targets, cx)?,
            false => None,
        };
        if at_least.is_some_and(|wanted| zeros(&targets) >= wanted) {
            return Ok(Changed::No);
        }
        let curves = match plan.distribution {
            Distribution::OutputError => {
                calibrate::curves(model, &targets, &pooled(&targets, &by_data), whole, cx)?
            }
            _ => vec![None; targets.len()],
        };
        let counts = spread::counts(model, &targets, whole, plan.distribution, &curves, cx)?;
        let undone: HashSet<usize> = (0..targets.len())
            .filter(|&i| counts[i] > 0)
            .filter(|&i| !magnitude::is_done(&targets[i], &targets[i].tensor, counts[i]))
            .collect();
        if undone.is_empty() {
            return Ok(Changed::No);
        }
        let by_data: Vec<usize> = by_data.into_iter().filter(|i| undone.contains(i)).collect();
        plan.say(whole, by_data.len(), cx);
        let changed = self.prune(model, &targets, &counts, (&plan, by_data), cx)?;
        Ok(changed)
    }
}

impl PruneWeights {
    /// Prunes layers to their counts: those of `by_data` with what the data says.
    fn prune(
        &self,
        model: &mut Model,
        targets: &[Target],
        counts: &[usize],
        (plan, by_data): (&Plan, Vec<usize>),
        cx: &mut PassContext<'_>,
    ) -> Result<Changed, PassError> {
        let whole = self.options.whole();
        let mut changed = Changed::No;
        let mut calibrated: HashSet<usize> = by_data.iter().copied().collect();
        if !by_data.is_empty() {
            let reference = model.clone();
            let mut state = Calibrated::new(&reference, targets, plan.way);
            for step in 1..=whole.steps {
                let now: Vec<usize> = counts
                    .iter()
                    .map(|&c| cubic(c, step, whole.steps))
                    .collect();
                // Of several steps the last one speaks.
                let said = cx.remarks.clone();
                let (done, left) = state.step(model, &by_data, &now, cx)?;
                if step < whole.steps {
                    cx.remarks = said;
                }
                changed |= done;
                left.iter().for_each(|i| {
                    calibrated.remove(i);
                });
            }
        }
        let mut plans: HashMap<GraphId, Vec<usize>> = HashMap::new();
        for (i, t) in targets.iter().enumerate() {
            plans.entry(t.layer.weight.graph()).or_default().push(i);
        }
        let sparse = self.may_be_sparse(model, cx);
        model.edit_graphs(&mut |graph| {
            let own = plans.remove(&graph.id()).unwrap_or_default();
            for &i in own.iter().filter(|i| !calibrated.contains(i)) {
                cx.check_cancelled()?;
                if plan.runs_data && counts[i] > 0 {
                    let why = "what it multiplies can't be observed; pruned by magnitude";
                    cx.missed(graph, targets[i].layer.op, "no-activations", why);
                }
                changed |= magnitude::prune(graph, &targets[i], counts[i], cx)?;
            }
            if sparse {
                let own: Vec<&Target> = own.iter().map(|&i| &targets[i]).collect();
                changed |= storage::make_sparse(graph, &own, cx)?;
            }
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }

    fn may_be_sparse(&self, model: &Model, cx: &mut PassContext<'_>) -> bool {
        if self.options.whole().storage == Storage::Dense {
            return false;
        }
        if model.ir_version < storage::IR_VERSION {
            cx.note(format!(
                "weights stay dense: sparse ones need version {} of the ONNX IR, and the model \
                 has {}; upgrade-opset raises it",
                storage::IR_VERSION,
                model.ir_version
            ));
            return false;
        }
        true
    }

    /// The zeros that the pool wants in all, where no curve is needed to tell.
    fn least_zeros(
        &self,
        model: &Model,
        targets: &[Target],
        cx: &mut PassContext<'_>,
    ) -> Result<Option<usize>, PassError> {
        let whole = self.options.whole();
        if !whole.budget.is_empty() || targets.iter().any(|t| t.apart) {
            return Ok(None);
        }
        let none = vec![None; targets.len()];
        let even = Distribution::LayerAdaptive;
        let counts = spread::counts(model, targets, whole, even, &none, cx)?;
        Ok(Some(counts.iter().sum()))
    }
}

fn zeros(targets: &[Target]) -> usize {
    targets.iter().map(|t| t.tensor.count_zeros()).sum()
}

fn can_calibrate(model: &Model, target: &Target) -> bool {
    calibrate::has_moments(model, target) && calibrate::can_refit(target.tensor.dtype())
}

fn pooled(targets: &[Target], chosen: &[usize]) -> Vec<usize> {
    let pooled = chosen.iter().copied().filter(|&i| !targets[i].apart);
    pooled.collect()
}

/// The zeros after one of several steps (Zhu and Gupta, 2017, equation 1, from none).
fn cubic(count: usize, step: usize, steps: usize) -> usize {
    if step >= steps {
        return count;
    }
    let left = 1.0 - step as f64 / steps as f64;
    targets::share(1.0 - left.powi(3), count)
}

/// What the options come to with the data at hand.
#[derive(Clone, Copy, Debug)]
struct Plan {
    way: Way,
    distribution: Distribution,
    /// Whether data is run at all.
    runs_data: bool,
}

impl Plan {
    fn settle(options: &Options, cx: &PassContext<'_>) -> Result<Plan, PassError> {
        let data = cx.data.is_some_and(|d| !d.is_empty()) && cx.engine.is_some();
        let criterion = match options.criterion {
            Criterion::Auto if data => Criterion::SecondOrder,
            Criterion::Auto => Criterion::Magnitude,
            other => other,
        };
        let recover = match options.recover {
            Recover::Auto if data => Recover::LeastSquares,
            Recover::Auto => Recover::None,
            other => other,
        };
        let distribution = match options.distribution {
            Distribution::Auto if criterion == Criterion::SecondOrder => Distribution::OutputError,
            Distribution::Auto => Distribution::LayerAdaptive,
            other => other,
        };
        let wants = [
            (criterion != Criterion::Magnitude, "criterion"),
            (recover != Recover::None, "recover"),
            (distribution == Distribution::OutputError, "distribution"),
        ];
        let wants_data = wants.iter().find(|(wants, _)| *wants);
        if let Some((_, option)) = wants_data.filter(|_| !data) {
            return Err(PassError::Precondition {
                found: format!(
                    "the option \"{option}\" asks for calibration data, and there is none"
                ),
                remedy: format!("give data with --data FILE.npz, or leave \"{option}\" out"),
            });
        }
        Ok(Plan {
            way: Way {
                criterion,
                recover,
                samples: options.samples,
            },
            distribution,
            runs_data: wants_data.is_some(),
        })
    }

    /// Tells the user what was done by default.
    fn say(&self, options: &Options, layers: usize, cx: &mut PassContext<'_>) {
        let name = |value: serde_json::Result<serde_json::Value>| {
            let value = value.unwrap_or_default();
            value.as_str().unwrap_or_default().to_owned()
        };
        let (criterion, recover) = (self.way.criterion, self.way.recover);
        if self.runs_data {
            let samples = cx.data.map_or(0, |d| d.len()).min(options.samples);
            cx.note(format!(
                "{layers} layers pruned on {samples} samples: criterion {}, distribution {}, recover {}",
                name(serde_json::to_value(criterion)),
                name(serde_json::to_value(self.distribution)),
                name(serde_json::to_value(recover)),
            ));
        } else if options.criterion == Criterion::Auto {
            cx.note(
                "pruned by magnitude, as there is no calibration data; with --data FILE.npz much \
                 more accuracy stays",
            );
        }
    }
}

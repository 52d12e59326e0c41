//! `remove-channels`: whole channels go, so that tensors get smaller and every engine faster.
//!
//! ```text
//! before   float[4,3,3,3] w, float[8,4,1,1] v { y = Conv (x, w)  z = Conv (y, v) }
//! after    float[2,3,3,3] w, float[8,2,1,1] v { y = Conv (x, w)  z = Conv (y, v) }
//! ```
//!
//! Channels that must go together form groups: see [`paring_ir::analysis::channels`], which
//! follows every index through the graph. The heads of attention are channels too, and so are
//! the hidden units of a perceptron.
//!
//! How many channels of each group go is given by `ratio`, or follows from a `budget` for the
//! whole model. Which ones is decided by `importance`. With calibration data the layers that
//! took the removed channels are refitted, so that their outputs come as near as they can to
//! those of the original model: layer after layer, each seeing the inputs that the layers before
//! it make now. Nothing is trained.
//!
//! A group that can't shrink is named with the reason: `graph-output`, `graph-input`,
//! `unknown-operator`, `recurrent-state`, `unprovable-shape`, ... (see
//! [`paring_ir::analysis::channels::Reason`]). Groups that could shrink and stay are `normalized`
//! (a normalization over the channels takes them; see `include-normalized`) or `rounding` (what
//! would be left is no multiple of `round-to`, or fewer than `min-channels`).
//!
//! Groups: Fang et al., "DepGraph: Towards Any Structural Pruning", 2023. Isomorphic ranking:
//! Fang et al., "Isomorphic Pruning for Vision Models", 2024. Removal with least squares: He et
//! al., "Channel Pruning for Accelerating Very Deep Neural Networks", 2017; Luo et al., "ThiNet",
//! 2017. The order by output error: Hassibi and Stork, "Second order derivatives for network
//! pruning: Optimal Brain Surgeon", 1992.

use std::collections::HashMap;

use crate::order;
use paring_ir::analysis::channels::{ChannelOptions, Channels, Group, Heads, Removed};
use paring_ir::analysis::{CostOptions, Costs, Shapes};
use paring_ir::{
    Changed, Effect, Graph, GraphId, Model, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo,
};

mod cost;
mod edit;
mod importance;
mod latency;
mod plan;
mod recover;
#[cfg(test)]
mod tests;

use cost::{Cost, Total};
use plan::Candidate;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct RemoveChannels {
    options: OptionSet<Options>,
}

/// How much goes, which channels, and what makes up for them.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// The share of each group's channels that goes, from 0 (nothing changes) to 1. With
    /// `scope: global` the share of all channels. A `budget` goes before it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ratio: f64,
    /// What may remain of the whole model. The least is removed that meets every entry.
    #[schemars(extend("x-scope" = "pass"))]
    pub budget: Budget,
    /// How groups share what goes. By default `global` under a budget, else `uniform`.
    #[schemars(extend("x-scope" = "pass"))]
    pub scope: Option<Scope>,
    /// Which channels go first. By default `reconstruction` when there is calibration data, else
    /// `l2`.
    #[schemars(extend("x-scope" = "pass"))]
    pub importance: Option<Importance>,
    /// What makes up for removed channels. By default `least-squares` when there is calibration
    /// data, else `none`.
    #[schemars(extend("x-scope" = "pass"))]
    pub recover: Option<Recover>,
    /// What is kept is a multiple of so many channels: engines compute 16 at a time, and 33
    /// channels cost as much as 48. Groups of fewer than twice as many use a half, a quarter, ...
    pub round_to: usize,
    /// At least so many channels of each group stay.
    pub min_channels: usize,
    /// No group loses a larger share than this, so that none is emptied.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_ratio: f64,
    /// Whether attention loses whole heads, or each head some of its channels.
    #[schemars(extend("x-scope" = "pass"))]
    pub heads: HeadsOption,
    /// Remove channels too over which a LayerNormalization or another mean is taken, such as the
    /// main stream of a transformer. What stays is then normalized otherwise, which costs much
    /// without training.
    pub include_normalized: bool,
    /// Estimate the statistics of BatchNormalizations again, on the data, where they stand behind
    /// a layer that was refitted.
    #[schemars(extend("x-scope" = "pass"))]
    pub batch_norm: bool,
    /// Samples of the calibration data to look at.
    #[schemars(extend("x-scope" = "pass"))]
    pub samples: usize,
}

/// What may remain, as shares of what the model has when the pass starts.
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
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Budget {
    /// Multiply-accumulates.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub macs: Option<f64>,
    /// Parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub parameters: Option<f64>,
    /// Bytes of the parameters.
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

impl Budget {
    fn entries(&self) -> [(&'static str, Option<f64>); 4] {
        [
            ("macs", self.macs),
            ("parameters", self.parameters),
            ("size", self.size),
            ("latency", self.latency),
        ]
    }

    fn is_empty(&self) -> bool {
        self.entries().iter().all(|(_, share)| share.is_none())
    }

    /// Whether a cost keeps every entry that needs no measurement.
    fn holds(&self, now: Total, whole: Total) -> bool {
        let keeps = |share: Option<f64>, now: f64, whole: f64| {
            share.is_none_or(|s| now <= s * whole * (1.0 + 1e-12))
        };
        keeps(self.macs, now.macs, whole.macs)
            && keeps(self.parameters, now.parameters, whole.parameters)
            && keeps(self.size, now.bytes, whole.bytes)
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize,
            schemars::JsonSchema,
        )]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$inner])* $variant,)* }
    };
}

choice! {
    /// How groups share what goes.
    Scope {
        /// Each loses the same share.
        #[default]
        Uniform,
        /// The channels that cost least go, wherever they are. Under a budget cost counts by
        /// what the channel saves.
        Global,
        /// Likewise, among groups of equal structure.
        Isomorphic,
    }
}

choice! {
    /// What the loss of a channel is taken to cost.
    Importance {
        /// The magnitudes of its weights.
        L1,
        /// Their squares.
        #[default]
        L2,
        /// The scales of its BatchNormalizations; `l2` where there are none.
        BatchNorm,
        /// The share of its consumers' outputs that is lost with it.
        Activation,
        /// The error of its consumers' outputs once the other channels make up for it by least
        /// squares; channels are taken out one after the other, each time the cheapest.
        Reconstruction,
    }
}

choice! {
    /// What makes up for removed channels.
    Recover {
        /// Nothing.
        None,
        /// The means of what is missing go into the biases of the layers that took it.
        Bias,
        /// The weights of every later layer are refitted as well.
        #[default]
        LeastSquares,
    }
}

choice! {
    /// What shrinks in attention.
    HeadsOption {
        /// Whole heads.
        #[default]
        Whole,
        /// Channels within each head, the same in every head.
        Within,
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ratio: 0.5,
            budget: Budget::default(),
            scope: None,
            importance: None,
            recover: None,
            round_to: 16,
            min_channels: 1,
            max_ratio: 0.9,
            heads: HeadsOption::default(),
            include_normalized: false,
            batch_norm: false,
            samples: 512,
        }
    }
}

impl Pass for RemoveChannels {
    const INFO: PassInfo = PassInfo::new(
        "remove-channels",
        "Remove whole channels, attention heads and hidden units, and refit what took them",
        Effect::Lossy,
    )
    .runs_first(&[
        "inline-functions",
        "lift-constants",
        "fold-constants",
        "eliminate-dead-code",
    ])
    .never_after(&order::REMOVES);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let whole = options.whole();
        let shares = [
            ("ratio", Some(whole.ratio)),
            ("max-ratio", Some(whole.max_ratio)),
        ];
        let budget = whole.budget.entries();
        let budget = budget.map(|(key, share)| (format!("budget.{key}"), share));
        let shares = shares.map(|(key, share)| (key.to_owned(), share));
        for (key, share) in shares.into_iter().chain(budget) {
            if let Some(share) = share.filter(|s| !(0.0..=1.0).contains(s)) {
                return Err(OptionError::Invalid {
                    path: format!("remove-channels.{key}"),
                    reason: format!("expected a share from 0 to 1, found {share}"),
                });
            }
        }
        if whole.round_to == 0 || whole.samples == 0 {
            let key = if whole.round_to == 0 {
                "round-to"
            } else {
                "samples"
            };
            return Err(OptionError::Invalid {
                path: format!("remove-channels.{key}"),
                reason: "expected at least 1, found 0".to_owned(),
            });
        }
        Ok(RemoveChannels { options })
    }

    fn is_neutral(&self) -> bool {
        let nothing_goes = self.options.levels().all(|o| o.ratio == 0.0);
        nothing_goes && self.options.whole().budget.is_empty()
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| !self.options.for_op(graph, op).is_skip();
        order::refuse_undoing(model, &Self::INFO, &wants)
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let whole = self.options.whole();
        let has_data = cx.engine.is_some() && cx.data.is_some();
        let importance = whole.importance.unwrap_or(match has_data {
            true => Importance::Reconstruction,
            false => Importance::L2,
        });
        let recover = whole.recover.unwrap_or(match has_data {
            true => Recover::LeastSquares,
            false => Recover::None,
        });
        let heads = match whole.heads {
            HeadsOption::Whole => Heads::Whole,
            HeadsOption::Within => Heads::Within,
        };
        let channels = cx
            .analyses
            .get_with::<Channels>(model, &ChannelOptions { heads });
        let shapes = cx.analysis::<Shapes>(model);
        let costs = cx
            .analyses
            .get_with::<Costs>(model, &CostOptions::default());
        let (wanted, kept_back) = self.wanted(model, &channels);
        if whole.budget.is_empty()
            && wanted.iter().all(|(_, own)| own.ratio == 0.0)
            && whole.ratio == 0.0
        {
            return Ok(Changed::No);
        }
        let groups: Vec<usize> = wanted.iter().map(|(g, _)| *g).collect();
        let orders = importance::orders(model, &channels, &groups, whole, importance, cx)?;
        let cost = Cost::new(model, &channels, &shapes, &costs);
        let candidates: Vec<Candidate> = wanted
            .iter()
            .zip(orders)
            .map(|((g, own), order)| {
                Candidate::new((*g, &channels.groups()[*g]), own, whole, order)
            })
            .collect();
        let plan = Plan {
            model,
            channels: &channels,
            shapes: &shapes,
            cost: &cost,
        };
        let removed = self.choose(&plan, candidates, cx)?;
        let edited = match removed.is_empty() {
            true => None,
            false => Some(edit::remove(model, &channels, &removed, &shapes)?),
        };
        let report = Report {
            channels: &channels,
            removed: &removed,
            kept_back: &kept_back,
        };
        match edited {
            Some(Ok(mut edited)) => {
                report.remarks(model, cx);
                recover::recover(
                    cx,
                    model,
                    &mut edited,
                    (&channels, &removed),
                    whole,
                    recover,
                )?;
                *model = edited;
                Ok(Changed::Yes)
            }
            Some(Err(value)) => {
                report.unproved(model, &value, cx);
                Ok(Changed::No)
            }
            None => {
                report.remarks(model, cx);
                Ok(Changed::No)
            }
        }
    }
}

/// What a choice of channels is made from.
struct Plan<'a> {
    model: &'a Model,
    channels: &'a Channels,
    shapes: &'a Shapes,
    cost: &'a Cost<'a>,
}

impl RemoveChannels {
    /// The groups that may shrink with their options, and those that must not.
    fn wanted(&self, model: &Model, channels: &Channels) -> (Vec<(usize, Options)>, Vec<usize>) {
        let graphs = graphs(model);
        let (mut wanted, mut kept_back) = (Vec::new(), Vec::new());
        for (i, group) in channels.groups().iter().enumerate() {
            let Some(graph) = graphs.get(&group.op.graph()) else {
                continue;
            };
            let Some(own) = self.options.for_op(graph, group.op).options() else {
                continue;
            };
            if group.statistic && !own.include_normalized {
                kept_back.push(i);
            } else {
                wanted.push((i, own.clone()));
            }
        }
        (wanted, kept_back)
    }

    fn choose(
        &self,
        plan: &Plan<'_>,
        mut candidates: Vec<Candidate>,
        cx: &mut PassContext<'_>,
    ) -> Result<Removed, PassError> {
        let whole = self.options.whole();
        let scope = whole.scope.unwrap_or(match whole.budget.is_empty() {
            true => Scope::Uniform,
            false => Scope::Global,
        });
        if whole.budget.is_empty() {
            return Ok(plan::at_ratios(
                plan.channels,
                candidates,
                scope,
                whole.ratio,
            ));
        }
        if scope != Scope::Uniform {
            for candidate in &mut candidates {
                candidate.weigh(plan.saving(candidate, &whole.budget));
            }
        }
        let at = |level| plan::at_level(plan.channels, &candidates, scope, level);
        let full = plan.cost.whole();
        let fits = |level| {
            let now = plan.cost.without(&at(level));
            Ok::<bool, PassError>(whole.budget.holds(now, full))
        };
        let level = crate::latency::lowest(20, fits)?;
        let least = plan.cost.without(&at(1.0));
        let mut level = level.ok_or_else(|| unreachable_budget(least, full))?;
        if let Some(share) = whole.budget.latency {
            level = latency::lowest(plan, &at, level, &whole.budget, share, cx)?;
        }
        Ok(at(level))
    }
}

impl Plan<'_> {
    /// What one channel of a group saves of what the budget is about.
    fn saving(&self, candidate: &Candidate, budget: &Budget) -> f64 {
        let group = &self.channels.groups()[candidate.group];
        let mut removed = Removed::none(self.channels);
        let half = group.channels.len().div_ceil(2);
        group.channels[..half]
            .iter()
            .for_each(|&c| removed.set(c, true));
        let (now, full) = (self.cost.without(&removed), self.cost.whole());
        let saved = if budget.macs.is_some() || budget.latency.is_some() {
            (full.macs - now.macs) / full.macs.max(1.0)
        } else {
            (full.bytes - now.bytes) / full.bytes.max(1.0)
        };
        saved / half.max(1) as f64
    }
}

fn unreachable_budget(least: Total, full: Total) -> PassError {
    PassError::Precondition {
        found: format!(
            "the budget can't be met: with as much removed as may be, {:.3} of the MACs and {:.3} of the parameters remain",
            least.macs / full.macs.max(1.0),
            least.parameters / full.parameters.max(1.0)
        ),
        remedy: "raise the budget or max-ratio, or lower min-channels and round-to".to_owned(),
    }
}

/// All graphs of a model by id.
fn graphs(model: &Model) -> HashMap<GraphId, &Graph> {
    let mut graphs = HashMap::new();
    model.for_each_graph(&mut |g| {
        graphs.insert(g.id(), g);
    });
    graphs
}

/// What is said about every group.
struct Report<'a> {
    channels: &'a Channels,
    removed: &'a Removed,
    kept_back: &'a [usize],
}

impl Report<'_> {
    fn remarks(&self, model: &Model, cx: &mut PassContext<'_>) {
        let graphs = graphs(model);
        for (i, group) in self.channels.groups().iter().enumerate() {
            let Some(graph) = graphs.get(&group.op.graph()) else {
                continue;
            };
            let n = group.channels.len();
            let gone = group.channels.iter().filter(|c| self.removed.contains(**c));
            let gone = gone.count();
            if gone > 0 {
                let message = format!(
                    "{} of {n} channels stay: {}",
                    n - gone,
                    members(&graphs, group)
                );
                cx.applied(graph, group.op, "removed", message);
            } else if self.kept_back.contains(&i) {
                let message = format!(
                    "{n} channels stay: a normalization runs over them; include-normalized removes them"
                );
                cx.missed(graph, group.op, "normalized", message);
            } else {
                let message = format!(
                    "all {n} channels stay: the ratio, round-to, min-channels and max-ratio leave no smaller number"
                );
                cx.missed(graph, group.op, "rounding", message);
            }
        }
        for refusal in self.channels.refused() {
            let Some(graph) = graphs.get(&refusal.op.graph()) else {
                continue;
            };
            let place = refusal.why.op.and_then(|op| label(&graphs, op));
            let place = place.map_or(String::new(), |p| format!(" (at {p})"));
            let message = format!(
                "{} channels stay: {}{place}",
                refusal.channels,
                refusal.why.reason.text()
            );
            cx.missed(graph, refusal.op, refusal.why.reason.code(), message);
        }
    }

    /// The edited model's shapes were not what they should be: everything stays.
    fn unproved(&self, model: &Model, value: &str, cx: &mut PassContext<'_>) {
        let graphs = graphs(model);
        for group in self.channels.groups() {
            if let Some(graph) = graphs.get(&group.op.graph()) {
                let message = format!(
                    "{} channels stay: without them the shape of \"{}\" could not be proved",
                    group.channels.len(),
                    paring_ir::escape(value)
                );
                cx.missed(graph, group.op, "unprovable-shape", message);
            }
        }
    }
}

fn label(graphs: &HashMap<GraphId, &Graph>, op: OpId) -> Option<String> {
    let graph = graphs.get(&op.graph())?;
    let name = paring_ir::escape(&graph.op_label(op));
    Some(format!("{} \"{name}\"", graph.get_op(op)?.op_type()))
}

/// The tensors that shrink, the first few of them.
fn members(graphs: &HashMap<GraphId, &Graph>, group: &Group) -> String {
    const SHOWN: usize = 6;
    let shown = group.members.iter().take(SHOWN).filter_map(|m| {
        let value = graphs.get(&m.value.graph())?.get_value(m.value)?;
        Some(format!(
            "{} axis {}",
            paring_ir::escape(value.name()),
            m.axis
        ))
    });
    let mut all: Vec<String> = shown.collect();
    if group.members.len() > SHOWN {
        all.push(format!("{} more", group.members.len() - SHOWN));
    }
    all.join(", ")
}

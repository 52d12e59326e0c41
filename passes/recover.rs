//! What the passes share that recover an operator from the several that it was written out as:
//! their options, and the walk that finds patterns.

use std::collections::BTreeSet;
use std::fmt::Debug;

use paring_ir::{Changed, Graph, Model, NewOp, OpId, OptionSet, PassContext, PassError};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::common::visit_ops_back;
use crate::edits::remove_all;
use crate::facts::Facts;
use crate::pattern::{Match, Matcher, Pat};

/// An operator that a pass recovers, named as in the standard.
pub trait Recovered:
    Copy + Debug + Ord + Serialize + DeserializeOwned + JsonSchema + 'static
{
    /// All operators that the pass recovers.
    const ALL: &'static [Self];
}

/// Options of a pass that recovers operators.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(
    rename_all = "kebab-case",
    deny_unknown_fields,
    default,
    bound = "K: Recovered"
)]
pub struct Options<K: Recovered> {
    /// The operators to recover. The default is all of them, since the common engines run them;
    /// shorten the list for an engine that lacks one.
    pub operators: BTreeSet<K>,
}

impl<K: Recovered> Default for Options<K> {
    fn default() -> Self {
        Options {
            operators: K::ALL.iter().copied().collect(),
        }
    }
}

/// One way to write an operator out.
pub(crate) struct Rule<K, B = ()> {
    pub(crate) operator: K,
    /// The types that the last operator of the pattern can have.
    pub(crate) roots: &'static [&'static str],
    pub(crate) pat: Pat,
    /// What else the pass knows about the rule.
    pub(crate) build: B,
}

impl<K, B> Rule<K, B> {
    fn at(&self, graph: &Graph, op: OpId, opset: i64) -> Option<Match> {
        let o = graph.op(op);
        self.roots.iter().any(|t| o.is(t)).then_some(())?;
        Matcher::new(graph, opset).at(op, &self.pat)
    }
}

/// A pattern that was found.
pub(crate) struct Site<'a, K: Recovered, B = ()> {
    /// The last operator of the pattern.
    pub(crate) op: OpId,
    pub(crate) rule: &'a Rule<K, B>,
    pub(crate) found: &'a Match,
    pub(crate) facts: &'a Facts,
    /// The options at this operator.
    pub(crate) options: &'a Options<K>,
}

/// What became of a pattern.
pub(crate) enum Outcome {
    /// The operator stands in its place.
    Recovered,
    /// A remark says why it was left.
    Refused,
    /// It is another thing after all; the next rule may fit.
    Other,
}

/// Looks for the rules' patterns from the end of each graph on, and calls `rewrite` for the first
/// one that is there and wanted. Shapes are inferred only when some pattern is there.
pub(crate) fn recover<K: Recovered, B>(
    model: &mut Model,
    cx: &mut PassContext<'_>,
    options: &OptionSet<Options<K>>,
    rules: &[Rule<K, B>],
    rewrite: impl Fn(&mut Graph, &mut PassContext<'_>, &Site<'_, K, B>) -> Result<Outcome, PassError>,
) -> Result<Changed, PassError> {
    let opset = model.opset();
    let is_there = |g: &Graph, op: OpId| rules.iter().any(|r| r.at(g, op, opset).is_some());
    let Some(facts) = Facts::when(model, cx, is_there) else {
        return Ok(Changed::No);
    };
    visit_ops_back(model, cx, options, |graph, cx, op| {
        let Some(options) = options.for_op(graph, op).options() else {
            return Ok(Changed::No);
        };
        for rule in rules {
            if !options.operators.contains(&rule.operator) {
                continue;
            }
            let Some(found) = rule.at(graph, op, opset) else {
                continue;
            };
            let site = Site {
                op,
                rule,
                found: &found,
                facts: &facts,
                options,
            };
            match rewrite(graph, cx, &site)? {
                Outcome::Recovered => return Ok(Changed::Yes),
                Outcome::Refused => return Ok(Changed::No),
                Outcome::Other => {}
            }
        }
        Ok(Changed::No)
    })
}

/// Replaces the last operator of a match and removes the others.
pub(crate) fn replace_match(
    graph: &mut Graph,
    root: OpId,
    found: &Match,
    new: NewOp,
) -> Result<(), PassError> {
    let inner: Vec<OpId> = found.ops.iter().copied().filter(|&op| op != root).collect();
    graph.replace_op(root, new.from(inner.iter().copied()))?;
    remove_all(graph, inner)
}

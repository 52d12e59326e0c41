//! Rewrites a model into a later version of the standard operators.
//!
//! ```text
//! <opset_import: ["": 9]>                       <opset_import: ["": 18]>
//! y = Clip <min = 0.0, max = 6.0> (x)      =>   y = Clip (x, y_min, y_max)
//! z = Upsample <mode = "nearest"> (y, s)        z = Resize <mode = "nearest", ...> (y, roi, s)
//! ```
//!
//! The model goes up version by version. Most versions of an operator only add element types,
//! attributes whose default is the old behaviour, or optional inputs: those need no edit. The
//! others are listed in `adapters::ADAPTERS`, each with a function that edits the operator
//! or says why it can't. A test compares the table with the signatures of all operators, so a
//! version that needs an adapter and has none doesn't go unnoticed.
//!
//! - It is all or nothing: when one operator can't be brought along, the model stays as it was
//!   and the error names the operator, the version and the reason.
//! - Graphs in attributes come along. Functions of the model speak opsets of their own, but ONNX
//!   wants them to agree with the model's, so their bodies are upgraded in the same way; shapes
//!   aren't known there, and where an adapter needs them `inline-functions` helps.
//! - Operators of other domains are left alone.
//! - The IR version rises to the first that allows the opset. From version 4 on a file need not
//!   list initializers as inputs; they are constants here already and are no longer listed.
//!
//! See the versioning rules and the changelog of operators in the ONNX specification.

mod adapters;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use paring_ir::schema;
use paring_ir::{
    Changed, Effect, Graph, GraphError, Model, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, escape,
};
use schemars::JsonSchema;

use crate::facts::{Facts, OLDEST_OPSET};
use adapters::{ADAPTERS, Adapter, Refusal, Step};

/// The newest opset that the adapters reach.
pub const NEWEST: i64 = 23;

/// The pass `upgrade-opset`.
#[derive(Debug)]
pub struct UpgradeOpset {
    options: OptionSet<UpgradeOpsetOptions>,
}

/// The options of `upgrade-opset`.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct UpgradeOpsetOptions {
    /// The opset to reach, 8 to 23. The default is 18: the newest that the engine is tested with;
    /// every ONNX Runtime since 1.14 reads it, and it has LayerNormalization.
    #[schemars(range(min = 8, max = 23), extend("x-scope" = "pass"))]
    pub to: i64,
}

impl Default for UpgradeOpsetOptions {
    fn default() -> Self {
        UpgradeOpsetOptions { to: 18 }
    }
}

impl Pass for UpgradeOpset {
    const INFO: PassInfo = PassInfo::new(
        "upgrade-opset",
        "Rewrite the model into a later version of the standard operators",
        Effect::Exact,
    );
    type Options = UpgradeOpsetOptions;

    fn new(options: OptionSet<UpgradeOpsetOptions>) -> Result<Self, OptionError> {
        let to = options.whole().to;
        if !(OLDEST_OPSET + 1..=NEWEST).contains(&to) {
            return Err(OptionError::Invalid {
                path: "upgrade-opset.to".to_owned(),
                reason: format!("{to} is not between {} and {NEWEST}", OLDEST_OPSET + 1),
            });
        }
        Ok(UpgradeOpset { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let (from, to) = (model.opset(), self.options.whole().to);
        if from < OLDEST_OPSET {
            return Err(PassError::Precondition {
                found: format!("the model speaks opset {from}"),
                remedy: format!("only models from opset {OLDEST_OPSET} on can be upgraded"),
            });
        }
        if from > to {
            return Err(PassError::Precondition {
                found: format!("the model speaks opset {from}, which is newer than {to}"),
                remedy: "opsets aren't downgraded; leave the pass out or set a later \"to\""
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        self.requires(model)?;
        let (from, to) = (model.opset(), self.options.whole().to);
        if from == to {
            return Ok(Changed::No);
        }
        let needed = versions_with_work(model, from, to)?;
        let functions_agree = model
            .functions
            .iter()
            .all(|f| standard_opset(f).is_none_or(|v| v >= to));
        if needed.is_empty() && functions_agree {
            model.set_opset("", to);
            return Ok(Changed::Yes);
        }
        // Adapters edit a copy, which shares the tensors: a refusal leaves the model as it was.
        let Some(facts) = Facts::when(model, cx, |_, _| true) else {
            model.set_opset("", to);
            return Ok(Changed::Yes);
        };
        let mut copy = model.clone();
        for &version in &needed {
            let step = Step {
                version,
                to,
                facts: &facts,
                in_function: false,
            };
            let visit = &mut |graph: &mut Graph| upgrade_graph(graph, &step, cx);
            copy.edit_graphs(visit)?;
        }
        upgrade_functions(&mut copy, &facts, to, cx)?;
        copy.set_opset("", to);
        *model = copy;
        Ok(Changed::Yes)
    }
}

/// The version of the standard operators that a function speaks.
fn standard_opset(function: &paring_ir::Function) -> Option<i64> {
    let import = function.opsets.iter().find(|o| o.domain.is_empty())?;
    Some(import.version)
}

/// The versions at which some operator of the main graph must be edited. Fails for an operator that
/// is not in the standard.
fn versions_with_work(model: &Model, from: i64, to: i64) -> Result<BTreeSet<i64>, PassError> {
    let mut versions = BTreeSet::new();
    let mut unknown = None;
    model.for_each_graph(&mut |graph| {
        for op in graph.ops() {
            let o = graph.op(op);
            if !o.domain().is_empty() {
                continue;
            }
            let known = schema::lookup("", o.op_type(), from).is_some();
            if !known && model.function_of(o).is_none() {
                unknown.get_or_insert_with(|| place(graph, op));
            }
            versions.extend(work(o.op_type(), from, to));
        }
    });
    match unknown {
        None => Ok(versions),
        Some(place) => Err(PassError::Precondition {
            found: format!("{place} is no operator of opset {from}"),
            remedy: "`paring check` tells more about the model".to_owned(),
        }),
    }
}

/// The versions at which an operator, and what it turns into, must be edited.
fn work(op_type: &str, from: i64, to: i64) -> impl Iterator<Item = i64> + '_ {
    // An Upsample becomes a Resize, which is edited again.
    let later = if op_type == "Upsample" {
        "Resize"
    } else {
        op_type
    };
    ADAPTERS
        .iter()
        .filter(move |(t, v, _)| (*t == op_type || *t == later) && from < *v && *v <= to)
        .map(|(_, v, _)| *v)
}

fn adapter(op_type: &str, version: i64) -> Option<Adapter> {
    ADAPTERS
        .iter()
        .find(|(t, v, _)| *t == op_type && *v == version)
        .map(|(_, _, f)| *f)
}

/// Where an operator is, for messages.
fn place(graph: &Graph, op: OpId) -> String {
    format!(
        "{} / {} \"{}\"",
        escape(graph.name()),
        escape(graph.op(op).op_type()),
        escape(&graph.op_label(op))
    )
}

fn upgrade_graph(
    graph: &mut Graph,
    step: &Step<'_>,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    for op in graph.topological_order()? {
        let o = graph.op(op);
        if !o.domain().is_empty() {
            continue;
        }
        let Some(adapt) = adapter(o.op_type(), step.version) else {
            continue;
        };
        cx.check_cancelled()?;
        let place = place(graph, op);
        let message = format!("to opset {}", step.version);
        cx.applied(graph, op, "adapted", message);
        adapt(step, graph, op).map_err(|refusal| match refusal {
            Refusal::Graph(e) => PassError::Graph(e),
            Refusal::Why(why) => PassError::Precondition {
                found: format!("{place} can't be brought to opset {}: {why}", step.version),
                remedy: format!(
                    "nothing was changed; the model can reach opset {}",
                    step.version - 1
                ),
            },
        })?;
    }
    Ok(())
}

/// Upgrades the bodies of functions, which import opsets of their own.
fn upgrade_functions(
    model: &mut Model,
    facts: &Facts,
    to: i64,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    for function in &mut model.functions {
        let Some(from) = standard_opset(function).filter(|&v| v < to) else {
            continue;
        };
        if from < OLDEST_OPSET {
            return Err(PassError::Precondition {
                found: format!("function {} speaks opset {from}", escape(&function.name)),
                remedy: "run inline-functions first".to_owned(),
            });
        }
        for version in from + 1..=to {
            let step = Step {
                version,
                to,
                facts,
                in_function: true,
            };
            edit_nested(&mut function.body, &mut |graph| {
                upgrade_graph(graph, &step, cx)
            })?;
        }
        for import in function.opsets.iter_mut().filter(|o| o.domain.is_empty()) {
            import.version = to;
        }
    }
    Ok(())
}

fn edit_nested(
    graph: &mut Graph,
    edit: &mut dyn FnMut(&mut Graph) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
    for op in owners {
        graph.edit_subgraphs(op, |_, sub| edit_nested(sub, edit))?;
    }
    edit(graph)
}

impl From<GraphError> for Refusal {
    fn from(e: GraphError) -> Refusal {
        Refusal::Graph(e)
    }
}

//! `eliminate-dead-code`: removes what no graph output depends on.
//!
//! ```text
//! before   a = Exp (x)          after   y = Relu (x)
//!          b = Neg (a)
//!          y = Relu (x)
//! ```
//!
//! Removed, in graphs inside attributes first and then outwards:
//! - operators none of whose results is taken; ONNX operators have no side effects, control
//!   flow included;
//! - initializers and captured values that nothing takes, and names that are merely declared;
//!   the parameters of a quantization annotation stay as long as the tensor that it is about;
//! - trailing optional results that nothing takes, such as the mask of a Dropout. Before opset
//!   14 the number of results of a BatchNormalization says whether it trains, so there they stay;
//! - functions that nothing calls.
//!
//! Graph inputs always stay.

use std::collections::{BTreeSet, HashSet};

use paring_ir::pass::{Remark, RemarkKind};
use paring_ir::schema::{self, Presence};
use paring_ir::{
    Changed, Effect, Graph, GraphError, Model, Name, NoOptions, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, ValueId,
};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct EliminateDeadCode {
    options: OptionSet<NoOptions>,
}

impl Pass for EliminateDeadCode {
    const INFO: PassInfo = PassInfo::new(
        "eliminate-dead-code",
        "Remove operators, initializers and functions that no output depends on",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(EliminateDeadCode { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let start = model.revision();
        let opset = model.opset();
        self.clean(&mut model.graph, opset, cx)?;
        remove_functions(model, cx);
        Ok(Changed::when(model.revision() != start))
    }
}

impl EliminateDeadCode {
    /// Dead operators go before the graphs inside the others are looked at, so that no work is
    /// spent on what goes away, and again afterwards, when captures are gone.
    fn clean(
        &self,
        graph: &mut Graph,
        opset: i64,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        self.remove_operators(graph, cx)?;
        let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
        for &op in &owners {
            graph.edit_subgraphs(op, |_, inner| self.clean(inner, opset, cx))?;
        }
        if !owners.is_empty() {
            self.remove_operators(graph, cx)?;
        }
        trim_results(graph, opset)?;
        remove_values(graph, cx)?;
        Ok(())
    }

    fn remove_operators(
        &self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let dead = |graph: &Graph, op: OpId| {
            graph.get_op(op).is_some_and(|o| {
                o.outputs()
                    .iter()
                    .flatten()
                    .all(|&v| graph.value(v).is_unused())
            })
        };
        let mut waiting: Vec<OpId> = graph.ops().filter(|&op| dead(graph, op)).collect();
        // Operators of the end go first, which is what a stack does with ids in ascending order.
        while let Some(op) = waiting.pop() {
            if !dead(graph, op) || self.options.for_op(graph, op).is_skip() {
                continue;
            }
            cx.check_cancelled()?;
            cx.applied(graph, op, "dead-operator", "nothing takes its results");
            let taken: Vec<ValueId> = {
                let o = graph.op(op);
                o.inputs().flatten().chain(o.captures()).collect()
            };
            graph.remove_op(op)?;
            let producers: BTreeSet<OpId> =
                taken.iter().filter_map(|&v| graph.producer(v)).collect();
            waiting.extend(producers.into_iter().filter(|&p| dead(graph, p)));
        }
        Ok(())
    }
}

/// Drops trailing results that the operator may leave out and nothing takes.
fn trim_results(graph: &mut Graph, opset: i64) -> Result<(), GraphError> {
    let trailing = |graph: &Graph, op: OpId| match graph.op(op).outputs() {
        [] | [_] => false,
        [.., last] => last.is_none_or(|v| graph.value(v).is_unused()),
    };
    let candidates: Vec<OpId> = graph.ops().filter(|&op| trailing(graph, op)).collect();
    for op in candidates {
        let o = graph.op(op);
        let counts_results = o.is("BatchNormalization") && opset < 14;
        let Some(schema) = schema::lookup(o.domain(), o.op_type(), opset) else {
            continue;
        };
        // A variadic operator such as Split does something else when a result is left out.
        let required = schema
            .outputs
            .iter()
            .rposition(|p| p.presence != Presence::Optional)
            .map_or(0, |last| last + 1);
        let variadic = schema
            .outputs
            .iter()
            .any(|p| matches!(p.presence, Presence::Variadic { .. }));
        if !counts_results && !variadic {
            graph.trim_outputs(op, required.max(1))?;
        }
    }
    Ok(())
}

/// Removes values without uses that no operator makes.
fn remove_values(graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<(), GraphError> {
    let annotated = annotated_parameters(graph);
    let unused: Vec<ValueId> = graph
        .values()
        .filter(|&v| {
            let value = graph.value(v);
            value.is_unused()
                && value.producer().is_none()
                && !value.is_input()
                && !annotated.contains(value.name())
        })
        .collect();
    for v in unused {
        let value = graph.value(v);
        if let Some(constant) = value.initializer() {
            cx.remarks.push(Remark {
                kind: RemarkKind::Applied,
                op: value.name().to_string(),
                op_type: "initializer".to_owned(),
                code: "unused-initializer".to_owned(),
                message: format!("nothing takes it; {} bytes", constant.byte_len()),
            });
        }
        graph.remove_value(v)?;
    }
    let mut extra = graph.extra().clone();
    extra.quantization_annotations.retain(|a| {
        a.tensor
            .as_ref()
            .is_none_or(|t| graph.find_value(t).is_some())
    });
    graph.set_extra(extra);
    Ok(())
}

/// The values that quantization annotations of tensors in use name as parameters.
fn annotated_parameters(graph: &Graph) -> HashSet<Name> {
    let in_use = |name: &Name| {
        graph
            .find_value(name)
            .is_some_and(|v| !graph.value(v).is_unused() || graph.value(v).is_input())
    };
    graph
        .extra()
        .quantization_annotations
        .iter()
        .filter(|a| a.tensor.as_ref().is_some_and(in_use))
        .flat_map(|a| a.parameters.iter().map(|(_, value)| value.clone()))
        .collect()
}

/// Removes the functions that neither the main graph nor another function in use calls.
fn remove_functions(model: &mut Model, cx: &mut PassContext<'_>) {
    if model.functions.is_empty() {
        return;
    }
    let mut used = vec![false; model.functions.len()];
    let mut waiting = Vec::new();
    model.for_each_graph(&mut |graph| waiting.extend(calls(model, graph)));
    while let Some(callee) = waiting.pop() {
        if !std::mem::replace(&mut used[callee], true) {
            nested(&model.functions[callee].body, &mut |graph| {
                waiting.extend(calls(model, graph));
            });
        }
    }
    let mut at = 0;
    model.retain_functions(|f| {
        let keep = used[at];
        at += 1;
        if !keep {
            cx.remarks.push(Remark {
                kind: RemarkKind::Applied,
                op: format!("{}.{}", f.domain, f.name),
                op_type: "function".to_owned(),
                code: "unused-function".to_owned(),
                message: "nothing calls it".to_owned(),
            });
        }
        keep
    });
}

/// The positions of the functions that a graph's operators call.
fn calls(model: &Model, graph: &Graph) -> Vec<usize> {
    let called: BTreeSet<(Name, Name, String)> = graph
        .ops()
        .map(|op| graph.op(op))
        .map(|o| {
            (
                o.domain().clone(),
                o.op_type().clone(),
                o.overload().to_owned(),
            )
        })
        .collect();
    let of = |f: &paring_ir::Function| {
        called.contains(&(f.domain.clone(), f.name.clone(), f.overload.to_string()))
    };
    (0..model.functions.len())
        .filter(|&i| of(&model.functions[i]))
        .collect()
}

fn nested<'a>(graph: &'a Graph, f: &mut dyn FnMut(&'a Graph)) {
    f(graph);
    for op in graph.ops_with_subgraphs() {
        graph.op(op).subgraphs().for_each(|inner| nested(inner, f));
    }
}

#[cfg(test)]
mod tests {
    use super::EliminateDeadCode;
    use crate::testing::{check, unchanged};

    #[test]
    fn chains_and_their_weights_go_away() {
        let remarks = check::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x, float[2] unused) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
                a = Mul (x, w)
                b = Neg (a)
                c, d = Split <num_outputs: int = 2> (b)
                y = Relu (x)
            }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x, float[2] unused) => (float[2] y) { y = Relu (x) }"#,
        );
        assert_eq!(remarks.applied["dead-operator"], 3);
        assert_eq!(remarks.applied["unused-initializer"], 2);
    }

    #[test]
    fn control_flow_frees_what_it_captured() {
        check::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) {
                a = Exp (x)
                d = Neg (x)
                y = If (c) <
                    then_branch = t () => (float[2] p) { q = Neg (a) p = Relu (x) },
                    else_branch = e () => (float[2] r) { r = Abs (x) }
                >
                z = If (c) <
                    then_branch = t2 () => (float[2] p2) { p2 = Neg (d) },
                    else_branch = e2 () => (float[2] r2) { r2 = Abs (d) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) {
                y = If (c) <
                    then_branch = t () => (float[2] p) { p = Relu (x) },
                    else_branch = e () => (float[2] r) { r = Abs (x) }
                >
            }"#,
        );
    }

    #[test]
    fn optional_results_are_trimmed() {
        check::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y) { y, mask = Dropout (x) }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y) { y = Dropout (x) }"#,
        );
    }

    #[test]
    fn results_that_say_what_the_operator_does_stay() {
        unchanged::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[4] x) => (float[2] y) { y, z = Split <num_outputs: int = 2> (x) }"#,
        );
        unchanged::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 9]>
            g (float[1,2] x) => (float[1,2] y) <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}> {
                y, m1, v1, m2, v2 = BatchNormalization (x, s, b, m, v)
            }"#,
        );
    }

    #[test]
    fn defaults_of_inputs_stay() {
        unchanged::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Relu (x) }"#,
        );
    }

    #[test]
    fn functions_without_callers_go_away() {
        check::<EliminateDeadCode>(
            "",
            r#"<opset_import: ["": 18, "f": 1]>
            g (float[2] x) => (float[2] y) { y = f.Used (x) }
            <domain: "f", opset_import: ["": 18, "f": 1]> Used (a) => (b) { b = f.Inner (a) }
            <domain: "f", opset_import: ["": 18]> Inner (a) => (b) { b = Neg (a) }
            <domain: "f", opset_import: ["": 18, "f": 1]> Unused (a) => (b) { b = f.Unused (a) }"#,
            r#"<opset_import: ["": 18, "f": 1]>
            g (float[2] x) => (float[2] y) { y = f.Used (x) }
            <domain: "f", opset_import: ["": 18, "f": 1]> Used (a) => (b) { b = f.Inner (a) }
            <domain: "f", opset_import: ["": 18]> Inner (a) => (b) { b = Neg (a) }"#,
        );
    }
}

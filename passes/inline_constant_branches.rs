//! `inline-constant-branches`: an If whose condition is constant is replaced by the branch
//! that it takes.
//!
//! ```text
//! before   bool c = {1}                                       after   y = Relu (x)
//!          y = If (c) <then_branch = … { a = Relu (x) },
//!                      else_branch = … { b = Neg (x) }>
//! ```
//!
//! The results keep their names; values inside the branch keep theirs where they are free. A
//! result that is no value of an operator in the branch, such as a captured value that becomes
//! a graph output, gets an Identity.
//!
//! Exporters write such branches around Squeeze, with a condition that `fold-constants` works
//! out from shapes: run that first. Left alone: conditions that are not constant, of more than
//! one element (`odd-condition`), and branches whose number of results is not that of the If
//! (`odd-branch`).

use paring_ir::{
    AttrValue, Changed, Effect, Graph, Model, NoOptions, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo,
};

use crate::common::{Captured, any_op, captured_constants, constant};
use crate::edits::inline_at;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct InlineConstantBranches {
    options: OptionSet<NoOptions>,
}

impl Pass for InlineConstantBranches {
    const INFO: PassInfo = PassInfo::new(
        "inline-constant-branches",
        "Replace an If of constant condition by the branch that it takes",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(InlineConstantBranches { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        if !any_op(model, |graph, op| graph.op(op).is("If")) {
            return Ok(Changed::No);
        }
        let captured = captured_constants(model);
        let mut changed = Changed::No;
        // Inner graphs come first, so a branch is inlined with its own branches inlined already.
        model.edit_graphs(&mut |graph| {
            let ifs: Vec<OpId> = graph
                .ops_with_subgraphs()
                .filter(|&op| graph.op(op).is("If"))
                .collect();
            for op in ifs {
                if !self.options.for_op(graph, op).is_skip() {
                    changed |= inline(graph, op, &captured, cx)?;
                }
            }
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

fn inline(
    graph: &mut Graph,
    op: OpId,
    captured: &Captured,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let condition = graph.op(op).input(0);
    let Some(tensor) = condition.and_then(|c| constant(graph, captured, c)) else {
        return Ok(Changed::No);
    };
    let Some(condition) = tensor.single_f64().map(|v| v != 0.0) else {
        cx.missed(
            graph,
            op,
            "odd-condition",
            "the condition has not exactly one element",
        );
        return Ok(Changed::No);
    };
    let name = if condition {
        "then_branch"
    } else {
        "else_branch"
    };
    let branch = match graph.op(op).attr(name) {
        Some(AttrValue::Graph(g)) => (**g).clone(),
        _ => return Ok(Changed::No),
    };
    if branch.outputs().len() != graph.op(op).outputs().len() || !branch.inputs().is_empty() {
        let why = "the branch has inputs, or another number of results than the operator";
        cx.missed(graph, op, "odd-branch", why);
        return Ok(Changed::No);
    }
    cx.applied(
        graph,
        op,
        "inlined",
        format!("the condition is always {condition}"),
    );
    inline_at(graph, op, &branch, &[], "")?;
    Ok(Changed::Yes)
}

#[cfg(test)]
mod tests {
    use super::InlineConstantBranches;
    use crate::testing::{check, refused, unchanged};

    #[test]
    fn the_taken_branch_replaces_the_operator() {
        check::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
                y, z = If (c) <
                    then_branch = t () => (float[2] a, float[2] b) <float[2] w = {1, 2}> { h = Mul (x, w) a = Relu (h) b = Add (a, h) },
                    else_branch = e () => (float[2] c1, float[2] d) { c1 = Neg (x) d = Abs (x) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}, float[2] w = {1, 2}> {
                h = Mul (x, w)
                y = Relu (h)
                z = Add (y, h)
            }"#,
        );
    }

    #[test]
    fn captured_results_and_results_given_twice_keep_the_output_names() {
        check::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] z, float[2] u) <bool c = {0}> {
                y, z, u = If (c) <
                    then_branch = t () => (float[2] a, float[2] a1, float[2] a2) { a = Neg (x) a1 = Neg (x) a2 = Neg (x) },
                    else_branch = e () => (float[2] b, float[2] b, float[2] x) { b = Abs (x) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] z, float[2] u) <bool c = {0}> {
                y = Abs (x)
                z = Identity (y)
                u = Identity (x)
            }"#,
        );
    }

    #[test]
    fn names_that_are_taken_give_way() {
        check::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] h) <bool c = {1}> {
                h = Neg (x)
                t = If (c) <
                    then_branch = t () => (float[2] a) { b = Relu (x) a = If (d) <
                        then_branch = t2 () => (float[2] a3) { a3 = Mul (b, h) },
                        else_branch = e2 () => (float[2] a4) { a4 = Sub (b, h) }
                    > d = Constant <value = bool {1}> () },
                    else_branch = e () => (float[2] k) { k = Neg (x) }
                >
                b = Exp (t)
                y = Neg (b)
            }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, float[2] h) <bool c = {1}> {
                h = Neg (x)
                b_1 = Relu (x)
                d = Constant <value = bool {1}> ()
                t = If (d) <
                    then_branch = t2 () => (float[2] a3) { a3 = Mul (b_1, h) },
                    else_branch = e2 () => (float[2] a4) { a4 = Sub (b_1, h) }
                >
                b = Exp (t)
                y = Neg (b)
            }"#,
        );
    }

    #[test]
    fn conditions_from_outside_count_when_they_are_constant() {
        check::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool p, float[2] x) => (float[2] y) <bool c = {1}> {
                y = If (p) <
                    then_branch = t () => (float[2] a) {
                        a = If (c) <
                            then_branch = t2 () => (float[2] a2) { a2 = Relu (x) },
                            else_branch = e2 () => (float[2] a3) { a3 = Neg (x) }
                        >
                    },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (bool p, float[2] x) => (float[2] y) <bool c = {1}> {
                y = If (p) <
                    then_branch = t () => (float[2] a) { a = Relu (x) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
        );
    }

    #[test]
    fn a_condition_that_can_be_overridden_is_not_constant() {
        unchanged::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool c = {1}, float[2] x) => (float[2] y) {
                y = If (c) <
                    then_branch = t () => (float[2] a) { a = Relu (x) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
        );
    }

    #[test]
    fn a_condition_of_two_elements_is_left() {
        refused::<InlineConstantBranches>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y) <bool[2] c = {1, 1}> {
                y = If (c) <
                    then_branch = t () => (float[2] a) { a = Relu (x) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
            "odd-condition",
        );
    }
}

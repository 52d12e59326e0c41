//! Folds `BatchNormalization` into the linear operator beside it.
//!
//! At inference a `BatchNormalization` is `gamma * (x - mean) / sqrt(var + epsilon) + beta` by
//! channel: a scale and a shift. After a `Conv`, `ConvTranspose`, `Gemm` or `MatMul` with constant
//! weights they go into the weights and the bias (a `MatMul` has none and gets an `Add`); before
//! one, where no padding sees the shift, they go there too. Constant `Mul`, `Add` and their like
//! between the two go along. The numbers are computed in `f64` and rounded once.
//!
//! ```text
//! c = Conv(x, w)                                  y = Conv(x, w, w_bias)
//! y = BatchNormalization(c, gamma, beta, m, v)
//! ```
//!
//! Left alone: training mode, batch statistics that something takes, parameters or weights that
//! are not constant, a linear operator whose output something else takes too, variances that are
//! negative or undefined, and weights that would leave the range of their type. A weight that
//! other operators share is copied.
//!
//! Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference, 2018, section 3.2.

use std::collections::BTreeSet;

use paring_ir::{
    Changed, Effect, Graph, Model, OpId, OptionError, OptionSet, Pass, PassContext, PassError,
    PassInfo,
};

use crate::affine::{Chain, Step, batch_norm, chain_after, chain_before, composed};
use crate::common::visit_graph;
use crate::facts::Facts;
use crate::linear::{
    DEFAULT_MAX_COPY, Fold, FoldOptions, Kind, Linear, Refusal, Shared, fold_after, kind_of,
};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct FoldBatchNorm {
    options: OptionSet<FoldOptions>,
}

impl Pass for FoldBatchNorm {
    const INFO: PassInfo = PassInfo::new(
        "fold-batch-norm",
        "Fold BatchNormalization into the convolution or matrix product beside it",
        Effect::Exact,
    );
    type Options = FoldOptions;

    fn new(options: OptionSet<FoldOptions>) -> Result<Self, OptionError> {
        Ok(FoldBatchNorm { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| g.op(op).is("BatchNormalization")) else {
            return Ok(Changed::No);
        };
        let mut changed = Changed::No;
        model.edit_graphs(&mut |graph| {
            let mut run = Run {
                pass: self,
                facts: &facts,
                shared: Shared::default(),
                said: BTreeSet::new(),
            };
            changed |= visit_graph(graph, cx, |graph, cx, op| run.fold_beside(graph, cx, op))?;
            visit_graph(graph, cx, |graph, cx, op| {
                run.explain(graph, cx, op);
                Ok(Changed::No)
            })?;
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

struct Run<'a> {
    pass: &'a FoldBatchNorm,
    facts: &'a Facts,
    shared: Shared,
    /// The operators that a remark was made about.
    said: BTreeSet<OpId>,
}

impl Run<'_> {
    /// Folds what stands after and before a linear operator.
    fn fold_beside(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        op: OpId,
    ) -> Result<Changed, PassError> {
        let Some(Ok(linear)) = Linear::of(graph, op) else {
            return Ok(Changed::No);
        };
        let mut changed = Changed::No;
        let chain = chain_after(graph, &linear, self.facts);
        if let Some(steps) = self.up_to_last_norm(graph, cx, &chain) {
            changed |= self.fold_after(graph, cx, &linear, steps)?;
        }
        let Some(Ok(linear)) = Linear::of(graph, op) else {
            return Ok(changed);
        };
        let chain = chain_before(graph, &linear, self.facts);
        if let Some(steps) = self.up_to_last_norm(graph, cx, &chain) {
            changed |= self.fold_before(graph, cx, &linear, steps)?;
        }
        Ok(changed)
    }

    /// The part of a chain that ends with a `BatchNormalization` which is not left out.
    fn up_to_last_norm<'c>(
        &mut self,
        graph: &Graph,
        cx: &mut PassContext<'_>,
        chain: &'c Chain,
    ) -> Option<&'c [Step]> {
        if let Some((op, why)) = &chain.refused
            && self.said.insert(*op)
        {
            cx.missed(graph, *op, why.code, &*why.message);
        }
        let skipped = |s: &Step| self.pass.options.for_op(graph, s.op).is_skip();
        let end = chain
            .steps
            .iter()
            .position(skipped)
            .unwrap_or(chain.steps.len());
        let steps = chain.steps.get(..end)?;
        let last = steps.iter().rposition(|s| s.is_batch_norm)?;
        steps.get(..=last)
    }

    fn max_copy(&self, graph: &Graph, op: OpId) -> u64 {
        let options = self.pass.options.for_op(graph, op).options();
        options.map_or(DEFAULT_MAX_COPY, |o| o.max_copy)
    }

    fn fold_after(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let Some(norm) = steps.last().map(|s| s.op) else {
            return Ok(Changed::No);
        };
        let (map, sources) = composed(steps.iter());
        let chain: Vec<OpId> = steps.iter().map(|s| s.op).collect();
        let label = graph.op_label(linear.op);
        let max_copy = self.max_copy(graph, norm);
        let fold = match Fold::after(graph, linear, &map, max_copy) {
            Ok(fold) => fold,
            Err(why) => {
                self.refuse(graph, cx, norm, &why);
                return Ok(Changed::No);
            }
        };
        cx.applied(
            graph,
            norm,
            "folded",
            format!("folded into \"{label}\" before it"),
        );
        fold_after(graph, linear, &chain, fold, &sources, &mut self.shared)?;
        Ok(Changed::Yes)
    }

    fn fold_before(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let Some(norm) = steps.last().map(|s| s.op) else {
            return Ok(Changed::No);
        };
        let (map, sources) = composed(steps.iter().rev());
        let refusal = if map.shifts() && linear.kind == Kind::MatMul {
            Some(Refusal::new(
                "no-bias",
                "the MatMul after it has no bias to take the shift",
            ))
        } else if map.shifts() && linear.pads(graph) {
            Some(Refusal::new(
                "padding",
                "the padding of the convolution after it would see the shift",
            ))
        } else {
            None
        };
        if let Some(why) = refusal {
            self.refuse(graph, cx, norm, &why);
            return Ok(Changed::No);
        }
        let fold = match Fold::before(graph, linear, &map, self.max_copy(graph, norm)) {
            Ok(fold) => fold,
            Err(why) => {
                self.refuse(graph, cx, norm, &why);
                return Ok(Changed::No);
            }
        };
        let label = graph.op_label(linear.op);
        cx.applied(
            graph,
            norm,
            "folded",
            format!("folded into \"{label}\" after it"),
        );
        fold.apply(graph, linear, &sources, &mut self.shared)?;
        crate::affine::bypass(graph, linear.op, steps)?;
        Ok(Changed::Yes)
    }

    fn refuse(&mut self, graph: &Graph, cx: &mut PassContext<'_>, norm: OpId, why: &Refusal) {
        if self.said.insert(norm) {
            cx.missed(graph, norm, why.code, &*why.message);
        }
    }

    /// Says why a `BatchNormalization` is still there.
    fn explain(&mut self, graph: &Graph, cx: &mut PassContext<'_>, op: OpId) {
        let Some(step) = batch_norm(graph, op, self.facts.opset) else {
            return;
        };
        if self.pass.options.for_op(graph, op).is_skip() || self.said.contains(&op) {
            return;
        }
        let why = match step {
            Err(why) => why,
            Ok(_) => self.neighbour(graph, op),
        };
        self.refuse(graph, cx, op, &why);
    }

    fn neighbour(&self, graph: &Graph, op: OpId) -> Refusal {
        let before = graph.op(op).input(0).and_then(|v| graph.producer(v));
        let Some(before) = before.filter(|&p| kind_of(graph.op(p)).is_some()) else {
            return Refusal::new(
                "no-linear-neighbour",
                "no linear operator with constant weights stands beside it",
            );
        };
        match Linear::of(graph, before) {
            Some(Err(why)) => why,
            _ => Refusal::new(
                "shared-output",
                "something else takes the value that it normalizes",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::FoldBatchNorm;
    use crate::testing::{check, refused, unchanged};

    /// Scales by {1, 2} and adds {1, -1}.
    const NORM: &str =
        "float[2] g = {2, 4}, float[2] b = {1, 1}, float[2] m = {0, 1}, float[2] v = {3, 3}";

    fn conv(weights: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": 17]> g (float[N,1,4,4] x) => (float[N,2,4,4] y) <{weights}, {NORM}> {{ {body} }}"#
        )
    }

    #[test]
    fn folds_into_the_convolution_before_it() {
        check::<FoldBatchNorm>(
            "",
            &conv(
                "float[2,1,1,1] w = {1, 2}",
                "c = Conv(x, w) y = BatchNormalization<epsilon = 1.0>(c, g, b, m, v)",
            ),
            &conv("float[2,1,1,1] w = {1, 4}", "y = Conv(x, w, w_bias)")
                .replace("v = {3, 3}", "v = {3, 3}, float[2] w_bias = {1, -1}"),
        );
    }

    #[test]
    fn scales_the_bias_and_takes_what_stands_between_along() {
        check::<FoldBatchNorm>(
            "",
            &conv(
                "float[2,1,1,1] w = {1, 2}, float[2] bias = {10, 20}, float s = {2}",
                "c = Conv(x, w, bias) d = Mul(c, s) y = BatchNormalization<epsilon = 1.0>(d, g, b, m, v)",
            ),
            &conv(
                "float[2,1,1,1] w = {2, 8}, float[2] bias = {21, 79}, float s = {2}",
                "y = Conv(x, w, bias)",
            ),
        );
    }

    #[test]
    fn copies_a_shared_weight() {
        let before = r#"<opset_import: ["": 17]>
            f (float[N,1,4,4] x) => (float[N,2,4,4] y, float[N,2,4,4] z)
            <float[2,1,1,1] w = {1, 2}, NORM> {
                c = Conv(x, w)
                y = BatchNormalization<epsilon = 1.0>(c, g, b, m, v)
                z = Conv(x, w)
            }"#;
        let after = r#"<opset_import: ["": 17]>
            f (float[N,1,4,4] x) => (float[N,2,4,4] y, float[N,2,4,4] z)
            <float[2,1,1,1] w = {1, 2}, NORM, float[2,1,1,1] w_folded = {1, 4}, float[2] w_bias = {1, -1}> {
                y = Conv(x, w_folded, w_bias)
                z = Conv(x, w)
            }"#;
        check::<FoldBatchNorm>(
            "",
            &before.replace("NORM", NORM),
            &after.replace("NORM", NORM),
        );
        refused::<FoldBatchNorm>(
            r#"{"max-copy": 4}"#,
            &before.replace("NORM", NORM),
            "shared-weight",
        );
    }

    #[test]
    fn folds_into_each_group_of_a_transposed_convolution() {
        let text = |w: &str, body: &str, more: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[N,2,4] x) => (float[N,2,4] y)
                <float[2,1,1] w = {{{w}}}, {NORM}{more}> {{ {body} }}"#
            )
        };
        check::<FoldBatchNorm>(
            "",
            &text(
                "1, 2",
                "c = ConvTranspose<group = 2>(x, w) y = BatchNormalization<epsilon = 1.0>(c, g, b, m, v)",
                "",
            ),
            &text(
                "1, 4",
                "y = ConvTranspose<group = 2>(x, w, w_bias)",
                ", float[2] w_bias = {1, -1}",
            ),
        );
    }

    #[test]
    fn folds_into_gemm_and_matmul() {
        let text = |w: &str, body: &str, more: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[N,2] x) => (float[N,2] y)
                <{w}, {NORM}{more}> {{ {body} }}"#
            )
        };
        let norm = "y = BatchNormalization<epsilon = 1.0>(c, g, b, m, v)";
        check::<FoldBatchNorm>(
            "",
            &text(
                "float[2,2] w = {1, 2, 3, 4}, float[1,2] c0 = {1, 1}",
                &format!("c = Gemm<transB = 1, alpha = 0.5, beta = 3.0>(x, w, c0) {norm}"),
                "",
            ),
            &text(
                "float[2,2] w = {1, 2, 6, 8}, float[2] c0 = {4, 5}",
                "y = Gemm<transB = 1, alpha = 0.5, beta = 1.0>(x, w, c0)",
                "",
            ),
        );
        check::<FoldBatchNorm>(
            "",
            &text(
                "float[2,2] w = {1, 2, 3, 4}",
                &format!("c = MatMul(x, w) {norm}"),
                "",
            ),
            &text(
                "float[2,2] w = {1, 4, 3, 8}",
                "c = MatMul(x, w) y = Add(c, w_bias)",
                ", float[2] w_bias = {1, -1}",
            ),
        );
    }

    #[test]
    fn folds_into_the_convolution_after_it_unless_that_pads() {
        let text = |pads: &str, body: &str, w: &str, more: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[N,2,4,4] x) => (float[N,1,A,B] y)
                <float[1,2,1,1] w = {{{w}}}, {NORM}{more}> {{ {body} }}"#
            )
            .replace("PADS", pads)
        };
        let body =
            "n = BatchNormalization<epsilon = 1.0>(x, g, b, m, v) y = Conv<pads = [PADS]>(n, w)";
        check::<FoldBatchNorm>(
            "",
            &text("0, 0, 0, 0", body, "3, 5", ""),
            &text(
                "0, 0, 0, 0",
                "y = Conv<pads = [PADS]>(x, w, w_bias)",
                "3, 10",
                ", float[1] w_bias = {-2}",
            ),
        );
        refused::<FoldBatchNorm>("", &text("1, 0, 0, 0", body, "3, 5", ""), "padding");
    }

    #[test]
    fn refuses_with_a_reason() {
        let plain = "c = Conv(x, w) y = BatchNormalization<epsilon = 1.0>(c, g, b, m, v)";
        let w = "float[2,1,1,1] w = {1, 2}";
        let negative = conv(w, plain).replace("v = {3, 3}", "v = {3, -2}");
        refused::<FoldBatchNorm>("", &negative, "odd-variance");
        let undefined = conv(w, plain).replace("v = {3, 3}", "v = {3, nan}");
        refused::<FoldBatchNorm>("", &undefined, "odd-variance");
        let overflow =
            conv("float[2,1,1,1] w = {3e38, 2}", plain).replace("g = {2, 4}", "g = {4, 4}");
        refused::<FoldBatchNorm>("", &overflow, "out-of-range");
        let shared = conv(
            w,
            "c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) y = Add(n, c)",
        );
        refused::<FoldBatchNorm>("", &shared, "shared-output");
        let output = conv(w, plain).replace("[N,2,4,4] y)", "[N,2,4,4] y, float[N,2,4,4] c)");
        refused::<FoldBatchNorm>("", &output, "shared-output");
        let alone = conv(
            w,
            "c = Relu(x) d = Concat<axis = 1>(c, c) y = BatchNormalization(d, g, b, m, v)",
        );
        refused::<FoldBatchNorm>("", &alone, "no-linear-neighbour");
        let dynamic = conv(
            w,
            "h = Relu(w) c = Conv(x, h) y = BatchNormalization(c, g, b, m, v)",
        );
        refused::<FoldBatchNorm>("", &dynamic, "dynamic-weight");
        let default = conv(w, plain).replace("x)", "x, float[2] g)");
        refused::<FoldBatchNorm>("", &default, "dynamic-parameter");
    }

    #[test]
    fn leaves_training_and_skipped_operators_alone() {
        let w = "float[2,1,1,1] w = {1, 2}";
        let training = conv(
            w,
            "c = Conv(x, w) y, mean, var = BatchNormalization<training_mode = 1>(c, g, b, m, v)",
        );
        refused::<FoldBatchNorm>("", &training, "training");
        let plain = conv(w, "c = Conv(x, w) y = BatchNormalization(c, g, b, m, v)");
        unchanged::<FoldBatchNorm>(r#"{"by-type": {"BatchNormalization": "skip"}}"#, &plain);
    }
}

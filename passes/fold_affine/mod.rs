//! Folds constant `Mul`, `Div`, `Add`, `Sub` and `Neg` into linear operators and into each other.
//!
//! - After a `Conv`, `ConvTranspose`, `Gemm` or `MatMul` with constant weights, constants by
//!   output channel go into the weights and the bias.
//! - Before one, constants by input channel do. What is added before a convolution that pads
//!   would miss the padding: there only the scale goes into the weights, and `s * x + t` becomes
//!   `x + t / s`.
//! - A factor of one element moves along reshapes, transpositions and matrix products until it
//!   meets a constant operand, as that of attention scores meets the weights of the queries. The
//!   values on its way change by the factor.
//! - Two constant factors or terms in a row become one.
//!
//! ```text
//! c = Conv(x, w, b)                               z = Conv(x, w, b)
//! y = Mul(c, gamma)
//! z = Add(y, beta)
//! ```
//!
//! The numbers are computed in `f64` and rounded once. Left alone: results that something else
//! takes too, weights that are not constant or would leave the range of their type, constants
//! that broadcast to another shape, and the ends of decomposed `Gelu` and `LayerNormalization`,
//! which engines recognize whole.

mod merge;
mod scalar;

use paring_ir::{
    Changed, Effect, Graph, Model, NewOp, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo,
};

use crate::affine::{Step, bypass, chain_after, chain_before, composed, data_operand};
use crate::common::visit_graph;
use crate::facts::Facts;
use crate::linear::{
    Affine, DEFAULT_MAX_COPY, Fold, FoldOptions, Kind, Linear, Place, Refusal, Shared, fold_after,
    or_missed, rounded, zip,
};

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct FoldAffine {
    options: OptionSet<FoldOptions>,
}

impl Pass for FoldAffine {
    const INFO: PassInfo = PassInfo::new(
        "fold-affine",
        "Fold constant factors and terms into weights, biases and each other",
        Effect::Exact,
    );
    type Options = FoldOptions;

    fn new(options: OptionSet<FoldOptions>) -> Result<Self, OptionError> {
        Ok(FoldAffine { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, |g, op| data_operand(g, op).is_some()) else {
            return Ok(Changed::No);
        };
        let mut changed = Changed::No;
        model.edit_graphs(&mut |graph| {
            let mut run = Run {
                pass: self,
                facts: &facts,
                shared: Shared::default(),
            };
            changed |= visit_graph(graph, cx, |graph, cx, op| run.fold_beside(graph, cx, op))?;
            changed |= visit_graph(graph, cx, |graph, cx, op| run.move_scalar(graph, cx, op))?;
            changed |= visit_graph(graph, cx, |graph, cx, op| {
                run.merge_constants(graph, cx, op)
            })?;
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

struct Run<'a> {
    pass: &'a FoldAffine,
    facts: &'a Facts,
    shared: Shared,
}

impl Run<'_> {
    fn options(&self, graph: &Graph, op: OpId) -> Option<&FoldOptions> {
        self.pass.options.for_op(graph, op).options()
    }

    fn max_copy(&self, graph: &Graph, op: OpId) -> u64 {
        self.options(graph, op)
            .map_or(DEFAULT_MAX_COPY, |o| o.max_copy)
    }

    /// The steps that this pass may fold: `BatchNormalization` has a pass of its own.
    fn allowed<'c>(&self, graph: &Graph, steps: &'c [Step]) -> &'c [Step] {
        let barred = |s: &Step| s.is_batch_norm || self.options(graph, s.op).is_none();
        let end = steps.iter().position(barred).unwrap_or(steps.len());
        steps.get(..end).unwrap_or_default()
    }

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
        let chain = chain_after(graph, &linear, self.facts);
        let mut changed = self.after(graph, cx, &linear, self.allowed(graph, &chain.steps))?;
        let Some(Ok(linear)) = Linear::of(graph, op) else {
            return Ok(changed);
        };
        let chain = chain_before(graph, &linear, self.facts);
        changed |= self.before(graph, cx, &linear, self.allowed(graph, &chain.steps))?;
        Ok(changed)
    }

    fn after(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let (map, sources) = composed(steps.iter());
        // A MatMul keeps one Add for the shift, so an Add alone is as good as it gets.
        let kept = usize::from(linear.kind == Kind::MatMul && map.shifts());
        let Some(first) = steps.first().filter(|_| steps.len() > kept) else {
            return Ok(Changed::No);
        };
        let Some(fold) = or_missed(
            Fold::after(graph, linear, &map, self.max_copy(graph, first.op)),
            graph,
            cx,
            first.op,
        ) else {
            return Ok(Changed::No);
        };
        let label = graph.op_label(linear.op);
        for step in steps {
            let message = format!("folded into \"{label}\" before it");
            cx.applied(graph, step.op, "folded", message);
        }
        let chain: Vec<OpId> = steps.iter().map(|s| s.op).collect();
        fold_after(graph, linear, &chain, fold, &sources, &mut self.shared)?;
        Ok(Changed::Yes)
    }

    fn before(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let Some(first) = steps.first() else {
            return Ok(Changed::No);
        };
        let (map, _) = composed(steps.iter().rev());
        if !map.shifts() || !(linear.pads(graph) || linear.kind == Kind::MatMul) {
            return self.before_all(graph, cx, linear, steps);
        }
        // The shift can't go along. Factors between it and the operator can.
        let factors = steps.iter().take_while(|s| !s.map.shifts()).count();
        if factors > 0 {
            return self.before_all(graph, cx, linear, steps.get(..factors).unwrap_or_default());
        }
        if map.scales() && steps.len() > 1 {
            return self.before_but_shift(graph, cx, linear, steps);
        }
        if linear.kind != Kind::MatMul {
            let message = "the padding of the convolution after it would see the shift";
            cx.missed(graph, first.op, "padding", message);
        }
        Ok(Changed::No)
    }

    /// Folds all maps before a linear operator.
    fn before_all(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let (map, sources) = composed(steps.iter().rev());
        let Some(first) = steps.first() else {
            return Ok(Changed::No);
        };
        let Some(fold) = or_missed(
            Fold::before(graph, linear, &map, self.max_copy(graph, first.op)),
            graph,
            cx,
            first.op,
        ) else {
            return Ok(Changed::No);
        };
        let label = graph.op_label(linear.op);
        for step in steps {
            let message = format!("folded into \"{label}\" after it");
            cx.applied(graph, step.op, "folded", message);
        }
        fold.apply(graph, linear, &sources, &mut self.shared)?;
        bypass(graph, linear.op, steps)?;
        Ok(Changed::Yes)
    }

    /// Replaces maps `s * x + t` before a linear operator by `x + t / s`, and scales the weights
    /// by `s`.
    fn before_but_shift(
        &mut self,
        graph: &mut Graph,
        cx: &mut PassContext<'_>,
        linear: &Linear,
        steps: &[Step],
    ) -> Result<Changed, PassError> {
        let (map, sources) = composed(steps.iter().rev());
        let (Some(nearest), Some(farthest)) = (steps.first(), steps.last()) else {
            return Ok(Changed::No);
        };
        let planned = self.plan_shift(graph, linear, &map, nearest.op);
        let Some((fold, term)) = or_missed(planned, graph, cx, nearest.op) else {
            return Ok(Changed::No);
        };
        let Some(x) = data_operand(graph, farthest.op) else {
            return Ok(Changed::No);
        };
        let label = graph.op_label(linear.op);
        let message = format!("the factor is folded into \"{label}\" after it");
        cx.applied(graph, farthest.op, "folded-factor", message);
        fold.apply(graph, linear, &sources, &mut self.shared)?;
        let hint = format!("{}_shift", graph.op_label(nearest.op));
        let c = graph.add_constant(&hint, term)?;
        graph.set_tensor_sources(c, &sources)?;
        let add = NewOp::new("Add").input(x).input(c).output(hint);
        let add = graph.add_op(add.from(steps.iter().rev().map(|s| s.op)))?;
        let sum = graph.op(add).output(0);
        graph.set_input(linear.op, 0, sum)?;
        for step in steps {
            graph.remove_op(step.op)?;
        }
        Ok(Changed::Yes)
    }

    fn plan_shift(
        &self,
        graph: &Graph,
        linear: &Linear,
        map: &Affine,
        op: OpId,
    ) -> Result<(Fold, paring_ir::Tensor), Refusal> {
        let scale_only = Affine {
            scale: map.scale.clone(),
            shift: vec![0.0],
        };
        let fold = Fold::before(graph, linear, &scale_only, self.max_copy(graph, op))?;
        let term = zip(&map.shift, &map.scale, |t, s| t / s);
        let mut dims = Vec::new();
        if term.len() > 1 {
            dims.push(term.len());
            if let Place::Axis1 { rank } = linear.channel_place(None) {
                dims.resize(rank.saturating_sub(1), 1);
            }
        }
        Ok((fold, rounded(linear.dtype, &dims, &term)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::FoldAffine;
    use crate::testing::{check, refused, unchanged};

    fn conv(constants: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": 17]> f (float[N,2,4,4] x) => (float[] y)
            <{constants}> {{ {body} }}"#
        )
    }

    #[test]
    fn folds_factors_and_terms_after_a_convolution() {
        check::<FoldAffine>(
            "",
            &conv(
                "float[2,2,1,1] w = {1, 2, 3, 4}, float[1,2,1,1] s = {2, 3}, float[2,1,1] t = {5, 6}, float d = {2}",
                "c = Conv(x, w) a = Mul(s, c) b = Add(a, t) e = Div(b, d) y = Neg(e)",
            ),
            &conv(
                "float[2,2,1,1] w = {-1, -2, -4.5, -6}, float[1,2,1,1] s = {2, 3}, float[2,1,1] t = {5, 6}, float d = {2}, float[2] w_bias = {-2.5, -3}",
                "y = Conv(x, w, w_bias)",
            ),
        );
    }

    #[test]
    fn a_term_over_the_places_is_no_bias() {
        let text = conv(
            "float[2,2,1,1] w = {1, 2, 3, 4}, float[4,4] t = random(1)",
            "c = Conv(x, w) y = Add(c, t)",
        );
        unchanged::<FoldAffine>("", &text);
        // A fifth dimension would be added.
        let text = conv(
            "float[2,2,1,1] w = {1, 2, 3, 4}, float[1,1,1,1,1] t = {1}",
            "c = Conv(x, w) y = Add(c, t)",
        );
        unchanged::<FoldAffine>("", &text);
    }

    #[test]
    fn folds_before_a_convolution() {
        check::<FoldAffine>(
            "",
            &conv(
                "float[1,2,1,1] w = {3, 5}, float[2,1,1] s = {2, 4}, float t = {1}",
                "a = Mul(x, s) b = Sub(a, t) y = Conv(b, w)",
            ),
            &conv(
                "float[1,2,1,1] w = {6, 20}, float[2,1,1] s = {2, 4}, float t = {1}, float[1] w_bias = {-8}",
                "y = Conv(x, w, w_bias)",
            ),
        );
    }

    #[test]
    fn before_a_convolution_that_pads_only_the_factor_folds() {
        check::<FoldAffine>(
            "",
            &conv(
                "float[1,2,1,1] w = {3, 5}, float s = {2}, float t = {3}",
                "a = Mul(x, s) b = Add(a, t) y = Conv<pads = [1, 1, 1, 1]>(b, w)",
            ),
            &conv(
                "float[1,2,1,1] w = {6, 10}, float s = {2}, float t = {3}, float b_shift = {1.5}",
                "b_shift_1 = Add(x, b_shift) y = Conv<pads = [1, 1, 1, 1]>(b_shift_1, w)",
            ),
        );
        let term = conv(
            "float[1,2,1,1] w = {3, 5}, float t = {3}",
            "b = Add(x, t) y = Conv<pads = [1, 1, 1, 1]>(b, w)",
        );
        refused::<FoldAffine>("", &term, "padding");
    }

    #[test]
    fn a_channel_that_is_broadcast_is_no_channel() {
        let text = r#"<opset_import: ["": 17]> f (float[N,C,4,4] x) => (float[] y)
            <float[1,2,1,1] w = {3, 5}, float[2,1,1] s = {2, 4}> { a = Mul(x, s) y = Conv(a, w) }"#;
        unchanged::<FoldAffine>("", text);
    }

    #[test]
    fn merges_what_follows_a_matrix_product() {
        let text = |w: &str, body: &str, more: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[N,T,2] x) => (float[N,T,2] y)
                <float[2,2] w = {{{w}}}, float[2] b = {{1, 2}}, float[1,1,2] s = {{2, 4}}{more}> {{ {body} }}"#
            )
        };
        check::<FoldAffine>(
            "",
            &text(
                "1, 2, 3, 4",
                "p = MatMul(x, w) q = Add(b, p) y = Mul(q, s)",
                "",
            ),
            &text(
                "2, 8, 6, 16",
                "p = MatMul(x, w) y = Add(p, w_bias)",
                ", float[2] w_bias = {2, 8}",
            ),
        );
        unchanged::<FoldAffine>(
            "",
            &text("1, 2, 3, 4", "p = MatMul(x, w) y = Add(b, p)", ""),
        );
    }

    #[test]
    fn the_scale_of_attention_goes_into_the_queries() {
        let text = |wq: &str, bq: &str, body: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[1,3,4] x) => (float[1,2,3,3] y)
                <float[4,4] wq = {{{wq}}}, float[4] bq = {{{bq}}}, float[4,4] wk = random(1), int64[4] to = {{1, 3, 2, 2}}, float s = {{2}}> {{
                    q0 = MatMul(x, wq)
                    q1 = Add(q0, bq)
                    q2 = Reshape(q1, to)
                    q = Transpose<perm = [0, 2, 1, 3]>(q2)
                    k0 = MatMul(x, wk)
                    k1 = Reshape(k0, to)
                    k = Transpose<perm = [0, 2, 3, 1]>(k1)
                    {body}
                }}"#
            )
        };
        let ones = ["1"; 16].join(", ");
        let halves = ["0.5"; 16].join(", ");
        check::<FoldAffine>(
            "",
            &text(&ones, "2, 4, 6, 8", "p = MatMul(q, k) y = Div(p, s)"),
            &text(&halves, "1, 2, 3, 4", "y = MatMul(q, k)"),
        );
        // Before the product it reaches the same place.
        let after = text(&halves, "1, 2, 3, 4", "y = MatMul(h, k)");
        check::<FoldAffine>(
            "",
            &text(&ones, "2, 4, 6, 8", "h = Div(q, s) y = MatMul(h, k)"),
            &after.replace(" q = Transpose", " h = Transpose"),
        );
    }

    #[test]
    fn the_end_of_a_gelu_stays() {
        let text = r#"<opset_import: ["": 17]> f (float[N,2] x) => (float[N,2] y)
            <float[2,2] w = random(1), float r = {1.4142135}, float one = {1}, float half = {0.5}> {
                s = Add(x, x) a = Div(s, r) b = Erf(a) c = Add(b, one) d = Mul(s, c) e = Mul(d, half) y = MatMul(e, w)
            }"#;
        unchanged::<FoldAffine>("", text);
    }

    #[test]
    fn merges_constants_in_a_row() {
        let text = |constants: &str, body: &str| {
            format!(
                r#"<opset_import: ["": 17]> f (float[N,2] x) => (float[] y) <{constants}> {{ {body} }}"#
            )
        };
        check::<FoldAffine>(
            "",
            &text(
                "float[2] a = {2, 4}, float b = {8}",
                "p = Mul(a, x) y = Div(p, b)",
            ),
            &text(
                "float[2] a = {2, 4}, float b = {8}, float[2] b_merged = {0.25, 0.5}",
                "y = Mul(x, b_merged)",
            ),
        );
        check::<FoldAffine>(
            "",
            &text(
                "float a = {2}, float b = {8}",
                "p = Sub(a, x) y = Sub(b, p)",
            ),
            &text(
                "float a = {2}, float b = {8}, float b_merged = {6}",
                "y = Add(x, b_merged)",
            ),
        );
        let product = "p = Mul(x, a) y = Mul(p, b)";
        refused::<FoldAffine>(
            "",
            &text("float a = {1e30}, float b = {1e30}", product),
            "out-of-range",
        );
        refused::<FoldAffine>(
            "",
            &text("float[2,1] a = {1, 2}, float[2] b = {1, 2}", product),
            "broadcast",
        );
        let output = text("float a = {2}, float b = {8}", product)
            .replace("(float[] y)", "(float[] y, float[] p)");
        unchanged::<FoldAffine>("", &output);
        let integers = r#"<opset_import: ["": 17]> f (int64[N] x) => (int64[] y) <int64 a = {2}> { p = Add(x, a) y = Add(p, a) }"#;
        unchanged::<FoldAffine>("", integers);
    }

    #[test]
    fn division_by_zero_stays() {
        let text = conv(
            "float[2,2,1,1] w = {1, 2, 3, 4}, float d = {0}",
            "c = Conv(x, w) y = Div(c, d)",
        );
        refused::<FoldAffine>("", &text, "not-finite");
    }
}

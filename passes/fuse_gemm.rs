//! Fuses a matrix product with what stands around it into one `Gemm`.
//!
//! A `MatMul` of two matrices and an `Add` (or `Sub`) of a bias by column are a `Gemm`; a
//! `Transpose` of an operand becomes its flag `transA` or `transB`.
//!
//! ```text
//! t = Transpose<perm = [1, 0]>(w)                 z = Gemm<transB = 1>(x, w, b)
//! y = MatMul(x, t)
//! z = Add(y, b)
//! ```
//!
//! Left alone: products of more than two dimensions, or whose rank is not known; biases that
//! could make the result larger; a product or transposed matrix that something else takes too;
//! element types that `Gemm` does not take in the model's opset.

use paring_ir::{
    Changed, DType, Effect, Graph, Model, NewOp, NoOptions, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, ValueId,
};

use crate::common::visit_ops;
use crate::facts::Facts;
use crate::linear::only_consumer;
use crate::pattern::made_by;

/// The pass; see the module's documentation.
#[derive(Debug)]
pub struct FuseGemm {
    options: OptionSet<NoOptions>,
}

impl Pass for FuseGemm {
    const INFO: PassInfo = PassInfo::new(
        "fuse-gemm",
        "Fuse a matrix product with its bias and transpositions into Gemm",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(FuseGemm { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            if !is_candidate(graph, op) {
                Ok(Changed::No)
            } else if graph.op(op).is("Gemm") {
                absorb_transposes(graph, cx, op)
            } else {
                fuse(graph, cx, op, &facts)
            }
        })
    }
}

fn is_candidate(graph: &Graph, op: OpId) -> bool {
    let o = graph.op(op);
    let transposed = |slot| {
        o.input(slot)
            .is_some_and(|v| made_by(graph, v, "Transpose").is_some())
    };
    if o.is("Gemm") {
        return transposed(0) || transposed(1);
    }
    o.is("MatMul") && (transposed(0) || transposed(1) || bias_after(graph, op).is_some())
}

/// The `Add` or `Sub` that alone takes a product, the other operand, and its sign.
fn bias_after(graph: &Graph, op: OpId) -> Option<(OpId, ValueId, f32)> {
    let out = graph.op(op).output(0)?;
    let (next, slot) = only_consumer(graph, out)?;
    let o = graph.op(next);
    match (o.is("Add"), o.is("Sub"), slot) {
        (true, _, 0) => Some((next, o.input(1)?, 1.0)),
        (true, _, 1) => Some((next, o.input(0)?, 1.0)),
        (_, true, 0) => Some((next, o.input(1)?, -1.0)),
        _ => None,
    }
}

/// Whether a value is a matrix, and `Gemm` takes its type.
fn suits(graph: &Graph, v: ValueId, facts: &Facts) -> bool {
    let types: &[DType] = match facts.opset {
        ..=12 => &[DType::F32, DType::F16, DType::F64],
        _ => &[DType::F32, DType::F16, DType::F64, DType::BF16],
    };
    facts.rank(graph, v) == Some(2) && facts.dtype(graph, v).is_some_and(|d| types.contains(&d))
}

/// The matrix that a `Transpose` turns for one operator alone.
fn turned(graph: &Graph, v: ValueId) -> Option<(OpId, ValueId)> {
    let op = made_by(graph, v, "Transpose")?;
    only_consumer(graph, v)?;
    let o = graph.op(op);
    // Without a permutation the axes are reversed, which is the same for a matrix.
    matches!(o.ints("perm"), None | Some([1, 0])).then_some((op, o.input(0)?))
}

/// Whether adding `c` to a matrix with the columns of `b` keeps its shape.
fn is_bias(graph: &Graph, facts: &Facts, c: ValueId, columns: Option<usize>) -> bool {
    let Some(rank) = facts.rank(graph, c) else {
        return false;
    };
    let fits = |axis: usize| match facts.dim(graph, c, axis) {
        Some(1) => true,
        Some(d) => columns == Some(d),
        None => false,
    };
    match rank {
        0 => true,
        1 => fits(0),
        2 => facts.dim(graph, c, 0) == Some(1) && fits(1),
        _ => false,
    }
}

fn fuse(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    op: OpId,
    facts: &Facts,
) -> Result<Changed, PassError> {
    let o = graph.op(op);
    let (Some(a), Some(b)) = (o.input(0), o.input(1)) else {
        return Ok(Changed::No);
    };
    if !suits(graph, a, facts) || !suits(graph, b, facts) {
        // Products of more dimensions are the rule in attention, and no Gemm.
        return Ok(Changed::No);
    }
    let bias = bias_after(graph, op);
    let columns = facts.dim(graph, b, 1);
    let fitting = bias.filter(|&(_, c, _)| is_bias(graph, facts, c, columns));
    if bias.is_some() && fitting.is_none() {
        cx.missed(
            graph,
            op,
            "bias-shape",
            "what is added is no bias by column",
        );
    }
    let (left, right) = (turned(graph, a), turned(graph, b));
    // Before opset 11 a Gemm has a bias.
    let useful = fitting.is_some() || (facts.opset >= 11 && (left.is_some() || right.is_some()));
    if !useful {
        return Ok(Changed::No);
    }
    let mut new = NewOp::new("Gemm")
        .input(left.map_or(a, |(_, v)| v))
        .input(right.map_or(b, |(_, v)| v));
    if left.is_some() {
        new = new.attr("transA", 1i64);
    }
    if right.is_some() {
        new = new.attr("transB", 1i64);
    }
    let turns: Vec<OpId> = left.iter().chain(&right).map(|t| t.0).collect();
    cx.applied(graph, op, "fused", "fused into a Gemm");
    match fitting {
        Some((add, c, sign)) => {
            new = new.input(c);
            if sign < 0.0 {
                new = new.attr("beta", sign);
            }
            graph.replace_op(add, new.from([op]).from(turns.iter().copied()))?;
            graph.remove_op(op)?;
        }
        None => {
            graph.replace_op(op, new.from(turns.iter().copied()))?;
        }
    }
    remove_unused(graph, &turns)?;
    Ok(Changed::Yes)
}

fn remove_unused(graph: &mut Graph, ops: &[OpId]) -> Result<(), PassError> {
    for &op in ops {
        let unused = graph.get_op(op).is_some_and(|o| {
            o.outputs()
                .iter()
                .flatten()
                .all(|&v| graph.value(v).is_unused())
        });
        if unused {
            graph.remove_op(op)?;
        }
    }
    Ok(())
}

/// Turns the flags of a `Gemm` over instead of its operands.
fn absorb_transposes(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    op: OpId,
) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for (slot, flag) in [(0, "transA"), (1, "transB")] {
        let Some((turn, source)) = graph.op(op).input(slot).and_then(|v| turned(graph, v)) else {
            continue;
        };
        cx.applied(graph, turn, "fused", format!("became the flag {flag}"));
        let value = i64::from(graph.op(op).int_or(flag, 0) == 0);
        graph.set_input(op, slot, Some(source))?;
        graph.set_attr(op, flag, value)?;
        graph.remove_op(turn)?;
        changed = Changed::Yes;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::FuseGemm;
    use crate::testing::{check, refused, unchanged};

    fn text(input: &str, constants: &str, body: &str) -> String {
        format!(
            r#"<opset_import: ["": 17]> f ({input}) => (float[] y)
            <float[3,2] w = random(1){constants}> {{ {body} }}"#
        )
    }

    #[test]
    fn a_product_and_a_bias_are_a_gemm() {
        for bias in ["float[2]", "float[1,2]", "float[1]", "float"] {
            let fill = format!(", {bias} b = ones");
            check::<FuseGemm>(
                "",
                &text("float[N,3] x", &fill, "p = MatMul(x, w) y = Add(b, p)"),
                &text("float[N,3] x", &fill, "y = Gemm(x, w, b)"),
            );
        }
        check::<FuseGemm>(
            "",
            &text(
                "float[N,3] x",
                ", float[2] b = ones",
                "p = MatMul(x, w) y = Sub(p, b)",
            ),
            &text(
                "float[N,3] x",
                ", float[2] b = ones",
                "y = Gemm<beta = -1.0>(x, w, b)",
            ),
        );
    }

    #[test]
    fn transpositions_become_flags() {
        check::<FuseGemm>(
            "",
            &text(
                "float[3,N] x, float[2,3] v",
                ", float[2] b = ones",
                "a = Transpose(x) t = Transpose<perm = [1, 0]>(v) p = MatMul(a, t) y = Add(p, b)",
            ),
            &text(
                "float[3,N] x, float[2,3] v",
                ", float[2] b = ones",
                "y = Gemm<transA = 1, transB = 1>(x, v, b)",
            ),
        );
        check::<FuseGemm>(
            "",
            &text(
                "float[3,N] x, float[3,2] v",
                "",
                "a = Transpose(x) y = Gemm<transA = 1, transB = 1>(a, v)",
            ),
            &text(
                "float[3,N] x, float[3,2] v",
                "",
                "y = Gemm<transA = 0, transB = 1>(x, v)",
            ),
        );
    }

    #[test]
    fn what_is_no_gemm_stays() {
        let bias = ", float[2] b = ones";
        let plain = "p = MatMul(x, w) y = Add(p, b)";
        unchanged::<FuseGemm>("", &text("float[N,T,3] x", bias, plain));
        unchanged::<FuseGemm>(
            "",
            &text("float x[], float[N] z", bias, plain).replace("float x[]", "float[] x"),
        );
        unchanged::<FuseGemm>("", &text("float[N,3] x", "", "y = MatMul(x, w)"));
        unchanged::<FuseGemm>(
            "",
            &text("float[N,3] x", bias, plain).replace("(float[] y)", "(float[] y, float[] p)"),
        );
        refused::<FuseGemm>(
            "",
            &text("float[N,3] x", ", float[4,1,2] b = ones", plain),
            "bias-shape",
        );
        refused::<FuseGemm>(
            "",
            &text("float[1,3] x", ", float[4,1] b = ones", plain),
            "bias-shape",
        );
        let residual = "p = MatMul(x, w) y = Add(p, z)";
        refused::<FuseGemm>(
            "",
            &text("float[N,3] x, float[N,2] z", "", residual),
            "bias-shape",
        );
        let shared = "t = Transpose(v) y = MatMul(x, t) z = Relu(t)";
        unchanged::<FuseGemm>(
            "",
            &text("float[N,3] x, float[2,3] v", "", shared)
                .replace("(float[] y)", "(float[] y, float[] z)"),
        );
    }

    #[test]
    fn integers_stay() {
        let text = r#"<opset_import: ["": 17]> f (int32[N,3] x) => (int32[] y)
            <int32[3,2] w = random(1), int32[2] b = ones> { p = MatMul(x, w) y = Add(p, b) }"#;
        unchanged::<FuseGemm>("", text);
    }
}

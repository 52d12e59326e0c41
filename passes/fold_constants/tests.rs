#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use paring_ir::engine::{CompileOptions, Cut, Engine, EngineError, OpTime, Plan};
use paring_ir::{Graph, Tensor, ValueId};

use super::FoldConstants;
use crate::testing::{check, check_with, refused, unchanged};

/// Knows Neg, Add and Exp of floats, operator by operator; refuses the rest.
struct Toy;

struct ToyPlan(Result<Vec<Tensor>, EngineError>);

impl Engine for Toy {
    fn name(&self) -> String {
        "toy".to_owned()
    }

    fn compile(&self, cut: &Cut<'_>, _: CompileOptions) -> Result<Box<dyn Plan>, EngineError> {
        let graph = &cut.model.graph;
        let all = cut.outputs.iter().map(|&v| value(graph, v));
        let all: Result<Vec<Tensor>, EngineError> = all.collect();
        Ok(Box::new(ToyPlan(Ok(all?))))
    }
}

impl Plan for ToyPlan {
    fn run(&mut self, _: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        self.0.clone()
    }

    fn profile(&mut self, _: &[Tensor]) -> Result<Vec<OpTime>, EngineError> {
        Ok(Vec::new())
    }
}

fn value(graph: &Graph, v: ValueId) -> Result<Tensor, EngineError> {
    if let Some(t) = graph.tensor(v) {
        return Ok(t.clone());
    }
    let op = graph.op(graph.producer(v).unwrap());
    let operands: Vec<Tensor> = op
        .inputs()
        .flatten()
        .map(|v| value(graph, v))
        .collect::<Result<_, _>>()?;
    let floats = |i: usize| operands[i].to_f32s().unwrap().into_owned();
    let made: Vec<f32> = match &**op.op_type() {
        "Neg" => floats(0).iter().map(|v| -v).collect(),
        "Add" => floats(0)
            .iter()
            .zip(floats(1))
            .map(|(a, b)| a + b)
            .collect(),
        // Wrong on purpose: of one element always.
        "Exp" => vec![1.0],
        other => {
            return Err(EngineError::Unsupported {
                engine: "toy".to_owned(),
                place: graph.op_label(graph.producer(v).unwrap()).to_string(),
                reason: format!("no {other}"),
            });
        }
    };
    let dims: Vec<usize> = if op.is("Exp") {
        vec![1]
    } else {
        operands[0].dims().to_vec()
    };
    Ok(Tensor::from_vec(dims, made).unwrap())
}

#[test]
fn shape_arithmetic_folds_without_an_engine() {
    check::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[2,3,4] x) => (float[2,12] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
            s = Shape (x)
            b = Gather (s, zero)
            c = Unsqueeze (b, axis)
            t = Concat <axis: int = 0> (c, rest)
            y = Reshape (x, t)
        }"#,
        r#"<opset_import: ["": 18]> g (float[2,3,4] x) => (float[2,12] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}, int64[2] t = {2, -1}> {
            y = Reshape (x, t)
        }"#,
    );
}

#[test]
fn free_dimensions_stay_free() {
    unchanged::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[N,3,4] x) => (float[N,12] y)
        <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
            s = Shape (x)
            b = Gather (s, zero)
            c = Unsqueeze (b, axis)
            t = Concat <axis: int = 0> (c, rest)
            y = Reshape (x, t)
        }"#,
    );
}

#[test]
fn the_engine_computes_a_region_at_once() {
    check_with::<FoldConstants>(
        Some(&Toy),
        "",
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> {
            a = Neg (w)
            b = Add (a, w)
            c = Neg (b)
            y = Mul (x, c)
            z = Mul (x, a)
        }"#,
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z)
        <float[2] w = {1, 2}, float[2] a = {-1, -2}, float[2] c = {-0.0, -0.0}> {
            y = Mul (x, c)
            z = Mul (x, a)
        }"#,
    );
}

#[test]
fn what_the_engine_refuses_or_gets_wrong_is_left_and_the_rest_folded() {
    let remarks = check_with::<FoldConstants>(
        Some(&Toy),
        "",
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Neg (w)
            b = Sqrt (a)
            c = Exp (w)
            d = Neg (w)
            e = Add (d, w)
            y = Sum (x, b, c, e)
        }"#,
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y)
        <float[2] w = {1, 2}, float[2] e = {0, 0}, float[2] a = {-1, -2}> {
            b = Sqrt (a)
            c = Exp (w)
            y = Sum (x, b, c, e)
        }"#,
    );
    assert_eq!(remarks.missed["engine-refused"], 2);
}

#[test]
fn branches_are_folded_with_constants_from_outside() {
    check_with::<FoldConstants>(
        Some(&Toy),
        "",
        r#"<opset_import: ["": 18]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            y = If (c) <
                then_branch = t () => (float[2] p) { q = Neg (w) p = Mul (x, q) },
                else_branch = e () => (float[2] r) { r = Neg (w) }
            >
        }"#,
        r#"<opset_import: ["": 18]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            y = If (c) <
                then_branch = t () => (float[2] p) <float[2] q = {-1, -2}> { p = Mul (x, q) },
                else_branch = e () => (float[2] r) { r = Neg (w) }
            >
        }"#,
    );
}

#[test]
fn without_an_engine_it_is_said_once() {
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = Neg (w)
            b = Exp (w)
            y = Sum (x, a, b)
        }"#,
        "no-engine",
    );
}

#[test]
fn quantized_weights_and_random_numbers_stay() {
    unchanged::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y)
        <int8[2] q = {1, 2}, float s = {0.5}, float[2] w = {1, 2}> {
            d = DequantizeLinear (q, s)
            r = RandomNormalLike (w)
            y = Sum (x, d, r)
        }"#,
    );
}

#[test]
fn what_grows_too_much_stays() {
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[x] x) => (float[1000,1000] y) <float z = {0}, int64[2] s = {1000, 1000}> {
            e = Expand (z, s)
            y = Add (e, x)
        }"#,
        "budget",
    );
}

#[test]
fn integers_that_overflow_are_not_computed() {
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (int8[2] x) => (int8[2] y) <int8[2] a = {127, 1}, int8[2] b = {1, 1}> {
            c = Add (a, b)
            y = Add (x, c)
        }"#,
        "overflow",
    );
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (int8[2] x) => (int8[2] y) <int8[2] a = {127, 1}, int8[2] b = {1, 0}> {
            c = Div (a, b)
            y = Add (x, c)
        }"#,
        "overflow",
    );
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (int8[2] x) => (int8[2] y) <float[2] a = {300, 1}> {
            c = Cast <to: int = 3> (a)
            y = Add (x, c)
        }"#,
        "overflow",
    );
}

#[test]
fn a_constant_graph_output_keeps_its_operator() {
    refused::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, int64[1] s) { y = Neg (x) s = Shape (x) }"#,
        "graph-output",
    );
}

#[test]
fn what_can_be_overridden_is_not_constant() {
    unchanged::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { a = Neg (w) y = Mul (x, a) }"#,
    );
}

#[test]
fn shapes_that_change_from_one_iteration_to_the_next_are_not_constant() {
    unchanged::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (int64 n, bool go, float[1] x) => (float[M] y) {
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[K] v) => (bool d, float[L] w) {
                d = Identity (c)
                s = Shape (v)
                f = Cast <to: int = 1> (s)
                w = Concat <axis: int = 0> (v, f)
            }>
        }"#,
    );
    unchanged::<FoldConstants>(
        "",
        r#"<opset_import: ["": 18]> g (int64 n, bool go, float[1] x) => (float[M] y) {
            y = Loop (n, go, x) <body = b (i, c, v) => (d, w) {
                d = Identity (c)
                s = Shape (v)
                f = Cast <to: int = 1> (s)
                w = Concat <axis: int = 0> (v, f)
            }>
        }"#,
    );
}

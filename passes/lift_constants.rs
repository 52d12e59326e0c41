//! `lift-constants`: Constant operators become initializers of the same name.
//!
//! A weight is then found in one place, whichever way the exporter wrote it, and the graph
//! holds only operators that compute. Constants of every form are lifted, in graphs inside
//! attributes too, where they become initializers of that graph.
//!
//! ```text
//! before   w = Constant <value = float[2] {1, 2}> ()     after   float[2] w = {1, 2}
//!          y = Mul (x, w)                                        y = Mul (x, w)
//! ```
//!
//! Left alone:
//! - a Constant whose result is a graph output (`graph-output`): the output keeps an operator
//!   that makes it, as engines expect;
//! - the bodies of functions, which can't hold initializers.
//!
//! From the ONNX specification of Constant, versions 1 to 25.

use std::sync::Arc;

use paring_ir::tensor::TensorExtra;
use paring_ir::{
    AttrValue, Changed, Constant, Effect, Graph, Model, NoOptions, Op, OptionError, OptionSet,
    Pass, PassContext, PassError, PassInfo, Tensor,
};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct LiftConstants {
    options: OptionSet<NoOptions>,
}

impl Pass for LiftConstants {
    const INFO: PassInfo = PassInfo::new(
        "lift-constants",
        "Turn Constant operators into initializers",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(LiftConstants { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        model.edit_graphs(&mut |graph| {
            changed |= self.lift(graph, cx)?;
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

impl LiftConstants {
    fn lift(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let constants: Vec<_> = graph
            .ops()
            .filter(|&op| graph.op(op).is("Constant"))
            .collect();
        let mut changed = Changed::No;
        for op in constants {
            if self.options.for_op(graph, op).is_skip() {
                continue;
            }
            let Some(value) = graph.op(op).output(0) else {
                continue;
            };
            if graph.value(value).is_output() {
                cx.missed(graph, op, "graph-output", "the constant is a graph output");
                continue;
            }
            let Some(constant) = constant_of(graph.op(op))? else {
                cx.missed(graph, op, "no-value", "the attributes hold no value");
                continue;
            };
            cx.applied(graph, op, "lifted", "became an initializer");
            graph.fold_to_initializer(value, constant)?;
            graph.remove_op(op)?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}

/// What a Constant operator holds; `None` when it holds nothing that is known.
fn constant_of(op: &Op) -> Result<Option<Constant>, PassError> {
    let [attr] = op.attrs() else { return Ok(None) };
    let tensor = match (&*attr.name, &attr.value) {
        ("value", AttrValue::Tensor(t)) => unnamed(t),
        ("value_float", AttrValue::Float(v)) => Tensor::scalar(*v),
        ("value_floats", AttrValue::Floats(v)) => Tensor::vector(v.clone()),
        ("value_int", AttrValue::Int(v)) => Tensor::scalar(*v),
        ("value_ints", AttrValue::Ints(v)) => Tensor::vector(v.clone()),
        ("value_string", AttrValue::String(v)) => Tensor::from_strings([], [v.clone()])?,
        ("value_strings", AttrValue::Strings(v)) => Tensor::from_strings([v.len()], v.clone())?,
        ("sparse_value", AttrValue::SparseTensor(v)) => {
            return Ok(Some(Constant::Sparse(Arc::new((**v).clone()))));
        }
        _ => return Ok(None),
    };
    Ok(Some(Constant::Dense(tensor)))
}

/// The tensor without a name of its own: an initializer's name is its value's.
fn unnamed(tensor: &Tensor) -> Tensor {
    match tensor.extra() {
        Some(extra) if extra.name.is_some() => tensor.clone().with_extra(TensorExtra {
            name: None,
            ..extra.clone()
        }),
        _ => tensor.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::LiftConstants;
    use crate::testing::{check, refused, unchanged};

    #[test]
    fn every_form_becomes_an_initializer() {
        check::<LiftConstants>(
            "",
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, int64[2] shape, float[2] z) {
                w = Constant <value = float[2] {1, 2}> ()
                two = Constant <value_float: float = 2.0> ()
                dims = Constant <value_ints: ints = [2, 1]> ()
                five = Constant <value_int: int = 5> ()
                half = Constant <value_floats: floats = [0.5]> ()
                a = Mul (x, w)
                y = Mul (a, two)
                shape = Add (dims, five)
                z = Mul (x, half)
            }"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y, int64[2] shape, float[2] z)
            <float[2] w = {1, 2}, float two = {2}, int64[2] dims = {2, 1}, int64 five = {5}, float[1] half = {0.5}> {
                a = Mul (x, w)
                y = Mul (a, two)
                shape = Add (dims, five)
                z = Mul (x, half)
            }"#,
        );
    }

    #[test]
    fn constants_in_branches_stay_in_their_graph() {
        check::<LiftConstants>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) {
                y = If (c) <
                    then_branch = t () => (float[2] a) { w = Constant <value = float[2] {1, 2}> () a = Mul (x, w) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (bool c, float[2] x) => (float[2] y) {
                y = If (c) <
                    then_branch = t () => (float[2] a) <float[2] w = {1, 2}> { a = Mul (x, w) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }
                >
            }"#,
        );
    }

    #[test]
    fn a_graph_output_keeps_its_operator() {
        refused::<LiftConstants>(
            "",
            r#"<opset_import: ["": 18]>
            g () => (float[2] y) { y = Constant <value = float[2] {1, 2}> () }"#,
            "graph-output",
        );
    }

    #[test]
    fn operators_can_be_left_out_by_name() {
        unchanged::<LiftConstants>(
            r#"{"by-name": {"keep*": "skip"}}"#,
            r#"<opset_import: ["": 18]>
            g (float[2] x) => (float[2] y) {
                [keep_me] w = Constant <value = float[2] {1, 2}> ()
                y = Mul (x, w)
            }"#,
        );
    }
}

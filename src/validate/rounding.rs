//! The same model with its weights rounded differently.
//!
//! A fold multiplies weights beforehand, so it rounds them once more. How far that may move the
//! outputs is a property of the model: where they come out of a long sum that cancels, or out of
//! steep exponentials, it is far more than the last bit.

use paring_ir::{AttrValue, DType, Graph, GraphError, Model, Tensor};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::Rng;

/// A copy of a model in which weights go up or down by the last bit, about half of them, always
/// the same ones.
pub(super) fn nudged(model: &Model) -> Result<Model, GraphError> {
    let mut model = model.clone();
    model.edit_graphs(&mut nudge_graph)?;
    Ok(model)
}

fn nudge_graph(graph: &mut Graph) -> Result<(), GraphError> {
    for v in graph.initializers().collect::<Vec<_>>() {
        if let Some(tensor) = graph.tensor(v).and_then(nudge_tensor) {
            graph.set_tensor(v, tensor, Vec::new())?;
        }
    }
    for op in graph.ops().collect::<Vec<_>>() {
        let constant = graph.op(op);
        if !constant.is("Constant") {
            continue;
        }
        if let Some(tensor) = constant.tensor("value").and_then(nudge_tensor) {
            graph.set_attr(op, "value", AttrValue::Tensor(tensor))?;
        }
    }
    Ok(())
}

/// Nothing for what is no weight of single precision. A single number is an exponent, a limit or
/// an axis, and whole numbers are meant as they are.
fn nudge_tensor(tensor: &Tensor) -> Option<Tensor> {
    if tensor.dtype() != DType::F32 || tensor.len() < 2 {
        return None;
    }
    let old = tensor.view::<f32>().ok()?;
    let mut rng = Pcg32::new(0, 0);
    let new: Vec<f32> = old
        .iter()
        .map(|&x| match rng.next_u32() >> 30 {
            0 if x.fract() != 0.0 => x.next_up(),
            1 if x.fract() != 0.0 => x.next_down(),
            _ => x,
        })
        .collect();
    Tensor::from_vec(tensor.dims().iter().copied(), new).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use paring_ir::text::parse_model;

    use super::*;

    #[test]
    fn weights_move_by_the_last_bit_and_what_is_no_weight_stays() {
        let model = parse_model(
            r#"<ir_version: 10, opset_import: ["": 17]>
            g (float[64] x) => (float[64] y)
            <float[64] w = random(1), float e = {0.1}, float[2] whole = {1, -3}, int64[2] i = {1, 2}> {
                c = Constant <value = float[64] {1.1}> ()
                y = Mul (x, w)
            }"#
            .replace("{1.1}", &format!("{{{}}}", vec!["1.1"; 64].join(", ")))
            .as_str(),
        )
        .unwrap();
        let other = nudged(&model).unwrap();
        let tensor = |m: &Model, name: &str| {
            let v = m.graph.find_value(name).unwrap();
            m.graph.tensor(v).unwrap().clone()
        };
        for name in ["e", "whole", "i"] {
            assert_eq!(tensor(&model, name), tensor(&other, name), "{name}");
        }
        let constant = |m: &Model| {
            let mut ops = m.graph.ops().map(|o| m.graph.op(o));
            let op = ops.find(|o| o.is("Constant")).unwrap();
            op.tensor("value").unwrap().clone()
        };
        let weights = [
            (tensor(&model, "w"), tensor(&other, "w")),
            (constant(&model), constant(&other)),
        ];
        for (old, new) in weights {
            let (old, new) = (old.to_f32s().unwrap(), new.to_f32s().unwrap());
            let moved = old.iter().zip(&*new).filter(|(a, b)| a != b).count();
            assert!((16..=48).contains(&moved), "{moved}");
            let near = |(a, b): (&f32, &f32)| a.to_bits().abs_diff(b.to_bits()) <= 1;
            assert!(old.iter().zip(&*new).all(near));
        }
    }
}

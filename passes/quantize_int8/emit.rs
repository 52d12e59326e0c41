//! Writes quantization into a graph: QuantizeLinear and DequantizeLinear around what runs in
//! integers.

use std::collections::BTreeMap;

use paring_ir::{Graph, NewOp, OpId, PassError, Port, Tensor, ValueId};

use super::placement::{Placement, Quantized};
use super::profile::ActivationType;
use super::ranges::Parameters;

/// A quantized weight.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    /// The bytes, in the order of the float weight.
    pub(crate) bytes: Vec<i8>,
    /// One scale for each output channel, or one.
    pub(crate) scales: Vec<f32>,
    /// The axis of output channels, where there are several scales.
    pub(crate) axis: i64,
}

/// Quantizes activations. Layers that take them get dequantized values.
pub(crate) fn activations(
    graph: &mut Graph,
    placement: &Placement,
    parameters: &BTreeMap<ValueId, Parameters>,
) -> Result<(), PassError> {
    for q in &placement.values {
        if let Some(p) = parameters.get(&q.value) {
            quantize_value(graph, q, p)?;
        }
    }
    Ok(())
}

fn zero_point(p: &Parameters) -> Tensor {
    match p.ty {
        ActivationType::U8 => Tensor::scalar(p.zero_point.clamp(0, 255) as u8),
        ActivationType::S8 => Tensor::scalar(p.zero_point.clamp(-128, 127) as i8),
    }
}

fn quantize_value(graph: &mut Graph, q: &Quantized, p: &Parameters) -> Result<(), PassError> {
    let value = q.value;
    if !q.bytes && q.takers.is_empty() {
        return Ok(());
    }
    let name = graph.value(value).name().clone();
    let beside = graph.producer(value).or(q.takers.first().map(|t| t.0));
    let scale = graph.add_constant(&format!("{name}_scale"), Tensor::scalar(p.scale))?;
    let zero = graph.add_constant(&format!("{name}_zero_point"), zero_point(p))?;
    let node = |op: &str, v: ValueId, output: String| {
        let new = NewOp::new(op)
            .input(v)
            .input(scale)
            .input(zero)
            .output(output);
        match beside {
            Some(b) => new.from([b]).beside(b),
            None => new,
        }
    };
    let quantize = graph.add_op(node("QuantizeLinear", value, format!("{name}_quantized")))?;
    let bytes = output(graph, quantize)?;
    let dequantize = graph.add_op(node(
        "DequantizeLinear",
        bytes,
        format!("{name}_dequantized"),
    ))?;
    let back = output(graph, dequantize)?;
    if !q.bytes {
        for &(op, slot) in &q.takers {
            graph.set_input(op, slot, Some(back))?;
        }
        return Ok(());
    }
    if graph.can_replace(value, back) {
        graph.replace_value(value, back)?;
        return Ok(graph.set_input(quantize, 0, Some(value))?);
    }
    // It can't give up its name: only operators get what is dequantized.
    for u in graph.sorted_uses(value) {
        if let (Port::Input(slot), true) = (u.port, u.op != quantize) {
            graph.set_input(u.op, slot as usize, Some(back))?;
        }
    }
    Ok(())
}

pub(crate) fn output(graph: &Graph, op: OpId) -> Result<ValueId, PassError> {
    let made = graph.op(op).output(0);
    made.ok_or_else(|| PassError::Bug("a new operator has no output".to_owned()))
}

/// Puts a dequantized weight into a slot of an operator, and returns it.
pub(crate) fn weight(
    graph: &mut Graph,
    op: OpId,
    slot: usize,
    weight: &Weight,
) -> Result<Option<ValueId>, PassError> {
    let Some(old) = graph.op(op).input(slot) else {
        return Ok(None);
    };
    let dims = graph
        .tensor(old)
        .map(|t| t.dims().to_vec())
        .unwrap_or_default();
    let bytes = Tensor::from_vec(dims, weight.bytes.clone())?;
    let zero = match weight.scales.len() {
        1 => Tensor::scalar(0i8),
        n => Tensor::vector(vec![0i8; n]),
    };
    let axis = (weight.scales.len() > 1).then_some(weight.axis);
    constant(graph, (op, slot), bytes, &weight.scales, zero, axis)?;
    Ok(graph.op(op).input(slot))
}

/// Puts a dequantized 32-bit bias into a slot of an operator.
pub(crate) fn bias(
    graph: &mut Graph,
    op: OpId,
    slot: usize,
    values: Vec<i32>,
    scales: &[f32],
) -> Result<(), PassError> {
    let zero = match scales.len() {
        1 => Tensor::scalar(0i32),
        n => Tensor::vector(vec![0i32; n]),
    };
    let axis = (scales.len() > 1).then_some(0);
    constant(
        graph,
        (op, slot),
        Tensor::vector(values),
        scales,
        zero,
        axis,
    )
}

fn constant(
    graph: &mut Graph,
    (op, slot): (OpId, usize),
    bytes: Tensor,
    scales: &[f32],
    zero: Tensor,
    axis: Option<i64>,
) -> Result<(), PassError> {
    let Some(old) = graph.op(op).input(slot) else {
        return Ok(());
    };
    let name = graph.value(old).name().clone();
    let scale = match scales {
        [one] => Tensor::scalar(*one),
        many => Tensor::vector(many.to_vec()),
    };
    let stored = graph.add_constant(&format!("{name}_quantized"), bytes)?;
    graph.set_tensor_sources(stored, &[old])?;
    let scale = graph.add_constant(&format!("{name}_scale"), scale)?;
    let zero = graph.add_constant(&format!("{name}_zero_point"), zero)?;
    let mut new = NewOp::new("DequantizeLinear")
        .input(stored)
        .input(scale)
        .input(zero)
        .output(format!("{name}_dequantized"));
    if let Some(axis) = axis {
        new = new.attr("axis", axis);
    }
    let dequantize = graph.add_op(new.from([op]).beside(op))?;
    let back = output(graph, dequantize)?;
    Ok(graph.set_input(op, slot, Some(back))?)
}

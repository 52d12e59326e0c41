//! One operator with a weight becomes two.
//!
//! The operator stays where it is, with its outputs, bias and name, and takes the second factor;
//! a new operator before it applies the first.

use faer::Mat;
use paring_ir::{Attribute, DType, Graph, NewOp, OpId, PassError, Tensor, ValueId};

use super::candidates::Form;
use super::factors::Factors;
use crate::layers::{Layer, add_to_bias};
use crate::linear::{Refusal, narrowed};

/// A factorized layer.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// The weight of the new operator.
    first: ValueId,
    /// The weight that the operator has now.
    second: ValueId,
    /// What was added to the bias, by block and row.
    bias: Vec<f64>,
}

/// What sort of operator a layer is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Convolution,
    Transposed,
    Product,
}

impl Kind {
    pub(super) fn of(graph: &Graph, layer: &Layer) -> Kind {
        match &**graph.op(layer.op).op_type() {
            "Conv" => Kind::Convolution,
            "ConvTranspose" => Kind::Transposed,
            _ => Kind::Product,
        }
    }
}

/// The tensors of both factors.
pub(super) fn tensors(
    layer: &Layer,
    (kind, form): (Kind, Form),
    dtype: DType,
    factors: &Factors,
) -> Result<(Tensor, Tensor), Refusal> {
    let rank = factors.first.first().map_or(0, Mat::nrows);
    let (first, second, by_rows) = match kind {
        Kind::Product => product_dims(layer, rank),
        _ => kernel_dims(layer, kind, form, rank),
    };
    Ok((
        packed(dtype, &first, &factors.first, by_rows.0)?,
        packed(dtype, &second, &factors.second, by_rows.1)?,
    ))
}

/// The shapes of both factors, and whether their rows lie one after the other in memory.
type Dims = (Vec<usize>, Vec<usize>, (bool, bool));

fn product_dims(layer: &Layer, rank: usize) -> Dims {
    let batch = layer
        .dims
        .get(layer.layout.batch_axes.clone())
        .unwrap_or_default();
    let by_rows = (
        layer.slot == 0,
        layer.layout.output_axis < layer.layout.input_axis,
    );
    let (mut first, mut second) = (batch.to_vec(), batch.to_vec());
    first.extend(ordered(rank, layer.cols, by_rows.0));
    second.extend(ordered(layer.rows, rank, by_rows.1));
    (first, second, by_rows)
}

fn kernel_dims(layer: &Layer, kind: Kind, form: Form, rank: usize) -> Dims {
    let kernel = layer
        .dims
        .get(layer.layout.kernel_axes.clone())
        .unwrap_or_default();
    let transposed = kind == Kind::Transposed;
    let (outputs, inputs) = (
        layer.dims[layer.layout.output_axis],
        layer.dims[layer.layout.input_axis],
    );
    let (mut first, mut second) = if transposed {
        let inputs = inputs / layer.blocks.max(1);
        (
            vec![layer.blocks * rank, inputs],
            vec![layer.blocks * rank, outputs],
        )
    } else {
        (vec![layer.blocks * rank, inputs], vec![outputs, rank])
    };
    for (axis, &size) in kernel.iter().enumerate() {
        let in_first = match form {
            Form::Channel => !transposed,
            Form::Spatial => axis == 0,
        };
        first.push(if in_first { size } else { 1 });
        second.push(if in_first { 1 } else { size });
    }
    (first, second, (true, !transposed))
}

fn ordered(rows: usize, cols: usize, by_rows: bool) -> [usize; 2] {
    if by_rows { [rows, cols] } else { [cols, rows] }
}

/// Matrices one after the other.
fn packed(
    dtype: DType,
    dims: &[usize],
    blocks: &[Mat<f64>],
    by_rows: bool,
) -> Result<Tensor, Refusal> {
    let mut all = Vec::with_capacity(dims.iter().product());
    for m in blocks {
        if by_rows {
            all.extend(
                m.row_iter()
                    .flat_map(|r| r.iter().copied().collect::<Vec<_>>()),
            );
        } else {
            all.extend(
                m.col_iter()
                    .flat_map(|c| c.iter().copied().collect::<Vec<_>>()),
            );
        }
    }
    narrowed(dtype, dims, &all)
}

/// Puts both factors in the place of a layer's weight.
pub(super) fn install(
    graph: &mut Graph,
    layer: &Layer,
    form: Form,
    (first, second): (Tensor, Tensor),
    bias: &[f64],
) -> Result<Pair, PassError> {
    let op = layer.op;
    let gone = || PassError::Bug("a layer lost its operator or its input".to_owned());
    let o = graph.get_op(op).ok_or_else(gone)?;
    let source = layer.source.as_ref().ok_or_else(gone)?.value;
    let source_slot = (0..o.input_count())
        .find(|&slot| o.input(slot) == Some(source) && slot != layer.slot)
        .ok_or_else(gone)?;
    let name = graph.value(layer.weight).name().clone();
    let middle = o.output(0).map(|v| graph.value(v).name().clone());
    let hint = format!("{}_lowrank", middle.as_deref().unwrap_or("value"));
    let rank_dims = (first.dims().to_vec(), second.dims().to_vec());
    let first = graph.add_constant(&format!("{name}_v"), first)?;
    let second = graph.add_constant(&format!("{name}_u"), second)?;
    for v in [first, second] {
        graph.set_tensor_sources(v, &[layer.weight])?;
    }
    let new = before(graph, layer, form, source, first, &rank_dims.0)?.output(hint);
    let new = graph.add_op(new.from([op]).beside(op))?;
    let middle = graph.op(new).output(0).ok_or_else(gone)?;
    graph.set_input(op, source_slot, Some(middle))?;
    graph.set_input(op, layer.slot, Some(second))?;
    adapt(graph, op, layer, form, &rank_dims.1)?;
    graph.remove_value(layer.weight)?;
    let mut pair = Pair {
        first,
        second,
        bias: vec![0.0; bias.len()],
    };
    correct(graph, layer, &mut pair, bias)?;
    Ok(pair)
}

/// Replaces the factors of a factorized layer by others of the same rank.
pub(super) fn update(
    graph: &mut Graph,
    layer: &Layer,
    pair: &mut Pair,
    (first, second): (Tensor, Tensor),
    bias: &[f64],
) -> Result<(), PassError> {
    graph.set_tensor(pair.first, first, Vec::new())?;
    graph.set_tensor(pair.second, second, Vec::new())?;
    correct(graph, layer, pair, bias)
}

/// Sets what is added to the bias.
fn correct(
    graph: &mut Graph,
    layer: &Layer,
    pair: &mut Pair,
    bias: &[f64],
) -> Result<(), PassError> {
    let change: Vec<f64> = bias
        .iter()
        .zip(&pair.bias)
        .map(|(new, old)| new - old)
        .collect();
    let now = Layer::of(graph, layer.op, layer.slot);
    if let Some(now) = now
        && offset_bias(graph, &now, &change)?
    {
        pair.bias = bias.to_vec();
    }
    Ok(())
}

/// Adds to the bias of a layer what its product lacks, by block and row. Says whether there was
/// a place for it.
pub(super) fn offset_bias(
    graph: &mut Graph,
    layer: &Layer,
    change: &[f64],
) -> Result<bool, PassError> {
    if change.iter().all(|&c| c == 0.0) {
        return Ok(false);
    }
    let o = graph.op(layer.op);
    let alpha = match o.is("Gemm") {
        true => f64::from(o.float("alpha").unwrap_or(1.0)),
        false => 1.0,
    };
    let change: Vec<f64> = change.iter().map(|c| alpha * c).collect();
    add_to_bias(graph, layer, &change, false)
}

const GEOMETRY: [&str; 5] = ["kernel_shape", "pads", "strides", "dilations", "auto_pad"];

/// The operator that applies the first factor.
fn before(
    graph: &Graph,
    layer: &Layer,
    form: Form,
    source: ValueId,
    weight: ValueId,
    dims: &[usize],
) -> Result<NewOp, PassError> {
    let o = graph.op(layer.op);
    let name = match o.name().is_empty() {
        true => String::new(),
        false => format!("{}_lowrank", o.name()),
    };
    let ints = |all: &[usize]| -> Vec<i64> { all.iter().map(|&i| i as i64).collect() };
    Ok(match &**o.op_type() {
        "Conv" => {
            let attrs = part(o.attrs(), form, true, dims);
            NewOp::new("Conv")
                .name(name)
                .input(source)
                .input(weight)
                .attrs(attrs)
        }
        "ConvTranspose" => NewOp::new("Conv")
            .name(name)
            .input(source)
            .input(weight)
            .attr("group", layer.blocks as i64)
            .attr("kernel_shape", ints(dims.get(2..).unwrap_or_default())),
        _ => {
            let (left, right) = match layer.slot {
                0 => (weight, source),
                _ => (source, weight),
            };
            let flag = if layer.slot == 0 { "transB" } else { "transA" };
            let flipped = o.is("Gemm") && o.int_or(flag, 0) != 0;
            let new = if flipped {
                NewOp::new("Gemm").attr(flag, 1i64)
            } else {
                NewOp::new("MatMul")
            };
            new.name(name).input(left).input(right)
        }
    })
}

/// The attributes of one part of a convolution that is split in two: the part takes the
/// geometry of some axes of the kernel, and the others as they come.
fn part(attrs: &[Attribute], form: Form, first: bool, dims: &[usize]) -> Vec<Attribute> {
    let axes = dims.len().saturating_sub(2);
    let here = |axis: usize| match form {
        Form::Channel => first,
        Form::Spatial => (axis == 0) == first,
    };
    let mut out = Vec::new();
    for a in attrs {
        let neutral = match &*a.name {
            "kernel_shape" => continue,
            "strides" | "dilations" => 1,
            "pads" => 0,
            "auto_pad" if form == Form::Channel && !first => continue,
            _ => {
                out.push(a.clone());
                continue;
            }
        };
        let Some(all) = ints_of(a) else { continue };
        let mine: Vec<i64> = all
            .iter()
            .enumerate()
            .map(|(i, &v)| if here(i % axes.max(1)) { v } else { neutral })
            .collect();
        if mine.iter().any(|&v| v != neutral) {
            out.push(Attribute::new(a.name.clone(), mine));
        }
    }
    let kernel: Vec<i64> = dims.iter().skip(2).map(|&k| k as i64).collect();
    out.push(Attribute::new("kernel_shape", kernel));
    out
}

fn ints_of(a: &Attribute) -> Option<&[i64]> {
    match &a.value {
        paring_ir::AttrValue::Ints(all) => Some(all),
        _ => None,
    }
}

/// Makes the operator fit the second factor and the new input.
fn adapt(
    graph: &mut Graph,
    op: OpId,
    layer: &Layer,
    form: Form,
    dims: &[usize],
) -> Result<(), PassError> {
    let o = graph.op(op);
    match &**o.op_type() {
        "Conv" => {
            let attrs = part(o.attrs(), form, false, dims);
            let old: Vec<String> = o.attrs().iter().map(|a| a.name.to_string()).collect();
            for name in old.iter().filter(|n| GEOMETRY.contains(&n.as_str())) {
                if !attrs.iter().any(|a| &*a.name == name.as_str()) {
                    graph.remove_attr(op, name)?;
                }
            }
            for a in attrs.into_iter().filter(|a| GEOMETRY.contains(&&*a.name)) {
                graph.set_attr(op, &a.name.clone(), a.value)?;
            }
        }
        "Gemm" => {
            let flag = if layer.slot == 0 { "transB" } else { "transA" };
            if graph.op(op).attr(flag).is_some() {
                graph.remove_attr(op, flag)?;
            }
        }
        _ => {}
    }
    Ok(())
}

//! Multiply-accumulates.
//!
//! The convention is that of the literature on networks: one multiplication with one addition
//! is one MAC; operators that multiply with weights or multiply two matrices count, and
//! element-wise operators, normalizations, poolings and biases don't. Padding counts as if it
//! were data, and causal attention as if it weren't causal.

use super::knowledge::knowledge;
use crate::op::Op;

/// The dimensions of a value, each known or not.
pub type KnownDims = [Option<u64>];

/// The dimensions of an operator's inputs and outputs by slot.
struct Dims<'a> {
    inputs: &'a [Option<&'a KnownDims>],
    outputs: &'a [Option<&'a KnownDims>],
}

impl<'a> Dims<'a> {
    fn input(&self, slot: usize) -> Option<&'a KnownDims> {
        self.inputs.get(slot).copied().flatten()
    }

    fn output(&self, slot: usize) -> Option<&'a KnownDims> {
        self.outputs.get(slot).copied().flatten()
    }
}

/// The product; `None` when a factor is unknown or it exceeds 64 bits.
fn product(dims: &KnownDims) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, d| n.checked_mul((*d)?))
}

fn dim(dims: &KnownDims, axis: usize) -> Option<u64> {
    dims.get(axis).copied().flatten()
}

fn times(factors: &[u64]) -> Option<u64> {
    factors.iter().try_fold(1u64, |n, &f| n.checked_mul(f))
}

/// The multiply-accumulates of one execution of an operator, from the dimensions of its
/// inputs and outputs by slot. Control flow counts 0: what it runs is counted where it stands.
/// `None` when a dimension that matters is unknown, the sum exceeds 64 bits, or the operator
/// is of another domain.
pub fn macs(op: &Op, inputs: &[Option<&KnownDims>], outputs: &[Option<&KnownDims>]) -> Option<u64> {
    if !op.domain().is_empty() {
        return None;
    }
    if !knowledge(op.op_type())?.counts_macs() {
        return Some(0);
    }
    let dims = Dims { inputs, outputs };
    match &**op.op_type() {
        "Conv" | "ConvInteger" | "DeformConv" | "CausalConvWithState" => {
            convolution(dims.output(0)?, dims.input(1)?)
        }
        "QLinearConv" => convolution(dims.output(0)?, dims.input(3)?),
        // Each input element meets the kernels of its group's output channels.
        "ConvTranspose" => convolution(dims.input(0)?, dims.input(1)?),
        "Gemm" => gemm(op, &dims),
        "MatMul" | "MatMulInteger" => matmul(&dims, 1),
        "QLinearMatMul" => matmul(&dims, 3),
        "Einsum" => einsum(op, &dims),
        "LSTM" | "GRU" | "RNN" => recurrent(&dims),
        "Attention" => attention(op, &dims),
        "LinearAttention" => linear_attention(op, &dims),
        _ => None,
    }
}

/// Every element of `place` takes part in as many products as the weight has elements for one
/// of its channels.
fn convolution(place: &KnownDims, weight: &KnownDims) -> Option<u64> {
    product(place)?.checked_mul(product(weight.get(1..)?)?)
}

fn gemm(op: &Op, dims: &Dims<'_>) -> Option<u64> {
    let side = |slot, name, plain: usize| {
        let flipped = op.int_or(name, 0) != 0;
        let inner = if flipped { 1 - plain } else { plain };
        let dims = dims.input(slot);
        (
            dims.and_then(|d| dim(d, inner)),
            dims.and_then(|d| dim(d, 1 - inner)),
        )
    };
    let (a_inner, rows) = side(0, "transA", 1);
    let (b_inner, columns) = side(1, "transB", 0);
    times(&[rows?, columns?, a_inner.or(b_inner)?])
}

fn matmul(dims: &Dims<'_>, right: usize) -> Option<u64> {
    let from_left = dims.input(0).and_then(|a| a.last().copied().flatten());
    let from_right = dims
        .input(right)
        .and_then(|b| dim(b, b.len().saturating_sub(2)));
    product(dims.output(0)?)?.checked_mul(from_left.or(from_right)?)
}

/// Recurrent networks take one step for each element of a batch of sequences: the products
/// with both weights, of every direction. Sequence and batch are the first two axes of the
/// input, in either order.
fn recurrent(dims: &Dims<'_>) -> Option<u64> {
    let steps = product(dims.input(0)?.get(..2)?)?;
    let per_step = product(dims.input(1)?)?.checked_add(product(dims.input(2)?)?)?;
    steps.checked_mul(per_step)
}

/// Query times key, and the result times value, for every head.
fn attention(op: &Op, dims: &Dims<'_>) -> Option<u64> {
    let (q, k, v) = (dims.input(0)?, dims.input(1)?, dims.input(2)?);
    let packed = q.len() == 3;
    let sequence = if packed { 1 } else { 2 };
    let past = dims.input(4).map_or(Some(0), |past| dim(past, 2))?;
    let keys = dim(k, sequence)?.checked_add(past)?;
    let queries = times(&[dim(q, 0)?, dim(q, sequence)?, keys])?;
    let (query_width, value_width) = if packed {
        let heads = u64::try_from(op.int("q_num_heads")?).ok()?;
        let kv_heads = u64::try_from(op.int("kv_num_heads")?).ok()?;
        let value_head = dim(v, 2)?.checked_div(kv_heads)?;
        (dim(q, 2)?, times(&[heads, value_head])?)
    } else {
        let heads = dim(q, 1)?;
        (times(&[heads, dim(q, 3)?])?, times(&[heads, dim(v, 3)?])?)
    };
    queries.checked_mul(query_width.checked_add(value_width)?)
}

/// For every token: the outer product of key and value for each key/value head, the query
/// times the state for each query head, and in the delta rules the key times the state.
fn linear_attention(op: &Op, dims: &Dims<'_>) -> Option<u64> {
    let (q, k, v) = (dims.input(0)?, dims.input(1)?, dims.input(2)?);
    let heads = u64::try_from(op.int("q_num_heads")?).ok()?;
    let kv_heads = u64::try_from(op.int("kv_num_heads")?).ok()?;
    let key = dim(k, 2)?.checked_div(kv_heads)?;
    let value = dim(v, 2)?.checked_div(kv_heads)?;
    let delta = matches!(
        op.string("update_rule").unwrap_or("gated_delta"),
        "delta" | "gated_delta"
    );
    let products = heads
        .checked_add(kv_heads)?
        .checked_add(if delta { kv_heads } else { 0 })?;
    times(&[dim(q, 0)?, dim(q, 1)?, key, value, products])
}

/// Every combination of labels is one product of all operands, so with n operands it is n - 1
/// multiply-accumulates; better orders of contraction aren't looked for.
fn einsum(op: &Op, dims: &Dims<'_>) -> Option<u64> {
    let equation = op.string("equation")?;
    let left = equation.split("->").next()?;
    let mut labels: Vec<(char, u64)> = Vec::new();
    let mut ellipsis: Vec<u64> = Vec::new();
    let mut operands = 0u64;
    for (slot, term) in left.split(',').enumerate() {
        operands += 1;
        let shape = dims.input(slot)?;
        let plain = term.chars().filter(char::is_ascii_alphabetic).count();
        let broadcast = shape.len().checked_sub(plain)?;
        let mut axis = 0;
        let mut rest = term.trim_start();
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("...") {
                let sizes: Option<Vec<u64>> =
                    (axis..axis + broadcast).map(|a| dim(shape, a)).collect();
                merge_broadcast(&mut ellipsis, &sizes?);
                axis += broadcast;
                rest = after;
                continue;
            }
            if c.is_ascii_alphabetic() {
                merge_label(&mut labels, c, dim(shape, axis)?);
                axis += 1;
            }
            rest = rest.get(c.len_utf8()..)?;
        }
    }
    let mut sizes = ellipsis;
    sizes.extend(labels.iter().map(|l| l.1));
    sizes.push(operands.checked_sub(1)?);
    times(&sizes)
}

/// Sizes of 1 are broadcast.
fn merge_label(labels: &mut Vec<(char, u64)>, label: char, size: u64) {
    match labels.iter_mut().find(|l| l.0 == label) {
        Some(known) if known.1 == 1 => known.1 = size,
        Some(_) => {}
        None => labels.push((label, size)),
    }
}

/// Aligns at the last axis.
fn merge_broadcast(all: &mut Vec<u64>, sizes: &[u64]) {
    while all.len() < sizes.len() {
        all.insert(0, 1);
    }
    let offset = all.len() - sizes.len();
    for (known, &size) in all.iter_mut().skip(offset).zip(sizes) {
        if *known == 1 {
            *known = size;
        }
    }
}

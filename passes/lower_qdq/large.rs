//! Weights that stay bytes in the file and become floats when the engine loads the model.
//!
//! tract computes constants ahead as long as no result takes more than 4 MiB, unless it is no larger
//! than what it is made from. A larger weight would be dequantized, and packed, anew in every run. So
//! it is stored in pieces that are dequantized each by itself, and then concatenated:
//!
//! ```text
//! before   w = DequantizeLinear (w_quantized, s, z)                 1280 x 1000
//! after    a = DequantizeLinear (w_piece_0, s, z)                   1048 x 1000
//!          b = DequantizeLinear (w_piece_1, s, z)                    232 x 1000
//!          w = Concat <axis = 0> (a, b)
//! ```

use paring_ir::{Graph, NewOp, OpId, PassError, Tensor, ValueId};

/// The largest result that the engine computes ahead, in bytes.
const MOST_BYTES: usize = 4 << 20;

/// Stores large weights in pieces.
pub(super) fn in_pieces(graph: &mut Graph) -> Result<(), PassError> {
    for op in graph.topological_order()? {
        if let Some(pieces) = pieces(graph, op) {
            store(graph, op, pieces)?;
        }
    }
    Ok(())
}

/// A weight along its first axis that is longer than 1.
struct Pieces {
    axis: usize,
    /// The weight, its scales and its zero points, piece by piece.
    parts: Vec<[Option<Tensor>; 3]>,
    /// Scales and zero points that all pieces take.
    shared: [Option<ValueId>; 3],
}

/// The pieces of what a DequantizeLinear makes of a constant; `None` where it needs none.
fn pieces(graph: &Graph, op: OpId) -> Option<Pieces> {
    let o = graph.op(op);
    let stored = graph.input_tensor(op, 0)?;
    let dims = stored.dims();
    let scale = graph.input_tensor(op, 1)?;
    let size = scale.dtype().bits()? as usize / 8;
    let blocked = o.int_or("block_size", 0) != 0 || scale.rank() > 1;
    if !o.is("DequantizeLinear") || blocked || stored.len().saturating_mul(size) <= MOST_BYTES {
        return None;
    }
    let axis = dims.iter().position(|&d| d > 1)?;
    let row = stored.len() / dims[axis];
    let rows = (MOST_BYTES / size / row.max(1)).max(1);
    let by_piece = scale.len() > 1 && o.int_or("axis", 1) == axis as i64;
    let zero = o.input(2).and_then(|v| graph.tensor(v));
    let mut parts = Vec::new();
    for start in (0..dims[axis]).step_by(rows) {
        let range = start..(start + rows).min(dims[axis]);
        let along = |t: &Tensor, axis: usize| slice(t, axis, range.clone());
        let own = |t: Option<&Tensor>| match t.filter(|_| by_piece) {
            Some(t) => along(t, 0).map(Some),
            None => Some(None),
        };
        parts.push([Some(along(stored, axis)?), own(Some(scale))?, own(zero)?]);
    }
    let shared = [None, o.input(1), o.input(2)].map(|v| v.filter(|_| !by_piece));
    (parts.len() > 1).then_some(Pieces {
        axis,
        parts,
        shared,
    })
}

/// A stretch of a tensor along an axis before which all others are 1.
fn slice(t: &Tensor, axis: usize, range: std::ops::Range<usize>) -> Option<Tensor> {
    let row = t.byte_len() / t.dims().get(axis)?.max(&1);
    let bytes = t.bytes();
    let (start, end) = (range.start * row, range.end * row);
    let bytes = (end <= bytes.len()).then(|| bytes.slice(start..end))?;
    let mut dims = t.dims().to_vec();
    dims[axis] = range.len();
    Tensor::new(t.dtype(), dims, bytes).ok()
}

fn store(graph: &mut Graph, op: OpId, pieces: Pieces) -> Result<(), PassError> {
    let o = graph.op(op);
    let attrs = o.attrs().to_vec();
    let gone = || PassError::Bug("a DequantizeLinear has no input or no output".to_owned());
    let (stored, whole) = o.input(0).zip(o.output(0)).ok_or_else(gone)?;
    let name = graph.value(stored).name().clone();
    let mut made = Vec::new();
    for part in pieces.parts {
        let mut new = NewOp::new("DequantizeLinear").attrs(attrs.clone());
        let hints = ["piece", "piece_scale", "piece_zero_point"];
        for ((own, shared), hint) in part.into_iter().zip(pieces.shared).zip(hints) {
            let value = match own {
                Some(t) => {
                    let v = graph.add_constant(&format!("{name}_{hint}"), t)?;
                    graph.set_tensor_sources(v, &[stored])?;
                    Some(v)
                }
                None => shared,
            };
            new = new.inputs(value.map(Some));
        }
        let new = new.output(format!("{name}_dequantized"));
        let op = graph.add_op(new.from([op]).beside(op))?;
        made.push(graph.op(op).output(0));
    }
    let concat = NewOp::new("Concat").attr("axis", pieces.axis as i64);
    let concat = graph.add_op(concat.inputs(made).from([op]).beside(op))?;
    graph.move_output(whole, concat, 0)?;
    Ok(graph.remove_op(op)?)
}

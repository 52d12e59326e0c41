//! The axes of weights.

use std::ops::Range;

use super::knowledge::{Role, of};
use crate::op::Op;

/// Which axes of a weight are what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WeightLayout {
    /// The axis of output channels. With groups and a transposed convolution it counts the
    /// channels of one group; otherwise all.
    pub output_axis: usize,
    /// The axis of input channels, over which products are summed. With groups it counts the
    /// channels of one group for a convolution, and all for a transposed one.
    pub input_axis: usize,
    /// The axes of the kernel, which are summed over as well.
    pub kernel_axes: Range<usize>,
    /// The axes along which whole weights are stacked: batches of matrices, the directions
    /// of a recurrent network.
    pub batch_axes: Range<usize>,
    /// The number of groups: each takes its own part of the input channels and makes its own
    /// part of the output channels.
    pub groups: usize,
    /// How many blocks of the hidden size stand one after the other on the output axis:
    /// 4 for the gates of an LSTM, 3 for a GRU, else 1.
    pub gates: usize,
}

impl WeightLayout {
    fn matrix(output_axis: usize, input_axis: usize) -> WeightLayout {
        WeightLayout {
            output_axis,
            input_axis,
            kernel_axes: 0..0,
            batch_axes: 0..0,
            groups: 1,
            gates: 1,
        }
    }

    /// Whether each input channel is a group of its own, given the weight's shape.
    pub fn is_depthwise(&self, dims: &[usize]) -> bool {
        let per_group = match self.output_axis {
            0 => dims.get(self.input_axis).copied(),
            _ => dims.get(self.input_axis).map(|&c| c / self.groups.max(1)),
        };
        self.groups > 1 && per_group == Some(1)
    }
}

/// The slots that may hold a weight with a [`WeightLayout`]. For products of two matrices
/// both sides may; the usual one comes first.
pub fn weight_slots(op: &Op) -> Vec<usize> {
    if op.is("MatMul") || op.is("Gemm") || op.is("MatMulInteger") {
        return vec![1, 0];
    }
    if op.is("QLinearMatMul") {
        return vec![3, 0];
    }
    let Some(known) = of(op) else {
        return Vec::new();
    };
    let slots = [Role::Weight, Role::RecurrentWeight].map(|role| known.slot_of(role));
    slots
        .into_iter()
        .flatten()
        .filter(|&slot| weight_layout_at(op, slot, 3).is_some())
        .collect()
}

/// The axes of the weight in its usual slot (see [`super::Knowledge::weight`]), when it has
/// `rank` axes. `None` for operators without a matrix or kernel as weight, and for a rank that
/// doesn't fit.
pub fn weight_layout(op: &Op, rank: usize) -> Option<WeightLayout> {
    weight_layout_at(op, of(op)?.weight()?, rank)
}

/// As [`weight_layout`] for a chosen slot: `MatMul` and `Gemm` may have their weight on the left.
pub fn weight_layout_at(op: &Op, slot: usize, rank: usize) -> Option<WeightLayout> {
    of(op)?;
    let last = rank.checked_sub(1)?;
    let transposed = |name| op.int_or(name, 0) != 0;
    match (&**op.op_type(), slot) {
        ("Conv" | "ConvInteger" | "DeformConv", 1) | ("QLinearConv", 3) => kernel(op, rank, (0, 1)),
        ("ConvTranspose", 1) => kernel(op, rank, (1, 0)),
        ("Gemm", 1) if rank == 2 && transposed("transB") => Some(WeightLayout::matrix(0, 1)),
        ("Gemm", 1) if rank == 2 => Some(WeightLayout::matrix(1, 0)),
        ("Gemm", 0) if rank == 2 && transposed("transA") => Some(WeightLayout::matrix(1, 0)),
        ("Gemm", 0) if rank == 2 => Some(WeightLayout::matrix(0, 1)),
        ("MatMul" | "MatMulInteger", 1) | ("QLinearMatMul", 3) if rank >= 2 => Some(WeightLayout {
            batch_axes: 0..rank - 2,
            ..WeightLayout::matrix(last, last - 1)
        }),
        ("MatMul" | "MatMulInteger" | "QLinearMatMul", 0) if rank >= 2 => Some(WeightLayout {
            batch_axes: 0..rank - 2,
            ..WeightLayout::matrix(last - 1, last)
        }),
        ("LSTM", 1 | 2) => recurrent(rank, 4),
        ("GRU", 1 | 2) => recurrent(rank, 3),
        ("RNN", 1 | 2) => recurrent(rank, 1),
        _ => None,
    }
}

fn kernel(op: &Op, rank: usize, (output, input): (usize, usize)) -> Option<WeightLayout> {
    let groups = usize::try_from(op.int_or("group", 1)).ok()?;
    (rank >= 2 && groups > 0).then(|| WeightLayout {
        kernel_axes: 2..rank,
        groups,
        ..WeightLayout::matrix(output, input)
    })
}

fn recurrent(rank: usize, gates: usize) -> Option<WeightLayout> {
    (rank == 3).then(|| WeightLayout {
        batch_axes: 0..1,
        gates,
        ..WeightLayout::matrix(1, 2)
    })
}

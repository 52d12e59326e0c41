//! Zeros by magnitude alone, without data: what stays keeps its bits.

use paring_ir::{Changed, Graph, PassContext, PassError, Tensor};

use super::pattern::{Mask, Pattern, fulfils, mask};
use super::spread::for_each_magnitude;
use super::targets::Target;

/// The element type's zeros, by place in memory.
pub(super) fn zeros(tensor: &Tensor) -> Vec<bool> {
    let mut out = Vec::with_capacity(tensor.len());
    for_each_magnitude(tensor, |m| out.push(m == 0));
    out
}

/// A list by place in memory as one by place in the grid, or back.
pub(super) fn to_grid<T: Copy + Default>(target: &Target, all: &[T]) -> Vec<T> {
    let mut out = vec![T::default(); all.len()];
    for_each_place(target, |at, place| {
        if let (Some(to), Some(from)) = (out.get_mut(place), all.get(at)) {
            *to = *from;
        }
    });
    out
}

fn to_memory(target: &Target, all: &[bool]) -> Vec<bool> {
    let mut out = vec![true; all.len()];
    for_each_place(target, |at, place| {
        if let (Some(to), Some(from)) = (out.get_mut(at), all.get(place)) {
            *to = *from;
        }
    });
    out
}

/// Calls `f` with the place in memory and the place in the grid of every element.
fn for_each_place(target: &Target, mut f: impl FnMut(usize, usize)) {
    let layer = &target.layer;
    let mut place = 0;
    for block in 0..layer.blocks {
        for row in 0..layer.rows {
            for col in 0..layer.cols {
                f(layer.at(block, row, col), place);
                place += 1;
            }
        }
    }
}

/// Whether a layer has its zeros already.
pub(super) fn is_done(target: &Target, tensor: &Tensor, count: usize) -> bool {
    if target.pattern == Pattern::Unstructured {
        return tensor.count_zeros() >= count;
    }
    let zeros = to_grid(target, &zeros(tensor));
    fulfils(target.pattern, &target.grid, &zeros, count)
}

/// Sets the smallest elements of a layer's weight to zero.
pub(super) fn prune(
    graph: &mut Graph,
    target: &Target,
    count: usize,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let Some(tensor) = graph.tensor(target.layer.weight).cloned() else {
        return Ok(Changed::No);
    };
    if count == 0 || is_done(target, &tensor, count) {
        return Ok(Changed::No);
    }
    let stays = match target.pattern {
        Pattern::Unstructured => smallest_go(&tensor, count, cx)?,
        _ => {
            let mut scores = Vec::with_capacity(tensor.len());
            for_each_magnitude(&tensor, |m| scores.push(f64::from_bits(m).powi(2) as f32));
            let scores = to_grid(target, &scores);
            to_memory(target, &mask(target.pattern, &target.grid, &scores, count))
        }
    };
    apply(graph, target, &tensor, &stays, cx)
}

/// Sets elements to zero by a mask in the order of the grid.
pub(super) fn apply_mask(
    graph: &mut Graph,
    target: &Target,
    mask: &Mask,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let Some(tensor) = graph.tensor(target.layer.weight).cloned() else {
        return Ok(Changed::No);
    };
    apply(graph, target, &tensor, &to_memory(target, mask), cx)
}

fn apply(
    graph: &mut Graph,
    target: &Target,
    tensor: &Tensor,
    stays: &[bool],
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let size = tensor.byte_len() / tensor.len().max(1);
    let mut bytes = tensor.bytes().to_vec();
    let (mut at, mut zeros, mut pruned, mut largest) = (0usize, 0usize, 0usize, 0u64);
    for_each_magnitude(tensor, |m| {
        if m != 0 && !stays.get(at).copied().unwrap_or(true) {
            bytes[at * size..(at + 1) * size].fill(0);
            pruned += 1;
            largest = largest.max(m);
        }
        zeros += usize::from(m == 0);
        at += 1;
    });
    if pruned == 0 {
        return Ok(Changed::No);
    }
    let reached = (zeros + pruned) as f64 / tensor.len().max(1) as f64;
    let largest = f64::from_bits(largest);
    cx.applied(
        graph,
        target.layer.op,
        "pruned",
        format!(
            "sparsity {reached:.4} ({} of {} elements), magnitudes up to {largest:.3e}",
            zeros + pruned,
            tensor.len()
        ),
    );
    let new = Tensor::new(tensor.dtype(), tensor.dims().iter().copied(), bytes)?;
    graph.set_tensor(target.layer.weight, new, Vec::new())?;
    Ok(Changed::Yes)
}

/// The mask, by place in memory, that takes the `count` smallest elements, the first of equals
/// first. Without a copy of the weights in another type, so that large layers stay cheap.
fn smallest_go(
    tensor: &Tensor,
    count: usize,
    cx: &PassContext<'_>,
) -> Result<Vec<bool>, PassError> {
    let (threshold, mut ties) = smallest(tensor, count, cx)?;
    let mut stays = Vec::with_capacity(tensor.len());
    for_each_magnitude(tensor, |m| {
        let tied = m == threshold && ties > 0;
        ties -= usize::from(tied);
        stays.push(m >= threshold && !tied);
    });
    Ok(stays)
}

/// The magnitude up to which the `count` smallest elements go, and how many of just that
/// magnitude do.
fn smallest(
    tensor: &Tensor,
    count: usize,
    cx: &PassContext<'_>,
) -> Result<(u64, usize), PassError> {
    let mut below = 0usize;
    let mut prefix = 0u64;
    for shift in (0..u64::BITS).step_by(8).rev() {
        cx.check_cancelled()?;
        let mut bins = [0usize; 256];
        for_each_magnitude(tensor, |m| {
            if shift == 56 || m >> (shift + 8) == prefix {
                bins[(m >> shift & 255) as usize] += 1;
            }
        });
        let mut digit = 0usize;
        while digit < 255 && below + bins[digit] <= count {
            below += bins[digit];
            digit += 1;
        }
        prefix = prefix << 8 | digit as u64;
    }
    Ok((prefix, count - below.min(count)))
}

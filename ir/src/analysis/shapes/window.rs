//! Operators that slide a window over space, or resample it: convolutions, pooling, Resize,
//! RoiAlign, GridSample and their like.

use super::cx::{Cx, MAX_RANK, Outs, many, one, typed};
use super::dim::SymDim;
use super::fact::SymDims;
use super::layout::quotient;
use crate::tensor::DType;

/// The attributes that all windows have, for some number of spatial axes.
struct Window {
    kernel: Vec<SymDim>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    /// Begins, then ends.
    pads: Vec<i64>,
    auto: Auto,
}

#[derive(Clone, Copy, PartialEq)]
enum Auto {
    Explicit,
    Same,
    Valid,
}

impl Window {
    /// The attributes; the kernel is that of the attribute or else of the weight.
    fn read(cx: &Cx<'_, '_>, axes: usize, weight: Option<&SymDims>) -> Option<Window> {
        let list = |name: &str, default: i64, len: usize| match cx.ints(name) {
            Some(v) if v.len() == len => Some(v.to_vec()),
            Some(v) => cx.refuse(format!("{name} has {} entries, expected {len}", v.len())),
            None => Some(vec![default; len]),
        };
        let kernel = match (cx.ints("kernel_shape"), weight) {
            (Some(k), _) if k.len() == axes => k.iter().map(|&k| k.into()).collect(),
            (Some(k), _) => {
                return cx.refuse(format!(
                    "kernel_shape has {} entries, expected {axes}",
                    k.len()
                ));
            }
            (None, Some(w)) => w.iter().skip(2).cloned().collect(),
            (None, None) => (0..axes).map(|_| cx.fresh()).collect(),
        };
        let auto = match cx.string("auto_pad") {
            Some("SAME_UPPER" | "SAME_LOWER") => Auto::Same,
            Some("VALID") => Auto::Valid,
            _ => Auto::Explicit,
        };
        let pads = match auto {
            Auto::Explicit => list("pads", 0, axes.checked_mul(2)?)?,
            _ => vec![0; axes.checked_mul(2)?],
        };
        let window = Window {
            kernel,
            strides: list("strides", 1, axes)?,
            dilations: list("dilations", 1, axes)?,
            pads,
            auto,
        };
        if window
            .strides
            .iter()
            .chain(&window.dilations)
            .any(|&s| s <= 0)
        {
            return cx.refuse("strides and dilations must be positive".to_owned());
        }
        Some(window)
    }

    fn stride(&self, axis: usize) -> Option<SymDim> {
        self.strides.get(axis).map(|&s| s.into())
    }

    /// The sum of both pads.
    fn padding(&self, axis: usize) -> Option<i64> {
        let begin = self.pads.get(axis)?;
        let end = self.pads.get(axis.checked_add(self.strides.len())?)?;
        begin.checked_add(*end)
    }

    /// The extent that a dilated kernel covers.
    fn extent(&self, axis: usize) -> Option<SymDim> {
        let one = SymDim::from(1i64);
        let kernel = self.kernel.get(axis)?.sub(&one)?;
        kernel.mul(&(*self.dilations.get(axis)?).into())?.add(&one)
    }

    /// The number of positions of the window along an axis; `ceil` allows a last window that
    /// reaches beyond the end, as long as it starts inside the input or its pad at the begin.
    fn positions(&self, cx: &Cx<'_, '_>, size: &SymDim, axis: usize, ceil: bool) -> Option<SymDim> {
        let stride = self.stride(axis)?;
        if self.auto == Auto::Same {
            return size.div_ceil(&stride);
        }
        let room = size
            .add(&self.padding(axis)?.into())?
            .sub(&self.extent(axis)?)?;
        if room.known().is_some_and(|r| r < 0) {
            return cx.refuse(format!(
                "the window of {} is larger than axis {axis} with its pads",
                self.extent(axis)?
            ));
        }
        let one = SymDim::from(1i64);
        if !ceil {
            return room.div_floor(&stride)?.add(&one);
        }
        let count = room.div_ceil(&stride)?.add(&one)?;
        // A last window that would start in the pad at the end is left out.
        let last = count.sub(&one)?.mul(&stride)?;
        let inside = size.add(&(*self.pads.get(axis)?).into())?;
        match last.less(&inside) {
            Some(true) => Some(count),
            Some(false) => count.sub(&one),
            None if self.padding(axis)? == 0 => Some(count),
            None => None,
        }
    }
}

/// Batch and channels in front, the positions of a window behind.
fn windowed(
    cx: &Cx<'_, '_>,
    slot: usize,
    channels: SymDim,
    window: &Window,
    ceil: bool,
) -> Option<SymDims> {
    let (batch, space) = cx.dims(slot)?.split_first()?;
    let mut dims = SymDims::from_iter([batch.clone(), channels]);
    for (axis, size) in space.iter().skip(1).enumerate() {
        let positions = window.positions(cx, size, axis, ceil);
        if positions.is_none() && size.known().is_some() && window.extent(axis)?.known().is_some() {
            return None;
        }
        dims.push(cx.size(positions));
    }
    Some(dims)
}

/// The number of spatial axes of an input.
fn space(cx: &Cx<'_, '_>, slot: usize) -> Option<usize> {
    let rank = cx.rank(slot)?;
    match rank.checked_sub(2) {
        Some(n) => Some(n),
        None => cx.refuse(format!(
            "input {slot} has {rank} dimensions, expected at least 2"
        )),
    }
}

fn conv_dims(cx: &Cx<'_, '_>, x: usize, w: usize) -> Option<SymDims> {
    let axes = space(cx, x)?;
    let weight = cx.dims(w);
    if let Some(weight) = weight {
        if weight.len() != axes.checked_add(2)? {
            return cx.refuse(format!(
                "a weight of {} dimensions for an input of {}",
                weight.len(),
                axes.checked_add(2)?
            ));
        }
        let group = SymDim::from(cx.int_or("group", 1));
        let wanted = weight.get(1)?.mul(&group);
        if let (Some(c), Some(wanted)) = (cx.dim(x, 1)?.known(), wanted.and_then(|w| w.known()))
            && c != wanted
        {
            return cx.refuse(format!("{c} input channels, the weight takes {wanted}"));
        }
    }
    let channels = weight
        .and_then(|w| w.first().cloned())
        .unwrap_or_else(|| cx.fresh());
    let window = Window::read(cx, axes, weight)?;
    windowed(cx, x, channels, &window, false)
}

pub(super) fn conv(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(0), conv_dims(cx, 0, 1)))
}

pub(super) fn conv_integer(cx: &Cx<'_, '_>) -> Outs {
    one(typed(Some(DType::I32), conv_dims(cx, 0, 1)))
}

pub(super) fn qlinear_conv(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(7), conv_dims(cx, 0, 3)))
}

pub(super) fn conv_transpose(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(0), conv_transpose_dims(cx)))
}

fn conv_transpose_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let axes = space(cx, 0)?;
    let weight = cx.dims(1);
    if let Some(weight) = weight {
        if weight.len() != axes.checked_add(2)? {
            return cx.refuse(format!(
                "a weight of {} dimensions for an input of {}",
                weight.len(),
                axes.checked_add(2)?
            ));
        }
        cx.same(cx.dim(0, 1)?, weight.first()?, "input channels")?;
    }
    let channels = weight
        .and_then(|w| w.get(1)?.mul(&cx.int_or("group", 1).into()))
        .unwrap_or_else(|| cx.fresh());
    let window = Window::read(cx, axes, weight)?;
    let mut dims = SymDims::from_iter([cx.dim(0, 0)?.clone(), channels]);
    let given = cx.ints("output_shape");
    let extra = cx.ints("output_padding");
    for axis in 0..axes {
        // Some exporters give the whole shape, of which the last entries are meant.
        let given = given.and_then(|g| g.get(g.len().checked_sub(axes)?.checked_add(axis)?));
        if let Some(&size) = given {
            dims.push(cx.size(Some(size.into())));
            continue;
        }
        let size = cx.dim(0, axis.checked_add(2)?)?;
        let extra = extra.and_then(|e| e.get(axis)).copied().unwrap_or(0);
        let grown = (|| {
            let stride = window.stride(axis)?;
            if window.auto == Auto::Same {
                return size.mul(&stride);
            }
            size.sub(&1i64.into())?
                .mul(&stride)?
                .add(&extra.into())?
                .add(&window.extent(axis)?)?
                .sub(&window.padding(axis)?.into())
        })();
        dims.push(cx.size(grown));
    }
    Some(dims)
}

pub(super) fn pool(cx: &Cx<'_, '_>) -> Outs {
    let dims = pool_dims(cx);
    many([
        typed(cx.dtype(0), dims.clone()),
        typed(Some(DType::I64), dims),
    ])
}

fn pool_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let axes = space(cx, 0)?;
    let window = Window::read(cx, axes, None)?;
    let channels = cx.dim(0, 1)?.clone();
    windowed(cx, 0, channels, &window, cx.flag("ceil_mode"))
}

pub(super) fn global_pool(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).map(|d| {
        d.iter()
            .enumerate()
            .map(|(i, d)| if i < 2 { d.clone() } else { 1i64.into() })
            .collect()
    });
    one(typed(cx.dtype(0), dims))
}

pub(super) fn max_unpool(cx: &Cx<'_, '_>) -> Outs {
    let dims = (|| {
        if cx.has(2) {
            if let Some(sizes) = cx.exprs(2) {
                return Some(sizes.into_iter().map(|d| cx.size(Some(d))).collect());
            }
            return Some(cx.fresh_dims(cx.rank(0)?));
        }
        let axes = space(cx, 0)?;
        let window = Window::read(cx, axes, None)?;
        let mut dims: SymDims = cx.dims(0)?.iter().take(2).cloned().collect();
        for axis in 0..axes {
            let size = cx.dim(0, axis.checked_add(2)?)?;
            let grown = size
                .sub(&1i64.into())
                .and_then(|d| d.mul(&window.stride(axis)?))
                .and_then(|d| d.add(window.kernel.get(axis)?))
                .and_then(|d| d.sub(&window.padding(axis)?.into()));
            dims.push(cx.size(grown));
        }
        Some(dims)
    })();
    one(typed(cx.dtype(0), dims))
}

// ---- resampling ----

/// A size times a scale, rounded down, as engines compute it: in f32.
fn scaled(d: &SymDim, scale: f64) -> Option<SymDim> {
    if !(scale.is_finite() && scale > 0.0) {
        return None;
    }
    if let Some(d) = d.known() {
        let v = (d as f32 * scale as f32).floor();
        return (v < 9e15).then(|| SymDim::from(v as i64));
    }
    if scale.fract() == 0.0 && scale < 1e9 {
        return d.mul(&(scale as i64).into());
    }
    // A power of two below 1 divides exactly.
    let inverse = scale.recip();
    if inverse.fract() == 0.0 && inverse < 1e9 && (inverse as i64).count_ones() == 1 {
        return d.div_floor(&(inverse as i64).into());
    }
    None
}

fn scaled_dims(cx: &Cx<'_, '_>, dims: &SymDims, scales: &[f64]) -> Option<SymDims> {
    if scales.len() != dims.len() {
        return cx.refuse(format!(
            "{} scales for {} dimensions",
            scales.len(),
            dims.len()
        ));
    }
    let all = dims.iter().zip(scales);
    Some(all.map(|(d, &s)| cx.size(scaled(d, s))).collect())
}

pub(super) fn upsample(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| {
        let scales: Option<Vec<f64>> = if cx.opset < 9 {
            cx.floats_attr("scales")
                .map(|s| s.iter().map(|&v| f64::from(v)).collect())
        } else {
            cx.floats(1)
        };
        match scales {
            Some(s) => scaled_dims(cx, d, &s),
            None => Some(cx.fresh_dims(d.len())),
        }
    });
    one(typed(cx.dtype(0), dims))
}

pub(super) fn resize(cx: &Cx<'_, '_>) -> Outs {
    let dims = cx.dims(0).and_then(|d| resize_dims(cx, d));
    one(typed(cx.dtype(0), dims))
}

fn resize_dims(cx: &Cx<'_, '_>, from: &SymDims) -> Option<SymDims> {
    let scales_slot = if cx.opset < 11 { 1 } else { 2 };
    let axes: Vec<usize> = match cx.ints("axes") {
        Some(axes) if cx.opset >= 18 => cx.axes(axes, from.len())?,
        _ => (0..from.len()).collect(),
    };
    let picked: SymDims = axes
        .iter()
        .map(|&a| from.get(a).cloned())
        .collect::<Option<_>>()?;
    let empty = |slot| cx.dim(slot, 0).and_then(SymDim::known) == Some(0);
    let new = if cx.opset >= 11 && cx.has(3) && !empty(3) {
        match cx.exprs(3) {
            Some(sizes) => resize_to(cx, &picked, sizes)?,
            None => cx.fresh_dims(picked.len()),
        }
    } else if cx.has(scales_slot) && !empty(scales_slot) {
        match cx.floats(scales_slot) {
            Some(scales) => scaled_dims(cx, &picked, &scales)?,
            None => cx.fresh_dims(picked.len()),
        }
    } else {
        cx.fresh_dims(picked.len())
    };
    let mut dims = from.clone();
    for (axis, d) in axes.into_iter().zip(new) {
        *dims.get_mut(axis)? = d;
    }
    Some(dims)
}

/// The wanted sizes, unless the aspect ratio is kept: then all axes share the least or the
/// largest of the scales.
fn resize_to(cx: &Cx<'_, '_>, from: &SymDims, sizes: Vec<SymDim>) -> Option<SymDims> {
    if sizes.len() != from.len() {
        return cx.refuse(format!(
            "{} sizes for {} dimensions",
            sizes.len(),
            from.len()
        ));
    }
    let policy = cx.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    if policy == "stretch" {
        return Some(sizes.into_iter().map(|d| cx.size(Some(d))).collect());
    }
    let numbers = |all: &[SymDim]| -> Option<Vec<f64>> {
        all.iter().map(|d| d.known().map(|v| v as f64)).collect()
    };
    let known = numbers(from).zip(numbers(&sizes)).and_then(|(from, to)| {
        let ratios = to.iter().zip(&from).map(|(t, f)| t / f);
        let scale = match policy {
            "not_larger" => ratios.fold(f64::INFINITY, f64::min),
            _ => ratios.fold(0.0, f64::max),
        };
        let all = from.iter().map(|f| (f * scale + 0.5).floor());
        all.map(|v| (v.is_finite() && v < 9e15).then(|| SymDim::from(v as i64)))
            .collect::<Option<SymDims>>()
    });
    Some(known.unwrap_or_else(|| cx.fresh_dims(from.len())))
}

// ---- regions and grids ----

/// `[regions, channels, height, width]`.
pub(super) fn roi_align(cx: &Cx<'_, '_>) -> Outs {
    let height = SymDim::from(cx.int_or("output_height", 1));
    let width = SymDim::from(cx.int_or("output_width", 1));
    one(typed(cx.dtype(0), regions(cx, height, width)))
}

pub(super) fn max_roi_pool(cx: &Cx<'_, '_>) -> Outs {
    let dims = match cx.ints("pooled_shape") {
        Some([h, w]) => regions(cx, (*h).into(), (*w).into()),
        _ => None,
    };
    one(typed(cx.dtype(0), dims))
}

fn regions(cx: &Cx<'_, '_>, height: SymDim, width: SymDim) -> Option<SymDims> {
    let or_fresh = |d: Option<&SymDim>| d.cloned().unwrap_or_else(|| cx.fresh());
    Some(SymDims::from_iter([
        or_fresh(cx.dim(1, 0)),
        or_fresh(cx.dim(0, 1)),
        cx.size(Some(height)),
        cx.size(Some(width)),
    ]))
}

/// `[batch, channels]` of the input before the space of the grid.
pub(super) fn grid_sample(cx: &Cx<'_, '_>) -> Outs {
    let dims = (|| {
        let grid = cx.dims(1)?;
        let space = grid.get(1..grid.len().checked_sub(1)?)?;
        let mut dims: SymDims = cx.dims(0)?.iter().take(2).cloned().collect();
        dims.extend(space.iter().cloned());
        Some(dims)
    })();
    one(typed(cx.dtype(0), dims))
}

/// The grid of an image of a given size: `[batch, space.., coordinates]`.
pub(super) fn affine_grid(cx: &Cx<'_, '_>) -> Outs {
    let dims = match cx.exprs(1) {
        Some(size) if size.len() == 4 || size.len() == 5 => {
            let space = size.iter().skip(2).cloned();
            let coordinates = SymDim::from(size.len().saturating_sub(2));
            let all = size.first().cloned().into_iter().chain(space);
            let mut dims: SymDims = all.map(|d| cx.size(Some(d))).collect();
            dims.push(coordinates);
            Some(dims)
        }
        Some(size) => cx.refuse(format!("a size of {} entries, expected 4 or 5", size.len())),
        None => match cx.dim(1, 0).and_then(SymDim::known) {
            Some(n @ (4 | 5)) => {
                let space = usize::try_from(n.saturating_sub(1)).unwrap_or(0);
                let mut dims = cx.fresh_dims(space);
                dims.push(n.saturating_sub(2).into());
                Some(dims)
            }
            _ => None,
        },
    };
    one(typed(cx.dtype(0), dims))
}

/// `[batch, channels, image..]` from blocks in columns.
pub(super) fn col2im(cx: &Cx<'_, '_>) -> Outs {
    let dims = (|| {
        let axes = cx
            .dim(1, 0)?
            .known()
            .and_then(|n| usize::try_from(n).ok())?;
        let image = match cx.exprs(1) {
            Some(image) => image,
            None if axes <= MAX_RANK => cx.fresh_dims(axes).into_vec(),
            None => return None,
        };
        let dims = cx.dims_of_rank(0, 3)?;
        let channels = cx
            .exprs(2)
            .and_then(|block| quotient(cx, dims.get(1..2)?, &block));
        let mut out = SymDims::from_iter([dims.first()?.clone(), cx.size(channels)]);
        out.extend(image.into_iter().map(|d| cx.size(Some(d))));
        Some(out)
    })();
    one(typed(cx.dtype(0), dims))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    fn conv(x: &str, w: &str, op: impl Fn(NewOp) -> NewOp) -> (String, Vec<String>) {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, x);
        let w = t.input("w", DType::F32, w);
        let y = t.op1(op(NewOp::new("Conv").input(x).input(w)));
        let shapes = t.infer();
        (shapes.show(y), shapes.conflicts())
    }

    #[test]
    fn convolutions() {
        let two = |op: NewOp| {
            op.attr("strides", vec![2i64, 2])
                .attr("pads", vec![1i64, 1, 1, 1])
        };
        assert_eq!(
            conv("n,3,224,224", "32,3,3,3", two).0,
            "float[n,32,112,112]"
        );
        assert_eq!(
            conv("n,3,h,w", "32,3,3,3", two).0,
            "float[n,32,floor((h + 1)/(2)),floor((w + 1)/(2))]"
        );
        let same = |op: NewOp| {
            op.attr("auto_pad", "SAME_UPPER")
                .attr("strides", vec![2i64])
        };
        assert_eq!(conv("1,4,7", "8,4,3", same).0, "float[1,8,4]");
        let dilated = |op: NewOp| op.attr("dilations", vec![2i64]).attr("group", 4i64);
        assert_eq!(conv("1,4,t", "8,1,3", dilated).0, "float[1,8,t - 4]");
    }

    #[test]
    fn convolutions_that_do_not_fit() {
        let plain = |op: NewOp| op;
        assert!(
            conv("1,4,7", "8,3,3", plain).1[0].contains("4 input channels, the weight takes 3")
        );
        assert!(conv("1,4,7", "8,4,3,3", plain).1[0].contains("a weight of 4 dimensions"));
        assert!(conv("1,4,2", "8,4,3", plain).1[0].contains("the window of 3 is larger"));
        let zero = |op: NewOp| op.attr("strides", vec![0i64]);
        assert!(conv("1,4,7", "8,4,3", zero).1[0].contains("must be positive"));
        let short = |op: NewOp| op.attr("pads", vec![1i64]);
        assert!(conv("1,4,7", "8,4,3", short).1[0].contains("pads has 1 entries, expected 2"));
        let huge = |op: NewOp| op.attr("pads", vec![i64::MAX, i64::MAX]);
        assert_eq!(conv("1,4,7", "8,4,3", huge).0, "float?");
    }

    fn pool(x: &str, op: impl Fn(NewOp) -> NewOp) -> String {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, x);
        let y = t.op(op(NewOp::new("MaxPool").input(x)), 2);
        let shapes = t.infer();
        assert_eq!(
            shapes.show(y[0]).replace("float", ""),
            shapes.show(y[1]).replace("int64", "")
        );
        shapes.show(y[0])
    }

    #[test]
    fn pools_round_down_or_up() {
        let op = |op: NewOp| {
            op.attr("kernel_shape", vec![2i64])
                .attr("strides", vec![2i64])
        };
        let ceil = |o: NewOp| op(o).attr("ceil_mode", 1i64);
        assert_eq!(pool("1,c,7", op), "float[1,c,3]");
        assert_eq!(pool("1,c,7", ceil), "float[1,c,4]");
        assert_eq!(pool("1,c,t", ceil), "float[1,c,floor((t + 1)/(2))]");
        // A window that would start in the pad at the end is left out.
        let padded = |o: NewOp| ceil(o).attr("pads", vec![0i64, 1]);
        assert_eq!(pool("1,c,6", padded), "float[1,c,3]");
    }

    #[test]
    fn global_pools_leave_one() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,c,h,w");
        let y = t.op1(NewOp::new("GlobalAveragePool").input(x));
        assert_eq!(t.infer().show(y), "float[n,c,1,1]");
    }

    #[test]
    fn transposed_convolutions_grow() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,16,h");
        let w = t.input("w", DType::F32, "16,4,3");
        let op = || NewOp::new("ConvTranspose").input(x).input(w);
        let a = t.op1(
            op().attr("strides", vec![2i64])
                .attr("pads", vec![1i64, 1])
                .attr("output_padding", vec![1i64]),
        );
        let b = t.op1(op().attr("output_shape", vec![9i64]).attr("group", 2i64));
        let c = t.op1(
            op().attr("auto_pad", "SAME_LOWER")
                .attr("strides", vec![3i64]),
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,4,2*h]");
        assert_eq!(shapes.show(b), "float[n,8,9]");
        assert_eq!(shapes.show(c), "float[n,4,3*h]");
    }

    #[test]
    fn resize_by_scales_and_sizes() {
        let mut t = Test::new(13);
        let x = t.input("x", DType::F32, "n,3,h,5");
        let scales = t.constant(Tensor::vector(vec![1f32, 1.0, 2.0, 0.5]));
        let odd = t.constant(Tensor::vector(vec![1f32, 1.0, 1.5, 1.5]));
        let empty = t.constant(Tensor::vector(Vec::<f32>::new()));
        let sizes = t.ints(&[1, 3, 10, 20]);
        let op = |a, b| NewOp::new("Resize").inputs([Some(x), None, a, b]);
        let a = t.op1(op(Some(scales), None));
        let b = t.op1(op(Some(odd), None));
        let c = t.op1(op(Some(empty), Some(sizes)));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,3,2*h,2]");
        assert_eq!(shapes.show(b), "float[n,3,?,7]");
        assert_eq!(shapes.show(c), "float[1,3,10,20]");
    }

    #[test]
    fn resize_keeps_the_aspect_ratio() {
        let mut t = Test::new(18);
        let x = t.input("x", DType::F32, "n,3,20,40");
        let sizes = t.ints(&[30, 50]);
        let op = |policy: &str| {
            NewOp::new("Resize")
                .inputs([Some(x), None, None, Some(sizes)])
                .attr("axes", vec![2i64, 3])
                .attr("keep_aspect_ratio_policy", policy)
        };
        let a = t.op1(op("not_larger"));
        let b = t.op1(op("not_smaller"));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,3,25,50]");
        assert_eq!(shapes.show(b), "float[n,3,30,60]");
    }

    #[test]
    fn upsample_of_old_opsets() {
        let mut t = Test::new(7);
        let x = t.input("x", DType::F32, "n,3,h,5");
        let scales = crate::AttrValue::Floats(vec![1.0, 1.0, 2.0, 3.0]);
        let y = t.op1(NewOp::new("Upsample").input(x).attr("scales", scales));
        assert_eq!(t.infer().show(y), "float[n,3,2*h,15]");
        let mut t = Test::new(10);
        let x = t.input("x", DType::F32, "n,8");
        let scales = t.constant(Tensor::vector(vec![1f32, 0.5]));
        let y = t.op1(NewOp::new("Resize").input(x).input(scales));
        assert_eq!(t.infer().show(y), "float[n,4]");
    }

    #[test]
    fn regions_grids_and_columns() {
        let mut t = Test::new(20);
        let x = t.input("x", DType::F32, "n,12,l");
        let img = t.input("img", DType::F32, "n,3,h,w");
        let rois = t.input("rois", DType::F32, "r,4");
        let ids = t.input("ids", DType::I64, "r");
        let grid = t.input("grid", DType::F32, "n,8,9,2");
        let a = t.op1(
            NewOp::new("RoiAlign")
                .inputs([img, rois, ids].map(Some))
                .attr("output_height", 7i64),
        );
        let b = t.op1(NewOp::new("GridSample").input(img).input(grid));
        let (image, block) = (t.ints(&[5, 6]), t.ints(&[2, 2]));
        let c = t.op1(NewOp::new("Col2Im").inputs([x, image, block].map(Some)));
        let size = t.ints(&[4, 3, 5, 6]);
        let d = t.op1(NewOp::new("AffineGrid").input(grid).input(size));
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[r,3,7,1]");
        assert_eq!(shapes.show(b), "float[n,3,8,9]");
        assert_eq!(shapes.show(c), "float[n,3,5,6]");
        assert_eq!(shapes.show(d), "float[4,5,6,2]");
    }
}

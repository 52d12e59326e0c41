//! How each operator's axes hang together: one function for each kind of operator.
//!
//! A rule takes the axes of the inputs that it knows about and gives axes to the outputs. Inputs
//! that it leaves alone are frozen afterwards, and so is every input of an operator without a
//! rule, so a rule that forgets something costs channels and never a valid model.

use super::units::{Axis, Reason};
use super::walk::{Axes, Cx, axis_at};
use crate::schema::{self, Class};

mod control;
mod cut;
mod linear;
mod norm;
mod reshape;
mod sizes;

/// Applies the rule of an operator.
pub(super) fn apply(cx: &mut Cx<'_, '_>) {
    let Some(known) = schema::of(cx.op) else {
        return cx.finish(Reason::UnknownOperator);
    };
    // Before opset 7 an attribute said how two shapes are broadcast.
    let legacy = cx.op.attr("broadcast").is_some() || cx.op.attr("consumed_inputs").is_some();
    if legacy {
        return cx.finish(Reason::UnsupportedOperator);
    }
    match known.class {
        Class::Unary => unary(cx),
        Class::Binary | Class::Variadic | Class::Select => elementwise(cx),
        Class::Reduction => norm::reduce(cx),
        Class::AlongAxis => norm::along_axis(cx),
        Class::Norm => norm::normalize(cx),
        Class::Quantize => quantize(cx),
        Class::Pool => pool(cx),
        Class::Linear => linear::apply(cx),
        Class::Recurrent => linear::recurrent(cx),
        Class::Shape => sizes::shape(cx),
        Class::Control => control::apply(cx),
        Class::Layout | Class::Index | Class::Resample | Class::Generator => layout(cx),
        _ => {}
    }
    let shapeless = |slot| cx.has(slot) && cx.dims(slot).is_none();
    let reason = if (0..cx.op.input_count()).any(shapeless) {
        Reason::UnprovableShape
    } else {
        Reason::UnsupportedOperator
    };
    cx.finish(reason);
}

fn layout(cx: &mut Cx<'_, '_>) {
    match &**cx.op.op_type() {
        "Reshape" | "Flatten" => reshape::reshape(cx),
        "Squeeze" => reshape::squeeze(cx),
        "Unsqueeze" => reshape::unsqueeze(cx),
        "Transpose" => reshape::transpose(cx),
        "DepthToSpace" => reshape::depth_to_space(cx),
        "SpaceToDepth" => reshape::space_to_depth(cx),
        "Concat" => cut::concat(cx),
        "Split" => cut::split(cx),
        "Slice" => cut::slice(cx),
        "Pad" => cut::pad(cx),
        "Gather" => cut::gather(cx),
        "Tile" => cut::tile(cx),
        "Trilu" => trilu(cx),
        "Expand" => sizes::expand(cx),
        "ConstantOfShape" => sizes::constant_of_shape(cx),
        "Resize" | "Upsample" => sizes::resize(cx),
        _ => {}
    }
}

/// Every axis of the first input goes through; further inputs are scalars or tell a type.
fn unary(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    if cx.op.is("CastLike") {
        cx.skip(1);
    }
    for slot in 1..cx.op.input_count() {
        if cx.has(slot) && cx.dims(slot).is_some_and(<[_]>::is_empty) {
            cx.skip(slot);
        }
    }
    for slot in 0..cx.op.outputs().len() {
        cx.output(slot, axes.to_vec());
    }
}

/// Axes are aligned at the last one; those of one index stretch.
fn elementwise(cx: &mut Cx<'_, '_>) {
    if cx.op.is("SwiGLU") || cx.op.is("StringConcat") {
        return;
    }
    let mut all: Vec<Axes> = Vec::new();
    for slot in 0..cx.op.input_count() {
        if cx.has(slot) {
            match cx.input(slot) {
                Some(axes) => all.push(axes),
                // An input of unknown rank may stretch whatever the others bring.
                None => return all.iter().for_each(|axes| freeze_all(cx, axes)),
            }
        }
    }
    let axes = broadcast(cx, &all);
    cx.output(0, axes);
}

fn freeze_all(cx: &mut Cx<'_, '_>, axes: &[Axis]) {
    for axis in axes {
        cx.freeze(axis, Reason::UnprovableShape);
    }
}

/// The axes of a broadcast; axes that meet have the same indices.
fn broadcast(cx: &mut Cx<'_, '_>, all: &[Axes]) -> Vec<Axis> {
    let rank = all.iter().map(|axes| axes.len()).max().unwrap_or(0);
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        let mut joint = Axis::SINGLE;
        for axes in all {
            let Some(axis) = (i + axes.len()).checked_sub(rank).map(|at| &axes[at]) else {
                continue;
            };
            if axis.is_single() {
                continue;
            }
            if joint.is_single() {
                joint = axis.clone();
            } else {
                cx.unify(&joint, axis);
                if joint.units().is_none() {
                    joint = axis.clone();
                }
            }
        }
        out.push(joint);
    }
    out
}

/// The first two axes go through, the places don't.
fn pool(cx: &mut Cx<'_, '_>) {
    // The indices of a MaxPool count through all channels.
    if cx.op.output(1).is_some() {
        return;
    }
    let Some(axes) = cx.input(0) else { return };
    let out = spatial(cx, &axes);
    cx.output(0, out);
}

/// The axes after a window went over all but the first two.
fn spatial(cx: &mut Cx<'_, '_>, axes: &[Axis]) -> Vec<Axis> {
    let place = |(i, axis): (usize, &Axis)| match i {
        0 | 1 => axis.clone(),
        _ => cx.fix(axis, Reason::Window),
    };
    axes.iter().enumerate().map(place).collect()
}

/// Scales and zero points go along with the axis that they are for.
fn quantize(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    if !cx.op.is("DynamicQuantizeLinear") {
        let at = axis_at(cx.op.int_or("axis", 1), axes.len());
        for slot in 1..cx.op.input_count() {
            let Some(scale) = cx.input(slot) else {
                continue;
            };
            match (&*scale, at.and_then(|a| axes.get(a))) {
                ([], _) => {}
                ([one], _) if one.is_single() => {}
                ([one], Some(axis)) => cx.unify(one, axis),
                (blocks, _) => {
                    blocks
                        .iter()
                        .chain(axes.iter())
                        .for_each(|a| cx.freeze(a, Reason::UnsupportedOperator));
                }
            }
        }
    }
    cx.output(0, axes.to_vec());
    let count = cx.op.outputs().len();
    (1..count).for_each(|slot| cx.output(slot, Vec::new()));
}

/// The last two axes are places of a triangle.
fn trilu(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let first = axes.len().saturating_sub(2);
    let place = |(i, axis): (usize, &Axis)| match i < first {
        true => axis.clone(),
        false => cx.fix(axis, Reason::Window),
    };
    let out = axes.iter().enumerate().map(place).collect();
    cx.output(0, out);
}

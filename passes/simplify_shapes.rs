//! Replaces computed shapes by constants where symbolic sizes prove them.
//!
//! Exporters compute the target of a `Reshape` from the shape of its input at run time, even
//! where most of it is fixed:
//!
//! ```text
//! s = Shape (x)                        # x: float[n,t,768]
//! b = Gather <axis = 0> (s, zero)
//! ...
//! c = Concat <axis = 0> (b1, t1, twelve, sixtyfour)
//! y = Reshape (x, c)                   =>   y = Reshape (x, k)    # k = {0, 0, 12, 64}
//! ```
//!
//! | operator | becomes |
//! |---|---|
//! | `Reshape` | a constant target; or `Unsqueeze`, `Squeeze` where only axes of size 1 differ |
//! | `Expand` | a constant shape, with 1 where the input has the size already; nothing if it has all |
//! | `Slice` | a constant end where the slice reaches the end of its axis |
//! | `Resize` to sizes | constant scales, where each size is a multiple of the input's |
//! | values equal to an earlier one as expressions | users take the earlier one |
//!
//! What is written holds for every size, 0 included:
//! - 0 in a target copies the size from the same axis of the input, which is the same expression;
//!   it needs `allowzero` to be 0, which the rewritten operator says.
//! - -1 is worked out by division, so it is written only where all other sizes are surely not 0,
//!   or where the original target has it at the same place. An original target with -1 fails
//!   for the same sizes.
//! - 1 in the shape of an `Expand` leaves the axis as it is, whatever its size.
//!
//! A target that can't be written is left with the code `symbolic-shape`. Shapes that are known
//! numbers are the business of `fold-constants`, but are treated here as well.

use std::collections::HashMap;

use paring_ir::analysis::shapes::SymDim;
use paring_ir::{
    Changed, DType, Effect, Graph, GraphId, Model, NewOp, NoOptions, Op, OpId, OptionError,
    OptionSet, Pass, PassContext, PassError, PassInfo, Tensor, ValueId,
};

use crate::common::visit_ops;
use crate::edits::{add_ints, axes_op, bypass, output_name, remove_unused, replace};
use crate::facts::{Facts, axis_from_front, inserted_axes, is_positive, reshape_target};

/// The pass `simplify-shapes`.
#[derive(Debug)]
pub struct SimplifyShapes {
    options: OptionSet<NoOptions>,
}

impl Pass for SimplifyShapes {
    const INFO: PassInfo = PassInfo::new(
        "simplify-shapes",
        "Replace shapes computed at run time by constants where symbolic sizes prove them",
        Effect::Exact,
    );
    type Options = NoOptions;

    fn new(options: OptionSet<NoOptions>) -> Result<Self, OptionError> {
        Ok(SimplifyShapes { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let Some(facts) = Facts::when(model, cx, is_candidate) else {
            return Ok(Changed::No);
        };
        let mut seen = Seen::default();
        visit_ops(model, cx, &self.options, |graph, cx, op| {
            let o = graph.op(op);
            let done = match &**o.op_type() {
                _ if !o.domain().is_empty() => false,
                "Reshape" => reshape(graph, &facts, op, cx)?,
                "Expand" => expand(graph, &facts, op, cx)?,
                "Slice" => slice(graph, &facts, op, cx)?,
                "Resize" => resize(graph, &facts, op, cx)?,
                _ => false,
            };
            let mut changed = Changed::when(done);
            if graph.get_op(op).is_some() {
                changed |= Changed::when(merge_equal(graph, &facts, op, &mut seen, cx)?);
            }
            Ok(changed)
        })
    }
}

/// The input that holds a shape.
fn shape_slot(op: &Op) -> Option<usize> {
    [("Reshape", 1), ("Expand", 1), ("Slice", 2), ("Resize", 3)]
        .into_iter()
        .find(|(t, _)| op.is(t))
        .map(|(_, slot)| slot)
}

/// A shape that an operator computes.
fn is_candidate(graph: &Graph, op: OpId) -> bool {
    let op = graph.op(op);
    shape_slot(op).is_some_and(|slot| {
        op.input(slot)
            .is_some_and(|v| is_computed(graph, v) && op.output(0).is_some())
    })
}

/// Whether a value is made by an operator (other than `Constant`) or comes from outside.
fn is_computed(graph: &Graph, v: ValueId) -> bool {
    graph.tensor(v).is_none()
        && graph
            .producer(v)
            .is_none_or(|p| !graph.op(p).is("Constant"))
}

// ---- Reshape ----

fn reshape(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let (Some(source), Some(target), Some(out)) = (o.input(0), o.input(1), o.output(0)) else {
        return Ok(false);
    };
    if !is_computed(graph, target) {
        return Ok(false);
    }
    // A target of which nothing is known is not a missed chance.
    let Some(exprs) = facts.exprs(graph, target) else {
        return Ok(false);
    };
    let from = facts.dims(graph, source);
    let literal_zeros = o.int_or("allowzero", 0) != 0;
    let written = write_target(from.as_deref(), &exprs, literal_zeros);
    let to = facts.dims(graph, out);
    let hint = output_name(graph, op);
    let new = if let Some(ints) = written {
        let target = add_ints(graph, &format!("{hint}_shape"), &ints, &[target])?;
        NewOp::new("Reshape").input(source).input(target)
    } else if let (Some(from), Some(to)) = (&from, &to)
        && let Some((op_type, axes)) = moved_ones(from, to)
    {
        axes_op(graph, facts.opset, op_type, source, &axes, &hint)?
    } else if let Some(ints) = to.and_then(|to| reshape_target(from.as_deref(), &to)) {
        let target = add_ints(graph, &format!("{hint}_shape"), &ints, &[target])?;
        NewOp::new("Reshape").input(source).input(target)
    } else {
        let why = "the target can't be written with 0 and -1 for every size";
        cx.missed(graph, op, "symbolic-shape", why);
        return Ok(false);
    };
    cx.applied(
        graph,
        op,
        "constant-shape",
        "the target is known but for copied sizes",
    );
    replace(graph, op, new)?;
    Ok(true)
}

/// `Unsqueeze` or `Squeeze` with its axes, where shapes differ only by axes of size 1.
fn moved_ones(from: &[SymDim], to: &[SymDim]) -> Option<(&'static str, Vec<i64>)> {
    let put_in = inserted_axes(from, to).map(|axes| ("Unsqueeze", axes));
    put_in.or_else(|| Some(("Squeeze", inserted_axes(to, from)?)))
}

/// A computed target as a constant one with `allowzero` 0.
fn write_target(
    from: Option<&[SymDim]>,
    target: &[SymDim],
    literal_zeros: bool,
) -> Option<Vec<i64>> {
    let symbolic = target.iter().filter(|d| d.known().is_none()).count();
    let mut inferred = target.iter().any(|d| d.known() == Some(-1));
    let others_positive =
        |i: usize| (target.iter().enumerate()).all(|(j, d)| j == i || is_positive(d));
    target
        .iter()
        .enumerate()
        .map(|(i, d)| match d.known() {
            Some(0) if literal_zeros => None,
            Some(v) => (v >= -1).then_some(v),
            None if symbolic == 1 && !inferred && others_positive(i) => Some(-1),
            None if from.and_then(|f| f.get(i)) == Some(d) => Some(0),
            None => (!std::mem::replace(&mut inferred, true) && others_positive(i)).then_some(-1),
        })
        .collect()
}

// ---- Expand ----

fn expand(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let (Some(source), Some(shape)) = (o.input(0), o.input(1)) else {
        return Ok(false);
    };
    if !is_computed(graph, shape) || o.output(0).is_none() {
        return Ok(false);
    }
    let (Some(exprs), Some(from)) = (facts.exprs(graph, shape), facts.dims(graph, source)) else {
        return Ok(false);
    };
    let missing = exprs.len().saturating_sub(from.len());
    let skipped = from.len().saturating_sub(exprs.len());
    let written: Option<Vec<i64>> = exprs
        .iter()
        .enumerate()
        .map(|(i, d)| {
            // Axes are aligned from the right.
            let here = i.checked_sub(missing).and_then(|i| from.get(i + skipped));
            match d.known() {
                _ if here == Some(d) => Some(1),
                Some(v) => (v >= 0).then_some(v),
                None => None,
            }
        })
        .collect();
    let Some(ints) = written else {
        let why = "a size that is neither known nor the input's";
        cx.missed(graph, op, "symbolic-shape", why);
        return Ok(false);
    };
    if ints.len() <= from.len() && ints.iter().all(|&v| v == 1) {
        cx.applied(graph, op, "no-op", "the input has these sizes already");
        // The result may be a graph output that can't be renamed; an `Identity` spares the shape.
        bypass(graph, op, source, &[])?;
        return Ok(true);
    }
    cx.applied(
        graph,
        op,
        "constant-shape",
        "the shape is known but for the input's sizes",
    );
    let hint = format!("{}_shape", output_name(graph, op));
    let shape = add_ints(graph, &hint, &ints, &[shape])?;
    replace(graph, op, NewOp::new("Expand").input(source).input(shape))?;
    Ok(true)
}

// ---- Slice ----

fn slice(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let (Some(source), Some(ends)) = (o.input(0), o.input(2)) else {
        return Ok(false);
    };
    if facts.opset < 10 || !is_computed(graph, ends) || facts.dtype(graph, ends) != Some(DType::I64)
    {
        return Ok(false);
    }
    let (Some(exprs), Some(dims)) = (facts.exprs(graph, ends), facts.dims(graph, source)) else {
        return Ok(false);
    };
    let optional = |slot: usize, default: Vec<i64>| match o.input(slot) {
        None => Some(default),
        Some(v) => facts.ints(graph, v),
    };
    let count = exprs.len();
    let (Some(axes), Some(steps)) = (
        optional(3, (0..count as i64).collect()),
        optional(4, vec![1; count]),
    ) else {
        return Ok(false);
    };
    if axes.len() != count || steps.len() != count {
        return Ok(false);
    }
    let written: Option<Vec<i64>> = exprs
        .iter()
        .zip(&axes)
        .zip(&steps)
        .map(|((end, &axis), &step)| {
            let size = dims.get(axis_from_front(axis, dims.len())?)?;
            match end.known() {
                Some(v) => Some(v),
                // An end at or past the end of the axis is the end of the axis.
                None => (step > 0 && size.at_most(end)).then_some(i64::MAX),
            }
        })
        .collect();
    let Some(ints) = written else {
        cx.missed(graph, op, "symbolic-shape", "an end depends on sizes");
        return Ok(false);
    };
    cx.applied(
        graph,
        op,
        "constant-shape",
        "the slice reaches the end of its axes",
    );
    let hint = format!("{}_ends", output_name(graph, op));
    let new_ends = add_ints(graph, &hint, &ints, &[ends])?;
    let inputs: Vec<Option<ValueId>> = graph
        .op(op)
        .inputs()
        .enumerate()
        .map(|(slot, v)| if slot == 2 { Some(new_ends) } else { v })
        .collect();
    replace(graph, op, NewOp::new("Slice").inputs(inputs))?;
    Ok(true)
}

// ---- Resize ----

fn resize(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let (Some(source), Some(sizes)) = (o.input(0), o.input(3)) else {
        return Ok(false);
    };
    if !is_computed(graph, sizes)
        || !matches!(o.string("keep_aspect_ratio_policy"), None | Some("stretch"))
        || o.string("coordinate_transformation_mode") == Some("tf_crop_and_resize")
    {
        return Ok(false);
    }
    let (Some(exprs), Some(dims)) = (facts.exprs(graph, sizes), facts.dims(graph, source)) else {
        return Ok(false);
    };
    let axes: Vec<i64> = match o.ints("axes") {
        Some(axes) => axes.to_vec(),
        None => (0..dims.len() as i64).collect(),
    };
    let scales: Option<Vec<f32>> = (axes.len() == exprs.len())
        .then(|| {
            axes.iter()
                .zip(&exprs)
                .map(|(&a, size)| multiple(dims.get(axis_from_front(a, dims.len())?)?, size))
                .collect()
        })
        .flatten();
    let Some(scales) = scales else {
        cx.missed(
            graph,
            op,
            "symbolic-shape",
            "a size is no multiple of the input's",
        );
        return Ok(false);
    };
    cx.applied(
        graph,
        op,
        "constant-shape",
        "each size is a multiple of the input's",
    );
    let roi = o.input(1);
    let attrs: Vec<_> = (o.attrs().iter())
        .filter(|a| &*a.name != "keep_aspect_ratio_policy")
        .cloned()
        .collect();
    let hint = format!("{}_scales", output_name(graph, op));
    let scales = graph.add_constant(&hint, Tensor::vector(scales))?;
    graph.set_tensor_sources(scales, &[sizes])?;
    let new = NewOp::new("Resize")
        .input(source)
        .optional_input(roi)
        .input(scales)
        .attrs(attrs);
    replace(graph, op, new)?;
    Ok(true)
}

/// How often a size holds another one, a whole number that a float holds exactly.
fn multiple(of: &SymDim, size: &SymDim) -> Option<f32> {
    const LARGEST: i64 = 1 << 16;
    if of == size {
        return Some(1.0);
    }
    let k = size.div_exact(of)?.known()?;
    ((1..=LARGEST).contains(&k) && of.mul(&SymDim::from(k))? == *size).then_some(k as f32)
}

// ---- equal values ----

/// The first value of each graph, element type, shape and contents.
type Seen = HashMap<(GraphId, DType, Vec<SymDim>, Vec<SymDim>), ValueId>;

/// Lets users of what `op` makes take an earlier value of the same contents.
fn merge_equal(
    graph: &mut Graph,
    facts: &Facts,
    op: OpId,
    seen: &mut Seen,
    cx: &mut PassContext<'_>,
) -> Result<bool, PassError> {
    let o = graph.op(op);
    let ([Some(out)], false) = (o.outputs(), o.has_subgraphs()) else {
        return Ok(false);
    };
    let out = *out;
    let Some(dtype) = facts.dtype(graph, out).filter(|d| d.is_integer()) else {
        return Ok(false);
    };
    let (Some(exprs), Some(dims)) = (facts.exprs(graph, out), facts.dims(graph, out)) else {
        return Ok(false);
    };
    if exprs.iter().all(|d| d.known().is_some()) {
        return Ok(false);
    }
    let entry = seen.entry((graph.id(), dtype, dims, exprs)).or_insert(out);
    if graph.get_value(*entry).is_none() {
        *entry = out;
    }
    let first = *entry;
    if first == out
        || graph.value(out).is_unused()
        || graph.value(out).is_output()
        || !graph.can_replace(out, first)
    {
        return Ok(false);
    }
    let message = format!("equal to \"{}\"", graph.value(first).name());
    cx.applied(graph, op, "equal-sizes", message);
    graph.replace_value(out, first)?;
    remove_unused(graph, op)?;
    Ok(true)
}

#[cfg(test)]
#[path = "simplify_shapes/tests.rs"]
mod tests;

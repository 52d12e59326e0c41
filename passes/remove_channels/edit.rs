//! Takes channels out of a model: constants are cut, and numbers that say how large axes are
//! follow.

use std::collections::HashMap;
use std::sync::Arc;

use paring_ir::analysis::channels::{AxisChannels, Channels, Entry, Place, Removed, Rewrite};
use paring_ir::analysis::shapes::refresh_declared;
use paring_ir::analysis::{ShapeOptions, Shapes};
use paring_ir::{
    AttrValue, DType, Dim, Graph, Kept, Model, NewOp, OpId, PassError, Tensor, ValueId, ValueType,
};

/// Where a value stands outermost, for those that nested graphs capture.
type Roots = HashMap<ValueId, ValueId>;

/// The model without these channels. `None` when the shapes that it has then are not those that
/// it should have, which names the first value where that shows.
pub(super) fn remove(
    model: &Model,
    channels: &Channels,
    removed: &Removed,
    shapes: &Shapes,
) -> Result<Result<Model, String>, PassError> {
    let mut edited = model.clone();
    let roots = roots(model);
    let mut by_graph: HashMap<_, Vec<&Rewrite>> = HashMap::new();
    for rewrite in channels.rewrites() {
        by_graph.entry(rewrite.graph).or_default().push(rewrite);
    }
    edited.edit_graphs(&mut |graph| {
        cut_constants(graph, channels, removed)?;
        restate_types(graph, channels, removed, &roots)?;
        for rewrite in by_graph.remove(&graph.id()).unwrap_or_default() {
            rewrite_numbers(graph, rewrite, removed, (shapes, &roots))?;
        }
        Ok::<(), PassError>(())
    })?;
    let found = Shapes::infer(&edited, &ShapeOptions::default());
    if let Some(wrong) = mismatch(&edited, channels, removed, &found) {
        return Ok(Err(wrong));
    }
    refresh_declared(&mut edited, &found)?;
    Ok(Ok(edited))
}

fn roots(model: &Model) -> Roots {
    let mut roots = Roots::new();
    model.for_each_graph(&mut |graph| {
        for v in graph.outer_values() {
            if let Some(outer) = graph.value(v).captured_from() {
                let root = roots.get(&outer).copied().unwrap_or(outer);
                roots.insert(v, root);
            }
        }
    });
    roots
}

/// The first value whose inferred shape is not what is left of its axes.
fn mismatch(
    model: &Model,
    channels: &Channels,
    removed: &Removed,
    shapes: &Shapes,
) -> Option<String> {
    let mut wrong = None;
    model.for_each_graph(&mut |graph| {
        for v in graph.values() {
            for (axis, along) in channels.axes(v).iter().enumerate() {
                let Some(along) = along else { continue };
                let expected = along.count(removed);
                if wrong.is_none() && expected != along.len() {
                    let found = shapes.dims(v).and_then(|d| d.get(axis)?.known());
                    if found != i64::try_from(expected).ok() {
                        wrong = Some(graph.value(v).name().to_string());
                    }
                }
            }
        }
    });
    wrong.or_else(|| shapes.conflicts().iter().find_map(operator_conflict))
}

fn operator_conflict(conflict: &paring_ir::analysis::shapes::Conflict) -> Option<String> {
    use paring_ir::analysis::shapes::ConflictKind;
    match &conflict.kind {
        ConflictKind::Operator { .. } => Some(conflict.place.clone()),
        ConflictKind::Declared { .. } => None,
    }
}

fn cut_constants(
    graph: &mut Graph,
    channels: &Channels,
    removed: &Removed,
) -> Result<(), PassError> {
    let constants: Vec<ValueId> = graph.initializers().collect();
    for v in constants {
        let mut cuts: Vec<(usize, Vec<u32>)> = Vec::new();
        for (axis, along) in channels.axes(v).iter().enumerate() {
            let Some(along) = along else { continue };
            let kept = along.kept(removed);
            if kept.len() != along.len() {
                cuts.push((axis, kept));
            }
        }
        let Some(tensor) = graph.tensor(v).filter(|_| !cuts.is_empty()) else {
            continue;
        };
        let mut tensor = tensor.clone();
        for (axis, kept) in &cuts {
            tensor = gather(&tensor, *axis, kept)?;
        }
        let kept = kept_of_original(graph, v, cuts);
        graph.set_tensor(v, tensor, Vec::new())?;
        if let Some(origin) = graph.value(v).provenance().cloned() {
            let mut origin = (*origin).clone();
            origin.kept = kept;
            graph.restore_value_provenance(v, Arc::new(origin))?;
        }
    }
    Ok(())
}

/// What is kept of the tensor that was read, when some of it went before.
fn kept_of_original(graph: &Graph, v: ValueId, cuts: Vec<(usize, Vec<u32>)>) -> Vec<Kept> {
    let mut all: Vec<Kept> = match graph.value(v).provenance() {
        Some(origin) => origin.kept.clone(),
        None => Vec::new(),
    };
    for (axis, kept) in cuts {
        let axis = u32::try_from(axis).unwrap_or(u32::MAX);
        match all.iter_mut().find(|k| k.axis == axis) {
            Some(old) => {
                let through = kept.iter().filter_map(|&i| old.indices.get(i as usize));
                old.indices = through.copied().collect();
            }
            None => all.push(Kept {
                axis,
                indices: kept.into(),
            }),
        }
    }
    all
}

/// The elements of a tensor at these indices along an axis.
pub(super) fn gather(tensor: &Tensor, axis: usize, kept: &[u32]) -> Result<Tensor, PassError> {
    let dims = tensor.dims();
    let bytes = tensor.dtype().bits().filter(|b| b % 8 == 0).map(|b| b / 8);
    let (Some(&size), Some(width)) = (dims.get(axis), bytes) else {
        return Err(PassError::Bug("a tensor can't be cut there".to_owned()));
    };
    let inner: usize = dims[axis + 1..].iter().product::<usize>() * width as usize;
    let row = size * inner;
    let outer = tensor.bytes().len().checked_div(row).unwrap_or(0);
    let mut out = Vec::with_capacity(outer * kept.len() * inner);
    for o in 0..outer {
        for &k in kept {
            let start = o * row + k as usize * inner;
            let from = tensor.bytes().get(start..start + inner);
            out.extend_from_slice(from.unwrap_or_default());
        }
    }
    let mut new_dims = dims.to_vec();
    new_dims[axis] = kept.len();
    Ok(Tensor::new(tensor.dtype(), new_dims, out)?)
}

/// Declared types say the new sizes.
fn restate_types(
    graph: &mut Graph,
    channels: &Channels,
    removed: &Removed,
    roots: &Roots,
) -> Result<(), PassError> {
    let values: Vec<ValueId> = graph.values().collect();
    for v in values {
        let root = roots.get(&v).copied().unwrap_or(v);
        let axes = channels.axes(root);
        let Some(ValueType::Tensor {
            dtype,
            shape: Some(shape),
        }) = graph.value(v).declared_type().filter(|_| !axes.is_empty())
        else {
            continue;
        };
        let (dtype, mut shape) = (*dtype, shape.clone());
        let mut changed = false;
        for (dim, along) in shape.iter_mut().zip(axes) {
            let Some(along) = along else { continue };
            let left = along.count(removed);
            if left != along.len() {
                *dim = Dim::Value(i64::try_from(left).unwrap_or(i64::MAX));
                changed = true;
            }
        }
        if changed {
            let shape = Some(shape);
            graph.set_type(v, Some(ValueType::Tensor { dtype, shape }))?;
        }
    }
    Ok(())
}

fn touched(along: &AxisChannels, removed: &Removed) -> bool {
    along.iter().flatten().any(|c| removed.contains(c))
}

/// The new integers at a place: `None` for one that goes, `Some(None)` for one that stays as it
/// is whatever that is.
fn renumbered(rewrite: &Rewrite, old: Option<&[i64]>, removed: &Removed) -> Vec<Option<i64>> {
    let count = |along: &AxisChannels| i64::try_from(along.count(removed)).unwrap_or(i64::MAX);
    let mut out = Vec::new();
    for (i, entry) in rewrite.entries.iter().enumerate() {
        let old = old.and_then(|o| o.get(i)).copied();
        match entry {
            Entry::Keep => out.push(old),
            // What stands there says the same, unless it copies or is computed.
            Entry::Literal(v) => out.push(old.filter(|&o| o != 0).or(Some(*v))),
            // What a Reshape works out for itself is worked out anew.
            Entry::Count(_) if old == Some(-1) => out.push(old),
            Entry::Count(along) if !touched(along, removed) && old.is_some_and(|o| o != 0) => {
                out.push(old);
            }
            Entry::Count(along) => out.push(Some(count(along))),
            Entry::Position(_, Some(own)) if removed.contains(*own) => {}
            Entry::Position(before, _) => out.push(Some(count(before))),
        }
    }
    out
}

/// Writes the integers of an operator anew, where channels that they count go.
fn rewrite_numbers(
    graph: &mut Graph,
    rewrite: &Rewrite,
    removed: &Removed,
    (shapes, roots): (&Shapes, &Roots),
) -> Result<(), PassError> {
    let entries = rewrite.entries.iter().any(|e| match e {
        Entry::Count(along) => touched(along, removed),
        Entry::Position(before, own) => {
            touched(before, removed) || own.is_some_and(|c| removed.contains(c))
        }
        Entry::Keep | Entry::Literal(_) => false,
    });
    let watched = rewrite.watched.iter().any(|a| touched(a, removed));
    if !entries && !watched && !rewrite.computed {
        return Ok(());
    }
    match rewrite.place {
        Place::Attr(name) => rewrite_attr(graph, rewrite, name, removed),
        Place::Input(slot) => {
            let Some(v) = graph.op(rewrite.op).input(slot) else {
                return add_input(graph, rewrite, slot, removed);
            };
            let root = roots.get(&v).copied().unwrap_or(v);
            let fact = shapes.fact(root);
            let known = match graph.tensor(v) {
                Some(t) => t.to_i64s(),
                None => fact.and_then(|f| f.known_i64s()),
            };
            let new = renumbered(rewrite, known.as_deref(), removed);
            let all: Option<Vec<i64>> = new.iter().copied().collect();
            if all.is_some() && all == known && graph.tensor(v).is_some() {
                return Ok(());
            }
            let dtype = match fact.and_then(|f| f.dtype) {
                Some(DType::I32) => DType::I32,
                _ => DType::I64,
            };
            let rank = fact.and_then(|f| f.rank()).unwrap_or(1);
            match all {
                Some(all) => replace_input(graph, rewrite.op, slot, integers(dtype, rank, &all)?),
                None => patch_input(graph, rewrite.op, slot, &new),
            }
        }
    }
}

fn integers(dtype: DType, rank: usize, all: &[i64]) -> Result<Tensor, PassError> {
    let dims: Vec<usize> = match rank {
        0 => Vec::new(),
        _ => vec![all.len()],
    };
    if dtype == DType::I32 {
        let narrow = all.iter().map(|&v| i32::try_from(v));
        let narrow = narrow.collect::<Result<Vec<i32>, _>>();
        let narrow = narrow.map_err(|_| PassError::Bug("a size exceeds 32 bits".to_owned()))?;
        return Ok(Tensor::from_vec(dims, narrow)?);
    }
    Ok(Tensor::from_vec(dims, all.to_vec())?)
}

fn rewrite_attr(
    graph: &mut Graph,
    rewrite: &Rewrite,
    name: &str,
    removed: &Removed,
) -> Result<(), PassError> {
    let op = graph.op(rewrite.op);
    let single = op.int(name);
    let old = op
        .ints(name)
        .map(<[i64]>::to_vec)
        .or(single.map(|v| vec![v]));
    let new = renumbered(rewrite, old.as_deref(), removed);
    let Some(all) = new.into_iter().collect::<Option<Vec<i64>>>() else {
        return Err(PassError::Bug(format!("{name} is not known")));
    };
    if old.as_ref() == Some(&all) {
        return Ok(());
    }
    let value = match (single, all.as_slice()) {
        (Some(_), &[one]) => AttrValue::Int(one),
        _ => AttrValue::Ints(all),
    };
    Ok(graph.set_attr(rewrite.op, name, value)?)
}

/// Equal parts become parts of written sizes.
fn add_input(
    graph: &mut Graph,
    rewrite: &Rewrite,
    slot: usize,
    removed: &Removed,
) -> Result<(), PassError> {
    let new = renumbered(rewrite, None, removed);
    let Some(all) = new.into_iter().collect::<Option<Vec<i64>>>() else {
        return Ok(());
    };
    let equal = all.windows(2).all(|w| w[0] == w[1]);
    if equal && graph.op(rewrite.op).is("Split") {
        return Ok(());
    }
    let hint = format!("{}_sizes", graph.op_label(rewrite.op));
    let v = graph.add_constant(&hint, integers(DType::I64, 1, &all)?)?;
    graph.set_input(rewrite.op, slot, Some(v))?;
    Ok(graph.remove_attr(rewrite.op, "num_outputs")?)
}

fn replace_input(
    graph: &mut Graph,
    op: OpId,
    slot: usize,
    tensor: Tensor,
) -> Result<(), PassError> {
    let Some(old) = graph.op(op).input(slot) else {
        return Ok(());
    };
    let value = graph.value(old);
    if value.as_tensor().is_some() && value.has_single_use() {
        return Ok(graph.set_tensor(old, tensor, Vec::new())?);
    }
    let hint = value.name().clone();
    let v = graph.add_constant(&hint, tensor)?;
    graph.set_tensor_sources(v, &[old])?;
    Ok(graph.set_input(op, slot, Some(v))?)
}

/// Some integers are computed when the model runs: the others are put over them.
fn patch_input(
    graph: &mut Graph,
    op: OpId,
    slot: usize,
    new: &[Option<i64>],
) -> Result<(), PassError> {
    let Some(old) = graph
        .op(op)
        .input(slot)
        .filter(|_| new.iter().any(Option::is_some))
    else {
        return Ok(());
    };
    let mask: Vec<u8> = new.iter().map(|n| u8::from(n.is_some())).collect();
    let mask = Tensor::new(DType::Bool, [mask.len()], mask)?;
    let numbers: Vec<i64> = new.iter().map(|n| n.unwrap_or(0)).collect();
    let name = graph.value(old).name().clone();
    let mask = graph.add_constant(&format!("{name}_known"), mask)?;
    let numbers = graph.add_constant(&format!("{name}_sizes"), Tensor::vector(numbers))?;
    let choose = NewOp::new("Where").input(mask).input(numbers).input(old);
    let choose = graph.add_op(
        choose
            .output(format!("{name}_shrunk"))
            .from([op])
            .beside(op),
    )?;
    let out = graph.op(choose).output(0);
    Ok(graph.set_input(op, slot, out)?)
}

//! Sizes as data: where they come from, and the operators that take shapes.

use std::collections::HashSet;

use super::super::units::{Axis, Reason};
use super::super::walk::{Cx, Number, Place, axis_at, size_of};
use crate::graph::{Graph, OpId, Port, ValueId};
use crate::schema::{self, Class, Role};
use crate::tensor::DType;

/// A size may go into shapes, where it is rewritten. One that is used as a number holds its axis.
pub(super) fn shape(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    if cx.op.is("Size") {
        axes.iter().for_each(|a| cx.freeze(a, Reason::SizeAsData));
        return;
    }
    let Some(out) = cx.op.output(0) else { return };
    let first = axis_at(cx.op.int_or("start", 0), axes.len()).unwrap_or(0);
    for (i, axis) in axes.iter().enumerate() {
        if axis.units().is_none() {
            continue;
        }
        let mut trace = Trace {
            cx,
            seen: HashSet::new(),
            shapes: Vec::new(),
        };
        let position = i.checked_sub(first);
        let escapes = position.is_some_and(|p| trace.escapes(out, Some(p)));
        let shapes = std::mem::take(&mut trace.shapes);
        if escapes {
            cx.freeze(axis, Reason::SizeAsData);
        } else {
            cx.walk.computed.extend(shapes);
        }
    }
    cx.settle();
}

/// Follows one size through the arithmetic of shapes.
struct Trace<'c, 'a, 'm> {
    cx: &'c Cx<'a, 'm>,
    seen: HashSet<ValueId>,
    /// Operators that take the size as a part of a shape.
    shapes: Vec<OpId>,
}

impl Trace<'_, '_, '_> {
    /// Whether the size is used otherwise than in shapes. `at` is its position in the vector
    /// where that is known.
    fn escapes(&mut self, v: ValueId, at: Option<usize>) -> bool {
        if !self.seen.insert(v) {
            return false;
        }
        let graph = self.cx.graph;
        if v.graph() != graph.id() || graph.value(v).is_output() {
            return true;
        }
        let uses = graph.sorted_uses(v);
        uses.into_iter().any(|u| match u.port {
            Port::Input(slot) => self.taken(graph, u.op, slot as usize, at),
            _ => true,
        })
    }

    fn taken(&mut self, graph: &Graph, id: OpId, slot: usize, at: Option<usize>) -> bool {
        let op = graph.op(id);
        let Some(known) = schema::of(op) else {
            return true;
        };
        if known.role(slot) == Role::Shape {
            let rewritten = [
                "Reshape",
                "Expand",
                "ConstantOfShape",
                "Resize",
                "Slice",
                "Split",
            ];
            if rewritten.iter().any(|t| op.is(t)) {
                self.shapes.push(id);
                return false;
            }
            return true;
        }
        let integer = |v: ValueId| {
            let dtype = self.cx.walk.shapes.dtype(v);
            dtype.is_none_or(|d| d.is_integer() || d == DType::Bool)
        };
        let Some(out) = op.output(0).filter(|&o| integer(o)) else {
            return true;
        };
        let picked = match &**op.op_type() {
            "Gather" if slot == 0 => self.ints(graph, op.input(1)),
            _ => None,
        };
        if let (Some(at), Some(picked)) = (at, &picked) {
            let length = self.length(graph, op.input(0));
            let wraps = |i: &i64| match (*i < 0, length) {
                (true, Some(n)) => axis_at(*i, n),
                _ => usize::try_from(*i).ok(),
            };
            let mut positions = picked.iter().map(wraps);
            return match positions.position(|p| p.is_none_or(|p| p == at)) {
                Some(p) => self.escapes(out, Some(p)),
                None => false,
            };
        }
        let passes = matches!(
            known.class,
            Class::Unary | Class::Binary | Class::Variadic | Class::Select
        ) || [
            "Gather",
            "Slice",
            "Concat",
            "Unsqueeze",
            "Squeeze",
            "Reshape",
        ]
        .iter()
        .any(|t| op.is(t));
        let stays = ["Unsqueeze", "Squeeze", "Identity", "Cast"]
            .iter()
            .any(|t| op.is(t));
        !passes || slot > 0 && op.is("Gather") || self.escapes(out, at.filter(|_| stays))
    }

    fn ints(&self, graph: &Graph, v: Option<ValueId>) -> Option<Vec<i64>> {
        let v = v?;
        match graph.tensor(v) {
            Some(t) => t.to_i64s(),
            None => self.cx.walk.shapes.fact(v)?.known_i64s(),
        }
    }

    fn length(&self, graph: &Graph, v: Option<ValueId>) -> Option<usize> {
        let v = v.filter(|&v| graph.get_value(v).is_some())?;
        let dims = self.cx.walk.shapes.known_dims(v)?;
        dims.first().copied()
    }
}

/// What was one index stretches to new ones, which may be fewer.
pub(super) fn expand(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    cx.skip(1);
    let Some(rank) = cx.out_dims(0).map(<[_]>::len) else {
        return axes
            .iter()
            .for_each(|a| cx.freeze(a, Reason::UnprovableShape));
    };
    let mut out = Vec::with_capacity(rank);
    for i in 0..rank {
        let size = cx.out_size(0, i);
        let own = (i + axes.len())
            .checked_sub(rank)
            .map(|at| axes[at].clone());
        out.push(match (own, size) {
            (Some(axis), _) if !axis.is_single() => axis,
            (_, Some(n)) => cx.walk.fresh(n),
            (_, None) => cx.fixed(Reason::UnprovableShape),
        });
    }
    let entries = match cx.dims(1) {
        Some([n]) => super::super::walk::number(n),
        _ => None,
    };
    let Some(entries) = entries.filter(|&n| n <= rank) else {
        return out
            .iter()
            .for_each(|a| cx.freeze(a, Reason::UnprovableShape));
    };
    let all: Vec<Number> = (rank - entries..rank)
        .map(|i| size_of(&out[i], cx.out_size(0, i)))
        .collect();
    let watched: Vec<&Axis> = axes.iter().chain(&out).collect();
    cx.numbers(Place::Input(1), all, &watched);
    cx.output(0, out);
}

/// A tensor of one value, of any size.
pub(super) fn constant_of_shape(cx: &mut Cx<'_, '_>) {
    cx.skip(0);
    let Some(sizes) = cx
        .out_dims(0)
        .map(|d| d.iter().map(super::super::walk::number).collect::<Vec<_>>())
    else {
        return;
    };
    let out: Vec<Axis> = sizes
        .iter()
        .map(|size| match size {
            Some(n) => cx.walk.fresh(*n),
            None => cx.fixed(Reason::UnprovableShape),
        })
        .collect();
    let all = out
        .iter()
        .zip(&sizes)
        .map(|(a, n)| size_of(a, *n))
        .collect();
    let watched: Vec<&Axis> = out.iter().collect();
    cx.numbers(Place::Input(0), all, &watched);
    cx.output(0, out);
}

/// Axes whose size stays go through, the others are places.
pub(super) fn resize(cx: &mut Cx<'_, '_>) {
    let Some(axes) = cx.input(0) else { return };
    let stretch = cx
        .op
        .string("keep_aspect_ratio_policy")
        .unwrap_or("stretch")
        == "stretch";
    (1..cx.op.input_count()).for_each(|slot| cx.skip(slot));
    let mut out = Vec::with_capacity(axes.len());
    for (i, axis) in axes.iter().enumerate() {
        let stays = axis.units().is_some() && cx.size(0, i) == cx.out_size(0, i);
        out.push(match stays && stretch {
            true => axis.clone(),
            false => cx.fix(axis, Reason::Window),
        });
    }
    if cx.has(3) && cx.op.is("Resize") {
        let listed: Vec<usize> = match cx.op.ints("axes") {
            Some(list) => list
                .iter()
                .filter_map(|&a| axis_at(a, axes.len()))
                .collect(),
            None => (0..axes.len()).collect(),
        };
        let all = listed
            .iter()
            .map(|&i| match &out[i] {
                Axis::Units(units) => Number::Count(units.clone()),
                Axis::Fixed(_) => Number::Keep,
            })
            .collect();
        let watched: Vec<&Axis> = out.iter().collect();
        cx.numbers(Place::Input(3), all, &watched);
    }
    cx.output(0, out);
}

//! What the passes that fold and fuse know about values while they edit: shapes inferred once,
//! before the first edit, when there is a candidate at all.

use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::{DType, Graph, Model, OpId, PassContext, PassError, ValueId};

/// Before opset 7 binary operators broadcast by attributes; the passes leave such models alone.
pub(crate) const OLDEST_OPSET: i64 = 7;

/// The inferred shapes of a model. Rewrites keep the values that survive, so what was inferred
/// of a value stays true; of values added since nothing is known but constants.
pub(crate) struct Known {
    shapes: Arc<Shapes>,
    /// The version of the standard operators.
    pub(crate) opset: i64,
}

impl Known {
    /// Infers shapes, when some operator of some graph is a candidate.
    pub(crate) fn when(
        model: &Model,
        cx: &mut PassContext<'_>,
        candidate: impl Fn(&Graph, OpId) -> bool,
    ) -> Option<Known> {
        let opset = model.opset();
        if opset < OLDEST_OPSET {
            return None;
        }
        let mut found = false;
        model.for_each_graph(&mut |g| {
            found = found || g.ops().any(|op| candidate(g, op));
        });
        found.then(|| Known {
            shapes: cx.analysis::<Shapes>(model),
            opset,
        })
    }

    /// The number of dimensions of a value.
    pub(crate) fn rank(&self, graph: &Graph, v: ValueId) -> Option<usize> {
        match graph.tensor(v) {
            Some(t) => Some(t.rank()),
            None => self.shapes.rank(v),
        }
    }

    /// One dimension of a value, when it is a fixed number.
    pub(crate) fn dim(&self, graph: &Graph, v: ValueId, axis: usize) -> Option<usize> {
        match graph.tensor(v) {
            Some(t) => t.dims().get(axis).copied(),
            None => usize::try_from(self.shapes.dims(v)?.get(axis)?.known()?).ok(),
        }
    }

    /// The element type of a value.
    pub(crate) fn dtype(&self, graph: &Graph, v: ValueId) -> Option<DType> {
        match graph.tensor(v) {
            Some(t) => Some(t.dtype()),
            None => self
                .shapes
                .dtype(v)
                .or_else(|| graph.value(v).declared_type()?.dtype()),
        }
    }

    /// Whether an elementwise operator with a constant of `constant_rank` dimensions, all of
    /// them 1, gives `v` its own shape back: the constant must not add dimensions.
    pub(crate) fn keeps_rank(&self, graph: &Graph, v: ValueId, constant_rank: usize) -> bool {
        constant_rank == 0 || self.rank(graph, v).is_some_and(|r| r >= constant_rank)
    }
}

/// Calls `f` for each operator in topological order, unless an earlier call removed it.
pub(crate) fn sweep(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    mut f: impl FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<(), PassError>,
) -> Result<(), PassError> {
    for (i, op) in graph.topological_order()?.into_iter().enumerate() {
        if i % 1024 == 0 {
            cx.check_cancelled()?;
        }
        if graph.get_op(op).is_some() {
            f(graph, cx, op)?;
        }
    }
    Ok(())
}

/// Like [`sweep`], in the opposite order: of patterns that contain each other the longest is seen
/// first.
pub(crate) fn sweep_back(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    mut f: impl FnMut(&mut Graph, &mut PassContext<'_>, OpId) -> Result<(), PassError>,
) -> Result<(), PassError> {
    for (i, op) in graph.topological_order()?.into_iter().rev().enumerate() {
        if i % 1024 == 0 {
            cx.check_cancelled()?;
        }
        if graph.get_op(op).is_some() {
            f(graph, cx, op)?;
        }
    }
    Ok(())
}

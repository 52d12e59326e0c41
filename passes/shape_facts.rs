//! What the layout passes share: facts about values, axes as attributes or inputs, shapes as
//! targets of `Reshape`, and the removal of what a rewrite leaves unused.

use std::sync::Arc;

use paring_ir::analysis::Shapes;
use paring_ir::analysis::shapes::SymDim;
use paring_ir::{
    Changed, Graph, GraphError, Model, NewOp, Op, OpId, PassContext, PassError, Tensor, ValueId,
};

/// The oldest opset that the layout passes read: before 7, operators broadcast otherwise.
pub(crate) const OLDEST_OPSET: i64 = 7;

/// Longer lists of integers are not looked at.
const MAX_INTS: usize = 4096;

/// Facts about the values of a model before a pass edits it. Rewrites keep every value that
/// survives equal to what it was, so a fact holds for as long as its value is there; values that
/// the pass adds have no facts.
pub(crate) struct Facts {
    shapes: Arc<Shapes>,
    /// The version of the standard operators.
    pub(crate) opset: i64,
}

impl Facts {
    /// The facts, when some operator of any graph is a candidate; the analysis is not run otherwise.
    pub(crate) fn when(
        model: &Model,
        cx: &mut PassContext<'_>,
        candidate: impl Fn(&Graph, OpId, &Op) -> bool,
    ) -> Option<Facts> {
        let opset = model.opset();
        if opset < OLDEST_OPSET {
            return None;
        }
        let mut found = false;
        model.for_each_graph(&mut |g| {
            found = found || g.ops().any(|op| candidate(g, op, g.op(op)));
        });
        found.then(|| Facts {
            shapes: cx.analysis::<Shapes>(model),
            opset,
        })
    }

    /// The dimensions of a value, when their number is known.
    pub(crate) fn dims(&self, graph: &Graph, v: ValueId) -> Option<Vec<SymDim>> {
        match graph.tensor(v) {
            Some(t) => Some(t.dims().iter().map(|&d| SymDim::from(d)).collect()),
            None => self.shapes.dims(v).map(<[SymDim]>::to_vec),
        }
    }

    /// The number of dimensions.
    pub(crate) fn rank(&self, graph: &Graph, v: ValueId) -> Option<usize> {
        match graph.tensor(v) {
            Some(t) => Some(t.rank()),
            None => self.shapes.rank(v),
        }
    }

    /// The element type.
    pub(crate) fn dtype(&self, graph: &Graph, v: ValueId) -> Option<paring_ir::DType> {
        match graph.tensor(v) {
            Some(t) => Some(t.dtype()),
            None => self.shapes.dtype(v),
        }
    }

    /// The elements of a value that are known integers, whether it is a constant or computed.
    pub(crate) fn ints(&self, graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
        match graph.tensor(v) {
            Some(t) if t.dtype().is_integer() && t.len() <= MAX_INTS => t.to_i64s(),
            Some(_) => None,
            None => self.shapes.fact(v)?.known_i64s(),
        }
    }

    /// The elements of a value as expressions over sizes.
    pub(crate) fn exprs(&self, graph: &Graph, v: ValueId) -> Option<Vec<SymDim>> {
        if let Some(known) = self.ints(graph, v) {
            return Some(known.into_iter().map(SymDim::from).collect());
        }
        self.shapes.fact(v)?.contents.as_ref()?.exprs()
    }

    /// The integers in an input slot.
    pub(crate) fn input_ints(&self, graph: &Graph, op: OpId, slot: usize) -> Option<Vec<i64>> {
        self.ints(graph, graph.get_op(op)?.input(slot)?)
    }

    /// The axes of an operator that has them as an attribute in old opsets and as an input in new
    /// ones; `Ok(None)` when it names none, `Err` when they are not known.
    pub(crate) fn axes(
        &self,
        graph: &Graph,
        op: OpId,
        slot: usize,
    ) -> Result<Option<Vec<i64>>, Unknown> {
        let o = graph.op(op);
        if let Some(axes) = o.ints("axes") {
            return Ok(Some(axes.to_vec()));
        }
        if o.attr("axes").is_some() {
            return Err(Unknown);
        }
        match o.input(slot) {
            None => Ok(None),
            Some(v) => self.ints(graph, v).map(Some).ok_or(Unknown),
        }
    }

    /// The permutation of a `Transpose`; by default the axes are reversed.
    pub(crate) fn perm(&self, graph: &Graph, op: OpId) -> Option<Vec<usize>> {
        let o = graph.op(op);
        match o.attr("perm") {
            Some(_) => permutation(o.ints("perm")?),
            None => {
                let rank = self
                    .rank(graph, o.input(0)?)
                    .or_else(|| self.rank(graph, o.output(0)?))?;
                Some((0..rank).rev().collect())
            }
        }
    }
}

/// Something is not known before the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unknown;

/// A permutation written as integers; `None` when it is none.
pub(crate) fn permutation(perm: &[i64]) -> Option<Vec<usize>> {
    let mut seen = vec![false; perm.len()];
    perm.iter()
        .map(|&p| {
            let p = usize::try_from(p).ok()?;
            let slot = seen.get_mut(p)?;
            (!std::mem::replace(slot, true)).then_some(p)
        })
        .collect()
}

/// The permutation that undoes another.
pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        if let Some(o) = out.get_mut(p) {
            *o = i;
        }
    }
    out
}

/// The axis counted from the front; `None` when it is out of range.
pub(crate) fn axis_from_front(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(rank_i)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The axes counted from the front, ascending; `None` when one is out of range or there twice.
/// Without negative axes no rank is needed.
pub(crate) fn axes_from_front(axes: &[i64], rank: Option<usize>) -> Option<Vec<usize>> {
    let mut out: Vec<usize> = axes
        .iter()
        .map(|&a| match rank {
            Some(rank) => axis_from_front(a, rank),
            None => usize::try_from(a).ok(),
        })
        .collect::<Option<_>>()?;
    out.sort_unstable();
    out.windows(2).all(|w| w[0] != w[1]).then_some(out)
}

/// Whether a size is surely at least 1.
pub(crate) fn is_positive(d: &SymDim) -> bool {
    d.lower_bound().is_some_and(|low| low >= 1)
}

/// Whether two shapes are equal for all sizes.
pub(crate) fn same_dims(a: &[SymDim], b: &[SymDim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

/// A target of `Reshape` (with `allowzero` 0) that turns a value of the dimensions `from` into
/// the dimensions `to`, which hold as many elements, whatever the sizes are:
/// - a known size other than 0 stands for itself;
/// - 0 copies the size of the input at the same place;
/// - one -1 is what remains. It is worked out by division, so all other sizes must be surely not 0.
pub(crate) fn reshape_target(from: Option<&[SymDim]>, to: &[SymDim]) -> Option<Vec<i64>> {
    let symbolic = to.iter().filter(|d| d.known().is_none()).count();
    let others_positive = |i: usize| to.iter().enumerate().all(|(j, d)| j == i || is_positive(d));
    let mut inferred = false;
    to.iter()
        .enumerate()
        .map(|(i, d)| {
            if let Some(v) = d.known().filter(|&v| v > 0) {
                return Some(v);
            }
            // A lone unknown size is written as -1, as exporters do.
            if symbolic == 1 && others_positive(i) {
                return Some(-1);
            }
            if from.and_then(|f| f.get(i)) == Some(d) {
                return Some(0);
            }
            (!std::mem::replace(&mut inferred, true) && others_positive(i)).then_some(-1)
        })
        .collect()
}

/// The axes of `to` that are 1-sized insertions into `from`, when `to` is just that.
pub(crate) fn inserted_axes(from: &[SymDim], to: &[SymDim]) -> Option<Vec<i64>> {
    let mut rest = from.iter().peekable();
    let mut missing = to.len().checked_sub(from.len())?;
    let mut axes = Vec::new();
    for (i, d) in to.iter().enumerate() {
        // A size of 1 is matched with one of the input's as early as possible; any matching
        // describes the same elements.
        if rest.peek() == Some(&d) {
            rest.next();
        } else if d.known() == Some(1) && missing > 0 {
            missing -= 1;
            axes.push(i64::try_from(i).ok()?);
        } else {
            return None;
        }
    }
    (rest.next().is_none() && !axes.is_empty()).then_some(axes)
}

/// A constant of one dimension with these integers.
pub(crate) fn add_ints(
    graph: &mut Graph,
    hint: &str,
    ints: &[i64],
    sources: &[ValueId],
) -> Result<ValueId, GraphError> {
    let v = graph.add_constant(hint, Tensor::vector(ints))?;
    graph.set_tensor_sources(v, sources)?;
    Ok(v)
}

/// A `Squeeze` or `Unsqueeze` of a value over these axes, in the form of the opset.
pub(crate) fn axes_op(
    graph: &mut Graph,
    opset: i64,
    op_type: &str,
    input: ValueId,
    axes: &[i64],
    hint: &str,
) -> Result<NewOp, GraphError> {
    let new = NewOp::new(op_type).input(input);
    if opset < 13 {
        return Ok(new.attr("axes", axes));
    }
    let axes = add_ints(graph, &format!("{hint}_axes"), axes, &[])?;
    Ok(new.input(axes))
}

/// The name of an operator's first output, for hints of names.
pub(crate) fn output_name(graph: &Graph, op: OpId) -> String {
    graph
        .get_op(op)
        .and_then(|o| o.output(0))
        .and_then(|v| graph.get_value(v))
        .map_or_else(String::new, |v| v.name().to_string())
}

/// Removes an operator when nothing uses its outputs, and in turn the operators and constants
/// that only it used.
pub(crate) fn sweep(graph: &mut Graph, op: OpId) -> Result<(), GraphError> {
    let mut waiting = vec![op];
    while let Some(op) = waiting.pop() {
        let Some(o) = graph.get_op(op) else { continue };
        if o.has_subgraphs()
            || o.outputs()
                .iter()
                .flatten()
                .any(|&v| !graph.value(v).is_unused())
        {
            continue;
        }
        let inputs: Vec<ValueId> = o.inputs().flatten().collect();
        graph.remove_op(op)?;
        for v in inputs {
            waiting.extend(sweep_value(graph, v)?);
        }
    }
    Ok(())
}

/// Removes a constant that nothing uses; the producer of another unused value is the answer.
pub(crate) fn sweep_value(graph: &mut Graph, v: ValueId) -> Result<Option<OpId>, GraphError> {
    let Some(value) = graph.get_value(v) else {
        return Ok(None);
    };
    if !value.is_unused() {
        return Ok(None);
    }
    // An initializer that a file of IR version 3 lists as an input stays listed.
    if value.as_constant().is_some() && graph.listed_inputs().is_empty() {
        graph.remove_value(v)?;
        return Ok(None);
    }
    Ok(graph.producer(v))
}

/// Makes everything that takes the output of `op` take `source`, which is the same tensor. Where
/// a graph output can't be renamed (its source is a graph input or another output), the operator
/// becomes an `Identity`; that is worth it only when `op` stands for more than one operator.
pub(crate) fn bypass(
    graph: &mut Graph,
    op: OpId,
    source: ValueId,
    from: &[OpId],
) -> Result<(), GraphError> {
    let o = graph.op(op);
    let inputs: Vec<ValueId> = o.inputs().flatten().collect();
    let Some(out) = o.output(0) else {
        return Ok(());
    };
    if graph.can_replace(out, source) {
        graph.replace_value(out, source)?;
        return sweep(graph, op);
    }
    let identity = NewOp::new("Identity")
        .input(source)
        .from(from.iter().copied());
    graph.replace_op(op, identity)?;
    for v in inputs {
        if let Some(producer) = sweep_value(graph, v)? {
            sweep(graph, producer)?;
        }
    }
    Ok(())
}

/// Replaces an operator and removes what only it used.
pub(crate) fn replace(graph: &mut Graph, op: OpId, new: NewOp) -> Result<OpId, GraphError> {
    let inputs: Vec<ValueId> = graph.op(op).inputs().flatten().collect();
    let id = graph.replace_op(op, new)?;
    for v in inputs {
        if let Some(producer) = sweep_value(graph, v)? {
            sweep(graph, producer)?;
        }
    }
    Ok(id)
}

/// Calls `visit` for every operator of every graph, innermost graphs first, each graph in
/// topological order; operators that an earlier call removed are passed over.
pub(crate) fn visit_ops(
    model: &mut Model,
    visit: &mut dyn FnMut(&mut Graph, OpId) -> Result<Changed, PassError>,
) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    model.edit_graphs(&mut |graph| {
        for op in graph.topological_order()? {
            if graph.get_op(op).is_some() {
                changed |= visit(graph, op)?;
            }
        }
        Ok::<(), PassError>(())
    })?;
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &[&str]) -> Vec<SymDim> {
        text.iter()
            .map(|t| match t.parse::<i64>() {
                Ok(v) => SymDim::from(v),
                Err(_) => SymDim::named(*t),
            })
            .collect()
    }

    #[test]
    fn a_target_is_made_for_every_size() {
        let t = |from: &[&str], to: &[&str]| reshape_target(Some(&dims(from)), &dims(to));
        assert_eq!(t(&["n", "6"], &["n", "2", "3"]), Some(vec![-1, 2, 3]));
        assert_eq!(
            t(&["n", "t", "6"], &["n", "t", "2", "3"]),
            Some(vec![0, 0, 2, 3])
        );
        // The second size stands at another place, and "n" might be 0.
        assert_eq!(t(&["n", "4", "t"], &["n", "t", "4"]), None);
        // A size of 0 is copied, or it is what remains of no elements.
        assert_eq!(t(&["0", "2"], &["0", "1", "2"]), Some(vec![0, 1, 2]));
        assert_eq!(t(&["2", "0"], &["0", "2"]), Some(vec![-1, 2]));
        assert_eq!(t(&["2", "n", "0"], &["0", "n", "2"]), None);
    }

    #[test]
    fn insertions_of_ones_are_seen() {
        let t = |from: &[&str], to: &[&str]| inserted_axes(&dims(from), &dims(to));
        assert_eq!(t(&["n", "t"], &["n", "1", "t"]), Some(vec![1]));
        assert_eq!(t(&["1", "t"], &["1", "1", "t"]), Some(vec![1]));
        assert_eq!(t(&["n", "t"], &["t", "1", "n"]), None);
        assert_eq!(t(&["n"], &["n"]), None);
    }

    #[test]
    fn axes_are_counted_from_the_front() {
        assert_eq!(axes_from_front(&[-1, 0], Some(3)), Some(vec![0, 2]));
        assert_eq!(axes_from_front(&[0, 2], None), Some(vec![0, 2]));
        assert_eq!(axes_from_front(&[-1], None), None);
        assert_eq!(axes_from_front(&[0, -3], Some(3)), None);
        assert_eq!(axes_from_front(&[3], Some(3)), None);
        assert_eq!(permutation(&[1, 1]), None);
        assert_eq!(inverse(&[2, 0, 1]), [1, 2, 0]);
    }
}

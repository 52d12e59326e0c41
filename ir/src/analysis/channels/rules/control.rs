//! Graphs in attributes: what they capture goes on inside.

use super::super::units::{Axis, Reason};
use super::super::walk::Cx;

/// The branches of an `If` make the same values; bodies of loops hold what they carry.
pub(super) fn apply(cx: &mut Cx<'_, '_>) {
    let graphs: Vec<_> = cx.op.subgraphs().collect();
    for graph in &graphs {
        cx.walk.graph(graph, Reason::ControlFlow);
    }
    if !cx.op.is("If") {
        let why = cx.why(Reason::ControlFlow);
        for &v in graphs.iter().flat_map(|g| g.outputs()) {
            cx.walk.freeze_value(v, why);
        }
        return cx.finish(Reason::ControlFlow);
    }
    cx.skip(0);
    for slot in 0..cx.op.outputs().len() {
        let made: Option<Vec<_>> = graphs
            .iter()
            .map(|g| g.outputs().get(slot).and_then(|&v| cx.walk.axes_of(v)))
            .collect();
        let Some([first, rest @ ..]) = made.as_deref() else {
            let why = cx.why(Reason::ControlFlow);
            for &v in graphs.iter().filter_map(|g| g.outputs().get(slot)) {
                cx.walk.freeze_value(v, why);
            }
            continue;
        };
        let same = rest.iter().all(|axes| axes.len() == first.len());
        let mut out = first.to_vec();
        for axes in rest {
            for (i, axis) in axes.iter().enumerate() {
                match out.get(i) {
                    Some(joint) if same => {
                        if !(joint.is_single() && axis.is_single()) {
                            cx.walk.unify(joint, axis, cx.id);
                        }
                    }
                    _ => cx.freeze(axis, Reason::UnprovableShape),
                }
            }
        }
        if !same {
            first
                .iter()
                .for_each(|a: &Axis| cx.freeze(a, Reason::UnprovableShape));
            out = first
                .iter()
                .map(|_| cx.fixed(Reason::UnprovableShape))
                .collect();
        }
        cx.output(slot, out);
    }
}

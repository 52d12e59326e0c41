//! What is left out of the data of the viewer where a model is so large that its page would be.

use super::graphs::{Entry, Joined, Positions};

/// So many operators of one graph a page draws one by one.
pub(super) const MOST_NODES: usize = 6000;
/// So many weights have their details in the viewer.
pub(super) const MOST_WEIGHTS: usize = 1000;
/// So many places of one change can be looked at.
pub(super) const MOST_PLACES: usize = 1000;

/// How much was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Operators that are drawn as a part of a box.
    pub(super) nodes: usize,
    /// Those of them that changed.
    pub(super) changed: usize,
    /// Weights without details.
    pub(super) weights: usize,
    /// Places of changes.
    pub(super) places: usize,
}

/// Makes one box of each stretch of operators that are neither changed nor beside a change, and
/// of those that changed beyond [`MOST_NODES`]. Positions of what is left out become `usize::MAX`.
pub(super) fn contract(graph: Joined, at: &mut Positions, out: &mut LeftOut) -> Joined {
    if graph.nodes.len() <= MOST_NODES {
        return graph;
    }
    let kept = kept(&graph);
    let mut place = vec![0; kept.len()];
    let mut nodes: Vec<Entry> = Vec::new();
    let mut stretch: Option<(usize, usize)> = None;
    for (i, node) in graph.nodes.into_iter().enumerate() {
        if kept.get(i) == Some(&true) {
            close(&mut nodes, &mut stretch);
            nodes.push(node);
        } else {
            if stretch.is_none() {
                nodes.push(Entry::default());
            }
            let (all, changed) = stretch.get_or_insert((0, 0));
            *all += 1;
            *changed += usize::from(node.s > 0);
            out.nodes += 1;
            out.changed += usize::from(node.s > 0);
        }
        if let Some(p) = place.get_mut(i) {
            *p = nodes.len() - 1;
        }
    }
    close(&mut nodes, &mut stretch);
    for list in [&mut at.before, &mut at.after] {
        for i in list.iter_mut() {
            *i = match kept.get(*i) {
                Some(true) => place.get(*i).copied().unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
        }
    }
    let moved = |i: &usize| place.get(*i).copied();
    let edges = |flat: &[usize]| -> Vec<usize> {
        let pairs = flat.chunks_exact(2);
        let pairs = pairs.filter_map(|p| Some((moved(p.first()?)?, moved(p.last()?)?)));
        let mut pairs: Vec<(usize, usize)> = pairs.filter(|(a, b)| a != b).collect();
        pairs.sort_unstable();
        pairs.dedup();
        pairs.into_iter().flat_map(|(a, b)| [a, b]).collect()
    };
    let (before, after) = (edges(&graph.before), edges(&graph.after));
    Joined {
        nodes,
        before,
        after,
    }
}

/// Says what a box stands for.
fn close(nodes: &mut [Entry], stretch: &mut Option<(usize, usize)>) {
    if let (Some((all, changed)), Some(last)) = (stretch.take(), nodes.last_mut()) {
        *last = Entry {
            t: super::format::plural(all, "operator"),
            n: match changed {
                0 => "unchanged, left out".to_owned(),
                n => format!("left out, {n} of them changed"),
            },
            k: 1,
            ..Entry::default()
        };
    }
}

/// What stays: inputs and outputs, then what changed, then what is beside it, as far as there is room.
fn kept(graph: &Joined) -> Vec<bool> {
    let mut kept: Vec<bool> = graph.nodes.iter().map(|n| n.k > 0).collect();
    let mut room = MOST_NODES;
    let mut keep = |i: usize, kept: &mut Vec<bool>| {
        if let Some(k) = kept.get_mut(i).filter(|k| !**k && room > 0) {
            *k = true;
            room -= 1;
        }
    };
    for (i, _) in graph.nodes.iter().enumerate().filter(|(_, n)| n.s > 0) {
        keep(i, &mut kept);
    }
    let changed = |i: &usize| graph.nodes.get(*i).is_some_and(|n| n.s > 0);
    let edges = graph
        .before
        .chunks_exact(2)
        .chain(graph.after.chunks_exact(2));
    for edge in edges {
        if edge.iter().any(changed) {
            edge.iter().for_each(|&i| keep(i, &mut kept));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_chain_folds_around_its_changes() {
        let count = 3 * MOST_NODES;
        let state = |i: usize| if i == 500 { 2 } else { 0 };
        let nodes = (0..count).map(|i| Entry {
            s: state(i),
            ..Entry::default()
        });
        let edges: Vec<usize> = (1..count).flat_map(|i| [i - 1, i]).collect();
        let graph = Joined {
            nodes: nodes.collect(),
            before: edges.clone(),
            after: edges,
        };
        let mut at = Positions {
            before: (0..count).collect(),
            after: vec![500, 7],
        };
        let mut out = LeftOut::default();
        let graph = contract(graph, &mut at, &mut out);
        assert_eq!((out.nodes, out.changed), (count - 3, 0));
        assert_eq!(graph.nodes.len(), 5);
        assert_eq!(graph.before, [0, 1, 1, 2, 2, 3, 3, 4]);
        assert_eq!(at.after, [2, usize::MAX]);
        assert_eq!(graph.nodes[0].t, "499 operators");
    }
}

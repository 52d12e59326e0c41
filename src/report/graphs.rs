//! What the viewer of two graphs draws: both graphs as one list of operators, in which one that is
//! in both models stands once.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::fold::{LeftOut, MOST_PLACES, MOST_WEIGHTS, contract};

use crate::diff::{
    Diff, Difference, GraphPair, Node, OpChange, OpRef, Place, Source, State, TensorChange,
};

/// An operator of either model, or an input or output of the graph.
#[derive(Debug, Default, Serialize)]
pub(super) struct Entry {
    /// The type, in the second model if it is there.
    pub(super) t: String,
    /// The name, in the second model if it is there.
    pub(super) n: String,
    /// How it fares: 0 same, 1 other weights, 2 changed, 3 added, 4 removed.
    pub(super) s: u8,
    /// 1 for an input or output of the graph, or for what stands for operators that were left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) k: u8,
    /// The type of the first output, in the second model if it is there.
    pub(super) o: String,
    /// The type in the first model, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) u: Option<String>,
    /// The name in the first model, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) b: Option<String>,
    /// The type of the first output in the first model, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p: Option<String>,
    /// What differs, before and after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) d: Vec<(String, Option<String>, Option<String>)>,
    /// Which of the changed weights it takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) w: Vec<usize>,
    /// The passes that did it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) y: String,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

/// Two graphs as one.
#[derive(Debug, Default, Serialize)]
pub(super) struct Joined {
    /// Operators, inputs and outputs, each behind what it takes in either graph, as far as the two
    /// don't contradict each other.
    pub(super) nodes: Vec<Entry>,
    /// Edges of the first graph: from, to, from, to, ...
    pub(super) before: Vec<usize>,
    /// Edges of the second graph.
    pub(super) after: Vec<usize>,
}

/// One entry of the list of changes: which graph, and the operators at each place.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    g: usize,
    p: Vec<Vec<usize>>,
    /// How often it was made, places that were left out included.
    #[serde(skip)]
    times: usize,
    /// What it says.
    #[serde(skip)]
    pub(super) title: String,
    /// `added`, `removed`, `changed` or `weights`.
    #[serde(skip)]
    pub(super) class: &'static str,
}

impl Change {
    /// How often it was made.
    pub(super) fn count(&self) -> usize {
        self.times
    }
}

/// A changed weight: its name, and what differs, before and after.
#[derive(Debug, Default, Serialize)]
struct Weight {
    n: String,
    f: Vec<(String, Option<String>, Option<String>)>,
}

/// All that the viewer needs.
#[derive(Debug, Serialize)]
pub(super) struct Viewer {
    graphs: Vec<Joined>,
    pub(super) changes: Vec<Change>,
    tensors: Vec<Weight>,
    /// What each graph is called, with its number of changed operators.
    #[serde(skip)]
    pub(super) titles: Vec<(String, usize)>,
    /// What the page leaves out.
    #[serde(skip)]
    pub(super) left_out: LeftOut,
}

/// Where the operators of the two graphs went in the joined list.
pub(super) struct Positions {
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
}

impl Positions {
    fn of(&self, place: &Place) -> Option<usize> {
        let after = place.after.and_then(|i| self.after.get(i));
        let before = place.before.and_then(|i| self.before.get(i));
        after.or(before).copied().filter(|&i| i != usize::MAX)
    }
}

/// The data of a diff.
pub(super) fn viewer(d: &Diff) -> Viewer {
    let mut graphs = Vec::new();
    let mut positions = Vec::new();
    let mut titles = Vec::new();
    let mut left_out = LeftOut::default();
    for pair in &d.graphs {
        let (joined, mut at) = join(d, pair);
        let changed = joined.nodes.iter().filter(|n| n.s > 0 && n.k == 0).count();
        let title = if pair.path.is_empty() {
            "Main graph"
        } else {
            &pair.path
        };
        titles.push((title.to_owned(), changed));
        graphs.push(contract(joined, &mut at, &mut left_out));
        positions.push(at);
    }
    let changes = changes(d, &positions);
    for c in &changes {
        left_out.places += c.times - c.p.len();
    }
    let large = super::diff::largest(d, MOST_WEIGHTS);
    let tensors = d.initializers.changed.iter().zip(&large);
    let tensors = tensors.map(|(t, &told)| if told { weight(t) } else { Weight::default() });
    left_out.weights = large.iter().filter(|l| !**l).count();
    Viewer {
        changes,
        tensors: tensors.collect(),
        graphs,
        titles,
        left_out,
    }
}

/// Two graphs before they are put in order.
struct Union<'a> {
    entries: Vec<Entry>,
    edges: [Vec<(usize, usize)>; 2],
    inputs: HashMap<&'a str, usize>,
}

fn join(d: &Diff, pair: &GraphPair) -> (Joined, Positions) {
    let mut union = Union {
        entries: Vec::new(),
        edges: [Vec::new(), Vec::new()],
        inputs: HashMap::new(),
    };
    for (i, list) in [&pair.inputs_before, &pair.inputs_after]
        .into_iter()
        .enumerate()
    {
        for (name, ty) in list {
            union.input(i, name, ty);
        }
    }
    let mut at = Positions {
        before: vec![usize::MAX; pair.before.len()],
        after: Vec::with_capacity(pair.after.len()),
    };
    for node in &pair.after {
        let partner = node.partner.and_then(|i| pair.before.get(i));
        if let Some(place) = node.partner.and_then(|i| at.before.get_mut(i)) {
            *place = union.entries.len();
        }
        at.after.push(union.entries.len());
        union.entries.push(entry(d, node, partner));
    }
    for (node, place) in pair.before.iter().zip(&mut at.before) {
        if *place == usize::MAX {
            *place = union.entries.len();
            union.entries.push(entry(d, node, None));
        }
    }
    let sides = [
        (
            &pair.before,
            &at.before,
            &pair.inputs_before,
            &pair.outputs_before,
        ),
        (
            &pair.after,
            &at.after,
            &pair.inputs_after,
            &pair.outputs_after,
        ),
    ];
    for (side, (nodes, places, inputs, _)) in sides.into_iter().enumerate() {
        for (node, &to) in nodes.iter().zip(places) {
            for source in &node.inputs {
                union.edge(side, source, to, places, inputs);
            }
        }
    }
    let mut outputs: HashMap<&str, usize> = HashMap::new();
    for (side, (_, places, inputs, list)) in sides.into_iter().enumerate() {
        for (name, source) in list {
            let to = *outputs.entry(name).or_insert(union.entries.len());
            union.port(side, to, "Output", name, "");
            union.edge(side, source, to, places, inputs);
        }
    }
    union.finish(at)
}

impl<'a> Union<'a> {
    fn input(&mut self, side: usize, name: &'a str, ty: &str) {
        let at = *self.inputs.entry(name).or_insert(self.entries.len());
        self.port(side, at, "Input", name, ty);
    }

    /// An input or output that the first graph has and the second one perhaps, or one that only
    /// the second one has.
    fn port(&mut self, side: usize, at: usize, kind: &str, name: &str, ty: &str) {
        match self.entries.get_mut(at) {
            Some(known) => {
                known.s = 0;
                if known.o != ty {
                    known.p = Some(std::mem::replace(&mut known.o, ty.to_owned()));
                }
            }
            None => self.entries.push(Entry {
                t: kind.to_owned(),
                n: name.to_owned(),
                s: if side == 0 { 4 } else { 3 },
                k: 1,
                o: ty.to_owned(),
                ..Entry::default()
            }),
        }
    }

    fn edge(
        &mut self,
        side: usize,
        source: &Source,
        to: usize,
        places: &[usize],
        inputs: &[(String, String)],
    ) {
        let from = match source {
            Source::Node { node, .. } => places.get(*node).copied(),
            Source::Input { input } => inputs
                .get(*input)
                .and_then(|(name, _)| self.inputs.get(name.as_str()))
                .copied(),
            _ => None,
        };
        if let (Some(from), Some(edges)) = (from, self.edges.get_mut(side)) {
            edges.push((from, to));
        }
    }

    /// Puts everything in order and renumbers it.
    fn finish(mut self, mut at: Positions) -> (Joined, Positions) {
        for edges in &mut self.edges {
            edges.sort_unstable();
            edges.dedup();
        }
        let order = order(self.entries.len(), &self.edges);
        let mut place = vec![0; order.len()];
        for (i, &old) in order.iter().enumerate() {
            if let Some(p) = place.get_mut(old) {
                *p = i;
            }
        }
        let moved = |i: usize| place.get(i).copied().unwrap_or(0);
        let flat = |edges: &[(usize, usize)]| -> Vec<usize> {
            edges
                .iter()
                .flat_map(|&(a, b)| [moved(a), moved(b)])
                .collect()
        };
        let [before, after] = [flat(&self.edges[0]), flat(&self.edges[1])];
        for list in [&mut at.before, &mut at.after] {
            list.iter_mut().for_each(|i| *i = moved(*i));
        }
        let mut slots: Vec<Option<Entry>> = self.entries.into_iter().map(Some).collect();
        let nodes = order.iter().filter_map(|&i| slots.get_mut(i)?.take());
        let joined = Joined {
            nodes: nodes.collect(),
            before,
            after,
        };
        (joined, at)
    }
}

/// An order in which all edges point forward, depth first, so that branches stay together. Where
/// the two graphs order aligned operators differently, the one that comes first in the list goes
/// first.
fn order(count: usize, edges: &[Vec<(usize, usize)>; 2]) -> Vec<usize> {
    let mut waits = vec![0usize; count];
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    for &(a, b) in edges.iter().flatten() {
        if let (Some(list), Some(n)) = (next.get_mut(a), waits.get_mut(b)) {
            list.push(b);
            *n += 1;
        }
    }
    let mut done = vec![false; count];
    let mut out = Vec::with_capacity(count);
    let mut ready: Vec<usize> = (0..count)
        .rev()
        .filter(|&i| waits.get(i) == Some(&0))
        .collect();
    let mut first = 0;
    while out.len() < count {
        let i = match ready.pop() {
            Some(i) => i,
            // A cycle of both graphs together.
            None => {
                while done.get(first).copied().unwrap_or(false) {
                    first += 1;
                }
                first
            }
        };
        match done.get_mut(i) {
            Some(done) if !*done => *done = true,
            _ => continue,
        }
        out.push(i);
        for &j in next.get(i).map_or(&[][..], Vec::as_slice).iter().rev() {
            if let Some(n) = waits.get_mut(j) {
                *n = n.saturating_sub(1);
                if *n == 0 && done.get(j) == Some(&false) {
                    ready.push(j);
                }
            }
        }
    }
    out
}

fn entry(d: &Diff, node: &Node, partner: Option<&Node>) -> Entry {
    let other = |of: fn(&Node) -> &String| {
        let before = of(partner?);
        (before != of(node)).then(|| before.clone())
    };
    let change = node.change.and_then(|i| d.operators.changed.get(i));
    let pattern = node.pattern.and_then(|(i, _)| d.patterns.get(i));
    let by = match (change, pattern) {
        (Some(c), _) if !c.op.by.is_empty() => c.op.by.as_slice(),
        (_, Some(p)) => p.by.as_slice(),
        _ => &[],
    };
    Entry {
        t: node.op_type.clone(),
        n: node.name.clone(),
        s: match node.state {
            State::Same => 0,
            State::Reweighted => 1,
            State::Changed => 2,
            State::Added => 3,
            State::Removed => 4,
        },
        k: 0,
        o: node.output.clone(),
        u: other(|n| &n.op_type),
        b: other(|n| &n.name),
        p: other(|n| &n.output),
        d: change.map_or_else(Vec::new, |c| c.changes.iter().map(told).collect()),
        w: node.weights.clone(),
        y: by.join(", "),
    }
}

fn told(d: &Difference) -> (String, Option<String>, Option<String>) {
    (d.what.clone(), d.before.clone(), d.after.clone())
}

/// The list of changes: patterns, changed operators, and other weights by type of operator.
fn changes(d: &Diff, positions: &[Positions]) -> Vec<Change> {
    let mut out = Vec::new();
    for p in &d.patterns {
        let places = p.places.iter().map(|place| {
            let refs: Vec<&OpRef> = place.before.iter().chain(&place.after).collect();
            located(&refs, positions)
        });
        let class = match (p.before.is_empty(), p.after.is_empty()) {
            (true, _) => "added",
            (_, true) => "removed",
            _ => "changed",
        };
        add(&mut out, super::diff::sentence(p), class, places.flatten());
    }
    let alone = d.operators.changed.iter().filter(|c| c.pattern.is_none());
    let mut by_kind: BTreeMap<String, Vec<&OpChange>> = BTreeMap::new();
    for c in alone {
        let mut what: Vec<&str> = c.changes.iter().map(|c| c.what.as_str()).collect();
        what.dedup();
        let title = format!("{}: {}", c.op.op_type, what.join(", "));
        by_kind.entry(title).or_default().push(c);
    }
    for (title, all) in by_kind {
        let places = all.iter().filter_map(|c| located(&[&c.op], positions));
        add(&mut out, title, "changed", places);
    }
    let mut reweighted: BTreeMap<&str, Vec<(usize, Vec<usize>)>> = BTreeMap::new();
    for (g, (pair, at)) in d.graphs.iter().zip(positions).enumerate() {
        for (node, &place) in pair.after.iter().zip(&at.after) {
            if node.state == State::Reweighted {
                let list = reweighted.entry(&node.op_type).or_default();
                list.push((
                    g,
                    if place == usize::MAX {
                        Vec::new()
                    } else {
                        vec![place]
                    },
                ));
            }
        }
    }
    for (op_type, places) in reweighted {
        let title = format!("{op_type}: other weights");
        add(&mut out, title, "weights", places.into_iter());
    }
    out
}

/// One entry for each graph in which a change was made.
fn add(
    out: &mut Vec<Change>,
    title: String,
    class: &'static str,
    places: impl Iterator<Item = (usize, Vec<usize>)>,
) {
    let mut by_graph: BTreeMap<usize, (usize, Vec<Vec<usize>>)> = BTreeMap::new();
    for (g, nodes) in places {
        let (times, shown) = by_graph.entry(g).or_default();
        *times += 1;
        if !nodes.is_empty() && shown.len() < MOST_PLACES {
            shown.push(nodes);
        }
    }
    for (g, (times, p)) in by_graph.into_iter().filter(|(_, (_, p))| !p.is_empty()) {
        out.push(Change {
            g,
            p,
            times,
            title: title.clone(),
            class,
        });
    }
}

/// The graph of some operators, and where they are in it.
fn located(refs: &[&OpRef], positions: &[Positions]) -> Option<(usize, Vec<usize>)> {
    let graph = refs.first()?.place.graph;
    let at = positions.get(graph)?;
    let mut nodes: Vec<usize> = refs.iter().filter_map(|r| at.of(&r.place)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    Some((graph, nodes))
}

fn weight(t: &TensorChange) -> Weight {
    let mut f = Vec::new();
    let mut both = |label: &str, before: Option<String>, after: Option<String>| {
        if before != after {
            f.push((label.to_owned(), before, after));
        }
    };
    both("Type", Some(t.before.clone()), Some(t.after.clone()));
    for (label, a, b) in super::diff::compared(t) {
        both(label, a, b);
    }
    let mut alone = |label: &str, text: String| {
        f.push((label.to_owned(), Some(text.clone()), Some(text)));
    };
    if let Some(text) = super::diff::distance(t) {
        alone("Difference", text);
    }
    for k in &t.kept {
        let what = format!("Kept on axis {}", k.axis);
        alone(&what, format!("{} of {}: {}", k.count, k.of, k.indices));
    }
    if !t.by.is_empty() {
        alone("By", t.by.join(", "));
    }
    Weight {
        n: t.name.clone(),
        f,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, inputs: &[usize], partner: Option<usize>, state: State) -> Node {
        Node {
            name: name.to_owned(),
            op_type: "Op".to_owned(),
            inputs: inputs
                .iter()
                .map(|&node| Source::Node { node, output: 0 })
                .collect(),
            partner,
            state,
            ..Node::default()
        }
    }

    #[test]
    fn what_is_in_both_stands_once_behind_what_it_takes() {
        let pair = GraphPair {
            before: vec![
                node("a", &[], Some(0), State::Same),
                node("gone", &[0], None, State::Removed),
                node("b", &[1], Some(2), State::Same),
            ],
            after: vec![
                node("a", &[], Some(0), State::Same),
                node("new", &[0], None, State::Added),
                node("b", &[1], Some(2), State::Same),
            ],
            ..GraphPair::default()
        };
        let (joined, at) = join(&Diff::default(), &pair);
        let names: Vec<&str> = joined.nodes.iter().map(|n| n.n.as_str()).collect();
        assert_eq!(names.len(), 4);
        assert_eq!((names[0], names[3]), ("a", "b"));
        assert_eq!(at.before[0], at.after[0]);
        let gone = at.before[1];
        assert_eq!(joined.before, [0, gone, gone, 3]);
        assert_eq!((joined.nodes[gone].s, joined.nodes[3].s), (4, 0));
    }

    #[test]
    fn a_cycle_of_both_together_ends() {
        let order = order(2, &[vec![(0, 1)], vec![(1, 0)]]);
        assert_eq!(order, [0, 1]);
    }
}

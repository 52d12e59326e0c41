//! Puts what was found into the form that is shown.

use std::collections::BTreeMap;

use paring_ir::analysis::{Shapes, SymDim};
use paring_ir::{Graph, Name, Op, ValueId};

use super::align::pairs;
use super::changes::{Comparison, Part};
use super::interface;
use super::net::{From, Net, type_name};
use super::patterns::Group;
use super::tensors::tensors;
use super::{
    Diff, GraphPair, Node, OpChange, OpDiff, OpRef, Pattern, PatternKind, PatternPlace, Place,
    Source, State, TypeChange,
};

/// Puts a comparison into the form that is shown, without costs.
pub(super) fn assemble(c: &Comparison<'_>, shapes: (&Shapes, &Shapes)) -> Diff {
    let mut out = Diff {
        interface: interface::models(c.models.0, c.models.1),
        ..Diff::default()
    };
    if let Some(main) = c.parts.first() {
        let (ports, spelling) = interface::ports(main.a.graph, main.b.graph, &main.al);
        out.interface.extend(ports);
        out.spelling = spelling;
    }
    for part in &c.parts {
        out.interface.extend(part.outputs.iter().cloned());
        out.graphs.push(graph_pair(part, shapes));
    }
    let (initializers, stored) = tensors(c);
    out.initializers = initializers;
    for g in 0..c.parts.len() {
        operators(c, g, &mut out.operators, &mut out.graphs);
        types(c, g, shapes, &mut out.types);
    }
    reweighted(&mut out);
    out.patterns = patterns(c, &mut out.graphs);
    out.patterns.extend(stored);
    number_patterns(&mut out);
    out.passes = passes(c);
    out
}

/// The passes that the second model records, in the order of their first operator.
fn passes(c: &Comparison<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |passes: &[Name]| {
        for p in passes {
            if out.iter().all(|known| **known != **p) {
                out.push(p.to_string());
            }
        }
    };
    for part in &c.parts {
        for j in 0..part.b.ops.len() {
            if let Some(p) = part.b.op(j).provenance() {
                add(&p.passes);
            }
        }
        for v in part.b.graph.initializers() {
            if let Some(p) = part.b.graph.value(v).provenance() {
                add(&p.passes);
            }
        }
    }
    out
}

fn op_ref(net: &Net<'_>, path: &str, place: usize, at: Place) -> OpRef {
    let op = net.op(place);
    let names = |list: &[Name]| list.iter().map(ToString::to_string).collect();
    let origin = op.provenance();
    OpRef {
        name: net.label(place).to_string(),
        op_type: type_name(op),
        graph: path.to_owned(),
        by: origin.map_or_else(Vec::new, |p| names(&p.passes)),
        from: origin.map_or_else(Vec::new, |p| names(&p.from)),
        inside: 0,
        place: at,
    }
}

impl Part<'_> {
    fn ref_before(&self, graph: usize, i: usize) -> OpRef {
        let place = Place {
            graph,
            before: Some(i),
            after: self.al.to_b[i],
        };
        op_ref(&self.a, &self.path, i, place)
    }

    fn ref_after(&self, graph: usize, j: usize) -> OpRef {
        let place = Place {
            graph,
            before: self.al.to_a[j],
            after: Some(j),
        };
        op_ref(&self.b, &self.path, j, place)
    }
}

fn operators(c: &Comparison<'_>, g: usize, out: &mut OpDiff, graphs: &mut [GraphPair]) {
    let part = &c.parts[g];
    let open = |taken: &[Option<usize>]| -> Vec<usize> {
        let open = taken.iter().enumerate().filter(|(_, t)| t.is_none());
        open.map(|(i, _)| i).collect()
    };
    for i in open(&part.al.to_b) {
        out.removed.push(OpRef {
            inside: inside(part.a.op(i)),
            ..part.ref_before(g, i)
        });
    }
    for j in open(&part.al.to_a) {
        out.added.push(OpRef {
            inside: inside(part.b.op(j)),
            ..part.ref_after(g, j)
        });
    }
    for (j, i) in pairs(&part.al.to_a) {
        if !same_names(part, i, j) {
            out.renamed += 1;
        }
        let Some(changes) = part.changes.get(&i) else {
            out.same += 1;
            continue;
        };
        let at = out.changed.len();
        let (before, after) = (part.a.label(i), part.b.label(j));
        out.changed.push(OpChange {
            op: part.ref_after(g, j),
            name_before: (before != after).then(|| before.to_string()),
            changes: changes.clone(),
            pattern: None,
        });
        let pair = &mut graphs[g];
        for node in [&mut pair.before[i], &mut pair.after[j]] {
            node.change = Some(at);
            node.state = State::Changed;
        }
    }
    let order: Vec<usize> = pairs(&part.al.to_b).map(|(_, j)| j).collect();
    out.moved += order.len() - longest_rise(&order);
}

/// The operators of the graphs inside one.
fn inside(op: &Op) -> usize {
    let count = |g: &Graph| -> usize {
        let ops = g.ops().map(|op| g.op(op)).filter(|op| !op.is("Constant"));
        ops.map(|op| 1 + inside(op)).sum()
    };
    op.subgraphs().map(count).sum()
}

/// The length of the longest ascending part of a list (patience sorting).
fn longest_rise(list: &[usize]) -> usize {
    let mut ends: Vec<usize> = Vec::new();
    for &x in list {
        let at = ends.partition_point(|&e| e < x);
        match ends.get_mut(at) {
            Some(end) => *end = x,
            None => ends.push(x),
        }
    }
    ends.len()
}

fn same_names(part: &Part<'_>, i: usize, j: usize) -> bool {
    let (x, y) = (part.a.op(i), part.b.op(j));
    let names = |n: &Net<'_>, op: &Op| -> Vec<Option<Name>> {
        let name = |v: &Option<ValueId>| v.map(|v| n.graph.value(v).name().clone());
        op.outputs().iter().map(name).collect()
    };
    x.name() == y.name() && names(&part.a, x) == names(&part.b, y)
}

/// Marks the operators whose constants differ.
fn reweighted(out: &mut Diff) {
    for (at, change) in out.initializers.changed.iter().enumerate() {
        for place in &change.places {
            let Some(pair) = out.graphs.get_mut(place.graph) else {
                continue;
            };
            let before = place.before.and_then(|i| pair.before.get_mut(i));
            let after = place.after.and_then(|j| pair.after.get_mut(j));
            for node in before.into_iter().chain(after) {
                node.weights.push(at);
                if node.state == State::Same && node.partner.is_some() {
                    node.state = State::Reweighted;
                }
            }
        }
    }
    let reweighted = out.graphs.iter().flat_map(|g| &g.after);
    let reweighted = reweighted.filter(|n| n.state == State::Reweighted);
    out.operators.reweighted = reweighted.count();
}

/// The values of aligned operators whose types differ: element types, numbers of axes, and sizes
/// that are known in both models.
fn types(c: &Comparison<'_>, g: usize, shapes: (&Shapes, &Shapes), out: &mut Vec<TypeChange>) {
    let part = &c.parts[g];
    for (j, i) in pairs(&part.al.to_a) {
        let outputs = part.a.op(i).outputs().iter().zip(part.b.op(j).outputs());
        for (v, w) in outputs {
            let (Some(v), Some(w)) = (*v, *w) else {
                continue;
            };
            let (x, y) = (shapes.0.fact(v), shapes.1.fact(w));
            let (Some(x), Some(y)) = (x, y) else { continue };
            let dtypes = x.dtype.zip(y.dtype).is_none_or(|(p, q)| p == q);
            let sizes = |p: &SymDim, q: &SymDim| {
                let both = p.known().zip(q.known());
                both.is_none_or(|(p, q)| p == q)
            };
            let dims = x.dims.as_deref().zip(y.dims.as_deref());
            let dims = dims.is_none_or(|(p, q)| {
                p.len() == q.len() && p.iter().zip(q).all(|(p, q)| sizes(p, q))
            });
            if dtypes && dims {
                continue;
            }
            let text = |s: &Shapes, v| interface::type_text(s.to_value_type(v).as_ref());
            out.push(TypeChange {
                name: part.b.graph.value(w).name().to_string(),
                before: text(shapes.0, v),
                after: text(shapes.1, w),
                place: Place {
                    graph: g,
                    before: Some(i),
                    after: Some(j),
                },
            });
        }
    }
}

/// Groups of one kind become one pattern.
fn patterns(c: &Comparison<'_>, graphs: &mut [GraphPair]) -> Vec<Pattern> {
    type Key = (PatternKind, Vec<String>, Vec<String>, Vec<String>);
    let mut out: Vec<Pattern> = Vec::new();
    let mut known: BTreeMap<Key, usize> = BTreeMap::new();
    let mut spots: Vec<Vec<(usize, &Group)>> = Vec::new();
    for (g, part) in c.parts.iter().enumerate() {
        for group in &part.groups {
            let key = (
                group.kind,
                group.types_before.clone(),
                group.types_after.clone(),
                group.by.clone(),
            );
            let at = *known.entry(key).or_insert_with(|| {
                out.push(Pattern {
                    kind: group.kind,
                    before: group.types_before.clone(),
                    after: group.types_after.clone(),
                    by: group.by.clone(),
                    ..Pattern::default()
                });
                spots.push(Vec::new());
                out.len() - 1
            });
            let context = &group.context;
            let before = group
                .before
                .iter()
                .copied()
                .chain(context.iter().map(|c| c.0));
            let after = group
                .after
                .iter()
                .copied()
                .chain(context.iter().map(|c| c.1));
            out[at].count += 1;
            out[at].places.push(PatternPlace {
                before: before.map(|i| part.ref_before(g, i)).collect(),
                after: after.map(|j| part.ref_after(g, j)).collect(),
            });
            spots[at].push((g, group));
        }
    }
    let mut order: Vec<usize> = (0..out.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(out[at].count));
    for (new, &old) in order.iter().enumerate() {
        for (nth, (g, group)) in spots[old].iter().enumerate() {
            mark(&mut graphs[*g], group, (new, nth));
        }
    }
    let mut sorted: Vec<Option<Pattern>> = out.into_iter().map(Some).collect();
    let taken = order.into_iter().filter_map(|at| sorted[at].take());
    taken.collect()
}

fn mark(pair: &mut GraphPair, group: &Group, pattern: (usize, usize)) {
    for &i in &group.before {
        pair.before[i].pattern = Some(pattern);
    }
    for &j in &group.after {
        pair.after[j].pattern = Some(pattern);
    }
    for &(i, j) in &group.context {
        pair.before[i].pattern = Some(pattern);
        pair.after[j].pattern = Some(pattern);
    }
}

/// Says which pattern each changed operator took part in.
fn number_patterns(out: &mut Diff) {
    for change in &mut out.operators.changed {
        let place = change.op.place;
        let pair = out.graphs.get(place.graph);
        let node = pair.and_then(|p| p.after.get(place.after?));
        change.pattern = node.and_then(|n| Some(n.pattern?.0));
    }
}

fn graph_pair(part: &Part<'_>, shapes: (&Shapes, &Shapes)) -> GraphPair {
    let ports = |n: &Net<'_>| -> Vec<(String, String)> {
        let inputs = n.graph.inputs().iter();
        inputs
            .map(|&v| {
                let v = n.graph.value(v);
                (
                    v.name().to_string(),
                    interface::type_text(v.declared_type()),
                )
            })
            .collect()
    };
    let outputs = |n: &Net<'_>| -> Vec<(String, Source)> {
        let outputs = n.graph.outputs().iter().zip(&n.outputs);
        outputs
            .map(|(&v, &from)| {
                let name = n.graph.value(v).name().to_string();
                (name, source(n, from, Some(v)))
            })
            .collect()
    };
    GraphPair {
        path: part.path.clone(),
        before: nodes(&part.a, &part.al.to_b, shapes.0, State::Removed),
        after: nodes(&part.b, &part.al.to_a, shapes.1, State::Added),
        inputs_before: ports(&part.a),
        inputs_after: ports(&part.b),
        outputs_before: outputs(&part.a),
        outputs_after: outputs(&part.b),
    }
}

fn nodes(net: &Net<'_>, partners: &[Option<usize>], shapes: &Shapes, lone: State) -> Vec<Node> {
    (0..net.ops.len())
        .map(|place| {
            let op = net.op(place);
            let output = op.output(0).and_then(|v| {
                let inferred = shapes.to_value_type(v);
                inferred.or_else(|| net.graph.value(v).declared_type().cloned())
            });
            let slots = op.inputs().zip(&net.inputs[place]);
            Node {
                name: net.label(place).to_string(),
                op_type: type_name(op),
                output: interface::type_text(output.as_ref()),
                inputs: slots.map(|(v, &from)| source(net, from, v)).collect(),
                partner: partners[place],
                state: if partners[place].is_some() {
                    State::Same
                } else {
                    lone
                },
                ..Node::default()
            }
        })
        .collect()
}

fn source(net: &Net<'_>, from: From, v: Option<ValueId>) -> Source {
    let name =
        |v: Option<ValueId>| v.map_or_else(String::new, |v| net.graph.value(v).name().to_string());
    match from {
        From::Absent => Source::Absent,
        From::Op(node, output) => Source::Node { node, output },
        From::Input(input) => Source::Input { input },
        From::Constant(root) => Source::Constant {
            name: name(v),
            ty: interface::type_text(net.constant(root).map(|c| c.value_type()).as_ref()),
        },
        From::Outer(_) => Source::Outer { name: name(v) },
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_longest_rise_of_a_list() {
        assert_eq!(super::longest_rise(&[0, 1, 2]), 3);
        assert_eq!(super::longest_rise(&[2, 0, 1, 5, 3, 4]), 4);
        assert_eq!(super::longest_rise(&[]), 0);
    }
}

//! What differs of constants.

use std::collections::{HashMap, HashSet};

use paring_ir::analysis::Constants;
use paring_ir::{Constant, Graph, GraphId, Kept, Model, ValueId};

use super::changes::{Comparison, TensorPair};
use super::elements::{Numbers, compare, count, histogram, rank, rescaled};
use super::interface::type_text;
use super::net::{Net, type_name};
use super::weights::{Carrier, decode, evaluate, find_kept, short_text};
use super::{
    KeptAxis, OpRef, Pattern, PatternKind, PatternPlace, TensorChange, TensorDiff, TensorStats,
};

/// Multiply-accumulates that may be spent on the ranks of all tensors together.
const RANK_BUDGET: u64 = 1_000_000_000;
/// The same for one tensor.
const RANK_LIMIT: u64 = 200_000_000;

/// The graphs of a model by id, those inside and the bodies of functions too.
pub(super) fn graphs_of(model: &Model) -> HashMap<GraphId, &Graph> {
    let mut out: HashMap<GraphId, &Graph> = HashMap::new();
    let mut open: Vec<&Graph> = model.functions.iter().map(|f| &f.body).collect();
    open.push(&model.graph);
    while let Some(graph) = open.pop() {
        out.insert(graph.id(), graph);
        for op in graph.ops_with_subgraphs() {
            open.extend(graph.op(op).subgraphs());
        }
    }
    out
}

/// The constants of both models, and how to call them.
struct Side<'a> {
    graphs: HashMap<GraphId, &'a Graph>,
}

impl Side<'_> {
    fn name(&self, v: ValueId) -> String {
        self.graphs
            .get(&v.graph())
            .and_then(|g| g.get_value(v))
            .map_or_else(String::new, |v| v.name().to_string())
    }

    fn is_operator(&self, v: ValueId) -> bool {
        self.graphs
            .get(&v.graph())
            .and_then(|g| g.get_value(v))
            .is_some_and(|v| v.producer().is_some())
    }

    fn is_used(&self, v: ValueId) -> bool {
        let value = self.graphs.get(&v.graph()).and_then(|g| g.get_value(v));
        value.is_some_and(|v| !v.uses().is_empty())
    }

    /// The passes that made or changed a tensor, and the kept indices.
    fn origin(&self, v: ValueId) -> (Vec<String>, Vec<Kept>) {
        let value = self.graphs.get(&v.graph()).and_then(|g| g.get_value(v));
        match value.and_then(|v| v.provenance()) {
            Some(p) => {
                let mut by: Vec<String> = Vec::new();
                for pass in &p.passes {
                    if by.iter().all(|b| **b != **pass) {
                        by.push(pass.to_string());
                    }
                }
                (by, p.kept.clone())
            }
            None => (Vec::new(), Vec::new()),
        }
    }

    fn op_ref(&self, v: ValueId) -> Option<OpRef> {
        let graph = self.graphs.get(&v.graph())?;
        let op = graph.producer(v)?;
        Some(OpRef {
            name: graph.op_label(op).to_string(),
            op_type: type_name(graph.op(op)),
            ..OpRef::default()
        })
    }
}

/// Compares the constants; also gives what became of `Constant` operators.
pub(super) fn tensors(c: &Comparison<'_>) -> (TensorDiff, Vec<Pattern>) {
    let a = Side {
        graphs: graphs_of(c.models.0),
    };
    let b = Side {
        graphs: graphs_of(c.models.1),
    };
    let mut work = Work {
        c,
        a,
        b,
        out: TensorDiff::default(),
        stored: Stored::default(),
        same: HashSet::new(),
        budget: RANK_BUDGET,
    };
    work.pairs();
    work.rest();
    let patterns = work.stored.patterns();
    (work.out, patterns)
}

/// `Constant` operators that became initializers, and the other way round, by the passes.
#[derive(Default)]
struct Stored {
    lifted: Vec<(Vec<String>, PatternPlace)>,
    lowered: Vec<(Vec<String>, PatternPlace)>,
}

impl Stored {
    fn patterns(self) -> Vec<Pattern> {
        let (op, initializer) = ("Constant".to_owned(), "initializer".to_owned());
        let of = |list: Vec<(Vec<String>, PatternPlace)>, before: &str, after: &str| {
            let mut out: Vec<Pattern> = Vec::new();
            for (by, place) in list {
                let at = match out.iter().position(|p| p.by == by) {
                    Some(at) => at,
                    None => {
                        out.push(Pattern {
                            kind: PatternKind::Stored,
                            before: vec![before.to_owned()],
                            after: vec![after.to_owned()],
                            by,
                            ..Pattern::default()
                        });
                        out.len() - 1
                    }
                };
                if let Some(p) = out.get_mut(at) {
                    p.count += 1;
                    p.places.push(place);
                }
            }
            out
        };
        let mut out = of(self.lifted, &op, &initializer);
        out.extend(of(self.lowered, &initializer, &op));
        out
    }
}

struct Work<'a, 'b> {
    c: &'b Comparison<'a>,
    a: Side<'a>,
    b: Side<'a>,
    out: TensorDiff,
    stored: Stored,
    /// The constants of the second model that are the same as one of the first.
    same: HashSet<ValueId>,
    budget: u64,
}

impl Work<'_, '_> {
    /// Compares the constants that operators take.
    fn pairs(&mut self) {
        for t in &self.c.tensors {
            let (Some(v), Some(w)) = (t.a.main, t.b.main) else {
                continue;
            };
            self.note_storage(v, w);
            let equal = self.c.digests(t).is_some_and(|(x, y)| x == y);
            if equal {
                self.note_same(v, w);
            } else if let Some(change) = self.change(t) {
                if self.is_equal(&change, v, w) {
                    self.note_same(v, w);
                } else {
                    self.out.changed.push(change);
                }
            }
        }
    }

    /// Whether one stored tensor gives the same elements on another way: an `Identity` that is
    /// gone, say, which is told as such.
    fn is_equal(&self, change: &TensorChange, v: ValueId, w: ValueId) -> bool {
        let (first, second) = self.c.constants;
        let digest = first.digest(v);
        change.max_abs == Some(0.0)
            && change.kept.is_empty()
            && digest.is_some()
            && digest == second.digest(w)
    }

    fn note_same(&mut self, v: ValueId, w: ValueId) {
        if self.same.insert(w) {
            self.out.same += 1;
            self.out.renamed += usize::from(self.a.name(v) != self.b.name(w));
        }
    }

    fn note_storage(&mut self, v: ValueId, w: ValueId) {
        let (by, _) = self.b.origin(w);
        match (self.a.is_operator(v), self.b.is_operator(w)) {
            (true, false) => {
                let known = &self.stored.lifted;
                let Some(op) = self.a.op_ref(v) else { return };
                if known.iter().all(|(_, p)| p.before.first() != Some(&op)) {
                    let before = vec![op];
                    let after = Vec::new();
                    self.stored
                        .lifted
                        .push((by, PatternPlace { before, after }));
                }
            }
            (false, true) => {
                let known = &self.stored.lowered;
                let Some(op) = self.b.op_ref(w) else { return };
                if known.iter().all(|(_, p)| p.after.first() != Some(&op)) {
                    let after = vec![op];
                    let before = Vec::new();
                    self.stored
                        .lowered
                        .push((by, PatternPlace { before, after }));
                }
            }
            _ => {}
        }
    }

    /// Compares the constants that no aligned operators take.
    fn rest(&mut self) {
        let used = |f: fn(&TensorPair) -> &Carrier| -> HashSet<ValueId> {
            let carriers = self.c.tensors.iter().map(f);
            carriers
                .flat_map(|c| c.main.iter().chain(&c.parts).copied())
                .collect()
        };
        let (used_a, used_b) = (used(|t| &t.a), used(|t| &t.b));
        let open = |list: &[ValueId], used: &HashSet<ValueId>| -> Vec<ValueId> {
            list.iter().copied().filter(|v| !used.contains(v)).collect()
        };
        let (first, second) = self.c.constants;
        let mut left = open(first.roots(), &used_a);
        let mut right = open(second.roots(), &used_b);
        // Of one name and equal, then equal, then of one name.
        for round in 0..3 {
            let key = |side: &Side<'_>, digest: Option<u128>, v: ValueId| match round {
                0 => (digest, Some(side.name(v))),
                1 => (digest, None),
                _ => (None, Some(side.name(v))),
            };
            let mut waiting: HashMap<_, Vec<ValueId>> = HashMap::new();
            for &v in left.iter().rev() {
                waiting
                    .entry(key(&self.a, first.digest(v), v))
                    .or_default()
                    .push(v);
            }
            let mut found: HashMap<ValueId, ValueId> = HashMap::new();
            for &w in &right {
                if let Some(v) = waiting
                    .get_mut(&key(&self.b, second.digest(w), w))
                    .and_then(Vec::pop)
                {
                    found.insert(w, v);
                }
            }
            for &w in &right {
                let Some(&v) = found.get(&w) else { continue };
                self.note_storage(v, w);
                if round < 2 {
                    self.note_same(v, w);
                } else if let Some(change) = self.lone_change(v, w) {
                    self.out.changed.push(change);
                }
            }
            let gone: HashSet<ValueId> = found.values().copied().collect();
            left.retain(|v| !gone.contains(v));
            right.retain(|w| !found.contains_key(w));
        }
        let text = |c: Option<&Constant>| type_text(c.map(Constant::value_type).as_ref());
        let list = |side: &Side<'_>, constants: &Constants, open: Vec<ValueId>| {
            let lone = open.into_iter().filter(|v| !side.is_operator(*v));
            let (used, unused): (Vec<_>, Vec<_>) = lone.partition(|v| side.is_used(*v));
            let all = unused.iter().chain(&used);
            let all = all.map(|&v| (side.name(v), text(constants.get(v))));
            (all.collect(), used.len())
        };
        (self.out.removed, self.out.removed_in_use) = list(&self.a, first, left);
        (self.out.added, self.out.added_in_use) = list(&self.b, second, right);
    }

    fn lone_change(&mut self, v: ValueId, w: ValueId) -> Option<TensorChange> {
        let (first, second) = self.c.constants;
        let (x, y) = (first.get(v)?, second.get(w)?);
        let (p, q) = (Carrier::plain(v), Carrier::plain(w));
        let sides = (
            Tensor::new(x, Numbers::of(x), &p),
            Tensor::new(y, Numbers::of(y), &q),
        );
        let mut out = self.compare(sides, (v, w));
        out.role = "unused".to_owned();
        Some(out)
    }

    /// What differs between two tensors.
    fn change(&mut self, t: &TensorPair) -> Option<TensorChange> {
        let part = self.c.parts.get(t.part)?;
        let (v, w) = (t.a.main?, t.b.main?);
        let x = Tensor::new(
            self.c.constants.0.get(v)?,
            evaluate(&part.a, t.from_a),
            &t.a,
        );
        let after = match t.factors {
            Some((p, q)) => evaluate(&part.b, p)
                .zip(evaluate(&part.b, q))
                .and_then(|(p, q)| p.matrix()?.product(&q.matrix()?)),
            None => evaluate(&part.b, t.from_b),
        };
        let after = match &t.codes {
            Some(codes) => after.and_then(|x| decode(self.c.constants.1, x, codes)),
            None => after,
        };
        let y = Tensor::new(self.c.constants.1.get(w)?, after, &t.b);
        let mut out = self.compare((x, y), (v, w));
        out.role = t.role.to_owned();
        out.places = t.places.clone();
        let names = |net: &Net<'_>, places: &[usize]| -> Vec<String> {
            places.iter().map(|&p| type_name(net.op(p))).collect()
        };
        out.stats_before.through = names(&part.a, &t.a.through);
        out.stats_after.through = names(&part.b, &t.b.through);
        out.stats_before.quantization = t.a.quantization.clone();
        out.stats_after.quantization = t.b.quantization.clone();
        out.parts_before = t.a.parts.iter().map(|&v| self.a.name(v)).collect();
        out.parts_after = t.b.parts.iter().map(|&v| self.b.name(v)).collect();
        for place in &t.places {
            let Some(part) = self.c.parts.get(place.graph) else {
                continue;
            };
            if let Some(j) = place.after {
                let label = part.b.label(j).to_string();
                if !out.used_by.contains(&label) {
                    out.used_by.push(label);
                }
            }
        }
        // What made the operators in between made the tensor that they give.
        for &place in &t.b.through {
            let passes = part.b.op(place).provenance().map(|p| p.passes.as_slice());
            for pass in passes.unwrap_or_default() {
                if out.by.iter().all(|p| **p != **pass) {
                    out.by.push(pass.to_string());
                }
            }
        }
        Some(out)
    }

    fn compare(
        &mut self,
        (mut x, mut y): (Tensor<'_>, Tensor<'_>),
        (v, w): (ValueId, ValueId),
    ) -> TensorChange {
        let (by, recorded) = self.b.origin(w);
        let (first, second) = self.c.constants;
        x.count(&mut self.budget, first, v);
        y.count(&mut self.budget, second, w);
        for part in &x.parts {
            x.stats.bytes += first.get(*part).map_or(0, |c| c.byte_len() as u64);
        }
        for part in &y.parts {
            y.stats.bytes += second.get(*part).map_or(0, |c| c.byte_len() as u64);
        }
        let mut out = TensorChange {
            name: self.b.name(w),
            before: x.stats.ty.clone(),
            after: y.stats.ty.clone(),
            by,
            ..TensorChange::default()
        };
        let name = self.a.name(v);
        out.name_before = (name != out.name).then_some(name);
        // Codes that nothing is known about are no elements to compare with.
        let comparable = x.is_decoded() == y.is_decoded();
        if let (Some(p), Some(q), true) = (&x.numbers, &y.numbers, comparable) {
            out.histogram = histogram(&p.values, &q.values, [x.stats.range, y.stats.range]);
            if p.dims == q.dims {
                let (max_abs, norm) = nearest(p, q);
                (out.max_abs, out.relative_norm) = (Some(max_abs), Some(norm));
                out.rescaled_norm = rescaled(p, q, norm);
            } else if let Some((kept, part)) = kept_part(p, q, &recorded, x.constant, y.constant) {
                let (max_abs, norm) = compare(&part.values, &q.values);
                (out.max_abs, out.relative_norm) = (Some(max_abs), Some(norm));
                out.kept = kept;
            } else if p.values.len() == q.values.len() {
                let (max_abs, norm) = nearest(p, q);
                (out.max_abs, out.relative_norm) = (Some(max_abs), Some(norm));
            }
        }
        out.sparsity_before = x.stats.sparsity;
        out.sparsity_after = y.stats.sparsity;
        out.stats_before = x.stats;
        out.stats_after = y.stats;
        out
    }
}

/// One of the tensors of a comparison.
struct Tensor<'a> {
    constant: &'a Constant,
    numbers: Option<Numbers>,
    parts: Vec<ValueId>,
    stats: TensorStats,
}

impl<'a> Tensor<'a> {
    fn new(constant: &'a Constant, numbers: Option<Numbers>, carrier: &Carrier) -> Tensor<'a> {
        Tensor {
            constant,
            numbers,
            parts: carrier.parts.clone(),
            stats: TensorStats {
                ty: type_text(Some(&constant.value_type())),
                bytes: constant.byte_len() as u64,
                bits: constant.dtype().bits(),
                ..TensorStats::default()
            },
        }
    }

    /// Whether the numbers are real ones: floats, or what codes stand for.
    fn is_decoded(&self) -> bool {
        self.constant.dtype().is_float() || !self.parts.is_empty()
    }

    fn count(&mut self, budget: &mut u64, constants: &Constants, root: ValueId) {
        let stats = &mut self.stats;
        stats.elements = short_text(constants, root);
        let Some(n) = &self.numbers else { return };
        let counted = count(&n.values);
        if !n.values.is_empty() {
            stats.sparsity = counted.zeros as f64 / n.values.len() as f64;
        }
        stats.distinct = counted.distinct;
        stats.range = counted.range;
        if let [rows, rest @ ..] = n.dims.as_slice()
            && !rest.is_empty()
            && (self.constant.dtype().is_float() || !self.parts.is_empty())
        {
            let (found, work) = rank(&n.values, *rows, (*budget).min(RANK_LIMIT));
            stats.rank = found;
            *budget = budget.saturating_sub(work);
        }
    }
}

/// The difference of two tensors of as many elements. A matrix may have been turned: then of both
/// ways to compare the one counts that leaves much less.
fn nearest(p: &Numbers, q: &Numbers) -> (f64, f64) {
    let plain = compare(&p.values, &q.values);
    let turned = p.dims.len() == 2 && p.dims.iter().rev().eq(&q.dims);
    if !turned || (p.dims == q.dims && plain.1 < 0.5) {
        return plain;
    }
    match p.transpose(&[1, 0]) {
        Some(t) => {
            let other = compare(&t.values, &q.values);
            if other.1 < 0.5 * plain.1 || p.dims != q.dims {
                other
            } else {
                plain
            }
        }
        None => plain,
    }
}

/// What of a tensor was kept: as the file records it, or else as the elements show.
fn kept_part(
    p: &Numbers,
    q: &Numbers,
    recorded: &[Kept],
    x: &Constant,
    y: &Constant,
) -> Option<(Vec<KeptAxis>, Numbers)> {
    if p.dims.len() != q.dims.len() {
        return None;
    }
    let apply = |kept: &[(usize, Vec<usize>)]| {
        let mut part = p.clone();
        for (axis, indices) in kept {
            part = part.gather(*axis, indices)?;
        }
        (part.dims == q.dims).then_some(part)
    };
    let told = compose(recorded);
    if let Some(told) = told.filter(|t| !t.is_empty())
        && let Some(part) = apply(&told)
    {
        return Some((axes(p, &told, true), part));
    }
    let found = find_kept(x, y)?;
    let part = apply(&found)?;
    Some((axes(p, &found, false), part))
}

/// The kept indices by axis. Where an axis was cut twice, the later cut counts into what the
/// earlier one left.
fn compose(recorded: &[Kept]) -> Option<Vec<(usize, Vec<usize>)>> {
    let mut out: Vec<(usize, Vec<usize>)> = Vec::new();
    for k in recorded {
        let axis = usize::try_from(k.axis).ok()?;
        let indices = k.indices.iter().map(|&i| usize::try_from(i).ok());
        let indices: Vec<usize> = indices.collect::<Option<_>>()?;
        match out.iter_mut().find(|(a, _)| *a == axis) {
            Some((_, before)) => {
                let both: Option<Vec<usize>> =
                    indices.iter().map(|&i| before.get(i).copied()).collect();
                *before = both?;
            }
            None => out.push((axis, indices)),
        }
    }
    Some(out)
}

fn axes(p: &Numbers, kept: &[(usize, Vec<usize>)], recorded: bool) -> Vec<KeptAxis> {
    kept.iter()
        .map(|(axis, indices)| KeptAxis {
            axis: *axis,
            of: p.dims.get(*axis).copied().unwrap_or(0),
            count: indices.len(),
            indices: ranges(indices),
            recorded,
        })
        .collect()
}

/// Indices as ranges: `0-15,32`.
fn ranges(indices: &[usize]) -> String {
    let runs = indices.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let texts: Vec<String> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            [only] => only.to_string(),
            [] => String::new(),
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    #[test]
    fn indices_become_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn a_turned_matrix_is_compared_turned() {
        let p = Numbers {
            dims: vec![2, 3],
            values: vec![0., 1., 2., 3., 4., 5.],
        };
        let q = p.transpose(&[1, 0]).unwrap();
        assert_eq!(nearest(&p, &q), (0.0, 0.0));
        let cut = Kept {
            axis: 0,
            indices: [1, 3, 5].into(),
        };
        let again = Kept {
            axis: 0,
            indices: [0, 2].into(),
        };
        assert_eq!(compose(&[cut, again]), Some(vec![(0, vec![1, 5])]));
    }
}

//! Operators that hold graphs: If, Loop, Scan, SequenceMap.

use std::sync::Arc;

use super::cx::{Fact, Out, Outs, normalize, typed};
use super::dim::SymDim;
use super::engine::Engine;
use super::fact::{SymDims, TensorFact};
use crate::op::Op;
use crate::tensor::DType;

/// A loop body is visited at most this often until what is carried has one type in all rounds.
const ROUNDS: usize = 4;

/// The branch that a known condition takes, or what both branches agree on.
pub(super) fn if_<'m>(e: &mut Engine<'m>, op: &'m Op) -> Outs {
    let taken = e.cx(op).known_ints(0);
    let taken = match taken.as_deref() {
        Some([v]) => Some(*v != 0),
        _ => None,
    };
    let mut branch = |name, when| {
        e.in_branch = taken != Some(when);
        e.body(op, name)
            .map(|body| e.subgraph(body, &[]))
            .unwrap_or_default()
    };
    let (yes, no) = (branch("then_branch", true), branch("else_branch", false));
    e.in_branch = false;
    match taken {
        Some(true) => yes.into(),
        Some(false) => no.into(),
        None => yes
            .iter()
            .zip(&no)
            .map(|(a, b)| common(e, a.as_ref()?, b.as_ref()?))
            .collect(),
    }
}

/// What two facts agree on.
fn common(e: &Engine<'_>, a: &Fact, b: &Fact) -> Out {
    if a == b {
        return Some(a.clone());
    }
    let dims = match (&a.dims, &b.dims) {
        (Some(a), Some(b)) if a.len() == b.len() => Some(
            a.iter()
                .zip(b)
                .map(|(a, b)| if a == b { a.clone() } else { e.fresh() })
                .collect(),
        ),
        _ => None,
    };
    typed(a.dtype.filter(|_| a.dtype == b.dtype), dims)
}

/// A value carried from round to round.
struct Carried {
    fact: Out,
    /// Axes whose size may differ from round to round.
    varying: Vec<usize>,
}

impl Carried {
    fn new(initial: Option<&Fact>) -> Carried {
        Carried {
            fact: initial.and_then(|f| typed(f.dtype, f.dims.clone())),
            varying: Vec::new(),
        }
    }

    /// Loosens the type until it covers what a round makes of the value. Answers whether it
    /// had to; with `give_up` nothing but what holds anyway is kept.
    fn cover(&mut self, e: &Engine<'_>, made: &Out, give_up: bool) -> bool {
        let Some(fact) = &self.fact else {
            return false;
        };
        let made_dtype = made.as_ref().and_then(|m| m.dtype);
        let made_dims = made.as_ref().and_then(|m| m.dims.as_ref());
        let dtype = fact.dtype.filter(|_| fact.dtype == made_dtype);
        let mut changed = dtype != fact.dtype;
        let dims = match (&fact.dims, made_dims) {
            (Some(old), Some(new)) if old.len() == new.len() => {
                let mut dims = SymDims::new();
                for (axis, (old, new)) in old.iter().zip(new).enumerate() {
                    if old == new || self.varying.contains(&axis) {
                        dims.push(old.clone());
                    } else {
                        changed = true;
                        self.varying.push(axis);
                        dims.push(e.fresh());
                    }
                }
                Some(dims)
            }
            (None, _) => None,
            _ => {
                changed = true;
                None
            }
        };
        if changed {
            self.fact = typed(dtype, dims.filter(|_| !give_up));
        }
        changed
    }

    /// The type after the last round: sizes that vary are symbols of their own.
    fn last(&self, e: &Engine<'_>) -> Out {
        let fact = self.fact.as_ref()?;
        let mut dims = fact.dims.clone();
        for d in dims
            .iter_mut()
            .flatten()
            .enumerate()
            .filter_map(|(i, d)| self.varying.contains(&i).then_some(d))
        {
            *d = e.fresh();
        }
        typed(fact.dtype, dims)
    }
}

/// Visits a body until what is carried is stable. `first` are the inputs before what is
/// carried, `after` those behind; the body's outputs skip as many as `skip` before what is carried.
fn rounds<'m>(
    e: &mut Engine<'m>,
    op: &'m Op,
    first: &[Out],
    carried: &mut [Carried],
    after: &[Out],
    skip: usize,
) -> Vec<Out> {
    let Some(body) = e.body(op, "body") else {
        return Vec::new();
    };
    for round in 0..ROUNDS + 1 {
        let last_chance = round + 1 >= ROUNDS || !e.has_visits_left();
        let last = round == ROUNDS || (round == 0 && !e.has_visits_left());
        if last {
            // No shape of what is carried is assumed, and element types must not change from
            // round to round, so this visit is right without another one.
            for c in carried.iter_mut() {
                c.fact = c.fact.as_ref().and_then(|f| typed(f.dtype, None));
            }
        }
        let mut inputs = first.to_vec();
        inputs.extend(carried.iter().map(|c| c.fact.clone()));
        inputs.extend_from_slice(after);
        let outs = e.subgraph(body, &inputs);
        let mut changed = false;
        for (i, c) in carried.iter_mut().enumerate() {
            changed |= c.cover(e, &outs.get(i + skip).cloned().flatten(), last_chance);
        }
        if !changed || last {
            return outs;
        }
    }
    Vec::new()
}

/// Sizes that a body made anew in each round mean nothing outside.
fn outside(e: &Engine<'_>, dims: &SymDims, first_symbol: u32) -> SymDims {
    dims.iter()
        .map(|d| {
            if d.mentions_anonymous_since(first_symbol) {
                e.fresh()
            } else {
                d.clone()
            }
        })
        .collect()
}

fn scalar(dtype: DType) -> Out {
    typed(Some(dtype), Some(SymDims::new()))
}

/// Loop: what is carried, and what is stacked along a new first axis.
pub(super) fn loop_<'m>(e: &mut Engine<'m>, op: &'m Op) -> Outs {
    let first_symbol = e.next.get();
    let mut carried: Vec<Carried> = {
        let cx = e.cx(op);
        (2..op.input_count())
            .map(|slot| Carried::new(cx.fact(slot)))
            .collect()
    };
    let count = carried.len();
    let first = [scalar(DType::I64), scalar(DType::Bool)];
    let outs = rounds(e, op, &first, &mut carried, &[], 1);
    let mut all: Outs = carried.iter().map(|c| c.last(e)).collect();
    for stacked in outs.iter().skip(count + 1) {
        all.push(stacked.as_ref().and_then(|f| {
            let dims = f.dims.as_ref().map(|d| {
                let mut dims = SymDims::from_iter([e.fresh()]);
                dims.extend(outside(e, d, first_symbol));
                dims
            });
            typed(f.dtype, dims)
        }));
    }
    all
}

/// Scan: what is carried, and what is stacked along an axis for each element of the inputs.
pub(super) fn scan<'m>(e: &mut Engine<'m>, op: &'m Op) -> Outs {
    if e.cx(op).opset < 9 {
        return scan_batches(e, op);
    }
    let first_symbol = e.next.get();
    let Some((mut carried, elements, length, out_axes)) = scan_inputs(e, op) else {
        return Outs::new();
    };
    let count = carried.len();
    let outs = rounds(e, op, &[], &mut carried, &elements, 0);
    let length = length.unwrap_or_else(|| e.fresh());
    let mut all: Outs = carried.iter().map(|c| c.last(e)).collect();
    for (i, stacked) in outs.iter().skip(count).enumerate() {
        let axis = out_axes.get(i).copied().unwrap_or(0);
        all.push(stacked.as_ref().and_then(|f| {
            let dims = f.dims.as_ref().and_then(|d| {
                let mut dims = outside(e, d, first_symbol);
                let axis = normalize(axis, dims.len() + 1)?;
                dims.insert(axis, length.clone());
                Some(dims)
            });
            typed(f.dtype, dims)
        }));
    }
    all
}

/// The first version of Scan: every input and output has a batch in front, scanned ones a
/// sequence behind it, and the body sees neither. A first input says how long the sequences are.
fn scan_batches<'m>(e: &mut Engine<'m>, op: &'m Op) -> Outs {
    let first_symbol = e.next.get();
    let (mut carried, mut elements) = (Vec::new(), Vec::new());
    let (mut batch, mut length) = (None, None);
    {
        let cx = e.cx(op);
        let scanned = cx
            .int("num_scan_inputs")
            .and_then(|n| usize::try_from(n).ok());
        let Some(first) = scanned.and_then(|n| op.input_count().checked_sub(n)) else {
            return Outs::new();
        };
        for slot in 1..op.input_count() {
            let skip = if slot < first { 1 } else { 2 };
            if let Some(dims) = cx.dims(slot) {
                batch = batch.or(dims.first().cloned());
                length = length.or(dims.get(1).filter(|_| skip == 2).cloned());
            }
            let element = typed(
                cx.dtype(slot),
                cx.dims(slot)
                    .map(|d| d.iter().skip(skip).cloned().collect()),
            );
            if slot < first {
                carried.push(Carried::new(element.as_ref()));
            } else {
                elements.push(element);
            }
        }
    }
    let count = carried.len();
    let outs = rounds(e, op, &[], &mut carried, &elements, 0);
    let batch = batch.unwrap_or_else(|| e.fresh());
    let length = length.unwrap_or_else(|| e.fresh());
    let within = |f: &Fact, dims: Option<SymDims>, front: &[SymDim]| {
        let dims = dims.map(|d| front.iter().cloned().chain(d).collect());
        typed(f.dtype, dims)
    };
    let mut all = Outs::new();
    for c in &carried {
        let last = c.last(e);
        all.push(last.and_then(|f| within(&f, f.dims.clone(), std::slice::from_ref(&batch))));
    }
    for stacked in outs.iter().skip(count).flatten() {
        let dims = stacked.dims.as_ref().map(|d| outside(e, d, first_symbol));
        all.push(within(stacked, dims, &[batch.clone(), length.clone()]));
    }
    all
}

type ScanInputs = (Vec<Carried>, Vec<Out>, Option<SymDim>, Vec<i64>);

/// The initial state, the types of the elements, their number, and the axes of the outputs.
fn scan_inputs<'m>(e: &Engine<'m>, op: &'m Op) -> Option<ScanInputs> {
    let cx = e.cx(op);
    let scanned = usize::try_from(cx.int("num_scan_inputs")?).ok()?;
    let states = op.input_count().checked_sub(scanned)?;
    let carried = (0..states).map(|i| Carried::new(cx.fact(i))).collect();
    let axes = cx.ints("scan_input_axes").unwrap_or(&[]);
    let mut length: Option<SymDim> = None;
    let mut elements = Vec::new();
    for i in 0..scanned {
        let axis = axes.get(i).copied().unwrap_or(0);
        elements.push(cx.fact(states + i).and_then(|f: &Arc<TensorFact>| {
            let dims = f.dims.as_ref().and_then(|d| {
                let mut dims = d.clone();
                let size = dims.remove(normalize(axis, dims.len())?);
                length = match &length {
                    Some(l) if l.known().is_some() => Some(l.clone()),
                    _ => Some(size),
                };
                Some(dims)
            });
            typed(f.dtype, dims)
        }));
    }
    let out_axes = cx.ints("scan_output_axes").unwrap_or(&[]).to_vec();
    Some((carried, elements, length, out_axes))
}

/// SequenceMap: what its body gets are elements of sequences, of which nothing is known.
pub(super) fn sequence_map<'m>(e: &mut Engine<'m>, op: &'m Op) -> Outs {
    if let Some(body) = e.body(op, "body") {
        e.subgraph(body, &[]);
    }
    Outs::new()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::graph::Graph;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    fn branch(len: i64) -> Graph {
        let mut g = Graph::new("branch");
        let t = Tensor::vector(vec![0f32; usize::try_from(len).unwrap()]);
        let op = g
            .add_op(NewOp::new("Constant").attr("value", t).output("c"))
            .unwrap();
        g.add_output(g.op(op).output(0).unwrap()).unwrap();
        g
    }

    #[test]
    fn branches_agree_or_the_size_is_open() {
        let mut t = Test::new(17);
        let cond = t.input("cond", DType::Bool, "");
        let if_ = |a, b| {
            NewOp::new("If")
                .attr("then_branch", branch(a))
                .attr("else_branch", branch(b))
        };
        let same = t.op1(if_(3, 3).input(cond));
        let other = t.op1(if_(3, 4).input(cond));
        let shapes = t.infer();
        assert_eq!(shapes.show(same), "float[3]");
        assert_eq!(shapes.show(other), "float[?]");
    }

    #[test]
    fn a_known_condition_takes_its_branch() {
        let mut t = Test::new(17);
        let cond = t.constant(Tensor::new(DType::Bool, [], vec![0u8]).unwrap());
        let y = t.op1(
            NewOp::new("If")
                .input(cond)
                .attr("then_branch", branch(3))
                .attr("else_branch", branch(4)),
        );
        assert_eq!(t.infer().show(y), "float[4]");
    }

    /// A body that appends one element to what it carries, and puts out the element `x`.
    fn growing(outer: crate::ValueId) -> Graph {
        let mut g = Graph::new("body");
        g.add_input("i", None).unwrap();
        let cond = g.add_input("cond", None).unwrap();
        let a = g.add_input("a", None).unwrap();
        let fixed = g.add_input("fixed", None).unwrap();
        let x = g.capture(outer, "x").unwrap();
        let op = g
            .add_op(
                NewOp::new("Concat")
                    .attr("axis", 0i64)
                    .input(a)
                    .input(x)
                    .output("b"),
            )
            .unwrap();
        let b = g.op(op).output(0).unwrap();
        let op = g
            .add_op(NewOp::new("Identity").input(cond).output("cond_out"))
            .unwrap();
        g.add_output(g.op(op).output(0).unwrap()).unwrap();
        g.add_output(b).unwrap();
        let relu = g
            .add_op(NewOp::new("Relu").input(fixed).output("same"))
            .unwrap();
        let same = g.op(relu).output(0).unwrap();
        g.add_output(same).unwrap();
        g.add_output(x).unwrap();
        g.add_output(b).unwrap();
        g
    }

    #[test]
    fn what_grows_in_a_loop_has_no_fixed_size() {
        let mut t = Test::new(17);
        let m = t.input("m", DType::I64, "");
        let cond = t.input("c", DType::Bool, "");
        let x = t.input("x", DType::F32, "1,k");
        let a = t.input("a", DType::F32, "2,k");
        let fixed = t.input("f", DType::F32, "5,7");
        let outs = t.op(
            NewOp::new("Loop")
                .inputs([m, cond, a, fixed].map(Some))
                .attr("body", growing(x)),
            4,
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(outs[0]), "float[?,k]");
        assert_eq!(shapes.show(outs[1]), "float[5,7]");
        assert_eq!(shapes.show(outs[2]), "float[?,1,k]");
        assert_eq!(shapes.show(outs[3]), "float[?,?,k]");
        // The two unknown sizes of the last output are no common size.
        let last = shapes.shapes.dims(outs[3]).unwrap();
        assert_ne!(last[0], last[1]);
    }

    #[test]
    fn scan_takes_one_axis_away_and_puts_one_back() {
        let mut body = Graph::new("body");
        let s = body.add_input("s", None).unwrap();
        let e = body.add_input("e", None).unwrap();
        let op = body
            .add_op(NewOp::new("Add").input(s).input(e).output("t"))
            .unwrap();
        let sum = body.op(op).output(0).unwrap();
        body.add_output(sum).unwrap();
        let op = body
            .add_op(NewOp::new("Relu").input(e).output("r"))
            .unwrap();
        body.add_output(body.op(op).output(0).unwrap()).unwrap();
        let mut t = Test::new(17);
        let s = t.input("s0", DType::F32, "n,8");
        let x = t.input("x", DType::F32, "n,t,8");
        let outs = t.op(
            NewOp::new("Scan")
                .input(s)
                .input(x)
                .attr("num_scan_inputs", 1i64)
                .attr("scan_input_axes", vec![1i64])
                .attr("scan_output_axes", vec![-1i64])
                .attr("body", body),
            2,
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(outs[0]), "float[n,8]");
        assert_eq!(shapes.show(outs[1]), "float[n,8,t]");
    }

    #[test]
    fn the_first_version_of_scan_has_batches() {
        let mut body = Graph::new("body");
        let s = body.add_input("s", None).unwrap();
        let e = body.add_input("e", None).unwrap();
        let op = body
            .add_op(NewOp::new("Add").input(s).input(e).output("t"))
            .unwrap();
        let sum = body.op(op).output(0).unwrap();
        body.add_output(sum).unwrap();
        body.add_output(sum).unwrap();
        let mut t = Test::new(8);
        let s = t.input("s0", DType::F32, "b,8");
        let x = t.input("x", DType::F32, "b,t,8");
        let outs = t.op(
            NewOp::new("Scan")
                .inputs([None, Some(s), Some(x)])
                .attr("num_scan_inputs", 1i64)
                .attr("body", body),
            2,
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(outs[0]), "float[b,8]");
        assert_eq!(shapes.show(outs[1]), "float[b,t,8]");
    }

    #[test]
    fn what_is_wrong_in_a_branch_that_may_not_run_is_no_conflict() {
        fn wrong(outer: crate::ValueId) -> Graph {
            let mut g = Graph::new("branch");
            let x = g.capture(outer, "x").unwrap();
            let op = NewOp::new("Squeeze").attr("axes", vec![0i64]);
            let op = g.add_op(op.input(x).output("y")).unwrap();
            g.add_output(g.op(op).output(0).unwrap()).unwrap();
            g
        }
        let mut t = Test::new(11);
        let x = t.input("x", DType::F32, "3");
        let open = t.input("cond", DType::Bool, "");
        let yes = t.constant(Tensor::new(DType::Bool, [], vec![1u8]).unwrap());
        let if_ = |cond| {
            NewOp::new("If")
                .input(cond)
                .attr("then_branch", wrong(x))
                .attr("else_branch", branch(3))
        };
        t.op1(if_(open));
        assert_eq!(t.infer().conflicts().len(), 0);
        t.op1(if_(yes));
        assert_eq!(t.infer().conflicts().len(), 1);
    }

    #[test]
    fn nested_loops_cost_little() {
        // Each level carries a value that grows, so each would be visited several times.
        fn nest(depth: usize) -> Graph {
            let mut g = Graph::new("body");
            let i = g.add_input("i", None).unwrap();
            let cond = g.add_input("cond", None).unwrap();
            let a = g.add_input("a", None).unwrap();
            let op = NewOp::new("Concat").attr("axis", 0i64);
            let op = g.add_op(op.input(a).input(a).output("b")).unwrap();
            let mut b = g.op(op).output(0).unwrap();
            if depth > 0 {
                let op = NewOp::new("Loop").inputs([i, cond, b].map(Some));
                let op = g
                    .add_op(op.attr("body", nest(depth - 1)).output("inner"))
                    .unwrap();
                b = g.op(op).output(0).unwrap();
            }
            let op = g
                .add_op(NewOp::new("Identity").input(cond).output("cond_out"))
                .unwrap();
            g.add_output(g.op(op).output(0).unwrap()).unwrap();
            g.add_output(b).unwrap();
            g
        }
        let mut t = Test::new(17);
        let m = t.input("m", DType::I64, "");
        let c = t.input("c", DType::Bool, "");
        let a = t.input("a", DType::F32, "1");
        let y = t.op1(
            NewOp::new("Loop")
                .inputs([m, c, a].map(Some))
                .attr("body", nest(24)),
        );
        let shapes = t.infer();
        assert_eq!(shapes.shapes.dtype(y), Some(DType::F32));
        assert_eq!(shapes.shapes.known_dims(y), None);
    }
}

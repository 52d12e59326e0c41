//! Matches small expressions of operators, written as expressions.
//!
//! A [`Pat`] describes what makes a value: operators, constants of a certain value, and places
//! that bind whatever stands there. Two operands of a commutative operator match in either
//! order. All operators of a match except the last one must serve nothing else: no other
//! operator, no graph in an attribute and no graph output takes what they make.
//!
//! ```text
//! mul(any(0), add(erf(div(any(0), scalar(1.41421356))), scalar(1.0)))
//! ```

use paring_ir::{DType, Graph, Op, OpId, Tensor, ValueId};

/// The most values that one pattern binds.
pub(crate) const SLOTS: usize = 8;

/// How far a constant may be from what a formula asks for, relative to it. Exporters write the
/// constants of activations as the float nearest to the real number, or with seven digits.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 4e-3,
        _ => 1e-6,
    }
}

/// What makes a value.
#[derive(Clone, Debug)]
pub(crate) enum Pat {
    /// Any value. The same slot stands for the same value wherever it appears.
    Any(usize),
    /// A constant of one element of this value.
    Scalar(f64),
    /// A constant of one element, bound to a slot.
    BoundScalar(usize),
    /// A standard operator with these first inputs, and no others that are present.
    Op(&'static str, Vec<Pat>),
    /// A standard operator of two inputs, in either order.
    Both(&'static str, Box<Pat>, Box<Pat>),
    /// A standard operator with this first input; further inputs and attributes are looked at by
    /// the caller, who finds the operator under the number.
    Marked(usize, &'static str, Box<Pat>),
    /// The first of several that matches.
    Either(Vec<Pat>),
    /// A value held to a range, as `Clip` or as `Min` and `Max` with constants.
    Clamp(Box<Pat>, f64, f64),
    /// A value squared: `Mul(x, x)` or `Pow(x, 2)`.
    Square(Box<Pat>),
}

pub(crate) fn any(slot: usize) -> Pat {
    Pat::Any(slot)
}
pub(crate) fn scalar(value: f64) -> Pat {
    Pat::Scalar(value)
}
pub(crate) fn add(a: Pat, b: Pat) -> Pat {
    Pat::Both("Add", Box::new(a), Box::new(b))
}
pub(crate) fn mul(a: Pat, b: Pat) -> Pat {
    Pat::Both("Mul", Box::new(a), Box::new(b))
}
pub(crate) fn sub(a: Pat, b: Pat) -> Pat {
    Pat::Op("Sub", vec![a, b])
}
pub(crate) fn div(a: Pat, b: Pat) -> Pat {
    Pat::Op("Div", vec![a, b])
}
pub(crate) fn unary(op: &'static str, x: Pat) -> Pat {
    Pat::Op(op, vec![x])
}
pub(crate) fn marked(mark: usize, op: &'static str, x: Pat) -> Pat {
    Pat::Marked(mark, op, Box::new(x))
}
pub(crate) fn either(all: impl IntoIterator<Item = Pat>) -> Pat {
    Pat::Either(all.into_iter().collect())
}
pub(crate) fn clamp(x: Pat, low: f64, high: f64) -> Pat {
    Pat::Clamp(Box::new(x), low, high)
}
/// `x * c` or `x / (1/c)`.
pub(crate) fn times(x: Pat, c: f64) -> Pat {
    either([mul(x.clone(), scalar(c)), div(x, scalar(1.0 / c))])
}

/// What a pattern matched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Match {
    slots: [Option<ValueId>; SLOTS],
    marks: [Option<OpId>; SLOTS],
    /// The matched operators, the last one of the data flow first.
    pub(crate) ops: Vec<OpId>,
    /// The highest rank among the constants of one element.
    pub(crate) scalar_rank: usize,
    /// The element type of the constants of one element.
    pub(crate) dtype: Option<DType>,
}

impl Match {
    /// The value that a slot stands for.
    pub(crate) fn value(&self, slot: usize) -> Option<ValueId> {
        self.slots.get(slot).copied().flatten()
    }

    fn saw(&mut self, scalar: &Tensor) {
        self.scalar_rank = self.scalar_rank.max(scalar.rank());
        self.dtype = Some(scalar.dtype());
    }

    /// The operator under a mark.
    pub(crate) fn marked(&self, mark: usize) -> Option<OpId> {
        self.marks.get(mark).copied().flatten()
    }
}

/// The standard operator that makes a value, when it is of this type and makes nothing else.
pub(crate) fn made_by(graph: &Graph, v: ValueId, op_type: &str) -> Option<OpId> {
    let op = graph.producer(v)?;
    let o = graph.get_op(op)?;
    (o.is(op_type) && o.outputs().iter().flatten().count() == 1).then_some(op)
}

/// The element of a constant of one element.
pub(crate) fn constant_scalar(graph: &Graph, v: ValueId) -> Option<f64> {
    graph.tensor(v)?.single_f64()
}

/// The bounds of a `Clip`, an infinity where there is none; `None` when they are computed, or
/// when the lower one is above the upper one.
pub(crate) fn clip_bounds(graph: &Graph, op: &Op, opset: i64) -> Option<(f64, f64)> {
    if !op.is("Clip") {
        return None;
    }
    let (low, high) = if opset < 11 {
        let bound = |name| op.float(name).map(f64::from);
        (bound("min"), bound("max"))
    } else {
        let bound = |slot| match op.input(slot) {
            None => Some(None),
            Some(v) => constant_scalar(graph, v).map(Some),
        };
        (bound(1)?, bound(2)?)
    };
    let (low, high) = (
        low.unwrap_or(f64::NEG_INFINITY),
        high.unwrap_or(f64::INFINITY),
    );
    (low <= high).then_some((low, high))
}

/// Matches patterns at the values of one graph.
pub(crate) struct Matcher<'g> {
    graph: &'g Graph,
    opset: i64,
}

impl<'g> Matcher<'g> {
    pub(crate) fn new(graph: &'g Graph, opset: i64) -> Matcher<'g> {
        Matcher { graph, opset }
    }

    /// Matches a pattern whose last operator is `root`. Operators before it that also serve
    /// something else are no match.
    pub(crate) fn at(&self, root: OpId, pat: &Pat) -> Option<Match> {
        let out = self.graph.get_op(root)?.output(0)?;
        let mut found = Match::default();
        if !self.value(out, pat, &mut found) {
            return None;
        }
        self.is_closed(&mut found).then_some(found)
    }

    /// Whether nothing outside the match takes what its inner operators make.
    fn is_closed(&self, found: &mut Match) -> bool {
        // An operator may be matched twice, where two operands are the same value.
        let mut seen: Vec<OpId> = Vec::with_capacity(found.ops.len());
        found.ops.retain(|op| {
            let new = !seen.contains(op);
            seen.push(*op);
            new
        });
        found.ops.iter().skip(1).all(|&op| {
            self.graph.op(op).outputs().iter().flatten().all(|&v| {
                let value = self.graph.value(v);
                !value.is_output() && value.uses().iter().all(|u| found.ops.contains(&u.op))
            })
        })
    }

    fn value(&self, v: ValueId, pat: &Pat, found: &mut Match) -> bool {
        match pat {
            Pat::Any(slot) => match found.slots[*slot] {
                Some(bound) => bound == v,
                None => {
                    found.slots[*slot] = Some(v);
                    true
                }
            },
            Pat::Scalar(wanted) => self.scalar(v, *wanted, found),
            Pat::BoundScalar(slot) => match self.graph.tensor(v) {
                Some(t) if t.len() == 1 && t.dtype().is_float() => {
                    found.saw(t);
                    self.value(v, &Pat::Any(*slot), found)
                }
                _ => false,
            },
            Pat::Op(op_type, inputs) => {
                let Some(op) = made_by(self.graph, v, op_type) else {
                    return false;
                };
                found.ops.push(op);
                let o = self.graph.op(op);
                o.inputs().flatten().count() == inputs.len()
                    && inputs
                        .iter()
                        .enumerate()
                        .all(|(i, p)| o.input(i).is_some_and(|v| self.value(v, p, found)))
            }
            Pat::Both(op_type, a, b) => self.both(v, op_type, a, b, found),
            Pat::Marked(mark, op_type, x) => {
                let Some(op) = made_by(self.graph, v, op_type) else {
                    return false;
                };
                found.ops.push(op);
                found.marks[*mark] = Some(op);
                let first = self.graph.op(op).input(0);
                first.is_some_and(|v| self.value(v, x, found))
            }
            Pat::Either(all) => all
                .iter()
                .any(|p| self.trial(found, |m, f| m.value(v, p, f))),
            Pat::Clamp(x, low, high) => self.clamped(v, x, *low, *high, found),
            Pat::Square(x) => self.squared(v, x, found),
        }
    }

    /// Matches, and forgets what was bound when that fails.
    fn trial(&self, found: &mut Match, f: impl FnOnce(&Self, &mut Match) -> bool) -> bool {
        let before = found.clone();
        let matched = f(self, found);
        if !matched {
            *found = before;
        }
        matched
    }

    fn both(&self, v: ValueId, op_type: &str, a: &Pat, b: &Pat, found: &mut Match) -> bool {
        let Some(op) = made_by(self.graph, v, op_type) else {
            return false;
        };
        let o = self.graph.op(op);
        let (Some(x), Some(y)) = (o.input(0), o.input(1)) else {
            return false;
        };
        found.ops.push(op);
        let order = |x, y| move |m: &Self, f: &mut Match| m.value(x, a, f) && m.value(y, b, f);
        o.input_count() == 2 && (self.trial(found, order(x, y)) || self.trial(found, order(y, x)))
    }

    fn scalar(&self, v: ValueId, wanted: f64, found: &mut Match) -> bool {
        let Some(t) = self.graph.tensor(v).filter(|t| t.dtype().is_float()) else {
            return false;
        };
        let near = t.single_f64().is_some_and(|c| {
            c == wanted || (c - wanted).abs() <= tolerance(t.dtype()) * wanted.abs()
        });
        if near {
            found.saw(t);
        }
        near
    }

    fn clamped(&self, v: ValueId, x: &Pat, low: f64, high: f64, found: &mut Match) -> bool {
        if let Some(op) = made_by(self.graph, v, "Clip") {
            let o = self.graph.op(op);
            let same = |a: f64, b: f64| a == b || (a - b).abs() <= 1e-6 * b.abs();
            let bounds = clip_bounds(self.graph, o, self.opset);
            found.ops.push(op);
            return bounds.is_some_and(|(l, h)| same(l, low) && same(h, high))
                && o.input(0).is_some_and(|v| self.value(v, x, found));
        }
        let both = |op, a, b| Pat::Both(op, Box::new(a), Box::new(scalar(b)));
        let lower = match low {
            0.0 => either([unary("Relu", x.clone()), both("Max", x.clone(), low)]),
            _ => both("Max", x.clone(), low),
        };
        let min_last = both("Min", lower, high);
        let max_last = both("Max", both("Min", x.clone(), high), low);
        self.value(v, &either([min_last, max_last]), found)
    }

    fn squared(&self, v: ValueId, x: &Pat, found: &mut Match) -> bool {
        if let Some(op) = made_by(self.graph, v, "Mul") {
            let o = self.graph.op(op);
            found.ops.push(op);
            return o.input_count() == 2
                && o.input(0) == o.input(1)
                && o.input(0).is_some_and(|v| self.value(v, x, found));
        }
        self.value(v, &Pat::Op("Pow", vec![x.clone(), scalar(2.0)]), found)
    }
}

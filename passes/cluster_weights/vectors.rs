//! Biases, scales of channels and parameters of normalizations in fewer bytes.
//!
//! Once the weights are clustered, a small network has about as many bytes in these. Those of one
//! shape are stacked, as whole numbers of 16 bits. With 8 bits a scale, or the largest bias, is off by
//! up to a hundredth, which cost a text recognizer 9 dB.
//!
//! What layers learn has a scale for each vector:
//!
//! ```text
//! rows = Cast <to = float> (numbers)       all = Mul (rows, scales)           [count, shape]
//! bias = Gather (all, 3)                   the fourth of them
//! ```
//!
//! Of the scales of clustered channels, where the smallest count as much as the largest, the numbers
//! are logarithms:
//!
//! ```text
//! rows = Cast <to = float> (numbers)       steps = Mul (rows, step)
//! logarithms = Add (steps, middle)         all = Exp (logarithms)
//! ```
//!
//! Only parameters that layers learn are taken, never constants that compute something.

use std::collections::{BTreeMap, HashSet};

use paring_ir::schema::{self, Class, Role};
use paring_ir::{DType, Graph, NewOp, PassError, Port, Tensor, ValueId};

use super::fit::round;
use super::store::{self, Store};

/// Shorter vectors take less than the operator that looks them up.
const MIN_LEN: usize = 24;

/// About what a stack and a member of it take in a file on top of numbers.
const STACK_BYTES: usize = 350;
const MEMBER_BYTES: usize = 85;

/// Bytes of a number.
const WIDTH: usize = 2;

/// What was saved.
#[derive(Default)]
pub(super) struct Saved {
    pub(super) vectors: usize,
    pub(super) before: usize,
    pub(super) after: usize,
}

/// What vectors hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Scales of clustered channels.
    Scales,
    /// What layers learned.
    Learned,
}

/// Vectors of one shape.
struct Stack {
    kind: Kind,
    dims: Vec<usize>,
    members: Vec<ValueId>,
}

impl Stack {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// The shape of all members together.
    fn stacked(&self) -> Vec<usize> {
        let count = [self.members.len()].into_iter();
        count.chain(self.dims.iter().copied()).collect()
    }

    /// Bytes of the elements in the file.
    fn stored(&self) -> usize {
        WIDTH * self.len() * self.members.len()
    }

    /// Bytes saved; negative where it takes more.
    fn gain(&self) -> i64 {
        let before = 4 * self.len() * self.members.len();
        let after = STACK_BYTES + self.stored() + MEMBER_BYTES * self.members.len();
        before as i64 - after as i64
    }
}

/// Stores the vectors of a graph as numbers of 16 bits, where that makes it smaller. `scales` are
/// those that clustered weights have.
pub(super) fn put(
    store: &mut Store<'_>,
    scales: &[ValueId],
    precision: Precision,
) -> Result<Saved, PassError> {
    let mut saved = Saved::default();
    store.hint("vectors");
    for stack in stacks(store.graph, scales) {
        match stack.kind {
            Kind::Scales => put_scales(store, &stack, precision)?,
            Kind::Learned => put_learned(store, &stack, precision)?,
        }
        saved.add(&stack);
    }
    Ok(saved)
}

impl Saved {
    fn add(&mut self, stack: &Stack) {
        let count = stack.members.len();
        self.vectors += count;
        self.before += 4 * stack.len() * count;
        self.after += stack.stored() + 4 * count;
    }
}

/// Vectors worth storing in fewer bytes, by shape.
fn stacks(graph: &Graph, scales: &[ValueId]) -> Vec<Stack> {
    let scales: HashSet<ValueId> = scales.iter().copied().collect();
    let mut by_shape: BTreeMap<(Kind, Vec<usize>), Vec<ValueId>> = BTreeMap::new();
    for v in graph.initializers() {
        let Some(t) = graph.tensor(v).filter(|t| is_vector(t)) else {
            continue;
        };
        let kind = match scales.contains(&v) {
            true if logarithms(graph, v).is_none() => continue,
            true => Kind::Scales,
            false if is_learned(graph, v) => Kind::Learned,
            false => continue,
        };
        let key = (kind, t.dims().to_vec());
        by_shape.entry(key).or_default().push(v);
    }
    let stacks = by_shape.into_iter();
    stacks
        .map(|((kind, dims), members)| Stack {
            kind,
            dims,
            members,
        })
        .filter(|stack| stack.gain() > 0)
        .collect()
}

/// Whether a tensor holds numbers that differ; a compressor sees to those that don't.
fn is_vector(t: &Tensor) -> bool {
    if t.dtype() != DType::F32 || t.len() < MIN_LEN {
        return false;
    }
    let all = t.to_f64s().unwrap_or_default();
    let differ = all.windows(2).any(|w| w[0] != w[1]);
    differ && all.iter().all(|x| x.is_finite())
}

/// Whether a constant is nothing but the bias of layers or a parameter of normalizations.
fn is_learned(graph: &Graph, v: ValueId) -> bool {
    let value = graph.value(v);
    let uses = value.uses();
    let learned = |port: Port, op| match port {
        Port::Input(slot) => is_parameter(graph, op, slot as usize),
        _ => false,
    };
    let fixed = !value.is_input() && !value.is_output();
    fixed && !uses.is_empty() && uses.iter().all(|u| learned(u.port, u.op))
}

fn is_parameter(graph: &Graph, op: paring_ir::OpId, slot: usize) -> bool {
    let o = graph.op(op);
    let Some(known) = schema::of(o) else {
        return false;
    };
    match known.class {
        Class::Linear | Class::Recurrent => known.role(slot) == Role::Bias,
        // Engines want to know the statistics of a normalization when they read the model.
        Class::Norm => {
            let role = known.role(slot);
            matches!(role, Role::Weight | Role::Bias) && known.slot_of(Role::Parameter).is_none()
        }
        // The bias of a product of matrices.
        _ if o.is("Add") => {
            let dims = o
                .input(slot)
                .and_then(|v| graph.tensor(v))
                .map(Tensor::dims);
            if dims.is_none_or(|dims| dims.iter().filter(|&&d| d != 1).count() != 1) {
                return false;
            }
            let other = o.input(1 - slot.min(1)).and_then(|v| graph.producer(v));
            let class = |op| schema::of(graph.op(op)).map(|k| k.class);
            other.and_then(class) == Some(Class::Linear)
        }
        _ => false,
    }
}

/// The elements of a vector.
fn elements(graph: &Graph, v: ValueId) -> Vec<f64> {
    let all = graph.tensor(v).and_then(Tensor::to_f64s);
    all.unwrap_or_default()
}

/// The logarithms of a vector; `None` where some element has none.
fn logarithms(graph: &Graph, v: ValueId) -> Option<Vec<f64>> {
    let all = elements(graph, v);
    let positive = all.iter().all(|x| *x > 0.0 && x.is_finite());
    positive.then(|| all.iter().map(|x| x.ln()).collect())
}

/// How many different numbers are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    /// As many as 16 bits can.
    Full,
    /// As many as 7 bits can, so that the numbers compress well: for weights whose codes were chosen
    /// to, and which have errors of their own that are larger.
    Coarse,
}

impl Precision {
    /// The largest number.
    fn most(self) -> f64 {
        match self {
            Precision::Full => 32767.0,
            Precision::Coarse => 63.0,
        }
    }

    fn number(self, x: f64) -> i16 {
        x.round_ties_even().clamp(-self.most(), self.most()) as i16
    }
}

/// Puts scales of channels into the graph by their logarithms.
fn put_scales(store: &mut Store<'_>, stack: &Stack, precision: Precision) -> Result<(), PassError> {
    let members = stack.members.iter();
    let all: Vec<f64> = members
        .flat_map(|&v| logarithms(store.graph, v).unwrap_or_default())
        .collect();
    let ends = all
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| {
            (a.min(*x), b.max(*x))
        });
    let middle = round(DType::F32, (ends.0 + ends.1) / 2.0);
    let step = round(
        DType::F32,
        ((ends.1 - ends.0) / 2.0 / precision.most()).max(1e-6),
    );
    let numbers = all
        .iter()
        .map(|x| precision.number((x - middle) / step))
        .collect();
    let rows = put_rows(store, stack, numbers)?;
    let mut constant = |what: &str, x: f64| store.own(what, store::tensor(DType::F32, &[], &[x])?);
    let (step, middle) = (constant("step", step)?, constant("middle", middle)?);
    let steps = store.op(NewOp::new("Mul").input(rows).input(step), "steps")?;
    let moved = NewOp::new("Add").input(steps).input(middle);
    let moved = store.op(moved, "logarithms")?;
    let all = store.op(NewOp::new("Exp").input(moved), "all")?;
    take_apart(store, stack, all)
}

/// Puts what layers learned into the graph.
fn put_learned(
    store: &mut Store<'_>,
    stack: &Stack,
    precision: Precision,
) -> Result<(), PassError> {
    let mut numbers = Vec::with_capacity(stack.len() * stack.members.len());
    let mut scales = Vec::with_capacity(stack.members.len());
    for &v in &stack.members {
        let all = elements(store.graph, v);
        let largest = all.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let scale = round(DType::F32, largest / precision.most());
        let scale = if scale > 1e-30 { scale } else { 1.0 };
        numbers.extend(all.iter().map(|x| precision.number(x / scale)));
        scales.push(scale);
    }
    let rows = put_rows(store, stack, numbers)?;
    let mut wide = vec![1; stack.dims.len() + 1];
    wide[0] = stack.members.len();
    let scales = store.own("scales", store::tensor(DType::F32, &wide, &scales)?)?;
    let all = store.op(NewOp::new("Mul").input(rows).input(scales), "all")?;
    take_apart(store, stack, all)
}

/// The numbers of a stack, and what makes floats of them.
fn put_rows(store: &mut Store<'_>, stack: &Stack, numbers: Vec<i16>) -> Result<ValueId, PassError> {
    store.hint("vectors");
    let numbers = store.own("numbers", Tensor::from_vec(stack.stacked(), numbers)?)?;
    store.cast(numbers, DType::F32)
}

/// Lets everything take the members of a stack out of it.
fn take_apart(store: &mut Store<'_>, stack: &Stack, all: ValueId) -> Result<(), PassError> {
    for (i, &v) in stack.members.iter().enumerate() {
        let name = store.graph.value(v).name().clone();
        if let Some(first) = store.graph.sorted_uses(v).first() {
            store.turn_to(first.op, &name);
        }
        let at = store.common("at", Tensor::scalar(store::signed(i)?))?;
        let made = store.gather(all, at, "wide")?;
        let graph = &mut *store.graph;
        graph.replace_value(v, made)?;
        graph.remove_value(v)?;
        graph.rename_value(made, name)?;
    }
    Ok(())
}

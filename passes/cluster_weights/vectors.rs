//! Biases, scales of channels and parameters of normalizations as codes of eight bits.
//!
//! Once the weights are clustered, a small network has about as many bytes in these. Those of one
//! shape are stacked, all stacks share a codebook, and each vector has a scale:
//!
//! ```text
//! index = Cast <to = int32> (codes)        rows = Gather (book, index)        [count, shape]
//! all = Mul (rows, scales)                 bias = Gather (all, 3)             the fourth of them
//! ```
//!
//! With 256 centroids this makes less than a hundredth of the error that 16 clusters make in the
//! weights. Only parameters that layers learn are taken, never constants that compute something.

use std::collections::{BTreeMap, HashSet};

use paring_ir::schema::{self, Class, Role};
use paring_ir::{DType, Graph, NewOp, PassError, Port, Tensor, ValueId};

use super::fit::{Chooser, round};
use super::kmeans;
use super::store::{self, Store};

/// Shorter vectors take less than the operator that looks them up.
const MIN_LEN: usize = 24;

/// About what a stack, a member of it and the codebook take in a file on top of codes.
const STACK_BYTES: usize = 450;
const MEMBER_BYTES: usize = 85;
const BOOK_BYTES: usize = 1100;

/// What was saved.
#[derive(Default)]
pub(super) struct Saved {
    pub(super) vectors: usize,
    pub(super) before: usize,
    pub(super) after: usize,
}

/// Vectors of one shape.
struct Stack {
    dims: Vec<usize>,
    members: Vec<ValueId>,
}

impl Stack {
    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes saved; negative where it takes more.
    fn gain(&self) -> i64 {
        let before = 4 * self.len() * self.members.len();
        let after = STACK_BYTES + (self.len() + MEMBER_BYTES) * self.members.len();
        before as i64 - after as i64
    }
}

/// Stores the vectors of a graph as codes, where that makes it smaller. `scales` are those that
/// clustered weights have.
pub(super) fn put(store: &mut Store<'_>, scales: &[ValueId]) -> Result<Saved, PassError> {
    let stacks = stacks(store.graph, scales);
    let gain: i64 = stacks.iter().map(Stack::gain).sum();
    if gain <= BOOK_BYTES as i64 {
        return Ok(Saved::default());
    }
    let book = codebook(store.graph, &stacks);
    let mut saved = Saved {
        after: 4 * book.len(),
        ..Saved::default()
    };
    store.hint("vectors");
    let table = store::tensor(DType::F32, &[book.len()], &book)?;
    let table = store.own("book", table)?;
    for stack in &stacks {
        let count = stack.members.len();
        put_stack(store, stack, &book, table)?;
        saved.vectors += count;
        saved.before += 4 * stack.len() * count;
        saved.after += (stack.len() + 4) * count;
    }
    Ok(saved)
}

/// Vectors worth storing as codes, by shape.
fn stacks(graph: &Graph, scales: &[ValueId]) -> Vec<Stack> {
    let scales: HashSet<ValueId> = scales.iter().copied().collect();
    let mut by_shape: BTreeMap<Vec<usize>, Vec<ValueId>> = BTreeMap::new();
    for v in graph.initializers() {
        let Some(t) = graph.tensor(v).filter(|t| is_vector(t)) else {
            continue;
        };
        if scales.contains(&v) || is_learned(graph, v) {
            by_shape.entry(t.dims().to_vec()).or_default().push(v);
        }
    }
    let stacks = by_shape.into_iter();
    stacks
        .map(|(dims, members)| Stack { dims, members })
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

/// The elements of a vector over their root mean square, and that.
fn normalized(graph: &Graph, v: ValueId) -> (Vec<f64>, f64) {
    let mut all = graph
        .tensor(v)
        .and_then(Tensor::to_f64s)
        .unwrap_or_default();
    let square: f64 = all.iter().map(|x| x * x).sum();
    let mean = round(DType::F32, (square / all.len().max(1) as f64).sqrt());
    let scale = if mean > 1e-30 { mean } else { 1.0 };
    all.iter_mut().for_each(|x| *x /= scale);
    (all, scale)
}

/// The centroids for all vectors, ascending. Zeros stay zeros.
fn codebook(graph: &Graph, stacks: &[Stack]) -> Vec<f64> {
    let members = stacks.iter().flat_map(|s| &s.members);
    let all = members.flat_map(|&v| normalized(graph, v).0);
    let (zeros, rest): (Vec<f64>, Vec<f64>) = all.partition(|x| *x == 0.0);
    let mut numbers: Vec<kmeans::Weighted> = rest.into_iter().map(|x| (x as f32, 1.0)).collect();
    let most = 256 - usize::from(!zeros.is_empty());
    let mut book = match numbers.is_empty() {
        true => Vec::new(),
        false => kmeans::centres(&mut numbers, most, kmeans::MAX_POINTS),
    };
    if !zeros.is_empty() {
        book.push(0.0);
    }
    book.iter_mut().for_each(|x| *x = round(DType::F32, *x));
    book.sort_by(f64::total_cmp);
    book
}

/// Puts one stack into the graph and lets everything take its members out of it.
fn put_stack(
    store: &mut Store<'_>,
    stack: &Stack,
    book: &[f64],
    table: ValueId,
) -> Result<(), PassError> {
    let chooser = Chooser::new(book, None);
    let mut codes = Vec::with_capacity(stack.len() * stack.members.len());
    let mut scales = Vec::with_capacity(stack.members.len());
    for &v in &stack.members {
        let (numbers, scale) = normalized(store.graph, v);
        codes.extend(numbers.iter().map(|&x| chooser.nearest(x)));
        scales.push(scale);
    }
    let count = stack.members.len();
    store.hint("vectors");
    let dims: Vec<usize> = [count]
        .into_iter()
        .chain(stack.dims.iter().copied())
        .collect();
    let codes = store.own("codes", Tensor::new(DType::U8, dims, codes)?)?;
    let index = store.cast(codes)?;
    let rows = store.gather(table, index, "rows")?;
    let mut wide = vec![1; stack.dims.len() + 1];
    wide[0] = count;
    let scales = store.own("scales", store::tensor(DType::F32, &wide, &scales)?)?;
    let scaled = NewOp::new("Mul").input(rows).input(scales);
    let all = store.op(scaled, "scaled")?;
    for (i, &v) in stack.members.iter().enumerate() {
        let name = store.graph.value(v).name().clone();
        if let Some(first) = store.graph.sorted_uses(v).first() {
            store.turn_to(first.op, &name);
        }
        let at = store.common("at", Tensor::scalar(store::signed(i)?))?;
        let made = store.gather(all, at, "looked_up")?;
        let graph = &mut *store.graph;
        graph.replace_value(v, made)?;
        graph.remove_value(v)?;
        graph.rename_value(made, name)?;
    }
    Ok(())
}

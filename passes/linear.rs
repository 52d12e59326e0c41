//! Linear operators with constant weights, and the folding of channel-wise affine maps into them.
//!
//! `Conv`, `ConvTranspose`, `Gemm` and `MatMul` compute `y[o] = sum(w[o, i] * x[i]) + b[o]` over
//! output channels `o` and input channels `i` (and kernel places). A map `s * y + t` after one of
//! them scales its weights by output channel; a map before it scales them by input channel, and
//! its offset adds to the bias what the weights make of a constant input. New weights are
//! computed in `f64` and rounded once; a result that is not finite, or so small that rounding it
//! loses more than an ordinary rounding does, is refused.

use std::collections::HashMap;

use half::{bf16, f16};
use paring_ir::{
    DType, Element, Graph, GraphError, NewOp, OpId, PassContext, Port, Tensor, ValueId,
};

use crate::facts::Facts;

/// Why a map was not folded.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// A stable code.
    pub(crate) code: &'static str,
    /// A sentence.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }
}

/// The plan of a rewrite; where there is none, a remark about the operator says why.
pub(crate) fn or_missed<T>(
    plan: Result<T, Refusal>,
    graph: &Graph,
    cx: &mut PassContext<'_>,
    op: OpId,
) -> Option<T> {
    plan.map_err(|why| cx.missed(graph, op, why.code, why.message))
        .ok()
}

/// The linear operators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Conv,
    ConvTranspose,
    Gemm,
    MatMul,
}

/// A linear operator with constant weights.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) op: OpId,
    pub(crate) kind: Kind,
    pub(crate) weight: ValueId,
    pub(crate) dtype: DType,
    /// The rank of the output, where the operator alone tells it.
    pub(crate) rank: Option<usize>,
    layout: Layout,
}

/// How the elements of a weight belong to channels: blocks of `d0` rows of `d1` runs of `inner`
/// elements. The axis that comes first counts all channels; the other one counts
/// those of one of the `groups`.
#[derive(Clone, Copy, Debug)]
struct Layout {
    d0: usize,
    d1: usize,
    inner: usize,
    groups: usize,
    output_first: bool,
}

impl Layout {
    /// The channel along the axis that counts all channels, and along the other one, of a group of elements.
    fn channels(&self, a0: usize, a1: usize) -> (usize, usize) {
        let other = a0 / (self.d0 / self.groups) * self.d1 + a1;
        if self.output_first {
            (a0, other)
        } else {
            (other, a0)
        }
    }

    fn counts(&self) -> (usize, usize) {
        let other = self.d1 * self.groups;
        if self.output_first {
            (self.d0, other)
        } else {
            (other, self.d0)
        }
    }
}

/// The linear operators by type.
pub(crate) fn kind_of(op: &paring_ir::Op) -> Option<Kind> {
    Some(match &**op.op_type() {
        _ if !op.domain().is_empty() => return None,
        "Conv" => Kind::Conv,
        "ConvTranspose" => Kind::ConvTranspose,
        "Gemm" => Kind::Gemm,
        "MatMul" => Kind::MatMul,
        _ => return None,
    })
}

impl Linear {
    /// Looks at an operator; `None` when it is no linear operator.
    pub(crate) fn of(graph: &Graph, op: OpId) -> Option<Result<Linear, Refusal>> {
        let kind = kind_of(graph.get_op(op)?)?;
        Some(Linear::with_kind(graph, op, kind))
    }

    fn with_kind(graph: &Graph, op: OpId, kind: Kind) -> Result<Linear, Refusal> {
        let o = graph.op(op);
        let dynamic = || Refusal::new("dynamic-weight", "the weights are not constant");
        let weight = o.input(1).ok_or_else(dynamic)?;
        let t = graph.tensor(weight).ok_or_else(dynamic)?;
        if !t.dtype().is_float() || t.is_empty() {
            return Err(Refusal::new(
                "weight-type",
                format!("the weights are {:?}, not floating point", t.dtype()),
            ));
        }
        let odd = || {
            let dims = t.dims();
            Refusal::new("odd-weight", format!("the weights have the shape {dims:?}"))
        };
        let dims = t.dims();
        let groups = usize::try_from(o.int_or("group", 1)).map_err(|_| odd())?;
        let layout = match (kind, dims) {
            (Kind::Conv | Kind::ConvTranspose, [d0, d1, kernel @ ..]) if !kernel.is_empty() => {
                if groups == 0 || d0 % groups != 0 {
                    return Err(odd());
                }
                Layout {
                    d0: *d0,
                    d1: *d1,
                    inner: kernel.iter().product(),
                    groups,
                    output_first: kind == Kind::Conv,
                }
            }
            (Kind::Gemm, &[d0, d1]) => Layout {
                d0,
                d1,
                inner: 1,
                groups: 1,
                output_first: o.int_or("transB", 0) != 0,
            },
            (Kind::MatMul, [.., d0, d1]) => Layout {
                d0: *d0,
                d1: *d1,
                inner: 1,
                groups: 1,
                output_first: false,
            },
            _ => return Err(odd()),
        };
        Ok(Linear {
            op,
            kind,
            weight,
            dtype: t.dtype(),
            rank: (kind != Kind::MatMul).then_some(t.rank()),
            layout,
        })
    }

    /// The number of output channels.
    pub(crate) fn outputs(&self) -> usize {
        self.layout.counts().0
    }

    /// The number of input channels.
    pub(crate) fn inputs(&self) -> usize {
        self.layout.counts().1
    }

    /// Where the channels stand in the output (or input): the axis and the rank, when it is known.
    pub(crate) fn channel_place(&self, rank: Option<usize>) -> Place {
        match self.kind {
            Kind::Conv | Kind::ConvTranspose => Place::Axis1 {
                rank: self.rank.unwrap_or(0),
            },
            Kind::Gemm => Place::Last { rank: Some(2) },
            Kind::MatMul => Place::Last { rank },
        }
    }

    /// What the operator multiplies its product by.
    fn alpha(&self, graph: &Graph) -> f64 {
        match self.kind {
            Kind::Gemm => f64::from(graph.op(self.op).float("alpha").unwrap_or(1.0)),
            _ => 1.0,
        }
    }

    /// The bias by output channel; `None` when there is none.
    pub(crate) fn bias(&self, graph: &Graph) -> Result<Option<Vec<f64>>, Refusal> {
        let o = graph.op(self.op);
        let Some(v) = o.input(2).filter(|_| self.kind != Kind::MatMul) else {
            return Ok(None);
        };
        let t = graph
            .tensor(v)
            .ok_or_else(|| Refusal::new("dynamic-bias", "the bias is not constant"))?;
        let place = match self.kind {
            Kind::Gemm => Place::Last { rank: Some(2) },
            _ => Place::Last { rank: Some(1) },
        };
        let beta = match self.kind {
            Kind::Gemm => f64::from(o.float("beta").unwrap_or(1.0)),
            _ => 1.0,
        };
        let c = channel_values(t, place, self.outputs()).ok_or_else(|| {
            let dims = t.dims();
            Refusal::new("bias-shape", format!("the bias has the shape {dims:?}"))
        })?;
        // Only a Gemm may broadcast its bias.
        if c.len() == 1 && self.outputs() != 1 && self.kind != Kind::Gemm {
            return Err(Refusal::new("bias-shape", "the bias has one element"));
        }
        Ok(Some(c.into_iter().map(|c| c * beta).collect()))
    }

    /// Whether the operator pads its input: then a constant that is added to the input does not
    /// reach the padding.
    pub(crate) fn pads(&self, graph: &Graph) -> bool {
        let o = graph.op(self.op);
        match self.kind {
            Kind::Conv => {
                let auto = o.string("auto_pad").unwrap_or("NOTSET");
                !matches!(auto, "NOTSET" | "VALID")
                    || (auto == "NOTSET"
                        && o.ints("pads").is_some_and(|p| p.iter().any(|&p| p != 0)))
            }
            // Where the kernel overlaps itself depends on the place.
            Kind::ConvTranspose => true,
            Kind::Gemm | Kind::MatMul => false,
        }
    }
}

/// Where the channels stand in a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Axis 1 of this many.
    Axis1 { rank: usize },
    /// The last axis; the rank may not be known.
    Last { rank: Option<usize> },
}

/// The elements of a constant by channel (or the one element for all channels), when an
/// elementwise operator with the constant keeps the shape of a tensor whose channels stand there.
pub(crate) fn channel_values(t: &Tensor, place: Place, channels: usize) -> Option<Vec<f64>> {
    if t.is_empty() || !t.dtype().is_float() {
        return None;
    }
    let (rank, from_end) = match place {
        Place::Axis1 { rank } => (rank, rank.checked_sub(2)?),
        // A tensor with channels has one axis at the least.
        Place::Last { rank } => (rank.unwrap_or(1), 0),
    };
    if t.rank() > rank {
        return None;
    }
    let fits = t
        .dims()
        .iter()
        .rev()
        .enumerate()
        .all(|(i, &d)| d == 1 || (i == from_end && d == channels));
    if fits { t.to_f64s() } else { None }
}

/// A map `scale * x + shift` by channel; a list of one element is for all channels.
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub(crate) scale: Vec<f64>,
    pub(crate) shift: Vec<f64>,
}

impl Default for Affine {
    fn default() -> Self {
        Affine {
            scale: vec![1.0],
            shift: vec![0.0],
        }
    }
}

/// Combines two lists by channel.
pub(crate) fn zip(a: &[f64], b: &[f64], f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    match (a, b) {
        ([a], b) => b.iter().map(|&b| f(*a, b)).collect(),
        (a, [b]) => a.iter().map(|&a| f(a, *b)).collect(),
        (a, b) => a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect(),
    }
}

impl Affine {
    /// First this map, then the other one.
    pub(crate) fn then(&self, next: &Affine) -> Affine {
        Affine {
            scale: zip(&self.scale, &next.scale, |a, b| a * b),
            shift: zip(
                &zip(&self.shift, &next.scale, |t, s| t * s),
                &next.shift,
                |a, b| a + b,
            ),
        }
    }

    /// Whether it scales at all.
    pub(crate) fn scales(&self) -> bool {
        self.scale.iter().any(|&s| s != 1.0)
    }

    /// Whether it adds anything.
    pub(crate) fn shifts(&self) -> bool {
        self.shift.iter().any(|&t| t != 0.0)
    }

    /// Refuses numbers that are not finite.
    fn check(&self) -> Result<(), Refusal> {
        if self.scale.iter().chain(&self.shift).all(|v| v.is_finite()) {
            return Ok(());
        }
        let message = "a constant is infinite or undefined, or a divisor is zero";
        Err(Refusal::new("not-finite", message))
    }
}

/// A floating-point element type, computed with in `f64`.
trait Float: Element {
    /// The smallest number with full precision.
    const NORMAL: f64;
    /// A channel whose weights are all below this is one that training switched off, and no sum
    /// tells them from zero.
    const DEAD: f64;
    fn wide(self) -> f64;
    fn narrow(v: f64) -> Self;
}
macro_rules! float {
    ($($t:ty, $normal:expr, $dead:expr, $narrow:expr;)*) => { $(impl Float for $t {
        const NORMAL: f64 = $normal;
        const DEAD: f64 = $dead;
        fn wide(self) -> f64 { f64::from(self) }
        fn narrow(v: f64) -> $t { $narrow(v) }
    })* };
}
float! {
    f32, f32::MIN_POSITIVE as f64, 1e-30, |v: f64| v as f32;
    f64, f64::MIN_POSITIVE, 1e-30, |v| v;
    f16, 6.103515625e-5, 0.0, f16::from_f64;
    bf16, f32::MIN_POSITIVE as f64, 1e-30, bf16::from_f64;
}

fn out_of_range() -> Refusal {
    Refusal::new(
        "out-of-range",
        "the new weights would leave the range of their type",
    )
}

/// Rounds numbers to a type. Refuses what is not finite, and a list whose largest element is too
/// small for the type's full precision: smaller ones beside a larger one lose nothing that counts.
pub(crate) fn rounded(dtype: DType, dims: &[usize], values: &[f64]) -> Result<Tensor, Refusal> {
    narrow(dtype, dims, values, true)
}

/// The smallest number that a type holds with full precision.
pub(crate) fn smallest_normal(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => <f16 as Float>::NORMAL,
        DType::BF16 => <bf16 as Float>::NORMAL,
        DType::F64 => <f64 as Float>::NORMAL,
        _ => <f32 as Float>::NORMAL,
    }
}

/// Rounds numbers to a type. Refuses what is not finite.
pub(crate) fn narrowed(dtype: DType, dims: &[usize], values: &[f64]) -> Result<Tensor, Refusal> {
    narrow(dtype, dims, values, false)
}

fn narrow(dtype: DType, dims: &[usize], values: &[f64], normal: bool) -> Result<Tensor, Refusal> {
    fn go<T: Float>(dims: &[usize], values: &[f64], normal: bool) -> Result<Tensor, Refusal> {
        let narrow: Vec<T> = values.iter().map(|&v| T::narrow(v)).collect();
        let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let tiny = normal && largest > 0.0 && largest < T::NORMAL;
        if tiny || narrow.iter().any(|v| !v.wide().is_finite()) {
            return Err(out_of_range());
        }
        Tensor::from_vec(dims.iter().copied(), narrow).map_err(|_| out_of_range())
    }
    match dtype {
        DType::F32 => go::<f32>(dims, values, normal),
        DType::F64 => go::<f64>(dims, values, normal),
        DType::F16 => go::<f16>(dims, values, normal),
        DType::BF16 => go::<bf16>(dims, values, normal),
        _ => Err(out_of_range()),
    }
}

/// Scales a weight by output or input channel.
fn scaled(t: &Tensor, l: &Layout, scale: &[f64], by_output: bool) -> Result<Tensor, Refusal> {
    fn go<T: Float>(
        t: &Tensor,
        l: &Layout,
        scale: &[f64],
        by_output: bool,
    ) -> Result<Tensor, Refusal> {
        let old = t.view::<T>().map_err(|_| out_of_range())?;
        let mut new: Vec<T> = Vec::with_capacity(old.len());
        // By output channel, before and after.
        let mut largest = vec![(0.0f64, 0.0f64); l.counts().0];
        for (i, group) in old.chunks(l.inner).enumerate() {
            let (out, input) = l.channels(i / l.d1 % l.d0, i % l.d1);
            let channel = if by_output { out } else { input };
            let s = match scale {
                [s] => *s,
                all => *all.get(channel).ok_or_else(out_of_range)?,
            };
            for &w in group {
                let exact = w.wide() * s;
                let rounded = T::narrow(exact);
                if !rounded.wide().is_finite() {
                    return Err(out_of_range());
                }
                let (before, after) = &mut largest[out];
                *before = before.max(w.wide().abs());
                *after = after.max(exact.abs());
                new.push(rounded);
            }
        }
        let lost = |&(old, new): &(f64, f64)| old > T::DEAD && new > 0.0 && new < T::NORMAL;
        if largest.iter().any(lost) {
            return Err(out_of_range());
        }
        Tensor::from_vec(t.dims().iter().copied(), new).map_err(|_| out_of_range())
    }
    match t.dtype() {
        DType::F32 => go::<f32>(t, l, scale, by_output),
        DType::F64 => go::<f64>(t, l, scale, by_output),
        DType::F16 => go::<f16>(t, l, scale, by_output),
        DType::BF16 => go::<bf16>(t, l, scale, by_output),
        _ => Err(out_of_range()),
    }
}

/// What the weights make of an input that is constant by channel.
fn response(t: &Tensor, l: &Layout, input: &[f64]) -> Result<Vec<f64>, Refusal> {
    let weights = t.to_f64s().ok_or_else(out_of_range)?;
    let mut out = vec![0.0f64; l.counts().0];
    for (i, group) in weights.chunks(l.inner).enumerate() {
        let (o, c) = l.channels(i / l.d1 % l.d0, i % l.d1);
        let x = match input {
            [x] => *x,
            all => *all.get(c).ok_or_else(out_of_range)?,
        };
        out[o] += x * group.iter().sum::<f64>();
    }
    Ok(out)
}

/// A weight, the bits of a scale, and whether the scale is by output channel.
type Change = (ValueId, Vec<u64>, bool);

/// Weights that a pass made, so that two operators which share a weight and a map go on sharing.
#[derive(Default, Debug)]
pub(crate) struct Shared {
    made: HashMap<Change, ValueId>,
}

/// The largest weight that is copied when other operators keep the original.
pub(crate) const DEFAULT_MAX_COPY: u64 = 1 << 20;

/// Options of the passes that fold constants into weights.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FoldOptions {
    /// The largest weight, in bytes, that is copied because other operators share it. The default
    /// of 1 MiB keeps a fold from growing a model noticeably.
    pub max_copy: u64,
}

impl Default for FoldOptions {
    fn default() -> Self {
        FoldOptions {
            max_copy: DEFAULT_MAX_COPY,
        }
    }
}

/// A changed weight, and what tells it from other changes of the same weight.
#[derive(Debug)]
struct NewWeight {
    tensor: Tensor,
    scale: Vec<u64>,
    by_output: bool,
}

/// New weights and bias for a linear operator, computed and found possible.
#[derive(Debug)]
pub(crate) struct Fold {
    weight: Option<NewWeight>,
    bias: Option<Tensor>,
}

impl Fold {
    /// The fold of a map after the operator.
    pub(crate) fn after(
        graph: &Graph,
        linear: &Linear,
        map: &Affine,
        max_copy: u64,
    ) -> Result<Fold, Refusal> {
        map.check()?;
        let bias = match (linear.bias(graph)?, map.shifts()) {
            (None, false) => None,
            (None, true) => Some(map.shift.clone()),
            (Some(b), _) => Some(zip(
                &zip(&b, &map.scale, |b, s| b * s),
                &map.shift,
                |b, t| b + t,
            )),
        };
        Fold::new(graph, linear, &map.scale, true, bias, max_copy)
    }

    /// The fold of a map before the operator.
    pub(crate) fn before(
        graph: &Graph,
        linear: &Linear,
        map: &Affine,
        max_copy: u64,
    ) -> Result<Fold, Refusal> {
        map.check()?;
        let mut bias = None;
        if map.shifts() {
            let t = graph.tensor(linear.weight).ok_or_else(out_of_range)?;
            let made = response(t, &linear.layout, &map.shift)?;
            let alpha = linear.alpha(graph);
            let made: Vec<f64> = made.into_iter().map(|m| m * alpha).collect();
            bias = Some(match linear.bias(graph)? {
                None => made,
                Some(b) => zip(&b, &made, |b, m| b + m),
            });
        }
        Fold::new(graph, linear, &map.scale, false, bias, max_copy)
    }

    fn new(
        graph: &Graph,
        linear: &Linear,
        scale: &[f64],
        by_output: bool,
        bias: Option<Vec<f64>>,
        max_copy: u64,
    ) -> Result<Fold, Refusal> {
        let bias = match bias {
            // The smallest numbers of a bias don't count beside what the weights make, so only
            // what is not finite is refused.
            Some(b) => {
                let all = zip(&b, &vec![0.0; linear.outputs()], |b, _| b);
                Some(narrow(linear.dtype, &[linear.outputs()], &all, false)?)
            }
            None => None,
        };
        Ok(Fold {
            weight: linear.scale(graph, scale, by_output, max_copy)?,
            bias,
        })
    }

    /// Puts the new weights and bias into the operator; `sources` are the constants of the map.
    pub(crate) fn apply(
        self,
        graph: &mut Graph,
        linear: &Linear,
        sources: &[ValueId],
        shared: &mut Shared,
    ) -> Result<(), GraphError> {
        if let Some(new) = self.weight {
            let key = (linear.weight, new.scale, new.by_output);
            let memory = Some((shared, key));
            replace_constant(graph, (linear.op, 1), new.tensor, sources, memory)?;
        }
        let Some(bias) = self.bias else { return Ok(()) };
        if graph.op(linear.op).input(2).is_some() {
            replace_constant(graph, (linear.op, 2), bias, sources, None)?;
        } else {
            let v = add_bias(graph, linear, bias, sources)?;
            graph.set_input(linear.op, 2, Some(v))?;
        }
        // The new bias holds the factor.
        if linear.kind == Kind::Gemm && graph.op(linear.op).float("beta").is_some() {
            graph.set_attr(linear.op, "beta", 1.0f32)?;
        }
        Ok(())
    }
}

fn add_bias(
    graph: &mut Graph,
    linear: &Linear,
    bias: Tensor,
    sources: &[ValueId],
) -> Result<ValueId, GraphError> {
    let hint = format!("{}_bias", graph.value(linear.weight).name());
    let v = graph.add_constant(&hint, bias)?;
    graph.set_tensor_sources(v, sources)?;
    Ok(v)
}

impl Linear {
    /// The scaled weight; `None` when the scale is 1.
    fn scale(
        &self,
        graph: &Graph,
        scale: &[f64],
        by_output: bool,
        max_copy: u64,
    ) -> Result<Option<NewWeight>, Refusal> {
        if scale.iter().all(|&s| s == 1.0) {
            return Ok(None);
        }
        let t = graph.tensor(self.weight).ok_or_else(out_of_range)?;
        check_copy(graph, self.weight, t, max_copy)?;
        Ok(Some(NewWeight {
            tensor: scaled(t, &self.layout, scale, by_output)?,
            scale: scale.iter().map(|s| s.to_bits()).collect(),
            by_output,
        }))
    }
}

/// Refuses to copy a large tensor that others keep using.
pub(crate) fn check_copy(
    graph: &Graph,
    v: ValueId,
    t: &Tensor,
    max_copy: u64,
) -> Result<(), Refusal> {
    let bytes = t.byte_len() as u64;
    if graph.value(v).has_single_use() || bytes <= max_copy {
        return Ok(());
    }
    Err(Refusal::new(
        "shared-weight",
        format!("other operators use the weights too, and a copy would take {bytes} bytes"),
    ))
}

/// Puts a changed tensor into an input slot: in place when nothing else takes the old one, else
/// as a new constant.
pub(crate) fn replace_constant(
    graph: &mut Graph,
    (op, slot): (OpId, usize),
    tensor: Tensor,
    sources: &[ValueId],
    shared: Option<(&mut Shared, Change)>,
) -> Result<(), GraphError> {
    let Some(old) = graph.op(op).input(slot) else {
        return Ok(());
    };
    let all: Vec<ValueId> = std::iter::once(old)
        .chain(sources.iter().copied())
        .collect();
    if graph.value(old).has_single_use() {
        graph.set_tensor(old, tensor, Vec::new())?;
        // What a pruning pass kept stays on record rather than the names of the sources.
        if graph
            .value(old)
            .provenance()
            .is_none_or(|p| p.kept.is_empty())
        {
            graph.set_tensor_sources(old, &all)?;
        }
        return Ok(());
    }
    if let Some((shared, key)) = &shared
        && let Some(&there) = shared.made.get(key)
        && graph.tensor(there) == Some(&tensor)
    {
        return graph.set_input(op, slot, Some(there));
    }
    let hint = format!("{}_folded", graph.value(old).name());
    let new = graph.add_constant(&hint, tensor)?;
    graph.set_tensor_sources(new, &all)?;
    if let Some((shared, key)) = shared {
        shared.made.insert(key, new);
    }
    graph.set_input(op, slot, Some(new))
}

/// Makes a fold of what follows a linear operator. `chain` are the operators of the map, in the
/// order of the data; the linear operator takes over the value that the last of them makes.
pub(crate) fn fold_after(
    graph: &mut Graph,
    linear: &Linear,
    chain: &[OpId],
    mut fold: Fold,
    sources: &[ValueId],
    shared: &mut Shared,
) -> Result<(), GraphError> {
    let bias = if linear.kind == Kind::MatMul {
        fold.bias.take()
    } else {
        None
    };
    fold.apply(graph, linear, sources, shared)?;
    let product = graph.op(linear.op).output(0);
    if let (Some(bias), Some((&last, before)), Some(product)) = (bias, chain.split_last(), product)
    {
        // A MatMul has no bias: the last operator becomes the Add that a Gemm may take up later.
        let c = add_bias(graph, linear, bias, sources)?;
        let add = NewOp::new("Add").input(product).input(c);
        graph.replace_op(last, add.from(before.iter().copied()))?;
        for &op in before.iter().rev() {
            graph.remove_op(op)?;
        }
        return Ok(());
    }
    for &op in chain {
        if let Some(out) = graph.op(op).output(0) {
            graph.move_output(out, linear.op, 0)?;
        }
        graph.remove_op(op)?;
    }
    Ok(())
}

/// The operator that alone takes a value, at an input slot.
pub(crate) fn only_consumer(graph: &Graph, v: ValueId) -> Option<(OpId, usize)> {
    match graph.single_consumer(v)? {
        (op, Port::Input(slot)) => Some((op, slot as usize)),
        _ => None,
    }
}

/// Whether the channels of what a linear operator takes stand where a constant of more than one
/// element assumes them: the value must have that many channels already, since a broadcast over
/// one channel would be lost.
pub(crate) fn has_channels(
    graph: &Graph,
    facts: &Facts,
    v: ValueId,
    place: Place,
    channels: usize,
) -> bool {
    let axis = match place {
        Place::Axis1 { .. } => Some(1),
        Place::Last { rank } => rank.and_then(|r| r.checked_sub(1)),
    };
    axis.is_some_and(|a| facts.dim(graph, v, a) == Some(channels))
}

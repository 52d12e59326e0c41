//! Finds what a model with QuantizeLinear and DequantizeLinear says about its layers: which
//! could run in integers, on which bytes, and what becomes of their results.

use std::collections::BTreeMap;

use paring_ir::{DType, Graph, OpId, PassError, Port, Tensor, ValueId, schema};

/// One scale and zero point for a whole tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Params {
    pub(super) scale: f32,
    /// As a signed byte: that of unsigned bytes is 128 less.
    pub(super) zero: i8,
}

impl Params {
    /// The least and the largest number that can be told.
    pub(super) fn range(self) -> (f64, f64) {
        let at = |q: i32| f64::from(q - i32::from(self.zero)) * f64::from(self.scale);
        (at(-128), at(127))
    }
}

/// A tensor of bytes that stands between a QuantizeLinear and its DequantizeLinears.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    /// The value before the QuantizeLinear.
    pub(super) source: ValueId,
    /// The DequantizeLinear operators that take it.
    pub(super) readers: Vec<OpId>,
    /// `None` where the engine has no bytes of this form: several scales, or more bits.
    pub(super) params: Option<Params>,
    /// An operator between dequantized and quantized values that hands bytes on as they are, and
    /// the bytes that it takes.
    pub(super) handed_on: Option<(OpId, ValueId)>,
}

/// A weight in signed bytes whose zero is zero.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    /// What the DequantizeLinear takes.
    pub(super) stored: ValueId,
    pub(super) dims: Vec<usize>,
    pub(super) numbers: Vec<i8>,
    /// One scale, or one for each output.
    pub(super) scales: Vec<f32>,
    /// The axis of the outputs.
    pub(super) axis: usize,
}

impl Weight {
    /// How many outputs there are.
    pub(super) fn outputs(&self) -> usize {
        self.dims.get(self.axis).copied().unwrap_or(1)
    }

    /// The output that an element belongs to.
    pub(super) fn output_of(&self, element: usize) -> usize {
        let inner: usize = self.dims.iter().skip(self.axis + 1).product();
        element / inner.max(1) % self.outputs().max(1)
    }

    /// The scale of an output.
    pub(super) fn scale(&self, output: usize) -> f32 {
        let found = self.scales.get(output).or(self.scales.first());
        found.copied().unwrap_or(1.0)
    }
}

/// An operator that could run in integers.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) op: OpId,
    /// The bytes that it takes.
    pub(super) input: ValueId,
    pub(super) weight: Weight,
    /// The numbers that are added, by output.
    pub(super) bias: Option<Vec<f64>>,
    /// The value after the bias.
    pub(super) sum: ValueId,
    /// The bytes that nothing but a clamp separates from `sum`.
    pub(super) output: Option<ValueId>,
    /// The operators that the layer is made of: itself, the Add of its bias, and clamps.
    pub(super) parts: Vec<OpId>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of the data.
    pub(super) layers: Vec<Layer>,
    pub(super) bytes: BTreeMap<ValueId, Bytes>,
    /// The order of `bytes` in the data.
    pub(super) order: Vec<ValueId>,
    /// Operators that hand bytes on, and the bytes behind them.
    pub(super) handing: BTreeMap<OpId, ValueId>,
    pub(super) left: Vec<(OpId, &'static str, String)>,
}

/// Operators that move elements about without looking at them, or take the largest.
const HANDS_ON: &[&str] = &[
    "Flatten",
    "MaxPool",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Looks through a graph.
pub(super) fn find(graph: &Graph) -> Result<Found, PassError> {
    let mut found = Found::default();
    let order = graph.topological_order()?;
    for &op in &order {
        if let Some((value, bytes)) = quantized(graph, op) {
            found.bytes.insert(value, bytes);
            found.order.push(value);
        }
    }
    for v in found.order.clone() {
        let handed = handed_on(graph, &found.bytes, v);
        if let Some((op, _)) = handed {
            found.handing.insert(op, v);
        }
        if let Some(b) = found.bytes.get_mut(&v) {
            b.handed_on = handed;
        }
    }
    for &op in &order {
        if !["Conv", "Gemm", "MatMul"]
            .iter()
            .any(|t| graph.op(op).is(t))
        {
            continue;
        }
        match layer(graph, op, &found.bytes) {
            Ok(Some(layer)) => found.layers.push(layer),
            Ok(None) => {}
            Err((code, why)) => found.left.push((op, code, why.to_owned())),
        }
    }
    Ok(found)
}

/// What a QuantizeLinear makes of floats.
fn quantized(graph: &Graph, op: OpId) -> Option<(ValueId, Bytes)> {
    let o = graph.op(op);
    if !o.is("QuantizeLinear") {
        return None;
    }
    let (source, made) = (o.input(0)?, o.output(0)?);
    let value = graph.value(made);
    let mut readers = Vec::new();
    for u in graph.sorted_uses(made) {
        if u.port != Port::Input(0) || !graph.op(u.op).is("DequantizeLinear") {
            return None;
        }
        // Read with another scale it is another operation.
        let same = (1..3).all(|slot| {
            let (a, b) = (graph.input_tensor(op, slot), graph.input_tensor(u.op, slot));
            a.map(Tensor::bytes) == b.map(Tensor::bytes)
        });
        if !same || graph.op(u.op).int_or("axis", 1) != o.int_or("axis", 1) {
            return None;
        }
        readers.push(u.op);
    }
    if value.is_output() || readers.is_empty() || graph.tensor(source).is_some() {
        return None;
    }
    let params = params(graph, op);
    let bytes = Bytes {
        source,
        readers,
        params,
        handed_on: None,
    };
    Some((made, bytes))
}

fn params(graph: &Graph, op: OpId) -> Option<Params> {
    let o = graph.op(op);
    let scale = graph.input_tensor(op, 1)?;
    let scale = scale.view::<f32>().ok().filter(|s| s.len() == 1)?[0];
    let zero = match o.input(2) {
        None if o.int("output_dtype").is_none() => -128,
        None => return None,
        Some(v) => zero_point(graph.tensor(v).filter(|t| t.len() == 1)?)?,
    };
    let good = scale.is_finite() && scale > 0.0;
    good.then_some(Params { scale, zero })
}

/// The first zero point, as a signed byte.
fn zero_point(t: &Tensor) -> Option<i8> {
    let first = t.to_i64s()?.first().copied()?;
    let shift = match t.dtype() {
        DType::U8 => 128,
        DType::I8 => 0,
        _ => return None,
    };
    i8::try_from(first - shift).ok()
}

/// The operator and the bytes before it, where it hands them on as they are.
fn handed_on(
    graph: &Graph,
    all: &BTreeMap<ValueId, Bytes>,
    made: ValueId,
) -> Option<(OpId, ValueId)> {
    let bytes = all.get(&made)?;
    let op = graph.producer(bytes.source)?;
    let o = graph.op(op);
    let known = HANDS_ON.iter().any(|t| o.is(t));
    if !known || !o.domain().is_empty() || o.outputs().iter().flatten().count() != 1 {
        return None;
    }
    graph.single_consumer(bytes.source)?;
    let before = graph.producer(o.input(0)?)?;
    let before = graph.op(before);
    let from = before.input(0).filter(|_| before.is("DequantizeLinear"))?;
    let same = all.get(&from)?.params == bytes.params && bytes.params.is_some();
    // The largest of signed bytes is the largest number, and padding never wins.
    same.then_some((op, from))
}

type Refusal = (&'static str, &'static str);

fn layer(
    graph: &Graph,
    op: OpId,
    all: &BTreeMap<ValueId, Bytes>,
) -> Result<Option<Layer>, Refusal> {
    let o = graph.op(op);
    let dequantized = |slot: usize| {
        let p = graph.producer(o.input(slot)?)?;
        graph.op(p).is("DequantizeLinear").then_some(p)
    };
    let (Some(x), Some(w)) = (dequantized(0), dequantized(1)) else {
        return Ok(None);
    };
    let (Some(input), Some(sum)) = (graph.op(x).input(0), o.output(0)) else {
        return Ok(None);
    };
    // Two activations, as in attention, or bytes that come from outside.
    let (Some(bytes), true) = (all.get(&input), graph.input_tensor(w, 0).is_some()) else {
        return Ok(None);
    };
    if bytes.params.is_none() {
        return Err((
            "element-type",
            "the activation has no single scale, or not 8 bits",
        ));
    }
    if o.is("Conv") && o.int_or("group", 1) != 1 {
        return Err((
            "depthwise",
            "the engine has no integer kernel for grouped and depthwise convolutions",
        ));
    }
    let odd = o.int_or("transA", 0) != 0
        || o.float("alpha").unwrap_or(1.0) != 1.0
        || (o.float("beta").unwrap_or(1.0) != 1.0 && o.input(2).is_some());
    if o.is("Gemm") && odd {
        return Err(("odd-gemm", "it has transA, alpha or beta"));
    }
    let weight = weight(graph, op, w)?;
    let mut layer = Layer {
        op,
        input,
        bias: None,
        sum,
        output: None,
        parts: vec![op],
        weight,
    };
    let slot_two = o.input(2).filter(|_| !o.is("MatMul"));
    if let Some(v) = slot_two {
        let numbers = numbers(graph, v, layer.weight.outputs());
        layer.bias = Some(numbers.ok_or(("odd-bias", "the bias is not constant by output"))?);
    } else if !o.is("Conv") {
        take_sum(graph, &mut layer);
    }
    take_output(graph, &mut layer, all);
    Ok(Some(layer))
}

/// The weight behind a DequantizeLinear.
fn weight(graph: &Graph, op: OpId, dequantize: OpId) -> Result<Weight, Refusal> {
    let odd = ("odd-weight", "the weight has no form that is known");
    let o = graph.op(op);
    let stored = graph.op(dequantize).input(0).ok_or(odd)?;
    let t = graph.tensor(stored).ok_or(odd)?;
    let axis = match o.is("Conv") || (o.is("Gemm") && o.int_or("transB", 0) != 0) {
        true => 0,
        false => 1,
    };
    let matrix = if o.is("Conv") {
        t.rank() >= 3
    } else {
        t.rank() == 2
    };
    let shift = match t.dtype() {
        DType::I8 => 0,
        DType::U8 => 128,
        _ => return Err(("element-type", "the weight has not 8 bits")),
    };
    if !matrix || t.is_empty() {
        return Err(odd);
    }
    let zeros = match graph.op(dequantize).input(2) {
        Some(_) => {
            let t = graph.input_tensor(dequantize, 2).ok_or(odd)?;
            t.to_i64s().ok_or(odd)?
        }
        None => vec![0],
    };
    if zeros.iter().any(|z| z - shift != 0) {
        return Err((
            "weight-zero-point",
            "the weight has a zero point, which costs more than integers save",
        ));
    }
    let scales = graph.input_tensor(dequantize, 1).ok_or(odd)?;
    let scales = scales.view::<f32>().map_err(|_| odd)?.to_vec();
    let dims = t.dims().to_vec();
    let by = graph.op(dequantize).int_or("axis", 1);
    let by = if by < 0 { by + dims.len() as i64 } else { by };
    let by_output = scales.len() == dims[axis] && by == axis as i64;
    if !(scales.len() == 1 || by_output) || scales.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(("odd-weight", "the scales of the weight are not by output"));
    }
    let all = t.to_i64s().ok_or(odd)?;
    let numbers = all.iter().map(|n| (n - shift).clamp(-128, 127) as i8);
    Ok(Weight {
        stored,
        numbers: numbers.collect(),
        dims,
        scales,
        axis,
    })
}

/// The numbers of a constant, dequantized or not, one for each output.
fn numbers(graph: &Graph, v: ValueId, outputs: usize) -> Option<Vec<f64>> {
    let all = match graph.producer(v) {
        Some(p) if graph.op(p).is("DequantizeLinear") => {
            let all = graph.input_tensor(p, 0)?.to_f64s()?;
            let scales = graph.input_tensor(p, 1)?.to_f64s()?;
            let zeros = graph.input_tensor(p, 2).and_then(Tensor::to_f64s);
            let of = |list: &[f64], i: usize| list.get(i).or(list.first()).copied();
            if scales.len() != 1 && scales.len() != all.len() {
                return None;
            }
            let number = |(i, n): (usize, &f64)| {
                let zero = zeros.as_ref().and_then(|z| of(z, i)).unwrap_or(0.0);
                Some((n - zero) * of(&scales, i)?)
            };
            all.iter()
                .enumerate()
                .map(number)
                .collect::<Option<Vec<_>>>()?
        }
        Some(_) => return None,
        None => graph
            .tensor(v)
            .filter(|t| t.dtype().is_float())?
            .to_f64s()?,
    };
    match all.len() {
        n if n == outputs => Some(all),
        1 => Some(vec![all[0]; outputs]),
        _ => None,
    }
}

/// Takes in an Add of a constant by output.
fn take_sum(graph: &Graph, layer: &mut Layer) {
    let Some((add, Port::Input(slot))) = graph.single_consumer(layer.sum) else {
        return;
    };
    let o = graph.op(add);
    if !o.is("Add") || graph.value(layer.sum).is_output() {
        return;
    }
    let (Some(v), Some(sum)) = (o.input(1 - slot.min(1) as usize), o.output(0)) else {
        return;
    };
    let constant = graph
        .tensor(v)
        .or_else(|| graph.input_tensor(graph.producer(v)?, 0));
    // One axis, so that it is by output and broadcasts nothing.
    if constant.is_none_or(|t| t.rank() != 1) {
        return;
    }
    if let Some(bias) = numbers(graph, v, layer.weight.outputs()) {
        layer.bias = Some(bias);
        layer.sum = sum;
        layer.parts.push(add);
    }
}

/// Finds the bytes that the layer could make: behind clamps that the range of the bytes implies.
fn take_output(graph: &Graph, layer: &mut Layer, all: &BTreeMap<ValueId, Bytes>) {
    let (mut at, mut parts) = (layer.sum, Vec::new());
    let (mut low, mut high) = (f64::NEG_INFINITY, f64::INFINITY);
    while let Some((next, Port::Input(0))) = graph.single_consumer(at) {
        let o = graph.op(next);
        if graph.value(at).is_output() {
            return;
        }
        let Some(made) = o.output(0) else { return };
        if o.is("QuantizeLinear") {
            let Some(params) = all.get(&made).and_then(|b| b.params) else {
                return;
            };
            // What the clamp cuts off must not be told apart anyway.
            let (least, most) = params.range();
            let half = f64::from(params.scale) / 2.0;
            if least >= low - half && most <= high + half {
                layer.output = Some(made);
                layer.parts.extend(parts);
            }
            return;
        }
        let bounds = match &**o.op_type() {
            "Relu" => Some((0.0, f64::INFINITY)),
            "Clip" => schema::clip_bounds(graph, o),
            _ => None,
        };
        let Some((l, h)) = bounds else { return };
        (low, high) = (low.max(l), high.min(h));
        parts.push(next);
        at = made;
    }
}

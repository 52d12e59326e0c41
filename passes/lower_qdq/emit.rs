//! Writes integer operators in the place of quantized layers, and floats in the place of the
//! quantization that nothing needs any more.

use std::collections::BTreeMap;

use paring_ir::schema::{self, Class};
use paring_ir::{DType, Graph, Model, NewOp, OpId, PassError, Tensor, ValueId};

use crate::edits::axes_op;

use super::cost::{Flow, Form};
use super::find::{Bytes, Found, Layer, Params};
use super::large::in_pieces;

/// A layer's weight as it is written: one scale for all, or one for each output.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) numbers: Vec<i8>,
    pub(super) scales: Vec<f32>,
    /// The bias in 32 bits, where there is one.
    pub(super) bias: Option<Vec<i32>>,
    /// The zero point of the input's bytes; 0 where the bias makes up for it.
    pub(super) zero: i8,
    /// How many axes the activation has.
    pub(super) rank: usize,
}

/// What an operator was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Made {
    Layer(usize),
    Quantize(ValueId),
    Dequantize(ValueId),
}

/// Rewrites a graph, and says what each operator is for whose time tells about a decision.
pub(super) fn emit(
    model: &mut Model,
    found: &Found,
    ready: &[Option<Ready>],
    flow: &Flow,
) -> Result<BTreeMap<OpId, Made>, PassError> {
    let opset = model.opset();
    let mut emitter = Emitter {
        graph: &mut model.graph,
        opset,
        found,
        flow,
        bytes: BTreeMap::new(),
        constants: BTreeMap::new(),
        made: BTreeMap::new(),
    };
    for (i, layer) in found.layers.iter().enumerate() {
        let form = flow.forms.get(i).copied().unwrap_or(Form::Float);
        let ready = ready.get(i).and_then(Option::as_ref);
        match (form, ready) {
            (Form::Bytes, Some(ready)) => emitter.emit_bytes(i, layer, ready)?,
            (Form::Floats, Some(ready)) => emitter.emit_floats(i, layer, ready)?,
            _ => {
                let parts = layer.parts.iter().map(|&op| (op, Made::Layer(i)));
                emitter.made.extend(parts);
            }
        }
    }
    for &v in &found.order {
        emitter.feed_readers(v)?;
    }
    let made = emitter.made;
    remove_unused(&mut model.graph)?;
    in_pieces(&mut model.graph)?;
    model.drop_unused_constants()?;
    Ok(made)
}

struct Emitter<'a> {
    graph: &'a mut Graph,
    opset: i64,
    found: &'a Found,
    flow: &'a Flow,
    /// The new bytes for the old.
    bytes: BTreeMap<ValueId, ValueId>,
    /// Scales and zero points by name.
    constants: BTreeMap<String, ValueId>,
    made: BTreeMap<OpId, Made>,
}

impl Emitter<'_> {
    fn add(&mut self, new: NewOp, of: OpId, hint: &str) -> Result<(OpId, ValueId), PassError> {
        let op = self.graph.add_op(new.from([of]).beside(of).output(hint))?;
        let out = self.graph.op(op).output(0);
        let out = out.ok_or_else(|| PassError::Bug("a new operator has no output".to_owned()))?;
        Ok((op, out))
    }

    /// As [`Emitter::add`], for an operator whose time is the layer's.
    fn part(&mut self, new: NewOp, layer: usize, hint: &str) -> Result<ValueId, PassError> {
        let of = self.found.layers[layer].op;
        let (op, out) = self.add(new, of, hint)?;
        self.made.insert(op, Made::Layer(layer));
        Ok(out)
    }

    /// A constant, once for each name.
    fn constant(&mut self, name: String, tensor: Tensor) -> Result<ValueId, PassError> {
        if let Some(&v) = self.constants.get(&name) {
            return Ok(v);
        }
        let v = self.graph.add_constant(&name, tensor)?;
        self.constants.insert(name, v);
        Ok(v)
    }

    fn about(&self, v: ValueId) -> Result<(&Bytes, Params), PassError> {
        let bytes = self.found.bytes.get(&v);
        let both = bytes.and_then(|b| Some((b, b.params?)));
        both.ok_or_else(|| PassError::Bug("bytes without a scale".to_owned()))
    }

    fn name(&self, v: ValueId) -> String {
        self.graph.value(v).name().to_string()
    }

    /// The scale and the zero point of bytes.
    fn params(&mut self, v: ValueId) -> Result<(ValueId, ValueId), PassError> {
        let params = self.about(v)?.1;
        let name = self.name(v);
        let scale = self.constant(format!("{name}_scale"), Tensor::scalar(params.scale))?;
        let zero = self.constant(format!("{name}_zero_point"), Tensor::scalar(params.zero))?;
        Ok((scale, zero))
    }

    /// The zero point that a layer takes its input with, unless it is 0.
    fn zero(&mut self, layer: &Layer, ready: &Ready) -> Result<Option<ValueId>, PassError> {
        match ready.zero {
            0 => Ok(None),
            _ => Ok(Some(self.params(layer.input)?.1)),
        }
    }

    fn no_zero(&mut self) -> Result<ValueId, PassError> {
        self.constant("zero_int8".to_owned(), Tensor::scalar(0i8))
    }

    /// The signed bytes of a value, quantizing it where nothing makes them.
    fn bytes(&mut self, v: ValueId) -> Result<ValueId, PassError> {
        if let Some(&made) = self.bytes.get(&v) {
            return Ok(made);
        }
        let (source, handed) = {
            let (bytes, _) = self.about(v)?;
            (bytes.source, bytes.handed_on)
        };
        let name = self.name(v);
        let made = match handed {
            Some((op, from)) => {
                let from = self.bytes(from)?;
                let o = self.graph.op(op);
                let others: Vec<Option<ValueId>> = o.inputs().skip(1).collect();
                let new = NewOp::new(o.op_type().clone())
                    .attrs(o.attrs().to_vec())
                    .input(from)
                    .inputs(others);
                self.add(new, op, &name)?.1
            }
            None => {
                let (scale, zero) = self.params(v)?;
                let new = NewOp::new("QuantizeLinear").input(source);
                let of = self.found.bytes[&v].readers[0];
                let (op, out) = self.add(new.input(scale).input(zero), of, &name)?;
                self.made.insert(op, Made::Quantize(v));
                out
            }
        };
        self.bytes.insert(v, made);
        Ok(made)
    }

    /// The weight of a product as inputs x outputs, and its scale or scales.
    fn matrix(&mut self, layer: &Layer, ready: &Ready) -> Result<ValueId, PassError> {
        let (outputs, all) = (layer.weight.outputs(), ready.numbers.len());
        let inputs = all / outputs.max(1);
        let numbers = match layer.weight.axis {
            0 => (0..all)
                .map(|i| ready.numbers[(i % outputs) * inputs + i / outputs])
                .collect(),
            _ => ready.numbers.clone(),
        };
        self.weight(layer, [inputs, outputs].to_vec(), numbers)
    }

    fn weight(
        &mut self,
        layer: &Layer,
        dims: Vec<usize>,
        numbers: Vec<i8>,
    ) -> Result<ValueId, PassError> {
        let stored = layer.weight.stored;
        let tensor = Tensor::from_vec(dims, numbers)?;
        let same = self.graph.tensor(stored);
        if same.is_some_and(|t| {
            t.dtype() == DType::I8 && t.dims() == tensor.dims() && t.bytes() == tensor.bytes()
        }) {
            return Ok(stored);
        }
        let name = self.name(stored);
        let v = self
            .graph
            .add_constant(&format!("{name}_integer"), tensor)?;
        self.graph.set_tensor_sources(v, &[stored])?;
        Ok(v)
    }

    /// A bias in 32 bits.
    fn bias(&mut self, layer: &Layer, ready: &Ready) -> Result<Option<ValueId>, PassError> {
        let Some(bias) = &ready.bias else {
            return Ok(None);
        };
        let label = self.graph.op_label(layer.op);
        let v = self
            .graph
            .add_constant(&format!("{label}_bias"), Tensor::vector(bias.clone()))?;
        Ok(Some(v))
    }

    /// From bytes to bytes.
    fn emit_bytes(&mut self, i: usize, layer: &Layer, ready: &Ready) -> Result<(), PassError> {
        let Some(output) = layer.output else {
            return Err(PassError::Bug("a layer makes no bytes".to_owned()));
        };
        let x = self.bytes(layer.input)?;
        let (xs, _) = self.params(layer.input)?;
        let xz = self
            .zero(layer, ready)?
            .map_or_else(|| self.no_zero(), Ok)?;
        let (ys, yz) = self.params(output)?;
        let label = self.graph.op_label(layer.op);
        let scale = ready.scales.first().copied().unwrap_or(1.0);
        let ws = self
            .graph
            .add_constant(&format!("{label}_weight_scale"), Tensor::scalar(scale))?;
        let wz = self.no_zero()?;
        let bias = self.bias(layer, ready)?;
        let hint = self.name(output);
        let call = |op: &str, x: ValueId, w: ValueId| {
            let inputs = [x, xs, xz, w, ws, wz, ys, yz].map(Some);
            NewOp::new(op).inputs(inputs).name(label.clone())
        };
        let made = if self.graph.op(layer.op).is("Conv") {
            let w = self.weight(layer, layer.weight.dims.clone(), ready.numbers.clone())?;
            let new = call("QLinearConv", x, w).attrs(self.graph.op(layer.op).attrs().to_vec());
            self.part(new.inputs(bias.map(Some)), i, &hint)?
        } else if let Some(bias) = bias {
            let (outputs, all) = (layer.weight.outputs(), ready.numbers.len());
            let inputs = all / outputs.max(1);
            let numbers = match layer.weight.axis {
                0 => ready.numbers.clone(),
                _ => (0..all)
                    .map(|i| ready.numbers[(i % inputs) * outputs + i / inputs])
                    .collect(),
            };
            let w = self.weight(layer, vec![outputs, inputs, 1], numbers)?;
            let columns = self.turned(i, x, ready.rank, true)?;
            let new = call("QLinearConv", columns, w).input(bias);
            let out = self.part(new, i, &format!("{hint}_columns"))?;
            self.turned(i, out, ready.rank, false)?
        } else {
            let w = self.matrix(layer, ready)?;
            self.part(call("QLinearMatMul", x, w), i, &hint)?
        };
        self.bytes.insert(output, made);
        Ok(())
    }

    /// Rows as the places of an image, or back: the engine moves no element for that.
    fn turned(
        &mut self,
        i: usize,
        v: ValueId,
        rank: usize,
        there: bool,
    ) -> Result<ValueId, PassError> {
        let hint = self.name(v);
        let transpose = |v| match rank {
            2 => NewOp::new("Transpose").attr("perm", vec![1i64, 0]).input(v),
            _ => NewOp::new("Transpose")
                .attr("perm", vec![0i64, 2, 1])
                .input(v),
        };
        let stack = |e: &mut Self, v: ValueId, op: &str| -> Result<ValueId, PassError> {
            if rank != 2 {
                return Ok(v);
            }
            let new = axes_op(e.graph, e.opset, op, v, &[0], &hint)?;
            e.part(new, i, &format!("{hint}_stack"))
        };
        if there {
            let v = self.part(transpose(v), i, &format!("{hint}_turned"))?;
            stack(self, v, "Unsqueeze")
        } else {
            let v = stack(self, v, "Squeeze")?;
            self.part(transpose(v), i, &format!("{hint}_turned"))
        }
    }

    /// From bytes to floats.
    fn emit_floats(&mut self, i: usize, layer: &Layer, ready: &Ready) -> Result<(), PassError> {
        let x = self.bytes(layer.input)?;
        let xz = self.zero(layer, ready)?;
        let scale = self.about(layer.input)?.1.scale;
        let label = self.graph.op_label(layer.op);
        let w = self.matrix(layer, ready)?;
        let new = NewOp::new("MatMulInteger")
            .input(x)
            .input(w)
            .inputs(xz.map(Some));
        let mut sums = self.part(new.name(label.clone()), i, &format!("{label}_integers"))?;
        if let Some(bias) = self.bias(layer, ready)? {
            let new = NewOp::new("Add").input(sums).input(bias);
            sums = self.part(new, i, &format!("{label}_sums"))?;
        }
        let scales: Vec<f32> = ready.scales.iter().map(|s| s * scale).collect();
        let hint = format!("{label}_product_scale");
        let last = match scales.as_slice() {
            [one] if !moved_on(self.graph, layer.sum) => {
                let s = self.graph.add_constant(&hint, Tensor::scalar(*one))?;
                NewOp::new("DequantizeLinear").input(sums).input(s)
            }
            all => {
                let factor = match all {
                    [one] => Tensor::scalar(*one),
                    _ => Tensor::vector(all.to_vec()),
                };
                let s = self.graph.add_constant(&hint, factor)?;
                let cast = NewOp::new("Cast").attr("to", i64::from(DType::F32.to_onnx()));
                let cast = self.part(cast.input(sums), i, &format!("{label}_floats"))?;
                NewOp::new("Mul").input(cast).input(s)
            }
        };
        let (op, _) = self.add(last, layer.op, &format!("{label}_scaled"))?;
        self.made.insert(op, Made::Layer(i));
        Ok(self.graph.move_output(layer.sum, op, 0)?)
    }

    /// Gives floats to what took dequantized values.
    fn feed_readers(&mut self, v: ValueId) -> Result<(), PassError> {
        let bytes = &self.found.bytes[&v];
        let outputs: Vec<(OpId, ValueId)> = bytes
            .readers
            .iter()
            .filter_map(|&r| Some((r, self.graph.get_op(r)?.output(0)?)))
            .collect();
        let made = self.flow.made.contains(&v) && self.flow.read.contains(&v);
        let (source, readers) = (bytes.source, outputs);
        let mut floats = None;
        for (reader, old) in readers {
            if self.graph.value(old).is_unused() {
                continue;
            }
            let new = match floats {
                Some(new) => new,
                None if made => self.dequantized(v, reader, old)?,
                None => self.clamped(v, source, reader)?,
            };
            floats = Some(new);
            if self.graph.can_replace(old, new) {
                self.graph.replace_value(old, new)?;
            } else {
                let identity = NewOp::new("Identity").input(new);
                let (op, _) = self.add(identity, reader, "same")?;
                self.graph.move_output(old, op, 0)?;
            }
        }
        Ok(())
    }

    fn dequantized(&mut self, v: ValueId, of: OpId, old: ValueId) -> Result<ValueId, PassError> {
        let x = self.bytes(v)?;
        let (scale, zero) = self.params(v)?;
        let hint = format!("{}_dequantized", self.name(v));
        if !mixed(self.graph, old) {
            let new = NewOp::new("DequantizeLinear")
                .input(x)
                .input(scale)
                .input(zero);
            let (op, out) = self.add(new, of, &hint)?;
            self.made.insert(op, Made::Dequantize(v));
            return Ok(out);
        }
        // Written out, since tract would make a table of what stands up to the next
        // QuantizeLinear, as if a Softmax worked element by element.
        let zero = self.about(v)?.1.zero;
        let zero = self
            .graph
            .add_constant(&hint, Tensor::scalar(f32::from(zero)))?;
        let cast = NewOp::new("Cast").attr("to", i64::from(DType::F32.to_onnx()));
        let (a, cast) = self.add(cast.input(x), of, &hint)?;
        let (b, moved) = self.add(NewOp::new("Sub").input(cast).input(zero), of, &hint)?;
        let (c, out) = self.add(NewOp::new("Mul").input(moved).input(scale), of, &hint)?;
        self.made
            .extend([a, b, c].map(|op| (op, Made::Dequantize(v))));
        Ok(out)
    }

    /// The floats themselves. Quantizers drop a Relu or Clip whose work the range of the bytes
    /// does, so where that range ends at zero and the floats may not, they are clamped.
    fn clamped(&mut self, v: ValueId, source: ValueId, of: OpId) -> Result<ValueId, PassError> {
        let Ok((_, params)) = self.about(v) else {
            return Ok(source);
        };
        let (least, most) = params.range();
        let producer = self.graph.producer(source);
        let natural = producer.and_then(|op| schema::output_range(self.graph, op));
        let (low, high) = natural.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        let inside = least < 0.0 || low >= 0.0;
        if producer.is_none() || inside || high <= most {
            return Ok(source);
        }
        let name = self.name(v);
        let low = self.constant(format!("{name}_least"), Tensor::scalar(least as f32))?;
        let high = self.constant(format!("{name}_most"), Tensor::scalar(most as f32))?;
        let new = NewOp::new("Clip").input(source).input(low).input(high);
        Ok(self.add(new, of, &format!("{name}_clamped"))?.1)
    }
}

/// Whether something that doesn't work element by element is reached through operators of one
/// tensor.
fn mixed(graph: &Graph, from: ValueId) -> bool {
    const STEPS: usize = 256;
    let mut stack = vec![from];
    for _ in 0..STEPS {
        let Some(v) = stack.pop() else { return false };
        for u in graph.sorted_uses(v) {
            let o = graph.op(u.op);
            match schema::of(o).map(|k| k.class) {
                Some(Class::AlongAxis | Class::Norm) => return true,
                Some(Class::Unary | Class::Layout) => stack.extend(o.output(0)),
                _ => {}
            }
        }
    }
    true
}

/// Whether something that moves elements about takes a value. ONNX Runtime takes DequantizeLinear
/// before such an operator for the end of a pair and quantizes behind it once more, to 8 bits
/// even where the sums had 32.
fn moved_on(graph: &Graph, v: ValueId) -> bool {
    graph.value(v).uses().iter().any(|u| {
        let class = schema::of(graph.op(u.op)).map(|k| k.class);
        matches!(class, Some(Class::Layout | Class::Pool))
    })
}

/// Removes operators whose results nothing takes, consumers before producers.
fn remove_unused(graph: &mut Graph) -> Result<(), PassError> {
    let mut order = graph.topological_order()?;
    order.reverse();
    for op in order {
        let o = graph.op(op);
        let unused = |v: &ValueId| graph.value(*v).is_unused();
        if !o.has_subgraphs() && o.outputs().iter().flatten().all(unused) {
            graph.remove_op(op)?;
        }
    }
    Ok(())
}

//! The edits that bring an operator into a version that is not a superset of the one before.

use half::{bf16, f16};
use paring_ir::{
    AttrValue, DType, Graph, GraphError, NewOp, Op, OpId, Tensor, TensorError, ValueId,
};

use crate::edits::output_name;
use crate::facts::{Facts, axis_from_front, reshape_target};

/// Why an operator can't be brought along.
pub(super) enum Refusal {
    /// A reason for people.
    Why(String),
    /// An edit was refused.
    Graph(GraphError),
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Refusal {
        Refusal::Why(why.to_owned())
    }
}

impl From<TensorError> for Refusal {
    fn from(e: TensorError) -> Refusal {
        Refusal::Why(e.to_string())
    }
}

type Done = Result<(), Refusal>;

/// Edits one operator.
pub(super) type Adapter = fn(&Step<'_>, &mut Graph, OpId) -> Done;

/// From one version to the next.
pub(super) struct Step<'a> {
    /// The version that is reached.
    pub(super) version: i64,
    /// The version that the model reaches in the end.
    pub(super) to: i64,
    /// Shapes of the model; nothing is known of values in functions.
    pub(super) facts: &'a Facts,
    /// Functions have no initializers.
    pub(super) in_function: bool,
}

/// What must be edited: the operator, the version that changes it, and how.
pub(super) static ADAPTERS: &[(&str, i64, Adapter)] = &[
    // Statistics for each element went away, and with them the attribute.
    ("BatchNormalization", 9, batch_norm_9),
    // Outputs beyond the first meant training, now an attribute does.
    ("BatchNormalization", 14, batch_norm_14),
    // The bounds became inputs.
    ("Clip", 11, clip_11),
    // The axis became an input, with another default.
    ("DFT", 20, dft_20),
    // The mask became boolean.
    ("Dropout", 10, dropout_10),
    // The ratio became an input.
    ("Dropout", 12, dropout_12),
    // Integers are no longer allowed.
    ("Erf", 13, erf_13),
    // Two modes got other names.
    ("GridSample", 20, grid_sample_20),
    // Scale and bias are for each channel, not for each group.
    ("GroupNormalization", 21, group_norm_21),
    // Over one axis, not over all from the axis on.
    ("Hardmax", 13, softmax_13),
    ("LogSoftmax", 13, softmax_13),
    ("Softmax", 13, softmax_13),
    // The paddings and the value became inputs.
    ("Pad", 11, pad_11),
    // The axes became an input.
    ("ReduceL1", 18, axes_to_input),
    ("ReduceL2", 18, axes_to_input),
    ("ReduceLogSum", 18, axes_to_input),
    ("ReduceLogSumExp", 18, axes_to_input),
    ("ReduceMax", 18, axes_to_input),
    ("ReduceMean", 18, axes_to_input),
    ("ReduceMin", 18, axes_to_input),
    ("ReduceProd", 18, axes_to_input),
    ("ReduceSum", 13, axes_to_input),
    ("ReduceSumSquare", 18, axes_to_input),
    // The regions of interest came in between, and how coordinates map.
    ("Resize", 11, resize_11),
    // The default mapping of coordinates changed.
    ("RoiAlign", 16, roi_align_16),
    // The batch axis and the lengths went away.
    ("Scan", 9, scan_9),
    // Renamed.
    ("Scatter", 11, scatter_11),
    // The ranges became inputs.
    ("Slice", 10, slice_10),
    // The sizes became an input; later the number of parts must be said without them.
    ("Split", 13, split_13),
    ("Split", 18, split_18),
    ("Squeeze", 13, axes_to_input),
    // The number of elements became an input.
    ("TopK", 10, top_k_10),
    ("Unsqueeze", 13, axes_to_input),
    // The scales became an input; then Resize took over.
    ("Upsample", 9, upsample_9),
    ("Upsample", 10, upsample_10),
];

// ---- helpers ----

impl Step<'_> {
    /// A constant for an operator: an initializer, or a `Constant` in a function.
    fn constant(
        &self,
        graph: &mut Graph,
        op: OpId,
        suffix: &str,
        tensor: Tensor,
    ) -> Result<ValueId, Refusal> {
        let hint = format!("{}_{suffix}", output_name(graph, op));
        if !self.in_function {
            return Ok(graph.add_constant(&hint, tensor)?);
        }
        let new = NewOp::new("Constant")
            .attr("value", tensor)
            .output(hint)
            .from([op]);
        let made = graph.add_op(new)?;
        let out = graph.op(made).output(0);
        out.ok_or_else(|| Refusal::from("a constant without output"))
    }

    /// Turns a list of integers from an attribute into an input. Without the attribute, or with
    /// an empty list, the input stays absent.
    fn ints_to_input(&self, graph: &mut Graph, op: OpId, name: &str, slot: usize) -> Done {
        let ints = match graph.op(op).attr(name) {
            None => return Ok(()),
            Some(AttrValue::Ints(ints)) => ints.clone(),
            Some(other) => return Err(not_plain(name, other)),
        };
        if !ints.is_empty() {
            let v = self.constant(graph, op, name, Tensor::vector(ints))?;
            graph.set_input(op, slot, Some(v))?;
        }
        graph.remove_attr(op, name)?;
        Ok(())
    }

    /// The element type of the first input, which constants beside it must have.
    fn data_type(&self, graph: &Graph, op: OpId) -> Result<DType, Refusal> {
        graph
            .op(op)
            .input(0)
            .and_then(|v| self.facts.dtype(graph, v))
            .ok_or_else(|| Refusal::from("the element type of its input is not known"))
    }
}

fn not_plain(name: &str, value: &AttrValue) -> Refusal {
    Refusal::Why(match value {
        AttrValue::Ref { .. } => {
            format!(
                "its attribute \"{name}\" is a parameter of the function; run inline-functions first"
            )
        }
        other => format!("its attribute \"{name}\" is of kind {:?}", other.kind()),
    })
}

/// An attribute of this kind, or its default; a reference to a function's parameter is refused.
fn int(op: &Op, name: &str, default: i64) -> Result<i64, Refusal> {
    match op.attr(name) {
        None => Ok(default),
        Some(AttrValue::Int(v)) => Ok(*v),
        Some(other) => Err(not_plain(name, other)),
    }
}

fn float(op: &Op, name: &str) -> Result<Option<f32>, Refusal> {
    match op.attr(name) {
        None => Ok(None),
        Some(AttrValue::Float(v)) => Ok(Some(*v)),
        Some(other) => Err(not_plain(name, other)),
    }
}

fn string(op: &Op, name: &str, default: &str) -> Result<String, Refusal> {
    match op.attr(name) {
        None => Ok(default.to_owned()),
        Some(AttrValue::String(v)) => Ok(String::from_utf8_lossy(v).into_owned()),
        Some(other) => Err(not_plain(name, other)),
    }
}

fn scalar(dtype: DType, value: f32) -> Result<Tensor, Refusal> {
    Ok(match dtype {
        DType::F32 => Tensor::scalar(value),
        DType::F64 => Tensor::scalar(f64::from(value)),
        DType::F16 => Tensor::scalar(f16::from_f32(value)),
        DType::BF16 => Tensor::scalar(bf16::from_f32(value)),
        other => return Err(Refusal::Why(format!("its input is of {other}"))),
    })
}

// ---- adapters ----

fn axes_to_input(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    step.ints_to_input(graph, op, "axes", 1)
}

fn batch_norm_9(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    if int(graph.op(op), "spatial", 1)? == 0 {
        return Err("it has statistics for each element (spatial is 0)".into());
    }
    graph.remove_attr(op, "spatial")?;
    Ok(())
}

fn batch_norm_14(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    graph.trim_outputs(op, 1)?;
    if graph.op(op).outputs().len() > 1 {
        return Err("it is in training mode: more than its first output is used".into());
    }
    Ok(())
}

fn clip_11(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    for (name, slot) in [("min", 1), ("max", 2)] {
        let Some(bound) = float(graph.op(op), name)? else {
            continue;
        };
        let tensor = scalar(step.data_type(graph, op)?, bound)?;
        let v = step.constant(graph, op, name, tensor)?;
        graph.set_input(op, slot, Some(v))?;
        graph.remove_attr(op, name)?;
    }
    Ok(())
}

fn dft_20(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let axis = int(graph.op(op), "axis", 1)?;
    let v = step.constant(graph, op, "axis", Tensor::scalar(axis))?;
    graph.set_input(op, 2, Some(v))?;
    graph.remove_attr(op, "axis")?;
    Ok(())
}

fn dropout_10(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    graph.trim_outputs(op, 1)?;
    if graph.op(op).output(1).is_some() {
        return Err("its mask is used, which was no boolean".into());
    }
    Ok(())
}

fn dropout_12(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    // Without a training mode the ratio has no effect; it is kept for those who train on.
    if let Some(ratio) = float(graph.op(op), "ratio")? {
        let v = step.constant(graph, op, "ratio", Tensor::scalar(ratio))?;
        graph.set_input(op, 1, Some(v))?;
        graph.remove_attr(op, "ratio")?;
    }
    Ok(())
}

fn erf_13(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    match step.data_type(graph, op) {
        Ok(d) if !d.is_float() => Err(Refusal::Why(format!("its input is of {d}"))),
        _ => Ok(()),
    }
}

fn grid_sample_20(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    match &*string(graph.op(op), "mode", "bilinear")? {
        "bilinear" => graph.set_attr(op, "mode", "linear")?,
        "bicubic" => graph.set_attr(op, "mode", "cubic")?,
        _ => {}
    }
    Ok(())
}

fn group_norm_21(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    let groups = int(o, "num_groups", 0)?;
    let channels = o
        .input(0)
        .and_then(|v| step.facts.dims(graph, v)?.get(1)?.known())
        .ok_or("the number of channels is not known")?;
    if groups < 1 || channels % groups != 0 {
        return Err("its groups don't divide its channels".into());
    }
    let times = channels / groups;
    if times <= 1 {
        return Ok(());
    }
    for (slot, suffix) in [(1, "scale"), (2, "bias")] {
        let Some(v) = graph.op(op).input(slot) else {
            continue;
        };
        let each = match graph.tensor(v) {
            Some(tensor) => {
                let tensor = repeat_elements(tensor, times)?;
                let each = step.constant(graph, op, suffix, tensor)?;
                graph.set_tensor_sources(each, &[v])?;
                each
            }
            None => repeat_value(step, graph, op, v, times, suffix)?,
        };
        graph.set_input(op, slot, Some(each))?;
    }
    Ok(())
}

/// A vector with each element so many times in a row.
fn repeat_elements(tensor: &Tensor, times: i64) -> Result<Tensor, Refusal> {
    let size = match tensor.dtype().bits() {
        Some(bits @ 8..) if tensor.rank() == 1 => (bits / 8) as usize,
        _ => return Err("its scale or bias is no vector".into()),
    };
    let times = usize::try_from(times).map_err(|_| Refusal::from("too many channels"))?;
    let count = tensor
        .len()
        .checked_mul(times)
        .filter(|&n| n <= 1 << 24)
        .ok_or("too many channels")?;
    let bytes: Vec<u8> = tensor
        .bytes()
        .chunks_exact(size)
        .flat_map(|element| element.repeat(times))
        .collect();
    Ok(Tensor::new(tensor.dtype(), [count], bytes)?)
}

/// The same for a vector that is not constant.
fn repeat_value(
    step: &Step<'_>,
    graph: &mut Graph,
    op: OpId,
    v: ValueId,
    times: i64,
    suffix: &str,
) -> Result<ValueId, Refusal> {
    let axes = step.constant(graph, op, &format!("{suffix}_axes"), Tensor::vector([1i64]))?;
    let shape = step.constant(
        graph,
        op,
        &format!("{suffix}_times"),
        Tensor::vector([1, times]),
    )?;
    let flat = step.constant(
        graph,
        op,
        &format!("{suffix}_flat"),
        Tensor::vector([-1i64]),
    )?;
    let column = chain(graph, op, NewOp::new("Unsqueeze").input(v).input(axes))?;
    let table = chain(graph, op, NewOp::new("Expand").input(column).input(shape))?;
    chain(graph, op, NewOp::new("Reshape").input(table).input(flat))
}

/// Adds a helper before `op`; its output.
fn chain(graph: &mut Graph, op: OpId, new: NewOp) -> Result<ValueId, Refusal> {
    let hint = output_name(graph, op);
    let made = graph.add_op(new.output(format!("{hint}_part")).from([op]))?;
    let out = graph.op(made).output(0);
    out.ok_or_else(|| Refusal::from("a helper without output"))
}

fn pad_11(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    let constant = string(o, "mode", "constant")? == "constant";
    // The default is +0.0; -0.0 is another value.
    let value = float(o, "value")?.filter(|v| constant && v.to_bits() != 0);
    step.ints_to_input(graph, op, "pads", 1)?;
    if graph.op(op).input(1).is_none() {
        let empty = step.constant(graph, op, "pads", Tensor::vector(Vec::<i64>::new()))?;
        graph.set_input(op, 1, Some(empty))?;
        graph.remove_attr(op, "pads")?;
    }
    if let Some(value) = value {
        let tensor = scalar(step.data_type(graph, op)?, value)?;
        let v = step.constant(graph, op, "value", tensor)?;
        graph.set_input(op, 2, Some(v))?;
    }
    graph.remove_attr(op, "value")?;
    Ok(())
}

fn resize_11(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    let (Some(data), Some(scales)) = (o.input(0), o.input(1)) else {
        return Err("it has no scales".into());
    };
    if string(o, "mode", "nearest")? == "nearest" {
        graph.set_attr(op, "nearest_mode", nearest_mode(graph, op, scales)?)?;
    }
    graph.set_attr(op, "coordinate_transformation_mode", "asymmetric")?;
    let roi = step.constant(graph, op, "roi", Tensor::vector(Vec::<f32>::new()))?;
    graph.set_inputs(op, &[Some(data), Some(roi), Some(scales)])?;
    Ok(())
}

/// Opset 10 rounds down where it enlarges an axis and up where it shrinks one.
fn nearest_mode(graph: &Graph, op: OpId, scales: ValueId) -> Result<&'static str, Refusal> {
    // The scales may still be the output of a Constant.
    let constant = graph
        .producer(scales)
        .and_then(|p| graph.op(p).tensor("value"));
    let known = graph.tensor(scales).or(constant);
    let Some(scales) = known.and_then(Tensor::to_f32s) else {
        // An Upsample never shrinks.
        if graph.op(op).string("nearest_mode") == Some("floor") {
            return Ok("floor");
        }
        return Err("its scales are not constant, and it takes the nearest element".into());
    };
    if scales.iter().all(|&s| s >= 1.0) {
        Ok("floor")
    } else if scales.iter().all(|&s| s <= 1.0) {
        Ok("ceil")
    } else {
        Err("it enlarges one axis, shrinks another, and takes the nearest element".into())
    }
}

fn roi_align_16(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let name = "coordinate_transformation_mode";
    graph.set_attr(op, name, "output_half_pixel")?;
    Ok(())
}

fn scan_9(_: &Step<'_>, _: &mut Graph, _: OpId) -> Done {
    Err("a Scan of opset 8 has a batch axis and lengths of sequences".into())
}

fn scatter_11(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    rename(graph, op, "ScatterElements")
}

fn rename(graph: &mut Graph, op: OpId, op_type: &str) -> Done {
    let o = graph.op(op);
    let inputs: Vec<_> = o.inputs().collect();
    let new = NewOp::new(op_type).inputs(inputs).attrs(o.attrs().to_vec());
    graph.replace_op(op, new)?;
    Ok(())
}

fn slice_10(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    for (name, slot) in [("starts", 1), ("ends", 2), ("axes", 3)] {
        step.ints_to_input(graph, op, name, slot)?;
    }
    let o = graph.op(op);
    if o.input(1).is_none() || o.input(2).is_none() {
        return Err("it has no starts or no ends".into());
    }
    Ok(())
}

fn softmax_13(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    let axis = int(o, "axis", 1)?;
    let data = o.input(0).ok_or("it has no input")?;
    let dims = step.facts.dims(graph, data);
    if let Some(dims) = &dims {
        let place = axis_from_front(axis, dims.len()).ok_or("its axis is out of range")?;
        // All axes after it are one element long, so flattening made no difference.
        let last = dims.iter().skip(place + 1).all(|d| d.known() == Some(1));
        if last {
            graph.set_attr(op, "axis", axis)?;
            return Ok(());
        }
    } else if axis == -1 {
        graph.set_attr(op, "axis", axis)?;
        return Ok(());
    }
    // In general: flatten from the axis on, work along the second of the two axes, and give the
    // result the input's shape.
    let op_type = o.op_type().clone();
    let flat = NewOp::new("Flatten").input(data).attr("axis", axis);
    let flat = chain(graph, op, flat)?;
    let made = chain(
        graph,
        op,
        NewOp::new(op_type).input(flat).attr("axis", -1i64),
    )?;
    let mut back = NewOp::new("Reshape").input(made);
    back = match dims.and_then(|d| reshape_target(None, &d)) {
        Some(target) => back.input(step.constant(graph, op, "shape", Tensor::vector(target))?),
        None => {
            let shape = chain(graph, op, NewOp::new("Shape").input(data))?;
            // A size of 0 means itself here.
            if step.to >= 14 {
                back = back.attr("allowzero", 1i64);
            }
            back.input(shape)
        }
    };
    graph.replace_op(op, back)?;
    Ok(())
}

fn split_13(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    step.ints_to_input(graph, op, "split", 1)
}

fn split_18(_: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    if o.input(1).is_none() && o.attr("num_outputs").is_none() {
        let parts = o.outputs().len() as i64;
        graph.set_attr(op, "num_outputs", parts)?;
    }
    Ok(())
}

fn top_k_10(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let o = graph.op(op);
    if o.attr("k").is_none() {
        return Err("it has no \"k\"".into());
    }
    let k = int(o, "k", 1)?;
    let v = step.constant(graph, op, "k", Tensor::vector([k]))?;
    graph.set_input(op, 1, Some(v))?;
    graph.remove_attr(op, "k")?;
    Ok(())
}

fn upsample_9(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    let scales = match graph.op(op).attr("scales") {
        Some(AttrValue::Floats(scales)) => scales.clone(),
        Some(other) => return Err(not_plain("scales", other)),
        None => return Err("it has no scales".into()),
    };
    let v = step.constant(graph, op, "scales", Tensor::vector(scales))?;
    graph.set_input(op, 1, Some(v))?;
    graph.remove_attr(op, "scales")?;
    Ok(())
}

fn upsample_10(step: &Step<'_>, graph: &mut Graph, op: OpId) -> Done {
    // An Upsample only enlarges, which opset 10 has no way to say: where opset 11 follows, its
    // adapter is told by the attribute.
    if step.to >= 11 && string(graph.op(op), "mode", "nearest")? == "nearest" {
        graph.set_attr(op, "nearest_mode", "floor")?;
    }
    rename(graph, op, "Resize")
}

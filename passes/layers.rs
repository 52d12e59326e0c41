//! Constant weights seen as matrices, and the activations that they multiply.
//!
//! Whatever the operator, a layer computes `y = W x` column by column: a convolution for every
//! position of its kernel, a matrix product for every row, a recurrent network for every step.
//! Pruning, factorization, clustering, quantization and refits are all about `W` and the
//! second moments of `x`, so they share this view.

use faer::Mat;
use paring_ir::schema::{self, Class, Role, WeightLayout};
use paring_ir::{DType, Graph, NewOp, OpId, PassError, Port, Tensor, ValueId};

use crate::linear::{Refusal, narrowed};

/// A constant weight of an operator, as `blocks` matrices of `rows` x `cols`.
///
/// The rows make outputs, the columns take inputs. The blocks are the groups of a convolution,
/// the batches of a matrix product or the directions of a recurrent network; each has rows and
/// columns of its own.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The operator.
    pub(crate) op: OpId,
    /// The slot that takes the weight.
    pub(crate) slot: usize,
    /// The weight.
    pub(crate) weight: ValueId,
    /// Which axes of it are what.
    pub(crate) layout: WeightLayout,
    /// The weight's shape.
    pub(crate) dims: Vec<usize>,
    /// Groups, batches or directions.
    pub(crate) blocks: usize,
    /// Outputs of a block. For a transposed convolution these are channels x kernel, before
    /// overlapping positions are added up.
    pub(crate) rows: usize,
    /// Inputs of a block: channels x kernel.
    pub(crate) cols: usize,
    /// What the columns are made of.
    pub(crate) source: Option<Source>,
    /// Whether the rows of a block lie one after the other in memory; else its columns do.
    row_major: bool,
}

/// Where the inputs of a layer come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// The value to watch.
    pub(crate) value: ValueId,
    /// How its elements become columns.
    pub(crate) form: Form,
}

/// How the elements of an activation become columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Windows of an image, `[N, C, spatial...]`.
    Windows(Windows),
    /// Positions of an image, `[N, C, spatial...]`.
    Positions,
    /// The last axis, one column for each row of a stack of matrices.
    Rows,
    /// The last axis, the same columns for every block: the steps of a recurrent network.
    Steps,
    /// The last axis but one.
    Columns,
    /// The hidden states of a recurrent network, `[T, D, B, H]`, or `[B, T, D, H]`.
    States {
        /// Whether the batch is the first axis.
        batch_first: bool,
    },
}

/// The geometry of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// The kernel's size by axis.
    pub(crate) kernel: Vec<usize>,
    /// Steps between windows.
    pub(crate) strides: Vec<usize>,
    /// Steps within a window.
    pub(crate) dilations: Vec<usize>,
    /// Padding before and after, `None` where it follows from the size.
    pub(crate) pads: Pads,
}

/// How a convolution pads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pads {
    /// So much before each axis, then so much after each.
    Explicit(Vec<usize>),
    /// So much that the output has the size of the input over the stride; what is odd goes
    /// to the end, or to the start.
    Same {
        /// Whether it goes to the start.
        lower: bool,
    },
}

/// The layers of a graph in the order of the data: the constant weights of convolutions, matrix
/// products and recurrent networks. A weight that several operators share appears once for each.
/// Weights that a graph input may override are none.
pub(crate) fn layers(graph: &Graph) -> Result<Vec<Layer>, PassError> {
    let mut out = Vec::new();
    for op in graph.topological_order()? {
        out.extend(layers_of(graph, op));
    }
    Ok(out)
}

/// The layers of one operator.
pub(crate) fn layers_of(graph: &Graph, op: OpId) -> Vec<Layer> {
    let o = graph.op(op);
    let Some(known) = schema::of(o) else {
        return Vec::new();
    };
    let slots: Vec<usize> = match known.class {
        Class::Linear => schema::weight_slots(o),
        Class::Recurrent => (0..o.input_count())
            .filter(|&slot| matches!(known.role(slot), Role::Weight | Role::RecurrentWeight))
            .collect(),
        _ => return Vec::new(),
    };
    slots
        .into_iter()
        .filter_map(|slot| Layer::of(graph, op, slot))
        .collect()
}

impl Layer {
    /// The layer of one slot of an operator.
    pub(crate) fn of(graph: &Graph, op: OpId, slot: usize) -> Option<Layer> {
        let o = graph.op(op);
        let weight = o.input(slot)?;
        let value = graph.value(weight);
        if value.is_input() {
            return None;
        }
        let tensor = value.as_tensor()?;
        let dims = tensor.dims().to_vec();
        let layout = schema::weight_layout_at(o, slot, dims.len())?;
        if tensor.is_empty() || !tensor.dtype().is_float() {
            return None;
        }
        let product = |axes: &std::ops::Range<usize>| -> usize {
            dims.get(axes.clone()).unwrap_or_default().iter().product()
        };
        let kernel = product(&layout.kernel_axes);
        let batches = product(&layout.batch_axes);
        let groups = layout.groups;
        let (outputs, inputs) = (dims[layout.output_axis], dims[layout.input_axis]);
        let transposed_conv = o.is("ConvTranspose");
        let grouped = if transposed_conv { inputs } else { outputs };
        if groups == 0 || grouped % groups != 0 {
            return None;
        }
        let (rows, cols) = if transposed_conv {
            (outputs * kernel, inputs / groups)
        } else {
            (outputs / groups, inputs * kernel)
        };
        Some(Layer {
            op,
            slot,
            weight,
            blocks: groups * batches,
            rows,
            cols,
            source: source(graph, op, slot, &layout, &dims),
            row_major: !transposed_conv && layout.output_axis < layout.input_axis,
            layout,
            dims,
        })
    }

    /// Whether it is a convolution in which each input channel is a group of its own.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.layout.is_depthwise(&self.dims)
    }

    /// For every column, the column that an engine with channels last adds its product to first:
    /// in pairs along the channels at one position of the kernel after the other. Depthwise
    /// convolutions have kernels of their own, which do not.
    pub(crate) fn neighbours(&self) -> Vec<Option<usize>> {
        if self.is_depthwise() {
            return vec![None; self.cols];
        }
        let kernel = self.dims.get(self.layout.kernel_axes.clone());
        let kernel: usize = kernel.unwrap_or_default().iter().product();
        let channels = self.cols / kernel.max(1);
        if kernel * channels != self.cols {
            return vec![None; self.cols];
        }
        let place = |col: usize| col % kernel * channels + col / kernel;
        let column = |place: usize| place % channels * kernel + place / channels;
        let partner = |col| Some(place(col) ^ 1).filter(|&p| p < self.cols).map(column);
        (0..self.cols).map(partner).collect()
    }

    /// The elements of the weight.
    pub(crate) fn len(&self) -> usize {
        self.blocks * self.rows * self.cols
    }

    /// The place of an element in the weight's memory.
    pub(crate) fn at(&self, block: usize, row: usize, col: usize) -> usize {
        let start = block * self.rows * self.cols;
        if self.row_major {
            start + row * self.cols + col
        } else {
            start + col * self.rows + row
        }
    }

    /// A weight as matrices, one for each block.
    pub(crate) fn matrices(&self, tensor: &Tensor) -> Result<Vec<Mat<f64>>, PassError> {
        let all = tensor.to_f64s().filter(|all| all.len() == self.len());
        let all = all
            .ok_or_else(|| PassError::Bug("a weight has not the shape of its layer".to_owned()))?;
        let matrix = |b| Mat::from_fn(self.rows, self.cols, |row, col| all[self.at(b, row, col)]);
        Ok((0..self.blocks).map(matrix).collect())
    }

    /// The matrices as a weight of this layer's shape, rounded to a type.
    pub(crate) fn tensor(&self, dtype: DType, matrices: &[Mat<f64>]) -> Result<Tensor, Refusal> {
        let mut all = vec![0.0; self.len()];
        for (b, m) in matrices.iter().enumerate().take(self.blocks) {
            for col in 0..self.cols {
                for row in 0..self.rows {
                    all[self.at(b, row, col)] = m[(row, col)];
                }
            }
        }
        narrowed(dtype, &self.dims, &all)
    }
}

/// What a layer multiplies.
fn source(
    graph: &Graph,
    op: OpId,
    slot: usize,
    layout: &WeightLayout,
    dims: &[usize],
) -> Option<Source> {
    let o = graph.op(op);
    let (value, form) = match &**o.op_type() {
        "Conv" => (
            o.input(0)?,
            Form::Windows(windows(graph, op, layout, dims)?),
        ),
        "ConvTranspose" => (o.input(0)?, Form::Positions),
        "Gemm" | "MatMul" => {
            let left = slot == 1;
            let value = o.input(usize::from(!left))?;
            let flag = if left { "transA" } else { "transB" };
            let transposed = o.is("Gemm") && o.int_or(flag, 0) != 0;
            let rows = left != transposed;
            (value, if rows { Form::Rows } else { Form::Columns })
        }
        "LSTM" | "GRU" | "RNN" if slot == 1 => (o.input(0)?, Form::Steps),
        "LSTM" | "GRU" | "RNN" => {
            let batch_first = o.int_or("layout", 0) != 0;
            (o.output(0)?, Form::States { batch_first })
        }
        _ => return None,
    };
    // What is constant on both sides is no layer that runs.
    graph
        .tensor(value)
        .is_none()
        .then_some(Source { value, form })
}

fn windows(graph: &Graph, op: OpId, layout: &WeightLayout, dims: &[usize]) -> Option<Windows> {
    let o = graph.op(op);
    let kernel = dims.get(layout.kernel_axes.clone())?.to_vec();
    let axes = kernel.len();
    let positive = |name| -> Option<Vec<usize>> {
        let Some(all) = o.ints(name) else {
            return Some(vec![1; axes]);
        };
        let all: Option<Vec<usize>> = all.iter().map(|&i| usize::try_from(i).ok()).collect();
        all.filter(|a| a.len() == axes && a.iter().all(|&i| i > 0))
    };
    let explicit = || {
        let Some(all) = o.ints("pads") else {
            return Some(Pads::Explicit(vec![0; 2 * axes]));
        };
        let all: Option<Vec<usize>> = all.iter().map(|&i| usize::try_from(i).ok()).collect();
        all.filter(|a| a.len() == 2 * axes).map(Pads::Explicit)
    };
    let pads = match o.string("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => explicit()?,
        "VALID" => Pads::Explicit(vec![0; 2 * axes]),
        "SAME_UPPER" => Pads::Same { lower: false },
        "SAME_LOWER" => Pads::Same { lower: true },
        _ => return None,
    };
    Some(Windows {
        strides: positive("strides")?,
        dilations: positive("dilations")?,
        kernel,
        pads,
    })
}

impl Windows {
    /// The padding before each axis and the number of windows along each, for an image of a size.
    /// `None` where no window fits.
    pub(crate) fn geometry(&self, sizes: &[usize]) -> Option<Vec<(usize, usize)>> {
        if sizes.len() != self.kernel.len() {
            return None;
        }
        let axes = self.kernel.len();
        let one = |a: usize| -> Option<(usize, usize)> {
            let span = (self.kernel[a].checked_sub(1)?)
                .checked_mul(self.dilations[a])?
                .checked_add(1)?;
            let (size, stride) = (sizes[a], self.strides[a]);
            match &self.pads {
                Pads::Explicit(p) => {
                    let padded = size.checked_add(p[a])?.checked_add(p[axes + a])?;
                    Some((p[a], padded.checked_sub(span)? / stride + 1))
                }
                Pads::Same { lower } => {
                    let count = size.div_ceil(stride);
                    let needed = (count.checked_sub(1)? * stride + span).saturating_sub(size);
                    let before = if *lower {
                        needed.div_ceil(2)
                    } else {
                        needed / 2
                    };
                    Some((before, count))
                }
            }
        };
        (0..axes).map(one).collect()
    }
}

/// Where a layer's outputs get a number added by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    /// The operator's own slot.
    Slot(usize),
    /// An Add with a constant, alone behind a product, and the slot of the constant.
    Add(OpId, usize),
}

/// Where a layer's bias stands, or may be put. `None` where a bias by row makes no sense (a
/// recurrent network, a weight on the left of a product, batched weights), is not constant, or
/// counts for something else as well.
pub(crate) fn bias_place(graph: &Graph, layer: &Layer) -> Option<Bias> {
    let o = graph.op(layer.op);
    let constant = |v: ValueId| {
        let value = graph.value(v);
        !value.is_input() && value.as_tensor().is_some_and(|t| t.dtype().is_float())
    };
    match &**o.op_type() {
        "Conv" | "ConvTranspose" => o.input(2).is_none_or(constant).then_some(Bias::Slot(2)),
        "Gemm" if layer.slot == 1 => o.input(2).is_none_or(constant).then_some(Bias::Slot(2)),
        "MatMul" if layer.slot == 1 && layer.blocks == 1 => {
            let (add, Port::Input(taken)) = graph.single_consumer(o.output(0)?)? else {
                return None;
            };
            let add_op = graph.op(add);
            let other = 1usize.checked_sub(taken as usize)?;
            let bias = add_op.input(other).filter(|_| add_op.is("Add"))?;
            let fits =
                constant(bias) && graph.tensor(bias).is_some_and(|t| t.dims() == [layer.rows]);
            fits.then_some(Bias::Add(add, other))
        }
        _ => None,
    }
}

/// How many outputs have a bias of their own: the rows of all blocks, or for a transposed
/// convolution its channels.
pub(crate) fn bias_len(layer: &Layer) -> usize {
    if layer.row_major || layer.layout.kernel_axes.is_empty() {
        layer.blocks * layer.rows
    } else {
        let kernel: usize = layer.dims[layer.layout.kernel_axes.clone()]
            .iter()
            .product();
        layer.blocks * layer.rows / kernel.max(1)
    }
}

/// Adds numbers to the bias of a layer, one for each output channel, and makes a bias where
/// there is none. Says whether there was a place for it; without one nothing is edited.
/// A MatMul without an Add behind it gets one only with `may_insert`.
pub(crate) fn add_to_bias(
    graph: &mut Graph,
    layer: &Layer,
    delta: &[f64],
    may_insert: bool,
) -> Result<bool, PassError> {
    if delta.len() != bias_len(layer) || delta.iter().any(|d| !d.is_finite()) {
        return Ok(false);
    }
    let Some(dtype) = graph.tensor(layer.weight).map(Tensor::dtype) else {
        return Ok(false);
    };
    let Some(place) = bias_place(graph, layer) else {
        let product = graph.op(layer.op).output(0);
        let matmul = graph.op(layer.op).is("MatMul") && layer.slot == 1 && layer.blocks == 1;
        return match product.filter(|_| matmul && may_insert) {
            Some(product) => insert_add(graph, layer, product, dtype, delta),
            None => Ok(false),
        };
    };
    let (op, slot) = match place {
        Bias::Slot(slot) => (layer.op, slot),
        Bias::Add(op, slot) => (op, slot),
    };
    let beta = match graph.op(op).is("Gemm") {
        true => f64::from(graph.op(op).float("beta").unwrap_or(1.0)),
        false => 1.0,
    };
    let old = graph.input_tensor(op, slot).cloned();
    let old = match old.as_ref().map(|t| spread(t, delta.len())) {
        Some(Some(values)) => values,
        Some(None) => return Ok(false),
        None => vec![0.0; delta.len()],
    };
    let new: Vec<f64> = old.iter().zip(delta).map(|(b, d)| b * beta + d).collect();
    let Ok(tensor) = narrowed(dtype, &[delta.len()], &new) else {
        return Ok(false);
    };
    put_bias(graph, layer, (op, slot), tensor)?;
    if graph.op(op).is("Gemm") && graph.op(op).float("beta").is_some() {
        graph.set_attr(op, "beta", 1.0f32)?;
    }
    Ok(true)
}

/// A bias by channel: `[C]`, or for a Gemm whatever broadcasts to rows of `C`.
fn spread(t: &Tensor, channels: usize) -> Option<Vec<f64>> {
    let outer = t.dims().split_last().map_or(&[][..], |(_, outer)| outer);
    let values = t.to_f64s().filter(|_| outer.iter().all(|&d| d == 1))?;
    match values.len() {
        1 => Some(vec![values[0]; channels]),
        n if n == channels => Some(values),
        _ => None,
    }
}

fn put_bias(
    graph: &mut Graph,
    layer: &Layer,
    (op, slot): (OpId, usize),
    tensor: Tensor,
) -> Result<(), PassError> {
    match graph.op(op).input(slot) {
        Some(old) if graph.value(old).has_single_use() && !graph.value(old).is_output() => {
            graph.set_tensor(old, tensor, Vec::new())?;
        }
        other => {
            let name = other.unwrap_or(layer.weight);
            let hint = format!("{}_bias", graph.value(name).name());
            let new = graph.add_constant(&hint, tensor)?;
            graph.set_tensor_sources(new, &[name])?;
            graph.set_input(op, slot, Some(new))?;
        }
    }
    Ok(())
}

/// Puts an Add behind a product; the product's name stays with the sum, which others take.
fn insert_add(
    graph: &mut Graph,
    layer: &Layer,
    product: ValueId,
    dtype: DType,
    delta: &[f64],
) -> Result<bool, PassError> {
    let Ok(tensor) = narrowed(dtype, &[delta.len()], delta) else {
        return Ok(false);
    };
    let hint = format!("{}_bias", graph.value(layer.weight).name());
    let bias = graph.add_constant(&hint, tensor)?;
    graph.set_tensor_sources(bias, &[layer.weight])?;
    let name = format!("{}_product", graph.value(product).name());
    let inner = graph.add_fresh_value(&name)?;
    let add = NewOp::new("Add").input(inner).input(bias).output("sum");
    let add = graph.add_op(add.from([layer.op]).beside(layer.op))?;
    graph.move_output(product, add, 0)?;
    graph.move_output(inner, layer.op, 0)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::testing::parse;
    use paring_ir::text::{PrintOptions, print_model};

    #[test]
    fn weights_come_back_as_they_were() {
        let model = parse(
            r#"<opset_import: ["": 18]> g (float[1,4,8,8] x, float[3,8] h, float[2,3,4] b) => (y, z, u, v)
            <float[6,2,3,3] k = random(1), float[4,3,2,2] t = random(2), float[5,8] w = random(3), float[2,4,7] m = random(4)> {
                y = Conv <group: int = 2> (x, k)
                z = ConvTranspose <group: int = 2> (x, t)
                u = Gemm <transB: int = 1> (h, w)
                v = MatMul (b, m)
            }"#,
        );
        let shapes: Vec<_> = layers(&model.graph)
            .unwrap()
            .into_iter()
            .map(|layer| {
                let tensor = model.graph.tensor(layer.weight).unwrap();
                let matrices = layer.matrices(tensor).unwrap();
                let back = layer.tensor(tensor.dtype(), &matrices).unwrap();
                assert_eq!(back.bytes(), tensor.bytes());
                (layer.blocks, layer.rows, layer.cols)
            })
            .collect();
        assert_eq!(shapes, [(2, 3, 18), (2, 12, 2), (1, 5, 8), (2, 7, 4)]);
    }

    fn with_bias(text: &str, may_insert: bool) -> Option<String> {
        let mut model = parse(text);
        let layer = layers(&model.graph).unwrap().remove(0);
        let delta: Vec<f64> = (0..bias_len(&layer)).map(|i| i as f64 + 1.0).collect();
        let done = add_to_bias(&mut model.graph, &layer, &delta, may_insert).unwrap();
        model.graph.check_invariants().unwrap();
        done.then(|| print_model(&model, &PrintOptions::default()))
    }

    #[test]
    fn a_bias_is_found_or_made() {
        let grown = with_bias(
            r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}, float[1,1] c = {3}> { y = Gemm <beta: float = 0.5> (x, w, c) }"#,
            false,
        );
        let grown = grown.unwrap();
        assert!(grown.contains("{2.5, 3.5}"), "{grown}");
        let product = r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"#;
        assert_eq!(with_bias(product, false), None);
        let made = with_bias(product, true).unwrap();
        assert!(made.contains("y_product = MatMul (x, w)"), "{made}");
        assert!(made.contains("y = Add (y_product, w_bias)"), "{made}");
        let behind = r#"<opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] c = {1, 1}> { p = MatMul (x, w) y = Add (c, p) }"#;
        let made = with_bias(behind, false).unwrap();
        assert!(made.contains("{2, 3}"), "{made}");
    }

    #[test]
    fn padding_follows_the_size() {
        let windows = Windows {
            kernel: vec![3],
            strides: vec![2],
            dilations: vec![1],
            pads: Pads::Same { lower: false },
        };
        assert_eq!(windows.geometry(&[6]), Some(vec![(0, 3)]));
        assert_eq!(windows.geometry(&[5]), Some(vec![(1, 3)]));
        let explicit = Windows {
            pads: Pads::Explicit(vec![1, 1]),
            ..windows
        };
        assert_eq!(explicit.geometry(&[6]), Some(vec![(1, 3)]));
        let too_large = Windows {
            kernel: vec![9],
            ..explicit
        };
        assert_eq!(too_large.geometry(&[6]), None);
    }
}

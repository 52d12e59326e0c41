//! What the weights of a model look like: how they are spread, how many are zero and in which
//! patterns, how many values they take, and how fast their singular values fall.
//!
//! A weight is the constant of a convolution, a matrix product or a recurrent network, or a table
//! that `Gather` reads. It is seen as matrices with a row for each output channel; columns are the
//! inputs, with the input channel running fastest, which is the order in which hardware groups
//! them. A weight that is dequantized or looked up from codes is taken as the operator sees it.
//!
//! Everything here reads one weight at a time.

use std::collections::HashSet;

use faer::{Mat, Side};
use paring_ir::engine::{CompileOptions, Cut, Engine};
use paring_ir::pass::Progress;
use paring_ir::schema::{self, Class, Role, WeightLayout};
use paring_ir::tensor::element_count;
use paring_ir::{Graph, Model, OpId, Tensor, ValueId};
use serde::Serialize;

use crate::diff::type_text;

/// Bins of a histogram: enough to see the shape of a bell, few enough to read.
const BINS: usize = 60;
/// Distinct values are counted up to this many; above, a weight is as good as continuous.
const MOST_DISTINCT: usize = 1 << 16;
/// The most multiply-accumulates and the widest matrix that singular values are computed of.
const MOST_WORK: u64 = 1 << 33;
const WIDEST: usize = 1536;
/// So many singular values are kept of a longer list, evenly spaced by index.
const KEPT_VALUES: usize = 64;
/// Constants of more elements than this are not computed, only read.
const MOST_COMPUTED: usize = 1 << 27;
/// Tables and weights of fewer elements say nothing.
const FEWEST: usize = 16;
/// How far behind a weight its constants are looked for.
const STEPS: usize = 32;

/// How many elements lie where, in bins of equal width. Zeros are left out: they are counted
/// apart, and in a pruned weight they would hide all else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// The lower edge of the first bin.
    pub low: f64,
    /// The upper edge of the last bin.
    pub high: f64,
    /// Elements by bin.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Counts the finite elements that are not zero; `None` when there are none.
    pub fn of(values: &[f64], bins: usize) -> Option<Histogram> {
        let counted = || {
            let finite = values.iter().copied();
            finite.filter(|x| x.is_finite() && *x != 0.0)
        };
        let low = counted().fold(f64::INFINITY, f64::min);
        let high = counted().fold(f64::NEG_INFINITY, f64::max);
        if low > high || bins == 0 {
            return None;
        }
        Some(Histogram::within(values, low, high, bins))
    }

    /// As [`Histogram::of`] between two edges; what lies outside is left out.
    pub fn within(values: &[f64], low: f64, high: f64, bins: usize) -> Histogram {
        let mut counts = vec![0; bins.max(1)];
        let last = counts.len() - 1;
        let width = high - low;
        for &x in values {
            if !(x >= low && x <= high) || x == 0.0 {
                continue;
            }
            let at = match width > 0.0 && width.is_finite() {
                true => ((x - low) / width * counts.len() as f64) as usize,
                false => last / 2,
            };
            if let Some(count) = counts.get_mut(at.min(last)) {
                *count += 1;
            }
        }
        Histogram { low, high, counts }
    }
}

/// The share of blocks of a shape that are zero as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pattern {
    /// `2:4`, or rows x columns of a block such as `4x1`; `kernel` for all elements between an
    /// input and an output channel, `row` for an output channel, `column` for an input channel.
    pub name: String,
    /// For `2:4` the share of groups of four inputs with at least two zeros, else that of blocks
    /// that are all zero; 0 to 1.
    pub share: f64,
}

/// How fast the singular values fall.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spectrum {
    /// How many there are: the full rank, summed over groups.
    pub count: usize,
    /// The singular values over the largest one, falling; of a long list evenly spaced ones with
    /// the first and the last.
    pub values: Vec<f64>,
    /// How many of the largest hold 90 % of the sum of squares.
    pub rank_90: usize,
    /// How many hold 99 %.
    pub rank_99: usize,
}

/// One weight.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightStats {
    /// The operator that takes it.
    pub layer: String,
    /// Its type.
    pub op_type: String,
    /// The name of the weight.
    pub name: String,
    /// Its type as the operator sees it, such as `float[64,3,7,7]`.
    #[serde(rename = "type")]
    pub ty: String,
    /// The operators between the stored constant and the layer, such as `DequantizeLinear`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub through: Vec<String>,
    /// Elements.
    pub elements: u64,
    /// The share of elements that are zero, 0 to 1.
    pub sparsity: f64,
    /// Zeros in patterns.
    pub patterns: Vec<Pattern>,
    /// How many different values there are; absent above 65536.
    pub distinct: Option<u64>,
    /// The smallest element.
    pub min: f64,
    /// The largest element.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
    /// Where the elements that are not zero lie; absent when all are zero.
    pub histogram: Option<Histogram>,
    /// Absent for tables, depthwise convolutions, and matrices that are too large for it.
    pub spectrum: Option<Spectrum>,
}

/// A weight seen as matrices.
struct Matrices {
    blocks: Vec<Vec<f64>>,
    rows: usize,
    cols: usize,
    /// Elements between an input and an output channel.
    kernel: usize,
    depthwise: bool,
}

/// The statistics of every weight, in the order of the data flow, inner graphs after outer ones.
pub fn weights(model: &Model, engine: &dyn Engine, progress: &dyn Progress) -> Vec<WeightStats> {
    let mut found: Vec<(&Graph, OpId, usize)> = Vec::new();
    model.for_each_graph(&mut |graph| {
        let order = graph
            .topological_order()
            .unwrap_or_else(|_| graph.ops().collect());
        let mut seen = HashSet::new();
        for op in order {
            for slot in slots(graph, op) {
                let weight = graph.op(op).input(slot);
                if weight.is_some_and(|w| seen.insert(w)) {
                    found.push((graph, op, slot));
                }
            }
        }
    });
    progress.start("reading weights", found.len() as u64);
    let mut out = Vec::with_capacity(found.len());
    for (graph, op, slot) in found {
        out.extend(weight(model, engine, graph, op, slot));
        progress.advance(1);
    }
    progress.finish();
    out
}

/// The slots of an operator that may hold a weight.
fn slots(graph: &Graph, op: OpId) -> Vec<usize> {
    let o = graph.op(op);
    let Some(known) = schema::of(o) else {
        return Vec::new();
    };
    match known.class {
        Class::Linear => schema::weight_slots(o),
        Class::Recurrent => (0..o.input_count())
            .filter(|&slot| matches!(known.role(slot), Role::Weight | Role::RecurrentWeight))
            .collect(),
        _ if o.is("Gather") => vec![0],
        _ => Vec::new(),
    }
}

fn weight(
    model: &Model,
    engine: &dyn Engine,
    graph: &Graph,
    op: OpId,
    slot: usize,
) -> Option<WeightStats> {
    let o = graph.op(op);
    let value = o.input(slot)?;
    let (tensor, through) = constant(model, engine, graph, value)?;
    let integer_operator = schema::weight_layout_at(o, slot, tensor.rank()).is_some();
    let is_float = tensor.dtype().is_float();
    if tensor.len() < FEWEST || !(is_float || (integer_operator && tensor.dtype().is_integer())) {
        return None;
    }
    let values = tensor.to_f64s()?;
    let layout = schema::weight_layout_at(o, slot, tensor.rank());
    let table = layout.is_none();
    let matrices = Matrices::of(&values, tensor.dims(), layout.as_ref());
    let patterns = match (&matrices, table) {
        (Some(m), false) => m.patterns(),
        _ => Vec::new(),
    };
    let spectrum = matrices.as_ref().filter(|m| !m.depthwise && !table);
    let moments = Moments::of(&values);
    Some(WeightStats {
        layer: graph.op_label(op).to_string(),
        op_type: o.op_type().to_string(),
        name: graph.value(value).name().to_string(),
        ty: type_text(Some(&paring_ir::ValueType::fixed(
            tensor.dtype(),
            tensor.dims(),
        ))),
        through,
        elements: tensor.len() as u64,
        sparsity: moments.zeros as f64 / values.len().max(1) as f64,
        patterns,
        distinct: distinct(&values),
        min: moments.min,
        max: moments.max,
        mean: moments.mean,
        deviation: moments.deviation,
        histogram: Histogram::of(&values, BINS),
        spectrum: spectrum.and_then(Matrices::spectrum),
    })
}

/// The tensor that a value is without any input of the model, and the operators that make it.
fn constant(
    model: &Model,
    engine: &dyn Engine,
    graph: &Graph,
    value: ValueId,
) -> Option<(Tensor, Vec<String>)> {
    if let Some(tensor) = stored(graph, value) {
        return Some((tensor.clone(), Vec::new()));
    }
    let mut through: Vec<String> = Vec::new();
    let mut stack = vec![value];
    let mut elements = 0usize;
    while let Some(v) = stack.pop() {
        if let Some(tensor) = stored(graph, v) {
            // Codes of one or two bits become at most eight times as many bytes of floats each.
            elements = elements.checked_add(element_count(tensor.dims())?)?;
            continue;
        }
        let (op, _) = graph.value(v).producer()?;
        let o = graph.op(op);
        if o.has_subgraphs() || through.len() >= STEPS {
            return None;
        }
        through.push(o.op_type().to_string());
        stack.extend(o.inputs().flatten());
    }
    // The engine takes cuts of the main graph alone.
    if elements > MOST_COMPUTED || graph.id() != model.graph.id() {
        return None;
    }
    let cut = Cut {
        model,
        inputs: Vec::new(),
        outputs: vec![value],
        shapes: Vec::new(),
    };
    let mut plan = engine.compile(&cut, CompileOptions::default()).ok()?;
    let tensor = plan.run(&[]).ok()?.into_iter().next()?;
    through.reverse();
    through.dedup();
    Some((tensor, through))
}

/// The tensor of an initializer that no input overrides, or of a `Constant`.
fn stored(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    let v = graph.value(value);
    if let Some(tensor) = v.as_tensor() {
        return Some(tensor);
    }
    let (op, _) = v.producer()?;
    let o = graph.op(op);
    o.is("Constant").then(|| o.tensor("value")).flatten()
}

struct Moments {
    zeros: u64,
    min: f64,
    max: f64,
    mean: f64,
    deviation: f64,
}

impl Moments {
    fn of(values: &[f64]) -> Moments {
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Moments {
            zeros: values.iter().filter(|x| **x == 0.0).count() as u64,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean,
            deviation: (squares / n).sqrt(),
        }
    }
}

fn distinct(values: &[f64]) -> Option<u64> {
    let mut seen = HashSet::new();
    for &x in values {
        // The two zeros are one value.
        seen.insert((x + 0.0).to_bits());
        if seen.len() > MOST_DISTINCT {
            return None;
        }
    }
    Some(seen.len() as u64)
}

impl Matrices {
    /// Takes a weight apart; a table is one matrix.
    fn of(values: &[f64], dims: &[usize], layout: Option<&WeightLayout>) -> Option<Matrices> {
        let Some(layout) = layout else {
            let cols = *dims.last()?;
            return Some(Matrices {
                rows: values.len().checked_div(cols)?,
                cols,
                kernel: 1,
                depthwise: false,
                blocks: vec![values.to_vec()],
            });
        };
        let size = |axes: std::ops::Range<usize>| -> Option<usize> {
            Some(dims.get(axes)?.iter().product())
        };
        let batches = size(layout.batch_axes.clone())?;
        let kernel = size(layout.kernel_axes.clone())?;
        let (outputs, inputs) = (
            *dims.get(layout.output_axis)?,
            *dims.get(layout.input_axis)?,
        );
        let groups = layout.groups.max(1);
        // One side counts the channels of a group, the other those of all groups.
        let split_outputs = layout.output_axis < layout.input_axis;
        let (rows, cols) = match split_outputs {
            true => (outputs.checked_div(groups)?, inputs.checked_mul(kernel)?),
            false => (outputs, inputs.checked_div(groups)?.checked_mul(kernel)?),
        };
        let strides = strides(dims);
        let per_block = rows.checked_mul(cols)?;
        let mut blocks = Vec::with_capacity(batches.checked_mul(groups)?);
        for batch in 0..batches {
            for group in 0..groups {
                let mut block = Vec::with_capacity(per_block);
                for row in 0..rows {
                    for col in 0..cols {
                        let ins = cols / kernel.max(1);
                        let (k, i) = (col / ins.max(1), col % ins.max(1));
                        let (o, i) = match split_outputs {
                            true => (group * rows + row, i),
                            false => (row, group * ins + i),
                        };
                        let at = offset(batch, &layout.batch_axes, dims, &strides)
                            + offset(k, &layout.kernel_axes, dims, &strides)
                            + o * strides.get(layout.output_axis)?
                            + i * strides.get(layout.input_axis)?;
                        block.push(*values.get(at)?);
                    }
                }
                blocks.push(block);
            }
        }
        Some(Matrices {
            blocks,
            rows,
            cols,
            kernel,
            depthwise: layout.is_depthwise(dims),
        })
    }

    fn patterns(&self) -> Vec<Pattern> {
        let mut out = Vec::new();
        let mut push = |name: &str, share: Option<f64>| {
            out.extend(share.map(|share| Pattern {
                name: name.to_owned(),
                share,
            }));
        };
        push("2:4", self.two_of_four());
        for (name, rows, cols) in [
            ("1x4", 1, 4),
            ("4x1", 4, 1),
            ("4x4", 4, 4),
            ("1x16", 1, 16),
            ("16x1", 16, 1),
        ] {
            push(name, self.zero_blocks(rows, cols));
        }
        if self.kernel > 1 {
            push("kernel", self.zero_kernels());
        }
        push("row", self.zero_blocks(1, self.cols));
        push("column", self.zero_columns());
        out
    }

    fn at(&self, block: &[f64], row: usize, col: usize) -> f64 {
        block.get(row * self.cols + col).copied().unwrap_or(0.0)
    }

    /// The share of groups of four consecutive columns of a row with at least two zeros.
    fn two_of_four(&self) -> Option<f64> {
        if self.cols < 4 {
            return None;
        }
        let rows = self.blocks.iter().flat_map(|b| b.chunks_exact(self.cols));
        let (mut good, mut all) = (0u64, 0u64);
        for four in rows.flat_map(|row| row.chunks_exact(4)) {
            all += 1;
            good += u64::from(four.iter().filter(|x| **x == 0.0).count() >= 2);
        }
        Some(good as f64 / all.max(1) as f64)
    }

    /// The share of whole blocks of a shape that are zero; `None` where none fits.
    fn zero_blocks(&self, rows: usize, cols: usize) -> Option<f64> {
        if rows == 0 || cols == 0 || self.rows < rows || self.cols < cols {
            return None;
        }
        let (mut zero, mut all) = (0u64, 0u64);
        for block in &self.blocks {
            for top in (0..=self.rows - rows).step_by(rows) {
                for left in (0..=self.cols - cols).step_by(cols) {
                    let mut line =
                        (top..top + rows).flat_map(|r| (left..left + cols).map(move |c| (r, c)));
                    all += 1;
                    zero += u64::from(line.all(|(r, c)| self.at(block, r, c) == 0.0));
                }
            }
        }
        Some(zero as f64 / all.max(1) as f64)
    }

    /// The share of kernels, between one input and one output channel, that are zero.
    fn zero_kernels(&self) -> Option<f64> {
        let inputs = self.cols.checked_div(self.kernel)?;
        let (mut zero, mut all) = (0u64, 0u64);
        for block in &self.blocks {
            for row in 0..self.rows {
                for i in 0..inputs {
                    let mut places = (0..self.kernel).map(|k| k * inputs + i);
                    all += 1;
                    zero += u64::from(places.all(|col| self.at(block, row, col) == 0.0));
                }
            }
        }
        Some(zero as f64 / all.max(1) as f64)
    }

    /// The share of input channels that are zero for every output.
    fn zero_columns(&self) -> Option<f64> {
        let inputs = self.cols.checked_div(self.kernel.max(1))?;
        let (mut zero, mut all) = (0u64, 0u64);
        for block in &self.blocks {
            for i in 0..inputs {
                let mut places = (0..self.kernel.max(1)).map(|k| k * inputs + i);
                all += 1;
                zero += u64::from(
                    places.all(|col| (0..self.rows).all(|row| self.at(block, row, col) == 0.0)),
                );
            }
        }
        Some(zero as f64 / all.max(1) as f64)
    }

    /// The singular values of all blocks together: those of the block-diagonal matrix that the
    /// layer multiplies by. They are the square roots of the eigenvalues of the smaller of the two
    /// Gram matrices, exact to about 1e-8 of the largest.
    fn spectrum(&self) -> Option<Spectrum> {
        let (small, large) = (self.rows.min(self.cols), self.rows.max(self.cols));
        let n = u64::try_from(small).ok()?;
        let work = n
            .checked_mul(n)?
            .checked_mul(u64::try_from(large + small).ok()?)?;
        let work = work.checked_mul(u64::try_from(self.blocks.len()).ok()?)?;
        if !(2..=WIDEST).contains(&small) || work > MOST_WORK {
            return None;
        }
        let mut squares: Vec<f64> = Vec::new();
        for block in &self.blocks {
            let m = Mat::from_fn(self.rows, self.cols, |r, c| self.at(block, r, c));
            let gram = match self.rows <= self.cols {
                true => &m * m.transpose(),
                false => m.transpose() * &m,
            };
            let all = gram.self_adjoint_eigenvalues(Side::Lower).ok()?;
            squares.extend(all.into_iter().map(|x| if x > 0.0 { x } else { 0.0 }));
        }
        squares.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = squares.iter().sum();
        let largest = squares
            .first()
            .copied()
            .filter(|x| *x > 0.0 && x.is_finite())?;
        let rank = |share: f64| {
            let mut sum = 0.0;
            let enough = |x: &f64| {
                sum += x;
                sum >= share * total
            };
            squares
                .iter()
                .position(enough)
                .map_or(squares.len(), |i| i + 1)
        };
        let relative: Vec<f64> = squares.iter().map(|x| (x / largest).sqrt()).collect();
        Some(Spectrum {
            count: squares.len(),
            rank_90: rank(0.9),
            rank_99: rank(0.99),
            values: evenly(&relative, KEPT_VALUES),
        })
    }
}

/// At most `most` elements, evenly spaced by index, the first and the last among them.
fn evenly(values: &[f64], most: usize) -> Vec<f64> {
    let Some(last) = values.len().checked_sub(1) else {
        return Vec::new();
    };
    if values.len() <= most {
        return values.to_vec();
    }
    let place = |i: usize| i * last / (most - 1).max(1);
    (0..most)
        .filter_map(|i| values.get(place(i)).copied())
        .collect()
}

fn strides(dims: &[usize]) -> Vec<usize> {
    let mut out: Vec<usize> = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        out[axis - 1] = out[axis].saturating_mul(dims[axis]);
    }
    out
}

/// Where the index of some axes, counted as one, leads to.
fn offset(
    mut index: usize,
    axes: &std::ops::Range<usize>,
    dims: &[usize],
    strides: &[usize],
) -> usize {
    let mut out = 0;
    for axis in axes.clone().rev() {
        let size = dims.get(axis).copied().unwrap_or(1).max(1);
        out += (index % size) * strides.get(axis).copied().unwrap_or(0);
        index /= size;
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use paring_ir::pass::NoProgress;
    use paring_ir::text::parse_model;

    use super::*;
    use crate::engine::TractEngine;

    fn of(text: &str) -> Vec<WeightStats> {
        let model = parse_model(text).unwrap();
        weights(&model, &TractEngine::new(), &NoProgress)
    }

    fn share(w: &WeightStats, name: &str) -> f64 {
        w.patterns.iter().find(|p| p.name == name).unwrap().share
    }

    #[test]
    fn zeros_are_counted_by_pattern() {
        // Four inputs and four outputs; the first output channel is zero, the second has two
        // zeros of four.
        let all = of(r#"<ir_version: 8, opset_import: ["": 17]>
            net (float[1,4] x) => (float[1,4] y)
            <float[4,4] w = {0,0,0,0, 0,0,1,2, 3,4,5,6, 7,8,9,10}>
            { [gemm] y = Gemm <transB = 1> (x, w) }"#);
        let [w] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(
            (w.layer.as_str(), w.elements, w.sparsity),
            ("gemm", 16, 6.0 / 16.0)
        );
        assert_eq!(share(w, "2:4"), 0.5);
        assert_eq!(share(w, "row"), 0.25);
        assert_eq!(share(w, "1x4"), 0.25);
        assert_eq!(share(w, "4x1"), 0.0);
        assert_eq!(share(w, "column"), 0.0);
        assert_eq!(w.distinct, Some(11));
        assert_eq!(w.histogram.as_ref().unwrap().counts.iter().sum::<u64>(), 10);
    }

    #[test]
    fn columns_run_over_input_channels_first() {
        // One output, two inputs, a kernel of two: input channel 1 is zero.
        let dims = [1, 2, 2];
        let layout = WeightLayout {
            output_axis: 0,
            input_axis: 1,
            kernel_axes: 2..3,
            batch_axes: 0..0,
            groups: 1,
            gates: 1,
        };
        let m = Matrices::of(&[1.0, 2.0, 0.0, 0.0], &dims, Some(&layout)).unwrap();
        assert_eq!(m.blocks, [[1.0, 0.0, 2.0, 0.0]]);
        assert_eq!(m.zero_kernels(), Some(0.5));
        assert_eq!(m.zero_columns(), Some(0.5));
    }

    #[test]
    fn groups_are_matrices_of_their_own() {
        // Of a convolution the outputs are split over the groups, of a transposed one the inputs.
        let layout = |output_axis, input_axis| WeightLayout {
            output_axis,
            input_axis,
            kernel_axes: 2..2,
            batch_axes: 0..0,
            groups: 2,
            gates: 1,
        };
        let values = [1.0, 2.0, 3.0, 4.0];
        let conv = Matrices::of(&values, &[2, 2], Some(&layout(0, 1))).unwrap();
        assert_eq!((conv.rows, conv.cols), (1, 2));
        assert_eq!(conv.blocks, [[1.0, 2.0], [3.0, 4.0]]);
        let transposed = Matrices::of(&values, &[2, 2], Some(&layout(1, 0))).unwrap();
        assert_eq!((transposed.rows, transposed.cols), (2, 1));
        assert_eq!(transposed.blocks, [[1.0, 2.0], [3.0, 4.0]]);
    }

    #[test]
    fn singular_values_fall_as_they_should() {
        // Rank one, and the identity.
        let one = Matrices {
            blocks: vec![(0..12).map(|i| f64::from(i % 4 + 1)).collect()],
            rows: 3,
            cols: 4,
            kernel: 1,
            depthwise: false,
        };
        let s = one.spectrum().unwrap();
        assert_eq!((s.count, s.rank_90, s.rank_99), (3, 1, 1));
        assert!(s.values[1] < 1e-6, "{:?}", s.values);
        let eye = Matrices {
            blocks: vec![(0..16).map(|i| f64::from(u8::from(i % 5 == 0))).collect()],
            rows: 4,
            cols: 4,
            ..one
        };
        let s = eye.spectrum().unwrap();
        assert_eq!((s.rank_90, s.rank_99), (4, 4));
        assert!(s.values.iter().all(|x| (x - 1.0).abs() < 1e-9));
    }

    #[test]
    fn dequantized_weights_are_seen_as_the_layer_sees_them() {
        let all = of(r#"<ir_version: 8, opset_import: ["": 17]>
            net (float[1,4] x) => (float[1,4] y)
            <int8[4,4] q = {0,1,2,3,4,5,6,7,0,1,2,3,4,5,6,7}, float s = {0.5}, int8 z = {0}>
            { w = DequantizeLinear (q, s, z)
              [mm] y = MatMul (x, w) }"#);
        let [w] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(w.through, ["DequantizeLinear"]);
        assert_eq!((w.max, w.distinct, w.sparsity), (3.5, Some(8), 0.125));
    }

    #[test]
    fn what_depends_on_an_input_is_no_weight() {
        let all = of(r#"<ir_version: 8, opset_import: ["": 17]>
            net (float[4,4] x, float[4,4] y) => (float[4,4] z)
            { z = MatMul (x, y) }"#);
        assert!(all.is_empty());
    }

    #[test]
    fn bins_hold_their_edges() {
        let h = Histogram::of(&[-1.0, 0.0, 1.0, f64::NAN], 4).unwrap();
        assert_eq!((h.low, h.high, h.counts), (-1.0, 1.0, vec![1, 0, 0, 1]));
        assert_eq!(Histogram::of(&[0.0], 4), None);
        assert_eq!(Histogram::of(&[2.0], 3).unwrap().counts, [0, 1, 0]);
        assert_eq!(evenly(&[1.0, 2.0, 3.0, 4.0, 5.0], 3), [1.0, 3.0, 5.0]);
    }
}

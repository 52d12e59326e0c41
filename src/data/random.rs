//! Seeded random inputs of sensible ranges.
//!
//! Floats are about normally distributed. Integers depend on what the model does with them:
//! indices stay within the tables that they index, masks are ones, token types are zeros,
//! lengths are lengths. The same seed gives the same inputs on every machine: the generator is
//! fixed, and only operations with exact results are used.

use std::collections::HashSet;

use half::f16;
use paring_ir::engine::{DataSource, EngineError, Sample};
use paring_ir::tensor::{Dims, element_count};
use paring_ir::{DType, Graph, Model, OpId, Port, Tensor, ValueId, escape};
use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};

use super::{DataError, RunShapes, input_constant};

/// What an input is filled with.
#[derive(Clone, Debug, PartialEq)]
enum Fill {
    /// About normal, mean 0, deviation 1.
    Normal,
    /// Integers from 0 up to this, exclusive.
    Below(u64),
    /// The whole range of an 8-bit type.
    Bytes,
    /// One number everywhere.
    All(i64),
    /// 0, 1, 2, ... along the last axis, up to a bound.
    Count(u64),
    /// A default of the model.
    Default(Tensor),
}

struct Input {
    name: String,
    dtype: DType,
    dims: Dims,
    fill: Fill,
}

/// A source of random inputs.
pub struct RandomInputs {
    inputs: Vec<Input>,
    runs: usize,
    batch: usize,
    seed: u64,
    notes: Vec<String>,
}

impl RandomInputs {
    /// Inputs for so many runs of a model with these shapes.
    pub fn new(
        model: &Model,
        shapes: &RunShapes,
        runs: usize,
        seed: u64,
    ) -> Result<RandomInputs, DataError> {
        let graph = &model.graph;
        let longest = shapes.dims.iter().flat_map(|d| d.iter().skip(1)).max();
        let longest = longest.copied().unwrap_or(1);
        let mut inputs = Vec::new();
        let mut notes = Vec::new();
        for (&v, dims) in graph.inputs().iter().zip(&shapes.dims) {
            let value = graph.value(v);
            let name = escape(value.name());
            let error = |reason: String| DataError::Shape {
                input: name.clone(),
                reason,
            };
            let dtype = value.known_type().and_then(|t| t.dtype());
            let dtype = dtype.or_else(|| value.initializer().map(|c| c.dtype()));
            let dtype = dtype.ok_or_else(|| error("its element type is not known".to_string()))?;
            let bytes = element_count(dims).and_then(|n| n.checked_mul(8));
            if bytes.is_none_or(|b| b > 1 << 33) {
                return Err(error(format!(
                    "a tensor of shape {:?} is too large",
                    dims.as_slice()
                )));
            }
            let default = value.initializer().and_then(|c| c.dense());
            let fill = match default {
                Some(t) if t.dims() == dims.as_slice() => Fill::Default(t.clone()),
                _ => fill_for(graph, v, dtype, longest),
            };
            if let Some(what) = fill.describe() {
                notes.push(format!("input \"{name}\": {what}"));
            }
            inputs.push(Input {
                name,
                dtype,
                dims: dims.clone(),
                fill,
            });
        }
        Ok(RandomInputs {
            inputs,
            runs,
            batch: shapes.batch(),
            seed,
            notes,
        })
    }

    /// What the inputs hold, where that is not just noise.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The inputs of one run.
    pub fn run(&self, run: usize) -> Result<Vec<Tensor>, EngineError> {
        let tensor = |(i, input): (usize, &Input)| {
            // Runs and inputs draw from streams of their own, so that one is independent of the
            // sizes of the others.
            let stream = (run as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((i as u64) << 48);
            let mut rng = Pcg32::seed_from_u64(self.seed ^ stream);
            input.draw(&mut rng).map_err(|reason| EngineError::Input {
                input: input.name.clone(),
                reason,
            })
        };
        self.inputs.iter().enumerate().map(tensor).collect()
    }
}

impl DataSource for RandomInputs {
    fn len(&self) -> usize {
        self.runs.saturating_mul(self.batch)
    }

    fn describe(&self) -> String {
        format!("random inputs (seed {})", self.seed)
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut left = limit.unwrap_or(usize::MAX);
        for run in 0..self.runs {
            if left == 0 {
                break;
            }
            let count = self.batch.min(left);
            left -= count;
            f(&Sample {
                inputs: self.run(run)?,
                count,
                labels: None,
            })?;
        }
        Ok(())
    }
}

impl Fill {
    fn describe(&self) -> Option<String> {
        match self {
            Fill::Normal | Fill::Bytes => None,
            Fill::Below(n) => Some(format!("whole numbers from 0 to {}", n.saturating_sub(1))),
            Fill::All(n) => Some(format!("{n} everywhere")),
            Fill::Count(_) => Some("counting from 0 along the last axis".to_string()),
            Fill::Default(_) => Some("its default".to_string()),
        }
    }
}

/// A number about normally distributed: twelve uniform ones have variance 1, and their sum is
/// exact, which no logarithm or cosine is on every machine.
fn normal(rng: &mut Pcg32) -> f32 {
    let sum: u64 = (0..12).map(|_| u64::from(rng.next_u32() >> 8)).sum();
    (sum as f64 / f64::from(1u32 << 24) - 6.0) as f32
}

fn below(rng: &mut Pcg32, bound: u64) -> i64 {
    let high = u64::from(rng.next_u32()) << 32;
    let word = u128::from(high | u64::from(rng.next_u32()));
    // The upper half of the product is uniform below the bound.
    i64::try_from((word * u128::from(bound)) >> 64).unwrap_or(0)
}

impl Input {
    fn draw(&self, rng: &mut Pcg32) -> Result<Tensor, String> {
        if let Fill::Default(t) = &self.fill {
            return Ok(t.clone());
        }
        let count = element_count(&self.dims).ok_or("it is too large")?;
        let dims = self.dims.iter().copied();
        if self.dtype.is_float() && self.fill == Fill::Normal {
            let values: Vec<f32> = (0..count).map(|_| normal(rng)).collect();
            return floats(self.dtype, &self.dims, &values);
        }
        let row = self.dims.last().copied().unwrap_or(1).max(1);
        let values: Vec<i64> = (0..count)
            .map(|i| match &self.fill {
                Fill::Below(n) => below(rng, *n),
                Fill::All(n) => *n,
                Fill::Count(n) => i64::try_from((i % row) as u64 % (*n).max(1)).unwrap_or(0),
                _ => i64::from(rng.next_u32() & 0xff),
            })
            .collect();
        let made = match self.dtype {
            DType::I64 => Tensor::from_vec(dims, values),
            DType::I32 => Tensor::from_vec(dims, values.iter().map(|&v| v as i32).collect()),
            DType::I16 => Tensor::from_vec(dims, values.iter().map(|&v| v as i16).collect()),
            DType::I8 => Tensor::from_vec(dims, values.iter().map(|&v| v as i8).collect()),
            DType::U64 => Tensor::from_vec(dims, values.iter().map(|&v| v as u64).collect()),
            DType::U32 => Tensor::from_vec(dims, values.iter().map(|&v| v as u32).collect()),
            DType::U16 => Tensor::from_vec(dims, values.iter().map(|&v| v as u16).collect()),
            DType::U8 => Tensor::from_vec(dims, values.iter().map(|&v| v as u8).collect()),
            DType::Bool => {
                let bytes: Vec<u8> = values.iter().map(|&v| u8::from(v != 0)).collect();
                Tensor::new(DType::Bool, dims, bytes)
            }
            DType::String => {
                let text = bytes::Bytes::from_static(b"a");
                Tensor::from_strings(dims, std::iter::repeat_n(text, count))
            }
            d if d.is_float() => {
                let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                return floats(d, &self.dims, &values);
            }
            other => {
                return Err(format!(
                    "random elements of type {other} can't be made; use --data"
                ));
            }
        };
        made.map_err(|e| e.to_string())
    }
}

fn floats(dtype: DType, dims: &Dims, values: &[f32]) -> Result<Tensor, String> {
    let dims = dims.iter().copied();
    match dtype {
        DType::F32 => Tensor::from_vec(dims, values.to_vec()),
        DType::F64 => Tensor::from_vec(dims, values.iter().map(|&v| f64::from(v)).collect()),
        DType::F16 => Tensor::from_vec(dims, values.iter().map(|&v| f16::from_f32(v)).collect()),
        _ => Tensor::from_vec(
            dims,
            values.iter().map(|&v| half::bf16::from_f32(v)).collect(),
        ),
    }
    .map_err(|e| e.to_string())
}

/// What an input should hold, by what it is called and what the model does with it.
fn fill_for(graph: &Graph, v: ValueId, dtype: DType, longest: usize) -> Fill {
    let name = graph.value(v).name().to_lowercase();
    let says = |words: &[&str]| words.iter().any(|w| name.contains(w));
    if dtype == DType::Bool || says(&["mask"]) {
        return Fill::All(1);
    }
    if dtype.is_float() {
        return Fill::Normal;
    }
    if name == "sr" || says(&["sample_rate", "sampling_rate"]) {
        return Fill::All(16000);
    }
    let table = index_bound(graph, v);
    if says(&["token_type", "segment"]) {
        return Fill::All(0);
    }
    if says(&["position"]) {
        return Fill::Count(table.unwrap_or(1 << 30));
    }
    if let Some(rows) = table {
        return Fill::Below(rows);
    }
    if says(&["length", "lens", "_len"]) {
        return Fill::All(i64::try_from(longest).unwrap_or(1));
    }
    match dtype {
        DType::U8 | DType::I8 => Fill::Bytes,
        DType::String => Fill::All(0),
        // Few models index with small numbers that nothing bounds and fail for them.
        _ => Fill::Below(8),
    }
}

/// The smallest table that a value indexes, followed through operators that move or convert it.
fn index_bound(graph: &Graph, v: ValueId) -> Option<u64> {
    let mut bound: Option<u64> = None;
    let mut seen = HashSet::new();
    let mut stack = vec![v];
    while let Some(v) = stack.pop() {
        if !seen.insert(v) || seen.len() > 512 {
            continue;
        }
        for u in graph.sorted_uses(v) {
            let Port::Input(slot) = u.port else { continue };
            if let Some(rows) = table_rows(graph, u.op, slot) {
                let rows = (rows as u64).max(1);
                bound = Some(bound.map_or(rows, |b| b.min(rows)));
            } else if passes_on(graph, u.op, slot) {
                stack.extend(graph.op(u.op).outputs().iter().flatten());
            }
        }
    }
    bound
}

/// The number of rows of the table that an operator indexes with this input.
fn table_rows(graph: &Graph, op: OpId, slot: u32) -> Option<usize> {
    let o = graph.op(op);
    match (&**o.op_type(), slot) {
        ("Gather" | "GatherElements", 1) => {
            let table = input_constant(graph, op, 0)?;
            let axis = o.int_or("axis", 0);
            let axis = if axis < 0 {
                axis.checked_add(table.rank() as i64)?
            } else {
                axis
            };
            table.dims().get(usize::try_from(axis).ok()?).copied()
        }
        ("GatherND", 1) => input_constant(graph, op, 0)?.dims().first().copied(),
        ("OneHot", 0) => {
            let depth = input_constant(graph, op, 1)?.single_f64()?;
            (1.0..1e9).contains(&depth).then_some(depth as usize)
        }
        // One-hot encoding spelled out: ids are compared with 0, 1, 2, ...
        ("Equal", _) => {
            let other = input_constant(graph, op, usize::from(slot == 0))?;
            let ids = other.to_i64s().filter(|ids| ids.len() > 1)?;
            let last = ids.iter().max()?.checked_add(1)?;
            usize::try_from(last).ok().filter(|&rows| rows > 1)
        }
        _ => None,
    }
}

/// Whether an operator passes whole numbers on as they are.
fn passes_on(graph: &Graph, op: OpId, slot: u32) -> bool {
    let same = [
        "Cast",
        "Clip",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ];
    let kind = &**graph.op(op).op_type();
    same.contains(&kind) && (slot == 0 || matches!(kind, "Concat" | "Max" | "Min"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use paring_ir::{Dim, NewOp, ValueType};

    use super::*;
    use crate::data::ShapeOptions;

    fn encoder() -> Model {
        let mut g = Graph::new("main");
        let dims = || [Dim::Param("batch".into()), Dim::Param("sequence".into())];
        let ids = g
            .add_input("input_ids", Some(ValueType::tensor(DType::I64, dims())))
            .unwrap();
        for (name, dtype) in [
            ("attention_mask", DType::I64),
            ("token_type_ids", DType::I64),
            ("x", DType::F32),
        ] {
            g.add_input(name, Some(ValueType::tensor(dtype, dims())))
                .unwrap();
        }
        let table = g
            .add_constant("table", Tensor::from_vec([5, 1], vec![0f32; 5]).unwrap())
            .unwrap();
        let cast = g
            .add_op(NewOp::new("Cast").input(ids).attr("to", 6i64).output("c"))
            .unwrap();
        let cast = g.op(cast).output(0).unwrap();
        g.add_op(NewOp::new("Gather").input(table).input(cast).output("e"))
            .unwrap();
        Model::new(g, 17)
    }

    fn inputs(seed: u64) -> RandomInputs {
        let model = encoder();
        let shapes = RunShapes::resolve(&model, &ShapeOptions::default()).unwrap();
        RandomInputs::new(&model, &shapes, 2, seed).unwrap()
    }

    #[test]
    fn ids_stay_within_the_table_and_masks_are_ones() {
        let run = inputs(1).run(0).unwrap();
        let ids = run[0].to_i64s().unwrap();
        assert!(ids.iter().all(|i| (0..5).contains(i)));
        assert!((0..5).all(|i| ids.contains(&i)));
        assert!(run[1].to_i64s().unwrap().iter().all(|&m| m == 1));
        assert!(run[2].to_i64s().unwrap().iter().all(|&m| m == 0));
        let x = run[3].to_f64s().unwrap();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(
            mean.abs() < 0.4 && (0.5..2.0).contains(&variance),
            "{mean} {variance}"
        );
    }

    #[test]
    fn the_seed_decides_everything() {
        let digest = |seed, run: usize| inputs(seed).run(run).unwrap()[3].digest();
        assert_eq!(digest(1, 0), digest(1, 0));
        assert_ne!(digest(1, 0), digest(2, 0));
        assert_ne!(digest(1, 0), digest(1, 1));
        // The same numbers on every machine and in every version.
        let x = inputs(1).run(0).unwrap()[3].to_f64s().unwrap();
        assert_eq!(
            inputs(1).run(0).unwrap()[0].to_i64s().unwrap()[..6],
            PINNED_IDS
        );
        assert!((x[0] - PINNED_FLOAT).abs() < 1e-7, "{}", x[0]);
    }

    const PINNED_IDS: [i64; 6] = [1, 3, 4, 4, 4, 1];
    const PINNED_FLOAT: f64 = 0.058_971_524;

    #[test]
    fn a_limit_cuts_the_runs() {
        let source = inputs(3);
        assert_eq!(source.len(), 2);
        let mut seen = 0;
        source
            .for_each(Some(1), &mut |s| {
                seen += s.count;
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, 1);
    }
}

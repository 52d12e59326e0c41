//! How far each layer of a rewritten model is from the original's.
//!
//! Values of the two models that have one name and one shape are the same value, unless the one is
//! the other but for a factor and an offset by channel: then a fold moved the factor elsewhere. A
//! layer is what the rewritten model computes between such values and the next one, when that
//! multiplies. Three
//! errors are measured of each, all as the norm of the difference over the norm of the original's
//! value, on the same samples:
//!
//! - accumulated: both models run from their inputs, so the errors of all layers before count in;
//! - isolated: the layer alone, fed with what the original has there;
//! - at the output: the original runs, with this one layer replaced. That is how sensitive the
//!   outputs are to what was done to the layer.

use std::collections::{HashMap, HashSet};

use paring_ir::analysis::{AnalysisCache, CostOptions, Costs};
use paring_ir::engine::{Cut, DataSource, Engine, EngineError, Plan, Sample};
use paring_ir::observe::Watch;
use paring_ir::tensor::Dims;
use paring_ir::{Graph, Model, OpId, Tensor, ValueId};
use serde::Serialize;

use super::difference::Sums;
use super::timing::reorder;
use super::{CompareOptions, batch_of};

/// So many samples are run when the caller sets no limit: errors of layers are sums over many
/// elements and settle early.
const SAMPLES: usize = 32;
/// How many samples the errors at the output are measured on, and the most bytes of values that
/// are kept for them.
const OUTPUT_RUNS: usize = 4;
const OUTPUT_BYTES: usize = 512 << 20;
/// A value is taken for a moved one when the best factor and offset by channel explain all but
/// this share of the difference. What compression does to a value is mostly noise, which they
/// don't explain.
const UNEXPLAINED: f64 = 1.0 / 3.0;
/// Channels of fewer elements say nothing about factors.
const CHANNEL: f64 = 32.0;

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerError {
    /// The operator of the rewritten model with most multiply-accumulates.
    pub name: String,
    /// Its type.
    pub op_type: String,
    /// The value that is compared.
    pub value: String,
    /// Operators of the rewritten model from the values before to this one.
    pub operators: usize,
    /// The error with those of all layers before; absent when it could not be measured.
    pub accumulated: Option<f64>,
    /// The error of the layer alone.
    pub isolated: Option<f64>,
    /// The error that the layer alone makes at the output where it is largest.
    pub output: Option<f64>,
}

/// The layers of a rewritten model, in the order of the data flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LayerErrors {
    /// Where the samples came from.
    pub data: String,
    /// Samples.
    pub samples: usize,
    /// The layers.
    pub layers: Vec<LayerError>,
    /// Operators with multiply-accumulates whose value could not be found in the original and
    /// that count for the next layer.
    pub merged: usize,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// A part of the rewritten model between values that are in both.
struct Region {
    op: OpId,
    operators: usize,
    products: usize,
    /// Where it begins, in the rewritten model; graph inputs among them.
    inputs: Vec<ValueId>,
    /// Where it ends, in the original and in the rewritten model.
    before: ValueId,
    after: ValueId,
}

/// A region with what was measured of it.
struct Measured {
    region: Region,
    accumulated: Sums,
    isolated: Sums,
    plan: Option<(Vec<Dims>, Box<dyn Plan>)>,
    /// It does not run or does not fit.
    broken: Option<String>,
    /// What the layer alone gives, by run, for the errors at the output.
    alone: Vec<Option<Tensor>>,
}

/// Measures every layer on the first samples. Both models must run on them.
pub fn layer_errors(
    engine: &dyn Engine,
    before: &Model,
    after: &Model,
    data: &dyn DataSource,
    options: &CompareOptions<'_>,
) -> Result<LayerErrors, EngineError> {
    let both = Models {
        engine,
        before,
        after,
        options: *options,
    };
    let shared = both.shared(data)?;
    let regions = both.regions(&shared)?;
    let mut out = LayerErrors {
        data: data.describe(),
        merged: regions.iter().map(|r| r.products - 1).sum(),
        ..LayerErrors::default()
    };
    let mut layers: Vec<Measured> = regions.into_iter().map(Measured::new).collect();
    let kept = both.run(data, &shared, &mut layers, &mut out)?;
    let at_output = both.at_output(&mut layers, &kept)?;
    for (layer, output) in layers.iter().zip(at_output) {
        out.layers.push(layer.finish(&after.graph, output));
        out.notes.extend(layer.broken.iter().cloned());
    }
    Ok(out)
}

struct Models<'a> {
    engine: &'a dyn Engine,
    before: &'a Model,
    after: &'a Model,
    options: CompareOptions<'a>,
}

/// The values of the original by those of the rewritten model, graph inputs not among them.
type Shared = HashMap<ValueId, ValueId>;

/// A sample that the errors at the output are measured on, with the original's outputs.
struct Kept {
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    batch: usize,
    count: usize,
}

impl Models<'_> {
    fn limit(&self) -> usize {
        self.options.limit.unwrap_or(SAMPLES).min(SAMPLES)
    }

    /// The values that operators of both models make, of one name, shape and element type.
    fn shared(&self, data: &dyn DataSource) -> Result<Shared, EngineError> {
        let (a, b) = (&self.before.graph, &self.after.graph);
        let candidates: Vec<(ValueId, ValueId)> = b
            .values()
            .filter(|&v| b.value(v).producer().is_some())
            .filter_map(|v| Some((a.find_value(b.value(v).name())?, v)))
            .filter(|&(u, _)| a.value(u).producer().is_some())
            .collect();
        let compile = self.options.compile(true);
        let (mine, theirs): (Vec<_>, Vec<_>) = candidates.iter().copied().unzip();
        let mut first = Watch::new(self.engine, self.before, &mine, compile);
        let mut second = Watch::new(self.engine, self.after, &theirs, compile);
        // A copy of a model has the ids of the model, so each has a map of its own.
        let (mut a_seen, mut b_seen) = (HashMap::new(), HashMap::new());
        data.for_each(Some(1), &mut |sample| {
            first.run(sample, &mut |v, t| {
                a_seen.insert(v, t.clone());
                Ok(())
            })?;
            second.run(&self.reordered(sample)?, &mut |v, t| {
                b_seen.insert(v, t.clone());
                Ok(())
            })
        })?;
        let comparable = |(u, v): &(ValueId, ValueId)| match (a_seen.get(u), b_seen.get(v)) {
            (Some(x), Some(y)) => {
                let fits = x.dtype() == y.dtype() && x.dims() == y.dims();
                // Outputs mean what they meant, whatever happened.
                let output = self.before.graph.value(*u).is_output();
                fits && x.dtype().is_float() && (output || !moved(x, y))
            }
            _ => false,
        };
        let kept = candidates.into_iter().filter(comparable);
        Ok(kept.map(|(u, v)| (v, u)).collect())
    }

    fn reordered(&self, sample: &Sample) -> Result<Sample, EngineError> {
        Ok(Sample {
            inputs: reorder(self.before, self.after, &sample.inputs)?,
            count: sample.count,
            labels: None,
        })
    }

    /// The regions that multiply, in the order of the data flow.
    fn regions(&self, shared: &Shared) -> Result<Vec<Region>, EngineError> {
        let graph = &self.after.graph;
        let order = graph
            .topological_order()
            .map_err(|e| EngineError::Cut(e.to_string()))?;
        let costs = AnalysisCache::new().get_with::<Costs>(self.after, &CostOptions::default());
        let mut out = Vec::new();
        for op in order {
            for &v in graph.op(op).outputs().iter().flatten() {
                if let Some(&original) = shared.get(&v) {
                    out.extend(region(graph, &costs, shared, v, original));
                }
            }
        }
        Ok(out)
    }

    /// Runs both models and every layer alone. Gives the samples for the errors at the output.
    fn run(
        &self,
        data: &dyn DataSource,
        shared: &Shared,
        layers: &mut [Measured],
        out: &mut LayerErrors,
    ) -> Result<Vec<Kept>, EngineError> {
        let (needed, ends) = needed(shared, layers);
        let mut wanted = needed.clone();
        wanted.extend(self.before.graph.outputs());
        let compile = self.options.compile(true);
        let mut first = Watch::new(self.engine, self.before, &wanted, compile);
        let mut second = Watch::new(self.engine, self.after, &ends, compile);
        let mut kept: Vec<Kept> = Vec::new();
        let mut bytes = 0usize;
        let progress = self.options.progress;
        let total = self.limit().min(data.len());
        progress.start("comparing layers", total as u64);
        let walked = data.for_each(Some(self.limit()), &mut |sample| {
            self.options.check()?;
            let mut originals: HashMap<ValueId, Tensor> = HashMap::new();
            first.run(sample, &mut |v, t| {
                originals.insert(v, t.clone());
                Ok(())
            })?;
            let batch = batch_of(sample);
            let mut rewritten: HashMap<ValueId, Tensor> = HashMap::new();
            second.run(&self.reordered(sample)?, &mut |v, t| {
                rewritten.insert(v, t.clone());
                Ok(())
            })?;
            let keep = kept.len() < OUTPUT_RUNS && bytes < OUTPUT_BYTES;
            let values = Values {
                graph: &self.after.graph,
                shared,
                originals: &originals,
                inputs: self.by_name(sample),
            };
            for layer in layers.iter_mut() {
                self.options.check()?;
                layer.accumulate(&originals, &rewritten, batch, sample.count);
                let alone = layer.alone(self, &values, batch, sample.count);
                if keep {
                    bytes += alone.as_ref().map_or(0, Tensor::byte_len);
                    layer.alone.push(alone);
                }
            }
            if keep {
                kept.extend(self.keep(sample, &originals, batch));
            }
            out.samples += sample.count;
            progress.advance(sample.count as u64);
            Ok(())
        });
        progress.finish();
        walked?;
        Ok(kept)
    }

    /// The graph inputs of a sample by their names.
    fn by_name(&self, sample: &Sample) -> HashMap<String, Tensor> {
        let graph = &self.before.graph;
        let names = graph
            .inputs()
            .iter()
            .map(|&v| graph.value(v).name().to_string());
        names.zip(sample.inputs.iter().cloned()).collect()
    }

    fn keep(
        &self,
        sample: &Sample,
        originals: &HashMap<ValueId, Tensor>,
        batch: usize,
    ) -> Option<Kept> {
        let outputs = self.before.graph.outputs().iter();
        Some(Kept {
            inputs: sample.inputs.clone(),
            outputs: outputs
                .map(|v| originals.get(v).cloned())
                .collect::<Option<_>>()?,
            batch,
            count: sample.count,
        })
    }

    /// For each layer the error at the output when it alone is replaced in the original.
    fn at_output(
        &self,
        layers: &mut [Measured],
        kept: &[Kept],
    ) -> Result<Vec<Option<f64>>, EngineError> {
        let progress = self.options.progress;
        progress.start("measuring sensitivity", layers.len() as u64);
        let mut out = Vec::with_capacity(layers.len());
        for layer in layers.iter_mut() {
            self.options.check()?;
            // Only one plan at a time, since each holds the weights of all that comes after.
            layer.plan = None;
            out.push(match relative(&layer.isolated) {
                Some(0.0) => Some(0.0),
                None => None,
                Some(_) => self.injected(layer, kept),
            });
            layer.alone.clear();
            progress.advance(1);
        }
        progress.finish();
        Ok(out)
    }

    fn injected(&self, layer: &Measured, kept: &[Kept]) -> Option<f64> {
        let outputs = self.before.graph.outputs();
        let mut inputs = self.before.graph.inputs().to_vec();
        inputs.push(layer.region.before);
        let mut sums = vec![Sums::default(); outputs.len()];
        let mut compiled: Option<(Vec<Dims>, Box<dyn Plan>)> = None;
        for (sample, alone) in kept.iter().zip(&layer.alone) {
            let mut tensors = sample.inputs.clone();
            tensors.push(alone.clone()?);
            let cut = Cut {
                model: self.before,
                inputs: inputs.clone(),
                outputs: outputs.to_vec(),
                shapes: shapes(&tensors),
            };
            let given = self
                .compiled(&mut compiled, &cut)
                .ok()?
                .run(&tensors)
                .ok()?;
            for ((sums, a), b) in sums.iter_mut().zip(&sample.outputs).zip(&given) {
                sums.add(a, b, sample.batch, sample.count).ok()?;
            }
        }
        sums.iter().filter_map(relative).reduce(f64::max)
    }

    /// The plan of a cut, compiled anew where the shapes are others than before.
    fn compiled<'p>(
        &self,
        plan: &'p mut Option<(Vec<Dims>, Box<dyn Plan>)>,
        cut: &Cut<'_>,
    ) -> Result<&'p mut dyn Plan, EngineError> {
        if plan.as_ref().is_none_or(|(known, _)| *known != cut.shapes) {
            let new = self.engine.compile(cut, self.options.compile(true))?;
            *plan = Some((cut.shapes.clone(), new));
        }
        match plan {
            Some((_, plan)) => Ok(&mut **plan),
            None => Err(EngineError::Cut("the plan was lost".to_owned())),
        }
    }
}

/// Whether a value differs from the original's by a factor and an offset by channel, and little
/// else.
fn moved(original: &Tensor, value: &Tensor) -> bool {
    let (Some(a), Some(b)) = (original.to_f64s(), value.to_f64s()) else {
        return false;
    };
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = a.iter().map(|a| a * a).sum();
    // What is this close is the same, whatever explains it.
    if difference.is_nan() || difference <= 1e-6 * size {
        return false;
    }
    let dims = original.dims();
    let axes = [None, Some(1), dims.len().checked_sub(1)];
    axes.into_iter().any(|axis| {
        unexplained(&a, &b, dims, axis)
            .is_some_and(|left| left <= UNEXPLAINED * UNEXPLAINED * difference)
    })
}

/// The sum of squares that least squares of `b` on `a` leave, by channel of an axis or over all;
/// `None` where a channel has too few elements.
fn unexplained(a: &[f64], b: &[f64], dims: &[usize], axis: Option<usize>) -> Option<f64> {
    let channels = match axis {
        Some(axis) => *dims.get(axis)?,
        None => 1,
    };
    let inner: usize = axis.map_or(1, |axis| dims.iter().skip(axis + 1).product());
    let at = |i: usize| i / inner.max(1) % channels.max(1);
    let mut means = vec![[0.0; 3]; channels];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let m = means.get_mut(at(i))?;
        *m = [m[0] + 1.0, m[1] + a, m[2] + b];
    }
    let mut sums = vec![[0.0; 3]; channels];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let [n, sum_a, sum_b] = *means.get(at(i))?;
        let (a, b) = (a - sum_a / n, b - sum_b / n);
        let s = sums.get_mut(at(i))?;
        *s = [s[0] + a * a, s[1] + a * b, s[2] + b * b];
    }
    if means.iter().any(|m| m[0] < CHANNEL) {
        return None;
    }
    let left = sums.iter().map(|&[aa, ab, bb]| match aa > 0.0 {
        true => (bb - ab * ab / aa).max(0.0),
        false => bb,
    });
    Some(left.sum())
}

/// The original's values that layers begin and end with, and the rewritten model's that they end
/// with, each once.
fn needed(shared: &Shared, layers: &[Measured]) -> (Vec<ValueId>, Vec<ValueId>) {
    let mut seen = HashSet::new();
    let mut first = Vec::new();
    for l in layers {
        let begins = l.region.inputs.iter().filter_map(|v| shared.get(v));
        let all = begins.chain([&l.region.before]);
        first.extend(all.copied().filter(|&v| seen.insert(v)));
    }
    (first, layers.iter().map(|l| l.region.after).collect())
}

fn shapes(tensors: &[Tensor]) -> Vec<Dims> {
    let dims = |t: &Tensor| t.dims().iter().copied().collect();
    tensors.iter().map(dims).collect()
}

/// The region that ends with a value; `None` when nothing in it multiplies.
fn region(
    graph: &Graph,
    costs: &Costs,
    shared: &Shared,
    end: ValueId,
    original: ValueId,
) -> Option<Region> {
    let mut ops: Vec<OpId> = Vec::new();
    let mut inputs: Vec<ValueId> = Vec::new();
    let mut seen: HashSet<ValueId> = HashSet::new();
    let mut known: HashSet<OpId> = HashSet::new();
    let mut stack = vec![end];
    while let Some(v) = stack.pop() {
        if !seen.insert(v) {
            continue;
        }
        let begins = v != end && shared.contains_key(&v);
        match graph.producer(v) {
            Some(op) if !begins && known.insert(op) => {
                ops.push(op);
                stack.extend(graph.op(op).inputs().flatten());
                stack.extend(graph.op(op).captures());
            }
            Some(_) if !begins => {}
            Some(_) => inputs.push(v),
            None if graph.value(v).is_input() => inputs.push(v),
            None => {}
        }
    }
    let macs = |op: OpId| costs.op(op).macs.unwrap_or(0);
    let products = ops.iter().filter(|&&op| macs(op) > 0).count();
    let op = ops.iter().copied().max_by_key(|&op| (macs(op), op))?;
    inputs.sort_unstable();
    (products > 0).then_some(Region {
        op,
        operators: ops.len(),
        products,
        inputs,
        before: original,
        after: end,
    })
}

/// Where the inputs of a region come from: the original's values.
struct Values<'a> {
    graph: &'a Graph,
    shared: &'a Shared,
    originals: &'a HashMap<ValueId, Tensor>,
    inputs: HashMap<String, Tensor>,
}

impl Values<'_> {
    fn get(&self, v: ValueId) -> Option<Tensor> {
        match self.shared.get(&v) {
            Some(original) => self.originals.get(original).cloned(),
            None => self.inputs.get(&**self.graph.value(v).name()).cloned(),
        }
    }
}

impl Measured {
    fn new(region: Region) -> Measured {
        Measured {
            region,
            accumulated: Sums::default(),
            isolated: Sums::default(),
            plan: None,
            broken: None,
            alone: Vec::new(),
        }
    }

    fn accumulate(
        &mut self,
        originals: &HashMap<ValueId, Tensor>,
        rewritten: &HashMap<ValueId, Tensor>,
        batch: usize,
        count: usize,
    ) {
        let (a, b) = (
            originals.get(&self.region.before),
            rewritten.get(&self.region.after),
        );
        // Shapes were the same on the first sample; where they differ later, they don't count.
        if let (Some(a), Some(b)) = (a, b)
            && let Err(reason) = self.accumulated.add(a, b, batch, count)
        {
            self.broken.get_or_insert(reason);
        }
    }

    /// Runs the layer alone.
    fn alone(
        &mut self,
        models: &Models<'_>,
        values: &Values<'_>,
        batch: usize,
        count: usize,
    ) -> Option<Tensor> {
        if self.broken.is_some() {
            return None;
        }
        let original = values.originals.get(&self.region.before)?;
        let inputs: Vec<Tensor> = self
            .region
            .inputs
            .iter()
            .map(|&v| values.get(v))
            .collect::<Option<_>>()?;
        let cut = Cut {
            model: models.after,
            inputs: self.region.inputs.clone(),
            outputs: vec![self.region.after],
            shapes: shapes(&inputs),
        };
        let plan = models.compiled(&mut self.plan, &cut);
        let given = plan
            .and_then(|plan| plan.run(&inputs))
            .map(|mut all| all.pop());
        let added = match given {
            Ok(Some(t)) => self.isolated.add(original, &t, batch, count).map(|()| t),
            Ok(None) => Err("it gave no output".to_owned()),
            Err(e) => Err(e.to_string()),
        };
        match added {
            Ok(t) => Some(t),
            Err(reason) => {
                let label = values.graph.op_label(self.region.op);
                self.broken = Some(format!(
                    "layer \"{}\" does not run alone: {reason}",
                    paring_ir::escape(&label)
                ));
                None
            }
        }
    }

    fn finish(&self, graph: &Graph, output: Option<f64>) -> LayerError {
        LayerError {
            name: graph.op_label(self.region.op).to_string(),
            op_type: graph.op(self.region.op).op_type().to_string(),
            value: graph.value(self.region.after).name().to_string(),
            operators: self.region.operators,
            accumulated: relative(&self.accumulated),
            isolated: relative(&self.isolated).filter(|_| self.broken.is_none()),
            output,
        }
    }
}

/// The norm of the difference over the norm of the original; `None` where nothing was compared.
fn relative(sums: &Sums) -> Option<f64> {
    let all = sums.finish("");
    (all.elements > 0).then(|| all.sqnr_db.map_or(0.0, |db| 10f64.powf(-db / 20.0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use paring_ir::text::parse_model;

    use super::*;
    use crate::data::{RandomInputs, RunShapes, ShapeOptions};
    use crate::engine::TractEngine;

    /// Two layers; the first multiplies by `first`.
    fn net(first: &str) -> Model {
        parse_model(&format!(
            r#"<ir_version: 8, opset_import: ["": 17]>
            net (float[1,2] x) => (float[1,2] y)
            <float[2,2] v = {{{first}, 0, 0, {first}}}, float[2,2] w = {{1, 2, 3, -4}}>
            {{ [one] a = MatMul (x, v)
               [two] y = MatMul (a, w) }}"#
        ))
        .unwrap()
    }

    fn errors(before: &Model, after: &Model) -> LayerErrors {
        let shapes = RunShapes::resolve(before, &ShapeOptions::default()).unwrap();
        let data = RandomInputs::new(before, &shapes, 3, 0).unwrap();
        let options = CompareOptions::default();
        layer_errors(&TractEngine::new(), before, after, &data, &options).unwrap()
    }

    #[test]
    fn the_error_of_a_layer_is_told_apart_from_what_it_takes_over() {
        let found = errors(&net("2"), &net("2.2"));
        let [one, two] = found.layers.as_slice() else {
            panic!("{found:?}")
        };
        let about = |x: Option<f64>, y: f64| assert!((x.unwrap() - y).abs() < 1e-5, "{found:?}");
        assert_eq!((one.name.as_str(), two.name.as_str()), ("one", "two"));
        for of_first in [one.isolated, one.accumulated, one.output, two.accumulated] {
            about(of_first, 0.1);
        }
        about(two.isolated, 0.0);
        about(two.output, 0.0);
        assert_eq!((found.samples, found.merged), (3, 0));
        // A copy that was edited has the ids of the original.
        let before = net("2");
        let mut after = before.clone();
        let v = after.graph.find_value("v").unwrap();
        let narrower = Tensor::new(paring_ir::DType::F32, [2, 2], vec![0u8; 16]).unwrap();
        after.graph.set_tensor(v, narrower, Vec::new()).unwrap();
        let found = errors(&before, &after);
        assert_eq!(found.layers[0].accumulated, Some(1.0));
        assert_eq!(found.layers[1].isolated, Some(0.0));
    }

    #[test]
    fn a_factor_that_moved_from_one_layer_to_the_next_is_no_error() {
        let scaled = |v: f64, w: f64| {
            parse_model(&format!(
                r#"<ir_version: 8, opset_import: ["": 17]>
                net (float[64,2] x) => (float[64,2] y)
                <float[2,2] v = {{{v}, 0, 0, {v}}}, float[2,2] w = {{{w}, 0, {w}, {w}}}>
                {{ [one] a = MatMul (x, v)
                   [two] y = MatMul (a, w) }}"#
            ))
            .unwrap()
        };
        let found = errors(&scaled(2.0, 4.0), &scaled(1.0, 8.0));
        assert_eq!((found.layers.len(), found.merged), (1, 1), "{found:?}");
        assert_eq!(found.layers[0].isolated, Some(0.0));
        // An offset, and noise on top of it.
        let a: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
        let with = |noise: f32| {
            let noisy = |(i, a): (usize, &f32)| 2.0 * a + 1.0 + noise * (i as f32 * 7.3).cos();
            Tensor::vector(a.iter().enumerate().map(noisy).collect::<Vec<f32>>())
        };
        let a = Tensor::vector(a.clone());
        assert!(moved(&a, &with(0.1)) && !moved(&a, &with(2.0)) && !moved(&a, &a));
    }

    #[test]
    fn a_value_that_is_gone_or_of_another_shape_counts_for_the_next_layer() {
        let narrow = parse_model(
            r#"<ir_version: 8, opset_import: ["": 17]>
            net (float[1,2] x) => (float[1,2] y)
            <float[2,1] v = {2, 0}, float[1,2] w = {1, 2}>
            { [one] a = MatMul (x, v)
              [two] y = MatMul (a, w) }"#,
        )
        .unwrap();
        let found = errors(&net("2"), &narrow);
        let [only] = found.layers.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((only.value.as_str(), only.operators), ("y", 2));
        assert_eq!(found.merged, 1);
        assert!(
            only.isolated.unwrap() > 0.1 && only.output == only.isolated,
            "{found:?}"
        );
    }
}

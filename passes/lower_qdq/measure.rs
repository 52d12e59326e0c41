//! Costs that are measured: every layer in floats and in integers, on the machine at hand.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use paring_ir::schema::{self, Class};
use paring_ir::{Graph, Model, OpId, PassContext, PassError, Tensor};

use crate::latency;

use super::cost::{Able, Costs, Flow, Form};
use super::emit::{Made, Ready, emit};
use super::find::Found;

/// Profiles of a model are taken so often, or for so long.
const RUNS: usize = 5;
const BUDGET: Duration = Duration::from_millis(500);
/// How much dearer integers are taken for when the whole turns out slower than the parts promise.
const DEARER: f64 = 1.25;
const TRIES: usize = 4;
/// What the measurements are for.
const WHAT: &str = "max-latency-ratio";

/// What is needed to lower a model in different ways.
pub(super) struct Measure<'a> {
    pub(super) model: &'a Model,
    pub(super) found: &'a Found,
    pub(super) ready: &'a [Option<Ready>],
    pub(super) able: &'a [Able],
    pub(super) inputs: Vec<Tensor>,
}

impl<'a> Measure<'a> {
    pub(super) fn inputs(model: &Model, cx: &PassContext<'_>) -> Result<Vec<Tensor>, PassError> {
        latency::inputs(model, cx, WHAT)
    }

    fn flow(&self, chosen: &[bool]) -> Flow {
        Flow::of(&self.model.graph, self.found, self.able, chosen)
    }

    fn lowered(&self, chosen: &[bool]) -> Result<(Model, BTreeMap<OpId, Made>), PassError> {
        let mut model = self.model.clone();
        let made = emit(&mut model, self.found, self.ready, &self.flow(chosen))?;
        Ok((model, made))
    }

    /// Nanoseconds of what each operator was made for.
    fn times(
        &self,
        model: &Model,
        made: &BTreeMap<OpId, Made>,
        cx: &PassContext<'_>,
    ) -> Result<BTreeMap<Made, f64>, PassError> {
        let mut plan = latency::compiled(model, &self.inputs, cx, WHAT)?;
        plan.run(&self.inputs)?;
        let mut best: Vec<(Option<OpId>, Duration)> = Vec::new();
        let start = Instant::now();
        for run in 0..RUNS {
            cx.check_cancelled()?;
            for (i, time) in plan.profile(&self.inputs)?.into_iter().enumerate() {
                match best.get_mut(i) {
                    Some((_, least)) if run > 0 => *least = (*least).min(time.time),
                    _ => best.push((time.source, time.time)),
                }
            }
            if start.elapsed() > BUDGET {
                break;
            }
        }
        let tails = tails(&model.graph, made);
        let mut out = BTreeMap::new();
        for (source, time) in best {
            let of = source.and_then(|op| made.get(&op).or_else(|| tails.get(&op)));
            if let Some(&of) = of {
                *out.entry(of).or_insert(0.0) += time.as_nanos() as f64;
            }
        }
        Ok(out)
    }

    /// The costs of every layer in both forms; what was not met keeps what `guess` says, in the
    /// proportion of what was.
    pub(super) fn costs(&self, guess: &Costs, cx: &PassContext<'_>) -> Result<Costs, PassError> {
        let all: Vec<bool> = self.able.iter().map(|a| a.bytes || a.floats).collect();
        let (float, made) = self.lowered(&vec![false; all.len()])?;
        let floats = self.times(&float, &made, cx)?;
        let (integer, made) = self.lowered(&all)?;
        let integers = self.times(&integer, &made, cx)?;
        let flow = self.flow(&all);
        let rate = |pick: fn(&Made) -> bool, guessed: fn(&(f64, f64)) -> f64| {
            let met = integers.iter().filter(|(m, _)| pick(m));
            let (mut found, mut said) = (0.0, 0.0);
            for (m, time) in met {
                let (Made::Quantize(v) | Made::Dequantize(v)) = m else {
                    continue;
                };
                found += time;
                said += guess.bytes.get(v).map_or(0.0, guessed);
            }
            if said > 0.0 { found / said } else { 1.0 }
        };
        let to = rate(|m| matches!(m, Made::Quantize(_)), |c| c.0);
        let from = rate(|m| matches!(m, Made::Dequantize(_)), |c| c.1);
        let mut out = guess.clone();
        for (v, (q, d)) in &mut out.bytes {
            let met = |m: Made| integers.get(&m).copied();
            *q = met(Made::Quantize(*v)).unwrap_or(*q * to);
            *d = met(Made::Dequantize(*v)).unwrap_or(*d * from);
        }
        for (i, cost) in out.layers.iter_mut().enumerate() {
            let layer = Made::Layer(i);
            cost.float = floats.get(&layer).copied().unwrap_or(cost.float);
            let Some(&met) = integers.get(&layer) else {
                continue;
            };
            // What lies between the two forms is what dequantizing the result costs.
            let between = (cost.floats - cost.bytes).max(0.0) * from;
            (cost.bytes, cost.floats) = match flow.forms.get(i) {
                Some(Form::Floats) => ((met - between).max(met / 2.0), met),
                _ => (met, met + between),
            };
        }
        Ok(out)
    }

    /// The layers for which integers pay such that the whole keeps to the ratio.
    pub(super) fn choose(
        &self,
        guess: &Costs,
        ratio: f64,
        cx: &PassContext<'_>,
    ) -> Result<Vec<bool>, PassError> {
        let mut costs = self.costs(guess, cx)?;
        let none = vec![false; self.able.len()];
        let (float, _) = self.lowered(&none)?;
        for _ in 0..TRIES {
            let graph = &self.model.graph;
            let chosen = super::cost::choose(graph, self.found, self.able, &costs);
            if !chosen.contains(&true) {
                break;
            }
            let (model, _) = self.lowered(&chosen)?;
            let times = latency::fastest(&[&float, &model], &self.inputs, cx, WHAT)?;
            if let [a, b] = times.as_slice()
                && b.as_secs_f64() <= ratio * a.as_secs_f64()
            {
                return Ok(chosen);
            }
            for cost in &mut costs.layers {
                cost.bytes *= DEARER;
                cost.floats *= DEARER;
            }
        }
        Ok(none)
    }
}

/// Operators behind those of a layer that the engine may run as one with it.
fn tails(graph: &Graph, made: &BTreeMap<OpId, Made>) -> BTreeMap<OpId, Made> {
    const LONGEST: usize = 4;
    let mut out = BTreeMap::new();
    for (&op, &of) in made {
        if !matches!(of, Made::Layer(_)) {
            continue;
        }
        let mut at = graph.get_op(op).and_then(|o| o.output(0));
        for _ in 0..LONGEST {
            let Some((next, _)) = at.and_then(|v| graph.single_consumer(v)) else {
                break;
            };
            let class = schema::of(graph.op(next)).map(|k| k.class);
            if !matches!(class, Some(Class::Unary | Class::Binary)) || made.contains_key(&next) {
                break;
            }
            out.entry(next).or_insert(of);
            at = graph.op(next).output(0);
        }
    }
    out
}

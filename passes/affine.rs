//! Chains of elementwise operators with constants (and of `BatchNormalization`) beside a linear
//! operator, read as one map `scale * x + shift` by channel.

use paring_ir::{Graph, OpId, ValueId};

use crate::facts::Facts;
use crate::linear::{
    Affine, Linear, Place, Refusal, channel_values, has_channels, only_consumer, zip,
};

/// Longer chains are folded in several rounds.
const LONGEST: usize = 16;

/// One operator of a chain, as a map.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) op: OpId,
    pub(crate) map: Affine,
    pub(crate) sources: Vec<ValueId>,
    pub(crate) is_batch_norm: bool,
}

/// The maps of a chain as one.
pub(crate) fn composed<'a>(steps: impl Iterator<Item = &'a Step>) -> (Affine, Vec<ValueId>) {
    let (mut map, mut sources) = (Affine::default(), Vec::new());
    for step in steps {
        map = map.then(&step.map);
        sources.extend_from_slice(&step.sources);
    }
    (map, sources)
}

/// The data operand of an elementwise operator of which the other operand is constant.
pub(crate) fn data_operand(graph: &Graph, op: OpId) -> Option<ValueId> {
    let o = graph.get_op(op)?;
    if o.is("Neg") || o.is("BatchNormalization") {
        return o.input(0);
    }
    if !["Add", "Sub", "Mul", "Div"].iter().any(|t| o.is(t)) {
        return None;
    }
    let (a, b) = (o.input(0)?, o.input(1)?);
    match (graph.tensor(a), graph.tensor(b)) {
        (None, Some(_)) => Some(a),
        (Some(_), None) if !o.is("Div") => Some(b),
        _ => None,
    }
}

/// Reads an elementwise operator as a map of its data operand, whose channels stand at `place`.
pub(crate) fn elementwise(graph: &Graph, op: OpId, place: Place, channels: usize) -> Option<Step> {
    let x = data_operand(graph, op)?;
    let o = graph.op(op);
    let step = |scale, shift, sources| {
        Some(Step {
            op,
            map: Affine { scale, shift },
            sources,
            is_batch_norm: false,
        })
    };
    if o.is("Neg") {
        return step(vec![-1.0], vec![0.0], Vec::new());
    }
    if o.is("BatchNormalization") {
        return None;
    }
    let (a, b) = (o.input(0)?, o.input(1)?);
    let v = if a == x { b } else { a };
    let c = channel_values(graph.tensor(v)?, place, channels)?;
    let negated = || c.iter().map(|c| -c).collect::<Vec<f64>>();
    match &**o.op_type() {
        "Mul" => step(c, vec![0.0], vec![v]),
        "Div" => step(c.iter().map(|c| 1.0 / c).collect(), vec![0.0], vec![v]),
        "Add" => step(vec![1.0], c, vec![v]),
        "Sub" if a == x => step(vec![1.0], negated(), vec![v]),
        "Sub" => step(vec![-1.0], c, vec![v]),
        _ => None,
    }
}

/// Reads a `BatchNormalization` as a map; `None` for other operators.
pub(crate) fn batch_norm(graph: &Graph, op: OpId, opset: i64) -> Option<Result<Step, Refusal>> {
    let o = graph.get_op(op)?;
    o.is("BatchNormalization")
        .then(|| batch_norm_step(graph, op, opset))
}

fn batch_norm_step(graph: &Graph, op: OpId, opset: i64) -> Result<Step, Refusal> {
    let o = graph.op(op);
    let more = o.outputs().iter().skip(1).flatten();
    if o.int_or("training_mode", 0) != 0 || more.into_iter().any(|&v| !graph.value(v).is_unused()) {
        return Err(Refusal::new(
            "training",
            "it computes the statistics of the batch",
        ));
    }
    if opset < 9 && o.int_or("spatial", 1) == 0 {
        return Err(Refusal::new(
            "not-spatial",
            "it normalizes each place by itself",
        ));
    }
    let dynamic = || Refusal::new("dynamic-parameter", "a parameter is not constant");
    let mut parameters = Vec::with_capacity(4);
    let mut sources = Vec::with_capacity(4);
    for slot in 1..5 {
        let v = o.input(slot).ok_or_else(dynamic)?;
        let t = graph.tensor(v).ok_or_else(dynamic)?;
        let values = t
            .to_f64s()
            .filter(|_| t.rank() == 1 && t.dtype().is_float());
        parameters.push(values.ok_or_else(dynamic)?);
        sources.push(v);
    }
    let [gamma, beta, mean, var] = parameters.as_slice() else {
        return Err(dynamic());
    };
    if [beta, mean, var].iter().any(|p| p.len() != gamma.len()) || gamma.is_empty() {
        return Err(Refusal::new(
            "odd-parameter",
            "its parameters differ in length",
        ));
    }
    let epsilon = f64::from(o.float("epsilon").unwrap_or(1e-5));
    // Not "<= 0", so that NaN is refused too.
    if !var
        .iter()
        .all(|v| *v >= 0.0 && v + epsilon > 0.0 && v.is_finite())
    {
        return Err(Refusal::new(
            "odd-variance",
            "a variance is negative or undefined",
        ));
    }
    let scale = zip(gamma, var, |g, v| g / (v + epsilon).sqrt());
    let shift = zip(beta, &zip(mean, &scale, |m, s| m * s), |b, ms| b - ms);
    Ok(Step {
        op,
        map: Affine { scale, shift },
        sources,
        is_batch_norm: true,
    })
}

/// What stands beside a linear operator.
#[derive(Default, Debug)]
pub(crate) struct Chain {
    /// The maps, the one nearest to the linear operator first.
    pub(crate) steps: Vec<Step>,
    /// A `BatchNormalization` that ends the chain, and why it is no part of it.
    pub(crate) refused: Option<(OpId, Refusal)>,
}

/// One more step of a chain, or why there is none.
fn read(
    graph: &Graph,
    op: OpId,
    facts: &Facts,
    (place, channels): (Place, usize),
    chain: &mut Chain,
) -> Option<Step> {
    match batch_norm(graph, op, facts.opset) {
        None => elementwise(graph, op, place, channels),
        Some(Err(refusal)) => {
            chain.refused = Some((op, refusal));
            None
        }
        Some(Ok(step)) => {
            // The channels of a BatchNormalization stand on axis 1.
            let fits = matches!(place, Place::Axis1 { .. } | Place::Last { rank: Some(2) });
            if !fits || step.map.scale.len() != channels {
                let refusal = Refusal::new(
                    "other-axis",
                    "its channels are not those of the linear operator",
                );
                chain.refused = Some((op, refusal));
                return None;
            }
            Some(step)
        }
    }
}

/// The maps that follow a linear operator, each the only consumer of the value before it.
pub(crate) fn chain_after(graph: &Graph, linear: &Linear, facts: &Facts) -> Chain {
    let mut chain = Chain::default();
    let Some(mut v) = graph.op(linear.op).output(0) else {
        return chain;
    };
    let place = linear.channel_place(facts.rank(graph, v));
    while chain.steps.len() < LONGEST {
        let Some((op, _)) = only_consumer(graph, v) else {
            break;
        };
        // The value must be the data operand, not a parameter.
        if data_operand(graph, op) != Some(v) {
            break;
        }
        let at = (place, linear.outputs());
        let Some(step) = read(graph, op, facts, at, &mut chain) else {
            break;
        };
        chain.steps.push(step);
        match graph.op(op).output(0) {
            Some(out) => v = out,
            None => break,
        }
    }
    chain
}

/// The maps that precede a linear operator, each serving nothing else.
pub(crate) fn chain_before(graph: &Graph, linear: &Linear, facts: &Facts) -> Chain {
    let mut chain = Chain::default();
    let o = graph.op(linear.op);
    if o.int_or("transA", 0) != 0 {
        return chain;
    }
    let Some(mut v) = o.input(0) else {
        return chain;
    };
    let place = linear.channel_place(facts.rank(graph, v));
    while chain.steps.len() < LONGEST {
        let Some(op) = graph
            .producer(v)
            .filter(|_| only_consumer(graph, v).is_some())
        else {
            break;
        };
        let Some(x) = data_operand(graph, op) else {
            break;
        };
        let at = (place, linear.inputs());
        let Some(step) = read(graph, op, facts, at, &mut chain) else {
            break;
        };
        let by_channel = step.map.scale.len() > 1 || step.map.shift.len() > 1;
        let ranks = step
            .sources
            .iter()
            .filter_map(|&s| Some(graph.tensor(s)?.rank()));
        // BatchNormalization never broadcasts its input; the others may.
        let keeps = step.is_batch_norm
            || (facts.keeps_rank(graph, x, ranks.max().unwrap_or(0))
                && (!by_channel || has_channels(graph, facts, x, place, linear.inputs())));
        if !keeps || ends_fused_pattern(graph, op) {
            break;
        }
        chain.steps.push(step);
        v = x;
    }
    chain
}

/// Whether an operator is the last of a decomposed `Gelu` or `LayerNormalization`. Engines
/// recognize these whole, and they are worth more than the one operator that folding saves.
pub(crate) fn ends_fused_pattern(graph: &Graph, op: OpId) -> bool {
    let producer = |op: OpId, types: &[&str]| {
        let x = data_operand(graph, op)?;
        let p = graph.producer(x)?;
        types.iter().any(|t| graph.op(p).is(t)).then_some(p)
    };
    let makes = |v: Option<ValueId>, t: &str| {
        let op = graph.producer(v?)?;
        graph.op(op).is(t).then_some(op)
    };
    let takes = |op: OpId, t: &str| {
        let o = graph.op(op);
        makes(o.input(0), t)
            .into_iter()
            .chain(makes(o.input(1), t))
            .collect::<Vec<OpId>>()
    };
    let is_gate = |sum: &OpId| !takes(*sum, "Erf").is_empty() || !takes(*sum, "Tanh").is_empty();
    let is_gelu = |op: OpId| {
        let product = producer(op, &["Mul"]);
        product.is_some_and(|p| takes(p, "Add").iter().any(is_gate))
    };
    let is_norm = |op: OpId| {
        let quotient = producer(op, &["Div"])
            .or_else(|| producer(op, &["Mul"]).and_then(|scaled| producer(scaled, &["Div"])));
        quotient.is_some_and(|q| makes(graph.op(q).input(1), "Sqrt").is_some())
    };
    is_gelu(op) || is_norm(op)
}

/// Lets a linear operator take what the first map before it takes, and removes the maps; `steps`
/// are in the order of [`chain_before`].
pub(crate) fn bypass(
    graph: &mut Graph,
    linear: OpId,
    steps: &[Step],
) -> Result<(), paring_ir::GraphError> {
    let source = steps.last().and_then(|s| data_operand(graph, s.op));
    graph.set_input(linear, 0, source)?;
    for step in steps {
        graph.remove_op(step.op)?;
    }
    Ok(())
}

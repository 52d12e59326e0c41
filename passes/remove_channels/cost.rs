//! What a model costs without some of its channels, from sizes alone.

use std::collections::HashMap;

use paring_ir::analysis::channels::{AxisChannels, Channels, Removed};
use paring_ir::analysis::{Costs, Shapes};
use paring_ir::schema::{self, KnownDims};
use paring_ir::{Graph, Model, OpId, ValueId};

/// A size: a number, or the count of what is left along an axis.
#[derive(Clone, Copy)]
enum Size {
    Number(u64),
    Along(usize),
}

type Sizes = Option<Vec<Size>>;

struct Work<'m> {
    graph: &'m Graph,
    op: OpId,
    inputs: Vec<Sizes>,
    outputs: Vec<Sizes>,
}

/// A constant that shrinks.
struct Constant {
    sizes: Vec<Size>,
    /// Bytes of an element.
    width: f64,
}

/// Counts the multiply-accumulates, parameters and bytes of a model without some channels.
pub(super) struct Cost<'m> {
    along: Vec<AxisChannels>,
    work: Vec<Work<'m>>,
    constants: Vec<Constant>,
    whole: Total,
    /// Of the constants, before anything goes.
    constants_whole: Total,
}

/// A cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Total {
    pub(super) macs: f64,
    pub(super) parameters: f64,
    pub(super) bytes: f64,
}

struct Builder<'a> {
    shapes: &'a Shapes,
    channels: &'a Channels,
    roots: HashMap<ValueId, ValueId>,
    /// Where the channels of an axis stand in the list of those that are counted.
    known: HashMap<(ValueId, usize), usize>,
    along: Vec<AxisChannels>,
}

impl Builder<'_> {
    fn sizes(&mut self, v: ValueId) -> Sizes {
        let v = self.roots.get(&v).copied().unwrap_or(v);
        let dims = self.shapes.dims(v)?.to_vec();
        let mut out = Vec::with_capacity(dims.len());
        for (axis, d) in dims.iter().enumerate() {
            out.push(match self.channels.axis(v, axis) {
                Some(along) => {
                    let next = self.along.len();
                    let at = *self.known.entry((v, axis)).or_insert(next);
                    if at == next {
                        self.along.push(along.clone());
                    }
                    Size::Along(at)
                }
                // An open size counts as 1, here as in the cost of a model.
                None => Size::Number(u64::try_from(d.value_at(&|_| 1)?.max(1)).ok()?),
            });
        }
        Some(out)
    }
}

impl<'m> Cost<'m> {
    pub(super) fn new(
        model: &'m Model,
        channels: &Channels,
        shapes: &Shapes,
        costs: &Costs,
    ) -> Cost<'m> {
        let mut builder = Builder {
            shapes,
            channels,
            roots: HashMap::new(),
            known: HashMap::new(),
            along: Vec::new(),
        };
        let (mut work, mut constants) = (Vec::new(), Vec::new());
        model.for_each_graph(&mut |graph| {
            for v in graph.outer_values() {
                if let Some(outer) = graph.value(v).captured_from() {
                    let root = builder.roots.get(&outer).copied().unwrap_or(outer);
                    builder.roots.insert(v, root);
                }
            }
            for op in graph.ops() {
                let o = graph.op(op);
                if schema::of(o).is_some_and(|k| k.counts_macs()) {
                    work.push(Work {
                        graph,
                        op,
                        inputs: o.inputs().map(|v| builder.sizes(v?)).collect(),
                        outputs: o.outputs().iter().map(|v| builder.sizes((*v)?)).collect(),
                    });
                }
            }
            for v in graph
                .initializers()
                .filter(|&v| !channels.axes(v).is_empty())
            {
                let bits = graph.tensor(v).and_then(|t| t.dtype().bits());
                if let (Some(sizes), Some(bits)) = (builder.sizes(v), bits) {
                    let width = bits as f64 / 8.0;
                    constants.push(Constant { sizes, width });
                }
            }
        });
        let total = costs.total();
        let mut cost = Cost {
            along: builder.along,
            work,
            constants,
            whole: Total::default(),
            constants_whole: Total::default(),
        };
        let full: Vec<u64> = cost.along.iter().map(|a| a.len() as u64).collect();
        cost.constants_whole = cost.of_constants(&full);
        cost.whole = Total {
            macs: cost.macs(&full),
            parameters: total.parameters as f64,
            bytes: total.weight_bytes as f64,
        };
        cost
    }

    /// The cost of the model as it is.
    pub(super) fn whole(&self) -> Total {
        self.whole
    }

    /// The cost without some channels.
    pub(super) fn without(&self, removed: &Removed) -> Total {
        let left: Vec<u64> = self.along.iter().map(|a| a.count(removed) as u64).collect();
        let (now, before) = (self.of_constants(&left), self.constants_whole);
        Total {
            macs: self.macs(&left),
            parameters: self.whole.parameters - before.parameters + now.parameters,
            bytes: self.whole.bytes - before.bytes + now.bytes,
        }
    }

    fn of_constants(&self, left: &[u64]) -> Total {
        let mut total = Total::default();
        for c in &self.constants {
            let elements: f64 = c.sizes.iter().map(|s| number(*s, left) as f64).product();
            total.parameters += elements;
            total.bytes += elements * c.width;
        }
        total
    }

    fn macs(&self, left: &[u64]) -> f64 {
        let of = |work: &Work<'_>| {
            let dims = |sizes: &Sizes| -> Option<Vec<Option<u64>>> {
                let sizes = sizes.as_ref()?;
                Some(sizes.iter().map(|s| Some(number(*s, left))).collect())
            };
            let inputs: Vec<_> = work.inputs.iter().map(dims).collect();
            let outputs: Vec<_> = work.outputs.iter().map(dims).collect();
            let inputs: Vec<Option<&KnownDims>> = inputs.iter().map(Option::as_deref).collect();
            let outputs: Vec<Option<&KnownDims>> = outputs.iter().map(Option::as_deref).collect();
            schema::macs(work.graph.op(work.op), &inputs, &outputs).unwrap_or(0) as f64
        };
        self.work.iter().map(of).sum()
    }
}

fn number(size: Size, left: &[u64]) -> u64 {
    match size {
        Size::Number(n) => n,
        Size::Along(at) => left.get(at).copied().unwrap_or(0),
    }
}

//! What is inside a model, in numbers. The JSON form is stable.

mod weights;

use std::collections::BTreeMap;

use paring_ir::analysis::{AnalysisCache, CostOptions, Costs, ModelCost, Shapes};
use paring_ir::{Model, ValueId};
use serde::Serialize;

use crate::data::{RunShapes, ShapeOptions as SizeOptions};
use crate::diff::{Totals, type_text, types_of};
use crate::validate::Profile;
pub use weights::{Histogram, Pattern, Spectrum, WeightStats, weights};

/// The numbers of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// `nodes`, `operators`, `parameters`, `weight_bytes`, `macs`, `opset` and what else a model costs.
    #[serde(flatten)]
    pub cost: ModelCost,
    /// Bytes of the model's file and of its side files; absent when it was never in one.
    pub file_bytes: Option<u64>,
    /// Bytes of the model, its weights inside, compressed by zstd at its default level: what a
    /// download takes. Only told of rewrites that change weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zstd_bytes: Option<u64>,
    /// The share of parameters that are zero, where zeros were counted.
    pub sparsity: Option<f64>,
    /// The shapes that multiply-accumulates were counted with, of the inputs whose shapes are open.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub macs_shapes: BTreeMap<String, Vec<i64>>,
}

/// One input or output.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// The name.
    pub name: String,
    /// The type, such as `float[batch,3,224,224]`.
    #[serde(rename = "type")]
    pub ty: String,
}

/// One tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// The type, such as `float[64,3,7,7]`.
    #[serde(rename = "type")]
    pub ty: String,
    /// The bytes of its elements.
    pub bytes: u64,
    /// The share of elements that are zero.
    pub sparsity: f64,
    /// The operators that take it.
    pub used_by: Vec<String>,
}

/// What all operators of one type cost.
#[derive(Clone, Debug, Serialize)]
pub struct TypeRow {
    /// The operator type; of other domains than the standard one as `domain::Type`.
    pub op_type: String,
    /// The numbers.
    #[serde(flatten)]
    pub cost: Totals,
}

/// One operator with multiply-accumulates.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// The name, or that of the first output.
    pub name: String,
    /// The operator type.
    pub op_type: String,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Those whose weight is not zero.
    pub effective_macs: u64,
    /// The shape of the first output, such as `float[1,64,112,112]`.
    pub output: String,
}

/// All that `paring inspect` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    /// The numbers.
    #[serde(flatten)]
    pub numbers: Inspection,
    /// The version of the ONNX IR.
    pub ir_version: i64,
    /// The opsets by domain.
    pub opsets: Vec<(String, i64)>,
    /// The program that made the file, with its version.
    pub producer: String,
    /// The inputs.
    pub inputs: Vec<Port>,
    /// The outputs.
    pub outputs: Vec<Port>,
    /// The names of functions that the model brings along.
    pub functions: Vec<String>,
    /// What each type of operators costs, most frequent first.
    pub types: Vec<TypeRow>,
    /// The tensors of the main graph, largest first.
    pub tensors: Vec<TensorInfo>,
    /// The operators of the main graph that have MACs, in order.
    pub layers: Vec<Layer>,
    /// The values of the main graph, and of how many of them the shape is known at all and known
    /// to the last dimension.
    pub shapes: ShapeCoverage,
    /// A closer look at every weight; absent when nobody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<WeightStats>>,
    /// Where the time of a run goes; absent when nobody asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// What the user should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Of how many values the shape is known.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ShapeCoverage {
    /// All values that an operator makes.
    pub values: usize,
    /// Those of known rank.
    pub ranked: usize,
    /// Those of which every dimension is a number.
    pub fixed: usize,
}

/// How to count the costs of a model: where its inputs have open sizes, with those that it
/// would be run with.
pub fn cost_options(model: &Model, sizes: &SizeOptions) -> CostOptions {
    let mut options = CostOptions::default();
    let Ok(run) = RunShapes::resolve(model, sizes) else {
        return options;
    };
    let graph = &model.graph;
    for (&v, dims) in graph.inputs().iter().zip(&run.dims) {
        let value = graph.value(v);
        let declared = value.declared_type().and_then(|t| t.shape());
        let open = declared.is_none_or(|s| s.iter().any(|d| d.known().is_none()));
        if open && value.initializer().is_none() {
            let dims = dims
                .iter()
                .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
                .collect();
            options
                .shapes
                .input_shapes
                .insert(value.name().to_string(), dims);
        }
    }
    options
}

/// The numbers of a model. Counting zeros reads every parameter.
pub fn inspect(model: &Model, file_bytes: Option<u64>, costs: &CostOptions) -> Inspection {
    inspect_with(model, file_bytes, costs, &mut AnalysisCache::new())
}

fn inspect_with(
    model: &Model,
    file_bytes: Option<u64>,
    options: &CostOptions,
    cache: &mut AnalysisCache,
) -> Inspection {
    let costs = cache.get_with::<Costs>(model, options);
    let cost = costs.total().clone();
    let sparsity = cost.zeros.map(|z| {
        if cost.parameters == 0 {
            0.0
        } else {
            z as f64 / cost.parameters as f64
        }
    });
    Inspection {
        cost,
        file_bytes,
        zstd_bytes: None,
        sparsity,
        macs_shapes: options.shapes.input_shapes.clone(),
    }
}

/// All about a model.
pub fn details(model: &Model, file_bytes: Option<u64>) -> Details {
    let mut cache = AnalysisCache::new();
    let options = CostOptions {
        zeros: true,
        ..cost_options(model, &SizeOptions::default())
    };
    let numbers = inspect_with(model, file_bytes, &options, &mut cache);
    let shapes = cache.get::<Shapes>(model);
    let costs = cache.get_with::<Costs>(model, &options);
    let graph = &model.graph;
    let port = |&v: &ValueId| Port {
        name: graph.value(v).name().to_string(),
        ty: type_text(graph.value(v).declared_type()),
    };
    let extra = &model.extra;
    let producer = [&extra.producer_name, &extra.producer_version];
    let producer: Vec<&str> = producer
        .into_iter()
        .flatten()
        .map(|s| &**s)
        .filter(|s| !s.is_empty())
        .collect();
    let domain = |d: &str| {
        if d.is_empty() {
            "ai.onnx".to_owned()
        } else {
            d.to_owned()
        }
    };
    Details {
        numbers,
        ir_version: model.ir_version,
        opsets: model
            .opsets
            .iter()
            .map(|o| (domain(&o.domain), o.version))
            .collect(),
        producer: producer.join(" "),
        inputs: graph.inputs().iter().map(port).collect(),
        outputs: graph.outputs().iter().map(port).collect(),
        functions: model
            .functions
            .iter()
            .map(|f| format!("{}::{}", f.domain, f.name))
            .collect(),
        types: types(model, &mut cache),
        tensors: tensors(model),
        layers: layers(model, &shapes, &costs),
        shapes: coverage(model, &shapes),
        weights: None,
        profile: None,
        notes: Vec::new(),
    }
}

fn types(model: &Model, cache: &mut AnalysisCache) -> Vec<TypeRow> {
    let row = |(op_type, cost)| TypeRow { op_type, cost };
    let mut out: Vec<TypeRow> = types_of(model, cache).into_iter().map(row).collect();
    out.sort_by(|a, b| {
        let count = b.cost.nodes.cmp(&a.cost.nodes);
        count.then_with(|| a.op_type.cmp(&b.op_type))
    });
    out
}

fn tensors(model: &Model) -> Vec<TensorInfo> {
    let graph = &model.graph;
    let mut out: Vec<TensorInfo> = graph
        .initializers()
        .filter_map(|v| {
            let value = graph.value(v);
            let constant = value.initializer()?;
            let zeros = match constant.dense() {
                Some(t) if !t.is_empty() => t.count_zeros() as f64 / t.len() as f64,
                _ => 0.0,
            };
            Some(TensorInfo {
                name: value.name().to_string(),
                ty: type_text(Some(&constant.value_type())),
                bytes: constant.byte_len() as u64,
                sparsity: zeros,
                used_by: graph
                    .sorted_uses(v)
                    .iter()
                    .map(|u| graph.op_label(u.op).to_string())
                    .collect(),
            })
        })
        .collect();
    out.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    out
}

fn layers(model: &Model, shapes: &Shapes, costs: &Costs) -> Vec<Layer> {
    let graph = &model.graph;
    let order = graph
        .topological_order()
        .unwrap_or_else(|_| graph.ops().collect());
    let layer = |op| {
        let cost = costs.op(op);
        let macs = cost.macs.filter(|&m| m > 0)?;
        let output = graph.op(op).output(0).and_then(|v| shapes.to_value_type(v));
        Some(Layer {
            name: graph.op_label(op).to_string(),
            op_type: graph.op(op).op_type().to_string(),
            macs,
            effective_macs: cost.effective_macs.unwrap_or(macs),
            output: type_text(output.as_ref()),
        })
    };
    order.into_iter().filter_map(layer).collect()
}

fn coverage(model: &Model, shapes: &Shapes) -> ShapeCoverage {
    let graph = &model.graph;
    let mut out = ShapeCoverage::default();
    for v in graph
        .values()
        .filter(|&v| graph.value(v).producer().is_some())
    {
        out.values += 1;
        out.ranked += usize::from(shapes.rank(v).is_some());
        out.fixed += usize::from(shapes.known_dims(v).is_some());
    }
    out
}

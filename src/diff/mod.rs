//! What changed between two models.
//!
//! Two graphs are aligned operator by operator : by the structure around each
//! operator, weights included, which survives renaming and reordering; by provenance where paring
//! wrote the second file; by names that the surroundings agree with; and by structure again
//! without the weights, without attributes, and through quantizing operators. What is left on
//! either side was removed or added; runs of it are put together and counted by pattern.
//!
//! A change is told once, where it was made. An operator whose input is the same value as
//! before, but for what was inserted or removed in between, is no change, nor is another place in
//! the file or another name, unless names are asked for ([`Diff::is_empty`] with `strict`).
//! A weight is compared with what takes its place, dequantized or with the kept channels only
//! where that is what happened to it.
//!
//! [`diff`] gives a [`Diff`], whose JSON form `docs/json.md` describes. [`Diff::graphs`] holds
//! both graphs with their alignment, all that a page needs to draw them.

mod align;
mod assemble;
mod changes;
mod elements;
mod interface;
mod net;
mod patterns;
mod sequence;
mod tensors;
#[cfg(test)]
mod tests;
mod totals;
mod weights;

use paring_ir::analysis::{AnalysisCache, Constants, Shapes};
use paring_ir::{GraphError, Model};
use serde::Serialize;

use align::Env;
use changes::Comparison;

pub use elements::compare_tensors;
pub use interface::type_text;
pub(crate) use totals::types_of;

/// One thing that differs, as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// What differs: `attribute alpha`, `input 1`, `opset ai.onnx`, ...
    pub what: String,
    /// As it is in the first model; absent where it is not there.
    pub before: Option<String>,
    /// As it is in the second model; absent where it is not there.
    pub after: Option<String>,
}

/// Where an operator stands in [`Diff::graphs`]. Not part of the JSON form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of [`Diff::graphs`].
    pub graph: usize,
    /// Which of [`GraphPair::before`], where the operator is in the first model.
    pub before: Option<usize>,
    /// Which of [`GraphPair::after`], where the operator is in the second model.
    pub after: Option<usize>,
}

/// An operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpRef {
    /// The name in the second model, or in the first for an operator that is only there; for an
    /// operator without a name that of its first output.
    pub name: String,
    /// The operator type; of other domains than the standard one as `domain::Type`.
    pub op_type: String,
    /// The graph inside the model, such as `If "x" / then_branch`; absent for the main graph.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub graph: String,
    /// The passes that made it, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// What it was made from, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// How many operators the graphs inside it hold, of one that is only in one of the models:
    /// those went or came with it and are not compared.
    #[serde(skip_serializing_if = "is_zero")]
    pub inside: usize,
    /// Where it stands in [`Diff::graphs`].
    #[serde(skip)]
    pub place: Place,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// An operator that is in both models and differs by itself: attributes, what it takes, or how
/// many outputs it has. That only its weights differ is no such change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpChange {
    /// The operator in the second model.
    #[serde(flatten)]
    pub op: OpRef,
    /// The name in the first model, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_before: Option<String>,
    /// What differs.
    pub changes: Vec<Difference>,
    /// Which of [`Diff::patterns`] this change is a part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<usize>,
}

/// Operators, those inside subgraphs included, those of type `Constant` not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpDiff {
    /// In the second model only.
    pub added: Vec<OpRef>,
    /// In the first model only.
    pub removed: Vec<OpRef>,
    /// In both, and different by themselves.
    pub changed: Vec<OpChange>,
    /// In both, and not different by themselves.
    pub same: usize,
    /// Of those: how many take constants that differ.
    pub reweighted: usize,
    /// In both, where the name of the operator or of an output is another.
    pub renamed: usize,
    /// In both, at another place in the order of the file, relative to the others.
    pub moved: usize,
}

/// How operators that are only in one model relate to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternKind {
    /// Other operators stand where these stood.
    #[default]
    Replaced,
    /// Removed; what took the result now takes what went in.
    Bypassed,
    /// Removed; the result is a constant now.
    Folded,
    /// Removed; what took the result now takes it from another operator that gives the same.
    Merged,
    /// Removed, and nothing takes the result any more.
    Dropped,
    /// Added between operators that are in both models.
    Inserted,
    /// Added, and no operator that is in both models takes the result.
    Appended,
    /// A `Constant` operator became an initializer, or the other way round.
    Stored,
}

/// One place where a pattern was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PatternPlace {
    /// The operators of the first model.
    pub before: Vec<OpRef>,
    /// The operators of the second model.
    pub after: Vec<OpRef>,
}

/// The same replacement of operators, wherever it was done: "Conv + BatchNormalization became
/// Conv, 27 times".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pattern {
    /// What became of it.
    pub kind: PatternKind,
    /// The operator types of the first model, in the order of the data flow.
    pub before: Vec<String>,
    /// The operator types of the second model, in the order of the data flow.
    pub after: Vec<String>,
    /// How often.
    pub count: usize,
    /// The passes that did it, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// Where.
    pub places: Vec<PatternPlace>,
}

/// The kept indices of one axis.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeptAxis {
    /// The axis of the first tensor.
    pub axis: usize,
    /// How many indices it has there.
    pub of: usize,
    /// How many are kept.
    pub count: usize,
    /// The kept indices, as ranges: `0-15,32`.
    pub indices: String,
    /// Whether the file records them; otherwise they were found by comparing elements.
    pub recorded: bool,
}

/// How a tensor is quantized.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Quantization {
    /// The smallest and the largest scale.
    pub scale: (f64, f64),
    /// How many scales there are: 1 for the whole tensor, one per channel or per block otherwise.
    pub scales: usize,
    /// The smallest and the largest zero point.
    pub zero_point: (i64, i64),
    /// The axis of the scales, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub axis: Option<i64>,
    /// Elements per block along the axis, where the scales are by block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<i64>,
}

/// What can be said about the elements of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorStats {
    /// The type as stored, such as `int8[64,3,7,7]`.
    #[serde(rename = "type")]
    pub ty: String,
    /// The bytes of its elements, and of scales, zero points and codebooks.
    pub bytes: u64,
    /// Bits of one stored element; absent for strings.
    pub bits: Option<u64>,
    /// The share of zeros among the elements that the model computes with.
    pub sparsity: f64,
    /// How many distinct elements there are, at most [`MOST_DISTINCT`]; absent beyond.
    pub distinct: Option<usize>,
    /// The numerical rank of the matrix of rows (axis 0) by everything else; absent for fewer
    /// than two axes, and for what is too large to try.
    pub rank: Option<usize>,
    /// The smallest and the largest finite element; absent without any.
    pub range: Option<(f64, f64)>,
    /// How it is quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// All elements, where there are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elements: Option<String>,
    /// The types of the constant operators between what is stored and what is computed with, such
    /// as `DequantizeLinear` or `Transpose`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub through: Vec<String>,
}

/// Distinct elements are counted up to so many.
pub const MOST_DISTINCT: usize = 4096;

/// The elements of both tensors, counted in bins of equal width.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// The lower end of the first bin.
    pub low: f64,
    /// The upper end of the last bin.
    pub high: f64,
    /// Elements of the first tensor by bin.
    pub before: Vec<u64>,
    /// Elements of the second tensor by bin.
    pub after: Vec<u64>,
}

/// A constant that is in both models and differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorChange {
    /// The name in the second model.
    pub name: String,
    /// The name in the first model, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_before: Option<String>,
    /// The type in the first model.
    pub before: String,
    /// The type in the second model.
    pub after: String,
    /// The share of zeros in the first model.
    pub sparsity_before: f64,
    /// The share of zeros in the second model.
    pub sparsity_after: f64,
    /// The largest absolute difference of elements: of those kept, and after dequantizing. Absent
    /// where the shapes can't be matched.
    pub max_abs: Option<f64>,
    /// The norm of the difference over the norm of (what was kept of) the first tensor.
    pub relative_norm: Option<f64>,
    /// The norm of the difference that is left when each index of one axis has a factor of its
    /// own, over the norm of the second tensor; only where that explains most of the difference,
    /// as it does where a normalization was folded in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescaled_norm: Option<f64>,
    /// The kept indices, where only some were kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptAxis>,
    /// More about the first tensor.
    pub stats_before: TensorStats,
    /// More about the second tensor.
    pub stats_after: TensorStats,
    /// The distribution before and after, of tensors of numbers with at least 16 elements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
    /// What it is for the operators that take it: `weight`, `bias`, `scale`, `shape`, ...
    pub role: String,
    /// The operators of the second model that take it, by name.
    pub used_by: Vec<String>,
    /// The passes that changed it, where the file records it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// Other constants of the first model that stand for this one together (factors, codebooks).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts_before: Vec<String>,
    /// Other constants of the second model that stand for this one together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts_after: Vec<String>,
    /// The operators that take it, in [`Diff::graphs`].
    #[serde(skip)]
    pub places: Vec<Place>,
}

/// Constants: initializers, and the elements of `Constant` operators.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorDiff {
    /// In the second model only: name and type. Those that no operator takes come first.
    pub added: Vec<(String, String)>,
    /// How many of them operators take: new ones, or such whose inputs changed.
    pub added_in_use: usize,
    /// In the first model only: name and type. Those that no operator takes come first.
    pub removed: Vec<(String, String)>,
    /// How many of them operators take: removed ones, or such whose inputs changed.
    pub removed_in_use: usize,
    /// In both.
    pub changed: Vec<TensorChange>,
    /// In both without a change.
    pub same: usize,
    /// Of those: how many have another name.
    pub renamed: usize,
}

/// A value that is in both models with another type. That follows from other changes, so it is
/// no change of the operator that makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeChange {
    /// The name in the second model.
    pub name: String,
    /// The type in the first model.
    pub before: String,
    /// The type in the second model.
    pub after: String,
    /// The operator that makes it.
    #[serde(skip)]
    pub place: Place,
}

/// What a model costs, all in all or by operator type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Operators, `Constant` not among them.
    pub nodes: u64,
    /// Elements of weights.
    pub parameters: u64,
    /// Those that are zero.
    pub zeros: u64,
    /// Bytes of weights.
    pub bytes: u64,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Those whose weight is not zero.
    pub effective_macs: u64,
}

/// The totals of one operator type. Weights count where they are computed with: those of a
/// `Conv` behind a `DequantizeLinear` are those of the `Conv`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TypeTotals {
    /// The operator type; of other domains as `domain::Type`.
    pub op_type: String,
    /// In the first model.
    pub before: Totals,
    /// In the second model.
    pub after: Totals,
}

/// How an operator of [`Diff::graphs`] fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// In both models, without a change.
    #[default]
    Same,
    /// In both models, with constants that differ.
    Reweighted,
    /// In both models, and different by itself.
    Changed,
    /// In the second model only.
    Added,
    /// In the first model only.
    Removed,
}

/// Where an operator takes an input from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Source {
    /// An output of an operator of the same list of nodes.
    Node {
        /// Its position.
        node: usize,
        /// The output slot.
        output: usize,
    },
    /// An input of the graph, by its position.
    Input {
        /// The position.
        input: usize,
    },
    /// A constant.
    Constant {
        /// The name.
        name: String,
        /// The type.
        #[serde(rename = "type")]
        ty: String,
    },
    /// A value of an enclosing graph.
    Outer {
        /// The name.
        name: String,
    },
    /// Nothing: an optional input that is left out.
    Absent,
}

/// An operator of one of the graphs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The name, or that of the first output.
    pub name: String,
    /// The operator type; of other domains as `domain::Type`.
    pub op_type: String,
    /// The type of the first output, such as `float[1,64,112,112]`.
    pub output: String,
    /// What it takes, slot by slot.
    pub inputs: Vec<Source>,
    /// The operator of the other model that it is aligned with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partner: Option<usize>,
    /// How it fares.
    pub state: State,
    /// Which of [`OpDiff::changed`] tells its change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<usize>,
    /// Which of [`TensorDiff::changed`] are constants of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<usize>,
    /// Which of [`Diff::patterns`] it is a part of, and at which of its places.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<(usize, usize)>,
}

/// A graph of the first model and the one of the second that it is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GraphPair {
    /// Where it is: empty for the main graph, `If "x" / then_branch`, `function domain::name`.
    pub path: String,
    /// The operators of the first, in topological order.
    pub before: Vec<Node>,
    /// The operators of the second, in topological order.
    pub after: Vec<Node>,
    /// The inputs of the first: name and type.
    pub inputs_before: Vec<(String, String)>,
    /// The inputs of the second.
    pub inputs_after: Vec<(String, String)>,
    /// The outputs of the first: name, and what makes it.
    pub outputs_before: Vec<(String, Source)>,
    /// The outputs of the second.
    pub outputs_after: Vec<(String, Source)>,
}

/// What changed between two models.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diff {
    /// What the first model costs.
    pub before: Totals,
    /// What the second model costs.
    pub after: Totals,
    /// A size that a model leaves open was taken as 1 to count MACs, or MACs of some operators
    /// are not known.
    pub macs_assumed: bool,
    /// Inputs, outputs, opsets, functions, metadata.
    pub interface: Vec<Difference>,
    /// Names of inputs, outputs, graphs and symbolic sizes, and where they stand: what is only a
    /// difference when names count.
    pub spelling: Vec<Difference>,
    /// Operators.
    pub operators: OpDiff,
    /// What was replaced by what: the operators of `added` and `removed`, and those of `changed`
    /// that took part, counted by pattern, most frequent first.
    pub patterns: Vec<Pattern>,
    /// Constants.
    pub initializers: TensorDiff,
    /// Values with another type.
    pub types: Vec<TypeChange>,
    /// Totals by operator type, by name.
    pub by_type: Vec<TypeTotals>,
    /// The passes that the second file records.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<String>,
    /// Both graphs with their alignment, the main graph first. Left out of the JSON form unless
    /// asked for: it grows with the model, not with the changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub graphs: Vec<GraphPair>,
}

impl Diff {
    /// Whether nothing changed; names and the order of the file count only when `strict`.
    pub fn is_empty(&self, strict: bool) -> bool {
        let (o, t) = (&self.operators, &self.initializers);
        self.interface.is_empty()
            && self.patterns.is_empty()
            && self.types.is_empty()
            && o.added.is_empty()
            && o.removed.is_empty()
            && o.changed.is_empty()
            && t.added.is_empty()
            && t.removed.is_empty()
            && t.changed.is_empty()
            && (!strict || (self.spelling.is_empty() && o.renamed + o.moved + t.renamed == 0))
    }
}

/// Compares two models. Shapes are inferred and zeros are counted, so every weight is read.
pub fn diff(a: &Model, b: &Model) -> Result<Diff, GraphError> {
    let constants = (Constants::of(a), Constants::of(b));
    let mut comparison = Comparison::new((a, b), (&constants.0, &constants.1));
    let none = Env::new();
    comparison.graphs(
        String::new(),
        (&a.graph, &b.graph),
        (&a.opsets, &b.opsets),
        (&none, &none),
    )?;
    for f in &a.functions {
        let same = |g: &&paring_ir::Function| interface::same_function(f, g);
        if let Some(g) = b.functions.iter().find(same) {
            let path = format!("function {}::{}", f.domain, f.name);
            let (bodies, opsets) = ((&f.body, &g.body), (&*f.opsets, &*g.opsets));
            comparison.graphs(path, bodies, opsets, (&none, &none))?;
        }
    }
    let mut caches = (AnalysisCache::new(), AnalysisCache::new());
    let shapes = (caches.0.get::<Shapes>(a), caches.1.get::<Shapes>(b));
    let costs = (
        totals::side(a, &constants.0, &mut caches.0),
        totals::side(b, &constants.1, &mut caches.1),
    );
    let mut out = assemble::assemble(&comparison, (&shapes.0, &shapes.1));
    out.before = costs.0.total;
    out.after = costs.1.total;
    out.macs_assumed = costs.0.assumed || costs.1.assumed;
    out.by_type = totals::by_type(&costs.0, &costs.1);
    Ok(out)
}

//! `cluster-weights`: weights share a few values, and are stored as codes of a few bits.
//!
//! ```text
//! before   float[2,4] w = {-1.1, 2, 0, 2.1, 1.9, 0, -0.9, -1}      y = MatMul (x, w)
//! after    uint8[4] w_codes = {32, 33, 18, 0}, float[4] w_book = {-1, 0, 2, 2},
//!          uint8[256,4] table, and at 2 bits
//!          w_rows = Gather (w_book, Cast (table))   w_index = Cast <to = int32> (w_codes)
//!          w_wide = Gather (w_rows, w_index)        w = Reshape (w_wide, shape)
//!          y = MatMul (x, w)
//! ```
//!
//! The weights of convolutions, matrix products and recurrent networks and the tables of
//! embeddings are clustered by k-means: optimal for numbers on a line, not a local optimum.
//! Engines expand the codes when they load the model, so it runs as before: clustering pays in
//! bytes and not in latency. Of embeddings only the rows that a run looks up are expanded, when
//! it runs. Forms (`form`):
//! - `table`, the default: packed codes of any width and tables, in operators that every engine
//!   has. Models before opset 10, or 13 for centroids of 8 bits, are upgraded.
//! - `packed-types`: codes in the 4-bit type of opset 21, or the 2-bit type of opset 25.
//! - `snap`: values change in place. The file keeps its size and compresses well.
//!
//! Biases, scales of channels and parameters of normalizations follow as numbers of 16 bits
//! (`vectors`), and tables of positions that are added. In networks that are pruned, codes are
//! chosen to compress well, too (`entropy`), and numbered by falling use, so that they do.
//!
//! With calibration data errors count by the second moments of a layer's inputs, and with
//! `recover` the layers are coded one after the other on what the clustered layers before them
//! give: rounding errors are made up for by the weights still to be coded, centroids, scales and
//! biases are fitted by least squares, and then codes change one at a time while that helps.
//!
//! Zeros stay zeros (`keep-zeros`), so prune first. Quantizing or pruning afterwards is refused
//! by those passes. Reasons for weights that are left: `small`, `no-gain` (the codes would not be
//! smaller), `overridable`, `graph-output`, `not-finite`, `quantized`, `unknown-rank` (of
//! what an embedding looks up), `settled` (snapped already). What could not be weighed by data is
//! clustered without: `no-moments`, `too-wide`, `unsolvable`.
//!
//! Han et al., "Deep Compression", 2016; for optimal k-means see `kmeans.rs`, for the recovery
//! `recover.rs`.

mod fit;
mod kmeans;
mod plan;
mod recover;
mod store;
mod vectors;

use paring_ir::engine::DataSource;
use paring_ir::{
    Changed, DType, Effect, Graph, Model, OpId, OptionError, OptionSet, Pass, PassContext,
    PassError, PassInfo, Tensor,
};

use crate::clustered;
use crate::layers;
use crate::moments::{self, Budget, Job, Moments};
use crate::order;
use crate::quantize_int8::raised;
use fit::{Coded, Importance};
use plan::{Plan, Target};
use recover::Task;
use store::{Packing, Store};
use vectors::{Precision, Saved};

/// See the text at the top of the file.
#[derive(Debug)]
pub struct ClusterWeights {
    options: OptionSet<Options>,
}

/// How weights are clustered, and which.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Bits of a code: a codebook has `2^bits` centroids. 4 makes files an eighth and wants
    /// calibration data; 8 makes them a quarter and costs next to nothing.
    #[schemars(range(min = 1, max = 8))]
    pub bits: u32,
    /// Which elements of a weight share a codebook. With 8 bits, small weights whose channels have
    /// scales share one codebook with each other.
    pub group: Group,
    /// Whether each output channel (of an embedding each row) has a scale that its centroids
    /// are multiplied by. Channels of one weight often differ in size by a factor of a hundred,
    /// so this does more than codebooks of their own, for four bytes a channel.
    pub scales: Scales,
    /// Zeros stay zeros: a codebook in whose weights a zero stands has a centroid of zero, which
    /// nothing else is averaged into. What pruning made survives.
    pub keep_zeros: bool,
    /// How centroids are stored: integers of 8 bits times a scale of the codebook make codebooks
    /// a quarter as large, and values that an 8-bit engine can take as they are.
    pub centroids: Centroids,
    /// How codes are stored.
    pub form: Form,
    /// What a bit that a code takes after compression counts, in mean squared errors of rounding:
    /// 0 takes the codes with the least error; 8 makes up to six times the error, below what
    /// pruning at 70 % has made, for codes that take about a bit less each.
    pub entropy: Entropy,
    /// Biases, scales of channels and the parameters of normalizations are stored as numbers of 16
    /// bits, where the file becomes smaller by it.
    #[schemars(extend("x-scope" = "pass"))]
    pub vectors: bool,
    /// With calibration data, make up for rounding errors and fit centroids, scales and biases to
    /// what the layers gave before.
    #[schemars(extend("x-scope" = "pass"))]
    pub recover: bool,
    /// Bits of depthwise convolutions, of tables that are added (positions), and of the first
    /// convolution where it has at most one in 32 of the weights, if more than `bits`: few
    /// weights, in which errors count most.
    #[schemars(range(min = 1, max = 8))]
    pub sensitive_bits: u32,
    /// Weights of fewer elements stay: the operators that expand codes take several hundred bytes.
    pub min_elements: usize,
}

/// Which weights share a codebook.
#[derive(
    Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(untagged)]
pub enum Group {
    /// All of a tensor.
    All(Whole),
    /// So many output channels; twice, four times, ... as many where codebooks would take more than
    /// half of what codes take. The table of an embedding always has one codebook.
    Channels(std::num::NonZeroUsize),
}

/// All of a tensor.
#[derive(
    Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Whole {
    /// One codebook for the tensor.
    Tensor,
}

/// Whether output channels have scales.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// Where they pay, in single and double precision: for depthwise convolutions, for channels of
    /// at least 32 elements below 8 bits, at 8 bits for channels of at least 64 of which some are
    /// more than twice as large as others, and not with `snap`, whose values would be too many to
    /// compress.
    #[default]
    Auto,
    /// Always, in single and double precision.
    Channels,
    /// Never.
    None,
}

/// How centroids are stored.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Centroids {
    /// In the type of the weight.
    #[default]
    Float,
    /// As integers of 8 bits from -127 to 127 and a scale for each codebook; weights in single
    /// precision only, others keep their type.
    Int8,
}

/// What compressed bits count against errors.
#[derive(
    Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(untagged)]
pub enum Entropy {
    /// By the weight.
    Auto(Auto),
    /// So much.
    Weight(#[schemars(range(min = 0.0))] f64),
}

/// By the weight.
#[derive(
    Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Auto {
    /// 8 where at least a quarter of all weights are zero, since who prunes wants files that
    /// compress well; else 0.
    Auto,
}

/// How codes are stored.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Packed in bytes, with tables that unpack them.
    #[default]
    Table,
    /// In the packed integer types of opset 21 (4 bits) and 25 (2 bits).
    PackedTypes,
    /// Not at all: the values change in place.
    Snap,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            bits: 4,
            group: Group::All(Whole::Tensor),
            scales: Scales::Auto,
            keep_zeros: true,
            centroids: Centroids::Float,
            form: Form::Table,
            entropy: Entropy::Auto(Auto::Auto),
            vectors: true,
            recover: true,
            sensitive_bits: 8,
            min_elements: 512,
        }
    }
}

/// The opset that has a 4-bit type.
const PACKED_OPSET: i64 = 21;

/// What bits count in pruned networks.
const THRIFTY: f64 = 8.0;

/// Moments of more bytes are not collected at once.
const MAX_MOMENTS: usize = 1 << 30;

impl Pass for ClusterWeights {
    const INFO: PassInfo = PassInfo::new(
        clustered::CLUSTER_WEIGHTS,
        "Let weights share a few values, stored as packed codes",
        Effect::Lossy,
    )
    .runs_first(&["lift-constants", "fold-batch-norm"])
    .never_after(&order::CLUSTERS);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        let whole = options.whole();
        if let Entropy::Weight(w) = whole.entropy
            && !(w >= 0.0 && w.is_finite())
        {
            return Err(OptionError::Invalid {
                path: format!("{}.entropy", clustered::CLUSTER_WEIGHTS),
                reason: format!("expected \"auto\" or a number from 0, found {w}"),
            });
        }
        for (key, bits) in [
            ("bits", whole.bits),
            ("sensitive-bits", whole.sensitive_bits),
        ] {
            if !(1..=8).contains(&bits) {
                return Err(OptionError::Invalid {
                    path: format!("{}.{key}", clustered::CLUSTER_WEIGHTS),
                    reason: format!("expected 1 to 8 bits, found {bits}"),
                });
            }
        }
        if whole.centroids == Centroids::Int8 && whole.form == Form::Snap {
            return Err(OptionError::Invalid {
                path: format!("{}.centroids", clustered::CLUSTER_WEIGHTS),
                reason: "the form \"snap\" stores no centroids; choose another form".to_owned(),
            });
        }
        Ok(ClusterWeights { options })
    }

    fn requires(&self, model: &Model) -> Result<(), PassError> {
        let wants = |graph: &Graph, op: OpId| !self.options.for_op(graph, op).is_skip();
        order::refuse_undoing(model, &Self::INFO, &wants)?;
        // Older models are upgraded for tables; for a type that few engines have, that is the user's
        // choice.
        if self.options.whole().form != Form::PackedTypes || model.opset() >= PACKED_OPSET {
            return Ok(());
        }
        Err(PassError::Precondition {
            found: format!(
                "the model speaks opset {}, and the form \"packed-types\" needs {PACKED_OPSET}",
                model.opset()
            ),
            remedy: "run upgrade-opset first, or choose another form".to_owned(),
        })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut plan = Plan::of(&self.options, model, cx)?;
        if plan.is_empty() {
            return Ok(Changed::No);
        }
        let whole = self.options.whole();
        let needed = match (whole.form, whole.centroids) {
            (Form::Snap, _) => 0,
            (_, Centroids::Int8) => 13,
            (_, Centroids::Float) => 10,
        };
        if model.opset() < needed {
            raised(model, needed, cx)?;
            // Its remarks were made already.
            let remarks = cx.remarks.clone();
            plan = Plan::of(&self.options, model, cx)?;
            cx.remarks = remarks;
        }
        self.fit(model, &mut plan, cx)?;
        let mut totals = Totals::default();
        let opset = model.opset();
        let vectors = self.options.whole().vectors;
        model.edit_graphs(&mut |graph| {
            let targets = plan.take(graph.id());
            put(graph, targets, opset, vectors, &mut totals, cx)
        })?;
        if totals.weights > 0 {
            cx.note(totals.text());
        }
        Ok(Changed::when(totals.weights > 0))
    }
}

impl ClusterWeights {
    /// Finds the codes of all targets.
    fn fit(
        &self,
        model: &mut Model,
        plan: &mut Plan,
        cx: &mut PassContext<'_>,
    ) -> Result<(), PassError> {
        let pool = moments::pool(cx.threads)?;
        let total = plan.targets().count() as u64;
        cx.progress().start("clustering", total);
        let main = model.graph.id();
        let with_data =
            cx.engine.is_some() && cx.data.is_some_and(|d: &dyn DataSource| !d.is_empty());
        let reference = model.clone();
        let recover = self.options.whole().recover;
        let in_turn = |t: &Target| with_data && t.weight.graph() == main && t.is_observable();
        // What has no data goes first, so that the rest is fitted to what comes of it.
        for target in plan.targets_mut().filter(|t| !in_turn(t)) {
            cx.check_cancelled()?;
            pool.install(|| target.fit_plain(&Importance::default()))?;
            if recover && with_data && target.weight.graph() == main {
                target.show(&mut model.graph)?;
            }
            cx.progress().advance(1);
        }
        let mut rest: Vec<&mut Target> = plan.targets_mut().filter(|t| in_turn(t)).collect();
        for stage in stages(&mut rest, recover) {
            let moments = observe(cx, model, recover.then_some(&reference), stage)?;
            for (target, moments) in stage.iter_mut().zip(moments) {
                cx.check_cancelled()?;
                let graph = &mut model.graph;
                match moments {
                    Some(m) if recover => pool.install(|| target.recover(&m, graph)),
                    Some(m) => pool.install(|| target.fit_plain(&importance(&m))),
                    None => pool.install(|| target.fit_plain(&Importance::default())),
                }?;
                if recover {
                    target.show(&mut model.graph)?;
                }
                cx.progress().advance(1);
            }
        }
        cx.progress().finish();
        Ok(())
    }
}

/// Parts of the targets to collect moments for together: with recovery those that take the same
/// value, else all, up to a bound of memory.
fn stages<'s, 't>(
    rest: &'s mut [&'t mut Target],
    recover: bool,
) -> impl Iterator<Item = &'s mut [&'t mut Target]> {
    let mut bytes = 0usize;
    rest.chunk_by_mut(move |a, b| {
        let next = b.moments_bytes(recover);
        bytes = bytes.saturating_add(a.moments_bytes(recover));
        let together =
            bytes.saturating_add(next) <= MAX_MOMENTS && (!recover || a.source() == b.source());
        if !together {
            bytes = 0;
        }
        together
    })
}

/// The moments of the inputs of a stage; `None` where they can't be had.
fn observe(
    cx: &mut PassContext<'_>,
    model: &Model,
    reference: Option<&Model>,
    stage: &[&mut Target],
) -> Result<Vec<Option<Moments>>, PassError> {
    let layers = stage.iter().map(|t| t.layer.as_ref());
    let small = |t: &Target| t.moments_bytes(reference.is_some()) <= MAX_MOMENTS;
    let jobs: Vec<Job<'_>> = (stage.iter().zip(layers))
        .filter(|(t, _)| small(t))
        .filter_map(|(_, layer)| layer)
        .map(|layer| Job {
            layer,
            reference: reference.map(|_| layer),
        })
        .collect();
    let mut found = match jobs.is_empty() {
        true => Vec::new(),
        false => moments::collect(cx, model, reference, &jobs, Budget::DEFAULT)?,
    }
    .into_iter();
    let mut out = Vec::with_capacity(stage.len());
    for target in stage {
        let own = match small(target) {
            true => found.next().flatten(),
            false => None,
        };
        if own.is_none() {
            let (code, why) = match small(target) {
                true => ("no-moments", "the engine can't show what it multiplies"),
                false => (
                    "too-wide",
                    "it has too many inputs to collect their second moments",
                ),
            };
            let text = format!("{why}; it is clustered without data");
            cx.missed(&model.graph, target.op, code, text);
        }
        out.push(own);
    }
    Ok(out)
}

/// The diagonals of second moments, of columns that stand for one element of a channel each.
fn importance(moments: &Moments) -> Importance {
    let diagonal = |m: &faer::Mat<f64>| -> Vec<f64> {
        let floor = 1e-4 * crate::solve::mean_diagonal(m.as_ref());
        (0..m.nrows()).map(|i| m[(i, i)].max(floor)).collect()
    };
    Importance {
        blocks: moments.gram.iter().map(diagonal).collect(),
    }
}

impl Target {
    /// Clusters the weight by itself.
    fn fit_plain(&mut self, importance: &Importance) -> Result<(), PassError> {
        let values = self.values();
        let width = self.order.width();
        let dtype = self.tensor.dtype();
        if let Some(exact) = fit::exact(&values, width, dtype, &self.settings) {
            self.coded = Some(exact);
            return Ok(());
        }
        let spread = self.spread(importance);
        self.coded = Some(fit::fit(&values, width, dtype, &spread, &self.settings)?);
        Ok(())
    }

    /// Clusters the weight so that the layer gives what it gave in the reference.
    fn recover(&mut self, moments: &Moments, graph: &mut Graph) -> Result<(), PassError> {
        let values = self.values();
        let (width, dtype) = (self.order.width(), self.tensor.dtype());
        if let Some(exact) = fit::exact(&values, width, dtype, &self.settings) {
            self.coded = Some(exact);
            return Ok(());
        }
        let Some(layer) = self.layer.clone() else {
            return self.fit_plain(&Importance::default());
        };
        let bias = layers::bias_place(graph, &layer).is_some()
            && layers::bias_len(&layer) == layer.blocks * layer.rows;
        let task = Task {
            layer: &layer,
            order: &self.order,
            target: &self.tensor,
            moments,
            settings: self.settings.clone(),
            bias,
        };
        let Some(found) = recover::recover(&task)? else {
            self.unsolvable = true;
            return self.fit_plain(&importance(moments));
        };
        if bias {
            layers::add_to_bias(graph, &layer, &found.bias, false)?;
        }
        self.coded = Some(found.coded);
        self.sqnr = Some(found.sqnr);
        Ok(())
    }

    /// Puts what the codes stand for into the model, for the layers that are fitted next.
    fn show(&self, graph: &mut Graph) -> Result<(), PassError> {
        let Some(coded) = &self.coded else {
            return Ok(());
        };
        let tensor = self.decoded(coded)?;
        if tensor != self.tensor {
            graph.set_tensor(self.weight, tensor, Vec::new())?;
        }
        Ok(())
    }

    /// The weight that the codes stand for.
    fn decoded(&self, coded: &Coded) -> Result<Tensor, PassError> {
        let memory = self.order.in_memory(&coded.decoded());
        store::tensor(coded.dtype, self.tensor.dims(), &memory)
    }
}

/// What was saved.
#[derive(Default)]
struct Totals {
    weights: usize,
    before: usize,
    after: usize,
    /// Bytes that loading the model expands.
    expanded: usize,
    /// Bytes of tables of which only rows are expanded.
    rows: usize,
    snapped: usize,
    /// Biases and the like.
    vectors: Saved,
}

impl Totals {
    fn text(&self) -> String {
        let mut out = Vec::new();
        if self.before > 0 {
            let share = self.after as f64 / self.before as f64;
            out.push(format!(
                "{} weights take {} instead of {}, {share:.3} of it: this pays in bytes, not in latency",
                self.weights,
                bytes(self.after),
                bytes(self.before)
            ));
        }
        let Saved {
            vectors,
            before,
            after,
        } = self.vectors;
        if vectors > 0 {
            out.push(format!(
                "{vectors} biases, scales and the like take {} instead of {}",
                bytes(after),
                bytes(before)
            ));
        }
        if self.expanded > 0 {
            out.push(format!(
                "codes are expanded when the model is loaded, to {} of memory again and for a moment up to twice as much",
                bytes(self.expanded)
            ));
        }
        if self.rows > 0 {
            out.push(format!(
                "of {} of embeddings only the rows that are looked up are expanded, at every run",
                bytes(self.rows)
            ));
        }
        if self.snapped > 0 {
            out.push(format!(
                "{} of weights were snapped in place: the file keeps its size and compresses better",
                bytes(self.snapped)
            ));
        }
        out.join("; ")
    }
}

/// A number of bytes for people.
fn bytes(n: usize) -> String {
    match n {
        0..10_000 => format!("{n} bytes"),
        10_000..10_000_000 => format!("{:.0} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

/// Puts the clustered weights of one graph into it.
fn put(
    graph: &mut Graph,
    targets: Vec<Target>,
    opset: i64,
    vectors: bool,
    totals: &mut Totals,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    let Some(first) = targets.first() else {
        return Ok(());
    };
    let mut store = Store::new(graph, first.op);
    // Where the weights lost nothing, nothing else shall.
    let mut lossy = false;
    let precision = match targets.iter().any(|t| t.settings.entropy > 0.0) {
        true => Precision::Coarse,
        false => Precision::Full,
    };
    for target in targets {
        cx.check_cancelled()?;
        let Some(coded) = &target.coded else { continue };
        store.steps(target.steps());
        let coded = &coded.clone().by_use();
        if target.unsolvable {
            let text =
                "the second moments of its inputs can't be factorized; it is only weighed by them";
            cx.missed(store.graph, target.op, "unsolvable", text);
        }
        if target.form == Form::Snap {
            put_snapped(store.graph, &target, coded, totals, cx)?;
            continue;
        }
        lossy = lossy || target.decoded(coded)? != target.tensor;
        let stored = target.stored_bytes(coded);
        let before = target.tensor.byte_len();
        cx.applied(
            store.graph,
            target.op,
            "clustered",
            said(&target, coded, stored),
        );
        totals.weights += 1;
        totals.before += before;
        totals.after += stored;
        if target.lookups.is_empty() {
            totals.expanded += before;
            put_expanded(&mut store, &target, coded, opset)?;
        } else {
            totals.rows += before;
            put_rows(&mut store, &target, coded)?;
        }
    }
    if vectors && lossy {
        let scales = std::mem::take(&mut store.scales);
        let saved = vectors::put(&mut store, &scales, precision)?;
        totals.vectors.vectors += saved.vectors;
        totals.vectors.before += saved.before;
        totals.vectors.after += saved.after;
    }
    Ok(())
}

fn said(target: &Target, coded: &Coded, stored: usize) -> String {
    let clusters = coded.books.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = format!("{clusters} clusters");
    match coded.books.len() {
        1 => {}
        n => out += &format!(" in each of {n} codebooks"),
    }
    if let Some(scales) = &coded.scales {
        out += &format!(", {} scales", scales.len());
    }
    if target.form == Form::Snap {
        out += ", snapped in place";
    } else {
        out += &format!(", {stored} bytes instead of {}", target.tensor.byte_len());
    }
    if let Some(sqnr) = target.sqnr {
        out += &format!("; outputs within {sqnr:.1} dB on calibration data");
    }
    out
}

fn put_snapped(
    graph: &mut Graph,
    target: &Target,
    coded: &Coded,
    totals: &mut Totals,
    cx: &mut PassContext<'_>,
) -> Result<(), PassError> {
    let tensor = target.decoded(coded)?;
    if tensor == target.tensor {
        cx.missed(
            graph,
            target.op,
            "settled",
            "the weight has no more values than a codebook",
        );
        return Ok(());
    }
    cx.applied(graph, target.op, "clustered", said(target, coded, 0));
    totals.weights += 1;
    totals.snapped += tensor.byte_len();
    graph.set_tensor(target.weight, tensor, Vec::new())?;
    Ok(())
}

/// Makes everything that takes the weight take an expansion of its codes, of the same name.
fn put_expanded(
    store: &mut Store<'_>,
    target: &Target,
    coded: &Coded,
    opset: i64,
) -> Result<(), PassError> {
    let packing = match target.form {
        Form::PackedTypes => Packing::Typed(match coded.bits {
            1 | 2 if opset >= 25 => DType::U2,
            1..=4 => DType::U4,
            _ => DType::U8,
        }),
        _ => Packing::Bytes,
    };
    let name = store.graph.value(target.weight).name().clone();
    store.turn_to(target.op, &name);
    let made = store.expand(coded, &target.order, target.tensor.dims(), packing)?;
    let graph = &mut *store.graph;
    graph.replace_value(target.weight, made)?;
    graph.remove_value(target.weight)?;
    graph.rename_value(made, name)?;
    Ok(())
}

/// Makes everything that looks up rows of a table look up codes.
fn put_rows(store: &mut Store<'_>, target: &Target, coded: &Coded) -> Result<(), PassError> {
    let name = store.graph.value(target.weight).name().clone();
    store.turn_to(target.op, &name);
    let (codes, tables) = store.row_tables(coded)?;
    for &(op, rank) in &target.lookups {
        let (indices, old) = (store.graph.op(op).input(1), store.graph.op(op).output(0));
        let (Some(indices), Some(old)) = (indices, old) else {
            continue;
        };
        store.turn_to(op, &name);
        let made = store.expand_rows(coded, &codes, &tables, indices, rank)?;
        let graph = &mut *store.graph;
        let producer = graph.producer(made);
        let producer =
            producer.ok_or_else(|| PassError::Bug("an expansion has no operator".to_owned()))?;
        graph.move_output(old, producer, 0)?;
        graph.remove_op(op)?;
    }
    store.graph.remove_value(target.weight)?;
    Ok(())
}

#[cfg(test)]
mod tests;

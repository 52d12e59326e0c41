//! What holds for an operator in every version: one row per standard operator.

use std::collections::HashMap;
use std::f64::consts::{FRAC_PI_2, PI};
use std::sync::LazyLock;

use crate::graph::{Graph, OpId};
use crate::op::Op;

/// What kind of thing an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Each element of the output is a function of the element of input 0 at its place.
    Unary,
    /// Likewise of two inputs, which are broadcast.
    Binary,
    /// Likewise of any number of inputs, which are broadcast.
    Variadic,
    /// `Where`: picks one of two broadcast inputs.
    Select,
    /// Axes are reduced to one element.
    Reduction,
    /// Works along one axis and keeps the shape: softmaxes and cumulative sums.
    AlongAxis,
    /// Moves, repeats or drops elements without looking at them.
    Layout,
    /// Places elements by indices that are data, or finds such indices.
    Index,
    /// Sums of products with a weight.
    Linear,
    /// Attention, and rotary embedding beside it.
    Attention,
    /// Recurrent networks.
    Recurrent,
    /// Normalizations.
    Norm,
    /// Pooling.
    Pool,
    /// Samples at other places: resizing, regions of interest, grids.
    Resample,
    /// The shape of a value as data.
    Shape,
    /// Makes a tensor from attributes, sizes or nothing.
    Generator,
    /// Random numbers.
    Random,
    /// Quantizing and dequantizing.
    Quantize,
    /// Fourier transforms.
    Signal,
    /// Strings.
    Text,
    /// Loss functions.
    Loss,
    /// Sequences of tensors.
    Sequence,
    /// Optional values.
    Optional,
    /// Runs graphs that stand in attributes.
    Control,
    /// What fits nowhere else.
    Other,
}

/// What an input is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The data that is worked on.
    Data,
    /// The weight of a linear operator, the scale of a normalization, the slope of `PRelu`.
    Weight,
    /// The weight of the recurrence.
    RecurrentWeight,
    /// Added to the result: a bias.
    Bias,
    /// Sizes, axes, counts and the like: small integers (or the scales of `Resize`) that are no
    /// data themselves.
    Shape,
    /// Positions in another input.
    Index,
    /// The scale of a quantized tensor.
    Scale,
    /// The zero point of a quantized tensor.
    ZeroPoint,
    /// A state that is carried on: hidden states, caches.
    State,
    /// A condition or a mask.
    Mask,
    /// Another operand that steers the operator: bounds, ratios, statistics.
    Parameter,
}

/// How the output of an element-wise operator follows its input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Monotonicity {
    /// Never decreases where the input increases.
    Increasing,
    /// Never increases where the input increases.
    Decreasing,
}

/// What holds for an operator in every version.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Knowledge {
    /// The operator type.
    pub op_type: &'static str,
    /// What kind of thing it does.
    pub class: Class,
    /// Exchanging any inputs changes nothing (for two inputs of `Mean`, `Sum`, ... alike).
    pub commutative: bool,
    /// f(f(x)) = f(x) for equal attributes and other inputs; for two inputs f(x, x) = x.
    pub idempotent: bool,
    /// f(f(x)) = x, exactly.
    pub involutive: bool,
    /// f(0) = 0 for the default attributes: zero channels stay zero.
    pub zero_preserving: bool,
    /// How the output follows input 0, for usual attributes; see [`monotonicity`].
    pub monotonicity: Option<Monotonicity>,
    /// Between which numbers output 0 lies, for usual attributes; see [`output_range`].
    pub range: Option<(f64, f64)>,
    roles: &'static [u8],
}

impl Knowledge {
    /// What the input in a slot is for.
    pub fn role(&self, slot: usize) -> Role {
        // The last letter also stands for all further slots of a variadic input.
        match self.roles.get(slot).or(self.roles.last()) {
            Some(b'w') => Role::Weight,
            Some(b'r') => Role::RecurrentWeight,
            Some(b'b') => Role::Bias,
            Some(b'h') => Role::Shape,
            Some(b'i') => Role::Index,
            Some(b's') => Role::Scale,
            Some(b'z') => Role::ZeroPoint,
            Some(b't') => Role::State,
            Some(b'm') => Role::Mask,
            Some(b'p') => Role::Parameter,
            _ => Role::Data,
        }
    }

    /// The first slot with a role.
    pub fn slot_of(&self, role: Role) -> Option<usize> {
        (0..self.roles.len()).find(|&slot| self.role(slot) == role)
    }

    /// The slot of the weight.
    pub fn weight(&self) -> Option<usize> {
        self.slot_of(Role::Weight)
    }

    /// The slot of the bias.
    pub fn bias(&self) -> Option<usize> {
        self.slot_of(Role::Bias)
    }

    /// Whether each element of the output depends on the elements at its place alone.
    pub fn is_elementwise(&self) -> bool {
        matches!(
            self.class,
            Class::Unary | Class::Binary | Class::Variadic | Class::Select
        )
    }

    /// Whether the operator does multiply-accumulates that count; see [`super::macs`].
    pub fn counts_macs(&self) -> bool {
        let linear = matches!(
            self.class,
            Class::Linear | Class::Attention | Class::Recurrent
        );
        linear && self.op_type != "RotaryEmbedding"
    }

    const fn commutative(mut self) -> Self {
        self.commutative = true;
        self
    }

    const fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    const fn involutive(mut self) -> Self {
        self.involutive = true;
        self
    }

    const fn zero(mut self) -> Self {
        self.zero_preserving = true;
        self
    }

    const fn increasing(mut self) -> Self {
        self.monotonicity = Some(Monotonicity::Increasing);
        self
    }

    const fn decreasing(mut self) -> Self {
        self.monotonicity = Some(Monotonicity::Decreasing);
        self
    }

    const fn range(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// One letter for each input slot: `d`ata, `w`eight, `r`ecurrent weight, `b`ias, s`h`ape,
    /// `i`ndex, `s`cale, `z`ero point, s`t`ate, `m`ask, `p`arameter.
    const fn inputs(mut self, roles: &'static str) -> Self {
        self.roles = roles.as_bytes();
        self
    }
}

const fn row(op_type: &'static str, class: Class) -> Knowledge {
    Knowledge {
        op_type,
        class,
        commutative: false,
        idempotent: false,
        involutive: false,
        zero_preserving: false,
        monotonicity: None,
        range: None,
        roles: b"d",
    }
}

const INF: f64 = f64::INFINITY;

use Class as C;

/// The table, by class. Ranges are those of exact arithmetic: allow for rounding.
#[rustfmt::skip]
static TABLE: &[Knowledge] = &[
    // Activations and other functions of one value.
    row("Abs", C::Unary).idempotent().zero().range(0.0, INF),
    row("Acos", C::Unary).decreasing().range(0.0, PI),
    row("Acosh", C::Unary).increasing().range(0.0, INF),
    row("Asin", C::Unary).zero().increasing().range(-FRAC_PI_2, FRAC_PI_2),
    row("Asinh", C::Unary).zero().increasing(),
    row("Atan", C::Unary).zero().increasing().range(-FRAC_PI_2, FRAC_PI_2),
    row("Atanh", C::Unary).zero().increasing(),
    row("BitCast", C::Unary).zero(),
    row("BitwiseNot", C::Unary).involutive(),
    row("Cast", C::Unary).idempotent().zero(),
    row("CastLike", C::Unary).inputs("dp").idempotent().zero(),
    row("Ceil", C::Unary).idempotent().zero().increasing(),
    row("Celu", C::Unary).zero().increasing().range(-1.0, INF),
    row("Clip", C::Unary).inputs("dpp").idempotent().increasing(),
    row("Cos", C::Unary).range(-1.0, 1.0),
    row("Cosh", C::Unary).range(1.0, INF),
    row("Dropout", C::Unary).inputs("dpp").zero(),
    row("Elu", C::Unary).zero().increasing().range(-1.0, INF),
    row("Erf", C::Unary).zero().increasing().range(-1.0, 1.0),
    row("Exp", C::Unary).increasing().range(0.0, INF),
    row("Floor", C::Unary).idempotent().zero().increasing(),
    row("Gelu", C::Unary).zero().range(-0.170_05, INF),
    row("HardSigmoid", C::Unary).increasing().range(0.0, 1.0),
    row("HardSwish", C::Unary).zero().range(-0.375, INF),
    row("Identity", C::Unary).idempotent().involutive().zero().increasing(),
    row("IsInf", C::Unary).zero(),
    row("IsNaN", C::Unary).zero(),
    row("LeakyRelu", C::Unary).zero().increasing(),
    row("Log", C::Unary).increasing(),
    row("Mish", C::Unary).zero().range(-0.308_85, INF),
    row("Neg", C::Unary).involutive().zero().decreasing(),
    row("Not", C::Unary).involutive().decreasing(),
    row("Reciprocal", C::Unary),
    row("Relu", C::Unary).idempotent().zero().increasing().range(0.0, INF),
    row("Round", C::Unary).idempotent().zero().increasing(),
    row("Selu", C::Unary).zero().increasing().range(-1.758_1, INF),
    row("Shrink", C::Unary).zero(),
    row("Sigmoid", C::Unary).increasing().range(0.0, 1.0),
    row("Sign", C::Unary).idempotent().zero().increasing().range(-1.0, 1.0),
    row("Sin", C::Unary).zero().range(-1.0, 1.0),
    row("Sinh", C::Unary).zero().increasing(),
    row("Softplus", C::Unary).increasing().range(0.0, INF),
    row("Softsign", C::Unary).zero().increasing().range(-1.0, 1.0),
    row("Sqrt", C::Unary).zero().increasing().range(0.0, INF),
    row("Swish", C::Unary).zero().range(-0.278_5, INF),
    row("Tan", C::Unary).zero(),
    row("Tanh", C::Unary).zero().increasing().range(-1.0, 1.0),
    row("ThresholdedRelu", C::Unary).zero().increasing().range(0.0, INF),

    // Functions of two or more values.
    row("Add", C::Binary).commutative().zero(),
    row("And", C::Binary).commutative().idempotent().zero(),
    row("BitShift", C::Binary).inputs("dp").zero(),
    row("BitwiseAnd", C::Binary).commutative().idempotent().zero(),
    row("BitwiseOr", C::Binary).commutative().idempotent().zero(),
    row("BitwiseXor", C::Binary).commutative().zero(),
    row("Div", C::Binary),
    row("Equal", C::Binary).commutative(),
    row("Greater", C::Binary).zero(),
    row("GreaterOrEqual", C::Binary),
    row("Less", C::Binary).zero(),
    row("LessOrEqual", C::Binary),
    row("Mod", C::Binary),
    row("Mul", C::Binary).commutative().zero(),
    row("Or", C::Binary).commutative().idempotent().zero(),
    row("PRelu", C::Binary).inputs("dw").zero(),
    row("Pow", C::Binary),
    row("StringConcat", C::Binary),
    row("Sub", C::Binary).zero(),
    row("SwiGLU", C::Binary).zero(),
    row("Xor", C::Binary).commutative().zero(),
    row("Max", C::Variadic).commutative().idempotent().zero(),
    row("Mean", C::Variadic).commutative().zero(),
    row("Min", C::Variadic).commutative().idempotent().zero(),
    row("Sum", C::Variadic).commutative().zero(),
    row("Where", C::Select).inputs("mdd"),

    // Reductions, and what works along an axis.
    row("ArgMax", C::Reduction).range(0.0, INF),
    row("ArgMin", C::Reduction).range(0.0, INF),
    row("ReduceL1", C::Reduction).inputs("dh").zero().range(0.0, INF),
    row("ReduceL2", C::Reduction).inputs("dh").zero().range(0.0, INF),
    row("ReduceLogSum", C::Reduction).inputs("dh"),
    row("ReduceLogSumExp", C::Reduction).inputs("dh"),
    row("ReduceMax", C::Reduction).inputs("dh").zero(),
    row("ReduceMean", C::Reduction).inputs("dh").zero(),
    row("ReduceMin", C::Reduction).inputs("dh").zero(),
    row("ReduceProd", C::Reduction).inputs("dh").zero(),
    row("ReduceSum", C::Reduction).inputs("dh").zero(),
    row("ReduceSumSquare", C::Reduction).inputs("dh").zero().range(0.0, INF),
    row("CumProd", C::AlongAxis).inputs("dh"),
    row("CumSum", C::AlongAxis).inputs("dh").zero(),
    row("Hardmax", C::AlongAxis).idempotent().range(0.0, 1.0),
    row("LogSoftmax", C::AlongAxis).range(-INF, 0.0),
    row("Softmax", C::AlongAxis).range(0.0, 1.0),

    // Elements moved, repeated, dropped.
    row("CenterCropPad", C::Layout).inputs("dh").zero(),
    row("Concat", C::Layout).zero(),
    row("DepthToSpace", C::Layout).zero(),
    row("Expand", C::Layout).inputs("dh").zero(),
    row("Flatten", C::Layout).zero(),
    row("Pad", C::Layout).inputs("dhph").zero(),
    row("Reshape", C::Layout).inputs("dh").zero(),
    row("ReverseSequence", C::Layout).inputs("dh").zero(),
    row("Slice", C::Layout).inputs("dhhhh").zero(),
    row("SpaceToDepth", C::Layout).zero(),
    row("Split", C::Layout).inputs("dh").zero(),
    row("Squeeze", C::Layout).inputs("dh").zero(),
    row("Tile", C::Layout).inputs("dhh").zero(),
    row("Transpose", C::Layout).zero(),
    row("Trilu", C::Layout).inputs("dh").idempotent().zero(),
    row("Unsqueeze", C::Layout).inputs("dh").zero(),

    // Positions that are data.
    row("Compress", C::Index).inputs("dm").zero(),
    row("Gather", C::Index).inputs("di").zero(),
    row("GatherElements", C::Index).inputs("di").zero(),
    row("GatherND", C::Index).inputs("di").zero(),
    row("NonMaxSuppression", C::Index).inputs("ddhpp").range(0.0, INF),
    row("NonZero", C::Index).range(0.0, INF),
    row("OneHot", C::Index).inputs("dhp"),
    row("Scatter", C::Index).inputs("did"),
    row("ScatterElements", C::Index).inputs("did"),
    row("ScatterND", C::Index).inputs("did"),
    row("TensorScatter", C::Index).inputs("tdi"),
    row("TopK", C::Index).inputs("dh"),
    row("Unique", C::Index),

    // Sums of products.
    row("CausalConvWithState", C::Linear).inputs("dwbt"),
    row("Conv", C::Linear).inputs("dwb"),
    row("ConvInteger", C::Linear).inputs("dwzz"),
    row("ConvTranspose", C::Linear).inputs("dwb"),
    row("DeformConv", C::Linear).inputs("dwibm"),
    row("Einsum", C::Linear),
    row("Gemm", C::Linear).inputs("dwb"),
    row("MatMul", C::Linear).inputs("dw"),
    row("MatMulInteger", C::Linear).inputs("dwzz"),
    row("QLinearConv", C::Linear).inputs("dszwszszb"),
    row("QLinearMatMul", C::Linear).inputs("dszwszsz"),
    row("Attention", C::Attention).inputs("dddmtth"),
    row("LinearAttention", C::Attention).inputs("dddtdd"),
    row("RotaryEmbedding", C::Attention).inputs("dppi"),
    row("GRU", C::Recurrent).inputs("dwrbht"),
    row("LSTM", C::Recurrent).inputs("dwrbhttp"),
    row("RNN", C::Recurrent).inputs("dwrbht"),

    // Normalization, pooling, sampling.
    row("BatchNormalization", C::Norm).inputs("dwbpp"),
    row("GroupNormalization", C::Norm).inputs("dwb"),
    row("InstanceNormalization", C::Norm).inputs("dwb"),
    row("LRN", C::Norm).zero(),
    row("LayerNormalization", C::Norm).inputs("dwb"),
    row("LpNormalization", C::Norm).zero().range(-1.0, 1.0),
    row("MeanVarianceNormalization", C::Norm).zero(),
    row("RMSNormalization", C::Norm).inputs("dw").zero(),
    row("AveragePool", C::Pool).zero(),
    row("GlobalAveragePool", C::Pool).zero(),
    row("GlobalLpPool", C::Pool).zero().range(0.0, INF),
    row("GlobalMaxPool", C::Pool).zero(),
    row("LpPool", C::Pool).zero().range(0.0, INF),
    row("MaxPool", C::Pool).zero(),
    row("AffineGrid", C::Resample).inputs("dh"),
    row("Col2Im", C::Resample).inputs("dhh").zero(),
    row("GridSample", C::Resample).inputs("dp").zero(),
    row("MaxRoiPool", C::Resample).inputs("dp").zero(),
    row("MaxUnpool", C::Resample).inputs("dih").zero(),
    row("Resize", C::Resample).inputs("dhhh").zero(),
    row("RoiAlign", C::Resample).inputs("dpi").zero(),
    row("Upsample", C::Resample).inputs("dh").zero(),

    // Shapes, and tensors out of nothing.
    row("Shape", C::Shape).range(0.0, INF),
    row("Size", C::Shape).range(0.0, INF),
    row("BlackmanWindow", C::Generator).inputs("h").range(0.0, 1.0),
    row("Constant", C::Generator),
    row("ConstantOfShape", C::Generator).inputs("h"),
    row("EyeLike", C::Generator).inputs("p").range(0.0, 1.0),
    row("HammingWindow", C::Generator).inputs("h").range(0.0, 1.0),
    row("HannWindow", C::Generator).inputs("h").range(0.0, 1.0),
    row("MelWeightMatrix", C::Generator).inputs("hhppp").range(0.0, INF),
    row("Range", C::Generator).inputs("hhh"),
    row("Bernoulli", C::Random).range(0.0, 1.0),
    row("Multinomial", C::Random).range(0.0, INF),
    row("RandomNormal", C::Random),
    row("RandomNormalLike", C::Random),
    row("RandomUniform", C::Random),
    row("RandomUniformLike", C::Random),

    // Quantization.
    row("DequantizeLinear", C::Quantize).inputs("dsz"),
    row("DynamicQuantizeLinear", C::Quantize),
    row("QuantizeLinear", C::Quantize).inputs("dsz"),

    // The rest.
    row("DFT", C::Signal).inputs("dhh").zero(),
    row("STFT", C::Signal).inputs("dhph").zero(),
    row("RegexFullMatch", C::Text),
    row("StringNormalizer", C::Text),
    row("StringSplit", C::Text),
    row("TfIdfVectorizer", C::Text),
    row("NegativeLogLikelihoodLoss", C::Loss).inputs("dip"),
    row("SoftmaxCrossEntropyLoss", C::Loss).inputs("dip"),
    row("ConcatFromSequence", C::Sequence).zero(),
    row("SequenceAt", C::Sequence).inputs("dh").zero(),
    row("SequenceConstruct", C::Sequence).zero(),
    row("SequenceEmpty", C::Sequence),
    row("SequenceErase", C::Sequence).inputs("dh").zero(),
    row("SequenceInsert", C::Sequence).inputs("ddh").zero(),
    row("SequenceLength", C::Sequence).range(0.0, INF),
    row("SplitToSequence", C::Sequence).inputs("dh").zero(),
    row("Optional", C::Optional),
    row("OptionalGetElement", C::Optional).zero(),
    row("OptionalHasElement", C::Optional),
    row("If", C::Control).inputs("m"),
    row("Loop", C::Control).inputs("hmd"),
    row("Scan", C::Control),
    row("SequenceMap", C::Control),
    row("Det", C::Other).zero(),
    row("ImageDecoder", C::Other).range(0.0, 255.0),
];

static INDEX: LazyLock<HashMap<&'static str, &'static Knowledge>> =
    LazyLock::new(|| TABLE.iter().map(|k| (k.op_type, k)).collect());

/// What is known about a standard operator.
pub fn knowledge(op_type: &str) -> Option<&'static Knowledge> {
    INDEX.get(op_type).copied()
}

/// Every row, by class.
pub fn known_operators() -> &'static [Knowledge] {
    TABLE
}

/// What is known about an operator; `None` for those of other domains.
pub fn of(op: &Op) -> Option<&'static Knowledge> {
    if op.domain().is_empty() {
        knowledge(op.op_type())
    } else {
        None
    }
}

/// What the input of an operator in a slot is for. Everything is data to an operator that
/// nothing is known about.
pub fn role(op: &Op, slot: usize) -> Role {
    of(op).map_or(Role::Data, |k| k.role(slot))
}

/// Whether an operator gives the same outputs for the same inputs whenever it runs, as far as
/// the operator alone tells: `Dropout` with an input that may switch on training is not.
/// Operators of other domains are not; control flow is when all that it runs is.
pub fn is_deterministic(op: &Op) -> bool {
    deterministic(op, None)
}

/// As [`is_deterministic`], looking also at constant inputs: `Dropout` is when its input says
/// that it doesn't train.
pub fn is_deterministic_in(graph: &Graph, op: OpId) -> bool {
    graph
        .get_op(op)
        .is_some_and(|o| deterministic(o, Some(graph)))
}

fn deterministic(op: &Op, graph: Option<&Graph>) -> bool {
    let Some(known) = of(op) else { return false };
    match known.class {
        Class::Random => false,
        Class::Control => op.subgraphs().all(|inner| {
            inner
                .ops()
                .all(|id| deterministic(inner.op(id), Some(inner)))
        }),
        _ if op.is("Dropout") => match op.input(2) {
            None => true,
            Some(training) => graph
                .and_then(|g| g.tensor(training))
                .and_then(|t| t.single_f64())
                .is_some_and(|v| v == 0.0),
        },
        _ => true,
    }
}

/// Whether an operator is a pure function of tensors that may be folded and merged: standard,
/// known, deterministic, without control flow, sequences or optional values.
pub fn is_pure_standard(op: &Op) -> bool {
    let opaque = |c| matches!(c, Class::Control | Class::Sequence | Class::Optional);
    of(op).is_some_and(|k| !opaque(k.class)) && is_deterministic(op) && !op.has_subgraphs()
}

/// How the output of an element-wise operator follows its first input, its attributes
/// considered.
pub fn monotonicity(op: &Op) -> Option<Monotonicity> {
    let not_negative = |name, default| op.float(name).unwrap_or(default) >= 0.0;
    let usual = match &**op.op_type() {
        "LeakyRelu" => not_negative("alpha", 0.01),
        "Elu" | "Celu" | "ThresholdedRelu" => not_negative("alpha", 1.0),
        "HardSigmoid" => not_negative("alpha", 0.2),
        "Selu" => not_negative("alpha", 1.0) && not_negative("gamma", 1.0),
        _ => true,
    };
    of(op)?.monotonicity.filter(|_| usual)
}

/// Between which numbers output 0 of an operator lies whatever its first input is
/// (NaN apart), its attributes and constant bounds considered.
pub fn output_range(graph: &Graph, op: OpId) -> Option<(f64, f64)> {
    let op = graph.get_op(op)?;
    let range = of(op)?.range;
    let attr = |name, default: f32| f64::from(op.float(name).unwrap_or(default));
    match &**op.op_type() {
        "Clip" => clip_bounds(graph, op),
        "Elu" => exponential_unit(attr("alpha", 1.0), 1.0),
        // Celu divides by alpha, which keeps the slope at 1 for either sign.
        "Celu" => Some(attr("alpha", 1.0))
            .filter(|&a| a > 0.0)
            .map(|a| (-a, INF)),
        "Selu" => exponential_unit(attr("alpha", 1.673_263_2), attr("gamma", 1.050_701)),
        "ThresholdedRelu" => Some((attr("alpha", 1.0).min(0.0), INF)),
        // The lowest point of x * sigmoid(alpha * x) lies at -1.278.. / alpha.
        "Swish" => Some(attr("alpha", 1.0))
            .filter(|&a| a > 0.0)
            .and_then(|a| range.map(|(low, high)| (low / a, high))),
        // Norms of order 0 or less aren't bounded so.
        "LpNormalization" => range.filter(|_| op.int_or("p", 2) >= 1),
        _ => range.filter(|&(low, high)| low > -INF || high < INF),
    }
}

fn exponential_unit(alpha: f64, gamma: f64) -> Option<(f64, f64)> {
    (alpha >= 0.0 && gamma >= 0.0).then_some((-alpha * gamma, INF))
}

/// The bounds of a `Clip` that are attributes or constant inputs; an absent bound is infinite.
/// `None` for other operators and for bounds that are computed.
pub fn clip_bounds(graph: &Graph, op: &Op) -> Option<(f64, f64)> {
    if !op.is("Clip") {
        return None;
    }
    let bound = |slot, name, absent| match op.input(slot) {
        Some(value) => graph.tensor(value)?.single_f64(),
        None => Some(op.float(name).map_or(absent, f64::from)),
    };
    let (low, high) = (bound(1, "min", -INF)?, bound(2, "max", INF)?);
    // With crossed bounds the specification lets the upper one win.
    Some((low.min(high), high))
}

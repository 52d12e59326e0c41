//! What the outputs of each operator are: the one table.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::control;
use super::cx::{Cx, Outs};
use super::dim::SymDim;
use super::elementwise as ew;
use super::engine::Engine;
use super::{generate, indexing, layout, linear, norm, quant, reduce, signal, slicing, window};
use crate::op::Op;

/// How the outputs of an operator are found.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// From its inputs and attributes.
    Local(for<'a, 'm> fn(&Cx<'a, 'm>) -> Outs),
    /// By walking the graphs in its attributes.
    Control(for<'m> fn(&mut Engine<'m>, &'m Op) -> Outs),
}

/// The rule of a standard operator.
pub(super) fn of(op_type: &str) -> Option<Rule> {
    static BY_NAME: LazyLock<HashMap<&str, Rule>> = LazyLock::new(|| {
        let control = CONTROL.iter().map(|&(n, f)| (n, Rule::Control(f)));
        let local = LOCAL.iter().map(|&(n, f)| (n, Rule::Local(f)));
        local.chain(control).collect()
    });
    BY_NAME.get(op_type).copied()
}

type Local = for<'a, 'm> fn(&Cx<'a, 'm>) -> Outs;
type Control = for<'m> fn(&mut Engine<'m>, &'m Op) -> Outs;

const CONTROL: &[(&str, Control)] = &[
    ("If", control::if_),
    ("Loop", control::loop_),
    ("Scan", control::scan),
    ("SequenceMap", control::sequence_map),
];

/// Rules by operator. Sequences and optional values are no tensors: the operators that make
/// them have no rule, so they are unknown.
const LOCAL: &[(&str, Local)] = &[
    ("Abs", |cx| ew::arithmetic_unary(cx, ew::abs, f64::abs)),
    ("Acos", ew::unary),
    ("Acosh", ew::unary),
    ("Add", |cx| ew::arithmetic(cx, SymDim::add, |a, b| a + b)),
    ("AffineGrid", window::affine_grid),
    ("And", |cx| ew::logic(cx, Some(false), |a, b| a && b)),
    ("ArgMax", reduce::arg_max),
    ("ArgMin", reduce::arg_max),
    ("Asin", ew::unary),
    ("Asinh", ew::unary),
    ("Atan", ew::unary),
    ("Atanh", ew::unary),
    ("Attention", linear::attention),
    ("AveragePool", window::pool),
    ("BatchNormalization", norm::batch_normalization),
    ("Bernoulli", generate::like_with_dtype),
    ("BitCast", ew::bit_cast),
    ("BitShift", ew::binary),
    ("BitwiseAnd", ew::binary),
    ("BitwiseNot", ew::unary),
    ("BitwiseOr", ew::binary),
    ("BitwiseXor", ew::binary),
    ("BlackmanWindow", signal::window),
    ("Cast", ew::cast),
    ("CastLike", ew::cast_like),
    ("Ceil", |cx| {
        ew::arithmetic_unary(cx, |d| Some(d.clone()), f64::ceil)
    }),
    ("Celu", ew::unary),
    ("CenterCropPad", slicing::center_crop_pad),
    ("Clip", ew::clip),
    ("Col2Im", window::col2im),
    ("Compress", indexing::compress),
    ("Concat", layout::concat),
    ("Constant", generate::constant),
    ("ConstantOfShape", generate::constant_of_shape),
    ("Conv", window::conv),
    ("ConvInteger", window::conv_integer),
    ("ConvTranspose", window::conv_transpose),
    ("Cos", ew::unary),
    ("Cosh", ew::unary),
    ("CumProd", ew::unary),
    ("CumSum", ew::unary),
    ("DFT", signal::dft),
    ("DeformConv", window::conv),
    ("DepthToSpace", layout::depth_to_space),
    ("DequantizeLinear", quant::dequantize_linear),
    ("Det", signal::det),
    ("Div", ew::div),
    ("Dropout", ew::dropout),
    ("DynamicQuantizeLinear", quant::dynamic_quantize_linear),
    ("Einsum", linear::einsum),
    ("Elu", ew::unary),
    ("Equal", |cx| ew::compare(cx, SymDim::equals, |a, b| a == b)),
    ("Erf", ew::unary),
    ("Exp", ew::unary),
    ("Expand", layout::expand),
    ("EyeLike", generate::like_with_dtype),
    ("Flatten", layout::flatten),
    ("Floor", |cx| {
        ew::arithmetic_unary(cx, |d| Some(d.clone()), f64::floor)
    }),
    ("GRU", |cx| linear::recurrent(cx, 1)),
    ("Gather", indexing::gather),
    ("GatherElements", indexing::gather_elements),
    ("GatherND", indexing::gather_nd),
    ("Gelu", ew::unary),
    ("Gemm", linear::gemm),
    ("GlobalAveragePool", window::global_pool),
    ("GlobalLpPool", window::global_pool),
    ("GlobalMaxPool", window::global_pool),
    ("Greater", |cx| {
        ew::compare(cx, |a, b| b.less(a), |a, b| a > b)
    }),
    ("GreaterOrEqual", |cx| {
        ew::compare(cx, |a, b| a.less(b).map(|l| !l), |a, b| a >= b)
    }),
    ("GridSample", window::grid_sample),
    ("GroupNormalization", ew::unary),
    ("HammingWindow", signal::window),
    ("HannWindow", signal::window),
    ("HardSigmoid", ew::unary),
    ("HardSwish", ew::unary),
    ("Hardmax", ew::unary),
    ("Identity", ew::identity),
    ("ImageDecoder", signal::image_decoder),
    ("InstanceNormalization", ew::unary),
    ("IsInf", ew::test),
    ("IsNaN", ew::test),
    ("LRN", ew::unary),
    ("LSTM", |cx| linear::recurrent(cx, 2)),
    ("LayerNormalization", norm::layer_normalization),
    ("LeakyRelu", ew::unary),
    ("Less", |cx| ew::compare(cx, SymDim::less, |a, b| a < b)),
    ("LessOrEqual", |cx| {
        ew::compare(cx, |a, b| b.less(a).map(|l| !l), |a, b| a <= b)
    }),
    ("Log", ew::unary),
    ("LogSoftmax", ew::unary),
    ("LpNormalization", ew::unary),
    ("LpPool", window::pool),
    ("MatMul", linear::matmul),
    ("MatMulInteger", linear::matmul_integer),
    ("Max", |cx| ew::fold(cx, SymDim::maximum, f64::max)),
    ("MaxPool", window::pool),
    ("MaxRoiPool", window::max_roi_pool),
    ("MaxUnpool", window::max_unpool),
    ("Mean", ew::variadic),
    ("MeanVarianceNormalization", ew::unary),
    ("MelWeightMatrix", signal::mel_weight_matrix),
    ("Min", |cx| ew::fold(cx, SymDim::minimum, f64::min)),
    ("Mish", ew::unary),
    ("Mod", ew::modulo),
    ("Mul", |cx| ew::arithmetic(cx, SymDim::mul, |a, b| a * b)),
    ("Multinomial", generate::multinomial),
    ("Neg", |cx| ew::arithmetic_unary(cx, SymDim::neg, |v| -v)),
    ("NegativeLogLikelihoodLoss", reduce::nll_loss),
    ("NonMaxSuppression", indexing::non_max_suppression),
    ("NonZero", indexing::non_zero),
    ("Not", ew::not),
    ("OneHot", indexing::one_hot),
    ("OptionalGetElement", ew::identity),
    ("OptionalHasElement", indexing::bool_scalar),
    ("Or", |cx| ew::logic(cx, Some(true), |a, b| a || b)),
    ("PRelu", ew::unary),
    ("Pad", slicing::pad),
    ("Pow", ew::pow),
    ("QLinearConv", window::qlinear_conv),
    ("QLinearMatMul", linear::qlinear_matmul),
    ("QuantizeLinear", quant::quantize_linear),
    ("RMSNormalization", ew::unary),
    ("RNN", |cx| linear::recurrent(cx, 1)),
    ("RandomNormal", generate::random),
    ("RandomNormalLike", generate::like_with_dtype),
    ("RandomUniform", generate::random),
    ("RandomUniformLike", generate::like_with_dtype),
    ("Range", generate::range),
    ("Reciprocal", |cx| {
        ew::arithmetic_unary(cx, |_| None, f64::recip)
    }),
    ("ReduceL1", |cx| reduce::reduce(cx, 18)),
    ("ReduceL2", |cx| reduce::reduce(cx, 18)),
    ("ReduceLogSum", |cx| reduce::reduce(cx, 18)),
    ("ReduceLogSumExp", |cx| reduce::reduce(cx, 18)),
    ("ReduceMax", |cx| {
        reduce::reduce_known(cx, 18, SymDim::maximum)
    }),
    ("ReduceMean", |cx| reduce::reduce(cx, 18)),
    ("ReduceMin", |cx| {
        reduce::reduce_known(cx, 18, SymDim::minimum)
    }),
    ("ReduceProd", |cx| reduce::reduce_known(cx, 18, SymDim::mul)),
    ("ReduceSum", |cx| reduce::reduce_known(cx, 13, SymDim::add)),
    ("ReduceSumSquare", |cx| reduce::reduce(cx, 18)),
    ("RegexFullMatch", ew::test),
    ("Relu", ew::unary),
    ("Reshape", layout::reshape),
    ("Resize", window::resize),
    ("ReverseSequence", ew::unary),
    ("RoiAlign", window::roi_align),
    ("RotaryEmbedding", ew::unary),
    ("Round", |cx| {
        ew::arithmetic_unary(cx, |d| Some(d.clone()), ew::round_half_even)
    }),
    ("STFT", signal::stft),
    ("Scatter", ew::unary),
    ("ScatterElements", ew::unary),
    ("ScatterND", indexing::scatter_nd),
    ("Selu", ew::unary),
    ("SequenceLength", indexing::int_scalar),
    ("Shape", layout::shape),
    ("Shrink", ew::unary),
    ("Sigmoid", ew::unary),
    ("Sign", ew::unary),
    ("Sin", ew::unary),
    ("Sinh", ew::unary),
    ("Size", layout::size),
    ("Slice", slicing::slice),
    ("Softmax", ew::unary),
    (
        "SoftmaxCrossEntropyLoss",
        reduce::softmax_cross_entropy_loss,
    ),
    ("Softplus", ew::unary),
    ("Softsign", ew::unary),
    ("SpaceToDepth", layout::space_to_depth),
    ("Split", layout::split),
    ("Sqrt", |cx| ew::arithmetic_unary(cx, |_| None, f64::sqrt)),
    ("Squeeze", layout::squeeze),
    ("StringConcat", signal::string_concat),
    ("StringNormalizer", signal::string_normalizer),
    ("StringSplit", signal::string_split),
    ("Sub", |cx| ew::arithmetic(cx, SymDim::sub, |a, b| a - b)),
    ("Sum", |cx| ew::fold(cx, SymDim::add, |a, b| a + b)),
    ("Swish", ew::unary),
    ("Tan", ew::unary),
    ("Tanh", ew::unary),
    ("TensorScatter", ew::unary),
    ("TfIdfVectorizer", signal::tf_idf),
    ("ThresholdedRelu", ew::unary),
    ("Tile", layout::tile),
    ("TopK", indexing::top_k),
    ("Transpose", layout::transpose),
    ("Trilu", ew::unary),
    ("Unique", indexing::unique),
    ("Unsqueeze", layout::unsqueeze),
    ("Upsample", window::upsample),
    ("Where", ew::where_),
    ("Xor", |cx| ew::logic(cx, None, |a, b| a ^ b)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_each_operator_once() {
        let names: Vec<&str> = LOCAL.iter().map(|(n, _)| *n).collect();
        assert!(names.is_sorted_by(|a, b| a < b));
        assert!(of("Conv").is_some() && of("Loop").is_some());
        assert!(of("FusedConv").is_none() && of("SequenceAt").is_none());
    }
}

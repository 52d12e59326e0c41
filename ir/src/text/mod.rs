//! Models and graphs as text: the ONNX textual syntax, printed and parsed.
//!
//! Tests, logs and diffs are written in it. What is printed without elision is read back to
//! the same model, and `onnx.parser` accepts it wherever its syntax can say the same.
//!
//! ```text
//! <ir_version: 10, opset_import: ["": 21]>
//! classifier (float[N,3,224,224] image) => (float[N,1000] scores)
//! <
//!   float[64,3,7,7] w = random(1),
//!   float[N,64,112,112] y
//! >
//! {
//!   [conv1] y = Conv <strides: ints = [2, 2]> (image, w)
//!   scores = com.example.Head (y, "", "odd name")
//! }
//! ```
//!
//! A type is `float[N,3,?]` (symbol, size, unknown), `float` (a scalar), `float[]` (unknown
//! rank), `seq(…)`, `optional(…)`, `map(int64, …)`, `sparse_tensor(float[3])` or
//! `opaque(domain,name)`. Between the header of a graph and its body stand initializers
//! (`float[2] w = {1, 2}`) and the types of values (`float[N] y`). Names that are no
//! identifiers are quoted; `""` is an absent input or output. Attributes may stand before or
//! after the inputs. Inside a graph that an attribute holds, a name means the nearest
//! definition, from the innermost graph outwards, whatever the order of the operators.
//!
//! # Elements
//!
//! 16-bit and smaller floats are written as integers, which are their bit patterns, as in
//! ONNX. With a point, an exponent, `nan` or `inf` a 16-bit float may also be given by value:
//! `float16[2] h = {1.0, 2.0}` is `float16[2] h = {15360, 16384}`. A complex element is two numbers.
//!
//! # Extensions
//!
//! `onnx.parser` does not know these; printing uses them only where it must.
//!
//! - `w = zeros`, `w = ones`, `w = iota` (0, 1, 2, …) and `w = random(seed)` or
//!   `w = random(seed, low, high)` fill a tensor, so that tests can state big weights shortly.
//!   Floats are uniform in [low, high), by default [-1, 1); integers in low..=high, by default
//!   -8..=7, or 0..=15 where there is no sign; booleans are fair coins. The generator is
//!   SplitMix64, so the elements are the same everywhere. Never printed.
//! - In strings, `\n`, `\r`, `\t`, `\u{2028}` and `\xFF` (one byte, also outside of UTF-8), so
//!   that no control character reaches a terminal.
//! - `nan(0x7fc00001)`: a NaN of these bits. Plain `nan` is the common quiet one.
//! - `sparse_tensor(float[5]) w = float[2] {1, 2} at int64[2] {0, 3}`, and the same without
//!   `w =` as an attribute's value.
//! - Attributes of kind `tensors`, `graphs`, `type_protos`, `sparse_tensors`: lists in brackets.
//! - Quoted operator types, domains and attribute names.
//! - `#: doc_string: "…", metadata_props: ["key": "value"]` after an operator, a value or the `{`
//!   of a graph, where `quantization: ["tensor": ["SCALE_TENSOR": "scale"]]` may follow. To
//!   other readers it is a comment.
//! - `//` starts a comment, as `#` does.
//! - A header without `ir_version` means the first one that allows the opset.
//!
//! # What text does not carry
//!
//! How elements were stored in the file (side files, `raw_data` or typed fields), documentation
//! of attributes and tensors, names of tensors in attributes unless they are identifiers,
//! denotations, device configurations and training information.

mod parse;
mod print;

#[cfg(test)]
mod tests;

pub use parse::{ParseError, parse_graph, parse_model, parse_type};
pub use print::{PrintOptions, print_graph, print_model, print_op};

use crate::attr::AttrKind;

/// How deep graphs in attributes, and types in types, may nest.
const MAX_NESTING: usize = 32;

/// The kinds of attributes by their names in the syntax.
const KINDS: [(&str, AttrKind); 14] = [
    ("float", AttrKind::Float),
    ("int", AttrKind::Int),
    ("string", AttrKind::String),
    ("tensor", AttrKind::Tensor),
    ("graph", AttrKind::Graph),
    ("floats", AttrKind::Floats),
    ("ints", AttrKind::Ints),
    ("strings", AttrKind::Strings),
    ("tensors", AttrKind::Tensors),
    ("graphs", AttrKind::Graphs),
    ("sparse_tensor", AttrKind::SparseTensor),
    ("sparse_tensors", AttrKind::SparseTensors),
    ("type_proto", AttrKind::Type),
    ("type_protos", AttrKind::Types),
];

/// Words that start a type, so that a value of such a name is quoted where a type may stand.
fn is_type_word(word: &str) -> bool {
    crate::tensor::DType::from_name(word).is_some()
        || matches!(
            word,
            "seq" | "optional" | "map" | "sparse_tensor" | "opaque" | "undefined"
        )
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

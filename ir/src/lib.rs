//! The graph, tensors, operator knowledge, analyses and pass interface of paring.
//!
//! This crate knows no protobuf, no inference engine, no YAML and no command line, and it
//! writes no file: a pass depends on it alone. See [`Pass`] for how to write one.

#![forbid(unsafe_code)]

pub mod analysis;
pub mod attr;
pub mod engine;
pub mod graph;
pub mod manager;
pub mod model;
pub mod observe;
pub mod op;
pub mod pass;
pub mod provenance;
pub mod recipe;
pub mod registry;
pub mod report;
pub mod schema;
pub mod select;
pub mod tensor;
pub mod text;
pub mod value;
pub mod verify;

#[cfg(test)]
mod graph_tests;

pub use attr::{AttrKind, AttrValue, Attribute};
pub use graph::{Graph, GraphError, GraphId, OpId, Port, ValueId};
pub use model::{Function, Model, OpsetImport};
pub use op::{NewOp, NewOutput, Op};
pub use pass::{Changed, Conflict, Effect, Pass, PassContext, PassError, PassInfo, Remark};
pub use provenance::{Kept, Provenance};
pub use registry::Registry;
pub use select::{NoOptions, OptionError, OptionSet, Setting};
pub use tensor::{DType, Dims, Element, SparseTensor, Storage, Tensor, TensorError, TensorExtra};
pub use value::{Constant, Dim, InfoList, Name, Shape, Spelling, Use, Value, ValueType};

/// A name from a model made safe to print: control characters are written as escapes, and
/// what is too long for a line of a terminal is cut in the middle.
pub fn escape(text: &str) -> String {
    const LIMIT: usize = 200;
    let mut out = String::with_capacity(text.len().min(2 * LIMIT));
    let count = text.chars().count();
    for (i, c) in text.chars().enumerate() {
        if count > LIMIT && i == LIMIT / 2 {
            out.push('…');
        }
        if count > LIMIT && i >= LIMIT / 2 && i < count - LIMIT / 2 {
            continue;
        }
        if is_unprintable(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and marks that reorder or hide text.
pub(crate) fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

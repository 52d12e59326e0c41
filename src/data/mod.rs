//! Inputs for running models: samples from `.npz` files, seeded random inputs, and the sizes
//! to run with where a model leaves them open.

mod npz;
mod random;
mod shapes;

use std::path::PathBuf;

use paring_ir::{Dim, Graph, OpId, Tensor, escape};

pub use npz::{DataSet, LABEL_ARRAYS};
pub use random::RandomInputs;
pub use shapes::{RunShapes, ShapeOptions};

/// Why there are no inputs for a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no archive of arrays.
    #[error("{}: not a readable .npz file: {reason}; numpy.savez makes one", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An array can't be used.
    #[error("{}: array \"{array}\": {reason}", path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// The array.
        array: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An input of the model has no array.
    #[error("{}: no array for input \"{input}\" ({expected}); {hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The input.
        input: String,
        /// Its type.
        expected: String,
        /// What is there, and which array may be meant.
        hint: String,
    },
    /// The size of an input is not known.
    #[error("input \"{input}\": {reason}")]
    Shape {
        /// The input.
        input: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A limit on accuracy without labels.
    #[error(
        "the limit {limit} wants samples with labels; give --eval FILE.npz with an array \"label\""
    )]
    NoLabels {
        /// The limit.
        limit: &'static str,
    },
    /// A name from the command line that the model doesn't have.
    #[error("the model has no {what} \"{name}\"; {hint}")]
    Unknown {
        /// `input` or `dimension`.
        what: &'static str,
        /// The name.
        name: String,
        /// What there is.
        hint: String,
    },
}

/// A declared shape. Exporters write unknown sizes as -1 and `?`, too, which are no size and no
/// symbol: two of them need not be equal.
pub(crate) fn open_shape(shape: &[Dim]) -> Vec<Dim> {
    let open = |d: &Dim| match d {
        Dim::Value(size) if *size < 0 => Dim::Unknown,
        Dim::Param(p) if p.is_empty() || &**p == "?" => Dim::Unknown,
        d => d.clone(),
    };
    shape.iter().map(open).collect()
}

/// The tensor in an input slot, when it is an initializer or comes from a `Constant` operator.
pub(crate) fn input_constant(graph: &Graph, op: OpId, slot: usize) -> Option<&Tensor> {
    let v = graph.get_op(op)?.input(slot)?;
    graph.tensor(v).or_else(|| {
        let maker = graph.get_op(graph.producer(v)?)?;
        maker.tensor("value").filter(|_| maker.is("Constant"))
    })
}

/// The names that there are, and the nearest to a name that there isn't.
pub(crate) fn suggest<'a>(
    wanted: &str,
    there: impl IntoIterator<Item = &'a str>,
    what: &str,
) -> String {
    const SHOWN: usize = 12;
    let there: Vec<&str> = there.into_iter().collect();
    if there.is_empty() {
        return format!("there are no {what}");
    }
    let shown: Vec<String> = there
        .iter()
        .take(SHOWN)
        .map(|n| format!("\"{}\"", escape(n)))
        .collect();
    let more = if there.len() > SHOWN { ", ..." } else { "" };
    let mut out = format!("{what}: {}{more}", shown.join(", "));
    let nearest = there
        .iter()
        .map(|n| (strsim::jaro_winkler(wanted, n), *n))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, name)) = nearest {
        out.push_str(&format!("; did you mean \"{}\"?", escape(name)));
    }
    out
}

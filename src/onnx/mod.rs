//! ONNX files: the only code that knows protobuf.
//!
//! Reading maps the file and slices it, so that opening a model copies no weight; writing
//! streams the same slices out. A model that nothing changed is written as it was read: the
//! decoded messages are equal, with the order of everything and with what is absent told from
//! what is empty. (An absent key or value in a pair of strings is the one exception: it is
//! read and written as an empty one.)
//!
//! Everything that a file says is hostile until checked: `scan.rs` checks sizes and depth,
//! `external.rs` side files, `read.rs` the rest. Fields that this version of the format
//! doesn't know can't be kept; a warning names them.
//!
//! ```
//! use paring::onnx;
//! use paring_ir::{Graph, Model, NewOp};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut graph = Graph::new("main");
//! let x = graph.add_input("x", None)?;
//! let relu = graph.add_op(NewOp::new("Relu").input(x).output("y"))?;
//! let y = graph.op(relu).output(0).ok_or("one output")?;
//! graph.add_output(y)?;
//! let bytes = onnx::to_bytes(&Model::new(graph, 17))?;
//! let loaded = onnx::read_bytes(bytes.into(), None, &onnx::ReadOptions::default())?;
//! assert_eq!(loaded.model.graph.op_count(), 1);
//! # Ok(())
//! # }
//! ```

mod descriptors;
mod external;
mod map;
mod read;
mod rope;
mod save;
mod scan;
mod tensors;
mod types;
mod wire;
mod write;

#[allow(
    dead_code,
    missing_docs,
    unused_qualifications,
    clippy::all,
    reason = "made by prost-build"
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use paring_ir::{GraphError, Model, escape};

pub use map::OpenError;
pub use save::WriteReport;
pub use scan::ScanError;

/// How a model is read.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// Map files instead of reading them. A mapped file must not be truncated by others while
    /// the model is in use; replacing it by renaming is fine.
    pub mmap: bool,
    /// Follow links to side files, symbolic and hard ones, when they lead into this folder,
    /// such as a download cache. Otherwise links are refused.
    pub follow_links_in: Option<PathBuf>,
}

impl Default for ReadOptions {
    fn default() -> ReadOptions {
        ReadOptions {
            mmap: true,
            follow_links_in: None,
        }
    }
}

/// A model that was read.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// What a user should know: what could not be kept, and what was not checked.
    pub warnings: Vec<String>,
    /// Bytes of the model file and of its side files.
    pub file_bytes: u64,
    /// The side files that hold tensors.
    pub side_files: Vec<PathBuf>,
}

/// Why a model can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file can't be opened or read.
    #[error("can't read {}: {source}", escape(&.path.display().to_string()))]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// There is nothing in it.
    #[error("the file is empty; expected an ONNX model")]
    Empty,
    /// The bytes are no ONNX model.
    #[error("this is {0}, not an ONNX model")]
    OtherFormat(&'static str),
    /// The bytes are no message, or one that must not be decoded.
    #[error("not a valid ONNX model: {0}")]
    Wire(#[from] ScanError),
    /// What the model says can't be true.
    #[error("{}: {problem}", place(.within))]
    Invalid {
        /// Where, outermost first.
        within: Vec<String>,
        /// What was found, and what was expected.
        problem: String,
    },
}

fn place(within: &[String]) -> String {
    if within.is_empty() {
        return "model".to_owned();
    }
    within.join(" / ")
}

/// Why a model can't be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operators can't be put in order.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A value that is captured from outside has the name of a value inside.
    #[error(
        "in function \"{function}\", a graph inside hides the captured value \"{name}\" behind one of \
         the same name; rename one of them"
    )]
    Hidden {
        /// The function.
        function: String,
        /// The name.
        name: String,
    },
    /// More than a protobuf message can hold.
    #[error(
        "the model takes {bytes} bytes, and a protobuf file holds no more than {limit}; {advice}",
        limit = write::LIMIT
    )]
    TooLarge {
        /// What the file would take.
        bytes: u64,
        /// What to do.
        advice: &'static str,
    },
    /// The output is no place for a file.
    #[error("can't write to {}: {problem}", escape(&.path.display().to_string()))]
    Target {
        /// The output.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The operating system refuses. What stood at the output before still does.
    #[error("can't write {}: {source}", escape(&.path.display().to_string()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A stream that was written to fails.
    #[error("can't write the model: {0}")]
    Stream(std::io::Error),
}

/// Where the weights of a written model stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExternalData {
    /// In a side file when the model had one when it was read, or when it would not fit into
    /// one file otherwise; else inside.
    #[default]
    Auto,
    /// In a side file.
    Always,
    /// Inside; a model that is too large for that is not written.
    Never,
}

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Where the weights stand.
    pub external_data: ExternalData,
}

/// Reads a model from a regular file; side files are looked for beside it.
pub fn read_file(path: &Path, options: &ReadOptions) -> Result<Loaded, ReadError> {
    let bytes = map::open(path, options.mmap).map_err(|source| ReadError::Open {
        path: path.to_owned(),
        source,
    })?;
    read_bytes(
        bytes,
        Some(path.parent().unwrap_or(Path::new("."))),
        options,
    )
}

/// Reads a model from a stream, such as standard input, to its end.
pub fn read_stream(
    stream: &mut dyn Read,
    base: Option<&Path>,
    options: &ReadOptions,
) -> Result<Loaded, ReadError> {
    let bytes = map::read_stream(stream).map_err(|source| ReadError::Open {
        path: "standard input".into(),
        source,
    })?;
    read_bytes(bytes, base, options)
}

/// Reads a model from memory. Tensors are slices of the bytes. `base` is the folder of side
/// files; without it a model with side files is refused.
pub fn read_bytes(
    bytes: Bytes,
    base: Option<&Path>,
    options: &ReadOptions,
) -> Result<Loaded, ReadError> {
    read::read(&bytes, base, options)
}

/// Writes a model to a file, whole or not at all: a process that is killed at any moment
/// leaves what stood there before, or the new model. The model may have been read from the
/// same file.
pub fn write_file(
    model: &Model,
    path: &Path,
    options: &WriteOptions,
) -> Result<WriteReport, WriteError> {
    save::save(model, path, options.external_data)
}

/// Writes a model to a stream, such as standard output, with all weights inside.
pub fn write_stream(model: &Model, stream: &mut dyn Write) -> Result<u64, WriteError> {
    let rope = write::inline(model)?;
    rope.write_to(stream).map_err(WriteError::Stream)?;
    stream.flush().map_err(WriteError::Stream)?;
    Ok(rope.len())
}

/// As [`encoded_len`], compressed by zstd at its default level. The compressed bytes are counted and
/// not kept.
pub fn compressed_len(model: &Model) -> Result<u64, WriteError> {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len() as u64);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let level = zstd::DEFAULT_COMPRESSION_LEVEL;
    let mut encoder = zstd::stream::Encoder::new(Count(0), level).map_err(WriteError::Stream)?;
    write_stream(model, &mut encoder)?;
    Ok(encoder.finish().map_err(WriteError::Stream)?.0)
}

/// The bytes that a model takes in a file, with all weights inside.
pub fn encoded_len(model: &Model) -> Result<u64, WriteError> {
    Ok(write::encode(model, None)?.len())
}

/// A model as the bytes of a file, with all weights inside.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, WriteError> {
    Ok(write::inline(model)?.to_vec())
}

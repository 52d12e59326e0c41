//! The messages and fields of the format, as a table made from `proto/onnx.proto` by the
//! build script.

/// A message of the format.
pub(super) struct Message {
    /// The name in the proto file.
    pub(super) name: &'static str,
    /// Bytes that a decoded one takes, without what it points to.
    pub(super) size: usize,
    /// The fields, by number.
    pub(super) fields: &'static [Field],
}

/// A field of a message.
pub(super) struct Field {
    /// The number.
    pub(super) number: u32,
    /// The name.
    pub(super) name: &'static str,
    /// Whether there may be many.
    pub(super) repeated: bool,
    /// What it holds.
    pub(super) kind: Kind,
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Integers and enumerations.
    Varint,
    /// `float`.
    Fixed32,
    /// `double`.
    Fixed64,
    /// UTF-8.
    Text,
    /// Bytes.
    Bytes,
    /// The message at this index of the table.
    Message(usize),
}

include!(concat!(env!("OUT_DIR"), "/descriptors.rs"));

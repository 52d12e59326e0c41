//! An encoded message in pieces: small fields in buffers of our own, large payloads as the
//! slices that they are, so that writing a model never holds its weights twice.

use std::io::{self, Write};

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Payloads from this size on are not copied.
const SHARE: usize = 4096;
/// Buffers are not grown beyond this size.
const CHUNK: usize = 1 << 20;

#[derive(Debug)]
enum Part {
    Owned(Vec<u8>),
    Shared(Bytes),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Owned(v) => v,
            Part::Shared(b) => b,
        }
    }
}

/// Pieces of an encoded message, and their length together.
#[derive(Debug, Default)]
pub(super) struct Rope {
    parts: Vec<Part>,
    len: u64,
}

impl Rope {
    /// The length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends to the last buffer, or to a new one.
    fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let full = match self.parts.last() {
            Some(Part::Owned(v)) => v.len() >= CHUNK,
            _ => true,
        };
        if full {
            self.parts.push(Part::Owned(Vec::new()));
        }
        if let Some(Part::Owned(v)) = self.parts.last_mut() {
            let before = v.len();
            write(v);
            self.len += (v.len() - before) as u64;
        }
    }

    /// The fields of a message, without its length.
    pub(super) fn fields(&mut self, message: &impl Message) {
        let bytes = message.encode_to_vec();
        self.put(|v| v.extend_from_slice(&bytes));
    }

    /// A field that holds a message.
    pub(super) fn message(&mut self, number: u32, message: &impl Message) {
        let bytes = message.encode_to_vec();
        self.raw(number, &bytes);
    }

    /// A field that holds a text.
    pub(super) fn text(&mut self, number: u32, text: &str) {
        self.raw(number, text.as_bytes());
    }

    /// A field that holds a text, when there is one.
    pub(super) fn optional_text(&mut self, number: u32, text: Option<&str>) {
        if let Some(text) = text {
            self.text(number, text);
        }
    }

    /// A length-delimited field whose payload is copied.
    pub(super) fn raw(&mut self, number: u32, payload: &[u8]) {
        self.put(|v| {
            encode_key(number, WireType::LengthDelimited, v);
            encode_varint(payload.len() as u64, v);
            v.extend_from_slice(payload);
        });
    }

    /// A length-delimited field whose payload is shared when it is large.
    pub(super) fn shared(&mut self, number: u32, payload: &Bytes) {
        if payload.len() < SHARE {
            return self.raw(number, payload);
        }
        self.put(|v| {
            encode_key(number, WireType::LengthDelimited, v);
            encode_varint(payload.len() as u64, v);
        });
        self.len += payload.len() as u64;
        self.parts.push(Part::Shared(payload.clone()));
    }

    /// A field that holds an encoded message.
    pub(super) fn nested(&mut self, number: u32, inner: Rope) {
        self.put(|v| {
            encode_key(number, WireType::LengthDelimited, v);
            encode_varint(inner.len, v);
        });
        for part in inner.parts {
            match part {
                Part::Owned(small) if small.len() < CHUNK => {
                    self.put(|v| v.extend_from_slice(&small));
                }
                large => {
                    self.len += large.bytes().len() as u64;
                    self.parts.push(large);
                }
            }
        }
    }

    /// Writes the pieces, one after another.
    pub(super) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        self.parts.iter().try_for_each(|p| out.write_all(p.bytes()))
    }

    /// All bytes.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(usize::try_from(self.len).unwrap_or(0));
        for part in &self.parts {
            out.extend_from_slice(part.bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    #[test]
    fn nested_pieces_are_one_message() {
        let payload = Bytes::from(vec![7u8; SHARE]);
        let mut inner = Rope::default();
        inner.text(1, "a");
        inner.shared(2, &payload);
        inner.text(3, "b");
        let mut outer = Rope::default();
        outer.nested(7, inner);
        let mut expected = vec![0x0a, 1, b'a', 0x12, 0x80, 0x20];
        expected.extend_from_slice(&payload);
        expected.extend_from_slice(&[0x1a, 1, b'b']);
        let length = expected.len() as u64;
        assert_eq!(&outer.to_vec()[3..], &expected[..]);
        assert_eq!(outer.len(), length + 3);
        let mut written = Vec::new();
        outer.write_to(&mut written).unwrap();
        assert_eq!(written, outer.to_vec());
        assert!(outer.parts.iter().any(|p| matches!(p, Part::Shared(_))));
    }
}

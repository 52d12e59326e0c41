//! One pass over the encoded file before anything is decoded.
//!
//! It checks what decoding would stumble over (lengths, numbers, UTF-8, depth), names what
//! decoding would drop (fields that this version of the format doesn't know), and bounds the
//! memory that decoding takes: an empty message is two bytes in the file and hundreds in
//! memory. It allocates nothing but its messages.

use std::collections::BTreeSet;
use std::ops::Range;

use paring_ir::escape;
use prost::Message as _;

use super::descriptors::{self, Field, Kind, MESSAGES, Message};
use super::proto;
use super::wire::{self, Fields, Wire};

/// Messages inside messages that a file may have, as in the protobuf libraries.
const MAX_DEPTH: usize = 100;
/// Graphs inside graphs that a model may have.
pub(super) const MAX_SUBGRAPHS: u32 = 32;
/// What is decoded at once may take this many times its size in the file, ...
const BLOW_UP: u64 = 64;
/// ... and this much more.
const ALLOWANCE: u64 = 16 << 20;
/// What a graph in an attribute takes in memory beside what it holds.
const GRAPH_BYTES: u64 = 1024;
/// Unknown fields that are named; the others are counted.
const NAMED: usize = 20;

/// Why a file can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}, at {path}: {problem}")]
pub struct ScanError {
    /// The byte from the start of the file.
    pub offset: usize,
    /// The message or field, such as `graph.node[3].attribute[0]`.
    pub path: String,
    /// What was found, and what was expected.
    pub problem: String,
}

/// What the pass found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Paths of the first fields that the format doesn't know.
    pub(super) unknown: Vec<String>,
    /// How many there are.
    pub(super) unknown_total: u64,
    /// The side files that tensors name.
    pub(super) locations: BTreeSet<String>,
}

impl Scan {
    /// A sentence on the unknown fields, when there are any.
    pub(super) fn warning(&self) -> Option<String> {
        let first = self.unknown.first()?;
        let mut list = first.clone();
        for path in self.unknown.iter().skip(1) {
            list.push_str(", ");
            list.push_str(path);
        }
        let more = self.unknown_total.saturating_sub(self.unknown.len() as u64);
        if more > 0 {
            list.push_str(&format!(" and {more} more"));
        }
        Some(format!(
            "{} field(s) unknown to this version of the ONNX format are not kept: {list}",
            self.unknown_total
        ))
    }
}

/// Checks an encoded model.
pub(super) fn scan(data: &[u8]) -> Result<Scan, ScanError> {
    let mut scanner = Scanner {
        data,
        out: Scan::default(),
        path: Vec::new(),
        graphs: 0,
    };
    scanner.message(descriptors::MODEL_PROTO, 0..data.len(), 0)?;
    Ok(scanner.out)
}

/// A step from a message to one of its fields.
struct Step {
    field: &'static Field,
    nth: u32,
}

struct Scanner<'a> {
    data: &'a [u8],
    out: Scan,
    path: Vec<Step>,
    graphs: u64,
}

impl Scanner<'_> {
    /// Checks a message, and answers the memory that it takes when it is decoded, without the
    /// parts that the reader decodes one at a time.
    fn message(
        &mut self,
        index: usize,
        range: Range<usize>,
        subgraphs: u32,
    ) -> Result<u64, ScanError> {
        let Some(message) = MESSAGES.get(index) else {
            return Ok(0);
        };
        let mut counts = [0u32; descriptors::MAX_FIELDS];
        let mut memory = message.size as u64;
        let mut fields = Fields::within(self.data, range);
        loop {
            let found = match fields.next() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(memory),
                Err(e) => return Err(self.fail(e.offset, e.problem)),
            };
            let position = message.fields.iter().position(|f| f.number == found.number);
            let Some((i, field)) = position.and_then(|i| Some((i, message.fields.get(i)?))) else {
                self.unknown(found.number);
                continue;
            };
            let nth = counts.get_mut(i).map_or(0, |n| {
                *n = n.saturating_add(1);
                *n - 1
            });
            self.path.push(Step { field, nth });
            let size = self.field(message, field, &found, subgraphs)?;
            memory = memory.saturating_add(size);
            self.path.pop();
        }
    }

    fn field(
        &mut self,
        message: &Message,
        field: &Field,
        found: &wire::Field,
        subgraphs: u32,
    ) -> Result<u64, ScanError> {
        let expected = match field.kind {
            Kind::Varint => Wire::Varint,
            Kind::Fixed32 => Wire::Fixed32,
            Kind::Fixed64 => Wire::Fixed64,
            Kind::Text | Kind::Bytes | Kind::Message(_) => Wire::Bytes,
        };
        let scalar = expected != Wire::Bytes;
        let packed = scalar && field.repeated && found.wire == Wire::Bytes;
        if found.wire != expected && !packed {
            let problem = format!("expected {expected}, found {}", found.wire);
            return Err(self.fail(found.start, problem));
        }
        let body = self.data.get(found.body.clone()).unwrap_or_default();
        match field.kind {
            Kind::Message(inner) => {
                let size = self.nested(message, inner, found, subgraphs)?;
                if message.name == "TensorProto" && field.name == "external_data" {
                    self.location(body);
                }
                Ok(size)
            }
            Kind::Text => match std::str::from_utf8(body) {
                Ok(_) => Ok(24 + body.len() as u64),
                Err(e) => {
                    let offset = found.body.start + e.valid_up_to();
                    Err(self.fail(offset, "the text is not UTF-8"))
                }
            },
            Kind::Bytes => Ok(32),
            _ if !packed => Ok(8),
            _ => self.packed(field.kind, found, body),
        }
    }

    /// The memory of packed scalars, whose number and end are checked.
    fn packed(&self, kind: Kind, found: &wire::Field, body: &[u8]) -> Result<u64, ScanError> {
        let width = match kind {
            Kind::Fixed32 => 4,
            Kind::Fixed64 => 8,
            _ => {
                let mut run = 0;
                for (i, &byte) in body.iter().enumerate() {
                    run = if byte < 0x80 { 0 } else { run + 1 };
                    if run >= 10 {
                        let offset = found.body.start + i;
                        return Err(self.fail(offset, "a number of more than 64 bits"));
                    }
                }
                if run > 0 {
                    return Err(self.fail(found.body.end, "the last number is cut off"));
                }
                let numbers = body.iter().filter(|&&b| b < 0x80).count() as u64;
                return Ok(numbers.saturating_mul(8));
            }
        };
        if !body.len().is_multiple_of(width) {
            let problem = format!("{} bytes are no multiple of {width}", body.len());
            return Err(self.fail(found.start, problem));
        }
        Ok(body.len() as u64)
    }

    fn nested(
        &mut self,
        message: &Message,
        inner: usize,
        found: &wire::Field,
        mut subgraphs: u32,
    ) -> Result<u64, ScanError> {
        if self.path.len() > MAX_DEPTH {
            let problem = format!("messages are nested more than {MAX_DEPTH} deep");
            return Err(self.fail(found.start, problem));
        }
        if inner == descriptors::GRAPH_PROTO && message.name == "AttributeProto" {
            subgraphs += 1;
            self.graphs += 1;
            if subgraphs > MAX_SUBGRAPHS {
                let problem = format!("graphs are nested more than {MAX_SUBGRAPHS} deep");
                return Err(self.fail(found.start, problem));
            }
            self.within_budget(self.graphs * GRAPH_BYTES, self.data.len(), found.start)?;
        }
        let memory = self.message(inner, found.body.clone(), subgraphs)?;
        if !decoded_alone(message, inner) {
            return Ok(memory);
        }
        self.within_budget(memory, found.body.len(), found.start)?;
        Ok(0)
    }

    fn within_budget(&self, memory: u64, length: usize, offset: usize) -> Result<(), ScanError> {
        let budget = (length as u64)
            .saturating_mul(BLOW_UP)
            .saturating_add(ALLOWANCE);
        if memory <= budget {
            return Ok(());
        }
        let problem = format!(
            "{length} bytes of the file would take {memory} bytes of memory, more than the \
             {budget} that are allowed: the file holds too many empty messages"
        );
        Err(self.fail(offset, problem))
    }

    /// Notes the side file that an entry of `external_data` names.
    fn location(&mut self, entry: &[u8]) {
        if let Ok(entry) = proto::StringStringEntryProto::decode(entry)
            && entry.key.as_deref() == Some("location")
            && let Some(location) = entry.value
        {
            self.out.locations.insert(location);
        }
    }

    fn unknown(&mut self, number: u32) {
        self.out.unknown_total += 1;
        if self.out.unknown.len() < NAMED {
            let mut path = self.place();
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&format!("field {number}"));
            self.out.unknown.push(path);
        }
    }

    /// The path of the message or field that is being looked at; empty for the whole file.
    fn place(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(step.field.name);
            if step.field.repeated {
                out.push_str(&format!("[{}]", step.nth));
            }
        }
        out
    }

    fn fail(&self, offset: usize, problem: impl Into<String>) -> ScanError {
        let path = self.place();
        ScanError {
            offset,
            path: if path.is_empty() {
                "the top of the file".to_owned()
            } else {
                escape(&path)
            },
            problem: problem.into(),
        }
    }
}

/// Whether the reader decodes messages of this kind one at a time where they stand in
/// `message`, so that each is bounded by its own size.
fn decoded_alone(message: &Message, inner: usize) -> bool {
    match message.name {
        "ModelProto" | "GraphProto" | "FunctionProto" | "TrainingInfoProto" => true,
        "NodeProto" => inner != descriptors::STRING_STRING_ENTRY_PROTO,
        "AttributeProto" => inner == descriptors::GRAPH_PROTO,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    /// A length-delimited field.
    fn field(number: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut out);
        prost::encoding::encode_varint(body.len() as u64, &mut out);
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let attribute = field(99, b"?");
        let node = field(5, &attribute);
        let graph = [field(1, b""), field(1, &node)].concat();
        let model = [field(7, &graph), field(100, b"")].concat();
        let scan = scan(&model).unwrap();
        assert_eq!(
            scan.unknown,
            ["graph.node[1].attribute[0].field 99", "field 100"]
        );
        assert_eq!(scan.unknown_total, 2);
    }

    #[test]
    fn errors_say_where() {
        let graph = field(1, &field(3, b"\xff"));
        let e = scan(&field(7, &graph)).unwrap_err();
        assert_eq!(
            e.to_string(),
            "byte 6, at graph.node[0].name: the text is not UTF-8"
        );
        let e = scan(&[0x0a, 0x01, 0x00]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "byte 0, at ir_version: expected a varint, found a length-delimited field"
        );
    }

    #[test]
    fn nesting_is_capped_as_in_the_protobuf_libraries() {
        // TypeProto.sequence_type.elem_type, again and again.
        let nest = |levels: usize| {
            let mut ty = Vec::new();
            for _ in 0..levels {
                ty = field(4, &field(1, &ty));
            }
            field(7, &field(11, &field(2, &ty)))
        };
        assert!(scan(&nest(48)).is_ok());
        assert!(
            scan(&nest(60))
                .unwrap_err()
                .problem
                .contains("nested more than 100")
        );
        let graphs = |levels: usize| {
            let mut graph = Vec::new();
            for _ in 0..levels {
                graph = field(1, &field(5, &field(6, &graph)));
            }
            field(7, &graph)
        };
        assert!(scan(&graphs(32)).is_ok());
        assert!(
            scan(&graphs(33))
                .unwrap_err()
                .problem
                .contains("graphs are nested")
        );
    }

    #[test]
    fn empty_messages_have_a_budget() {
        let tensors = field(10, b"").repeat(500_000);
        let e = scan(&field(7, &field(1, &field(5, &tensors)))).unwrap_err();
        assert!(e.problem.contains("too many empty messages"), "{e}");
    }
}

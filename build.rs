//! Compiles `proto/onnx.proto` to Rust without a `protoc` on the machine, and writes the
//! table of its messages and fields by which `src/onnx/scan.rs` walks a file before decoding.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

const PROTO: &str = "proto/onnx.proto";

/// Messages inside messages that are rare: boxed, so that the common ones stay small.
const BOXED: [&str; 6] = [
    ".onnx.AttributeProto.t",
    ".onnx.AttributeProto.g",
    ".onnx.AttributeProto.tp",
    ".onnx.AttributeProto.sparse_tensor",
    ".onnx.ValueInfoProto.type",
    ".onnx.TensorProto.segment",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO}");
    println!("cargo:rerun-if-changed=build.rs");
    let files = protox::compile([PROTO], ["proto"])?;
    let mut messages = Vec::new();
    for file in &files.file {
        for message in &file.message_type {
            collect(message, "", "", &mut |m| messages.push(m));
        }
    }
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.rs"), table(&messages)?)?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    for field in BOXED {
        config.boxed(field);
    }
    config.compile_fds(files)?;
    Ok(())
}

/// A message: its name in the proto file, its Rust path, and its fields.
struct Message {
    name: String,
    rust: String,
    fields: Vec<Field>,
}

struct Field {
    number: i32,
    name: String,
    repeated: bool,
    kind: Kind,
}

enum Kind {
    Varint,
    Fixed32,
    Fixed64,
    Text,
    Bytes,
    Message(String),
}

/// Hands a message and those declared inside it to `found`.
fn collect(
    message: &protox::prost_reflect::prost_types::DescriptorProto,
    outer: &str,
    module: &str,
    found: &mut dyn FnMut(Message),
) {
    let name = format!("{outer}.{}", message.name());
    let fields = message.field.iter().map(|f| Field {
        number: f.number(),
        name: f.name().to_owned(),
        repeated: f.label() as i32 == 3,
        kind: kind(f.r#type() as i32, f.type_name()),
    });
    found(Message {
        name: name.trim_start_matches('.').to_owned(),
        rust: format!("{module}{}", message.name()),
        fields: fields.collect(),
    });
    let inner = format!("{module}{}::", snake_case(message.name()));
    for nested in &message.nested_type {
        collect(nested, &name, &inner, found);
    }
}

/// The kind of a field by its number in `FieldDescriptorProto.Type`.
fn kind(code: i32, type_name: &str) -> Kind {
    match code {
        1 | 6 | 16 => Kind::Fixed64,
        2 | 7 | 15 => Kind::Fixed32,
        9 => Kind::Text,
        11 => Kind::Message(type_name.trim_start_matches(".onnx.").to_owned()),
        12 => Kind::Bytes,
        _ => Kind::Varint,
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// The table as Rust source: a constant with the index of each message, then the messages.
fn table(messages: &[Message]) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    for (i, m) in messages.iter().enumerate() {
        let constant = snake_case(&m.name.replace('.', "")).to_uppercase();
        writeln!(
            out,
            "#[allow(dead_code, reason = \"only some are named in code\")]"
        )?;
        writeln!(out, "pub(super) const {constant}: usize = {i};")?;
    }
    let most = messages.iter().map(|m| m.fields.len()).max().unwrap_or(0);
    writeln!(out, "pub(super) const MAX_FIELDS: usize = {most};")?;
    writeln!(out, "pub(super) static MESSAGES: &[Message] = &[")?;
    for m in messages {
        let size = format!("size_of::<super::proto::{}>()", m.rust);
        writeln!(
            out,
            "    Message {{ name: {:?}, size: {size}, fields: &[",
            m.name
        )?;
        for f in &m.fields {
            let kind = match &f.kind {
                Kind::Varint => "Kind::Varint".to_owned(),
                Kind::Fixed32 => "Kind::Fixed32".to_owned(),
                Kind::Fixed64 => "Kind::Fixed64".to_owned(),
                Kind::Text => "Kind::Text".to_owned(),
                Kind::Bytes => "Kind::Bytes".to_owned(),
                Kind::Message(name) => {
                    let index = messages.iter().position(|m| m.name == *name);
                    format!(
                        "Kind::Message({})",
                        index.ok_or("a message that is not declared")?
                    )
                }
            };
            writeln!(
                out,
                "        Field {{ number: {}, name: {:?}, repeated: {}, kind: {kind} }},",
                f.number, f.name, f.repeated
            )?;
        }
        writeln!(out, "    ] }},")?;
    }
    writeln!(out, "];")?;
    Ok(out)
}

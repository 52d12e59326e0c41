//! Provenance in a file: one compact entry of the model's `metadata_props`.
//!
//! The entry `paring.provenance` holds JSON:
//!
//! ```json
//! {"version":1,"passes":["fold-batch-norm"],
//!  "operators":{"conv1":{"by":[0],"from":["conv1","bn1"]}},
//!  "tensors":{"conv1.weight":{"by":[0],"from":["conv1.weight","bn1.scale"],"kept":{"0":"0-15,32"}}}}
//! ```
//!
//! `by` counts into `passes`; `from` is left out where it is the thing's own name; `kept` gives
//! the kept indices by axis as ranges. Names are those of the file that was read first: a model
//! that is rewritten twice keeps its first origins.
//!
//! An entry past a few hundred bytes is packed, since files of small models would grow by a tenth
//! else: `{"version":2,"deflate":"..."}` holds the object above, compressed as a zlib stream
//! (RFC 1950), in base64 (RFC 4648, section 4).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use paring_ir::{Graph, GraphError, Kept, Model, Name, Provenance};
use serde::{Deserialize, Serialize};

/// The key of the metadata entry.
pub const KEY: &str = "paring.provenance";

#[derive(Serialize, Deserialize, Default)]
struct Record {
    version: u32,
    passes: Vec<Name>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    operators: BTreeMap<Name, Origin>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tensors: BTreeMap<Name, Origin>,
}

/// A record that is packed.
#[derive(Serialize, Deserialize)]
struct Packed {
    version: u32,
    deflate: String,
}

/// Records of so many bytes are packed.
const LONG: usize = 512;
/// At most so many bytes are unpacked: the entry may come from anywhere.
const MOST_BYTES: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Origin {
    by: Vec<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    from: Vec<Name>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    kept: BTreeMap<u32, String>,
}

/// Writes the provenance of all operators and tensors into the metadata entry, or removes the
/// entry when there is none.
pub fn attach(model: &mut Model) {
    let mut record = Record {
        version: 1,
        ..Record::default()
    };
    model.for_each_graph(&mut |graph| collect(graph, &mut record));
    detach(model);
    if record.operators.is_empty() && record.tensors.is_empty() {
        return;
    }
    // Maps with string keys and plain values always serialize.
    if let Ok(text) = serde_json::to_string(&record) {
        let text = if text.len() < LONG {
            text
        } else {
            packed(text)
        };
        model.metadata.push((KEY.into(), text.into()));
    }
}

/// The shorter of a text and its packed form.
fn packed(text: String) -> String {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    let bytes = encoder.write_all(text.as_bytes());
    let form = bytes
        .and_then(|()| encoder.finish())
        .ok()
        .and_then(|bytes| {
            let deflate = STANDARD.encode(bytes);
            serde_json::to_string(&Packed {
                version: 2,
                deflate,
            })
            .ok()
        });
    form.filter(|f| f.len() < text.len()).unwrap_or(text)
}

/// The record that an entry holds, packed or not.
fn parse(text: &str) -> Result<Record, String> {
    let Ok(packed) = serde_json::from_str::<Packed>(text) else {
        return serde_json::from_str(text).map_err(|e| e.to_string());
    };
    let bytes = STANDARD
        .decode(&packed.deflate)
        .map_err(|e| e.to_string())?;
    let mut text = String::new();
    let mut inner = ZlibDecoder::new(bytes.as_slice()).take(MOST_BYTES);
    inner.read_to_string(&mut text).map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

/// Removes the metadata entry.
pub fn detach(model: &mut Model) {
    model.metadata.retain(|(k, _)| &**k != KEY);
}

fn collect(graph: &Graph, record: &mut Record) {
    for op in graph.ops() {
        if let Some(p) = graph.op(op).provenance() {
            let label = graph.op_label(op);
            let origin = encode(&mut record.passes, p, &label);
            record.operators.insert(label, origin);
        }
    }
    for v in graph.initializers() {
        let value = graph.value(v);
        if let Some(p) = value.provenance() {
            let origin = encode(&mut record.passes, p, value.name());
            record.tensors.insert(value.name().clone(), origin);
        }
    }
}

fn encode(passes: &mut Vec<Name>, p: &Provenance, own: &Name) -> Origin {
    let by = p
        .passes
        .iter()
        .map(|name| {
            passes.iter().position(|p| p == name).unwrap_or_else(|| {
                passes.push(name.clone());
                passes.len() - 1
            })
        })
        .collect();
    let from = if p.from.len() == 1 && p.from[0] == *own {
        Vec::new()
    } else {
        p.from.clone()
    };
    // Where an axis was cut twice, the later cut counts into what the earlier one left.
    let mut kept: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for k in &p.kept {
        let composed = match kept.get(&k.axis) {
            Some(before) => k
                .indices
                .iter()
                .filter_map(|&i| before.get(i as usize).copied())
                .collect(),
            None => k.indices.to_vec(),
        };
        kept.insert(k.axis, composed);
    }
    Origin {
        by,
        from,
        kept: kept.into_iter().map(|(a, k)| (a, to_ranges(&k))).collect(),
    }
}

/// Puts the origins that the metadata entry records back on operators and tensors. An entry that
/// can't be read is ignored, with a warning as the result.
pub fn restore(model: &mut Model) -> Result<Option<String>, GraphError> {
    let Some((_, text)) = model.metadata.iter().find(|(k, _)| &**k == KEY) else {
        return Ok(None);
    };
    let record = match parse(text) {
        Ok(r) => r,
        Err(e) => {
            return Ok(Some(format!(
                "the metadata entry {KEY} can't be read and is ignored: {e}"
            )));
        }
    };
    if record.version != 1 {
        return Ok(Some(format!(
            "the metadata entry {KEY} is of version {}, which is not known here, and is ignored",
            record.version
        )));
    }
    let mut budget = MOST_INDICES;
    model.edit_graphs(&mut |graph| restore_graph(graph, &record, &mut budget))?;
    Ok(None)
}

fn restore_graph(graph: &mut Graph, record: &Record, budget: &mut usize) -> Result<(), GraphError> {
    let ops: Vec<_> = graph.ops().collect();
    for op in ops {
        let label = graph.op_label(op);
        if let Some(origin) = record.operators.get(&label) {
            let origin = decode(&record.passes, origin, &label, budget);
            graph.restore_op_provenance(op, origin)?;
        }
    }
    let tensors: Vec<_> = graph.initializers().collect();
    for v in tensors {
        let name = graph.value(v).name().clone();
        if let Some(origin) = record.tensors.get(&name) {
            let origin = decode(&record.passes, origin, &name, budget);
            graph.restore_value_provenance(v, origin)?;
        }
    }
    Ok(())
}

fn decode(passes: &[Name], origin: &Origin, own: &Name, budget: &mut usize) -> Arc<Provenance> {
    Arc::new(Provenance {
        passes: origin
            .by
            .iter()
            .filter_map(|&i| passes.get(i).cloned())
            .collect(),
        from: if origin.from.is_empty() {
            vec![own.clone()]
        } else {
            origin.from.clone()
        },
        kept: origin
            .kept
            .iter()
            .map(|(&axis, ranges)| Kept {
                axis,
                indices: from_ranges(ranges, budget).into(),
            })
            .collect(),
    })
}

fn to_ranges(indices: &[u32]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut i = 0;
    while i < indices.len() {
        let mut j = i;
        while j + 1 < indices.len() && indices[j].checked_add(1) == Some(indices[j + 1]) {
            j += 1;
        }
        parts.push(if i == j {
            indices[i].to_string()
        } else {
            format!("{}-{}", indices[i], indices[j])
        });
        i = j + 1;
    }
    parts.join(",")
}

/// At most this many indices are read back from one file, which may come from anywhere.
const MOST_INDICES: usize = 1 << 24;

fn from_ranges(text: &str, budget: &mut usize) -> Vec<u32> {
    let mut out = Vec::new();
    for part in text.split(',') {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        let (Ok(a), Ok(b)) = (a.parse::<u32>(), b.parse::<u32>()) else {
            continue;
        };
        for i in a..=b {
            let Some(left) = budget.checked_sub(1) else {
                return out;
            };
            *budget = left;
            out.push(i);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;

    #[test]
    fn ranges_round_trip() {
        let indices = [0, 1, 2, 5, 7, 8, u32::MAX];
        assert_eq!(to_ranges(&indices), format!("0-2,5,7-8,{}", u32::MAX));
        assert_eq!(from_ranges(&to_ranges(&indices), &mut 100), indices);
        assert_eq!(from_ranges("x,3-1,2", &mut 100), [2]);
        let mut budget = 1000;
        assert_eq!(from_ranges("0-4294967295", &mut budget).len(), 1000);
        assert_eq!(from_ranges("0-4294967295", &mut budget).len(), 0);
    }

    #[test]
    fn long_records_are_packed_and_read_again() {
        let mut record = Record {
            version: 1,
            passes: vec!["fold-batch-norm".into()],
            ..Record::default()
        };
        for i in 0..100 {
            let origin = Origin {
                by: vec![0],
                from: vec![
                    format!("layer.{i}.conv").into(),
                    format!("layer.{i}.bn").into(),
                ],
                kept: BTreeMap::new(),
            };
            record
                .operators
                .insert(format!("layer.{i}.conv").into(), origin);
        }
        let text = serde_json::to_string(&record).unwrap();
        let short = packed(text.clone());
        assert!(
            short.len() * 4 < text.len(),
            "{} of {}",
            short.len(),
            text.len()
        );
        let back = parse(&short).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert_eq!(serde_json::to_string(&parse(&text).unwrap()).unwrap(), text);
        assert!(parse(r#"{"version":2,"deflate":"!"}"#).is_err());
        assert!(parse(r#"{"version":2,"deflate":"AAAA"}"#).is_err());
    }

    #[test]
    fn a_second_cut_counts_into_the_first() {
        let p = Provenance {
            passes: vec!["remove-channels".into()],
            from: vec!["w".into()],
            kept: vec![
                Kept {
                    axis: 0,
                    indices: [1, 3, 5].into(),
                },
                Kept {
                    axis: 0,
                    indices: [0, 2].into(),
                },
            ],
        };
        let origin = encode(&mut Vec::new(), &p, &"w".into());
        assert_eq!(origin.kept[&0], "1,5");
        assert!(origin.from.is_empty());
    }
}

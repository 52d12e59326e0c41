//! Reads the table `operators.txt`; its format is described at its top.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{AttrDefault, AttrSchema, OpSchema, Param, Presence, TypeSet};
use crate::attr::AttrKind;
use crate::tensor::DType;

static TABLE: &str = include_str!("operators.txt");

/// The element type's place in the bit sets.
pub(super) fn bit(dtype: DType) -> u32 {
    1 << dtype.to_onnx()
}

/// The comment, the sets and the operators are separated by empty lines.
fn part(index: usize) -> &'static str {
    TABLE.split("\n\n").nth(index).unwrap_or_default()
}

/// The operators with the lines of their versions, in the order of the table.
pub(super) fn operators() -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut rest = part(2);
    std::iter::from_fn(move || {
        let (name, after) = rest.split_once('\n')?;
        let end: usize = after
            .split_inclusive('\n')
            .take_while(|line| line.starts_with(' '))
            .map(str::len)
            .sum();
        let (lines, next) = after.split_at_checked(end)?;
        rest = next;
        Some((name, lines))
    })
}

/// The named sets of element types.
static SETS: LazyLock<HashMap<&'static str, u32>> = LazyLock::new(|| {
    let mut sets = HashMap::new();
    for (name, members) in part(1).lines().filter_map(|line| line.split_once(" = ")) {
        let set = members
            .split(' ')
            .filter_map(|m| member(&sets, m))
            .fold(0, |a, b| a | b);
        sets.insert(name, set);
    }
    sets
});

fn member(sets: &HashMap<&'static str, u32>, name: &str) -> Option<u32> {
    sets.get(name)
        .copied()
        .or_else(|| DType::from_name(name).map(bit))
}

/// The versions of an operator. The error quotes the part that does not fit the format.
pub(super) fn versions(name: &'static str, text: &'static str) -> Result<Vec<OpSchema>, String> {
    let mut versions: Vec<OpSchema> = Vec::new();
    for line in text.lines() {
        let version = version(name, line.trim_start(), versions.last())
            .map_err(|part| format!("{name}: `{part}` in `{line}`"))?;
        versions.push(version);
    }
    Ok(versions)
}

fn version(
    name: &'static str,
    line: &'static str,
    before: Option<&OpSchema>,
) -> Result<OpSchema, &'static str> {
    let (since, rest) = line.split_once(' ').ok_or(line)?;
    let mut fields = rest.split('|').map(str::trim);
    let (params, attrs, types) = (
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
        fields.next().unwrap_or_default(),
    );
    let types = match (types, before) {
        ("=", Some(before)) => before.types.clone(),
        _ => list(types, type_parameter)?,
    };
    let (inputs, outputs) = match (params, before) {
        ("=", Some(before)) => (
            retyped(&before.inputs, &types)?,
            retyped(&before.outputs, &types)?,
        ),
        _ => {
            let (inputs, outputs) = params.split_once("->").ok_or(params)?;
            (
                list(inputs, |p| parameter(p, &types))?,
                list(outputs, |p| parameter(p, &types))?,
            )
        }
    };
    Ok(OpSchema {
        name,
        since: since.trim_end_matches('!').parse().map_err(|_| since)?,
        deprecated: since.ends_with('!'),
        inputs,
        outputs,
        attrs: match (attrs, before) {
            ("=", Some(before)) => before.attrs.clone(),
            _ => list(attrs, attribute)?,
        },
        types,
    })
}

fn list<T>(
    text: &'static str,
    item: impl Fn(&'static str) -> Result<T, &'static str>,
) -> Result<Vec<T>, &'static str> {
    text.split_ascii_whitespace().map(item).collect()
}

fn type_parameter(text: &'static str) -> Result<(&'static str, TypeSet), &'static str> {
    let (name, sets) = text.split_once('=').ok_or(text)?;
    let mut types = TypeSet::default();
    for part in sets.split('/') {
        let (field, set) = match part.split_once(':') {
            None => (&mut types.tensor, part),
            Some(("seq", set)) => (&mut types.sequence, set),
            Some(("opt", set)) => (&mut types.optional, set),
            Some(("optseq", set)) => (&mut types.optional_sequence, set),
            Some(_) => return Err(part),
        };
        for name in set.split('+') {
            *field |= member(&SETS, name).ok_or(name)?;
        }
    }
    Ok((name, types))
}

fn types_of(name: &'static str, types: &[(&str, TypeSet)]) -> Result<TypeSet, &'static str> {
    let parameter = types.iter().find(|(n, _)| *n == name).map(|(_, t)| *t);
    let fixed = || {
        DType::from_name(name).map(|d| TypeSet {
            tensor: bit(d),
            ..TypeSet::default()
        })
    };
    parameter.or_else(fixed).ok_or(name)
}

fn retyped(params: &[Param], types: &[(&str, TypeSet)]) -> Result<Vec<Param>, &'static str> {
    let retype = |p: &Param| {
        Ok(Param {
            types: types_of(p.type_name, types)?,
            ..p.clone()
        })
    };
    params.iter().map(retype).collect()
}

fn parameter(text: &'static str, types: &[(&str, TypeSet)]) -> Result<Param, &'static str> {
    let (name, rest) = text.split_once(':').ok_or(text)?;
    let (type_name, presence) = match rest.find(['?', '*', '~']) {
        None => (rest, Presence::Required),
        Some(at) => {
            let (type_name, mark) = rest.split_at(at);
            let min = match mark.get(1..).unwrap_or_default() {
                "" => 1,
                min => min.parse().map_err(|_| text)?,
            };
            let presence = match mark.starts_with('?') {
                true => Presence::Optional,
                false => Presence::Variadic {
                    min,
                    homogeneous: mark.starts_with('*'),
                },
            };
            (type_name, presence)
        }
    };
    Ok(Param {
        name,
        presence,
        type_name,
        types: types_of(type_name, types)?,
    })
}

fn attribute(text: &'static str) -> Result<AttrSchema, &'static str> {
    let (name, rest) = text.split_once(':').ok_or(text)?;
    let (kind, default) = match rest.split_once('=') {
        Some((kind, default)) => (kind, Some(default)),
        None => (rest, None),
    };
    let required = kind.ends_with('!');
    let kind = kind_named(kind.trim_end_matches('!')).ok_or(text)?;
    let default = match default {
        None => None,
        Some(v) => Some(default_of(kind, v).ok_or(text)?),
    };
    Ok(AttrSchema {
        name,
        kind,
        required,
        default,
    })
}

fn kind_named(name: &str) -> Option<AttrKind> {
    Some(match name {
        "float" => AttrKind::Float,
        "int" => AttrKind::Int,
        "string" => AttrKind::String,
        "tensor" => AttrKind::Tensor,
        "graph" => AttrKind::Graph,
        "floats" => AttrKind::Floats,
        "ints" => AttrKind::Ints,
        "strings" => AttrKind::Strings,
        "sparse_tensor" => AttrKind::SparseTensor,
        "type" => AttrKind::Type,
        _ => return None,
    })
}

fn default_of(kind: AttrKind, text: &'static str) -> Option<AttrDefault> {
    Some(match kind {
        AttrKind::Int => AttrDefault::Int(text.parse().ok()?),
        AttrKind::Float => AttrDefault::Float(text.parse().ok()?),
        AttrKind::String => AttrDefault::String(text),
        AttrKind::Ints => {
            let numbers: Result<_, _> = text.split(',').map(str::parse).collect();
            AttrDefault::Ints(numbers.ok()?)
        }
        AttrKind::Strings => AttrDefault::Strings(text.split(',').collect()),
        _ => return None,
    })
}

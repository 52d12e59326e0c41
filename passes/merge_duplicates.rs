//! `merge-duplicates`: what is computed twice is computed once, and equal weights are kept once.
//!
//! ```text
//! before   a = Relu (x)         after   a = Relu (x)
//!          b = Relu (x)                 y = Add (a, a)
//!          y = Add (a, b)
//! ```
//!
//! Two operators are duplicates when type, attributes (floats bit by bit) and operands are
//! equal, those of commutative operators in any order. One sweep in the order of the data flow
//! finds duplicates of duplicates too. Merged are standard operators that are functions of their
//! operands, and those of domains that the user declares to hold only such (`pure-domains`);
//! never random ones, control flow, or operators that hold graphs.
//!
//! Two initializers are duplicates when element type, shape and every bit agree. Within graphs
//! in attributes an initializer of at least 1024 bytes that the enclosing graph holds too is
//! captured from there.
//!
//! Left alone: results that are both graph outputs (`graph-output`), initializers that a graph
//! input shadows, and those that a quantization annotation names.

use std::collections::{HashMap, HashSet};

use paring_ir::pass::{Remark, RemarkKind};
use paring_ir::{
    AttrValue, Changed, DType, Effect, Graph, Model, Name, Op, OpId, OptionError, OptionSet, Pass,
    PassContext, PassError, PassInfo, Tensor, ValueId, schema,
};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

/// See the text at the top of the file.
#[derive(Debug)]
pub struct MergeDuplicates {
    options: OptionSet<Options>,
}

/// What may be merged.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    /// Domains whose operators give equal results for equal operands, whenever they run.
    /// None by default: nothing is known about operators of other domains.
    #[schemars(extend("x-scope" = "pass"))]
    pub pure_domains: Vec<String>,
}

/// An initializer in an inner graph is worth a capture from this size on; a small one is
/// cheaper to look at where it is used.
const MIN_CAPTURED_BYTES: usize = 1024;

impl Pass for MergeDuplicates {
    const INFO: PassInfo = PassInfo::new(
        "merge-duplicates",
        "Compute equal things once and keep equal weights once",
        Effect::Exact,
    );
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(MergeDuplicates { options })
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let functions: HashSet<(Name, Name)> = model
            .functions
            .iter()
            .map(|f| (f.domain.clone(), f.name.clone()))
            .collect();
        model.edit_graphs(&mut |graph| {
            changed |= merge_initializers(graph, cx)?;
            changed |= share_with_inner(graph)?;
            changed |= self.merge_operators(graph, &functions, cx)?;
            Ok::<(), PassError>(())
        })?;
        Ok(changed)
    }
}

impl MergeDuplicates {
    fn merge_operators(
        &self,
        graph: &mut Graph,
        functions: &HashSet<(Name, Name)>,
        cx: &mut PassContext<'_>,
    ) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut seen: HashMap<u64, SmallVec<[OpId; 1]>> = HashMap::with_capacity(graph.op_count());
        let mut buffer = Vec::new();
        for op in graph.topological_order()? {
            let o = graph.op(op);
            // A model may bring a function that stands in for a standard operator.
            let overridden = !functions.is_empty()
                && functions.contains(&(o.domain().clone(), o.op_type().clone()));
            if overridden || !self.is_pure(o) || self.options.for_op(graph, op).is_skip() {
                continue;
            }
            let same = seen.entry(fingerprint(o, &mut buffer)).or_default();
            let Some(&first) = same.iter().find(|&&s| is_same(graph.op(s), o)) else {
                same.push(op);
                continue;
            };
            changed |= merge(graph, op, first, cx)?;
        }
        Ok(changed)
    }

    fn is_pure(&self, op: &Op) -> bool {
        let declared = self
            .options
            .whole()
            .pure_domains
            .iter()
            .any(|d| **d == **op.domain());
        schema::is_pure_standard(op) || (declared && !op.domain().is_empty() && !op.has_subgraphs())
    }
}

/// The operands as they count for equality.
fn operands(op: &Op) -> SmallVec<[Option<ValueId>; 4]> {
    let mut inputs: SmallVec<[_; 4]> = op.inputs().collect();
    if inputs.len() > 1 && schema::of(op).is_some_and(|k| k.commutative) {
        inputs.sort_unstable();
    }
    inputs
}

/// A hash that duplicates share. The buffer is working space.
fn fingerprint(op: &Op, buffer: &mut Vec<u8>) -> u64 {
    // The order of attributes says nothing, so their hashes are added up.
    let mut attrs = 0u64;
    for a in op.attrs() {
        buffer.clear();
        buffer.extend_from_slice(a.name.as_bytes());
        write_attr(&a.value, buffer);
        attrs = attrs.wrapping_add(xxh3_64(buffer));
    }
    buffer.clear();
    buffer.extend_from_slice(op.op_type().as_bytes());
    buffer.extend_from_slice(op.domain().as_bytes());
    for v in operands(op) {
        let index = v.map_or(u64::MAX, |v| v.index() as u64);
        buffer.extend_from_slice(&index.to_le_bytes());
    }
    buffer.extend_from_slice(&attrs.to_le_bytes());
    xxh3_64(buffer)
}

/// Writes what is cheap to hash; the rest is told apart by comparing.
fn write_attr(value: &AttrValue, buffer: &mut Vec<u8>) {
    buffer.push(value.kind() as u8);
    let mut put = |bytes: &[u8]| buffer.extend_from_slice(bytes);
    match value {
        AttrValue::Int(v) => put(&v.to_le_bytes()),
        AttrValue::Float(v) => put(&v.to_bits().to_le_bytes()),
        AttrValue::String(v) => put(v),
        AttrValue::Ints(v) => v.iter().for_each(|v| put(&v.to_le_bytes())),
        AttrValue::Floats(v) => v.iter().for_each(|v| put(&v.to_bits().to_le_bytes())),
        AttrValue::Strings(v) => v.iter().for_each(|v| put(v)),
        AttrValue::Tensor(t) => put(&sample(t).to_le_bytes()),
        _ => {}
    }
}

fn is_same(a: &Op, b: &Op) -> bool {
    a.op_type() == b.op_type()
        && a.domain() == b.domain()
        && a.overload() == b.overload()
        && a.outputs().len() == b.outputs().len()
        && a.attrs().len() == b.attrs().len()
        && a.attrs()
            .iter()
            .all(|x| b.attr(&x.name).is_some_and(|y| x.value.same(y)))
        && operands(a) == operands(b)
}

/// Makes everything that takes the results of `op` take those of `first`.
fn merge(
    graph: &mut Graph,
    op: OpId,
    first: OpId,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let pairs: Vec<(ValueId, Option<ValueId>)> = graph
        .op(op)
        .outputs()
        .iter()
        .zip(graph.op(first).outputs())
        .filter_map(|(&old, &new)| Some((old?, new)))
        .filter(|&(old, _)| !graph.value(old).is_unused())
        .collect();
    let name = paring_ir::escape(&graph.op_label(first));
    for &(old, new) in &pairs {
        let fits = new.is_some_and(|new| graph.can_replace(old, new));
        if !fits {
            let (code, why) = match new {
                None => ("absent-output", "doesn't give all the results"),
                Some(_) if graph.value(old).is_output() => ("graph-output", "is an output too"),
                Some(_) => ("declared-type", "is declared to have another type"),
            };
            cx.missed(
                graph,
                op,
                code,
                format!("\"{name}\" computes the same and {why}"),
            );
            return Ok(Changed::No);
        }
    }
    cx.applied(graph, op, "merged", format!("\"{name}\" computes the same"));
    for (old, new) in pairs {
        if let Some(new) = new {
            graph.replace_value(old, new)?;
        }
    }
    graph.remove_op(op)?;
    Ok(Changed::Yes)
}

/// A hash of element type, shape and a few bytes: cheap enough for gigabytes of weights.
fn sample(t: &Tensor) -> u64 {
    const PART: usize = 64;
    let mut parts: SmallVec<[u8; 256]> = SmallVec::new();
    parts.push(t.dtype() as u8);
    for &d in t.dims() {
        parts.extend_from_slice(&(d as u64).to_le_bytes());
    }
    let bytes = t.bytes();
    let mut part = |from: usize| {
        let part = bytes.get(from..(from + PART).min(bytes.len()));
        parts.extend_from_slice(part.unwrap_or(&[]));
    };
    part(0);
    part(bytes.len() / 2);
    part(bytes.len().saturating_sub(PART));
    for s in t.strings().unwrap_or(&[]).iter().take(PART) {
        parts.extend_from_slice(s);
    }
    xxh3_64(&parts)
}

/// The initializers that may be merged, in order.
fn mergeable(graph: &Graph) -> Vec<ValueId> {
    let annotated: HashSet<&Name> = graph
        .extra()
        .quantization_annotations
        .iter()
        .flat_map(|a| a.tensor.iter().chain(a.parameters.iter().map(|(_, v)| v)))
        .collect();
    graph
        .initializers()
        .filter(|&v| graph.tensor(v).is_some() && !annotated.contains(graph.value(v).name()))
        .collect()
}

fn merge_initializers(graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    let mut seen: HashMap<u64, SmallVec<[ValueId; 1]>> = HashMap::new();
    for v in mergeable(graph) {
        let Some(tensor) = graph.tensor(v) else {
            continue;
        };
        let same = seen.entry(sample(tensor)).or_default();
        let Some(&first) = same.iter().find(|&&s| graph.tensor(s) == Some(tensor)) else {
            same.push(v);
            continue;
        };
        if graph.value(v).is_output() || !graph.can_replace(v, first) {
            continue;
        }
        cx.remarks.push(Remark {
            kind: RemarkKind::Applied,
            op: graph.value(v).name().to_string(),
            op_type: "initializer".to_owned(),
            code: "merged-initializer".to_owned(),
            message: format!(
                "equal to \"{}\"; {} bytes",
                paring_ir::escape(graph.value(first).name()),
                tensor.byte_len()
            ),
        });
        graph.replace_value(v, first)?;
        graph.remove_value(v)?;
        changed = Changed::Yes;
    }
    Ok(changed)
}

/// Makes inner graphs capture the larger initializers that this graph holds as well.
fn share_with_inner(graph: &mut Graph) -> Result<Changed, PassError> {
    let owners: Vec<OpId> = graph.ops_with_subgraphs().collect();
    if owners.is_empty() {
        return Ok(Changed::No);
    }
    let large = |t: &Tensor| t.byte_len() >= MIN_CAPTURED_BYTES && t.dtype() != DType::String;
    let mut held: HashMap<u64, Vec<(ValueId, Name, Tensor)>> = HashMap::new();
    for v in mergeable(graph) {
        if let Some(t) = graph.tensor(v).filter(|t| large(t)) {
            let entry = (v, graph.value(v).name().clone(), t.clone());
            held.entry(sample(t)).or_default().push(entry);
        }
    }
    let mut changed = Changed::No;
    for op in owners {
        graph.edit_subgraphs(op, |_, inner| {
            for v in mergeable(inner) {
                let Some(tensor) = inner.tensor(v).filter(|t| large(t)) else {
                    continue;
                };
                let found = held.get(&sample(tensor)).into_iter().flatten();
                let Some((outer, name, _)) = found.into_iter().find(|(_, _, t)| t == tensor) else {
                    continue;
                };
                if inner.value(v).is_output() {
                    continue;
                }
                let captured = inner.capture(*outer, name)?;
                if captured != v && inner.can_replace(v, captured) {
                    inner.replace_value(v, captured)?;
                    inner.remove_value(v)?;
                }
                changed = Changed::Yes;
            }
            Ok::<(), PassError>(())
        })?;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::MergeDuplicates;
    use crate::testing::{check, refused, unchanged};

    #[test]
    fn duplicates_of_duplicates_are_found_in_one_sweep() {
        check::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x, float[2] z) => (float[2] y) {
                a = Relu (x)
                b = Relu (x)
                c = Add (a, z)
                d = Add (z, b)
                e = Sub (a, z)
                f = Sub (z, a)
                y = Sum (c, d, e, f)
            }"#,
            r#"<opset_import: ["": 18]> g (float[2] x, float[2] z) => (float[2] y) {
                a = Relu (x)
                c = Add (a, z)
                e = Sub (a, z)
                f = Sub (z, a)
                y = Sum (c, c, e, f)
            }"#,
        );
    }

    #[test]
    fn attributes_tell_operators_apart_bit_by_bit() {
        unchanged::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y) {
                a = LeakyRelu <alpha: float = 0.0> (x)
                b = LeakyRelu <alpha: float = -0.0> (x)
                c = LeakyRelu (x)
                y = Sum (a, b, c)
            }"#,
        );
    }

    #[test]
    fn equal_weights_are_kept_once_whoever_takes_them() {
        check::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y)
            <float[2] w = {1, 2}, float[2] v = {1, 2}, float[1,2] u = {1, 2}, float[2] n = {0.0, 2}, float[2] m = {-0.0, 2}> {
                a = Mul (x, w)
                b = Div (a, v)
                c = Sub (b, u)
                d = Sub (c, n)
                y = Sub (d, m)
            }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y)
            <float[2] w = {1, 2}, float[1,2] u = {1, 2}, float[2] n = {0.0, 2}, float[2] m = {-0.0, 2}> {
                a = Mul (x, w)
                b = Div (a, w)
                c = Sub (b, u)
                d = Sub (c, n)
                y = Sub (d, m)
            }"#,
        );
    }

    #[test]
    fn large_weights_of_branches_are_taken_from_outside() {
        check::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]>
            g (bool c, float[256] x) => (float[256] y) <float[256] w = iota> {
                z = Mul (x, w)
                y = If (c) <
                    then_branch = t () => (float[256] p) <float[256] v = iota, float s = {3}> { q = Mul (z, v) p = Mul (q, s) },
                    else_branch = e () => (float[256] r) { r = Neg (x) }
                >
            }"#,
            r#"<opset_import: ["": 18]>
            g (bool c, float[256] x) => (float[256] y) <float[256] w = iota> {
                z = Mul (x, w)
                y = If (c) <
                    then_branch = t () => (float[256] p) <float s = {3}> { q = Mul (z, w) p = Mul (q, s) },
                    else_branch = e () => (float[256] r) { r = Neg (x) }
                >
            }"#,
        );
    }

    #[test]
    fn one_graph_output_keeps_its_name_and_two_stay_two() {
        check::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Relu (x) z = Neg (a) }"#,
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) { y = Relu (x) z = Neg (y) }"#,
        );
        refused::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x) => (float[2] y, float[2] z) { y = Relu (x) z = Relu (x) }"#,
            "graph-output",
        );
    }

    #[test]
    fn random_and_unknown_operators_are_never_merged() {
        unchanged::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) {
                a = RandomNormalLike (x)
                b = RandomNormalLike (x)
                c = my.Op (x)
                d = my.Op (x)
                y = Sum (a, b, c, d)
            }"#,
        );
    }

    #[test]
    fn a_domain_can_be_declared_pure() {
        check::<MergeDuplicates>(
            r#"{"pure-domains": ["my"]}"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { c = my.Op (x) d = my.Op (x) y = Add (c, d) }"#,
            r#"<opset_import: ["": 18, "my": 1]> g (float[2] x) => (float[2] y) { c = my.Op (x) y = Add (c, c) }"#,
        );
    }

    #[test]
    fn weights_that_can_be_overridden_stay() {
        unchanged::<MergeDuplicates>(
            "",
            r#"<opset_import: ["": 18]> g (float[2] x, float[2] w = {1, 2}) => (float[2] y) <float[2] v = {1, 2}> {
                a = Mul (x, w)
                y = Div (a, v)
            }"#,
        );
    }
}

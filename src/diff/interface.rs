//! What differs for those who run a model: inputs, outputs, opsets, functions, metadata.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use paring_ir::{Dim, Graph, Model, Name, ValueId, ValueType};

use super::Difference;
use super::align::{Alignment, pairs};

/// A type as text, such as `float[batch,3,224,224]`.
pub fn type_text(ty: Option<&ValueType>) -> String {
    match ty {
        None => "untyped".to_owned(),
        Some(ValueType::Tensor { dtype, shape }) => {
            let dtype = dtype.map_or("?", |d| d.name());
            match shape {
                None => format!("{dtype}[…]"),
                Some(s) => {
                    let dims: Vec<String> = s.iter().map(ToString::to_string).collect();
                    format!("{dtype}[{}]", dims.join(","))
                }
            }
        }
        Some(other) => format!("{other:?}"),
    }
}

/// What differs of the models as a whole.
pub(super) fn models(a: &Model, b: &Model) -> Vec<Difference> {
    let mut out = Vec::new();
    let opsets = |m: &Model| -> BTreeMap<String, String> {
        let name = |d: &str| if d.is_empty() { "ai.onnx" } else { d }.to_owned();
        let entries = m.opsets.iter();
        entries
            .map(|o| (name(&o.domain), o.version.to_string()))
            .collect()
    };
    differing("opset", &opsets(a), &opsets(b), &mut out);
    if a.ir_version != b.ir_version {
        out.push(Difference {
            what: "ir_version".to_owned(),
            before: Some(a.ir_version.to_string()),
            after: Some(b.ir_version.to_string()),
        });
    }
    let metadata = |m: &Model| -> BTreeMap<String, String> {
        let entries = m.metadata.iter();
        let told = entries.filter(|(k, _)| &**k != crate::provenance::KEY);
        told.map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    differing("metadata", &metadata(a), &metadata(b), &mut out);
    let functions = |m: &Model, other: &Model| -> BTreeMap<String, String> {
        // Those that are in both are compared operator by operator.
        let lone = m.functions.iter().filter(|f| {
            let same = |g: &paring_ir::Function| same_function(f, g);
            !other.functions.iter().any(same)
        });
        let entry = |f: &paring_ir::Function| {
            let overload = match &*f.overload {
                "" => String::new(),
                o => format!(":{o}"),
            };
            (
                format!("{}::{}{overload}", f.domain, f.name),
                format!("{} operators", f.body.op_count()),
            )
        };
        lone.map(entry).collect()
    };
    differing("function", &functions(a, b), &functions(b, a), &mut out);
    out
}

/// Whether two functions are called in the same way.
pub(super) fn same_function(f: &paring_ir::Function, g: &paring_ir::Function) -> bool {
    (&f.domain, &f.name, &f.overload) == (&g.domain, &g.name, &g.overload)
}

fn differing(
    what: &str,
    a: &BTreeMap<String, String>,
    b: &BTreeMap<String, String>,
    out: &mut Vec<Difference>,
) {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for key in keys {
        let (x, y) = (a.get(key), b.get(key));
        if x != y {
            out.push(Difference {
                what: format!("{what} {key}"),
                before: x.cloned(),
                after: y.cloned(),
            });
        }
    }
}

/// Which symbol of the first model is called what in the second.
#[derive(Default)]
struct Symbols {
    to_b: HashMap<Name, Name>,
    to_a: HashMap<Name, Name>,
}

impl Symbols {
    fn same(&mut self, x: &Name, y: &Name) -> bool {
        match (self.to_b.get(x), self.to_a.get(y)) {
            (None, None) => {
                self.to_b.insert(x.clone(), y.clone());
                self.to_a.insert(y.clone(), x.clone());
                true
            }
            (Some(known), _) => known == y,
            _ => false,
        }
    }

    /// Whether two declared types are the same but for the names of symbols.
    fn same_types(&mut self, x: Option<&ValueType>, y: Option<&ValueType>) -> bool {
        match (x, y) {
            (
                Some(ValueType::Tensor {
                    dtype: p,
                    shape: Some(s),
                }),
                Some(ValueType::Tensor {
                    dtype: q,
                    shape: Some(t),
                }),
            ) => {
                let dims = s.iter().zip(t);
                p == q
                    && s.len() == t.len()
                    && dims.fold(true, |all, (d, e)| {
                        let same = match (d, e) {
                            (Dim::Param(d), Dim::Param(e)) => self.same(d, e),
                            _ => d == e,
                        };
                        all && same
                    })
            }
            _ => x == y,
        }
    }
}

/// What differs of the inputs and outputs of the main graphs: first what counts, then names.
pub(super) fn ports(a: &Graph, b: &Graph, al: &Alignment) -> (Vec<Difference>, Vec<Difference>) {
    let (mut out, mut spelling) = (Vec::new(), Vec::new());
    let mut symbols = Symbols::default();
    let lists = [
        (
            "input",
            a.inputs(),
            b.inputs(),
            &al.inputs_to_b,
            &al.inputs_to_a,
        ),
        (
            "output",
            a.outputs(),
            b.outputs(),
            &al.outputs_to_b,
            &al.outputs_to_a,
        ),
    ];
    for (what, xs, ys, to_b, to_a) in lists {
        for (i, j) in pairs(to_b) {
            let (x, y) = (a.value(xs[i]), b.value(ys[j]));
            let (s, t) = (x.declared_type(), y.declared_type());
            if !symbols.same_types(s, t) {
                out.push(Difference {
                    what: format!("{what} {}", y.name()),
                    before: Some(type_text(s)),
                    after: Some(type_text(t)),
                });
            }
            if x.name() != y.name() {
                spelling.push(Difference {
                    what: format!("name of {what} {j}"),
                    before: Some(x.name().to_string()),
                    after: Some(y.name().to_string()),
                });
            }
        }
        let lone =
            |g: &Graph, list: &[ValueId], taken: &[Option<usize>]| -> Vec<(String, String)> {
                let open = list.iter().zip(taken).filter(|(_, t)| t.is_none());
                open.map(|(&v, _)| {
                    let v = g.value(v);
                    (v.name().to_string(), type_text(v.declared_type()))
                })
                .collect()
            };
        for (name, ty) in lone(a, xs, to_b) {
            let what = format!("{what} {name}");
            let (before, after) = (Some(ty), None);
            out.push(Difference {
                what,
                before,
                after,
            });
        }
        for (name, ty) in lone(b, ys, to_a) {
            let what = format!("{what} {name}");
            let (before, after) = (None, Some(ty));
            out.push(Difference {
                what,
                before,
                after,
            });
        }
        if pairs(to_b).any(|(i, j)| i != j) {
            let names = |g: &Graph, list: &[ValueId]| {
                let names: Vec<&str> = list.iter().map(|&v| &**g.value(v).name()).collect();
                Some(names.join(", "))
            };
            spelling.push(Difference {
                what: format!("order of {what}s"),
                before: names(a, xs),
                after: names(b, ys),
            });
        }
    }
    let mut renamed: Vec<(&Name, &Name)> = symbols.to_b.iter().filter(|(x, y)| x != y).collect();
    renamed.sort();
    spelling.extend(renamed.into_iter().map(|(x, y)| Difference {
        what: "name of a size".to_owned(),
        before: Some(x.to_string()),
        after: Some(y.to_string()),
    }));
    if a.name() != b.name() {
        spelling.push(Difference {
            what: "name of the graph".to_owned(),
            before: Some(a.name().to_string()),
            after: Some(b.name().to_string()),
        });
    }
    (out, spelling)
}

//! Where an operator or a tensor comes from: which passes made it, from what, keeping which indices.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::value::Name;

/// The indices that a pass kept along one axis of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The axis of the original tensor.
    pub axis: u32,
    /// The kept indices, ascending.
    pub indices: Arc<[u32]>,
}

/// The origin of an operator or tensor. Names are those of the file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// The passes that made or changed it, in order.
    pub passes: Vec<Name>,
    /// The operators or tensors that it was made from; of very many the first
    /// [`Provenance::MAX_SOURCES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Name>,
    /// The indices kept of the one tensor that it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
}

impl Provenance {
    /// So many sources are kept: what a long chain is merged into would otherwise take a list as
    /// long as the chain, made anew at every step.
    pub const MAX_SOURCES: usize = 64;

    /// The origin of something that `pass` makes from the named sources with their own origins.
    pub fn derive<'a>(
        pass: &Name,
        sources: impl IntoIterator<Item = (&'a Name, Option<&'a Arc<Provenance>>)>,
    ) -> Provenance {
        let mut out = Provenance::default();
        let mut seen = HashSet::new();
        for (name, origin) in sources {
            let own = std::slice::from_ref(name);
            let from = match origin {
                Some(o) => {
                    for pass in &o.passes {
                        if !out.passes.contains(pass) {
                            out.passes.push(pass.clone());
                        }
                    }
                    if o.from.is_empty() { own } else { &o.from }
                }
                None => own,
            };
            // A full list stands for whatever more there is, without looking at each name again.
            if from.len() >= Provenance::MAX_SOURCES {
                out.from = from.to_vec();
                continue;
            }
            for name in from {
                if out.from.len() < Provenance::MAX_SOURCES && seen.insert(name.clone()) {
                    out.from.push(name.clone());
                }
            }
        }
        if out.passes.last() != Some(pass) {
            out.passes.push(pass.clone());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::*;
    use crate::{Graph, NewOp};

    #[test]
    fn a_replaced_operator_without_a_name_is_called_by_its_output() {
        let mut g = Graph::new("main");
        let x = g.add_input("x", None).unwrap();
        let op = g.add_op(NewOp::new("Relu").input(x).output("y")).unwrap();
        g.add_output(g.op(op).output(0).unwrap()).unwrap();
        g.set_author(Some("some-pass".into()));
        let new = g.replace_op(op, NewOp::new("Abs").input(x)).unwrap();
        let origin = g.op(new).provenance().unwrap();
        assert_eq!(origin.from, ["y".into()]);
        assert_eq!(origin.passes, ["some-pass".into()]);
    }

    #[test]
    fn sources_are_kept_once_and_not_without_end() {
        let pass: Name = "p".into();
        let names: Vec<Name> = (0..1000).map(|i| format!("v{}", i / 2).into()).collect();
        let joint = Provenance::derive(&pass, names.iter().map(|n| (n, None)));
        assert_eq!(joint.from.len(), Provenance::MAX_SOURCES);
        assert_eq!(&*joint.from[1], "v1");
    }
}

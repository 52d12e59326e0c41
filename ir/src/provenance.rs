//! Where an operator or a tensor comes from: which passes made it, from what, keeping which indices.

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
    /// The operators or tensors that it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Name>,
    /// The indices kept of the one tensor that it was made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
}

impl Provenance {
    /// The origin of something that `pass` makes from the named sources with their own origins.
    pub fn derive<'a>(
        pass: &Name,
        sources: impl IntoIterator<Item = (&'a Name, Option<&'a Arc<Provenance>>)>,
    ) -> Provenance {
        let mut out = Provenance::default();
        for (name, origin) in sources {
            match origin {
                Some(o) => {
                    extend_new(&mut out.passes, &o.passes);
                    if o.from.is_empty() {
                        extend_new(&mut out.from, std::slice::from_ref(name));
                    } else {
                        extend_new(&mut out.from, &o.from);
                    }
                }
                None => extend_new(&mut out.from, std::slice::from_ref(name)),
            }
        }
        if out.passes.last() != Some(pass) {
            out.passes.push(pass.clone());
        }
        out
    }
}

fn extend_new(list: &mut Vec<Name>, more: &[Name]) {
    for name in more {
        if !list.contains(name) {
            list.push(name.clone());
        }
    }
}

//! Indices of axes, and which of them must go together.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::graph::OpId;

/// One index along one axis, or all indices that are known to be the same.
pub(super) type Unit = u32;

/// Why indices can't be removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// They reach a graph output.
    GraphOutput,
    /// They come from a graph input.
    GraphInput,
    /// A graph input may override the tensor.
    Overridable,
    /// An operator of another domain, or one that is not known, takes or makes them.
    UnknownOperator,
    /// A standard operator without an index map takes or makes them.
    UnsupportedOperator,
    /// They belong to the state of a recurrent network.
    RecurrentState,
    /// They are carried through a loop.
    ControlFlow,
    /// A softmax or another function of the whole axis takes them, which would change its meaning.
    NormalizedOver,
    /// A maximum or another reduction that no refit can mend runs over them.
    Reduced,
    /// They are chosen by indices that are data.
    DataIndex,
    /// Their number is used as a number.
    SizeAsData,
    /// They are positions of a window: the kernel or the places of a convolution or pooling.
    Window,
    /// The tensor is stored in a form that can't be cut.
    Storage,
    /// A shape that decides about them can't be proved.
    UnprovableShape,
    /// A Reshape or a grouped operator splits the axis, and the other part of it shrinks.
    OtherFactor,
    /// The axis has one index.
    Single,
}

impl Reason {
    /// The stable code, for programs.
    pub fn code(self) -> &'static str {
        match self {
            Reason::GraphOutput => "graph-output",
            Reason::GraphInput => "graph-input",
            Reason::Overridable => "overridable",
            Reason::UnknownOperator => "unknown-operator",
            Reason::UnsupportedOperator => "unsupported-operator",
            Reason::RecurrentState => "recurrent-state",
            Reason::ControlFlow => "control-flow",
            Reason::NormalizedOver => "normalized-over",
            Reason::Reduced => "reduced",
            Reason::DataIndex => "data-index",
            Reason::SizeAsData => "size-as-data",
            Reason::Window => "window",
            Reason::Storage => "storage",
            Reason::UnprovableShape => "unprovable-shape",
            Reason::OtherFactor => "other-factor",
            Reason::Single => "single",
        }
    }

    /// A clause for people, after "they can't be removed: ".
    pub fn text(self) -> &'static str {
        match self {
            Reason::GraphOutput => "they reach a graph output",
            Reason::GraphInput => "they come from a graph input",
            Reason::Overridable => "a graph input may override the tensor",
            Reason::UnknownOperator => "an operator that is not known takes them",
            Reason::UnsupportedOperator => "no index map is known for an operator that takes them",
            Reason::RecurrentState => "they belong to the state of a recurrent network",
            Reason::ControlFlow => "they are carried through a loop",
            Reason::NormalizedOver => "a function of the whole axis takes them",
            Reason::Reduced => "a maximum or the like runs over them",
            Reason::DataIndex => "indices that are data choose among them",
            Reason::SizeAsData => "their number is used as a number",
            Reason::Window => "they are positions of a window",
            Reason::Storage => "the tensor is stored in a form that can't be cut",
            Reason::UnprovableShape => "a shape that decides about them can't be proved",
            Reason::OtherFactor => "the other part of the axis shrinks instead",
            Reason::Single => "there is only one",
        }
    }
}

/// Why indices can't be removed, and where that shows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Why {
    /// The reason.
    pub reason: Reason,
    /// The operator at which it shows; `None` for the border of the model and for constants.
    pub op: Option<OpId>,
}

/// One axis of a value.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// No index can be removed. The size need not be known.
    Fixed(Why),
    /// The unit of each index.
    Units(Arc<[Unit]>),
}

impl Axis {
    pub(super) fn units(&self) -> Option<&[Unit]> {
        match self {
            Axis::Units(units) => Some(units),
            Axis::Fixed(_) => None,
        }
    }

    /// An axis of one index, which broadcasts.
    pub(super) const SINGLE: Axis = Axis::Fixed(Why {
        reason: Reason::Single,
        op: None,
    });

    pub(super) fn is_single(&self) -> bool {
        matches!(self, Axis::Fixed(why) if why.reason == Reason::Single)
    }
}

/// A union-find of units. A class is frozen when any of its units is.
#[derive(Default)]
pub(super) struct Units {
    parent: Vec<Unit>,
    /// Of the roots.
    frozen: Vec<Option<Why>>,
    /// Of the roots: some unit counts the batches of a matrix product.
    batch: Vec<bool>,
    /// Of the roots: some statistic over the axis takes the unit.
    statistic: Vec<bool>,
}

impl Units {
    /// New units, each a class of its own; `None` when there are too many.
    pub(super) fn fresh(&mut self, count: usize) -> Option<Arc<[Unit]>> {
        let start = self.parent.len();
        let end = start.checked_add(count).filter(|&end| end <= MAX_UNITS)?;
        let units = (start..end).map(|u| u as Unit);
        self.parent.extend(units.clone());
        self.frozen.resize(end, None);
        self.batch.resize(end, false);
        self.statistic.resize(end, false);
        Some(units.collect())
    }

    pub(super) fn find(&mut self, unit: Unit) -> Unit {
        let mut root = unit;
        while self.parent[root as usize] != root {
            root = self.parent[root as usize];
        }
        let mut at = unit;
        while self.parent[at as usize] != root {
            at = std::mem::replace(&mut self.parent[at as usize], root);
        }
        root
    }

    /// Makes two units one class. The smaller number becomes the root, so that the result does
    /// not depend on the order of unions.
    pub(super) fn union(&mut self, a: Unit, b: Unit) {
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return;
        }
        let (root, other) = (a.min(b) as usize, a.max(b) as usize);
        self.parent[other] = root as Unit;
        self.frozen[root] = match (self.frozen[root], self.frozen[other]) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.batch[root] |= self.batch[other];
        self.statistic[root] |= self.statistic[other];
    }

    pub(super) fn freeze(&mut self, unit: Unit, why: Why) {
        let root = self.find(unit) as usize;
        let frozen = &mut self.frozen[root];
        *frozen = Some(frozen.map_or(why, |old| old.min(why)));
    }

    pub(super) fn frozen(&mut self, unit: Unit) -> Option<Why> {
        let root = self.find(unit) as usize;
        self.frozen[root]
    }

    pub(super) fn set_batch(&mut self, unit: Unit) {
        let root = self.find(unit) as usize;
        self.batch[root] = true;
    }

    pub(super) fn is_batch(&mut self, unit: Unit) -> bool {
        let root = self.find(unit) as usize;
        self.batch[root]
    }

    pub(super) fn set_statistic(&mut self, unit: Unit) {
        let root = self.find(unit) as usize;
        self.statistic[root] = true;
    }

    pub(super) fn is_statistic(&mut self, unit: Unit) -> bool {
        let root = self.find(unit) as usize;
        self.statistic[root]
    }
}

/// More indices than this are not followed: the axes beyond stay as they are.
const MAX_UNITS: usize = 1 << 26;

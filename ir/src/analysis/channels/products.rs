//! Axes that are products of others: a Reshape splits them or merges them, a grouped operator
//! sees them as groups of channels.
//!
//! Element `(i, j)` of the product belongs to index `i` of one factor and `j` of the other.
//! Whatever goes must leave a full box of indices, so of the factors of a product one shrinks
//! and the others stay. Which one is decided when everything else is known: one that may shrink
//! at all; of several the one that counts the batches of matrix products, which are the heads of
//! attention (or just not that one, see [`Heads`]); else the one with the most indices.

use std::sync::Arc;

use super::Heads;
use super::units::{Axis, Reason, Unit, Units, Why};
use crate::graph::OpId;

/// An axis, and the factors that make it, the slowest first.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) op: OpId,
    pub(super) whole: Arc<[Unit]>,
    pub(super) factors: Vec<(Axis, usize)>,
}

impl Product {
    /// How many elements pass until an index of a factor moves on by one.
    fn stride(&self, factor: usize) -> usize {
        self.factors[factor + 1..].iter().map(|(_, n)| n).product()
    }

    fn index_of(&self, element: usize, factor: usize) -> usize {
        element / self.stride(factor).max(1) % self.factors[factor].1.max(1)
    }

    /// How many classes of a factor may go, were it the one that shrinks.
    fn open_classes(&self, factor: usize, units: &mut Units) -> usize {
        let Axis::Units(own) = &self.factors[factor].0 else {
            return 0;
        };
        let mut open: Vec<bool> = own.iter().map(|&u| units.frozen(u).is_none()).collect();
        for (element, &u) in self.whole.iter().enumerate() {
            let index = self.index_of(element, factor);
            if open[index] && units.frozen(u).is_some() {
                open[index] = false;
            }
        }
        let mut roots: Vec<Unit> = own
            .iter()
            .zip(&open)
            .filter(|(_, open)| **open)
            .map(|(&u, _)| units.find(u))
            .collect();
        roots.sort_unstable();
        roots.dedup();
        roots.len()
    }

    fn choose(&self, chosen: Option<usize>, units: &mut Units) {
        if let Some(factor) = chosen
            && let Axis::Units(own) = &self.factors[factor].0
        {
            for (element, &u) in self.whole.iter().enumerate() {
                units.union(u, own[self.index_of(element, factor)]);
            }
        }
        let why = Why {
            reason: Reason::OtherFactor,
            op: Some(self.op),
        };
        for (i, (axis, _)) in self.factors.iter().enumerate() {
            if Some(i) != chosen {
                let own = axis.units().unwrap_or_default();
                own.iter().for_each(|&u| units.freeze(u, why));
            }
        }
        if chosen.is_none() {
            let first = self.factors.iter().find_map(|(axis, _)| match axis {
                Axis::Fixed(why) if why.reason != Reason::Single => Some(*why),
                Axis::Units(own) => own.first().and_then(|&u| units.frozen(u)),
                Axis::Fixed(_) => None,
            });
            let why = first.unwrap_or(why);
            self.whole.iter().for_each(|&u| units.freeze(u, why));
        }
    }
}

/// Decides which factor of each product shrinks.
pub(super) fn resolve(products: Vec<Product>, units: &mut Units, heads: Heads) {
    let mut waiting = products;
    while !waiting.is_empty() {
        let before = waiting.len();
        waiting.retain(|product| {
            let open: Vec<usize> = (0..product.factors.len())
                .filter(|&f| product.open_classes(f, units) > 0)
                .collect();
            let decided = open.len() <= 1;
            if decided {
                product.choose(open.first().copied(), units);
            }
            !decided
        });
        if waiting.len() == before {
            // A product that heads of attention decide about decides about those without.
            let attends = |product: &Product, units: &mut Units| {
                (0..product.factors.len()).any(|f| is_batch(product, f, units))
            };
            let at = (0..waiting.len()).find(|&i| attends(&waiting[i], units));
            let product = waiting.remove(at.unwrap_or(0));
            let best = preferred(&product, units, heads);
            product.choose(best, units);
        }
    }
}

fn is_batch(product: &Product, factor: usize, units: &mut Units) -> bool {
    let own = product.factors[factor].0.units().unwrap_or_default();
    own.first().is_some_and(|&u| units.is_batch(u))
}

fn preferred(product: &Product, units: &mut Units, heads: Heads) -> Option<usize> {
    let open: Vec<(usize, usize)> = (0..product.factors.len())
        .map(|f| (f, product.open_classes(f, units)))
        .filter(|&(_, classes)| classes > 0)
        .collect();
    let rank = |&(f, classes): &(usize, usize), units: &mut Units| {
        let batch = is_batch(product, f, units);
        let wanted = match heads {
            Heads::Whole => batch,
            Heads::Within => !batch,
        };
        // Of equal ones the first.
        (wanted, classes, std::cmp::Reverse(f))
    };
    open.iter().max_by_key(|f| rank(f, units)).map(|&(f, _)| f)
}

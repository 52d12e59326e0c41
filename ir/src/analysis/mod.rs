//! Analyses: what can be known about a model without running it.
//!
//! An analysis is computed once per state of the model: the cache is keyed by the kind of
//! analysis, the model's revision and the analysis' options, so a result can't be stale.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use crate::model::Model;

pub mod channels;
pub mod cost;
pub mod shapes;
pub mod structure;

pub use channels::{ChannelOptions, Channels};
pub use cost::{CostOptions, Costs, ModelCost, WeightCost};
pub use shapes::{ShapeOptions, Shapes, SymDim, TensorFact};
pub use structure::{Anchors, Constants, Detail, Hashes, Structure};

/// Something computed from a model.
pub trait Analysis: Send + Sync + Sized + 'static {
    /// What the result depends on besides the model.
    type Options: Debug + Default;

    /// Computes the analysis.
    fn compute(model: &Model, options: &Self::Options, cache: &mut AnalysisCache) -> Self;
}

/// Results of analyses.
#[derive(Default, Debug)]
pub struct AnalysisCache {
    entries: HashMap<(TypeId, String), (u64, Arc<dyn Any + Send + Sync>)>,
}

impl AnalysisCache {
    /// An empty cache.
    pub fn new() -> AnalysisCache {
        AnalysisCache::default()
    }

    /// The analysis with its default options.
    pub fn get<A: Analysis>(&mut self, model: &Model) -> Arc<A> {
        self.get_with(model, &A::Options::default())
    }

    /// The analysis with these options. Of each kind and options the newest result is kept.
    pub fn get_with<A: Analysis>(&mut self, model: &Model, options: &A::Options) -> Arc<A> {
        let key = (TypeId::of::<A>(), format!("{options:?}"));
        let revision = model.revision();
        if let Some((r, found)) = self.entries.get(&key)
            && *r == revision
            && let Ok(found) = Arc::clone(found).downcast::<A>()
        {
            return found;
        }
        let made = Arc::new(A::compute(model, options, self));
        self.entries.insert(key, (revision, made.clone()));
        made
    }
}

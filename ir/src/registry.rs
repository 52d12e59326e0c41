//! The passes and recipes that a program offers, as one explicit table.

use std::fmt;

use serde_json::{Map, Value as Json};

use crate::model::Model;
use crate::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use crate::select::{OptionError, OptionSet, nearest};

/// Options as they stand in a recipe.
pub type JsonMap = Map<String, Json>;

/// A pass with its options, ready to run.
pub trait ReadyPass: Send + Sync {
    /// What the pass is.
    fn info(&self) -> PassInfo;
    /// The options as they were given.
    fn given(&self) -> &Map<String, Json>;
    /// What must hold of a model before the pass runs.
    fn requires(&self, model: &Model) -> Result<(), PassError>;
    /// Whether the options leave every model as it is.
    fn is_neutral(&self) -> bool;
    /// Edits the model.
    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError>;
    /// The globs in the options that match no operator.
    fn unmatched(&self, model: &Model) -> Vec<String>;
}

struct Ready<P: Pass> {
    pass: P,
    options: OptionSet<P::Options>,
}

impl<P: Pass> ReadyPass for Ready<P> {
    fn info(&self) -> PassInfo {
        P::INFO
    }
    fn given(&self) -> &Map<String, Json> {
        self.options.given()
    }
    fn requires(&self, model: &Model) -> Result<(), PassError> {
        self.pass.requires(model)
    }
    fn is_neutral(&self) -> bool {
        self.pass.is_neutral()
    }
    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        self.pass.run(model, cx)
    }
    fn unmatched(&self, model: &Model) -> Vec<String> {
        self.options.unmatched(model)
    }
}

type Factory = fn(&Map<String, Json>) -> Result<Box<dyn ReadyPass>, OptionError>;

/// One pass of a registry.
#[derive(Clone, Copy)]
pub struct Entry {
    /// What the pass is.
    pub info: PassInfo,
    make: Factory,
    schema: fn() -> schemars::Schema,
    defaults: fn() -> Json,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Entry {
    /// Makes the pass with these options.
    pub fn make(&self, options: &Map<String, Json>) -> Result<Box<dyn ReadyPass>, OptionError> {
        (self.make)(options)
    }

    /// The JSON schema of the options.
    pub fn schema(&self) -> Json {
        (self.schema)().to_value()
    }

    /// The defaults of all options.
    pub fn defaults(&self) -> Json {
        (self.defaults)()
    }
}

/// The passes and recipes that a program offers.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    passes: Vec<Entry>,
    recipes: Vec<(&'static str, &'static str)>,
}

impl Registry {
    /// No passes.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// One more pass. A pass of the same name is replaced.
    #[must_use]
    pub fn with<P: Pass>(mut self) -> Registry {
        let entry = Entry {
            info: P::INFO,
            make: |options| {
                let options = OptionSet::<P::Options>::parse(P::INFO.name, options)?;
                Ok(Box::new(Ready {
                    pass: P::new(options.clone())?,
                    options,
                }))
            },
            schema: || schemars::schema_for!(P::Options),
            defaults: || serde_json::to_value(P::Options::default()).unwrap_or(Json::Null),
        };
        match self.passes.iter_mut().find(|e| e.info.name == P::INFO.name) {
            Some(e) => *e = entry,
            None => self.passes.push(entry),
        }
        self
    }

    /// One more ready-made recipe: its name and its YAML text.
    #[must_use]
    pub fn with_recipe(mut self, name: &'static str, text: &'static str) -> Registry {
        self.recipes.retain(|(n, _)| *n != name);
        self.recipes.push((name, text));
        self
    }

    /// The passes, in the order in which they were added.
    pub fn passes(&self) -> &[Entry] {
        &self.passes
    }

    /// The pass of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.passes.iter().find(|e| e.info.name == name)
    }

    /// The pass of this name, or an error that names the nearest.
    pub fn find(&self, name: &str) -> Result<&Entry, OptionError> {
        self.get(name).ok_or_else(|| OptionError::Invalid {
            path: name.to_owned(),
            reason: match nearest(name, self.passes.iter().map(|e| e.info.name)) {
                Some(n) => format!("there is no such pass; did you mean \"{n}\"?"),
                None => "there is no such pass; `paring passes` lists them".to_owned(),
            },
        })
    }

    /// The ready-made recipes: name and YAML text.
    pub fn recipes(&self) -> &[(&'static str, &'static str)] {
        &self.recipes
    }

    /// The YAML text of a ready-made recipe.
    pub fn recipe(&self, name: &str) -> Option<&'static str> {
        self.recipes
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, t)| *t)
    }
}

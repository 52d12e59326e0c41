//! Pipelines from YAML recipes and from the short form of the command line: the only code that
//! knows serde_yaml.

mod short;
mod yaml;

use std::path::{Path, PathBuf};

use paring_ir::manager::Pipeline;
use paring_ir::recipe::Bound;
use paring_ir::{OptionError, Registry, recipe};
use serde_json::{Map, Value as Json, json};

pub use short::parse_pass;

/// Why a recipe can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// There is no recipe of this name, and no such file.
    #[error("there is no recipe \"{name}\" and no file of that name; {hint}")]
    NoSuch {
        /// What was asked for.
        name: String,
        /// What there is.
        hint: String,
    },
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not YAML.
    #[error("{origin}: {source}")]
    Yaml {
        /// The file, recipe or option.
        origin: String,
        /// Where and why.
        source: serde_yaml::Error,
    },
    /// The text is YAML and no recipe.
    #[error("{origin}: {source}")]
    Options {
        /// The file, recipe or option.
        origin: String,
        /// Where and why.
        source: OptionError,
    },
    /// A `--pass` can't be read.
    #[error("--pass {text}: {reason}")]
    Short {
        /// What was given.
        text: String,
        /// What is wrong.
        reason: String,
    },
}

/// A recipe as data, before it is bound to a registry: what a report stores and a replay reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Where it comes from, for messages.
    pub origin: String,
    /// The parsed text.
    pub json: Json,
}

impl Recipe {
    /// No passes.
    pub fn empty() -> Recipe {
        Recipe {
            origin: "recipe".to_owned(),
            json: json!({ "passes": [] }),
        }
    }

    /// The recipe of this name in the registry, or in the file of this name.
    pub fn find(name: &str, registry: &Registry) -> Result<Recipe, RecipeError> {
        if let Some(text) = registry.recipe(name) {
            return Recipe::parse(name, text);
        }
        let path = Path::new(name);
        match std::fs::read_to_string(path) {
            Ok(text) => Recipe::parse(name, &text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let known: Vec<&str> = registry.recipes().iter().map(|(n, _)| *n).collect();
                let hint = match paring_ir::select::nearest(name, known.iter().copied()) {
                    Some(n) => format!("did you mean \"{n}\"?"),
                    None => format!("the recipes are {}", known.join(", ")),
                };
                Err(RecipeError::NoSuch {
                    name: name.to_owned(),
                    hint,
                })
            }
            Err(source) => Err(RecipeError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads YAML.
    pub fn parse(origin: &str, text: &str) -> Result<Recipe, RecipeError> {
        let origin_of = || origin.to_owned();
        let json = yaml::read(text).map_err(|e| match e {
            yaml::YamlError::Syntax(source) => RecipeError::Yaml {
                origin: origin_of(),
                source,
            },
            yaml::YamlError::Value { path, reason } => RecipeError::Options {
                origin: origin_of(),
                source: OptionError::Invalid { path, reason },
            },
        })?;
        Ok(Recipe {
            origin: origin.to_owned(),
            json,
        })
    }

    /// One more step: a pass with a map of options, or with null for none.
    pub fn push(&mut self, name: &str, options: Json) {
        let none = match &options {
            Json::Null => true,
            Json::Object(map) => map.is_empty(),
            _ => false,
        };
        let step = if none {
            json!(name)
        } else {
            json!({ name: options })
        };
        if let Some(Json::Array(passes)) = self.json.get_mut("passes") {
            passes.push(step);
        }
    }

    /// What the recipe says of itself.
    pub fn description(&self) -> &str {
        self.json
            .get("description")
            .and_then(Json::as_str)
            .unwrap_or("")
    }

    /// Binds the recipe to the passes of a registry.
    pub fn pipeline(&self, registry: &Registry) -> Result<Pipeline, RecipeError> {
        self.bind(registry).map(|b| b.pipeline)
    }

    /// Binds the recipe to the passes and recipes of a registry, and writes included recipes out.
    pub fn bind(&self, registry: &Registry) -> Result<Bound, RecipeError> {
        let read = |text: &str| {
            yaml::read(text).map_err(|e| OptionError::Invalid {
                path: "text".to_owned(),
                reason: e.to_string(),
            })
        };
        recipe::from_json(&self.json, registry, &read).map_err(|source| RecipeError::Options {
            origin: self.origin.clone(),
            source,
        })
    }

    /// The recipe as YAML.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(&self.json).unwrap_or_default()
    }
}

/// A recipe of passes and options in order: what reproduces a run.
pub fn recipe_of(steps: &[(String, Map<String, Json>)]) -> Recipe {
    let mut recipe = Recipe::empty();
    for (name, options) in steps {
        recipe.push(name, Json::Object(options.clone()));
    }
    recipe
}

/// Appends a pass in the short form `name[:key=value,...]` to a recipe.
pub fn push_short(recipe: &mut Recipe, text: &str, registry: &Registry) -> Result<(), RecipeError> {
    let (name, options) = parse_pass(text).map_err(|reason| RecipeError::Short {
        text: text.to_owned(),
        reason,
    })?;
    recipe::pass("", &name, options.clone(), registry).map_err(|source| RecipeError::Options {
        origin: format!("--pass {text}"),
        source,
    })?;
    recipe.push(&name, Json::Object(options));
    Ok(())
}

#[cfg(test)]
mod tests;

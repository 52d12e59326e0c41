//! Options of a pass at three levels: for the whole pass, by operator type, by operator name.
//!
//! A recipe gives a pass a map of options. Two keys of it are reserved:
//!
//! ```yaml
//! prune-weights:
//!   sparsity: 0.5
//!   by-type:
//!     Gemm: { sparsity: 0.7 }
//!     ConvTranspose: skip
//!   by-name:
//!     "*/head/*": skip
//! ```
//!
//! A narrower level says only what differs. For one operator the options are those of the
//! whole pass, overlaid by the entry of its type, overlaid by the last entry whose glob
//! matches its name (or, where it has none, the name of its first output). `skip` leaves
//! operators out; an entry by name also brings back what its type leaves out.

use globset::{Glob, GlobMatcher};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::graph::{Graph, OpId};
use crate::model::Model;
use crate::schema;

/// What is wrong with the options of a pass.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// There is no such option.
    #[error("{path}: there is no \"{key}\" here; {}", suggest(nearest, known))]
    UnknownKey {
        /// Where, such as `prune-weights.by-type.Conv`.
        path: String,
        /// The unknown key.
        key: String,
        /// The valid key nearest to it, when one is near.
        nearest: Option<String>,
        /// All valid keys.
        known: Vec<String>,
    },
    /// A value is of the wrong type or out of range.
    #[error("{path}: {reason}")]
    Invalid {
        /// Where.
        path: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An option of the whole pass stands at a narrower level.
    #[error(
        "{path}: \"{key}\" is for the whole pass and can't differ between operators; move it up to \"{pass}\""
    )]
    WholePass {
        /// Where.
        path: String,
        /// The option.
        key: String,
        /// The pass.
        pass: String,
    },
}

impl OptionError {
    /// The same error one level further in: `path` is put in front of where it is.
    #[must_use]
    pub fn within(mut self, outer: &str) -> OptionError {
        let (OptionError::UnknownKey { path, .. }
        | OptionError::Invalid { path, .. }
        | OptionError::WholePass { path, .. }) = &mut self;
        if !outer.is_empty() {
            *path = format!("{outer}.{path}");
        }
        self
    }
}

fn suggest(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(n) => format!("did you mean \"{n}\"?"),
        None if known.is_empty() => "nothing can be set here".to_owned(),
        None => format!("known are {}", known.join(", ")),
    }
}

/// The candidate nearest to a misspelt word, when one is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(word, c), c))
        .filter(|(d, c)| *d <= 1 + word.len().max(c.len()) / 4)
        .min()
        .map(|(_, c)| c.to_owned())
}

/// The options for one operator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting<'a, T> {
    /// These.
    Apply(&'a T),
    /// The operator is left out.
    Skip,
}

impl<'a, T> Setting<'a, T> {
    /// Whether the operator is left out.
    pub fn is_skip(&self) -> bool {
        matches!(self, Setting::Skip)
    }

    /// The options, unless the operator is left out.
    pub fn options(self) -> Option<&'a T> {
        match self {
            Setting::Apply(t) => Some(t),
            Setting::Skip => None,
        }
    }
}

/// The options of a pass that has none of its own: only which operators it leaves out can be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

#[derive(Debug, Clone)]
struct NameRule<T> {
    glob: GlobMatcher,
    /// The resolved options on top of no type, and on top of each type rule.
    base: Option<T>,
    by_type: Vec<Option<T>>,
}

/// The options of a pass, resolved for every level.
#[derive(Debug, Clone)]
pub struct OptionSet<T> {
    whole: T,
    by_type: Vec<(String, Option<T>)>,
    by_name: Vec<NameRule<T>>,
    raw: Map<String, Json>,
}

impl<T> OptionSet<T> {
    /// The options of the whole pass.
    pub fn whole(&self) -> &T {
        &self.whole
    }

    /// The options of every level: of the whole pass, by type and by name.
    pub fn levels(&self) -> impl Iterator<Item = &T> {
        let by_type = self.by_type.iter().filter_map(|(_, t)| t.as_ref());
        let named = self.by_name.iter();
        let named = named.flat_map(|r| r.base.iter().chain(r.by_type.iter().flatten()));
        std::iter::once(&self.whole).chain(by_type).chain(named)
    }

    /// The options for an operator.
    pub fn for_op(&self, graph: &Graph, op: OpId) -> Setting<'_, T> {
        if self.by_type.is_empty() && self.by_name.is_empty() {
            return Setting::Apply(&self.whole);
        }
        let o = graph.op(op);
        let ty = self
            .by_type
            .iter()
            .position(|(t, _)| o.is(t) || *t == format!("{}::{}", o.domain(), o.op_type()));
        let label = graph.op_label(op);
        let found = match self.by_name.iter().rev().find(|r| r.glob.is_match(&*label)) {
            Some(rule) => match ty {
                Some(i) => rule.by_type[i].as_ref(),
                None => rule.base.as_ref(),
            },
            None => match ty {
                Some(i) => self.by_type[i].1.as_ref(),
                None => Some(&self.whole),
            },
        };
        found.map_or(Setting::Skip, Setting::Apply)
    }

    /// The options as they were given, for reports and reproducers.
    pub fn given(&self) -> &Map<String, Json> {
        &self.raw
    }

    /// The globs of `by-name` that match no operator of the model: most likely misspelt.
    pub fn unmatched(&self, model: &Model) -> Vec<String> {
        let mut waiting: Vec<&GlobMatcher> = self.by_name.iter().map(|r| &r.glob).collect();
        model.for_each_graph(&mut |graph| {
            if !waiting.is_empty() {
                for op in graph.ops() {
                    let label = graph.op_label(op);
                    waiting.retain(|g| !g.is_match(&*label));
                }
            }
        });
        waiting.iter().map(|g| g.glob().glob().to_owned()).collect()
    }
}

impl<T: DeserializeOwned + Serialize + JsonSchema + Default + Clone> OptionSet<T> {
    /// The defaults, for every operator.
    pub fn defaults() -> OptionSet<T> {
        OptionSet {
            whole: T::default(),
            by_type: Vec::new(),
            by_name: Vec::new(),
            raw: Map::new(),
        }
    }

    /// Resolves what a recipe says about a pass.
    pub fn parse(pass: &str, given: &Map<String, Json>) -> Result<OptionSet<T>, OptionError> {
        let shape = schemars::schema_for!(T).to_value();
        let mut whole = given.clone();
        let types = take_level(pass, &mut whole, "by-type")?;
        let names = take_level(pass, &mut whole, "by-name")?;
        let resolve = |path: &str, layers: &[&Map<String, Json>]| -> Result<T, OptionError> {
            let mut merged = Json::Object(Map::new());
            for layer in layers {
                overlay(&mut merged, &Json::Object((*layer).clone()));
            }
            parse_at(path, &merged)
        };
        check_keys(
            pass,
            &Json::Object(whole.clone()),
            &shape,
            &shape,
            &["by-type", "by-name"],
        )?;
        let parsed = resolve(pass, &[&whole])?;
        let mut by_type = Vec::new();
        for (name, level) in &types {
            let path = format!("{pass}.by-type.{name}");
            check_type(&path, name)?;
            check_narrow(pass, &path, level.as_ref(), &shape)?;
            let t = level
                .as_ref()
                .map(|l| resolve(&path, &[&whole, l]))
                .transpose()?;
            by_type.push((name.clone(), t));
        }
        let mut by_name = Vec::new();
        for (glob, level) in &names {
            let path = format!("{pass}.by-name.\"{glob}\"");
            check_narrow(pass, &path, level.as_ref(), &shape)?;
            let matcher = Glob::new(glob).map_err(|e| OptionError::Invalid {
                path: path.clone(),
                reason: format!("not a valid glob: {}", e.kind()),
            })?;
            let on = |base: Option<&Map<String, Json>>| {
                level
                    .as_ref()
                    .map(|l| match base {
                        Some(b) => resolve(&path, &[&whole, b, l]),
                        None => resolve(&path, &[&whole, l]),
                    })
                    .transpose()
            };
            by_name.push(NameRule {
                glob: matcher.compile_matcher(),
                base: on(None)?,
                by_type: types
                    .iter()
                    .map(|(_, t)| on(t.as_ref()))
                    .collect::<Result<_, _>>()?,
            });
        }
        Ok(OptionSet {
            whole: parsed,
            by_type,
            by_name,
            raw: given.clone(),
        })
    }
}

/// Entries of one level: a name, and the options or `None` for `skip`.
type Level = Vec<(String, Option<Map<String, Json>>)>;

/// Takes a reserved key out of the options.
fn take_level(
    pass: &str,
    options: &mut Map<String, Json>,
    key: &str,
) -> Result<Level, OptionError> {
    let path = format!("{pass}.{key}");
    let entries = match options.remove(key) {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Object(m)) => m,
        Some(_) => {
            let reason = "expected a map from names to options, or to skip".to_owned();
            return Err(OptionError::Invalid { path, reason });
        }
    };
    entries
        .into_iter()
        .map(|(name, value)| match value {
            Json::Object(m) => Ok((name, Some(m))),
            Json::String(s) if s == "skip" => Ok((name, None)),
            Json::Null => Ok((name, Some(Map::new()))),
            other => Err(OptionError::Invalid {
                path: format!("{path}.{name}"),
                reason: format!("expected a map of options or skip, found {other}"),
            }),
        })
        .collect()
}

fn check_type(path: &str, name: &str) -> Result<(), OptionError> {
    if name.contains("::") || schema::knowledge(name).is_some() {
        return Ok(());
    }
    let known = schema::operator_names();
    Err(OptionError::Invalid {
        path: path.to_owned(),
        reason: match nearest(name, known) {
            Some(n) => format!("there is no standard operator \"{name}\"; did you mean \"{n}\"?"),
            None => format!(
                "there is no standard operator \"{name}\"; operators of other domains are written domain::{name}"
            ),
        },
    })
}

/// Checks the options of a narrower level: known keys, and none that is for the whole pass.
fn check_narrow(
    pass: &str,
    path: &str,
    level: Option<&Map<String, Json>>,
    shape: &Json,
) -> Result<(), OptionError> {
    let Some(level) = level else { return Ok(()) };
    check_keys(path, &Json::Object(level.clone()), shape, shape, &[])?;
    for key in level.keys() {
        let property = shape.get("properties").and_then(|p| p.get(key));
        if property
            .and_then(|p| p.get("x-scope"))
            .and_then(Json::as_str)
            == Some("pass")
        {
            return Err(OptionError::WholePass {
                path: path.to_owned(),
                key: key.clone(),
                pass: pass.to_owned(),
            });
        }
    }
    Ok(())
}

/// Deserializes, and names the place of what doesn't fit.
fn parse_at<T: DeserializeOwned>(path: &str, value: &Json) -> Result<T, OptionError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let inner = e.path().to_string();
        let path = if inner == "." {
            path.to_owned()
        } else {
            format!("{path}.{inner}")
        };
        OptionError::Invalid {
            path,
            reason: e.into_inner().to_string(),
        }
    })
}

/// Overlays maps key by key; anything else replaces.
fn overlay(base: &mut Json, over: &Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (k, v) in over {
                match base.get_mut(k) {
                    Some(b) => overlay(b, v),
                    None => {
                        base.insert(k.clone(), v.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// Refuses keys that a JSON schema doesn't know and numbers that are out of its range, wherever
/// they stand in a value.
///
/// `reserved` are more keys that may be suggested at the outermost level.
pub fn check_keys(
    path: &str,
    value: &Json,
    shape: &Json,
    root: &Json,
    reserved: &[&str],
) -> Result<(), OptionError> {
    let shape = deref(shape, root);
    match value {
        Json::Object(map) => {
            let Some(properties) = object_shape(shape, root).and_then(|s| s.get("properties"))
            else {
                return check_empty(path, map, shape, reserved);
            };
            let known = properties
                .as_object()
                .map(|p| p.keys().cloned().collect::<Vec<_>>());
            let known = known.unwrap_or_default();
            for (key, inner) in map {
                let Some(shape) = properties.get(key) else {
                    let all = known
                        .iter()
                        .map(String::as_str)
                        .chain(reserved.iter().copied());
                    return Err(OptionError::UnknownKey {
                        path: path.to_owned(),
                        key: key.clone(),
                        nearest: nearest(key, all),
                        known,
                    });
                };
                check_keys(&format!("{path}.{key}"), inner, shape, root, &[])?;
            }
            Ok(())
        }
        Json::Array(items) => {
            let Some(shape) = shape.get("items") else {
                return Ok(());
            };
            for (i, item) in items.iter().enumerate() {
                check_keys(&format!("{path}[{i}]"), item, shape, root, &[])?;
            }
            Ok(())
        }
        Json::Number(_) => check_range(path, value, shape),
        _ => Ok(()),
    }
}

/// Refuses the keys of a map whose schema has none.
fn check_empty(
    path: &str,
    map: &Map<String, Json>,
    shape: &Json,
    reserved: &[&str],
) -> Result<(), OptionError> {
    let closed = shape.get("additionalProperties") == Some(&Json::Bool(false));
    match map.keys().next().filter(|_| closed) {
        None => Ok(()),
        Some(key) => Err(OptionError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            nearest: nearest(key, reserved.iter().copied()),
            known: Vec::new(),
        }),
    }
}

/// Checks a number against the least and the largest value that a JSON schema gives.
fn check_range(path: &str, value: &Json, shape: &Json) -> Result<(), OptionError> {
    let bound = |key: &str| shape.get(key).and_then(Json::as_f64);
    let (low, high) = (bound("minimum"), bound("maximum"));
    let Some(found) = value.as_f64() else {
        return Ok(());
    };
    if low.is_none_or(|l| found >= l) && high.is_none_or(|h| found <= h) {
        return Ok(());
    }
    let expected = match (low, high) {
        (Some(l), Some(h)) => format!("a number from {l} to {h}"),
        (Some(l), None) => format!("a number of at least {l}"),
        (None, Some(h)) => format!("a number of at most {h}"),
        (None, None) => return Ok(()),
    };
    Err(OptionError::Invalid {
        path: path.to_owned(),
        reason: format!("expected {expected}, found {value}"),
    })
}

fn deref<'a>(shape: &'a Json, root: &'a Json) -> &'a Json {
    let target = shape
        .get("$ref")
        .and_then(Json::as_str)
        .and_then(|r| r.strip_prefix('#'));
    target.and_then(|r| root.pointer(r)).unwrap_or(shape)
}

/// The alternative of a schema that describes an object.
fn object_shape<'a>(shape: &'a Json, root: &'a Json) -> Option<&'a Json> {
    if shape.get("properties").is_some() {
        return Some(shape);
    }
    let alternatives = shape
        .get("anyOf")
        .or_else(|| shape.get("oneOf"))?
        .as_array()?;
    alternatives
        .iter()
        .map(|s| deref(s, root))
        .find(|s| s.get("properties").is_some())
}

#[cfg(test)]
mod tests;

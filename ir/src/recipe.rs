//! Recipes: pipelines as data.
//!
//! ```yaml
//! description: Half the weights away
//! passes:
//!   - fold-constants
//!   - repeat:
//!       max: 4
//!       passes: [eliminate-identities, eliminate-dead-code]
//!   - prune-weights:
//!       sparsity: 0.5
//!       accept: { min-sqnr-db: 10 }
//! accept:
//!   max-accuracy-drop: 1.0
//! ```
//!
//! This module reads the parsed form (JSON), so it works for any syntax; the facade crate
//! parses YAML.

use serde_json::{Map, Value as Json, json};

use crate::manager::{Item, Pipeline, Step};
use crate::registry::Registry;
use crate::report::Accept;
use crate::select::{OptionError, check_keys, nearest};

/// The most rounds of a group that repeats, where the recipe doesn't say.
pub const DEFAULT_ROUNDS: usize = 8;

/// Makes the pipeline that a recipe describes.
pub fn from_json(recipe: &Json, registry: &Registry) -> Result<Pipeline, OptionError> {
    let Json::Object(map) = recipe else {
        return Err(invalid("recipe", "expected a map with the key passes"));
    };
    known_keys("recipe", map, &["description", "passes", "accept"])?;
    if map.get("description").is_some_and(|d| !d.is_string()) {
        return Err(invalid("description", "expected text"));
    }
    let Some(Json::Array(steps)) = map.get("passes") else {
        return Err(invalid("passes", "expected a list of passes"));
    };
    let mut pipeline = Pipeline::new();
    for (i, step) in steps.iter().enumerate() {
        pipeline
            .items
            .push(item(&format!("passes[{i}]"), step, registry)?);
    }
    if let Some(limits) = map.get("accept") {
        pipeline.accept = accept("accept", limits)?;
    }
    Ok(pipeline)
}

/// Makes one step, whose place `path` names for messages: `name`, `{name: {option: value}}` or `{repeat: {max, passes}}`.
pub fn item(path: &str, step: &Json, registry: &Registry) -> Result<Item, OptionError> {
    let (name, options) = name_and_options(path, step)?;
    if name != "repeat" {
        return Ok(Item::Pass(pass(path, name, options, registry)?));
    }
    known_keys(&format!("{path}.repeat"), &options, &["max", "passes"])?;
    let max = match options.get("max") {
        None => DEFAULT_ROUNDS,
        Some(n) => n
            .as_u64()
            .filter(|n| (1..=1000).contains(n))
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| {
                invalid(
                    format!("{path}.repeat.max"),
                    "expected a number from 1 to 1000",
                )
            })?,
    };
    let Some(Json::Array(inner)) = options.get("passes") else {
        return Err(invalid(
            format!("{path}.repeat.passes"),
            "expected a list of passes",
        ));
    };
    let mut steps = Vec::new();
    for (i, step) in inner.iter().enumerate() {
        let path = format!("{path}.repeat.passes[{i}]");
        let (name, options) = name_and_options(&path, step)?;
        if name == "repeat" {
            return Err(invalid(
                path,
                "a group that repeats can't stand in another one",
            ));
        }
        steps.push(pass(&path, name, options, registry)?);
    }
    Ok(Item::Repeat { max, steps })
}

/// Makes a pass with its limits from a map of its options, which may hold `accept`.
pub fn pass(
    path: &str,
    name: &str,
    mut options: Map<String, Json>,
    registry: &Registry,
) -> Result<Step, OptionError> {
    let accept = match options.remove("accept") {
        Some(limits) => accept(&format!("{name}.accept"), &limits).map_err(|e| e.within(path))?,
        None => Accept::default(),
    };
    let entry = registry.find(name).map_err(|e| e.within(path))?;
    Ok(Step {
        pass: entry.make(&options).map_err(|e| e.within(path))?,
        accept,
    })
}

fn name_and_options<'a>(
    path: &str,
    step: &'a Json,
) -> Result<(&'a str, Map<String, Json>), OptionError> {
    match step {
        Json::String(name) => Ok((name, Map::new())),
        Json::Object(map) if map.len() == 1 => match map.iter().next() {
            Some((name, Json::Object(options))) => Ok((name, options.clone())),
            Some((name, Json::Null)) => Ok((name, Map::new())),
            _ => Err(invalid(
                path,
                "expected a map of options after the pass's name",
            )),
        },
        _ => Err(invalid(
            path,
            "expected a pass's name, or a name with a map of options",
        )),
    }
}

fn accept(path: &str, limits: &Json) -> Result<Accept, OptionError> {
    let shape = schemars::schema_for!(Accept).to_value();
    check_keys(path, limits, &shape, &shape, &[])?;
    let accept: Accept =
        serde_json::from_value(limits.clone()).map_err(|e| invalid(path, e.to_string()))?;
    let values = [
        accept.min_sqnr_db,
        accept.min_cosine,
        accept.max_accuracy_drop,
        accept.max_latency_ratio,
        accept.max_size_ratio,
    ];
    if values.iter().flatten().any(|v| !v.is_finite()) {
        return Err(invalid(path, "limits are finite numbers"));
    }
    Ok(accept)
}

fn known_keys(path: &str, map: &Map<String, Json>, known: &[&str]) -> Result<(), OptionError> {
    match map.keys().find(|k| !known.contains(&k.as_str())) {
        None => Ok(()),
        Some(key) => Err(OptionError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
            nearest: nearest(key, known.iter().copied()),
            known: known.iter().map(|k| (*k).to_owned()).collect(),
        }),
    }
}

fn invalid(path: impl Into<String>, reason: impl Into<String>) -> OptionError {
    OptionError::Invalid {
        path: path.into(),
        reason: reason.into(),
    }
}

/// The JSON schema of a recipe over the passes of a registry, for editors.
pub fn json_schema(registry: &Registry) -> Json {
    let mut defs = Map::new();
    let limits = hoist(
        "accept",
        schemars::schema_for!(Accept).to_value(),
        &mut defs,
    );
    defs.insert("accept".into(), limits);
    let mut names = Vec::new();
    let mut forms = Vec::new();
    for entry in registry.passes() {
        let name = entry.info.name;
        names.push(json!(name));
        let mut options = hoist(name, entry.schema(), &mut defs);
        let narrow = narrow_schema(&options);
        let level = json!({
            "type": "object",
            "additionalProperties": { "anyOf": [{ "const": "skip" }, narrow] },
        });
        if let Some(o) = options.as_object_mut() {
            let properties = o.entry("properties").or_insert_with(|| json!({}));
            if let Some(p) = properties.as_object_mut() {
                p.insert("by-type".into(), level.clone());
                p.insert("by-name".into(), level);
                p.insert("accept".into(), json!({ "$ref": "#/$defs/accept" }));
            }
            o.insert("additionalProperties".into(), json!(false));
            o.insert("description".into(), json!(entry.info.summary));
        }
        defs.insert(format!("options-{name}"), options);
        let reference = format!("#/$defs/options-{name}");
        forms.push(json!({
            "type": "object",
            "properties": { name: { "anyOf": [{ "$ref": reference }, { "type": "null" }] } },
            "required": [name],
            "additionalProperties": false,
        }));
    }
    let mut pass = vec![json!({ "enum": names })];
    pass.extend(forms);
    defs.insert("pass".into(), json!({ "anyOf": pass }));
    let list = json!({ "type": "array", "items": { "$ref": "#/$defs/pass" } });
    let repeat = json!({
        "type": "object",
        "properties": { "repeat": {
            "type": "object",
            "properties": { "max": { "type": "integer", "minimum": 1, "maximum": 1000, "default": DEFAULT_ROUNDS }, "passes": list },
            "required": ["passes"],
            "additionalProperties": false,
        } },
        "required": ["repeat"],
        "additionalProperties": false,
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "paring recipe",
        "type": "object",
        "properties": {
            "description": { "type": "string" },
            "passes": { "type": "array", "items": { "anyOf": [{ "$ref": "#/$defs/pass" }, repeat] } },
            "accept": { "$ref": "#/$defs/accept" },
        },
        "required": ["passes"],
        "additionalProperties": false,
        "$defs": defs,
    })
}

/// The schema of a narrower level: the options that may differ between operators.
fn narrow_schema(options: &Json) -> Json {
    let mut narrow = options.clone();
    if let Some(p) = narrow.get_mut("properties").and_then(Json::as_object_mut) {
        p.retain(|_, v| v.get("x-scope").and_then(Json::as_str) != Some("pass"));
    }
    if let Some(o) = narrow.as_object_mut() {
        o.insert("additionalProperties".into(), json!(false));
    }
    narrow
}

/// Moves a schema's own definitions to the common ones, under names that no other pass has.
fn hoist(owner: &str, mut schema: Json, defs: &mut Map<String, Json>) -> Json {
    let own = schema.as_object_mut().and_then(|o| o.remove("$defs"));
    if let Some(Json::Object(own)) = own {
        for (name, mut definition) in own {
            requalify(owner, &mut definition);
            defs.insert(format!("{owner}.{name}"), definition);
        }
        requalify(owner, &mut schema);
    }
    if let Some(o) = schema.as_object_mut() {
        o.remove("$schema");
        o.remove("title");
    }
    schema
}

/// Rewrites references to definitions for their new names.
fn requalify(owner: &str, schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            for (key, inner) in map {
                match inner {
                    Json::String(target) if key == "$ref" => {
                        if let Some(name) = target.strip_prefix("#/$defs/") {
                            *target = format!("#/$defs/{owner}.{name}");
                        }
                    }
                    inner => requalify(owner, inner),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|i| requalify(owner, i)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;

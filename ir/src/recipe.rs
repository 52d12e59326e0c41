//! Recipes: pipelines as data.
//!
//! ```yaml
//! description: Half the weights away
//! passes:
//!   - recipe: clean
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
//! `recipe: NAME` stands for the steps of another recipe of the registry. Limits on the whole of
//! that recipe hold for the whole of the one that includes it, unless it sets the same limit
//! itself.
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

/// Reads the text of a registry's recipe; the error says what is wrong with it.
pub type ReadText<'a> = &'a dyn Fn(&str) -> Result<Json, OptionError>;

/// A recipe that is bound to the passes of a registry.
#[derive(Debug)]
pub struct Bound {
    /// What runs.
    pub pipeline: Pipeline,
    /// The recipe with the steps of included recipes written out.
    pub json: Json,
}

/// Makes the pipeline that a recipe describes. `read` reads the recipes that it includes.
pub fn from_json(
    recipe: &Json,
    registry: &Registry,
    read: ReadText<'_>,
) -> Result<Bound, OptionError> {
    let mut binder = Binder {
        registry,
        read,
        open: Vec::new(),
        in_group: false,
    };
    let steps = binder.recipe(recipe)?;
    let mut json = recipe.clone();
    if let Some(map) = json.as_object_mut() {
        map.insert("passes".into(), Json::Array(steps.json));
        if limits(map)? != steps.accept {
            let all = serde_json::to_value(&steps.accept);
            map.insert(
                "accept".into(),
                all.map_err(|e| invalid("accept", e.to_string()))?,
            );
        }
    }
    let mut pipeline = Pipeline::new();
    pipeline.items = steps.items;
    pipeline.accept = steps.accept;
    pipeline.check_order()?;
    Ok(Bound { pipeline, json })
}

/// What a list of steps comes to.
#[derive(Default)]
struct Steps {
    items: Vec<Item>,
    /// The same as data, without includes.
    json: Vec<Json>,
    accept: Accept,
}

impl Steps {
    fn push(&mut self, item: Item, json: &Json) {
        self.items.push(item);
        self.json.push(json.clone());
    }

    /// Takes the steps of an included recipe; of its limits those that are not set yet.
    fn extend(&mut self, included: Steps) {
        self.items.extend(included.items);
        self.json.extend(included.json);
        self.accept.fill(&included.accept);
    }
}

struct Binder<'a> {
    registry: &'a Registry,
    read: ReadText<'a>,
    /// The recipes that are being included, outermost first.
    open: Vec<String>,
    /// Whether the steps stand in a group that repeats.
    in_group: bool,
}

impl Binder<'_> {
    fn recipe(&mut self, recipe: &Json) -> Result<Steps, OptionError> {
        let Json::Object(map) = recipe else {
            return Err(invalid("recipe", "expected a map with the key passes"));
        };
        known_keys("recipe", map, &["description", "passes", "accept"])?;
        if map.get("description").is_some_and(|d| !d.is_string()) {
            return Err(invalid("description", "expected text"));
        }
        let Some(Json::Array(list)) = map.get("passes") else {
            return Err(invalid("passes", "expected a list of passes"));
        };
        let mut steps = Steps {
            accept: limits(map)?,
            ..Steps::default()
        };
        for (i, step) in list.iter().enumerate() {
            self.step(&format!("passes[{i}]"), step, &mut steps)?;
        }
        Ok(steps)
    }

    /// One step, whose place `path` names for messages: `name`, `{name: {option: value}}`,
    /// `{repeat: {max, passes}}` or `{recipe: name}`.
    fn step(&mut self, path: &str, step: &Json, steps: &mut Steps) -> Result<(), OptionError> {
        if let Some(name) = included(path, step)? {
            steps.extend(self.include(path, name)?);
            return Ok(());
        }
        let (name, options) = name_and_options(path, step)?;
        if name != "repeat" {
            let pass = pass(path, name, options, self.registry)?;
            steps.push(Item::Pass(pass), step);
            return Ok(());
        }
        if self.in_group {
            let reason = "a group that repeats can't stand in another one";
            return Err(invalid(path, reason));
        }
        let path = format!("{path}.repeat");
        known_keys(&path, &options, &["max", "passes"])?;
        let max = rounds(&path, options.get("max"))?;
        let Some(Json::Array(list)) = options.get("passes") else {
            return Err(invalid(
                format!("{path}.passes"),
                "expected a list of passes",
            ));
        };
        let mut inner = Steps::default();
        self.in_group = true;
        for (i, step) in list.iter().enumerate() {
            self.step(&format!("{path}.passes[{i}]"), step, &mut inner)?;
        }
        self.in_group = false;
        let mut group = options.clone();
        group.insert("passes".into(), Json::Array(inner.json));
        let passes = inner.items.into_iter().filter_map(|item| match item {
            Item::Pass(step) => Some(step),
            Item::Repeat { .. } => None,
        });
        let item = Item::Repeat {
            max,
            steps: passes.collect(),
        };
        steps.push(item, &json!({ "repeat": group }));
        steps.accept.fill(&inner.accept);
        Ok(())
    }

    /// The steps of a recipe of the registry.
    fn include(&mut self, path: &str, name: &str) -> Result<Steps, OptionError> {
        let path = format!("{path}.recipe");
        let Some(text) = self.registry.recipe(name) else {
            let known: Vec<&str> = self.registry.recipes().iter().map(|(n, _)| *n).collect();
            let hint = match nearest(name, known.iter().copied()) {
                Some(n) => format!("did you mean \"{n}\"?"),
                None => format!("known are {}", known.join(", ")),
            };
            let reason = format!("there is no ready-made recipe \"{name}\"; {hint}");
            return Err(invalid(path, reason));
        };
        if self.open.iter().any(|n| n == name) {
            let way = self.open.join(" includes ");
            let reason = format!("{way} includes {name}, which goes round in a circle");
            return Err(invalid(path, reason));
        }
        self.open.push(name.to_owned());
        let place = format!("{path}({name})");
        let steps = (self.read)(text)
            .and_then(|json| self.recipe(&json))
            .map_err(|e| e.within(&place))?;
        self.open.pop();
        Ok(steps)
    }
}

/// The name of the recipe that a step includes.
fn included<'a>(path: &str, step: &'a Json) -> Result<Option<&'a str>, OptionError> {
    let map = step.as_object().filter(|m| m.len() == 1);
    match map.and_then(|m| m.get("recipe")) {
        None => Ok(None),
        Some(Json::String(name)) => Ok(Some(name)),
        Some(_) => Err(invalid(
            format!("{path}.recipe"),
            "expected the name of a ready-made recipe",
        )),
    }
}

fn rounds(path: &str, max: Option<&Json>) -> Result<usize, OptionError> {
    let Some(max) = max else {
        return Ok(DEFAULT_ROUNDS);
    };
    max.as_u64()
        .filter(|n| (1..=1000).contains(n))
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| invalid(format!("{path}.max"), "expected a number from 1 to 1000"))
}

/// The limits on the whole of a recipe.
fn limits(recipe: &Map<String, Json>) -> Result<Accept, OptionError> {
    recipe
        .get("accept")
        .map_or_else(|| Ok(Accept::default()), |l| accept("accept", l))
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
    let recipes: Vec<&str> = registry.recipes().iter().map(|(n, _)| *n).collect();
    let include = json!({
        "type": "object",
        "description": "The steps of a ready-made recipe",
        "properties": { "recipe": { "enum": recipes } },
        "required": ["recipe"],
        "additionalProperties": false,
    });
    defs.insert("include".into(), include);
    let in_group = json!([{ "$ref": "#/$defs/pass" }, { "$ref": "#/$defs/include" }]);
    let list = json!({ "type": "array", "items": { "anyOf": in_group } });
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
            "passes": { "type": "array", "items": { "anyOf": [{ "$ref": "#/$defs/pass" }, { "$ref": "#/$defs/include" }, repeat] } },
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

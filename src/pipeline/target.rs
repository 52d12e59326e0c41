//! Target profiles: sets the target of every pass that has one, and reads profile files.
//!
//! A pass has a target when the schema of its options marks one with `x-target`. Its value is the
//! name of a built-in profile, a map, or a file ending in `.yaml`, `.yml` or `.json`; the file is
//! read here, since passes know no YAML and open no files for it, and stands in the recipe as the
//! map that it holds.

use std::path::Path;

use paring_ir::Registry;
use serde_json::{Map, Value as Json};

use super::RecipeError;

/// Whether a text names a profile file.
fn is_file(text: &str) -> bool {
    let extension = Path::new(text).extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| ["yaml", "yml", "json"].contains(&e))
}

/// The value of a `target` option, with a file replaced by what it holds.
pub(super) fn read(value: &Json) -> Result<Json, RecipeError> {
    let Some(name) = value.as_str().filter(|n| is_file(n)) else {
        return Ok(value.clone());
    };
    let path = Path::new(name);
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(super::Recipe::parse(name, &text)?.json)
}

/// The name of the option that holds the target of a pass.
fn option_of(registry: &Registry, pass: &str) -> Option<String> {
    let schema = registry.get(pass)?.schema();
    let properties = schema.get("properties")?.as_object()?;
    let marked = |(_, p): &(&String, &Json)| p.get("x-target") == Some(&Json::Bool(true));
    properties.iter().find(marked).map(|(name, _)| name.clone())
}

/// Replaces profile files in the options of a pass by what they hold.
pub(super) fn resolve(
    registry: &Registry,
    pass: &str,
    options: &mut Map<String, Json>,
) -> Result<(), RecipeError> {
    let names_file = |v: &Json| v.as_str().is_some_and(is_file);
    // The schema is only looked at when it matters.
    if !options.values().any(names_file) {
        return Ok(());
    }
    if let Some(option) = option_of(registry, pass)
        && let Some(value) = options.get_mut(&option)
    {
        *value = read(value)?;
    }
    Ok(())
}

/// Resolves the files of all steps, and sets the target of the steps that have none yet.
/// Returns how many got it.
pub(super) fn set(
    steps: &mut Json,
    registry: &Registry,
    target: Option<&Json>,
) -> Result<usize, RecipeError> {
    let mut count = 0;
    for step in steps.as_array_mut().into_iter().flatten() {
        if let Some(inner) = step.get_mut("repeat").and_then(|r| r.get_mut("passes")) {
            count += set(inner, registry, target)?;
            continue;
        }
        let (name, mut options) = match &*step {
            Json::String(name) => (name.clone(), Map::new()),
            Json::Object(map) => match map.iter().next() {
                Some((name, Json::Object(options))) => (name.clone(), options.clone()),
                Some((name, Json::Null)) => (name.clone(), Map::new()),
                // What is wrong with it is told when the recipe is bound.
                _ => continue,
            },
            _ => continue,
        };
        resolve(registry, &name, &mut options)?;
        if let (Some(target), Some(option)) = (target, option_of(registry, &name))
            && !options.contains_key(&option)
        {
            options.insert(option, target.clone());
            count += 1;
        }
        if !options.is_empty() {
            *step = Json::Object(Map::from_iter([(name, Json::Object(options))]));
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use serde_json::json;

    use super::*;

    #[test]
    fn every_pass_with_a_target_gets_it_unless_it_has_one() {
        let registry = paring_passes::builtin();
        let mut steps = json!([
            "quantize-int8",
            {"repeat": {"passes": [{"quantize-int8": {"target": "generic"}}]}},
            {"prune-weights": {"sparsity": 0.1}}
        ]);
        let count = set(&mut steps, &registry, Some(&json!("tract"))).unwrap();
        assert_eq!(count, 1);
        assert_eq!(
            steps,
            json!([
                {"quantize-int8": {"target": "tract"}},
                {"repeat": {"passes": [{"quantize-int8": {"target": "generic"}}]}},
                {"prune-weights": {"sparsity": 0.1}}
            ])
        );
    }

    #[test]
    fn a_profile_file_becomes_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.yaml");
        std::fs::write(&path, "opset: 13\nlayers:\n  MatMul: {output: float}\n").unwrap();
        let name = path.to_str().unwrap();
        let mut options = Map::from_iter([("target".to_owned(), json!(name))]);
        resolve(&paring_passes::builtin(), "quantize-int8", &mut options).unwrap();
        assert_eq!(
            options["target"],
            json!({"opset": 13, "layers": {"MatMul": {"output": "float"}}})
        );
        let missing = json!("no/such/profile.yaml");
        assert!(read(&missing).is_err());
        assert_eq!(read(&json!("tract")).unwrap(), json!("tract"));
    }
}

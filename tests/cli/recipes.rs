//! Recipes as YAML, and their schema.

use serde_json::json;

use super::*;

/// Why a value is not what a JSON schema asks for. Knows the keywords that `paring schema` uses,
/// and fails on others.
fn violation(value: &Json, schema: &Json, root: &Json) -> Option<String> {
    let Json::Object(rules) = schema else {
        return (schema == &json!(false)).then(|| format!("{value} is not wanted"));
    };
    rules.iter().find_map(|(rule, want)| match &**rule {
        "$ref" => {
            let target = want.as_str().unwrap().strip_prefix('#').unwrap();
            violation(value, root.pointer(target).expect(target), root)
        }
        "type" => {
            let names = match want {
                Json::Array(names) => names.clone(),
                name => vec![name.clone()],
            };
            let fits = |name: &Json| match name.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "null" => value.is_null(),
                "number" => value.is_number(),
                "integer" => value.is_i64() || value.is_u64(),
                other => panic!("type {other}"),
            };
            (!names.iter().any(fits)).then(|| format!("{value} is no {want}"))
        }
        "enum" => {
            let known = want.as_array().unwrap().contains(value);
            (!known).then(|| format!("{value} is none of {want}"))
        }
        "const" => (value != want).then(|| format!("{value} is not {want}")),
        "anyOf" | "oneOf" => {
            let all: Vec<_> = want
                .as_array()
                .unwrap()
                .iter()
                .map(|s| violation(value, s, root))
                .collect();
            let fitting = all.iter().filter(|v| v.is_none()).count();
            let right = if rule == "oneOf" {
                fitting == 1
            } else {
                fitting > 0
            };
            (!right).then(|| format!("{value} fits {fitting}: {all:?}"))
        }
        "minimum" => {
            // Limits are about numbers only.
            let below = value.as_f64().is_some_and(|v| v < want.as_f64().unwrap());
            below.then(|| format!("{value} < {want}"))
        }
        "maximum" => {
            let above = value.as_f64().is_some_and(|v| v > want.as_f64().unwrap());
            above.then(|| format!("{value} > {want}"))
        }
        "required" => {
            let keys = want.as_array().unwrap().iter().map(|k| k.as_str().unwrap());
            let mut missing = keys.filter(|k| value.is_object() && value.get(k).is_none());
            missing.next().map(|k| format!("no {k} in {value}"))
        }
        "properties" => {
            let mut properties = want.as_object().unwrap().iter();
            properties.find_map(|(k, s)| violation(value.get(k)?, s, root))
        }
        "additionalProperties" => {
            let known = rules.get("properties").and_then(Json::as_object);
            let mut others = value.as_object().into_iter().flatten();
            others.find_map(|(k, v)| {
                let is_known = known.is_some_and(|p| p.contains_key(k));
                let found = (!is_known).then(|| violation(v, want, root)).flatten();
                found.map(|f| format!("{k}: {f}"))
            })
        }
        "items" => value
            .as_array()?
            .iter()
            .find_map(|v| violation(v, want, root)),
        "minItems" => {
            let few = value
                .as_array()
                .is_some_and(|v| (v.len() as u64) < want.as_u64().unwrap());
            few.then(|| format!("{value} is too short"))
        }
        "maxItems" => {
            let many = value
                .as_array()
                .is_some_and(|v| (v.len() as u64) > want.as_u64().unwrap());
            many.then(|| format!("{value} is too long"))
        }
        "uniqueItems" => {
            let items = value.as_array()?;
            let twice = items
                .iter()
                .enumerate()
                .any(|(i, v)| items.iter().skip(i + 1).any(|w| v == w));
            twice.then(|| format!("{value} has something twice"))
        }
        // The program itself checks what patterns of names say.
        "pattern" => None,
        // These say nothing about what is valid.
        "$schema" | "$defs" | "title" | "description" | "default" | "format" | "x-scope"
        | "x-target" => None,
        other => panic!("the keyword {other}"),
    })
}

#[test]
fn the_schema_takes_the_ready_recipes_and_refuses_mistakes() {
    let schema = paring(&["schema"]).exits(0).json();
    let valid = |recipe: &Json| violation(recipe, &schema, &schema);
    for (name, _) in paring::registry().recipes() {
        let recipe = paring(&["recipes", name, "--json"]).exits(0).json();
        assert_eq!(valid(&recipe), None, "{name}");
    }
    let full = json!({
        "description": "all there is",
        "passes": [
            { "prune-weights": {
                "sparsity": 0.5, "distribution": "global",
                "by-type": { "Gemm": { "sparsity": 0.25 }, "Conv": "skip" },
                "by-name": { "*/head/*": "skip" },
                "accept": { "min-sqnr-db": 10 },
            } },
            { "repeat": { "max": 3, "passes": ["lift-constants", { "fold-constants": null }] } },
        ],
        "accept": { "max-accuracy-drop": 0.5 },
    });
    assert_eq!(valid(&full), None);
    for mistake in [
        json!({}),
        json!({ "pases": [], "passes": [] }),
        json!({ "passes": ["prune-wieghts"] }),
        json!({ "passes": [{ "prune-wieghts": {} }] }),
        json!({ "passes": [{ "prune-weights": { "sparsty": 0.5 } }] }),
        json!({ "passes": [{ "prune-weights": { "sparsity": 1.5 } }] }),
        json!({ "passes": [{ "prune-weights": { "sparsity": "half" } }] }),
        json!({ "passes": [{ "prune-weights": { "by-type": { "Gemm": { "sparsty": 1 } } } }] }),
        json!({ "passes": [{ "prune-weights": { "by-type": { "Gemm": "leave" } } }] }),
        // The spread is for the whole pass.
        json!({ "passes": [{ "prune-weights": { "by-type": { "Gemm": { "distribution": "global" } } } }] }),
        json!({ "passes": [{ "prune-weights": { "accept": { "min-sqnr": 10 } } }] }),
        json!({ "passes": [{ "repeat": { "passes": [{ "repeat": { "passes": [] } }] } }] }),
        json!({ "passes": [{ "repeat": { "max": 0, "passes": [] } }] }),
        json!({ "passes": [], "accept": { "min-cosine": 2 } }),
    ] {
        assert!(valid(&mistake).is_some(), "{mistake}");
    }
}

#[test]
fn the_schema_and_the_program_agree_about_defaults() {
    let schema = paring(&["schema"]).exits(0).json();
    for entry in paring::registry().passes() {
        let recipe = json!({ "passes": [{ entry.info.name: entry.defaults() }] });
        assert_eq!(
            violation(&recipe, &schema, &schema),
            None,
            "{}",
            entry.info.name
        );
        let defaults = entry.defaults().as_object().unwrap().clone();
        assert!(entry.make(&defaults).is_ok(), "{}", entry.info.name);
    }
}

#[test]
fn mistakes_in_a_recipe_are_told_with_their_place() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    for (text, message) in [
        ("passes: [", "recipe.yaml:"),
        (
            "passes: []\npasses: []",
            "duplicate entry with key \"passes\"",
        ),
        ("passes: [clean]", "passes[0].clean: there is no such pass"),
        (
            "passes:\n  - prune-weights: {sparsity: 0.5, sparsity: 0.6}",
            "duplicate entry with key \"sparsity\"",
        ),
        (
            "passes:\n  - prune-weights: {by-type: {Gem: {sparsity: 0.6}}}",
            "passes[0].prune-weights.by-type.Gem: there is no standard operator \"Gem\"; did you mean \"Gemm\"?",
        ),
        (
            "passes:\n  - prune-weights: {by-type: {Gemm: {sparsity: 1.6}}}",
            "passes[0].prune-weights.by-type.Gemm.sparsity: expected a number from 0 to 1, found 1.6",
        ),
        (
            "passes:\n  - prune-weights: {by-name: {'a*': {distribution: global}}}",
            "\"distribution\" is for the whole pass",
        ),
        (
            "passes: []\naccept: {max-accuracy-drop: .inf}",
            "accept.max-accuracy-drop: expected a finite number, found .inf",
        ),
        ("- passes", "expected a map with the key passes"),
        ("", "expected a map with the key passes"),
    ] {
        let recipe = dir.file("recipe.yaml", text);
        let run = paring(&["optimize", &file, "-o", &out, "--recipe", &recipe]).exits(4);
        run.complains(message);
        run.complains("recipe.yaml");
        assert!(!exists(&out));
    }
}

#[test]
fn names_that_match_nothing_are_told() {
    let dir = Folder::new();
    let (file, out) = (dir.model("net.onnx", NET), dir.path("out.onnx"));
    let pass = "prune-weights:by-name.\"frist\"=skip";
    let args = ["optimize", &file, "-o", &out, "--no-time", "--pass", pass];
    let run = paring(&args).exits(0);
    let note = "prune-weights: by-name \"frist\" matches no operator";
    assert!(run.out.contains(note), "{}", run.out);
}

#![allow(clippy::unwrap_used)]

use super::*;

fn registry() -> Registry {
    crate::registry()
}

#[test]
fn the_ready_made_recipes_are_pipelines() {
    let registry = registry();
    for (name, _) in registry.recipes() {
        let recipe = Recipe::find(name, &registry).unwrap();
        assert!(!recipe.description().is_empty(), "{name}");
        let pipeline = recipe.pipeline(&registry).unwrap();
        assert!(pipeline.steps().count() > 0, "{name}");
        let again = Recipe::parse(name, &recipe.to_yaml()).unwrap();
        assert_eq!(again.json, recipe.json, "{name}");
    }
}

#[test]
fn a_misspelt_recipe_gets_a_suggestion() {
    let message = Recipe::find("claen", &registry()).unwrap_err().to_string();
    assert!(message.ends_with("did you mean \"clean\"?"), "{message}");
    let message = Recipe::find("nothing-like-it", &registry()).unwrap_err();
    assert!(
        message.to_string().contains("the recipes are "),
        "{message}"
    );
}

#[test]
fn the_short_form_is_checked_where_it_stands() {
    let (registry, mut recipe) = (registry(), Recipe::empty());
    push_short(&mut recipe, "prune-weights:sparsity=0.7", &registry).unwrap();
    push_short(&mut recipe, "eliminate-dead-code", &registry).unwrap();
    let limits = "prune-weights:accept.min-cosine=0.9,by-type.Gemm=skip";
    push_short(&mut recipe, limits, &registry).unwrap();
    let expected = json!({"passes": [
        { "prune-weights": { "sparsity": 0.7 } },
        "eliminate-dead-code",
        { "prune-weights": { "accept": { "min-cosine": 0.9 }, "by-type": { "Gemm": "skip" } } },
    ]});
    assert_eq!(recipe.json, expected);
    for (text, message) in [
        (
            "prune-weight",
            "--pass prune-weight: prune-weight: there is no such pass; did you mean \"prune-weights\"?",
        ),
        (
            "prune-weights:sparsty=0.5",
            "--pass prune-weights:sparsty=0.5: prune-weights: there is no \"sparsty\" here; did you mean \"sparsity\"?",
        ),
        (
            "prune-weights:accept.min-cosin=1",
            "--pass prune-weights:accept.min-cosin=1: prune-weights.accept: there is no \"min-cosin\" here; did you mean \"min-cosine\"?",
        ),
    ] {
        let found = push_short(&mut recipe, text, &registry).unwrap_err();
        let mut found_text = found.to_string();
        if let Some(source) = std::error::Error::source(&found)
            && !found_text.contains(&source.to_string())
        {
            found_text += &format!(": {source}");
        }
        assert_eq!(found_text, message);
    }
}

#[test]
fn options_that_are_no_map_are_refused() {
    let registry = registry();
    let optimizer = crate::Optimizer::new(&registry).pass("prune-weights", json!(0.5));
    let mut model = paring_ir::text::parse_model(
        "<ir_version: 8, opset_import: [\"\": 17]> g (float[1] x) => (float[1] y) { y = Relu (x) }",
    )
    .unwrap();
    let message = optimizer.run(&mut model).unwrap_err().to_string();
    assert!(
        message.contains("passes[0]: expected a map of options"),
        "{message}"
    );
}

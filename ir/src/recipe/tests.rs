#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::model::Model;
use crate::pass::{Changed, Effect, Pass, PassContext, PassError, PassInfo};
use crate::select::OptionSet;

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Options {
    /// A choice whose type both passes call `Mode`.
    mode: inner::Mode,
    #[schemars(extend("x-scope" = "pass"))]
    rounds: usize,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct OtherOptions {
    mode: other::Mode,
}

mod inner {
    #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    pub(super) enum Mode {
        #[default]
        Near,
        Far,
    }
}

mod other {
    #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    pub(super) enum Mode {
        #[default]
        Soft,
        Loud,
    }
}

macro_rules! pass {
    ($type:ident, $name:literal, $options:ident) => {
        struct $type;
        impl Pass for $type {
            const INFO: PassInfo = PassInfo::new($name, "A pass", Effect::Exact);
            type Options = $options;
            fn new(_: OptionSet<$options>) -> Result<Self, OptionError> {
                Ok($type)
            }
            fn run(&self, _: &mut Model, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
                Ok(Changed::No)
            }
        }
    };
}
pass!(First, "look-around", Options);
pass!(Second, "make-noise", OtherOptions);

fn registry() -> Registry {
    Registry::new()
        .with::<First>()
        .with::<Second>()
        .with_recipe(
            "quiet",
            r#"{"passes": ["look-around"], "accept": {"min-cosine": 0.5, "max-size-ratio": 0.5}}"#,
        )
        .with_recipe("loud", r#"{"passes": [{"recipe": "quiet"}, "make-noise"]}"#)
        .with_recipe(
            "long",
            r#"{"passes": [{"repeat": {"passes": ["make-noise"]}}]}"#,
        )
        .with_recipe("self", r#"{"passes": [{"recipe": "other"}]}"#)
        .with_recipe("other", r#"{"passes": [{"recipe": "self"}]}"#)
        .with_recipe("odd", r#"{"passes": [{"make-noise": {"mod": 1}}]}"#)
        .with_recipe("broken", "{")
}

fn parse(text: &str) -> Result<Json, OptionError> {
    serde_json::from_str(text).map_err(|e| invalid("text", e.to_string()))
}

fn read(recipe: Json) -> Result<Pipeline, OptionError> {
    from_json(&recipe, &registry(), &parse).map(|b| b.pipeline)
}

#[test]
fn a_recipe_is_a_list_of_passes_with_options_groups_and_limits() {
    let pipeline = read(json!({
        "description": "What it does",
        "passes": [
            "look-around",
            { "make-noise": null },
            { "repeat": { "max": 3, "passes": ["make-noise", { "look-around": { "rounds": 2 } }] } },
            { "repeat": { "passes": [] } },
            { "look-around": { "mode": "Far", "accept": { "min-cosine": 0.9 } } },
        ],
        "accept": { "max-size-ratio": 0.5 },
    }))
    .unwrap();
    let names: Vec<&str> = pipeline.steps().map(|s| s.pass.info().name).collect();
    assert_eq!(
        names,
        [
            "look-around",
            "make-noise",
            "make-noise",
            "look-around",
            "look-around"
        ]
    );
    assert!(matches!(&pipeline.items[2], Item::Repeat { max: 3, steps } if steps.len() == 2));
    assert!(matches!(
        &pipeline.items[3],
        Item::Repeat {
            max: DEFAULT_ROUNDS,
            ..
        }
    ));
    let Item::Pass(last) = &pipeline.items[4] else {
        panic!("a pass")
    };
    assert_eq!(last.accept.min_cosine, Some(0.9));
    assert_eq!(last.pass.given().keys().collect::<Vec<_>>(), ["mode"]);
    assert_eq!(pipeline.accept.max_size_ratio, Some(0.5));
    assert!(pipeline.has_limits() && !pipeline.is_lossy());
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (recipe, message) in [
        (json!([]), "recipe: expected a map with the key passes"),
        (json!({}), "passes: expected a list of passes"),
        (
            json!({"passes": "look-around"}),
            "passes: expected a list of passes",
        ),
        (
            json!({"pases": []}),
            "recipe: there is no \"pases\" here; did you mean \"passes\"?",
        ),
        (
            json!({"passes": [], "description": 3}),
            "description: expected text",
        ),
        (
            json!({"passes": ["look-arond"]}),
            "passes[0].look-arond: there is no such pass; did you mean \"look-around\"?",
        ),
        (
            json!({"passes": ["look-around", {"make-noise": {"mod": 1}}]}),
            "passes[1].make-noise: there is no \"mod\" here; did you mean \"mode\"?",
        ),
        (
            json!({"passes": [7]}),
            "passes[0]: expected a pass's name, or a name with a map of options",
        ),
        (
            json!({"passes": [{"look-around": {}, "make-noise": {}}]}),
            "passes[0]: expected a pass's name, or a name with a map of options",
        ),
        (
            json!({"passes": [{"look-around": 3}]}),
            "passes[0]: expected a map of options after the pass's name",
        ),
        (
            json!({"passes": [{"repeat": {"max": 0, "passes": []}}]}),
            "passes[0].repeat.max: expected a number from 1 to 1000",
        ),
        (
            json!({"passes": [{"repeat": {"maxx": 2, "passes": []}}]}),
            "passes[0].repeat: there is no \"maxx\" here; did you mean \"max\"?",
        ),
        (
            json!({"passes": ["repeat"]}),
            "passes[0].repeat.passes: expected a list of passes",
        ),
        (
            json!({"passes": [{"repeat": {"passes": [{"repeat": {"passes": []}}]}}]}),
            "passes[0].repeat.passes[0]: a group that repeats can't stand in another one",
        ),
        (
            json!({"passes": [{"repeat": {"passes": [{"look-around": {"modes": 1}}]}}]}),
            "passes[0].repeat.passes[0].look-around: there is no \"modes\" here; did you mean \"mode\"?",
        ),
        (
            json!({"passes": [], "accept": {"min-cosin": 1}}),
            "accept: there is no \"min-cosin\" here; did you mean \"min-cosine\"?",
        ),
        (
            json!({"passes": [{"look-around": {"accept": {"max-size": 1}}}]}),
            "passes[0].look-around.accept: there is no \"max-size\" here; known are min-sqnr-db, min-cosine, max-accuracy-drop, max-latency-ratio, max-size-ratio",
        ),
        (
            json!({"passes": [], "accept": {"min-cosine": 2}}),
            "accept.min-cosine: expected a number from -1 to 1, found 2",
        ),
        (
            json!({"passes": [], "accept": {"max-size-ratio": -1}}),
            "accept.max-size-ratio: expected a number of at least 0, found -1",
        ),
    ] {
        let found = read(recipe).err().map(|e| e.to_string());
        assert_eq!(found.as_deref(), Some(message));
    }
    let wrong = json!({"passes": [], "accept": {"min-sqnr-db": "high"}});
    let message = read(wrong).unwrap_err().to_string();
    assert!(
        message.starts_with("accept") && message.contains("expected f64"),
        "{message}"
    );
}

#[test]
fn included_recipes_are_written_out() {
    let recipe = json!({
        "passes": ["make-noise", { "recipe": "loud" }, { "repeat": { "max": 2, "passes": [{ "recipe": "quiet" }] } }],
        "accept": { "min-cosine": 0.9 },
    });
    let bound = from_json(&recipe, &registry(), &parse).unwrap();
    let names: Vec<&str> = bound.pipeline.steps().map(|s| s.pass.info().name).collect();
    assert_eq!(
        names,
        ["make-noise", "look-around", "make-noise", "look-around"]
    );
    let expected = json!({
        "passes": [
            "make-noise",
            "look-around",
            "make-noise",
            { "repeat": { "max": 2, "passes": ["look-around"] } },
        ],
        // Of the limits of "quiet" those that are not set.
        "accept": { "min-cosine": 0.9, "max-size-ratio": 0.5 },
    });
    assert_eq!(bound.json, expected);
    assert_eq!(bound.pipeline.accept.min_cosine, Some(0.9));
    assert_eq!(bound.pipeline.accept.max_size_ratio, Some(0.5));
    let plain = json!({ "passes": ["make-noise"], "accept": { "min-sqnr-db": 10 } });
    assert_eq!(from_json(&plain, &registry(), &parse).unwrap().json, plain);
}

#[test]
fn recipes_that_can_not_be_included_are_named() {
    for (step, message) in [
        (
            json!({"recipe": "quite"}),
            "passes[0].recipe: there is no ready-made recipe \"quite\"; did you mean \"quiet\"?",
        ),
        (
            json!({"recipe": "a-file.yaml"}),
            "passes[0].recipe: there is no ready-made recipe \"a-file.yaml\"; known are quiet, loud, long, self, other, odd, broken",
        ),
        (
            json!({"recipe": ["quiet"]}),
            "passes[0].recipe: expected the name of a ready-made recipe",
        ),
        (
            json!({"recipe": "self"}),
            "passes[0].recipe(self).passes[0].recipe(other).passes[0].recipe: self includes other includes self, which goes round in a circle",
        ),
        (
            json!({"recipe": "odd"}),
            "passes[0].recipe(odd).passes[0].make-noise: there is no \"mod\" here; did you mean \"mode\"?",
        ),
        (
            json!({"repeat": {"passes": [{"recipe": "long"}]}}),
            "passes[0].repeat.passes[0].recipe(long).passes[0]: a group that repeats can't stand in another one",
        ),
    ] {
        let found = read(json!({"passes": [step]})).err().map(|e| e.to_string());
        assert_eq!(found.as_deref(), Some(message));
    }
    let broken = read(json!({"passes": [{"recipe": "broken"}]})).unwrap_err();
    assert!(
        broken
            .to_string()
            .starts_with("passes[0].recipe(broken).text: "),
        "{broken}"
    );
    // Twice the same recipe is no circle.
    assert!(read(json!({"passes": [{"recipe": "loud"}, {"recipe": "quiet"}]})).is_ok());
}

#[test]
fn the_schema_knows_the_recipes() {
    let schema = json_schema(&registry());
    let names = &schema["$defs"]["include"]["properties"]["recipe"]["enum"];
    assert_eq!(names[0], "quiet");
    assert_eq!(names.as_array().map(Vec::len), Some(7));
}

#[test]
fn a_pass_by_itself_has_no_place_in_front() {
    let Json::Object(options) = json!({"mod": 1}) else {
        panic!("a map")
    };
    let message = pass("", "look-around", options, &registry())
        .err()
        .map(|e| e.to_string());
    assert_eq!(
        message.as_deref(),
        Some("look-around: there is no \"mod\" here; did you mean \"mode\"?")
    );
}

#[test]
fn types_of_the_same_name_keep_apart_in_the_schema() {
    let schema = json_schema(&registry());
    let words = |pass: &str| {
        let mode = &schema["$defs"][format!("options-{pass}")]["properties"]["mode"];
        let target = mode["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        schema.pointer(target).unwrap()["enum"].clone()
    };
    assert_eq!(words("look-around"), json!(["Near", "Far"]));
    assert_eq!(words("make-noise"), json!(["Soft", "Loud"]));
}

#[test]
fn the_schema_has_no_options_of_the_whole_pass_at_narrower_levels() {
    let schema = json_schema(&registry());
    let options = &schema["$defs"]["options-look-around"]["properties"];
    assert!(options.get("rounds").is_some() && options.get("accept").is_some());
    let narrow = &options["by-type"]["additionalProperties"]["anyOf"][1]["properties"];
    assert!(narrow.get("mode").is_some());
    for key in ["rounds", "accept", "by-type", "by-name"] {
        assert_eq!(narrow.get(key), None, "{key}");
    }
}

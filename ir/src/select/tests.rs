#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::text::parse_model;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Options {
    /// A share.
    #[schemars(range(min = 0.0, max = 1.0))]
    share: f64,
    /// Nested options.
    budget: Budget,
    /// A choice.
    mode: Mode,
    /// A list.
    steps: Vec<Budget>,
    /// For the whole pass.
    #[schemars(extend("x-scope" = "pass"))]
    rounds: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Budget {
    macs: Option<f64>,
    #[schemars(range(min = 0.5))]
    size: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Even,
    ByNeed,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            share: 0.5,
            budget: Budget::default(),
            mode: Mode::Even,
            steps: Vec::new(),
            rounds: 3,
        }
    }
}

fn parse(given: Json) -> Result<OptionSet<Options>, OptionError> {
    OptionSet::parse("shrink", given.as_object().unwrap())
}

/// The message about options that are refused.
fn refused(given: Json) -> String {
    parse(given).unwrap_err().to_string()
}

fn model() -> Model {
    parse_model(
        r#"<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[2,2] x) => (float[2,2] y, float[2,2] z) <float[2,2] w = ones> {
            ["body/first"] a = MatMul (x, w)
            ["head/last"] b = MatMul (a, w)
            ["head/act"] c = Relu (b)
            y = Gemm (c, w)
            ["own"] z = com.example.MatMul (c)
        }"#,
    )
    .unwrap()
}

/// The share of each operator, in order; `None` where it is left out.
fn shares(given: Json) -> Vec<Option<f64>> {
    let (options, model) = (parse(given).unwrap(), model());
    let share = |op| options.for_op(&model.graph, op).options().map(|o| o.share);
    model.graph.ops().map(share).collect()
}

#[test]
fn the_whole_pass_is_the_first_level() {
    assert_eq!(shares(json!({})), [Some(0.5); 5]);
    assert_eq!(shares(json!({"share": 0.25})), [Some(0.25); 5]);
}

#[test]
fn a_type_says_only_what_differs() {
    let given = json!({"share": 0.25, "budget": {"macs": 0.5, "size": 0.6},
        "by-type": {"MatMul": {"share": 0.75, "budget": {"size": 0.7}}}});
    let expected = [Some(0.75), Some(0.75), Some(0.25), Some(0.25), Some(0.25)];
    assert_eq!(shares(given.clone()), expected);
    let (options, model) = (parse(given).unwrap(), model());
    let first = model.graph.ops().next().unwrap();
    let budget = options
        .for_op(&model.graph, first)
        .options()
        .unwrap()
        .budget
        .clone();
    assert_eq!(
        budget,
        Budget {
            macs: Some(0.5),
            size: Some(0.7)
        }
    );
}

#[test]
fn operators_of_other_domains_are_written_with_them() {
    let given = json!({"by-type": {"com.example::MatMul": {"share": 0.75}}});
    assert_eq!(
        shares(given),
        [Some(0.5), Some(0.5), Some(0.5), Some(0.5), Some(0.75)]
    );
}

#[test]
fn a_name_goes_over_a_type_and_the_last_one_that_matches_counts() {
    let given = json!({
        "by-type": {"MatMul": {"share": 0.75, "mode": "by-need"}},
        "by-name": {"head/*": {"share": 0.1}, "*/last": {"share": 0.2}},
    });
    let expected = [Some(0.75), Some(0.2), Some(0.1), Some(0.5), Some(0.5)];
    assert_eq!(shares(given.clone()), expected);
    let (options, model) = (parse(given).unwrap(), model());
    let last = model.graph.ops().nth(1).unwrap();
    assert_eq!(
        options.for_op(&model.graph, last).options().unwrap().mode,
        Mode::ByNeed
    );
}

#[test]
fn an_operator_without_a_name_has_that_of_its_first_output() {
    let given = json!({"by-name": {"y": {"share": 0.1}}});
    assert_eq!(shares(given)[3], Some(0.1));
}

#[test]
fn skip_leaves_operators_out_and_a_name_brings_them_back() {
    let given = json!({"by-type": {"MatMul": "skip"}, "by-name": {"head/*": {}, "own": "skip"}});
    assert_eq!(shares(given), [None, Some(0.5), Some(0.5), Some(0.5), None]);
    let options = parse(json!({"by-type": {"MatMul": "skip"}})).unwrap();
    let model = model();
    let op = model.graph.ops().next().unwrap();
    assert!(options.for_op(&model.graph, op).is_skip());
}

#[test]
fn names_that_match_nothing_are_found_also_inside_subgraphs() {
    let inner = parse_model(
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = a () => (float[2] u) { [inner] u = Relu (x) },
                        else_branch = b () => (float[2] v) { v = Neg (x) }>
        }"#,
    )
    .unwrap();
    let options = parse(json!({"by-name": {"inner": {}, "innr": {}, "v": "skip"}})).unwrap();
    assert_eq!(options.unmatched(&inner), ["innr"]);
}

#[test]
fn unknown_keys_are_refused_at_every_level_with_the_nearest() {
    for (given, message) in [
        (
            json!({"shaer": 1}),
            "shrink: there is no \"shaer\" here; did you mean \"share\"?",
        ),
        (
            json!({"by-typ": {}}),
            "shrink: there is no \"by-typ\" here; did you mean \"by-type\"?",
        ),
        (
            json!({"budget": {"mac": 1}}),
            "shrink.budget: there is no \"mac\" here; did you mean \"macs\"?",
        ),
        (
            json!({"steps": [{}, {"sise": 1}]}),
            "shrink.steps[1]: there is no \"sise\" here; did you mean \"size\"?",
        ),
        (
            json!({"by-type": {"Conv": {"shar": 1}}}),
            "shrink.by-type.Conv: there is no \"shar\" here; did you mean \"share\"?",
        ),
        (
            json!({"by-name": {"a*": {"budget": {"maccs": 1}}}}),
            "shrink.by-name.\"a*\".budget: there is no \"maccs\" here; did you mean \"macs\"?",
        ),
        (
            json!({"colour": 1}),
            "shrink: there is no \"colour\" here; known are share, budget, mode, steps, rounds",
        ),
    ] {
        assert_eq!(refused(given), message);
    }
}

#[test]
fn unknown_types_are_refused_with_the_nearest() {
    assert_eq!(
        refused(json!({"by-type": {"Convv": {}}})),
        "shrink.by-type.Convv: there is no standard operator \"Convv\"; did you mean \"Conv\"?"
    );
    let far = refused(json!({"by-type": {"QuiteAnother": {}}}));
    assert!(
        far.ends_with("operators of other domains are written domain::QuiteAnother"),
        "{far}"
    );
}

#[test]
fn options_of_the_whole_pass_are_refused_at_narrower_levels() {
    assert!(parse(json!({"rounds": 4})).is_ok());
    for (given, place) in [
        (
            json!({"by-type": {"Conv": {"rounds": 4}}}),
            "shrink.by-type.Conv",
        ),
        (
            json!({"by-name": {"a*": {"rounds": 4}}}),
            "shrink.by-name.\"a*\"",
        ),
    ] {
        let expected = format!(
            "{place}: \"rounds\" is for the whole pass and can't differ between operators; move it up to \"shrink\""
        );
        assert_eq!(refused(given), expected);
    }
}

#[test]
fn values_of_a_wrong_type_or_range_are_refused_with_their_place() {
    for (given, start) in [
        (
            json!({"share": "much"}),
            "shrink.share: invalid type: string \"much\"",
        ),
        (
            json!({"share": 1.5}),
            "shrink.share: expected a number from 0 to 1, found 1.5",
        ),
        (
            json!({"rounds": -1}),
            "shrink.rounds: expected a number of at least 0, found -1",
        ),
        (
            json!({"budget": {"size": 0.1}}),
            "shrink.budget.size: expected a number of at least 0.5",
        ),
        (json!({"mode": "odd"}), "shrink.mode: unknown variant `odd`"),
        (
            json!({"budget": 3}),
            "shrink.budget: invalid type: integer `3`",
        ),
        (
            json!({"by-type": {"Conv": {"share": -2}}}),
            "shrink.by-type.Conv.share: expected a number from 0 to 1, found -2",
        ),
        (
            json!({"by-name": {"a": {"share": []}}}),
            "shrink.by-name.\"a\".share: invalid type: sequence",
        ),
        (
            json!({"by-type": [1]}),
            "shrink.by-type: expected a map from names to options",
        ),
        (
            json!({"by-type": {"Conv": "leave"}}),
            "shrink.by-type.Conv: expected a map of options or skip",
        ),
        (
            json!({"by-name": {"[": {}}}),
            "shrink.by-name.\"[\": not a valid glob",
        ),
    ] {
        let message = refused(given);
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn errors_can_be_placed_further_in() {
    let error = parse(json!({"shaer": 1})).unwrap_err().within("passes[3]");
    assert!(
        error
            .to_string()
            .starts_with("passes[3].shrink: there is no")
    );
}

#[test]
fn far_words_are_not_suggested() {
    let words = ["prune-weights", "fold-constants", "lift-constants"];
    assert_eq!(
        nearest("fold-constant", words).as_deref(),
        Some("fold-constants")
    );
    assert_eq!(
        nearest("prune-wieghts", words).as_deref(),
        Some("prune-weights")
    );
    assert_eq!(nearest("quantize", words), None);
}

#[test]
fn a_pass_without_options_says_that_nothing_can_be_set() {
    let parse = |given: Json| {
        let Json::Object(given) = given else {
            panic!("a map")
        };
        OptionSet::<NoOptions>::parse("p", &given).map_err(|e| e.to_string())
    };
    assert!(parse(json!({ "by-type": { "Gemm": "skip" } })).is_ok());
    for (given, message) in [
        (
            json!({ "factor": 1 }),
            "p: there is no \"factor\" here; nothing can be set here",
        ),
        (
            json!({ "by-typ": {} }),
            "p: there is no \"by-typ\" here; did you mean \"by-type\"?",
        ),
        (
            json!({ "by-type": { "Gemm": { "factor": 1 } } }),
            "p.by-type.Gemm: there is no \"factor\" here; nothing can be set here",
        ),
    ] {
        assert_eq!(parse(given).err().as_deref(), Some(message));
    }
}

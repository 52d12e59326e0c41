//! The models of these tests have one operator, and its name is the log of what happened: each
//! pass appends its letter. The judge reads the log, too.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use super::*;
use crate::op::NewOp;
use crate::pass::{Conflict, Pass, PassInfo};
use crate::select::OptionSet;
use crate::text::parse_model;
use crate::value::Name;

fn model() -> Model {
    parse_model(
        r#"<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x) => (float[2] y) { [log] y = Relu (x) }"#,
    )
    .unwrap()
}

fn log_of(model: &Model) -> String {
    let op = model.graph.ops().next().unwrap();
    let name = model.graph.op(op).name();
    name.trim_start_matches("log").to_owned()
}

fn append(model: &mut Model, what: &str) -> Result<(), PassError> {
    let op = model.graph.ops().next().unwrap();
    let name = format!("{}{what}", model.graph.op(op).name());
    Ok(model.graph.set_op_name(op, name)?)
}

/// What a pass of these tests does besides appending its letter.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Options {
    /// The letter is appended until it stands there as often, one at a time.
    times: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { times: 1 }
    }
}

/// One pass per letter. Small letters are what passes should be; of the capitals each does
/// something that a pass must not do.
struct Letter<const C: char> {
    options: OptionSet<Options>,
}

const HIDES_N: &[Conflict] = &[Conflict::new("p", "it would hide n")];
const COUNTS_N: &[Conflict] = &[Conflict::new("n", "it would count n")];

const fn info(c: char) -> PassInfo {
    match c {
        'a' => PassInfo::new("a", "Append a", Effect::Exact),
        'b' => PassInfo::new("b", "Append b", Effect::Exact),
        'c' => PassInfo::new("c", "Append c", Effect::Exact),
        'd' => PassInfo::new("d", "Append d", Effect::Exact).runs_first(&["a", "b"]),
        'e' => PassInfo::new("e", "Append e", Effect::Exact),
        'l' => PassInfo::new("l", "Lose a little", Effect::Lossy),
        'm' => PassInfo::new("m", "Lose more", Effect::Lossy).runs_first(&["a"]),
        'n' => PassInfo::new("n", "Append n", Effect::Lossy).never_before(HIDES_N),
        'o' => PassInfo::new("o", "Append o", Effect::Lossy).never_after(COUNTS_N),
        'p' => PassInfo::new("p", "Append p", Effect::Lossy),
        'X' => PassInfo::new("X", "Change the outputs", Effect::Exact),
        'P' => PassInfo::new("P", "Panic", Effect::Exact),
        'L' => PassInfo::new("L", "Edit and deny it", Effect::Exact),
        'C' => PassInfo::new("C", "Claim an edit", Effect::Exact),
        'I' => PassInfo::new("I", "Make an invalid model", Effect::Exact),
        'R' => PassInfo::new("R", "Refuse the model", Effect::Exact),
        'S' => PassInfo::new("S", "Stop when asked to", Effect::Exact),
        'W' => PassInfo::new("W", "Want what is not there", Effect::Exact).runs_first(&["z"]),
        _ => PassInfo::new("?", "", Effect::Exact),
    }
}

impl<const C: char> Pass for Letter<C> {
    const INFO: PassInfo = info(C);
    type Options = Options;

    fn new(options: OptionSet<Options>) -> Result<Self, OptionError> {
        Ok(Letter { options })
    }

    fn requires(&self, _: &Model) -> Result<(), PassError> {
        if C == 'R' {
            return Err(PassError::Precondition {
                found: "the model is wrong".to_owned(),
                remedy: "bring another one".to_owned(),
            });
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        match C {
            'P' => panic!("no letter left"),
            'C' => return Ok(Changed::Yes),
            'I' => {
                let x = model.graph.inputs()[0];
                model
                    .graph
                    .add_op(NewOp::new("NoSuchOperator").input(x).output("z"))?;
                return Ok(Changed::Yes);
            }
            'S' => cx.check_cancelled()?,
            _ => {}
        }
        if log_of(model).matches(C).count() >= self.options.whole().times {
            return Ok(Changed::No);
        }
        append(model, &C.to_string())?;
        Ok(Changed::when(C != 'L'))
    }
}

fn registry() -> Registry {
    Registry::new()
        .with::<Letter<'a'>>()
        .with::<Letter<'b'>>()
        .with::<Letter<'c'>>()
        .with::<Letter<'d'>>()
        .with::<Letter<'e'>>()
        .with::<Letter<'l'>>()
        .with::<Letter<'m'>>()
        .with::<Letter<'n'>>()
        .with::<Letter<'o'>>()
        .with::<Letter<'p'>>()
        .with::<Letter<'X'>>()
        .with::<Letter<'P'>>()
        .with::<Letter<'L'>>()
        .with::<Letter<'C'>>()
        .with::<Letter<'I'>>()
        .with::<Letter<'R'>>()
        .with::<Letter<'S'>>()
        .with::<Letter<'W'>>()
}

/// Every X changes outputs beyond noise, an l costs 10 dB, an m 30 dB, and the file has a byte
/// per letter and 10 more.
#[derive(Default)]
struct LogJudge {
    exact: usize,
    scores: usize,
}

impl Judge for LogJudge {
    fn compare_exact(&mut self, reference: &Model, model: &Model) -> Result<Verdict, EngineError> {
        self.exact += 1;
        let changes = |m: &Model| log_of(m).matches('X').count();
        let differ = changes(reference) != changes(model);
        Ok(Verdict {
            difference: Difference {
                max_rel: if differ { 0.5 } else { 0.0 },
                ..Difference::default()
            },
            noise: 1e-5,
        })
    }

    fn score(&mut self, _: &Model, model: &Model) -> Result<Difference, EngineError> {
        self.scores += 1;
        let log = log_of(model);
        let lost = 10.0 * log.matches('l').count() as f64 + 30.0 * log.matches('m').count() as f64;
        Ok(Difference {
            samples: 1,
            sqnr_db: (lost > 0.0).then_some(60.0 - lost),
            ..Difference::default()
        })
    }

    fn latency_ratio(&mut self, _: &Model, model: &Model) -> Result<f64, EngineError> {
        Ok(1.0 + log_of(model).len() as f64)
    }

    fn file_bytes(&mut self, model: &Model) -> Result<u64, EngineError> {
        Ok(10 + log_of(model).len() as u64)
    }
}

fn pipeline(recipe: &str) -> Pipeline {
    let json: Json = serde_json::from_str(recipe).unwrap();
    let read = &|_: &str| unreachable!("no recipe is included");
    crate::recipe::from_json(&json, &registry(), read)
        .unwrap()
        .pipeline
}

/// Runs a recipe with a judge; gives the log, and the outcome.
fn run(recipe: &str) -> (String, Result<Outcome, RunError>) {
    let (registry, mut judge, mut model) = (registry(), LogJudge::default(), model());
    let mut manager = Manager::new(&registry);
    manager.judge = Some(&mut judge);
    let outcome = manager.run(&mut model, &pipeline(recipe));
    (log_of(&model), outcome)
}

fn names(outcome: &Outcome) -> String {
    outcome.passes.iter().map(|p| &*p.name).collect()
}

fn bug(recipe: &str) -> (String, String, String) {
    match run(recipe).1 {
        Err(RunError::Bug {
            pass,
            reason,
            steps,
        }) => (pass, reason, steps.iter().map(|(n, _)| &**n).collect()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn passes_run_in_order_and_say_what_they_did() {
    let (log, outcome) = run(r#"{"passes": ["b", "a", "b"]}"#);
    let outcome = outcome.unwrap();
    assert_eq!((&*log, &*names(&outcome)), ("ba", "bab"));
    let changed: Vec<bool> = outcome.passes.iter().map(|p| p.changed).collect();
    assert_eq!(changed, [true, true, false]);
    assert!(outcome.changed && !outcome.stopped);
    assert_eq!(outcome.passes[0].before.nodes, 1);
}

#[test]
fn without_edits_nothing_changed() {
    let (_, outcome) = run(r#"{"passes": [{"a": {"times": 0}}]}"#);
    assert!(!outcome.unwrap().changed);
    // A pass that claims an edit and made none has made none.
    let outcome = run(r#"{"passes": ["C"]}"#).1.unwrap();
    assert!(!outcome.changed && !outcome.passes[0].changed);
}

#[test]
fn prerequisites_run_first_and_only_where_they_are_needed() {
    let (log, outcome) = run(r#"{"passes": ["d"]}"#);
    assert_eq!(log, "abd");
    let outcome = outcome.unwrap();
    let wanted: Vec<Option<&str>> = outcome
        .passes
        .iter()
        .map(|p| p.required_by.as_deref())
        .collect();
    assert_eq!(wanted, [Some("d"), Some("d"), None]);

    // The model is as b left it, so b does not run again; a has not seen it since.
    let outcome = run(r#"{"passes": ["a", "b", "d"]}"#).1.unwrap();
    assert_eq!(names(&outcome), "abad");
}

#[test]
fn a_prerequisite_with_other_options_does_not_count() {
    let (log, _) = run(r#"{"passes": [{"a": {"times": 0}}, "m"]}"#);
    assert_eq!(log, "am");
}

#[test]
fn the_same_pass_with_other_options_runs_on_the_same_model() {
    let (log, outcome) = run(r#"{"passes": ["a", "a", {"a": {"times": 3}}]}"#);
    assert_eq!(log, "aa");
    assert_eq!(names(&outcome.unwrap()), "aaa");
}

#[test]
fn a_missing_prerequisite_is_a_bug() {
    let (pass, reason, _) = bug(r#"{"passes": ["W"]}"#);
    assert_eq!(pass, "W");
    assert!(reason.contains("wants \"z\" to run first"), "{reason}");
}

#[test]
fn groups_repeat_until_nothing_changes() {
    let recipe = r#"{"passes": [{"repeat": {"passes": [{"a": {"times": 3}}, "b"]}}]}"#;
    let (log, outcome) = run(recipe);
    assert_eq!(log, "abaa");
    let outcome = outcome.unwrap();
    let rounds: Vec<Option<usize>> = outcome.passes.iter().map(|p| p.round).collect();
    // In the fourth round a looks again; b saw this very model in the third.
    assert_eq!(names(&outcome), "abababa");
    assert_eq!(rounds.last(), Some(&Some(4)));

    let recipe = r#"{"passes": [{"repeat": {"max": 2, "passes": [{"a": {"times": 9}}]}}]}"#;
    assert_eq!(run(recipe).0, "aa");
}

#[test]
fn an_exact_pass_that_changes_outputs_is_found_among_five() {
    for (recipe, before) in [
        (r#"{"passes": ["X", "a", "b", "c", "e"]}"#, "X"),
        (r#"{"passes": ["a", "X", "b", "c", "e"]}"#, "aX"),
        (r#"{"passes": ["a", "b", "X", "c", "e"]}"#, "abX"),
        (r#"{"passes": ["a", "b", "c", "e", "X"]}"#, "abceX"),
    ] {
        let (pass, reason, steps) = bug(recipe);
        assert_eq!((&*pass, &*steps), ("X", before), "{recipe}");
        assert!(
            reason.contains("exact and changed the outputs: 5.000e-1"),
            "{reason}"
        );
    }
}

#[test]
fn the_steps_of_a_reproducer_start_at_the_original() {
    // The lossy pass was kept, so what comes after can only be reproduced with it.
    let (_, _, steps) = bug(r#"{"passes": ["a", "l", "b", "X"]}"#);
    assert_eq!(steps, "albX");
    let undone = r#"{"passes": ["a", {"l": {"accept": {"min-sqnr-db": 70}}}, "X"]}"#;
    assert_eq!(bug(undone).2, "aX");
}

#[test]
fn exact_passes_are_validated_once_in_a_row() {
    let (registry, mut judge, mut model) = (registry(), LogJudge::default(), model());
    let mut manager = Manager::new(&registry);
    manager.judge = Some(&mut judge);
    manager
        .run(
            &mut model,
            &pipeline(r#"{"passes": ["a", "b", "l", "c", "e"]}"#),
        )
        .unwrap();
    assert_eq!((judge.exact, judge.scores), (2, 1));
}

#[test]
fn exact_passes_are_validated_after_a_lossy_pass_that_did_nothing() {
    let (pass, ..) = bug(r#"{"passes": [{"l": {"times": 0}}, "X"]}"#);
    assert_eq!(pass, "X");
}

#[test]
fn a_panic_in_a_pass_is_a_bug_of_it() {
    let (pass, reason, steps) = bug(r#"{"passes": ["a", "P"]}"#);
    assert_eq!((&*pass, &*steps), ("P", "aP"));
    assert_eq!(reason, "it panicked: no letter left");
}

#[test]
fn a_pass_that_denies_its_edits_has_a_bug() {
    let (pass, reason, _) = bug(r#"{"passes": ["L"]}"#);
    assert_eq!(
        (&*pass, &*reason),
        ("L", "it edited the model and says that it didn't")
    );
}

#[test]
fn a_pass_that_makes_an_invalid_model_has_a_bug() {
    let (pass, reason, steps) = bug(r#"{"passes": ["a", "I", "b"]}"#);
    assert_eq!((&*pass, &*steps), ("I", "aI"));
    assert!(reason.starts_with("it made an invalid model: "), "{reason}");
    assert!(reason.contains("NoSuchOperator"), "{reason}");
}

#[test]
fn a_pass_may_refuse_a_model() {
    let error = run(r#"{"passes": ["R"]}"#).1.unwrap_err();
    assert_eq!(
        error.to_string(),
        "R: the model is wrong; bring another one"
    );
}

#[test]
fn a_lossy_pass_that_breaks_its_limit_is_undone_and_the_rest_goes_on() {
    let recipe = r#"{"passes": [
        "l", {"m": {"accept": {"min-sqnr-db": 40}}}, "b", {"l": {"times": 2, "accept": {"min-sqnr-db": 40}}}]}"#;
    let (log, outcome) = run(recipe);
    assert_eq!(log, "labl");
    let outcome = outcome.unwrap();
    let m = outcome.passes.iter().find(|p| p.name == "m").unwrap();
    assert!(!m.changed);
    assert_eq!(m.undone.len(), 1);
    assert_eq!(m.undone[0].to_string(), "min-sqnr-db 40: found 20.0000");
    assert_eq!(m.before, m.after);
    assert_eq!(
        outcome
            .passes
            .last()
            .unwrap()
            .difference
            .as_ref()
            .unwrap()
            .sqnr_db,
        Some(40.0)
    );
}

#[test]
fn a_model_whose_only_change_was_undone_has_not_changed() {
    let (log, outcome) = run(r#"{"passes": [{"l": {"accept": {"min-sqnr-db": 70}}}]}"#);
    assert_eq!(log, "");
    assert!(!outcome.unwrap().changed);
}

#[test]
fn limits_on_size_and_latency_count_for_passes_and_for_the_whole() {
    let outcome = run(r#"{"passes": [{"l": {"accept": {"max-size-ratio": 1.05}}}]}"#)
        .1
        .unwrap();
    assert_eq!(outcome.passes[0].undone[0].limit, "max-size-ratio");
    let outcome = run(r#"{"passes": [{"l": {"accept": {"max-latency-ratio": 1.5}}}]}"#)
        .1
        .unwrap();
    assert_eq!(outcome.passes[0].undone[0].found, 2.0);

    let whole =
        r#"{"passes": ["a", "b"], "accept": {"max-size-ratio": 1.05, "max-latency-ratio": 2}}"#;
    match run(whole).1 {
        Err(RunError::Limits { breaches, reports }) => {
            let limits: Vec<&str> = breaches.iter().map(|b| &*b.limit).collect();
            assert_eq!(limits, ["max-latency-ratio", "max-size-ratio"]);
            assert_eq!(reports.len(), 2);
        }
        other => panic!("{other:?}"),
    }
    assert!(
        run(r#"{"passes": ["l"], "accept": {"min-sqnr-db": 50}}"#)
            .1
            .is_ok()
    );
}

#[test]
fn what_can_not_be_measured_breaks_a_limit() {
    // There are no labels, so there is no accuracy.
    match run(r#"{"passes": ["l"], "accept": {"max-accuracy-drop": 1}}"#).1 {
        Err(RunError::Limits { breaches, .. }) => {
            assert_eq!(
                breaches[0].to_string(),
                "max-accuracy-drop 1 could not be measured"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn limits_without_a_judge_are_refused_before_any_pass() {
    for recipe in [
        r#"{"passes": ["a"], "accept": {"max-size-ratio": 2}}"#,
        r#"{"passes": ["a", {"l": {"accept": {"min-cosine": 0.9}}}]}"#,
    ] {
        let (registry, mut model) = (registry(), model());
        let error = Manager::new(&registry)
            .run(&mut model, &pipeline(recipe))
            .unwrap_err();
        assert!(matches!(error, RunError::Unmeasured(_)), "{error:?}");
        assert_eq!(log_of(&model), "");
    }
}

#[test]
fn without_a_judge_lossy_passes_are_kept() {
    let (registry, mut model) = (registry(), model());
    let outcome = Manager::new(&registry).run(&mut model, &pipeline(r#"{"passes": ["l", "X"]}"#));
    assert_eq!(log_of(&model), "lX");
    assert_eq!(outcome.unwrap().passes[0].difference, None);
}

fn stopped_after(pass: &str, recipe: &str) -> (String, bool) {
    let (registry, mut model) = (registry(), model());
    let mut manager = Manager::new(&registry);
    manager.stop_after = Some(pass.to_owned());
    let outcome = manager.run(&mut model, &pipeline(recipe)).unwrap();
    (log_of(&model), outcome.stopped)
}

#[test]
fn a_run_stops_after_the_first_run_of_a_pass() {
    assert_eq!(
        stopped_after("b", r#"{"passes": ["a", "b", "c"]}"#),
        ("ab".into(), true)
    );
    let group = r#"{"passes": [{"repeat": {"passes": [{"a": {"times": 9}}, "b"]}}, "c"]}"#;
    assert_eq!(stopped_after("a", group), ("a".into(), true));
    // What runs for another pass's sake is no reason to stop.
    assert_eq!(
        stopped_after("b", r#"{"passes": ["d", "b", "c"]}"#),
        ("abd".into(), true)
    );
}

#[test]
fn a_run_stops_after_a_pass_that_has_nothing_left_to_do() {
    let (registry, mut model) = (registry(), model());
    append(&mut model, "a").unwrap();
    let mut manager = Manager::new(&registry);
    manager.stop_after = Some("a".to_owned());
    let recipe = r#"{"passes": [{"m": {"times": 0}}, "a", "c"]}"#;
    let outcome = manager.run(&mut model, &pipeline(recipe)).unwrap();
    // The pass ran for the sake of m already and is not run again; the run ends all the same.
    assert_eq!((&*names(&outcome), outcome.stopped), ("am", true));
    assert_eq!(log_of(&model), "a");
}

#[test]
fn names_that_match_nothing_are_noted() {
    let recipe =
        r#"{"passes": [{"a": {"by-name": {"log*": {"times": 1}, "lgo*": {"times": 1}}}}]}"#;
    let outcome = run(recipe).1.unwrap();
    assert_eq!(
        outcome.passes[0].notes,
        ["by-name \"lgo*\" matches no operator"]
    );
}

#[test]
fn the_flag_stops_between_and_inside_passes() {
    /// Sets the flag when a pass of this name has run.
    struct After<'a>(&'a AtomicBool, &'a str);
    impl Observer for After<'_> {
        fn after(&mut self, report: &PassReport, _: &Model) {
            self.0.fetch_or(report.name == self.1, Ordering::Relaxed);
        }
    }
    let (registry, mut model, flag) = (registry(), model(), AtomicBool::new(false));
    let mut observer = After(&flag, "a");
    let mut manager = Manager::new(&registry).with_cancel(&flag);
    manager.observer = Some(&mut observer);
    let outcome = manager.run(&mut model, &pipeline(r#"{"passes": ["a", "b"]}"#));
    assert!(matches!(outcome, Err(RunError::Cancelled)));
    assert_eq!(log_of(&model), "a");

    let pipeline = pipeline(r#"{"passes": ["S"]}"#);
    let step = pipeline.steps().next().unwrap();
    let mut report = manager.report(&model, step, None, None);
    let inside = manager.execute(&mut model, step, &mut report, &Run::default());
    assert!(matches!(inside, Err(RunError::Cancelled)));
}

#[test]
fn the_observer_sees_every_pass_and_the_provenance_names_it() {
    #[derive(Default)]
    struct Seen(Vec<(String, String)>);
    impl Observer for Seen {
        fn after(&mut self, report: &PassReport, model: &Model) {
            self.0.push((report.name.clone(), log_of(model)));
        }
    }
    let (registry, mut model, mut seen) = (registry(), model(), Seen::default());
    let mut manager = Manager::new(&registry);
    manager.observer = Some(&mut seen);
    manager
        .run(&mut model, &pipeline(r#"{"passes": ["m"]}"#))
        .unwrap();
    let expected = [("a", "a"), ("m", "am")].map(|(n, l)| (n.to_owned(), l.to_owned()));
    assert_eq!(seen.0, expected);
    let op = model.graph.ops().next().unwrap();
    let passes: Vec<Name> = model
        .graph
        .op(op)
        .provenance()
        .map_or_else(Vec::new, |p| p.passes.clone());
    assert!(
        passes.iter().all(|p| ["a", "m"].contains(&&**p)),
        "{passes:?}"
    );
}

#[test]
fn passes_that_do_not_go_together_are_refused_before_any_runs() {
    let skip = |name: &str, options: Json| {
        let mut pipeline = Pipeline::new();
        pipeline.push(&registry(), "n", &Map::new()).unwrap();
        let options = options.as_object().unwrap().clone();
        pipeline.push(&registry(), name, &options).unwrap();
        pipeline.check_order()
    };
    let none = || Json::Object(Map::new());
    // "o" says it of itself, and "n" of "p", which does not know it.
    for (name, why) in [("o", "it would count n"), ("p", "it would hide n")] {
        let error = skip(name, none()).unwrap_err().to_string();
        assert!(
            error.contains(&format!(
                "{name} can't run after n: {why}; run {name} first"
            )),
            "{error}"
        );
    }
    skip("l", none()).unwrap();
    skip("o", serde_json::json!({"by-type": {"Relu": "skip"}})).unwrap();

    let mut model = model();
    let mut pipeline = Pipeline::new();
    for name in ["a", "n", "o"] {
        pipeline.push(&registry(), name, &Map::new()).unwrap();
    }
    let registry = registry();
    let error = Manager::new(&registry).run(&mut model, &pipeline);
    assert!(matches!(error, Err(RunError::Pass { .. })), "{error:?}");
    assert_eq!(log_of(&model), "");
}

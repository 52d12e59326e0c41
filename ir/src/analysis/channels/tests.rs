#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use super::*;
use crate::text::parse_model;

fn channels(text: &str) -> (Model, Channels) {
    with(text, Heads::Whole)
}

fn with(text: &str, heads: Heads) -> (Model, Channels) {
    let text = format!("<opset_import: [\"\": 18]> {text}");
    let model = parse_model(&text).unwrap_or_else(|e| panic!("{e}\nin\n{text}"));
    let mut cache = AnalysisCache::new();
    let found = cache.get_with::<Channels>(&model, &ChannelOptions { heads });
    (
        model,
        Arc::try_unwrap(found).unwrap_or_else(|shared| Channels {
            count: shared.count,
            groups: shared.groups.clone(),
            refused: shared.refused.clone(),
            axes: shared.axes.clone(),
            rewrites: shared.rewrites.clone(),
        }),
    )
}

/// Every group as its number of channels and its members: `4: w@0 v@1`, where `*2` says that
/// each channel has two indices.
fn groups(text: &str) -> Vec<String> {
    show(&channels(text))
}

fn show((model, found): &(Model, Channels)) -> Vec<String> {
    let one = |g: &Group| {
        let mut out = format!("{}:", g.channels.len());
        for m in &g.members {
            let name = model.graph.value(m.value).name();
            out.push_str(&format!(" {name}@{}", m.axis));
            if m.width > 1 {
                out.push_str(&format!("*{}", m.width));
            }
        }
        out
    };
    found.groups().iter().map(one).collect()
}

fn reasons(text: &str) -> Vec<&'static str> {
    let (_, found) = channels(text);
    let mut all: Vec<_> = found
        .refused()
        .iter()
        .map(|r| r.why.reason.code())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn a_chain_of_convolutions() {
    let found = groups(
        r#"g (float[1,3,8,8] x) => (float[1,5,8,8] z)
        <float[4,3,1,1] w = random(1), float[4] b = random(2), float[5,4,1,1] v = random(3)> {
            y = Conv (x, w, b) r = Relu (y) z = Conv (r, v)
        }"#,
    );
    assert_eq!(found, ["4: w@0 b@0 v@1"]);
}

#[test]
fn a_residual_sum_joins_channels_and_a_concat_does_not() {
    let found = groups(
        r#"g (float[1,3,8,8] x) => (float[1,5,8,8] z)
        <float[4,3,1,1] a = random(1), float[4,4,1,1] b = random(2), float[6,4,1,1] c = random(3), float[5,10,1,1] d = random(4)> {
            p = Conv (x, a) q = Conv (p, b) s = Add (p, q) t = Conv (s, c)
            j = Concat <axis: int = 1> (s, t) z = Conv (j, d)
        }"#,
    );
    assert_eq!(found, ["4: a@0 b@0 b@1 c@1 d@1", "6: c@0 d@1"]);
}

#[test]
fn depthwise_groups_go_whole_and_wide_groups_lose_some_of_each() {
    let (model, found) = channels(
        r#"g (float[1,3,8,8] x) => (float[1,5,8,8] z)
        <float[4,3,1,1] a = random(1), float[4,1,3,3] d = random(2), float[5,4,1,1] c = random(3)> {
            p = Conv (x, a) q = Conv <group: int = 4> (p, d) z = Conv (q, c)
        }"#,
    );
    assert_eq!(show(&(model, found)), ["4: a@0 d@0 c@1"]);
    let found = groups(
        r#"g (float[1,3,8,8] x) => (float[1,5,8,8] z)
        <float[8,3,1,1] a = random(1), float[6,4,1,1] d = random(2), float[5,6,1,1] c = random(3)> {
            p = Conv (x, a) q = Conv <group: int = 2> (p, d) z = Conv (q, c)
        }"#,
    );
    assert_eq!(found, ["4: a@0*2 d@1", "3: d@0*2 c@1*2"]);
}

#[test]
fn a_flatten_gives_each_channel_many_columns() {
    let found = groups(
        r#"g (float[1,3,4,4] x) => (float[1,5] z)
        <float[4,3,1,1] a = random(1), float[5,64] w = random(2)> {
            p = Conv (x, a) f = Flatten (p) z = Gemm <transB: int = 1> (f, w)
        }"#,
    );
    assert_eq!(found, ["4: a@0 w@1*16"]);
}

#[test]
fn a_shuffle_of_channels_is_followed() {
    let found = groups(
        r#"g (float[1,3,4,4] x) => (float[1,5,4,4] z)
        <float[8,3,1,1] a = random(1), float[5,8,1,1] w = random(2), int64[5] s = {1, 2, 4, 4, 4}, int64[4] t = {1, 8, 4, 4}> {
            p = Conv (x, a) q = Reshape (p, s) r = Transpose <perm: ints = [0, 2, 1, 3, 4]> (q) u = Reshape (r, t) z = Conv (u, w)
        }"#,
    );
    assert_eq!(found, ["4: a@0*2 w@1*2"]);
}

const ATTENTION: &str = r#"g (float[2,6,8] x) => (float[2,6,5] z)
    <float[8,12] q = random(1), float[8,12] k = random(2), float[8,12] v = random(3), float[12,5] o = random(4),
     int64[4] split = {0, 0, 3, 4}, int64[3] joined = {0, 0, 12}> {
        a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v)
        d = Reshape (a, split) e = Reshape (b, split) f = Reshape (c, split)
        dt = Transpose <perm: ints = [0, 2, 1, 3]> (d)
        et = Transpose <perm: ints = [0, 2, 3, 1]> (e)
        ft = Transpose <perm: ints = [0, 2, 1, 3]> (f)
        s = MatMul (dt, et) p = Softmax (s) h = MatMul (p, ft)
        ht = Transpose <perm: ints = [0, 2, 1, 3]> (h)
        y = Reshape (ht, joined) z = MatMul (y, o)
    }"#;

#[test]
fn heads_go_whole_or_shrink_within() {
    let whole = show(&with(ATTENTION, Heads::Whole));
    assert_eq!(whole, ["3: q@1*4 k@1*4 v@1*4 o@0*4"]);
    let within = show(&with(ATTENTION, Heads::Within));
    assert_eq!(within, ["4: q@1*3 k@1*3", "4: v@1*3 o@0*3"]);
}

#[test]
fn a_shared_weight_joins_what_it_is_applied_to() {
    let found = groups(
        r#"g (float[1,3,8,8] x) => (float[1,5,8,8] y, float[1,5,8,8] z)
        <float[4,3,1,1] a = random(1), float[4,3,1,1] b = random(2), float[5,4,1,1] w = random(3)> {
            p = Conv (x, a) q = Conv (x, b) y = Conv (p, w) z = Conv (q, w)
        }"#,
    );
    assert_eq!(found, ["4: a@0 b@0 w@1"]);
}

#[test]
fn a_captured_value_shrinks_inside_too() {
    let found = groups(
        r#"g (float[1,3] x, bool c) => (float[1,5] z)
        <float[3,4] a = random(1), float[4,5] w = random(2)> {
            p = MatMul (x, a)
            q = If (c) <then_branch: graph = t () => (float[1,4] r) { r = Relu (p) }, else_branch: graph = e () => (float[1,4] s) { s = Abs (p) }>
            z = MatMul (q, w)
        }"#,
    );
    assert_eq!(found, ["4: a@1 w@0"]);
}

#[test]
fn refusals_say_why() {
    assert_eq!(
        reasons(
            r#"g (float[1,3] x) => (float[1,4] z) <float[3,4] a = random(1)> { z = MatMul (x, a) }"#
        ),
        ["graph-input", "graph-output"]
    );
    let between = |middle: &str| {
        reasons(&format!(
            r#"g (float[1,1] x, int64[2] i) => (float[1,1] z) <float[1,4] a = random(1), float[4,1] w = random(2)> {{ p = MatMul (x, a) {middle} z = MatMul (q, w) }}"#
        ))
    };
    // What comes out of it has no shape that could be proved.
    assert_eq!(
        between("q = foo.Bar (p)"),
        ["unknown-operator", "unprovable-shape"]
    );
    assert_eq!(between("q = Softmax (p)"), ["normalized-over"]);
    assert_eq!(
        between("s = Shape (p) t = Cast <to: int = 1> (s) u = ReduceMax (t) q = Mul (p, u)"),
        ["size-as-data"]
    );
    assert_eq!(
        reasons(
            r#"g (float[3,1,1] x) => (float[3,1,1,4] y)
            <float[1,16,1] w = random(1), float[1,16,4] r = random(2)> { y = LSTM <hidden_size: int = 4> (x, w, r) }"#
        ),
        ["recurrent-state"]
    );
}

#[test]
fn an_input_of_unknown_rank_holds_the_weight() {
    // Whatever a rule has asked for before it gives up must stay.
    for op in [
        "Conv (u, w)",
        "MatMul (u, w)",
        "Gemm (u, w)",
        "LSTM <hidden_size: int = 4> (u, w)",
    ] {
        let text = format!(
            r#"g (x) => (z) <float[4,4,4] w = random(1)> {{ u = foo.Bar (x) y = {op} z = foo.Bar (y) }}"#
        );
        assert_eq!(groups(&text), Vec::<String>::new(), "{op}");
    }
}

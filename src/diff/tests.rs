//! Copies of models in which it is known what changed. `tests/diff/planted.py` does the same with
//! files that another program wrote.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use std::collections::HashMap;

use paring_ir::text::parse_model;
use paring_ir::{
    Constant, DType, Graph, Kept, Model, NewOp, NewOutput, OpId, Tensor, ValueId, ValueType,
};

use super::*;

fn model(text: &str) -> Model {
    let header = "<ir_version: 8, opset_import: [\"\": 17]> net ";
    parse_model(&format!("{header}{text}")).unwrap()
}

fn compared(a: &str, b: &str) -> Diff {
    diff(&model(a), &model(b)).unwrap()
}

/// The changes in a few words each.
fn told(d: &Diff) -> Vec<String> {
    let mut out = Vec::new();
    let words = |list: &[String]| list.join("+");
    for p in &d.patterns {
        let kind = serde_json::to_value(p.kind).unwrap();
        let (before, after) = (words(&p.before), words(&p.after));
        out.push(format!(
            "{}x {before} -> {after} ({})",
            p.count,
            kind.as_str().unwrap()
        ));
    }
    for c in &d.operators.changed {
        let what: Vec<&str> = c.changes.iter().map(|c| c.what.as_str()).collect();
        out.push(format!("{}: {}", c.op.name, what.join(", ")));
    }
    out.extend(d.interface.iter().map(|i| i.what.clone()));
    let t = &d.initializers;
    out.extend(t.added.iter().map(|(n, _)| format!("+{n}")));
    out.extend(t.removed.iter().map(|(n, _)| format!("-{n}")));
    out.extend(t.changed.iter().map(|c| format!("~{}", c.name)));
    out
}

/// A copy with another name for everything and the operators in another order.
fn disguised(model: &Model) -> Model {
    let graph = &model.graph;
    let mut copy = Graph::new("other");
    let mut values: HashMap<ValueId, ValueId> = HashMap::new();
    let mut names = 0u32..;
    let mut fresh = || format!("v{}", names.next().unwrap().wrapping_mul(7919) % 10_007);
    for &v in graph.inputs().iter().rev() {
        let ty = graph.value(v).declared_type().cloned();
        values.insert(v, copy.add_input(fresh(), ty).unwrap());
    }
    let constants: Vec<ValueId> = graph.initializers().collect();
    for &v in constants.iter().rev() {
        let new = copy.add_value(fresh()).unwrap();
        let constant = graph.value(v).as_constant().unwrap().clone();
        copy.add_initializer(new, constant).unwrap();
        values.insert(v, new);
    }
    let mut open: Vec<OpId> = graph.topological_order().unwrap();
    while !open.is_empty() {
        // The last one that is ready: quite another order.
        let ready = |&op: &OpId| {
            graph
                .op(op)
                .inputs()
                .flatten()
                .all(|v| values.contains_key(&v))
        };
        let at = open.iter().rposition(ready).unwrap();
        let op = graph.op(open.remove(at));
        assert!(!op.has_subgraphs());
        let mut new = NewOp::new(op.op_type().clone())
            .domain(op.domain().clone())
            .name(fresh())
            .attrs(op.attrs().iter().rev().cloned())
            .inputs(op.inputs().map(|v| v.map(|v| values[&v])));
        let mut made = Vec::new();
        for output in op.outputs() {
            let Some(v) = output else {
                new = new.push_output(NewOutput::Absent);
                continue;
            };
            let value = copy.add_value(fresh()).unwrap();
            let ty = graph.value(*v).declared_type().cloned();
            copy.set_type(value, ty).unwrap();
            new = new.push_output(NewOutput::Existing(value));
            made.push((*v, value));
        }
        copy.add_op(new).unwrap();
        values.extend(made);
    }
    for v in graph.outputs() {
        copy.add_output(values[v]).unwrap();
    }
    let mut out = model.clone();
    out.graph = copy;
    out
}

fn real() -> Vec<Model> {
    ["langid_transformer", "fmnist_mobilenet_bn"]
        .iter()
        .map(|name| {
            let path = format!("{}/testdata/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
            crate::read(path).unwrap()
        })
        .collect()
}

/// An edit of a copy of a real model: the same is told of it under the old and under new names.
fn check_edit(model: &Model, expected: &[&str], edit: impl FnOnce(&mut Graph)) -> Diff {
    let mut edited = model.clone();
    edit(&mut edited.graph);
    let found = diff(model, &edited).unwrap();
    assert_eq!(told(&found), expected);
    let other = diff(model, &disguised(&edited)).unwrap();
    // What is told is called otherwise, and is as much.
    assert_eq!(told(&other).len(), expected.len(), "{:?}", told(&other));
    assert_eq!(other.operators.removed.len(), found.operators.removed.len());
    assert_eq!(other.operators.changed.len(), found.operators.changed.len());
    found
}

fn first(graph: &Graph, op_type: &str) -> OpId {
    let order = graph.topological_order().unwrap();
    order
        .into_iter()
        .find(|&op| graph.op(op).is(op_type))
        .unwrap()
}

#[test]
fn another_name_and_another_place_are_no_change() {
    let mut moved = 0;
    for model in real() {
        let found = diff(&model, &disguised(&model)).unwrap();
        assert_eq!(told(&found), [""; 0]);
        assert!(found.is_empty(false) && !found.is_empty(true));
        assert_eq!(
            found.operators.renamed,
            model.graph.op_count() - constants(&model)
        );
        moved += found.operators.moved;
        let same = diff(&model, &model).unwrap();
        assert!(same.is_empty(true));
    }
    assert!(moved > 10, "{moved}");
}

fn constants(model: &Model) -> usize {
    let graph = &model.graph;
    graph
        .ops()
        .filter(|&op| graph.op(op).is("Constant"))
        .count()
}

#[test]
fn planted_edits_are_found_and_nothing_else() {
    for model in real() {
        let graph = &model.graph;
        let softmax_or_clip = match graph.ops().any(|op| graph.op(op).is("Clip")) {
            true => "Clip",
            false => "Softmax",
        };
        let expected = format!("1x {softmax_or_clip} ->  (bypassed)");
        check_edit(&model, &[&expected], |g| {
            let op = first(g, softmax_or_clip);
            let (x, y) = (g.op(op).input(0).unwrap(), g.op(op).output(0).unwrap());
            g.replace_value(y, x).unwrap();
            g.remove_op(op).unwrap();
        });
        let add = first(graph, "Add");
        let label = graph.op_label(add);
        let expected = format!("{label}: input 0, input 1");
        let both = graph
            .op(add)
            .inputs()
            .flatten()
            .all(|v| graph.producer(v).is_some());
        if both {
            check_edit(&model, &[&expected], |g| {
                let inputs: Vec<_> = g.op(add).inputs().collect();
                g.set_inputs(add, &[inputs[1], inputs[0]]).unwrap();
            });
        }
        let weight = graph.initializers().find(|&v| {
            let t = graph.tensor(v);
            t.is_some_and(|t| t.dtype() == DType::F32 && t.len() > 100)
        });
        let (weight, mut count) = (weight.unwrap(), 0);
        let expected = format!("~{}", graph.value(weight).name());
        let found = check_edit(&model, &[&expected], |g| {
            let t = g.tensor(weight).unwrap().clone();
            let mut values = t.view::<f32>().unwrap().into_owned();
            values[7] += 0.25;
            count = values.len();
            let t = Tensor::from_vec(t.dims().to_vec(), values).unwrap();
            g.set_tensor(weight, t, Vec::new()).unwrap();
        });
        let change = &found.initializers.changed[0];
        assert!((change.max_abs.unwrap() - 0.25).abs() < 1e-6);
        let histogram = change.histogram.as_ref().unwrap();
        assert_eq!(histogram.before.iter().sum::<u64>(), count as u64);
    }
}

#[test]
fn an_inserted_pair_of_quantizers_is_one_insertion() {
    for model in real() {
        let add = first(&model.graph, "Add");
        let expected = [
            "1x  -> QuantizeLinear+DequantizeLinear (inserted)",
            "+planted_scale",
        ];
        check_edit(&model, &expected, |g| {
            let y = g.op(add).output(0).unwrap();
            let scale = g
                .add_constant("planted_scale", Tensor::scalar(0.1f32))
                .unwrap();
            let users = g.sorted_uses(y);
            let q = g.add_op(
                NewOp::new("QuantizeLinear")
                    .input(y)
                    .input(scale)
                    .output("q"),
            );
            let q = g.op(q.unwrap()).output(0).unwrap();
            let dq = g.add_op(
                NewOp::new("DequantizeLinear")
                    .input(q)
                    .input(scale)
                    .output("dq"),
            );
            let dq = g.op(dq.unwrap()).output(0).unwrap();
            for u in users {
                let paring_ir::Port::Input(slot) = u.port else {
                    continue;
                };
                g.set_input(u.op, slot as usize, Some(dq)).unwrap();
            }
        });
    }
}

const NET: &str = "(float[1,3,8,8] x) => (float[1,4,8,8] y)
    <float[6,3,3,3] w = random(1), float[6] b = random(2), float[4,6,1,1] v = random(3)>
    {
        [c1] p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        [r] q = Relu (p)
        [c2] y = Conv (q, v)
    }";

#[test]
fn dropped_channels_are_named() {
    let (a, mut b) = (model(NET), model(NET));
    let kept = [0usize, 2, 5];
    for (name, axis) in [("w", 0), ("b", 0), ("v", 1)] {
        let v = b.graph.find_value(name).unwrap();
        let t = elements::Numbers::of(b.graph.value(v).initializer().unwrap()).unwrap();
        let t = t.gather(axis, &kept).unwrap();
        let values: Vec<f32> = t.values.iter().map(|&v| v as f32).collect();
        let t = Tensor::from_vec(t.dims, values).unwrap();
        b.graph.set_tensor(v, t, Vec::new()).unwrap();
    }
    let found = diff(&a, &b).unwrap();
    assert_eq!(told(&found), ["~w", "~b", "~v"]);
    for (change, axis) in found.initializers.changed.iter().zip([0, 0, 1]) {
        let [k] = change.kept.as_slice() else {
            panic!("{:?}", change.kept)
        };
        let expected = (axis, 6, 3, "0,2,5", false);
        assert_eq!((k.axis, k.of, k.count, &*k.indices, k.recorded), expected);
        assert_eq!(change.max_abs, Some(0.0));
    }
    // The values in between follow.
    let types: Vec<&str> = found.types.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(types, ["p", "q"]);
    assert_eq!(found.types[0].after, "float[1,3,8,8]");
    // What the file records goes before what the elements show: these were fitted anew.
    let w = b.graph.find_value("w").unwrap();
    let t = Tensor::from_vec([3, 3, 3, 3], vec![0.5f32; 81]).unwrap();
    b.graph.set_author(Some("remove-channels".into()));
    let indices = [1, 3, 4].into();
    b.graph
        .set_tensor(w, t, vec![Kept { axis: 0, indices }])
        .unwrap();
    let found = diff(&a, &b).unwrap();
    let change = &found.initializers.changed[0];
    assert_eq!(
        (&*change.kept[0].indices, change.kept[0].recorded),
        ("1,3-4", true)
    );
    assert_eq!(change.by, ["remove-channels"]);
    assert!(change.relative_norm.unwrap() > 0.1);
}

#[test]
fn one_pattern_is_counted_wherever_it_was_replaced() {
    let a = "(float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float[2,2,1,1] w = random(1), float[2,2,1,1] v = random(2), float[2] s = random(3, 1, 2),
         float[2] t = random(4)>
        {
            [c1] a = Conv (x, w) [n1] b = BatchNormalization (a, s, t, t, s) [r1] c = Relu (b)
            [c2] d = Conv (c, v) [n2] e = BatchNormalization (d, s, t, t, s) [r2] y = Relu (e)
        }";
    let b = "(float[1,2,4,4] x) => (float[1,2,4,4] y)
        <float[2,2,1,1] w = random(5), float[2,2,1,1] v = random(6), float[2] f = random(7),
         float[2] g = random(8)>
        {
            [c1] b = Conv (x, w, f) [r1] c = Relu (b)
            [c2] e = Conv (c, v, g) [r2] y = Relu (e)
        }";
    let found = compared(a, b);
    let expected = [
        "2x Conv+BatchNormalization -> Conv (replaced)",
        "c1: input 2",
        "c2: input 2",
        "+f",
        "+g",
        "-s",
        "-t",
        "~w",
        "~v",
    ];
    assert_eq!(told(&found), expected);
    assert_eq!(found.operators.changed[0].pattern, Some(0));
    let bn = found
        .by_type
        .iter()
        .find(|t| t.op_type == "BatchNormalization");
    assert_eq!(bn.map(|t| (t.before.nodes, t.after.nodes)), Some((2, 0)));
    assert_eq!((found.before.nodes, found.after.nodes), (6, 4));
}

#[test]
fn removed_operators_are_explained() {
    let text = |body: &str| {
        let head = "(float[2,3] x) => (float[2,3] y) <int64[2] k = {2, 3}>";
        format!("{head} {{ {body} [z] y = Add (s, n) }}")
    };
    let a = text(
        "[r] r = Relu (x) [i] i = Identity (r) [s] s = Neg (i) [t] t = Neg (i) [n] n = Abs (t)",
    );
    // An operator that gives its input, and one that gives the same as another.
    let b = text("[r] r = Relu (x) [s] s = Neg (r) [n] n = Abs (s)");
    let found = told(&compared(&a, &b));
    assert_eq!(found, ["1x Identity+Neg ->  (bypassed)"]);
    let a = a.replace("Identity (r)", "Exp (r)");
    let b = b
        .replace("Neg (r)", "Neg (i)")
        .replace("[s]", "[i] i = Exp (r) [s]");
    assert_eq!(told(&compared(&a, &b)), ["1x Neg ->  (merged)"]);
    // A computed shape that became a constant.
    let a = text("[h] h = Shape (x) [s] s = Reshape (x, h) [n] n = Abs (x)");
    let b = text("[s] s = Reshape (x, k) [n] n = Abs (x)");
    assert_eq!(told(&compared(&a, &b)), ["1x Shape ->  (folded)"]);
    // Another operator in its place.
    let a = text("[s] s = Relu (x) [n] n = Abs (x)");
    let b = text("[e] s = Elu (x) [n] n = Abs (x)");
    assert_eq!(told(&compared(&a, &b)), ["1x Relu -> Elu (replaced)"]);
    // One that nothing took.
    let a = text("[s] s = Relu (x) [n] n = Abs (x) [d] d = Exp (s)");
    let b = text("[s] s = Relu (x) [n] n = Abs (x)");
    assert_eq!(told(&compared(&a, &b)), ["1x Exp ->  (dropped)"]);
}

#[test]
fn a_quantized_weight_is_compared_with_what_it_stands_for() {
    let a = "(float[1,2] x) => (float[1,4] y) <float[2,4] w = {1, 2, 3, 4, -1, -2, -3, -4}> {
        [m] y = MatMul (x, w) }";
    let b = "(float[1,2] x) => (float[1,4] y)
        <int8[2,4] q = {2, 4, 6, 8, -2, -4, -6, -7}, float s = {0.5}, int8 z = {0}> {
        [d] w = DequantizeLinear (q, s, z) [m] y = MatMul (x, w) }";
    let found = compared(a, b);
    assert_eq!(told(&found), ["1x  -> DequantizeLinear (inserted)", "~q"]);
    let change = &found.initializers.changed[0];
    assert_eq!(
        (change.max_abs, change.name_before.as_deref()),
        (Some(0.5), Some("w"))
    );
    let after = &change.stats_after;
    assert_eq!(
        (after.bits, &*after.through),
        (Some(8), &["DequantizeLinear".to_owned()][..])
    );
    let q = after.quantization.as_ref().unwrap();
    assert_eq!((q.scale, q.scales, q.zero_point), ((0.5, 0.5), 1, (0, 0)));
    assert_eq!(change.parts_after, ["s", "z"]);
    // Weights count where they are computed with.
    let matmul = found
        .by_type
        .iter()
        .find(|t| t.op_type == "MatMul")
        .unwrap();
    assert_eq!((matmul.before.bytes, matmul.after.bytes), (32, 13));
}

#[test]
fn codes_of_integer_operators_are_decoded() {
    let a = "(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, -1, -2}> {
        [m] y = MatMul (x, w) }";
    let b = "(float[1,2] x) => (float[1,2] y) <int8[2,2] q = {2, 4, -2, -4}, float s = {0.5}> {
        c, e, z = DynamicQuantizeLinear (x) i = MatMulInteger (c, q, z) f = Cast <to = 1> (i)
        g = Mul (e, s) y = Mul (f, g) }";
    let found = compared(a, b);
    assert_eq!(found.patterns[0].kind, PatternKind::Replaced);
    let change = &found.initializers.changed[0];
    assert_eq!((&*change.name, change.max_abs), ("q", Some(0.0)));
}

#[test]
fn a_codebook_is_looked_up() {
    let a = "(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, -1, 2}> {
        [m] y = MatMul (x, w) }";
    let b = "(float[1,2] x) => (float[1,2] y)
        <uint8[2,2] k = {0, 1, 2, 1}, float[3] book = {0.5, 1, -0.5}, float[2,1] s = {2, 2}> {
        i = Cast <to = 7> (k) [g] l = Gather (book, i) w = Mul (l, s) [m] y = MatMul (x, w) }";
    let found = compared(a, b);
    assert_eq!(told(&found), ["1x  -> Cast+Gather+Mul (inserted)", "~k"]);
    let change = &found.initializers.changed[0];
    assert_eq!(
        (change.max_abs, change.stats_after.distinct),
        (Some(0.0), Some(3))
    );
    assert_eq!(change.parts_after, ["book", "s"]);
}

#[test]
fn two_factors_stand_for_one_weight() {
    let a = "(float[1,4] x) => (float[1,4] y) <float[4,4] w = {
        1, 2, 3, 4, 2, 4, 6, 8, 0, 1, 0, 1, 1, 3, 3, 5}> { [m] y = MatMul (x, w) }";
    let b = "(float[1,4] x) => (float[1,4] y)
        <float[4,2] u = {1, 0, 2, 0, 0, 1, 1, 1}, float[2,4] v = {1, 2, 3, 4, 0, 1, 0, 1}> {
        [m_u] t = MatMul (x, u) [m] y = MatMul (t, v) }";
    let found = compared(a, b);
    assert_eq!(found.initializers.changed.len(), 1);
    let change = &found.initializers.changed[0];
    assert_eq!(
        (change.max_abs, change.stats_after.rank),
        (Some(0.0), Some(2))
    );
    assert!(found.initializers.added.is_empty() && found.initializers.removed.is_empty());
}

#[test]
fn graphs_inside_operators_are_compared_where_they_stand() {
    let text = |inner: &str, outer: &str| {
        format!(
            "(float[2] x, bool c) => (float[2] y) {{
            [r] r = {outer} (x)
            [i] y = If (c) <then_branch = t () => (float[2] u) {{ [in] u = {inner} (r) }},
            else_branch = e () => (float[2] v) {{ [ab] v = Abs (r) }}> }}"
        )
    };
    let a = text("Relu", "Neg");
    assert!(compared(&a, &a).is_empty(true));
    assert_eq!(
        told(&compared(&a, &text("Elu", "Neg"))),
        ["1x Relu -> Elu (replaced)"]
    );
    let found = compared(&a, &text("Elu", "Neg"));
    assert_eq!(found.operators.added[0].graph, "If \"i\" / then_branch");
    // What is captured changed outside, and is told there only.
    assert_eq!(
        told(&compared(&a, &text("Relu", "Exp"))),
        ["1x Neg -> Exp (replaced)"]
    );
}

#[test]
fn inputs_and_outputs_may_be_called_otherwise_and_stand_elsewhere() {
    let a = "(float[N,2] x, float[N,2] z) => (float[N,2] s, float[N,2] t) {
        [a] s = Sub (x, z) [b] t = Relu (z) }";
    let b = "(float[M,2] q, float[M,2] p) => (float[M,2] v, float[M,2] u) {
        [b] v = Relu (q) [a] u = Sub (p, q) }";
    let found = compared(a, b);
    assert_eq!(told(&found), [""; 0]);
    let spelling: Vec<&str> = found.spelling.iter().map(|d| d.what.as_str()).collect();
    assert!(spelling.contains(&"order of inputs") && spelling.contains(&"name of a size"));
    // One symbol that became two is more than another name.
    let b = b.replace("(float[M,2] v", "(float[K,2] v");
    assert_eq!(told(&compared(a, &b)), ["output v"]);
    // An input of another name is the one that is used in the same way; its type counts.
    let c = a.replace("float[N,2] x", "float[N,4] x");
    assert!(told(&compared(a, &c)).contains(&"input x".to_owned()));
}

#[test]
fn what_is_said_or_left_to_the_default_is_the_same() {
    let text =
        |attrs: &str| format!("(float[2,3] x) => (float[2,3] y) {{ [s] y = Softmax {attrs} (x) }}");
    assert!(compared(&text(""), &text("<axis = -1>")).is_empty(true));
    let found = compared(&text(""), &text("<axis = 0>"));
    assert_eq!(told(&found), ["s: attribute axis"]);
    assert_eq!(found.operators.changed[0].changes[0].before, None);
}

#[test]
fn a_constant_operator_may_become_an_initializer() {
    let a = "(float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 2}> () [a] y = Add (x, w) }";
    let b = "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [a] y = Add (x, w) }";
    let found = compared(a, b);
    assert_eq!(told(&found), ["1x Constant -> initializer (stored)"]);
    assert_eq!(found.initializers.same, 1);
}

#[test]
fn a_repetitive_graph_that_was_edited_everywhere_is_aligned_by_sequence() {
    let layers = 40;
    let text = |skip: &[usize], seed: usize| {
        let weights: Vec<String> = (0..layers)
            .map(|k| format!("float[4,4] w{seed}_{k} = random({})", seed * 1000 + k))
            .collect();
        let mut body = String::new();
        let mut last = "x".to_owned();
        for k in 0..layers {
            body += &format!("m{seed}_{k} = MatMul ({last}, w{seed}_{k}) ");
            last = format!("m{seed}_{k}");
            if !skip.contains(&k) {
                body += &format!("r{seed}_{k} = Relu ({last}) ");
                last = format!("r{seed}_{k}");
            }
        }
        format!(
            "(float[1,4] x) => (float[1,4] y) <{}> {{ {body} y = Neg ({last}) }}",
            weights.join(", ")
        )
    };
    let found = compared(&text(&[], 1), &text(&[7, 19, 20, 33], 2));
    let o = &found.operators;
    assert_eq!((o.added.len(), o.removed.len(), o.changed.len()), (0, 4, 0));
    assert_eq!(found.initializers.changed.len(), layers);
    assert_eq!(found.patterns[0].kind, PatternKind::Bypassed);
}

#[test]
fn another_model_altogether_is_a_replacement() {
    let a = "(float[2] x) => (float[2] y) { a = Relu (x) b = Exp (a) y = Neg (b) }";
    let b = "(float[3] z) => (float[3] u) { p = Sin (z) u = Cos (p) }";
    let found = compared(a, b);
    assert_eq!(
        found.operators.removed.len() + found.operators.added.len(),
        5
    );
    assert!(!found.is_empty(false));
    let empty = "(float[2] x) => (float[2] x) { }";
    assert!(compared(empty, empty).is_empty(true));
    assert!(!compared(a, empty).is_empty(false));
}

#[test]
fn alignments_are_told_from_both_sides() {
    let b = NET.replace("[r] q = Relu (p)", "[e] e = Elu (p) [r] q = Relu (e)");
    let found = compared(NET, &b);
    let main = &found.graphs[0];
    for (i, node) in main.before.iter().enumerate() {
        let partner = node.partner.map(|j| &main.after[j]);
        assert_eq!(partner.and_then(|n| n.partner), Some(i));
    }
    let states: Vec<State> = main.after.iter().map(|n| n.state).collect();
    assert_eq!(
        states,
        [State::Same, State::Added, State::Same, State::Same]
    );
    assert_eq!(main.after[1].pattern, Some((0, 0)));
    assert_eq!(main.after[0].inputs[0], Source::Input { input: 0 });
    assert_eq!(main.after[1].inputs[0], Source::Node { node: 0, output: 0 });
    assert_eq!(main.after[0].output, "float[1,6,8,8]");
}

#[test]
fn hostile_constants_are_no_trouble() {
    // A sparse tensor and a table look-up that would be huge when written out.
    let text = |i: &str| {
        format!(
            "(float[1] x) => (float[1] y, float[] g)
            <sparse_tensor(float[4000000000,4000000000]) s = float[1] {{1}} at int64[1] {{{i}}},
             float[1,2] b = {{1, 2}}, int64[3] k = {{0, 0, 9}}> {{
            [a] y = Abs (x) [t] t = Gather (b, k) [m] g = MatMul (s, t) }}"
        )
    };
    let found = compared(&text("0"), &text("3"));
    assert_eq!(told(&found), ["~s"]);
    assert_eq!(found.initializers.changed[0].max_abs, None);
    // A scale of no elements, and a shape that does not fit.
    let float = "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { [a] y = Add (x, w) }";
    let empty = "(float[2] x) => (float[2] y) <int8[2] q = {1, 2}, float[0] s = {}> {
        w = DequantizeLinear <axis = 7> (q, s) [a] y = Add (x, w) }";
    assert_eq!(compared(float, empty).initializers.changed[0].max_abs, None);
    let ty = ValueType::fixed(DType::F32, &[1]);
    assert_eq!(type_text(Some(&ty)), "float[1]");
    let nothing = Constant::Dense(Tensor::vector(Vec::<f32>::new()));
    assert_eq!(weights::find_kept(&nothing, &nothing), None);
}

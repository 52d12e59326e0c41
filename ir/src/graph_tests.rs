//! Tests of the graph and its edits. They use what passes use, and the textual syntax.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use crate::attr::AttrValue;
use crate::graph::{Graph, GraphError, OpId, Port, ValueId};
use crate::op::{NewOp, NewOutput};
use crate::tensor::Tensor;
use crate::text::{PrintOptions, parse_graph, parse_model, print_graph};
use crate::value::{Constant, ValueType};

#[track_caller]
fn graph(text: &str) -> Graph {
    let g = parse_graph(text).unwrap_or_else(|e| panic!("{e}"));
    g.check_invariants().unwrap();
    g
}

fn text(g: &Graph) -> String {
    print_graph(g, &PrintOptions::full())
}

#[track_caller]
fn value(g: &Graph, name: &str) -> ValueId {
    g.find_value(name).unwrap_or_else(|| panic!("no {name}"))
}

#[track_caller]
fn maker(g: &Graph, name: &str) -> OpId {
    g.producer(value(g, name)).unwrap()
}

/// The graph reads like this text, white space aside.
#[track_caller]
fn reads(g: &Graph, expected: &str) {
    g.check_invariants().unwrap();
    assert_eq!(text(g), text(&graph(expected)));
}

/// The edit is refused with this message and leaves the graph as it was.
#[track_caller]
fn refuses(g: &mut Graph, part: &str, edit: impl FnOnce(&mut Graph) -> Result<(), GraphError>) {
    let before = text(g);
    let e = edit(g).unwrap_err().to_string();
    assert!(e.contains(part), "no `{part}` in `{e}`");
    assert_eq!(text(g), before);
    g.check_invariants().unwrap();
}

// ---- edits ----

#[test]
fn replacing_a_value_moves_operators_captures_and_outputs() {
    let mut g = graph(
        "g (x, c) => (y, z) {
            y = Relu (x)
            w = Neg (x)
            z = If (c) <then_branch: graph = t () => (r) { r = Add (y, y) }, else_branch: graph = e () => (y) {}>
        }",
    );
    let (y, w) = (value(&g, "y"), value(&g, "w"));
    g.replace_value(y, w).unwrap();
    // The output keeps its name, so the replacement takes it.
    let left = g.value(y).name().clone();
    g.remove_op(maker(&g, &left)).unwrap();
    reads(
        &g,
        "g (x, c) => (y, z) {
            y = Neg (x)
            z = If (c) <then_branch: graph = t () => (r) { r = Add (y, y) }, else_branch: graph = e () => (y) {}>
        }",
    );
}

#[test]
fn replacing_merges_captures() {
    let mut g = graph(
        "g (x, c) => (z) {
            a = Relu (x)
            b = Relu (x)
            z = If (c) <then_branch: graph = t () => (r, a) { r = Add (a, b) }, else_branch: graph = e () => (a, a) {}>
        }",
    );
    let (a, b) = (value(&g, "a"), value(&g, "b"));
    g.replace_value(a, b).unwrap();
    g.remove_op(maker(&g, "a")).unwrap();
    reads(
        &g,
        "g (x, c) => (z) {
            b = Relu (x)
            z = If (c) <then_branch: graph = t () => (r, b) { r = Add (b, b) }, else_branch: graph = e () => (b, b) {}>
        }",
    );
}

#[test]
fn an_output_passes_on_its_type() {
    let mut g = graph("g (float[2] x) => (float[2] y) { y = Relu (x) w = Neg (x) }");
    let (y, w) = (value(&g, "y"), value(&g, "w"));
    g.replace_value(y, w).unwrap();
    assert_eq!(g.value(w).declared_type().unwrap().to_string(), "float[2]");
    assert_eq!(&**g.value(w).name(), "y");
}

#[test]
fn replacements_that_cannot_be_are_refused() {
    let mut g = graph(
        "g (float[2] x, float[3] t, float[2] p) => (y, z, p) <float[2] w = {1, 2}, float[2] a> {
            a = Relu (x) y = Neg (a) z = Abs (a) }",
    );
    let [x, t, p, y, z, w, a] = ["x", "t", "p", "y", "z", "w", "a"].map(|n| value(&g, n));
    refuses(&mut g, "float[2]", |g| g.replace_value(a, t));
    for (old, new) in [(y, x), (y, w), (y, z), (p, a)] {
        assert!(!g.can_replace(old, new));
        refuses(&mut g, "graph output", |g| g.replace_value(old, new));
    }
    assert!(g.can_replace(a, x) && g.can_replace(a, w) && g.can_replace(y, y));
    let mut other = Graph::new("other");
    let stranger = other.add_value("s").unwrap();
    refuses(&mut g, "no such value", |g| g.replace_value(a, stranger));
}

#[test]
fn replacing_an_operator_keeps_outputs_and_origin() {
    let mut g = graph("g (x) => (y, z) { [old] y, \"\", z = Split (x) }");
    g.set_author(Some("rewrite".into()));
    let op = maker(&g, "y");
    let new = g
        .replace_op(op, NewOp::new("Chunk").input(value(&g, "x")))
        .unwrap();
    reads(&g, "g (x) => (y, z) { [old] y, \"\", z = Chunk (x) }");
    let origin = g.op(new).provenance().unwrap();
    assert_eq!(&*origin.from[0], "old");
    assert_eq!(&*origin.passes[0], "rewrite");
    assert!(g.get_op(op).is_none());

    let y = value(&g, "y");
    refuses(&mut g, "\"y\" is still used", |g| {
        g.replace_op(new, NewOp::new("Op").output("other"))
            .map(drop)
    });
    refuses(&mut g, "\"y\" is still used", |g| {
        g.replace_op(new, NewOp::new("Op").input(y)).map(drop)
    });
    refuses(&mut g, "no such operator", |g| {
        g.replace_op(op, NewOp::new("Op")).map(drop)
    });
}

#[test]
fn outputs_move_between_operators() {
    // A Relu is drawn into the Conv before it.
    let mut g = graph("g (x, w) => (y) { a = Conv (x, w) y = Relu (a) }");
    let (conv, relu) = (maker(&g, "a"), maker(&g, "y"));
    let y = value(&g, "y");
    g.move_output(y, conv, 0).unwrap();
    g.remove_op(relu).unwrap();
    reads(&g, "g (x, w) => (y) { y = Conv (x, w) }");

    let mut g = graph("g (x, w) => (y, z) { a = Conv (x, w) y = Relu (a) z = Neg (a) }");
    let (conv, y, x) = (maker(&g, "a"), value(&g, "y"), value(&g, "x"));
    refuses(&mut g, "\"a\" is still used", |g| g.move_output(y, conv, 0));
    refuses(&mut g, "already has a source", |g| {
        g.move_output(x, conv, 1)
    });
    g.move_output(y, conv, 2).unwrap();
    assert_eq!(g.op(conv).outputs().len(), 3);
    g.check_invariants().unwrap();

    // What the old producer captures is a use like any other.
    let mut g =
        graph("g (x) => (y) { a = Conv (x) y = If (x) <then_branch: graph = t () => (a) {}> }");
    let (conv, y) = (maker(&g, "a"), value(&g, "y"));
    refuses(&mut g, "\"a\" is still used", |g| g.move_output(y, conv, 0));
}

#[test]
fn folding_keeps_the_name() {
    let mut g = graph("g (x) => (y) { a = Constant <value_int: int = 1> () y = Add (x, a) }");
    let a = value(&g, "a");
    let op = maker(&g, "a");
    g.fold_to_constant(a, Tensor::scalar(1i64)).unwrap();
    g.remove_op(op).unwrap();
    reads(&g, "g (x) => (y) <int64 a = {1}> { y = Add (x, a) }");
    refuses(&mut g, "already has a source", |g| {
        g.fold_to_constant(a, Tensor::scalar(1i64))
    });
}

#[test]
fn input_slots_grow_and_shrink() {
    let mut g = graph("g (x, z) => (y) { y = Clip (x) }");
    let (op, x, z) = (maker(&g, "y"), value(&g, "x"), value(&g, "z"));
    g.set_input(op, 3, Some(z)).unwrap();
    reads(&g, "g (x, z) => (y) { y = Clip (x, \"\", \"\", z) }");
    g.set_input(op, 1, Some(x)).unwrap();
    g.set_input(op, 3, None).unwrap();
    reads(&g, "g (x, z) => (y) { y = Clip (x, x) }");
    g.set_input(op, 9, None).unwrap();
    g.set_inputs(op, &[None, Some(z)]).unwrap();
    reads(&g, "g (x, z) => (y) { y = Clip (\"\", z) }");
    assert!(g.value(x).is_unused());
}

#[test]
fn unused_trailing_outputs_are_trimmed() {
    let mut g = graph("g (x) => (y) { y, \"\", a, b = Op (x) = Sink (a) }");
    let op = maker(&g, "y");
    g.trim_outputs(op, 1).unwrap();
    reads(&g, "g (x) => (y) { y, \"\", a = Op (x) = Sink (a) }");
    g.trim_outputs(op, 1).unwrap();
    assert_eq!(g.op(op).outputs().len(), 3);
}

#[test]
fn what_is_used_stays() {
    let mut g = graph("g (x) => (y) <float w = {1}> { a = Relu (x) y = Add (a, w) }");
    let (op, a, w, x) = (
        maker(&g, "a"),
        value(&g, "a"),
        value(&g, "w"),
        value(&g, "x"),
    );
    refuses(&mut g, "\"a\" is still used", |g| g.remove_op(op));
    refuses(&mut g, "\"w\" is still used", |g| g.remove_value(w));
    refuses(&mut g, "\"a\" is still used", |g| g.remove_value(a));
    let y = maker(&g, "y");
    refuses(&mut g, "\"y\" is still used", |g| g.remove_op(y));
    // An input stays even when nothing takes it.
    g.set_input(op, 0, None).unwrap();
    refuses(&mut g, "\"x\" is still used", |g| g.remove_value(x));
}

#[test]
fn sources_are_single() {
    let mut g = graph("g (x) => (y) <float w = {1}> { y = Relu (x) }");
    let [x, y, w] = ["x", "y", "w"].map(|n| value(&g, n));
    refuses(&mut g, "\"y\" already has a source", |g| {
        g.add_op(NewOp::new("Op").push_output(NewOutput::Existing(y)))
            .map(drop)
    });
    for v in [x, w] {
        refuses(&mut g, "already has a source", |g| {
            g.add_op(NewOp::new("Op").push_output(NewOutput::Existing(v)))
                .map(drop)
        });
    }
    refuses(&mut g, "\"y\" is already taken", |g| {
        g.add_op(NewOp::new("Op").push_output(NewOutput::Named("y".into())))
            .map(drop)
    });
    refuses(&mut g, "already has a source", |g| {
        g.add_input("x", None).map(drop)
    });
    refuses(&mut g, "already has a source", |g| {
        g.add_input("y", None).map(drop)
    });
    refuses(&mut g, "already has a source", |g| {
        g.add_initializer(w, Constant::Dense(Tensor::scalar(1f32)))
    });
    refuses(&mut g, "\"x\" is already taken", |g| g.rename_value(y, "x"));
    refuses(&mut g, "\"x\" is already taken", |g| {
        g.add_value("x").map(drop)
    });
    refuses(&mut g, "no such initializer", |g| {
        g.set_tensor(y, Tensor::scalar(1f32), Vec::new())
    });
}

#[test]
fn ids_of_removed_and_foreign_things_are_refused() {
    let mut g = graph("g (x) => (y) { a = Relu (x) y = Neg (x) }");
    let (op, a) = (maker(&g, "a"), value(&g, "a"));
    g.remove_op(op).unwrap();
    refuses(&mut g, "no such operator", |g| g.remove_op(op));
    refuses(&mut g, "no such value", |g| g.rename_value(a, "b"));
    refuses(&mut g, "no such operator", |g| g.set_input(op, 0, None));
    refuses(&mut g, "no such operator", |g| g.set_inputs(op, &[]));
    let y = maker(&g, "y");
    refuses(&mut g, "no such value", |g| g.set_input(y, 0, Some(a)));
    refuses(&mut g, "no such operator", |g| g.set_attr(op, "a", 1i64));
    assert!(g.get_value(a).is_none() && g.get_op(op).is_none());
    // Ids are not used again, and clones keep them.
    let b = g.add_value("b").unwrap();
    assert!(b > a);
    let copy = g.clone();
    assert_eq!(copy.value(b).name(), g.value(b).name());
    let other = g.duplicate();
    assert!(other.get_value(b).is_none());
    other.check_invariants().unwrap();
}

#[test]
fn old_files_list_initializers_once() {
    let mut g = graph("g (x, float v = {1}, float w = {2}) => (y) { y = Add (x, w) }");
    g.fix_listed_initializers();
    let v = value(&g, "v");
    g.remove_value(v).unwrap();
    let names = |g: &Graph| -> Vec<String> {
        let listed = g.listed_inputs().iter();
        listed.map(|&v| g.value(v).name().to_string()).collect()
    };
    assert_eq!(names(&g), ["x", "w"]);
    g.add_constant("k", Tensor::scalar(1f32)).unwrap();
    g.add_input("w2", None).unwrap();
    assert_eq!(names(&g), ["x", "w", "k", "w2"]);
    assert_eq!(g.inputs().len(), 2);
}

// ---- graphs in attributes ----

const TWO_LEVELS: &str = "g (x, c) => (z) {
    a = Relu (x)
    z = If (c) <then_branch: graph = t () => (r) {
        b = Neg (a)
        r = If (c) <then_branch: graph = u () => (s) { s = Add (a, b) }, else_branch: graph = v () => (a) {}>
    }, else_branch: graph = e () => (q) { q = Abs (x) }>
}";

#[test]
fn renaming_reaches_through_levels() {
    let mut g = graph(TWO_LEVELS);
    let a = value(&g, "a");
    g.rename_value(a, "renamed").unwrap();
    reads(
        &g,
        &TWO_LEVELS
            .replace("(a", "(renamed")
            .replace("a = Relu", "renamed = Relu"),
    );
    // Inner values that have the name yield it.
    g.rename_value(a, "b").unwrap();
    g.check_invariants().unwrap();
    let printed = text(&g);
    assert!(
        printed.contains("b_1 = Neg (b)") && printed.contains("s = Add (b, b_1)"),
        "{printed}"
    );
    assert_eq!(text(&graph(&printed)), printed);
}

#[test]
fn captured_values_get_back_the_outer_name() {
    let mut g = graph(TWO_LEVELS);
    let z = maker(&g, "z");
    g.edit_subgraphs(z, |_, sub| match sub.find_value("a") {
        Some(a) => sub.rename_value(a, "inside"),
        None => Ok(()),
    })
    .unwrap();
    reads(&g, TWO_LEVELS);
}

#[test]
fn a_capture_takes_its_name_from_a_local_value() {
    let mut g =
        graph("g (x, c) => (z) { z = If (c) <then_branch: graph = t () => (x) { x = Neg (c) }> }");
    let (z, x) = (maker(&g, "z"), value(&g, "x"));
    g.edit_subgraphs(z, |_, sub| {
        let inner = sub.capture(x, "x")?;
        assert_eq!(sub.capture(x, "x")?, inner);
        sub.add_op(NewOp::new("Abs").input(inner).output("o"))
            .map(drop)
    })
    .unwrap();
    reads(
        &g,
        "g (x, c) => (z) { z = If (c) <then_branch: graph = t () => (x_1) { x_1 = Neg (c) o = Abs (x) }> }",
    );
    assert_eq!(g.op(z).captures().collect::<Vec<_>>(), [value(&g, "c"), x]);
}

#[test]
fn a_capture_that_goes_frees_the_value() {
    let mut g = graph(TWO_LEVELS);
    let (z, a) = (maker(&g, "z"), value(&g, "a"));
    let relu = maker(&g, "a");
    refuses(&mut g, "\"a\" is still used", |g| g.remove_op(relu));
    g.remove_attr(z, "then_branch").unwrap();
    assert!(g.value(a).is_unused());
    g.remove_op(relu).unwrap();
    g.remove_attr(z, "else_branch").unwrap();
    assert_eq!(g.ops_with_subgraphs().count(), 0);
    g.check_invariants().unwrap();
}

#[test]
fn graphs_that_capture_from_elsewhere_are_refused() {
    let donor = graph(TWO_LEVELS);
    let branch = donor
        .op(maker(&donor, "z"))
        .subgraphs()
        .next()
        .unwrap()
        .duplicate();
    let mut g = graph("g (x, c) => (y) { y = If (c) }");
    let op = maker(&g, "y");
    let attr = AttrValue::Graph(Box::new(branch));
    refuses(&mut g, "no such value", |g| {
        g.set_attr(op, "then_branch", attr.clone())
    });
    refuses(&mut g, "no such value", |g| {
        g.add_op(NewOp::new("If").attr("then_branch", attr.clone()))
            .map(drop)
    });
    refuses(&mut g, "no such value", |g| {
        g.replace_op(op, NewOp::new("If").attr("then_branch", attr.clone()))
            .map(drop)
    });
}

#[test]
fn duplicates_share_nothing() {
    let g = graph(TWO_LEVELS);
    let mut copy = g.duplicate();
    assert_ne!(copy.id(), g.id());
    let a = value(&copy, "a");
    copy.rename_value(a, "other").unwrap();
    copy.check_invariants().unwrap();
    g.check_invariants().unwrap();
    reads(&g, TWO_LEVELS);
    let inner = |g: &Graph| g.op(maker(g, "z")).subgraphs().next().unwrap().revision();
    assert_ne!(inner(&copy), inner(&g));
}

#[test]
fn separating_names_keeps_those_of_the_main_graph() {
    let mut model = parse_model(
        "<opset_import: [\"\": 21]> g (x, c) => (a, z) {
            a = Relu (x)
            z = If (c) <then_branch: graph = t () => (a) { a = Neg (x) }, else_branch: graph = e () => (a) { a = Abs (x) }> }",
    )
    .unwrap();
    model.separate_nested_names().unwrap();
    model.graph.check_invariants().unwrap();
    let printed = text(&model.graph);
    assert!(printed.contains("  a = Relu (x)"), "{printed}");
    assert!(!printed.contains("    a = "), "{printed}");
}

// ---- orders ----

#[test]
fn the_order_is_that_of_the_file_where_the_data_leaves_it_open() {
    let mut g = graph("g (x) => (d) { b = B (x) a = A (x) c = C (a, b) d = D (c) }");
    let types = |g: &Graph| -> String {
        let order = g.topological_order().unwrap();
        order
            .iter()
            .map(|&op| g.op(op).op_type().to_string())
            .collect()
    };
    assert_eq!(types(&g), "BACD");
    // A replacement stands where the old operator stood, though it was added last.
    let (op, x) = (maker(&g, "b"), value(&g, "x"));
    g.replace_op(op, NewOp::new("N").input(x)).unwrap();
    assert_eq!(types(&g), "NACD");
    let beside = maker(&g, "a");
    g.add_op(NewOp::new("E").input(x).output("e").beside(beside))
        .unwrap();
    g.add_op(NewOp::new("Z").input(x).output("z")).unwrap();
    assert_eq!(types(&g), "NAECDZ");
    // The data outweighs the file.
    let (first, z) = (maker(&g, "b"), value(&g, "z"));
    g.set_input(first, 0, Some(z)).unwrap();
    assert_eq!(types(&g), "AEZNCD");
    assert_eq!(types(&g.clone()), "AEZNCD");
}

#[test]
fn cycles_are_found() {
    let mut g = graph("g (x) => (b) { a = A (x) b = B (a) }");
    let (a, b) = (maker(&g, "a"), value(&g, "b"));
    g.set_input(a, 0, Some(b)).unwrap();
    let e = g.topological_order().unwrap_err().to_string();
    assert_eq!(e, "the graph \"g\" has a cycle through a");
    // A graph inside that takes what its operator makes is a cycle too.
    let g = graph("g (x) => (y) { y = If (x) <b: graph = t () => (y) {}> }");
    assert_eq!(g.op(maker(&g, "y")).captures().len(), 1);
    assert!(g.topological_order().is_err());
}

#[test]
fn neighbours_stand_in_order() {
    let g = graph("g (x) => (d) { a, b = A (x) c = C (b, a) d = D (a, c, c) }");
    let [a, c, d] = ["a", "c", "d"].map(|n| maker(&g, n));
    assert_eq!(g.successors(a), [c, d]);
    assert_eq!(g.predecessors(d), [a, c]);
    let ports = |n| -> Vec<Port> { g.sorted_uses(value(&g, n)).iter().map(|u| u.port).collect() };
    assert_eq!(ports("c"), [Port::Input(1), Port::Input(2)]);
    assert_eq!(g.single_consumer(value(&g, "b")), Some((c, Port::Input(0))));
    assert_eq!(g.single_consumer(value(&g, "a")), None);
    assert_eq!(g.single_consumer(value(&g, "d")), None);
}

#[test]
fn petgraph_sees_what_is_alive() {
    use petgraph::visit::{IntoEdgeReferences, IntoNodeReferences, NodeFiltered};
    let mut g = graph("g (x) => (y) { a = A (x) b = B (x) y = C (a, b) }");
    let (op, a) = (maker(&g, "y"), value(&g, "a"));
    let maker_of_b = maker(&g, "b");
    g.set_inputs(op, &[Some(a)]).unwrap();
    g.remove_op(maker_of_b).unwrap();
    let edges = g.petgraph();
    assert_eq!((&edges).edge_references().count(), 4);
    let view = NodeFiltered(&edges, g.live_nodes());
    let nodes = (&view).node_references().count();
    assert_eq!(nodes, g.op_count() + g.value_count());
    let sorted = petgraph::algo::toposort(&view, None).unwrap();
    assert_eq!(sorted.len(), nodes);
}

#[test]
fn revisions_tell_states_apart() {
    let mut g = graph("g (x) => (y) { y = Relu (x) }");
    let first = g.revision();
    assert_eq!(g.clone().revision(), first);
    let y = value(&g, "y");
    g.set_type(y, None).unwrap();
    assert_eq!(g.revision(), first);
    let mut copy = g.clone();
    copy.rename_value(y, "z").unwrap();
    g.rename_value(y, "z").unwrap();
    assert_ne!(copy.revision(), g.revision());
}

// ---- size ----

#[test]
fn a_hundred_thousand_consumers_and_ten_thousand_inputs() {
    let mut g = Graph::new("wide");
    let x = g.add_input("x", None).unwrap();
    let first = g.add_op(NewOp::new("A").input(x).output("a")).unwrap();
    let a = g.op(first).output(0).unwrap();
    let mut ends = Vec::new();
    for _ in 0..100_000 {
        let op = g.add_op(NewOp::new("Relu").input(a).output("r")).unwrap();
        ends.push(g.op(op).output(0));
    }
    let concat = g
        .add_op(
            NewOp::new("Concat")
                .inputs(ends[..10_000].to_vec())
                .output("y"),
        )
        .unwrap();
    // Everything moves over and back, slot by slot and at once.
    g.replace_value(a, x).unwrap();
    g.replace_value(x, a).unwrap();
    g.set_input(first, 0, Some(x)).unwrap();
    for slot in 0..10_000 {
        g.set_input(concat, slot, Some(a)).unwrap();
    }
    for (slot, v) in ends[..10_000].iter().enumerate() {
        g.set_input(concat, slot, *v).unwrap();
    }
    g.set_inputs(concat, &ends[10_000..20_000]).unwrap();
    assert_eq!(g.topological_order().unwrap().len(), 100_002);
    g.remove_op(concat).unwrap();
    for v in ends.into_iter().flatten() {
        let op = g.producer(v).unwrap();
        g.remove_op(op).unwrap();
    }
    assert_eq!((g.op_count(), g.value_count()), (1, 2));
    g.check_invariants().unwrap();
}

#[test]
fn removed_edges_are_swept_out() {
    let mut g = graph(
        "g (x, z, c) => (y) { y = Add (x, z) o = If (c) <b: graph = t () => (r) { r = Neg (x) }> }",
    );
    let (op, x, z) = (maker(&g, "y"), value(&g, "x"), value(&g, "z"));
    let edges = |g: &Graph| {
        use petgraph::visit::IntoEdgeReferences;
        let view = g.petgraph();
        // Under the filter stands the whole list.
        (
            view.0.edge_references().count(),
            (&view).edge_references().count(),
        )
    };
    for i in 0..10_000 {
        g.set_input(op, i % 2, Some(if i % 3 == 0 { x } else { z }))
            .unwrap();
    }
    let (all, live) = edges(&g);
    assert!(all < 3000, "{all} edges for {live}");
    assert_eq!(live, 6);
    g.check_invariants().unwrap();
    for i in 0..10_000 {
        let (old, new) = if i % 2 == 0 { (x, z) } else { (z, x) };
        g.replace_value(old, new).unwrap();
    }
    assert!(edges(&g).0 < 3000);
    g.check_invariants().unwrap();
}

// ---- random edits ----

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: impl IntoIterator<Item = T>) -> Option<T> {
        let all: Vec<T> = from.into_iter().collect();
        (!all.is_empty()).then(|| all[self.below(all.len())])
    }
}

/// One random edit; refusals are as good as edits, as long as nothing breaks.
fn edit(g: &mut Graph, r: &mut Random, depth: usize) -> Result<(), GraphError> {
    let Some(v) = r.pick(g.values()) else {
        return g.add_input("x", None).map(drop);
    };
    let w = r.pick(g.values()).unwrap_or(v);
    let Some(op) = r.pick(g.ops()) else {
        return g.add_op(NewOp::new("Op").input(v).output("v")).map(drop);
    };
    match r.below(20) {
        0..4 => {
            let mut new = NewOp::new("Op").optional_input(Some(v));
            for _ in 0..r.below(3) {
                new = new.optional_input(r.pick([Some(w), None]).flatten());
            }
            for _ in 0..r.below(3) {
                let output = match r.below(4) {
                    0 => NewOutput::Absent,
                    1 => NewOutput::Existing(w),
                    2 => NewOutput::Named(format!("n{}", r.below(50)).into()),
                    _ => NewOutput::Fresh("v".into()),
                };
                new = new.push_output(output);
            }
            g.add_op(new).map(drop)
        }
        4 => g.set_input(op, r.below(4), r.pick([Some(v), None]).flatten()),
        5 => g.set_inputs(op, &[Some(v), None, Some(w)]),
        6..8 => g.replace_value(v, w),
        8 => {
            let new = NewOp::new("New").input(v);
            g.replace_op(
                op,
                if r.below(2) == 0 {
                    new
                } else {
                    new.output("v")
                },
            )
            .map(drop)
        }
        9 => g.move_output(v, op, r.below(3)),
        10 => g.remove_op(op),
        11 => g.remove_value(v),
        12 => g.fold_to_constant(v, Tensor::scalar(1f32)),
        13 => g.rename_value(v, format!("n{}", r.below(50))),
        14 => match r.below(3) {
            0 => g.add_output(v),
            1 => g.add_input(format!("n{}", r.below(50)), None).map(drop),
            _ => g.add_constant("k", Tensor::vector(vec![1f32; 3])).map(drop),
        },
        15 => g.trim_outputs(op, r.below(2)),
        16 => {
            let ty = r.pick([None, Some(3), Some(4)]).flatten();
            g.set_type(
                v,
                ty.map(|n| ValueType::fixed(crate::tensor::DType::F32, &[n])),
            )
        }
        17 if depth < 2 => {
            let mut inner = Graph::new("inner");
            for _ in 0..6 {
                let outer = r.pick(g.values()).unwrap_or(v);
                inner.capture(outer, g.value(outer).name())?;
                edit(&mut inner, r, depth + 1).ok();
            }
            g.set_attr(op, "body", inner)
        }
        18 => g.remove_attr(op, "body"),
        _ => {
            let Some(owner) = r.pick(g.ops_with_subgraphs()) else {
                return Ok(());
            };
            let outer = g.value(w).name().clone();
            g.edit_subgraphs(owner, |_, sub| {
                if r.below(2) == 0 {
                    sub.capture(w, &outer)?;
                }
                edit(sub, r, depth + 1)
            })
        }
    }
}

#[test]
fn random_edits_keep_the_invariants() {
    let (mut done, mut refused, mut nested) = (0, 0, 0);
    for seed in 1..=60 {
        let mut r = Random(seed * 0x9e37_79b9);
        let mut g = graph(TWO_LEVELS);
        g.set_author(Some("random".into()));
        for step in 0..150 {
            let (before, revision) = (g.clone(), g.revision());
            match edit(&mut g, &mut r, 0) {
                Ok(()) => done += 1,
                Err(e) => {
                    refused += 1;
                    // What edits of inner graphs did before one was refused stays done.
                    if g.revision() == revision {
                        assert_eq!(text(&g), text(&before), "seed {seed}, step {step}: {e}");
                    }
                }
            }
            if let Err(e) = g.check_invariants() {
                panic!("seed {seed}, step {step}: {e}\nbefore:\n{before}\nafter:\n{g}");
            }
            before.check_invariants().unwrap();
        }
        nested += g.ops_with_subgraphs().count();
        g.duplicate().check_invariants().unwrap();
        // What is without cycle reads back as the same.
        if g.topological_order().is_ok() {
            let printed = text(&g);
            let again = parse_graph(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert_eq!(text(&again), printed);
        }
    }
    assert!(
        done > 3000 && refused > 500 && nested > 20,
        "{done} {refused} {nested}"
    );
}

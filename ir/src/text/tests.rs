#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use super::*;
use crate::attr::AttrValue;
use crate::model::Model;
use crate::tensor::{DType, Tensor};
use crate::value::{Constant, ValueType};

/// Prints everything.
fn full(model: &Model) -> String {
    print_model(model, &PrintOptions::full())
}

/// The text is what printing the model that it says gives, without its outer blank.
#[track_caller]
fn stays(text: &str) -> Model {
    let text = text.trim_start();
    let model = parse_model(text).unwrap_or_else(|e| panic!("{e}"));
    model.graph.check_invariants().unwrap();
    assert_eq!(full(&model), text);
    model
}

/// The text, once printed, stays as it is.
#[track_caller]
fn settles(text: &str) -> String {
    let model = parse_model(text).unwrap_or_else(|e| panic!("{e}"));
    let printed = full(&model);
    let again = parse_model(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(full(&again), printed);
    printed
}

/// A model whose one operator has these attributes.
fn with_attrs(attrs: &str) -> String {
    format!(
        "<ir_version: 10, opset_import: [\"\": 21]>\ng (x) => (y) {{\n  y = Op{attrs} (x)\n}}\n"
    )
}

#[track_caller]
fn tensor(ty: &str, elements: &str) -> Tensor {
    let text = format!("g () => () <{ty} w = {elements}> {{}}");
    let g = parse_graph(&text).unwrap_or_else(|e| panic!("{e}"));
    let w = g.find_value("w").unwrap();
    g.tensor(w).unwrap().clone()
}

#[track_caller]
fn refused(text: &str) -> String {
    match parse_model(text) {
        Ok(model) => panic!("it was read as\n{}", full(&model)),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_model_stays_as_it_is() {
    let model = stays(
        r#"
<ir_version: 10, opset_import: ["": 21, "com.example": 1], producer_name: "a \"b\"", producer_version: "1", domain: "d", model_version: 3, doc_string: "line\nline", metadata_props: ["k": "v"]>
"a graph" (float[N,?,"a b",3] x, float[] s, float u, q) => (float[N] y, z)
<
  float[2,2] w = {1, 2, -3.5, 1e-45},
  int64 k = {-3},
  string[2] words = {"a", "\n\u{1b}\xFF"},
  float[N] hidden,
  t
>
{
  [node1] hidden = Add (x, w)
  ["node/2"] "a b.c", "", k2 = foo.Bar:ov <a: int = 1, b: float = 1.0, c: ints = [1, 2]> (hidden, "", k)
  = Sink (u)
  y, z = "my-domain"."An op" <"odd name": string = "s"> ("a b.c", words)
}
<domain: "foo", overload: "ov", opset_import: ["": 19], doc_string: "x", metadata_props: ["k": "v"]>
Bar <aa, bb: int = 3> (a, b, c) => (d, e, f) {
  d = Add <axis: int = @aa> (a, b)
}
"#,
    );
    assert_eq!(model.opset(), 21);
    let op = model.graph.ops().nth(1).unwrap();
    let op = model.graph.op(op);
    assert_eq!(op.input(1), None);
    assert_eq!(op.outputs().len(), 3);
    assert_eq!(op.overload(), "ov");
    assert!(model.function_of(op).is_some());
}

#[test]
fn what_onnx_prints_is_read() {
    let printed = settles(
        "<\n   ir_version: 10,\n   opset_import: [\"\" : 19]\n>\nagraph (float[N] x,  free) => (float[] y)\n   \
         <float[2] w =  {1,2}, bool[2] b =  {1,0}, float16[1] h =  {15872}, float d =  {1e+05}, int64[1] v>\n{\n   \
         [n] h2 = Conv <t: tensor = float[2] name {1,2}, es: strings = ]> (x, \"\", w)\n    = Sink (h2)\n   \
         y = If (x) <then_branch: graph = g () => (float r) {\n      r = Relu (x)\n   }>\n}",
    );
    assert_eq!(
        printed,
        r#"<ir_version: 10, opset_import: ["": 19]>
agraph (float[N] x, free) => (float[] y)
<
  float[2] w = {1, 2},
  bool[2] b = {1, 0},
  float16[1] h = {15872},
  float d = {100000},
  int64[1] v
>
{
  [n] h2 = Conv <t: tensor = float[2] name {1, 2}, es: strings = []> (x, "", w)
  = Sink (h2)
  y = If (x) <then_branch: graph = g () => (float r) {
    r = Relu (x)
  }>
}
"#
    );
}

#[test]
fn every_kind_of_attribute_stays() {
    for attr in [
        "i: int = -9223372036854775808",
        "f: float = 0.1",
        "f: float = -0.0",
        "f: float = 1e-45",
        "f: float = 3.4028235e38",
        "f: float = nan",
        "f: float = nan(0xffc00000)",
        "f: float = -inf",
        "s: string = \"a\\\\b\"",
        "s: string = \"\"",
        "t: tensor = float {1}",
        "t: tensor = int64[0] {}",
        "t: tensor = float[2] name {1, 2}",
        "t: sparse_tensor = sparse_tensor(float[5]) float[2] {1, 2} at int64[2] {0, 3}",
        "t: type_proto = seq(optional(map(int64, float[N,?])))",
        "t: type_proto = sparse_tensor(float[2])",
        "t: type_proto = opaque(a,\"b c\")",
        "t: type_proto = undefined[]",
        "l: ints = [1, 2]",
        "l: ints = []",
        "l: floats = [1.0, inf]",
        "l: floats = []",
        "l: strings = [\"a\", \"b\"]",
        "l: strings = []",
        "l: tensors = [float {1}, int4[3] {-8, 7, 1}]",
        "l: tensors = []",
        "l: type_protos = [float[2], seq()]",
        "l: sparse_tensors = [sparse_tensor(float[5]) float[1] {1} at int64[1,1] {3}]",
        "l: graphs = []",
        "r: ints = @other",
    ] {
        stays(&with_attrs(&format!(" <{attr}>")));
    }
}

#[test]
fn kinds_are_told_from_values() {
    for (short, long) in [
        ("a = 1", "a: int = 1"),
        ("a = 1.0", "a: float = 1.0"),
        ("a: float = 1", "a: float = 1.0"),
        ("a = [1, 2]", "a: ints = [1, 2]"),
        ("a = [1, 2.5]", "a: floats = [1.0, 2.5]"),
        ("a = -inf", "a: float = -inf"),
        ("a = [\"x\"]", "a: strings = [\"x\"]"),
        ("a = float[2] {1, 2}", "a: tensor = float[2] {1, 2}"),
        ("a = float[2]", "a: type_proto = float[2]"),
        ("a = seq(float)", "a: type_proto = seq(float)"),
        ("a = [float, int64]", "a: type_protos = [float, int64]"),
    ] {
        assert_eq!(
            settles(&with_attrs(&format!(" <{short}>"))),
            with_attrs(&format!(" <{long}>"))
        );
    }
    let after = "<opset_import: [\"\": 21]> g (x) => (y) { y = Op <a = 1> (x) <b = 2> }";
    assert!(settles(after).contains("Op <a: int = 1, b: int = 2> (x)"));
}

#[test]
fn inner_graphs_see_outwards_and_shadow() {
    let model = stays(
        r#"
<ir_version: 10, opset_import: ["": 21]>
g (float x, bool c) => (y)
<
  float w = {1}
>
{
  late = Relu (x)
  y = If (c) <then_branch: graph = then () => (r) {
    w = Abs (late)
    r = If (c) <then_branch: graph = inner () => (s) {
      s = Add (w, late)
    }, else_branch: graph = other () => (late) {
    }>
  }, else_branch: graph = else () => (w) {
  }>
}
"#,
    );
    let g = &model.graph;
    let owner = g.ops_with_subgraphs().next().unwrap();
    let names = |g: &crate::graph::Graph, op| -> Vec<String> {
        let captures = g.op(op).captures();
        captures.map(|v| g.value(v).name().to_string()).collect()
    };
    assert_eq!(names(g, owner), ["late", "c", "w"]);
    let then = g.op(owner).subgraphs().next().unwrap();
    let inner = then.ops_with_subgraphs().next().unwrap();
    // This `w` is the one of the graph between, which is no constant.
    assert_eq!(names(then, inner), ["w", "late"]);
    assert!(then.tensor(then.find_value("w").unwrap()).is_none());
}

#[test]
fn a_name_may_be_defined_after_it_is_used() {
    let text = "<opset_import: [\"\": 21]> g (x) => (z) {
        z = If (x) <then_branch = a () => (r) { r = Neg (y) }>
        y = Relu (x) }";
    let model = parse_model(text).unwrap();
    let order = model.graph.topological_order().unwrap();
    assert_eq!(&**model.graph.op(order[0]).op_type(), "Relu");
    assert_eq!(settles(text), full(&model));
}

#[test]
fn notes_stay() {
    let model = stays(
        r#"
<ir_version: 10, opset_import: ["": 21]>
g (float x #: doc_string: "an input"
) => (float y #: metadata_props: ["a": "b"]
) { #: doc_string: "a graph", metadata_props: ["k": "v"], quantization: ["x": ["SCALE_TENSOR": "s"], "": []]
  y = Relu (x) #: doc_string: "an op", metadata_props: ["k": "v", "l": ""]
}
"#,
    );
    let extra = model.graph.extra();
    assert_eq!(extra.quantization_annotations.len(), 2);
    assert_eq!(extra.quantization_annotations[1].tensor, None);
    assert!(
        refused("<opset_import: [\"\": 1]> g () => () { #: nonsense: 1\n}")
            .contains("an ordinary comment starts with `# `")
    );
}

#[test]
fn comments_are_passed_over() {
    settles(
        "# first\n<opset_import: [\"\": 21]> // second\ng (x # third }\n) => (y) { y = Relu (x) } // last",
    );
}

#[test]
fn provenance_is_a_comment() {
    let mut g = parse_graph("g (x) => (y) { [a] y = Relu (x) }").unwrap();
    g.set_author(Some("replace-relu".into()));
    let op = g.ops().next().unwrap();
    let x = g.find_value("x").unwrap();
    g.replace_op(op, crate::op::NewOp::new("Abs").input(x))
        .unwrap();
    let options = PrintOptions {
        provenance: true,
        ..PrintOptions::full()
    };
    let text = print_graph(&g, &options);
    assert!(
        text.contains("[a] y = Abs (x) # from a by replace-relu\n"),
        "{text}"
    );
    parse_graph(&text).unwrap();
    let op = g.ops().next().unwrap();
    assert_eq!(print_op(&g, op, &PrintOptions::full()), "[a] y = Abs (x)");
}

#[test]
fn old_models_list_their_initializers() {
    let model = stays(
        r#"
<ir_version: 3, opset_import: ["": 7]>
g (float[2] x, float[2] w) => (y)
<
  float[2] w = {1, 2}
>
{
  y = Add (x, w)
}
"#,
    );
    assert_eq!(model.graph.inputs().len(), 1);
    let w = model.graph.find_value("w").unwrap();
    assert!(model.graph.tensor(w).is_some());
}

#[test]
fn an_input_may_have_a_default() {
    let text = "<ir_version: 10, opset_import: [\"\": 21]> g (float x = {1}) => (x) {}";
    let model = parse_model(text).unwrap();
    let x = model.graph.find_value("x").unwrap();
    assert!(model.graph.value(x).initializer().is_some());
    assert!(model.graph.tensor(x).is_none());
    assert_eq!(
        model.graph.value(x).declared_type(),
        Some(&ValueType::fixed(DType::F32, &[]))
    );
    assert!(settles(text).contains("(float x) => (float x)\n<\n  float x = {1}"));
}

#[test]
fn a_header_without_ir_version_takes_the_first_that_allows_the_opset() {
    let model = parse_model("<opset_import: [\"ai.onnx\": 15]> g () => () {}").unwrap();
    assert_eq!((model.ir_version, model.opset()), (8, 15));
    assert!(full(&model).contains("opset_import: [\"ai.onnx\": 15]"));
}

#[test]
fn elements_are_kept_bit_by_bit() {
    let f = tensor(
        "float[8]",
        "{0.1, -0.0, -0, nan, -inf, nan(0x7fa00001), 3.4028235e38, 1e-45}",
    );
    let bits: Vec<u32> = f
        .view::<f32>()
        .unwrap()
        .iter()
        .map(|v| v.to_bits())
        .collect();
    assert_eq!(bits[1..4], [0x8000_0000, 0x8000_0000, 0x7fc0_0000]);
    assert_eq!(bits[5], 0x7fa0_0001);
    for ty in DType::ALL {
        if ty == DType::String {
            continue;
        }
        // Bytes of every kind: for each type its whole range of bit patterns.
        let bytes: Vec<u8> = (0..1024u32)
            .map(|i| (i.wrapping_mul(40503) >> 3) as u8)
            .collect();
        let bits = ty.bits().unwrap() as usize;
        let t = Tensor::new(ty, [1024 * 8 / bits], bytes).unwrap();
        let mut g = crate::graph::Graph::new("g");
        let w = g.value_or_add("w").unwrap();
        g.add_initializer(w, Constant::Dense(t.clone())).unwrap();
        let text = print_graph(&g, &PrintOptions::full());
        if ty == DType::Bool {
            assert!(parse_graph(&text).is_ok(), "{ty}");
        }
        let back = parse_graph(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(back.tensor(back.find_value("w").unwrap()), Some(&t), "{ty}");
    }
}

#[test]
fn half_floats_are_bits_or_values() {
    assert_eq!(
        tensor("float16[3]", "{1.0, 2.0, inf}"),
        tensor("float16[3]", "{15360, 16384, 31744}")
    );
    assert_eq!(
        tensor("bfloat16[2]", "{1.5, -0.0}"),
        tensor("bfloat16[2]", "{16320, 32768}")
    );
    assert_eq!(
        tensor("bool[2]", "{true, false}"),
        tensor("bool[2]", "{1, 0}")
    );
}

#[test]
fn fill_patterns() {
    assert_eq!(
        tensor("float[2,2]", "zeros"),
        tensor("float[2,2]", "{0, 0, 0, 0}")
    );
    assert_eq!(tensor("int4[3]", "ones"), tensor("int4[3]", "{1, 1, 1}"));
    assert_eq!(tensor("int64[3]", "iota"), tensor("int64[3]", "{0, 1, 2}"));
    assert_eq!(
        tensor("float[64,64]", "random(7)"),
        tensor("float[64,64]", "random(7)")
    );
    assert_ne!(
        tensor("float[64,64]", "random(7)"),
        tensor("float[64,64]", "random(8)")
    );
    // The numbers must never change: tests elsewhere rely on them.
    let first = tensor("float[3]", "random(7)");
    assert_eq!(
        &*first.view::<f32>().unwrap(),
        &[-0.22034061, -0.9664235, 0.8015213]
    );
    for (ty, low, high) in [
        ("float16[1000]", -1.0, 1.0),
        ("int4[1000]", -8.0, 7.0),
        ("uint8[1000]", 0.0, 15.0),
        ("bool[1000]", 0.0, 1.0),
    ] {
        let v = tensor(ty, "random(1)").to_f64s().unwrap();
        assert!(v.iter().all(|v| low <= *v && *v <= high), "{ty}");
        assert!(
            v.iter().any(|v| *v < low + 0.3) && v.iter().any(|v| *v > high - 0.3),
            "{ty}"
        );
    }
    let v = tensor("float[100]", "random(1, 0.5, 1.5)")
        .to_f64s()
        .unwrap();
    assert!(v.iter().all(|v| (0.5..1.5).contains(v)));
}

#[test]
fn elided_text_is_for_people() {
    let text =
        "<opset_import: [\"\": 21]> g () => () <float[100] w = iota, float[2] v = {1, 2}> {}";
    let model = parse_model(text).unwrap();
    let shown = model.to_string();
    assert!(
        shown.contains("float[100] w = {… 100 elements, digest "),
        "{shown}"
    );
    assert!(shown.contains("float[2] v = {1, 2}"));
    assert!(refused(&shown).contains("the elements were left out"));
    // As `onnx.printer` leaves elements out.
    let text = "<opset_import: [\"\": 21]> g () => () <int4[2] w = ...> {}";
    assert!(refused(text).contains("the elements were left out"));
}

#[test]
fn errors_show_where() {
    let e =
        parse_model("<opset_import: [\"\": 21]>\ng (x) => (y) {\n  y = Relu x)\n}").unwrap_err();
    assert_eq!((e.line, e.column), (3, 12));
    assert_eq!(
        e.to_string(),
        "line 3, column 12: expected `(`, found `x`\n    y = Relu x)\n             ^"
    );
}

#[test]
fn refusals_say_what_is_expected() {
    let g = |inside: &str| format!("<opset_import: [\"\": 21]> g (x) => (y) {inside}");
    for (text, part) in [
        (String::new(), "expected the header of a model"),
        (
            "<ir_version: 3> g () => () {}".into(),
            "lacks `opset_import`",
        ),
        (
            "<opset: 3> g () => () {}".into(),
            "a model's header has no `opset`",
        ),
        (g("{ y = Relu (x)"), "or `}` at the end of the graph"),
        (
            g("{ y = Relu (x) y = Abs (x) }"),
            "\"y\" already has a source",
        ),
        (g("{ x = Relu (x) }"), "\"x\" already has a source"),
        (g("{ y = Relu <a> (x) }"), "expected `=`, found `>`"),
        (
            g("{ y = Relu <a = []> (x) }"),
            "an empty list needs its kind",
        ),
        (g("{ y = Relu <a = @b> (x) }"), "a reference needs its kind"),
        (
            g("{ y = Relu <a: int = 1.5> (x) }"),
            "expected a value of kind int, found float",
        ),
        (
            g("{ y = Relu <a: integer = 1> (x) }"),
            "no kind of attribute is called `integer`",
        ),
        (
            g("{ y = Relu <a = [1, \"x\"]> (x) }"),
            "must all be of one kind",
        ),
        (
            g("{ y = Relu <a = 9223372036854775808> (x) }"),
            "expected a 64-bit integer",
        ),
        (
            g("{ y = Relu <a = 1e39> (x) }"),
            "a number that fits 32-bit floats",
        ),
        (
            g("{ y = Relu <t: tensor = , > (x) }"),
            "expected the value of an attribute",
        ),
        (
            g("<float[2] w = {1}> {}"),
            "expected 2 numbers for float[2], found 1",
        ),
        (
            g("<float[N] w = {1}> {}"),
            "needs an element type and fixed dimensions",
        ),
        (g("<w = {1}> {}"), "an initializer needs a type"),
        (
            g("<int8[1] w = {128}> {}"),
            "expected an integer from -128 to 127, found `128`",
        ),
        (
            g("<int4[1] w = {8}> {}"),
            "expected an integer from -8 to 7",
        ),
        (g("<float[1] w = {a}> {}"), "expected a number, found `a`"),
        (
            g("<float[1] w = {nan(0x3)}> {}"),
            "the bits of a 32-bit NaN",
        ),
        (
            g("<float8e5m2[1] w = {1.5}> {}"),
            "expected an integer from 0 to 255",
        ),
        (
            g("<float[1000000,1000000] w = zeros> {}"),
            "make at most 268435456 bytes",
        ),
        (
            g("<float[4294967296,4294967296,3] w = {}> {}"),
            "expected uncountably many numbers",
        ),
        (g("<string[1] w = zeros> {}"), "and no strings"),
        (
            g("<uint8[300] w = iota> {}"),
            "uint8 has no element of the value 256",
        ),
        (
            g("<float[2] w = random(1, 2, 1)> {}"),
            "two bounds of which the first is lower",
        ),
        (
            g("<float[2] w = [\"location\": \"a\"]> {}"),
            "a text is read without any other file",
        ),
        (
            g("<seq(float) w = {1}> {}"),
            "only a tensor can have elements",
        ),
        (g("<flout[2] w = {1}> {}"), "expected `,` or `>`, found `[`"),
        (g("{ \"a = Relu (x) }"), "this string has no end"),
        (g("{ y = Relu (\"\\xFF\") }"), "must be UTF-8"),
        (
            g("{ y = Relu (\"\\u{110000}\") }"),
            "needs a character's number",
        ),
        (
            g("{ y = Relu (x) } }"),
            "expected the end, or the header of a function",
        ),
    ] {
        let e = refused(&text);
        assert!(e.contains(part), "{text}\n{e}");
    }
}

#[test]
fn messages_print_no_control_characters() {
    let e = refused("<opset_import: [\"\": 21]> g (x) => (y) { y \u{1b}[31m = \t Relu (x) }");
    assert!(!e.contains('\u{1b}'), "{e}");
    let e = refused(&format!(
        "<opset_import: [\"\": 21]> {} (",
        "long ".repeat(1000)
    ));
    assert!(e.len() < 500, "{e}");
}

#[test]
fn nesting_is_bounded() {
    let nest = |n: usize| {
        let open = "y = If (x) <b = g () => (y) { ".repeat(n);
        format!(
            "<opset_import: [\"\": 21]> g (x) => (y) {{ {open} {} }}",
            "}>".repeat(n)
        )
    };
    assert!(parse_model(&nest(31)).is_ok());
    assert!(refused(&nest(32)).contains("nested deeper than 32 levels"));
    assert!(refused(&nest(100_000)).contains("nested deeper than 32 levels"));
    assert!(parse_type(&format!("{}float{}", "seq(".repeat(31), ")".repeat(31))).is_ok());
    assert!(parse_type(&"seq(".repeat(100_000)).is_err());
}

#[test]
fn tensors_in_attributes_keep_names_that_are_identifiers() {
    let named = with_attrs(" <t: tensor = float \"a b\" {1}>");
    assert_eq!(settles(&named), with_attrs(" <t: tensor = float {1}>"));
}

#[test]
fn types_print_as_they_are_read() {
    for text in [
        "float[N,3]",
        "float",
        "float[]",
        "undefined[2]",
        "map(int64, seq(float[?]))",
        "optional()",
        "float[-1]",
    ] {
        assert_eq!(parse_type(text).unwrap().to_string(), text);
    }
}

#[test]
fn values_named_like_types_are_quoted_where_a_type_may_stand() {
    stays(
        "<ir_version: 10, opset_import: [\"\": 21]>\ng (\"float\", int64 seq) => (\"map\") {\n  map = Relu (float, seq)\n}\n",
    );
}

/// A text of everything, for mutations.
const EVERYTHING: &str = r#"<ir_version: 10, opset_import: ["": 21], metadata_props: ["k": "v"]>
g (float[N,?] x #: doc_string: "d"
) => (seq(float) y)
<float[2,2] w = {1, -2.5e3, nan(0x7fc00001), inf}, int4[3] q = {1, -8, 7}, float16[1] h = {1.5},
 sparse_tensor(float[5]) s = float[2] {1, 2} at int64[2] {0, 3}, float[8] r = random(3, 0, 1), string[1] t = {"a\xFFb\u{2028}"}>
{ #: quantization: ["x": ["SCALE_TENSOR": "w"]]
  [n] a, "", "b c" = foo.Bar:o <i = 1, f: float = -0.0, l = [1.0, 2], t = float[1] n {1}, e: strings = [], ty = map(int64, float)> (x, , w)
  y = If (a) <then_branch = t () => (z) <float u = {1}> { z = Add (a, u) }, else_branch = e () => (w) {}>
}
<domain: "foo", overload: "o", opset_import: ["": 21]>
Bar <p, d: int = 1> (a, b, c) => (a) { z = Neg <axis: int = @p> (a) }
"#;

#[test]
fn no_text_makes_the_parser_panic() {
    parse_model(EVERYTHING).unwrap_or_else(|e| panic!("{e}"));
    let mut state = 1u64;
    let mut random = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let snippets = [
        "{",
        "}",
        "(",
        ")",
        "<",
        ">",
        "[",
        "]",
        "\"",
        "=",
        ",",
        ":",
        "#:",
        "//",
        "\\",
        "@",
        "-",
        ".",
        "…",
        "\u{0}",
        "é",
        "nan(",
        "1e",
        "9999999999999999999999",
        "float[",
        "seq(",
        "random(",
        "sparse_tensor(",
        " at ",
        "\n",
        "e",
        "[-1]",
    ];
    let mut read = 0;
    for _ in 0..20_000 {
        let mut text: Vec<char> = EVERYTHING.chars().collect();
        for _ in 0..1 + random(4) {
            let at = random(text.len());
            match random(4) {
                0 => drop(text.drain(at..(at + 1 + random(8)).min(text.len()))),
                1 => {
                    let snippet = snippets[random(snippets.len())];
                    text.splice(at..at, snippet.chars());
                }
                2 => {
                    let from = random(text.len());
                    let piece: Vec<char> = text[from..(from + random(30)).min(text.len())].to_vec();
                    text.splice(at..at, piece);
                }
                _ => text[at] = char::from(b' ' + random(95) as u8),
            }
        }
        let text: String = text.into_iter().collect();
        match parse_model(&text) {
            Ok(model) => {
                read += 1;
                // Whatever is read can be printed, and read again as the same.
                let printed = full(&model);
                let again = parse_model(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
                assert_eq!(full(&again), printed);
                model.graph.check_invariants().unwrap();
            }
            Err(e) => assert!(e.line >= 1 && e.column >= 1 && !e.to_string().is_empty()),
        }
    }
    // Else the mutations would be too wild to say anything about printing.
    assert!(read > 500, "{read}");
}

#[test]
fn cut_texts_are_refused() {
    for (end, _) in EVERYTHING.char_indices() {
        let text = &EVERYTHING[..end];
        // The function may be missing, or what is after it.
        if let Ok(model) = parse_model(text) {
            assert!(text.trim_end().ends_with('}'), "{text}");
            assert_eq!(model.graph.op_count(), 2);
        }
    }
}

#[test]
fn attributes_that_hold_graphs_hold_them() {
    let text = with_attrs(" <gs: graphs = [a () => () {}, b () => () {}]>");
    let model = parse_model(&text).unwrap();
    let op = model.graph.ops().next().unwrap();
    assert!(matches!(model.graph.op(op).attr("gs"), Some(AttrValue::Graphs(g)) if g.len() == 2));
    settles(&text);
}

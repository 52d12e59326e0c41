#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use paring_ir::text::parse_model;
use paring_ir::{Model, ValueId};

use super::*;

fn model(text: &str) -> Model {
    parse_model(&format!(
        "<ir_version: 10, opset_import: [\"\": 21, \"local\": 1]>\n{text}"
    ))
    .unwrap()
}

fn floats(dims: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_vec(dims.iter().copied(), values.to_vec()).unwrap()
}

fn compile(m: &Model, inputs: &[Tensor], optimize: bool) -> Result<Box<dyn Plan>, EngineError> {
    let shapes = inputs.iter().map(|t| t.dims().iter().copied().collect());
    let options = CompileOptions {
        optimize,
        threads: 1,
    };
    TractEngine::new().compile(&Cut::whole(m, shapes.collect()), options)
}

fn run(m: &Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
    let plain = compile(m, inputs, false)?.run(inputs)?;
    let optimized = compile(m, inputs, true)?.run(inputs)?;
    assert_eq!(plain.len(), optimized.len());
    for (a, b) in plain.iter().zip(&optimized) {
        assert_eq!((a.dtype(), a.dims()), (b.dtype(), b.dims()));
        if let (Some(a), Some(b)) = (a.to_f64s(), b.to_f64s()) {
            assert!(
                a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4),
                "{a:?} {b:?}"
            );
        }
    }
    Ok(optimized)
}

fn refusal(m: &Model, inputs: &[Tensor]) -> String {
    match compile(m, inputs, true) {
        Ok(mut plan) => plan.run(inputs).unwrap_err().to_string(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_model_runs_and_symbolic_sizes_are_pinned_for_it() {
    let m = model(
        "g (float[N,2] x) => (float[N,3] y) <float[2,3] w = {1,2,3,4,5,6}, float[3] b = {1,0,0}> {
           h = MatMul (x, w)
           y = Add (h, b)
         }",
    );
    let y = run(&m, &[floats(&[1, 2], &[1.0, 1.0])]).unwrap();
    assert_eq!(y, [floats(&[1, 3], &[6.0, 7.0, 9.0])]);
    let y = run(&m, &[floats(&[2, 2], &[1.0, 0.0, 0.0, 1.0])]).unwrap();
    assert_eq!(y[0].dims(), [2, 3]);
    // The plan is for one size, and the model keeps its symbol.
    let mut plan = compile(&m, &[floats(&[1, 2], &[0.0; 2])], true).unwrap();
    let e = plan
        .run(&[floats(&[2, 2], &[0.0; 4])])
        .unwrap_err()
        .to_string();
    assert_eq!(
        e,
        "input \"x\": the plan was compiled for float [1, 2], found float [2, 2]"
    );
    let e = plan
        .run(&[Tensor::vector(vec![1i64, 2])])
        .unwrap_err()
        .to_string();
    assert!(e.contains("found int64 [2]"), "{e}");
}

#[test]
fn any_closed_cut_compiles_and_an_open_one_does_not() {
    let m = model(
        "g (float[2] x, float[2] other) => (float[2] z) <float[2] c = {1,2}> {
           a = Add (x, c)
           b = Mul (a, c)
           z = Sub (b, other)
         }",
    );
    let value = |name: &str| m.graph.find_value(name).unwrap();
    let cut = |inputs: &[&str], outputs: &[&str]| Cut {
        model: &m,
        inputs: inputs.iter().map(|n| value(n)).collect(),
        outputs: outputs.iter().map(|n| value(n)).collect(),
        shapes: inputs
            .iter()
            .map(|_| [2usize].into_iter().collect())
            .collect(),
    };
    let engine = TractEngine::new();
    let ran = |inputs: &[&str], outputs: &[&str], tensors: &[Tensor]| {
        engine
            .compile(&cut(inputs, outputs), CompileOptions::default())?
            .run(tensors)
    };
    // From the middle, although nothing says what type the middle has.
    let b = ran(&["a"], &["b"], &[floats(&[2], &[3.0, 4.0])]).unwrap();
    assert_eq!(b, [floats(&[2], &[3.0, 8.0])]);
    // What is given is not computed, and may be asked for; so may constants, and all twice.
    let x = floats(&[2], &[5.0, 6.0]);
    let outputs = ran(&["x"], &["a", "x", "c", "a"], std::slice::from_ref(&x)).unwrap();
    assert_eq!(outputs[0], floats(&[2], &[6.0, 8.0]));
    assert_eq!(
        (&outputs[1], &outputs[2], &outputs[3]),
        (&x, &floats(&[2], &[1.0, 2.0]), &outputs[0])
    );
    let e = ran(&["x"], &["z"], &[x]).unwrap_err().to_string();
    assert_eq!(
        e,
        "the cut is not closed: \"other\" is neither computed nor constant nor given"
    );
}

#[test]
fn constants_fold_without_inputs() {
    let m = model(
        "g () => (float[2] y) <float[2] c = {1,2}> {
           d = Constant <value_floats = [10.0, 20.0]> ()
           y = Add (c, d)
         }",
    );
    assert_eq!(run(&m, &[]).unwrap(), [floats(&[2], &[11.0, 22.0])]);
}

#[test]
fn every_element_type_that_tract_has_passes() {
    for (ty, t) in [
        (
            "float16",
            Tensor::vector(vec![f16::from_f32(1.5), f16::ONE]),
        ),
        ("double", Tensor::vector(vec![1f64, 2.0])),
        ("int8", Tensor::vector(vec![-1i8, 2])),
        ("uint8", Tensor::vector(vec![1u8, 255])),
        ("int32", Tensor::vector(vec![1i32, -2])),
        ("int64", Tensor::vector(vec![i64::MIN, 2])),
        ("uint64", Tensor::vector(vec![1u64, u64::MAX])),
        ("bool", Tensor::new(DType::Bool, [2], vec![1u8, 0]).unwrap()),
        (
            "string",
            Tensor::from_strings([2], [b"a".to_vec().into(), "é".into()]).unwrap(),
        ),
    ] {
        let m = model(&format!(
            "g ({ty}[2] x) => ({ty}[1,2] y) <int64[1] axes = {{0}}> {{ y = Unsqueeze (x, axes) }}"
        ));
        let y = run(&m, std::slice::from_ref(&t)).unwrap_or_else(|e| panic!("{ty}: {e}"));
        assert_eq!(y, [t.reshaped([1, 2]).unwrap()], "{ty}");
    }
    let m = model("g (bfloat16[2] x) => (bfloat16[2] y) { y = Relu (x) }");
    let e = refusal(&m, &[Tensor::vector(vec![half::bf16::ONE; 2])]);
    assert_eq!(
        e,
        "tract 0.23.9 can't run input \"x\": it has no element type bfloat16"
    );
}

#[test]
fn foreign_domains_and_unknown_operators_are_refused() {
    let x = [floats(&[2], &[1.0, 2.0])];
    // tract itself would take the standard Relu.
    let m = model("g (float[2] x) => (float[2] y) { [act] y = com.example.Relu (x) }");
    assert_eq!(
        refusal(&m, &x),
        "tract 0.23.9 can't run g / Relu \"act\": it has no operators of domain \"com.example\" by that name"
    );
    let m = model("g (float[2] x) => (float[2] y) { [det] y = Det (x) }");
    assert_eq!(
        refusal(&m, &x),
        "tract 0.23.9 can't run g / Det \"det\": it has no operator of this type"
    );
}

#[test]
fn panics_and_errors_name_the_operator() {
    let m = model(
        "g (float[2,2] x) => (float[2,2] y) { h = Relu (x) [turn] y = Transpose <perm = [0, 7]> (h) }",
    );
    let e = refusal(&m, &[floats(&[2, 2], &[0.0; 4])]);
    assert!(
        e.starts_with("tract 0.23.9 can't run Transpose \"turn\": "),
        "{e}"
    );
    let m = model(
        "g (float[2,3] x) => (float[2,3] y) <float[4,3] w = zeros> { h = Relu (x) [product] y = MatMul (h, w) }",
    );
    let e = refusal(&m, &[floats(&[2, 3], &[0.0; 6])]);
    assert!(e.contains("MatMul \"product\""), "{e}");
    assert!(!e.contains('@') && !e.contains('%'), "{e}");
}

#[test]
fn an_index_out_of_range_fails_while_running_and_the_plan_lives_on() {
    let m =
        model("g (int64[1] i) => (float[1] y) <float[2] t = {1,2}> { [pick] y = Gather (t, i) }");
    let mut plan = compile(&m, &[Tensor::vector(vec![0i64])], true).unwrap();
    let e = plan
        .run(&[Tensor::vector(vec![7i64])])
        .unwrap_err()
        .to_string();
    assert!(
        e.starts_with("tract 0.23.9 failed at Gather \"pick\": "),
        "{e}"
    );
    assert_eq!(
        plan.run(&[Tensor::vector(vec![1i64])]).unwrap(),
        [floats(&[1], &[2.0])]
    );
}

#[test]
fn local_functions_are_inlined_with_their_attributes() {
    let m = model(
        "g (float[2] x) => (float[2] y, float[2] z) {
           y = local.Scale <by = 3.0> (x)
           z = local.Scale (y)
         }
         <domain: \"local\", opset_import: [\"\": 21, \"local\": 1]>
         Scale <by: float = 10.0> (a) => (b) { f = Constant <value_float: float = @by> () b = local.Times (a, f) }
         <domain: \"local\", opset_import: [\"\": 21]>
         Times (a, f, bias) => (b) { b = Mul (a, f) }",
    );
    let x = [floats(&[2], &[1.0, 2.0])];
    let outputs = run(&m, &x).unwrap();
    assert_eq!(
        outputs,
        [floats(&[2], &[3.0, 6.0]), floats(&[2], &[30.0, 60.0])]
    );
    let notes = compile(&m, &x, true).unwrap().notes().to_vec();
    assert_eq!(notes, ["inlined functions: Scale, Times"]);
}

#[test]
fn functions_that_call_themselves_or_speak_another_opset_are_refused() {
    let x = [floats(&[2], &[1.0, 2.0])];
    let m = model(
        "g (float[2] x) => (float[2] y) { y = local.Loop (x) }
         <domain: \"local\", opset_import: [\"\": 21, \"local\": 1]>
         Loop (a) => (b) { b = local.Loop (a) }",
    );
    assert!(refusal(&m, &x).contains("nested more than 32 deep"));
    let m = model(
        "g (float[2] x) => (float[2] y) { [call] y = local.Old (x) }
         <domain: \"local\", opset_import: [\"\": 9]>
         Old (a) => (b) { b = Relu (a) }",
    );
    assert!(
        refusal(&m, &x)
            .contains("Old \"call\": the function speaks opset 9 and the model opset 21")
    );
}

#[test]
fn branches_see_the_values_outside() {
    let text = |condition: &str| {
        format!(
            "g (float[2] x, bool c) => (float[2] y) <float[2] w = {{10, 20}}, bool t = {{1}}> {{
               h = Add (x, w)
               y = If ({condition}) <
                 then_branch = a () => (r) {{ r = Mul (h, w) }},
                 else_branch = b () => (h) {{ }}
               >
             }}"
        )
    };
    let inputs = |c: u8| {
        [
            floats(&[2], &[1.0, 1.0]),
            Tensor::new(DType::Bool, [], vec![c]).unwrap(),
        ]
    };
    let m = model(&text("c"));
    assert_eq!(
        run(&m, &inputs(1)).unwrap(),
        [floats(&[2], &[110.0, 420.0])]
    );
    assert_eq!(run(&m, &inputs(0)).unwrap(), [floats(&[2], &[11.0, 21.0])]);
    let m = model(&text("t"));
    assert_eq!(
        run(&m, &inputs(0)).unwrap(),
        [floats(&[2], &[110.0, 420.0])]
    );
    let notes = compile(&m, &inputs(0), true).unwrap().notes().to_vec();
    assert_eq!(
        notes,
        ["replaced 1 If operator with a constant condition by the branch"]
    );
}

#[test]
fn constant_forms_that_tract_lacks_are_expanded() {
    let m = model(
        "g (float[2,4] x) => (float[2,4] y, float[2,4] z, float[2,4] v)
         <int4[2,4] w = {1,2,3,4,-1,-2,-3,-4}, float[2,2] s = {1,10,1,10}, float one = {0.5},
          int16[2,4] w16 = {256,0,0,0,0,0,0,512}, bfloat16[1] k = {16384}> {
           d = DequantizeLinear <axis = 1, block_size = 2> (w, s)
           y = Add (x, d)
           e = DequantizeLinear (w16, one)
           z = Add (x, e)
           f = Cast <to = 1> (k)
           u = DequantizeLinear (w, one)
           g = Mul (u, f)
           v = Add (x, g)
         }",
    );
    let x = [floats(&[2, 4], &[0.0; 8])];
    let outputs = run(&m, &x).unwrap();
    assert_eq!(
        outputs[0].to_f64s().unwrap(),
        [1.0, 2.0, 30.0, 40.0, -1.0, -2.0, -30.0, -40.0]
    );
    assert_eq!(
        outputs[1].to_f64s().unwrap(),
        [128.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 256.0]
    );
    assert_eq!(outputs[2].to_f64s().unwrap()[..4], [1.0, 2.0, 3.0, 4.0]);
    let notes = compile(&m, &x, true).unwrap().notes().join("; ");
    assert_eq!(
        notes,
        "dequantized 3 constants ahead of the run; cast 1 constant ahead of the run"
    );
}

#[test]
fn an_output_type_without_a_zero_point_takes_effect() {
    let m = model(
        "g (float[3] x) => (int8[3] y) <float s = {1}> { y = QuantizeLinear <output_dtype = 3> (x, s) }",
    );
    let y = run(&m, &[floats(&[3], &[-300.0, -2.0, 5.0])]).unwrap();
    assert_eq!(y, [Tensor::vector(vec![-128i8, -2, 5])]);
    let m = model(
        "g (float[3] x) => (int16[3] y) <float s = {1}> { y = QuantizeLinear <output_dtype = 5> (x, s) }",
    );
    assert!(refusal(&m, &[floats(&[3], &[0.0; 3])]).contains("it can't quantize to int16"));
}

#[test]
fn no_lookup_table_is_made_of_a_softmax() {
    for kind in ["Softmax", "LogSoftmax", "Relu"] {
        let m = model(&format!(
            "g (uint8[1,4] q) => (uint8[1,4] y) <float s = {{0.1}}, uint8 z = {{3}}, float t = {{0.01}}> {{
               x = DequantizeLinear (q, s, z)
               p = {kind} (x)
               y = QuantizeLinear (p, t, z)
             }}"
        ));
        let q = [Tensor::from_vec([1, 4], vec![10u8, 20, 30, 3]).unwrap()];
        let plain = compile(&m, &q, false).unwrap().run(&q).unwrap();
        let mut optimized = compile(&m, &q, true).unwrap();
        assert_eq!(optimized.run(&q).unwrap(), plain, "{kind}");
        assert_eq!(
            optimized.notes().len(),
            usize::from(kind != "Relu"),
            "{kind}"
        );
    }
    // Softmax of [0.7, 1.7, 2.7, 0] in steps of 0.01 from 3.
    let m = model(
        "g (uint8[1,4] q) => (uint8[1,4] y) <float s = {0.1}, uint8 z = {3}, float t = {0.01}> {
           x = DequantizeLinear (q, s, z)
           p = Softmax (x)
           y = QuantizeLinear (p, t, z)
         }",
    );
    let y = run(
        &m,
        &[Tensor::from_vec([1, 4], vec![10u8, 20, 30, 3]).unwrap()],
    )
    .unwrap();
    let sum: f64 = y[0]
        .to_f64s()
        .unwrap()
        .iter()
        .map(|v| (v - 3.0) * 0.01)
        .sum();
    assert!((sum - 1.0).abs() < 0.03, "{sum}");
}

#[test]
fn recurrent_operators_start_anew_in_every_run() {
    let m = model(
        "g (float[2,1,1] x) => (float[2,1,1,1] y) <float[1,1,1] w = {1}, float[1,1,1] r = {1}> {
           y = RNN <hidden_size = 1> (x, w, r)
         }",
    );
    let input = [floats(&[2, 1, 1], &[0.5, 0.25])];
    for optimize in [false, true] {
        let mut plan = compile(&m, &input, optimize).unwrap();
        let first = plan.run(&input).unwrap();
        assert_eq!(plan.run(&input).unwrap(), first);
    }
}

#[test]
fn a_fill_without_a_value_is_of_floats() {
    let m = model(
        "g (float[2] x) => (float[2] y, float[2] z) {
           s = Shape (x)
           z = ConstantOfShape (s)
           y = Add (x, z)
         }",
    );
    let results = run(&m, &[floats(&[2], &[1.0, 2.0])]).unwrap();
    assert_eq!(results[0], floats(&[2], &[1.0, 2.0]));
    assert_eq!(results[1], floats(&[2], &[0.0, 0.0]));
}

#[test]
fn what_would_not_fit_is_refused_before_it_is_asked_for() {
    let m = model(
        "g (float[1] x) => (float[] y) <int64[3] s = {1000000, 1000000, 1000000}> {
           f = ConstantOfShape (s)
           y = Add (x, f)
         }",
    );
    let e = refusal(&m, &[floats(&[1], &[0.0])]);
    assert!(
        e.contains("would make a tensor of shape [1000000, 1000000, 1000000]"),
        "{e}"
    );
    let m = model(
        "g (float[N,1] x) => (float[] y) <int64[2] s = {1, 1000000000}> { [grow] y = Expand (x, s) }",
    );
    let e = refusal(&m, &[floats(&[9, 1], &[0.0; 9])]);
    assert!(
        e.starts_with("Expand \"grow\" would make a tensor of shape [9, 1000000000]"),
        "{e}"
    );
    let m = model("g (float[N] x) => (float[N] y) { y = Relu (x) }");
    let cut = Cut::whole(&m, vec![[usize::MAX].into_iter().collect()]);
    let e = TractEngine::new()
        .compile(&cut, CompileOptions::default())
        .map(|_| ())
        .unwrap_err();
    assert!(e.to_string().contains("too many elements"), "{e}");
}

#[test]
fn a_profile_names_the_operators() {
    let m = model(
        "g (float[8,64] x) => (float[8,64] y) <float[64,64] w = random(1)> {
           [first] h = MatMul (x, w)
           [second] y = Sigmoid (h)
         }",
    );
    let x = [floats(&[8, 64], &[0.5; 512])];
    let rows = compile(&m, &x, true).unwrap().profile(&x).unwrap();
    let named: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
    assert!(
        named.contains(&"first") && named.contains(&"second"),
        "{named:?}"
    );
    assert!(
        rows.iter()
            .filter(|r| r.name == "first")
            .all(|r| r.source == m.graph.ops().next())
    );
}

#[test]
fn threads_do_not_change_the_outputs() {
    let m = model(
        "g (float[64,256] x) => (float[64,512] y) <float[256,512] w = random(1)> { y = MatMul (x, w) }",
    );
    let x: Vec<f32> = (0..64 * 256).map(|i| (i % 17) as f32 / 7.0).collect();
    let x = [floats(&[64, 256], &x)];
    let of = |threads| {
        let cut = Cut::whole(&m, vec![[64usize, 256].into_iter().collect()]);
        let options = CompileOptions {
            optimize: true,
            threads,
        };
        TractEngine::new()
            .compile(&cut, options)
            .unwrap()
            .run(&x)
            .unwrap()
    };
    assert_eq!(of(1), of(2));
}

/// Three samples of two numbers.
struct Three;

impl paring_ir::engine::DataSource for Three {
    fn len(&self) -> usize {
        3
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&paring_ir::engine::Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        for i in 0..limit.unwrap_or(3).min(3) {
            f(&paring_ir::engine::Sample {
                inputs: vec![floats(&[1, 2], &[i as f32, 1.0])],
                count: 1,
                labels: None,
            })?;
        }
        Ok(())
    }
}

type Seen = Vec<(ValueId, Vec<f64>)>;

fn watch(m: &Model, names: &[&str]) -> Result<(Observed, Seen), EngineError> {
    let values: Vec<ValueId> = names
        .iter()
        .map(|n| m.graph.find_value(n).unwrap())
        .collect();
    let mut seen = Vec::new();
    let observed = observe(
        &TractEngine::new(),
        m,
        &values,
        &Three,
        Some(2),
        CompileOptions::default(),
        &mut |_, v, t| {
            seen.push((v, t.to_f64s().unwrap()));
            Ok(())
        },
    )?;
    Ok((observed, seen))
}

#[test]
fn every_value_is_seen_by_its_name_in_order() {
    let m = model(
        "g (float[N,2] x) => (float[N,2] z) { a = Neg (x) b = Relu (a) c = Abs (a) z = Add (b, c) }",
    );
    let (observed, seen) = watch(&m, &["c", "x", "a", "z", "a"]).unwrap();
    let names: Vec<&str> = seen
        .iter()
        .map(|(v, _)| &**m.graph.value(*v).name())
        .collect();
    assert_eq!(names, ["c", "x", "a", "z", "c", "x", "a", "z"]);
    assert_eq!(seen[6].1, [-1.0, -1.0]);
    assert_eq!((observed.samples, observed.skipped.len()), (2, 0));
}

#[test]
fn values_that_cannot_be_had_are_found_and_the_others_seen() {
    // The model's own output doesn't need what tract can't run.
    let m = model(
        "g (float[N,2] x) => (float[N,2] z) { a = Neg (x) bad = Det (x) worse = Neg (bad) z = Abs (a) }",
    );
    let (observed, seen) = watch(&m, &["a", "bad", "worse", "z"]).unwrap();
    let skipped: Vec<&str> = observed
        .skipped
        .iter()
        .map(|(v, _)| &**m.graph.value(*v).name())
        .collect();
    assert_eq!(skipped, ["bad", "worse"]);
    assert_eq!(seen.len(), 4);
    let m = model("g (float[N,2] x) => (float[N] z) { a = Neg (x) z = Det (a) }");
    assert!(watch(&m, &["a"]).is_ok());
    let e = watch(&m, &["a", "z"]).unwrap_err().to_string();
    assert!(e.contains("Det"), "{e}");
}

#[test]
fn statistics_keep_numbers_of_each_value() {
    let m = model("g (float[N,2] x) => (float[N,2] z) { a = Neg (x) z = Relu (a) }");
    let values: Vec<ValueId> = ["a", "z"]
        .iter()
        .map(|n| m.graph.find_value(n).unwrap())
        .collect();
    let (all, observed) = statistics(
        &TractEngine::new(),
        &m,
        &values,
        &Three,
        None,
        CompileOptions::default(),
    )
    .unwrap();
    let names: Vec<&str> = all.iter().map(|s| &*s.name).collect();
    assert_eq!(names, ["a", "z"]);
    assert_eq!(all[0].numbers.count as usize, 2 * observed.samples);
    assert_eq!(all[1].numbers.min, 0.0);
    assert!(all[0].numbers.max <= all[1].numbers.max);
}

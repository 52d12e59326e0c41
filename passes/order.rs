//! Which compressions undo which: what the built-in passes declare about their order, and the
//! check of the weights that a pass is about to change.
//!
//! A recipe in a wrong order is refused before anything runs, by what passes declare. Models that
//! were compressed before, and passes that skip some operators, are looked at weight by weight:
//! clustered weights are known by their form (`clustered.rs`), quantized and pruned ones by their
//! provenance, which a file keeps. Weights that another tool quantized are no conflict; passes
//! leave them alone with a remark.

use paring_ir::{Conflict, Graph, Model, OpId, PassError, PassInfo, ValueId, schema};

use crate::clustered::{CLUSTER_WEIGHTS, Expansions, is_snapped};

const PRUNE_WEIGHTS: &str = "prune-weights";
const QUANTIZERS: [&str; 3] = ["quantize-int8", "quantize-dynamic", "quantize-weights"];

const STEPS_LOST: &str = "its weights are steps of a scale already";

/// What must not have run before weights are pruned or channels removed.
pub(crate) const REMOVES: [Conflict; 4] = [
    Conflict::new(CLUSTER_WEIGHTS, "its codes would be torn apart"),
    Conflict::new(QUANTIZERS[0], STEPS_LOST),
    Conflict::new(QUANTIZERS[1], STEPS_LOST),
    Conflict::new(QUANTIZERS[2], STEPS_LOST),
];

/// What must not have run before weights become products.
pub(crate) const FACTORIZES: [Conflict; 5] = [
    Conflict::new(
        PRUNE_WEIGHTS,
        "the factors of a weight with zeros have none, so they would be lost",
    ),
    Conflict::new(
        CLUSTER_WEIGHTS,
        "the factors of a weight of few values have many, so its codes would be lost",
    ),
    Conflict::new(QUANTIZERS[0], STEPS_LOST),
    Conflict::new(QUANTIZERS[1], STEPS_LOST),
    Conflict::new(QUANTIZERS[2], STEPS_LOST),
];

/// What must not have run before weights are clustered.
pub(crate) const CLUSTERS: [Conflict; 3] = [
    Conflict::new(QUANTIZERS[0], STEPS_LOST),
    Conflict::new(QUANTIZERS[1], STEPS_LOST),
    Conflict::new(QUANTIZERS[2], STEPS_LOST),
];

/// What must not have run before weights are quantized.
pub(crate) const QUANTIZES: [Conflict; 1] = [Conflict::new(
    CLUSTER_WEIGHTS,
    "its codes would be replaced by a byte for each weight (cluster-weights with centroids: int8 \
     gives clusters of 8-bit integers)",
)];

/// Fails when a pass would change weights that hold what an earlier one made and that it would
/// undo. `wants` says which operators the pass works on.
pub(crate) fn refuse_undoing(
    model: &Model,
    pass: &PassInfo,
    wants: &dyn Fn(&Graph, OpId) -> bool,
) -> Result<(), PassError> {
    let mut found = Ok(());
    model.for_each_graph(&mut |graph| {
        if found.is_ok() {
            found = refuse_in(graph, pass, wants);
        }
    });
    found
}

fn refuse_in(
    graph: &Graph,
    pass: &PassInfo,
    wants: &dyn Fn(&Graph, OpId) -> bool,
) -> Result<(), PassError> {
    let expansions = Expansions::of(graph)?;
    for op in graph.ops() {
        let o = graph.op(op);
        let conflict = schema::weight_slots(o).into_iter().find_map(|slot| {
            let mut made_by = holders(graph, &expansions, o.input(slot)?);
            let conflict = made_by.find_map(|by| pass.never_after.iter().find(|c| c.pass == by))?;
            Some((slot, conflict))
        });
        let Some((slot, conflict)) = conflict.filter(|_| wants(graph, op)) else {
            continue;
        };
        let label = paring_ir::escape(&graph.op_label(op));
        let (name, earlier) = (pass.name, conflict.pass);
        return Err(PassError::Precondition {
            found: format!(
                "{name} can't run after {earlier}, which made the weight of {} \"{label}\" (input {slot}): {}",
                o.op_type(),
                conflict.why
            ),
            remedy: format!(
                "{}, or leave the operator out of one of the two (by-name: {{\"{label}\": skip}})",
                match mutual(name, earlier) {
                    true => "use one of them alone".to_owned(),
                    false => format!("run {name} before {earlier}"),
                }
            ),
        });
    }
    Ok(())
}

/// Whether neither of two passes may follow the other.
fn mutual(a: &str, b: &str) -> bool {
    let either = |a: &str, b: &str| a == CLUSTER_WEIGHTS && QUANTIZERS.contains(&b);
    either(a, b) || either(b, a)
}

/// The passes whose work a weight holds.
fn holders<'a>(
    graph: &'a Graph,
    expansions: &Expansions,
    weight: ValueId,
) -> impl Iterator<Item = &'a str> {
    let clustered = expansions.is_weight(weight) || is_snapped(graph, weight);
    let value = graph.value(weight);
    // Pruning refits what it leaves dense, too.
    let zeros = || {
        let all = graph.tensor(weight).and_then(|t| t.to_f32s());
        all.is_some_and(|all| all.contains(&0.0))
    };
    let pruned = (value.provenance())
        .is_some_and(|p| p.passes.iter().any(|n| &**n == PRUNE_WEIGHTS))
        && zeros();
    let named = [(clustered, CLUSTER_WEIGHTS), (pruned, PRUNE_WEIGHTS)];
    let named = named.into_iter().filter(|n| n.0).map(|n| n.1);
    named.chain(quantizer(graph, weight))
}

/// The pass that quantized a weight: integers as they are, or dequantized by the operator that
/// makes the weight.
fn quantizer(graph: &Graph, weight: ValueId) -> Option<&'static str> {
    let integers = |v: ValueId| graph.tensor(v).is_some_and(|t| !t.dtype().is_float());
    let origin = match graph.producer(weight) {
        Some(op) => {
            let o = graph.op(op);
            let constant = o.is("DequantizeLinear") && o.input(0).is_some_and(integers);
            o.provenance().filter(|_| constant)
        }
        None => graph
            .value(weight)
            .provenance()
            .filter(|_| integers(weight)),
    }?;
    QUANTIZERS
        .into_iter()
        .find(|q| origin.passes.iter().any(|name| &**name == *q))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use paring_ir::{Model, OptionSet, Pass};
    use serde_json::{Value as Json, json};

    use crate::cluster_weights::ClusterWeights;
    use crate::factorize_low_rank::FactorizeLowRank;
    use crate::prune_weights::PruneWeights;
    use crate::quantize_dynamic::QuantizeDynamic;
    use crate::quantize_int8::QuantizeInt8;
    use crate::quantize_weights::QuantizeWeights;
    use crate::remove_channels::RemoveChannels;
    use crate::testing::run;

    const TWO: &str = r#"<opset_import: ["": 18]> g (float[1,64] x) => (float[1,64] y)
        <float[64,64] a = random(1), float[64,64] b = random(2)> {
            ["first"] h = MatMul (x, a)
            ["second"] y = MatMul (h, b)
        }"#;

    fn made<P: Pass>(options: &str) -> Model {
        run::<P>(None, options, TWO).0
    }

    /// Why a pass with these options refuses a model; nothing where it doesn't.
    fn refusal<P: Pass>(model: &Model, options: &Json) -> Option<String> {
        let options = OptionSet::parse(P::INFO.name, options.as_object().unwrap()).unwrap();
        let pass = P::new(options).unwrap();
        pass.requires(model).err().map(|e| e.to_string())
    }

    #[test]
    fn a_weight_that_was_compressed_is_not_compressed_in_a_way_that_undoes_it() {
        let none = json!({});
        let clustered = made::<ClusterWeights>("{}");
        let error = refusal::<PruneWeights>(&clustered, &none).unwrap();
        assert_eq!(
            error,
            "prune-weights can't run after cluster-weights, which made the weight of MatMul \"first\" (input 1): \
             its codes would be torn apart; run prune-weights before cluster-weights, or leave the operator out \
             of one of the two (by-name: {\"first\": skip})"
        );
        for error in [
            refusal::<RemoveChannels>(&clustered, &none),
            refusal::<FactorizeLowRank>(&clustered, &none),
            refusal::<QuantizeInt8>(&clustered, &none),
            refusal::<QuantizeDynamic>(&clustered, &none),
            refusal::<QuantizeWeights>(&clustered, &none),
        ] {
            assert!(error.unwrap().contains("can't run after cluster-weights"));
        }
        for quantized in [made::<QuantizeWeights>("{}"), made::<QuantizeDynamic>("{}")] {
            for error in [
                refusal::<PruneWeights>(&quantized, &none),
                refusal::<RemoveChannels>(&quantized, &none),
                refusal::<FactorizeLowRank>(&quantized, &none),
                refusal::<ClusterWeights>(&quantized, &none),
            ] {
                let error = error.unwrap();
                assert!(error.contains("can't run after quantize-"), "{error}");
            }
        }
        let pruned = made::<PruneWeights>("{\"sparsity\": 0.5}");
        let error = refusal::<FactorizeLowRank>(&pruned, &none).unwrap();
        assert!(error.contains("can't run after prune-weights"), "{error}");
    }

    #[test]
    fn compressions_that_go_together_are_free_to() {
        let none = json!({});
        let pruned = made::<PruneWeights>("{\"sparsity\": 0.5}");
        assert_eq!(refusal::<ClusterWeights>(&pruned, &none), None);
        assert_eq!(refusal::<QuantizeInt8>(&pruned, &none), None);
        let factorized = made::<FactorizeLowRank>("{\"ratio\": 0.5}");
        assert_eq!(refusal::<QuantizeWeights>(&factorized, &none), None);
        assert_eq!(refusal::<ClusterWeights>(&factorized, &none), None);
    }

    #[test]
    fn other_operators_of_the_model_are_free() {
        let half = made::<ClusterWeights>(r#"{"by-name": {"second": "skip"}}"#);
        let skip = |name: &str| json!({"by-name": {name: "skip"}});
        assert_eq!(refusal::<QuantizeWeights>(&half, &skip("first")), None);
        let error = refusal::<QuantizeWeights>(&half, &skip("second")).unwrap();
        assert!(error.contains("MatMul \"first\""), "{error}");
    }
}

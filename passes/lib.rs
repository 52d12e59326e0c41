//! The built-in passes of paring: one file or folder each, and one table.
//!
//! They use nothing but the public interface of `paring-ir`, so each is also an example of
//! how to write one.

#![forbid(unsafe_code)]

use paring_ir::Registry;

mod affine;
mod clustered;
mod common;
mod edits;
mod facts;
mod held_out;
mod latency;
mod layers;
mod linear;
mod moments;
mod order;
mod pattern;
mod solve;
mod tables;
#[cfg(test)]
mod testing;

pub mod cluster_weights;
pub mod drop_zero_states;
pub mod eliminate_dead_code;
pub mod eliminate_expands;
pub mod eliminate_identities;
pub mod factorize_low_rank;
pub mod fold_affine;
pub mod fold_batch_norm;
pub mod fold_constants;
pub mod fold_pad;
pub mod fuse_gemm;
pub mod inline_constant_branches;
pub mod inline_functions;
pub mod lift_constants;
pub mod lower_qdq;
pub mod merge_casts;
pub mod merge_clips;
pub mod merge_concats;
pub mod merge_duplicates;
pub mod merge_gathers;
pub mod merge_pads;
pub mod merge_reshapes;
pub mod merge_slices;
pub mod merge_transposes;
pub mod prune_weights;
pub mod quantize_dynamic;
pub mod quantize_int8;
pub mod quantize_weights;
pub mod recover;
pub mod recover_activations;
pub mod recover_normalizations;
pub mod recover_reductions;
pub mod remove_channels;
pub mod simplify_shapes;
pub mod upgrade_opset;

/// Every built-in pass and recipe.
pub fn builtin() -> Registry {
    Registry::new()
        .with::<cluster_weights::ClusterWeights>()
        .with::<drop_zero_states::DropZeroStates>()
        .with::<eliminate_dead_code::EliminateDeadCode>()
        .with::<eliminate_expands::EliminateExpands>()
        .with::<eliminate_identities::EliminateIdentities>()
        .with::<factorize_low_rank::FactorizeLowRank>()
        .with::<fold_affine::FoldAffine>()
        .with::<fold_batch_norm::FoldBatchNorm>()
        .with::<fold_constants::FoldConstants>()
        .with::<fold_pad::FoldPad>()
        .with::<fuse_gemm::FuseGemm>()
        .with::<inline_constant_branches::InlineConstantBranches>()
        .with::<inline_functions::InlineFunctions>()
        .with::<lift_constants::LiftConstants>()
        .with::<lower_qdq::LowerQdq>()
        .with::<merge_clips::MergeClips>()
        .with::<merge_casts::MergeCasts>()
        .with::<merge_concats::MergeConcats>()
        .with::<merge_duplicates::MergeDuplicates>()
        .with::<merge_gathers::MergeGathers>()
        .with::<merge_pads::MergePads>()
        .with::<merge_reshapes::MergeReshapes>()
        .with::<merge_slices::MergeSlices>()
        .with::<merge_transposes::MergeTransposes>()
        .with::<prune_weights::PruneWeights>()
        .with::<quantize_dynamic::QuantizeDynamic>()
        .with::<quantize_int8::QuantizeInt8>()
        .with::<quantize_weights::QuantizeWeights>()
        .with::<recover_activations::RecoverActivations>()
        .with::<recover_normalizations::RecoverNormalizations>()
        .with::<recover_reductions::RecoverReductions>()
        .with::<remove_channels::RemoveChannels>()
        .with::<simplify_shapes::SimplifyShapes>()
        .with::<upgrade_opset::UpgradeOpset>()
        .with_recipe(
            "channels-factorize-int8",
            include_str!("recipes/channels-factorize-int8.yaml"),
        )
        .with_recipe("clean", include_str!("recipes/clean.yaml"))
        .with_recipe("cluster", include_str!("recipes/cluster.yaml"))
        .with_recipe("cluster-int8", include_str!("recipes/cluster-int8.yaml"))
        .with_recipe("factorize", include_str!("recipes/factorize.yaml"))
        .with_recipe(
            "factorize-int8",
            include_str!("recipes/factorize-int8.yaml"),
        )
        .with_recipe("prune", include_str!("recipes/prune.yaml"))
        .with_recipe("prune-cluster", include_str!("recipes/prune-cluster.yaml"))
}

#[cfg(test)]
mod tests {
    use super::builtin;

    #[test]
    fn names_say_verb_and_object_and_prerequisites_are_there() {
        let registry = builtin();
        for entry in registry.passes() {
            let name = entry.info.name;
            assert!(
                name.contains('-')
                    && name
                        .chars()
                        .all(|c| c == '-' || c.is_ascii_lowercase() || c.is_ascii_digit()),
                "{name}"
            );
            for first in entry.info.runs_first {
                assert!(registry.get(first).is_some(), "{name} runs {first} first");
            }
        }
    }
}

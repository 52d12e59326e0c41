//! Pruned weights written as sparse tensors.

use std::sync::Arc;

use paring_ir::{Changed, Constant, Graph, PassContext, PassError, Port, SparseTensor, Tensor};

use super::magnitude::zeros;
use super::targets::Target;

/// The first version of the ONNX IR that has sparse initializers.
pub(super) const IR_VERSION: i64 = 5;

/// Writes the weights of these targets as sparse tensors, where that takes fewer bytes.
pub(super) fn make_sparse(
    graph: &mut Graph,
    targets: &[&Target],
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let mut changed = Changed::No;
    for target in targets {
        cx.check_cancelled()?;
        let weight = target.layer.weight;
        let Some(tensor) = graph.tensor(weight).cloned() else {
            continue;
        };
        let captured = (graph.value(weight).uses().iter()).any(|u| u.port == Port::Capture);
        let sparse = sparse(&tensor)?;
        let bytes = sparse.values.byte_len() + sparse.indices.byte_len();
        if captured || bytes >= tensor.byte_len() {
            let why = if captured {
                "a graph inside another takes the weight".to_owned()
            } else {
                format!("sparse it takes {bytes} bytes, dense {}", tensor.byte_len())
            };
            cx.missed(graph, target.layer.op, "dense-is-smaller", why);
            continue;
        }
        let said = format!("{bytes} bytes instead of {}", tensor.byte_len());
        cx.applied(graph, target.layer.op, "stored-sparse", said);
        graph.set_constant(weight, Constant::Sparse(Arc::new(sparse)), Vec::new())?;
        changed = Changed::Yes;
    }
    Ok(changed)
}

fn sparse(tensor: &Tensor) -> Result<SparseTensor, PassError> {
    let size = tensor.byte_len() / tensor.len().max(1);
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for (at, zero) in zeros(tensor).into_iter().enumerate() {
        if !zero {
            values.extend_from_slice(
                tensor
                    .bytes()
                    .get(at * size..(at + 1) * size)
                    .unwrap_or(&[]),
            );
            indices.push(i64::try_from(at).unwrap_or(i64::MAX));
        }
    }
    Ok(SparseTensor {
        values: Tensor::new(tensor.dtype(), [indices.len()], values)?,
        indices: Tensor::from_vec([indices.len()], indices)?,
        dims: tensor.dims().iter().copied().collect(),
    })
}

//! Tables that Gathers take rows of, stored as bytes: only the rows that are taken become floats.
//!
//! ```text
//! before   y = Gather (t, i)           after   q = Gather (t_int8, i)         one scale for each column
//!                                              y = DequantizeLinear <axis = -1> (q, s, z)
//!
//!                                              q = Gather (t_int8, i)         one scale for each row
//!                                              c = Cast <to = float> (q)
//!                                              r = Gather (s, i)
//!                                              y = Mul (c, r)
//! ```
//!
//! Of the two forms a table gets the one with the smaller squared error.

use paring_ir::{DType, Graph, NewOp, OpId, PassError, Port, Tensor, ValueId};

use crate::quantize_int8::{StoredWeight, per_axis};

/// A table and the Gathers that take its rows.
pub(crate) struct Table {
    /// The table, `[rows, columns]`.
    pub(crate) value: ValueId,
    /// The Gathers, in order.
    pub(crate) takers: Vec<OpId>,
}

/// The table that a Gather takes rows of, when nothing else takes it and nobody may override it.
pub(crate) fn table_of(graph: &Graph, op: OpId) -> Option<Table> {
    let rows = |op: OpId| graph.op(op).is("Gather") && graph.op(op).int_or("axis", 0) == 0;
    let value = graph.op(op).input(0).filter(|_| rows(op))?;
    let v = graph.value(value);
    let tensor = v.as_tensor().filter(|_| !v.is_input() && !v.is_output())?;
    // Rows of one element are scales themselves.
    let wide = tensor.rank() == 2 && tensor.dims()[1] > 1;
    if !wide || tensor.dtype() != DType::F32 || tensor.is_empty() {
        return None;
    }
    let uses = graph.sorted_uses(value);
    let all = uses.iter().all(|u| u.port == Port::Input(0) && rows(u.op));
    all.then(|| Table {
        value,
        takers: uses.iter().map(|u| u.op).collect(),
    })
}

/// Stores a table as bytes.
pub(crate) fn store(graph: &mut Graph, table: &Table) -> Result<(), PassError> {
    let gone = || PassError::Bug("a table is gone".to_owned());
    let tensor = graph.tensor(table.value).cloned().ok_or_else(gone)?;
    let (rows, columns) = (per_axis(&tensor, 0)?, per_axis(&tensor, 1)?);
    let by_row = error(&tensor, &rows) < error(&tensor, &columns);
    let stored = if by_row { rows } else { columns };
    let name = graph.value(table.value).name().clone();
    let count = stored.scales.len();
    let bytes = Tensor::from_vec(tensor.dims().iter().copied(), stored.bytes)?;
    let bytes = graph.add_constant(&format!("{name}_quantized"), bytes)?;
    graph.set_tensor_sources(bytes, &[table.value])?;
    let scale = match by_row {
        true => Tensor::from_vec([count, 1], stored.scales)?,
        false => Tensor::vector(stored.scales),
    };
    let scale = graph.add_constant(&format!("{name}_scale"), scale)?;
    let zero = match by_row {
        true => None,
        false => {
            let zeros = Tensor::vector(vec![0i8; count]);
            Some(graph.add_constant(&format!("{name}_zero_point"), zeros)?)
        }
    };
    for &op in &table.takers {
        let Some(indices) = graph.op(op).input(1) else {
            continue;
        };
        let label = graph.op_label(op);
        let add = |graph: &mut Graph, new: NewOp, hint: &str| {
            let new = new.from([op]).beside(op).output(format!("{label}_{hint}"));
            let made = graph.add_op(new)?;
            let out = graph.op(made).output(0);
            out.ok_or_else(|| PassError::Bug("a new operator has no output".to_owned()))
        };
        let taken = NewOp::new("Gather").input(bytes).input(indices);
        let taken = add(graph, taken, "bytes")?;
        let last = match zero {
            Some(zero) => NewOp::new("DequantizeLinear")
                .input(taken)
                .input(scale)
                .input(zero)
                .attr("axis", -1i64),
            None => {
                let cast = NewOp::new("Cast").input(taken);
                let cast = cast.attr("to", i64::from(DType::F32.to_onnx()));
                let cast = add(graph, cast, "numbers")?;
                let scales = NewOp::new("Gather").input(scale).input(indices);
                let scales = add(graph, scales, "scales")?;
                NewOp::new("Mul").input(cast).input(scales)
            }
        };
        graph.replace_op(op, last)?;
    }
    Ok(())
}

fn error(tensor: &Tensor, stored: &StoredWeight) -> f64 {
    let columns = tensor.dims().get(1).copied().unwrap_or(1).max(1);
    let all = tensor.to_f64s().unwrap_or_default();
    let of = |(i, w): (usize, &f64)| {
        let place = if stored.axis == 0 {
            i / columns
        } else {
            i % columns
        };
        let scale = stored.scales.get(place).copied().unwrap_or(0.0);
        (w - f64::from(stored.bytes[i]) * f64::from(scale)).powi(2)
    };
    all.iter().enumerate().map(of).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use super::{store, table_of};
    use crate::testing::parse as model;

    fn stored(weights: &str) -> paring_ir::Model {
        let text = r#"<opset_import: ["": 18]> g (int64[4,2] i) => (float[4,2,2] y)
            <float[3,2] t = WEIGHTS> { [embed] y = Gather (t, i) }"#;
        let mut m = model(&text.replace("WEIGHTS", weights));
        let op = m.graph.ops().next().unwrap();
        let table = table_of(&m.graph, op).unwrap();
        store(&mut m.graph, &table).unwrap();
        m
    }

    fn types(m: &paring_ir::Model) -> Vec<String> {
        let order = m.graph.topological_order().unwrap();
        order
            .iter()
            .map(|&op| m.graph.op(op).op_type().to_string())
            .collect()
    }

    #[test]
    fn rows_or_columns_have_scales_whichever_errs_less() {
        let rows = stored("{1, 0.5, 100, 30, 0.01, 0.003}");
        assert_eq!(types(&rows), ["Gather", "Cast", "Gather", "Mul"]);
        let columns = stored("{1, 100, 0.4, 33, 0.3, 77}");
        assert_eq!(types(&columns), ["Gather", "DequantizeLinear"]);
    }

    #[test]
    fn what_something_else_takes_is_no_table() {
        for body in [
            "{ a = Gather (t, i) y = MatMul (a, t) }",
            "{ y = Gather <axis: int = 1> (t, i) }",
        ] {
            let m = model(&format!(
                r#"<opset_import: ["": 18]> g (int64[1] i) => (y) <float[2,2] t = {{1, 2, 3, 4}}> {body}"#
            ));
            let op = m.graph.topological_order().unwrap()[0];
            assert!(table_of(&m.graph, op).is_none());
        }
    }
}

//! Products of matrices, Einsum, recurrent networks and attention.

use std::collections::BTreeMap;

use super::cx::{Cx, MAX_RANK, Outs, many, one, typed};
use super::dim::SymDim;
use super::elementwise::{broadcast, show};
use super::fact::SymDims;
use super::layout::quotient;
use crate::tensor::DType;

/// The product of two stacks of matrices in these slots, as numpy's matmul.
fn matmul_dims(cx: &Cx<'_, '_>, a: usize, b: usize) -> Option<SymDims> {
    let (a, b) = (cx.dims(a)?, cx.dims(b)?);
    let (Some(a_last), Some(b_last)) = (a.last(), b.last()) else {
        return cx.refuse("a scalar can't be multiplied as a matrix".to_owned());
    };
    let one_row = a.len() == 1;
    let one_column = b.len() == 1;
    let inner = if one_column {
        b_last
    } else {
        b.get(b.len().checked_sub(2)?)?
    };
    if cx.same(a_last, inner, "inner sizes").is_none() {
        return cx.refuse(format!("{} times {}", show(a), show(b)));
    }
    let batch =
        |d: &SymDims| -> SymDims { d.iter().take(d.len().saturating_sub(2)).cloned().collect() };
    let mut dims = broadcast(cx, &batch(a), &batch(b))?;
    if !one_row {
        dims.push(a.get(a.len().checked_sub(2)?)?.clone());
    }
    if !one_column {
        dims.push(b_last.clone());
    }
    Some(dims)
}

pub(super) fn matmul(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(0).or(cx.dtype(1)), matmul_dims(cx, 0, 1)))
}

pub(super) fn matmul_integer(cx: &Cx<'_, '_>) -> Outs {
    one(typed(Some(DType::I32), matmul_dims(cx, 0, 1)))
}

pub(super) fn qlinear_matmul(cx: &Cx<'_, '_>) -> Outs {
    one(typed(cx.dtype(7), matmul_dims(cx, 0, 3)))
}

pub(super) fn gemm(cx: &Cx<'_, '_>) -> Outs {
    let side = |slot: usize, transposed: bool| {
        let dims = match cx.dims(slot) {
            Some(_) => cx.dims_of_rank(slot, 2)?,
            None => return Some((cx.fresh(), cx.fresh())),
        };
        match dims.as_slice() {
            [rows, columns] if transposed => Some((columns.clone(), rows.clone())),
            [rows, columns] => Some((rows.clone(), columns.clone())),
            _ => None,
        }
    };
    let dims = (|| {
        let (rows, k) = side(0, cx.flag("transA"))?;
        let (l, columns) = side(1, cx.flag("transB"))?;
        cx.same(&k, &l, "inner sizes")?;
        Some(SymDims::from_iter([rows, columns]))
    })();
    one(typed(cx.dtype(0).or(cx.dtype(1)), dims))
}

// ---- Einsum ----

/// The labels of one term of an equation.
type Labels = Vec<char>;

/// The terms of an equation: for each operand its labels, where `.` stands for the ellipsis.
fn einsum_terms(equation: &str) -> Option<(Vec<Labels>, Option<Labels>)> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let equation = equation.replace("...", ".");
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (equation, None),
    };
    let labels = |term: &str| -> Option<Labels> {
        let all: Labels = term.chars().collect();
        let dots = all.iter().filter(|c| **c == '.').count();
        let fine = dots <= 1 && all.iter().all(|c| *c == '.' || c.is_ascii_alphabetic());
        fine.then_some(all)
    };
    let operands = left.split(',').map(labels).collect::<Option<_>>()?;
    let output = match right {
        Some(r) => Some(labels(&r)?),
        None => None,
    };
    Some((operands, output))
}

pub(super) fn einsum(cx: &Cx<'_, '_>) -> Outs {
    let dtype = (0..cx.inputs.len()).find_map(|i| cx.dtype(i));
    one(typed(dtype, einsum_dims(cx)))
}

fn einsum_dims(cx: &Cx<'_, '_>) -> Option<SymDims> {
    let equation = cx.string("equation")?;
    let Some((operands, output)) = einsum_terms(equation) else {
        return cx.refuse(format!(
            "the equation {:?} can't be read",
            crate::escape(equation)
        ));
    };
    if operands.len() != cx.inputs.len() {
        return cx.refuse(format!(
            "{} operands for an equation of {}",
            cx.inputs.len(),
            operands.len()
        ));
    }
    let mut sizes = LabelSizes::default();
    for (slot, labels) in operands.iter().enumerate() {
        sizes.take(cx, slot, labels)?;
    }
    let output = output.unwrap_or_else(|| {
        // Without an arrow: what stands once, in alphabetic order, behind the ellipsis.
        let once = sizes.by_label.iter().filter(|(_, (_, n))| *n == 1);
        std::iter::once('.').chain(once.map(|(c, _)| *c)).collect()
    });
    let mut dims = SymDims::new();
    for label in output {
        if label == '.' {
            dims.extend(sizes.ellipsis.iter().cloned());
            continue;
        }
        match sizes.by_label.get(&label) {
            Some((d, _)) => dims.push(d.clone()),
            None => return cx.refuse(format!("{label:?} stands in no operand")),
        }
        if dims.len() > MAX_RANK {
            return None;
        }
    }
    Some(dims)
}

/// What the operands of an equation say about its labels.
#[derive(Default)]
struct LabelSizes {
    /// The size, and how often the label stands among the operands.
    by_label: BTreeMap<char, (SymDim, usize)>,
    ellipsis: SymDims,
}

impl LabelSizes {
    /// Takes up the sizes of one operand.
    fn take(&mut self, cx: &Cx<'_, '_>, slot: usize, labels: &[char]) -> Option<()> {
        let dims = cx.dims(slot)?;
        let named = labels.iter().filter(|c| **c != '.').count();
        let rest = dims.len().checked_sub(named);
        let fits = rest.is_some_and(|r| r == 0 || labels.contains(&'.'));
        let Some(rest) = rest.filter(|_| fits) else {
            return cx.refuse(format!(
                "operand {slot} has {} dimensions, the equation {named}",
                dims.len()
            ));
        };
        let mut at = dims.iter();
        for &label in labels {
            if label == '.' {
                let part: SymDims = at.by_ref().take(rest).cloned().collect();
                self.ellipsis = broadcast(cx, &self.ellipsis, &part)?;
                continue;
            }
            let d = at.next()?;
            let (size, count) = match self.by_label.get(&label) {
                Some((s, n)) if s == d || d.known() == Some(1) => (s.clone(), *n),
                Some((s, n)) if s.known() == Some(1) => (d.clone(), *n),
                Some((s, n)) => (cx.same(s, d, &format!("sizes of {label:?}"))?, *n),
                None => (d.clone(), 0),
            };
            self.by_label.insert(label, (size, count.saturating_add(1)));
        }
        Some(())
    }
}

// ---- recurrent networks ----

/// The output of all steps, and the last state as often as the operator puts it out.
pub(super) fn recurrent(cx: &Cx<'_, '_>, states: usize) -> Outs {
    let dtype = cx.dtype(0);
    let directions = match cx.string("direction") {
        Some("bidirectional") => 2i64,
        _ => 1,
    };
    let hidden = cx
        .int("hidden_size")
        .filter(|&h| h > 0)
        .map(SymDim::from)
        .or_else(|| cx.dim(2, 2).cloned())
        .unwrap_or_else(|| cx.fresh());
    let (first, second) = match cx.dims(0) {
        Some(_) => match cx.dims_of_rank(0, 3).map(|d| d.as_slice()) {
            Some([a, b, _]) => (a.clone(), b.clone()),
            _ => return many((0..=states).map(|_| typed(dtype, None))),
        },
        None => (cx.fresh(), cx.fresh()),
    };
    let directions = SymDim::from(directions);
    let batch_first = cx.opset >= 14 && cx.flag("layout");
    let (all, last) = if batch_first {
        let batch = first.clone();
        (
            SymDims::from_iter([first, second, directions.clone(), hidden.clone()]),
            SymDims::from_iter([batch, directions, hidden]),
        )
    } else {
        let batch = second.clone();
        (
            SymDims::from_iter([first, directions.clone(), second, hidden.clone()]),
            SymDims::from_iter([directions, batch, hidden]),
        )
    };
    let state = typed(dtype, Some(last));
    let mut outs = one(typed(dtype, Some(all)));
    outs.extend((0..states).map(|_| state.clone()));
    outs
}

// ---- attention ----

/// Batch, heads, length and size of a head of one operand of Attention.
struct Heads {
    batch: SymDim,
    heads: SymDim,
    len: SymDim,
    size: SymDim,
}

/// An operand of rank 4 says its heads; for rank 3 an attribute does.
fn heads(cx: &Cx<'_, '_>, slot: usize, attr: &str) -> Option<Heads> {
    match cx.dims(slot)?.as_slice() {
        [batch, heads, len, size] => Some(Heads {
            batch: batch.clone(),
            heads: heads.clone(),
            len: len.clone(),
            size: size.clone(),
        }),
        [batch, len, hidden] => {
            let heads = SymDim::from(cx.int(attr)?);
            let size = quotient(
                cx,
                std::slice::from_ref(hidden),
                std::slice::from_ref(&heads),
            )?;
            Some(Heads {
                batch: batch.clone(),
                len: len.clone(),
                heads,
                size,
            })
        }
        dims => cx.refuse(format!(
            "input {slot} has {} dimensions, expected 3 or 4",
            dims.len()
        )),
    }
}

/// Attention of opset 23: the result, the keys and values for the next step, the scores.
pub(super) fn attention(cx: &Cx<'_, '_>) -> Outs {
    let (q, k, v) = (
        heads(cx, 0, "q_num_heads"),
        heads(cx, 1, "kv_num_heads"),
        heads(cx, 2, "kv_num_heads"),
    );
    let result = q.as_ref().and_then(|q| {
        let size = v.as_ref().map_or_else(|| cx.fresh(), |v| v.size.clone());
        let (batch, len) = (q.batch.clone(), q.len.clone());
        Some(if cx.rank(0)? == 3 {
            SymDims::from_iter([batch, len, cx.mul(&q.heads, &size)])
        } else {
            SymDims::from_iter([batch, q.heads.clone(), len, size])
        })
    });
    let total = |now: &Heads, past: usize| {
        if !cx.has(past) {
            return now.len.clone();
        }
        match cx.dim(past, 2) {
            Some(p) => cx.add(p, &now.len),
            None => cx.fresh(),
        }
    };
    let present = |now: &Option<Heads>, past: usize| {
        now.as_ref().map(|n| {
            SymDims::from_iter([
                n.batch.clone(),
                n.heads.clone(),
                total(n, past),
                n.size.clone(),
            ])
        })
    };
    let scores = q.as_ref().zip(k.as_ref()).map(|(q, k)| {
        SymDims::from_iter([q.batch.clone(), q.heads.clone(), q.len.clone(), total(k, 4)])
    });
    many([
        typed(cx.dtype(0), result),
        typed(cx.dtype(1).or(cx.dtype(0)), present(&k, 4)),
        typed(cx.dtype(2), present(&v, 5)),
        typed(cx.dtype(0), scores),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::super::testing::*;
    use crate::op::NewOp;
    use crate::tensor::{DType, Tensor};

    fn product(a: &str, b: &str) -> (String, usize) {
        let mut t = Test::new(13);
        let a = t.input("a", DType::F32, a);
        let b = t.input("b", DType::F32, b);
        let y = t.op1(NewOp::new("MatMul").input(a).input(b));
        let shapes = t.infer();
        (shapes.show(y), shapes.conflicts().len())
    }

    #[test]
    fn matrices_multiply_as_in_numpy() {
        assert_eq!(product("n,3,k", "k,5").0, "float[n,3,5]");
        assert_eq!(product("b,1,s,k", "h,k,t").0, "float[b,h,s,t]");
        assert_eq!(product("k", "k,5").0, "float[5]");
        assert_eq!(product("3,k", "k").0, "float[3]");
        assert_eq!(product("k", "k").0, "float[]");
        assert_eq!(product("k", "b,k,5").0, "float[b,5]");
        assert_eq!(product("2,3", "4,5"), ("float?".into(), 1));
        assert_eq!(product("", "4,5"), ("float?".into(), 1));
        assert_eq!(product("2,3,4", "3,4,5"), ("float?".into(), 1));
    }

    #[test]
    fn gemm_transposes() {
        let mut t = Test::new(13);
        let a = t.input("a", DType::F32, "k,n");
        let b = t.input("b", DType::F32, "5,k");
        let op = || NewOp::new("Gemm").input(a).input(b).attr("transB", 1i64);
        let y = t.op1(op().attr("transA", 1i64));
        let c = t.input("c", DType::F32, "2,3,4");
        let bad = t.op1(NewOp::new("Gemm").input(c).input(b));
        let shapes = t.infer();
        assert_eq!(shapes.show(y), "float[n,5]");
        assert_eq!(shapes.show(bad), "float?");
        assert!(shapes.conflicts()[0].ends_with("input 0 has 3 dimensions, expected 2"));
    }

    #[test]
    fn quantized_products_have_types_of_their_own() {
        let mut t = Test::new(13);
        let a = t.input("a", DType::U8, "n,4");
        let b = t.input("b", DType::I8, "4,5");
        let s = t.constant(Tensor::scalar(1f32));
        let z = t.constant(Tensor::scalar(0u8));
        let zb = t.constant(Tensor::scalar(0i8));
        let y = t.op1(NewOp::new("MatMulInteger").input(a).input(b));
        let q = t.op1(NewOp::new("QLinearMatMul").inputs([a, s, z, b, s, zb, s, z].map(Some)));
        let shapes = t.infer();
        assert_eq!(shapes.show(y), "int32[n,5]");
        assert_eq!(shapes.show(q), "uint8[n,5]");
    }

    fn einsum(equation: &str, operands: &[&str]) -> (String, Vec<String>) {
        let mut t = Test::new(13);
        let mut op = NewOp::new("Einsum").attr("equation", equation);
        for (i, dims) in operands.iter().enumerate() {
            op = op.input(t.input(&format!("x{i}"), DType::F32, dims));
        }
        let y = t.op1(op);
        let shapes = t.infer();
        (shapes.show(y), shapes.conflicts())
    }

    #[test]
    fn einsum_equations() {
        assert_eq!(
            einsum("bij, bjk -> bik", &["b,2,3", "b,3,k"]).0,
            "float[b,2,k]"
        );
        assert_eq!(einsum("ij,jk", &["2,3", "3,k"]).0, "float[2,k]");
        assert_eq!(
            einsum("...ij,...jk->...ik", &["n,1,2,3", "h,3,5"]).0,
            "float[n,h,2,5]"
        );
        assert_eq!(einsum("ii->i", &["n,n"]).0, "float[n]");
        assert_eq!(einsum("ij->", &["n,m"]).0, "float[]");
        assert_eq!(einsum("ba", &["2,3"]).0, "float[3,2]");
        assert!(einsum("ij,jk->ik", &["2,3", "4,5"]).1[0].contains("3 and 4 differ"));
        assert!(einsum("ij->ik", &["2,3"]).1[0].contains("stands in no operand"));
        assert!(einsum("ij", &["2"]).1[0].contains("has 1 dimensions, the equation 2"));
        assert!(einsum("i!", &["2,2"]).1[0].contains("can't be read"));
        assert!(einsum("i,i", &["2"]).1[0].contains("1 operands for an equation of 2"));
    }

    #[test]
    fn recurrent_layouts() {
        let mut t = Test::new(14);
        let x = t.input("x", DType::F32, "s,b,8");
        let w = t.input("w", DType::F32, "2,64,8");
        let r = t.input("r", DType::F32, "2,64,16");
        let op = |name: &str| NewOp::new(name).inputs([x, w, r].map(Some));
        let lstm = t.op(op("LSTM").attr("direction", "bidirectional"), 3);
        let gru = t.op(op("GRU").attr("hidden_size", 16i64).attr("layout", 1i64), 2);
        let shapes = t.infer();
        assert_eq!(shapes.show(lstm[0]), "float[s,2,b,16]");
        assert_eq!(shapes.show(lstm[2]), "float[2,b,16]");
        assert_eq!(shapes.show(gru[0]), "float[s,b,1,16]");
        assert_eq!(shapes.show(gru[1]), "float[s,1,16]");
    }

    #[test]
    fn attention_of_both_ranks() {
        let mut t = Test::new(23);
        let q = t.input("q", DType::F32, "b,8,s,64");
        let k = t.input("k", DType::F32, "b,2,t,64");
        let v = t.input("v", DType::F32, "b,2,t,32");
        let pk = t.input("pk", DType::F32, "b,2,p,64");
        let pv = t.input("pv", DType::F32, "b,2,p,32");
        let ins = [Some(q), Some(k), Some(v), None, Some(pk), Some(pv)];
        let a = t.op(NewOp::new("Attention").inputs(ins), 4);
        let x = t.input("x", DType::F32, "b,s,512");
        let y = t.input("y", DType::F32, "b,t,128");
        let b = t.op1(
            NewOp::new("Attention")
                .inputs([x, y, y].map(Some))
                .attr("q_num_heads", 8i64)
                .attr("kv_num_heads", 2i64),
        );
        let shapes = t.infer();
        assert_eq!(shapes.show(a[0]), "float[b,8,s,32]");
        assert_eq!(shapes.show(a[1]), "float[b,2,t + p,64]");
        assert_eq!(shapes.show(a[2]), "float[b,2,t + p,32]");
        assert_eq!(shapes.show(a[3]), "float[b,8,s,t + p]");
        assert_eq!(shapes.show(b), "float[b,s,512]");
    }
}

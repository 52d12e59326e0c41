//! Small graphs built in code, and facts as text, for the tests of the rules.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

use super::{Contents, ShapeOptions, Shapes, SymDim};
use crate::graph::{Graph, ValueId};
use crate::model::Model;
use crate::op::NewOp;
use crate::tensor::{DType, Tensor};
use crate::value::{Dim, ValueType};

/// A model under construction.
pub(super) struct Test {
    pub(super) model: Model,
    count: usize,
}

/// A declared type of comma-separated dimensions: numbers, names, `?`; `*` is unknown rank.
pub(super) fn ty(dtype: DType, dims: &str) -> ValueType {
    if dims == "*" {
        return ValueType::Tensor {
            dtype: Some(dtype),
            shape: None,
        };
    }
    let dims = dims.split(',').filter(|d| !d.is_empty()).map(|d| match d {
        "?" => Dim::Unknown,
        d => d.parse().map_or_else(|_| Dim::Param(d.into()), Dim::Value),
    });
    ValueType::tensor(dtype, dims)
}

impl Test {
    pub(super) fn new(opset: i64) -> Test {
        Test {
            model: Model::new(Graph::new("main"), opset),
            count: 0,
        }
    }

    pub(super) fn input(&mut self, name: &str, dtype: DType, dims: &str) -> ValueId {
        self.model
            .graph
            .add_input(name, Some(ty(dtype, dims)))
            .unwrap()
    }

    pub(super) fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.model.graph.add_constant("c", tensor).unwrap()
    }

    /// An int64 vector.
    pub(super) fn ints(&mut self, v: &[i64]) -> ValueId {
        self.constant(Tensor::vector(v))
    }

    /// An int64 scalar.
    pub(super) fn int(&mut self, v: i64) -> ValueId {
        self.constant(Tensor::scalar(v))
    }

    pub(super) fn op(&mut self, mut op: NewOp, outputs: usize) -> Vec<ValueId> {
        for _ in 0..outputs {
            op = op.output(format!("v{}", self.count));
            self.count += 1;
        }
        let op = self.model.graph.add_op(op).unwrap();
        let outs = self.model.graph.op(op).outputs();
        outs.iter().map(|v| v.unwrap()).collect()
    }

    pub(super) fn op1(&mut self, op: NewOp) -> ValueId {
        self.op(op, 1)[0]
    }

    pub(super) fn infer(&self) -> Result {
        self.infer_with(&ShapeOptions::default())
    }

    pub(super) fn infer_with(&self, options: &ShapeOptions) -> Result {
        Result {
            shapes: Shapes::infer(&self.model, options),
        }
    }
}

/// Inferred facts.
pub(super) struct Result {
    pub(super) shapes: Shapes,
}

impl Result {
    /// `float[n,3]`; sizes without a name are `?`.
    pub(super) fn show(&self, v: ValueId) -> String {
        let Some(fact) = self.shapes.fact(v) else {
            return "?".to_owned();
        };
        let dtype = fact.dtype.map_or("?", DType::name);
        match &fact.dims {
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(show).collect();
                format!("{dtype}[{}]", dims.join(","))
            }
            None => format!("{dtype}?"),
        }
    }

    /// The contents, separated by spaces; unknown numbers are `?`, unknown contents `-`.
    pub(super) fn elements(&self, v: ValueId) -> String {
        match self.shapes.fact(v).and_then(|f| f.contents.clone()) {
            None => "-".to_owned(),
            Some(Contents::Floats(v)) => {
                let all: Vec<String> = v.iter().map(f64::to_string).collect();
                all.join(" ")
            }
            Some(c) => {
                let all: Vec<String> = c.exprs().unwrap().iter().map(show).collect();
                all.join(" ")
            }
        }
    }

    pub(super) fn conflicts(&self) -> Vec<String> {
        self.shapes
            .conflicts()
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

fn show(d: &SymDim) -> String {
    match d.symbol() {
        Some(super::Symbol::Size(_) | super::Symbol::Number(_)) => "?".to_owned(),
        _ => d.to_string(),
    }
}

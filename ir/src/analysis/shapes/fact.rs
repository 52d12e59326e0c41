//! What is known about one value: element type, dimensions, and small contents.

use std::sync::Arc;

use smallvec::SmallVec;

use super::dim::{SymDim, Symbol};
use crate::tensor::{DType, Tensor};
use crate::value::{Dim, ValueType};

/// Dimensions as expressions.
pub type SymDims = SmallVec<[SymDim; 4]>;

/// Integer contents of more elements than this are not kept.
pub const MAX_INTS: usize = 1024;

/// Float contents of more elements than this are not kept.
pub const MAX_FLOATS: usize = 16;

/// The known elements of a tensor, in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub enum Contents {
    /// Integers or booleans (0 and 1).
    Ints(Arc<[i64]>),
    /// Integers of which some are expressions. Under a float element type: whole numbers that
    /// stem from sizes, which are taken to be small enough to be exact there.
    Exprs(Arc<[SymDim]>),
    /// Floats.
    Floats(Arc<[f64]>),
}

impl Contents {
    /// Contents of integers and expressions.
    pub fn from_exprs(all: Vec<SymDim>) -> Contents {
        match all.iter().map(SymDim::known).collect::<Option<Vec<i64>>>() {
            Some(known) => Contents::Ints(known.into()),
            None => Contents::Exprs(all.into()),
        }
    }

    /// The elements as expressions; `None` for floats.
    pub fn exprs(&self) -> Option<Vec<SymDim>> {
        match self {
            Contents::Ints(v) => Some(v.iter().map(|&v| SymDim::from(v)).collect()),
            Contents::Exprs(v) => Some(v.to_vec()),
            Contents::Floats(_) => None,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Contents::Ints(v) => v.len(),
            Contents::Exprs(v) => v.len(),
            Contents::Floats(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is known about a value that is a dense tensor.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TensorFact {
    /// The element type.
    pub dtype: Option<DType>,
    /// The dimensions; `None` when not even their number is known.
    pub dims: Option<SymDims>,
    /// The elements, where they are few and take part in shape arithmetic.
    pub contents: Option<Contents>,
}

impl TensorFact {
    /// A fact without contents.
    pub fn new(dtype: Option<DType>, dims: Option<SymDims>) -> TensorFact {
        TensorFact {
            dtype,
            dims,
            contents: None,
        }
    }

    /// The fact of a constant. Integer contents are kept when they are few.
    pub fn of_tensor(tensor: &Tensor) -> TensorFact {
        let contents = match tensor.dtype() {
            DType::I64 | DType::I32 if tensor.len() <= MAX_INTS => tensor.to_i64s(),
            DType::Bool if tensor.len() <= MAX_FLOATS => tensor.to_i64s(),
            _ => None,
        };
        TensorFact {
            dtype: Some(tensor.dtype()),
            dims: Some(tensor.dims().iter().map(|&d| SymDim::from(d)).collect()),
            contents: contents.map(|v| Contents::Ints(v.into())),
        }
    }

    /// The dimensions when all are numbers.
    pub fn known_dims(&self) -> Option<Vec<usize>> {
        self.dims
            .as_ref()?
            .iter()
            .map(|d| usize::try_from(d.known()?).ok())
            .collect()
    }

    /// The number of dimensions.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(|d| d.len())
    }

    /// The elements, when they are known integers (booleans count as 0 and 1).
    pub fn known_i64s(&self) -> Option<Vec<i64>> {
        match self.contents.as_ref()? {
            Contents::Ints(v) => Some(v.to_vec()),
            _ => None,
        }
    }

    /// The fact as a declared type: numbers and named sizes survive, other expressions become
    /// unknown dimensions. `None` when the element type is not known.
    pub fn to_value_type(&self) -> Option<ValueType> {
        let dtype = Some(self.dtype?);
        let shape = self
            .dims
            .as_ref()
            .map(|dims| dims.iter().map(declared_dim).collect());
        Some(ValueType::Tensor { dtype, shape })
    }
}

/// A size as a declared dimension.
pub(super) fn declared_dim(d: &SymDim) -> Dim {
    match (d.known(), d.symbol()) {
        (Some(v), _) => Dim::Value(v),
        (None, Some(Symbol::Named(name))) => Dim::Param(name.clone()),
        _ => Dim::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_not_declared() {
        let n = SymDim::named("n");
        let dims = SymDims::from_iter([
            n.clone(),
            4i64.into(),
            n.mul(&2i64.into()).unwrap_or_else(|| 0i64.into()),
        ]);
        let fact = TensorFact::new(Some(DType::F32), Some(dims));
        assert_eq!(
            fact.to_value_type(),
            Some(ValueType::tensor(
                DType::F32,
                [Dim::Param("n".into()), Dim::Value(4), Dim::Unknown]
            ))
        );
        assert_eq!(fact.known_dims(), None);
        assert_eq!(TensorFact::default().to_value_type(), None);
    }

    #[test]
    fn large_contents_are_left_out() {
        let small = TensorFact::of_tensor(&Tensor::vector(vec![1i64; MAX_INTS]));
        assert_eq!(small.known_i64s().map(|v| v.len()), Some(MAX_INTS));
        let large = TensorFact::of_tensor(&Tensor::vector(vec![1i64; MAX_INTS + 1]));
        assert_eq!(large.contents, None);
    }
}

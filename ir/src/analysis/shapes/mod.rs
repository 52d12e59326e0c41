//! Element type and shape of every value, without running the model.
//!
//! The analysis walks each graph once in topological order; `rules` says for each operator
//! what its outputs are. Dimensions are integer expressions over named sizes ([`SymDim`]), and
//! the small integer tensors that shapes are computed with are followed through
//! Shape -> Gather -> Concat -> Reshape and their like. What is not known stays unknown: an
//! operator of another domain, a size that depends on data (that gets a symbol of its own),
//! contents that are large.
//!
//! Declared types fill in what inference leaves open. Where both speak and disagree the
//! inferred type stands, and the disagreement is recorded as a [`Conflict`].
//!
//! The work is bounded for hostile models: expressions have a largest size ([`dim::MAX_WEIGHT`]),
//! contents a largest number of elements, shapes a largest rank, and calls of functions and
//! repeated visits of loop bodies together a budget.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

mod control;
mod cx;
pub mod dim;
mod elementwise;
mod engine;
mod fact;
mod generate;
mod indexing;
mod layout;
mod linear;
mod norm;
mod quant;
mod reduce;
mod rules;
mod signal;
mod slicing;
#[cfg(test)]
mod testing;
mod window;

pub use dim::{SymDim, Symbol};
pub use fact::{Contents, SymDims, TensorFact};

use super::{Analysis, AnalysisCache};
use crate::graph::{Graph, GraphError, GraphId, OpId, ValueId};
use crate::model::Model;
use crate::tensor::DType;
use crate::value::{Dim, Shape, ValueType};

/// What the analysis may assume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeOptions {
    /// Sizes of named dimensions.
    pub pins: BTreeMap<String, i64>,
    /// Shapes of graph inputs by name; a negative entry leaves that dimension as declared.
    pub input_shapes: BTreeMap<String, Vec<i64>>,
    /// Whether declared types fill in what inference leaves open. Where `input_shapes`
    /// contradicts the model's own input types, the declared types of other values are not
    /// used, since they tell about other shapes.
    pub use_declared: bool,
}

impl Default for ShapeOptions {
    fn default() -> Self {
        ShapeOptions {
            pins: BTreeMap::new(),
            input_shapes: BTreeMap::new(),
            use_declared: true,
        }
    }
}

/// A place where the model contradicts itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// Where, for messages: `main_graph / Conv "conv1"`.
    pub place: String,
    /// What is wrong.
    pub kind: ConflictKind,
}

/// How a model contradicts itself.
#[derive(Clone, Debug, PartialEq)]
pub enum ConflictKind {
    /// A value's declared type is not what its operator makes.
    Declared {
        /// The value.
        value: ValueId,
        /// The type in the file.
        declared: Box<ValueType>,
        /// The inferred type.
        inferred: Box<ValueType>,
    },
    /// The inputs or attributes of an operator don't fit together.
    Operator {
        /// The operator.
        op: OpId,
        /// What doesn't fit.
        reason: String,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason())
    }
}

impl Conflict {
    /// What is wrong, without the place.
    pub fn reason(&self) -> String {
        match &self.kind {
            ConflictKind::Declared {
                declared, inferred, ..
            } => format!(
                "declared as {}, but its operator makes {}",
                TypeText(declared),
                TypeText(inferred)
            ),
            ConflictKind::Operator { reason, .. } => reason.clone(),
        }
    }
}

struct TypeText<'a>(&'a ValueType);

impl fmt::Display for TypeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ValueType::Tensor { dtype, shape } = self.0 else {
            return f.write_str("no tensor");
        };
        match dtype {
            Some(d) => write!(f, "{d}")?,
            None => f.write_str("?")?,
        }
        let Some(shape) = shape else {
            return f.write_str(" of unknown rank");
        };
        f.write_str("[")?;
        for (i, d) in shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

/// The facts of one graph.
#[derive(Debug, Default)]
struct GraphShapes {
    /// By [`ValueId::index`]. Values of one type share a fact.
    facts: Vec<Option<Arc<TensorFact>>>,
    conflicts: Vec<Conflict>,
}

/// Element types and shapes of the values of a model's main graph and of the graphs inside it.
/// Bodies of functions have none of their own: they are looked through at each call.
#[derive(Debug)]
pub struct Shapes {
    main: GraphId,
    main_shapes: GraphShapes,
    nested: HashMap<GraphId, GraphShapes>,
    conflicts: Vec<Conflict>,
}

impl Analysis for Shapes {
    type Options = ShapeOptions;

    fn compute(model: &Model, options: &ShapeOptions, _cache: &mut AnalysisCache) -> Shapes {
        Shapes::infer(model, options)
    }
}

impl Shapes {
    /// Computes the analysis.
    pub fn infer(model: &Model, options: &ShapeOptions) -> Shapes {
        let mut nested = engine::Engine::run(model, options);
        let mut conflicts = Vec::new();
        model.for_each_graph(&mut |g| {
            if let Some(shapes) = nested.get_mut(&g.id()) {
                conflicts.append(&mut shapes.conflicts);
            }
        });
        let main = model.graph.id();
        Shapes {
            main,
            main_shapes: nested.remove(&main).unwrap_or_default(),
            nested,
            conflicts,
        }
    }

    /// What is known about a value; `None` when nothing is, or it is no dense tensor.
    pub fn fact(&self, value: ValueId) -> Option<&TensorFact> {
        let graph = value.graph();
        let shapes = if graph == self.main {
            &self.main_shapes
        } else {
            self.nested.get(&graph)?
        };
        shapes.facts.get(value.index())?.as_deref()
    }

    /// The dimensions; `None` when not even their number is known.
    pub fn dims(&self, value: ValueId) -> Option<&[SymDim]> {
        self.fact(value)?.dims.as_deref()
    }

    /// The dimensions when all are numbers.
    pub fn known_dims(&self, value: ValueId) -> Option<Vec<usize>> {
        self.fact(value)?.known_dims()
    }

    /// The element type.
    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.fact(value)?.dtype
    }

    /// The number of dimensions.
    pub fn rank(&self, value: ValueId) -> Option<usize> {
        self.fact(value)?.rank()
    }

    /// The type as a file would declare it; see [`TensorFact::to_value_type`].
    pub fn to_value_type(&self, value: ValueId) -> Option<ValueType> {
        self.fact(value)?.to_value_type()
    }

    /// Where the model contradicts itself: graphs from the outside in, operators in
    /// topological order.
    pub fn conflicts(&self) -> &[Conflict] {
        &self.conflicts
    }
}

/// Brings the declared types of a model that was edited up to date.
///
/// A declared type of a value that disagrees with the inferred one becomes the inferred one; for
/// graph outputs only the element type and the dimensions that disagree change. Declared types that
/// don't disagree stay as they are. A value on the list of value infos whose new type can't be
/// told is taken off the list.
pub fn refresh_declared(model: &mut Model, shapes: &Shapes) -> Result<(), GraphError> {
    let mut stale = false;
    model.for_each_graph(&mut |g| {
        stale |= g.values().any(|v| replacement(g, v, shapes).is_some());
    });
    if !stale {
        return Ok(());
    }
    model.edit_graphs(&mut |g: &mut Graph| {
        let changes: Vec<(ValueId, Option<ValueType>)> = g
            .values()
            .filter_map(|v| Some((v, replacement(g, v, shapes)?)))
            .collect();
        let dropped: Vec<ValueId> = changes
            .iter()
            .filter(|(_, ty)| ty.is_none())
            .map(|(v, _)| *v)
            .collect();
        for (v, ty) in changes {
            g.set_type(v, ty)?;
        }
        if !dropped.is_empty() {
            g.retain_declared(|v, _| dropped.binary_search(&v).is_err());
        }
        Ok::<(), GraphError>(())
    })
}

/// The new declared type of a value whose declared type disagrees with the inferred one.
/// The inner `None` drops the declaration.
fn replacement(g: &Graph, v: ValueId, shapes: &Shapes) -> Option<Option<ValueType>> {
    let value = g.get_value(v)?;
    if value.is_input() || value.captured_from().is_some() {
        return None;
    }
    let declared = value.declared_type()?;
    let fact = shapes.fact(v)?;
    if !matches!(declared, ValueType::Tensor { .. }) || fits(fact, declared) {
        return None;
    }
    if !value.is_output() {
        return Some(fact.to_value_type());
    }
    let same_rank = fact.dims.as_ref().zip(declared.shape());
    let shape = match same_rank {
        Some((dims, old)) if dims.len() == old.len() => Some(
            dims.iter()
                .zip(old)
                .map(|(d, old)| {
                    if dim_fits(d, old) {
                        old.clone()
                    } else {
                        fact::declared_dim(d)
                    }
                })
                .collect::<Shape>(),
        ),
        Some((dims, _)) => Some(dims.iter().map(fact::declared_dim).collect()),
        None => declared.shape().map(|s| s.iter().cloned().collect()),
    };
    Some(Some(ValueType::Tensor {
        dtype: fact.dtype.or(declared.dtype()),
        shape,
    }))
}

/// Whether a declared dimension may be right.
fn dim_fits(d: &SymDim, declared: &Dim) -> bool {
    match (d.known(), declared) {
        (Some(a), Dim::Value(b)) => a == *b,
        _ => true,
    }
}

/// Whether a declared tensor type may be right.
fn fits(fact: &TensorFact, declared: &ValueType) -> bool {
    let dtype = match (fact.dtype, declared.dtype()) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    let shape = match (&fact.dims, declared.shape()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| dim_fits(a, b)),
        _ => true,
    };
    dtype && shape
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::testing::*;
    use super::*;
    use crate::attr::{AttrKind, AttrValue, Attribute};
    use crate::model::{Function, OpsetImport};
    use crate::op::NewOp;
    use crate::tensor::Tensor;

    #[test]
    fn declared_types_fill_in_what_inference_leaves_open() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let foreign = t.op1(NewOp::new("Fancy").domain("example").input(x));
        let nz = t.op1(NewOp::new("NonZero").input(x));
        let relu = t.op1(NewOp::new("Relu").input(foreign));
        let g = &mut t.model.graph;
        g.set_type(foreign, Some(ty(DType::F32, "m,?"))).unwrap();
        g.set_type(nz, Some(ty(DType::I64, "2,count"))).unwrap();
        let shapes = t.infer();
        assert_eq!(shapes.show(foreign), "float[m,?]");
        assert_eq!(shapes.show(nz), "int64[2,count]");
        assert_eq!(shapes.show(relu), "float[m,?]");
        let shapes = t.infer_with(&ShapeOptions {
            use_declared: false,
            ..ShapeOptions::default()
        });
        assert_eq!(shapes.show(relu), "?");
        assert_eq!(shapes.show(nz), "int64[2,?]");
    }

    #[test]
    fn inference_wins_over_a_stale_declaration() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let y = t.op1(NewOp::new("Relu").input(x));
        let z = t.op1(NewOp::new("Abs").input(y));
        let g = &mut t.model.graph;
        g.set_type(y, Some(ty(DType::F32, "n,5"))).unwrap();
        g.set_type(z, Some(ty(DType::F16, "n,4"))).unwrap();
        let shapes = t.infer();
        assert_eq!(shapes.show(z), "float[n,4]");
        assert_eq!(
            shapes.conflicts(),
            [
                "main / value \"v0\": declared as float[n,5], but its operator makes float[n,4]",
                "main / value \"v1\": declared as float16[n,4], but its operator makes float[n,4]",
            ]
        );
    }

    #[test]
    fn question_marks_are_no_names() {
        // Some exporters call every unknown size `?`.
        let mut t = Test::new(17);
        let mut shape = ty(DType::F32, "1,1");
        if let ValueType::Tensor { shape: Some(s), .. } = &mut shape {
            s.fill(Dim::Param("?".into()));
        }
        let x = t.model.graph.add_input("x", Some(shape)).unwrap();
        let dims = t.infer();
        let dims = dims.shapes.dims(x).unwrap();
        assert_ne!(dims[0], dims[1]);
    }

    #[test]
    fn sizes_can_be_pinned() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,?,h");
        let y = t.op1(NewOp::new("Flatten").input(x));
        t.model
            .graph
            .set_type(y, Some(ty(DType::F32, "n,99")))
            .unwrap();
        let mut options = ShapeOptions::default();
        options.pins.insert("n".to_owned(), 2);
        assert_eq!(t.infer_with(&options).show(x), "float[2,?,h]");
        options.input_shapes.insert("x".to_owned(), vec![-1, 3, 5]);
        let shapes = t.infer_with(&options);
        assert_eq!(shapes.show(x), "float[2,3,5]");
        assert_eq!(shapes.show(y), "float[2,15]");
        assert_eq!(shapes.conflicts().len(), 1);
        // A shape that contradicts the model's makes its other declarations worthless.
        options.input_shapes.insert("x".to_owned(), vec![5, 4]);
        let shapes = t.infer_with(&options);
        assert_eq!(shapes.show(y), "float[5,4]");
        assert_eq!(shapes.conflicts().len(), 0);
    }

    #[test]
    fn an_initializer_that_can_be_overridden_is_no_constant() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let shape = t.input("shape", DType::I64, "1");
        let default = Tensor::vector(vec![-1i64]);
        t.model
            .graph
            .add_initializer(shape, crate::Constant::Dense(default))
            .unwrap();
        let y = t.op1(NewOp::new("Reshape").input(x).input(shape));
        assert_eq!(t.infer().show(y), "float[4*n]");
        let two = t.input("two", DType::I64, "2");
        let default = Tensor::vector(vec![4i64, -1]);
        let g = &mut t.model.graph;
        g.add_initializer(two, crate::Constant::Dense(default))
            .unwrap();
        let z = t.op1(NewOp::new("Reshape").input(x).input(two));
        assert_eq!(t.infer().show(z), "float[?,?]");
    }

    /// A function that unsqueezes its input at an axis of the call.
    fn function(name: &str, calls: Option<&str>) -> Function {
        let mut body = Graph::new(name);
        let x = body.add_input("x", None).unwrap();
        let axes = AttrValue::Ref {
            name: "at".into(),
            kind: AttrKind::Ints,
        };
        let op = match calls {
            None => NewOp::new("Unsqueeze").attr("axes", axes),
            Some(other) => NewOp::new(other).domain("local").attr("at", axes),
        };
        let op = body.add_op(op.input(x).output("y")).unwrap();
        body.add_output(body.op(op).output(0).unwrap()).unwrap();
        Function {
            domain: "local".into(),
            name: name.into(),
            overload: "".into(),
            attributes: vec![],
            attribute_defaults: vec![Attribute::new("at", vec![0i64])],
            opsets: vec![OpsetImport::new("", 11)],
            body,
            doc: None,
            metadata: vec![],
            written: (true, false),
        }
    }

    #[test]
    fn functions_are_looked_through() {
        let mut t = Test::new(17);
        t.model.functions = vec![function("outer", Some("inner")), function("inner", None)];
        let x = t.input("x", DType::F32, "n,4");
        let op = || NewOp::new("outer").domain("local").input(x);
        let a = t.op1(op().attr("at", vec![2i64]));
        let b = t.op1(op());
        let shapes = t.infer();
        assert_eq!(shapes.show(a), "float[n,4,1]");
        assert_eq!(shapes.show(b), "float[1,n,4]");
    }

    #[test]
    fn functions_that_call_themselves_are_unknown() {
        let mut t = Test::new(17);
        t.model.functions = vec![function("a", Some("b")), function("b", Some("a"))];
        let x = t.input("x", DType::F32, "n,4");
        let y = t.op1(NewOp::new("a").domain("local").input(x));
        assert_eq!(t.infer().show(y), "?");
    }

    #[test]
    fn functions_that_multiply_cost_little() {
        // Each calls the next one four times: 4^30 calls if all were looked through.
        let mut t = Test::new(17);
        for i in 0..30 {
            let mut f = function(&format!("f{i}"), Some(&format!("f{}", i + 1)));
            for _ in 0..3 {
                let v = f.body.outputs()[0];
                let op = NewOp::new(format!("f{}", i + 1)).domain("local");
                f.body.add_op(op.input(v).output("z")).unwrap();
            }
            t.model.functions.push(f);
        }
        t.model.functions.push(function("f30", None));
        let x = t.input("x", DType::F32, "n,4");
        t.op1(NewOp::new("f0").domain("local").input(x));
        t.infer();
    }

    #[test]
    fn cycles_leave_values_unknown() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let y = t.op1(NewOp::new("Add").input(x).input(x));
        let z = t.op1(NewOp::new("Relu").input(y));
        let add = t.model.graph.producer(y).unwrap();
        t.model.graph.set_input(add, 1, Some(z)).unwrap();
        assert_eq!(t.infer().show(z), "?");
    }

    #[test]
    fn refreshing_changes_only_what_is_wrong() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let right = t.op1(NewOp::new("Relu").input(x));
        let wrong = t.op1(NewOp::new("Abs").input(right));
        let out = t.op1(NewOp::new("Neg").input(wrong));
        let g = &mut t.model.graph;
        g.set_type(right, Some(ty(DType::F32, "batch,?"))).unwrap();
        g.set_type(wrong, Some(ty(DType::F32, "batch,7"))).unwrap();
        g.set_type(out, Some(ty(DType::F32, "batch,7"))).unwrap();
        g.declare(right).unwrap();
        g.declare(wrong).unwrap();
        g.add_output(out).unwrap();
        let shapes = t.infer().shapes;
        refresh_declared(&mut t.model, &shapes).unwrap();
        let g = &t.model.graph;
        let declared = |v| g.value(v).declared_type().cloned();
        assert_eq!(declared(right), Some(ty(DType::F32, "batch,?")));
        assert_eq!(declared(wrong), Some(ty(DType::F32, "n,4")));
        // The name of an output's dimension is the model's interface.
        assert_eq!(declared(out), Some(ty(DType::F32, "batch,4")));
        let before = t.model.revision();
        let shapes = t.infer().shapes;
        assert_eq!(shapes.conflicts(), []);
        refresh_declared(&mut t.model, &shapes).unwrap();
        assert_eq!(t.model.revision(), before);
    }

    #[test]
    fn the_cache_computes_once_per_state() {
        let mut t = Test::new(17);
        let x = t.input("x", DType::F32, "n,4");
        let y = t.op1(NewOp::new("Relu").input(x));
        let mut cache = AnalysisCache::new();
        let a = cache.get::<Shapes>(&t.model);
        assert!(Arc::ptr_eq(&a, &cache.get::<Shapes>(&t.model)));
        assert_eq!(a.rank(y), Some(2));
        assert_eq!(a.to_value_type(y), Some(ty(DType::F32, "n,4")));
        t.op1(NewOp::new("Relu").input(y));
        assert!(!Arc::ptr_eq(&a, &cache.get::<Shapes>(&t.model)));
    }
}

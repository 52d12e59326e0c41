//! Large models, built by code, for the benchmarks.

use paring::{
    DType, Dim, Graph, GraphError, Model, NewOp, Tensor, TensorError, ValueId, ValueType,
};

/// Why a model can't be built.
#[derive(Debug)]
#[allow(
    dead_code,
    reason = "read through Debug, when an unwrap of the caller fails"
)]
pub enum Error {
    /// An edit was refused.
    Graph(GraphError),
    /// A tensor has the wrong length.
    Tensor(TensorError),
}

impl From<GraphError> for Error {
    fn from(e: GraphError) -> Error {
        Error::Graph(e)
    }
}

impl From<TensorError> for Error {
    fn from(e: TensorError) -> Error {
        Error::Tensor(e)
    }
}

/// A chain of element-wise operators none of which can go.
pub fn chain(nodes: usize) -> Result<Model, Error> {
    let mut g = Graph::new("chain");
    let mut v = g.add_input("x", Some(ValueType::fixed(DType::F32, &[4])))?;
    for i in 0..nodes {
        let op_type = ["Sigmoid", "Neg", "Tanh", "Abs"][i % 4];
        let op = NewOp::new(op_type)
            .name(format!("op_{i}"))
            .input(v)
            .output(format!("v_{i}"));
        v = output(&mut g, op)?;
    }
    finish(g, v)
}

/// Blocks as exporters leave them: convolution, BatchNormalization, Relu, a residual Add,
/// Transposes that cancel, Identity, constants in nodes, shape arithmetic.
pub fn mixed(nodes: usize) -> Result<Model, Error> {
    let mut g = Graph::new("mixed");
    let shape = [
        Dim::Param("batch".into()),
        Dim::Value(8),
        Dim::Value(8),
        Dim::Value(8),
    ];
    let mut v = g.add_input("x", Some(ValueType::tensor(DType::F32, shape)))?;
    let mut random = Random(1);
    for i in 0..nodes / BLOCK {
        v = block(&mut g, v, i, &mut random)?;
    }
    finish(g, v)
}

/// Operators in one block of [`mixed`].
const BLOCK: usize = 16;

fn block(g: &mut Graph, x: ValueId, i: usize, random: &mut Random) -> Result<ValueId, Error> {
    let op = |g: &mut Graph, new: NewOp, tag: &str| {
        let name = format!("b{i}_{tag}");
        output(g, new.name(name.clone()).output(name))
    };
    let weights = |g: &mut Graph, random: &mut Random, tag: &str, dims: &[usize]| {
        let count = dims.iter().product();
        let data: Vec<f32> = (0..count).map(|_| random.next()).collect();
        Ok::<_, Error>(g.add_constant(
            &format!("b{i}_{tag}"),
            Tensor::from_vec(dims.iter().copied(), data)?,
        )?)
    };
    let w = weights(g, random, "w", &[8, 8, 1, 1])?;
    let conv = op(g, NewOp::new("Conv").input(x).input(w), "conv")?;
    let mut bn = NewOp::new("BatchNormalization").input(conv);
    for tag in ["scale", "shift", "mean"] {
        bn = bn.input(weights(g, random, tag, &[8])?);
    }
    let var = g.add_constant(&format!("b{i}_var"), Tensor::vector(vec![1f32; 8]))?;
    let bn = op(g, bn.input(var), "bn")?;
    let relu = op(g, NewOp::new("Relu").input(bn), "relu")?;
    let id = op(g, NewOp::new("Identity").input(relu), "id")?;
    let there = op(
        g,
        NewOp::new("Transpose")
            .input(id)
            .attr("perm", vec![0i64, 2, 3, 1]),
        "nhwc",
    )?;
    let back = op(
        g,
        NewOp::new("Transpose")
            .input(there)
            .attr("perm", vec![0i64, 3, 1, 2]),
        "nchw",
    )?;
    let shape = op(g, NewOp::new("Shape").input(back), "shape")?;
    let zero = op(
        g,
        NewOp::new("Constant").attr("value", Tensor::scalar(0i64)),
        "zero",
    )?;
    let batch = op(g, NewOp::new("Gather").input(shape).input(zero), "batch")?;
    let axes = op(
        g,
        NewOp::new("Constant").attr("value", Tensor::vector(vec![0i64])),
        "axes",
    )?;
    let batch = op(
        g,
        NewOp::new("Unsqueeze").input(batch).input(axes),
        "unsqueezed",
    )?;
    let rest = op(
        g,
        NewOp::new("Constant").attr("value", Tensor::vector(vec![8i64, 8, 8])),
        "rest",
    )?;
    let target = op(
        g,
        NewOp::new("Concat")
            .input(batch)
            .input(rest)
            .attr("axis", 0i64),
        "target",
    )?;
    let flat = op(
        g,
        NewOp::new("Reshape").input(back).input(target),
        "reshaped",
    )?;
    let sum = op(g, NewOp::new("Add").input(flat).input(x), "sum")?;
    op(g, NewOp::new("Tanh").input(sum), "tanh")
}

/// Square matrices of 3200 x 3200 floats (41 MB) one after the other: `bytes` of weights.
pub fn heavy(bytes: u64) -> Result<Model, Error> {
    const SIDE: usize = 3200;
    let layers = bytes.div_ceil((SIDE * SIDE * 4) as u64);
    let mut g = Graph::new("heavy");
    let mut v = g.add_input("x", Some(ValueType::fixed(DType::F32, &[1, SIDE])))?;
    let mut random = Random(7);
    for i in 0..layers {
        let data: Vec<f32> = (0..SIDE * SIDE)
            .map(|_| random.next() / SIDE as f32)
            .collect();
        let w = g.add_constant(&format!("w_{i}"), Tensor::from_vec([SIDE, SIDE], data)?)?;
        let op = NewOp::new("MatMul")
            .name(format!("matmul_{i}"))
            .input(v)
            .input(w);
        v = output(&mut g, op.output(format!("m_{i}")))?;
        let op = NewOp::new("Relu")
            .name(format!("relu_{i}"))
            .input(v)
            .output(format!("r_{i}"));
        v = output(&mut g, op)?;
    }
    finish(g, v)
}

fn output(g: &mut Graph, op: NewOp) -> Result<ValueId, Error> {
    let op = g.add_op(op)?;
    let missing = || GraphError::StillUsed("an operator without output".to_owned());
    Ok(g.op(op).output(0).ok_or_else(missing)?)
}

fn finish(mut g: Graph, v: ValueId) -> Result<Model, Error> {
    g.set_type(
        v,
        Some(ValueType::Tensor {
            dtype: Some(DType::F32),
            shape: None,
        }),
    )?;
    g.add_output(v)?;
    Ok(Model::new(g, 17))
}

/// Numbers in [-1, 1) from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        bits as f32 / (1u64 << 23) as f32 - 1.0
    }
}

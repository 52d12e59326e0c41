//! Networks of the usual shapes with random weights, built by code: what channel removal must
//! be able to follow. Each is the published architecture (at scale 1), so that its
//! multiply-accumulates and parameters can be compared with those of others.

use paring::{
    AttrValue, DType, Dim, Graph, GraphError, Model, NewOp, Tensor, TensorError, ValueId, ValueType,
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
    /// There is no network of this name.
    Unknown(String),
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

/// How large a network is built.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The side of the images, a multiple of 32.
    pub side: usize,
    /// By how much all channel counts are divided: 1 for the published ones.
    pub divide: usize,
}

impl Scale {
    /// As published.
    pub const FULL: Scale = Scale {
        side: 224,
        divide: 1,
    };

    fn of(self, channels: usize) -> usize {
        (channels / self.divide).max(4)
    }
}

/// The names that [`build`] knows.
pub const NAMES: [&str; 13] = [
    "resnet50",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "densenet121",
    "inception",
    "shufflenet_v2",
    "resnext",
    "unet",
    "yolo",
    "vit",
    "bert",
    "shared",
];

/// Builds a network by name.
pub fn build(name: &str, scale: Scale) -> Result<Model, Error> {
    let net = Net::new(name);
    match name {
        "resnet50" => net.resnet50(scale, 1),
        "resnext" => net.resnet50(scale, 32 / scale.divide.clamp(1, 8)),
        "mobilenet_v1" => net.mobilenet_v1(scale),
        "mobilenet_v2" => net.mobilenet_v2(scale),
        "mobilenet_v3" => net.mobilenet_v3(scale),
        "densenet121" => net.densenet(scale),
        "inception" => net.inception(scale),
        "shufflenet_v2" => net.shufflenet(scale),
        "unet" => net.unet(scale),
        "yolo" => net.yolo(scale),
        "vit" => net.vit(scale),
        "bert" => net.bert(scale),
        "shared" => net.shared(scale),
        other => Err(Error::Unknown(other.to_owned())),
    }
}

/// A value with its channels.
#[derive(Clone, Copy)]
struct Map {
    v: ValueId,
    c: usize,
}

/// A convolution.
#[derive(Clone, Copy)]
struct Conv {
    out: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

fn conv(out: usize, kernel: usize, stride: usize) -> Conv {
    Conv {
        out,
        kernel,
        stride,
        groups: 1,
    }
}

struct Net {
    g: Graph,
    random: Random,
    count: usize,
}

type Made<T> = Result<T, Error>;

impl Net {
    fn new(name: &str) -> Net {
        Net {
            g: Graph::new(name),
            random: Random(0x5EED),
            count: 0,
        }
    }

    fn image(&mut self, side: usize) -> Made<Map> {
        let side = side as i64;
        let dims = [
            Dim::Param("batch".into()),
            Dim::Value(3),
            Dim::Value(side),
            Dim::Value(side),
        ];
        let ty = ValueType::tensor(DType::F32, dims);
        let v = self.g.add_input("input", Some(ty))?;
        Ok(Map { v, c: 3 })
    }

    fn op(&mut self, new: NewOp) -> Made<ValueId> {
        self.count += 1;
        let name = format!("{}_{}", new.op_type().to_lowercase(), self.count);
        let op = self.g.add_op(new.name(name.clone()).output(name))?;
        let missing = || GraphError::StillUsed("an operator without output".to_owned());
        Ok(self.g.op(op).output(0).ok_or_else(missing)?)
    }

    fn unary(&mut self, op: &str, x: Map) -> Made<Map> {
        let v = self.op(NewOp::new(op).input(x.v))?;
        Ok(Map { v, ..x })
    }

    fn binary(&mut self, op: &str, x: Map, y: ValueId) -> Made<Map> {
        let v = self.op(NewOp::new(op).input(x.v).input(y))?;
        Ok(Map { v, ..x })
    }

    /// Random numbers around `center`, evenly spread up to `spread` away.
    fn random(&mut self, hint: &str, dims: &[usize], center: f32, spread: f32) -> Made<ValueId> {
        let count = dims.iter().product();
        let data: Vec<f32> = (0..count)
            .map(|_| center + spread * self.random.next())
            .collect();
        let tensor = Tensor::from_vec(dims.iter().copied(), data)?;
        Ok(self.g.add_constant(hint, tensor)?)
    }

    fn weight(&mut self, hint: &str, dims: &[usize], fan_in: usize) -> Made<ValueId> {
        // Uniform numbers with the variance of He et al., 2015.
        let spread = (6.0 / fan_in.max(1) as f32).sqrt();
        self.random(hint, dims, 0.0, spread)
    }

    fn ints(&mut self, hint: &str, all: &[i64]) -> Made<ValueId> {
        Ok(self.g.add_constant(hint, Tensor::vector(all.to_vec()))?)
    }

    fn kernel(&mut self, c: usize, conv: Conv) -> Made<ValueId> {
        let Conv {
            out,
            kernel,
            groups,
            ..
        } = conv;
        let taken = c / groups;
        let hint = format!("w_{}", self.count);
        self.weight(
            &hint,
            &[out, taken, kernel, kernel],
            taken * kernel * kernel,
        )
    }

    fn conv(&mut self, x: Map, conv: Conv) -> Made<Map> {
        let w = self.kernel(x.c, conv)?;
        self.conv_with(x, conv, w)
    }

    fn conv_with(&mut self, x: Map, conv: Conv, w: ValueId) -> Made<Map> {
        let pad = (conv.kernel / 2) as i64;
        let op = NewOp::new("Conv")
            .input(x.v)
            .input(w)
            .attr("pads", vec![pad; 4])
            .attr("strides", vec![conv.stride as i64; 2])
            .attr("group", conv.groups as i64);
        let v = self.op(op)?;
        Ok(Map { v, c: conv.out })
    }

    fn bn(&mut self, x: Map) -> Made<Map> {
        let mut op = NewOp::new("BatchNormalization").input(x.v);
        for (tag, center, spread) in [
            ("scale", 1.0, 0.5),
            ("shift", 0.0, 0.3),
            ("mean", 0.0, 0.2),
            ("var", 1.0, 0.5),
        ] {
            let hint = format!("{tag}_{}", self.count);
            op = op.input(self.random(&hint, &[x.c], center, spread)?);
        }
        let v = self.op(op)?;
        Ok(Map { v, ..x })
    }

    /// Convolution, BatchNormalization and an activation.
    fn block(&mut self, x: Map, conv: Conv, activation: &str) -> Made<Map> {
        let x = self.conv(x, conv)?;
        let x = self.bn(x)?;
        match activation {
            "" => Ok(x),
            "Silu" => {
                let gate = self.unary("Sigmoid", x)?;
                self.binary("Mul", x, gate.v)
            }
            "Relu6" => {
                let low = self.g.add_constant("low", Tensor::scalar(0f32))?;
                let high = self.g.add_constant("high", Tensor::scalar(6f32))?;
                let v = self.op(NewOp::new("Clip").input(x.v).input(low).input(high))?;
                Ok(Map { v, ..x })
            }
            activation => self.unary(activation, x),
        }
    }

    fn pool(&mut self, op: &str, x: Map, kernel: i64, stride: i64) -> Made<Map> {
        let pad = if kernel % 2 == 1 { kernel / 2 } else { 0 };
        let op = NewOp::new(op)
            .input(x.v)
            .attr("kernel_shape", vec![kernel; 2])
            .attr("strides", vec![stride; 2])
            .attr("pads", vec![pad; 4]);
        let v = self.op(op)?;
        Ok(Map { v, ..x })
    }

    fn concat(&mut self, all: &[Map], axis: i64) -> Made<Map> {
        let op = NewOp::new("Concat")
            .inputs(all.iter().map(|m| Some(m.v)))
            .attr("axis", axis);
        let v = self.op(op)?;
        let c = all.iter().map(|m| m.c).sum();
        Ok(Map { v, c })
    }

    fn dense(&mut self, x: Map, out: usize) -> Made<Map> {
        let w = self.weight("fc_w", &[out, x.c], x.c)?;
        let b = self.random("fc_b", &[out], 0.0, 0.1)?;
        let op = NewOp::new("Gemm").input(x.v).input(w).input(b);
        let v = self.op(op.attr("transB", 1i64))?;
        Ok(Map { v, c: out })
    }

    fn classify(mut self, x: Map, classes: usize) -> Made<Model> {
        let x = self.unary("GlobalAveragePool", x)?;
        let x = self.unary("Flatten", x)?;
        let x = self.dense(x, classes)?;
        self.finish(&[(x, &["batch", "*"])])
    }

    fn finish(mut self, outputs: &[(Map, &[&str])]) -> Made<Model> {
        for (i, (x, dims)) in outputs.iter().enumerate() {
            let name = if outputs.len() == 1 {
                "output".to_owned()
            } else {
                format!("output_{i}")
            };
            self.g.rename_value(x.v, name)?;
            let dims = dims.iter().map(|d| match (*d, d.parse()) {
                ("*", _) => Dim::Value(x.c as i64),
                (_, Ok(n)) => Dim::Value(n),
                (name, _) => Dim::Param(name.into()),
            });
            let ty = ValueType::tensor(DType::F32, dims);
            self.g.set_type(x.v, Some(ty))?;
            self.g.add_output(x.v)?;
        }
        Ok(Model::new(self.g, 17))
    }

    /// He et al., 2016; with groups Xie et al., 2017 (32 groups of 4 channels).
    fn resnet50(mut self, scale: Scale, groups: usize) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(64), 7, 2), "Relu")?;
        x = self.pool("MaxPool", x, 3, 2)?;
        for (stage, blocks) in [3usize, 4, 6, 3].into_iter().enumerate() {
            let wide = if groups > 1 { 2 } else { 1 };
            let (inner, out) = (scale.of((64 * wide) << stage), scale.of(256 << stage));
            for i in 0..blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let y = self.block(x, conv(inner, 1, 1), "Relu")?;
                let middle = Conv {
                    groups,
                    ..conv(inner, 3, stride)
                };
                let y = self.block(y, middle, "Relu")?;
                let y = self.block(y, conv(out, 1, 1), "")?;
                let skip = match i {
                    0 => self.block(x, conv(out, 1, stride), "")?,
                    _ => x,
                };
                let sum = self.binary("Add", y, skip.v)?;
                x = self.unary("Relu", sum)?;
            }
        }
        self.classify(x, 1000)
    }

    fn depthwise(&mut self, x: Map, kernel: usize, stride: usize, activation: &str) -> Made<Map> {
        let conv = Conv {
            groups: x.c,
            ..conv(x.c, kernel, stride)
        };
        self.block(x, conv, activation)
    }

    /// Howard et al., 2017.
    fn mobilenet_v1(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(32), 3, 2), "Relu")?;
        for (out, repeats, stride) in [
            (64usize, 1, 1usize),
            (128, 1, 2),
            (128, 1, 1),
            (256, 1, 2),
            (256, 1, 1),
            (512, 1, 2),
            (512, 5, 1),
            (1024, 1, 2),
            (1024, 1, 1),
        ] {
            for _ in 0..repeats {
                x = self.depthwise(x, 3, stride, "Relu")?;
                x = self.block(x, conv(scale.of(out), 1, 1), "Relu")?;
            }
        }
        self.classify(x, 1000)
    }

    /// Sandler et al., 2018.
    fn mobilenet_v2(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(32), 3, 2), "Relu6")?;
        for (expand, out, repeats, stride) in [
            (1usize, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ] {
            for i in 0..repeats {
                let mut y = x;
                if expand > 1 {
                    y = self.block(y, conv(x.c * expand, 1, 1), "Relu6")?;
                }
                let stride = if i == 0 { stride } else { 1 };
                y = self.depthwise(y, 3, stride, "Relu6")?;
                y = self.block(y, conv(scale.of(out), 1, 1), "")?;
                x = match stride == 1 && y.c == x.c && i > 0 {
                    true => self.binary("Add", y, x.v)?,
                    false => y,
                };
            }
        }
        let x = self.block(x, conv(scale.of(1280), 1, 1), "Relu6")?;
        self.classify(x, 1000)
    }

    fn squeeze_excite(&mut self, x: Map) -> Made<Map> {
        let pooled = self.unary("GlobalAveragePool", x)?;
        let inner = self.conv(pooled, conv((x.c / 4).max(4), 1, 1))?;
        let inner = self.unary("Relu", inner)?;
        let gate = self.conv(inner, conv(x.c, 1, 1))?;
        let gate = self.unary("HardSigmoid", gate)?;
        self.binary("Mul", x, gate.v)
    }

    /// Howard et al., 2019, the large one.
    fn mobilenet_v3(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(16), 3, 2), "HardSwish")?;
        for (kernel, expand, out, se, hard, stride) in [
            (3usize, 16usize, 16usize, false, false, 1usize),
            (3, 64, 24, false, false, 2),
            (3, 72, 24, false, false, 1),
            (5, 72, 40, true, false, 2),
            (5, 120, 40, true, false, 1),
            (5, 120, 40, true, false, 1),
            (3, 240, 80, false, true, 2),
            (3, 200, 80, false, true, 1),
            (3, 184, 80, false, true, 1),
            (3, 184, 80, false, true, 1),
            (3, 480, 112, true, true, 1),
            (3, 672, 112, true, true, 1),
            (5, 672, 160, true, true, 2),
            (5, 960, 160, true, true, 1),
            (5, 960, 160, true, true, 1),
        ] {
            let activation = if hard { "HardSwish" } else { "Relu" };
            let mut y = self.block(x, conv(scale.of(expand), 1, 1), activation)?;
            y = self.depthwise(y, kernel, stride, activation)?;
            if se {
                y = self.squeeze_excite(y)?;
            }
            y = self.block(y, conv(scale.of(out), 1, 1), "")?;
            x = match stride == 1 && y.c == x.c {
                true => self.binary("Add", y, x.v)?,
                false => y,
            };
        }
        let x = self.block(x, conv(scale.of(960), 1, 1), "HardSwish")?;
        let x = self.unary("GlobalAveragePool", x)?;
        let x = self.conv(x, conv(scale.of(1280), 1, 1))?;
        let x = self.unary("HardSwish", x)?;
        let x = self.unary("Flatten", x)?;
        let x = self.dense(x, 1000)?;
        self.finish(&[(x, &["batch", "*"])])
    }

    /// Huang et al., 2017: growth 32, blocks of 6, 12, 24 and 16 layers.
    fn densenet(mut self, scale: Scale) -> Made<Model> {
        let growth = scale.of(32);
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(2 * growth, 7, 2), "Relu")?;
        x = self.pool("MaxPool", x, 3, 2)?;
        for (stage, layers) in [6usize, 12, 24, 16].into_iter().enumerate() {
            if stage > 0 {
                let y = self.bn(x)?;
                let y = self.unary("Relu", y)?;
                let y = self.conv(y, conv(x.c / 2, 1, 1))?;
                x = self.pool("AveragePool", y, 2, 2)?;
            }
            for _ in 0..layers {
                let y = self.bn(x)?;
                let y = self.unary("Relu", y)?;
                let y = self.block(y, conv(4 * growth, 1, 1), "Relu")?;
                let y = self.conv(y, conv(growth, 3, 1))?;
                x = self.concat(&[x, y], 1)?;
            }
        }
        let x = self.bn(x)?;
        let x = self.unary("Relu", x)?;
        self.classify(x, 1000)
    }

    /// Szegedy et al., 2015 (GoogLeNet), with BatchNormalization.
    fn inception(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(64), 7, 2), "Relu")?;
        x = self.pool("MaxPool", x, 3, 2)?;
        x = self.block(x, conv(scale.of(64), 1, 1), "Relu")?;
        x = self.block(x, conv(scale.of(192), 3, 1), "Relu")?;
        x = self.pool("MaxPool", x, 3, 2)?;
        for (i, [a, b, c, d, e, f]) in [
            [64usize, 96, 128, 16, 32, 32],
            [128, 128, 192, 32, 96, 64],
            [192, 96, 208, 16, 48, 64],
            [160, 112, 224, 24, 64, 64],
            [128, 128, 256, 24, 64, 64],
            [112, 144, 288, 32, 64, 64],
            [256, 160, 320, 32, 128, 128],
            [256, 160, 320, 32, 128, 128],
            [384, 192, 384, 48, 128, 128],
        ]
        .into_iter()
        .enumerate()
        {
            if i == 2 || i == 7 {
                x = self.pool("MaxPool", x, 3, 2)?;
            }
            let one = self.block(x, conv(scale.of(a), 1, 1), "Relu")?;
            let three = self.block(x, conv(scale.of(b), 1, 1), "Relu")?;
            let three = self.block(three, conv(scale.of(c), 3, 1), "Relu")?;
            let five = self.block(x, conv(scale.of(d), 1, 1), "Relu")?;
            let five = self.block(five, conv(scale.of(e), 5, 1), "Relu")?;
            let pooled = self.pool("MaxPool", x, 3, 1)?;
            let pooled = self.block(pooled, conv(scale.of(f), 1, 1), "Relu")?;
            x = self.concat(&[one, three, five, pooled], 1)?;
        }
        self.classify(x, 1000)
    }

    /// The two halves of the channels, interleaved.
    fn shuffle(&mut self, x: Map, side: usize) -> Made<Map> {
        let (half, side) = ((x.c / 2) as i64, side as i64);
        let apart = self.ints("apart", &[-1, 2, half, side, side])?;
        let v = self.op(NewOp::new("Reshape").input(x.v).input(apart))?;
        let perm = NewOp::new("Transpose").attr("perm", vec![0i64, 2, 1, 3, 4]);
        let v = self.op(perm.input(v))?;
        let together = self.ints("together", &[-1, 2 * half, side, side])?;
        let v = self.op(NewOp::new("Reshape").input(v).input(together))?;
        Ok(Map { v, ..x })
    }

    /// Ma et al., 2018.
    fn shufflenet(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(24), 3, 2), "Relu")?;
        x = self.pool("MaxPool", x, 3, 2)?;
        let mut side = scale.side / 4;
        for (out, repeats) in [(116usize, 4usize), (232, 8), (464, 4)] {
            let half = scale.of(out / 2);
            side /= 2;
            for i in 0..repeats {
                let (keep, work) = match i {
                    0 => (x, x),
                    _ => self.halves(x)?,
                };
                let keep = match i {
                    0 => {
                        let y = self.depthwise(keep, 3, 2, "")?;
                        self.block(y, conv(half, 1, 1), "Relu")?
                    }
                    _ => keep,
                };
                let stride = if i == 0 { 2 } else { 1 };
                let y = self.block(work, conv(half, 1, 1), "Relu")?;
                let y = self.depthwise(y, 3, stride, "")?;
                let y = self.block(y, conv(half, 1, 1), "Relu")?;
                let joint = self.concat(&[keep, y], 1)?;
                x = self.shuffle(joint, side)?;
            }
        }
        let x = self.block(x, conv(scale.of(1024), 1, 1), "Relu")?;
        self.classify(x, 1000)
    }

    fn halves(&mut self, x: Map) -> Made<(Map, Map)> {
        self.count += 1;
        let half = x.c / 2;
        let sizes = self.ints("halves", &[half as i64, half as i64])?;
        let name = format!("split_{}", self.count);
        let op = NewOp::new("Split").name(name.clone()).attr("axis", 1i64);
        let op = op.input(x.v).input(sizes);
        let op = op.output(format!("{name}_a")).output(format!("{name}_b"));
        let op = self.g.add_op(op)?;
        let missing = || GraphError::StillUsed("a Split without outputs".to_owned());
        let a = self.g.op(op).output(0).ok_or_else(missing)?;
        let b = self.g.op(op).output(1).ok_or_else(missing)?;
        Ok((Map { v: a, c: half }, Map { v: b, c: half }))
    }

    /// Ronneberger et al., 2015, with padding.
    fn unet(mut self, scale: Scale) -> Made<Model> {
        let mut x = self.image(scale.side)?;
        let mut skips = Vec::new();
        for out in [64usize, 128, 256, 512] {
            x = self.block(x, conv(scale.of(out), 3, 1), "Relu")?;
            x = self.block(x, conv(scale.of(out), 3, 1), "Relu")?;
            skips.push(x);
            x = self.pool("MaxPool", x, 2, 2)?;
        }
        x = self.block(x, conv(scale.of(1024), 3, 1), "Relu")?;
        x = self.block(x, conv(scale.of(1024), 3, 1), "Relu")?;
        while let Some(skip) = skips.pop() {
            let w = self.weight("up_w", &[x.c, skip.c, 2, 2], x.c)?;
            let b = self.random("up_b", &[skip.c], 0.0, 0.1)?;
            let op = NewOp::new("ConvTranspose").input(x.v).input(w).input(b);
            let v = self.op(op.attr("strides", vec![2i64; 2]))?;
            let up = Map { v, c: skip.c };
            x = self.concat(&[skip, up], 1)?;
            x = self.block(x, conv(skip.c, 3, 1), "Relu")?;
            x = self.block(x, conv(skip.c, 3, 1), "Relu")?;
        }
        let x = self.conv(x, conv(2, 1, 1))?;
        let side = scale.side.to_string();
        self.finish(&[(x, &["batch", "*", &side, &side])])
    }

    /// Two convolutions whose input and all whose outputs are joined.
    fn cross_stage(&mut self, x: Map, out: usize, repeats: usize, add: bool) -> Made<Map> {
        let y = self.block(x, conv(out, 1, 1), "Silu")?;
        let (a, b) = self.halves(y)?;
        let mut all = vec![a, b];
        let mut last = b;
        for _ in 0..repeats {
            let y = self.block(last, conv(b.c, 3, 1), "Silu")?;
            let y = self.block(y, conv(b.c, 3, 1), "Silu")?;
            last = match add {
                true => self.binary("Add", y, last.v)?,
                false => y,
            };
            all.push(last);
        }
        let joint = self.concat(&all, 1)?;
        self.block(joint, conv(out, 1, 1), "Silu")
    }

    fn upsampled(&mut self, x: Map) -> Made<Map> {
        let scales = Tensor::vector(vec![1f32, 1.0, 2.0, 2.0]);
        let scales = self.g.add_constant("scales", scales)?;
        let op = NewOp::new("Resize").input(x.v).optional_input(None);
        let op = op.input(scales).attr("mode", AttrValue::from("nearest"));
        let op = op.attr(
            "coordinate_transformation_mode",
            AttrValue::from("asymmetric"),
        );
        let v = self.op(op.attr("nearest_mode", AttrValue::from("floor")))?;
        Ok(Map { v, ..x })
    }

    /// A backbone and a neck as in YOLOv8 (nano), with three outputs.
    fn yolo(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(16), 3, 2), "Silu")?;
        let mut levels = Vec::new();
        for (out, repeats) in [(32usize, 1usize), (64, 2), (128, 2), (256, 1)] {
            x = self.block(x, conv(scale.of(out), 3, 2), "Silu")?;
            x = self.cross_stage(x, scale.of(out), repeats, true)?;
            levels.push(x);
        }
        let y = self.block(x, conv(x.c / 2, 1, 1), "Silu")?;
        let mut pools = vec![y];
        for _ in 0..3 {
            let last = pools[pools.len() - 1];
            pools.push(self.pool("MaxPool", last, 5, 1)?);
        }
        let joint = self.concat(&pools, 1)?;
        let large = self.block(joint, conv(x.c, 1, 1), "Silu")?;
        let up = self.upsampled(large)?;
        let joint = self.concat(&[up, levels[2]], 1)?;
        let middle = self.cross_stage(joint, levels[2].c, 1, false)?;
        let up = self.upsampled(middle)?;
        let joint = self.concat(&[up, levels[1]], 1)?;
        let small = self.cross_stage(joint, levels[1].c, 1, false)?;
        let down = self.block(small, conv(small.c, 3, 2), "Silu")?;
        let joint = self.concat(&[down, middle], 1)?;
        let middle = self.cross_stage(joint, middle.c, 1, false)?;
        let down = self.block(middle, conv(middle.c, 3, 2), "Silu")?;
        let joint = self.concat(&[down, large], 1)?;
        let large = self.cross_stage(joint, large.c, 1, false)?;
        let mut heads = Vec::new();
        for level in [small, middle, large] {
            let y = self.block(level, conv(level.c, 3, 1), "Silu")?;
            heads.push(self.conv(y, conv(144, 1, 1))?);
        }
        let sides: Vec<String> = [8, 16, 32]
            .iter()
            .map(|s| (scale.side / s).to_string())
            .collect();
        let dims: Vec<[&str; 4]> = sides.iter().map(|s| ["batch", "*", s, s]).collect();
        let outputs: Vec<(Map, &[&str])> = heads
            .into_iter()
            .zip(&dims)
            .map(|(h, d)| (h, &d[..]))
            .collect();
        self.finish(&outputs)
    }

    /// A product with a weight, and a bias.
    fn linear(&mut self, x: Map, out: usize) -> Made<Map> {
        let hint = format!("w_{}", self.count);
        let w = self.weight(&hint, &[x.c, out], 3 * x.c)?;
        let b = self.random("b", &[out], 0.0, 0.1)?;
        let v = self.op(NewOp::new("MatMul").input(x.v).input(w))?;
        self.binary("Add", Map { v, c: out }, b)
    }

    fn layer_norm(&mut self, x: Map) -> Made<Map> {
        let scale = self.random("ln_scale", &[x.c], 1.0, 0.3)?;
        let bias = self.random("ln_bias", &[x.c], 0.0, 0.1)?;
        let op = NewOp::new("LayerNormalization").input(x.v);
        let v = self.op(op.input(scale).input(bias).attr("axis", -1i64))?;
        Ok(Map { v, ..x })
    }

    fn gelu(&mut self, x: Map) -> Made<Map> {
        let constant = |net: &mut Net, v: f32| net.g.add_constant("c", Tensor::scalar(v));
        let root = constant(self, 2f32.sqrt())?;
        let y = self.binary("Div", x, root)?;
        let y = self.unary("Erf", y)?;
        let one = constant(self, 1.0)?;
        let y = self.binary("Add", y, one)?;
        let y = self.binary("Mul", x, y.v)?;
        let half = constant(self, 0.5)?;
        self.binary("Mul", y, half)
    }

    fn attend(&mut self, q: ValueId, k: ValueId, v: ValueId, width: usize) -> Made<ValueId> {
        let scores = self.op(NewOp::new("MatMul").input(q).input(k))?;
        let scale = Tensor::scalar((width as f32).sqrt());
        let scale = self.g.add_constant("root", scale)?;
        let scores = self.op(NewOp::new("Div").input(scores).input(scale))?;
        let shares = self.op(NewOp::new("Softmax").input(scores).attr("axis", -1i64))?;
        self.op(NewOp::new("MatMul").input(shares).input(v))
    }

    fn perceptron(&mut self, x: Map) -> Made<Map> {
        let y = self.linear(x, 4 * x.c)?;
        let y = self.gelu(y)?;
        self.linear(y, x.c)
    }

    fn transpose(&mut self, v: ValueId, perm: &[i64]) -> Made<ValueId> {
        self.op(NewOp::new("Transpose").input(v).attr("perm", perm.to_vec()))
    }

    /// Dosovitskiy et al., 2021: tiny, patches of 16, query, key and value in one matrix.
    fn vit(mut self, scale: Scale) -> Made<Model> {
        let (heads, width) = (3usize, (64 / scale.divide).max(8));
        let c = heads * width;
        let patches = (scale.side / 16) * (scale.side / 16);
        let x = self.image(scale.side)?;
        let w = self.weight("patch_w", &[c, 3, 16, 16], 768)?;
        let op = NewOp::new("Conv").input(x.v).input(w);
        let v = self.op(op.attr("strides", vec![16i64; 2]))?;
        let flat = self.ints("flat", &[0, c as i64, -1])?;
        let v = self.op(NewOp::new("Reshape").input(v).input(flat))?;
        let v = self.transpose(v, &[0, 2, 1])?;
        let class = self.random("class_token", &[1, 1, c], 0.0, 1.0)?;
        let shape = self.op(NewOp::new("Shape").input(v))?;
        let first = self.ints("first", &[0])?;
        let batch = self.op(NewOp::new("Gather").input(shape).input(first))?;
        let rest = self.ints("rest", &[1, c as i64])?;
        let target = NewOp::new("Concat").input(batch).input(rest);
        let target = self.op(target.attr("axis", 0i64))?;
        let class = self.op(NewOp::new("Expand").input(class).input(target))?;
        let x = self.concat(&[Map { v: class, c: 0 }, Map { v, c }], 1)?;
        let places = self.random("places", &[1, patches + 1, c], 0.0, 0.1)?;
        let mut x = self.binary("Add", x, places)?;
        for _ in 0..12 / scale.divide.clamp(1, 6) {
            let y = self.layer_norm(x)?;
            let y = self.linear(y, 3 * c)?;
            let shape = [0, 0, 3, heads as i64, width as i64];
            let shape = self.ints("qkv_shape", &shape)?;
            let y = self.op(NewOp::new("Reshape").input(y.v).input(shape))?;
            let y = self.transpose(y, &[2, 0, 3, 1, 4])?;
            let mut parts = Vec::new();
            for i in 0..3i64 {
                let at = self.g.add_constant("part", Tensor::scalar(i))?;
                let op = NewOp::new("Gather").input(y).input(at).attr("axis", 0i64);
                parts.push(self.op(op)?);
            }
            let k = self.transpose(parts[1], &[0, 1, 3, 2])?;
            let y = self.attend(parts[0], k, parts[2], width)?;
            let y = self.transpose(y, &[0, 2, 1, 3])?;
            let shape = self.ints("joined", &[0, 0, c as i64])?;
            let v = self.op(NewOp::new("Reshape").input(y).input(shape))?;
            let y = self.linear(Map { v, c }, c)?;
            x = self.binary("Add", y, x.v)?;
            let y = self.layer_norm(x)?;
            let y = self.perceptron(y)?;
            x = self.binary("Add", y, x.v)?;
        }
        let x = self.layer_norm(x)?;
        let at = self.g.add_constant("class", Tensor::scalar(0i64))?;
        let v = self.op(NewOp::new("Gather").input(x.v).input(at).attr("axis", 1i64))?;
        let x = self.dense(Map { v, c }, 1000)?;
        self.finish(&[(x, &["batch", "*"])])
    }

    /// Heads of a stream: [batch, length, heads * width] to [batch, heads, length, width], with
    /// a target that is computed from the shape of the input.
    fn heads(&mut self, x: Map, (batch, length): (ValueId, ValueId), heads: i64) -> Made<ValueId> {
        let rest = self.ints("heads", &[heads, x.c as i64 / heads])?;
        let target = NewOp::new("Concat").input(batch).input(length).input(rest);
        let target = self.op(target.attr("axis", 0i64))?;
        let y = self.op(NewOp::new("Reshape").input(x.v).input(target))?;
        self.transpose(y, &[0, 2, 1, 3])
    }

    /// Devlin et al., 2019, small: words, a mask, shapes computed as exporters write them.
    fn bert(mut self, scale: Scale) -> Made<Model> {
        let (heads, width) = (8i64, (64 / scale.divide).max(8));
        let c = heads as usize * width;
        let open = |name: &str| Dim::Param(name.into());
        let ty = |dtype| ValueType::tensor(dtype, [open("batch"), open("length")]);
        let words = self.g.add_input("words", Some(ty(DType::I64)))?;
        let mask = self.g.add_input("mask", Some(ty(DType::F32)))?;
        let table = self.random("word_table", &[1000, c], 0.0, 1.0)?;
        let v = self.op(NewOp::new("Gather").input(table).input(words))?;
        let shape = self.op(NewOp::new("Shape").input(words))?;
        let at = |net: &mut Net, i: i64| -> Made<ValueId> {
            let index = net.ints("at", &[i])?;
            net.op(NewOp::new("Gather").input(shape).input(index))
        };
        let (batch, length) = (at(&mut self, 0)?, at(&mut self, 1)?);
        let places = self.random("place_table", &[1, 128, c], 0.0, 0.3)?;
        let zero = self.ints("zero", &[0])?;
        let one = self.ints("one", &[1])?;
        let op = NewOp::new("Slice").input(places).input(zero).input(length);
        let places = self.op(op.input(one))?;
        let x = self.binary("Add", Map { v, c }, places)?;
        let mut x = self.layer_norm(x)?;
        let axes = self.ints("axes", &[1, 2])?;
        let mask = self.op(NewOp::new("Unsqueeze").input(mask).input(axes))?;
        for _ in 0..4 / scale.divide.clamp(1, 2) {
            let q = self.linear(x, c)?;
            let k = self.linear(x, c)?;
            let y = self.linear(x, c)?;
            let q = self.heads(q, (batch, length), heads)?;
            let k = self.heads(k, (batch, length), heads)?;
            let y = self.heads(y, (batch, length), heads)?;
            let k = self.transpose(k, &[0, 1, 3, 2])?;
            let scores = self.op(NewOp::new("MatMul").input(q).input(k))?;
            let scores = self.op(NewOp::new("Add").input(scores).input(mask))?;
            let shares = NewOp::new("Softmax").input(scores).attr("axis", -1i64);
            let shares = self.op(shares)?;
            let y = self.op(NewOp::new("MatMul").input(shares).input(y))?;
            let y = self.transpose(y, &[0, 2, 1, 3])?;
            let rest = self.ints("joined", &[c as i64])?;
            let target = NewOp::new("Concat").input(batch).input(length).input(rest);
            let target = self.op(target.attr("axis", 0i64))?;
            let v = self.op(NewOp::new("Reshape").input(y).input(target))?;
            let y = self.linear(Map { v, c }, c)?;
            let sum = self.binary("Add", y, x.v)?;
            x = self.layer_norm(sum)?;
            let y = self.perceptron(x)?;
            let sum = self.binary("Add", y, x.v)?;
            x = self.layer_norm(sum)?;
        }
        let x = self.linear(x, 16)?;
        self.finish(&[(x, &["batch", "length", "*"])])
    }

    /// One head of convolutions for three sizes of image, as detectors have it, and a block that
    /// is applied twice.
    fn shared(mut self, scale: Scale) -> Made<Model> {
        let x = self.image(scale.side)?;
        let mut x = self.block(x, conv(scale.of(64), 3, 2), "Relu")?;
        let twice = conv(x.c, 3, 1);
        let w = self.kernel(x.c, twice)?;
        for _ in 0..2 {
            let y = self.conv_with(x, twice, w)?;
            let y = self.unary("Relu", y)?;
            x = self.binary("Add", y, x.v)?;
        }
        let neck = scale.of(128);
        let mut levels = Vec::new();
        for out in [128usize, 256, 512] {
            x = self.block(x, conv(scale.of(out), 3, 2), "Relu")?;
            levels.push(self.block(x, conv(neck, 1, 1), "")?);
        }
        let first = conv(neck, 3, 1);
        let second = conv(36, 3, 1);
        let (w1, w2) = (self.kernel(neck, first)?, self.kernel(neck, second)?);
        let mut heads = Vec::new();
        for level in levels {
            let y = self.conv_with(level, first, w1)?;
            let y = self.unary("Relu", y)?;
            heads.push(self.conv_with(y, second, w2)?);
        }
        let sides: Vec<String> = [4, 8, 16]
            .iter()
            .map(|s| (scale.side / s).to_string())
            .collect();
        let dims: Vec<[&str; 4]> = sides.iter().map(|s| ["batch", "*", s, s]).collect();
        let outputs: Vec<(Map, &[&str])> = heads
            .into_iter()
            .zip(&dims)
            .map(|(h, d)| (h, &d[..]))
            .collect();
        self.finish(&outputs)
    }
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

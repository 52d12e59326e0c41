//! The sizes to run a model with, where it leaves them open.
//!
//! Sizes come from the user (`--input`, `--dim`), else from what the graph says about its inputs
//! (the weights of the first operators), else from what such axes usually are. Every guess is
//! said aloud.

use std::collections::BTreeMap;

use paring_ir::engine::{CompileOptions, Cut, Engine, EngineError};
use paring_ir::tensor::Dims;
use paring_ir::{DType, Dim, Graph, Model, OpId, Port, ValueId, escape};

use super::{DataError, RandomInputs, input_constant, open_shape, suggest};

/// What the user says about sizes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShapeOptions {
    /// Whole shapes by input name.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// Sizes by symbol.
    pub dims: BTreeMap<String, usize>,
}

impl ShapeOptions {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.dims.is_empty()
    }

    /// Reads `name=1,3,224,224`; the name may hold `=`.
    pub fn parse_input(text: &str) -> Result<(String, Vec<usize>), String> {
        let wrong = || {
            format!(
                "\"{}\" is not NAME=DIMS, such as x=1,3,224,224",
                escape(text)
            )
        };
        let (name, dims) = text.rsplit_once('=').ok_or_else(wrong)?;
        if dims.is_empty() {
            return Ok((name.to_string(), Vec::new()));
        }
        let dims = dims.split(['x', ',']).map(|d| d.trim().parse::<usize>());
        let dims = dims
            .collect::<Result<Vec<usize>, _>>()
            .map_err(|_| wrong())?;
        if dims.contains(&0) {
            return Err(nothing_to_run(text));
        }
        Ok((name.to_string(), dims))
    }

    /// Reads `batch=1`; the symbol may hold `=`.
    pub fn parse_dim(text: &str) -> Result<(String, usize), String> {
        let wrong = || format!("\"{}\" is not SYMBOL=SIZE, such as batch=1", escape(text));
        let (name, size) = text.rsplit_once('=').ok_or_else(wrong)?;
        let size = size.trim().parse().map_err(|_| wrong())?;
        if size == 0 {
            return Err(nothing_to_run(text));
        }
        Ok((name.to_string(), size))
    }
}

/// Outputs of no elements are always equal, so a size of 0 would validate anything.
fn nothing_to_run(text: &str) -> String {
    format!(
        "\"{}\" has a size of 0, with which nothing is computed; sizes start at 1",
        escape(text)
    )
}

/// A size that nobody fixed, and another that it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Free {
    size: usize,
    other: usize,
}

/// Guesses for what a model does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Guess {
    height: Free,
    width: Free,
    sequence: Free,
}

const fn free(size: usize, other: usize) -> Free {
    Free { size, other }
}

impl Guess {
    const fn image(height: Free, width: Free) -> Guess {
        Guess {
            height,
            width,
            ..Guess::USUAL
        }
    }

    const fn sequence(sequence: Free) -> Guess {
        Guess {
            sequence,
            ..Guess::USUAL
        }
    }

    /// Networks for images halve them five times, so multiples of 32.
    const USUAL: Guess = Guess {
        height: free(224, 256),
        width: free(224, 256),
        sequence: free(128, 96),
    };

    /// Other sizes of images that models are made for, lines of text first: their height is
    /// fixed inside although the file leaves it open.
    const IMAGES: [Guess; 9] = [
        Guess::image(free(48, 48), free(320, 480)),
        Guess::image(free(32, 32), free(320, 480)),
        Guess::image(free(32, 32), free(100, 160)),
        Guess::image(free(256, 320), free(256, 320)),
        Guess::image(free(299, 299), free(299, 299)),
        Guess::image(free(320, 640), free(320, 640)),
        Guess::image(free(512, 512), free(512, 512)),
        Guess::image(free(640, 640), free(640, 640)),
        Guess::image(free(28, 32), free(28, 32)),
    ];

    const SEQUENCES: [Guess; 5] = [
        Guess::sequence(free(512, 512)),
        Guess::sequence(free(256, 256)),
        Guess::sequence(free(64, 64)),
        Guess::sequence(free(16, 16)),
        Guess::sequence(free(1, 1)),
    ];
}

/// The shapes of all inputs for one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunShapes {
    /// The shapes, in the order of the model's inputs.
    pub dims: Vec<Dims>,
    /// The sizes of the symbols.
    pub symbols: BTreeMap<String, usize>,
    /// What was guessed.
    pub notes: Vec<String>,
    second: Option<Vec<Dims>>,
    /// An image side or a sequence length was guessed.
    guessed: (bool, bool),
}

/// The size of a batch that nobody fixed.
const BATCH: Free = free(1, 2);
/// The length of a waveform.
const WAVE: Free = free(16000, 12000);

impl RunShapes {
    /// Settles the shapes of a model's inputs.
    pub fn resolve(model: &Model, options: &ShapeOptions) -> Result<RunShapes, DataError> {
        RunShapes::guess(model, options, &Guess::USUAL)
    }

    /// Settles the shapes of a model's inputs, and where a side of an image or the length of a
    /// sequence had to be guessed, lets the engine try: of the usual sizes the first one that runs
    /// is taken. When none runs it is the same as [`RunShapes::resolve`], and the engine will say why.
    pub fn settle(
        engine: &dyn Engine,
        model: &Model,
        options: &ShapeOptions,
    ) -> Result<RunShapes, DataError> {
        let usual = RunShapes::resolve(model, options)?;
        let (image, sequence) = usual.guessed;
        if (!image && !sequence) || usual.runs(engine, model).is_ok() {
            return Ok(usual);
        }
        let images = Guess::IMAGES.iter().filter(|_| image);
        let others = images.chain(Guess::SEQUENCES.iter().filter(|_| sequence));
        for guess in others {
            let mut shapes = RunShapes::guess(model, options, guess)?;
            if shapes.runs(engine, model).is_ok() {
                shapes
                    .notes
                    .push("the usual sizes don't run; these do".to_string());
                return Ok(shapes);
            }
        }
        Ok(usual)
    }

    fn runs(&self, engine: &dyn Engine, model: &Model) -> Result<(), EngineError> {
        let random = RandomInputs::new(model, self, 1, 0);
        let random = random.map_err(|e| EngineError::Data(e.to_string()))?;
        let cut = Cut::whole(model, self.dims.clone());
        let mut plan = engine.compile(&cut, CompileOptions::default())?;
        plan.run(&random.run(0)?).map(|_| ())
    }

    fn guess(model: &Model, options: &ShapeOptions, guess: &Guess) -> Result<RunShapes, DataError> {
        let mut resolver = Resolver {
            graph: &model.graph,
            options,
            usual: *guess,
            guessed: (false, false),
            symbols: BTreeMap::new(),
            notes: Vec::new(),
        };
        resolver.bind_symbols()?;
        let mut out = RunShapes::default();
        let mut second = Vec::new();
        for &v in model.graph.inputs() {
            let (dims, other) = resolver.input(v)?;
            out.dims.push(dims);
            second.push(other);
        }
        out.second = (second != out.dims).then_some(second);
        out.symbols = resolver
            .symbols
            .into_iter()
            .map(|(k, f)| (k, f.size))
            .collect();
        out.notes = resolver.notes;
        out.guessed = resolver.guessed;
        Ok(out)
    }

    /// The shapes of these inputs, all given.
    pub fn fixed(dims: Vec<Dims>) -> RunShapes {
        RunShapes {
            dims,
            ..RunShapes::default()
        }
    }

    /// Two shapes to validate a model with free sizes at; one when nothing is free.
    pub fn two_sizes(&self) -> Vec<RunShapes> {
        let mut out = vec![self.clone()];
        if let Some(second) = &self.second {
            out.push(RunShapes::fixed(second.clone()));
        }
        out
    }

    /// The size of axis 0 when all inputs that have one agree on it, else 1: the samples in a run.
    pub fn batch(&self) -> usize {
        let mut sizes = self.dims.iter().filter_map(|d| d.first().copied());
        match sizes.next() {
            Some(first) if sizes.all(|s| s == first) => first.max(1),
            _ => 1,
        }
    }
}

struct Resolver<'a> {
    graph: &'a Graph,
    options: &'a ShapeOptions,
    usual: Guess,
    guessed: (bool, bool),
    symbols: BTreeMap<String, Free>,
    notes: Vec<String>,
}

impl Resolver<'_> {
    fn name(&self, v: ValueId) -> String {
        self.graph.value(v).name().to_string()
    }

    fn shape_error(&self, v: ValueId, reason: impl Into<String>) -> DataError {
        DataError::Shape {
            input: escape(&self.name(v)),
            reason: reason.into(),
        }
    }

    fn shape(&self, v: ValueId) -> Option<Vec<Dim>> {
        let value = self.graph.value(v);
        let declared = value.declared_type().and_then(|t| t.shape());
        let declared = declared.map(open_shape);
        declared.or_else(|| {
            let dims = value.initializer()?.dims();
            Some(
                dims.iter()
                    .map(|&d| Dim::Value(i64::try_from(d).unwrap_or(i64::MAX)))
                    .collect(),
            )
        })
    }

    /// Takes up what the user says, and refuses what the model doesn't have.
    fn bind_symbols(&mut self) -> Result<(), DataError> {
        let names: Vec<String> = self.graph.inputs().iter().map(|&v| self.name(v)).collect();
        let mut symbols: Vec<String> = Vec::new();
        for &v in self.graph.inputs() {
            for d in self.shape(v).unwrap_or_default() {
                if let Dim::Param(p) = d
                    && !symbols.iter().any(|s| **s == *p)
                {
                    symbols.push(p.to_string());
                }
            }
        }
        let unknown = self.options.inputs.keys().find(|n| !names.contains(n));
        if let Some(name) = unknown {
            return Err(DataError::Unknown {
                what: "input",
                name: escape(name),
                hint: suggest(name, names.iter().map(String::as_str), "inputs"),
            });
        }
        for (name, &size) in &self.options.dims {
            if !symbols.contains(name) {
                return Err(DataError::Unknown {
                    what: "dimension",
                    name: escape(name),
                    hint: suggest(name, symbols.iter().map(String::as_str), "dimensions"),
                });
            }
            self.symbols
                .insert(name.clone(), Free { size, other: size });
        }
        for &v in self.graph.inputs() {
            if let Some(given) = self.options.inputs.get(&self.name(v)) {
                self.bind_given(v, given)?;
            }
        }
        Ok(())
    }

    fn bind_given(&mut self, v: ValueId, given: &[usize]) -> Result<(), DataError> {
        let Some(shape) = self.shape(v) else {
            return Ok(());
        };
        let shown: Vec<String> = shape.iter().map(ToString::to_string).collect();
        let mismatch = |at: String| {
            format!(
                "the shape {given:?} was given, and the model declares [{}]{at}",
                shown.join(", ")
            )
        };
        if shape.len() != given.len() {
            return Err(self.shape_error(v, mismatch(String::new())));
        }
        for (i, (d, &size)) in shape.iter().zip(given).enumerate() {
            match d {
                Dim::Value(_) if d.known() != Some(size) => {
                    return Err(
                        self.shape_error(v, mismatch(format!(", which differs on axis {i}")))
                    );
                }
                Dim::Param(p) => {
                    let before = self.symbols.insert(p.to_string(), free(size, size));
                    if before.is_some_and(|b| b.size != size) {
                        let reason = mismatch(format!(", where {} has two sizes", escape(p)));
                        return Err(self.shape_error(v, reason));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn input(&mut self, v: ValueId) -> Result<(Dims, Dims), DataError> {
        if let Some(given) = self.options.inputs.get(&self.name(v)) {
            let dims: Dims = given.iter().copied().collect();
            return Ok((dims.clone(), dims));
        }
        let Some(shape) = self.shape(v) else {
            let name = escape(&self.name(v));
            let reason = format!("its rank is not known; give its shape with --input {name}=...");
            return Err(self.shape_error(v, reason));
        };
        let (mut dims, mut other) = (Dims::new(), Dims::new());
        for (axis, d) in shape.iter().enumerate() {
            let size = match d {
                Dim::Value(_) => {
                    let size = d.known();
                    let size =
                        size.ok_or_else(|| self.shape_error(v, format!("axis {axis} is {d}")))?;
                    free(size, size)
                }
                Dim::Param(p) => match self.symbols.get(&**p) {
                    Some(known) => *known,
                    None => {
                        let guess = self.guess(v, &shape, axis);
                        self.notes
                            .push(format!("{} = {} (--dim {0}=...)", escape(p), guess.size));
                        self.symbols.insert(p.to_string(), guess);
                        guess
                    }
                },
                Dim::Unknown => {
                    let guess = self.guess(v, &shape, axis);
                    let name = escape(&self.name(v));
                    self.notes.push(format!(
                        "axis {axis} of \"{name}\" = {} (--input {name}=...)",
                        guess.size
                    ));
                    guess
                }
            };
            dims.push(size.size);
            other.push(size.other);
        }
        Ok((dims, other))
    }

    fn guess(&mut self, v: ValueId, shape: &[Dim], axis: usize) -> Free {
        if let Some(size) = weight_size(self.graph, v, axis, shape.len(), 0) {
            return free(size, size);
        }
        let symbol = match shape.get(axis) {
            Some(Dim::Param(p)) => p.to_lowercase(),
            _ => String::new(),
        };
        let says = |words: &[&str]| words.iter().any(|w| symbol.contains(w));
        if says(&["batch"]) || symbol == "n" || symbol == "b" || symbol == "bs" {
            return BATCH;
        }
        if says(&["height", "width"]) || symbol == "h" || symbol == "w" {
            return self.image_side(shape, axis);
        }
        if says(&["seq", "token", "time", "frame", "len"]) {
            return self.sequence();
        }
        let name = self.name(v).to_lowercase();
        let state = ["state", "hidden", "cell", "h0", "c0"]
            .iter()
            .any(|w| name.contains(w));
        // The state of a recurrent network is layers by batch by features.
        if state && shape.len() == 3 && axis == 1 {
            return BATCH;
        }
        let dtype = self.graph.value(v).declared_type().and_then(|t| t.dtype());
        self.usual(shape, axis, dtype)
    }

    fn sequence(&mut self) -> Free {
        self.guessed.1 = true;
        self.usual.sequence
    }

    /// What an axis of an input of this rank usually is.
    fn usual(&mut self, shape: &[Dim], axis: usize, dtype: Option<DType>) -> Free {
        let float = dtype.is_none_or(DType::is_float);
        let channels_last = shape.last().and_then(Dim::known).is_some_and(|c| c <= 4);
        match (shape.len(), axis) {
            (1, _) if float => WAVE,
            (_, 0) => BATCH,
            (4, 1) if !channels_last => free(3, 3),
            (4, _) => self.image_side(shape, axis),
            (5, 1) => free(3, 3),
            (5, _) => free(32, 64),
            _ => self.sequence(),
        }
    }

    /// A side of an image; where the other side is fixed and small, as for a line of text, a
    /// multiple of it.
    fn image_side(&mut self, shape: &[Dim], axis: usize) -> Free {
        let channels_last = shape.last().and_then(Dim::known).is_some_and(|c| c <= 4);
        let (height, width) = if channels_last { (1, 2) } else { (2, 3) };
        let across = if axis == height { width } else { height };
        let fixed = shape
            .get(across)
            .and_then(Dim::known)
            .filter(|_| shape.len() == 4);
        match fixed {
            Some(side) if (8..=64).contains(&side) => free(side * 4, side * 6),
            Some(side) if (65..=1024).contains(&side) => free(side, side),
            _ => {
                self.guessed.0 = true;
                if axis == height {
                    self.usual.height
                } else {
                    self.usual.width
                }
            }
        }
    }
}

/// The size that the weights of a consumer give to an axis of a value.
fn weight_size(graph: &Graph, v: ValueId, axis: usize, rank: usize, depth: usize) -> Option<usize> {
    if depth > 6 {
        return None;
    }
    graph.sorted_uses(v).into_iter().find_map(|u| match u.port {
        Port::Input(slot) => consumer_size(graph, u.op, slot, axis, rank, depth),
        _ => None,
    })
}

fn consumer_size(
    graph: &Graph,
    op: OpId,
    slot: u32,
    axis: usize,
    rank: usize,
    depth: usize,
) -> Option<usize> {
    let o = graph.op(op);
    if !o.domain().is_empty() || slot != 0 {
        return None;
    }
    let weight =
        |slot: usize, axis: usize| input_constant(graph, op, slot)?.dims().get(axis).copied();
    let last = rank.checked_sub(1)?;
    match &**o.op_type() {
        "Conv" if axis == 1 => {
            let group = usize::try_from(o.int_or("group", 1)).ok()?;
            weight(1, 1)?.checked_mul(group)
        }
        "ConvTranspose" if axis == 1 => weight(1, 0),
        "MatMul" if axis == last => {
            let w = input_constant(graph, op, 1)?;
            w.rank().checked_sub(2).and_then(|a| weight(1, a))
        }
        "Gemm" if rank == 2 => match (axis, o.int_or("transA", 0), o.int_or("transB", 0)) {
            (1, 0, 0) | (0, 1, 0) => weight(1, 0),
            (1, 0, _) | (0, 1, _) => weight(1, 1),
            _ => None,
        },
        "LSTM" | "GRU" | "RNN" if axis == 2 => weight(1, 2),
        "BatchNormalization" if axis == 1 => weight(1, 0),
        "Cast" | "Identity" | "Relu" => weight_size(graph, o.output(0)?, axis, rank, depth + 1),
        "Transpose" => {
            let to = match o.ints("perm") {
                Some(perm) => perm.iter().position(|&p| usize::try_from(p) == Ok(axis))?,
                None => last.checked_sub(axis)?,
            };
            weight_size(graph, o.output(0)?, to, rank, depth + 1)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use paring_ir::{NewOp, Tensor, ValueType};

    use super::*;

    fn symbol(name: &str) -> Dim {
        Dim::Param(name.into())
    }

    fn model(dtype: DType, dims: &[Dim], op: impl FnOnce(&mut Graph, ValueId)) -> Model {
        let mut g = Graph::new("main");
        let x = g
            .add_input("x", Some(ValueType::tensor(dtype, dims.to_vec())))
            .unwrap();
        op(&mut g, x);
        Model::new(g, 17)
    }

    fn dims(m: &Model, options: &ShapeOptions) -> Vec<usize> {
        RunShapes::resolve(m, options).unwrap().dims[0].to_vec()
    }

    #[test]
    fn images_take_channels_from_the_first_convolution() {
        let shape = [symbol("batch"), Dim::Unknown, symbol("h"), symbol("w")];
        let m = model(DType::F32, &shape, |g, x| {
            let w = g
                .add_constant("w", Tensor::from_vec([8, 1, 3, 3], vec![0f32; 72]).unwrap())
                .unwrap();
            g.add_op(NewOp::new("Conv").input(x).input(w).output("y"))
                .unwrap();
        });
        let shapes = RunShapes::resolve(&m, &ShapeOptions::default()).unwrap();
        assert_eq!(shapes.dims[0].as_slice(), [1, 1, 224, 224]);
        assert_eq!(shapes.notes[0], "batch = 1 (--dim batch=...)");
        let sizes = shapes.two_sizes();
        assert_eq!(sizes[1].dims[0].as_slice(), [2, 1, 256, 256]);
        assert_eq!(sizes[1].batch(), 2);
    }

    #[test]
    fn sizes_that_no_engine_takes_are_replaced_by_usual_ones_that_run() {
        let engine = crate::engine::TractEngine::new();
        // Minus one and a question mark are sizes that nobody knows, not a size and a symbol.
        let line = [Dim::Value(-1), Dim::Value(3), symbol("?"), symbol("?")];
        let build = |height: usize| {
            model(DType::F32, &line, |g, x| {
                let w = Tensor::from_vec([height, 1], vec![0.5f32; height]).unwrap();
                let w = g.add_constant("w", w).unwrap();
                let turned = NewOp::new("Transpose")
                    .input(x)
                    .attr("perm", vec![0i64, 1, 3, 2]);
                let turned = g.add_op(turned.output("t")).unwrap();
                let relu = NewOp::new("Softplus")
                    .input(g.op(turned).output(0).unwrap())
                    .output("r");
                let relu = g.add_op(relu).unwrap();
                let y = NewOp::new("MatMul")
                    .input(g.op(relu).output(0).unwrap())
                    .input(w)
                    .output("y");
                let y = g.add_op(y).unwrap();
                g.add_output(g.op(y).output(0).unwrap()).unwrap();
            })
        };
        let settle =
            |height| RunShapes::settle(&engine, &build(height), &ShapeOptions::default()).unwrap();
        let shapes = settle(48);
        assert_eq!(shapes.dims[0].as_slice(), [1, 3, 48, 320]);
        assert_eq!(shapes.two_sizes()[1].dims[0].as_slice(), [2, 3, 48, 480]);
        assert!(
            shapes
                .notes
                .last()
                .unwrap()
                .contains("the usual sizes don't run")
        );
        // Nothing usual runs: the first guess stays.
        assert_eq!(settle(77).dims[0].as_slice(), [1, 3, 224, 224]);
    }

    #[test]
    fn token_ids_text_lines_and_features() {
        let none = ShapeOptions::default();
        let ids = model(
            DType::I64,
            &[symbol("batch"), symbol("sequence_length")],
            |_, _| {},
        );
        assert_eq!(dims(&ids, &none), [1, 128]);
        let line = [Dim::Unknown, Dim::Value(3), Dim::Value(48), Dim::Unknown];
        assert_eq!(
            dims(&model(DType::F32, &line, |_, _| {}), &none),
            [1, 3, 48, 192]
        );
        let features = model(DType::F32, &[Dim::Unknown, Dim::Unknown], |g, x| {
            let w = g
                .add_constant("w", Tensor::from_vec([5, 2], vec![0f32; 10]).unwrap())
                .unwrap();
            g.add_op(NewOp::new("MatMul").input(x).input(w).output("y"))
                .unwrap();
        });
        assert_eq!(dims(&features, &none), [1, 5]);
    }

    #[test]
    fn what_the_user_says_holds_and_must_fit() {
        let m = model(DType::F32, &[symbol("batch"), Dim::Value(3)], |_, _| {});
        let mut options = ShapeOptions::default();
        options.dims.insert("batch".into(), 7);
        let shapes = RunShapes::resolve(&m, &options).unwrap();
        assert_eq!(shapes.dims[0].as_slice(), [7, 3]);
        assert_eq!(shapes.two_sizes().len(), 1);
        options.dims.insert("bach".into(), 1);
        let e = RunShapes::resolve(&m, &options).unwrap_err().to_string();
        assert!(
            e.contains("no dimension \"bach\"") && e.contains("did you mean \"batch\"?"),
            "{e}"
        );
        let given = |text: &str| {
            let (name, dims) = ShapeOptions::parse_input(text).unwrap();
            let inputs = BTreeMap::from([(name, dims)]);
            RunShapes::resolve(
                &m,
                &ShapeOptions {
                    inputs,
                    ..Default::default()
                },
            )
        };
        assert_eq!(given("x=2,3").unwrap().symbols["batch"], 2);
        let e = given("x=2,4").unwrap_err().to_string();
        assert!(
            e.contains("declares [batch, 3], which differs on axis 1"),
            "{e}"
        );
        assert!(given("x=2").is_err());
        assert!(
            given("y=2")
                .unwrap_err()
                .to_string()
                .contains("no input \"y\"")
        );
        assert!(ShapeOptions::parse_input("x=1,a").is_err());
        assert_eq!(
            ShapeOptions::parse_dim("a=b=3").unwrap(),
            ("a=b".to_string(), 3)
        );
    }
}

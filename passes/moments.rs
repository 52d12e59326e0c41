//! Second moments of what layers multiply, from calibration data that streams through.
//!
//! The error that a changed weight makes in the output of its layer is a quadratic form in the
//! second moments of the layer's inputs, so with them weights can be scored, refitted and
//! factorized without running the model again (LeCun et al., "Optimal Brain Damage", 1990;
//! Hassibi and Stork, "Second order derivatives for network pruning", 1992). Against a reference
//! model, cross moments lead to the weights that undo errors made further up.

use std::sync::Mutex;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use paring_ir::engine::{CompileOptions, EngineError};
use paring_ir::observe::{Mask, Watch};
use paring_ir::{Model, PassContext, PassError, Tensor, ValueId};
use rayon::prelude::*;

use crate::held_out::is_held_out;
use crate::layers::{Form, Layer, Source, Windows};

/// The moments of the inputs of a layer, over all columns that were seen.
#[derive(Clone, Debug)]
pub(crate) struct Moments {
    /// Columns for each block.
    pub(crate) count: u64,
    /// By block: the mean of `x x^T`, `cols` x `cols`.
    pub(crate) gram: Vec<Mat<f64>>,
    /// By block: the mean of `x`.
    pub(crate) mean: Vec<Vec<f64>>,
    /// Against the reference model, where there is one.
    pub(crate) reference: Option<Cross>,
}

/// Moments of a layer's inputs and those of the same layer in a reference model.
#[derive(Clone, Debug)]
pub(crate) struct Cross {
    /// By block: the mean of `x r^T`, `cols` x `cols` of the reference.
    pub(crate) cross: Vec<Mat<f64>>,
    /// By block: the mean of the reference's inputs `r`.
    pub(crate) mean: Vec<Vec<f64>>,
}

/// A layer to watch, and the layer of the reference model that it was made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    /// The layer.
    pub(crate) layer: &'a Layer,
    /// The same layer of the reference; its inputs may have more channels, not other positions.
    pub(crate) reference: Option<&'a Layer>,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// The first samples of the data, or all.
    pub(crate) samples: Option<usize>,
    /// Columns for each layer; more are thinned out evenly over samples and positions. `None`
    /// takes 32 for each of the layer's inputs, at least 16,384 and at most 262,144.
    pub(crate) columns: Option<usize>,
}

impl Budget {
    /// All samples and a number of columns that follows from the layer.
    pub(crate) const DEFAULT: Budget = Budget {
        samples: None,
        columns: None,
    };

    fn columns_of(self, layer: &Layer) -> usize {
        let wanted = || (32 * layer.cols).clamp(1 << 14, 1 << 18);
        self.columns.unwrap_or_else(wanted).max(1)
    }
}

impl Moments {
    /// The moments over the data of both, which are of one layer.
    pub(crate) fn joined(&self, other: &Moments) -> Moments {
        let all = (self.count + other.count).max(1) as f64;
        let (a, b) = (self.count as f64 / all, other.count as f64 / all);
        let matrices = |x: &[Mat<f64>], y: &[Mat<f64>]| -> Vec<Mat<f64>> {
            let pairs = x.iter().zip(y);
            pairs
                .map(|(x, y)| faer::Scale(a) * x + faer::Scale(b) * y)
                .collect()
        };
        let means = |x: &[Vec<f64>], y: &[Vec<f64>]| -> Vec<Vec<f64>> {
            let mean = |(x, y): (&Vec<f64>, &Vec<f64>)| {
                x.iter().zip(y).map(|(x, y)| a * x + b * y).collect()
            };
            x.iter().zip(y).map(mean).collect()
        };
        let reference = self.reference.as_ref().zip(other.reference.as_ref());
        Moments {
            count: self.count + other.count,
            gram: matrices(&self.gram, &other.gram),
            mean: means(&self.mean, &other.mean),
            reference: reference.map(|(x, y)| Cross {
                cross: matrices(&x.cross, &y.cross),
                mean: means(&x.mean, &y.mean),
            }),
        }
    }
}

impl Split {
    /// The moments over all of the data.
    pub(crate) fn joined(&self) -> Moments {
        match &self.held {
            Some(held) => self.fit.joined(held),
            None => self.fit.clone(),
        }
    }
}

/// The memory that the moments of a layer take, in bytes.
pub(crate) fn moments_bytes(layer: &Layer, crossed: bool) -> usize {
    let one = layer.cols.saturating_mul(layer.cols).saturating_mul(8);
    one.saturating_mul(layer.blocks)
        .saturating_mul(if crossed { 2 } else { 1 })
}

/// The moments of a layer over most of the data, to fit to, and over the rest, to judge what was
/// fitted: few samples show correlations that others don't have.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    pub(crate) fit: Moments,
    /// Over every fourth run; absent where the data is too short for one.
    pub(crate) held: Option<Moments>,
    /// How many samples were held out.
    pub(crate) held_samples: usize,
}

/// Streams the calibration data through a model and, where there is one, its reference side by
/// side. The result is in the order of the jobs; `None` for layers whose inputs the engine can't
/// give. Fails when there is no engine or no data.
pub(crate) fn collect(
    cx: &PassContext<'_>,
    model: &Model,
    reference: Option<&Model>,
    jobs: &[Job<'_>],
    budget: Budget,
) -> Result<Vec<Option<Moments>>, PassError> {
    let (all, _) = collect_parts(cx, model, reference, jobs, (budget, 1))?;
    Ok(all.into_iter().map(|mut parts| parts.pop()?).collect())
}

/// As [`collect`], with some of the data held out.
pub(crate) fn collect_split(
    cx: &PassContext<'_>,
    model: &Model,
    reference: Option<&Model>,
    jobs: &[Job<'_>],
    budget: Budget,
) -> Result<Vec<Option<Split>>, PassError> {
    let (all, held_samples) = collect_parts(cx, model, reference, jobs, (budget, 2))?;
    let split = all.into_iter().map(|parts| {
        let mut parts = parts.into_iter();
        let fit = parts.next()??;
        let held = parts.next().flatten();
        Some(Split {
            fit,
            held,
            held_samples,
        })
    });
    Ok(split.collect())
}

type Parts = Vec<Vec<Option<Moments>>>;

/// By job its moments over each of one or two parts of the data, and the samples of the second.
fn collect_parts(
    cx: &PassContext<'_>,
    model: &Model,
    reference: Option<&Model>,
    jobs: &[Job<'_>],
    (budget, parts): (Budget, usize),
) -> Result<(Parts, usize), PassError> {
    let (Some(engine), Some(data)) = (cx.engine, cx.data) else {
        return Err(PassError::Precondition {
            found: "there is no calibration data or no engine to run it".to_owned(),
            remedy: "give data with --data FILE.npz".to_owned(),
        });
    };
    let options = CompileOptions {
        threads: cx.threads,
        ..CompileOptions::default()
    };
    let sums_of = |job| Mutex::new((0..parts).map(|_| Sums::new(job)).collect());
    let sums: Vec<Mutex<Vec<Sums>>> = jobs.iter().map(sums_of).collect();
    let own: Vec<ValueId> = sources(jobs.iter().map(|j| Some(j.layer)));
    let others: Vec<ValueId> = sources(jobs.iter().map(|j| j.reference));
    let mut watch = Watch::new(engine, model, &own, options);
    let mut other = reference.map(|m| Watch::new(engine, m, &others, options));
    let samples = budget.samples.unwrap_or(usize::MAX).min(data.len()).max(1);
    let pool = pool(cx.threads)?;
    let (mut position, mut held_samples) = (0u64, 0usize);
    let run = data.for_each(budget.samples, &mut |sample| {
        cx.check_cancelled().map_err(|_| EngineError::Cancelled)?;
        let seen = gather(&mut watch, sample)?;
        let reference = match &mut other {
            Some(w) => gather(w, sample)?,
            None => Vec::new(),
        };
        let share = |job: &Job<'_>| {
            let columns = budget.columns_of(job.layer);
            columns
                .saturating_mul(sample.count.max(1))
                .div_ceil(samples)
        };
        let held = parts > 1 && is_held_out(position);
        let mask = Mask::of(&model.graph, sample);
        let add = |(job, sums): (&Job<'_>, &Mutex<Vec<Sums>>)| {
            let mut parts = sums.lock().unwrap_or_else(|e| e.into_inner());
            let Some(sums) = parts.get_mut(usize::from(held)) else {
                return;
            };
            let own = job.layer.source.as_ref().and_then(|s| find(&seen, s));
            let other = job.reference.and_then(|l| l.source.as_ref());
            let other = other.and_then(|s| find(&reference, s));
            let crossed = job.reference.is_some();
            match own.filter(|_| !crossed || other.is_some()) {
                Some(own) => sums.add(job, (own, other), mask.as_ref(), share(job), position),
                None => sums.broken = true,
            }
        };
        pool.install(|| jobs.par_iter().zip(&sums).for_each(add));
        position += 1;
        held_samples += if held { sample.count } else { 0 };
        Ok(())
    });
    match run {
        Err(EngineError::Cancelled) => return Err(PassError::Cancelled),
        other => other?,
    }
    let finished = sums.into_iter().map(|s| {
        let parts = s.into_inner().unwrap_or_else(|e| e.into_inner());
        let broken = parts.iter().any(|s| s.broken);
        let finish = |s: Sums| if broken { None } else { s.finish() };
        parts.into_iter().map(finish).collect()
    });
    Ok((finished.collect(), held_samples))
}

/// Threads for work items; what is computed does not depend on how many there are.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool, PassError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|e| PassError::Bug(format!("threads can't be started: {e}")))
}

fn sources<'a>(layers: impl Iterator<Item = Option<&'a Layer>>) -> Vec<ValueId> {
    let values = layers.flatten().filter_map(|l| l.source.as_ref());
    values.map(|s| s.value).collect()
}

type Seen = Vec<(ValueId, Tensor)>;

fn gather(watch: &mut Watch<'_>, sample: &paring_ir::engine::Sample) -> Result<Seen, EngineError> {
    let mut seen = Seen::new();
    watch.run(sample, &mut |v, t| {
        seen.push((v, t.clone()));
        Ok(())
    })?;
    seen.sort_by_key(|(v, _)| *v);
    Ok(seen)
}

fn find<'a>(seen: &'a Seen, source: &Source) -> Option<&'a Tensor> {
    let at = seen.binary_search_by_key(&source.value, |(v, _)| *v).ok()?;
    Some(&seen[at].1)
}

/// Running sums over columns.
struct Sums {
    count: u64,
    gram: Vec<Mat<f64>>,
    mean: Vec<Vec<f64>>,
    cross: Option<Cross>,
    /// Inputs that don't fit the layer, or could not be had.
    broken: bool,
}

impl Sums {
    fn new(job: &Job<'_>) -> Sums {
        let Layer { blocks, cols, .. } = *job.layer;
        let cross = job.reference.map(|r| Cross {
            cross: vec![Mat::zeros(cols, r.cols); blocks],
            mean: vec![vec![0.0; r.cols]; blocks],
        });
        Sums {
            count: 0,
            gram: vec![Mat::zeros(cols, cols); blocks],
            mean: vec![vec![0.0; cols]; blocks],
            broken: job.reference.is_some_and(|r| r.blocks != blocks),
            cross,
        }
    }

    /// Takes in at most `wanted` columns of each block from one run of the model, of those that
    /// count where there is a mask.
    fn add(
        &mut self,
        job: &Job<'_>,
        (own, other): (&Tensor, Option<&Tensor>),
        mask: Option<&Mask>,
        wanted: usize,
        position: u64,
    ) {
        if self.broken {
            return;
        }
        let own = Columns::of(job.layer, own);
        let other = match (job.reference, other) {
            (Some(layer), Some(t)) => Some(Columns::of(layer, t)),
            _ => None,
        };
        let (own, other) = match (own, other) {
            (Some(own), None) => (own, None),
            (Some(own), Some(Some(other))) if own.count == other.count => (own, Some(other)),
            _ => {
                self.broken = true;
                return;
            }
        };
        let picked = match mask.and_then(|m| own.unmasked(m)) {
            Some(all) => {
                let picked = thinned(all.len(), wanted, position);
                picked.into_iter().map(|at| all[at]).collect()
            }
            None => thinned(own.count, wanted, position),
        };
        let width = own.width.max(other.as_ref().map_or(0, |o| o.width)).max(1);
        // A buffer of a few megabytes stays in the cache.
        let chunk = ((1 << 20) / width).clamp(32, 4096);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for picked in picked.chunks(chunk) {
            let batches = own.batches();
            for batch in 0..batches {
                own.fill(batch, picked, &mut a);
                if let Some(other) = &other {
                    other.fill(batch, picked, &mut b);
                }
                for block in own.blocks_of(batch) {
                    let x = own.view(&a, picked.len(), block);
                    let r = other.as_ref().map(|o| o.view(&b, picked.len(), block));
                    self.add_chunk(block, x, r);
                }
            }
        }
        self.count += picked.len() as u64;
    }

    fn add_chunk(&mut self, block: usize, x: MatRef<'_, f32>, r: Option<MatRef<'_, f32>>) {
        add_product(&mut self.gram[block], x, x);
        add_sums(&mut self.mean[block], x);
        if let (Some(cross), Some(r)) = (&mut self.cross, r) {
            add_product(&mut cross.cross[block], x, r);
            add_sums(&mut cross.mean[block], r);
        }
    }

    fn finish(mut self) -> Option<Moments> {
        if self.broken || self.count == 0 {
            return None;
        }
        let scale = 1.0 / self.count as f64;
        let matrices = self.gram.iter_mut();
        let crossed = self.cross.iter_mut().flat_map(|c| c.cross.iter_mut());
        for m in matrices.chain(crossed) {
            *m *= faer::Scale(scale);
        }
        let means = self.mean.iter_mut();
        let crossed = self.cross.iter_mut().flat_map(|c| c.mean.iter_mut());
        for x in means.chain(crossed).flatten() {
            *x *= scale;
        }
        let finite = |m: &Mat<f64>| m.col_iter().all(|c| c.iter().all(|x| x.is_finite()));
        let crossed = self.cross.iter().flat_map(|c| &c.cross);
        if !self.gram.iter().chain(crossed).all(finite) {
            return None;
        }
        Some(Moments {
            count: self.count,
            gram: self.gram,
            mean: self.mean,
            reference: self.cross,
        })
    }
}

/// `sum += a^T b`. The product of a chunk is made in single precision and added in double.
fn add_product(sum: &mut Mat<f64>, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    let mut product = Mat::<f32>::zeros(a.ncols(), b.ncols());
    matmul(
        product.as_mut(),
        Accum::Replace,
        a.transpose(),
        b,
        1.0f32,
        Par::Seq,
    );
    for (sum, product) in sum.col_iter_mut().zip(product.col_iter()) {
        for (sum, &p) in sum.iter_mut().zip(product.iter()) {
            *sum += f64::from(p);
        }
    }
}

fn add_sums(sums: &mut [f64], x: MatRef<'_, f32>) {
    for row in x.row_iter() {
        for (sum, &x) in sums.iter_mut().zip(row.iter()) {
            *sum += f64::from(x);
        }
    }
}

/// So many indices below `count`, evenly spread, beginning at another place for each run.
fn thinned(count: usize, wanted: usize, run: u64) -> Vec<usize> {
    if count <= wanted {
        return (0..count).collect();
    }
    // The golden ratio spreads the starts over the gap between two picks.
    let phase = (run.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1u64 << 24) as f64;
    let step = count as f64 / wanted as f64;
    (0..wanted)
        .map(|i| (((i as f64 + phase) * step) as usize).min(count - 1))
        .collect()
}

/// The columns in an activation, written down as rows of a buffer.
struct Columns<'a> {
    layer: &'a Layer,
    form: &'a Form,
    data: std::borrow::Cow<'a, [f32]>,
    dims: &'a [usize],
    /// Columns of each block.
    count: usize,
    /// Elements of a row of the buffer.
    width: usize,
    /// By axis of an image: the padding before it, and the number of windows.
    geometry: Vec<(usize, usize)>,
    /// For batched products: which matrix of the activation each batch takes.
    matrices: Vec<(usize, usize)>,
}

impl<'a> Columns<'a> {
    /// `None` where the activation does not fit the layer.
    fn of(layer: &'a Layer, tensor: &'a Tensor) -> Option<Columns<'a>> {
        let source = layer.source.as_ref()?;
        let mut out = Columns {
            layer,
            form: &source.form,
            data: tensor.to_f32s()?,
            dims: tensor.dims(),
            count: 0,
            width: layer.cols,
            geometry: Vec::new(),
            matrices: Vec::new(),
        };
        let dims = out.dims;
        let channels = layer.blocks * layer.cols;
        match &source.form {
            Form::Windows(w) => {
                let (&[n, c], spatial) = dims.split_first_chunk::<2>()?;
                let kernel: usize = w.kernel.iter().product();
                out.geometry = w.geometry(spatial)?;
                out.count = n * out.geometry.iter().map(|g| g.1).product::<usize>();
                out.width = c * kernel;
                (c * kernel == channels).then_some(out)
            }
            Form::Positions => {
                let (&[n, c], spatial) = dims.split_first_chunk::<2>()?;
                out.count = n * spatial.iter().product::<usize>();
                out.width = c;
                (c == channels).then_some(out)
            }
            Form::Steps => {
                let (&last, outer) = dims.split_last()?;
                out.count = outer.iter().product();
                (last == layer.cols).then_some(out)
            }
            Form::Rows | Form::Columns => out.products(),
            Form::States { batch_first } => {
                let &[a, b, c, h] = dims else { return None };
                let (steps, directions) = if *batch_first { (a * b, c) } else { (a * c, b) };
                out.count = steps;
                (h == layer.cols && directions == layer.blocks).then_some(out)
            }
        }
    }

    /// Of stacks of matrices: which matrix of the activation goes with which of the weight.
    fn products(mut self) -> Option<Columns<'a>> {
        let columns = matches!(self.form, Form::Columns);
        let dims = self.dims;
        let (&last, outer) = dims.split_last()?;
        if !columns && self.layer.blocks == 1 {
            // All rows of all matrices alike.
            self.count = outer.iter().product();
            return (last == self.layer.cols).then_some(self);
        }
        let (&second, batch) = outer.split_last()?;
        let (inner, count) = if columns {
            (second, last)
        } else {
            (last, second)
        };
        self.count = count;
        let weight = self.layer.dims.get(self.layer.layout.batch_axes.clone())?;
        self.matrices = broadcast_pairs(batch, weight)?;
        (inner == self.layer.cols).then_some(self)
    }

    /// The columns that count, where the activation runs along the positions of a mask.
    fn unmasked(&self, mask: &Mask) -> Option<Vec<usize>> {
        let by_row = matches!(self.form, Form::Rows | Form::Steps) && self.matrices.is_empty();
        let rows = mask.rows(self.dims).filter(|_| by_row)?;
        Some((0..self.count).filter(|&at| rows[at]).collect())
    }

    fn batches(&self) -> usize {
        self.matrices.len().max(1)
    }

    /// The blocks whose columns a batch holds.
    fn blocks_of(&self, batch: usize) -> std::ops::Range<usize> {
        match self.matrices.get(batch) {
            Some(&(_, block)) => block..block + 1,
            None => 0..self.layer.blocks,
        }
    }

    /// The columns of one block in a filled buffer.
    fn view<'b>(&self, buffer: &'b [f32], count: usize, block: usize) -> MatRef<'b, f32> {
        let all = MatRef::from_row_major_slice(buffer, count, self.buffer_width());
        if self.buffer_width() == self.layer.cols {
            all
        } else {
            all.subcols(block * self.layer.cols, self.layer.cols)
        }
    }

    fn buffer_width(&self) -> usize {
        match self.form {
            Form::States { .. } => self.layer.blocks * self.layer.cols,
            _ => self.width,
        }
    }

    fn fill(&self, batch: usize, picked: &[usize], buffer: &mut Vec<f32>) {
        buffer.clear();
        buffer.resize(picked.len() * self.buffer_width(), 0.0);
        for (&at, row) in picked
            .iter()
            .zip(buffer.chunks_mut(self.buffer_width().max(1)))
        {
            match self.form {
                Form::Windows(w) => self.window(w, at, row),
                Form::Positions => self.position(at, row),
                Form::Rows | Form::Steps => {
                    let matrix = self.matrices.get(batch).map_or(0, |m| m.0);
                    let start = (matrix * self.count + at) * self.width;
                    if let Some(from) = self.data.get(start..start + self.width) {
                        row.copy_from_slice(from);
                    }
                }
                Form::Columns => {
                    let matrix = self.matrices.get(batch).map_or(0, |m| m.0);
                    let start = matrix * self.count * self.width + at;
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = self
                            .data
                            .get(start + i * self.count)
                            .copied()
                            .unwrap_or(0.0);
                    }
                }
                Form::States { batch_first } => self.state(*batch_first, at, row),
            }
        }
    }

    fn position(&self, at: usize, row: &mut [f32]) {
        let positions: usize = self.dims[2..].iter().product();
        let (n, p) = (at / positions.max(1), at % positions.max(1));
        let start = n * self.width * positions + p;
        for (c, x) in row.iter_mut().enumerate() {
            *x = self.data.get(start + c * positions).copied().unwrap_or(0.0);
        }
    }

    fn state(&self, batch_first: bool, at: usize, row: &mut [f32]) {
        let (h, directions) = (self.layer.cols, self.layer.blocks);
        for (d, row) in row.chunks_mut(h.max(1)).enumerate() {
            let start = if batch_first {
                (at * directions + d) * h
            } else {
                let batch = self.dims[2];
                let (t, b) = (at / batch.max(1), at % batch.max(1));
                ((t * directions + d) * batch + b) * h
            };
            if let Some(from) = self.data.get(start..start + h) {
                row.copy_from_slice(from);
            }
        }
    }

    /// One window of an image, all channels: `row[c * kernel + k]`.
    fn window(&self, w: &Windows, at: usize, row: &mut [f32]) {
        let spatial = &self.dims[2..];
        let positions: usize = spatial.iter().product();
        let kernel: usize = w.kernel.iter().product();
        let channels = self.dims[1];
        let windows: usize = self.geometry.iter().map(|g| g.1).product();
        let (n, mut p) = (at / windows.max(1), at % windows.max(1));
        let mut corner = [0isize; 8];
        let axes = spatial.len().min(corner.len());
        for a in (0..axes).rev() {
            let (before, count) = self.geometry[a];
            corner[a] = (p % count * w.strides[a]) as isize - before as isize;
            p /= count;
        }
        for k in 0..kernel {
            let mut rest = k;
            let (mut place, mut step, mut inside) = (0usize, 1usize, true);
            for a in (0..axes).rev() {
                let offset = (rest % w.kernel[a] * w.dilations[a]) as isize;
                rest /= w.kernel[a];
                let at = corner[a] + offset;
                inside &= at >= 0 && at < spatial[a] as isize;
                place = place.wrapping_add((at as usize).wrapping_mul(step));
                step *= spatial[a];
            }
            if !inside {
                continue;
            }
            let start = n * channels * positions + place;
            for c in 0..channels {
                let from = self.data.get(start + c * positions);
                row[c * kernel + k] = from.copied().unwrap_or(0.0);
            }
        }
    }
}

/// The pairs of matrices, by place in their stacks, that a product of two stacks multiplies.
fn broadcast_pairs(a: &[usize], b: &[usize]) -> Option<Vec<(usize, usize)>> {
    let rank = a.len().max(b.len());
    let dim = |dims: &[usize], axis: usize| {
        let missing = rank - dims.len();
        if axis < missing {
            1
        } else {
            dims[axis - missing]
        }
    };
    let mut pairs = vec![(0usize, 0usize)];
    for axis in 0..rank {
        let (da, db) = (dim(a, axis), dim(b, axis));
        if da != db && da != 1 && db != 1 {
            return None;
        }
        let size = da.max(db);
        let next = pairs.iter().flat_map(|&(pa, pb)| {
            (0..size).map(move |i| {
                let (ia, ib) = (if da == 1 { 0 } else { i }, if db == 1 { 0 } else { i });
                (pa * da + ia, pb * db + ib)
            })
        });
        pairs = next.collect();
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]

    use paring_ir::analysis::AnalysisCache;

    use super::*;
    use crate::layers::layers;
    use crate::testing::{Echo, Samples, parse};

    /// Numbers that are not alike.
    fn ramp(dims: &[usize], seed: usize) -> Tensor {
        let len = dims.iter().product::<usize>();
        let at = |i: usize| ((i * 7 + seed * 13) % 11) as f32 - 4.0;
        Tensor::from_vec(dims.iter().copied(), (0..len).map(at).collect::<Vec<_>>()).unwrap()
    }

    fn moments_of(text: &str, inputs: &[Vec<Tensor>], budget: Budget) -> (Layer, Moments) {
        let model = parse(text);
        let layer = layers(&model.graph).unwrap().remove(0);
        let data = Samples::of(inputs.iter().cloned());
        let mut cache = AnalysisCache::new();
        let mut cx = PassContext::new(&mut cache);
        cx.engine = Some(&Echo);
        cx.data = Some(&data);
        cx.threads = 2;
        let job = Job {
            layer: &layer,
            reference: Some(&layer),
        };
        let found = collect(&cx, &model, Some(&model), &[job], budget).unwrap();
        let moments = found.into_iter().next().unwrap().unwrap();
        // Against itself, the moments are the same on both sides.
        let cross = moments.reference.as_ref().unwrap();
        assert_eq!(cross.cross, moments.gram);
        assert_eq!(cross.mean, moments.mean);
        (layer, moments)
    }

    /// Checks the moments of a block against columns that were written down otherwise.
    fn check(moments: &Moments, block: usize, columns: &[Vec<f64>]) {
        assert_eq!(moments.count as usize, columns.len());
        let n = columns.len() as f64;
        let cols = columns[0].len();
        for i in 0..cols {
            let mean = columns.iter().map(|x| x[i]).sum::<f64>() / n;
            assert!((moments.mean[block][i] - mean).abs() < 1e-5);
            for j in 0..cols {
                let second = columns.iter().map(|x| x[i] * x[j]).sum::<f64>() / n;
                let found = moments.gram[block][(i, j)];
                assert!((found - second).abs() < 1e-4, "{i} {j}: {found} {second}");
            }
        }
    }

    #[test]
    fn windows_of_a_strided_padded_grouped_convolution() {
        let (layer, moments) = moments_of(
            r#"<opset_import: ["": 18]> g (float[1,4,5,6] x) => (float[1,6,h,w] y)
            <float[6,2,3,2] k = random(1)> {
                y = Conv <group: int = 2, strides: ints = [2, 1], pads: ints = [1, 0, 2, 1], dilations: ints = [1, 2]> (x, k)
            }"#,
            &[vec![ramp(&[1, 4, 5, 6], 1)], vec![ramp(&[1, 4, 5, 6], 2)]],
            Budget::DEFAULT,
        );
        assert_eq!((layer.blocks, layer.rows, layer.cols), (2, 3, 12));
        for block in 0..2 {
            let mut columns = Vec::new();
            for seed in [1, 2] {
                let x = ramp(&[1, 4, 5, 6], seed).to_f64s().unwrap();
                let at = |c: usize, h: i64, w: i64| {
                    let inside = (0..5).contains(&h) && (0..6).contains(&w);
                    if inside {
                        x[(c * 5 + h as usize) * 6 + w as usize]
                    } else {
                        0.0
                    }
                };
                for oh in 0..3 {
                    for ow in 0..5 {
                        let mut column = Vec::new();
                        for c in 0..2 {
                            for kh in 0..3 {
                                for kw in 0..2 {
                                    let (h, w) = (oh * 2 + kh - 1, ow + 2 * kw);
                                    column.push(at(block * 2 + c, h, w));
                                }
                            }
                        }
                        columns.push(column);
                    }
                }
            }
            check(&moments, block, &columns);
        }
    }

    #[test]
    fn rows_and_columns_of_products() {
        let x = ramp(&[2, 3, 4], 1);
        let all = x.to_f64s().unwrap();
        let (_, moments) = moments_of(
            r#"<opset_import: ["": 18]> g (float[2,3,4] x) => (float[2,3,5] y) <float[4,5] w = random(1)> { y = MatMul (x, w) }"#,
            &[vec![x.clone()]],
            Budget::DEFAULT,
        );
        let rows: Vec<Vec<f64>> = all.chunks(4).map(<[f64]>::to_vec).collect();
        check(&moments, 0, &rows);
        let (layer, moments) = moments_of(
            r#"<opset_import: ["": 18]> g (float[2,3,4] x) => (float[2,5,4] y) <float[2,5,3] w = random(1)> { y = MatMul (w, x) }"#,
            &[vec![x]],
            Budget::DEFAULT,
        );
        assert_eq!((layer.blocks, layer.rows, layer.cols), (2, 5, 3));
        for block in 0..2 {
            let column = |c: usize| (0..3).map(|r| all[(block * 3 + r) * 4 + c]).collect();
            let columns: Vec<Vec<f64>> = (0..4).map(column).collect();
            check(&moments, block, &columns);
        }
    }

    #[test]
    fn columns_are_thinned_out_evenly() {
        let budget = Budget {
            columns: Some(8),
            ..Budget::DEFAULT
        };
        let inputs: Vec<Vec<Tensor>> = (0..4).map(|i| vec![ramp(&[100, 4], i)]).collect();
        let (_, moments) = moments_of(
            r#"<opset_import: ["": 18]> g (float[100,4] x) => (float[100,2] y) <float[4,2] w = random(1)> { y = MatMul (x, w) }"#,
            &inputs,
            budget,
        );
        assert_eq!(moments.count, 8);
        assert_eq!(thinned(5, 9, 0), [0, 1, 2, 3, 4]);
        let picked = thinned(100, 4, 3);
        assert!(
            picked
                .windows(2)
                .all(|w| (20..=30).contains(&(w[1] - w[0])))
        );
    }

    #[test]
    fn inputs_that_the_engine_can_not_give_are_left_out() {
        let model = parse(
            r#"<opset_import: ["": 18]> g (float[1,4] x) => (float[1,2] y) <float[4,2] w = random(1)> { h = Relu (x) y = MatMul (h, w) }"#,
        );
        let all = layers(&model.graph).unwrap();
        let mut cache = AnalysisCache::new();
        let mut cx = PassContext::new(&mut cache);
        let job = Job {
            layer: &all[0],
            reference: None,
        };
        let error = collect(&cx, &model, None, &[job], Budget::DEFAULT).unwrap_err();
        assert!(
            error.to_string().contains("give data with --data"),
            "{error}"
        );
        let data = Samples::of([vec![ramp(&[1, 4], 0)]]);
        cx.engine = Some(&Echo);
        cx.data = Some(&data);
        // This engine can't run the model at all.
        assert!(collect(&cx, &model, None, &[job], Budget::DEFAULT).is_err());
    }
}

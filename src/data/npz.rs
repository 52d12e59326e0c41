//! Samples from a `.npz` file: one array per input of the model, under the input's name, with
//! the samples along the first axis, and labels in `label` where there are any.
//!
//! An array of the input's rank is sliced and keeps the axis, as the batch. Where the input has
//! one dimension less than the array, a sample is a slice without the axis: inputs without a
//! batch, such as a scalar or a recurrent state. Where it has one more, each sample gets an axis
//! of size 1 after the batch. A model with a fixed batch takes as many samples at a time; the
//! last run is filled up with copies of the last sample, which are not counted.
//!
//! Arrays are read from front to back, side by side, so that no more than one run is in memory.
//! Sizes in the file are checked against each other before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use npyz::{DType as NpyType, Endianness, NpyHeader, Order, TypeChar};
use paring_ir::engine::{DataSource, EngineError, Sample};
use paring_ir::tensor::{Dims, element_count};
use paring_ir::{DType, Dim, Model, Tensor, ValueType, escape};
use zip::ZipArchive;

use super::{DataError, open_shape, suggest};
use crate::engine::catch;

/// The names under which labels are looked for.
pub const LABEL_ARRAYS: [&str; 2] = ["label", "labels"];
/// The longest header of an array.
const HEADER_LIMIT: usize = 1 << 16;
/// The deepest nesting in a header.
const NESTING_LIMIT: usize = 8;
/// The most bytes of one input in one run.
const RUN_LIMIT: usize = 1 << 30;
/// The most arrays that are read side by side.
const ARRAY_LIMIT: usize = 256;

/// An array of the archive.
#[derive(Clone, Debug)]
struct Array {
    name: String,
    /// The position in the archive.
    index: usize,
    header: usize,
    dtype: DType,
    swapped: bool,
    dims: Vec<usize>,
}

impl Array {
    fn rows(&self) -> usize {
        self.dims.first().copied().unwrap_or(0)
    }

    fn row_dims(&self) -> &[usize] {
        self.dims.get(1..).unwrap_or_default()
    }

    /// Bytes of one sample; checked when the archive was opened.
    fn row_bytes(&self) -> usize {
        let count = element_count(self.row_dims()).unwrap_or(usize::MAX);
        self.dtype.packed_len(count).unwrap_or(usize::MAX)
    }

    fn describe(&self) -> String {
        format!("{} {:?}", self.dtype, self.dims)
    }
}

/// How the slices of an array become an input.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Axis {
    Keep,
    Drop,
    Insert,
}

/// Where an input comes from.
#[derive(Clone, Debug)]
enum Source {
    Array {
        array: Array,
        axis: Axis,
        dtype: DType,
    },
    /// The input has a default and the file has no array for it.
    Default(Tensor),
}

/// A `.npz` file opened for a model.
#[derive(Debug)]
pub struct DataSet {
    path: PathBuf,
    inputs: Vec<Source>,
    labels: Option<Array>,
    len: usize,
    batch: usize,
    fixed_batch: bool,
    symbols: BTreeMap<String, usize>,
    notes: Vec<String>,
}

impl DataSet {
    /// Opens a file and matches its arrays with the inputs of the model. No samples are read.
    pub fn open(path: impl AsRef<Path>, model: &Model) -> Result<DataSet, DataError> {
        let path = path.as_ref().to_path_buf();
        let arrays = headers(&path)?;
        let mut notes = Vec::new();
        let mut inputs = Vec::new();
        for &v in model.graph.inputs() {
            let value = model.graph.value(v);
            let default = value.initializer().and_then(|c| c.dense());
            let name = value.name();
            inputs.push(match (arrays.get(&**name), default) {
                (Some(array), _) => {
                    let ty = value.declared_type();
                    matched(&path, array, ty, &mut notes)?
                }
                (None, Some(t)) => Source::Default(t.clone()),
                (None, None) => return Err(missing(&path, name, value.declared_type(), &arrays)),
            });
        }
        let is_input = |name: &str| {
            model
                .graph
                .inputs()
                .iter()
                .any(|&v| &**model.graph.value(v).name() == name)
        };
        let labels = LABEL_ARRAYS
            .iter()
            .find_map(|n| arrays.get(*n).filter(|_| !is_input(n)))
            .cloned();
        for name in arrays.keys().filter(|n| !is_input(n)) {
            if labels.as_ref().is_none_or(|l| l.name != *name) {
                notes.push(format!(
                    "array \"{}\" is not used: the model has no such input",
                    escape(name)
                ));
            }
        }
        let mut set = DataSet {
            path,
            inputs,
            labels,
            len: 0,
            batch: 1,
            fixed_batch: false,
            symbols: BTreeMap::new(),
            notes,
        };
        set.check_lengths()?;
        set.check_labels()?;
        set.settle_batch(model)?;
        set.check_shapes(model)?;
        Ok(set)
    }

    /// The same data with as many samples to a run, where the model leaves the batch open.
    pub fn with_batch(mut self, batch: usize) -> DataSet {
        if !self.fixed_batch && self.all_keep() {
            self.batch = batch.clamp(1, self.len.max(1));
        }
        self
    }

    /// Samples to a run.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The shapes of the inputs in a run, in the order of the model's inputs.
    pub fn shapes(&self) -> Vec<Dims> {
        self.inputs.iter().map(|s| self.dims_of(s)).collect()
    }

    /// The sizes that the data gives to the symbols of the model's inputs.
    pub fn symbols(&self) -> &BTreeMap<String, usize> {
        &self.symbols
    }

    /// What the user should know: conversions, arrays that are not used.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, array: &Array, reason: impl Into<String>) -> DataError {
        DataError::Array {
            path: self.path.clone(),
            array: escape(&array.name),
            reason: reason.into(),
        }
    }

    fn arrays(&self) -> impl Iterator<Item = (&Array, Axis)> {
        self.inputs.iter().filter_map(|s| match s {
            Source::Array { array, axis, .. } => Some((array, *axis)),
            Source::Default(_) => None,
        })
    }

    fn all_keep(&self) -> bool {
        self.arrays().all(|(_, axis)| axis != Axis::Drop)
    }

    fn check_lengths(&mut self) -> Result<(), DataError> {
        let first = self.arrays().next().map(|(a, _)| a.clone());
        let Some(first) = first.or_else(|| self.labels.clone()) else {
            return Err(DataError::Archive {
                path: self.path.clone(),
                reason: "there is no array for any input".to_string(),
            });
        };
        let all: Vec<&Array> = self.arrays().map(|(a, _)| a).chain(&self.labels).collect();
        if all.len() > ARRAY_LIMIT {
            return Err(self.error(&first, format!("more than {ARRAY_LIMIT} arrays are needed")));
        }
        for a in &all {
            if a.rows() != first.rows() {
                let reason = format!(
                    "it has {} samples and \"{}\" has {}; the first axis of every array must be the samples",
                    a.rows(),
                    escape(&first.name),
                    first.rows()
                );
                return Err(self.error(a, reason));
            }
        }
        if first.rows() == 0 {
            return Err(self.error(&first, "there are no samples"));
        }
        self.len = first.rows();
        Ok(())
    }

    fn check_labels(&self) -> Result<(), DataError> {
        let Some(a) = &self.labels else { return Ok(()) };
        let one_each = a.row_dims().iter().all(|&d| d == 1);
        let numbers =
            a.dtype.is_integer() || matches!(a.dtype, DType::Bool | DType::F32 | DType::F64);
        if one_each && numbers {
            return Ok(());
        }
        Err(self.error(
            a,
            format!(
                "labels must be one class number per sample, found {}",
                a.describe()
            ),
        ))
    }

    /// The batch that the model fixes, or 1.
    fn settle_batch(&mut self, model: &Model) -> Result<(), DataError> {
        let mut fixed: Option<(usize, Array)> = None;
        for (source, &v) in self.inputs.iter().zip(model.graph.inputs()) {
            let Source::Array { array, axis, .. } = source else {
                continue;
            };
            let declared = model.graph.value(v).declared_type().and_then(|t| t.shape());
            let first = declared.and_then(|s| s.first()?.known());
            let k = match axis {
                Axis::Drop => 1,
                _ => match first {
                    Some(k) => k,
                    None => continue,
                },
            };
            if k == 0 {
                return Err(self.error(array, "the model wants a batch of 0"));
            }
            match &fixed {
                Some((other, by)) if *other != k => {
                    let reason = format!(
                        "the model takes {k} samples of it at a time and {other} of \"{}\"",
                        escape(&by.name)
                    );
                    return Err(self.error(array, reason));
                }
                _ => fixed = Some((k, array.clone())),
            }
        }
        if let Some((k, _)) = fixed {
            self.batch = k;
            self.fixed_batch = true;
        }
        if self.batch > 1 && !self.len.is_multiple_of(self.batch) {
            self.notes.push(format!(
                "the model takes {} samples at a time; the last run is filled up and its padding not scored",
                self.batch
            ));
        }
        Ok(())
    }

    fn check_shapes(&mut self, model: &Model) -> Result<(), DataError> {
        for (source, &v) in self.inputs.iter().zip(model.graph.inputs()) {
            let Source::Array { array, axis, .. } = source else {
                continue;
            };
            let dims = self.dims_of(source);
            let bytes = element_count(&dims).and_then(|n| n.checked_mul(8));
            if bytes.is_none_or(|b| b > RUN_LIMIT) {
                return Err(self.error(array, format!("a run of shape {dims:?} is too large")));
            }
            let ty = model.graph.value(v).declared_type();
            let Some(shape) = ty.and_then(|t| t.shape()).map(open_shape) else {
                continue;
            };
            for (i, (d, &found)) in shape.iter().zip(&dims).enumerate() {
                if i == 0 && *axis != Axis::Drop {
                    continue;
                }
                let expected = match d {
                    Dim::Param(p) => {
                        let known = self.symbols.entry(p.to_string()).or_insert(found);
                        *known
                    }
                    d => d.known().unwrap_or(found),
                };
                if expected != found {
                    let reason = format!(
                        "its samples make the input {:?}, and the model wants {}{}",
                        dims.as_slice(),
                        show(&shape),
                        transposed_hint(&shape, &dims)
                    );
                    return Err(DataError::Array {
                        path: self.path.clone(),
                        array: escape(&array.name),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }

    fn dims_of(&self, source: &Source) -> Dims {
        match source {
            Source::Default(t) => t.dims().iter().copied().collect(),
            Source::Array { array, axis, .. } => {
                let mut dims = Dims::new();
                match axis {
                    Axis::Keep => dims.push(self.batch),
                    Axis::Insert => dims.extend([self.batch, 1]),
                    Axis::Drop => {}
                }
                dims.extend_from_slice(array.row_dims());
                dims
            }
        }
    }

    /// One run of `count` samples from the readers.
    fn read_run(
        &self,
        readers: &mut [Box<dyn Read + '_>],
        count: usize,
    ) -> Result<Sample, DataError> {
        let mut readers = readers.iter_mut();
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for source in &self.inputs {
            inputs.push(match source {
                Source::Default(t) => t.clone(),
                Source::Array { array, dtype, .. } => {
                    let bytes = self.read_rows(array, &mut readers, count, self.batch)?;
                    let made = Tensor::new(array.dtype, self.dims_of(source), bytes);
                    let tensor = made.map_err(|e| self.error(array, e.to_string()))?;
                    convert(tensor, *dtype).map_err(|e| self.error(array, e))?
                }
            });
        }
        let labels = match &self.labels {
            None => None,
            Some(array) => {
                let bytes = self.read_rows(array, &mut readers, count, count)?;
                let made = Tensor::new(array.dtype, [count], bytes);
                let tensor = made.map_err(|e| self.error(array, e.to_string()))?;
                let labels = class_numbers(&tensor);
                Some(labels.ok_or_else(|| self.error(array, "a label is no whole number"))?)
            }
        };
        Ok(Sample {
            inputs,
            count,
            labels,
        })
    }

    /// The bytes of `count` rows, filled up to `batch` rows with copies of the last.
    fn read_rows<'r, 's: 'r>(
        &self,
        array: &Array,
        readers: &mut impl Iterator<Item = &'r mut Box<dyn Read + 's>>,
        count: usize,
        batch: usize,
    ) -> Result<Vec<u8>, DataError> {
        let row = array.row_bytes();
        let total = row.checked_mul(batch).filter(|&b| b <= RUN_LIMIT);
        let total = total.ok_or_else(|| self.error(array, "a run is too large"))?;
        let reader = readers
            .next()
            .ok_or_else(|| self.error(array, "it was not opened"))?;
        let mut bytes = vec![0u8; total];
        let filled = row.saturating_mul(count).min(total);
        let (read, _) = bytes.split_at_mut(filled);
        reader.read_exact(read).map_err(|e| {
            self.error(
                array,
                format!("the file is damaged or shorter than its header says: {e}"),
            )
        })?;
        if array.swapped {
            let width = array.dtype.bits().unwrap_or(8).div_ceil(8) as usize;
            read.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        for at in (filled..total).step_by(row.max(1)) {
            if row > 0 && at >= row {
                bytes.copy_within(at - row..at, at);
            }
        }
        Ok(bytes)
    }

    fn stream(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let arrays: Vec<&Array> = self.arrays().map(|(a, _)| a).chain(&self.labels).collect();
        let data = |e: DataError| EngineError::Data(e.to_string());
        let total = limit.unwrap_or(usize::MAX).min(self.len);
        let complete = total == self.len;
        with_readers(&self.path, &arrays, Vec::new(), &mut |readers| {
            let mut done = 0;
            while done < total {
                let count = self.batch.min(total - done);
                let sample = self.read_run(readers, count).map_err(data)?;
                f(&sample)?;
                done += count;
            }
            if complete {
                // The checksum is compared when the end is read.
                for (reader, array) in readers.iter_mut().zip(&arrays) {
                    reader
                        .read(&mut [0u8])
                        .map_err(|e| data(self.error(array, e.to_string())))?;
                }
            }
            Ok(())
        })
    }
}

impl DataSource for DataSet {
    fn len(&self) -> usize {
        self.len
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn has_labels(&self) -> bool {
        self.labels.is_some()
    }

    fn for_each(
        &self,
        limit: Option<usize>,
        f: &mut dyn FnMut(&Sample) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.stream(limit, f)
    }
}

type Readers<'a, 'r> = &'a mut [Box<dyn Read + 'r>];

/// Opens the arrays side by side, each with a handle of its own, and calls `run`.
fn with_readers<'r>(
    path: &Path,
    arrays: &[&Array],
    mut readers: Vec<Box<dyn Read + 'r>>,
    run: &mut dyn FnMut(Readers<'_, '_>) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let Some((array, rest)) = arrays.split_first() else {
        return run(&mut readers);
    };
    let failed = |e: std::io::Error| {
        EngineError::Data(format!(
            "{}: array \"{}\": {e}",
            path.display(),
            escape(&array.name)
        ))
    };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut archive = ZipArchive::new(file).map_err(|e| failed(e.into()))?;
    let mut entry = archive
        .by_index(array.index)
        .map_err(|e| failed(e.into()))?;
    let header = u64::try_from(array.header).unwrap_or(u64::MAX);
    std::io::copy(&mut entry.by_ref().take(header), &mut std::io::sink()).map_err(failed)?;
    // Declared after the archive, which it borrows.
    let mut readers: Vec<Box<dyn Read + '_>> = readers;
    readers.push(Box::new(entry));
    with_readers(path, rest, readers, run)
}

/// The arrays of an archive by name; only headers are read.
fn headers(path: &Path) -> Result<BTreeMap<String, Array>, DataError> {
    let file = File::open(path).map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let bad = |reason: String| DataError::Archive {
        path: path.to_path_buf(),
        reason,
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| bad(e.to_string()))?;
    let mut arrays = BTreeMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|e| bad(e.to_string()))?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_string) else {
            continue;
        };
        let size = entry.size();
        let array = header(&mut entry, &name, index, size).map_err(|reason| DataError::Array {
            path: path.to_path_buf(),
            array: escape(&name),
            reason,
        })?;
        arrays.insert(name, array);
    }
    if arrays.is_empty() {
        return Err(bad("it holds no .npy arrays".to_string()));
    }
    Ok(arrays)
}

/// Reads the header of an array and checks it against the size of the entry.
fn header(reader: &mut dyn Read, name: &str, index: usize, size: u64) -> Result<Array, String> {
    let bytes = header_bytes(reader)?;
    let mut rest: &[u8] = &bytes;
    let parsed = catch(|| NpyHeader::from_reader(&mut rest));
    let parsed = parsed.map_err(|_| "its header makes no sense".to_string())?;
    let parsed = parsed.map_err(|e| format!("its header can't be read: {e}"))?;
    let dims = parsed
        .shape()
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| "its shape is too large".to_string())?;
    let (dtype, swapped) = element_type(&parsed.dtype())?;
    if parsed.order() == Order::Fortran && dims.iter().filter(|&&d| d > 1).count() > 1 {
        return Err(
            "it is stored column by column; save numpy.ascontiguousarray of it".to_string(),
        );
    }
    if dims.is_empty() {
        return Err("it has no axis for the samples; add one of size 1".to_string());
    }
    let data = element_count(&dims).and_then(|n| dtype.packed_len(n));
    let data = data.ok_or_else(|| format!("its shape {dims:?} is too large"))?;
    let expected = data
        .checked_add(bytes.len())
        .and_then(|n| u64::try_from(n).ok());
    if expected != Some(size) {
        return Err(format!(
            "its header says {dtype} {dims:?}, which doesn't fit its {size} bytes"
        ));
    }
    Ok(Array {
        name: name.to_string(),
        index,
        header: bytes.len(),
        dtype,
        swapped,
        dims,
    })
}

/// The bytes of a header, no more than a header needs and not nested deeper than one is.
fn header_bytes(reader: &mut dyn Read) -> Result<Vec<u8>, String> {
    let short = |_| "it is no .npy array".to_string();
    let mut bytes = vec![0u8; 10];
    reader.read_exact(&mut bytes).map_err(short)?;
    let length = match bytes.as_slice() {
        [_, _, _, _, _, _, 1, _, a, b] => usize::from(u16::from_le_bytes([*a, *b])),
        [_, _, _, _, _, _, 2 | 3, _, a, b] => {
            let mut more = [0u8; 2];
            reader.read_exact(&mut more).map_err(short)?;
            let length = u32::from_le_bytes([*a, *b, more[0], more[1]]);
            bytes.extend(more);
            usize::try_from(length).unwrap_or(usize::MAX)
        }
        _ => return Err("it is no .npy array of version 1 to 3".to_string()),
    };
    if length > HEADER_LIMIT {
        return Err(format!("its header of {length} bytes is too long"));
    }
    let start = bytes.len();
    bytes.resize(start + length, 0);
    let (_, text) = bytes.split_at_mut(start);
    reader.read_exact(text).map_err(short)?;
    let mut depth = 0usize;
    for &b in text.iter() {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_LIMIT {
            return Err("its header makes no sense".to_string());
        }
    }
    Ok(bytes)
}

/// The element type, and whether the bytes of an element are in the other order.
fn element_type(ty: &NpyType) -> Result<(DType, bool), String> {
    let NpyType::Plain(ty) = ty else {
        return Err("it holds records; save one array for each field".to_string());
    };
    let dtype = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Bool, 1) => DType::Bool,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 8) => DType::F64,
        (TypeChar::Object, _) => {
            return Err("it holds Python objects; save an array of numbers".to_string());
        }
        _ => {
            return Err(format!(
                "elements of type {ty} can't be read; save an array of numbers"
            ));
        }
    };
    Ok((dtype, ty.endianness() == Endianness::Big))
}

fn missing(
    path: &Path,
    name: &str,
    ty: Option<&ValueType>,
    arrays: &BTreeMap<String, Array>,
) -> DataError {
    let expected = match ty.map(|t| (t.dtype(), t.shape())) {
        Some((dtype, shape)) => format!(
            "{} {}",
            dtype.map_or("any type", DType::name),
            shape.map_or_else(|| "of any shape".to_string(), show)
        ),
        None => "of any type".to_string(),
    };
    DataError::Missing {
        path: path.to_path_buf(),
        input: escape(name),
        expected,
        hint: suggest(name, arrays.keys().map(String::as_str), "arrays"),
    }
}

/// Matches an array with an input.
fn matched(
    path: &Path,
    array: &Array,
    ty: Option<&ValueType>,
    notes: &mut Vec<String>,
) -> Result<Source, DataError> {
    let error = |reason: String| DataError::Array {
        path: path.to_path_buf(),
        array: escape(&array.name),
        reason,
    };
    let shape = ty.and_then(|t| t.shape());
    let rank = shape.map_or(array.dims.len(), <[Dim]>::len);
    let axis = if rank == array.dims.len() {
        Axis::Keep
    } else if rank + 1 == array.dims.len() {
        Axis::Drop
    } else if rank == array.dims.len() + 1 && rank >= 2 {
        notes.push(format!(
            "array \"{}\": each sample gets an axis of size 1 after the batch",
            escape(&array.name)
        ));
        Axis::Insert
    } else {
        return Err(error(format!(
            "it is {}, and the model wants {} for one run",
            array.describe(),
            shape.map_or_else(String::new, show)
        )));
    };
    let dtype = ty.and_then(|t| t.dtype()).unwrap_or(array.dtype);
    if dtype != array.dtype {
        if !convertible(array.dtype, dtype) {
            return Err(error(format!(
                "it is {} and the model wants {dtype}; convert it with .astype(numpy.{})",
                array.dtype,
                numpy_name(dtype)
            )));
        }
        notes.push(format!(
            "array \"{}\" is converted from {} to {dtype}",
            escape(&array.name),
            array.dtype
        ));
    }
    Ok(Source::Array {
        array: array.clone(),
        axis,
        dtype,
    })
}

fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// A hint when channels stand last and the model wants them second, or the other way round.
fn transposed_hint(shape: &[Dim], dims: &[usize]) -> &'static str {
    let wanted: Vec<Option<usize>> = shape.iter().map(Dim::known).collect();
    let ([_, Some(c), ..], [_, first, .., last]) = (wanted.as_slice(), dims) else {
        return "";
    };
    let end = wanted.last().copied().flatten();
    if last == c && first != c {
        "; the channels seem to stand last: numpy.moveaxis(array, -1, 1)"
    } else if end == Some(*first) && end != Some(*last) {
        "; the channels seem to stand second: numpy.moveaxis(array, 1, -1)"
    } else {
        ""
    }
}

fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F64 => "float64",
        DType::Bool => "bool_",
        other => other.name(),
    }
}

/// Whether elements can be converted without loss, as far as the types tell. Narrower integers
/// are checked value by value.
fn convertible(from: DType, to: DType) -> bool {
    let integer = |d: DType| d.is_integer() && d.bits().is_some_and(|b| b >= 8);
    match (from, to) {
        (DType::F64, DType::F32)
        | (DType::F16, DType::F32 | DType::F64)
        | (DType::F32, DType::F64) => true,
        (DType::Bool, to) => integer(to) || to == DType::F32,
        (DType::U8, DType::Bool) => true,
        (from, to) if integer(from) && integer(to) => true,
        // Integers of up to 16 bits are exact in a float.
        (DType::U8 | DType::I8 | DType::U16 | DType::I16, DType::F32 | DType::F64) => true,
        _ => false,
    }
}

fn convert(t: Tensor, to: DType) -> Result<Tensor, String> {
    fn narrow<T: paring_ir::Element + TryFrom<i64>>(
        dims: Dims,
        values: &[i64],
    ) -> Result<Tensor, String> {
        let values = values
            .iter()
            .map(|&v| T::try_from(v).map_err(|_| format!("the value {v} doesn't fit {}", T::DTYPE)))
            .collect::<Result<Vec<T>, String>>()?;
        Tensor::from_vec(dims, values).map_err(|e| e.to_string())
    }
    if t.dtype() == to {
        return Ok(t);
    }
    let dims: Dims = t.dims().iter().copied().collect();
    let text = |e: paring_ir::TensorError| e.to_string();
    if matches!(to, DType::F32 | DType::F64) {
        let values = t.to_f64s().ok_or("it can't be converted")?;
        return match to {
            DType::F32 => Tensor::from_vec(dims, values.into_iter().map(|v| v as f32).collect()),
            _ => Tensor::from_vec(dims, values),
        }
        .map_err(text);
    }
    let values = t.to_i64s().ok_or("a value doesn't fit int64")?;
    match to {
        DType::I64 => Tensor::from_vec(dims, values).map_err(text),
        DType::I32 => narrow::<i32>(dims, &values),
        DType::I16 => narrow::<i16>(dims, &values),
        DType::I8 => narrow::<i8>(dims, &values),
        DType::U64 => narrow::<u64>(dims, &values),
        DType::U32 => narrow::<u32>(dims, &values),
        DType::U16 => narrow::<u16>(dims, &values),
        DType::U8 => narrow::<u8>(dims, &values),
        DType::Bool => match values.iter().find(|v| !(0..=1).contains(*v)) {
            Some(v) => Err(format!("the value {v} is neither 0 nor 1")),
            None => {
                let bytes: Vec<u8> = values.iter().map(|&v| u8::from(v == 1)).collect();
                Tensor::new(DType::Bool, dims, bytes).map_err(text)
            }
        },
        other => Err(format!("it can't be converted to {other}")),
    }
}

fn class_numbers(t: &Tensor) -> Option<Vec<i64>> {
    if let Some(v) = t.to_i64s() {
        return Some(v);
    }
    t.to_f64s()?
        .into_iter()
        .map(|v| (v.fract() == 0.0 && v.abs() < 1e15).then_some(v as i64))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use std::io::Write;

    use paring_ir::Graph;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let text =
            format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut out = b"\x93NUMPY\x01\x00".to_vec();
        out.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        out.extend(text.as_bytes());
        out.extend(data);
        out
    }

    fn floats(shape: &str, values: &[f32]) -> Vec<u8> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        npy("<f4", "False", shape, &data)
    }

    fn longs(shape: &str, values: &[i64]) -> Vec<u8> {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        npy("<i8", "False", shape, &data)
    }

    fn archive(arrays: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
        for (i, (name, bytes)) in arrays.iter().enumerate() {
            let method = match i % 2 {
                0 => zip::CompressionMethod::Deflated,
                _ => zip::CompressionMethod::Stored,
            };
            let options = SimpleFileOptions::default().compression_method(method);
            zip.start_file(format!("{name}.npy"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        file
    }

    fn model(inputs: &[(&str, DType, &[Dim])]) -> Model {
        let mut g = Graph::new("main");
        for (name, dtype, dims) in inputs {
            g.add_input(*name, Some(ValueType::tensor(*dtype, dims.to_vec())))
                .unwrap();
        }
        Model::new(g, 17)
    }

    fn batch() -> Dim {
        Dim::Param("batch".into())
    }

    fn runs(set: &DataSet, limit: Option<usize>) -> Vec<Sample> {
        let mut out = Vec::new();
        set.for_each(limit, &mut |s| {
            out.push(s.clone());
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn samples_and_labels_come_in_runs_and_again() {
        let file = archive(&[
            ("label", longs("(3,)", &[7, 8, 9])),
            ("x", floats("(3, 2)", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        ]);
        let model = model(&[("x", DType::F32, &[batch(), Dim::Value(2)])]);
        let set = DataSet::open(file.path(), &model).unwrap();
        assert_eq!((set.len(), set.batch()), (3, 1));
        for _ in 0..2 {
            let all = runs(&set, None);
            assert_eq!(all.len(), 3);
            assert_eq!(all[1].inputs[0].to_f64s().unwrap(), [2.0, 3.0]);
            assert_eq!(all[1].labels.as_deref(), Some(&[8][..]));
        }
        let two = runs(&set.with_batch(2), None);
        assert_eq!(two[0].inputs[0].dims(), [2, 2]);
        // The last run is filled up with the last sample, and one sample counts.
        assert_eq!(two[1].inputs[0].to_f64s().unwrap(), [4.0, 5.0, 4.0, 5.0]);
        assert_eq!(
            (two[1].count, two[1].labels.as_deref()),
            (1, Some(&[9][..]))
        );
    }

    #[test]
    fn a_limit_stops_early_and_a_fixed_batch_is_kept() {
        let file = archive(&[("x", floats("(5, 1)", &[0.0, 1.0, 2.0, 3.0, 4.0]))]);
        let model = model(&[("x", DType::F32, &[Dim::Value(2), Dim::Value(1)])]);
        let set = DataSet::open(file.path(), &model).unwrap().with_batch(5);
        assert_eq!(set.batch(), 2);
        let counts: Vec<usize> = runs(&set, Some(3)).iter().map(|s| s.count).collect();
        assert_eq!(counts, [2, 1]);
        assert!(set.notes()[0].contains("filled up"));
    }

    #[test]
    fn ranks_decide_what_becomes_of_the_axis() {
        let file = archive(&[
            ("x", floats("(2, 3)", &[0.0; 6])),
            ("rate", longs("(2,)", &[8000, 16000])),
            ("state", floats("(2, 2, 1, 4)", &[0.0; 16])),
            ("image", floats("(2, 5, 5)", &[0.0; 50])),
        ]);
        let model = model(&[
            ("x", DType::F32, &[batch(), Dim::Unknown]),
            ("rate", DType::I64, &[]),
            (
                "state",
                DType::F32,
                &[Dim::Value(2), batch(), Dim::Value(4)],
            ),
            (
                "image",
                DType::F32,
                &[batch(), Dim::Value(1), Dim::Unknown, Dim::Unknown],
            ),
        ]);
        let set = DataSet::open(file.path(), &model).unwrap().with_batch(2);
        assert_eq!(set.batch(), 1);
        let all = runs(&set, None);
        let dims: Vec<Vec<usize>> = all[1].inputs.iter().map(|t| t.dims().to_vec()).collect();
        assert_eq!(dims, [vec![1, 3], vec![], vec![2, 1, 4], vec![1, 1, 5, 5]]);
        assert_eq!(all[1].inputs[1].single_f64(), Some(16000.0));
    }

    #[test]
    fn question_marks_are_no_symbol() {
        let file = archive(&[("x", floats("(1, 2, 3)", &[0.0; 6]))]);
        let mark = || Dim::Param("?".into());
        let model = model(&[("x", DType::F32, &[Dim::Value(-1), mark(), mark()])]);
        let set = DataSet::open(file.path(), &model).unwrap();
        assert_eq!(set.shapes()[0].as_slice(), [1, 2, 3]);
        assert!(set.symbols().is_empty());
    }

    #[test]
    fn types_are_converted_where_nothing_is_lost() {
        let file = archive(&[("ids", longs("(2, 2)", &[1, 2, 3, 4]))]);
        let ids = |d| model(&[("ids", d, &[batch(), Dim::Unknown])]);
        let set = DataSet::open(file.path(), &ids(DType::I32)).unwrap();
        assert_eq!(
            set.notes(),
            ["array \"ids\" is converted from int64 to int32"]
        );
        assert_eq!(
            runs(&set, None)[1].inputs[0],
            Tensor::from_vec([1, 2], vec![3i32, 4]).unwrap()
        );
        let e = DataSet::open(file.path(), &ids(DType::F32))
            .unwrap_err()
            .to_string();
        assert!(
            e.contains(
                "it is int64 and the model wants float; convert it with .astype(numpy.float32)"
            ),
            "{e}"
        );
        let big = archive(&[("ids", longs("(1, 1)", &[1 << 40]))]);
        let set = DataSet::open(big.path(), &ids(DType::I32)).unwrap();
        let e = set.for_each(None, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(e.contains("1099511627776 doesn't fit int32"), "{e}");
        // Big-endian arrays are turned round.
        let other = archive(&[("ids", npy(">i4", "False", "(1, 1)", &[0, 0, 1, 2]))]);
        let set = DataSet::open(other.path(), &ids(DType::I32)).unwrap();
        assert_eq!(runs(&set, None)[0].inputs[0].single_f64(), Some(258.0));
    }

    #[test]
    fn errors_name_the_array_and_the_way_out() {
        let model = model(&[(
            "input_ids",
            DType::F32,
            &[batch(), Dim::Value(3), Dim::Value(8)],
        )]);
        let refuse = |arrays: &[(&str, Vec<u8>)]| {
            let file = archive(arrays);
            DataSet::open(file.path(), &model).unwrap_err().to_string()
        };
        let e = refuse(&[("inputids", floats("(1, 3, 8)", &[0.0; 24]))]);
        assert!(
            e.contains("no array for input \"input_ids\" (float [batch, 3, 8])"),
            "{e}"
        );
        assert!(e.contains("did you mean \"inputids\"?"), "{e}");
        let e = refuse(&[("input_ids", floats("(1, 8, 3)", &[0.0; 24]))]);
        assert!(
            e.contains("[1, 8, 3], and the model wants [batch, 3, 8]"),
            "{e}"
        );
        assert!(e.contains("numpy.moveaxis(array, -1, 1)"), "{e}");
        let e = refuse(&[("input_ids", floats("(1,)", &[0.0]))]);
        assert!(e.contains("it is float [1]"), "{e}");
        let e = refuse(&[
            ("input_ids", floats("(2, 3, 8)", &[0.0; 48])),
            ("label", longs("(3,)", &[0, 1, 2])),
        ]);
        assert!(
            e.contains("it has 3 samples and \"input_ids\" has 2"),
            "{e}"
        );
    }

    #[test]
    fn sizes_that_lie_are_refused_before_anything_is_allocated() {
        let model = model(&[("x", DType::F32, &[batch(), Dim::Unknown])]);
        let refuse = |bytes: Vec<u8>| {
            let file = archive(&[("x", bytes)]);
            let e = DataSet::open(file.path(), &model).unwrap_err().to_string();
            assert!(e.contains("array \"x\""), "{e}");
            e
        };
        assert!(refuse(floats("(1000000000000, 1000)", &[])).contains("doesn't fit its"));
        // The reader of headers finds the overflow where it is built with checks for it.
        let e = refuse(floats("(18446744073709551615, 1000)", &[]));
        let found = ["header", "too large", "doesn't fit its"]
            .iter()
            .any(|w| e.contains(w));
        assert!(found, "{e}");
        assert!(refuse(floats("(2, 3)", &[0.0; 5])).contains("doesn't fit its"));
        assert!(refuse(npy("<f4", "True", "(2, 2)", &[0; 16])).contains("ascontiguousarray"));
        assert!(refuse(npy("|O", "False", "(1,)", &[0; 8])).contains("Python objects"));
        assert!(refuse(b"not an array at all".to_vec()).contains("no .npy array"));
        let nested = format!("({}", "(".repeat(5000));
        assert!(refuse(npy("<f4", "False", &nested, &[])).contains("makes no sense"));
        let mut long = b"\x93NUMPY\x02\x00".to_vec();
        long.extend(u32::MAX.to_le_bytes());
        assert!(refuse(long).contains("too long"));
    }

    #[test]
    fn a_file_that_is_no_archive_and_a_damaged_one() {
        let model = model(&[("x", DType::F32, &[batch(), Dim::Unknown])]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"PK but not really").unwrap();
        let e = DataSet::open(file.path(), &model).unwrap_err().to_string();
        assert!(e.contains("not a readable .npz file"), "{e}");
        let good = archive(&[
            ("y", floats("(1,)", &[1.0])),
            ("x", floats("(4, 2)", &[1.0; 8])),
        ]);
        let mut bytes = std::fs::read(good.path()).unwrap();
        // The second array is stored; flipping a bit of its data breaks the checksum only.
        let one = bytes
            .windows(8)
            .rposition(|w| w == [0, 0, 128, 63, 0, 0, 128, 63])
            .unwrap();
        bytes[one] ^= 1;
        std::fs::write(good.path(), bytes).unwrap();
        let set = DataSet::open(good.path(), &model).unwrap();
        let e = set.for_each(None, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(e.contains("checksum"), "{e}");
    }
}

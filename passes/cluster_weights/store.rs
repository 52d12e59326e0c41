//! Clustered weights in a graph: packed codes, tables, and the operators that expand them.
//!
//! Codes of 1, 2, 4 or 8 bits are packed into bytes, the first in the low bits. A byte is looked up
//! whole: with the codebook `book` and the numbers that the bytes hold, `table`,
//!
//! ```text
//! index = Cast <to = int32> (codes)        rows = Gather (book, Cast (table)) 256 x 2 at 4 bits
//! flat = Gather (rows, index)              w = Reshape (flat, shape)
//! ```
//!
//! so what grows while a model is loaded are the weights themselves and one index for each byte.
//! Codes of 3, 5, 6 and 7 bits are split into such parts, each packed by itself, whose tables hold
//! numbers that add up to the code. Every width is stored without a bit lost.
//!
//! With several codebooks the number of the codebook times its size is added to the index.
//!
//! Engines compute constants when they load a model. tract does so as long as nothing becomes
//! larger than 4 MiB or what it is made from, so long weights are expanded in pieces and then
//! concatenated.

use paring_ir::{AttrValue, DType, Graph, NewOp, OpId, PassError, Tensor, ValueId};

use super::fit::{Coded, Order};

/// The most bytes that a step of an expansion makes in one piece.
const PIECE_BYTES: usize = 4 << 20;

/// How codes are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Packing {
    /// In bytes, with tables that unpack them.
    Bytes,
    /// In an ONNX type of so few bits, an element for each code.
    Typed(DType),
}

/// The parts of a code of so many bits, from the upper bits on, in bits.
fn parts_of(bits: u32) -> &'static [u32] {
    match bits {
        1 => &[1],
        2 => &[2],
        3 => &[2, 1],
        4 => &[4],
        5 => &[4, 1],
        6 => &[4, 2],
        7 => &[4, 2, 1],
        _ => &[8],
    }
}

/// Puts weights into one graph, sharing equal constants.
pub(super) struct Store<'g> {
    pub(super) graph: &'g mut Graph,
    shared: Vec<(Tensor, ValueId)>,
    /// What bytes of codes stand for, by bits and shift.
    tables: Vec<((u32, u32), ValueId)>,
    /// The operator that new ones are made from and stand beside.
    anchor: OpId,
    /// What new values are called after.
    hint: String,
    /// Whether centroids are stored as integers of 8 bits.
    steps: bool,
    /// The scales of channels.
    pub(super) scales: Vec<ValueId>,
}

/// A part of a weight that is expanded by itself: whole groups, or a stretch of one group.
struct Piece {
    groups: std::ops::Range<usize>,
    elements: std::ops::Range<usize>,
}

impl<'g> Store<'g> {
    pub(super) fn new(graph: &'g mut Graph, anchor: OpId) -> Store<'g> {
        Store {
            graph,
            shared: Vec::new(),
            tables: Vec::new(),
            anchor,
            hint: String::new(),
            steps: false,
            scales: Vec::new(),
        }
    }

    /// Whether centroids of the next weights are stored as integers of 8 bits and a scale.
    pub(super) fn steps(&mut self, steps: bool) {
        self.steps = steps;
    }

    /// The next weight: beside which operator it is expanded, and what it is called.
    pub(super) fn turn_to(&mut self, anchor: OpId, hint: &str) {
        self.anchor = anchor;
        self.hint(hint);
    }

    /// What the next values are called after.
    pub(super) fn hint(&mut self, hint: &str) {
        hint.clone_into(&mut self.hint);
    }

    pub(super) fn op(&mut self, new: NewOp, what: &str) -> Result<ValueId, PassError> {
        let new = new.output(format!("{}_{what}", self.hint));
        let op = self.graph.add_op(new.from([self.anchor]))?;
        let made = self.graph.op(op).output(0);
        made.ok_or_else(|| PassError::Bug("an operator has no output".to_owned()))
    }

    pub(super) fn own(&mut self, what: &str, tensor: Tensor) -> Result<ValueId, PassError> {
        let name = format!("{}_{what}", self.hint);
        Ok(self.graph.add_constant(&name, tensor)?)
    }

    /// A constant that other weights may need too.
    pub(super) fn common(&mut self, what: &str, tensor: Tensor) -> Result<ValueId, PassError> {
        if let Some((_, v)) = self.shared.iter().find(|(t, _)| *t == tensor) {
            return Ok(*v);
        }
        let v = self.graph.add_constant(what, tensor.clone())?;
        self.shared.push((tensor, v));
        Ok(v)
    }

    pub(super) fn cast(&mut self, v: ValueId, to: DType) -> Result<ValueId, PassError> {
        let what = if to == DType::I32 { "index" } else { "rows" };
        let to = AttrValue::Int(i64::from(to.to_onnx()));
        self.op(NewOp::new("Cast").input(v).attr("to", to), what)
    }

    pub(super) fn gather(
        &mut self,
        data: ValueId,
        at: ValueId,
        what: &str,
    ) -> Result<ValueId, PassError> {
        self.op(NewOp::new("Gather").input(data).input(at), what)
    }

    fn reshape(&mut self, v: ValueId, dims: &[i64], what: &str) -> Result<ValueId, PassError> {
        let shape = self.common("shape", Tensor::vector(dims.to_vec()))?;
        self.op(NewOp::new("Reshape").input(v).input(shape), what)
    }

    fn add(&mut self, a: ValueId, b: ValueId) -> Result<ValueId, PassError> {
        self.op(NewOp::new("Add").input(a).input(b), "index")
    }

    /// The first `count` along an axis.
    fn first(&mut self, v: ValueId, axis: i64, count: usize) -> Result<ValueId, PassError> {
        let start = self.common("start", Tensor::vector(vec![0i64]))?;
        let end = self.common("end", Tensor::vector(vec![signed(count)?]))?;
        let axes = self.common("axes", Tensor::vector(vec![axis]))?;
        let slice = NewOp::new("Slice").input(v).input(start).input(end);
        self.op(slice.input(axes), "part")
    }

    /// Numbers 0, `step`, 2 `step`, ... to add to the indices of each codebook.
    fn offsets(&mut self, count: usize, step: usize) -> Result<ValueId, PassError> {
        let all = (0..count)
            .map(|g| small(g * step))
            .collect::<Result<Vec<i32>, _>>()?;
        self.common("offsets", Tensor::from_vec([count, 1], all)?)
    }

    /// The table that holds what a byte of codes stands for, times `2^shift`: bytes in the file.
    fn table(&mut self, bits: u32, shift: u32) -> Result<ValueId, PassError> {
        if let Some((_, made)) = self.tables.iter().find(|t| t.0 == (bits, shift)) {
            return Ok(*made);
        }
        let per = 8 / bits as usize;
        let mask = (1u8 << bits) - 1;
        let all = (0..=255u8)
            .flat_map(|byte| (0..8 / bits).map(move |i| ((byte >> (bits * i)) & mask) << shift));
        let tensor = Tensor::from_vec([256, per], all.collect::<Vec<u8>>())?;
        let bytes = self.graph.add_constant("table", tensor)?;
        let hint = std::mem::replace(&mut self.hint, "table".to_owned());
        let made = self.cast(bytes, DType::I32)?;
        self.hint = hint;
        self.tables.push(((bits, shift), made));
        Ok(made)
    }

    /// A codebook for each group, filled up to `2^bits` centroids.
    fn books(
        &mut self,
        coded: &Coded,
        groups: std::ops::Range<usize>,
    ) -> Result<ValueId, PassError> {
        let size = 1usize << coded.bits;
        let mut all = Vec::with_capacity(groups.len() * size);
        for book in &coded.books[groups.clone()] {
            let last = book.last().copied().unwrap_or(0.0);
            all.extend((0..size).map(|i| book.get(i).copied().unwrap_or(last)));
        }
        let dims = match groups.len() {
            1 => vec![size],
            n => vec![n, size],
        };
        if self.steps {
            return self.book_of_steps(&dims, &all, size);
        }
        let tensor = tensor(coded.dtype, &dims, &all)?;
        match coded.shared {
            true => self.common("book", tensor),
            false => self.own("book", tensor),
        }
    }

    /// Codebooks as integers from -127 to 127, of which 0 is 0, times a scale for each.
    fn book_of_steps(
        &mut self,
        dims: &[usize],
        all: &[f64],
        size: usize,
    ) -> Result<ValueId, PassError> {
        let (mut steps, mut scales) = (Vec::with_capacity(all.len()), Vec::new());
        for book in all.chunks(size.max(1)) {
            let most = book.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            // A codebook of zeros, or of numbers next to none, has any scale.
            let scale = (most / 127.0) as f32;
            let scale = if scale > 0.0 && scale.is_finite() {
                scale
            } else {
                1.0
            };
            let step = |x: &f64| (x / f64::from(scale)).round().clamp(-127.0, 127.0) as i8;
            steps.extend(book.iter().map(step));
            scales.push(scale);
        }
        let many = dims.len() > 1;
        let zeros = vec![0i8; scales.len()];
        let of = if many { vec![scales.len()] } else { Vec::new() };
        let book = self.own("book", Tensor::from_vec(dims.iter().copied(), steps)?)?;
        let scales = self.own("book_scale", Tensor::from_vec(of.iter().copied(), scales)?)?;
        let zero = self.common("book_zero", Tensor::from_vec(of.iter().copied(), zeros)?)?;
        let mut new = NewOp::new("DequantizeLinear").input(book).input(scales);
        new = new.input(zero);
        if many {
            new = new.attr("axis", 0i64);
        }
        self.op(new, "centroids")
    }

    /// The weight expanded whole, in its shape.
    pub(super) fn expand(
        &mut self,
        coded: &Coded,
        order: &Order,
        dims: &[usize],
        packing: Packing,
    ) -> Result<ValueId, PassError> {
        if let Some(made) = self.expand_bytes(coded, order, dims, packing)? {
            return Ok(made);
        }
        let groups = coded.books.len();
        // One codebook leaves the elements in their order.
        let by_channel = groups > 1;
        let codes = match by_channel {
            true => coded.codes.clone(),
            false => order.in_memory(&coded.codes),
        };
        // The last group may have fewer channels than the others.
        let len = coded.width * coded.group;
        let whole = codes.len() / len.max(1);
        let mut pieces = pieces(coded, 0..whole, len, packing);
        if whole < groups {
            let rest = codes.len() - whole * len;
            pieces.extend(self::pieces(coded, whole..groups, rest, packing));
        }
        let single = pieces.len() == 1;
        let mut made = Vec::new();
        let mut book: Option<(std::ops::Range<usize>, ValueId)> = None;
        for piece in pieces {
            let shared = book.take().filter(|(of, _)| *of == piece.groups);
            let own = match shared {
                Some((_, v)) => v,
                None => self.books(coded, piece.groups.clone())?,
            };
            book = Some((piece.groups.clone(), own));
            let codes: Vec<&[u8]> = (piece.groups.clone())
                .map(|g| &codes[g * len..][piece.elements.clone()])
                .collect();
            let piece = self.piece(coded, own, &codes, packing)?;
            made.push(match single {
                true => piece,
                false => self.reshape(piece, &[-1], "piece")?,
            });
        }
        let flat = match made.as_slice() {
            [only] => *only,
            all => {
                let concat = NewOp::new("Concat").inputs(all.iter().map(|&v| Some(v)));
                self.op(concat.attr("axis", 0i64), "flat")?
            }
        };
        self.shaped(flat, coded, order, dims, by_channel)
    }

    /// The weight where a code is a byte: the codes have its shape, and so have the centroids. `None`
    /// where it takes more.
    fn expand_bytes(
        &mut self,
        coded: &Coded,
        order: &Order,
        dims: &[usize],
        packing: Packing,
    ) -> Result<Option<ValueId>, PassError> {
        let plain = packing == Packing::Bytes && coded.bits == 8 && coded.books.len() == 1;
        let broadcast = coded.scales.as_deref().map(|s| (s, order.broadcast(dims)));
        let fits = broadcast.as_ref().is_none_or(|(_, dims)| dims.is_some());
        let single = pieces(coded, 0..1, coded.codes.len(), packing).len() == 1;
        if !plain || !fits || !single {
            return Ok(None);
        }
        let book = self.books(coded, 0..1)?;
        let codes = order.in_memory(&coded.codes);
        let codes = self.own(
            "codes",
            Tensor::new(DType::U8, dims.iter().copied(), codes)?,
        )?;
        let index = self.cast(codes, DType::I32)?;
        let made = self.gather(book, index, "wide")?;
        Ok(Some(match broadcast {
            Some((scales, Some(dims))) => self.scaled(made, coded.dtype, scales, &dims)?,
            _ => made,
        }))
    }

    /// Groups of codes looked up, `[groups, codes]` or of more axes.
    fn piece(
        &mut self,
        coded: &Coded,
        book: ValueId,
        groups: &[&[u8]],
        packing: Packing,
    ) -> Result<ValueId, PassError> {
        let len = groups.first().map_or(0, |g| g.len());
        let rows = Rows {
            count: groups.len(),
            len,
            codes: groups,
        };
        let bits = coded.bits;
        let many = groups.len() > 1;
        if let Packing::Typed(dtype) = packing {
            let codes = self.own("codes", rows.typed(dtype)?)?;
            let mut index = self.cast(codes, DType::I32)?;
            let mut book = book;
            if many {
                let offsets = self.offsets(groups.len(), 1 << bits)?;
                index = self.add(index, offsets)?;
                book = self.reshape(book, &[-1], "centroids")?;
            }
            return self.gather(book, index, "wide");
        }
        let padded = rows.padded(bits);
        let mut made = match parts_of(bits) {
            &[part] => self.whole_bytes(&rows, part, book)?,
            parts => self.in_parts(&rows, parts, padded, book)?,
        };
        if padded > len {
            let dims: Vec<i64> = match many {
                true => vec![signed(groups.len())?, -1],
                false => vec![-1],
            };
            made = self.reshape(made, &dims, "padded")?;
            made = self.first(made, i64::from(many), len)?;
        }
        Ok(made)
    }

    /// Codes of a width that fills bytes.
    fn whole_bytes(
        &mut self,
        rows: &Rows<'_>,
        bits: u32,
        book: ValueId,
    ) -> Result<ValueId, PassError> {
        let codes = self.own("codes", rows.packed(bits, 0, rows.padded(bits))?)?;
        let mut index = self.cast(codes, DType::I32)?;
        if rows.count > 1 {
            let offsets = self.offsets(rows.count, 256)?;
            index = self.add(index, offsets)?;
        }
        let table = self.rows_of_bytes(rows.count > 1, bits, book)?;
        self.gather(table, index, "wide")
    }

    /// What each byte of codes stands for, for each codebook: `[books * 256, codes in a byte]`, or
    /// the centroids themselves where a byte holds one code.
    fn rows_of_bytes(
        &mut self,
        many: bool,
        bits: u32,
        book: ValueId,
    ) -> Result<ValueId, PassError> {
        let per = i64::from(8 / bits);
        let rows = match bits {
            8 => book,
            _ => {
                let table = self.table(bits, 0)?;
                let gather = NewOp::new("Gather").input(book).input(table);
                self.op(gather.attr("axis", i64::from(many)), "rows")?
            }
        };
        match (many, per) {
            (false, _) => Ok(rows),
            (true, 1) => self.reshape(rows, &[-1], "centroids"),
            (true, _) => self.reshape(rows, &[-1, per], "rows"),
        }
    }

    /// Codes of a width that is stored in parts.
    fn in_parts(
        &mut self,
        rows: &Rows<'_>,
        parts: &[u32],
        padded: usize,
        book: ValueId,
    ) -> Result<ValueId, PassError> {
        let many = rows.count > 1;
        let mut shift: u32 = parts.iter().sum();
        let size = 1usize << shift;
        let mut sum = None;
        for &bits in parts {
            shift -= bits;
            let codes = self.own("codes", rows.packed(bits, shift, padded)?)?;
            let index = self.cast(codes, DType::I32)?;
            let table = self.table(bits, shift)?;
            let part = self.gather(table, index, "part")?;
            let dims: &[i64] = if many {
                &[signed(rows.count)?, -1]
            } else {
                &[-1]
            };
            let part = self.reshape(part, dims, "part")?;
            sum = Some(match sum {
                Some(sum) => self.add(sum, part)?,
                None => part,
            });
        }
        let index = sum.ok_or_else(|| PassError::Bug("a code has no parts".to_owned()))?;
        if !many {
            return self.gather(book, index, "wide");
        }
        let offsets = self.offsets(rows.count, size)?;
        let index = self.add(index, offsets)?;
        let book = self.reshape(book, &[-1], "centroids")?;
        self.gather(book, index, "wide")
    }

    /// Elements in the shape of the weight, scaled.
    fn shaped(
        &mut self,
        flat: ValueId,
        coded: &Coded,
        order: &Order,
        dims: &[usize],
        by_channel: bool,
    ) -> Result<ValueId, PassError> {
        let last: Vec<i64> = dims.iter().map(|&d| signed(d)).collect::<Result<_, _>>()?;
        let Order {
            outer,
            inputs,
            outputs,
            kernel,
            ..
        } = *order;
        let moved = order.swapped && by_channel;
        let scales = coded.scales.as_deref();
        let broadcast = scales.map(|_| order.broadcast(dims));
        if !moved && broadcast.as_ref().is_none_or(Option::is_some) {
            let shaped = self.reshape(flat, &last, "shaped")?;
            return match (scales, broadcast.flatten()) {
                (Some(scales), Some(dims)) => self.scaled(shaped, coded.dtype, scales, &dims),
                _ => Ok(shaped),
            };
        }
        let split = match by_channel {
            true => [outer, outputs, inputs, kernel],
            false => [outer, inputs, outputs, kernel],
        };
        let split: Vec<i64> = split.iter().map(|&d| signed(d)).collect::<Result<_, _>>()?;
        let mut made = self.reshape(flat, &split, "split")?;
        if let Some(scales) = scales {
            let dims = match by_channel {
                true => [outer, outputs, 1, 1],
                false => [outer, 1, outputs, 1],
            };
            made = self.scaled(made, coded.dtype, scales, &dims)?;
        }
        if moved {
            let transpose = NewOp::new("Transpose").input(made);
            made = self.op(transpose.attr("perm", vec![0i64, 2, 1, 3]), "moved")?;
        }
        self.reshape(made, &last, "shaped")
    }

    fn scaled(
        &mut self,
        v: ValueId,
        dtype: DType,
        scales: &[f64],
        dims: &[usize],
    ) -> Result<ValueId, PassError> {
        let scales = self.own("scales", tensor(dtype, dims, scales)?)?;
        self.scales.push(scales);
        self.op(NewOp::new("Mul").input(v).input(scales), "scaled")
    }

    /// The rows of a table of `rows` x `width` that an operator looks up: packed rows are looked
    /// up and only they are expanded. One codebook; `rank` is that of the indices.
    pub(super) fn expand_rows(
        &mut self,
        coded: &Coded,
        codes: &[ValueId],
        tables: &RowTables,
        indices: ValueId,
        rank: usize,
    ) -> Result<ValueId, PassError> {
        let width = coded.width;
        let parts = parts_of(coded.bits);
        let mut keep = vec![0i64; rank];
        keep.push(-1);
        let mut sum = None;
        for (&codes, &table) in codes.iter().zip(&tables.parts) {
            let rows = self.gather(codes, indices, "used")?;
            let mut made = self.cast(rows, DType::I32)?;
            if let Some(table) = table {
                made = self.gather(table, made, "part")?;
                made = self.reshape(made, &keep, "part")?;
            }
            sum = Some(match sum {
                Some(sum) => self.add(sum, made)?,
                None => made,
            });
        }
        let mut made = sum.ok_or_else(|| PassError::Bug("a code has no parts".to_owned()))?;
        if parts.len() > 1 || coded.bits == 8 {
            made = self.gather(tables.book, made, "wide")?;
        }
        if padded_len(width, coded.bits) > width {
            made = self.first(made, i64::try_from(rank).unwrap_or(-1), width)?;
        }
        if let Some(scales) = tables.scales {
            let scales = self.gather(scales, indices, "scales")?;
            made = self.op(NewOp::new("Mul").input(made).input(scales), "scaled")?;
        }
        Ok(made)
    }

    /// The constants of a table whose rows are looked up.
    pub(super) fn row_tables(
        &mut self,
        coded: &Coded,
    ) -> Result<(Vec<ValueId>, RowTables), PassError> {
        let rows: Vec<&[u8]> = coded.codes.chunks(coded.width.max(1)).collect();
        let rows = Rows {
            count: rows.len(),
            len: coded.width,
            codes: &rows,
        };
        let book = self.books(coded, 0..1)?;
        let padded = padded_len(coded.width, coded.bits);
        let parts = parts_of(coded.bits);
        let mut shift = coded.bits;
        let (mut codes, mut tables) = (Vec::new(), Vec::new());
        for &bits in parts {
            shift -= bits;
            codes.push(self.own("codes", rows.packed(bits, shift, padded)?)?);
            tables.push(match (parts.len(), bits) {
                (1, 8) => None,
                (1, _) => Some(self.rows_of_bytes(false, bits, book)?),
                _ => Some(self.table(bits, shift)?),
            });
        }
        let scales = match &coded.scales {
            Some(scales) => {
                let scales = tensor(coded.dtype, &[rows.count, 1], scales)?;
                Some(self.own("scales", scales)?)
            }
            None => None,
        };
        let tables = RowTables {
            parts: tables,
            book,
            scales,
        };
        Ok((codes, tables))
    }
}

/// The constants that expand rows of codes.
pub(super) struct RowTables {
    /// For each part of a code: what its bytes stand for, unless they are the codes.
    parts: Vec<Option<ValueId>>,
    book: ValueId,
    /// `[rows, 1]`.
    scales: Option<ValueId>,
}

/// Equally long rows of codes.
struct Rows<'a> {
    count: usize,
    len: usize,
    codes: &'a [&'a [u8]],
}

/// The length of a row of codes with what fills up its last bytes.
fn padded_len(len: usize, bits: u32) -> usize {
    let narrowest = parts_of(bits).iter().copied().min().unwrap_or(8);
    len.next_multiple_of(8 / narrowest as usize)
}

impl Rows<'_> {
    fn padded(&self, bits: u32) -> usize {
        padded_len(self.len, bits)
    }

    /// The `bits` above `shift` of each code, packed: `[rows, bytes]`, or `[bytes]` for one row.
    fn packed(&self, bits: u32, shift: u32, padded: usize) -> Result<Tensor, PassError> {
        let per = 8 / bits as usize;
        let mask = u8::MAX >> (8 - bits);
        let bytes = padded.div_ceil(per);
        let mut out = vec![0u8; self.count * bytes];
        for (row, out) in self.codes.iter().zip(out.chunks_mut(bytes.max(1))) {
            for (codes, byte) in row.chunks(per).zip(out) {
                for (i, &code) in codes.iter().enumerate() {
                    *byte |= ((code >> shift) & mask) << (bits as usize * i);
                }
            }
        }
        let dims = match self.count {
            1 => vec![bytes],
            n => vec![n, bytes],
        };
        Ok(Tensor::new(DType::U8, dims, out)?)
    }

    /// The codes as elements of an ONNX type.
    fn typed(&self, dtype: DType) -> Result<Tensor, PassError> {
        let bits = dtype.bits().unwrap_or(8) as usize;
        let per = 8 / bits;
        let all: Vec<u8> = self.codes.iter().flat_map(|r| r.iter().copied()).collect();
        let pack = |codes: &[u8]| {
            let all = codes.iter().enumerate();
            all.fold(0u8, |byte, (i, &code)| byte | code << (bits * i))
        };
        let dims = match self.count {
            1 => vec![self.len],
            n => vec![n, self.len],
        };
        let bytes: Vec<u8> = all.chunks(per).map(pack).collect();
        Ok(Tensor::new(dtype, dims, bytes)?)
    }
}

/// Pieces of equally long groups none of whose steps makes more than [`PIECE_BYTES`].
fn pieces(
    coded: &Coded,
    groups: std::ops::Range<usize>,
    len: usize,
    packing: Packing,
) -> Vec<Piece> {
    let size = coded.dtype.bits().unwrap_or(32) as usize / 8;
    let per = match (packing, parts_of(coded.bits)) {
        (Packing::Bytes, &[bits]) => 8 / bits as usize,
        _ => 1,
    };
    // An index takes eight bytes in tract, and a byte of codes makes `per` elements.
    let most = PIECE_BYTES / (8usize.div_ceil(per)).max(size);
    // The table of what bytes stand for is a step too.
    let most_groups = match per {
        1 => usize::MAX,
        _ => (PIECE_BYTES / (256 * per * size)).max(1),
    };
    let mut out = Vec::new();
    if len > most {
        for g in groups {
            for start in (0..len).step_by(most.max(8) / 8 * 8) {
                let end = (start + most.max(8) / 8 * 8).min(len);
                out.push(Piece {
                    groups: g..g + 1,
                    elements: start..end,
                });
            }
        }
        return out;
    }
    let step = (most / len.max(1)).clamp(1, most_groups);
    for start in groups.clone().step_by(step) {
        out.push(Piece {
            groups: start..(start + step).min(groups.end),
            elements: 0..len,
        });
    }
    out
}

impl Order {
    /// The shape of the scales that multiplies a weight of this shape, where there is one.
    fn broadcast(&self, dims: &[usize]) -> Option<Vec<usize>> {
        if !self.swapped {
            // The leading axes count the channels.
            let mut left = self.channels();
            let axis = |&d: &usize| {
                if left <= 1 {
                    return Some(1);
                }
                if d == 0 || !left.is_multiple_of(d) {
                    return None;
                }
                left /= d;
                Some(d)
            };
            return dims.iter().map(axis).collect();
        }
        let mut out = vec![1; dims.len()];
        if self.kernel == 1 && dims.last() == Some(&self.outputs) {
            // Stacks of matrices.
            let batch = dims.len().checked_sub(2)?;
            out[..batch].copy_from_slice(&dims[..batch]);
            *out.last_mut()? = self.outputs;
            let stacked: usize = dims[..batch].iter().product();
            return (stacked == self.outer).then_some(out);
        }
        *out.get_mut(1)? = self.outputs;
        (self.outer == 1 && dims.get(1) == Some(&self.outputs)).then_some(out)
    }
}

/// Numbers of a float type; they were rounded to it before.
pub(super) fn tensor(dtype: DType, dims: &[usize], values: &[f64]) -> Result<Tensor, PassError> {
    crate::linear::narrowed(dtype, dims, values).map_err(|r| PassError::Bug(r.message))
}

pub(super) fn signed(n: usize) -> Result<i64, PassError> {
    i64::try_from(n).map_err(|_| PassError::Bug("a size exceeds an int64".to_owned()))
}

fn small(n: usize) -> Result<i32, PassError> {
    i32::try_from(n).map_err(|_| PassError::Bug("an index exceeds an int32".to_owned()))
}

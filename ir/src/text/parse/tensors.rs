//! The elements of tensors: written out, or by a fill pattern.

use bytes::Bytes;
use half::{bf16, f16};

use super::lexer::{Fault, Number};
use super::{Parsed, Parser};
use crate::tensor::{DType, Tensor, element_count};

/// The fill patterns of one text make at most this many bytes, so that a short text can't fill
/// the memory.
const MAX_FILL_BYTES: usize = 1 << 28;

impl Parser<'_> {
    /// `{1, 2}`, or a fill pattern.
    pub(super) fn elements(&mut self, dtype: DType, dims: &[usize]) -> Parsed<Tensor> {
        let at = self.lex.here();
        if self.lex.take('{') {
            return self.written_elements(at, dtype, dims);
        }
        if self.lex.peek_is('[') {
            let what = "elements in a side file: a text is read without any other file; \
                        write the elements out, or use a fill pattern such as `random(1)`";
            return Err(Fault::at(at, what.to_owned()));
        }
        match self.lex.identifier() {
            Some("zeros") => self.fill(at, dtype, dims, |_| 0.0),
            Some("ones") => self.fill(at, dtype, dims, |_| 1.0),
            Some("iota") => self.fill(at, dtype, dims, |i| i as f64),
            Some("random") => self.random(at, dtype, dims),
            _ => Err(self.left_out(at)),
        }
    }

    fn left_out(&self, at: usize) -> Fault {
        let found = self.lex.found(at);
        let what = if found == "`.`" || found == "`…`" {
            "the elements were left out when this was printed; print it with \
             `PrintOptions::full()`, or use a fill pattern such as `random(1)`"
                .to_owned()
        } else {
            format!(
                "expected elements, such as `{{1, 2}}`, or one of the fill patterns `zeros`, \
                 `ones`, `iota` and `random(seed)`, found {found}"
            )
        };
        Fault::at(at, what)
    }

    fn written_elements(&mut self, at: usize, dtype: DType, dims: &[usize]) -> Parsed<Tensor> {
        let here = self.lex.here();
        if self.lex.peek_is('…') {
            return Err(self.left_out(here));
        }
        if dtype == DType::String {
            let strings = self.list('}', |p| p.lex.string().map(Bytes::from))?;
            return Tensor::from_strings(dims.iter().copied(), strings)
                .map_err(|e| Fault::at(at, e.to_string()));
        }
        let per_element = if matches!(dtype, DType::C64 | DType::C128) {
            2
        } else {
            1
        };
        let mut bytes = Vec::new();
        let mut count = 0usize;
        let bits = dtype.bits().unwrap_or(8) as u32;
        self.list('}', |p| {
            match p.lex.number()? {
                Some(number) if bits < 8 => {
                    let code = small_code(dtype, &number)?;
                    let per_byte = (8 / bits) as usize;
                    if count.is_multiple_of(per_byte) {
                        bytes.push(0);
                    }
                    if let Some(last) = bytes.last_mut() {
                        *last |= code << (bits * (count % per_byte) as u32);
                    }
                }
                Some(number) => push_element(&mut bytes, dtype, &number)?,
                None if dtype == DType::Bool => match p.lex.identifier() {
                    Some("true") => bytes.push(1),
                    Some("false") => bytes.push(0),
                    _ => return Err(p.lex.expected("0, 1, true or false")),
                },
                None => return Err(p.lex.expected("a number")),
            }
            count += 1;
            Ok(())
        })?;
        let needed = element_count(dims).and_then(|n| n.checked_mul(per_element));
        if needed != Some(count) {
            return Err(Fault::at(
                at,
                format!(
                    "expected {} numbers for {dtype}{dims:?}, found {count}",
                    needed.map_or("uncountably many".to_owned(), |n| n.to_string()),
                ),
            ));
        }
        Tensor::new(dtype, dims.iter().copied(), bytes).map_err(|e| Fault::at(at, e.to_string()))
    }

    // ---- fill patterns ----

    fn fill(
        &mut self,
        at: usize,
        dtype: DType,
        dims: &[usize],
        mut f: impl FnMut(usize) -> f64,
    ) -> Parsed<Tensor> {
        let count = element_count(dims);
        let bytes = count.and_then(|n| dtype.packed_len(n));
        let filled = bytes.and_then(|b| self.filled.checked_add(b));
        let (Some(count), Some(filled)) = (count, filled.filter(|f| *f <= MAX_FILL_BYTES)) else {
            return Err(Fault::at(
                at,
                format!(
                    "the fill patterns of a text make at most {MAX_FILL_BYTES} bytes, and no \
                     strings; {dtype}{dims:?} is too much"
                ),
            ));
        };
        self.filled = filled;
        let mut out = Vec::with_capacity(bytes.unwrap_or(0));
        for i in 0..count {
            push_filled(&mut out, dtype, i, f(i)).ok_or_else(|| {
                Fault::at(at, format!("{dtype} has no element of the value {}", f(i)))
            })?;
        }
        Tensor::new(dtype, dims.iter().copied(), out).map_err(|e| Fault::at(at, e.to_string()))
    }

    /// `(seed)` or `(seed, low, high)` after `random`.
    fn random(&mut self, at: usize, dtype: DType, dims: &[usize]) -> Parsed<Tensor> {
        self.lex.expect('(')?;
        let mut state = self.lex.int()? as u64;
        let mut bounds = None;
        if self.lex.take(',') {
            let low = self.bound()?;
            self.lex.expect(',')?;
            bounds = Some((low, self.bound()?));
        }
        self.lex.expect(')')?;
        let float = dtype.is_float() || matches!(dtype, DType::C64 | DType::C128);
        let (low, high) = bounds.unwrap_or(match dtype {
            DType::Bool => (0.0, 1.0),
            DType::U2 => (0.0, 3.0),
            DType::I2 => (-2.0, 1.0),
            DType::U4 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => (0.0, 15.0),
            _ if float => (-1.0, 1.0),
            _ => (-8.0, 7.0),
        });
        if !(low < high && (high - low).is_finite()) {
            return Err(Fault::at(
                at,
                format!(
                    "`random` needs two bounds of which the first is lower, found {low} and {high}"
                ),
            ));
        }
        self.fill(at, dtype, dims, |_| {
            // 24 bits make every f32 in [0, 1) of that spacing, without rounding.
            let unit = (split_mix(&mut state) >> 40) as f64 / f64::from(1u32 << 24);
            if float {
                low + unit * (high - low)
            } else {
                (low + unit * (high - low + 1.0)).floor()
            }
        })
    }

    fn bound(&mut self) -> Parsed<f64> {
        match self.lex.number()? {
            Some(number) => number.parse_f64(),
            None => Err(self.lex.expected("a number")),
        }
    }
}

/// The next number of the SplitMix64 generator.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bits of an element of less than a byte.
fn small_code(dtype: DType, number: &Number<'_>) -> Result<u8, Fault> {
    let (low, high) = match dtype {
        DType::U2 => (0, 3),
        DType::I2 => (-2, 1),
        DType::I4 => (-8, 7),
        _ => (0, 15),
    };
    let mask = if matches!(dtype, DType::U2 | DType::I2) {
        3
    } else {
        15
    };
    Ok((number.parse_within(low, high)? & mask) as u8)
}

fn push_element(out: &mut Vec<u8>, dtype: DType, number: &Number<'_>) -> Result<(), Fault> {
    macro_rules! int {
        ($t:ty) => {{
            let v = number.parse_within(<$t>::MIN.into(), <$t>::MAX.into())? as $t;
            out.extend_from_slice(&v.to_le_bytes());
        }};
    }
    match dtype {
        DType::F32 | DType::C64 => out.extend_from_slice(&number.parse_f32()?.to_le_bytes()),
        DType::F64 | DType::C128 => out.extend_from_slice(&number.parse_f64()?.to_le_bytes()),
        DType::F16 if !number.is_integer() => {
            out.extend_from_slice(&f16::from_f64(number.parse_f64()?).to_le_bytes());
        }
        DType::BF16 if !number.is_integer() => {
            out.extend_from_slice(&bf16::from_f64(number.parse_f64()?).to_le_bytes());
        }
        DType::U16 | DType::F16 | DType::BF16 => int!(u16),
        DType::I8 => int!(i8),
        DType::I16 => int!(i16),
        DType::I32 => int!(i32),
        DType::I64 => int!(i64),
        DType::U32 => int!(u32),
        DType::U64 => int!(u64),
        // Bytes: integers, booleans and 8-bit floats.
        _ => int!(u8),
    }
    Ok(())
}

/// Appends element number `i` of a fill pattern; `None` when the type can't hold it.
fn push_filled(out: &mut Vec<u8>, dtype: DType, i: usize, v: f64) -> Option<()> {
    macro_rules! int {
        ($t:ty) => {{
            let held = v as $t;
            if held as f64 != v {
                return None;
            }
            out.extend_from_slice(&held.to_le_bytes());
        }};
    }
    let mut small = |bits: u32, low: f64, high: f64| {
        if v < low || v > high {
            return None;
        }
        let (per_byte, mask) = ((8 / bits) as usize, (1u8 << bits) - 1);
        if i.is_multiple_of(per_byte) {
            out.push(0);
        }
        let shift = bits * (i % per_byte) as u32;
        *out.last_mut()? |= ((v as i8 as u8) & mask) << shift;
        Some(())
    };
    match dtype {
        DType::U2 => return small(2, 0.0, 3.0),
        DType::I2 => return small(2, -2.0, 1.0),
        DType::U4 => return small(4, 0.0, 15.0),
        DType::I4 => return small(4, -8.0, 7.0),
        DType::F32 => out.extend_from_slice(&(v as f32).to_le_bytes()),
        DType::F64 => out.extend_from_slice(&v.to_le_bytes()),
        DType::F16 => out.extend_from_slice(&f16::from_f64(v).to_le_bytes()),
        DType::BF16 => out.extend_from_slice(&bf16::from_f64(v).to_le_bytes()),
        DType::Bool if v == 0.0 || v == 1.0 => out.push(u8::from(v == 1.0)),
        DType::U8 => int!(u8),
        DType::I8 => int!(i8),
        DType::U16 => int!(u16),
        DType::I16 => int!(i16),
        DType::U32 => int!(u32),
        DType::I32 => int!(i32),
        DType::U64 => int!(u64),
        DType::I64 => int!(i64),
        // A real number as a complex one.
        DType::C64 => {
            out.extend_from_slice(&(v as f32).to_le_bytes());
            out.extend_from_slice(&0f32.to_le_bytes());
        }
        DType::C128 => {
            out.extend_from_slice(&v.to_le_bytes());
            out.extend_from_slice(&0f64.to_le_bytes());
        }
        _ => return None,
    }
    Some(())
}

//! The fields of an encoded message, one after another, without decoding what is inside them.

use std::fmt;
use std::ops::Range;

/// How the payload of a field is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wire {
    /// A number of variable length.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// A length, and as many bytes.
    Bytes,
    /// Everything up to an end tag; ONNX has none.
    Group,
    /// Four bytes.
    Fixed32,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wire::Varint => "a varint",
            Wire::Fixed64 => "eight bytes",
            Wire::Bytes => "a length-delimited field",
            Wire::Group => "a group",
            Wire::Fixed32 => "four bytes",
        })
    }
}

/// One field: where its tag starts and where its payload stands.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// The field's number.
    pub(super) number: u32,
    /// The encoding.
    pub(super) wire: Wire,
    /// Where the tag starts.
    pub(super) start: usize,
    /// The payload: of a length-delimited field without the length.
    pub(super) body: Range<usize>,
}

/// Bytes that are no message, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WireError {
    /// The byte from the start of the data.
    pub(super) offset: usize,
    /// What is wrong.
    pub(super) problem: String,
}

/// The fields of a message that stands in a range of the data.
pub(super) struct Fields<'a> {
    data: &'a [u8],
    at: usize,
    end: usize,
}

/// Groups inside groups that are skipped.
const GROUP_DEPTH: usize = 100;

impl<'a> Fields<'a> {
    /// The fields of a message that is all of the data.
    pub(super) fn new(data: &'a [u8]) -> Fields<'a> {
        Fields::within(data, 0..data.len())
    }

    /// The fields of a message that stands in a range of the data.
    pub(super) fn within(data: &'a [u8], range: Range<usize>) -> Fields<'a> {
        let end = range.end.min(data.len());
        Fields {
            data,
            at: range.start.min(end),
            end,
        }
    }

    /// The next field; `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<Field>, WireError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let start = self.at;
        let (number, code) = self.tag()?;
        if code == 4 {
            return Err(problem(start, "the end of a group that never began"));
        }
        let (wire, body) = self.payload(number, code, start)?;
        Ok(Some(Field {
            number,
            wire,
            start,
            body,
        }))
    }

    fn tag(&mut self) -> Result<(u32, u8), WireError> {
        let start = self.at;
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).unwrap_or(u32::MAX);
        if number == 0 || number >= 1 << 29 {
            return Err(problem(start, format!("{} is no field number", key >> 3)));
        }
        Ok((number, (key & 7) as u8))
    }

    fn payload(
        &mut self,
        number: u32,
        code: u8,
        start: usize,
    ) -> Result<(Wire, Range<usize>), WireError> {
        let from = self.at;
        Ok(match code {
            0 => {
                self.varint()?;
                (Wire::Varint, from..self.at)
            }
            1 => (Wire::Fixed64, self.take(8, start)?),
            2 => {
                let length = self.varint()?;
                (Wire::Bytes, self.take(length, start)?)
            }
            3 => (Wire::Group, from..self.skip_group(number, start)?),
            5 => (Wire::Fixed32, self.take(4, start)?),
            _ => return Err(problem(start, format!("{code} is no wire type"))),
        })
    }

    fn take(&mut self, length: u64, start: usize) -> Result<Range<usize>, WireError> {
        let left = self.end - self.at;
        match usize::try_from(length) {
            Ok(n) if n <= left => {
                let from = self.at;
                self.at += n;
                Ok(from..self.at)
            }
            _ => {
                let end = if self.end == self.data.len() {
                    "the end of the file: is it cut off?"
                } else {
                    "the end of the message around it"
                };
                let text = format!("a field of {length} bytes where {left} are left up to {end}");
                Err(problem(start, text))
            }
        }
    }

    /// Skips to the end tag of a group; answers where that tag starts.
    fn skip_group(&mut self, number: u32, start: usize) -> Result<usize, WireError> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            let at = self.at;
            if at >= self.end {
                return Err(problem(start, "a group without an end"));
            }
            let (number, code) = self.tag()?;
            match code {
                3 if open.len() >= GROUP_DEPTH => {
                    return Err(problem(at, "groups are nested too deeply"));
                }
                3 => open.push(number),
                4 if number != innermost => {
                    return Err(problem(at, "the end of a group that isn't the innermost"));
                }
                4 => {
                    open.pop();
                    if open.is_empty() {
                        return Ok(at);
                    }
                }
                _ => {
                    self.payload(number, code, at)?;
                }
            }
        }
        Ok(self.at)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let start = self.at;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.data.get(self.at).filter(|_| self.at < self.end) else {
                return Err(problem(start, "a number is cut off"));
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(problem(start, "a number of more than 64 bits"))
    }
}

fn problem(offset: usize, problem: impl Into<String>) -> WireError {
    WireError {
        offset,
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    fn all(data: &[u8]) -> Result<Vec<(u32, Wire, Range<usize>)>, WireError> {
        let mut fields = Fields::new(data);
        let mut out = Vec::new();
        while let Some(f) = fields.next()? {
            out.push((f.number, f.wire, f.body));
        }
        Ok(out)
    }

    #[test]
    fn fields_of_every_encoding_are_told_apart() {
        let data = [
            0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 0, 0, 0, 0, 0x23, 0x08, 0x01, 0x24,
        ];
        assert_eq!(
            all(&data).unwrap(),
            [
                (1, Wire::Varint, 1..3),
                (2, Wire::Bytes, 5..7),
                (3, Wire::Fixed32, 8..12),
                (4, Wire::Group, 13..15),
            ]
        );
    }

    #[test]
    fn lengths_and_numbers_are_checked() {
        let e = all(&[0x0a, 0x05, 1]).unwrap_err();
        assert_eq!(e.offset, 0);
        assert!(e.problem.contains("5 bytes where 1 are left"), "{e:?}");
        let huge = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(
            all(&huge)
                .unwrap_err()
                .problem
                .contains("9223372036854775807")
        );
        let long = [0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2];
        assert!(all(&long).unwrap_err().problem.contains("64 bits"));
        assert!(
            all(&[0x00, 0x00])
                .unwrap_err()
                .problem
                .contains("no field number")
        );
        assert!(all(&[0x0e]).unwrap_err().problem.contains("no wire type"));
        assert!(all(&[0x0c]).unwrap_err().problem.contains("never began"));
        assert!(
            all(&[0x0b, 0x14])
                .unwrap_err()
                .problem
                .contains("innermost")
        );
        assert!(all(&[0x0b]).unwrap_err().problem.contains("without an end"));
    }
}

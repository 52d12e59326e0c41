//! Characters to words, numbers and strings.

use super::ParseError;

/// What is wrong, and at which byte.
#[derive(Debug)]
pub(super) struct Fault {
    at: usize,
    message: String,
}

impl Fault {
    pub(super) fn at(at: usize, message: String) -> Fault {
        Fault { at, message }
    }
}

/// A name and where it stands.
pub(super) struct Text {
    pub(super) at: usize,
    pub(super) text: String,
}

/// The string as UTF-8, which every name is.
pub(super) fn utf8(at: usize, bytes: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(bytes)
        .map_err(|_| Fault::at(at, "this string must be UTF-8, and isn't".to_owned()))
}

/// The text and a position in it, which always is between two characters.
pub(super) struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    pub(super) fn new(text: &'t str) -> Lexer<'t> {
        Lexer { text, at: 0 }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn first(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Passes white space and comments. `#:` starts no comment.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.trim_start();
            self.at += rest.len() - blank.len();
            let comment =
                blank.starts_with("//") || (blank.starts_with('#') && !blank.starts_with("#:"));
            if !comment {
                return;
            }
            self.at += blank.find('\n').unwrap_or(blank.len());
        }
    }

    /// Where the next word starts.
    pub(super) fn here(&mut self) -> usize {
        self.skip();
        self.at
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.skip();
        self.rest().is_empty()
    }

    pub(super) fn peek_is(&mut self, c: char) -> bool {
        self.skip();
        self.first() == Some(c)
    }

    pub(super) fn take(&mut self, c: char) -> bool {
        let there = self.peek_is(c);
        if there {
            self.at += c.len_utf8();
        }
        there
    }

    /// Takes a character that stands on this line.
    pub(super) fn take_on_line(&mut self, c: char) -> bool {
        let rest = self.rest();
        let blank = rest.trim_start_matches([' ', '\t']);
        let there = blank.starts_with(c);
        if there {
            self.at += rest.len() - blank.len() + c.len_utf8();
        }
        there
    }

    pub(super) fn take_notes_mark(&mut self) -> bool {
        self.skip();
        let there = self.rest().starts_with("#:");
        if there {
            self.at += 2;
        }
        there
    }

    pub(super) fn expect(&mut self, c: char) -> Result<(), Fault> {
        if self.take(c) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{c}`")))
        }
    }

    pub(super) fn expect_word(&mut self, word: &str) -> Result<(), Fault> {
        self.skip();
        if !self.rest().starts_with(word) {
            return Err(self.expected(&format!("`{word}`")));
        }
        self.at += word.len();
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), Fault> {
        if self.at_end() {
            Ok(())
        } else {
            Err(self.expected("the end"))
        }
    }

    // ---- words ----

    pub(super) fn peek_identifier(&mut self) -> Option<&'t str> {
        self.skip();
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        rest.get(..end).filter(|w| super::super::is_identifier(w))
    }

    pub(super) fn identifier(&mut self) -> Option<&'t str> {
        let word = self.peek_identifier()?;
        self.at += word.len();
        Some(word)
    }

    /// An identifier or a quoted string.
    pub(super) fn name(&mut self) -> Result<String, Fault> {
        if self.peek_is('"') {
            return self.utf8_string();
        }
        match self.identifier() {
            Some(word) => Ok(word.to_owned()),
            None => Err(self.expected("a name")),
        }
    }

    /// An identifier followed by a colon.
    pub(super) fn key(&mut self) -> Result<(usize, String), Fault> {
        let at = self.here();
        let Some(word) = self.identifier() else {
            return Err(self.expected("a key"));
        };
        self.expect(':')?;
        Ok((at, word.to_owned()))
    }

    // ---- strings ----

    pub(super) fn utf8_string(&mut self) -> Result<String, Fault> {
        let at = self.here();
        utf8(at, self.string()?)
    }

    pub(super) fn string(&mut self) -> Result<Vec<u8>, Fault> {
        let start = self.here();
        if !self.take('"') {
            return Err(self.expected("a string in quotes"));
        }
        let mut out = Vec::new();
        loop {
            let at = self.at;
            match self.next() {
                None => return Err(Fault::at(start, "this string has no end".to_owned())),
                Some('"') => return Ok(out),
                Some('\\') => self.escape(at, &mut out)?,
                Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.first()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// What follows a backslash, which stood at `at`. Other characters stand for themselves.
    fn escape(&mut self, at: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
        let c = match self.next() {
            None => return Ok(()),
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('x') => {
                let digits = self.rest().get(..2).unwrap_or("");
                let byte = u8::from_str_radix(digits, 16)
                    .map_err(|_| Fault::at(at, "`\\x` needs two hexadecimal digits".to_owned()))?;
                self.at += 2;
                out.push(byte);
                return Ok(());
            }
            Some('u') => {
                let rest = self.rest();
                let inside = rest.strip_prefix('{').and_then(|r| r.split_once('}'));
                let digits = inside.map_or("", |(digits, _)| digits);
                let c = u32::from_str_radix(digits, 16)
                    .ok()
                    .and_then(char::from_u32)
                    .ok_or_else(|| {
                        let what = "`\\u` needs a character's number, such as `\\u{2028}`";
                        Fault::at(at, what.to_owned())
                    })?;
                self.at += digits.len() + 2;
                c
            }
            Some(c) => c,
        };
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    // ---- numbers ----

    pub(super) fn int(&mut self) -> Result<i64, Fault> {
        match self.number()? {
            Some(n) if n.is_integer() => n.parse_int(),
            Some(n) => Err(Fault::at(
                n.at,
                format!("expected an integer, found `{}`", n.text),
            )),
            None => Err(self.expected("an integer")),
        }
    }

    /// The number that starts here, if one does.
    pub(super) fn number(&mut self) -> Result<Option<Number<'t>>, Fault> {
        let at = self.here();
        let rest = self.rest();
        let body = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - body.len();
        let digits = |from: usize| {
            body.bytes()
                .skip(from)
                .take_while(u8::is_ascii_digit)
                .count()
        };
        let word_end = body
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(body.len());
        let word = body.get(..word_end).unwrap_or("");
        let mut end;
        if ["inf", "infinity", "nan"].contains(&word.to_ascii_lowercase().as_str()) {
            end = word_end;
            let bits = body.get(end..).and_then(|r| r.strip_prefix('('));
            if let (true, Some(bits)) = (word == "nan", bits) {
                let close = bits
                    .find(')')
                    .ok_or_else(|| Fault::at(at, "`nan(` needs its bits and `)`".to_owned()))?;
                end += close + 2;
            }
        } else {
            end = digits(0);
            if end == 0 {
                return Ok(None);
            }
            if body.as_bytes().get(end) == Some(&b'.') {
                end += 1 + digits(end + 1);
            }
            if matches!(body.as_bytes().get(end), Some(b'e' | b'E')) {
                let signed = matches!(body.as_bytes().get(end + 1), Some(b'+' | b'-'));
                let from = end + 1 + usize::from(signed);
                if digits(from) > 0 {
                    end = from + digits(from);
                }
            }
        }
        let text = rest.get(..sign + end).unwrap_or("");
        self.at += text.len();
        Ok(Some(Number { at, text }))
    }

    // ---- errors ----

    /// What stands at a position, for a message.
    pub(super) fn found(&self, at: usize) -> String {
        let rest = self.text.get(at..).unwrap_or("");
        let Some(first) = rest.chars().next() else {
            return "the end".to_owned();
        };
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let shown: String = if word(first) {
            rest.chars().take_while(|c| word(*c)).take(40).collect()
        } else {
            first.to_string()
        };
        format!("`{}`", crate::escape(&shown))
    }

    pub(super) fn expected(&mut self, what: &str) -> Fault {
        let at = self.here();
        Fault::at(at, format!("expected {what}, found {}", self.found(at)))
    }

    pub(super) fn fault(&mut self, message: String) -> Fault {
        Fault::at(self.here(), message)
    }

    pub(super) fn error(&self, fault: Fault) -> ParseError {
        let (before, after) = match self.text.split_at_checked(fault.at) {
            Some(parts) => parts,
            None => (self.text, ""),
        };
        let line = before.matches('\n').count() + 1;
        let before = before.rsplit('\n').next().unwrap_or("");
        let after = after.split('\n').next().unwrap_or("");
        // A window of the line, so that a line of a million elements stays readable.
        let skipped = before.chars().count().saturating_sub(60);
        let head: String = before.chars().skip(skipped).collect();
        let tail: String = after.chars().take(40).collect();
        let escaped = |text: &str| crate::escape(&text.replace('\t', " "));
        let dots = if skipped > 0 { "…" } else { "" };
        let head = format!("{dots}{}", escaped(&head));
        ParseError {
            line,
            column: before.chars().count() + 1,
            message: fault.message,
            caret: head.chars().count(),
            shown: head + escaped(&tail).trim_end(),
        }
    }
}

/// A number as written.
#[derive(Clone, Copy)]
pub(super) struct Number<'t> {
    pub(super) at: usize,
    text: &'t str,
}

impl Number<'_> {
    pub(super) fn is_integer(&self) -> bool {
        self.text.bytes().all(|b| b.is_ascii_digit() || b == b'-')
    }

    fn misfit(&self, kind: &str) -> Fault {
        let text = crate::escape(self.text);
        Fault::at(self.at, format!("expected {kind}, found `{text}`"))
    }

    pub(super) fn parse_int(&self) -> Result<i64, Fault> {
        self.text
            .parse()
            .map_err(|_| self.misfit("a 64-bit integer"))
    }

    /// An integer between two bounds, both included.
    pub(super) fn parse_within(&self, low: i128, high: i128) -> Result<i128, Fault> {
        match self.text.parse() {
            Ok(v) if low <= v && v <= high => Ok(v),
            _ => Err(self.misfit(&format!("an integer from {low} to {high}"))),
        }
    }

    /// The bits of `nan(0x…)`.
    fn nan_bits(&self) -> Option<Result<u64, Fault>> {
        let bits = self.text.strip_prefix("nan(")?.strip_suffix(')')?;
        let bits = bits
            .strip_prefix("0x")
            .and_then(|b| u64::from_str_radix(b, 16).ok());
        Some(bits.ok_or_else(|| self.misfit("the bits of a NaN, such as `nan(0x7fc00001)`")))
    }

    pub(super) fn parse_f32(&self) -> Result<f32, Fault> {
        if let Some(bits) = self.nan_bits() {
            let v = u32::try_from(bits?).ok().map(f32::from_bits);
            return v
                .filter(|v| v.is_nan())
                .ok_or_else(|| self.misfit("the bits of a 32-bit NaN"));
        }
        // How a platform parses "nan" is its own affair; this is the common quiet one.
        if self.text.eq_ignore_ascii_case("nan") {
            return Ok(f32::from_bits(0x7fc0_0000));
        }
        let v: f32 = self.text.parse().map_err(|_| self.misfit("a number"))?;
        self.in_range(v.is_infinite(), "a number that fits 32-bit floats")?;
        Ok(v)
    }

    pub(super) fn parse_f64(&self) -> Result<f64, Fault> {
        if let Some(bits) = self.nan_bits() {
            return Some(f64::from_bits(bits?))
                .filter(|v| v.is_nan())
                .ok_or_else(|| self.misfit("the bits of a 64-bit NaN"));
        }
        if self.text.eq_ignore_ascii_case("nan") {
            return Ok(f64::from_bits(0x7ff8_0000_0000_0000));
        }
        let v: f64 = self.text.parse().map_err(|_| self.misfit("a number"))?;
        self.in_range(v.is_infinite(), "a number that fits 64-bit floats")?;
        Ok(v)
    }

    /// Refuses digits that overflow to infinity.
    fn in_range(&self, infinite: bool, what: &str) -> Result<(), Fault> {
        match infinite && self.text.bytes().any(|b| b.is_ascii_digit()) {
            true => Err(self.misfit(what)),
            false => Ok(()),
        }
    }
}

//! A strict JSON reader: it refuses what other readers guess about, and says where.
//!
//! `serde_json::Value` takes the last of two equal keys in silence and turns a long integer into a float. What a
//! script says must not change on its way, so this reader refuses duplicate keys (also `"\u0061"` beside `"a"`),
//! lone surrogates, NaN and Infinity, numbers no double can hold, a byte order mark, and anything nested deeper
//! than asked; it keeps numbers as they were written, and keys in their order. Only objects become a tree,
//! because only objects merge; every other value stays a checked piece of the source, so memory stays
//! within a small multiple of the input.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::de::{Deserialize, Deserializer};
use serde::ser::{Error as _, Serialize, Serializer};
use serde_json::value::RawValue;

/// The deepest nesting any caller may ask for: the reader recurses, and this bounds its stack.
pub const DEPTH_CEILING: usize = 128;

/// Below this many members an object is searched from front to back; above, by an index.
const INDEX_FROM: usize = 16;

/// What is wrong with a piece of JSON, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at byte {offset})")]
pub struct JsonError {
    /// Bytes before the first one that cannot stand, counted from the start of the text.
    pub offset: usize,
    /// What is wrong there: a lower-case fragment for people.
    pub message: String,
    /// The value is longer than the reader was told to accept; it may be well-formed otherwise.
    pub too_long: bool,
}

impl JsonError {
    /// Returns an error of form (not of size) at `offset`.
    pub fn new(offset: usize, message: impl Into<String>) -> Self {
        Self { offset, message: message.into(), too_long: false }
    }
}

/// One JSON value as compact text: no white space outside strings, numbers as they were written, keys in order.
///
/// It serializes as the value itself, not as a string. The text of a number survives only formats that carry raw
/// JSON (`serde_json` to and from text).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    /// Returns the empty object, `{}`.
    pub fn empty_object() -> Self {
        Self("{}".to_owned())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the text, giving up the wrapper.
    pub fn into_string(self) -> String {
        self.0
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let node = parse(raw.get(), DEPTH_CEILING).map_err(serde::de::Error::custom)?;
        Ok(node.to_json())
    }
}

/// A value: an object as a tree, everything else as the checked text it was written in.
#[derive(Debug, Clone)]
pub enum Node<'a> {
    /// An array or a scalar: its source text, from its first to its last byte.
    Leaf(&'a str),
    /// An object.
    Object(Members<'a>),
}

impl<'a> Node<'a> {
    /// Appends the compact text. Strings come out with the fewest escapes, so equal strings have equal text.
    pub fn write(&self, out: &mut String) {
        match self {
            Node::Leaf(text) => write_compact(text, out),
            Node::Object(members) => members.write(out),
        }
    }

    /// Returns the compact text.
    pub fn to_json(&self) -> JsonText {
        let mut out = String::new();
        self.write(&mut out);
        JsonText(out)
    }

    /// Returns the string if this is one.
    pub fn as_string(&self) -> Option<Cow<'a, str>> {
        match self {
            Node::Leaf(text) if text.starts_with('"') => Parser::new(text, 1).string().ok(),
            _ => None,
        }
    }
}

/// The members of an object, in the order their keys first appeared, each key once.
#[derive(Debug, Clone, Default)]
pub struct Members<'a> {
    entries: Vec<(Cow<'a, str>, Node<'a>)>,
    /// Position by key, once there are enough members for a search to cost something.
    #[expect(
        clippy::box_collection,
        reason = "most objects have none: a box keeps each of them 40 bytes smaller"
    )]
    index: Option<Box<HashMap<Cow<'a, str>, usize>>>,
}

impl<'a> Members<'a> {
    /// Returns how many members there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node<'a>)> {
        self.entries.iter().map(|(key, value)| (key.as_ref(), value))
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<&Node<'a>> {
        self.position(key).map(|at| &self.entries[at].1)
    }

    /// Takes the member `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Node<'a>> {
        let at = self.position(key)?;
        self.index = None;
        let (_, value) = self.entries.remove(at);
        self.index_if_large();
        Some(value)
    }

    /// Sets `key`, keeping its place if it is there already, and returns the value it had.
    pub fn insert(&mut self, key: Cow<'a, str>, value: Node<'a>) -> Option<Node<'a>> {
        if let Some(at) = self.position(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        if let Some(index) = &mut self.index {
            index.insert(key.clone(), self.entries.len());
        }
        self.entries.push((key, value));
        self.index_if_large();
        None
    }

    /// Merges `later` into this object: object into object, anything else replaces. `null` is a value and
    /// deletes nothing.
    pub fn merge(&mut self, later: Members<'a>) {
        for (key, value) in later.entries {
            let at = self.position(&key);
            match (at.map(|at| &mut self.entries[at].1), value) {
                (Some(Node::Object(mine)), Node::Object(theirs)) => mine.merge(theirs),
                (Some(mine), value) => *mine = value,
                (None, value) => {
                    self.insert(key, value);
                }
            }
        }
    }

    /// Returns the path (keys joined by dots) of the first member that both objects set to different values.
    /// Numbers differ when they are written differently.
    pub fn conflict(&self, other: &Members<'a>) -> Option<String> {
        for (key, theirs) in &other.entries {
            let inner = match (self.get(key), theirs) {
                (None, _) => None,
                (Some(Node::Object(mine)), Node::Object(theirs)) => mine.conflict(theirs),
                (Some(mine), theirs) if mine.to_json() != theirs.to_json() => return Some(key.to_string()),
                (Some(_), _) => None,
            };
            if let Some(inner) = inner {
                return Some(format!("{key}.{inner}"));
            }
        }
        None
    }

    /// Appends the compact text of the object.
    pub fn write(&self, out: &mut String) {
        out.push('{');
        for (i, (key, value)) in self.entries.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            quote(key, out);
            out.push(':');
            value.write(out);
        }
        out.push('}');
    }

    fn position(&self, key: &str) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(key).copied(),
            None => self.entries.iter().position(|(have, _)| have == key),
        }
    }

    fn index_if_large(&mut self) {
        if self.index.is_none() && self.entries.len() >= INDEX_FROM {
            let keys = self.entries.iter().enumerate().map(|(at, (key, _))| (key.clone(), at));
            self.index = Some(Box::new(keys.collect()));
        }
    }
}

/// Returns the bytes as text; refuses a byte order mark and broken UTF-8.
///
/// # Errors
/// With the offset of the first byte that is not UTF-8.
pub fn utf8(bytes: &[u8]) -> Result<&str, JsonError> {
    match utf8_prefix(bytes) {
        (text, None) => Ok(text),
        (_, Some(error)) => Err(error),
    }
}

/// Returns the part before the first bad byte, and what is wrong with that byte.
pub fn utf8_prefix(bytes: &[u8]) -> (&str, Option<JsonError>) {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return ("", Some(JsonError::new(0, "a byte order mark is not JSON")));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let at = error.valid_up_to();
            let text = std::str::from_utf8(&bytes[..at]).unwrap_or_default();
            (text, Some(JsonError::new(at, "not UTF-8")))
        }
    }
}

/// Reads exactly one value; white space may stand around it.
///
/// # Errors
/// With the offset of the first byte that cannot stand.
pub fn parse(text: &str, max_depth: usize) -> Result<Node<'_>, JsonError> {
    let mut parser = Parser::new(text, max_depth);
    let Some((_, node)) = parser.next_value()? else {
        return Err(parser.error("expected a JSON value, found nothing"));
    };
    parser.skip_space();
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err(parser.error("only one JSON value may stand here, found more")),
    }
}

/// Appends `text` as a JSON string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Reads a stream of values, one after the other, in any layout.
#[derive(Debug)]
pub struct Parser<'a> {
    text: &'a str,
    pos: usize,
    depth: usize,
    max_depth: usize,
    max_bytes: usize,
    /// Where the top-level value being read began.
    start: usize,
}

impl<'a> Parser<'a> {
    /// Returns a reader that accepts nesting up to `max_depth` (at most [`DEPTH_CEILING`]).
    pub fn new(text: &'a str, max_depth: usize) -> Self {
        Self {
            text,
            pos: 0,
            depth: 0,
            max_depth: max_depth.min(DEPTH_CEILING),
            max_bytes: usize::MAX,
            start: 0,
        }
    }

    /// Makes values longer than `bytes` an error marked `too_long`, found before they are read whole.
    pub fn set_max_bytes(&mut self, bytes: usize) {
        self.max_bytes = bytes;
    }

    /// Returns how many bytes have been read.
    pub fn offset(&self) -> usize {
        self.pos
    }

    /// Reads the next value and returns it with the offset of its first byte; `None` at the end of the text.
    ///
    /// # Errors
    /// With the offset of the first byte that cannot stand. The reader is of no use afterwards.
    pub fn next_value(&mut self) -> Result<Option<(usize, Node<'a>)>, JsonError> {
        self.skip_space();
        if self.peek().is_none() {
            return Ok(None);
        }
        self.start = self.pos;
        let node = self.value()?;
        self.check_length()?;
        Ok(Some((self.start, node)))
    }

    fn value(&mut self) -> Result<Node<'a>, JsonError> {
        self.check_length()?;
        let from = self.pos;
        match self.peek() {
            Some(b'{') => return self.object().map(Node::Object),
            Some(b'[') => self.array()?,
            Some(b'"') => {
                self.string()?;
            }
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true")?,
            Some(b'f') => self.word("false")?,
            Some(b'n') => self.word("null")?,
            _ => return Err(self.unexpected("a JSON value")),
        }
        Ok(Node::Leaf(&self.text[from..self.pos]))
    }

    fn object(&mut self) -> Result<Members<'a>, JsonError> {
        self.enter()?;
        let mut members = Members::default();
        self.skip_space();
        if self.take(b'}') {
            self.depth -= 1;
            return Ok(members);
        }
        loop {
            self.skip_space();
            let at = self.pos;
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("a key in double quotes"));
            }
            let key = self.string()?;
            self.skip_space();
            if !self.take(b':') {
                return Err(self.unexpected("`:` after the key"));
            }
            self.skip_space();
            let value = self.value()?;
            if members.get(&key).is_some() {
                return Err(JsonError::new(
                    at,
                    format!("the key \"{}\" stands twice in one object", brief(&key)),
                ));
            }
            members.insert(key, value);
            self.skip_space();
            if self.take(b'}') {
                self.depth -= 1;
                return Ok(members);
            }
            if !self.take(b',') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
    }

    fn array(&mut self) -> Result<(), JsonError> {
        self.enter()?;
        self.skip_space();
        if self.take(b']') {
            self.depth -= 1;
            return Ok(());
        }
        loop {
            self.skip_space();
            self.value()?;
            self.skip_space();
            if self.take(b']') {
                self.depth -= 1;
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
    }

    /// Reads a string; one without escapes is borrowed.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.pos += 1;
        let text = self.text;
        let mut from = self.pos;
        let mut decoded: Option<String> = None;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let tail = &text[from..self.pos];
                    self.pos += 1;
                    return Ok(match decoded {
                        None => Cow::Borrowed(tail),
                        Some(head) => Cow::Owned(head + tail),
                    });
                }
                Some(b'\\') => {
                    let out = decoded.get_or_insert_default();
                    out.push_str(&text[from..self.pos]);
                    out.push(self.escape()?);
                    from = self.pos;
                }
                Some(0..=0x1f) => return Err(self.error("a control character in a string must be escaped")),
                Some(_) => self.pos += 1,
                None => return Err(self.unexpected("the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let at = self.pos;
        self.pos += 2;
        let plain = match self.text.as_bytes().get(at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(at),
            Some(_) => return Err(JsonError::new(at, "no such escape in JSON")),
            None => {
                self.pos = self.text.len();
                return Err(self.unexpected("the end of the string"));
            }
        };
        Ok(plain)
    }

    fn unicode_escape(&mut self, at: usize) -> Result<char, JsonError> {
        let lone = || JsonError::new(at, "half of a surrogate pair stands alone");
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !(self.take(b'\\') && self.take(b'u')) {
                    return Err(lone());
                }
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(lone());
                }
                0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            _ => first,
        };
        char::from_u32(code).ok_or_else(lone)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|b| (b as char).to_digit(16));
            let Some(digit) = digit else {
                return Err(self.unexpected("four hexadecimal digits after `\\u`"));
            };
            code = code * 16 + digit;
            self.pos += 1;
        }
        Ok(code)
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let from = self.pos;
        self.take(b'-');
        if self.peek() == Some(b'0') {
            self.pos += 1;
            if self.peek().is_some_and(|b| b.is_ascii_digit()) {
                return Err(self.error("a number must not begin with 0"));
            }
        } else {
            self.digits()?;
        }
        let mut long = self.pos - from > 300;
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            long = true;
            if !self.take(b'+') {
                self.take(b'-');
            }
            self.digits()?;
        }
        // Most readers would make Infinity of it, and some refuse it: nobody shall have to find out which.
        if long && !self.text[from..self.pos].parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(JsonError::new(from, "the number is beyond what a double can hold"));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let from = self.pos;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.pos += 1;
        }
        if self.pos > from { Ok(()) } else { Err(self.unexpected("a digit")) }
    }

    fn word(&mut self, word: &str) -> Result<(), JsonError> {
        for &expected in word.as_bytes() {
            if self.peek() != Some(expected) {
                return Err(self.unexpected(&format!("`{word}`")));
            }
            self.pos += 1;
        }
        Ok(())
    }

    fn enter(&mut self) -> Result<(), JsonError> {
        self.depth += 1;
        if self.depth > self.max_depth {
            return Err(self.error(format!("nested deeper than {} levels", self.max_depth)));
        }
        self.pos += 1;
        Ok(())
    }

    fn check_length(&self) -> Result<(), JsonError> {
        if self.pos - self.start <= self.max_bytes {
            return Ok(());
        }
        let message = format!("a value of more than {} bytes", self.max_bytes);
        Err(JsonError { offset: self.start, message, too_long: true })
    }

    /// Moves over white space.
    pub fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.pos += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let here = self.peek() == Some(byte);
        self.pos += usize::from(here);
        here
    }

    fn error(&self, message: impl Into<String>) -> JsonError {
        JsonError::new(self.pos, message)
    }

    fn unexpected(&self, expected: &str) -> JsonError {
        let rest = &self.text[self.text.floor_char_boundary(self.pos)..];
        let found = match rest.chars().next() {
            None => "the end".to_owned(),
            Some(c) if c.is_control() => format!("byte 0x{:02x}", c as u32),
            Some(c) => format!("`{c}`"),
        };
        let hint = if rest.starts_with("NaN") || rest.starts_with("Infinity") || rest.starts_with('I') {
            "; NaN and Infinity are not JSON, use null or a string"
        } else if rest.starts_with('\'') {
            "; JSON has double quotes only"
        } else if rest.starts_with(['T', 'F', 'N']) {
            "; JSON writes true, false and null in small letters"
        } else {
            ""
        };
        self.error(format!("expected {expected}, found {found}{hint}"))
    }
}

/// Appends a checked piece of JSON without the white space outside its strings.
fn write_compact(text: &str, out: &mut String) {
    let mut parser = Parser::new(text, 1);
    while let Some(byte) = parser.peek() {
        match byte {
            b'"' => {
                let from = parser.pos;
                match parser.string() {
                    Ok(Cow::Borrowed(_)) => out.push_str(&text[from..parser.pos]),
                    Ok(Cow::Owned(decoded)) => quote(&decoded, out),
                    // NOTE: not reached, a leaf has been read before; the text as it is stays the honest answer.
                    Err(_) => return out.push_str(&text[from..]),
                }
            }
            b' ' | b'\t' | b'\n' | b'\r' => parser.pos += 1,
            _ => {
                out.push(byte as char);
                parser.pos += 1;
            }
        }
    }
}

/// Returns at most 64 characters of a key, for a message.
fn brief(key: &str) -> String {
    let mut short: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
    if key.chars().count() > 64 {
        short.push('…');
    }
    short
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;

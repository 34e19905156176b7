//! Makes what scripts and agents say safe to show: it cannot drive the reader's terminal.

use encoding_rs::{CoderResult, Decoder, Encoding};
pub(super) use sally_common::text::{sanitise, sanitise_json};

/// [`sanitise`] on one line.
pub(super) fn sanitise_line(text: &str) -> String {
    sanitise(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// Reads an encoding's name, as in `--encoding gb18030`.
pub(super) fn encoding(name: &str) -> Result<&'static Encoding, String> {
    Encoding::for_label(name.as_bytes()).ok_or_else(|| {
        format!(
            "\"{}\" is not an encoding: use a name like gb18030, shift_jis, windows-1252 or utf-8",
            sally_common::name::show(name)
        )
    })
}

/// Turns a stream's bytes into text while they come: a character cut in two by a chunk's end waits for its
/// other half.
pub(super) enum Reader {
    /// UTF-8; bytes that are not are shown as `\xNN`.
    Utf8 {
        /// The beginning of a character.
        tail: Vec<u8>,
    },
    /// Another encoding.
    Other(Box<Decoder>),
}

impl Reader {
    /// A reader of this encoding, UTF-8 if none is named.
    pub(super) fn new(encoding: Option<&'static Encoding>) -> Self {
        match encoding {
            None => Self::Utf8 { tail: Vec::new() },
            Some(encoding) => Self::Other(Box::new(encoding.new_decoder_with_bom_removal())),
        }
    }

    /// Bytes that were taken and wait for the rest of their character, as far as is known.
    pub(super) fn held_back(&self) -> u64 {
        match self {
            Self::Utf8 { tail } => tail.len() as u64,
            Self::Other(_) => 0,
        }
    }

    /// Takes bytes; returns the text that is complete, not yet sanitised.
    pub(super) fn push(&mut self, bytes: &[u8], last: bool) -> String {
        match self {
            Self::Utf8 { tail } => {
                tail.extend_from_slice(bytes);
                let (text, used) = utf8(tail, last);
                tail.drain(..used);
                text
            }
            Self::Other(decoder) => {
                let room = decoder.max_utf8_buffer_length(bytes.len()).unwrap_or(bytes.len() * 4 + 16);
                let mut text = String::with_capacity(room);
                let (result, _, _) = decoder.decode_to_string(bytes, &mut text, last);
                debug_assert!(matches!(result, CoderResult::InputEmpty));
                text
            }
        }
    }
}

/// Text of bytes at once.
pub(super) fn read(bytes: &[u8], encoding: Option<&'static Encoding>) -> String {
    Reader::new(encoding).push(bytes, true)
}

/// Decodes as much as is whole; bytes that can never be UTF-8 become `\xNN`.
fn utf8(bytes: &[u8], last: bool) -> (String, usize) {
    let (mut text, mut used) = (String::with_capacity(bytes.len()), 0);
    while used < bytes.len() {
        match std::str::from_utf8(&bytes[used..]) {
            Ok(rest) => {
                text.push_str(rest);
                used = bytes.len();
            }
            Err(error) => {
                let good = used + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[used..good]).unwrap_or_default());
                used = good;
                let bad = match error.error_len() {
                    Some(n) => n,
                    None if last => bytes.len() - good,
                    None => break,
                };
                bytes[good..good + bad].iter().for_each(|b| text.push_str(&format!("\\x{b:02x}")));
                used += bad;
            }
        }
    }
    (text, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_drives_the_terminal() {
        for (text, shown) in [
            ("plain\n\tä 中 ✓", "plain\n\tä 中 ✓"),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "\\x1b[2J\\x1b]0;title\\x07"),
            ("a\rb\u{8}", "a\\x0db\\x08"),
            ("\u{9b}31m\u{7f}", "\\x9b31m\\x7f"),
            ("abc\u{202e}cba", "abc\\u{202e}cba"),
        ] {
            assert_eq!(sanitise(text), shown);
        }
        assert_eq!(sanitise_line("a\nb"), "a\\nb");
        let json = "{\n \"a\":\"\u{9b}2J\u{202e}\u{7f}ä\"}";
        let safe = sanitise_json(json);
        assert_eq!(safe, "{\n \"a\":\"\\u009b2J\\u202e\\u007fä\"}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(read(&safe), read(json));
    }

    #[test]
    fn a_character_may_come_in_two_chunks() {
        let mut reader = Reader::new(None);
        assert_eq!(reader.push("a中".as_bytes().split_at(2).0, false), "a");
        assert_eq!(reader.push(&"a中".as_bytes()[2..], false), "中");
        assert_eq!(reader.push(b"\xff\xe4", false), "\\xff");
        assert_eq!(reader.push(b"", true), "\\xe4");

        let gb = encoding("GB18030").expect("known");
        let mut reader = Reader::new(Some(gb));
        assert_eq!(reader.push(b"\xd6", false), "");
        assert_eq!(reader.push(b"\xd0\xce\xc4", true), "中文");
        assert!(encoding("klingon").is_err());
    }
}

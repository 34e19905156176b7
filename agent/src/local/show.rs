//! A script's output for whoever runs `sally-agent`: byte for byte into files and pipes, safe to see on a terminal.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};

use sally_common::text::{sanitise, sanitise_json};

/// Standard output or standard error, as a script's output goes there.
pub struct Shown {
    sink: Box<dyn Write>,
    on_terminal: bool,
    /// The beginning of a character, on a terminal.
    tail: Vec<u8>,
}

impl Shown {
    /// Standard output.
    pub fn stdout() -> Self {
        let sink = io::stdout();
        Shown { on_terminal: sink.is_terminal(), sink: Box::new(sink), tail: Vec::new() }
    }

    /// Standard error.
    pub fn stderr() -> Self {
        let sink = io::stderr();
        Shown { on_terminal: sink.is_terminal(), sink: Box::new(sink), tail: Vec::new() }
    }

    /// Writes bytes through, at once.
    ///
    /// # Errors
    /// Nobody reads them any more, or they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.on_terminal {
            self.tail.extend_from_slice(bytes);
            let (text, used) = safe(&self.tail);
            self.tail.drain(..used);
            self.sink.write_all(text.as_bytes())?;
        } else {
            self.sink.write_all(bytes)?;
        }
        self.sink.flush()
    }
}

/// Writes text to standard output.
///
/// # Errors
/// Nobody reads it, or it cannot be written.
pub fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    if out.is_terminal() { out.write_all(sanitise(text).as_bytes()) } else { out.write_all(text.as_bytes()) }
}

/// Writes JSON to standard output.
///
/// # Errors
/// Nobody reads it, or it cannot be written.
pub fn json(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    if out.is_terminal() {
        out.write_all(sanitise_json(text).as_bytes())
    } else {
        out.write_all(text.as_bytes())
    }
}

/// The text of the bytes, with an escape for each that is none, and how many were used: a character that may still be
/// completed is left.
fn safe(bytes: &[u8]) -> (String, usize) {
    let (mut text, mut used) = (String::new(), 0);
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(&sanitise(chunk.valid()));
        used += chunk.valid().len();
        let rest = &bytes[used..];
        let may_go_on = chunks.peek().is_none()
            && std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
        if may_go_on {
            break;
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
        used += chunk.invalid().len();
    }
    (text, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_commands_and_whole_characters() {
        assert_eq!(safe(b"a\x1b[2Jb\n"), ("a\\x1b[2Jb\n".to_owned(), 7));
        let word = "é".as_bytes();
        assert_eq!(safe(&word[..1]), (String::new(), 0), "the other half may come");
        assert_eq!(safe(word), ("é".to_owned(), 2));
        assert_eq!(safe(b"\xffx"), ("\\xffx".to_owned(), 2));
        assert_eq!(safe(b"\xc2\x9bx"), ("\\x9bx".to_owned(), 3), "an 8-bit command");
    }
}

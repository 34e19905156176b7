//! Writes to stdout and stderr: data to the one, everything else to the other.
//!
//! Bytes of scripts go through unchanged when nobody's terminal is at the end. Colour is dropped where it is
//! not wanted (`NO_COLOR`, no terminal).

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::text;

/// Writes bytes to stdout exactly as they are.
pub(super) fn data(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes bytes to stderr exactly as they are.
pub(super) fn error_data(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

/// Writes text with colours to stdout.
pub(super) fn styled(text: &str) -> io::Result<()> {
    let mut stdout = anstream::AutoStream::auto(io::stdout()).lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Writes text with colours to stderr, without adding a line feed.
pub(super) fn error_styled(text: &str) -> io::Result<()> {
    anstream::AutoStream::auto(io::stderr()).lock().write_all(text.as_bytes())
}

/// Writes one line to stderr, for people.
pub(super) fn note(line: &str) -> io::Result<()> {
    error_styled(&format!("{line}\n"))
}

/// Writes a value to stdout as JSON, indented.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    json_text(serde_json::to_string_pretty(value).map_err(io::Error::other)?)
}

/// Writes a value to stdout as one line of JSON.
pub(super) fn json_line(value: &impl Serialize) -> io::Result<()> {
    json_text(serde_json::to_string(value).map_err(io::Error::other)?)
}

/// Writes JSON to stdout, ended by a line feed. What would drive a terminal is escaped there: the value is the same.
pub(super) fn json_text(mut json: String) -> io::Result<()> {
    json.push('\n');
    if is_terminal() { data(text::sanitise_json(&json).as_bytes()) } else { data(json.as_bytes()) }
}

/// Writes text with what scripts said in it to stdout: as it is for programs, without control characters for people.
pub(super) fn quoted(content: &str) -> io::Result<()> {
    if is_terminal() { data(text::sanitise(content).as_bytes()) } else { data(content.as_bytes()) }
}

/// Whether stdout is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether stderr is a terminal.
pub(super) fn error_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether a stream takes colours: a terminal, and `NO_COLOR` and its like do not say otherwise.
pub(super) fn wants_colour(stream: &str) -> bool {
    let choice = if stream == "stdout" {
        anstream::AutoStream::choice(&io::stdout())
    } else {
        anstream::AutoStream::choice(&io::stderr())
    };
    choice != anstream::ColorChoice::Never
}

//! Output as it comes: bytes of one target unchanged, lines of several with their agent's name.

use std::collections::{HashMap, HashSet};

use anstyle::{AnsiColor, Color, Style};
use encoding_rs::Encoding;
use sally_common::id::RunId;
use sally_common::wire::record::RunRecord;

use super::logs::{self, Drained, Place, Read, STREAMS};
use super::text::{self, Reader};
use super::{CliError, fold, out, table};
use crate::client::Client;

/// The longest line that is held back until its end comes, in bytes.
const LINE_MAX: usize = 64 * 1024;

/// How live output looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// One target's bytes as they are.
    Through,
    /// Lines with the agent's name before them.
    Prefixed,
}

/// Shows output live, each byte once: offsets say what was shown and what is missing.
pub(super) struct Live {
    client: Client,
    look: Look,
    encoding: Option<&'static Encoding>,
    /// Raw bytes even onto a terminal.
    raw: bool,
    wanted: Vec<&'static str>,
    /// These runs only; all if `None`.
    runs: Option<HashSet<RunId>>,
    streams: HashMap<(RunId, &'static str), Stream>,
    /// The attempt of each run whose output is shown; another one begins anew.
    attempts: HashMap<RunId, u32>,
}

struct Stream {
    /// Bytes that were taken.
    shown: u64,
    /// Bytes up to the end of the last line that was written whole.
    lines_end: u64,
    reader: Reader,
    line: String,
}

impl Live {
    pub(super) fn new(client: Client, look: Look, encoding: Option<&'static Encoding>, raw: bool) -> Self {
        let (streams, attempts) = (HashMap::new(), HashMap::new());
        Self { client, look, encoding, raw, wanted: STREAMS.to_vec(), runs: None, streams, attempts }
    }

    /// Shows these streams only.
    pub(super) fn only(&mut self, streams: impl Iterator<Item = &'static str>) {
        self.wanted = streams.collect();
    }

    /// Shows these runs only.
    pub(super) fn only_runs(&mut self, runs: impl Iterator<Item = RunId>) {
        self.runs = Some(runs.collect());
    }

    fn wants(&self, run: &RunId, stream: &str) -> bool {
        self.wanted.contains(&stream) && self.runs.as_ref().is_none_or(|runs| runs.contains(run))
    }

    /// Shows a piece that arrived; a gap before it is filled from the store.
    pub(super) async fn take(
        &mut self,
        run: &RunId,
        agent: &str,
        stream: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), CliError> {
        let Some(stream) = STREAMS.into_iter().find(|s| *s == stream) else { return Ok(()) };
        if !self.wants(run, stream) {
            return Ok(());
        }
        if offset > self.shown(run, stream) {
            self.fill(run, agent, stream, false).await?;
        }
        let shown = self.shown(run, stream);
        if offset > shown {
            // Not stored yet: the piece is left to the store, which will have both.
            return Ok(());
        }
        let skip = usize::try_from(shown - offset).unwrap_or(usize::MAX).min(bytes.len());
        self.show(run, agent, stream, &bytes[skip..])
    }

    /// Notices that a run is at another attempt, whose output begins at its first byte again. What an ended attempt has left
    /// in the store is shown before that.
    pub(super) async fn attempt(&mut self, run: &RunRecord) -> Result<(), CliError> {
        let known = self.attempts.insert(run.run.clone(), run.attempt);
        let agent = run.agent.as_str();
        if known.is_some_and(|known| known != run.attempt) {
            for stream in STREAMS {
                self.flush(&run.run, agent, stream)?;
                self.streams.remove(&(run.run.clone(), stream));
            }
        } else if run.retry_at.is_some() {
            for stream in STREAMS.into_iter().filter(|s| self.wants(&run.run, s)).collect::<Vec<_>>() {
                self.fill(&run.run, agent, stream, false).await?;
                self.flush(&run.run, agent, stream)?;
            }
        }
        Ok(())
    }

    /// How far each stream was shown, for going on there later.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |((run, stream), s): (&(RunId, &'static str), &Stream)| Place {
            run: run.index(),
            attempt: self.attempts.get(run).copied().unwrap_or(1),
            stream,
            from: match self.look {
                Look::Through => s.shown - s.reader.held_back().min(s.shown),
                Look::Prefixed => s.lines_end,
            },
        };
        let mut places: Vec<Place> = self.streams.iter().map(place).filter(|p| p.from > 0).collect();
        places.sort_by_key(|p| (p.run, p.stream));
        places
    }

    /// Shows what is left of an ended run. `whole` says that its record has everything.
    pub(super) async fn end(&mut self, run: &RunRecord, whole: bool) -> Result<(), CliError> {
        let agent = run.agent.as_str();
        let inside = [
            (&run.stdout, run.stdout_encoding, run.stdout_truncated_bytes),
            (&run.stderr, run.stderr_encoding, run.stderr_truncated_bytes),
        ];
        for (stream, (content, encoding, missing)) in STREAMS.into_iter().zip(inside) {
            if !self.wants(&run.run, stream) {
                continue;
            }
            if whole && missing == 0 {
                let bytes = fold::bytes(content, encoding);
                let shown = usize::try_from(self.shown(&run.run, stream)).unwrap_or(usize::MAX);
                self.show(&run.run, agent, stream, bytes.get(shown..).unwrap_or_default())?;
            } else if run.started_at.is_some() {
                let wait = logs::may_come(run.state);
                let drained = self.fill(&run.run, agent, stream, wait).await?;
                let mark = incomplete(agent, stream, drained, wait);
                mark.map(|m| out::note(&m)).transpose()?;
            }
            self.flush(&run.run, agent, stream)?;
        }
        Ok(())
    }

    /// Shows what the store has beyond what was shown.
    pub(super) async fn fill(
        &mut self,
        run: &RunId,
        agent: &str,
        stream: &'static str,
        wait: bool,
    ) -> Result<Drained, CliError> {
        let client = self.client.clone();
        let from = self.shown(run, stream);
        logs::drain(&client, run, stream, from, wait, |read| match read {
            Read::Bytes(bytes) => self.show(run, agent, stream, bytes),
            Read::Gap(bytes) => self.gap(run, agent, stream, bytes),
        })
        .await
    }

    /// Shows what was stored before anybody watched: events bring only what comes after.
    pub(super) async fn catch_up(&mut self, runs: &[RunRecord]) -> Result<(), CliError> {
        for run in runs.iter().filter(|run| !run.state.is_end()) {
            self.attempts.insert(run.run.clone(), run.attempt);
            for stream in STREAMS {
                if self.wants(&run.run, stream) {
                    self.fill(&run.run, run.agent.as_str(), stream, false).await?;
                }
            }
        }
        Ok(())
    }

    fn shown(&self, run: &RunId, stream: &'static str) -> u64 {
        self.streams.get(&(run.clone(), stream)).map_or(0, |s| s.shown)
    }

    fn stream(&mut self, run: &RunId, stream: &'static str) -> &mut Stream {
        let encoding = self.encoding;
        self.streams.entry((run.clone(), stream)).or_insert_with(|| Stream {
            shown: 0,
            lines_end: 0,
            reader: Reader::new(encoding),
            line: String::new(),
        })
    }

    /// Starts a stream at its last bytes instead of its first.
    pub(super) fn skip_to(&mut self, run: &RunRecord, stream: &'static str, offset: u64) {
        self.attempts.insert(run.run.clone(), run.attempt);
        let stream = self.stream(&run.run, stream);
        (stream.shown, stream.lines_end) = (offset, offset);
    }

    /// Marks a place where output is missing, with how much.
    fn gap(&mut self, run: &RunId, agent: &str, name: &'static str, bytes: u64) -> Result<(), CliError> {
        self.flush(run, agent, name)?;
        let stream = self.stream(run, name);
        stream.shown += bytes;
        stream.lines_end = stream.shown;
        out::note(&gap_mark(agent, name, bytes))?;
        Ok(())
    }

    fn show(&mut self, run: &RunId, agent: &str, name: &'static str, bytes: &[u8]) -> Result<(), CliError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let to_person = !self.raw && is_terminal(name);
        let as_bytes = self.look == Look::Through && !to_person && (self.raw || self.encoding.is_none());
        let look = self.look;
        let stream = self.stream(run, name);
        if let Some(at) = bytes.iter().rposition(|b| *b == b'\n') {
            stream.lines_end = stream.shown + at as u64 + 1;
        }
        stream.shown += bytes.len() as u64;
        if as_bytes {
            return write(name, bytes);
        }
        let content = stream.reader.push(bytes, false);
        let content = if to_person { text::sanitise(&content) } else { content };
        match look {
            Look::Through => write(name, content.as_bytes()),
            Look::Prefixed => {
                stream.line.push_str(&content);
                let lines = whole_lines(&mut stream.line);
                if stream.line.is_empty() {
                    stream.lines_end = stream.shown - stream.reader.held_back().min(stream.shown);
                }
                lines.iter().try_for_each(|line| write_line(name, agent, line))
            }
        }
    }

    fn flush(&mut self, run: &RunId, agent: &str, name: &'static str) -> Result<(), CliError> {
        let look = self.look;
        let to_person = !self.raw && is_terminal(name);
        let Some(stream) = self.streams.get_mut(&(run.clone(), name)) else { return Ok(()) };
        let rest = stream.reader.push(b"", true);
        stream.lines_end = stream.shown;
        let rest = if to_person { text::sanitise(&rest) } else { rest };
        if look == Look::Through {
            return if rest.is_empty() { Ok(()) } else { write(name, rest.as_bytes()) };
        }
        stream.line.push_str(&rest);
        let line = std::mem::take(&mut stream.line);
        if line.is_empty() { Ok(()) } else { write_line(name, agent, &line) }
    }
}

/// What stands where output is missing.
pub(super) fn gap_mark(agent: &str, stream: &str, bytes: u64) -> String {
    format!("{agent}: … {bytes} bytes of {stream} are missing here …")
}

/// What to say when a stream is not all there.
pub(super) fn incomplete(agent: &str, stream: &str, drained: Drained, waited: bool) -> Option<String> {
    if drained.dropped > 0 {
        return Some(format!(
            "{agent}: {} bytes of {stream} were beyond the bound and are gone",
            drained.dropped
        ));
    }
    (waited && !drained.complete).then(|| {
        format!(
            "{agent}: {stream} has not arrived whole yet, {} bytes so far; ask again with `sally job logs`",
            drained.next
        )
    })
}

/// Takes the finished lines out of a buffer, and what is too long to be held back.
fn whole_lines(buffer: &mut String) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let Some(end) = buffer.rfind('\n') else {
        if buffer.len() > LINE_MAX {
            lines.push(std::mem::take(buffer));
        }
        return lines;
    };
    let rest = buffer.split_off(end + 1);
    lines.extend(buffer.lines().map(str::to_owned));
    *buffer = rest;
    lines
}

fn is_terminal(stream: &str) -> bool {
    if stream == "stdout" { out::is_terminal() } else { out::error_is_terminal() }
}

fn write(stream: &str, bytes: &[u8]) -> Result<(), CliError> {
    if stream == "stdout" {
        out::data(bytes)?
    } else {
        out::error_data(bytes)?
    }
    Ok(())
}

fn write_line(stream: &str, agent: &str, line: &str) -> Result<(), CliError> {
    // The script's own text is not passed through what strips colours: only the prefix has any.
    let prefix = table::paint(colour(agent), agent);
    let prefix = if is_terminal(stream) && out::wants_colour(stream) { prefix } else { agent.to_owned() };
    write(stream, format!("{prefix} | {line}\n").as_bytes())
}

/// One colour per name, the same every time.
fn colour(agent: &str) -> Style {
    const COLOURS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Green,
        AnsiColor::Yellow,
        AnsiColor::Blue,
        AnsiColor::Magenta,
        AnsiColor::BrightCyan,
    ];
    let sum = agent.bytes().fold(7usize, |sum, b| sum.wrapping_mul(31).wrapping_add(usize::from(b)));
    Style::new().fg_color(Some(Color::Ansi(COLOURS[sum % COLOURS.len()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_their_end() {
        let mut buffer = "a\nb\nc".to_owned();
        assert_eq!(whole_lines(&mut buffer), ["a", "b"]);
        assert_eq!(buffer, "c");
        assert!(whole_lines(&mut buffer).is_empty());
        let mut long = "x".repeat(LINE_MAX + 1);
        assert_eq!(whole_lines(&mut long).len(), 1);
        assert!(long.is_empty());
    }

    #[test]
    fn a_name_keeps_its_colour() {
        assert_eq!(colour("local-1"), colour("local-1"));
        assert_ne!(colour("local-1"), colour("local-2"));
    }

    #[test]
    fn missing_output_is_said() {
        let drained = |dropped, complete| Drained { next: 5, dropped, complete };
        assert_eq!(incomplete("a", "stdout", drained(0, true), true), None);
        assert_eq!(incomplete("a", "stdout", drained(0, false), false), None);
        assert!(incomplete("a", "stdout", drained(3, true), true).is_some_and(|m| m.contains("3 bytes")));
        assert!(
            incomplete("a", "stderr", drained(0, false), true).is_some_and(|m| m.contains("5 bytes so far"))
        );
    }
}

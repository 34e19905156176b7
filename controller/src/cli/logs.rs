//! A run's whole output, from the controller's store.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use sally_common::id::RunId;
use sally_common::wire::api::{Call, LogPart, RunPage};
use sally_common::wire::record::{RunRecord, RunState};

use tokio::task::JoinHandle;

use super::CliError;
use crate::client::{Client, ClientError};

/// Both streams, in the order in which they are shown.
pub(super) const STREAMS: [&str; 2] = ["stdout", "stderr"];
/// How often a stream that is still on its way from the agent is asked for.
const STILL_COMING: Duration = Duration::from_millis(100);
/// Questions in a row without a new byte before it is said that output is missing.
const PATIENCE: u32 = 100;

/// How a stream was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Drained {
    /// Where the next byte would begin.
    pub next: u64,
    /// Bytes beyond the bound, counted and gone.
    pub dropped: u64,
    /// Whether the stream has ended and all of it was read.
    pub complete: bool,
}

/// Whether an ended run's output may still be on its way.
pub(super) fn may_come(state: RunState) -> bool {
    matches!(state, RunState::Succeeded | RunState::Failed | RunState::TimedOut | RunState::Cancelled)
}

/// What reading a stream brings.
pub(super) enum Read<'a> {
    /// Its next bytes.
    Bytes(&'a [u8]),
    /// So many bytes are not there any more; what comes next follows them.
    Gap(u64),
}

/// Reads a stream from a byte on and hands each piece to `take`. With `wait` a stream that has not ended is
/// waited for as long as bytes come, and ten seconds longer.
pub(super) async fn drain(
    client: &Client,
    run: &RunId,
    stream: &str,
    from: u64,
    wait: bool,
    mut take: impl FnMut(Read<'_>) -> Result<(), CliError>,
) -> Result<Drained, CliError> {
    let (mut next, mut idle) = (from, 0);
    let mut ahead = Ahead::default();
    loop {
        let (part, bytes) = ahead.take(client, run, stream, next).await?;
        // While these are shown the next ones are on their way.
        ahead.ask(client, run, stream, next, &part, bytes.len() as u64);
        // A part may begin earlier than asked, or later when the store has let go of what was before.
        if part.offset > next {
            take(Read::Gap(part.offset - next))?;
            next = part.offset;
        }
        let skip = usize::try_from(next - part.offset).unwrap_or(usize::MAX).min(bytes.len());
        let fresh = &bytes[skip..];
        if !fresh.is_empty() {
            take(Read::Bytes(fresh))?;
            next += fresh.len() as u64;
            idle = 0;
        } else {
            idle += 1;
        }
        let complete = part.ended && next >= part.stored;
        let stopped = fresh.is_empty() && (part.ended || !wait || idle > PATIENCE);
        if complete || stopped {
            return Ok(Drained { next, dropped: part.dropped, complete });
        }
        if fresh.is_empty() {
            tokio::time::sleep(STILL_COMING).await;
        }
    }
}

/// Questions on the way for pieces that are stored already: while one piece is shown the next ones come. What they bring
/// is at most so many pieces, whatever the reader does.
#[derive(Default)]
struct Ahead {
    asked: VecDeque<(u64, JoinHandle<Piece>)>,
}

/// A piece, or why there is none.
type Piece = Result<(LogPart, Bytes), ClientError>;

/// Pieces asked for ahead.
const PIECES_AHEAD: usize = 4;

impl Ahead {
    /// The piece at `next`, asked for before or now.
    async fn take(&mut self, client: &Client, run: &RunId, stream: &str, next: u64) -> Piece {
        while let Some((offset, answer)) = self.asked.pop_front() {
            if offset != next {
                // A piece was shorter than expected: what was asked behind it is not what follows.
                answer.abort();
                continue;
            }
            if let Ok(answer) = answer.await {
                return answer;
            }
        }
        client.log(run, stream, next).await
    }

    /// Asks for what follows a full piece, as far as it is stored.
    fn ask(&mut self, client: &Client, run: &RunId, stream: &str, next: u64, part: &LogPart, length: u64) {
        if length == 0 {
            return;
        }
        let mut at = self.asked.back().map_or(next, |(offset, _)| *offset) + length;
        while self.asked.len() < PIECES_AHEAD && at.saturating_add(length) <= part.stored {
            let (client, run, stream) = (client.clone(), run.clone(), stream.to_owned());
            self.asked.push_back((at, tokio::spawn(async move { client.log(&run, &stream, at).await })));
            at += length;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.asked.iter().for_each(|(_, answer)| answer.abort());
    }
}

/// A run's record with output and result inside.
pub(super) async fn whole(client: &Client, run: &RunId) -> Result<RunRecord, CliError> {
    let call = Call::Runs { job: run.job().clone(), from: run.index(), content: true, states: Vec::new() };
    let page: RunPage = client.call(call).await?;
    let found = page.runs.into_iter().find(|r| &r.run == run);
    found.ok_or_else(|| CliError::internal(format!("the controller does not know run {run}")))
}

/// Where the last lines of a stream begin, as far as it is stored now.
pub(super) async fn tail_start(
    client: &Client,
    run: &RunId,
    stream: &str,
    lines: usize,
) -> Result<u64, CliError> {
    let end = client.log(run, stream, u64::MAX).await?.0.stored;
    let from = end.saturating_sub(TAIL_WINDOW);
    let mut window = Vec::new();
    drain(client, run, stream, from, false, |read| {
        match read {
            Read::Bytes(bytes) => window.extend_from_slice(bytes),
            Read::Gap(n) => window.extend(std::iter::repeat_n(0, usize::try_from(n).unwrap_or(0))),
        }
        Ok(())
    })
    .await?;
    Ok(from + last_lines(&window, lines) as u64)
}

/// The most that is looked through for the last lines, in bytes.
const TAIL_WINDOW: u64 = 4 * 1024 * 1024;

/// Where the last so many lines begin; a line feed at the very end begins no line.
fn last_lines(bytes: &[u8], lines: usize) -> usize {
    if lines == 0 {
        return bytes.len();
    }
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let feeds = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    feeds.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0)
}

/// How far one stream of one attempt was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The run's number in its job.
    pub run: u32,
    /// The attempt whose output it is.
    pub attempt: u32,
    /// The stream.
    pub stream: &'static str,
    /// The first byte that was not shown.
    pub from: u64,
}

/// From where output is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum After {
    /// From this byte on of the one stream that is shown.
    Bytes(u64),
    /// From these places on: `RUN.ATTEMPT.STREAM=BYTES`, joined by commas.
    Cursor(Vec<Place>),
}

/// Places that a cursor holds: more are no command line any more.
const PLACES_MAX: usize = 200;

impl After {
    /// The cursor of these places; `None` when nothing was shown, or too many streams for a command line.
    pub(super) fn of(places: &[Place]) -> Option<String> {
        if places.is_empty() || places.len() > PLACES_MAX {
            return None;
        }
        let word = |p: &Place| format!("{}.{}.{}={}", p.run, p.attempt, p.stream, p.from);
        Some(places.iter().map(word).collect::<Vec<_>>().join(","))
    }
}

impl FromStr for After {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(bytes) = text.parse() {
            return Ok(After::Bytes(bytes));
        }
        let place = |word: &str| {
            let (name, from) = word.split_once('=')?;
            let mut parts = name.splitn(3, '.');
            let (run, attempt, stream) = (parts.next()?, parts.next()?, parts.next()?);
            let stream = STREAMS.into_iter().find(|s| *s == stream)?;
            Some(Place {
                run: run.parse().ok()?,
                attempt: attempt.parse().ok()?,
                stream,
                from: from.parse().ok()?,
            })
        };
        let places: Option<Vec<Place>> = text.split(',').map(place).collect();
        places.map(After::Cursor).ok_or_else(|| {
            format!(
                "\"{}\" is no place in a job's output: give bytes as in 4096, or what an interrupted `job logs -f` said",
                sally_common::name::show(text)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back() {
        let place = |run, stream, from| Place { run, attempt: 2, stream, from };
        let places = vec![place(0, "stdout", 120), place(3, "stderr", 7)];
        let text = After::of(&places).expect("a cursor");
        assert_eq!(text, "0.2.stdout=120,3.2.stderr=7");
        assert_eq!(text.parse(), Ok(After::Cursor(places)));
        assert_eq!("4096".parse(), Ok(After::Bytes(4096)));
        assert_eq!(After::of(&[]), None);
        for bad in ["", "x", "-1", "0.stdout=1", "0.1.result=1", "0.1.stdout=", "0.1.stdout=1,"] {
            assert!(bad.parse::<After>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_lines_begin_after_a_line_feed() {
        for (text, lines, rest) in [
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\n", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(&text[last_lines(text.as_bytes(), lines)..], rest, "{text:?} {lines}");
        }
    }
}

//! What a child prints: cut into lines, into a bounded file or to the caller.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{ChildEvent, Events};

/// A longer line is told in pieces of this size.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

/// Where a child's stdout and stderr go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Into a file and, when that has half of `max_bytes`, into a new one; the last full one stays as `PATH.1`.
    Log {
        /// The file.
        path: PathBuf,
        /// What both together may take on disk, in bytes.
        max_bytes: u64,
    },
    /// To the caller, line by line, as [`ChildEvent::Line`].
    Lines,
    /// Nowhere.
    Discard,
}

/// Takes the lines of both pipes.
#[derive(Clone)]
pub(super) struct Sink {
    log: Option<Arc<Mutex<Log>>>,
    events: Events,
}

impl Sink {
    pub(super) fn open(output: &Output, events: Events) -> Result<Self, (PathBuf, io::Error)> {
        let log = match output {
            Output::Log { path, max_bytes } => {
                let log = Log::open(path, *max_bytes).map_err(|error| (path.clone(), error))?;
                Some(Arc::new(Mutex::new(log)))
            }
            Output::Lines | Output::Discard => None,
        };
        Ok(Self { log, events })
    }

    /// Reads a pipe to its end.
    pub(super) async fn read(self, mut pipe: impl AsyncRead + Unpin) {
        let mut lines = Lines::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => lines.feed(&buffer[..length], |line| self.line(line)),
            }
        }
        lines.finish(|line| self.line(line));
    }

    fn line(&self, line: &[u8]) {
        let Some(log) = &self.log else {
            (self.events)(ChildEvent::Line(String::from_utf8_lossy(line).into_owned()));
            return;
        };
        // A poisoned lock means that another line's writer panicked; this line is still worth writing.
        let written = log.lock().unwrap_or_else(PoisonError::into_inner).write(line);
        if let Err(error) = written {
            (self.events)(ChildEvent::LogFailed { error: error.to_string() });
        }
    }
}

/// The bounded file.
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
    max_length: u64,
    failed: bool,
}

impl Log {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = open_append(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length, max_length: max_bytes / 2, failed: false })
    }

    /// Appends a line. A failure is returned once, until a line was written again.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self.try_write(line) {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                self.failed = true;
                return Err(error);
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.length > 0 && self.length + length > self.max_length {
            let mut old = self.path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = open_append(&self.path)?;
            self.length = 0;
        }
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.length += length;
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Cuts bytes into lines of at most [`MAX_LINE_BYTES`].
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.rest.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.rest.extend_from_slice(&window[..end]);
                    line(&self.rest);
                    self.rest.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.rest.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.rest.len() == MAX_LINE_BYTES {
                        line(&self.rest);
                        self.rest.clear();
                    }
                }
            }
        }
    }

    fn finish(self, mut line: impl FnMut(&[u8])) {
        if !self.rest.is_empty() {
            line(&self.rest);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]], expected: &[&[u8]]) {
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut lines = Lines::default();
        for piece in pieces {
            lines.feed(piece, |line| found.push(line.to_vec()));
        }
        lines.finish(|line| found.push(line.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_are_found_however_the_bytes_arrive() {
        check(&[b"one\ntwo\n"], &[b"one", b"two"]);
        check(&[b"o", b"ne\nt", b"wo"], &[b"one", b"two"]);
        check(&[b"\n\n"], &[b"", b""]);
        check(&[], &[]);
    }

    #[test]
    fn an_endless_line_is_cut_and_nothing_is_lost() {
        let long = vec![b'x'; MAX_LINE_BYTES * 2 + 5];
        check(&[&long, b"\nend"], &[&long[..MAX_LINE_BYTES], &long[..MAX_LINE_BYTES], b"xxxxx", b"end"]);
    }

    #[test]
    fn the_log_stays_within_its_bound_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = Log::open(&path, 1000).unwrap();
        for number in 0..500 {
            log.write(format!("line {number}").as_bytes()).unwrap();
        }
        let old = std::fs::read_to_string(dir.path().join("x.log.1")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(old.len() + new.len() <= 1000);
        let numbers: Vec<u32> =
            (old + &new).lines().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect();
        assert_eq!(*numbers.last().unwrap(), 499);
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_failing_log_complains_once() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut log = Log { path: "/dev/full".into(), file, length: 0, max_length: 10_000, failed: false };
        assert!(log.write(b"a").is_err());
        assert!(log.write(b"b").is_ok());
    }
}

//! One stream of output on its way out: tailed from the run folder, masked, numbered, sent no faster
//! than it is received.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sally_common::id::Digest;
use sally_common::limit::{STREAM_CHUNK, STREAM_WINDOW};
use sally_common::wire::report::StreamEnd;
use sha2::{Digest as _, Sha256};

use crate::script::Masker;

/// A stream. What leaves the agent is the masked text: offsets, length and digest are of that.
pub struct Outgoing {
    /// Its name on the wire.
    pub name: Cow<'static, str>,
    raw: PathBuf,
    /// Held open while it is tailed. A file that is only sent is opened for each piece: many runs may owe many.
    raw_file: Option<File>,
    /// How far the raw file was read.
    raw_at: u64,
    masker: Masker,
    /// The masked copy, once there is something to mask.
    masked: Option<File>,
    hasher: Sha256,
    /// Bytes that may be sent.
    ready: u64,
    sent: u64,
    stored: u64,
    /// Whether `ready` is all there will ever be.
    complete: bool,
    /// Bytes that had to be masked and could not be written anywhere: a full disk. None of what follows leaves.
    lost: Option<u64>,
}

/// A piece to send.
pub struct Piece {
    /// Where it begins.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Outgoing {
    /// A stream that is kept in this file.
    pub fn new(name: impl Into<Cow<'static, str>>, raw: PathBuf) -> Self {
        Self {
            name: name.into(),
            raw,
            raw_file: None,
            raw_at: 0,
            masker: Masker::new(),
            masked: None,
            hasher: Sha256::new(),
            ready: 0,
            sent: 0,
            stored: 0,
            complete: false,
            lost: None,
        }
    }

    /// Lets nothing more leave: what would have to be masked is not known, or cannot be written.
    pub fn withhold(&mut self) {
        self.lost.get_or_insert(0);
    }

    /// Bytes that were withheld.
    pub fn withheld(&self) -> u64 {
        self.lost.unwrap_or(0)
    }

    /// Takes a secret out of everything from here on. A secret that cannot be masked is ignored: it is too
    /// short to be told from ordinary text, and the script was told so by the contract.
    ///
    /// # Errors
    /// The masked copy cannot be written. Then nothing more leaves, and what does not is counted as dropped.
    pub fn mask(&mut self, value: &str) -> io::Result<()> {
        if self.masker.add(value).is_err() || self.masked.is_some() || self.lost.is_some() {
            return Ok(());
        }
        match self.copy_so_far() {
            Ok(copy) => self.masked = Some(copy),
            Err(error) => {
                self.withhold();
                return Err(error);
            }
        }
        Ok(())
    }

    fn copy_so_far(&self) -> io::Result<File> {
        let path = self.masked_path();
        let mut copy = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
        io::copy(&mut io::Read::take(File::open(&self.raw)?, self.raw_at), &mut copy)?;
        Ok(copy)
    }

    fn masked_path(&self) -> PathBuf {
        let name = self.raw.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        self.raw.with_file_name(format!("{name}.masked"))
    }

    /// Takes in what the keeper has written since, one piece at a time. Returns whether there was something.
    pub fn take_in(&mut self) -> io::Result<bool> {
        if self.raw_file.is_none() {
            self.raw_file = Some(File::open(&self.raw)?);
        }
        let Some(file) = &self.raw_file else { return Ok(false) };
        let waiting = file.metadata()?.len().saturating_sub(self.raw_at);
        if waiting == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; usize::try_from(waiting).unwrap_or(usize::MAX).min(STREAM_CHUNK)];
        let length = file.read_at(&mut bytes, self.raw_at)?;
        self.raw_at += length as u64;
        let clear = self.masker.push(&bytes[..length]).into_owned();
        self.add(&clear)?;
        Ok(length > 0)
    }

    /// Takes in the rest, once the keeper has ended.
    pub fn take_all(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        loop {
            match self.take_in() {
                Ok(true) => {}
                Ok(false) => break,
                // The copy failed: from here on bytes are only counted.
                Err(error) if self.lost.is_some() && outcome.is_ok() => outcome = Err(error),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let rest = self.masker.finish();
        let added = self.add(&rest);
        self.complete = true;
        outcome.and(added)
    }

    fn add(&mut self, clear: &[u8]) -> io::Result<()> {
        if let Some(lost) = &mut self.lost {
            *lost += clear.len() as u64;
            return Ok(());
        }
        if let Some(copy) = &mut self.masked
            && let Err(error) = copy.write_all(clear)
        {
            self.lost = Some(clear.len() as u64);
            return Err(error);
        }
        self.hasher.update(clear);
        self.ready += clear.len() as u64;
        Ok(())
    }

    /// Closes a file that has been read to its end; it is opened again for each piece.
    pub fn let_go(&mut self) {
        self.raw_file = None;
    }

    /// Bytes that may be sent, so far.
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// The next piece, if there is one within the window. A short piece only when `flush` is set.
    pub fn next_piece(&mut self, flush: bool) -> io::Result<Option<Piece>> {
        let window = (self.stored + STREAM_WINDOW).saturating_sub(self.sent);
        let length = (self.ready - self.sent).min(window).min(STREAM_CHUNK as u64) as usize;
        if length == 0 || (length < STREAM_CHUNK && !flush) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.read_at(&mut bytes, self.sent)?;
        let offset = self.sent;
        self.sent += length as u64;
        Ok(Some(Piece { offset, bytes }))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self.held() {
            Some(file) => file.read_exact_at(bytes, offset),
            None => File::open(&self.raw)?.read_exact_at(bytes, offset),
        }
    }

    fn held(&self) -> Option<&File> {
        self.masked.as_ref().or(self.raw_file.as_ref())
    }

    /// The controller has stored this much. It may ask for less than was sent: then it lost some.
    pub fn stored(&mut self, bytes: u64) {
        let bytes = bytes.min(self.ready);
        self.stored = bytes;
        self.sent = self.sent.max(bytes);
    }

    /// Sends again from what is stored: a piece or a receipt was lost.
    pub fn rewind(&mut self) {
        self.sent = self.stored;
    }

    /// Whether everything is stored.
    pub fn is_delivered(&self) -> bool {
        self.complete && self.stored == self.ready
    }

    /// Whether something was sent that is not stored.
    pub fn is_waiting(&self) -> bool {
        self.under_way() > 0
    }

    /// Bytes that were sent and are not stored.
    pub fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.stored)
    }

    /// The end of a stream that went ahead as pieces.
    pub fn end(&self, dropped: u64) -> StreamEnd {
        let digest = Digest::from_bytes(self.hasher.clone().finalize().into());
        StreamEnd { bytes: self.ready, digest, dropped: dropped + self.withheld(), inline: None }
    }

    /// The file that holds what was announced.
    ///
    /// # Errors
    /// It cannot be opened a second time.
    pub fn handle(&self) -> io::Result<File> {
        self.held().map_or_else(|| File::open(&self.raw), File::try_clone)
    }

    /// The whole masked stream, for a result that carries it.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.ready as usize];
        if self.ready > 0 {
            self.read_at(&mut bytes, 0)?;
        }
        Ok(bytes)
    }
}

/// A stream whose result is already in the spool, from before a restart. Its masked copy, if any, is what
/// was announced.
pub fn reopen(name: impl Into<Cow<'static, str>>, raw: &Path, end: &StreamEnd) -> io::Result<Outgoing> {
    let mut stream = Outgoing::new(name, raw.to_owned());
    let masked = stream.masked_path();
    let path = if masked.exists() { masked } else { raw.to_owned() };
    stream.raw_file = Some(File::open(path)?);
    stream.ready = end.bytes;
    stream.complete = true;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(content: &[u8]) -> (tempfile::TempDir, Outgoing) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("stdout");
        std::fs::write(&path, content).expect("written");
        (dir, Outgoing::new("stdout", path))
    }

    fn drain(stream: &mut Outgoing) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = stream.next_piece(true).expect("read") {
            assert_eq!(piece.offset as usize, all.len());
            all.extend(piece.bytes);
        }
        all
    }

    #[test]
    fn pieces_are_whole_ordered_and_within_the_window() {
        let content: Vec<u8> = (0..6_000_000u32).map(|n| (n % 251) as u8).collect();
        let (_dir, mut stream) = stream(&content);
        stream.take_all().expect("read");
        let first = drain(&mut stream);
        assert_eq!(first.len() as u64, STREAM_WINDOW);
        stream.stored(STREAM_WINDOW);
        let second = drain_from(&mut stream, first.len());
        assert_eq!([first, second].concat(), content);
        stream.stored(6_000_000);
        assert!(stream.is_delivered());
        assert_eq!(stream.end(0).digest, Digest::of(&content));
    }

    fn drain_from(stream: &mut Outgoing, start: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = stream.next_piece(true).expect("read") {
            assert_eq!(piece.offset as usize, start + all.len());
            all.extend(piece.bytes);
        }
        all
    }

    #[test]
    fn what_was_lost_is_sent_again() {
        let (_dir, mut stream) = stream(b"hello world");
        stream.take_all().expect("read");
        assert_eq!(drain(&mut stream), b"hello world");
        stream.stored(5);
        stream.rewind();
        assert_eq!(drain_from(&mut stream, 5), b" world");
        // A controller that lost its store says so by a lower number.
        stream.stored(0);
        stream.rewind();
        assert_eq!(drain(&mut stream), b"hello world");
    }

    #[test]
    fn what_cannot_be_masked_does_not_leave() {
        let (dir, mut stream) = stream(b"before ");
        stream.take_in().expect("read");
        // In the place of the copy stands a folder: it cannot be written.
        std::fs::create_dir(dir.path().join("stdout.masked")).expect("made");
        assert!(stream.mask("hunter2").is_err());
        let mut file = OpenOptions::new().append(true).open(dir.path().join("stdout")).expect("opened");
        file.write_all(b"pass=hunter2").expect("written");
        stream.take_all().expect("read");
        assert_eq!(drain(&mut stream), b"before ");
        let end = stream.end(1);
        assert_eq!((end.bytes, end.dropped), (7, 1 + "pass=***".len() as u64));
        assert_eq!(end.digest, Digest::of(b"before "));
    }

    #[test]
    fn a_secret_leaves_in_no_piece() {
        let (dir, mut stream) = stream(b"before ");
        stream.take_in().expect("read");
        stream.mask("hunter2").expect("copied");
        let path = dir.path().join("stdout");
        let mut file = OpenOptions::new().append(true).open(path).expect("opened");
        file.write_all(b"pass=hun").expect("written");
        stream.take_in().expect("read");
        file.write_all(b"ter2 after").expect("written");
        stream.take_all().expect("read");
        assert_eq!(drain(&mut stream), b"before pass=*** after");
        assert_eq!(stream.end(0).digest, Digest::of(b"before pass=*** after"));
        assert_eq!(stream.bytes().expect("read"), b"before pass=*** after");
    }
}

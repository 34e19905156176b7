//! One stream of a script: from its pipe into its file, up to a limit; the rest is drained and counted.
#![forbid(unsafe_code)]

use super::record::StreamCount;
use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The size of the buffer that streams are read with: two full pipes.
pub(super) const BUFFER: usize = 128 * 1024;

/// How many buffers are read of one stream before the others get their turn.
const TURN: usize = 16;

/// One stream while its attempt lives.
pub(super) struct Stream {
    pipe: Option<OwnedFd>,
    file: OwnedFd,
    limit: u64,
    count: StreamCount,
}

impl Stream {
    /// `pipe` must not block.
    pub(super) fn new(pipe: OwnedFd, file: OwnedFd, limit: u64) -> Self {
        Self { pipe: Some(pipe), file, limit, count: StreamCount::default() }
    }

    /// The pipe while it can bring more.
    pub(super) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(OwnedFd::as_fd)
    }

    /// Takes what is there, but no more than a turn. Returns whether the file grew.
    pub(super) fn pump(&mut self, buffer: &mut [u8]) -> bool {
        let before = self.count.kept;
        for _ in 0..TURN {
            let Some(pipe) = &self.pipe else { break };
            match read(pipe, buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => self.take(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => self.pipe = None,
            }
        }
        self.count.kept > before
    }

    /// Takes the last bytes once all writers are dead (or, with a writer outside, one turn), and closes.
    pub(super) fn finish(&mut self, buffer: &mut [u8]) -> StreamCount {
        self.pump(buffer);
        self.pipe = None;
        std::mem::take(&mut self.count)
    }

    /// Reads what is in the file.
    pub(super) fn kept(&self, count: &StreamCount) -> Vec<u8> {
        read_kept(self.file.as_fd(), count)
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.limit - self.count.kept).unwrap_or(usize::MAX);
        let room = if self.count.error.is_none() { room } else { 0 };
        let stored = self.store(&bytes[..bytes.len().min(room)]);
        self.count.kept += stored as u64;
        self.count.dropped += (bytes.len() - stored) as u64;
    }

    /// Returns how many bytes are in the file. After an error no more are: there would be a hole.
    fn store(&mut self, mut bytes: &[u8]) -> usize {
        let length = bytes.len();
        while !bytes.is_empty() {
            match write(&self.file, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    self.count.error = Some(errno.desc().into());
                    break;
                }
            }
        }
        length - bytes.len()
    }
}

/// Reads the bytes of a run folder's file that `count` tells of, as far as they can be read.
pub(super) fn read_kept(file: BorrowedFd<'_>, count: &StreamCount) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(count.kept).unwrap_or_default()];
    let mut length = 0;
    while let Ok(more @ 1..) = pread(file, &mut bytes[length..], length as i64) {
        length += more;
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;
    use std::io::{Read as _, Seek as _};

    fn check(limit: u64, parts: &[&[u8]], kept: &[u8], dropped: u64) {
        let (pipe, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let mut stream = Stream::new(pipe, file.try_clone().unwrap().into(), limit);
        let mut buffer = [0; 8];
        for part in parts {
            write(&writer, part).unwrap();
            stream.pump(&mut buffer);
        }
        // The writer stays open: the end must not wait for it.
        let count = stream.finish(&mut buffer);
        assert_eq!(count, StreamCount { kept: kept.len() as u64, dropped, error: None });
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, kept);
    }

    #[test]
    fn bytes_within_the_limit_are_kept_in_order() {
        check(100, &[b"one", b"two, and a longer part"], b"onetwo, and a longer part", 0);
        check(3, &[b"abc"], b"abc", 0);
    }

    #[test]
    fn bytes_beyond_the_limit_are_counted() {
        check(4, &[b"abc", b"def", b"ghi"], b"abcd", 5);
        check(0, &[b"abc"], b"", 3);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told_and_everything_counted() {
        let (pipe, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut stream = Stream::new(pipe, full.into(), 100);
        write(&writer, b"abc").unwrap();
        let count = stream.finish(&mut [0; 8]);
        assert_eq!((count.kept, count.dropped), (0, 3));
        assert!(count.error.is_some());
    }
}

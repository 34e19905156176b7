//! How `sally-task` writes: one line, whole, through descriptor 3 if the script's child still has it, else through
//! `SALLY_RESULT_FILE`.
//!
//! The descriptor is opened anew through `/proc/self/fd`. That gives an own open file, so a lock on it holds
//! against every other `sally-task`, and needs no unsafe code. The lock makes lines longer than a pipe takes in
//! one piece (4096 bytes) whole too. A script that writes such lines itself with `>&3` from several processes at
//! once has no such help.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The descriptor if the environment names none.
const DEFAULT_FD: u32 = 3;

/// Where a line may go, in order of preference.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    pub(super) descriptor: u32,
    pub(super) file: Option<PathBuf>,
}

/// Why a line could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DoorError {
    #[error(
        "no way to report: descriptor {0} is not open for writing and SALLY_RESULT_FILE is not set; \
         sally-task works only inside a run (to try a script by hand, start it with 3>>result.json)"
    )]
    NoDoor(u32),
    #[error("cannot write to {what}: {error}")]
    Write { what: String, error: io::Error },
}

impl Doors {
    /// Reads `SALLY_RESULT_FD` and `SALLY_RESULT_FILE`.
    pub(super) fn from_env() -> Self {
        let descriptor = std::env::var("SALLY_RESULT_FD").ok().and_then(|fd| fd.parse().ok());
        let file = std::env::var_os("SALLY_RESULT_FILE").filter(|path| !path.is_empty());
        Self { descriptor: descriptor.unwrap_or(DEFAULT_FD), file: file.map(PathBuf::from) }
    }

    /// Writes `line`, which ends with a newline.
    pub(super) fn write(&self, line: &str) -> Result<(), DoorError> {
        let (opened, what) = match (open_descriptor(self.descriptor), &self.file) {
            (Some(door), _) => (Ok(door), format!("descriptor {}", self.descriptor)),
            (None, Some(path)) => (open_file(path), format!("SALLY_RESULT_FILE ({})", path.display())),
            (None, None) => return Err(DoorError::NoDoor(self.descriptor)),
        };
        opened
            .and_then(|mut door| {
                // The lock ends with the file. Where a file system has no locks the append is still one call.
                match door.lock() {
                    Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
                    _ => {}
                }
                door.write_all(line.as_bytes())
            })
            .map_err(|error| DoorError::Write { what, error })
    }
}

/// Opens the descriptor anew if it is a pipe or a file that this process may write.
///
/// Anything else with that number (a socket, a terminal, a file open for reading) belongs to somebody else.
fn open_descriptor(descriptor: u32) -> Option<File> {
    let link = format!("/proc/self/fd/{descriptor}");
    let kind = Path::new(&link).metadata().ok()?.file_type();
    if !(kind.is_fifo() || kind.is_file()) || !is_writable(descriptor) {
        return None;
    }
    // Appending: a new open file begins at 0 and would write over what a plain file has.
    OpenOptions::new().append(true).open(link).ok()
}

/// Returns whether the descriptor was opened for writing, as the kernel says.
fn is_writable(descriptor: u32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    // O_WRONLY is 1 and O_RDWR is 2; O_PATH makes both meaningless.
    flags.is_some_and(|flags| matches!(flags & 0o3, 1 | 2) && flags & 0o10_000_000 == 0)
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    const CLOSED: u32 = 1_000_000;

    fn doors(descriptor: u32, file: Option<&Path>) -> Doors {
        Doors { descriptor, file: file.map(Path::to_owned) }
    }

    #[test]
    fn a_pipe_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("result");
        let (mut reader, writer) = std::io::pipe().unwrap();
        doors(writer.as_raw_fd() as u32, Some(&file)).write("{}\n").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}\n");
        assert!(!file.exists());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("result");
        let (reader, _writer) = std::io::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = OpenOptions::new().write(true).open("/dev/null").unwrap();
        for descriptor in
            [CLOSED, reader.as_raw_fd() as u32, socket.as_raw_fd() as u32, null.as_raw_fd() as u32]
        {
            doors(descriptor, Some(&file)).write("1\n").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n1\n1\n1\n");
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "before\n").unwrap();
        let plain = OpenOptions::new().write(true).open(&path).unwrap();
        doors(plain.as_raw_fd() as u32, None).write("after\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn without_a_door_it_says_so() {
        let error = doors(CLOSED, None).write("{}\n").unwrap_err().to_string();
        assert!(error.contains("SALLY_RESULT_FILE is not set"), "{error}");
        let error =
            doors(CLOSED, Some(Path::new("/no/such/folder/result"))).write("{}\n").unwrap_err().to_string();
        assert!(error.contains("/no/such/folder/result"), "{error}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error_and_no_wait() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let error = doors(writer.as_raw_fd() as u32, None).write("{}\n").unwrap_err();
        assert!(matches!(error, DoorError::Write { .. }), "{error}");
    }

    #[test]
    fn long_lines_of_several_writers_stay_whole() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let doors = doors(writer.as_raw_fd() as u32, None);
        let mut text = String::new();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (b'a'..=b'd')
                .map(|letter| {
                    let line = char::from(letter).to_string().repeat(30_000) + "\n";
                    let doors = &doors;
                    scope.spawn(move || (0..10).for_each(|_| doors.write(&line).unwrap()))
                })
                .collect();
            let reading = scope.spawn(|| reader.read_to_string(&mut text).unwrap());
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            drop(writer);
            reading.join().unwrap();
        });
        assert_eq!(text.lines().count(), 40);
        for line in text.lines() {
            assert!(line.len() == 30_000 && line.bytes().all(|b| b == line.as_bytes()[0]));
        }
    }
}

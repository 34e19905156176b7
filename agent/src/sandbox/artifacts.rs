//! Files that a script leaves behind to be kept: taken out of the work folder once everything is dead.
//!
//! The keeper does not know how a script names them: it is told by a function that whoever started the launcher
//! gave. It has descriptors and no paths outside, so all files go into one, one behind the other; the exit record
//! is the index.
#![forbid(unsafe_code)]

use super::plan::Limits;
use super::record::Collected;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{ftruncate, lseek, read, write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// A file that a script named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The name under which it is to be kept.
    pub name: String,
    /// Its path, relative to the work folder.
    pub path: String,
}

/// What came through one of the script's two doors (descriptor 3, the result file).
#[derive(Clone, Copy, Debug)]
pub struct DoorBytes<'a> {
    /// What was kept.
    pub kept: &'a [u8],
    /// How many bytes the script wrote.
    pub written: u64,
}

/// Finds the files that a script named in what it wrote. Called only if the word `artifact` (or an escape of
/// JSON, behind which it could hide) is in there.
pub type NamedFiles = fn([DoorBytes<'_>; 2]) -> Vec<NamedFile>;

/// The longest name and the longest path of a file that is kept, in bytes.
const WORDS_MAX: usize = 1024;

/// Whether it is worth asking for names at all.
pub(super) fn may_name_files(door: &[u8]) -> bool {
    let contains = |word: &[u8]| door.windows(word.len()).any(|part| part == word);
    contains(b"artifact") || contains(b"\\u")
}

/// Copies the named files from below `work` to the end of `target`. One entry for each, in their order, up to the
/// limit of files; what cannot be kept whole is not kept, and says why.
pub(super) fn collect(
    work: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    named: Vec<NamedFile>,
    limits: &Limits,
    buffer: &mut [u8],
) -> Vec<Collected> {
    let most = usize::try_from(limits.artifact_files).unwrap_or(usize::MAX);
    let mut room = limits.artifact_bytes;
    let mut index = Vec::new();
    for NamedFile { name, path } in named.into_iter().take(most) {
        let taken = if name.len() > WORDS_MAX || path.len() > WORDS_MAX {
            Err(format!("its name or path is longer than {WORDS_MAX} bytes"))
        } else {
            take(work, target, &path, room, buffer)
        };
        let cut = |text: String| if text.len() > WORDS_MAX { String::new() } else { text };
        let (name, path) = (cut(name), cut(path));
        index.push(match taken {
            Ok(bytes) => {
                room -= bytes;
                Collected { name, path, bytes, error: None }
            }
            Err(error) => Collected { name, path, bytes: 0, error: Some(error) },
        });
    }
    index
}

fn take(
    work: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    path: &str,
    room: u64,
    buffer: &mut [u8],
) -> Result<u64, String> {
    let (file, status) = open_beneath(work, path)?;
    let size = u64::try_from(status.st_size).unwrap_or_default();
    if size > room {
        return Err(format!("it has {size} bytes, and {room} are left of the limit artifact_bytes"));
    }
    let start = lseek(target, 0, nix::unistd::Whence::SeekEnd).map_err(stored_badly)?;
    match copy(&file, target, size, buffer) {
        Ok(()) => Ok(size),
        Err(error) => {
            // What comes next begins where this would have.
            let _ = ftruncate(target, start);
            Err(error)
        }
    }
}

/// Opens a regular file below `work`, through no link of any kind and into no other mount. A FIFO or a socket does
/// not make this wait: it is not opened for long enough, and nobody lives who could be at its other end.
fn open_beneath(work: BorrowedFd<'_>, path: &str) -> Result<(OwnedFd, FileStat), String> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || !Path::new(path).components().all(plain) {
        return Err("only a path below the work folder can be kept, without ..".into());
    }
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file =
        openat2(work, path, OpenHow::new().flags(flags).resolve(resolve)).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => "there is no such file in the work folder".to_owned(),
            Errno::ELOOP => "it is a symbolic link, or its path leads through one".into(),
            Errno::EXDEV => "its path leads out of the work folder".into(),
            Errno::ENXIO => "it is no regular file".into(),
            other => format!("it cannot be opened: {}", other.desc()),
        })?;
    let status = fstat(&file).map_err(|errno| format!("it cannot be read: {}", errno.desc()))?;
    match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Ok((file, status)),
        SFlag::S_IFDIR => Err("it is a folder; name the files in it, or pack it into one".into()),
        _ => Err("it is no regular file".into()),
    }
}

fn copy(file: &OwnedFd, target: BorrowedFd<'_>, size: u64, buffer: &mut [u8]) -> Result<(), String> {
    let mut left = size;
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let length = match read(file, &mut buffer[..part]) {
            Ok(0) => return Err("it became shorter while it was copied".into()),
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(format!("it cannot be read: {}", errno.desc())),
        };
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            match write(target, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(stored_badly(errno)),
            }
        }
        left -= length as u64;
    }
    Ok(())
}

fn stored_badly(errno: Errno) -> String {
    format!("it cannot be stored on the agent's host: {}", errno.desc())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;

    fn collected(fill: impl FnOnce(&Path), paths: &[&str], limits: &Limits) -> (Vec<Collected>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        fill(&work);
        let target = dir.path().join("target");
        let file = File::options().create(true).append(true).read(true).open(&target).unwrap();
        let named =
            paths.iter().map(|path| NamedFile { name: "n".into(), path: (*path).to_owned() }).collect();
        let work = File::open(work).unwrap();
        let index = collect(work.as_fd(), file.as_fd(), named, limits, &mut [0; 7]);
        (index, fs::read(target).unwrap())
    }

    #[test]
    fn files_stand_behind_each_other_and_the_index_tells_their_sizes() {
        let fill = |work: &Path| {
            fs::create_dir(work.join("a")).unwrap();
            fs::write(work.join("a/one"), "first of two").unwrap();
            fs::write(work.join("two"), "").unwrap();
            fs::write(work.join("three"), "third").unwrap();
        };
        let (index, bytes) = collected(fill, &["a/one", "two", "absent", "./three"], &Limits::default());
        assert_eq!(bytes, b"first of twothird");
        assert_eq!(index.iter().map(|c| c.bytes).collect::<Vec<_>>(), [12, 0, 0, 5]);
        assert!(index[2].error.as_ref().unwrap().contains("no such file"));
        assert_eq!(index[1].error, None);
    }

    #[test]
    fn what_leads_out_or_is_no_file_is_refused_with_the_cause() {
        let fill = |work: &Path| {
            symlink("/etc/passwd", work.join("link")).unwrap();
            symlink("/etc", work.join("dir")).unwrap();
            symlink("inside", work.join("near")).unwrap();
            fs::write(work.join("inside"), "x").unwrap();
            fs::create_dir(work.join("folder")).unwrap();
            nix::unistd::mkfifo(&work.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
            drop(std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap());
        };
        let tries = [
            ("link", "symbolic link"),
            ("dir/passwd", "symbolic link"),
            ("near", "symbolic link"),
            ("folder", "folder"),
            ("fifo", "no regular file"),
            ("socket", "no regular file"),
            ("../target", "below the work folder"),
            ("/etc/passwd", "below the work folder"),
            ("", "below the work folder"),
        ];
        let (index, bytes) = collected(fill, &tries.map(|(path, _)| path), &Limits::default());
        assert_eq!(bytes, b"");
        for (entry, (path, words)) in index.iter().zip(tries) {
            let error = entry.error.clone().unwrap_or_default();
            assert!(error.contains(words), "{path}: {error:?}");
        }
    }

    #[test]
    fn size_and_number_are_bounded_and_nothing_is_cut() {
        let fill = |work: &Path| {
            for name in ["a", "b", "c", "d"] {
                fs::write(work.join(name), "12345").unwrap();
            }
            File::create(work.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        };
        let limits = Limits { artifact_bytes: 12, artifact_files: 4, ..Limits::default() };
        let (index, bytes) = collected(fill, &["sparse", "a", "b", "c", "d"], &limits);
        assert_eq!(bytes, b"1234512345");
        let errors: Vec<_> = index.iter().map(|c| c.error.is_some()).collect();
        assert_eq!(errors, [true, false, false, true]);
    }

    #[test]
    fn names_are_only_looked_for_where_one_can_be() {
        assert!(may_name_files(br#"{"@artifact":"x"}"#));
        assert!(may_name_files(br#"{"\u0040artifact":"x"}"#));
        assert!(!may_name_files(br#"{"disk":1}"#));
    }
}

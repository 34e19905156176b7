//! Keeps the work folder of an attempt that has ended: a tar archive in the run folder, within a number of bytes.
//!
//! An archive, and not the folder itself: what a script made stays bytes until somebody looks into it, whatever names,
//! links and modes it chose. The tree is dead, so nothing changes while it is read. A file goes in whole or not at all.
#![forbid(unsafe_code)]

use super::record::KeptFolder;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{ftruncate, read, write};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The unit of an archive.
const BLOCK: usize = 512;

/// What ends an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The most entries of an archive, whatever the limits of the attempt were.
const MAX_ENTRIES: u64 = 65_536;

/// The largest file that the form can name the size of.
const MAX_FILE: u64 = 0o777_7777_7777;

struct Archive<'a> {
    target: &'a OwnedFd,
    limit: u64,
    kept: KeptFolder,
    buffer: &'a mut [u8],
}

/// What cannot be read is left out; what cannot be written ends it.
enum Problem {
    LeftOut,
    Full(Errno),
}

/// Writes the folder behind what the target holds already.
pub(super) fn keep(work: BorrowedFd<'_>, target: &OwnedFd, limit: u64, buffer: &mut [u8]) -> KeptFolder {
    let offset = fstat(target).map_or(0, |status| u64::try_from(status.st_size).unwrap_or_default());
    let limit = limit.saturating_sub(END.len() as u64);
    let mut archive = Archive { target, limit, kept: KeptFolder { offset, ..KeptFolder::default() }, buffer };
    let outcome = archive.walk(work).and_then(|()| archive.put(&END));
    if let Err(errno) = outcome {
        archive.kept.error = Some(errno.desc().to_owned());
        // Whatever is whole stays.
        let whole = i64::try_from(offset + archive.kept.bytes).unwrap_or(i64::MAX);
        let _ = ftruncate(target, whole);
    } else {
        archive.kept.bytes += END.len() as u64;
    }
    archive.kept
}

impl Archive<'_> {
    /// Goes through the folder, parents before children.
    fn walk(&mut self, work: BorrowedFd<'_>) -> nix::Result<()> {
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let Ok((fd, names)) = list(work, &folder) else {
                self.kept.left_out += 1;
                continue;
            };
            for name in names {
                let path = folder.join(OsStr::from_bytes(name.to_bytes()));
                match self.add(&fd, &name, &path) {
                    Ok(true) => folders.push(path),
                    Ok(false) => {}
                    Err(Problem::LeftOut) => self.kept.left_out += 1,
                    Err(Problem::Full(errno)) => return Err(errno),
                }
            }
        }
        Ok(())
    }

    /// Adds one entry. Returns whether it is a folder to be gone through.
    fn add(&mut self, folder: &OwnedFd, name: &CString, path: &Path) -> Result<bool, Problem> {
        let left_out = |_| Problem::LeftOut;
        if self.kept.entries >= MAX_ENTRIES {
            return Err(Problem::LeftOut);
        }
        let status = fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(left_out)?;
        let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
        match kind {
            SFlag::S_IFDIR => {
                let mut named = path.as_os_str().to_owned();
                named.push("/");
                self.entry(&headers(b'5', &named, None, &status, 0), None, 0)?;
                Ok(true)
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(folder, name.as_c_str()).map_err(left_out)?;
                self.entry(&headers(b'2', path.as_os_str(), Some(&target), &status, 0), None, 0)?;
                Ok(false)
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = openat(folder, name.as_c_str(), flags, Mode::empty()).map_err(left_out)?;
                let size = u64::try_from(status.st_size).unwrap_or(u64::MAX);
                if size > MAX_FILE {
                    return Err(Problem::LeftOut);
                }
                self.entry(&headers(b'0', path.as_os_str(), None, &status, size), Some(&file), size)?;
                Ok(false)
            }
            _ => Err(Problem::LeftOut),
        }
    }

    /// Writes an entry if there is room for the whole of it.
    fn entry(&mut self, headers: &[u8], content: Option<&OwnedFd>, size: u64) -> Result<(), Problem> {
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or_default();
        let whole = headers.len() as u64 + size + padding as u64;
        if self.kept.bytes + whole > self.limit {
            return Err(Problem::LeftOut);
        }
        self.put(headers).map_err(Problem::Full)?;
        if let Some(file) = content {
            self.copy(file, size).map_err(Problem::Full)?;
        }
        self.put(&END[..padding]).map_err(Problem::Full)?;
        self.kept.bytes += whole;
        self.kept.entries += 1;
        Ok(())
    }

    fn put(&self, mut bytes: &[u8]) -> nix::Result<()> {
        while !bytes.is_empty() {
            match write(self.target, bytes) {
                Ok(0) => return Err(Errno::ENOSPC),
                Ok(length) => bytes = &bytes[length..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Copies exactly so many bytes; what a file that cannot be read on lacks is zeros.
    fn copy(&mut self, file: &OwnedFd, size: u64) -> nix::Result<()> {
        let mut left = size;
        while left > 0 {
            let part = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let length = match read(file, &mut self.buffer[..part]) {
                Ok(0) | Err(_) => {
                    self.buffer[..part].fill(0);
                    part
                }
                Ok(length) => length,
            };
            self.put(&self.buffer[..length])?;
            left -= length as u64;
        }
        Ok(())
    }
}

/// Opens a folder below the work folder, through no link and into no other file system, and lists it in order.
fn list(work: BorrowedFd<'_>, folder: &Path) -> nix::Result<(OwnedFd, Vec<CString>)> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = || OpenHow::new().flags(flags).resolve(resolve);
    let path = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let fd = openat2(work, path, how())?;
    let mut dir = Dir::from_fd(openat2(work, path, how())?)?;
    let names = dir.iter().filter_map(|entry| Some(entry.ok()?.file_name().to_owned()));
    let mut names: Vec<CString> =
        names.filter(|name| ![&b"."[..], b".."].contains(&name.to_bytes())).collect();
    names.sort();
    Ok((fd, names))
}

/// The header of an entry, with one before it for what does not fit.
fn headers(kind: u8, path: &OsStr, link: Option<&OsString>, status: &FileStat, size: u64) -> Vec<u8> {
    let (path, link) = (path.as_bytes(), link.map_or(&b""[..], |link| link.as_bytes()));
    let mut more = Vec::new();
    for (name, value) in [("path", path), ("linkpath", link)] {
        if value.len() > 100 {
            more.extend(record(name, value));
        }
    }
    let mut bytes = Vec::new();
    if !more.is_empty() {
        bytes.extend(header(b'x', b"PaxHeaders/longer", b"", 0o600, 0, more.len() as u64));
        bytes.extend(&more);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    let mtime = u64::try_from(status.st_mtime).unwrap_or_default();
    // Nobody who unpacks it gets a setuid program.
    bytes.extend(header(kind, path, link, status.st_mode & 0o777, mtime, size));
    bytes
}

/// One line of an extended header: its own length, a name, a value.
fn record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut line = format!("{length} {name}=").into_bytes();
    line.extend(value);
    line.push(b'\n');
    line
}

fn header(kind: u8, path: &[u8], link: &[u8], mode: u32, mtime: u64, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let length = bytes.len().min(most);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, path, 100);
    put(100, format!("{mode:07o}").as_bytes(), 8);
    // Whoever unpacks it owns it.
    put(108, b"0000000", 8);
    put(116, b"0000000", 8);
    put(124, format!("{size:011o}").as_bytes(), 12);
    put(136, format!("{:011o}", mtime.min(MAX_FILE)).as_bytes(), 12);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link, 100);
    put(257, b"ustar\x0000", 8);
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn kept(work: &Path, limit: u64) -> (KeptFolder, tempfile::TempDir) {
        let out = tempfile::tempdir().unwrap();
        let path = out.path().join("x.tar");
        let file: OwnedFd =
            fs::File::options().create(true).append(true).read(true).open(path).unwrap().into();
        let folder: OwnedFd = fs::File::open(work).unwrap().into();
        let record = keep(folder.as_fd(), &file, limit, &mut [0; 4096]);
        (record, out)
    }

    #[test]
    fn tar_finds_everything_that_fits_as_it_was() {
        let work = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        fs::create_dir_all(work.path().join("d".repeat(90))).unwrap();
        for (name, text) in [("a.txt", "one"), ("empty", ""), (long.as_str(), "long")] {
            fs::write(work.path().join(name), text).unwrap();
        }
        fs::write(work.path().join("large"), vec![7; 10_000]).unwrap();
        symlink("/etc/passwd", work.path().join("link")).unwrap();
        nix::unistd::mkfifo(&work.path().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        let (record, out) = kept(work.path(), 1 << 20);
        assert_eq!((record.entries, record.left_out, record.error), (6, 1, None));
        assert_eq!(record.bytes, fs::metadata(out.path().join("x.tar")).unwrap().len());
        let tar = |args: &[&str]| Command::new("tar").args(args).current_dir(out.path()).output().unwrap();
        fs::create_dir(out.path().join("to")).unwrap();
        let said = tar(&["-xvf", "x.tar", "-C", "to"]);
        assert!(said.status.success(), "{said:?}");
        let at = |name: &str| out.path().join("to").join(name);
        assert_eq!(fs::read_to_string(at("a.txt")).unwrap(), "one");
        assert_eq!(fs::read_to_string(at(&long)).unwrap(), "long");
        assert_eq!(fs::read(at("large")).unwrap(), vec![7; 10_000]);
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(at("empty")).unwrap().len(), 0);
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole_and_counted() {
        let work = tempfile::tempdir().unwrap();
        fs::write(work.path().join("a"), vec![1; 600]).unwrap();
        fs::write(work.path().join("b"), vec![2; 60_000]).unwrap();
        fs::write(work.path().join("c"), vec![3; 10]).unwrap();
        let (record, out) = kept(work.path(), 8 * 1024);
        assert_eq!((record.entries, record.left_out), (2, 1));
        assert!(record.bytes <= 8 * 1024);
        let said = Command::new("tar").args(["-tf", "x.tar"]).current_dir(out.path()).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "a\nc\n");
    }

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for length in [1, 80, 87, 88, 89, 90, 91, 92, 93, 985, 986, 987, 988, 989, 990] {
            let line = record("path", &vec![b'x'; length]);
            let text = String::from_utf8(line.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), line.len(), "{length}");
        }
    }
}

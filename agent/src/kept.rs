//! Work folders of runs that failed and that somebody asked to keep: archives in the state folder, bounded and aged.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

const MIB: u64 = 1024 * 1024;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepBounds {
    /// All together, bytes; the oldest go first.
    pub max_bytes: u64,
    /// Of one run, bytes.
    pub run_bytes: u64,
    /// Gone after this, milliseconds by the wall clock.
    pub max_age_ms: i64,
}

impl Default for KeepBounds {
    fn default() -> Self {
        KeepBounds { max_bytes: 1024 * MIB, run_bytes: 256 * MIB, max_age_ms: 7 * DAY_MS }
    }
}

/// One folder that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptRun {
    /// The run and its attempt, as `RUN.ATTEMPT`.
    pub run: String,
    /// The archive's size.
    pub bytes: u64,
    /// When it was kept, Unix milliseconds.
    pub kept_ms: i64,
    /// The archive.
    pub path: PathBuf,
}

/// What an archive's name ends in; one that is still written has [`PART`].
const TAR: &str = ".tar";
const PART: &str = ".part";

/// The folder of them.
#[must_use]
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("kept")
}

/// Those that are kept, the oldest first. None where there is no folder.
///
/// # Errors
/// The folder cannot be read.
pub fn list(state_dir: &Path) -> io::Result<Vec<KeptRun>> {
    let dir = folder(state_dir);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all: Vec<KeptRun> = entries.filter_map(|entry| kept(&entry.ok()?.path())).collect();
    all.sort_by(|a, b| (a.kept_ms, &a.run).cmp(&(b.kept_ms, &b.run)));
    Ok(all)
}

fn kept(path: &Path) -> Option<KeptRun> {
    let run = path.file_name()?.to_str()?.strip_suffix(TAR)?.to_owned();
    let status = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let since = status.modified().unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
    let kept_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    Some(KeptRun { run, bytes: status.len(), kept_ms, path: path.to_owned() })
}

/// Keeps a part of a file as the archive of a run, and makes room for it among the older ones.
///
/// # Errors
/// In words: there is no room for it, or it cannot be written.
pub fn keep(
    state_dir: &Path,
    bounds: &KeepBounds,
    run: &str,
    source: &Path,
    (offset, bytes): (u64, u64),
) -> Result<PathBuf, String> {
    if bytes > bounds.max_bytes {
        return Err(format!("its {bytes} bytes are more than max_bytes = {} of [keep]", bounds.max_bytes));
    }
    let dir = folder(state_dir);
    let path = dir.join(format!("{run}{TAR}"));
    let part = dir.join(format!("{run}{PART}"));
    let write = || -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut source = File::open(source)?;
        source.seek(SeekFrom::Start(offset))?;
        let mut target =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        let copied = io::copy(&mut source.take(bytes), &mut target)?;
        if copied != bytes {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is shorter than its record says",
            ));
        }
        fs::rename(&part, &path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&part);
        error.to_string()
    })?;
    sweep(state_dir, bounds);
    if path.exists() { Ok(path) } else { Err("there was no room for it".into()) }
}

/// Removes what is too old, and the oldest beyond the bound of all together. What cannot be removed is logged.
pub fn sweep(state_dir: &Path, bounds: &KeepBounds) {
    let Ok(all) = list(state_dir) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let oldest = i64::try_from(now.as_millis()).unwrap_or(i64::MAX).saturating_sub(bounds.max_age_ms);
    let mut total: u64 = all.iter().map(|kept| kept.bytes).sum();
    for kept in all {
        if kept.kept_ms >= oldest && total <= bounds.max_bytes {
            continue;
        }
        total -= kept.bytes;
        if let Err(error) = fs::remove_file(&kept.path) {
            tracing::warn!(path = %kept.path.display(), %error, "cannot remove a work folder that was kept");
        }
    }
}

/// Removes what an agent that was killed had begun to write. To be called before another one begins.
pub fn remove_parts(state_dir: &Path) {
    let entries = fs::read_dir(folder(state_dir)).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == &PART[1..]) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::time::Duration;

    fn names(dir: &Path) -> Vec<String> {
        list(dir).unwrap().into_iter().map(|kept| kept.run).collect()
    }

    #[test]
    fn a_part_of_a_file_is_kept_and_the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(dir.path()).unwrap().is_empty());
        let source = dir.path().join("bundle");
        fs::write(&source, "artifactARCHIVE").unwrap();
        let bounds = KeepBounds { max_bytes: 16, run_bytes: 8, max_age_ms: DAY_MS };
        let store = |run: &str| keep(dir.path(), &bounds, run, &source, (8, 7));
        let aged = |run: &str, seconds: u64| {
            let file =
                File::options().write(true).open(folder(dir.path()).join(format!("{run}.tar"))).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let path = store("a-0.1").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ARCHIVE");
        aged("a-0.1", 20);
        store("b-0.1").unwrap();
        aged("b-0.1", 10);
        assert_eq!(names(dir.path()), ["a-0.1", "b-0.1"]);
        store("c-0.1").unwrap();
        assert_eq!(names(dir.path()), ["b-0.1", "c-0.1"]);
        aged("c-0.1", 2 * 24 * 3600);
        sweep(dir.path(), &bounds);
        assert_eq!(names(dir.path()), ["b-0.1"]);
        let refused = keep(dir.path(), &bounds, "d-0.1", &source, (0, 17)).unwrap_err();
        assert!(refused.contains("max_bytes = 16"), "{refused}");
        let short = keep(dir.path(), &bounds, "e-0.1", &source, (8, 9)).unwrap_err();
        assert!(short.contains("shorter"), "{short}");
        fs::write(folder(dir.path()).join("f-0.1.part"), "torn").unwrap();
        remove_parts(dir.path());
        assert_eq!(fs::read_dir(folder(dir.path())).unwrap().count(), 1);
    }
}

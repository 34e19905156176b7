//! Steps on the file system that blobs and logs share.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use super::error::{StoreError, failed};

/// Files that are worked on at the same time; each takes a thread.
const WORKERS: usize = 8;

/// What a sweep removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counts bytes that are gone. What came into the folder by other hands was never counted, so this stops at 0.
pub(super) fn discount(used: &AtomicU64, bytes: u64) {
    let _ = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(bytes)));
}

/// Runs blocking file work off the async threads, a few at a time.
#[derive(Clone)]
pub(super) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(WORKERS)))
    }

    pub(super) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, StoreError> + Send + 'static,
    {
        let permit = self.0.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        task.await.map_err(|_| StoreError::Closed)?
    }
}

/// Makes a folder for this user only, if it is not there.
pub(super) fn make_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))
}

/// Opens a file of this user for reading and writing, made if it is not there.
pub(super) fn open_rw(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    file.map_err(failed("open", path))
}

/// Renames within a folder and makes the new name durable.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    sync_dir(to.parent().unwrap_or(to))
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(failed("sync the folder", path))
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A file's length, `None` if it is not there.
pub(super) fn length(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("look at", path)(error)),
    }
}

/// Up to `max` bytes from `offset` on and the file's length, `None` if it is not there.
pub(super) fn read_range(path: &Path, offset: u64, max: usize) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let total = file.metadata().map_err(failed("look at", path))?.len();
    let wanted = usize::try_from(total.saturating_sub(offset)).unwrap_or(max).min(max);
    let mut bytes = vec![0; wanted];
    let n = fill(&file, &mut bytes, offset).map_err(failed("read", path))?;
    bytes.truncate(n);
    Ok(Some((bytes, total)))
}

fn fill(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// A file that a sweep looks at.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) modified: SystemTime,
}

/// The files of a folder; what vanishes meanwhile is left out.
pub(super) fn entries(dir: &Path) -> Result<Vec<Entry>, StoreError> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let Ok(meta) = entry.metadata() else { continue };
        let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        all.push(Entry { path: entry.path(), bytes: if meta.is_file() { meta.len() } else { 0 }, modified });
    }
    Ok(all)
}

/// Which of `items` (age and size) must go so that none is older than `max_age` and all together have at most
/// `max_bytes`: the oldest first. Pure.
pub(super) fn doomed(
    items: &[(SystemTime, u64)],
    now: SystemTime,
    max_age: Duration,
    max_bytes: u64,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| items[i].0);
    let mut total: u64 = items.iter().map(|(_, bytes)| bytes).sum();
    let too_old = |modified: SystemTime| now.duration_since(modified).is_ok_and(|age| age > max_age);
    let mut out = Vec::new();
    for i in order {
        let (modified, bytes) = items[i];
        if total <= max_bytes && !too_old(modified) {
            continue;
        }
        total -= bytes;
        out.push(i);
    }
    out
}

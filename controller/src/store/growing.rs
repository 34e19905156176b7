//! A file that grows at its end only, knows the digest of what it holds, and whether that is on the disk.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use sally_common::id::Digest;

use super::disk::{open_rw, sync_dir};
use super::error::{StoreError, failed};

/// Growing files kept open; more are closed, the least recently used first, and read again when needed.
const OPEN_MAX: usize = 256;

/// An open growing file.
pub(super) struct Growing {
    file: Arc<File>,
    path: PathBuf,
    hasher: Sha256,
    len: u64,
    synced: u64,
    named: bool,
}

impl Growing {
    /// Opens or makes the file; what it holds is read once for its digest.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut growing = Self::empty(path)?;
        growing.reread()?;
        Ok(growing)
    }

    /// Opens or makes the file as one that holds nothing yet.
    pub(super) fn empty(path: &Path) -> Result<Self, StoreError> {
        let file = Arc::new(open_rw(path)?);
        Ok(Self { file, path: path.into(), hasher: Sha256::new(), len: 0, synced: 0, named: false })
    }

    fn reread(&mut self) -> Result<(), StoreError> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match (&*self.file).read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hasher.update(&buffer[..n]);
                    self.len += n as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &self.path)(error)),
            }
        }
    }

    /// How many bytes it holds.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds what is new of these bytes and says how many are held then. Bytes held already are not written
    /// again; bytes after a gap are not taken.
    pub(super) fn append(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, StoreError> {
        let known = self.len.checked_sub(offset).map(|k| usize::try_from(k).unwrap_or(usize::MAX));
        let Some(news) = known.and_then(|k| bytes.get(k..)).filter(|news| !news.is_empty()) else {
            return Ok(self.len);
        };
        if let Err(error) = self.file.write_all_at(news, self.len) {
            // What was written of it must not be counted when the file is opened the next time.
            let _ = self.file.set_len(self.len);
            return Err(failed("write", &self.path)(error));
        }
        self.hasher.update(news);
        self.len += news.len() as u64;
        Ok(self.len)
    }

    /// Makes at least the first `bytes` durable, or all there are if they are fewer; says how many are.
    pub(super) fn sync_up_to(&mut self, bytes: u64) -> Result<u64, StoreError> {
        if self.synced < bytes.min(self.len) || !self.named {
            self.file.sync_data().map_err(failed("sync", &self.path))?;
            if !self.named {
                sync_dir(self.path.parent().unwrap_or(&self.path))?;
                self.named = true;
            }
            self.synced = self.len;
        }
        Ok(self.synced)
    }

    /// What has to be synced so that at least the first `bytes` are durable, to be done without holding the file's lock:
    /// bytes that come meanwhile need not wait for the disk. `Err` if they are durable already, with how many are.
    pub(super) fn sync_apart(&self, bytes: u64) -> Result<(Arc<File>, u64), u64> {
        if self.synced < bytes.min(self.len) && self.named {
            Ok((self.file.clone(), self.len))
        } else {
            Err(self.synced)
        }
    }

    /// Notes that the first `bytes` were synced apart.
    pub(super) fn synced_apart(&mut self, file: &Arc<File>, bytes: u64) {
        if Arc::ptr_eq(file, &self.file) {
            self.synced = self.synced.max(bytes);
        }
    }

    /// Whether its name is durable too.
    pub(super) fn is_named(&self) -> bool {
        self.named
    }

    /// The digest of all it holds.
    pub(super) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }
}

/// The growing files that are open, each behind its own lock.
pub(super) struct Cache<K> {
    slots: Mutex<Slots<K>>,
}

/// The files by key, each with the time of its last use, and the time: a count of uses.
type Slots<K> = (HashMap<K, (u64, Slot)>, u64);

/// One file's place; empty until it is opened, and again when it ended or failed.
pub(super) type Slot = Arc<Mutex<Option<Growing>>>;

impl<K: Hash + Eq + Clone> Cache<K> {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::new((HashMap::new(), 0)) }
    }

    /// The place of a file. All work on one file goes through it, one after the other.
    pub(super) fn slot(&self, key: &K) -> Slot {
        let mut guard = lock(&self.slots);
        let (slots, clock) = &mut *guard;
        *clock += 1;
        if !slots.contains_key(key) && slots.len() >= OPEN_MAX {
            let idle = slots.iter().filter(|(_, (_, slot))| Arc::strong_count(slot) == 1);
            let oldest = idle.min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            // If none is idle there are as many workers as open files, which are few.
            oldest.and_then(|key| slots.remove(&key));
        }
        let entry = slots.entry(key.clone()).or_insert_with(|| (0, Slot::default()));
        entry.0 = *clock;
        entry.1.clone()
    }

    /// Closes the files of all keys for which this holds.
    pub(super) fn close(&self, which: impl Fn(&K) -> bool) {
        lock(&self.slots).0.retain(|key, _| !which(key));
    }
}

/// A panic elsewhere leaves these values whole: a file in the middle of work is not in its slot.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

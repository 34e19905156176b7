//! Programs and input, by digest. A blob is seen only when it is whole, right and on the disk.
//!
//! `DIGEST.part` grows by chunks, from whatever caller they come; whole and checked it is synced and renamed to
//! `DIGEST`. A part survives a restart and is continued.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use sally_common::id::Digest;
use sally_common::limit;

use super::disk::{self, Swept, Workers};
use super::error::{StoreError, failed};
use super::growing::{self, Cache};

/// Bounds of the blobs.
#[derive(Debug, Clone)]
pub struct BlobSettings {
    /// Largest blob, bytes.
    pub max_blob: u64,
    /// All blobs together, bytes.
    pub max_bytes: u64,
    /// Blobs that were not put for so long may be removed.
    pub max_age: Duration,
    /// Parts that did not grow for so long are removed.
    pub max_part_age: Duration,
}

impl Default for BlobSettings {
    /// 64 MiB each, 4 GiB together, 30 days; parts a day.
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self {
            max_blob: limit::BLOB_MAX,
            max_bytes: 4 * 1024 * 1024 * 1024,
            max_age: 30 * day,
            max_part_age: day,
        }
    }
}

/// How much of a blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobState {
    /// Bytes from the start; the next chunk begins here.
    pub bytes: u64,
    /// Whether it is whole, right and durable.
    pub complete: bool,
}

/// A piece of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobPart {
    /// The bytes; fewer than asked for at the end only.
    pub bytes: Vec<u8>,
    /// How many the whole has.
    pub total: u64,
}

/// The blobs of a folder; clones share it.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    settings: BlobSettings,
    used: AtomicU64,
    parts: Cache<Digest>,
    workers: Workers,
}

impl Blobs {
    /// Opens the folder, made if it is not there.
    pub async fn open(dir: impl AsRef<Path>, settings: BlobSettings) -> Result<Self, StoreError> {
        let (dir, workers) = (dir.as_ref().to_path_buf(), Workers::new());
        let scan = dir.clone();
        let used = workers
            .run(move || {
                disk::make_dir(&scan)?;
                Ok(disk::entries(&scan)?.iter().map(|e| e.bytes).sum())
            })
            .await?;
        let used = AtomicU64::new(used);
        Ok(Self { inner: Arc::new(Inner { dir, settings, used, parts: Cache::new(), workers }) })
    }

    /// Stores a chunk of the blob `digest` of `total` bytes. A chunk that is known changes nothing; one
    /// after a gap is not taken: the answer says where to go on. With the last byte the blob is checked,
    /// synced and shown.
    ///
    /// # Errors
    ///
    /// Larger than a blob may be; the folder's bound or the disk is full; not what the digest says, in which
    /// case the part is gone and the upload begins anew.
    pub async fn put_chunk(
        &self,
        digest: Digest,
        offset: u64,
        total: u64,
        bytes: Bytes,
    ) -> Result<BlobState, StoreError> {
        let inner = self.inner.clone();
        self.inner.workers.run(move || inner.put_chunk(digest, offset, total, &bytes)).await
    }

    /// Stores a blob whole and names its digest.
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        let digest = Digest::of(&bytes);
        let total = bytes.len() as u64;
        let state = self.put_chunk(digest, 0, total, bytes).await?;
        debug_assert!(state.complete);
        Ok(digest)
    }

    /// How much of a blob is stored, for a caller that wants to continue.
    pub async fn state(&self, digest: Digest) -> Result<BlobState, StoreError> {
        let inner = self.inner.clone();
        self.inner
            .workers
            .run(move || {
                if let Some(bytes) = disk::length(&inner.path(digest))? {
                    return Ok(BlobState { bytes, complete: true });
                }
                let bytes = disk::length(&inner.part(digest))?.unwrap_or(0);
                Ok(BlobState { bytes, complete: false })
            })
            .await
    }

    /// Up to `max` bytes of a whole blob from `offset` on; `None` if it is not held.
    pub async fn read(
        &self,
        digest: Digest,
        offset: u64,
        max: usize,
    ) -> Result<Option<BlobPart>, StoreError> {
        let path = self.inner.path(digest);
        let read = move || disk::read_range(&path, offset, max);
        Ok(self.inner.workers.run(read).await?.map(|(bytes, total)| BlobPart { bytes, total }))
    }

    /// Bytes in the folder.
    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// Removes what is too old, and the oldest while all together are too large; never what is in `spared`.
    pub async fn sweep(&self, now: SystemTime, spared: HashSet<Digest>) -> Result<Swept, StoreError> {
        let inner = self.inner.clone();
        self.inner.workers.run(move || inner.sweep(now, &spared)).await
    }
}

impl Inner {
    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{digest}.part"))
    }

    fn put_chunk(
        &self,
        digest: Digest,
        offset: u64,
        total: u64,
        bytes: &[u8],
    ) -> Result<BlobState, StoreError> {
        let (path, part, bound) = (self.path(digest), self.part(digest), self.settings.max_blob);
        let end = offset.saturating_add(bytes.len() as u64);
        if total > bound || end > total {
            return Err(StoreError::TooLarge { path, bytes: total.max(end), bound: bound.min(total) });
        }
        let slot = self.parts.slot(&digest);
        // The place is held from the look at the finished file to the rename: no two callers finish one blob.
        let mut place = growing::lock(&slot);
        if let Some(bytes) = disk::length(&path)? {
            touch(&path);
            return Ok(BlobState { bytes, complete: true });
        }
        let used = self.used.load(Ordering::Relaxed);
        if used.saturating_add(bytes.len() as u64) > self.settings.max_bytes {
            return Err(StoreError::Bound { path: self.dir.clone(), used, bound: self.settings.max_bytes });
        }
        let mut file = match place.take() {
            Some(file) => file,
            None => growing::Growing::open(&part)?,
        };
        let before = file.len();
        let held = file.append(offset, bytes)?;
        self.used.fetch_add(held - before, Ordering::Relaxed);
        if held < total {
            *place = Some(file);
            return Ok(BlobState { bytes: held, complete: false });
        }
        if held != total || file.digest() != digest {
            disk::remove(&part)?;
            disk::discount(&self.used, held);
            return Err(StoreError::WrongDigest { path });
        }
        file.sync_up_to(total)?;
        disk::rename(&part, &path)?;
        Ok(BlobState { bytes: total, complete: true })
    }

    fn sweep(&self, now: SystemTime, spared: &HashSet<Digest>) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut whole = Vec::new();
        let mut kept_bytes = 0;
        for entry in disk::entries(&self.dir)? {
            let name = entry.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let is_part = name.ends_with(".part");
            let digest: Option<Digest> = name.trim_end_matches(".part").parse().ok();
            let Some(digest) = digest else { continue };
            let idle = now.duration_since(entry.modified).unwrap_or_default();
            if is_part && idle > self.settings.max_part_age {
                self.parts.close(|key| *key == digest);
                self.take_away(&entry, &mut swept)?;
            } else if is_part || spared.contains(&digest) {
                kept_bytes += entry.bytes;
            } else {
                whole.push(entry);
            }
        }
        let ages: Vec<(SystemTime, u64)> = whole.iter().map(|e| (e.modified, e.bytes)).collect();
        let room = self.settings.max_bytes.saturating_sub(kept_bytes);
        for i in disk::doomed(&ages, now, self.settings.max_age, room) {
            self.take_away(&whole[i], &mut swept)?;
        }
        Ok(swept)
    }

    fn take_away(&self, entry: &disk::Entry, swept: &mut Swept) -> Result<(), StoreError> {
        disk::remove(&entry.path)?;
        disk::discount(&self.used, entry.bytes);
        swept.files += 1;
        swept.bytes += entry.bytes;
        Ok(())
    }
}

/// Put again is wanted again: counts as new for the sweep. Failing that costs an upload later, no more.
fn touch(path: &Path) {
    let touched = std::fs::File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
    if let Err(error) = touched.map_err(failed("touch", path)) {
        tracing::debug!(%error, "ignoring");
    }
}

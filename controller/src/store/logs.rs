//! Streams of output, by run, attempt and stream.
//!
//! `JOB/INDEX-ATTEMPT.STREAM.part` grows by chunks; when length and digest are as the signed result says, it
//! is synced and renamed to `JOB/INDEX-ATTEMPT.STREAM`. What does not agree is set aside as `….bad`. A part
//! survives a restart and is continued.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use sally_common::id::{Digest, JobId, RunId};
use sally_common::limit::ARTIFACT_BYTES_MAX;
use sally_common::wire::artifact::{artifact_number, artifact_stream};

use super::disk::{self, Swept, Workers};
use super::error::{StoreError, failed};
use super::growing::{self, Cache};

/// Bounds of the logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Largest stream, bytes.
    pub max_stream: u64,
    /// All streams together, bytes.
    pub max_bytes: u64,
    /// A job's streams are removed so long after the last of them grew.
    pub max_age: Duration,
}

impl Default for LogSettings {
    /// 4 GiB each, 16 GiB together, 30 days.
    fn default() -> Self {
        let gib = 1024 * 1024 * 1024;
        Self { max_stream: 4 * gib, max_bytes: 16 * gib, max_age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// A stream of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The structured result.
    Result,
    /// A file that the script left behind, by its number.
    Artifact(u8),
}

impl Stream {
    /// Whether it is text that people watch as it comes.
    pub fn is_output(self) -> bool {
        matches!(self, Stream::Stdout | Stream::Stderr)
    }
}

impl FromStr for Stream {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdout" => Ok(Stream::Stdout),
            "stderr" => Ok(Stream::Stderr),
            "result" => Ok(Stream::Result),
            other => artifact_number(other).map(Stream::Artifact).ok_or_else(|| {
                let shown = sally_common::name::show(text);
                format!("there is no stream \"{shown}\": use stdout, stderr, result or artifact-N")
            }),
        }
    }
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stream::Stdout => f.write_str("stdout"),
            Stream::Stderr => f.write_str("stderr"),
            Stream::Result => f.write_str("result"),
            Stream::Artifact(number) => f.write_str(&artifact_stream(*number)),
        }
    }
}

/// Which stream of which attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The stream.
    pub stream: Stream,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is stored, now or before; not yet synced, see [`Logs::sync_up_to`].
    Stored {
        /// Bytes from the start.
        bytes: u64,
    },
    /// It begins after what is stored and was not taken.
    Gap {
        /// Where the next chunk must begin.
        wanted: u64,
    },
}

/// What became of a stream's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Whole, right and durable.
    Whole,
    /// The end is not here yet.
    Missing {
        /// Where the next chunk must begin.
        wanted: u64,
    },
}

/// How much of a stream is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStatus {
    /// Bytes from the start.
    pub stored: u64,
    /// Whether it is whole and checked.
    pub ended: bool,
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    /// The bytes; empty when there are none yet or no more.
    pub bytes: Vec<u8>,
    /// Where they begin.
    pub offset: u64,
    /// How much is stored.
    pub status: LogStatus,
}

/// First and last part of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edges {
    /// The first part; the whole stream if it has at most twice the part asked for.
    pub first: Vec<u8>,
    /// The last part, empty if `first` is the whole.
    pub last: Vec<u8>,
    /// How much is stored; what lies between the parts is `stored` less both lengths.
    pub status: LogStatus,
}

/// The logs of a folder; clones share it.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    settings: LogSettings,
    used: AtomicU64,
    open: Cache<LogKey>,
    workers: Workers,
}

impl Logs {
    /// Opens the folder, made if it is not there.
    pub async fn open(dir: impl AsRef<Path>, settings: LogSettings) -> Result<Self, StoreError> {
        let (dir, workers) = (dir.as_ref().to_path_buf(), Workers::new());
        let scan = dir.clone();
        let used = workers
            .run(move || {
                disk::make_dir(&scan)?;
                let mut used = 0;
                for job in jobs(&scan)? {
                    used += job.bytes;
                }
                Ok(used)
            })
            .await?;
        let inner = Inner { dir, settings, used: AtomicU64::new(used), open: Cache::new(), workers };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stores what is new of a chunk. A chunk that is known changes nothing, one after a gap is not taken.
    ///
    /// # Errors
    ///
    /// The stream, the folder's bound or the disk is full.
    pub async fn append(&self, key: &LogKey, offset: u64, bytes: Bytes) -> Result<Appended, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.inner.workers.run(move || inner.append(&key, offset, &bytes)).await
    }

    /// Makes the first `bytes` of a stream durable and says how many are: what a receipt may name. Fewer
    /// than asked for only if fewer are stored.
    pub async fn sync_up_to(&self, key: &LogKey, bytes: u64) -> Result<u64, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.inner.workers.run(move || inner.sync_up_to(&key, bytes)).await
    }

    /// Ends a stream: `bytes` and `digest` are those of the signed result. Asking again changes nothing.
    ///
    /// # Errors
    ///
    /// What is stored is something else: it is set aside and the stream is empty again.
    pub async fn finish(&self, key: &LogKey, bytes: u64, digest: Digest) -> Result<Finished, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.inner.workers.run(move || inner.finish(&key, bytes, digest)).await
    }

    /// How much of a stream is stored; `None` if nothing was ever.
    pub async fn status(&self, key: &LogKey) -> Result<Option<LogStatus>, StoreError> {
        Ok(self.read(key, 0, 0).await?.map(|part| part.status))
    }

    /// Up to `max` bytes of a stream from `offset` on; `None` if nothing of it was ever stored.
    pub async fn read(&self, key: &LogKey, offset: u64, max: usize) -> Result<Option<LogPart>, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.inner.workers.run(move || inner.read(&key, offset, max)).await
    }

    /// The first and last `part` bytes of a stream; `None` if nothing of it was ever stored.
    pub async fn edges(&self, key: &LogKey, part: usize) -> Result<Option<Edges>, StoreError> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.inner.workers.run(move || inner.edges(&key, part)).await
    }

    /// Bytes in the folder.
    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// Removes a job's streams.
    pub async fn remove(&self, job: &JobId) -> Result<Swept, StoreError> {
        let (inner, job) = (self.inner.clone(), job.clone());
        self.inner.workers.run(move || inner.remove(&job)).await
    }

    /// Removes the streams of jobs that are too old, and of the oldest while all together are too large; never
    /// of those in `spared`.
    pub async fn sweep(&self, now: SystemTime, spared: HashSet<JobId>) -> Result<Swept, StoreError> {
        let inner = self.inner.clone();
        self.inner.workers.run(move || inner.sweep(now, &spared)).await
    }
}

impl Inner {
    fn job(&self, job: &JobId) -> PathBuf {
        self.dir.join(job.as_str())
    }

    fn whole(&self, key: &LogKey) -> PathBuf {
        self.job(key.run.job()).join(format!("{}-{}.{}", key.run.index(), key.attempt, key.stream))
    }

    fn bound(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Artifact(_) => self.settings.max_stream.min(ARTIFACT_BYTES_MAX),
            Stream::Stdout | Stream::Stderr | Stream::Result => self.settings.max_stream,
        }
    }

    fn append(&self, key: &LogKey, offset: u64, bytes: &[u8]) -> Result<Appended, StoreError> {
        let (whole, bound) = (self.whole(key), self.bound(key.stream));
        let end = offset.saturating_add(bytes.len() as u64);
        if end > bound {
            return Err(StoreError::TooLarge { path: whole, bytes: end, bound });
        }
        let slot = self.open.slot(key);
        let mut place = growing::lock(&slot);
        let mut file = match place.take() {
            Some(file) => file,
            None => match self.reopen(&whole)? {
                Ok(file) => file,
                Err(bytes) if offset > bytes => return Ok(Appended::Gap { wanted: bytes }),
                Err(bytes) => return Ok(Appended::Stored { bytes }),
            },
        };
        let before = file.len();
        if offset > before {
            *place = Some(file);
            return Ok(Appended::Gap { wanted: before });
        }
        let used = self.used.load(Ordering::Relaxed);
        if end > before && used.saturating_add(end - before) > self.settings.max_bytes {
            *place = Some(file);
            return Err(StoreError::Bound { path: self.dir.clone(), used, bound: self.settings.max_bytes });
        }
        let held = file.append(offset, bytes)?;
        self.used.fetch_add(held - before, Ordering::Relaxed);
        *place = Some(file);
        Ok(Appended::Stored { bytes: held })
    }

    /// Opens a part that is not open, or says how long the stream is that has ended already.
    fn reopen(&self, whole: &Path) -> Result<Result<growing::Growing, u64>, StoreError> {
        if let Some(bytes) = disk::length(whole)? {
            return Ok(Err(bytes));
        }
        let dir = whole.parent().unwrap_or(&self.dir);
        if disk::length(dir)?.is_none() {
            disk::make_dir(dir)?;
            disk::sync_dir(&self.dir)?;
        }
        growing::Growing::open(&part(whole)).map(Ok)
    }

    fn sync_up_to(&self, key: &LogKey, bytes: u64) -> Result<u64, StoreError> {
        let whole = self.whole(key);
        let slot = self.open.slot(key);
        let (handle, held) = {
            let mut place = growing::lock(&slot);
            let mut file = match place.take() {
                Some(file) => file,
                // What has ended was synced before it was renamed.
                None => match self.reopen(&whole)? {
                    Ok(file) => file,
                    Err(bytes) => return Ok(bytes),
                },
            };
            let apart = if file.is_named() { file.sync_apart(bytes) } else { Err(file.sync_up_to(bytes)?) };
            *place = Some(file);
            match apart {
                Ok(apart) => apart,
                Err(synced) => return Ok(synced),
            }
        };
        handle.sync_data().map_err(failed("sync", &whole))?;
        if let Some(file) = growing::lock(&slot).as_mut() {
            file.synced_apart(&handle, held);
        }
        Ok(held)
    }

    fn finish(&self, key: &LogKey, bytes: u64, digest: Digest) -> Result<Finished, StoreError> {
        let whole = self.whole(key);
        let slot = self.open.slot(key);
        let mut place = growing::lock(&slot);
        let mut file = match place.take() {
            Some(file) => file,
            None => match self.reopen(&whole)? {
                Ok(file) => file,
                // Its digest was checked when it ended; the signed result of one attempt is one.
                Err(held) if held == bytes => return Ok(Finished::Whole),
                Err(_) => return Err(StoreError::WrongDigest { path: whole }),
            },
        };
        if file.len() < bytes {
            let wanted = file.len();
            *place = Some(file);
            return Ok(Finished::Missing { wanted });
        }
        if file.len() > bytes || file.digest() != digest {
            let mut bad = whole.clone().into_os_string();
            bad.push(".bad");
            disk::rename(&part(&whole), Path::new(&bad))?;
            return Err(StoreError::WrongDigest { path: bad.into() });
        }
        file.sync_up_to(bytes)?;
        disk::rename(&part(&whole), &whole)?;
        Ok(Finished::Whole)
    }

    /// Finds a stream's file whether it has ended or not. It may end between the two looks: so look again.
    fn read(&self, key: &LogKey, offset: u64, max: usize) -> Result<Option<LogPart>, StoreError> {
        let whole = self.whole(key);
        for (path, ended) in [(whole.clone(), true), (part(&whole), false), (whole, true)] {
            if let Some((bytes, stored)) = disk::read_range(&path, offset, max)? {
                return Ok(Some(LogPart { bytes, offset, status: LogStatus { stored, ended } }));
            }
        }
        Ok(None)
    }

    fn edges(&self, key: &LogKey, part: usize) -> Result<Option<Edges>, StoreError> {
        let twice = part.saturating_mul(2);
        let Some(head) = self.read(key, 0, twice)? else { return Ok(None) };
        let (mut first, stored) = (head.bytes, head.status.stored);
        if stored <= twice as u64 {
            return Ok(Some(Edges { first, last: Vec::new(), status: head.status }));
        }
        first.truncate(part);
        // More may have come meanwhile: the end is the one that `stored` names.
        let tail = self.read(key, stored - part as u64, part)?;
        Ok(tail.map(|tail| Edges { first, last: tail.bytes, status: head.status }))
    }

    fn remove(&self, job: &JobId) -> Result<Swept, StoreError> {
        let dir = self.job(job);
        let mut swept = Swept::default();
        self.open.close(|key| key.run.job() == job);
        if disk::length(&dir)?.is_none() {
            return Ok(swept);
        }
        for entry in disk::entries(&dir)? {
            disk::remove(&entry.path)?;
            swept.files += 1;
            swept.bytes += entry.bytes;
        }
        disk::discount(&self.used, swept.bytes);
        std::fs::remove_dir(&dir).map_err(failed("remove", &dir))?;
        Ok(swept)
    }

    fn sweep(&self, now: SystemTime, spared: &HashSet<JobId>) -> Result<Swept, StoreError> {
        let all = jobs(&self.dir)?;
        let (kept, free): (Vec<_>, Vec<_>) = all.into_iter().partition(|job| spared.contains(&job.id));
        let room = self.settings.max_bytes.saturating_sub(kept.iter().map(|job| job.bytes).sum());
        let ages: Vec<(SystemTime, u64)> = free.iter().map(|job| (job.modified, job.bytes)).collect();
        let mut swept = Swept::default();
        for i in disk::doomed(&ages, now, self.settings.max_age, room) {
            let one = self.remove(&free[i].id)?;
            swept.files += one.files;
            swept.bytes += one.bytes;
        }
        Ok(swept)
    }
}

/// A job's streams as a sweep sees them.
struct JobFiles {
    id: JobId,
    bytes: u64,
    modified: SystemTime,
}

/// Every job that has a folder; other things in the folder are left alone.
fn jobs(dir: &Path) -> Result<Vec<JobFiles>, StoreError> {
    let mut all = Vec::new();
    for folder in disk::entries(dir)? {
        let name = folder.path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let Ok(id) = name.parse::<JobId>() else { continue };
        let files = disk::entries(&folder.path)?;
        let modified = files.iter().map(|f| f.modified).max().unwrap_or(folder.modified);
        all.push(JobFiles { id, bytes: files.iter().map(|f| f.bytes).sum(), modified });
    }
    Ok(all)
}

fn part(whole: &Path) -> PathBuf {
    let mut name = whole.to_path_buf().into_os_string();
    name.push(".part");
    name.into()
}

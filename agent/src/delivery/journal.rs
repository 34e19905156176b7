//! The journal: the agent's durable memory, one `redb` file written by one thread.
//!
//! It holds the incarnation, the counter, what is known of each run, the spool (results without a receipt), and how
//! often it was written for good: a file that comes back as an older copy has a lower number than was told. Commands that arrive together are committed together, so a burst of runs
//! costs one sync and not one each. A commit is on disk before its command is answered.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use sally_common::id::{Digest, Incarnation, RunId};
use sally_common::wire::Refusal;
use tokio::sync::oneshot;

use super::memory::{Ended, Known, Memory, Phase};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const RUNS: TableDefinition<&str, &[u8]> = TableDefinition::new("runs");
const SPOOL: TableDefinition<&str, &[u8]> = TableDefinition::new("spool");

/// Commands that may wait for the journal's thread.
const QUEUE: usize = 1024;

/// Commands committed together at most.
const BATCH: usize = 256;

/// The counter is written ahead in steps of this size, so that most reports cost no write. After
/// a crash the counter goes on from the end of the step: holes are harmless, repeats are not.
const COUNTER_STEP: u64 = 100_000;

/// A larger file is made as small as it can be when it is opened, bytes.
const COMPACT_ABOVE: u64 = 64 * 1024 * 1024;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened or read.
    #[error(
        "cannot open the journal {path}: {problem}; if the file is damaged, move it away: the agent then \
             starts as a new incarnation and what the old one held is settled as unknown"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        problem: String,
    },
    /// A commit failed. Nothing may be started on its word.
    #[error("cannot write the journal: {0}")]
    Write(String),
    /// The journal's thread is gone.
    #[error("the journal is closed")]
    Closed,
}

/// A result that waits for its receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The result message's exact body. It is signed anew when it is sent again.
    pub body: Vec<u8>,
}

enum Write {
    Run { run: RunId, known: Known },
    Finish { run: RunId, known: Known, body: Vec<u8> },
    Receipt { run: RunId, known: Known },
    Restore { run: RunId, before: Option<Known> },
    Renew { incarnation: Incarnation },
    Prune { runs: Vec<RunId> },
    Counter { ahead: u64 },
}

struct Command {
    write: Write,
    done: oneshot::Sender<Result<(), JournalError>>,
}

/// What was found when the journal was opened.
#[derive(Debug)]
pub struct Recovered {
    /// The incarnation, new if the file was new.
    pub incarnation: Incarnation,
    /// Whether the file was new.
    pub fresh: bool,
    /// What is known of each run.
    pub memory: Memory,
    /// Results without a receipt, oldest run first.
    pub spool: Vec<Spooled>,
}

/// The journal's handle. Dropping it ends the thread after the last command.
pub struct Journal {
    sender: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
    incarnation: Incarnation,
    counter: u64,
    reserved: u64,
    /// How often the file was written for good; the thread counts.
    commits: Arc<AtomicU64>,
    /// The same as it was found, until a controller has welcomed this process.
    found: Option<u64>,
}

impl Journal {
    /// Opens or creates the journal. Blocking; called before the agent's loop begins.
    pub fn open(path: &Path) -> Result<(Journal, Recovered), JournalError> {
        let fail = |problem: String| JournalError::Open { path: path.to_owned(), problem };
        let mut database = open_database(path).map_err(fail)?;
        compact(path, &mut database).map_err(fail)?;
        let (recovered, Numbers { counter, commits: found }) = recover(&database).map_err(fail)?;
        let reserved = counter + COUNTER_STEP;
        let now = commit(&database, &[Write::Counter { ahead: reserved }]).map_err(fail)?;
        let commits = Arc::new(AtomicU64::new(now));
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn({
                let commits = commits.clone();
                let mut store = Store { path: path.to_owned(), database: Some(database), commits };
                move || serve(&mut store, &receiver)
            })
            .map_err(|e| fail(e.to_string()))?;
        let incarnation = recovered.incarnation;
        let (sender, thread) = (Some(sender), Some(thread));
        let found = Some(found);
        Ok((Journal { sender, thread, incarnation, counter, reserved, commits, found }, recovered))
    }

    /// How often the journal has been written for good, as a report says it: every number was on disk before. Until
    /// [`Journal::welcomed`] it is the number that was found at opening. What is written since then would let an older
    /// copy catch up with what was told before.
    pub fn commits(&self) -> u64 {
        self.found.unwrap_or_else(|| self.commits.load(Ordering::Acquire))
    }

    /// A controller has compared the number that was found, and lets this process work.
    pub fn welcomed(&mut self) {
        self.found = None;
    }

    /// The incarnation that the next number counts for.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Writes a new incarnation in the place of the old one; runs and spool stay, so that replays of what was run
    /// stay refused. It counts once it is on disk: then say so with [`Journal::renewed`].
    pub fn renew(&self) -> (Incarnation, Pending) {
        let incarnation = Incarnation::generate();
        (incarnation, self.send(Write::Renew { incarnation }))
    }

    /// Goes over to an incarnation that is on disk. Its numbers begin anew.
    pub fn renewed(&mut self, incarnation: Incarnation) {
        (self.incarnation, self.counter, self.reserved) = (incarnation, 0, COUNTER_STEP);
    }

    /// The next number for a signed report. Now and then it is written ahead; then the returned wait must be
    /// over before the number is used, which [`Pending::wait`] is for.
    pub fn next_counter(&mut self) -> (u64, Option<Pending>) {
        self.counter += 1;
        // Half a step early, so that the write is done long before the numbers run out.
        if self.counter + COUNTER_STEP / 2 < self.reserved {
            return (self.counter, None);
        }
        self.reserved += COUNTER_STEP;
        let pending = self.send(Write::Counter { ahead: self.reserved });
        (self.counter, Some(pending))
    }

    /// Marks an attempt as started. The program must not start before this is answered.
    pub fn started(&self, run: &RunId, attempt: u32, expires_ms: i64, order_digest: Digest) -> Pending {
        let known = Known::new(attempt, Phase::Started, expires_ms);
        self.mark(run, Known { order_digest: Some(order_digest), ..known })
    }

    /// Marks an attempt as one that will never start.
    pub fn closed(&self, run: &RunId, attempt: u32, expires_ms: i64, why: Refusal) -> Pending {
        let known = Known::new(attempt, Phase::Closed, expires_ms);
        self.mark(run, Known { closed: Some(why), ..known })
    }

    /// Takes a *started* mark back: the program was never let go, and the controller may send it again. What was
    /// known of the run before counts again, so that older attempts stay refused.
    pub fn unstarted(&self, run: &RunId, before: Option<Known>) -> Pending {
        self.send(Write::Restore { run: run.clone(), before })
    }

    fn mark(&self, run: &RunId, known: Known) -> Pending {
        self.send(Write::Run { run: run.clone(), known })
    }

    /// Puts a result into the spool.
    pub fn finished(&self, run: &RunId, attempt: u32, expires_ms: i64, body: Vec<u8>) -> Pending {
        let known = Known::new(attempt, Phase::Finished, expires_ms);
        self.send(Write::Finish { run: run.clone(), known, body })
    }

    /// Frees a result's place in the spool: the controller has it. How it ended is remembered.
    pub fn receipted(&self, run: &RunId, attempt: u32, expires_ms: i64, ended: Option<Ended>) -> Pending {
        let known = Known::new(attempt, Phase::Receipted, expires_ms);
        self.send(Write::Receipt { run: run.clone(), known: Known { ended, ..known } })
    }

    /// Forgets runs that nothing can replay.
    pub fn prune(&self, runs: Vec<RunId>) -> Pending {
        self.send(Write::Prune { runs })
    }

    fn send(&self, write: Write) -> Pending {
        let (done, wait) = oneshot::channel();
        let command = Command { write, done };
        if let Some(sender) = &self.sender
            && let Err(error) = sender.try_send(command)
        {
            // A full queue means that the disk does not keep up by a thousand commits: the caller defers.
            let (std::sync::mpsc::TrySendError::Full(command)
            | std::sync::mpsc::TrySendError::Disconnected(command)) = error;
            let _ = command.done.send(Err(JournalError::Closed));
        }
        Pending(wait)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported as a closed journal to everyone who waited.
            let _ = thread.join();
        }
    }
}

/// A command that is not on disk yet.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<(), JournalError>>);

impl Pending {
    /// Waits until it is on disk.
    pub async fn wait(self) -> Result<(), JournalError> {
        self.0.await.map_err(|_| JournalError::Closed)?
    }
}

/// The file, and what is open of it. After a failed write the database takes no more until it is opened anew.
struct Store {
    path: PathBuf,
    database: Option<Database>,
    commits: Arc<AtomicU64>,
}

impl Store {
    fn commit(&mut self, writes: &[Write]) -> Result<(), String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.path)?,
        };
        let commits = commit(&database, writes)?;
        self.database = Some(database);
        self.commits.store(commits, Ordering::Release);
        Ok(())
    }
}

fn open_database(path: &Path) -> Result<Database, String> {
    // The default cache is 1 GiB; an agent's journal is a few megabytes.
    Database::builder().set_cache_size(1024 * 1024).create(path).map_err(|e| e.to_string())
}

/// Gives space back that a long time without a controller took. The file never shrinks by itself.
fn compact(path: &Path, database: &mut Database) -> Result<(), String> {
    let size = std::fs::metadata(path).map_or(0, |file| file.len());
    if size > COMPACT_ABOVE {
        database.compact().map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn serve(store: &mut Store, receiver: &Receiver<Command>) {
    while let Ok(first) = receiver.recv() {
        let mut batch = vec![first];
        batch.extend(receiver.try_iter().take(BATCH - 1));
        let (writes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|c| (c.write, c.done)).unzip();
        let outcome = store.commit(&writes);
        for done in waiting {
            // Nobody waits for a receipt's commit; that is no error.
            let _ = done.send(outcome.clone().map_err(JournalError::Write));
        }
    }
}

/// Writes, and returns how often that was done for good.
fn commit(database: &Database, writes: &[Write]) -> Result<u64, String> {
    write_all(database, writes).map_err(|e| e.to_string())
}

fn write_all(database: &Database, writes: &[Write]) -> Result<u64, redb::Error> {
    let mut transaction = database.begin_write()?;
    // Receipts and forgetting may be lost: the result is then sent again, and receipted again.
    let lasting = writes.iter().any(|w| !matches!(w, Write::Receipt { .. } | Write::Prune { .. }));
    let durability = if lasting { Durability::Immediate } else { Durability::None };
    transaction.set_durability(durability)?;
    let commits;
    {
        let mut meta = transaction.open_table(META)?;
        // What may be lost does not count: a number that was told must be there after a crash.
        commits = number(&meta, "commits")? + u64::from(lasting);
        if lasting {
            meta.insert("commits", commits.to_be_bytes().as_slice())?;
        }
        let mut runs = transaction.open_table(RUNS)?;
        let mut spool = transaction.open_table(SPOOL)?;
        for write in writes {
            match write {
                Write::Run { run, known } => {
                    runs.insert(run.to_string().as_str(), bytes(known).as_slice())?;
                }
                Write::Finish { run, known, body } => {
                    note_end(&mut runs, run, known)?;
                    spool.insert(spool_key(run, known.attempt).as_str(), body.as_slice())?;
                }
                Write::Receipt { run, known } => {
                    note_end(&mut runs, run, known)?;
                    spool.remove(spool_key(run, known.attempt).as_str())?;
                }
                Write::Restore { run, before: Some(known) } => {
                    runs.insert(run.to_string().as_str(), bytes(known).as_slice())?;
                }
                Write::Restore { run, before: None } => {
                    runs.remove(run.to_string().as_str())?;
                }
                Write::Renew { incarnation } => {
                    meta.insert("incarnation", incarnation.as_bytes().as_slice())?;
                    meta.insert("counter", COUNTER_STEP.to_be_bytes().as_slice())?;
                }
                Write::Prune { runs: gone } => {
                    for run in gone {
                        runs.remove(run.to_string().as_str())?;
                    }
                }
                Write::Counter { ahead } => {
                    meta.insert("counter", ahead.to_be_bytes().as_slice())?;
                }
            }
        }
    }
    sally_common::fail::io("agent.journal.commit")?;
    transaction.commit()?;
    sally_common::fail::point("agent.journal.committed");
    Ok(commits)
}

/// A number of the journal's own; 0 if it was never written.
fn number(meta: &impl ReadableTable<&'static str, &'static [u8]>, key: &str) -> Result<u64, redb::Error> {
    let bytes = meta.get(key)?.and_then(|v| v.value().try_into().ok());
    Ok(bytes.map_or(0, u64::from_be_bytes))
}

/// Notes the end of an attempt, unless a newer one is known: its mark must not be lost.
fn note_end(runs: &mut Table<'_, &str, &[u8]>, run: &RunId, known: &Known) -> Result<(), redb::Error> {
    let key = run.to_string();
    let newer = match runs.get(key.as_str())? {
        Some(value) => {
            serde_json::from_slice::<Known>(value.value()).is_ok_and(|k| k.attempt > known.attempt)
        }
        None => false,
    };
    if !newer {
        runs.insert(key.as_str(), bytes(known).as_slice())?;
    }
    Ok(())
}

fn bytes(known: &Known) -> Vec<u8> {
    serde_json::to_vec(known).unwrap_or_default()
}

fn spool_key(run: &RunId, attempt: u32) -> String {
    format!("{run}.{attempt}")
}

/// The journal's own numbers, as they were found.
struct Numbers {
    counter: u64,
    commits: u64,
}

fn recover(database: &Database) -> Result<(Recovered, Numbers), String> {
    let text = |e: redb::Error| e.to_string();
    let fresh = prepare(database).map_err(text)?;
    read_all(database, fresh).map_err(text)?
}

/// Makes tables and incarnation if they are not there. Returns whether they were not.
fn prepare(database: &Database) -> Result<bool, redb::Error> {
    let transaction = database.begin_write()?;
    let fresh = {
        let mut meta = transaction.open_table(META)?;
        transaction.open_table(RUNS)?;
        transaction.open_table(SPOOL)?;
        let fresh = meta.get("incarnation")?.is_none();
        if fresh {
            meta.insert("incarnation", Incarnation::generate().as_bytes().as_slice())?;
        }
        fresh
    };
    transaction.commit()?;
    Ok(fresh)
}

type Read = Result<(Recovered, Numbers), String>;

fn read_all(database: &Database, fresh: bool) -> Result<Read, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let incarnation = meta.get("incarnation")?.and_then(|v| v.value().try_into().ok());
    let Some(incarnation) = incarnation.map(Incarnation::from_bytes) else {
        return Ok(Err("it has no incarnation".into()));
    };
    let numbers = Numbers { counter: number(&meta, "counter")?, commits: number(&meta, "commits")? };

    let mut memory = Memory::default();
    for entry in transaction.open_table(RUNS)?.iter()? {
        let (key, value) = entry?;
        let (Ok(run), Ok(known)) = (key.value().parse(), serde_json::from_slice(value.value())) else {
            return Ok(Err(format!("entry {} cannot be read", sally_common::name::show(key.value()))));
        };
        memory.note(run, known);
    }
    let mut spool = Vec::new();
    for entry in transaction.open_table(SPOOL)?.iter()? {
        let (key, value) = entry?;
        let parsed = key.value().rsplit_once('.').and_then(|(r, a)| Some((r.parse().ok()?, a.parse().ok()?)));
        let Some((run, attempt)) = parsed else {
            return Ok(Err(format!("spool entry {} cannot be read", sally_common::name::show(key.value()))));
        };
        spool.push(Spooled { run, attempt, body: value.value().to_vec() });
    }
    Ok(Ok((Recovered { incarnation, fresh, memory, spool }, numbers)))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;

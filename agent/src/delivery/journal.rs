//! The journal: the agent's durable memory, one `redb` file written by one thread.
//!
//! It holds the incarnation, the counter, what is known of each run, and the spool: results
//! without a receipt. Commands that arrive together are committed together, so a burst of runs
//! costs one sync and not one each. A commit is on disk before its command is answered.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use sally_common::id::{Digest, Incarnation, RunId};
use sally_common::wire::Refusal;
use tokio::sync::oneshot;

use super::memory::{Known, Memory, Phase};

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
    Forget { run: RunId },
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
    counter: u64,
    reserved: u64,
}

impl Journal {
    /// Opens or creates the journal. Blocking; called before the agent's loop begins.
    pub fn open(path: &Path) -> Result<(Journal, Recovered), JournalError> {
        let fail = |problem: String| JournalError::Open { path: path.to_owned(), problem };
        let database = Database::builder()
            // The default is 1 GiB; an agent's journal is a few megabytes.
            .set_cache_size(1024 * 1024)
            .create(path)
            .map_err(|e| fail(e.to_string()))?;
        let (recovered, counter) = recover(&database).map_err(fail)?;
        let reserved = counter + COUNTER_STEP;
        commit(&database, &[Write::Counter { ahead: reserved }]).map_err(fail)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || serve(&database, &receiver))
            .map_err(|e| fail(e.to_string()))?;
        Ok((Journal { sender: Some(sender), thread: Some(thread), counter, reserved }, recovered))
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
        let order_digest = Some(order_digest);
        self.mark(run, Known { attempt, phase: Phase::Started, closed: None, order_digest, expires_ms })
    }

    /// Marks an attempt as one that will never start.
    pub fn closed(&self, run: &RunId, attempt: u32, expires_ms: i64, why: Refusal) -> Pending {
        let closed = Some(why);
        self.mark(run, Known { attempt, phase: Phase::Closed, closed, order_digest: None, expires_ms })
    }

    /// Takes a *started* mark back: the program was never let go, and the controller may send it again.
    pub fn unstarted(&self, run: &RunId) -> Pending {
        self.send(Write::Forget { run: run.clone() })
    }

    fn mark(&self, run: &RunId, known: Known) -> Pending {
        self.send(Write::Run { run: run.clone(), known })
    }

    /// Puts a result into the spool.
    pub fn finished(&self, run: &RunId, attempt: u32, expires_ms: i64, body: Vec<u8>) -> Pending {
        let known = Known { attempt, phase: Phase::Finished, closed: None, order_digest: None, expires_ms };
        self.send(Write::Finish { run: run.clone(), known, body })
    }

    /// Frees a result's place in the spool: the controller has it.
    pub fn receipted(&self, run: &RunId, attempt: u32, expires_ms: i64) -> Pending {
        let known = Known { attempt, phase: Phase::Receipted, closed: None, order_digest: None, expires_ms };
        self.send(Write::Receipt { run: run.clone(), known })
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

fn serve(database: &Database, receiver: &Receiver<Command>) {
    while let Ok(first) = receiver.recv() {
        let mut batch = vec![first];
        batch.extend(receiver.try_iter().take(BATCH - 1));
        let (writes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|c| (c.write, c.done)).unzip();
        let outcome = commit(database, &writes);
        for done in waiting {
            // Nobody waits for a receipt's commit; that is no error.
            let _ = done.send(outcome.clone().map_err(JournalError::Write));
        }
    }
}

fn commit(database: &Database, writes: &[Write]) -> Result<(), String> {
    write_all(database, writes).map_err(|e| e.to_string())
}

fn write_all(database: &Database, writes: &[Write]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Receipts and forgetting may be lost: the result is then sent again, and receipted again.
    let lasting = writes.iter().any(|w| !matches!(w, Write::Receipt { .. } | Write::Prune { .. }));
    let durability = if lasting { Durability::Immediate } else { Durability::None };
    transaction.set_durability(durability)?;
    {
        let mut meta = transaction.open_table(META)?;
        let mut runs = transaction.open_table(RUNS)?;
        let mut spool = transaction.open_table(SPOOL)?;
        for write in writes {
            match write {
                Write::Run { run, known } => {
                    runs.insert(run.to_string().as_str(), bytes(known).as_slice())?;
                }
                Write::Finish { run, known, body } => {
                    runs.insert(run.to_string().as_str(), bytes(known).as_slice())?;
                    spool.insert(spool_key(run, known.attempt).as_str(), body.as_slice())?;
                }
                Write::Receipt { run, known } => {
                    runs.insert(run.to_string().as_str(), bytes(known).as_slice())?;
                    spool.remove(spool_key(run, known.attempt).as_str())?;
                }
                Write::Forget { run } => {
                    runs.remove(run.to_string().as_str())?;
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
    Ok(())
}

fn bytes(known: &Known) -> Vec<u8> {
    serde_json::to_vec(known).unwrap_or_default()
}

fn spool_key(run: &RunId, attempt: u32) -> String {
    format!("{run}.{attempt}")
}

fn recover(database: &Database) -> Result<(Recovered, u64), String> {
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

type Read = Result<(Recovered, u64), String>;

fn read_all(database: &Database, fresh: bool) -> Result<Read, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let incarnation = meta.get("incarnation")?.and_then(|v| v.value().try_into().ok());
    let Some(incarnation) = incarnation.map(Incarnation::from_bytes) else {
        return Ok(Err("it has no incarnation".into()));
    };
    let counter = meta.get("counter")?.and_then(|v| v.value().try_into().ok());
    let counter = counter.map_or(0, u64::from_be_bytes);

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
    Ok(Ok((Recovered { incarnation, fresh, memory, spool }, counter)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::id::JobId;

    fn open(dir: &tempfile::TempDir) -> (Journal, Recovered) {
        Journal::open(&dir.path().join("journal.redb")).expect("opens")
    }

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[tokio::test]
    async fn what_was_answered_is_there_after_a_restart() {
        let dir = dir();
        let job = JobId::generate(1);
        let incarnation = {
            let (journal, recovered) = open(&dir);
            assert!(recovered.fresh && recovered.spool.is_empty());
            journal.started(&job.run(0), 1, 10, Digest::of(b"")).wait().await.expect("written");
            journal.finished(&job.run(1), 3, 10, b"body".to_vec()).wait().await.expect("written");
            journal.finished(&job.run(2), 1, 10, b"gone".to_vec()).wait().await.expect("written");
            journal.receipted(&job.run(2), 1, 10).wait().await.expect("written");
            recovered.incarnation
        };
        let (_journal, recovered) = open(&dir);
        assert!(!recovered.fresh);
        assert_eq!(recovered.incarnation, incarnation);
        let phase = |n: u32| recovered.memory.get(&job.run(n)).map(|k| (k.attempt, k.phase));
        assert_eq!(phase(0), Some((1, Phase::Started)));
        assert_eq!(phase(1), Some((3, Phase::Finished)));
        assert_eq!(recovered.spool, [Spooled { run: job.run(1), attempt: 3, body: b"body".to_vec() }]);
    }

    #[tokio::test]
    async fn a_mark_that_was_taken_back_is_gone() {
        let dir = dir();
        let job = JobId::generate(1);
        {
            let (journal, _) = open(&dir);
            journal.started(&job.run(0), 1, 10, Digest::of(b"")).wait().await.expect("written");
            journal.unstarted(&job.run(0)).wait().await.expect("written");
            journal.started(&job.run(1), 1, 10, Digest::of(b"")).wait().await.expect("written");
        }
        let (_journal, recovered) = open(&dir);
        assert!(recovered.memory.get(&job.run(0)).is_none());
        assert!(recovered.memory.get(&job.run(1)).is_some());
    }

    #[tokio::test]
    async fn the_counter_never_repeats() {
        let dir = dir();
        let mut last = 0;
        for _ in 0..3 {
            let (mut journal, _) = open(&dir);
            for _ in 0..COUNTER_STEP + 5 {
                let (counter, pending) = journal.next_counter();
                assert!(counter > last);
                last = counter;
                if let Some(pending) = pending {
                    pending.wait().await.expect("written");
                }
            }
        }
    }

    #[test]
    fn another_file_is_another_incarnation() {
        assert_ne!(open(&dir()).1.incarnation, open(&dir()).1.incarnation);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_says_what_to_do() {
        let dir = dir();
        let path = dir.path().join("journal.redb");
        std::fs::write(&path, b"this is no database at all").expect("written");
        let error = Journal::open(&path).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("journal.redb") && error.contains("move it away"), "{error}");
    }

    #[tokio::test]
    async fn many_at_once_share_a_commit() {
        let dir = dir();
        let (journal, _) = open(&dir);
        let job = JobId::generate(1);
        let all: Vec<_> = (0..500).map(|n| journal.started(&job.run(n), 1, 0, Digest::of(b""))).collect();
        for pending in all {
            pending.wait().await.expect("written");
        }
        drop(journal);
        assert_eq!(open(&dir).1.memory.len(), 500);
    }
}

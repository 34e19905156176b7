//! The ledger: the controller's durable record of jobs and runs. It speaks to its database and nothing else.
//!
//! In reading order: `types` is what goes in and out; [`rank`] which of two outcomes is believed; `work` decides
//! commands on rows, without a database, with `attempts` (from one attempt to the next), `held` (what agents hold that is
//! not on record so) and `stop` (ends what waits); `command` and `writer` bring commands to the one task that writes, many
//! in one commit; `load`, `save`, `row` and `schema.sql` are the database's side; `recent` spares loading; `read` answers
//! questions; [`roster`] is who is enrolled; `open` opens the file; `error` says what went wrong and what to do.
//!
//! A change is on the disk before its method returns.
#![forbid(unsafe_code)]

mod attempts;
mod command;
mod error;
mod held;
mod load;
mod open;
pub mod rank;
mod read;
mod recent;
pub mod roster;
mod row;
mod save;
mod stop;
mod types;
mod work;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::SqlitePool;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use sally_common::id::{Incarnation, JobId, Nonce, RequestId, RunId};
use sally_common::limit::TARGETS_MAX;
use sally_common::name::{Agent, Zone};
use sally_common::wire::command::RunAttempt;

use command::{Answer, Command, Request};
pub use error::LedgerError;
pub use read::{PAGE_MAX, SET_BACK_MS};
pub use types::*;

/// Commands that may wait for the writer.
const QUEUE: usize = 1024;

/// Memory that waiting commands may hold together, KiB.
const QUEUE_KIB: usize = 64 * 1024;

/// Runs that one transaction changes at most, where a command names many: others wait meanwhile.
const SLICE: usize = 1000;

/// A handle on the open ledger; clones are cheap and share it.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    id: String,
    readers: SqlitePool,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    memory: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Ledger {
    /// Opens the ledger, or makes an empty one where there is none. The folder must exist. A file lock
    /// beside it keeps a second controller out.
    ///
    /// # Errors
    ///
    /// Says which file, and what to do: damaged, of another program, of a newer version, in use,
    /// read-only, not to be opened.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = path.as_ref().to_path_buf();
        let opened = open::open(&path).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = writer::Writer::new(path.clone(), opened.writer, opened.lock, opened.cancelled);
        let writer = tokio::spawn(writer::run(writer, receiver));
        let inner = Inner {
            path,
            id: opened.id,
            readers: opened.readers,
            requests: Mutex::new(Some(sender)),
            memory: Arc::new(Semaphore::new(QUEUE_KIB)),
            writer: Mutex::new(Some(writer)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Answers what waits, then closes the file. Later calls on any handle fail with
    /// [`LedgerError::Closed`]. Dropping the last handle does the same without waiting for it.
    pub async fn close(&self) {
        drop(lock(&self.inner.requests).take());
        let writer = lock(&self.inner.writer).take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(%error, "the ledger's writer failed");
        }
        self.inner.readers.close().await;
    }

    /// The ledger's own random id, made with the file.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The ledger's file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Records a job and its runs in one transaction: `pending`, or `dispatched` where a target says to which
    /// journal. The same request id with the same digest gives the job that exists.
    ///
    /// # Errors
    ///
    /// No target, more than `limit::TARGETS_MAX`, or a job id that is taken.
    pub async fn submit(&self, new: NewJob) -> Result<Submitted, LedgerError> {
        if new.targets.len() > TARGETS_MAX {
            return Err(LedgerError::Input(format!("a job has at most {TARGETS_MAX} targets")));
        }
        match self.ask(Command::Submit(Box::new(new))).await? {
            Answer::Submitted(submitted) => Ok(*submitted),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Marks runs as dispatched, before the dispatches are published; one answer per mark, in order. `false`
    /// means: do not publish. Allowed are a first dispatch (`pending`, attempt = the run's + 1, which is 1);
    /// the same again (`dispatched`, same attempt and same incarnation; changes nothing); a new try
    /// (`dispatched`, attempt + 1, any incarnation: only for what may run again). Never what was cancelled,
    /// has started, ended or expired.
    pub async fn dispatch(&self, marks: Vec<DispatchMark>) -> Result<Vec<bool>, LedgerError> {
        let mut answers = Vec::with_capacity(marks.len());
        for slice in marks.chunks(SLICE) {
            match self.ask(Command::Dispatch(slice.to_vec())).await? {
                Answer::Flags(flags) => answers.extend(flags),
                _ => return Err(LedgerError::Closed),
            }
        }
        Ok(answers)
    }

    /// Notes that a program was started. A run that was taken for expired is `running` again, and its job
    /// open; one whose journal was taken for lost stays `unknown`.
    pub async fn started(&self, mark: StartMark) -> Result<Noted, LedgerError> {
        self.note(Command::Started(mark)).await
    }

    /// Notes how far a program is.
    pub async fn progress(&self, mark: ProgressMark) -> Result<Noted, LedgerError> {
        self.note(Command::Progress(mark)).await
    }

    /// Records an outcome. See [`rank`] for which outcome is believed and [`Settled`] for what to answer the agent.
    ///
    /// # Errors
    ///
    /// A state that is no end.
    pub async fn settle(&self, settlement: Settlement) -> Result<Settled, LedgerError> {
        if !settlement.state.is_end() {
            return Err(LedgerError::Input(format!("\"{}\" is no outcome", settlement.state)));
        }
        match self.ask(Command::Settle(Box::new(settlement))).await? {
            Answer::Settled(settled) => Ok(settled),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Records that an agent did not run an attempt and never will.
    pub async fn refuse(&self, refused: Refused) -> Result<Settled, LedgerError> {
        self.settle(refused.into()).await
    }

    /// Records that a job is to be cancelled; `None` if there is no such job. What was never dispatched is
    /// cancelled at once. Asking again changes nothing and names the agents to tell again.
    pub async fn cancel(
        &self,
        job: &JobId,
        at_ms: i64,
        hard: bool,
    ) -> Result<Option<Cancellation>, LedgerError> {
        match self.ask(Command::Cancel { job: job.clone(), at_ms, hard }).await? {
            Answer::Cancelled(cancellation) => Ok(cancellation.map(|boxed| *boxed)),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Ends what was not picked up in time: `expired`, final if it was never dispatched. At most 1,000
    /// runs at once; `more` says to ask again.
    pub async fn expire(&self, now_ms: i64) -> Result<Changes, LedgerError> {
        self.changes(Command::Expire { now_ms, limit: SLICE }).await
    }

    /// Settles as `unknown`, not final, what was dispatched to other incarnations of an agent than this one, except
    /// for what this one says it `held`: its journal is lost or was replaced. At most 1,000 runs at once; `more`
    /// says to ask again.
    pub async fn lost_journal(
        &self,
        zone: &Zone,
        agent: &Agent,
        incarnation: Incarnation,
        held: &[RunAttempt],
        at_ms: i64,
    ) -> Result<Changes, LedgerError> {
        let (zone, agent, held) = (zone.clone(), agent.clone(), held.to_vec());
        let jitter = jitter();
        self.changes(Command::Lost { zone, agent, incarnation, held, at_ms, jitter, limit: SLICE }).await
    }

    /// Records that whatever was or will be submitted with a request id is to be cancelled. `None`: there is no such job
    /// yet; its submission will make it with all runs cancelled.
    ///
    /// # Errors
    ///
    /// Too many request ids wait for their submissions.
    pub async fn cancel_request(
        &self,
        request: &RequestId,
        at_ms: i64,
        hard: bool,
    ) -> Result<Option<Cancellation>, LedgerError> {
        match self.ask(Command::CancelRequest { request: request.clone(), at_ms, hard }).await? {
            Answer::Cancelled(cancellation) => Ok(cancellation.map(|boxed| *boxed)),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Forgets request ids that were cancelled before this time and never submitted.
    pub async fn forget_requests(&self, before_ms: i64) -> Result<(), LedgerError> {
        self.ask(Command::ForgetRequests { before_ms }).await.map(|_| ())
    }

    /// Cancels what waits for an agent and has not started: here and now what it was not sent. At most
    /// 1,000 runs at once; `more` says to ask again.
    pub async fn purge(
        &self,
        zone: &Zone,
        agent: &Agent,
        at_ms: i64,
        reason: &str,
        message: &str,
    ) -> Result<Stopped, LedgerError> {
        let (zone, agent) = (zone.clone(), agent.clone());
        let (reason, message) = (reason.to_owned(), message.to_owned());
        match self.ask(Command::Purge { zone, agent, at_ms, reason, message, limit: SLICE }).await? {
            Answer::Stopped(stopped) => Ok(stopped),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Lets runs whose pause between two attempts is over wait for their agents like any other, and names
    /// them; at most 1,000 at once.
    pub async fn release(&self, now_ms: i64) -> Result<Vec<Change>, LedgerError> {
        Ok(self.changes(Command::Release { now_ms, limit: SLICE }).await?.changes)
    }

    /// Ends a dispatched attempt, of which nothing was heard, as rejected: it certainly reached nobody.
    pub async fn reject(
        &self,
        run: &RunId,
        attempt: u32,
        reason: &str,
        message: &str,
        at_ms: i64,
    ) -> Result<Option<Change>, LedgerError> {
        let (reason, message) = (reason.to_owned(), message.to_owned());
        match self.ask(Command::Reject { run: run.clone(), attempt, reason, message, at_ms }).await? {
            Answer::Change(change) => Ok(change.map(|boxed| *boxed)),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Makes records for runs that agents hold and the ledger does not know: it was lost, or restored from an older copy. One
    /// answer each: whether there is a record now. There is none in a job that is on record without this run, and beyond
    /// 10,000 recovered jobs.
    pub async fn recover(&self, found: Vec<Recovered>) -> Result<Vec<bool>, LedgerError> {
        match self.ask(Command::Recover(found)).await? {
            Answer::Flags(flags) => Ok(flags),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Records that these agents get no new work from this time on, or (`None`) that they get it again.
    pub async fn drain(&self, agents: Vec<(Zone, Agent)>, since_ms: Option<i64>) -> Result<(), LedgerError> {
        self.ask(Command::Drain { agents, since_ms }).await.map(|_| ())
    }

    /// Settles these runs as `unknown`, not final, if they are dispatched or running.
    pub async fn unknown(
        &self,
        runs: Vec<RunId>,
        at_ms: i64,
        reason: &str,
        message: &str,
    ) -> Result<Vec<Change>, LedgerError> {
        let mut changes = Vec::new();
        for slice in runs.chunks(SLICE) {
            let (reason, message) = (reason.to_owned(), message.to_owned());
            let jitter = jitter();
            let command = Command::Unknown { runs: slice.to_vec(), at_ms, reason, message, jitter };
            changes.extend(self.changes(command).await?.changes);
        }
        Ok(changes)
    }

    /// Records heartbeats; one answer each, in order. Collect those of many agents into one call.
    pub async fn upsert_agents(&self, seen: Vec<AgentSeen>) -> Result<Vec<Seen>, LedgerError> {
        match self.ask(Command::Seen(seen)).await? {
            Answer::Seen(answers) => Ok(answers),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Forgets an agent; its runs stay. Says whether it was known.
    pub async fn forget_agent(&self, zone: &Zone, name: &Agent) -> Result<bool, LedgerError> {
        match self.ask(Command::Forget { zone: zone.clone(), name: name.clone() }).await? {
            Answer::Flags(flags) => Ok(flags.first().copied().unwrap_or(false)),
            _ => Err(LedgerError::Closed),
        }
    }

    /// Removes up to `limit` jobs that ended before this time, with all that belongs to them, and says how many. A
    /// removed job's request id is free again, and a late result for it is [`Settled::Unknown`].
    pub async fn prune(&self, before_ms: i64, limit: u32) -> Result<u64, LedgerError> {
        match self.ask(Command::Prune { before_ms, limit }).await? {
            Answer::Count(count) => Ok(count),
            _ => Err(LedgerError::Closed),
        }
    }

    async fn note(&self, command: Command) -> Result<Noted, LedgerError> {
        match self.ask(command).await? {
            Answer::Noted(noted) => Ok(noted),
            _ => Err(LedgerError::Closed),
        }
    }

    async fn changes(&self, command: Command) -> Result<Changes, LedgerError> {
        match self.ask(command).await? {
            Answer::Changes(changes) => Ok(changes),
            _ => Err(LedgerError::Closed),
        }
    }

    async fn ask(&self, command: Command) -> Result<Answer, LedgerError> {
        let requests = lock(&self.inner.requests).clone().ok_or(LedgerError::Closed)?;
        let kib = (command.weight() / 1024 + 1).min(QUEUE_KIB);
        let kib = u32::try_from(kib).unwrap_or(1);
        let share = self.inner.memory.clone().acquire_many_owned(kib).await;
        let share = share.map_err(|_| LedgerError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let request = Request { command, reply, _share: share };
        requests.send(request).await.map_err(|_| LedgerError::Closed)?;
        answer.await.map_err(|_| LedgerError::Closed)?
    }

    fn readers(&self) -> &SqlitePool {
        &self.inner.readers
    }
}

impl From<Refused> for Settlement {
    fn from(refused: Refused) -> Self {
        use sally_common::wire::record::RunState;
        let state = match refused.reason.as_str() {
            "expired" => RunState::Expired,
            "cancelled" => RunState::Cancelled,
            _ => RunState::Rejected,
        };
        Settlement {
            run: refused.run,
            attempt: refused.attempt,
            agent_key: refused.agent_key,
            incarnation: refused.incarnation,
            state,
            exit_code: None,
            signal: None,
            reason: Some(refused.reason),
            message: Some(refused.message),
            started_ms: None,
            finished_ms: refused.at_ms,
            duration_ms: None,
            result_state: None,
            retryable: None,
            jitter: 0.0,
            report: refused.report,
            at_ms: refused.at_ms,
        }
    }
}

/// A random number from 0.0 to 1.0, for [`Settlement::jitter`].
pub fn jitter() -> f64 {
    let nonce = Nonce::generate();
    let [a, b, ..] = *nonce.as_bytes();
    f64::from(u16::from_be_bytes([a, b])) / f64::from(u16::MAX)
}

/// A panic elsewhere leaves these values whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

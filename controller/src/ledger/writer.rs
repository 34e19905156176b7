//! The one task that writes: takes what waits, decides it together, commits it once, answers.
//!
//! A lone command costs one trip to the database's thread, that begins, writes and commits, and one before it that
//! loads what is not [`Recent`]. A batch costs the same number of syncs as a lone command.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::mpsc;

use sally_common::id::{JobId, RequestId};

use super::command::{Answer, Command, Request};
use super::error::{LedgerError, explain};
use super::load::load;
use super::recent::Recent;
use super::roster;
use super::save::save;
use super::work::Work;

/// Most commands in one transaction.
pub(super) const BATCH: usize = 256;

/// Most bytes of commands in one transaction, so that a batch of large reports stays short.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The writer's state.
pub(super) struct Writer {
    path: PathBuf,
    db: SqliteConnection,
    /// Held as long as this task may write.
    lock: File,
    recent: Recent,
    /// Request ids that were cancelled before they were submitted: when, and whether without TERM.
    cancelled: HashMap<RequestId, (i64, bool)>,
}

/// Runs until every handle is gone or the channel is closed, and what waits is answered.
pub(super) async fn run(mut writer: Writer, mut requests: mpsc::Receiver<Request>) {
    let mut next = None;
    loop {
        let first = match next.take() {
            Some(request) => request,
            None => match requests.recv().await {
                Some(request) => request,
                None => break,
            },
        };
        let batch;
        (batch, next) = fill(first, &mut requests);
        writer.answer(batch).await;
    }
    if let Err(error) = writer.db.close().await {
        tracing::warn!(path = %writer.path.display(), %error, "the ledger did not close cleanly");
    }
    drop(writer.lock);
}

/// Takes what waits, up to the bounds; the second value begins the next batch.
fn fill(first: Request, requests: &mut mpsc::Receiver<Request>) -> (Vec<Request>, Option<Request>) {
    let mut bytes = first.command.weight();
    let mut alone = first.command.is_alone();
    let mut new: Vec<JobId> = new_job(&first.command).into_iter().cloned().collect();
    let mut batch = vec![first];
    while batch.len() < BATCH && bytes < BATCH_BYTES && !alone {
        let Ok(request) = requests.try_recv() else { break };
        if request.command.is_alone() || touches(&request.command, &new) {
            return (batch, Some(request));
        }
        bytes += request.command.weight();
        alone = request.command.is_alone();
        new.extend(new_job(&request.command).cloned());
        batch.push(request);
    }
    (batch, None)
}

fn new_job(command: &Command) -> Option<&JobId> {
    match command {
        Command::Submit(new) => Some(&new.id),
        _ => None,
    }
}

/// Whether a command needs rows of a job that its own batch would make.
fn touches(command: &Command, new: &[JobId]) -> bool {
    if new.is_empty() {
        return false;
    }
    match command {
        Command::Cancel { job, .. } => new.contains(job),
        _ => command.runs().iter().any(|run| new.contains(run.job())),
    }
}

impl Writer {
    /// A writer on an open database.
    pub(super) fn new(
        path: PathBuf,
        db: SqliteConnection,
        lock: File,
        cancelled: HashMap<RequestId, (i64, bool)>,
    ) -> Self {
        Self { path, db, lock, recent: Recent::default(), cancelled }
    }

    /// Tells a batch which of its request ids were cancelled before.
    fn lend_cancelled(&self, work: &mut Work<'_>, commands: &[&Command]) {
        work.cancelled_count = self.cancelled.len();
        if self.cancelled.is_empty() {
            return;
        }
        for command in commands {
            let request = match command {
                Command::Submit(new) => &new.request_id,
                Command::CancelRequest { request, .. } => request,
                _ => continue,
            };
            if let Some(known) = self.cancelled.get(request) {
                work.cancelled.insert(request.clone(), *known);
            }
        }
    }

    fn learn(&mut self, work: Work<'_>) {
        for (request, at_ms, hard) in &work.tombstones {
            self.cancelled.insert(request.clone(), (*at_ms, *hard));
        }
        if let Some(before_ms) = work.forget_requests {
            self.cancelled.retain(|_, (at_ms, _)| *at_ms >= before_ms);
        }
        self.recent.learn(work);
    }

    /// Commits a batch and answers it. If it fails as a whole, each command gets a transaction of its
    /// own, so that one that cannot be written takes none of the others with it.
    async fn answer(&mut self, mut batch: Vec<Request>) {
        if let [Request { command: Command::Roster(change), .. }] = batch.as_slice() {
            let answer = roster::apply(&self.path, &mut self.db, change).await.map(Answer::Roster);
            if let Some(request) = batch.pop() {
                let _ = request.reply.send(answer);
            }
            return;
        }
        let commands: Vec<&Command> = batch.iter().map(|r| &r.command).collect();
        let mut together = self.commit(&commands, true).await;
        if together.is_err() && commands.iter().any(|c| matches!(c, Command::Submit(_))) {
            // A request id that is known, most likely: look first, then decide.
            together = self.commit(&commands, false).await;
        }
        let answers = match together {
            Ok(answers) => answers,
            Err(error) if commands.len() == 1 => vec![Err(error)],
            Err(_) => {
                let mut answers = Vec::with_capacity(commands.len());
                for command in commands {
                    let one = self.commit(&[command], false).await;
                    answers.push(one.and_then(|mut a| a.pop().unwrap_or(Err(LedgerError::Closed))));
                }
                answers
            }
        };
        for (request, answer) in batch.into_iter().zip(answers) {
            // Who asked may have given up; the commit stands.
            let _ = request.reply.send(answer);
        }
    }

    async fn commit(
        &mut self,
        commands: &[&Command],
        trusting: bool,
    ) -> Result<Vec<Result<Answer, LedgerError>>, LedgerError> {
        let mut work = Work::default();
        self.recent.lend(&mut work, commands);
        self.lend_cancelled(&mut work, commands);
        let loaded = load(&mut self.db, &mut work, commands, trusting).await;
        loaded.map_err(|e| explain(&self.path, &e))?;
        let answers = commands.iter().map(|c| work.decide(c)).collect();
        if let Err(error) = save(&mut self.db, &work).await {
            self.recent.clear();
            // Fails when the database has rolled back by itself.
            let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.db).await;
            return Err(explain(&self.path, &error));
        }
        self.learn(work);
        Ok(answers)
    }
}

//! What goes into the ledger and what comes out of it. Not the wire's types, except for names, ids, keys and
//! states. Times are Unix milliseconds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use sally_common::id::{Digest, Incarnation, JobId, RequestId, RunId};
use sally_common::key::{PublicKey, Signature};
use sally_common::name::{Agent, Zone};
use sally_common::selector::Labels;
use sally_common::wire::api::Offline;
use sally_common::wire::order::Retry;
use sally_common::wire::record::{JobState, ResultState, RunState};

/// A submission, resolved and checked.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The job's id.
    pub id: JobId,
    /// The caller's id of the submission; one job per request id as long as the job is on record.
    pub request_id: RequestId,
    /// The digest of what was asked; the same request id with another digest is a conflict.
    pub request_digest: Digest,
    /// Who submitted.
    pub by: String,
    /// What runs, for people.
    pub title: String,
    /// When it was accepted, by the controller's clock.
    pub created_ms: i64,
    /// After this time no run of it starts.
    pub expires_ms: i64,
    /// The order's exact bytes.
    pub order: Vec<u8>,
    /// Who signed the order, as JSON.
    pub signatures_json: String,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// What was done with offline targets.
    pub offline: Offline,
    /// Which of an agent's waiting runs goes first: higher first.
    pub priority: u8,
    /// Runs of earlier jobs with this key that wait for the same agents are replaced.
    pub latest_only: Option<String>,
    /// Whether its dispatches go to the agent's live subject and nowhere else.
    pub direct: bool,
    /// When another attempt follows; only for what may run twice.
    pub retry: Option<Retry>,
    /// The targets; run `i` is the one of target `i`. At least one.
    pub targets: Vec<NewRun>,
}

/// A target of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// The zone.
    pub zone: Zone,
    /// The agent.
    pub agent: Agent,
    /// The agent's key: the only one that may settle the run.
    pub agent_key: PublicKey,
    /// The journal that its first attempt is dispatched to, in the same commit; `None` leaves it pending.
    pub dispatch_to: Option<Incarnation>,
    /// The run is rejected from the start: a stable word why, and the same for people.
    pub refused: Option<(String, String)>,
}

impl NewJob {
    /// The runs as they are recorded, in the order of the targets.
    pub fn runs(&self) -> Vec<Run> {
        (0..).zip(&self.targets).map(|(index, target)| self.run(index, target)).collect()
    }

    fn run(&self, index: u32, target: &NewRun) -> Run {
        let pending = Run::pending(self.id.run(index), target, self.expires_ms);
        let sent = target.dispatch_to.is_some();
        Run {
            state: if sent { RunState::Dispatched } else { RunState::Pending },
            attempt: u32::from(sent),
            dispatched_ms: sent.then_some(self.created_ms),
            priority: self.priority,
            direct: self.direct,
            ..pending
        }
    }

    /// The job as it is recorded, with runs counted as [`NewJob::runs`] has them.
    pub(super) fn job(&self) -> Job {
        let sent = self.targets.iter().filter(|t| t.dispatch_to.is_some()).count() as u64;
        let all = [(RunState::Pending, self.targets.len() as u64 - sent), (RunState::Dispatched, sent)];
        Job {
            id: self.id.clone(),
            request_id: self.request_id.clone(),
            request_digest: self.request_digest,
            by: self.by.clone(),
            title: self.title.clone(),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            retry_of: self.retry_of.clone(),
            offline: self.offline,
            counts: all.into_iter().filter(|(_, n)| *n > 0).collect(),
            ended_ms: None,
            priority: self.priority,
            latest_only: self.latest_only.clone(),
            direct: self.direct,
            retry: self.retry.clone(),
        }
    }
}

/// The answer to a submission.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// The job is made. It has ended already if its request id was cancelled before, or every run was refused.
    Created(Job),
    /// The same, and it takes the place of waiting runs of earlier jobs.
    Replacing {
        /// The job.
        job: Job,
        /// What became of the earlier runs.
        replaced: Stopped,
    },
    /// The same submission was made before.
    Existing(Job),
    /// The request id belongs to another submission.
    Conflict {
        /// The job that has the request id.
        existing: JobId,
    },
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The caller's id of the submission.
    pub request_id: RequestId,
    /// The digest of what was asked.
    pub request_digest: Digest,
    /// Who submitted.
    pub by: String,
    /// What runs, for people.
    pub title: String,
    /// When it was accepted.
    pub created_ms: i64,
    /// After this time no run of it starts.
    pub expires_ms: i64,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// What was done with offline targets.
    pub offline: Offline,
    /// Runs by state; states without runs are left out.
    pub counts: BTreeMap<RunState, u64>,
    /// When the last of its runs ended, by the controller's clock.
    pub ended_ms: Option<i64>,
    /// Which of an agent's waiting runs goes first: higher first.
    pub priority: u8,
    /// Its runs are replaced by those of a later job with the same key.
    pub latest_only: Option<String>,
    /// Whether its dispatches go to the agent's live subject and nowhere else.
    pub direct: bool,
    /// When another attempt follows.
    pub retry: Option<Retry>,
}

impl Job {
    /// The state that follows from the counts.
    pub fn state(&self) -> JobState {
        JobState::of_counts(&self.counts)
    }

    /// How many runs it has.
    pub fn runs(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The agent's zone.
    pub zone: Zone,
    /// The agent.
    pub agent: Agent,
    /// The agent's key.
    pub agent_key: PublicKey,
    /// The state.
    pub state: RunState,
    /// Whether the controller guesses no longer. Only a better word of the agent on the same
    /// attempt ([`super::rank`]) can still correct it.
    pub is_final: bool,
    /// The attempt; 0 when it was never dispatched.
    pub attempt: u32,
    /// The incarnation that the attempt was dispatched to.
    pub incarnation: Option<Incarnation>,
    /// When it may no longer start.
    pub expires_ms: i64,
    /// When the attempt was first dispatched.
    pub dispatched_ms: Option<i64>,
    /// When a cancellation was first asked for.
    pub cancel_requested_ms: Option<i64>,
    /// Whether it was asked for without TERM.
    pub cancel_hard: bool,
    /// Start by the agent's clock.
    pub started_ms: Option<i64>,
    /// End by the agent's clock; by the controller's when the agent had no part in it.
    pub finished_ms: Option<i64>,
    /// Length by the agent's monotonic clock, milliseconds.
    pub duration_ms: Option<u64>,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// A stable word for why.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
    /// What became of the structured result.
    pub result_state: Option<ResultState>,
    /// The last progress, JSON.
    pub progress: Option<String>,
    /// The digest of the report's body that settled it.
    pub report_digest: Option<Digest>,
    /// Which of an agent's waiting runs goes first: higher first.
    pub priority: u8,
    /// Whether its dispatches go to the agent's live subject and nowhere else.
    pub direct: bool,
    /// The next attempt waits until then, by the controller's clock.
    pub retry_at_ms: Option<i64>,
    /// How the attempt before ended, while the next one waits or has not started.
    pub last: Option<Box<Ended>>,
}

impl Run {
    /// A run that nobody was sent.
    pub(super) fn pending(id: RunId, target: &NewRun, expires_ms: i64) -> Self {
        Self {
            id,
            zone: target.zone.clone(),
            agent: target.agent.clone(),
            agent_key: target.agent_key.clone(),
            state: RunState::Pending,
            is_final: false,
            attempt: 0,
            incarnation: target.dispatch_to,
            expires_ms,
            dispatched_ms: None,
            cancel_requested_ms: None,
            cancel_hard: false,
            started_ms: None,
            finished_ms: None,
            duration_ms: None,
            exit_code: None,
            signal: None,
            reason: None,
            message: None,
            result_state: None,
            progress: None,
            report_digest: None,
            priority: sally_common::limit::PRIORITY_DEFAULT,
            direct: false,
            retry_at_ms: None,
            last: None,
        }
    }
}

/// How an attempt ended that is followed by another one. It is the run's outcome again if that one never starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The attempt.
    pub attempt: u32,
    /// How it ended.
    pub state: RunState,
    /// Whether its agent said so, and not the controller.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The incarnation that it was dispatched to.
    pub incarnation: Option<Incarnation>,
    /// Start by the agent's clock.
    pub started_ms: Option<i64>,
    /// End by the agent's clock; by the controller's when the agent did not say.
    pub finished_ms: Option<i64>,
    /// Length, milliseconds.
    pub duration_ms: Option<u64>,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// A stable word for why.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
    /// What became of the structured result.
    pub result_state: Option<ResultState>,
    /// The digest of the report's body.
    pub report_digest: Option<Digest>,
}

/// What kind of signed message a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// A result message.
    Result,
    /// A state message that refuses.
    State,
}

/// The agent's signed message that settled a run: the proof, and what records are rebuilt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What kind of message.
    pub kind: ReportKind,
    /// Its exact bytes.
    pub body: Vec<u8>,
    /// Who signed it.
    pub key: PublicKey,
    /// The signature.
    pub signature: Signature,
}

/// A stored report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReport {
    /// The run.
    pub run: RunId,
    /// The attempt that it is about.
    pub attempt: u32,
    /// The incarnation that reported.
    pub incarnation: Incarnation,
    /// The message.
    pub report: Report,
}

/// An outcome as its agent reports it.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The key that signed; must be the run's own.
    pub agent_key: PublicKey,
    /// The incarnation that reports.
    pub incarnation: Incarnation,
    /// How it ended; a state for which `is_end` holds.
    pub state: RunState,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// A stable word for why.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
    /// Start by the agent's clock.
    pub started_ms: Option<i64>,
    /// End by the agent's clock.
    pub finished_ms: i64,
    /// Length, milliseconds.
    pub duration_ms: Option<u64>,
    /// What became of the structured result; `None` where there was no program to say one.
    pub result_state: Option<ResultState>,
    /// What the program said about another try.
    pub retryable: Option<bool>,
    /// A random number from 0.0 to 1.0: spreads the wait before another attempt.
    pub jitter: f64,
    /// The signed message.
    pub report: Report,
    /// When it arrived, by the controller's clock.
    pub at_ms: i64,
}

/// An agent's word that it did not run an attempt and never will.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The key that signed; must be the run's own.
    pub agent_key: PublicKey,
    /// The incarnation that reports.
    pub incarnation: Incarnation,
    /// The stable word of the refusal. `expired` and `cancelled` settle the run as that, `replayed` and
    /// `stale-attempt` change nothing, all others settle it as rejected.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// The signed message.
    pub report: Report,
    /// When it arrived, by the controller's clock.
    pub at_ms: i64,
}

/// A run has changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The run as it is now.
    pub run: Run,
    /// Its job as it is now.
    pub job: Job,
    /// Whether this ended the job.
    pub job_ended: bool,
    /// Whether the run had ended before, so that this corrects what was already told.
    pub correction: bool,
}

/// The answer to an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is the run's outcome now, durably.
    Committed(Box<Change>),
    /// The ledger already holds this or a better word: send the receipt again.
    Duplicate {
        /// The run as it is.
        run: Box<Run>,
    },
    /// It is of an older attempt: kept on record, changed nothing; send the receipt.
    Stale {
        /// The run as it is.
        run: Box<Run>,
    },
    /// The run is another agent's: no receipt.
    NotIts,
    /// There is no such run: no receipt.
    Unknown,
}

/// The answer to news of a run (started, progress).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// The record changed.
    Changed(Box<Change>),
    /// It was known, or the run has ended.
    Same,
    /// It is of an older attempt.
    Stale,
    /// The run is another agent's.
    NotIts,
    /// There is no such run.
    Unknown,
}

/// A dispatch that is about to be published.
#[derive(Debug, Clone)]
pub struct DispatchMark {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The incarnation that it is bound to.
    pub incarnation: Incarnation,
    /// Now, by the controller's clock.
    pub at_ms: i64,
}

/// News that a program was started.
#[derive(Debug, Clone)]
pub struct StartMark {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The key that signed.
    pub agent_key: PublicKey,
    /// The incarnation that reports.
    pub incarnation: Incarnation,
    /// Start by the agent's clock.
    pub started_ms: i64,
}

/// News of how far a program is.
#[derive(Debug, Clone)]
pub struct ProgressMark {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The key that signed.
    pub agent_key: PublicKey,
    /// The progress, JSON.
    pub json: String,
}

/// What a cancellation did.
#[derive(Debug, Clone)]
pub struct Cancellation {
    /// The job as it is now.
    pub job: Job,
    /// Runs that ended here and now because they were never dispatched.
    pub cancelled: Vec<Run>,
    /// Runs whose agents must be told: dispatched, running, or ended by a guess only.
    pub tell: Vec<Run>,
    /// Whether this ended the job.
    pub job_ended: bool,
}

/// What became of waiting runs that are not wanted any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Runs that ended here and now, because nobody had been sent them.
    pub changes: Vec<Change>,
    /// Runs whose agents must be told.
    pub tell: Vec<Run>,
    /// Whether there is more to do: ask again.
    pub more: bool,
}

/// A run that an agent holds and the ledger does not know.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The run.
    pub run: RunId,
    /// The attempt that the agent holds.
    pub attempt: u32,
    /// The agent's zone.
    pub zone: Zone,
    /// The agent.
    pub agent: Agent,
    /// Its key.
    pub agent_key: PublicKey,
    /// The incarnation that holds it.
    pub incarnation: Incarnation,
    /// Now, by the controller's clock.
    pub at_ms: i64,
}

/// Runs that changed at once.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// One per run.
    pub changes: Vec<Change>,
    /// Whether there is more to do: ask again.
    pub more: bool,
}

/// An answer to a search for one job.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one at a time, and mostly the large one")]
pub enum FoundJob {
    /// This one.
    One(Job),
    /// None is meant.
    None,
    /// So many have ids that begin so.
    Ambiguous(u64),
}

/// What a heartbeat says of an agent.
#[derive(Debug, Clone)]
pub struct AgentSeen {
    /// The zone.
    pub zone: Zone,
    /// The name.
    pub name: Agent,
    /// The key that signed.
    pub agent_key: PublicKey,
    /// The incarnation of its journal.
    pub incarnation: Incarnation,
    /// Its counter.
    pub counter: u64,
    /// Its labels.
    pub labels: Labels,
    /// The heartbeat, JSON.
    pub heartbeat: String,
    /// When it arrived, by the controller's clock.
    pub seen_ms: i64,
    /// The highest that this incarnation has said of how often its journal was written; 0 if it never did.
    pub journal: u64,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// An agent that was not known.
    New,
    /// As expected.
    Updated,
    /// The journal is another one than before; it is recorded now.
    NewIncarnation {
        /// The one before.
        before: Incarnation,
    },
    /// Older than what is on record: ignored.
    Stale,
    /// The name belongs to another key: ignored. Forget the agent to let another key have the name.
    OtherKey,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// The zone.
    pub zone: Zone,
    /// The name.
    pub name: Agent,
    /// Its key.
    pub agent_key: PublicKey,
    /// The incarnation of its journal.
    pub incarnation: Incarnation,
    /// Its counter.
    pub counter: u64,
    /// Its labels.
    pub labels: Labels,
    /// The last heartbeat, JSON.
    pub heartbeat: String,
    /// The first heartbeat, by the controller's clock.
    pub first_seen_ms: i64,
    /// The last heartbeat, by the controller's clock.
    pub last_seen_ms: i64,
    /// The highest that this incarnation has said of how often its journal was written; 0 if it never did.
    pub journal: u64,
}

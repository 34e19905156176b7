//! What is on record: jobs, runs and agents as the ledger has them, and as they are handed in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use sally_common::id::{Digest, Incarnation, JobId, RequestId, RunId};
use sally_common::key::PublicKey;
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
    pub(in crate::ledger) fn job(&self) -> Job {
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
    /// attempt ([`crate::ledger::rank`]) can still correct it.
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
    pub(in crate::ledger) fn pending(id: RunId, target: &NewRun, expires_ms: i64) -> Self {
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

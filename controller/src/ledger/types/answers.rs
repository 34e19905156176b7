//! What the ledger answers.

use sally_common::id::{Incarnation, JobId};

use super::rows::{Job, Run};

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

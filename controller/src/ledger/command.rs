//! What the writer is asked and how it answers.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use sally_common::id::{Incarnation, JobId, RequestId, RunId};
use sally_common::name::{Agent, Zone};
use sally_common::wire::command::RunAttempt;

use super::error::LedgerError;
use super::roster::{Roster, RosterAnswer};
use super::types::*;

/// A change that is asked for.
pub(super) enum Command {
    Submit(Box<NewJob>),
    Dispatch(Vec<DispatchMark>),
    Started(StartMark),
    Progress(ProgressMark),
    Settle(Box<Settlement>),
    Cancel {
        job: JobId,
        at_ms: i64,
        hard: bool,
    },
    CancelRequest {
        request: RequestId,
        at_ms: i64,
        hard: bool,
    },
    ForgetRequests {
        before_ms: i64,
    },
    Purge {
        zone: Zone,
        agent: Agent,
        at_ms: i64,
        reason: String,
        message: String,
        limit: usize,
    },
    Release {
        now_ms: i64,
        limit: usize,
    },
    Reject {
        run: RunId,
        attempt: u32,
        reason: String,
        message: String,
        at_ms: i64,
    },
    Recover(Vec<Recovered>),
    Drain {
        agents: Vec<(Zone, Agent)>,
        since_ms: Option<i64>,
    },
    Expire {
        now_ms: i64,
        limit: usize,
    },
    Lost {
        zone: Zone,
        agent: Agent,
        incarnation: Incarnation,
        held: Vec<RunAttempt>,
        at_ms: i64,
        jitter: f64,
        limit: usize,
    },
    Unknown {
        runs: Vec<RunId>,
        at_ms: i64,
        reason: String,
        message: String,
        jitter: f64,
    },
    Seen(Vec<AgentSeen>),
    Forget {
        zone: Zone,
        name: Agent,
    },
    Prune {
        before_ms: i64,
        limit: u32,
    },
    /// Of who is enrolled: has a transaction of its own, see [`super::roster`].
    Roster(Box<Roster>),
}

impl Command {
    /// The runs that it names.
    pub(super) fn runs(&self) -> Vec<&RunId> {
        match self {
            Command::Dispatch(marks) => marks.iter().map(|m| &m.run).collect(),
            Command::Started(mark) => vec![&mark.run],
            Command::Progress(mark) => vec![&mark.run],
            Command::Settle(settlement) => vec![&settlement.run],
            Command::Unknown { runs, .. } => runs.iter().collect(),
            Command::Reject { run, .. } => vec![run],
            Command::Recover(all) => all.iter().map(|r| &r.run).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it must see what earlier commands of a batch wrote to rows that only a query finds, or
    /// removes rows: such a command has a batch of its own.
    pub(super) fn is_alone(&self) -> bool {
        match self {
            Command::Submit(new) => new.latest_only.is_some(),
            Command::Expire { .. }
            | Command::Lost { .. }
            | Command::Prune { .. }
            | Command::CancelRequest { .. }
            | Command::ForgetRequests { .. }
            | Command::Purge { .. }
            | Command::Release { .. }
            | Command::Recover(_)
            | Command::Roster(_) => true,
            _ => false,
        }
    }

    /// Roughly how many bytes it holds.
    pub(super) fn weight(&self) -> usize {
        match self {
            Command::Submit(new) => new.order.len() + new.targets.len() * 200,
            Command::Settle(told) => told.report.body.len() + 512,
            Command::Seen(agents) => agents.iter().map(|a| a.heartbeat.len() + 512).sum(),
            Command::Dispatch(marks) => marks.len() * 128,
            _ => 512,
        }
    }
}

/// The answer to a command of the kind that its name says.
pub(super) enum Answer {
    Submitted(Box<Submitted>),
    Flags(Vec<bool>),
    Noted(Noted),
    Settled(Settled),
    Cancelled(Option<Box<Cancellation>>),
    Stopped(Stopped),
    Change(Option<Box<Change>>),
    Changes(Changes),
    Seen(Vec<Seen>),
    Count(u64),
    Roster(RosterAnswer),
}

/// A command on its way, with whom to answer and its share of the memory.
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Result<Answer, LedgerError>>,
    pub(super) _share: OwnedSemaphorePermit,
}

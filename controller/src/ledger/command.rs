//! What the writer is asked and how it answers.

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use sally_common::id::{Incarnation, JobId, RunId};
use sally_common::name::{Agent, Zone};

use super::error::LedgerError;
use super::types::*;

/// A change that is asked for.
pub(super) enum Command {
    Submit(Box<NewJob>),
    Dispatch(Vec<DispatchMark>),
    Started(StartMark),
    Progress(ProgressMark),
    Settle(Box<Settlement>),
    Cancel { job: JobId, at_ms: i64, hard: bool },
    Expire { now_ms: i64, limit: usize },
    Lost { zone: Zone, agent: Agent, incarnation: Incarnation, at_ms: i64, limit: usize },
    Unknown { runs: Vec<RunId>, at_ms: i64, reason: String, message: String },
    Seen(Vec<AgentSeen>),
    Forget { zone: Zone, name: Agent },
    Prune { before_ms: i64, limit: u32 },
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
            _ => Vec::new(),
        }
    }

    /// Whether it must see what earlier commands of a batch wrote to rows that only a query finds, or
    /// removes rows: such a command has a batch of its own.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Command::Expire { .. } | Command::Lost { .. } | Command::Prune { .. })
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
    Submitted(Submitted),
    Flags(Vec<bool>),
    Noted(Noted),
    Settled(Settled),
    Cancelled(Option<Box<Cancellation>>),
    Changes(Changes),
    Seen(Vec<Seen>),
    Count(u64),
}

/// A command on its way, with whom to answer and its share of the memory.
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Result<Answer, LedgerError>>,
    pub(super) _share: OwnedSemaphorePermit,
}

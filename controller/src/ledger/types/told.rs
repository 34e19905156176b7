//! What the ledger is told: reports of agents, and marks of what the controller has done.

use sally_common::id::{Incarnation, RunId};
use sally_common::key::{PublicKey, Signature};
use sally_common::name::{Agent, Zone};
use sally_common::selector::Labels;
use sally_common::wire::record::{ResultState, RunState};

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

//! What a controller tells an agent, all of it to the agent's one live subject.

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Incarnation, Nonce, RunId};
use crate::key::PublicKey;
use crate::name::{Agent, Zone};
use crate::wire::order::OrderSignature;

/// Whom a command is for. Checked before anything else in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct To {
    /// The agent's zone.
    pub zone: Zone,
    /// The agent's name.
    pub agent: Agent,
    /// The agent's key.
    pub agent_key: PublicKey,
    /// The incarnation of the agent's journal.
    pub incarnation: Incarnation,
}

/// An order bound to one agent and attempt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Dispatch {
    /// Wire version.
    pub v: u32,
    /// Whom it is for.
    pub to: To,
    /// The run.
    pub run: RunId,
    /// The attempt, from 1; only the controller raises it.
    pub attempt: u32,
    /// When it was signed, Unix milliseconds.
    pub issued_ms: i64,
    /// After this time it must not start, Unix milliseconds.
    pub expires_ms: i64,
    /// The digest of the order's bytes.
    pub order_digest: Digest,
    /// How many they are.
    pub order_bytes: u64,
    /// The order's exact bytes, when they fit a live message; else they are asked for by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Who signed the order.
    pub order_signatures: Vec<OrderSignature>,
    /// The question that this answers, if it is part of an answer: work that was left behind, in its order. An agent
    /// that knows of work left behind takes nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Nonce>,
    /// How it travels.
    #[serde(default, skip_serializing_if = "Lane::is_queue")]
    pub lane: Lane,
    /// More work waits behind this one: the agent asks for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// How a dispatch reaches its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lane {
    /// Through the stream; it waits for an agent that is away.
    #[default]
    Queue,
    /// Straight to the agent's live subject, only if it is connected now. An agent without a free slot
    /// defers it at once.
    Direct,
    /// A lane of a newer program: whoever reads it refuses the dispatch. Never written.
    #[serde(other)]
    Other,
}

impl Lane {
    /// Whether it is the queue.
    pub fn is_queue(&self) -> bool {
        *self == Lane::Queue
    }

    /// The word people use.
    pub fn word(self) -> &'static str {
        match self {
            Lane::Queue => "queue",
            Lane::Direct => "direct",
            Lane::Other => "other",
        }
    }
}

/// Are you there? Whoever hears it says a heartbeat at once that names the nonce. Two processes with one
/// identity both answer, which is how a copy is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The wire's version.
    pub v: u32,
    /// Whom it is for. Any incarnation answers.
    pub to: To,
    /// Comes back in the heartbeat.
    pub nonce: Nonce,
}

/// Stop a run, or do not start it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cancel {
    /// Wire version.
    pub v: u32,
    /// Whom it is for.
    pub to: To,
    /// The run, whatever its attempt.
    pub run: RunId,
    /// The highest attempt that this cancels.
    pub attempt: u32,
    /// When it was signed, Unix milliseconds.
    pub issued_ms: i64,
    /// No TERM first.
    #[serde(default)]
    pub hard: bool,
}

/// The controller's word that something is stored and need not be kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Receipt {
    /// Wire version.
    pub v: u32,
    /// Whom it is for.
    pub to: To,
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// What is stored.
    pub stored: Stored,
}

/// What a receipt is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Stored {
    /// The result is committed in the ledger.
    Result {
        /// The digest of the result message's body.
        digest: Digest,
    },
    /// A stream is stored up to here; what follows is wanted next.
    Stream {
        /// Which.
        stream: String,
        /// Bytes stored from the start.
        bytes: u64,
    },
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The answer to an agent's question about work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Wire version.
    pub v: u32,
    /// Whom it is for.
    pub to: To,
    /// The question's nonce.
    pub nonce: Nonce,
    /// The controller's wall clock, Unix milliseconds.
    pub now_ms: i64,
    /// Whether the agent may start work.
    pub welcome: bool,
    /// Why not, for the agent's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many dispatches for this agent are waiting beyond those just sent.
    #[serde(default)]
    pub waiting: u64,
    /// How many dispatches were sent with this answer. They travel another way and may come after it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub given: u64,
    /// With `welcome` false: the journal is an old copy or a clone. The agent takes a new incarnation, keeps what it knows
    /// and asks again; what the old incarnation held is settled as unknown until the truth arrives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub renew: bool,
}

/// A run and an attempt of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunAttempt {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
}

/// The head line of a piece of a blob; the bytes follow after a line feed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    /// Wire version.
    pub v: u32,
    /// Whom it is for.
    pub to: To,
    /// The whole blob's digest.
    pub digest: Digest,
    /// Where these bytes begin.
    pub offset: u64,
    /// How many bytes the whole has; 0 when the controller does not hold it.
    pub total: u64,
}

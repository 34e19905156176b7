//! What an agent tells a controller.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use crate::id::{Digest, Incarnation, Nonce, RunId};
use crate::name::{Agent, ProfileName, Zone};
use crate::selector::Labels;
use crate::wire::Refusal;
use crate::wire::command::RunAttempt;
use crate::wire::record::{
    Artifact, Failure, LayerState, NetworkReport, Progress, ResultError, ResultState, RunState, Usage,
};

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct From {
    /// The agent's zone.
    pub zone: Zone,
    /// The agent's name.
    pub agent: Agent,
    /// The incarnation of its journal.
    pub incarnation: Incarnation,
    /// Counts every signed report of this incarnation up; an older one is stale.
    pub counter: u64,
    /// How often the journal has been written for good. Until a process has been welcomed it says the number that it
    /// found in the file, so that a file older than what was heard before shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<u64>,
}

/// News of a run before its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Wire version.
    pub v: u32,
    /// Who reports.
    pub from: From,
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The agent's wall clock, Unix milliseconds.
    pub at_ms: i64,
    /// What happened.
    pub news: News,
}

/// What happened to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum News {
    /// Taken, not started.
    Accepted,
    /// The program runs.
    Started {
        /// When, by the agent's wall clock, Unix milliseconds.
        started_ms: i64,
    },
    /// The program said how far it is.
    Progress {
        /// How far.
        progress: Progress,
    },
    /// Not run, and never will be under this attempt.
    Refused {
        /// Why.
        reason: Refusal,
        /// In words.
        message: String,
    },
    /// Not now: nothing of this attempt was started. The agent asks again by itself; until then the run waits.
    Deferred {
        /// Why.
        reason: Refusal,
        /// In words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// The answer to a dispatch of a run that the agent ran before and has a receipt for: a controller whose ledger was
    /// lost or restored asks for it again. The result itself is gone, this is what the journal remembers.
    Ended {
        /// The attempt that ended; the one of the dispatch or a later one.
        attempt: u32,
        /// How.
        state: RunState,
        /// The exit code, if it had one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        /// When, by the agent's wall clock, Unix milliseconds.
        finished_ms: i64,
        /// The digest of the result's body.
        digest: Digest,
    },
    /// News of a newer program. Never written.
    #[serde(other)]
    Other,
}

/// How an attempt ended, with everything it said that fits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ResultMessage {
    /// Wire version.
    pub v: u32,
    /// Who reports.
    pub from: From,
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The order that was run.
    pub order_digest: Digest,
    /// How it ended.
    pub state: RunState,
    /// The program's exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// A stable word when the state alone does not say why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Start by the agent's wall clock, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
    /// End by the agent's wall clock, Unix milliseconds.
    pub finished_ms: i64,
    /// Length by the agent's monotonic clock, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What became of the structured result.
    pub result_state: ResultState,
    /// The structured result, when it is small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<RawValue>>,
    /// The structured result, when it was streamed as `result`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_stream: Option<StreamEnd>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_error: Option<ResultError>,
    /// What the program said about its failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Whether the program said that it changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<bool>,
    /// The last progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Files that the program named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Standard output.
    pub stdout: StreamEnd,
    /// Standard error.
    pub stderr: StreamEnd,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What isolated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxReport>,
    /// Processes that were still alive after the main one and were killed.
    #[serde(default)]
    pub leftovers: u32,
}

/// The end of a stream of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEnd {
    /// Bytes kept.
    pub bytes: u64,
    /// Their digest.
    pub digest: Digest,
    /// Bytes beyond the bound, counted and gone.
    #[serde(default)]
    pub dropped: u64,
    /// The bytes themselves, when they did not go ahead as chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inline: Option<Inline>,
}

impl StreamEnd {
    /// The end of a stream that rides inside the result.
    pub fn inline(bytes: &[u8], dropped: u64) -> Self {
        let inline = match std::str::from_utf8(bytes) {
            Ok(text) => Inline::Text(text.to_owned()),
            Err(_) => Inline::Base64(data_encoding::BASE64.encode(bytes)),
        };
        Self { bytes: bytes.len() as u64, digest: Digest::of(bytes), dropped, inline: Some(inline) }
    }

    /// The inline bytes, if they are inside and agree with length and digest.
    pub fn inline_bytes(&self) -> Option<Vec<u8>> {
        let bytes = match self.inline.as_ref()? {
            Inline::Text(text) => text.clone().into_bytes(),
            Inline::Base64(text) => data_encoding::BASE64.decode(text.as_bytes()).ok()?,
        };
        (bytes.len() as u64 == self.bytes && Digest::of(&bytes) == self.digest).then_some(bytes)
    }
}

/// Bytes inside a message: as text when they are UTF-8, else in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inline {
    /// UTF-8.
    Text(String),
    /// Any bytes.
    Base64(String),
}

/// What isolated a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// The profile.
    pub profile: ProfileName,
    /// The user id on the host.
    pub uid: u32,
    /// Each layer and what was found.
    pub layers: BTreeMap<String, LayerState>,
    /// What the list of destinations was used for; absent without a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkReport>,
}

/// The head line of a piece of a stream; the bytes follow after a line feed. Chunks carry no
/// signature: the signed result has the length and digest of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Wire version.
    pub v: u32,
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// `stdout`, `stderr`, `result`, `artifact-N`.
    pub stream: String,
    /// Where these bytes begin.
    pub offset: u64,
}

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ask {
    /// Wire version.
    pub v: u32,
    /// Who asks.
    pub from: From,
    /// Ties the answer to this question.
    pub nonce: Nonce,
    /// What is asked.
    pub question: Question,
}

/// What an agent asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Question {
    /// For work: at most as many dispatches as slots are free.
    Work {
        /// Free slots.
        credit: u32,
        /// Whether the agent has just started and waits for the answer before it starts anything.
        boot: bool,
        /// Attempts that the agent holds: accepted, running, or finished without a receipt.
        held: Vec<RunAttempt>,
        /// Which process asks: random, made at its start. A second one with the same identity is a copy.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<Nonce>,
        /// Whether `held` is everything the agent holds; else there was no room to name all.
        #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
        held_is_all: bool,
    },
    /// For a piece of a blob.
    Blob {
        /// The run that needs it.
        run: RunId,
        /// The blob.
        digest: Digest,
        /// From where.
        offset: u64,
        /// How many chunks may be sent for this question.
        chunks: u32,
    },
    /// A question of a newer program. Never written.
    #[serde(other)]
    Other,
}

fn yes() -> bool {
    true
}

/// An agent's periodic statement about itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Wire version.
    pub v: u32,
    /// Who reports.
    pub from: From,
    /// The kernel's boot id.
    #[serde(default)]
    pub boot_id: String,
    /// The agent's wall clock, Unix milliseconds.
    pub sent_ms: i64,
    /// Seconds until the next one; lets any reader judge lateness without configuration.
    pub interval_s: u32,
    /// Its condition.
    pub state: AgentCondition,
    /// The agent program's version.
    pub version: String,
    /// Slots in use and in all.
    pub slots: Slots,
    /// Attempts that run now, at most 16 named.
    #[serde(default)]
    pub running: Vec<RunAttempt>,
    /// Results that wait for a receipt.
    #[serde(default)]
    pub spool: SpoolStatus,
    /// What it tells of its own labels.
    #[serde(default)]
    pub labels: Labels,
    /// The host.
    #[serde(default)]
    pub host: HostFacts,
    /// Messages refused since the incarnation began, by reason.
    #[serde(default)]
    pub refused: BTreeMap<Refusal, u64>,
    /// What was lost since the incarnation began, by kind; empty when nothing was.
    #[serde(default)]
    pub lost: BTreeMap<String, u64>,
    /// Sandbox: whether uids are separate, and the profiles allowed.
    #[serde(default)]
    pub sandbox: SandboxAbility,
    /// Which process speaks: random, made at its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Nonce>,
    /// The probe that this heartbeat answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Nonce>,
    /// The agent's public curve key (`X…`, nkeys text): secrets are sealed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve_key: Option<String>,
    /// Why new work is deferred although slots are free, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferring: Option<String>,
    /// The journal's file, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes: Option<u64>,
    /// The last thing that went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Why the agent says goodbye, in its last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodbye: Option<String>,
}

/// An agent's condition as it sees itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentCondition {
    /// Takes work.
    Online,
    /// Finishes what runs, takes nothing.
    Draining,
}

/// Slots of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Slots {
    /// In use.
    pub used: u32,
    /// In all.
    pub total: u32,
}

/// Results that wait for a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// How many.
    pub results: u64,
    /// Their bytes, with the output that waits beside them.
    pub bytes: u64,
    /// Since when the oldest waits, by the agent's wall clock, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<i64>,
}

/// What a heartbeat says of its host.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// Host name.
    pub hostname: String,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine, as `x86_64`.
    pub arch: String,
    /// Load over one minute.
    pub load1: f64,
    /// Free bytes where the agent keeps its state.
    pub disk_free_bytes: u64,
}

/// What the agent's sandbox can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SandboxAbility {
    /// `root` or `user`: whether each slot has a user id of its own.
    pub mode: String,
    /// Of the profiles that the agent allows, those that every version of the controller knows: `strict`, `net` and
    /// `host`.
    pub profiles: Vec<ProfileName>,
    /// The others that it allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_profiles: Vec<ProfileName>,
    /// Accounts that a task may ask to run as.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

impl SandboxAbility {
    /// Names of profiles that were a closed list once: a reader of that time takes any other for a broken message.
    const FIRST: [&str; 3] = ["strict", "net", "host"];

    /// An ability with these profiles and accounts.
    pub fn new(mode: String, allowed: Vec<ProfileName>, users: Vec<String>) -> Self {
        let (profiles, more_profiles) =
            allowed.into_iter().partition(|name| Self::FIRST.contains(&name.as_str()));
        Self { mode, profiles, more_profiles, users }
    }

    /// Every profile that the agent allows.
    pub fn every_profile(&self) -> impl Iterator<Item = &ProfileName> {
        self.profiles.iter().chain(&self.more_profiles)
    }
}

//! Records: what people and programs are shown (design section 9). The same in every format.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use crate::id::{JobId, RequestId, RunId};
use crate::name::{Agent, ProfileName, Zone};

/// The version of the records.
pub const SCHEMA: u32 = 1;

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Not sent yet.
    Pending,
    /// Sent to its agent.
    Dispatched,
    /// The agent has started it.
    Running,
    /// Exit code 0, and the result is as the task wants it.
    Succeeded,
    /// It ran and did not succeed.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// It was cancelled.
    Cancelled,
    /// The agent refused it.
    Rejected,
    /// Not picked up in time, as far as the controller knows.
    Expired,
    /// Host or keeper died under it; it may have run in part.
    Interrupted,
    /// The agent is gone and may have run it.
    Unknown,
}

impl RunState {
    /// Every state, in the order of a run's life.
    pub const ALL: [RunState; 11] = [
        RunState::Pending,
        RunState::Dispatched,
        RunState::Running,
        RunState::Succeeded,
        RunState::Failed,
        RunState::TimedOut,
        RunState::Cancelled,
        RunState::Rejected,
        RunState::Expired,
        RunState::Interrupted,
        RunState::Unknown,
    ];

    /// Whether the run has ended, as far as is known.
    pub fn is_end(self) -> bool {
        !matches!(self, RunState::Pending | RunState::Dispatched | RunState::Running)
    }

    /// The state's word.
    pub fn word(self) -> &'static str {
        match self {
            RunState::Pending => "pending",
            RunState::Dispatched => "dispatched",
            RunState::Running => "running",
            RunState::Succeeded => "succeeded",
            RunState::Failed => "failed",
            RunState::TimedOut => "timed_out",
            RunState::Cancelled => "cancelled",
            RunState::Rejected => "rejected",
            RunState::Expired => "expired",
            RunState::Interrupted => "interrupted",
            RunState::Unknown => "unknown",
        }
    }

    /// Reads the word back.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// No run has started.
    Queued,
    /// Some run is under way.
    Running,
    /// Held back by a person.
    Paused,
    /// Every run succeeded.
    Succeeded,
    /// Every run ended, not all well.
    Failed,
    /// Every run ended, some cancelled and the others well.
    Cancelled,
}

impl JobState {
    /// The state's word.
    pub fn word(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }

    /// Whether every run has ended.
    pub fn is_end(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// The state that follows from how many runs are in which state.
    pub fn of_counts(counts: &BTreeMap<RunState, u64>) -> Self {
        let n = |state: RunState| counts.get(&state).copied().unwrap_or(0);
        let all: u64 = counts.values().sum();
        let ended: u64 = counts.iter().filter(|(s, _)| s.is_end()).map(|(_, n)| n).sum();
        if ended < all {
            let untouched = n(RunState::Pending) + n(RunState::Dispatched);
            return if untouched == all { JobState::Queued } else { JobState::Running };
        }
        let (good, cancelled) = (n(RunState::Succeeded), n(RunState::Cancelled));
        match all {
            _ if good == all => JobState::Succeeded,
            _ if good + cancelled == all => JobState::Cancelled,
            _ => JobState::Failed,
        }
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// What became of the structured result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultState {
    /// The program said nothing.
    Absent,
    /// JSON as the contract wants it.
    Valid,
    /// Not that.
    Invalid,
    /// More bytes than allowed.
    Oversize,
    /// JSON, but not of the task's schema.
    SchemaMismatch,
}

impl ResultState {
    /// The state's word.
    pub fn word(self) -> &'static str {
        match self {
            ResultState::Absent => "absent",
            ResultState::Valid => "valid",
            ResultState::Invalid => "invalid",
            ResultState::Oversize => "oversize",
            ResultState::SchemaMismatch => "schema-mismatch",
        }
    }
}

/// What is wrong with a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultError {
    /// The byte, from 0, where it goes wrong.
    pub offset: Option<u64>,
    /// What is wrong.
    pub message: String,
}

/// What a program said about its failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A stable code.
    pub code: String,
    /// For people.
    pub text: String,
    /// Whether trying again may help.
    pub retryable: bool,
}

/// How far a program is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Done so far, in the program's own unit, if it gave a number.
    #[serde(serialize_with = "number")]
    pub done: Option<f64>,
    /// Of how much, if known.
    #[serde(serialize_with = "number")]
    pub total: Option<f64>,
    /// In words.
    pub text: Option<String>,
}

/// Writes a number as people do: `3`, not `3.0`.
fn number<S: serde::Serializer>(value: &Option<f64>, s: S) -> Result<S::Ok, S::Error> {
    /// Every whole number up to here has a float of its own.
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    match *value {
        None => s.serialize_none(),
        Some(n) if n.fract() == 0.0 && n.abs() <= WHOLE_MAX => s.serialize_i64(n as i64),
        Some(n) => s.serialize_f64(n),
    }
}

pub use super::artifact::Artifact;

/// What a run used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time, milliseconds.
    pub cpu_ms: Option<u64>,
    /// Largest memory, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Most processes at once.
    pub pids_peak: Option<u64>,
}

/// What was found of a sandbox layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// In force, and checked.
    Enforced,
    /// In force in part.
    Degraded,
    /// Not there.
    Absent,
}

/// What a run's list of destinations was used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReport {
    /// All that the script could connect to, as `HOST:PORT` each; empty: nothing.
    pub allowed: Vec<String>,
    /// Connections that were led on.
    pub connections: u64,
    /// Connections that were taken and reset, because only their port is listed and not their address with it.
    pub refused: u64,
    /// Of the connections, those that nobody answered.
    pub failed: u64,
    /// Why the first of them failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The sandbox part of a run's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
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

/// How bytes became text in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TextEncoding {
    /// The bytes are UTF-8.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// They are not; the text is base64.
    #[serde(rename = "base64")]
    Base64,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: JobState,
    /// When it was accepted, RFC 3339 UTC.
    pub created_at: String,
    /// Who submitted it.
    pub by: String,
    /// The caller's id of the submission.
    pub request_id: RequestId,
    /// The job that this one repeats.
    pub retry_of: Option<JobId>,
    /// What runs, for people: the script's name or the command.
    #[serde(default)]
    pub title: String,
    /// Runs by state.
    pub counts: BTreeMap<RunState, u64>,
}

/// One target's run of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id.
    pub run: RunId,
    /// The agent.
    pub agent: Agent,
    /// The agent's zone.
    pub zone: Zone,
    /// The state.
    pub state: RunState,
    /// Whether nothing can change it any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The attempt.
    pub attempt: u32,
    /// When a cancellation was stored, RFC 3339 UTC.
    pub cancel_requested_at: Option<String>,
    /// The program's exit code.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The structured result.
    pub result: Option<Box<RawValue>>,
    /// What became of the structured result; `null` before the end.
    pub result_state: Option<ResultState>,
    /// What is wrong with it.
    pub result_error: Option<ResultError>,
    /// What the program said about its failure.
    pub failure: Option<Failure>,
    /// Whether the program said that it changed something.
    pub changed: Option<bool>,
    /// The last progress.
    pub progress: Option<Progress>,
    /// Files that the program named.
    pub artifacts: Vec<Artifact>,
    /// Standard output: first and last part.
    pub stdout: String,
    /// Standard error: first and last part.
    pub stderr: String,
    /// How standard output became text.
    pub stdout_encoding: TextEncoding,
    /// How standard error became text.
    pub stderr_encoding: TextEncoding,
    /// Bytes of standard output that are not in the record.
    pub stdout_truncated_bytes: u64,
    /// Bytes of standard error that are not in the record.
    pub stderr_truncated_bytes: u64,
    /// When the run was stored, RFC 3339 UTC.
    pub queued_at: String,
    /// When it started, by its agent's clock, RFC 3339 UTC.
    pub started_at: Option<String>,
    /// When it ended, by its agent's clock, RFC 3339 UTC.
    pub finished_at: Option<String>,
    /// How long it ran, milliseconds.
    pub duration_ms: Option<u64>,
    /// A stable word for why.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// What isolated it.
    pub sandbox: Option<SandboxRecord>,
    /// When the next attempt is due, if this one ended and another follows, RFC 3339 UTC.
    #[serde(default)]
    pub retry_at: Option<String>,
    /// Processes that were still alive after the main one and were ended.
    #[serde(default)]
    pub leftovers: u32,
}

/// A job with its runs: the one object of `-o json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobWithRuns {
    /// The version of the record.
    pub schema: u32,
    /// The job.
    pub job: JobRecord,
    /// Its runs, in the order of its targets.
    pub runs: Vec<RunRecord>,
}

/// The controller's judgement of an agent's heartbeats, by the controller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentState {
    /// Heard of in time.
    Online,
    /// Overdue.
    Late,
    /// Overdue for long, or said goodbye.
    Offline,
}

impl AgentState {
    /// The state's word.
    pub fn word(self) -> &'static str {
        match self {
            AgentState::Online => "online",
            AgentState::Late => "late",
            AgentState::Offline => "offline",
        }
    }

    /// Judges by the time since the last heartbeat: online to 1.5 intervals, late to 3.
    pub fn judge(since_ms: i64, interval_s: u32, goodbye: bool) -> Self {
        let interval = i64::from(interval_s.max(1)) * 1000;
        match since_ms {
            _ if goodbye => AgentState::Offline,
            s if s * 2 <= interval * 3 => AgentState::Online,
            s if s <= interval * 3 => AgentState::Late,
            _ => AgentState::Offline,
        }
    }
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its name.
    pub agent: Agent,
    /// Its zone.
    pub zone: Zone,
    /// The controller's judgement.
    pub state: AgentState,
    /// The last heartbeat by the controller's clock, RFC 3339 UTC.
    pub last_seen_at: Option<String>,
    /// The last heartbeat, seconds ago by the controller's clock.
    pub last_seen_s: Option<u64>,
    /// Slots in use.
    pub slots_used: u32,
    /// Slots in all.
    pub slots_total: u32,
    /// The agent program's version.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its key.
    pub key: String,
    /// The incarnation of its journal.
    pub incarnation: String,
    /// Host name.
    pub hostname: String,
    /// Operating system.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine.
    pub arch: String,
    /// `root` or `user`.
    pub sandbox_mode: String,
    /// Profiles that its policy allows.
    pub profiles: Vec<ProfileName>,
    /// Results that wait for a receipt.
    pub spool_results: u64,
    /// Messages it refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Runs that wait for it in the ledger.
    pub waiting: u64,
    /// Whether it takes no new work: it drains by itself, or was told to.
    #[serde(default)]
    pub draining: bool,
    /// Why it defers new work although slots are free, if it does.
    #[serde(default)]
    pub deferring: Option<String>,
    /// What it lost, by kind.
    #[serde(default)]
    pub lost: BTreeMap<String, u64>,
    /// What is wrong with its identity, if something is: another process uses it, its journal is an old copy.
    #[serde(default)]
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_state_follows_from_its_runs() {
        use RunState::*;
        let check = |runs: &[RunState], expected: JobState| {
            let mut counts = BTreeMap::new();
            runs.iter().for_each(|s| *counts.entry(*s).or_insert(0) += 1);
            assert_eq!(JobState::of_counts(&counts), expected, "{runs:?}");
        };
        check(&[Pending, Dispatched], JobState::Queued);
        check(&[Pending, Running], JobState::Running);
        check(&[Succeeded, Pending], JobState::Running);
        check(&[Succeeded, Succeeded], JobState::Succeeded);
        check(&[Succeeded, Cancelled], JobState::Cancelled);
        check(&[Cancelled], JobState::Cancelled);
        check(&[Succeeded, Failed, Cancelled], JobState::Failed);
        check(&[Unknown], JobState::Failed);
    }

    #[test]
    fn words_read_back_and_agree_with_json() {
        for state in RunState::ALL {
            assert_eq!(RunState::of_word(state.word()), Some(state));
            assert_eq!(serde_json::to_string(&state).ok(), Some(format!("\"{}\"", state.word())));
        }
    }

    #[test]
    fn whole_numbers_of_progress_are_written_whole() {
        for (done, text) in [(3.0, "3"), (2.5, "2.5"), (-0.0, "0"), (1e300, "1e+300")] {
            let progress = Progress { done: Some(done), total: None, text: None };
            let json = serde_json::to_string(&progress).expect("JSON");
            assert_eq!(json, format!(r#"{{"done":{text},"total":null,"text":null}}"#));
            assert_eq!(serde_json::from_str::<Progress>(&json).ok(), Some(progress));
        }
    }

    #[test]
    fn lateness_is_judged_in_intervals() {
        let judge = |s: i64| AgentState::judge(s * 1000, 30, false);
        assert_eq!(judge(45), AgentState::Online);
        assert_eq!(judge(46), AgentState::Late);
        assert_eq!(judge(90), AgentState::Late);
        assert_eq!(judge(91), AgentState::Offline);
        assert_eq!(AgentState::judge(0, 30, true), AgentState::Offline);
    }
}

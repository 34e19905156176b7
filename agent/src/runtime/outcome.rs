//! How an attempt ended: from exit record and script result to what the controller is told. Pure.
#![forbid(unsafe_code)]

use std::path::Path;

use sally_common::name::ProfileName;
use sally_common::wire::record::{
    Artifact, Failure, LayerState, NetworkReport, Progress, ResultError, ResultState, RunState, Usage,
};
use sally_common::wire::report::SandboxReport;
use serde_json::value::RawValue;

use crate::sandbox::{ExitRecord, Hold, LimitHit, LimitName, Outcome, Profile};
use crate::script;

/// The end of an attempt, without its output.
#[derive(Debug)]
pub struct Ending {
    /// The run's state.
    pub state: RunState,
    /// The exit code.
    pub exit_code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
    /// A stable word.
    pub reason: Option<String>,
    /// The same for people.
    pub message: Option<String>,
}

impl Ending {
    fn new(state: RunState, reason: &str, message: impl Into<String>) -> Self {
        let (reason, message) = (Some(reason.to_owned()), Some(message.into()));
        Ending { state, exit_code: None, signal: None, reason, message }
    }

    /// The keeper or the host died under the attempt.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(RunState::Interrupted, "interrupted", message)
    }

    /// The attempt could not be begun on this host.
    pub fn sandbox_failed(message: impl Into<String>) -> Self {
        Self::new(RunState::Failed, "sandbox-failed", message)
    }

    /// Cancelled before it started.
    pub fn cancelled_before_start() -> Self {
        Self::new(RunState::Cancelled, "cancelled", "cancelled before it started")
    }
}

/// Judges an attempt that has an exit record. `asked` says whether the controller asked to cancel it: a keeper
/// also ends an attempt when its launcher is told to stop with everything, and that is an interruption.
///
/// A limit that ended the run is the reason. One that the run only met is the reason if the run failed by itself.
pub fn judge(
    record: &ExitRecord,
    result: &script::ScriptResult,
    require_result: bool,
    asked: bool,
) -> Ending {
    let ending = judge_outcome(record, result, require_result, asked);
    let by_itself = matches!(record.outcome, Outcome::Exited { .. } | Outcome::Signaled { .. });
    match record.limit {
        Some(hit) if by_itself && (hit.ended || own_failure(&ending)) => limited(ending, hit),
        _ => ending,
    }
}

/// How much of the end of standard error is looked at for [`say_what_instead`].
const TAIL_BYTES: u64 = 4096;

/// Programs that gain privileges, and say so at the start of a line when they cannot.
const PRIVILEGED: [&str; 3] = ["sudo", "su", "doas"];

/// Adds to a run that failed after `sudo` or its like complained what to use instead: nothing gains privileges inside.
/// In `host` the same for whoever misses the host's unix sockets.
pub fn say_what_instead(ending: &mut Ending, record: &ExitRecord, stderr: &Path) {
    if record.profile == Profile::Admin || ending.reason.as_deref() != Some("exit-code") {
        return;
    }
    let tail = tail_of(stderr).unwrap_or_default();
    let tail = String::from_utf8_lossy(&tail);
    let complains = |program: &&str| {
        tail.lines().any(|line| line.strip_prefix(*program).is_some_and(|rest| rest.starts_with(": ")))
    };
    let message = ending.message.get_or_insert_default();
    if let Some(program) = PRIVILEGED.into_iter().find(complains) {
        message.push_str(&format!(
            "; {program} cannot gain privileges inside, by design: ask for an account with --user NAME, or for root \
             with --profile admin, where the agent allows it"
        ));
    } else if record.profile == Profile::Host && tail.lines().any(misses_a_socket) {
        message.push_str(
            "; profile host connects to no unix socket of the host, by design: where a task needs one, the agent's \
             operator defines a profile with network.unix_sockets = true",
        );
    }
}

/// Whether a line is what `systemctl`, `docker`, `logger` and the like say when they can make no unix socket.
fn misses_a_socket(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    line.contains("operation not permitted")
        && line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "bus" || word == "socket")
}

fn tail_of(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether the run failed by its exit code or a signal, without a word of its own about why.
fn own_failure(ending: &Ending) -> bool {
    matches!(ending.reason.as_deref(), Some("exit-code" | "signal"))
}

fn limited(ending: Ending, hit: LimitHit) -> Ending {
    let (reason, what) = match hit.limit {
        LimitName::Memory => ("memory-limit", "used more memory than its limit"),
        LimitName::Cpu => ("cpu-limit", "used more processor time than its limit"),
        LimitName::Processes => ("process-limit", "tried to have more processes than its limit"),
        LimitName::File => ("file-size-limit", "wrote a file larger than its limit"),
        LimitName::Work => ("work-limit", "filled the writable folders up to their limit"),
        LimitName::WorkFiles => ("work-files-limit", "made as many files as its limit allows"),
    };
    let message = match ending.message {
        Some(message) if !hit.ended => format!("{message}; it {what}"),
        _ => format!("it {what}"),
    };
    Ending { state: RunState::Failed, reason: Some(reason.into()), message: Some(message), ..ending }
}

fn judge_outcome(
    record: &ExitRecord,
    result: &script::ScriptResult,
    require_result: bool,
    asked: bool,
) -> Ending {
    let ended = |state, code: &Option<i32>, signal: &Option<i32>, reason: &str, message: String| Ending {
        exit_code: *code,
        signal: *signal,
        ..Ending::new(state, reason, message)
    };
    match &record.outcome {
        Outcome::Exited { code } => exited(*code, result, require_result),
        Outcome::Signaled { signal } => {
            let message = format!("ended by signal {signal} ({})", signal_name(*signal));
            ended(RunState::Failed, &None, &Some(*signal), "signal", message)
        }
        Outcome::TimedOut { code, signal } => {
            ended(RunState::TimedOut, code, signal, "timeout", "ran longer than its timeout".into())
        }
        Outcome::Cancelled { code, signal } if !asked => {
            let message = "the agent's host was told to stop everything; it may have run in part";
            ended(RunState::Interrupted, code, signal, "stopped", message.into())
        }
        Outcome::Cancelled { code, signal } => {
            ended(RunState::Cancelled, code, signal, "cancelled", "cancelled while it ran".into())
        }
        Outcome::NotFound { what } => Ending::new(RunState::Failed, "not-found", what),
        Outcome::ExecFailed { message, .. } => Ending::new(RunState::Failed, "exec-failed", message),
        Outcome::SetupFailed { step, message, .. } if step == "require" => {
            Ending::new(RunState::Rejected, "layer-missing", message)
        }
        Outcome::SetupFailed { step, message, .. } => {
            Ending::sandbox_failed(format!("the sandbox could not be built, step {step}: {message}"))
        }
        Outcome::NotStarted => Ending::new(
            RunState::Interrupted,
            "not-started",
            "the agent went away before the program started; nothing ran",
        ),
    }
}

fn exited(code: i32, result: &script::ScriptResult, require_result: bool) -> Ending {
    let said = result.failed_reason(require_result);
    let state = if code == 0 && said.is_none() { RunState::Succeeded } else { RunState::Failed };
    let message = match said {
        Some("result-missing") => Some("the task requires a result and the script gave none".to_owned()),
        Some("script-failed") => result.failure.as_ref().map(|f| f.text.clone()),
        Some(_) => result.error.as_ref().map(|e| e.message.clone()),
        None if code != 0 => Some(format!("exit code {code}")),
        None => None,
    };
    let reason = said.or((code != 0).then_some("exit-code")).map(str::to_owned);
    Ending { state, exit_code: Some(code), signal: None, reason, message }
}

fn signal_name(signal: i32) -> &'static str {
    nix::sys::signal::Signal::try_from(signal).map_or("unknown", nix::sys::signal::Signal::as_str)
}

/// The script's own words in the wire's form.
#[derive(Debug)]
pub struct Said {
    /// What became of the result.
    pub state: ResultState,
    /// The result.
    pub json: Option<Box<RawValue>>,
    /// What is wrong with it.
    pub error: Option<ResultError>,
    /// Failure in the script's words.
    pub failure: Option<Failure>,
    /// Whether it changed something.
    pub changed: Option<bool>,
    /// The last progress.
    pub progress: Option<Progress>,
    /// Files it named; added by whoever knows what became of them.
    pub artifacts: Vec<Artifact>,
}

impl Said {
    /// Nothing was said.
    pub fn nothing() -> Self {
        Said {
            state: ResultState::Absent,
            json: None,
            error: None,
            failure: None,
            changed: None,
            progress: None,
            artifacts: Vec::new(),
        }
    }

    /// Turns what was read from the script's doors into the wire's form; `mask` takes secrets out of text.
    pub fn of(result: script::ScriptResult, mask: impl Fn(&str) -> String) -> Self {
        let state = match result.state {
            script::ResultState::Absent => ResultState::Absent,
            script::ResultState::Valid => ResultState::Valid,
            script::ResultState::Invalid => ResultState::Invalid,
            script::ResultState::Oversize => ResultState::Oversize,
            script::ResultState::SchemaMismatch => ResultState::SchemaMismatch,
        };
        Said {
            state,
            json: result.json.and_then(|j| RawValue::from_string(mask(j.as_str())).ok()),
            error: result.error.map(|e| ResultError { offset: e.offset, message: mask(&e.message) }),
            failure: result.failure.map(|f| Failure {
                code: mask(&f.code),
                text: mask(&f.text),
                retryable: f.retryable,
            }),
            changed: result.changed,
            progress: result.progress.as_ref().map(|said| progress(said, &mask)),
            artifacts: Vec::new(),
        }
    }
}

/// A script's progress in the wire's form; `mask` takes secrets out of text.
pub fn progress(said: &script::Progress, mask: impl Fn(&str) -> String) -> Progress {
    let number = |n: &Option<serde_json::Number>| n.as_ref().and_then(|n| n.as_f64());
    Progress { done: number(&said.done), total: number(&said.total), text: said.text.as_deref().map(mask) }
}

/// What isolated the attempt, in the wire's form.
pub fn sandbox_report(record: &ExitRecord) -> SandboxReport {
    let state = |hold: &Hold| match hold {
        Hold::Enforced => LayerState::Enforced,
        Hold::Degraded => LayerState::Degraded,
        Hold::Absent => LayerState::Absent,
    };
    SandboxReport {
        profile: profile_name(record),
        uid: record.uid,
        layers: record.layers.iter().map(|(layer, hold)| (layer.name().to_owned(), state(hold))).collect(),
        network: record.network.as_ref().map(|used| NetworkReport {
            allowed: used.allowed.iter().map(ToString::to_string).collect(),
            connections: used.connections,
            refused: used.refused,
            failed: used.failed,
            trouble: used.trouble.clone(),
        }),
    }
}

/// What the attempt used, in the wire's form.
pub fn usage(record: &ExitRecord) -> Usage {
    Usage {
        cpu_ms: Some(record.usage.cpu_ms),
        memory_peak_bytes: Some(record.usage.memory_peak_bytes),
        pids_peak: record.usage.pids_peak,
    }
}

/// The profile's name as the wire has it: its operator's, if it is one.
pub fn profile_name(record: &ExitRecord) -> ProfileName {
    record.defined.clone().unwrap_or_else(|| record.profile.to_name())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::sandbox::{Layers, RECORD_VERSION, StreamCount};

    fn record(outcome: Outcome, limit: Option<LimitHit>) -> ExitRecord {
        ExitRecord {
            v: RECORD_VERSION,
            run: "01j".into(),
            attempt: 1,
            outcome,
            started_at_unix_ms: Some(1),
            finished_at_unix_ms: 2,
            duration_ms: 1,
            stdout: StreamCount::default(),
            stderr: StreamCount::default(),
            result: StreamCount::default(),
            result_file: None,
            artifacts: vec![],
            kept: None,
            usage: crate::sandbox::Usage::default(),
            limit,
            network: None,
            leftovers: 0,
            uid: 1,
            profile: Profile::Strict,
            defined: None,
            layers: Layers::new(),
        }
    }

    fn ending(outcome: Outcome, limit: Option<LimitHit>) -> Ending {
        let record = record(outcome, limit);
        let door = script::Door { bytes: b"", seen: 0 };
        judge(&record, &script::read_result(&door, &door, &script::ResultLimits::default()), false, true)
    }

    fn check(outcome: Outcome, limit: LimitName, ended: bool, state: RunState, reason: Option<&str>) {
        let ending = ending(outcome, Some(LimitHit { limit, ended }));
        assert_eq!((ending.state, ending.reason.as_deref()), (state, reason));
    }

    #[test]
    fn a_limit_that_ended_the_run_is_the_reason() {
        let killed = Outcome::Signaled { signal: 9 };
        check(killed.clone(), LimitName::Memory, true, RunState::Failed, Some("memory-limit"));
        check(Outcome::Exited { code: 0 }, LimitName::Cpu, true, RunState::Failed, Some("cpu-limit"));
        check(
            Outcome::Signaled { signal: 25 },
            LimitName::File,
            true,
            RunState::Failed,
            Some("file-size-limit"),
        );
        assert_eq!(ending(killed, None).reason.as_deref(), Some("signal"));
    }

    #[test]
    fn a_limit_that_was_met_is_the_reason_of_a_failure_only() {
        let failed = Outcome::Exited { code: 2 };
        check(failed.clone(), LimitName::Processes, false, RunState::Failed, Some("process-limit"));
        check(failed.clone(), LimitName::Work, false, RunState::Failed, Some("work-limit"));
        check(failed.clone(), LimitName::WorkFiles, false, RunState::Failed, Some("work-files-limit"));
        check(Outcome::Exited { code: 0 }, LimitName::Processes, false, RunState::Succeeded, None);
        let message = ending(failed, Some(LimitHit { limit: LimitName::Work, ended: false })).message;
        assert_eq!(message.as_deref(), Some("exit code 2; it filled the writable folders up to their limit"));
    }

    #[test]
    fn who_tries_what_cannot_work_is_told_what_to_use_instead() {
        let dir = tempfile::tempdir().unwrap();
        let stderr = dir.path().join("stderr");
        let said = |text: &str, profile, code| {
            std::fs::write(&stderr, text).unwrap();
            let record = ExitRecord { profile, ..record(Outcome::Exited { code }, None) };
            let mut ending = ending(Outcome::Exited { code }, None);
            say_what_instead(&mut ending, &record, &stderr);
            ending.message.unwrap_or_default()
        };
        let flag = "sudo: The \"no new privileges\" flag is set, which prevents sudo from running as root.\n";
        let long = format!("{}\n{flag}", "x".repeat(10_000));
        for text in [flag, &long, "a\nsu: must be suid to work properly\n", "doas: not installed setuid"] {
            let message = said(text, Profile::Strict, 1);
            assert!(message.starts_with("exit code 1; ") && message.contains("--user NAME"), "{message}");
            assert!(message.contains("--profile admin"), "{message}");
        }
        assert_eq!(said("sh: 1: sudo: not found\n", Profile::Strict, 127), "exit code 127");
        assert_eq!(said("sudoku: none\n", Profile::Host, 1), "exit code 1");
        for text in [
            "Failed to connect to bus: Operation not permitted\n",
            "dial unix /var/run/docker.sock: socket: operation not permitted\n",
            "logger: socket /dev/log: Operation not permitted\n",
        ] {
            assert!(said(text, Profile::Host, 1).contains("network.unix_sockets"), "{text}");
            assert_eq!(said(text, Profile::Net, 1), "exit code 1");
        }
        assert_eq!(said("mount: /mnt: Operation not permitted\n", Profile::Host, 1), "exit code 1");
        assert_eq!(said(flag, Profile::Admin, 1), "exit code 1");
        assert_eq!(said(flag, Profile::Strict, 0), "");
    }

    #[test]
    fn the_timeout_and_a_cancellation_come_before_a_limit() {
        let timed_out = Outcome::TimedOut { code: None, signal: Some(15) };
        check(timed_out, LimitName::Memory, false, RunState::TimedOut, Some("timeout"));
        let cancelled = Outcome::Cancelled { code: None, signal: Some(9) };
        check(cancelled, LimitName::Cpu, false, RunState::Cancelled, Some("cancelled"));
    }
}

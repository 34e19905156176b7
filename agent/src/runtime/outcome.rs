//! How an attempt ended: from exit record and script result to what the controller is told. Pure.
#![forbid(unsafe_code)]

use sally_common::wire::record::{
    Artifact, Failure, LayerState, Progress, ResultError, ResultState, RunState, Usage,
};
use sally_common::wire::report::SandboxReport;
use serde_json::value::RawValue;

use crate::sandbox::{ExitRecord, Hold, Outcome};
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
pub fn judge(
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
    /// Files it named.
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
            artifacts: result
                .artifacts
                .into_iter()
                .map(|a| Artifact { name: mask(&a.name), path: mask(&a.path) })
                .collect(),
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
        profile: wire_profile(record.profile),
        uid: record.uid,
        layers: record.layers.iter().map(|(layer, hold)| (layer.name().to_owned(), state(hold))).collect(),
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

/// The sandbox's profile as the wire names it.
pub fn wire_profile(profile: crate::sandbox::Profile) -> sally_common::wire::order::Profile {
    use crate::sandbox::Profile as Inner;
    use sally_common::wire::order::Profile;
    match profile {
        Inner::Strict => Profile::Strict,
        Inner::Net => Profile::Net,
        Inner::Host => Profile::Host,
    }
}

/// The wire's profile as the sandbox names it.
pub fn inner_profile(profile: sally_common::wire::order::Profile) -> crate::sandbox::Profile {
    use crate::sandbox::Profile as Inner;
    use sally_common::wire::order::Profile;
    match profile {
        Profile::Strict => Inner::Strict,
        Profile::Net => Inner::Net,
        Profile::Host => Inner::Host,
    }
}

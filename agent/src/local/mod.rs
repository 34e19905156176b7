//! What people do on the agent's own host, without a connection: `sally-agent drain`, `resume` and `status`, here, and
//! [`kept`] work on the state folder. The others start a launcher of their own for a moment ([`scratch`]): [`trial`] runs a script as
//! a task would be run, with [`mod@watch`] and [`show`] for its output and
//! [`judged`] for its record; [`shell`] opens a shell in such a sandbox ([`asked`] is what both ask for); [`doctor`] says what the host offers. [`explain`] and [`configuration`] start nothing.
//! [`enroll`] makes this host an agent.
#![forbid(unsafe_code)]

pub mod asked;
pub mod configuration;
pub mod doctor;
pub mod enroll;
pub mod explain;
pub mod judged;
pub mod kept;
pub mod scratch;
pub mod shell;
pub mod show;
pub mod trial;
pub mod watch;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::runtime::status::{DRAINING, Status, is_alive, is_draining};

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum LocalError {
    #[error("cannot {what} {path}: {error}", path = path.display())]
    File { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{} is no state folder of an agent: name one with --state-dir, or the configuration with --config", .0.display())]
    NoState(PathBuf),
    #[error("cannot start a launcher: {0}")]
    Launcher(std::io::Error),
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    #[error("no work folder is kept of run {0}; `sally-agent kept ls` lists those that are")]
    NotKept(String),
    #[error("the agent does not run, so nothing of it ends; it will drain when it starts")]
    NotRunning,
    #[error(
        "after {waited} s: {runs} runs and {results} results without a receipt are left; it goes on draining"
    )]
    NotYet { waited: u64, runs: u64, results: u64 },
}

/// Tells the agent to take nothing new, also after a restart. It notices within a quarter of a second.
pub fn drain(state_dir: &Path) -> Result<(), LocalError> {
    check(state_dir)?;
    let path = state_dir.join(DRAINING);
    std::fs::write(&path, b"").map_err(|error| LocalError::File { what: "write", path, error })
}

/// Waits until nothing runs and every result has its receipt.
pub fn wait_drained(state_dir: &Path, limit: Option<Duration>) -> Result<(), LocalError> {
    let begun = Instant::now();
    loop {
        if !is_alive(state_dir) {
            return Err(LocalError::NotRunning);
        }
        let status = Status::read(state_dir).filter(|status| status.draining);
        let runs = status.as_ref().map_or(0, |s| s.accepted + s.running.len() as u64);
        let results = status.as_ref().map_or(0, |s| s.spool.results);
        if status.is_some_and(|s| s.slots.used == 0) && runs == 0 && results == 0 {
            return Ok(());
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            return Err(LocalError::NotYet { waited: begun.elapsed().as_secs(), runs, results });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ends draining.
pub fn resume(state_dir: &Path) -> Result<(), LocalError> {
    check(state_dir)?;
    let path = state_dir.join(DRAINING);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LocalError::File { what: "remove", path, error })
        }
        _ => Ok(()),
    }
}

/// What the agent does, as one JSON object.
pub fn status_json(state_dir: &Path) -> Result<serde_json::Value, LocalError> {
    check(state_dir)?;
    let status = serde_json::to_value(Status::read(state_dir)).unwrap_or_default();
    let (alive, draining) = (is_alive(state_dir), is_draining(state_dir));
    Ok(serde_json::json!({"schema": 1, "alive": alive, "drain_asked": draining, "status": status}))
}

/// The same for people.
pub fn status_text(state_dir: &Path) -> Result<String, LocalError> {
    check(state_dir)?;
    let alive = is_alive(state_dir);
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    let Some(status) = Status::read(state_dir) else {
        line("state", if alive { "starting" } else { "does not run, and never did" }.to_owned());
        return Ok(text);
    };
    line(
        "agent",
        format!("{}/{} (version {}, process {})", status.zone, status.agent, status.version, status.pid),
    );
    line("state", state_of(&status, alive, is_draining(state_dir)));
    line("runs", format!("{} of {} slots in use", status.slots.used, status.slots.total));
    for run in &status.running {
        line("", format!("{} attempt {}", run.run, run.attempt));
    }
    let spool = &status.spool;
    line("results", format!("{} without a receipt, {} bytes", spool.results, spool.bytes));
    line("disk", format!("{} bytes in {}", status.used_bytes, state_dir.display()));
    let heard = status.silent_ms().map(|ms| format!("heard {} s ago", ms / 1000));
    line("controller", heard.unwrap_or_else(|| "never heard by this process".into()));
    for (kind, count) in &status.lost {
        line("lost", format!("{kind}: {count}"));
    }
    if let Some(error) = &status.last_error {
        line("last error", error.clone());
    }
    Ok(text)
}

fn state_of(status: &Status, alive: bool, drain_asked: bool) -> String {
    match (alive, &status.deferring) {
        (false, _) if drain_asked => "does not run; it will drain when it starts".into(),
        (false, _) => "does not run; the rest is what it said last".into(),
        _ if status.draining || drain_asked => "drains: finishes what runs, takes nothing new".into(),
        (true, Some(why)) => format!("takes nothing new: {why}"),
        _ if !status.welcome => "waits for a controller that lets it start work".into(),
        _ => "takes work".into(),
    }
}

fn check(state_dir: &Path) -> Result<(), LocalError> {
    if state_dir.is_dir() { Ok(()) } else { Err(LocalError::NoState(state_dir.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_to_drain_and_to_resume_is_idempotent() {
        let dir = tempfile::tempdir().expect("a folder");
        for _ in 0..2 {
            drain(dir.path()).expect("asked");
            assert!(is_draining(dir.path()));
        }
        for _ in 0..2 {
            resume(dir.path()).expect("asked");
            assert!(!is_draining(dir.path()));
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = drain(Path::new("/nonexistent/state")).expect_err("no folder").to_string();
        assert!(error.contains("/nonexistent/state") && error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn without_an_agent_nothing_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(wait_drained(dir.path(), None), Err(LocalError::NotRunning)));
        assert!(status_text(dir.path()).expect("read").contains("does not run"));
        assert_eq!(status_json(dir.path()).expect("read")["alive"], false);
    }
}

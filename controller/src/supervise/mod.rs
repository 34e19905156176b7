//! Keeps one child program running: starts it, keeps what it prints within bounds, restarts it when it dies, stops it.
//!
//! - this file: [`Supervisor`] and its states.
//! - [`output`]: what the child prints, cut into lines, into a bounded file or to the caller.
//! - [`leftover`]: recognising and ending a child that outlived its supervisor.
//! - [`guard`]: letting the child end when its supervisor is killed.
//!
//! This room knows nothing of what the child does. It prints nothing: what happens is told to the caller's function.

pub mod guard;
pub mod leftover;
pub mod output;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use output::Output;

/// How long a child may take to end after TERM before it is killed, unless its spec says otherwise.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);
/// The first pause before a restart; it doubles with each quick death.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause before a restart.
pub const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that lived this long did not die quickly, or this many times the pause before it: the pause starts anew.
/// So a child that does its work between deaths is there most of the time, and one that cannot start is left alone.
const LIVED_WELL: Duration = Duration::from_secs(30);
const LIVED_WELL_PAUSES: u32 = 10;
/// After the child's end its output is read to the end for this long; a grandchild may hold the pipe for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(300);

/// What to run.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// What people call it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables added to the inherited environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where its stdout and stderr go.
    pub output: Output,
    /// Where its identity is kept, so that the next start can end what this one left behind; see [`leftover`].
    pub pid_file: Option<PathBuf>,
    /// The program that calls [`guard::run_if_asked`] first thing in its `main`; with it the child is told to end
    /// when its supervisor dies.
    pub guard: Option<PathBuf>,
    /// Time between TERM and KILL.
    pub stop_limit: Duration,
}

impl ChildSpec {
    /// A child without arguments whose output is thrown away.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            output: Output::Discard,
            pid_file: None,
            guard: None,
            stop_limit: STOP_LIMIT,
        }
    }
}

/// What happened to the child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildEvent {
    /// It was started.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// It ended without being asked to; it will be started again.
    Died {
        /// Its process id.
        pid: u32,
        /// How it ended, for people: `exit status 1`, `killed by SIGKILL`.
        how: String,
        /// The pause before it is started again.
        restart_in: Duration,
    },
    /// It could not be started again; that will be tried again.
    StartFailed {
        /// What the system said.
        error: String,
        /// The pause before the next try.
        restart_in: Duration,
    },
    /// It printed a line; only with [`Output::Lines`].
    Line(String),
    /// What it prints can no longer be written to its log; it runs on.
    LogFailed {
        /// What the system said.
        error: String,
    },
    /// It ended because it was asked to.
    Stopped {
        /// It did not end in time after TERM and was killed.
        killed: bool,
    },
}

/// A child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The program cannot be run.
    #[error("cannot start {name} ({}): {source}", program.display())]
    Spawn {
        /// What people call it.
        name: String,
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log or the pid file cannot be written.
    #[error("cannot write {} for {name}: {source}", path.display())]
    Write {
        /// What people call the child.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A running child and the task that looks after it. Dropped without [`Supervisor::stop`], it kills the child.
pub struct Supervisor {
    name: String,
    stop: watch::Sender<bool>,
    pid: watch::Receiver<Option<u32>>,
    task: Option<JoinHandle<bool>>,
}

type Events = Arc<dyn Fn(ChildEvent) + Send + Sync>;

impl Supervisor {
    /// Starts the child and looks after it until [`Supervisor::stop`]. Must be called within a tokio runtime; with a
    /// guard, on a thread that lives as long as the runtime.
    ///
    /// `events` is called from the supervisor's task and must not block.
    ///
    /// # Errors
    /// [`SuperviseError`] when the first start fails; later ones are events.
    pub fn start(
        spec: ChildSpec,
        events: impl Fn(ChildEvent) + Send + Sync + 'static,
    ) -> Result<Self, SuperviseError> {
        let events: Events = Arc::new(events);
        let name = spec.name.clone();
        let sink = output::Sink::open(&spec.output, events.clone())
            .map_err(|(path, source)| SuperviseError::Write { name: name.clone(), path, source })?;
        let (stop, stopped) = watch::channel(false);
        let (pid_sender, pid) = watch::channel(None);
        let mut care = Care { spec, events, sink, stopped, pid: pid_sender };
        let first = care.spawn()?;
        let task = tokio::spawn(async move { care.run(first).await });
        Ok(Self { name, stop, pid, task: Some(task) })
    }

    /// What people call the child.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child's process id; `None` between a death and the next start.
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Follows the child's process id.
    pub fn watch_pid(&self) -> watch::Receiver<Option<u32>> {
        self.pid.clone()
    }

    /// Ends the child: TERM, and KILL when it has not ended within its limit. Returns whether it had to be killed.
    pub async fn stop(mut self) -> bool {
        // The task is gone only when it panicked; kill_on_drop has ended the child then.
        let _ = self.stop.send(true);
        match self.task.take() {
            Some(task) => task.await.unwrap_or(true),
            None => false,
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// The supervisor's task.
struct Care {
    spec: ChildSpec,
    events: Events,
    sink: output::Sink,
    stopped: watch::Receiver<bool>,
    pid: watch::Sender<Option<u32>>,
}

struct Running {
    child: Child,
    pid: u32,
    since: Instant,
    readers: JoinSet<()>,
}

impl Care {
    fn spawn(&mut self) -> Result<Running, SuperviseError> {
        let spec = &self.spec;
        let mut command = match &spec.guard {
            Some(guard) => guard::command(guard, &spec.program, &spec.args),
            None => {
                let mut command = Command::new(&spec.program);
                command.args(&spec.args);
                command
            }
        };
        command.envs(spec.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let piped = !matches!(spec.output, Output::Discard);
        let pipe = || if piped { Stdio::piped() } else { Stdio::null() };
        command.stdout(pipe()).stderr(pipe());
        // A group of its own: the Ctrl-C of a terminal reaches the supervisor alone, which then stops in order.
        command.process_group(0);

        let failed =
            |source| SuperviseError::Spawn { name: spec.name.clone(), program: spec.program.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id().ok_or_else(|| failed(io::Error::other("it ended at once")))?;
        if let Some(path) = &spec.pid_file {
            leftover::record(path, pid).map_err(|source| SuperviseError::Write {
                name: spec.name.clone(),
                path: path.clone(),
                source,
            })?;
        }
        let mut readers = JoinSet::new();
        if let Some(pipe) = child.stdout.take() {
            readers.spawn(self.sink.clone().read(pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            readers.spawn(self.sink.clone().read(pipe));
        }
        self.pid.send_replace(Some(pid));
        (self.events)(ChildEvent::Started { pid });
        Ok(Running { child, pid, since: Instant::now(), readers })
    }

    /// Returns whether the child had to be killed at the end.
    async fn run(mut self, first: Running) -> bool {
        let mut quick_deaths = 0;
        let mut next = Some(first);
        loop {
            if let Some(mut running) = next.take() {
                tokio::select! {
                    status = running.child.wait() => {
                        quick_deaths = deaths_in_a_row(quick_deaths, running.since.elapsed());
                        self.pid.send_replace(None);
                        finish(&mut running.readers).await;
                        (self.events)(ChildEvent::Died {
                            pid: running.pid,
                            how: describe(status),
                            restart_in: restart_pause(quick_deaths),
                        });
                    }
                    () = asked_to_stop(&mut self.stopped) => return self.end(running).await,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(restart_pause(quick_deaths)) => {}
                () = asked_to_stop(&mut self.stopped) => {
                    self.forget();
                    (self.events)(ChildEvent::Stopped { killed: false });
                    return false;
                }
            }
            match self.spawn() {
                Ok(running) => next = Some(running),
                Err(error) => {
                    quick_deaths += 1;
                    let restart_in = restart_pause(quick_deaths);
                    (self.events)(ChildEvent::StartFailed { error: error.to_string(), restart_in });
                }
            }
        }
    }

    async fn end(self, mut running: Running) -> bool {
        // The child is not reaped yet, so its id cannot have been given to another process.
        let _ = kill(Pid::from_raw(running.pid.cast_signed()), Signal::SIGTERM);
        let killed = tokio::time::timeout(self.spec.stop_limit, running.child.wait()).await.is_err();
        if killed {
            // Fails only when it has just ended.
            let _ = running.child.kill().await;
        }
        finish(&mut running.readers).await;
        self.pid.send_replace(None);
        self.forget();
        (self.events)(ChildEvent::Stopped { killed });
        killed
    }

    fn forget(&self) {
        if let Some(path) = &self.spec.pid_file {
            // A record that stays behind names a process that is gone: the next start sees that.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Waits for the request to stop; a supervisor that is gone asks for it too.
async fn asked_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Reads the output's rest, for a bounded time.
async fn finish(readers: &mut JoinSet<()>) {
    let all = async { while readers.join_next().await.is_some() {} };
    if tokio::time::timeout(OUTPUT_GRACE, all).await.is_err() {
        readers.shutdown().await;
    }
}

/// The number of quick deaths in a row after a death of a child that lived so long.
fn deaths_in_a_row(before: u32, lived: Duration) -> u32 {
    let well = LIVED_WELL.min(restart_pause(before) * LIVED_WELL_PAUSES);
    if lived >= well { 0 } else { before + 1 }
}

/// The pause before the next start after so many quick deaths in a row.
fn restart_pause(quick_deaths: u32) -> Duration {
    let doublings = quick_deaths.saturating_sub(1).min(10);
    RESTART_PAUSE_MIN.saturating_mul(1 << doublings).min(RESTART_PAUSE_MAX)
}

fn describe(status: io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    let status = match status {
        Ok(status) => status,
        Err(error) => return format!("its end could not be read: {error}"),
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
        (None, None) => "an unknown end".to_owned(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> ChildSpec {
        let mut spec = ChildSpec::new("test child", "/bin/sh");
        spec.args = vec!["-c".into(), script.into()];
        spec.output = Output::Lines;
        spec
    }

    fn start(spec: ChildSpec) -> (Supervisor, mpsc::UnboundedReceiver<ChildEvent>) {
        // Unbounded: a test reads it to the end.
        let (sender, events) = mpsc::unbounded_channel();
        let supervisor = Supervisor::start(spec, move |event| {
            let _ = sender.send(event);
        });
        (supervisor.unwrap(), events)
    }

    async fn wait_for(
        events: &mut mpsc::UnboundedReceiver<ChildEvent>,
        wanted: impl Fn(&ChildEvent) -> bool,
    ) -> ChildEvent {
        let found = async {
            loop {
                let event = events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap()
    }

    #[test]
    fn pauses_start_small_and_are_bounded() {
        assert_eq!(restart_pause(0), RESTART_PAUSE_MIN);
        assert_eq!(restart_pause(1), RESTART_PAUSE_MIN);
        assert_eq!(restart_pause(2), RESTART_PAUSE_MIN * 2);
        assert_eq!(restart_pause(u32::MAX), RESTART_PAUSE_MAX);
    }

    #[test]
    fn a_child_that_lived_well_is_started_again_at_once() {
        let ms = Duration::from_millis;
        assert_eq!(deaths_in_a_row(0, ms(499)), 1);
        assert_eq!(deaths_in_a_row(0, ms(500)), 0);
        assert_eq!(deaths_in_a_row(5, ms(500)), 6);
        assert_eq!(deaths_in_a_row(5, ms(8_000)), 0);
        assert_eq!(deaths_in_a_row(u32::MAX - 1, LIVED_WELL), 0);
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_its_end_is_told() {
        let (supervisor, mut events) = start(shell("echo up; kill -9 $$"));
        let died = wait_for(&mut events, |e| matches!(e, ChildEvent::Died { .. })).await;
        let ChildEvent::Died { how, .. } = died else { unreachable!() };
        assert_eq!(how, "killed by SIGKILL");
        wait_for(&mut events, |e| matches!(e, ChildEvent::Started { .. })).await;
        let line = wait_for(&mut events, |e| matches!(e, ChildEvent::Line(_))).await;
        assert_eq!(line, ChildEvent::Line("up".to_owned()));
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn stopping_is_a_request_first() {
        let (supervisor, mut events) =
            start(shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"));
        wait_for(&mut events, |e| *e == ChildEvent::Line("up".to_owned())).await;
        assert!(!supervisor.stop().await);
        wait_for(&mut events, |e| *e == ChildEvent::Line("bye".to_owned())).await;
        wait_for(&mut events, |e| *e == ChildEvent::Stopped { killed: false }).await;
    }

    #[tokio::test]
    async fn a_child_that_ignores_term_is_killed() {
        let mut spec = shell("trap '' TERM; echo up; while :; do sleep 0.05; done");
        spec.stop_limit = Duration::from_millis(100);
        let (supervisor, mut events) = start(spec);
        wait_for(&mut events, |e| *e == ChildEvent::Line("up".to_owned())).await;
        let pid = supervisor.pid().unwrap();
        assert!(supervisor.stop().await);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_pipe_does_not_hold_the_stop() {
        let (supervisor, mut events) = start(shell("sleep 60 & echo $!; wait"));
        let ChildEvent::Line(grandchild) = wait_for(&mut events, |e| matches!(e, ChildEvent::Line(_))).await
        else {
            unreachable!()
        };
        tokio::time::timeout(LIMIT, supervisor.stop()).await.unwrap();
        kill(Pid::from_raw(grandchild.parse().unwrap()), Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn a_missing_program_is_an_error_that_names_it() {
        let error = Supervisor::start(ChildSpec::new("broker", "/nonexistent/x"), |_| {}).err().unwrap();
        assert!(error.to_string().starts_with("cannot start broker (/nonexistent/x): "), "{error}");
    }

    #[tokio::test]
    async fn a_child_left_behind_is_ended_by_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("x.pid");
        let mut left = Command::new("/bin/sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        leftover::record(&pid_file, left.id().unwrap()).unwrap();
        let ended = leftover::end(&pid_file, LIMIT).await.unwrap().unwrap();
        assert_eq!(ended.pid, left.id().unwrap());
        assert!(!ended.killed);
        left.wait().await.unwrap();
        assert!(leftover::end(&pid_file, LIMIT).await.unwrap().is_none(), "the record is gone");
    }

    #[tokio::test]
    async fn a_dropped_supervisor_leaves_no_child() {
        let (supervisor, mut events) = start(shell("echo up; exec sleep 60"));
        wait_for(&mut events, |e| *e == ChildEvent::Line("up".to_owned())).await;
        let pid = supervisor.pid().unwrap();
        drop(supervisor);
        let gone = async {
            while leftover::is_running(pid) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, gone).await.unwrap();
    }
}

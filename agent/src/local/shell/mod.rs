//! `sally-agent sandbox shell PROFILE`: a shell for whoever answers for this host, in the sandbox that a script of that
//! profile would have.
//!
//! Plan, sandbox and limits are those of a run. What a run does not have is the terminal: the sandbox gets one of its own,
//! and `relay` carries bytes between that and the user's, which `raw` switches over and back.
#![forbid(unsafe_code)]

mod raw;
mod relay;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use sally_common::duration;
use sally_common::name::ProfileName;
use sally_common::text::sanitise;
use sally_common::wire::record::RunState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::LocalError;
use super::asked::{Asked, SandboxArgs};
use super::scratch::{Scratch, Talk};
use crate::runtime::outcome;
use crate::runtime::run::conclude::read_said;
use crate::sandbox::{
    Event, Events, ExitRecord, Hold, Outcome, Plan, Program, RunFolder, RunInputs, SandboxError,
};
use raw::Raw;
use relay::{Relay, Stopped};

/// Options of `sally-agent sandbox shell`.
#[derive(Clone, Debug, clap::Args)]
pub struct ShellArgs {
    /// Level of isolation: strict, net, host, admin, or one of --profiles-dir
    #[arg(value_name = "PROFILE")]
    pub profile: ProfileName,
    /// The shell: a name or a path inside the sandbox [default: bash, else sh]
    #[arg(long, value_name = "NAME")]
    pub shell: Option<String>,
    #[allow(missing_docs, reason = "the options' own text is the help")]
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Why there was no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The policy or the launcher does not let it be.
    #[error("{0}")]
    Refused(String),
    /// It could not be opened.
    #[error("{0}")]
    Failed(String),
    /// The same, by what this host lacks.
    #[error(transparent)]
    Local(#[from] LocalError),
}

impl ShellError {
    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            ShellError::Usage(_) => 2,
            ShellError::Refused(_) => 6,
            ShellError::Failed(_) | ShellError::Local(_) => 1,
        }
    }
}

/// The exit code at the time limit, as that of `timeout`.
const TIMED_OUT: u8 = 124;

/// What shells add to the number of a signal.
const BY_SIGNAL: i32 = 128;

/// How long the last output may take to be shown once the shell has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Signals that end a process that does not listen to them. Ctrl-C is none of them while the terminal is raw: it goes to
/// whatever runs inside.
const ENDING: [SignalKind; 7] = [
    SignalKind::hangup(),
    SignalKind::interrupt(),
    SignalKind::quit(),
    SignalKind::terminate(),
    SignalKind::alarm(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// Becomes bash where there is one, with a prompt that says where one is. `$0` is the profile.
const CHOOSE: &str = r#"export PS1
if command -v bash >/dev/null 2>&1; then PS1="[$0] \\w\\$ "; exec bash; fi
PS1="[$0] \$ "; exec sh"#;

/// Opens the shell and stays with it to its end; the exit code. To be called by the process's first thread.
///
/// # Errors
/// There was no shell.
pub async fn run(args: &ShellArgs) -> Result<u8, ShellError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(ShellError::Usage(
            "a shell needs a terminal as its input and output; to run a script in a sandbox use \
             `sally-agent test FILE`"
                .into(),
        ));
    }
    // Before anything is made, so that no signal leaves anything behind.
    let mut signals = Signals::new()?;
    let mut asked = Asked::read(&args.profile, &args.sandbox).map_err(ShellError::Usage)?;
    if let Some(message) = asked.refusal() {
        return Err(ShellError::Refused(message));
    }
    asked.set_env_default("TERM", &terminal_kind());
    let scratch = Scratch::start(asked.purpose(Talk::Later, true)).await?;
    let plan = asked.plan(&scratch, Program::Command, words(args)).map_err(ShellError::Usage)?;
    let plan = Plan { terminal: true, ..plan };
    say(&format!(
        "profile {}, for {} at most; `exit` leaves it\n",
        args.profile,
        duration::show(plan.timeout_ms)
    ));
    let (folder, end) = open(&scratch, &plan, &mut signals).await?;
    conclude(&folder, end, &signals)
}

/// What is executed inside.
fn words(args: &ShellArgs) -> Vec<String> {
    match &args.shell {
        Some(shell) => vec![shell.clone()],
        None => ["sh", "-c", CHOOSE, args.profile.as_str()].map(str::to_owned).to_vec(),
    }
}

/// The kind of the user's terminal, if it is a name that cannot be anything else.
fn terminal_kind() -> String {
    let is_name = |text: &String| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
    };
    std::env::var("TERM").ok().filter(is_name).unwrap_or_else(|| "dumb".to_owned())
}

/// Starts the shell and carries its bytes until it has ended.
async fn open(
    scratch: &Scratch,
    plan: &Plan,
    signals: &mut Signals,
) -> Result<(RunFolder, Event), ShellError> {
    let (folder, handover) =
        RunFolder::create(&scratch.run_dir(0), RunInputs::default()).map_err(LocalError::Sandbox)?;
    let mut events = folder.events().map_err(LocalError::Sandbox)?;
    let started = scratch.launcher().start(0, plan, handover).await.map_err(|error| match error {
        SandboxError::Refused(message) => ShellError::Refused(message),
        other => ShellError::Local(LocalError::Sandbox(other)),
    })?;
    let Some(master) = started.terminal else {
        // It failed already, as its record says.
        drop(started.go);
        let end = follow(&folder, &mut events, signals, None).await;
        return Ok((folder, end));
    };
    if signals.was_ended() {
        return Ok((folder, Event::KeeperGone));
    }
    let failed = |error: io::Error| ShellError::Failed(format!("the terminal cannot be used: {error}"));
    let raw = Raw::enter(io::stdin(), &master).map_err(failed)?;
    let mut relay = Relay::start(master).map_err(failed)?;
    started.go.release();
    let end = follow(&folder, &mut events, signals, Some(&mut relay)).await;
    // What is stuck on its way to a terminal that takes nothing is left behind.
    let _ = tokio::time::timeout(DRAIN_LIMIT, relay.stopped()).await;
    drop(raw);
    Ok((folder, end))
}

/// Waits for the end of the shell, passing on what happens outside. A first reason to end lets it end by itself, another
/// one kills it.
async fn follow(
    folder: &RunFolder,
    events: &mut Events,
    signals: &mut Signals,
    mut relay: Option<&mut Relay>,
) -> Event {
    loop {
        let gone = async {
            match &mut relay {
                Some(relay) => relay.stopped().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.next() => match event {
                Ok(Event::Started | Event::Output) => {}
                Ok(end) => return end,
                Err(error) => {
                    tracing::warn!(%error, "lost sight of the keeper");
                    return Event::KeeperGone;
                }
            },
            heard = signals.next() => match heard {
                Heard::Size => relay.iter().for_each(|relay| relay.resize()),
                Heard::End => end(folder, signals.count > 1),
            },
            stopped = gone => {
                relay = None;
                if stopped == Stopped::Outside {
                    signals.note(SignalKind::hangup());
                    end(folder, signals.count > 1);
                }
            }
        }
    }
}

fn end(folder: &RunFolder, at_once: bool) {
    let told = if at_once { folder.kill() } else { folder.cancel() };
    if let Err(error) = told {
        tracing::warn!(%error, "could not tell the keeper to end the shell");
    }
}

/// Says what the user should know of the end; the exit code.
fn conclude(folder: &RunFolder, end: Event, signals: &Signals) -> Result<u8, ShellError> {
    let exit = folder.exit_record().ok().flatten().filter(|_| end == Event::Exited);
    let by_signal = signals.ended_by.map(|signal| code(BY_SIGNAL + signal));
    let Some(exit) = exit else {
        let gone = "its keeper died under it; what it did may be half done";
        return by_signal.ok_or_else(|| ShellError::Failed(gone.into()));
    };
    let said = read_said(folder, Some(&exit), false);
    let ending = outcome::judge(&exit, &said, false, by_signal.is_some());
    let message = ending.message.unwrap_or_else(|| "it ended".into());
    say_layers(&exit);
    match exit.outcome {
        Outcome::Exited { code: exited } => {
            if exit.limit.is_some_and(|hit| hit.ended) {
                say(&format!("{message}\n"));
            }
            Ok(code(exited))
        }
        Outcome::Signaled { signal } => {
            say(&format!("{message}\n"));
            Ok(code(BY_SIGNAL + signal))
        }
        Outcome::TimedOut { .. } => {
            say("the shell was ended at its time limit (--timeout)\n");
            Ok(TIMED_OUT)
        }
        Outcome::Cancelled { .. } => by_signal.ok_or(ShellError::Failed(message)),
        _ if ending.state == RunState::Rejected => Err(ShellError::Refused(message)),
        _ => Err(ShellError::Failed(message)),
    }
}

/// Names the layers that did not hold, if any.
fn say_layers(exit: &ExitRecord) {
    for (hold, word) in [(Hold::Degraded, "degraded"), (Hold::Absent, "absent")] {
        let names: Vec<_> = exit.layers.iter().filter(|(_, h)| **h == hold).map(|(l, _)| l.name()).collect();
        if !names.is_empty() {
            say(&format!("layers that were {word}: {}\n", names.join(" ")));
        }
    }
}

/// For people, on standard error: standard output is what the shell showed.
fn say(text: &str) {
    // Whoever closed it wants no more.
    let _ = io::stderr().write_all(sanitise(text).as_bytes());
}

fn code(code: i32) -> u8 {
    // NOTE: an exit code has eight bits, and so has a signal with 128 added.
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// What a signal means here.
enum Heard {
    /// The user's window has another size.
    Size,
    /// This process is to end.
    End,
}

/// The signals of this process.
struct Signals {
    size: Signal,
    ending: [Signal; ENDING.len()],
    /// The first one that asked for the end.
    ended_by: Option<i32>,
    /// How many did.
    count: u32,
}

impl Signals {
    fn new() -> Result<Signals, LocalError> {
        let hear = |kind| signal(kind).map_err(LocalError::Launcher);
        let [a, b, c, d, e, f, g] = ENDING.map(hear);
        let ending = [a?, b?, c?, d?, e?, f?, g?];
        Ok(Signals { size: hear(SignalKind::window_change())?, ending, ended_by: None, count: 0 })
    }

    fn note(&mut self, kind: SignalKind) {
        self.ended_by.get_or_insert(kind.as_raw_value());
        self.count += 1;
    }

    async fn next(&mut self) -> Heard {
        let ending = self.ending.iter_mut().map(|signal| Box::pin(signal.recv()));
        let at = tokio::select! {
            _ = self.size.recv() => return Heard::Size,
            (_, at, _) = futures_util::future::select_all(ending) => at,
        };
        self.note(ENDING[at]);
        Heard::End
    }

    /// Whether one that asks for the end came already.
    fn was_ended(&mut self) -> bool {
        use futures_util::FutureExt as _;
        while let Some(heard) = self.next().now_or_never() {
            if matches!(heard, Heard::End) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!((code(0), code(7), code(BY_SIGNAL + 9), code(255)), (0, 7, 137, 255));
        let errors = [ShellError::Usage(String::new()), ShellError::Refused(String::new())];
        assert_eq!(errors.map(|error| error.code()), [2, 6]);
    }
}

//! Isolation: runs one script at a time in each slot, says what was enforced, and never loses the end.
//!
//! This room knows nothing of the broker, of results or of what a script prints. In reading order:
//!
//! - `layer`, `profile`, `plan`, `record`, `paths`: what is asked for and what is answered. Pure data.
//! - `definition`: profiles that an operator defines, read by the launcher. `extras`: their paths and devices as mounts.
//! - `folder`, `client`: the agent's side. Asynchronous, holds no privileges, forks nothing.
//! - `wire`: the messages between all of them.
//! - `launcher`: forks keepers. `keeper`: owns a slot. `attempt`, `capture`: one run as its keeper sees it.
//! - `forker`: where attempts are born. `template`: the root file system. `init`, `stage`, `program`: the way from a fork to the script.
//! - `account`: accounts of the host that scripts may run as.
//! - `descendants`: the end of a tree that has no pid namespace.
//! - `cgroup`, `cgroup_group`, `cgroup_rates`: control groups: where they are, one slot's, and how fast it may go.
//! - `secrets`, `artifacts`, `keep`: what goes into the box and out of it besides a script and its output.
//! - `network`: destinations that a script may connect to. `network_inside`: its own network with them; `network_connector`,
//!   `network_relay`: the way out, `network_confine`: how narrow it is.
//! - `terminal`: the terminal of an interactive shell.
//! - `seccomp`, `landlock`: system calls and files as the kernel itself filters them, behind all else.
//! - `explain`: the same in words, for people.
//! - `verify`: what a sandbox really enforces. `step`: which step failed.
//! - `sys`: system calls; the only `unsafe` code of the project.
//!
//! From `launcher` down every process has one thread and forks without executing anything: a forked copy
//! may use its heap, and starting another program would cost more than the whole sandbox.

mod account;
mod artifacts;
mod attempt;
mod capture;
mod cgroup;
mod cgroup_group;
mod cgroup_rates;
mod client;
mod definition;
mod descendants;
mod explain;
mod extras;
mod folder;
mod forker;
mod init;
mod keep;
mod keeper;
mod landlock;
mod launcher;
mod layer;
mod network;
mod network_confine;
mod network_connector;
mod network_inside;
mod network_relay;
mod paths;
mod plan;
mod profile;
mod program;
mod record;
mod seccomp;
mod secrets;
mod stage;
mod step;
#[cfg(test)]
mod swap_tests;
mod sys;
mod template;
mod terminal;
mod verify;
mod wire;

pub use artifacts::{DoorBytes, NamedFile, NamedFiles};
pub use client::{Launcher, Started, connect_within, spawn_launcher};
pub use definition::{
    Access, DefinedProfile, DefinitionProblem, Definitions, PROFILES_DIR, PathChange, ProfileDefinition,
    Rates,
};
pub use explain::{Explained, Section, explain};
pub use folder::{Event, Events, Go, Handover, RunFolder, RunInputs, Script};
pub use landlock::{WHOLE_ABI as WHOLE_LANDLOCK, abi as landlock_abi};
pub use launcher::{LauncherArgs, UID_BASE, run as run_launcher};
pub use layer::{Hold, Layer, Layers, missing as missing_layers};
pub use network::{CONNECTIONS_MAX, DESTINATIONS_MAX, Destination, LISTENERS_MAX};
pub use paths::{BOX, BoxPaths};
pub use plan::{DEFAULT_PATH, Limits, MAX_PLAN_BYTES, PLAN_VERSION, Plan, Program};
pub use profile::{Policy, Profile, Shape};
pub use record::{
    Collected, ExitRecord, KeptFolder, LimitHit, LimitName, MAX_RECORD_BYTES, NetworkUse, Outcome,
    RECORD_VERSION, StreamCount, Usage,
};
pub use seccomp::table as system_calls;
pub use secrets::{SECRET_NAME_MAX, SECRETS_BYTES_MAX, SECRETS_MAX, check_secret_name};
pub use step::StepError;
pub use terminal::copy_size as copy_terminal_size;
pub use wire::{LauncherInfo, Mode};

/// Readers of bytes that come from another process, for the tests that throw any bytes at them (`fuzz/`).
#[doc(hidden)]
pub mod readers {
    pub use super::secrets::reread as reread_secrets;
    pub use super::wire::reread as reread_message;
}

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What can go wrong between agent, launcher and keeper. How a script ends is no error: see [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file, folder or socket.
    #[error("cannot {action} {}: {error}", path.display())]
    Path {
        /// What was to be done with it.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// A system call without a path.
    #[error("cannot {0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The launcher could not start or go on.
    #[error("cannot start the launcher: {0}")]
    Start(#[source] io::Error),
    /// Another launcher serves the same state folder.
    #[error("another launcher uses {}; stop it first or give this one another --state", .0.display())]
    AlreadyRunning(PathBuf),
    /// Secrets that cannot be handed over. The message holds no value.
    #[error("the secrets cannot be given to the script: {0}")]
    Secrets(String),
    /// The slot still runs an attempt.
    #[error("slot {0} is busy; wait for its exit record")]
    Busy(u16),
    /// Launcher or keeper refused the request; nothing was done.
    #[error("refused by the launcher: {0}")]
    Refused(String),
    /// No keeper could be made for the slot.
    #[error("no sandbox can be made on this host: {0}")]
    Setup(#[source] StepError),
    /// The other end of the connection is gone.
    #[error("the launcher or keeper has gone away")]
    KeeperGone,
    /// No answer in time.
    #[error("the launcher or keeper did not answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// Launcher and agent are of different versions.
    #[error("the launcher speaks version {theirs}, this agent {ours}; restart the one that is older")]
    Version {
        /// The launcher's version of the messages.
        theirs: u32,
        /// This program's.
        ours: u32,
    },
    /// An answer that fits no question.
    #[error("the {0} gave an answer to another question; restart it")]
    Confused(&'static str),
}

/// Closes the calling process's memory to every other process of its account, and forbids core files of it: it
/// holds keys, or the means to start anything. For agent and launcher, before they read anything.
pub fn close_memory() -> Result<(), SandboxError> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| SandboxError::Io("close the memory to others", errno.into()))
}

impl SandboxError {
    fn path(action: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Path { action, path: path.to_owned(), error }
    }
}

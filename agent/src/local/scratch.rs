//! A launcher with one slot in a temporary folder, for what is tried on this host alone. Nothing of it is left when it
//! is dropped; the launcher ends everything by itself if this process is killed.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sally_common::text::sanitise;

use super::LocalError;
use crate::sandbox::{Destination, Launcher, Profile, connect_within};

/// How long a launcher may take to serve.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end before it is killed: longer than it gives its keepers.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// How often a start and an end are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Kernel uids as root: behind those of a launcher with the usual base and the most slots, so that a script tried here is
/// no neighbour of a run of this host's agent. Two tries at one time have different ones, mostly.
pub const UID_BASE: u32 = 202_048;
/// How many uids tries may use: two each, one of them for connections.
pub const UID_COUNT: u32 = 1024;

/// The launcher and its folder.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    child: Child,
    launcher: Launcher,
    talk: Talk,
}

/// What a launcher is for.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// The widest profile.
    pub widest: Profile,
    /// The folder of the operator's profiles.
    pub profiles_dir: PathBuf,
    /// Accounts that it allows.
    pub users: Vec<String>,
    /// Destinations that plans may list beyond the widest profile.
    pub allow: Vec<Destination>,
    /// Where its complaints go.
    pub talk: Talk,
    /// Whether plans may have a terminal.
    pub terminal: bool,
}

/// Where a launcher's complaints go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// To standard error, as they come.
    Aloud,
    /// To nobody.
    Silent,
    /// Into a file, and from there to standard error at the end: no descriptor of a terminal goes into the sandbox, and
    /// nothing is written over what a shell shows.
    Later,
}

/// How much is said of what a launcher complained about.
const LOG_BYTES: u64 = 16 * 1024;

impl Scratch {
    /// Makes the folder and starts the launcher in it. To be called by the process's first thread, whose end ends the
    /// launcher.
    ///
    /// # Errors
    /// The folder cannot be made, or the launcher does not serve.
    pub async fn start(purpose: Purpose) -> Result<Scratch, LocalError> {
        let dir = make_folder(&std::env::temp_dir())?;
        match start_in(&dir, &purpose).await {
            Ok((child, launcher)) => Ok(Scratch { dir, child, launcher, talk: purpose.talk }),
            Err(error) => {
                say_log(&dir, purpose.talk);
                remove(&dir);
                Err(error)
            }
        }
    }

    /// The launcher.
    pub fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    /// A run folder that is not there yet.
    pub fn run_dir(&self, number: usize) -> PathBuf {
        self.dir.join(format!("run-{number}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        end(&mut self.child);
        say_log(&self.dir, self.talk);
        remove(&self.dir);
    }
}

async fn start_in(dir: &Path, purpose: &Purpose) -> Result<(Child, Launcher), LocalError> {
    let socket = dir.join("socket");
    let mut child = spawn(dir, &socket, purpose).map_err(LocalError::Launcher)?;
    let until = Instant::now() + START_LIMIT;
    loop {
        let error = match connect_within(&socket, LOOK_EVERY).await {
            Ok(launcher) => return Ok((child, launcher)),
            Err(error) => error,
        };
        let ended = child.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() >= until {
            end(&mut child);
            return Err(LocalError::Sandbox(error));
        }
    }
}

fn spawn(dir: &Path, socket: &Path, purpose: &Purpose) -> io::Result<Child> {
    let uid_base = UID_BASE + std::process::id() % (UID_COUNT / 2) * 2;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("launcher").args(["--slots", "1", "--stop-kills", "--with-parent"]);
    command.args(["--max-profile", purpose.widest.name(), "--uid-base", &uid_base.to_string()]);
    command.arg("--profiles-dir").arg(&purpose.profiles_dir);
    command.args(purpose.users.iter().flat_map(|user| ["--allow-user", user]));
    command.args(purpose.allow.iter().flat_map(|to| ["--allow".to_owned(), to.to_string()]));
    command.arg("--state").arg(dir.join("state")).arg("--box").arg(dir.join("box"));
    command.arg("--socket").arg(socket);
    // Ctrl-C is for this process, which then ends the attempt as it should be ended.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    if purpose.terminal {
        command.arg("--terminal");
    }
    match purpose.talk {
        Talk::Aloud => {}
        Talk::Silent => drop(command.stderr(Stdio::null())),
        Talk::Later => drop(command.stderr(fs::File::create(dir.join(LOG))?)),
    }
    if std::env::var_os("SALLY_LOG").is_none() {
        command.env("SALLY_LOG", "error");
    }
    command.spawn()
}

/// Ends a launcher with all that runs below it.
fn end(child: &mut Child) {
    // NOTE: a child that was not waited for keeps its id.
    let pid = i32::try_from(child.id()).map(Pid::from_raw);
    if let (Ok(None), Ok(pid)) = (child.try_wait(), pid) {
        let _ = kill(pid, Signal::SIGTERM);
    }
    let until = Instant::now() + STOP_LIMIT;
    while let Ok(None) = child.try_wait() {
        if Instant::now() >= until {
            tracing::warn!("the launcher did not end in time and is killed");
            let _ = child.kill();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The file in which complaints wait.
const LOG: &str = "log";

fn say_log(dir: &Path, talk: Talk) {
    let mut text = Vec::new();
    if talk == Talk::Later
        && let Ok(file) = fs::File::open(dir.join(LOG))
        && file.take(LOG_BYTES).read_to_end(&mut text).is_ok()
    {
        // Whoever closed standard error wants no more.
        let _ = io::stderr().write_all(sanitise(&String::from_utf8_lossy(&text)).as_bytes());
    }
}

/// Makes a folder that nobody else knows of. Every uid may pass through it to the box, and see nothing.
fn make_folder(parent: &Path) -> Result<PathBuf, LocalError> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|e| LocalError::Launcher(io::Error::other(e.to_string())))?;
    let dir = parent.join(format!("sally-{}", HEXLOWER.encode(&random)));
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    let make = |path: &Path, mode| {
        DirBuilder::new().mode(mode).create(path).map_err(|error| LocalError::File {
            what: "make",
            path: path.to_owned(),
            error,
        })
    };
    make(&dir, mode)?;
    make(&dir.join("state"), 0o700)?;
    // Whatever the umask is.
    let _ = fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode));
    Ok(dir)
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::warn!(%error, dir = %dir.display(), "cannot remove a temporary folder");
    }
}

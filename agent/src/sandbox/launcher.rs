//! `sally-agent launcher`: one thread, no network, no keys. Forks a keeper for each slot, hands agents
//! sockets to them, and replaces keepers that died. It is not on the way of a plan.
//!
//! Here are its start and its loop. `args`: what it is told. `grant`: what it grants. `slots`: its keepers. `agents`: its
//! socket. `stop`: its end.
#![forbid(unsafe_code)]

mod agents;
mod args;
mod grant;
mod slots;
mod stop;

use super::SandboxError;
use super::account::Accounts;
use super::artifacts::NamedFiles;
use super::cgroup::Parent;
use super::definition::Definitions;
use super::keeper;
use super::layer::Layers;
use super::paths::BOX;
use super::step::StepError;
use super::verify::NamespaceIds;
use super::wire::Mode;
use agents::{Connection, listen_on};
pub use args::{LauncherArgs, UID_BASE};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::stat;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid, getppid};
use sally_common::notify::{self, Watchdog};
use slots::Slot;
use std::fs::{self, File, Permissions};
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stop::end_strays;

/// How long a start waits for the state folder's lock.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// How often a slot of an earlier launcher's keeper is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Serves until SIGTERM or SIGINT.
///
/// `named_files` tells keepers which files a script named to be kept: this room does not know how scripts speak.
pub fn run(args: &LauncherArgs, named_files: NamedFiles) -> Result<(), SandboxError> {
    if args.with_parent {
        prctl::set_pdeathsig(Signal::SIGTERM).map_err(|e| SandboxError::Start(e.into()))?;
    }
    if args.end_strays {
        end_strays(&args.state, args.slots);
        return Ok(());
    }
    let mut launcher = Launcher::new(args, named_files)?;
    launcher.start_keepers();
    launcher.serve()
}

struct Launcher {
    args: LauncherArgs,
    mode: Mode,
    host_box: PathBuf,
    host: NamespaceIds,
    host_root_device: u64,
    task_program: PathBuf,
    named_files: NamedFiles,
    groups: Parent,
    definitions: Definitions,
    accounts: Accounts,
    listener: OwnedFd,
    signals: SignalFd,
    connections: Vec<Connection>,
    next_connection: u64,
    slots: Vec<Slot>,
    layers: Layers,
    trouble: Option<StepError>,
    /// Held while this launcher lives: one launcher for one state folder.
    _lock: File,
}

impl Launcher {
    fn new(args: &LauncherArgs, named_files: NamedFiles) -> Result<Self, SandboxError> {
        let mode = if geteuid().is_root() { Mode::Root } else { Mode::User };
        fs::create_dir_all(&args.state).map_err(|e| SandboxError::path("create", &args.state, e))?;
        let lock_path = args.state.join("launcher.lock");
        let lock = File::create(&lock_path).map_err(|e| SandboxError::path("create", &lock_path, e))?;
        // A launcher that was killed just now may have left a keeper that did not yet close what it inherited.
        let until = Instant::now() + LOCK_LIMIT;
        while lock.try_lock().is_err() {
            if Instant::now() >= until {
                return Err(SandboxError::AlreadyRunning(args.state.clone()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let state = fs::canonicalize(&args.state).map_err(|e| SandboxError::path("find", &args.state, e))?;
        let default_box = if mode == Mode::Root { PathBuf::from(BOX) } else { state.join("box") };
        let host_box = args.host_box.clone().unwrap_or(default_box);
        make_box(&host_box)?;
        let task_program = match &args.task_program {
            Some(path) => path.clone(),
            None => {
                std::env::current_exe().map_err(|e| SandboxError::path("find", Path::new("itself"), e))?
            }
        };
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().map_err(|e| SandboxError::Start(e.into()))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(|e| SandboxError::Start(e.into()))?;
        // 0 is a process that this one cannot see.
        let starter = args.with_parent.then(getppid).filter(|pid| pid.as_raw() > 0);
        let groups = Parent::find(&keeper::started_at("self").unwrap_or_default(), starter);
        if let Parent::Nowhere(why) = &groups {
            tracing::info!(why, "no control groups: limits hold for each process");
        }
        let definitions = args.profiles_dir.as_deref().map(Definitions::read).unwrap_or_default();
        definitions.problems.iter().for_each(|problem| tracing::error!("{problem}"));
        for (name, problem) in definitions.iter().filter_map(|(name, d)| Some((name, d.err()?))) {
            tracing::error!(profile = %name, "{problem}");
        }
        let accounts = Accounts::find(&args.users, mode, args.socket_owner);
        let listener = listen_on(&args.socket, args.socket_owner)?;
        Ok(Self {
            args: LauncherArgs { state, ..args.clone() },
            mode,
            host_box,
            host: NamespaceIds::own(),
            host_root_device: stat("/").map_or(0, |s| s.st_dev),
            task_program,
            named_files,
            groups,
            definitions,
            accounts,
            listener,
            signals,
            connections: Vec::new(),
            next_connection: 0,
            slots: (0..args.slots).map(|_| Slot::default()).collect(),
            layers: Layers::new(),
            trouble: None,
            _lock: lock,
        })
    }

    fn serve(&mut self) -> Result<(), SandboxError> {
        tracing::info!(socket = %self.args.socket.display(), slots = self.args.slots, mode = ?self.mode, "launcher serves");
        notify::ready(&self.words());
        let mut watchdog = Watchdog::of_environment();
        loop {
            watchdog.feed();
            let ready = self.wait(watchdog.every()).map_err(|e| SandboxError::Start(e.into()))?;
            if ready.signals && self.hear_signals() {
                notify::stopping();
                return self.stop();
            }
            for slot in ready.keepers {
                self.hear_keeper(slot);
            }
            for id in ready.connections {
                self.hear_connection(id);
            }
            if ready.listener {
                self.accept();
            }
            self.give_up_waiting(Instant::now());
        }
    }

    /// In a few words, for the service manager.
    fn words(&self) -> String {
        format!("{} slots, profiles up to {}", self.args.slots, self.args.max_profile)
    }

    /// Waits until something can be done, for `limit` at most.
    fn wait(&self, limit: Option<Duration>) -> nix::Result<Ready> {
        let poll_in = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let keepers: Vec<(u16, BorrowedFd<'_>)> = (0..)
            .zip(&self.slots)
            .filter_map(|(number, slot)| Some((number, slot.keeper.as_ref()?.socket.as_fd())))
            .collect();
        let mut fds = vec![poll_in(self.signals.as_fd()), poll_in(self.listener.as_fd())];
        fds.extend(keepers.iter().map(|(_, fd)| poll_in(*fd)));
        fds.extend(self.connections.iter().map(|c| poll_in(c.socket.as_fd())));
        let next = self.slots.iter().flat_map(|slot| &slot.waiting).map(|(_, _, until)| *until).min();
        let limit = limit.map(|limit| Instant::now() + limit);
        let next = next.into_iter().chain(limit).min();
        let timeout = next.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut ready = fds.iter().map(|fd| fd.any() == Some(true));
        Ok(Ready {
            signals: ready.next() == Some(true),
            listener: ready.next() == Some(true),
            keepers: keepers
                .iter()
                .filter(|_| ready.next() == Some(true))
                .map(|(number, _)| *number)
                .collect(),
            connections: self
                .connections
                .iter()
                .filter(|_| ready.next() == Some(true))
                .map(|c| c.id)
                .collect(),
        })
    }

    /// Reaps, and says whether to stop.
    fn hear_signals(&mut self) -> bool {
        let mut stop = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            let is = |signal: Signal| info.ssi_signo == signal as u32;
            if is(Signal::SIGHUP) && !std::io::stderr().is_terminal() {
                notify::reloading();
                tracing::warn!(
                    "a launcher reads no configuration: other options need a restart, which ends no run"
                );
                notify::ready(&self.words());
                continue;
            }
            stop |= !is(Signal::SIGCHLD);
        }
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) =
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
        {
            self.bury(pid, !stop);
        }
        stop
    }
}

struct Ready {
    signals: bool,
    listener: bool,
    keepers: Vec<u16>,
    connections: Vec<u64>,
}

/// Makes the box's mount point, reachable for every uid.
fn make_box(path: &Path) -> Result<(), SandboxError> {
    if path.is_dir() {
        return Ok(());
    }
    let mut made = Vec::new();
    for folder in path.ancestors().take_while(|folder| !folder.exists()) {
        made.push(folder.to_owned());
    }
    for folder in made.iter().rev() {
        fs::create_dir(folder)
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o755)))
            .map_err(|e| SandboxError::path("create", folder, e))?;
    }
    Ok(())
}

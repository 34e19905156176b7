//! `sally-agent launcher`: one thread, no network, no keys. Forks a keeper for each slot, hands agents
//! sockets to them, and replaces keepers that died. It is not on the way of a plan.
#![forbid(unsafe_code)]

use super::SandboxError;
use super::account::{Account, Accounts};
use super::artifacts::NamedFiles;
use super::cgroup::Parent;
use super::cgroup_group::Group;
use super::definition::{Definitions, ProfileDefinition};
use super::keeper::{self, Setup};
use super::landlock;
use super::layer::{Layer, Layers};
use super::network::Destination;
use super::paths::BOX;
use super::plan::Limits;
use super::profile::{Policy, Profile, Shape};
use super::seccomp::Filters;
use super::step::StepError;
use super::sys::{self, Fork};
use super::verify::NamespaceIds;
use super::wire::{self, LauncherInfo, Mode, Notice, Order, Reply, Request, WIRE_VERSION};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill as send_signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::stat;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, Uid, chown, getegid, geteuid, getpid, getppid};
use sally_common::notify::{self, Watchdog};
use std::fs::{self, File, Permissions};
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Options of `sally-agent launcher`.
#[derive(Clone, Debug, clap::Args)]
pub struct LauncherArgs {
    /// Unix socket (SOCK_SEQPACKET) on which the agent asks for slots
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Folder for lock files and, for an ordinary user, the mount point of the box
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Number of attempts at one time
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub slots: u16,
    /// Where profile host mounts the box: an empty folder that every uid can reach. Default: /run/sally/box
    /// as root, STATE/box else
    #[arg(long = "box", value_name = "PATH")]
    pub host_box: Option<PathBuf>,
    /// Kernel uid and gid of slot 0 when started as root; slot N has this plus N
    #[arg(long, default_value_t = UID_BASE, value_name = "UID")]
    pub uid_base: u32,
    /// Account that may use the socket, besides root and the launcher's own: a uid, or a name in /etc/passwd
    #[arg(long, value_name = "ACCOUNT", value_parser = account)]
    pub socket_owner: Option<u32>,
    /// Widest built-in profile that a plan may ask for: strict, net, host, or admin (root on the host; only where this
    /// launcher is root)
    #[arg(long, default_value = "host", value_name = "PROFILE")]
    pub max_profile: Profile,
    /// Folder with profiles of this host's operator, NAME.toml each: all of them may be asked for. It and its files must
    /// be root's or this account's, and nobody else's to write
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// Account of this host that a plan may ask to run as; repeatable; only where this launcher is root
    #[arg(long = "allow-user", value_name = "NAME")]
    pub users: Vec<String>,
    /// With --max-profile strict: destination that plans may list all the same; repeatable
    #[arg(long = "allow", value_name = "HOST:PORT")]
    pub allow: Vec<Destination>,
    /// Longest timeout that a plan may ask for, in seconds
    #[arg(long, default_value_t = 30 * 24 * 3600, value_name = "SECONDS")]
    pub max_timeout: u64,
    /// Program that is sally-task inside. Default: this one
    #[arg(long, value_name = "PATH")]
    pub task_program: Option<PathBuf>,
    /// On SIGTERM kill running attempts instead of leaving them to their keepers
    #[arg(long)]
    pub stop_kills: bool,
    /// End, as on SIGTERM, when the process that started this one ends (the thread that did, to be exact)
    #[arg(long)]
    pub with_parent: bool,
    /// Kill what keepers of a dead launcher still run, and end: for whoever started that launcher with --stop-kills
    #[arg(long, hide = true)]
    pub end_strays: bool,
    /// Let plans have a terminal: for `sandbox shell`, on this host alone
    #[arg(long, hide = true)]
    pub terminal: bool,
    /// For tests: leave one layer out, to see the report change
    #[arg(long = "break", value_name = "LAYER", hide = true)]
    pub broken: Vec<Layer>,
}

/// The uid of an account. Names are looked up in the file: what else knows accounts would be asked through libraries
/// that a static program does not have.
fn account(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let file = fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
    let found = file.lines().find_map(|line| uid_of(line, text));
    found.ok_or_else(|| "no such account in /etc/passwd; name one that is there, or a uid".to_owned())
}

/// The uid in a line of `/etc/passwd`, if it is of this account.
fn uid_of(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':');
    let is_it = fields.next() == Some(name);
    fields.nth(1).filter(|_| is_it)?.parse().ok()
}

/// Kernel uid of slot 0 under a root launcher that is told no other.
pub const UID_BASE: u32 = 200_000;

/// How long a request for a slot waits for the slot to become free.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// How long the end waits for keepers that should end with the launcher.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How long a start waits for the state folder's lock.
const LOCK_LIMIT: Duration = Duration::from_secs(1);

/// How often a slot of an earlier launcher's keeper is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Agents connected at one time: the one that works, and a few that come and go.
const MAX_CONNECTIONS: usize = 16;

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

struct Connection {
    id: u64,
    socket: OwnedFd,
}

#[derive(Default)]
struct Slot {
    keeper: Option<Handle>,
    /// Who waits for it: connection, kind of plans, until when.
    waiting: Vec<(u64, Shape, Instant)>,
}

/// A keeper as its launcher holds it.
struct Handle {
    pid: Pid,
    socket: OwnedFd,
    shape: Shape,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Idle,
    Busy,
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

    fn start_keepers(&mut self) {
        for slot in 0..self.args.slots {
            self.start_keeper(slot, Shape::built_in(Profile::Strict));
        }
    }

    /// Forks a keeper for a slot, in place of the handle that may be there.
    fn start_keeper(&mut self, slot: u16, shape: Shape) {
        let (socket, end) = match wire::pair() {
            Ok(pair) => pair,
            Err(errno) => return self.note_trouble(slot, StepError::new("launcher", errno, "socket pair")),
        };
        let setup = match self.setup(slot, &shape) {
            Ok(setup) => setup,
            Err(message) => return self.note_trouble(slot, StepError::other("profile", message)),
        };
        let rates = setup.definition.as_ref().map(|definition| definition.rates).unwrap_or_default();
        let group = self.groups.open(slot, &rates).without(&self.args.broken);
        match sys::fork() {
            Ok(Fork::Child) => keeper::enter(Setup { group, ..setup }, end),
            Ok(Fork::Parent(pid)) => {
                let handle = Handle { pid, socket, shape, state: State::Starting };
                self.slots[usize::from(slot)].keeper = Some(handle);
            }
            Err(errno) => self.note_trouble(slot, StepError::new("launcher", errno, "forking a keeper")),
        }
    }

    /// The kernel uid of a slot's scripts in the usual profiles.
    fn uid_of(&self, slot: u16) -> u32 {
        match self.mode {
            Mode::Root => self.args.uid_base + u32::from(slot),
            Mode::User => geteuid().as_raw(),
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            max_profile: self.args.max_profile,
            destinations: self.args.allow.clone(),
            ceiling: Limits::CEILING,
            max_timeout_ms: self.args.max_timeout.saturating_mul(1000),
            terminal: self.args.terminal,
        }
    }

    /// The definition and the account that a keeper of this kind needs, if this launcher makes such; the message says
    /// why not. Here the launcher decides: what an agent says beside a name counts for nothing.
    fn parts(&self, shape: &Shape) -> Result<(Option<Arc<ProfileDefinition>>, Option<Account>), String> {
        let profile = shape.profile;
        self.policy().check_profile(shape)?;
        if profile == Profile::Admin && self.mode != Mode::Root {
            return Err("profile admin is root on the host: its launcher must be started as root".into());
        }
        let definition = match &shape.defined {
            None => None,
            Some(name) => {
                let definition = self.definitions.get(name)?;
                if definition.base != profile {
                    let base = definition.base;
                    return Err(format!(
                        "profile {name} starts from {base} here, not from {profile}: ask again"
                    ));
                }
                Some(definition.clone())
            }
        };
        let account = match &shape.user {
            None => None,
            Some(_) if profile == Profile::Admin => {
                return Err("profile admin is root: ask for an account in another profile".into());
            }
            Some(user) => Some(self.accounts.get(user)?.clone()),
        };
        Ok((definition, account))
    }

    /// What a keeper of this kind is made from.
    fn setup(&self, slot: u16, shape: &Shape) -> Result<Setup, String> {
        let (definition, account) = self.parts(shape)?;
        let profile = shape.profile;
        let (uid, gid) = match (&account, profile, self.mode) {
            (Some(Account { uid, gid, .. }), ..) => (*uid, *gid),
            (None, Profile::Admin, _) => (0, 0),
            (None, _, Mode::Root) => (self.uid_of(slot), self.uid_of(slot)),
            (None, _, Mode::User) => (geteuid().as_raw(), getegid().as_raw()),
        };
        let own_list = definition.as_ref().is_some_and(|definition| definition.network_allow.is_some());
        if shape.listed && own_list {
            return Err(format!("profile {} has its own list of destinations", shape.name()));
        }
        let listed = shape.listed || own_list;
        let filters = Filters::new(profile, listed, definition.as_deref());
        Ok(Setup {
            slot,
            shape: shape.clone(),
            profile,
            account,
            listed,
            mode: self.mode,
            uid,
            gid,
            // Behind those of the slots.
            connector_uid: self.uid_of(slot).saturating_add(u32::from(self.args.slots)),
            policy: self.policy(),
            host_box: self.host_box.clone(),
            task_program: self.task_program.clone(),
            lock: keeper::lock_path(&self.args.state, slot),
            host: self.host,
            host_root_device: self.host_root_device,
            keeper_mount: 0,
            filters: filters.inspect_err(|error| tracing::error!("{error}")).ok(),
            definition,
            named_files: self.named_files,
            group: Group::default(),
            broken: self.args.broken.clone(),
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

    /// Notes that a keeper is dead, and puts another in its place unless it could not be built at all.
    fn bury(&mut self, pid: Pid, replace: bool) {
        let found = (0..).zip(&self.slots).find(|(_, s)| s.keeper.as_ref().is_some_and(|k| k.pid == pid));
        let Some((slot, _)) = found.map(|(number, _)| (number, ())) else { return };
        self.hear_keeper(slot); // Its last words may still be unread.
        let Some(handle) = self.slots[usize::from(slot)].keeper.take_if(|k| k.pid == pid) else { return };
        if handle.state == State::Starting {
            let error = self
                .trouble
                .clone()
                .unwrap_or_else(|| StepError::other("keeper", "the keeper ended while it was being built"));
            self.note_trouble(slot, error);
        } else if replace {
            tracing::warn!(slot, pid = pid.as_raw(), "keeper died, starting another");
            self.start_keeper(slot, handle.shape);
        }
    }

    /// A slot without a keeper: tells all who wait for it. The next request tries again.
    fn note_trouble(&mut self, slot: u16, error: StepError) {
        tracing::error!(slot, step = error.step, "keeper could not be made: {}", error.message);
        for (id, _, _) in std::mem::take(&mut self.slots[usize::from(slot)].waiting) {
            self.reply(id, &Reply::Failed(error.clone()), &[]);
        }
        self.trouble = Some(error);
    }

    fn hear_keeper(&mut self, slot: u16) {
        loop {
            let Some(handle) = &mut self.slots[usize::from(slot)].keeper else { return };
            match wire::receive::<Notice>(handle.socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Notice::Ready(layers), _))) => {
                    handle.state = State::Idle;
                    // Whoever was in this slot before is gone, and with the last one a group may be.
                    self.groups.sweep();
                    if handle.shape == Shape::built_in(Profile::Strict) {
                        self.layers = layers;
                    }
                    self.trouble = None;
                    self.grant(slot);
                }
                Ok(Some((Notice::Idle, _))) => {
                    handle.state = State::Idle;
                    self.grant(slot);
                }
                Ok(Some((Notice::Busy, _))) => handle.state = State::Busy,
                Ok(Some((Notice::Failed(error), _))) => {
                    handle.state = State::Starting;
                    self.trouble = Some(error);
                }
                // Its death comes as a signal.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = sys::accept(self.listener.as_fd()) else { return };
        let allowed = getsockopt(&socket, sockopt::PeerCredentials).is_ok_and(|peer| {
            let uid = peer.uid();
            uid == 0 || uid == geteuid().as_raw() || Some(uid) == self.args.socket_owner
        });
        if !allowed || self.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!(allowed, connections = self.connections.len(), "connection refused");
            return;
        }
        self.next_connection += 1;
        self.connections.push(Connection { id: self.next_connection, socket });
    }

    fn hear_connection(&mut self, id: u64) {
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else { return };
        match wire::receive::<Request>(connection.socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Request::Info, _))) => self.reply(id, &Reply::Info(self.info()), &[]),
            Ok(Some((Request::Open { slot, shape }, _))) => self.open(id, slot, shape),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EBADMSG | Errno::EMSGSIZE) => {
                self.reply(id, &Reply::Refused("the request cannot be read".into()), &[]);
            }
            Ok(None) | Err(_) => self.connections.retain(|c| c.id != id),
        }
    }

    /// Gives a connection a socket to a keeper of the slot, now or as soon as there is one.
    fn open(&mut self, id: u64, slot: u16, shape: Shape) {
        if slot >= self.args.slots {
            let message = format!("there is no slot {slot}; this launcher has {}", self.args.slots);
            return self.reply(id, &Reply::Refused(message), &[]);
        }
        if let Err(message) = self.parts(&shape) {
            return self.reply(id, &Reply::Refused(message), &[]);
        }
        self.slots[usize::from(slot)].waiting.push((id, shape.clone(), Instant::now() + OPEN_LIMIT));
        if self.slots[usize::from(slot)].keeper.is_none() {
            self.start_keeper(slot, shape);
        }
        self.grant(slot);
    }

    /// Serves those who wait for an idle slot. The last one gets the keeper, as an agent that restarted does.
    fn grant(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let Some(handle) = slot.keeper.as_mut().filter(|handle| handle.state == State::Idle) else { return };
        let Some((_, wanted, _)) = slot.waiting.first().cloned() else { return };
        if handle.shape != wanted {
            // Made for another root: it ends, and the new one waits for the slot's lock until it has.
            let _ =
                wire::send(handle.socket.as_fd(), &Order::Stop { kill: false }, &[], MsgFlags::MSG_DONTWAIT);
            slot.keeper = None;
            return self.start_keeper(number, wanted);
        }
        let first = slot.waiting.remove(0);
        let id = first.0;
        let given = wire::pair().and_then(|(client, end)| {
            sally_common::fail::point("launcher.client.before");
            wire::send(handle.socket.as_fd(), &Order::Client, &[end.as_fd()], MsgFlags::MSG_DONTWAIT)?;
            Ok(client)
        });
        match given {
            Ok(client) => self.reply(id, &Reply::Opened, &[client.as_fd()]),
            Err(Errno::EPIPE) => {
                // It has died, of which the signal is on its way: whoever waits gets the next one.
                handle.state = State::Busy;
                return slot.waiting.insert(0, first);
            }
            Err(errno) => {
                let error = StepError::new("launcher", errno, "handing over the keeper's socket");
                self.reply(id, &Reply::Failed(error), &[]);
            }
        }
        self.grant(number);
    }

    fn give_up_waiting(&mut self, now: Instant) {
        let mut late = Vec::new();
        for slot in &mut self.slots {
            late.extend(slot.waiting.extract_if(.., |(_, _, until)| *until <= now).map(|(id, _, _)| id));
        }
        for id in late {
            self.reply(id, &Reply::Busy, &[]);
        }
    }

    /// Answers without waiting: an agent that does not read its answers loses its connection.
    fn reply(&mut self, id: u64, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else { return };
        if wire::send(connection.socket.as_fd(), reply, fds, MsgFlags::MSG_DONTWAIT).is_err() {
            self.connections.retain(|c| c.id != id);
        }
    }

    fn info(&self) -> LauncherInfo {
        let busy = |slot: &Slot| slot.keeper.as_ref().is_none_or(|k| k.state != State::Idle);
        LauncherInfo {
            wire: WIRE_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: getpid().as_raw(),
            mode: self.mode,
            uid_base: self.uid_of(0),
            slots: self.args.slots,
            max_profile: self.args.max_profile,
            host_box: self.host_box.to_string_lossy().into_owned(),
            busy: (0..).zip(&self.slots).filter(|(_, slot)| busy(slot)).map(|(number, _)| number).collect(),
            layers: self.layers.clone(),
            landlock_abi: landlock::abi(),
            trouble: self.trouble.clone(),
            defined: self.definitions.summary(),
            users: self.accounts.names(),
        }
    }

    /// Ends idle keepers and, if so configured, running attempts; leaves the others to finish.
    fn stop(&mut self) -> Result<(), SandboxError> {
        let kill = self.args.stop_kills;
        let _ = fs::remove_file(&self.args.socket);
        let mut left: Vec<Pid> = Vec::new();
        for handle in self.slots.iter().filter_map(|slot| slot.keeper.as_ref()) {
            let _ = wire::send(handle.socket.as_fd(), &Order::Stop { kill }, &[], MsgFlags::MSG_DONTWAIT);
            if handle.state == State::Starting {
                // Perhaps it waits for the slot, where no message reaches it. It has nothing to lose.
                let _ = send_signal(handle.pid, Signal::SIGKILL);
            }
            if kill || handle.state != State::Busy {
                left.push(handle.pid);
            }
        }
        let until = Instant::now() + STOP_LIMIT;
        loop {
            left.retain(|pid| {
                matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
            });
            let wait = until.saturating_duration_since(Instant::now());
            if left.is_empty() || wait.is_zero() {
                break;
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
        if !left.is_empty() {
            tracing::warn!(keepers = left.len(), "keepers did not end in time");
        }
        if kill {
            end_strays(&self.args.state, self.args.slots);
        }
        // The last of a tree leave their group a moment after their keeper is gone; runs that go on keep theirs.
        let work_goes_on =
            !kill && self.slots.iter().filter_map(|s| s.keeper.as_ref()).any(|k| k.state == State::Busy);
        while !self.groups.remove(self.args.slots) && !work_goes_on && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// Kills keepers that a launcher before this one left at work: no message reaches them, but each holds its slot's
/// lock and has written down who it is. Waits, for a bounded time, until their slots are free.
fn end_strays(state: &Path, slots: u16) {
    let until = Instant::now() + STOP_LIMIT;
    for slot in 0..slots {
        let path = keeper::lock_path(state, slot);
        let Ok(file) = File::open(&path) else { continue };
        while file.try_lock().is_err() {
            if Instant::now() >= until {
                tracing::warn!(slot, "a keeper of an earlier launcher did not end in time");
                break;
            }
            if let Some(pid) = keeper::owner(&path) {
                let _ = send_signal(pid, Signal::SIGKILL);
            }
            // Nothing tells of the end of a process that is nobody's child here.
            std::thread::sleep(LOOK_EVERY);
        }
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

fn listen_on(path: &Path, owner: Option<u32>) -> Result<OwnedFd, SandboxError> {
    let failed = |errno: Errno| SandboxError::path("listen on", path, errno.into());
    // The state folder's lock is held, so a socket that is there belongs to nobody.
    let _ = fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixAddr::new(path).and_then(|address| bind(socket.as_raw_fd(), &address));
    nix::sys::stat::umask(before);
    bound.map_err(failed)?;
    if let Some(owner) = owner {
        chown(path, Some(Uid::from_raw(owner)), None).map_err(failed)?;
    }
    listen(&socket, Backlog::new(16).unwrap_or(Backlog::MAXCONN)).map_err(failed)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_numbers_or_names_of_the_file() {
        assert_eq!(account("4711"), Ok(4711));
        assert_eq!(account("root"), Ok(0));
        assert!(account("no-such-account-here").is_err());
        assert_eq!(uid_of("web:x:33:34:Web:/srv:/bin/false", "web"), Some(33));
        assert_eq!(uid_of("webber:x:34:34:Web:/srv:/bin/false", "web"), None);
        assert_eq!(uid_of("web", "web"), None);
    }
}

//! The agent's side: asks the launcher for a keeper, gives the keeper plans. Asynchronous, one thread.
#![forbid(unsafe_code)]

use super::SandboxError;
use super::definition::DefinedProfile;
use super::folder::{Go, Handover};
use super::paths::{BOX, BoxPaths};
use super::plan::Plan;
use super::profile::{Policy, Profile, Shape};
use super::wire::{self, Answer, LauncherInfo, Mode, PlanFds, Reply, Request, WIRE_VERSION};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, socket};
use sally_common::name::ProfileName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// How long a keeper or launcher may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to the launcher, and the keepers it gave. Survives a launcher that is replaced.
#[derive(Debug)]
pub struct Launcher {
    path: PathBuf,
    /// Taken out while it is asked, so that an answer nobody waited for is never taken for another.
    socket: Mutex<Option<Packets>>,
    info: RwLock<Arc<LauncherInfo>>,
    keepers: Mutex<HashMap<u16, Keeper>>,
}

#[derive(Debug)]
struct Keeper {
    shape: Shape,
    socket: Packets,
}

/// An attempt that a keeper has accepted and prepares.
#[derive(Debug)]
pub struct Started {
    /// Lets the script start.
    pub go: Go,
    /// The keeper's process id, for logs.
    pub keeper_pid: i32,
    /// The id of the init of the attempt's pid namespace, for logs. 0 if there is none.
    pub init_pid: i32,
    /// The master of the terminal that the plan asked for. `None`: it asked for none, or the attempt has failed already
    /// and its exit record says why.
    pub terminal: Option<OwnedFd>,
}

/// What a keeper said when it took a plan.
struct Accepted {
    keeper_pid: i32,
    init_pid: i32,
    terminal: Option<OwnedFd>,
}

impl Accepted {
    fn with(self, go: Go) -> Started {
        let Accepted { keeper_pid, init_pid, terminal } = self;
        Started { go, keeper_pid, init_pid, terminal }
    }
}

impl Launcher {
    /// Connects to a launcher's socket and asks who it is.
    pub async fn connect(path: &Path) -> Result<Launcher, SandboxError> {
        let socket = Packets::connect(path)?;
        let info = ask_info(&socket).await?;
        let socket = Mutex::new(Some(socket));
        let info = RwLock::new(Arc::new(info));
        Ok(Launcher { path: path.to_owned(), socket, info, keepers: Mutex::default() })
    }

    /// What the launcher said about itself when it was asked last: when it was connected to, at least.
    pub fn info(&self) -> Arc<LauncherInfo> {
        self.info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, info: LauncherInfo) -> Arc<LauncherInfo> {
        let info = Arc::new(info);
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = info.clone();
        info
    }

    /// Asks the launcher about itself again: which slots are busy, what a sandbox enforces.
    pub async fn refresh(&self) -> Result<Arc<LauncherInfo>, SandboxError> {
        match self.ask_launcher(&Request::Info).await? {
            (Reply::Info(info), _) => Ok(self.learn(info)),
            _ => Err(SandboxError::Confused("launcher")),
        }
    }

    /// Where things are inside a sandbox of this profile.
    pub fn box_paths(&self, profile: Profile) -> BoxPaths {
        self.info().box_paths(profile)
    }

    /// Gives a plan to the slot's keeper. When this returns, the sandbox is being completed; the script
    /// waits for [`Go::release`]. From here on the run folder tells everything.
    ///
    /// A slot is for one attempt at a time; one that still runs is [`SandboxError::Busy`].
    pub async fn start(&self, slot: u16, plan: &Plan, handover: Handover) -> Result<Started, SandboxError> {
        let Handover { fds, go } = handover;
        let known = self.keepers.lock().await.remove(&slot).filter(|keeper| {
            let Shape { profile, defined, user, listed, terminal } = &keeper.shape;
            (*profile, defined, user, *listed, *terminal)
                == (plan.profile, &plan.defined, &plan.user, plan.is_listed(), plan.terminal)
        });
        if let Some(keeper) = known {
            match self.hand_over(slot, keeper, plan, &fds).await {
                // The keeper we knew was replaced meanwhile. Nothing has started: nobody said go.
                Err(SandboxError::KeeperGone) => {}
                done => return done.map(|accepted| accepted.with(go)),
            }
        }
        let keeper = self.open(slot, plan.shape()).await?;
        Ok(self.hand_over(slot, keeper, plan, &fds).await?.with(go))
    }

    /// Sends a plan. The keeper is remembered unless its answer did not come.
    async fn hand_over(
        &self,
        slot: u16,
        keeper: Keeper,
        plan: &Plan,
        fds: &PlanFds,
    ) -> Result<Accepted, SandboxError> {
        let (answer, fds) = keeper.socket.ask::<Answer>(plan, &fds.list()).await?;
        self.keepers.lock().await.insert(slot, keeper);
        match answer {
            Answer::Accepted { keeper: keeper_pid, init: init_pid } => {
                Ok(Accepted { keeper_pid, init_pid, terminal: fds.into_iter().next() })
            }
            Answer::Refused(message) => Err(SandboxError::Refused(message)),
            Answer::Busy => Err(SandboxError::Busy(slot)),
        }
    }

    async fn open(&self, slot: u16, shape: Shape) -> Result<Keeper, SandboxError> {
        let (reply, fds) = self.ask_launcher(&Request::Open { slot, shape: shape.clone() }).await?;
        match (reply, fds.into_iter().next()) {
            (Reply::Opened, Some(fd)) => Ok(Keeper { shape, socket: Packets::new(fd)? }),
            (Reply::Busy, _) => Err(SandboxError::Busy(slot)),
            (Reply::Refused(message), _) => Err(SandboxError::Refused(message)),
            (Reply::Failed(error), _) => Err(SandboxError::Setup(error)),
            (Reply::Opened | Reply::Info(_), _) => Err(SandboxError::Confused("launcher")),
        }
    }

    /// Asks the launcher; one that was replaced since the last question is connected to again.
    async fn ask_launcher(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), SandboxError> {
        let mut held = self.socket.lock().await;
        if let Some(socket) = held.take() {
            match socket.ask::<Reply>(request, &[]).await {
                Err(SandboxError::KeeperGone) => {}
                done => {
                    *held = done.is_ok().then_some(socket);
                    return done;
                }
            }
        }
        let socket = Packets::connect(&self.path)?;
        self.learn(ask_info(&socket).await?);
        let reply = socket.ask::<Reply>(request, &[]).await;
        *held = reply.is_ok().then_some(socket);
        reply
    }
}

/// Asks a launcher who it is and whether it speaks the same version.
async fn ask_info(socket: &Packets) -> Result<LauncherInfo, SandboxError> {
    let (reply, _) = socket.ask::<Reply>(&Request::Info, &[]).await?;
    let Reply::Info(info) = reply else { return Err(SandboxError::Confused("launcher")) };
    if info.wire != WIRE_VERSION {
        return Err(SandboxError::Version { theirs: info.wire, ours: WIRE_VERSION });
    }
    Ok(info)
}

impl LauncherInfo {
    /// Where things are inside a sandbox of this profile.
    pub fn box_paths(&self, profile: Profile) -> BoxPaths {
        match profile {
            Profile::Strict | Profile::Net => BoxPaths::new(BOX),
            Profile::Host | Profile::Admin => BoxPaths::new(&self.host_box),
        }
    }

    /// As [`LauncherInfo::shape_of`], if this launcher makes such sandboxes; the message says why not.
    pub fn allowed(&self, name: &ProfileName) -> Result<Shape, String> {
        let shape = self.shape_of(name)?;
        let policy = Policy { max_profile: self.max_profile, ..Policy::default() };
        policy.check_profile(&shape)?;
        if shape.profile == Profile::Admin && self.mode != Mode::Root {
            return Err(format!("profile {name} is root on the host, and the launcher is not root"));
        }
        Ok(shape)
    }

    /// What a plan must say to be carried out in the profile of this name; the message says why there is none.
    pub fn shape_of(&self, name: &ProfileName) -> Result<Shape, String> {
        if let Ok(profile) = name.as_str().parse() {
            return Ok(Shape::built_in(profile));
        }
        match self.defined.iter().find(|defined| defined.name == *name) {
            Some(DefinedProfile { problem: Some(problem), .. }) => Err(problem.clone()),
            Some(DefinedProfile { base, .. }) => {
                Ok(Shape { defined: Some(name.clone()), ..Shape::built_in(*base) })
            }
            None => Err(format!("profile {name} is not defined on this host")),
        }
    }
}

/// Starts `program launcher ARGS` (this very program if `None`) as a child, with no input.
///
/// When it returns the launcher need not serve yet: [`connect_within`] waits for that.
pub fn spawn_launcher(program: Option<&Path>, args: &[&str]) -> Result<Child, SandboxError> {
    let program = match program {
        Some(program) => program.to_owned(),
        None => std::env::current_exe().map_err(SandboxError::Start)?,
    };
    let mut command = Command::new(program);
    // It is no service of its own: whoever started this process waits for this one's word.
    for name in sally_common::notify::VARIABLES {
        command.env_remove(name);
    }
    command.arg("launcher").args(args).stdin(Stdio::null()).spawn().map_err(SandboxError::Start)
}

/// Connects to a launcher that may still be starting, for at most `limit`.
pub async fn connect_within(path: &Path, limit: Duration) -> Result<Launcher, SandboxError> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        match Launcher::connect(path).await {
            // Its socket appears when it listens; there is nothing else to wait on.
            Err(SandboxError::Path { .. } | SandboxError::KeeperGone)
                if tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            done => return done,
        }
    }
}

/// A connected SEQPACKET socket that waits without blocking. tokio knows only streams, but waits and calls
/// are the same; nothing reads or writes it as a stream.
#[derive(Debug)]
struct Packets(UnixStream);

impl Packets {
    fn new(fd: OwnedFd) -> Result<Self, SandboxError> {
        let socket = StdSocket::from(fd);
        socket
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(socket))
            .map(Packets)
            .map_err(|e| SandboxError::Io("watch a socket", e))
    }

    fn connect(path: &Path) -> Result<Self, SandboxError> {
        let failed = |e: Errno| SandboxError::path("connect to the launcher at", path, e.into());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(fd.as_raw_fd(), &address).map_err(failed)?;
        Packets::new(fd)
    }

    /// Sends a message and waits for its answer, for a bounded time.
    async fn ask<T: DeserializeOwned>(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(T, Vec<OwnedFd>), SandboxError> {
        let talk = async {
            self.when(Interest::WRITABLE, |fd| wire::send(fd, message, fds, MsgFlags::MSG_DONTWAIT)).await?;
            self.when(Interest::READABLE, |fd| wire::receive::<T>(fd, MsgFlags::MSG_DONTWAIT)).await
        };
        match tokio::time::timeout(ANSWER_LIMIT, talk).await {
            Err(_) => Err(SandboxError::NoAnswer(ANSWER_LIMIT)),
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None) | Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN)) => {
                Err(SandboxError::KeeperGone)
            }
            Ok(Err(Errno::EMSGSIZE)) => Err(SandboxError::Refused("the plan is larger than 112 KiB".into())),
            Ok(Err(errno)) => Err(SandboxError::Io("talk to the launcher", errno.into())),
        }
    }

    async fn when<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> nix::Result<T>,
    ) -> nix::Result<T> {
        let done = self.0.async_io(interest, || call(self.0.as_fd()).map_err(io::Error::from)).await;
        done.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

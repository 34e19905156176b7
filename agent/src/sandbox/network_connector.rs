//! The connector: the process of a slot that makes the connections of its attempts, outside, where the launcher's network
//! is. It accepts on the sockets that listen inside, and forks a `network_relay` for each connection that the list has.
//!
//! Its keeper forks it before it leaves for namespaces of its own, so it goes on without agent and launcher as the keeper
//! does, and dies with the keeper. It takes orders from the keeper alone; a script's bytes pass through relays and are
//! read by none. It has no capability, a uid of its own where the launcher is root, and what `network_confine` leaves it.
#![forbid(unsafe_code)]

use super::init::close_all_but;
use super::keeper::Setup;
use super::network::{self, CONNECTIONS_MAX, Destination};
use super::network_confine::Confinement;
use super::network_inside::{NO_NETWORK, SERVES};
use super::network_relay::{self, reset};
use super::record::NetworkUse;
use super::step::{Step, StepError};
use super::sys::{self, Fork};
use super::wire::{self, Mode};
use nix::errno::Errno;
use nix::net::if_::InterfaceFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, getpid, getppid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

const STEP: &str = "connector";

/// How long the connector may take to end an attempt's connections, in milliseconds.
const END_LIMIT: u16 = 2_000;

/// The longest text of what went wrong, in characters.
const TROUBLE_MAX: usize = 300;

/// A slot's connector as its keeper holds it. It dies when this is dropped, or with the keeper.
pub(super) struct Connector {
    pid: Pid,
    socket: OwnedFd,
}

/// Keeper to connector.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Listening sockets come with this message.
    Take,
    /// Serve this list from now on; the stage waits at the socket that comes with this message.
    Serve(Vec<Destination>),
    /// The attempt is over: end its connections and say what they were.
    End,
}

/// Connector to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// It is as narrow as it must be, or why it is not.
    Ready(Option<StepError>),
    Used(NetworkUse),
}

impl Connector {
    /// Forks a connector and waits until it has let go of all that it must not have. To be called in the launcher's
    /// namespaces.
    pub(super) fn start(setup: &Setup, lock: &OwnedFd) -> Result<Connector, StepError> {
        let (socket, end) = wire::pair().step(STEP, "socket pair")?;
        let parent = getpid();
        match sys::fork().step(STEP, "forking")? {
            Fork::Child => enter(setup, parent, &end, lock.as_raw_fd()),
            Fork::Parent(pid) => {
                drop(end);
                let connector = Connector { pid, socket };
                match connector.hear(PollTimeout::NONE) {
                    Some(Said::Ready(None)) => Ok(connector),
                    Some(Said::Ready(Some(error))) => Err(error),
                    _ => Err(StepError::other(STEP, "it ended before it was ready")),
                }
            }
        }
    }

    /// What shows its end, and nothing else while no attempt runs.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether it has died.
    pub(super) fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_err() || fds[0].any() == Some(true)
    }

    /// Gives it listening sockets. If it is dead the stage hears of that.
    pub(super) fn take(&self, listeners: &[OwnedFd]) {
        let fds: Vec<_> = listeners.iter().map(OwnedFd::as_fd).collect();
        let _ = wire::send(self.socket.as_fd(), &Order::Take, &fds, MsgFlags::empty());
    }

    /// Has it serve a list.
    pub(super) fn serve(&self, list: &[Destination], ready: &[OwnedFd]) {
        let fds: Vec<_> = ready.iter().map(OwnedFd::as_fd).collect();
        let _ = wire::send(self.socket.as_fd(), &Order::Serve(list.to_vec()), &fds, MsgFlags::empty());
    }

    /// Ends all connections. A connector that does not answer is no longer to be used: it is killed.
    pub(super) fn end(&self, list: &[Destination]) -> NetworkUse {
        let asked = wire::send(self.socket.as_fd(), &Order::End, &[], MsgFlags::MSG_DONTWAIT);
        match asked.ok().and_then(|()| self.hear(END_LIMIT.into())) {
            Some(Said::Used(used)) => used,
            _ => {
                let _ = kill(self.pid, Signal::SIGKILL);
                let trouble = Some("the process that makes the connections died under the run".to_owned());
                NetworkUse { allowed: list.to_vec(), trouble, ..NetworkUse::default() }
            }
        }
    }

    fn hear(&self, limit: PollTimeout) -> Option<Said> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, limit) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            }
            return wire::receive(self.socket.as_fd(), MsgFlags::MSG_DONTWAIT).ok()?.map(|(said, _)| said);
        }
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// The life of a connector. It starts as a copy of its keeper and never returns.
fn enter(setup: &Setup, parent: Pid, keeper: &OwnedFd, lock: RawFd) -> ! {
    let ready = narrow(setup, parent, keeper, lock);
    let trouble = ready.as_ref().err().cloned();
    let told = wire::send(keeper.as_fd(), &Said::Ready(trouble), &[], MsgFlags::empty());
    match (ready, told) {
        (Ok((signals, confinement)), Ok(())) => Work::new(keeper, lock, signals, confinement).serve(),
        _ => sys::exit_now(1),
    }
}

/// Lets go of everything but the network.
fn narrow(
    setup: &Setup,
    parent: Pid,
    keeper: &OwnedFd,
    lock: RawFd,
) -> Result<(SignalFd, Confinement), StepError> {
    let _ = prctl::set_name(c"sally-connector");
    close_all_but(&[keeper.as_raw_fd(), lock]).step(STEP, "closing descriptors")?;
    if setup.mode == Mode::Root {
        let (uid, gid) = (Uid::from_raw(setup.connector_uid), Gid::from_raw(setup.connector_uid));
        sys::lock_securebits().step(STEP, "locking the secure bits")?;
        sys::drop_bounding_set().step(STEP, "dropping the bounding set")?;
        setgroups(&[]).step(STEP, "no supplementary groups")?;
        setresgid(gid, gid, gid).step(STEP, format!("becoming group {gid}"))?;
        setresuid(uid, uid, uid).step(STEP, format!("becoming uid {uid}"))?;
        sys::set_capabilities(0).step(STEP, "dropping capabilities")?;
    }
    // After the change of uid, which takes it back.
    die_with(parent)?;
    prctl::set_dumpable(false).step(STEP, "closing memory to others")?;
    let confinement = Confinement::of_connector()?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().step(STEP, "blocking SIGCHLD")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .step(STEP, "signal descriptor")?;
    Ok((signals, confinement))
}

fn die_with(parent: Pid) -> Result<(), StepError> {
    prctl::set_pdeathsig(Signal::SIGKILL).step(STEP, "asking for a death signal")?;
    if getppid() != parent {
        sys::exit_now(1);
    }
    Ok(())
}

/// A connector at work.
struct Work<'a> {
    keeper: &'a OwnedFd,
    lock: RawFd,
    signals: SignalFd,
    confinement: Confinement,
    listeners: Vec<OwnedFd>,
    list: Vec<Destination>,
    relays: Vec<Pid>,
    /// What relays say of their failures: reading and writing end. New for each attempt.
    words: Option<(OwnedFd, OwnedFd)>,
    used: NetworkUse,
}

impl<'a> Work<'a> {
    fn new(keeper: &'a OwnedFd, lock: RawFd, signals: SignalFd, confinement: Confinement) -> Self {
        Self {
            keeper,
            lock,
            signals,
            confinement,
            listeners: Vec::new(),
            list: Vec::new(),
            relays: Vec::new(),
            words: None,
            used: NetworkUse::default(),
        }
    }

    fn serve(mut self) -> ! {
        loop {
            // With as many connections as there may be, others wait in the kernel.
            let serving =
                if self.list.is_empty() || self.relays.len() >= CONNECTIONS_MAX { 0 } else { usize::MAX };
            let mut fds = vec![
                PollFd::new(self.keeper.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            let sockets = self.listeners.iter().take(serving);
            fds.extend(sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
            let _ = poll(&mut fds, PollTimeout::NONE);
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
            for at in (2..ready.len()).filter(|at| ready[*at]) {
                self.accept(at - 2);
            }
            if ready[0] {
                self.hear_keeper();
            }
        }
    }

    fn hear_keeper(&mut self) {
        match wire::receive::<Order>(self.keeper.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Order::Take, fds))) => self.listeners.extend(fds),
            Ok(Some((Order::Serve(list), fds))) => self.begin(list, fds),
            Ok(Some((Order::End, _))) => self.end(),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // The keeper is dead, and relays die with this process.
            Ok(None) | Err(_) => sys::exit_now(0),
        }
    }

    fn begin(&mut self, list: Vec<Destination>, fds: Vec<OwnedFd>) {
        let reachable = network::needs_network(&list).is_none() || has_network();
        self.used = NetworkUse { allowed: list.clone(), ..NetworkUse::default() };
        self.words = wire::pair().ok();
        self.list = list;
        for ready in fds {
            let word = if reachable { SERVES } else { NO_NETWORK };
            let _ = wire::send_bytes(ready.as_fd(), &[word], &[], MsgFlags::MSG_DONTWAIT);
        }
    }

    /// Ends what is left of an attempt, and says what it was.
    fn end(&mut self) {
        self.listeners.clear();
        self.list.clear();
        self.reap();
        for relay in std::mem::take(&mut self.relays) {
            let _ = kill(relay, Signal::SIGKILL);
            let _ = waitpid(relay, None);
        }
        self.hear_relays();
        self.words = None;
        let said = Said::Used(std::mem::take(&mut self.used));
        if wire::send(self.keeper.as_fd(), &said, &[], MsgFlags::MSG_DONTWAIT).is_err() {
            sys::exit_now(1);
        }
    }

    /// Takes a connection and leads it on.
    fn accept(&mut self, listener: usize) {
        if self.relays.len() >= CONNECTIONS_MAX {
            return;
        }
        // Its other end may have gone away meanwhile.
        let Some(Ok(stream)) = self.listeners.get(listener).map(|socket| sys::accept(socket.as_fd())) else {
            return;
        };
        let stream = TcpStream::from(stream);
        let target = stream.local_addr().ok().and_then(|at| network::target(&self.list, at));
        let Some(target) = target else {
            self.used.refused += 1;
            return reset(&stream);
        };
        self.used.connections += 1;
        let parent = getpid();
        match sys::fork() {
            Ok(Fork::Child) => {
                let words = self.words.as_ref().map(|(_, end)| end.as_fd());
                let keep = [stream.as_raw_fd(), words.map_or(-1, |fd| fd.as_raw_fd()), self.lock];
                if die_with(parent).is_err() || close_all_but(&keep).is_err() {
                    sys::exit_now(1);
                }
                let _ = prctl::set_name(c"sally-relay");
                let confine = || self.confinement.of_relay(&target);
                let Err(why) = network_relay::run(&stream, &target, confine) else { sys::exit_now(0) };
                // Said while the connection is still open: once the script sees its end, it is counted.
                let cut: String = why.chars().take(TROUBLE_MAX).collect();
                let said = words.map(|words| {
                    wire::send_bytes(words, cut.as_bytes(), &[], MsgFlags::MSG_DONTWAIT).is_ok()
                });
                sys::exit_now(if said == Some(true) { 0 } else { 1 })
            }
            Ok(Fork::Parent(relay)) => self.relays.push(relay),
            Err(errno) => {
                self.used.failed += 1;
                self.used
                    .trouble
                    .get_or_insert_with(|| format!("no process for a connection: {}", errno.desc()));
                reset(&stream);
            }
        }
    }

    /// Takes leave of relays that have ended.
    fn reap(&mut self) {
        self.hear_relays();
        while let Ok(ended @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) =
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
        {
            self.relays.retain(|relay| Some(*relay) != ended.pid());
            match ended {
                WaitStatus::Exited(_, 0) => {}
                WaitStatus::Signaled(_, Signal::SIGALRM, _) => {
                    self.used.failed += 1;
                    self.used
                        .trouble
                        .get_or_insert_with(|| "looking up a name and connecting took a minute".into());
                }
                _ => self.used.failed += 1,
            }
        }
        self.hear_relays();
    }

    fn hear_relays(&mut self) {
        let Some((reader, _)) = &self.words else { return };
        while let Ok(Some((bytes, _))) = wire::receive_bytes(reader.as_fd(), MsgFlags::MSG_DONTWAIT) {
            let said = String::from_utf8_lossy(&bytes).into_owned();
            self.used.failed += 1;
            self.used.trouble.get_or_insert(said);
        }
    }
}

/// Whether any interface but loopback is up here.
fn has_network() -> bool {
    let up = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    // If the kernel does not tell, connections show it.
    nix::ifaddrs::getifaddrs().map_or(true, |mut all| all.any(|interface| up(interface.flags)))
}

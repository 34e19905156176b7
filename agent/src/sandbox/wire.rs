//! The messages between agent, launcher, keeper, init and stage: JSON on SOCK_SEQPACKET sockets, one
//! message a packet, descriptors beside it.
#![forbid(unsafe_code)]

use super::definition::DefinedProfile;
use super::layer::Layers;
use super::plan::MAX_PLAN_BYTES;
use super::profile::{Profile, Shape};
use super::step::StepError;
use super::sys;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recv, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The largest message: a plan and a little around it.
pub(super) const MAX_MESSAGE: usize = MAX_PLAN_BYTES + 1024;

/// The most descriptors that come with one message.
pub(super) const MAX_FDS: usize = 16;

/// The version of these messages; a launcher and an agent of different versions say so and part.
pub(super) const WIRE_VERSION: u32 = 2;

/// The descriptors of a plan, in the order in which they travel from agent to keeper.
#[derive(Debug)]
pub(super) struct PlanFds {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) result: OwnedFd,
    pub(super) result_file: OwnedFd,
    pub(super) artifacts: OwnedFd,
    pub(super) exit: OwnedFd,
    pub(super) events: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) inputs: Inputs,
}

/// The descriptors that the keeper hands on to the stage, in their order.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) go: OwnedFd,
    pub(super) script: OwnedFd,
    pub(super) params: OwnedFd,
    /// In the form of `secrets`; empty if there are none.
    pub(super) secrets: OwnedFd,
    /// Absent: `/dev/null`.
    pub(super) stdin: Option<OwnedFd>,
}

impl PlanFds {
    pub(super) fn from_list(list: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = list.into_iter();
        Some(Self {
            stdout: fds.next()?,
            stderr: fds.next()?,
            result: fds.next()?,
            result_file: fds.next()?,
            artifacts: fds.next()?,
            exit: fds.next()?,
            events: fds.next()?,
            control: fds.next()?,
            inputs: Inputs::from_iter(&mut fds)?,
        })
    }

    pub(super) fn list(&self) -> Vec<BorrowedFd<'_>> {
        let own = [
            &self.stdout,
            &self.stderr,
            &self.result,
            &self.result_file,
            &self.artifacts,
            &self.exit,
            &self.events,
            &self.control,
        ];
        own.into_iter().map(OwnedFd::as_fd).chain(self.inputs.list()).collect()
    }
}

impl Inputs {
    pub(super) fn from_iter(fds: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let inputs = Self {
            go: fds.next()?,
            script: fds.next()?,
            params: fds.next()?,
            secrets: fds.next()?,
            stdin: fds.next(),
        };
        fds.next().is_none().then_some(inputs)
    }

    pub(super) fn list(&self) -> Vec<BorrowedFd<'_>> {
        [Some(&self.go), Some(&self.script), Some(&self.params), Some(&self.secrets), self.stdin.as_ref()]
            .into_iter()
            .flatten()
            .map(OwnedFd::as_fd)
            .collect()
    }
}

/// Agent to launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Who are you and what can you do?
    Info,
    /// Give me a socket to a keeper of this slot, made for plans of this kind.
    Open {
        slot: u16,
        #[serde(flatten)]
        shape: Shape,
    },
}

/// Launcher to agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Info(LauncherInfo),
    /// The socket comes with this message.
    Opened,
    /// The slot still runs an attempt.
    Busy,
    /// The message says why.
    Refused(String),
    /// A keeper could not be made.
    Failed(StepError),
}

/// What a launcher says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LauncherInfo {
    /// The version of the messages it speaks.
    pub wire: u32,
    /// The version of the program.
    pub version: String,
    /// Its process id, in its own pid namespace.
    pub pid: i32,
    /// How slots are told apart.
    pub mode: Mode,
    /// The kernel uid of slot 0 (`root`), or of all slots (`user`).
    pub uid_base: u32,
    /// The number of slots; they are numbered from 0.
    pub slots: u16,
    /// The widest profile it allows.
    pub max_profile: Profile,
    /// The box as profile `host` sees it; the other profiles have theirs at `/run/sally/box`.
    pub host_box: String,
    /// Slots whose keeper runs an attempt or is not ready.
    pub busy: Vec<u16>,
    /// What an idle `strict` sandbox has enforced so far (the rest comes with an attempt); empty if none
    /// could be made.
    pub layers: Layers,
    /// The version of landlock that the kernel offers, 0 if none; layer `landlock` is whole from version 6 on.
    #[serde(default)]
    pub landlock_abi: u32,
    /// Why the newest keeper could not be made, if so.
    pub trouble: Option<StepError>,
    /// Profiles that its operator defined.
    #[serde(default)]
    pub defined: Vec<DefinedProfile>,
    /// Accounts that a plan may ask for.
    #[serde(default)]
    pub users: Vec<String>,
}

/// How the slots of a launcher are told apart by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The launcher is root: each slot has a kernel uid of its own.
    Root,
    /// The launcher is an ordinary user: all slots and the agent share its kernel uid.
    User,
}

/// Keeper to agent: the answer to a plan.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// It is being built; the exit record will say how it ended. The master of its terminal comes with this message,
    /// if the plan asked for one.
    Accepted { keeper: i32, init: i32 },
    /// Nothing was done; the message says why.
    Refused(String),
    /// An attempt is still running here.
    Busy,
}

/// Launcher to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// An agent's socket comes with this message and replaces the one before.
    Client,
    /// End: at once when idle, else after the attempt, or with it (`kill`).
    Stop { kill: bool },
}

/// Keeper to launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Notice {
    /// The slot is built and idle; what an idle sandbox has enforced.
    Ready(Layers),
    /// The slot could not be built; the keeper ends.
    Failed(StepError),
    Busy,
    Idle,
}

/// Init or stage to keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// The stage waits for a plan; the folder of the result file and the work folder come with this message.
    Prepared(Layers),
    /// The next call is execve.
    Go(Layers),
    /// Sockets that listen inside come with this message.
    Listening,
    /// They are all there; a socket on which the stage waits until they are served comes with this message.
    Serve,
    /// The agent dropped its end of the go pipe.
    NotReleased(Layers),
    Failed {
        error: StepError,
        layers: Layers,
    },
    NotFound {
        what: String,
        layers: Layers,
    },
    ExecFailed {
        errno: i32,
        message: String,
        layers: Layers,
    },
    /// The main process has ended so, others are alive. Init itself may be killed before it can report.
    MainEnded(Ended),
    /// Nothing is alive any more.
    Report(Report),
}

/// What init knows at the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) ended: Ended,
    pub(super) leftovers: u32,
    pub(super) cpu_us: u64,
    pub(super) max_rss_kib: u64,
}

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    Exited(i32),
    Signaled(i32),
}

/// Keeper to init, one byte: send TERM to the main process's group.
pub(super) const INIT_TERM: u8 = b'T';
/// Keeper to init, one byte: send HUP to it, as a terminal that is closed does: an interactive shell ignores TERM.
pub(super) const INIT_HANGUP: u8 = b'H';
/// Keeper to init, one byte: kill everything.
pub(super) const INIT_KILL: u8 = b'K';

/// Makes a connected pair, both ends close-on-exec.
pub(super) fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message with descriptors. Waits for room unless `flags` say otherwise.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> nix::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::EINVAL)?;
    send_bytes(socket, &bytes, fds, flags)
}

/// Sends one message that is already encoded.
pub(super) fn send_bytes(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> nix::Result<()> {
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(Errno::EMSGSIZE);
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
    let slices = [IoSlice::new(bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &slices, control, flags | MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Receives one message; `None` is the end of the connection. Bytes that are no such message are `EBADMSG`.
pub(super) fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    flags: MsgFlags,
) -> nix::Result<Option<(T, Vec<OwnedFd>)>> {
    let Some((bytes, fds)) = receive_bytes(socket, flags)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(|message| Some((message, fds))).map_err(|_| Errno::EBADMSG)
}

/// Receives one message as it is; `None` is the end of the connection.
pub(super) fn receive_bytes(
    socket: BorrowedFd<'_>,
    flags: MsgFlags,
) -> nix::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    // Its size first: clearing room for the largest message costs more than asking, in a forked copy above all.
    let peek = flags | MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    let size = recv(socket.as_raw_fd(), &mut [], peek)?;
    let mut buffer = vec![0; size.clamp(1, MAX_MESSAGE)];
    let (length, fds) = sys::receive(socket, &mut buffer, MAX_FDS, flags)?;
    if length == 0 {
        return Ok(None);
    }
    buffer.truncate(length);
    Ok(Some((buffer, fds)))
}

/// Reads bytes as a message of each kind, and writes each that could be read again.
pub fn reread(bytes: &[u8]) -> Vec<Vec<u8>> {
    fn one<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<Vec<u8>> {
        let message: T = serde_json::from_slice(bytes).ok()?;
        serde_json::to_vec(&message).ok()
    }
    let kinds = [one::<Request>, one::<Reply>, one::<Answer>, one::<Order>, one::<Notice>, one::<Word>];
    kinds.iter().filter_map(|kind| kind(bytes)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors_and_an_end_is_seen() {
        let (a, b) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(a.as_fd(), &Request::Info, &[null.as_fd(), null.as_fd()], MsgFlags::empty()).unwrap();
        let (request, fds) = receive::<Request>(b.as_fd(), MsgFlags::empty()).unwrap().unwrap();
        assert!(matches!(request, Request::Info));
        assert_eq!(fds.len(), 2);
        drop(a);
        assert!(receive::<Request>(b.as_fd(), MsgFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn a_request_for_a_built_in_profile_is_what_it_always_was() {
        let request = Request::Open { slot: 3, shape: Shape::built_in(Profile::Net) };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"open":{"slot":3,"profile":"net"}}"#);
    }

    #[test]
    fn too_much_is_refused_on_both_sides() {
        let (a, b) = pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); MAX_FDS + 1];
        assert_eq!(send_bytes(a.as_fd(), b"x", &many, MsgFlags::empty()), Err(Errno::EMSGSIZE));
        let long = vec![b'x'; MAX_MESSAGE + 1];
        assert_eq!(send_bytes(a.as_fd(), &long, &[], MsgFlags::empty()), Err(Errno::EMSGSIZE));
        nix::unistd::write(&a, &long).unwrap();
        assert_eq!(receive_bytes(b.as_fd(), MsgFlags::empty()).err(), Some(Errno::EMSGSIZE));
        nix::unistd::write(&a, b"no json").unwrap();
        assert_eq!(receive::<Request>(b.as_fd(), MsgFlags::empty()).err(), Some(Errno::EBADMSG));
    }

    #[test]
    fn descriptors_too_few_or_too_many_are_no_plan() {
        let fds = |n| (0..n).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        assert!(PlanFds::from_list(fds(11)).is_none());
        assert!(PlanFds::from_list(fds(12)).is_some());
        assert!(PlanFds::from_list(fds(13)).unwrap().inputs.stdin.is_some());
        assert!(PlanFds::from_list(fds(14)).is_none());
    }
}

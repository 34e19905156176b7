//! The forker: a process that lives in the slot's control group and forks the init of each attempt, so that all of an
//! attempt is born in the group. To join a group a process waits until every processor has noticed (milliseconds in
//! an idle kernel, once for each hierarchy); to be born in one costs nothing.
//!
//! The keeper itself stays outside: what it writes for a run is not the run's memory, and it tells the end of a run
//! that was killed for want of memory. The forker may be killed with that run. Then the keeper starts another.
#![forbid(unsafe_code)]

use super::init;
use super::keeper::Setup;
use super::step::{Step, StepError};
use super::sys::{self, Fork};
use super::wire;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// Processes of ours in a slot's group: the forker, and the init that it forked.
pub(super) const OWN_PROCESSES: u64 = 2;

/// A slot's forker as its keeper holds it. It dies when this is dropped, or with the keeper.
pub(super) struct Forker {
    pid: Pid,
    socket: OwnedFd,
    /// Why it is not in the group, if so.
    pub(super) trouble: Option<StepError>,
}

/// What the forker says: first whether it is in the group, then of each init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Joined(Option<StepError>),
    Forked(i32),
    Failed(i32),
}

impl Forker {
    /// Forks a forker and waits until it is in the group.
    pub(super) fn start(setup: &mut Setup, base: &Path, lock: &OwnedFd) -> Result<Forker, StepError> {
        // An init whose forker died before it could tell of it saw the end of its keeper's socket, and ended.
        while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|s| s != WaitStatus::StillAlive)
        {}
        let (socket, end) = wire::pair().step("forker", "socket pair")?;
        match sys::fork().step("forker", "forking")? {
            Fork::Child => enter(setup, base, &end, lock.as_raw_fd()),
            Fork::Parent(pid) => {
                drop(end);
                let mut forker = Forker { pid, socket, trouble: None };
                match forker.hear() {
                    Some(Said::Joined(trouble)) => forker.trouble = trouble,
                    _ => {
                        return Err(StepError::other(
                            "forker",
                            "it ended before it was in the control group",
                        ));
                    }
                }
                Ok(forker)
            }
        }
    }

    /// Has an init forked, as a child of the caller, with these ends of its sockets. `None`: the forker is dead.
    pub(super) fn fork(&self, ends: [BorrowedFd<'_>; 2]) -> Option<nix::Result<Pid>> {
        wire::send_bytes(self.socket.as_fd(), b"f", &ends, MsgFlags::empty()).ok()?;
        match self.hear()? {
            Said::Forked(pid) => Some(Ok(Pid::from_raw(pid))),
            Said::Failed(errno) => Some(Err(Errno::from_raw(errno))),
            Said::Joined(_) => None,
        }
    }

    fn hear(&self) -> Option<Said> {
        loop {
            match wire::receive(self.socket.as_fd(), MsgFlags::empty()) {
                Ok(message) => return message.map(|(said, _)| said),
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Forker {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// The life of a forker. It starts as a copy of its keeper and never returns.
fn enter(setup: &mut Setup, base: &Path, keeper: &OwnedFd, lock: RawFd) -> ! {
    // If the keeper is dead already, its socket has ended.
    let ready = prctl::set_pdeathsig(Signal::SIGKILL)
        .step("forker", "asking for the keeper's death signal")
        .and_then(|()| setup.group.join().step("cgroup", "joining the slot's control group"));
    let _ = prctl::set_name(c"sally-forker");
    let told = wire::send(keeper.as_fd(), &Said::Joined(ready.err()), &[], MsgFlags::empty());
    // The slot's lock stays open here, and with it in each init: the slot is busy until all of them are dead.
    if told.is_err() || init::close_all_but(&[keeper.as_raw_fd(), lock]).is_err() {
        sys::exit_now(1);
    }
    // A child of the forker's parent: the keeper waits for it, and its death is the keeper's to hear of.
    let flags = init::namespaces(setup) | CloneFlags::CLONE_PARENT;
    loop {
        let fds = match wire::receive_bytes(keeper.as_fd(), MsgFlags::empty()) {
            Ok(Some((_, fds))) => fds,
            Err(Errno::EINTR) => continue,
            Ok(None) | Err(_) => sys::exit_now(0),
        };
        let Ok([init_end, stage_end]) = <[OwnedFd; 2]>::try_from(fds) else { sys::exit_now(1) };
        let said = match sys::fork_into(flags.bits()) {
            Ok(Fork::Child) => init::enter(setup, base, &init_end, &stage_end, lock),
            Ok(Fork::Parent(init)) => Said::Forked(init.as_raw()),
            Err(errno) => Said::Failed(errno as i32),
        };
        if wire::send(keeper.as_fd(), &said, &[], MsgFlags::empty()).is_err() {
            sys::exit_now(1);
        }
    }
}

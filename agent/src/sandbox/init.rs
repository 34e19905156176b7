//! The init of an attempt's pid namespace: prepared before a plan is there, it forks the stage (which
//! becomes the script), reaps, passes TERM on, ends everything, and reports. It never reads a plan.
#![forbid(unsafe_code)]

use super::descendants;
use super::forker::Forker;
use super::keeper::Setup;
use super::landlock;
use super::layer::{Layer, Layers};
use super::plan::Limits;
use super::profile::Profile;
use super::stage;
use super::step::{Step, StepError};
use super::sys::{self, Fork};
use super::template;
use super::wire::{self, Ended, INIT_HANGUP, INIT_KILL, INIT_TERM, Report, Word};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::MsgFlags;
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// A sandbox that is complete but for what a plan decides, as its keeper holds it.
pub(super) struct Prepared {
    /// The init, a child of the keeper. Its death is the death of the whole tree.
    pub(super) init: Pid,
    /// To and from init.
    pub(super) init_socket: OwnedFd,
    /// To and from the stage. Ends when the stage has become the script, or is dead.
    pub(super) stage_socket: OwnedFd,
    /// The folder of the result file.
    pub(super) out: OwnedFd,
    /// The work folder.
    pub(super) work: OwnedFd,
    /// What holds already.
    pub(super) layers: Layers,
}

/// Makes an init with its namespaces and waits until its stage is ready for a plan. A slot with a control group has
/// a `forker` in it, which is started if it is not there or dead.
pub(super) fn prepare(
    setup: &mut Setup,
    base: &Path,
    lock: &OwnedFd,
    forker: &mut Option<Forker>,
) -> Result<Prepared, StepError> {
    let (init_socket, init_end) = wire::pair().step("init", "socket pair")?;
    let (stage_socket, stage_end) = wire::pair().step("init", "socket pair")?;
    let forked = if setup.group.is_there() {
        fork_in_group(setup, base, lock, forker, [init_end.as_fd(), stage_end.as_fd()])?
    } else {
        match sys::fork_into(namespaces(setup).bits()) {
            Ok(Fork::Child) => enter(setup, base, &init_end, &stage_end, lock.as_raw_fd()),
            Ok(Fork::Parent(init)) => Ok(init),
            Err(errno) => Err(errno),
        }
    };
    let init = forked.step("namespaces", "new namespaces for the attempt")?;
    drop((init_end, stage_end));
    match wire::receive::<Word>(stage_socket.as_fd(), MsgFlags::empty()) {
        Ok(Some((Word::Prepared(layers), fds))) => match <[OwnedFd; 2]>::try_from(fds) {
            Ok([out, work]) => Ok(Prepared { init, init_socket, stage_socket, out, work, layers }),
            Err(_) => Err(StepError::other("init", "the stage did not send two folders")),
        },
        Ok(Some((Word::Failed { error, .. }, _))) => Err(error),
        Ok(_) => Err(StepError::other("init", "the sandbox ended while it was being built")),
        Err(errno) => Err(StepError::new("init", errno, "waiting for the sandbox")),
    }
    .inspect_err(|_| {
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
    })
}

/// Has the slot's forker fork an init. One that is dead (killed with a run, for want of memory) is replaced, once.
fn fork_in_group(
    setup: &mut Setup,
    base: &Path,
    lock: &OwnedFd,
    forker: &mut Option<Forker>,
    ends: [BorrowedFd<'_>; 2],
) -> Result<nix::Result<Pid>, StepError> {
    if let Some(forked) = forker.as_ref().and_then(|forker| forker.fork(ends)) {
        return Ok(forked);
    }
    *forker = None; // Its end is waited for before there is another.
    let new = Forker::start(setup, base, lock)?;
    let forked = new.fork(ends);
    *forker = Some(new);
    forked.ok_or_else(|| StepError::other("forker", "it ended while a sandbox was being built"))
}

/// The namespaces of an attempt; user and network belong to the keeper, but for a network with destinations.
pub(super) fn namespaces(setup: &Setup) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    for (layer, flag) in [
        (Layer::Mount, CloneFlags::CLONE_NEWNS),
        (Layer::Pid, CloneFlags::CLONE_NEWPID),
        (Layer::Ipc, CloneFlags::CLONE_NEWIPC),
        (Layer::Uts, CloneFlags::CLONE_NEWUTS),
    ] {
        if !setup.broken(layer) {
            flags |= flag;
        }
    }
    if setup.has_own_destinations() {
        flags |= CloneFlags::CLONE_NEWNET; // What one attempt is allowed, the next one must not find.
    }
    flags
}

/// The life of an init. It starts as a copy of whoever forked it and shares no memory with it.
pub(super) fn enter(setup: &Setup, base: &Path, keeper: &OwnedFd, stage: &OwnedFd, lock: RawFd) -> ! {
    match build(setup, base, keeper, stage, lock) {
        Ok((main, signals)) => supervise(main, keeper, &signals),
        Err(error) => {
            let word = Word::Failed { error, layers: Layers::new() };
            let _ = wire::send(stage.as_fd(), &word, &[], MsgFlags::empty());
            sys::exit_now(1)
        }
    }
}

/// Builds what an attempt has of its own, forks the stage, and drops what init no longer needs.
fn build(
    setup: &Setup,
    base: &Path,
    keeper: &OwnedFd,
    stage_end: &OwnedFd,
    lock: RawFd,
) -> Result<(Pid, SignalFd), StepError> {
    // The keeper's death ends this process and with it everything in the pid namespace. If the keeper is
    // dead already, its socket has ended and `supervise` sees that first.
    if setup.broken(Layer::Pid) {
        // There is no such thing: init ends the tree by itself when the keeper's socket ends, and orphans come to it.
        prctl::set_child_subreaper(true).step("init", "asking for orphans")?;
    } else {
        prctl::set_pdeathsig(Signal::SIGKILL).step("init", "asking for the keeper's death signal")?;
    }
    // The slot's lock stays open here: the slot is busy until the whole tree is dead.
    close_all_but(&[keeper.as_raw_fd(), stage_end.as_raw_fd(), lock]).step("init", "closing descriptors")?;
    let _ = prctl::set_name(c"sally-init");
    let defaults = Limits::default();
    let private_root = !setup.profile.sees_host() && !setup.broken(Layer::Root);
    let attempt =
        template::add_attempt(setup.profile, private_root, base, defaults.work_bytes, defaults.work_files)?;
    // Taken whole, so that nothing of it is dropped after its descriptor was closed below.
    let template::Attempt { results, covered, own_proc } = attempt;
    let landlock = match setup.broken(Layer::Landlock) {
        false => landlock::prepare(
            setup.profile,
            setup.listed,
            private_root,
            base,
            covered,
            setup.definition.as_deref(),
            setup.shape.terminal,
        )?,
        true => {
            drop(covered);
            None
        }
    };
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().step("init", "blocking SIGCHLD")?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&mask, flags).step("init", "signal descriptor")?;
    let main = match sys::fork().step("init", "forking the stage")? {
        Fork::Child => stage::enter(setup, base, stage_end, &results, own_proc, landlock.as_ref()),
        Fork::Parent(main) => main,
    };
    // From here init holds no pipe of the script and no way to the keeper but its own socket.
    close_all_but(&[keeper.as_raw_fd(), signals.as_fd().as_raw_fd(), lock])
        .step("init", "closing descriptors")?;
    std::mem::forget((results, landlock));
    // In `admin` a script may become any uid, and must be ended all the same.
    if setup.profile != Profile::Admin {
        sys::lock_securebits().step("init", "locking the secure bits")?;
        if !setup.no_bounding {
            sys::drop_bounding_set().step("init", "dropping the bounding set")?;
        }
        sys::set_capabilities(0).step("init", "dropping capabilities")?;
        prctl::set_no_new_privs().step("init", "no new privileges")?;
    }
    prctl::set_dumpable(false).step("init", "closing memory to others")?;
    Ok((main, signals))
}

/// Closes every descriptor above 2 that is not in `keep`.
pub(super) fn close_all_but(keep: &[RawFd]) -> nix::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            sys::close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    sys::close_range(first, RawFd::MAX)
}

/// Reaps until nothing is left, obeying the keeper meanwhile. All clocks are the keeper's.
fn supervise(main: Pid, keeper: &OwnedFd, signals: &SignalFd) -> ! {
    let mut state = Supervision { main, ended: None, killing: false, leftovers: 0 };
    let mut told = false;
    loop {
        if state.reap() == Left::Nobody {
            state.report(keeper);
            sys::exit_now(0);
        }
        if let Some(ended) = state.ended.filter(|_| !told) {
            told = true;
            let _ = wire::send(keeper.as_fd(), &Word::MainEnded(ended), &[], MsgFlags::empty());
        }
        let mut fds =
            [PollFd::new(keeper.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        while let Ok(Some(_)) = signals.read_signal() {}
        let mut order = [0u8; 8];
        match sys::receive(keeper.as_fd(), &mut order, 0, MsgFlags::MSG_DONTWAIT) {
            Ok((0, _)) => {
                // The keeper is dead. The kernel ends the rest with init, if init is that of a namespace.
                if getpid().as_raw() != 1 {
                    descendants::kill_all();
                }
                sys::exit_now(1)
            }
            Ok(_) => state.obey(order[0]),
            Err(_) => {}
        }
    }
}

struct Supervision {
    main: Pid,
    ended: Option<Ended>,
    /// Set once everything was told to die: who is reaped from then on is a leftover.
    killing: bool,
    leftovers: u32,
}

#[derive(PartialEq)]
enum Left {
    Nobody,
    Somebody,
}

impl Supervision {
    /// Reaps whoever has ended.
    fn reap(&mut self) -> Left {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => self.note(pid, Ended::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => self.note(pid, Ended::Signaled(signal as i32)),
                Ok(WaitStatus::StillAlive) => return Left::Somebody,
                Ok(_) | Err(Errno::EINTR) => {}
                // No children: whoever lives in this namespace is a descendant of a child, and orphans
                // become children. So nobody lives.
                Err(_) => return Left::Nobody,
            }
        }
    }

    fn note(&mut self, pid: Pid, ended: Ended) {
        if pid == self.main {
            self.ended = Some(ended);
        } else if self.killing {
            self.leftovers += 1;
        }
    }

    fn obey(&mut self, order: u8) {
        match order {
            INIT_TERM => self.tell_main(Signal::SIGTERM),
            INIT_HANGUP => {
                self.tell_main(Signal::SIGHUP);
                self.tell_main(Signal::SIGCONT); // One that is stopped hears it too.
            }
            INIT_KILL => {
                self.reap();
                self.killing = true;
                if getpid().as_raw() == 1 {
                    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
                } else {
                    // In `admin`, or with the pid namespace left out for a test: -1 would be the whole host.
                    descendants::kill_all();
                }
            }
            _ => {}
        }
    }

    /// The stage is the leader of its own group; before its setsid there is no such group.
    fn tell_main(&self, signal: Signal) {
        let group = Pid::from_raw(-self.main.as_raw());
        let _ = kill(group, signal).or_else(|_| kill(self.main, signal));
    }

    fn report(&self, keeper: &OwnedFd) {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok();
        let cpu = usage.map_or(0, |u| u.user_time().num_microseconds() + u.system_time().num_microseconds());
        let report = Report {
            // Nobody is left, so the main process was reaped; it cannot be missing.
            ended: self.ended.unwrap_or(Ended::Signaled(libc::SIGKILL)),
            leftovers: self.leftovers,
            cpu_us: cpu.try_into().unwrap_or_default(),
            max_rss_kib: usage.map_or(0, |u| u.max_rss()).try_into().unwrap_or_default(),
        };
        let _ = wire::send(keeper.as_fd(), &Word::Report(report), &[], MsgFlags::empty());
    }
}

//! System calls that neither std nor `nix` offers safely. Thin wrappers, no policy: this is the only
//! file of the project with `unsafe` in it, and each use argues from the contract of its callee.
#![expect(unsafe_code, reason = "the one place for system calls without a safe wrapper")]

use super::landlock::Handled;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::Pid;
use std::ffi::{CStr, c_int, c_long};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of a fork the caller is on.
pub(super) enum Fork {
    /// The caller; the child's id in the caller's pid namespace.
    Parent(Pid),
    /// The new process, with a copy of everything.
    Child,
}

/// Forks the calling process, which must have one thread.
pub(super) fn fork() -> nix::Result<Fork> {
    // SAFETY: fork(2) is unsafe because a child of a threaded process may only use async-signal-safe
    // functions. The launcher and everything below it never start a thread, so the child's heap and
    // locks are in a consistent state.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child)),
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
    }
}

/// Forks into new namespaces, given as `CLONE_NEW…` flags; with `CLONE_PARENT` the child is its caller's sibling. The
/// caller must have one thread.
///
/// By `clone`, not `clone3`, whose flags a system call filter cannot read: the keeper's own refuses it.
pub(super) fn fork_into(namespaces: c_int) -> nix::Result<Fork> {
    let flags = c_long::from(namespaces | libc::SIGCHLD);
    const NONE: c_long = 0;
    // SAFETY: without CLONE_VM and with no stack this has fork's semantics: the child runs on a copy of
    // this stack and address space. The four pointers are null on every architecture, whatever their order.
    // The caller has one thread (as in `fork`), so what libc's own fork does more (locks, atfork handlers)
    // is void.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) };
    match Errno::result(pid)? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid as i32))),
    }
}

/// Ends the process at once: no destructors, no buffers flushed. What a forked child ends with.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// What a mount is changed to by [`mount_setattr`].
#[derive(Clone, Copy)]
pub(super) struct MountFlags(u64);

impl MountFlags {
    pub(super) const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub(super) const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub(super) const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);

    /// Both sets of flags.
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Sets flags on the mount at `path`, with every mount below it if `recursive`.
pub(super) fn mount_setattr(path: &CStr, recursive: bool, flags: MountFlags) -> nix::Result<()> {
    change_mount(path, recursive, flags, MountFlags(0))
}

/// Lets the mount at `path`, with every mount below it, be written, and sets flags on them. The kernel refuses it for
/// what its host has mounted read-only.
pub(super) fn make_mount_writable(path: &CStr, flags: MountFlags) -> nix::Result<()> {
    change_mount(path, true, flags, MountFlags::READ_ONLY)
}

fn change_mount(path: &CStr, recursive: bool, set: MountFlags, clear: MountFlags) -> nix::Result<()> {
    let attr = libc::mount_attr { attr_set: set.0, attr_clr: clear.0, propagation: 0, userns_fd: 0 };
    let how = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and `attr` a live struct of the size that is passed; the kernel
    // reads both and keeps neither.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            how,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(rc).map(drop)
}

/// A descriptor of a process: it means this process and no later one of its number.
pub(super) fn open_process(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, c_long::from(pid.as_raw()), 0 as c_long) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel made this descriptor just now, close-on-exec, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process of a descriptor.
pub(super) fn signal_process(process: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    const NONE: c_long = 0;
    let (fd, signal) = (c_long::from(process.as_raw_fd()), c_long::from(signal as c_int));
    // SAFETY: pidfd_send_signal(2) takes three integers and a pointer that may be null, as it is here.
    Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, NONE, NONE) }).map(drop)
}

/// Closes every descriptor from `first` to `last`, both included.
///
/// The caller must not use or drop an owner of one of them afterwards: this is for processes that
/// go on to `execve` or [`exit_now`] and never unwind.
pub(super) fn close_range(first: RawFd, last: RawFd) -> nix::Result<()> {
    // SAFETY: close_range(2) takes three integers. Owners of the closed descriptors are never dropped,
    // as the doc comment demands and the callers (`keeper::enter`, `init::enter`, `stage::enter`)
    // guarantee by not returning.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first as c_long, last as c_long, 0 as c_long) };
    Errno::result(rc).map(drop)
}

/// Makes descriptor `to` a copy of `from`, whatever `to` was before. It stays open until execve or exit.
pub(super) fn place(
    from: BorrowedFd<'_>,
    to: RawFd,
    close_on_exec: bool,
) -> nix::Result<BorrowedFd<'static>> {
    if from.as_raw_fd() == to {
        // dup3 would refuse and the flag would stay; the caller lifts its sources first (`duplicate_above`).
        return Err(Errno::EINVAL);
    }
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 takes integers; it closes `to` if it was open. The caller is a process on its way to
    // execve that owns its whole descriptor table (see `close_range`).
    Errno::result(unsafe { libc::dup3(from.as_raw_fd(), to, flags) })?;
    // SAFETY: `to` was just opened by dup3, and no owner exists that could close it before the process ends.
    Ok(unsafe { BorrowedFd::borrow_raw(to) })
}

/// Duplicates a descriptor to the lowest free number from `lowest` on, close-on-exec.
pub(super) fn duplicate_above(fd: BorrowedFd<'_>, lowest: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an integer and opens a new descriptor.
    let new = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: fcntl has just made this descriptor and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Receives one message with at most `max_fds` descriptors, each close-on-exec from birth.
///
/// Returns the number of bytes; 0 is the end of the connection. A message longer than `buffer` or with
/// more descriptors than fit is an `EMSGSIZE` error (and consumed).
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    max_fds: usize,
    flags: MsgFlags,
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    // SAFETY: CMSG_SPACE only computes a size from an integer.
    let space = unsafe { libc::CMSG_SPACE((max_fds * size_of::<RawFd>()) as u32) } as usize;
    let mut control = vec![0u8; space];
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        flags | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    let cut = received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let bytes = received.bytes;
    if let Ok(messages) = received.cmsgs() {
        for message in messages {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just installed these descriptors for this message; nothing else
                // in the process knows their numbers, so this is their only owner.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    if cut { Err(Errno::EMSGSIZE) } else { Ok((bytes, fds)) }
}

/// Accepts a connection on a listening socket; the new descriptor is close-on-exec.
pub(super) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = nix::sys::socket::accept4(listener.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this descriptor and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets every signal back to its default and blocks none: the state a program expects to start in.
pub(super) fn reset_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the new action is the default one, so no handler code is installed, and the action it
        // replaces is not used again: the caller is about to execve.
        unsafe { sigaction(signal, &default) }?;
    }
    SigSet::empty().thread_set_mask()
}

/// Ignores one signal. Used for SIGPIPE: a reader that went away is an error code, not a death.
pub(super) fn ignore_signal(signal: Signal) -> nix::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: "ignore" installs no handler code.
    unsafe { sigaction(signal, &ignore) }.map(drop)
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`; version 3 takes two.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_VERSION_3: u32 = 0x2008_0522;

/// Sets all three capability sets to `value` in every bit (0 drops all).
pub(super) fn set_capabilities(value: u32) -> nix::Result<()> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let data = [CapData { effective: value, permitted: value, inheritable: value }; 2];
    // SAFETY: version 3 reads one header and exactly two data structs, which live through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Lets the next change of uid leave the capability sets as they are: where uid 0 exists in the user
/// namespace, leaving it would clear them.
pub(super) fn keep_capabilities_across_uids() -> nix::Result<()> {
    /// NO_SETUID_FIXUP.
    const SECUREBITS: c_long = 0b100;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0).map(drop)
}

/// For tests: lets the program that comes after execve have every capability that this process has. Without
/// this the kernel takes them from whoever is not root.
pub(super) fn pass_capabilities_on() -> nix::Result<()> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads the header and writes exactly two data structs.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    for set in &mut data {
        set.inheritable = set.permitted;
    }
    // SAFETY: version 3 reads one header and exactly two data structs, which live through the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    for cap in 0..64 {
        match prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as c_long, cap) {
            // EPERM: this process does not have it (containers leave some out).
            Ok(_) | Err(Errno::EPERM) => {}
            Err(Errno::EINVAL) if cap > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Clears the ambient set and locks the bits that would give capabilities back to uid 0.
pub(super) fn lock_securebits() -> nix::Result<()> {
    /// NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each with its lock; KEEP_CAPS locked off.
    const SECUREBITS: c_long = 0b1110_1111;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0)?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_long, 0).map(drop)
}

/// Empties the bounding set of this process and of all that it will fork: it never grows again (capabilities(7)).
pub(super) fn drop_bounding_set() -> nix::Result<()> {
    for cap in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, cap, 0) {
            Ok(_) => {}
            Err(Errno::EINVAL) if cap > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether the bounding set is empty, as the kernel says.
pub(super) fn bounding_set_is_empty() -> bool {
    // The first number that the kernel does not know ends the list; it knows 0.
    let held = (0..64).map_while(|cap| prctl(libc::PR_CAPBSET_READ, cap, 0).ok());
    let mut known = 0;
    held.inspect(|_| known += 1).all(|held| held == 0) && known > 0
}

/// Whether the process holds no capability, as the kernel says. An ambient one is always permitted too.
pub(super) fn holds_no_capability() -> nix::Result<bool> {
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads the header and writes exactly two data structs.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    Ok(data.iter().all(|d| d.effective | d.permitted | d.inheritable == 0))
}

/// Tries to take no_new_privs back, which must fail.
pub(super) fn clear_no_new_privs() -> nix::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0).map(drop)
}

fn prctl(option: c_int, a: c_long, b: c_long) -> nix::Result<c_int> {
    // SAFETY: only called with options whose arguments are integers; the unused ones must be zero.
    Errno::result(unsafe { libc::prctl(option, a, b, 0 as c_long, 0 as c_long) })
}

/// Borrows a descriptor by its number; `None` if the number cannot be one.
pub(super) fn borrow(number: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: the callers only ask for the flags of the descriptor (`verify`), which is harmless even if
    // it is not open; -1, the one number a BorrowedFd must not have, is ruled out.
    (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) })
}

/// Takes the exclusive lock of an open file, waiting for it. Forked children hold it too, until the last
/// of them is dead or one lets go with [`unlock`].
pub(super) fn lock(file: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: flock takes two integers.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}

/// Lets go of the lock for everyone who shares it.
pub(super) fn unlock(file: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: flock takes two integers.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}

/// Lets the slave of a new pseudoterminal be opened.
pub(super) fn unlock_terminal(master: BorrowedFd<'_>) -> nix::Result<()> {
    let locked: c_int = 0;
    // SAFETY: the request reads one integer, which lives through the call.
    let rc = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const locked) };
    Errno::result(rc).map(drop)
}

/// Opens the slave of a pseudoterminal, by no path; it becomes nobody's controlling terminal by this.
pub(super) fn open_terminal_slave(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes an integer and opens a new descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the call has just made this descriptor and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal the controlling one of the calling process, which leads a session without one. A terminal that
/// another session has is not taken away from it.
pub(super) fn take_terminal(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    const STEAL: c_int = 0;
    // SAFETY: the request takes an integer.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, STEAL) }).map(drop)
}

/// Gives one terminal the window size of another.
pub(super) fn copy_terminal_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one `winsize`, which lives through the call.
    Errno::result(unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) })?;
    // SAFETY: the request reads one `winsize`, which lives through the call.
    Errno::result(unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }).map(drop)
}

/// Installs a system call filter for the calling thread and all that it forks and executes.
///
/// Needs `no_new_privs`, or CAP_SYS_ADMIN in the user namespace; else EACCES.
pub(super) fn install_filter(program: &[seccompiler::sock_filter]) -> nix::Result<()> {
    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const seccompiler::sock_filter,
    }
    let length = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: the struct and the instructions it points to live through the call, and the length is theirs.
    // The kernel checks the program and keeps a copy.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as c_long,
            0 as c_long,
            &raw const program,
        )
    };
    Errno::result(rc).map(drop)
}

/// The mode of system call filtering of the calling thread: 0 none, 2 by filter.
pub(super) fn filter_mode() -> nix::Result<c_int> {
    prctl(libc::PR_GET_SECCOMP, 0, 0)
}

/// Calls keyctl with an operation that does not exist: EOPNOTSUPP unless a filter answers.
pub(super) fn try_keyring() -> Errno {
    // SAFETY: an unknown operation is refused before any argument is looked at.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, -1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) };
    Errno::result(rc).err().unwrap_or(Errno::UnknownErrno)
}

/// Calls mount without a target: EFAULT unless a filter answers.
pub(super) fn try_mount() -> Errno {
    const NONE: c_long = 0;
    // SAFETY: all pointers are null, which mount(2) refuses for the target and takes as absent for the others.
    let rc = unsafe { libc::syscall(libc::SYS_mount, NONE, NONE, NONE, NONE, NONE) };
    Errno::result(rc).err().unwrap_or(Errno::UnknownErrno)
}

/// Gives the process a new, empty session keyring: what its starters kept in theirs is out of reach.
pub(super) fn join_new_session_keyring() -> nix::Result<()> {
    const NO_NAME: c_long = 0;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read from memory.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING as c_long,
            NO_NAME,
            NO_NAME,
            NO_NAME,
        )
    };
    Errno::result(rc).map(drop)
}

/// The version of landlock's interface that the kernel offers. ENOSYS or EOPNOTSUPP: none.
pub(super) fn landlock_abi() -> nix::Result<u32> {
    const VERSION: c_long = 1;
    const NONE: c_long = 0;
    // SAFETY: with this flag the two others must be null and 0; nothing is read or written.
    let rc = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, NONE, NONE, VERSION) };
    Errno::result(rc).map(|abi| u32::try_from(abi).unwrap_or_default())
}

/// Makes a landlock ruleset that takes away what `handled` names, in the form that version `abi` reads.
pub(super) fn landlock_ruleset(handled: Handled, abi: u32) -> nix::Result<OwnedFd> {
    /// `struct landlock_ruleset_attr`, each field with the version it came with.
    #[repr(C)]
    struct Ruleset {
        files: u64,
        network: u64,
        scopes: u64,
    }
    let ruleset = Ruleset { files: handled.files, network: handled.network, scopes: handled.scopes };
    // An older kernel refuses a longer struct than it knows.
    let fields = match abi {
        0..=3 => 1,
        4..=5 => 2,
        _ => 3,
    };
    let size = fields * size_of::<u64>();
    // SAFETY: `size` bytes of a live struct are read; it is never larger than the struct.
    let fd =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size, 0 as c_long) };
    let fd = Errno::result(fd)?;
    // SAFETY: the call has just made this descriptor (close-on-exec) and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Adds a rule: `rights` on the file or on all below the folder that `beneath` is.
pub(super) fn landlock_allow(
    ruleset: BorrowedFd<'_>,
    beneath: BorrowedFd<'_>,
    rights: u64,
) -> nix::Result<()> {
    /// `struct landlock_path_beneath_attr`.
    #[repr(C, packed)]
    struct Beneath {
        rights: u64,
        fd: i32,
    }
    const PATH_BENEATH: c_long = 1;
    let rule = Beneath { rights, fd: beneath.as_raw_fd() };
    // SAFETY: the kernel reads a live struct of the layout that this rule type has, and keeps no descriptor.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            c_long::from(ruleset.as_raw_fd()),
            PATH_BENEATH,
            &raw const rule,
            0 as c_long,
        )
    };
    Errno::result(rc).map(drop)
}

/// Adds a rule: `rights` on a TCP port. Needs version 4 of the interface.
pub(super) fn landlock_allow_port(ruleset: BorrowedFd<'_>, port: u16, rights: u64) -> nix::Result<()> {
    /// `struct landlock_net_port_attr`.
    #[repr(C)]
    struct NetPort {
        rights: u64,
        port: u64,
    }
    const NET_PORT: c_long = 2;
    let rule = NetPort { rights, port: port.into() };
    // SAFETY: the kernel reads a live struct of the layout that this rule type has, and keeps nothing of it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            c_long::from(ruleset.as_raw_fd()),
            NET_PORT,
            &raw const rule,
            0 as c_long,
        )
    };
    Errno::result(rc).map(drop)
}

/// Puts a ruleset on the calling thread. Needs `no_new_privs`, or CAP_SYS_ADMIN in the user namespace.
pub(super) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: two integers.
    let rc = unsafe {
        libc::syscall(libc::SYS_landlock_restrict_self, c_long::from(ruleset.as_raw_fd()), 0 as c_long)
    };
    Errno::result(rc).map(drop)
}

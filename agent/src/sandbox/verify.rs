//! Checks from inside what a sandbox enforces. Nothing here is taken from what was intended.
#![forbid(unsafe_code)]

use super::keeper::Setup;
use super::landlock::{Rules, WHOLE_ABI};
use super::layer::{Hold, Layer, Layers};
use super::sys;
use super::wire::Mode;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode as FileMode, mkdirat, stat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Uid, UnlinkatFlags, geteuid, getpid, getppid, getuid, setresuid, unlinkat};
use std::fs;

/// The namespaces of a process, by the numbers that `/proc/PID/ns` shows. 0 is "could not be read".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NamespaceIds {
    pub(super) user: u64,
    pub(super) mount: u64,
    pub(super) pid: u64,
    pub(super) net: u64,
    pub(super) ipc: u64,
    pub(super) uts: u64,
}

impl NamespaceIds {
    /// Reads those of the calling process.
    pub(super) fn own() -> Self {
        let id = |name: &str| stat(format!("/proc/self/ns/{name}").as_str()).map_or(0, |s| s.st_ino);
        Self {
            user: id("user"),
            mount: id("mnt"),
            pid: id("pid"),
            net: id("net"),
            ipc: id("ipc"),
            uts: id("uts"),
        }
    }
}

/// Everything that an idle sandbox can tell: namespaces, uid and root.
pub(super) fn namespaces(setup: &Setup, own_proc: bool) -> Layers {
    let (own, host) = (NamespaceIds::own(), &setup.host);
    let differs = |own: u64, host: u64| {
        if own != 0 && host != 0 && own != host { Hold::Enforced } else { Hold::Absent }
    };
    let mount = match differs(own.mount, host.mount) {
        Hold::Enforced if own.mount == setup.keeper_mount => Hold::Degraded,
        hold => hold,
    };
    let pid = match differs(own.pid, host.pid) {
        // The host's processes can be seen, though not reached. In `host` that is the purpose.
        Hold::Enforced if !own_proc && !setup.profile.sees_host() => Hold::Degraded,
        Hold::Enforced if getpid().as_raw() > 16 => Hold::Absent,
        hold => hold,
    };
    let mut layers = Layers::from([
        (Layer::User, differs(own.user, host.user)),
        (Layer::Uid, uid(setup)),
        (Layer::Mount, mount),
        (Layer::Pid, pid),
        (Layer::Net, differs(own.net, host.net)),
        (Layer::Ipc, differs(own.ipc, host.ipc)),
        (Layer::Uts, differs(own.uts, host.uts)),
        (Layer::Root, root(setup)),
    ]);
    if let Some(account) = &setup.account {
        let holds = geteuid().as_raw() == account.uid && getuid() == geteuid();
        layers.insert(Layer::Account, if holds { Hold::Enforced } else { Hold::Absent });
    }
    layers
}

/// Whether the calling process's network is neither the launcher's nor, for all it can tell, unknown.
pub(super) fn is_in_another_network(setup: &Setup) -> bool {
    let own = NamespaceIds::own().net;
    own != 0 && setup.host.net != 0 && own != setup.host.net
}

fn uid(setup: &Setup) -> Hold {
    let own = geteuid().as_raw();
    // The map is U to U, so the uid seen here is the kernel's.
    let separate = setup.mode == Mode::Root && setup.account.is_none() && own == setup.uid && own != 0;
    if separate { Hold::Enforced } else { Hold::Absent }
}

fn root(setup: &Setup) -> Hold {
    let read_only = |path: &str| statvfs(path).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    if !read_only("/") || !read_only("/usr") {
        return Hold::Absent;
    }
    let private = stat("/").is_ok_and(|root| root.st_dev != setup.host_root_device);
    if private { Hold::Enforced } else { Hold::Degraded }
}

/// Lists what is open: 0 to 3, and above that only what execve closes.
pub(super) fn closed_descriptors() -> Hold {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Hold::Absent };
    let mut numbers = Vec::new();
    for entry in entries.flatten() {
        match entry.file_name().to_string_lossy().parse::<i32>() {
            Ok(number) => numbers.push(number),
            Err(_) => return Hold::Absent,
        }
    }
    let leaks = numbers.into_iter().filter(|number| *number > 3).any(|number| !closes_on_exec(number));
    if leaks { Hold::Absent } else { Hold::Enforced }
}

/// Whether descriptor `number` is closed by execve, or is not open (the listing's own is gone by now).
fn closes_on_exec(number: i32) -> bool {
    let Some(fd) = sys::borrow(number) else { return true };
    match fcntl(fd, FcntlArg::F_GETFD) {
        Ok(flags) => FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC),
        Err(_) => true,
    }
}

/// Reads the limits back.
pub(super) fn rlimits(wanted: &[(Resource, u64)]) -> Hold {
    let holds = |(resource, most): &(Resource, u64)| {
        getrlimit(*resource).is_ok_and(|(soft, hard)| soft <= *most && hard <= *most)
    };
    if wanted.iter().all(holds) { Hold::Enforced } else { Hold::Absent }
}

/// Reads the capability sets back. The keeper has read back that of which nothing can be had again.
pub(super) fn capabilities(setup: &Setup) -> Hold {
    let none = setup.no_bounding && sys::holds_no_capability() == Ok(true);
    if none { Hold::Enforced } else { Hold::Absent }
}

/// Tries to become root and to raise capabilities. Either must fail after they were dropped.
pub(super) fn can_regain_capabilities() -> bool {
    let root = Uid::from_raw(0);
    let became_root = !geteuid().is_root() && setresuid(root, root, root).is_ok();
    became_root || sys::set_capabilities(u32::MAX).is_ok() || sys::set_capabilities(1).is_ok()
}

/// Asks the kernel whether a filter is there, and tries two calls that it must refuse: one of what it holds for
/// keepers too, one of what it holds for scripts alone.
pub(super) fn seccomp() -> Hold {
    const BY_FILTER: i32 = 2;
    if sys::filter_mode() != Ok(BY_FILTER) || sys::try_keyring() != Errno::EPERM {
        return Hold::Absent;
    }
    if sys::try_mount() == Errno::EPERM { Hold::Enforced } else { Hold::Degraded }
}

/// Tries what landlock alone refuses: to make a folder in a writable file system that no rule opens, and to reach
/// init, which has the same uid, with a signal. `degraded`: the kernel's version knows less than this program.
pub(super) fn landlock(rules: &Rules) -> Hold {
    let made = mkdirat(&rules.closed, "probe", FileMode::empty());
    if made.is_ok() {
        let _ = unlinkat(&rules.closed, "probe", UnlinkatFlags::RemoveDir);
    }
    if made != Err(Errno::EACCES) {
        return Hold::Absent;
    }
    let scoped = rules.abi >= WHOLE_ABI && kill(getppid(), None) == Err(Errno::EPERM);
    if scoped { Hold::Enforced } else { Hold::Degraded }
}

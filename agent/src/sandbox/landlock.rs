//! Landlock: a second wall behind the mounts, the network namespace and the pid namespace. It knows folders by
//! what they are, not by their names, so it also holds for a descriptor that came from outside.
//!
//! Init makes the rules, because they name folders that each attempt has anew; the stage puts them on after the
//! last mount, since nothing can be mounted under them.
#![forbid(unsafe_code)]

use super::definition::{Access, ProfileDefinition};
use super::profile::Profile;
use super::step::{Step, StepError};
use super::sys;
use super::template::{DEVICES, SYSTEM_LINKS};
use super::terminal;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The version of the kernel's interface from which on all of this is enforced: files, TCP, scopes.
pub const WHOLE_ABI: u32 = 6;

/// The version from which on TCP can be ruled.
pub(super) const FIRST_WITH_TCP: u32 = 4;

/// Folders of the box that a script may write.
pub(super) const WRITABLE_IN_BOX: [&str; 3] = ["work", "tmp", "out"];

/// What else it may write in a private root: folders of its own at usual places.
pub(super) const WRITABLE_OUTSIDE: [&str; 2] = ["/tmp", "/dev/shm"];

/// Rights on files and folders.
mod access {
    pub(super) const EXECUTE: u64 = 1;
    pub(super) const WRITE_FILE: u64 = 1 << 1;
    pub(super) const READ_FILE: u64 = 1 << 2;
    pub(super) const READ_DIR: u64 = 1 << 3;
    /// Everything of the first version: removing and making files of each kind on top.
    pub(super) const FIRST: u64 = (1 << 13) - 1;
    pub(super) const MAKE_CHAR: u64 = 1 << 6;
    pub(super) const MAKE_BLOCK: u64 = 1 << 11;
    pub(super) const REFER: u64 = 1 << 13;
    pub(super) const TRUNCATE: u64 = 1 << 14;
    pub(super) const IOCTL_DEV: u64 = 1 << 15;
    /// Those that a rule about a file, which is no folder, may have.
    pub(super) const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
    /// TCP: bind and connect.
    pub(super) const TCP: u64 = 0b11;
    pub(super) const BIND_TCP: u64 = 0b01;
    pub(super) const CONNECT_TCP: u64 = 0b10;
    /// Scopes: abstract unix sockets and signals of processes outside.
    pub(super) const SCOPES: u64 = 0b11;
}

/// What a kernel of some version is asked to take away. What is not given back by a rule is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handled {
    pub(super) files: u64,
    pub(super) network: u64,
    pub(super) scopes: u64,
}

impl Handled {
    /// All that version `abi` knows of what this program knows. TCP stays where the profile has the host's network.
    fn new(abi: u32, profile: Profile, listed: bool) -> Self {
        let from = |version, rights| if abi >= version { rights } else { 0 };
        Self {
            files: access::FIRST
                | from(2, access::REFER)
                | from(3, access::TRUNCATE)
                | from(5, access::IOCTL_DEV),
            network: if profile == Profile::Strict || listed { from(FIRST_WITH_TCP, access::TCP) } else { 0 },
            scopes: from(6, access::SCOPES),
        }
    }
}

/// Rules that are ready to be put on.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) ruleset: OwnedFd,
    /// A folder that no rule opens, though nothing else closes it: for the check.
    pub(super) closed: OwnedFd,
    pub(super) abi: u32,
}

/// The version of landlock that the kernel offers, 0 if none.
pub fn abi() -> u32 {
    sys::landlock_abi().unwrap_or(0)
}

/// Makes the rules of an attempt whose folders are all mounted; `None` where the kernel has no landlock.
/// `closed` is a folder outside of every rule that may be written.
pub(super) fn prepare(
    profile: Profile,
    listed: bool,
    private_root: bool,
    base: &Path,
    closed: OwnedFd,
    definition: Option<&ProfileDefinition>,
    with_terminal: bool,
) -> Result<Option<Rules>, StepError> {
    const STEP: &str = "landlock";
    let abi = abi();
    if abi == 0 {
        return Ok(None);
    }
    let handled = Handled::new(abi, profile, listed);
    let ruleset = sys::landlock_ruleset(handled, abi).step(STEP, "making a ruleset")?;
    let allow = |path: &Path, rights: u64| match open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(fd) => sys::landlock_allow(ruleset.as_fd(), fd.as_fd(), rights & handled.files)
            .step(STEP, path.display()),
        // A host need not have every folder that hosts have.
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(StepError::new(STEP, errno, path.display())),
    };
    let read = access::READ_FILE | access::READ_DIR | access::EXECUTE;
    if private_root {
        // The root can be listed; what is in it has a rule of its own, so that the root of the host does not.
        allow(Path::new("/"), access::READ_DIR)?;
        for name in ["usr", "etc", "proc", "run"].iter().chain(&SYSTEM_LINKS) {
            allow(&Path::new("/").join(name), read)?;
        }
        allow(Path::new("/dev"), access::READ_DIR)?;
    } else {
        allow(Path::new("/"), read)?;
    }
    let node = access::READ_FILE | access::WRITE_FILE | access::TRUNCATE | access::IOCTL_DEV;
    for name in DEVICES {
        allow(&Path::new("/dev").join(name), node)?;
    }
    if with_terminal {
        allow(Path::new(terminal::CONTROLLING), node)?;
        allow(Path::new(terminal::FOLDER), node | access::READ_DIR)?;
    }
    let own = !(access::MAKE_CHAR | access::MAKE_BLOCK | access::IOCTL_DEV);
    for name in WRITABLE_IN_BOX {
        allow(&base.join(name), own)?;
    }
    if private_root {
        for path in WRITABLE_OUTSIDE {
            allow(Path::new(path), own)?;
        }
    }
    if let Some(definition) = definition {
        for change in &definition.paths {
            let rights = match change.access {
                Access::Read => read,
                Access::Write => own,
                Access::Hide => continue,
            };
            let mask = if change.path.is_dir() { u64::MAX } else { access::OF_FILES };
            allow(&change.path, rights & mask)?;
        }
        for path in &definition.devices {
            allow(path, node)?;
        }
    }
    Ok(Some(Rules { ruleset, closed, abi }))
}

/// Leaves the calling process, for good, folders and files to be read, and takes all else that the kernel's version
/// knows: other files, ports to bind, signals and abstract sockets of processes outside; with `port`, connections by TCP to
/// any other. For a process with its root and network left to it. A kernel without landlock takes nothing.
pub(super) fn confine(readable: &[PathBuf], port: Option<u16>) -> Result<(), StepError> {
    const STEP: &str = "landlock";
    let abi = abi();
    if abi == 0 {
        return Ok(());
    }
    let mut handled = Handled::new(abi, Profile::Strict, true);
    if port.is_none() {
        handled.network &= access::BIND_TCP;
    }
    let ruleset = sys::landlock_ruleset(handled, abi).step(STEP, "making a ruleset")?;
    for path in readable {
        // A host need not have every folder that hosts have.
        let Ok(fd) = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else { continue };
        let rights = access::READ_FILE | if path.is_dir() { access::READ_DIR } else { 0 };
        sys::landlock_allow(ruleset.as_fd(), fd.as_fd(), rights).step(STEP, path.display())?;
    }
    if let Some(port) = port.filter(|_| abi >= FIRST_WITH_TCP) {
        sys::landlock_allow_port(ruleset.as_fd(), port, access::CONNECT_TCP).step(STEP, port)?;
    }
    sys::landlock_restrict(ruleset.as_fd()).step(STEP, "putting rules on")
}

impl Rules {
    /// Lets a file that came from outside be opened again for reading, as `/dev/stdin` does.
    pub(super) fn allow_reading(&self, file: impl AsFd) -> nix::Result<()> {
        sys::landlock_allow(self.ruleset.as_fd(), file.as_fd(), access::READ_FILE)
    }

    /// Lets connections be made to ports, at whatever address: which of them is for the network namespace to say.
    pub(super) fn allow_ports(&self, ports: impl Iterator<Item = u16>) -> nix::Result<()> {
        if self.abi < FIRST_WITH_TCP {
            return Ok(());
        }
        ports
            .into_iter()
            .try_for_each(|port| sys::landlock_allow_port(self.ruleset.as_fd(), port, access::CONNECT_TCP))
    }

    /// Puts the rules on the calling process and all that come after it, for good.
    pub(super) fn put_on(&self) -> nix::Result<()> {
        sys::landlock_restrict(self.ruleset.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_asked_for_what_its_version_knows() {
        let files = |abi| Handled::new(abi, Profile::Strict, false).files.count_ones();
        assert_eq!([1, 2, 3, 4, 5, 6, 9].map(files), [13, 14, 15, 15, 16, 16, 16]);
        let network = |abi, profile| Handled::new(abi, profile, false).network;
        assert_eq!((network(3, Profile::Strict), network(4, Profile::Strict)), (0, 0b11));
        assert_eq!(network(9, Profile::Net), 0);
        assert_eq!(Handled::new(9, Profile::Host, true).network, 0b11);
        let scopes = |abi| Handled::new(abi, Profile::Host, false).scopes;
        assert_eq!((scopes(5), scopes(6)), (0, 0b11));
    }
}

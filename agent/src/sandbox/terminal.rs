//! A terminal for an interactive shell: a pseudoterminal in a file system of its own. The keeper makes it; the sandbox
//! has its slave, and whoever sent the plan gets its master. No descriptor of a terminal ever goes in from outside, so
//! whatever is done to this terminal is done to no other.
//!
//! Only a launcher that was started for it (`--terminal`, by `sally-agent sandbox shell`) makes keepers with a terminal.
#![forbid(unsafe_code)]

use super::step::{Step, StepError};
use super::sys;
use super::template::{bind_all, make_dir, make_file};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The file system of the terminal.
pub(super) const FOLDER: &str = "/dev/pts";

/// The node that means "the controlling terminal of whoever opens it".
pub(super) const CONTROLLING: &str = "/dev/tty";

const STEP: &str = "terminal";

/// Adds what a terminal needs to a root that is being built. More terminals than the keeper's cannot be made inside: the
/// node for it can be opened by nobody but a holder of capabilities.
pub(super) fn mount_in(root: &Path) -> Result<(), StepError> {
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    let (folder, node) = (inside(FOLDER), inside(CONTROLLING));
    if !folder.is_dir() {
        make_dir(&folder)?;
    }
    if !node.exists() {
        make_file(&node, b"", 0o666)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = "newinstance,ptmxmode=0000,mode=0600";
    mount(Some("devpts"), &folder, Some("devpts"), flags, Some(options)).step(STEP, "devpts")?;
    bind_all(Path::new(CONTROLLING), &node)
}

/// Makes a terminal; its master, and its slave. It belongs to the keeper's uid, which is the script's.
pub(super) fn make() -> Result<(OwnedFd, OwnedFd), StepError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let path = Path::new(FOLDER).join("ptmx");
    let master = open(&path, flags, Mode::empty()).step(STEP, path.display())?;
    sys::unlock_terminal(master.as_fd()).step(STEP, "unlocking it")?;
    let slave = sys::open_terminal_slave(master.as_fd()).step(STEP, "opening its slave")?;
    Ok((master, slave))
}

/// Gives one terminal the window size of another.
///
/// # Errors
/// One of them is no terminal.
pub fn copy_size(from: impl AsFd, to: impl AsFd) -> std::io::Result<()> {
    sys::copy_terminal_size(from.as_fd(), to.as_fd()).map_err(Into::into)
}

//! A slot as a place that one keeper at a time lives in: its lock file, and who holds it.
#![forbid(unsafe_code)]

use crate::sandbox::step::{Step, StepError};
use crate::sandbox::sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Waits until nobody else lives in the slot. While it waits, the launcher's death is its own.
pub(super) fn take_slot(path: &Path) -> Result<OwnedFd, StepError> {
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL).step("slot", "asking for the launcher's death signal")?;
    if getppid() != parent {
        sys::exit_now(1);
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file =
        open(path, flags, nix::sys::stat::Mode::from_bits_truncate(0o600)).step("slot", path.display())?;
    while let Err(errno) = sys::lock(file.as_fd()) {
        if errno != Errno::EINTR {
            return Err(StepError::new("slot", errno, path.display()));
        }
    }
    prctl::set_pdeathsig(None).step("slot", "no death signal any more")?;
    write_owner(&file).step("slot", path.display())?;
    Ok(file)
}

/// The slot's lock file.
pub(in crate::sandbox) fn lock_path(state: &Path, slot: u16) -> PathBuf {
    state.join(format!("slot-{slot}.lock"))
}

/// The keeper that lives in a slot, by its lock file. A process id alone is reused; with its time of start it is not.
pub(in crate::sandbox) fn owner(path: &Path) -> Option<Pid> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let pid: i32 = pid.parse().ok().filter(|pid| *pid > 1)?;
    (started_at(&pid.to_string())? == started).then(|| Pid::from_raw(pid))
}

fn write_owner(file: &OwnedFd) -> nix::Result<()> {
    let started = started_at("self").unwrap_or_default();
    nix::unistd::ftruncate(file, 0)?;
    nix::sys::uio::pwrite(file, format!("{} {started}\n", getpid()).as_bytes(), 0).map(drop)
}

/// When a process started, in the kernel's ticks.
pub(in crate::sandbox) fn started_at(process: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_slots_owner_is_known_by_its_start_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_path(dir.path(), 3);
        let file = fs::File::create(&path).unwrap();
        write_owner(&file.into()).unwrap();
        assert_eq!(owner(&path), Some(getpid()));
        for text in [format!("{} 1\n", getpid()), "1 1".into(), String::new(), "x".into()] {
            fs::write(&path, &text).unwrap();
            assert_eq!(owner(&path), None, "{text}");
        }
    }
}

//! The end of a launcher, and of what an earlier one has left.
#![forbid(unsafe_code)]

use super::slots::State;
use super::{LOOK_EVERY, Launcher};
use crate::sandbox::SandboxError;
use crate::sandbox::keeper;
use crate::sandbox::wire::{self, Order};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill as send_signal};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the end waits for keepers that should end with the launcher.
const STOP_LIMIT: Duration = Duration::from_secs(5);

impl Launcher {
    /// Ends idle keepers and, if so configured, running attempts; leaves the others to finish.
    pub(super) fn stop(&mut self) -> Result<(), SandboxError> {
        let kill = self.args.stop_kills;
        let _ = fs::remove_file(&self.args.socket);
        let mut left: Vec<Pid> = Vec::new();
        for handle in self.slots.iter().filter_map(|slot| slot.keeper.as_ref()) {
            let _ = wire::send(handle.socket.as_fd(), &Order::Stop { kill }, &[], MsgFlags::MSG_DONTWAIT);
            if handle.state == State::Starting {
                // Perhaps it waits for the slot, where no message reaches it. It has nothing to lose.
                let _ = send_signal(handle.pid, Signal::SIGKILL);
            }
            if kill || handle.state != State::Busy {
                left.push(handle.pid);
            }
        }
        let until = Instant::now() + STOP_LIMIT;
        loop {
            left.retain(|pid| {
                matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
            });
            let wait = until.saturating_duration_since(Instant::now());
            if left.is_empty() || wait.is_zero() {
                break;
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
        if !left.is_empty() {
            tracing::warn!(keepers = left.len(), "keepers did not end in time");
        }
        if kill {
            end_strays(&self.args.state, self.args.slots);
        }
        // The last of a tree leave their group a moment after their keeper is gone; runs that go on keep theirs.
        let work_goes_on =
            !kill && self.slots.iter().filter_map(|s| s.keeper.as_ref()).any(|k| k.state == State::Busy);
        while !self.groups.remove(self.args.slots) && !work_goes_on && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// Kills keepers that a launcher before this one left at work: no message reaches them, but each holds its slot's
/// lock and has written down who it is. Waits, for a bounded time, until their slots are free.
pub(super) fn end_strays(state: &Path, slots: u16) {
    let until = Instant::now() + STOP_LIMIT;
    for slot in 0..slots {
        let path = keeper::lock_path(state, slot);
        let Ok(file) = File::open(&path) else { continue };
        while file.try_lock().is_err() {
            if Instant::now() >= until {
                tracing::warn!(slot, "a keeper of an earlier launcher did not end in time");
                break;
            }
            if let Some(pid) = keeper::owner(&path) {
                let _ = send_signal(pid, Signal::SIGKILL);
            }
            // Nothing tells of the end of a process that is nobody's child here.
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

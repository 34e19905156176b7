//! What a keeper hears during an attempt: from the stage, from init, and from the agent.
#![forbid(unsafe_code)]

use super::outcome::{Cause, setup_failed};
use super::{Alarm, Attempt, INIT_LIMIT, deadline, tell, unix_ms};
use crate::sandbox::network_connector::Connector;
use crate::sandbox::record::Outcome;
use crate::sandbox::step::StepError;
use crate::sandbox::wire::{self, Word};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// `control`, agent to keeper: TERM, then KILL after the grace.
pub(in crate::sandbox) const CONTROL_CANCEL: u8 = b'T';

/// `control`, agent to keeper: KILL at once.
pub(in crate::sandbox) const CONTROL_KILL: u8 = b'K';

impl Attempt<'_> {
    /// Takes what the stage says, up to its end: of its words, or of itself.
    pub(super) fn hear_stage(&mut self, now: Instant, connector: Option<&Connector>) {
        while !self.stage_done() {
            match wire::receive::<Word>(self.prepared.stage_socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Word::Go(layers), _))) => {
                    self.layers = layers;
                    self.progress.going = true;
                }
                Ok(Some((Word::Listening, fds))) => connector.into_iter().for_each(|c| c.take(&fds)),
                Ok(Some((Word::Serve, fds))) => {
                    let list = self.plan.destinations.as_deref().unwrap_or_default();
                    connector.into_iter().for_each(|c| c.serve(list, &fds));
                }
                Ok(Some((word, _))) => self.note(word),
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // The end of the connection after "go" is the kernel's word for "executed".
                Ok(None) | Err(_) if self.progress.going => {
                    self.started = Some((now, unix_ms()));
                    if self.progress.cause.is_none() {
                        self.alarm = deadline(now, self.plan.timeout_ms).map(|due| (due, Alarm::Timeout));
                    }
                    self.cpu_look = Some(now);
                    tell(self.events, b's');
                }
                Ok(None) | Err(_) => {
                    let error = StepError::other("stage", "the sandbox ended before the script was started");
                    self.progress.reason = Some(setup_failed(error));
                }
            }
        }
    }

    fn note(&mut self, word: Word) {
        let (reason, layers) = match word {
            Word::NotReleased(layers) => (Outcome::NotStarted, layers),
            Word::Failed { error, layers } => (setup_failed(error), layers),
            Word::NotFound { what, layers } => (Outcome::NotFound { what }, layers),
            Word::ExecFailed { errno, message, layers } => (Outcome::ExecFailed { errno, message }, layers),
            Word::Prepared(_)
            | Word::Go(_)
            | Word::Listening
            | Word::Serve
            | Word::MainEnded(_)
            | Word::Report(_) => return,
        };
        self.layers = layers;
        self.progress.reason = Some(reason);
    }

    /// Takes what init says. Returns whether it is dead.
    pub(super) fn hear_init(&mut self, now: Instant) -> bool {
        match wire::receive::<Word>(self.prepared.init_socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Word::Report(report), _))) => {
                self.finished.get_or_insert_with(|| (now, unix_ms()));
                self.report = Some(report);
            }
            Ok(Some((Word::MainEnded(ended), _))) => {
                self.ended = Some(ended);
                self.finished = Some((now, unix_ms()));
                self.alarm = deadline(now, self.plan.exit_grace_ms).map(|due| (due, Alarm::Kill));
            }
            Ok(Some(_)) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(None) | Err(_) => return true,
        }
        false
    }

    /// Waits until init, killed without a report (with the tree, for want of memory), is dead, and with it the tree. It
    /// stays to be reaped, so that nobody else can have its number. A process that the kernel cannot end is not waited for.
    pub(super) fn await_init(&self) {
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let until = Instant::now() + INIT_LIMIT;
        while waitid(Id::Pid(self.prepared.init), how) == Ok(WaitStatus::StillAlive) && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn hear_control(&mut self, now: Instant) {
        let Some(control) = &self.control else { return };
        let mut orders = [0u8; 64];
        match read(control, &mut orders) {
            Ok(length) if length > 0 => {
                let kill = orders[..length].contains(&CONTROL_KILL);
                if kill || orders[..length].contains(&CONTROL_CANCEL) {
                    self.end(Cause::Cancel, now, kill);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => self.control = None,
        }
    }
}

//! The launcher's slots: a keeper in each, who waits for one, and who takes the place of a keeper that died.
#![forbid(unsafe_code)]

use super::Launcher;
use crate::sandbox::keeper::{self, Setup};
use crate::sandbox::profile::{Profile, Shape};
use crate::sandbox::step::StepError;
use crate::sandbox::sys::{self, Fork};
use crate::sandbox::wire::{self, Notice, Order, Reply};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

#[derive(Default)]
pub(super) struct Slot {
    pub(super) keeper: Option<Handle>,
    /// Who waits for it: connection, kind of plans, until when.
    pub(super) waiting: Vec<(u64, Shape, Instant)>,
}

/// A keeper as its launcher holds it.
pub(super) struct Handle {
    pub(super) pid: Pid,
    pub(super) socket: OwnedFd,
    pub(super) shape: Shape,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Idle,
    Busy,
}

impl Launcher {
    pub(super) fn start_keepers(&mut self) {
        for slot in 0..self.args.slots {
            self.start_keeper(slot, Shape::built_in(Profile::Strict));
        }
    }

    /// Forks a keeper for a slot, in place of the handle that may be there.
    pub(super) fn start_keeper(&mut self, slot: u16, shape: Shape) {
        let (socket, end) = match wire::pair() {
            Ok(pair) => pair,
            Err(errno) => return self.note_trouble(slot, StepError::new("launcher", errno, "socket pair")),
        };
        let setup = match self.setup(slot, &shape) {
            Ok(setup) => setup,
            Err(message) => return self.note_trouble(slot, StepError::other("profile", message)),
        };
        let rates = setup.definition.as_ref().map(|definition| definition.rates).unwrap_or_default();
        let group = self.groups.open(slot, &rates).without(&self.args.broken);
        match sys::fork() {
            Ok(Fork::Child) => keeper::enter(Setup { group, ..setup }, end),
            Ok(Fork::Parent(pid)) => {
                let handle = Handle { pid, socket, shape, state: State::Starting };
                self.slots[usize::from(slot)].keeper = Some(handle);
            }
            Err(errno) => self.note_trouble(slot, StepError::new("launcher", errno, "forking a keeper")),
        }
    }

    /// Notes that a keeper is dead, and puts another in its place unless it could not be built at all.
    pub(super) fn bury(&mut self, pid: Pid, replace: bool) {
        let found = (0..).zip(&self.slots).find(|(_, s)| s.keeper.as_ref().is_some_and(|k| k.pid == pid));
        let Some((slot, _)) = found.map(|(number, _)| (number, ())) else { return };
        self.hear_keeper(slot); // Its last words may still be unread.
        let Some(handle) = self.slots[usize::from(slot)].keeper.take_if(|k| k.pid == pid) else { return };
        if handle.state == State::Starting {
            let error = self
                .trouble
                .clone()
                .unwrap_or_else(|| StepError::other("keeper", "the keeper ended while it was being built"));
            self.note_trouble(slot, error);
        } else if replace {
            tracing::warn!(slot, pid = pid.as_raw(), "keeper died, starting another");
            self.start_keeper(slot, handle.shape);
        }
    }

    /// A slot without a keeper: tells all who wait for it. The next request tries again.
    fn note_trouble(&mut self, slot: u16, error: StepError) {
        tracing::error!(slot, step = error.step, "keeper could not be made: {}", error.message);
        for (id, _, _) in std::mem::take(&mut self.slots[usize::from(slot)].waiting) {
            self.reply(id, &Reply::Failed(error.clone()), &[]);
        }
        self.trouble = Some(error);
    }

    pub(super) fn hear_keeper(&mut self, slot: u16) {
        loop {
            let Some(handle) = &mut self.slots[usize::from(slot)].keeper else { return };
            match wire::receive::<Notice>(handle.socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Notice::Ready(layers), _))) => {
                    handle.state = State::Idle;
                    // Whoever was in this slot before is gone, and with the last one a group may be.
                    self.groups.sweep();
                    if handle.shape == Shape::built_in(Profile::Strict) {
                        self.layers = layers;
                    }
                    self.trouble = None;
                    self.grant(slot);
                }
                Ok(Some((Notice::Idle, _))) => {
                    handle.state = State::Idle;
                    self.grant(slot);
                }
                Ok(Some((Notice::Busy, _))) => handle.state = State::Busy,
                Ok(Some((Notice::Failed(error), _))) => {
                    handle.state = State::Starting;
                    self.trouble = Some(error);
                }
                // Its death comes as a signal.
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Serves those who wait for an idle slot. The last one gets the keeper, as an agent that restarted does.
    pub(super) fn grant(&mut self, number: u16) {
        let slot = &mut self.slots[usize::from(number)];
        let Some(handle) = slot.keeper.as_mut().filter(|handle| handle.state == State::Idle) else { return };
        let Some((_, wanted, _)) = slot.waiting.first().cloned() else { return };
        if handle.shape != wanted {
            // Made for another root: it ends, and the new one waits for the slot's lock until it has.
            let _ =
                wire::send(handle.socket.as_fd(), &Order::Stop { kill: false }, &[], MsgFlags::MSG_DONTWAIT);
            slot.keeper = None;
            return self.start_keeper(number, wanted);
        }
        let first = slot.waiting.remove(0);
        let id = first.0;
        let given = wire::pair().and_then(|(client, end)| {
            sally_common::fail::point("launcher.client.before");
            wire::send(handle.socket.as_fd(), &Order::Client, &[end.as_fd()], MsgFlags::MSG_DONTWAIT)?;
            Ok(client)
        });
        match given {
            Ok(client) => self.reply(id, &Reply::Opened, &[client.as_fd()]),
            Err(Errno::EPIPE) => {
                // It has died, of which the signal is on its way: whoever waits gets the next one.
                handle.state = State::Busy;
                return slot.waiting.insert(0, first);
            }
            Err(errno) => {
                let error = StepError::new("launcher", errno, "handing over the keeper's socket");
                self.reply(id, &Reply::Failed(error), &[]);
            }
        }
        self.grant(number);
    }

    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let mut late = Vec::new();
        for slot in &mut self.slots {
            late.extend(slot.waiting.extract_if(.., |(_, _, until)| *until <= now).map(|(id, _, _)| id));
        }
        for id in late {
            self.reply(id, &Reply::Busy, &[]);
        }
    }
}

//! The launcher's socket, and what agents ask on it.
#![forbid(unsafe_code)]

use super::Launcher;
use super::slots::{Slot, State};
use crate::sandbox::SandboxError;
use crate::sandbox::landlock;
use crate::sandbox::profile::Shape;
use crate::sandbox::sys;
use crate::sandbox::wire::{self, LauncherInfo, Reply, Request, WIRE_VERSION};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::unistd::{Uid, chown, geteuid, getpid};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a request for a slot waits for the slot to become free.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// Agents connected at one time: the one that works, and a few that come and go.
const MAX_CONNECTIONS: usize = 16;

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) socket: OwnedFd,
}

impl Launcher {
    pub(super) fn accept(&mut self) {
        let Ok(socket) = sys::accept(self.listener.as_fd()) else { return };
        let allowed = getsockopt(&socket, sockopt::PeerCredentials).is_ok_and(|peer| {
            let uid = peer.uid();
            uid == 0 || uid == geteuid().as_raw() || Some(uid) == self.args.socket_owner
        });
        if !allowed || self.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!(allowed, connections = self.connections.len(), "connection refused");
            return;
        }
        self.next_connection += 1;
        self.connections.push(Connection { id: self.next_connection, socket });
    }

    pub(super) fn hear_connection(&mut self, id: u64) {
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else { return };
        match wire::receive::<Request>(connection.socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Request::Info, _))) => self.reply(id, &Reply::Info(self.info()), &[]),
            Ok(Some((Request::Open { slot, shape }, _))) => self.open(id, slot, shape),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EBADMSG | Errno::EMSGSIZE) => {
                self.reply(id, &Reply::Refused("the request cannot be read".into()), &[]);
            }
            Ok(None) | Err(_) => self.connections.retain(|c| c.id != id),
        }
    }

    /// Gives a connection a socket to a keeper of the slot, now or as soon as there is one.
    fn open(&mut self, id: u64, slot: u16, shape: Shape) {
        if slot >= self.args.slots {
            let message = format!("there is no slot {slot}; this launcher has {}", self.args.slots);
            return self.reply(id, &Reply::Refused(message), &[]);
        }
        if let Err(message) = self.parts(&shape) {
            return self.reply(id, &Reply::Refused(message), &[]);
        }
        self.slots[usize::from(slot)].waiting.push((id, shape.clone(), Instant::now() + OPEN_LIMIT));
        if self.slots[usize::from(slot)].keeper.is_none() {
            self.start_keeper(slot, shape);
        }
        self.grant(slot);
    }

    /// Answers without waiting: an agent that does not read its answers loses its connection.
    pub(super) fn reply(&mut self, id: u64, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = self.connections.iter().find(|c| c.id == id) else { return };
        if wire::send(connection.socket.as_fd(), reply, fds, MsgFlags::MSG_DONTWAIT).is_err() {
            self.connections.retain(|c| c.id != id);
        }
    }

    fn info(&self) -> LauncherInfo {
        let busy = |slot: &Slot| slot.keeper.as_ref().is_none_or(|k| k.state != State::Idle);
        LauncherInfo {
            wire: WIRE_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: getpid().as_raw(),
            mode: self.mode,
            uid_base: self.uid_of(0),
            slots: self.args.slots,
            max_profile: self.args.max_profile,
            host_box: self.host_box.to_string_lossy().into_owned(),
            busy: (0..).zip(&self.slots).filter(|(_, slot)| busy(slot)).map(|(number, _)| number).collect(),
            layers: self.layers.clone(),
            landlock_abi: landlock::abi(),
            trouble: self.trouble.clone(),
            defined: self.definitions.summary(),
            users: self.accounts.names(),
        }
    }
}

pub(super) fn listen_on(path: &Path, owner: Option<u32>) -> Result<OwnedFd, SandboxError> {
    let failed = |errno: Errno| SandboxError::path("listen on", path, errno.into());
    // The state folder's lock is held, so a socket that is there belongs to nobody.
    let _ = fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(failed)?;
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixAddr::new(path).and_then(|address| bind(socket.as_raw_fd(), &address));
    nix::sys::stat::umask(before);
    bound.map_err(failed)?;
    if let Some(owner) = owner {
        chown(path, Some(Uid::from_raw(owner)), None).map_err(failed)?;
    }
    listen(&socket, Backlog::new(16).unwrap_or(Backlog::MAXCONN)).map_err(failed)?;
    Ok(socket)
}

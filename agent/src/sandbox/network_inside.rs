//! The network of one attempt with a list of destinations, from inside: a namespace of its own in which loopback has the
//! listed addresses, and the sockets that listen there. The stage makes it, while it still may, and gives the sockets away.
#![forbid(unsafe_code)]

use super::layer::Hold;
use super::network::{self, Destination};
use super::step::{Step, StepError};
use super::wire;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    getsockopt, listen, recv, send, setsockopt, socket, sockopt,
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const STEP: &str = "network";

/// Loopback is the first interface of every namespace.
const LOOPBACK: i32 = 1;

/// How long the process outside may take to say that it serves, in milliseconds.
const READY_LIMIT: u16 = 10_000;

/// How long a connection that must fail may take to do so, in milliseconds.
const ATTEMPT_LIMIT: u16 = 1_000;

/// Connections that wait to be accepted, for each socket.
const BACKLOG: i32 = 64;

/// The connector's word that it serves.
pub(super) const SERVES: u8 = b'r';
/// The connector's word that there is no network where it lives.
pub(super) const NO_NETWORK: u8 = b'n';

/// Makes the addresses of the list addresses of this namespace's loopback, and returns a listening socket for each.
pub(super) fn build(list: &[Destination]) -> Result<Vec<OwnedFd>, StepError> {
    let kernel = Netlink::new().step(STEP, "talking to the kernel about addresses")?;
    kernel.loopback_up().step(STEP, "loopback")?;
    for (address, bits) in network::routes(list) {
        let done = kernel.make_local(address, bits);
        done.step(STEP, format!("making {address}/{bits} an address of the sandbox's loopback"))?;
    }
    let socket = |at: &SocketAddr| listen_at(*at).step(STEP, format!("listening at {at} inside"));
    network::listeners(list).iter().map(socket).collect()
}

fn listen_at(at: SocketAddr) -> nix::Result<OwnedFd> {
    // A kernel without IPv6 has only the other half of "everywhere".
    let without = |errno| at.ip().is_unspecified() && errno == Errno::EAFNOSUPPORT;
    listen_exactly(at).or_else(|errno| match without(errno) {
        true => listen_exactly(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), at.port())),
        false => Err(errno),
    })
}

fn listen_exactly(at: SocketAddr) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family(at.ip()), SockType::Stream, flags, SockProtocol::Tcp)?;
    if at.is_ipv6() {
        // IPv4 too where it is "everywhere". An address that is routed here need not be one of an interface.
        setsockopt(&fd, sockopt::Ipv6V6Only, &!at.ip().is_unspecified())?;
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Waits until the connector says that it serves.
pub(super) fn await_connector(ready: &OwnedFd, list: &[Destination]) -> Result<(), StepError> {
    let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
    while poll(&mut fds, READY_LIMIT) == Err(Errno::EINTR) {}
    let word = wire::receive_bytes(ready.as_fd(), MsgFlags::MSG_DONTWAIT);
    match word.ok().flatten().and_then(|(bytes, _)| bytes.first().copied()) {
        Some(SERVES) => Ok(()),
        Some(NO_NETWORK) => {
            let which = network::needs_network(list).map(ToString::to_string).unwrap_or_default();
            Err(StepError::other(
                STEP,
                format!(
                    "{which} cannot be reached: the launcher has no interface but loopback; if its unit has \
                     PrivateNetwork=yes, take that out, or give the host a network"
                ),
            ))
        }
        _ => Err(StepError::other(STEP, "the process that makes the connections is gone; run it again")),
    }
}

/// Tries from inside what must hold: no interface but loopback is up, an address and a port that are not listed cannot be
/// reached. That the namespace is another one than the host's is checked beside this.
pub(super) fn check(list: &[Destination]) -> Hold {
    let only_loopback = Netlink::new().and_then(|kernel| kernel.interfaces_up());
    if only_loopback != Ok(BTreeSet::from([LOOPBACK])) {
        return Hold::Absent;
    }
    let free = |at: &SocketAddr| network::target(list, *at).is_none();
    let listed = network::ports(list);
    let ports = || (1..u16::MAX).filter(|port| !listed.contains(port));
    let closed = ports().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).next();
    // An address that is reserved for documentation: if it is listed, by *, only its port is tried.
    let elsewhere = ports().map(|port| SocketAddr::from(([192, 0, 2, 1], port))).find(free);
    let routed = network::routes(list).iter().any(|(_, bits)| *bits == 0);
    let refused = |at: Option<SocketAddr>, with: &[Errno]| at.is_none_or(|at| with.contains(&attempt(at)));
    let holds = refused(closed, &[Errno::ECONNREFUSED])
        && (routed || refused(elsewhere, &[Errno::ENETUNREACH, Errno::ECONNREFUSED]));
    if holds { Hold::Enforced } else { Hold::Absent }
}

/// How a connection ends that goes nowhere but to loopback: at once, or on a busy machine soon.
fn attempt(at: SocketAddr) -> Errno {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = match socket(family(at.ip()), SockType::Stream, flags, SockProtocol::Tcp) {
        Ok(fd) => fd,
        Err(errno) => return errno,
    };
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(at)) {
        Err(Errno::EINPROGRESS) => {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, ATTEMPT_LIMIT);
            match getsockopt(&fd, sockopt::SocketError) {
                Ok(0) | Err(_) => Errno::EINPROGRESS,
                Ok(errno) => Errno::from_raw(errno),
            }
        }
        Err(errno) => errno,
        Ok(()) => Errno::UnknownErrno,
    }
}

/// A socket to the kernel's tables of interfaces and routes.
struct Netlink(OwnedFd);

/// Numbers of the kernel's interface that no library names here.
mod message {
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const REQUEST: u16 = 1;
    pub(super) const ACKNOWLEDGE: u16 = 4;
    pub(super) const DUMP: u16 = 0x300;
    pub(super) const CREATE: u16 = 0x400;
    /// The length of every message's head.
    pub(super) const HEAD: usize = 16;
    /// The length of what follows the head in messages of interfaces.
    pub(super) const LINK: usize = 16;
}

impl Netlink {
    fn new() -> nix::Result<Self> {
        let route = SockProtocol::NetlinkRoute;
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route).map(Netlink)
    }

    fn loopback_up(&self) -> nix::Result<()> {
        const UP: u32 = 1;
        let mut body = vec![0; 4];
        body.extend(LOOPBACK.to_ne_bytes());
        body.extend(UP.to_ne_bytes());
        body.extend(UP.to_ne_bytes());
        self.ask(message::NEW_LINK, message::ACKNOWLEDGE, &body)
    }

    /// Has the kernel take a network for its own: what goes there stays here.
    fn make_local(&self, network: IpAddr, bits: u8) -> nix::Result<()> {
        const LOCAL_TABLE: u8 = 255;
        const BY_ADMINISTRATOR: u8 = 4;
        const THIS_HOST: u8 = 254;
        const LOCAL: u8 = 2;
        const TO: u16 = 1;
        const THROUGH: u16 = 4;
        let family = family(network) as u8;
        let mut body = vec![family, bits, 0, 0, LOCAL_TABLE, BY_ADMINISTRATOR, THIS_HOST, LOCAL, 0, 0, 0, 0];
        let mut attribute = |kind: u16, value: &[u8]| {
            // An address and a number fill whole words, so nothing is padded.
            let length = u16::try_from(4 + value.len()).unwrap_or_default();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        };
        match network {
            _ if bits == 0 => {}
            IpAddr::V4(v4) => attribute(TO, &v4.octets()),
            IpAddr::V6(v6) => attribute(TO, &v6.octets()),
        }
        attribute(THROUGH, &LOOPBACK.to_ne_bytes());
        match self.ask(message::NEW_ROUTE, message::ACKNOWLEDGE | message::CREATE, &body) {
            // It is all of an address family that this kernel does not have: nobody can connect there.
            Err(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) if bits == 0 && network.is_ipv6() => Ok(()),
            done => done,
        }
    }

    /// The numbers of interfaces that are up.
    fn interfaces_up(&self) -> nix::Result<BTreeSet<i32>> {
        self.send(message::GET_LINK, message::DUMP, &[0; message::LINK])?;
        let mut found = BTreeSet::new();
        loop {
            let answer = self.receive()?;
            let mut rest = &answer[..];
            while let Some((kind, body, next)) = split(rest) {
                match kind {
                    message::DONE => return Ok(found),
                    message::ERROR => return Err(Errno::from_raw(-number(body, 0))),
                    message::NEW_LINK if number(body, 8) & 1 != 0 => {
                        found.insert(number(body, 4));
                    }
                    _ => {}
                }
                rest = next;
            }
        }
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> nix::Result<()> {
        self.send(kind, flags, body)?;
        let answer = self.receive()?;
        match split(&answer) {
            Some((message::ERROR, body, _)) => match number(body, 0) {
                0 => Ok(()),
                errno => Err(Errno::from_raw(-errno)),
            },
            _ => Err(Errno::EBADMSG),
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> nix::Result<()> {
        let length = u32::try_from(message::HEAD + body.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | message::REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)
    }

    fn receive(&self) -> nix::Result<Vec<u8>> {
        let mut bytes = vec![0; 32 * 1024];
        let length = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// The first message: its kind, its body, and what comes after it. `None` at the end, or if it is torn.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes.get(..4)?, 0)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(message::HEAD..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The number at a place of a message; 0 beyond its end.
fn number(bytes: &[u8], at: usize) -> i32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart_and_torn_ones_end_it() {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(7u16.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(5i32.to_ne_bytes());
        let twice = [&bytes[..], &bytes].concat();
        let first = split(&twice).map(|(kind, body, next)| (kind, number(body, 0), next.len()));
        assert_eq!(first, Some((7, 5, 20)));
        for length in 0..20 {
            assert_eq!(split(&bytes[..length]), None, "{length}");
        }
        let short = [&8u32.to_ne_bytes()[..], &[0; 16]].concat();
        assert_eq!(split(&short), None);
        assert_eq!(number(&[1, 2], 0), 0);
    }

    #[test]
    fn the_kernel_tells_which_interfaces_are_up() {
        let up = Netlink::new().and_then(|kernel| kernel.interfaces_up());
        assert!(up.is_ok_and(|up| up.contains(&LOOPBACK)), "loopback of the test's own namespace");
    }
}

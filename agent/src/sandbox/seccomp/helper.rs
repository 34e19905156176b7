//! The filters of the processes outside that make the connections of a list of destinations: shorter than any script's.
#![forbid(unsafe_code)]

use super::calls::{self, CONNECTOR, RELAY};
use super::{
    Argument, INTERNET, Is, Limit, NAMESPACE_FLAGS, Rules, SOCK_DCCP, SOCK_PACKET, SOCKET_KIND, add_limits,
    compile, compile_error, is,
};
use crate::sandbox::step::StepError;
use crate::sandbox::sys;
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompRule};

/// Of the connector, and of the process of one connection.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::sandbox) struct HelperFilters {
    connector: [BpfProgram; 2],
    relay: BpfProgram,
}

impl HelperFilters {
    pub(in crate::sandbox) fn new() -> Result<Self, StepError> {
        let any = |lines| calls::numbers(lines).map(|number| (number, vec![])).collect::<Rules>();
        let mut limited = Rules::new();
        add_limits(&mut limited, &limits()).map_err(compile_error)?;
        let mut relay = any(RELAY);
        // The one that leads out.
        let stream = INTERNET.map(|family| {
            let tcp = is(1, Is::Masked(SOCKET_KIND, libc::SOCK_STREAM as u32));
            [is(0, Is::Equal(family as u32)), tcp, is(2, Is::Equal(0))]
        });
        relay.insert(libc::SYS_socket, rules(&stream)?);
        let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
        let not_permitted = SeccompAction::Errno(libc::EPERM as u32);
        Ok(Self {
            connector: [
                compile(any(CONNECTOR), SeccompAction::Allow, unknown)?,
                compile(limited, not_permitted.clone(), SeccompAction::Allow)?,
            ],
            relay: compile(relay, SeccompAction::Allow, not_permitted)?,
        })
    }

    pub(in crate::sandbox) fn install_for_connector(&self) -> nix::Result<()> {
        self.connector.iter().try_for_each(|program| sys::install_filter(program))
    }

    pub(in crate::sandbox) fn install_for_relay(&self) -> nix::Result<()> {
        sys::install_filter(&self.relay)
    }
}

fn rules(all: &[[Argument; 3]]) -> Result<Vec<SeccompRule>, StepError> {
    let rule = |arguments: &[Argument; 3]| {
        let conditions = arguments.iter().map(super::condition).collect::<Result<_, _>>()?;
        SeccompRule::new(conditions)
    };
    all.iter().map(rule).collect::<Result<_, _>>().map_err(compile_error)
}

/// Calls of a connector that are refused by their arguments.
fn limits() -> Vec<Limit> {
    let socket = |when, why| Limit { name: "socket", call: libc::SYS_socket, when, why };
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let other = families.iter().map(|family| is(0, Is::NotEqual(*family as u32))).collect();
    let mut limits = vec![socket(other, "families but those of the internet, and how to ask for interfaces")];
    for family in INTERNET {
        for kind in
            [libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_SEQPACKET, SOCK_DCCP as i32, SOCK_PACKET as i32]
        {
            let when = vec![is(0, Is::Equal(family as u32)), is(1, Is::Masked(SOCKET_KIND, kind as u32))];
            limits.push(socket(when, "anything but TCP, and UDP to ask for names"));
        }
    }
    let route = libc::NETLINK_ROUTE as u32;
    let netlink = is(0, Is::Equal(libc::AF_NETLINK as u32));
    limits.push(socket(vec![netlink, is(2, Is::NotEqual(route))], "netlink but for addresses"));
    // A pair for datagrams could send to any unix socket.
    let packets = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u32;
    let pair = |argument| Limit {
        name: "socketpair",
        call: libc::SYS_socketpair,
        when: vec![argument],
        why: "pairs but of packets",
    };
    limits.extend([is(0, Is::NotEqual(libc::AF_UNIX as u32)), is(1, Is::NotEqual(packets))].map(pair));
    for (flag, why) in NAMESPACE_FLAGS {
        let when = vec![is(0, Is::Masked(flag as u32, flag as u32))];
        limits.push(Limit { name: "clone", call: libc::SYS_clone, when, why });
    }
    limits
}

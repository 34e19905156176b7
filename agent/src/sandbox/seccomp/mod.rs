//! The system call filter: an allow-list for every profile, with some calls limited by their arguments.
//!
//! Three programs, because a filter has one answer for what matches and costs time for each line when it is
//! installed (half a millisecond for the whole list). The first two are installed once by the keeper and are
//! inherited by each attempt; they leave out what keeper and init need themselves. The last, a short one, is
//! installed by the stage and takes that away too. The kernel applies all three and the strictest answer holds.
//!
//! - `allowed`: what is not in the list does not exist (ENOSYS: a C library then tries an older way, which is
//!   how `clone3`, whose flags no filter can read, becomes `clone`).
//! - `refused`: named calls and arguments are not permitted (EPERM).
//! - `last`: mounts, and processes in new namespaces, are not permitted (EPERM).
//!
//! Calls by another architecture's table (`int 0x80`) kill the process; x32 numbers are in no list.
#![forbid(unsafe_code)]

mod calls;
mod helper;

pub(super) use helper::HelperFilters;

use super::definition::ProfileDefinition;
use super::profile::Profile;
use super::step::StepError;
use super::sys;
use calls::{ALLOWED, BEFORE_THE_SCRIPT, Call, KEYS, Line, NEEDED, REFUSED};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The compiled filters of one profile.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Filters {
    allowed: BpfProgram,
    refused: BpfProgram,
    last: BpfProgram,
}

/// Rules for one call: it matches if all conditions of any rule do. No rule: it always matches.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// An argument of a call, compared as the 32 bits that the kernel uses of it.
#[derive(Clone, Debug, PartialEq)]
struct Argument {
    number: u8,
    is: Is,
}

#[derive(Clone, Debug, PartialEq)]
enum Is {
    Equal(u32),
    NotEqual(u32),
    /// The bits of the mask have this value.
    Masked(u32, u32),
}

/// A call that is refused for certain arguments: all of a list at once.
#[derive(Clone, Debug, PartialEq)]
struct Limit {
    name: &'static str,
    call: i64,
    when: Vec<Argument>,
    why: &'static str,
}

/// Bits of `clone` that make new namespaces, each refused by itself.
const NAMESPACE_FLAGS: [(i32, &str); 7] = [
    (libc::CLONE_NEWNS, "mount"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUSER, "user"),
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
];

/// Taking a terminal as one's own: scripts have none, and programs that make theirs do it before they are scripts.
const TIOCSCTTY: u32 = 0x540e;

/// TIOCLINUX and TIOCSETD are in no header that this program reads on every architecture.
const TERMINAL_REQUESTS: [(u32, &str); 3] = [
    (0x5412, "TIOCSTI: typing into a terminal"),
    (0x541c, "TIOCLINUX: pasting into a console"),
    (0x5423, "TIOCSETD: loading a line discipline"),
];

/// The bits of a socket's type that are not flags.
const SOCKET_KIND: u32 = 0xf;

/// The families of the internet.
const INTERNET: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// A kind of socket that the C library does not name everywhere.
const SOCK_DCCP: u32 = 6;

/// The old way to a packet socket.
const SOCK_PACKET: u32 = 10;

impl Filters {
    /// Compiles the filters of a profile for this architecture, with what its definition changes, if it has one.
    /// `listed`: with a list of destinations in place of the profile's network.
    pub(super) fn new(
        profile: Profile,
        listed: bool,
        changes: Option<&ProfileDefinition>,
    ) -> Result<Self, StepError> {
        let every = |lines| calls::numbers(lines).map(|number| (number, vec![]));
        let named =
            |names: &[String]| -> Vec<i64> { names.iter().filter_map(|name| calls::number(name)).collect() };
        let (more, less) =
            changes.map(|c| (named(&c.allowed_calls), named(&c.refused_calls))).unwrap_or_default();
        let any = |numbers: &[i64]| numbers.iter().map(|number| (*number, vec![])).collect::<Rules>();
        let allowed: Rules = every(ALLOWED).chain(every(BEFORE_THE_SCRIPT)).chain(any(&more)).collect();
        let mut refused: Rules = every(REFUSED).filter(|(number, _)| !more.contains(number)).collect();
        add_limits(&mut refused, &limits(profile, listed, changes)).map_err(compile_error)?;
        // Those that a definition refuses come last: keeper, init and stage may need them.
        let mut last: Rules = every(BEFORE_THE_SCRIPT).collect();
        add_limits(&mut last, &last_limits(profile, listed)).map_err(compile_error)?;
        last.extend(any(&less));
        let not_permitted = SeccompAction::Errno(libc::EPERM as u32);
        let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
        Ok(Self {
            allowed: compile(allowed, SeccompAction::Allow, unknown)?,
            refused: compile(refused, not_permitted.clone(), SeccompAction::Allow)?,
            last: compile(last, not_permitted, SeccompAction::Allow)?,
        })
    }

    /// Installs what holds for the keeper too. It must have CAP_SYS_ADMIN in its user namespace. The order
    /// matters: of two errors the kernel returns that of the filter that came later.
    pub(super) fn install_first(&self) -> nix::Result<()> {
        sys::install_filter(&self.allowed)?;
        sys::install_filter(&self.refused)
    }

    /// Installs the rest, as the last thing before a script: from here on nothing can be mounted.
    pub(super) fn install_last(&self) -> nix::Result<()> {
        sys::install_filter(&self.last)
    }
}

/// Calls that are refused by their arguments, for the life of a keeper.
fn limits(profile: Profile, listed: bool, changes: Option<&ProfileDefinition>) -> Vec<Limit> {
    let mut limits = socket_limits(profile, listed, changes);
    for (request, why) in TERMINAL_REQUESTS {
        limits.push(Limit {
            name: "ioctl",
            call: libc::SYS_ioctl,
            when: vec![is(1, Is::Equal(request))],
            why,
        });
    }
    let personality = |why, when| Limit { name: "personality", call: libc::SYS_personality, when, why };
    limits.push(personality(
        "anything but asking for it and setting the usual one",
        vec![is(0, Is::NotEqual(0)), is(0, Is::NotEqual(u32::MAX))],
    ));
    for (option, why) in [
        (libc::PR_SET_MM, "PR_SET_MM: moving the borders of a process's memory"),
        (libc::PR_SCHED_CORE, "PR_SCHED_CORE: sharing or claiming a processor core"),
    ] {
        let when = vec![is(0, Is::Equal(option as u32))];
        limits.push(Limit { name: "prctl", call: libc::SYS_prctl, when, why });
    }
    let mut devices = vec![("mknodat", libc::SYS_mknodat, 2)];
    #[cfg(target_arch = "x86_64")]
    devices.push(("mknod", libc::SYS_mknod, 1));
    for (name, call, mode) in devices {
        for (kind, why) in [(libc::S_IFCHR, "character devices"), (libc::S_IFBLK, "block devices")] {
            limits.push(Limit { name, call, when: vec![is(mode, Is::Masked(libc::S_IFMT, kind))], why });
        }
    }
    limits
}

/// Whether scripts may make unix sockets that can be connected. Where the host's files are seen, so are its sockets: a
/// read-only mount lets one connect, and a server may do for anybody what the sandbox keeps the script from.
pub(super) fn has_unix_sockets(profile: Profile, changes: Option<&ProfileDefinition>) -> bool {
    profile != Profile::Host || changes.is_some_and(|definition| definition.unix_sockets)
}

/// The families of sockets that a profile has, with a name for people.
pub(super) fn families(
    profile: Profile,
    listed: bool,
    changes: Option<&ProfileDefinition>,
) -> Vec<(i32, &'static str)> {
    let mut families = Vec::new();
    if has_unix_sockets(profile, changes) {
        families.push((libc::AF_UNIX, "unix"));
    }
    if profile > Profile::Strict || listed {
        families.extend([(libc::AF_INET, "IPv4"), (libc::AF_INET6, "IPv6")]);
    }
    if profile > Profile::Net {
        families.push((libc::AF_NETLINK, "netlink"));
    }
    families
}

/// Sockets: the families of the profile, and nothing raw.
fn socket_limits(profile: Profile, listed: bool, changes: Option<&ProfileDefinition>) -> Vec<Limit> {
    let mut families: Vec<i32> =
        families(profile, listed, changes).into_iter().map(|(family, _)| family).collect();
    let for_the_script = families.len();
    if listed && !families.contains(&libc::AF_NETLINK) {
        families.push(libc::AF_NETLINK); // The stage makes routes; `last_limits` takes it away.
    }
    let other = families.iter().map(|family| is(0, Is::NotEqual(*family as u32))).collect();
    let limit = |when, why| Limit { name: "socket", call: libc::SYS_socket, when, why };
    let mut limits = vec![limit(other, "families that the profile does not name")];
    for family in families.iter().filter(|family| INTERNET.contains(family)) {
        for (kind, why) in [(libc::SOCK_RAW as u32, "raw IP"), (SOCK_PACKET, "raw packets")] {
            let kind = is(1, Is::Masked(SOCKET_KIND, kind));
            limits.push(limit(vec![is(0, Is::Equal(*family as u32)), kind], why));
        }
    }
    if listed {
        limits.extend(only_tcp());
    }
    if profile > Profile::Net || families.len() > for_the_script {
        // What `ip` and `ss` ask; the other protocols are drivers, firewalls, audit.
        let protocols = [libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG];
        let mut when = vec![is(0, Is::Equal(libc::AF_NETLINK as u32))];
        when.extend(protocols.map(|protocol| is(2, Is::NotEqual(protocol as u32))));
        limits.push(limit(when, "netlink protocols but those of addresses and sockets"));
    }
    let pair = |when, why| Limit { name: "socketpair", call: libc::SYS_socketpair, when, why };
    limits.push(pair(vec![is(0, Is::NotEqual(libc::AF_UNIX as u32))], "families but AF_UNIX"));
    if !has_unix_sockets(profile, changes) {
        // One of a pair for datagrams can send to any address; one for streams is connected for good.
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
            let kind = is(1, Is::Masked(SOCKET_KIND, kind as u32));
            limits.push(pair(vec![kind], "pairs for datagrams, which reach the host's unix sockets"));
        }
    }
    limits
}

/// Of the internet's sockets TCP alone: the way out carries nothing else, and landlock rules nothing else.
fn only_tcp() -> Vec<Limit> {
    let mut limits = Vec::new();
    let limit = |when, why| Limit { name: "socket", call: libc::SYS_socket, when, why };
    for family in INTERNET {
        let family = is(0, Is::Equal(family as u32));
        for (kind, why) in [
            (libc::SOCK_DGRAM as u32, "datagrams (UDP), which no list of destinations names"),
            (libc::SOCK_RDM as u32, "reliable datagrams"),
            (libc::SOCK_SEQPACKET as u32, "packets in order (SCTP)"),
            (SOCK_DCCP, "DCCP"),
        ] {
            limits.push(limit(vec![family.clone(), is(1, Is::Masked(SOCKET_KIND, kind))], why));
        }
        let protocols = [0, libc::IPPROTO_TCP].map(|protocol| is(2, Is::NotEqual(protocol as u32)));
        let why = "streams that are not TCP (MPTCP, SCTP)";
        limits.push(limit([vec![family], protocols.to_vec()].concat(), why));
    }
    limits
}

/// Calls that are refused by their arguments once keeper and init have done with them.
fn last_limits(profile: Profile, listed: bool) -> Vec<Limit> {
    let limit = |(flag, why): (i32, &'static str)| {
        let when = vec![is(0, Is::Masked(flag as u32, flag as u32))];
        Limit { name: "clone", call: libc::SYS_clone, when, why }
    };
    let mut limits = NAMESPACE_FLAGS.map(limit).to_vec();
    limits.push(Limit {
        name: "ioctl",
        call: libc::SYS_ioctl,
        when: vec![is(1, Is::Equal(TIOCSCTTY))],
        why: "TIOCSCTTY: taking a terminal as one's own",
    });
    if listed && profile <= Profile::Net {
        let when = vec![is(0, Is::Equal(libc::AF_NETLINK as u32))];
        let why = "netlink, by which the list of destinations was put in place";
        limits.push(Limit { name: "socket", call: libc::SYS_socket, when, why });
    }
    limits
}

fn is(number: u8, is: Is) -> Argument {
    Argument { number, is }
}

fn add_limits(rules: &mut Rules, limits: &[Limit]) -> Result<(), seccompiler::BackendError> {
    for limit in limits {
        let conditions = limit.when.iter().map(condition).collect::<Result<_, _>>()?;
        rules.entry(limit.call).or_default().push(SeccompRule::new(conditions)?);
    }
    Ok(())
}

fn condition(argument: &Argument) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match argument.is {
        Is::Equal(value) => (SeccompCmpOp::Eq, value),
        Is::NotEqual(value) => (SeccompCmpOp::Ne, value),
        Is::Masked(mask, value) => (SeccompCmpOp::MaskedEq(mask.into()), value),
    };
    SeccompCondition::new(argument.number, SeccompCmpArgLen::Dword, operator, value.into())
}

fn compile(rules: Rules, matched: SeccompAction, other: SeccompAction) -> Result<BpfProgram, StepError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(compile_error)?;
    let filter = SeccompFilter::new(rules, other, matched, arch).map_err(compile_error)?;
    BpfProgram::try_from(filter).map_err(compile_error)
}

fn compile_error(error: seccompiler::BackendError) -> StepError {
    StepError::other("seccomp", format!("the filter cannot be compiled: {error}"))
}

/// Whether a definition may let scripts make a call that is refused; else what was expected.
pub(super) fn may_be_allowed(name: &str) -> Result<(), String> {
    let in_any = |lines: &[Line]| lines.iter().flat_map(|line| line.calls).any(|call| call.word() == name);
    if KEYS.contains(&name) {
        return Err("any other call: no namespace keeps keys apart".into());
    }
    if in_any(BEFORE_THE_SCRIPT) {
        return Err("any other call: a mount could undo what is hidden or read-only".into());
    }
    if in_any(REFUSED) {
        return Ok(());
    }
    Err(if in_any(ALLOWED) {
        "a call that is refused by name; this one is allowed in every profile".into()
    } else {
        "a call that is refused by name, as listed by `sally-agent sandbox explain strict -o json`".into()
    })
}

/// Whether a definition may refuse scripts a call that is allowed; else what was expected.
pub(super) fn may_be_refused(name: &str) -> Result<(), String> {
    if NEEDED.contains(&name) {
        return Err("a call that starting a program does not need".into());
    }
    let is_allowed = ALLOWED.iter().flat_map(|line| line.calls).any(|call| call.word() == name);
    if is_allowed {
        return Ok(());
    }
    Err("a call that is allowed, as listed by `sally-agent sandbox explain strict -o json`".into())
}

/// Says as text which system calls a script may make under a profile, each line with its reason: the same on
/// every architecture.
pub fn table(profile: Profile) -> String {
    table_with(profile, false, None)
}

/// The same with what a definition changes.
pub(super) fn table_with(profile: Profile, listed: bool, changes: Option<&ProfileDefinition>) -> String {
    let with = if listed { " with a list of destinations" } else { "" };
    let mut text = format!(
        "System calls of a script in profile {profile}{with}. What does not stand here does not exist (ENOSYS).\n"
    );
    let (more, less) = changes.map(|c| (&c.allowed_calls[..], &c.refused_calls[..])).unwrap_or_default();
    let mut table = |title: &str, lines: &[Line]| {
        for line in lines {
            let changed = |call: &&Call| [more, less].concat().iter().any(|name| name == call.word());
            let calls: Vec<&Call> = line.calls.iter().filter(|call| !changed(call)).collect();
            if calls.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{title}: {}", line.why);
            for call in calls {
                let only = if call.x86_only { " (x86_64)" } else { "" };
                let _ = writeln!(text, "  {}{only}", call.word());
            }
        }
    };
    table("allowed", ALLOWED);
    table("refused, EPERM", REFUSED);
    table("refused, EPERM", BEFORE_THE_SCRIPT);
    for (title, names) in [("allowed", more), ("refused, EPERM", less)] {
        if !names.is_empty() {
            let _ = writeln!(text, "\n{title}: by the profile's definition\n  {}", names.join("\n  "));
        }
    }
    let _ = writeln!(text, "\nrefused, EPERM: by argument");
    for limit in limits(profile, listed, changes).iter().chain(&last_limits(profile, listed)) {
        if limit.name == "mknod" {
            continue; // On x86_64 alone, and limited as mknodat is.
        }
        let when: Vec<String> = limit.when.iter().map(described).collect();
        let _ = writeln!(text, "  {} if {}: {}", limit.name, when.join(" and "), limit.why);
    }
    text
}

fn described(argument: &Argument) -> String {
    let number = argument.number;
    match argument.is {
        Is::Equal(value) => format!("argument {number} is {value:#x}"),
        Is::NotEqual(value) => format!("argument {number} is not {value:#x}"),
        Is::Masked(mask, value) => format!("argument {number} & {mask:#x} is {value:#x}"),
    }
}

#[cfg(test)]
mod tests;

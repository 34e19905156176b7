//! The filters as programs, run here by the kernel's rules, and the table as text.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use super::*;
use seccompiler::sock_filter;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Allow,
    Errno(i32),
    Kill,
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// The other table of an x86_64 kernel.
const I386: u32 = 0x4000_0003;

/// Runs one filter as the kernel does: the subset of BPF that filters are made of.
fn run(program: &[sock_filter], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        16..64 => {
            let arg = args[(offset as usize - 16) / 8];
            if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
        }
        other => panic!("offset {other}"),
    };
    let (mut at, mut value) = (0, 0);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match step.code {
            0x20 => value = word(step.k),
            0x54 => value &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(value == step.k),
            0x25 => at += jump(value > step.k),
            0x35 => at += jump(value >= step.k),
            0x06 => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// What the kernel does with a call under several filters, the latest first.
fn decide(programs: &[&BpfProgram], arch: u32, number: i64, args: [u64; 6]) -> Answer {
    let mut answer = Answer::Allow;
    for program in programs.iter().rev() {
        let word = run(program, arch, number as u32, args);
        let one = match word & 0xffff_0000 {
            0x7fff_0000 => Answer::Allow,
            0x0005_0000 => Answer::Errno((word & 0xffff) as i32),
            0x8000_0000 => Answer::Kill,
            other => panic!("action {other:#x}"),
        };
        answer = match (answer, one) {
            (Answer::Kill, _) | (_, Answer::Kill) => Answer::Kill,
            (Answer::Errno(errno), _) => Answer::Errno(errno),
            (Answer::Allow, one) => one,
        };
    }
    answer
}

fn script(profile: Profile, number: i64, args: [u64; 6]) -> Answer {
    let filters = Filters::new(profile, false, None).unwrap();
    decide(&[&filters.allowed, &filters.refused, &filters.last], ARCH, number, args)
}

const EPERM: Answer = Answer::Errno(libc::EPERM);
const ENOSYS: Answer = Answer::Errno(libc::ENOSYS);

#[test]
fn every_number_is_answered_as_the_table_says() {
    for profile in Profile::ALL {
        let filters = Filters::new(profile, false, None).unwrap();
        let all = [&filters.allowed, &filters.refused, &filters.last];
        let refused: Vec<i64> = calls::numbers(REFUSED).chain(calls::numbers(BEFORE_THE_SCRIPT)).collect();
        let allowed: Vec<i64> = calls::numbers(ALLOWED).collect();
        // Of no limit are these arguments, but for the family of a socket: a pair of unix streams, TCP in `host`.
        let family = if profile == Profile::Host { libc::AF_INET } else { libc::AF_UNIX } as u64;
        let args = |number| match number {
            libc::SYS_socket => family,
            libc::SYS_socketpair => 1,
            _ => 0,
        };
        for number in 0..1024 {
            let expected = match number {
                number if refused.contains(&number) => EPERM,
                number if allowed.contains(&number) => Answer::Allow,
                _ => ENOSYS,
            };
            let answer = decide(&all, ARCH, number, [args(number), 0, 0, 0, 0, 0]);
            assert_eq!(answer, expected, "{profile} {number}");
            // The table of x32, and that of i386.
            assert_eq!(decide(&all, ARCH, number | 0x4000_0000, [0; 6]), ENOSYS, "x32 {number}");
            assert_eq!(decide(&all, I386, number, [0; 6]), Answer::Kill, "i386 {number}");
        }
    }
}

#[test]
fn no_call_stands_twice() {
    let mut all: Vec<i64> =
        [ALLOWED, REFUSED, BEFORE_THE_SCRIPT].into_iter().flat_map(calls::numbers).collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn keepers_can_do_what_they_must_and_no_more() {
    let filters = Filters::new(Profile::Strict, false, None).unwrap();
    let keeper = |number, args| decide(&[&filters.allowed, &filters.refused], ARCH, number, args);
    assert_eq!(keeper(libc::SYS_mount, [0; 6]), Answer::Allow);
    assert_eq!(keeper(libc::SYS_clone, [libc::CLONE_NEWPID as u64, 0, 0, 0, 0, 0]), Answer::Allow);
    assert_eq!(keeper(libc::SYS_ptrace, [0; 6]), EPERM);
    assert_eq!(keeper(libc::SYS_socket, [libc::AF_INET as u64, 1, 0, 0, 0, 0]), EPERM);
}

#[test]
fn new_namespaces_are_refused_whatever_the_flags_beside_them() {
    let clone = |flags: i64| script(Profile::Strict, libc::SYS_clone, [flags as u64, 0, 0, 0, 0, 0]);
    assert_eq!(clone(i64::from(libc::SIGCHLD)), Answer::Allow);
    assert_eq!(clone(i64::from(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND)), Answer::Allow);
    for (flag, name) in NAMESPACE_FLAGS {
        assert_eq!(clone(i64::from(flag)), EPERM, "{name}");
        assert_eq!(clone(i64::from(flag) | 0x7700_0000_0000 | 17), EPERM, "{name} with others");
    }
    assert_eq!(script(Profile::Host, libc::SYS_clone3, [0; 6]), ENOSYS);
}

#[test]
fn sockets_are_those_of_the_profile() {
    let socket = |profile, family: i32, kind: i32, protocol: i32| {
        let high = 0xffff_ffff_0000_0000;
        let args = [family as u64, kind as u64, protocol as u64, 0, 0, 0];
        let answer = script(profile, libc::SYS_socket, args);
        let with_high_bits = args.map(|arg| arg | high);
        assert_eq!(script(profile, libc::SYS_socket, with_high_bits), answer);
        answer
    };
    use Profile::{Host, Net, Strict};
    let (stream, datagram) = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::SOCK_DGRAM);
    for profile in Profile::ALL {
        let unix = if profile == Host { EPERM } else { Answer::Allow };
        assert_eq!(socket(profile, libc::AF_UNIX, stream, 0), unix);
        for family in [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, libc::AF_XDP, 0, 45] {
            assert_eq!(socket(profile, family, datagram, 0), EPERM, "{profile} {family}");
        }
        let internet = if profile == Strict { EPERM } else { Answer::Allow };
        for family in [libc::AF_INET, libc::AF_INET6] {
            assert_eq!(socket(profile, family, stream, 0), internet);
            assert_eq!(socket(profile, family, datagram, 0), internet);
            assert_eq!(socket(profile, family, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0), EPERM);
        }
    }
    let route = |profile, protocol| socket(profile, libc::AF_NETLINK, libc::SOCK_RAW, protocol);
    assert_eq!(route(Net, libc::NETLINK_ROUTE), EPERM);
    assert_eq!(route(Host, libc::NETLINK_ROUTE), Answer::Allow);
    assert_eq!(route(Host, libc::NETLINK_SOCK_DIAG), Answer::Allow);
    assert_eq!(route(Host, libc::NETLINK_NETFILTER), EPERM);
}

#[test]
fn unix_sockets_of_host_are_pairs_for_streams_unless_its_operator_says_more() {
    let name = sally_common::name::ProfileName::new("local").unwrap();
    let open = ProfileDefinition::parse(&name, "base = \"host\"\n[network]\nunix_sockets = true").unwrap();
    let filters = Filters::new(Profile::Host, false, Some(&open)).unwrap();
    let opened =
        |number, args| decide(&[&filters.allowed, &filters.refused, &filters.last], ARCH, number, args);
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    for (call, kind, host) in [
        (libc::SYS_socket, libc::SOCK_STREAM, EPERM),
        (libc::SYS_socket, libc::SOCK_DGRAM, EPERM),
        (libc::SYS_socketpair, libc::SOCK_STREAM, Answer::Allow),
        (libc::SYS_socketpair, libc::SOCK_SEQPACKET, Answer::Allow),
        (libc::SYS_socketpair, libc::SOCK_DGRAM, EPERM),
        // Another name for the same, as far as unix sockets go.
        (libc::SYS_socketpair, libc::SOCK_RAW, EPERM),
    ] {
        let args = [libc::AF_UNIX as u64, (kind | flags) as u64, 0, 0, 0, 0];
        assert_eq!(script(Profile::Host, call, args), host, "{call} {kind}");
        assert_eq!(script(Profile::Net, call, args), Answer::Allow, "{call} {kind}");
        assert_eq!(opened(call, args), Answer::Allow, "{call} {kind}");
    }
}

#[test]
fn with_a_list_the_internet_is_tcp_alone() {
    use Profile::{Host, Net, Strict};
    for profile in Profile::ALL {
        let filters = Filters::new(profile, true, None).unwrap();
        let socket = |all: &[&BpfProgram], family: i32, kind: i32, protocol: i32| {
            decide(all, ARCH, libc::SYS_socket, [family as u64, kind as u64, protocol as u64, 0, 0, 0])
        };
        let script = [&filters.allowed, &filters.refused, &filters.last];
        for family in [libc::AF_INET, libc::AF_INET6] {
            let stream = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
            assert_eq!(socket(&script, family, stream, 0), Answer::Allow);
            assert_eq!(socket(&script, family, stream, libc::IPPROTO_TCP), Answer::Allow);
            // MPTCP, SCTP.
            for protocol in [262, 132, 17] {
                assert_eq!(socket(&script, family, stream, protocol), EPERM, "{protocol}");
            }
            for kind in [2, 3, 4, 5, 6, 10] {
                assert_eq!(socket(&script, family, kind | libc::SOCK_CLOEXEC, 0), EPERM, "{kind}");
            }
        }
        let unix = if profile == Host { EPERM } else { Answer::Allow };
        assert_eq!(socket(&script, libc::AF_UNIX, libc::SOCK_DGRAM, 0), unix);
        let route = |all: &[&BpfProgram]| socket(all, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        assert_eq!(route(&script[..2]), Answer::Allow, "the stage of {profile}");
        assert_eq!(route(&script), if profile == Host { Answer::Allow } else { EPERM }, "{profile}");
        assert_eq!(socket(&script[..2], libc::AF_NETLINK, libc::SOCK_RAW, 12), EPERM);
    }
    assert_ne!((Net, table_with(Net, true, None)), (Strict, table_with(Strict, true, None)));
    assert!(table_with(Strict, true, None).contains("datagrams"));
}

#[test]
fn terminals_personalities_and_devices_are_refused() {
    let call = |number, args: [u64; 6]| script(Profile::Strict, number, args);
    let ioctl = |request: u64| call(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
    assert_eq!(ioctl(0x5401), Answer::Allow);
    for request in [0x540e, 0x5412, 0x541c, 0x5423, 0x1_0000_540e, 0x1_0000_5412, 0xffff_ffff_0000_541c] {
        assert_eq!(ioctl(request), EPERM, "{request:#x}");
    }
    let personality = |value: u64| call(libc::SYS_personality, [value, 0, 0, 0, 0, 0]);
    assert_eq!((personality(0), personality(0xffff_ffff)), (Answer::Allow, Answer::Allow));
    // READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE, PER_LINUX32.
    for value in [0x0400000, 0x0040000, 8, 1] {
        assert_eq!(personality(value), EPERM, "{value:#x}");
    }
    let node = |mode: u32| call(libc::SYS_mknodat, [0, 0, mode.into(), 0, 0, 0]);
    assert_eq!(node(libc::S_IFIFO | 0o600), Answer::Allow);
    assert_eq!((node(libc::S_IFCHR | 0o600), node(libc::S_IFBLK)), (EPERM, EPERM));
}

#[test]
fn the_table_of_strict_is_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/sandbox/seccomp/strict.golden");
    let text = table(Profile::Strict);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(written, text, "run the test again with UPDATE_GOLDEN=1 and look at the difference");
}

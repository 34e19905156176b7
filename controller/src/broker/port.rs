//! The port of a broker that may have any.
//!
//! Not one that the system would pick: those are given to outgoing connections too. While the broker is being restarted, such
//! a connection of anybody can get its port, or a client that looks for the broker can connect to itself; then the broker does not
//! come back until that connection ends.

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::path::Path;

use sally_common::id::Nonce;

/// Ports that are given to outgoing connections: the first and the last.
const OUTGOING: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// How far below the first of them is looked.
const BELOW: u16 = 10_000;
/// Ports from here on need no privileges and are seldom spoken for.
const LOWEST: u16 = 10_000;
/// How many are tried.
const TRIES: usize = 64;

/// Whether a port can be listened on at this moment.
pub fn is_free(listen: IpAddr, port: u16) -> bool {
    TcpListener::bind((listen, port)).is_ok()
}

/// A free port that no outgoing connection is given, if there is one.
pub fn pick(listen: IpAddr) -> Option<u16> {
    let first = first_outgoing(Path::new(OUTGOING))?;
    let lowest = first.saturating_sub(BELOW).max(LOWEST);
    let count = first.checked_sub(lowest).filter(|count| *count > 0)?;
    let any = || {
        let [a, b, ..] = *Nonce::generate().as_bytes();
        lowest + u16::from_be_bytes([a, b]) % count
    };
    (0..TRIES).map(|_| any()).find(|port| is_free(listen, *port))
}

fn first_outgoing(path: &Path) -> Option<u16> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests; one that cannot be done says so")]
    use super::*;

    #[test]
    fn no_outgoing_connection_gets_it() {
        let listen = IpAddr::from([127, 0, 0, 1]);
        let first = first_outgoing(Path::new(OUTGOING)).unwrap();
        if first <= LOWEST {
            println!("SKIP: this host gives every port from {first} on to outgoing connections");
            return assert_eq!(pick(listen), None);
        }
        let port = pick(listen).unwrap();
        assert!(port >= LOWEST && port < first, "{port}");
        let held = TcpListener::bind((listen, port)).unwrap();
        assert!(!is_free(listen, port));
        drop(held);
    }

    #[test]
    fn without_that_knowledge_the_system_picks() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(first_outgoing(&dir.path().join("absent")), None);
        let file = dir.path().join("range");
        fs::write(&file, "32768\t60999\n").unwrap();
        assert_eq!(first_outgoing(&file), Some(32_768));
        fs::write(&file, "nonsense").unwrap();
        assert_eq!(first_outgoing(&file), None);
    }
}

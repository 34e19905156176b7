//! Destinations: the addresses and ports that a script may connect to, and nothing else. Pure data with its checks.
//!
//! An attempt with a list has a network namespace of its own in which nothing but loopback exists. The addresses of
//! the list are made addresses of that loopback ("any IP"), so that an ordinary `connect` to them ends at a listening
//! socket of ours; a process outside (`network_connector`) accepts there, looks up what the script had connected to, and
//! makes the real connection itself. The script never holds a socket of the host's network, and no byte of it chooses an
//! address: only the kernel's word on which listed address and port it connected to.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The most destinations of one list.
pub const DESTINATIONS_MAX: usize = 32;

/// The most listening sockets that a list may need: one for each port of each address or name, one for each port of
/// all networks together.
pub const LISTENERS_MAX: usize = 256;

/// Connections of one attempt at the same time. More wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;

/// Where the addresses of names begin, inside: names are numbered from 1.
const NAMES: [u8; 3] = [127, 83, 0];

/// What an address, network or name is a destination with: TCP ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    to: To,
    first: u16,
    last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum To {
    /// Every address but special ones.
    Anywhere,
    /// The host's loopback.
    Localhost,
    /// A network; one address if `bits` are all of it.
    Network { address: IpAddr, bits: u8 },
    /// A name, looked up outside at each connection.
    Name(String),
}

/// What a connection inside leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Exactly this.
    Address(SocketAddr),
    /// Whatever the name is at that moment, as long as it is no special address.
    Name(String, u16),
}

impl Target {
    /// The port at which it is connected to.
    pub(super) fn port(&self) -> u16 {
        match self {
            Target::Address(address) => address.port(),
            Target::Name(_, port) => *port,
        }
    }
}

impl Destination {
    fn has_port(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether it is more than one address, so that a listening socket must take all.
    fn is_wide(&self) -> bool {
        match &self.to {
            To::Anywhere => true,
            To::Network { address, bits } => *bits < whole(address),
            To::Localhost | To::Name(_) => false,
        }
    }

    /// Whether all that `other` names is part of this.
    pub fn covers(&self, other: &Destination) -> bool {
        let ports = self.first <= other.first && other.last <= self.last;
        let hosts = match (&self.to, &other.to) {
            (To::Network { address, bits }, To::Network { address: inner, bits: inner_bits }) => {
                bits <= inner_bits && contains(*address, *bits, *inner)
            }
            (To::Network { .. }, To::Localhost) => false,
            (To::Anywhere, To::Network { address, bits }) => !is_special_network(*address, *bits),
            (To::Anywhere, To::Name(_)) => true,
            (mine, its) => mine == its,
        };
        ports && hosts
    }

    /// Whether it can be reached from a host that has nothing but loopback.
    fn is_loopback(&self) -> bool {
        match &self.to {
            To::Localhost => true,
            To::Network { address, bits } => address.is_loopback() && *bits >= 8,
            To::Anywhere | To::Name(_) => false,
        }
    }
}

/// Checks a list as a whole; the message says what is too much.
pub(super) fn check(list: &[Destination]) -> Result<(), String> {
    if list.len() > DESTINATIONS_MAX {
        return Err(format!("{} destinations are more than {DESTINATIONS_MAX}", list.len()));
    }
    let sockets = listeners(list).len();
    if sockets > LISTENERS_MAX {
        return Err(format!(
            "the destinations have {sockets} ports together, more than {LISTENERS_MAX}; name fewer ports"
        ));
    }
    Ok(())
}

/// The first destination that needs a network beyond loopback.
pub(super) fn needs_network(list: &[Destination]) -> Option<&Destination> {
    list.iter().find(|destination| !destination.is_loopback())
}

/// Names without repetition, in the order of the list, each with its address inside.
pub(super) fn names(list: &[Destination]) -> Vec<(&str, Ipv4Addr)> {
    let mut names: Vec<(&str, Ipv4Addr)> = Vec::new();
    for destination in list {
        if let To::Name(name) = &destination.to
            && !names.iter().any(|(known, _)| known == name)
        {
            // At most 32 of them: `check`.
            let number = u8::try_from(names.len() + 1).unwrap_or(u8::MAX);
            names.push((name, Ipv4Addr::new(NAMES[0], NAMES[1], NAMES[2], number)));
        }
    }
    names
}

/// The networks that must become addresses of the namespace's loopback. Those of loopback are already.
pub(super) fn routes(list: &[Destination]) -> BTreeSet<(IpAddr, u8)> {
    let mut routes = BTreeSet::new();
    for destination in list {
        match &destination.to {
            To::Anywhere => {
                routes.insert((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));
                routes.insert((IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0));
            }
            To::Network { address, bits } if !address.is_loopback() => {
                routes.insert((*address, *bits));
            }
            To::Network { .. } | To::Localhost | To::Name(_) => {}
        }
    }
    routes
}

/// Where sockets must listen inside: at each address, or at every address of a port that a network has.
pub(super) fn listeners(list: &[Destination]) -> BTreeSet<SocketAddr> {
    let wide: Vec<&Destination> = list.iter().filter(|destination| destination.is_wide()).collect();
    let names = names(list);
    let mut sockets = BTreeSet::new();
    for destination in list {
        let addresses: Vec<IpAddr> = match &destination.to {
            To::Localhost => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            To::Network { address, .. } => vec![*address],
            To::Name(name) => {
                names.iter().filter(|(known, _)| known == name).map(|(_, at)| (*at).into()).collect()
            }
            To::Anywhere => Vec::new(),
        };
        for port in destination.first..=destination.last {
            if wide.iter().any(|wide| wide.has_port(port)) {
                sockets.insert(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
            } else {
                sockets.extend(addresses.iter().map(|address| SocketAddr::new(*address, port)));
            }
        }
    }
    sockets
}

/// Every port that any destination has.
pub(super) fn ports(list: &[Destination]) -> BTreeSet<u16> {
    list.iter().flat_map(|destination| destination.first..=destination.last).collect()
}

/// What a connection to this address and port, inside, leads to. `None`: it is not in the list.
pub(super) fn target(list: &[Destination], at: SocketAddr) -> Option<Target> {
    let (address, port) = (at.ip().to_canonical(), at.port());
    let listed = list.iter().filter(|destination| destination.has_port(port));
    if let Some((name, _)) = names(list).into_iter().find(|(_, own)| IpAddr::V4(*own) == address) {
        let mut listed = listed;
        return listed
            .any(|destination| destination.to == To::Name(name.to_owned()))
            .then(|| Target::Name(name.to_owned(), port));
    }
    let special = is_special(address);
    let leads = |destination: &Destination| match &destination.to {
        To::Anywhere => !special,
        To::Localhost => address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST,
        // A wide network does not bring a special address with it: who wants one names it.
        To::Network { address: network, bits } => {
            contains(*network, *bits, address) && (!special || is_special_network(*network, *bits))
        }
        To::Name(_) => false,
    };
    let mut listed = listed;
    listed.any(leads).then(|| Target::Address(SocketAddr::new(address, port)))
}

/// The lines of `/etc/hosts` inside that stand before the usual ones.
pub(super) fn hosts(list: &[Destination]) -> String {
    let mut text = String::new();
    for (name, address) in names(list) {
        let _ = writeln!(text, "{address} {name}");
    }
    text
}

/// Addresses that are somewhere else for everybody, or guarded by nothing but being local: unspecified, loopback,
/// link-local with the cloud's metadata (and metadata services elsewhere), multicast, reserved, and the forms in which
/// IPv4 hides in IPv6. A name or a wider network never leads there.
const SPECIAL: [(IpAddr, u8); 11] = [
    (v4(0, 0, 0, 0), 8),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(100, 100, 100, 200), 32),
    (v4(224, 0, 0, 0), 4),
    (v4(240, 0, 0, 0), 4),
    (v6([0, 0, 0, 0, 0, 0, 0, 0]), 96),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0]), 96),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), 128),
];

/// IPv4 behind a translator.
const TRANSLATED: IpAddr = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0]);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(parts: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = parts;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

pub(super) fn is_special(address: IpAddr) -> bool {
    is_special_network(address, whole(&address))
}

/// Whether a network lies in one special range as a whole.
fn is_special_network(address: IpAddr, bits: u8) -> bool {
    if let IpAddr::V6(v6) = address
        && bits >= 96
        && contains(TRANSLATED, 96, address)
    {
        let [.., a, b, c, d] = v6.octets();
        return is_special_network(v4(a, b, c, d), bits - 96);
    }
    SPECIAL.iter().any(|(range, range_bits)| *range_bits <= bits && contains(*range, *range_bits, address))
}

fn whole(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether a network has an address. Of another family it has none.
fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    network.is_ipv4() == address.is_ipv4() && first_of(address, bits) == first_of(network, bits)
}

/// The first address of the network of so many bits that an address is in.
fn first_of(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            To::Anywhere => f.write_str("*")?,
            To::Localhost => f.write_str("localhost")?,
            To::Name(name) => f.write_str(name)?,
            To::Network { address, bits } => {
                let bits = if *bits == whole(address) { String::new() } else { format!("/{bits}") };
                match address {
                    IpAddr::V4(v4) => write!(f, "{v4}{bits}")?,
                    IpAddr::V6(v6) => write!(f, "[{v6}{bits}]")?,
                }
            }
        }
        write!(f, ":{}", self.first)?;
        if self.last > self.first { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> String {
        destination.to_string()
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown = sally_common::name::show(text);
            format!(
                "destination \"{shown}\": {why}; write HOST:PORT, such as db.example:5432, 10.2.0.7:5432, \
                 10.2.0.0/24:8000-8010, [2001:db8::7]:443 or *:443"
            )
        };
        if text.contains("://") {
            return Err(wrong("this is a URL"));
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(wrong("it has a space in it"));
        }
        let (host, ports) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or_else(|| wrong("after ] there must be : and a port"))?,
            None => text.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?,
        };
        let (first, last) = parse_ports(ports).map_err(|why| wrong(&why))?;
        if text.starts_with('[') != host.contains(':') {
            return Err(wrong("an IPv6 address stands in brackets, and nothing else does"));
        }
        let to = parse_host(host).map_err(|why| wrong(&why))?;
        Ok(Destination { to, first, last })
    }
}

fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    if text.contains('/') {
        return Err("only TCP can be allowed, so no protocol is named".into());
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(format!("\"{}\" is no port from 1 to 65535", sally_common::name::show(text))),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("the range {first}-{last} ends before it begins"));
    }
    if usize::from(last - first) >= LISTENERS_MAX {
        return Err(format!("the range {first}-{last} has more than {LISTENERS_MAX} ports"));
    }
    Ok((first, last))
}

fn parse_host(text: &str) -> Result<To, String> {
    if text == "*" {
        return Ok(To::Anywhere);
    }
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| "what stands before / is no IP address")?;
        let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= whole(&address));
        let bits = bits.ok_or("what stands after / is no number of bits")?;
        let first = first_of(address, bits);
        if first != address {
            return Err(format!("the network of {address}/{bits} is {first}/{bits}"));
        }
        return network(address, bits);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return network(address, whole(&address));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name == "localhost" {
        return Ok(To::Localhost);
    }
    let good = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-')
    };
    if name.len() > 253 || !name.split('.').all(good) {
        return Err("what stands before the port is no host name, address or network".into());
    }
    // A resolver reads 10.1, 0x7f.1 and 2130706433 as addresses.
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("an address is written in full, as four numbers from 0 to 255".into());
    }
    Ok(To::Name(name))
}

fn network(address: IpAddr, bits: u8) -> Result<To, String> {
    if let IpAddr::V6(v6) = address {
        if let Some(v4) = v6.to_ipv4_mapped() {
            return Err(format!("{v6} is the IPv4 address {v4}; write that"));
        }
        if (v6.segments()[0] & 0xffc0) == 0xfe80 {
            return Err("a link-local IPv6 address means nothing without an interface".into());
        }
    }
    if bits == whole(&address) && (address.is_multicast() || address.is_unspecified()) {
        return Err("no connection leads to such an address".into());
    }
    Ok(To::Network { address, bits })
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;

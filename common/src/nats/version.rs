//! Which nats-server Sally works with.

use std::fmt;
use std::str::FromStr;

/// The oldest server Sally works with: Debian 13 carries it. Older ones lack `sync_interval` and TLS-first, lose
/// whole streams when killed, and have known advisories.
pub const OLDEST_SUPPORTED: Version = Version { major: 2, minor: 10, patch: 27 };

/// The version of a nats-server, without what follows a `-` or `+`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// Returns whether Sally works with this server.
    pub fn is_supported(self) -> bool {
        self >= OLDEST_SUPPORTED
    }

    /// Reads what `nats-server --version` prints: `nats-server: v2.15.1`.
    pub fn from_version_output(text: &str) -> Option<Self> {
        let line = text.lines().find(|line| line.starts_with("nats-server"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The text is not a version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a nats-server version (expected something like 2.15.1)")]
pub struct NotAVersion;

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let numbers: Vec<u32> =
            core.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| NotAVersion)?;
        match numbers[..] {
            [major, minor, patch] => Ok(Self { major, minor, patch }),
            _ => Err(NotAVersion),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<(u32, u32, u32)>) {
        let parsed = text.parse::<Version>().ok().map(|v| (v.major, v.minor, v.patch));
        assert_eq!(parsed, expected, "{text}");
    }

    #[test]
    fn versions_are_read() {
        check("2.15.1", Some((2, 15, 1)));
        check("v2.10.27", Some((2, 10, 27)));
        check("2.12.0-RC.3", Some((2, 12, 0)));
        check("2.9.10+ds1-1", Some((2, 9, 10)));
        for bad in ["", "2.15", "2.15.1.1", "two", "2..1", "-2.1.1", "2.10.x"] {
            check(bad, None);
        }
    }

    #[test]
    fn the_floor_is_ordered_by_number_not_by_text() {
        let supported = |text: &str| text.parse::<Version>().is_ok_and(Version::is_supported);
        assert!(supported("2.10.27") && supported("2.10.100") && supported("2.15.1") && supported("3.0.0"));
        assert!(!supported("2.10.26") && !supported("2.9.99") && !supported("1.20.30"));
    }

    #[test]
    fn the_version_line_is_found() {
        assert_eq!(
            Version::from_version_output("warning: x\nnats-server: v2.15.1\n").map(|v| v.to_string()),
            Some("2.15.1".to_owned())
        );
        assert_eq!(Version::from_version_output("hello"), None);
    }
}

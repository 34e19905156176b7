//! What the agent is doing, in a small file of its state folder, for people on its host; and the file by which they
//! tell it to drain. Neither needs a connection.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sally_common::clock::now_ms;
use sally_common::id::Nonce;
use sally_common::name::{Agent, Zone};
use sally_common::wire::command::RunAttempt;
use sally_common::wire::report::{Slots, SpoolStatus};
use serde::{Deserialize, Serialize};

/// The file whose presence says: finish what runs, take nothing new. It outlives a restart.
pub const DRAINING: &str = "draining";
/// The file that the agent holds locked while it runs.
pub const LOCK: &str = "agent.lock";
/// The file with the [`Status`].
const STATUS: &str = "status.json";

/// What an agent says of itself to its own host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// The program's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// The process, as the controller knows it.
    pub instance: Nonce,
    /// When this was written, by the wall clock, Unix milliseconds.
    pub written_ms: i64,
    /// Whether a controller lets it start work.
    pub welcome: bool,
    /// Whether it takes nothing new because somebody asked for it.
    pub draining: bool,
    /// Why it takes nothing new although slots are free, if so.
    pub deferring: Option<String>,
    /// Slots in use and in all.
    pub slots: Slots,
    /// Attempts that it has accepted and not started, a number.
    pub accepted: u64,
    /// Attempts that run, at most 256 named.
    pub running: Vec<RunAttempt>,
    /// Results without a receipt.
    pub spool: SpoolStatus,
    /// Bytes in the state folder, about.
    pub used_bytes: u64,
    /// What was lost since the process began, by kind.
    pub lost: BTreeMap<String, u64>,
    /// When something was last heard from a controller, Unix milliseconds.
    pub last_contact_ms: Option<i64>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// How much later a contact is before it is worth writing.
const CONTACT_STEP_MS: i64 = 5_000;

impl Status {
    /// In a few words, for the service manager.
    pub fn words(&self) -> String {
        let what = match (self.draining, &self.deferring, self.welcome) {
            (true, ..) => "drains",
            (_, Some(_), _) => "takes nothing new: no room",
            (.., true) => "takes work",
            (.., false) => "waits for a controller",
        };
        let (slots, waiting) = (&self.slots, self.spool.results);
        format!("{what}; {} of {} slots busy, {waiting} results without a receipt", slots.used, slots.total)
    }

    /// Whether this tells a person more than `before` does.
    pub fn is_news(&self, before: &Status) -> bool {
        let contact = |s: &Status| s.last_contact_ms.map(|ms| ms / CONTACT_STEP_MS);
        let rest = |s: &Status| Status { written_ms: 0, last_contact_ms: None, ..s.clone() };
        contact(self) != contact(before) || rest(self) != rest(before)
    }

    /// Writes it. A reader sees the old one or the new one.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let next = state_dir.join("status.next");
        std::fs::write(&next, serde_json::to_vec(self)?)?;
        std::fs::rename(next, state_dir.join(STATUS))
    }

    /// Reads what the last process wrote, if one did.
    pub fn read(state_dir: &Path) -> Option<Status> {
        serde_json::from_slice(&std::fs::read(state_dir.join(STATUS)).ok()?).ok()
    }

    /// How long ago something was heard, milliseconds.
    pub fn silent_ms(&self) -> Option<i64> {
        self.last_contact_ms.map(|ms| (now_ms() - ms).max(0))
    }
}

/// Whether somebody asked for nothing new to be taken.
pub fn is_draining(state_dir: &Path) -> bool {
    state_dir.join(DRAINING).exists()
}

/// Whether an agent process holds this state folder: the kernel's table of locks names it. Trying the lock would keep
/// an agent from starting that begins just then.
pub fn is_alive(state_dir: &Path) -> bool {
    let Ok(file) = std::fs::metadata(state_dir.join(LOCK)) else { return false };
    let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
    let id = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| line.contains("FLOCK") && line.split_whitespace().any(|word| word == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            zone: "dmz".parse().expect("a name"),
            agent: "web-1".parse().expect("a name"),
            version: "1".into(),
            pid: 1,
            instance: Nonce::generate(),
            written_ms: 1,
            welcome: true,
            draining: false,
            deferring: None,
            slots: Slots { used: 0, total: 4 },
            accepted: 0,
            running: vec![],
            spool: SpoolStatus::default(),
            used_bytes: 0,
            lost: BTreeMap::new(),
            last_contact_ms: Some(10_000),
            last_error: None,
        }
    }

    #[test]
    fn only_news_is_written() {
        let before = status();
        let same = Status { written_ms: 9, last_contact_ms: Some(10_001), ..before.clone() };
        assert!(!same.is_news(&before));
        assert!(Status { last_contact_ms: Some(15_000), ..before.clone() }.is_news(&before));
        assert!(Status { draining: true, ..before.clone() }.is_news(&before));
    }

    #[test]
    fn it_reads_back() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Status::read(dir.path()), None);
        status().write(dir.path()).expect("written");
        assert_eq!(Status::read(dir.path()).map(|s| s.pid), Some(1));
    }

    #[test]
    fn a_held_lock_is_seen_and_not_tried() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(!is_alive(dir.path()));
        let file = std::fs::File::create(dir.path().join(LOCK)).expect("made");
        assert!(!is_alive(dir.path()));
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("locked");
        assert!(is_alive(dir.path()));
        drop(lock);
        assert!(!is_alive(dir.path()));
    }
}

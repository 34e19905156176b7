//! The exit record: what a keeper says about an attempt when it has ended.
#![forbid(unsafe_code)]

use super::layer::Layers;
use super::network::Destination;
use super::profile::Profile;
use sally_common::name::ProfileName;
use serde::{Deserialize, Serialize};

/// The version of the record's form.
pub const RECORD_VERSION: u32 = 1;

/// The largest record, in bytes.
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// Room that a run folder reserves for its record, in bytes. A list of 64 kept files of usual names fits in too.
pub(super) const RECORD_ROOM: usize = 16 * 1024;

/// One attempt, ended. One line of JSON; a torn record has no newline. What stands behind the line is not part of it:
/// the file holds zeros from the beginning, so that a full disk has room for the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`RECORD_VERSION`].
    pub v: u32,
    /// The run of the plan.
    pub run: String,
    /// The attempt of the plan.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// When the program was executed, Unix time in milliseconds. `None` if it never was.
    pub started_at_unix_ms: Option<u64>,
    /// When the main process had ended (or the attempt had failed), Unix time in milliseconds.
    pub finished_at_unix_ms: u64,
    /// From start to end by the monotonic clock. 0 if it never started.
    pub duration_ms: u64,
    /// Standard output.
    pub stdout: StreamCount,
    /// Standard error.
    pub stderr: StreamCount,
    /// Descriptor 3.
    pub result: StreamCount,
    /// The result file; `None` if the script made none (or something that is no regular file).
    pub result_file: Option<StreamCount>,
    /// The files that the script named to be kept, as far as the limit of their number; empty if it named none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Collected>,
    /// The work folder as it was kept, if the plan asked for it and the program ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<KeptFolder>,
    /// What it used.
    pub usage: Usage,
    /// The limit that ended the run, or else one that it ran into. The timeout is an outcome of its own, and streams tell
    /// by themselves what was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitHit>,
    /// What the plan's list of destinations was used for; `None` without a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkUse>,
    /// Processes that were still alive after the grace and were killed. The main process is not counted.
    pub leftovers: u32,
    /// The kernel uid it ran as.
    pub uid: u32,
    /// The profile of the plan.
    pub profile: Profile,
    /// The operator's profile of the plan, which starts from that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined: Option<ProfileName>,
    /// What the sandbox really enforced. Empty if it failed before it could tell.
    pub layers: Layers,
}

/// Bytes of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCount {
    /// Bytes in the run folder.
    pub kept: u64,
    /// Bytes read from the script beyond the limit (or beyond what could be stored) and thrown away.
    pub dropped: u64,
    /// Why bytes within the limit could not be stored, if so (a full disk).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The connections of a script that may reach some destinations and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// The destinations that it might connect to.
    pub allowed: Vec<Destination>,
    /// Connections that were led on, answered or not.
    pub connections: u64,
    /// Connections to an address that a listed network or name shares a port with, and that were reset. What is nowhere
    /// near the list is refused by the kernel and not counted.
    pub refused: u64,
    /// Of the connections, those to which nobody answered outside. They were reset.
    pub failed: u64,
    /// Why the first of them failed, or why none could be made from some time on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A limit that a run met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    /// Which.
    pub limit: LimitName,
    /// Whether it ended the run; else the script met it and went on, or ended by itself.
    pub ended: bool,
}

/// A limit of a plan that a run can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitName {
    /// Memory ran out and the kernel killed (seen with a control group only).
    Memory,
    /// Processor time.
    Cpu,
    /// A process or thread could not be made (seen with a control group only).
    Processes,
    /// A file grew to the largest size allowed, by which the main process was killed.
    File,
    /// The writable folders were full when the run ended.
    Work,
    /// They held the most files allowed when the run ended.
    WorkFiles,
}

/// A file that a script named to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// The name that the script gave it.
    pub name: String,
    /// Its path in the work folder.
    pub path: String,
    /// Its size; 0 if it could not be kept.
    pub bytes: u64,
    /// Why it could not be kept. It is kept whole or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A work folder that was kept: a tar archive behind the files to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFolder {
    /// Where it begins in the file that also holds the files to keep.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Files, folders and links in it.
    pub entries: u64,
    /// What is not in it: no room, unreadable, or nothing that an archive can hold.
    pub left_out: u64,
    /// Why it ends early, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time in milliseconds: of the tree by its control group, else of all processes that were waited for.
    pub cpu_ms: u64,
    /// The most memory in use: of the tree with the files in its box if `memory_of_tree`, else the resident size of
    /// the largest single process.
    pub memory_peak_bytes: u64,
    /// Whether a control group counted the memory.
    #[serde(default)]
    pub memory_of_tree: bool,
    /// The most processes and threads at one time, if a control group saw it. It keeps the most that a slot ever had: one
    /// that has not had more than an attempt before is unknown too.
    pub pids_peak: Option<u64>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// The main process ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended the main process, and it was not the keeper's.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The timeout came first; then the main process ended in one of the two ways.
    TimedOut {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// A cancellation came first. Neither code nor signal: it had not started.
    Cancelled {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The command, or the interpreter of the script, does not exist inside the sandbox.
    NotFound {
        /// What does not exist, for people.
        what: String,
    },
    /// The program exists and cannot be executed.
    ExecFailed {
        /// The kernel's error number.
        errno: i32,
        /// The same for people.
        message: String,
    },
    /// The sandbox could not be built, or lacks a layer that the plan requires. Nothing ran.
    SetupFailed {
        /// The step that failed; `require` for a missing layer.
        step: String,
        /// The kernel's error number, 0 if none.
        errno: i32,
        /// The same for people.
        message: String,
    },
    /// The agent never released the attempt (it died or withdrew it). Nothing ran.
    NotStarted,
}

impl ExitRecord {
    /// Encodes the record as its one line.
    pub fn to_line(&self) -> Vec<u8> {
        // NOTE: a struct of numbers, strings and maps with string keys always encodes.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a record; `None` if it is not there yet or torn.
    pub fn from_line(bytes: &[u8]) -> Option<ExitRecord> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        serde_json::from_slice(&bytes[..end]).ok()
    }

    /// Replaces the list of kept files by one entry that says so: for a disk that has no room for the list.
    pub(super) fn without_artifacts(&mut self) {
        let error = format!("no room for the list of the {} files to keep", self.artifacts.len());
        let gone = Collected { name: String::new(), path: String::new(), bytes: 0, error: Some(error) };
        self.artifacts = vec![gone];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::layer::{Hold, Layer};

    fn record() -> ExitRecord {
        ExitRecord {
            v: RECORD_VERSION,
            run: "01j".into(),
            attempt: 2,
            outcome: Outcome::TimedOut { code: None, signal: Some(9) },
            started_at_unix_ms: Some(1),
            finished_at_unix_ms: 2,
            duration_ms: 1,
            stdout: StreamCount { kept: 1, dropped: 2, error: None },
            stderr: StreamCount::default(),
            result: StreamCount::default(),
            result_file: None,
            artifacts: vec![],
            kept: None,
            usage: Usage::default(),
            limit: Some(LimitHit { limit: LimitName::WorkFiles, ended: false }),
            network: None,
            leftovers: 3,
            uid: 200_000,
            profile: Profile::Strict,
            defined: None,
            layers: Layers::from([(Layer::NoNewPrivs, Hold::Enforced)]),
        }
    }

    #[test]
    fn a_record_survives_and_every_torn_one_is_noticed() {
        let line = record().to_line();
        assert_eq!(ExitRecord::from_line(&line), Some(record()));
        for end in 0..line.len() {
            assert_eq!(ExitRecord::from_line(&line[..end]), None);
        }
    }

    #[test]
    fn a_record_is_read_from_the_room_that_was_reserved_for_it() {
        let mut room = vec![0; RECORD_ROOM];
        assert_eq!(ExitRecord::from_line(&room), None);
        let line = record().to_line();
        for written in 1..=line.len() {
            room[..written].copy_from_slice(&line[..written]);
            assert_eq!(ExitRecord::from_line(&room).is_some(), written == line.len());
        }
        assert_eq!(ExitRecord::from_line(&room), Some(record()));
    }

    #[test]
    fn a_record_with_many_files_to_keep_fits_its_room_and_any_other_does_without_its_list() {
        let file = |at| Collected {
            name: format!("report-{at}-of-the-nightly-backup"),
            path: format!("out/reports/report-{at}-of-the-nightly-backup.json"),
            bytes: 0,
            error: Some("No space left on device".into()),
        };
        let mut record = ExitRecord { artifacts: (0..64).map(file).collect(), ..record() };
        assert!(record.to_line().len() <= RECORD_ROOM, "{}", record.to_line().len());
        record.artifacts.iter_mut().for_each(|file| file.name = "x".repeat(1024));
        assert!(record.to_line().len() > RECORD_ROOM);
        record.without_artifacts();
        assert!(record.to_line().len() <= RECORD_ROOM / 4);
        let said = record.artifacts[0].error.clone().unwrap_or_default();
        assert!(said.contains("64 files"), "{said}");
    }

    #[test]
    fn the_form_is_pinned() {
        let line = String::from_utf8(record().to_line()).unwrap_or_default();
        assert!(line.contains(r#""outcome":{"kind":"timed_out","code":null,"signal":9}"#), "{line}");
        assert!(line.contains(r#""layers":{"no_new_privs":"enforced"}"#), "{line}");
    }
}

//! The agent's own files in a run folder, beside those of the keeper.
#![forbid(unsafe_code)]

use std::path::Path;

use super::secrets::Sealed;
use crate::delivery::memory::Known;
use sally_common::id::{Digest, RunId};
use serde::{Deserialize, Serialize};

/// What is kept beside an attempt's output, so that another agent process can go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The order's expiry.
    pub expires_ms: i64,
    /// The order's digest.
    pub order_digest: Digest,
    /// Whether a missing result is a failure.
    pub require_result: bool,
    /// The slot it was given, if it got so far.
    #[serde(default)]
    pub slot: Option<u16>,
    /// The boot in which the folder was made. In another one what it says may be older than what happened.
    #[serde(default)]
    pub boot: String,
    /// What was known of the run before this attempt: it counts again if the attempt is given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Known>,
    /// Its secrets, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

impl Note {
    /// Of an attempt that has no folder yet.
    pub fn of(run: RunId, attempt: u32, expires_ms: i64, order_digest: Digest) -> Self {
        let (slot, boot, before, sealed) = (None, String::new(), None, None);
        Note { run, attempt, expires_ms, order_digest, require_result: false, slot, boot, before, sealed }
    }
}

/// The file whose presence says that the controller asked to cancel the run.
pub(super) const CANCEL_ASKED: &str = "cancel-asked";

/// The file with the [`Note`].
pub const NOTE_FILE: &str = "run.json";

/// A structured result that is too large for its message.
pub(super) const RESULT_JSON: &str = "result.json";

/// Not empty once the program was about to be let go. A folder that is used again has it from before, emptied.
pub(super) const RELEASED: &str = "released";

/// The files that every attempt leaves beside those of its keeper.
pub const OWN_FILES: [&str; 2] = [NOTE_FILE, RELEASED];

/// Whether the program of this folder may have been let go.
pub fn is_released(dir: &Path) -> bool {
    std::fs::metadata(dir.join(RELEASED)).is_ok_and(|file| file.len() > 0)
}

/// Reads the note of a run folder.
pub fn read_note(dir: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(dir.join(NOTE_FILE)).ok()?).ok()
}

/// Writes a file that is not there or is empty. Without cutting it off first: ext4 takes a file that was cut off and
/// written for one that is being replaced, and hands it to the disk when it is closed, which a run would wait for.
pub fn write_fresh(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?.write_all(bytes)
}

/// Removes a run folder that is settled. What cannot be removed is told and tried again at the next start.
pub fn remove_dir(dir: &Path) {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, dir = %dir.display(), "cannot remove a run folder"),
    }
}

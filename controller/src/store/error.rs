//! What can go wrong with the store's files, for the person who has to act.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why a file could not be stored or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("no room to write {path}: free some space on that disk; nothing half-written is shown")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The store's own bound is reached.
    #[error(
        "{path} holds {used} of at most {bound} bytes: wait for old files to be removed, or raise the bound"
    )]
    Bound {
        /// The store's folder.
        path: PathBuf,
        /// Bytes in it.
        used: u64,
        /// The setting.
        bound: u64,
    },
    /// One blob or stream is larger than allowed.
    #[error("{path} would have {bytes} bytes, at most {bound} are allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// How many it would have.
        bytes: u64,
        /// The setting.
        bound: u64,
    },
    /// The content is not what was announced.
    #[error("the content of {path} does not have the digest or length that was announced: send it again")]
    WrongDigest {
        /// The file.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {action} {path} ({detail}): check that the folder exists and belongs to this user")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The program is ending.
    #[error("the store is closed")]
    Closed,
}

/// Makes an error of a failed step; for `map_err`.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full { path },
        _ => StoreError::Io { action, path, detail: error.to_string() },
    }
}

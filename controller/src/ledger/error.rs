//! What can go wrong with a ledger, for the person who has to act.

use std::path::{Path, PathBuf};

/// Why the ledger could not be opened or could not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The file is no SQLite database, or is damaged.
    #[error(
        "the ledger {path} cannot be read ({detail}): restore it from a backup, or move it away to start with an empty one"
    )]
    Corrupt {
        /// The ledger's file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A database of some other program.
    #[error("{path} is a database but not a ledger: name another path, or move the file away")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "the ledger {path} has version {found}, this program knows versions up to {known}: run the newer program, or restore an older backup"
    )]
    Newer {
        /// The ledger's file.
        path: PathBuf,
        /// The version in the file.
        found: i64,
        /// The newest version that this program reads.
        known: i64,
    },
    /// Another process writes to it.
    #[error("the ledger {path} is in use by another controller: stop that one first")]
    InUse {
        /// The ledger's file.
        path: PathBuf,
    },
    /// It cannot be opened or made.
    #[error("the ledger {path} cannot be opened ({detail}): check that its folder exists and is writable")]
    Open {
        /// The ledger's file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// It may be read but not written.
    #[error("the ledger {path} is read-only: make the file and its folder writable for this user")]
    ReadOnly {
        /// The ledger's file.
        path: PathBuf,
    },
    /// There is no room.
    #[error("no room to write the ledger {path}: free some space on that disk; nothing was recorded")]
    Full {
        /// The ledger's file.
        path: PathBuf,
    },
    /// The database failed in another way.
    #[error("the ledger {path} failed: {detail}")]
    Failed {
        /// The ledger's file.
        path: PathBuf,
        /// What the database said.
        detail: String,
    },
    /// What was to be recorded makes no sense.
    #[error("{0}")]
    Input(String),
    /// The ledger was closed, or its writer ended.
    #[error("the ledger is closed")]
    Closed,
}

/// Turns a database's error into one that names the file and what to do.
pub(super) fn explain(path: &Path, error: &sqlx::Error) -> LedgerError {
    let path = path.to_path_buf();
    let detail = error.to_string();
    // SQLite's primary result codes are the low byte of the extended ones.
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i32>().ok());
    match (code.map(|c| c & 0xff), error) {
        (Some(11 | 26), _) => LedgerError::Corrupt { path, detail },
        (Some(8), _) => LedgerError::ReadOnly { path },
        (Some(13), _) => LedgerError::Full { path },
        (Some(14), _) => LedgerError::Open { path, detail },
        (_, sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_)) => {
            LedgerError::Corrupt { path, detail }
        }
        (_, sqlx::Error::PoolClosed) => LedgerError::Closed,
        _ => LedgerError::Failed { path, detail },
    }
}

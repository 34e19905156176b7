//! Whether there is room for another run: its output, its result, and what stays free for everybody else.
//!
//! Room is reserved when a run is admitted and not when it writes, so that what was admitted can finish. A decision over
//! numbers that somebody else measured.
#![forbid(unsafe_code)]

use std::fmt;

use sally_common::limit::RESULT_MAX;

/// What the configuration allows, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// The state folder as a whole: journal, spool, run folders.
    pub max_bytes: u64,
    /// What stays free on its file system.
    pub min_free_bytes: u64,
    /// Reserved for the output of one run.
    pub log_reserve_bytes: u64,
    /// A result without a receipt is given up after this, milliseconds by the wall clock.
    pub spool_max_age_ms: i64,
}

const MIB: u64 = 1024 * 1024;
const DAY_MS: i64 = 24 * 3600 * 1000;

impl Default for Storage {
    fn default() -> Self {
        Storage {
            max_bytes: 8 * 1024 * MIB,
            min_free_bytes: 64 * MIB,
            log_reserve_bytes: 64 * MIB,
            spool_max_age_ms: 90 * DAY_MS,
        }
    }
}

impl Storage {
    /// What one run reserves: its output, and its structured result.
    pub fn reserve(&self) -> u64 {
        self.log_reserve_bytes + RESULT_MAX
    }
}

/// What was measured, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Free on the state folder's file system, for this user.
    pub free: u64,
    /// In the state folder.
    pub used: u64,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The file system is full, or nearly.
    Disk {
        /// Free now.
        free: u64,
        /// Free that is needed.
        need: u64,
    },
    /// The state folder holds as much as it may.
    Folder {
        /// Holds now, with what is reserved.
        used: u64,
        /// May hold.
        max: u64,
    },
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoRoom::Disk { free, need } => write!(
                f,
                "{} MiB are free where the agent keeps its state, and another run needs {} MiB",
                free / MIB,
                need.div_ceil(MIB)
            ),
            NoRoom::Folder { used, max } => write!(
                f,
                "the agent's state folder holds or reserves {} MiB, and with another run it would be more than the {} MiB of max_bytes",
                used / MIB,
                max / MIB
            ),
        }
    }
}

/// Whether another run may be admitted beside `active` ones, each of which has its room reserved.
pub fn admits(storage: &Storage, measured: Measured, active: u32) -> Result<(), NoRoom> {
    let reserved = storage.reserve().saturating_mul(u64::from(active));
    let need = reserved.saturating_add(storage.reserve()).saturating_add(storage.min_free_bytes);
    if measured.free < need {
        return Err(NoRoom::Disk { free: measured.free, need });
    }
    let used = measured.used.saturating_add(reserved);
    if used.saturating_add(storage.reserve()) > storage.max_bytes {
        return Err(NoRoom::Folder { used, max: storage.max_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage() -> Storage {
        Storage {
            max_bytes: 100 * MIB,
            min_free_bytes: 10 * MIB,
            log_reserve_bytes: 9 * MIB,
            spool_max_age_ms: 1,
        }
    }

    fn measured(free: u64, used: u64) -> Measured {
        Measured { free: free * MIB, used: used * MIB }
    }

    #[test]
    fn a_run_needs_its_reserve_beside_what_stays_free() {
        assert_eq!(admits(&storage(), measured(20, 0), 0), Ok(()));
        let error = admits(&storage(), measured(19, 0), 0).expect_err("too little");
        assert_eq!(error, NoRoom::Disk { free: 19 * MIB, need: 20 * MIB });
        assert!(error.to_string().contains("19 MiB are free") && error.to_string().contains("20 MiB"));
    }

    #[test]
    fn what_runs_has_its_room_already() {
        assert_eq!(admits(&storage(), measured(50, 0), 3), Ok(()));
        assert!(admits(&storage(), measured(49, 0), 3).is_err());
    }

    #[test]
    fn the_folder_has_a_bound_of_its_own() {
        assert_eq!(admits(&storage(), measured(1000, 90), 0), Ok(()));
        let error = admits(&storage(), measured(1000, 91), 0).expect_err("too much");
        assert_eq!(error, NoRoom::Folder { used: 91 * MIB, max: 100 * MIB });
        assert!(admits(&storage(), measured(1000, 90), 1).is_err());
    }

    #[test]
    fn huge_numbers_do_not_wrap() {
        let storage = Storage { min_free_bytes: u64::MAX, ..storage() };
        assert!(admits(&storage, measured(1000, 0), u32::MAX).is_err());
    }
}

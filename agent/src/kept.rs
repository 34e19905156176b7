//! Work folders of failed runs that somebody asked to keep: archives in the state folder, bounded and aged.
#![forbid(unsafe_code)]

const MIB: u64 = 1024 * 1024;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepBounds {
    /// All together, bytes; the oldest go first.
    pub max_bytes: u64,
    /// Of one run, bytes.
    pub run_bytes: u64,
    /// Gone after this, milliseconds by the wall clock.
    pub max_age_ms: i64,
}

impl Default for KeepBounds {
    fn default() -> Self {
        KeepBounds { max_bytes: 1024 * MIB, run_bytes: 256 * MIB, max_age_ms: 7 * DAY_MS }
    }
}

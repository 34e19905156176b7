//! The wall clock, in the one unit that the wire uses, and one beside it that nobody can set.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z by this host's wall clock.
pub fn now_ms() -> i64 {
    let now = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    };
    now.saturating_add(crate::fail::clock_offset_ms())
}

/// Milliseconds by a clock that is the wall clock when this process first asks and never jumps after that. For how long
/// something has lasted within this process: a wall clock that is set back by an hour would make that an hour longer.
pub fn steady_ms() -> i64 {
    static START: OnceLock<(i64, Instant)> = OnceLock::new();
    let (wall_ms, at) = START.get_or_init(|| (now_ms(), Instant::now()));
    wall_ms.saturating_add(i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX))
}

/// Writes a wire time as RFC 3339 in UTC with milliseconds, `2026-11-21T07:00:00.123Z`.
/// A time outside the years −9999 to 9999 is written as the nearest one inside.
pub fn rfc3339(ms: i64) -> String {
    let stamp = jiff::Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    });
    format!("{stamp:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_clock_goes_with_the_other_while_nobody_sets_that() {
        let first = steady_ms();
        let before = now_ms();
        while now_ms() < before + 5 {
            std::thread::yield_now();
        }
        let passed = steady_ms() - first;
        assert!((4..1_000).contains(&passed), "{passed}");
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
        assert!(rfc3339(i64::MAX).starts_with("9999-"));
    }
}

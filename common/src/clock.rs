//! The wall clock, in the one unit that the wire uses.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z by this host's wall clock.
pub fn now_ms() -> i64 {
    let now = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    };
    now.saturating_add(crate::fail::clock_offset_ms())
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
    fn times_are_utc_with_milliseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_790_000_000_123), "2026-09-21T14:13:20.123Z");
        assert!(rfc3339(i64::MAX).starts_with("9999-"));
    }
}

//! When an idempotent task is tried again: part of the order, decided by the controller.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use crate::limit;
use crate::wire::record::RunState;

/// How often, after what, and how long in between. Bounded for every reason there is: a run never has more
/// attempts than [`Retry::attempts`] however it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts in all, the first included. At most [`limit::ATTEMPTS_MAX`].
    pub attempts: u32,
    /// What is followed by another attempt. Empty: [`RetryOn::DEFAULT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<RetryOn>,
    /// Wait before the second attempt, milliseconds by the controller's clock; doubled for each one after.
    #[serde(default = "backoff_ms")]
    pub backoff_ms: u64,
    /// The longest wait, milliseconds.
    #[serde(default = "backoff_max_ms")]
    pub backoff_max_ms: u64,
}

fn backoff_ms() -> u64 {
    1_000
}

fn backoff_max_ms() -> u64 {
    300_000
}

/// One kind of end that is followed by another attempt. On the wire and on the command line it is a word:
/// `failed`, `retryable`, `interrupted`, `timed-out`, `exit=75` or `exit=70-79`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// The attempt failed, unless the script said that it is not retryable.
    Failed,
    /// The script said `@fail` with `retryable`.
    Retryable,
    /// The host or the keeper went down under it, or its journal was lost.
    Interrupted,
    /// It ran into its timeout.
    TimedOut,
    /// It ended with one of these exit codes, first and last.
    Exit(u8, u8),
}

/// How an attempt ended, as far as a retry depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The state it ended in.
    pub state: RunState,
    /// The exit code, if it had one.
    pub exit_code: Option<i32>,
    /// What the script said with `@fail`: whether another try may help.
    pub retryable: Option<bool>,
}

impl RetryOn {
    /// What a task that names nothing is retried after.
    pub const DEFAULT: [RetryOn; 2] = [RetryOn::Failed, RetryOn::Interrupted];

    /// Whether an attempt that ended so is of this kind.
    pub fn covers(self, end: &End) -> bool {
        let failed = end.state == RunState::Failed;
        match self {
            RetryOn::Failed => failed && end.retryable != Some(false),
            RetryOn::Retryable => failed && end.retryable == Some(true),
            RetryOn::Interrupted => matches!(end.state, RunState::Interrupted | RunState::Unknown),
            RetryOn::TimedOut => end.state == RunState::TimedOut,
            RetryOn::Exit(first, last) => {
                let range = i32::from(first)..=i32::from(last);
                failed && end.retryable != Some(false) && end.exit_code.is_some_and(|c| range.contains(&c))
            }
        }
    }
}

impl Retry {
    /// Whether another attempt follows `attempt`, which ended so.
    pub fn follows(&self, attempt: u32, end: &End) -> bool {
        let on = if self.on.is_empty() { RetryOn::DEFAULT.as_slice() } else { &self.on };
        attempt < self.attempts && on.iter().any(|on| on.covers(end))
    }

    /// The wait before the attempt after `attempt`, milliseconds: doubled each time, bounded, and spread by
    /// `jitter` (0.0 to 1.0) over the upper half, so that many runs do not come back together.
    pub fn pause_ms(&self, attempt: u32, jitter: f64) -> u64 {
        let doubled =
            self.backoff_ms.saturating_mul(1u64.checked_shl(attempt.saturating_sub(1)).unwrap_or(u64::MAX));
        let whole = doubled.min(self.backoff_max_ms);
        let half = whole / 2;
        half + (jitter.clamp(0.0, 1.0) * (whole - half) as f64) as u64
    }

    /// Checks bounds. `idempotent` is what the task says of itself.
    pub fn check(&self, idempotent: bool) -> Result<(), String> {
        if !idempotent {
            return Err(
                "a task is only tried again when it is idempotent: add --idempotent, or leave out --retries"
                    .into(),
            );
        }
        if self.attempts == 0 || self.attempts > limit::ATTEMPTS_MAX {
            return Err(format!("{} attempts: a run has 1 to {}", self.attempts, limit::ATTEMPTS_MAX));
        }
        if self.on.len() > limit::RETRY_ON_MAX {
            return Err(format!("more than {} kinds of ends to retry after", limit::RETRY_ON_MAX));
        }
        if self.backoff_ms > limit::BACKOFF_MAX_MS || self.backoff_max_ms > limit::BACKOFF_MAX_MS {
            return Err(format!("a wait between attempts is at most {} ms", limit::BACKOFF_MAX_MS));
        }
        Ok(())
    }
}

impl FromStr for RetryOn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = crate::name::show(text);
            format!(
                "\"{shown}\" is nothing to retry after: use failed, retryable, interrupted, timed-out, exit=CODE or exit=FROM-TO"
            )
        };
        match text {
            "failed" => return Ok(RetryOn::Failed),
            "retryable" => return Ok(RetryOn::Retryable),
            "interrupted" => return Ok(RetryOn::Interrupted),
            "timed-out" => return Ok(RetryOn::TimedOut),
            _ => {}
        }
        let codes = text.strip_prefix("exit=").ok_or_else(wrong)?;
        let (first, last) = codes.split_once('-').unwrap_or((codes, codes));
        let number = |t: &str| t.parse::<u8>().ok().filter(|_| t.bytes().all(|b| b.is_ascii_digit()));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(RetryOn::Exit(first, last)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RetryOn::Failed => f.write_str("failed"),
            RetryOn::Retryable => f.write_str("retryable"),
            RetryOn::Interrupted => f.write_str("interrupted"),
            RetryOn::TimedOut => f.write_str("timed-out"),
            RetryOn::Exit(first, last) if first == last => write!(f, "exit={first}"),
            RetryOn::Exit(first, last) => write!(f, "exit={first}-{last}"),
        }
    }
}

impl Serialize for RetryOn {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(attempts: u32, on: &[&str]) -> Retry {
        let on = on.iter().map(|t| t.parse().expect("a kind of end")).collect();
        Retry { attempts, on, backoff_ms: 1_000, backoff_max_ms: 10_000 }
    }

    fn end(state: RunState, exit_code: Option<i32>, retryable: Option<bool>) -> End {
        End { state, exit_code, retryable }
    }

    #[test]
    fn the_default_is_failures_and_interruptions() {
        let retry = retry(3, &[]);
        assert!(retry.follows(1, &end(RunState::Failed, Some(1), None)));
        assert!(retry.follows(2, &end(RunState::Interrupted, None, None)));
        assert!(retry.follows(2, &end(RunState::Unknown, None, None)));
        assert!(!retry.follows(3, &end(RunState::Failed, Some(1), None)), "no fourth attempt");
        assert!(!retry.follows(1, &end(RunState::TimedOut, None, None)));
        assert!(!retry.follows(1, &end(RunState::Succeeded, Some(0), None)));
        assert!(!retry.follows(1, &end(RunState::Cancelled, None, None)));
        assert!(!retry.follows(1, &end(RunState::Expired, None, None)));
    }

    #[test]
    fn what_the_script_says_wins() {
        let failed = |retryable| end(RunState::Failed, Some(75), retryable);
        assert!(!retry(2, &[]).follows(1, &failed(Some(false))));
        assert!(!retry(2, &["exit=75"]).follows(1, &failed(Some(false))));
        assert!(retry(2, &["retryable"]).follows(1, &failed(Some(true))));
        assert!(!retry(2, &["retryable"]).follows(1, &failed(None)));
    }

    #[test]
    fn exit_codes_are_ranges() {
        let retry = retry(2, &["exit=70-79"]);
        assert!(retry.follows(1, &end(RunState::Failed, Some(70), None)));
        assert!(retry.follows(1, &end(RunState::Failed, Some(79), None)));
        assert!(!retry.follows(1, &end(RunState::Failed, Some(80), None)));
        assert!(!retry.follows(1, &end(RunState::Failed, None, None)));
    }

    #[test]
    fn waits_double_are_bounded_and_spread() {
        let retry = retry(100, &[]);
        assert_eq!((retry.pause_ms(1, 0.0), retry.pause_ms(1, 1.0)), (500, 1_000));
        assert_eq!(retry.pause_ms(2, 1.0), 2_000);
        assert_eq!(retry.pause_ms(5, 1.0), 10_000);
        assert_eq!(retry.pause_ms(99, 1.0), 10_000);
    }

    #[test]
    fn words_read_back_and_nonsense_is_named() {
        for word in ["failed", "retryable", "interrupted", "timed-out", "exit=0", "exit=1-255"] {
            assert_eq!(word.parse::<RetryOn>().map(|on| on.to_string()).as_deref(), Ok(word));
        }
        for word in ["", "exit", "exit=", "exit=256", "exit=9-1", "exit=+1", "exit=1-2-3", "Failed"] {
            assert!(word.parse::<RetryOn>().is_err(), "{word}");
        }
    }

    #[test]
    fn bounds_are_checked() {
        assert!(retry(2, &[]).check(false).is_err());
        assert!(retry(0, &[]).check(true).is_err());
        assert!(retry(limit::ATTEMPTS_MAX, &[]).check(true).is_ok());
        assert!(retry(limit::ATTEMPTS_MAX + 1, &[]).check(true).is_err());
    }
}

//! How an attempt ended, decided from what its keeper knows of it.
#![forbid(unsafe_code)]

use crate::sandbox::cgroup_group::Used;
use crate::sandbox::record::{LimitName, Outcome, Usage};
use crate::sandbox::step::StepError;
use crate::sandbox::wire::{Ended, Report};

/// Why the keeper ended the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Timeout,
    Cancel,
    Limit(LimitName),
    /// The agent kept its word back for too long.
    NoWord,
}

/// Decides how an attempt ended from what is known of it.
pub(super) fn outcome(cause: Option<Cause>, reason: Option<Outcome>, started: bool, ended: Ended) -> Outcome {
    let (code, signal) = match ended {
        Ended::Exited(code) => (Some(code), None),
        Ended::Signaled(signal) => (None, Some(signal)),
    };
    match (cause, reason) {
        (Some(Cause::NoWord), _) if !started => Outcome::NotStarted,
        (Some(Cause::Cancel), Some(Outcome::SetupFailed { .. } | Outcome::NotStarted) | None) if !started => {
            Outcome::Cancelled { code: None, signal: None }
        }
        (_, Some(reason)) => reason,
        (Some(Cause::Timeout), None) => Outcome::TimedOut { code, signal },
        (Some(Cause::Limit(_)) | None, None) => match ended {
            Ended::Exited(code) => Outcome::Exited { code },
            Ended::Signaled(signal) => Outcome::Signaled { signal },
        },
        (Some(Cause::Cancel | Cause::NoWord), None) => Outcome::Cancelled { code, signal },
    }
}

/// What a run used: by its group where there is one, else by what init saw of its children.
pub(super) fn usage(used: &Used, report: Option<Report>) -> Usage {
    let (cpu_us, largest) = report.map_or((0, 0), |report| (report.cpu_us, report.max_rss_kib * 1024));
    Usage {
        cpu_ms: used.cpu_us.unwrap_or(cpu_us).div_ceil(1000),
        memory_peak_bytes: used.memory_peak.unwrap_or(largest),
        memory_of_tree: used.memory_peak.is_some(),
        pids_peak: used.pids_peak,
    }
}

pub(super) fn setup_failed(error: StepError) -> Outcome {
    Outcome::SetupFailed { step: error.step, errno: error.errno, message: error.message }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Ended = Ended::Signaled(15);

    #[test]
    fn a_script_that_ends_by_itself() {
        assert_eq!(outcome(None, None, true, Ended::Exited(3)), Outcome::Exited { code: 3 });
        assert_eq!(outcome(None, None, true, TERM), Outcome::Signaled { signal: 15 });
    }

    #[test]
    fn the_keepers_reason_comes_before_how_the_script_took_it() {
        let timed_out = outcome(Some(Cause::Timeout), None, true, Ended::Exited(0));
        assert_eq!(timed_out, Outcome::TimedOut { code: Some(0), signal: None });
        let cancelled = outcome(Some(Cause::Cancel), None, true, TERM);
        assert_eq!(cancelled, Outcome::Cancelled { code: None, signal: Some(15) });
    }

    #[test]
    fn what_never_started_says_why() {
        let failed = setup_failed(StepError::other("stage", "x"));
        assert_eq!(outcome(None, Some(failed.clone()), false, TERM), failed);
        assert_eq!(outcome(None, Some(Outcome::NotStarted), false, TERM), Outcome::NotStarted);
        let cancelled = Outcome::Cancelled { code: None, signal: None };
        assert_eq!(outcome(Some(Cause::Cancel), Some(failed), false, TERM), cancelled);
        assert_eq!(outcome(Some(Cause::NoWord), None, false, TERM), Outcome::NotStarted);
        let absent = Outcome::NotFound { what: "x".into() };
        assert_eq!(outcome(Some(Cause::Cancel), Some(absent.clone()), false, TERM), absent);
    }
}

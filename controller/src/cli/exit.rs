//! Exit codes (design section 9). Scripts rely on them.

use sally_common::wire::api::ErrorCode;
use sally_common::wire::record::RunState;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// All runs succeeded, or the command could answer.
    Success,
    /// The controller or this program failed.
    Internal,
    /// The command line makes no sense.
    Usage,
    /// A run failed.
    RunFailed,
    /// No agent matched.
    NoTarget,
    /// A run expired, timed out, was interrupted or is unknown.
    RunMissing,
    /// A run was rejected, or the submission denied.
    Denied,
    /// Broker or controller out of reach.
    Unreachable,
    /// Same request id, another job.
    Conflict,
    /// Cancelled.
    Cancelled,
    /// `--wait` ran out.
    WaitOver,
    /// Detached with Ctrl-C; the job goes on.
    Detached,
    /// Nobody reads our output any more: what a shell reports of a program that SIGPIPE ended.
    PipeClosed,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Internal => 1,
            Exit::Usage => 2,
            Exit::RunFailed => 3,
            Exit::NoTarget => 4,
            Exit::RunMissing => 5,
            Exit::Denied => 6,
            Exit::Unreachable => 7,
            Exit::Conflict => 8,
            Exit::Cancelled => 9,
            Exit::WaitOver => 124,
            Exit::Detached => 130,
            Exit::PipeClosed => 141,
        }
    }

    /// A stable word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Exit::Success => "success",
            Exit::Internal => "internal",
            Exit::Usage => "usage",
            Exit::RunFailed => "run-failed",
            Exit::NoTarget => "no-target",
            Exit::RunMissing => "run-missing",
            Exit::Denied => "denied",
            Exit::Unreachable => "unreachable",
            Exit::Conflict => "conflict",
            Exit::Cancelled => "cancelled",
            Exit::WaitOver => "wait-over",
            Exit::Detached => "detached",
            Exit::PipeClosed => "pipe-closed",
        }
    }

    /// What the controller's error means here.
    pub fn of_error(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Usage => Exit::Usage,
            ErrorCode::NoTarget => Exit::NoTarget,
            ErrorCode::Denied => Exit::Denied,
            ErrorCode::Conflict => Exit::Conflict,
            // What was named is not there: the command line is wrong, not the program.
            ErrorCode::NotFound => Exit::Usage,
            ErrorCode::Internal => Exit::Internal,
        }
    }

    /// What the runs of an ended job mean. Missing knowledge is worst, then a refusal, then a failure, then
    /// a cancellation.
    pub fn of_runs(states: impl IntoIterator<Item = RunState>) -> Self {
        let worst = states.into_iter().map(Self::of_run).max_by_key(|exit| match exit {
            Exit::RunMissing => 4,
            Exit::Denied => 3,
            Exit::RunFailed => 2,
            Exit::Cancelled => 1,
            _ => 0,
        });
        worst.unwrap_or(Exit::Success)
    }

    fn of_run(state: RunState) -> Self {
        match state {
            RunState::Succeeded => Exit::Success,
            RunState::Failed => Exit::RunFailed,
            RunState::Cancelled => Exit::Cancelled,
            RunState::Rejected => Exit::Denied,
            RunState::TimedOut | RunState::Expired | RunState::Interrupted | RunState::Unknown => {
                Exit::RunMissing
            }
            // A job that ended has none of these; if it did, we would not know how they end.
            RunState::Pending | RunState::Dispatched | RunState::Running => Exit::RunMissing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunState::*;

    #[test]
    fn exit_codes_follow_from_the_runs() {
        for (states, expected) in [
            (&[Succeeded, Succeeded][..], 0),
            (&[Succeeded, Failed], 3),
            (&[Expired], 5),
            (&[TimedOut], 5),
            (&[Interrupted], 5),
            (&[Unknown], 5),
            (&[Rejected], 6),
            (&[Cancelled, Succeeded], 9),
            (&[Cancelled, Failed], 3),
            (&[Failed, Rejected], 6),
            (&[Rejected, Expired, Failed, Cancelled], 5),
            (&[Running], 5),
            (&[], 0),
        ] {
            assert_eq!(Exit::of_runs(states.iter().copied()).code(), expected, "{states:?}");
        }
    }

    #[test]
    fn the_controllers_errors_have_exit_codes() {
        for (code, expected) in [
            (ErrorCode::Usage, 2),
            (ErrorCode::NoTarget, 4),
            (ErrorCode::Denied, 6),
            (ErrorCode::Conflict, 8),
            (ErrorCode::NotFound, 2),
            (ErrorCode::Internal, 1),
        ] {
            assert_eq!(Exit::of_error(code).code(), expected, "{code:?}");
        }
    }
}

//! Which of two outcomes of a run is believed (design promise 4). Pure.

use sally_common::wire::record::RunState;

/// How much an outcome is worth within one attempt; the greater is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// There is none yet.
    Open,
    /// The controller's own guess: `expired` or `unknown`, not final.
    Guess,
    /// The agent says that it cannot know.
    Unknown,
    /// The agent says that it did not start it, or it was cancelled before it was ever sent.
    NotRun,
    /// The agent says that the run began and that its end was not seen.
    Interrupted,
    /// A real exit record.
    Exit,
}

/// The rank of an outcome: its state, whether it started, and whether it is final.
pub fn rank(state: RunState, started: bool, is_final: bool) -> Rank {
    match state {
        RunState::Pending | RunState::Dispatched | RunState::Running => Rank::Open,
        RunState::Expired | RunState::Unknown if !is_final => Rank::Guess,
        RunState::Unknown => Rank::Unknown,
        RunState::Expired | RunState::Rejected => Rank::NotRun,
        RunState::Cancelled if !started => Rank::NotRun,
        RunState::Interrupted => Rank::Interrupted,
        RunState::Succeeded | RunState::Failed | RunState::TimedOut | RunState::Cancelled => Rank::Exit,
    }
}

/// What becomes of an outcome that an agent reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is of an older attempt: kept on record, changes nothing.
    Stale,
    /// What the ledger holds is at least as good: changes nothing.
    Kept,
    /// It becomes the run's outcome.
    Believed,
}

/// Compares what a run has (attempt and rank) with what is reported.
///
/// An attempt above the run's own can only come from a ledger that was restored from an older
/// copy: the controller did sign that attempt, so it is believed whatever is on record. Attempts begin at 1.
pub fn judge(has: (u32, Rank), reported: (u32, Rank)) -> Verdict {
    if reported.0 == 0 {
        return Verdict::Stale;
    }
    match reported.0.cmp(&has.0) {
        std::cmp::Ordering::Less => Verdict::Stale,
        std::cmp::Ordering::Greater => Verdict::Believed,
        std::cmp::Ordering::Equal if reported.1 > has.1 => Verdict::Believed,
        std::cmp::Ordering::Equal => Verdict::Kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunState::*;

    #[test]
    fn every_state_has_its_rank() {
        for (state, started, is_final, expected) in [
            (Pending, false, false, Rank::Open),
            (Dispatched, false, false, Rank::Open),
            (Running, true, false, Rank::Open),
            (Expired, false, false, Rank::Guess),
            (Expired, true, false, Rank::Guess),
            (Unknown, false, false, Rank::Guess),
            (Unknown, true, false, Rank::Guess),
            (Unknown, true, true, Rank::Unknown),
            (Expired, false, true, Rank::NotRun),
            (Rejected, false, true, Rank::NotRun),
            (Cancelled, false, true, Rank::NotRun),
            (Interrupted, true, true, Rank::Interrupted),
            (Cancelled, true, true, Rank::Exit),
            (Succeeded, true, true, Rank::Exit),
            (Failed, true, true, Rank::Exit),
            (Failed, false, true, Rank::Exit),
            (TimedOut, true, true, Rank::Exit),
        ] {
            assert_eq!(rank(state, started, is_final), expected, "{state} {started} {is_final}");
        }
    }

    #[test]
    fn within_an_attempt_the_better_word_wins_once() {
        let ladder = [Rank::Open, Rank::Guess, Rank::Unknown, Rank::NotRun, Rank::Interrupted, Rank::Exit];
        for (i, has) in ladder.into_iter().enumerate() {
            for (j, reported) in ladder.into_iter().enumerate() {
                let expected = if j > i { Verdict::Believed } else { Verdict::Kept };
                assert_eq!(judge((3, has), (3, reported)), expected, "{has:?} {reported:?}");
                assert_eq!(judge((3, has), (2, reported)), Verdict::Stale);
                assert_eq!(judge((3, has), (4, reported)), Verdict::Believed);
                assert_eq!(judge((0, has), (0, reported)), Verdict::Stale, "never dispatched");
            }
        }
    }
}

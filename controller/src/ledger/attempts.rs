//! The step from one attempt to the next: what ends is set aside, what never starts brings it back. Pure.

use sally_common::id::RunId;
use sally_common::wire::order::Retry;
use sally_common::wire::record::RunState;
use sally_common::wire::retry::End;

use super::rank::{Rank, rank};
use super::types::*;
use super::work::Work;

impl Ended {
    /// How much this outcome is worth.
    pub(super) fn rank(&self) -> Rank {
        rank(self.state, self.started_ms.is_some(), self.is_final)
    }
}

impl Run {
    /// The attempt and the worth of its outcome that a new word is compared with.
    pub(super) fn standing(&self) -> (u32, Rank) {
        match &self.last {
            // The next attempt has not been sent: the ended one can still be corrected.
            Some(last) if self.waits_again() => (last.attempt, last.rank()),
            _ => (self.attempt, rank(self.state, self.started_ms.is_some(), self.is_final)),
        }
    }

    /// Whether it waits for another attempt.
    pub(super) fn waits_again(&self) -> bool {
        self.state == RunState::Pending && self.last.is_some()
    }

    /// Its outcome, as it is set aside.
    fn ended(&self) -> Ended {
        Ended {
            attempt: self.attempt,
            state: self.state,
            is_final: self.is_final,
            incarnation: self.incarnation,
            started_ms: self.started_ms,
            finished_ms: self.finished_ms,
            duration_ms: self.duration_ms,
            exit_code: self.exit_code,
            signal: self.signal,
            reason: self.reason.clone(),
            message: self.message.clone(),
            result_state: self.result_state,
            report_digest: self.report_digest,
        }
    }

    /// Forgets what only an attempt under way or ended has. Reason and message stay.
    fn clear(&mut self) {
        self.started_ms = None;
        self.finished_ms = None;
        self.duration_ms = None;
        self.exit_code = None;
        self.signal = None;
        self.result_state = None;
        self.report_digest = None;
        self.progress = None;
        self.is_final = false;
    }

    fn restore(&mut self, last: Ended) {
        self.attempt = last.attempt;
        self.is_final = last.is_final;
        self.incarnation = last.incarnation;
        self.started_ms = last.started_ms;
        self.finished_ms = last.finished_ms;
        self.duration_ms = last.duration_ms;
        self.exit_code = last.exit_code;
        self.signal = last.signal;
        self.reason = last.reason;
        self.message = last.message;
        self.result_state = last.result_state;
        self.report_digest = last.report_digest;
    }
}

/// When the attempt after this one may start, if there is one. `run` has its outcome already.
pub(super) fn next_at(
    run: &Run,
    state: RunState,
    retry: Option<&Retry>,
    retryable: Option<bool>,
    jitter: f64,
    at_ms: i64,
) -> Option<i64> {
    let end = End { state, exit_code: run.exit_code, retryable };
    let retry = retry.filter(|retry| run.attempt > 0 && retry.follows(run.attempt, &end))?;
    let pause = i64::try_from(retry.pause_ms(run.attempt, jitter)).unwrap_or(i64::MAX);
    let at = at_ms.saturating_add(pause);
    // Nobody would start it then: this outcome is the last one.
    (run.cancel_requested_ms.is_none() && at < run.expires_ms).then_some(at)
}

impl Work<'_> {
    /// Gives a run, which has its outcome already, the state `state`; or lets it wait for another attempt.
    pub(super) fn conclude(
        &mut self,
        id: &RunId,
        state: RunState,
        retryable: Option<bool>,
        jitter: f64,
        at_ms: i64,
    ) -> Option<Box<Change>> {
        let retry = self.jobs.get(id.job())?.value.retry.clone();
        let run = self.runs.get_mut(id)?.write();
        run.last = None;
        let Some(next) = next_at(run, state, retry.as_ref(), retryable, jitter, at_ms) else {
            run.retry_at_ms = None;
            return self.change(id, state, at_ms);
        };
        run.last = Some(Box::new(Ended { state, ..run.ended() }));
        run.clear();
        run.retry_at_ms = Some(run.retry_at_ms.unwrap_or(next));
        self.change(id, RunState::Pending, at_ms)
    }

    /// The attempt before this one is the last one after all.
    pub(super) fn fall_back(&mut self, id: &RunId, at_ms: i64) -> Option<Box<Change>> {
        let run = self.runs.get_mut(id)?.write();
        let last = run.last.take()?;
        let state = last.state;
        run.restore(*last);
        run.retry_at_ms = None;
        self.change(id, state, at_ms)
    }
}

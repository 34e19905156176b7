//! Ends what waits: cancelled, purged, replaced, expired, guessed. Pure.

use sally_common::id::{JobId, RunId};
use sally_common::wire::record::RunState;

use super::types::*;
use super::work::Work;

/// Why runs end that nobody wants any more.
#[derive(Clone, Copy)]
pub(super) struct Why<'a> {
    pub(super) reason: &'a str,
    pub(super) message: &'a str,
    pub(super) at_ms: i64,
}

impl<'a> Work<'a> {
    pub(super) fn cancel(&mut self, job: &JobId, at_ms: i64, hard: bool) -> Option<Box<Cancellation>> {
        let open_before = self.jobs.get(job)?.value.ended_ms.is_none();
        let of_job = job.run(0)..=job.run(u32::MAX);
        let ids: Vec<RunId> =
            self.runs.range(of_job).filter(|(_, r)| !r.value.is_final).map(|(id, _)| id.clone()).collect();
        let (mut cancelled, mut tell) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(row) = self.runs.get_mut(&id) else { continue };
            let known = row.value.cancel_requested_ms.is_some() && (row.value.cancel_hard || !hard);
            if !known {
                let run = row.write();
                run.cancel_requested_ms.get_or_insert(at_ms);
                run.cancel_hard |= hard;
            }
            if row.value.attempt > 0 && row.value.state != RunState::Pending {
                tell.push(row.value.clone());
                continue;
            }
            let (reason, message) = match &row.value.last {
                Some(last) => ("cancelled", Some(waited_again(last))),
                None => ("not-started", None),
            };
            self.close(&id, RunState::Cancelled, reason, message, at_ms);
            cancelled.extend(self.runs.get(&id).map(|r| r.value.clone()));
        }
        let job = self.jobs.get(job)?.value.clone();
        let job_ended = open_before && job.ended_ms.is_some();
        Some(Box::new(Cancellation { job, cancelled, tell, job_ended }))
    }

    /// Ends runs that wait: here and now what nobody was sent; of the others their agents are told.
    pub(super) fn stop(&mut self, ids: Vec<RunId>, why: Why<'_>) -> Stopped {
        let mut stopped = Stopped::default();
        for id in ids {
            let Some(row) = self.runs.get_mut(&id) else { continue };
            let run = row.write();
            run.cancel_requested_ms.get_or_insert(why.at_ms);
            if run.state == RunState::Pending {
                let message = Some(why.message.to_owned());
                let change = self.close(&id, RunState::Cancelled, why.reason, message, why.at_ms);
                stopped.changes.extend(change.map(|boxed| *boxed));
            } else {
                run.reason = Some(why.reason.to_owned());
                run.message = Some(why.message.to_owned());
                stopped.tell.push(run.clone());
            }
        }
        stopped
    }

    /// Ends a run of which no attempt is under way, by the controller's own and final word.
    pub(super) fn close(
        &mut self,
        id: &RunId,
        state: RunState,
        reason: &str,
        message: Option<String>,
        at_ms: i64,
    ) -> Option<Box<Change>> {
        let run = self.runs.get_mut(id)?.write();
        run.is_final = true;
        run.finished_ms = Some(at_ms);
        run.reason = Some(reason.to_owned());
        run.message = message;
        run.retry_at_ms = None;
        run.last = None;
        self.change(id, state, at_ms)
    }

    /// The runs of earlier jobs that a new one takes the place of.
    pub(super) fn replace(&mut self, new: &NewJob) -> Option<Stopped> {
        let key = new.latest_only.as_ref()?;
        let targets: std::collections::HashSet<_> = new.targets.iter().map(|t| (&t.zone, &t.agent)).collect();
        let older = |run: &Run| {
            let job = self.jobs.get(run.id.job()).map(|row| &row.value);
            *run.id.job() != new.id
                && matches!(run.state, RunState::Pending | RunState::Dispatched)
                && job.is_some_and(|job| job.latest_only.as_ref() == Some(key))
                && targets.contains(&(&run.zone, &run.agent))
        };
        let ids: Vec<RunId> =
            self.runs.values().filter(|r| older(&r.value)).map(|r| r.value.id.clone()).collect();
        let message = format!("job {} has the same key and took its place", new.id);
        let why = Why { reason: "replaced", message: &message, at_ms: new.created_ms };
        (!ids.is_empty()).then(|| self.stop(ids, why))
    }

    /// Ends what was not picked up in time. An attempt that was not the first brings back the one before, unless
    /// it was sent: then its agent may have it.
    pub(super) fn expire(&mut self, now_ms: i64, limit: usize) -> Changes {
        let due = |run: &Run| {
            matches!(run.state, RunState::Pending | RunState::Dispatched) && run.expires_ms <= now_ms
        };
        let ids = self.chosen(limit, due);
        let mut changes = Changes { more: ids.len() >= limit, ..Changes::default() };
        for id in ids {
            let again = self.runs.get(&id).is_some_and(|row| row.value.waits_again());
            let change = if again {
                self.fall_back(&id, now_ms)
            } else {
                self.guess(&id, RunState::Expired, "expired", "not picked up in time", now_ms)
            };
            changes.changes.extend(change.map(|boxed| *boxed));
        }
        changes
    }

    /// Settles as `unknown`, not final, what `which` names, or lets it wait for another attempt.
    pub(super) fn lose(
        &mut self,
        limit: usize,
        which: impl Fn(&Run) -> bool,
        why: Why<'_>,
        jitter: f64,
    ) -> Changes {
        let ids = self.chosen(limit, which);
        let mut changes = Changes { more: ids.len() >= limit, ..Changes::default() };
        for (n, id) in (0u32..).zip(ids) {
            let Some(row) = self.runs.get_mut(&id) else { continue };
            let run = row.write();
            run.is_final = false;
            run.finished_ms = Some(why.at_ms);
            run.reason = Some(why.reason.to_owned());
            run.message = Some(why.message.to_owned());
            // The golden ratio spreads any number of runs evenly.
            let spread = (jitter + f64::from(n) * 0.618_033_988_75).fract();
            let change = self.conclude(&id, RunState::Unknown, None, spread, why.at_ms);
            changes.changes.extend(change.map(|boxed| *boxed));
        }
        changes
    }

    fn chosen(&self, limit: usize, which: impl Fn(&Run) -> bool) -> Vec<RunId> {
        let chosen = self.runs.iter().filter(|(_, row)| which(&row.value)).map(|(id, _)| id.clone());
        chosen.take(limit).collect()
    }

    /// Ends a run by the controller's own word. It is final where the run was never sent.
    fn guess(
        &mut self,
        id: &RunId,
        state: RunState,
        reason: &str,
        message: &str,
        at_ms: i64,
    ) -> Option<Box<Change>> {
        let run = self.runs.get_mut(id)?.write();
        run.is_final = run.attempt == 0;
        run.finished_ms = Some(at_ms);
        run.reason = Some(reason.to_owned());
        run.message = Some(match &run.last {
            Some(last) => format!("{message}; {}", waited_again(last)),
            None => message.to_owned(),
        });
        self.change(id, state, at_ms)
    }
}

fn waited_again(last: &Ended) -> String {
    format!("attempt {} had ended as {}, the next one had not started", last.attempt, last.state)
}

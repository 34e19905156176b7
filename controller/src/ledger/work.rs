//! One batch of commands on the rows it touches: the decisions. Pure; no database, no clock.
//!
//! The writer loads the rows that a batch names, [`Work::decide`]s each command in order, and
//! writes what became dirty in one transaction.

use std::collections::{BTreeMap, HashMap};

use sally_common::id::{Digest, JobId, RequestId, RunId};
use sally_common::name::{Agent, Zone};
use sally_common::wire::record::RunState;

use super::command::{Answer, Command};
use super::error::LedgerError;
use super::rank::{Verdict, judge, rank};
use super::types::*;

/// Rows that a batch touches, and what became of them.
#[derive(Default)]
pub(super) struct Work<'a> {
    pub(super) jobs: HashMap<JobId, Row<Job>>,
    pub(super) requests: HashMap<RequestId, JobId>,
    pub(super) runs: BTreeMap<RunId, Row<Run>>,
    pub(super) agents: HashMap<(Zone, Agent), Row<AgentRow>>,
    pub(super) new: Vec<&'a NewJob>,
    pub(super) reports: Vec<&'a Settlement>,
    pub(super) stale: Vec<&'a Settlement>,
    pub(super) forgotten: Vec<(Zone, Agent)>,
    pub(super) pruned: Vec<JobId>,
}

/// A row and whether it must be written.
pub(super) struct Row<T> {
    pub(super) value: T,
    pub(super) dirty: bool,
}

impl<T> Row<T> {
    pub(super) fn loaded(value: T) -> Self {
        Self { value, dirty: false }
    }

    fn write(&mut self) -> &mut T {
        self.dirty = true;
        &mut self.value
    }
}

impl<'a> Work<'a> {
    /// Whether a run and its job are here.
    pub(super) fn holds(&self, run: &RunId) -> bool {
        self.runs.contains_key(run) && self.jobs.contains_key(run.job())
    }

    /// Decides one command.
    pub(super) fn decide(&mut self, command: &'a Command) -> Result<Answer, LedgerError> {
        Ok(match command {
            Command::Submit(new) => Answer::Submitted(self.submit(new)?),
            Command::Dispatch(marks) => Answer::Flags(marks.iter().map(|m| self.dispatch(m)).collect()),
            Command::Started(mark) => Answer::Noted(self.started(mark)),
            Command::Progress(mark) => Answer::Noted(self.progress(mark)),
            Command::Settle(settlement) => Answer::Settled(self.settle(settlement)),
            Command::Cancel { job, at_ms, hard } => Answer::Cancelled(self.cancel(job, *at_ms, *hard)),
            Command::Expire { now_ms, limit } => Answer::Changes(self.expire(*now_ms, *limit)),
            Command::Lost { zone, agent, incarnation, at_ms, limit } => {
                let lost = |run: &Run| {
                    run.zone == *zone
                        && run.agent == *agent
                        && matches!(run.state, RunState::Dispatched | RunState::Running)
                        && run.incarnation.is_some_and(|i| i != *incarnation)
                };
                let message =
                    "the agent's journal is another one than the one this was sent to; it may have run";
                Answer::Changes(self.guess(*limit, lost, RunState::Unknown, "journal-lost", message, *at_ms))
            }
            Command::Unknown { runs, at_ms, reason, message } => {
                let named = |run: &Run| {
                    runs.contains(&run.id) && matches!(run.state, RunState::Dispatched | RunState::Running)
                };
                let limit = runs.len();
                Answer::Changes(self.guess(limit, named, RunState::Unknown, reason, message, *at_ms))
            }
            Command::Seen(agents) => Answer::Seen(agents.iter().map(|a| self.seen(a)).collect()),
            Command::Forget { zone, name } => Answer::Flags(vec![self.forget(zone, name)]),
            // The loader found what may go; nothing is left to decide.
            Command::Prune { .. } => Answer::Count(self.pruned.len() as u64),
        })
    }

    fn submit(&mut self, new: &'a NewJob) -> Result<Submitted, LedgerError> {
        if let Some(id) = self.requests.get(&new.request_id) {
            let existing = self.jobs.get(id).map(|row| &row.value);
            return Ok(match existing {
                Some(job) if job.request_digest == new.request_digest => Submitted::Existing(job.clone()),
                _ => Submitted::Conflict { existing: id.clone() },
            });
        }
        if new.targets.is_empty() {
            return Err(LedgerError::Input("a job needs at least one target".into()));
        }
        if self.jobs.contains_key(&new.id) {
            return Err(LedgerError::Input(format!("the job id {} is taken", new.id)));
        }
        let job = Job {
            id: new.id.clone(),
            request_id: new.request_id.clone(),
            request_digest: new.request_digest,
            by: new.by.clone(),
            title: new.title.clone(),
            created_ms: new.created_ms,
            expires_ms: new.expires_ms,
            retry_of: new.retry_of.clone(),
            offline: new.offline,
            counts: first_counts(new),
            ended_ms: None,
        };
        self.requests.insert(new.request_id.clone(), new.id.clone());
        self.jobs.insert(new.id.clone(), Row::loaded(job.clone()));
        self.new.push(new);
        Ok(Submitted::Created(job))
    }

    /// First dispatch: `pending`, attempt one above the run's. The same again: `dispatched`, same attempt
    /// and same incarnation, for what another incarnation may have run is not run again. A new try:
    /// `dispatched`, attempt one above, any incarnation; only the caller knows that this does no harm.
    fn dispatch(&mut self, mark: &DispatchMark) -> bool {
        let Some(run) = self.runs.get_mut(&mark.run) else { return false };
        let has = &run.value;
        if has.cancel_requested_ms.is_some() || mark.at_ms >= has.expires_ms {
            return false;
        }
        let next = has.attempt.checked_add(1) == Some(mark.attempt);
        let again = mark.attempt == has.attempt && has.incarnation == Some(mark.incarnation);
        match has.state {
            RunState::Dispatched if again => return true,
            RunState::Pending | RunState::Dispatched if next => {}
            _ => return false,
        }
        let run = run.write();
        run.attempt = mark.attempt;
        run.incarnation = Some(mark.incarnation);
        run.dispatched_ms = Some(mark.at_ms);
        self.turn(&mark.run, RunState::Dispatched, mark.at_ms);
        true
    }

    fn started(&mut self, mark: &StartMark) -> Noted {
        let run = match self.own(&mark.run, &mark.agent_key, mark.attempt) {
            Ok(run) => run,
            Err(noted) => return noted,
        };
        let newer = mark.attempt > run.value.attempt;
        // A guess that it was not picked up is wrong now. A guess that its journal is gone stays: this
        // news is older than that loss.
        let open = match run.value.state {
            RunState::Pending | RunState::Dispatched => true,
            RunState::Expired => !run.value.is_final,
            _ => newer && !run.value.is_final,
        };
        if !open {
            return Noted::Same;
        }
        let run = run.write();
        run.attempt = mark.attempt;
        run.incarnation = Some(mark.incarnation);
        run.started_ms = Some(mark.started_ms);
        run.finished_ms = None;
        run.reason = None;
        run.message = None;
        self.change(&mark.run, RunState::Running, mark.started_ms).map_or(Noted::Unknown, Noted::Changed)
    }

    fn progress(&mut self, mark: &ProgressMark) -> Noted {
        let run = match self.own(&mark.run, &mark.agent_key, mark.attempt) {
            Ok(run) => run,
            Err(noted) => return noted,
        };
        if run.value.state.is_end() || run.value.attempt != mark.attempt {
            return Noted::Same;
        }
        run.write().progress = Some(mark.json.clone());
        let state = run.value.state;
        self.change(&mark.run, state, 0).map_or(Noted::Unknown, Noted::Changed)
    }

    fn own(
        &mut self,
        id: &RunId,
        key: &sally_common::key::PublicKey,
        attempt: u32,
    ) -> Result<&mut Row<Run>, Noted> {
        let run = self.runs.get_mut(id).ok_or(Noted::Unknown)?;
        match () {
            () if run.value.agent_key != *key => Err(Noted::NotIts),
            () if attempt == 0 || attempt < run.value.attempt => Err(Noted::Stale),
            () => Ok(run),
        }
    }

    fn settle(&mut self, told: &'a Settlement) -> Settled {
        let Some(row) = self.runs.get_mut(&told.run) else { return Settled::Unknown };
        let run = &row.value;
        if run.agent_key != told.agent_key || run.agent_key != told.report.key {
            return Settled::NotIts;
        }
        let same_attempt = run.attempt == told.attempt;
        let started_ms = told.started_ms.or(run.started_ms.filter(|_| same_attempt));
        let has = (run.attempt, rank(run.state, run.started_ms.is_some(), run.is_final));
        let verdict = match judge(has, (told.attempt, rank(told.state, started_ms.is_some(), true))) {
            Verdict::Believed if is_no_news(told) => Verdict::Kept,
            verdict => verdict,
        };
        let digest = Digest::of(&told.report.body);
        if verdict != Verdict::Believed {
            let known = run.report_digest == Some(digest);
            let run = Box::new(run.clone());
            if !known {
                self.stale.push(told);
            }
            return match verdict {
                Verdict::Stale => Settled::Stale { run },
                _ => Settled::Duplicate { run },
            };
        }
        let run = row.write();
        run.attempt = told.attempt;
        run.incarnation = Some(told.incarnation);
        run.is_final = true;
        run.started_ms = started_ms;
        run.finished_ms = Some(told.finished_ms);
        run.duration_ms = told.duration_ms;
        run.exit_code = told.exit_code;
        run.signal = told.signal;
        run.reason = told.reason.clone();
        run.message = told.message.clone();
        run.result_state = told.result_state;
        run.report_digest = Some(digest);
        self.reports.push(told);
        self.change(&told.run, told.state, told.at_ms).map_or(Settled::Unknown, Settled::Committed)
    }

    fn cancel(&mut self, job: &JobId, at_ms: i64, hard: bool) -> Option<Box<Cancellation>> {
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
            if row.value.attempt > 0 {
                tell.push(row.value.clone());
                continue;
            }
            let run = row.write();
            run.is_final = true;
            run.finished_ms = Some(at_ms);
            run.reason = Some("not-started".into());
            self.turn(&id, RunState::Cancelled, at_ms);
            cancelled.extend(self.runs.get(&id).map(|r| r.value.clone()));
        }
        let job = self.jobs.get(job)?.value.clone();
        let job_ended = open_before && job.ended_ms.is_some();
        Some(Box::new(Cancellation { job, cancelled, tell, job_ended }))
    }

    fn expire(&mut self, now_ms: i64, limit: usize) -> Changes {
        let due = |run: &Run| {
            matches!(run.state, RunState::Pending | RunState::Dispatched) && run.expires_ms <= now_ms
        };
        self.guess(limit, due, RunState::Expired, "expired", "not picked up in time", now_ms)
    }

    /// Ends the runs that `which` names by the controller's own word. It is final where the run was never sent.
    fn guess(
        &mut self,
        limit: usize,
        which: impl Fn(&Run) -> bool,
        state: RunState,
        reason: &str,
        message: &str,
        at_ms: i64,
    ) -> Changes {
        let chosen = self.runs.iter().filter(|(_, row)| which(&row.value)).map(|(id, _)| id.clone());
        let ids: Vec<RunId> = chosen.take(limit).collect();
        let more = ids.len() >= limit;
        let mut changes = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(row) = self.runs.get_mut(&id) else { continue };
            let run = row.write();
            run.is_final = run.attempt == 0;
            run.finished_ms = Some(at_ms);
            run.reason = Some(reason.to_owned());
            run.message = Some(message.to_owned());
            changes.extend(self.change(&id, state, at_ms).map(|boxed| *boxed));
        }
        Changes { changes, more }
    }

    fn seen(&mut self, seen: &AgentSeen) -> Seen {
        let fresh = |first_seen_ms: i64| AgentRow {
            zone: seen.zone.clone(),
            name: seen.name.clone(),
            agent_key: seen.agent_key.clone(),
            incarnation: seen.incarnation,
            counter: seen.counter,
            labels: seen.labels.clone(),
            heartbeat: seen.heartbeat.clone(),
            first_seen_ms,
            last_seen_ms: seen.seen_ms,
        };
        let key = (seen.zone.clone(), seen.name.clone());
        let Some(row) = self.agents.get_mut(&key) else {
            self.agents.insert(key, Row { value: fresh(seen.seen_ms), dirty: true });
            return Seen::New;
        };
        let before = row.value.incarnation;
        let answer = match () {
            () if row.value.agent_key != seen.agent_key => return Seen::OtherKey,
            () if before != seen.incarnation => Seen::NewIncarnation { before },
            () if seen.counter <= row.value.counter => return Seen::Stale,
            () => Seen::Updated,
        };
        let first = row.value.first_seen_ms;
        *row.write() = fresh(first);
        answer
    }

    fn forget(&mut self, zone: &Zone, name: &Agent) -> bool {
        let key = (zone.clone(), name.clone());
        let known = self.agents.remove(&key).is_some();
        if known {
            self.forgotten.push(key);
        }
        known
    }

    /// Turns a run's state and tells of it.
    fn change(&mut self, id: &RunId, state: RunState, at_ms: i64) -> Option<Box<Change>> {
        let (job_ended, correction) = self.turn(id, state, at_ms)?;
        let run = self.runs.get(id)?.value.clone();
        let job = self.jobs.get(id.job())?.value.clone();
        Some(Box::new(Change { run, job, job_ended, correction }))
    }

    /// Turns a run's state and moves its job's counts. Says whether the job ended by it, and whether
    /// the run had ended before.
    fn turn(&mut self, id: &RunId, state: RunState, at_ms: i64) -> Option<(bool, bool)> {
        let run = self.runs.get_mut(id)?;
        let row = self.jobs.get_mut(id.job())?;
        let before = std::mem::replace(&mut run.write().state, state);
        if before == state {
            return Some((false, before.is_end()));
        }
        let job = row.write();
        if let Some(n) = job.counts.get_mut(&before) {
            *n = n.saturating_sub(1);
        }
        job.counts.retain(|_, n| *n > 0);
        *job.counts.entry(state).or_insert(0) += 1;
        let all_ended = job.counts.keys().all(|s| s.is_end());
        let job_ended = all_ended && job.ended_ms.is_none();
        match (all_ended, job_ended) {
            (true, true) => job.ended_ms = Some(at_ms),
            (true, false) => {}
            (false, _) => job.ended_ms = None,
        }
        Some((job_ended, before.is_end()))
    }
}

/// The counts of a new job.
fn first_counts(new: &NewJob) -> BTreeMap<RunState, u64> {
    let sent = new.targets.iter().filter(|t| t.dispatch_to.is_some()).count() as u64;
    let all = [(RunState::Pending, new.targets.len() as u64 - sent), (RunState::Dispatched, sent)];
    all.into_iter().filter(|(_, n)| *n > 0).collect()
}

/// A refusal of what the agent has already taken says nothing about how that ends.
fn is_no_news(told: &Settlement) -> bool {
    told.state == RunState::Rejected
        && matches!(told.reason.as_deref(), Some("replayed" | "stale-attempt" | "wrong-incarnation"))
}

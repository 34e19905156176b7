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
use super::stop::Why;
use super::types::*;

/// Request ids that may be cancelled before they are submitted, at one time.
pub(super) const CANCELLED_KEPT: usize = 100_000;

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
    /// Jobs that are made for runs which an agent holds and nobody knows.
    pub(super) recovered: Vec<JobId>,
    /// How many such jobs there were before.
    pub(super) recovered_before: u64,
    pub(super) drains: Vec<((Zone, Agent), Option<i64>)>,
    /// Of the request ids that are submitted or cancelled here, those that were cancelled before: when, and whether
    /// without TERM.
    pub(super) cancelled: HashMap<RequestId, (i64, bool)>,
    /// How many cancelled request ids wait for their submission.
    pub(super) cancelled_count: usize,
    pub(super) tombstones: Vec<(RequestId, i64, bool)>,
    pub(super) forget_requests: Option<i64>,
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

    pub(super) fn write(&mut self) -> &mut T {
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
            Command::Submit(new) => Answer::Submitted(Box::new(self.submit(new)?)),
            Command::Dispatch(marks) => Answer::Flags(marks.iter().map(|m| self.dispatch(m)).collect()),
            Command::Started(mark) => Answer::Noted(self.started(mark)),
            Command::Progress(mark) => Answer::Noted(self.progress(mark)),
            Command::Settle(settlement) => Answer::Settled(self.settle(settlement)),
            Command::Cancel { job, at_ms, hard } => Answer::Cancelled(self.cancel(job, *at_ms, *hard)),
            Command::CancelRequest { request, at_ms, hard } => {
                Answer::Cancelled(self.cancel_request(request, *at_ms, *hard)?)
            }
            Command::ForgetRequests { before_ms } => {
                self.forget_requests = Some(*before_ms);
                Answer::Count(0)
            }
            Command::Expire { now_ms, limit } => Answer::Changes(self.expire(*now_ms, *limit)),
            Command::Lost { zone, agent, incarnation, held, at_ms, jitter, limit } => {
                self.adopt(held, *incarnation);
                let lost = |run: &Run| {
                    run.zone == *zone
                        && run.agent == *agent
                        && matches!(run.state, RunState::Dispatched | RunState::Running)
                        && run.incarnation.is_some_and(|i| i != *incarnation)
                };
                let message =
                    "the agent's journal is another one than the one this was sent to; it may have run";
                let why = Why { reason: "journal-lost", message, at_ms: *at_ms };
                Answer::Changes(self.lose(*limit, lost, why, *jitter))
            }
            Command::Unknown { runs, at_ms, reason, message, jitter } => {
                let named = |run: &Run| {
                    runs.contains(&run.id) && matches!(run.state, RunState::Dispatched | RunState::Running)
                };
                let why = Why { reason, message, at_ms: *at_ms };
                Answer::Changes(self.lose(runs.len(), named, why, *jitter))
            }
            Command::Purge { at_ms, reason, message, limit, .. } => {
                let waits = |r: &Run| {
                    matches!(r.state, RunState::Pending | RunState::Dispatched)
                        && r.cancel_requested_ms.is_none()
                };
                let ids: Vec<RunId> =
                    self.runs.values().filter(|r| waits(&r.value)).map(|r| r.value.id.clone()).collect();
                let more = ids.len() >= *limit;
                let stopped = self.stop(ids, Why { reason, message, at_ms: *at_ms });
                Answer::Stopped(Stopped { more, ..stopped })
            }
            Command::Release { now_ms, .. } => Answer::Changes(self.release(*now_ms)),
            Command::Reject { run, attempt, reason, message, at_ms } => {
                let sent = |r: &Run| r.state == RunState::Dispatched && r.attempt == *attempt;
                let is_sent = self.runs.get(run).is_some_and(|row| sent(&row.value));
                let reject = || self.close(run, RunState::Rejected, reason, Some(message.clone()), *at_ms);
                Answer::Change(is_sent.then(reject).flatten())
            }
            Command::Recover(all) => Answer::Flags(all.iter().map(|r| self.recover(r)).collect()),
            Command::Drain { agents, since_ms } => {
                self.drains.extend(agents.iter().map(|agent| (agent.clone(), *since_ms)));
                Answer::Count(agents.len() as u64)
            }
            Command::Seen(agents) => Answer::Seen(agents.iter().map(|a| self.seen(a)).collect()),
            Command::Forget { zone, name } => Answer::Flags(vec![self.forget(zone, name)]),
            // The loader found what may go; nothing is left to decide.
            Command::Prune { .. } => Answer::Count(self.pruned.len() as u64),
            // The writer has these done elsewhere.
            Command::Roster(_) => return Err(LedgerError::Closed),
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
        self.requests.insert(new.request_id.clone(), new.id.clone());
        self.jobs.insert(new.id.clone(), Row::loaded(new.job()));
        self.new.push(new);
        let replaced = self.replace(new);
        self.end_at_birth(new);
        let job = self.jobs.get(&new.id).map_or_else(|| new.job(), |row| row.value.clone());
        Ok(match replaced {
            Some(replaced) => Submitted::Replacing { job, replaced },
            None => Submitted::Created(job),
        })
    }

    /// Ends the runs of a new job that must not be sent: it was cancelled before it came, or a target is refused.
    fn end_at_birth(&mut self, new: &NewJob) {
        let cancelled = self.cancelled.get(&new.request_id).copied();
        if cancelled.is_none() && new.targets.iter().all(|t| t.refused.is_none()) {
            return;
        }
        for (mut run, target) in new.runs().into_iter().zip(&new.targets) {
            let id = run.id.clone();
            if let Some((at_ms, hard)) = cancelled {
                (run.cancel_requested_ms, run.cancel_hard) = (Some(at_ms), hard);
                (run.attempt, run.incarnation, run.dispatched_ms) = (0, None, None);
                self.runs.insert(id.clone(), Row::loaded(run));
                let message = Some("it was cancelled before it was submitted".to_owned());
                self.close(&id, RunState::Cancelled, "not-started", message, new.created_ms);
            } else if let Some((reason, message)) = &target.refused {
                self.runs.insert(id.clone(), Row::loaded(run));
                self.close(&id, RunState::Rejected, reason, Some(message.clone()), new.created_ms);
            }
        }
    }

    fn cancel_request(
        &mut self,
        request: &RequestId,
        at_ms: i64,
        hard: bool,
    ) -> Result<Option<Box<Cancellation>>, LedgerError> {
        if let Some(job) = self.requests.get(request).cloned() {
            return Ok(self.cancel(&job, at_ms, hard));
        }
        let (first_ms, was_hard) = self.cancelled.get(request).copied().unwrap_or((at_ms, false));
        let known = self.cancelled.contains_key(request);
        if !known && self.cancelled_count >= CANCELLED_KEPT {
            return Err(LedgerError::Input(format!(
                "{CANCELLED_KEPT} cancelled request ids wait for their submissions already"
            )));
        }
        self.tombstones.push((request.clone(), first_ms, hard || was_hard));
        Ok(None)
    }

    /// Runs whose pause is over wait for their agents like any other.
    fn release(&mut self, now_ms: i64) -> Changes {
        let mut changes = Changes::default();
        let due = |run: &Run| run.retry_at_ms.is_some_and(|at| at <= now_ms);
        let ids: Vec<RunId> =
            self.runs.values().filter(|r| due(&r.value)).map(|r| r.value.id.clone()).collect();
        for id in ids {
            let Some(row) = self.runs.get_mut(&id) else { continue };
            row.write().retry_at_ms = None;
            let state = row.value.state;
            changes.changes.extend(self.change(&id, state, now_ms).map(|boxed| *boxed));
        }
        changes
    }

    /// First dispatch: `pending`, attempt one above the run's. The same again: `dispatched`, same attempt
    /// and same incarnation, for what another incarnation may have run is not run again. A new try:
    /// `dispatched`, attempt one above, any incarnation; only the caller knows that this does no harm.
    fn dispatch(&mut self, mark: &DispatchMark) -> bool {
        let Some(run) = self.runs.get_mut(&mark.run) else { return false };
        let has = &run.value;
        let waits = has.retry_at_ms.is_some_and(|at| mark.at_ms < at);
        if has.cancel_requested_ms.is_some() || mark.at_ms >= has.expires_ms || waits {
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
        run.retry_at_ms = None;
        run.reason = None;
        run.message = None;
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
            RunState::Pending => newer || run.value.last.is_none(),
            RunState::Dispatched => true,
            RunState::Expired => !run.value.is_final,
            RunState::Unknown if run.value.reason.as_deref() == Some("silent") => !run.value.is_final,
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
        run.last = None;
        run.retry_at_ms = None;
        self.change(&mark.run, RunState::Running, mark.started_ms).map_or(Noted::Unknown, Noted::Changed)
    }

    fn progress(&mut self, mark: &ProgressMark) -> Noted {
        let run = match self.own(&mark.run, &mark.agent_key, mark.attempt) {
            Ok(run) => run,
            Err(noted) => return noted,
        };
        if run.value.state.is_end() || run.value.waits_again() || run.value.attempt != mark.attempt {
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
        let ended = run.last.as_ref().filter(|last| last.attempt == told.attempt);
        let before_ms = ended.map_or(run.started_ms, |last| last.started_ms);
        let started_ms = told.started_ms.or(before_ms.filter(|_| same_attempt));
        let verdict =
            match judge(run.standing(), (told.attempt, rank(told.state, started_ms.is_some(), true))) {
                Verdict::Believed if is_no_news(told) => Verdict::Kept,
                verdict => verdict,
            };
        let digest = Digest::of(&told.report.body);
        if verdict != Verdict::Believed {
            let last = run.last.as_ref().and_then(|last| last.report_digest);
            let known = run.report_digest == Some(digest) || last == Some(digest);
            let run = Box::new(run.clone());
            if !known {
                self.stale.push(told);
            }
            return match verdict {
                Verdict::Stale => Settled::Stale { run },
                _ => Settled::Duplicate { run },
            };
        }
        self.reports.push(told);
        let next_expired = told.state == RunState::Expired
            && run.last.as_ref().is_some_and(|last| told.attempt > last.attempt);
        if next_expired {
            return self.fall_back(&told.run, told.at_ms).map_or(Settled::Unknown, Settled::Committed);
        }
        let can_follow = !run.is_final || run.waits_again();
        let word = reading(run, told);
        let run = row.write();
        run.attempt = told.attempt;
        run.incarnation = Some(told.incarnation);
        run.is_final = true;
        run.started_ms = started_ms;
        run.finished_ms = Some(told.finished_ms);
        run.duration_ms = told.duration_ms;
        run.exit_code = told.exit_code;
        run.signal = told.signal;
        run.result_state = told.result_state;
        run.report_digest = Some(digest);
        (run.reason, run.message) = (word.reason, word.message);
        let change = if can_follow {
            self.conclude(&told.run, word.state, told.retryable, told.jitter, told.at_ms)
        } else {
            self.change(&told.run, word.state, told.at_ms)
        };
        change.map_or(Settled::Unknown, Settled::Committed)
    }

    fn seen(&mut self, seen: &AgentSeen) -> Seen {
        let fresh = |first_seen_ms: i64, journal: u64| AgentRow {
            zone: seen.zone.clone(),
            name: seen.name.clone(),
            agent_key: seen.agent_key.clone(),
            incarnation: seen.incarnation,
            counter: seen.counter,
            labels: seen.labels.clone(),
            heartbeat: seen.heartbeat.clone(),
            first_seen_ms,
            last_seen_ms: seen.seen_ms,
            journal,
        };
        let key = (seen.zone.clone(), seen.name.clone());
        let Some(row) = self.agents.get_mut(&key) else {
            self.agents.insert(key, Row { value: fresh(seen.seen_ms, seen.journal), dirty: true });
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
        // Another journal counts by itself.
        let heard = if before == seen.incarnation { row.value.journal } else { 0 };
        *row.write() = fresh(first, heard.max(seen.journal));
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
    pub(super) fn change(&mut self, id: &RunId, state: RunState, at_ms: i64) -> Option<Box<Change>> {
        let (job_ended, correction) = self.turn(id, state, at_ms)?;
        let run = self.runs.get(id)?.value.clone();
        let job = self.jobs.get(id.job())?.value.clone();
        Some(Box::new(Change { run, job, job_ended, correction }))
    }

    /// Turns a run's state and moves its job's counts. Says whether the job ended by it, and whether
    /// the run had ended before.
    pub(super) fn turn(&mut self, id: &RunId, state: RunState, at_ms: i64) -> Option<(bool, bool)> {
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

/// How an outcome is recorded.
struct Reading {
    state: RunState,
    reason: Option<String>,
    message: Option<String>,
}

/// Reads an agent's word in the light of what is on record.
fn reading(run: &Run, told: &Settlement) -> Reading {
    let says = |state, reason: &str, message: &str| Reading {
        state,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
    };
    let same = run.attempt == told.attempt;
    match told.state {
        // It was started, and the journal does not know it: how it ended nobody can say.
        RunState::Expired if same && run.started_ms.is_some() => {
            says(RunState::Unknown, "result-lost", "it was started, and the agent does not know it any more")
        }
        RunState::Expired if run.direct => {
            says(RunState::Rejected, "not-connected", "the agent did not get it while it was wanted")
        }
        // Why it was cancelled is known better here.
        RunState::Cancelled
            if told.started_ms.is_none() && run.cancel_requested_ms.is_some() && run.reason.is_some() =>
        {
            Reading { state: told.state, reason: run.reason.clone(), message: run.message.clone() }
        }
        state => Reading { state, reason: told.reason.clone(), message: told.message.clone() },
    }
}

/// A refusal of what the agent has already taken says nothing about how that ends.
fn is_no_news(told: &Settlement) -> bool {
    told.state == RunState::Rejected
        && matches!(told.reason.as_deref(), Some("replayed" | "stale-attempt" | "wrong-incarnation"))
}

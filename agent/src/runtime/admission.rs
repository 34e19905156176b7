//! A dispatch becomes a run, or an answer that says why not.
#![forbid(unsafe_code)]

use sally_common::clock::now_ms;
use sally_common::id::RunId;
use sally_common::subject::Channel;
use sally_common::wire::command::Dispatch;
use sally_common::wire::report::{News, State};
use sally_common::wire::{Kind, Refusal, VERSION};
use tokio::sync::mpsc;

use super::run::files::Note;
use super::run::{Admitted, Milestone, Word};
use super::{Agent, blob, heartbeat, intake};
use crate::delivery::admit::{Decision, Now, decide};
use crate::delivery::memory::{Known, Phase};

impl Agent {
    pub(super) async fn dispatch(&mut self, mut dispatch: Dispatch, order: intake::CheckedOrder) {
        let known = self.memory.get(&dispatch.run);
        let free = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        let now = Now { at_ms: self.shared.now_ms(), free, open: self.open };
        // A controller can shorten what the caller signed, not lengthen it.
        dispatch.expires_ms = dispatch.expires_ms.min(order.order.expires_ms);
        let expires_ms = dispatch.expires_ms;
        match decide(&dispatch, &self.shared.me, known, now) {
            Decision::Leave => {
                // Not kept: what the direct lane brought, which is for now or not at all; a newer attempt of what is
                // under way, which waits for more than a slot.
                let may_wait = self.open && known.is_none() && dispatch.lane.is_queue();
                let kept = may_wait && self.backlog.keep(dispatch, order);
                self.more |= !kept;
            }
            Decision::Drop(reason) => self.count(reason, &format!("a dispatch of run {}", dispatch.run)),
            Decision::Repeat(phase) => {
                if phase == Phase::Started {
                    self.pass(&dispatch.run, Word::Again);
                }
                if phase == Phase::Accepted {
                    self.news(&dispatch.run, dispatch.attempt, News::Accepted).await;
                }
            }
            Decision::Resend => self.pass(&dispatch.run, Word::Again),
            Decision::Refuse(reason) => {
                self.count(reason, &format!("a dispatch of run {}", dispatch.run));
                let message = reason.to_string();
                self.news(&dispatch.run, dispatch.attempt, News::Refused { reason, message }).await;
            }
            Decision::Take => {
                if let Err(reason) = order.is_for(&self.shared) {
                    return self.close(&dispatch.run, dispatch.attempt, expires_ms, reason).await;
                }
                if self.free.is_empty() {
                    return;
                }
                // The one that is free for longest: its keeper has had the time to prepare the next sandbox.
                let slot = self.free.remove(0);
                let note = Note {
                    run: dispatch.run.clone(),
                    attempt: dispatch.attempt,
                    expires_ms,
                    order_digest: dispatch.order_digest,
                    require_result: order.order.task.require_result,
                    slot: None,
                    boot: heartbeat::boot_id(),
                };
                let (attempt, phase) = (dispatch.attempt, Phase::Accepted);
                let known = Known { attempt, phase, closed: None, order_digest: None, expires_ms };
                self.memory.note(dispatch.run.clone(), known);
                let (run, words) = self.task(note);
                self.runs.insert(dispatch.run.clone(), (dispatch.attempt, words));
                let admitted = Admitted {
                    run: dispatch.run,
                    attempt: dispatch.attempt,
                    expires_ms,
                    order: order.order,
                    order_digest: dispatch.order_digest,
                };
                self.tasks.spawn(run.execute(admitted, slot));
            }
        }
    }

    /// Gives free slots to what was kept for them.
    pub(super) async fn take_kept(&mut self) {
        if now_ms() >= self.shared.config.trust.expires_ms {
            // Nobody is trusted any more, as if it came now.
            self.backlog.clear();
        }
        while !self.free.is_empty()
            && let Some((dispatch, order)) = self.backlog.take()
        {
            self.dispatch(dispatch, order).await;
        }
    }

    /// Refuses an attempt for good: remembered, told, and never to be run.
    pub(super) async fn close(&mut self, run: &RunId, attempt: u32, expires_ms: i64, reason: Refusal) {
        if reason != Refusal::Cancelled {
            self.count(reason, &format!("run {run}"));
        }
        let known =
            Known { attempt, phase: Phase::Closed, closed: Some(reason), order_digest: None, expires_ms };
        self.memory.note(run.clone(), known);
        sally_common::fail::point("agent.close.before-journal");
        let written = self.shared.journal().closed(run, attempt, expires_ms, reason);
        if written.wait().await.is_err() {
            self.shared.count_loss("journal-write");
        }
        self.news(run, attempt, News::Refused { reason, message: reason.to_string() }).await;
    }

    /// An order too large for its dispatch is fetched first, and the dispatch judged again with it.
    pub(super) async fn fetch_order(&mut self, dispatch: Dispatch) {
        let known = self.memory.get(&dispatch.run);
        if !self.open || self.free.is_empty() || known.is_some_and(|k| k.attempt >= dispatch.attempt) {
            self.more = known.is_none();
            return;
        }
        let (sender, pieces) = mpsc::channel(blob::PIECES_IN_FLIGHT);
        let waiting = self.blobs.entry(dispatch.order_digest).or_default();
        waiting.retain(|w| !w.is_closed());
        if !waiting.is_empty() {
            return;
        }
        waiting.push(sender);
        let (shared, milestones) = (self.shared.clone(), self.milestones.clone());
        let note = Note {
            run: dispatch.run.clone(),
            attempt: dispatch.attempt,
            expires_ms: dispatch.expires_ms,
            order_digest: dispatch.order_digest,
            require_result: false,
            slot: None,
            boot: String::new(),
        };
        self.tasks.spawn(async move {
            let (digest, size) = (dispatch.order_digest, dispatch.order_bytes);
            let fetched = blob::fetch(&shared, &note, digest, size, pieces).await;
            let milestone = match fetched {
                Ok(bytes) => Milestone::Order(Box::new(dispatch), bytes),
                Err(_) => Milestone::GivenBack(note.run, note.attempt),
            };
            let _ = milestones.send(milestone).await;
        });
    }

    pub(super) async fn news(&self, run: &RunId, attempt: u32, news: News) {
        let from = self.shared.from();
        let state = State { v: VERSION, from, run: run.clone(), attempt, at_ms: now_ms(), news };
        self.shared.report(Channel::State, Kind::State, &state).await;
    }
}

//! A dispatch becomes a run, or an answer that says why not.
#![forbid(unsafe_code)]

use sally_common::clock::now_ms;
use sally_common::id::RunId;
use sally_common::subject::Channel;
use sally_common::wire::command::{Dispatch, Lane, RunAttempt};
use sally_common::wire::report::{News, State};
use sally_common::wire::{Kind, Refusal, VERSION};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::doorstep::Visitor;
use super::intake::CheckedOrder;
use super::run::files::Note;
use super::run::{Admitted, Milestone, Word};
use super::{Agent, blob, heartbeat};
use crate::delivery::admit::{Decision, Now, decide};
use crate::delivery::memory::{Ended, Known, Phase};

impl Agent {
    /// Judges a dispatch that came by. Its order is missing if it was too large to come along.
    pub(super) async fn dispatch(&mut self, dispatch: Dispatch, order: Option<CheckedOrder>) {
        if let Some(nonce) = dispatch.answers {
            self.came(nonce);
        }
        let in_turn = self.turn.allows(dispatch.answers);
        let more = dispatch.more;
        self.judge(dispatch, order, in_turn).await;
        if more {
            self.leave();
        }
    }

    /// Judges a dispatch whose order was fetched. Its turn had come before.
    pub(super) async fn dispatch_again(&mut self, dispatch: Dispatch, order: CheckedOrder) {
        self.judge(dispatch, Some(order), true).await;
    }

    async fn judge(&mut self, mut dispatch: Dispatch, order: Option<CheckedOrder>, in_turn: bool) {
        if let Some(order) = &order {
            // A controller can shorten what the caller signed, not lengthen it.
            dispatch.expires_ms = dispatch.expires_ms.min(order.order.expires_ms);
        }
        let known = self.memory.get(&dispatch.run);
        let now = Now {
            at_ms: self.shared.now_ms(),
            free: u32::try_from(self.free.len()).unwrap_or(u32::MAX),
            open: self.open,
            in_turn,
            draining: self.draining,
            room: self.no_room().is_none(),
        };
        let (run, attempt) = (dispatch.run.clone(), dispatch.attempt);
        match decide(&dispatch, &self.shared.me(), known, now) {
            Decision::Take => match order {
                Some(order) => self.take(dispatch, order, known).await,
                None => self.fetch_order(dispatch),
            },
            Decision::Leave => self.keep_or_leave(dispatch, order, known.is_none(), in_turn),
            Decision::Supersede => {
                let older = known.map_or(0, |known| known.attempt);
                self.pass(&run, older, Word::Yield("a newer attempt came before it started"));
                match dispatch.lane {
                    Lane::Direct => self.defer(&dispatch, Refusal::GivenBack).await,
                    _ => self.leave(),
                }
            }
            Decision::Defer(reason) => self.defer(&dispatch, reason).await,
            Decision::Hold => {
                if let Err(visitor) = self.doorstep.keep((dispatch, order), Instant::now()) {
                    self.defer(&visitor.0, Refusal::GivenBack).await;
                }
            }
            Decision::Drop(reason) => self.count(reason, &format!("a dispatch of run {run}")),
            Decision::Repeat(_, Phase::Started) | Decision::Resend => {
                self.pass(&run, known.map_or(attempt, |known| known.attempt), Word::Again);
            }
            Decision::Repeat(attempt, _) => self.news(&run, attempt, News::Accepted).await,
            Decision::Ended(known, ended) => self.remind(&dispatch, known, ended).await,
            Decision::Refuse(reason) => {
                self.count(reason, &format!("a dispatch of run {run}"));
                let message = match dispatch.lane {
                    Lane::Other => format!(
                        "agent {} does not know the lane that this dispatch travels on",
                        env!("CARGO_PKG_VERSION")
                    ),
                    _ => reason.to_string(),
                };
                self.news(&run, attempt, News::Refused { reason, message }).await;
            }
        }
    }

    /// Judges what came before this agent was welcome.
    pub(super) async fn let_in(&mut self) {
        for (dispatch, order) in self.doorstep.take_all() {
            self.judge(dispatch, order, true).await;
        }
    }

    /// Tells those that wait for a welcome that none came.
    pub(super) async fn turn_away(&mut self, visitors: Vec<Visitor>) {
        for (dispatch, _) in visitors {
            self.defer(&dispatch, Refusal::GivenBack).await;
        }
    }

    /// Gives free slots to what was kept for them.
    pub(super) async fn take_kept(&mut self) {
        if now_ms() >= self.shared.policy().trust.expires_ms {
            // Nobody is trusted any more, as if it came now.
            self.backlog.clear();
        }
        while !self.free.is_empty()
            && let Some((dispatch, order)) = self.backlog.take()
        {
            self.dispatch_again(dispatch, order).await;
        }
    }

    /// Keeps a dispatch for the next free slot, if its turn has come and there is room; else leaves it behind. Not kept:
    /// what the direct lane brought, which is for now or not at all; a newer attempt of what is under way, which
    /// waits for more than a slot; and anything while the agent drains.
    fn keep_or_leave(
        &mut self,
        dispatch: Dispatch,
        order: Option<CheckedOrder>,
        is_new: bool,
        in_turn: bool,
    ) {
        let in_turn = in_turn || self.backlog.has(&dispatch.run);
        let may_wait = is_new && in_turn && dispatch.lane.is_queue() && self.open && !self.draining;
        if let Some(order) = order
            && may_wait
            && self.backlog.keep(dispatch, order)
        {
            self.took = true;
        } else {
            self.leave();
        }
    }

    /// Leaves a dispatch behind: the controller is asked for it later.
    fn leave(&mut self) {
        self.more = true;
        self.turn.leave();
    }

    /// Says that a dispatch is not taken now. In the queue it waits, and is asked for again.
    async fn defer(&mut self, dispatch: &Dispatch, reason: Refusal) {
        let message = match reason {
            Refusal::NoRoom if self.free.is_empty() => format!("all {} slots are in use", self.slots),
            Refusal::NoRoom => self.no_room().map_or_else(|| reason.to_string(), |why| why.to_string()),
            Refusal::GivenBack if !self.open => "no controller has welcomed this agent yet".to_owned(),
            Refusal::GivenBack => "an older attempt has not ended yet".to_owned(),
            other => other.to_string(),
        };
        if dispatch.lane == Lane::Queue {
            self.leave();
        }
        self.news(&dispatch.run, dispatch.attempt, News::Deferred { reason, message: Some(message) }).await;
    }

    /// Says again how a run ended whose result the controller had: a ledger that was lost or restored asks for it.
    async fn remind(&mut self, dispatch: &Dispatch, attempt: u32, ended: Ended) {
        let stale = dispatch.attempt < attempt;
        let reason = if stale { Refusal::StaleAttempt } else { Refusal::Replayed };
        self.count(reason, &format!("a dispatch of run {}", dispatch.run));
        let Ended { state, exit_code, finished_ms, digest } = ended;
        let news = News::Ended { attempt, state, exit_code, finished_ms, digest };
        self.news(&dispatch.run, dispatch.attempt, news).await;
    }

    async fn take(&mut self, dispatch: Dispatch, order: CheckedOrder, known: Option<Known>) {
        let (run, attempt, expires_ms) = (dispatch.run, dispatch.attempt, dispatch.expires_ms);
        if let Err(reason) = order.is_for(&self.shared) {
            return self.close(&run, attempt, expires_ms, reason).await;
        }
        if self.free.is_empty() {
            return;
        }
        self.took = true;
        // The one that is free for longest: its keeper has had the time to prepare the next sandbox.
        let slot = self.free.remove(0);
        let order_digest = dispatch.order_digest;
        let note = Note {
            require_result: order.order.task.require_result,
            boot: heartbeat::boot_id(),
            before: known,
            ..Note::of(run.clone(), attempt, expires_ms, order_digest)
        };
        self.memory.note(run.clone(), Known::new(attempt, Phase::Accepted, expires_ms));
        let (task, words) = self.task(note);
        self.runs.insert(RunAttempt { run: run.clone(), attempt }, words);
        let signatures = dispatch.order_signatures;
        let admitted = Admitted { run, attempt, expires_ms, order: order.order, order_digest, signatures };
        self.tasks.spawn(task.execute(admitted, slot));
    }

    /// Refuses an attempt for good: remembered, told, and never to be run.
    pub(super) async fn close(&mut self, run: &RunId, attempt: u32, expires_ms: i64, reason: Refusal) {
        if reason != Refusal::Cancelled {
            self.count(reason, &format!("run {run}"));
        }
        let known = Known { closed: Some(reason), ..Known::new(attempt, Phase::Closed, expires_ms) };
        self.memory.note(run.clone(), known);
        sally_common::fail::point("agent.close.before-journal");
        let written = self.shared.journal().closed(run, attempt, expires_ms, reason);
        if written.wait().await.is_err() {
            self.shared.count_loss("journal-write");
        }
        self.news(run, attempt, News::Refused { reason, message: reason.to_string() }).await;
    }

    /// An order too large for its dispatch is fetched first, and the dispatch judged again with it.
    fn fetch_order(&mut self, dispatch: Dispatch) {
        let (sender, pieces) = mpsc::channel(blob::PIECES_IN_FLIGHT);
        let waiting = self.blobs.entry(dispatch.order_digest).or_default();
        waiting.retain(|w| !w.is_closed());
        if !waiting.is_empty() {
            // Said again while it is fetched, or another run of the same order: that one is asked for later.
            return self.leave();
        }
        waiting.push(sender);
        self.took = true;
        let (shared, milestones) = (self.shared.clone(), self.milestones.clone());
        let (digest, size) = (dispatch.order_digest, dispatch.order_bytes);
        let note = Note::of(dispatch.run.clone(), dispatch.attempt, dispatch.expires_ms, digest);
        self.tasks.spawn(async move {
            let milestone = match blob::fetch(&shared, &note, digest, size, pieces).await {
                Ok(bytes) => Milestone::Order(Box::new(dispatch), bytes),
                Err(problem) => {
                    tracing::warn!(run = %note.run, ?problem, "could not fetch an order");
                    Milestone::NoOrder
                }
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

//! What the controller says, and what is done about it.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::{Digest, Nonce, RunId};
use sally_common::wire::Refusal;
use sally_common::wire::command::{Answer, Cancel, RunAttempt};
use sally_common::wire::report::News;
use tokio::time::Instant;

use super::intake::{self, Command};
use super::run::Word;
use super::speak::{ASK_AGAIN, ASK_PAUSE};
use super::{Agent, Coming, blob};
use crate::delivery::memory::Phase;
use crate::delivery::turn::Turn;

/// How long a cancellation of a run that was never started is remembered.
const CANCEL_KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

/// Between two new incarnations at least: one is enough, unless the state is copied again.
const RENEW_PAUSE: Duration = Duration::from_secs(10);

/// Probes that are answered in one second.
const PROBES_PER_SECOND: u32 = 10;

impl Agent {
    pub(super) async fn receive(&mut self, message: async_nats::Message) {
        match intake::read(&self.shared, &message) {
            Ok(command) => {
                self.last_contact_ms = Some(now_ms());
                self.obey(command).await;
            }
            Err(refusal) => self.count(refusal, "a message on the live subject"),
        }
    }

    pub(super) fn count(&mut self, refusal: Refusal, what: &str) {
        *self.refused.entry(refusal).or_insert(0) += 1;
        let text = format!("refused {what}: {refusal}");
        tracing::warn!(reason = %refusal.code(), "{text}");
        self.last_error = Some(text);
        self.tell_soon = true;
    }

    pub(super) async fn obey(&mut self, command: Command) {
        match command {
            Command::Dispatch { dispatch, order } => {
                sally_common::fail::point("agent.dispatch.received");
                self.dispatch(*dispatch, Some(order)).await;
            }
            // The controller meant it and the order is not what it should be: it never will be.
            Command::BadOrder(dispatch, reason) => {
                self.count(reason, &format!("the order of run {}", dispatch.run));
                let news = News::Refused { reason, message: reason.to_string() };
                self.news(&dispatch.run, dispatch.attempt, news).await;
            }
            Command::OrderMissing(dispatch) => self.dispatch(*dispatch, None).await,
            Command::Cancel(cancel) => self.cancel(*cancel).await,
            Command::Stored { run, attempt, stream, bytes } => {
                self.pass(&run, attempt, Word::Stored { stream, bytes });
            }
            Command::Receipt { run, attempt, digest } => {
                self.pass(&run, attempt, Word::Receipt { digest });
            }
            Command::Answer(answer) => self.answered(*answer).await,
            Command::Probe(nonce) => self.probed(nonce).await,
            Command::Chunk { digest, piece } => self.piece(digest, piece),
        }
    }

    async fn cancel(&mut self, cancel: Cancel) {
        self.backlog.forget(&cancel.run);
        self.doorstep.forget(&cancel.run);
        let known = self.memory.get(&cancel.run);
        match known {
            Some(known)
                if known.attempt <= cancel.attempt && self.is_under_way(&cancel.run, known.attempt) =>
            {
                self.pass(&cancel.run, known.attempt, Word::Cancel { hard: cancel.hard });
            }
            _ if known.is_some_and(|k| k.attempt >= cancel.attempt) => {}
            // Never seen, or left behind: it will not start, and the controller is told so.
            _ => {
                let reason = Refusal::Cancelled;
                self.close(&cancel.run, cancel.attempt, now_ms() + CANCEL_KEPT_MS, reason).await;
            }
        }
    }

    async fn answered(&mut self, answer: Answer) {
        self.shared.heard(answer.now_ms);
        let Some(at) = self.questions.iter().position(|asked| asked.nonce == answer.nonce) else { return };
        let Some(asked) = self.questions.remove(at) else { return };
        let is_latest = self.asked.is_some_and(|latest| latest.nonce == asked.nonce);
        if is_latest {
            self.asked = None;
        }
        if !answer.welcome {
            return self.unwelcome(answer).await;
        }
        if is_latest {
            self.more = self.turn.answer(answer.waiting, asked.credit);
            let left = answer.given.saturating_sub(asked.came);
            let until = Instant::now() + ASK_AGAIN;
            self.coming = (left > 0).then_some(Coming { nonce: asked.nonce, left, until });
        }
        if !self.open {
            self.open = true;
            self.shared.journal().welcomed();
            self.more = true;
            // The first heartbeat may have been said before anyone listened.
            self.tell_soon = true;
            self.let_in().await;
        } else if asked.credit > 0 && answer.waiting > 0 && !self.took && self.coming.is_none() {
            // What waits was not given, or was lost on the way.
            self.ask_after = self.ask_after.max(Instant::now() + ASK_PAUSE);
        }
    }

    /// Nothing may start. The controller says why, and whether another incarnation is wanted.
    async fn unwelcome(&mut self, answer: Answer) {
        self.open = false;
        self.ask_after = Instant::now() + ASK_AGAIN;
        // A welcome that was said before this is none any more.
        self.questions.clear();
        self.asked = None;
        self.coming = None;
        let message = answer.message.unwrap_or_else(|| "no reason was given".to_owned());
        tracing::error!("the controller does not let this agent start work: {message}");
        self.last_error = Some(message);
        self.tell_soon = true;
        let visitors = self.doorstep.take_all();
        self.turn_away(visitors).await;
        if answer.renew && self.renewed.is_none_or(|at| at.elapsed() > RENEW_PAUSE) {
            self.renew().await;
        }
    }

    /// Takes a new incarnation in the place of one that somebody else has, or that is an old copy. What runs goes
    /// on and is reported; what has not started was bound to the old incarnation and does not start.
    async fn renew(&mut self) {
        self.renewed = Some(Instant::now());
        self.yield_accepted("the agent takes a new incarnation");
        let old = self.shared.me().incarnation;
        match self.shared.renew().await {
            Ok(()) => {
                let new = self.shared.me().incarnation;
                tracing::error!(%old, %new, "the journal was an old copy or a clone: this agent took a new incarnation");
                self.turn = Turn::new();
                self.backlog.clear();
                self.questions.clear();
                self.asked = None;
                self.coming = None;
                self.ask_after = Instant::now();
            }
            Err(error) => {
                tracing::error!(%error, "cannot take a new incarnation");
                self.shared.count_loss("journal-write");
            }
        }
    }

    /// Has all runs given back that have not started.
    pub(super) fn yield_accepted(&self, why: &'static str) {
        let accepted = self.memory.held().filter(|(_, known)| known.phase == Phase::Accepted);
        for (run, known) in accepted {
            self.pass(run, known.attempt, Word::Yield(why));
        }
    }

    /// Answers a controller that looks who is there.
    async fn probed(&mut self, nonce: Nonce) {
        if self.probes.1.elapsed() > Duration::from_secs(1) {
            self.probes = (0, Instant::now());
        }
        if self.probes.0 < PROBES_PER_SECOND {
            self.probes.0 += 1;
            self.heartbeat(Some(nonce), None).await;
        }
    }

    fn piece(&mut self, digest: Digest, piece: blob::Piece) {
        let Some(waiting) = self.blobs.get_mut(&digest) else { return };
        waiting.retain(|w| !w.is_closed());
        if let [first, rest @ ..] = waiting.as_slice() {
            for other in rest {
                let copy = blob::Piece { bytes: piece.bytes.clone(), ..piece };
                let _ = other.try_send(copy);
            }
            // A full queue means that the run asked twice; it asks again for what it misses.
            let _ = first.try_send(piece);
        } else {
            self.blobs.remove(&digest);
        }
    }

    pub(super) fn is_under_way(&self, run: &RunId, attempt: u32) -> bool {
        self.runs.contains_key(&RunAttempt { run: run.clone(), attempt })
    }

    /// Passes a word to the task of an attempt, if there is one. A full queue drops it: whatever it was is said
    /// again.
    pub(super) fn pass(&self, run: &RunId, attempt: u32, word: Word) {
        if let Some(words) = self.runs.get(&RunAttempt { run: run.clone(), attempt })
            && words.try_send(word).is_err()
        {
            tracing::debug!(%run, "dropped a word to a busy run");
        }
    }
}

//! What the controller says, and what is done about it.
#![forbid(unsafe_code)]

use sally_common::clock::now_ms;
use sally_common::id::{Digest, RunId};
use sally_common::wire::Refusal;
use sally_common::wire::command::{Answer, Cancel};
use sally_common::wire::report::News;

use super::intake::{self, Command};
use super::run::Word;
use super::{Agent, blob};

/// How long a cancellation of a run that was never started is remembered.
const CANCEL_KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

impl Agent {
    pub(super) async fn receive(&mut self, message: async_nats::Message) {
        match intake::read(&self.shared, &message) {
            Ok(command) => self.obey(command).await,
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
                self.dispatch(*dispatch, order).await;
            }
            // The controller meant it and the order is not what it should be: it never will be.
            Command::BadOrder(dispatch, reason) => {
                self.count(reason, &format!("the order of run {}", dispatch.run));
                let news = News::Refused { reason, message: reason.to_string() };
                self.news(&dispatch.run, dispatch.attempt, news).await;
            }
            Command::OrderMissing(dispatch) => self.fetch_order(*dispatch).await,
            Command::Cancel(cancel) => self.cancel(*cancel).await,
            Command::Stored { run, attempt, stream, bytes } => {
                if self.is_under_way(&run, attempt) {
                    self.pass(&run, Word::Stored { stream, bytes });
                }
            }
            Command::Receipt { run, attempt, digest } => {
                if self.is_under_way(&run, attempt) {
                    self.pass(&run, Word::Receipt { digest });
                }
            }
            Command::Answer(answer) => self.answered(*answer),
            Command::Chunk { digest, piece } => self.piece(digest, piece),
        }
    }

    async fn cancel(&mut self, cancel: Cancel) {
        self.backlog.forget(&cancel.run);
        let word = Word::Cancel { hard: cancel.hard };
        let known = self.memory.get(&cancel.run);
        match self.runs.get(&cancel.run) {
            Some((attempt, _)) if *attempt <= cancel.attempt => self.pass(&cancel.run, word),
            _ if known.is_some_and(|k| k.attempt >= cancel.attempt) => {}
            // Never seen, or left behind: it will not start, and the controller is told so.
            _ => {
                let reason = Refusal::Cancelled;
                self.close(&cancel.run, cancel.attempt, now_ms() + CANCEL_KEPT_MS, reason).await;
            }
        }
    }

    fn answered(&mut self, answer: Answer) {
        self.shared.heard(answer.now_ms);
        if self.asked.is_none_or(|(nonce, _)| nonce != answer.nonce) {
            return;
        }
        self.asked = None;
        self.more = answer.waiting > 0;
        if answer.welcome && !self.open {
            self.open = true;
            self.more = true;
            // The first heartbeat may have been said before anyone listened.
            self.tell_soon = true;
        }
        if !answer.welcome {
            self.last_error = answer.message;
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
        self.runs.get(run).is_some_and(|(a, _)| *a == attempt)
    }

    /// Passes a word to a run's task. A full queue drops it: whatever it was is said again.
    pub(super) fn pass(&self, run: &RunId, word: Word) {
        if let Some((_, words)) = self.runs.get(run)
            && words.try_send(word).is_err()
        {
            tracing::debug!(%run, "dropped a word to a busy run");
        }
    }
}

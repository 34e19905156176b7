//! What the agent says by itself: questions for work, and heartbeats.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::Nonce;
use sally_common::subject::Channel;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::report::{AgentCondition, Ask, Heartbeat, Question, Slots, SpoolStatus};
use sally_common::wire::{Kind, VERSION};
use tokio::time::Instant;

use super::{Agent, Asked, heartbeat};
use crate::delivery::memory::Phase;
use crate::delivery::turn::QUESTIONS;

/// How long a question waits for its answer before it is asked again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The same before the first answer: nothing can start without it.
pub(super) const ASK_AGAIN_AT_BOOT: Duration = Duration::from_millis(400);
/// How long an agent waits that asked and was given nothing, though something waits.
pub(super) const ASK_PAUSE: Duration = Duration::from_millis(500);
/// Attempts named in one question. More are settled as their receipts come.
const HELD_NAMED: usize = 500;

impl Agent {
    /// How many dispatches may be sent: for free slots and to be kept for the next ones; none while none would be
    /// taken.
    fn credit(&self) -> u32 {
        if !self.open || self.draining {
            return 0;
        }
        let kept = if self.no_room().is_none() { self.backlog.room() } else { 0 };
        self.room() + u32::try_from(kept).unwrap_or(0)
    }

    /// Asks for work when there is room and there may be some, one question at a time: for a free slot at once, for what is
    /// kept for the next ones when half of that is used up. At boot and after the connection was away it asks in any
    /// case: the controller learns what is held here.
    pub(super) async fn ask_if_useful(&mut self) {
        let credit = self.credit();
        if self.coming.is_some_and(|coming| Instant::now() >= coming.until) {
            self.coming = None;
            self.more = true;
        }
        let wanting = self.room() > 0 || self.backlog.is_half_empty();
        let useful = !self.open || self.reconcile || (self.more && credit > 0 && wanting);
        if self.asked.is_some() || self.coming.is_some() || !useful || Instant::now() < self.ask_after {
            return;
        }
        self.more &= credit == 0;
        self.reconcile = false;
        self.took = false;
        let nonce = Nonce::generate();
        self.turn.ask(nonce);
        let asked = Asked { nonce, at: Instant::now(), credit, came: 0 };
        self.asked = Some(asked);
        if self.questions.len() == QUESTIONS {
            self.questions.pop_front();
        }
        self.questions.push_back(asked);
        let held = self.memory.held();
        let held = held.map(|(run, k)| RunAttempt { run: run.clone(), attempt: k.attempt });
        let mut held: Vec<_> = self.backlog.attempts().chain(held).take(HELD_NAMED + 1).collect();
        let held_is_all = held.len() <= HELD_NAMED;
        held.truncate(HELD_NAMED);
        sally_common::fail::point("agent.ask.before");
        let instance = Some(self.shared.instance);
        let question = Question::Work { credit, boot: !self.open, held, instance, held_is_all };
        let ask = Ask { v: VERSION, from: self.shared.from(), nonce, question };
        self.shared.report(Channel::Ask, Kind::Ask, &ask).await;
    }

    /// Notes that a dispatch came for a question.
    pub(super) fn came(&mut self, nonce: Nonce) {
        if let Some(asked) = self.questions.iter_mut().find(|asked| asked.nonce == nonce) {
            asked.came += 1;
        } else if let Some(coming) = self.coming.as_mut().filter(|coming| coming.nonce == nonce) {
            coming.left = coming.left.saturating_sub(1);
            if coming.left == 0 {
                self.coming = None;
            }
        }
    }

    /// Says how the agent is. `probe` is the nonce of a controller that asked for it.
    pub(super) async fn heartbeat(&mut self, probe: Option<Nonce>, goodbye: Option<&str>) {
        let shared = &self.shared;
        let total = u32::from(self.slots);
        let used = total.saturating_sub(u32::try_from(self.free.len()).unwrap_or(0));
        let running = self.memory.held().filter(|(_, k)| k.phase == Phase::Started).take(16);
        let heartbeat = Heartbeat {
            v: VERSION,
            from: shared.from(),
            boot_id: heartbeat::boot_id(),
            sent_ms: now_ms(),
            interval_s: shared.policy().heartbeat_s,
            state: if self.draining { AgentCondition::Draining } else { AgentCondition::Online },
            version: sally_common::fail::version(env!("CARGO_PKG_VERSION")),
            slots: Slots { used, total },
            running: running.map(|(r, k)| RunAttempt { run: r.clone(), attempt: k.attempt }).collect(),
            spool: self.spool_status(),
            labels: shared.policy().labels.clone(),
            host: heartbeat::host_facts(shared),
            refused: self.refused.clone(),
            lost: shared.losses(),
            sandbox: heartbeat::ability(shared),
            last_error: self.last_error.clone(),
            goodbye: goodbye.map(str::to_owned),
            instance: Some(shared.instance),
            probe,
            curve_key: Some(shared.curve.public()),
            deferring: self.deferring.clone(),
            journal_bytes: shared.journal_bytes(),
        };
        shared.report(Channel::Heartbeat, Kind::Heartbeat, &heartbeat).await;
    }

    /// Results without a receipt.
    pub(super) fn spool_status(&self) -> SpoolStatus {
        SpoolStatus {
            results: self.owed.len() as u64,
            bytes: self.owed.values().map(|(bytes, _)| bytes).sum(),
            oldest_ms: self.owed.values().map(|(_, since_ms)| *since_ms).min(),
        }
    }
}

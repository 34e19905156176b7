//! What the agent says by itself: questions for work, heartbeats, and what is due now and then.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::Nonce;
use sally_common::subject::Channel;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::report::{AgentCondition, Ask, Heartbeat, Question, Slots, SpoolStatus};
use sally_common::wire::{Kind, VERSION};
use tokio::time::Instant;

use super::{Agent, heartbeat};
use crate::delivery::memory::Phase;

/// How long a question waits for its answer before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The same before the first answer: nothing can start without it.
const ASK_AGAIN_AT_BOOT: Duration = Duration::from_millis(400);
/// Attempts named in one question. More are settled as their receipts come.
const HELD_NAMED: usize = 500;

impl Agent {
    pub(super) async fn tick(&mut self, slots: u16) {
        let patience = if self.open { ASK_AGAIN } else { ASK_AGAIN_AT_BOOT };
        if self.asked.is_some_and(|(_, at)| at.elapsed() > patience) {
            self.asked = None;
            self.more = true;
        }
        if std::mem::take(&mut self.tell_soon) {
            self.heartbeat(slots, None).await;
        }
        let now = now_ms();
        let old = self.memory.prunable(now);
        if !old.is_empty() {
            for run in &old {
                self.memory.forget(run);
            }
            // Losing this write only keeps them longer.
            drop(self.shared.journal().prune(old));
        }
    }

    /// Asks for work when there is room and there may be some, one question at a time.
    pub(super) async fn ask_if_useful(&mut self) {
        let useful = !self.open || (self.more && !self.free.is_empty());
        if self.asked.is_some() || !useful {
            return;
        }
        self.more = false;
        let nonce = Nonce::generate();
        self.asked = Some((nonce, Instant::now()));
        let held = self.memory.held();
        let held = held.map(|(run, k)| RunAttempt { run: run.clone(), attempt: k.attempt });
        let mut held: Vec<_> = self.backlog.attempts().chain(held).take(HELD_NAMED + 1).collect();
        let held_is_all = held.len() <= HELD_NAMED;
        held.truncate(HELD_NAMED);
        let credit = u32::try_from(self.free.len() + self.backlog.room()).unwrap_or(u32::MAX);
        sally_common::fail::point("agent.ask.before");
        let question = Question::Work { credit, boot: !self.open, held, instance: None, held_is_all };
        let ask = Ask { v: VERSION, from: self.shared.from(), nonce, question };
        self.shared.report(Channel::Ask, Kind::Ask, &ask).await;
    }

    pub(super) async fn heartbeat(&mut self, slots: u16, goodbye: Option<&str>) {
        let shared = &self.shared;
        let used = u32::from(slots).saturating_sub(u32::try_from(self.free.len()).unwrap_or(0));
        let of_phase = |phase: Phase| self.memory.held().filter(move |(_, k)| k.phase == phase);
        let running = of_phase(Phase::Started).take(16);
        let heartbeat = Heartbeat {
            v: VERSION,
            from: shared.from(),
            boot_id: heartbeat::boot_id(),
            sent_ms: now_ms(),
            interval_s: shared.config.heartbeat_s,
            state: AgentCondition::Online,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: Slots { used, total: u32::from(slots) },
            running: running.map(|(r, k)| RunAttempt { run: r.clone(), attempt: k.attempt }).collect(),
            spool: SpoolStatus {
                results: of_phase(Phase::Finished).count() as u64,
                bytes: 0,
                oldest_ms: None,
            },
            labels: shared.config.labels.clone(),
            host: heartbeat::host_facts(shared),
            refused: self.refused.clone(),
            lost: shared.losses(),
            sandbox: heartbeat::ability(shared),
            last_error: self.last_error.clone(),
            goodbye: goodbye.map(str::to_owned),
            instance: None,
            probe: None,
            curve_key: None,
            deferring: None,
            journal_bytes: None,
        };
        shared.report(Channel::Heartbeat, Kind::Heartbeat, &heartbeat).await;
    }
}

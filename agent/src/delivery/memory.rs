//! What the journal holds, in memory.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use sally_common::id::{Digest, RunId};
use sally_common::wire::Refusal;
use sally_common::wire::record::RunState;
use sally_common::wire::report::ResultMessage;
use serde::{Deserialize, Serialize};

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Taken; not started, and not on disk either: after a crash the controller sends it again.
    Accepted,
    /// Marked on disk: the program may have started.
    Started,
    /// The result is in the spool.
    Finished,
    /// The controller has the result.
    Receipted,
    /// Refused, or cancelled before it started.
    Closed,
}

/// What is known of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The highest attempt seen.
    pub attempt: u32,
    /// How far that attempt is.
    pub phase: Phase,
    /// Why it is closed, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<Refusal>,
    /// The digest of the order, for a result that is made after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_digest: Option<Digest>,
    /// Until when a replay of the order could still be in time, Unix milliseconds. The entry is kept at least
    /// as long, so that the time check and the journal together cover all replays.
    pub expires_ms: i64,
    /// How it ended, once its result is gone because the controller has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

impl Known {
    /// An attempt of which nothing more is known.
    pub fn new(attempt: u32, phase: Phase, expires_ms: i64) -> Self {
        Known { attempt, phase, closed: None, order_digest: None, expires_ms, ended: None }
    }
}

/// What is remembered of a result that the controller has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How it ended.
    pub state: RunState,
    /// The exit code, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// When, by the agent's wall clock, Unix milliseconds.
    pub finished_ms: i64,
    /// The digest of the result's body.
    pub digest: Digest,
}

impl Ended {
    /// Of a result and its exact bytes.
    pub fn of(message: &ResultMessage, body: &[u8]) -> Self {
        Ended {
            state: message.state,
            exit_code: message.exit_code,
            finished_ms: message.finished_ms,
            digest: Digest::of(body),
        }
    }
}

/// Everything known, by run.
#[derive(Debug, Default)]
pub struct Memory {
    runs: HashMap<RunId, Known>,
}

impl Memory {
    /// What is known of a run.
    pub fn get(&self, run: &RunId) -> Option<Known> {
        self.runs.get(run).copied()
    }

    /// Notes how far an attempt is. A lower attempt than the known one changes nothing.
    pub fn note(&mut self, run: RunId, known: Known) {
        let entry = self.runs.entry(run).or_insert(known);
        if known.attempt >= entry.attempt {
            *entry = Known { expires_ms: known.expires_ms.max(entry.expires_ms), ..known };
        }
    }

    /// Closes an attempt, if it is the known one.
    pub fn close(&mut self, run: &RunId, attempt: u32, why: Refusal) {
        self.advance(run, attempt, Phase::Closed);
        if let Some(known) = self.runs.get_mut(run).filter(|k| k.attempt == attempt) {
            known.closed = Some(why);
        }
    }

    /// Changes the phase of an attempt, if it is the known one.
    pub fn advance(&mut self, run: &RunId, attempt: u32, phase: Phase) {
        if let Some(known) = self.runs.get_mut(run).filter(|k| k.attempt == attempt) {
            known.phase = phase;
        }
    }

    /// The controller has the result of an attempt, if it is the known one.
    pub fn receipted(&mut self, run: &RunId, attempt: u32, ended: Option<Ended>) {
        self.advance(run, attempt, Phase::Receipted);
        if let Some(known) = self.runs.get_mut(run).filter(|k| k.attempt == attempt) {
            known.ended = ended;
        }
    }

    /// An attempt was given back: what was known before it counts again, so that older attempts stay refused.
    pub fn give_back(&mut self, run: &RunId, attempt: u32, before: Option<Known>) {
        if self.runs.get(run).is_none_or(|known| known.attempt != attempt) {
            return;
        }
        match before {
            Some(known) => self.runs.insert(run.clone(), known),
            None => self.runs.remove(run),
        };
    }

    /// Forgets a run.
    pub fn forget(&mut self, run: &RunId) {
        self.runs.remove(run);
    }

    /// Attempts that the controller should know this agent holds: all without a receipt.
    pub fn held(&self) -> impl Iterator<Item = (&RunId, &Known)> {
        self.runs
            .iter()
            .filter(|(_, k)| matches!(k.phase, Phase::Accepted | Phase::Started | Phase::Finished))
    }

    /// Settled runs whose orders have expired by more than a day: nothing can replay them.
    pub fn prunable(&self, now_ms: i64) -> Vec<RunId> {
        let old = |k: &Known| {
            matches!(k.phase, Phase::Receipted | Phase::Closed)
                && now_ms > k.expires_ms.saturating_add(KEEP_AFTER_EXPIRY_MS)
        };
        self.runs.iter().filter(|(_, k)| old(k)).map(|(r, _)| r.clone()).collect()
    }

    /// How many runs are known.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// How long an entry outlives its order's expiry: clocks differ by less than a day.
const KEEP_AFTER_EXPIRY_MS: i64 = 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::id::JobId;

    fn known(attempt: u32, phase: Phase) -> Known {
        Known::new(attempt, phase, 1_000)
    }

    #[test]
    fn what_is_given_back_leaves_what_was_known_before() {
        let run = JobId::generate(0).run(0);
        let mut memory = Memory::default();
        memory.note(run.clone(), known(2, Phase::Accepted));
        memory.give_back(&run, 1, None);
        assert_eq!(memory.get(&run), Some(known(2, Phase::Accepted)), "another attempt's word");
        memory.give_back(&run, 2, Some(known(1, Phase::Receipted)));
        assert_eq!(memory.get(&run), Some(known(1, Phase::Receipted)));
        memory.note(run.clone(), known(2, Phase::Accepted));
        memory.give_back(&run, 2, None);
        assert_eq!(memory.get(&run), None);
    }

    #[test]
    fn an_entry_of_an_older_program_reads() {
        let text = r#"{"attempt":1,"phase":"receipted","expires_ms":5}"#;
        let known: Known = serde_json::from_str(text).expect("reads");
        assert_eq!(known, Known::new(1, Phase::Receipted, 5));
    }

    #[test]
    fn a_lower_attempt_changes_nothing() {
        let run = JobId::generate(0).run(0);
        let mut memory = Memory::default();
        memory.note(run.clone(), known(2, Phase::Started));
        memory.note(run.clone(), known(1, Phase::Finished));
        assert_eq!(memory.get(&run), Some(known(2, Phase::Started)));
        memory.advance(&run, 1, Phase::Receipted);
        assert_eq!(memory.get(&run), Some(known(2, Phase::Started)));
        memory.note(run.clone(), known(3, Phase::Accepted));
        assert_eq!(memory.get(&run), Some(known(3, Phase::Accepted)));
    }

    #[test]
    fn only_settled_runs_are_forgotten_and_only_a_day_late() {
        let job = JobId::generate(0);
        let mut memory = Memory::default();
        memory.note(job.run(0), known(1, Phase::Receipted));
        memory.note(job.run(1), known(1, Phase::Finished));
        memory.note(job.run(2), known(1, Phase::Closed));
        assert!(memory.prunable(1_000 + KEEP_AFTER_EXPIRY_MS).is_empty());
        assert_eq!(memory.prunable(1_001 + KEEP_AFTER_EXPIRY_MS).len(), 2);
        assert_eq!(memory.held().count(), 1);
    }
}

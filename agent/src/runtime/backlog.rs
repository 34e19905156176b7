//! Dispatches that came while every slot was busy: a slot that becomes free takes the oldest, without a question to the
//! controller and without the dispatch being sent and checked a second time.
//!
//! Nothing was accepted and nobody was told, so losing them does no harm: the controller sends again what it hears
//! nothing of. Each is judged anew when its turn comes. There are few, so that what the controller would rather have run
//! first does not wait for long.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use sally_common::id::RunId;
use sally_common::wire::command::{Dispatch, RunAttempt};

use super::intake::CheckedOrder;

/// Dispatches kept for each slot, and at most: each has up to 16 KiB.
const PER_SLOT: usize = 2;
const MOST: usize = 32;

/// See the module.
pub struct Backlog {
    waiting: VecDeque<(Dispatch, CheckedOrder)>,
    room: usize,
}

impl Backlog {
    /// An empty one for an agent with so many slots.
    pub fn new(slots: u16) -> Self {
        Self { waiting: VecDeque::new(), room: (usize::from(slots) * PER_SLOT).min(MOST) }
    }

    /// Keeps a dispatch, in place of what was kept of its run. Returns whether there was room.
    pub fn keep(&mut self, dispatch: Dispatch, order: CheckedOrder) -> bool {
        if let Some(kept) = self.waiting.iter_mut().find(|(kept, _)| kept.run == dispatch.run) {
            if dispatch.attempt >= kept.0.attempt {
                *kept = (dispatch, order);
            }
            return true;
        }
        if self.room() == 0 {
            return false;
        }
        self.waiting.push_back((dispatch, order));
        true
    }

    /// The oldest.
    pub fn take(&mut self) -> Option<(Dispatch, CheckedOrder)> {
        self.waiting.pop_front()
    }

    /// Whether something of this run is kept.
    pub fn has(&self, run: &RunId) -> bool {
        self.waiting.iter().any(|(kept, _)| kept.run == *run)
    }

    /// Lets go of a run that will not be taken.
    pub fn forget(&mut self, run: &RunId) {
        self.waiting.retain(|(kept, _)| kept.run != *run);
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// How many more could be kept.
    pub fn room(&self) -> usize {
        self.room.saturating_sub(self.waiting.len())
    }

    /// Whether it is time to ask for more: a question for each slot that becomes free would cost more than the
    /// dispatches it brings.
    pub fn is_half_empty(&self) -> bool {
        self.room() * 2 >= self.room
    }

    /// What is kept.
    pub fn attempts(&self) -> impl Iterator<Item = RunAttempt> {
        self.waiting.iter().map(|(d, _)| RunAttempt { run: d.run.clone(), attempt: d.attempt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::id::JobId;
    use sally_common::wire::order::Order;
    use std::sync::Arc;

    fn dispatch(job: &JobId, n: u32, attempt: u32) -> (Dispatch, CheckedOrder) {
        let key = sally_common::key::SigningKey::generate().public().to_string();
        let dispatch = serde_json::json!({
            "v": 1, "run": job.run(n), "attempt": attempt, "issued_ms": 1, "expires_ms": 2,
            "to": {"zone": "dmz", "agent": "web-1", "agent_key": key, "incarnation": "0".repeat(32)},
            "order_digest": "0".repeat(64), "order_bytes": 1, "order": null, "order_signatures": [],
        });
        let order = serde_json::json!({
            "v": 1, "request_id": "r", "by": "ann", "created_ms": 1, "expires_ms": 2, "targets": {"all": true},
            "task": {"program": {"kind": "command"}, "args": ["true"], "profile": "strict",
                     "timeout_ms": 1000, "grace_ms": 1000},
        });
        let order: Order = serde_json::from_str(&order.to_string()).expect("an order");
        let dispatch = serde_json::from_str(&dispatch.to_string()).expect("a dispatch");
        (dispatch, CheckedOrder { order: Arc::new(order) })
    }

    #[test]
    fn the_oldest_comes_first_and_there_is_a_bound() {
        let job = JobId::generate(1);
        let mut backlog = Backlog::new(1);
        let mut keep = |n, attempt| {
            let (dispatch, order) = dispatch(&job, n, attempt);
            backlog.keep(dispatch, order)
        };
        assert!(keep(0, 1) && keep(1, 1));
        assert!(!keep(2, 1), "no room");
        assert!(keep(0, 2) && keep(0, 1), "the same run needs no more room");
        assert_eq!(backlog.room(), 0);
        assert!(!backlog.is_half_empty());
        assert_eq!(backlog.attempts().count(), 2);
        let taken = backlog.take().map(|(d, _)| (d.run, d.attempt));
        assert_eq!(taken, Some((job.run(0), 2)), "the newer attempt in the older's place");
        assert!(backlog.is_half_empty());
        backlog.forget(&job.run(1));
        assert!(backlog.take().is_none());
        assert_eq!(Backlog::new(1024).room(), MOST);
    }
}

//! What to do with a dispatch: a decision over data, with the time passed in.
//!
//! Signatures have been checked before; here it is about whom the dispatch is for, whether it is
//! in time, and whether it was seen before.
#![forbid(unsafe_code)]

use sally_common::wire::Refusal;
use sally_common::wire::command::{Dispatch, To};

use super::memory::{Known, Phase};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take it.
    Take,
    /// Leave it behind without a word: there is no free slot, and it is asked for later.
    Leave,
    /// It is under way: say so again.
    Repeat(Phase),
    /// Its result is in the spool: send it again.
    Resend,
    /// Refuse it, and say so to the controller.
    Refuse(Refusal),
    /// Drop it and count it: it is not ours to answer.
    Drop(Refusal),
}

/// What the agent is like at this moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The later of the local clock and the last signed controller time, Unix milliseconds.
    pub at_ms: i64,
    /// Free slots.
    pub free: u32,
    /// Whether work may be taken: the controller has answered since boot, and nobody asked to drain.
    pub open: bool,
}

/// Decides.
pub fn decide(dispatch: &Dispatch, me: &To, known: Option<Known>, now: Now) -> Decision {
    if dispatch.to.zone != me.zone || dispatch.to.agent != me.agent || dispatch.to.agent_key != me.agent_key {
        return Decision::Drop(Refusal::Misdirected);
    }
    if dispatch.to.incarnation != me.incarnation {
        return Decision::Refuse(Refusal::WrongIncarnation);
    }
    if let Some(known) = known {
        if dispatch.attempt < known.attempt {
            return Decision::Drop(Refusal::StaleAttempt);
        }
        if dispatch.attempt == known.attempt {
            return match known.phase {
                Phase::Accepted | Phase::Started => Decision::Repeat(known.phase),
                Phase::Finished => Decision::Resend,
                Phase::Receipted => Decision::Drop(Refusal::Replayed),
                Phase::Closed => Decision::Refuse(known.closed.unwrap_or(Refusal::Cancelled)),
            };
        }
        // A newer attempt while an older one is under way: the older one must end first.
        if matches!(known.phase, Phase::Accepted | Phase::Started) {
            return Decision::Leave;
        }
    }
    if now.at_ms >= dispatch.expires_ms {
        return Decision::Refuse(Refusal::Expired);
    }
    if !now.open || now.free == 0 { Decision::Leave } else { Decision::Take }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::id::{Digest, Incarnation, JobId};
    use sally_common::key::SigningKey;
    use sally_common::name::{Agent, Zone};
    use sally_common::wire::VERSION;

    fn me() -> To {
        To {
            zone: Zone::new("dmz").expect("name"),
            agent: Agent::new("web-1").expect("name"),
            agent_key: SigningKey::from_secret([1; 32]).public().clone(),
            incarnation: Incarnation::from_bytes([7; 16]),
        }
    }

    fn dispatch() -> Dispatch {
        Dispatch {
            v: VERSION,
            to: me(),
            run: JobId::generate(0).run(0),
            attempt: 2,
            issued_ms: 0,
            expires_ms: 1_000,
            order_digest: Digest::of(b""),
            order_bytes: 0,
            order: None,
            order_signatures: vec![],
            answers: None,
            lane: sally_common::wire::command::Lane::Queue,
        }
    }

    fn check(change: impl FnOnce(&mut Dispatch, &mut Option<Known>, &mut Now), expected: Decision) {
        let (mut dispatch, mut known) = (dispatch(), None);
        let mut now = Now { at_ms: 500, free: 1, open: true };
        change(&mut dispatch, &mut known, &mut now);
        assert_eq!(decide(&dispatch, &me(), known, now), expected);
    }

    fn known(attempt: u32, phase: Phase) -> Option<Known> {
        Some(Known { attempt, phase, closed: None, order_digest: None, expires_ms: 1_000 })
    }

    #[test]
    fn a_good_dispatch_is_taken_when_there_is_room() {
        check(|_, _, _| (), Decision::Take);
        check(|_, _, n| n.free = 0, Decision::Leave);
        check(|_, _, n| n.open = false, Decision::Leave);
        check(|_, _, n| n.at_ms = 999, Decision::Take);
        check(|_, _, n| n.at_ms = 1_000, Decision::Refuse(Refusal::Expired));
    }

    #[test]
    fn a_dispatch_for_another_is_dropped() {
        check(|d, _, _| d.to.zone = Zone::new("pay").expect("name"), Decision::Drop(Refusal::Misdirected));
        check(
            |d, _, _| d.to.agent = Agent::new("web-2").expect("name"),
            Decision::Drop(Refusal::Misdirected),
        );
        let stranger = SigningKey::from_secret([2; 32]).public().clone();
        check(|d, _, _| d.to.agent_key = stranger, Decision::Drop(Refusal::Misdirected));
        check(
            |d, _, _| d.to.incarnation = Incarnation::from_bytes([8; 16]),
            Decision::Refuse(Refusal::WrongIncarnation),
        );
    }

    #[test]
    fn what_was_seen_is_answered_and_never_run_again() {
        check(|_, k, _| *k = known(2, Phase::Accepted), Decision::Repeat(Phase::Accepted));
        check(|_, k, _| *k = known(2, Phase::Started), Decision::Repeat(Phase::Started));
        check(|_, k, _| *k = known(2, Phase::Finished), Decision::Resend);
        check(|_, k, _| *k = known(2, Phase::Receipted), Decision::Drop(Refusal::Replayed));
        check(|_, k, _| *k = known(2, Phase::Closed), Decision::Refuse(Refusal::Cancelled));
        check(|_, k, _| *k = known(3, Phase::Finished), Decision::Drop(Refusal::StaleAttempt));
        check(|_, k, n| (*k, n.at_ms) = (known(2, Phase::Finished), 2_000), Decision::Resend);
    }

    #[test]
    fn a_newer_attempt_waits_for_the_older_one_to_end() {
        check(|_, k, _| *k = known(1, Phase::Started), Decision::Leave);
        check(|_, k, _| *k = known(1, Phase::Finished), Decision::Take);
        check(|_, k, _| *k = known(1, Phase::Receipted), Decision::Take);
    }
}

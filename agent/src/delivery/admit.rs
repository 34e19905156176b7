//! What to do with a dispatch: a decision over data, with the time passed in.
//!
//! Signatures have been checked before; here it is about whom the dispatch is for, whether it is
//! in time, and whether it was seen before.
#![forbid(unsafe_code)]

use sally_common::wire::Refusal;
use sally_common::wire::command::{Dispatch, Lane, To};

use super::memory::{Ended, Known, Phase};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take it.
    Take,
    /// Leave it behind without a word; it is asked for later.
    Leave,
    /// Leave it behind, and take an older attempt back that has not started: the newer one prevents it.
    Supersede,
    /// Say that it is not taken now, and why.
    Defer(Refusal),
    /// Keep it for the moments until a controller welcomes this agent, and decide then.
    Hold,
    /// An attempt is under way: say so again.
    Repeat(u32, Phase),
    /// Its result is in the spool: send it again.
    Resend,
    /// It was receipted long ago: say what is remembered of that attempt.
    Ended(u32, Ended),
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
    /// Whether work may be taken: the controller has answered since boot.
    pub open: bool,
    /// Whether this dispatch may go before what waits, see [`super::turn`].
    pub in_turn: bool,
    /// Somebody asked to take nothing new.
    pub draining: bool,
    /// There is room on the disk for another run.
    pub room: bool,
}

/// Decides.
pub fn decide(dispatch: &Dispatch, me: &To, known: Option<Known>, now: Now) -> Decision {
    if dispatch.to.zone != me.zone || dispatch.to.agent != me.agent || dispatch.to.agent_key != me.agent_key {
        return Decision::Drop(Refusal::Misdirected);
    }
    if dispatch.to.incarnation != me.incarnation {
        return Decision::Refuse(Refusal::WrongIncarnation);
    }
    match known {
        Some(known) if dispatch.attempt <= known.attempt => return seen(dispatch.attempt, known),
        // The older one must end first.
        Some(Known { phase: Phase::Started, .. }) => return not_now(dispatch, Refusal::GivenBack),
        Some(Known { phase: Phase::Accepted, .. }) => return Decision::Supersede,
        _ => {}
    }
    if now.at_ms >= dispatch.expires_ms {
        return Decision::Refuse(Refusal::Expired);
    }
    match dispatch.lane {
        Lane::Other => Decision::Refuse(Refusal::UnsupportedVersion),
        Lane::Direct if !now.open => Decision::Hold,
        Lane::Queue if !now.open => Decision::Leave,
        _ if now.draining => not_now(dispatch, Refusal::Draining),
        _ if now.free == 0 => not_now(dispatch, Refusal::NoRoom),
        _ if !now.room => Decision::Defer(Refusal::NoRoom),
        // The direct lane has no queue that it could overtake.
        Lane::Direct => Decision::Take,
        Lane::Queue if now.in_turn => Decision::Take,
        Lane::Queue => Decision::Leave,
    }
}

/// The queue waits in the ledger, so its dispatches are left without a word. The direct lane wants to know at once.
fn not_now(dispatch: &Dispatch, why: Refusal) -> Decision {
    if dispatch.lane == Lane::Direct { Decision::Defer(why) } else { Decision::Leave }
}

/// The answer to an attempt that was seen before, or that is older than one that was.
fn seen(attempt: u32, known: Known) -> Decision {
    let stale = attempt < known.attempt;
    match (known.phase, known.ended) {
        (Phase::Accepted | Phase::Started, _) => Decision::Repeat(known.attempt, known.phase),
        (Phase::Finished, _) => Decision::Resend,
        (Phase::Receipted, Some(ended)) => Decision::Ended(known.attempt, ended),
        // From a journal that did not note it.
        (Phase::Receipted, None) if stale => Decision::Drop(Refusal::StaleAttempt),
        (Phase::Receipted, None) => Decision::Drop(Refusal::Replayed),
        (Phase::Closed, _) => Decision::Refuse(known.closed.unwrap_or(Refusal::Cancelled)),
    }
}

#[cfg(test)]
pub(crate) mod tests {
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

    pub(crate) fn dispatch() -> Dispatch {
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
            more: false,
        }
    }

    fn check(change: impl FnOnce(&mut Dispatch, &mut Option<Known>, &mut Now), expected: Decision) {
        let (mut dispatch, mut known) = (dispatch(), None);
        let mut now = Now { at_ms: 500, free: 1, open: true, in_turn: true, draining: false, room: true };
        change(&mut dispatch, &mut known, &mut now);
        assert_eq!(decide(&dispatch, &me(), known, now), expected);
    }

    fn known(attempt: u32, phase: Phase) -> Option<Known> {
        Some(Known::new(attempt, phase, 1_000))
    }

    fn ended() -> Ended {
        let state = sally_common::wire::record::RunState::Succeeded;
        Ended { state, exit_code: Some(0), finished_ms: 400, digest: Digest::of(b"result") }
    }

    fn receipted(attempt: u32) -> Option<Known> {
        known(attempt, Phase::Receipted).map(|k| Known { ended: Some(ended()), ..k })
    }

    #[test]
    fn a_good_dispatch_is_taken_when_there_is_room() {
        check(|_, _, _| (), Decision::Take);
        check(|_, _, n| n.free = 0, Decision::Leave);
        check(|_, _, n| n.open = false, Decision::Leave);
        check(|_, _, n| n.draining = true, Decision::Leave);
        check(|_, _, n| n.room = false, Decision::Defer(Refusal::NoRoom));
        check(|_, _, n| n.at_ms = 999, Decision::Take);
        check(|_, _, n| n.at_ms = 1_000, Decision::Refuse(Refusal::Expired));
    }

    #[test]
    fn what_waits_is_not_overtaken() {
        check(|_, _, n| n.in_turn = false, Decision::Leave);
        // There is nothing to overtake: nothing is taken, and the reason is told.
        check(|_, _, n| (n.in_turn, n.room) = (false, false), Decision::Defer(Refusal::NoRoom));
    }

    #[test]
    fn the_direct_lane_is_never_left_without_a_word() {
        let direct = |d: &mut Dispatch| d.lane = Lane::Direct;
        check(|d, _, _| direct(d), Decision::Take);
        check(|d, _, n| (direct(d), n.in_turn = false).0, Decision::Take);
        check(|d, _, n| (direct(d), n.free = 0).0, Decision::Defer(Refusal::NoRoom));
        check(|d, _, n| (direct(d), n.room = false).0, Decision::Defer(Refusal::NoRoom));
        check(|d, _, n| (direct(d), n.draining = true).0, Decision::Defer(Refusal::Draining));
        check(|d, _, n| (direct(d), n.open = false).0, Decision::Hold);
        check(|d, _, n| (direct(d), n.open = false, n.draining = true).0, Decision::Hold);
        check(|d, k, _| (direct(d), *k = known(1, Phase::Started)).0, Decision::Defer(Refusal::GivenBack));
        check(|d, _, n| (direct(d), n.at_ms = 1_000).0, Decision::Refuse(Refusal::Expired));
    }

    #[test]
    fn a_lane_of_a_newer_program_is_refused_by_name() {
        check(|d, _, _| d.lane = Lane::Other, Decision::Refuse(Refusal::UnsupportedVersion));
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
        check(|_, k, _| *k = known(2, Phase::Accepted), Decision::Repeat(2, Phase::Accepted));
        check(|_, k, _| *k = known(2, Phase::Started), Decision::Repeat(2, Phase::Started));
        check(|_, k, _| *k = known(2, Phase::Finished), Decision::Resend);
        check(|_, k, _| *k = receipted(2), Decision::Ended(2, ended()));
        check(|_, k, _| *k = known(2, Phase::Receipted), Decision::Drop(Refusal::Replayed));
        check(|_, k, _| *k = known(2, Phase::Closed), Decision::Refuse(Refusal::Cancelled));
        check(|_, k, n| (*k, n.at_ms) = (known(2, Phase::Finished), 2_000), Decision::Resend);
        check(|_, k, n| (*k, n.draining) = (receipted(2), true), Decision::Ended(2, ended()));
    }

    #[test]
    fn a_stale_attempt_is_answered_with_what_the_newer_one_is() {
        check(|_, k, _| *k = known(3, Phase::Started), Decision::Repeat(3, Phase::Started));
        check(|_, k, _| *k = known(3, Phase::Finished), Decision::Resend);
        check(|_, k, _| *k = receipted(3), Decision::Ended(3, ended()));
        check(|_, k, _| *k = known(3, Phase::Closed), Decision::Refuse(Refusal::Cancelled));
        check(|_, k, _| *k = known(3, Phase::Receipted), Decision::Drop(Refusal::StaleAttempt));
    }

    #[test]
    fn a_newer_attempt_waits_for_the_older_one_to_end_or_keeps_it_from_starting() {
        check(|_, k, _| *k = known(1, Phase::Started), Decision::Leave);
        check(|_, k, _| *k = known(1, Phase::Accepted), Decision::Supersede);
        check(|_, k, _| *k = known(1, Phase::Finished), Decision::Take);
        check(|_, k, _| *k = known(1, Phase::Receipted), Decision::Take);
        check(|_, k, _| *k = known(1, Phase::Closed), Decision::Take);
    }
}

//! Which process speaks for an agent. Pure; times are the controller's steady clock in milliseconds.
//!
//! Each process says a random `instance` that it made at its start. Another one than before is a restart, or a copy: the
//! same key and journal in two processes. Before a newcomer is welcome the old one is probed and must be silent.

use sally_common::id::Nonce;

/// How long the old process must be silent after a probe before a new one is welcome. Agents that wait to be
/// welcomed ask again after 400 ms.
pub const QUIET_MS: i64 = 350;
/// Two processes that both speak are one again when one of them has been silent for so long. They are probed
/// meanwhile.
pub const ALONE_MS: i64 = 5_000;

/// What to do about whoever has just spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It speaks for the agent.
    Welcome,
    /// Perhaps: probe the agent, and let it ask again.
    Probe,
    /// Perhaps: it has been probed just now.
    Wait,
    /// Two processes speak: neither gets work.
    Two,
}

/// The processes that have spoken for one agent.
#[derive(Debug, Clone, Default)]
pub struct Presence {
    /// The one that speaks for it, when it was last heard, and whether it has said goodbye.
    current: Option<(Nonce, i64, bool)>,
    /// Another one that has been heard once, and when.
    newcomer: Option<(Nonce, i64)>,
    /// Another one that speaks at the same time, and when it was last heard.
    rival: Option<(Nonce, i64)>,
}

impl Presence {
    /// Notes who has spoken. `gone`: the agent was judged to be offline before.
    pub fn hear(&mut self, who: Nonce, goodbye: bool, gone: bool, now_ms: i64) -> Verdict {
        self.settle(now_ms);
        let Some((current, _, has_gone)) = self.current else {
            return self.accept(who, goodbye, now_ms);
        };
        if who == current {
            if let Some((newcomer, first_ms)) = self.newcomer.take()
                && now_ms - first_ms < ALONE_MS
            {
                self.rival = Some((newcomer, now_ms));
            }
            self.current = Some((current, now_ms, goodbye));
            return if self.rival.is_some() { Verdict::Two } else { Verdict::Welcome };
        }
        if let Some((rival, last_ms)) = &mut self.rival
            && *rival == who
        {
            *last_ms = now_ms;
            return Verdict::Two;
        }
        // One that is ending says no more than that.
        if goodbye {
            return Verdict::Wait;
        }
        if has_gone || gone {
            return self.accept(who, goodbye, now_ms);
        }
        match self.newcomer {
            Some((newcomer, first_ms)) if newcomer == who => {
                // The current one has been silent since: had it spoken, the newcomer would be its rival.
                if now_ms - first_ms >= QUIET_MS {
                    return self.accept(who, goodbye, now_ms);
                }
                Verdict::Wait
            }
            _ => {
                self.newcomer = Some((who, now_ms));
                Verdict::Probe
            }
        }
    }

    fn accept(&mut self, who: Nonce, goodbye: bool, now_ms: i64) -> Verdict {
        *self = Self { current: Some((who, now_ms, goodbye)), ..Self::default() };
        Verdict::Welcome
    }

    /// Whether two processes use the identity at this moment.
    pub fn is_two(&self, now_ms: i64) -> bool {
        let mut settled = self.clone();
        settled.settle(now_ms);
        settled.rival.is_some()
    }

    /// Of two that spoke at the same time, one may have been silent since.
    fn settle(&mut self, now_ms: i64) {
        let (Some((_, heard_ms, _)), Some((rival, last_ms))) = (self.current, self.rival) else { return };
        if now_ms - last_ms >= ALONE_MS {
            self.rival = None;
        } else if now_ms - heard_ms >= ALONE_MS {
            self.accept(rival, false, last_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Nonce, Nonce) {
        (Nonce::generate(), Nonce::generate())
    }

    #[test]
    fn a_restart_after_a_goodbye_is_welcome_at_once() {
        let (old, new) = two();
        let mut presence = Presence::default();
        assert_eq!(presence.hear(old, false, true, 0), Verdict::Welcome);
        assert_eq!(presence.hear(old, true, false, 10), Verdict::Welcome);
        assert_eq!(presence.hear(new, false, false, 11), Verdict::Welcome);
        assert_eq!(presence.hear(new, false, false, 12), Verdict::Welcome);
    }

    #[test]
    fn a_restart_after_a_crash_is_welcome_when_the_old_one_is_silent() {
        let (old, new) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        assert_eq!(presence.hear(new, false, false, 100), Verdict::Probe);
        assert_eq!(presence.hear(new, false, false, 110), Verdict::Wait, "its own answer to the probe");
        assert_eq!(presence.hear(new, false, false, 100 + QUIET_MS), Verdict::Welcome);
        assert!(!presence.is_two(500));
    }

    #[test]
    fn a_restart_in_the_millisecond_of_the_last_word_is_welcome_too() {
        let (old, new) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        // Copies of what the old one once said come late, and mixed with what the new one says.
        assert_eq!(presence.hear(old, false, false, 100), Verdict::Welcome);
        assert_eq!(presence.hear(new, false, false, 100), Verdict::Probe);
        assert_eq!(presence.hear(new, false, false, 100 + QUIET_MS), Verdict::Welcome);
    }

    #[test]
    fn whatever_was_said_before_the_one_that_is_left_is_welcome_in_the_end() {
        let all: Vec<Nonce> = (0..4).map(|_| Nonce::generate()).collect();
        let mut seed = 1u64;
        for _ in 0..2_000 {
            let mut presence = Presence::default();
            let mut now = 0;
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let drawn = seed >> 33;
                let who = all[(drawn % 4) as usize];
                now += [0, 1, QUIET_MS, ALONE_MS][(drawn / 4 % 4) as usize];
                presence.hear(who, (drawn / 16).is_multiple_of(8), (drawn / 128).is_multiple_of(16), now);
            }
            let until = now + 2 * ALONE_MS;
            let mut last = Verdict::Wait;
            while now < until {
                now += 400;
                last = presence.hear(all[0], false, false, now);
            }
            assert_eq!(last, Verdict::Welcome, "{presence:?}");
        }
    }

    #[test]
    fn whoever_was_offline_needs_no_probe() {
        let (old, new) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        assert_eq!(presence.hear(new, false, true, 100_000), Verdict::Welcome);
    }

    #[test]
    fn a_copy_is_noticed_and_neither_gets_work_until_one_falls_silent() {
        let (old, copy) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        assert_eq!(presence.hear(copy, false, false, 100), Verdict::Probe);
        assert_eq!(presence.hear(old, false, false, 105), Verdict::Two, "it answers the probe");
        assert_eq!(presence.hear(copy, false, false, 106), Verdict::Two);
        assert!(presence.is_two(200));
        for t in [1_000, 2_000, 3_000] {
            assert_eq!(presence.hear(copy, false, false, t), Verdict::Two);
        }
        // The old one was stopped.
        assert_eq!(presence.hear(copy, false, false, 105 + ALONE_MS), Verdict::Welcome);
        assert!(!presence.is_two(105 + ALONE_MS));
    }

    #[test]
    fn the_copy_may_be_the_one_that_goes() {
        let (old, copy) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        presence.hear(copy, false, false, 100);
        assert_eq!(presence.hear(old, false, false, 105), Verdict::Two);
        assert_eq!(presence.hear(old, false, false, 4_000), Verdict::Two);
        assert_eq!(presence.hear(old, false, false, 105 + ALONE_MS), Verdict::Welcome);
    }

    #[test]
    fn an_old_process_that_was_frozen_and_comes_back_is_noticed() {
        let (old, new) = two();
        let mut presence = Presence::default();
        presence.hear(old, false, true, 0);
        presence.hear(new, false, false, 100);
        assert_eq!(presence.hear(new, false, false, 600), Verdict::Welcome);
        assert_eq!(presence.hear(old, false, false, 9_000), Verdict::Probe);
        assert_eq!(presence.hear(new, false, false, 9_001), Verdict::Two);
        assert!(presence.is_two(9_002));
    }
}

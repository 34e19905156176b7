//! The ways in which a job is submitted, and what takes it back: each explains ends that a plain job has not.

use super::world::World;
use crate::effects::Kind;
use crate::harness::eventually;

/// How a job is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Plain,
    /// Tried again after a bad end.
    Idempotent,
    Priority(u64),
    /// Takes the place of earlier ones of this manner that still wait for the same agent.
    LatestOnly,
    /// Straight to the agent, or not at all.
    Direct,
}

/// More tries than one schedule has faults.
const RETRIES: usize = 8;

impl Manner {
    fn options(self, agent: u64) -> Vec<String> {
        let text = match self {
            Manner::Plain => String::new(),
            Manner::Idempotent => format!("--idempotent --retries {RETRIES} --backoff 50ms --backoff-max 1s"),
            Manner::Priority(priority) => format!("--priority {priority}"),
            Manner::LatestOnly => format!("--latest-only latest-{agent}"),
            Manner::Direct => "--lane direct".into(),
        };
        text.split_whitespace().map(str::to_owned).collect()
    }
}

impl World {
    /// Submits a job to an agent in some manner.
    pub fn submit_in(&mut self, manner: Manner, kind: Kind, agent: u64) -> String {
        let (target, options) = (format!("local-{agent}"), manner.options(agent));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        if manner == Manner::LatestOnly {
            // It may arrive although its answer does not.
            for older in self.latest_only.get(&agent).cloned().unwrap_or_default() {
                self.may_be(older, &["cancelled"]);
            }
        }
        let id = self.submit_with(kind, &target, 1, &options);
        let number = self.numbers;
        match manner {
            Manner::Plain | Manner::Priority(_) => {}
            Manner::Idempotent => self.accepted[number as usize - 1].tries = RETRIES + 1,
            Manner::LatestOnly => self.latest_only.entry(agent).or_default().push(number),
            // It did not get there, or was not heard of again.
            Manner::Direct => self.may_be(number, &["rejected", "unknown"]),
        }
        id
    }

    /// These ends of a job need no fault to explain them.
    fn may_be(&mut self, number: u64, states: &[&'static str]) {
        self.accepted[number as usize - 1].may_be.extend(states);
    }

    /// Cancels the job of this number, from 1, by its request id: whether it has ended, is under way, or comes only later.
    pub fn cancel_number(&mut self, number: u64) {
        let request = format!("fault-{number}");
        if number > self.numbers {
            self.cancelled_ahead.insert(number);
        } else {
            // A last attempt is one that has failed when nobody wants another.
            let tried_again = self.accepted[number as usize - 1].tries > 1;
            self.may_be(number, if tried_again { &["cancelled", "failed"] } else { &["cancelled"] });
        }
        self.insist("a cancellation is answered", &["job", "cancel", "--request-id", &request]);
    }

    /// Lets an agent take nothing new.
    pub fn drain(&mut self, agent: u64) {
        self.insist("an agent is drained", &["agent", "drain", "-a", &format!("local-{agent}")]);
    }

    /// Lets it take work again.
    pub fn resume(&mut self, agent: u64) {
        self.insist("an agent takes work again", &["agent", "resume", "-a", &format!("local-{agent}")]);
    }

    /// Says the same until it is done.
    fn insist(&self, what: &str, args: &[&str]) {
        eventually(what, || {
            let said = self.sally(args);
            match said.code {
                0 => Some(()),
                7 | 1 => None,
                code => panic!("exit {code} of {args:?}: {}{}", said.text(), said.stderr),
            }
        });
    }
}

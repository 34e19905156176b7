//! The agents as the controller sees them: who is enrolled, what the last heartbeat said, and the one
//! judgement of online, late and offline, by the controller's clock: the steady one, of which people are told in wall time.

use std::collections::{BTreeMap, BTreeSet};

use sally_common::clock::rfc3339;
use sally_common::id::{Incarnation, Nonce};
use sally_common::key::PublicKey;
use sally_common::name::{Agent, Zone};
use sally_common::selector::{Targets, is_glob, pattern_matches};
use sally_common::wire::api::{ApiError, ErrorCode, Target};
use sally_common::wire::command::To;
use sally_common::wire::record::{AgentRecord, AgentState};
use sally_common::wire::report::{AgentCondition, From, Heartbeat};

use super::presence::Presence;
use super::settings::Enrolled;
use crate::ledger::AgentRow;

/// The first and the longest pause between two hints at what waits, milliseconds.
const HINT_FIRST_MS: i64 = 1_000;
const HINT_MAX_MS: i64 = 60_000;

/// How long an agent is sent nothing after a process with another journal than the known one has spoken for it and is not
/// welcome yet, milliseconds: what is sent to a journal that is gone is `unknown` for ever. Agents that wait to be welcomed
/// ask again after 400 ms.
const OTHER_JOURNAL_MS: i64 = 5_000;

/// What is wrong with an agent whose journal and key two processes use.
pub const TWO_PROCESSES: &str = "two processes use this identity: stop one of them, and enroll its host anew";

/// What a process that has just started must be above: else its journal is an older copy of what spoke before.
#[derive(Debug, Clone, Default)]
pub struct Floor {
    /// The process.
    instance: Option<Nonce>,
    /// The counter that was heard before it spoke.
    counter: u64,
    /// Whether it was found to be above, and let work.
    welcome: bool,
}

/// One agent.
#[derive(Debug, Clone)]
pub struct Member {
    /// Zone, name and key.
    pub enrolled: Enrolled,
    /// The journal that spoke last; `None` before it ever did.
    pub incarnation: Option<Incarnation>,
    /// The counter of the last report.
    pub counter: u64,
    /// The highest that this journal has said of how often it was written; 0 if it never did.
    pub journal: u64,
    /// The process that speaks.
    pub floor: Floor,
    /// The last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// When anything signed was last heard, by the controller's steady clock.
    pub seen_ms: Option<i64>,
    /// Whether it was told to get no new work.
    pub drained: bool,
    /// Whether work waits for it that it was not sent: what comes now stays behind that.
    pub behind: bool,
    /// How often work was left waiting for it. Who reads what waits compares it before and after: what was left meanwhile may
    /// not have been read.
    left: u64,
    /// When it is hinted at what waits, and the pause after that; the controller's steady clock, milliseconds.
    pub hint: (i64, i64),
    /// Whether it has asked for work since this controller started.
    pub greeted: bool,
    /// Which process speaks for it.
    pub presence: Presence,
    /// When a process with another journal spoke that is not welcome yet, by the controller's steady clock.
    pub other_journal_ms: Option<i64>,
}

impl Member {
    /// The controller's judgement.
    pub fn state(&self, now_ms: i64) -> AgentState {
        match (&self.heartbeat, self.seen_ms) {
            (Some(beat), Some(seen)) => {
                AgentState::judge(now_ms - seen, beat.interval_s, beat.goodbye.is_some())
            }
            _ => AgentState::Offline,
        }
    }

    /// One that has never spoken.
    fn new(enrolled: Enrolled) -> Self {
        Self {
            enrolled,
            incarnation: None,
            counter: 0,
            journal: 0,
            floor: Floor::default(),
            heartbeat: None,
            seen_ms: None,
            drained: false,
            behind: false,
            left: 0,
            hint: (0, HINT_FIRST_MS),
            greeted: false,
            presence: Presence::default(),
            other_journal_ms: None,
        }
    }

    /// As if it had never spoken.
    pub fn forget(&mut self) {
        *self = Self::new(self.enrolled.clone());
    }

    /// Whether it may be sent new work at this moment.
    pub fn takes_work(&self, now_ms: i64) -> bool {
        let there = self.state(now_ms) != AgentState::Offline && !self.presence.is_two(now_ms);
        there && !self.drained && !self.may_be_another(now_ms)
    }

    /// Whether its journal may be another one than the known one.
    fn may_be_another(&self, now_ms: i64) -> bool {
        self.other_journal_ms.is_some_and(|at| now_ms - at < OTHER_JOURNAL_MS)
    }

    /// A process has spoken that is not welcome yet.
    pub fn is_at_the_door(&mut self, incarnation: Incarnation, now_ms: i64) {
        if self.incarnation.is_some_and(|known| known != incarnation) {
            self.other_journal_ms = Some(now_ms);
        }
    }

    /// Whether it is time to hint at what waits for it; each time the pause doubles until it asks.
    pub fn hint_is_due(&mut self, now_ms: i64) -> bool {
        let (next_ms, pause_ms) = self.hint;
        if now_ms < next_ms || !self.takes_work(now_ms) {
            return false;
        }
        self.hint = (now_ms + pause_ms, (pause_ms * 2).min(HINT_MAX_MS));
        true
    }

    /// A process speaks for it.
    pub fn speaks(&mut self, instance: Nonce, incarnation: Incarnation) {
        if self.floor.instance != Some(instance) {
            let counter = if self.incarnation == Some(incarnation) { self.counter } else { 0 };
            self.floor = Floor { instance: Some(instance), counter, welcome: false };
        }
    }

    /// Whether a process that has just started and says this has an older copy of the journal.
    pub fn is_old_copy(&self, from: &From, instance: Option<Nonce>) -> bool {
        if self.incarnation != Some(from.incarnation) {
            return false;
        }
        // Of the same process questions and heartbeats may overtake each other.
        let same = instance.is_some() && self.floor.instance == instance;
        let counter = if same { self.floor.counter } else { self.counter };
        // Until it is welcome it says what it found in its file; whatever is above that was said before by another.
        let journal = if same && self.floor.welcome { 0 } else { self.journal };
        from.counter < counter || from.journal.is_some_and(|found| found < journal)
    }

    /// It works with this journal now; the numbers of another one say nothing of it.
    pub fn is_now(&mut self, from: &From) {
        if self.incarnation != Some(from.incarnation) {
            self.incarnation = Some(from.incarnation);
            self.other_journal_ms = None;
            (self.counter, self.journal, self.floor.counter) = (0, 0, 0);
        }
        self.counter = self.counter.max(from.counter);
        self.heard_journal(from);
    }

    /// Keeps the highest that its journal has said of itself, in whatever report.
    pub fn heard_journal(&mut self, from: &From) {
        if self.incarnation == Some(from.incarnation) {
            self.journal = self.journal_of(from);
        }
    }

    /// The highest that a report's journal has said of itself, this report among them.
    pub fn journal_of(&self, from: &From) -> u64 {
        let heard = if self.incarnation == Some(from.incarnation) { self.journal } else { 0 };
        heard.max(from.journal.unwrap_or(0))
    }

    /// A process was let work.
    pub fn is_welcome(&mut self, instance: Option<Nonce>) {
        self.floor.welcome |= instance.is_some() && self.floor.instance == instance;
    }

    /// Work is left waiting for it. Returns whether it must be hinted at that: it has not been told that something waits,
    /// or it was and has not asked for long.
    pub fn leave(&mut self, now_ms: i64) -> bool {
        self.left += 1;
        if !std::mem::replace(&mut self.behind, true) {
            self.hint = (now_ms, HINT_FIRST_MS);
        }
        self.hint_is_due(now_ms)
    }

    /// How often work was left for it: to be compared with later, by [`Member::read`].
    pub fn left(&self) -> u64 {
        self.left
    }

    /// What waits for it was read, when so much had been [`Member::left`], and whether something waits beyond what it is
    /// sent of it. Returns whether something does, as far as is known now.
    pub fn read(&mut self, left: u64, more: bool) -> bool {
        self.behind = more || self.left != left;
        self.behind
    }

    /// It has asked.
    pub fn asked(&mut self, now_ms: i64) {
        self.hint = (now_ms + HINT_FIRST_MS, HINT_FIRST_MS);
        self.greeted = true;
    }

    /// Itself as a target.
    pub fn target(&self, now_ms: i64) -> Target {
        Target {
            zone: self.enrolled.zone.clone(),
            agent: self.enrolled.agent.clone(),
            online: self.state(now_ms) != AgentState::Offline,
            agent_key: Some(self.enrolled.key.clone()),
            curve_key: self.heartbeat.as_ref().and_then(|b| b.curve_key.clone()),
        }
    }

    /// How a command addresses it; `None` before its journal is known.
    pub fn address(&self) -> Option<To> {
        Some(To {
            zone: self.enrolled.zone.clone(),
            agent: self.enrolled.agent.clone(),
            agent_key: self.enrolled.key.clone(),
            incarnation: self.incarnation?,
        })
    }

    /// The record that people are shown. `wall_ms` is the same moment by the wall clock.
    pub fn record(&self, now_ms: i64, wall_ms: i64, waiting: u64) -> AgentRecord {
        let beat = self.heartbeat.as_ref();
        let text = |f: fn(&Heartbeat) -> &str| beat.map(f).unwrap_or_default().to_owned();
        AgentRecord {
            agent: self.enrolled.agent.clone(),
            zone: self.enrolled.zone.clone(),
            state: self.state(now_ms),
            last_seen_at: self.seen_ms.map(|s| rfc3339(wall_ms - (now_ms - s))),
            last_seen_s: self.seen_ms.map(|s| u64::try_from((now_ms - s) / 1000).unwrap_or(0)),
            slots_used: beat.map_or(0, |b| b.slots.used),
            slots_total: beat.map_or(0, |b| b.slots.total),
            version: text(|b| &b.version),
            labels: beat.map(|b| b.labels.clone()).unwrap_or_default(),
            key: self.enrolled.key.to_string(),
            incarnation: self.incarnation.map(|i| i.to_string()).unwrap_or_default(),
            hostname: text(|b| &b.host.hostname),
            os: text(|b| &b.host.os),
            kernel: text(|b| &b.host.kernel),
            arch: text(|b| &b.host.arch),
            sandbox_mode: text(|b| &b.sandbox.mode),
            profiles: beat.map(|b| b.sandbox.every_profile().cloned().collect()).unwrap_or_default(),
            spool_results: beat.map_or(0, |b| b.spool.results),
            refused: beat
                .map(|b| b.refused.iter().map(|(r, n)| (r.code(), *n)).collect())
                .unwrap_or_default(),
            last_error: beat.and_then(|b| b.last_error.clone()),
            waiting,
            draining: self.drained || beat.is_some_and(|b| b.state == AgentCondition::Draining),
            deferring: beat.and_then(|b| b.deferring.clone()),
            lost: beat.map(|b| b.lost.clone()).unwrap_or_default(),
            problem: self.presence.is_two(now_ms).then(|| TWO_PROCESSES.to_owned()),
        }
    }
}

/// Everyone who is enrolled.
#[derive(Debug, Default)]
pub struct Fleet {
    members: BTreeMap<(Zone, Agent), Member>,
}

impl Fleet {
    /// Joins who is enrolled with what the ledger remembers of them: at the start, when both clocks say the same.
    pub fn new(enrolled: Vec<Enrolled>, rows: Vec<AgentRow>) -> Self {
        let mut members: BTreeMap<_, _> = enrolled
            .into_iter()
            .map(|e| {
                let key = (e.zone.clone(), e.agent.clone());
                (key, Member::new(e))
            })
            .collect();
        for row in rows {
            if let Some(member) = members.get_mut(&(row.zone, row.name))
                && member.enrolled.key == row.agent_key
            {
                member.incarnation = Some(row.incarnation);
                member.counter = row.counter;
                member.journal = row.journal;
                member.heartbeat = serde_json::from_str(&row.heartbeat).ok();
                member.seen_ms = Some(row.last_seen_ms);
            }
        }
        Self { members }
    }

    /// Takes another list of who is enrolled. Who stays with the same key keeps what is known of it; returns how many came
    /// and how many went.
    pub fn enrol(&mut self, enrolled: Vec<Enrolled>) -> (usize, usize) {
        let mut before = std::mem::take(&mut self.members);
        let mut came = 0;
        for agent in enrolled {
            let name = (agent.zone.clone(), agent.agent.clone());
            let member = match before.remove(&name).filter(|member| member.enrolled == agent) {
                Some(member) => member,
                None => {
                    came += 1;
                    Member::new(agent)
                }
            };
            self.members.insert(name, member);
        }
        (came, before.len())
    }

    /// Takes one more, or the same with another key.
    pub fn admit(&mut self, agent: Enrolled) {
        let name = (agent.zone.clone(), agent.agent.clone());
        if self.members.get(&name).is_none_or(|member| member.enrolled != agent) {
            self.members.insert(name, Member::new(agent));
        }
    }

    /// Knows an agent no more.
    pub fn dismiss(&mut self, zone: &Zone, agent: &Agent) {
        self.members.remove(&(zone.clone(), agent.clone()));
    }

    /// Notes who is drained, and for whom work waits.
    pub fn note(&mut self, drained: &[(Zone, Agent)], behind: &[(Zone, Agent)]) {
        for key in drained {
            self.members.entry(key.clone()).and_modify(|m| m.drained = true);
        }
        for key in behind {
            self.members.entry(key.clone()).and_modify(|m| m.behind = true);
        }
    }

    /// Agents to hint at what waits for them.
    pub fn to_hint(&mut self, now_ms: i64) -> Vec<(Zone, Agent)> {
        let due = |m: &mut Member| m.behind && m.hint_is_due(now_ms);
        self.members.iter_mut().filter_map(|(key, m)| due(m).then(|| key.clone())).collect()
    }

    /// Agents whose identity two processes use.
    pub fn doubled(&self, now_ms: i64) -> Vec<(Zone, Agent)> {
        let two = self.members.iter().filter(|(_, m)| m.presence.is_two(now_ms));
        two.map(|(key, _)| key.clone()).collect()
    }

    /// An agent.
    pub fn get(&self, zone: &Zone, agent: &Agent) -> Option<&Member> {
        self.members.get(&(zone.clone(), agent.clone()))
    }

    /// An agent, to be changed.
    pub fn get_mut(&mut self, zone: &Zone, agent: &Agent) -> Option<&mut Member> {
        self.members.get_mut(&(zone.clone(), agent.clone()))
    }

    /// The key that an agent of this name must sign with.
    pub fn key(&self, zone: &Zone, agent: &Agent) -> Option<PublicKey> {
        self.get(zone, agent).map(|m| m.enrolled.key.clone())
    }

    /// Everyone, by zone and name.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Who is meant, by name; the offline ones too.
    ///
    /// # Errors
    /// Nobody; a literal name that nobody has; a bare name that two zones have.
    pub fn resolve(&self, targets: &Targets, now_ms: i64) -> Result<Vec<(Enrolled, Target)>, ApiError> {
        for pattern in &targets.agents {
            self.check_pattern(pattern)?;
        }
        let zones: BTreeSet<_> = self.members.keys().map(|(z, _)| z).collect();
        if let Some(unknown) = targets.zones.iter().find(|z| !zones.contains(z)) {
            return Err(no_target(format!("there is no zone \"{unknown}\" with agents")));
        }
        let found: Vec<_> = self
            .all()
            .filter(|m| {
                let labels = m.heartbeat.as_ref().map(|b| &b.labels);
                let none = BTreeMap::new();
                targets.matches(&m.enrolled.zone, &m.enrolled.agent, labels.unwrap_or(&none))
            })
            .map(|m| {
                let target = m.target(now_ms);
                (m.enrolled.clone(), target)
            })
            .collect();
        if found.is_empty() {
            return Err(no_target("no agent matches".into()));
        }
        Ok(found)
    }

    fn check_pattern(&self, pattern: &str) -> Result<(), ApiError> {
        if is_glob(pattern) {
            return Ok(());
        }
        let having: Vec<_> =
            self.all().filter(|m| pattern_matches(pattern, &m.enrolled.zone, &m.enrolled.agent)).collect();
        match having.as_slice() {
            [] => Err(no_target(format!("there is no agent \"{}\"", sally_common::name::show(pattern)))),
            [_] => Ok(()),
            [first, ..] => Err(ApiError {
                code: ErrorCode::Usage,
                message: format!("agent \"{pattern}\" is in {} zones", having.len()),
                hint: Some(format!("write {}/{pattern}", first.enrolled.zone)),
            }),
        }
    }
}

fn no_target(message: String) -> ApiError {
    let hint = Some("see who there is with `sally agent ls`".to_owned());
    ApiError { code: ErrorCode::NoTarget, message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::key::SigningKey;

    fn fleet(names: &[(&str, &str)]) -> Fleet {
        let enrolled = names.iter().map(|(zone, agent)| Enrolled {
            zone: Zone::new(zone).expect("name"),
            agent: Agent::new(agent).expect("name"),
            key: SigningKey::generate().public().clone(),
            user: None,
        });
        Fleet::new(enrolled.collect(), Vec::new())
    }

    fn check(agents: &[&str], expected: Result<&[&str], ErrorCode>) {
        let fleet = fleet(&[("dmz", "web-1"), ("dmz", "web-2"), ("pay", "web-1")]);
        let targets = Targets { agents: agents.iter().map(|s| (*s).into()).collect(), ..Targets::default() };
        let found = fleet.resolve(&targets, 0).map_err(|e| e.code);
        let found =
            found.map(|f| f.iter().map(|(e, _)| format!("{}/{}", e.zone, e.agent)).collect::<Vec<_>>());
        assert_eq!(found, expected.map(|e| e.iter().map(|s| (*s).to_owned()).collect()));
    }

    #[test]
    fn targets_are_known_by_name_and_mistakes_are_told_apart() {
        check(&["web-2"], Ok(&["dmz/web-2"]));
        check(&["pay/web-1"], Ok(&["pay/web-1"]));
        check(&["web-*"], Ok(&["dmz/web-1", "dmz/web-2", "pay/web-1"]));
        check(&["web-1"], Err(ErrorCode::Usage));
        check(&["web-9"], Err(ErrorCode::NoTarget));
        check(&["web-2", "web-9"], Err(ErrorCode::NoTarget));
        check(&["db-*"], Err(ErrorCode::NoTarget));
    }

    fn from(incarnation: u8, counter: u64, journal: Option<u64>) -> From {
        let incarnation = Incarnation::from_bytes([incarnation; 16]);
        From {
            zone: Zone::new("dmz").expect("name"),
            agent: Agent::new("web-1").expect("name"),
            incarnation,
            counter,
            journal,
        }
    }

    /// A member whose process has been welcomed, and said last that its journal was written 50 times.
    fn member() -> (Member, Nonce) {
        let fleet = fleet(&[("dmz", "web-1")]);
        let mut member = fleet.all().next().expect("one").clone();
        let process = Nonce::generate();
        member.speaks(process, Incarnation::from_bytes([1; 16]));
        assert!(!member.is_old_copy(&from(1, 1, Some(0)), Some(process)), "nothing was heard before");
        member.is_now(&from(1, 1, Some(0)));
        member.is_welcome(Some(process));
        member.heard_journal(&from(1, 9, Some(50)));
        (member, process)
    }

    fn heartbeat() -> Heartbeat {
        let written = serde_json::json!({
            "v": 1, "from": from(1, 10, Some(50)), "boot_id": "b", "sent_ms": 1_000, "interval_s": 30,
            "state": "online", "version": "0.1.0", "slots": {"used": 0, "total": 4}, "running": [],
            "spool": {"results": 0, "bytes": 0},
            "host": {"hostname": "web-1", "os": "Linux", "kernel": "6.12", "arch": "x86_64",
                     "load1": 0.5, "disk_free_bytes": 1},
            "sandbox": {"mode": "root", "profiles": ["strict"]},
        });
        serde_json::from_value(written).expect("a heartbeat")
    }

    #[test]
    fn what_was_left_while_the_rest_was_read_is_not_forgotten() {
        let (mut member, process) = member();
        member.seen_ms = Some(1_000);
        member.presence.hear(process, false, true, 1_000);
        assert!(!member.takes_work(1_000), "no heartbeat yet");
        assert!(!member.leave(1_000) && member.behind);
        member.heartbeat = Some(heartbeat());
        assert!(!member.read(member.left(), false), "all of it was sent");
        assert!(member.leave(2_000), "it was told that nothing waits");
        assert!(!member.leave(2_000), "it has been hinted at that just now");
        assert!(member.leave(2_000 + HINT_FIRST_MS), "and did not ask");
        let left = member.left();
        assert!(!member.leave(2_100));
        assert!(member.read(left, false) && member.behind, "more was left meanwhile");
        assert!(!member.read(member.left(), false) && !member.behind);
    }

    #[test]
    fn nothing_is_sent_to_a_journal_that_may_be_gone() {
        let (mut member, _) = member();
        member.is_at_the_door(Incarnation::from_bytes([1; 16]), 1_000);
        assert!(!member.may_be_another(1_000), "a restart with the same journal");
        member.is_at_the_door(Incarnation::from_bytes([2; 16]), 1_000);
        assert!(member.may_be_another(1_400));
        assert!(!member.may_be_another(1_000 + OTHER_JOURNAL_MS), "it was nothing");
        member.is_now(&from(2, 1, Some(0)));
        assert!(!member.may_be_another(1_400), "it is the known one now");
    }

    /// Whether a process that has just started is told that its journal is an old copy.
    fn starts(journal: Option<u64>) -> bool {
        let (mut member, _) = member();
        let (process, said) = (Nonce::generate(), from(1, 100_001, journal));
        member.speaks(process, said.incarnation);
        member.heard_journal(&said);
        member.is_old_copy(&said, Some(process))
    }

    #[test]
    fn a_process_with_an_older_journal_than_was_heard_is_told_so() {
        assert!(starts(Some(0)) && starts(Some(49)));
        assert!(!starts(Some(50)) && !starts(Some(51)), "a restart finds at least what was told");
        assert!(!starts(None), "an older program does not say");
    }

    #[test]
    fn a_process_that_was_welcome_may_be_overtaken_by_what_it_says_itself() {
        let (member, process) = member();
        assert!(!member.is_old_copy(&from(1, 2, Some(0)), Some(process)));
    }

    #[test]
    fn what_the_process_before_said_counts_also_when_it_comes_late() {
        let (mut member, _) = member();
        let process = Nonce::generate();
        member.speaks(process, Incarnation::from_bytes([1; 16]));
        assert!(!member.is_old_copy(&from(1, 100_001, Some(50)), Some(process)));
        member.heard_journal(&from(1, 10, Some(51)));
        assert!(member.is_old_copy(&from(1, 100_001, Some(50)), Some(process)));
    }

    #[test]
    fn another_incarnation_counts_by_itself() {
        let (mut member, process) = member();
        assert!(!member.is_old_copy(&from(2, 1, Some(3)), Some(process)));
        member.heard_journal(&from(2, 1, Some(90)));
        assert_eq!(member.journal, 50, "not before it speaks");
        assert_eq!(
            (member.journal_of(&from(2, 1, Some(3))), member.journal_of(&from(1, 1, Some(3)))),
            (3, 50)
        );
        member.is_now(&from(2, 1, Some(3)));
        assert_eq!((member.journal, member.counter), (3, 1));
    }

    #[test]
    fn a_counter_below_what_was_heard_is_an_old_copy_too() {
        let (mut member, _) = member();
        member.is_now(&from(1, 500, None));
        assert!(member.is_old_copy(&from(1, 499, None), Some(Nonce::generate())));
        assert!(!member.is_old_copy(&from(1, 500, None), Some(Nonce::generate())));
    }
}

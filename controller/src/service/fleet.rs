//! The agents as the controller sees them: who is enrolled, what the last heartbeat said, and the one
//! judgement of online, late and offline, by the controller's clock.

use std::collections::{BTreeMap, BTreeSet};

use sally_common::clock::rfc3339;
use sally_common::id::Incarnation;
use sally_common::key::PublicKey;
use sally_common::name::{Agent, Zone};
use sally_common::selector::{Targets, is_glob, pattern_matches};
use sally_common::wire::api::{ApiError, ErrorCode, Target};
use sally_common::wire::command::To;
use sally_common::wire::record::{AgentRecord, AgentState};
use sally_common::wire::report::{AgentCondition, Heartbeat};

use super::settings::Enrolled;
use crate::ledger::AgentRow;

/// One agent.
#[derive(Debug, Clone)]
pub struct Member {
    /// Zone, name and key.
    pub enrolled: Enrolled,
    /// The journal that spoke last; `None` before it ever did.
    pub incarnation: Option<Incarnation>,
    /// The counter of the last report.
    pub counter: u64,
    /// The last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// When anything signed was last heard, by the controller's wall clock.
    pub seen_ms: Option<i64>,
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

    /// How a command addresses it; `None` before its journal is known.
    pub fn address(&self) -> Option<To> {
        Some(To {
            zone: self.enrolled.zone.clone(),
            agent: self.enrolled.agent.clone(),
            agent_key: self.enrolled.key.clone(),
            incarnation: self.incarnation?,
        })
    }

    /// The record that people are shown.
    pub fn record(&self, now_ms: i64, waiting: u64) -> AgentRecord {
        let beat = self.heartbeat.as_ref();
        let text = |f: fn(&Heartbeat) -> &str| beat.map(f).unwrap_or_default().to_owned();
        AgentRecord {
            agent: self.enrolled.agent.clone(),
            zone: self.enrolled.zone.clone(),
            state: self.state(now_ms),
            last_seen_at: self.seen_ms.map(rfc3339),
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
            profiles: beat.map(|b| b.sandbox.profiles.clone()).unwrap_or_default(),
            spool_results: beat.map_or(0, |b| b.spool.results),
            refused: beat
                .map(|b| b.refused.iter().map(|(r, n)| (r.code(), *n)).collect())
                .unwrap_or_default(),
            last_error: beat.and_then(|b| b.last_error.clone()),
            waiting,
            draining: beat.is_some_and(|b| b.state == AgentCondition::Draining),
            deferring: beat.and_then(|b| b.deferring.clone()),
            lost: beat.map(|b| b.lost.clone()).unwrap_or_default(),
            problem: None,
        }
    }
}

/// Everyone who is enrolled.
#[derive(Debug, Default)]
pub struct Fleet {
    members: BTreeMap<(Zone, Agent), Member>,
}

impl Fleet {
    /// Joins who is enrolled with what the ledger remembers of them.
    pub fn new(enrolled: Vec<Enrolled>, rows: Vec<AgentRow>) -> Self {
        let mut members: BTreeMap<_, _> = enrolled
            .into_iter()
            .map(|e| {
                let key = (e.zone.clone(), e.agent.clone());
                (key, Member { enrolled: e, incarnation: None, counter: 0, heartbeat: None, seen_ms: None })
            })
            .collect();
        for row in rows {
            if let Some(member) = members.get_mut(&(row.zone, row.name))
                && member.enrolled.key == row.agent_key
            {
                member.incarnation = Some(row.incarnation);
                member.counter = row.counter;
                member.heartbeat = serde_json::from_str(&row.heartbeat).ok();
                member.seen_ms = Some(row.last_seen_ms);
            }
        }
        Self { members }
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
                let online = m.state(now_ms) != AgentState::Offline;
                let target = Target {
                    zone: m.enrolled.zone.clone(),
                    agent: m.enrolled.agent.clone(),
                    online,
                    agent_key: Some(m.enrolled.key.clone()),
                    curve_key: m.heartbeat.as_ref().and_then(|b| b.curve_key.clone()),
                };
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
}

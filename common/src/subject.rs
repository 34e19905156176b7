//! Every subject, built and read in this one file.
//!
//! ```text
//! <prefix>.task.<zone>.<agent>        controller → stream, republished to
//! <prefix>.live.<zone>.<agent>        → agent; the only subject an agent reads
//! <prefix>.state.<zone>.<agent>       agent → controller, and so on:
//! <prefix>.result.<zone>.<agent>
//! <prefix>.log.<zone>.<agent>
//! <prefix>.heartbeat.<zone>.<agent>
//! <prefix>.ask.<zone>.<agent>
//! <prefix>.api.<verb>                 caller → controller, request and reply
//! <prefix>.enroll.<zone>.<token>      host that enrols → controller, and the answer on
//! <prefix>.enrolled.<zone>.<token>    (both built in `nats::accounts::enrolment_subjects`)
//! ```

use crate::name::{Agent, BadName, Zone};

/// What an agent's subject carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Dispatches, in the stream.
    Task,
    /// Everything for the agent.
    Live,
    /// Accepted, started, refused.
    State,
    /// Results.
    Result,
    /// Output chunks.
    Log,
    /// Heartbeats.
    Heartbeat,
    /// Questions to the controller.
    Ask,
}

impl Channel {
    /// What an agent writes.
    pub const FROM_AGENT: [Channel; 5] =
        [Channel::State, Channel::Result, Channel::Log, Channel::Heartbeat, Channel::Ask];

    /// The channel's token.
    pub fn token(self) -> &'static str {
        match self {
            Channel::Task => "task",
            Channel::Live => "live",
            Channel::State => "state",
            Channel::Result => "result",
            Channel::Log => "log",
            Channel::Heartbeat => "heartbeat",
            Channel::Ask => "ask",
        }
    }
}

/// The first token of every subject, `sally` unless configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Self {
        Self("sally".to_owned())
    }
}

impl Prefix {
    /// Checks a text and makes it a prefix. It is one token, with the rules of a name.
    pub fn new(text: &str) -> Result<Self, BadName> {
        Zone::new(text).map(|z| Self(z.as_str().to_owned()))
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One agent's subject.
    pub fn agent(&self, channel: Channel, zone: &Zone, agent: &Agent) -> String {
        format!("{}.{}.{zone}.{agent}", self.0, channel.token())
    }

    /// All agents' subjects of one channel.
    pub fn all(&self, channel: Channel) -> String {
        format!("{}.{}.>", self.0, channel.token())
    }

    /// The subject of a request to the controller.
    pub fn api(&self, verb: &str) -> String {
        format!("{}.api.{verb}", self.0)
    }

    /// Reads zone and agent back from an agent's subject of this channel.
    pub fn parse(&self, channel: Channel, subject: &str) -> Option<(Zone, Agent)> {
        let rest = subject.strip_prefix(self.0.as_str())?.strip_prefix('.')?;
        let rest = rest.strip_prefix(channel.token())?.strip_prefix('.')?;
        let (zone, agent) = rest.split_once('.')?;
        Some((Zone::new(zone).ok()?, Agent::new(agent).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_read_back() {
        let (zone, agent) = (Zone::new("dmz-a").expect("name"), Agent::new("web-01").expect("name"));
        let prefix = Prefix::default();
        let subject = prefix.agent(Channel::Result, &zone, &agent);
        assert_eq!(subject, "sally.result.dmz-a.web-01");
        assert_eq!(prefix.parse(Channel::Result, &subject), Some((zone, agent)));
        assert_eq!(prefix.parse(Channel::Log, &subject), None);
    }

    #[test]
    fn a_strange_subject_is_nobodys() {
        let prefix = Prefix::default();
        for subject in [
            "",
            "sally",
            "sally.result",
            "sally.result.z",
            "sally.result.z.",
            "sally.result.z.a.b",
            "sally.result.Z.a",
            "other.result.z.a",
            "sallyx.result.z.a",
            "sally.resultx.z.a",
        ] {
            assert_eq!(prefix.parse(Channel::Result, subject), None, "{subject}");
        }
    }

    #[test]
    fn a_prefix_is_one_token() {
        assert!(Prefix::new("ops").is_ok());
        assert!(Prefix::new("a.b").is_err());
        assert!(Prefix::new(">").is_err());
    }
}

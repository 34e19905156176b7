//! Targets: label selectors in the grammar of Kubernetes, name patterns, zones.
//!
//! One grammar on both sides: the controller resolves a job's targets with it, and each agent
//! checks with it that a signed order meant this agent.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::name::{Agent, Zone};

/// An agent's labels.
pub type Labels = BTreeMap<String, String>;

/// Why a text is not a selector, with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector \"{text}\", character {at}: {problem}")]
pub struct BadSelector {
    text: String,
    at: usize,
    problem: &'static str,
}

/// A parsed selector: every requirement must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// Reads `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, `k`, `!k`, joined by commas.
    pub fn parse(text: &str) -> Result<Self, BadSelector> {
        Parser { text, rest: text }.selector()
    }

    /// Whether these labels satisfy it. As in Kubernetes, `!=` and `notin` hold for a missing key.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| match r {
            Requirement::Exists(k) => labels.contains_key(k),
            Requirement::Absent(k) => !labels.contains_key(k),
            Requirement::In(k, vs) => labels.get(k).is_some_and(|v| vs.contains(v)),
            Requirement::NotIn(k, vs) => labels.get(k).is_none_or(|v| !vs.contains(v)),
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn selector(mut self) -> Result<Selector, BadSelector> {
        let mut all = Vec::new();
        loop {
            all.push(self.requirement()?);
            if all.len() > 64 {
                return Err(self.bad("more than 64 requirements"));
            }
            self.space();
            if self.rest.is_empty() {
                return Ok(Selector(all));
            }
            if !self.eat(",") {
                return Err(self.bad("expected ',' or the end"));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, BadSelector> {
        self.space();
        if self.eat("!") {
            return Ok(Requirement::Absent(self.word("expected a label after '!'")?.to_owned()));
        }
        let key = self.word("expected a label")?.to_owned();
        self.space();
        if self.eat("!=") {
            return Ok(Requirement::NotIn(key, vec![self.value()?]));
        }
        if self.eat("==") || self.eat("=") {
            return Ok(Requirement::In(key, vec![self.value()?]));
        }
        let before = self.rest;
        match self.word("").unwrap_or("") {
            "" => Ok(Requirement::Exists(key)),
            "in" => Ok(Requirement::In(key, self.list()?)),
            "notin" => Ok(Requirement::NotIn(key, self.list()?)),
            _ => {
                self.rest = before;
                Err(self.bad("expected '=', '!=', 'in (…)', 'notin (…)' or ','"))
            }
        }
    }

    /// A value may be empty, as in `k=`.
    fn value(&mut self) -> Result<String, BadSelector> {
        self.space();
        Ok(self.word("").unwrap_or("").to_owned())
    }

    fn list(&mut self) -> Result<Vec<String>, BadSelector> {
        self.space();
        if !self.eat("(") {
            return Err(self.bad("expected '('"));
        }
        let mut values = Vec::new();
        loop {
            self.space();
            values.push(self.word("expected a value")?.to_owned());
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(self.bad("expected ',' or ')'"));
            }
        }
    }

    fn word(&mut self, problem: &'static str) -> Result<&'a str, BadSelector> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(self.bad(problem));
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn eat(&mut self, token: &str) -> bool {
        self.rest.strip_prefix(token).map(|rest| self.rest = rest).is_some()
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn bad(&self, problem: &'static str) -> BadSelector {
        let at = self.text.chars().count() - self.rest.chars().count() + 1;
        BadSelector { text: crate::name::show(self.text), at, problem }
    }
}

/// Whom a job is for, as its caller wrote it. Different fields narrow, values in one field widen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Agent patterns: `NAME`, `ZONE/NAME`, either with `*` and `?`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<String>,
    /// Zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
    /// Label selectors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
    /// Every agent. Must be said; an empty selection selects nobody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl Targets {
    /// Whether nothing was named, not even `all`.
    pub fn is_empty(&self) -> bool {
        !self.all && self.agents.is_empty() && self.zones.is_empty() && self.selectors.is_empty()
    }

    /// Whether this agent is meant. An unreadable selector means nobody.
    pub fn matches(&self, zone: &Zone, agent: &Agent, labels: &Labels) -> bool {
        let holds = |text: &String| Selector::parse(text).is_ok_and(|s| s.matches(labels));
        !self.is_empty()
            && (self.selectors.is_empty() || self.selectors.iter().any(holds))
            && (self.zones.is_empty() || self.zones.contains(zone))
            && (self.agents.is_empty() || self.agents.iter().any(|p| pattern_matches(p, zone, agent)))
    }
}

/// Whether a pattern names this agent: `NAME` in any zone, or `ZONE/NAME`, with `*` and `?`.
pub fn pattern_matches(pattern: &str, zone: &Zone, agent: &Agent) -> bool {
    match pattern.split_once('/') {
        Some((z, a)) => {
            glob(z.as_bytes(), zone.as_str().as_bytes()) && glob(a.as_bytes(), agent.as_str().as_bytes())
        }
        None => glob(pattern.as_bytes(), agent.as_str().as_bytes()),
    }
}

/// Whether a pattern holds a wildcard, so that matching nobody is no mistake in a name.
pub fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// Shell-like match with `*` and `?`. Linear: on a mismatch it goes back to the last star only.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b) if *b == b'?' || *b == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((sp, st)) => {
                    p = sp + 1;
                    t = st + 1;
                    star = Some((sp, st + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn check(selector: &str, on: &str, expected: bool) {
        let parsed = Selector::parse(selector).expect("a selector");
        assert_eq!(parsed.matches(&labels(on)), expected, "{selector} on {on}");
    }

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        check("role=web", "role=web", true);
        check("role==web", "role=web", true);
        check("role=web", "role=db", false);
        check("role!=web", "role=db", true);
        check("role!=web", "", true);
        check("role in (web,api)", "role=api", true);
        check("role in ( web , api )", "role=db", false);
        check("role notin (web)", "", true);
        check("role notin (web)", "role=web", false);
        check("canary", "canary=", true);
        check("canary", "", false);
        check("!canary", "", true);
        check("!canary", "canary=1", false);
        check("zone=dmz,role in (web,api),!canary", "zone=dmz role=web", true);
        check("zone=dmz, role in (web,api), !canary", "zone=dmz role=web canary=1", false);
        check("a.b/c=d", "a.b/c=d", true);
        check("empty=", "empty=", true);
    }

    #[test]
    fn a_bad_selector_says_where() {
        for (text, at) in [
            ("", 1),
            ("=x", 1),
            ("a in", 5),
            ("a in (", 7),
            ("a in (b", 8),
            ("a,,b", 3),
            ("a b", 3),
            ("a=b c", 5),
            ("ä", 1),
        ] {
            let error = Selector::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{error}");
        }
    }

    #[test]
    fn fields_narrow_and_values_widen() {
        let (zone, agent) = (Zone::new("dmz").expect("name"), Agent::new("web-1").expect("name"));
        let on = labels("role=web");
        let check = |targets: Targets, expected: bool| {
            assert_eq!(targets.matches(&zone, &agent, &on), expected, "{targets:?}");
        };
        let agents = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        check(Targets::default(), false);
        check(Targets { all: true, ..Targets::default() }, true);
        check(Targets { agents: agents(&["web-1"]), ..Targets::default() }, true);
        check(Targets { agents: agents(&["dmz/web-*"]), ..Targets::default() }, true);
        check(Targets { agents: agents(&["pay/web-1"]), ..Targets::default() }, false);
        check(Targets { agents: agents(&["db-1", "web-?"]), ..Targets::default() }, true);
        check(
            Targets { agents: agents(&["web-1"]), selectors: vec!["role=db".into()], ..Targets::default() },
            false,
        );
        check(Targets { all: true, selectors: vec!["role=".into()], ..Targets::default() }, false);
        let either = Targets { selectors: vec!["role=db".into(), "role=web".into()], ..Targets::default() };
        check(either, true);
        check(Targets { all: true, selectors: vec!["((".into()], ..Targets::default() }, false);
    }

    #[test]
    fn globs_are_linear_and_whole() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "axxb", true),
            ("a*b", "axxbc", false),
            ("a*b*c", "a1b2b3c", true),
            ("?", "", false),
            ("", "a", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        assert!(!glob("*a".repeat(30).as_bytes(), "b".repeat(5_000).as_bytes()));
    }
}

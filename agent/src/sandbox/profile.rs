//! Profiles, and the policy that says which of them and how much a launcher grants.
#![forbid(unsafe_code)]

use super::network::Destination;
use super::plan::{Limits, Plan};
use sally_common::name::ProfileName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A named level of isolation, from tight to wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// No network, a private read-only system, nothing of the host but its programs.
    Strict,
    /// `strict` with the host's network.
    Net,
    /// Reads the host's files and processes, writes only its box.
    Host,
    /// Root on the host: nothing is closed to it. Time, limits and the end of the whole tree are still the keeper's.
    Admin,
}

impl Profile {
    /// Every profile that confines, tight ones first: all but `admin`.
    pub const ALL: [Profile; 3] = [Profile::Strict, Profile::Net, Profile::Host];

    /// Whether the host's file system, processes and `/tmp` are there inside.
    pub fn sees_host(self) -> bool {
        self >= Profile::Host
    }

    /// The name used everywhere outside the code.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Strict => "strict",
            Profile::Net => "net",
            Profile::Host => "host",
            Profile::Admin => "admin",
        }
    }

    /// Its name, as the wire has it.
    pub fn to_name(self) -> ProfileName {
        // NOTE: each of them is a name by the rules of names; a test says so.
        ProfileName::new(self.name()).unwrap_or_default()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Profile::ALL.into_iter().chain([Profile::Admin]).find(|p| p.name() == name).ok_or_else(|| {
            format!("no built-in profile is called {name:?}; they are strict, net, host and admin")
        })
    }
}

/// What a keeper is made for: it carries out plans of this kind and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The profile, or what an operator's profile starts from.
    pub profile: Profile,
    /// The operator's profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined: Option<ProfileName>,
    /// The account of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A list of destinations comes with the plans. An operator's profile may have one without that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub listed: bool,
    /// They have a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

impl Shape {
    /// A built-in profile as it is.
    pub const fn built_in(profile: Profile) -> Shape {
        Shape { profile, defined: None, user: None, listed: false, terminal: false }
    }

    /// The profile's name, its operator's if it is one.
    pub fn name(&self) -> ProfileName {
        self.defined.clone().unwrap_or_else(|| self.profile.to_name())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.defined, &self.user) {
            (None, None) => write!(f, "{}", self.profile),
            (None, Some(user)) => write!(f, "{} as {user}", self.profile),
            (Some(name), None) => write!(f, "{name}"),
            (Some(name), Some(user)) => write!(f, "{name} as {user}"),
        }
    }
}

/// What a launcher grants. Given when it starts; a plan that asks for more is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The widest built-in profile allowed. An operator's profile is allowed by being in the launcher's folder, but one
    /// that starts from `admin` only where this is `admin`.
    pub max_profile: Profile,
    /// Destinations that a plan may list though the widest profile has no network.
    pub destinations: Vec<Destination>,
    /// The largest value allowed for each limit.
    pub ceiling: Limits,
    /// The longest timeout allowed, in milliseconds.
    pub max_timeout_ms: u64,
    /// Whether plans may have a terminal.
    pub terminal: bool,
}

impl Default for Policy {
    /// What a launcher grants that is told nothing.
    fn default() -> Self {
        Self {
            max_profile: Profile::Host,
            destinations: Vec::new(),
            ceiling: Limits::CEILING,
            max_timeout_ms: 30 * 24 * 3600 * 1000,
            terminal: false,
        }
    }
}

impl Policy {
    /// Checks how wide a profile is, and that no terminal is asked for where there is none. Whether an operator's profile is there at all is for whoever has the definitions.
    pub fn check_profile(&self, shape: &Shape) -> Result<(), String> {
        if shape.terminal && !self.terminal {
            return Err(
                "this launcher gives no terminals: only that of `sally-agent sandbox shell` does".into()
            );
        }
        let by_its_file = shape.defined.is_some() && shape.profile != Profile::Admin;
        if shape.profile <= self.max_profile || by_its_file {
            return Ok(());
        }
        let name = shape.name();
        Err(format!("profile {name} is wider than {}, the widest this launcher allows", self.max_profile))
    }

    /// Checks a well-formed plan against the policy; the message says which value is too much.
    pub fn check(&self, plan: &Plan) -> Result<(), String> {
        self.check_profile(&plan.shape())?;
        if self.max_profile == Profile::Strict
            && let Some(other) = plan.destinations.iter().flatten().find(|wanted| !self.allows(wanted))
        {
            return Err(format!(
                "destination {other} is not allowed by this launcher, whose widest profile is strict; start it with \
                 --allow {other} or with a wider --max-profile"
            ));
        }
        if plan.timeout_ms > self.max_timeout_ms {
            return Err(format!(
                "timeout of {} ms is longer than {} ms, the longest this launcher allows",
                plan.timeout_ms, self.max_timeout_ms
            ));
        }
        plan.limits.check_within(&self.ceiling)
    }

    fn allows(&self, wanted: &Destination) -> bool {
        self.destinations.iter().any(|allowed| allowed.covers(wanted))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::sandbox::plan::tests::plan;

    fn policy() -> Policy {
        Policy {
            max_profile: Profile::Net,
            destinations: Vec::new(),
            ceiling: Limits::CEILING,
            max_timeout_ms: 60_000,
            terminal: false,
        }
    }

    #[test]
    fn a_plan_within_the_policy_is_granted() {
        let mut plan = plan();
        plan.profile = Profile::Net;
        plan.timeout_ms = 60_000;
        assert_eq!(policy().check(&plan), Ok(()));
    }

    #[test]
    fn an_operators_profile_is_granted_by_its_file_but_admin_by_the_policy_alone() {
        let mut plan = plan();
        plan.defined = Some(ProfileName::new("db-audit").unwrap());
        plan.profile = Profile::Host;
        assert_eq!(policy().check(&plan), Ok(()));
        plan.profile = Profile::Admin;
        assert!(policy().check(&plan).unwrap_err().contains("db-audit is wider than net"));
        for profile in Profile::ALL.into_iter().chain([Profile::Admin]) {
            assert_eq!(profile.to_name().as_str(), profile.name());
            assert!(profile.to_name().is_built_in());
            assert_eq!(profile.name().parse(), Ok(profile));
        }
    }

    #[test]
    fn a_terminal_is_for_launchers_that_were_started_for_it() {
        let mut plan = plan();
        plan.terminal = true;
        assert!(Policy::default().check(&plan).unwrap_err().contains("no terminals"));
        assert_eq!(Policy { terminal: true, ..Policy::default() }.check(&plan), Ok(()));
    }

    #[test]
    fn more_than_the_policy_is_refused_with_the_value() {
        let mut wide = plan();
        wide.profile = Profile::Host;
        assert!(policy().check(&wide).unwrap_err().contains("wider than net"));
        let mut long = plan();
        long.timeout_ms = 60_001;
        assert!(policy().check(&long).unwrap_err().contains("60001 ms"));
        let mut strict = policy();
        strict.max_profile = Profile::Strict;
        let mut listed = plan();
        listed.destinations = Some(vec!["db:5432".parse().unwrap()]);
        assert!(strict.check(&listed).unwrap_err().contains("db:5432"));
        strict.destinations = vec!["db:5400-5500".parse().unwrap()];
        assert_eq!((strict.check(&listed), policy().check(&listed)), (Ok(()), Ok(())));
        let mut large = plan();
        large.limits.work_bytes = Limits::CEILING.work_bytes + 1;
        assert!(policy().check(&large).unwrap_err().contains("work_bytes"));
    }
}

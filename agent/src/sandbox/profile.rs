//! Profiles, and the policy that says which of them and how much a launcher grants.
#![forbid(unsafe_code)]

use super::plan::{Limits, Plan};
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
}

impl Profile {
    /// Every profile, tight ones first.
    pub const ALL: [Profile; 3] = [Profile::Strict, Profile::Net, Profile::Host];

    /// The name used everywhere outside the code.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Strict => "strict",
            Profile::Net => "net",
            Profile::Host => "host",
        }
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
        Profile::ALL
            .into_iter()
            .find(|p| p.name() == name)
            .ok_or_else(|| format!("no profile is called {name:?}; the profiles are strict, net and host"))
    }
}

/// What a launcher grants. Given when it starts; a plan that asks for more is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The widest profile allowed.
    pub max_profile: Profile,
    /// The largest value allowed for each limit.
    pub ceiling: Limits,
    /// The longest timeout allowed, in milliseconds.
    pub max_timeout_ms: u64,
}

impl Policy {
    /// Checks a well-formed plan against the policy; the message says which value is too much.
    pub fn check(&self, plan: &Plan) -> Result<(), String> {
        if plan.profile > self.max_profile {
            return Err(format!(
                "profile {} is wider than {}, the widest this launcher allows",
                plan.profile, self.max_profile
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
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::sandbox::plan::tests::plan;

    fn policy() -> Policy {
        Policy { max_profile: Profile::Net, ceiling: Limits::CEILING, max_timeout_ms: 60_000 }
    }

    #[test]
    fn a_plan_within_the_policy_is_granted() {
        let mut plan = plan();
        plan.profile = Profile::Net;
        plan.timeout_ms = 60_000;
        assert_eq!(policy().check(&plan), Ok(()));
    }

    #[test]
    fn more_than_the_policy_is_refused_with_the_value() {
        let mut wide = plan();
        wide.profile = Profile::Host;
        assert!(policy().check(&wide).unwrap_err().contains("wider than net"));
        let mut long = plan();
        long.timeout_ms = 60_001;
        assert!(policy().check(&long).unwrap_err().contains("60001 ms"));
        let mut large = plan();
        large.limits.work_bytes = Limits::CEILING.work_bytes + 1;
        assert!(policy().check(&large).unwrap_err().contains("work_bytes"));
    }
}

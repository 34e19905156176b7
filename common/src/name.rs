//! Names: zone, agent, pool, task, user (design section 12).
//!
//! A name is one subject token and one path part, so it is checked once, at the door, and from
//! then on the type is passed around.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{shown}\" is not a {what} name: use 1 to 63 of a-z, 0-9, '-' and '_', starting with a letter or digit"
)]
pub struct BadName {
    what: &'static str,
    shown: String,
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-' || *b == b'_';
    (1..=NAME_MAX).contains(&bytes.len()) && bytes.iter().all(inner) && bytes[0] != b'-' && bytes[0] != b'_'
}

/// Shortens and escapes a text that failed a check, so that it can be shown to a person.
pub fn show(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    cut.escape_default().to_string()
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks a text and makes it a name.
            pub fn new(text: &str) -> Result<Self, BadName> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { what: $what, shown: show(text) })
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(&text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a zone: an isolated network area.
    Zone, "zone"
);
name_type!(
    /// The name of an agent, unique within its zone and its own for life.
    Agent, "agent"
);
name_type!(
    /// The name of a pool of agents in a zone.
    Pool, "pool"
);
name_type!(
    /// The name of a stored task.
    TaskName, "task"
);
name_type!(
    /// The name of a person or program that submits.
    User, "user"
);
name_type!(
    /// The name of a level of isolation: one of [`ProfileName::BUILT_IN`], or one that an agent's operator defined.
    ProfileName, "profile"
);

impl ProfileName {
    /// The profiles that every agent knows, from tight to wide. Whether it allows them is another matter.
    pub const BUILT_IN: [&str; 4] = ["strict", "net", "host", "admin"];

    /// Whether every agent knows it.
    pub fn is_built_in(&self) -> bool {
        Self::BUILT_IN.contains(&self.as_str())
    }
}

impl Default for ProfileName {
    /// The tightest: what is meant where none is named.
    fn default() -> Self {
        Self(Self::BUILT_IN[0].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_token_and_one_path_part() {
        for good in ["a", "0", "local-1", "web_07", &"x".repeat(63)] {
            assert!(Agent::new(good).is_ok(), "{good}");
        }
        let too_long = "x".repeat(64);
        for bad in
            ["", "-a", "_a", "A", "a.b", "a/b", "..", "a b", "a*", ">", "a\n", "ä", too_long.as_str(), "a\0"]
        {
            assert!(Agent::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_by_the_parser_too() {
        assert!(serde_json::from_str::<Zone>("\"ok\"").is_ok());
        let error = serde_json::from_str::<Zone>("\"a.b\"").map_err(|e| e.to_string());
        assert!(error.is_err_and(|e| e.contains("not a zone name")));
    }
}

//! Profiles that an operator defines: a file that starts from a built-in profile and widens or narrows named things.
//!
//! The launcher reads them itself, from a folder that only it and root may write: an agent that lies can ask for one of
//! them by name, and for nothing that is in none of them.
//!
//! - this file: what a definition says. `read`: how it is written, with every problem of a file at once. `folder`: the
//!   folder of all of them, and what must be true on the host before one may be used.
#![forbid(unsafe_code)]

mod folder;
mod read;

pub use folder::{DefinitionProblem, Definitions, PROFILES_DIR};

use super::layer::Layer;
use super::network::Destination;
use super::plan::{Limits, Plan};
use super::profile::Profile;
use sally_common::name::ProfileName;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A profile that an operator defined.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileDefinition {
    /// Its name: that of its file.
    pub name: ProfileName,
    /// What it is for, in its operator's words.
    pub description: Option<String>,
    /// The built-in profile that it starts from.
    pub base: Profile,
    /// Paths of the host that are there inside besides those of the base, or are not, parents before children.
    pub paths: Vec<PathChange>,
    /// Device nodes besides the usual ones.
    pub devices: Vec<PathBuf>,
    /// All that its scripts may connect to; `None`: as the base has it.
    pub network_allow: Option<Vec<Destination>>,
    /// Where it starts from `host`: its scripts may make unix sockets, and so connect to those of the host's files.
    pub unix_sockets: bool,
    /// System calls by name that the base refuses and this one does not.
    pub allowed_calls: Vec<String>,
    /// System calls by name that the base allows and this one refuses.
    pub refused_calls: Vec<String>,
    /// Limits in the place of the agent's, by name.
    pub limits: Vec<(&'static str, u64)>,
    /// How fast it may use processors and disks.
    pub rates: Rates,
    /// Layers that every run in it requires.
    pub require: Vec<Layer>,
}

/// A path of the host, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PathChange {
    /// As the host and the script see it.
    pub path: PathBuf,
    /// What becomes of it.
    pub access: Access,
}

/// What a script may do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// It is there, read-only.
    Read,
    /// It is there, writable as far as the permissions of the script's uid go.
    Write,
    /// Something empty is in its place.
    Hide,
}

/// Rates that a control group holds a slot to. `None`: not held to any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// Processor time, in percent of one processor: 150 is one and a half.
    pub cpu_percent: Option<u64>,
    /// Bytes read from each disk in a second.
    pub read_bytes_per_s: Option<u64>,
    /// Bytes written to each disk in a second.
    pub write_bytes_per_s: Option<u64>,
    /// Reads of each disk in a second.
    pub reads_per_s: Option<u64>,
    /// Writes to each disk in a second.
    pub writes_per_s: Option<u64>,
}

impl Rates {
    /// Every rate with its name in a definition and its largest sensible value.
    pub fn named(&self) -> [(&'static str, Option<u64>, u64); 5] {
        [
            ("cpu_percent", self.cpu_percent, 100_000),
            ("read_bytes_per_s", self.read_bytes_per_s, 1 << 50),
            ("write_bytes_per_s", self.write_bytes_per_s, 1 << 50),
            ("reads_per_s", self.reads_per_s, 1 << 30),
            ("writes_per_s", self.writes_per_s, 1 << 30),
        ]
    }

    /// The rate of this name; `None` if there is none of it.
    pub(super) fn by_name(&mut self, name: &str) -> Option<&mut Option<u64>> {
        Some(match name {
            "cpu_percent" => &mut self.cpu_percent,
            "read_bytes_per_s" => &mut self.read_bytes_per_s,
            "write_bytes_per_s" => &mut self.write_bytes_per_s,
            "reads_per_s" => &mut self.reads_per_s,
            "writes_per_s" => &mut self.writes_per_s,
            _ => return None,
        })
    }

    /// Whether a disk is limited.
    pub fn limits_disks(&self) -> bool {
        *self != Rates { cpu_percent: self.cpu_percent, ..Rates::default() }
    }
}

/// What there is to know of a definition without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinedProfile {
    /// Its name.
    pub name: ProfileName,
    /// What it starts from.
    pub base: Profile,
    /// Why it cannot be used, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl ProfileDefinition {
    /// The plan as it is carried out in this profile.
    pub(super) fn apply(&self, plan: &mut Plan) {
        plan.limits = self.limits(plan.limits);
        plan.require.extend(self.require.iter().copied());
        if let Some(list) = &self.network_allow {
            plan.destinations = Some(list.clone());
        }
    }

    /// Those limits with the definition's own in their place.
    pub fn limits(&self, mut limits: Limits) -> Limits {
        for (name, value) in &self.limits {
            // Each was accepted by the same function when the definition was read.
            let _ = limits.set(name, *value);
        }
        limits
    }

    /// The paths of one kind.
    pub fn paths_to(&self, access: Access) -> impl Iterator<Item = &Path> {
        self.paths.iter().filter(move |change| change.access == access).map(|change| change.path.as_path())
    }

    /// Whether nothing but limits differs from the base.
    pub(super) fn changes_isolation(&self) -> bool {
        !(self.paths.is_empty()
            && self.devices.is_empty()
            && self.network_allow.is_none()
            && !self.unix_sockets
            && self.allowed_calls.is_empty()
            && self.refused_calls.is_empty())
    }
}

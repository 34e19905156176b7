//! What the processes outside keep: the connector what looking up names, accepting and forking take, a relay what carrying
//! bytes takes. Landlock for files, ports and signals, a system call filter of their own for the rest.
//!
//! A script's bytes pass through a relay and are read by nobody, so there is little to break. Whoever breaks it all the
//! same finds a process that can carry bytes between two sockets, and reach one port.
#![forbid(unsafe_code)]

use super::landlock;
use super::network::Target;
use super::seccomp::HelperFilters;
use super::step::{Step, StepError};
use nix::sys::prctl;
use std::fs;
use std::path::{Path, PathBuf};

const STEP: &str = "connector";

/// Where libraries find how to find a host, and themselves.
const FOR_NAMES: [&str; 5] = ["/etc", "/usr/lib", "/usr/lib64", "/lib", "/lib64"];

/// Files that may be links to other places, kept there by whoever manages the network.
const LINKED: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// The same for each relay of a connector.
pub(super) struct Confinement {
    filters: HelperFilters,
}

impl Confinement {
    /// Confines the connector for good, and all that it forks with it.
    pub(super) fn of_connector() -> Result<Self, StepError> {
        prctl::set_no_new_privs().step(STEP, "no new privileges")?;
        let filters = HelperFilters::new()?;
        landlock::confine(&readable(), None)?;
        filters.install_for_connector().step(STEP, "system call filter")?;
        Ok(Self { filters })
    }

    /// Confines a relay for good, once it has looked up its name: no file, no process, no port but its target's.
    pub(super) fn of_relay(&self, target: &Target) -> Result<(), StepError> {
        landlock::confine(&[], Some(target.port()))?;
        self.filters.install_for_relay().step(STEP, "system call filter")
    }
}

/// What must be read to look up a name, as far as this host has it. Folders, since files in them are replaced.
fn readable() -> Vec<PathBuf> {
    let linked = LINKED.iter().filter_map(|link| Some(fs::canonicalize(link).ok()?.parent()?.to_owned()));
    let mut all: Vec<PathBuf> = FOR_NAMES.iter().map(PathBuf::from).chain(linked).collect();
    // A link to somewhere in the root itself would open everything.
    all.retain(|path| path != Path::new("/"));
    all.dedup();
    all
}

#[cfg(test)]
#[path = "network_confine_tests.rs"]
mod tests;

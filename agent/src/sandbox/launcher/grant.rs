//! What a launcher grants: which kinds of plans it makes keepers for, and from what.
#![forbid(unsafe_code)]

use super::Launcher;
use crate::sandbox::account::Account;
use crate::sandbox::cgroup_group::Group;
use crate::sandbox::definition::ProfileDefinition;
use crate::sandbox::keeper::{self, Setup};
use crate::sandbox::plan::Limits;
use crate::sandbox::profile::{Policy, Profile, Shape};
use crate::sandbox::seccomp::Filters;
use crate::sandbox::wire::Mode;
use nix::unistd::{getegid, geteuid};
use std::sync::Arc;

impl Launcher {
    /// The kernel uid of a slot's scripts in the usual profiles.
    pub(super) fn uid_of(&self, slot: u16) -> u32 {
        match self.mode {
            Mode::Root => self.args.uid_base + u32::from(slot),
            Mode::User => geteuid().as_raw(),
        }
    }

    fn policy(&self) -> Policy {
        Policy {
            max_profile: self.args.max_profile,
            destinations: self.args.allow.clone(),
            ceiling: Limits::CEILING,
            max_timeout_ms: self.args.max_timeout.saturating_mul(1000),
            terminal: self.args.terminal,
        }
    }

    /// The definition and the account that a keeper of this kind needs, if this launcher makes such; the message says
    /// why not. Here the launcher decides: what an agent says beside a name counts for nothing.
    pub(super) fn parts(
        &self,
        shape: &Shape,
    ) -> Result<(Option<Arc<ProfileDefinition>>, Option<Account>), String> {
        let profile = shape.profile;
        self.policy().check_profile(shape)?;
        if profile == Profile::Admin && self.mode != Mode::Root {
            return Err("profile admin is root on the host: its launcher must be started as root".into());
        }
        let definition = match &shape.defined {
            None => None,
            Some(name) => {
                let definition = self.definitions.get(name)?;
                if definition.base != profile {
                    let base = definition.base;
                    return Err(format!(
                        "profile {name} starts from {base} here, not from {profile}: ask again"
                    ));
                }
                Some(definition.clone())
            }
        };
        let account = match &shape.user {
            None => None,
            Some(_) if profile == Profile::Admin => {
                return Err("profile admin is root: ask for an account in another profile".into());
            }
            Some(user) => Some(self.accounts.get(user)?.clone()),
        };
        Ok((definition, account))
    }

    /// What a keeper of this kind is made from.
    pub(super) fn setup(&self, slot: u16, shape: &Shape) -> Result<Setup, String> {
        let (definition, account) = self.parts(shape)?;
        let profile = shape.profile;
        let (uid, gid) = match (&account, profile, self.mode) {
            (Some(Account { uid, gid, .. }), ..) => (*uid, *gid),
            (None, Profile::Admin, _) => (0, 0),
            (None, _, Mode::Root) => (self.uid_of(slot), self.uid_of(slot)),
            (None, _, Mode::User) => (geteuid().as_raw(), getegid().as_raw()),
        };
        let own_list = definition.as_ref().is_some_and(|definition| definition.network_allow.is_some());
        if shape.listed && own_list {
            return Err(format!("profile {} has its own list of destinations", shape.name()));
        }
        let listed = shape.listed || own_list;
        let filters = Filters::new(profile, listed, definition.as_deref());
        Ok(Setup {
            slot,
            shape: shape.clone(),
            profile,
            account,
            listed,
            mode: self.mode,
            uid,
            gid,
            // Behind those of the slots.
            connector_uid: self.uid_of(slot).saturating_add(u32::from(self.args.slots)),
            policy: self.policy(),
            host_box: self.host_box.clone(),
            task_program: self.task_program.clone(),
            lock: keeper::lock_path(&self.args.state, slot),
            host: self.host,
            host_root_device: self.host_root_device,
            keeper_mount: 0,
            no_bounding: false,
            filters: filters.inspect_err(|error| tracing::error!("{error}")).ok(),
            definition,
            named_files: self.named_files,
            group: Group::default(),
            broken: self.args.broken.clone(),
        })
    }
}

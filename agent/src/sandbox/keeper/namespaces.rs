//! The keeper's own namespaces: a user namespace with its map, and with it mounts and network.
#![forbid(unsafe_code)]

use super::Setup;
use crate::sandbox::extras::Extras;
use crate::sandbox::layer::Layer;
use crate::sandbox::profile::Profile;
use crate::sandbox::step::{Step, StepError};
use crate::sandbox::sys::{self, Fork};
use crate::sandbox::wire::Mode;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, getgid, getpid, getuid, pipe2, read, setgroups, setresgid, setresuid, write,
};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;

/// Enters an own user namespace with its map, and with it own mount and (for `strict`, and with a list of
/// destinations) network namespaces.
/// Returns the program that is `sally-task`, and what an operator's profile names, opened in between: a bind needs it
/// from the new mount namespace, and the script's uid may not reach it.
pub(super) fn own_namespaces(setup: &Setup) -> Result<(OwnedFd, Extras), StepError> {
    // The launcher's memory is closed, and with it the files in which the map is written. Closed again by `build`.
    prctl::set_dumpable(true).step("user", "opening the map")?;
    let mut flags = CloneFlags::CLONE_NEWNS;
    if (setup.profile == Profile::Strict || setup.listed) && !setup.broken(Layer::Net) {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if setup.broken(Layer::User) {
        unshare(flags).step("user", "new namespaces without a user namespace")?;
        return open_sources(setup);
    }
    flags |= CloneFlags::CLONE_NEWUSER;
    match setup.mode {
        Mode::Root => {
            map_by_helper(setup, flags)?;
            let sources = open_sources(setup)?;
            let (uid, gid) = (Uid::from_raw(setup.uid), Gid::from_raw(setup.gid));
            let groups = setup.account.as_ref().map_or(&[][..], |account| &account.groups);
            let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
            setgroups(&groups).step("uid", "supplementary groups")?;
            sys::keep_capabilities_across_uids().step("uid", "keeping capabilities")?;
            setresgid(gid, gid, gid).step("uid", format!("becoming group {gid}"))?;
            setresuid(uid, uid, uid).step("uid", format!("becoming uid {uid}"))?;
            Ok(sources)
        }
        Mode::User => {
            let (uid, gid) = (getuid(), getgid());
            unshare(flags).map_err(explain_user_namespace)?;
            write_map("setgroups", None, "deny")?;
            write_map("uid_map", None, &format!("{} {uid} 1", setup.uid))?;
            write_map("gid_map", None, &format!("{} {gid} 1", setup.gid))?;
            open_sources(setup)
        }
    }
}

fn open_sources(setup: &Setup) -> Result<(OwnedFd, Extras), StepError> {
    Ok((open_task_program(setup)?, Extras::open(setup.definition.as_deref())?))
}

fn open_task_program(setup: &Setup) -> Result<OwnedFd, StepError> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let path = &setup.task_program;
    open(path, flags, nix::sys::stat::Mode::empty())
        .step("root", format!("sally-task from {}", path.display()))
}

/// Only a process outside the new user namespace may map other ids than its own: a short-lived helper.
fn map_by_helper(setup: &Setup, flags: CloneFlags) -> Result<(), StepError> {
    let keeper = getpid();
    let (wait, signal) = pipe2(OFlag::O_CLOEXEC).step("user", "pipe")?;
    match sys::fork().step("user", "forking a helper")? {
        Fork::Child => {
            drop(signal);
            let mut byte = [0];
            let told = read(&wait, &mut byte) == Ok(1);
            let groups = setup.account.as_ref().map_or(&[][..], |account| &account.groups);
            let written = told
                && write_map("uid_map", Some(keeper), &id_map(setup.profile, &[setup.uid])).is_ok()
                && write_map(
                    "gid_map",
                    Some(keeper),
                    &id_map(setup.profile, &[&[setup.gid], groups].concat()),
                )
                .is_ok();
            sys::exit_now(if written { 0 } else { 1 })
        }
        Fork::Parent(helper) => {
            let unshared = unshare(flags).map_err(explain_user_namespace);
            if unshared.is_ok() {
                write(&signal, b"u").step("user", "telling the helper")?;
            }
            drop(signal);
            let ended = waitpid(helper, None).step("user", "waiting for the helper")?;
            unshared?;
            if ended != WaitStatus::Exited(helper, 0) {
                let message =
                    format!("uid {} could not be mapped: is the launcher really root here?", setup.uid);
                return Err(StepError::other("user", message));
            }
            Ok(())
        }
    }
}

/// The map of a user namespace: each id is itself.
fn id_map(profile: Profile, ids: &[u32]) -> String {
    /// The ids of accounts: in `host` the owners of the host's files are to be seen as they are.
    const ACCOUNTS: u32 = 65_536;
    let all = profile == Profile::Host;
    let ids: BTreeSet<u32> = ids.iter().copied().filter(|id| !all || *id >= ACCOUNTS).collect();
    let ranges = all.then(|| format!("0 0 {ACCOUNTS}"));
    let lines: Vec<String> = ranges.into_iter().chain(ids.iter().map(|id| format!("{id} {id} 1"))).collect();
    lines.join("\n")
}

fn write_map(name: &str, pid: Option<Pid>, text: &str) -> Result<(), StepError> {
    let process = pid.map_or("self".into(), |pid| pid.to_string());
    let path = format!("/proc/{process}/{name}");
    fs::write(&path, text).step("user", path)
}

fn explain_user_namespace(errno: Errno) -> StepError {
    let hint = match errno {
        Errno::ENOSPC => "; raise the sysctl user.max_user_namespaces (0 forbids them)",
        Errno::EPERM | Errno::EACCES => {
            "; this host forbids user namespaces: see kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, or the container's settings"
        }
        _ => "",
    };
    let mut error = StepError::new("user", errno, "new user namespace");
    error.message.push_str(hint);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_once_and_to_itself() {
        assert_eq!(id_map(Profile::Strict, &[200_001]), "200001 200001 1");
        assert_eq!(id_map(Profile::Net, &[1000, 4, 1000]), "4 4 1\n1000 1000 1");
        assert_eq!(id_map(Profile::Host, &[1000]), "0 0 65536");
        assert_eq!(id_map(Profile::Host, &[200_001, 27]), "0 0 65536\n200001 200001 1");
    }
}

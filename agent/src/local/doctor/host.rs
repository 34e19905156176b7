//! What the kernel and its settings say about sandboxes.
#![forbid(unsafe_code)]

use std::fs;

use nix::unistd::geteuid;

use super::Finding;
use crate::sandbox::{UID_BASE, WHOLE_LANDLOCK, landlock_abi};

/// The oldest kernel on which everything here is known to work.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// The file in which this page's settings survive a restart.
const SYSCTL_FILE: &str = "/etc/sysctl.d/60-sally.conf";

/// What was read of this host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this process is root.
    pub root: bool,
    /// The kernel's release.
    pub kernel: String,
    /// `kernel.unprivileged_userns_clone`, where the kernel has it.
    pub userns_clone: Option<String>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, where the kernel has it.
    pub apparmor: Option<String>,
    /// `user.max_user_namespaces`.
    pub max_userns: Option<String>,
    /// `kernel.seccomp.actions_avail`; `None` where the kernel has no filters.
    pub seccomp: Option<String>,
    /// The version of landlock, 0 if none.
    pub landlock: u32,
    /// `/proc/self/mountinfo`.
    pub mounts: String,
    /// `/proc/self/cgroup`.
    pub groups: String,
    /// The controllers of the own group in version 2.
    pub controllers: Option<String>,
    /// `/proc/self/uid_map`.
    pub uid_map: String,
    /// `/etc/passwd`.
    pub accounts: String,
    /// `/etc/subuid`.
    pub subuids: String,
}

impl Facts {
    /// Reads them. What cannot be read is as if it were not there.
    pub fn read() -> Facts {
        let text = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let sysctl = |name: &str| text(&format!("/proc/sys/{name}"));
        let (mounts, groups) = (text("/proc/self/mountinfo"), text("/proc/self/cgroup"));
        let (mounts, groups) = (mounts.unwrap_or_default(), groups.unwrap_or_default());
        let own = v2_point(&mounts).zip(groups.lines().find_map(|line| line.strip_prefix("0::")));
        let controllers = own.and_then(|(point, group)| text(&format!("{point}{group}/cgroup.controllers")));
        Facts {
            root: geteuid().is_root(),
            kernel: sysctl("kernel/osrelease").unwrap_or_default(),
            userns_clone: sysctl("kernel/unprivileged_userns_clone"),
            apparmor: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
            max_userns: sysctl("user/max_user_namespaces"),
            seccomp: sysctl("kernel/seccomp/actions_avail"),
            landlock: landlock_abi(),
            mounts,
            groups,
            controllers,
            uid_map: text("/proc/self/uid_map").unwrap_or_default(),
            accounts: text("/etc/passwd").unwrap_or_default(),
            subuids: text("/etc/subuid").unwrap_or_default(),
        }
    }
}

/// Every line about the host. `works` says whether a sandbox could be made in spite of what a setting says.
pub fn findings(facts: &Facts, works: bool) -> Vec<Finding> {
    let mode = if facts.root {
        "root: each slot has a kernel uid of its own"
    } else {
        "user: scripts share this account's kernel uid; namespaces stand between them and the agent"
    };
    let mut all = vec![Finding::pass("mode", mode), kernel(facts)];
    all.extend(user_namespaces(facts, works));
    all.extend([seccomp(facts), landlock(facts)]);
    if facts.root {
        all.push(uids(facts));
    }
    all
}

fn kernel(facts: &Facts) -> Finding {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let found = facts.kernel.clone();
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST_KERNEL => Finding::warn(
            "kernel",
            found,
            format!(
                "Linux {}.{} is the oldest that is tried; boot a newer one",
                OLDEST_KERNEL.0, OLDEST_KERNEL.1
            ),
        ),
        _ => Finding::pass("kernel", found),
    }
}

fn set(name: &str, value: &str) -> String {
    format!("as root: sysctl -w {name}={value}; to keep it: echo '{name} = {value}' >> {SYSCTL_FILE}")
}

/// The settings by which hosts forbid user namespaces. One that forbids them is a failure only if it really does.
fn user_namespaces(facts: &Facts, works: bool) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut forbids = |name: &str, value: &str, next: String| {
        let found = format!("{name} = {value}");
        all.push(if works {
            Finding::pass("user namespaces", format!("{found}, and yet a sandbox can be made"))
        } else {
            Finding::fail("user namespaces", found, next)
        });
    };
    if let Some(value) = facts.max_userns.as_deref().filter(|value| *value == "0") {
        forbids("user.max_user_namespaces", value, set("user.max_user_namespaces", "15000"));
    }
    if !facts.root {
        if let Some(value) = facts.userns_clone.as_deref().filter(|value| *value == "0") {
            forbids("kernel.unprivileged_userns_clone", value, set("kernel.unprivileged_userns_clone", "1"));
        }
        if let Some(value) = facts.apparmor.as_deref().filter(|value| *value != "0") {
            let name = "kernel.apparmor_restrict_unprivileged_userns";
            forbids(name, value, format!("{}\n{}", apparmor_profile(), set(name, "0")));
        }
    }
    if all.is_empty() {
        all.push(if works {
            Finding::pass("user namespaces", "allowed")
        } else {
            Finding::warn(
                "user namespaces",
                "no known setting forbids them",
                "the lines about profiles say which step failed; in a container its runtime may forbid it",
            )
        });
    }
    all
}

fn apparmor_profile() -> String {
    let program = std::env::current_exe().map_or("PATH".into(), |path| path.display().to_string());
    format!(
        "for this program alone: put `abi <abi/4.0>, profile sally-agent {program} flags=(unconfined) {{ userns, }}` \
         into /etc/apparmor.d/sally-agent, then apparmor_parser -r /etc/apparmor.d/sally-agent; or for every program:"
    )
}

fn seccomp(facts: &Facts) -> Finding {
    match &facts.seccomp {
        Some(actions) if actions.split_whitespace().any(|word| word == "errno") => {
            Finding::pass("seccomp", "the kernel filters system calls")
        }
        _ => Finding::fail(
            "seccomp",
            "the kernel filters no system calls",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y",
        ),
    }
}

fn landlock(facts: &Facts) -> Finding {
    match facts.landlock {
        0 => Finding::warn(
            "landlock",
            "the kernel has none: mounts and namespaces stand without a second wall",
            "boot Linux 6.12 or later with CONFIG_SECURITY_LANDLOCK=y and landlock in the list of the boot option lsm=",
        ),
        abi if abi < WHOLE_LANDLOCK => Finding::warn(
            "landlock",
            format!("version {abi}: files are guarded, newer rights are not (docs/sandbox.md, Layers)"),
            format!("boot Linux 6.12 or later, which has version {WHOLE_LANDLOCK}"),
        ),
        abi => Finding::pass("landlock", format!("version {abi}")),
    }
}

/// Whether the uids of slots exist here and are nobody else's.
fn uids(facts: &Facts) -> Finding {
    // The most slots that a launcher has.
    let (first, last) = (u64::from(UID_BASE), u64::from(UID_BASE) + 1023);
    let found = format!("{first} to {last} for slots");
    let numbers = |line: &str| -> Option<(u64, u64)> {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (start, _, count) = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
        Some((start, start.saturating_add(count)))
    };
    if !facts.uid_map.lines().filter_map(numbers).any(|(start, end)| start <= first && last < end) {
        return Finding::fail(
            "uids",
            format!("{found}: they do not exist in this user namespace (/proc/self/uid_map)"),
            "give the container more uids, or start the launcher with --uid-base and a range that exists",
        );
    }
    let account = facts.accounts.lines().find(|line| {
        line.split(':')
            .nth(2)
            .and_then(|uid| uid.parse::<u64>().ok())
            .is_some_and(|uid| (first..=last).contains(&uid))
    });
    let range = facts.subuids.lines().find(|line| {
        let mut words = line.split(':').skip(1).map(str::parse::<u64>);
        matches!((words.next(), words.next()), (Some(Ok(start)), Some(Ok(count)))
            if start <= last && first < start.saturating_add(count))
    });
    match account.map(|line| ("/etc/passwd", line)).or(range.map(|line| ("/etc/subuid", line))) {
        None => Finding::pass("uids", found),
        Some((file, line)) => {
            let owner = line.split(':').next().unwrap_or_default();
            Finding::warn(
                "uids",
                format!("{found}: {file} gives some of them to {owner}"),
                "start the launcher with --uid-base and a range that is nobody's",
            )
        }
    }
}

/// What would let scripts have control groups, where they have none.
pub fn cgroup_remedy(facts: &Facts) -> String {
    let has_v1 = facts.mounts.lines().any(|line| line.contains(" - cgroup ") && line.contains("memory"));
    match (&facts.controllers, has_v1) {
        (_, true) if !facts.root => {
            "control groups of version 1 are made by root alone: run the launcher as root, or boot with \
             systemd.unified_cgroup_hierarchy=1 and give it a unit of its own with Delegate=yes"
                .to_owned()
        }
        (_, true) => "the hierarchies of version 1 cannot be written here: in a container they must be mounted \
                      writable"
            .to_owned(),
        (Some(offered), _) if !offered.is_empty() => {
            let missing: Vec<_> =
                ["memory", "pids", "cpu"].into_iter().filter(|c| !offered.split(' ').any(|o| o == *c)).collect();
            if missing.is_empty() {
                "the group of this shell holds other processes, so it cannot be divided: the launcher needs a unit of its \
                 own with Delegate=yes (the line launcher says what a running one has; systemd-run --wait --pipe \
                 --property=Delegate=yes sally-agent doctor says what one would have)"
                    .to_owned()
            } else {
                format!(
                    "the group of this process lacks {}: give the launcher a unit of its own with Delegate=yes; for an \
                     ordinary user, in /etc/systemd/system/user@.service.d/delegate.conf: [Service] Delegate=memory pids cpu",
                    missing.join(", ")
                )
            }
        }
        _ => "mount control groups (mount -t cgroup2 none /sys/fs/cgroup) and give the launcher a unit of its own with \
              Delegate=yes"
            .to_owned(),
    }
}

/// Where version 2 is mounted.
fn v2_point(mounts: &str) -> Option<&str> {
    mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn good() -> Facts {
        Facts {
            root: false,
            kernel: "6.12.1-amd64".into(),
            userns_clone: Some("1".into()),
            apparmor: Some("0".into()),
            max_userns: Some("1000".into()),
            seccomp: Some("kill_process errno allow".into()),
            landlock: 6,
            uid_map: "         0          0 4294967295".into(),
            ..Facts::default()
        }
    }

    fn worst(facts: &Facts, works: bool) -> Level {
        findings(facts, works).iter().map(|finding| finding.level).max().unwrap_or(Level::Pass)
    }

    fn failing(facts: &Facts, words: &str) {
        let all = findings(facts, false);
        let found = all.iter().find(|f| f.level == Level::Fail).expect("a failure");
        assert!(found.next.as_ref().is_some_and(|next| next.contains(words)), "{found:?}");
        assert_eq!(worst(facts, true), Level::Pass, "what was tried decides");
    }

    #[test]
    fn a_good_host_passes() {
        assert_eq!(worst(&good(), true), Level::Pass);
        assert_eq!(worst(&Facts { root: true, ..good() }, true), Level::Pass);
    }

    #[test]
    fn a_setting_that_forbids_is_named_with_its_remedy() {
        failing(
            &Facts { userns_clone: Some("0".into()), ..good() },
            "sysctl -w kernel.unprivileged_userns_clone=1",
        );
        failing(&Facts { max_userns: Some("0".into()), ..good() }, "user.max_user_namespaces=15000");
        let apparmor = Facts { apparmor: Some("1".into()), ..good() };
        failing(&apparmor, "kernel.apparmor_restrict_unprivileged_userns=0");
        failing(&apparmor, "/etc/apparmor.d/sally-agent");
        let root = Facts { root: true, userns_clone: Some("0".into()), ..good() };
        assert_ne!(worst(&root, false), Level::Fail, "the setting is not for root");
    }

    #[test]
    fn less_than_there_could_be_is_a_warning() {
        for facts in [
            Facts { landlock: 0, ..good() },
            Facts { landlock: 5, ..good() },
            Facts { kernel: "5.10.0".into(), ..good() },
            Facts { root: true, subuids: "eve:165536:65536".into(), ..good() },
            Facts { root: true, accounts: "eve:x:200003:1::/:/bin/sh".into(), ..good() },
        ] {
            assert_eq!(worst(&facts, true), Level::Warn, "{facts:?}");
        }
        assert_eq!(worst(&Facts { seccomp: None, ..good() }, true), Level::Fail);
        let container = Facts { root: true, uid_map: "0 100000 65536".into(), ..good() };
        assert_eq!(worst(&container, true), Level::Fail);
    }

    #[test]
    fn control_groups_have_a_remedy_for_each_kind_of_host() {
        let v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory".to_owned();
        let remedy = |change: Facts| cgroup_remedy(&change);
        assert!(remedy(Facts { mounts: v1, ..good() }).contains("as root"));
        let offered = |list: &str| Facts { controllers: Some(list.into()), ..good() };
        assert!(remedy(offered("cpu memory")).contains("lacks pids"));
        assert!(remedy(offered("cpu memory pids")).contains("Delegate=yes"));
        assert!(remedy(good()).contains("mount -t cgroup2"));
    }
}

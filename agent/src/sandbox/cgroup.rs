//! Control groups: found and made by the launcher, one for each slot; joined by the slot's forker, in which attempts are born;
//! limited, read and watched by the keeper through descriptors that the launcher opened. Nothing below the
//! launcher could open them itself, and the script has none.
//!
//! Version 2 where the launcher's group has the controller and is its own (`Delegate=yes`), version 1 where the
//! host has that; `cgroup_group` works in one group, this file in the hierarchy.
#![forbid(unsafe_code)]

use super::cgroup_group::Group;
use super::cgroup_rates;
use super::definition::Rates;
use super::layer::Hold;
use nix::unistd::{Pid, getpid};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a slot's group can limit and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
    /// Rates of disks; used in version 2 alone, where written pages count too.
    Io,
    /// Version 1 counts processor time in a hierarchy of its own.
    CpuAccount,
}

impl Controller {
    const ALL: [Controller; 5] =
        [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Io, Controller::CpuAccount];

    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Cpu => "cpu",
            Controller::Io => "io",
            Controller::CpuAccount => "cpuacct",
        }
    }
}

/// Where the groups of this launcher's slots are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// One folder with these controllers.
    V2(PathBuf, Vec<Controller>),
    /// A folder for each controller.
    V1(Vec<(Controller, PathBuf)>),
    /// There is none; the words say why, for the log.
    Nowhere(String),
}

/// The leaf into which a launcher of a delegated group moves: only leaves may have processes.
const LEAF: &str = "launcher";

/// The parents' name in version 1 begins so, followed by who made it: process id and time of start.
const PREFIX: &str = "sally-";

/// One mounted hierarchy, as `/proc/self/mountinfo` tells.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    v2: bool,
    /// The group at the mount point.
    root: String,
    point: PathBuf,
    controllers: String,
}

impl Parent {
    /// Looks for groups that this process may make, makes the parent, and removes what dead launchers left. `starter` is the
    /// process that lives with this one: a group that nobody but the two is in can be divided all the same.
    pub(super) fn find(started: &str, starter: Option<Pid>) -> Parent {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounts = mounts(&read("/proc/self/mountinfo"));
        let own = read("/proc/self/cgroup");
        let v2 =
            mounts.iter().find(|mount| mount.v2).and_then(|mount| Some(own_folder(mount, own_v2(&own)?)));
        let v2 = v2.map(|folder| delegated(&folder).to_owned());
        let mut why = "this host has no control groups".to_owned();
        if let Some(folder) = v2 {
            match take_delegated(&folder, starter) {
                Ok(controllers) if !controllers.is_empty() => return Parent::V2(folder, controllers),
                Ok(_) => why = format!("{} has none of memory, pids and cpu", folder.display()),
                Err(error) => why = error,
            }
        }
        let mut parents = Vec::new();
        for controller in Controller::ALL {
            let Some((mount, path)) = hierarchy(&mounts, &own, controller) else { continue };
            let folder = own_folder(mount, path);
            remove_strays(&folder);
            let parent = folder.join(format!("{PREFIX}{}-{started}", getpid()));
            match fs::create_dir(&parent) {
                Ok(()) => parents.push((controller, parent)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    parents.push((controller, parent))
                }
                Err(error) => why = format!("cannot make {}: {error}", parent.display()),
            }
        }
        if parents.is_empty() { Parent::Nowhere(why) } else { Parent::V1(parents) }
    }

    /// Opens the group of a slot for its keeper, making it if need be. What cannot be had is left out of it.
    ///
    /// The rates are set here, for as long as the keeper lives: an attempt has nothing to do about them.
    pub(super) fn open(&self, slot: u16, rates: &Rates) -> Group {
        let name = format!("slot-{slot}");
        match self {
            Parent::V2(folder, controllers) => {
                let folder = folder.join(name);
                let group = Group::open_v2(&folder, controllers);
                let has = |controller| controllers.contains(&controller);
                let io = has(Controller::Io)
                    .then(|| cgroup_rates::set_disks(&folder, rates, &cgroup_rates::disks()));
                let quota =
                    has(Controller::Cpu).then(|| cgroup_rates::set_quota_v2(&folder, rates.cpu_percent));
                group.with_rates(rates, quota.unwrap_or(false), io.unwrap_or(Hold::Absent))
            }
            Parent::V1(parents) => {
                let folders: Vec<_> =
                    parents.iter().map(|(controller, parent)| (*controller, parent.join(&name))).collect();
                let group = Group::open_v1(&folders);
                let cpu = folders.iter().find(|(controller, _)| *controller == Controller::Cpu);
                let quota =
                    cpu.is_some_and(|(_, folder)| cgroup_rates::set_quota_v1(folder, rates.cpu_percent));
                group.with_rates(rates, quota, Hold::Absent)
            }
            Parent::Nowhere(_) => Group::default().with_rates(rates, false, Hold::Absent),
        }
    }

    /// Removes what dead launchers left, as far as nothing runs in it any more.
    pub(super) fn sweep(&self) {
        let Parent::V1(parents) = self else { return };
        parents.iter().filter_map(|(_, folder)| folder.parent()).for_each(remove_strays);
    }

    /// Removes the groups of slots and the parent. One in which something still runs stays: the next launcher on
    /// this host removes it. Returns whether all are gone.
    pub(super) fn remove(&self, slots: u16) -> bool {
        let folders: Vec<&Path> = match self {
            Parent::V2(folder, _) => vec![folder],
            Parent::V1(parents) => parents.iter().map(|(_, folder)| folder.as_path()).collect(),
            Parent::Nowhere(_) => Vec::new(),
        };
        let gone = |folder: &Path| match fs::remove_dir(folder) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        let mut all = true;
        for folder in folders {
            for slot in 0..slots {
                all &= gone(&folder.join(format!("slot-{slot}")));
            }
            all &= matches!(self, Parent::V2(..)) || gone(folder);
        }
        all
    }
}

/// The group that is the launcher's to divide: its own, or the one above if it is already in the leaf. A service manager
/// that can (`DelegateSubgroup=launcher`) starts it there, so that it can start again beside runs that go on.
fn delegated(own: &Path) -> &Path {
    match (own.file_name(), own.parent()) {
        (Some(name), Some(above)) if name == LEAF => above,
        _ => own,
    }
}

/// Makes the launcher's own group one that can have children with limits: moves the launcher, and who started it to
/// live with it, into a leaf and hands the controllers down. If others are in the group it is not ours alone, and
/// nothing is moved or everything is put back.
fn take_delegated(folder: &Path, starter: Option<Pid>) -> Result<Vec<Controller>, String> {
    let failed =
        |what: &str, path: &Path, error: io::Error| format!("cannot {what} {}: {error}", path.display());
    let list = folder.join("cgroup.controllers");
    let offered = fs::read_to_string(&list).map_err(|e| failed("read", &list, e))?;
    let controllers = offered_of(&offered);
    if controllers.is_empty() {
        return Ok(controllers);
    }
    let outside = folder.join("cgroup.procs");
    let inhabitants = fs::read_to_string(&outside).map_err(|e| failed("read", &outside, e))?;
    let family = family_of(&inhabitants, getpid(), starter)
        .map_err(|other| not_alone(folder, &format!("process {other} is in it too")))?;
    let leaf = folder.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make", &leaf, error));
        }
        _ => {}
    }
    let inside = leaf.join("cgroup.procs");
    let put_back = || {
        for pid in &family {
            let _ = fs::write(&outside, pid.to_string());
        }
        let _ = fs::remove_dir(&leaf);
    };
    for pid in &family {
        if let Err(error) = fs::write(&inside, pid.to_string()) {
            put_back();
            return Err(failed("move into", &leaf, error));
        }
    }
    let down: Vec<_> = controllers.iter().map(|c| format!("+{}", c.name())).collect();
    if let Err(error) = fs::write(folder.join("cgroup.subtree_control"), down.join(" ")) {
        put_back();
        return Err(not_alone(folder, &error.to_string()));
    }
    Ok(controllers)
}

fn not_alone(folder: &Path, why: &str) -> String {
    format!(
        "cannot hand controllers down in {}: {why}; start the launcher as a unit of its own with Delegate=yes",
        folder.display()
    )
}

/// Those of a group's inhabitants that belong together: this process and, if it is there, who started it. An error
/// names another one; 0 is one that this process cannot see.
fn family_of(inhabitants: &str, own: Pid, starter: Option<Pid>) -> Result<Vec<Pid>, i32> {
    let mut family = Vec::new();
    for word in inhabitants.split_whitespace() {
        let pid = Pid::from_raw(word.parse().unwrap_or(0));
        if pid != own && Some(pid) != starter {
            return Err(pid.as_raw());
        }
        family.push(pid);
    }
    Ok(family)
}

/// The controllers of version 2 that are of use here.
fn offered_of(list: &str) -> Vec<Controller> {
    let offered =
        |c: &Controller| *c != Controller::CpuAccount && list.split_whitespace().any(|w| w == c.name());
    Controller::ALL.into_iter().filter(offered).collect()
}

/// Removes groups of launchers that are dead. Where something still runs the kernel refuses.
fn remove_strays(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| is_stray(name, super::keeper::started_at)) {
            for slot in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(slot.path());
            }
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Whether a group's name is of a launcher that is gone. `started` tells when a living process started.
fn is_stray(name: &str, started: impl Fn(&str) -> Option<String>) -> bool {
    let Some((pid, at)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    number(pid) && number(at) && started(pid).as_deref() != Some(at)
}

fn mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount).collect()
}

/// One line of `mountinfo`: the fields before ` - ` and those after it.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?.to_owned(), PathBuf::from(before.next()?));
    let mut after = after.split(' ');
    let v2 = match after.next()? {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    Some(Mount { v2, root, point, controllers: after.nth(1)?.to_owned() })
}

/// The path of the own group in version 2.
fn own_v2(own: &str) -> Option<&str> {
    own.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The hierarchy of version 1 that has a controller, and the path of the own group in it.
fn hierarchy<'a>(mounts: &'a [Mount], own: &'a str, controller: Controller) -> Option<(&'a Mount, &'a str)> {
    let has = |list: &str| list.split(',').any(|word| word == controller.name());
    let mount = mounts.iter().find(|mount| !mount.v2 && has(&mount.controllers))?;
    let path = own.lines().find_map(|line| {
        let (list, path) = line.split_once(':')?.1.split_once(':')?;
        has(list).then_some(path)
    })?;
    Some((mount, path))
}

/// Where a group's folder is: the mount may show only a part of the hierarchy.
fn own_folder(mount: &Mount, path: &str) -> PathBuf {
    let below = path.strip_prefix(mount.root.as_str()).unwrap_or(path);
    mount.point.join(below.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    const HYBRID: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        23 1 0:22 / / rw - ext4 /dev/vda rw\n";

    #[test]
    fn a_launcher_that_begins_in_the_leaf_divides_the_group_above() {
        let unit = Path::new("/sys/fs/cgroup/system.slice/sally-launcher.service");
        assert_eq!(delegated(&unit.join(LEAF)), unit);
        assert_eq!(delegated(unit), unit);
    }

    #[test]
    fn the_own_group_is_found_in_each_hierarchy() {
        let mounts = mounts(HYBRID);
        assert_eq!(mounts.len(), 3);
        let own = "4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/u\n";
        let find =
            |controller| hierarchy(&mounts, own, controller).map(|(mount, path)| own_folder(mount, path));
        assert_eq!(find(Controller::Memory), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(find(Controller::Cpu), Some("/sys/fs/cgroup/cpu,cpuacct/c".into()));
        assert_eq!(find(Controller::CpuAccount), find(Controller::Cpu));
        assert_eq!(find(Controller::Pids), None);
        assert_eq!(own_folder(&mounts[2], own_v2(own).unwrap()), Path::new("/sys/fs/cgroup/unified/u"));
    }

    #[test]
    fn a_mount_that_shows_a_part_is_understood() {
        let line = "1 2 0:3 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let mount = mount(line).unwrap();
        assert_eq!(own_folder(&mount, "/docker/x/y"), Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(own_folder(&mount, "/docker/x"), Path::new("/sys/fs/cgroup/memory/"));
    }

    #[test]
    fn only_groups_of_dead_launchers_are_strays() {
        let started = |pid: &str| (pid == "10").then(|| "77".to_owned());
        assert!(!is_stray("sally-10-77", started));
        assert!(is_stray("sally-10-78", started));
        assert!(is_stray("sally-11-77", started));
        for name in ["sally-10", "sally-x-1", "sally--1", "other-11-77", "sally-11-77x"] {
            assert!(!is_stray(name, started), "{name}");
        }
    }

    #[test]
    fn a_group_is_divided_for_a_launcher_and_who_lives_with_it_alone() {
        let [launcher, doctor] = [20, 10].map(Pid::from_raw);
        assert_eq!(family_of("20\n", launcher, None), Ok(vec![launcher]));
        assert_eq!(family_of("20\n", launcher, Some(doctor)), Ok(vec![launcher]));
        assert_eq!(family_of("10\n20\n", launcher, Some(doctor)), Ok(vec![doctor, launcher]));
        assert_eq!(family_of("10\n20\n", launcher, None), Err(10));
        assert_eq!(family_of("10\n20\n30\n", launcher, Some(doctor)), Err(30));
        // Somebody of another pid namespace.
        assert_eq!(family_of("0\n20\n", launcher, Some(doctor)), Err(0));
    }

    #[test]
    fn of_version_two_only_what_is_of_use_is_taken() {
        let all = [Controller::Memory, Controller::Pids, Controller::Cpu, Controller::Io];
        assert_eq!(offered_of("cpuset cpu io memory hugetlb pids\n"), all);
        assert_eq!(offered_of("hugetlb\n"), []);
    }
}

//! Limits on this kernel: which one ended a run or was met by it, and what the run used. Started as `sandbox.rs`
//! starts its launchers; with control groups where this host gives them to the launcher, else without.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::{Ended, Host, eventually, in_both, plan, skipped_aloud_because};
use sally_agent::sandbox::{Hold, Layer, LimitHit, LimitName, Mode, Outcome, RunInputs};
use std::fs;
use std::time::{Duration, Instant};

const MIB: u64 = 1024 * 1024;

fn has(ended: &Ended, layer: Layer) -> bool {
    ended.record.layers[&layer] == Hold::Enforced
}

fn ended_by(limit: LimitName) -> Option<LimitHit> {
    Some(LimitHit { limit, ended: true })
}

fn met(limit: LimitName) -> Option<LimitHit> {
    Some(LimitHit { limit, ended: false })
}

/// Where each launcher has a unit, no other test of this file may take the way of a host without groups.
#[test]
fn in_a_unit_of_its_own_a_launcher_has_whole_groups() {
    in_both(async |mode| {
        if !host::in_units() {
            return skipped_aloud_because(mode, "launchers are not started in units here (make guest does)");
        }
        let ended = Host::start(mode, &[]).await.sh("cat /proc/self/cgroup").await;
        for layer in [Layer::Cgroup, Layer::CgroupMemory, Layer::CgroupPids, Layer::CgroupCpu] {
            assert_eq!(ended.record.layers[&layer], Hold::Enforced, "{layer:?} as {mode:?}");
        }
        assert!(ended.ok().starts_with("0::/"), "not version 2: {}", ended.stdout);
    });
}

#[test]
fn memory_beyond_the_limit_ends_the_whole_tree() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        // The shell would live on if only the process that the kernel picks were killed.
        for text in ["exec tail /dev/zero", "tail /dev/zero; echo went on", "tail /dev/zero & wait; sleep 60"]
        {
            let mut plan = plan(text);
            plan.limits.memory_bytes = 64 * MIB;
            let ended = host.run(&plan, RunInputs::default()).await;
            if !has(&ended, Layer::CgroupMemory) {
                skipped_aloud_because(mode, "no memory group: the tree as a whole is not limited");
                // Each process is: it is told that there is no more, and says so.
                assert!(
                    ended.stderr.contains("memory exhausted"),
                    "{text}: {:?} {}",
                    ended.record,
                    ended.stderr
                );
                return;
            }
            assert_eq!(ended.record.outcome, Outcome::Signaled { signal: 9 }, "{text}");
            assert_eq!(ended.record.limit, ended_by(LimitName::Memory), "{text}");
            assert_eq!(ended.stdout, "", "{text}");
            let usage = ended.record.usage;
            assert!(
                usage.memory_of_tree && (48 * MIB..=64 * MIB).contains(&usage.memory_peak_bytes),
                "{usage:?}"
            );
        }
        // The next attempt in the slot is not held to what the bomb did.
        let ended = host.sh("true").await;
        assert_eq!((ended.ok(), ended.record.limit), ("", None));
        assert!(ended.record.usage.memory_peak_bytes < 32 * MIB, "{:?}", ended.record.usage);
    });
}

#[test]
fn files_in_the_box_are_memory_of_the_run() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = plan("head -c 200000000 /dev/zero > file; echo kept");
        plan.limits.memory_bytes = 64 * MIB;
        let ended = host.run(&plan, RunInputs::default()).await;
        if has(&ended, Layer::CgroupMemory) {
            assert_eq!(ended.record.limit, ended_by(LimitName::Memory));
        } else {
            assert_eq!(ended.ok(), "kept\n");
        }
        let ended = host.sh("head -c 20000000 /dev/zero > file").await;
        assert_eq!(ended.ok(), "");
        let usage = ended.record.usage;
        assert!(!usage.memory_of_tree || usage.memory_peak_bytes >= 20_000_000, "{usage:?}");
    });
}

#[test]
fn processor_time_is_that_of_the_tree() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = plan("while :; do :; done & while :; do :; done");
        plan.limits.cpu_ms = 1000;
        let begun = Instant::now();
        let ended = host.run(&plan, RunInputs::default()).await;
        assert_eq!(ended.record.limit, ended_by(LimitName::Cpu), "{:?}", ended.record);
        if has(&ended, Layer::CgroupCpu) {
            assert_eq!(ended.record.outcome, Outcome::Signaled { signal: 15 });
            assert!((1000..2500).contains(&ended.record.usage.cpu_ms), "{:?}", ended.record.usage);
        } else {
            assert_eq!(ended.record.outcome, Outcome::Signaled { signal: 24 });
        }
        assert!(begun.elapsed() < Duration::from_secs(12));
        let quiet = host.sh("sleep 0.2").await.record;
        // On the emulated processor of a guest the shell alone takes 150; the attempt before used 1000 and more.
        let most = if host::in_units() { 900 } else { 150 };
        assert!(quiet.limit.is_none() && quiet.usage.cpu_ms < most, "{:?}", quiet.usage);
    });
}

#[test]
fn processes_beyond_the_limit_are_refused_and_seen() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = plan("n=0; while [ $n -lt 40 ]; do sleep 60 & n=$((n+1)); done; echo all");
        plan.limits.processes = 16;
        let ended = host.run(&plan, RunInputs::default()).await;
        assert_ne!(ended.stdout, "all\n");
        assert!(ended.record.leftovers <= 16, "{:?}", ended.record);
        if has(&ended, Layer::CgroupPids) {
            assert_eq!(ended.record.limit, met(LimitName::Processes), "{:?}", ended.record);
            assert_eq!(ended.record.usage.pids_peak, Some(16));
        }
        // The limit of a plan is not that of the next one.
        let ended = host.sh("n=0; while [ $n -lt 40 ]; do sleep 60 & n=$((n+1)); done; echo all").await;
        assert_eq!((ended.ok(), ended.record.limit, ended.record.leftovers), ("all\n", None, 40));
    });
}

#[test]
fn a_file_too_large_and_a_full_folder_are_told_apart() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let run = async |text: &str, change: fn(&mut sally_agent::sandbox::Limits)| {
            let mut plan = plan(text);
            change(&mut plan.limits);
            host.run(&plan, RunInputs::default()).await.record
        };
        let record = run("exec head -c 3000000 /dev/zero > file", |l| l.file_bytes = MIB).await;
        assert_eq!(record.outcome, Outcome::Signaled { signal: 25 });
        assert_eq!(record.limit, ended_by(LimitName::File));
        let record = run("head -c 3000000 /dev/zero > file", |l| l.work_bytes = MIB).await;
        assert_eq!((record.outcome, record.limit), (Outcome::Exited { code: 1 }, met(LimitName::Work)));
        let record = run("for n in $(seq 99); do : > $n || exit 3; done", |l| l.work_files = 20).await;
        assert_eq!((record.outcome, record.limit), (Outcome::Exited { code: 2 }, met(LimitName::WorkFiles)));
        // What was cleared away again hindered nobody.
        let record = run("head -c 3000000 /dev/zero > file; rm file; exit 4", |l| l.work_bytes = MIB).await;
        assert_eq!((record.outcome, record.limit), (Outcome::Exited { code: 4 }, None));
    });
}

#[test]
fn groups_are_removed_with_the_launcher_and_those_of_a_dead_one_by_the_next() {
    in_both(async |mode| {
        let mut host = Host::start(mode, &[]).await;
        if !has(&host.sh("true").await, Layer::CgroupMemory) {
            return skipped_aloud_because(mode, "no memory group");
        }
        if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
            return skipped_aloud_because(
                mode,
                "version 2: the groups belong to the launcher's unit, which keeps them",
            );
        }
        let group = |pid| {
            let path = host::group_of(pid, "memory").unwrap();
            let parent = path.trim_start_matches('/').rsplit_once('/').unwrap().0.to_owned();
            [format!("/sys/fs/cgroup/memory/{parent}"), format!("/sys/fs/cgroup/{parent}")]
                .into_iter()
                .find(|path| fs::metadata(path).is_ok_and(|m| m.is_dir()))
                .unwrap()
        };
        let mut running = host.begin(0, &plan("echo up; sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        let first = group(running.script_pid());
        // Killed with a run in it: the group lives as long as the run, and longer.
        host.child.kill().unwrap();
        host.child.wait().unwrap();
        running.folder.kill().unwrap();
        running.end().await;
        assert!(fs::metadata(&first).is_ok());
        host.child = host::spawn(mode, &host.state(), host.uid_base, &[]);
        host.launcher =
            sally_agent::sandbox::connect_within(&host.state().join("socket"), host::LIMIT).await.unwrap();
        let mut running = host.begin(0, &plan("echo up; sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        let second = group(running.script_pid());
        assert_ne!(first, second);
        assert!(fs::metadata(&first).is_err(), "{first} is left");
        drop(running);
        drop(host);
        eventually("the groups are gone", || fs::metadata(&second).is_err()).await;
    });
}

#[test]
fn a_forker_that_is_killed_is_replaced_and_limits_go_on() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let first = host.sh("true").await;
        let comm = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let forkers = || -> Vec<i32> {
            let all = host::tree(host.child.id() as i32);
            all.into_iter().filter(|pid| comm(pid) == "sally-forker\n").collect()
        };
        if [Layer::CgroupMemory, Layer::CgroupPids, Layer::CgroupCpu].iter().all(|l| !has(&first, *l)) {
            assert_eq!(forkers(), Vec::<i32>::new());
            return skipped_aloud_because(mode, "no control group");
        }
        // What a forker has forked just now still has its name.
        eventually("one forker a slot", || forkers().len() == 2).await;
        let killed = forkers();
        for pid in &killed {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        // The first is prepared already; the second is forked by another forker.
        for _ in 0..3 {
            let ended = host.sh("echo fine").await;
            assert_eq!(ended.ok(), "fine\n");
            assert_eq!(ended.record.layers[&Layer::Cgroup], first.record.layers[&Layer::Cgroup]);
        }
        eventually("slot 0 has another", || forkers().iter().any(|pid| !killed.contains(pid))).await;
    });
}

#[test]
fn a_group_that_lacks_one_part_is_degraded_and_says_which() {
    in_both(async |mode| {
        let host = Host::start(mode, &["--break", "cgroup_pids"]).await;
        let ended = host.sh("true").await;
        assert_eq!(ended.record.layers[&Layer::CgroupPids], Hold::Absent);
        let expected = if has(&ended, Layer::CgroupMemory) { Hold::Degraded } else { Hold::Absent };
        assert_eq!(ended.record.layers[&Layer::Cgroup], expected);
        if mode == Mode::User {
            return;
        }
        let whole = Host::start(mode, &[]).await.sh("true").await;
        if whole.record.layers[&Layer::Cgroup] != Hold::Enforced {
            skipped_aloud_because(mode, "this host gives the launcher no complete control group");
        }
    });
}

//! Attacks on the host's resources, each beside an ordinary run in another slot: the neighbour stays quick, the reason
//! is right, and after many mixed runs nothing is left behind. `SALLY_MIXED_RUNS` says how many; 200 if it is not set.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::{Ended, Host, eventually, group_of, in_both, plan, tree};
use sally_agent::sandbox::{Hold, Layer, LimitHit, LimitName, Mode, Outcome, Plan, RunInputs};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: u64 = 1024 * 1024;

/// How long an ordinary run beside an attack may take. Alone it takes milliseconds; a starved one never ends.
const NEIGHBOUR: Duration = Duration::from_secs(3);

/// One attack: what it does, and what the record must say of it.
struct Attack {
    name: &'static str,
    text: &'static str,
    change: fn(&mut Plan),
    check: fn(&Ended, &str),
}

fn has(ended: &Ended, layer: Layer) -> bool {
    ended.record.layers[&layer] == Hold::Enforced
}

fn short(plan: &mut Plan) {
    (plan.timeout_ms, plan.grace_ms) = (700, 200);
}

fn timed_out(ended: &Ended, name: &str) {
    let outcome = &ended.record.outcome;
    assert!(matches!(outcome, Outcome::TimedOut { .. }), "{name}: {outcome:?} {}", ended.stderr);
}

const ATTACKS: [Attack; 12] = [
    Attack {
        name: "fork bomb",
        text: "f() { f | f & }; f; sleep 60",
        change: |plan| {
            short(plan);
            plan.limits.processes = 64;
        },
        check: |ended, name| {
            // The shell may give up by itself when it can fork no more.
            let given_up = matches!(ended.record.outcome, Outcome::Exited { code: 2.. });
            assert!(
                given_up || matches!(ended.record.outcome, Outcome::TimedOut { .. }),
                "{name}: {:?}",
                ended.record
            );
            if has(ended, Layer::CgroupPids) {
                let expected = LimitHit { limit: LimitName::Processes, ended: false };
                assert_eq!(ended.record.limit, Some(expected), "{name}");
            }
        },
    },
    Attack {
        name: "memory bomb",
        text: "exec tail /dev/zero",
        change: |plan| plan.limits.memory_bytes = 48 * MIB,
        check: |ended, name| {
            let expected = LimitHit { limit: LimitName::Memory, ended: true };
            if has(ended, Layer::CgroupMemory) {
                assert_eq!(ended.record.limit, Some(expected), "{name}");
            } else {
                assert_eq!(ended.record.outcome, Outcome::Exited { code: 1 }, "{name}: {}", ended.stderr);
            }
        },
    },
    Attack {
        name: "disk filler",
        text: "exec head -c 1000000000 /dev/zero > file",
        change: |plan| plan.limits.work_bytes = 8 * MIB,
        check: |ended, name| {
            let expected = LimitHit { limit: LimitName::Work, ended: false };
            assert_eq!(ended.record.limit, Some(expected), "{name}: {:?}", ended.record.outcome);
        },
    },
    Attack {
        name: "inode filler",
        text: "n=0; while : > $n; do n=$((n+1)); done",
        change: |plan| plan.limits.work_files = 500,
        check: |ended, name| {
            let expected = LimitHit { limit: LimitName::WorkFiles, ended: false };
            assert_eq!(ended.record.limit, Some(expected), "{name}: {:?}", ended.record.outcome);
        },
    },
    Attack {
        name: "output flood",
        text: "exec timeout 1 cat /dev/zero",
        change: |plan| plan.limits.stdout_bytes = MIB,
        check: |ended, name| {
            assert_eq!(ended.record.outcome, Outcome::Exited { code: 124 }, "{name}");
            assert_eq!(ended.record.stdout.kept, MIB, "{name}");
        },
    },
    Attack {
        name: "descriptors",
        text: "python3 -c 'import os\nn = 0\ntry:\n  while True:\n    os.open(\"/dev/null\", 0); n += 1\nexcept OSError as e: print(n, e.errno)'",
        change: |plan| plan.limits.open_files = 100,
        check: |ended, name| {
            // 0 to 3 are open already.
            assert_eq!(ended.ok(), "96 24\n", "{name}");
        },
    },
    Attack {
        name: "signal storm",
        // The process group and everything that can be seen; init and keeper stay.
        text: "trap '' TERM HUP INT; for n in $(seq 300); do kill -TERM -1; kill -HUP 0; kill -KILL 1; done; echo alive",
        change: |_| {},
        check: |ended, name| assert_eq!(ended.ok(), "alive\n", "{name}: {}", ended.stderr),
    },
    Attack {
        name: "escape by setsid",
        text: "for n in 1 2 3 4; do (setsid sh -c '(setsid sleep 60 &) ; trap \"\" TERM; sleep 60' &) ; done; echo up",
        change: |plan| plan.exit_grace_ms = 100,
        check: |ended, name| {
            assert_eq!(ended.ok(), "up\n", "{name}");
            assert!(ended.record.leftovers >= 4, "{name}: {:?}", ended.record);
        },
    },
    Attack {
        name: "ignores everything",
        text: "trap '' TERM HUP INT QUIT USR1 USR2 ALRM PIPE; while :; do sleep 0.05; done",
        change: short,
        check: timed_out,
    },
    Attack { name: "busy loop", text: "trap '' TERM; while :; do :; done", change: short, check: timed_out },
    Attack {
        name: "stops itself",
        // With a child that is stopped too; neither hears TERM.
        text: "sh -c 'kill -STOP $$' & kill -STOP $$; echo went on",
        change: short,
        check: |ended, name| {
            timed_out(ended, name);
            assert_eq!(ended.stdout, "", "{name}");
        },
    },
    Attack {
        name: "flood of the result and of errors",
        text: "timeout 1 cat /dev/zero >&3 & exec timeout 1 cat /dev/zero >&2",
        change: |plan| (plan.limits.result_bytes, plan.limits.stderr_bytes) = (MIB, MIB),
        check: |ended, name| {
            assert_eq!(ended.record.outcome, Outcome::Exited { code: 124 }, "{name}");
            for stream in [&ended.record.result, &ended.record.stderr] {
                assert_eq!(stream.kept, MIB, "{name}");
                assert!(stream.dropped > 0, "{name}: {stream:?}");
            }
        },
    },
];

/// An ordinary run in slot 1, and how long it took.
async fn neighbour(host: &Host) -> Duration {
    let begun = Instant::now();
    let mut running = host.begin(1, &plan("echo fine"), RunInputs::default()).await.unwrap();
    running.release();
    assert_eq!(running.end().await.ok(), "fine\n");
    begun.elapsed()
}

#[test]
fn an_attack_is_ended_for_its_reason_and_its_neighbour_stays_quick() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        neighbour(&host).await;
        for Attack { name, text, change, check } in &ATTACKS {
            let mut plan = plan(text);
            change(&mut plan);
            let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
            running.release();
            let mut slowest = Duration::ZERO;
            // Beside it, for as long as it lives and once more.
            for _ in 0..20 {
                slowest = slowest.max(neighbour(&host).await);
                if running.folder.exit_record().unwrap().is_some() {
                    break;
                }
            }
            assert!(slowest < NEIGHBOUR, "{name}: an ordinary run beside it took {slowest:?}");
            check(&running.end().await, name);
        }
        assert_eq!(host.sh("echo clean; ls -A; ls -A /tmp").await.ok(), "clean\n");
    });
}

/// What a launcher with idle slots has on the host.
#[derive(Debug, PartialEq)]
struct Traces {
    /// Processes below the launcher by name; their ids change.
    processes: Vec<String>,
    /// Descriptors of launcher and keepers together.
    descriptors: usize,
    /// The host's mounts.
    mounts: usize,
    /// Processes anywhere that run as one of the slots' uids.
    of_slots: usize,
    /// Files in the launcher's state folder.
    state: BTreeSet<String>,
    /// Groups of slots.
    groups: usize,
}

/// The control groups (version 1) that a launcher made for its slots.
fn groups(launcher: i32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for controller in ["memory", "pids", "cpu", "cpuacct"] {
        // The launcher may be gone: this test lives in the same group.
        let Some(own) = group_of(std::process::id() as i32, controller) else { continue };
        let folder = format!("/sys/fs/cgroup/{controller}{own}");
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mine = |entry: &fs::DirEntry| {
            entry.file_name().to_string_lossy().starts_with(&format!("sally-{launcher}-"))
        };
        found.extend(entries.filter(mine).map(|entry| entry.path()));
    }
    found
}

fn traces(host: &Host) -> Traces {
    let launcher = host.child.id() as i32;
    let all = tree(launcher);
    let comm =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let mut processes: Vec<String> = all.iter().map(comm).collect();
    processes.sort();
    let long_lived = |pid: &&i32| ["sally-agent", "sally-keeper"].contains(&comm(pid).as_str());
    let descriptors = all
        .iter()
        .filter(long_lived)
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count))
        .sum();
    let uids: Vec<String> = (0..2).map(|slot| host.uid(slot).to_string()).collect();
    let of_slots = |entry: &fs::DirEntry| {
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
        uid.is_some_and(|uid| host.mode == Mode::Root && uids.iter().any(|slot| slot == uid))
    };
    let groups = groups(launcher);
    let slots = groups.iter().flat_map(|group| fs::read_dir(group).unwrap().flatten());
    Traces {
        processes,
        descriptors,
        mounts: fs::read_to_string(format!("/proc/{launcher}/mounts")).unwrap().lines().count(),
        of_slots: fs::read_dir("/proc").unwrap().flatten().filter(of_slots).count(),
        state: fs::read_dir(host.state())
            .unwrap()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect(),
        groups: slots.filter(|entry| entry.path().is_dir()).count(),
    }
}

#[test]
fn after_many_mixed_runs_nothing_is_left_behind() {
    let runs: usize = std::env::var("SALLY_MIXED_RUNS").ok().map_or(200, |text| text.parse().unwrap());
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        for slot in 0..2 {
            let mut running = host.begin(slot, &plan("true"), RunInputs::default()).await.unwrap();
            running.release();
            running.end().await;
        }
        while !host.launcher.refresh().await.unwrap().busy.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let before = traces(&host);
        let begun = Instant::now();
        for n in 0..runs {
            // Every tenth is an attack that takes no second.
            let attack = &ATTACKS[[1, 2, 3, 5, 7][n / 10 % 5]];
            let mut plan = plan("echo out; echo err >&2; echo '{}' >&3; (sleep 60 &); echo x > file");
            plan.exit_grace_ms = 0;
            if n % 10 == 0 {
                plan = host::plan(attack.text);
                (attack.change)(&mut plan);
            }
            let slot = (n % 2) as u16;
            let mut running = host.begin(slot, &plan, RunInputs::default()).await.unwrap();
            running.release();
            let folder = running.folder.clone();
            let ended = running.end().await;
            if n % 10 == 0 {
                (attack.check)(&ended, attack.name);
            } else {
                assert_eq!(ended.ok(), "out\n");
            }
            fs::remove_dir_all(folder.path()).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(600), "{runs} runs took {:?}", begun.elapsed());
        eventually("everything is as it was before", || traces(&host) == before).await;
        let launcher = host.child.id() as i32;
        drop(host);
        assert!(!host::alive(launcher));
        assert_eq!(groups(launcher), Vec::<PathBuf>::new());
    });
}

//! What is easy to make and hard to count or to take away: memory that is no process's own, folders without end, and
//! folders that are links by the time somebody looks. As root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::attacker::attacker;
use host::{Host, in_both, plan, skipped_aloud_because};
use sally_agent::sandbox::{Hold, Layer, LimitHit, LimitName, Outcome, Plan, Program, RunInputs, Script};
use std::fs;

const MIB: u64 = 1024 * 1024;

fn attack(words: &[&str]) -> Plan {
    let argv = words.iter().map(|word| (*word).to_owned()).collect();
    Plan { program: Program::Script { interpreter: None }, argv, ..plan("") }
}

fn program() -> RunInputs {
    RunInputs { script: Some(Script::Bytes(fs::read(attacker()).unwrap())), ..RunInputs::default() }
}

#[test]
fn memory_that_is_no_process_s_own_is_the_runs() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        if host.sh("true").await.record.layers[&Layer::CgroupMemory] != Hold::Enforced {
            return skipped_aloud_because(
                mode,
                "SKIP: no memory group: shared memory, memory files and pipes are not limited here",
            );
        }
        for way in ["memfd", "file", "system-v", "pipes"] {
            let mut plan = attack(&["hoard", way, "60"]);
            plan.limits.memory_bytes = 24 * MIB;
            plan.limits.open_files = 4096;
            let ended = host.run(&plan, program()).await;
            assert_eq!(ended.record.outcome, Outcome::Signaled { signal: 9 }, "{way}: {}", ended.stdout);
            let expected = LimitHit { limit: LimitName::Memory, ended: true };
            assert_eq!(ended.record.limit, Some(expected), "{way}");
            // The attack itself, with room for it.
            plan.limits.memory_bytes = 128 * MIB;
            let ended = host.run(&plan, program()).await;
            assert_eq!(ended.record.outcome, Outcome::Exited { code: 10 }, "{way}: {}", ended.stdout);
        }
    });
}

#[test]
fn folders_without_end_go_with_the_attempt() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = attack(&["litter", "4000"]);
        // Also when somebody wants to look into them afterwards.
        plan.keep_bytes = 8 * MIB;
        let mut running = host.begin(0, &plan, program()).await.unwrap();
        let folder = running.folder.clone();
        running.release();
        let ended = running.end().await;
        assert_eq!(ended.ok(), "4000 deep, no TiB, no million\n");
        let hit = LimitHit { limit: LimitName::WorkFiles, ended: false };
        assert_eq!(ended.record.limit, Some(hit));
        let kept = ended.record.kept.unwrap();
        assert!(kept.entries > 1000 && kept.left_out > 0 && kept.error.is_none(), "{kept:?}");
        assert!(kept.bytes <= 8 * MIB, "{kept:?}");
        fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(host.sh("ls -A; ls -A /tmp; echo clean").await.ok(), "clean\n");
    });
}

#[test]
fn a_folder_that_becomes_a_link_is_not_followed() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        for _ in 0..20 {
            let mut plan = attack(&["swap"]);
            plan.exit_grace_ms = 5;
            let mut running = host.begin(0, &plan, program()).await.unwrap();
            let folder = running.folder.clone();
            running.release();
            let ended = running.end().await;
            assert_eq!((ended.ok(), ended.record.leftovers), ("", 1));
            let index = folder.unpack_artifacts().unwrap();
            assert_eq!(index.len(), 1);
            match &index[0].error {
                None => assert_eq!(fs::read(folder.artifact_path(0)).unwrap(), b"mine"),
                Some(_) => assert!(!folder.artifact_path(0).exists()),
            }
        }
    });
}

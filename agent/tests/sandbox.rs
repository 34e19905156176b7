//! The sandbox on this kernel: starts the real launcher, as root and as an ordinary user, and drives it
//! with the agent's client. Run as root both are tried; else only the second.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::{Ended, Host, LIMIT, Running, alive, block_on, eventually, in_both, plan, profile, spawn, tree};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sally_agent::sandbox::{
    Event, Hold, Layer, Mode, Outcome, Plan, Profile, Program, RunFolder, RunInputs, SandboxError, Script,
    Started, connect_within,
};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn output_result_and_exit_code_arrive() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let ended = host.sh(r#"echo hi; echo "{\"a\":1}" >&3; echo oops >&2; exit 7"#).await;
        assert_eq!(ended.record.outcome, Outcome::Exited { code: 7 });
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("hi\n", "oops\n"));
        assert_eq!(ended.result, b"{\"a\":1}\n");
        assert_eq!(ended.record.stdout.kept, 3);
        assert_eq!(ended.record.uid, host.uid(0));
        assert_eq!(ended.record.leftovers, 0);
    });
}

#[test]
fn scripts_get_arguments_parameters_and_an_exact_environment() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let paths = host.launcher.box_paths(Profile::Strict);
        let mut plan = plan("");
        plan.program = Program::Script { interpreter: None };
        plan.argv = vec!["a b".into(), String::new(), "$(id)".into()];
        plan.env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("X".into(), "1\n2".into())];
        let text = format!(
            "#!/bin/sh\nprintf '<%s>' \"$@\"; echo; env -0 | sort -z | tr '\\0' ';'; echo; pwd; ls -A; \
             cat {}; stat -c %a {}; [ -w $0 ] && echo writable; echo x > $0",
            paths.params().display(),
            paths.params().display(),
        );
        let inputs = RunInputs {
            script: Some(Script::Bytes(text.into_bytes())),
            params: b"{\"k\":1}".to_vec(),
            ..RunInputs::default()
        };
        let ended = host.run(&plan, inputs).await;
        let work = paths.work();
        let work = work.display();
        let expected =
            format!("<a b><><$(id)>\nPATH=/usr/bin:/bin;PWD={work};X=1\n2;\n{work}\n{{\"k\":1}}600\n");
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
        assert!(ended.stderr.contains("Read-only file system"), "{}", ended.stderr);
    });
}

#[test]
fn the_environment_of_execve_is_the_plans() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        // Read by the program itself, not by a shell that adds its own.
        let mut plan = plan("");
        plan.argv = vec!["/usr/bin/env".into()];
        plan.env = vec![("B".into(), "2".into()), ("A".into(), "1".into())];
        assert_eq!(host.run(&plan, RunInputs::default()).await.ok(), "B=2\nA=1\n");
    });
}

#[test]
fn exactly_four_descriptors_are_open_and_can_be_opened_again() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        for profile in [Profile::Strict, Profile::Host] {
            let mut plan = self::profile(profile, "");
            plan.argv = ["ls", "/proc/self/fd"].map(String::from).to_vec();
            // ls has opened the folder itself as 4.
            assert_eq!(host.run(&plan, RunInputs::default()).await.ok(), "0\n1\n2\n3\n4\n");
        }
        let ended = host.sh("echo out > /dev/stdout; echo err > /dev/stderr; echo 3 > /dev/fd/3; cat").await;
        assert_eq!((ended.ok(), ended.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(ended.result, b"3\n");
    });
}

#[test]
fn standard_input_is_given_or_empty() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        assert_eq!(host.sh("cat; echo end").await.ok(), "end\n");
        let file = host.dir.path().join("input");
        fs::write(&file, "given").unwrap();
        let inputs = RunInputs { stdin: Some(fs::File::open(file).unwrap()), ..RunInputs::default() };
        assert_eq!(host.run(&plan("cat"), inputs).await.ok(), "given");
        // By its name too, if the script's uid may read it.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        let empty = RunInputs {
            stdin: Some(fs::File::from(std::os::fd::OwnedFd::from(reader))),
            ..RunInputs::default()
        };
        assert_eq!(host.run(&plan("cat; echo end"), empty).await.ok(), "end\n");
        let open = fs::File::open(host.dir.path().join("input")).unwrap();
        let inputs = RunInputs { stdin: Some(open), ..RunInputs::default() };
        assert_eq!(host.run(&plan("cat /dev/stdin; cat /proc/self/fd/0"), inputs).await.ok(), "givengiven");
    });
}

#[test]
fn the_result_file_is_taken_if_it_is_a_file() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let path = host.launcher.box_paths(Profile::Strict).result_file();
        let path = path.display();
        let ended = host.sh(&format!("echo '{{}}' > {path}.new; mv {path}.new {path}")).await;
        assert_eq!(ended.result_file, b"{}\n");
        assert_eq!(ended.record.result_file.map(|count| count.kept), Some(3));
        assert_eq!(host.sh("true").await.record.result_file, None);
        for trick in [format!("ln -s /etc/passwd {path}"), format!("mkfifo {path}"), format!("mkdir {path}")]
        {
            let ended = host.sh(&trick).await;
            assert_eq!(ended.ok(), "");
            assert_eq!((ended.record.result_file, ended.result_file.len()), (None, 0), "{trick}");
        }
        let mut small = plan(&format!("head -c 1000 /dev/zero > {path}"));
        small.limits.result_bytes = 10;
        let count = host.run(&small, RunInputs::default()).await.record.result_file.unwrap();
        assert_eq!((count.kept, count.dropped), (10, 990));
    });
}

#[test]
fn a_signal_that_ends_the_script_is_told() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        assert_eq!(host.sh("kill -SEGV $$").await.record.outcome, Outcome::Signaled { signal: 11 });
    });
}

#[test]
fn what_cannot_be_executed_says_why() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let not_found = |ended: Ended, words: &str| match ended.record.outcome {
            Outcome::NotFound { what } => assert!(what.contains(words), "{what}"),
            other => panic!("{other:?}"),
        };
        let mut absent = plan("");
        absent.argv = vec!["no-such-command".into()];
        not_found(host.run(&absent, RunInputs::default()).await, "no-such-command");
        not_found(host.script("#!/no/such/sh\n", |_| {}).await, "interpreter /no/such/sh of the #! line");
        not_found(host.script("#!/bin/sh\r\necho\r\n", |_| {}).await, "/bin/sh\\r");
        let other = |plan: &mut Plan| plan.program = Program::Script { interpreter: Some("no-awk".into()) };
        not_found(host.script("x", other).await, "no-awk");
        let failed = |ended: Ended, errno: i32| match ended.record.outcome {
            Outcome::ExecFailed { errno: told, .. } => assert_eq!(told, errno),
            other => panic!("{other:?}"),
        };
        failed(host.script("no first line", |_| {}).await, libc_errno("ENOEXEC"));
        let mut denied = plan("");
        denied.argv = vec!["/etc/passwd".into()];
        failed(host.run(&denied, RunInputs::default()).await, libc_errno("EACCES"));
        let by_sh = |plan: &mut Plan| plan.program = Program::Script { interpreter: Some("sh".into()) };
        assert_eq!(host.script("echo by sh", by_sh).await.ok(), "by sh\n");
    });
}

fn libc_errno(name: &str) -> i32 {
    match name {
        "ENOEXEC" => nix::errno::Errno::ENOEXEC as i32,
        _ => nix::errno::Errno::EACCES as i32,
    }
}

#[test]
fn a_timeout_is_term_and_then_kill() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = plan("trap 'echo term; exit 5' TERM; sleep 60 & wait");
        plan.timeout_ms = 200;
        let ended = host.run(&plan, RunInputs::default()).await;
        assert_eq!(ended.record.outcome, Outcome::TimedOut { code: Some(5), signal: None });
        assert_eq!(ended.stdout, "term\n");
        assert!((200..2000).contains(&ended.record.duration_ms), "{}", ended.record.duration_ms);
        let mut deaf = self::plan("trap '' TERM; while :; do sleep 60; done");
        (deaf.timeout_ms, deaf.grace_ms) = (100, 150);
        let ended = host.run(&deaf, RunInputs::default()).await;
        assert_eq!(ended.record.outcome, Outcome::TimedOut { code: None, signal: Some(9) });
        assert!((250..2000).contains(&ended.record.duration_ms), "{}", ended.record.duration_ms);
    });
}

#[test]
fn a_cancellation_is_soft_and_then_hard() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let plan = plan("trap 'exit 6' TERM; echo up; sleep 60 & wait");
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        running.folder.cancel().unwrap();
        assert_eq!(running.end().await.record.outcome, Outcome::Cancelled { code: Some(6), signal: None });
        let plan = self::plan("trap '' TERM; echo up; sleep 60 & wait");
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        running.folder.cancel().unwrap();
        running.folder.kill().unwrap();
        assert_eq!(running.end().await.record.outcome, Outcome::Cancelled { code: None, signal: Some(9) });
        // Before the word to start.
        let running = host.begin(0, &self::plan("true"), RunInputs::default()).await.unwrap();
        running.folder.cancel().unwrap();
        assert_eq!(running.end().await.record.outcome, Outcome::Cancelled { code: None, signal: None });
    });
}

#[test]
fn leftovers_are_killed_counted_and_not_waited_for() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan = plan(
            "(trap '' TERM HUP; setsid sh -c 'touch up; exec sleep 61' &) ; sleep 62 & \
             until [ -e up ]; do sleep 0.01; done; echo end",
        );
        plan.exit_grace_ms = 50;
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        let init = running.init;
        let ended = running.end().await;
        assert_eq!(ended.ok(), "end\n");
        assert_eq!(ended.record.leftovers, 2, "{:?}", ended.record);
        assert!(ended.record.duration_ms < 5000);
        eventually("init is gone", || !alive(init)).await;
        // A short run waits for nothing, whatever the grace.
        let mut quick = self::plan("true");
        quick.exit_grace_ms = 10_000;
        let begun = Instant::now();
        assert_eq!(host.run(&quick, RunInputs::default()).await.record.leftovers, 0);
        assert!(begun.elapsed() < Duration::from_secs(5));
        // Within the grace a child may still finish.
        let mut late = self::plan("(sleep 0.2; echo late) & echo main");
        late.exit_grace_ms = 10_000;
        let ended = host.run(&late, RunInputs::default()).await;
        assert_eq!((ended.ok(), ended.record.leftovers), ("main\nlate\n", 0));
    });
}

#[test]
fn output_over_the_limit_is_drained_and_counted() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan =
            plan("head -c 50000000 /dev/zero; head -c 100 /dev/zero >&2; head -c 7 /dev/zero >&3; echo >&2");
        (plan.limits.stdout_bytes, plan.limits.stderr_bytes, plan.limits.result_bytes) = (1_000_000, 100, 7);
        let record = host.run(&plan, RunInputs::default()).await.record;
        assert_eq!(record.outcome, Outcome::Exited { code: 0 });
        assert_eq!((record.stdout.kept, record.stdout.dropped), (1_000_000, 49_000_000));
        assert_eq!((record.stderr.kept, record.stderr.dropped), (100, 1));
        assert_eq!((record.result.kept, record.result.dropped), (7, 0));
    });
}

#[test]
fn without_the_agents_word_nothing_runs() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut running = host.begin(0, &plan("echo ran"), RunInputs::default()).await.unwrap();
        drop(running.go.take());
        let ended = running.end().await;
        assert_eq!(ended.record.outcome, Outcome::NotStarted);
        assert_eq!((ended.stdout.as_str(), ended.record.started_at_unix_ms), ("", None));
    });
}

#[test]
fn a_keeper_killed_ends_everything_and_is_noticed() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let plan = plan("echo up; setsid sleep 60 & sleep 60");
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        let script = running.script_pid();
        kill(Pid::from_raw(running.keeper), Signal::SIGKILL).unwrap();
        while running.event().await != Event::KeeperGone {}
        assert_eq!(running.folder.exit_record().unwrap(), None);
        eventually("init and script are dead", || !alive(running.init) && !alive(script)).await;
        // The slot has another keeper.
        assert_eq!(host.sh("echo again").await.ok(), "again\n");
    });
}

#[test]
fn a_run_outlives_the_launcher_and_blocks_its_slot() {
    in_both(async |mode| {
        let mut host = Host::start(mode, &[]).await;
        let flag = host.dir.path().join("state/flag");
        let plan = profile(
            Profile::Host,
            &format!("echo up; until [ -e {} ]; do sleep 0.01; done; echo down", flag.display()),
        );
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        host.child.kill().unwrap();
        host.child.wait().unwrap();
        // Another launcher, another agent, the same folder: the slot is busy, its neighbour is not.
        host.child = spawn(mode, &host.state(), host.uid_base, &[]);
        host.launcher = connect_within(&host.state().join("socket"), LIMIT).await.unwrap();
        let adopted = RunFolder::open(running.folder.path()).unwrap();
        drop(running);
        let mut events = adopted.events().unwrap();
        let refused = host.begin(0, &self::plan("true"), RunInputs::default()).await;
        assert!(matches!(refused, Err(SandboxError::Busy(0))));
        let mut other = host.begin(1, &self::plan("echo one"), RunInputs::default()).await.unwrap();
        other.release();
        assert_eq!(other.end().await.ok(), "one\n");
        fs::write(&flag, "").unwrap();
        while tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap() != Event::Exited {}
        assert_eq!(Ended::read(&adopted).ok(), "up\ndown\n");
        assert_eq!(host.sh("echo free").await.ok(), "free\n");
    });
}

#[test]
fn an_emptied_run_folder_knows_nothing_of_the_run_before() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let loud = plan("echo secret; echo more >&2; echo '{}' >&3; echo '{}' > $SALLY_RESULT_FILE; exit 7");
        let mut first = host.begin(0, &loud, RunInputs::default()).await.unwrap();
        first.release();
        let (folder, spare) = (first.folder.clone(), host.dir.path().join("spare"));
        assert_eq!(first.end().await.record.outcome, Outcome::Exited { code: 7 });
        // With a file in it that nobody named it is not put aside.
        fs::write(folder.path().join("note"), "of the first").unwrap();
        assert!(folder.empty(&spare, &[]).is_err());
        assert!(!spare.exists());
        folder.empty(&spare, &["note"]).unwrap();
        assert!(!folder.path().exists());

        let (folder, handover) =
            RunFolder::reuse(&spare, &host.dir.path().join("second"), RunInputs::default()).unwrap();
        assert_eq!(fs::read(folder.path().join("note")).unwrap(), b"");
        assert_eq!(folder.exit_record().unwrap(), None);
        let events = folder.events().unwrap();
        let Started { go, keeper_pid, init_pid, .. } =
            host.launcher.start(0, &plan("echo two"), handover).await.unwrap();
        let mut second = Running { folder, events, go: Some(go), keeper: keeper_pid, init: init_pid };
        second.release();
        let ended = second.end().await;
        assert_eq!(ended.ok(), "two\n");
        assert_eq!(
            (ended.stderr.as_str(), &ended.result[..], &ended.result_file[..]),
            ("", &b""[..], &b""[..])
        );
    });
}

#[test]
fn a_busy_slot_refuses_and_a_restarted_agent_can_cancel() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut running = host.begin(0, &plan("echo up; sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        let second = host.begin(0, &plan("true"), RunInputs::default()).await;
        assert!(matches!(second, Err(SandboxError::Busy(0))));
        assert_eq!(host.launcher.refresh().await.unwrap().busy, [0]);
        let adopted = RunFolder::open(running.folder.path()).unwrap();
        drop(running);
        adopted.kill().unwrap();
        let mut events = adopted.events().unwrap();
        while tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap() != Event::Exited {}
        let outcome = adopted.exit_record().unwrap().unwrap().outcome;
        assert_eq!(outcome, Outcome::Cancelled { code: None, signal: Some(9) });
        // A folder whose keeper has long gone tells the same.
        let mut late = RunFolder::open(adopted.path()).unwrap().events().unwrap();
        assert_eq!(tokio::time::timeout(LIMIT, late.next()).await.unwrap().unwrap(), Event::Exited);
    });
}

#[test]
fn the_report_agrees_with_what_is_seen_from_outside() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        for profile in Profile::ALL {
            let mut running = host
                .begin(0, &self::profile(profile, "echo up; sleep 60; :"), RunInputs::default())
                .await
                .unwrap();
            running.release();
            running.said("up").await;
            let seen = seen_from_outside(running.script_pid());
            // Each limit holds exactly where the script is in another group than the launcher.
            let parts =
                [(Layer::CgroupMemory, "memory"), (Layer::CgroupPids, "pids"), (Layer::CgroupCpu, "cpu")];
            let own_groups = parts.map(|(layer, controller)| {
                let group = host::group_of(running.script_pid(), controller);
                (layer, group != host::group_of(host.child.id() as i32, controller))
            });
            running.folder.kill().unwrap();
            let record = running.end().await.record;
            let shared = profile != Profile::Strict;
            for (layer, differs) in &seen.namespaces {
                let expected = if *layer == Layer::Net && shared { Hold::Absent } else { Hold::Enforced };
                assert_eq!(*differs, expected == Hold::Enforced, "{profile} {layer}");
                assert_eq!(record.layers[layer], expected, "{profile} {layer}");
            }
            for layer in [
                Layer::NoNewPrivs,
                Layer::Capabilities,
                Layer::Rlimits,
                Layer::ClosedDescriptors,
                Layer::Environment,
            ] {
                assert_eq!(record.layers[&layer], Hold::Enforced, "{profile} {layer}");
            }
            for (layer, own) in own_groups {
                assert_eq!(record.layers[&layer] == Hold::Enforced, own, "{layer}");
            }
            assert_eq!(record.layers[&Layer::Seccomp], Hold::Enforced);
            // What it does is in the attack tests.
            let landlock = match host.launcher.info().landlock_abi {
                0 => Hold::Absent,
                1..=5 => Hold::Degraded,
                _ => Hold::Enforced,
            };
            assert_eq!(record.layers[&Layer::Landlock], landlock);
            // All three of the keeper's and the stage's: what an attempt inherits and what it gets last.
            assert_eq!((&seen.status["Seccomp"][..], &seen.status["Seccomp_filters"][..]), ("2", "3"));
            let root = if profile == Profile::Host { Hold::Degraded } else { Hold::Enforced };
            assert_eq!(record.layers[&Layer::Root], root);
            let uid = if mode == Mode::Root { Hold::Enforced } else { Hold::Absent };
            assert_eq!(record.layers[&Layer::Uid], uid);
            let zero = "0000000000000000";
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(seen.status[set], zero, "{profile} {set}");
            }
            assert_eq!(seen.status["NoNewPrivs"], "1");
            let uid = host.uid(0).to_string();
            assert_eq!(seen.status["Uid"].split_whitespace().collect::<Vec<_>>(), vec![uid; 4]);
            assert_eq!(seen.descriptors, 4, "{profile}");
        }
    });
}

struct Seen {
    namespaces: Vec<(Layer, bool)>,
    status: BTreeMap<String, String>,
    descriptors: usize,
}

fn seen_from_outside(pid: i32) -> Seen {
    let differs = |name: &str| {
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).unwrap();
        of(&pid.to_string()) != of("self")
    };
    let names = [
        (Layer::User, "user"),
        (Layer::Mount, "mnt"),
        (Layer::Pid, "pid"),
        (Layer::Net, "net"),
        (Layer::Ipc, "ipc"),
        (Layer::Uts, "uts"),
    ];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let status = status.lines().filter_map(|line| line.split_once(':'));
    Seen {
        namespaces: names.map(|(layer, name)| (layer, differs(name))).to_vec(),
        status: status.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect(),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
    }
}

#[test]
fn a_layer_left_out_shows_in_the_report() {
    in_both(async |mode| {
        let whole = Host::start(mode, &[]).await.sh("true").await.record.layers;
        for layer in Layer::ALL {
            let expected = match (layer, mode) {
                (Layer::Uid, _) => continue,
                (Layer::CgroupMemory | Layer::CgroupPids | Layer::CgroupCpu, _) => Hold::Absent,
                // Without it an ordinary user has no other either.
                (Layer::User, Mode::User) => continue,
                (Layer::Mount, _) => Hold::Degraded,
                _ => Hold::Absent,
            };
            let host = Host::start(mode, &["--break", layer.name()]).await;
            let record = host.sh("true").await.record;
            assert_eq!(record.outcome, Outcome::Exited { code: 0 }, "{layer}: {record:?}");
            let mut wanted = whole.clone();
            wanted.insert(layer, expected);
            let parts = [Layer::CgroupMemory, Layer::CgroupPids, Layer::CgroupCpu];
            if layer == Layer::Cgroup {
                wanted.extend(parts.map(|part| (part, Hold::Absent)));
            } else if parts.contains(&layer) && whole[&Layer::Cgroup] == Hold::Enforced {
                wanted.insert(Layer::Cgroup, Hold::Degraded);
            }
            if layer == Layer::User {
                // A slot's uid is given to it by its user namespace.
                wanted.insert(Layer::Uid, Hold::Absent);
            }
            let limits = [Layer::CgroupMemory, Layer::CgroupPids, Layer::CgroupCpu];
            if layer == Layer::Cgroup {
                // Without the group there is nothing that its limits could hold in.
                wanted.extend(limits.map(|limit| (limit, Hold::Absent)));
            } else if limits.contains(&layer) && whole[&Layer::Cgroup] == Hold::Enforced {
                wanted.insert(Layer::Cgroup, Hold::Degraded);
            }
            assert_eq!(record.layers, wanted, "{layer}");
            let mut demanding = plan("true");
            demanding.require = vec![layer];
            let record = host.run(&demanding, RunInputs::default()).await.record;
            let Outcome::SetupFailed { step, message, .. } = record.outcome else { panic!("{record:?}") };
            assert_eq!(step, "require");
            assert!(message.contains(layer.name()), "{message}");
            assert_eq!(record.started_at_unix_ms, None);
        }
    });
}

#[test]
fn what_is_missing_cannot_be_required() {
    in_both(async |mode| {
        let host = Host::start(mode, &["--break", "cgroup"]).await;
        let mut demanding = plan("true");
        demanding.require = vec![Layer::Net, Layer::Cgroup];
        let outcome = host.run(&demanding, RunInputs::default()).await.record.outcome;
        let Outcome::SetupFailed { message, .. } = outcome else { panic!("{outcome:?}") };
        assert!(message.contains("cgroup") && !message.contains("net,"), "{message}");
        demanding.require = vec![Layer::Net, Layer::Root];
        host.run(&demanding, RunInputs::default()).await.ok();
    });
}

#[test]
fn strict_has_no_network_and_nothing_of_the_host() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = format!("bash -c 'exec 5<>/dev/tcp/127.0.0.1/{port}' 2>&1 && echo connected");
        assert!(!host.sh(&connect).await.stdout.contains("connected"));
        let net = host.run(&profile(Profile::Net, &connect), RunInputs::default()).await;
        assert_eq!(net.ok(), "connected\n");
        let look = "ls /; echo; cat /etc/shadow /proc/1/environ 2>&1 | head -c 300; ls /root /home /work /tmp /sys 2>&1";
        let ended = host.sh(look).await;
        let (root, rest) = ended.stdout.split_once("\n\n").unwrap();
        let wanted = ["bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "tmp", "usr", "var"];
        assert!(root.lines().all(|name| wanted.contains(&name) || name.starts_with("lib")), "{root}");
        assert!(rest.contains("No such file") && !rest.contains("root:"), "{rest}");
        let writes = "for f in /x /usr/x /etc/x /run/sally/box/x /run/sally/box/in/x /dev/x /proc/sys/kernel/hostname; do \
             echo x 2>/dev/null > $f && echo $f; done; \
             for d in $HOME $PWD /tmp /dev/shm; do echo x > $d/x || echo not $d; done; ls /tmp";
        let mut plan = plan(writes);
        let work = host.launcher.box_paths(Profile::Strict).work().display().to_string();
        plan.env.push(("HOME".into(), work));
        assert_eq!(host.run(&plan, RunInputs::default()).await.stdout, "x\n");
        // Nothing of that is left for the next attempt.
        assert_eq!(host.sh("ls -A /tmp /dev/shm .").await.ok(), ".:\n\n/dev/shm:\n\n/tmp:\n");
    });
}

#[test]
fn host_sees_the_host_and_cannot_write_it() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let file = host.dir.path().join("open-to-all");
        fs::write(&file, "from outside").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let folder = host.state();
        let me = std::process::id();
        let text = format!(
            "cat {file}; echo; cat /proc/{me}/comm; hostname; echo x > {file} || echo refused; \
             touch {folder}/new || echo refused; kill -0 {me} || echo unreachable; \
             echo ok > here && cat here; pwd",
            file = file.display(),
            folder = folder.display(),
        );
        let ended = host.run(&profile(Profile::Host, &text), RunInputs::default()).await;
        let name = nix::unistd::gethostname().unwrap();
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        let work = host.launcher.box_paths(Profile::Host).work();
        let expected = format!(
            "from outside\n{comm}{}\nrefused\nrefused\nunreachable\nok\n{}\n",
            name.to_string_lossy(),
            work.display()
        );
        assert_eq!(ended.ok(), expected, "{}", ended.stderr);
        assert_eq!(fs::read_to_string(&file).unwrap(), "from outside");
        if mode == Mode::Root {
            let owner =
                host.run(&profile(Profile::Host, "stat -c %u /etc/passwd"), RunInputs::default()).await;
            assert_eq!(owner.ok(), "0\n");
        }
    });
}

#[test]
fn limits_hold() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan =
            plan("head -c 3000000 /dev/zero > big; stat -c %s big; ulimit -n; ulimit -c; ulimit -f");
        plan.limits.work_bytes = 1024 * 1024;
        plan.limits.open_files = 77;
        plan.limits.file_bytes = 4096 * 1024;
        let ended = host.run(&plan, RunInputs::default()).await;
        assert_eq!(ended.ok(), "1048576\n77\n0\n8192\n");
        let mut forks = self::plan("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 9 & done; echo done");
        forks.limits.processes = 8;
        let ended = host.run(&forks, RunInputs::default()).await;
        assert!(ended.stderr.contains("fork"), "{:?} {}", ended.record, ended.stderr);
        let mut large = self::plan("true");
        large.limits.script_bytes = 10;
        let inputs = RunInputs { params: b"{\"longer\": true}".to_vec(), ..RunInputs::default() };
        let outcome = host.run(&large, inputs).await.record.outcome;
        assert!(matches!(outcome, Outcome::SetupFailed { ref step, .. } if step == "box"), "{outcome:?}");
    });
}

#[test]
fn a_plan_outside_the_policy_is_refused() {
    in_both(async |mode| {
        let host = Host::start(mode, &["--max-profile", "net", "--max-timeout", "60"]).await;
        let refused = |result: Result<Running, SandboxError>, words: &str| match result {
            Err(SandboxError::Refused(message)) => assert!(message.contains(words), "{message}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted, not refused: {words}"),
        };
        refused(host.begin(0, &profile(Profile::Host, "true"), RunInputs::default()).await, "wider");
        refused(host.begin(7, &plan("true"), RunInputs::default()).await, "no slot 7");
        let mut long = plan("true");
        long.timeout_ms = 60_001;
        refused(host.begin(0, &long, RunInputs::default()).await, "timeout");
        let mut strange = plan("true");
        strange.v = 2;
        refused(host.begin(0, &strange, RunInputs::default()).await, "version 2");
        let mut huge = plan("true");
        huge.argv.push("x".repeat(120_000));
        refused(host.begin(0, &huge, RunInputs::default()).await, "112 KiB");
        assert_eq!(host.sh("echo still here").await.ok(), "still here\n");
    });
}

#[test]
fn the_end_of_the_launcher_leaves_nothing() {
    in_both(async |mode| {
        let mut host = Host::start(mode, &[]).await;
        let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
        let before = mounts();
        let mut running =
            host.begin(0, &plan("echo up; setsid sleep 60 & sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        let launcher = host.child.id() as i32;
        // The launcher, two keepers, two inits, a waiting stage, and the script with its two sleeps.
        let mut all = Vec::new();
        eventually("everything runs", || {
            all = tree(launcher);
            all.len() >= 9
        })
        .await;
        kill(Pid::from_raw(launcher), Signal::SIGTERM).unwrap();
        host.child.wait().unwrap();
        let record = running.end().await.record;
        assert_eq!(record.outcome, Outcome::Cancelled { code: None, signal: Some(9) });
        eventually("all processes are gone", || all.iter().all(|pid| !alive(*pid))).await;
        assert_eq!(mounts(), before);
        let left: Vec<_> = fs::read_dir(host.state()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(
            left.iter().all(|name| name == "box" || name.to_string_lossy().ends_with(".lock")),
            "{left:?}"
        );
        assert_eq!(fs::read_dir(host.state().join("box")).unwrap().count(), 0);
    });
}

#[test]
fn two_launchers_do_not_share_a_state_folder() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut second = spawn(mode, &host.state(), host.uid_base, &[]);
        assert!(!second.wait().unwrap().success());
        host.sh("true").await.ok();
    });
}

#[test]
fn slots_run_at_the_same_time_with_a_uid_each() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut both = Vec::new();
        for slot in [0, 1] {
            let mut running =
                host.begin(slot, &plan("echo up; id -u; sleep 60"), RunInputs::default()).await.unwrap();
            running.release();
            running.said(&format!("{}\n", host.uid(slot))).await;
            both.push(running);
        }
        for running in both {
            running.folder.kill().unwrap();
            running.end().await;
        }
    });
}

#[test]
fn sally_task_is_there_in_every_profile() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        for profile in Profile::ALL {
            let bin = host.launcher.box_paths(profile).bin();
            let mut plan =
                self::profile(profile, "command -v sally-task; sally-task --help | grep -c ^usage:");
            plan.env = vec![("PATH".into(), format!("{}:/usr/bin:/bin", bin.display()))];
            let expected = format!("{}\n1\n", bin.join("sally-task").display());
            assert_eq!(host.run(&plan, RunInputs::default()).await.ok(), expected);
        }
    });
}

#[test]
fn a_launcher_can_end_with_its_parent() {
    in_both(async |mode| {
        let mut host = Host::start(mode, &[]).await;
        host.child.kill().unwrap();
        host.child.wait().unwrap();
        let (state, program) = (host.state(), env!("CARGO_BIN_EXE_sally-agent"));
        let line = format!(
            "{program} launcher --with-parent --stop-kills --slots 1 --state {0} --socket {0}/socket --box {0}/box & wait",
            state.display()
        );
        host.child = Command::new("sh").args(["-c", &line]).stdin(Stdio::null()).spawn().unwrap();
        host.launcher = connect_within(&state.join("socket"), LIMIT).await.unwrap();
        let mut running = host.begin(0, &plan("echo up; sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        host.child.kill().unwrap();
        let record = running.end().await.record;
        assert_eq!(record.outcome, Outcome::Cancelled { code: None, signal: Some(9) });
        let launcher = host.launcher.info().pid;
        eventually("the launcher is gone", || !alive(launcher)).await;
    });
}

#[test]
fn secrets_are_files_that_only_the_script_reads_and_nothing_remains_of_them() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let folder = host.launcher.box_paths(Profile::Strict).secrets();
        let folder = folder.display();
        let value = format!("hunter-{}", std::process::id());
        let secrets = vec![("db.pass".into(), value.clone().into_bytes()), ("key".into(), vec![0, 10, 255])];
        let text = format!(
            "cd {folder}; stat -c '%n %a %u %s' *; cat db.pass; echo; stat -f -c %T .; \
             (echo x > new) 2>/dev/null || echo sealed; (echo x > key) 2>/dev/null || echo locked; cat >&2"
        );
        let mut running =
            host.begin(0, &plan(&text), RunInputs { secrets, ..RunInputs::default() }).await.unwrap();
        let plan_seen = fs::read(format!("/proc/{}/cmdline", running.init)).unwrap_or_default();
        running.release();
        let ended = running.end().await;
        let uid = host.uid(0);
        let expected =
            format!("db.pass 400 {uid} {}\nkey 400 {uid} 3\n{value}\nramfs\nsealed\nlocked\n", value.len());
        assert_eq!(ended.ok(), expected, "{}", ended.stderr);
        assert!(!String::from_utf8_lossy(&plan_seen).contains("hunter"));
        // The next attempt in the slot has an empty folder, and the record says nothing.
        assert_eq!(host.sh(&format!("ls -A {folder}")).await.ok(), "");
        assert!(!String::from_utf8(ended.record.to_line()).unwrap().contains("hunter"));
    });
}

#[test]
fn secrets_that_cannot_be_files_are_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["../x", ".x", "", "a/b"] {
        let secrets = vec![(name.to_owned(), b"hunter2".to_vec())];
        let inputs = RunInputs { secrets, ..RunInputs::default() };
        block_on(async {
            let refused = RunFolder::create(&dir.path().join(format!("run-{}", name.len())), inputs);
            let message = refused.err().unwrap().to_string();
            assert!(message.contains("no name for a secret") && !message.contains("hunter2"), "{message}");
        });
    }
}

#[test]
fn files_that_the_script_names_are_kept_and_nothing_else_is() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let text = r#"mkdir out; echo report > out/a.txt; head -c 100000 /dev/zero > big; : > empty
            ln -s /etc/passwd link; mkfifo fifo; echo no > unnamed; chmod 0 out/a.txt
            echo '{"@artifact":{"path":"out/a.txt","name":"report"}} {"@artifact":"big"}{"n":1}' >&3
            echo '{"@artifact":"link"} {"@artifact":"fifo"} {"\u0040artifact":"gone"}' >&3
            echo '{"@artifact":"empty"}' > $SALLY_RESULT_FILE"#;
        let mut plan = plan(text);
        let door = host.launcher.box_paths(Profile::Strict).result_file();
        plan.env.push(("SALLY_RESULT_FILE".into(), door.to_string_lossy().into_owned()));
        let mut running = host.begin(0, &plan, RunInputs::default()).await.unwrap();
        let folder = running.folder.clone();
        running.release();
        let ended = running.end().await;
        assert_eq!(ended.ok(), "", "{}", ended.stderr);
        let index = folder.unpack_artifacts().unwrap();
        assert_eq!(index, ended.record.artifacts);
        let said: Vec<_> = index.iter().map(|a| (a.path.as_str(), a.bytes, a.error.is_none())).collect();
        let expected = [
            ("out/a.txt", 7, true),
            ("big", 100_000, true),
            ("link", 0, false),
            ("fifo", 0, false),
            ("gone", 0, false),
            ("empty", 0, true),
        ];
        assert_eq!(said, expected, "{index:?}");
        assert_eq!(index[0].name, "report");
        assert_eq!(fs::read(folder.artifact_path(0)).unwrap(), b"report\n");
        assert_eq!(fs::read(folder.artifact_path(1)).unwrap(), vec![0; 100_000]);
        assert_eq!(fs::read(folder.artifact_path(5)).unwrap(), b"");
        assert!(!folder.artifact_path(2).exists());
        // Another agent process finds the same, and a torn copy is made again.
        fs::write(folder.artifact_path(0), "rep").unwrap();
        assert_eq!(RunFolder::open(folder.path()).unwrap().unpack_artifacts().unwrap(), index);
        assert_eq!(fs::read(folder.artifact_path(0)).unwrap(), b"report\n");
    });
}

#[test]
fn files_beyond_the_limit_are_not_cut_but_left_out() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut plan =
            plan(r#"for n in 1 2 3; do head -c 600 /dev/zero > $n; echo "{\"@artifact\":\"$n\"}" >&3; done"#);
        plan.limits.artifact_bytes = 1000;
        plan.limits.artifact_files = 2;
        let record = host.run(&plan, RunInputs::default()).await.record;
        let said: Vec<_> = record.artifacts.iter().map(|a| (a.bytes, a.error.is_some())).collect();
        assert_eq!(said, [(600, false), (0, true)]);
        assert!(record.artifacts[1].error.as_ref().unwrap().contains("artifact_bytes"));
    });
}

#[test]
fn nobody_of_the_same_account_reads_memory_of_launcher_keeper_or_init() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut running = host.begin(0, &plan("echo up; sleep 60"), RunInputs::default()).await.unwrap();
        running.release();
        running.said("up").await;
        // Any process of an account may look into the others, unless they forbid it: this one can be looked into.
        let account = match mode {
            Mode::Root => 0,
            Mode::User => host.uid(0),
        };
        let open = as_account(account, &["sleep", "60"]).spawn().unwrap();
        eventually("the process has its account", || owner_of_memory(open.id() as i32) == account).await;
        for (name, pid) in
            [("launcher", host.child.id() as i32), ("keeper", running.keeper), ("init", running.init)]
        {
            assert_eq!(owner_of_memory(pid), 0, "{name}: the kernel gives closed memory to root");
            if mode == Mode::User {
                let path = format!("/proc/{pid}/mem");
                assert!(
                    !as_account(account, &["dd", "status=none", "count=0", &format!("if={path}")])
                        .status()
                        .unwrap()
                        .success(),
                    "{name}"
                );
            }
        }
        let mut open = open;
        open.kill().unwrap();
        open.wait().unwrap();
        running.folder.kill().unwrap();
        running.end().await;
    });
}

#[test]
fn the_agent_closes_its_memory_before_it_reads_anything() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("agent.toml");
    // A file that never comes: the agent waits with what it is before it has read a key.
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let uid = nix::unistd::geteuid();
    let account = if uid.is_root() { 65534 } else { uid.as_raw() };
    let program = env!("CARGO_BIN_EXE_sally-agent");
    let mut agent =
        as_account(account, &[program, "run", "--config", config.to_str().unwrap()]).spawn().unwrap();
    let pid = agent.id() as i32;
    let own = || fs::metadata(format!("/proc/{pid}")).is_ok_and(|file| file.uid() == account);
    let runs = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sally-agent\n");
    block_on(eventually("its memory is closed", || runs() && own() && owner_of_memory(pid) == 0));
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// Who may open a process's memory, by the owner of its files.
fn owner_of_memory(pid: i32) -> u32 {
    fs::metadata(format!("/proc/{pid}/mem")).map_or(u32::MAX, |file| file.uid())
}

/// A command of an account, without capabilities.
fn as_account(account: u32, words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    if account != nix::unistd::geteuid().as_raw() {
        let id = account.to_string();
        command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).args(words);
    }
    command.stderr(Stdio::null());
    command
}

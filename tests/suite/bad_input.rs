//! Bad input: every item has a defined answer, an exit code, a sentence, and loses or leaves nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Said, Up, eventually, programs, run};

/// Runs `sally` and checks the exit code and the words of its sentence.
#[track_caller]
fn refused(up: &Up, args: &[&str], code: i32, words: &[&str]) -> Said {
    let said = up.sally(args).expect(code);
    for word in words {
        assert!(said.stderr.contains(word), "{args:?}: no \"{word}\" in {}", said.stderr);
    }
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
    said
}

/// Writes a file into the test's folder and returns its path as text.
fn file(up: &Up, name: &str, content: &[u8]) -> String {
    let path = up.scratch().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The one run of `exec … -- sh -c script` on local-1.
#[track_caller]
fn shell(up: &Up, script: &str, code: i32) -> Value {
    one(up.json(&["exec", "-a", "local-1", "--", "sh", "-c", script], code))
}

fn one(mut record: Value) -> Value {
    assert_eq!(record["runs"].as_array().unwrap().len(), 1);
    record["runs"][0].take()
}

fn jobs(up: &Up) -> usize {
    up.json(&["job", "ls"], 0)["jobs"].as_array().unwrap().len()
}

/// Every process id of the machine whose command line has this word.
fn processes_with(word: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(word) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_submitted() {
    let up = Up::start(1);
    let hi = &file(&up, "hi.sh", b"#!/bin/sh\necho hi\n");
    let empty = &file(&up, "empty", b"");
    let text = &file(&up, "text.txt", b"echo hi\n");
    let nul = &file(&up, "nul.sh", b"#!/bin/sh\necho a\0b\n");
    let bom = &file(&up, "bom.sh", b"\xef\xbb\xbf#!/bin/sh\n");
    let env = &file(&up, "env.py", b"#!/usr/bin/env python3 -u\n");
    let missing = &format!("{}/no.sh", up.scratch().display());
    for (args, words) in [
        (&["run", "--bogus", "-a", "local-1", hi][..], &["--bogus"][..]),
        (&["nonsense"], &["nonsense"]),
        (&["run", "-a", "local-1", hi, "--timeout", "banana"], &["banana", "30s"]),
        (&["run", "-a", "local-1", hi, "--timeout", "0s"], &["0s"]),
        (&["run", "-a", "local-1", hi, "--profile", "Root!"], &["Root!", "1 to 63"]),
        (&["run", "-a", "local-1", hi, "-o", "xml"], &["xml", "jsonl"]),
        (&["run", "-a", "local-1", hi, "--encoding", "klingon"], &["klingon", "gb18030"]),
        (&["run", "-a", "local-1", hi, "-p", "a:=nope"], &["-p a:=", "not JSON"]),
        (&["run", "-a", "local-1", hi, "-p", "a=1", "-p", "a=2"], &["a"]),
        (&["run", "-a", "local-1", hi, "--env", "SALLY_JOB=x"], &["SALLY_"]),
        (&["run", "-a", "local-1", hi, "--detach", "--wait", "1s"], &["--detach", "--wait"]),
        (&["run", "-a", "local-1", missing], &["no file", "no.sh"]),
        (&["run", "-a", "local-1", "/tmp"], &["folder"]),
        (&["run", "-a", "local-1", "word"], &["no task named", "./"]),
        (&["run", "-a", "local-1", empty], &["empty", "the file is empty"]),
        (&["run", "-a", "local-1", text], &["#!", "--interpreter"]),
        (&["run", "-a", "local-1", nul], &["NUL", "byte 16"]),
        (&["run", "-a", "local-1", bom], &["byte order mark"]),
        (&["run", "-a", "local-1", env], &["env -S"]),
        (&["exec", "-a", "local-1"], &["CMD"]),
        (&["exec", "--", "true"], &["no target given", "--all"]),
        (&["exec", "-a", "A B", "--", "true"], &["A B", "names no agent"]),
        (&["exec", "-a", "@/no/such/list", "--", "true"], &["@/no/such/list"]),
        (&["exec", "-l", "a in (", "--", "true"], &["selector", "character 7"]),
        (&["exec", "-l", "a=b=c", "--", "true"], &["selector", "character 4"]),
        (&["exec", "-l", "a,,b", "--", "true"], &["selector", "character 3"]),
    ] {
        refused(&up, args, 2, words);
    }
    // What no agent answers to is found out by the controller.
    for (args, words) in [
        (&["exec", "-a", "nobody", "--", "true"][..], &["no agent \"nobody\"", "agent ls"][..]),
        (&["exec", "-a", "nobody", "-a", "local-1", "--", "true"], &["\"nobody\""]),
        (&["exec", "-a", "web-*", "--", "true"], &["no agent matches"]),
        (&["exec", "-l", "role=web", "--", "true"], &["no agent matches"]),
        (&["exec", "-z", "elsewhere", "--", "true"], &["no zone \"elsewhere\""]),
    ] {
        refused(&up, args, 4, words);
    }
    // An error is an object where one was asked for.
    let said = up.sally(&["exec", "-a", "nobody", "-o", "json", "--", "true"]).expect(4);
    let error: Value = serde_json::from_str(said.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&error["exit"], said.stdout.len()), (&json!(4), 0));
    assert_eq!(jobs(&up), 0, "nothing of this became a job");
}

#[test]
fn programs_that_cannot_run_say_why() {
    let up = Up::start(1);
    let windows = &file(&up, "windows.sh", b"#!/bin/sh\r\necho hi $1\r\n");
    refused(&up, &["run", "-a", "local-1", windows], 2, &["carriage return", "--fix-crlf"]);
    let said = up.sally(&["run", "-a", "local-1", "--fix-crlf", windows, "--", "you"]).expect(0);
    assert_eq!(said.text(), "hi you\n");
    let text = &file(&up, "text.txt", b"echo hi\n");
    let said = up.sally(&["run", "-a", "local-1", "--interpreter", "/bin/sh", text]).expect(0);
    assert_eq!(said.text(), "hi\n");

    let interpreter = &file(&up, "absent.sh", b"#!/no/such/interpreter\n");
    for (args, what) in [
        (&["run", "-a", "local-1", interpreter][..], "/no/such/interpreter"),
        (&["run", "-a", "local-1", "--interpreter", "/nope", text], "/nope"),
        (&["exec", "-a", "local-1", "--", "no-such-command"], "no-such-command"),
    ] {
        refused(&up, args, 3, &[what, "does not exist"]);
        let run = one(up.json(args, 3));
        assert_eq!((&run["state"], &run["reason"]), (&json!("failed"), &json!("not-found")), "{args:?}");
        assert_eq!(run["exit_code"], Value::Null);
    }

    // A program of this machine with another processor's number in its head.
    let mut elf = std::fs::read(programs().join("sally-agent")).unwrap();
    let other: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    elf[18..20].copy_from_slice(&other.to_le_bytes());
    elf.truncate(100_000);
    let elf = &file(&up, "other.elf", &elf);
    refused(&up, &["run", "-a", "local-1", elf], 6, &["ELF program for", "the agent runs on"]);
    let run = one(up.json(&["run", "-a", "local-1", elf], 6));
    assert_eq!((&run["state"], &run["reason"]), (&json!("rejected"), &json!("bad-program")));
    assert_eq!((&run["final"], &run["started_at"]), (&json!(true), &Value::Null));
}

#[test]
fn output_that_is_not_utf_8_keeps_its_bytes() {
    let up = Up::start(1);
    let print = |escaped: &str| format!("printf '{escaped}'");
    let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", &print(r"caf\351\n")]).expect(0);
    assert_eq!(said.stdout, b"caf\xe9\n");
    let run = shell(&up, &print(r"caf\351\n"), 0);
    assert_eq!((&run["stdout"], &run["stdout_encoding"]), (&json!("Y2Fm6Qo="), &json!("base64")));
    let said = up.sally(&["job", "logs", "--raw", "latest"]).expect(0);
    assert_eq!(said.stdout, b"caf\xe9\n");
    let chinese = print(r"\304\343\272\303\n");
    let args = ["exec", "-a", "local-1", "--encoding", "gb18030", "--", "sh", "-c", &chinese];
    assert_eq!(up.sally(&args).expect(0).text(), "你好\n");
}

#[test]
fn a_bad_result_fails_the_run_and_says_where() {
    let up = Up::start(1);
    for (written, offset, words) in [
        (r#"{"a":"#, 5, "found the end"),
        (r#"{"a":1,"a":2}"#, 7, "twice"),
        (r#"{"a":1,"\u0061":2}"#, 7, "twice"),
        (r#"{"a":NaN}"#, 5, "NaN"),
        (r#"-Infinity"#, 1, "JSON"),
        (r#"{"a":1} x"#, 8, "found `x`"),
        (r#""\ud800""#, 1, "surrogate"),
        (r#"{"a":1}[1]"#, 7, "lone value"),
        (r#"[1][2]"#, 3, "value"),
        ("1e400", 0, "double"),
        ("{\"a\":\"\u{1}\"}", 6, ""),
        (r#"{"@progress": {"wrong": 1}}"#, 0, "@progress"),
    ] {
        let quoted = written.replace('\'', "'\\''");
        let run = shell(&up, &format!("printf '%s' '{quoted}' >&3"), 3);
        assert_eq!(
            (&run["state"], &run["reason"], &run["result_state"], &run["exit_code"], &run["result"]),
            (&json!("failed"), &json!("result-invalid"), &json!("invalid"), &json!(0), &Value::Null),
            "{written}"
        );
        assert_eq!(run["result_error"]["offset"], offset, "{written}: {}", run["result_error"]);
        let message = run["result_error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{written}: {message}");
    }
    let run = shell(&up, r#"printf '{"a":"\377"}' >&3"#, 3);
    assert_eq!((&run["result_state"], &run["result_error"]["offset"]), (&json!("invalid"), &json!(6)));

    let deep = |n: usize| format!("printf '%s' '{}{}' >&3", "[".repeat(n), "]".repeat(n));
    assert_eq!(shell(&up, &deep(64), 0)["result_state"], "valid");
    let run = shell(&up, &deep(65), 3);
    assert_eq!((&run["result_state"], &run["result_error"]["offset"]), (&json!("invalid"), &json!(64)));

    // 1 MiB is the limit: a text of that many bytes has two quotes too many.
    let wide = |n: usize| format!("(printf '\"'; head -c {n} /dev/zero | tr '\\0' x; printf '\"') >&3");
    let run = shell(&up, &wide(1024 * 1024 - 2), 0);
    assert_eq!(run["result"].as_str().unwrap().len(), 1024 * 1024 - 2);
    let run = shell(&up, &wide(1024 * 1024 - 1), 3);
    assert_eq!((&run["state"], &run["reason"]), (&json!("failed"), &json!("result-oversize")));
    assert_eq!((&run["result_state"], &run["result"]), (&json!("oversize"), &Value::Null));
    // So much that the door itself is closed: counted, drained, and the script ends by itself.
    let run = shell(&up, &wide(30_000_000), 3);
    assert_eq!((&run["result_state"], &run["exit_code"]), (&json!("oversize"), &json!(0)));

    let said =
        up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", "echo '{\"a\":1,\"a\":2}' >&3"]).expect(3);
    assert_eq!(said.stderr.matches("twice").count(), 1, "said once: {}", said.stderr);
    assert!(said.stderr.contains("result invalid at byte 7"), "{}", said.stderr);
}

#[test]
fn scripts_that_end_in_odd_ways_end() {
    let up = Up::start(1);
    let run = shell(&up, "exec 3>&-; echo bye", 0);
    assert_eq!((&run["stdout"], &run["result_state"]), (&json!("bye\n"), &json!("absent")));

    // Children left behind: in the background, and in a session of their own with every descriptor.
    let run = shell(&up, "setsid sleep 98712 & sleep 98713 & echo hi; sleep 0.2", 0);
    assert_eq!(
        (&run["state"], &run["stdout"], &run["leftovers"]),
        (&json!("succeeded"), &json!("hi\n"), &json!(2))
    );
    assert!(processes_with("sleep\u{0}9871").is_empty(), "no child is left");
    let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", "sleep 98714 &"]).expect(0);
    assert!(said.stderr.contains("1 process outlived it"), "{}", said.stderr);

    for (name, number) in [("SEGV", 11), ("KILL", 9), ("TERM", 15)] {
        let run = shell(&up, &format!("kill -{name} $$"), 3);
        assert_eq!((&run["state"], &run["reason"]), (&json!("failed"), &json!("signal")), "{name}");
        assert_eq!((&run["signal"], &run["exit_code"]), (&json!(number), &Value::Null), "{name}");
    }

    let deaf = "trap '' TERM; echo start; while :; do sleep 0.05; done";
    let args = ["exec", "-a", "local-1", "--timeout", "500ms", "--grace", "300ms", "--", "sh", "-c", deaf];
    refused(&up, &args, 5, &["timed_out", "timeout"]);
    let run = one(up.json(&args, 5));
    assert_eq!((&run["state"], &run["reason"]), (&json!("timed_out"), &json!("timeout")));
    assert_eq!((&run["signal"], &run["stdout"]), (&json!(9), &json!("start\n")));
    assert!(run["duration_ms"].as_u64().unwrap() >= 800, "TERM, the grace, then KILL: {run}");
}

/// More than a stream may have: drained, so that the script ends by itself; the first part kept; the rest
/// counted; and no process grows with it.
#[test]
fn output_without_end_is_bounded_marked_and_counted() {
    const PRINTED: u64 = 1_000_000_000;
    let up = Up::start(1);
    let script = format!("head -c {PRINTED} /dev/zero; echo done >&2");
    let args = ["exec", "-a", "local-1", "-o", "json", "--", "sh", "-c", &script];
    let run = one(up.sally(&args).expect(0).json());
    assert_eq!(
        (&run["state"], &run["exit_code"], &run["stderr"]),
        (&json!("succeeded"), &json!(0), &json!("done\n"))
    );
    let missing = run["stdout_truncated_bytes"].as_u64().unwrap();
    assert_eq!(run["stdout"].as_str().unwrap().len() as u64 + missing, PRINTED, "kept and counted are all");
    for (name, most_mib) in [("local-1", 64), ("local-1.launcher", 64), ("serve", 128), ("nats-server", 192)]
    {
        let status = std::fs::read_to_string(format!("/proc/{}/status", up.pid_of(name).unwrap())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib < most_mib * 1024, "{name} grew to {kib} KiB");
    }
    // The first bytes are there, and the end says how many are not.
    let mut logs = up.command();
    logs.args(["job", "logs", "--raw", "latest"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = logs.spawn().unwrap();
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("bytes of stdout were beyond the bound"), "{said}");
    let gone: u64 = said.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(gone > 0 && gone <= missing, "{said}");
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let up = Up::start(1);
    let context = std::fs::read_to_string(up.dir().join("context.toml")).unwrap();
    let mut table: toml::Table = context.parse().unwrap();
    table.insert("url".into(), toml::Value::String("nats://127.0.0.1:1".into()));
    let dead = up.dir().join("dead.toml");
    std::fs::write(&dead, table.to_string()).unwrap();
    let dead = dead.to_str().unwrap();
    refused(
        &up,
        &["--context", dead, "exec", "--all", "--", "true"],
        7,
        &["cannot reach the broker", "127.0.0.1:1", "sally up"],
    );
    refused(&up, &["--context", dead, "agent", "ls"], 7, &["cannot reach the broker"]);
    refused(&up, &["--context", "/no/such.toml", "agent", "ls"], 2, &["/no/such.toml"]);
    refused(&up, &["--context", "nonesuch", "agent", "ls"], 2, &["nonesuch"]);
}

/// The broker dies under a run and comes back by itself: the command waits, says so, and has the whole answer.
#[test]
fn a_broker_that_goes_halfway_costs_nothing() {
    let up = Up::start(1);
    let marks = up.scratch().join("begun");
    let script = "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two; echo '{\"ok\":true}' >&3";
    // The sandbox has no way to a file of ours, so time is the signal: the run sleeps past the restart.
    let script = script.replace("while [ ! -e go ]; do sleep 0.05; done", "sleep 3");
    let mut child = up
        .command()
        .args(["exec", "-a", "local-1", "--", "sh", "-c", &script])
        .stdout(std::fs::File::create(&marks).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the first line", || (std::fs::read(&marks).unwrap() == b"one\n").then_some(()));
    let broker = up.pid_of("nats-server").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(broker), nix::sys::signal::Signal::SIGKILL).unwrap();
    let code = eventually("the end of the command", || child.try_wait().unwrap()).code();
    let mut words = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
    assert_eq!(code, Some(0), "{words}");
    assert_eq!(std::fs::read_to_string(&marks).unwrap(), "one\ntwo\n", "{words}");
    assert_eq!(up.sally(&["job", "result", "latest"]).expect(0).text(), "{\"ok\":true}\n");
    assert_eq!(jobs(&up), 1, "nothing was submitted twice");
}

/// `sally up` as far as it comes, in a folder of the test.
fn up_command(dir: &Path, home: &Path) -> Command {
    let mut command = Command::new(programs().join("sally"));
    command.args(["up", "--agents", "1", "--dir"]).arg(dir);
    for name in ["XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env(name, home.join(name));
    }
    command
}

#[test]
fn up_says_what_keeps_it_from_starting() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { scratch.path().join(name) };
    std::fs::write(at("file"), b"").unwrap();
    let old = at("old-server");
    std::fs::write(&old, "#!/bin/sh\necho 'nats-server: v2.9.10'\n").unwrap();
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let check = |command: &mut Command, code: i32, words: &[&str]| {
        let said = run(command).expect(code);
        assert!(said.stdout.is_empty(), "it is not ready");
        for word in words {
            assert!(said.stderr.contains(word), "no \"{word}\" in {}", said.stderr);
        }
    };
    let up = |dir: &str| up_command(&at(dir), scratch.path());
    check(&mut up("file"), 2, &["cannot use", "a file, not a folder", "--dir"]);
    check(
        &mut up_command(Path::new("/proc/nowhere"), scratch.path()),
        2,
        &["cannot use /proc/nowhere", "--dir"],
    );
    check(
        up("new").arg("--nats-server").arg(&old),
        2,
        &["named by --nats-server", "2.9.10", "2.10.27", "make nats-server"],
    );
    check(
        up("new").env("SALLY_NATS_SERVER", "/nope"),
        2,
        &["named by SALLY_NATS_SERVER", "make nats-server"],
    );
    // The project's own copy stands above the programs, so a copy of the program elsewhere finds nothing.
    let lone = at("sally");
    std::fs::copy(programs().join("sally"), &lone).unwrap();
    let mut command = Command::new(&lone);
    command.args(["up", "--dir"]).arg(at("new")).env_remove("SALLY_NATS_SERVER").env("PATH", scratch.path());
    check(&mut command, 2, &["no nats-server found", "make nats-server", "2.10.27"]);
    assert!(!at("new").exists(), "nothing was left");
}

#[test]
fn a_second_up_on_one_folder_leaves_the_first_alone() {
    let up = Up::start(1);
    let said = run(&mut up_command(&up.dir(), up.scratch())).expect(8);
    assert!(said.stderr.contains("in use by another `sally up`"), "{}", said.stderr);
    assert!(said.stderr.contains(&up.pid().to_string()), "{}", said.stderr);
    up.sally(&["exec", "-a", "local-1", "--", "true"]).expect(0);
}

#[test]
fn a_damaged_ledger_is_named_and_left_as_it_is() {
    let up = Up::start(1);
    let dir = up.stop();
    let state = dir.path().join("up");
    let ledger = state.join("controller/ledger.db");
    let garbage = b"this is no ledger, and somebody may want it back".repeat(100);
    for beside in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(ledger.with_file_name(format!("ledger.db{beside}")));
    }
    std::fs::write(&ledger, &garbage).unwrap();
    let said = run(&mut up_command(&state, dir.path())).expect(1);
    assert!(said.stdout.is_empty());
    let last = said.stderr.lines().last().unwrap();
    for word in ["does not start", "ledger.db", "restore it from a backup"] {
        assert!(last.contains(word), "no \"{word}\" in {}", said.stderr);
    }
    let mut serve = Command::new(programs().join("sally"));
    let said = run(serve.arg("serve").arg("--config").arg(state.join("serve.toml"))).expect(1);
    assert!(said.stderr.contains("ledger.db"), "{}", said.stderr);
    assert_eq!(std::fs::read(&ledger).unwrap(), garbage, "it is not touched");
    let path = state.to_str().unwrap();
    assert!(processes_with(path).is_empty(), "nothing is left running");
}

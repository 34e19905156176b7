//! Much output: complete, in order, and bounded wherever it passes.

use std::io::Read;
use std::process::{Command, Stdio};

use sally_common::id::Digest;

use crate::harness::Up;

/// 100 MB whose every line is another: a piece lost, doubled or moved changes the digest.
const LINES: u64 = 6_250_000;
const SCRIPT: &str = "seq -f '%015.0f' 1 6250000";

fn expected() -> Digest {
    let mut bytes = Vec::with_capacity(100_000_000);
    for n in 1..=LINES {
        bytes.extend_from_slice(format!("{n:015}\n").as_bytes());
    }
    assert_eq!(bytes.len(), 100_000_000);
    Digest::of(&bytes)
}

/// Runs to the end and returns the digest of what came on stdout. Patient: a debug build is slow.
fn digest_of(command: &mut Command) -> (usize, Digest) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut bytes = Vec::with_capacity(100_000_000);
    child.stdout.take().unwrap().read_to_end(&mut bytes).unwrap();
    assert!(child.wait().unwrap().success());
    (bytes.len(), Digest::of(&bytes))
}

fn peak_mib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_hundred_megabytes_arrive_complete_and_in_order() {
    let up = Up::start(1);
    let want = (100_000_000, expected());
    let mut live = up.command();
    live.args(["exec", "-a", "local-1", "--", "sh", "-c", SCRIPT]);
    assert_eq!(digest_of(&mut live), want, "as it comes");
    let mut kept = up.command();
    kept.args(["job", "logs", "--raw", "latest"]);
    assert_eq!(digest_of(&mut kept), want, "from the store");
    // The record has the first and the last part and says how much is between them.
    let record = up.json(&["job", "show", "latest"], 0);
    let run = &record["runs"][0];
    let shown = run["stdout"].as_str().unwrap();
    assert_eq!(shown.len(), 2 * 1024 * 1024);
    assert_eq!(run["stdout_truncated_bytes"], 100_000_000 - 2 * 1024 * 1024);
    assert!(shown.starts_with("000000000000001\n") && shown.ends_with("000000006250000\n"));
    for (name, most) in [("local-1", 64), ("local-1.launcher", 64), ("serve", 128), ("nats-server", 192)] {
        let peak = peak_mib(up.pid_of(name).unwrap());
        assert!(peak < most, "{name} grew to {peak} MiB");
    }
}

/// A reader that stops reading costs nobody memory, and gets everything when it goes on.
#[test]
fn a_reader_that_stalls_is_waited_for() {
    let up = Up::start(1);
    let mut command = up.command();
    command.args(["exec", "-a", "local-1", "--", "sh", "-c", "head -c 30000000 /dev/zero"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    // The run itself does not wait for the reader: it ends and its output is stored.
    let ended = || {
        let record = up.json(&["job", "show", "latest"], 0);
        (record["runs"][0]["state"] == "succeeded").then_some(())
    };
    crate::harness::eventually("the end of the run", ended);
    let reader = i32::try_from(child.id()).unwrap();
    assert!(peak_mib(reader) < 96, "the waiting command grew to {} MiB", peak_mib(reader));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 30_000_000 - 1);
    assert!(child.wait().unwrap().success());
    for (name, most) in [("local-1", 64), ("serve", 128), ("nats-server", 192)] {
        let peak = peak_mib(up.pid_of(name).unwrap());
        assert!(peak < most, "{name} grew to {peak} MiB");
    }
}

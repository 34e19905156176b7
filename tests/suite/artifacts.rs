//! Files that scripts leave behind: from the work folder to the reader's, byte for byte.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::effects::send;
use crate::faults::points::Points;
use crate::harness::{Up, eventually, run};

/// Writes bytes that are the same every time and no text.
const MAKE: &str = "import sys\n\
    def make(path, count):\n    open(path, 'wb').write(bytes((i * i + i // 251) % 256 for i in range(count)))\n";

fn expected(count: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * i + i / 251) % 256) as u8).collect()
}

/// Runs a Python script on the one agent, with its files written into `into`.
fn python(up: &Up, into: &Path, script: &str, code: i32) -> Value {
    let file = up.scratch().join("script.py");
    fs::write(&file, format!("#!/usr/bin/env python3\n{MAKE}{script}")).unwrap();
    let (file, into) = (file.to_str().unwrap(), into.to_str().unwrap());
    up.json(&["run", file, "-a", "local-1", "--output-dir", into], code)["runs"][0].clone()
}

fn names(dir: &Path) -> Vec<String> {
    let entry = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
    let mut all: Vec<String> = fs::read_dir(dir).unwrap().map(entry).collect();
    all.sort();
    all
}

fn sha256(path: &Path) -> String {
    let said = run(Command::new("sha256sum").arg(path)).expect(0).text();
    said.split(' ').next().unwrap().to_owned()
}

#[test]
fn files_arrive_as_the_script_wrote_them() {
    let up = Up::start(1);
    let into = up.scratch().join("got");
    let script = r#"
import os, subprocess
make("big.bin", 3_000_000)
os.mkdir("out"); os.mkdir("more")
open("out/report.txt", "w").write("fine, hunter2secret\n")
open("more/report.txt", "w").write("another\n")
open("empty", "w").close()
os.write(3, b'{"@mask":"hunter2secret"} {"n":1}')
os.write(3, b'{"@artifact":{"path":"big.bin","name":"data"}} {"@artifact":"empty"}')
for path in ["out/report.txt", "more/report.txt"]:
    subprocess.check_call(["sally-task", "artifact", path])
"#;
    let record = python(&up, &into, script, 0);
    let dir = into.join("local-1.artifacts");
    assert_eq!(names(&dir), ["data", "empty", "report.txt", "report.txt.2"]);
    assert!(fs::read(dir.join("data")).unwrap() == expected(3_000_000), "the same bytes");
    assert_eq!(fs::read(dir.join("empty")).unwrap(), b"");
    // A file is the script's own: a value that is masked in the output stands in it.
    assert_eq!(fs::read_to_string(dir.join("report.txt")).unwrap(), "fine, hunter2secret\n");
    assert_eq!(fs::read_to_string(dir.join("report.txt.2")).unwrap(), "another\n");
    let first = &record["artifacts"][0];
    assert_eq!((&first["name"], &first["path"]), (&json!("data"), &json!("big.bin")));
    assert_eq!((&first["bytes"], &first["stream"]), (&json!(3_000_000), &json!("artifact-0")));
    assert_eq!(first["digest"], sha256(&dir.join("data")));
    assert_eq!(record["result"], json!({"n": 1}));

    // The same later, from the controller's store.
    let listed = up.json(&["job", "artifacts", "latest"], 0)["artifacts"].clone();
    assert_eq!(listed.as_array().unwrap().len(), 4, "{listed}");
    assert_eq!((&listed[0]["agent"], &listed[0]["bytes"]), (&json!("local-1"), &json!(3_000_000)));
    let again = up.scratch().join("again");
    let args = ["job", "artifacts", "latest", "--output-dir", again.to_str().unwrap()];
    let said = up.sally(&args).expect(0).text();
    assert!(said.contains("report.txt.2") && said.contains("3000000"), "{said}");
    assert_eq!(names(&again.join("local-1.artifacts")), names(&dir));
    assert_eq!(sha256(&again.join("local-1.artifacts/data")), sha256(&dir.join("data")));
}

#[test]
fn what_cannot_be_kept_says_why_and_the_run_is_what_it_was() {
    let up = Up::start(1);
    let into = up.scratch().join("got");
    let script = r#"
import os
os.symlink("/etc/shadow", "link"); os.symlink("/etc", "way"); os.mkdir("folder"); os.mkfifo("pipe")
open("good", "w").write("good")
open("huge", "w").truncate(65 << 20)
for path in ["gone", "link", "way/passwd", "folder", "pipe", "huge", "good"]:
    os.write(3, b'{"@artifact":"%s"}' % path.encode())
"#;
    let record = python(&up, &into, script, 0);
    assert_eq!((&record["state"], &record["exit_code"]), (&json!("succeeded"), &json!(0)));
    let words =
        ["no such file", "symbolic link", "symbolic link", "folder", "no regular file", "artifact_bytes"];
    for (at, word) in words.into_iter().enumerate() {
        let entry = &record["artifacts"][at];
        assert!(entry["error"].as_str().is_some_and(|e| e.contains(word)), "{word}: {entry}");
        assert!(entry["stream"].is_null() && entry["digest"].is_null(), "{entry}");
    }
    assert_eq!(record["artifacts"][6]["stream"], "artifact-6");
    assert_eq!(names(&into.join("local-1.artifacts")), ["good"]);
    let said = up.sally(&["job", "artifacts", "latest"]).expect(0).text();
    assert!(said.contains("gone") && said.contains("no such file in the work folder"), "{said}");

    let script = "import os\nfor n in range(70):\n    open(str(n), 'w').write(str(n))\n    \
                  os.write(3, b'{\"@artifact\":\"%d\"}' % n)\nraise SystemExit(4)\n";
    let record = python(&up, &into, script, 3);
    assert_eq!((&record["state"], &record["exit_code"]), (&json!("failed"), &json!(4)));
    let all = record["artifacts"].as_array().unwrap();
    assert_eq!((all.len(), all.iter().filter(|a| a["error"].is_null()).count()), (70, 64));
    assert!(all[69]["error"].as_str().unwrap().contains("artifact_files"), "{}", all[69]);
    assert_eq!(fs::read(into.join("local-1.artifacts/63")).unwrap(), b"63");
}

/// More than one window of a stream, so that it goes on after receipts.
const LONG: usize = 9_000_000;

fn killed_at(point: &str) {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let points = Points { dir: dir.path().join("fail") };
    fs::create_dir_all(&points.dir).unwrap();
    let up = Up::start_changed(dir, 1, &[], |command| {
        command.env("SALLY_FAIL", &points.dir);
    });
    let script = format!("make('long', {LONG})\nimport os\nos.write(3, b'{{\"@artifact\":\"long\"}}')\n");
    let into = up.scratch().join("got");
    points.arm(point, "pause");
    let record = std::thread::scope(|scope| {
        let asked = scope.spawn(|| python(&up, &into, &script, 0));
        let pid = eventually("the agent stands still", || {
            fs::read_to_string(points.dir.join(format!("{point}.hit"))).ok()?.trim().parse().ok()
        });
        send(pid, Signal::SIGKILL);
        asked.join().unwrap()
    });
    assert_eq!((&record["state"], &record["attempt"]), (&json!("succeeded"), &json!(1)), "{record}");
    let file = into.join("local-1.artifacts/long");
    assert!(fs::read(&file).unwrap() == expected(LONG), "the same bytes");
    assert_eq!(record["artifacts"][0]["digest"], sha256(&file));
}

#[test]
fn an_agent_that_is_killed_after_the_exit_still_delivers() {
    killed_at("agent.exit.seen");
}

#[test]
fn an_agent_that_is_killed_after_the_spool_still_delivers() {
    killed_at("agent.spool.after");
}

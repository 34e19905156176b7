//! The demo that both READMEs show is one and the same, and works as it stands there.

use std::path::Path;
use std::process::Command;

use crate::harness::{programs, repository, run};

/// What stands between the marks of this name.
pub fn block(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(repository().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (_, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{file} has no {begin}"));
    let (block, _) = rest.split_once(&end).unwrap_or_else(|| panic!("{file} has no {end}"));
    block.trim().to_owned()
}

/// The lines of the fenced shell code in a block.
pub fn commands(block: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in block.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push(line.to_owned());
        }
    }
    lines
}

#[test]
fn the_demo_of_both_readmes_is_the_same() {
    for name in ["demo", "delivery"] {
        let of = |file| commands(&block(file, name));
        assert!(!of("README.md").is_empty(), "{name} has no commands");
        assert_eq!(of("README.md"), of("README.zh-CN.md"), "{name}");
    }
}

#[test]
fn the_demo_of_the_readmes_works_as_it_stands_there() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository().join("examples"), dir.path().join("examples")).unwrap();
    let path = std::env::var("PATH").unwrap();
    // A demo that hangs is ended with all that it started: `timeout` signals the whole group.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "45", "bash", "-euo", "pipefail", "-c"]);
    command.arg(commands(&block("README.md", "demo")).join("\n")).current_dir(dir.path());
    command.env("PATH", format!("{}:{path}", programs().display())).env_remove("SALLY_CONTEXT");
    in_folder(&mut command, dir.path());
    let said = run(&mut command).expect(0);
    let text = said.text();
    // Twice a failing command, once a cancelled job, in this order; and what each showed.
    let codes: Vec<&str> = text.lines().filter(|l| l.starts_with("exit code ")).collect();
    assert_eq!(codes, ["exit code 3", "exit code 3", "exit code 9"], "{text}\n{}", said.stderr);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let parts =
        ["local-3", "hi\n", "\"exit_code\": 7", "\"result_state\": \"valid\"", "cancelled", kernel.trim()];
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}\n{}", said.stderr);
    }
    assert_eq!(left_of(dir.path()), [0; 0], "processes of the demo are still there");
}

#[test]
fn make_demo_runs_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = programs().parent().unwrap().to_owned();
    let out = dir.path().join("out");
    // Into files: whoever stays behind would hold a pipe open, and be waited for instead of found.
    let mut command = Command::new("bash");
    command.args(["-c", "exec packaging/demo.sh > \"$1/out\" 2> \"$1/err\"", "-"]).arg(dir.path());
    command.current_dir(repository());
    command.env("TARGET_DIR", target).env("SALLY_DEMO_DIR", dir.path().join("demo"));
    in_folder(&mut command, dir.path());
    let said = run(&mut command);
    let stderr = std::fs::read_to_string(dir.path().join("err")).unwrap();
    assert_eq!(said.code, 0, "{stderr}");
    assert_eq!(left_of(dir.path()), [0; 0], "processes of the demo are still there");
    // The folded table of three, and one record with its inventory.
    let text = std::fs::read_to_string(out).unwrap();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let rows = text
        .lines()
        .filter_map(|l| l.strip_prefix("succeeded")?.split_whitespace().next()?.parse::<u32>().ok());
    assert_eq!(rows.sum::<u32>(), 3, "agents in the folded table: {text}\n{}", stderr);
    for part in ["local-1", "\"result_state\": \"valid\"", kernel.trim(), "\"enforced\""] {
        assert!(text.contains(part), "{part} is not in: {text}\n{}", stderr);
    }
}

/// What a user has, in a folder of the test's own.
fn in_folder(command: &mut Command, dir: &Path) {
    for name in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        command.env(name, dir.join(name));
    }
}

/// Processes that were started with this folder in their environment.
fn left_of(dir: &Path) -> Vec<i32> {
    let dir = dir.to_str().unwrap();
    let knows_it = |pid: &i32| {
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains(dir)
    };
    crate::outside::processes().into_iter().filter(knows_it).collect()
}

//! The demo that both READMEs show is one and the same, and works as it stands there.

use std::process::Command;

use crate::harness::{programs, repository, run};

/// What stands between the demo's marks.
fn block(file: &str) -> String {
    let text = std::fs::read_to_string(repository().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let (_, rest) = text.split_once("<!-- demo -->").unwrap_or_else(|| panic!("{file} has no demo block"));
    let (block, _) =
        rest.split_once("<!-- /demo -->").unwrap_or_else(|| panic!("{file}: its demo has no end"));
    block.trim().to_owned()
}

/// The lines of the fenced shell code in a block.
fn commands(block: &str) -> Vec<String> {
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
    let (english, chinese) = (commands(&block("README.md")), commands(&block("README.zh-CN.md")));
    assert!(!english.is_empty(), "the demo has no commands");
    assert_eq!(english, chinese);
}

#[test]
fn make_demo_runs_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let target = programs().parent().unwrap().to_owned();
    let mut command = Command::new(repository().join("packaging/demo.sh"));
    command.env("TARGET_DIR", target).env("SALLY_DEMO_DIR", dir.path().join("demo"));
    command.env("XDG_STATE_HOME", dir.path()).env("XDG_DATA_HOME", dir.path());
    command.env("XDG_CONFIG_HOME", dir.path());
    let said = run(&mut command).expect(0);
    // The folded table of three, and one record with its inventory.
    let text = said.text();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in ["local-1", "local-3", "\"result_state\": \"valid\"", kernel.trim(), "\"enforced\""] {
        assert!(text.contains(part), "{part} is not in: {text}\n{}", said.stderr);
    }
    let demo = dir.path().to_str().unwrap();
    let left: Vec<i32> = crate::outside::processes()
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(demo)
        })
        .collect();
    assert_eq!(left, [0; 0], "processes of the demo are still there");
}

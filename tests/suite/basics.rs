//! What everybody does first.

use crate::harness::{Up, eventually};
use serde_json::json;

#[test]
fn a_failing_command_shows_its_exit_code_its_result_and_its_output() {
    let up = Up::start(1);
    let script = r#"echo hi; echo "{\"a\":1}" >&3; exit 7"#;
    let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", script]).expect(3);
    assert_eq!(said.text(), "hi\n");
    let record = up.json(&["exec", "-a", "local-1", "--", "sh", "-c", script], 3);
    let run = &record["runs"][0];
    assert_eq!(run["exit_code"], 7);
    assert_eq!(run["result"], json!({"a": 1}));
    assert_eq!(run["result_state"], "valid");
    assert_eq!(run["stdout"], "hi\n");
    assert_eq!((&run["state"], &run["final"]), (&json!("failed"), &json!(true)));
}

#[test]
fn three_agents_answer_one_inventory() {
    let up = Up::start(3);
    let record = up.json(&["run", "--all", "--profile", "host", "examples/host-inventory.sh"], 0);
    let runs = record["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for run in runs {
        assert_eq!(run["state"], "succeeded");
        assert_eq!(run["result"]["kernel"]["release"], kernel.trim());
    }
}

#[test]
fn a_settled_runs_folder_serves_the_next_run() {
    use std::os::unix::fs::MetadataExt as _;
    let up = Up::start(1);
    let spare = up.dir().join("agents/local-1/state/spare");
    let put_aside = |what: &str| {
        eventually(what, || {
            let mut folders = std::fs::read_dir(&spare).ok()?.flatten();
            let folder = folders.next()?.path();
            let file = |name: &str| std::fs::metadata(folder.join(name)).ok();
            // Emptied, and the same files as before: new ones cost a file system more than the rest of a run.
            let alone = folders.next().is_none();
            file("stdout")
                .filter(|_| alone && file("released").is_some_and(|f| f.len() == 0))
                .map(|f| f.ino())
        })
    };
    up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", "echo first"]).expect(0);
    let first = put_aside("the first run's folder is put aside");
    let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", "echo second"]).expect(0);
    assert_eq!(said.text(), "second\n");
    assert_eq!(put_aside("the second run's folder is put aside"), first);
}

#[test]
fn the_end_of_up_is_the_end_of_all_it_started_and_the_ledger_stays() {
    let up = Up::start(2);
    let id = up.sally(&["exec", "--all", "--detach", "--", "sleep", "600"]).expect(0).text();
    let id = id.trim().to_owned();
    eventually("both runs are under way", || {
        let record = up.json(&["job", "show", &id], 0);
        (record["job"]["counts"]["running"] == 2).then_some(())
    });
    let names = ["nats-server", "serve", "local-1", "local-2", "local-1.launcher", "local-2.launcher"];
    let pids: Vec<i32> = names.iter().map(|name| up.pid_of(name).unwrap()).collect();
    let dir = up.stop();
    for (pid, name) in pids.iter().zip(names) {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{name} is still there");
    }
    assert!(processes_of(dir.path()).is_empty(), "left: {:?}", processes_of(dir.path()));

    let up = Up::start_in(dir, 2, &[]);
    let ended = eventually("the runs are settled", || {
        let record = up.json(&["job", "show", &id], 0);
        (record["job"]["state"] == "failed").then_some(record)
    });
    for run in ended["runs"].as_array().unwrap() {
        assert_eq!((&run["state"], &run["reason"]), (&json!("interrupted"), &json!("stopped")), "{run}");
    }
}

/// Processes that name this folder in their arguments.
fn processes_of(dir: &std::path::Path) -> Vec<String> {
    let needle = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(needle) {
            found.push(line);
        }
    }
    found
}

//! What everybody does first.

use crate::harness::Up;
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

//! `sally-agent doctor` beside an agent that serves.

use std::process::Command;

use crate::harness::{Up, programs, run};

#[test]
fn a_healthy_agent_has_no_failure() {
    let up = Up::start(1);
    let config = up.dir().join("agents/local-1/agent.toml");
    let mut command = Command::new(programs().join("sally-agent"));
    let report = run(command.args(["doctor", "-o", "json", "--config"]).arg(config)).expect(0).json();
    let found = |check: &str| {
        let all = report["checks"].as_array().unwrap();
        let one = all.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {report:#}"));
        assert_eq!(one["level"], "pass", "{one}");
        one["found"].as_str().unwrap().to_owned()
    };
    assert!(found("broker").contains("answers: nats-server"));
    assert!(found("launcher").contains("slots"), "the agent's own launcher was asked");
    assert!(found("configuration").contains("local/local-1"));
    for check in ["key", "credentials", "trust list", "state folder"] {
        found(check);
    }
}

//! Records for the tests of this room, and what the command line accepts.

use super::*;
use sally_common::id::JobId;
use sally_common::name;
use sally_common::wire::record::{
    AgentRecord, AgentState, JobRecord, JobState, RunRecord, RunState, TextEncoding,
};
use std::collections::BTreeMap;

/// A job of these runs.
pub(super) fn job(runs: &[RunRecord]) -> JobRecord {
    let mut counts = BTreeMap::new();
    runs.iter().for_each(|r| *counts.entry(r.state).or_insert(0) += 1);
    JobRecord {
        id: job_id(),
        state: JobState::of_counts(&counts),
        created_at: "2026-11-21T07:00:00.000Z".into(),
        by: "ann".into(),
        request_id: "r-1".parse().expect("id"),
        retry_of: None,
        title: "check.sh".into(),
        counts,
    }
}

fn job_id() -> JobId {
    "01kajh7m00abcdefghjkmnpqrs".parse().expect("an id")
}

/// Run number `index` on agent `local-(index + 1)`.
pub(super) fn run(index: u32, state: RunState) -> RunRecord {
    RunRecord {
        retry_at: None,
        run: job_id().run(index),
        agent: name::Agent::new(&format!("local-{}", index + 1)).expect("name"),
        zone: name::Zone::new("local").expect("name"),
        state,
        is_final: state.is_end(),
        attempt: 1,
        cancel_requested_at: None,
        exit_code: (state == RunState::Succeeded).then_some(0),
        signal: None,
        result: None,
        result_state: None,
        result_error: None,
        failure: None,
        changed: None,
        progress: None,
        artifacts: Vec::new(),
        stdout: String::new(),
        stderr: String::new(),
        stdout_encoding: TextEncoding::Utf8,
        stderr_encoding: TextEncoding::Utf8,
        stdout_truncated_bytes: 0,
        stderr_truncated_bytes: 0,
        queued_at: "2026-11-21T07:00:00.000Z".into(),
        started_at: None,
        finished_at: None,
        duration_ms: None,
        reason: None,
        message: None,
        usage: None,
        sandbox: None,
        leftovers: 0,
    }
}

/// An agent.
pub(super) fn agent(zone: &str, agent: &str) -> AgentRecord {
    AgentRecord {
        draining: false,
        deferring: None,
        lost: BTreeMap::new(),
        problem: None,
        agent: name::Agent::new(agent).expect("name"),
        zone: name::Zone::new(zone).expect("name"),
        state: AgentState::Online,
        last_seen_at: Some("2026-11-21T07:00:00.000Z".into()),
        last_seen_s: Some(8),
        slots_used: 1,
        slots_total: 4,
        version: "0.1.0".into(),
        labels: BTreeMap::from([("role".into(), "web".into())]),
        key: "UKEY".into(),
        incarnation: "00".into(),
        hostname: "host".into(),
        os: "Debian".into(),
        kernel: "6.1".into(),
        arch: "x86_64".into(),
        sandbox_mode: "user".into(),
        profiles: ["strict", "net"].map(|name| name::ProfileName::new(name).expect("a name")).to_vec(),
        spool_results: 0,
        refused: BTreeMap::new(),
        last_error: None,
        waiting: 0,
    }
}

/// An order that is well formed.
pub(super) fn order() -> sally_common::wire::order::Order {
    let text = r#"{"v":1,"request_id":"r-1","by":"ann","created_ms":1,"expires_ms":2,"targets":{"agents":["local-1"]},
        "task":{"program":{"kind":"command"},"args":["true"],"profile":"strict","timeout_ms":1,"grace_ms":1}}"#;
    serde_json::from_str(text).expect("an order")
}

fn parse(line: &str) -> Result<Cli, String> {
    let words = std::iter::once("sally").chain(line.split_whitespace());
    Cli::try_parse_from(words).map_err(|e| e.to_string())
}

#[test]
fn the_commands_are_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn what_belongs_together_is_accepted() {
    for line in [
        "up",
        "up --dir d --agents 3 --zone z",
        "serve --config c.toml",
        "run ./a.sh -a x -a y/z -z q -l role=web -p k=v -p k2:=1 -P f --env A=b --stdin - --profile host",
        "run ./a.sh --all --timeout 1h30m --grace 0s --expires 2d --interpreter sh --fix-crlf -- -x --all",
        "run - --all --stream --output-dir d --wait 5m -o wide",
        "exec --all --require-result --request-id k --offline skip -o jsonl -- sh -c x",
        "exec --all --detach -o json -- true",
        "exec --all --plan -- true",
        "exec --all --encoding gb18030 -- true",
        "job ls -n 5 -o yaml",
        "job show latest -o csv",
        "job watch x",
        "job logs x -f -a y --stderr --tail 5",
        "job logs x -f --after 0.1.stdout=5",
        "job result x -a y",
        "exec --all --idempotent --retries 3 --retry-on failed,exit=70-79 --backoff 5s --backoff-max 1m -- true",
        "exec --all --priority 9 --latest-only nightly --lane direct --secret a=@f --secret b=@- -- true",
        "exec --all --profile db-audit --require net,cgroup-memory --require seccomp --user oracle --keep -- true",
        "job cancel x --hard",
        "job cancel --request-id k --hard",
        "job retry x",
        "job retry x --only failed,expired --only not-started -a web-* --secret a=@f --wait 1m -o json",
        "job retry x --detach --offline skip --priority 0 --lane queue --request-id k --expires 1h",
        "agent waiting dmz/web-1 -o json",
        "agent purge -z dmz --yes",
        "agent drain -a web-1",
        "agent resume --all -o json",
        "agent ping",
        "agent ping -l role=web --wait 500ms",
        "agent forget dmz/web-1 --yes",
        "job wait x --wait 1s -o json",
        "agent ls -z dmz -o name",
        "agent show dmz/web-1",
        "backup f --dir d",
        "backup f --data-dir d",
        "restore f --dir d --force",
        "context select x",
        "completion zsh",
        "version -o json",
        "--context x version",
        "version --context x",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name() {
    for (line, named) in [
        ("exec --all", "<CMD>"),
        ("exec --all true", "true"),
        ("exec --all --detach --stream -- true", "--detach"),
        ("exec --all --detach --wait 1s -- true", "--detach"),
        ("exec --all --detach --output-dir d -- true", "--output-dir"),
        ("exec --all --plan --detach -- true", "--plan"),
        ("exec --all --plan --wait 1s -- true", "--plan"),
        ("exec --all --timeout 5 -- true", "\"5\" is not a duration"),
        ("exec --all --timeout 0s -- true", "no time at all"),
        ("exec --all --profile Admin -- true", "not a profile name"),
        ("exec --all --require seccomp,No! -- true", "cgroup-memory"),
        ("exec --all --user -x -- true", "cannot be the name of an account"),
        ("exec --all --request-id ü -- true", "request id"),
        ("exec --all -z A.b -- true", "zone name"),
        ("exec --all --encoding klingon -- true", "klingon"),
        ("exec --all -o xml -- true", "xml"),
        ("exec --all --concurrency 3 -- true", "--concurrency"),
        ("exec --all --retries 100 -- true", "--retries"),
        ("exec --all --retry-on failed -- true", "--retries"),
        ("exec --all --retries 2 --retry-on never -- true", "exit=CODE"),
        ("exec --all --backoff 1s -- true", "--retries"),
        ("exec --all --priority 10 -- true", "--priority"),
        ("exec --all --lane slow -- true", "slow"),
        ("exec --all --latest-only= -- true", "1 to 128"),
        ("up --http :80", "--http"),
        ("up --agents 100000", "100000"),
        ("job retry x --only late", "late"),
        ("job retry x --plan --detach", "--plan"),
        ("job cancel", "--request-id"),
        ("job cancel x --request-id k", "--request-id"),
        ("agent purge x", "x"),
        ("agent forget", "<AGENT>"),
        ("job logs x --raw --tail 3", "--raw"),
        ("job logs x --stdout --stderr", "--stdout"),
        ("job logs x --after y", "no place"),
        ("job logs x --after 1 --tail 3", "--tail"),
        ("job ls -n 0", "0"),
        ("backup f", "--dir"),
        ("restore f --force", "--dir"),
        ("task ls", "task"),
    ] {
        let error = parse(line).map(|_| ()).expect_err(line);
        assert!(error.contains(named), "{line}: {error}");
    }
}

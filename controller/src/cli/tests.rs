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
        profiles: vec![sally_common::wire::order::Profile::Strict, sally_common::wire::order::Profile::Net],
        spool_results: 0,
        refused: BTreeMap::new(),
        last_error: None,
        waiting: 0,
    }
}

//! Records in every format. The same fields in each; the contract's names are the columns.

use std::collections::BTreeMap;

use sally_common::wire::record::{AgentRecord, JobRecord, JobWithRuns, RunRecord};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::args::Format;
use super::{CliError, duration, fold, out, table, text};

/// A run's fields in the contract's order.
pub(super) const RUN_COLUMNS: [&str; 33] = [
    "run",
    "agent",
    "zone",
    "state",
    "final",
    "attempt",
    "cancel_requested_at",
    "exit_code",
    "signal",
    "result",
    "result_state",
    "result_error",
    "failure",
    "changed",
    "progress",
    "artifacts",
    "stdout",
    "stderr",
    "stdout_encoding",
    "stderr_encoding",
    "stdout_truncated_bytes",
    "stderr_truncated_bytes",
    "queued_at",
    "started_at",
    "finished_at",
    "duration_ms",
    "reason",
    "message",
    "usage",
    "sandbox",
    "leftovers",
    "retry_at",
    "job",
];
/// A job's fields.
pub(super) const JOB_COLUMNS: [&str; 8] =
    ["id", "state", "created_at", "by", "request_id", "retry_of", "title", "counts"];
/// An agent's fields.
pub(super) const AGENT_COLUMNS: [&str; 25] = [
    "agent",
    "zone",
    "state",
    "last_seen_at",
    "last_seen_s",
    "slots_used",
    "slots_total",
    "version",
    "labels",
    "key",
    "incarnation",
    "hostname",
    "os",
    "kernel",
    "arch",
    "sandbox_mode",
    "profiles",
    "spool_results",
    "refused",
    "last_error",
    "waiting",
    "draining",
    "deferring",
    "lost",
    "problem",
];

/// Prints a job with its runs.
pub(super) fn job(whole: &JobWithRuns, format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(whole)?,
        Format::Jsonl => whole.runs.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::quoted(&yaml(whole)?)?,
        Format::Csv => out::quoted(&csv(&RUN_COLUMNS, &whole.runs, &[("job", whole.job.id.as_str())])?)?,
        Format::Name => whole.runs.iter().try_for_each(|r| out::data(format!("{}\n", r.run).as_bytes()))?,
        Format::Table => out::styled(&fold::render(&whole.runs, None, table::terminal_width()))?,
        Format::Wide => out::styled(&runs_table(&whole.runs, None))?,
    }
    Ok(())
}

/// Prints jobs.
pub(super) fn jobs(jobs: &[JobRecord], format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(&json!({ "jobs": jobs }))?,
        Format::Jsonl => jobs.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::quoted(&yaml(&json!({ "jobs": jobs }))?)?,
        Format::Csv => out::quoted(&csv(&JOB_COLUMNS, jobs, &[])?)?,
        Format::Name => jobs.iter().try_for_each(|j| out::data(format!("{}\n", j.id).as_bytes()))?,
        Format::Table => out::styled(&jobs_table(jobs, table::terminal_width(), false))?,
        Format::Wide => out::styled(&jobs_table(jobs, None, true))?,
    }
    Ok(())
}

/// Prints agents.
pub(super) fn agents(agents: &[AgentRecord], format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(&json!({ "agents": agents }))?,
        Format::Jsonl => agents.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::quoted(&yaml(&json!({ "agents": agents }))?)?,
        Format::Csv => out::quoted(&csv(&AGENT_COLUMNS, agents, &[])?)?,
        Format::Name => {
            agents.iter().try_for_each(|a| out::data(format!("{}/{}\n", a.zone, a.agent).as_bytes()))?;
        }
        Format::Table => out::styled(&agents_table(agents, table::terminal_width(), false))?,
        Format::Wide => out::styled(&agents_table(agents, None, true))?,
    }
    Ok(())
}

/// Prints runs that wait for an agent, in the order in which it gets them.
pub(super) fn waiting(runs: &[RunRecord], format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(&json!({ "runs": runs }))?,
        Format::Jsonl => runs.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::quoted(&yaml(&json!({ "runs": runs }))?)?,
        Format::Csv => out::quoted(&csv(&RUN_COLUMNS[..RUN_COLUMNS.len() - 1], runs, &[])?)?,
        Format::Name => runs.iter().try_for_each(|r| out::data(format!("{}\n", r.run).as_bytes()))?,
        Format::Table | Format::Wide => out::styled(&waiting_table(runs))?,
    }
    Ok(())
}

fn waiting_table(runs: &[RunRecord]) -> String {
    let row = |run: &RunRecord| {
        vec![
            run.state.word().to_owned(),
            run.run.to_string(),
            run.attempt.to_string(),
            table::local_time(&run.queued_at),
            fold::answer(run),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    table::paint_states(&table::table(&["STATE", "RUN", "ATTEMPT", "SINCE", "WHY"], &rows, None))
}

/// A value as YAML.
pub(super) fn yaml(value: &impl Serialize) -> Result<String, CliError> {
    // Over a plain value, since raw JSON is no YAML.
    let plain = serde_json::to_value(value).map_err(|e| CliError::internal(e.to_string()))?;
    serde_yaml_ng::to_string(&plain).map_err(|e| CliError::internal(e.to_string()))
}

/// Records as CSV under these columns. What is no text or number stands as JSON; `null` is empty.
pub(super) fn csv(
    columns: &[&str],
    records: &[impl Serialize],
    extra: &[(&str, &str)],
) -> Result<String, CliError> {
    let failed = |e: &dyn std::fmt::Display| CliError::internal(e.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns).map_err(|e| failed(&e))?;
    for record in records {
        // Raw values, so that a number keeps its spelling.
        let text = serde_json::to_string(record).map_err(|e| failed(&e))?;
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).map_err(|e| failed(&e))?;
        let cell = |column: &&str| match extra.iter().find(|(name, _)| name == column) {
            Some((_, value)) => (*value).to_owned(),
            None => fields.get(*column).map(|raw| cell_of(raw.get())).unwrap_or_default(),
        };
        writer.write_record(columns.iter().map(cell)).map_err(|e| failed(&e))?;
    }
    let bytes = writer.into_inner().map_err(|e| failed(&e))?;
    String::from_utf8(bytes).map_err(|e| failed(&e))
}

fn cell_of(json: &str) -> String {
    match json {
        "null" => String::new(),
        text if text.starts_with('"') => serde_json::from_str(text).unwrap_or_default(),
        other => other.to_owned(),
    }
}

/// One line per run.
pub(super) fn runs_table(runs: &[RunRecord], width: Option<usize>) -> String {
    let row = |run: &RunRecord| {
        vec![
            run.state.word().to_owned(),
            format!("{}/{}", run.zone, run.agent),
            run.run.to_string(),
            run.attempt.to_string(),
            run.exit_code.map(|c| c.to_string()).unwrap_or_default(),
            run.duration_ms.map(duration::show).unwrap_or_default(),
            run.finished_at.as_deref().map(table::local_time).unwrap_or_default(),
            fold::answer(run),
        ]
    };
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    let header = ["STATE", "AGENT", "RUN", "ATTEMPT", "EXIT", "TOOK", "FINISHED", "RESULT"];
    table::paint_states(&table::table(&header, &rows, width))
}

fn jobs_table(jobs: &[JobRecord], width: Option<usize>, wide: bool) -> String {
    let row = |job: &JobRecord| {
        let counts: Vec<String> =
            job.counts.iter().filter(|(_, n)| **n > 0).map(|(s, n)| format!("{n} {s}")).collect();
        let mut row = vec![
            job.id.to_string(),
            job.state.to_string(),
            table::local_time(&job.created_at),
            counts.join(", "),
            text::sanitise_line(&job.by),
            text::sanitise_line(&job.title),
        ];
        if wide {
            row.insert(5, job.request_id.to_string());
        }
        row
    };
    let rows: Vec<Vec<String>> = jobs.iter().map(row).collect();
    let mut header = vec!["JOB", "STATE", "CREATED", "RUNS", "BY", "TITLE"];
    if wide {
        header.insert(5, "REQUEST");
    }
    table::table(&header, &rows, width)
}

/// Heartbeats are counted in whole seconds.
fn seen_ago(seconds: u64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { duration::show(seconds.saturating_mul(1_000)) }
}

/// Whether it is there, and what keeps it from taking work although it is.
fn agent_state(agent: &AgentRecord) -> String {
    let notes = [
        (agent.draining, "draining"),
        (agent.deferring.is_some(), "deferring"),
        (agent.problem.is_some(), "problem"),
        (!agent.lost.is_empty(), "lost"),
    ];
    let notes: Vec<&str> = notes.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
    if notes.is_empty() {
        agent.state.word().to_owned()
    } else {
        format!("{} ({})", agent.state.word(), notes.join(", "))
    }
}

fn agents_table(agents: &[AgentRecord], width: Option<usize>, wide: bool) -> String {
    let row = |agent: &AgentRecord| {
        let seen = agent.last_seen_s.map_or("never".into(), seen_ago);
        let labels: Vec<String> = agent.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut row = vec![
            agent.agent.to_string(),
            agent.zone.to_string(),
            agent_state(agent),
            seen,
            format!("{}/{}", agent.slots_used, agent.slots_total),
            agent.waiting.to_string(),
            agent.version.clone(),
        ];
        if wide {
            let profiles: Vec<&str> = agent.profiles.iter().map(|p| p.as_str()).collect();
            row.extend([
                agent.hostname.clone(),
                format!("{} {}", agent.os, agent.kernel),
                agent.arch.clone(),
            ]);
            row.extend([agent.sandbox_mode.clone(), profiles.join(","), agent.spool_results.to_string()]);
            row.push(agent.deferring.clone().unwrap_or_default());
            row.push(agent.lost.iter().map(|(what, n)| format!("{what}={n}")).collect::<Vec<_>>().join(","));
            row.push(agent.problem.clone().or_else(|| agent.last_error.clone()).unwrap_or_default());
        }
        row.push(labels.join(","));
        row.iter().map(|cell| text::sanitise_line(cell)).collect()
    };
    let rows: Vec<Vec<String>> = agents.iter().map(row).collect();
    let mut header = vec!["AGENT", "ZONE", "STATE", "SEEN", "SLOTS", "WAITING", "VERSION"];
    if wide {
        header.extend([
            "HOST",
            "SYSTEM",
            "ARCH",
            "SANDBOX",
            "PROFILES",
            "SPOOL",
            "DEFERRING",
            "LOST",
            "PROBLEM",
        ]);
    }
    header.push("LABELS");
    table::table(&header, &rows, width)
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;

//! Loads the rows that a batch of commands touches, in one trip.

use std::collections::BTreeSet;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};

use sally_common::id::{JobId, RunId};

use super::command::Command;
use super::row::{self, AGENT, Args, JOB, RUN_COLUMNS};
use super::types::NewJob;
use super::work::{Row, Work};

/// The statements of one trip; the first column of each row says what it is.
#[derive(Default)]
struct Trip {
    sql: String,
    args: Args,
}

impl Trip {
    fn jobs(&mut self, condition: &str) -> &mut Args {
        self.sql.push_str(&format!("SELECT {JOB} FROM jobs WHERE {condition};\n"));
        &mut self.args
    }

    fn runs(&mut self, tail: &str) -> &mut Args {
        self.sql.push_str(&format!("SELECT 'run', {RUN_COLUMNS} FROM {tail};\n"));
        &mut self.args
    }
}

/// Fills `work` with what the commands name and it does not hold yet. `trusting` leaves out whether a new job's id
/// and request id are free: the database refuses the write if they are not.
pub(super) async fn load(
    db: &mut SqliteConnection,
    work: &mut Work<'_>,
    commands: &[&Command],
    trusting: bool,
) -> Result<(), sqlx::Error> {
    let trip = plan(commands, work, trusting);
    if trip.sql.is_empty() {
        return Ok(());
    }
    // The texts differ only by which statements they have, so there are few of them to keep prepared.
    let query = sqlx::query_with(AssertSqlSafe(trip.sql), trip.args.done()?);
    for row in query.fetch_all(&mut *db).await? {
        take(work, &row)?;
    }
    Ok(())
}

fn plan(commands: &[&Command], work: &Work<'_>, trusting: bool) -> Trip {
    let mut trip = Trip::default();
    let mut jobs: BTreeSet<&JobId> = BTreeSet::new();
    let mut runs: BTreeSet<&RunId> = BTreeSet::new();
    let (mut requests, mut agents, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for command in commands {
        for run in command.runs().into_iter().filter(|run| !work.holds(run)) {
            jobs.insert(run.job());
            runs.insert(run);
        }
        match command {
            Command::Submit(new) => {
                replaceable(&mut trip, new);
                if trusting {
                    continue;
                }
                jobs.insert(&new.id);
                requests.push(new.request_id.as_str());
            }
            Command::CancelRequest { request, .. } => {
                requests.push(request.as_str());
                searched(&mut trip, command);
            }
            Command::Cancel { job, .. } => {
                jobs.insert(job);
                whole.push(job.as_str());
            }
            Command::Seen(seen) => agents.extend(seen.iter().map(|a| (a.zone.as_str(), a.name.as_str()))),
            Command::Forget { zone, name } => agents.push((zone.as_str(), name.as_str())),
            _ => searched(&mut trip, command),
        }
    }
    if !jobs.is_empty() {
        trip.jobs("id IN (SELECT value FROM json_each(?))").add(json(&jobs));
    }
    if !requests.is_empty() {
        trip.jobs("request_id IN (SELECT value FROM json_each(?))").add(json(&requests));
    }
    if !runs.is_empty() {
        let keys: Vec<(&str, u32)> = runs.iter().map(|r| (r.job().as_str(), r.index())).collect();
        let on = "json_each(?) AS k CROSS JOIN runs ON job = json_extract(k.value, '$[0]') \
                  AND idx = json_extract(k.value, '$[1]')";
        trip.runs(on).add(json(&keys));
    }
    if !whole.is_empty() {
        trip.runs("runs WHERE NOT final AND job IN (SELECT value FROM json_each(?))").add(json(&whole));
    }
    if !agents.is_empty() {
        trip.sql.push_str(&format!(
            "SELECT {AGENT} FROM json_each(?) AS k CROSS JOIN agents ON zone = json_extract(k.value, '$[0]') \
             AND name = json_extract(k.value, '$[1]');\n"
        ));
        trip.args.add(json(&agents));
    }
    trip
}

/// Runs that a new job takes the place of: they wait for one of its targets, with the same key.
fn replaceable(trip: &mut Trip, new: &NewJob) {
    let Some(key) = &new.latest_only else { return };
    let targets: Vec<(&str, &str)> =
        new.targets.iter().map(|t| (t.zone.as_str(), t.agent.as_str())).collect();
    let targets = json(&targets);
    let which = "runs WHERE NOT final AND state IN ('pending', 'dispatched') \
                 AND job IN (SELECT id FROM jobs WHERE latest_only = ? AND ended_ms IS NULL) \
                 AND (zone, agent) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))";
    trip.jobs(&format!("id IN (SELECT job FROM {which})")).add(key.as_str()).add(targets.as_str());
    trip.runs(which).add(key.as_str()).add(targets.as_str());
}

/// Commands whose rows a query finds: first the jobs of those runs, then the runs.
fn searched(trip: &mut Trip, command: &Command) {
    let limited = |limit: &usize| i64::try_from(*limit).unwrap_or(i64::MAX);
    match command {
        Command::Expire { now_ms, limit } => {
            let due = "runs WHERE state IN ('pending', 'dispatched') AND expires_ms <= ? \
                       ORDER BY expires_ms, job, idx LIMIT ?";
            trip.jobs(&format!("id IN (SELECT job FROM (SELECT job FROM {due}))"))
                .add(*now_ms)
                .add(limited(limit));
            trip.runs(due).add(*now_ms).add(limited(limit));
        }
        Command::Lost { zone, agent, incarnation, limit, .. } => {
            let lost = "runs WHERE zone = ? AND agent = ? AND NOT final AND state IN ('dispatched', 'running') \
                        AND incarnation <> ? ORDER BY job, idx LIMIT ?";
            let add = |args: &mut Args| {
                args.add(zone.as_str()).add(agent.as_str()).add(incarnation.to_string()).add(limited(limit));
            };
            add(trip.jobs(&format!("id IN (SELECT job FROM (SELECT job FROM {lost}))")));
            add(trip.runs(lost));
        }
        Command::CancelRequest { request, .. } => {
            let id = "(SELECT id FROM jobs WHERE request_id = ?)";
            trip.runs(&format!("runs WHERE NOT final AND job = {id}")).add(request.as_str());
        }
        Command::Purge { zone, agent, limit, .. } => {
            let which = "runs WHERE zone = ? AND agent = ? AND NOT final \
                         AND state IN ('pending', 'dispatched') AND cancel_requested_ms IS NULL \
                         ORDER BY job, idx LIMIT ?";
            let add = |args: &mut Args| {
                args.add(zone.as_str()).add(agent.as_str()).add(limited(limit));
            };
            add(trip.jobs(&format!("id IN (SELECT job FROM (SELECT job FROM {which}))")));
            add(trip.runs(which));
        }
        Command::Release { now_ms, limit } => {
            let due = "runs WHERE retry_at_ms <= ? ORDER BY retry_at_ms LIMIT ?";
            trip.jobs(&format!("id IN (SELECT job FROM (SELECT job FROM {due}))"))
                .add(*now_ms)
                .add(limited(limit));
            trip.runs(due).add(*now_ms).add(limited(limit));
        }
        Command::Recover(_) => {
            trip.sql.push_str(
                "SELECT 'recovered', count(*) FROM jobs WHERE request_id >= 'recovered-' AND request_id < 'recovered.';\n",
            );
        }
        Command::Prune { before_ms, limit } => {
            trip.sql.push_str(
                "SELECT 'prune', id FROM jobs WHERE ended_ms IS NOT NULL AND ended_ms < ? \
                 ORDER BY ended_ms LIMIT ?;\n",
            );
            trip.args.add(*before_ms).add(i64::from(*limit));
        }
        _ => {}
    }
}

fn take(work: &mut Work<'_>, row: &SqliteRow) -> Result<(), sqlx::Error> {
    match row.try_get(0)? {
        "job" => {
            let job = row::job(row)?;
            work.requests.insert(job.request_id.clone(), job.id.clone());
            work.jobs.insert(job.id.clone(), Row::loaded(job));
        }
        "run" => {
            let run = row::run(row)?;
            work.runs.insert(run.id.clone(), Row::loaded(run));
        }
        "agent" => {
            let agent = row::agent(row)?;
            work.agents.insert((agent.zone.clone(), agent.name.clone()), Row::loaded(agent));
        }
        "recovered" => work.recovered_before = row::number(row, 1)?,
        _ => work.pruned.push(row::parse(row, 1)?),
    }
    Ok(())
}

/// Keys as JSON: one statement text for any number of them.
pub(super) fn json<T: serde::Serialize>(keys: &T) -> String {
    serde_json::to_string(keys).unwrap_or_default()
}

//! Writes what a batch made dirty, in one transaction.

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use sally_common::id::Digest;

use super::row::{self, Args, RUN_COLUMNS, RUN_WIDTH};
use super::types::*;
use super::work::Work;

/// Sizes of multi-row statements: three texts to keep prepared, whatever the batch.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Up to so many pieces are sent as one text in one trip; more go one by one as prepared statements.
const ONE_TRIP: usize = 5;

/// Stale results kept on record, newest first.
pub(super) const STALE_KEPT: i64 = 1000;

/// A stale result's message is kept up to this size; its digest and signature always.
pub(super) const STALE_BODY_MAX: usize = 64 * 1024;

struct Piece {
    sql: String,
    args: Args,
}

/// Writes and commits. Nothing is written when nothing is dirty.
pub(super) async fn save(db: &mut SqliteConnection, work: &Work<'_>) -> Result<(), sqlx::Error> {
    let pieces = pieces(work);
    sally_common::fail::io("controller.ledger.commit")?;
    match pieces.len() {
        0 => Ok(()),
        1..=ONE_TRIP => one_trip(db, pieces).await,
        _ => many_trips(db, pieces).await,
    }
}

async fn one_trip(db: &mut SqliteConnection, pieces: Vec<Piece>) -> Result<(), sqlx::Error> {
    let mut sql = String::from("BEGIN IMMEDIATE;\n");
    let mut all = Args::default();
    for piece in pieces {
        sql.push_str(&piece.sql);
        sql.push_str(";\n");
        all.append(piece.args);
    }
    sql.push_str("COMMIT");
    sqlx::query_with(AssertSqlSafe(sql), all.done()?).execute(db).await?;
    Ok(())
}

async fn many_trips(db: &mut SqliteConnection, pieces: Vec<Piece>) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await?;
    for piece in pieces {
        sqlx::query_with(AssertSqlSafe(piece.sql), piece.args.done()?).execute(&mut *db).await?;
    }
    sqlx::query("COMMIT").execute(db).await?;
    Ok(())
}

fn pieces(work: &Work<'_>) -> Vec<Piece> {
    let mut out = Vec::new();
    for new in &work.new {
        submit(&mut out, work, new);
    }
    for job in &work.recovered {
        if let Some(row) = work.jobs.get(job) {
            insert_job(&mut out, &row.value);
        }
    }
    let runs: Vec<&Run> = work.runs.values().filter(|r| r.dirty).map(|r| &r.value).collect();
    rows(&mut out, &runs, &upsert_runs(), RUN_CONFLICT, |args, run| row::bind_run(args, run));
    let new = |job: &Job| work.new.iter().any(|n| n.id == job.id) || work.recovered.contains(&job.id);
    for job in work.jobs.values().filter(|j| j.dirty && !new(&j.value)).map(|j| &j.value) {
        let mut args = Args::default();
        args.add(row::counts_json(job)).add(job.ended_ms).add(job.id.as_str());
        out.push(Piece { sql: "UPDATE jobs SET counts = ?, ended_ms = ? WHERE id = ?".into(), args });
    }
    for told in &work.reports {
        out.push(report(told));
    }
    for told in &work.stale {
        out.push(stale(told));
    }
    if !work.stale.is_empty() {
        let sql = format!(
            "DELETE FROM stale_results WHERE id <= (SELECT max(id) - {STALE_KEPT} FROM stale_results)"
        );
        out.push(Piece { sql, args: Args::default() });
    }
    agents(&mut out, work);
    drains(&mut out, work);
    for (request, at_ms, hard) in &work.tombstones {
        let mut args = Args::default();
        args.add(request.as_str()).add(*at_ms).add(*hard);
        let sql = "INSERT INTO cancelled_requests (request_id, at_ms, hard) VALUES (?,?,?) \
                   ON CONFLICT (request_id) DO UPDATE SET at_ms = excluded.at_ms, hard = excluded.hard";
        out.push(Piece { sql: sql.into(), args });
    }
    if let Some(before_ms) = work.forget_requests {
        let mut args = Args::default();
        args.add(before_ms);
        out.push(Piece { sql: "DELETE FROM cancelled_requests WHERE at_ms < ?".into(), args });
    }
    for job in &work.pruned {
        let mut args = Args::default();
        args.add(job.as_str());
        out.push(Piece { sql: "DELETE FROM jobs WHERE id = ?".into(), args });
    }
    out
}

const INSERT_JOB: &str = "INSERT INTO jobs (id, request_id, request_digest, submitter, title, created_ms, \
    expires_ms, retry_of, offline, counts, ended_ms, priority, latest_only, direct, retry) \
    VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

fn insert_job(out: &mut Vec<Piece>, job: &Job) {
    let mut args = Args::default();
    args.add(job.id.as_str())
        .add(job.request_id.as_str())
        .add(job.request_digest.to_string())
        .add(job.by.as_str())
        .add(job.title.as_str())
        .add(job.created_ms)
        .add(job.expires_ms)
        .add(job.retry_of.as_ref().map(|id| id.as_str()))
        .add(row::offline_word(job.offline))
        .add(row::counts_json(job))
        .add(job.ended_ms)
        .add(i64::from(job.priority))
        .add(job.latest_only.as_deref())
        .add(job.direct)
        .add(job.retry.as_ref().map(row::json_text));
    out.push(Piece { sql: INSERT_JOB.into(), args });
}

fn submit(out: &mut Vec<Piece>, work: &Work<'_>, new: &NewJob) {
    let Some(job) = work.jobs.get(&new.id).map(|row| &row.value) else { return };
    insert_job(out, job);
    let mut args = Args::default();
    args.add(job.id.as_str()).add(new.order.clone()).add(new.signatures_json.as_str());
    out.push(Piece { sql: "INSERT INTO orders (job, body, signatures) VALUES (?,?,?)".into(), args });
    let head = "INSERT INTO runs (job, idx, zone, agent, agent_key, expires_ms, state, attempt, incarnation, \
                dispatched_ms, priority, direct) VALUES ";
    rows(out, &new.runs(), &(head.to_owned(), 12), "", |args, run| {
        args.add(job.id.as_str())
            .add(i64::from(run.id.index()))
            .add(run.zone.as_str())
            .add(run.agent.as_str())
            .add(run.agent_key.to_string())
            .add(run.expires_ms)
            .add(run.state.word())
            .add(i64::from(run.attempt))
            .add(run.incarnation.map(|i| i.to_string()))
            .add(run.dispatched_ms)
            .add(i64::from(run.priority))
            .add(run.direct);
    });
}

fn upsert_runs() -> (String, usize) {
    (format!("INSERT INTO runs ({RUN_COLUMNS}) VALUES "), RUN_WIDTH)
}

/// What follows the rows of [`upsert_runs`]: everything that can change in a run's life.
const RUN_CONFLICT: &str = " ON CONFLICT (job, idx) DO UPDATE SET state = excluded.state, final = excluded.final, \
    attempt = excluded.attempt, incarnation = excluded.incarnation, dispatched_ms = excluded.dispatched_ms, \
    cancel_requested_ms = excluded.cancel_requested_ms, cancel_hard = excluded.cancel_hard, \
    started_ms = excluded.started_ms, finished_ms = excluded.finished_ms, duration_ms = excluded.duration_ms, \
    exit_code = excluded.exit_code, signal = excluded.signal, reason = excluded.reason, \
    message = excluded.message, result_state = excluded.result_state, progress = excluded.progress, \
    report_digest = excluded.report_digest, retry_at_ms = excluded.retry_at_ms, last = excluded.last";

/// Cuts rows into chunks of a few fixed sizes, one statement each.
fn rows<T>(
    out: &mut Vec<Piece>,
    mut rest: &[T],
    (head, width): &(String, usize),
    tail: &str,
    bind: impl Fn(&mut Args, &T),
) {
    let one = format!("({})", vec!["?"; *width].join(","));
    for size in CHUNKS {
        while rest.len() >= size {
            let (chunk, after) = rest.split_at(size);
            rest = after;
            let mut args = Args::default();
            chunk.iter().for_each(|item| bind(&mut args, item));
            debug_assert_eq!(args.len(), size * width);
            let sql = format!("{head}{}{tail}", vec![one.as_str(); size].join(","));
            out.push(Piece { sql, args });
        }
    }
}

fn report(told: &Settlement) -> Piece {
    let mut args = Args::default();
    args.add(told.run.job().as_str())
        .add(i64::from(told.run.index()))
        .add(i64::from(told.attempt))
        .add(told.incarnation.to_string())
        .add(row::kind_word(told.report.kind))
        .add(told.report.body.clone())
        .add(told.report.key.to_string())
        .add(told.report.signature.to_string());
    let sql = "INSERT INTO reports (job, idx, attempt, incarnation, kind, body, signer, signature) \
               VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (job, idx, attempt) DO UPDATE SET \
               incarnation = excluded.incarnation, kind = excluded.kind, body = excluded.body, \
               signer = excluded.signer, signature = excluded.signature";
    Piece { sql: sql.into(), args }
}

fn stale(told: &Settlement) -> Piece {
    let body = Some(&told.report.body).filter(|b| b.len() <= STALE_BODY_MAX);
    let mut args = Args::default();
    args.add(told.run.job().as_str())
        .add(i64::from(told.run.index()))
        .add(i64::from(told.attempt))
        .add(told.state.word())
        .add(told.at_ms)
        .add(Digest::of(&told.report.body).to_string())
        .add(body.cloned())
        .add(told.report.key.to_string())
        .add(told.report.signature.to_string());
    let sql = "INSERT INTO stale_results (job, idx, attempt, state, received_ms, digest, body, signer, signature) \
               VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (job, idx, attempt, digest) DO NOTHING";
    Piece { sql: sql.into(), args }
}

fn drains(out: &mut Vec<Piece>, work: &Work<'_>) {
    for ((zone, name), since_ms) in &work.drains {
        let mut args = Args::default();
        args.add(zone.as_str()).add(name.as_str());
        let sql = match since_ms {
            Some(since_ms) => {
                args.add(*since_ms);
                "INSERT INTO drained (zone, name, since_ms) VALUES (?,?,?) ON CONFLICT (zone, name) DO NOTHING"
            }
            None => "DELETE FROM drained WHERE zone = ? AND name = ?",
        };
        out.push(Piece { sql: sql.into(), args });
    }
}

fn agents(out: &mut Vec<Piece>, work: &Work<'_>) {
    for (zone, name) in &work.forgotten {
        let mut args = Args::default();
        args.add(zone.as_str()).add(name.as_str());
        out.push(Piece { sql: "DELETE FROM agents WHERE zone = ? AND name = ?".into(), args });
    }
    let dirty: Vec<&AgentRow> = work.agents.values().filter(|a| a.dirty).map(|a| &a.value).collect();
    let head = "INSERT INTO agents (zone, name, agent_key, incarnation, counter, labels, heartbeat, \
                first_seen_ms, last_seen_ms, journal) VALUES ";
    let tail = " ON CONFLICT (zone, name) DO UPDATE SET incarnation = excluded.incarnation, \
                counter = excluded.counter, labels = excluded.labels, heartbeat = excluded.heartbeat, \
                last_seen_ms = excluded.last_seen_ms, journal = excluded.journal";
    rows(out, &dirty, &(head.to_owned(), 10), tail, |args, agent| {
        args.add(agent.zone.as_str())
            .add(agent.name.as_str())
            .add(agent.agent_key.to_string())
            .add(agent.incarnation.to_string())
            .add_u64(agent.counter)
            .add(serde_json::to_string(&agent.labels).unwrap_or_default())
            .add(agent.heartbeat.as_str())
            .add(agent.first_seen_ms)
            .add(agent.last_seen_ms)
            .add_u64(agent.journal);
    });
}

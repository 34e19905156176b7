//! Rows of the database to types and back.

use std::fmt::Display;
use std::str::FromStr;

use sqlx::Row as _;
use sqlx::sqlite::{SqliteArguments, SqliteRow};

use sally_common::id::{Digest, JobId};
use sally_common::wire::api::Offline;
use sally_common::wire::record::{ResultState, RunState};

use super::types::{AgentRow, Job, ReportKind, Run};

/// The columns of a job in the order of [`job`].
pub(super) const JOB: &str = "'job', id, request_id, request_digest, submitter, title, created_ms, expires_ms, \
     retry_of, offline, counts, ended_ms, priority, latest_only, direct, retry";

/// The columns of a run in the order of [`run`] and [`bind_run`]; `RUN` with `'run'` in front.
pub(super) const RUN_COLUMNS: &str = "job, idx, zone, agent, agent_key, state, final, attempt, incarnation, \
     expires_ms, dispatched_ms, cancel_requested_ms, cancel_hard, started_ms, finished_ms, duration_ms, \
     exit_code, signal, reason, message, result_state, progress, report_digest, priority, \
     direct, retry_at_ms, last";

/// How many columns a run has.
pub(super) const RUN_WIDTH: usize = 27;

/// The columns of an agent in the order of [`agent`].
pub(super) const AGENT: &str = "'agent', zone, name, agent_key, incarnation, counter, labels, heartbeat, \
     first_seen_ms, last_seen_ms, journal";

type Db<T> = Result<T, sqlx::Error>;

/// Reads a column's text as `T`; what cannot be read is damage, and says where.
pub(super) fn parse<T>(row: &SqliteRow, at: usize) -> Db<T>
where
    T: FromStr,
    T::Err: Display,
{
    let text: &str = row.try_get(at)?;
    text.parse().map_err(|e: T::Err| damage(at, &e.to_string()))
}

/// The same for a column that may be NULL.
pub(super) fn maybe<T>(row: &SqliteRow, at: usize) -> Db<Option<T>>
where
    T: FromStr,
    T::Err: Display,
{
    let text: Option<&str> = row.try_get(at)?;
    text.map(|t| t.parse().map_err(|e: T::Err| damage(at, &e.to_string()))).transpose()
}

/// Reads a column's number as `T`.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Db<T> {
    let number: i64 = row.try_get(at)?;
    T::try_from(number).map_err(|_| damage(at, "a number is out of its range"))
}

fn maybe_number<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Db<Option<T>> {
    let number: Option<i64> = row.try_get(at)?;
    number.map(|n| T::try_from(n).map_err(|_| damage(at, "a number is out of its range"))).transpose()
}

fn damage(at: usize, what: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("column {at}: {what}").into())
}

fn json<T: serde::de::DeserializeOwned>(row: &SqliteRow, at: usize) -> Db<T> {
    serde_json::from_str(row.try_get(at)?).map_err(|e| damage(at, &e.to_string()))
}

fn maybe_json<T: serde::de::DeserializeOwned>(row: &SqliteRow, at: usize) -> Db<Option<T>> {
    let text: Option<&str> = row.try_get(at)?;
    text.map(|t| serde_json::from_str(t).map_err(|e| damage(at, &e.to_string()))).transpose()
}

/// A value as a column of JSON has it.
pub(super) fn json_text<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Reads a job, see [`JOB`].
pub(super) fn job(row: &SqliteRow) -> Db<Job> {
    Ok(Job {
        id: parse(row, 1)?,
        request_id: parse(row, 2)?,
        request_digest: parse(row, 3)?,
        by: row.try_get(4)?,
        title: row.try_get(5)?,
        created_ms: row.try_get(6)?,
        expires_ms: row.try_get(7)?,
        retry_of: maybe(row, 8)?,
        offline: offline_of(row.try_get(9)?).ok_or_else(|| damage(9, "no such option"))?,
        counts: json(row, 10)?,
        ended_ms: row.try_get(11)?,
        priority: number(row, 12)?,
        latest_only: row.try_get(13)?,
        direct: row.try_get(14)?,
        retry: maybe_json(row, 15)?,
    })
}

/// Reads a run whose columns begin after the leading word.
pub(super) fn run(row: &SqliteRow) -> Db<Run> {
    let job: JobId = parse(row, 1)?;
    let state: &str = row.try_get(6)?;
    let result: Option<&str> = row.try_get(21)?;
    let digest: Option<&[u8]> = row.try_get(23)?;
    Ok(Run {
        id: job.run(number(row, 2)?),
        zone: parse(row, 3)?,
        agent: parse(row, 4)?,
        agent_key: parse(row, 5)?,
        state: RunState::of_word(state).ok_or_else(|| damage(6, "no such state"))?,
        is_final: row.try_get(7)?,
        attempt: number(row, 8)?,
        incarnation: maybe(row, 9)?,
        expires_ms: row.try_get(10)?,
        dispatched_ms: row.try_get(11)?,
        cancel_requested_ms: row.try_get(12)?,
        cancel_hard: row.try_get(13)?,
        started_ms: row.try_get(14)?,
        finished_ms: row.try_get(15)?,
        duration_ms: maybe_number(row, 16)?,
        exit_code: maybe_number(row, 17)?,
        signal: maybe_number(row, 18)?,
        reason: row.try_get(19)?,
        message: row.try_get(20)?,
        result_state: result.map(|w| result_of(w).ok_or_else(|| damage(21, "no such word"))).transpose()?,
        progress: row.try_get(22)?,
        report_digest: digest.map(digest_of).transpose()?,
        priority: number(row, 24)?,
        direct: row.try_get(25)?,
        retry_at_ms: row.try_get(26)?,
        last: maybe_json(row, 27)?,
    })
}

/// Reads an agent, see [`AGENT`].
pub(super) fn agent(row: &SqliteRow) -> Db<AgentRow> {
    Ok(AgentRow {
        zone: parse(row, 1)?,
        name: parse(row, 2)?,
        agent_key: parse(row, 3)?,
        incarnation: parse(row, 4)?,
        counter: number(row, 5)?,
        labels: json(row, 6)?,
        heartbeat: row.try_get(7)?,
        first_seen_ms: row.try_get(8)?,
        last_seen_ms: row.try_get(9)?,
        journal: number(row, 10)?,
    })
}

fn digest_of(bytes: &[u8]) -> Db<Digest> {
    bytes.try_into().map(Digest::from_bytes).map_err(|_| damage(23, "a digest has 32 bytes"))
}

/// A value of a statement.
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

macro_rules! value_of {
    ($($type:ty => $make:expr),*) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                let make: fn($type) -> Value = $make;
                make(value)
            }
        })*
    };
}

value_of! {
    i64 => Value::Int,
    i32 => |v| Value::Int(v.into()),
    bool => |v| Value::Int(v.into()),
    String => Value::Text,
    &str => |v| Value::Text(v.to_owned()),
    Vec<u8> => Value::Bytes
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// Values of statements, in order. sqlx's own list cannot be joined with another one.
#[derive(Default)]
pub(super) struct Args(Vec<Value>);

impl Args {
    /// Adds a value.
    pub(super) fn add(&mut self, value: impl Into<Value>) -> &mut Self {
        self.0.push(value.into());
        self
    }

    /// Adds a number that the database keeps in 63 bits.
    pub(super) fn add_u64(&mut self, value: u64) -> &mut Self {
        self.add(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// Adds another statement's values after these.
    pub(super) fn append(&mut self, mut other: Args) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The values as sqlx takes them.
    pub(super) fn done(self) -> Db<SqliteArguments> {
        let mut args = SqliteArguments::default();
        for value in self.0 {
            let added = match value {
                Value::Null => sqlx::Arguments::add(&mut args, None::<i64>),
                Value::Int(v) => sqlx::Arguments::add(&mut args, v),
                Value::Text(v) => sqlx::Arguments::add(&mut args, v),
                Value::Bytes(v) => sqlx::Arguments::add(&mut args, v),
            };
            added.map_err(sqlx::Error::Encode)?;
        }
        Ok(args)
    }
}

/// Adds a run's columns, see [`RUN_COLUMNS`].
pub(super) fn bind_run(args: &mut Args, run: &Run) {
    args.add(run.id.job().as_str())
        .add(i64::from(run.id.index()))
        .add(run.zone.as_str())
        .add(run.agent.as_str())
        .add(run.agent_key.to_string())
        .add(run.state.word())
        .add(run.is_final)
        .add(i64::from(run.attempt))
        .add(run.incarnation.map(|i| i.to_string()))
        .add(run.expires_ms)
        .add(run.dispatched_ms)
        .add(run.cancel_requested_ms)
        .add(run.cancel_hard)
        .add(run.started_ms)
        .add(run.finished_ms)
        .add(run.duration_ms.map(|d| i64::try_from(d).unwrap_or(i64::MAX)))
        .add(run.exit_code)
        .add(run.signal)
        .add(run.reason.as_deref())
        .add(run.message.as_deref())
        .add(run.result_state.map(ResultState::word))
        .add(run.progress.as_deref())
        .add(run.report_digest.map(|d| d.as_bytes().to_vec()))
        .add(i64::from(run.priority))
        .add(run.direct)
        .add(run.retry_at_ms)
        .add(run.last.as_ref().map(json_text));
}

/// A job's counts as its column has them. Counts without runs are left out.
pub(super) fn counts_json(job: &Job) -> String {
    serde_json::to_string(&job.counts).unwrap_or_default()
}

/// The word of an option.
pub(super) fn offline_word(offline: Offline) -> &'static str {
    match offline {
        Offline::Wait => "wait",
        Offline::Skip => "skip",
        Offline::Fail => "fail",
    }
}

fn offline_of(word: &str) -> Option<Offline> {
    [Offline::Wait, Offline::Skip, Offline::Fail].into_iter().find(|o| offline_word(*o) == word)
}

fn result_of(word: &str) -> Option<ResultState> {
    use ResultState::{Absent, Invalid, Oversize, SchemaMismatch, Valid};
    [Absent, Valid, Invalid, Oversize, SchemaMismatch].into_iter().find(|s| s.word() == word)
}

/// The word of a kind of report.
pub(super) fn kind_word(kind: ReportKind) -> &'static str {
    match kind {
        ReportKind::Result => "result",
        ReportKind::State => "state",
    }
}

/// Reads the word of a kind of report.
pub(super) fn kind_of(word: &str) -> ReportKind {
    if word == "state" { ReportKind::State } else { ReportKind::Result }
}

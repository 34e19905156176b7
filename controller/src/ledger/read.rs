//! Questions to the ledger; they never wait for the writer.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use sally_common::id::{Incarnation, JobId, RunId};
use sally_common::key::Signature;
use sally_common::name::{Agent, Zone};
use sally_common::wire::record::RunState;

use super::Ledger;
use super::error::{LedgerError, explain};
use super::load::json;
use super::row::{self, AGENT, Args, JOB, RUN_COLUMNS};
use super::types::*;

/// Most rows of one answer where the caller gives a limit.
pub const PAGE_MAX: u32 = 20_000;
/// What was done so much later than now was done before the clock was set back: how long ago nobody knows, so it counts as
/// long ago. Milliseconds; controllers' clocks differ by less.
pub const SET_BACK_MS: i64 = 60_000;

type Result<T> = std::result::Result<T, LedgerError>;

impl Ledger {
    /// A job, if there is one of this id.
    pub async fn job(&self, id: &JobId) -> Result<Option<Job>> {
        let mut args = Args::default();
        args.add(id.as_str());
        self.one(format!("SELECT {JOB} FROM jobs WHERE id = ?"), args, row::job).await
    }

    /// The job that was made for this request id, if there is one.
    pub async fn job_of_request(&self, id: &sally_common::id::RequestId) -> Result<Option<Job>> {
        let mut args = Args::default();
        args.add(id.as_str());
        self.one(format!("SELECT {JOB} FROM jobs WHERE request_id = ?"), args, row::job).await
    }

    /// The job that a person means: an id, a prefix that only one id has, or `latest`.
    pub async fn find_job(&self, text: &str) -> Result<FoundJob> {
        if text == "latest" {
            let newest = self.jobs(None, 1).await?.pop();
            return Ok(newest.map_or(FoundJob::None, FoundJob::One));
        }
        let text = text.to_ascii_lowercase();
        if text.is_empty() || text.len() > 26 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Ok(FoundJob::None);
        }
        // '~' sorts after every character of an id.
        let range = "FROM jobs WHERE id >= ? AND id < ?";
        let args = || {
            let mut args = Args::default();
            args.add(text.as_str()).add(format!("{text}~"));
            args
        };
        let mut jobs = self.all(format!("SELECT {JOB} {range} LIMIT 2"), args(), row::job).await?;
        if jobs.len() > 1 {
            let count = self.one(format!("SELECT count(*) {range}"), args(), |r| row::number(r, 0)).await?;
            return Ok(FoundJob::Ambiguous(count.unwrap_or(2)));
        }
        Ok(jobs.pop().map_or(FoundJob::None, FoundJob::One))
    }

    /// Jobs older than `before`, newest first, at most `limit`.
    pub async fn jobs(&self, before: Option<&JobId>, limit: u32) -> Result<Vec<Job>> {
        let mut args = Args::default();
        args.add(before.map_or("~", JobId::as_str)).add(i64::from(limit.min(PAGE_MAX)));
        let sql = format!("SELECT {JOB} FROM jobs WHERE id < ? ORDER BY id DESC LIMIT ?");
        self.all(sql, args, row::job).await
    }

    /// Jobs that have not ended, oldest first.
    pub async fn open_jobs(&self) -> Result<Vec<Job>> {
        let sql = format!("SELECT {JOB} FROM jobs WHERE ended_ms IS NULL ORDER BY id");
        self.all(sql, Args::default(), row::job).await
    }

    /// A job's runs from number `from` on, in order, at most `limit`; only those in `states`, or all if empty.
    pub async fn runs(&self, job: &JobId, from: u32, limit: u32, states: &[RunState]) -> Result<Vec<Run>> {
        let mut args = Args::default();
        args.add(job.as_str()).add(i64::from(from));
        let mut sql = format!("SELECT 'run', {RUN_COLUMNS} FROM runs WHERE job = ? AND idx >= ?");
        if !states.is_empty() {
            sql.push_str(" AND state IN (SELECT value FROM json_each(?))");
            args.add(json(&states));
        }
        sql.push_str(" ORDER BY idx LIMIT ?");
        args.add(i64::from(limit.min(PAGE_MAX)));
        self.all(sql, args, row::run).await
    }

    /// A run, if there is one of this id.
    pub async fn run(&self, id: &RunId) -> Result<Option<Run>> {
        let mut args = Args::default();
        args.add(id.job().as_str()).add(i64::from(id.index()));
        let sql = format!("SELECT 'run', {RUN_COLUMNS} FROM runs WHERE job = ? AND idx = ?");
        self.one(sql, args, row::run).await
    }

    /// A job's order: the exact bytes, and the signatures as JSON.
    pub async fn order_of(&self, job: &JobId) -> Result<Option<(Vec<u8>, String)>> {
        let mut args = Args::default();
        args.add(job.as_str());
        let read = |row: &SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?));
        self.one("SELECT body, signatures FROM orders WHERE job = ?".into(), args, read).await
    }

    /// The signed message that settled a run.
    pub async fn report_of(&self, run: &RunId) -> Result<Option<StoredReport>> {
        Ok(self.reports(std::slice::from_ref(run)).await?.remove(run))
    }

    /// The signed messages that settled the attempts of a run, the first one first.
    pub async fn attempts_of(&self, run: &RunId) -> Result<Vec<StoredReport>> {
        let mut args = Args::default();
        args.add(run.job().as_str()).add(i64::from(run.index()));
        let sql = "SELECT job, idx, attempt, incarnation, kind, body, signer, signature FROM reports \
                   WHERE job = ? AND idx = ? ORDER BY attempt";
        self.all(sql.into(), args, report).await
    }

    /// The signed messages that settled these runs; runs without one are left out. Each may have
    /// up to `limit::RESULT_MESSAGE_MAX` bytes: ask for few.
    pub async fn reports(&self, runs: &[RunId]) -> Result<BTreeMap<RunId, StoredReport>> {
        let keys: Vec<(&str, u32)> = runs.iter().map(|r| (r.job().as_str(), r.index())).collect();
        let mut args = Args::default();
        args.add(json(&keys));
        let sql = "SELECT p.job, p.idx, p.attempt, p.incarnation, p.kind, p.body, p.signer, p.signature \
                   FROM json_each(?) AS k \
                   CROSS JOIN runs AS r ON r.job = json_extract(k.value, '$[0]') \
                   AND r.idx = json_extract(k.value, '$[1]') \
                   CROSS JOIN reports AS p ON p.job = r.job AND p.idx = r.idx AND p.attempt = r.attempt";
        let all = self.all(sql.into(), args, report).await?;
        Ok(all.into_iter().map(|r| (r.run.clone(), r)).collect())
    }

    /// Results of older attempts and overruled ones that are kept on record for a run: attempt and state,
    /// oldest first.
    pub async fn stale_of(&self, run: &RunId) -> Result<Vec<(u32, RunState)>> {
        let mut args = Args::default();
        args.add(run.job().as_str()).add(i64::from(run.index()));
        let read = |row: &SqliteRow| {
            let state = RunState::of_word(row.try_get(1)?).unwrap_or(RunState::Unknown);
            Ok((row::number(row, 0)?, state))
        };
        let sql = "SELECT attempt, state FROM stale_results WHERE job = ? AND idx = ? ORDER BY id";
        self.all(sql.into(), args, read).await
    }

    /// Runs that an agent should get, in the order in which it gets them: pending and not waiting for another
    /// attempt, or dispatched and not started; not cancelled; not of the direct lane.
    pub async fn waiting_for(&self, zone: &Zone, agent: &Agent, limit: u32) -> Result<Vec<Run>> {
        self.waiting_from(zone, agent, 0, limit).await
    }

    /// The same from the one with this number on.
    pub async fn waiting_from(&self, zone: &Zone, agent: &Agent, from: u32, limit: u32) -> Result<Vec<Run>> {
        let mut args = Args::default();
        args.add(zone.as_str()).add(agent.as_str());
        // A bound limit would have the statement planned anew each time; the callers know few numbers.
        let sql = format!(
            "SELECT 'run', {RUN_COLUMNS} FROM runs WHERE zone = ? AND agent = ? AND NOT final \
             AND state IN ('pending', 'dispatched') AND cancel_requested_ms IS NULL AND retry_at_ms IS NULL \
             AND NOT direct ORDER BY priority DESC, job, idx LIMIT {} OFFSET {from}",
            limit.min(PAGE_MAX)
        );
        self.all(sql, args, row::run).await
    }

    /// Runs of which an agent must be asked, unless it says by itself that it holds them: this incarnation was sent them
    /// before `since_ms`, and they are running or ended by a guess only; oldest first.
    pub async fn in_doubt(
        &self,
        zone: &Zone,
        agent: &Agent,
        incarnation: Incarnation,
        since_ms: i64,
        limit: u32,
    ) -> Result<Vec<Run>> {
        let mut args = Args::default();
        args.add(zone.as_str()).add(agent.as_str()).add(incarnation.to_string());
        args.add(since_ms).add(since_ms.saturating_add(SET_BACK_MS));
        args.add(i64::from(limit.min(PAGE_MAX)));
        let sql = format!(
            "SELECT 'run', {RUN_COLUMNS} FROM runs WHERE zone = ? AND agent = ? AND NOT final AND attempt > 0 \
             AND state IN ('running', 'expired', 'unknown') AND incarnation = ? \
             AND (dispatched_ms <= ? OR dispatched_ms > ?) ORDER BY job, idx LIMIT ?"
        );
        self.all(sql, args, row::run).await
    }

    /// When the next pause between two attempts is over, Unix milliseconds.
    pub async fn next_retry(&self) -> Result<Option<i64>> {
        let sql = "SELECT min(retry_at_ms) FROM runs WHERE retry_at_ms IS NOT NULL";
        Ok(self.one(sql.into(), Args::default(), |row| row.try_get(0)).await?.flatten())
    }

    /// Runs of the direct lane that are dispatched or running; oldest first.
    pub async fn direct_open(&self, limit: u32) -> Result<Vec<Run>> {
        let mut args = Args::default();
        args.add(i64::from(limit.min(PAGE_MAX)));
        let sql = format!(
            "SELECT 'run', {RUN_COLUMNS} FROM runs WHERE direct AND NOT final \
             AND state IN ('dispatched', 'running') ORDER BY job, idx LIMIT ?"
        );
        self.all(sql, args, row::run).await
    }

    /// Agents for which runs are pending that nothing but they themselves holds up.
    pub async fn agents_behind(&self) -> Result<Vec<(Zone, Agent)>> {
        let sql = "SELECT DISTINCT zone, agent FROM runs WHERE NOT final AND state = 'pending' \
                   AND cancel_requested_ms IS NULL AND retry_at_ms IS NULL";
        self.all(sql.into(), Args::default(), |row| Ok((row::parse(row, 0)?, row::parse(row, 1)?))).await
    }

    /// Agents that get no new work.
    pub async fn drained(&self) -> Result<Vec<(Zone, Agent)>> {
        let sql = "SELECT zone, name FROM drained ORDER BY zone, name";
        self.all(sql.into(), Args::default(), |row| Ok((row::parse(row, 0)?, row::parse(row, 1)?))).await
    }

    /// Runs that an agent may hold: dispatched at least once and not final; oldest first.
    pub async fn held_by(&self, zone: &Zone, agent: &Agent, limit: u32) -> Result<Vec<Run>> {
        self.of_agent(zone, agent, "attempt > 0", limit).await
    }

    /// Runs whose cancellation an agent must still be told or has not answered; oldest first.
    pub async fn to_cancel(&self, zone: &Zone, agent: &Agent, limit: u32) -> Result<Vec<Run>> {
        self.of_agent(zone, agent, "attempt > 0 AND cancel_requested_ms IS NOT NULL", limit).await
    }

    async fn of_agent(&self, zone: &Zone, agent: &Agent, which: &str, limit: u32) -> Result<Vec<Run>> {
        let mut args = Args::default();
        args.add(zone.as_str()).add(agent.as_str());
        // A bound limit would have the statement planned anew each time; the callers know few numbers.
        let sql = format!(
            "SELECT 'run', {RUN_COLUMNS} FROM runs WHERE zone = ? AND agent = ? AND NOT final AND {which} \
             ORDER BY job, idx LIMIT {}",
            limit.min(PAGE_MAX)
        );
        self.all(sql, args, row::run).await
    }

    /// Runs of which nothing was heard since this time: dispatched and not started, or asked to be cancelled and
    /// not ended; oldest first.
    pub async fn silent(&self, since_ms: i64, limit: u32) -> Result<Vec<Run>> {
        let mut args = Args::default();
        let set_back_ms = since_ms.saturating_add(SET_BACK_MS);
        args.add(since_ms).add(set_back_ms).add(since_ms).add(set_back_ms);
        args.add(i64::from(limit.min(PAGE_MAX)));
        let sql = format!(
            "SELECT 'run', {RUN_COLUMNS} FROM runs WHERE NOT final AND state IN ('dispatched', 'running') \
             AND ((state = 'dispatched' AND NOT direct AND (dispatched_ms <= ? OR dispatched_ms > ?)) \
             OR cancel_requested_ms <= ? OR cancel_requested_ms > ?) \
             ORDER BY job, idx LIMIT ?"
        );
        self.all(sql, args, row::run).await
    }

    /// How many runs wait for each agent; agents for which none waits are left out.
    pub async fn waiting_counts(&self) -> Result<BTreeMap<(Zone, Agent), u64>> {
        let sql = "SELECT zone, agent, count(*) FROM runs WHERE NOT final AND state IN ('pending', 'dispatched') \
                   AND cancel_requested_ms IS NULL GROUP BY zone, agent";
        let read = |row: &SqliteRow| Ok(((row::parse(row, 0)?, row::parse(row, 1)?), row::number(row, 2)?));
        Ok(self.all(sql.into(), Args::default(), read).await?.into_iter().collect())
    }

    /// When the next run that waits will expire, Unix milliseconds.
    pub async fn next_expiry(&self) -> Result<Option<i64>> {
        let sql = "SELECT min(expires_ms) FROM runs WHERE state IN ('pending', 'dispatched')";
        Ok(self.one(sql.into(), Args::default(), |row| row.try_get(0)).await?.flatten())
    }

    /// Bytes of the ledger's file that are in use; what removed rows leave free is used again and not counted.
    pub async fn used_bytes(&self) -> Result<u64> {
        let sql = "SELECT (p.page_count - f.freelist_count) * s.page_size \
                   FROM pragma_page_count AS p, pragma_freelist_count AS f, pragma_page_size AS s";
        Ok(self.one(sql.into(), Args::default(), |row| row::number(row, 0)).await?.unwrap_or(0))
    }

    /// Every agent, by zone and name.
    pub async fn agents(&self) -> Result<Vec<AgentRow>> {
        self.all(format!("SELECT {AGENT} FROM agents ORDER BY zone, name"), Args::default(), row::agent).await
    }

    /// An agent.
    pub async fn agent(&self, zone: &Zone, name: &Agent) -> Result<Option<AgentRow>> {
        let mut args = Args::default();
        args.add(zone.as_str()).add(name.as_str());
        self.one(format!("SELECT {AGENT} FROM agents WHERE zone = ? AND name = ?"), args, row::agent).await
    }

    async fn one<T>(
        &self,
        sql: String,
        args: Args,
        read: impl Fn(&SqliteRow) -> std::result::Result<T, sqlx::Error>,
    ) -> Result<Option<T>> {
        Ok(self.all(sql, args, read).await?.into_iter().next())
    }

    async fn all<T>(
        &self,
        sql: String,
        args: Args,
        read: impl Fn(&SqliteRow) -> std::result::Result<T, sqlx::Error>,
    ) -> Result<Vec<T>> {
        let fail = |e: sqlx::Error| explain(self.path(), &e);
        let query = sqlx::query_with(sqlx::AssertSqlSafe(sql), args.done().map_err(fail)?);
        let rows = query.fetch_all(self.readers()).await.map_err(fail)?;
        rows.iter().map(read).collect::<std::result::Result<_, _>>().map_err(fail)
    }
}

fn report(row: &SqliteRow) -> std::result::Result<StoredReport, sqlx::Error> {
    let job: JobId = row::parse(row, 0)?;
    let signature: Signature = row::parse(row, 7)?;
    let report = Report {
        kind: row::kind_of(row.try_get(4)?),
        body: row.try_get(5)?,
        key: row::parse(row, 6)?,
        signature,
    };
    Ok(StoredReport {
        run: job.run(row::number(row, 1)?),
        attempt: row::number(row, 2)?,
        incarnation: row::parse(row, 3)?,
        report,
    })
}

//! Opening the file: lock, checks, schema, connections.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

use sally_common::id::{Nonce, RequestId};

use super::error::{LedgerError, explain};
use super::row::parse;

/// The schema's version in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 4;

/// `SALY`, in `PRAGMA application_id`: tells a ledger from other SQLite files.
const APPLICATION_ID: i64 = 0x5341_4c59;

/// Files up to this size are read through once at opening; larger ones would hold up every restart.
const CHECKED_BYTES: u64 = 64 * 1024 * 1024;

/// Connections that only read.
const READERS: u32 = 4;

/// How long a predecessor that is just ending may hold the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What an opened ledger consists of.
pub(super) struct Opened {
    pub(super) writer: SqliteConnection,
    pub(super) readers: SqlitePool,
    pub(super) lock: File,
    pub(super) id: String,
    /// Request ids that were cancelled before they were submitted.
    pub(super) cancelled: HashMap<RequestId, (i64, bool)>,
}

/// Opens or makes the ledger at `path`.
pub(super) async fn open(path: &Path) -> Result<Opened, LedgerError> {
    let lock = lock(path).await?;
    check_writable(path)?;
    let fail = |e: sqlx::Error| explain(path, &e);
    let options = options(path);
    let mut writer = options.connect().await.map_err(|e| match explain(path, &e) {
        LedgerError::Failed { path, detail } => LedgerError::Open { path, detail },
        other => other,
    })?;
    prepare(path, &mut writer).await?;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .test_before_acquire(false)
        .connect_with(options.create_if_missing(false).pragma("query_only", "ON"))
        .await
        .map_err(fail)?;
    let row = sqlx::query("SELECT value FROM meta WHERE key = 'ledger_id'").fetch_one(&readers).await;
    let id = row.and_then(|row| row.try_get(0)).map_err(fail)?;
    let cancelled = cancelled(&mut writer).await.map_err(fail)?;
    Ok(Opened { writer, readers, lock, id, cancelled })
}

async fn cancelled(db: &mut SqliteConnection) -> Result<HashMap<RequestId, (i64, bool)>, sqlx::Error> {
    let rows = sqlx::query("SELECT request_id, at_ms, hard FROM cancelled_requests").fetch_all(db).await?;
    let read = |row: &sqlx::sqlite::SqliteRow| Ok((parse(row, 0)?, (row.try_get(1)?, row.try_get(2)?)));
    rows.iter().map(read).collect()
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // FULL: a commit is on the disk before it is answered.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .foreign_keys(true)
        // Pages, 16 MiB: most are written again by the next commits, so fewer trips into the file write less.
        .pragma("wal_autocheckpoint", "4000")
        .pragma("journal_size_limit", (64 * 1024 * 1024).to_string())
        .disable_statement_logging()
}

/// Takes the lock beside the file; the lock ends with its holder, however that ends.
async fn lock(path: &Path) -> Result<File, LedgerError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let open = |e: &dyn std::fmt::Display| LedgerError::Open { path: path.into(), detail: e.to_string() };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(PathBuf::from(name));
    let file = file.map_err(|e| open(&e))?;
    let until = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(open(&e)),
            Err(TryLockError::WouldBlock) if tokio::time::Instant::now() >= until => {
                return Err(LedgerError::InUse { path: path.into() });
            }
            // A file lock cannot be awaited without giving a thread to it.
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// SQLite opens a file that it may not write for reading only, and fails at the first write. Comes after the
/// lock: closing a file drops SQLite's own locks on it if this process has it open elsewhere.
fn check_writable(path: &Path) -> Result<(), LedgerError> {
    match OpenOptions::new().write(true).open(path) {
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            Err(LedgerError::ReadOnly { path: path.into() })
        }
        // What else may be wrong, SQLite says.
        _ => Ok(()),
    }
}

async fn prepare(path: &Path, db: &mut SqliteConnection) -> Result<(), LedgerError> {
    let fail = |e: sqlx::Error| explain(path, &e);
    let tables = number(db, "SELECT count(*) FROM sqlite_master").await.map_err(fail)?;
    let application = number(db, "PRAGMA application_id").await.map_err(fail)?;
    let version = number(db, "PRAGMA user_version").await.map_err(fail)?;
    match (tables, application, version) {
        (0, 0, 0) => create(db).await.map_err(fail),
        (_, APPLICATION_ID, found) if found > VERSION => {
            Err(LedgerError::Newer { path: path.into(), found, known: VERSION })
        }
        (_, APPLICATION_ID, VERSION) => check(path, db).await,
        (_, APPLICATION_ID, found @ 1..VERSION) => {
            check(path, db).await?;
            upgrade(db, found).await.map_err(fail)
        }
        _ => Err(LedgerError::Foreign { path: path.into() }),
    }
}

async fn create(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut tx = db.begin().await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *tx).await?;
    sqlx::query("INSERT INTO meta (key, value) VALUES ('ledger_id', ?)")
        .bind(Nonce::generate().to_string())
        .execute(&mut *tx)
        .await?;
    let stamp = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(stamp)).execute(&mut *tx).await?;
    tx.commit().await
}

/// Brings an older ledger up to date, step by step in one transaction.
async fn upgrade(db: &mut SqliteConnection, found: i64) -> Result<(), sqlx::Error> {
    let steps = [
        (2, include_str!("upgrade-2.sql")),
        (3, include_str!("upgrade-3.sql")),
        (4, include_str!("upgrade-4.sql")),
    ];
    let mut tx = db.begin().await?;
    for (_, step) in steps.into_iter().filter(|(version, _)| *version > found) {
        sqlx::raw_sql(step).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Reads a ledger of moderate size through, so that damage shows now and not in the middle of a job.
async fn check(path: &Path, db: &mut SqliteConnection) -> Result<(), LedgerError> {
    let bytes = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
    if bytes > CHECKED_BYTES {
        return Ok(());
    }
    let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(db).await;
    let text: String = row.and_then(|row| row.try_get(0)).map_err(|e| explain(path, &e))?;
    match text.as_str() {
        "ok" => Ok(()),
        _ => Err(LedgerError::Corrupt { path: path.into(), detail: text }),
    }
}

async fn number(db: &mut SqliteConnection, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query(sql).fetch_one(db).await?.try_get(0)
}

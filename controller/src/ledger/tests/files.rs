//! Files that are damaged, foreign, locked, read-only; restarts; batches.

use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

async fn refused(path: &PathBuf) -> LedgerError {
    match Ledger::open(path).await {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => {
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            error
        }
    }
}

async fn execute(path: &PathBuf, sql: &'static str) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut db = options.connect().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}

#[tokio::test]
async fn what_is_no_ledger_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    std::fs::write(&path, "this is no database, only a long enough text ".repeat(50)).unwrap();
    assert!(matches!(refused(&path).await, LedgerError::Corrupt { .. }));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("this is"), "left as it was");

    let path = dir.path().join("foreign");
    execute(&path, "CREATE TABLE songs (title TEXT)").await;
    assert!(matches!(refused(&path).await, LedgerError::Foreign { .. }));

    let path = dir.path().join("newer");
    Ledger::open(&path).await.unwrap().close().await;
    execute(&path, "PRAGMA user_version = 99").await;
    assert!(matches!(refused(&path).await, LedgerError::Newer { found: 99, known: 4, .. }));

    assert!(matches!(refused(&dir.path().join("no/such/folder")).await, LedgerError::Open { .. }));
    let path = dir.path().join("folder");
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(refused(&path).await, LedgerError::Open { .. }));
}

#[tokio::test]
async fn a_damaged_ledger_is_refused_or_says_so_later_but_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    let ledger = Ledger::open(&path).await.unwrap();
    let agent = Who::new(0);
    for i in 0..200 {
        created(&ledger, new_job(&format!("r{i}"), i, vec![agent.target()])).await;
    }
    ledger.close().await;
    let good = std::fs::read(&path).unwrap();
    let mut refusals = 0;
    for page in 0..good.len() / 4096 {
        let mut bad = good.clone();
        bad[page * 4096..page * 4096 + 2048].fill(0xA5);
        let path = dir.path().join(format!("bad-{page}"));
        std::fs::write(&path, &bad).unwrap();
        match Ledger::open(&path).await {
            Err(LedgerError::Corrupt { .. }) => refusals += 1,
            Err(other) => panic!("{other}"),
            Ok(ledger) => {
                // Damage inside a value is not seen by SQLite; reading it must say so or answer.
                let _ = ledger.jobs(None, 1000).await;
                ledger.close().await;
            }
        }
    }
    assert!(refusals > good.len() / 4096 / 2, "{refusals} of {} pages", good.len() / 4096);
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(matches!(refused(&path).await, LedgerError::Corrupt { .. }), "cut in the middle");
}

#[tokio::test]
async fn a_folder_or_file_that_is_not_writable_is_named() {
    if nix::unistd::geteuid().is_root() {
        // Root writes everywhere; a folder in a read-only file system serves instead.
        assert!(matches!(refused(&PathBuf::from("/proc/ledger")).await, LedgerError::Open { .. }));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    Ledger::open(&path).await.unwrap().close().await;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(matches!(refused(&path).await, LedgerError::ReadOnly { .. }));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let other = dir.path().join("other.sqlite");
    assert!(matches!(refused(&other).await, LedgerError::Open { .. }));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[tokio::test]
async fn a_write_that_fails_says_why_and_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    // A trigger stands for whatever the database may refuse for one command only.
    execute(
        &ledger.path().to_path_buf(),
        "CREATE TRIGGER t BEFORE INSERT ON jobs WHEN NEW.request_id = 'bad' \
         BEGIN SELECT RAISE(ABORT, 'out of order'); END",
    )
    .await;
    let all = (0..40).map(|i| {
        let request = if i == 20 { "bad".to_owned() } else { format!("r{i}") };
        let (ledger, new) = (ledger.clone(), new_job(&request, i, vec![agent.target()]));
        tokio::spawn(async move { ledger.submit(new).await })
    });
    let mut failed = 0;
    for task in all.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(Submitted::Created(_)) => {}
            Err(LedgerError::Failed { detail, .. }) if detail.contains("out of order") => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(failed, 1);
    assert_eq!(ledger.jobs(None, 100).await.unwrap().len(), 39);
}

#[tokio::test]
async fn only_one_controller_writes_to_a_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    assert!(matches!(refused(&dir.path().join("ledger.sqlite")).await, LedgerError::InUse { .. }));
    let id = ledger.id().to_owned();
    drop(ledger);
    let again = open(&dir).await;
    assert_eq!((again.id(), id.len()), (id.as_str(), 32));
}

#[test]
fn what_was_answered_is_there_after_a_kill_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Who::new(0);
    let answered = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    for round in 0..5 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = tokio::task::LocalSet::new();
        tasks.block_on(&runtime, async {
            let ledger = open(&dir).await;
            let target = answered.borrow().len() + 100;
            for i in 0.. {
                let (ledger, kept) = (ledger.clone(), answered.clone());
                let new = new_job(&format!("{round}-{i}"), i, vec![agent.target()]);
                let task = tokio::task::spawn_local(async move {
                    if let Ok(Submitted::Created(job)) = ledger.submit(new).await {
                        kept.borrow_mut().push(job.id);
                    }
                });
                if i % 10 == 5 {
                    let _ = task.await;
                }
                if answered.borrow().len() >= target {
                    break;
                }
            }
            // Some more, which are under way when everything is dropped.
            for i in 1_000_000..1_000_020 {
                let (ledger, new) =
                    (ledger.clone(), new_job(&format!("{round}-{i}"), i, vec![agent.target()]));
                tokio::task::spawn_local(async move { ledger.submit(new).await });
            }
            tokio::task::yield_now().await;
        });
        drop(tasks);
        runtime.shutdown_background();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = open(&dir).await;
        let kept = answered.borrow().clone();
        assert!(kept.len() >= 500);
        for id in kept {
            assert!(ledger.job(&id).await.unwrap().is_some(), "{id}");
            assert_eq!(ledger.runs(&id, 0, 10, &[]).await.unwrap().len(), 1);
        }
    });
}

#[tokio::test]
async fn a_thousand_results_at_once_of_one_large_job() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agents: Vec<Who> = (0..1000).map(Who::new).collect();
    let job = created(&ledger, new_job("big", 1, agents.iter().map(Who::target).collect())).await;
    let marks = (0..).zip(&agents).map(|(i, a)| a.mark(&job.id.run(i), 1, 2)).collect();
    assert!(ledger.dispatch(marks).await.unwrap().iter().all(|ok| *ok));
    let tasks: Vec<_> = (0..)
        .zip(&agents)
        .map(|(i, a)| (ledger.clone(), a.outcome(&job.id.run(i), 1, RunState::Succeeded)))
        .map(|(ledger, told)| tokio::spawn(async move { committed(ledger.settle(told).await.unwrap()) }))
        .collect();
    let mut ends = 0;
    for task in tasks {
        ends += u32::from(task.await.unwrap().job_ended);
    }
    assert_eq!(ends, 1, "the job ends once");
    ledger.close().await;
    let again = open(&dir).await;
    let job = again.job(&job.id).await.unwrap().unwrap();
    assert_eq!(job.counts, [(RunState::Succeeded, 1000)].into());
    let runs: Vec<RunId> = (0..1000).map(|i| job.id.run(i)).collect();
    assert_eq!(again.reports(&runs).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn a_ledger_of_version_1_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    execute(&path, include_str!("schema-1.sql")).await;
    is_brought_up_to_date(&path).await;
}

#[tokio::test]
async fn a_ledger_of_version_2_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.sqlite");
    execute(&path, include_str!("schema-1.sql")).await;
    execute(&path, include_str!("../upgrade-2.sql")).await;
    is_brought_up_to_date(&path).await;
}

async fn is_brought_up_to_date(path: &PathBuf) {
    let ledger = Ledger::open(path).await.unwrap();
    let job = ledger.jobs(None, 5).await.unwrap().pop().unwrap();
    assert_eq!((job.priority, job.retry.clone(), job.direct), (4, None, false));
    let run = ledger.runs(&job.id, 0, 5, &[]).await.unwrap().pop().unwrap();
    assert_eq!((run.state, run.priority), (RunState::Succeeded, 4));
    assert_eq!(ledger.report_of(&run.id).await.unwrap().unwrap().report.body, b"a result");
    let agent = ledger.agents().await.unwrap().pop().unwrap();
    assert_eq!((agent.counter, agent.journal), (7, 0), "it never said");
    ledger.close().await;
    // A second time there is nothing to do.
    Ledger::open(path).await.unwrap().close().await;
}

/// A small disk of its own, gone with this value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(dir.path())
            .output();
        mount.is_ok_and(|out| out.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_in_words_and_is_forgotten_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        use std::io::Write as _;
        std::io::stderr().write_all(b"SKIPPED: no small disk can be mounted here\n").unwrap();
        return;
    };
    let dir = disk.0.path();
    let ledger = Ledger::open(dir.join("ledger.sqlite")).await.unwrap();
    let agent = Who::new(0);
    let job = created(&ledger, new_job("first", 0, vec![agent.target()])).await;
    let run = job.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    let ballast = dir.join("ballast");
    // Ends when the disk is full.
    let _ = std::fs::write(&ballast, vec![1; 4 * 1024 * 1024]);
    let mut made = 0;
    let refused = loop {
        match ledger.submit(new_job(&format!("r{made}"), made, vec![agent.target()])).await {
            Ok(Submitted::Created(_)) => made += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
        assert!(made < 10_000, "the disk is never full");
    };
    assert!(matches!(refused, LedgerError::Full { .. }), "{refused}");
    let told = Settlement {
        report: agent.report(&"x".repeat(100_000)),
        ..agent.outcome(&run, 1, RunState::Succeeded)
    };
    assert!(matches!(ledger.settle(told.clone()).await, Err(LedgerError::Full { .. })), "no receipt");
    assert_eq!(ledger.run(&run).await.unwrap().unwrap().state, RunState::Dispatched, "it still reads");

    std::fs::remove_file(&ballast).unwrap();
    committed(ledger.settle(told).await.unwrap());
    created(&ledger, new_job("after", 1, vec![agent.target()])).await;
    let jobs = usize::try_from(made).unwrap() + 2;
    assert_eq!(ledger.jobs(None, 20_000).await.unwrap().len(), jobs, "nothing half-written");
    ledger.close().await;
}

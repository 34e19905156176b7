//! Each method on its own.

use super::*;
use RunState::*;

#[tokio::test]
async fn a_job_runs_from_submission_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agents = [Who::new(0), Who::new(1)];
    let new = new_job("r1", 1_000, agents.iter().map(Who::target).collect());
    let job = created(&ledger, new.clone()).await;
    assert_eq!(job.counts, [(Pending, 2)].into());
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(ledger.job_of_request(&job.request_id).await.unwrap(), Some(job.clone()));
    assert_eq!(ledger.order_of(&job.id).await.unwrap(), Some((new.order, new.signatures_json)));
    let (r0, r1) = (job.id.run(0), job.id.run(1));
    assert_eq!(ledger.waiting_for(&agents[0].zone, &agents[0].name, 10).await.unwrap().len(), 1);
    assert_eq!(ledger.waiting_counts().await.unwrap().values().sum::<u64>(), 2);
    assert_eq!(ledger.next_expiry().await.unwrap(), Some(11_000));

    let marks = vec![agents[0].mark(&r0, 1, 1_001), agents[1].mark(&r1, 1, 1_001)];
    assert_eq!(ledger.dispatch(marks).await.unwrap(), [true, true]);
    let noted = ledger.started(agents[0].start(&r0, 1, 1_002)).await.unwrap();
    let Noted::Changed(change) = noted else { panic!("{noted:?}") };
    assert_eq!(change.job.counts, [(Dispatched, 1), (Running, 1)].into());
    assert_eq!(ledger.held_by(&agents[0].zone, &agents[0].name, 10).await.unwrap(), [change.run]);

    let change = committed(ledger.settle(agents[0].outcome(&r0, 1, Succeeded)).await.unwrap());
    assert!(!change.job_ended && !change.correction && change.run.is_final);
    let report = ledger.report_of(&r0).await.unwrap().unwrap();
    assert_eq!(report.report, agents[0].outcome(&r0, 1, Succeeded).report);
    assert!(report.report.key.verify(Kind::Result, &report.report.body, &report.report.signature));
    let change = committed(ledger.settle(agents[1].outcome(&r1, 1, Failed)).await.unwrap());
    assert!(change.job_ended);
    assert_eq!(change.job.ended_ms, Some(700));
    assert_eq!(change.job.state(), sally_common::wire::record::JobState::Failed);
    assert!(ledger.open_jobs().await.unwrap().is_empty());
    assert_eq!(ledger.run(&r1).await.unwrap(), Some(change.run));
    let failed = ledger.runs(&job.id, 0, 10, &[Failed]).await.unwrap();
    assert_eq!(failed.iter().map(|r| r.id.index()).collect::<Vec<_>>(), [1]);
    assert_eq!(ledger.runs(&job.id, 1, 10, &[]).await.unwrap().len(), 1);
    ledger.close().await;
    assert!(matches!(ledger.open_jobs().await, Err(LedgerError::Closed)));
    assert!(matches!(ledger.expire(0).await, Err(LedgerError::Closed)));
}

#[tokio::test]
async fn one_request_id_is_one_job_whoever_asks_how_often() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let all = (0..50).map(|_| {
        let (ledger, new) = (ledger.clone(), new_job("same", 1, vec![agent.target()]));
        tokio::spawn(async move { ledger.submit(new).await.unwrap() })
    });
    let mut ids = std::collections::BTreeSet::new();
    let mut made = 0;
    for task in all.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Submitted::Created(job) => {
                made += 1;
                ids.insert(job.id);
            }
            Submitted::Existing(job) => {
                ids.insert(job.id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((made, ids.len()), (1, 1));
    let mut other = new_job("same", 1, vec![agent.target()]);
    other.request_digest = Digest::of(b"another body");
    let answer = ledger.submit(other).await.unwrap();
    assert!(matches!(answer, Submitted::Conflict { existing } if ids.contains(&existing)));
    let none = ledger.submit(new_job("none", 1, vec![])).await;
    assert!(matches!(none, Err(LedgerError::Input(_))), "{none:?}");
}

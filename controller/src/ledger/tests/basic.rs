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

#[tokio::test]
async fn late_truth_corrects_a_guess_and_stale_truth_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (agent, other) = (Who::new(0), Who::new(1));
    let job = created(&ledger, new_job("r", 0, vec![agent.target()])).await;
    let run = job.id.run(0);
    assert_eq!(ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap(), [true]);
    assert_eq!(ledger.dispatch(vec![agent.mark(&run, 2, 2)]).await.unwrap(), [true], "a new try");
    assert_eq!(
        ledger.dispatch(vec![other.mark(&run, 2, 3)]).await.unwrap(),
        [false],
        "same attempt, other journal"
    );

    assert!(ledger.expire(9_999).await.unwrap().changes.is_empty());
    let expired = ledger.expire(10_000).await.unwrap().changes;
    assert!(expired[0].job_ended && !expired[0].run.is_final);
    assert_eq!(ledger.held_by(&agent.zone, &agent.name, 10).await.unwrap().len(), 1);
    let settle = async |told: Settlement| ledger.settle(told).await.unwrap();
    assert_eq!(settle(other.outcome(&run, 2, Succeeded)).await, Settled::NotIts);
    assert_eq!(settle(agent.outcome(&job.id.run(1), 1, Succeeded)).await, Settled::Unknown);
    assert!(
        matches!(settle(agent.outcome(&run, 1, Succeeded)).await, Settled::Stale { run } if run.state == Expired)
    );

    let change = committed(settle(agent.outcome(&run, 2, Interrupted)).await);
    assert!(change.correction && !change.job_ended);
    assert_eq!(change.job.counts, [(Interrupted, 1)].into());
    assert!(matches!(settle(agent.outcome(&run, 2, Unknown)).await, Settled::Duplicate { .. }));
    let change = committed(settle(agent.outcome(&run, 2, Succeeded)).await);
    assert!(change.correction && change.run.is_final);
    assert!(
        matches!(settle(agent.outcome(&run, 2, Failed)).await, Settled::Duplicate { run } if run.state == Succeeded)
    );
    for _ in 0..2 {
        assert!(matches!(settle(agent.outcome(&run, 2, Succeeded)).await, Settled::Duplicate { .. }));
    }
    // What was overruled or stale is on record once each; the same result sent again is not.
    assert_eq!(ledger.stale_of(&run).await.unwrap(), [(1, Succeeded), (2, Unknown), (2, Failed)]);
    assert_eq!(ledger.report_of(&run).await.unwrap().unwrap().attempt, 2);
    assert!(matches!(settle_error(&ledger, agent.outcome(&run, 2, Running)).await, LedgerError::Input(_)));
}

async fn settle_error(ledger: &Ledger, told: Settlement) -> LedgerError {
    ledger.settle(told).await.unwrap_err()
}

#[tokio::test]
async fn a_start_reopens_what_was_taken_for_expired_but_not_what_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agents = [Who::new(0), Who::new(1)];
    let job = created(&ledger, new_job("r", 0, agents.iter().map(Who::target).collect())).await;
    let runs = [job.id.run(0), job.id.run(1)];
    let marks = vec![agents[0].mark(&runs[0], 1, 1), agents[1].mark(&runs[1], 1, 1)];
    assert_eq!(ledger.dispatch(marks).await.unwrap(), [true, true]);
    let new_journal = Incarnation::generate();
    let lost =
        ledger.lost_journal(&agents[1].zone, &agents[1].name, new_journal, &[], 5).await.unwrap().changes;
    assert_eq!(
        (lost.len(), lost[0].run.state, lost[0].run.reason.as_deref()),
        (1, Unknown, Some("journal-lost"))
    );
    assert_eq!(ledger.expire(20_000).await.unwrap().changes.len(), 1);
    assert!(ledger.job(&job.id).await.unwrap().unwrap().ended_ms.is_some());
    assert_eq!(ledger.started(agents[1].start(&runs[1], 1, 6)).await.unwrap(), Noted::Same);
    let noted = ledger.started(agents[0].start(&runs[0], 1, 6)).await.unwrap();
    let Noted::Changed(change) = noted else { panic!("{noted:?}") };
    assert!(change.correction && change.job.ended_ms.is_none());
    assert_eq!(change.job.counts, [(Running, 1), (Unknown, 1)].into());
    let change = committed(ledger.settle(agents[0].outcome(&runs[0], 1, Succeeded)).await.unwrap());
    assert!(change.job_ended);
}

#[tokio::test]
async fn a_cancellation_ends_what_was_not_sent_and_names_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agents: Vec<Who> = (0..3).map(Who::new).collect();
    let job = created(&ledger, new_job("r", 0, agents.iter().map(Who::target).collect())).await;
    let runs: Vec<RunId> = (0..3).map(|i| job.id.run(i)).collect();
    ledger.dispatch(vec![agents[1].mark(&runs[1], 1, 1), agents[2].mark(&runs[2], 1, 1)]).await.unwrap();
    committed(ledger.settle(agents[2].outcome(&runs[2], 1, Succeeded)).await.unwrap());
    let first = ledger.cancel(&job.id, 50, false).await.unwrap().unwrap();
    assert_eq!((first.cancelled.len(), first.tell.len(), first.job_ended), (1, 1, false));
    let second = ledger.cancel(&job.id, 60, true).await.unwrap().unwrap();
    assert_eq!((second.cancelled.len(), second.tell.len()), (0, 1));
    assert_eq!((second.tell[0].cancel_requested_ms, second.tell[0].cancel_hard), (Some(50), true));
    assert_eq!(ledger.to_cancel(&agents[1].zone, &agents[1].name, 5).await.unwrap(), second.tell);
    assert!(ledger.waiting_for(&agents[1].zone, &agents[1].name, 5).await.unwrap().is_empty());
    assert_eq!(ledger.dispatch(vec![agents[1].mark(&runs[1], 1, 61)]).await.unwrap(), [false]);
    assert_eq!(ledger.dispatch(vec![agents[0].mark(&runs[0], 1, 61)]).await.unwrap(), [false]);
    let settled = ledger.refuse(agents[1].refusal(&runs[1], 1, "cancelled")).await.unwrap();
    let change = committed(settled);
    assert_eq!((change.run.state, change.job_ended), (Cancelled, true));
    let none = ledger.cancel(&job.id, 70, false).await.unwrap().unwrap();
    assert_eq!((none.cancelled.len(), none.tell.len()), (0, 0), "all ended");
    assert!(ledger.cancel(&JobId::generate(7), 1, false).await.unwrap().is_none());
}

#[tokio::test]
async fn a_cancellation_sent_with_the_submission_finds_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let new = new_job("r", 0, vec![Who::new(0).target()]);
    let id = new.id.clone();
    let (made, cancelled) = tokio::join!(ledger.submit(new), ledger.cancel(&id, 1, false));
    assert!(matches!(made.unwrap(), Submitted::Created(_)));
    assert_eq!(cancelled.unwrap().unwrap().cancelled.len(), 1);
}

#[tokio::test]
async fn refusals_settle_as_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    for (reason, expected) in [("policy", Rejected), ("expired", Expired), ("cancelled", Cancelled)] {
        let job = created(&ledger, new_job(reason, 0, vec![agent.target()])).await;
        let run = job.id.run(0);
        ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
        let again = ledger.refuse(agent.refusal(&run, 1, "replayed")).await.unwrap();
        assert!(matches!(again, Settled::Duplicate { run } if run.state == Dispatched));
        let change = committed(ledger.refuse(agent.refusal(&run, 1, reason)).await.unwrap());
        assert_eq!((change.run.state, change.run.is_final, change.job_ended), (expected, true, true));
        assert_eq!(change.run.reason.as_deref(), Some(reason));
    }
}

#[tokio::test]
async fn jobs_are_found_by_id_prefix_and_latest_and_go_when_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    assert!(matches!(ledger.find_job("latest").await.unwrap(), FoundJob::None));
    let mut jobs = Vec::new();
    for i in 0..5 {
        jobs.push(
            created(&ledger, new_job(&format!("r{i}"), i * 1_000_000_000_000, vec![agent.target()])).await,
        );
    }
    let is = |found: FoundJob, job: &Job| matches!(found, FoundJob::One(one) if one == *job);
    assert!(is(ledger.find_job("latest").await.unwrap(), &jobs[4]));
    assert!(is(ledger.find_job(jobs[2].id.as_str()).await.unwrap(), &jobs[2]));
    assert!(is(ledger.find_job(&jobs[2].id.as_str()[..20].to_uppercase()).await.unwrap(), &jobs[2]));
    assert!(matches!(ledger.find_job("0").await.unwrap(), FoundJob::Ambiguous(5)));
    for nothing in ["", "zzz", "%", "0'--", &"0".repeat(27)] {
        assert!(matches!(ledger.find_job(nothing).await.unwrap(), FoundJob::None), "{nothing}");
    }
    let page: Vec<JobId> =
        ledger.jobs(Some(&jobs[3].id), 2).await.unwrap().into_iter().map(|j| j.id).collect();
    assert_eq!(page, [jobs[2].id.clone(), jobs[1].id.clone()]);

    let run = jobs[0].id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    committed(ledger.settle(agent.outcome(&run, 1, Failed)).await.unwrap());
    let before = ledger.used_bytes().await.unwrap();
    assert!(before > 4096, "{before}");
    assert_eq!(ledger.prune(700, 10).await.unwrap(), 0);
    assert_eq!(ledger.prune(701, 10).await.unwrap(), 1, "open jobs stay");
    assert_eq!(ledger.run(&run).await.unwrap(), None);
    assert_eq!(ledger.report_of(&run).await.unwrap(), None);
    assert_eq!(ledger.order_of(&jobs[0].id).await.unwrap(), None);
    assert_eq!(ledger.jobs(None, 10).await.unwrap().len(), 4);
}

#[tokio::test]
async fn agents_are_kept_with_their_key_incarnation_and_counter() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (mut agent, thief) = (Who::new(0), Who::new(0));
    let answers = ledger.upsert_agents(vec![agent.seen(5), agent.seen(6), agent.seen(6)]).await.unwrap();
    assert_eq!(answers, [Seen::New, Seen::Updated, Seen::Stale]);
    assert_eq!(ledger.upsert_agents(vec![thief.seen(9)]).await.unwrap(), [Seen::OtherKey]);
    let journal = async || ledger.agent(&agent.zone, &agent.name).await.unwrap().unwrap().journal;
    assert_eq!(journal().await, 60);
    let silent = AgentSeen { journal: 0, ..agent.seen(7) };
    assert_eq!(ledger.upsert_agents(vec![silent]).await.unwrap(), [Seen::Updated]);
    assert_eq!(journal().await, 60, "the highest that was heard");
    let before = agent.incarnation;
    agent.incarnation = Incarnation::generate();
    assert_eq!(ledger.upsert_agents(vec![agent.seen(1)]).await.unwrap(), [Seen::NewIncarnation { before }]);
    let row = ledger.agent(&agent.zone, &agent.name).await.unwrap().unwrap();
    assert_eq!((row.counter, row.first_seen_ms, row.last_seen_ms, row.journal), (1, 5, 1, 10));
    assert_eq!(
        (row.agent_key, row.incarnation, row.heartbeat.as_str()),
        (agent.public(), agent.incarnation, "{\"counter\":1}")
    );
    assert!(ledger.forget_agent(&agent.zone, &agent.name).await.unwrap());
    assert!(!ledger.forget_agent(&agent.zone, &agent.name).await.unwrap());
    assert_eq!(ledger.upsert_agents(vec![thief.seen(9)]).await.unwrap(), [Seen::New]);
    let many: Vec<Who> = (1..100).map(Who::new).collect();
    ledger.upsert_agents(many.iter().map(|a| a.seen(1)).collect()).await.unwrap();
    assert_eq!(ledger.agents().await.unwrap().len(), 100);
}

#[tokio::test]
async fn stale_results_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let job = created(&ledger, new_job("r", 0, vec![agent.target()])).await;
    let run = job.id.run(0);
    let kept = usize::try_from(crate::ledger::save::STALE_KEPT).unwrap();
    let all = (0..kept + 50).map(|i| {
        let mut told = agent.outcome(&run, 0, Succeeded);
        told.report = agent.report(&format!("{i}"));
        ledger.settle(told)
    });
    for answer in futures_util::future::join_all(all).await {
        assert!(matches!(answer.unwrap(), Settled::Stale { .. }));
    }
    assert_eq!(ledger.stale_of(&run).await.unwrap().len(), kept);
}

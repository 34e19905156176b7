//! Priorities, replacement, purges, cancellations ahead of their submissions, recovery, drains.

use super::*;
use RunState::*;

async fn waiting(ledger: &Ledger, agent: &Who) -> Vec<JobId> {
    let runs = ledger.waiting_for(&agent.zone, &agent.name, 100).await.unwrap();
    runs.iter().map(|r| r.id.job().clone()).collect()
}

#[tokio::test]
async fn the_urgent_goes_first_and_within_one_priority_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let mut ids = Vec::new();
    for (i, priority) in (0i64..).zip([4, 9, 4, 0, 9]) {
        let new = NewJob { priority, ..new_job(&format!("r{i}"), i, vec![agent.target()]) };
        ids.push(created(&ledger, new).await.id);
    }
    // One was dispatched and not taken: it keeps its place.
    ledger.dispatch(vec![agent.mark(&ids[2].run(0), 1, 9)]).await.unwrap();
    let order: Vec<usize> = [1, 4, 0, 2, 3].to_vec();
    let expected: Vec<JobId> = order.iter().map(|i| ids[*i].clone()).collect();
    assert_eq!(waiting(&ledger, &agent).await, expected);
    let rest = ledger.waiting_from(&agent.zone, &agent.name, 3, 10).await.unwrap();
    assert_eq!(rest.iter().map(|r| r.id.job().clone()).collect::<Vec<_>>(), expected[3..]);
}

#[tokio::test]
async fn the_latest_takes_the_place_of_what_waits_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (agent, other) = (Who::new(0), Who::new(1));
    let keyed = |request: &str, key: &str, targets: Vec<NewRun>| NewJob {
        latest_only: Some(key.into()),
        ..new_job(request, i64::from(request.as_bytes()[0]), targets)
    };
    let first = created(&ledger, keyed("a", "config", vec![agent.target(), other.target()])).await.id;
    let running = created(&ledger, keyed("b", "else", vec![agent.target()])).await.id;
    ledger.dispatch(vec![agent.mark(&running.run(0), 1, 1)]).await.unwrap();
    ledger.started(agent.start(&running.run(0), 1, 2)).await.unwrap();
    let unkeyed = created(&ledger, new_job("c", 99, vec![agent.target()])).await.id;

    let new = keyed("d", "config", vec![agent.target()]);
    let Submitted::Replacing { job, replaced } = ledger.submit(new).await.unwrap() else { panic!() };
    assert_eq!((replaced.changes.len(), replaced.tell.len()), (1, 0), "not those of other agents");
    let run = &replaced.changes[0].run;
    assert_eq!((run.id.clone(), run.state, run.is_final), (first.run(0), Cancelled, true));
    assert_eq!(run.reason.as_deref(), Some("replaced"));
    assert!(run.message.as_deref().is_some_and(|m| m.contains(job.id.as_str())), "{run:?}");
    assert_eq!(waiting(&ledger, &agent).await, [unkeyed, job.id.clone()]);
    assert_eq!(waiting(&ledger, &other).await, [first]);

    // Sent and not started: its agent is told, and its word ends it with the reason that is known here.
    ledger.dispatch(vec![agent.mark(&job.id.run(0), 1, 3)]).await.unwrap();
    let new = keyed("e", "config", vec![agent.target()]);
    let Submitted::Replacing { replaced, .. } = ledger.submit(new).await.unwrap() else { panic!() };
    assert_eq!((replaced.changes.len(), replaced.tell.len()), (0, 1));
    let change = committed(ledger.refuse(agent.refusal(&job.id.run(0), 1, "cancelled")).await.unwrap());
    assert_eq!((change.run.state, change.run.reason.as_deref()), (Cancelled, Some("replaced")));
    // What had started is not replaced.
    assert!(matches!(
        ledger.submit(keyed("f", "else", vec![agent.target()])).await.unwrap(),
        Submitted::Created(_)
    ));
}

#[tokio::test]
async fn a_purge_ends_what_waits_and_touches_nothing_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (agent, other) = (Who::new(0), Who::new(1));
    let targets = vec![agent.target(), agent.target(), agent.target(), other.target()];
    let id = created(&ledger, new_job("r", 0, targets)).await.id;
    ledger.dispatch(vec![agent.mark(&id.run(1), 1, 1), agent.mark(&id.run(2), 1, 1)]).await.unwrap();
    ledger.started(agent.start(&id.run(2), 1, 2)).await.unwrap();
    let stopped = ledger.purge(&agent.zone, &agent.name, 5, "purged", "by ada").await.unwrap();
    assert_eq!((stopped.changes.len(), stopped.tell.len(), stopped.more), (1, 1, false));
    assert_eq!(stopped.changes[0].run.reason.as_deref(), Some("purged"));
    let again = ledger.purge(&agent.zone, &agent.name, 6, "purged", "by ada").await.unwrap();
    assert_eq!(again, Stopped::default());
    let states: Vec<RunState> =
        ledger.runs(&id, 0, 9, &[]).await.unwrap().into_iter().map(|r| r.state).collect();
    assert_eq!(states, [Cancelled, Dispatched, Running, Pending]);
}

#[tokio::test]
async fn a_cancellation_may_come_before_its_submission() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let id = "early".parse().unwrap();
    for hard in [false, true, false] {
        assert!(ledger.cancel_request(&id, 7, hard).await.unwrap().is_none());
    }
    ledger.close().await;
    let ledger = open(&dir).await;
    let mut target = agent.target();
    target.dispatch_to = Some(agent.incarnation);
    let new = new_job("early", 10, vec![target, agent.target()]);
    let job = created(&ledger, new.clone()).await;
    assert_eq!((job.counts.clone(), job.ended_ms), ([(Cancelled, 2)].into(), Some(10)));
    assert_eq!(ledger.job(&job.id).await.unwrap(), Some(job.clone()));
    for run in ledger.runs(&job.id, 0, 9, &[]).await.unwrap() {
        assert_eq!((run.state, run.is_final, run.attempt), (Cancelled, true, 0));
        assert_eq!((run.cancel_requested_ms, run.cancel_hard), (Some(7), true));
        assert_eq!(ledger.dispatch(vec![agent.mark(&run.id, 1, 11)]).await.unwrap(), [false]);
    }
    assert!(matches!(ledger.submit(new).await.unwrap(), Submitted::Existing(_)));
    // Later it is an ordinary cancellation, and says that nothing was left to do.
    let again = ledger.cancel_request(&id, 20, false).await.unwrap().unwrap();
    assert_eq!((again.cancelled.len(), again.tell.len()), (0, 0));

    let open_job = created(&ledger, new_job("late", 10, vec![agent.target()])).await;
    let cancelled = ledger.cancel_request(&open_job.request_id, 20, false).await.unwrap().unwrap();
    assert_eq!((cancelled.cancelled.len(), cancelled.job_ended), (1, true));

    let old = "old".parse().unwrap();
    assert!(ledger.cancel_request(&old, 30, false).await.unwrap().is_none());
    ledger.forget_requests(31).await.unwrap();
    let job = created(&ledger, new_job("old", 40, vec![agent.target()])).await;
    assert_eq!(job.counts, [(Pending, 1)].into(), "what is too old is forgotten");
}

#[tokio::test]
async fn a_target_that_is_refused_never_waits() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let mut away = agent.target();
    away.refused = Some(("not-connected".into(), "the agent is offline".into()));
    let mut here = agent.target();
    here.dispatch_to = Some(agent.incarnation);
    let new = NewJob { direct: true, ..new_job("r", 5, vec![away, here]) };
    let job = created(&ledger, new).await;
    assert_eq!(job.counts, [(Dispatched, 1), (Rejected, 1)].into());
    let run = ledger.run(&job.id.run(0)).await.unwrap().unwrap();
    assert_eq!((run.is_final, run.attempt, run.reason.as_deref()), (true, 0, Some("not-connected")));
    assert!(waiting(&ledger, &agent).await.is_empty(), "the direct lane never waits");
    assert_eq!(ledger.direct_open(9).await.unwrap().len(), 1);
    assert!(ledger.silent(1_000, 9).await.unwrap().is_empty(), "and is never said again");

    let sent = job.id.run(1);
    assert!(ledger.reject(&sent, 2, "not-connected", "nobody", 6).await.unwrap().is_none());
    let change = ledger.reject(&sent, 1, "not-connected", "nobody", 6).await.unwrap().unwrap();
    assert_eq!((change.run.state, change.run.is_final, change.job_ended), (Rejected, true, true));
    assert!(ledger.reject(&sent, 1, "not-connected", "nobody", 6).await.unwrap().is_none());
    // If it was wrong after all, the truth wins.
    let change = committed(ledger.settle(agent.outcome(&sent, 1, Succeeded)).await.unwrap());
    assert!(change.correction);
}

#[tokio::test]
async fn what_agents_hold_and_nobody_knows_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let lost = JobId::generate(3);
    let found = |run: &RunId| Recovered {
        run: run.clone(),
        attempt: 2,
        zone: agent.zone.clone(),
        agent: agent.name.clone(),
        agent_key: agent.public(),
        incarnation: agent.incarnation,
        at_ms: 50,
    };
    let (a, b) = (lost.run(3), lost.run(7));
    assert_eq!(ledger.settle(agent.outcome(&a, 2, Succeeded)).await.unwrap(), Settled::Unknown);
    assert_eq!(ledger.recover(vec![found(&a), found(&b), found(&a)]).await.unwrap(), [true, true, true]);
    let job = ledger.job(&lost).await.unwrap().unwrap();
    assert_eq!((job.title.as_str(), job.by.as_str()), ("recovered", "unknown"));
    assert_eq!(job.counts, [(Running, 2)].into());
    let change = committed(ledger.settle(agent.outcome(&a, 2, Succeeded)).await.unwrap());
    assert_eq!(change.job.counts, [(Running, 1), (Succeeded, 1)].into());
    assert!(committed(ledger.settle(agent.outcome(&b, 2, Failed)).await.unwrap()).job_ended);
    // One more run of that job, later.
    assert_eq!(ledger.recover(vec![found(&lost.run(9))]).await.unwrap(), [true]);
    assert_eq!(ledger.job(&lost).await.unwrap().unwrap().ended_ms, None);
    // A job that is on record has the runs that it has.
    let known = created(&ledger, new_job("r", 0, vec![agent.target()])).await.id;
    assert_eq!(
        ledger.recover(vec![found(&known.run(0)), found(&known.run(1))]).await.unwrap(),
        [true, false]
    );
}

#[tokio::test]
async fn drains_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let names: Vec<(Zone, Agent)> = (0..3).map(Who::new).map(|w| (w.zone, w.name)).collect();
    ledger.drain(names.clone(), Some(5)).await.unwrap();
    ledger.drain(vec![names[1].clone()], None).await.unwrap();
    ledger.close().await;
    let ledger = open(&dir).await;
    assert_eq!(ledger.drained().await.unwrap(), [names[0].clone(), names[2].clone()]);
}

#[tokio::test]
async fn what_was_sent_before_the_clock_was_set_back_is_silent_and_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let hour = 3_600_000;
    let new = NewJob { expires_ms: 100 * hour, ..new_job("a", 10 * hour, vec![agent.target()]) };
    let run = created(&ledger, new).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 10 * hour)]).await.unwrap();
    let silent = async |since| !ledger.silent(since, 9).await.unwrap().is_empty();
    assert!(silent(10 * hour).await && silent(9 * hour).await);
    assert!(!silent(10 * hour - 1).await && !silent(10 * hour - SET_BACK_MS).await, "it was sent just now");
    ledger.started(agent.start(&run, 1, 10 * hour)).await.unwrap();
    let doubt = async |since| {
        let (zone, name) = (&agent.zone, &agent.name);
        !ledger.in_doubt(zone, name, agent.incarnation, since, 9).await.unwrap().is_empty()
    };
    assert!(doubt(10 * hour).await && doubt(9 * hour).await);
    assert!(!doubt(10 * hour - 1).await);
}

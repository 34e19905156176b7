//! Retries: one attempt after the other.

use super::*;
use RunState::*;
use sally_common::wire::order::Retry;

fn retrying(attempts: u32, target: NewRun) -> NewJob {
    let retry = Retry { attempts, on: vec![], backoff_ms: 1_000, backoff_max_ms: 8_000 };
    NewJob { retry: Some(retry), expires_ms: 100_000, ..new_job("r", 0, vec![target]) }
}

fn at(at_ms: i64, told: Settlement) -> Settlement {
    Settlement { at_ms, ..told }
}

async fn settled(ledger: &Ledger, told: Settlement) -> Run {
    committed(ledger.settle(told).await.unwrap()).run
}

#[tokio::test]
async fn a_failed_attempt_is_followed_until_there_are_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let id = created(&ledger, retrying(3, agent.target())).await.id;
    let run = id.run(0);
    let mark = async |attempt, at| ledger.dispatch(vec![agent.mark(&run, attempt, at)]).await.unwrap()[0];
    assert!(mark(1, 1).await);
    let waits = settled(&ledger, at(700, agent.outcome(&run, 1, Failed))).await;
    assert_eq!((waits.state, waits.attempt, waits.is_final), (Pending, 1, false));
    assert_eq!((waits.retry_at_ms, waits.exit_code, waits.finished_ms), (Some(1_700), None, None));
    assert!(ledger.job(&id).await.unwrap().unwrap().ended_ms.is_none());
    assert_eq!(ledger.next_retry().await.unwrap(), Some(1_700));
    assert!(ledger.waiting_for(&agent.zone, &agent.name, 5).await.unwrap().is_empty());
    assert!(!mark(2, 1_699).await, "not before its time");
    // The same result again, because the receipt was lost.
    let again = ledger.settle(at(800, agent.outcome(&run, 1, Failed))).await.unwrap();
    assert!(matches!(again, Settled::Duplicate { .. }), "{again:?}");
    assert!(ledger.stale_of(&run).await.unwrap().is_empty());

    assert!(ledger.release(1_699).await.unwrap().is_empty());
    assert_eq!(ledger.release(1_700).await.unwrap().len(), 1);
    assert_eq!(ledger.waiting_for(&agent.zone, &agent.name, 5).await.unwrap().len(), 1);
    assert!(!mark(1, 1_700).await && mark(2, 1_700).await, "only the controller raises the attempt, by one");
    let late = ledger.settle(at(1_800, agent.outcome(&run, 1, Succeeded))).await.unwrap();
    assert!(matches!(late, Settled::Stale { .. }), "attempt 2 is under way: {late:?}");
    let waits = settled(&ledger, at(2_000, agent.outcome(&run, 2, Interrupted))).await;
    assert_eq!((waits.state, waits.retry_at_ms), (Pending, Some(4_000)), "twice as long");
    assert!(mark(3, 4_000).await);
    let last = settled(&ledger, at(5_000, agent.outcome(&run, 3, Failed))).await;
    assert_eq!((last.state, last.attempt, last.is_final, last.last), (Failed, 3, true, None));
    assert!(ledger.job(&id).await.unwrap().unwrap().ended_ms.is_some());
    let kept: Vec<u32> = ledger.attempts_of(&run).await.unwrap().iter().map(|r| r.attempt).collect();
    assert_eq!(kept, [1, 2, 3], "what each attempt said is on record");
    assert_eq!(ledger.report_of(&run).await.unwrap().unwrap().attempt, 3);
}

#[tokio::test]
async fn success_and_what_a_script_calls_hopeless_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    for (request, state, retryable) in
        [("a", Succeeded, None), ("b", Failed, Some(false)), ("c", TimedOut, None), ("d", Rejected, None)]
    {
        let new = NewJob { request_id: request.parse().unwrap(), ..retrying(3, agent.target()) };
        let run = created(&ledger, new).await.id.run(0);
        ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
        let told = Settlement { retryable, ..agent.outcome(&run, 1, state) };
        let run = settled(&ledger, told).await;
        assert_eq!((run.state, run.is_final), (state, true), "{request}");
    }
}

#[tokio::test]
async fn nothing_is_run_twice_that_does_not_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let run = created(&ledger, new_job("r", 0, vec![agent.target()])).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    let changes = ledger.unknown(vec![run.clone()], 5, "silent", "no word").await.unwrap();
    assert_eq!((changes[0].run.state, changes[0].run.retry_at_ms), (Unknown, None));
    assert_eq!(ledger.dispatch(vec![agent.mark(&run, 2, 6)]).await.unwrap(), [false]);
}

#[tokio::test]
async fn a_lost_journal_is_followed_and_late_truth_takes_the_retry_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let run = created(&ledger, retrying(2, agent.target())).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    ledger.started(agent.start(&run, 1, 2)).await.unwrap();
    let lost = ledger.lost_journal(&agent.zone, &agent.name, Incarnation::generate(), &[], 10).await.unwrap();
    let waits = &lost.changes[0].run;
    assert_eq!((waits.state, waits.reason.as_deref()), (Pending, Some("journal-lost")));
    assert!(waits.retry_at_ms.is_some_and(|t| (510..=1_010).contains(&t)), "{waits:?}");
    // News of the lost attempt is no start of the next one.
    assert_eq!(ledger.started(agent.start(&run, 1, 2)).await.unwrap(), Noted::Same);
    let truth = settled(&ledger, agent.outcome(&run, 1, Succeeded)).await;
    assert_eq!((truth.state, truth.attempt, truth.is_final), (Succeeded, 1, true));
    assert_eq!((truth.retry_at_ms, ledger.next_retry().await.unwrap()), (None, None));
    assert_eq!(ledger.dispatch(vec![agent.mark(&run, 2, 9_000)]).await.unwrap(), [false]);
}

#[tokio::test]
async fn a_retry_that_cannot_start_in_time_leaves_the_outcome_before() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let new = NewJob { expires_ms: 10_000, ..retrying(9, agent.target()) };
    let run = created(&ledger, new).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    settled(&ledger, at(700, agent.outcome(&run, 1, Failed))).await;
    // The agent went away; nobody sent attempt 2.
    let ended = &ledger.expire(10_000).await.unwrap().changes[0];
    assert_eq!((ended.run.state, ended.run.attempt, ended.run.is_final), (Failed, 1, true));
    assert!(ended.job_ended && ended.run.report_digest.is_some());

    let new = NewJob { request_id: "s".parse().unwrap(), expires_ms: 10_000, ..retrying(9, agent.target()) };
    let run = created(&ledger, new).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    settled(&ledger, at(700, agent.outcome(&run, 1, Failed))).await;
    ledger.dispatch(vec![agent.mark(&run, 2, 2_000)]).await.unwrap();
    // Sent: whether it was picked up only the agent knows.
    let guess = &ledger.expire(10_000).await.unwrap().changes[0].run;
    assert_eq!((guess.state, guess.attempt, guess.is_final), (Expired, 2, false));
    let change = committed(ledger.refuse(agent.refusal(&run, 2, "expired")).await.unwrap());
    assert_eq!((change.run.state, change.run.attempt, change.run.is_final), (Failed, 1, true));
    assert_eq!(ledger.report_of(&run).await.unwrap().unwrap().attempt, 1);

    let new = NewJob { request_id: "t".parse().unwrap(), expires_ms: 10_000, ..retrying(9, agent.target()) };
    let run = created(&ledger, new).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    let last = settled(&ledger, at(9_500, agent.outcome(&run, 1, Failed))).await;
    assert_eq!((last.state, last.is_final), (Failed, true), "the pause would end after the expiry");
}

#[tokio::test]
async fn a_cancellation_during_the_wait_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let id = created(&ledger, retrying(3, agent.target())).await.id;
    let run = id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    settled(&ledger, agent.outcome(&run, 1, Failed)).await;
    let cancelled = ledger.cancel(&id, 900, false).await.unwrap().unwrap();
    assert_eq!((cancelled.cancelled.len(), cancelled.tell.len(), cancelled.job_ended), (1, 0, true));
    let run = &cancelled.cancelled[0];
    assert_eq!((run.state, run.is_final, run.retry_at_ms), (Cancelled, true, None));
    assert!(run.message.as_deref().is_some_and(|m| m.contains("failed")), "{run:?}");
    assert_eq!(ledger.next_retry().await.unwrap(), None);
}

#[tokio::test]
async fn an_attempt_above_the_ledgers_own_is_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let run = created(&ledger, retrying(5, agent.target())).await.id.run(0);
    // The ledger was restored from a copy made before anything was dispatched.
    let truth = settled(&ledger, agent.outcome(&run, 4, Succeeded)).await;
    assert_eq!((truth.state, truth.attempt, truth.is_final), (Succeeded, 4, true));
}

#[tokio::test]
async fn what_was_started_and_is_forgotten_is_unknown_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let run = created(&ledger, new_job("r", 0, vec![agent.target()])).await.id.run(0);
    ledger.dispatch(vec![agent.mark(&run, 1, 1)]).await.unwrap();
    ledger.started(agent.start(&run, 1, 2)).await.unwrap();
    let change = committed(ledger.refuse(agent.refusal(&run, 1, "expired")).await.unwrap());
    assert_eq!((change.run.state, change.run.is_final), (Unknown, true));
    assert_eq!(change.run.reason.as_deref(), Some("result-lost"));
}

#[tokio::test]
async fn a_renewed_journal_keeps_what_it_says_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let id = created(&ledger, new_job("r", 0, vec![agent.target(), agent.target()])).await.id;
    let (kept, gone) = (id.run(0), id.run(1));
    ledger.dispatch(vec![agent.mark(&kept, 1, 1), agent.mark(&gone, 1, 1)]).await.unwrap();
    let renewed = Incarnation::generate();
    let held = [sally_common::wire::command::RunAttempt { run: kept.clone(), attempt: 1 }];
    let lost = ledger.lost_journal(&agent.zone, &agent.name, renewed, &held, 9).await.unwrap();
    assert_eq!(lost.changes.iter().map(|c| c.run.id.clone()).collect::<Vec<_>>(), [gone]);
    let run = ledger.run(&kept).await.unwrap().unwrap();
    assert_eq!((run.state, run.incarnation), (Dispatched, Some(renewed)));
    let again = ledger.lost_journal(&agent.zone, &agent.name, renewed, &[], 10).await.unwrap();
    assert!(again.changes.is_empty());
}

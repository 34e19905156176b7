//! How runs go on: started, progress, refused, deferred, and ends whose result another ledger has.

use sally_common::clock::now_ms;
use sally_common::wire::record::RunState;
use sally_common::wire::report::{News, State};
use sally_common::wire::{self, Refusal};

use super::{Problem, Service, Signed, tell};
use crate::ledger::{Noted, ProgressMark, Refused, ReportKind, Settled, Settlement, StartMark, jitter};

pub(super) async fn state(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let state: State = wire::read(&signed.message.payload)?;
    signed.hear(service, &state.from)?;
    let (run, attempt, agent_key) = (state.run.clone(), state.attempt, signed.key.clone());
    let incarnation = state.from.incarnation;
    service.fleet_heard(&signed.zone, &signed.agent);
    let noted = match state.news.clone() {
        News::Accepted | News::Other => return Ok(()),
        News::Deferred { reason, message } => {
            return deferred(service, &signed, &state, reason, message).await;
        }
        News::Ended { attempt, state: end, exit_code, finished_ms, .. } => {
            return ended(service, &signed, &state, attempt, end, exit_code, finished_ms).await;
        }
        News::Started { started_ms } => {
            sally_common::fail::point("controller.started.before-commit");
            service.ledger.started(StartMark { run, attempt, agent_key, incarnation, started_ms }).await?
        }
        News::Progress { progress } => {
            let json = serde_json::to_string(&progress).unwrap_or_default();
            service.ledger.progress(ProgressMark { run, attempt, agent_key, json }).await?
        }
        News::Refused { reason, message } => {
            let report = signed.report(ReportKind::State)?;
            let reason = reason.code();
            let refused =
                Refused { run, attempt, agent_key, incarnation, reason, message, report, at_ms: now_ms() };
            match service.ledger.refuse(refused).await? {
                Settled::Committed(change) => tell(service, &change, None).await,
                Settled::NotIts => return Err(Refusal::Misdirected.into()),
                Settled::Duplicate { .. } | Settled::Stale { .. } | Settled::Unknown => {}
            }
            return Ok(());
        }
    };
    match noted {
        Noted::Changed(change) => tell(service, &change, None).await,
        Noted::NotIts => return Err(Refusal::Misdirected.into()),
        Noted::Same | Noted::Stale | Noted::Unknown => {}
    }
    Ok(())
}

/// What waits in the queue is said again; the direct lane waits for nobody.
async fn deferred(
    service: &Service,
    signed: &Signed<'_>,
    state: &State,
    reason: Refusal,
    message: Option<String>,
) -> Result<(), Problem> {
    let run = service.ledger.run(&state.run).await?;
    if !run.is_some_and(|r| r.direct && r.attempt == state.attempt && r.agent_key == signed.key) {
        return Ok(());
    }
    let refused = Refused {
        run: state.run.clone(),
        attempt: state.attempt,
        agent_key: signed.key.clone(),
        incarnation: state.from.incarnation,
        reason: reason.code(),
        message: message.unwrap_or_else(|| reason.to_string()),
        report: signed.report(ReportKind::State)?,
        at_ms: now_ms(),
    };
    if let Settled::Committed(change) = service.ledger.refuse(refused).await? {
        tell(service, &change, None).await;
    }
    Ok(())
}

/// What a journal remembers of a run whose result another ledger receipted.
async fn ended(
    service: &Service,
    signed: &Signed<'_>,
    state: &State,
    attempt: u32,
    end: RunState,
    exit_code: Option<i32>,
    finished_ms: i64,
) -> Result<(), Problem> {
    if !end.is_end() {
        return Err(Refusal::Malformed.into());
    }
    let message = "the result was receipted by another ledger than this one; only how it ended is known";
    let settlement = Settlement {
        run: state.run.clone(),
        attempt,
        agent_key: signed.key.clone(),
        incarnation: state.from.incarnation,
        state: end,
        exit_code,
        signal: None,
        reason: Some("result-lost".into()),
        message: Some(message.into()),
        // It did start, when is forgotten.
        started_ms: Some(finished_ms).filter(|_| !matches!(end, RunState::Rejected | RunState::Expired)),
        finished_ms,
        duration_ms: None,
        result_state: None,
        retryable: None,
        jitter: jitter(),
        report: signed.report(ReportKind::State)?,
        at_ms: now_ms(),
    };
    match service.ledger.settle(settlement).await? {
        Settled::Committed(change) => tell(service, &change, None).await,
        Settled::NotIts => return Err(Refusal::Misdirected.into()),
        Settled::Duplicate { .. } | Settled::Stale { .. } | Settled::Unknown => {}
    }
    Ok(())
}

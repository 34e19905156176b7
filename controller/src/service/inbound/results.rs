//! How runs ended: the result, with the streams that it announces.

use sally_common::clock::now_ms;
use sally_common::id::Digest;
use sally_common::wire::artifact::artifact_ends;
use sally_common::wire::command::{RunAttempt, Stored};
use sally_common::wire::report::ResultMessage;
use sally_common::wire::{self, Refusal};

use super::heartbeats::recover;
use super::{Problem, Service, Signed, receipt, tell};
use crate::ledger::{ReportKind, Settled, Settlement, jitter};
use crate::store::{Finished, LogKey, StoreError, Stream};

pub(super) async fn result(service: &Service, signed: Signed<'_>) -> Result<(), Problem> {
    let message: ResultMessage = wire::read(&signed.message.payload)?;
    signed.hear(service, &message.from)?;
    if !message.state.is_end() {
        return Err(Refusal::Malformed.into());
    }
    // Output that rides inside must be what the message says it is.
    for end in [&message.stdout, &message.stderr] {
        if end.inline.is_some() && end.inline_bytes().is_none() {
            return Err(Refusal::WrongDigest.into());
        }
    }
    if !streams_are_whole(service, &signed, &message).await? {
        return Ok(());
    }
    let settlement = Settlement {
        run: message.run.clone(),
        attempt: message.attempt,
        agent_key: signed.key.clone(),
        incarnation: message.from.incarnation,
        state: message.state,
        exit_code: message.exit_code,
        signal: message.signal,
        reason: message.reason.clone(),
        message: message.message.clone(),
        started_ms: message.started_ms,
        finished_ms: message.finished_ms,
        duration_ms: message.duration_ms,
        result_state: Some(message.result_state),
        retryable: message.failure.as_ref().map(|f| f.retryable),
        jitter: jitter(),
        report: signed.report(ReportKind::Result)?,
        at_ms: now_ms(),
    };
    sally_common::fail::point("controller.result.before-commit");
    let mut settled = service.ledger.settle(settlement.clone()).await?;
    if matches!(settled, Settled::Unknown) {
        // The ledger was lost, or is an older copy: what its agent still holds comes back.
        let held = RunAttempt { run: message.run.clone(), attempt: message.attempt };
        if recover(service, &signed, &message.from, &[held]).await? {
            settled = service.ledger.settle(settlement).await?;
        }
    }
    sally_common::fail::point("controller.result.after-commit");
    // Whoever waits for the end hears of it first; the agent can wait for its receipt.
    if let Settled::Committed(change) = &settled {
        service.output.forget(&message.run);
        tell(service, change, Some(&message)).await;
        tokio::task::yield_now().await;
    }
    if matches!(settled, Settled::NotIts) {
        return Err(Refusal::Misdirected.into());
    }
    if matches!(settled, Settled::Committed(_) | Settled::Duplicate { .. } | Settled::Stale { .. }) {
        let stored = Stored::Result { digest: Digest::of(&signed.message.payload) };
        sally_common::fail::point("controller.receipt.before");
        receipt(service, signed.to(&message.from), message.run.clone(), message.attempt, stored).await;
        sally_common::fail::point("controller.receipt.after");
    }
    Ok(())
}

/// Whether every stream that the result announces is stored and is what it announces. What is missing is
/// asked for.
async fn streams_are_whole(
    service: &Service,
    signed: &Signed<'_>,
    message: &ResultMessage,
) -> Result<bool, Problem> {
    let mut whole = true;
    for (stream, bytes, digest) in announced(message)? {
        let key = LogKey { run: message.run.clone(), attempt: message.attempt, stream };
        let wanted = match service.logs.finish(&key, bytes, digest).await {
            Ok(Finished::Whole) => continue,
            Ok(Finished::Missing { wanted }) => wanted,
            // Not what was announced: it was set aside, and is wanted from the start.
            Err(StoreError::WrongDigest { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        whole = false;
        let stored = Stored::Stream { stream: stream.to_string(), bytes: wanted };
        receipt(service, signed.to(&message.from), message.run.clone(), message.attempt, stored).await;
    }
    Ok(whole)
}

/// The streams that a result announces without carrying them, each with length and digest.
fn announced(message: &ResultMessage) -> Result<Vec<(Stream, u64, Digest)>, Refusal> {
    let output = [
        (Stream::Stdout, Some(&message.stdout)),
        (Stream::Stderr, Some(&message.stderr)),
        (Stream::Result, message.result_stream.as_ref()),
    ];
    let output = output.into_iter().filter_map(|(stream, end)| {
        let end = end.filter(|e| e.inline.is_none())?;
        Some((stream, end.bytes, end.digest))
    });
    let files = artifact_ends(&message.artifacts)?;
    let files = files.into_iter().map(|end| (Stream::Artifact(end.number), end.bytes, end.digest));
    Ok(output.chain(files).filter(|(_, bytes, _)| *bytes > 0).collect())
}

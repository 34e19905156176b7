//! The direct lane: straight to an agent's live subject, or not at all.
//!
//! A dispatch names a reply subject for the broker alone: when nobody hears the live subject, the broker says so there, and
//! the run is rejected at once. Agents ignore it. What was heard and not answered is `unknown`, and never sent again.

use std::sync::Arc;

use futures_util::StreamExt as _;
use sally_common::clock::{now_ms, steady_ms};
use sally_common::id::RunId;
use sally_common::subject::Channel;
use sally_common::wire::Envelope;
use sally_common::wire::record::{AgentState, RunState};
use tokio::sync::watch;

use super::{Service, inbound};
use crate::ledger::{LedgerError, Run, SET_BACK_MS};

/// A direct dispatch without a sign of life for so long is `unknown`, milliseconds by the controller's clock.
const SILENCE_MS: i64 = 5_000;
/// Runs looked at in one go.
const READ: u32 = 1_000;

impl Service {
    /// Where the broker says that nobody heard a dispatch of this run.
    fn nobody_subject(&self, run: &RunId, attempt: u32) -> String {
        format!("{}.{run}.{attempt}", self.nobody)
    }

    /// Publishes a dispatch to the live subject, past the stream.
    pub async fn publish_direct(&self, run: &Run, attempt: u32, envelope: Envelope) {
        let subject = self.prefix.agent(Channel::Live, &run.zone, &run.agent);
        let reply = self.nobody_subject(&run.id, attempt);
        let headers = envelope.headers();
        let sent =
            self.client.publish_with_reply_and_headers(subject, reply, headers, envelope.body.into()).await;
        if let Err(error) = sent {
            tracing::warn!(%error, "could not publish");
        }
    }
}

/// Hears of dispatches that reached nobody, until `stop` is set.
pub async fn serve(
    service: Arc<Service>,
    mut messages: async_nats::Subscriber,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let message = tokio::select! {
            message = messages.next() => message,
            _ = stop.changed() => None,
        };
        let Some(message) = message else { return };
        if message.status != Some(async_nats::StatusCode::NO_RESPONDERS) {
            tracing::warn!(subject = %message.subject, "refused a message where only the broker speaks");
            continue;
        }
        let Some((run, attempt)) = read(&service, &message.subject) else { continue };
        if let Err(error) = reject(&service, &run, attempt).await {
            tracing::error!(%run, %error, "cannot record");
        }
    }
}

fn read(service: &Service, subject: &str) -> Option<(RunId, u32)> {
    let rest = subject.strip_prefix(&service.nobody)?.strip_prefix('.')?;
    let (run, attempt) = rest.split_once('.')?;
    Some((run.parse().ok()?, attempt.parse().ok()?))
}

async fn reject(service: &Service, run: &RunId, attempt: u32) -> Result<(), LedgerError> {
    let message = "the agent was not connected when it was sent";
    let change = service.ledger.reject(run, attempt, "not-connected", message, now_ms()).await?;
    if let Some(change) = change {
        inbound::tell(service, &change, None).await;
    }
    Ok(())
}

/// Gives up direct runs of which nothing is heard: a dispatch without a sign of life, and what runs on an agent that
/// has gone. The truth may still come.
pub async fn give_up(service: &Service, now: i64) -> Result<(), LedgerError> {
    let open = service.ledger.direct_open(READ).await?;
    let silent: Vec<RunId> = {
        let (fleet, steady) = (service.fleet(), steady_ms());
        let is_silent = |run: &Run| match run.state {
            RunState::Dispatched => {
                run.dispatched_ms.is_some_and(|at| at + SILENCE_MS <= now || at > now + SET_BACK_MS)
            }
            _ => fleet.get(&run.zone, &run.agent).is_none_or(|m| m.state(steady) == AgentState::Offline),
        };
        open.iter().filter(|run| is_silent(run)).map(|run| run.id.clone()).collect()
    };
    if silent.is_empty() {
        return Ok(());
    }
    let message = "the agent has not been heard of since it was sent; it may have run";
    for change in &service.ledger.unknown(silent, now, "silent", message).await? {
        inbound::tell(service, change, None).await;
    }
    Ok(())
}

//! Streams of output: stored in order, receipted when they are on disk, passed on to watchers.
//!
//! Pieces carry no signature. They are taken only for runs that the ledger knows as this agent's, and
//! the signed result has the digest of the whole: what is not right is thrown away and asked for again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use sally_common::id::RunId;
use sally_common::limit::STREAM_CHUNK;
use sally_common::name::{Agent, Zone};
use sally_common::subject::Channel;
use sally_common::wire;
use sally_common::wire::command::{Stored, To};
use sally_common::wire::report::LogChunk;
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::{Service, inbound};
use crate::store::{Appended, LogKey, Stream};

/// A receipt is sent after so many bytes, or so long after the first unreceipted one.
const RECEIPT_BYTES: u64 = 1024 * 1024;
const RECEIPT_AFTER: Duration = Duration::from_millis(100);
/// Room for the head line beside a piece's payload.
const HEAD_ROOM: usize = 4096;
/// Streams whose owners are remembered.
const OWNERS_KEPT: usize = 10_000;

/// What is known of streams under way.
#[derive(Debug, Default)]
pub struct Output {
    owners: Mutex<HashMap<RunId, (Zone, Agent)>>,
}

impl Output {
    /// Forgets a run that has ended.
    pub fn forget(&self, run: &RunId) {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
    }
}

/// Bytes that are stored and not receipted.
struct Due {
    to: To,
    stored: u64,
    receipted: u64,
    since: Instant,
}

/// Takes pieces until `stop` is set.
pub async fn serve(
    service: Arc<Service>,
    mut messages: async_nats::Subscriber,
    mut stop: watch::Receiver<bool>,
) {
    let mut due: HashMap<LogKey, Due> = HashMap::new();
    let mut tick = interval(RECEIPT_AFTER / 2);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return };
                take(&service, &message, &mut due).await;
            }
            // Nothing due: nothing wakes an idle controller.
            _ = tick.tick(), if !due.is_empty() => {
                let ripe: Vec<LogKey> =
                    due.iter().filter(|(_, d)| d.since.elapsed() >= RECEIPT_AFTER).map(|(k, _)| k.clone()).collect();
                for key in ripe {
                    receipt(&service, &key, &mut due).await;
                }
            }
            _ = stop.changed() => return,
        }
    }
}

async fn take(service: &Service, message: &async_nats::Message, due: &mut HashMap<LogKey, Due>) {
    let Some((zone, agent)) = service.prefix.parse(Channel::Log, &message.subject) else { return };
    if message.payload.len() > STREAM_CHUNK + HEAD_ROOM {
        tracing::warn!(%agent, "refused a piece of output: too large");
        return;
    }
    let Ok((head, bytes)) = wire::split_head::<LogChunk>(&message.payload) else {
        tracing::warn!(%agent, "refused a piece of output: cannot be read");
        return;
    };
    let Ok(stream) = head.stream.parse::<Stream>() else { return };
    if !owns(service, &head.run, &zone, &agent).await {
        tracing::warn!(%agent, run = %head.run, "refused a piece of output: not its run");
        return;
    }
    let to = service.fleet().get(&zone, &agent).and_then(|m| m.address());
    let Some(to) = to else { return };
    let key = LogKey { run: head.run.clone(), attempt: head.attempt, stream };
    // A slice of the message's own buffer: nothing is copied.
    let start = message.payload.len() - bytes.len();
    let payload = message.payload.slice(start..);
    let stored = match service.logs.append(&key, head.offset, payload).await {
        Ok(Appended::Stored { bytes }) => bytes,
        Ok(Appended::Gap { wanted }) => {
            let stored = Stored::Stream { stream: head.stream, bytes: wanted };
            return inbound::receipt(service, to, head.run, head.attempt, stored).await;
        }
        Err(error) => return tracing::error!(run = %head.run, %error, "cannot store output"),
    };
    if stream != Stream::Result {
        service.tell_output(&head.run, &agent, &head.stream, head.offset, bytes).await;
    }
    let entry =
        due.entry(key.clone()).or_insert(Due { to, stored, receipted: head.offset, since: Instant::now() });
    entry.stored = stored;
    if entry.stored.saturating_sub(entry.receipted) >= RECEIPT_BYTES {
        receipt(service, &key, due).await;
    }
}

/// Makes a stream durable and says so.
async fn receipt(service: &Service, key: &LogKey, due: &mut HashMap<LogKey, Due>) {
    let Some(entry) = due.remove(key) else { return };
    match service.logs.sync_up_to(key, entry.stored).await {
        Ok(bytes) => {
            let stored = Stored::Stream { stream: key.stream.word().to_owned(), bytes };
            inbound::receipt(service, entry.to, key.run.clone(), key.attempt, stored).await;
        }
        Err(error) => tracing::error!(run = %key.run, %error, "cannot store output"),
    }
}

/// Whether the run is this agent's. Looked up once per run.
async fn owns(service: &Service, run: &RunId, zone: &Zone, agent: &Agent) -> bool {
    let known = {
        let owners = service.output.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(run).map(|(z, a)| z == zone && a == agent)
    };
    if let Some(known) = known {
        return known;
    }
    let Ok(Some(row)) = service.ledger.run(run).await else { return false };
    let mut owners = service.output.owners.lock().unwrap_or_else(PoisonError::into_inner);
    if owners.len() >= OWNERS_KEPT {
        owners.clear();
    }
    let mine = row.zone == *zone && row.agent == *agent;
    owners.insert(run.clone(), (row.zone, row.agent));
    mine
}

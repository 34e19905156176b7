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
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use super::{Service, inbound};
use crate::store::{Appended, LogKey, StoreError, Stream};

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
    /// Whether the disk is being waited for. One receipt of a stream at a time: they must not overtake each other.
    syncing: bool,
}

/// The streams that have something due, and the disk that is waited for meanwhile.
#[derive(Default)]
struct Book {
    due: HashMap<LogKey, Due>,
    syncs: JoinSet<(LogKey, Result<u64, StoreError>)>,
}

impl Book {
    /// Starts to make a stream durable, apart: more of it is taken meanwhile.
    fn sync(&mut self, service: &Arc<Service>, key: &LogKey) {
        let Some(entry) = self.due.get_mut(key).filter(|entry| !entry.syncing) else { return };
        entry.syncing = true;
        let (service, key, bytes) = (service.clone(), key.clone(), entry.stored);
        self.syncs.spawn(async move {
            let synced = service.logs.sync_up_to(&key, bytes).await;
            (key, synced)
        });
    }

    /// Says that a stream is durable, and goes on with what has come since.
    async fn synced(&mut self, service: &Arc<Service>, key: LogKey, synced: Result<u64, StoreError>) {
        let Some(entry) = self.due.get_mut(&key) else { return };
        let bytes = match synced {
            Ok(bytes) => bytes,
            Err(error) => {
                self.due.remove(&key);
                return tracing::error!(run = %key.run, %error, "cannot store output");
            }
        };
        let to = entry.to.clone();
        (entry.syncing, entry.receipted, entry.since) = (false, bytes, Instant::now());
        if entry.stored <= bytes {
            self.due.remove(&key);
        } else if entry.stored - bytes >= RECEIPT_BYTES {
            self.sync(service, &key);
        }
        let stored = Stored::Stream { stream: key.stream.to_string(), bytes };
        inbound::receipt(service, to, key.run, key.attempt, stored).await;
    }
}

/// Takes pieces until `stop` is set.
pub async fn serve(
    service: Arc<Service>,
    mut messages: async_nats::Subscriber,
    mut stop: watch::Receiver<bool>,
) {
    let mut book = Book::default();
    let mut tick = interval(RECEIPT_AFTER / 2);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return };
                take(&service, &message, &mut book).await;
            }
            Some(done) = book.syncs.join_next() => {
                if let Ok((key, synced)) = done {
                    book.synced(&service, key, synced).await;
                }
            }
            // Nothing due: nothing wakes an idle controller.
            _ = tick.tick(), if !book.due.is_empty() => {
                let ripe = book.due.iter().filter(|(_, d)| d.since.elapsed() >= RECEIPT_AFTER);
                let ripe: Vec<LogKey> = ripe.map(|(k, _)| k.clone()).collect();
                ripe.iter().for_each(|key| book.sync(&service, key));
            }
            _ = stop.changed() => return,
        }
    }
}

async fn take(service: &Arc<Service>, message: &async_nats::Message, book: &mut Book) {
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
    if stream.is_output() {
        service.tell_output(&head.run, &agent, &head.stream, head.offset, bytes).await;
    }
    let fresh = Due { to, stored, receipted: head.offset, since: Instant::now(), syncing: false };
    let entry = book.due.entry(key.clone()).or_insert(fresh);
    entry.stored = stored;
    if entry.stored.saturating_sub(entry.receipted) >= RECEIPT_BYTES {
        book.sync(service, &key);
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

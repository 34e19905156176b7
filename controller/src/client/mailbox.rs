//! Hands each reply to the call that waits for it: one subscription for all of a connection's calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::{Message, SubscribeError};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Parts of one reply that wait to be read: the largest reply in parts of 64 KiB.
const PARTS_WAITING: usize = 1024;

type Waiting = Arc<Mutex<HashMap<String, mpsc::Sender<Message>>>>;

/// The replies' subscription.
pub(super) struct Mailbox {
    base: String,
    count: AtomicU64,
    waiting: Waiting,
    /// Ends with the mailbox.
    _sorter: JoinSet<()>,
}

/// Where one call's reply arrives. Dropped, it takes no more.
pub(super) struct Slot {
    subject: String,
    replies: mpsc::Receiver<Message>,
    waiting: Waiting,
}

impl Mailbox {
    /// Subscribes to everything below `base`.
    pub(super) async fn open(nats: &async_nats::Client, base: String) -> Result<Self, SubscribeError> {
        let mut arriving = nats.subscribe(format!("{base}.reply.*")).await?;
        let waiting = Waiting::default();
        let mut sorter = JoinSet::new();
        let known = waiting.clone();
        sorter.spawn(async move {
            while let Some(message) = arriving.next().await {
                let slot = known.lock().ok().and_then(|w| w.get(message.subject.as_str()).cloned());
                // Nobody waits any more, or more came than any reply has parts: it is dropped.
                if let Some(slot) = slot {
                    let _ = slot.try_send(message);
                }
            }
        });
        Ok(Self { base, count: AtomicU64::new(0), waiting, _sorter: sorter })
    }

    /// A subject of its own for one reply.
    pub(super) fn slot(&self) -> Slot {
        let (sender, replies) = mpsc::channel(PARTS_WAITING);
        let subject = format!("{}.reply.{}", self.base, self.next());
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.insert(subject.clone(), sender);
        }
        Slot { subject, replies, waiting: self.waiting.clone() }
    }

    /// A subject of its own for a watch's events.
    pub(super) fn watch_subject(&self) -> String {
        format!("{}.watch.{}", self.base, self.next())
    }

    fn next(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }
}

impl Slot {
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) async fn next(&mut self) -> Option<Message> {
        self.replies.recv().await
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.remove(&self.subject);
        }
    }
}

//! Callers who want to hear of a job's changes.

use std::collections::HashMap;
use std::time::Duration;

use sally_common::id::{JobId, RunId};
use sally_common::name::Agent;
use sally_common::wire::api::{Change, Event};
use sally_common::wire::record::{JobRecord, RunRecord};
use sally_common::wire::{Envelope, Kind, VERSION, join_head};
use tokio::time::Instant;

use super::Service;

/// A watcher that does not renew is forgotten after this. Callers renew every 10 s.
const KEEP: Duration = Duration::from_secs(40);
/// Watchers of one job.
const MAX_PER_JOB: usize = 64;
/// Output of one stream that is pushed to a watcher. Beyond it the watcher is told that there is more and
/// fetches it at its own pace, so that a slow reader costs nobody memory.
pub const PUSH_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
struct Watcher {
    inbox: String,
    output: bool,
    until: Instant,
}

/// Watchers by job.
#[derive(Debug, Default)]
pub struct Watchers {
    jobs: HashMap<JobId, Vec<Watcher>>,
}

impl Watchers {
    /// Adds or renews a watcher.
    pub fn add(&mut self, job: JobId, inbox: &str, output: bool) {
        let until = Instant::now() + KEEP;
        let all = self.jobs.entry(job).or_default();
        if let Some(watcher) = all.iter_mut().find(|w| w.inbox == inbox) {
            (watcher.until, watcher.output) = (until, output);
        } else if all.len() < MAX_PER_JOB {
            all.push(Watcher { inbox: inbox.to_owned(), output, until });
        }
        // One too many is told nothing; its keep-alives still bring it the job.
    }

    /// Forgets those who did not renew.
    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.jobs.retain(|_, all| {
            all.retain(|w| w.until > now);
            !all.is_empty()
        });
    }

    fn inboxes(&self, job: &JobId, output: bool) -> Vec<String> {
        let all = self.jobs.get(job).map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|w| w.output || !output).map(|w| w.inbox.clone()).collect()
    }
}

impl Service {
    /// Tells the watchers that a run has changed, and in the same message that its job has ended with it.
    pub async fn tell_run(&self, job: &JobId, record: RunRecord, whole: bool, ended: Option<JobRecord>) {
        self.tell(job, || Change::Run { run: Box::new(record), whole, ended: ended.map(Box::new) }).await;
    }

    /// Tells the watchers that a job has ended.
    pub async fn tell_ended(&self, record: JobRecord) {
        let job = record.id.clone();
        self.tell(&job, || Change::Ended { job: Box::new(record) }).await;
    }

    async fn tell(&self, job: &JobId, change: impl FnOnce() -> Change) {
        let inboxes = self.watchers().inboxes(job, false);
        if inboxes.is_empty() {
            return;
        }
        let event = Event { v: VERSION, job: job.clone(), change: change() };
        let envelope = Envelope::seal(Kind::Event, &self.key, &event);
        for inbox in inboxes {
            self.publish(inbox, envelope.clone()).await;
        }
    }

    /// Passes output on to the watchers who want it. Beyond [`PUSH_MAX`] only the word that there is more.
    pub async fn tell_output(&self, run: &RunId, agent: &Agent, stream: &str, offset: u64, bytes: &[u8]) {
        let inboxes = self.watchers().inboxes(run.job(), true);
        if inboxes.is_empty() {
            return;
        }
        let change =
            Change::Output { run: run.clone(), agent: agent.clone(), stream: stream.to_owned(), offset };
        let event = Event { v: VERSION, job: run.job().clone(), change };
        let shown = if offset < PUSH_MAX { bytes } else { &[] };
        let body: bytes::Bytes = join_head(&event, shown).into();
        for inbox in inboxes {
            if let Err(error) = self.client.publish(inbox, body.clone()).await {
                tracing::warn!(%error, "could not publish");
            }
        }
    }
}

//! Follows a job: live events while they come, and the ledger's own word for what was missed.
//!
//! Events are hints with holes: a controller or broker that restarts sends none. A keeper renews the watch when
//! nothing was heard for a while, after each reconnect, and every ten seconds at least; it compares how many runs have
//! ended with what was seen, and fetches the rest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use sally_common::id::{JobId, RunId};
use sally_common::key::PublicKey;
use sally_common::limit;
use sally_common::name::Agent;
use sally_common::wire::api::{Call, Change, Event, LogPart, RunPage};
use sally_common::wire::record::{JobRecord, RunRecord, RunState};
use sally_common::wire::{self, Kind, Refusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{AWAY, CALL_TIMEOUT, Client, ClientError, Patience};

/// How often the watch is renewed although events come.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// After so long without an event the ledger is asked; the next time after twice as long, up to [`QUIET_LONGEST`].
const QUIET: Duration = Duration::from_secs(1);
/// The longest time without an event and without a question.
const QUIET_LONGEST: Duration = Duration::from_secs(4);
/// How soon after a failed renewal it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What happened to a watched job.
#[derive(Debug)]
pub enum Item {
    /// A run changed.
    Run {
        /// Its record.
        run: Box<RunRecord>,
        /// Whether output and result are all inside.
        whole: bool,
    },
    /// Live output.
    Output {
        /// The run.
        run: RunId,
        /// The agent.
        agent: Agent,
        /// `stdout` or `stderr`.
        stream: String,
        /// Where the bytes begin.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// The job ended, and every run's end was given before this.
    Ended(Box<JobRecord>),
    /// The controller does not answer; the watch goes on trying. Said once until [`Item::Recovered`].
    Trouble(String),
    /// The controller answers again.
    Recovered,
}

/// A job being watched. Dropped, it ends; the job goes on.
pub struct Watch {
    subscriber: Subscriber,
    sight: Sight,
    /// Events so far.
    heard: Arc<AtomicU64>,
    keys: Vec<PublicKey>,
    reports: mpsc::Receiver<Report>,
    poke: mpsc::Sender<()>,
    in_trouble: bool,
    _keeper: JoinSet<()>,
}

/// A subscription to events that no job sends to yet.
pub(super) struct Events {
    pub(super) subject: String,
    subscriber: Subscriber,
}

enum Report {
    Fine { job: Box<JobRecord>, runs: Vec<RunRecord> },
    Trouble(String),
}

type Seen = Arc<Mutex<HashMap<RunId, (RunState, bool)>>>;

impl Client {
    pub(super) async fn subscribe_watch(&self) -> Result<Events, ClientError> {
        let subject = self.inner.mailbox.watch_subject();
        let subscribed = self.inner.nats.subscribe(subject.clone()).await;
        let subscriber = subscribed.map_err(|error| self.broker_gone(&error.to_string()))?;
        Ok(Events { subject, subscriber })
    }

    /// Watches a job that exists. Runs that have ended already are given too.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn watch(&self, job: JobId, output: bool) -> Result<(JobRecord, Watch), ClientError> {
        let events = self.subscribe_watch().await?;
        let call = Call::Watch { job, inbox: events.subject.clone(), output };
        let record: JobRecord = self.call(call).await?;
        let watch = Watch::start(self.clone(), events, &record, output);
        Ok((record, watch))
    }

    /// All of a job's runs in these states, or in any if none is named.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn runs(
        &self,
        job: &JobId,
        states: &[RunState],
        content: bool,
    ) -> Result<Vec<RunRecord>, ClientError> {
        let (mut runs, mut from) = (Vec::new(), 0);
        loop {
            let call = Call::Runs { job: job.clone(), from, content, states: states.to_vec() };
            let page: RunPage = self.call(call).await?;
            runs.extend(page.runs);
            match page.next {
                Some(next) if next > from => from = next,
                _ => return Ok(runs),
            }
        }
    }

    /// A piece of a run's stream.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn log(&self, run: &RunId, stream: &str, offset: u64) -> Result<(LogPart, Bytes), ClientError> {
        let call = Call::Log { run: run.clone(), stream: stream.to_owned(), offset };
        let patience = Patience { timeout: CALL_TIMEOUT, away: AWAY };
        self.call_bytes(call, None, patience).await
    }
}

impl Watch {
    pub(super) fn start(client: Client, events: Events, job: &JobRecord, output: bool) -> Self {
        let sight = Sight { job: job.id.clone(), seen: Seen::default(), held: None, ready: VecDeque::new() };
        let (poke, pokes) = mpsc::channel(1);
        let (sender, reports) = mpsc::channel(4);
        if job.counts.keys().any(|state| state.is_end()) {
            let _ = poke.try_send(());
        }
        let keys = client.inner.controllers.clone();
        let call = Call::Watch { job: job.id.clone(), inbox: events.subject, output };
        let heard = Arc::new(AtomicU64::new(0));
        let keeper = Keeper { client, call, seen: sight.seen.clone(), heard: heard.clone() };
        let mut keeping = JoinSet::new();
        keeping.spawn(keeper.keep(pokes, sender));
        let subscriber = events.subscriber;
        Self { subscriber, sight, heard, keys, reports, poke, in_trouble: false, _keeper: keeping }
    }

    /// Waits for what happens next. After [`Item::Ended`] only corrections come. May be dropped while it
    /// waits without losing anything.
    pub async fn next(&mut self) -> Item {
        loop {
            if let Some(item) = self.sight.ready.pop_front() {
                return item;
            }
            tokio::select! {
                Some(message) = self.subscriber.next() => {
                    if let Ok((event, bytes)) = read(&message, &self.keys) {
                        self.heard.fetch_add(1, Ordering::Relaxed);
                        self.sight.take(event, bytes);
                        if self.sight.held.is_some() {
                            let _ = self.poke.try_send(());
                        }
                    }
                }
                Some(report) = self.reports.recv() => self.hear(report),
            }
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Trouble(text) if !self.in_trouble => {
                self.in_trouble = true;
                self.sight.ready.push_back(Item::Trouble(text));
            }
            Report::Trouble(_) => {}
            Report::Fine { job, runs } => {
                if std::mem::take(&mut self.in_trouble) {
                    self.sight.ready.push_back(Item::Recovered);
                }
                runs.into_iter().for_each(|run| self.sight.see(Box::new(run), false));
                if job.state.is_end() {
                    self.sight.held = None;
                    self.sight.ready.push_back(Item::Ended(job));
                }
            }
        }
    }
}

/// What the watcher has been told so far.
struct Sight {
    job: JobId,
    seen: Seen,
    /// The job's end, held back until the end of every run is known.
    held: Option<Box<JobRecord>>,
    ready: VecDeque<Item>,
}

impl Sight {
    fn take(&mut self, event: Event, bytes: Bytes) {
        if event.job != self.job {
            return;
        }
        match event.change {
            Change::Run { run, whole, ended } if run.run.job() == &self.job => {
                self.see(run, whole);
                if let Some(job) = ended {
                    self.end(job);
                }
            }
            Change::Output { run, agent, stream, offset } if run.job() == &self.job => {
                self.ready.push_back(Item::Output { run, agent, stream, offset, bytes });
            }
            Change::Ended { job } => self.end(job),
            Change::Run { .. } | Change::Output { .. } => {}
        }
    }

    fn end(&mut self, job: Box<JobRecord>) {
        if job.id != self.job {
            return;
        }
        let missing = self.seen.lock().map(|seen| is_missing(&job.counts, &seen)).unwrap_or(true);
        if missing {
            self.held = Some(job);
        } else {
            self.ready.push_back(Item::Ended(job));
        }
    }

    fn see(&mut self, run: Box<RunRecord>, whole: bool) {
        let Ok(mut seen) = self.seen.lock() else { return };
        let news = (run.state, run.is_final);
        match seen.get(&run.run) {
            Some(old) if !is_news(*old, news) => return,
            _ => seen.insert(run.run.clone(), news),
        };
        drop(seen);
        self.ready.push_back(Item::Run { run, whole });
    }
}

/// Whether a record tells something new after another one. Messages overtake each other, so a run that has
/// ended does not start again, and what is final stays.
fn is_news(old: (RunState, bool), new: (RunState, bool)) -> bool {
    let ((old_state, old_final), (new_state, new_final)) = (old, new);
    match (old_state.is_end(), new_state.is_end()) {
        (false, _) => true,
        (true, false) => false,
        (true, true) => (new_final || !old_final) && old != new,
    }
}

/// Whether the ledger counts an ended run that was not seen in that state.
fn is_missing(counts: &BTreeMap<RunState, u64>, seen: &HashMap<RunId, (RunState, bool)>) -> bool {
    counts.iter().filter(|(state, _)| state.is_end()).any(|(state, count)| {
        let known = seen.values().filter(|(s, _)| s == state).count();
        u64::try_from(known).unwrap_or(u64::MAX) < *count
    })
}

fn read(message: &Message, keys: &[PublicKey]) -> Result<(Event, Bytes), Refusal> {
    let signed = message.headers.as_ref().is_some_and(|h| h.get(wire::HEADER_KIND).is_some());
    if signed {
        let (headers, body) = (message.headers.as_ref(), &message.payload);
        wire::verify(Kind::Event, headers, body, limit::API_MESSAGE_MAX, |key| keys.contains(key))?;
        return Ok((wire::read(body)?, Bytes::new()));
    }
    let (event, payload) = wire::split_head::<Event>(&message.payload)?;
    let bytes = message.payload.slice_ref(payload);
    match event.change {
        Change::Output { .. } => Ok((event, bytes)),
        Change::Run { .. } | Change::Ended { .. } => Err(Refusal::Unsigned),
    }
}

/// Renews the watch and fetches what was missed, until the watch is dropped.
struct Keeper {
    client: Client,
    call: Call,
    seen: Seen,
    heard: Arc<AtomicU64>,
}

impl Keeper {
    async fn keep(self, mut pokes: mpsc::Receiver<()>, reports: mpsc::Sender<Report>) {
        let mut holes = self.client.inner.holes.subscribe();
        let (mut pause, mut heard, mut renewed) = (QUIET, 0, Instant::now());
        let mut due = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {
                    let now_heard = self.heard.load(Ordering::Relaxed);
                    let is_quiet = std::mem::replace(&mut heard, now_heard) == now_heard;
                    if !is_quiet && renewed.elapsed() < KEEP_ALIVE {
                        pause = QUIET;
                        due = Instant::now() + pause;
                        continue;
                    }
                }
                poke = pokes.recv() => if poke.is_none() { return },
                Ok(()) = holes.changed() => {}
            }
            let report = self.renew().await;
            renewed = Instant::now();
            pause =
                if matches!(report, Report::Fine { .. }) { (pause * 2).min(QUIET_LONGEST) } else { RETRY };
            due = renewed + pause;
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }

    async fn renew(&self) -> Report {
        let job: JobRecord = match self.client.call_once(self.call.clone()).await {
            Ok(job) => job,
            Err(error) => return Report::Trouble(error.to_string()),
        };
        let missing = self.seen.lock().map(|seen| is_missing(&job.counts, &seen)).unwrap_or(true);
        if !missing {
            return Report::Fine { job: Box::new(job), runs: Vec::new() };
        }
        let ends: Vec<RunState> = RunState::ALL.into_iter().filter(|s| s.is_end()).collect();
        match self.client.runs(&job.id, &ends, false).await {
            Ok(runs) => Report::Fine { job: Box::new(job), runs },
            Err(error) => Report::Trouble(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunState::*;

    #[test]
    fn an_older_word_changes_nothing() {
        for (old, new, expected) in [
            ((Pending, false), (Running, false), true),
            ((Running, false), (Running, false), true),
            ((Running, false), (Succeeded, true), true),
            ((Succeeded, true), (Running, false), false),
            ((Unknown, false), (Succeeded, true), true),
            ((Succeeded, true), (Unknown, false), false),
            ((Succeeded, true), (Succeeded, true), false),
            ((Unknown, false), (Running, false), false),
        ] {
            assert_eq!(is_news(old, new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn the_last_run_ends_its_job() {
        let id = JobId::generate(1);
        let run = |n: u32| -> Box<RunRecord> {
            let record = serde_json::json!({
                "run": id.run(n), "agent": "web-1", "zone": "dmz", "state": "succeeded", "final": true,
                "attempt": 1, "artifacts": [], "stdout": "", "stderr": "", "stdout_encoding": "utf-8",
                "stderr_encoding": "utf-8", "stdout_truncated_bytes": 0, "stderr_truncated_bytes": 0,
                "queued_at": "2026-11-21T07:00:00.000Z",
            });
            serde_json::from_str(&record.to_string()).expect("a record")
        };
        let ended = |of: &JobId| -> Box<JobRecord> {
            let job = serde_json::json!({
                "id": of, "state": "succeeded", "created_at": "2026-11-21T07:00:00.000Z", "by": "ann",
                "request_id": "r", "retry_of": null, "title": "", "counts": {"succeeded": 2},
            });
            serde_json::from_value(job).expect("a job")
        };
        let mut sight = Sight { job: id.clone(), seen: Seen::default(), held: None, ready: VecDeque::new() };
        let mut take = |n, ended| {
            let change = Change::Run { run: run(n), whole: true, ended };
            sight.take(Event { v: 1, job: id.clone(), change }, Bytes::new());
            let told: Vec<_> = sight.ready.drain(..).map(|item| matches!(item, Item::Ended(_))).collect();
            (told, sight.held.is_some())
        };
        assert_eq!(take(0, Some(ended(&JobId::generate(2)))), (vec![false], false), "another job's end");
        assert_eq!(take(0, Some(ended(&id))), (vec![], true), "the other run was not seen");
        assert_eq!(take(1, Some(ended(&id))), (vec![false, true], true));
    }

    #[test]
    fn an_unseen_end_is_missing() {
        let job = JobId::generate(1);
        let counts = BTreeMap::from([(Running, 1), (Failed, 1)]);
        let mut seen = HashMap::new();
        assert!(is_missing(&counts, &seen));
        seen.insert(job.run(0), (Failed, true));
        assert!(!is_missing(&counts, &seen), "runs under way are not waited for");
        seen.insert(job.run(0), (Unknown, false));
        assert!(is_missing(&counts, &seen), "seen, but in another state");
    }
}

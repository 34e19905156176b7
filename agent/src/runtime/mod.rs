//! The loop that joins the rooms: one task owns the agent's state and receives everything that
//! happens; each run is a task of its own and talks to the loop over channels.
//!
//! - [`shared`]: identity, journal, connection and launcher, which loop and runs both use.
//! - [`mod@run`]: one run from dispatch to receipt; [`outgoing`] its output on the way out, [`blob`] fetching
//!   what an order names, [`outcome`] the judgement of how it ended.
//! - [`intake`]: messages from the controller, checked; [`backlog`] dispatches for which no slot was free.
//! - [`heartbeat`]: what the agent says about itself.
#![forbid(unsafe_code)]

pub mod backlog;
pub mod blob;
pub mod heartbeat;
pub mod intake;
pub mod outcome;
pub mod outgoing;
pub mod run;
pub mod shared;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sally_common::clock::now_ms;
use sally_common::id::{Digest, Nonce, RunId};
use sally_common::nats::connect::{ConnectSettings, ConnectionEvent, connect};
use sally_common::subject::Channel;
use sally_common::wire::command::{RunAttempt, To};
use sally_common::wire::report::{AgentCondition, Ask, Heartbeat, News, Question, Slots, SpoolStatus, State};
use sally_common::wire::{Kind, Refusal, VERSION};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Config;
use crate::delivery::admit::{Decision, Now, decide};
use crate::delivery::journal::{Journal, Recovered};
use crate::delivery::memory::{Known, Memory, Phase};
use crate::sandbox::{self, Launcher, RunFolder, SandboxError};
use backlog::Backlog;
use intake::Command;
use run::{Admitted, Milestone, Note, Run, Word};
use shared::Shared;

/// Words that may wait for one run: receipts of its pieces above all.
const WORDS: usize = 256;
/// Milestones that may wait for the loop.
const MILESTONES: usize = 1024;
/// How long a question waits for its answer before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The same before the first answer: nothing can start without it.
const ASK_AGAIN_AT_BOOT: Duration = Duration::from_millis(400);
/// How often nothing in particular is looked after: forgetting, lost questions.
const TICK: Duration = Duration::from_millis(250);
/// How long the start waits for a launcher.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(10);
/// How long the end waits for the last messages to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);
/// Attempts named in one question. More are settled as their receipts come.
const HELD_NAMED: usize = 500;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum AgentError {
    #[error("cannot use the state folder {path}: {error}")]
    State { path: String, error: std::io::Error },
    #[error(transparent)]
    Journal(#[from] crate::delivery::journal::JournalError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Connect(#[from] sally_common::nats::connect::ConnectError),
    #[error("cannot read {subject}: {error}")]
    Subscribe { subject: String, error: String },
    #[error("another agent uses {0}; stop it first, or give this one another state_dir")]
    AlreadyRunning(String),
}

struct Agent {
    shared: Arc<Shared>,
    memory: Memory,
    /// Free slots.
    free: Vec<u16>,
    /// Runs with a task, and the way to it.
    runs: HashMap<RunId, (u32, mpsc::Sender<Word>)>,
    blobs: HashMap<Digest, Vec<mpsc::Sender<blob::Piece>>>,
    tasks: JoinSet<()>,
    milestones: mpsc::Sender<Milestone>,
    connected: watch::Sender<u64>,
    /// Whether the controller has answered since this process began.
    open: bool,
    /// The question under way.
    asked: Option<(Nonce, Instant)>,
    /// Whether there is, or may be, work that was left behind.
    more: bool,
    backlog: Backlog,
    refused: BTreeMap<Refusal, u64>,
    last_error: Option<String>,
    /// A refusal is told soon, but not more often than the tick.
    tell_soon: bool,
}

/// Runs the agent until `stop` is set.
pub async fn run(config: Config, mut stop: watch::Receiver<bool>) -> Result<(), AgentError> {
    let state_failed = |error| AgentError::State { path: config.state_dir.display().to_string(), error };
    std::fs::create_dir_all(config.state_dir.join("runs")).map_err(state_failed)?;
    let _lock = lock(&config.state_dir)?;
    let (journal, recovered) = Journal::open(&config.state_dir.join("journal.redb"))?;
    let (launcher, own_launcher) = reach_launcher(&config).await?;

    let (connection_sender, mut connection) = mpsc::channel(64);
    let mut settings = ConnectSettings::new(&config.url, &config.creds, config.name.to_string());
    settings.retry_on_initial_connect = true;
    settings.ca_file.clone_from(&config.ca_file);
    settings.tls_first = config.tls_first;
    let client = connect(&settings, move |event| {
        // Full means that sixty-four events wait already; the next heartbeat tells the rest.
        let _ = connection_sender.try_send(event);
    })
    .await?;

    let me = To {
        zone: config.zone.clone(),
        agent: config.name.clone(),
        agent_key: config.key.public().clone(),
        incarnation: recovered.incarnation,
    };
    let subject = config.prefix.agent(Channel::Live, &config.zone, &config.name);
    let mut live = client
        .subscribe(subject.clone())
        .await
        .map_err(|e| AgentError::Subscribe { subject, error: e.to_string() })?;

    let (milestone_sender, mut milestones) = mpsc::channel(MILESTONES);
    let heartbeat_s = config.heartbeat_s;
    let slots = config.slots.min(launcher.info().slots);
    let shared = Arc::new(Shared::new(config, me, client.clone(), launcher, journal));
    let mut agent = Agent {
        shared: shared.clone(),
        memory: Memory::default(),
        free: (0..slots).collect(),
        runs: HashMap::new(),
        blobs: HashMap::new(),
        tasks: JoinSet::new(),
        milestones: milestone_sender,
        connected: watch::channel(0).0,
        open: false,
        asked: None,
        more: true,
        backlog: Backlog::new(slots),
        refused: BTreeMap::new(),
        last_error: None,
        tell_soon: false,
    };
    agent.recover(recovered).await;

    let mut beat = tokio::time::interval(Duration::from_secs(u64::from(heartbeat_s)));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = live.next() => match message {
                Some(message) => agent.receive(message).await,
                None => break,
            },
            Some(milestone) = milestones.recv() => agent.reached(milestone).await,
            Some(event) = connection.recv() => agent.connection(event).await,
            _ = beat.tick() => {
                agent.heartbeat(slots, None).await;
                if !agent.free.is_empty() {
                    agent.more = true;
                }
            }
            _ = tick.tick() => agent.tick(slots).await,
            Some(_) = agent.tasks.join_next(), if !agent.tasks.is_empty() => {}
            _ = stop.changed() => break,
        }
        agent.ask_if_useful().await;
    }
    agent.heartbeat(slots, Some("stop")).await;
    // The runs go on under their keepers; their tasks here end, and the next agent process adopts.
    agent.tasks.shutdown().await;
    drop(agent);
    if tokio::time::timeout(FLUSH_LIMIT, client.flush()).await.is_err() {
        tracing::warn!("the broker did not take the last messages in time");
    }
    if own_launcher {
        stop_launcher(&shared).await;
    }
    Ok(())
}

/// Two agents on one state folder would be two agents with one name.
fn lock(dir: &Path) -> Result<nix::fcntl::Flock<std::fs::File>, AgentError> {
    let path = dir.join("agent.lock");
    let failed = |error| AgentError::State { path: path.display().to_string(), error };
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| AgentError::AlreadyRunning(dir.display().to_string()))
}

/// Connects to the launcher, starting one if none was configured and none serves. Says whether it is ours.
async fn reach_launcher(config: &Config) -> Result<(Launcher, bool), SandboxError> {
    let socket = &config.launcher_socket;
    if config.launcher_is_external {
        return Ok((sandbox::connect_within(socket, LAUNCHER_LIMIT).await?, false));
    }
    if let Ok(launcher) = Launcher::connect(socket).await {
        return Ok((launcher, true));
    }
    let widest = config.profiles.iter().max().map_or("strict", |p| p.word());
    let (slots, state) = (config.slots.to_string(), config.state_dir.join("launcher"));
    let (socket_text, state_text) = (socket.to_string_lossy(), state.to_string_lossy());
    let args =
        ["--socket", &*socket_text, "--state", &*state_text, "--slots", &slots, "--max-profile", widest];
    // It outlives this process on purpose: runs do.
    drop(sandbox::spawn_launcher(None, &args)?);
    Ok((sandbox::connect_within(socket, LAUNCHER_LIMIT).await?, true))
}

/// Ends a launcher that this agent started. Keepers with a run finish it by themselves.
async fn stop_launcher(shared: &Shared) {
    if let Ok(info) = shared.launcher.refresh().await {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(info.pid), nix::sys::signal::Signal::SIGTERM);
    }
}

impl Agent {
    /// Takes up what the journal and the run folders hold.
    async fn recover(&mut self, recovered: Recovered) {
        self.memory = recovered.memory;
        let mut taken: HashSet<(RunId, u32)> = HashSet::new();
        for spooled in recovered.spool {
            let known = self.memory.get(&spooled.run);
            let note = self.note(&spooled.run, spooled.attempt, known);
            taken.insert((spooled.run.clone(), spooled.attempt));
            let (run, words) = self.task(note);
            self.runs.insert(spooled.run, (spooled.attempt, words));
            self.tasks.spawn(run.resume_owing(spooled.body));
        }
        self.recover_folders(&mut taken);
        let lost: Vec<(RunId, Known)> = self
            .memory
            .held()
            .filter(|(run, known)| !taken.contains(&((*run).clone(), known.attempt)))
            .map(|(run, known)| (run.clone(), *known))
            .collect();
        for (run, known) in lost {
            let note = self.note(&run, known.attempt, Some(known));
            let (task, words) = self.task(note);
            self.runs.insert(run, (known.attempt, words));
            self.tasks.spawn(task.interrupted());
        }
    }

    fn recover_folders(&mut self, taken: &mut HashSet<(RunId, u32)>) {
        let Ok(entries) = std::fs::read_dir(&self.shared.runs_dir) else { return };
        let boot = heartbeat::boot_id();
        for dir in entries.flatten().map(|e| e.path()) {
            let note = run::read_note(&dir);
            let known = note.as_ref().and_then(|n| self.memory.get(&n.run));
            let due = match (&note, known) {
                (Some(note), Some(known)) => known.attempt == note.attempt && known.phase == Phase::Started,
                _ => false,
            };
            match note.filter(|_| due) {
                Some(note) => {
                    taken.insert((note.run.clone(), note.attempt));
                    // What the last process wrote before it died is there, unless the host died too.
                    if note.boot == boot && !run::is_released(&dir) {
                        self.return_unstarted(note);
                    } else {
                        self.adopt(&dir, note);
                    }
                }
                None if taken.iter().any(|(r, a)| dir.ends_with(format!("{r}.{a}"))) => {}
                // Never marked as started, or settled: nothing is owed from it.
                None => run::remove_dir(&dir),
            }
        }
    }

    fn return_unstarted(&mut self, note: Note) {
        let (key, attempt) = (note.run.clone(), note.attempt);
        let (run, words) = self.task(note);
        self.runs.insert(key, (attempt, words));
        self.tasks.spawn(run.never_released());
    }

    fn adopt(&mut self, dir: &Path, note: Note) {
        tracing::info!(run = %note.run, "taking over a run");
        let key = note.run.clone();
        let attempt = note.attempt;
        let folder = RunFolder::open(dir).ok();
        // A run whose keeper has ended holds no slot, and another may have got it since.
        let ended = folder.as_ref().is_none_or(|f| !matches!(f.exit_record(), Ok(None)));
        let slot = note.slot.filter(|slot| !ended && self.free.contains(slot)).unwrap_or(NO_SLOT);
        self.free.retain(|free| *free != slot);
        let (run, words) = self.task(note);
        self.runs.insert(key, (attempt, words));
        match folder {
            Some(folder) => self.tasks.spawn(run.adopt(folder, slot)),
            None => self.tasks.spawn(run.interrupted()),
        };
    }

    fn note(&self, run: &RunId, attempt: u32, known: Option<Known>) -> Note {
        let expires_ms = known.map_or_else(now_ms, |k| k.expires_ms);
        let order_digest = known.and_then(|k| k.order_digest).unwrap_or_else(|| Digest::of(b""));
        let (slot, boot) = (None, String::new());
        Note { run: run.clone(), attempt, expires_ms, order_digest, require_result: false, slot, boot }
    }

    fn task(&self, note: Note) -> (Run, mpsc::Sender<Word>) {
        let (sender, words) = mpsc::channel(WORDS);
        let run =
            Run::new(self.shared.clone(), note, words, self.milestones.clone(), self.connected.subscribe());
        (run, sender)
    }

    async fn receive(&mut self, message: async_nats::Message) {
        match intake::read(&self.shared, &message) {
            Ok(command) => self.obey(command).await,
            Err(refusal) => self.count(refusal, "a message on the live subject"),
        }
    }

    fn count(&mut self, refusal: Refusal, what: &str) {
        *self.refused.entry(refusal).or_insert(0) += 1;
        let text = format!("refused {what}: {refusal}");
        tracing::warn!(reason = %refusal.code(), "{text}");
        self.last_error = Some(text);
        self.tell_soon = true;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Dispatch { dispatch, order } => self.dispatch(*dispatch, order).await,
            // The controller meant it and the order is not what it should be: it never will be.
            Command::BadOrder(dispatch, reason) => {
                self.count(reason, &format!("the order of run {}", dispatch.run));
                let news = News::Refused { reason, message: reason.to_string() };
                self.news(&dispatch.run, dispatch.attempt, news).await;
            }
            Command::OrderMissing(dispatch) => self.fetch_order(*dispatch).await,
            Command::Cancel(cancel) => {
                self.backlog.forget(&cancel.run);
                let word = Word::Cancel { hard: cancel.hard };
                let known = self.memory.get(&cancel.run);
                match self.runs.get(&cancel.run) {
                    Some((attempt, _)) if *attempt <= cancel.attempt => self.pass(&cancel.run, word),
                    _ if known.is_some_and(|k| k.attempt >= cancel.attempt) => {}
                    // Never seen, or left behind: it will not start, and the controller is told so.
                    _ => {
                        let reason = Refusal::Cancelled;
                        self.close(&cancel.run, cancel.attempt, now_ms() + CANCEL_KEPT_MS, reason).await;
                    }
                }
            }
            Command::Stored { run, attempt, stream, bytes } => {
                if self.is_under_way(&run, attempt) {
                    self.pass(&run, Word::Stored { stream, bytes });
                }
            }
            Command::Receipt { run, attempt, digest } => {
                if self.is_under_way(&run, attempt) {
                    self.pass(&run, Word::Receipt { digest });
                }
            }
            Command::Answer(answer) => {
                self.shared.heard(answer.now_ms);
                if self.asked.is_some_and(|(nonce, _)| nonce == answer.nonce) {
                    self.asked = None;
                    self.more = answer.waiting > 0;
                    if answer.welcome && !self.open {
                        self.open = true;
                        self.more = true;
                        // The first heartbeat may have been said before anyone listened.
                        self.tell_soon = true;
                    }
                    if !answer.welcome {
                        self.last_error = answer.message;
                    }
                }
            }
            Command::Chunk { digest, piece } => {
                if let Some(waiting) = self.blobs.get_mut(&digest) {
                    waiting.retain(|w| !w.is_closed());
                    if let [first, rest @ ..] = waiting.as_slice() {
                        for other in rest {
                            let copy = blob::Piece { bytes: piece.bytes.clone(), ..piece };
                            let _ = other.try_send(copy);
                        }
                        // A full queue means that the run asked twice; it asks again for what it misses.
                        let _ = first.try_send(piece);
                    } else {
                        self.blobs.remove(&digest);
                    }
                }
            }
        }
    }

    fn is_under_way(&self, run: &RunId, attempt: u32) -> bool {
        self.runs.get(run).is_some_and(|(a, _)| *a == attempt)
    }

    /// Passes a word to a run's task. A full queue drops it: whatever it was is said again.
    fn pass(&self, run: &RunId, word: Word) {
        if let Some((_, words)) = self.runs.get(run)
            && words.try_send(word).is_err()
        {
            tracing::debug!(%run, "dropped a word to a busy run");
        }
    }

    async fn dispatch(
        &mut self,
        mut dispatch: sally_common::wire::command::Dispatch,
        order: intake::CheckedOrder,
    ) {
        let known = self.memory.get(&dispatch.run);
        let free = u32::try_from(self.free.len()).unwrap_or(u32::MAX);
        let now = Now { at_ms: self.shared.now_ms(), free, open: self.open };
        // A controller can shorten what the caller signed, not lengthen it.
        dispatch.expires_ms = dispatch.expires_ms.min(order.order.expires_ms);
        let expires_ms = dispatch.expires_ms;
        match decide(&dispatch, &self.shared.me, known, now) {
            Decision::Leave => {
                // A newer attempt of what is under way is not kept: it waits for more than a slot.
                let kept = self.open && known.is_none() && self.backlog.keep(dispatch, order);
                self.more |= !kept;
            }
            Decision::Drop(reason) => self.count(reason, &format!("a dispatch of run {}", dispatch.run)),
            Decision::Repeat(phase) => {
                if phase == Phase::Started {
                    self.pass(&dispatch.run, Word::Again);
                }
                if phase == Phase::Accepted {
                    self.news(&dispatch.run, dispatch.attempt, News::Accepted).await;
                }
            }
            Decision::Resend => self.pass(&dispatch.run, Word::Again),
            Decision::Refuse(reason) => {
                self.count(reason, &format!("a dispatch of run {}", dispatch.run));
                let message = reason.to_string();
                self.news(&dispatch.run, dispatch.attempt, News::Refused { reason, message }).await;
            }
            Decision::Take => {
                if let Err(reason) = order.is_for(&self.shared) {
                    return self.close(&dispatch.run, dispatch.attempt, expires_ms, reason).await;
                }
                if self.free.is_empty() {
                    return;
                }
                // The one that is free for longest: its keeper has had the time to prepare the next sandbox.
                let slot = self.free.remove(0);
                let note = Note {
                    run: dispatch.run.clone(),
                    attempt: dispatch.attempt,
                    expires_ms,
                    order_digest: dispatch.order_digest,
                    require_result: order.order.task.require_result,
                    slot: None,
                    boot: heartbeat::boot_id(),
                };
                let (attempt, phase) = (dispatch.attempt, Phase::Accepted);
                let known = Known { attempt, phase, closed: None, order_digest: None, expires_ms };
                self.memory.note(dispatch.run.clone(), known);
                let (run, words) = self.task(note);
                self.runs.insert(dispatch.run.clone(), (dispatch.attempt, words));
                let admitted = Admitted {
                    run: dispatch.run,
                    attempt: dispatch.attempt,
                    expires_ms,
                    order: order.order,
                    order_digest: dispatch.order_digest,
                };
                self.tasks.spawn(run.execute(admitted, slot));
            }
        }
    }

    /// Gives free slots to what was kept for them.
    async fn take_kept(&mut self) {
        if now_ms() >= self.shared.config.trust.expires_ms {
            // Nobody is trusted any more, as if it came now.
            self.backlog.clear();
        }
        while !self.free.is_empty()
            && let Some((dispatch, order)) = self.backlog.take()
        {
            self.dispatch(dispatch, order).await;
        }
    }

    /// Refuses an attempt for good: remembered, told, and never to be run.
    async fn close(&mut self, run: &RunId, attempt: u32, expires_ms: i64, reason: Refusal) {
        if reason != Refusal::Cancelled {
            self.count(reason, &format!("run {run}"));
        }
        let known =
            Known { attempt, phase: Phase::Closed, closed: Some(reason), order_digest: None, expires_ms };
        self.memory.note(run.clone(), known);
        let written = self.shared.journal().closed(run, attempt, expires_ms, reason);
        if written.wait().await.is_err() {
            self.shared.count_loss("journal-write");
        }
        self.news(run, attempt, News::Refused { reason, message: reason.to_string() }).await;
    }

    /// An order too large for its dispatch is fetched first, and the dispatch judged again with it.
    async fn fetch_order(&mut self, dispatch: sally_common::wire::command::Dispatch) {
        let known = self.memory.get(&dispatch.run);
        if !self.open || self.free.is_empty() || known.is_some_and(|k| k.attempt >= dispatch.attempt) {
            self.more = known.is_none();
            return;
        }
        let (sender, pieces) = mpsc::channel(blob::PIECES_IN_FLIGHT);
        let waiting = self.blobs.entry(dispatch.order_digest).or_default();
        waiting.retain(|w| !w.is_closed());
        if !waiting.is_empty() {
            return;
        }
        waiting.push(sender);
        let (shared, milestones) = (self.shared.clone(), self.milestones.clone());
        let note = Note {
            run: dispatch.run.clone(),
            attempt: dispatch.attempt,
            expires_ms: dispatch.expires_ms,
            order_digest: dispatch.order_digest,
            require_result: false,
            slot: None,
            boot: String::new(),
        };
        self.tasks.spawn(async move {
            let (digest, size) = (dispatch.order_digest, dispatch.order_bytes);
            let fetched = blob::fetch(&shared, &note, digest, size, pieces).await;
            let milestone = match fetched {
                Ok(bytes) => Milestone::Order(Box::new(dispatch), bytes),
                Err(_) => Milestone::GivenBack(note.run, note.attempt),
            };
            let _ = milestones.send(milestone).await;
        });
    }

    async fn news(&self, run: &RunId, attempt: u32, news: News) {
        let from = self.shared.from();
        let state = State { v: VERSION, from, run: run.clone(), attempt, at_ms: now_ms(), news };
        self.shared.report(Channel::State, Kind::State, &state).await;
    }

    async fn reached(&mut self, milestone: Milestone) {
        match milestone {
            Milestone::SlotFree { slot, .. } if slot == NO_SLOT => {}
            Milestone::SlotFree { slot, .. } => {
                if !self.free.contains(&slot) {
                    self.free.push(slot);
                }
                self.take_kept().await;
            }
            Milestone::SlotDoubtful(slot) => {
                if !self.free.contains(&slot) {
                    self.free.insert(0, slot);
                }
                self.take_kept().await;
            }
            Milestone::Started(run, attempt) => self.memory.advance(&run, attempt, Phase::Started),
            Milestone::Finished(run, attempt) => self.memory.advance(&run, attempt, Phase::Finished),
            Milestone::Closed(run, attempt, reason) => {
                self.count(reason, &format!("run {run}"));
                self.memory.close(&run, attempt, reason);
                self.runs.remove(&run);
            }
            Milestone::GivenBack(run, _) => {
                self.memory.forget(&run);
                self.runs.remove(&run);
                self.more = true;
            }
            Milestone::Receipted(run, attempt) => {
                self.memory.advance(&run, attempt, Phase::Receipted);
                if self.is_under_way(&run, attempt) {
                    self.runs.remove(&run);
                }
            }
            Milestone::WantBlob(digest, sender) => self.blobs.entry(digest).or_default().push(sender),
            Milestone::Order(dispatch, bytes) => match intake::check_order(&self.shared, &dispatch, &bytes) {
                Ok(order) => self.dispatch(*dispatch, order).await,
                Err(reason) => Box::pin(self.obey(Command::BadOrder(dispatch, reason))).await,
            },
        }
    }

    async fn connection(&mut self, event: ConnectionEvent) {
        match event {
            ConnectionEvent::Connected => {
                tracing::info!("{event}");
                // Whatever was on the way may be lost: say again what is owed, ask again for work.
                self.connected.send_modify(|n| *n += 1);
                self.asked = None;
                self.more = true;
                self.tell_soon = true;
            }
            other => {
                tracing::warn!("{other}");
                self.last_error = Some(other.to_string());
            }
        }
    }

    async fn tick(&mut self, slots: u16) {
        let patience = if self.open { ASK_AGAIN } else { ASK_AGAIN_AT_BOOT };
        if self.asked.is_some_and(|(_, at)| at.elapsed() > patience) {
            self.asked = None;
            self.more = true;
        }
        if std::mem::take(&mut self.tell_soon) {
            self.heartbeat(slots, None).await;
        }
        let now = now_ms();
        let old = self.memory.prunable(now);
        if !old.is_empty() {
            for run in &old {
                self.memory.forget(run);
            }
            // Losing this write only keeps them longer.
            drop(self.shared.journal().prune(old));
        }
    }

    /// Asks for work when there is room and there may be some, one question at a time.
    async fn ask_if_useful(&mut self) {
        let useful = !self.open || (self.more && !self.free.is_empty());
        if self.asked.is_some() || !useful {
            return;
        }
        self.more = false;
        let nonce = Nonce::generate();
        self.asked = Some((nonce, Instant::now()));
        let held = self.memory.held();
        let held = held.map(|(run, k)| RunAttempt { run: run.clone(), attempt: k.attempt });
        let held = self.backlog.attempts().chain(held).take(HELD_NAMED).collect();
        let credit = u32::try_from(self.free.len() + self.backlog.room()).unwrap_or(u32::MAX);
        let question = Question::Work { credit, boot: !self.open, held };
        let ask = Ask { v: VERSION, from: self.shared.from(), nonce, question };
        self.shared.report(Channel::Ask, Kind::Ask, &ask).await;
    }

    async fn heartbeat(&mut self, slots: u16, goodbye: Option<&str>) {
        let shared = &self.shared;
        let used = u32::from(slots).saturating_sub(u32::try_from(self.free.len()).unwrap_or(0));
        let of_phase = |phase: Phase| self.memory.held().filter(move |(_, k)| k.phase == phase);
        let running = of_phase(Phase::Started).take(16);
        let heartbeat = Heartbeat {
            v: VERSION,
            from: shared.from(),
            boot_id: heartbeat::boot_id(),
            sent_ms: now_ms(),
            interval_s: shared.config.heartbeat_s,
            state: AgentCondition::Online,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: Slots { used, total: u32::from(slots) },
            running: running.map(|(r, k)| RunAttempt { run: r.clone(), attempt: k.attempt }).collect(),
            spool: SpoolStatus { results: of_phase(Phase::Finished).count() as u64, bytes: 0 },
            labels: shared.config.labels.clone(),
            host: heartbeat::host_facts(shared),
            refused: self.refused.clone(),
            lost: shared.losses(),
            sandbox: heartbeat::ability(shared),
            last_error: self.last_error.clone(),
            goodbye: goodbye.map(str::to_owned),
        };
        shared.report(Channel::Heartbeat, Kind::Heartbeat, &heartbeat).await;
    }
}

/// A run that was adopted after its keeper had ended holds no slot.
const NO_SLOT: u16 = u16::MAX;

/// How long a cancellation of a run that was never started is remembered.
const CANCEL_KEPT_MS: i64 = 7 * 24 * 3600 * 1000;

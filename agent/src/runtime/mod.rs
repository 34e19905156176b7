//! The loop that joins the rooms: one task owns the agent's state and receives everything that
//! happens; each run is a task of its own and talks to the loop over channels.
//!
//! - [`shared`]: identity, journal, connection and launcher, which loop and runs both use.
//! - [`mod@run`]: one run from dispatch to receipt; [`outgoing`] its output on the way out, [`blob`] fetching
//!   what an order names, [`outcome`] the judgement of how it ended.
//! - [`intake`]: messages from the controller, checked; `commands` what is done about them, `admission` a dispatch
//!   that becomes a run, [`backlog`] dispatches for which no slot was free, [`doorstep`] those that came before the welcome.
//! - `recovery`: after a restart; `speak`: questions and heartbeats, [`heartbeat`] facts of the host in them.
//! - `upkeep`: draining, room on the disk, what is due now and then; [`status`] the file that tells people about it.
//! - `launching`: the launcher that this agent uses, or starts.
#![forbid(unsafe_code)]

mod admission;
pub mod backlog;
pub mod blob;
mod commands;
pub mod doorstep;
pub mod heartbeat;
pub mod intake;
mod launching;
pub mod outcome;
pub mod outgoing;
mod recovery;
pub mod run;
pub mod shared;
mod speak;
pub mod status;
mod upkeep;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sally_common::id::{Digest, Nonce};
use sally_common::nats::connect::{ConnectSettings, ConnectionEvent, connect};
use sally_common::notify::{self, Watchdog};
use sally_common::secret::CurveKey;
use sally_common::subject::Channel;
use sally_common::wire::Refusal;
use sally_common::wire::command::{RunAttempt, To};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Config;
use crate::delivery::journal::Journal;
use crate::delivery::memory::{Memory, Phase};
use crate::delivery::pause::Pause;
use crate::delivery::room::Measured;
use crate::delivery::turn::Turn;
use crate::sandbox::SandboxError;
use backlog::Backlog;
use doorstep::Doorstep;
use intake::Command;
use run::{Milestone, Word};
use shared::Shared;
use status::Status;

/// Milestones that may wait for the loop.
const MILESTONES: usize = 1024;
/// How often nothing in particular is looked after: forgetting, lost questions.
const TICK: Duration = Duration::from_millis(250);
/// How long the end waits for the last messages to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

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
    #[error("the key that opens secrets, {path}: {problem}")]
    CurveKey { path: String, problem: String },
    #[error("another agent uses {0}; stop it first, or give this one another state_dir")]
    AlreadyRunning(String),
}

/// A question that is not answered yet.
#[derive(Debug, Clone, Copy)]
struct Asked {
    nonce: Nonce,
    at: Instant,
    /// How much was asked for.
    credit: u32,
    /// Dispatches that came for it.
    came: u64,
}

/// Dispatches that were sent with an answer and are not here yet: the answer travels a shorter way.
#[derive(Debug, Clone, Copy)]
struct Coming {
    /// The question.
    nonce: Nonce,
    left: u64,
    /// What has not come by then is lost.
    until: Instant,
}

struct Agent {
    shared: Arc<Shared>,
    memory: Memory,
    /// Free slots.
    free: Vec<u16>,
    /// Runs with a task, and the way to it.
    runs: HashMap<RunAttempt, mpsc::Sender<Word>>,
    blobs: HashMap<Digest, Vec<mpsc::Sender<blob::Piece>>>,
    tasks: JoinSet<()>,
    milestones: mpsc::Sender<Milestone>,
    connected: watch::Sender<u64>,
    /// Whether the controller has answered since this process began.
    open: bool,
    /// Slots in all.
    slots: u16,
    /// The question under way.
    asked: Option<Asked>,
    /// The last questions without an answer: on a slow link one is asked again before its answer is there.
    questions: VecDeque<Asked>,
    /// What is on its way here; no question before it has come.
    coming: Option<Coming>,
    /// No question before this.
    ask_after: Instant,
    /// What is added to that when runs are given back.
    pause: Pause,
    /// Whether a question is due in any case, for what it says is held here.
    reconcile: bool,
    /// Whether a dispatch was taken since the last question.
    took: bool,
    turn: Turn,
    /// Whether nothing new is taken, because somebody asked for it.
    draining: bool,
    /// Room on the disk, when it was measured last.
    measured: Measured,
    /// Adding up what the state folder holds, in a thread of its own.
    adding_up: Option<tokio::task::JoinHandle<u64>>,
    added_up: Instant,
    /// When work folders that are kept were looked through.
    swept: Instant,
    /// When a controller was last heard, Unix milliseconds.
    last_contact_ms: Option<i64>,
    /// Why free slots take nothing, if so.
    deferring: Option<String>,
    /// What the status file says.
    told: Option<Status>,
    /// When the last new incarnation was taken.
    renewed: Option<Instant>,
    /// Probes answered, and since when they are counted.
    probes: (u32, Instant),
    /// Results without a receipt: their bytes, and since when they wait, Unix milliseconds.
    owed: HashMap<RunAttempt, (u64, i64)>,
    /// Whether there is, or may be, work that was left behind.
    more: bool,
    backlog: Backlog,
    doorstep: Doorstep,
    refused: BTreeMap<Refusal, u64>,
    last_error: Option<String>,
    /// A refusal is told soon, but not more often than the tick.
    tell_soon: bool,
}

/// Runs the agent until `stop` is set. What comes by `reload` is the configuration read anew.
pub async fn run(
    config: Config,
    mut stop: watch::Receiver<bool>,
    mut reload: mpsc::Receiver<Config>,
) -> Result<(), AgentError> {
    let state_failed = |error| AgentError::State { path: config.state_dir.display().to_string(), error };
    std::fs::create_dir_all(config.state_dir.join("runs")).map_err(state_failed)?;
    let _lock = lock(&config.state_dir)?;
    let (journal, recovered) = Journal::open(&config.state_dir.join(shared::JOURNAL))?;
    let curve = curve_key(&config.curve_key)?;
    let (launcher, own_launcher) = launching::reach(&config).await?;

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
    let shared = Arc::new(Shared::new(config, me, curve, client.clone(), launcher, journal));
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
        slots,
        asked: None,
        questions: VecDeque::new(),
        coming: None,
        ask_after: Instant::now(),
        pause: Pause::default(),
        reconcile: true,
        took: false,
        turn: Turn::new(),
        draining: status::is_draining(&shared.config.state_dir),
        measured: Measured::default(),
        adding_up: None,
        added_up: Instant::now(),
        swept: Instant::now(),
        last_contact_ms: None,
        deferring: None,
        told: None,
        renewed: None,
        probes: (0, Instant::now()),
        owed: HashMap::new(),
        more: true,
        backlog: Backlog::new(slots),
        doorstep: Doorstep::default(),
        refused: BTreeMap::new(),
        last_error: None,
        tell_soon: false,
    };
    agent.recover(recovered).await;
    agent.measure();

    // Not when a controller has answered: an agent without a broker is as it should be, and waits.
    notify::ready("waits for a controller");
    let mut watchdog = Watchdog::of_environment();
    let mut beat = beats(heartbeat_s);
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
                agent.heartbeat(None, None).await;
                if !agent.free.is_empty() {
                    agent.more = true;
                }
            }
            _ = tick.tick() => agent.tick().await,
            Some(config) = reload.recv() => {
                if config.heartbeat_s != shared.policy().heartbeat_s {
                    beat = beats(config.heartbeat_s);
                }
                shared.set_policy(config);
                agent.reloaded();
            }
            Some(_) = agent.tasks.join_next(), if !agent.tasks.is_empty() => {}
            _ = stop.changed() => break,
        }
        agent.ask_if_useful().await;
        watchdog.feed();
    }
    notify::stopping();
    agent.stop(&mut milestones).await;
    // The runs go on under their keepers; their tasks here end, and the next agent process adopts.
    agent.tasks.shutdown().await;
    drop(agent);
    if tokio::time::timeout(FLUSH_LIMIT, client.flush()).await.is_err() {
        tracing::warn!("the broker did not take the last messages in time");
    }
    if own_launcher {
        launching::stop(&shared).await;
    }
    Ok(())
}

fn beats(seconds: u32) -> tokio::time::Interval {
    tokio::time::interval(Duration::from_secs(u64::from(seconds)))
}

/// Reads the key that opens secrets, or makes it at the first start.
fn curve_key(path: &Path) -> Result<CurveKey, AgentError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |problem: String| AgentError::CurveKey { path: path.display().to_string(), problem };
    match std::fs::read_to_string(path) {
        Ok(seed) => return CurveKey::from_seed(&seed).map_err(|e| failed(e.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    let key = CurveKey::generate();
    let seed = key.seed().map_err(|e| failed(e.to_string()))?;
    // Under another name until it is whole: half a key would be no key for ever.
    let next = path.with_extension("next");
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        writeln!(file, "{seed}")?;
        file.sync_all()?;
        std::fs::rename(&next, path)
    };
    write().map_err(|e: std::io::Error| failed(e.to_string()))?;
    Ok(key)
}

/// Two agents on one state folder would be two agents with one name.
fn lock(dir: &Path) -> Result<nix::fcntl::Flock<std::fs::File>, AgentError> {
    let path = dir.join(status::LOCK);
    let failed = |error| AgentError::State { path: path.display().to_string(), error };
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| AgentError::AlreadyRunning(dir.display().to_string()))
}

impl Agent {
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
            Milestone::Started(run, attempt) => {
                self.pause.started();
                self.memory.advance(&run, attempt, Phase::Started);
            }
            Milestone::Finished { run, attempt, bytes, since_ms } => {
                self.memory.advance(&run, attempt, Phase::Finished);
                self.owed.insert(RunAttempt { run, attempt }, (bytes, since_ms));
            }
            Milestone::Closed(run, attempt, reason) => {
                self.count(reason, &format!("run {run}"));
                self.memory.close(&run, attempt, reason);
                self.runs.remove(&RunAttempt { run, attempt });
            }
            Milestone::GivenBack(run, attempt, before) => {
                let now = Instant::now();
                // Several at once count as one. Before it is welcome an agent gives back what its restart cut off.
                if self.open && now >= self.ask_after {
                    self.ask_after = now + self.pause.given_back();
                }
                self.memory.give_back(&run, attempt, before);
                self.runs.remove(&RunAttempt { run, attempt });
                self.more = true;
                self.turn.leave();
            }
            Milestone::NoOrder => {
                self.more = true;
                self.turn.leave();
            }
            Milestone::Receipted(run, attempt, ended) => {
                self.memory.receipted(&run, attempt, ended);
                let key = RunAttempt { run, attempt };
                self.owed.remove(&key);
                self.runs.remove(&key);
            }
            Milestone::WantBlob(digest, sender) => self.blobs.entry(digest).or_default().push(sender),
            Milestone::Order(dispatch, bytes) => match intake::check_order(&self.shared, &dispatch, &bytes) {
                Ok(order) => self.dispatch_again(*dispatch, order).await,
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
                self.coming = None;
                self.reconcile = true;
                self.more = true;
                self.turn.doubt();
                self.tell_soon = true;
            }
            other => {
                tracing::warn!("{other}");
                self.last_error = Some(other.to_string());
            }
        }
    }
}

/// A run that was adopted after its keeper had ended holds no slot.
const NO_SLOT: u16 = u16::MAX;

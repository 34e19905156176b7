//! One run on its way: from an admitted dispatch to the controller's receipt. One task each.
//!
//! ```text
//! fetch what the order names → plan → sandbox and *started* mark side by side → go
//!   → tail output → exit record → result into the spool, beside its publication → receipt
//! ```
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::{Digest, RunId};
use sally_common::limit::{self, INLINE_OUTPUT_MAX};
use sally_common::subject::Channel;
use sally_common::wire::order::{Content, Order, Program};
use sally_common::wire::record::RunState;
use sally_common::wire::report::{LogChunk, News, ResultMessage, State, StreamEnd};
use sally_common::wire::{self, Kind, Refusal, VERSION};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::blob;
use super::outcome::{self, Ending, Said};
use super::outgoing::{self, Outgoing};
use super::shared::Shared;
use crate::sandbox::{self, Event, Events, ExitRecord, Plan, RunFolder, RunInputs, SandboxError, Script};
use crate::script::{self, EventScanner, Masker};

/// A run that ends sooner than this needs no *started* report and no live output: its result says all.
const LIVE_AFTER: Duration = Duration::from_millis(100);

/// Small output is gathered this long before it is sent.
const GATHER: Duration = Duration::from_millis(20);

/// How long processes that outlive the main one may go on.
const EXIT_GRACE_MS: u64 = 250;

/// An adopted run is said to have started after this, not at once: its last agent may have died on the very
/// way to the word "go", and then its keeper says within moments that it never started.
const ADOPTED_LIVE_AFTER: Duration = Duration::from_secs(1);

/// How long a start waits for a launcher or keeper that is away, and how long between two tries.
const START_LIMIT: Duration = Duration::from_secs(10);
const START_PAUSE: Duration = Duration::from_millis(50);

/// How often a sandbox may fail to be made before the run is told to fail: a keeper may have been killed.
const SETUP_TRIES: u32 = 3;

/// First and longest wait for a receipt before a result or a piece is sent again.
const RESEND_FIRST: Duration = Duration::from_secs(2);
const RESEND_MAX: Duration = Duration::from_secs(30);

/// An admitted dispatch.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// After this it must not start.
    pub expires_ms: i64,
    /// The order.
    pub order: Arc<Order>,
    /// Its digest.
    pub order_digest: Digest,
}

/// What the loop tells a run.
#[derive(Debug)]
pub enum Word {
    /// End it.
    Cancel {
        /// Without TERM.
        hard: bool,
    },
    /// The controller has stored a stream up to here.
    Stored {
        /// Which.
        stream: String,
        /// How much.
        bytes: u64,
    },
    /// The controller has committed the result.
    Receipt {
        /// The digest of the result's body.
        digest: Digest,
    },
    /// Say again what you owe.
    Again,
}

/// What a run tells the loop.
#[derive(Debug)]
pub enum Milestone {
    /// The slot can be used again.
    SlotFree {
        /// The run.
        run: RunId,
        /// The slot.
        slot: u16,
    },
    /// The slot can be used again, but better not first: no run could be started there.
    SlotDoubtful(u16),
    /// The mark is on disk.
    Started(RunId, u32),
    /// The result is in the spool.
    Finished(RunId, u32),
    /// Nothing was started and nothing will be under this attempt.
    Closed(RunId, u32, Refusal),
    /// Nothing was started; the controller may send it again.
    GivenBack(RunId, u32),
    /// The controller has the result.
    Receipted(RunId, u32),
    /// Route blob pieces of this digest to the run.
    WantBlob(Digest, mpsc::Sender<blob::Piece>),
    /// An order that did not fit its dispatch has been fetched.
    Order(Box<sally_common::wire::command::Dispatch>, Vec<u8>),
}

/// What is kept beside an attempt's output, so that another agent process can go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The order's expiry.
    pub expires_ms: i64,
    /// The order's digest.
    pub order_digest: Digest,
    /// Whether a missing result is a failure.
    pub require_result: bool,
    /// The slot it was given, if it got so far.
    #[serde(default)]
    pub slot: Option<u16>,
    /// The boot in which the folder was made. In another one what it says may be older than what happened.
    #[serde(default)]
    pub boot: String,
}

/// Everything a run's task holds.
pub struct Run {
    shared: Arc<Shared>,
    note: Note,
    words: mpsc::Receiver<Word>,
    milestones: mpsc::Sender<Milestone>,
    connected: watch::Receiver<u64>,
    /// Whether the keeper is known to be done with the run folder.
    reusable: bool,
}

/// Why a run ends before it has begun.
enum Stop {
    Refused(Refusal, String),
    GivenBack(String),
    Failed(Ending),
    /// Launcher or keeper went away; another try may find another.
    ForNow(SandboxError),
}

/// What a start needs, kept for another try.
struct Inputs {
    plan: Plan,
    script: Option<Vec<u8>>,
    params: Vec<u8>,
    stdin: Option<Vec<u8>>,
}

/// An attempt under way.
struct Live {
    folder: RunFolder,
    events: Events,
    stdout: Outgoing,
    stderr: Outgoing,
    scanner: EventScanner,
    result_at: u64,
    /// Whether output goes ahead of the result.
    streaming: bool,
    /// When the controller is told that it runs, if it was not told.
    announce_at: Option<Instant>,
    progress: Option<script::Progress>,
}

impl Run {
    /// Joins the parts.
    pub fn new(
        shared: Arc<Shared>,
        note: Note,
        words: mpsc::Receiver<Word>,
        milestones: mpsc::Sender<Milestone>,
        connected: watch::Receiver<u64>,
    ) -> Self {
        Run { shared, note, words, milestones, connected, reusable: false }
    }

    /// Runs an admitted dispatch to its receipt.
    pub async fn execute(mut self, admitted: Admitted, slot: u16) {
        let begun = self.begin(&admitted, slot).await;
        let body = match begun {
            Ok(mut live) => {
                let ended = self.follow(&mut live).await;
                self.tell(Milestone::SlotFree { run: self.note.run.clone(), slot }).await;
                let body = self.conclude(&mut live, ended);
                self.reusable = ended == Event::Exited;
                drop(live.events);
                return self.owe(body, vec![live.stdout, live.stderr]).await;
            }
            Err(Stop::Failed(ending)) => self.result(ending, None, Said::nothing(), empty(), empty()),
            Err(Stop::Refused(reason, message)) => {
                self.free(slot).await;
                self.refuse(reason, message).await;
                return;
            }
            Err(Stop::GivenBack(message)) => {
                self.tell(Milestone::SlotDoubtful(slot)).await;
                return self.give_back(&message).await;
            }
            Err(Stop::ForNow(error)) => {
                self.tell(Milestone::SlotDoubtful(slot)).await;
                return self.give_back(&error.to_string()).await;
            }
        };
        self.free(slot).await;
        self.owe(body, Vec::new()).await;
    }

    /// Goes on with an attempt that another agent process began.
    pub async fn adopt(mut self, folder: RunFolder, slot: u16) {
        let streams =
            (Outgoing::new("stdout", folder.stdout_path()), Outgoing::new("stderr", folder.stderr_path()));
        let body = match folder.events() {
            Ok(events) => {
                let (stdout, stderr) = streams;
                let mut live = Live {
                    folder,
                    events,
                    stdout,
                    stderr,
                    scanner: EventScanner::new(),
                    result_at: 0,
                    streaming: true,
                    announce_at: Some(Instant::now() + ADOPTED_LIVE_AFTER),
                    progress: None,
                };
                let ended = self.follow(&mut live).await;
                self.free(slot).await;
                if live.announce_at.is_some() && never_started(&live.folder) {
                    return self.give_back("the agent went away before the program started").await;
                }
                let body = self.conclude(&mut live, ended);
                return self.owe(body, vec![live.stdout, live.stderr]).await;
            }
            Err(error) => {
                let ending =
                    Ending::interrupted(format!("its run folder cannot be read after a restart: {error}"));
                self.result(ending, None, Said::nothing(), empty(), empty())
            }
        };
        self.free(slot).await;
        self.owe(body, Vec::new()).await;
    }

    /// Settles an attempt that was marked as started and of which nothing else is left.
    pub async fn interrupted(mut self) {
        let ending =
            Ending::interrupted("the host or its keeper went down under it; it may have run in part");
        let body = self.result(ending, None, Said::nothing(), empty(), empty());
        self.owe(body, Vec::new()).await;
    }

    /// Gives back an attempt whose program was never let go: its last agent process died before it said so.
    pub async fn never_released(self) {
        self.give_back("the agent went away before the program started").await;
    }

    /// Nothing was started under this attempt and nothing will be, until the controller sends it again.
    async fn give_back(&self, message: &str) {
        tracing::warn!(run = %self.note.run, message, "gave a run back");
        self.forget().await;
        self.news(News::Deferred { reason: Refusal::NoRoom }).await;
        self.tell(Milestone::GivenBack(self.note.run.clone(), self.note.attempt)).await;
    }

    /// Takes the *started* mark back, then removes the folder: a mark without a folder would be a program that
    /// may have run.
    async fn forget(&self) {
        let forgotten = self.shared.journal().unstarted(&self.note.run);
        match forgotten.wait().await {
            Ok(()) => remove_dir(&self.dir()),
            Err(error) => {
                tracing::error!(run = %self.note.run, %error, "cannot take a mark back; its folder says that nothing ran");
                self.shared.count_loss("journal-write");
            }
        }
    }

    /// Goes on owing a result that is in the spool.
    pub async fn resume_owing(mut self, body: Vec<u8>) {
        let streams = self.reopen_streams(&body);
        self.deliver(body, streams).await;
    }

    async fn free(&self, slot: u16) {
        self.tell(Milestone::SlotFree { run: self.note.run.clone(), slot }).await;
    }

    async fn tell(&self, milestone: Milestone) {
        // The loop is gone only when the agent stops; then nobody needs to know.
        let _ = self.milestones.send(milestone).await;
    }

    async fn news(&self, news: News) {
        let state = State {
            v: VERSION,
            from: self.shared.from(),
            run: self.note.run.clone(),
            attempt: self.note.attempt,
            at_ms: now_ms(),
            news,
        };
        self.shared.report(Channel::State, Kind::State, &state).await;
    }

    async fn refuse(&self, reason: Refusal, message: String) {
        let note = &self.note;
        let written = self.shared.journal().closed(&note.run, note.attempt, note.expires_ms, reason);
        if written.wait().await.is_err() {
            // Not on disk: refusing again after a restart is harmless, the order has not run.
            self.shared.count_loss("journal-write");
        }
        self.tell(Milestone::Closed(self.note.run.clone(), self.note.attempt, reason)).await;
        self.news(News::Refused { reason, message }).await;
    }

    fn dir(&self) -> PathBuf {
        self.shared.runs_dir.join(format!("{}.{}", self.note.run, self.note.attempt))
    }

    // ---- beginning

    async fn begin(&mut self, admitted: &Admitted, slot: u16) -> Result<Live, Stop> {
        let task = &admitted.order.task;
        if !task.secrets.is_empty() {
            let message = "the task brings sealed secrets, and this agent has no key that opens them";
            return Err(Stop::Refused(Refusal::SecretsUnreadable, message.into()));
        }
        let (program, script) = match &task.program {
            Program::Command => (sandbox::Program::Command, None),
            Program::Script { content, interpreter } => {
                let bytes = self.content(content).await?;
                let host = sally_common::program::Machine::current().filter(|_| interpreter.is_none());
                sally_common::program::check(&bytes, interpreter.is_some())
                    .and_then(|kind| {
                        host.map_or(Ok(()), |host| sally_common::program::check_machine(&kind, host))
                    })
                    .map_err(|problem| Stop::Refused(Refusal::BadProgram, problem.to_string()))?;
                (sandbox::Program::Script { interpreter: interpreter.clone() }, Some(bytes))
            }
        };
        let stdin = match &task.stdin {
            None => None,
            Some(content) => Some(self.content(content).await?),
        };
        let plan = self.plan(admitted, program)?;
        let params = task.params.as_ref().map_or_else(Vec::new, |p| p.get().as_bytes().to_vec());
        self.note.slot = Some(slot);
        self.start(slot, &Inputs { plan, script, params, stdin }).await
    }

    /// Starts the program, if need be in several tries: a launcher or keeper that died is replaced in moments,
    /// and without the word "go" nothing has happened.
    async fn start(&mut self, slot: u16, inputs: &Inputs) -> Result<Live, Stop> {
        let until = Instant::now() + START_LIMIT;
        let mut failures = 0;
        loop {
            let error = match self.try_start(slot, inputs).await {
                Err(Stop::ForNow(error)) => error,
                done => return done,
            };
            tracing::warn!(run = %self.note.run, slot, %error, "could not start a run yet");
            failures += u32::from(matches!(error, SandboxError::Setup(_)));
            if failures >= SETUP_TRIES {
                return Err(Stop::Failed(start_failed(&error)));
            }
            // Before another folder takes the place of this one.
            self.forget().await;
            if self.was_cancelled() {
                return Err(Stop::Failed(Ending::cancelled_before_start()));
            }
            if self.shared.now_ms() >= self.note.expires_ms {
                let message = format!("expired while it could not be started: {error}");
                return Err(Stop::Refused(Refusal::Expired, message));
            }
            if Instant::now() >= until {
                return Err(Stop::ForNow(error));
            }
            // Nothing tells when a launcher is there again.
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    async fn try_start(&mut self, slot: u16, inputs: &Inputs) -> Result<Live, Stop> {
        let dir = self.dir();
        let made = self.make_folder(&dir, inputs);
        let made = made
            .and_then(|(folder, handover)| Ok((folder.events()?, folder, handover)))
            .map_err(|error| error.to_string());
        let (events, folder, handover) = made.map_err(Stop::GivenBack)?;

        sally_common::fail::point("agent.mark.before");
        // Side by side: the keeper builds, the disk syncs. The program waits for both. The folder stands before
        // the mark does: a mark without a folder reads as a program that may have run.
        let (run, digest) = (&self.note.run, self.note.order_digest);
        let mark = self.shared.journal().started(run, self.note.attempt, self.note.expires_ms, digest);
        let start = self.shared.launcher.start(slot, &inputs.plan, handover);
        let (started, marked) = tokio::join!(start, mark.wait());
        if let Err(error) = marked {
            // Dropping the word keeps the program from starting; the mark may or may not be on disk.
            return Err(Stop::GivenBack(error.to_string()));
        }
        sally_common::fail::point("agent.mark.after");
        let go = match started {
            Ok(started) => started.go,
            Err(error) if may_pass(&error) => return Err(Stop::ForNow(error)),
            Err(error) => return Err(Stop::Failed(start_failed(&error))),
        };
        if self.was_cancelled() {
            drop(go);
            return Err(Stop::Failed(Ending::cancelled_before_start()));
        }
        // Whoever finds the folder without this knows that the word was never said.
        std::fs::write(dir.join(RELEASED), b"").map_err(|e| Stop::GivenBack(e.to_string()))?;
        sally_common::fail::point("agent.go.before");
        self.tell(Milestone::Started(self.note.run.clone(), self.note.attempt)).await;
        // A keeper that died here shows in its events.
        go.release();
        sally_common::fail::point("agent.go.after");
        Ok(Live {
            stdout: Outgoing::new("stdout", folder.stdout_path()),
            stderr: Outgoing::new("stderr", folder.stderr_path()),
            folder,
            events,
            scanner: EventScanner::new(),
            result_at: 0,
            streaming: false,
            announce_at: Some(Instant::now() + LIVE_AFTER),
            progress: None,
        })
    }

    fn make_folder(
        &self,
        dir: &std::path::Path,
        inputs: &Inputs,
    ) -> Result<(RunFolder, sandbox::Handover), Box<dyn std::error::Error>> {
        // Left by a process that died before the mark: nothing ran from it.
        remove_dir(dir);
        let stdin = match &inputs.stdin {
            None => None,
            Some(bytes) => Some(memory_file(bytes)?),
        };
        let script = inputs.script.clone().map(Script::Bytes);
        let inputs = RunInputs { script, params: inputs.params.clone(), stdin };
        let (folder, handover) = match self.shared.take_spare() {
            Some(spare) => RunFolder::reuse(&spare, dir, inputs)?,
            None => RunFolder::create(dir, inputs)?,
        };
        let note = serde_json::to_vec(&self.note)?;
        std::fs::write(dir.join(NOTE_FILE), note)?;
        Ok((folder, handover))
    }

    fn plan(&self, admitted: &Admitted, program: sandbox::Program) -> Result<Plan, Stop> {
        let task = &admitted.order.task;
        let config = &self.shared.config;
        if !config.profiles.contains(&task.profile) {
            let allowed: Vec<_> = config.profiles.iter().map(|p| p.word()).collect();
            let message =
                format!("profile {} is not allowed here, only {}", task.profile, allowed.join(", "));
            return Err(Stop::Refused(Refusal::Policy, message));
        }
        let profile = outcome::inner_profile(task.profile);
        let paths = self.shared.launcher.box_paths(profile);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
        };
        let deadline_ms = now_ms().saturating_add(i64::try_from(task.timeout_ms).unwrap_or(i64::MAX));
        let deadline = jiff::Timestamp::from_millisecond(deadline_ms).unwrap_or(jiff::Timestamp::MAX);
        let env = script::build_env(&script::EnvContext {
            path: sandbox::DEFAULT_PATH,
            bin: &text(paths.bin()),
            work: &text(paths.work()),
            tmp: &text(paths.tmp()),
            params_file: &text(paths.params()),
            secrets_dir: &text(paths.secrets()),
            result_file: &text(paths.result_file()),
            job: self.note.run.job().as_str(),
            run: &self.note.run.to_string(),
            attempt: u64::from(self.note.attempt),
            agent: config.name.as_str(),
            zone: config.zone.as_str(),
            deadline,
            agent_env: &pairs(&config.script_env),
            task_env: &pairs(&task.env),
        })
        .map_err(|e| Stop::Refused(Refusal::Policy, e.to_string()))?;
        let mut require = Vec::new();
        for name in &task.require_layers {
            let layer = sandbox::Layer::ALL.into_iter().find(|l| l.name() == name);
            let unknown =
                || Stop::Refused(Refusal::LayerMissing, format!("this agent knows no layer \"{name}\""));
            require.push(layer.ok_or_else(unknown)?);
        }
        let stream_bytes = script::ResultLimits::default().stream_bytes;
        Ok(Plan {
            v: sandbox::PLAN_VERSION,
            run: self.note.run.to_string(),
            attempt: self.note.attempt,
            profile,
            program,
            argv: task.args.clone(),
            env,
            timeout_ms: task.timeout_ms,
            grace_ms: task.grace_ms,
            exit_grace_ms: EXIT_GRACE_MS,
            limits: sandbox::Limits { result_bytes: stream_bytes, ..sandbox::Limits::default() },
            require,
        })
    }

    /// The bytes of something that the order carries or names.
    async fn content(&mut self, content: &Content) -> Result<Vec<u8>, Stop> {
        if let Some(text) = &content.text {
            return Ok(text.clone().into_bytes());
        }
        self.news(News::Accepted).await;
        let (sender, pieces) = mpsc::channel(blob::PIECES_IN_FLIGHT);
        self.tell(Milestone::WantBlob(content.digest, sender)).await;
        let fetched = blob::fetch(&self.shared, &self.note, content.digest, content.bytes, pieces).await;
        fetched.map_err(|problem| match problem {
            blob::Problem::Refused(reason, message) => Stop::Refused(reason, message),
            blob::Problem::Expired => {
                Stop::Refused(Refusal::Expired, "expired while its program was fetched".into())
            }
        })
    }

    /// Whether a cancellation came before the start. Other words make no sense yet.
    fn was_cancelled(&mut self) -> bool {
        while let Ok(word) = self.words.try_recv() {
            if matches!(word, Word::Cancel { .. }) {
                return true;
            }
        }
        false
    }

    // ---- running

    /// Follows the attempt to its end, sending output ahead if there is much or it takes long.
    async fn follow(&mut self, live: &mut Live) -> Event {
        let live_at = Instant::now() + LIVE_AFTER;
        let mut gather_until: Option<Instant> = None;
        let mut resend_at: Option<Instant> = None;
        loop {
            let pump_at = gather_until.or(live.announce_at);
            tokio::select! {
                event = live.events.next() => match event {
                    Ok(Event::Started) => {}
                    Ok(Event::Output) => {
                        if gather_until.is_none() && live.streaming {
                            gather_until = Some(Instant::now() + GATHER);
                        }
                        if !live.streaming && output_is_large(&live.folder) {
                            live.streaming = true;
                            gather_until = Some(Instant::now());
                        }
                    }
                    Ok(end) => return end,
                    Err(error) => {
                        tracing::warn!(run = %self.note.run, %error, "lost sight of a keeper");
                        return Event::KeeperGone;
                    }
                },
                () = sleep_until(pump_at.unwrap_or(live_at)), if pump_at.is_some() => {
                    if live.announce_at.take().is_some() {
                        live.streaming = true;
                        self.news(News::Started { started_ms: now_ms() }).await;
                    }
                    gather_until = None;
                    if self.pump(live).await {
                        gather_until = Some(Instant::now());
                    }
                    resend_at = waiting(live).then(|| Instant::now() + RESEND_FIRST);
                }
                () = sleep_until(resend_at.unwrap_or(live_at)), if resend_at.is_some() => {
                    live.stdout.rewind();
                    live.stderr.rewind();
                    self.pump(live).await;
                    resend_at = waiting(live).then(|| Instant::now() + RESEND_MAX);
                }
                word = self.words.recv() => match word {
                    Some(Word::Cancel { hard }) => {
                        // For whoever judges the end, in this process or the next.
                        if let Err(error) = std::fs::write(self.dir().join(CANCEL_ASKED), b"") {
                            tracing::warn!(run = %self.note.run, %error, "cannot note a cancellation");
                        }
                        let told = if hard { live.folder.kill() } else { live.folder.cancel() };
                        if let Err(error) = told {
                            tracing::warn!(run = %self.note.run, %error, "could not tell the keeper to end the run");
                        }
                    }
                    Some(Word::Stored { stream, bytes }) => {
                        stored(&mut [&mut live.stdout, &mut live.stderr], &stream, bytes);
                        if self.pump(live).await {
                            gather_until = Some(Instant::now());
                        }
                        resend_at = waiting(live).then(|| Instant::now() + RESEND_FIRST);
                    }
                    Some(Word::Again) => self.news(News::Started { started_ms: now_ms() }).await,
                    Some(Word::Receipt { .. }) => {}
                    // The loop is gone: the agent stops, the keeper goes on, the next agent adopts.
                    None => return std::future::pending().await,
                }
            }
        }
    }

    /// Takes in new output and sends what the window allows. Returns whether there may be more at once.
    async fn pump(&mut self, live: &mut Live) -> bool {
        self.listen(live).await;
        let mut more = false;
        for stream in [&mut live.stdout, &mut live.stderr] {
            let taken = stream.take_in();
            match taken {
                Ok(taken) => more |= taken,
                Err(error) => tracing::warn!(run = %self.note.run, %error, "cannot read its output"),
            }
            self.send_pieces(stream, true).await;
        }
        more
    }

    async fn send_pieces(&self, stream: &mut Outgoing, flush: bool) {
        loop {
            match stream.next_piece(flush) {
                Ok(Some(piece)) => {
                    let head = LogChunk {
                        v: VERSION,
                        run: self.note.run.clone(),
                        attempt: self.note.attempt,
                        stream: stream.name.to_owned(),
                        offset: piece.offset,
                    };
                    self.shared.publish_piece(wire::join_head(&head, &piece.bytes)).await;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(run = %self.note.run, %error, "cannot read its output");
                    return;
                }
            }
        }
    }

    /// Reads new events of the script: secrets to mask before more output leaves, and progress.
    async fn listen(&mut self, live: &mut Live) {
        use std::os::unix::fs::FileExt;
        let Ok(file) = std::fs::File::open(live.folder.result_path()) else { return };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = file.read_at(&mut buffer, live.result_at) {
            live.result_at += length as u64;
            for event in live.scanner.push(&buffer[..length]) {
                match event {
                    script::Event::Mask(value) => {
                        for stream in [&mut live.stdout, &mut live.stderr] {
                            if let Err(error) = stream.mask(&value) {
                                tracing::warn!(run = %self.note.run, %error, "cannot mask its output");
                            }
                        }
                    }
                    script::Event::Progress(progress) => live.progress = Some(progress),
                    _ => {}
                }
            }
        }
        if live.streaming
            && let Some(said) = live.progress.take()
        {
            self.news(News::Progress { progress: outcome::progress(&said) }).await;
        }
    }

    // ---- ending

    /// Makes the result's body from what is in the run folder.
    fn conclude(&self, live: &mut Live, ended: Event) -> Vec<u8> {
        sally_common::fail::point("agent.exit.seen");
        let record = live.folder.exit_record().ok().flatten().filter(|_| ended == Event::Exited);
        let counts = |f: fn(&ExitRecord) -> u64| record.as_ref().map_or(0, f);
        let dropped = (counts(|r| r.stdout.dropped), counts(|r| r.stderr.dropped));
        let said = self.read_said(live, record.as_ref());
        let masks = said.masks.clone();
        for value in &masks {
            for stream in [&mut live.stdout, &mut live.stderr] {
                if let Err(error) = stream.mask(value) {
                    tracing::warn!(run = %self.note.run, %error, "cannot mask its output");
                }
            }
        }
        let mut ends = Vec::new();
        for (stream, dropped) in [(&mut live.stdout, dropped.0), (&mut live.stderr, dropped.1)] {
            if let Err(error) = stream.take_all() {
                tracing::warn!(run = %self.note.run, %error, "cannot read its output");
                self.shared.count_loss("output-unreadable");
            }
            ends.push((stream.end(dropped), dropped));
        }
        let size: u64 = ends.iter().map(|(end, _)| end.bytes).sum();
        if !live.streaming && size <= INLINE_OUTPUT_MAX as u64 {
            for ((end, dropped), stream) in ends.iter_mut().zip([&live.stdout, &live.stderr]) {
                if let Ok(bytes) = stream.bytes() {
                    *end = StreamEnd::inline(&bytes, *dropped);
                }
            }
        }
        let mut ends = ends.into_iter().map(|(end, _)| end);
        let (stdout, stderr) = (ends.next().unwrap_or_else(empty), ends.next().unwrap_or_else(empty));
        let ending = match &record {
            Some(record) => {
                let asked = self.dir().join(CANCEL_ASKED).exists();
                outcome::judge(record, &said, self.note.require_result, asked)
            }
            None => Ending::interrupted("its keeper died under it; it may have run in part"),
        };
        let said = Said::of(said, |text| mask_text(text, &masks));
        self.result(ending, record.as_ref(), said, stdout, stderr)
    }

    fn read_said(&self, live: &Live, record: Option<&ExitRecord>) -> script::ScriptResult {
        let read = |path: PathBuf| std::fs::read(path).unwrap_or_default();
        let (fd3, file) = (read(live.folder.result_path()), read(live.folder.result_file_path()));
        let seen = |bytes: &[u8], count: Option<&sandbox::StreamCount>| {
            count.map_or(bytes.len() as u64, |c| c.kept + c.dropped)
        };
        let fd3_seen = seen(&fd3, record.map(|r| &r.result));
        let file_seen = seen(&file, record.and_then(|r| r.result_file.as_ref()));
        script::read_result(
            &script::Door { bytes: &fd3, seen: fd3_seen },
            &script::Door { bytes: &file, seen: file_seen },
            &script::ResultLimits::default(),
        )
    }

    fn result(
        &self,
        ending: Ending,
        record: Option<&ExitRecord>,
        said: Said,
        stdout: StreamEnd,
        stderr: StreamEnd,
    ) -> Vec<u8> {
        let mut message = ResultMessage {
            v: VERSION,
            from: self.shared.from(),
            run: self.note.run.clone(),
            attempt: self.note.attempt,
            order_digest: self.note.order_digest,
            state: ending.state,
            exit_code: ending.exit_code,
            signal: ending.signal,
            reason: ending.reason,
            message: ending.message,
            started_ms: record.and_then(|r| r.started_at_unix_ms).and_then(|t| i64::try_from(t).ok()),
            finished_ms: record
                .and_then(|r| i64::try_from(r.finished_at_unix_ms).ok())
                .unwrap_or_else(now_ms),
            duration_ms: record.filter(|r| r.started_at_unix_ms.is_some()).map(|r| r.duration_ms),
            result_state: said.state,
            result: said.json,
            result_stream: None,
            result_error: said.error,
            failure: said.failure,
            changed: said.changed,
            progress: said.progress,
            artifacts: said.artifacts,
            stdout,
            stderr,
            usage: record.map(outcome::usage),
            sandbox: record.filter(|r| !r.layers.is_empty()).map(outcome::sandbox_report),
            leftovers: record.map_or(0, |r| r.leftovers),
        };
        self.divert_result(&mut message);
        wire::to_bytes(&message)
    }

    /// A result too large for one message becomes a stream beside the output.
    fn divert_result(&self, message: &mut ResultMessage) {
        if message.result.as_ref().is_none_or(|r| r.get().len() <= INLINE_OUTPUT_MAX) {
            return;
        }
        let Some(json) = message.result.take() else { return };
        let mut end = StreamEnd::inline(json.get().as_bytes(), 0);
        end.inline = None;
        if let Err(error) = std::fs::write(self.dir().join(RESULT_JSON), json.get()) {
            tracing::warn!(run = %self.note.run, %error, "cannot keep its result");
            self.shared.count_loss("result-unwritable");
        }
        message.result_stream = Some(end);
    }

    /// Puts the result into the spool and delivers it. The first publication does not wait for the disk: a
    /// result that is known early does no harm, and after a crash the run folder still has everything.
    async fn owe(&mut self, body: Vec<u8>, streams: Vec<Outgoing>) {
        sally_common::fail::point("agent.spool.before");
        let streams = self.streams_of(&body, streams);
        self.make_lasting(&streams).await;
        let written = self.shared.journal().finished(
            &self.note.run,
            self.note.attempt,
            self.note.expires_ms,
            body.clone(),
        );
        let spool = async {
            match written.wait().await {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(run = %self.note.run, %error, "cannot spool a result; its run folder keeps it");
                    false
                }
            }
        };
        if streams.is_empty() {
            tokio::join!(spool, self.send_result(&body));
        } else {
            spool.await;
        }
        sally_common::fail::point("agent.spool.after");
        self.tell(Milestone::Finished(self.note.run.clone(), self.note.attempt)).await;
        self.deliver(body, streams).await;
    }

    /// What a result announces without carrying must outlast a power cut as the result does.
    async fn make_lasting(&self, streams: &[Outgoing]) {
        let files: Result<Vec<_>, _> = streams.iter().map(Outgoing::handle).collect();
        if streams.is_empty() {
            return;
        }
        let dir = self.dir();
        let sync = move || {
            files?.iter().try_for_each(std::fs::File::sync_all)?;
            std::fs::File::open(dir)?.sync_all()
        };
        let synced = tokio::task::spawn_blocking(sync).await.unwrap_or_else(|e| Err(e.into()));
        if let Err(error) = synced {
            tracing::error!(run = %self.note.run, %error, "cannot sync its output: a power cut may lose it");
            self.shared.count_loss("output-unsynced");
        }
    }

    /// The streams that this result announces without carrying.
    fn streams_of(&self, body: &[u8], open: Vec<Outgoing>) -> Vec<Outgoing> {
        let Ok(message) = wire::read::<ResultMessage>(body) else { return Vec::new() };
        let announced = [("stdout", &message.stdout), ("stderr", &message.stderr)];
        let mut streams: Vec<Outgoing> = open
            .into_iter()
            .filter(|s| announced.iter().any(|(name, end)| *name == s.name && end.inline.is_none()))
            .collect();
        if let Some(end) = &message.result_stream {
            match outgoing::reopen("result", &self.dir().join(RESULT_JSON), end) {
                Ok(stream) => streams.push(stream),
                Err(error) => tracing::warn!(run = %self.note.run, %error, "cannot read its result"),
            }
        }
        streams
    }

    fn reopen_streams(&self, body: &[u8]) -> Vec<Outgoing> {
        let Ok(message) = wire::read::<ResultMessage>(body) else { return Vec::new() };
        let dir = self.dir();
        let all = [
            ("stdout", "stdout", Some(&message.stdout)),
            ("stderr", "stderr", Some(&message.stderr)),
            ("result", RESULT_JSON, message.result_stream.as_ref()),
        ];
        let mut streams = Vec::new();
        for (name, file, end) in all {
            let Some(end) = end.filter(|end| end.inline.is_none()) else { continue };
            match outgoing::reopen(name, &dir.join(file), end) {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    tracing::warn!(run = %self.note.run, %error, "output that was announced cannot be read");
                    self.shared.count_loss("output-unreadable");
                }
            }
        }
        streams
    }

    async fn send_result(&self, body: &[u8]) {
        sally_common::fail::point("agent.result.before-publish");
        let envelope = wire::Envelope::seal_bytes(Kind::Result, &self.shared.config.key, body.to_vec());
        self.shared.publish(Channel::Result, envelope).await;
        sally_common::fail::point("agent.result.after-publish");
    }

    /// Sends streams, then the result, again and again until the controller's receipt.
    async fn deliver(&mut self, body: Vec<u8>, mut streams: Vec<Outgoing>) {
        let digest = Digest::of(&body);
        let mut sent_result = streams.is_empty();
        let mut pause = RESEND_FIRST;
        for stream in &mut streams {
            self.send_pieces(stream, true).await;
        }
        loop {
            if !sent_result && streams.iter().all(Outgoing::is_delivered) {
                sent_result = true;
                self.send_result(&body).await;
            }
            tokio::select! {
                word = self.words.recv() => match word {
                    Some(Word::Receipt { digest: theirs }) if theirs == digest => break,
                    Some(Word::Stored { stream, bytes }) => {
                        pause = RESEND_FIRST;
                        let mut all: Vec<&mut Outgoing> = streams.iter_mut().collect();
                        if stored(&mut all, &stream, bytes) {
                            sent_result = false;
                        }
                        for stream in &mut streams {
                            self.send_pieces(stream, true).await;
                        }
                    }
                    Some(Word::Again) => {
                        pause = RESEND_FIRST;
                        self.send_all_again(&body, &mut streams).await;
                    }
                    Some(Word::Receipt { .. } | Word::Cancel { .. }) => {}
                    None => return,
                },
                changed = self.connected.changed() => {
                    if changed.is_err() { return }
                    self.send_all_again(&body, &mut streams).await;
                }
                () = tokio::time::sleep(pause) => {
                    pause = (pause * 2).min(RESEND_MAX);
                    self.send_all_again(&body, &mut streams).await;
                }
            }
        }
        sally_common::fail::point("agent.receipt.before-journal");
        let done = self.shared.journal().receipted(&self.note.run, self.note.attempt, self.note.expires_ms);
        // The receipt is remembered before the folder goes; if the note is lost, the controller receipts again.
        let _ = done.wait().await;
        sally_common::fail::point("agent.receipt.after-journal");
        if self.reusable {
            self.shared.put_aside(&self.dir());
        } else {
            remove_dir(&self.dir());
        }
        sally_common::fail::point("agent.receipt.after-folder");
        self.tell(Milestone::Receipted(self.note.run.clone(), self.note.attempt)).await;
    }

    async fn send_all_again(&self, body: &[u8], streams: &mut [Outgoing]) {
        for stream in streams.iter_mut() {
            stream.rewind();
            self.send_pieces(stream, true).await;
        }
        if streams.iter().all(Outgoing::is_delivered) {
            self.send_result(body).await;
        }
    }
}

/// The file whose presence says that the controller asked to cancel the run.
const CANCEL_ASKED: &str = "cancel-asked";
/// The file with the [`Note`].
pub const NOTE_FILE: &str = "run.json";
/// A structured result that is too large for its message.
const RESULT_JSON: &str = "result.json";

/// There once the program was about to be let go.
pub const RELEASED: &str = "released";

/// Reads the note of a run folder.
pub fn read_note(dir: &std::path::Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(dir.join(NOTE_FILE)).ok()?).ok()
}

/// Removes a run folder that is settled. What cannot be removed is told and tried again at the next start.
pub fn remove_dir(dir: &std::path::Path) {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, dir = %dir.display(), "cannot remove a run folder"),
    }
}

fn empty() -> StreamEnd {
    StreamEnd::inline(b"", 0)
}

fn waiting(live: &Live) -> bool {
    live.stdout.is_waiting() || live.stderr.is_waiting()
}

/// Notes a receipt. Returns whether the controller has less than it said before.
fn stored(streams: &mut [&mut Outgoing], name: &str, bytes: u64) -> bool {
    let Some(stream) = streams.iter_mut().find(|s| s.name == name) else { return false };
    let was_delivered = stream.is_delivered();
    stream.stored(bytes);
    if was_delivered && !stream.is_delivered() {
        stream.rewind();
        return true;
    }
    false
}

fn output_is_large(folder: &RunFolder) -> bool {
    let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
    size(folder.stdout_path()) + size(folder.stderr_path()) > limit::INLINE_OUTPUT_MAX as u64
}

/// Whether the launcher or keeper that could not do it may be replaced by one that can.
fn may_pass(error: &SandboxError) -> bool {
    use SandboxError::{Busy, Io, KeeperGone, NoAnswer, Path, Setup};
    matches!(error, Busy(_) | Io(..) | KeeperGone | NoAnswer(_) | Path { .. } | Setup(_))
}

/// Whether the keeper says that the program was never let go.
fn never_started(folder: &RunFolder) -> bool {
    let record = folder.exit_record().ok().flatten();
    record.is_some_and(|record| record.outcome == sandbox::Outcome::NotStarted)
}

fn start_failed(error: &SandboxError) -> Ending {
    match error {
        SandboxError::Refused(message) => Ending {
            state: RunState::Rejected,
            exit_code: None,
            signal: None,
            reason: Some("policy".into()),
            message: Some(message.clone()),
        },
        other => Ending::sandbox_failed(other.to_string()),
    }
}

fn mask_text(text: &str, masks: &[String]) -> String {
    if masks.is_empty() {
        return text.to_owned();
    }
    let mut masker = Masker::new();
    for value in masks {
        let _ = masker.add(value);
        // In JSON text the value stands with its escapes.
        if let Ok(quoted) = serde_json::to_string(value) {
            let _ = masker.add(&quoted[1..quoted.len() - 1]);
        }
    }
    let mut bytes = masker.push(text.as_bytes()).into_owned();
    bytes.extend(masker.finish());
    String::from_utf8_lossy(&bytes).into_owned()
}

fn memory_file(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek as _, Write as _};
    let mut file = std::fs::File::from(memfd_create(c"stdin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

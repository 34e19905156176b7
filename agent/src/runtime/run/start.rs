//! The beginning of a run: fetch what the order names, plan, build the sandbox and mark the start side by side, and
//! say the word "go".
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::wire::Refusal;
use sally_common::wire::order::{Content, Program, Task};
use sally_common::wire::record::RunState;
use sally_common::wire::report::News;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::files::{NOTE_FILE, RELEASED, remove_dir, write_fresh};
use super::follow::Live;
use super::secrets::{self, Opened, Sealed};
use super::{Admitted, Milestone, Run, Word};
use crate::runtime::blob;
use crate::runtime::outcome::Ending;
use crate::sandbox::{self, LauncherInfo, Plan, RunFolder, RunInputs, SandboxError, Script, Shape};
use crate::script;

/// How long processes that outlive the main one may go on, in milliseconds.
pub const EXIT_GRACE_MS: u64 = 250;

/// How long a start waits for a launcher or keeper that is away, and how long between two tries.
const START_LIMIT: Duration = Duration::from_secs(10);
const START_PAUSE: Duration = Duration::from_millis(50);

/// How often a sandbox may fail to be made before the run is told to fail: a keeper may have been killed.
const SETUP_TRIES: u32 = 3;

/// Why a run ends before it has begun.
pub(super) enum Stop {
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
    secrets: Opened,
    stdin: Option<Vec<u8>>,
}

impl Run {
    pub(super) async fn begin(&mut self, admitted: &Admitted, slot: u16) -> Result<Live, Stop> {
        let task = &admitted.order.task;
        let secrets = self.open_secrets(admitted)?;
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
        let shape = self.shape(&admitted.order.task).await?;
        let plan = self.plan(admitted, program, shape)?;
        let params = task.params.as_ref().map_or_else(Vec::new, |p| p.get().as_bytes().to_vec());
        self.note.slot = Some(slot);
        self.start(slot, &Inputs { plan, script, params, secrets, stdin }).await
    }

    /// Opens the secrets that are for this agent. Every one must open before anything is made.
    fn open_secrets(&mut self, admitted: &Admitted) -> Result<Opened, Stop> {
        let unreadable = |message| Stop::Refused(Refusal::SecretsUnreadable, message);
        let key = self.shared.config.key.public();
        let sealed = Sealed::of(&admitted.order, &admitted.signatures, key).map_err(unreadable)?;
        let Some(sealed) = sealed else { return Ok(Opened::new()) };
        let opened = sealed.open(&self.shared.curve).map_err(unreadable)?;
        self.masks = secrets::masks(&opened);
        secrets::check_masks(&self.masks).map_err(unreadable)?;
        self.note.sealed = Some(sealed);
        Ok(opened)
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
            self.bidden()?;
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
        // Dropping the word is the end of it. From here to the word itself nothing waits, so whatever reached this
        // agent before the start prevents it.
        self.bidden()?;
        // Whoever finds the folder without this knows that the word was never said.
        write_fresh(&dir.join(RELEASED), b"1").map_err(|e| Stop::GivenBack(e.to_string()))?;
        sally_common::fail::point("agent.go.before");
        // A keeper that died here shows in its events.
        go.release();
        self.tell(Milestone::Started(self.note.run.clone(), self.note.attempt)).await;
        sally_common::fail::point("agent.go.after");
        Ok(Live::begun(folder, events, &self.masks))
    }

    fn make_folder(
        &self,
        dir: &Path,
        inputs: &Inputs,
    ) -> Result<(RunFolder, sandbox::Handover), Box<dyn std::error::Error>> {
        // Left by a process that died before the mark: nothing ran from it.
        remove_dir(dir);
        let stdin = match &inputs.stdin {
            None => None,
            Some(bytes) => Some(memory_file(bytes)?),
        };
        let script = inputs.script.clone().map(Script::Bytes);
        let inputs =
            RunInputs { script, params: inputs.params.clone(), secrets: inputs.secrets.clone(), stdin };
        let (folder, handover) = match self.shared.take_spare() {
            Some(spare) => RunFolder::reuse(&spare, dir, inputs)?,
            None => RunFolder::create(dir, inputs)?,
        };
        let note = serde_json::to_vec(&self.note)?;
        write_fresh(&dir.join(NOTE_FILE), &note)?;
        Ok((folder, handover))
    }

    /// What the task's profile and account are on this host, if the policy allows them.
    async fn shape(&self, task: &Task) -> Result<Shape, Stop> {
        let refused = |message: String| Stop::Refused(Refusal::Policy, message);
        let (config, name, launcher) = (self.shared.policy(), &task.profile, &self.shared.launcher);
        if !config.profiles.contains(name) {
            let allowed: Vec<_> = config.profiles.iter().map(|p| p.as_str()).collect();
            return Err(refused(format!("profile {name} is not allowed here, only {}", allowed.join(", "))));
        }
        let mut info = launcher.info();
        let unknown = |info: &LauncherInfo| {
            info.allowed(name).is_err() || task.user.as_ref().is_some_and(|user| !info.users.contains(user))
        };
        if unknown(&info) {
            // Perhaps it was restarted since, with other profiles.
            info = launcher.refresh().await.map_err(Stop::ForNow)?;
        }
        let shape = info.allowed(name).map_err(refused)?;
        if let Some(user) = &task.user {
            let both = config.users.iter().filter(|user| info.users.contains(user)).map(String::as_str);
            let allowed: Vec<_> = both.collect();
            if !allowed.contains(&user.as_str()) {
                let who = if allowed.is_empty() {
                    "no account is".into()
                } else {
                    format!("only {}", allowed.join(", "))
                };
                return Err(refused(format!("running as {user} is not allowed here, {who}")));
            }
        }
        Ok(Shape { user: task.user.clone(), ..shape })
    }

    fn plan(&self, admitted: &Admitted, program: sandbox::Program, shape: Shape) -> Result<Plan, Stop> {
        let task = &admitted.order.task;
        let config = self.shared.policy();
        if task.keep && config.keep.run_bytes == 0 {
            let message =
                "this agent keeps no work folders ([keep] in agent.toml): leave out --keep".to_owned();
            return Err(Stop::Refused(Refusal::Policy, message));
        }
        let paths = self.shared.launcher.box_paths(shape.profile);
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
            let unknown = |_| {
                let shown = sally_common::name::show(name);
                Stop::Refused(Refusal::LayerMissing, format!("this agent knows no layer \"{shown}\""))
            };
            require.push(name.replace('-', "_").parse::<sandbox::Layer>().map_err(unknown)?);
        }
        let stream_bytes = script::ResultLimits::default().stream_bytes;
        Ok(Plan {
            v: sandbox::PLAN_VERSION,
            run: self.note.run.to_string(),
            attempt: self.note.attempt,
            profile: shape.profile,
            defined: shape.defined,
            user: shape.user,
            program,
            argv: task.args.clone(),
            env,
            timeout_ms: task.timeout_ms,
            grace_ms: task.grace_ms,
            exit_grace_ms: EXIT_GRACE_MS,
            limits: sandbox::Limits { result_bytes: stream_bytes, ..config.limits },
            keep_bytes: if task.keep { config.keep.run_bytes } else { 0 },
            require,
            destinations: None,
            terminal: false,
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
        let fetch = blob::fetch(&self.shared, &self.note, content.digest, content.bytes, pieces);
        let fetched = tokio::select! {
            fetched = fetch => fetched,
            stop = stopped(&mut self.words) => return Err(stop),
        };
        fetched.map_err(|problem| match problem {
            blob::Problem::Refused(reason, message) => Stop::Refused(reason, message),
            blob::Problem::Expired => {
                Stop::Refused(Refusal::Expired, "expired while its program was fetched".into())
            }
        })
    }

    /// Whether a word came that keeps the program from starting. Other words make no sense yet.
    fn bidden(&mut self) -> Result<(), Stop> {
        while let Ok(word) = self.words.try_recv() {
            if let Some(stop) = keeps_from_starting(word) {
                return Err(stop);
            }
        }
        Ok(())
    }
}

fn keeps_from_starting(word: Word) -> Option<Stop> {
    match word {
        Word::Cancel { .. } => Some(Stop::Failed(Ending::cancelled_before_start())),
        Word::Yield(why) => Some(Stop::GivenBack(why.to_owned())),
        _ => None,
    }
}

/// Waits for a word that keeps the program from starting.
async fn stopped(words: &mut mpsc::Receiver<Word>) -> Stop {
    while let Some(word) = words.recv().await {
        if let Some(stop) = keeps_from_starting(word) {
            return stop;
        }
    }
    // The loop is gone: this task ends with it.
    std::future::pending().await
}

/// Whether the launcher or keeper that could not do it may be replaced by one that can.
fn may_pass(error: &SandboxError) -> bool {
    use SandboxError::{Busy, Io, KeeperGone, NoAnswer, Path, Setup};
    matches!(error, Busy(_) | Io(..) | KeeperGone | NoAnswer(_) | Path { .. } | Setup(_))
}

/// What a run is that could not be started.
pub fn start_failed(error: &SandboxError) -> Ending {
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

fn memory_file(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek as _, Write as _};
    let mut file = std::fs::File::from(memfd_create(c"stdin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

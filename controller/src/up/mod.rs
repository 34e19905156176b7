//! `sally up`: broker, controller and agents on one host, each a supervised child.
//!
//! This file starts and stops them in order; [`identity`] makes their keys and files. Nothing is printed
//! here: the caller is told when all is ready.
#![forbid(unsafe_code)]

pub mod identity;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sally_common::name::{Agent, BadName, Zone};
use sally_common::nats::accounts::{Role, caller_inbox};
use sally_common::wire::api::{AgentPage, Call};
use sally_common::wire::record::AgentState;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::config::StoreLimits;
use crate::broker::find::{FindError, Search, find};
use crate::broker::process::{Broker, BrokerError, BrokerSettings};
use crate::broker::state::{StateDir, StateError, write_private};
use crate::client::{Client, ClientError};
use crate::context::{Context, ContextError, ContextFile, remember_last_up, write_context};
use crate::service::settings::Written;
use crate::supervise::output::Output;
use crate::supervise::{ChildEvent, ChildSpec, SuperviseError, Supervisor, leftover};
use identity::{AgentFiles, AgentPolicy, AgentShape, IdentityError};

/// How long everything may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How often the controller service may end before it is ready; after that waiting longer is no use.
const SERVE_DEATHS: u32 = 3;
/// How often it is asked whether all agents are there.
const READY_POLL: Duration = Duration::from_millis(25);
/// What a child's log may take on disk.
const LOG_BYTES: u64 = 4 * 1024 * 1024;
/// Time between TERM and KILL when `up` ends.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// User ids of slots, when `up` runs as root: far from accounts and from the ranges that containers use
/// (systemd's table of user ids calls 1879048192 to 2147352575 unused). Each folder has a range of its own in
/// it, so that two `up` on one host share no user id.
const UID_BASE: u32 = 1_900_000_000;
const UID_RANGES: u32 = 50_000;
const UID_RANGE: u32 = 4_096;
/// Seconds between heartbeats of local agents: short, so that a person sees a change soon.
const HEARTBEAT_S: u32 = 10;
/// Agents up to which each gets four slots; more get fewer, since each slot costs processes.
const FEW_AGENTS: u32 = 8;

/// What `up` is asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// Agents to start, `local-1` and so on.
    pub agents: u32,
    /// Their zone.
    pub zone: Zone,
    /// The nats-server program, if one was named.
    pub nats_server: Option<PathBuf>,
    /// Agents to prepare for being started by hand.
    pub prepare: Vec<Agent>,
    /// Where the broker listens; loopback unless agents elsewhere are to reach it.
    pub listen: IpAddr,
    /// Whether the agents' scripts may be root.
    pub allow_admin: bool,
    /// Accounts that they may run as.
    pub users: Vec<String>,
}

/// Why `up` cannot go on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum UpError {
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Name(#[from] BadName),
    #[error("cannot find the program sally-agent: it should stand beside {} or on PATH", .0.display())]
    NoAgentProgram(PathBuf),
    #[error("a child that an earlier `sally up` left behind cannot be ended: {0}")]
    Leftover(std::io::Error),
    #[error("the controller service does not start: {said}")]
    ServeFailed { said: String },
    #[error("not ready within {} s: {what}; see the logs in {}", READY_LIMIT.as_secs(), log.display())]
    NotReady { what: String, log: PathBuf },
}

/// What is running, for who waits for it.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The context file.
    pub context: PathBuf,
    /// The broker's address.
    pub url: String,
    /// The agents.
    pub agents: u32,
}

/// Where `up` keeps its things if nobody says otherwise.
pub fn default_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", "sally").map(|dirs| dirs.data_dir().join("up"))
}

/// Starts everything, says so, runs until `stop` is set, ends everything.
pub async fn run(
    settings: Settings,
    mut stop: watch::Receiver<bool>,
    ready: impl FnOnce(Ready),
) -> Result<(), UpError> {
    let server = find(&Search::from_process(settings.nats_server.clone())).await?;
    let program = agent_program()?;
    let state = StateDir::open(&settings.dir)?;
    let up = Up::start(&settings, &state, &server, &program).await?;
    let outcome = tokio::select! {
        outcome = up.wait_until_ready(&settings) => outcome,
        _ = stop.changed() => {
            up.stop().await;
            return Ok(());
        }
    };
    match outcome {
        Ok(told) => {
            remember_last_up(&told.context)?;
            ready(told);
            let _ = stop.changed().await;
            up.stop().await;
            Ok(())
        }
        Err(error) => {
            up.stop().await;
            Err(error)
        }
    }
}

/// `sally-agent` beside this program, or on the search path.
fn agent_program() -> Result<PathBuf, UpError> {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sally"));
    let beside = own.with_file_name("sally-agent");
    if beside.is_file() {
        return Ok(beside);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("sally-agent")).find(|p| p.is_file());
    found.ok_or(UpError::NoAgentProgram(beside))
}

struct Up {
    broker: Broker,
    serve: Supervisor,
    launchers: Vec<LauncherChild>,
    agents: Vec<Supervisor>,
    context: PathBuf,
    log: PathBuf,
    /// How often the controller service ended by itself.
    serve_deaths: Arc<AtomicU32>,
}

impl Up {
    async fn start(
        settings: &Settings,
        state: &StateDir,
        server: &crate::broker::find::NatsServer,
        program: &Path,
    ) -> Result<Up, UpError> {
        let now = u64::try_from(sally_common::clock::now_ms() / 1000).unwrap_or(0);
        let guard = std::env::current_exe().ok();
        let trust = state.trust("sally", &[settings.zone.as_str()], now)?;
        let broker_settings = BrokerSettings {
            server,
            state,
            trust: &trust,
            limits: StoreLimits::default(),
            listen: settings.listen,
            guard: guard.clone(),
            now,
        };
        let broker = Broker::start(broker_settings, |event| tell("nats-server", &event)).await?;
        let url = broker.url();

        let user = identity::user();
        let controller = identity::key(&state.keys().join("controller.seed"))?;
        let caller_seed = state.keys().join(format!("caller.{user}.seed"));
        let caller = identity::key(&caller_seed)?;
        let trust_list = identity::write_trust(state, &controller, &user, &caller)?;
        let controller_creds = state.issue(&trust, Role::Controller, now)?;
        state.issue(&trust, Role::Accounts, now)?;
        let caller_creds = state.issue(&trust, Role::Caller { name: user.as_str() }, now)?;

        let profiles_dir = state.root().join("profiles.d");
        let policy = AgentPolicy::read(profiles_dir, settings.allow_admin, settings.users.clone());
        // Agents that somebody else starts, perhaps elsewhere, have a policy of their own.
        let usual = AgentPolicy::default();
        let mut files = Vec::new();
        let slots = if settings.agents <= FEW_AGENTS { 4 } else { 2 };
        let local = (1..=settings.agents).map(|n| Agent::new(&format!("local-{n}")));
        let local = local.collect::<Result<Vec<_>, _>>()?;
        for (name, launcher) in
            local.into_iter().map(|n| (n, true)).chain(settings.prepare.iter().map(|n| (n.clone(), false)))
        {
            let role = Role::Agent { zone: settings.zone.as_str(), agent: name.as_str() };
            let creds = state.issue(&trust, role, now)?;
            let shape = AgentShape {
                zone: &settings.zone,
                name,
                url: &url,
                slots,
                heartbeat_s: HEARTBEAT_S,
                launcher,
                policy: if launcher { &policy } else { &usual },
            };
            files.push(identity::write_agent(state, &shape, &creds, &trust_list)?);
        }
        write_enrolled(state, &files)?;
        let serve_config = write_serve(state, &url, &controller_creds)?;
        let context = write_caller(state, &url, &caller_creds, &caller_seed, &user, &controller)?;

        let children = Children { state, guard };
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("sally"));
        let serve_args = ["serve".into(), "--config".into(), serve_config.into()];
        let (serve, serve_deaths) = children.start_counted("serve", &own, &serve_args).await?;
        let mut up = Up {
            broker,
            serve,
            launchers: Vec::new(),
            agents: Vec::new(),
            context,
            log: state.log(),
            serve_deaths,
        };
        for (n, files) in files.iter().filter(|f| f.socket.is_some()).enumerate() {
            let started = children.start_agent(program, files, &policy, n, slots).await;
            match started {
                Ok((launcher, agent)) => {
                    up.launchers.push(launcher);
                    up.agents.push(agent);
                }
                Err(error) => {
                    up.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(up)
    }

    /// Waits until the controller answers and every agent is there.
    async fn wait_until_ready(&self, settings: &Settings) -> Result<Ready, UpError> {
        let until = Instant::now() + READY_LIMIT;
        let context = Context::read(&self.context)?;
        let mut missing;
        loop {
            missing = match agents_missing(&context, settings).await {
                Ok(names) if names.is_empty() => {
                    return Ok(Ready {
                        context: self.context.clone(),
                        url: self.broker.url(),
                        agents: settings.agents,
                    });
                }
                Ok(names) => format!("no heartbeat from {}", names.join(", ")),
                Err(error) => error.to_string(),
            };
            if self.serve_deaths.load(Ordering::Relaxed) >= SERVE_DEATHS {
                return Err(UpError::ServeFailed { said: last_words(&self.log.join("serve.log")) });
            }
            if Instant::now() >= until {
                return Err(UpError::NotReady { what: missing, log: self.log.clone() });
            }
            // There is nothing to wait on: the children say nothing to us, the controller is asked.
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Ends everything: agents first, so that they can say goodbye, the broker last.
    async fn stop(self) {
        stop_all(self.agents).await;
        let mut stops = tokio::task::JoinSet::new();
        for launcher in self.launchers {
            stops.spawn(launcher.stop());
        }
        while stops.join_next().await.is_some() {}
        self.serve.stop().await;
        self.broker.stop().await;
    }
}

/// A supervised launcher.
struct LauncherChild {
    supervisor: Supervisor,
    program: PathBuf,
    args: Vec<std::ffi::OsString>,
}

impl LauncherChild {
    /// Ends it and what it runs. One that is dead at this moment, or had to be killed, cannot do that itself: the
    /// program is asked to end what such a launcher leaves.
    async fn stop(self) {
        let away = self.supervisor.pid().is_none();
        if !(self.supervisor.stop().await || away) {
            return;
        }
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.args).arg("--end-strays").stdin(std::process::Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(STOP_LIMIT * 2, command.status()).await {
            Ok(Ok(status)) if status.success() => {}
            outcome => tracing::warn!("runs of a dead launcher may still be there: {outcome:?}"),
        }
    }
}

async fn stop_all(children: Vec<Supervisor>) {
    let mut stops = tokio::task::JoinSet::new();
    for child in children {
        stops.spawn(child.stop());
    }
    while stops.join_next().await.is_some() {}
}

async fn agents_missing(context: &Context, settings: &Settings) -> Result<Vec<String>, ClientError> {
    let client = Client::connect(context).await?;
    let page: AgentPage = client.call(Call::Agents).await?;
    let states: BTreeMap<String, AgentState> =
        page.agents.into_iter().map(|a| (a.agent.to_string(), a.state)).collect();
    let local = (1..=settings.agents).map(|n| format!("local-{n}"));
    Ok(local.filter(|name| states.get(name) != Some(&AgentState::Online)).collect())
}

struct Children<'a> {
    state: &'a StateDir,
    guard: Option<PathBuf>,
}

impl Children<'_> {
    async fn start(
        &self,
        name: &str,
        program: &Path,
        args: &[std::ffi::OsString],
    ) -> Result<Supervisor, UpError> {
        Ok(self.start_counted(name, program, args).await?.0)
    }

    /// Starts a child; the number beside it is how often it has ended by itself.
    async fn start_counted(
        &self,
        name: &str,
        program: &Path,
        args: &[std::ffi::OsString],
    ) -> Result<(Supervisor, Arc<AtomicU32>), UpError> {
        let pid_file = self.state.run().join(format!("{name}.pid"));
        leftover::end(&pid_file, STOP_LIMIT).await.map_err(UpError::Leftover)?;
        let mut spec = ChildSpec::new(name, program);
        spec.args = args.to_vec();
        spec.output =
            Output::Log { path: self.state.log().join(format!("{name}.log")), max_bytes: LOG_BYTES };
        spec.pid_file = Some(pid_file);
        spec.guard.clone_from(&self.guard);
        spec.stop_limit = STOP_LIMIT;
        let told = name.to_owned();
        let deaths: Arc<AtomicU32> = Arc::default();
        let counted = deaths.clone();
        let supervisor = Supervisor::start(spec, move |event| {
            if matches!(event, ChildEvent::Died { .. }) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            tell(&told, &event);
        })?;
        Ok((supervisor, deaths))
    }

    async fn start_agent(
        &self,
        program: &Path,
        files: &AgentFiles,
        policy: &AgentPolicy,
        n: usize,
        slots: u16,
    ) -> Result<(LauncherChild, Supervisor), UpError> {
        let name = files.enrolled.agent.as_str();
        let uid_base = uid_base(self.state.root()) + u32::try_from(n).unwrap_or(0) * u32::from(slots);
        let socket = files.socket.clone().unwrap_or_else(|| files.dir.join("launcher.sock"));
        let mut args: Vec<std::ffi::OsString> = vec!["launcher".into(), "--socket".into(), socket.into()];
        args.extend(["--state".into(), files.dir.join("launcher").into()]);
        args.extend(["--slots".into(), slots.to_string().into(), "--stop-kills".into()]);
        args.extend(["--uid-base".into(), uid_base.to_string().into()]);
        args.extend(policy.launcher_args());
        let supervisor = self.start(&format!("{name}.launcher"), program, &args).await?;
        let launcher = LauncherChild { supervisor, program: program.to_owned(), args };
        let args = ["run".into(), "--config".into(), files.config.clone().into()];
        match self.start(name, program, &args).await {
            Ok(agent) => Ok((launcher, agent)),
            Err(error) => {
                launcher.stop().await;
                Err(error)
            }
        }
    }
}

/// The last line that a child wrote into its log, without the program's name.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    match line {
        Some(line) => line.strip_prefix("sally: ").unwrap_or(line).to_owned(),
        None => format!("it said nothing in {}", log.display()),
    }
}

/// Where the user ids of this folder's slots begin.
fn uid_base(root: &Path) -> u32 {
    let digest = sally_common::id::Digest::of(root.as_os_str().as_encoded_bytes());
    let [a, b, c, d, ..] = *digest.as_bytes();
    UID_BASE + u32::from_be_bytes([a, b, c, d]) % UID_RANGES * UID_RANGE
}

fn tell(name: &str, event: &ChildEvent) {
    match event {
        ChildEvent::Died { how, restart_in, .. } => {
            tracing::warn!("{name} ended ({how}); starting it again in {} ms", restart_in.as_millis());
        }
        ChildEvent::StartFailed { error, .. } => tracing::error!("{name} cannot be started: {error}"),
        ChildEvent::LogFailed { error } => tracing::warn!("the log of {name} cannot be written: {error}"),
        ChildEvent::Started { .. } | ChildEvent::Line(_) | ChildEvent::Stopped { .. } => {}
    }
}

/// Everyone who was ever enrolled here stays enrolled, whatever this `up` starts.
fn write_enrolled(state: &StateDir, files: &[AgentFiles]) -> Result<(), UpError> {
    let path = state.root().join("agents.json");
    let mut all: Vec<crate::service::settings::Enrolled> =
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    all.retain(|old| !files.iter().any(|f| f.enrolled.zone == old.zone && f.enrolled.agent == old.agent));
    // Local agents that this `up` does not start would only stand there as offline.
    all.retain(|old| !old.agent.as_str().starts_with("local-"));
    all.extend(files.iter().map(|f| f.enrolled.clone()));
    Ok(identity::write_json(&path, &all)?)
}

fn write_serve(state: &StateDir, url: &str, creds: &Path) -> Result<PathBuf, UpError> {
    let written = Written {
        url: url.to_owned(),
        creds: Some(creds.to_owned()),
        key: Some("keys/controller.seed".into()),
        trust: Some("trust.json".into()),
        agents: Some("agents.json".into()),
        issuer: Some("keys/issuer.json".into()),
        accounts_creds: Some("creds/accounts.creds".into()),
        data_dir: Some("controller".into()),
        prefix: None,
        ca_file: None,
        tls_first: false,
        bounds: crate::service::settings::Bounds::default(),
    };
    let path = state.root().join("serve.toml");
    let text = toml::to_string(&written).unwrap_or_default();
    write_private(&path, text.as_bytes())?;
    Ok(path)
}

fn write_caller(
    state: &StateDir,
    url: &str,
    creds: &Path,
    seed: &Path,
    user: &sally_common::name::User,
    controller: &sally_common::key::SigningKey,
) -> Result<PathBuf, UpError> {
    let path = state.context();
    let file = ContextFile {
        version: 1,
        url: url.to_owned(),
        creds: creds.to_owned(),
        signing_key: seed.to_owned(),
        user: user.clone(),
        prefix: None,
        controllers: vec![controller.public().clone()],
        inbox: Some(caller_inbox(user.as_str())),
        ca_file: None,
        tls_first: false,
    };
    write_context(&path, &file)?;
    Ok(path)
}

//! The broker of `sally up`: a supervised nats-server on a port, loopback unless asked otherwise, that is picked once.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sally_common::nats::accounts::Trust;
use serde::Deserialize;
use tokio::sync::watch;

use super::config::{self, ConfigError, ServerConfig, StoreLimits};
use super::find::NatsServer;
use super::port;
use super::state::{StateDir, StateError, write_private};
use crate::supervise::leftover;
use crate::supervise::{ChildEvent, ChildSpec, Output, SuperviseError, Supervisor};

/// How long the server may take to say its port; a large store is read first.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How often the ports file is looked for: nothing tells us.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How often another port is picked when somebody else took the one that was free.
const PORT_TRIES: u32 = 5;
/// The server writes its streams out at TERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What the server's log may take on disk.
const LOG_BYTES: u64 = 8 * 1024 * 1024;
/// How much of the log an error shows.
const LOG_TAIL_LINES: usize = 5;

/// What the broker is started with.
pub struct BrokerSettings<'a> {
    /// The program.
    pub server: &'a NatsServer,
    /// The folder.
    pub state: &'a StateDir,
    /// Accounts and users.
    pub trust: &'a Trust,
    /// What its store may take.
    pub limits: StoreLimits,
    /// The address it listens on; loopback unless agents elsewhere are to reach it.
    pub listen: IpAddr,
    /// See [`ChildSpec::guard`].
    pub guard: Option<PathBuf>,
    /// Seconds since 1970.
    pub now: u64,
}

/// A running broker. Dropped without [`Broker::stop`], it is killed.
pub struct Broker {
    supervisor: Supervisor,
    address: IpAddr,
    port: u16,
}

/// The broker did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its configuration cannot be made.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// It cannot be started.
    #[error(transparent)]
    Start(#[from] SuperviseError),
    /// One of an earlier `up` still runs and cannot be ended.
    #[error("a broker that an earlier `sally up` left behind cannot be ended: {0}")]
    Leftover(io::Error),
    /// It ended at once.
    #[error("nats-server ended at once ({how}); the end of {}:\n{tail}", log.display())]
    Died {
        /// How it ended.
        how: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It did not say its port.
    #[error("nats-server was not ready within {} s; the end of {}:\n{tail}", READY_LIMIT.as_secs(), log.display())]
    NotReady {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

impl Broker {
    /// Starts the server and waits until it takes connections. One that an earlier `up` on the same folder left behind
    /// is ended first. From then on it is restarted on the same port when it dies, so that clients find it again.
    ///
    /// `events` is called from the supervisor's task and must not block.
    ///
    /// # Errors
    /// [`BrokerError`]; nothing runs then.
    pub async fn start(
        settings: BrokerSettings<'_>,
        events: impl Fn(ChildEvent) + Send + Sync + 'static,
    ) -> Result<Self, BrokerError> {
        let state = settings.state;
        let pid_file = state.run().join("nats-server.pid");
        leftover::end(&pid_file, STOP_LIMIT).await.map_err(BrokerError::Leftover)?;
        remove_ports_files(&state.run())
            .map_err(|e| StateError::Unusable { path: state.run(), source: e })?;
        let port_file = state.root().join(PORT_FILE);
        let events: Events = Arc::new(events);
        let mut port = kept_port(&port_file, settings.listen).or_else(|| port::pick(settings.listen));
        let mut tries = PORT_TRIES;
        let (supervisor, port) = loop {
            write_config(&settings, port)?;
            let error = match launch(&settings, &pid_file, events.clone()).await {
                Ok(running) => break running,
                Err(error) => error,
            };
            tries -= 1;
            let was_taken = port.is_some_and(|port| !port::is_free(settings.listen, port));
            if tries == 0 || !was_taken {
                return Err(error);
            }
            // Somebody was quicker.
            port = port::pick(settings.listen);
        };
        write_private(&port_file, port.to_string().as_bytes())?;
        // A restart reads the file again and must come back where the clients look for it.
        write_config(&settings, Some(port))?;
        let any = settings.listen.is_unspecified();
        let address = if any { IpAddr::from([127, 0, 0, 1]) } else { settings.listen };
        Ok(Self { supervisor, address, port })
    }

    /// Where to connect.
    pub fn url(&self) -> String {
        format!("nats://{}", SocketAddr::new(self.address, self.port))
    }

    /// The port, the same for the life of this value.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id; `None` between a death and the next start.
    pub fn pid(&self) -> Option<u32> {
        self.supervisor.pid()
    }

    /// Ends the server: TERM, and KILL when it takes too long. Returns whether it had to be killed.
    pub async fn stop(self) -> bool {
        self.supervisor.stop().await
    }
}

type Events = Arc<dyn Fn(ChildEvent) + Send + Sync>;

/// Starts the server and waits until it takes connections. Returns at which port.
async fn launch(
    settings: &BrokerSettings<'_>,
    pid_file: &Path,
    events: Events,
) -> Result<(Supervisor, u16), BrokerError> {
    let state = settings.state;
    let log = state.log().join("nats-server.log");
    let mut spec = ChildSpec::new("nats-server", &settings.server.path);
    spec.args = vec!["-c".into(), state.nats_conf().into()];
    spec.output = Output::Log { path: log.clone(), max_bytes: LOG_BYTES };
    spec.pid_file = Some(pid_file.to_owned());
    spec.guard = settings.guard.clone();
    spec.stop_limit = STOP_LIMIT;

    let (deaths, mut death) = watch::channel(None);
    let supervisor = Supervisor::start(spec, move |event| {
        if let ChildEvent::Died { how, .. } = &event {
            deaths.send_replace(Some(how.clone()));
        }
        events(event);
    })?;
    let pid = supervisor.pid().unwrap_or_default();
    let run = state.run();
    let ready = tokio::select! {
        // A death is looked at first: the port of a dead server is worth nothing.
        biased;
        how = first_death(&mut death) => {
            Err(BrokerError::Died { how, log: log.clone(), tail: tail(&log) })
        }
        port = tokio::time::timeout(READY_LIMIT, port_of(&run, pid)) => {
            port.map_err(|_| BrokerError::NotReady { log: log.clone(), tail: tail(&log) })
        }
    };
    match ready {
        Ok(port) => Ok((supervisor, port)),
        Err(error) => {
            supervisor.stop().await;
            Err(error)
        }
    }
}

/// Where the port of the last start is kept: agents that were prepared for other hosts look for it there.
const PORT_FILE: &str = "nats-server.port";

/// The port of the last start, if it is free.
fn kept_port(file: &Path, listen: IpAddr) -> Option<u16> {
    let port: u16 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    port::is_free(listen, port).then_some(port)
}

fn write_config(settings: &BrokerSettings<'_>, port: Option<u16>) -> Result<(), BrokerError> {
    let state = settings.state;
    let text = ServerConfig {
        title: &["Written by `sally up` at every start; changes made here are lost."],
        name: "sally-up",
        listen: settings.listen,
        port,
        ports_dir: Some(&state.run()),
        store: Some((&state.jetstream(), settings.limits)),
        tls: None,
        websocket: None,
        leaf: None,
        remote: None,
        accounts: &config::accounts(settings.trust, &state.accounts(), settings.now)?,
    }
    .render()?;
    Ok(write_private(&state.nats_conf(), text.as_bytes())?)
}

async fn first_death(death: &mut watch::Receiver<Option<String>>) -> String {
    match death.wait_for(Option::is_some).await {
        Ok(how) => how.clone().unwrap_or_default(),
        Err(_) => "its supervisor is gone".to_owned(),
    }
}

#[derive(Deserialize)]
struct Ports {
    #[serde(default)]
    nats: Vec<String>,
}

/// Waits for the file in which the server says that it takes connections, and where.
async fn port_of(dir: &Path, pid: u32) -> u16 {
    let suffix = format!("_{pid}.ports");
    loop {
        if let Some(port) = read_port(dir, &suffix) {
            return port;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read_port(dir: &Path, suffix: &str) -> Option<u16> {
    let file = fs::read_dir(dir)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().ends_with(suffix))?;
    // Half a file is no JSON, and the next look sees the whole.
    let ports: Ports = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    ports.nats.iter().find_map(|url| url.rsplit_once(':')?.1.parse().ok())
}

/// A server that was killed leaves its file behind.
fn remove_ports_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "ports") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

//! Everything for a broker, a controller and a first caller, in one folder.
//!
//! ```text
//! DIR/admin/       keys from which all else is made: to be kept offline, needed to add a zone
//! DIR/broker/      for the host of the broker: nats.conf, accounts.conf, tls/
//! DIR/controller/  for the host of the controller: serve.toml with keys and credentials
//! DIR/caller/      for a person: context.toml with keys and credentials
//! DIR/zones/Z/     for a broker inside zone Z, if one is wanted (see [`super::zone`])
//! ```
//!
//! Doing it again makes what is missing and changes nothing else.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use sally_common::clock::now_ms;
use sally_common::name::{User, Zone};
use sally_common::nats::accounts::{Role, Trust, TrustError, caller_inbox};
use sally_common::trust::{Caller, TrustList};
use serde::{Deserialize, Serialize};

use super::folder::{Done, Folder, FolderError};
use super::tls::{self, TlsError};
use crate::broker::config::{ConfigError, ServerConfig, StoreLimits, TlsFiles, accounts};
use crate::broker::state::keep_trust;
use crate::context::ContextFile;
use crate::service::settings::{Bounds, Written};

/// The trust list holds ten years; it is renewed by writing another one.
const TRUST_LIFE_MS: i64 = 10 * 365 * 24 * 3600 * 1000;

/// What a broker is to be. It is kept, since what is added later must fit to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Names and addresses under which it is reached; the first stands in addresses that are written.
    pub hosts: Vec<String>,
    /// The address it listens on.
    pub listen: IpAddr,
    /// The port for everybody.
    pub port: u16,
    /// The port for WebSocket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket: Option<u16>,
    /// The port for brokers inside zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<u16>,
    /// First token of every subject.
    pub prefix: String,
    /// Where the folder `broker` will be on the broker's host; else where it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_dir: Option<PathBuf>,
    /// What streams in files may take, bytes.
    pub max_file_bytes: u64,
    /// The same in memory.
    pub max_memory_bytes: u64,
    /// The first caller.
    pub user: User,
    /// Whether the authority of its certificate is made here.
    pub own_authority: bool,
}

/// A certificate that is given.
#[derive(Debug, Clone)]
pub struct GivenTls {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Its authority, PEM, if it is none that systems trust.
    pub ca: Option<PathBuf>,
}

/// It cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum NatsError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not what `sally nats init` wrote: {problem}", path.display())]
    NotAPlan { path: PathBuf, problem: String },
    #[error(
        "{} holds a broker that was made otherwise: {was}; change its files by hand, or give another --dir", dir.display()
    )]
    Another { dir: PathBuf, was: String },
    #[error("{} holds no broker: make one with `sally nats init --dir` first", dir.display())]
    NoBroker { dir: PathBuf },
    #[error("\"{0}\" is no host's name or address")]
    NotAHost(String),
    #[error("{}", .0)]
    Usage(&'static str),
}

impl From<crate::broker::state::StateError> for NatsError {
    fn from(error: crate::broker::state::StateError) -> Self {
        Self::Folder(error.into())
    }
}

/// Where the plan is kept.
pub(super) const PLAN: &str = "admin/plan.toml";
/// Where the keys are kept.
pub(super) const KEYS: &str = "admin/broker.json";
/// The authority's key.
const AUTHORITY_KEY: &str = "admin/authority.key";

impl Plan {
    /// Where everybody connects to.
    pub fn url(&self) -> String {
        self.address(&self.hosts[0], self.port)
    }

    pub(super) fn address(&self, host: &str, port: u16) -> String {
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("tls://[{host}]:{port}"),
            _ => format!("tls://{host}:{port}"),
        }
    }

    pub(super) fn limits(&self) -> StoreLimits {
        StoreLimits { file_bytes: self.max_file_bytes, memory_bytes: self.max_memory_bytes }
    }

    fn check(&self) -> Result<(), NatsError> {
        if self.hosts.is_empty() {
            return Err(NatsError::Usage("no host: say under which name the broker is reached"));
        }
        if let Some(bad) = self.hosts.iter().find(|host| !tls::is_host(host)) {
            return Err(NatsError::NotAHost(sally_common::name::show(bad)));
        }
        if self.limits().file_bytes < StoreLimits::default().file_bytes / 2 {
            return Err(NatsError::Usage(
                "the broker needs 1 GiB for files: its stream alone may take 512 MiB",
            ));
        }
        let ports = [Some(self.port), self.websocket, self.leaf];
        let ports: Vec<u16> = ports.into_iter().flatten().collect();
        if (1..ports.len()).any(|n| ports[..n].contains(&ports[n])) {
            return Err(NatsError::Usage("two services of the broker have one port"));
        }
        Ok(())
    }
}

/// Reads the plan of a folder that holds a broker.
///
/// # Errors
/// When there is none.
pub(super) fn read_plan(dir: &Path) -> Result<Plan, NatsError> {
    let path = dir.join(PLAN);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(NatsError::NoBroker { dir: dir.to_owned() });
        }
        Err(source) => return Err(NatsError::Read { path, source }),
    };
    toml::from_str(&text).map_err(|e| NatsError::NotAPlan { path, problem: e.to_string().trim().to_owned() })
}

/// Makes everything, or what is missing of it. Returns what became of each file.
///
/// # Errors
/// [`NatsError`].
pub fn init(
    dir: &Path,
    plan: &Plan,
    zones: &[Zone],
    given: Option<&GivenTls>,
) -> Result<Vec<Done>, NatsError> {
    plan.check()?;
    let mut folder = Folder::open(dir)?;
    match read_plan(folder.root()) {
        Ok(found) if found == *plan => {}
        Ok(found) => {
            let was = format!("plan.toml in admin says {}", difference(&found, plan));
            return Err(NatsError::Another { dir: folder.root().to_owned(), was });
        }
        Err(NatsError::NoBroker { .. }) => {}
        Err(error) => return Err(error),
    }
    let now = u64::try_from(now_ms() / 1000).unwrap_or(0);
    let text = toml::to_string(plan).unwrap_or_default();
    folder.settle(PLAN, text.as_bytes())?;
    let zones: Vec<&str> = zones.iter().map(Zone::as_str).collect();
    let keys = folder.path(KEYS);
    let trust = keep_trust(&keys, &plan.prefix, &zones, now)?;
    certificate(&mut folder, plan, given)?;
    write_broker(&mut folder, plan, &trust, now)?;
    write_controller(&mut folder, plan, &trust, now)?;
    Ok(folder.done())
}

/// What of the plan is another one.
fn difference(found: &Plan, wanted: &Plan) -> String {
    let table = |plan: &Plan| toml::Table::try_from(plan).unwrap_or_default();
    let (found, wanted) = (table(found), table(wanted));
    let keys = found.keys().chain(wanted.keys().filter(|key| !found.contains_key(*key)));
    let differing = keys.filter(|key| found.get(*key) != wanted.get(*key));
    let said = differing.map(|key| match found.get(key) {
        Some(value) => format!("{key} = {value}"),
        None => format!("no {key}"),
    });
    said.collect::<Vec<_>>().join(", ")
}

/// Puts certificate and key into the broker's folder, and the authority where clients find it.
fn certificate(folder: &mut Folder, plan: &Plan, given: Option<&GivenTls>) -> Result<(), NatsError> {
    let read =
        |path: &Path| fs::read(path).map_err(|source| NatsError::Read { path: path.to_owned(), source });
    let mut authority = None;
    match given {
        Some(given) => {
            folder.once("broker/tls/server.pem", || read(&given.cert))?;
            folder.once("broker/tls/server.key", || read(&given.key))?;
            if let Some(ca) = &given.ca {
                authority = Some(read(ca)?);
            }
        }
        None => {
            let pem = own_certificate(folder, plan, "broker/tls", &plan.hosts)?;
            authority = Some(pem.into_bytes());
        }
    }
    for name in ["controller/ca.pem", "caller/ca.pem"] {
        if let Some(pem) = &authority {
            folder.follow(name, pem)?;
        }
    }
    Ok(())
}

/// Makes a key and a certificate of the own authority in a folder. Returns the authority's certificate.
pub(super) fn own_certificate(
    folder: &mut Folder,
    plan: &Plan,
    place: &str,
    hosts: &[String],
) -> Result<String, NatsError> {
    let text = |path: PathBuf| fs::read_to_string(&path).map_err(|source| NatsError::Read { path, source });
    let make = || Ok::<_, NatsError>(tls::key()?.into_bytes());
    let authority_key = text(folder.once(AUTHORITY_KEY, make)?)?;
    let name = &plan.hosts[0];
    let authority = folder.once("admin/authority.pem", || {
        Ok::<_, NatsError>(tls::authority(&authority_key, name)?.into_bytes())
    })?;
    let key = text(folder.once(&format!("{place}/server.key"), make)?)?;
    folder.once(&format!("{place}/server.pem"), || {
        Ok::<_, NatsError>(tls::server(&key, hosts, &authority_key, name)?.into_bytes())
    })?;
    text(authority)
}

/// The broker's configuration.
fn write_broker(folder: &mut Folder, plan: &Plan, trust: &Trust, now: u64) -> Result<(), NatsError> {
    let home = plan.broker_dir.clone().unwrap_or_else(|| folder.path("broker"));
    let (cert, key) = (home.join("tls/server.pem"), home.join("tls/server.key"));
    let text = ServerConfig {
        title: &[
            "Written by `sally nats init`, and never again: it is yours. Start it with",
            "    nats-server -c nats.conf",
            "as an account that may read this folder and write `jetstream` and `accounts` in it.",
        ],
        name: "sally",
        listen: plan.listen,
        port: Some(plan.port),
        ports_dir: None,
        store: Some((&home.join("jetstream"), plan.limits())),
        tls: Some(TlsFiles { cert: &cert, key: &key }),
        websocket: plan.websocket,
        leaf: plan.leaf,
        remote: None,
        accounts: "# Who is let in: written by `sally nats`, not to be changed.\ninclude \"accounts.conf\"\n",
    };
    folder.settle("broker/nats.conf", text.render()?.as_bytes())?;
    let text = accounts(trust, &home.join("accounts"), now)?;
    let title = "# Written by `sally nats init` and `sally nats zone add`; changes made here are lost.\n";
    folder.follow("broker/accounts.conf", format!("{title}{text}").as_bytes())?;
    Ok(())
}

/// What a controller and a first caller need.
fn write_controller(folder: &mut Folder, plan: &Plan, trust: &Trust, now: u64) -> Result<(), NatsError> {
    let user = plan.user.as_str();
    let controller = folder.signing_key("controller/controller.seed")?;
    let caller = folder.signing_key("caller/caller.seed")?;
    folder.creds("controller/controller.creds", trust, Role::Controller, now)?;
    folder.creds("controller/accounts.creds", trust, Role::Accounts, now)?;
    folder.creds("caller/caller.creds", trust, Role::Caller { name: user }, now)?;
    let issuer = serde_json::to_vec_pretty(&trust.issuer()?).unwrap_or_default();
    folder.follow("controller/issuer.json", &issuer)?;
    let list = TrustList {
        version: 1,
        expires_ms: now_ms() + TRUST_LIFE_MS,
        threshold: 1,
        controllers: vec![controller.public().clone()],
        callers: vec![Caller { name: plan.user.clone(), key: caller.public().clone() }],
    };
    let json = |value: serde_json::Result<Vec<u8>>| Ok::<_, FolderError>(value.unwrap_or_default());
    folder.once("controller/trust.json", || json(serde_json::to_vec_pretty(&list)))?;
    folder.once("controller/agents.json", || json(Ok(b"[]\n".to_vec())))?;

    let ca_file = folder.path("controller/ca.pem").exists().then(|| PathBuf::from("ca.pem"));
    let written = Written {
        url: plan.url(),
        tls_first: true,
        creds: Some("controller.creds".into()),
        key: Some("controller.seed".into()),
        trust: Some("trust.json".into()),
        agents: Some("agents.json".into()),
        issuer: Some("issuer.json".into()),
        accounts_creds: Some("accounts.creds".into()),
        data_dir: Some("data".into()),
        prefix: Some(plan.prefix.clone()),
        ca_file: ca_file.clone(),
        bounds: Bounds::default(),
    };
    folder.settle("controller/serve.toml", toml::to_string(&written).unwrap_or_default().as_bytes())?;
    let context = ContextFile {
        version: 1,
        url: plan.url(),
        creds: "caller.creds".into(),
        signing_key: "caller.seed".into(),
        user: plan.user.clone(),
        prefix: Some(plan.prefix.clone()),
        controllers: vec![controller.public().clone()],
        inbox: Some(caller_inbox(user)),
        ca_file,
        tls_first: true,
    };
    folder.settle("caller/context.toml", toml::to_string(&context).unwrap_or_default().as_bytes())?;
    Ok(())
}

/// What of the controller's and the broker's folder follows from the keys, after an account was added.
pub(super) fn write_accounts(
    folder: &mut Folder,
    plan: &Plan,
    trust: &Trust,
    now: u64,
) -> Result<(), NatsError> {
    write_broker(folder, plan, trust, now)?;
    let issuer = serde_json::to_vec_pretty(&trust.issuer()?).unwrap_or_default();
    folder.follow("controller/issuer.json", &issuer)?;
    Ok(())
}

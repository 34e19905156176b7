//! The identities of one `up`: made once, kept under its folder, written where each program reads them.

use std::fs;
use std::path::{Path, PathBuf};

use sally_common::clock::now_ms;
use sally_common::key::{KeyError, SigningKey};
use sally_common::name::{Agent, ProfileName, User, Zone};
use sally_common::nats::creds::Creds;
use sally_common::trust::{Caller, TrustList};

use crate::broker::state::{StateDir, StateError, write_private};
use crate::service::settings::Enrolled;

/// The trust list of an `up` lives as long as its folder may: ten years.
const TRUST_LIFE_MS: i64 = 10 * 365 * 24 * 3600 * 1000;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum IdentityError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("{0}; move the file away to have a new key made")]
    Key(#[from] KeyError),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
}

/// A signing key kept in this file; made if the file is not there.
pub fn key(path: &Path) -> Result<SigningKey, IdentityError> {
    if path.exists() {
        return Ok(SigningKey::read(path)?);
    }
    let key = SigningKey::generate();
    write_private(path, format!("{}\n", key.seed()).as_bytes())?;
    Ok(key)
}

/// The account's name as a user's name, or `operator` if it is none.
pub fn user() -> User {
    let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|u| u.name);
    let name = name.and_then(|n| User::new(&n.to_ascii_lowercase()).ok());
    #[expect(clippy::expect_used, reason = "the word is a name by the rules of names")]
    name.unwrap_or_else(|| User::new("operator").expect("a name"))
}

/// Writes the trust list that agents and controller pin.
pub fn write_trust(
    state: &StateDir,
    controller: &SigningKey,
    user: &User,
    caller: &SigningKey,
) -> Result<PathBuf, IdentityError> {
    let list = TrustList {
        version: 1,
        expires_ms: now_ms() + TRUST_LIFE_MS,
        threshold: 1,
        controllers: vec![controller.public().clone()],
        callers: vec![Caller { name: user.clone(), key: caller.public().clone() }],
    };
    let path = state.root().join("trust.json");
    write_json(&path, &list)?;
    Ok(path)
}

/// Writes a value as readable JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), IdentityError> {
    let text = serde_json::to_vec_pretty(value).unwrap_or_default();
    Ok(write_private(path, &text)?)
}

/// What an agent's programs are given.
pub struct AgentFiles {
    /// Who it is.
    pub enrolled: Enrolled,
    /// Its folder.
    pub dir: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Where it finds its launcher; `None` if it starts one itself.
    pub socket: Option<PathBuf>,
}

/// How an agent is to be.
pub struct AgentShape<'a> {
    /// Its zone.
    pub zone: &'a Zone,
    /// Its name.
    pub name: Agent,
    /// Where the broker is.
    pub url: &'a str,
    /// Runs at one time.
    pub slots: u16,
    /// Seconds between heartbeats.
    pub heartbeat_s: u32,
    /// Whether `up` runs its launcher.
    pub launcher: bool,
    /// What its scripts may be.
    pub policy: &'a AgentPolicy,
}

/// What scripts of the agents of `up` may be, for agent and launcher alike.
#[derive(Debug, Clone, Default)]
pub struct AgentPolicy {
    /// Where the operator's profiles are.
    pub profiles_dir: PathBuf,
    /// Their names.
    pub profiles: Vec<ProfileName>,
    /// Whether scripts may be root.
    pub admin: bool,
    /// Accounts that scripts may run as.
    pub users: Vec<String>,
}

impl AgentPolicy {
    /// The policy with every profile that has a file in the folder. What a file says is the launcher's to read.
    pub fn read(profiles_dir: PathBuf, admin: bool, users: Vec<String>) -> Self {
        let entries = fs::read_dir(&profiles_dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let name = entry.file_name();
            ProfileName::new(name.to_str()?.strip_suffix(".toml")?).ok()
        });
        let mut profiles: Vec<ProfileName> = names.filter(|name| !name.is_built_in()).collect();
        profiles.sort();
        AgentPolicy { profiles_dir, profiles, admin, users }
    }

    /// Every profile's name, as an agent's configuration has them.
    fn names(&self) -> Vec<&str> {
        let built_in = ["strict", "net", "host"].into_iter().chain(self.admin.then_some("admin"));
        built_in.chain(self.profiles.iter().map(ProfileName::as_str)).collect()
    }

    /// What a launcher is told of it.
    pub fn launcher_args(&self) -> Vec<std::ffi::OsString> {
        let mut args = vec!["--profiles-dir".into(), self.profiles_dir.clone().into()];
        if self.admin {
            args.extend(["--max-profile".into(), "admin".into()]);
        }
        args.extend(self.users.iter().flat_map(|user| ["--allow-user".into(), user.into()]));
        args
    }
}

/// Makes an agent's folder with its key and configuration. The creds file must be there.
pub fn write_agent(
    state: &StateDir,
    shape: &AgentShape<'_>,
    creds: &Path,
    trust: &Path,
) -> Result<AgentFiles, IdentityError> {
    let dir = state.root().join("agents").join(shape.name.as_str());
    fs::create_dir_all(&dir).map_err(|source| IdentityError::Write { path: dir.clone(), source })?;
    let own_key = key(&dir.join("agent.seed"))?;
    // Beside the configuration, so that the folder can be carried elsewhere as it is.
    let copy = |from: &Path, name: &str| {
        let to = dir.join(name);
        let bytes =
            fs::read(from).map_err(|source| IdentityError::Write { path: from.to_owned(), source })?;
        write_private(&to, &bytes).map_err(IdentityError::from)
    };
    copy(creds, "agent.creds")?;
    copy(trust, "trust.json")?;
    let socket = shape.launcher.then(|| socket_path(&dir));
    let mut config = toml::Table::new();
    let mut set = |name: &str, value: toml::Value| {
        config.insert(name.to_owned(), value);
    };
    set("name", shape.name.as_str().into());
    set("zone", shape.zone.as_str().into());
    set("url", shape.url.into());
    set("creds", "agent.creds".into());
    set("key", "agent.seed".into());
    set("trust", "trust.json".into());
    set("state_dir", "state".into());
    set("slots", i64::from(shape.slots).into());
    set("heartbeat_s", i64::from(shape.heartbeat_s).into());
    set("profiles", shape.policy.names().into());
    if !shape.policy.users.is_empty() {
        set("users", shape.policy.users.clone().into());
    }
    if let Some(socket) = &socket {
        set("launcher_socket", socket.to_string_lossy().into_owned().into());
    }
    let path = dir.join("agent.toml");
    write_private(&path, config.to_string().as_bytes())?;
    let user = Creds::read(creds).map_err(StateError::from)?.key().public_key();
    let enrolled = Enrolled {
        zone: shape.zone.clone(),
        agent: shape.name.clone(),
        key: own_key.public().clone(),
        user: Some(user),
    };
    Ok(AgentFiles { enrolled, dir, config: path, socket })
}

/// A unix socket's path has at most 107 bytes; in a deep folder it moves to the temporary folder.
fn socket_path(dir: &Path) -> PathBuf {
    let path = dir.join("launcher.sock");
    if path.as_os_str().len() <= 107 {
        return path;
    }
    let digest = sally_common::id::Digest::of(dir.as_os_str().as_encoded_bytes()).to_string();
    let short = std::env::temp_dir().join(format!("sally-{}", &digest[..16]));
    // If it cannot be made, binding fails and says where.
    let _ = fs::create_dir_all(&short);
    short.join("launcher.sock")
}

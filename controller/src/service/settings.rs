//! What the service is given: TOML in layers, checked whole. Its keys are in [`schema`].

pub mod schema;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use sally_common::key::{PublicKey, SigningKey};
use sally_common::name::{Agent, Zone};
use sally_common::nats::accounts::TrustSeeds;
use sally_common::settings::Problem;
use sally_common::settings::layers::{Layers, drop_in_dir};
use sally_common::subject::Prefix;
use sally_common::trust::TrustList;
use serde::{Deserialize, Serialize};

/// An agent that may speak, with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// Its key.
    pub key: PublicKey,
    /// The public key of its user at the broker, if it is known: it can be revoked there then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What is written, all layers joined.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Written {
    /// The broker.
    pub url: String,
    /// Creds file for the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds: Option<PathBuf>,
    /// Seed of the key that signs what the controller says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Trust list: who may submit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<PathBuf>,
    /// List of enrolled agents, JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<PathBuf>,
    /// What credentials of agents are issued and revoked with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<PathBuf>,
    /// Creds file for giving changed accounts to the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts_creds: Option<PathBuf>,
    /// Folder for ledger, blobs and logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// First token of every subject; `sally` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Certificates to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls_first: bool,
    /// How much is kept and how long.
    #[serde(default)]
    pub bounds: Bounds,
}

/// How much a controller keeps on its disk and how long; the oldest goes first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Days that jobs are kept after their end.
    pub jobs_days: u32,
    /// The ledger; beyond it ended jobs go before their days are over.
    pub ledger_bytes: u64,
    /// Days that output is kept.
    pub logs_days: u32,
    /// All output together.
    pub logs_bytes: u64,
    /// Days that programs and input are kept.
    pub blobs_days: u32,
    /// All programs and input together.
    pub blobs_bytes: u64,
}

impl Default for Bounds {
    /// 90 days and 8 GiB of jobs; 30 days and 16 GiB of output; 30 days and 4 GiB of programs.
    fn default() -> Self {
        let gib = 1024 * 1024 * 1024;
        Self {
            jobs_days: 90,
            ledger_bytes: 8 * gib,
            logs_days: 30,
            logs_bytes: 16 * gib,
            blobs_days: 30,
            blobs_bytes: 4 * gib,
        }
    }
}

/// The settings as the service uses them.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker.
    pub url: String,
    /// Creds file.
    pub creds: PathBuf,
    /// The signing key.
    pub key: SigningKey,
    /// Who may submit.
    pub trust: TrustList,
    /// Who may report.
    pub agents: Vec<Enrolled>,
    /// Folder for ledger, blobs and logs.
    pub data_dir: PathBuf,
    /// First token of every subject.
    pub prefix: Prefix,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    pub tls_first: bool,
    /// What credentials of agents are issued and revoked with, if this controller may.
    pub issuer: Option<TrustSeeds>,
    /// Creds file for giving changed accounts to the broker.
    pub accounts_creds: PathBuf,
    /// The files that all this was read from, this one first: a backup needs them.
    pub files: Vec<PathBuf>,
    /// How much is kept and how long.
    pub bounds: Bounds,
}

/// What is wrong with the settings: everything, in one go.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct SettingsError {
    path: String,
    /// Each problem.
    pub problems: Vec<Problem>,
}

/// What is written, layer by layer, with what is wrong in it by itself. Reads none of the files that it names.
#[must_use]
pub fn layers(path: &Path) -> Layers {
    read(path).0
}

fn read(path: &Path) -> (Layers, Written) {
    let mut layers = Layers::read(&schema::schema(), path, std::env::vars_os());
    let written = layers.table().try_into().unwrap_or_else(|error: toml::de::Error| {
        // The list of keys lets nothing through that does not fit; a test compares the two.
        layers.note("", format!("cannot be understood: {error}"));
        Written::default()
    });
    (layers, written)
}

/// Reads and checks the settings: the file, its drop-ins in `FILE.d`, and the environment of this process. Relative paths
/// are relative to the folder of the file.
///
/// # Errors
/// Everything that is wrong.
pub fn load(path: &Path) -> Result<Settings, SettingsError> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (mut layers, written) = read(&path);
    let base = path.parent().unwrap_or(Path::new("/"));
    let data_dir = base.join(written.data_dir.as_deref().unwrap_or(Path::new(schema::DATA_DIR)));
    let file = |configured: &Option<PathBuf>, name: &str| {
        configured.as_deref().map_or_else(|| data_dir.join(name), |path| base.join(path))
    };
    let (creds, key) = (file(&written.creds, schema::CREDS), file(&written.key, schema::KEY));
    let (trust, agents) = (file(&written.trust, schema::TRUST), file(&written.agents, schema::AGENTS));
    let ca_file = written.ca_file.as_ref().map(|path| base.join(path));

    let mut files = vec![path.clone()];
    files.extend(drop_ins(&path));
    files.extend([&key, &trust, &agents, &creds].map(Clone::clone));
    files.extend(ca_file.clone());
    let (issuer, accounts_creds) =
        (file(&written.issuer, schema::ISSUER), file(&written.accounts_creds, schema::ACCOUNTS_CREDS));
    files.extend([&issuer, &accounts_creds].into_iter().filter(|path| path.exists()).cloned());
    // A controller that may not issue has none, where none was named.
    let may_issue = written.issuer.is_some() || issuer.exists();

    let mut note = |key: &str, problem: String| layers.note(key, problem);
    let prefix = Prefix::new(written.prefix.as_deref().unwrap_or(schema::PREFIX));
    let prefix = prefix.map_err(|e| note("prefix", e.to_string())).ok();
    let key = SigningKey::read(&key).map_err(|e| note("key", e.to_string())).ok();
    let trust = read_json(&trust).map_err(|e| note("trust", e)).ok();
    let agents = read_json(&agents).map_err(|e| note("agents", e)).ok();
    let issuer = may_issue.then(|| read_json(&issuer).map_err(|e| note("issuer", e)).ok()).flatten();
    if data_dir.exists() && !data_dir.is_dir() {
        note("data_dir", format!("{} is no folder", data_dir.display()));
    }
    match (prefix, key, trust, agents) {
        (Some(prefix), Some(key), Some(trust), Some(agents)) if layers.problems.is_empty() => Ok(Settings {
            url: written.url,
            creds,
            key,
            trust,
            agents,
            data_dir,
            prefix,
            ca_file,
            tls_first: written.tls_first,
            issuer,
            accounts_creds,
            files,
            bounds: written.bounds,
        }),
        _ => Err(SettingsError { path: path.display().to_string(), problems: layers.problems }),
    }
}

/// The drop-ins that were read, for a backup.
fn drop_ins(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(drop_in_dir(path)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

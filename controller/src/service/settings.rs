//! What the service is given: one TOML file, checked whole.

use std::path::{Path, PathBuf};

use sally_common::key::{PublicKey, SigningKey};
use sally_common::name::{Agent, Zone};
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
}

/// The file as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// The broker.
    pub url: String,
    /// Creds file for the broker.
    pub creds: PathBuf,
    /// Seed of the key that signs what the controller says.
    pub key: PathBuf,
    /// Trust list: who may submit.
    pub trust: PathBuf,
    /// List of enrolled agents, JSON.
    pub agents: PathBuf,
    /// Folder for ledger, blobs and logs.
    pub data_dir: PathBuf,
    /// First token of every subject; `sally` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Certificates to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
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
    /// The files that all this was read from, this one first: a backup needs them.
    pub files: Vec<PathBuf>,
    /// How much is kept and how long.
    pub bounds: Bounds,
}

/// What is wrong with the settings: everything, in one go.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {}", problems.join("; "))]
pub struct SettingsError {
    path: String,
    problems: Vec<String>,
}

/// Reads and checks a settings file. Relative paths are relative to the file.
pub fn load(path: &Path) -> Result<Settings, SettingsError> {
    let fail = |problems: Vec<String>| SettingsError { path: path.display().to_string(), problems };
    let text = std::fs::read_to_string(path).map_err(|e| fail(vec![format!("cannot be read: {e}")]))?;
    let written: Written = toml::from_str(&text).map_err(|e| fail(vec![e.to_string().trim().to_owned()]))?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = base.parent().unwrap_or(Path::new("/")).to_owned();
    let mut problems = Vec::new();
    let prefix = written.prefix.as_deref().unwrap_or("sally");
    let prefix = Prefix::new(prefix).map_err(|e| problems.push(format!("prefix: {e}"))).ok();
    let key = SigningKey::read(&base.join(&written.key)).map_err(|e| problems.push(format!("key: {e}"))).ok();
    let trust = read_json(&base.join(&written.trust)).map_err(|e| problems.push(format!("trust: {e}"))).ok();
    let agents =
        read_json(&base.join(&written.agents)).map_err(|e| problems.push(format!("agents: {e}"))).ok();
    let data_dir = base.join(&written.data_dir);
    if let Err(e) = std::fs::create_dir_all(&data_dir) {
        problems.push(format!("data_dir: cannot make {}: {e}", data_dir.display()));
    }
    let mut files = vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())];
    files.extend([&written.key, &written.trust, &written.agents, &written.creds].map(|file| base.join(file)));
    files.extend(written.ca_file.as_ref().map(|file| base.join(file)));
    match (prefix, key, trust, agents) {
        (Some(prefix), Some(key), Some(trust), Some(agents)) if problems.is_empty() => Ok(Settings {
            url: written.url,
            creds: base.join(&written.creds),
            key,
            trust,
            agents,
            data_dir,
            prefix,
            ca_file: written.ca_file.map(|p| base.join(p)),
            files,
            bounds: written.bounds,
        }),
        _ => Err(fail(problems)),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
}

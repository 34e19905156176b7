//! The agent's configuration: one TOML file, checked whole before anything is connected.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sally_common::key::SigningKey;
use sally_common::name::{Agent, Zone};
use sally_common::selector::Labels;
use sally_common::subject::Prefix;
use sally_common::trust::TrustList;
use sally_common::wire::order::Profile;
use serde::Deserialize;

use crate::delivery::room::Storage;
use crate::sandbox::Limits;

/// Slots when none are configured: scripts mostly wait for something.
pub const DEFAULT_SLOTS: u16 = 4;
/// Most slots: each costs a process.
pub const MAX_SLOTS: u16 = 256;
/// Seconds between heartbeats when none are configured.
pub const DEFAULT_HEARTBEAT_S: u32 = 30;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    zone: String,
    url: String,
    creds: PathBuf,
    key: PathBuf,
    #[serde(default)]
    curve_key: Option<PathBuf>,
    trust: PathBuf,
    state_dir: PathBuf,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    slots: Option<u16>,
    #[serde(default)]
    profiles: Option<Vec<String>>,
    #[serde(default)]
    heartbeat_s: Option<u32>,
    #[serde(default)]
    launcher_socket: Option<PathBuf>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    tls_first: bool,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    script: WrittenScript,
    #[serde(default)]
    storage: WrittenStorage,
    #[serde(default)]
    limits: BTreeMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStorage {
    max_bytes: Option<u64>,
    min_free_bytes: Option<u64>,
    log_reserve_bytes: Option<u64>,
    spool_max_age_days: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenScript {
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// The configuration as the agent uses it: checked, paths absolute, keys read.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's name.
    pub name: Agent,
    /// Its zone.
    pub zone: Zone,
    /// The broker.
    pub url: String,
    /// The creds file for the broker.
    pub creds: PathBuf,
    /// The key that signs what the agent says.
    pub key: SigningKey,
    /// The file of the key that opens secrets; made at the first start.
    pub curve_key: PathBuf,
    /// Whom the agent believes.
    pub trust: TrustList,
    /// Where journal and run folders are.
    pub state_dir: PathBuf,
    /// First token of every subject.
    pub prefix: Prefix,
    /// Runs at the same time.
    pub slots: u16,
    /// Profiles that the policy allows.
    pub profiles: Vec<Profile>,
    /// Seconds between heartbeats.
    pub heartbeat_s: u32,
    /// The launcher's socket, and whether it was configured. If it was not, the agent starts a launcher itself.
    pub launcher_socket: PathBuf,
    /// Whether the launcher is somebody else's to start.
    pub launcher_is_external: bool,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    pub tls_first: bool,
    /// The agent's own labels.
    pub labels: Labels,
    /// Environment of every script.
    pub script_env: BTreeMap<String, String>,
    /// Bounds of what the agent keeps on disk.
    pub storage: Storage,
    /// How much every script may use.
    pub limits: Limits,
}

/// What is wrong with the configuration: everything, in one go.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {}", problems.join("; "))]
pub struct ConfigError {
    path: String,
    problems: Vec<String>,
}

/// Reads and checks a configuration file. Relative paths are relative to the file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let fail = |problems: Vec<String>| ConfigError { path: path.display().to_string(), problems };
    let written = read(path)?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = base.parent().unwrap_or(Path::new("/")).to_owned();
    check(written, &base).map_err(fail)
}

fn check(written: Written, base: &Path) -> Result<Config, Vec<String>> {
    let mut problems = Vec::new();
    let mut note = |key: &str, problem: String| problems.push(format!("{key}: {problem}"));

    let name = Agent::new(&written.name).map_err(|e| note("name", e.to_string())).ok();
    let zone = Zone::new(&written.zone).map_err(|e| note("zone", e.to_string())).ok();
    let prefix = Prefix::new(written.prefix.as_deref().unwrap_or("sally"));
    let prefix = prefix.map_err(|e| note("prefix", e.to_string())).ok();
    let key = SigningKey::read(&base.join(&written.key)).map_err(|e| note("key", e.to_string())).ok();
    let trust = read_trust(&base.join(&written.trust)).map_err(|e| note("trust", e)).ok();
    let profiles = profiles(&written, &mut note);
    let slots = written.slots.unwrap_or(DEFAULT_SLOTS);
    if !(1..=MAX_SLOTS).contains(&slots) {
        note("slots", format!("{slots} is not between 1 and {MAX_SLOTS}"));
    }
    let heartbeat_s = written.heartbeat_s.unwrap_or(DEFAULT_HEARTBEAT_S);
    if !(1..=3600).contains(&heartbeat_s) {
        note("heartbeat_s", format!("{heartbeat_s} is not between 1 and 3600 seconds"));
    }
    let storage = check_storage(&written.storage).map_err(|e| note("storage", e)).ok();
    let limits = limits(&written.limits, &mut note);
    let creds = base.join(&written.creds);
    if let Err(e) = std::fs::metadata(&creds) {
        note("creds", format!("cannot read {}: {e}", creds.display()));
    }
    let state_dir = base.join(&written.state_dir);
    let socket = written.launcher_socket.as_ref().map(|p| base.join(p));

    match (name, zone, prefix, key, trust, storage) {
        (Some(name), Some(zone), Some(prefix), Some(key), Some(trust), Some(storage))
            if problems.is_empty() =>
        {
            Ok(Config {
                name,
                zone,
                url: written.url,
                creds,
                key,
                curve_key: written
                    .curve_key
                    .map_or_else(|| state_dir.join("curve.seed"), |path| base.join(path)),
                trust,
                launcher_is_external: socket.is_some(),
                launcher_socket: socket.unwrap_or_else(|| state_dir.join("launcher.sock")),
                state_dir,
                prefix,
                slots,
                profiles,
                heartbeat_s,
                ca_file: written.ca_file.map(|p| base.join(p)),
                tls_first: written.tls_first,
                labels: written.labels,
                script_env: written.script.env,
                storage,
                limits,
            })
        }
        _ => Err(problems),
    }
}

fn check_storage(written: &WrittenStorage) -> Result<Storage, String> {
    let default = Storage::default();
    let storage = Storage {
        max_bytes: written.max_bytes.unwrap_or(default.max_bytes),
        min_free_bytes: written.min_free_bytes.unwrap_or(default.min_free_bytes),
        log_reserve_bytes: written.log_reserve_bytes.unwrap_or(default.log_reserve_bytes),
        spool_max_age_ms: written
            .spool_max_age_days
            .map_or(default.spool_max_age_ms, |days| i64::from(days) * 24 * 3600 * 1000),
    };
    if storage.max_bytes < storage.reserve() {
        return Err(format!(
            "max_bytes = {} has no room for one run, which reserves {}: log_reserve_bytes and 1 MiB for its result",
            storage.max_bytes,
            storage.reserve()
        ));
    }
    if storage.spool_max_age_ms == 0 {
        return Err("spool_max_age_days = 0 would keep no result".into());
    }
    Ok(storage)
}

/// What a configuration says about scripts, without the agent's keys.
#[derive(Debug, Clone)]
pub struct ScriptPolicy {
    /// The agent's name.
    pub name: Agent,
    /// Its zone.
    pub zone: Zone,
    /// Profiles that are allowed.
    pub profiles: Vec<Profile>,
    /// `[script.env]`.
    pub script_env: Vec<(String, String)>,
    /// `[limits]`.
    pub limits: Limits,
}

/// Reads the part of a configuration that is about scripts. Reads no keys, so anyone may who may read the file.
pub fn script_policy(path: &Path) -> Result<ScriptPolicy, ConfigError> {
    let fail = |problems: Vec<String>| ConfigError { path: path.display().to_string(), problems };
    let written = read(path)?;
    let mut problems = Vec::new();
    let mut note = |key: &str, problem: String| problems.push(format!("{key}: {problem}"));
    let name = Agent::new(&written.name).map_err(|e| note("name", e.to_string())).ok();
    let zone = Zone::new(&written.zone).map_err(|e| note("zone", e.to_string())).ok();
    let profiles = profiles(&written, &mut note);
    let limits = limits(&written.limits, &mut note);
    match (name, zone) {
        (Some(name), Some(zone)) if problems.is_empty() => Ok(ScriptPolicy {
            name,
            zone,
            profiles,
            script_env: written.script.env.into_iter().collect(),
            limits,
        }),
        _ => Err(fail(problems)),
    }
}

/// The files that a configuration names, whether they are there or not.
#[derive(Debug, Clone)]
pub struct Files {
    /// The key that signs.
    pub key: PathBuf,
    /// The broker's credentials.
    pub creds: PathBuf,
    /// The key that opens secrets.
    pub curve_key: PathBuf,
    /// The trust list.
    pub trust: PathBuf,
}

/// Which files a configuration names. Reads none of them.
pub fn files(path: &Path) -> Result<Files, ConfigError> {
    let written = read(path)?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let base = base.parent().unwrap_or(Path::new("/"));
    Ok(Files {
        key: base.join(&written.key),
        creds: base.join(&written.creds),
        curve_key: base.join(written.curve_key.unwrap_or_else(|| written.state_dir.join("curve.seed"))),
        trust: base.join(&written.trust),
    })
}

fn read(path: &Path) -> Result<Written, ConfigError> {
    let fail = |problem: String| ConfigError { path: path.display().to_string(), problems: vec![problem] };
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    toml::from_str(&text).map_err(|e| fail(e.to_string().trim().to_owned()))
}

/// Reads a configuration as far as it needs no other file. For the tests that throw any text at it (`fuzz/`).
#[doc(hidden)]
pub fn check_text(text: &str) -> Result<(Limits, Vec<Profile>), Vec<String>> {
    let written: Written = toml::from_str(text).map_err(|e| vec![e.to_string()])?;
    let mut problems = Vec::new();
    let mut note = |key: &str, problem: String| problems.push(format!("{key}: {problem}"));
    let profiles = profiles(&written, &mut note);
    let limits = limits(&written.limits, &mut note);
    if let Err(problem) = check_storage(&written.storage) {
        note("storage", problem);
    }
    if problems.is_empty() { Ok((limits, profiles)) } else { Err(problems) }
}

fn profiles(written: &Written, note: &mut impl FnMut(&str, String)) -> Vec<Profile> {
    match &written.profiles {
        None => vec![Profile::Strict],
        Some(words) => words
            .iter()
            .filter_map(|word| word.parse().map_err(|e: String| note("profiles", e)).ok())
            .collect(),
    }
}

/// The state folder that a configuration file names. Reads no keys, so anyone may who may read the file.
pub fn state_dir(path: &Path) -> Result<PathBuf, ConfigError> {
    #[derive(Deserialize)]
    struct Only {
        state_dir: PathBuf,
    }
    let fail = |problem: String| ConfigError { path: path.display().to_string(), problems: vec![problem] };
    let text = std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let only: Only = toml::from_str(&text).map_err(|e| fail(e.to_string().trim().to_owned()))?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(base.parent().unwrap_or(Path::new("/")).join(only.state_dir))
}

/// The usual limits with what is configured. Every one that is unknown, nothing or too much is noted.
fn limits(written: &BTreeMap<String, u64>, note: &mut impl FnMut(&str, String)) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in written {
        match limits.set(name, *value) {
            Ok(()) => {}
            Err(problem) => note("limits", problem),
        }
    }
    limits
}

fn read_trust(path: &Path) -> Result<TrustList, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("{} is not a trust list: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("a.creds", "");
        write("a.seed", &SigningKey::generate().seed());
        write("trust.json", r#"{"version":1,"expires_ms":1,"threshold":1,"controllers":[],"callers":[]}"#);
        write("agent.toml", text);
        load(&dir.path().join("agent.toml")).map_err(|e| e.to_string())
    }

    const GOOD: &str = r#"
name = "web-1"
zone = "dmz"
url = "nats://127.0.0.1:4222"
creds = "a.creds"
key = "a.seed"
trust = "trust.json"
state_dir = "state"
"#;

    #[test]
    fn a_short_file_has_tight_defaults() {
        let config = load_text(GOOD).expect("good");
        assert_eq!(config.profiles, [Profile::Strict]);
        assert_eq!(config.slots, DEFAULT_SLOTS);
        assert!(config.state_dir.is_absolute() && !config.launcher_is_external);
    }

    #[test]
    fn limits_are_set_by_name_and_checked() {
        let config = load_text(&format!("{GOOD}[limits]\nmemory_bytes = 4096\ncpu_ms = 9\n")).expect("good");
        let expected = Limits { memory_bytes: 4096, cpu_ms: 9, ..Limits::default() };
        assert_eq!(config.limits, expected);
        let text = format!("{GOOD}[limits]\nmemory = 1\nprocesses = 0\nopen_files = 70000\n");
        let error = load_text(&text).expect_err("bad");
        for part in ["no limit is called memory;", "processes = 0 is not between 1 and", "open_files = 70000"]
        {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let text =
            GOOD.replace("web-1", "Web 1").replace("a.seed", "none") + "slots = 0\nprofiles = [\"root\"]\n";
        let error = load_text(&text).expect_err("bad");
        for part in ["name: ", "key: ", "slots: 0", "no profile \"root\""] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn storage_has_defaults_and_is_checked() {
        assert_eq!(load_text(GOOD).expect("good").storage, Storage::default());
        let small = load_text(&format!("{GOOD}[storage]\nmax_bytes = 1000000\n")).expect_err("bad");
        assert!(small.contains("storage: max_bytes = 1000000 has no room for one run"), "{small}");
        let never = load_text(&format!("{GOOD}[storage]\nspool_max_age_days = 0\n")).expect_err("bad");
        assert!(never.contains("spool_max_age_days"), "{never}");
        let text = format!("{GOOD}[storage]\nmax_bytes = 200000000\nlog_reserve_bytes = 0\n");
        assert_eq!(load_text(&text).expect("good").storage.max_bytes, 200_000_000);
    }

    #[test]
    fn a_misspelt_key_is_named() {
        assert!(load_text(&format!("{GOOD}slot = 3\n")).expect_err("bad").contains("slot"));
    }
}

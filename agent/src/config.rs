//! The agent's configuration: TOML in layers, checked whole before anything is connected. Its keys are in [`schema`]; what needs
//! no keys and no other file is read in `parts`.
#![forbid(unsafe_code)]

mod parts;
pub mod schema;
#[cfg(test)]
mod schema_tests;

pub use parts::{Files, Places, ScriptPolicy, check_text, files, places, script_policy, state_dir};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sally_common::key::SigningKey;
use sally_common::name::{Agent, ProfileName, Zone};
use sally_common::selector::Labels;
use sally_common::settings::Problem;
use sally_common::settings::layers::Layers;
use sally_common::subject::Prefix;
use sally_common::trust::TrustList;
use sally_common::wire::order::is_account_name;
use serde::Deserialize;

use crate::delivery::room::Storage;
use crate::kept::KeepBounds;
use crate::sandbox::{Definitions, Limits};

/// Slots when none are configured: scripts mostly wait for something.
pub const DEFAULT_SLOTS: u16 = 4;
/// Most slots: each costs a process.
pub const MAX_SLOTS: u16 = 256;
/// Seconds between heartbeats when none are configured.
pub const DEFAULT_HEARTBEAT_S: u32 = 30;

/// What was written, all layers joined.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    creds: Option<PathBuf>,
    #[serde(default)]
    key: Option<PathBuf>,
    #[serde(default)]
    curve_key: Option<PathBuf>,
    #[serde(default)]
    trust: Option<PathBuf>,
    #[serde(default)]
    token_file: Option<PathBuf>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    slots: Option<u16>,
    #[serde(default)]
    profiles: Option<Vec<String>>,
    #[serde(default)]
    profiles_dir: Option<PathBuf>,
    #[serde(default)]
    users: Vec<String>,
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
    keep: WrittenKeep,
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
struct WrittenKeep {
    max_bytes: Option<u64>,
    run_bytes: Option<u64>,
    max_age_days: Option<u32>,
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
    pub profiles: Vec<ProfileName>,
    /// The folder of the operator's profiles. A launcher that somebody else starts has its own.
    pub profiles_dir: PathBuf,
    /// Accounts that a task may ask to run as.
    pub users: Vec<String>,
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
    /// Bounds of work folders that are kept.
    pub keep: KeepBounds,
    /// How much every script may use.
    pub limits: Limits,
}

/// What is wrong with the configuration: everything, in one go.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigError {
    path: String,
    /// Each problem.
    pub problems: Vec<Problem>,
}

/// The layers of a configuration, and what they say.
struct Read {
    layers: Layers,
    written: Written,
    path: PathBuf,
}

impl Read {
    /// A path of the configuration: relative ones are relative to the folder of the main file.
    fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }

    fn state_dir(&self) -> PathBuf {
        self.resolve(self.written.state_dir.as_deref().unwrap_or(Path::new(schema::STATE_DIR)))
    }

    /// A file that is in the state folder unless another place is configured.
    fn file(&self, configured: Option<&Path>, name: &str) -> PathBuf {
        configured.map_or_else(|| self.state_dir().join(name), |path| self.resolve(path))
    }

    /// The folder of the operator's profiles: beside the main file unless another place is configured.
    fn profiles_dir(&self) -> PathBuf {
        self.resolve(self.written.profiles_dir.as_deref().unwrap_or(Path::new(schema::PROFILES_DIR)))
    }

    fn files(&self) -> Files {
        let written = &self.written;
        Files {
            key: self.file(written.key.as_deref(), schema::KEY),
            creds: self.file(written.creds.as_deref(), schema::CREDS),
            curve_key: self.file(written.curve_key.as_deref(), schema::CURVE_KEY),
            trust: self.file(written.trust.as_deref(), schema::TRUST),
        }
    }

    fn error(self) -> ConfigError {
        ConfigError { path: self.path.display().to_string(), problems: self.layers.problems }
    }
}

/// Reads and checks a configuration: the file, its drop-ins in `FILE.d`, and the environment of this process.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let mut read = read(path);
    match check(&mut read) {
        Some(config) if read.layers.problems.is_empty() => Ok(config),
        _ => Err(read.error()),
    }
}

/// What is written, layer by layer, with what is wrong in it by itself. Reads none of the files that it names.
pub fn layers(path: &Path) -> Layers {
    read(path).layers
}

/// Checks what was read. Problems are noted in its layers; without any there is a configuration.
fn check(read: &mut Read) -> Option<Config> {
    let (files, state_dir, profiles_dir) = (read.files(), read.state_dir(), read.profiles_dir());
    let socket = read.written.launcher_socket.clone().map(|path| read.resolve(&path));
    let ca_file = read.written.ca_file.clone().map(|path| read.resolve(&path));
    let Read { layers, written, .. } = read;
    let mut note = |key: &str, problem: String| layers.note(key, problem);

    let name = Agent::new(&written.name).map_err(|e| note("name", e.to_string())).ok();
    let zone = Zone::new(&written.zone).map_err(|e| note("zone", e.to_string())).ok();
    let prefix = Prefix::new(written.prefix.as_deref().unwrap_or(schema::PREFIX));
    let prefix = prefix.map_err(|e| note("prefix", e.to_string())).ok();
    let key = SigningKey::read(&files.key).map_err(|e| note("key", e.to_string())).ok();
    let trust = read_trust(&files.trust).map_err(|e| note("trust", e)).ok();
    let (profiles, mut wrong) = profiles(written);
    if socket.is_none() {
        wrong.extend(check_definitions(&profiles, &profiles_dir, &mut note));
    }
    if !wrong.is_empty() {
        // A key has one place for what is wrong with it.
        note("profiles", wrong.join("; "));
    }
    let odd: Vec<_> = written.users.iter().filter(|user| !is_account_name(user)).collect();
    if !odd.is_empty() {
        let shown: Vec<_> =
            odd.iter().map(|user| format!("\"{}\"", sally_common::name::show(user))).collect();
        note("users", format!("{} cannot be the name of an account", shown.join(", ")));
    }
    let keep = check_keep(&written.keep, &mut note);
    let storage = check_storage(&written.storage).map_err(|(key, e)| note(key, e)).ok();
    let limits = limits(&written.limits, &mut note);
    if let Err(e) = std::fs::metadata(&files.creds) {
        note("creds", format!("cannot read {}: {e}", files.creds.display()));
    }
    Some(Config {
        name: name?,
        zone: zone?,
        url: written.url.clone(),
        creds: files.creds,
        key: key?,
        curve_key: files.curve_key,
        trust: trust?,
        launcher_is_external: socket.is_some(),
        launcher_socket: socket.unwrap_or_else(|| state_dir.join("launcher.sock")),
        state_dir,
        prefix: prefix?,
        slots: written.slots.unwrap_or(DEFAULT_SLOTS),
        profiles,
        profiles_dir,
        users: written.users.clone(),
        heartbeat_s: written.heartbeat_s.unwrap_or(DEFAULT_HEARTBEAT_S),
        ca_file,
        tls_first: written.tls_first,
        labels: written.labels.clone(),
        script_env: written.script.env.clone(),
        storage: storage?,
        keep,
        limits,
    })
}

/// The definitions that are allowed must be there and good. A launcher that somebody else starts has its own, which this
/// account may not be allowed to read.
fn check_definitions(
    profiles: &[ProfileName],
    dir: &Path,
    note: &mut impl FnMut(&str, String),
) -> Vec<String> {
    let definitions = Definitions::read(dir);
    if !definitions.problems.is_empty() {
        note("profiles_dir", definitions.problems.join("; "));
    }
    let named = profiles.iter().filter(|name| !name.is_built_in());
    named.filter_map(|name| definitions.get(name).err()).collect()
}

fn check_keep(written: &WrittenKeep, note: &mut impl FnMut(&str, String)) -> KeepBounds {
    let default = KeepBounds::default();
    let max_bytes = written.max_bytes.unwrap_or(default.max_bytes);
    let bounds = KeepBounds {
        max_bytes,
        // Whoever wants less of all wants less of each: only what was written can be wrong.
        run_bytes: written.run_bytes.unwrap_or(default.run_bytes.min(max_bytes)),
        max_age_ms: written
            .max_age_days
            .map_or(default.max_age_ms, |days| i64::from(days) * 24 * 3600 * 1000),
    };
    if bounds.run_bytes > bounds.max_bytes {
        let (run, max) = (bounds.run_bytes, bounds.max_bytes);
        note("keep.run_bytes", format!("{run} is more than max_bytes = {max}, the bound of all together"));
    }
    bounds
}

fn check_storage(written: &WrittenStorage) -> Result<Storage, (&'static str, String)> {
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
        let problem = format!(
            "{} has no room for one run, which reserves {}: log_reserve_bytes and 1 MiB for its result",
            storage.max_bytes,
            storage.reserve()
        );
        return Err(("storage.max_bytes", problem));
    }
    Ok(storage)
}

fn read(path: &Path) -> Read {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let layers = Layers::read(&schema::schema(), &path, std::env::vars_os());
    let first = of_layers(layers, path);
    // What enrolment wrote is in the state folder, which the other layers name.
    let enrolled = first.state_dir().join(schema::ENROLLED);
    if !enrolled.exists() {
        return first;
    }
    let environment = std::env::vars_os();
    let layers = Layers::read_above(&schema::schema(), Some(&enrolled), &first.path, environment);
    of_layers(layers, first.path)
}

fn of_layers(mut layers: Layers, path: PathBuf) -> Read {
    let written = layers.table().try_into().unwrap_or_else(|error: toml::de::Error| {
        // The list of keys lets nothing through that does not fit; a test compares the two.
        layers.note("", format!("cannot be understood: {error}"));
        Written::default()
    });
    Read { layers, written, path }
}

/// The names that are allowed, and what is wrong with the others.
fn profiles(written: &Written) -> (Vec<ProfileName>, Vec<String>) {
    let Some(words) = &written.profiles else { return (vec![ProfileName::default()], Vec::new()) };
    let (mut names, mut wrong) = (Vec::new(), Vec::new());
    for word in words {
        match ProfileName::new(word) {
            Ok(name) => names.push(name),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    (names, wrong)
}

/// The usual limits with what is configured. Every one that is unknown, nothing or too much is noted.
fn limits(written: &BTreeMap<String, u64>, note: &mut impl FnMut(&str, String)) -> Limits {
    let mut limits = Limits::default();
    for (name, value) in written {
        match limits.set(name, *value) {
            Ok(()) => {}
            Err(problem) => note(&format!("limits.{name}"), problem),
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

    pub(super) fn load_text(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("a.creds", "");
        write("a.seed", &SigningKey::generate().seed());
        write("trust.json", r#"{"version":1,"expires_ms":1,"threshold":1,"controllers":[],"callers":[]}"#);
        write("agent.toml", text);
        load(&dir.path().join("agent.toml")).map_err(|e| e.to_string())
    }

    pub(super) const GOOD: &str = r#"
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
        assert_eq!(config.profiles, [ProfileName::default()]);
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
        for part in [
            "limits.memory: is no key",
            "limits.processes: 0 is not between 1 and 16384 (",
            "limits.open_files: 70000 is not between",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn an_operators_profile_is_looked_for_beside_the_configuration() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("a.creds", "");
        write("a.seed", &SigningKey::generate().seed());
        write("trust.json", r#"{"version":1,"expires_ms":1,"threshold":1,"controllers":[],"callers":[]}"#);
        let more = "profiles = [\"strict\", \"slow\", \"bad\"]\nusers = [\"-x\"]\n[keep]\nrun_bytes = 2\nmax_bytes = 1\n";
        write("agent.toml", &format!("{GOOD}{more}"));
        std::fs::create_dir(dir.path().join("profiles.d")).expect("made");
        write("profiles.d/slow.toml", "base = \"strict\"\n[limits]\ncpu_percent = 10\n");
        write("profiles.d/bad.toml", "base = 1\nx = 2\n");
        let error = load(&dir.path().join("agent.toml")).expect_err("bad").to_string();
        for part in [
            "profile bad cannot be used",
            "base = 1: expected",
            "x = 2: expected",
            "\"-x\" cannot be",
            "keep.run_bytes: 2 is more",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!error.contains("slow"), "{error}");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let text = GOOD.replace("web-1", "Web 1").replace("a.seed", "none")
            + "slots = 0\nprofiles = [\"root\", \"A b\"]\n";
        let error = load_text(&text).expect_err("bad");
        for part in [
            "name: ",
            "key: ",
            "slots: 0 is not between 1 and 256",
            "there is no profile root",
            "\"A b\" is not a profile name",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn storage_has_defaults_and_is_checked() {
        assert_eq!(load_text(GOOD).expect("good").storage, Storage::default());
        let small = load_text(&format!("{GOOD}[storage]\nmax_bytes = 1000000\n")).expect_err("bad");
        assert!(small.contains("storage.max_bytes: 1000000 has no room for one run"), "{small}");
        let never = load_text(&format!("{GOOD}[storage]\nspool_max_age_days = 0\n")).expect_err("bad");
        assert!(never.contains("spool_max_age_days: 0 is not between 1"), "{never}");
        let text = format!("{GOOD}[storage]\nmax_bytes = 200000000\nlog_reserve_bytes = 0\n");
        assert_eq!(load_text(&text).expect("good").storage.max_bytes, 200_000_000);
    }

    #[test]
    fn a_misspelt_key_is_named() {
        assert!(load_text(&format!("{GOOD}slot = 3\n")).expect_err("bad").contains("did you mean slots?"));
    }
}

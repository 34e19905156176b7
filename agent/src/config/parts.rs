//! What others than the agent's service read of its configuration: no key and no credentials.
#![forbid(unsafe_code)]

use super::{ConfigError, Read, Written, check_storage, limits, profiles, read, schema};
use crate::sandbox::Limits;
use sally_common::name::{Agent, ProfileName, Zone};
use std::path::{Path, PathBuf};

/// What a configuration says about scripts, without the agent's keys.
#[derive(Debug, Clone)]
pub struct ScriptPolicy {
    /// The agent's name.
    pub name: Agent,
    /// Its zone.
    pub zone: Zone,
    /// Profiles that are allowed.
    pub profiles: Vec<ProfileName>,
    /// The folder of the operator's profiles.
    pub profiles_dir: PathBuf,
    /// Accounts that a task may ask to run as.
    pub users: Vec<String>,
    /// `[script.env]`.
    pub script_env: Vec<(String, String)>,
    /// `[limits]`.
    pub limits: Limits,
}

/// Reads the part of a configuration that is about scripts. Reads no keys, so anyone may who may read the file.
pub fn script_policy(path: &Path) -> Result<ScriptPolicy, ConfigError> {
    let mut read = read(path);
    let profiles_dir = read.profiles_dir();
    let Read { layers, written, .. } = &mut read;
    let mut note = |key: &str, problem: String| layers.note(key, problem);
    let name = Agent::new(&written.name).map_err(|e| note("name", e.to_string())).ok();
    let zone = Zone::new(&written.zone).map_err(|e| note("zone", e.to_string())).ok();
    let (profiles, wrong) = profiles(written);
    if !wrong.is_empty() {
        note("profiles", wrong.join("; "));
    }
    let limits = limits(&written.limits, &mut note);
    match (name, zone) {
        (Some(name), Some(zone)) if read.layers.problems.is_empty() => Ok(ScriptPolicy {
            name,
            zone,
            profiles,
            profiles_dir,
            users: read.written.users,
            script_env: read.written.script.env.into_iter().collect(),
            limits,
        }),
        _ => Err(read.error()),
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
    let read = read(path);
    if read.layers.problems.is_empty() { Ok(read.files()) } else { Err(read.error()) }
}

/// What enrolment needs to know: where its files go, and what is fixed already.
#[derive(Debug, Clone)]
pub struct Places {
    /// The state folder.
    pub state_dir: PathBuf,
    /// The seed that signs.
    pub key: PathBuf,
    /// The broker's credentials.
    pub creds: PathBuf,
    /// The trust list.
    pub trust: PathBuf,
    /// What enrolment writes for the configuration.
    pub enrolled: PathBuf,
    /// A token for the first start.
    pub token_file: PathBuf,
    /// The name, if it is configured.
    pub name: Option<String>,
    /// The zone, if it is configured.
    pub zone: Option<String>,
}

/// Reads as much of a configuration as enrolment needs: name, zone and address may be missing.
///
/// # Errors
/// When what is written is wrong.
pub fn places(path: &Path) -> Result<Places, ConfigError> {
    let mut read = read(path);
    let written = &read.written;
    let missing = [("name", &written.name), ("zone", &written.zone), ("url", &written.url)];
    let missing: Vec<&str> =
        missing.iter().filter(|(_, value)| value.is_empty()).map(|(key, _)| *key).collect();
    read.layers.problems.retain(|problem| !missing.contains(&problem.key.as_str()));
    if !read.layers.problems.is_empty() {
        return Err(read.error());
    }
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (files, state_dir) = (read.files(), read.state_dir());
    Ok(Places {
        enrolled: state_dir.join(schema::ENROLLED),
        token_file: read.file(read.written.token_file.as_deref(), schema::TOKEN_FILE),
        name: given(&read.written.name),
        zone: given(&read.written.zone),
        key: files.key,
        creds: files.creds,
        trust: files.trust,
        state_dir,
    })
}

/// Reads a configuration as far as it needs no other file. For the tests that throw any text at it (`fuzz/`).
#[doc(hidden)]
pub fn check_text(text: &str) -> Result<(Limits, Vec<ProfileName>), Vec<String>> {
    let written: Written = toml::from_str(text).map_err(|e| vec![e.to_string()])?;
    let mut problems = Vec::new();
    let mut note = |key: &str, problem: String| problems.push(format!("{key}: {problem}"));
    let (profiles, wrong) = profiles(&written);
    wrong.into_iter().for_each(|problem| note("profiles", problem));
    let limits = limits(&written.limits, &mut note);
    if let Err((key, problem)) = check_storage(&written.storage) {
        note(key, problem);
    }
    if problems.is_empty() { Ok((limits, profiles)) } else { Err(problems) }
}

/// The state folder that a configuration names. Reads no keys, so anyone may who may read the file. Other keys may be
/// wrong: who drains or looks is not kept from it.
pub fn state_dir(path: &Path) -> Result<PathBuf, ConfigError> {
    let mut read = read(path);
    read.layers.problems.retain(|problem| problem.key.is_empty() || problem.key == "state_dir");
    if read.layers.problems.is_empty() { Ok(read.state_dir()) } else { Err(read.error()) }
}

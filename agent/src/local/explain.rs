//! `sally-agent sandbox explain PROFILE`: what a script can do, for whoever answers for the host.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::PathBuf;

use nix::unistd::geteuid;
use sally_common::name::ProfileName;

use crate::config::{self, ConfigError};
use crate::sandbox::{
    BOX, BoxPaths, Definitions, Destination, Explained, Limits, Mode, PROFILES_DIR, Profile, UID_BASE,
    explain,
};

/// Options of `sally-agent sandbox explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// strict, net, host, admin, or one of --profiles-dir
    #[arg(value_name = "PROFILE")]
    pub profile: ProfileName,
    /// With this destination in place of the profile's network: HOST:PORT, ADDRESS:PORT or NETWORK:PORT; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    pub allow: Vec<Destination>,
    /// Take limits, profiles and the place of the box from this configuration; its keys are not read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the operator's profiles [default: that of the configuration, else /etc/sally/profiles.d]
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = super::Form::Table)]
    pub output: super::Form,
}

/// Why a profile cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such profile, or its definition cannot be used.
    #[error("{0}")]
    Profile(String),
}

/// Explains a profile as it is for a launcher of this account.
///
/// # Errors
/// The configuration cannot be read, or there is no such profile.
pub fn run(args: &ExplainArgs) -> Result<String, ExplainError> {
    let mode = if geteuid().is_root() { Mode::Root } else { Mode::User };
    let mut limits = Limits::default();
    let mut profiles_dir = PathBuf::from(PROFILES_DIR);
    if let Some(path) = &args.config {
        let policy = config::script_policy(path)?;
        (limits, profiles_dir) = (policy.limits, policy.profiles_dir);
    }
    let profiles_dir = args.profiles_dir.clone().unwrap_or(profiles_dir);
    let built_in: Option<Profile> = args.profile.as_str().parse().ok();
    let definition = match built_in {
        Some(_) => None,
        None => {
            let definitions = Definitions::read(&profiles_dir);
            Some(definitions.get(&args.profile).map_err(ExplainError::Profile)?.clone())
        }
    };
    let profile = built_in.or(definition.as_ref().map(|d| d.base)).unwrap_or(Profile::Strict);
    let mut place = PathBuf::from(BOX);
    if profile.sees_host() && mode == Mode::User {
        place = match &args.config {
            Some(path) => config::state_dir(path)?.join("launcher/box"),
            None => PathBuf::from("STATE/box"),
        };
    }
    limits.result_bytes = crate::script::ResultLimits::default().stream_bytes;
    let uid = if mode == Mode::Root { UID_BASE } else { geteuid().as_raw() };
    let allow = listed(&args.allow);
    let paths = BoxPaths::new(place);
    let explained = explain(profile, definition.as_deref(), allow.as_deref(), mode, uid, &paths, &limits);
    Ok(match args.output {
        super::Form::Table => as_text(&explained),
        // NOTE: structs of texts, numbers and maps with string keys always encode.
        super::Form::Json => format!("{}\n", serde_json::to_string_pretty(&explained).unwrap_or_default()),
    })
}

/// A list of destinations; `None` if none is given.
pub(super) fn listed(allow: &[Destination]) -> Option<Vec<Destination>> {
    (!allow.is_empty()).then(|| allow.to_vec())
}

fn as_text(explained: &Explained) -> String {
    let mode = if explained.mode == Mode::Root { "root" } else { "an ordinary user" };
    let base = explained.base.map(|base| format!(", which starts from {base}")).unwrap_or_default();
    let mut text = format!("profile {}{base}, launcher started as {mode}\n", explained.profile);
    for section in &explained.sections {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{}", section.title);
        for line in &section.lines {
            let _ = writeln!(text, "  - {line}");
        }
    }
    text
}

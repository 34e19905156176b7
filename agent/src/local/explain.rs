//! `sally-agent sandbox explain PROFILE`: what a script can do, for whoever answers for the host.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::path::PathBuf;

use nix::unistd::geteuid;

use crate::config::{self, ConfigError};
use crate::sandbox::{BOX, BoxPaths, Explained, Limits, Mode, Profile, UID_BASE, explain};

/// Options of `sally-agent sandbox explain`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// strict, net or host
    #[arg(value_name = "PROFILE")]
    pub profile: Profile,
    /// Take the limits and the place of the box from this configuration; its keys are not read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = super::Form::Table)]
    pub output: super::Form,
}

/// Explains a profile as it is for a launcher of this account.
///
/// # Errors
/// The configuration cannot be read.
pub fn run(args: &ExplainArgs) -> Result<String, ConfigError> {
    let mode = if geteuid().is_root() { Mode::Root } else { Mode::User };
    let (mut limits, mut place) = (Limits::default(), PathBuf::from(BOX));
    if args.profile == Profile::Host && mode == Mode::User {
        place = PathBuf::from("STATE/box");
    }
    if let Some(path) = &args.config {
        limits = config::script_policy(path)?.limits;
        if args.profile == Profile::Host && mode == Mode::User {
            place = config::state_dir(path)?.join("launcher/box");
        }
    }
    limits.result_bytes = crate::script::ResultLimits::default().stream_bytes;
    let uid = if mode == Mode::Root { UID_BASE } else { geteuid().as_raw() };
    let explained = explain(args.profile, mode, uid, &BoxPaths::new(place), &limits);
    Ok(match args.output {
        super::Form::Table => as_text(&explained),
        // NOTE: structs of texts, numbers and maps with string keys always encode.
        super::Form::Json => format!("{}\n", serde_json::to_string_pretty(&explained).unwrap_or_default()),
    })
}

fn as_text(explained: &Explained) -> String {
    let mode = if explained.mode == Mode::Root { "root" } else { "an ordinary user" };
    let mut text = format!("profile {}, launcher started as {mode}\n", explained.profile);
    for section in &explained.sections {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{}", section.title);
        for line in &section.lines {
            let _ = writeln!(text, "  - {line}");
        }
    }
    text
}

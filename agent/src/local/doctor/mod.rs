//! `sally-agent doctor`: what this host offers, what is missing, and the setting that would enable it.
//!
//! - [`profiles`]: a script that does nothing, in each profile, by a launcher of its own; what was really enforced.
//! - [`host`]: what the kernel and its settings say about it. Pure, from facts that were read before.
//! - [`setup`]: with a configuration: its files, folder, broker and launcher.
//!
//! What was tried decides; a setting is only the reason for what did not work.
#![forbid(unsafe_code)]

pub mod host;
pub mod profiles;
pub mod setup;

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use host::Facts;
use profiles::Trial;

/// Options of `sally-agent doctor`.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// Check this configuration too: its files, state folder, broker and launcher
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the operator's profiles [default: that of the configuration, else /etc/sally/profiles.d]
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = super::Form::Table)]
    pub output: super::Form,
}

/// How good or bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Pass,
    /// It works, with less than there could be.
    Warn,
    /// Something will not work.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How good or bad it is.
    pub level: Level,
    /// What was looked at.
    pub check: String,
    /// What was found.
    pub found: String,
    /// What to do about it; present unless it passed.
    pub next: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn pass(check: impl Into<String>, found: impl Into<String>) -> Self {
        Finding { level: Level::Pass, check: check.into(), found: found.into(), next: None }
    }

    /// It works with less.
    pub fn warn(check: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { level: Level::Warn, next: Some(next.into()), ..Self::pass(check, found) }
    }

    /// It does not work.
    pub fn fail(check: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Finding { level: Level::Fail, next: Some(next.into()), ..Self::pass(check, found) }
    }
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of this form.
    pub schema: u32,
    /// `root` or `user`.
    pub mode: &'static str,
    /// Whether nothing failed.
    pub ok: bool,
    /// Every line.
    pub checks: Vec<Finding>,
    /// What each profile gave.
    pub profiles: Vec<Trial>,
}

/// Looks at everything. To be called by the process's first thread.
pub async fn run(args: &DoctorArgs) -> Report {
    let facts = Facts::read();
    let (wanted, profiles_dir) = setup::wanted_profiles(args.config.as_deref());
    let profiles_dir = args.profiles_dir.clone().unwrap_or(profiles_dir);
    let (trials, mut checks) = profiles::try_all(&facts, &wanted, &profiles_dir).await;
    let works = trials.iter().any(|trial| trial.works);
    let mut all = host::findings(&facts, works);
    all.append(&mut checks);
    if let Some(path) = &args.config {
        all.extend(setup::findings(path).await);
    }
    Report {
        schema: 1,
        mode: if facts.root { "root" } else { "user" },
        ok: all.iter().all(|finding| finding.level < Level::Fail),
        checks: all,
        profiles: trials,
    }
}

impl Report {
    /// As one JSON object.
    pub fn as_json(&self) -> String {
        // NOTE: structs of texts, numbers and lists always encode.
        format!("{}\n", serde_json::to_string_pretty(self).unwrap_or_default())
    }

    /// For people: one line each, and under it what to do.
    pub fn as_text(&self) -> String {
        let mut text = String::new();
        let width = self.checks.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for Finding { level, check, found, next } in &self.checks {
            let word = match level {
                Level::Pass => "PASS",
                Level::Warn => "WARN",
                Level::Fail => "FAIL",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{word}  {check:<width$}  {found}");
            for line in next.iter().flat_map(|next| next.lines()) {
                let _ = writeln!(text, "      {:<width$}  → {line}", "");
            }
        }
        text
    }
}

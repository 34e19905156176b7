//! `sally backup` and `sally restore`: a controller's ledger, keys and settings in one file.

use std::path::PathBuf;

use clap::Args;

use super::{CliError, Exit, out};
use crate::backup::{self, BackupError, Manifest};

/// Write a controller's ledger, keys, settings, and the scripts of jobs that have not ended into one file, while it runs
///
///   sally backup /backup/sally-monday --dir ./try
///   sally backup /backup/sally-monday --data-dir /var/lib/sally
///
/// Whoever has the file has the keys: keep it as you keep those.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct BackupArgs {
    /// The file; one that is there is replaced when the new one is whole
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The folder of a `sally up`, or the data_dir of a `sally serve`
    #[arg(long, visible_alias = "data-dir", value_name = "DIR")]
    dir: PathBuf,
}

/// Put a backup into a folder, for a controller that is stopped
///
///   sally restore /backup/sally-monday --dir ./try
///
/// Everything is checked before anything is written. What agents still hold comes back when they ask.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to
    #[arg(long, visible_alias = "data-dir", value_name = "DIR")]
    dir: PathBuf,
    /// Replace ledger, keys and settings that are there
    #[arg(long)]
    force: bool,
}

pub(super) async fn backup(args: &BackupArgs) -> Result<Exit, CliError> {
    let manifest = backup::create(&args.dir, &args.file).await?;
    out::note(&format!("backed up {} into {}", what(&manifest), args.file.display()))?;
    if manifest.blobs_left_out > 0 {
        out::note(&format!(
            "{} scripts or inputs of jobs that have not ended are not in it, because together they are too large or cannot be \
             read: after a restore, runs that need them are refused",
            manifest.blobs_left_out
        ))?;
    }
    Ok(Exit::Success)
}

pub(super) fn restore(args: &RestoreArgs) -> Result<Exit, CliError> {
    let manifest = backup::restore(&args.file, &args.dir, args.force)?;
    out::note(&format!("restored {} into {}", what(&manifest), args.dir.display()))?;
    Ok(Exit::Success)
}

fn what(manifest: &Manifest) -> String {
    let bytes: u64 = manifest.files.iter().map(|f| f.bytes).sum();
    let made = super::table::local_time(&sally_common::clock::rfc3339(manifest.created_ms));
    format!("{} files, {bytes} bytes, as of {made},", manifest.files.len())
}

impl From<BackupError> for CliError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Io { .. } | BackupError::Ledger { .. } => Self::internal(error.to_string()),
            _ => Self::usage(error.to_string()),
        }
    }
}

//! `sally serve config`: what is wrong with the service's configuration, what counts and why, and every key there is.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sally_common::settings::{Problem, show};

use super::{CliError, Exit, out, text};
use crate::service::settings::{self, schema};

/// Verbs of `sally serve config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong with a configuration, the files that it names included; 2 if something is
    Check(File),
    /// What is written, and with --resolved every value that counts, each with where it comes from
    Show {
        #[allow(missing_docs, reason = "the arguments' own text is the help")]
        #[command(flatten)]
        file: File,
        /// Defaults too
        #[arg(long)]
        resolved: bool,
    },
    /// Every key as a JSON schema
    Schema,
    /// The commented file in which every default can be seen
    Default,
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct File {
    /// Configuration file; its drop-ins are FILE.d/*.toml
    #[arg(value_name = "FILE", default_value = "/etc/sally/serve.toml")]
    file: PathBuf,
}

/// Does what was asked.
pub(super) fn configuration(command: &ConfigCommand) -> Result<Exit, CliError> {
    match command {
        ConfigCommand::Check(File { file }) => {
            settings::load(file).map_err(|error| bad(file, &error.problems))?;
            out::data(format!("{}: nothing is wrong with it\n", file.display()).as_bytes())?;
        }
        ConfigCommand::Show { file: File { file }, resolved } => {
            let layers = settings::layers(file);
            out::data(show::values(&schema::schema(), &layers, *resolved).as_bytes())?;
            if !layers.problems.is_empty() {
                return Err(bad(file, &layers.problems));
            }
        }
        ConfigCommand::Schema => {
            out::data(format!("{:#}\n", show::json_schema(&schema::schema())).as_bytes())?;
        }
        ConfigCommand::Default => out::data(show::commented(&schema::schema()).as_bytes())?,
    }
    Ok(Exit::Success)
}

/// One problem a line.
fn bad(file: &Path, problems: &[Problem]) -> CliError {
    let count =
        if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    let lines = problems.iter().map(|problem| format!("\n  {}", text::sanitise(&problem.to_string())));
    CliError::usage(format!("{}: {count}{}", file.display(), lines.collect::<String>()))
}

//! `sally-agent config`: what is wrong with a configuration, what counts and why, and every key there is.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use sally_common::settings::{Problem, show as settings};

use super::show;
use crate::config::{self, schema};

/// Verbs of `sally-agent config`.
#[derive(Debug, clap::Subcommand)]
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
#[derive(Debug, clap::Args)]
pub struct File {
    /// Configuration file; its drop-ins are FILE.d/*.toml
    #[arg(value_name = "FILE", default_value = "/etc/sally/agent.toml")]
    file: PathBuf,
}

/// The exit code of a configuration with problems.
const BAD: u8 = 2;

/// Does what was asked, and says how it ended.
pub fn run(command: &ConfigCommand) -> u8 {
    // Whoever closed the pipe wants no more.
    match command {
        ConfigCommand::Check(File { file }) => match config::load(file) {
            Ok(config) => {
                let _ = show::text(&format!(
                    "{} is agent {}/{}: nothing is wrong with it\n",
                    file.display(),
                    config.zone,
                    config.name
                ));
                0
            }
            Err(error) => tell(file, &error.problems),
        },
        ConfigCommand::Show { file: File { file }, resolved } => {
            let layers = config::layers(file);
            let _ = show::text(&settings::values(&schema::schema(), &layers, *resolved));
            tell(file, &layers.problems)
        }
        ConfigCommand::Schema => {
            let _ = show::json(&format!("{:#}", settings::json_schema(&schema::schema())));
            0
        }
        ConfigCommand::Default => {
            let _ = show::text(&settings::commented(&schema::schema()));
            0
        }
    }
}

/// One problem a line, on standard error.
fn tell(file: &Path, problems: &[Problem]) -> u8 {
    let mut err = std::io::stderr().lock();
    for problem in problems {
        let text = sally_common::text::sanitise(&problem.to_string());
        let _ = writeln!(err, "{text}");
    }
    match problems.len() {
        0 => return 0,
        1 => drop(writeln!(err, "{}: 1 problem", file.display())),
        n => drop(writeln!(err, "{}: {n} problems", file.display())),
    }
    BAD
}

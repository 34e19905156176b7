//! `sally version`.

use clap::Args;
use serde_json::json;

use super::args::{Format, OutputArgs};
use super::{CliError, Exit, format, out};

/// How to print it.
#[derive(Debug, Args)]
pub struct VersionArgs {
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) fn version(args: &VersionArgs) -> Result<Exit, CliError> {
    let (version, wire) = (env!("CARGO_PKG_VERSION"), sally_common::wire::VERSION);
    let nats = sally_common::nats::version::OLDEST_SUPPORTED.to_string();
    let record = json!({"version": version, "wire": wire, "oldest_nats_server": nats});
    match args.format.output {
        Format::Json => out::json(&record)?,
        Format::Jsonl => out::json_line(&record)?,
        Format::Yaml => out::data(format::yaml(&record)?.as_bytes())?,
        Format::Csv => {
            out::data(format::csv(&["version", "wire", "oldest_nats_server"], &[record], &[])?.as_bytes())?;
        }
        Format::Name => out::data(format!("{version}\n").as_bytes())?,
        Format::Table | Format::Wide => out::data(format!("sally {version}\n").as_bytes())?,
    }
    Ok(Exit::Success)
}

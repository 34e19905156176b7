//! `sally context`: choose which controller commands speak to.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::{Format, OutputArgs};
use super::{CliError, Exit, Session, format, out, table};
use crate::context::{Listed, Store};

/// Choose which controller commands speak to.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List the stored contexts
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show the context that commands use, or the named one
    Show(ShowArgs),
    /// Use this context when nothing else is said
    Select {
        /// The context
        name: String,
    },
    /// Store a context file under a name
    ///
    /// For example: sally context add prod ./context.toml
    Add {
        /// The name to store it under
        name: String,
        /// The file; the credentials and keys that it names stay where they are
        file: PathBuf,
    },
    /// Remove a stored context; the credentials that it names stay
    Rm {
        /// The context
        name: String,
    },
}

/// How to list.
#[derive(Debug, Args)]
pub struct LsArgs {
    #[command(flatten)]
    format: OutputArgs,
}

/// Which one.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A name or the path of a context file
    #[arg(value_name = "NAME|PATH")]
    name: Option<String>,
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) fn context(session: &Session, command: ContextCommand) -> Result<Exit, CliError> {
    match command {
        ContextCommand::Ls(args) => list(&Store::of_user()?.list(), args.format.output)?,
        ContextCommand::Show(args) => {
            let asked = args.name.or(session.context.clone());
            show(&Session { context: asked }, args.format.output)?;
        }
        ContextCommand::Select { name } => {
            Store::of_user()?.select(&name)?;
            out::note(&format!("commands now use the context {name}"))?;
        }
        ContextCommand::Add { name, file } => {
            let path = Store::of_user()?.add(&name, &file)?;
            out::note(&format!("stored as {}; use it with: sally context select {name}", path.display()))?;
        }
        ContextCommand::Rm { name } => {
            Store::of_user()?.remove(&name)?;
            out::note(&format!("the context {name} is removed"))?;
        }
    }
    Ok(Exit::Success)
}

fn list(all: &[Listed], format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(&json!({ "contexts": all }))?,
        Format::Jsonl => all.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::data(format::yaml(&json!({ "contexts": all }))?.as_bytes())?,
        Format::Csv => out::data(format::csv(&["name", "selected", "path"], all, &[])?.as_bytes())?,
        Format::Name => all.iter().try_for_each(|l| out::data(format!("{}\n", l.name).as_bytes()))?,
        Format::Table | Format::Wide => {
            let row = |l: &Listed| {
                let mark = if l.selected { "*" } else { "" };
                vec![mark.to_owned(), l.name.clone(), l.path.display().to_string()]
            };
            let rows: Vec<Vec<String>> = all.iter().map(row).collect();
            out::styled(&table::table(&["", "NAME", "FILE"], &rows, None))?;
        }
    }
    Ok(())
}

/// Keys are named by their file; nothing secret is shown.
fn show(session: &Session, format: Format) -> Result<(), CliError> {
    let file = session.context()?.to_file();
    match format {
        Format::Json => out::json(&file)?,
        Format::Jsonl => out::json_line(&file)?,
        Format::Yaml => out::data(format::yaml(&file)?.as_bytes())?,
        Format::Csv => {
            let columns = ["url", "user", "prefix", "creds", "signing_key", "controllers"];
            out::data(format::csv(&columns, &[file], &[])?.as_bytes())?;
        }
        Format::Name => out::data(format!("{}\n", file.user).as_bytes())?,
        Format::Table | Format::Wide => {
            let text = toml::to_string(&file).map_err(|e| CliError::internal(e.to_string()))?;
            out::data(text.as_bytes())?;
        }
    }
    Ok(())
}

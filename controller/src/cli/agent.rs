//! `sally agent`: who is there.

use clap::Subcommand;
use sally_common::name::{Agent, Zone};
use sally_common::selector::pattern_matches;
use sally_common::wire::api::{AgentPage, Call};
use sally_common::wire::record::AgentRecord;
use serde_json::{Value, json};

use super::args::{Format, OutputArgs, TargetArgs};
use super::{CliError, Exit, Session, enroll, format, out, table, text, upkeep};

/// Look at agents, and decide what they are given.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// List agents, all of them unless targets are given
    ///
    /// For example: sally agent ls -z dmz -o wide
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about one agent
    Show(ShowArgs),
    /// List the work that waits for an agent, in the order in which it gets it
    ///
    /// For example: sally agent waiting dmz/web-1
    Waiting(upkeep::WaitingArgs),
    /// Cancel all work that waits for agents and has not started
    ///
    /// For example: sally agent purge -z dmz --yes. What runs goes on; `sally job cancel` ends it.
    Purge(upkeep::PurgeArgs),
    /// Give agents no new work: what runs is finished, the rest waits
    ///
    /// For example: sally agent drain -a 'web-*'
    Drain(upkeep::DrainArgs),
    /// Give drained agents work again
    Resume(upkeep::DrainArgs),
    /// Ask agents for a sign of life, all of them unless targets are given
    ///
    /// Prints how soon each answered and how far its clock is from the controller's. Exit code: 0 all answered, 5
    /// one did not.
    Ping(upkeep::PingArgs),
    /// Forget an agent that will not come back: the work that waits for it is cancelled
    Forget(upkeep::ForgetArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Enroll(enroll::EnrollArgs),
    /// Cut an agent off at once and for good: at the controller and at the broker
    ///
    /// Its name is free again; the host has to be enrolled anew, with another key.
    Revoke(enroll::RevokeArgs),
}

/// What to list.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    format: OutputArgs,
}

/// What to show.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// The agent: NAME or ZONE/NAME
    #[arg(value_name = "AGENT")]
    agent: String,
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) async fn agent(session: &Session, command: AgentCommand) -> Result<Exit, CliError> {
    match command {
        AgentCommand::Ls(args) => {
            let any = TargetArgs { all: true, ..TargetArgs::default() };
            let targets = if args.targets.is_empty() { any.targets()? } else { args.targets.targets()? };
            let mut agents = all(session).await?;
            agents.retain(|a| targets.matches(&a.zone, &a.agent, &a.labels));
            format::agents(&agents, args.format.output)?;
            if agents.is_empty() && args.format.output == Format::Table {
                out::note("no agent matches")?;
            }
        }
        AgentCommand::Show(args) => {
            let found = one(all(session).await?, &args.agent)?;
            match args.format.output {
                Format::Json => out::json(&found)?,
                Format::Table => out::styled(&show(&found))?,
                Format::Yaml => out::quoted(&format::yaml(&found)?)?,
                other => format::agents(&[found], other)?,
            }
        }
        AgentCommand::Waiting(args) => return upkeep::waiting(&session.connect().await?, &args).await,
        AgentCommand::Purge(args) => return upkeep::purge(&session.connect().await?, &args).await,
        AgentCommand::Drain(args) => return upkeep::drain(&session.connect().await?, &args, true).await,
        AgentCommand::Resume(args) => return upkeep::drain(&session.connect().await?, &args, false).await,
        AgentCommand::Ping(args) => return upkeep::ping(&session.connect().await?, &args).await,
        AgentCommand::Enroll(args) => return enroll::enroll(session, &args).await,
        AgentCommand::Revoke(args) => return enroll::revoke(session, &args).await,
        AgentCommand::Forget(args) => return upkeep::forget(&session.connect().await?, &args).await,
    }
    Ok(Exit::Success)
}

async fn all(session: &Session) -> Result<Vec<AgentRecord>, CliError> {
    let page: AgentPage = session.connect().await?.call(Call::Agents).await?;
    Ok(page.agents)
}

/// The one agent of this name. A literal name that nobody has is no target; in two zones it must say which.
pub(super) fn one(agents: Vec<AgentRecord>, name: &str) -> Result<AgentRecord, CliError> {
    let shown = sally_common::name::show(name);
    let is_literal = |name: &str| match name.split_once('/') {
        Some((zone, agent)) => Zone::new(zone).is_ok() && Agent::new(agent).is_ok(),
        None => Agent::new(name).is_ok(),
    };
    if !is_literal(name) {
        return Err(CliError::usage(format!("\"{shown}\" is not an agent's name: write NAME or ZONE/NAME")));
    }
    let mut found: Vec<AgentRecord> =
        agents.into_iter().filter(|a| pattern_matches(name, &a.zone, &a.agent)).collect();
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|a| format!("{}/{}", a.zone, a.agent)).collect();
        return Err(CliError::usage(format!("the agent \"{shown}\" is in two zones: {}", names.join(", ")))
            .hint("write ZONE/NAME"));
    }
    found.pop().ok_or_else(|| {
        CliError::new(Exit::NoTarget, format!("there is no agent \"{shown}\""))
            .hint("sally agent ls shows all")
    })
}

/// Each field on a line, under its name in the record.
fn show(agent: &AgentRecord) -> String {
    let fields = json!(agent);
    let row = |column: &&str| {
        let value = match &fields[*column] {
            Value::Null | Value::Bool(false) => return None,
            Value::String(text) if column.ends_with("_at") => table::local_time(text),
            Value::String(text) => text.clone(),
            Value::Object(map) if map.is_empty() => return None,
            Value::Object(map) => {
                let pairs = map
                    .iter()
                    .map(|(k, v)| format!("{k}={}", v.as_str().map_or(v.to_string(), str::to_owned)));
                pairs.collect::<Vec<_>>().join(", ")
            }
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        Some(vec![(*column).to_owned(), text::sanitise_line(&value)])
    };
    let rows: Vec<Vec<String>> = format::AGENT_COLUMNS.iter().filter_map(row).collect();
    table::table(&["FIELD", "VALUE"], &rows, None)
}

#[cfg(test)]
mod tests {
    use super::super::tests::agent as record;
    use super::*;

    #[test]
    fn a_name_is_one_agent_or_says_why_not() {
        let fleet = || vec![record("dmz", "web-1"), record("pay", "web-1"), record("pay", "db-1")];
        let exit = |name: &str| one(fleet(), name).map(|a| a.zone.to_string()).map_err(|e| e.exit.code());
        assert_eq!(exit("db-1"), Ok("pay".into()));
        assert_eq!(exit("dmz/web-1"), Ok("dmz".into()));
        assert_eq!(exit("web-1"), Err(2));
        assert_eq!(exit("web-2"), Err(4));
        assert_eq!(exit("web-*"), Err(2));
    }

    #[test]
    fn every_field_that_says_something_is_shown() {
        let text = show(&record("dmz", "web-1"));
        for part in ["agent", "web-1", "role=web", "strict, net", "last_seen_at"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("last_error"));
    }
}

//! The verbs of `sally agent` that look at waiting work or change what an agent is given.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use sally_common::selector::Targets;
use sally_common::wire::api::{AgentPage, Call, Drained, Ping, Pinged, Purged, RunPage, Target};
use sally_common::wire::record::{AgentRecord, RunRecord};
use serde::Serialize;
use serde_json::json;

use super::agent::one;
use super::args::{Format, OutputArgs, TargetArgs};
use super::{CliError, Exit, duration, fold, format, out, table, text};
use crate::client::Client;

/// Runs that one question brings.
const PAGE: u32 = 500;
/// The longest that `ping` may wait: below the patience of a call.
const PING_LONGEST: Duration = Duration::from_secs(8);

/// Whose waiting work.
#[derive(Debug, Args)]
pub struct WaitingArgs {
    /// The agent: NAME or ZONE/NAME
    #[arg(value_name = "AGENT")]
    agent: String,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[command(flatten)]
    format: OutputArgs,
}

/// Which agents, and whether to ask first.
#[derive(Debug, Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    targets: TargetArgs,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    format: OutputArgs,
}

/// Which agents.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    format: OutputArgs,
}

/// Which agents, and how long to wait for them.
#[derive(Debug, Args)]
pub struct PingArgs {
    #[command(flatten)]
    targets: TargetArgs,
    /// How long to wait for answers, at most 8s
    #[arg(long, value_name = "DUR", default_value = "2s", value_parser = duration::parse_positive)]
    wait: Duration,
    #[command(flatten)]
    format: OutputArgs,
}

/// Whom to forget.
#[derive(Debug, Args)]
pub struct ForgetArgs {
    /// The agent: NAME or ZONE/NAME
    #[arg(value_name = "AGENT")]
    agent: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) async fn agents(client: &Client) -> Result<Vec<AgentRecord>, CliError> {
    let page: AgentPage = client.call(Call::Agents).await?;
    Ok(page.agents)
}

/// Lists what waits for an agent, in the order in which it will get it.
pub(super) async fn waiting(client: &Client, args: &WaitingArgs) -> Result<Exit, CliError> {
    let AgentRecord { zone, agent, .. } = one(agents(client).await?, &args.agent)?;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let (mut runs, mut from): (Vec<RunRecord>, u32) = (Vec::new(), 0);
    let more = loop {
        let limit = PAGE.min(u32::try_from(wanted - runs.len()).unwrap_or(PAGE));
        let call = Call::Waiting { zone: zone.clone(), agent: agent.clone(), from, limit };
        let page: RunPage = client.call(call).await?;
        runs.extend(page.runs);
        runs.truncate(wanted);
        match page.next {
            Some(next) if next > from && runs.len() < wanted => from = next,
            next => break next.is_some(),
        }
    };
    format::waiting(&runs, args.format.output)?;
    if args.format.output == Format::Table {
        if runs.is_empty() {
            out::note(&format!("nothing waits for {zone}/{agent}"))?;
        } else if more {
            out::note(&format!("there is more: sally agent waiting {zone}/{agent} -n {}", wanted * 10))?;
        }
    }
    Ok(Exit::Success)
}

/// Cancels what waits for agents.
pub(super) async fn purge(client: &Client, args: &PurgeArgs) -> Result<Exit, CliError> {
    let targets = args.targets.targets()?;
    if !args.yes {
        let all = agents(client).await?;
        let meant: Vec<&AgentRecord> =
            all.iter().filter(|a| targets.matches(&a.zone, &a.agent, &a.labels)).collect();
        let names: Vec<(&str, &str)> = meant.iter().map(|a| (a.zone.as_str(), a.agent.as_str())).collect();
        let waiting: u64 = meant.iter().map(|a| a.waiting).sum();
        if !names.is_empty() {
            let what =
                format!("{} wait for {} and will be cancelled", runs(waiting), fold::compress(&names, true));
            confirm(&what)?;
        }
    }
    let purged: Purged = client.call(Call::Purge { targets }).await?;
    show_purged(&purged, args.format.output, "cancelled that waited for")
}

/// Forgets an agent that will not come back.
pub(super) async fn forget(client: &Client, args: &ForgetArgs) -> Result<Exit, CliError> {
    let AgentRecord { zone, agent, waiting, .. } = one(agents(client).await?, &args.agent)?;
    if !args.yes {
        confirm(&format!(
            "{zone}/{agent} will be forgotten; {} wait for it and will be cancelled",
            runs(waiting)
        ))?;
    }
    let purged: Purged = client.call(Call::Forget { zone, agent }).await?;
    show_purged(&purged, args.format.output, "cancelled; forgotten:")
}

fn show_purged(purged: &Purged, format: Format, done: &str) -> Result<Exit, CliError> {
    match format {
        Format::Table | Format::Wide => {
            out::note(&format!("{} {done} {}", runs(purged.runs), names(&purged.agents)))?;
        }
        Format::Csv | Format::Name => print_targets(&purged.agents, format)?,
        other => print(purged, other)?,
    }
    Ok(Exit::Success)
}

/// Gives agents no new work, or gives it again.
pub(super) async fn drain(client: &Client, args: &DrainArgs, drain: bool) -> Result<Exit, CliError> {
    let targets = args.targets.targets()?;
    let drained: Drained = client.call(Call::Drain { targets, drain }).await?;
    let names = names(&drained.agents);
    match args.format.output {
        Format::Table | Format::Wide if drain => {
            out::note(&format!(
                "drained: {names}\nwhat runs is finished, new work waits: sally agent resume"
            ))?;
        }
        Format::Table | Format::Wide => out::note(&format!("taking work again: {names}"))?,
        Format::Csv | Format::Name => print_targets(&drained.agents, args.format.output)?,
        other => print(&drained, other)?,
    }
    Ok(Exit::Success)
}

/// Asks agents for a sign of life.
pub(super) async fn ping(client: &Client, args: &PingArgs) -> Result<Exit, CliError> {
    if args.wait > PING_LONGEST {
        return Err(CliError::usage("--wait of a ping is at most 8s"));
    }
    let targets = match args.targets.is_empty() {
        true => Targets { all: true, ..Targets::default() },
        false => args.targets.targets()?,
    };
    let call = Call::Ping { targets, wait_ms: duration::ms(args.wait) };
    let pinged: Pinged = client.call(call).await?;
    let silent: Vec<(&str, &str)> = pinged
        .agents
        .iter()
        .filter(|p| p.rtt_ms.is_none())
        .map(|p| (p.zone.as_str(), p.agent.as_str()))
        .collect();
    match args.format.output {
        Format::Table | Format::Wide => out::styled(&ping_table(&pinged.agents))?,
        Format::Name => {
            let line = |p: &Ping| format!("{}/{}\n", p.zone, p.agent);
            out::data(pinged.agents.iter().map(line).collect::<String>().as_bytes())?;
        }
        Format::Csv => {
            let columns = ["zone", "agent", "rtt_ms", "skew_ms"];
            out::data(format::csv(&columns, &pinged.agents, &[])?.as_bytes())?;
        }
        Format::Jsonl => pinged.agents.iter().try_for_each(out::json_line)?,
        other => print(&pinged, other)?,
    }
    if silent.is_empty() {
        return Ok(Exit::Success);
    }
    out::note(&format!(
        "no answer within {}: {}",
        duration::show(duration::ms(args.wait)),
        fold::compress(&silent, true)
    ))?;
    Ok(Exit::RunMissing)
}

fn ping_table(pings: &[Ping]) -> String {
    let row = |p: &Ping| {
        let rtt = p.rtt_ms.map_or("no answer".into(), |ms| format!("{ms:.1}ms"));
        let skew = p.skew_ms.map(|ms| format!("{ms:+}ms")).unwrap_or_default();
        vec![p.agent.to_string(), p.zone.to_string(), rtt, skew]
    };
    table::table(&["AGENT", "ZONE", "ANSWERED IN", "CLOCK"], &pings.iter().map(row).collect::<Vec<_>>(), None)
}

/// Asks before something is undone that cannot be brought back. Where nobody can be asked, `--yes` has to say it.
pub(super) fn confirm(what: &str) -> Result<(), CliError> {
    if !(std::io::stdin().is_terminal() && out::error_is_terminal()) {
        return Err(CliError::usage(format!("nothing was done: {what}")).hint("add --yes to do it"));
    }
    out::error_styled(&format!("{}. Go on? [y/N] ", text::sanitise(what)))?;
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::usage("nothing was done")),
    }
}

fn runs(count: u64) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

fn names(targets: &[Target]) -> String {
    let names: Vec<(&str, &str)> = targets.iter().map(|t| (t.zone.as_str(), t.agent.as_str())).collect();
    fold::compress(&names, true)
}

fn print_targets(targets: &[Target], format: Format) -> Result<(), CliError> {
    match format {
        Format::Csv => out::data(format::csv(&["zone", "agent", "online"], targets, &[])?.as_bytes())?,
        _ => targets.iter().try_for_each(|t| out::data(format!("{}/{}\n", t.zone, t.agent).as_bytes()))?,
    }
    Ok(())
}

fn print(value: &impl Serialize, format: Format) -> Result<(), CliError> {
    match format {
        Format::Yaml => out::data(format::yaml(value)?.as_bytes())?,
        Format::Jsonl => out::json_line(value)?,
        _ => out::json(&json!(value))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::name::{Agent, Zone};

    #[test]
    fn pings_are_readable() {
        let ping = |agent: &str, rtt_ms, skew_ms| Ping {
            zone: Zone::new("dmz").expect("name"),
            agent: Agent::new(agent).expect("name"),
            rtt_ms,
            skew_ms,
        };
        let text = ping_table(&[ping("web-1", Some(1.26), Some(-3)), ping("web-2", None, None)]);
        assert_eq!(
            text,
            "AGENT  ZONE  ANSWERED IN  CLOCK\nweb-1  dmz   1.3ms        -3ms\nweb-2  dmz   no answer\n"
        );
    }

    #[test]
    fn nobody_to_ask_means_no() {
        // Tests have no terminal on both ends.
        let refused = confirm("3 runs wait for a and will be cancelled").expect_err("not asked");
        assert!(refused.exit.code() == 2 && refused.hint.is_some_and(|h| h.contains("--yes")));
    }
}

//! `sally run` and `sally exec`: submit, wait, show.

use clap::Args;
use sally_common::clock::now_ms;
use sally_common::selector::Targets;
use sally_common::wire::api::{Call, Resolved, Submitted, Target};
use sally_common::wire::order::{Order, Program};
use serde::Serialize;
use serde_json::json;

use super::args::{DeliveryArgs, Format, TargetArgs, TaskArgs, WaitArgs};
use super::follow::{Wishes, follow};
use super::live::{Live, Look};
use super::task::{self, Prepared};
use super::{CliError, Exit, Session, finish, fold, out, secret, table, text};
use crate::client::{Client, SubmitOptions};

/// Run a script or a binary on agents and wait for the answers.
///
///   sally run ./inventory.sh --all --profile host -o json
///   sally run ./check.py -z dmz -l role=web -p port:=443 -- --verbose
///   sally run - -a local-1 < script.sh
///
/// One target: its output goes through as it comes. Several: identical answers are folded at the end.
/// Exit code: 0 all succeeded, 3 a run failed, 4 no agent matched, 5 a run expired, timed out, was
/// interrupted or is unknown, 6 refused, 7 controller out of reach, 9 cancelled, 124 --wait ran out.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    /// A file (with a / or a . in it), or - for standard input
    #[arg(value_name = "FILE|-")]
    file: String,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    task: TaskArgs,
    /// What runs the script, if not its own first line
    #[arg(long, value_name = "PROGRAM", help_heading = "Task")]
    interpreter: Option<String>,
    /// Turn Windows line endings into Unix ones before sending
    #[arg(long, help_heading = "Task")]
    fix_crlf: bool,
    #[command(flatten)]
    delivery: DeliveryArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// Arguments of the script
    #[arg(last = true, value_name = "ARG")]
    args: Vec<String>,
}

/// Run one command on agents and wait for the answers.
///
///   sally exec --all -- uname -r
///   sally exec -a local-1 --profile host -- sh -c 'df -h; exit 7'
///
/// The command is started as it is written, without a shell. Exit codes are those of `sally run`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ExecArgs {
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    delivery: DeliveryArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) async fn run(session: &Session, args: RunArgs) -> Result<Exit, CliError> {
    let script = task::Script {
        file: &args.file,
        interpreter: args.interpreter.as_deref(),
        fix_crlf: args.fix_crlf,
        args: &args.args,
    };
    args.wait.check()?;
    let targets = args.targets.targets()?;
    let prepared = task::script(&script, &args.task)?;
    submit(session, &prepared, targets, &args.delivery, &args.wait).await
}

pub(super) async fn exec(session: &Session, args: ExecArgs) -> Result<Exit, CliError> {
    args.wait.check()?;
    let targets = args.targets.targets()?;
    let prepared = task::command(&args.command, &args.task)?;
    submit(session, &prepared, targets, &args.delivery, &args.wait).await
}

async fn submit(
    session: &Session,
    prepared: &Prepared,
    targets: Targets,
    delivery: &DeliveryArgs,
    wait: &WaitArgs,
) -> Result<Exit, CliError> {
    let context = session.context()?;
    let mut order = prepared.order(&context.user, targets, now_ms())?;
    let options = SubmitOptions {
        offline: delivery.offline.into(),
        priority: delivery.priority,
        latest_only: delivery.latest_only.clone(),
        lane: delivery.lane.into(),
        ..SubmitOptions::default()
    };
    make_folder(wait)?;
    let client = session.connect_to(&context).await?;
    if !wait.plan {
        secret::seal(&client, &mut order, &prepared.secrets, options.offline).await?;
    }
    launch(&client, &order, &prepared.blobs, options, wait).await
}

/// Makes the folder of `--output-dir`, before anything runs.
pub(super) fn make_folder(wait: &WaitArgs) -> Result<(), CliError> {
    let Some(folder) = &wait.output_dir else { return Ok(()) };
    std::fs::create_dir_all(folder)
        .map_err(|e| CliError::usage(format!("cannot make the folder {}: {e}", folder.display())))
}

/// Submits an order and waits, or shows the plan only.
pub(super) async fn launch(
    client: &Client,
    order: &Order,
    blobs: &[Vec<u8>],
    options: SubmitOptions,
    wait: &WaitArgs,
) -> Result<Exit, CliError> {
    if wait.plan {
        let resolved: Resolved = client.call(Call::Resolve { targets: order.targets.clone() }).await?;
        return plan(&resolved, order, wait.format.output);
    }
    let human = matches!(wait.format.output, Format::Table | Format::Wide);
    // Whether there is one target is known after the answer; its output may come before.
    let options = SubmitOptions { watch: !wait.detach, output: human, ..options };
    let interrupt = interrupted();
    tokio::pin!(interrupt);
    let submitted = tokio::select! {
        submitted = client.submit(order, blobs, options) => submitted,
        () = &mut interrupt => {
            out::note(&format!(
                "interrupted before the controller answered: the job may have been accepted or not\n\
                 hint: repeat the command with --request-id {}: it then runs at most once",
                order.request_id
            ))?;
            return Ok(Exit::Detached);
        }
    };
    let (submitted, watch) = submitted?;
    out::note(&echo(&submitted))?;
    let Some(watch) = watch else {
        return detached(&submitted, wait.format.output);
    };
    let look = match submitted.targets.len() {
        _ if !human => None,
        _ if wait.stream => Some(Look::Prefixed),
        1 if wait.format.output == Format::Table => Some(Look::Through),
        _ => None,
    };
    let live = look.map(|look| Live::new(client.clone(), look, wait.encoding, false));
    let wishes = Wishes {
        live,
        lines: wait.format.output == Format::Jsonl,
        folder: wait.output_dir.clone(),
        wait: wait.wait,
        targets: submitted.targets.clone(),
    };
    let followed = follow(client, watch, submitted.job, wishes, interrupt).await?;
    let shown = finish::Shown { format: wait.format.output, look, encoding: wait.encoding };
    finish::finish(client, followed, shown).await
}

/// Resolves at the first Ctrl-C.
pub(super) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn detached(submitted: &Submitted, format: Format) -> Result<Exit, CliError> {
    let id = &submitted.job.id;
    match format {
        Format::Json => out::json(&json!({"job": {"id": id}}))?,
        Format::Jsonl => out::json_line(&json!({"job": {"id": id}}))?,
        _ => out::data(format!("{id}\n").as_bytes())?,
    }
    Ok(Exit::Success)
}

/// What was resolved: `check.sh → 3 agents in 1 zone   job ID`.
fn echo(submitted: &Submitted) -> String {
    let targets = &submitted.targets;
    let offline = targets.iter().filter(|t| !t.online).count();
    let waits = if offline > 0 { format!(", {offline} offline") } else { String::new() };
    let again = if submitted.created { "" } else { " (submitted before with this request id)" };
    let title = text::sanitise_line(&submitted.job.title);
    format!("{title} → {}{waits}   job {}{again}", count(targets), submitted.job.id)
}

fn count(targets: &[Target]) -> String {
    let zones = targets.iter().map(|t| &t.zone).collect::<std::collections::BTreeSet<_>>().len();
    let many = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    format!("{} in {}", many(targets.len(), "agent"), many(zones, "zone"))
}

/// What `--plan` shows.
#[derive(Serialize)]
struct Plan<'a> {
    title: &'a str,
    program: &'a Program,
    args: &'a [String],
    profile: String,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    require: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    targets: &'a [Target],
}

fn plan(resolved: &Resolved, order: &Order, format: Format) -> Result<Exit, CliError> {
    let task = &order.task;
    let title = task.title.as_deref().unwrap_or_default();
    let targets = &resolved.targets;
    let (program, args) = (&task.program, task.args.as_slice());
    let (profile, require, user) = (task.profile.to_string(), &task.require_layers[..], task.user.as_deref());
    let plan = Plan { title, program, args, profile, require, user, targets };
    match format {
        Format::Json => out::json(&json!({"plan": plan}))?,
        Format::Jsonl => out::json_line(&json!({"plan": plan}))?,
        Format::Yaml => out::data(super::format::yaml(&json!({"plan": plan}))?.as_bytes())?,
        Format::Csv | Format::Name => {
            let head = if format == Format::Csv { "zone,agent,online\n" } else { "" };
            let line = |t: &Target| match format {
                Format::Csv => format!("{},{},{}\n", t.zone, t.agent, t.online),
                _ => format!("{}/{}\n", t.zone, t.agent),
            };
            out::data(format!("{head}{}", targets.iter().map(line).collect::<String>()).as_bytes())?;
        }
        Format::Table | Format::Wide => out::styled(&plan_text(&plan))?,
    }
    if targets.is_empty() {
        return Err(
            CliError::new(Exit::NoTarget, "no agent matches these targets").hint("sally agent ls shows all")
        );
    }
    Ok(Exit::Success)
}

fn plan_text(plan: &Plan<'_>) -> String {
    let program = match plan.program {
        Program::Command => "a command of the agent's host".to_owned(),
        Program::Script { content, interpreter } => {
            let by = interpreter.as_ref().map(|i| format!(", run by {i}")).unwrap_or_default();
            format!("{} bytes, sha256 {}{by}", content.bytes, content.digest)
        }
    };
    let named = |online: bool| {
        let of: Vec<(&str, &str)> = plan
            .targets
            .iter()
            .filter(|t| t.online == online)
            .map(|t| (t.zone.as_str(), t.agent.as_str()))
            .collect();
        fold::compress(&of, true)
    };
    let rows = [
        ("runs", plan.title.to_owned()),
        ("program", program),
        ("arguments", plan.args.join(" ")),
        ("profile", plan.profile.clone()),
        ("account", plan.user.unwrap_or_default().to_owned()),
        ("requires", plan.require.join(" ")),
        ("targets", count(plan.targets)),
        ("online", named(true)),
        ("offline", named(false)),
    ];
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(k, v)| vec![k.to_owned(), text::sanitise_line(&v)])
        .collect();
    table::table(&["PLAN", ""], &rows, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::name::{Agent, Zone};

    fn target(zone: &str, agent: &str, online: bool) -> Target {
        Target {
            zone: Zone::new(zone).expect("name"),
            agent: Agent::new(agent).expect("name"),
            online,
            agent_key: None,
            curve_key: None,
        }
    }

    #[test]
    fn what_was_resolved_is_said_first() {
        let runs = [super::super::tests::run(0, sally_common::wire::record::RunState::Pending)];
        let job = super::super::tests::job(&runs);
        let id = job.id.clone();
        let mut submitted = Submitted { job, created: true, targets: vec![target("local", "local-1", true)] };
        assert_eq!(echo(&submitted), format!("check.sh → 1 agent in 1 zone   job {id}"));
        submitted.targets.push(target("dmz", "web-1", false));
        submitted.created = false;
        let expected = format!(
            "check.sh → 2 agents in 2 zones, 1 offline   job {id} (submitted before with this request id)"
        );
        assert_eq!(echo(&submitted), expected);
    }
}

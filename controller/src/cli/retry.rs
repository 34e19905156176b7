//! `sally job retry`: the same task again, as a new job, for those targets where it did not end well.

use std::time::Duration;

use clap::{Args, ValueEnum};
use sally_common::clock::now_ms;
use sally_common::id::RequestId;
use sally_common::selector::Targets;
use sally_common::wire::api::{Call, OrderText};
use sally_common::wire::order::Order;
use sally_common::wire::record::{JobRecord, RunRecord, RunState};
use sally_common::wire::{self, VERSION};

use super::args::{LaneArg, OfflineArg, WaitArgs, priority};
use super::job::{find, of_agent};
use super::secret::{self, Secret};
use super::{CliError, Exit, duration, out, run};
use crate::client::{Client, SubmitOptions};

/// Run a job's task again on some of its targets, as a new job, and wait for the answers
///
///   sally job retry latest
///   sally job retry 01kc5q --only expired,not-started -a 'web-*' --offline skip
///
/// Task, parameters, priority and lane are those of the job; its secrets have to be given again. What is waited
/// for, printed and returned is as with `sally run`. Attempts within one job are made by --retries.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct RetryArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// Which of its runs
    #[arg(long, value_enum, value_name = "WHICH,…", value_delimiter = ',', default_value = "failed")]
    only: Vec<Which>,
    /// This agent's only: NAME or ZONE/NAME, with * and ?
    #[arg(short, long, value_name = "NAME|GLOB")]
    agent: Option<String>,
    /// A secret of the job, again: NAME=@FILE, or NAME=@- for standard input
    #[arg(long = "secret", value_name = "NAME=@FILE|NAME=@-")]
    secrets: Vec<String>,
    /// Your own id of the new submission: the same id again is the same job
    #[arg(long, value_name = "ID")]
    request_id: Option<RequestId>,
    /// After this time no agent starts it any more [default: as long as the job had]
    #[arg(long, value_name = "DUR", value_parser = duration::parse_positive)]
    expires: Option<Duration>,
    /// What to do with targets that are offline [default: as the job did]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Delivery")]
    offline: Option<OfflineArg>,
    /// Which of an agent's waiting runs goes first, 0 to 9 [default: as the job]
    #[arg(long, value_name = "0-9", value_parser = priority(), help_heading = "Delivery")]
    priority: Option<u8>,
    /// How the work travels [default: as the job]
    #[arg(long, value_enum, value_name = "LANE", help_heading = "Delivery")]
    lane: Option<LaneArg>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Which runs of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// They ran and failed, or ran into their timeout
    Failed,
    /// Nobody picked them up in time
    Expired,
    /// Host or keeper went down under them; they may have run in part
    Interrupted,
    /// Their agent is gone and may have run them
    Unknown,
    /// They ended without having started: rejected, expired, or cancelled in time
    NotStarted,
    /// Every run that has ended, the succeeded ones too
    All,
}

impl Which {
    fn covers(self, run: &RunRecord) -> bool {
        let never_started = run.started_at.is_none();
        match self {
            Which::Failed => matches!(run.state, RunState::Failed | RunState::TimedOut),
            Which::Expired => run.state == RunState::Expired,
            Which::Interrupted => run.state == RunState::Interrupted,
            Which::Unknown => run.state == RunState::Unknown,
            Which::NotStarted => match run.state {
                RunState::Rejected | RunState::Expired => true,
                RunState::Cancelled => never_started,
                _ => false,
            },
            Which::All => run.state.is_end(),
        }
    }

    fn word(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }
}

pub(super) async fn retry(client: &Client, args: RetryArgs) -> Result<Exit, CliError> {
    args.wait.check()?;
    let secrets = secret::read(&args.secrets)?;
    run::make_folder(&args.wait)?;
    let job = find(client, &args.id).await?;
    let runs = of_agent(client.runs(&job.id, &[], false).await?, args.agent.as_deref())?;
    let chosen: Vec<&RunRecord> = runs.iter().filter(|r| args.only.iter().any(|w| w.covers(r))).collect();
    if chosen.is_empty() {
        return Err(nothing(&job, &args.only, &runs));
    }
    doubts(&chosen).map(|line| out::note(&line)).transpose()?;
    let before: OrderText = client.call(Call::Order { job: job.id.clone() }).await?;
    let mut order = again(&job, &before, &chosen, &args)?;
    order.by = client.user().clone();
    check_secrets(&order, &secrets)?;
    order.task.secrets.clear();
    let options = SubmitOptions {
        offline: args.offline.map_or(before.offline, Into::into),
        priority: args.priority.unwrap_or(before.priority),
        lane: args.lane.map_or(before.lane, Into::into),
        retry_of: Some(job.id.clone()),
        ..SubmitOptions::default()
    };
    if !args.wait.plan {
        secret::seal(client, &mut order, &secrets, options.offline).await?;
    }
    order.check().map_err(|e| CliError::usage(e.to_string()))?;
    run::launch(client, &order, &[], options, &args.wait).await
}

/// The same task for these targets, from now on, with the job's secrets still inside.
fn again(
    job: &JobRecord,
    before: &OrderText,
    chosen: &[&RunRecord],
    args: &RetryArgs,
) -> Result<Order, CliError> {
    let unreadable =
        |e: String| CliError::internal(format!("the order of job {} cannot be read: {e}", job.id));
    let order: Order = wire::read(before.order.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    if order.v != VERSION {
        return Err(unreadable(format!("it has version {}", order.v)));
    }
    let lasting = match args.expires {
        Some(expires) => i64::try_from(expires.as_millis()).unwrap_or(i64::MAX),
        None => order.expires_ms.saturating_sub(order.created_ms),
    };
    let created_ms = now_ms();
    let agents = chosen.iter().map(|r| format!("{}/{}", r.zone, r.agent)).collect();
    Ok(Order {
        request_id: args.request_id.clone().unwrap_or_else(RequestId::generate),
        created_ms,
        expires_ms: created_ms.saturating_add(lasting),
        targets: Targets { agents, ..Targets::default() },
        ..order
    })
}

/// The new order needs the secrets that the job had, and no others: nobody but the agents can read the old ones.
fn check_secrets(order: &Order, given: &[Secret]) -> Result<(), CliError> {
    let had: std::collections::BTreeSet<&str> = order.task.secrets.iter().map(|s| s.name.as_str()).collect();
    let missing: Vec<&str> =
        had.iter().copied().filter(|name| !given.iter().any(|s| s.name == *name)).collect();
    if !missing.is_empty() {
        let flags: Vec<String> = missing.iter().map(|name| format!("--secret {name}=@FILE")).collect();
        let message = format!("the job had secrets that only its agents can read: {}", missing.join(", "));
        return Err(CliError::usage(message).hint(format!("give them again: {}", flags.join(" "))));
    }
    match given.iter().find(|s| !had.contains(s.name.as_str())) {
        Some(other) => Err(CliError::usage(format!("the job had no secret named {}", other.name))),
        None => Ok(()),
    }
}

fn nothing(job: &JobRecord, only: &[Which], runs: &[RunRecord]) -> CliError {
    let words: Vec<String> = only.iter().map(|w| w.word()).collect();
    let under_way = runs.iter().filter(|r| !r.state.is_end()).count();
    let message = format!("job {} has no run that is {}", job.id, words.join(" or "));
    CliError::new(Exit::NoTarget, message).hint(match under_way {
        0 => format!("`sally job show {}` says how they ended; --only takes others", job.id),
        n => format!("{n} of its runs have not ended yet: sally job wait {}", job.id),
    })
}

/// What is said when runs are repeated whose end is a guess.
fn doubts(chosen: &[&RunRecord]) -> Option<String> {
    let guessed = chosen.iter().filter(|r| !r.is_final).count();
    (guessed > 0).then(|| {
        format!("{guessed} of these may still have run or may run: their agents have not said how they ended")
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{job, run};
    use super::*;

    #[test]
    fn each_word_means_its_runs() {
        use RunState::*;
        let words = |state: RunState, started: bool| -> Vec<String> {
            let mut run = run(0, state);
            run.started_at = started.then(|| "2026-11-21T07:00:00.000Z".to_owned());
            let fitting = Which::value_variants().iter().filter(|w| w.covers(&run));
            fitting.map(|w| w.word()).collect()
        };
        for (state, started, expected) in [
            (Succeeded, true, &["all"][..]),
            (Failed, true, &["failed", "all"]),
            (TimedOut, true, &["failed", "all"]),
            (Expired, false, &["expired", "not-started", "all"]),
            (Interrupted, true, &["interrupted", "all"]),
            (Unknown, true, &["unknown", "all"]),
            (Rejected, false, &["not-started", "all"]),
            (Cancelled, false, &["not-started", "all"]),
            (Cancelled, true, &["all"]),
            (Pending, false, &[]),
            (Running, true, &[]),
        ] {
            assert_eq!(words(state, started), expected, "{state} {started}");
        }
    }

    #[test]
    fn nothing_to_repeat_says_what_there_is() {
        let runs = [run(0, RunState::Succeeded), run(1, RunState::Running)];
        let error = nothing(&job(&runs), &[Which::Failed, Which::Expired], &runs);
        assert_eq!(error.exit.code(), 4);
        assert!(error.message.ends_with("has no run that is failed or expired"), "{error}");
        assert!(error.hint.is_some_and(|h| h.starts_with("1 of its runs")));
    }

    #[test]
    fn a_guess_is_named() {
        let mut guessed = run(0, RunState::Expired);
        guessed.is_final = false;
        assert!(doubts(&[&guessed]).is_some_and(|line| line.starts_with("1 of these may")));
        assert_eq!(doubts(&[&run(0, RunState::Failed)]), None);
    }

    #[test]
    fn secrets_are_given_again_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("s");
        std::fs::write(&file, "x").expect("written");
        let given = |name: &str| secret::read(&[format!("{name}=@{}", file.display())]).expect("read");
        let mut order = super::super::tests::order();
        assert!(check_secrets(&order, &[]).is_ok());
        assert!(check_secrets(&order, &given("db")).is_err_and(|e| e.message.contains("no secret named db")));
        let key = sally_common::key::SigningKey::from_secret([1; 32]);
        order.task.secrets = vec![wire::order::SealedSecret {
            name: "db".into(),
            agent_key: key.public().clone(),
            sealed: String::new(),
        }];
        assert!(check_secrets(&order, &given("db")).is_ok());
        let error = check_secrets(&order, &given("other")).expect_err("missing");
        assert_eq!(error.hint.as_deref(), Some("give them again: --secret db=@FILE"));
    }
}

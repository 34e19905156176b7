//! `sally job`: look at jobs, follow them, cancel them.

use std::time::Duration;

use clap::{Args, Subcommand};
use encoding_rs::Encoding;
use sally_common::id::RequestId;
use sally_common::wire::api::{Call, Cancelled, JobPage, RequestCancelled};
use sally_common::wire::record::{JobRecord, JobWithRuns, RunRecord, SCHEMA};
use serde::Serialize;
use serde_json::value::RawValue;

use super::args::{Format, OutputArgs};
use super::follow::{Followed, Wishes, follow};
use super::live::{Live, Look};
use super::logs::{self, After, STREAMS};
use super::{CliError, Exit, Session, artifacts, duration, finish, format, out, retry, run, text};
use crate::client::Client;

/// Look at jobs, follow them, cancel them. An ID may be shortened; `latest` is the newest job.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List jobs, newest first
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show a job and its runs as they are now
    ///
    /// For example: sally job show latest -o json
    Show(ShowArgs),
    /// Show a job's output live until it ends, each line with its agent's name
    Watch(WatchArgs),
    /// Print what a job's runs wrote
    ///
    /// For example: sally job logs latest -a local-1 --raw > out.bin. On a terminal control characters are shown as
    /// escapes; --raw passes them on. An interrupted -f says with which --after it goes on where it stopped.
    Logs(LogsArgs),
    /// Print a job's structured results: one run the bare JSON, several a line each
    Result(ResultArgs),
    /// List the files that a job's scripts left behind, or write them into a folder
    ///
    /// For example: sally job artifacts latest --output-dir ./files
    Artifacts(artifacts::ArtifactsArgs),
    /// Cancel what has not ended: TERM, then KILL after the task's grace
    ///
    /// For example: sally job cancel latest --hard, or, before the job exists or when its answer was lost:
    /// sally job cancel --request-id nightly-2026-11-21
    Cancel(CancelArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Retry(Box<retry::RetryArgs>),
    /// Wait for a job's end, then print it
    Wait(JobWaitArgs),
}

/// How many jobs.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// At most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    format: OutputArgs,
}

/// Which job.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// The encoding of what the scripts print, for showing it
    #[arg(long, value_name = "ENC", value_parser = text::encoding)]
    encoding: Option<&'static Encoding>,
    #[command(flatten)]
    format: OutputArgs,
}

/// Which job.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// The encoding of what the scripts print
    #[arg(long, value_name = "ENC", value_parser = text::encoding)]
    encoding: Option<&'static Encoding>,
}

/// Which output.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// Follow it until the job ends
    #[arg(short, long)]
    follow: bool,
    /// This agent's only: NAME or ZONE/NAME, with * and ?
    #[arg(short, long, value_name = "NAME|GLOB")]
    agent: Option<String>,
    /// Standard output only
    #[arg(long, conflicts_with = "stderr")]
    stdout: bool,
    /// Standard error only
    #[arg(long)]
    stderr: bool,
    /// The bytes as they are, without names, even onto a terminal
    #[arg(long)]
    raw: bool,
    /// Only the last N lines of each stream, and what follows
    #[arg(long, value_name = "N", conflicts_with = "raw")]
    tail: Option<usize>,
    /// Only what comes after: BYTES of one stream of one run, or what an interrupted `-f` says
    #[arg(long, value_name = "BYTES|CURSOR", value_parser = str::parse::<After>, conflicts_with = "tail")]
    after: Option<After>,
    /// The encoding of what the scripts print
    #[arg(long, value_name = "ENC", value_parser = text::encoding, conflicts_with = "raw")]
    encoding: Option<&'static Encoding>,
}

/// Which results.
#[derive(Debug, Args)]
pub struct ResultArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// This agent's only: NAME or ZONE/NAME, with * and ?
    #[arg(short, long, value_name = "NAME|GLOB")]
    agent: Option<String>,
}

/// What to cancel.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").args(["id", "request_id"]).required(true)))]
pub struct CancelArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: Option<String>,
    /// The job that was or will be submitted with this request id, whether it exists yet or not
    #[arg(long, value_name = "ID")]
    request_id: Option<RequestId>,
    /// KILL at once, without TERM
    #[arg(long)]
    hard: bool,
}

/// How long to wait.
#[derive(Debug, Args)]
pub struct JobWaitArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// Stop waiting after this time; the exit code is 124
    #[arg(long, value_name = "DUR", value_parser = duration::parse_positive)]
    wait: Option<Duration>,
    /// The encoding of what the scripts print, for showing it
    #[arg(long, value_name = "ENC", value_parser = text::encoding)]
    encoding: Option<&'static Encoding>,
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) async fn job(session: &Session, command: JobCommand) -> Result<Exit, CliError> {
    let client = session.connect().await?;
    match command {
        JobCommand::Ls(args) => ls(&client, &args).await,
        JobCommand::Show(args) => show(&client, &args).await,
        JobCommand::Watch(args) => watch(&client, &args).await,
        JobCommand::Logs(args) => logs(&client, &args).await,
        JobCommand::Result(args) => result(&client, &args).await,
        JobCommand::Artifacts(args) => artifacts::artifacts(&client, &args).await,
        JobCommand::Cancel(args) => cancel(&client, args).await,
        JobCommand::Retry(args) => retry::retry(&client, *args).await,
        JobCommand::Wait(args) => wait(&client, &args).await,
    }
}

pub(super) async fn find(client: &Client, id: &str) -> Result<JobRecord, CliError> {
    Ok(client.call(Call::Job { id: id.to_owned() }).await?)
}

async fn ls(client: &Client, args: &LsArgs) -> Result<Exit, CliError> {
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut jobs: Vec<JobRecord> = Vec::new();
    loop {
        let limit = u32::try_from(wanted - jobs.len()).unwrap_or(u32::MAX);
        let page: JobPage =
            client.call(Call::Jobs { before: jobs.last().map(|j| j.id.clone()), limit }).await?;
        let got = page.jobs.len();
        jobs.extend(page.jobs);
        jobs.truncate(wanted);
        if jobs.len() == wanted || !page.more || got == 0 {
            format::jobs(&jobs, args.format.output)?;
            if page.more && args.format.output == Format::Table {
                out::note(&format!("there are older jobs: sally job ls -n {}", wanted.saturating_mul(2)))?;
            }
            return Ok(Exit::Success);
        }
    }
}

async fn show(client: &Client, args: &ShowArgs) -> Result<Exit, CliError> {
    let job = find(client, &args.id).await?;
    let runs = client.runs(&job.id, &[], args.format.output != Format::Name).await?;
    let whole = JobWithRuns { schema: SCHEMA, job, runs };
    if args.format.output == Format::Table {
        let by = text::sanitise_line(&whole.job.by);
        let title = text::sanitise_line(&whole.job.title);
        out::note(&format!("job {}   {}   {title}   by {by}", whole.job.id, whole.job.state))?;
        finish::note_unfinished(&whole.job).map(|line| out::note(&line)).transpose()?;
    }
    print(&whole, args.format.output, args.encoding)?;
    Ok(Exit::Success)
}

fn print(whole: &JobWithRuns, format: Format, encoding: Option<&'static Encoding>) -> Result<(), CliError> {
    match format {
        // Nothing was printed as it ended: here the runs are the lines.
        Format::Jsonl => format::job(whole, format),
        _ => finish::print(whole, finish::Shown { format, look: None, encoding }),
    }
}

async fn watch(client: &Client, args: &WatchArgs) -> Result<Exit, CliError> {
    let job = find(client, &args.id).await?;
    let (job, watch) = client.watch(job.id, true).await?;
    let mut live = Live::new(client.clone(), Look::Prefixed, args.encoding, false);
    live.catch_up(&client.runs(&job.id, &[], false).await?).await?;
    let wishes = Wishes { live: Some(live), ..Wishes::default() };
    let followed = follow(client, watch, job, wishes, run::interrupted()).await?;
    let shown = finish::Shown { format: Format::Table, look: Some(Look::Prefixed), encoding: args.encoding };
    finish::finish(client, followed, shown).await
}

async fn wait(client: &Client, args: &JobWaitArgs) -> Result<Exit, CliError> {
    let job = find(client, &args.id).await?;
    let (job, watch) = client.watch(job.id, false).await?;
    let lines = args.format.output == Format::Jsonl;
    let wishes = Wishes { lines, wait: args.wait, ..Wishes::default() };
    let followed = follow(client, watch, job, wishes, run::interrupted()).await?;
    let shown = finish::Shown { format: args.format.output, look: None, encoding: args.encoding };
    finish::finish(client, followed, shown).await
}

async fn cancel(client: &Client, args: CancelArgs) -> Result<Exit, CliError> {
    let hard = args.hard;
    let (job, runs) = match (args.id, args.request_id) {
        (Some(id), _) => {
            // By its whole id, so that the same request said twice by a broker cannot mean another job.
            let job = find(client, &id).await?;
            let cancelled: Cancelled = client.call(Call::Cancel { id: job.id.to_string(), hard }).await?;
            (cancelled.job, cancelled.runs)
        }
        (None, Some(request_id)) => {
            let call = Call::CancelRequest { request_id: request_id.clone(), hard };
            let cancelled: RequestCancelled = client.call(call).await?;
            let Some(job) = cancelled.job else {
                out::note(&format!(
                    "no job has the request id {request_id} yet: it will be cancelled when it comes"
                ))?;
                return Ok(Exit::Success);
            };
            (job, cancelled.runs)
        }
        (None, None) => return Err(CliError::usage("name the job, or its --request-id")),
    };
    out::note(&cancel_note(&job, runs))?;
    Ok(Exit::Success)
}

fn cancel_note(job: &JobRecord, runs: u64) -> String {
    let id = &job.id;
    match runs {
        0 if job.state.is_end() => format!("job {id} had ended already: {}", job.state),
        // What waited has ended with the request itself.
        n if job.state.is_end() => format!("job {id}: {} cancelled before the start", many(n)),
        0 => format!("job {id}: nothing was left to cancel; sally job wait {id} waits for its end"),
        n => format!("job {id}: {} will be cancelled; sally job wait {id} waits for the end", many(n)),
    }
}

fn many(runs: u64) -> String {
    if runs == 1 { "one run".to_owned() } else { format!("{runs} runs") }
}

/// One of several results.
#[derive(Serialize)]
struct ResultLine<'a> {
    agent: &'a str,
    result_state: Option<sally_common::wire::record::ResultState>,
    result: Option<&'a RawValue>,
}

async fn result(client: &Client, args: &ResultArgs) -> Result<Exit, CliError> {
    let job = find(client, &args.id).await?;
    let all = client.runs(&job.id, &[], true).await?;
    let several = all.len() > 1;
    let runs = of_agent(all, args.agent.as_deref())?;
    if let ([only], false) = (runs.as_slice(), several && args.agent.is_none()) {
        return bare_result(only);
    }
    for run in &runs {
        let line = ResultLine {
            agent: run.agent.as_str(),
            result_state: run.result_state,
            result: run.result.as_deref(),
        };
        out::json_line(&line)?;
    }
    Ok(Exit::Success)
}

fn bare_result(run: &RunRecord) -> Result<Exit, CliError> {
    if let Some(result) = &run.result {
        out::json_text(result.get().to_owned())?;
        return Ok(Exit::Success);
    }
    out::data(b"null\n")?;
    let why = match (run.result_state, &run.result_error) {
        (None, _) => format!("the run is {}, it has no result yet", run.state),
        (Some(state), Some(error)) => format!("the result is {}: {}", state.word(), error.message),
        (Some(state), None) => format!("the result is {}", state.word()),
    };
    out::note(&text::sanitise(&why))?;
    Ok(Exit::Success)
}

pub(super) fn of_agent(runs: Vec<RunRecord>, pattern: Option<&str>) -> Result<Vec<RunRecord>, CliError> {
    let Some(pattern) = pattern else { return Ok(runs) };
    let matches = |r: &RunRecord| sally_common::selector::pattern_matches(pattern, &r.zone, &r.agent);
    let found: Vec<RunRecord> = runs.into_iter().filter(matches).collect();
    if found.is_empty() {
        let shown = sally_common::name::show(pattern);
        return Err(CliError::new(Exit::NoTarget, format!("no run of this job is on an agent \"{shown}\"")));
    }
    Ok(found)
}

async fn logs(client: &Client, args: &LogsArgs) -> Result<Exit, CliError> {
    let job = find(client, &args.id).await?;
    let runs = of_agent(client.runs(&job.id, &[], false).await?, args.agent.as_deref())?;
    let look = if args.raw || runs.len() == 1 { Look::Through } else { Look::Prefixed };
    let mut live = Live::new(client.clone(), look, args.encoding, args.raw);
    live.only(
        STREAMS.into_iter().filter(|s| (!args.stdout || *s == "stdout") && (!args.stderr || *s == "stderr")),
    );
    skip(client, args, &runs, &mut live).await?;
    if args.follow && !job.state.is_end() {
        live.only_runs(runs.iter().map(|r| r.run.clone()));
        let (job, watch) = client.watch(job.id, true).await?;
        live.catch_up(&runs).await?;
        let wishes = Wishes { live: Some(live), ..Wishes::default() };
        let followed = follow(client, watch, job, wishes, run::interrupted()).await?;
        return Ok(match followed.ending {
            super::follow::Ending::Detached => {
                out::note(&go_on(args, &followed))?;
                Exit::Detached
            }
            _ => {
                out::note(&format!("the job ended: {}", followed.job.state))?;
                Exit::Success
            }
        });
    }
    for run in &runs {
        live.end(run, false).await?;
    }
    Ok(Exit::Success)
}

/// Leaves out what `--tail` and `--after` say.
async fn skip(client: &Client, args: &LogsArgs, runs: &[RunRecord], live: &mut Live) -> Result<(), CliError> {
    if let Some(lines) = args.tail {
        for run in runs {
            for stream in STREAMS {
                let from = logs::tail_start(client, &run.run, stream, lines).await?;
                live.skip_to(run, stream, from);
            }
        }
    }
    let one_stream = if args.stdout { Some("stdout") } else { args.stderr.then_some("stderr") };
    match &args.after {
        None => {}
        Some(After::Bytes(from)) => {
            let ([run], Some(stream)) = (runs, one_stream) else {
                return Err(CliError::usage("--after BYTES is of one stream of one run")
                    .hint("add --stdout or --stderr, and -a if the job has several runs"));
            };
            live.skip_to(run, stream, *from);
        }
        Some(After::Cursor(places)) => {
            for place in places {
                // A run that was tried again since begins anew.
                let same = |r: &&RunRecord| r.run.index() == place.run && r.attempt == place.attempt;
                if let Some(run) = runs.iter().find(same) {
                    live.skip_to(run, place.stream, place.from);
                }
            }
        }
    }
    Ok(())
}

/// How an interrupted `job logs -f` goes on without a byte lost or shown twice.
fn go_on(args: &LogsArgs, followed: &Followed) -> String {
    let mut line = format!("\ndetached; to go on: sally job logs {} -f", followed.job.id);
    if let Some(agent) = &args.agent {
        line.push_str(&format!(" -a '{}'", text::sanitise_line(agent)));
    }
    for (given, flag) in [(args.stdout, "--stdout"), (args.stderr, "--stderr"), (args.raw, "--raw")] {
        if given {
            line.push_str(&format!(" {flag}"));
        }
    }
    match After::of(&followed.places) {
        None => line,
        Some(after) => format!("{line} --after {after}"),
    }
}

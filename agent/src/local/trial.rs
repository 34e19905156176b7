//! `sally-agent test FILE`: runs a script on this host as a task would be run, without a broker.
//!
//! Plan, sandbox, reading of the result and judgement are those of a real run. There are no secrets, and nothing is
//! remembered: no journal, no spool.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use sally_common::name::ProfileName;
use sally_common::wire::Refusal;
use sally_common::wire::record::{RunRecord, RunState};
use sally_common::{params, program};

use super::LocalError;
use super::asked::{Asked, SandboxArgs};
use super::judged::{self, Head};
use super::scratch::{Scratch, Talk};
use super::watch::{Seen, Watch};
use crate::runtime::outcome::{self, Ending, Said};
use crate::runtime::run::conclude::{mask_text, read_said};
use crate::runtime::run::start::start_failed;
use crate::sandbox::{self, Event, RunFolder, RunInputs, Script};

/// Options of `sally-agent test`.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// The script or program
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Level of isolation: strict, net, host, admin, or one of --profiles-dir
    #[arg(long, value_name = "PROFILE", default_value = "strict")]
    pub profile: ProfileName,
    #[allow(missing_docs, reason = "the options' own text is the help")]
    #[command(flatten)]
    pub sandbox: SandboxArgs,
    /// Program that interprets the script: a name or a path inside the sandbox
    #[arg(long, value_name = "NAME")]
    pub interpreter: Option<String>,
    /// One parameter: KEY=TEXT or KEY:=JSON; repeatable
    #[arg(short = 'p', value_name = "KEY=VALUE")]
    pub params: Vec<String>,
    /// A JSON file with parameters; repeatable
    #[arg(short = 'P', value_name = "FILE")]
    pub params_file: Vec<PathBuf>,
    /// Fail if it gives no result
    #[arg(long)]
    pub require_result: bool,
    /// table: output as it comes, then a summary on standard error; json: the record on standard output
    #[arg(short, long, value_enum, default_value_t = super::Form::Table)]
    pub output: super::Form,
    /// Arguments of the script
    #[arg(last = true, value_name = "ARG")]
    pub args: Vec<String>,
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It could not be tried.
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// The record, and whether somebody still reads standard output.
#[derive(Debug)]
pub struct Tried {
    /// The record.
    pub record: RunRecord,
    /// Whoever read the output went away, and the script was ended.
    pub unread: bool,
}

/// Everything that is read before anything is started.
struct Wanted<'a> {
    args: &'a TestArgs,
    asked: Asked<'a>,
    params: Vec<u8>,
    script: Vec<u8>,
}

/// Runs it to its end. To be called by the process's first thread.
///
/// # Errors
/// [`TrialError`]. However the script ends is a record, not an error.
pub async fn run(args: &TestArgs) -> Result<Tried, TrialError> {
    // Before anything is made, so that Ctrl-C leaves nothing behind.
    let mut watch = Watch::new(args.output == super::Form::Table)?;
    let wanted = read_all(args).map_err(TrialError::Usage)?;
    if let Some((reason, message)) = refusal(&wanted) {
        return Ok(Tried { record: rejected(&wanted.asked.head, reason, message), unread: false });
    }
    let scratch = Scratch::start(wanted.asked.purpose(Talk::Aloud, false)).await?;
    try_in(&scratch, &wanted, &mut watch).await
}

async fn try_in(scratch: &Scratch, wanted: &Wanted<'_>, watch: &mut Watch) -> Result<Tried, TrialError> {
    let program = sandbox::Program::Script { interpreter: wanted.args.interpreter.clone() };
    let plan = wanted.asked.plan(scratch, program, wanted.args.args.clone()).map_err(TrialError::Usage)?;
    let inputs = RunInputs {
        script: Some(Script::Bytes(wanted.script.clone())),
        params: wanted.params.clone(),
        ..RunInputs::default()
    };
    let local = |error| TrialError::Local(LocalError::Sandbox(error));
    let (folder, handover) = RunFolder::create(&scratch.run_dir(0), inputs).map_err(local)?;
    let events = folder.events().map_err(local)?;
    let bare = |ending| {
        let none = (judged::Part::default(), judged::Part::default());
        Tried {
            record: judged::record(&wanted.asked.head, ending, None, Said::nothing(), none.0, none.1),
            unread: false,
        }
    };
    match scratch.launcher().start(0, &plan, handover).await {
        Ok(_) if watch.was_interrupted() => return Ok(bare(Ending::cancelled_before_start())),
        Ok(started) => started.go.release(),
        Err(error) => return Ok(bare(start_failed(&error))),
    }
    let seen = watch.follow(&folder, events).await;
    conclude(wanted, &folder, seen).map_err(|error| {
        let path = folder.path().to_owned();
        TrialError::Local(LocalError::File { what: "read", path, error })
    })
}

/// As a real run is concluded.
fn conclude(wanted: &Wanted<'_>, folder: &RunFolder, mut seen: Seen) -> std::io::Result<Tried> {
    let exit = folder.exit_record().ok().flatten().filter(|_| seen.end == Event::Exited);
    let said = read_said(folder, exit.as_ref(), false);
    seen.finish(&said.masks)?;
    let mut ending = match &exit {
        Some(exit) => {
            let mut ending = outcome::judge(exit, &said, wanted.args.require_result, seen.asked);
            outcome::say_what_instead(&mut ending, exit, &folder.stderr_path());
            ending
        }
        None => Ending::interrupted("its keeper died under it; it may have run in part"),
    };
    ending.message = ending.message.map(|text| mask_text(&text, &seen.masks));
    let said = Said::of(said, |text| mask_text(text, &seen.masks));
    let dropped = exit.as_ref().map_or((0, 0), |exit| (exit.stdout.dropped, exit.stderr.dropped));
    let stdout = judged::Part::of(&seen.stdout, dropped.0)?;
    let stderr = judged::Part::of(&seen.stderr, dropped.1)?;
    let record = judged::record(&wanted.asked.head, ending, exit.as_ref(), said, stdout, stderr);
    Ok(Tried { record, unread: seen.unread })
}

fn read_all(args: &TestArgs) -> Result<Wanted<'_>, String> {
    let asked = Asked::read(&args.profile, &args.sandbox)?;
    let script_bytes = asked.limits.script_bytes;
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let mut files = Vec::new();
    for path in &args.params_file {
        files.push((path.display().to_string(), read(path)?));
    }
    let params = params::read_params(&args.params, &files).map_err(|e| e.to_string())?;
    let size = std::fs::metadata(&args.file).map_or(0, |file| file.len());
    if size > script_bytes {
        return Err(format!(
            "{} has {size} bytes, more than the limit script_bytes = {}",
            args.file.display(),
            script_bytes
        ));
    }
    let script = read(&args.file)?;
    Ok(Wanted { args, asked, params: params.into_string().into_bytes(), script })
}

/// Why an agent with this policy would refuse it.
fn refusal(wanted: &Wanted<'_>) -> Option<(Refusal, String)> {
    if let Some(message) = wanted.asked.refusal() {
        return Some((Refusal::Policy, message));
    }
    let interpreted = wanted.args.interpreter.is_some();
    let host = program::Machine::current().filter(|_| !interpreted);
    program::check(&wanted.script, interpreted)
        .and_then(|kind| host.map_or(Ok(()), |host| program::check_machine(&kind, host)))
        .err()
        .map(|problem| (Refusal::BadProgram, problem.to_string()))
}

fn rejected(head: &Head, reason: Refusal, message: String) -> RunRecord {
    let word = serde_json::to_value(reason).ok().and_then(|v| v.as_str().map(str::to_owned));
    let state = RunState::Rejected;
    let ending = Ending { state, exit_code: None, signal: None, reason: word, message: Some(message) };
    let none = (judged::Part::default(), judged::Part::default());
    judged::record(head, ending, None, Said::nothing(), none.0, none.1)
}

/// The record as `sally run -o json` has it, without a job.
pub fn as_json(record: &RunRecord) -> String {
    #[derive(serde::Serialize)]
    struct Whole<'a> {
        schema: u32,
        runs: [&'a RunRecord; 1],
    }
    let whole = Whole { schema: sally_common::wire::record::SCHEMA, runs: [record] };
    // NOTE: a struct of numbers, strings and maps with string keys always encodes.
    format!("{}\n", serde_json::to_string_pretty(&whole).unwrap_or_default())
}

//! `sally-agent test FILE`: runs a script on this host as a task would be run, without a broker.
//!
//! Plan, sandbox, reading of the result and judgement are those of a real run. There are no secrets, and nothing is
//! remembered: no journal, no spool.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::JobId;
use sally_common::name::{Agent, ProfileName, Zone};
use sally_common::wire::Refusal;
use sally_common::wire::record::{RunRecord, RunState};
use sally_common::{duration, params, program};

use super::LocalError;
use super::judged::{self, Head};
use super::scratch::{Purpose, Scratch};
use super::watch::{Seen, Watch};
use crate::config::{self, ScriptPolicy};
use crate::runtime::outcome::{self, Ending, Said};
use crate::runtime::run::conclude::{mask_text, read_said};
use crate::runtime::run::start::{EXIT_GRACE_MS, start_failed};
use crate::sandbox::{
    self, Definitions, Destination, Event, Layer, Limits, PROFILES_DIR, Plan, RunFolder, RunInputs, Script,
    Shape,
};
use crate::script;

/// Options of `sally-agent test`.
#[derive(Clone, Debug, clap::Args)]
pub struct TestArgs {
    /// The script or program
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Level of isolation: strict, net, host, admin, or one of --profiles-dir
    #[arg(long, value_name = "PROFILE", default_value = "strict")]
    pub profile: ProfileName,
    /// Let it connect to this and to nothing else, in place of the profile's network: HOST:PORT, ADDRESS:PORT or
    /// NETWORK:PORT, as db.example:5432, 10.2.0.0/24:8000-8010, *:443; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    pub allow: Vec<Destination>,
    /// Folder of the operator's profiles [default: that of the configuration, else /etc/sally/profiles.d]
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// Run as this account of this host; only as root
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Layers that must be in force, as net,seccomp,cgroup-memory
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',', value_parser = required_layer)]
    pub require: Vec<Layer>,
    /// Program that interprets the script: a name or a path inside the sandbox
    #[arg(long, value_name = "NAME")]
    pub interpreter: Option<String>,
    /// One parameter: KEY=TEXT or KEY:=JSON; repeatable
    #[arg(short = 'p', value_name = "KEY=VALUE")]
    pub params: Vec<String>,
    /// A JSON file with parameters; repeatable
    #[arg(short = 'P', value_name = "FILE")]
    pub params_file: Vec<PathBuf>,
    /// Longest time it may run: then TERM, and KILL after --grace
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration::parse_positive)]
    pub timeout: Duration,
    /// Time between TERM and KILL
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,
    /// A variable of its environment: NAME=VALUE; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A limit, named as in `[limits]` of the configuration, such as memory_bytes=67108864; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub limit: Vec<String>,
    /// Fail if it gives no result
    #[arg(long)]
    pub require_result: bool,
    /// Take allowed profiles, limits, [script.env], name and zone from this configuration; its keys are not read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
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
    policy: ScriptPolicy,
    shape: Shape,
    limits: Limits,
    env: Vec<(String, String)>,
    params: Vec<u8>,
    script: Vec<u8>,
    head: Head,
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
        return Ok(Tried { record: rejected(&wanted.head, reason, message), unread: false });
    }
    let purpose = Purpose {
        widest: wanted.shape.profile,
        profiles_dir: wanted.policy.profiles_dir.clone(),
        users: args.user.iter().cloned().collect(),
        allow: args.allow.clone(),
        talks: true,
    };
    let scratch = Scratch::start(purpose).await?;
    try_in(&scratch, &wanted, &mut watch).await
}

async fn try_in(scratch: &Scratch, wanted: &Wanted<'_>, watch: &mut Watch) -> Result<Tried, TrialError> {
    let plan = plan(wanted, scratch).map_err(TrialError::Usage)?;
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
            record: judged::record(&wanted.head, ending, None, Said::nothing(), none.0, none.1),
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
    let record = judged::record(&wanted.head, ending, exit.as_ref(), said, stdout, stderr);
    Ok(Tried { record, unread: seen.unread })
}

fn read_all(args: &TestArgs) -> Result<Wanted<'_>, String> {
    let mut policy = match &args.config {
        Some(path) => config::script_policy(path).map_err(|e| e.to_string())?,
        None => ScriptPolicy {
            name: Agent::new("local").map_err(|e| e.to_string())?,
            zone: Zone::new("local").map_err(|e| e.to_string())?,
            profiles: vec![args.profile.clone()],
            profiles_dir: PathBuf::from(PROFILES_DIR),
            users: args.user.iter().cloned().collect(),
            script_env: Vec::new(),
            limits: Limits::default(),
        },
    };
    if let Some(dir) = &args.profiles_dir {
        policy.profiles_dir.clone_from(dir);
    }
    let shape = shape(&args.profile, args.user.as_deref(), &policy.profiles_dir)?;
    let mut limits = policy.limits;
    for text in &args.limit {
        let (name, value) = pair(text, "--limit", "memory_bytes=67108864")?;
        let number = value.parse().map_err(|_| {
            format!("--limit {}: the value is not a whole number", sally_common::name::show(text))
        })?;
        limits.set(name, number).map_err(|problem| format!("--limit {problem}"))?;
    }
    let mut env: Vec<(String, String)> = Vec::new();
    for text in &args.env {
        let (name, value) = pair(text, "--env", "NAME=VALUE")?;
        if env.iter().any(|(known, _)| known == name) {
            return Err(format!("--env {}: it is given twice", sally_common::name::show(name)));
        }
        env.push((name.to_owned(), value.to_owned()));
    }
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let mut files = Vec::new();
    for path in &args.params_file {
        files.push((path.display().to_string(), read(path)?));
    }
    let params = params::read_params(&args.params, &files).map_err(|e| e.to_string())?;
    let size = std::fs::metadata(&args.file).map_or(0, |file| file.len());
    if size > limits.script_bytes {
        return Err(format!(
            "{} has {size} bytes, more than the limit script_bytes = {}",
            args.file.display(),
            limits.script_bytes
        ));
    }
    let asked_ms = now_ms();
    let run = JobId::generate(asked_ms).run(0);
    let head = Head { run, agent: policy.name.clone(), zone: policy.zone.clone(), asked_ms };
    let script = read(&args.file)?;
    Ok(Wanted { args, policy, shape, limits, env, params: params.into_string().into_bytes(), script, head })
}

/// What a profile's name means on this host.
fn shape(name: &ProfileName, user: Option<&str>, dir: &Path) -> Result<Shape, String> {
    let built_in = name.as_str().parse().ok();
    let profile = match built_in {
        Some(profile) => profile,
        None => Definitions::read(dir).get(name)?.base,
    };
    let (defined, user) = (built_in.is_none().then(|| name.clone()), user.map(str::to_owned));
    Ok(Shape { defined, user, ..Shape::built_in(profile) })
}

fn required_layer(text: &str) -> Result<Layer, String> {
    text.replace('-', "_").parse()
}

fn pair<'a>(text: &'a str, option: &str, form: &str) -> Result<(&'a str, &'a str), String> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        format!("{option} \"{}\": write it as NAME=VALUE, such as {form}", sally_common::name::show(text))
    })
}

/// Why an agent with this policy would refuse it.
fn refusal(wanted: &Wanted<'_>) -> Option<(Refusal, String)> {
    let (profile, policy) = (&wanted.args.profile, &wanted.policy);
    if !policy.profiles.contains(profile) {
        let allowed: Vec<_> = policy.profiles.iter().map(|p| p.as_str()).collect();
        let message = format!("profile {profile} is not allowed here, only {}", allowed.join(", "));
        return Some((Refusal::Policy, message));
    }
    if let Some(user) = wanted.args.user.as_ref().filter(|user| !policy.users.contains(user)) {
        return Some((Refusal::Policy, format!("running as {user} is not allowed here")));
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

fn plan(wanted: &Wanted<'_>, scratch: &Scratch) -> Result<Plan, String> {
    let (args, head) = (wanted.args, &wanted.head);
    let paths = scratch.launcher().box_paths(wanted.shape.profile);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let timeout_ms = duration::ms(args.timeout);
    let deadline_ms = now_ms().saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
    let env = script::build_env(&script::EnvContext {
        path: sandbox::DEFAULT_PATH,
        bin: &text(paths.bin()),
        work: &text(paths.work()),
        tmp: &text(paths.tmp()),
        params_file: &text(paths.params()),
        secrets_dir: &text(paths.secrets()),
        result_file: &text(paths.result_file()),
        job: head.run.job().as_str(),
        run: &head.run.to_string(),
        attempt: 1,
        agent: head.agent.as_str(),
        zone: head.zone.as_str(),
        deadline: jiff::Timestamp::from_millisecond(deadline_ms).unwrap_or(jiff::Timestamp::MAX),
        agent_env: &wanted.policy.script_env,
        task_env: &wanted.env,
    })
    .map_err(|e| e.to_string())?;
    Ok(Plan {
        v: sandbox::PLAN_VERSION,
        run: head.run.to_string(),
        attempt: 1,
        profile: wanted.shape.profile,
        defined: wanted.shape.defined.clone(),
        user: wanted.shape.user.clone(),
        program: sandbox::Program::Script { interpreter: args.interpreter.clone() },
        argv: args.args.clone(),
        env,
        timeout_ms,
        grace_ms: duration::ms(args.grace),
        exit_grace_ms: EXIT_GRACE_MS,
        limits: Limits { result_bytes: script::ResultLimits::default().stream_bytes, ..wanted.limits },
        keep_bytes: 0,
        require: args.require.clone(),
        destinations: super::explain::listed(&args.allow),
    })
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

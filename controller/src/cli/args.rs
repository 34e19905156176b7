//! Flags that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use sally_common::id::RequestId;
use sally_common::limit;
use sally_common::name::{Agent, ProfileName, Zone};
use sally_common::selector::{Selector, Targets};
use sally_common::wire::api::Offline;
use sally_common::wire::command::Lane;
use sally_common::wire::order::{RetryOn, is_account_name};

use super::{CliError, duration, text};

/// How records are printed. The same records in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For people, one line per record, nothing shortened
    Wide,
    /// One JSON object
    Json,
    /// One JSON object per line and record
    Jsonl,
    /// The JSON object as YAML
    Yaml,
    /// Flat columns with a header
    Csv,
    /// Ids or names only, one per line
    Name,
}

/// The output flag.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct OutputArgs {
    /// How to print the records
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

/// Who is meant.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Targets (values of one flag: or; different flags: and)")]
pub(super) struct TargetArgs {
    /// Agents: a name, ZONE/NAME, a pattern with * and ?, or @FILE with one of these per line
    #[arg(short, long = "agent", value_name = "NAME|GLOB|@FILE")]
    pub agents: Vec<String>,
    /// Agents of this zone
    #[arg(short, long = "zone", value_name = "ZONE")]
    pub zones: Vec<Zone>,
    /// Agents with these labels, as in 'role=web,tier in (a,b),!canary'
    #[arg(short = 'l', long = "selector", value_name = "SELECTOR")]
    pub selectors: Vec<String>,
    /// Every agent
    #[arg(long)]
    pub all: bool,
}

impl TargetArgs {
    /// Whether nobody was named: commands that only look then mean everybody.
    pub(super) fn is_empty(&self) -> bool {
        self.agents.is_empty() && self.zones.is_empty() && self.selectors.is_empty()
    }

    /// Checks what was written, reads files of names, and refuses the empty selection.
    pub(super) fn targets(&self) -> Result<Targets, CliError> {
        for text in &self.selectors {
            Selector::parse(text).map_err(|e| {
                CliError::usage(e.to_string())
                    .hint("write 'k=v', 'k in (a,b)', 'k' or '!k', joined by commas")
            })?;
        }
        let mut agents = Vec::new();
        for word in &self.agents {
            match word.strip_prefix('@') {
                Some(file) => agents.extend(read_names(file)?),
                None => agents.push(word.clone()),
            }
        }
        agents.iter().try_for_each(|pattern| check_pattern(pattern))?;
        let targets =
            Targets { agents, zones: self.zones.clone(), selectors: self.selectors.clone(), all: self.all };
        if targets.is_empty() {
            return Err(CliError::usage("no target given: nothing runs anywhere unless you say where")
                .hint("name agents with -a, a zone with -z, labels with -l, or all of them with --all"));
        }
        Ok(targets)
    }
}

fn read_names(file: &str) -> Result<Vec<String>, CliError> {
    let content = std::fs::read_to_string(file)
        .map_err(|e| CliError::usage(format!("cannot read the agents of @{file}: {e}")))?;
    let lines = content.lines().map(|l| l.split('#').next().unwrap_or("").trim());
    let names: Vec<String> = lines.filter(|l| !l.is_empty()).map(str::to_owned).collect();
    if names.is_empty() {
        return Err(CliError::usage(format!("@{file} names no agent")));
    }
    Ok(names)
}

/// A pattern is a name whose characters may be `*` and `?`, or two with a slash between.
fn check_pattern(pattern: &str) -> Result<(), CliError> {
    let plain = |part: &str| part.replace(['*', '?'], "x");
    let checked = match pattern.split_once('/') {
        Some((zone, agent)) => {
            Zone::new(&plain(zone)).map(|_| ()).and_then(|()| Agent::new(&plain(agent)).map(|_| ()))
        }
        None => Agent::new(&plain(pattern)).map(|_| ()),
    };
    checked.map_err(|_| {
        CliError::usage(format!("\"{}\" names no agent", sally_common::name::show(pattern)))
            .hint("write a NAME, ZONE/NAME, a pattern like 'web-*', or @FILE")
    })
}

/// What to do with targets that are offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum OfflineArg {
    /// Their runs wait until they come back or the job expires
    #[default]
    Wait,
    /// They are left out
    Skip,
    /// Nothing is submitted if one is offline
    Fail,
}

impl From<OfflineArg> for Offline {
    fn from(arg: OfflineArg) -> Self {
        match arg {
            OfflineArg::Wait => Offline::Wait,
            OfflineArg::Skip => Offline::Skip,
            OfflineArg::Fail => Offline::Fail,
        }
    }
}

/// How dispatches travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum LaneArg {
    /// They wait for their agent
    #[default]
    Queue,
    /// Straight to agents that are connected now; the others refuse at once
    Direct,
}

impl From<LaneArg> for Lane {
    fn from(arg: LaneArg) -> Self {
        match arg {
            LaneArg::Queue => Lane::Queue,
            LaneArg::Direct => Lane::Direct,
        }
    }
}

/// How the work reaches its agents.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Delivery")]
pub(super) struct DeliveryArgs {
    /// What to do with targets that are offline
    #[arg(long, value_enum, value_name = "WHAT", default_value = "wait")]
    pub offline: OfflineArg,
    /// Which of an agent's waiting runs goes first, 0 to 9; within one priority the older
    #[arg(long, value_name = "0-9", default_value_t = limit::PRIORITY_DEFAULT, value_parser = priority())]
    pub priority: u8,
    /// Replace runs of earlier jobs with the same key that still wait for their agent
    #[arg(long, value_name = "KEY", value_parser = latest_key)]
    pub latest_only: Option<String>,
    /// How the work travels: queue waits for the agent, direct needs it connected now
    #[arg(long, value_enum, value_name = "LANE", default_value = "queue")]
    pub lane: LaneArg,
}

/// Reads a priority.
pub(super) fn priority() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=i64::from(limit::PRIORITY_MAX))
}

/// The longest key of `--latest-only`, in bytes.
const LATEST_KEY_MAX: usize = 128;

/// A layer's name, in the form that reports have. Which layers there are an agent knows: a newer one knows more.
fn layer(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    if text.is_empty() || text.len() > 63 || !text.bytes().all(fits) {
        return Err(
            "a layer is named as in the `sandbox` of a result, such as net, seccomp or cgroup-memory".into(),
        );
    }
    Ok(text.replace('-', "_"))
}

pub(super) fn account(text: &str) -> Result<String, String> {
    if !is_account_name(text) {
        return Err("this cannot be the name of an account".into());
    }
    Ok(text.to_owned())
}

fn latest_key(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && text.len() <= LATEST_KEY_MAX && !text.chars().any(char::is_control);
    let error = || format!("a key has 1 to {LATEST_KEY_MAX} bytes and no control characters");
    fine.then(|| text.to_owned()).ok_or_else(error)
}

/// What the task is given and held to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Task")]
pub(super) struct TaskArgs {
    /// A parameter: k=text, or k:=json; the script reads them all in $SALLY_PARAMS_FILE
    #[arg(short, long = "param", value_name = "K=V|K:=JSON")]
    pub params: Vec<String>,
    /// A file with a JSON object of parameters
    #[arg(short = 'P', long, value_name = "FILE")]
    pub params_file: Vec<PathBuf>,
    /// A variable of the script's environment
    #[arg(long, value_name = "K=V")]
    pub env: Vec<String>,
    /// A file that the script reads on standard input, or - for this command's own
    #[arg(long, value_name = "FILE|-")]
    pub stdin: Option<PathBuf>,
    /// The level of isolation: strict (no network), net (with network), host (reads the host's files), admin (root on
    /// the host), or one that the agent's operator defined; what an agent allows is in `sally agent show`
    #[arg(long, value_name = "PROFILE", default_value = "strict", value_parser = str::parse::<ProfileName>)]
    pub profile: ProfileName,
    /// Layers of the sandbox that must be in force, as net,seccomp,cgroup-memory; an agent that cannot enforce one
    /// refuses
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',', value_parser = layer)]
    pub require: Vec<String>,
    /// Run as this account of the agent's host, where the agent allows it
    #[arg(long, value_name = "NAME", value_parser = account, allow_hyphen_values = true)]
    pub user: Option<String>,
    /// Keep the work folder of a run that failed, on the agent's host, for looking into; the run's message says where
    #[arg(long)]
    pub keep: bool,
    /// The longest a run may take; then TERM, and KILL after --grace
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration::parse_positive)]
    pub timeout: Duration,
    /// The time between TERM and KILL
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,
    /// After this time no agent starts it any more
    #[arg(long, value_name = "DUR", default_value = "24h", value_parser = duration::parse_positive)]
    pub expires: Duration,
    /// A run without a structured result has failed
    #[arg(long)]
    pub require_result: bool,
    /// Your own id of this submission: the same id again is the same job
    #[arg(long, value_name = "ID")]
    pub request_id: Option<RequestId>,
    /// A secret, read from a file or - for standard input and sealed to each target; the script finds it as
    /// $SALLY_SECRETS_DIR/NAME
    #[arg(long = "secret", value_name = "NAME=@FILE|NAME=@-")]
    pub secrets: Vec<String>,
    /// Running it twice does no harm, so it may be tried again
    #[arg(long)]
    pub idempotent: bool,
    /// Try again up to N times after a bad end; needs --idempotent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..i64::from(limit::ATTEMPTS_MAX)))]
    pub retries: Option<u32>,
    /// After which ends: failed, retryable, interrupted, timed-out, exit=CODE, exit=FROM-TO [default:
    /// failed,interrupted]
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', requires = "retries", value_parser = str::parse::<RetryOn>)]
    pub retry_on: Vec<RetryOn>,
    /// The wait before the second try; doubled for each one after, and spread
    #[arg(long, value_name = "DUR", default_value = "1s", requires = "retries", value_parser = duration::parse)]
    pub backoff: Duration,
    /// The longest wait between two tries
    #[arg(long, value_name = "DUR", default_value = "5m", requires = "retries", value_parser = duration::parse)]
    pub backoff_max: Duration,
}

/// How to wait and what to show.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Waiting and output")]
pub(super) struct WaitArgs {
    /// Stop waiting after this time; the job goes on, the exit code is 124
    #[arg(long, value_name = "DUR", value_parser = duration::parse_positive, conflicts_with = "detach")]
    pub wait: Option<Duration>,
    /// Print the job's id and do not wait
    #[arg(long, conflicts_with_all = ["stream", "output_dir", "plan"])]
    pub detach: bool,
    /// Show each line as it comes, with its agent's name
    #[arg(long)]
    pub stream: bool,
    /// Write AGENT.out, AGENT.err, AGENT.json, and the files that scripts left behind as
    /// AGENT.artifacts/NAME, into this folder
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Say who would be reached with what, and submit nothing
    #[arg(long, conflicts_with_all = ["stream", "output_dir", "wait"])]
    pub plan: bool,
    /// The encoding of what the scripts print, for showing it, as in gb18030
    #[arg(long, value_name = "ENC", value_parser = text::encoding)]
    pub encoding: Option<&'static encoding_rs::Encoding>,
    #[command(flatten)]
    pub format: OutputArgs,
}

impl WaitArgs {
    /// Refuses what clap cannot see.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let human = matches!(self.format.output, Format::Table | Format::Wide);
        if self.stream && !human {
            return Err(CliError::usage(
                "--stream shows lines for people, so it goes with -o table or wide only",
            )
            .hint("-o jsonl prints each run as it ends; `sally job logs` has the bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(agents: &[&str]) -> Result<Targets, CliError> {
        let agents = agents.iter().map(|a| (*a).to_owned()).collect();
        TargetArgs { agents, ..TargetArgs::default() }.targets()
    }

    #[test]
    fn targets_must_be_said_and_readable() {
        for good in ["local-1", "dmz/web-*", "*", "web-0?"] {
            assert!(targets(&[good]).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a/b/c", "A", "a b", "a.b"] {
            assert!(targets(&[bad]).is_err_and(|e| e.exit.code() == 2), "{bad}");
        }
        assert!(targets(&[]).is_err_and(|e| e.message.contains("no target")));
        let selector = TargetArgs { selectors: vec!["a in (".into()], ..TargetArgs::default() };
        assert!(selector.targets().is_err_and(|e| e.message.contains("character")));
    }

    #[test]
    fn a_file_names_agents() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("list");
        std::fs::write(&path, "# shops\nshop-1\n dmz/web-* # all\n\n").expect("written");
        let word = format!("@{}", path.display());
        let found = targets(&[&word, "x"]).expect("targets");
        assert_eq!(found.agents, ["shop-1", "dmz/web-*", "x"]);
        std::fs::write(&path, "# none\n").expect("written");
        assert!(targets(&[&word]).is_err_and(|e| e.message.contains("names no agent")));
        assert!(targets(&["@/no/such"]).is_err_and(|e| e.message.contains("/no/such")));
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        wait: WaitArgs,
    }

    #[test]
    fn lines_for_people_are_no_records() {
        let check = |line: &str| <Line as clap::Parser>::parse_from(line.split(' ')).wait.check();
        assert!(check("x --stream").is_ok());
        assert!(check("x --stream -o wide").is_ok());
        assert!(check("x -o json").is_ok());
        assert!(check("x --stream -o json").is_err_and(|e| e.exit.code() == 2));
    }
}

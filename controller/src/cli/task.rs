//! Turns flags into an order. All that can be refused without a controller is refused here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sally_common::id::RequestId;
use sally_common::name::User;
use sally_common::selector::Targets;
use sally_common::wire::order::{ACCOUNT_LAYER, Content, Order, Program, Retry, Task};
use sally_common::{limit, params, program, wire};
use serde_json::value::RawValue;

use super::args::TaskArgs;
use super::secret::{self, Secret};
use super::{CliError, duration};

/// An order's task and the contents that do not fit into it.
#[derive(Debug)]
pub(super) struct Prepared {
    task: Task,
    request_id: RequestId,
    expires_ms: i64,
    /// What has to be uploaded first.
    pub blobs: Vec<Vec<u8>>,
    /// What has to be sealed to each target.
    pub secrets: Vec<Secret>,
}

impl Prepared {
    /// The order of this task for these targets.
    pub(super) fn order(&self, by: &User, targets: Targets, now_ms: i64) -> Result<Order, CliError> {
        let order = Order {
            v: wire::VERSION,
            request_id: self.request_id.clone(),
            by: by.clone(),
            created_ms: now_ms,
            expires_ms: now_ms.saturating_add(self.expires_ms),
            targets,
            task: self.task.clone(),
        };
        order.check().map_err(|e| CliError::usage(e.to_string()))?;
        Ok(order)
    }
}

/// What `run` was given.
pub(super) struct Script<'a> {
    pub file: &'a str,
    pub interpreter: Option<&'a str>,
    pub fix_crlf: bool,
    pub args: &'a [String],
}

/// Prepares a script or a binary.
pub(super) fn script(script: &Script<'_>, args: &TaskArgs) -> Result<Prepared, CliError> {
    let path = script_path(script.file)?;
    check_stdin(path.is_none(), args)?;
    let what = if path.is_none() { "standard input" } else { script.file };
    let mut bytes = read(path, what)?;
    if script.fix_crlf {
        bytes = program::fix_crlf(&bytes);
    }
    program::check(&bytes, script.interpreter.is_some())
        .map_err(|problem| CliError::usage(format!("{what}: {problem}")))?;
    let content = Content::of(&bytes);
    let blobs = if content.text.is_none() { vec![bytes] } else { Vec::new() };
    let interpreter = script.interpreter.map(str::to_owned);
    let name = path.and_then(Path::file_name).map_or("stdin".into(), |n| n.to_string_lossy());
    task(Program::Script { content, interpreter }, name.into_owned(), script.args, args, blobs)
}

/// Prepares a command.
pub(super) fn command(words: &[String], args: &TaskArgs) -> Result<Prepared, CliError> {
    check_stdin(false, args)?;
    // A title is one line, also of a program that has many.
    let words_on_a_line = words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let title: String = words_on_a_line.chars().take(80).collect();
    task(Program::Command, title, words, args, Vec::new())
}

/// Standard input can be read once: as the script, as what the script reads, or as a secret.
fn check_stdin(is_script: bool, args: &TaskArgs) -> Result<(), CliError> {
    let is_input = args.stdin.as_deref() == Some(Path::new("-"));
    let secrets = args.secrets.iter().filter(|s| secret::is_stdin(s)).count();
    let users = [(is_script, "the script"), (is_input, "what the script reads"), (secrets > 0, "a secret")];
    let users: Vec<&str> = users.into_iter().filter(|(uses, _)| *uses).map(|(_, who)| who).collect();
    if users.len() > 1 {
        return Err(CliError::usage(format!("standard input cannot be both {}", users.join(" and "))));
    }
    Ok(())
}

/// `-` is standard input; with a `/` or a `.` it is a file; anything else is the name of a stored task.
fn script_path(text: &str) -> Result<Option<&Path>, CliError> {
    if text == "-" {
        return Ok(None);
    }
    if text.contains(['/', '.']) {
        return Ok(Some(Path::new(text)));
    }
    let shown = sally_common::name::show(text);
    let failed = CliError::usage(format!("there is no task named \"{shown}\""));
    Err(if Path::new(text).is_file() {
        failed.hint(format!("to run the file of that name write ./{shown}"))
    } else {
        failed.hint("a file's name needs a / or a ., as in ./check or check.sh; - reads standard input")
    })
}

fn task(
    program: Program,
    title: String,
    words: &[String],
    args: &TaskArgs,
    mut blobs: Vec<Vec<u8>>,
) -> Result<Prepared, CliError> {
    let stdin = match &args.stdin {
        None => None,
        Some(path) => {
            let path = Some(path.as_path()).filter(|p| *p != Path::new("-"));
            let bytes = read(path, "the standard input for the script")?;
            let content = Content::of(&bytes);
            if content.text.is_none() {
                blobs.push(bytes);
            }
            Some(content)
        }
    };
    let secrets = secret::read(&args.secrets)?;
    let task = Task {
        retry: retry(args)?,
        title: Some(title),
        name: None,
        program,
        args: words.to_vec(),
        env: environment(&args.env)?,
        params: parameters(args)?,
        stdin,
        secrets: Vec::new(),
        profile: args.profile.clone(),
        require_layers: required(args),
        user: args.user.clone(),
        keep: args.keep,
        timeout_ms: duration::ms(args.timeout),
        grace_ms: duration::ms(args.grace),
        require_result: args.require_result,
        idempotent: args.idempotent,
    };
    Ok(Prepared {
        task,
        request_id: args.request_id.clone().unwrap_or_else(RequestId::generate),
        expires_ms: i64::try_from(args.expires.as_millis()).unwrap_or(i64::MAX),
        blobs,
        secrets,
    })
}

/// The layers of `--require`, each once, and with `--user` the one that every agent must know then.
fn required(args: &TaskArgs) -> Vec<String> {
    let account = args.user.iter().map(|_| ACCOUNT_LAYER.to_owned());
    args.require.iter().cloned().chain(account).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What `--retries` and its companions say. A task without `--idempotent` is never tried again.
fn retry(args: &TaskArgs) -> Result<Option<Retry>, CliError> {
    let Some(retries) = args.retries else { return Ok(None) };
    let retry = Retry {
        attempts: retries.saturating_add(1),
        on: args.retry_on.clone(),
        backoff_ms: duration::ms(args.backoff),
        backoff_max_ms: duration::ms(args.backoff_max),
    };
    retry.check(args.idempotent).map_err(CliError::usage)?;
    Ok(Some(retry))
}

fn environment(pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut env = BTreeMap::new();
    for pair in pairs {
        let shown = sally_common::name::show(pair);
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(CliError::usage(format!("--env \"{shown}\": write it as NAME=VALUE")));
        };
        if key.starts_with("SALLY_") {
            return Err(CliError::usage(format!(
                "--env {shown}: names that begin with SALLY_ are Sally's own"
            )));
        }
        if env.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(CliError::usage(format!("--env {shown}: it is given twice")));
        }
    }
    Ok(env)
}

fn parameters(args: &TaskArgs) -> Result<Option<Box<RawValue>>, CliError> {
    if args.params.is_empty() && args.params_file.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for path in &args.params_file {
        let shown = path.display().to_string();
        files.push((shown.clone(), read(Some(path), &format!("-P {shown}"))?));
    }
    let object = params::read_params(&args.params, &files).map_err(|e| CliError::usage(e.to_string()))?;
    let raw = RawValue::from_string(object.into_string()).map_err(|e| CliError::internal(e.to_string()))?;
    Ok(Some(raw))
}

/// Reads a file, or standard input, up to the largest blob.
pub(super) fn read(path: Option<&Path>, what: &str) -> Result<Vec<u8>, CliError> {
    let failed = |e: io::Error| CliError::usage(format!("cannot read {what}: {e}"));
    let source: Box<dyn Read> = match path {
        None => Box::new(io::stdin()),
        Some(path) => {
            let file = File::open(path).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => CliError::usage(format!("there is no file {}", path.display())),
                _ => CliError::usage(format!("cannot read {}: {e}", path.display())),
            })?;
            if file.metadata().is_ok_and(|m| m.is_dir()) {
                return Err(CliError::usage(format!("{} is a folder, not a file", path.display())));
            }
            Box::new(file)
        }
    };
    let mut bytes = Vec::new();
    source.take(limit::BLOB_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit::BLOB_MAX {
        let max = limit::BLOB_MAX / 1024 / 1024;
        return Err(CliError::usage(format!(
            "{what} is larger than {max} MiB, the most that is sent to agents"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;

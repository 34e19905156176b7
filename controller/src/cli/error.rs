//! The one place where an error becomes words: what was wrong and where, then what to do next.

use std::ffi::OsString;
use std::io;

use serde_json::json;

use super::exit::Exit;
use super::{out, text};
use crate::client::ClientError;
use crate::context::ContextError;

/// An error as the command line shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// How the program ends.
    pub exit: Exit,
    /// What was wrong and where, a fragment in lower case.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl CliError {
    /// An error with this ending and these words.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The command line makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The program failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Exit::Internal, message)
    }

    /// The same with what to do next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Api(api) => {
                Self { exit: Exit::of_error(api.code), message: api.message, hint: api.hint }
            }
            ClientError::Broker { .. } => Self::new(Exit::Unreachable, message)
                .hint("is `sally up` running? `sally context show` says which broker is meant"),
            ClientError::NoController { .. } => Self::new(Exit::Unreachable, message).hint(
                "the broker runs but `sally serve` or `sally up` does not serve; start it and try again",
            ),
            ClientError::NotTrusted { .. } => Self::new(Exit::Unreachable, message)
                .hint("get a new context file from whoever runs the controller"),
            ClientError::Uncertain { ref request_id, .. } => Self::new(Exit::Unreachable, message).hint(
                format!("repeat the command with --request-id {request_id}: it then runs at most once"),
            ),
            ClientError::TooLarge { .. } => Self::usage(message),
            ClientError::Key(_) | ClientError::Creds(_) => {
                Self::usage(message).hint("the context names this file: see `sally context show`")
            }
            ClientError::Shape { .. } | ClientError::Upload(_) => Self::internal(message),
        }
    }
}

impl From<ContextError> for CliError {
    fn from(error: ContextError) -> Self {
        let none = matches!(error, ContextError::None);
        let failed = Self::usage(error.to_string());
        if none {
            return failed
                .hint("start a controller with `sally up`, or name a context file with --context PATH");
        }
        failed
    }
}

/// Writing to stdout failed. A closed pipe is how `head` says that it has enough.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::PipeClosed, ""),
            _ => Self::internal(format!("cannot write the output: {error}")),
        }
    }
}

/// Turns what the argument parser said into ours. Help and version are no errors and go to stdout.
pub(super) fn of_clap(error: &clap::Error) -> Result<Exit, CliError> {
    use clap::error::ErrorKind;
    let styled = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            out::styled(&styled.ansi().to_string())?;
            Ok(Exit::Success)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(CliError::usage("a command is missing").hint(styled.to_string().trim_end().to_owned()))
        }
        _ => {
            let text = styled.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
            let rest = rest.trim_end();
            let failed = CliError::usage(message.trim_end());
            Err(if rest.is_empty() { failed } else { failed.hint(rest.to_owned()) })
        }
    }
}

/// Prints an error to stderr, as one JSON object if asked so, and returns how the program ends.
pub(super) fn report(error: &CliError, json: bool) -> Exit {
    if error.exit != Exit::PipeClosed {
        // Stderr may be gone as well; there is nobody left to tell.
        let _ = out::note(&words(error, json));
    }
    error.exit
}

fn words(error: &CliError, as_json: bool) -> String {
    let CliError { exit, message, hint } = error;
    if as_json {
        return json!({"code": exit.word(), "exit": exit.code(), "message": message, "hint": hint})
            .to_string();
    }
    // The controller's words may quote what others wrote.
    let message = text::sanitise(message);
    match hint {
        Some(hint) => format!("sally: {message}\nhint: {}", text::sanitise(hint)),
        None => format!("sally: {message}"),
    }
}

/// Whether the command line asks for JSON, so that even an error in it is told as JSON.
pub(super) fn wants_json(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().skip(1).map(|a| a.to_string_lossy()).take_while(|a| a != "--");
    let is_json = |value: &str| matches!(value, "json" | "jsonl");
    while let Some(word) = words.next() {
        let value = match word.as_ref() {
            "-o" | "--output" => words.next().map(|v| v.into_owned()),
            other => other
                .strip_prefix("--output=")
                .or_else(|| other.strip_prefix("-o="))
                .or_else(|| other.strip_prefix("-o").filter(|_| !other.starts_with("--")))
                .map(str::to_owned),
        };
        if value.is_some_and(|v| is_json(&v)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_sentence_and_a_hint() {
        let error = CliError::usage("no target given").hint("name agents with -a");
        assert_eq!(words(&error, false), "sally: no target given\nhint: name agents with -a");
        let json: serde_json::Value = serde_json::from_str(&words(&error, true)).expect("JSON");
        assert_eq!(json["exit"], 2);
        assert_eq!(json["code"], "usage");
        assert_eq!(json["hint"], "name agents with -a");
        let hostile = CliError::internal("no \u{1b}[2J");
        assert_eq!(words(&hostile, false), "sally: no \\x1b[2J");
    }

    #[test]
    fn json_is_seen_before_the_line_is_parsed() {
        let check = |line: &str, expected: bool| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(wants_json(&words), expected, "{line}");
        };
        check("sally job ls -o json", true);
        check("sally job ls -ojsonl", true);
        check("sally job ls --output=json --nonsense", true);
        check("sally job ls -o table", false);
        check("sally exec -a x -- jq -o json", false);
        check("sally run --output-dir json", false);
    }
}

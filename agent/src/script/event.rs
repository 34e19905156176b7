//! Events: objects with one key that begins with `@`. They report about the run and are no part of its result.
//!
//! A known event with a malformed payload makes the result `invalid`, so that nobody has to guess what was
//! meant; unknown fields inside a payload are ignored, as unknown events are, so that newer scripts run on
//! older agents.

use std::path::{Component, Path};

use sally_common::json::{JsonText, Members, Node};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// The longest event, in bytes: an event is a line about the run, not data.
pub const EVENT_BYTES: usize = 64 * 1024;

/// The longest code of a failure, in bytes.
pub const CODE_BYTES: usize = 64;

/// The longest path or name of an artifact, in bytes.
pub const ARTIFACT_BYTES: usize = 1024;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `@progress`: how far the script is.
    Progress(Progress),
    /// `@log`: a line with a level and fields.
    Log(LogEvent),
    /// `@artifact`: a file of the work folder to keep.
    Artifact(Artifact),
    /// `@mask`: a value to take out of the output.
    Mask(String),
    /// `@changed`: whether the script changed anything.
    Changed(bool),
    /// `@fail`: the script says itself that it failed, and why.
    Fail(Failure),
    /// A single `@key` that this version does not know: counted and ignored.
    Unknown,
}

/// How far a script is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is done, in the script's own unit; at least 0. Absent if the script gave only a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<Number>,
    /// All there is to do, in the same unit; more than 0. Absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Number>,
    /// What the script is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Progress {
    /// Returns how much is done, from 0 to 1, if the script gave a total.
    pub fn fraction(&self) -> Option<f64> {
        let (done, total) = (self.done.as_ref()?.as_f64()?, self.total.as_ref()?.as_f64()?);
        Some((done / total).clamp(0.0, 1.0))
    }
}

/// The weight of a log event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For the script's author.
    Debug,
    /// The default.
    Info,
    /// Something is off; the script goes on.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    /// Returns the level of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" => Self::Warn,
            "error" => Self::Error,
            _ => return None,
        })
    }
}

/// A line that a script logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEvent {
    /// The weight.
    pub level: Level,
    /// The line.
    pub text: String,
    /// What else stood in the payload: an object, as it was written. Absent if there was nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<JsonText>,
}

/// A file of the work folder to keep with the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The path, relative to the work folder; it has no `.` and no `..` in it.
    pub path: String,
    /// The name to keep it under: one path component, the path's last one unless the script named it.
    pub name: String,
}

/// A failure in the script's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The script's code for it: 1 to 64 bytes of `A-Z a-z 0-9 _ . -`.
    pub code: String,
    /// What happened.
    pub text: String,
    /// Whether trying again may help.
    pub retryable: bool,
}

/// Returns the event's key if these members are an event.
pub fn event_key<'m>(members: &'m Members<'_>) -> Option<&'m str> {
    match members.iter().next() {
        Some((key, _)) if members.len() == 1 && key.starts_with('@') => Some(key),
        _ => None,
    }
}

/// Reads the event that `members` are; `None` if they are plain data.
///
/// # Errors
/// With what is wrong in the payload of a known event.
pub fn read_event(members: &Members<'_>) -> Result<Option<Event>, String> {
    let Some(key) = event_key(members) else { return Ok(None) };
    let Some((_, payload)) = members.iter().next() else { return Ok(None) };
    let event = match key {
        "@progress" => progress(payload).map(Event::Progress),
        "@log" => log(payload).map(Event::Log),
        "@artifact" => artifact(payload).map(Event::Artifact),
        "@mask" => string(payload, "a string").map(Event::Mask),
        "@changed" => boolean(payload).map(Event::Changed),
        "@fail" => fail(payload).map(Event::Fail),
        _ => return Ok(Some(Event::Unknown)),
    };
    event.map(Some).map_err(|message| format!("{key}: {message}"))
}

/// Returns why `code` cannot be a failure's code, if it cannot.
pub fn check_code(code: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if (1..=CODE_BYTES).contains(&code.len()) && code.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("`code` must be 1 to {CODE_BYTES} of A-Z a-z 0-9 _ . -"))
}

/// Returns the artifact at `path` (relative to the work folder), or why there can be none.
pub fn check_artifact(path: &str, name: Option<&str>) -> Result<Artifact, String> {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    // A leading `./` is how `find` and people write paths; `Path` drops every other `.` by itself.
    let parts = if parts.first() == Some(&Component::CurDir) { &parts[1..] } else { &parts[..] };
    let normal: Option<Vec<&str>> = parts
        .iter()
        .map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    let normal = match normal {
        Some(normal) if !normal.is_empty() && path.len() <= ARTIFACT_BYTES && !path.contains('\0') => normal,
        _ => {
            return Err(format!(
                "`path` must be a file below the work folder, without `..`, at most {ARTIFACT_BYTES} bytes"
            ));
        }
    };
    let name = name.or(normal.last().copied()).unwrap_or_default();
    let plain = !name.is_empty() && name.len() <= 255 && name != "." && name != "..";
    if !plain || name.contains('/') || name.chars().any(char::is_control) {
        return Err("`name` must be one path component without control characters".to_owned());
    }
    Ok(Artifact { path: normal.join("/"), name: name.to_owned() })
}

fn progress(payload: &Node<'_>) -> Result<Progress, String> {
    let shape = "expected {\"done\", \"total\", \"text\"}, a fraction from 0 to 1, or a string";
    if let Some(text) = payload.as_string() {
        return Ok(Progress { done: None, total: None, text: Some(text.into_owned()) });
    }
    let Node::Object(members) = payload else {
        let done = number(payload).filter(|n| n.as_f64().is_some_and(|n| (0.0..=1.0).contains(&n)));
        return done
            .map(|done| Progress { done: Some(done), total: Some(Number::from(1)), text: None })
            .ok_or_else(|| shape.to_owned());
    };
    let read = |key: &str| match present(members, key) {
        None => Ok(None),
        Some(node) => number(node).map(Some).ok_or_else(|| format!("`{key}` must be a number")),
    };
    let text = present(members, "text").map(|node| string(node, "a string as `text`")).transpose()?;
    let progress = Progress { done: read("done")?, total: read("total")?, text };
    let at_least =
        |n: &Option<Number>, ok: fn(f64) -> bool| n.as_ref().and_then(Number::as_f64).is_none_or(ok);
    if progress.done.is_none() && progress.text.is_none() {
        return Err(shape.to_owned());
    }
    if !at_least(&progress.done, |n| n >= 0.0) || !at_least(&progress.total, |n| n > 0.0) {
        return Err("`done` must be at least 0 and `total` more than 0".to_owned());
    }
    Ok(progress)
}

fn log(payload: &Node<'_>) -> Result<LogEvent, String> {
    if let Some(text) = payload.as_string() {
        return Ok(LogEvent { level: Level::Info, text: text.into_owned(), fields: None });
    }
    let Node::Object(members) = payload else {
        return Err("expected {\"level\", \"text\", …} or a string".to_owned());
    };
    let mut rest = members.clone();
    let text = rest.remove("text").ok_or("`text` is missing")?;
    let text = string(&text, "a string as `text`")?;
    let level = match rest.remove("level") {
        None => Level::Info,
        Some(node) => node
            .as_string()
            .and_then(|name| Level::from_name(&name))
            .ok_or("`level` must be debug, info, warn or error")?,
    };
    let fields = (!rest.is_empty()).then(|| Node::Object(rest).to_json());
    Ok(LogEvent { level, text, fields })
}

fn artifact(payload: &Node<'_>) -> Result<Artifact, String> {
    if let Some(path) = payload.as_string() {
        return check_artifact(&path, None);
    }
    let Node::Object(members) = payload else {
        return Err("expected {\"path\", \"name\"} or a string".to_owned());
    };
    let path = string(members.get("path").ok_or("`path` is missing")?, "a string as `path`")?;
    let name = present(members, "name").map(|node| string(node, "a string as `name`")).transpose()?;
    check_artifact(&path, name.as_deref())
}

fn fail(payload: &Node<'_>) -> Result<Failure, String> {
    let Node::Object(members) = payload else {
        return Err("expected {\"code\", \"text\", \"retryable\"}".to_owned());
    };
    let code = string(members.get("code").ok_or("`code` is missing")?, "a string as `code`")?;
    check_code(&code)?;
    let text = present(members, "text").map(|node| string(node, "a string as `text`")).transpose()?;
    let retryable = present(members, "retryable").map(boolean).transpose()?.unwrap_or(false);
    Ok(Failure { code, text: text.unwrap_or_default(), retryable })
}

/// An optional field: `null` says the same as its absence.
fn present<'m, 'a>(members: &'m Members<'a>, key: &str) -> Option<&'m Node<'a>> {
    members.get(key).filter(|node| !matches!(node, Node::Leaf("null")))
}

fn string(node: &Node<'_>, expected: &str) -> Result<String, String> {
    node.as_string().map(|text| text.into_owned()).ok_or_else(|| format!("expected {expected}"))
}

fn boolean(node: &Node<'_>) -> Result<bool, String> {
    match node {
        Node::Leaf("true") => Ok(true),
        Node::Leaf("false") => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

fn number(node: &Node<'_>) -> Option<Number> {
    match node {
        Node::Leaf(text) => serde_json::from_str(text).ok(),
        Node::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

    use sally_common::json::parse;

    use super::*;

    fn read(text: &str) -> Result<Option<Event>, String> {
        match parse(text, 64).unwrap() {
            Node::Object(members) => read_event(&members),
            Node::Leaf(_) => panic!("{text} is no object"),
        }
    }

    #[track_caller]
    fn refused(text: &str, part: &str) {
        let error = read(text).expect_err(text);
        assert!(error.contains(part), "{text}: {error}");
    }

    #[track_caller]
    fn progress_of(text: &str) -> (Option<f64>, Option<String>) {
        match read(text) {
            Ok(Some(Event::Progress(progress))) => (progress.fraction(), progress.text),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn only_a_single_key_makes_an_event() {
        assert_eq!(read(r#"{"@log":"x","a":1}"#), Ok(None));
        assert_eq!(read(r#"{"a":1}"#), Ok(None));
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read(r#"{"@new":{"x":1}}"#), Ok(Some(Event::Unknown)));
        assert_eq!(read(r#"{"\u0040changed":true}"#), Ok(Some(Event::Changed(true))));
    }

    #[test]
    fn progress() {
        assert_eq!(
            progress_of(r#"{"@progress":{"done":3,"total":10,"text":"x"}}"#),
            (Some(0.3), Some("x".into()))
        );
        assert_eq!(progress_of(r#"{"@progress":0.5}"#), (Some(0.5), None));
        assert_eq!(progress_of(r#"{"@progress":"reading"}"#), (None, Some("reading".into())));
        assert_eq!(progress_of(r#"{"@progress":{"done":12}}"#), (None, None));
        assert_eq!(
            progress_of(r#"{"@progress":{"done":12,"total":10,"text":null,"new":1}}"#),
            (Some(1.0), None)
        );
        refused(r#"{"@progress":50}"#, "from 0 to 1");
        refused(r#"{"@progress":{}}"#, "expected");
        refused(r#"{"@progress":{"done":"3"}}"#, "`done` must be a number");
        refused(r#"{"@progress":{"done":-1}}"#, "at least 0");
        refused(r#"{"@progress":{"done":1,"total":0}}"#, "more than 0");
        refused(r#"{"@progress":null}"#, "expected");
    }

    #[test]
    fn log() {
        let event = |text: &str| match read(text) {
            Ok(Some(Event::Log(log))) => serde_json::to_string(&log).unwrap(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(event(r#"{"@log":"hi"}"#), r#"{"level":"info","text":"hi"}"#);
        assert_eq!(
            event(r#"{"@log":{"level":"warn","text":"t","id":12345678901234567890123}}"#),
            r#"{"level":"warn","text":"t","fields":{"id":12345678901234567890123}}"#
        );
        refused(r#"{"@log":{"level":"loud","text":"t"}}"#, "debug, info");
        refused(r#"{"@log":{"level":"info"}}"#, "`text` is missing");
        refused(r#"{"@log":1}"#, "expected");
    }

    #[test]
    fn artifacts_stay_in_the_work_folder() {
        let event = |text: &str| match read(text) {
            Ok(Some(Event::Artifact(artifact))) => (artifact.path, artifact.name),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(event(r#"{"@artifact":"out/a.txt"}"#), ("out/a.txt".into(), "a.txt".into()));
        assert_eq!(event(r#"{"@artifact":{"path":"./a//b","name":"c"}}"#), ("a/b".into(), "c".into()));
        for path in ["/etc/passwd", "../x", "a/../../x", "", ".", "a\\u0000b"] {
            refused(&format!(r#"{{"@artifact":"{path}"}}"#), "`path`");
        }
        for name in ["a/b", "", "..", "a\\nb"] {
            refused(&format!(r#"{{"@artifact":{{"path":"a","name":"{name}"}}}}"#), "`name`");
        }
        refused(r#"{"@artifact":{"name":"a"}}"#, "`path` is missing");
    }

    #[test]
    fn mask_changed_and_fail() {
        assert_eq!(read(r#"{"@mask":"s3cret"}"#), Ok(Some(Event::Mask("s3cret".into()))));
        refused(r#"{"@mask":12345}"#, "@mask: expected a string");
        refused(r#"{"@changed":"yes"}"#, "true or false");
        let failure = Failure { code: "E_LOCK".into(), text: "busy".into(), retryable: true };
        assert_eq!(
            read(r#"{"@fail":{"code":"E_LOCK","text":"busy","retryable":true}}"#),
            Ok(Some(Event::Fail(failure)))
        );
        let bare = Failure { code: "E".into(), text: String::new(), retryable: false };
        assert_eq!(read(r#"{"@fail":{"code":"E"}}"#), Ok(Some(Event::Fail(bare))));
        refused(r#"{"@fail":"broken"}"#, "expected {\"code\"");
        refused(r#"{"@fail":{"text":"x"}}"#, "`code` is missing");
        refused(r#"{"@fail":{"code":"a b"}}"#, "`code` must be");
    }
}

//! `sally-task`: the helper that scripts call. It makes one JSON value of its arguments and writes it through a
//! result door. It is started for every report, so it stays small: no argument parser, no runtime.
//!
//! In `set`, `key=value` is always the literal value, whatever it begins with: a helper that read a file because
//! a value out of the world begins with `@` would hand over files nobody meant. Files have their own operators.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use sally_common::json::{self, Node};

use super::door::{DoorError, Doors};
use super::event::{self, EVENT_BYTES, Level};
use super::mask::MIN_BYTES;
use super::stream::ResultLimits;

const HELP: &str = "\
sally-task: report from inside a script that Sally runs

usage:
  sally-task set KEY=TEXT… KEY:=JSON… KEY@=FILE… KEY:=@FILE…
  sally-task progress DONE/TOTAL [TEXT…]
  sally-task progress PERCENT% [TEXT…]
  sally-task progress TEXT…
  sally-task log [--level debug|info|warn|error] TEXT…
  sally-task artifact PATH [--name NAME]
  sally-task mask VALUE|-
  sally-task changed true|false
  sally-task fail --code CODE [--retryable] [TEXT…]

set       adds members to the result object. Objects of several calls merge, later keys win.
            KEY=TEXT    a string, exactly as given, also if it begins with @
            KEY:=JSON   a number, true, false, null, a list or an object
            KEY@=FILE   the text of a file, as a string
            KEY:=@FILE  the JSON in a file
          FILE may be - for standard input. A dot in KEY is just a dot. KEY cannot begin with @.
progress  says how far the script is; shown live, the last one stays with the run.
log       adds a line with a level to the run.
artifact  keeps a file, as it is when the run ends. PATH is relative to the work folder, or below $HOME; no
          links, no folders. NAME is its name for the reader. Nothing is masked in it.
mask      takes VALUE out of the run's output from now on; - reads it from standard input, where other
          processes do not see it. At least 4 bytes; each line of a longer text is masked too.
changed   says whether the script changed anything.
fail      marks the run failed, with a code of A-Z a-z 0-9 _ . - (at most 64). It does not end the script.

examples:
  sally-task set host=\"$(hostname)\" cpus:=\"$(nproc)\" motd@=/etc/motd
  lsblk -J | sally-task set disks:=@-
  sally-task progress 3/10 \"restarting web-3\"
  sally-task fail --code E_LOCK --retryable \"dpkg is busy\"; exit 1

The report goes to descriptor $SALLY_RESULT_FD (3). A child that lost the descriptor (sudo closes it) reports
to $SALLY_RESULT_FILE instead. Exit code: 0 reported, 1 could not write, 2 wrong use or outside a run.
";

/// The most that is read from a file or from standard input: what a result may have, and one byte to notice more.
const READ_BYTES: u64 = (1 << 20) + 1;

/// Runs `sally-task` with its arguments (without its name) and returns its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = compose(args, &mut read_source).and_then(|command| match command {
        Command::Help => {
            io::stdout().write_all(HELP.as_bytes()).map_err(|error| TaskError::Failed(error.to_string()))
        }
        Command::Report(line) => Doors::from_env().write(&line).map_err(|error| match error {
            DoorError::NoDoor(_) => TaskError::Usage(error.to_string()),
            DoorError::Write { .. } => TaskError::Failed(error.to_string()),
        }),
    });
    let (message, code) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(TaskError::Failed(message)) => (message, 1),
        Err(TaskError::Usage(message)) => (message, 2),
    };
    // Nothing is left to do when standard error is closed too: the exit code says it.
    let _ = writeln!(io::stderr(), "sally-task: {message}");
    ExitCode::from(code)
}

/// The line that `sally-task` would write; every file has this content. For the tests that throw any arguments at it (`fuzz/`).
#[doc(hidden)]
pub fn line_of(args: impl IntoIterator<Item = OsString>, file: &[u8]) -> Option<String> {
    match compose(args, &mut |_| Ok(file.to_vec())) {
        Ok(Command::Report(line)) => Some(line),
        Ok(Command::Help) | Err(_) => None,
    }
}

/// What the arguments ask for.
#[derive(Debug, PartialEq)]
enum Command {
    Help,
    /// One JSON value and a newline.
    Report(String),
}

#[derive(Debug, PartialEq)]
enum TaskError {
    Usage(String),
    Failed(String),
}

/// Reads a file, or standard input for `-`.
type Source<'s> = &'s mut dyn FnMut(&str) -> Result<Vec<u8>, TaskError>;

fn compose(args: impl IntoIterator<Item = OsString>, source: Source<'_>) -> Result<Command, TaskError> {
    let args: Result<Vec<String>, OsString> = args.into_iter().map(OsString::into_string).collect();
    let args = args.map_err(|bad| usage(format!("the argument {} is not UTF-8", bad.display())))?;
    let Some((verb, rest)) = args.split_first() else {
        return Err(usage("say what to report; sally-task --help lists it"));
    };
    // Only in the first place: a text that a script passes on may well be `--help`.
    if matches!(verb.as_str(), "--help" | "-h" | "help") {
        return Ok(Command::Help);
    }
    let line = match verb.as_str() {
        "set" => set(rest, source)?,
        "progress" => event("@progress", progress(rest)?)?,
        "log" => event("@log", log(rest)?)?,
        "artifact" => event("@artifact", artifact(rest)?)?,
        "mask" => event("@mask", mask(rest, source)?)?,
        "changed" => event("@changed", changed(rest)?)?,
        "fail" => event("@fail", fail(rest)?)?,
        other => {
            return Err(usage(format!("`{other}` is not something to report; sally-task --help lists it")));
        }
    };
    Ok(Command::Report(line + "\n"))
}

fn set(args: &[String], source: Source<'_>) -> Result<String, TaskError> {
    if args.is_empty() {
        return Err(usage("set: give at least one KEY=TEXT or KEY:=JSON"));
    }
    let mut seen = HashSet::new();
    let mut object = Json::object();
    for arg in args {
        let (key, value) = member(arg, source)?;
        if key.is_empty() || key.starts_with('@') {
            return Err(usage(format!("set: `{arg}` has no KEY, or one that begins with @")));
        }
        if !seen.insert(key) {
            return Err(usage(format!("set: the key {key} is given twice")));
        }
        object.raw(key, &value);
    }
    Ok(object.end())
}

/// Returns the key of one argument of `set`, and its value as JSON.
fn member<'a>(arg: &'a str, source: Source<'_>) -> Result<(&'a str, String), TaskError> {
    let Some((left, right)) = arg.split_once('=') else {
        return Err(usage(format!("set: `{arg}` has no `=`; write KEY=TEXT or KEY:=JSON")));
    };
    if let Some(key) = left.strip_suffix(':') {
        let bytes = match right.strip_prefix('@') {
            Some(path) => source(path)?,
            None => right.as_bytes().to_vec(),
        };
        let value = json::utf8(&bytes).and_then(|text| json::parse(text, ResultLimits::default().depth - 1));
        let value = value.map_err(|error| usage(format!("set: {key} is not JSON: {error}")))?;
        return Ok((key, value.to_json().into_string()));
    }
    if let Some(key) = left.strip_suffix('@') {
        let text = String::from_utf8(source(right)?);
        let text = text.map_err(|_| usage(format!("set: {right} is not UTF-8 text, which {key} must be")))?;
        return Ok((key, quoted(&text)));
    }
    Ok((left, quoted(right)))
}

fn progress(args: &[String]) -> Result<String, TaskError> {
    let Some((first, rest)) = args.split_first() else {
        return Err(usage("progress: give DONE/TOTAL, PERCENT% or a text"));
    };
    let amount = match (first.split_once('/'), first.strip_suffix('%')) {
        (Some((done, total)), _) if is_number(done) && is_number(total) => Some((done, total)),
        (_, Some(percent)) if is_number(percent) => Some((percent, "100")),
        _ => None,
    };
    let Some((done, total)) = amount else { return Ok(quoted(&args.join(" "))) };
    let mut object = Json::object();
    object.raw("done", done);
    object.raw("total", total);
    if !rest.is_empty() {
        object.string("text", &rest.join(" "));
    }
    Ok(object.end())
}

fn log(args: &[String]) -> Result<String, TaskError> {
    let options = Options::read("log", args, &["--level"], &[])?;
    let level = options.value("--level").unwrap_or("info");
    if Level::from_name(level).is_none() {
        return Err(usage(format!("log: the level {level} is not debug, info, warn or error")));
    }
    if options.words.is_empty() {
        return Err(usage("log: give a text"));
    }
    let mut object = Json::object();
    object.string("level", level);
    object.string("text", &options.words.join(" "));
    Ok(object.end())
}

fn artifact(args: &[String]) -> Result<String, TaskError> {
    let options = Options::read("artifact", args, &["--name"], &[])?;
    let [path] = options.words[..] else {
        return Err(usage("artifact: give one PATH"));
    };
    let home = std::env::var("HOME").unwrap_or_default();
    let relative = below(path, &home).unwrap_or(path);
    let artifact = event::check_artifact(relative, options.value("--name"));
    let artifact = artifact.map_err(|message| usage(format!("artifact: {message}")))?;
    let mut object = Json::object();
    object.string("path", &artifact.path);
    object.string("name", &artifact.name);
    Ok(object.end())
}

/// Returns the part of an absolute `path` below `folder`.
fn below<'p>(path: &'p str, folder: &str) -> Option<&'p str> {
    let folder = folder.trim_end_matches('/');
    if folder.is_empty() {
        return None;
    }
    path.strip_prefix(folder)?.strip_prefix('/')
}

fn mask(args: &[String], source: Source<'_>) -> Result<String, TaskError> {
    let value = match args {
        [dash] if dash == "-" => String::from_utf8(source("-")?)
            .map_err(|_| usage("mask: standard input is not UTF-8 text"))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        [value] => value.clone(),
        _ => return Err(usage("mask: give one VALUE, in quotes if it has spaces, or - for standard input")),
    };
    if value.len() < MIN_BYTES {
        return Err(usage(format!("mask: a value of fewer than {MIN_BYTES} bytes cannot be masked")));
    }
    Ok(quoted(&value))
}

fn changed(args: &[String]) -> Result<String, TaskError> {
    match args {
        [word] if word == "true" || word == "false" => Ok(word.clone()),
        _ => Err(usage("changed: say true or false")),
    }
}

fn fail(args: &[String]) -> Result<String, TaskError> {
    let options = Options::read("fail", args, &["--code"], &["--retryable"])?;
    let code = options.value("--code").ok_or_else(|| usage("fail: --code CODE is missing"))?;
    event::check_code(code).map_err(|message| usage(format!("fail: {message}")))?;
    let mut object = Json::object();
    object.string("code", code);
    object.string("text", &options.words.join(" "));
    object.raw("retryable", if options.flag("--retryable") { "true" } else { "false" });
    Ok(object.end())
}

/// Makes an event of a payload, and reads it back: what this program writes, the agent accepts.
fn event(key: &str, payload: String) -> Result<String, TaskError> {
    let line = format!("{{\"{key}\":{payload}}}");
    if line.len() > EVENT_BYTES {
        return Err(usage(format!(
            "{} bytes are too long for a report, at most {EVENT_BYTES} fit",
            line.len()
        )));
    }
    match json::parse(&line, ResultLimits::default().depth) {
        Ok(Node::Object(members)) => match event::read_event(&members) {
            Ok(_) => {}
            Err(message) => return Err(usage(message.trim_start_matches('@').to_owned())),
        },
        Ok(Node::Leaf(_)) => {}
        Err(error) => return Err(usage(error.to_string())),
    }
    Ok(line)
}

/// Options and words of one verb. Options stand before the words or after them; `--` ends the options.
struct Options<'a> {
    values: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
    words: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn read(verb: &str, args: &'a [String], valued: &[&str], flags: &[&str]) -> Result<Self, TaskError> {
        let mut options = Self { values: Vec::new(), flags: Vec::new(), words: Vec::new() };
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value)),
                _ => (arg, None),
            };
            if arg == "--" {
                options.words.extend(args.by_ref());
            } else if valued.contains(&name) {
                let value = inline.or_else(|| args.next());
                let value = value.ok_or_else(|| usage(format!("{verb}: {name} needs a value")))?;
                options.values.push((name, value));
            } else if flags.contains(&arg) {
                options.flags.push(arg);
            } else if arg.starts_with("--") {
                return Err(usage(format!(
                    "{verb}: there is no option {name}; put -- before a text that begins with --"
                )));
            } else {
                options.words.push(arg);
            }
        }
        Ok(options)
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.values.iter().rev().find(|(have, _)| *have == name).map(|(_, value)| *value)
    }

    fn flag(&self, name: &str) -> bool {
        self.flags.contains(&name)
    }
}

/// A JSON object being written.
struct Json(String);

impl Json {
    fn object() -> Self {
        Self("{".to_owned())
    }

    fn raw(&mut self, key: &str, value: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        json::quote(key, &mut self.0);
        self.0.push(':');
        self.0.push_str(value);
    }

    fn string(&mut self, key: &str, value: &str) {
        self.raw(key, &quoted(value));
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    json::quote(text, &mut out);
    out
}

fn is_number(text: &str) -> bool {
    matches!(json::parse(text, 1), Ok(Node::Leaf(leaf)) if leaf.len() == text.len() && leaf.as_bytes()[0].is_ascii_digit())
}

fn usage(message: impl Into<String>) -> TaskError {
    TaskError::Usage(message.into())
}

fn read_source(path: &str) -> Result<Vec<u8>, TaskError> {
    let mut bytes = Vec::new();
    let read = match path {
        "-" => io::stdin().lock().take(READ_BYTES).read_to_end(&mut bytes),
        path => File::open(path).and_then(|file| file.take(READ_BYTES).read_to_end(&mut bytes)),
    };
    read.map_err(|error| usage(format!("cannot read {path}: {error}")))?;
    if bytes.len() as u64 >= READ_BYTES {
        return Err(usage(format!(
            "{path} has more than {} bytes, too many for a result; print it instead",
            READ_BYTES - 1
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

    use super::super::{Door, ResultState, read_result};
    use super::*;

    fn run(args: &[&str]) -> Result<Command, TaskError> {
        let mut source = |path: &str| match path {
            "-" => Ok(b"{\"in\": 1}\n".to_vec()),
            "text" => Ok(b"a \"b\"\n".to_vec()),
            "raw" => Ok(vec![0xff]),
            _ => Err(TaskError::Usage(format!("cannot read {path}"))),
        };
        compose(args.iter().map(OsString::from), &mut source)
    }

    /// The line is as expected, and the agent reads it without complaint.
    #[track_caller]
    fn check(args: &[&str], expected: &str) {
        let Ok(Command::Report(line)) = run(args) else { panic!("{args:?}: {:?}", run(args)) };
        assert_eq!(line.strip_suffix('\n'), Some(expected));
        let result = read_result(&Door::whole(line.as_bytes()), &Door::default(), &ResultLimits::default());
        assert_ne!(result.state, ResultState::Invalid, "{:?}", result.error);
        assert_eq!(result.unknown_events, 0);
    }

    #[track_caller]
    fn refused(args: &[&str], part: &str) {
        match run(args) {
            Err(TaskError::Usage(message)) => assert!(message.contains(part), "{args:?}: {message}"),
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn set() {
        check(&["set", "a=1", "b:=1", "c="], r#"{"a":"1","b":1,"c":""}"#);
        check(&["set", "a=x=y:=z"], r#"{"a":"x=y:=z"}"#);
        check(&["set", "a=@text"], r#"{"a":"@text"}"#);
        check(&["set", "a=\"\n\t\u{1}主\\"], r#"{"a":"\"\n\t\u0001主\\"}"#);
        check(&["set", "a:= [1, {\"x\": null}] "], r#"{"a":[1,{"x":null}]}"#);
        check(&["set", "n:=123456789012345678901234567890"], r#"{"n":123456789012345678901234567890}"#);
        check(&["set", "a@=text", "b:=@-"], r#"{"a":"a \"b\"\n","b":{"in":1}}"#);
        check(&["set", "a.b=1"], r#"{"a.b":"1"}"#);
    }

    #[test]
    fn set_refuses() {
        refused(&["set"], "at least one");
        refused(&["set", "a"], "no `=`");
        refused(&["set", "=1"], "no KEY");
        refused(&["set", ":=1"], "no KEY");
        refused(&["set", "@log=1"], "begins with @");
        refused(&["set", "a=1", "a:=2"], "twice");
        refused(&["set", "a:=yes"], "a is not JSON");
        refused(&["set", "a:={\"x\":1,\"x\":2}"], "twice");
        refused(&["set", "a@=raw"], "not UTF-8");
        refused(&["set", "a@=none"], "cannot read none");
        refused(&["set", &format!("a:={}{}", "[".repeat(64), "]".repeat(64))], "deeper");
    }

    #[test]
    fn progress() {
        check(
            &["progress", "3/10", "restarting", "web"],
            r#"{"@progress":{"done":3,"total":10,"text":"restarting web"}}"#,
        );
        check(&["progress", "3/10"], r#"{"@progress":{"done":3,"total":10}}"#);
        check(&["progress", "12.5%"], r#"{"@progress":{"done":12.5,"total":100}}"#);
        check(&["progress", "reading", "a/b"], r#"{"@progress":"reading a/b"}"#);
        check(&["progress", "a/b"], r#"{"@progress":"a/b"}"#);
        refused(&["progress"], "DONE/TOTAL");
        refused(&["progress", "1/0"], "more than 0");
    }

    #[test]
    fn log() {
        check(&["log", "hi", "there"], r#"{"@log":{"level":"info","text":"hi there"}}"#);
        check(&["log", "--level", "warn", "--", "--x"], r#"{"@log":{"level":"warn","text":"--x"}}"#);
        check(&["log", "--level=error", "a=b"], r#"{"@log":{"level":"error","text":"a=b"}}"#);
        refused(&["log"], "give a text");
        refused(&["log", "--level", "loud", "x"], "loud");
        refused(&["log", "--level"], "needs a value");
        refused(&["log", "--color", "x"], "no option --color");
        refused(&["log", &"x".repeat(EVENT_BYTES)], "too long");
    }

    #[test]
    fn artifact() {
        check(&["artifact", "out/a.txt"], r#"{"@artifact":{"path":"out/a.txt","name":"a.txt"}}"#);
        check(&["artifact", "a", "--name", "b"], r#"{"@artifact":{"path":"a","name":"b"}}"#);
        refused(&["artifact", "/etc/passwd"], "below the work folder");
        refused(&["artifact", "../a"], "below the work folder");
        refused(&["artifact"], "one PATH");
        refused(&["artifact", "a", "b"], "one PATH");
        assert_eq!(below("/box/a/b", "/box/"), Some("a/b"));
        assert_eq!(below("/workshop/a", "/work"), None);
        assert_eq!(below("a", ""), None);
    }

    #[test]
    fn mask_changed_and_fail() {
        check(&["mask", "hunter2"], r#"{"@mask":"hunter2"}"#);
        check(&["mask", "-"], r#"{"@mask":"{\"in\": 1}"}"#);
        refused(&["mask", "abc"], "fewer than 4");
        refused(&["mask"], "one VALUE");
        check(&["changed", "true"], r#"{"@changed":true}"#);
        refused(&["changed", "yes"], "true or false");
        check(
            &["fail", "--code", "E_LOCK", "--retryable", "dpkg", "is busy"],
            r#"{"@fail":{"code":"E_LOCK","text":"dpkg is busy","retryable":true}}"#,
        );
        check(&["fail", "x", "--code=E"], r#"{"@fail":{"code":"E","text":"x","retryable":false}}"#);
        refused(&["fail", "x"], "--code CODE is missing");
        refused(&["fail", "--code", "a b"], "`code` must be");
    }

    #[test]
    fn help_and_wrong_verbs() {
        assert_eq!(run(&["--help"]), Ok(Command::Help));
        check(&["log", "--", "--help"], r#"{"@log":{"level":"info","text":"--help"}}"#);
        refused(&["log", "--help"], "no option --help; put --");
        refused(&[], "--help lists it");
        refused(&["sett", "a=1"], "`sett` is not");
        use std::os::unix::ffi::OsStringExt;
        let bad = vec![OsString::from("set"), OsString::from_vec(b"a=\xff".to_vec())];
        assert!(
            matches!(compose(bad, &mut read_source), Err(TaskError::Usage(m)) if m.contains("not UTF-8"))
        );
    }
}

use super::*;
use clap::Parser;
use std::fs;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    task: TaskArgs,
}

fn args(line: &str) -> TaskArgs {
    Line::parse_from(std::iter::once("x").chain(line.split_whitespace())).task
}

fn of_file(name: &str, bytes: &[u8], fix_crlf: bool, interpreter: Option<&str>) -> Result<Prepared, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("written");
    let file = path.to_str().expect("a path").to_owned();
    script(&Script { file: &file, interpreter, fix_crlf, args: &[] }, &args("")).map_err(|e| {
        assert_eq!(e.exit, super::super::Exit::Usage);
        e.message
    })
}

#[test]
fn bad_scripts_are_refused_before_they_are_sent() {
    let utf16 = b"\xff\xfe#\0!\0";
    for (bytes, part) in [
        (&b""[..], "empty"),
        (b"echo hi\n", "--interpreter"),
        (b"#!/bin/sh\r\necho hi\r\n", "--fix-crlf"),
        (b"#!/bin/sh\necho \0\n", "NUL"),
        (utf16, "UTF-16"),
    ] {
        let error = of_file("a.sh", bytes, false, None).map(|_| ()).expect_err(part);
        assert!(error.contains(part) && error.contains("a.sh"), "{error}");
    }
    assert!(of_file("a.sh", b"#!/bin/sh\r\necho hi\r\n", true, None).is_ok());
    assert!(of_file("a.sh", b"echo hi\n", false, Some("/bin/sh")).is_ok());
}

#[test]
fn what_is_large_or_no_text_is_uploaded() {
    let small = of_file("a.sh", b"#!/bin/sh\n", false, None).expect("a script");
    assert!(small.blobs.is_empty());
    let large = [b"#!/bin/sh\n".as_slice(), &vec![b'#'; limit::INLINE_SCRIPT_MAX]].concat();
    let large = of_file("a.sh", &large, false, None).expect("a script");
    assert_eq!(large.blobs.len(), 1);
    assert_eq!(large.task.title.as_deref(), Some("a.sh"));
}

#[test]
fn a_name_without_slash_or_dot_is_a_task() {
    for name in ["inventory", "Cargo"] {
        let error = script_path(name).map(|_| ()).expect_err(name);
        assert!(error.message.contains("no task named"), "{error}");
    }
    assert!(matches!(script_path("-"), Ok(None)));
    assert!(matches!(script_path("./x"), Ok(Some(_))));
    assert!(matches!(script_path("x.sh"), Ok(Some(_))));
    assert!(matches!(script_path("bin/x"), Ok(Some(_))));
    let missing =
        script(&Script { file: "./no-such", interpreter: None, fix_crlf: false, args: &[] }, &args(""));
    assert!(missing.is_err_and(|e| e.message.contains("there is no file ./no-such")));
    let folder = script(&Script { file: "./src", interpreter: None, fix_crlf: false, args: &[] }, &args(""));
    assert!(folder.is_err_and(|e| e.message.contains("is a folder")));
}

#[test]
fn the_order_says_what_the_flags_say() {
    let words = ["df".to_owned(), "-h".to_owned()];
    let line = "--timeout 90s --grace 1s --expires 1h --profile host -p a=1 -p b:=2 --env K=V --request-id r --require-result";
    let prepared = command(&words, &args(line)).expect("a command");
    let by = User::new("ann").expect("name");
    let targets = Targets { all: true, ..Targets::default() };
    let order = prepared.order(&by, targets, 1_000).expect("an order");
    assert_eq!((order.created_ms, order.expires_ms), (1_000, 3_601_000));
    assert_eq!((order.task.timeout_ms, order.task.grace_ms), (90_000, 1_000));
    assert_eq!(order.task.params.as_ref().map(|p| p.get()), Some(r#"{"a":"1","b":2}"#));
    assert_eq!(order.task.env.get("K").map(String::as_str), Some("V"));
    assert_eq!(order.task.args, words);
    assert_eq!(order.request_id.as_str(), "r");
    assert!(order.task.require_result);
    assert!(prepared.order(&by, Targets::default(), 1_000).is_err(), "no target");
}

#[test]
fn an_environment_is_names_and_values() {
    for bad in ["K", "=v", "SALLY_JOB=x", "A=1 --env A=2"] {
        let error = command(&["true".into()], &args(&format!("--env {bad}"))).map(|_| ()).expect_err(bad);
        assert!(error.message.starts_with("--env"), "{error}");
    }
}

fn a_command(line: &str) -> Result<Prepared, CliError> {
    command(&["true".to_owned()], &args(line))
}

#[test]
fn only_an_idempotent_task_is_tried_again() {
    let refused = a_command("--retries 2").expect_err("not idempotent");
    assert!(refused.exit.code() == 2 && refused.message.contains("--idempotent"), "{refused}");
    assert!(a_command("").expect("fine").task.retry.is_none());
    let once = a_command("--idempotent").expect("fine").task;
    assert!(once.idempotent && once.retry.is_none());
    let line = "--idempotent --retries 2 --retry-on exit=75,interrupted --backoff 2s --backoff-max 1m";
    let retry = a_command(line).expect("fine").task.retry.expect("a retry");
    assert_eq!((retry.attempts, retry.backoff_ms, retry.backoff_max_ms), (3, 2_000, 60_000));
    let on: Vec<String> = retry.on.iter().map(ToString::to_string).collect();
    assert_eq!(on, ["exit=75", "interrupted"]);
    let long = a_command("--idempotent --retries 2 --backoff 2d");
    assert!(long.is_err_and(|e| e.message.contains("at most")));
}

#[test]
fn standard_input_is_read_once() {
    let from_stdin = Script { file: "-", interpreter: None, fix_crlf: false, args: &[] };
    let refused = script(&from_stdin, &args("--secret a=@-")).expect_err("twice").message;
    assert!(refused.ends_with("both the script and a secret"), "{refused}");
    let refused = a_command("--stdin - --secret a=@-").expect_err("twice").message;
    assert!(refused.ends_with("both what the script reads and a secret"), "{refused}");
}

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use super::*;

fn read(fd3: &str, file: &str) -> ScriptResult {
    read_bytes(fd3.as_bytes(), file.as_bytes())
}

fn read_bytes(fd3: &[u8], file: &[u8]) -> ScriptResult {
    read_result(&Door::whole(fd3), &Door::whole(file), &ResultLimits::default())
}

#[track_caller]
fn valid(fd3: &str, expected: &str) {
    both(fd3, "", expected);
}

#[track_caller]
fn both(fd3: &str, file: &str, expected: &str) {
    let result = read(fd3, file);
    assert_eq!(result.error, None, "for {fd3:?} and {file:?}");
    assert_eq!(result.json.unwrap().as_str(), expected);
    assert_eq!(result.state, ResultState::Valid);
}

#[track_caller]
fn invalid(fd3: &str, offset: u64, part: &str) {
    let result = read(fd3, "");
    assert_eq!(result.state, ResultState::Invalid, "for {fd3:?}: {result:?}");
    assert_eq!(result.json, None);
    let error = result.error.unwrap();
    assert_eq!(error.offset, Some(offset), "for {fd3:?}: {error:?}");
    assert!(error.message.contains(part), "for {fd3:?}: {error:?}");
}

#[track_caller]
fn disagree(fd3: &str, file: &str, part: &str) {
    let result = read(fd3, file);
    assert_eq!(result.state, ResultState::Invalid, "for {fd3:?} and {file:?}");
    let error = result.error.unwrap();
    assert!(error.message.contains(part), "{error:?}");
}

#[test]
fn absent() {
    for text in ["", " \n\n", r#"{"@log":"x"}"#, r#"{"@new":1}"#] {
        let result = read(text, "");
        assert_eq!((result.state, result.json, result.error), (ResultState::Absent, None, None));
    }
}

#[test]
fn values_in_any_layout() {
    valid("{\"a\":1}{\"b\":2}", r#"{"a":1,"b":2}"#);
    valid("{\"a\":1}\n{\"b\":2}\n", r#"{"a":1,"b":2}"#);
    valid("{\n  \"a\": {\n    \"x\": 1\n  }\n}\n{\"a\":\n{\"y\":2}}", r#"{"a":{"x":1,"y":2}}"#);
    valid("{\"a\":{\"x\":1}}{\"a\":null}", r#"{"a":null}"#);
    valid("{}", "{}");
    valid("[1, 2]", "[1,2]");
    valid("\"ok\"", "\"ok\"");
    valid("null", "null");
    valid("{\"n\":12345678901234567890123}", r#"{"n":12345678901234567890123}"#);
    valid("{\"@type\":\"x\",\"a\":1}", r#"{"@type":"x","a":1}"#);
    valid("{\"a\":{\"@log\":1}}", r#"{"a":{"@log":1}}"#);
}

#[test]
fn events_are_no_part_of_the_result() {
    let text = r#"{"@progress":{"done":1,"total":2}} [1] {"@changed":true} {"@progress":{"done":2,"total":2,"text":"end"}}
        {"@log":"a"} {"@artifact":"x.txt"} {"@artifact":"x.txt"} {"@mask":"hunter2"} {"@later":[1]}
        {"@fail":{"code":"E1"}} {"@fail":{"code":"E2","text":"t","retryable":true}} {"@changed":false}"#;
    let result = read(text, "");
    assert_eq!(result.json.unwrap().as_str(), "[1]");
    assert_eq!(result.changed, Some(false));
    assert_eq!(result.progress.unwrap().text.as_deref(), Some("end"));
    assert_eq!(result.artifacts.len(), 1);
    assert_eq!(result.masks, ["hunter2"]);
    assert_eq!(result.logs.len(), 1);
    assert_eq!(result.unknown_events, 1);
    assert_eq!(result.failure.unwrap(), Failure { code: "E2".into(), text: "t".into(), retryable: true });
}

#[test]
fn what_is_invalid() {
    invalid("{\"a\":1,\"a\":2}", 7, "twice");
    invalid("{\"a\":1,\"\\u0061\":2}", 7, "twice");
    invalid("{\"a\":NaN}", 5, "NaN");
    invalid("{\"a\":\"\\ud800\"}", 6, "surrogate");
    invalid("{\"a\":1} done", 8, "expected a JSON value");
    invalid("{\"a\":1}}", 7, "found `}`");
    invalid("{\"a\":", 5, "found the end");
    invalid("\u{feff}{}", 0, "byte order mark");
    invalid("{\"a\":1}\n[1]", 8, "among objects");
    invalid("[1]\n{\"a\":1}", 4, "after a lone value");
    invalid("1 2", 2, "second lone value");
    invalid("{\"a\":1}\u{0}", 7, "byte 0x00");
    invalid("hello", 0, "descriptor 3: expected a JSON value");
    invalid(&"[".repeat(65), 64, "deeper");
    invalid("{\"a\":1} {\"@fail\":\"x\"}", 8, "@fail: expected");
    invalid("{\"@changed\":1}", 0, "@changed");
}

#[test]
fn broken_utf8_is_where_it_is() {
    for (bytes, offset) in
        [(&b"{\"a\":\"\xff\"}"[..], 6), (b"{\"a\":1}\xc3", 7), (b"x{}\xff", 0), (b"\xff", 0)]
    {
        let error = read_bytes(bytes, b"").error.unwrap();
        assert_eq!(error.offset, Some(offset), "{bytes:?}: {error:?}");
    }
}

#[test]
fn what_stood_before_the_bad_byte_is_still_heard() {
    let result = read(r#"{"@mask":"hunter2"} {"@fail":{"code":"E"}} oops {"@mask":"other-one"}"#, "");
    assert_eq!(result.state, ResultState::Invalid);
    assert_eq!(result.masks, ["hunter2"]);
    assert!(result.failure.is_some());
}

#[test]
fn two_doors_that_agree() {
    both(r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":1,"b":2}"#);
    both("", r#"{"b":2}"#, r#"{"b":2}"#);
    both(r#"{"a":{"x":1}}"#, r#"{"a":{"y":2,"x":1}}"#, r#"{"a":{"x":1,"y":2}}"#);
    both("[1]", "[ 1 ]", "[1]");
    both("", "7", "7");
    both(r#"{"a":1}{"@changed":true}"#, r#"{"@changed":true}"#, r#"{"a":1}"#);
}

#[test]
fn two_doors_that_disagree() {
    disagree(r#"{"a":1}"#, r#"{"a":2}"#, "`a` to different values");
    disagree(r#"{"a":{"b":[1]}}"#, r#"{"a":{"b":[2]}}"#, "`a.b`");
    disagree("[1]", "[2]", "different values");
    disagree("[1]", r#"{"a":1}"#, "lone value");
    disagree(r#"{"@changed":true}"#, r#"{"@changed":false}"#, "@changed");
    disagree(r#"{"@fail":{"code":"A"}}"#, r#"{"@fail":{"code":"B"}}"#, "@fail");
    disagree(r#"{"a":1}"#, "{", "SALLY_RESULT_FILE: ");
}

#[test]
fn one_mebibyte_is_the_limit_and_events_do_not_count() {
    let limit = 1 << 20;
    let exact = format!("[\"{}\"]", "x".repeat(limit - 4));
    assert_eq!(exact.len(), limit);
    let state = |fd3: &str, file: &str| read(fd3, file).state;
    assert_eq!(state(&exact, ""), ResultState::Valid);
    assert_eq!(state(&format!("{exact}\n"), ""), ResultState::Oversize);
    assert_eq!(state(&format!("{exact}{}", "{\"@log\":\"x\"}\n".repeat(5000)), ""), ResultState::Valid);
    assert_eq!(state(&format!("{{\"a\":{exact}}}"), ""), ResultState::Oversize);
    let half = |key: &str| format!("{{\"{key}\":\"{}\"}}", "x".repeat(600_000));
    assert_eq!(state(&half("a"), &half("b")), ResultState::Oversize);
    assert_eq!(state("", &exact), ResultState::Valid);
}

#[test]
fn oversize_says_how_much() {
    let text = format!("{{\"@mask\":\"hunter2\"}}[{}", "0,".repeat(700_000));
    let result = read(&text, "");
    assert_eq!(result.state, ResultState::Oversize);
    assert!(result.error.unwrap().message.contains("the limit is 1048576"));
    assert_eq!(result.masks, ["hunter2"]);
}

#[test]
fn a_door_that_was_cut_is_oversize_never_a_shorter_result() {
    let cut = Door { bytes: b"{\"a\":1}\n", seen: 9_000_000 };
    let result = read_result(&cut, &Door::default(), &ResultLimits::default());
    assert_eq!(result.state, ResultState::Oversize);
    assert!(result.error.unwrap().message.starts_with("9000000 bytes"));
    let cut = Door { bytes: b"{\"a\":1}\n", seen: 9 };
    assert_eq!(read_result(&cut, &Door::default(), &ResultLimits::default()).state, ResultState::Oversize);
}

#[test]
fn an_event_is_short() {
    invalid(&format!("{{\"@log\":\"{}\"}}", "x".repeat(EVENT_BYTES)), 0, "an event of");
    let masks: String = (0..=MASKS_MAX).map(|i| format!("{{\"@mask\":\"value{i}\"}}\n")).collect();
    assert_eq!(read(&masks, "").state, ResultState::Invalid);
}

#[test]
fn logs_are_bounded_and_counted() {
    let logs: String = (0..LOGS_KEPT + 5).map(|i| format!("{{\"@log\":\"{i}\"}}\n")).collect();
    let result = read(&logs, &logs);
    assert_eq!((result.logs.len(), result.logs_dropped), (LOGS_KEPT, LOGS_KEPT as u64 + 10));
}

#[test]
fn reasons() {
    let reason = |text: &str, required: bool| read(text, "").failed_reason(required);
    assert_eq!(reason("", false), None);
    assert_eq!(reason("", true), Some("result-missing"));
    assert_eq!(reason("{}", true), None);
    assert_eq!(reason("{", false), Some("result-invalid"));
    assert_eq!(reason(r#"{"@fail":{"code":"E"}}"#, true), Some("script-failed"));
}

#[test]
fn state_names() {
    let name = |state: ResultState| serde_json::to_string(&state).unwrap();
    assert_eq!(name(ResultState::SchemaMismatch), "\"schema-mismatch\"");
    assert_eq!(name(ResultState::Absent), "\"absent\"");
}

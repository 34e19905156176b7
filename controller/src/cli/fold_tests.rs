use super::super::tests::run;
use super::*;

fn check(names: &[&str], expected: &str) {
    let agents: Vec<(&str, &str)> = names.iter().map(|n| n.split_once('/').unwrap_or(("z", n))).collect();
    let with_zone = names.iter().any(|n| n.contains('/'));
    assert_eq!(compress(&agents, with_zone), expected, "{names:?}");
}

#[test]
fn names_are_shortened_and_nothing_is_lost() {
    check(&["local-1", "local-2", "local-3"], "local-[1-3]");
    check(&["local-3", "local-1"], "local-[1,3]");
    check(&["local-1"], "local-1");
    check(&["web-01", "web-02", "web-08", "web-09", "web-10"], "web-[01-02,08-10]");
    check(&["web-1", "web-01"], "web-01 web-1");
    check(&["web-9", "web-10", "web-11"], "web-[9-11]");
    check(&["web", "db"], "db web");
    check(&["dmz/web-1", "pay/web-1", "dmz/web-2"], "dmz/web-[1-2] pay/web-1");
    check(&["7", "8"], "[7-8]");
    check(&["a-99999999999999999999999"], "a-99999999999999999999999");
    check(&["web-07-a", "web-08-a"], "web-07-a web-08-a");
}

fn said(index: u32, state: RunState, stdout: &str, result: Option<&str>) -> RunRecord {
    let mut run = run(index, state);
    run.stdout = stdout.to_owned();
    run.result = result.and_then(|r| serde_json::from_str(r).ok());
    run.result_state = Some(if result.is_some() { ResultState::Valid } else { ResultState::Absent });
    run
}

fn plain(runs: &[RunRecord]) -> String {
    anstream::adapter::strip_str(&render(runs, None, None)).to_string()
}

#[test]
fn identical_answers_are_shown_once_and_failures_first() {
    let mut failed = said(3, RunState::Failed, "oh\u{1b}[2J\n", None);
    failed.exit_code = Some(7);
    failed.stderr = "bad\n".into();
    let runs = [
        said(0, RunState::Succeeded, "hi\n", Some(r#"{"a":1}"#)),
        said(1, RunState::Succeeded, "hi\n", Some(r#"{"a":1}"#)),
        failed,
        said(2, RunState::Succeeded, "hi\n", Some(r#"{"a":1}"#)),
    ];
    let expected = "\
✗ local-4 (failed)
oh\\x1b[2J
stderr: bad

✓ local-[1-3] (succeeded)
hi

STATE      N  AGENTS       RESULT
failed     1  local-4      exit 7
succeeded  3  local-[1-3]  {\"a\":1}
";
    assert_eq!(plain(&runs), expected);
}

#[test]
fn what_differs_is_not_folded() {
    let base = || said(0, RunState::Succeeded, "a", None);
    let differs = |change: fn(&mut RunRecord)| {
        let mut other = base();
        change(&mut other);
        fold(&[base(), other]).len()
    };
    assert_eq!(differs(|_| ()), 1);
    assert_eq!(differs(|r| r.stdout.push('b')), 2);
    assert_eq!(differs(|r| r.stderr.push('b')), 2);
    assert_eq!(differs(|r| r.result = serde_json::from_str("1").ok()), 2);
    assert_eq!(differs(|r| r.exit_code = Some(1)), 2);
    assert_eq!(differs(|r| r.state = RunState::Failed), 2);
    assert_eq!(differs(|r| r.duration_ms = Some(9)), 1, "how long it took makes no difference");
    assert_eq!(differs(|r| r.stdout_encoding = TextEncoding::Base64), 2);
    assert_eq!(differs(|r| r.stdout_truncated_bytes = 1), 2);
}

#[test]
fn a_cut_and_bytes_that_are_no_text_are_marked() {
    let mut run = said(0, RunState::Succeeded, "w/86", None);
    run.stdout_encoding = TextEncoding::Base64;
    run.stdout_truncated_bytes = 12;
    let text = output(&run, None);
    assert!(text.starts_with("\\xc3\\xff:\n… 12 bytes of it are not shown here"), "{text}");

    run.stdout = "1tDOxA==".into();
    run.stdout_truncated_bytes = 0;
    assert_eq!(output(&run, text::encoding("gb18030").ok()), "中文\n");
}

#[test]
fn a_bad_result_says_so() {
    let mut run = said(0, RunState::Failed, "", None);
    run.result_state = Some(ResultState::Invalid);
    run.result_error =
        Some(sally_common::wire::record::ResultError { offset: Some(3), message: "key twice\n".into() });
    run.message = Some("the result is invalid".into());
    assert_eq!(answer(&run), "the result is invalid · result invalid at byte 3: key twice\\n");
}

#[test]
fn an_exit_code_is_said_once() {
    let mut run = said(0, RunState::Failed, "", None);
    run.exit_code = Some(3);
    (run.reason, run.message) = (Some("exit-code".into()), Some("exit code 3".into()));
    assert_eq!(answer(&run), "exit 3");
    (run.reason, run.message) = (Some("result-missing".into()), Some("no result".into()));
    assert_eq!(answer(&run), "exit 3 · no result");
}

#[test]
fn attempts_are_told_apart() {
    let mut second = said(0, RunState::Succeeded, "hi\n", None);
    second.attempt = 2;
    let mut waiting = run(1, RunState::Pending);
    (waiting.exit_code, waiting.reason) = (Some(7), Some("exit-code".into()));
    waiting.retry_at = Some("2026-11-21T07:00:05.000Z".into());
    let text = plain(&[second, waiting, said(2, RunState::Succeeded, "hi\n", None)]);
    assert!(text.contains("local-1  attempt 2\n"), "{text}");
    assert!(text.contains("exit 7 · attempt 1 ended, the next one 2026-11-21 "), "{text}");
}

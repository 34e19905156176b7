//! What people do when agents are away and when things fail: by the command line, with the real programs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::demo::{block, commands};
use crate::harness::{Up, eventually, programs, run};
use crate::outside::Own;

/// An `up` with one agent there, `local-1`, and one that is enrolled and away, `edge-1`.
fn one_away() -> Up {
    Up::start_with(1, &["--prepare", "edge-1"])
}

/// Starts the agent that was away, with one slot: what waits is run one after the other.
fn comes_back(up: &Up) -> Own {
    let path = up.dir().join("agents/edge-1/agent.toml");
    let mut config: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    config.insert("slots".into(), 1.into());
    std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
    let mut command = Command::new(programs().join("sally-agent"));
    Own::start(command.arg("run").arg("--config").arg(path), &up.scratch().join("edge-1.agent.log"))
}

/// Submits and returns the job's id.
#[track_caller]
fn detached(up: &Up, args: &[&str]) -> String {
    let mut with = vec!["exec", "--detach"];
    with.extend(args);
    up.sally(&with).expect(0).text().trim().to_owned()
}

fn states(record: &Value) -> Vec<&str> {
    record["runs"].as_array().unwrap().iter().map(|r| r["state"].as_str().unwrap()).collect()
}

#[test]
fn the_same_request_id_is_the_same_job_and_another_body_a_conflict() {
    let up = Up::start(1);
    let submit = |word: &str| {
        up.sally(&["exec", "-a", "local-1", "--request-id", "night-1", "-o", "json", "--", "echo", word])
    };
    let first = submit("a").expect(0).json();
    let again = submit("a").expect(0);
    assert!(again.stderr.contains("submitted before with this request id"), "{}", again.stderr);
    assert_eq!(again.json()["job"]["id"], first["job"]["id"]);
    let other = submit("b").expect(8);
    assert!(
        other.stderr.contains(first["job"]["id"].as_str().unwrap()),
        "it names the job: {}",
        other.stderr
    );
    assert_eq!(up.json(&["job", "ls"], 0)["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn offline_targets_wait_are_left_out_or_refuse_the_job() {
    let up = one_away();
    let waits = detached(&up, &["--all", "--", "true"]);
    let record = eventually("the end of the run on the agent that is there", || {
        let record = up.json(&["job", "show", &waits], 0);
        (record["job"]["counts"]["succeeded"] == 1).then_some(record)
    });
    assert_eq!(record["job"]["state"], "running", "the other one waits: {record}");

    let skipped = up.json(&["exec", "--all", "--offline", "skip", "--", "true"], 0);
    assert_eq!(skipped["runs"].as_array().unwrap().len(), 1);
    let refused = up.sally(&["exec", "--all", "--offline", "fail", "--", "true"]).expect(4);
    assert!(refused.stderr.contains("edge-1"), "{}", refused.stderr);
    assert_eq!(up.json(&["job", "ls"], 0)["jobs"].as_array().unwrap().len(), 2, "nothing was submitted");

    let agent = comes_back(&up);
    up.sally(&["job", "wait", &waits, "--wait", "60s"]).expect(0);
    agent.stop();
}

#[test]
fn cancelling_works_before_during_and_after_a_run() {
    let up = one_away();
    // Before: it waits for an agent that is away, which then never starts it.
    let before = detached(&up, &["-a", "edge-1", "--", "true"]);
    let said = up.sally(&["job", "cancel", &before]).expect(0);
    assert!(said.stderr.contains(&before), "{}", said.stderr);
    up.sally(&["job", "cancel", &before]).expect(0);
    up.sally(&["job", "wait", &before, "--wait", "60s"]).expect(9);
    let agent = comes_back(&up);
    up.sally(&["exec", "-a", "edge-1", "--wait", "60s", "--", "true"]).expect(0);
    let record = up.json(&["job", "show", &before], 0);
    assert_eq!((states(&record), &record["runs"][0]["started_at"]), (vec!["cancelled"], &Value::Null));
    agent.stop();

    // During: TERM is heard.
    let script = "trap 'echo ending; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let during = detached(&up, &["-a", "local-1", "--", "sh", "-c", script]);
    eventually("the script has begun", || {
        (up.sally(&["job", "logs", &during]).expect(0).text() == "begun\n").then_some(())
    });
    up.sally(&["job", "cancel", &during]).expect(0);
    let ended = up.json(&["job", "wait", &during, "--wait", "60s"], 9);
    assert_eq!(
        (&ended["runs"][0]["state"], &ended["runs"][0]["stdout"]),
        (&json!("cancelled"), &json!("begun\nending\n"))
    );
    assert!(!ended["runs"][0]["cancel_requested_at"].is_null());

    // After: nothing changes.
    let said = up.sally(&["job", "cancel", &during]).expect(0);
    assert!(said.stderr.contains("had ended already: cancelled"), "{}", said.stderr);
}

#[test]
fn an_interrupted_follow_goes_on_without_loss_or_repetition() {
    let up = Up::start(1);
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let job = detached(&up, &["-a", "local-1", "--", "sh", "-c", script]);
    let mut follower = up.command();
    follower.args(["job", "logs", &job, "-f"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = follower.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    while seen.lines().count() < 50 {
        assert_ne!(stdout.read_line(&mut seen).unwrap(), 0, "it ended too early: {seen}");
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    stdout.read_to_string(&mut seen).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    let after = said.split("--after ").nth(1).unwrap_or_else(|| panic!("no cursor: {said}")).trim();
    let rest = up.sally(&["job", "logs", &job, "-f", "--after", after]).expect(0).text();
    assert!(!rest.is_empty(), "it had ended before it was interrupted");
    let whole: String = (0..400).map(|n| format!("line {n}\n")).collect();
    assert_eq!(format!("{seen}{rest}"), whole);
}

/// What a script prints cannot drive the terminal of whoever looks at it, in any way of looking.
#[test]
fn control_characters_do_not_reach_a_terminal() {
    let up = Up::start(2);
    let evil = r#"printf 'x\033[2J\302\2332J\r\033]0;t\007y\n'; printf '{"a":"\302\2332J"}' >&3"#;
    up.sally(&["exec", "--all", "--", "sh", "-c", evil]).expect(0);
    let context = up.dir().join("context.toml");
    let sally = format!("{} --context {}", programs().join("sally").display(), context.display());
    // `script` gives it a terminal of its own.
    let on_terminal = |line: &str| {
        let mut command = Command::new("script");
        command
            .args(["-qec", &format!("{sally} {line}"), "/dev/null"])
            .env("TERM", "dumb")
            .env("NO_COLOR", "1");
        String::from_utf8(run(&mut command).expect(0).stdout).unwrap()
    };
    assert!(on_terminal("job logs latest --raw").contains("\u{1b}[2J"), "--raw passes them on");
    for line in [
        "job logs latest",
        "job logs latest -a local-1",
        "job show latest",
        "job show latest -o json",
        "job show latest -o yaml",
        "job show latest -o csv",
        "job show latest -o wide",
        "job result latest",
        "job result latest -a local-1",
        "exec --all -- printf '\\033[2J\\302\\233'",
        "exec -a local-1 -- printf '\\033[2J\\302\\233'",
        "exec --all --stream -- printf '\\033[2J\\302\\233'",
    ] {
        let shown = on_terminal(line);
        // Our own clearing of the status line is the one sequence that may be there.
        let shown = shown.replace("\r\u{1b}[2K", "").replace("\r\n", "\n");
        let driving = shown.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(driving, None, "{line}: {shown:?}");
        assert!(shown.contains("2J") || shown.contains("9b"), "{line} shows it escaped: {shown:?}");
    }
}

#[test]
fn a_cancellation_may_come_before_its_job() {
    let up = Up::start(1);
    let said = up.sally(&["job", "cancel", "--request-id", "early-1"]).expect(0);
    assert!(said.stderr.contains("will be cancelled when it comes"), "{}", said.stderr);
    let record = up.json(&["exec", "-a", "local-1", "--request-id", "early-1", "--", "true"], 9);
    assert_eq!((states(&record), &record["runs"][0]["started_at"]), (vec!["cancelled"], &Value::Null));
    up.sally(&["job", "cancel", "--request-id", "early-1"]).expect(0);
    up.sally(&["exec", "-a", "local-1", "--request-id", "late-1", "--", "true"]).expect(0);
}

#[test]
fn an_idempotent_task_is_tried_again_until_it_succeeds() {
    let up = Up::start(1);
    let script = r#"echo "attempt $SALLY_ATTEMPT"; [ "$SALLY_ATTEMPT" -gt 2 ] || exit 75"#;
    let line = |more: &[&'static str]| {
        let mut all = vec!["exec", "-a", "local-1", "--idempotent", "--backoff", "100ms", "--retries"];
        all.extend(more);
        all.extend(["--", "sh", "-c", script]);
        all
    };
    let said = up.sally(&line(&["3", "--retry-on", "exit=70-79"])).expect(0);
    assert!(said.text().ends_with("attempt 3\n"), "{}", said.text());
    assert!(
        said.stderr.contains("local-1: exit code 75 · attempt 1 ended, the next one "),
        "{}",
        said.stderr
    );
    let record = up.json(&["job", "show", "latest"], 0);
    assert_eq!(
        (&record["runs"][0]["attempt"], &record["runs"][0]["stdout"]),
        (&json!(3), &json!("attempt 3\n"))
    );

    let bounded = up.json(&line(&["1"]), 3);
    assert_eq!((&bounded["runs"][0]["attempt"], &bounded["runs"][0]["exit_code"]), (&json!(2), &json!(75)));
    let other = up.json(&line(&["3", "--retry-on", "exit=1"]), 3);
    assert_eq!(other["runs"][0]["attempt"], 1, "another ending");
    up.sally(&["exec", "-a", "local-1", "--retries", "2", "--", "true"]).expect(2);
}

#[test]
fn a_retry_by_hand_is_a_new_job_for_those_that_failed() {
    let up = Up::start(2);
    let script = r#"[ "$SALLY_AGENT" != local-2 ] || exit 1"#;
    let first = up.json(&["exec", "--all", "-p", "k=v", "--", "sh", "-c", script], 3);
    let second = up.json(&["job", "retry", "latest", "--only", "failed"], 3);
    assert_eq!(second["job"]["retry_of"], first["job"]["id"]);
    assert_eq!((states(&second), &second["runs"][0]["agent"]), (vec!["failed"], &json!("local-2")));
    let none = up.sally(&["job", "retry", "latest", "--only", "expired,unknown"]).expect(4);
    assert!(none.stderr.contains("no run that is expired or unknown"), "{}", none.stderr);
    let id = first["job"]["id"].as_str().unwrap();
    let all = up.json(&["job", "retry", id, "--only", "all", "-a", "local-1"], 0);
    assert_eq!((states(&all), &all["runs"][0]["agent"]), (vec!["succeeded"], &json!("local-1")));
}

#[test]
fn waiting_work_is_ordered_replaced_listed_and_purged() {
    let up = one_away();
    let submit = |more: &[&str]| {
        let mut with = vec!["-a", "edge-1"];
        with.extend(more);
        with.extend(["--", "true"]);
        detached(&up, &with)
    };
    let low = submit(&["--priority", "1"]);
    let plain = submit(&[]);
    let high = submit(&["--priority", "9"]);
    let plain_later = submit(&[]);
    let old = submit(&["--latest-only", "inventory"]);
    let new = submit(&["--latest-only", "inventory"]);
    let record = up.json(&["job", "show", &old], 0);
    assert_eq!(states(&record), ["cancelled"], "{record}");

    let order = [&high, &plain, &plain_later, &new, &low];
    let listed = up.sally(&["agent", "waiting", "edge-1", "-o", "name"]).expect(0).text();
    let expected: Vec<String> = order.iter().map(|job| format!("{job}-0")).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);

    let agent = comes_back(&up);
    let mut started = Vec::new();
    for job in order {
        let record = up.json(&["job", "wait", job, "--wait", "60s"], 0);
        started.push(record["runs"][0]["started_at"].as_str().unwrap().to_owned());
    }
    assert!(started.is_sorted(), "in that order, one after the other: {started:?}");
    agent.stop();

    let gone = submit(&[]);
    let asked = up.sally(&["agent", "purge", "-a", "edge-1"]).expect(2);
    assert!(asked.stderr.contains("1 run wait") && asked.stderr.contains("--yes"), "{}", asked.stderr);
    let purged = up.json(&["agent", "purge", "-a", "edge-1", "--yes"], 0);
    assert_eq!(purged["runs"], 1);
    up.sally(&["job", "wait", &gone, "--wait", "60s"]).expect(9);
    assert_eq!(up.sally(&["agent", "waiting", "edge-1", "-o", "name"]).expect(0).text(), "");
}

#[test]
fn a_drained_agent_finishes_what_runs_and_takes_nothing_new() {
    let up = Up::start(1);
    let running = detached(&up, &["-a", "local-1", "--", "sh", "-c", "echo begun; sleep 3; echo ended"]);
    eventually("the script has begun", || {
        (up.sally(&["job", "logs", &running]).expect(0).text() == "begun\n").then_some(())
    });
    up.sally(&["agent", "drain", "-a", "local-1"]).expect(0);
    let waits = detached(&up, &["-a", "local-1", "--", "true"]);
    let ended = up.json(&["job", "wait", &running, "--wait", "60s"], 0);
    assert_eq!(ended["runs"][0]["stdout"], "begun\nended\n");
    assert!(up.sally(&["agent", "ls"]).expect(0).text().contains("draining"));
    // The slot was free since the end of the first; what waits has not moved.
    let listed = up.sally(&["agent", "waiting", "local-1", "-o", "name"]).expect(0).text();
    assert_eq!(listed, format!("{waits}-0\n"));
    up.sally(&["agent", "resume", "-a", "local-1"]).expect(0);
    up.sally(&["job", "wait", &waits, "--wait", "60s"]).expect(0);
    assert!(!up.sally(&["agent", "ls"]).expect(0).text().contains("draining"));
}

#[test]
fn the_direct_lane_is_refused_for_agents_that_are_not_connected() {
    let up = one_away();
    let record = up.json(&["exec", "-a", "edge-1", "--lane", "direct", "--", "true"], 6);
    let run = &record["runs"][0];
    assert_eq!((&run["state"], &run["reason"]), (&json!("rejected"), &json!("not-connected")), "{run}");
    assert_eq!((&run["final"], &run["started_at"]), (&json!(true), &Value::Null), "{run}");
    // It waits for nobody: there is nothing to be run when the agent comes.
    assert_eq!(up.sally(&["agent", "waiting", "edge-1", "-o", "name"]).expect(0).text(), "");
}

#[test]
fn a_backup_of_a_running_controller_is_restored_into_another_folder() {
    let up = Up::start(1);
    let id = detached(&up, &["-a", "local-1", "--", "true"]);
    up.sally(&["job", "wait", &id, "--wait", "60s"]).expect(0);
    let (file, dir) = (up.scratch().join("saved"), up.dir());
    let (file, dir) = (file.to_str().unwrap(), dir.to_str().unwrap());
    up.sally(&["backup", file, "--dir", dir]).expect(0);
    let refused = up.sally(&["restore", file, "--dir", dir, "--force"]).expect(2);
    assert!(refused.stderr.contains("stop it first"), "{}", refused.stderr);

    let scratch = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let other = scratch.path().join("up");
    up.sally(&["restore", file, "--dir", other.to_str().unwrap()]).expect(0);
    drop(up);
    let again = Up::start_in(scratch, 1, &[]);
    assert_eq!(again.json(&["job", "show", &id], 0)["job"]["state"], "succeeded");
}

/// The commands of both READMEs about agents that are away and runs that fail.
#[test]
fn the_session_of_the_readmes_works_as_it_stands_there() {
    let up = Up::start(3);
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "45", "bash", "-euo", "pipefail", "-c"]);
    command.arg(commands(&block("README.md", "delivery")).join("\n")).current_dir(up.scratch());
    command.env("PATH", format!("{}:{path}", programs().display()));
    command.env("SALLY_CONTEXT", up.dir().join("context.toml"));
    let said = run(&mut command).expect(0);
    let text = said.text();
    let codes: Vec<&str> = text.lines().filter(|l| l.starts_with("exit code ")).collect();
    assert_eq!(codes, ["exit code 9", "exit code 3", "exit code 3"], "{text}\n{}", said.stderr);
    for part in ["attempt 2\n", "***", "ANSWERED IN"] {
        assert!(text.contains(part), "{part} is not in: {text}\n{}", said.stderr);
    }
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!text.contains("no answer"), "{text}");
}

//! What the controller does so that nothing is lost and nothing comes twice: retries, order, lanes, early cancellations.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::effects::send;
use crate::harness::{Up, eventually};

/// Runs that wait for an agent that is away. By hand a thousand; here enough to need many questions.
const WAITING: usize = 200;

/// How far runs may overtake each other: two for each slot and some.
const NEAR: usize = 12;

/// An agent that is frozen until this is dropped, and judged to be offline.
struct Away(i32);

impl Away {
    fn freeze(up: &Up, agent: &str) -> Away {
        let pid = up.pid_of(agent).unwrap();
        send(pid, Signal::SIGSTOP);
        let away = Away(pid);
        eventually("the agent is judged to be offline", || (state_of(up, agent) == "offline").then_some(()));
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        send(self.0, Signal::SIGCONT);
    }
}

/// One agent that has been welcomed: the direct lane waits for nobody.
fn ready() -> Up {
    let up = Up::start(1);
    up.sally(&["exec", "-a", "local-1", "--", "true"]).expect(0);
    up
}

fn state_of(up: &Up, agent: &str) -> String {
    let all = up.json(&["agent", "ls"], 0);
    let one = all["agents"].as_array().unwrap().iter().find(|a| a["agent"] == agent);
    one.unwrap()["state"].as_str().unwrap().to_owned()
}

fn detached(up: &Up, args: &[&str]) -> String {
    let mut all = vec!["exec", "-a", "local-1", "--detach"];
    all.extend(args);
    up.sally(&all).expect(0).text().trim().to_owned()
}

fn run_of(up: &Up, id: &str) -> Value {
    up.json(&["job", "show", id], 0)["runs"][0].clone()
}

#[test]
fn an_idempotent_task_is_tried_again_and_no_other() {
    let up = Up::start(1);
    let failing = ["--", "sh", "-c", "echo $SALLY_ATTEMPT; [ $SALLY_ATTEMPT -ge 3 ]"];
    let mut args = vec!["exec", "-a", "local-1", "--idempotent", "--retries", "4", "--backoff", "100ms"];
    args.extend(failing);
    let run = up.json(&args, 0)["runs"][0].clone();
    assert_eq!(
        (&run["state"], &run["attempt"], &run["stdout"]),
        (&"succeeded".into(), &3.into(), &"3\n".into())
    );

    let mut args = vec!["exec", "-a", "local-1", "--idempotent", "--retries", "1", "--backoff", "100ms"];
    args.extend(failing);
    let run = up.json(&args, 3)["runs"][0].clone();
    assert_eq!((&run["state"], &run["attempt"], &run["final"]), (&"failed".into(), &2.into(), &true.into()));

    let mut args = vec!["exec", "-a", "local-1"];
    args.extend(failing);
    let run = up.json(&args, 3)["runs"][0].clone();
    assert_eq!((&run["attempt"], &run["stdout"]), (&1.into(), &"1\n".into()));
}

#[test]
fn a_run_that_waits_for_its_next_attempt_can_be_cancelled() {
    let up = Up::start(1);
    let id = detached(
        &up,
        &["--idempotent", "--retries", "5", "--backoff", "10m", "--backoff-max", "10m", "--", "false"],
    );
    let waits = eventually("it waits for its next attempt", || {
        let run = run_of(&up, &id);
        run["retry_at"].is_string().then_some(run)
    });
    assert_eq!((&waits["state"], &waits["attempt"]), (&"pending".into(), &1.into()), "{waits}");
    up.sally(&["job", "cancel", &id]).expect(0);
    let run = run_of(&up, &id);
    assert_eq!((&run["state"], &run["final"]), (&"cancelled".into(), &true.into()), "{run}");
}

#[test]
fn a_returning_agent_takes_everything_once_and_in_order() {
    let up = Up::start(1);
    let away = Away::freeze(&up, "local-1");
    let ids: Vec<String> = (0..WAITING).map(|_| detached(&up, &["--", "sleep", "0.1"])).collect();
    let urgent = detached(&up, &["--priority", "9", "--", "true"]);
    drop(away);
    let runs: Vec<Value> = eventually("all are done", || {
        let last = run_of(&up, ids.last().unwrap());
        (last["final"] == true).then(|| ids.iter().map(|id| run_of(&up, id)).collect())
    });
    for run in &runs {
        assert_eq!(
            (&run["state"], &run["attempt"], &run["final"]),
            (&"succeeded".into(), &1.into(), &true.into())
        );
    }
    let started = |run: &Value| run["started_at"].as_str().unwrap().to_owned();
    let times: Vec<String> = runs.iter().map(started).collect();
    // Four slots start side by side, and a start may be slow: a run may overtake its neighbours and no other.
    for n in 0..times.len() - NEAR {
        assert!(
            times[n] <= times[n + NEAR],
            "run {n} started at {}, run {} at {}",
            times[n],
            n + NEAR,
            times[n + NEAR]
        );
    }
    let urgent = started(&run_of(&up, &urgent));
    assert!(urgent <= times[NEAR], "the urgent one at {urgent}, one of the others at {}", times[NEAR]);
}

#[test]
fn the_latest_takes_the_place_of_what_waits() {
    let up = Up::start(1);
    let away = Away::freeze(&up, "local-1");
    let old = detached(&up, &["--latest-only", "config", "--", "echo", "old"]);
    let new = detached(&up, &["--latest-only", "config", "--", "echo", "new"]);
    let run = run_of(&up, &old);
    assert_eq!((&run["state"], &run["reason"]), (&"cancelled".into(), &"replaced".into()), "{run}");
    assert!(run["message"].as_str().unwrap().contains(&new), "{run}");
    drop(away);
    let run = eventually("the new one is done", || Some(run_of(&up, &new)).filter(|r| r["final"] == true));
    assert_eq!(run["stdout"], "new\n");
}

#[test]
fn the_direct_lane_waits_for_nobody() {
    let up = ready();
    let run =
        up.json(&["exec", "-a", "local-1", "--lane", "direct", "--", "echo", "hello"], 0)["runs"][0].clone();
    assert_eq!((&run["state"], &run["stdout"]), (&"succeeded".into(), &"hello\n".into()));
    let away = Away::freeze(&up, "local-1");
    let run = up.json(&["exec", "-a", "local-1", "--lane", "direct", "--", "true"], 6)["runs"][0].clone();
    assert_eq!((&run["state"], &run["reason"]), (&"rejected".into(), &"not-connected".into()), "{run}");
    drop(away);
    let run = up.json(&["exec", "-a", "local-1", "--", "true"], 0)["runs"][0].clone();
    assert_eq!(run["state"], "succeeded");
}

#[test]
fn a_direct_run_on_an_agent_that_falls_silent_is_unknown_until_the_truth_comes() {
    let up = ready();
    let id = detached(&up, &["--lane", "direct", "--", "sleep", "3"]);
    eventually("it runs", || (run_of(&up, &id)["state"] == "running").then_some(()));
    let away = Away::freeze(&up, "local-1");
    let run = eventually("it is given up", || Some(run_of(&up, &id)).filter(|r| r["state"] == "unknown"));
    assert_eq!((&run["final"], &run["reason"]), (&false.into(), &"silent".into()), "{run}");
    drop(away);
    let run = eventually("the truth comes", || Some(run_of(&up, &id)).filter(|r| r["final"] == true));
    assert_eq!((&run["state"], &run["attempt"]), (&"succeeded".into(), &1.into()), "{run}");
}

#[test]
fn a_cancellation_may_come_before_its_submission() {
    let up = Up::start(1);
    up.sally(&["job", "cancel", "--request-id", "nightly"]).expect(0);
    let args = ["exec", "-a", "local-1", "--request-id", "nightly", "--", "true"];
    let job = up.json(&args, 9);
    assert_eq!(job["job"]["state"], "cancelled");
    assert_eq!((&job["runs"][0]["state"], &job["runs"][0]["attempt"]), (&"cancelled".into(), &0.into()));
    assert_eq!(up.json(&args, 9)["job"]["id"], job["job"]["id"]);
}
